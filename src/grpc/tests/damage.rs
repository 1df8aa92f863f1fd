//! Streams that come to damaged events: what they have got by then, how they end or go on, and from
//! where.

use std::ops::Range;

use super::*;
use crate::{
    log::Damaged,
    proto::{DamagedPolicy, SkipReason, Skipped},
};

const FIRST: u64 = 8;
const LAST: u64 = 12;

fn range(first: u64, last: u64) -> Damaged {
    Damaged {
        first: Sequence(first),
        last: Sequence(last),
    }
}

struct Damage {
    log: Arc<Scripted<memory::Memory>>,
    bridge: Bridge,
}

impl Damage {
    /// Twenty events that are on the disk only, of which some are damaged.
    async fn start(ranges: &[Damaged]) -> Self {
        // The bus begins at the head, so that history has to come from the log.
        Self::start_with_window(ranges, 21).await
    }

    /// The same, but from `window_first` on they are in memory too.
    async fn start_with_window(ranges: &[Damaged], window_first: u64) -> Self {
        let log = Arc::new(Scripted::new(
            memory::open(memory::Options::default()).unwrap(),
        ));
        let append = async |numbers: Range<u64>| {
            for number in numbers {
                let (id, user) = (format!("evt_{number}"), format!("usr_{number}"));
                let batch = fixtures::batch("app", &[(&id, "user.created", &user)]);
                log.append(batch).await.unwrap();
            }
        };
        append(1..window_first).await;
        let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
        append(window_first..21).await;
        log.damage(ranges);
        let anonymous = Credentials::anonymous();
        let bridge = Bridge::serve(Options::default(), anonymous, Arc::clone(&log) as _, bus).await;
        Self { log, bridge }
    }

    fn request(&self, policy: DamagedPolicy) -> SubscribeRequest {
        SubscribeRequest {
            start: earliest(),
            stop: head(),
            on_damaged: policy.into(),
            ..Default::default()
        }
    }

    fn after(&self, sequence: u64) -> Option<StartPosition> {
        from(Start::AfterCursor(self.bridge.cursor(sequence)))
    }

    fn upto(&self, sequence: u64) -> Option<StopPosition> {
        until(Stop::AtCursor(self.bridge.cursor(sequence)))
    }
}

/// Checks the status that names the damaged range. Returns its cursors: before, and after.
fn damaged(status: &Status) -> (String, String) {
    assert_eq!(status.code(), Code::DataLoss, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "LOG_DAMAGED");
    assert_eq!(info.metadata["first_sequence"], FIRST.to_string());
    assert_eq!(info.metadata["last_sequence"], LAST.to_string());
    assert!(details.retry_info().is_none(), "a retry does not help");
    assert!(
        status.message().contains("events 8 to 12"),
        "{}",
        status.message()
    );
    (
        info.metadata["cursor"].clone(),
        info.metadata["after_cursor"].clone(),
    )
}

fn skips(collected: &Collected) -> Vec<(u64, u64)> {
    assert!(collected.end.is_none(), "{:?}", collected.end);
    let skipped = |notice: &Notice| match notice {
        Notice::Skipped(skipped) => {
            assert_eq!(skipped.reason(), SkipReason::Damaged);
            Some((skipped.first_sequence, skipped.last_sequence))
        }
        _ => None,
    };
    collected.notices.iter().filter_map(skipped).collect()
}

