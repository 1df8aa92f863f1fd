//! `bench`: load tests of this program on this machine. Owns the flags, their defaults, and the output
//! on the terminal; the crate `prelude_bridge_load` measures.

mod terminal;

use std::{path::PathBuf, thread, time::Duration};

use clap::{Subcommand, ValueEnum, builder::RangedU64ValueParser};
use tokio::signal::unix::{SignalKind, signal};

use prelude_bridge_load::{
    Bench, CONNECTIONS, Catchup, EVENT_BYTES, Error, FRAME_BYTES, Fanout, Idle, Ingest, Latency,
    RATE, RUNS_MAX, SUBSCRIBERS, Settings, Shape, Stop, Store,
};

use self::terminal::Terminal;
use super::exit::{Exit, Failure};

/// How long a measurement may take to end after it was stopped. Its server has ended by then.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// `bench`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,

    /// Measure everything this often and report medians [default: 5, or 1 with --quick]
    #[arg(long, global = true, value_name = "N", value_parser = range(1..=RUNS_MAX.into()))]
    runs: Option<u64>,

    /// Take smaller sizes: figures to look at, not to publish
    #[arg(long, global = true)]
    quick: bool,

    /// How figures are written to stdout
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human")]
    output: Output,

    /// Whether server and load get CPUs of their own
    #[arg(long, global = true, value_name = "WHETHER", default_value = "on")]
    pin: Switch,

    /// How many CPUs the server gets when they are pinned [default: half of them]
    #[arg(long, global = true, value_name = "N", value_parser = range(1..=1024))]
    server_cpus: Option<u64>,

    /// The length of an event as it is signed, in bytes
    #[arg(
        long, global = true, value_name = "BYTES", default_value_t = 500,
        value_parser = range(*EVENT_BYTES.start() as u64..=*EVENT_BYTES.end() as u64)
    )]
    event_bytes: u64,

    /// The largest HTTP/2 frame that subscribers allow, in bytes. 16384 is what standard clients
    /// do; clients that allow 65536 or more are served with less work
    #[arg(
        long, global = true, value_name = "BYTES", default_value_t = 16_384,
        value_parser = range(*FRAME_BYTES.start() as u64..=*FRAME_BYTES.end() as u64)
    )]
    frame_size: u64,

    /// Make the server's temporary directory in this one: for the embedded store, the disk counts
    /// [default: the system's]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Receiving: events and requests acknowledged as durable per second, and their latency
    #[command(after_help = INGEST_EXAMPLES)]
    Ingest(IngestArgs),
    /// Sending: deliveries per second, CPU and memory, by number of subscribers and filter
    #[command(after_help = FANOUT_EXAMPLES)]
    Fanout(FanoutArgs),
    /// Latency from sending to receiving at a fixed rate, without coordinated omission
    #[command(after_help = LATENCY_EXAMPLES)]
    Latency(LatencyArgs),
    /// One subscriber reads old events, alone and while others are live
    #[command(after_help = CATCHUP_EXAMPLES)]
    Catchup(CatchupArgs),
    /// Memory of idle subscribers, each with a connection
    #[command(after_help = IDLE_EXAMPLES)]
    Idle(IdleArgs),
    /// Everything, one after the other
    #[command(after_help = ALL_EXAMPLES)]
    All,
}

#[derive(Clone, Debug, Default, clap::Args)]
struct IngestArgs {
    /// Keep events in this store; repeatable [default: embedded]
    #[arg(long = "store", value_name = "STORE")]
    stores: Vec<StoreName>,

    /// Events of a batch; repeatable [default: 1, 10 and 100]
    #[arg(long = "batch", value_name = "N", value_parser = range(1..=100))]
    batches: Vec<u64>,

    /// Connections that send, each one batch at a time [default: 16]
    #[arg(
        long, value_name = "N",
        value_parser = range(*CONNECTIONS.start() as u64..=*CONNECTIONS.end() as u64)
    )]
    connections: Option<u64>,

    /// Batches of a run. They are signed before, about half a millisecond of CPU each [default:
    /// 20000, or 4000 with --quick; fewer of large ones]
    #[arg(long, value_name = "N", value_parser = range(1..=200_000))]
    requests: Option<u64>,
}

#[derive(Clone, Debug, Default, clap::Args)]
struct FanoutArgs {
    /// Keep events in this store; repeatable [default: embedded]
    #[arg(long = "store", value_name = "STORE")]
    stores: Vec<StoreName>,

