//! The rules for messages of HTTP/1.1 (RFC 9112) on all ports, byte by byte: what is ambiguous is refused, in JSON
//! on the webhook and the admin port, and nothing after it is read as a request.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{APP, Answer, Bridge, SOON, Setup, batch, exchange, item, sign};

/// A delivery with these lines in its head, without their ends.
fn delivery(target: &str, lines: &[&str], id: &str) -> String {
    let body = batch(APP, &[item(id, "user.created", "usr_1")]);
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "POST {target} HTTP/1.1\r\nX-Webhook-Signature: {}\r\n{lines}Content-Length: {}\r\n\r\n{body}",
        sign(body.as_bytes()),
        body.len()
    )
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!(answer.status, status, "{what:?}: {}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{what:?}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert_eq!(error["retryable"], status == 408);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("connection"), Some("close"), "{what:?}");
    assert!(answer.header("date").unwrap().ends_with(" GMT"));
}

/// Requests that are refused by their heads, with what they are refused for.
fn malformed() -> Vec<(String, u16, &'static str)> {
    let malformed = "request_malformed";
    let head = |line: &str, status, code| {
        (
            format!("GET / HTTP/1.1\r\nHost: b\r\n{line}\r\n\r\n"),
            status,
            code,
        )
    };
    let mut table = vec![
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, malformed),
        (
            "GET / HTTP/1.1\r\nHost: b\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET / HTTP/1.0\r\nHost: b\r\nHost: c\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: u@b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: b/c\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        ("GET / HTTP/1.1\nHost: b\n\n".to_owned(), 400, malformed),
        ("GET / HTTP/1.1\r\nHost: b\n\r\n".to_owned(), 400, malformed),
        (
            "GET / HTTP/1.1\r\nHost: b\rX: y\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET / HTTP/1.1\r\n Host: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET  / HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET / HTTP/1.1 \r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        ("GET /\r\nHost: b\r\n\r\n".to_owned(), 400, malformed),
        (
            "GET / http/1.1\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET /%zz HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET /a#b HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET a HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET * HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET ftp://b/ HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "GET http://u@b/ HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            400,
            malformed,
        ),
        ("\r\n\r\n\r\n\r\n\r\n\r\n".to_owned(), 400, malformed),
        ("\u{16}\u{3}\u{1}\u{2}".to_owned(), 400, malformed),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            505,
            "version_unsupported",
        ),
        (
            "GET / HTTP/0.9\r\n\r\n".to_owned(),
            505,
            "version_unsupported",
        ),
        (
            "GET / HTTP/9.1\r\n\r\n".to_owned(),
            505,
            "version_unsupported",
        ),
        (
            format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000)),
            414,
            "target_too_long",
        ),
        head(
            &format!("X: {}", "x".repeat(20_000)),
            431,
            "header_too_large",
        ),
        head(&["X: y"; 64].join("\r\n"), 431, "header_too_large"),
        head(
            "Transfer-Encoding: gzip, chunked",
            501,
            "transfer_coding_unsupported",
        ),
        head(
            "Transfer-Encoding: x;y=\"z\", chunked",
            501,
            "transfer_coding_unsupported",
        ),
        head("Expect: 200-ok", 417, "expectation_unsupported"),
        head("Expect: 100-continue, x", 417, "expectation_unsupported"),
        head(
            "Content-Length: 99999999999999999999",
            413,
            "body_too_large",
        ),
    ];
    for line in [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\ncontent-length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length:",
        "Transfer-Encoding:",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: \u{b}chunked",
        "X: y\u{0}z",
        "X y",
        ": y",
        "\u{fc}: y",
    ] {
        table.push(head(line, 400, malformed));
    }
    table
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_breaks_a_rule_is_refused_in_json_and_the_last_one() {
    let bridge = Bridge::start().await;
    let after = delivery("/webhooks", &["Host: b"], "evt_smuggled");
    for (request, status, code) in malformed() {
        for address in [bridge.addresses.webhook, bridge.addresses.admin] {
            let answers = exchange(address, (request.clone() + &after).as_bytes()).await;
            assert_eq!(answers.len(), 1, "{request:?}: {answers:?}");
            assert_refused(&answers[0], status, code, &request);
        }
    }
    assert_eq!(bridge.head().await, 0);
    let counted =
        r#"prelude_bridge_webhook_requests_total{outcome="version_unsupported",status="505"}"#;
    bridge.counts(counted, 3.0).await;
    bridge.finish().await;
}

