//! A wrong clock of the machine: nothing is removed or forgotten because of it, a short jump gets
//! into no event, and all of it is logged.
//!
//! A small library that is loaded before the others sets the wall clock of one process.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use prelude_bridge::proto::{Event, SubscribeRequest, stop_position, subscribe_response::Notice};
use tempfile::TempDir;

use crate::support::{
    APP, Bridge, Setup, batch, item, reader,
    sender::eventually,
    stream::{Received, StopPosition, history},
};

const HOUR: i64 = 60 * 60;
/// 34.7 days: more than events are kept, and more than ids are.
const MONTH: i64 = 2_998_080;
/// How far a stamp may be outside of the time between a test's begin and its end.
const STAMP_SLACK: Duration = Duration::from_secs(2);

/// Only what shows the wall clock is changed, and the file is read each time.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    char text[32] = {0};
    const char *path = getenv("WALL_CLOCK_OFFSET_FILE");
    int file = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    long length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    return length > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"#;

/// The wall clock of a bridge.
struct WallClock {
    directory: TempDir,
    began: SystemTime,
}

impl WallClock {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("wall_clock.c");
        fs::write(&source, SHIM).unwrap();
        let library = directory.path().join("wall_clock.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status();
        assert!(
            compiled.unwrap().success(),
            "the C compiler that the cryptography needs too"
        );
        let clock = Self {
            directory,
            began: SystemTime::now(),
        };
        clock.set(0);
        clock
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Sets it this far beyond the true time.
    fn set(&self, seconds: i64) {
        let fresh = self.path("offset.new");
        fs::write(&fresh, seconds.to_string()).unwrap();
        fs::rename(fresh, self.path("offset")).unwrap();
    }

    /// Starts a bridge that has it.
    async fn start(&self, bridge: &mut Bridge) {
        let mut command = bridge.command_elsewhere();
        command
            .env("LD_PRELOAD", self.path("wall_clock.so"))
            .env("WALL_CLOCK_OFFSET_FILE", self.path("offset"));
        bridge.run(command).await;
    }

    /// Whether all these were stamped with the true time.
    fn assert_true_stamps(&self, events: &[Event]) {
        let from = self.began.checked_sub(STAMP_SLACK).unwrap();
        let to = SystemTime::now().checked_add(STAMP_SLACK).unwrap();
        for event in events {
            let at = SystemTime::try_from(event.received_at.unwrap()).unwrap();
            assert!(from <= at && at <= to, "{} at {at:?}", event.id);
        }
    }
}

/// The items of events with these numbers.
fn items(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers
        .map(|n| item(&format!("evt_{n}"), "user.created", "usr_1"))
        .collect()
}

/// Events, one after another: between two of them the log removes what it takes for old.
async fn append_each(bridge: &Bridge, numbers: std::ops::Range<u64>) {
    for n in numbers {
        bridge.append(&items(n..n + 1)).await;
    }
}

async fn said(bridge: &Bridge, text: &str, times: usize) {
    eventually(async || (bridge.stderr().matches(text).count() >= times).then_some(())).await;
}

/// That these are there, under their numbers, and are known as repetitions.
async fn assert_complete(bridge: &Bridge, count: u64) -> Vec<Event> {
    let range = bridge.range().await;
    assert_eq!(range.earliest.unwrap().sequence, 1);
    let events = reader::log(bridge).await;
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    let expected: Vec<String> = (0..count).map(|n| format!("evt_{n}")).collect();
    assert_eq!(ids, expected);
    let again = bridge.post(batch(APP, &items(0..count)).as_bytes()).await;
    let known = format!(r#"{{"accepted":0,"duplicates":{count}}}"#);
    assert_eq!((again.status, again.text()), (200, known));
    events
}

/// A jump while it runs, and back; then a restart.
async fn jumps_and_returns(seconds: i64, direction: &str) {
    let clock = WallClock::new();
    let mut bridge = Setup::default().with("retention.age_max", "30d").prepare();
    clock.start(&mut bridge).await;
    append_each(&bridge, 0..3).await;
    for (round, first) in [(1, 3), (2, 8)] {
        clock.set(seconds);
        append_each(&bridge, first..first + 3).await;
        said(&bridge, "the system's clock jumped", round).await;
        append_each(&bridge, first + 3..first + 4).await;
        clock.set(0);
        append_each(&bridge, first + 4..first + 5).await;
        said(&bridge, "the system's clock is back where it was", round).await;
    }
    assert!(
        bridge
            .stderr()
            .contains(&format!(r#""direction":"{direction}""#))
    );
    let jumps = bridge.metric("prelude_bridge_clock_jumps_total").await;
    assert_eq!(jumps, Some(2.0));
    clock.assert_true_stamps(&assert_complete(&bridge, 13).await);
    assert!(bridge.terminate().await.success());
    clock.start(&mut bridge).await;
    clock.assert_true_stamps(&assert_complete(&bridge, 13).await);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_a_month_ahead_for_a_moment_costs_nothing() {
    jumps_and_returns(MONTH, "forwards").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_an_hour_behind_for_a_moment_costs_nothing() {
    jumps_and_returns(-HOUR, "back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_wild_clock_costs_nothing() {
    for seconds in [MONTH, -MONTH, -1_700_000_000] {
        let clock = WallClock::new();
        let mut bridge = Setup::default().with("retention.age_max", "1d").prepare();
        clock.start(&mut bridge).await;
        append_each(&bridge, 0..3).await;
        // Once in order, once as it comes.
        assert!(bridge.terminate().await.success());
        clock.set(seconds);
        clock.start(&mut bridge).await;
        append_each(&bridge, 3..6).await;
        said(&bridge, "the system's clock jumped", 1).await;
        bridge.kill();
        clock.start(&mut bridge).await;
        append_each(&bridge, 6..8).await;
        said(&bridge, "the system's clock jumped", 2).await;
        clock.set(0);
        append_each(&bridge, 8..10).await;
        said(&bridge, "the system's clock is back where it was", 1).await;
        clock.assert_true_stamps(&assert_complete(&bridge, 10).await);
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_began_with_a_wild_clock_loses_nothing_when_it_is_set() {
    for seconds in [MONTH, -1_700_000_000] {
        let clock = WallClock::new();
        let mut bridge = Setup::default().with("retention.age_max", "1d").prepare();
        clock.set(seconds);
        clock.start(&mut bridge).await;
        append_each(&bridge, 0..3).await;
        clock.set(0);
        append_each(&bridge, 3..5).await;
        said(&bridge, "the system's clock jumped", 1).await;
        append_each(&bridge, 5..6).await;
        let events = assert_complete(&bridge, 6).await;
        let at = |event: &Event| SystemTime::try_from(event.received_at.unwrap()).unwrap();
        assert!(events.is_sorted_by_key(at));
        assert!(bridge.terminate().await.success());
        clock.start(&mut bridge).await;
        assert_complete(&bridge, 6).await;
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stops_at_a_time_is_not_ended_by_a_wrong_clock() {
    let clock = WallClock::new();
    let mut bridge = Setup::default().prepare();
    clock.start(&mut bridge).await;
    append_each(&bridge, 0..1).await;
    clock.set(MONTH);
    said(&bridge, "the system's clock jumped", 1).await;
    let stop = SystemTime::now() + Duration::from_secs(3_600);
    let request = SubscribeRequest {
        stop: Some(StopPosition {
            position: Some(stop_position::Position::AtTime(stop.into())),
            max_events: 0,
        }),
        // Longer than a stream goes on after its stop time.
        progress_interval: Some(Duration::from_secs(1).try_into().unwrap()),
        ..history()
    };
    let opened = Received::subscribe(&mut bridge.client().await, request).await;
    let mut received = opened.unwrap();
    received
        .until(|notice| matches!(notice, Notice::Progress(_)))
        .await;
    append_each(&bridge, 1..2).await;
    received.until_events(2).await;
    drop(received);
    bridge.finish().await;
}
