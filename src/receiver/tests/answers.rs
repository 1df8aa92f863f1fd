use super::*;

#[tokio::test]
async fn a_batch_is_accepted_once() {
    let bridge = Bridge::start().await;
    bridge
        .ask(delivery("/webhooks/54e9ujn", TWO))
        .await
        .assert_accepted(2, 0);
    bridge
        .ask(delivery("/webhooks", TWO))
        .await
        .assert_accepted(0, 2);
    bridge
        .ask(chunked_delivery("/webhooks/54e9ujn", TWO, 7))
        .await
        .assert_accepted(0, 2);
    bridge
        .ask(delivery("/%77ebhook%73/%354e9ujn/", EMPTY))
        .await
        .assert_accepted(0, 0);
    assert_eq!(bridge.events(), 2);
    let page = bridge.metrics.render();
    for line in [
        r#"requests_total{outcome="accepted",status="200"} 4"#,
        r#"events_received_total{type="user.created"} 3"#,
        r#"events_received_total{type="of.a.stranger"} 3"#,
        "events_accepted_total 2",
        "events_duplicate_total 4",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn a_delivery_may_say_json_in_any_way_or_not_at_all() {
    let bridge = Bridge::start().await;
    let signature = format!("x-webhook-signature: {}", signature(EMPTY.as_bytes()));
    for headers in [
        &[][..],
        &["Content-Type: application/json; charset=utf-8"],
        &["content-type: application/vnd.prelude+json"],
        &["Content-Type:"],
        &["Content-Type: application/json, ,"],
        &["Content-Encoding:"],
        &["Content-Encoding: Identity", "Content-Encoding: , identity"],
        &["X-Webhook-Signature-Key-Id: some-other-key"],
        &["X-Webhook-Signature-Key-Id: \u{fc}"],
    ] {
        let headers = [headers, &[signature.as_str()]].concat();
        let answer = bridge
            .ask(post_with("/webhooks", &headers, EMPTY.as_bytes()))
            .await;
        answer.assert_accepted(0, 0);
    }
}

#[tokio::test]
async fn another_path_is_not_found() {
    let bridge = Bridge::start().await;
    for path in [
        "/",
        "/webhook",
        "/webhooks/54e9ujn/x",
        "/webhooks//54e9ujn",
        "/webhooks/54e9ujn//",
        "/webhooks%2F54e9ujn",
        "//webhooks",
        "/WEBHOOKS",
        "/metrics",
    ] {
        bridge
            .ask(delivery(path, TWO))
            .await
            .assert_refused(404, "path_unknown");
    }
    for path in [
        "/webhooks/unknown",
        "/webhooks/%ff",
        "/webhooks/54E9UJN",
        "/webhooks/54e9ujn%00",
        "/webhooks/54e9ujn%2F",
        "/webhooks/%2e%2e",
    ] {
        bridge
            .ask(delivery(path, TWO))
            .await
            .assert_refused(404, "app_unknown");
    }
    let other = TWO.replace(APP, "unknown");
    bridge
        .ask(delivery("/webhooks", &other))
        .await
        .assert_refused(404, "app_unknown");
    assert_eq!(bridge.events(), 0);
}

#[tokio::test]
async fn another_method_is_told_which_are_allowed() {
    let bridge = Bridge::start().await;
    let request = |method: &str| {
        let request = delivery("/webhooks/54e9ujn", TWO);
        String::from_utf8(request)
            .unwrap()
            .replacen("POST", method, 1)
    };
    let methods = Some("get, head, options, post");
    for method in ["PUT", "DELETE", "PATCH", "TRACE"] {
        let answer = bridge.ask(request(method)).await;
        answer.assert_refused(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), methods);
    }
    let single_events = Bridge::start_with(Options::default(), &["verify"]).await;
    for (method, status) in [("PUT", 405), ("OPTIONS", 204)] {
        let request = format!("{method} /webhooks/verify HTTP/1.1\r\nHost: b\r\n\r\n");
        let answer = single_events.ask(request).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("allow"), Some("options, post"));
    }
    for method in ["BREW", "post", "M-SEARCH"] {
        let answer = bridge.ask(request(method)).await;
        answer.assert_refused(501, "method_unknown");
    }
    for options in [
        request("OPTIONS"),
        "OPTIONS * HTTP/1.1\r\nHost: bridge\r\n\r\n".to_owned(),
    ] {
        let answer = bridge.ask(options).await;
        assert_eq!((answer.status, answer.header("allow")), (204, methods));
    }
    assert_eq!(bridge.events(), 0);
}