/// The gRPC port speaks HTTP/1.1 to pages, by the same rules. It answers in text what is no gRPC-Web.
#[tokio::test(flavor = "multi_thread")]
async fn the_grpc_port_refuses_what_breaks_a_rule_in_text_and_reads_nothing_after_it() {
    let bridge = Bridge::start().await;
    let after = "GET /smuggled HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n";
    let mut count = 0;
    for (request, status, _) in malformed() {
        // Anything else is another protocol to this port.
        if !request.starts_with("GE")
            && !request.starts_with("PO")
            && !request.starts_with('\u{16}')
        {
            continue;
        }
        let answers = exchange(bridge.addresses.grpc, (request.clone() + after).as_bytes()).await;
        assert_eq!(answers.len(), 1, "{request:?}: {answers:?}");
        let answer = &answers[0];
        assert_eq!(answer.status, status, "{request:?}: {}", answer.text());
        let text = answer.header("content-type").unwrap();
        assert!(text.starts_with("text/plain"), "{request:?}: {text}");
        assert!(answer.text().len() > 10, "{request:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
        count += 1;
    }
    assert!(count > 50, "{count}");
    // What breaks none is told what the port is for, and the connection goes on.
    let twice = format!("GET / HTTP/1.1\r\nHost: b\r\n\r\n{after}");
    let answers = exchange(bridge.addresses.grpc, twice.as_bytes()).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [405, 405]);
    assert!(answers[0].text().contains("gRPC"));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_rules_allow_is_accepted() {
    let bridge = Bridge::start().await;
    let target = format!("/webhooks/{APP}");
    let host = "Host: b";
    let absolute = format!("HTTP://other.example:1{target}");
    let encoded = format!("/%77ebhooks/%{:02x}{}/?x=%7e", APP.as_bytes()[0], &APP[1..]);
    let plain =
        |lines: &[&str]| delivery(&target, &[lines, &["Connection: close"]].concat(), "evt_1");
    let body = batch(APP, &[item("evt_1", "user.created", "usr_1")]);
    let chunked = |chunks: &str, lines: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: b\r\nX-Webhook-Signature: {}\r\nConnection: close\r\n\
             {lines}transfer-encoding: {chunks}",
            sign(body.as_bytes())
        )
    };
    let length = body.len();
    let requests = vec![
        plain(&[host]),
        plain(&["HOST:b"]),
        plain(&["Host: [::1]:80"]),
        plain(&["Host:"]),
        plain(&[host, "X: \u{fc}\ty", "Y:", "!#$%&'*+-.^_`|~: z"]),
        plain(&[host, "content-type: APPLICATION/JSON ; charset=\"utf-8\""]),
        plain(&[host, "Expect: 100-Continue"]),
        plain(&[host, "Expect: , 100-continue,", "Expect:"]),
        plain(&[host, "Upgrade: h2c", "Connection: upgrade"]),
        delivery(
            &absolute,
            &["Host: elsewhere.example", "Connection: close"],
            "evt_1",
        ),
        delivery(&encoded, &[host, "Connection: close"], "evt_1"),
        plain(&[host]).replacen("HTTP/1.1", "HTTP/1.7", 1),
        plain(&[]).replacen("HTTP/1.1", "HTTP/1.0", 1),
        "\r\n\r\n".to_owned() + &plain(&[host]),
        plain(&[host]).replacen("Content-Length: ", "Content-Length:\t000", 1),
        chunked(
            &format!("CHUNKED\r\n\r\n{length:X}\r\n{body}\r\n0\r\n\r\n"),
            "",
        ),
        chunked(
            &format!(", chunked,\r\n\r\n000{length:x}\r\n{body}\r\n000\r\n\r\n"),
            "",
        ),
        chunked(
            &format!(
                "chunked\r\n\r\n{length:x} ;a=\"b\";c\r\n{body}\r\n0;d\r\nX: y\r\nContent-Length: 1\r\n\r\n"
            ),
            "Trailer: X\r\n",
        ),
    ];
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    for request in requests {
        let answers = exchange(bridge.addresses.webhook, request.as_bytes()).await;
        let last = answers.last().unwrap();
        assert_eq!(
            (last.status, last.text().as_str()),
            (200, r#"{"accepted":0,"duplicates":1}"#),
            "{request}"
        );
        // Whoever asks before it sends is told to.
        let told = answers[..answers.len() - 1]
            .iter()
            .map(|answer| answer.status);
        assert!(
            told.clone()
                .all(|status| status == 100 && request.contains("Expect")),
            "{request}"
        );
    }
    for target in [
        "/healthz",
        "/%68ealthz",
        "http://other.example/healthz?x",
        "/readyz/",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n");
        let answers = exchange(bridge.addresses.admin, request.as_bytes()).await;
        assert_eq!(answers[0].status, 200, "{target}");
    }
    bridge.finish().await;
}

