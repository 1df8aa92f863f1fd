//! As many signed batches as can be: each connection sends the next when the last was answered.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Bench, Sample, quantile, sample};
use crate::{
    load::Load,
    process::own_cpu_seconds,
    system::{Running, System},
};

/// Connections, each with one batch on the way.
const SENDERS: usize = 64;

/// How long it runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(400);

pub(super) fn measure(bench: &Bench, system: System) -> Result<Sample> {
    let running = Running::start(system, &bench.programs, &bench.signer)?;
    let mut load = Load::new()?;
    // Each connection is a publisher of its own: its index is known, and when it was last used.
    let _publisher = running.publisher(&mut load, SENDERS)?;
    let source = running.chunks(bench.chunks(10));
    let mut sent_at = vec![Instant::now(); SENDERS];
    let mut next = 0;
    let mut answers: u64 = 0;
    let mut latencies: Vec<u32> = Vec::new();
    let mut answered: Vec<usize> = (0..SENDERS).collect();
    let started = Instant::now();
    let mut begun = None;
    loop {
        let now = Instant::now();
        if begun.is_none() && now - started > WARM_UP {
            begun = Some((
                now,
                answers,
                running.server.cpu_seconds()?,
                own_cpu_seconds(),
            ));
            latencies.clear();
        }
        let is_over = begun.is_some_and(|(at, ..)| now - at > bench.duration);
        if is_over || send(&mut load, &mut answered, &mut sent_at, &source, &mut next)?.is_none() {
            break;
        }
        load.turn(Some(Duration::from_millis(100)), |index, _| {
            answers += 1;
            let took = sent_at.get(index).map(Instant::elapsed).unwrap_or_default();
            latencies.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            answered.push(index);
        })?;
    }
    ensure!(begun.is_some(), "too few batches were signed");
    let (at, before, server_cpu, load_cpu) = begun.unwrap_or((started, 0, 0.0, 0.0));
    let took = at.elapsed().as_secs_f64();
    let server_cpu = running.server.cpu_seconds()? - server_cpu;
    let load_cpu = own_cpu_seconds() - load_cpu;
    latencies.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "batches of one run")]
    let batches = (answers - before) as f64;
    Ok(sample([
        ("batches/s", batches / took),
        ("events/s", batches * 10.0 / took),
        ("CPU µs/batch", server_cpu * 1e6 / batches),
        ("p50 µs", quantile(&latencies, 0.5)),
        ("p99 µs", quantile(&latencies, 0.99)),
        ("server busy", server_cpu / took),
        ("load busy", load_cpu / took),
        ("seconds", took),
    ]))
}

/// Sends the next batch on every connection that was answered; nothing where there is none left.
fn send(
    load: &mut Load,
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
        load.send(index, chunk)?;
    }
    Ok(Some(()))
}
