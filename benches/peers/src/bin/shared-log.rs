//! One of several processes that use JetStream without a bridge: appends to the log that bridges have, or
//! publishes single messages. Prints a line of JSON when it is ready, begins with the first line that it is
//! sent, and answers each with what it has done.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use async_nats::{Client, HeaderMap, Message, Subscriber, header};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use futures_util::StreamExt as _;
use prelude_bridge_event::{Batch, Draft, EventKey, block::Block, wire::Head};
use prelude_bridge_jetstream::{Login, Options};
use prelude_bridge_load::{Latencies, histogram, micros};
use prelude_bridge_log::{Error, Log, embedded};
use prelude_bridge_peers::events::{APP, EVENT_BYTES};
use tokio::sync::{Semaphore, mpsc, watch};

const BATCH: usize = 10;
const DAY: Duration = Duration::from_secs(86_400);
/// The pause before a batch that was refused is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(10);

#[derive(Clone, Parser)]
struct Arguments {
    /// URLs of NATS, with commas between them.
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// The stream, and the subject of single messages.
    #[arg(long)]
    stream: String,
    /// On how many servers events are kept.
    #[arg(long)]
    replicas: usize,
    /// A number that no other process has.
    #[arg(long)]
    number: usize,
    /// Where replicas of the log are.
    #[arg(long)]
    directory: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Clone, Copy, Subcommand)]
enum Task {
    /// Appends batches of ten to the log.
    Append {
        /// How many wait at a time.
        #[arg(long)]
        tasks: usize,
    },
    /// Publishes an event a message, with an id each.
    Publish {
        /// How many wait for their acknowledgement at a time.
        #[arg(long)]
        waiting: usize,
    },
    /// Appends one event at a time, until another replica has it.
    Deliver,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let done = Arc::new(Done::default());
    // One thread beside those of the log: a core is all that there is.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let task = runtime.block_on(Prepared::new(&arguments))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let ready =
        serde_json::json!({ "message": "ready", "control": listener.local_addr()?.to_string() });
    println!("{ready}");
    let (begin, begun) = watch::channel(false);
    let answering = thread::spawn({
        let done = Arc::clone(&done);
        move || answer(&listener, &begin, &done)
    });
    runtime.spawn(async move {
        if let Err(error) = task.run(begun, &done).await {
            done.state().error = Some(format!("{error:#}"));
        }
    });
    answering.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// Answers until nobody asks any more.
fn answer(listener: &TcpListener, begin: &watch::Sender<bool>, done: &Done) -> Result<()> {
    let (mut connection, _) = listener.accept()?;
    for line in BufReader::new(connection.try_clone()?).lines() {
        line?;
        begin.send_replace(true);
        let said = done.tell();
        writeln!(connection, "{said}")?;
    }
    Ok(())
}

/// What was done.
#[derive(Default)]
struct Done(Mutex<State>);

struct State {
    events: u64,
    latencies: Latencies,
    error: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            events: 0,
            latencies: histogram(),
            error: None,
        }
    }
}

impl Done {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, events: usize, took: Duration) {
        let mut state = self.state();
        state.events += events as u64;
        state.latencies.saturating_record(micros(took));
    }

    /// All events so far, and the latencies since it was last asked.
    fn tell(&self) -> serde_json::Value {
        let mut state = self.state();
        let at = |quantile| state.latencies.value_at_quantile(quantile);
        let said = serde_json::json!({
            "events": state.events, "p50": at(0.5), "p99": at(0.99), "error": state.error,
        });
        state.latencies.reset();
        said
    }
}

/// A task with its connections.
enum Prepared {
    Append {
        log: Arc<dyn Log>,
        tasks: usize,
        number: usize,
    },
    Publish(Box<Publisher>),
    Deliver {
        from: Arc<dyn Log>,
        to: Arc<dyn Log>,
    },
}

impl Prepared {
    async fn new(arguments: &Arguments) -> Result<Self> {
        let number = arguments.number;
        let replica = |name: &str| open(arguments, arguments.directory.join(name));
        Ok(match arguments.task {
            Task::Append { tasks } => Self::Append {
                log: replica("log").await?,
                tasks,
                number,
            },
            Task::Publish { waiting } => {
                Self::Publish(Box::new(Publisher::new(arguments, waiting).await?))
            }
            Task::Deliver => Self::Deliver {
                from: replica("from").await?,
                to: replica("to").await?,
            },
        })
    }

    async fn run(self, mut begun: watch::Receiver<bool>, done: &Arc<Done>) -> Result<()> {
        begun.wait_for(|&begun| begun).await?;
        match self {
            Self::Append { log, tasks, number } => append(&log, tasks, number, done).await,
            Self::Publish(publisher) => publisher.run(done).await,
            Self::Deliver { from, to } => deliver(&*from, &*to, done).await,
        }
    }
}

async fn open(arguments: &Arguments, directory: PathBuf) -> Result<Arc<dyn Log>> {
    let options = Options {
        servers: arguments.servers.clone(),
        stream: arguments.stream.clone(),
        create: true,
        replicas: arguments.replicas,
        login: Login::None,
        tls: None,
        retention_age: 30 * DAY,
        retention_bytes: 8 << 30,
        ids_age: 15 * DAY,
    };
    let sequencer = prelude_bridge_jetstream::open(options).await?.sequencer;
    let path: &Path = &directory;
    std::fs::create_dir_all(path)?;
    Ok(embedded::open_replica(path, embedded::Options::default(), sequencer).await?)
}