    /// How many subscribers; repeatable [default: 1, 10, 100 and 1000]
    #[arg(
        long, value_name = "N",
        value_parser = range(*SUBSCRIBERS.start() as u64..=*SUBSCRIBERS.end() as u64)
    )]
    subscribers: Vec<u64>,

    /// What they receive: everything, one event in seven (a type), or one in a thousand (a user);
    /// repeatable [default: all three]
    #[arg(long = "filter", value_name = "SHARE")]
    filters: Vec<Filter>,

    /// How long a run sends events, in seconds [default: 3, or 1 with --quick]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,

    /// Events that a run sends at most. They are signed before and held in memory [default: 600000,
    /// or 150000 with --quick]
    #[arg(long, value_name = "N", value_parser = range(1..=4_000_000))]
    events: Option<u64>,
}

#[derive(Clone, Debug, Default, clap::Args)]
struct LatencyArgs {
    /// Keep events in this store; repeatable [default: memory and embedded]
    #[arg(long = "store", value_name = "STORE")]
    stores: Vec<StoreName>,

    /// Events a second, each in a batch of its own [default: 2000]
    #[arg(long, value_name = "N", value_parser = range(*RATE.start()..=*RATE.end()))]
    rate: Option<u64>,

    /// How many subscribers get all of them [default: 10]
    #[arg(
        long, value_name = "N",
        value_parser = range(*SUBSCRIBERS.start() as u64..=*SUBSCRIBERS.end() as u64)
    )]
    subscribers: Option<u64>,

    /// How long a run counts, in seconds, after one second that does not [default: 5, or 2 with
    /// --quick]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
}

#[derive(Clone, Debug, Default, clap::Args)]
struct CatchupArgs {
    /// Events of history [default: 1000000, or 200000 with --quick]
    #[arg(long, value_name = "N", value_parser = range(1..=100_000_000))]
    events: Option<u64>,

    /// Live events a second, each in a batch of its own [default: 500]
    #[arg(long, value_name = "N", value_parser = range(*RATE.start()..=*RATE.end()))]
    rate: Option<u64>,

    /// How many live subscribers there are [default: 10]
    #[arg(
        long, value_name = "N",
        value_parser = range(*SUBSCRIBERS.start() as u64..=*SUBSCRIBERS.end() as u64)
    )]
    subscribers: Option<u64>,

    /// How long live events are watched, alone and meanwhile, in seconds [default: 4, or 2 with
    /// --quick]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
}

#[derive(Clone, Debug, Default, clap::Args)]
struct IdleArgs {
    /// How many subscribers [default: 10000, or 2000 with --quick]
    #[arg(
        long, value_name = "N",
        value_parser = range(*SUBSCRIBERS.start() as u64..=*SUBSCRIBERS.end() as u64)
    )]
    subscribers: Option<u64>,
}

