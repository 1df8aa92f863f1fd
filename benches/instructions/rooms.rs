//! Owns the work of each room, to be done again and again: everything is made ready before, so that
//! a round is what an event's way costs there. Knows nothing of counting.

use std::{
    fs,
    hint::black_box,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use prelude_bridge::{
    bus::{self, Bus},
    credentials::Credentials,
    decode,
    event::{Batch, Epoch, EventKey, LogId, Sequence, UnixMicros},
    filter::{Filter, Spec},
    grpc,
    log::{
        Block, Log,
        block::{Builder, Format},
        embedded, memory,
    },
    metrics::Metrics,
    signature::{KeySet, SCHEME, Signature, VerifiedBody},
};
use prelude_bridge_load::frames;
use rsa::{
    RsaPrivateKey,
    pkcs8::{EncodePublicKey as _, LineEnding},
    pss::BlindedSigningKey,
    signature::{RandomizedSigner as _, SignatureEncoding as _},
};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    runtime::Runtime,
};

#[path = "../bodies/mod.rs"]
mod bodies;

/// The events of a batch, and of a block.
const EVENTS: usize = 10;
/// How many subscribers a block is delivered to: enough that publishing it is little beside that.
const SUBSCRIBERS: usize = 50;
/// How many events are looked at by each filter.
const MATCHED_EVENTS: usize = 700;

const APP_ID: &str = "54e9ujn";
const KEY_BITS: usize = 2048;

/// One round of a room's work.
pub(crate) type Round = Box<dyn FnMut()>;

/// A room and how to get it ready.
pub(crate) struct Room {
    /// As in the table of limits.
    pub(crate) name: &'static str,
    /// How many of the table's units one round has.
    pub(crate) units: u64,
    /// How many rounds are counted: as many as make the rest small.
    pub(crate) rounds: u64,
    /// Makes everything ready for this many rounds at most.
    pub(crate) prepare: fn(&Fixtures, u64) -> Round,
}

/// All rooms, in the order an event travels.
pub(crate) const ROOMS: [Room; 8] = [
    Room {
        name: "verify",
        units: 1,
        rounds: 20,
        prepare: verify,
    },
    Room {
        name: "decode-sessions",
        units: EVENTS as u64,
        rounds: 50,
        prepare: |fixtures, _| decode(fixtures, "sessions"),
    },
    Room {
        name: "decode-users",
        units: EVENTS as u64,
        rounds: 50,
        prepare: |fixtures, _| decode(fixtures, "users"),
    },
    Room {
        name: "decode-unknown",
        units: EVENTS as u64,
        rounds: 50,
        prepare: |fixtures, _| decode(fixtures, "unknown"),
    },
    Room {
        name: "append",
        units: EVENTS as u64,
        rounds: 100,
        prepare: append,
    },
    Room {
        name: "encode",
        units: EVENTS as u64,
        rounds: 50,
        prepare: encode,
    },
    Room {
        name: "match",
        units: MATCHED_EVENTS as u64,
        rounds: 20,
        prepare: matching,
    },
    Room {
        name: "deliver",
        units: SUBSCRIBERS as u64,
        rounds: 20,
        prepare: deliver,
    },
];

/// Signed bodies, and the key that verifies them, in a directory: made once, outside of what is
/// counted, and the same for every count.
pub(crate) struct Fixtures(pub(crate) PathBuf);

