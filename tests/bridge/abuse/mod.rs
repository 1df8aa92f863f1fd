//! What strangers may do to the ports, done by raw frames and sockets, and what must not come of
//! it: a lost event, a delivery without its `200`, memory, descriptors, or a client who waits.
//!
//! Each test starts a bridge of its own, measures a sender and a subscriber while all is quiet, and
//! measures them again under every attack. The figures are printed (`--nocapture`).

#![expect(clippy::print_stderr, reason = "the figures of a run")]

mod crowds;
mod floods;
mod forgeries;
mod frames;
mod healthy;
mod requests;
mod sockets;
mod stalls;
mod webhook;

use std::{
    fs,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use self::healthy::{Healthy, Latencies};
use crate::support::{Bridge, Setup, sender::eventually};

/// How much a bridge may grow under an attack.
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long the quiet time is, and an attack at least.
const PHASE: Duration = Duration::from_secs(1);

/// What a healthy client may always wait at its 99th percentile. The promise is twice the quiet
/// time, but that is a few milliseconds, and the attackers, the bridge, its disk and all other
/// tests share the few cores of the machine that this runs on: one of them being scheduled late
/// takes longer. A bridge that lets an attack through keeps clients waiting for seconds.
const LATENCY_NOISE: Duration = Duration::from_millis(750);

/// A bridge with clients who must not notice what is done to it.
struct Guarded {
    bridge: Bridge,
    healthy: Healthy,
    quiet: Latencies,
}

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
        let healthy = Healthy::start(&bridge).await;
        let since = Instant::now();
        tokio::time::sleep(PHASE).await;
        let quiet = healthy.between(since, Instant::now()).await;
        Self {
            bridge,
            healthy,
            quiet,
        }
    }

    /// Runs an attack, and looks at everybody else meanwhile and at the bridge afterwards.
    async fn under<T>(&self, name: &str, attack: impl Future<Output = T>) -> T {
        self.under_load(name, LATENCY_NOISE, attack).await
    }

    /// The same for an attack that keeps every core busy with what nobody can refuse unseen: the
    /// healthy get their turn, but it is one among many.
    async fn under_load<T>(
        &self,
        name: &str,
        latency_max: Duration,
        attack: impl Future<Output = T>,
    ) -> T {
        let process = self.bridge.process_id();
        let descriptors_before = descriptors(process);
        let growth = Growth::watch(process);
        let since = Instant::now();
        let (outcome, took) = tokio::join!(
            async {
                let outcome = attack.await;
                (outcome, since.elapsed())
            },
            tokio::time::sleep(PHASE),
        )
        .0;
        let under = self.healthy.between(since, Instant::now()).await;
        let grown = growth.stop();
        eprintln!(
            "{name}: {took:.2?}, {} KiB more, acknowledged {} (quiet {}), delivered {} (quiet {})",
            grown / 1024,
            under.acknowledged,
            self.quiet.acknowledged,
            under.delivered,
            self.quiet.delivered,
        );
        assert!(grown < GROWTH_BYTES_MAX, "{name}: {grown} bytes more");
        for (quiet, under) in [
            (self.quiet.acknowledged, under.acknowledged),
            (self.quiet.delivered, under.delivered),
        ] {
            let most = latency_max.max(2 * quiet.p99);
            assert!(under.p99 <= most, "{name}: {under} instead of {quiet}");
        }
        eventually(async || (descriptors(process) <= descriptors_before).then_some(())).await;
        outcome
    }

    /// Asks the metrics until a sample is at least this much.
    async fn counted(&self, sample: &str, least: f64) {
        eventually(async || {
            let value = self.bridge.metric(sample).await.unwrap_or(0.0);
            (value >= least).then_some(())
        })
        .await;
    }

    /// Compares what was sent with what came, and ends the bridge.
    async fn finish(self) {
        self.healthy.stop().await;
        self.bridge.finish().await;
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
