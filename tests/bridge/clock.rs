//! A wrong clock of the machine: nothing is removed or forgotten because of it, a short jump gets
//! into no event, and all of it is logged. And what a right clock shows: that a batch is old.
//!
//! A small library that is loaded before the others sets the wall clock of one process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use prelude_bridge::{
    client,
    proto::{Event, GetRangeRequest, SubscribeRequest, stop_position, subscribe_response::Notice},
    simulator::{AppOptions, Options, Simulator},
};
use tempfile::TempDir;
use tonic::{Code, Request};

use crate::{
    access::token,
    simulated_sources::of_mixed,
    sources::mixed,
    support::{
        APP, Bridge, Setup, batch,
        certificates::Authority,
        dated, item, key, reader,
        sender::eventually,
        stream::{Received, StopPosition, history},
    },
    tls::Secured as _,
};

const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;
/// 34.7 days: more than events are kept, and more than ids are.
const MONTH: i64 = 2_998_080;
/// To some time in 1970 or soon after.
const EMPTY_BATTERY: i64 = -1_700_000_000;
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
        let command = self.command(bridge);
        bridge.run(command).await;
    }

    fn command(&self, bridge: &Bridge) -> Command {
        let mut command = bridge.command_elsewhere();
        command
            .env("LD_PRELOAD", self.path("wall_clock.so"))
            .env("WALL_CLOCK_OFFSET_FILE", self.path("offset"));
        command
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
    bridge.counts("prelude_bridge_clock_jumps_total", 2.0).await;
    clock.assert_true_stamps(&assert_complete(&bridge, 13).await);
    assert!(bridge.terminate().await.success());
    clock.start(&mut bridge).await;
    clock.assert_true_stamps(&assert_complete(&bridge, 13).await);
    bridge.finish().await;
}

