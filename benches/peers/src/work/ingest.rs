//! As many signed batches as can be: each connection sends the next when the last was answered.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use prelude_bridge_load::{Engine, histogram, micros};

use super::{Bench, Sample, cpu, quantile, sample};
use crate::system::{Running, System};

/// Connections, each with one batch on the way.
const SENDERS: usize = 64;

/// How long it runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(400);

pub(super) fn measure(bench: &Bench, system: System) -> Result<Sample> {
    let running = Running::start(system, &bench.host)?;
    let mut engine = Engine::new()?;
    // Each connection is a publisher of its own: its index is known, and when it was last used.
    let _publisher = running.publisher(&mut engine, SENDERS)?;
    let source = running.chunks(bench.chunks(10));
    let mut sent_at = vec![Instant::now(); SENDERS];
    let mut next = 0;
    let mut answers: u64 = 0;
    let mut latencies = histogram();
    let mut answered: Vec<usize> = (0..SENDERS).collect();
    let started = Instant::now();
    let mut begun = None;
    loop {
        let now = Instant::now();
        if begun.is_none() && now - started > WARM_UP {
            begun = Some((now, answers, bench.clock(&running)));
            latencies.reset();
        }
        let is_over = begun
            .as_ref()
            .is_some_and(|(at, ..)| now - *at > bench.duration);
        if is_over || send(&mut engine, &mut answered, &mut sent_at, &source, &mut next)?.is_none()
        {
            break;
        }
        engine.turn(Some(Duration::from_millis(100)), |index, _| {
            answers += 1;
            let took = sent_at.get(index).map(Instant::elapsed).unwrap_or_default();
            latencies.saturating_record(micros(took));
            answered.push(index);
        })?;
    }
    let (_, before, clock) = begun.context("too few batches were signed")?;
    let usage = clock.stop();
    let (took, (server_cpu, shares)) = (usage.seconds(), cpu(usage)?);
    #[expect(clippy::cast_precision_loss, reason = "batches of one run")]
    let batches = (answers - before) as f64;
    let mut sample = sample([
        ("batches/s", batches / took),
        ("events/s", batches * 10.0 / took),
        ("CPU µs/batch", server_cpu * 1e6 / batches),
        ("p50 µs", quantile(&latencies, 0.5)),
        ("p99 µs", quantile(&latencies, 0.99)),
        ("seconds", took),
    ]);
    sample.extend(shares.map(|(name, share)| (name.to_owned(), share)));
    Ok(sample)
}

/// Sends the next batch on every connection that was answered; nothing where there is none left.
fn send(
    engine: &mut Engine,
    answered: &mut Vec<usize>,
    sent_at: &mut [Instant],
    source: &crate::system::Source<'_>,
    next: &mut u64,
) -> Result<Option<()>> {
    for index in answered.drain(..) {
        let Some(chunk) = source.get(*next) else {
            return Ok(None);
        };
        *next += 1;
        if let Some(at) = sent_at.get_mut(index) {
            *at = Instant::now();
        }
        engine.send(index, chunk)?;
    }
    Ok(Some(()))
}
