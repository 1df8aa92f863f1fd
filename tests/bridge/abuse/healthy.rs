//! Those who behave: a sender at a steady rate and a subscriber, with a ledger of both and the
//! times that everything took.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{RSA_PSS_SHA256, RsaKeyPair},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use prelude_bridge::{
    proto::{Latest, start_position::Position as Start, subscribe_response::Notice},
    simulator::keys::SIGNATURE_PREFIX,
};
use tokio::{sync::mpsc, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{
    APP, Bridge, KEY, batch, item,
    sender::{Delivery, Sender, eventually},
    stream::{Received, from},
};

/// One delivery of one event in this time, whatever became of those before: five hundred in an attack,
/// so that a 99th percentile is not merely the worst.
const PACE: Duration = Duration::from_millis(4);

/// Deliveries that are signed beforehand and wait to be sent.
const SIGNED_MAX: usize = 1_000;

/// How many connections more the healthy may have at one time than at another.
pub(super) const HEALTHY_CONNECTIONS_MAX: usize = 10;

/// The healthy clients of a bridge.
pub(super) struct Healthy {
    /// Nothing more is sent.
    stopping: CancellationToken,
    /// Nothing more will come.
    complete: CancellationToken,
    sender: JoinHandle<()>,
    subscriber: JoinHandle<Received>,
    ledger: Arc<Mutex<Ledger>>,
}

/// What became of each delivery, by its number.
#[derive(Default)]
struct Ledger {
    entries: Vec<Entry>,
    numbers: HashMap<String, usize>,
}

struct Entry {
    sent: Instant,
    acknowledged: Option<Duration>,
    delivered: Option<Duration>,
}

/// How long things took for the healthy.
#[derive(Clone, Copy)]
pub(super) struct Latencies {
    /// From the sending of a delivery to its `200`.
    pub(super) acknowledged: Percentiles,
    /// From the sending of a delivery to its event's arrival at the subscriber.
    pub(super) delivered: Percentiles,
}

#[derive(Clone, Copy)]
pub(super) struct Percentiles {
    pub(super) p99: Duration,
}

impl Percentiles {
    /// How these are beside those of the quiet times, for the table.
    pub(super) fn beside(&self, quiet: &Self) -> String {
        let (quiet, under) = (quiet.p99, self.p99);
        let factor = under.as_secs_f64() / quiet.as_secs_f64();
        format!("{quiet:.1?} → {under:.1?} ({factor:.1}×)")
    }

    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        Self { p99: at(99) }
    }
}

impl Healthy {
    pub(super) async fn start(bridge: &Bridge, sender: Sender) -> Self {
        let ledger = Arc::<Mutex<Ledger>>::default();
        let (stopping, complete) = (CancellationToken::new(), CancellationToken::new());
        let from_now_on = from(Start::Latest(Latest {}));
        let received = Received::subscribe(&mut bridge.client().await, from_now_on).await;
        let mut received = received.unwrap();
        received
            .until(|notice| matches!(notice, Notice::Started(_)))
            .await;
        let subscriber = read(received, Arc::clone(&ledger), complete.clone());
        let sender = send(sender, Arc::clone(&ledger), stopping.clone());
        Self {
            subscriber: tokio::spawn(subscriber),
            sender: tokio::spawn(sender),
            stopping,
            complete,
            ledger,
        }
    }

    /// How many deliveries were sent since then.
    pub(super) fn sent_since(&self, since: Instant) -> usize {
        assert!(!self.sender.is_finished() && !self.subscriber.is_finished());
        let ledger = self.ledger.lock().unwrap();
        let entries = ledger.entries.iter().rev();
        entries.take_while(|entry| entry.sent >= since).count()
    }

    /// The times of what was sent within these phases, once all of it has come.
    pub(super) async fn within(&self, phases: &[(Instant, Instant)]) -> Latencies {
        eventually(async || {
            assert!(!self.sender.is_finished() && !self.subscriber.is_finished());
            let ledger = self.ledger.lock().unwrap();
            let sent = ledger.entries.iter();
            let these: Vec<&Entry> = sent
                .filter(|entry| {
                    phases
                        .iter()
                        .any(|&(since, until)| (since..until).contains(&entry.sent))
                })
                .collect();
            let of = |time: fn(&Entry) -> Option<Duration>| {
                let times: Option<Vec<_>> = these.iter().map(|entry| time(entry)).collect();
                times.map(Percentiles::of)
            };
            Some(Latencies {
                acknowledged: of(|entry| entry.acknowledged)?,
                delivered: of(|entry| entry.delivered)?,
            })
        })
        .await
    }

