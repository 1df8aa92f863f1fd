//! Measures what keys cost: run in release, by
//! `KEYS=10000000 cargo test --release -p prelude-bridge-log --lib ids::benchmark -- --ignored --nocapture`.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{tests::key, *};

const BATCH_KEYS: u64 = 1_000;
const REPORT_KEYS: u64 = 10_000_000;

#[test]
#[ignore = "needs a release build, minutes, and 32 bytes of disk for each of KEYS keys"]
fn new_keys_are_looked_up_and_added() {
    let number = |name: &str, default: u64| {
        let value = std::env::var(name).ok();
        value.map_or(default, |value| value.parse().unwrap())
    };
    let count = number("KEYS", REPORT_KEYS);
    // What an append takes besides, in nanoseconds for a key; 0 to measure the keys alone.
    let pause = number("PAUSE", 0);
    let dir = tempfile::tempdir_in(std::env::var("DIR").unwrap_or(".".to_owned())).unwrap();
    let limits = Limits::new(Duration::from_secs(15 * 24 * 60 * 60));
    let mut ids = Ids::open(dir.path(), LogId(1), limits).unwrap();
    let stop = AtomicBool::new(false);
    let background = ids.background();
    thread::scope(|scope| {
        let worker = scope.spawn(|| work(&background, &stop));
        fill(&mut ids, count, Duration::from_nanos(pause * BATCH_KEYS));
        stop.store(true, Ordering::Relaxed);
        println!(
            "longest step in the background {:?}",
            worker.join().unwrap()
        );
    });
    ids.seal();
    while ids.background().run_once().unwrap() {}
    report(&ids, "in the end");
    drop(ids);
    let started = Instant::now();
    let mut ids = Ids::open(dir.path(), LogId(1), limits).unwrap();
    println!(
        "opened in {:?}, {} MiB resident",
        started.elapsed(),
        resident()
    );
    assert_eq!((ids.len(), ids.through()), (count, Sequence(count)));
    for (name, first, expected) in [("known", 0, true), ("new", count, false)] {
        let (started, mut known) = (Instant::now(), Vec::new());
        let keys: Vec<Key> = (first..first + 100_000).map(key).collect();
        for keys in keys.chunks(BATCH_KEYS as usize) {
            ids.contains(keys, &mut known).unwrap();
            assert!(known.iter().all(|&known| known == expected));
        }
        let each = started.elapsed() / 100_000;
        println!("{name} keys after a start: {each:?} each");
    }
}

fn fill(ids: &mut Ids, count: u64, pause: Duration) {
    let (mut known, mut calls, mut waited) = (Vec::new(), Vec::new(), Duration::ZERO);
    let mut started = Instant::now();
    for first in (0..count).step_by(BATCH_KEYS as usize) {
        let keys: Vec<Key> = (first..first + BATCH_KEYS).map(key).collect();
        // As an append does: memory has room for two sets.
        let wait = Instant::now();
        while ids.recent.len() as u64 >= ids.limits.part_keys_max && !ids.seal() {
            thread::yield_now();
        }
        waited += wait.elapsed();
        let call = Instant::now();
        ids.contains(&keys, &mut known).unwrap();
        assert!(!known.contains(&true));
        let last = Sequence(first + BATCH_KEYS);
        ids.add(&keys, last, UnixMicros(first as i64));
        calls.push(call.elapsed());
        while call.elapsed() < pause {
            std::hint::spin_loop();
        }
        if last.0.is_multiple_of(REPORT_KEYS) || last.0 == count {
            let rate = REPORT_KEYS as f64 / 1e6 / started.elapsed().as_secs_f64();
            calls.sort_unstable();
            let at = |part: f64| calls[((calls.len() - 1) as f64 * part) as usize];
            println!(
                "{} M: {rate:.2} M/s, a call of {BATCH_KEYS}: median {:?}, 99% {:?}, longest {:?}; waited {waited:?}",
                last.0 / 1_000_000,
                at(0.5),
                at(0.99),
                at(1.0),
            );
            report(ids, "  ");
            (started, waited) = (Instant::now(), Duration::ZERO);
            calls.clear();
        }
    }
}

/// The longest step.
fn work(background: &Background, stop: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let has_more = background.run_once().unwrap();
        longest = longest.max(started.elapsed());
        if !has_more {
            thread::sleep(Duration::from_millis(1));
        } else if !background.is_urgent() {
            thread::sleep(started.elapsed());
        }
    }
    longest
}

fn report(ids: &Ids, name: &str) {
    const MIB: u64 = 1024 * 1024;
    println!(
        "{name} {} files, {} MiB of memory ({} resident), {} MiB on disk",
        ids.background.view().files.len(),
        ids.memory_bytes() as u64 / MIB,
        resident(),
        ids.stored_bytes() / MIB,
    );
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}
