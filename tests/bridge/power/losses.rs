//! Thousands of losses of power.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use prelude_bridge::simulator::random::Random;
use tokio::runtime::{Builder, Runtime};

use super::{
    check::{Promise, check},
    history::{Image, Step},
    recording::{Recording, record_kill, record_recovery, record_work},
    sites::{Operation, Site},
    trace::{Fault, Shim},
};
use crate::support::count;

/// Losses that are tried.
const LOSSES: &str = "PRELUDE_BRIDGE_TEST_POWER_LOSSES";
const LOSSES_USUAL: usize = 2_000;
/// Of so many losses during work there is one whose recovery loses its power too, …
const RECOVERY_EVERY: usize = 50;
/// … so many times.
const LOSSES_PER_RECOVERY: usize = 50;
/// Losses that are tried without a flush, each at most so many steps after one that is left out.
const LOSSES_WITHOUT_FLUSH: usize = 300;
const STEPS_AFTER_FLUSH: usize = 12;

/// A log in which something is wrong.
struct Broken {
    steps: usize,
    seed: u64,
    reason: String,
    /// What was on the disk.
    image: Image,
}

/// Loses power so many times, at any moment.
fn lose(recording: &Recording, count: usize, seed: u64) -> Option<Broken> {
    let steps = recording.history.steps.len();
    let mut random = Random::new(seed);
    let moments = (0..count).map(|_| (random.below(steps + 1), random.next_u64()));
    lose_all(recording, moments.collect(), &[])
}

/// The same without the flushes of some sites, each time soon after one of them.
fn lose_without(recording: &Recording, without: &[Site]) -> Option<Broken> {
    let steps = recording.history.steps.iter().enumerate();
    let left_out = steps.filter(|(_, step)| is_flush_of(recording, step, without));
    let left_out: Vec<usize> = left_out.map(|(step, _)| step).collect();
    let mut random = Random::new(4);
    let moments = (0..LOSSES_WITHOUT_FLUSH).map(|_| {
        let after = left_out[random.below(left_out.len())] + 1 + random.below(STEPS_AFTER_FLUSH);
        let moment = after.min(recording.history.steps.len());
        (moment, random.next_u64())
    });
    lose_all(recording, moments.collect(), without)
}

fn is_flush_of(recording: &Recording, step: &Step, sites: &[Site]) -> bool {
    let Step::Flush { record, .. } = step else {
        return false;
    };
    let site = recording.calls.get(record);
    site.is_some_and(|site| sites.contains(site))
}

/// Loses power after so many steps each, with these seeds. Stops at the first log in which something is
/// wrong.
fn lose_all(
    recording: &Recording,
    mut moments: Vec<(usize, u64)>,
    without: &[Site],
) -> Option<Broken> {
    moments.sort_unstable();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = moments
            .chunks(moments.len().div_ceil(workers).max(1))
            .map(|moments| scope.spawn(|| lose_at(recording, moments, without, &stopped)))
            .collect();
        let broken = workers
            .into_iter()
            .filter_map(|worker| worker.join().unwrap());
        broken.collect::<Vec<_>>().pop()
    })
}

fn lose_at(
    recording: &Recording,
    moments: &[(usize, u64)],
    without: &[Site],
    stopped: &AtomicBool,
) -> Option<Broken> {
    let runtime = runtime();
    let mut disk = recording.history.disk();
    let mut done = 0;
    for &(steps, seed) in moments {
        if stopped.load(Ordering::Relaxed) {
            return None;
        }
        for step in &recording.history.steps[done..steps] {
            if !is_flush_of(recording, step, without) {
                disk.apply(step);
            }
        }
        done = steps;
        let promise = recording.promise(steps);
        // A first segment that is another file is refused, whatever made it so.
        disk.shows_stale = promise.kept > 0;
        let image = disk.lose(&mut Random::new(seed));
        if let Err(reason) = check_image(&runtime, &image, &promise) {
            stopped.store(true, Ordering::Relaxed);
            return Some(Broken {
                steps,
                seed,
                reason,
                image,
            });
        }
    }
    None
}

pub(crate) fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Opens the log of an image, and says what is wrong with it.
pub(crate) fn check_image(
    runtime: &Runtime,
    image: &Image,
    promise: &Promise,
) -> Result<usize, String> {
    let dir = directory();
    image.write(dir.path());
    check(runtime, dir.path(), promise).map(|found| found.head)
}

fn directory() -> tempfile::TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory.unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Keeps what was on the disk, for a person to look at.
fn keep(broken: &Broken) -> PathBuf {
    let dir = directory().keep();
    broken.image.write(&dir);
    dir
}

