//! The memory of subscribers to whom nothing is sent.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use prelude_bridge_load::Engine;

use super::{Bench, Sample, sample};
use crate::system::{Running, System};

/// Memory is not given back, nor taken, at once: collectors have a rhythm of their own.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) fn measure(bench: &Bench, system: System, subscribers: usize) -> Result<Sample> {
    let running = Running::start(system, &bench.host)?;
    let resident_bytes = || {
        let bytes = running.server.process().resident_bytes();
        #[expect(clippy::cast_precision_loss, reason = "the memory of one machine")]
        bytes
            .map(|bytes| bytes as f64)
            .context("the server has ended")
    };
    let mut engine = Engine::new()?;
    // The first subscriber brings what all share. It is one of them: JetStream takes a thousand.
    running.subscribe(&mut engine, 0..1, |_| None)?;
    let before = resident_bytes()?;
    let started = Instant::now();
    running.subscribe(&mut engine, 1..subscribers, |_| None)?;
    let took = started.elapsed();
    let settled = Instant::now() + SETTLE;
    while Instant::now() < settled {
        engine.turn(Some(Duration::from_millis(100)), |_, _| ())?;
    }
    let after = resident_bytes()?;
    #[expect(clippy::cast_precision_loss, reason = "ten thousand")]
    let subscribers = (subscribers - 1) as f64;
    let each = (after - before) / subscribers;
    Ok(sample([
        ("KiB/subscriber", each / 1024.0),
        ("MiB before", before / 1_048_576.0),
        ("MiB", after / 1_048_576.0),
        ("ms/subscription", took.as_secs_f64() * 1e3 / subscribers),
    ]))
}
