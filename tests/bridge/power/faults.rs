//! Each call of the system that the program makes for its files fails once: nothing that was answered
//! is lost, nothing is answered that is not kept, and what passes by itself ends nothing.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use prelude_bridge::simulator::random::Random;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    check::{Promise, check},
    history::{History, Image},
    losses::{check_image, runtime},
    recording::{bridge, ids},
    sites::{NAMES, Operation, Site},
    trace::{Fault, Mark, Record, Shim, Trace, What},
};
use crate::support::{
    Bridge, SOON, count,
    sender::{Delivery, Sender},
};

/// How many of the calls of each site fail, each in a run of its own.
const CALLS: &str = "PRELUDE_BRIDGE_TEST_FAULTS_PER_SITE";
/// Only sites whose names have this in them.
const SITES: &str = "PRELUDE_BRIDGE_TEST_FAULT_SITES";
/// How many runs there are at a time.
const RUNS_AT_ONCE: usize = 3;
/// Batches that are there before a run, and those of a run. Most of them fill most of a segment.
const BATCHES_BEFORE: usize = 24;
const BATCHES: usize = 8;
const FILLER_BYTES: usize = 12_000;
/// Losses of power after each run, with each idea of what a failed flush leaves.
const LOSSES: usize = 8;

const O_CREAT: i32 = 0o100;
const EIO: i32 = 5;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;

