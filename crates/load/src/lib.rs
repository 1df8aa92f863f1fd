//! Load tests of the whole program: a real `serve` process, real sockets, signed batches. Owns what
//! is measured and how; shares no code with what it measures but the values that everybody speaks
//! of, so that one cannot hide the cost of the other.
//!
//! ```text
//! events -> signer -> sender   ==HTTP/1.1==>  server (a `serve` process)
//!                     subscriber <==HTTP/2==    on CPUs of its own
//! report   medians over the runs
//! ```
//!
//! The load has to be cheaper than what it measures. So batches are signed before, requests are
//! prepared bytes, and one thread and one event queue read many connections (`engine`), whose
//! subscribers count events without decoding them (`subscription`, `responses`). The share of CPU
//! that each side used stands in every line, and says which of them was the limit.
//!
//! `benches/peers` compares the bridge with other servers by the same parts: each of them is a
//! [`ServerProcess`], and what it speaks is a [`Protocol`] of an [`Engine`].

mod catchup;
mod cpus;
mod engine;
mod events;
mod fanout;
pub mod frames;
mod idle;
mod ingest;
mod latency;
mod machine;
mod process;
mod report;
mod responses;
mod sender;
mod server;
mod signer;
mod stop;
mod subscriber;
mod subscription;
mod usage;

use std::{fmt, path::PathBuf, time::Duration};

pub use self::{
    catchup::Options as Catchup,
    cpus::Split,
    engine::{Connection, Engine, Protocol, ProtocolError},
    events::Shape,
    fanout::{Options as Fanout, SUBSCRIBERS},
    idle::Options as Idle,
    ingest::Options as Ingest,
    latency::{Options as Latency, RATE},
    machine::{Environment, Process, cpu_model, kernel_release, open_files},
    process::ServerProcess,
    report::{Latencies, Line, Summary, Table, Value, histogram},
    sender::{Answers, CONNECTIONS, micros},
    signer::Key,
    stop::Stop,
    subscription::{FRAME_BYTES, Subscription},
    usage::{Clock, Usage},
};
use self::{events::Events, server::Server};

/// The largest number of runs: more changes no median.
pub const RUNS_MAX: u32 = 100;

/// The bounds of [`Settings::event_bytes`]: what the fixed members need, and a batch of a hundred
/// within the body limit.
pub const EVENT_BYTES: std::ops::RangeInclusive<usize> = 400..=8_192;

/// What keeps the events of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Files, in a temporary directory.
    Embedded,
    /// Nothing but memory.
    Memory,
}

impl Store {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What all measurements have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often everything is measured; medians are reported.
    pub runs: u32,
    /// The length of an event as it is signed, in bytes.
    pub event_bytes: usize,
    /// Whether server and load get CPUs of their own.
    pub pin: bool,
    /// How many CPUs the server gets then. Default half of them.
    pub server_cpus: Option<usize>,
    /// The largest frame that subscribers allow, in bytes.
    pub frame_bytes: u32,
    /// Where the server's temporary directory is made. Default the system's.
    pub directory: Option<PathBuf>,
}

#[cfg(test)]
impl Settings {
    /// Small, on all CPUs.
    fn unpinned() -> Self {
        Self {
            runs: 1,
            event_bytes: 500,
            pin: false,
            server_cpus: None,
            frame_bytes: 16_384,
            directory: None,
        }
    }
}

/// One measurement with its sizes.
#[derive(Clone, Debug)]
pub enum Bench {
    /// Signed batches acknowledged durable.
    Ingest(Ingest),
    /// Deliveries to many subscribers.
    Fanout(Fanout),
    /// From sending to receiving, at a fixed rate.
    Latency(Latency),
    /// Reading history.
    Catchup(Catchup),
    /// Subscribers that only wait.
    Idle(Idle),
}

/// Who looks on.
pub trait Observer: Sync {
    /// Something begins.
    fn progress(&self, text: &str);

    /// Something odd that does not stop the run.
    fn warn(&self, text: &str);

    /// What was measured.
    ///
    /// # Errors
    /// [`Error::Output`] when it cannot be written.
    fn line(&self, line: &Line) -> Result<(), Error>;
}