impl Fixtures {
    /// Makes a key and signs the bodies.
    pub(crate) fn write(&self) {
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, KEY_BITS).unwrap();
        let public = key.to_public_key();
        let pem = public.to_public_key_pem(LineEnding::LF).unwrap();
        fs::write(self.0.join("key.pem"), pem).unwrap();
        let key = BlindedSigningKey::<Sha256>::new(key);
        for (name, body) in [
            ("sessions", bodies::sessions(EVENTS)),
            ("users", bodies::users(EVENTS)),
            ("unknown", bodies::unknown(EVENTS)),
        ] {
            let signature = key.sign_with_rng(&mut rsa::rand_core::OsRng, body.as_bytes());
            let header = format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()));
            fs::write(self.0.join(name), body).unwrap();
            fs::write(self.0.join(format!("{name}.signature")), header).unwrap();
        }
    }

    fn keys(&self) -> KeySet {
        KeySet::from_pem(&fs::read(self.0.join("key.pem")).unwrap()).unwrap()
    }

    fn body(&self, name: &str) -> Bytes {
        fs::read(self.0.join(name)).unwrap().into()
    }

    fn header(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(format!("{name}.signature"))).unwrap()
    }

    fn verified(&self, name: &str) -> VerifiedBody {
        let signature = Signature::parse(&self.header(name)).unwrap();
        let keys = self.keys();
        keys.verify(self.body(name), &signature, None).unwrap()
    }

    fn batch(&self, name: &str) -> Batch {
        decode::batch(self.verified(name), &APP_ID.into(), "").unwrap()
    }

    /// Batches whose events are all new.
    fn batches(&self, count: u64) -> Vec<Batch> {
        let batches = (0..count).map(|number| {
            let mut batch = self.batch("sessions");
            for (index, draft) in batch.drafts.iter_mut().enumerate() {
                draft.key = EventKey::new(APP_ID, &format!("evt_{number}_{index}"), "", b"");
            }
            batch
        });
        batches.collect()
    }
}

/// From the header's text to the proof, over a body of 4.5 KB.
fn verify(fixtures: &Fixtures, _: u64) -> Round {
    let keys = fixtures.keys();
    let body = fixtures.body("sessions");
    let header = fixtures.header("sessions");
    Box::new(move || {
        let signature = Signature::parse(black_box(&header)).unwrap();
        black_box(keys.verify(body.clone(), &signature, None).unwrap());
    })
}

fn decode(fixtures: &Fixtures, name: &str) -> Round {
    let body = fixtures.verified(name);
    let app_id: Arc<str> = APP_ID.into();
    Box::new(move || {
        black_box(decode::batch(black_box(body.clone()), &app_id, "").unwrap());
    })
}

/// One batch a commit, the writer's thread included. What the kernel does is not counted.
fn append(fixtures: &Fixtures, rounds: u64) -> Round {
    let directory = tempfile::tempdir().unwrap();
    let options = embedded::Options::default();
    let log = embedded::open(directory.path(), options).unwrap();
    let runtime = runtime();
    let mut batches = fixtures.batches(rounds).into_iter();
    Box::new(move || {
        // Kept for as long as the log.
        let _ = &directory;
        let batch = batches.next().unwrap();
        let appended = runtime.block_on(log.append(batch)).unwrap();
        assert_eq!(appended.accepted, EVENTS);
    })
}

/// A batch laid out as a block, in the formats that subscribers may ask for.
fn encode(fixtures: &Fixtures, _: u64) -> Round {
    let batch = fixtures.batch("sessions");
    Box::new(move || {
        let block = block(std::iter::once(black_box(&batch)));
        black_box(block.view(Format::Both));
    })
}

/// Filters by type, by app and by user, over a block with events of all kinds.
fn matching(fixtures: &Fixtures, _: u64) -> Round {
    let batches: Vec<Batch> = ["sessions", "users", "unknown", "sessions", "users"]
        .into_iter()
        .cycle()
        .take(MATCHED_EVENTS / EVENTS)
        .map(|name| fixtures.batch(name))
        .collect();
    let block = block(batches.iter());
    let filters = [
        Spec {
            types: vec!["user.session.*".to_owned()],
            app_ids: vec![APP_ID.to_owned()],
            ..Spec::default()
        },
        Spec {
            types: vec!["user.**".to_owned()],
            exclude_types: vec!["user.created".to_owned()],
            ..Spec::default()
        },
        Spec {
            user_ids: vec!["usr_01jqebhswje2ka1yzgdbzrs1r2".to_owned()],
            ..Spec::default()
        },
    ]
    .map(|spec| Filter::compile(&spec).unwrap());
    Box::new(move || {
        for filter in &filters {
            let block = black_box(&block);
            assert!(filter.may_match(block));
            assert!(filter.select(block).runs(0).count() > 0);
        }
    })
}

