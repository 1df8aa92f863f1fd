//! Sources whose deliveries are single events, beside an app. All have the same key.

use super::*;
use crate::{event::UnixMicros, log::EarliestNow};

const BOTH: [&str; 3] = [APP, "verify", "notify"];

const EVENT: &str = r#"{"id":"evt_1","type":"verify.attempt","payload":{"id":"att_1"}}"#;
const MESSAGE: &str =
    r#"{"id":"evt_1","type":"transactional.message.created","payload":{"fee":{"amount":"0.009"}}}"#;

async fn bridge() -> Bridge {
    Bridge::start_with(Options::default(), &BOTH).await
}

async fn get(bridge: &Bridge, target: &str) -> Answer {
    let request = format!("GET {target} HTTP/1.1\r\nHost: bridge\r\n\r\n");
    bridge.ask(request).await
}

#[tokio::test]
async fn a_single_event_is_accepted_once_at_the_path_of_its_source() {
    let bridge = bridge().await;
    for (path, body) in [("/webhooks/verify", EVENT), ("/webhooks/notify", MESSAGE)] {
        bridge.ask(delivery(path, body)).await.assert_accepted(1, 0);
        // A retry has another signature, and here also white space.
        let again = format!(" {body}\n");
        bridge
            .ask(delivery(path, &again))
            .await
            .assert_accepted(0, 1);
    }
    // One id at two sources is two events.
    assert_eq!(bridge.events(), 2);
    let chunks = chunked_delivery("/webhooks/verify", &EVENT.replace("evt_1", "evt_2"), 7);
    bridge.ask(chunks).await.assert_accepted(1, 0);
}

#[tokio::test]
async fn a_body_for_another_path_says_where_it_belongs() {
    let bridge = bridge().await;
    for (path, body, status, code) in [
        ("/webhooks/verify", TWO, 422, "body_is_batch"),
        ("/webhooks/notify", EMPTY, 422, "body_is_batch"),
        ("/webhooks/54e9ujn", EVENT, 422, "body_is_single_event"),
        ("/webhooks/verify", MESSAGE, 422, "event_of_other_product"),
        ("/webhooks/notify", EVENT, 422, "event_of_other_product"),
        ("/webhooks/verify", "[]", 422, "body_not_a_batch"),
        ("/webhooks/verify", "{", 422, "body_not_json"),
        (
            "/webhooks/verify",
            r#"{"id":"a","id":"b"}"#,
            422,
            "body_ambiguous",
        ),
        // Without an id in the path only batches are taken: there is one app.
        ("/webhooks", EVENT, 422, "body_is_single_event"),
        (
            "/webhooks",
            r#"{"app_id":"verify","events":[]}"#,
            404,
            "path_without_source",
        ),
        (
            "/webhooks",
            r#"{"app_id":"verify","type":"verify.attempt"}"#,
            404,
            "path_without_source",
        ),
    ] {
        let answer = bridge.ask(delivery(path, body)).await;
        answer.assert_refused(status, code);
    }
    let said = bridge.ask(delivery("/webhooks/verify", TWO)).await.body;
    assert!(said.contains("batch of Prelude Auth"), "{said}");
    let said = bridge.ask(delivery("/webhooks/54e9ujn", EVENT)).await.body;
    assert!(said.contains("callback_url"), "{said}");
    assert_eq!(bridge.events(), 0);
    bridge
        .ask(delivery("/webhooks", TWO))
        .await
        .assert_accepted(2, 0);
    let alone = Bridge::start_with(Options::default(), &["verify"]).await;
    let answer = alone.ask(delivery("/webhooks", EVENT)).await;
    answer.assert_refused(401, "signature_unverifiable");
    assert!(answer.body.contains("/webhooks/{id}"), "{answer:?}");
}

#[tokio::test]
async fn a_source_without_a_challenge_says_so() {
    let bridge = bridge().await;
    let query = "event=activate&verification_token=a+token+%26%20more&challenge=7&app_id=";
    for target in [
        "/webhooks/verify".to_owned(),
        format!("/webhooks/notify?{query}notify"),
        format!("/webhooks/verify?{query}{APP}"),
        format!("/webhooks?{query}verify"),
    ] {
        let answer = get(&bridge, &target).await;
        answer.assert_refused(405, "challenge_unexpected");
        assert_eq!(answer.header("allow"), Some("options, post"), "{target}");
        assert!(
            answer.body.contains("no activation challenge"),
            "{answer:?}"
        );
    }
    let answer = get(&bridge, &format!("/webhooks/{APP}?{query}{APP}")).await;
    assert_eq!(answer.body, r#"{"challenge":7}"#);
    // The app of the path has the last word.
    let answer = get(&bridge, &format!("/webhooks/{APP}?{query}verify")).await;
    answer.assert_refused(405, "challenge_unexpected");
    get(&bridge, "/webhooks/unknown")
        .await
        .assert_refused(400, "challenge_malformed");
}

#[tokio::test]
async fn the_limits_of_deliveries_hold_for_single_events() {
    let options = Options {
        body_bytes_max: EVENT.len(),
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &BOTH).await;
    let path = "/webhooks/verify";
    bridge
        .ask(delivery(path, EVENT))
        .await
        .assert_accepted(1, 0);
    let large = format!("{EVENT} ");
    bridge
        .ask(delivery(path, &large))
        .await
        .assert_refused(413, "body_too_large");
    let unsigned = post_with(path, &["Content-Type: application/json"], EVENT.as_bytes());
    bridge
        .ask(unsigned)
        .await
        .assert_refused(401, "signature_missing");
    let signature = format!("X-Webhook-Signature: {}", signature(b"another body"));
    let forged = post_with(path, &[&signature], EVENT.as_bytes());
    bridge
        .ask(forged)
        .await
        .assert_refused(401, "signature_mismatch");
    let text = post_with(
        path,
        &["Content-Type: text/plain", &signature],
        EVENT.as_bytes(),
    );
    bridge
        .ask(text)
        .await
        .assert_refused(415, "content_type_unsupported");
}

#[tokio::test]
async fn a_single_event_that_is_too_old_is_refused_like_a_batch() {
    const DAY: i64 = 24 * 60 * 60;
    let bridge = bridge().await;
    let aged = |id: &str, seconds: i64| {
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
        let body = format!(r#"{{"id":"{id}","type":"verify.attempt","created_at":"{at}"}}"#);
        delivery("/webhooks/verify", &body)
    };
    // A log that has forgotten no id recognises every copy.
    bridge.ask(aged("a", 16 * DAY)).await.assert_accepted(1, 0);
    bridge.log.forget_ids();
    bridge.log.set_earliest_now(EarliestNow {
        at: UnixMicros(bridge.log.now().0),
        is_confirmed: true,
    });
    bridge
        .ask(aged("b", 16 * DAY))
        .await
        .assert_refused(422, "batch_too_old");
    bridge
        .ask(aged("c", 15 * DAY - 60))
        .await
        .assert_accepted(1, 0);
    let page = bridge.metrics.render();
    let line = r#"webhook_doubtful_batches_total{app="verify",reason="refused"} 1"#;
    assert!(page.contains(line), "{page}");
}