#[tokio::test]
async fn an_answer_to_head_has_the_fields_of_the_answer_to_get_and_no_body() {
    let bridge = Bridge::start().await;
    let token = TOKEN.replace(' ', "+").replace('&', "%26");
    let good = format!("event=activate&app_id={APP}&verification_token={token}&challenge=7");
    for (query, status) in [(good.as_str(), 200), ("event=activate", 400), ("", 400)] {
        let request = |method: &str| {
            format!("{method} /webhooks?{query} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
        };
        let answer = bridge.ask(request("GET")).await;
        assert_eq!(answer.status, status);
        let mut client = bridge.client().await;
        client.send(request("HEAD")).await;
        while client.fill().await {}
        let head = String::from_utf8(client.read).unwrap().to_ascii_lowercase();
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        let without_date = |head: &str| {
            let lines = head.lines().filter(|line| !line.starts_with("date"));
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(without_date(&head), without_date(&answer.head));
    }
}

#[tokio::test]
async fn another_type_or_encoding_is_refused() {
    let bridge = Bridge::start().await;
    let signature = format!("X-Webhook-Signature: {}", signature(TWO.as_bytes()));
    for (header, code) in [
        ("Content-Type: text/plain", "content_type_unsupported"),
        (
            "Content-Type: application/json; a=\"",
            "content_type_unsupported",
        ),
        (
            "Content-Type: application/json\r\nContent-Type: text/plain",
            "content_type_unsupported",
        ),
        ("Content-Encoding: gzip", "content_encoding_unsupported"),
        (
            "Content-Encoding: identity, gzip",
            "content_encoding_unsupported",
        ),
    ] {
        let request = post_with("/webhooks/54e9ujn", &[header, &signature], TWO.as_bytes());
        bridge.ask(request).await.assert_refused(415, code);
    }
    assert_eq!(bridge.events(), 0);
}

#[tokio::test]
async fn a_post_without_a_length_is_refused() {
    let bridge = Bridge::start().await;
    let request = "POST /webhooks/54e9ujn HTTP/1.1\r\nHost: bridge\r\n\r\n";
    bridge
        .ask(request)
        .await
        .assert_refused(411, "length_required");
}

#[tokio::test]
async fn what_is_not_signed_by_the_app_leaves_no_trace() {
    let bridge = Bridge::start().await;
    let good = signature(TWO.as_bytes());
    let other = signature(EMPTY.as_bytes());
    let hmac = format!("sha256={}", "ab".repeat(32));
    let standard = "rsassa-pss-sha256=AA+/";
    for (headers, code) in [
        (vec![], "signature_missing"),
        (vec![good.as_str(), &good], "signature_repeated"),
        (vec![""], "signature_malformed"),
        (vec!["x"], "signature_malformed"),
        (vec!["rsassa-pss-sha256="], "signature_malformed"),
        (vec!["rsassa-pss-sha256=\u{e9}"], "signature_malformed"),
        (vec![standard], "signature_malformed"),
        (vec![&hmac], "signature_malformed"),
        (vec![&other], "signature_mismatch"),
    ] {
        let lines: Vec<String> = headers
            .iter()
            .map(|value| format!("X-Webhook-Signature: {value}"))
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        for path in ["/webhooks/54e9ujn", "/webhooks"] {
            let answer = bridge.ask(post_with(path, &lines, TWO.as_bytes())).await;
            answer.assert_refused(401, code);
        }
    }
    assert_eq!(bridge.events(), 0);
    let page = bridge.metrics.render();
    for line in [
        r#"verification_failures_total{reason="header_missing"} 2"#,
        r#"verification_failures_total{reason="header_hmac"} 2"#,
        r#"verification_failures_total{reason="mismatch"} 2"#,
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn one_changed_byte_makes_another_body() {
    let bridge = Bridge::start().await;
    let signature = format!("X-Webhook-Signature: {}", signature(TWO.as_bytes()));
    let changed = TWO.replace("evt_1", "evt_3");
    let request = post_with("/webhooks/54e9ujn", &[&signature], changed.as_bytes());
    bridge
        .ask(request)
        .await
        .assert_refused(401, "signature_mismatch");
    assert_eq!(bridge.events(), 0);
}

#[tokio::test]
async fn a_signed_body_that_is_no_batch_is_unprocessable() {
    let bridge = Bridge::start_with(Options::default(), &[APP, "other"]).await;
    for (body, code) in [
        ("", "body_not_json"),
        ("{", "body_not_json"),
        ("\u{feff}{}", "body_not_json"),
        ("[]", "body_not_a_batch"),
        ("{}", "body_not_a_batch"),
        (r#"{"app_id":"54e9ujn"}"#, "body_not_a_batch"),
        (r#"{"app_id":"54e9ujn","events":{}}"#, "body_not_a_batch"),
        (r#"{"app_id":"other","events":[]}"#, "app_mismatch"),
        (
            r#"{"app_id":"54e9ujn","events":[1],"events":[2,3]}"#,
            "body_ambiguous",
        ),
        (
            r#"{"app_id":"54e9ujn","events":[1,{"id":"a","id":"b"}]}"#,
            "body_ambiguous",
        ),
    ] {
        bridge
            .ask(delivery("/webhooks/54e9ujn", body))
            .await
            .assert_refused(422, code);
    }
    assert_eq!(bridge.events(), 0);
    // With two apps nobody can say whose keys a body without an app should be held against.
    bridge
        .ask(delivery("/webhooks", "{}"))
        .await
        .assert_refused(401, "signature_unverifiable");
    let alone = Bridge::start().await;
    alone
        .ask(delivery("/webhooks", "{}"))
        .await
        .assert_refused(422, "body_not_a_batch");
    let unsigned = post_with(
        "/webhooks",
        &["X-Webhook-Signature: rsassa-pss-sha256=AAAA"],
        b"{}",
    );
    alone
        .ask(unsigned)
        .await
        .assert_refused(401, "signature_mismatch");
}

#[tokio::test]
async fn an_app_without_keys_is_told_to_come_back() {
    let bridge = Bridge::start_with(Options::default(), &[APP, "keyless"]).await;
    let body = r#"{"app_id":"keyless","events":[]}"#;
    let answer = bridge.ask(delivery("/webhooks/keyless", body)).await;
    answer.assert_refused(503, "keys_unavailable");
    let counted = r#"verification_failures_total{reason="no_keys"} 1"#;
    assert!(bridge.metrics.render().contains(counted));
}

#[tokio::test]
async fn a_log_that_takes_nothing_is_a_reason_to_come_back() {
    let bridge = Bridge::start().await;
    for (error, code) in [
        (log::Error::Overloaded, "log_overloaded"),
        (log::Error::NoSpace, "log_full"),
        (
            log::Error::Unavailable("no quorum".into()),
            "log_unavailable",
        ),
        (
            log::Error::Failed("/data/secret: I/O error".into()),
            "log_failed",
        ),
        (log::Error::Closed, "shutting_down"),
    ] {
        bridge.log.script_appends(Script::Fails(error));
        let answer = bridge.ask(delivery("/webhooks/54e9ujn", TWO)).await;
        answer.assert_refused(503, code);
        assert!(
            !answer.body.contains("secret"),
            "the operator's detail is not the caller's"
        );
    }
    bridge.log.script_appends(Script::Works);
    bridge
        .ask(delivery("/webhooks/54e9ujn", TWO))
        .await
        .assert_accepted(2, 0);
}
