use std::{net::IpAddr, time::Instant};

use http::{HeaderMap, HeaderName};
use tokio::net::TcpSocket;

use super::{delivery::Arrival, error::Error, pending::Pending, *};
use crate::net::{
    http1::Peer,
    slots::{self, Slots},
};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let bridge = Bridge::start().await;
    let (exact, over) = (batch_of_bytes(MIB), batch_of_bytes(MIB + 1));
    bridge
        .ask(delivery("/webhooks/54e9ujn", &exact))
        .await
        .assert_accepted(1, 0);
    bridge
        .ask(delivery("/webhooks/54e9ujn", &over))
        .await
        .assert_refused(413, "body_too_large");
    for chunk_bytes in [1000, 16 * 1024, MIB] {
        let answer = bridge
            .ask(chunked_delivery("/webhooks", &exact, chunk_bytes))
            .await;
        answer.assert_accepted(0, 1);
        let answer = bridge
            .ask(chunked_delivery("/webhooks", &over, chunk_bytes))
            .await;
        answer.assert_refused(413, "body_too_large");
    }
    // Size is judged before signatures.
    let unsigned = post_with("/webhooks/54e9ujn", &[], over.as_bytes());
    bridge
        .ask(unsigned)
        .await
        .assert_refused(413, "body_too_large");
    assert_eq!(bridge.events(), 1);
}

