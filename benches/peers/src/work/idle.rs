//! The memory of subscribers to whom nothing is sent.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Bench, Sample, sample};
use crate::{
    load::Load,
    system::{Running, System},
};

/// Memory is not given back, nor taken, at once: collectors have a rhythm of their own.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) fn measure(bench: &Bench, system: System, subscribers: usize) -> Result<Sample> {
    let running = Running::start(system, &bench.programs, &bench.signer)?;
    let mut load = Load::new()?;
    // The first subscriber brings what all share. It is one of them: JetStream takes a thousand.
    load.open(running.stream, running.subscriber(0, None))?;
    load.wait_until_ready()?;
    let before = running.server.memory_bytes()?;
    let started = Instant::now();
    let subscriber = |number| running.subscriber(number, None);
    load.open_all(running.stream, (1..subscribers).map(subscriber))?;
    let took = started.elapsed();
    let settled = Instant::now() + SETTLE;
    while Instant::now() < settled {
        load.turn(Some(Duration::from_millis(100)), |_, _| ())?;
    }
    let after = running.server.memory_bytes()?;
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