/// The last retry of Prelude comes two weeks after the first attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_comes_late_and_again_for_two_weeks_is_in_the_log_once() {
    let clock = WallClock::new();
    let mut bridge = mixed().prepare();
    let simulator = Simulator::start(of_mixed()).await.unwrap();
    let sources = [APP, "calls", "messages"];
    let bodies = sources.map(|id| simulator.batch(id, 1, &[]).unwrap());
    // Sent today, accepted on day 3, and repeated because the answers are lost.
    for (day, accepted) in [(3, 1), (9, 0), (14, 0)] {
        clock.set(day * DAY);
        clock.start(&mut bridge).await;
        for (id, body) in sources.iter().zip(&bodies) {
            let url = format!("http://{}/webhooks/{id}", bridge.addresses.webhook);
            let answer = simulator.post(&url, body).await.unwrap();
            let said = format!(r#"{{"accepted":{accepted},"duplicates":{}}}"#, 1 - accepted);
            assert_eq!(
                (answer.status.as_u16(), &*answer.body),
                (200, said.as_bytes()),
                "{id} on day {day}"
            );
        }
        assert_eq!(bridge.head().await, 3);
        assert!(bridge.terminate().await.success());
    }
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
async fn a_clock_that_is_wrong_for_a_moment_by_whatever_costs_nothing() {
    for (seconds, direction) in [
        (HOUR, "forwards"),
        (DAY, "forwards"),
        (-DAY, "back"),
        (-MONTH, "back"),
        (EMPTY_BATTERY, "back"),
    ] {
        jumps_and_returns(seconds, direction).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_wild_clock_costs_nothing() {
    for seconds in [HOUR, -HOUR, DAY, -DAY, MONTH, -MONTH, EMPTY_BATTERY] {
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
    for seconds in [HOUR, -HOUR, DAY, -DAY, MONTH, -MONTH, EMPTY_BATTERY] {
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

/// How many batches were doubtful for this reason.
async fn doubtful(bridge: &Bridge, reason: &str) -> f64 {
    let name = "prelude_bridge_webhook_doubtful_batches_total";
    let sample = format!(r#"{name}{{app="{APP}",reason="{reason}"}}"#);
    bridge.metric(&sample).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_recognised_by_the_log_that_had_it_and_said_by_one_that_is_new() {
    let clock = WallClock::new();
    let captured = batch(APP, &items(0..3));
    let mut first = Setup::default().prepare();
    clock.start(&mut first).await;
    assert_eq!(first.post(captured.as_bytes()).await.status, 200);
    assert_eq!(doubtful(&first, "first_of_app").await, 1.0);
    assert!(first.stderr().contains("in a log that was empty"));
    let copy = first.post(captured.as_bytes()).await;
    assert_eq!(copy.text(), r#"{"accepted":0,"duplicates":3}"#);
    assert!(first.terminate().await.success());

    for days in [16, 31] {
        // Another bridge, which has never had it, or one that lost its data.
        let mut second = Setup::default().prepare();
        clock.set(days * DAY);
        clock.start(&mut second).await;
        // It has forgotten nothing, so the copy is none of its events; it says what it cannot know.
        assert_eq!(second.post(captured.as_bytes()).await.status, 200);
        assert_eq!(doubtful(&second, "new_log").await, 1.0);
        assert_eq!(doubtful(&second, "first_of_app").await, 1.0);
        said(&second, "old batch accepted", 1).await;
        second.finish().await;

        // The first one knows it for as long as no time passes but by the wall clock.
        clock.start(&mut first).await;
        let copy = first.post(captured.as_bytes()).await;
        assert_eq!(copy.text(), r#"{"accepted":0,"duplicates":3}"#);
        assert!(first.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_date_of_a_batch_says_whether_it_is_old() {
    let bridge = Setup::default().start().await;
    let now = jiff::Timestamp::now();
    let aged = |id: &str, age: i64| {
        let at = now - jiff::SignedDuration::from_secs(age);
        dated(id, "user.created", "usr_1", &at.to_string())
    };
    let edge = 15 * DAY;
    for (n, ages) in [
        vec![edge - 600],
        vec![edge + 1],
        vec![2 * MONTH, edge - 600],
        vec![2 * MONTH, edge + 1],
        vec![-2 * DAY],
    ]
    .into_iter()
    .enumerate()
    {
        let items = ages.iter().enumerate();
        let items: Vec<String> = items
            .map(|(m, &age)| aged(&format!("{n}_{m}"), age))
            .collect();
        bridge.append(&items).await;
    }
    for (id, date) in ["yesterday", "0000-01-01T00:00:00Z"].iter().enumerate() {
        let undated = dated(&format!("undated_{id}"), "user.created", "usr_1", date);
        bridge.append(&[undated]).await;
    }
    for (reason, count) in [
        ("new_log", 2.0),
        ("mixed", 1.0),
        ("future", 1.0),
        ("undated", 2.0),
    ] {
        assert_eq!(doubtful(&bridge, reason).await, count, "{reason}");
    }
    bridge.finish().await;
}

/// What a caller with this token is told of the range.
async fn range_with(bridge: &Bridge, token: &str) -> Result<(), (Code, String)> {
    let mut request = Request::new(GetRangeRequest {});
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let answer = bridge.client().await.get_range(request).await;
    let error = |status: tonic::Status| (status.code(), crate::support::stream::reason(&status).0);
    answer.map(|_| ()).map_err(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expired_by_a_wrong_clock_is_valid_again_when_it_is_right() {
    let clock = WallClock::new();
    let mut bridge = Setup::default().prepare();
    let token = token(&bridge.data_dir(), &["billing", "--expires-in", "1h"]);
    clock.start(&mut bridge).await;
    append_each(&bridge, 0..1).await;
    for (seconds, answer) in [
        (0, Ok(())),
        (
            MONTH,
            Err((Code::Unauthenticated, "TOKEN_EXPIRED".to_owned())),
        ),
        (0, Ok(())),
        (EMPTY_BATTERY, Ok(())),
        (-MONTH, Ok(())),
        (0, Ok(())),
    ] {
        clock.set(seconds);
        assert_eq!(range_with(&bridge, &token).await, answer, "{seconds}");
    }
    // A start with it changes nothing in the file.
    assert!(bridge.terminate().await.success());
    clock.set(MONTH);
    clock.start(&mut bridge).await;
    assert!(range_with(&bridge, &token).await.is_err());
    clock.set(0);
    assert_eq!(range_with(&bridge, &token).await, Ok(()));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_keys_that_seem_too_old_by_a_wrong_clock_are_used_again_when_it_is_right() {
    let options = Options {
        apps: vec![AppOptions::with_keys(APP, vec![key("test-key-2048-a")])],
        ..Options::default()
    };
    let simulator = Simulator::start(options).await.unwrap();
    let clock = WallClock::new();
    let mut bridge = Setup::default()
        .jwks_url(&simulator.jwks_url(APP))
        .prepare();
    clock.start(&mut bridge).await;
    append_each(&bridge, 0..1).await;
    simulator.set_jwks_up(APP, false).unwrap();
    // While it runs, the age of keys is counted by the monotonic clock.
    for seconds in [MONTH, EMPTY_BATTERY, 0] {
        clock.set(seconds);
        let again = bridge.post(batch(APP, &items(0..1)).as_bytes()).await;
        assert_eq!(again.status, 200, "{seconds}");
    }
    assert!(bridge.terminate().await.success());
    clock.set(MONTH);
    let command = clock.command(&bridge);
    bridge.run_until("listening", command).await;
    let refused = bridge.post(batch(APP, &items(0..1)).as_bytes()).await;
    assert_eq!(refused.status, 503);
    assert!(
        refused.text().contains("keys_unavailable"),
        "{}",
        refused.text()
    );
    assert!(bridge.terminate().await.success());
    for seconds in [EMPTY_BATTERY, 0] {
        clock.set(seconds);
        clock.start(&mut bridge).await;
        let again = bridge.post(batch(APP, &items(0..1)).as_bytes()).await;
        assert_eq!(again.text(), r#"{"accepted":0,"duplicates":1}"#);
        assert!(bridge.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expired_by_a_wrong_clock_is_valid_again_when_it_is_right() {
    let authority = Authority::new();
    let setup = Setup::default()
        .secured("grpc", &authority.server("server"))
        .asking(&authority);
    let clock = WallClock::new();
    let mut bridge = setup.prepare();
    clock.start(&mut bridge).await;
    let issued = authority.brief_client("billing", DAY);
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let range = async || {
        let options = client::Options::new(format!("https://{}", bridge.addresses.grpc))
            .ca_certificate(read(&authority.certificate()))
            .client_certificate(read(&issued.certificate), read(&issued.key));
        let client = client::Client::connect(&options).await.ok()?;
        client.range().await.ok()
    };
    // While a certificate counts as expired, connections are refused.
    for (seconds, is_valid) in [
        (0, true),
        (MONTH, false),
        (0, true),
        (-MONTH, true),
        (0, true),
    ] {
        clock.set(seconds);
        assert_eq!(range().await.is_some(), is_valid, "{seconds}");
    }
    assert!(bridge.terminate().await.success());
}