async fn append(log: &Arc<dyn Log>, tasks: usize, number: usize, done: &Arc<Done>) -> Result<()> {
    let tasks = (0..tasks).map(|task| {
        let (log, done) = (Arc::clone(log), Arc::clone(done));
        tokio::spawn(async move {
            for count in 0.. {
                let id = format!("{number}-{task}-{count}");
                let (started, mut is_again) = (Instant::now(), false);
                // An engine that is asked for more than it can do refuses: as a sender does, it is tried again.
                let appended = loop {
                    match log.append(batch(&id, BATCH)).await {
                        Err(Error::Unavailable(_)) => tokio::time::sleep(RETRY_AFTER).await,
                        appended => break appended?,
                    }
                    is_again = true;
                };
                ensure!(
                    is_again || appended.duplicates == 0,
                    "new events were taken for known ones"
                );
                done.add(BATCH, started.elapsed());
            }
            Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(())
}

async fn deliver(from: &dyn Log, to: &dyn Log, done: &Done) -> Result<()> {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let follower = move |_: &Arc<Block>| {
        // Nobody listens once this ends.
        let _ = arrived.send(Instant::now());
        Ok(())
    };
    to.follow(to.range().head, Arc::new(follower))?;
    for count in 0.. {
        let batch = batch(&count.to_string(), 1);
        let started = Instant::now();
        let (appended, arrived) = tokio::join!(from.append(batch), arrivals.recv());
        appended?;
        let arrived = arrived.context("the follower was dropped")?;
        done.add(1, arrived.saturating_duration_since(started));
    }
    Ok(())
}

/// Digits that do not repeat within a commit: JetStream compresses what it sends to other servers, if it is
/// large, and blanks would take it no time.
static DIGITS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u64;
    let digit = |_| {
        // Xorshift: any digits do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"0123456789abcdef"
            .get((state >> 60) as usize)
            .copied()
            .unwrap_or(b'0')
    };
    (0..DIGITS_COUNT).map(digit).collect()
});
const DIGITS_COUNT: usize = 1 << 22;

/// The next of them, from the beginning again after the last.
fn digits(count: usize) -> &'static [u8] {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let from = NEXT.fetch_add(count, Ordering::Relaxed) % (DIGITS_COUNT - count);
    DIGITS.get(from..from + count).unwrap_or_default()
}

/// Events of the usual size, with half of their bytes in the JSON and half in the fields.
fn batch(id: &str, count: usize) -> Batch {
    let half = EVENT_BYTES / 2;
    let mut encoded = Vec::with_capacity(count * half);
    let drafts = (0..count).map(|index| {
        let id = format!("evt_{id}-{index}");
        let head = Head {
            id: &id,
            event_type: "user.created",
            app_id: APP,
            ..Head::default()
        };
        head.encode(&mut encoded);
        let head_end = encoded.len();
        encoded.extend_from_slice(digits((index + 1) * half - head_end));
        Draft {
            key: EventKey::new(APP, &id, "user.created", b""),
            event_type: "user.created".into(),
            user_hash: 7,
            head: index * half..head_end,
            payload: head_end..(index + 1) * half,
            raw_json: index * half..(index + 1) * half,
        }
    });
    let drafts = drafts.collect();
    Batch {
        app_id: APP.into(),
        drafts,
        body: Bytes::from_static(digits(count * half)),
        encoded: encoded.into(),
        dates: Default::default(),
    }
}

/// Publishes without waiting for each acknowledgement. All come to one subject, in the order of the
/// messages: this takes less of a client than an inbox for each.
struct Publisher {
    client: Client,
    acknowledgements: Subscriber,
    inbox: String,
    subject: String,
    number: usize,
    waiting: usize,
}

impl Publisher {
    async fn new(arguments: &Arguments, waiting: usize) -> Result<Self> {
        let client = async_nats::connect(arguments.servers.clone()).await?;
        let inbox = client.new_inbox();
        let acknowledgements = client.subscribe(inbox.clone()).await?;
        client.flush().await?;
        let (subject, number) = (arguments.stream.clone(), arguments.number);
        Ok(Self {
            client,
            acknowledgements,
            inbox,
            subject,
            number,
            waiting,
        })
    }

    async fn run(self, done: &Arc<Done>) -> Result<()> {
        let room = Arc::new(Semaphore::new(self.waiting));
        let sent = Arc::new(Mutex::new(VecDeque::new()));
        let receiving = receive(self.acknowledgements, &room, &sent, done);
        let sending = async {
            for count in 0_u64.. {
                room.acquire().await?.forget();
                let payload = Bytes::from_static(digits(EVENT_BYTES));
                let mut headers = HeaderMap::new();
                headers.insert(
                    header::NATS_MESSAGE_ID,
                    format!("evt_{}-{count:022}", self.number),
                );
                sent.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_back(Instant::now());
                let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
                let published = self
                    .client
                    .publish_with_reply_and_headers(subject, inbox, headers, payload);
                published.await?;
            }
            Ok(())
        };
        tokio::try_join!(receiving, sending).map(|_| ())
    }
}

async fn receive(
    mut acknowledgements: Subscriber,
    room: &Semaphore,
    sent: &Mutex<VecDeque<Instant>>,
    done: &Done,
) -> Result<()> {
    while let Some(message) = acknowledgements.next().await {
        check(&message)?;
        let sent = sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        done.add(1, sent.map(|at| at.elapsed()).unwrap_or_default());
        room.add_permits(1);
    }
    Ok(())
}

/// `{"stream":"…","seq":1}`, without an error, and not a duplicate.
fn check(message: &Message) -> Result<()> {
    let text = String::from_utf8_lossy(&message.payload);
    let is_stored = text.contains("\"seq\"") && !text.contains("\"duplicate\"");
    ensure!(
        is_stored && !text.contains("\"error\""),
        "JetStream answered `{text}`"
    );
    Ok(())
}