/// How figures are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables
    Human,
    /// One JSON object a line, as soon as it is known
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// Yes, if there are at least two CPUs and the system supports it
    On,
    /// No
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StoreName {
    /// On disk, in a temporary directory
    Embedded,
    /// Nothing but memory
    Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Filter {
    /// Everything
    All,
    /// One type of seven
    #[value(name = "1/7")]
    Seventh,
    /// One user of a thousand
    #[value(name = "1/1000")]
    Thousandth,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Everything, in a few minutes:
    prelude-bridge bench all --quick
  For a report, as one JSON object a line:
    prelude-bridge bench fanout --output json > fanout.jsonl

The server is this program as `serve`, in a process and a temporary directory of its own. Ctrl-C
ends both. What is measured and how to read it: docs/benchmarks.md.";

const INGEST_EXAMPLES: &str = "\
Examples:
  What a disk allows:
    prelude-bridge bench ingest --batch 10 --dir /var/lib
  What everything but the disk allows:
    prelude-bridge bench ingest --batch 10 --store memory --connections 64";

const FANOUT_EXAMPLES: &str = "\
Examples:
  A hundred subscribers that want everything, as standard clients and as clients that allow more:
    prelude-bridge bench fanout --subscribers 100 --filter all
    prelude-bridge bench fanout --subscribers 100 --filter all --frame-size 65536
  What a filter saves:
    prelude-bridge bench fanout --subscribers 100 --filter all --filter 1/7 --filter 1/1000";

const LATENCY_EXAMPLES: &str = "\
Examples:
  At 2000 events a second to ten subscribers, for each store:
    prelude-bridge bench latency
  At another rate:
    prelude-bridge bench latency --rate 500 --subscribers 100 --store embedded";

const CATCHUP_EXAMPLES: &str = "\
Examples:
  A million events:
    prelude-bridge bench catchup";

const IDLE_EXAMPLES: &str = "\
Examples:
  Ten thousand subscribers:
    prelude-bridge bench idle
  As many as the limit on open files allows:
    prelude-bridge bench idle --subscribers 1000 --runs 1";

const ALL_EXAMPLES: &str = "\
Examples:
  In a few minutes:
    prelude-bridge bench all --quick
  To publish, on a quiet machine:
    prelude-bridge bench all --runs 5 --output json > results.jsonl";

/// Measures, and writes figures as they are known.
///
/// # Errors
/// The first thing that went wrong, or that it was interrupted; what was written until then holds.
pub async fn run(args: Args) -> Result<(), Failure> {
    let (settings, benches) = (args.settings(), args.benches());
    let observer = Terminal::new(args.output);
    let stop = Stop::default();
    let told = stop.clone();
    // A thread of its own, because it is pinned for good and blocks.
    let measuring =
        thread::spawn(move || prelude_bridge_load::run(&settings, &benches, &observer, &told));
    let measured = tokio::task::spawn_blocking(move || measuring.join());
    tokio::pin!(measured);
    let outcome = tokio::select! {
        outcome = &mut measured => outcome,
        interrupted = interrupted() => {
            stop.stop();
            interrupted?;
            match tokio::time::timeout(STOP_TIMEOUT, measured).await {
                Ok(outcome) => outcome,
                Err(_) => return Err(failure(Error::Interrupted)),
            }
        }
    };
    // A panic in that thread is a bug and is passed on as one.
    match outcome.map_err(|error| Failure::new(Exit::Failed, error))? {
        // The reader closed the pipe, so nobody needs the rest of the run.
        Ok(Err(Error::Unread)) => Ok(()),
        Ok(outcome) => outcome.map_err(failure),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Resolves when a signal asks the program to end. Without this the server would keep running.
async fn interrupted() -> Result<(), Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot listen for signals: {error}"))
        })
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

fn failure(error: Error) -> Failure {
    let exit = match &error {
        Error::Settings(_) => Exit::Usage,
        Error::Server { .. }
        | Error::System { .. }
        | Error::Key(_)
        | Error::Refused(_)
        | Error::Protocol(_)
        | Error::Subscriber(_)
        | Error::Lost(_)
        | Error::Stalled(_)
        | Error::Output(_)
        | Error::Unread
        | Error::Interrupted => Exit::Failed,
    };
    Failure::new(exit, error)
}

impl Args {
    fn settings(&self) -> Settings {
        let default = if self.quick { 1 } else { 5 };
        Settings {
            runs: self.runs.map_or(default, to_u32),
            event_bytes: to_usize(self.event_bytes),
            pin: self.pin == Switch::On,
            server_cpus: self.server_cpus.map(to_usize),
            frame_bytes: to_u32(self.frame_size),
            directory: self.dir.clone(),
        }
    }

    fn benches(&self) -> Vec<Bench> {
        match &self.what {
            What::Ingest(args) => vec![self.ingest(args)],
            What::Fanout(args) => vec![self.fanout(args)],
            What::Latency(args) => vec![self.latency(args)],
            What::Catchup(args) => vec![self.catchup(args)],
            What::Idle(args) => vec![self.idle(args)],
            What::All => vec![
                self.ingest(&IngestArgs::default()),
                self.fanout(&FanoutArgs::default()),
                self.latency(&LatencyArgs::default()),
                self.catchup(&CatchupArgs::default()),
                self.idle(&IdleArgs::default()),
            ],
        }
    }

    /// The one or the other, as `--quick` is set.
    fn sized<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    fn ingest(&self, args: &IngestArgs) -> Bench {
        Bench::Ingest(Ingest {
            stores: stores(&args.stores, &[Store::Embedded]),
            batch_events: or(&args.batches, &[1, 10, 100]),
            connections: args.connections.map_or(16, to_usize),
            batches: to_usize(args.requests.unwrap_or(self.sized(20_000, 4_000))),
            events_max: self.sized(400_000, 100_000),
        })
    }

    fn fanout(&self, args: &FanoutArgs) -> Bench {
        let counts = args.subscribers.iter().map(|&count| to_usize(count));
        let shapes = args.filters.iter().map(|filter| match filter {
            Filter::All => Shape::All,
            Filter::Seventh => Shape::Seventh,
            Filter::Thousandth => Shape::Thousandth,
        });
        Bench::Fanout(Fanout {
            stores: stores(&args.stores, &[Store::Embedded]),
            subscribers: or(&counts.collect::<Vec<_>>(), &[1, 10, 100, 1_000]),
            shapes: or(
                &shapes.collect::<Vec<_>>(),
                &[Shape::All, Shape::Seventh, Shape::Thousandth],
            ),
            duration: args
                .seconds
                .unwrap_or(Duration::from_secs(self.sized(3, 1))),
            events_max: args.events.unwrap_or(self.sized(600_000, 150_000)),
        })
    }

    fn latency(&self, args: &LatencyArgs) -> Bench {
        Bench::Latency(Latency {
            stores: stores(&args.stores, &[Store::Memory, Store::Embedded]),
            rate: args.rate.unwrap_or(2_000),
            subscribers: args.subscribers.map_or(10, to_usize),
            duration: args
                .seconds
                .unwrap_or(Duration::from_secs(self.sized(5, 2))),
        })
    }

    fn catchup(&self, args: &CatchupArgs) -> Bench {
        Bench::Catchup(Catchup {
            events: args.events.unwrap_or(self.sized(1_000_000, 200_000)),
            rate: args.rate.unwrap_or(500),
            subscribers: args.subscribers.map_or(10, to_usize),
            duration: args
                .seconds
                .unwrap_or(Duration::from_secs(self.sized(4, 2))),
        })
    }

    fn idle(&self, args: &IdleArgs) -> Bench {
        let count = args.subscribers.unwrap_or(self.sized(10_000, 2_000));
        Bench::Idle(Idle {
            subscribers: to_usize(count),
        })
    }
}

/// What was given, or else the default.
fn or<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
    if given.is_empty() { default } else { given }.to_vec()
}

fn stores(given: &[StoreName], default: &[Store]) -> Vec<Store> {
    let given = given.iter().map(|name| match name {
        StoreName::Embedded => Store::Embedded,
        StoreName::Memory => Store::Memory,
    });
    or(&given.collect::<Vec<_>>(), default)
}

fn range(values: std::ops::RangeInclusive<u64>) -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(values)
}