#[tokio::test]
async fn an_absurd_length_is_refused_without_waiting_for_it() {
    let bridge = Bridge::start().await;
    for (length, status) in [
        ("1073741824", 413),
        ("18446744073709551613", 413),
        ("18446744073709551615", 413),
        ("184467440737095516160", 413),
    ] {
        let request = format!(
            "POST /webhooks/54e9ujn HTTP/1.1\r\nHost: bridge\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        );
        let answer = bridge.ask(request).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

#[tokio::test]
async fn bodies_share_a_bounded_memory() {
    let options = Options {
        bodies_bytes_max: 256 * 1024,
        request_timeout: Duration::from_secs(4),
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let request = delivery("/webhooks/54e9ujn", &batch_of_bytes(200_000));
    // One body is whole, and keeps its memory until the log has it.
    bridge.log.script_appends(Script::NeverAnswers);
    let mut first = bridge.client().await;
    first.send(&request).await;
    let is_read = "prelude_bridge_webhook_body_bytes_total 200000";
    while !bridge.metrics.render().contains(is_read) {
        tokio::task::yield_now().await;
    }
    let answer = bridge.ask(&request).await;
    answer.assert_refused(429, "too_many_bodies");
    // It keeps it also if its sender has closed the connection, until its time is up.
    drop(first);
    bridge.log.script_appends(Script::Works);
    let answer = loop {
        let answer = bridge.ask(&request).await;
        if answer.status != 429 {
            break answer;
        }
    };
    answer.assert_accepted(1, 0);
}

#[tokio::test]
async fn a_body_that_stands_still_gives_way_to_one_that_waits_for_its_memory() {
    let options = Options {
        bodies_bytes_max: 256 * 1024,
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let request = delivery("/webhooks/54e9ujn", &batch_of_bytes(200_000));
    // One body is here but for its last byte.
    let mut slow = bridge.client().await;
    slow.send(&request[..request.len() - 1]).await;
    let mut slow = std::pin::pin!(slow.answer());
    let answer = loop {
        tokio::select! {
            answer = &mut slow => break answer.unwrap(),
            answer = bridge.ask(&request) => assert_eq!(answer.status, 200),
        }
    };
    answer.assert_refused(429, "too_many_bodies");
}

#[tokio::test(start_paused = true)]
async fn a_header_that_does_not_end_is_given_up_after_five_seconds() {
    let bridge = Bridge::start().await;
    for beginning in ["P", "\r\nP", "POST /webhooks HTTP/1.1\r\nHost: bri"] {
        for mut client in [bridge.client().await, pooled(&bridge).await] {
            let since = tokio::time::Instant::now();
            client.send(beginning).await;
            let answer = client.answer().await.unwrap();
            answer.assert_refused(408, "header_too_slow");
            assert_eq!(answer.header("connection"), Some("close"));
            assert_eq!(since.elapsed().as_secs(), 5, "{beginning:?}");
            assert!(client.answer().await.is_none());
        }
    }
    // Whoever has sent nothing is told nothing.
    let since = tokio::time::Instant::now();
    assert!(bridge.client().await.answer().await.is_none());
    assert_eq!(since.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_connection_between_two_requests_has_a_limit_of_its_own() {
    let bridge = Bridge::start().await;
    let mut client = pooled(&bridge).await;
    for idle_seconds in [4, 6, 60, 74] {
        tokio::time::sleep(Duration::from_secs(idle_seconds)).await;
        client.send(delivery("/webhooks", EMPTY)).await;
        client.answer().await.unwrap().assert_accepted(0, 0);
    }
    let since = tokio::time::Instant::now();
    assert!(client.answer().await.is_none());
    assert_eq!(since.elapsed().as_secs(), 75);
    let idle = r#"connections_closed_total{listener="webhook",reason="idle"} 1"#;
    all_are_gone(&bridge).await;
    assert!(bridge.metrics.render().contains(idle));
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_idle_as_long_as_the_options_say() {
    for (idle_timeout, header_timeout) in [(2, 5), (5, 5), (20, 5), (20, 1)] {
        let options = Options {
            connection: http1::Limits {
                idle_timeout: Duration::from_secs(idle_timeout),
                header_timeout: Duration::from_secs(header_timeout),
                ..http1::Limits::default()
            },
            ..Options::default()
        };
        let bridge = Bridge::start_with(options, &[APP]).await;
        let mut client = pooled(&bridge).await;
        let since = tokio::time::Instant::now();
        assert!(client.answer().await.is_none());
        assert_eq!(since.elapsed().as_secs(), idle_timeout);
    }
}

/// A connection that has sent something genuine and then nothing for as long as a header may take makes
/// room for a new one; one that has just been used does not.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_makes_room_for_a_new_one() {
    let options = Options {
        listener: net::Limits {
            connections_max: 2,
            ..net::Limits::default()
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let mut idle = pooled(&bridge).await;
    let mut busy = pooled(&bridge).await;
    let refused = bridge.ask(delivery("/webhooks", EMPTY)).await;
    refused.assert_refused(503, "too_many_connections");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        busy.send(delivery("/webhooks", EMPTY)).await;
        busy.answer().await.unwrap().assert_accepted(0, 0);
    }
    let mut new = pooled(&bridge).await;
    assert!(idle.answer().await.is_none());
    for kept in [&mut busy, &mut new] {
        kept.send(delivery("/webhooks", EMPTY)).await;
        kept.answer().await.unwrap().assert_accepted(0, 0);
    }
    let counted =
        r#"connections_closed_total{listener="webhook",reason="evicted_listener_full"} 1"#;
    assert!(bridge.metrics.render().contains(counted));
}

/// It is not idle any more, although its request is not whole.
#[tokio::test]
async fn a_connection_that_goes_on_after_a_pause_keeps_its_place() {
    let header_timeout = Duration::from_millis(500);
    let options = Options {
        connection: http1::Limits {
            header_timeout,
            ..http1::Limits::default()
        },
        listener: net::Limits {
            connections_max: 1,
            ..net::Limits::default()
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let mut client = pooled(&bridge).await;
    tokio::time::sleep(header_timeout * 2).await;
    let request = delivery("/webhooks", TWO);
    let (last, rest) = request.split_last().unwrap();
    client.send(rest).await;
    // For the bridge to have read it.
    tokio::time::sleep(header_timeout).await;
    let refused = bridge.ask(delivery("/webhooks", EMPTY)).await;
    refused.assert_refused(503, "too_many_connections");
    client.send([*last]).await;
    client.answer().await.unwrap().assert_accepted(2, 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_is_answered_after_five_seconds() {
    let bridge = Bridge::start().await;
    let request = delivery("/webhooks/54e9ujn", TWO);
    let chunked = chunked_delivery("/webhooks/54e9ujn", TWO, 10);
    for request in [&request[..request.len() - 1], &chunked[..chunked.len() - 5]] {
        let since = tokio::time::Instant::now();
        let mut client = bridge.client().await;
        client.send(request).await;
        let answer = client.answer().await.unwrap();
        answer.assert_refused(503, "deadline_exceeded");
        assert_eq!(since.elapsed().as_secs(), 5);
        while client.fill().await {}
    }
    assert_eq!(bridge.events(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_has_no_more_time_than_one_that_stands_still() {
    let bridge = Bridge::start().await;
    let request = delivery("/webhooks/54e9ujn", TWO);
    let (start, rest) = request.split_at(request.len() - 20);
    let mut client = bridge.client().await;
    client.send(start).await;
    let since = tokio::time::Instant::now();
    for byte in rest {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if client.stream.write_all(&[*byte]).await.is_err() {
            break;
        }
    }
    client
        .answer()
        .await
        .unwrap()
        .assert_refused(503, "deadline_exceeded");
    assert!(since.elapsed().as_secs() >= 5);
}

#[tokio::test(start_paused = true)]
async fn a_body_has_the_time_that_the_options_say() {
    let options = Options {
        body_timeout: Duration::from_secs(2),
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let request = delivery("/webhooks/54e9ujn", TWO);
    let since = tokio::time::Instant::now();
    let mut client = bridge.client().await;
    client.send(&request[..request.len() - 1]).await;
    let answer = client.answer().await.unwrap();
    answer.assert_refused(503, "deadline_exceeded");
    assert_eq!(since.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_does_not_answer_is_given_eight_seconds_in_all() {
    let bridge = Bridge::start().await;
    bridge.log.script_appends(Script::NeverAnswers);
    let since = tokio::time::Instant::now();
    let answer = bridge.ask(delivery("/webhooks/54e9ujn", TWO)).await;
    answer.assert_refused(503, "deadline_exceeded");
    assert_eq!(since.elapsed().as_secs(), 8);
}

#[tokio::test]
async fn headers_have_a_largest_number_and_size() {
    let bridge = Bridge::start().await;
    let with = |lines: &[String]| {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        post_with("/webhooks/54e9ujn", &lines, b"")
    };
    let lines = |count: usize| -> Vec<String> { (0..count).map(|i| format!("X-{i}: 1")).collect() };
    // Host and Content-Length are two of the 64.
    bridge
        .ask(with(&lines(62)))
        .await
        .assert_refused(401, "signature_missing");
    for too_large in [lines(63), vec![format!("X-Long: {}", "x".repeat(17_000))]] {
        let answer = bridge.ask(with(&too_large)).await;
        answer.assert_refused(431, "header_too_large");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: b\r\n\r\n", "x".repeat(17_000));
    let answer = bridge.ask(long).await;
    answer.assert_refused(414, "target_too_long");
}

#[tokio::test]
async fn headers_have_the_number_and_the_size_that_the_options_say() {
    let options = Options {
        connection: http1::Limits {
            headers_max: 5,
            header_bytes_max: 9_000,
            ..http1::Limits::default()
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let long = |bytes| format!("X-Long: {}", "x".repeat(bytes));
    let path = "/webhooks/54e9ujn";
    for (lines, status) in [
        (&["X-1: 1", "X-2: 1", "X-3: 1"][..], 401),
        (&["X-1: 1", "X-2: 1", "X-3: 1", "X-4: 1"], 431),
        (&[&long(8_500)], 401),
        (&[&long(20_000)], 431),
    ] {
        let answer = bridge.ask(post_with(path, lines, b"")).await;
        assert_eq!(answer.status, status, "{}", lines.len());
    }
}

#[tokio::test]
async fn chunks_may_be_small_but_not_all_wrapping() {
    let options = Options {
        connection: http1::Limits {
            framing_bytes_max: 16 * 1024,
            ..http1::Limits::default()
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let path = "/webhooks/54e9ujn";
    let long = batch_of_bytes(100_000);
    bridge
        .ask(chunked_delivery(path, &long, 1))
        .await
        .assert_accepted(1, 0);
    let head = chunked_delivery(path, "", 1);
    let head = head.strip_suffix(b"0\r\n\r\n").unwrap();
    for wrapping in [
        "0".repeat(100_000),
        format!("{}1\r\nx\r\n", "0".repeat(20)).repeat(10_000),
    ] {
        let mut client = bridge.client().await;
        client.send([head, wrapping.as_bytes()].concat()).await;
        let answer = client.answer().await;
        // The word may be lost on what was still coming.
        if let Some(answer) = answer {
            answer.assert_refused(413, "framing_too_large");
        }
        while client.fill().await {}
    }
    // Two requests on one connection do not share what they may have.
    let mut client = bridge.client().await;
    let zeros = "0".repeat(12 * 1024);
    for _ in 0..4 {
        let body = [head, zeros.as_bytes(), b"2\r\n{}\r\n0\r\n\r\n"].concat();
        client.send(body).await;
        client
            .answer()
            .await
            .unwrap()
            .assert_refused(401, "signature_mismatch");
    }
}

/// A retry would not help, so they are not told that the body broke off.
#[tokio::test]
async fn the_extensions_and_the_trailers_of_a_body_have_limits() {
    let bridge = Bridge::start().await;
    let half = "x".repeat(8 * 1024);
    let with = |extension: &str, trailer: &str| {
        let request = String::from_utf8(chunked_delivery("/webhooks", EMPTY, 20)).unwrap();
        let trailers = format!("\r\n0\r\nX: {half}\r\nX: {trailer}\r\n\r\n");
        request
            .replacen("\r\n14\r\n", &format!("\r\n14;{half}\r\n"), 1)
            .replacen("\r\nc\r\n", &format!("\r\nc;{extension}\r\n"), 1)
            .replacen("\r\n0\r\n\r\n", &trailers, 1)
    };
    // Less than 16 KiB; and the trailers have twelve bytes that are not their values.
    let (extension, trailer) = (&half[1..], &half[13..]);
    let answer = bridge.ask(with(extension, trailer)).await;
    answer.assert_accepted(0, 0);
    let answer = bridge.ask(with(&half, trailer)).await;
    answer.assert_refused(413, "framing_too_large");
    let answer = bridge.ask(with(extension, &half[12..])).await;
    answer.assert_refused(431, "trailers_too_large");
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so_and_closed_at_once() {
    let options = Options {
        listener: net::Limits {
            connections_max: 1,
            ..net::Limits::default()
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let mut first = bridge.client().await;
    first.send(delivery("/webhooks", EMPTY)).await;
    first.answer().await.unwrap().assert_accepted(0, 0);
    let mut second = bridge.client().await;
    second.send(delivery("/webhooks", EMPTY)).await;
    let refused = second.answer().await.unwrap();
    refused.assert_refused(503, "too_many_connections");
    assert!(second.answer().await.is_none());
    assert!(
        bridge
            .metrics
            .render()
            .contains(r#"reason="listener_full"} 1"#)
    );
}

#[tokio::test]
async fn many_forged_deliveries_do_not_keep_a_genuine_one_out() {
    let bridge = Bridge::start().await;
    let forged = post_with(
        "/webhooks/54e9ujn",
        &[&format!(
            "X-Webhook-Signature: {}",
            signature(b"something else")
        )],
        TWO.as_bytes(),
    );
    let mut forgers = Vec::new();
    for _ in 0..100 {
        let mut client = bridge.client().await;
        client.send(&forged).await;
        forgers.push(client);
    }
    bridge
        .ask(delivery("/webhooks/54e9ujn", TWO))
        .await
        .assert_accepted(2, 0);
    for forger in &mut forgers {
        forger
            .answer()
            .await
            .unwrap()
            .assert_refused(401, "signature_mismatch");
    }
}

/// A delivery under the signature of another one.
fn forged() -> Vec<u8> {
    let signature = format!("X-Webhook-Signature: {}", signature(b"something else"));
    post_with("/webhooks/54e9ujn", &[&signature], TWO.as_bytes())
}

/// Sends it from an address of its own, and closes the connection without waiting for anything.
async fn send_and_go(bridge: &Bridge, request: &[u8]) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 66], 0).into()).unwrap();
    let mut stream = socket.connect(bridge.address).await.unwrap();
    stream.write_all(request).await.unwrap();
}

/// Waits until nobody is connected.
async fn all_are_gone(bridge: &Bridge) {
    let none = "prelude_bridge_connections_open{listener=\"webhook\"} 0";
    while !bridge.metrics.render().contains(none) {
        tokio::task::yield_now().await;
    }
}

/// How many forgeries were counted.
fn forgeries(bridge: &Bridge) -> u64 {
    let page = bridge.metrics.render();
    let name = "prelude_bridge_webhook_verification_failures_total{reason=\"mismatch\"} ";
    let count = page.lines().find_map(|line| line.strip_prefix(name));
    count.map_or(0, |count| count.parse().unwrap())
}

/// A connection that is closed drops the future of its request, wherever that is.
#[tokio::test]
async fn a_forgery_that_is_dropped_while_it_is_verified_is_counted() {
    let (receiver, log, metrics, _keys) = receiver(Options::default(), &[APP]);
    let headers = |signed: &[u8]| {
        [
            ("x-webhook-signature", signature(signed)),
            ("content-length", TWO.len().to_string()),
        ]
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .into_iter()
        .collect::<HeaderMap>()
    };
    let address = IpAddr::from([192, 0, 2, 1]);
    let slots = Slots::new(slots::Limits {
        slots_max: 10,
        slots_reserved: 0,
        slots_per_address_max: 10,
    });
    let peer = Peer {
        address: (address, 1).into(),
        standing: slots.standing(address),
        closed: CancellationToken::new(),
    };
    let is_known = || {
        let entered = slots.enter(address, false, None);
        entered.unwrap().0.is_known()
    };
    let pending = Pending::new(
        &receiver.shared,
        None,
        Some(&peer),
        tokio::time::Instant::now(),
    );
    let arrival = Arrival {
        pending: &pending,
        client: receiver
            .shared
            .options
            .sources
            .client(None, &HeaderMap::new()),
        deadline: tokio::time::Instant::now() + Duration::from_secs(8),
    };
    let counted = || {
        let page = metrics.render();
        page.contains("verification_failures_total{reason=\"mismatch\"} 1")
    };
    let chunks = || tokio_stream::iter([Ok::<_, warp::Error>(TWO.as_bytes())]);
    let forged = headers(b"something else");
    peer.standing.prove();
    let taking = delivery::take(&receiver.shared, Some(APP), &forged, &arrival, chunks());
    // It gives way to others after a key that does not fit. One that ends for another reason, such as its
    // deadline, is not a forgery of a sender that went away.
    assert!(taking.now_or_never().is_none());
    assert!(!metrics.render().contains(r#"{reason="mismatch"} 1"#));
    peer.closed.cancel();
    let taking = delivery::take(&receiver.shared, Some(APP), &forged, &arrival, chunks());
    assert!(taking.now_or_never().is_none());
    assert!(counted());
    // A newer key might have verified it, so its sender stays known.
    assert!(is_known());
    // A genuine one is done, and one that is dropped before it was tried was nothing.
    let good = headers(TWO.as_bytes());
    let held_back = tokio_stream::pending::<Result<&[u8], warp::Error>>();
    let taking = delivery::take(&receiver.shared, Some(APP), &forged, &arrival, held_back);
    assert!(taking.now_or_never().is_none());
    let taking = delivery::take(&receiver.shared, Some(APP), &good, &arrival, chunks());
    assert_eq!(taking.await.unwrap().accepted, 2);
    assert!(counted());
    assert_eq!(log.range().event_count(), 2);
    // One that was seen to be forged makes it a stranger.
    assert!(is_known());
    let taking = delivery::take(&receiver.shared, Some(APP), &forged, &arrival, chunks());
    assert!(matches!(taking.await, Err(Error::Forged { .. })));
    assert!(!is_known());
}

/// A request that is refused while its body still comes, or given up before it has an outcome.
#[tokio::test]
async fn a_request_whose_caller_goes_away_is_counted_with_its_outcome() {
    let options = Options {
        forgeries: forgeries::Limits {
            at_once: 1,
            per_second: 1,
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    // From now on forgeries wait for their turn.
    let mut forger = bridge.client().await;
    forger.send(forged()).await;
    forger
        .answer()
        .await
        .unwrap()
        .assert_refused(401, "signature_mismatch");
    let counted = |outcome: &str, count: u64| {
        let sample = format!("webhook_requests_total{{outcome=\"{outcome}\"");
        let page = bridge.metrics.render();
        let line = page.lines().find(|line| line.contains(&sample));
        line.is_some_and(|line| line.ends_with(&format!("\"}} {count}")))
    };
    let unfinished = "Content-Length: 100\r\n\r\n{";
    let post = |path: &str, headers: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\n{headers}{unfinished}")
    };
    let signature = format!("X-Webhook-Signature: {}\r\n", signature(b"else"));
    for (request, outcome) in [
        (post("/webhooks/nobody", ""), "app_unknown"),
        (post("/webhooks", ""), "signature_missing"),
        (
            post("/webhooks", "Content-Type: text/plain\r\n"),
            "content_type_unsupported",
        ),
        (post("/webhooks", &signature), "body_incomplete"),
        (String::from_utf8(forged()).unwrap(), "abandoned"),
    ] {
        for count in 1..=3 {
            let mut client = bridge.client().await;
            client.send(&request).await;
            drop(client);
            let counting = async {
                while !counted(outcome, count) {
                    tokio::task::yield_now().await;
                }
            };
            let done = tokio::time::timeout(Duration::from_secs(10), counting).await;
            assert!(
                done.is_ok(),
                "{outcome} {count}: {}",
                bridge.metrics.render()
            );
        }
    }
}

/// One connection has room: whoever has sent something genuine keeps it, and nobody else does.
#[tokio::test]
async fn a_connection_that_has_sent_something_genuine_keeps_its_place() {
    let options = Options {
        listener: net::Limits {
            connections_max: 1,
            ..net::Limits::default()
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let mut silent = bridge.client().await;
    let mut forger = bridge.client().await;
    assert!(silent.answer().await.is_none());
    forger.send(forged()).await;
    let answer = forger.answer().await.unwrap();
    answer.assert_refused(401, "signature_mismatch");
    let mut sender = bridge.client().await;
    assert!(forger.answer().await.is_none());
    sender.send(delivery("/webhooks", EMPTY)).await;
    sender.answer().await.unwrap().assert_accepted(0, 0);
    let mut late = bridge.client().await;
    late.send(delivery("/webhooks", TWO)).await;
    let refused = late.answer().await.unwrap();
    refused.assert_refused(503, "too_many_connections");
    sender.send(delivery("/webhooks", TWO)).await;
    sender.answer().await.unwrap().assert_accepted(2, 0);
}

#[tokio::test]
async fn forgeries_whose_senders_do_not_wait_have_their_turns_like_the_others() {
    let options = Options {
        forgeries: forgeries::Limits {
            at_once: 5,
            per_second: 1,
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let request = forged();
    let since = Instant::now();
    for _ in 0..60 {
        send_and_go(&bridge, &request).await;
    }
    all_are_gone(&bridge).await;
    let most = 5 + since.elapsed().as_secs() + 1;
    assert!(forgeries(&bridge) <= most, "{}", forgeries(&bridge));
    bridge
        .ask(delivery("/webhooks/54e9ujn", TWO))
        .await
        .assert_accepted(2, 0);
}

#[tokio::test(start_paused = true)]
async fn a_genuine_delivery_from_where_forgeries_come_from_is_kept_a_second_at_most() {
    let options = Options {
        forgeries: forgeries::Limits {
            at_once: 1,
            per_second: 1,
        },
        ..Options::default()
    };
    let bridge = Bridge::start_with(options, &[APP]).await;
    let request = forged();
    let mut forgers = Vec::new();
    for _ in 0..100 {
        let mut client = bridge.client().await;
        client.send(&request).await;
        forgers.push(client);
    }
    let first = forgers.remove(0).answer().await.unwrap();
    first.assert_refused(401, "signature_mismatch");
    let since = tokio::time::Instant::now();
    bridge
        .ask(delivery("/webhooks/54e9ujn", TWO))
        .await
        .assert_accepted(2, 0);
    assert!(since.elapsed() <= Duration::from_secs(2));
    for forger in &mut forgers {
        forger
            .answer()
            .await
            .unwrap()
            .assert_refused(401, "signature_mismatch");
    }
    assert_eq!(forgeries(&bridge), 100);
}
