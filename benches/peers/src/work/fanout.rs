//! As many deliveries as can be: events go in as fast as they come out, with a bounded number on
//! the way, and what comes out is counted over a while in the middle.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Bench, Sample, sample, standard::StandardClients};
use crate::{
    events::{Chunks, TYPES},
    load::Load,
    process::own_cpu_seconds,
    system::{Publisher, Running, Source, System},
};

/// Webhooks that may be on the way, a connection each.
const SENDERS: usize = 8;

/// How long it runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(400);

/// A turn that waits longer than this has been starved.
const STALL: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) subscribers: usize,
    pub(super) filtered: bool,
    pub(super) standard: bool,
}

impl Plan {
    fn event_type(self, subscriber: usize) -> Option<&'static str> {
        self.filtered.then(|| TYPES[subscriber % TYPES.len()])
    }

    /// How many events go by for each that a subscriber receives.
    fn events_per_delivery(self) -> u64 {
        if self.filtered { 7 } else { 1 }
    }
}

pub(super) fn measure(bench: &Bench, system: System, plan: Plan) -> Result<Sample> {
    let running = Running::start(system, &bench.programs, &bench.signer)?;
    let mut load = Load::new()?;
    let standard = if plan.standard {
        Some(StandardClients::start(running.stream, plan.subscribers)?)
    } else {
        let subscriber = |number| running.subscriber(number, plan.event_type(number));
        load.open_all(running.stream, (0..plan.subscribers).map(subscriber))?;
        None
    };
    let publisher = running.publisher(&mut load, SENDERS)?;
    let chunks: &Chunks = bench.chunks(100);
    let mut flow = Flow {
        plan,
        window_events: bench.window_events * plan.events_per_delivery(),
        load,
        standard,
        publisher,
        source: running.chunks(chunks),
        chunk_events: chunks.size as u64,
        chunks_published: 0,
        last_progress: (0, Instant::now()),
    };
    flow.run(WARM_UP)?;
    let (from, server_cpu, load_cpu) = (
        flow.delivered(),
        running.server.cpu_seconds()?,
        own_cpu_seconds(),
    );
    let bytes = flow.received_bytes();
    let took = flow.run(bench.duration)?.as_secs_f64();
    let deliveries = flow.delivered() - from;
    let server_cpu = running.server.cpu_seconds()? - server_cpu;
    let load_cpu = own_cpu_seconds() - load_cpu;
    let bytes = flow.received_bytes() - bytes;
    ensure!(deliveries > 0, "nothing was delivered");
    #[expect(
        clippy::cast_precision_loss,
        reason = "deliveries and bytes of one run"
    )]
    let (deliveries, bytes, subscribers, per_delivery) = (
        deliveries as f64,
        bytes as f64,
        plan.subscribers as f64,
        plan.events_per_delivery() as f64,
    );
    let events = deliveries / subscribers * per_delivery;
    let mut sample = sample([
        ("deliveries/s", deliveries / took),
        ("events/s", events / took),
        ("CPU µs/delivery", server_cpu * 1e6 / deliveries),
        ("CPU µs/event", server_cpu * 1e6 / events),
        ("server busy", server_cpu / took),
        ("load busy", load_cpu / took),
        ("seconds", took),
    ]);
    // Standard clients don't say.
    if bytes > 0.0 {
        sample.insert("bytes/delivery".into(), bytes / deliveries);
    }
    Ok(sample)
}

struct Flow<'a> {
    plan: Plan,
    /// Published events that the slowest subscriber may not have yet.
    window_events: u64,
    load: Load,
    standard: Option<StandardClients>,
    publisher: Publisher,
    source: Source<'a>,
    chunk_events: u64,
    chunks_published: u64,
    last_progress: (u64, Instant),
}

impl Flow<'_> {
    /// Keeps events flowing for this long, or until there are none left. Returns how long it was.
    fn run(&mut self, duration: Duration) -> Result<Duration> {
        let started = Instant::now();
        let mut answered = Vec::new();
        while started.elapsed() < duration {
            let published = self.chunks_published * self.chunk_events;
            let on_the_way = published.saturating_sub(self.slowest());
            if on_the_way < self.window_events && self.publisher.has_room() {
                let Some(chunk) = self.source.get(self.chunks_published) else {
                    break;
                };
                self.publisher.publish(&mut self.load, chunk)?;
                self.chunks_published += 1;
                continue;
            }
            // Standard clients are counted elsewhere: look at them often enough.
            let wait = Duration::from_millis(if self.standard.is_some() { 1 } else { 100 });
            let publisher = &self.publisher;
            self.load.turn(Some(wait), |index, _| {
                if publisher.owns(index) {
                    answered.push(index);
                }
            })?;
            for index in answered.drain(..) {
                self.publisher.answered(&mut self.load, index)?;
            }
            self.check_progress()?;
        }
        Ok(started.elapsed())
    }

    /// How far the slowest subscriber is, in published events.
    fn slowest(&self) -> u64 {
        let slowest = match &self.standard {
            Some(clients) => clients.counts().min(),
            None => self
                .subscribers()
                .map(|connection| connection.received)
                .min(),
        };
        slowest
            .unwrap_or(u64::MAX)
            .saturating_mul(self.plan.events_per_delivery())
    }

    fn delivered(&self) -> u64 {
        match &self.standard {
            Some(clients) => clients.counts().sum(),
            None => self
                .subscribers()
                .map(|connection| connection.received)
                .sum(),
        }
    }

    fn received_bytes(&self) -> u64 {
        self.subscribers()
            .map(|connection| connection.received_bytes)
            .sum()
    }

    fn subscribers(&self) -> impl Iterator<Item = &crate::load::Connection> {
        let count = if self.standard.is_some() {
            0
        } else {
            self.plan.subscribers
        };
        self.load.connections().iter().take(count)
    }

    /// A server that lost an event would leave everybody waiting for it.
    fn check_progress(&mut self) -> Result<()> {
        let delivered = self.delivered();
        if delivered > self.last_progress.0 {
            self.last_progress = (delivered, Instant::now());
        }
        let stalled = self.last_progress.1.elapsed();
        ensure!(
            stalled < STALL,
            "no delivery for {stalled:?}: events were lost"
        );
        Ok(())
    }
}