/// A tenth of a second to an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| (0.1..=3_600.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds from 0.1 to 3600".to_owned())
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("bench").chain(line.split(' '));
        Program::try_parse_from(words).map(|program| program.args)
    }

    #[test]
    fn quick_changes_only_what_was_not_given() {
        let args = parse("fanout --quick --seconds 7 --subscribers 5 --filter 1/7").unwrap();
        assert_eq!(args.settings().runs, 1);
        let Bench::Fanout(fanout) = &args.benches()[0] else {
            unreachable!()
        };
        assert_eq!(fanout.duration, Duration::from_secs(7));
        assert_eq!(fanout.subscribers, [5]);
        assert_eq!(fanout.shapes, [Shape::Seventh]);
        assert_eq!(fanout.events_max, 150_000);
        let full = parse("fanout --runs 3").unwrap();
        assert_eq!(full.settings().runs, 3);
        let Bench::Fanout(fanout) = &full.benches()[0] else {
            unreachable!()
        };
        assert_eq!(fanout.subscribers, [1, 10, 100, 1_000]);
    }

    #[test]
    fn all_is_all() {
        let benches = parse("all --quick").unwrap().benches();
        let names = benches.iter().map(|bench| match bench {
            Bench::Ingest(_) => "ingest",
            Bench::Fanout(_) => "fanout",
            Bench::Latency(_) => "latency",
            Bench::Catchup(_) => "catchup",
            Bench::Idle(_) => "idle",
        });
        let names: Vec<_> = names.collect();
        assert_eq!(names, ["ingest", "fanout", "latency", "catchup", "idle"]);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        for line in [
            "ingest --batch 0",
            "ingest --batch 101",
            "ingest --connections 0",
            "ingest --connections 513",
            "ingest --requests 200001",
            "fanout --subscribers 0",
            "fanout --subscribers 20001",
            "fanout --seconds 0.05",
            "fanout --seconds 3601",
            "fanout --seconds NaN",
            "latency --rate 0",
            "latency --rate 20001",
            "idle --event-bytes 399",
            "idle --frame-size 16383",
            "all --runs 0",
            "all --runs 101",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
