//! The memory of subscribers to whom nothing is sent.

use std::time::Duration;

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
    // The first connection brings what all share.
    load.open(running.stream, running.subscriber(subscribers, None))?;
    load.wait_until_ready()?;
    let before = running.server.memory_bytes()?;
    for number in 0..subscribers {
        load.open(running.stream, running.subscriber(number, None))?;
    }
    load.wait_until_ready()?;
    let settled = std::time::Instant::now() + SETTLE;
    while std::time::Instant::now() < settled {
        load.turn(Some(Duration::from_millis(100)), |_, _| ())?;
    }
    let after = running.server.memory_bytes()?;
    #[expect(clippy::cast_precision_loss, reason = "ten thousand")]
    let each = (after - before) / subscribers as f64;
    Ok(sample([
        ("KiB/subscriber", each / 1024.0),
        ("MiB before", before / 1_048_576.0),
        ("MiB", after / 1_048_576.0),
    ]))
}
