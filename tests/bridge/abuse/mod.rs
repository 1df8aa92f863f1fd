//! What strangers may do to the ports, done by raw frames and sockets, and what must not come of
//! it: a lost event, a delivery without its `200`, memory, descriptors, or a client who waits.
//!
//! Each test starts a bridge of its own, and measures a sender and a subscriber in turn while all is
//! quiet and under an attack. The figures are printed (`--nocapture`) as a table: the attack, how long
//! it went on, the 99th percentile to a delivery's `200` and to its event at the subscriber, each
//! beside the quiet one, and how much the bridge grew.

#![expect(clippy::print_stderr, reason = "the figures of a run")]

mod crowds;
mod floods;
mod forgeries;
pub(crate) mod frames;
mod healthy;
mod memory;
mod newcomers;
mod places;
mod requests;
mod sockets;
mod stalls;
mod webhook;

use std::{
    fmt, fs,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use self::healthy::{HEALTHY_CONNECTIONS_MAX, Healthy, Percentiles};
use crate::{
    cli::is_optimised,
    support::{
        Bridge, Setup,
        sender::{Sender, eventually},
    },
};

/// How much a bridge may grow under an attack.
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long an attack goes on at least: what is over sooner is done again.
const ATTACK: Duration = Duration::from_secs(2);

/// How long it is quiet before each attack. All the quiet times of a bridge are looked at together, so
/// that noise of the machine is in them as it is in the attacks.
const QUIET: Duration = Duration::from_millis(1_000);

/// Deliveries in a quiet time or an attack at least: one goes on until it has seen so many.
const DELIVERIES_MIN: usize = 100;

/// What is promised: a healthy client's 99th percentile under an attack is at most twice that of the
/// quiet times and this.
const LATENCY_MARGIN: Duration = Duration::from_millis(20);
/// A debug build needs some twenty times the CPU for the same work: it is held to twice the quiet
/// times or this, whichever is more, when nothing else runs on the machine.
const LATENCY_DEBUG_ALONE: Duration = Duration::from_millis(100);
/// The same while other tests have the cores too, some for hundreds of milliseconds. A bridge that
/// lets an attack through keeps clients waiting for seconds.
const LATENCY_DEBUG_AMONG_OTHERS: Duration = Duration::from_millis(750);
/// An attack is measured again when the healthy waited longer, so many times in all. What it does to
/// them, it does each time; what else happens on the machine (a flush that another program holds up, a
/// core that another machine has) is over by then.
const MEASUREMENTS_MAX: usize = 3;
/// Set by whoever runs these tests alone, one after another.
const ALONE: &str = "PRELUDE_BRIDGE_TEST_ABUSE_ALONE";

/// A bridge with clients who must not notice what is done to it.
struct Guarded {
    bridge: Bridge,
    healthy: Healthy,
    quiet: Mutex<Vec<Phase>>,
    /// How much it may grow under an attack.
    growth_bytes_max: u64,
    /// The rows of the attacks under which the healthy waited too long.
    over: Mutex<Vec<String>>,
}

/// A time from and to.
type Phase = (Instant, Instant);

/// What is measured from outside while an attack runs.
struct Growth {
    stopped: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    sampler: std::thread::JoinHandle<()>,
    before: u64,
}

impl Guarded {
    async fn start(setup: Setup) -> Self {
        let bridge = setup.with("store", "memory").start().await;
        Self::of(bridge).await
    }

    /// The same with a log on disk, or whatever the bridge was started with.
    async fn of(bridge: Bridge) -> Self {
        let sender = Sender::to(bridge.addresses.webhook);
        Self::with(bridge, sender).await
    }

    /// The same with a sender who comes in another way.
    async fn with(bridge: Bridge, sender: Sender) -> Self {
        let healthy = Healthy::start(&bridge, sender).await;
        Self {
            bridge,
            healthy,
            growth_bytes_max: GROWTH_BYTES_MAX,
            quiet: Mutex::default(),
            over: Mutex::default(),
        }
    }

    /// A time in which nobody does anything to the bridge.
    async fn rest(&self) {
        let since = Instant::now();
        tokio::time::sleep(QUIET).await;
        let enough = || self.healthy.sent_since(since) >= DELIVERIES_MIN;
        eventually(async || enough().then_some(())).await;
        let phase = (since, Instant::now());
        self.quiet.lock().unwrap().push(phase);
    }

    /// Runs an attack, again and again until it has lasted long enough, and compares what everybody
    /// else waits meanwhile with the quiet times. Returns what came of each time.
    async fn under<T: Send>(
        &self,
        name: &str,
        mut attack: impl AsyncFnMut() -> T + Send,
    ) -> Vec<T> {
        let mut outcomes = Vec::new();
        for measurement in 1..=MEASUREMENTS_MAX {
            self.rest().await;
            let (came, phase, grown_bytes) = self.attacked(name, &mut attack).await;
            outcomes.extend(came);
            let (row, is_over) = self.compare(name, phase, grown_bytes).await;
            eprintln!("{row}");
            if !is_over {
                break;
            }
            if measurement == MEASUREMENTS_MAX {
                self.over.lock().unwrap().push(row);
            }
        }
        outcomes
    }

    /// Runs an attack until it has lasted long enough. Returns what came of each time, when
    /// that was, and by how many bytes the bridge grew.
    async fn attacked<T: Send>(
        &self,
        name: &str,
        attack: &mut (impl AsyncFnMut() -> T + Send),
    ) -> (Vec<T>, Phase, u64) {
        let process = self.bridge.process_id();
        let descriptors_before = descriptors(process);
        let growth = Growth::watch(process);
        let since = Instant::now();
        let outcomes = elsewhere(attack, || {
            since.elapsed() >= ATTACK && self.healthy.sent_since(since) >= DELIVERIES_MIN
        });
        let phase = (since, Instant::now());
        let grown_bytes = growth.stop();
        assert!(
            grown_bytes < self.growth_bytes_max,
            "{name}: {grown_bytes} bytes more"
        );
        // The healthy may have a few connections more than they had.
        let most = descriptors_before + HEALTHY_CONNECTIONS_MAX;
        eventually(async || (descriptors(process) <= most).then_some(())).await;
        (outcomes, phase, grown_bytes)
    }

    /// Compares what the healthy waited under an attack with what they waited in the quiet times:
    /// the row of the table, and whether it was too long.
    async fn compare(&self, name: &str, phase: Phase, grown_bytes: u64) -> (String, bool) {
        let resting = self.quiet.lock().unwrap().clone();
        let quiet = self.healthy.within(&resting).await;
        let under = self.healthy.within(&[phase]).await;
        let row = format!(
            "| {name} | {:.1?} | {} | {} | {} |",
            phase.1 - phase.0,
            under.acknowledged.beside(&quiet.acknowledged),
            under.delivered.beside(&quiet.delivered),
            Mebibytes(grown_bytes),
        );
        let is_over = under.acknowledged.p99 > latency_max(quiet.acknowledged)
            || under.delivered.p99 > latency_max(quiet.delivered);
        (row, is_over)
    }

    /// Compares what was sent with what came, and ends the bridge.
    async fn finish(self) {
        let over = self.over.into_inner().unwrap();
        assert!(over.is_empty(), "the healthy waited too long: {over:#?}");
        self.healthy.stop().await;
        self.bridge.finish().await;
    }
}

/// The 99th percentile under an attack, at most.
fn latency_max(quiet: Percentiles) -> Duration {
    if is_optimised() {
        return 2 * quiet.p99 + LATENCY_MARGIN;
    }
    let least = match std::env::var_os(ALONE) {
        Some(_) => LATENCY_DEBUG_ALONE,
        None => LATENCY_DEBUG_AMONG_OTHERS,
    };
    least.max(2 * quiet.p99)
}

/// Runs an attack on threads of its own that have the lowest priority: they stand for other machines,
/// whose work costs this one nothing, and must not keep the bridge and the healthy from their cores.
fn elsewhere<T: Send>(
    attack: &mut (impl AsyncFnMut() -> T + Send),
    is_enough: impl Fn() -> bool + Sync,
) -> Vec<T> {
    let give_way = || {
        // Of this thread alone, as Linux has it.
        rustix::process::nice(19).unwrap();
    };
    let run = || {
        give_way();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .on_thread_start(give_way)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut outcomes = Vec::new();
            while !is_enough() {
                outcomes.push(attack().await);
            }
            outcomes
        })
    };
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let outcomes = scope.spawn(run).join();
            outcomes.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// Bytes, for the table.
struct Mebibytes(u64);

impl fmt::Display for Mebibytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}

impl Growth {
    fn watch(process: u32) -> Self {
        let before = resident_bytes(process);
        let (stopped, most) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stop, highest) = (Arc::clone(&stopped), Arc::clone(&most));
        // A thread, because the runtime has the attackers to do.
        let sampler = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                AtomicU64::fetch_max(&highest, resident_bytes(process), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            stopped,
            most,
            sampler,
            before,
        }
    }

    fn stop(self) -> u64 {
        self.stopped.store(true, Ordering::Relaxed);
        self.sampler.join().unwrap();
        self.most
            .load(Ordering::Relaxed)
            .saturating_sub(self.before)
    }
}

fn resident_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

fn descriptors(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// Waits for something that the server promises within `deadline`. A loaded machine gets ten
/// seconds on top; that is still far from never.
async fn within<T>(deadline: Duration, what: impl Future<Output = T>) -> T {
    let most = deadline + Duration::from_secs(10);
    let done = tokio::time::timeout(most, what).await;
    done.unwrap_or_else(|_| unreachable!("not within {most:?}"))
}
