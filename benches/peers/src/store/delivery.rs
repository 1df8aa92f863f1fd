//! One event at a time, the next one when the last has arrived: how long it takes to a subscriber of
//! another bridge, to another replica of the log, and to be acknowledged as a single message.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use prelude_bridge_load::{Answers, Engine, histogram, micros};

use super::{Durability, bridges::Bridges, cluster::Place, worker::Worker};
use crate::{
    system::{System, open_all, subscription},
    work::{Bench, Sample, quantile, sample},
};

/// How long it runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long one event may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn measure(bench: &Bench, system: System, durability: Durability) -> Result<Sample> {
    let cluster = bench.host.cluster((durability, Place::Server))?;
    let stream = cluster.new_stream();
    let task: &[&str] = match system {
        System::BridgeJetStream => {
            let bridges = Bridges::start(&bench.host, &cluster, &stream, 2)?;
            return to_subscriber(bench, &bridges);
        }
        System::ReplicatedLog => &["deliver"],
        System::JetStreamMessages => {
            stream.create()?;
            &["publish", "--waiting", "1"]
        }
        _ => bail!("{} has no log of several bridges", system.name()),
    };
    let mut worker = Worker::start(&bench.host, &cluster, &stream, 0, task)?;
    worker.progress()?;
    thread::sleep(WARM_UP);
    worker.progress()?;
    thread::sleep(bench.duration);
    let progress = worker.progress()?;
    ensure!(progress.p50 > 0, "nothing was delivered");
    #[expect(clippy::cast_precision_loss, reason = "below a minute")]
    let (p50, p99) = (progress.p50 as f64, progress.p99 as f64);
    Ok(sample([("p50 µs", p50), ("p99 µs", p99)]))
}

/// A webhook to the first bridge, a stream from the second.
fn to_subscriber(bench: &Bench, bridges: &Bridges) -> Result<Sample> {
    let [first, second] = bridges.servers.as_slice() else {
        bail!("two bridges are needed");
    };
    let mut engine = Engine::new()?;
    let subscriber = Box::new(subscription(None, 16 * 1024)) as _;
    open_all(&mut engine, second.address("grpc")?, [subscriber])?;
    let sender = Box::new(Answers::default()) as _;
    open_all(&mut engine, first.address("webhook")?, [sender])?;
    let mut latencies = histogram();
    let (mut requests, started) = (bench.singles.requests.iter(), Instant::now());
    while started.elapsed() < WARM_UP + bench.duration {
        let request = requests.next().context("too few events were signed")?;
        let sent = Instant::now();
        engine.send(1, request.clone())?;
        let (mut arrived, mut answered) = (None, false);
        while arrived.is_none() || !answered {
            ensure!(sent.elapsed() < PATIENCE, "an event was lost");
            engine.turn(Some(Duration::from_millis(100)), |index, _| match index {
                0 => arrived = Some(sent.elapsed()),
                _ => answered = true,
            })?;
        }
        if started.elapsed() > WARM_UP {
            latencies.saturating_record(micros(arrived.unwrap_or_default()));
        }
    }
    Ok(sample([
        ("p50 µs", quantile(&latencies, 0.5)),
        ("p99 µs", quantile(&latencies, 0.99)),
    ]))
}
