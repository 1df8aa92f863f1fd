//! Request smuggling: messages that two readers of HTTP/1.1 could cut into requests at different places, sent
//! through nginx, HAProxy and Envoy, and to the bridge alone. Each carries a second request, signed, to a path
//! that the proxy lets nobody reach. So its event is in the log only if the proxy took it for a part of the
//! first request and the bridge did not.

use std::{net::SocketAddr, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    proxies::{ENVOY_ARGUMENTS, NGINX_ARGUMENTS, Proxy, free_port, installed},
    support::{APP, Bridge, OTHER_APP, batch, item, sign},
    tools::tool,
};

/// How long an answer is waited for that a proxy may never send.
const PATIENCE: Duration = Duration::from_secs(2);

/// The request that nobody may get through the proxies.
fn hidden() -> String {
    let body = batch(APP, &[item("evt_smuggled", "user.created", "usr_1")]);
    format!(
        "POST /webhooks/{APP} HTTP/1.1\r\nHost: bridge\r\nX-Webhook-Signature: {}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        sign(body.as_bytes()),
        body.len()
    )
}

/// The lines of a first request and its body, in which `{n}` is the length of the whole body, `{HIDDEN}` the
/// second request, and `{x}` the length of that in hexadecimal.
const AMBIGUOUS: &[(&str, &str)] = &[
    (
        "Content-Length: {n}\r\nTransfer-Encoding: chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: {n}",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "{x}\r\n{HIDDEN}\r\n0\r\n\r\n",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: xchunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding : chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding:\tchunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: \u{b}chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: identity, chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: chunked, identity",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding:\r\n chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding\r\n: chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nX: y\rTransfer-Encoding: chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nX: y\nTransfer-Encoding: chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\n Transfer-Encoding: chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer_Encoding: chunked",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: \"chunked\"",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: chunked;q=1",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding: chunked\u{0}",
        "0\r\n\r\n{HIDDEN}",
    ),
    (
        "Content-Length: {n}\r\nTransfer-Encoding:",
        "0\r\n\r\n{HIDDEN}",
    ),
    ("Content-Length: 0\r\nContent-Length: {n}", "{HIDDEN}"),
    ("Content-Length: {n}\r\nContent-Length: 0", "{HIDDEN}"),
    ("Content-Length: {n}\r\nContent-Length: {n}", "{HIDDEN}"),
    ("Content-Length: 0, {n}", "{HIDDEN}"),
    ("Content-Length: {n}, {n}", "{HIDDEN}"),
    ("Content-Length: +{n}", "{HIDDEN}"),
    ("Content-Length: 0x{x}", "{HIDDEN}"),
    ("Content-Length: 000{n}", "{HIDDEN}"),
    ("Content-Length: {n} 0", "{HIDDEN}"),
    ("Content-Length: {n}\u{b}", "{HIDDEN}"),
    ("Content-Length : {n}", "{HIDDEN}"),
    ("Content-Length:\r\n {n}", "{HIDDEN}"),
    ("Content-Length: 18446744073709551616", "{HIDDEN}"),
    (
        "Connection: Content-Length\r\nContent-Length: {n}",
        "{HIDDEN}",
    ),
    (
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
        "{x}\r\n{HIDDEN}\r\n0\r\n\r\n",
    ),
    ("Expect: 100-continue\r\nContent-Length: {n}", "{HIDDEN}"),
    (
        "Transfer-Encoding: chunked",
        "10000000000000000\r\n\r\n0\r\n\r\n{HIDDEN}",
    ),
    ("Transfer-Encoding: chunked", "0x0\r\n\r\n{HIDDEN}"),
    ("Transfer-Encoding: chunked", "0 \r\n\r\n{HIDDEN}"),
    ("Transfer-Encoding: chunked", "0;\n\r\n{HIDDEN}"),
    ("Transfer-Encoding: chunked", "1\r\nZ\n0\r\n\r\n{HIDDEN}"),
    (
        "Transfer-Encoding: chunked",
        "2;\n{}\r\n{x}\r\n{HIDDEN}\r\n0\r\n\r\n",
    ),
    (
        "Transfer-Encoding: chunked",
        "0\r\nContent-Length: {x}\r\n\r\n{HIDDEN}",
    ),
];

fn message(version: &str, (lines, body): (&str, &str)) -> Vec<u8> {
    let hidden = hidden();
    let hexadecimal = format!("{:x}", hidden.len());
    let body = body
        .replace("{x}", &hexadecimal)
        .replace("{HIDDEN}", &hidden);
    let lines = lines.replace("{x}", &hexadecimal);
    let lines = lines.replace("{n}", &body.len().to_string());
    let head =
        format!("POST /webhooks/{OTHER_APP} HTTP/{version}\r\nHost: bridge\r\n{lines}\r\n\r\n");
    (head + &body).into_bytes()
}

/// Sends a message, and reads what comes until the other side closes the connection or falls silent.
async fn answers(address: SocketAddr, message: Vec<u8>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // An end while this is written is an answer, too.
    let _ = stream.write_all(&message).await;
    let mut answers = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await;
    String::from_utf8_lossy(&answers).into_owned()
}

