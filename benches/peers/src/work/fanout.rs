//! As many deliveries as can be: events go in as fast as they come out, with a bounded number on
//! the way, and what comes out is counted over a while in the middle.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use prelude_bridge_load::{Connection, Engine};

use super::{Bench, Sample, cpu, sample, standard::StandardClients};
use crate::{
    events::{Chunks, TYPES},
    system::{Publisher, Running, Source, System},
};

/// Webhooks that may be on the way, a connection each.
pub(super) const SENDERS: usize = 8;

/// How long it runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(400);

/// A turn that waits longer than this has been starved.
const STALL: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) subscribers: usize,
    pub(crate) filtered: bool,
    pub(crate) standard: bool,
    pub(crate) senders: usize,
    /// Published events that the slowest subscriber may not have yet.
    pub(crate) window_events: u64,
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

pub(crate) fn measure(bench: &Bench, system: System, plan: Plan) -> Result<Sample> {
    let running = Running::start(system, &bench.host)?;
    let mut engine = Engine::new()?;
    let standard = if plan.standard {
        Some(StandardClients::start(running.stream, plan.subscribers)?)
    } else {
        let event_type = |number| plan.event_type(number);
        running.subscribe(&mut engine, 0..plan.subscribers, event_type)?;
        None
    };
    let publisher = running.publisher(&mut engine, plan.senders)?;
    let chunks: &Chunks = bench.chunks(100);
    let mut flow = Flow {
        plan,
        window_events: plan.window_events * plan.events_per_delivery(),
        engine,
        standard,
        publisher,
        source: running.chunks(chunks),
        chunk_events: chunks.size as u64,
        chunks_published: 0,
        last_progress: (0, Instant::now()),
    };
    flow.run(WARM_UP)?;
    let (from, bytes) = (flow.delivered(), flow.received_bytes());
    let clock = bench.clock(&running);
    flow.run(bench.duration)?;
    let deliveries = flow.delivered() - from;
    let usage = clock.stop();
    let (took, (server_cpu, shares)) = (usage.seconds(), cpu(usage)?);
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
        ("seconds", took),
    ]);
    sample.extend(shares.map(|(name, share)| (name.to_owned(), share)));
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
    engine: Engine,
    standard: Option<StandardClients>,
    publisher: Publisher,
    source: Source<'a>,
    chunk_events: u64,
    chunks_published: u64,
    last_progress: (u64, Instant),
}

impl Flow<'_> {
    /// Keeps events flowing for this long, or until there are none left.
    fn run(&mut self, duration: Duration) -> Result<()> {
        let started = Instant::now();
        let mut answered = Vec::new();
        while started.elapsed() < duration {
            let published = self.chunks_published * self.chunk_events;
            let on_the_way = published.saturating_sub(self.slowest());
            if on_the_way < self.window_events && self.publisher.has_room() {
                let Some(chunk) = self.source.get(self.chunks_published) else {
                    break;
                };
                self.publisher.publish(&mut self.engine, chunk)?;
                self.chunks_published += 1;
                continue;
            }
            // Standard clients are counted elsewhere: look at them often enough.
            let wait = Duration::from_millis(if self.standard.is_some() { 1 } else { 100 });
            let publisher = &self.publisher;
            self.engine.turn(Some(wait), |index, _| {
                if publisher.owns(index) {
                    answered.push(index);
                }
            })?;
            for index in answered.drain(..) {
                self.publisher.answered(&mut self.engine, index)?;
            }
            self.check_progress()?;
        }
        Ok(())
    }

    /// How far the slowest subscriber is, in published events.
    fn slowest(&self) -> u64 {
        let slowest = match &self.standard {
            Some(clients) => clients.counts().min(),
            None => self.subscribers().map(Connection::received).min(),
        };
        slowest
            .unwrap_or(u64::MAX)
            .saturating_mul(self.plan.events_per_delivery())
    }

    fn delivered(&self) -> u64 {
        match &self.standard {
            Some(clients) => clients.counts().sum(),
            None => self.subscribers().map(Connection::received).sum(),
        }
    }

    fn received_bytes(&self) -> u64 {
        self.subscribers().map(Connection::received_bytes).sum()
    }

    fn subscribers(&self) -> impl Iterator<Item = &Connection> {
        let count = if self.standard.is_some() {
            0
        } else {
            self.plan.subscribers
        };
        self.engine.connections().iter().take(count)
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
