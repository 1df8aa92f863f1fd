//! A bridge at work, recorded: what it did to its data directory, and what it promised when.

use std::{collections::BTreeMap, fs, path::Path};

use prelude_bridge::{log, proto::start_position::Position};

use super::{
    check::Promise,
    history::{History, Image, Step},
    sites::{NAMES, Site},
    trace::{Fault, Mark, Shim, Trace},
};
use crate::support::{
    Bridge, Setup,
    sender::{Delivery, Sender, eventually},
    stream::{Earliest, Received, from},
};

/// So little that segments are small, and many of them come and go.
const LOG_BYTES_MAX: &str = "1MiB";
const SENDERS: usize = 3;
/// After so many batches there has to be a file of ids more.
const ROUND_BATCHES: usize = 25;
const ROUNDS: usize = 5;
/// What a bridge takes after a loss of power.
const BATCHES_AFTER: usize = 4;
const FIRST_BATCH_AFTER: usize = 1_000_000;

/// Everything that is needed to lose power at any moment of it.
pub(crate) struct Recording {
    pub(crate) history: History,
    /// Before each step, and after the last.
    promises: Vec<(usize, u64)>,
    ids: Vec<String>,
    ends: Vec<usize>,
    /// Where each call was made, by the number of its record.
    pub(crate) calls: BTreeMap<usize, Site>,
    /// The addresses of the two functions of each site.
    pub(crate) sites: BTreeMap<Site, [usize; 2]>,
}

impl Recording {
    /// Of what stood when so many steps were done.
    pub(crate) fn promise(&self, steps: usize) -> Promise {
        let (kept, earliest_max) = self.promises[steps];
        Promise {
            ids: self.ids.clone(),
            ends: self.ends.clone(),
            kept,
            earliest_max,
        }
    }

    /// Puts a record together with the events in their order. So many of them had been promised before.
    fn new(base: Image, root: &Path, trace: &Trace, mut kept: usize, sent: Sent) -> Self {
        let records = trace.read();
        let (mut calls, mut sites) = (BTreeMap::new(), BTreeMap::new());
        for (number, record) in records.iter().enumerate() {
            if let Some((site, addresses)) = NAMES.site(record) {
                calls.insert(number, site.clone());
                sites.insert(site, addresses);
            }
        }
        let history = History::new(base, root, records);
        let Sent { ids, ends, batches } = sent;
        let mut promises = Vec::new();
        for step in &history.steps {
            promises.push((kept, u64::MAX));
            kept = match step {
                Step::Mark(Mark::Answered(batch)) => kept.max(batches[batch]),
                Step::Mark(Mark::Ready(head)) => kept.max(usize::try_from(*head).unwrap()),
                _ => kept,
            };
        }
        promises.push((kept, u64::MAX));
        // What retention had removed when that was looked at next.
        let mut earliest = u64::MAX;
        for (step, promise) in history.steps.iter().zip(&mut promises).rev() {
            if let Step::Mark(Mark::Earliest(sequence)) = step {
                earliest = *sequence;
            }
            promise.1 = earliest;
        }
        Self {
            history,
            promises,
            ids,
            ends,
            calls,
            sites,
        }
    }
}

/// The events in the order of the log, and where batches end in it.
#[derive(Default)]
struct Sent {
    ids: Vec<String>,
    ends: Vec<usize>,
    batches: BTreeMap<usize, usize>,
}

/// Ids of the events of a batch, and how much is in each of them: most are small, some make a commit of
/// several frames.
fn events(batch: usize) -> (Vec<String>, usize) {
    let (count, filler_bytes) = match batch % 40 {
        4 => (3, 200_000),
        _ => (1 + batch % 8, 2_000),
    };
    let ids = (0..count).map(|event| format!("evt_{batch}_{event}"));
    (ids.collect(), filler_bytes)
}

/// The type of all events.
pub(crate) const EVENT_TYPE: &str = "a";