/// Sends all of them through a proxy, several times, so that its connections to the bridge are used again
/// after what may have been left on them.
async fn smuggle_through(proxy: &Proxy, bridge: &Bridge) {
    let address: SocketAddr = proxy.url.strip_prefix("http://").unwrap().parse().unwrap();
    let refused = answers(address, hidden().into_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    for version in ["1.1", "1.0"] {
        let mut messages = JoinSet::new();
        for &ambiguous in AMBIGUOUS {
            messages.spawn(answers(address, message(version, ambiguous)));
        }
        for answers in messages.join_all().await {
            assert!(!answers.contains("accepted"), "{answers}");
        }
    }
    assert_eq!(bridge.head().await, 0, "{}", proxy.log());
    let accepted = r#"prelude_bridge_webhook_requests_total{outcome="accepted",status="200"}"#;
    assert!(matches!(bridge.metric(accepted).await, None | Some(0.0)));
    // Nothing is wrong with the second request: where it is allowed to go, it is accepted.
    let alone = answers(bridge.addresses.webhook, hidden().into_bytes()).await;
    assert!(alone.contains(r#"{"accepted":1,"#), "{alone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_smuggled_through_nginx() {
    let Some(nginx) = installed("nginx") else {
        return;
    };
    let bridge = Bridge::start().await;
    let port = free_port().await;
    let settings = format!(
        "events {{}}
         http {{
             access_log off;
             upstream bridge {{ server {}; keepalive 4; }}
             server {{
                 listen 127.0.0.1:{port};
                 location /webhooks/{APP} {{ return 403; }}
                 location / {{
                     proxy_pass http://bridge;
                     proxy_http_version 1.1;
                     proxy_set_header Connection \"\";
                     proxy_request_buffering off;
                 }}
             }}
         }}",
        bridge.addresses.webhook
    );
    let settings = ("nginx.conf", settings.as_str());
    let proxy = Proxy::start_with(&nginx, &NGINX_ARGUMENTS, settings, port).await;
    smuggle_through(&proxy, &bridge).await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_smuggled_through_haproxy() {
    let Some(haproxy) = installed("haproxy") else {
        return;
    };
    for tolerance in ["", "option accept-invalid-http-request"] {
        let bridge = Bridge::start().await;
        let port = free_port().await;
        let settings = format!(
            "defaults
                 mode http
                 timeout connect 5s
                 timeout client 5s
                 timeout server 5s
                 timeout http-request 5s
             frontend webhooks
                 bind 127.0.0.1:{port}
                 {tolerance}
                 http-request deny if {{ path_beg /webhooks/{APP} }}
                 default_backend bridge
             backend bridge
                 http-reuse always
                 server bridge {}\n",
            bridge.addresses.webhook
        );
        let settings = ("haproxy.cfg", settings.as_str());
        let proxy = Proxy::start_with(&haproxy, &["-db", "-f"], settings, port).await;
        smuggle_through(&proxy, &bridge).await;
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_smuggled_through_envoy() {
    let envoy = tool("bin/envoy");
    let bridge = Bridge::start().await;
    let port = free_port().await;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/proxies/envoy-webhooks.yaml");
    let settings = std::fs::read_to_string(file).unwrap();
    let bridge_port = bridge.addresses.webhook.port().to_string();
    let settings = settings
        .replace("PORT_OF_PROXY", &port.to_string())
        .replace("PORT_OF_BRIDGE", &bridge_port)
        .replace("HIDDEN_PATH", &format!("/webhooks/{APP}"));
    let settings = ("envoy.yaml", settings.as_str());
    let proxy = Proxy::start_with(&envoy, &ENVOY_ARGUMENTS, settings, port).await;
    smuggle_through(&proxy, &bridge).await;
    bridge.finish().await;
}

/// A proxy that passes everything on as it came: the bridge sees one request and refuses what follows, or it
/// sees two where both readers must.
#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_alone_reads_one_request_or_refuses() {
    let bridge = Bridge::start().await;
    // What all readers agree about: that the second request is a body, or is none.
    let clear = [
        "Content-Length: 000{n}",
        "Content-Length: {n}\r\nTransfer_Encoding: chunked",
        "Connection: Content-Length\r\nContent-Length: {n}",
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
        "Expect: 100-continue\r\nContent-Length: {n}",
    ];
    let mut messages = JoinSet::new();
    for &(lines, body) in AMBIGUOUS {
        // Fields of trailers are never those of a head: the second request is one.
        if body.starts_with("0\r\nContent-Length") {
            continue;
        }
        let answers = answers(bridge.addresses.webhook, message("1.1", (lines, body)));
        messages.spawn(async move { (lines, body, answers.await) });
    }
    for (lines, body, answers) in messages.join_all().await {
        assert_eq!(
            answers.matches("HTTP/1.1 ").count(),
            1,
            "{lines:?} {body:?}: {answers}"
        );
        let status: u16 = answers[9..12].parse().unwrap();
        if clear.contains(&lines) {
            assert_eq!(status, 401, "{lines:?}: {answers}");
        } else {
            // Whether a body is malformed does not matter where it is refused by its head.
            assert!(
                matches!(status, 400 | 413 | 501)
                    || (status == 401 && lines == "Transfer-Encoding: chunked"),
                "{lines:?} {body:?}: {answers}"
            );
            assert!(answers.to_lowercase().contains("connection: close"));
        }
    }
    assert_eq!(bridge.head().await, 0);
    bridge.finish().await;
}