/// They are signed once.
static DELIVERIES: LazyLock<Vec<Delivery>> = LazyLock::new(|| {
    let of = |batch| {
        // The one that is torn, and the one before it, are small: so they are in the same segment.
        let is_small = (BATCHES_BEFORE - 1..=BATCHES_BEFORE).contains(&batch);
        let filler = "x".repeat(if is_small { 0 } else { FILLER_BYTES });
        let items: Vec<String> = ids(batch)
            .iter()
            .map(|id| format!(r#"{{"id":"{id}","type":"a","payload":{{"filler":"{filler}"}}}}"#))
            .collect();
        Delivery::of(&items)
    };
    (0..=BATCHES_BEFORE + BATCHES).map(of).collect()
});

/// The calls of a site.
#[derive(Clone, Copy, Default)]
struct Calls {
    addresses: [usize; 2],
    count: usize,
    /// They may create a file.
    create: bool,
}

/// What a call can fail with.
fn errors(operation: Operation, creates: bool) -> &'static [i32] {
    match operation {
        Operation::Open if creates => &[EMFILE, ENOSPC, EIO],
        Operation::Open => &[EMFILE, EIO],
        Operation::List => &[EMFILE, EIO],
        Operation::Read | Operation::Unlink => &[EIO],
        _ => &[ENOSPC, EIO],
    }
}

/// A log after a loss of power in a commit, and how many events were promised in it.
async fn torn_log() -> (Image, usize) {
    loop {
        let mut bridge = bridge();
        bridge.restart_elsewhere().await;
        let sender = Sender::to(bridge.addresses.webhook);
        for delivery in &DELIVERIES[..BATCHES_BEFORE] {
            assert_eq!(sender.send(delivery).await.status, 200);
        }
        let data = bridge.data_dir();
        let manifest = fs::read(data.join("manifest")).unwrap();
        let kept = usize::try_from(bridge.head().await).unwrap();
        assert_eq!(sender.send(&DELIVERIES[BATCHES_BEFORE]).await.status, 200);
        bridge.kill();
        let mut image = Image::read(&data);
        image.files.insert("manifest".to_owned(), manifest);
        // Unless the commit has begun a segment: then it cannot be torn.
        let before = ids(BATCHES_BEFORE - 1).pop().unwrap();
        let last = ids(BATCHES_BEFORE).pop().unwrap();
        let find = |bytes: &[u8], id: &str| {
            let mut windows = bytes.windows(id.len());
            windows.rposition(|window| window == id.as_bytes())
        };
        for bytes in image.files.values_mut() {
            if find(bytes, &before).is_some()
                && let Some(at) = find(bytes, &last)
            {
                // Its last sector never came to the disk.
                let end = bytes.len().min(at + 512);
                bytes[at..end].fill(0);
                return (image, kept);
            }
        }
    }
}

/// What became of a run.
struct Run {
    /// The call failed, and whether it was ready then.
    failed: Option<bool>,
    ended_early: bool,
    /// What is wrong with the log that it left.
    wrong: Option<String>,
}

async fn run(
    shim: Arc<Shim>,
    trace: Trace,
    image: Arc<Image>,
    kept: usize,
    fault: Option<Fault>,
) -> (Run, Trace) {
    let mut bridge = bridge();
    let data = bridge.data_dir();
    fs::create_dir(&data).unwrap();
    image.write(&data);
    let mut promise = Promise {
        kept,
        earliest_max: u64::MAX,
        ..Promise::default()
    };
    for batch in (0..BATCHES_BEFORE).chain(BATCHES_BEFORE + 1..=BATCHES_BEFORE + BATCHES) {
        promise.ids.extend(ids(batch));
        promise.ends.push(promise.ids.len());
    }
    let mut command = bridge.command_elsewhere();
    shim.attach(&mut command, &data, &trace);
    if let Some(fault) = fault {
        Shim::fail(&mut command, fault);
    }
    let ended_early = if bridge.try_run(command).await {
        trace.mark(Mark::Ready(0));
        let ended = work(&mut bridge, &mut promise).await;
        if !ended {
            let code = bridge.terminate().await.code();
            assert!(matches!(code, Some(0 | 1)), "{code:?}: {}", bridge.stderr());
        }
        ended
    } else {
        let code = bridge.ended().await.code();
        assert!(matches!(code, Some(1 | 2)), "{code:?}: {}", bridge.stderr());
        true
    };
    let failed = fault.and_then(|fault| failed_call(&trace, fault));
    let records = trace.read();
    let checking =
        tokio::task::spawn_blocking(move || check_kept(&data, &image, records, &promise));
    let wrong = checking.await.unwrap().err();
    let run = Run {
        failed,
        ended_early,
        wrong,
    };
    (run, trace)
}

/// Sends all batches, each until it is taken. Says whether the process ended before.
async fn work(bridge: &mut Bridge, promise: &mut Promise) -> bool {
    let sender = Sender::to(bridge.addresses.webhook);
    for batch in BATCHES_BEFORE + 1..=BATCHES_BEFORE + BATCHES {
        let taken = async {
            loop {
                match sender.try_send(&DELIVERIES[batch]).await {
                    Ok(reply) if reply.status == 200 => return true,
                    Ok(reply) if reply.refusal() == (503, "log_failed") => return false,
                    // It has no room, or no descriptor, for a moment.
                    Ok(reply) => assert_eq!(reply.status, 503, "{reply:?}"),
                    Err(_) => return false,
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if !tokio::time::timeout(SOON, taken).await.unwrap() {
            let code = bridge.ended().await.code();
            assert_eq!(code, Some(1), "{}", bridge.stderr());
            let stderr = bridge.stderr();
            assert!(stderr.contains("the log failed"), "{stderr}");
            return true;
        }
        promise.kept += ids(batch).len();
    }
    false
}

/// That a start after the failure finds everything, also after a loss of power.
fn check_kept(
    data: &Path,
    image: &Image,
    records: Vec<Record>,
    promise: &Promise,
) -> Result<(), String> {
    let runtime = runtime();
    let history = History::new(image.clone(), data, records);
    for forgets in [false, true] {
        let mut disk = history.disk();
        (disk.forgets, disk.shows_stale) = (forgets, true);
        history.steps.iter().for_each(|step| disk.apply(step));
        let mut random = Random::new(history.steps.len() as u64);
        for _ in 0..LOSSES {
            let image = disk.lose(&mut random);
            check_image(&runtime, &image, promise)
                .map_err(|reason| format!("{reason}, after a loss of power"))?;
        }
    }
    check(&runtime, data, promise).map(drop)
}

/// Whether the call failed, and if so, whether the bridge was ready before.
fn failed_call(trace: &Trace, fault: Fault) -> Option<bool> {
    let mut is_ready = false;
    for record in trace.read() {
        is_ready |= matches!(record.what, What::Mark(Mark::Ready(_)));
        if record.error == fault.error && record.operation() == Some(fault.operation) {
            return Some(is_ready);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_of_the_system_fails_once_and_nothing_that_was_answered_is_lost() {
    let shim = Arc::new(Shim::build());
    let (image, kept) = torn_log().await;
    let image = Arc::new(image);
    let trace = shim.trace("whole");
    let whole = run(Arc::clone(&shim), trace, Arc::clone(&image), kept, None);
    let (whole, trace) = whole.await;
    assert_eq!(whole.wrong, None);
    let mut sites: BTreeMap<Site, Calls> = BTreeMap::new();
    for record in trace.read() {
        if let Some((site, addresses)) = NAMES.site(&record) {
            let calls = sites.entry(site).or_default();
            calls.addresses = addresses;
            calls.count += 1;
            calls.create |= matches!(record.what, What::Open { flags, .. } if flags & O_CREAT != 0);
        }
    }
    if let Ok(wanted) = std::env::var(SITES) {
        sites.retain(|site, _| site.to_string().contains(&wanted));
    }
    let per_site = count(CALLS, 1);
    let running = Arc::new(Semaphore::new(RUNS_AT_ONCE));
    let mut runs = JoinSet::new();
    for (site, calls) in sites.clone() {
        let addresses = calls.addresses;
        for &error in errors(site.operation, calls.create) {
            let faults = per_site.min(calls.count);
            for call in 0..faults {
                let fault = Fault {
                    operation: site.operation,
                    addresses,
                    error,
                    skipped: call * calls.count / faults,
                };
                let (shim, image) = (Arc::clone(&shim), Arc::clone(&image));
                let (running, site) = (Arc::clone(&running), site.clone());
                runs.spawn(async move {
                    let _running = running.acquire().await.unwrap();
                    // Sites of different operations may be in the same function.
                    let name = format!("{:?}-{addresses:x?}-{error}-{call}", site.operation);
                    let trace = shim.trace(&name);
                    let (run, trace) = run(shim, trace, image, kept, Some(fault)).await;
                    trace.remove();
                    (site, fault, run)
                });
            }
        }
    }
    let (mut count, mut failed, mut ended, mut wrong) = (0, 0, 0, Vec::new());
    while let Some(run) = runs.join_next().await {
        let (site, fault, run) = run.unwrap();
        count += 1;
        failed += usize::from(run.failed.is_some());
        ended += usize::from(run.ended_early);
        // Want of a descriptor passes, and so does want of room, unless it is said by a flush.
        let passes =
            fault.error == EMFILE || (fault.error == ENOSPC && site.operation != Operation::Sync);
        if let Some(reason) = run.wrong {
            wrong.push(format!("{site}: {fault:?}: {reason}"));
        }
        if run.ended_early && (run.failed.is_none() || (passes && run.failed == Some(true))) {
            wrong.push(format!("{site}: {fault:?} ended the process"));
        }
    }
    eprintln!(
        "{count} runs, {} call sites: {failed} calls failed, {ended} processes ended",
        sites.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    // How often a call is made differs a little between runs.
    assert!(failed * 10 >= count * 8, "{failed} of {count} calls failed");
}