fn block<'a>(batches: impl Iterator<Item = &'a Batch>) -> Block {
    let mut builder = Builder::new(LogId(1), Epoch(1), Sequence(1), UnixMicros(1));
    for batch in batches {
        for draft in &batch.drafts {
            builder.push(batch, draft);
        }
    }
    builder.finish().unwrap()
}

/// From a commit in memory to the bytes on every subscriber's connection, which is a pipe.
fn deliver(fixtures: &Fixtures, rounds: u64) -> Round {
    let runtime = runtime();
    let mut batches = fixtures.batches(rounds).into_iter();
    let event_bytes = Arc::new(Mutex::new(0));
    let (log, mut subscribers) = runtime.block_on(async {
        let (log, streams) = bridge(Arc::clone(&event_bytes)).await;
        let mut subscribers = Vec::new();
        for _ in 0..SUBSCRIBERS {
            let mut subscriber = Subscriber::connect(&streams).await;
            // `Started` and `CaughtUp`: from here on it is live.
            subscriber.read(100).await;
            subscribers.push(subscriber);
        }
        (log, subscribers)
    });
    Box::new(move || {
        let batch = batches.next().unwrap();
        runtime.block_on(async {
            log.append(batch).await.unwrap();
            let bytes = *event_bytes.lock().unwrap();
            for subscriber in &mut subscribers {
                subscriber.read(bytes).await;
            }
        });
    })
}

/// A bridge without sockets. Notes how many bytes of events each block has.
async fn bridge(event_bytes: Arc<Mutex<usize>>) -> (Arc<dyn Log>, grpc::Server) {
    let log: Arc<dyn Log> = memory::open(memory::Options::default()).unwrap();
    let note = move |block: &Arc<Block>| {
        let events = block.entries().len();
        *event_bytes.lock().unwrap() = block.view(Format::Typed).slice_bytes(0..events);
        Ok(())
    };
    log.follow(Sequence::ZERO, Arc::new(note)).unwrap();
    let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
    let streams = grpc::Server::new(
        grpc::Options::default(),
        Credentials::anonymous(),
        Arc::clone(&log),
        bus,
        Arc::new(Metrics::new()),
    );
    (log, streams.await.unwrap())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A client that looks only at how many bytes come, so that they cost next to nothing here.
struct Subscriber {
    pipe: DuplexStream,
    buffer: Vec<u8>,
}

impl Subscriber {
    async fn connect(streams: &grpc::Server) -> Self {
        let (mut pipe, end) = tokio::io::duplex(256 * 1024);
        let streams = streams.clone();
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        tokio::spawn(async move { streams.serve(end, nobody.into()).await });
        pipe.write_all(&opening()).await.unwrap();
        Self {
            pipe,
            buffer: vec![0; 64 * 1024],
        }
    }

    /// Reads this many bytes, and whatever else is there. What is framed around the last of the
    /// events may still be on its way, and is then read the next time.
    async fn read(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let count = self.pipe.read(&mut self.buffer).await.unwrap();
            assert!(count > 0, "the stream has ended");
            bytes = bytes.saturating_sub(count);
        }
    }
}

/// What a client sends to subscribe to everything, with the largest windows that there are: it never
/// has to send more.
fn opening() -> Vec<u8> {
    const WINDOW_BYTES: u32 = 0x7fff_ffff;
    [
        frames::PREFACE.to_vec(),
        frames::settings(&[(frames::INITIAL_WINDOW_SIZE, WINDOW_BYTES)]),
        frames::window_update(0, WINDOW_BYTES - frames::CONNECTION_WINDOW_BYTES),
        frames::whole_call(1, "/prelude.bridge.v1.EventService/Subscribe"),
    ]
    .concat()
}
