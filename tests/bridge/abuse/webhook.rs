//! The port that faces the internet: those who are slow, those who never end, and those who do not
//! listen.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::JoinSet,
    time::{interval, timeout},
};

use super::{
    Guarded, sockets,
    sockets::{read_to_end, status},
    within,
};
use crate::{
    support::{APP, Setup, certificates::Authority, sender::Sender, sign},
    tls::Secured as _,
};

/// Attackers of one kind at once: below what one address may have.
const SOCKETS: usize = 60;

/// The deadlines of these tests, below the defaults only to be quicker.
const HEADER_TIMEOUT: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// Long enough for a loopback.
const AT_ONCE: Duration = Duration::from_millis(500);
/// How long an answer may wait for its reader; not a setting.
const WRITE_TIMEOUT: Duration = Duration::from_secs(8);

async fn guarded() -> Guarded {
    let setup = Setup::default()
        .with("limits.webhook.header_timeout", "1s")
        .with("limits.webhook.request_timeout", "2s");
    Guarded::start(setup).await
}

/// The head of a delivery that could be one, up to its last line.
fn head(lines: &str) -> String {
    let signature = sign(b"another body");
    format!(
        "POST /webhooks/{APP} HTTP/1.1\r\nHost: bridge\r\nX-Webhook-Signature: {signature}\r\n{lines}\r\n\r\n"
    )
}

/// Many of the same, each on a socket of its own.
async fn all<T: Send + 'static, F>(
    guarded: &Guarded,
    sockets: usize,
    attack: impl Fn(TcpStream) -> F,
) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let mut attacks = JoinSet::new();
    for _ in 0..sockets {
        let stream = sockets::connect(guarded.bridge.addresses.webhook).await;
        attacks.spawn(attack(stream.unwrap()));
    }
    attacks.join_all().await
}

/// Says something, and then a little more and a little more, as long as somebody listens. Returns
/// what was answered.
async fn dribble(stream: TcpStream, start: Vec<u8>, more: &'static [u8]) -> Vec<u8> {
    let (mut reader, mut writer) = stream.into_split();
    let talking = tokio::spawn(async move {
        let mut pace = interval(Duration::from_millis(100));
        let _ = writer.write_all(&start).await;
        while writer.write_all(more).await.is_ok() {
            pace.tick().await;
        }
    });
    let mut answer = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut answer).await;
    talking.abort();
    answer
}

/// Sends without a pause until nobody takes it any more. Returns what was answered.
async fn pour(stream: TcpStream, start: Vec<u8>, more: Vec<u8>, times: usize) -> Vec<u8> {
    let (mut reader, mut writer) = stream.into_split();
    let talking = tokio::spawn(async move {
        let _ = writer.write_all(&start).await;
        for _ in 0..times {
            if writer.write_all(&more).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    });
    let mut answer = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut answer).await;
    talking.abort();
    answer
}