/// Sends a request, closes this side of the connection, and returns the answers.
async fn half_closed(address: std::net::SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answers = Vec::new();
    let reading = stream.read_to_end(&mut answers);
    tokio::time::timeout(SOON, reading).await.unwrap().unwrap();
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_side_gets_its_answer() {
    let bridge = Bridge::start().await;
    let whole = delivery("/webhooks", &["Host: b"], "evt_1");
    let get = "GET /readyz HTTP/1.1\r\nHost: b\r\n\r\n";
    let (webhook, admin) = (bridge.addresses.webhook, bridge.addresses.admin);
    for (address, request, statuses) in [
        (webhook, whole.clone(), &["200"][..]),
        (webhook, whole.clone() + &whole, &["200", "200"]),
        (webhook, whole.clone() + "POST /", &["200", "400"]),
        (webhook, whole[..whole.len() - 1].to_owned(), &["503"]),
        (admin, get.to_owned(), &["200"]),
        (admin, get[..get.len() - 1].to_owned(), &["400"]),
        (admin, String::new(), &[]),
    ] {
        let answers = half_closed(address, request.as_bytes()).await;
        let answers = String::from_utf8(answers).unwrap();
        let answered: Vec<&str> = answers
            .split("HTTP/1.1 ")
            .skip(1)
            .map(|answer| &answer[..3])
            .collect();
        assert_eq!(answered, statuses, "{answers}");
    }
    assert_eq!(bridge.head().await, 1);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_and_idle_connections_have_limits_of_their_own() {
    let setup = Setup::default()
        .with("limits.webhook.header_timeout", "300ms")
        .with("limits.webhook.idle_timeout", "2s");
    let bridge = setup.start().await;
    let address = bridge.addresses.webhook;
    for begun in ["G", "GET / HTTP/1.1", "GET / HTTP/1.1\r\nHost: b\r\n"] {
        let answers = exchange(address, begun.as_bytes()).await;
        assert_eq!(answers.len(), 1, "{begun}");
        assert_refused(&answers[0], 408, "header_too_slow", begun);
        assert_eq!(answers[0].header("retry-after"), Some("1"));
    }
    assert!(exchange(address, b"").await.is_empty());
    // After an answer it may be idle for longer.
    let since = Instant::now();
    let request = delivery("/webhooks", &["Host: b"], "evt_1");
    let answers = exchange(address, request.as_bytes()).await;
    assert_eq!(
        answers
            .iter()
            .map(|answer| answer.status)
            .collect::<Vec<_>>(),
        [200]
    );
    assert!(
        since.elapsed() >= Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
    for (reason, count) in [("idle", 1.0), ("silent", 4.0)] {
        let sample = format!(
            r#"prelude_bridge_connections_closed_total{{listener="webhook",reason="{reason}"}}"#
        );
        bridge.counts(&sample, count).await;
    }
    bridge.finish().await;
}