/// Why a measurement came to no end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot be meant.
    #[error("{0}")]
    Settings(String),
    /// The server did not start, or ended on its own.
    #[error("the server {what}: {last_words}")]
    Server {
        /// What it did.
        what: &'static str,
        /// The end of its stderr.
        last_words: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// No key could be made.
    #[error("no signing key can be made: {0}")]
    Key(String),
    /// A batch was not taken.
    #[error("a batch was answered with {0} instead of 200")]
    Refused(String),
    /// A connection ended, or what came on it cannot be read.
    #[error("{0}")]
    Protocol(String),
    /// A subscriber failed.
    #[error("a subscriber failed: {0}")]
    Subscriber(String),
    /// Something that was acknowledged did not arrive, or arrived more than once.
    #[error("{0}")]
    Lost(String),
    /// Nothing moved for too long.
    #[error("nothing arrived for {0:?}")]
    Stalled(Duration),
    /// The figures cannot be written.
    #[error("{0}")]
    Output(String),
    /// Nobody reads the figures any more.
    #[error("the figures are read by nobody")]
    Unread,
    /// Somebody wants it to end.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// For `map_err`: what was tried when the system refused.
    fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            what,
            source: source.into(),
        }
    }
}

/// What a measurement is run with.
struct Context<'a> {
    settings: &'a Settings,
    split: Split,
    key: Key,
    events: Events,
    stop: &'a Stop,
    observer: &'a dyn Observer,
}

impl Context<'_> {
    fn server(&self, store: Store) -> Result<Server, Error> {
        Server::start(self, store, &[])
    }

    fn progress(&self, text: fmt::Arguments<'_>) -> Result<(), Error> {
        self.stop.check()?;
        self.observer.progress(&text.to_string());
        Ok(())
    }
}

/// Runs measurements one after the other on the calling thread, which it pins for good. Lines come
/// as they are known. Ends early when `stop` is set, and never leaves a server behind.
///
/// # Errors
/// The first thing that went wrong. [`Error::Interrupted`] when it was told to stop.
pub fn run(
    settings: &Settings,
    benches: &[Bench],
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<(), Error> {
    let outcome = Context::new(settings, observer, stop).and_then(|context| {
        observer.line(&context.environment().line())?;
        for bench in benches {
            match bench {
                Bench::Ingest(options) => ingest::run(&context, options)?,
                Bench::Fanout(options) => fanout::run(&context, options)?,
                Bench::Latency(options) => latency::run(&context, options)?,
                Bench::Catchup(options) => catchup::run(&context, options)?,
                Bench::Idle(options) => idle::run(&context, options)?,
            }
        }
        Ok(())
    });
    // A server that was killed looks like any other failure from where it is noticed.
    stop.check().and(outcome)
}

impl<'a> Context<'a> {
    fn new(
        settings: &'a Settings,
        observer: &'a dyn Observer,
        stop: &'a Stop,
    ) -> Result<Self, Error> {
        if !EVENT_BYTES.contains(&settings.event_bytes) {
            return Err(Error::Settings(format!(
                "events of {} bytes cannot be made: take {} to {}",
                settings.event_bytes,
                EVENT_BYTES.start(),
                EVENT_BYTES.end()
            )));
        }
        if cfg!(debug_assertions) {
            observer.warn(
                "this is a debug build: the figures say nothing about the program; build it with \
                 `cargo build --release`",
            );
        }
        let split = Split::new(settings)?;
        if let Some(reason) = split.unpinned() {
            observer.warn(reason);
        }
        split.enter_load();
        observer.progress("making a signing key");
        let key = Key::generate()?;
        Ok(Self {
            settings,
            split,
            key,
            events: Events::new(settings.event_bytes),
            stop,
            observer,
        })
    }

    /// Reports what was measured, and whether to believe it.
    fn report(&self, line: &Line) -> Result<(), Error> {
        if let Some(share) = line.others() {
            self.observer.warn(&format!(
                "other programs used {:.0}% of the CPUs: only figures of CPU time mean something, \
                 and ratios of figures that were measured together",
                share * 100.0
            ));
        }
        self.observer.line(line)
    }

    fn environment(&self) -> Environment {
        Environment::new(self.settings, &self.split)
    }
}