    /// Ends both, and compares what was sent with what came.
    pub(super) async fn stop(self) {
        self.stopping.cancel();
        self.sender.await.unwrap();
        let all_came = async || {
            let ledger = self.ledger.lock().unwrap();
            let mut entries = ledger.entries.iter();
            let all =
                entries.all(|entry| entry.acknowledged.is_some() && entry.delivered.is_some());
            all.then_some(())
        };
        eventually(all_came).await;
        self.complete.cancel();
        let received = self.subscriber.await.unwrap();
        let mut sent: Vec<String> = (self.ledger.lock().unwrap().numbers.keys().cloned()).collect();
        let mut came: Vec<String> = received.events().map(|event| event.id.clone()).collect();
        let sequences = received.sequences();
        assert!(sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        sent.sort_unstable();
        came.sort_unstable();
        assert_eq!(sent, came);
    }
}

/// Delivers at a steady pace. Nothing waits for the answer to an earlier delivery: a bridge that is
/// slow is seen to be slow, instead of being asked less.
async fn send(sender: Sender, ledger: Arc<Mutex<Ledger>>, stopping: CancellationToken) {
    let mut deliveries = signed(stopping.clone());
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sending = TaskTracker::new();
    loop {
        ticks.tick().await;
        if stopping.is_cancelled() {
            break;
        }
        let Some((id, delivery)) = deliveries.recv().await else {
            break;
        };
        let (sender, written) = (sender.clone(), Arc::clone(&ledger));
        let number = {
            let mut ledger = ledger.lock().unwrap();
            let number = ledger.entries.len();
            ledger.numbers.insert(id, number);
            ledger.entries.push(Entry {
                sent: Instant::now(),
                acknowledged: None,
                delivered: None,
            });
            number
        };
        sending.spawn(async move {
            // Within the 10 s that Prelude waits, at the first attempt.
            let reply = sender.send(&delivery).await;
            assert_eq!(reply.counts(), (1, 0));
            let entry = &mut written.lock().unwrap().entries[number];
            entry.acknowledged = Some(entry.sent.elapsed());
        });
    }
    sending.close();
    sending.wait().await;
}

/// Deliveries that are signed beforehand, and on a thread that gives way, so that what it costs is not
/// measured.
fn signed(stopping: CancellationToken) -> mpsc::Receiver<(String, Delivery)> {
    let (ready, deliveries) = mpsc::channel(SIGNED_MAX);
    std::thread::spawn(move || {
        rustix::process::nice(19).unwrap();
        let key = FastKey::new();
        for number in 1.. {
            let id = format!("evt_healthy_{number}");
            let delivery = key.deliver(&id);
            if stopping.is_cancelled() || ready.blocking_send((id, delivery)).is_err() {
                break;
            }
        }
    });
    deliveries
}

/// The key of the tests, in an implementation that signs several times faster than the simulator's.
struct FastKey(RsaKeyPair);

impl FastKey {
    fn new() -> Self {
        let pem = KEY.to_pem().unwrap();
        let base64: String = pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        Self(RsaKeyPair::from_pkcs8(&STANDARD.decode(base64).unwrap()).unwrap())
    }

    fn deliver(&self, id: &str) -> Delivery {
        let body = batch(APP, &[item(id, "user.session.revoked", "usr_1")]);
        let mut signature = vec![0; self.0.public_modulus_len()];
        let random = SystemRandom::new();
        self.0
            .sign(&RSA_PSS_SHA256, &random, body.as_bytes(), &mut signature)
            .unwrap();
        Delivery {
            body: body.into(),
            signature: format!("{SIGNATURE_PREFIX}{}", URL_SAFE_NO_PAD.encode(signature)),
        }
    }
}

/// Reads and takes the time of everything.
async fn read(
    mut received: Received,
    ledger: Arc<Mutex<Ledger>>,
    complete: CancellationToken,
) -> Received {
    loop {
        let response = tokio::select! {
            response = received.next() => response.unwrap().unwrap(),
            () = complete.cancelled() => break,
        };
        let now = Instant::now();
        let mut ledger = ledger.lock().unwrap();
        for event in &response.events {
            let number = ledger.numbers[&event.id];
            let entry = &mut ledger.entries[number];
            assert!(entry.delivered.is_none(), "twice");
            entry.delivered = Some(now - entry.sent);
        }
    }
    received
}