fn numbers(ranges: &[std::ops::RangeInclusive<u64>]) -> Vec<u64> {
    ranges.iter().cloned().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_gets_everything_before_the_damage_and_then_its_range() {
    let damage = Damage::start(&[range(FIRST, LAST)]).await;
    for policy in [DamagedPolicy::Unspecified, DamagedPolicy::Fail] {
        let collected = damage.bridge.collect(damage.request(policy)).await;
        assert_eq!(collected.sequences(), numbers(&[1..=7]));
        let (before, after) = damaged(&collected.end.unwrap());
        assert_eq!(before, damage.bridge.cursor(7));
        assert_eq!(collected.cursors.last(), Some(&before));

        // A retry finds the same, and the other cursor leads past it.
        let again = SubscribeRequest {
            start: from(Start::AfterCursor(before.clone())),
            ..damage.request(policy)
        };
        let again = damage.bridge.collect(again).await;
        assert!(again.events.is_empty());
        assert_eq!(damaged(&again.end.unwrap()).0, before);
        let rest = SubscribeRequest {
            start: from(Start::AfterCursor(after)),
            ..damage.request(policy)
        };
        let rest = damage.bridge.collect(rest).await;
        assert_eq!(rest.sequences(), numbers(&[13..=20]));
        assert!(rest.end.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_skip_the_damage_and_is_told_its_range() {
    let damage = Damage::start(&[range(1, 2), range(FIRST, LAST), range(19, 20)]).await;
    let skipping = damage.request(DamagedPolicy::Skip);
    let collected = damage.bridge.collect(skipping.clone()).await;
    assert_eq!(collected.sequences(), numbers(&[3..=7, 13..=18]));
    assert_eq!(skips(&collected), [(1, 2), (FIRST, LAST), (19, 20)]);
    assert_eq!(collected.cursors.last(), Some(&damage.bridge.cursor(20)));

    // Damage at the end does not keep a stream from becoming live.
    let endless = SubscribeRequest {
        stop: max_events(12),
        ..skipping
    };
    let mut stream = damage.bridge.subscribe(endless).await.unwrap();
    while !matches!(stream.next().await.notice, Some(Notice::CaughtUp(_))) {}
    damage.bridge.append(21, 21).await;
    assert_eq!(stream.collect().await.sequences(), [21]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_events_that_are_in_memory_are_delivered() {
    // The window begins in the middle of the range.
    let damage = Damage::start_with_window(&[range(FIRST, LAST)], 11).await;
    let collected = damage
        .bridge
        .collect(damage.request(DamagedPolicy::Skip))
        .await;
    assert_eq!(skips(&collected), [(FIRST, 10)]);
    assert_eq!(collected.sequences(), numbers(&[1..=7, 11..=20]));
    let failing = damage.request(DamagedPolicy::Fail);
    let failed = damage.bridge.collect(failing.clone()).await;
    let details = failed.end.unwrap().get_error_details();
    let after = details.error_info().unwrap().metadata["after_cursor"].clone();
    assert_eq!(after, damage.bridge.cursor(10));
    let rest = SubscribeRequest {
        start: from(Start::AfterCursor(after)),
        ..failing
    };
    let rest = damage.bridge.collect(rest).await;
    assert_eq!(rest.sequences(), numbers(&[11..=20]));
    assert!(rest.end.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filtered_stream_is_as_far_as_the_damage_when_it_ends() {
    let damage = Damage::start(&[range(FIRST, LAST)]).await;
    let filter = Filter {
        user_ids: vec!["usr_3".into(), "usr_10".into()],
        ..Filter::default()
    };
    let request = SubscribeRequest {
        filter: Some(filter.clone()),
        ..damage.request(DamagedPolicy::Fail)
    };
    let collected = damage.bridge.collect(request).await;
    assert_eq!(collected.sequences(), [3]);
    let (before, _) = damaged(&collected.end.unwrap());
    assert_eq!(before, damage.bridge.cursor(7));
    assert_eq!(collected.cursors.last(), Some(&before));
    // Nobody knows whether a damaged event matched.
    let request = SubscribeRequest {
        filter: Some(filter),
        ..damage.request(DamagedPolicy::Skip)
    };
    let collected = damage.bridge.collect(request).await;
    assert_eq!(skips(&collected), [(FIRST, LAST)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_among_damaged_events_skips_only_the_rest_of_them() {
    let damage = Damage::start(&[range(FIRST, LAST)]).await;
    for (place, skipped) in [
        (7, Some((8, 12))),
        (8, Some((9, 12))),
        (11, Some((12, 12))),
        (12, None),
    ] {
        let start = |policy| SubscribeRequest {
            start: damage.after(place),
            ..damage.request(policy)
        };
        let skipping = damage.bridge.collect(start(DamagedPolicy::Skip)).await;
        assert_eq!(skips(&skipping), Vec::from_iter(skipped), "{place}");
        assert_eq!(skipping.sequences(), numbers(&[13..=20]), "{place}");
        let failing = damage.bridge.collect(start(DamagedPolicy::Fail)).await;
        match skipped {
            Some(_) => {
                let (before, after) = damaged(&failing.end.unwrap());
                assert_eq!(before, damage.bridge.cursor(place));
                assert_eq!(after, damage.bridge.cursor(LAST));
            }
            None => assert_eq!(failing.sequences(), numbers(&[13..=20])),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_leads_among_damaged_events_starts_before_them() {
    let damage = Damage::start(&[]).await;
    let all = damage
        .bridge
        .collect(damage.request(DamagedPolicy::Fail))
        .await;
    let at = all.events[9].received_at.unwrap();
    damage.log.damage(&[range(FIRST, LAST)]);
    let request = |policy| SubscribeRequest {
        start: from(Start::AtTime(at)),
        ..damage.request(policy)
    };
    let failing = damage.bridge.collect(request(DamagedPolicy::Fail)).await;
    assert!(failing.events.is_empty());
    let (before, after) = damaged(&failing.end.unwrap());
    for (cursor, place) in [(before, FIRST - 1), (after, LAST)] {
        let cursor: Cursor = cursor.parse().unwrap();
        let at = UnixMicros(at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000);
        assert_eq!(
            cursor.not_before,
            Some(at),
            "none was seen that is late enough"
        );
        let plain = Cursor {
            not_before: None,
            ..cursor
        };
        assert_eq!(plain.to_string(), damage.bridge.cursor(place));
    }
    let skipping = damage.bridge.collect(request(DamagedPolicy::Skip)).await;
    assert_eq!(skips(&skipping), [(FIRST, LAST)]);
    assert_eq!(skipping.sequences(), numbers(&[13..=20]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_among_damaged_events_is_reached_or_not() {
    let damage = Damage::start(&[range(FIRST, LAST)]).await;
    for stop in 6..=14 {
        let request = |policy| SubscribeRequest {
            stop: damage.upto(stop),
            ..damage.request(policy)
        };
        let before = numbers(&[1..=stop.min(FIRST - 1)]);
        let after = numbers(&[LAST + 1..=stop]);
        let failing = damage.bridge.collect(request(DamagedPolicy::Fail)).await;
        assert_eq!(failing.sequences(), before, "{stop}");
        let skipping = damage.bridge.collect(request(DamagedPolicy::Skip)).await;
        assert_eq!(skipping.sequences(), [before, after].concat(), "{stop}");
        assert_eq!(skipping.cursors.last(), Some(&damage.bridge.cursor(stop)));
        if stop < FIRST {
            assert!(
                failing.end.is_none() && skips(&skipping).is_empty(),
                "{stop}"
            );
        } else {
            damaged(&failing.end.unwrap());
            assert_eq!(skips(&skipping), [(FIRST, stop.min(LAST))], "{stop}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_events_counts_those_that_are_sent() {
    let damage = Damage::start(&[range(FIRST, LAST)]).await;
    let request = |count, policy| SubscribeRequest {
        stop: max_events(count),
        ..damage.request(policy)
    };
    let enough = damage.bridge.collect(request(7, DamagedPolicy::Fail)).await;
    assert!(enough.end.is_none());
    let one_more = damage.bridge.collect(request(8, DamagedPolicy::Fail)).await;
    assert_eq!(one_more.sequences(), numbers(&[1..=7]));
    damaged(&one_more.end.unwrap());
    let skipping = damage.bridge.collect(request(8, DamagedPolicy::Skip)).await;
    assert_eq!(skipping.sequences(), numbers(&[1..=7, 13..=13]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_names_other_events_does_not_keep_a_stream_busy_for_ever() {
    let damage = Damage::start(&[]).await;
    let error = ReadError::Damaged(range(1, 3));
    damage.log.script_reads(Script::Fails(error));
    let request = SubscribeRequest {
        start: damage.after(5),
        ..damage.request(DamagedPolicy::Skip)
    };
    let collected = damage.bridge.collect(request).await;
    assert_eq!(reason(&collected.end.unwrap()), "LOG_UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_for_retention_has_its_own_reason() {
    let bridge = Bridge::start_forgetful().await;
    bridge.append(1, 100).await;
    let request = SubscribeRequest {
        start: from(Start::AfterCursor(bridge.cursor(1))),
        stop: head(),
        on_expired: ExpiredCursorPolicy::Earliest.into(),
        ..Default::default()
    };
    let collected = bridge.collect(request).await;
    let Some(Notice::Skipped(Skipped { reason, .. })) = collected.notices.get(1) else {
        panic!("{:?}", collected.notices)
    };
    assert_eq!(*reason, i32::from(SkipReason::Expired));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_does_not_begin_is_counted_once() {
    let log_options = memory::Options {
        retention_bytes: 4 * 1024,
        ..memory::Options::default()
    };
    let bridge = Bridge::start_with(Options::default(), bus::Options::default(), log_options).await;
    bridge.append(1, 100).await;
    let expired = SubscribeRequest {
        start: from(Start::AfterCursor(bridge.cursor(1))),
        ..Default::default()
    };
    let status = bridge.subscribe(expired).await.err().unwrap();
    assert_eq!(reason(&status), "CURSOR_EXPIRED");
    let page = bridge.metrics.render();
    let ended: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("prelude_bridge_streams_ended_total"))
        .collect();
    assert_eq!(
        ended,
        [r#"prelude_bridge_streams_ended_total{reason="CURSOR_EXPIRED"} 1"#]
    );
}