fn statuses(answers: &[Vec<u8>]) -> Vec<Option<u16>> {
    answers.iter().map(|answer| status(answer)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_is_cut_at_the_deadline() {
    let guarded = guarded().await;

    let silent = async || {
        let silent = all::<Vec<u8>, _>(&guarded, SOCKETS, |mut stream| async move {
            read_to_end(&mut stream).await
        });
        within(HEADER_TIMEOUT, silent).await
    };
    let silent = guarded.under("silent sockets", silent).await.concat();
    assert!(silent.iter().all(Vec::is_empty));
    let silent = r#"prelude_bridge_connections_closed_total{listener="webhook",reason="silent"}"#;
    guarded.bridge.counts_at_least(silent, SOCKETS as f64).await;

    let slow_headers = async || {
        let slow_headers = all(&guarded, SOCKETS, |stream| {
            let start = format!("POST /webhooks/{APP} HTTP/1.1\r\nHost: bridge\r\nX-Slow: ");
            dribble(stream, start.into(), b"x")
        });
        within(HEADER_TIMEOUT, slow_headers).await
    };
    let answers = guarded.under("slow headers", slow_headers).await;
    let answers = statuses(&answers.concat());
    assert!(
        answers
            .iter()
            .all(|status| matches!(status, None | Some(408)))
    );

    let slow_bodies = async || {
        let slow_bodies = all(&guarded, SOCKETS, |stream| {
            dribble(stream, head("Content-Length: 100000").into(), b"x")
        });
        within(REQUEST_TIMEOUT, slow_bodies).await
    };
    for answers in guarded.under("slow bodies", slow_bodies).await {
        assert_eq!(statuses(&answers), [Some(503); SOCKETS]);
    }
    let outcome =
        r#"prelude_bridge_webhook_requests_total{outcome="deadline_exceeded",status="503"}"#;
    guarded
        .bridge
        .counts_at_least(outcome, SOCKETS as f64)
        .await;

    let slow_chunks = async || {
        let slow_chunks = all(&guarded, SOCKETS, |stream| {
            let head = head("Transfer-Encoding: chunked");
            dribble(stream, head.into(), b"1\r\nx\r\n")
        });
        within(REQUEST_TIMEOUT, slow_chunks).await
    };
    for answers in guarded.under("slow chunks", slow_chunks).await {
        assert_eq!(statuses(&answers), [Some(503); SOCKETS]);
    }
    guarded.finish().await;
}

/// Bodies of this size begin to be large: half of what one may have, and a little.
const BODY_BYTES: usize = 513 * 1024;

/// Sends all of a body but its last byte, and then nothing. Returns what was answered.
async fn all_but_the_end(source: Ipv4Addr, address: SocketAddr) -> Option<u16> {
    let mut stream = sockets::connect_from(source, address).await.ok()?;
    let head = head(&format!("Content-Length: {BODY_BYTES}"));
    let body = vec![b' '; BODY_BYTES - 1];
    // An end while this is written is an answer, too.
    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
    status(&read_to_end(&mut stream).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_begun_and_not_ended_keep_nobody_out() {
    let guarded = Guarded::start(Setup::default()).await;
    let address = guarded.bridge.addresses.webhook;
    // A batch that is as large as what the attackers begin.
    let padding = "x".repeat(BODY_BYTES);
    let large = format!(r#"{{"app_id":"{APP}","events":[],"padding":"{padding}"}}"#);
    let elsewhere = Ipv4Addr::new(127, 0, 0, 66);
    for (name, source) in [
        ("bodies without an end", elsewhere),
        ("the same from the sender's address", Ipv4Addr::LOCALHOST),
    ] {
        let attack = async || {
            let mut attacks = JoinSet::new();
            for _ in 0..64 {
                attacks.spawn(all_but_the_end(source, address));
            }
            let mut answers = Vec::new();
            let mut acknowledged = 0;
            while !attacks.is_empty() {
                let answer = guarded.bridge.post(large.as_bytes()).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                acknowledged += 1;
                while let Some(answer) = attacks.try_join_next() {
                    answers.push(answer.unwrap());
                }
            }
            (answers, acknowledged)
        };
        for (answers, acknowledged) in guarded.under(name, attack).await {
            assert!(acknowledged > 0);
            let told = |status: &Option<u16>| matches!(status, None | Some(429 | 503));
            assert!(answers.iter().all(told), "{answers:?}");
        }
    }
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_ends_is_cut_at_its_limit() {
    let guarded = guarded().await;
    let line = format!("X-Long: {}\r\n", "x".repeat(900));
    let long_headers = async || {
        let long_headers = all(&guarded, SOCKETS, |stream| {
            let start = "GET /webhooks HTTP/1.1\r\n".into();
            pour(stream, start, line.clone().into(), 1_000)
        });
        within(HEADER_TIMEOUT, long_headers).await
    };
    let answers = guarded.under("endless headers", long_headers).await;
    assert!(
        statuses(&answers.concat())
            .iter()
            .all(|&status| status == Some(431) || status.is_none())
    );

    let many_headers = async || {
        let many_headers = all(&guarded, SOCKETS, |stream| {
            let start = "GET /webhooks HTTP/1.1\r\n".into();
            pour(stream, start, b"x:\r\n".repeat(100), 100)
        });
        within(HEADER_TIMEOUT, many_headers).await
    };
    let answers = guarded.under("many headers", many_headers).await;
    assert!(
        statuses(&answers.concat())
            .iter()
            .all(|&status| status == Some(431) || status.is_none())
    );

    let chunk = [b"ffff\r\n".as_slice(), &[b'x'; 0xffff], b"\r\n"].concat();
    let chunks = async || {
        let chunks = all(&guarded, 10, |stream| {
            let head = head("Transfer-Encoding: chunked").into();
            pour(stream, head, chunk.clone(), 2_000)
        });
        within(REQUEST_TIMEOUT, chunks).await
    };
    let answers = guarded.under("endless chunks", chunks).await;
    let answers = statuses(&answers.concat());
    assert!(
        answers
            .iter()
            .all(|&status| status == Some(413) || status.is_none()),
        "{answers:?}"
    );

    for (name, expected, start, more) in [
        ("endless chunk extensions", 413, "1;", "x".repeat(1000)),
        (
            "extensions without a large one",
            413,
            "",
            format!("1;{}\r\nx\r\n", "x".repeat(1000)),
        ),
        ("endless chunk sizes", 413, "", "0".repeat(1000)),
        (
            "endless trailers",
            431,
            "1\r\nx\r\n0\r\n",
            "x: y\r\n".repeat(100),
        ),
    ] {
        let endless = async || {
            let endless = all(&guarded, 10, |stream| {
                let start = head("Transfer-Encoding: chunked") + start;
                // As far as somebody listens after the answer.
                pour(stream, start.into(), more.clone().into(), 3_000)
            });
            // At once, and not only at a deadline.
            within(AT_ONCE, endless).await
        };
        let answers = guarded.under(name, endless).await;
        let answers = statuses(&answers.concat());
        let told = |status: &Option<u16>| *status == Some(expected);
        assert!(answers.iter().all(told), "{name}: {answers:?}");
    }
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_handshake_is_cut_at_its_deadline() {
    let authority = Authority::new();
    let setup = Setup::default()
        .with("store", "memory")
        .with("tls.handshake_timeout", "1s")
        .secured("webhook", &authority.server("server"));
    let bridge = setup.start().await;
    let sender = Sender::over_tls(bridge.addresses.webhook, &authority);
    let guarded = Guarded::with(bridge, sender).await;
    // A record that announces more than comes, one byte of a record, and nothing.
    let beginnings = [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\x16",
        b"",
    ];
    let attack = async || {
        let attacks = beginnings.map(|beginning| {
            all(&guarded, SOCKETS, move |mut stream| async move {
                stream.write_all(beginning).await.unwrap();
                read_to_end(&mut stream).await
            })
        });
        let attacks = futures_util::future::join_all(attacks);
        within(HANDSHAKE_TIMEOUT, attacks).await.concat()
    };
    let answers = guarded.under("half TLS handshakes", attack).await.concat();
    assert!(answers.iter().all(Vec::is_empty));
    let timeouts =
        r#"prelude_bridge_tls_handshake_failures_total{listener="webhook",reason="timeout"}"#;
    guarded
        .bridge
        .counts_at_least(timeouts, answers.len() as f64)
        .await;
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_the_answers_is_cut() {
    let guarded = guarded().await;
    let requests = "GET /webhooks HTTP/1.1\r\nHost: bridge\r\n\r\n".repeat(200);
    let attack = async || {
        let mut deaf = JoinSet::new();
        for _ in 0..2 {
            let address = guarded.bridge.addresses.webhook;
            let mut stream = sockets::connect_narrow(address).await.unwrap();
            let requests = requests.clone();
            deaf.spawn(async move {
                // Not a byte is read. Writing fails once the other side is gone.
                while let Ok(written) = timeout(
                    Duration::from_secs(60),
                    stream.write_all(requests.as_bytes()),
                )
                .await
                {
                    if written.is_err() {
                        return;
                    }
                }
                unreachable!("the connection is kept");
            });
        }
        deaf.join_all().await;
    };
    // It takes a while until the buffers of the system are full.
    let deadline = WRITE_TIMEOUT + Duration::from_secs(10);
    let attack = async || within(deadline, attack()).await;
    guarded.under("pipelined and never read", attack).await;
    let unread = r#"prelude_bridge_connections_closed_total{listener="webhook",reason="unread"}"#;
    guarded.bridge.counts_at_least(unread, 2.0).await;
    guarded.finish().await;
}
