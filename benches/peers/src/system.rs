//! Owns which servers there are: how each is started, fed and subscribed to. Everything else knows
//! a server only by what is here.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use tempfile::TempDir;

use prelude_bridge_load::{
    Answers, Engine, Key, Protocol, ServerProcess, Split, Stop, Subscription,
};

use crate::{
    events::{APP, Chunks, EVENT_BYTES, TOKEN},
    proto::{Filter, SubscribeRequest},
    protocol::{Raw, nats},
    store::{
        Durability,
        cluster::{Cluster, Clusters, Place},
    },
};

/// How long the server may take to confirm connections.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, and how its subscribers behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum System {
    /// prelude-bridge, its log in memory.
    BridgeMemory,
    /// The same, with subscribers that take frames of 64 KiB.
    BridgeMemoryLargeFrames,
    /// prelude-bridge with its log on disk.
    BridgeEmbedded,
    /// prelude-bridge with a replica of a log that JetStream orders and keeps.
    BridgeJetStream,
    /// That log, without a bridge.
    ReplicatedLog,
    /// Single messages to JetStream, each with an id by which it recognises repetitions.
    JetStreamMessages,
    /// nats-server, without JetStream.
    Nats,
    /// nats-server, a JetStream in files, an ordered consumer for each subscriber.
    JetStream,
    /// tonic and `tokio::sync::broadcast`.
    PlainTonic,
    /// Go: `net/http`, `crypto/rsa`, grpc-go.
    Go,
    /// The same, each batch flushed to a file before it is answered.
    GoDurable,
    /// Node.js: `http`, `crypto`, grpc-js.
    Node,
    /// The same, each batch flushed to a file before it is answered.
    NodeDurable,
    /// Bare TCP: shared slices, gathered writes.
    RawTcp,
    /// aws-lc's verification of the same batches, and nothing else.
    VerificationAlone,
    /// The same batches appended to a file, each flushed.
    AppendAlone,
}

impl System {
    /// A name for tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BridgeMemory => "bridge, memory",
            Self::BridgeMemoryLargeFrames => "bridge, memory, 64 KiB frames",
            Self::BridgeEmbedded => "bridge, embedded",
            Self::BridgeJetStream => "bridge, JetStream",
            Self::ReplicatedLog => "the log alone, JetStream",
            Self::JetStreamMessages => "JetStream, a message an event",
            Self::Nats => "nats-server core",
            Self::JetStream => "JetStream, files",
            Self::PlainTonic => "plain tonic",
            Self::Go => "Go",
            Self::GoDurable => "Go, durable",
            Self::Node => "Node",
            Self::NodeDurable => "Node, durable",
            Self::RawTcp => "raw TCP",
            Self::VerificationAlone => "verification alone",
            Self::AppendAlone => "append + fdatasync alone",
        }
    }

    /// Whether it uses servers of NATS that run on between two works.
    pub(crate) fn uses_cluster(self) -> bool {
        matches!(
            self,
            Self::BridgeJetStream | Self::ReplicatedLog | Self::JetStreamMessages
        )
    }
}

/// Where and with what servers run.
pub struct Host {
    /// Where the programs are.
    pub programs: Programs,
    /// A core for the server and one for the load.
    pub split: Split,
    /// Ends a server that is still running.
    pub stop: Stop,
    /// Signs for all.
    pub key: Key,
    /// The engine of logs that several bridges have.
    pub clusters: Clusters,
}

impl Host {
    /// A directory for a server, with the public key.
    pub(crate) fn home(&self) -> Result<TempDir> {
        let home = tempfile::tempdir_in(&self.programs.data)?;
        std::fs::write(home.path().join("key.pem"), self.key.public_pem()?)?;
        Ok(home)
    }

    pub(crate) fn cluster(&self, kind: (Durability, Place)) -> Result<Rc<Cluster>> {
        let Programs { nats, data, .. } = &self.programs;
        self.clusters.get(nats, data, &self.split, kind)
    }
}

/// Where the programs are.
pub struct Programs {
    /// prelude-bridge itself.
    pub bridge: PathBuf,
    /// This package's own: `plain-tonic`, `raw-tcp`, `limits`.
    pub own: PathBuf,
    /// nats-server.
    pub nats: PathBuf,
    /// The Go receiver.
    pub go: PathBuf,
    /// The directory of the Node receiver.
    pub node: PathBuf,
    /// Where data is kept while a server runs: on a real disk.
    pub data: PathBuf,
}

/// A server that runs, and how to reach it.
pub struct Running {
    /// The process.
    pub server: ServerProcess,
    system: System,
    /// Where subscribers go.
    pub stream: SocketAddr,
    /// Where events go in.
    pub feed: SocketAddr,
    _home: TempDir,
}

