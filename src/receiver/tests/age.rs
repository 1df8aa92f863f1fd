//! Batches that are too old to be recognised as repetitions.

use super::*;
use crate::{event::UnixMicros, log::EarliestNow};

const DAY: i64 = 24 * 60 * 60;

/// A batch of events that happened so many seconds ago.
fn aged(ages: &[i64]) -> String {
    let items = ages.iter().enumerate().map(|(index, age)| {
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(*age);
        format!(r#"{{"id":"evt_{index}_{age}","type":"user.deleted","payload":{{"deleted_at":"{at}"}}}}"#)
    });
    let items: Vec<String> = items.collect();
    format!(r#"{{"app_id":"{APP}","events":[{}]}}"#, items.join(","))
}

async fn send(bridge: &Bridge, body: &str) -> Answer {
    bridge.ask(delivery("/webhooks/54e9ujn", body)).await
}

impl Bridge {
    /// The clock has kept pace for long enough; `behind` is by how much it may be ahead.
    fn confirm_clock(&self, behind: i64) {
        let now = self.log.now().0;
        self.log.set_earliest_now(EarliestNow {
            at: UnixMicros(now - behind * 1_000_000),
            is_confirmed: true,
        });
    }

    #[track_caller]
    fn assert_doubtful(&self, reason: &str, count: u64) {
        let page = self.metrics.render();
        let line =
            format!(r#"webhook_doubtful_batches_total{{app="{APP}",reason="{reason}"}} {count}"#);
        assert!(page.contains(&line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn a_batch_in_which_every_event_is_old_is_refused() {
    let bridge = Bridge::start().await;
    bridge.assert_doubtful("refused", 0);
    bridge.log.forget_ids();
    bridge.confirm_clock(0);
    for old in [&[15 * DAY + 60][..], &[16 * DAY, 31 * DAY], &[800 * DAY]] {
        send(&bridge, &aged(old))
            .await
            .assert_refused(422, "batch_too_old");
    }
    assert_eq!(bridge.events(), 0);
    bridge.assert_doubtful("refused", 3);
    // A retry after two weeks is not.
    send(&bridge, &aged(&[15 * DAY - 60]))
        .await
        .assert_accepted(1, 0);
}

#[tokio::test]
async fn an_old_batch_of_which_every_id_is_remembered_is_a_repetition() {
    let bridge = Bridge::start().await;
    bridge.confirm_clock(0);
    let old = aged(&[16 * DAY, 20 * DAY]);
    send(&bridge, &old).await.assert_accepted(2, 0);
    bridge.log.forget_ids();
    send(&bridge, &old).await.assert_accepted(0, 2);
    send(&bridge, &aged(&[16 * DAY]))
        .await
        .assert_accepted(0, 1);
    // One that is not known makes it an old batch, whatever else is in it, …
    send(&bridge, &aged(&[16 * DAY, 21 * DAY]))
        .await
        .assert_refused(422, "batch_too_old");
    bridge.assert_doubtful("refused", 1);
    // … and so does a log that cannot tell; but then not for good.
    bridge
        .log
        .script_appends(Script::Fails(log::Error::NoSpace));
    let answer = send(&bridge, &old).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    bridge.log.script_appends(Script::Works);
    // Not even the clock makes a repetition wait.
    bridge.log.set_earliest_now(EarliestNow {
        at: bridge.log.now(),
        is_confirmed: false,
    });
    send(&bridge, &old).await.assert_accepted(0, 2);
    assert_eq!(bridge.events(), 2);
    bridge.assert_doubtful("refused", 1);
}

#[tokio::test]
async fn an_old_batch_is_to_be_retried_while_the_clock_may_be_wrong() {
    let bridge = Bridge::start().await;
    bridge.log.forget_ids();
    // The clock has not kept pace for a day yet.
    send(&bridge, &aged(&[16 * DAY]))
        .await
        .assert_refused(503, "clock_unconfirmed");
    bridge.assert_doubtful("refused", 1);
    // The clock was set 20 days forwards, or the machine was off for so long.
    bridge.confirm_clock(20 * DAY);
    send(&bridge, &aged(&[16 * DAY]))
        .await
        .assert_accepted(1, 0);
    bridge.assert_doubtful("clock", 1);
    send(&bridge, &aged(&[36 * DAY]))
        .await
        .assert_refused(422, "batch_too_old");
}

#[tokio::test]
async fn a_log_that_has_forgotten_nothing_accepts_old_batches_and_recognises_copies() {
    let bridge = Bridge::start().await;
    bridge.confirm_clock(0);
    let body = aged(&[400 * DAY]);
    send(&bridge, &body).await.assert_accepted(1, 0);
    send(&bridge, &body).await.assert_accepted(0, 1);
    send(&bridge, &aged(&[16 * DAY]))
        .await
        .assert_accepted(1, 0);
    bridge.assert_doubtful("new_log", 2);
    bridge.assert_doubtful("refused", 0);
}

#[tokio::test]
async fn old_batches_are_accepted_where_the_operator_says_so() {
    let age = AgeLimit {
        is_lifted: true,
        ..Options::default().age
    };
    let options = Options {
        age,
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let body = aged(&[400 * DAY, 401 * DAY]);
    send(&bridge, &body).await.assert_accepted(2, 0);
    // A repetition adds nothing, and is not counted.
    send(&bridge, &body).await.assert_accepted(0, 2);
    bridge.assert_doubtful("old", 1);
    bridge.assert_doubtful("refused", 0);
}

#[tokio::test]
async fn what_cannot_be_judged_is_accepted_and_counted() {
    let bridge = Bridge::start().await;
    bridge.confirm_clock(0);
    bridge.log.forget_ids();
    send(&bridge, EMPTY).await.assert_accepted(0, 0);
    bridge.assert_doubtful("first_of_app", 0);
    send(&bridge, TWO).await.assert_accepted(2, 0);
    bridge.assert_doubtful("undated", 1);
    bridge.assert_doubtful("first_of_app", 1);
    let recent_and_old = aged(&[60, 900 * DAY]);
    send(&bridge, &recent_and_old).await.assert_accepted(2, 0);
    bridge.assert_doubtful("mixed", 1);
    send(&bridge, &aged(&[-2 * DAY]))
        .await
        .assert_accepted(1, 0);
    bridge.assert_doubtful("future", 1);
    for date in [
        "9999-12-31T23:59:59Z",
        "2016-12-31T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "2016-12-31T23:59:59.1234567890Z",
    ] {
        let body = format!(
            r#"{{"app_id":"{APP}","events":[{{"id":"{date}","type":"user.deleted","payload":{{"deleted_at":"{date}"}}}}]}}"#
        );
        let answer = send(&bridge, &body).await;
        if date.starts_with("2016") {
            answer.assert_refused(422, "batch_too_old");
        } else {
            answer.assert_accepted(1, 0);
        }
    }
    bridge.assert_doubtful("future", 2);
    bridge.assert_doubtful("undated", 2);
    bridge.assert_doubtful("first_of_app", 1);
}
