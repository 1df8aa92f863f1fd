//! What subscribers cost the engine: events come at a fixed rate to one of two bridges, and the engine's
//! own monitoring counts who reads its stream.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use prelude_bridge_load::{Answers, Connection, Engine};

use super::{CpuTimes, Durability, bridges::Bridges, cluster::Place};
use crate::{
    system::{open_all, subscription},
    work::{Bench, Sample, sample},
};

const BRIDGES: usize = 2;
/// A batch of ten in this time: 1,000 events a second.
const INTERVAL: Duration = Duration::from_millis(10);
const BATCH: u64 = 10;
/// Batches before anything counts.
const WARM_UP: u32 = 50;
/// Batches that may wait at once.
const SENDERS: usize = 16;
/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[expect(clippy::cast_precision_loss, reason = "events of one run")]
pub(super) fn measure(bench: &Bench, subscribers: usize) -> Result<Sample> {
    let cluster = bench.host.cluster((Durability::LEAST, Place::Server))?;
    let stream = cluster.new_stream();
    let bridges = Bridges::start(&bench.host, &cluster, &stream, BRIDGES)?;
    let mut engine = Engine::new()?;
    for server in &bridges.servers {
        let subscriptions =
            (0..subscribers / BRIDGES).map(|_| Box::new(subscription(None, 16 * 1024)) as _);
        open_all(&mut engine, server.address("grpc")?, subscriptions)?;
    }
    let first = bridges.servers.first().context("no bridge")?;
    let senders = (0..SENDERS).map(|_| Box::new(Answers::default()) as _);
    open_all(&mut engine, first.address("webhook")?, senders)?;
    let mut load = Load {
        engine,
        subscribers: subscribers / BRIDGES * BRIDGES,
        free: (0..SENDERS).collect(),
        sent: 0,
        started: Instant::now(),
    };
    let count = u32::try_from(bench.latency_duration.as_millis() / INTERVAL.as_millis())?;
    load.run(bench, WARM_UP)?;
    let cpu = CpuTimes::now(&cluster, bridges.processes())?;
    load.run(bench, WARM_UP + count)?;
    let (_, consumers) = stream.state()?;
    let cpu = CpuTimes::now(&cluster, bridges.processes())?.since(&cpu);
    let events = f64::from(count) * BATCH as f64;
    Ok(sample([
        (
            "engine CPU µs/event",
            cpu.engine.as_secs_f64() * 1e6 / events,
        ),
        (
            "bridges' CPU µs/event",
            cpu.bridges.as_secs_f64() * 1e6 / events,
        ),
        ("consumers", consumers as f64),
    ]))
}

struct Load {
    engine: Engine,
    /// They come first among the connections, the senders after them.
    subscribers: usize,
    /// Senders whose last batch was answered.
    free: Vec<usize>,
    sent: u32,
    started: Instant,
}

impl Load {
    /// Sends up to this batch, each at its time, and waits until everybody has it.
    fn run(&mut self, bench: &Bench, up_to: u32) -> Result<()> {
        loop {
            let due = INTERVAL * self.sent;
            let left = due.saturating_sub(self.started.elapsed());
            if self.sent < up_to
                && left.is_zero()
                && let Some(sender) = self.free.pop()
            {
                let requests = &bench.tens.requests;
                let request = requests.get(self.sent as usize);
                let request = request.context("too few batches were signed")?;
                self.engine
                    .send(self.subscribers + sender, request.clone())?;
                self.sent += 1;
                continue;
            }
            if self.sent == up_to && self.is_delivered() {
                return Ok(());
            }
            ensure!(self.started.elapsed() < due + PATIENCE, "events were lost");
            let (free, subscribers) = (&mut self.free, self.subscribers);
            let wait = left.max(Duration::from_millis(1));
            self.engine.turn(Some(wait), |index, _| {
                if let Some(sender) = index.checked_sub(subscribers) {
                    free.push(sender);
                }
            })?;
        }
    }

    fn is_delivered(&self) -> bool {
        let events = u64::from(self.sent) * BATCH;
        let mut subscribers = self.engine.connections().iter().take(self.subscribers);
        self.free.len() == SENDERS && subscribers.all(|one| Connection::received(one) >= events)
    }
}