/// Where a bridge keeps its log.
pub(crate) enum Store {
    /// In memory, or in files of its own.
    Alone(&'static str),
    /// In a stream.
    JetStream {
        servers: Vec<String>,
        stream: String,
        replicas: usize,
    },
}

impl Store {
    fn settings(&self) -> String {
        match self {
            Self::Alone(store) => format!("[store]\nurl = \"{store}\"\n"),
            Self::JetStream {
                servers,
                stream,
                replicas,
            } => {
                let servers = servers.join(",").replace(",nats://", ",");
                format!(
                    "[store]\nurl = \"{servers}\"\nstream = \"{stream}\"\nreplicas = {replicas}\n"
                )
            }
        }
    }
}

impl Running {
    /// Starts it with an empty log.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(system: System, host: &Host) -> Result<Self> {
        let started = Self::try_start(system, host);
        started.with_context(|| format!("{} does not start", system.name()))
    }

    fn try_start(system: System, host: &Host) -> Result<Self> {
        let programs = &host.programs;
        let home = host.home()?;
        let key = home.path().join("key.pem");
        if matches!(system, System::Nats | System::JetStream) {
            return Self::start_nats(system, host, home);
        }
        let (command, stream, feed) = match system {
            System::BridgeMemory | System::BridgeMemoryLargeFrames | System::BridgeEmbedded => {
                let store = if system == System::BridgeEmbedded {
                    Store::Alone("embedded")
                } else {
                    Store::Alone("memory")
                };
                (bridge(programs, home.path(), &store)?, "grpc", "webhook")
            }
            System::BridgeJetStream => {
                let cluster = host.cluster((Durability::LEAST, Place::BesideLoad))?;
                let store = Store::JetStream {
                    servers: cluster.servers(),
                    stream: cluster.new_name(),
                    replicas: cluster.replicas(),
                };
                (bridge(programs, home.path(), &store)?, "grpc", "webhook")
            }
            System::PlainTonic => (
                Command::new(programs.own.join("plain-tonic")),
                "grpc",
                "feed",
            ),
            System::RawTcp => (
                Command::new(programs.own.join("raw-tcp")),
                "stream",
                "stream",
            ),
            System::Go | System::GoDurable => {
                let mut command = Command::new(&programs.go);
                command.arg("-key").arg(&key);
                if system == System::GoDurable {
                    command.arg("-file").arg(home.path().join("events"));
                }
                (command, "grpc", "webhook")
            }
            System::Node | System::NodeDurable => {
                let mut command = Command::new("node");
                command.arg(programs.node.join("receiver.js")).arg(&key);
                if system == System::NodeDurable {
                    command.arg(home.path().join("events"));
                }
                (command, "grpc", "webhook")
            }
            System::Nats
            | System::JetStream
            | System::ReplicatedLog
            | System::JetStreamMessages
            | System::VerificationAlone
            | System::AppendAlone => {
                bail!("not such a server")
            }
        };
        let server = ServerProcess::start(command, &host.split, &host.stop)?;
        let stream = server.address(stream)?;
        let feed = server.address(feed)?;
        Ok(Self {
            server,
            system,
            stream,
            feed,
            _home: home,
        })
    }

    fn start_nats(system: System, host: &Host, home: TempDir) -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(&host.programs.nats);
        command.args(["-a", "127.0.0.1", "-p", &address.port().to_string()]);
        if system == System::JetStream {
            command.arg("-js").arg("-sd").arg(home.path());
        }
        let server = ServerProcess::start_silently(command, &host.split, &host.stop)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                bail!("nats-server does not listen on {address}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if system == System::JetStream {
            let creator: Box<dyn Protocol> =
                Box::new(nats::Client::stream_creator("EVENTS", "ev.>", 1));
            open_all(&mut Engine::new()?, address, [creator])?;
        }
        Ok(Self {
            server,
            system,
            stream: address,
            feed: address,
            _home: home,
        })
    }

    /// A subscriber's side of a connection; `number` is different for each.
    fn subscriber(&self, number: usize, event_type: Option<&str>) -> Box<dyn Protocol> {
        match self.system {
            System::Nats => Box::new(nats::Client::subscriber(event_type)),
            System::JetStream => Box::new(nats::Client::consumer(number, event_type)),
            System::RawTcp => Box::new(Raw::subscriber(EVENT_BYTES as u64)),
            System::BridgeMemoryLargeFrames => Box::new(subscription(event_type, 64 * 1024)),
            _ => Box::new(subscription(event_type, 16 * 1024)),
        }
    }

    /// Opens a connection for each of the subscribers with these numbers.
    ///
    /// # Errors
    /// The server does not take or confirm them.
    pub fn subscribe(
        &self,
        engine: &mut Engine,
        numbers: std::ops::Range<usize>,
        event_type: impl Fn(usize) -> Option<&'static str>,
    ) -> Result<()> {
        let subscribers = numbers.map(|number| self.subscriber(number, event_type(number)));
        open_all(engine, self.stream, subscribers)
    }

    /// Opens what events are published over.
    ///
    /// # Errors
    /// The server does not take the connection.
    pub fn publisher(&self, engine: &mut Engine, connections: usize) -> Result<Publisher> {
        let takes_webhooks = self.takes_webhooks();
        let connections = if takes_webhooks { connections } else { 1 };
        let first = engine.connections().len();
        let publishers = (0..connections).map(|_| -> Box<dyn Protocol> {
            match self.system {
                System::Nats | System::JetStream => Box::new(nats::Client::publisher()),
                System::RawTcp => Box::new(Raw::publisher(b"P")),
                _ if takes_webhooks => Box::new(Answers::default()),
                _ => Box::new(Raw::publisher(b"")),
            }
        });
        open_all(engine, self.feed, publishers)?;
        Ok(Publisher {
            takes_webhooks,
            first,
            idle: (first..first + connections).collect(),
            waiting: std::collections::VecDeque::new(),
        })
    }

    /// What it is fed with.
    #[must_use]
    pub fn chunks<'a>(&self, chunks: &'a Chunks) -> Source<'a> {
        let (items, only_once) = match self.system {
            System::Nats => (&chunks.publishes, false),
            System::JetStream => (&chunks.acknowledged_publishes, false),
            _ if self.takes_webhooks() => (&chunks.requests, true),
            _ => (&chunks.frames, false),
        };
        Source { items, only_once }
    }

    fn takes_webhooks(&self) -> bool {
        !matches!(
            self.system,
            System::Nats | System::JetStream | System::PlainTonic | System::RawTcp
        )
    }
}

