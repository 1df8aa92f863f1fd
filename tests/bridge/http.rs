//! The webhook port from outside: every answer of its table, against the built program.

use std::time::{Duration, Instant};

use prelude_bridge::simulator::keys::{Salt, SignatureStyle};
use serde_json::Value;

use crate::support::{
    APP, Answer, Bridge, EMAIL, KEY, OTHER_APP, OTHER_KEY, PHONE, Request, Setup, TOKEN, batch,
    item, sender::eventually, sign,
};

const SIGNATURE: &str = "X-Webhook-Signature";
const MIB: usize = 1024 * 1024;

/// With everything in its log that it could ever write.
async fn bridge() -> Bridge {
    Setup::default().with("log_level", "trace").start().await
}

fn path() -> String {
    format!("/webhooks/{APP}")
}

fn some_batch() -> String {
    batch(APP, &[item("evt_1", "user.created", "usr_1")])
}

async fn send(bridge: &Bridge, request: Request) -> Answer {
    request.send(bridge.addresses.webhook).await.unwrap()
}

#[track_caller]
fn assert_answered(answer: &Answer, body: &str) {
    assert_eq!((answer.status, answer.text().as_str()), (200, body));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("retry-after"), None);
}

/// One shape for all refusals, and nothing in it that the caller wrote.
#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str) {
    let text = answer.text();
    assert_eq!(answer.status, status, "{text}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{text}");
    let error = body["error"].as_object().unwrap();
    assert_eq!(error.len(), 3, "{text}");
    assert_eq!(error["code"], code, "{text}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    let is_retryable = matches!(status, 408 | 429 | 503);
    assert_eq!(error["retryable"], Value::Bool(is_retryable), "{text}");
    let retry_after = answer.header("retry-after").map(|after| after.parse());
    match retry_after {
        Some(seconds) => assert!(is_retryable && (1..=60).contains(&seconds.unwrap())),
        None => assert!(!is_retryable, "{text}"),
    }
    assert_eq!(
        answer.header("allow"),
        (status == 405).then_some("GET, HEAD, OPTIONS, POST")
    );
    for canary in [TOKEN, PHONE, EMAIL] {
        assert!(!text.contains(canary), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_challenge_is_echoed_digit_for_digit() {
    let bridge = bridge().await;
    let encoded = format!("/webhooks/%{:02x}{}", APP.as_bytes()[0], &APP[1..]);
    for path in [path(), "/webhooks".to_owned(), encoded] {
        for challenge in [
            "1234567890",
            "0",
            "-7",
            "9007199254740993",
            "18446744073709551617",
        ] {
            let target = format!(
                "{path}?event=activate&app_id={APP}&verification_token={TOKEN}\
                 &challenge={challenge}&of=another+day"
            );
            let answer = send(&bridge, Request::get(&target)).await;
            assert_answered(&answer, &format!(r#"{{"challenge":{challenge}}}"#));
        }
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_challenge_that_is_not_ours_is_refused() {
    let bridge = bridge().await;
    let good = format!("event=activate&app_id={APP}&verification_token={TOKEN}&challenge=7");
    let without = |name: &str| {
        let kept = good.split('&').filter(|pair| !pair.starts_with(name));
        kept.collect::<Vec<_>>().join("&")
    };
    let with = |name: &str, value: &str| format!("{}&{name}={value}", without(name));
    for query in [
        String::new(),
        without("event"),
        without("app_id"),
        without("verification_token"),
        without("challenge"),
        with("event", "deactivate"),
        with("challenge", "seven"),
        with("challenge", "7.0"),
        with("challenge", "07"),
        with("challenge", "%22%7D"),
        with("challenge", ""),
        format!("{good}&challenge=8"),
        format!("{good}&verification_token={TOKEN}"),
    ] {
        for path in [path(), "/webhooks".to_owned()] {
            let answer = send(&bridge, Request::get(&format!("{path}?{query}"))).await;
            assert_refused(&answer, 400, "challenge_malformed");
        }
    }
    for token in [
        "",
        "other",
        &TOKEN[1..],
        &format!("{TOKEN}x"),
        &TOKEN.to_uppercase(),
    ] {
        let target = format!("{}?{}", path(), with("verification_token", token));
        let answer = send(&bridge, Request::get(&target)).await;
        assert_refused(&answer, 401, "token_mismatch");
    }
    for target in [
        format!("{}?{}", path(), with("app_id", "unknown")),
        format!("{}?{}", path(), with("app_id", OTHER_APP)),
        format!("/webhooks?{}", with("app_id", "unknown")),
        format!("/webhooks/unknown?{good}"),
        format!("/webhooks/{OTHER_APP}?{good}"),
    ] {
        let answer = send(&bridge, Request::get(&target)).await;
        assert_refused(&answer, 404, "app_unknown");
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_batch_is_accepted_once() {
    let bridge = bridge().await;
    let item = |number: u32| item(&format!("evt_{number}"), "user.created", "usr_1");
    let first = batch(APP, &[item(1), item(2)]);
    assert_answered(
        &bridge.post(first.as_bytes()).await,
        r#"{"accepted":2,"duplicates":0}"#,
    );
    assert_answered(
        &bridge.post(first.as_bytes()).await,
        r#"{"accepted":0,"duplicates":2}"#,
    );
    let more = batch(APP, &[item(2), item(3), item(3)]);
    assert_answered(
        &bridge.post(more.as_bytes()).await,
        r#"{"accepted":1,"duplicates":2}"#,
    );
    let none = batch::<&str>(APP, &[]);
    assert_answered(
        &bridge.post(none.as_bytes()).await,
        r#"{"accepted":0,"duplicates":0}"#,
    );

    // The same id in another app is another event; and without an app in the path, the body says
    // whose keys to take.
    let other = batch(OTHER_APP, &[item(1)]);
    let style = SignatureStyle::default();
    let signature = OTHER_KEY.sign(other.as_bytes(), style).unwrap();
    let request = Request::post("/webhooks", other.as_bytes()).header(SIGNATURE, &signature);
    assert_answered(
        &send(&bridge, request).await,
        r#"{"accepted":1,"duplicates":0}"#,
    );
    let request = Request::post("/webhooks", first.as_bytes());
    let request = request.header(SIGNATURE, &sign(first.as_bytes()));
    assert_answered(
        &send(&bridge, request).await,
        r#"{"accepted":0,"duplicates":2}"#,
    );
    assert_eq!(bridge.head().await, 4);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_that_prelude_may_send_a_batch_is_accepted() {
    let bridge = bridge().await;
    let body = some_batch();
    let (body, path) = (body.as_bytes(), path());
    let signature = sign(body);
    let mut requests = vec![
        Request::bare_post(&path, body).header(SIGNATURE, &signature),
        Request::post(&path, body)
            .header(SIGNATURE, &signature)
            .chunked(),
        Request::post(&path, body).header("x-webhook-signature", &signature),
        Request::post(&path, body)
            .header(SIGNATURE, &signature)
            .header("Content-Encoding", "identity"),
        Request::post(&path, body)
            .header(SIGNATURE, &signature)
            .header("Content-Encoding", ", Identity"),
        Request::post(&path, body)
            .header(SIGNATURE, &signature)
            .header("Content-Encoding", ""),
    ];
    for content_type in [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json;profile=\"a, b; c\"",
        "application/cloudevents-batch+json",
        "",
    ] {
        let request = Request::bare_post(&path, body).header(SIGNATURE, &signature);
        requests.push(request.header("Content-Type", content_type));
    }
    for salt in Salt::ALL {
        for padding in [false, true] {
            let signature = KEY.sign(body, SignatureStyle { salt, padding }).unwrap();
            assert_eq!(signature.ends_with('='), padding);
            requests.push(Request::post(&path, body).header(SIGNATURE, &signature));
        }
    }
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    for request in requests {
        let answer = send(&bridge, request).await;
        assert_answered(&answer, r#"{"accepted":0,"duplicates":1}"#);
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_is_not_verified_is_refused() {
    let bridge = bridge().await;
    let body = some_batch();
    let (body, path) = (body.as_bytes(), path());
    // PSS is random: one with `-` or `_` in it comes soon.
    let signature = std::iter::repeat_with(|| sign(body))
        .find(|signature| signature[18..].contains(['-', '_']))
        .unwrap();
    let (scheme, text) = signature.split_at("rsassa-pss-sha256=".len());
    let standard = text.replace('-', "+").replace('_', "/");
    for malformed in [
        "",
        text,
        &format!("sha256={text}"),
        &format!("rsassa-pss-sha512={text}"),
        &format!("RSASSA-PSS-SHA256={text}"),
        &format!("{scheme}{scheme}{text}"),
        scheme,
        &format!("{scheme}{standard}"),
        &format!("{scheme} {text}"),
        &format!("{signature}="),
        &format!("{signature}==="),
        &signature[..signature.len() - 1],
        &format!("{scheme}{}", "A".repeat(4096)),
    ] {
        let request = Request::post(&path, body).header(SIGNATURE, malformed);
        assert_refused(&send(&bridge, request).await, 401, "signature_malformed");
    }
    let unsigned = send(&bridge, Request::post(&path, body)).await;
    assert_refused(&unsigned, 401, "signature_missing");
    let request = Request::post(&path, body).header(SIGNATURE, &signature);
    let twice = send(&bridge, request.header(SIGNATURE, &signature)).await;
    assert_refused(&twice, 401, "signature_repeated");

    let stranger = OTHER_KEY.sign(body, SignatureStyle::default()).unwrap();
    // Whole, but a byte too short.
    let short = &signature[..signature.len() - 2];
    for mismatch in [stranger.as_str(), short] {
        let request = Request::post(&path, body).header(SIGNATURE, mismatch);
        assert_refused(&send(&bridge, request).await, 401, "signature_mismatch");
    }
    for index in [0, body.len() / 2, body.len() - 1] {
        let mut changed = body.to_vec();
        changed[index] ^= 1;
        let request = Request::post(&path, &changed).header(SIGNATURE, &signature);
        assert_refused(&send(&bridge, request).await, 401, "signature_mismatch");
    }
    for changed in [&body[..body.len() - 1], &[body, b"\n"].concat()] {
        let request = Request::post(&path, changed).header(SIGNATURE, &signature);
        assert_refused(&send(&bridge, request).await, 401, "signature_mismatch");
    }
    // Ours, and yet not the other app's.
    let foreign = Request::post(&format!("/webhooks/{OTHER_APP}"), body);
    let answer = send(&bridge, foreign.header(SIGNATURE, &signature)).await;
    assert_refused(&answer, 401, "signature_mismatch");
    // Two apps could have signed it.
    let nameless = br#"{"events":[]}"#;
    let request = Request::post("/webhooks", nameless).header(SIGNATURE, &sign(nameless));
    assert_refused(&send(&bridge, request).await, 401, "signature_unverifiable");

    assert_eq!(bridge.head().await, 0);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_can_be_read_in_two_ways_is_refused_loudly() {
    let bridge = bridge().await;
    let good = item("evt_1", "user.created", "usr_1");
    let events = |events: &str| format!(r#"{{"app_id":"{APP}",{events}}}"#);
    for (body, said) in [
        (
            events(&format!(r#""events":[{good}],"events":[]"#)),
            "the body has its member events twice",
        ),
        (
            events(&format!(r#""events":[{good}],"app\u005fid":"{APP}""#)),
            "the body has its member app_id twice",
        ),
        (
            events(&format!(
                r#""events":[{good},{{"type":"user.created","ty\u0070e":"user.deleted"}}]"#
            )),
            "events[1] has its member type twice",
        ),
        (
            events(&format!(
                r#""events":[{good},{{"payload":{{"user_id":"{EMAIL}","user_id":"{PHONE}"}}}}]"#
            )),
            "the payload of events[1] has its member user_id twice",
        ),
        (
            events(r#""events":[{"type":"user.created","event":"user.deleted"}]"#),
            "events[0] has type and event, which are not the same",
        ),
    ] {
        let answer = bridge.post(body.as_bytes()).await;
        assert_refused(&answer, 422, "body_ambiguous");
        assert!(answer.text().contains(said), "{}", answer.text());
        let line = eventually(async || {
            let log = bridge.stderr();
            log.lines()
                .find(|line| line.contains(said))
                .map(str::to_owned)
        });
        let line = line.await;
        assert!(line.contains("ERROR"), "{line}");
        let log = bridge.stderr();
        assert!(!log.contains(EMAIL) && !log.contains(PHONE));
    }
    assert_eq!(bridge.head().await, 0);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_is_refused() {
    let bridge = bridge().await;
    let body = some_batch();
    let body = body.as_bytes();
    let signed = |target: &str| Request::post(target, body).header(SIGNATURE, &sign(body));
    for target in [
        "/",
        "/webhook",
        "/Webhooks",
        "/webhooks/54e9ujn/x",
        "/metrics",
        "/healthz",
    ] {
        assert_refused(&send(&bridge, signed(target)).await, 404, "path_unknown");
        assert_refused(
            &send(&bridge, Request::get(target)).await,
            404,
            "path_unknown",
        );
    }
    for target in [
        "/webhooks/unknown",
        "/webhooks/54E9UJN",
        "/webhooks/54e9ujn%20",
        "/webhooks/%FF",
    ] {
        assert_refused(&send(&bridge, signed(target)).await, 404, "app_unknown");
    }
    let unknown = batch("unknown", &[item("evt_1", "user.created", "usr_1")]);
    let request = Request::post("/webhooks", unknown.as_bytes());
    let request = request.header(SIGNATURE, &sign(unknown.as_bytes()));
    assert_refused(&send(&bridge, request).await, 404, "app_unknown");

    for target in [path(), "/webhooks".to_owned()] {
        for method in ["PUT", "PATCH", "DELETE", "TRACE"] {
            let answer = send(&bridge, Request::new(method, &target)).await;
            assert_refused(&answer, 405, "method_not_allowed");
        }
        for method in ["PURGE", "PROPFIND", "get"] {
            let answer = send(&bridge, Request::new(method, &target)).await;
            assert_refused(&answer, 501, "method_unknown");
        }
    }
    let request = Request::post(&path(), body).header(SIGNATURE, &sign(body));
    let answer = send(&bridge, request.without_body()).await;
    assert_refused(&answer, 411, "length_required");
    for content_type in [
        "text/plain",
        "text/plain, application/json",
        "application/x-www-form-urlencoded",
        "json",
    ] {
        let request = Request::bare_post(&path(), body).header(SIGNATURE, &sign(body));
        let answer = send(&bridge, request.header("Content-Type", content_type)).await;
        assert_refused(&answer, 415, "content_type_unsupported");
    }
    for encoding in ["gzip", "br", "identity, gzip"] {
        let answer = send(
            &bridge,
            signed(&path()).header("Content-Encoding", encoding),
        )
        .await;
        assert_refused(&answer, 415, "content_encoding_unsupported");
    }
    assert_eq!(bridge.head().await, 0);
    bridge.finish().await;
}

/// A batch of one event, padded to a length in bytes.
fn batch_of(bytes: usize, id: &str) -> String {
    let body = |padding: &str| {
        let item = format!(r#"{{"id":"{id}","type":"user.padded","padding":"{padding}"}}"#);
        batch(APP, &[item])
    };
    let body = body(&"x".repeat(bytes - body("").len()));
    assert_eq!(body.len(), bytes);
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_at_most_its_limit_chunked_or_not() {
    let bridge = bridge().await;
    let exact = batch_of(MIB, "evt_1");
    let above = batch_of(MIB + 1, "evt_2");
    let signed = |body: &str| {
        Request::post(&path(), body.as_bytes()).header(SIGNATURE, &sign(body.as_bytes()))
    };
    let answer = send(&bridge, signed(&exact)).await;
    assert_answered(&answer, r#"{"accepted":1,"duplicates":0}"#);
    let answer = send(&bridge, signed(&exact).chunked()).await;
    assert_answered(&answer, r#"{"accepted":0,"duplicates":1}"#);
    for request in [
        signed(&above),
        signed(&above).chunked(),
        Request::post(&path(), above.as_bytes()),
        Request::post(&path(), above.as_bytes()).chunked(),
        signed(&above).announcing(usize::MAX / 2),
    ] {
        assert_refused(&send(&bridge, request).await, 413, "body_too_large");
    }
    assert_eq!(bridge.head().await, 1);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_but_no_batch_is_refused_whole_and_loudly() {
    let bridge = bridge().await;
    let good = item("evt_1", "user.created", "usr_1");
    let cases: [(&[u8], &str); 10] = [
        (b"", "body_not_json"),
        (b"\xff", "body_not_json"),
        (
            format!(r#"{{"app_id":"{APP}","events":[{good}]"#)
                .leak()
                .as_bytes(),
            "body_not_json",
        ),
        (
            format!(r#"{{"app_id":"{APP}","events":[{good}]}} {{}}"#)
                .leak()
                .as_bytes(),
            "body_not_json",
        ),
        (format!("[{good}]").leak().as_bytes(), "body_not_a_batch"),
        (b"7", "body_not_a_batch"),
        (br#"{"app_id":"54e9ujn"}"#, "body_not_a_batch"),
        (br#"{"app_id":"54e9ujn","events":{}}"#, "body_not_a_batch"),
        (
            format!(r#"{{"events":[{good}]}}"#).leak().as_bytes(),
            "body_not_a_batch",
        ),
        (batch(OTHER_APP, &[&good]).leak().as_bytes(), "app_mismatch"),
    ];
    for (body, code) in cases {
        assert_refused(&bridge.post(body).await, 422, code);
    }
    assert_eq!(bridge.head().await, 0);
    let loud = |line: &&str| line.contains("request refused") && line.contains("ERROR");
    assert_eq!(bridge.stderr().lines().filter(loud).count(), cases.len());
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_unknown_types_and_shapes_are_accepted_with_the_others() {
    let bridge = bridge().await;
    let items = [
        item("evt_1", "user.created", "usr_1"),
        item("evt_2", "invoice.paid", "usr_1"),
        r#"{"id":"evt_3","type":"user.created","payload":7}"#.to_owned(),
        r#"{"id":4,"event":"user.deleted","data":{}}"#.to_owned(),
        r#"{"type":"user.deleted","user_id":[]}"#.to_owned(),
        format!(r#""{PHONE}""#),
        "null".to_owned(),
        "[[]]".to_owned(),
        "{}".to_owned(),
        "7".to_owned(),
    ];
    bridge.append(&items).await;
    assert_eq!(bridge.head().await, 10);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_refused_in_time() {
    let setup = Setup::default().with("limits.webhook.request_timeout", "200ms");
    let bridge = setup.start().await;
    let body = some_batch();
    let request = Request::post(&path(), body.as_bytes()).header(SIGNATURE, &sign(body.as_bytes()));
    let since = Instant::now();
    let answer = send(&bridge, request.announcing(body.len() + 1)).await;
    assert_refused(&answer, 503, "deadline_exceeded");
    assert!(since.elapsed() >= Duration::from_millis(200));
    assert_eq!(bridge.head().await, 0);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_before_any_key_is_known_may_come_again() {
    // Nobody listens there.
    let setup = Setup::default().jwks_url("http://127.0.0.1:9/jwks.json");
    let bridge = setup.start_listening().await;
    let answer = bridge.post(some_batch().as_bytes()).await;
    assert_refused(&answer, 503, "keys_unavailable");
    assert_eq!(bridge.head().await, 0);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_that_stands_still_keeps_no_other_out() {
    // One body may then hold all the memory that there is for bodies: 64 MiB.
    let setup = Setup::default().with("limits.webhook.body_bytes_max", "64MiB");
    let bridge = setup.start().await;
    let address = bridge.addresses.webhook;
    let most = vec![b' '; 64 * MIB - 1];
    let hog = Request::post(&path(), &most).header(SIGNATURE, &sign(b""));
    let hog = tokio::spawn(hog.announcing(64 * MIB).send(address));
    while !hog.is_finished() {
        let answer = bridge.post(some_batch().as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let answer = hog.await.unwrap().unwrap();
    assert!(matches!(answer.status, 429 | 503), "{}", answer.text());
    bridge.finish().await;
}