pub(crate) fn delivery(batch: usize) -> Delivery {
    let (ids, filler_bytes) = events(batch);
    let filler = "x".repeat(filler_bytes);
    let items: Vec<String> = ids
        .iter()
        .map(|id| {
            format!(r#"{{"id":"{id}","type":"{EVENT_TYPE}","payload":{{"filler":"{filler}"}}}}"#)
        })
        .collect();
    Delivery::of(&items)
}

pub(crate) fn ids(batch: usize) -> Vec<String> {
    events(batch).0
}

/// A bridge that keeps little, in a file system in memory.
pub(crate) fn bridge() -> Bridge {
    let setup = Setup::default().with("retention.bytes_max", LOG_BYTES_MAX);
    setup.in_memory().prepare()
}

/// Starts a bridge whose record is kept. Says what it shows.
async fn start(bridge: &mut Bridge, shim: &Shim, trace: &Trace) -> usize {
    let mut command = bridge.command_elsewhere();
    shim.attach(&mut command, &bridge.data_dir(), trace);
    bridge.run(command).await;
    let head = bridge.head().await;
    trace.mark(Mark::Ready(head));
    usize::try_from(head).unwrap()
}

async fn note_earliest(bridge: &Bridge, trace: &Trace) -> u64 {
    let earliest = bridge.range().await.earliest.unwrap().sequence;
    trace.mark(Mark::Earliest(earliest));
    earliest
}

/// Several senders at once until retention has removed segments several times, and an orderly end.
pub(crate) async fn record_work(shim: &Shim) -> Recording {
    let mut bridge = bridge();
    let trace = shim.trace("work");
    start(&mut bridge, shim, &trace).await;
    let request = from(Position::Earliest(Earliest {}));
    let opened = Received::subscribe(&mut bridge.client().await, request).await;
    let mut received = opened.unwrap();
    let mut count = 0;
    for round in 0..ROUNDS {
        let first = round * ROUND_BATCHES;
        let senders: Vec<_> = (0..SENDERS)
            .map(|number| {
                let (trace, sender) = (trace.clone(), Sender::to(bridge.addresses.webhook));
                tokio::spawn(async move {
                    for batch in (first + number..first + ROUND_BATCHES).step_by(SENDERS) {
                        assert_eq!(sender.send(&delivery(batch)).await.status, 200);
                        trace.mark(Mark::Answered(batch));
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.await.unwrap();
        }
        let events = (first..first + ROUND_BATCHES).map(|batch| ids(batch).len());
        count += events.sum::<usize>();
        received.until_events(count).await;
        if note_earliest(&bridge, &trace).await > 1 {
            let segments = || oldest_segment(&bridge.data_dir());
            let oldest = segments();
            eventually(async || (round == 2 || segments() > oldest).then_some(())).await;
        }
    }
    note_earliest(&bridge, &trace).await;
    let ids: Vec<String> = received.events().map(|event| event.id.clone()).collect();
    drop(received);
    assert!(bridge.terminate().await.success());
    let inspected = log::inspect(&bridge.data_dir()).unwrap().unwrap();
    trace.mark(Mark::Earliest(inspected.range.earliest.0));
    let sent = in_batches(ids);
    Recording::new(Image::default(), &bridge.data_dir(), &trace, 0, sent)
}

/// The name of the first segment.
fn oldest_segment(data: &Path) -> Option<String> {
    let names = fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| name.starts_with("events-")).min()
}

/// Where the batches end, in a log with these events.
fn in_batches(ids: Vec<String>) -> Sent {
    let mut sent = Sent::default();
    for (place, id) in ids.iter().enumerate() {
        let (batch, event) = id.strip_prefix("evt_").unwrap().split_once('_').unwrap();
        let (batch, event): (usize, usize) = (batch.parse().unwrap(), event.parse().unwrap());
        if event + 1 == self::ids(batch).len() {
            sent.ends.push(place + 1);
            sent.batches.insert(batch, place + 1);
        }
    }
    sent.ids = ids;
    sent
}

/// A start on what a loss has left, some batches, and the end of the power once more.
pub(crate) async fn record_recovery(shim: &Shim, image: &Image, promise: &Promise) -> Recording {
    let mut bridge = bridge();
    let data = bridge.data_dir();
    fs::create_dir(&data).unwrap();
    image.write(&data);
    let trace = shim.trace("recovery");
    let head = start(&mut bridge, shim, &trace).await;
    let mut all = promise.ids[..head].to_vec();
    all.extend(send_after(&bridge, &trace).await);
    bridge.kill();
    Recording::new(image.clone(), &data, &trace, promise.kept, in_batches(all))
}

/// Sends some batches more, and says which events are in them.
async fn send_after(bridge: &Bridge, trace: &Trace) -> Vec<String> {
    let sender = Sender::to(bridge.addresses.webhook);
    let mut all = Vec::new();
    for batch in FIRST_BATCH_AFTER..FIRST_BATCH_AFTER + BATCHES_AFTER {
        assert_eq!(sender.send(&delivery(batch)).await.status, 200);
        trace.mark(Mark::Answered(batch));
        all.extend(ids(batch));
    }
    note_earliest(bridge, trace).await;
    all
}

/// A bridge that is killed between the write and the flush of a commit, which is this call, and
/// another one after it. The power stays, so that the second finds what is not durable.
pub(crate) async fn record_kill(shim: &Shim, flush: Fault) -> Recording {
    let mut bridge = bridge();
    let trace = shim.trace("kill");
    let mut command = bridge.command_elsewhere();
    shim.attach(&mut command, &bridge.data_dir(), &trace);
    Shim::fail(&mut command, flush);
    bridge.run(command).await;
    let sender = Sender::to(bridge.addresses.webhook);
    let mut all = Vec::new();
    for batch in 0.. {
        all.extend(ids(batch));
        if sender.try_send(&delivery(batch)).await.is_err() {
            break;
        }
        trace.mark(Mark::Answered(batch));
    }
    bridge.ended().await;
    assert_eq!(start(&mut bridge, shim, &trace).await, all.len());
    all.extend(send_after(&bridge, &trace).await);
    bridge.kill();
    Recording::new(
        Image::default(),
        &bridge.data_dir(),
        &trace,
        0,
        in_batches(all),
    )
}