#[track_caller]
fn assert_whole(broken: Option<Broken>) {
    if let Some(broken) = broken {
        let kept = keep(&broken);
        let Broken {
            steps,
            seed,
            reason,
            ..
        } = broken;
        unreachable!(
            "after {steps} steps, seed {seed}: {reason}; see {}",
            kept.display()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_answered_is_lost_with_the_power_twice_in_a_row() {
    let (losses, began) = (count(LOSSES, LOSSES_USUAL), Instant::now());
    let shim = Shim::build();
    let work = record_work(&shim).await;
    let steps = work.history.steps.len();
    let recoveries = (losses / (RECOVERY_EVERY + LOSSES_PER_RECOVERY)).max(1);
    let first = losses.saturating_sub(recoveries * LOSSES_PER_RECOVERY);
    assert_whole(lose(&work, first, 1));
    let mut random = Random::new(2);
    for recovery in 0..recoveries {
        let moment = random.below(steps + 1);
        let mut disk = work.history.disk();
        work.history.steps[..moment]
            .iter()
            .for_each(|step| disk.apply(step));
        let promise = work.promise(moment);
        disk.shows_stale = promise.kept > 0;
        let image = disk.lose(&mut random);
        let again = record_recovery(&shim, &image, &promise).await;
        assert_whole(lose(&again, LOSSES_PER_RECOVERY, 3 + recovery as u64));
    }
    eprintln!(
        "{losses} losses of power, {} of them in {recoveries} recoveries, at {steps} steps: {} s",
        recoveries * LOSSES_PER_RECOVERY,
        began.elapsed().as_secs()
    );
}

/// Flushes that another one makes up for, and by which.
const MADE_UP_FOR: [(&str, &str, &str); 9] = [
    (
        "directory::sync_directory",
        "directory::Directory::open",
        "the lock needs no name after a loss, and the first manifest flushes the directory",
    ),
    (
        "ids::directory::create",
        "ids::directory::open",
        "the manifest of the start flushes the data directory before anything is taken",
    ),
    (
        "ids::file::Output::finish",
        "ids::background::Background::finish",
        "each piece was flushed when it was written",
    ),
    (
        "ids::file::Output::write_piece",
        "ids::background::Job::go_on",
        "the whole file is flushed before it gets its name",
    ),
    (
        "preparation::Preparation::begin",
        "active::Active::open",
        "the header is flushed with the first commit",
    ),
    (
        "preparation::Preparation::begin",
        "keeper::Work::make_segment",
        "the header is flushed with the first commit",
    ),
    (
        "preparation::Preparation::make_piece",
        "preparation::Preparation::go_on",
        "zeros make a flush of what is written over them short, and say nothing",
    ),
    (
        "reserve::allocate",
        "reserve::Reserve::make_of",
        "the reserve has no content, and is made again where it is missing",
    ),
    (
        "scrub::Progress::write",
        "scrub::Work::save",
        "without its progress, the check in the background begins again",
    ),
];

/// A flush that is needed only where a removed file has left its footer at the very place of this one: no more
/// than a few of thousand losses show that.
const SELDOM_MISSED: (&str, &str) = ("footer::append", "keeper::Work::write_footers");

fn is_made_up_for(site: &Site) -> bool {
    MADE_UP_FOR
        .iter()
        .any(|(function, caller, _)| (site.function == *function) && (site.caller == *caller))
}

fn flush_sites(recording: &Recording) -> BTreeSet<Site> {
    let steps = recording.history.steps.iter();
    let flushes = steps.filter_map(|step| match step {
        Step::Flush { record, .. } => recording.calls.get(record).cloned(),
        _ => None,
    });
    flushes.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_is_left_out_is_found() {
    let shim = Shim::build();
    let work = record_work(&shim).await;
    let sites = flush_sites(&work);
    for site in &sites {
        let broken = lose_without(&work, std::slice::from_ref(site));
        let reason = broken.map(|broken| broken.reason);
        eprintln!("{site}: {reason:?}");
        if (site.function.as_str(), site.caller.as_str()) == SELDOM_MISSED {
            continue;
        }
        assert_eq!(reason.is_none(), is_made_up_for(site), "{site}: {reason:?}");
    }
    // Two that make up for each other.
    let of_ids = |site: &&Site| site.function.starts_with("ids::file::Output::");
    let pieces_and_end: Vec<Site> = sites.iter().filter(of_ids).cloned().collect();
    assert_eq!(pieces_and_end.len(), 2);
    assert!(lose_without(&work, &pieces_and_end).is_some());
}

/// A process that is killed leaves bytes that are there and not durable. The next one shows them.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_did_not_flush_is_flushed_before_anybody_sees_it() {
    let shim = Shim::build();
    let short = record_recovery(&shim, &Image::default(), &Promise::default()).await;
    let is_of_commit = |(site, _): &(&Site, &[usize; 2])| site.function == "active::Active::write";
    let (_, &addresses) = short.sites.iter().find(is_of_commit).unwrap();
    let flush = Fault {
        operation: Operation::Sync,
        addresses,
        error: Fault::KILL,
        skipped: 9,
    };
    let killed = record_kill(&shim, flush).await;
    assert_whole(lose(&killed, LOSSES_WITHOUT_FLUSH, 5));
    let sites = flush_sites(&killed);
    let of_last_commit = |site: &&Site| site.function == "active::make_durable";
    let last_commit: Vec<Site> = sites.iter().filter(of_last_commit).cloned().collect();
    assert_eq!(last_commit.len(), 1);
    assert!(lose_without(&killed, &last_commit).is_some());
}
