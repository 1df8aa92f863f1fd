//! The fields that RFC 9110 demands of an answer with its status, on the webhook and the admin port.

use crate::support::{APP, Answer, Bridge, Request, Setup, TOKEN, batch, exchange, item, sign};

fn signed(method: &str, target: &str) -> Request {
    let body = batch(APP, &[item("evt_1", "user.created", "usr_1")]);
    let post = Request::post(target, body.as_bytes());
    let post = if method == "POST" {
        post
    } else {
        Request::new(method, target)
    };
    post.header("X-Webhook-Signature", &sign(body.as_bytes()))
}

#[track_caller]
fn assert_fields(answer: &Answer, status: u16, fields: &[(&str, &str)]) {
    assert_eq!(answer.status, status, "{answer:?}");
    // Of these, an answer has what its status demands, and no other.
    for name in [
        "www-authenticate",
        "allow",
        "accept",
        "accept-encoding",
        "retry-after",
        "vary",
        "upgrade",
    ] {
        let field = fields.iter().find(|(known, _)| *known == name);
        let expected = field.map(|(_, value)| *value);
        assert_eq!(answer.header(name), expected, "{name} of {answer:?}");
    }
    assert!(
        answer.header("date").unwrap().ends_with(" GMT"),
        "{answer:?}"
    );
    if status != 204 {
        let content_type = answer.header("content-type").unwrap();
        assert!(!content_type.is_empty());
        if content_type == "application/json" {
            answer.json();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_the_fields_that_its_status_demands() {
    let bridge = Bridge::start().await;
    let path = format!("/webhooks/{APP}");
    let by_signature = r#"Webhook-Signature realm="webhooks", header="X-Webhook-Signature", algorithm="rsassa-pss-sha256""#;
    let by_token = r#"Verification-Token realm="webhooks", parameter="verification_token""#;
    let methods = "GET, HEAD, OPTIONS, POST";
    let json = [("accept", "application/json")];
    let forged = Request::post(&path, b"{}").header("X-Webhook-Signature", &sign(b"[]"));
    let challenge = |token: &str| {
        let query = format!("event=activate&app_id={APP}&verification_token={token}&challenge=7");
        Request::get(&format!("{path}?{query}"))
    };
    for (request, status, fields) in [
        (signed("POST", &path), 200, &[][..]),
        (challenge(TOKEN), 200, &[]),
        (Request::get(&path), 400, &[]),
        (challenge("x"), 401, &[("www-authenticate", by_token)]),
        (
            Request::post(&path, b"{}"),
            401,
            &[("www-authenticate", by_signature)],
        ),
        (forged, 401, &[("www-authenticate", by_signature)]),
        (
            signed("POST", &path).header("X-Webhook-Signature", "x"),
            401,
            &[("www-authenticate", by_signature)],
        ),
        (signed("POST", "/x"), 404, &[]),
        (signed("PUT", &path), 405, &[("allow", methods)]),
        (signed("DELETE", &path), 405, &[("allow", methods)]),
        (signed("OPTIONS", &path), 204, &[("allow", methods)]),
        (signed("OPTIONS", "*"), 204, &[("allow", methods)]),
        (signed("LOCK", &path), 501, &[]),
        (Request::new("CONNECT", "other.example:443"), 501, &[]),
        (signed("POST", &path).without_body(), 411, &[]),
        (signed("POST", &path).announcing(1 << 30), 413, &[]),
        (
            signed("POST", &path).header("Content-Type", "text/plain"),
            415,
            &json,
        ),
        (
            signed("POST", &path).header("Content-Type", "application/json;a"),
            415,
            &json,
        ),
        (
            signed("POST", &path).header("Content-Encoding", "gzip"),
            415,
            &[("accept-encoding", "identity")],
        ),
        (
            signed("POST", &path).header("Content-Encoding", "identity;q=1"),
            415,
            &[("accept-encoding", "identity")],
        ),
        (signed("POST", &path).header("Expect", "x"), 417, &[]),
    ] {
        let answer = request.send(bridge.addresses.webhook).await.unwrap();
        assert_fields(&answer, status, fields);
    }
    bridge.finish().await;

    let setup = Setup::default().jwks_url("http://127.0.0.1:9/jwks.json");
    let keyless = setup.start_listening().await;
    let answer = signed("POST", &path)
        .send(keyless.addresses.webhook)
        .await
        .unwrap();
    assert_fields(&answer, 503, &[("retry-after", "30")]);
    keyless.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_answers_by_the_same_rules() {
    let bridge = Bridge::start().await;
    let methods = [("allow", "GET, HEAD, OPTIONS")];
    let negotiated = [("vary", "accept")];
    let metrics = |accept: &str| Request::get("/metrics").header("Accept", accept);
    for (request, status, fields) in [
        (Request::get("/healthz"), 200, &[][..]),
        (Request::get("/readyz"), 200, &[]),
        (Request::get("/metrics"), 200, &negotiated),
        (Request::get("/x"), 404, &[]),
        (Request::post("/healthz", b"x"), 405, &methods),
        (Request::new("TRACE", "/readyz"), 405, &methods),
        (Request::new("OPTIONS", "/metrics"), 204, &methods),
        (Request::new("OPTIONS", "*"), 204, &methods),
        (Request::new("OPTIONS", "/x"), 404, &[]),
        (Request::new("BREW", "/metrics"), 501, &[]),
        (Request::new("CONNECT", "other.example:443"), 501, &[]),
        (Request::get("/healthz").header("Expect", "x"), 417, &[]),
    ] {
        let answer = request.send(bridge.addresses.admin).await.unwrap();
        assert_fields(&answer, status, fields);
    }
    for (accept, is_open_metrics) in [
        ("application/openmetrics-text", true),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
            true,
        ),
        ("Application/OpenMetrics-Text, text/plain", true),
        ("application/*, text/plain;q=0.5", true),
        ("text/plain, application/openmetrics-text;q=0.9", false),
        ("application/openmetrics-text;q=0", false),
        ("text/plain; a=\"application/openmetrics-text\"", false),
        ("*/*", false),
        ("application/json", false),
        ("\"application/openmetrics-text", false),
        ("", false),
    ] {
        let answer = metrics(accept).send(bridge.addresses.admin).await.unwrap();
        assert_fields(&answer, 200, &negotiated);
        let content_type = answer.header("content-type").unwrap();
        let format = if is_open_metrics {
            "application/openmetrics-text"
        } else {
            "text/plain"
        };
        assert!(content_type.starts_with(format), "{accept}: {content_type}");
        assert!(content_type.ends_with("charset=utf-8"));
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_head_has_no_body() {
    let bridge = Bridge::start().await;
    for (address, target) in [
        (bridge.addresses.webhook, "/webhooks"),
        (bridge.addresses.webhook, "/x"),
        (bridge.addresses.admin, "/readyz"),
        (bridge.addresses.admin, "/metrics"),
        (bridge.addresses.admin, "/x"),
    ] {
        // What followed an empty body would be taken for another answer.
        let head = format!("HEAD {target} HTTP/1.1\r\nHost: b\r\n\r\n");
        let last = "GET /%zz HTTP/1.1\r\nHost: b\r\n\r\n";
        let requests = head.repeat(2) + last;
        let answers = exchange_heads(address, requests.as_bytes()).await;
        assert_eq!(answers, [true, true, false], "{target}");
    }
    bridge.finish().await;
}

/// Of each answer, whether a blank line is all that follows its head.
async fn exchange_heads(address: std::net::SocketAddr, requests: &[u8]) -> Vec<bool> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(requests).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let answers = answers.split("HTTP/1.1 ").skip(1);
    answers.map(|answer| answer.ends_with("\r\n\r\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_before_it_sends_is_told_at_once() {
    let bridge = Bridge::start().await;
    let path = format!("/webhooks/{APP}");
    let head = |lines: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: b\r\nExpect: 100-continue\r\nContent-Length: 9\r\n{lines}\r\n"
        )
    };
    // Refused by the head alone, without the body: the connection cannot be used again.
    for (lines, status) in [
        ("", 401),
        ("Content-Type: text/plain\r\n", 415),
        ("Content-Encoding: br\r\n", 415),
    ] {
        let answers = exchange(bridge.addresses.webhook, head(lines).as_bytes()).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [status], "{lines}");
        assert_eq!(answers[0].header("connection"), Some("close"));
    }
    bridge.finish().await;
}

/// Networks of IPv4 may be written in the form of IPv6, in any of the settings.
#[tokio::test(flavor = "multi_thread")]
async fn an_ipv4_network_in_the_form_of_ipv6_is_the_same_network() {
    let path = format!("/webhooks/{APP}");
    for (allowed, proxies, forwarded, status) in [
        ("::ffff:127.0.0.1", "", "", 200),
        ("::ffff:127.0.0.0/104", "", "", 200),
        ("::ffff:7f00:1", "", "", 200),
        ("::ffff:127.0.0.2", "", "", 403),
        (
            "::ffff:203.0.113.7",
            "::ffff:127.0.0.1",
            "for=203.0.113.7",
            200,
        ),
        (
            "203.0.113.7",
            "::ffff:127.0.0.0/104",
            "for=\"[::ffff:203.0.113.7]:1\"",
            200,
        ),
        ("203.0.113.7", "127.0.0.1", "for=203.0.113.8", 403),
    ] {
        let mut setup = Setup::default().with("allowed_sources", allowed);
        if !proxies.is_empty() {
            setup = setup.with("trusted_proxies", proxies);
        }
        let bridge = setup.start().await;
        let request = signed("POST", &path).header("Forwarded", forwarded);
        let answer = request.send(bridge.addresses.webhook).await.unwrap();
        assert_eq!(answer.status, status, "{allowed} {proxies} {forwarded}");
        bridge.finish().await;
    }
}

/// What a trusted proxy says of a request, as an HTTP client reads it byte by byte.
#[tokio::test(flavor = "multi_thread")]
async fn forwarding_fields_are_read_by_their_grammar() {
    let setup = Setup::default()
        .with("allowed_sources", "203.0.113.7")
        .with("trusted_proxies", "127.0.0.1");
    let bridge = setup.start().await;
    let path = format!("/webhooks/{APP}");
    for (lines, status) in [
        (&[("Forwarded", "for=203.0.113.7")][..], 200),
        (&[("Forwarded", "FOR=\"203.0.113.7:80\" ; by=_x ,, ")], 200),
        (
            &[
                ("Forwarded", "for=unknown"),
                ("Forwarded", "for=203.0.113.7"),
            ],
            200,
        ),
        (
            &[(
                "Forwarded",
                "for=198.51.100.1;host=\"x,for=203.0.113.7;y=\"",
            )],
            403,
        ),
        (
            &[
                ("Forwarded", "for=198.51.100.1;host=\"x"),
                ("Forwarded", "y\",for=203.0.113.7"),
            ],
            403,
        ),
        (&[("Forwarded", "for=203.0.113.7;for=203.0.113.7")], 403),
        (&[("Forwarded", "for=203.0.113.7;host=a b")], 403),
        (
            &[
                ("Forwarded", "for=203.0.113.7"),
                ("X-Forwarded-For", "203.0.113.8"),
            ],
            403,
        ),
        (&[("X-Forwarded-For", "198.51.100.1, ,203.0.113.7,")], 200),
        (&[("X-Forwarded-For", "203.0.113.7, 198.51.100.1")], 403),
        (&[], 403),
    ] {
        let request = signed("POST", &path);
        let request = lines.iter().fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        let answer = request.send(bridge.addresses.webhook).await.unwrap();
        assert_eq!(answer.status, status, "{lines:?}");
    }
    bridge.finish().await;
}