/// To events of one type, or all. The cursors of a bridge are not looked at, as no other server
/// sends any.
pub(crate) fn subscription(event_type: Option<&str>, frame_bytes: u32) -> Subscription {
    let request = SubscribeRequest {
        filter: event_type.map(|event_type| Filter {
            types: vec![event_type.to_owned()],
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    };
    Subscription::without_cursors(&request, frame_bytes)
}

/// Opens connections and waits until the server has confirmed all of them.
pub(crate) fn open_all(
    engine: &mut Engine,
    address: SocketAddr,
    protocols: impl IntoIterator<Item = Box<dyn Protocol>>,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let opened = engine.open_all(address, protocols, || match Instant::now() > deadline {
        true => Err(prelude_bridge_load::Error::Stalled(PATIENCE)),
        false => Ok(()),
    });
    opened.context("not every connection was accepted")
}

/// A bridge whose configuration and data are in this directory, where the public key is.
pub(crate) fn bridge(programs: &Programs, home: &Path, store: &Store) -> Result<Command> {
    let config = home.join("bridge.toml");
    let token = home.join("token.txt");
    std::fs::write(&token, TOKEN)?;
    std::fs::write(
        &config,
        format!(
            "old_events = \"accept\"\n{}\
             [[apps]]\nid = \"{APP}\"\nverification_token_file = \"token.txt\"\npem_file = \"key.pem\"\n\
             [limits.grpc]\nconnections_max = 20000\nstreams_max = 20000\n\
             connections_per_address_max = 20000\nstreams_per_address_max = 20000\n",
            store.settings()
        ),
    )?;
    let mut command = Command::new(&programs.bridge);
    command
        .args(["serve", "--log-format", "json", "--config"])
        .arg(&config)
        .arg("--data-dir")
        .arg(home.join("data"));
    for port in ["--webhook-listen", "--grpc-listen", "--admin-listen"] {
        command.args([port, "127.0.0.1:0"]);
    }
    Ok(command)
}

/// For a server that cannot be asked which port it was given.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Chunks to publish, in turn.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    items: &'a [Bytes],
    only_once: bool,
}

impl Source<'_> {
    /// The chunk with this number, or nothing where all were used.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<Bytes> {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        if self.only_once {
            self.items.get(number).cloned()
        } else {
            self.items.get(number % self.items.len()).cloned()
        }
    }
}

/// Publishes chunks: webhooks one at a time on each connection, anything else as it comes.
pub struct Publisher {
    takes_webhooks: bool,
    first: usize,
    /// Connections on which an answer is not being waited for.
    idle: Vec<usize>,
    waiting: std::collections::VecDeque<Bytes>,
}

impl Publisher {
    /// Publishes a chunk, or keeps it until a connection is free.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn publish(&mut self, engine: &mut Engine, chunk: Bytes) -> Result<()> {
        if !self.takes_webhooks {
            return Ok(engine.send(self.first, chunk)?);
        }
        match self.idle.pop() {
            Some(index) => Ok(engine.send(index, chunk)?),
            None => {
                self.waiting.push_back(chunk);
                Ok(())
            }
        }
    }

    /// Whether a connection is one of its own.
    #[must_use]
    pub fn owns(&self, index: usize) -> bool {
        index >= self.first
    }

    /// Whether all is sent and answered that was published.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.takes_webhooks || !self.idle.is_empty()
    }

    /// Notes an answer on a connection, which is then free.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn answered(&mut self, engine: &mut Engine, index: usize) -> Result<()> {
        if !self.takes_webhooks {
            return Ok(());
        }
        match self.waiting.pop_front() {
            Some(chunk) => Ok(engine.send(index, chunk)?),
            None => {
                self.idle.push(index);
                Ok(())
            }
        }
    }
}
