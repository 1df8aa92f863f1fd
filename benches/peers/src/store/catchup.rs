//! Reading the log from its beginning, by one subscriber at a time of a bridge that has nothing else to do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use prelude_bridge_load::{Engine, Subscription, Summary};

use crate::{
    proto::{Earliest, StartPosition, SubscribeRequest, start_position::Position},
    system::{Running, System, open_all},
    work::{Bench, Sample, sample},
};

/// Webhooks that may be on the way while the log is filled.
const SENDERS: usize = 16;
const READS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn measure(bench: &Bench, system: System) -> Result<Sample> {
    let running = Running::start(system, &bench.host)?;
    let chunks = &bench.hundreds;
    // Half of them: more would take longer to write than to read.
    let requests = chunks.requests.len() / 2;
    fill(bench, &running, requests)?;
    let events = (requests * chunks.size) as u64;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..READS {
        let clock = bench.clock(&running);
        read(&running, events)?;
        let usage = clock.stop();
        #[expect(clippy::cast_precision_loss, reason = "events of one run")]
        let events = events as f64;
        rates.push(events / usage.seconds());
        let cpu = usage.server_cpu.context("the server has ended")?;
        costs.push(cpu.as_secs_f64() * 1e6 / events);
    }
    let median = |values| Summary::of(values).map_or(f64::NAN, |summary| summary.median);
    Ok(sample([
        ("events/s", median(rates)),
        ("CPU µs/event", median(costs)),
    ]))
}

fn fill(bench: &Bench, running: &Running, requests: usize) -> Result<()> {
    let mut engine = Engine::new()?;
    let _publisher = running.publisher(&mut engine, SENDERS)?;
    let mut requests = bench.hundreds.requests.iter().take(requests);
    let (mut idle, mut waiting) = ((0..SENDERS).collect::<Vec<_>>(), 0);
    let end = Instant::now() + PATIENCE;
    loop {
        for index in idle.drain(..) {
            if let Some(request) = requests.next() {
                engine.send(index, request.clone())?;
                waiting += 1;
            }
        }
        if waiting == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the log could not be filled");
        engine.turn(Some(Duration::from_millis(100)), |index, _| {
            idle.push(index);
            waiting -= 1;
        })?;
    }
}

fn read(running: &Running, events: u64) -> Result<()> {
    let request = SubscribeRequest {
        start: Some(StartPosition {
            position: Some(Position::Earliest(Earliest {})),
        }),
        ..SubscribeRequest::default()
    };
    let mut engine = Engine::new()?;
    let subscriber = Box::new(Subscription::without_cursors(&request, 16 * 1024)) as _;
    open_all(&mut engine, running.stream, [subscriber])?;
    let end = Instant::now() + PATIENCE;
    while engine
        .connections()
        .iter()
        .any(|one| one.received() < events)
    {
        ensure!(Instant::now() < end, "events were lost");
        engine.turn(Some(Duration::from_millis(100)), |_, _| ())?;
    }
    Ok(())
}
