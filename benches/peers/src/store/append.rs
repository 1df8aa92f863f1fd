//! As many events as can be: from the log alone, through bridges with signatures, or as a message each.
//! The engine has the core of the server; whoever writes, and the load, has the other.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use prelude_bridge_load::{Answers, Engine, Process};

use super::{
    CpuTimes, Durability,
    bridges::Bridges,
    cluster::{Cluster, Place, Stream},
    worker::Worker,
};
use crate::{
    system::{System, open_all},
    work::{Bench, Sample, sample},
};

/// Batches of ten that wait for their acknowledgement, of all writers together: one of a writer is under way while
/// the next is collected, so it has up to half of them in a commit.
const BATCHES_WAITING: usize = 256;
const BATCH: usize = 10;

/// How long it runs before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

pub(super) fn measure(
    bench: &Bench,
    system: System,
    durability: Durability,
    bridges: usize,
) -> Result<Sample> {
    let cluster = bench.host.cluster((durability, Place::Server))?;
    let stream = cluster.new_stream();
    let share = BATCHES_WAITING / bridges;
    let (tasks, messages) = (share.to_string(), (share * BATCH).to_string());
    match system {
        System::ReplicatedLog => {
            let task = ["append", "--tasks", &tasks];
            workers(bench, &cluster, &stream, bridges, &task)
        }
        System::JetStreamMessages => {
            stream.create()?;
            let task = ["publish", "--waiting", &messages];
            workers(bench, &cluster, &stream, bridges, &task)
        }
        System::BridgeJetStream => receivers(bench, &cluster, &stream, bridges),
        _ => bail!("{} has no log of several bridges", system.name()),
    }
}

fn workers(
    bench: &Bench,
    cluster: &Cluster,
    stream: &Stream<'_>,
    count: usize,
    task: &[&str],
) -> Result<Sample> {
    let start = |number| Worker::start(&bench.host, cluster, stream, number, task);
    let mut workers = (0..count).map(start).collect::<Result<Vec<_>>>()?;
    let processes: Vec<Process> = workers.iter().map(Worker::process).collect();
    let mut events = || -> Result<u64> {
        let counts = workers
            .iter_mut()
            .map(|worker| Ok(worker.progress()?.events));
        counts.sum()
    };
    events()?;
    thread::sleep(WARM_UP);
    let meter = Meter::start(cluster, stream, processes)?;
    let before = events()?;
    thread::sleep(bench.duration);
    let after = events()?;
    meter.stop(after - before)
}

/// Signed batches, a connection for each that waits.
fn receivers(
    bench: &Bench,
    cluster: &Cluster,
    stream: &Stream<'_>,
    count: usize,
) -> Result<Sample> {
    let bridges = Bridges::start(&bench.host, cluster, stream, count)?;
    let mut engine = Engine::new()?;
    for server in &bridges.servers {
        let senders = (0..BATCHES_WAITING / count).map(|_| Box::new(Answers::default()) as _);
        open_all(&mut engine, server.address("webhook")?, senders)?;
    }
    let mut requests = bench.tens.requests.iter();
    let mut answered: Vec<usize> = (0..engine.connections().len()).collect();
    let (mut batches, started, mut meter) = (0, Instant::now(), None);
    loop {
        if meter.is_none() && started.elapsed() > WARM_UP {
            let processes = bridges.processes().collect();
            meter = Some((Meter::start(cluster, stream, processes)?, batches));
        }
        if started.elapsed() > WARM_UP + bench.duration {
            break;
        }
        for index in answered.drain(..) {
            let request = requests.next().context("too few batches were signed")?;
            engine.send(index, request.clone())?;
        }
        engine.turn(Some(Duration::from_millis(100)), |index, _| {
            batches += 1;
            answered.push(index);
        })?;
    }
    let (meter, before) = meter.context("nothing was measured")?;
    meter.stop((batches - before) * BATCH as u64)
}

/// What a stretch of time costs the engine and the writers.
struct Meter<'a> {
    cluster: &'a Cluster,
    stream: &'a Stream<'a>,
    processes: Vec<Process>,
    messages: u64,
    cpu: CpuTimes,
    own: Option<Duration>,
    started: Instant,
}

impl<'a> Meter<'a> {
    fn start(
        cluster: &'a Cluster,
        stream: &'a Stream<'a>,
        processes: Vec<Process>,
    ) -> Result<Self> {
        Ok(Self {
            messages: stream.state()?.0,
            cpu: CpuTimes::now(cluster, processes.iter().copied())?,
            own: Process::own().cpu_time(),
            cluster,
            stream,
            processes,
            started: Instant::now(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "events of one run")]
    fn stop(self, events: u64) -> Result<Sample> {
        let took = self.started.elapsed().as_secs_f64();
        let cpu = CpuTimes::now(self.cluster, self.processes.iter().copied())?.since(&self.cpu);
        let own = Process::own().cpu_time();
        let own = own
            .zip(self.own)
            .map(|(now, then)| now.saturating_sub(then));
        let messages = self.stream.state()?.0 - self.messages;
        ensure!(events > 0 && messages > 0, "nothing was appended");
        let (events, messages) = (events as f64, messages as f64);
        let (engine, bridges) = (cpu.engine.as_secs_f64(), cpu.bridges.as_secs_f64());
        let load = bridges + own.unwrap_or_default().as_secs_f64();
        Ok(sample([
            ("events/s", events / took),
            ("messages/s", messages / took),
            ("events/message", events / messages),
            ("engine CPU µs/event", engine * 1e6 / events),
            ("writers' CPU µs/event", bridges * 1e6 / events),
            ("server busy", engine / took),
            ("load busy", load / took),
            ("seconds", took),
        ]))
    }
}
