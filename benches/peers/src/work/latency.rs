//! Latency at a fixed rate: every event has a moment at which it is due, whatever became of those
//! before it, and its latency counts from there to when each subscriber has read it. So a server
//! that stalls pays for every event that it held up (no coordinated omission).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Bench, Sample, quantile, sample};
use crate::{
    load::Load,
    process::own_cpu_seconds,
    system::{Running, System},
};

const EVENTS_PER_SECOND: u32 = 2_000;

/// Connections for webhooks, so that one that takes long does not hold up the next.
const SENDERS: usize = 64;

/// How long it runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn measure(
    bench: &Bench,
    system: System,
    batch: usize,
    subscribers: usize,
) -> Result<Sample> {
    let running = Running::start(system, &bench.programs, &bench.signer)?;
    let mut load = Load::new()?;
    let subscriber = |number| running.subscriber(number, None);
    load.open_all(running.stream, (0..subscribers).map(subscriber))?;
    let mut publisher = running.publisher(&mut load, SENDERS)?;
    let source = running.chunks(bench.chunks(batch));
    let interval = Duration::from_secs(1) / EVENTS_PER_SECOND * u32::try_from(batch)?;
    let count = |duration: Duration| (duration.as_nanos() / interval.as_nanos()) as usize;
    let warm_up = count(WARM_UP);
    let total = warm_up + count(bench.latency_duration);
    let mut pace = Pace {
        started: Instant::now(),
        interval,
        batch,
        warm_up,
        seen: vec![0; subscribers],
        latencies: Vec::with_capacity(total * batch * subscribers),
        late: Vec::with_capacity(total),
    };
    let mut answered = Vec::new();
    let mut next = 0;
    let mut begun = (0.0, 0.0, Instant::now());
    let wanted = (total * batch) as u64;
    loop {
        let now = Instant::now();
        while next < total && pace.due(next) <= now {
            if next == warm_up {
                begun = (running.server.cpu_seconds()?, own_cpu_seconds(), now);
            }
            let chunk = source.get(next as u64);
            ensure!(chunk.is_some(), "too few events were made");
            publisher.publish(&mut load, chunk.unwrap_or_default())?;
            pace.published(next);
            next += 1;
        }
        let is_delivered = pace.seen.iter().all(|&seen| seen >= wanted);
        if next == total && is_delivered {
            break;
        }
        ensure!(now < pace.due(total) + PATIENCE, "events were lost");
        if next < total {
            load.wake_at(pace.due(next))?;
        }
        load.turn(Some(Duration::from_millis(100)), |index, received| {
            if publisher.owns(index) {
                answered.push(index);
            } else {
                pace.received(index, received);
            }
        })?;
        for index in answered.drain(..) {
            publisher.answered(&mut load, index)?;
        }
    }
    let took = begun.2.elapsed().as_secs_f64();
    let server_cpu = running.server.cpu_seconds()? - begun.0;
    let load_cpu = own_cpu_seconds() - begun.1;
    pace.latencies.sort_unstable();
    pace.late.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "events of one run")]
    let events = ((total - warm_up) * batch) as f64;
    let mut sample = sample([
        ("CPU µs/event", server_cpu * 1e6 / events),
        ("sent late p99 µs", quantile(&pace.late, 0.99)),
        ("server busy", server_cpu / took),
        ("load busy", load_cpu / took),
    ]);
    if subscribers > 0 {
        for (name, at) in [("p50 µs", 0.5), ("p99 µs", 0.99), ("max µs", 1.0)] {
            sample.insert(name.into(), quantile(&pace.latencies, at));
        }
    }
    Ok(sample)
}

/// When things are due, and how late they came.
struct Pace {
    started: Instant,
    interval: Duration,
    batch: usize,
    warm_up: usize,
    /// Events that each subscriber has seen.
    seen: Vec<u64>,
    latencies: Vec<u32>,
    late: Vec<u32>,
}

impl Pace {
    fn due(&self, chunk: usize) -> Instant {
        self.started + self.interval * u32::try_from(chunk).unwrap_or(u32::MAX)
    }

    fn published(&mut self, chunk: usize) {
        if chunk >= self.warm_up {
            self.late.push(micros(self.due(chunk).elapsed()));
        }
    }

    /// Events come in the order in which they were taken in; the n-th counts as the n-th published.
    fn received(&mut self, subscriber: usize, received: u64) {
        let now = Instant::now();
        let Some(seen) = self.seen.get_mut(subscriber) else {
            return;
        };
        let from = std::mem::replace(seen, received);
        for event in from..received {
            let chunk = usize::try_from(event).unwrap_or(usize::MAX) / self.batch;
            if chunk >= self.warm_up {
                let latency = now.saturating_duration_since(self.due(chunk));
                self.latencies.push(micros(latency));
            }
        }
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
