use super::*;

#[tokio::test]
async fn a_connection_serves_one_delivery_after_another() {
    let bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    client.send(delivery("/webhooks/54e9ujn", TWO)).await;
    client.answer().await.unwrap().assert_accepted(2, 0);
    client
        .send(post_with("/webhooks/54e9ujn", &[], TWO.as_bytes()))
        .await;
    client
        .answer()
        .await
        .unwrap()
        .assert_refused(401, "signature_missing");
    client.send(delivery("/webhooks/54e9ujn", TWO)).await;
    client.answer().await.unwrap().assert_accepted(0, 2);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    let requests = [
        delivery("/webhooks/54e9ujn", TWO),
        post_with("/webhooks/unknown", &[], b"x"),
        delivery("/webhooks/54e9ujn", EMPTY),
    ];
    client.send(requests.concat()).await;
    client.answer().await.unwrap().assert_accepted(2, 0);
    client
        .answer()
        .await
        .unwrap()
        .assert_refused(404, "app_unknown");
    client.answer().await.unwrap().assert_accepted(0, 0);
}

#[tokio::test]
async fn a_caller_who_waits_for_our_word_gets_it() {
    let bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    let head = format!(
        "POST /webhooks/54e9ujn HTTP/1.1\r\nHost: bridge\r\nExpect: 100-continue\r\nX-Webhook-Signature: {}\r\nContent-Length: {}\r\n\r\n",
        signature(TWO.as_bytes()),
        TWO.len()
    );
    client.send(head).await;
    assert_eq!(client.answer().await.unwrap().status, 100);
    client.send(TWO).await;
    client.answer().await.unwrap().assert_accepted(2, 0);
    // What is refused by its head alone is refused before the body is sent.
    let head = "POST /webhooks/54e9ujn HTTP/1.1\r\nHost: bridge\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    bridge
        .ask(head)
        .await
        .assert_refused(401, "signature_missing");
}

#[tokio::test]
async fn http_1_0_is_served() {
    let bridge = Bridge::start().await;
    let request = String::from_utf8(delivery("/webhooks/54e9ujn", TWO)).unwrap();
    let mut client = bridge.client().await;
    client
        .send(request.replacen("HTTP/1.1", "HTTP/1.0", 1))
        .await;
    client.answer().await.unwrap().assert_accepted(2, 0);
    assert!(
        client.answer().await.is_none(),
        "the connection ends with the answer"
    );
}

#[tokio::test]
async fn http_2_without_tls_is_refused() {
    let bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let answer = client.answer().await.unwrap();
    answer.assert_refused(505, "version_unsupported");
    let upgrade = "GET /webhooks HTTP/1.1\r\nHost: b\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    bridge
        .ask(upgrade)
        .await
        .assert_refused(400, "challenge_malformed");
}

/// With unread bytes in the socket, closing it would take the answer back.
#[tokio::test]
async fn a_client_that_wants_an_upgrade_gets_its_answer_while_it_still_sends() {
    let bridge = Bridge::start().await;
    let body = vec![b'x'; 100 * 1024];
    for _ in 0..5 {
        let mut client = bridge.client().await;
        let headers = ["Connection: Upgrade", "Upgrade: h2c"];
        client.send(post_with("/nowhere", &headers, &body)).await;
        let answer = client.answer().await.expect("an answer");
        answer.assert_refused(404, "path_unknown");
        client.assert_not_reset().await;
    }
}

#[tokio::test]
async fn a_large_body_that_nobody_reads_costs_no_answer() {
    let bridge = Bridge::start().await;
    let body = vec![b'x'; 900 * 1024];
    let put = |path: &str| [b"PUT", &post_with(path, &[], &body)[4..]].concat();
    for (request, status, code) in [
        (post_with("/nowhere", &[], &body), 404, "path_unknown"),
        (put("/webhooks"), 405, "method_not_allowed"),
    ] {
        let mut client = bridge.client().await;
        client.send(request).await;
        let answer = client.answer().await.expect("an answer");
        answer.assert_refused(status, code);
        client.assert_not_reset().await;
    }
}

/// Its next request is half here when the last answer of the connection is out.
#[tokio::test]
async fn a_client_that_has_begun_its_next_request_gets_its_last_answer() {
    let bridge = Bridge::start().await;
    let last = "GET /webhooks HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n";
    let next = post_with("/webhooks", &[], &vec![b'x'; 100 * 1024]);
    for _ in 0..5 {
        let mut client = bridge.client().await;
        client.send([last.as_bytes(), &next].concat()).await;
        let answer = client.answer().await.expect("an answer");
        answer.assert_refused(400, "challenge_malformed");
        client.assert_not_reset().await;
    }
}

#[tokio::test]
async fn no_url_is_too_strange_for_an_answer() {
    let bridge = Bridge::start().await;
    for target in [
        "*",
        "http://other.example/nowhere",
        "http://other.example",
        "/?",
        "/webhooks//",
        "/%",
        "/webhooks/%zz",
        "/webhooks/%00",
        "/webhooks/%2e%2e",
        "/webhooks/..",
        "/webhooks/a/../b",
        "/webhooks?%ff=%ff&&&=&=",
        "/webhooks/54e9ujn?=",
    ] {
        let answer = bridge
            .ask(format!("GET {target} HTTP/1.1\r\nHost: b\r\n\r\n"))
            .await;
        assert!(matches!(answer.status, 400 | 404), "{target} {answer:?}");
        answer.json();
    }
    let answer = bridge
        .ask("CONNECT other.example:443 HTTP/1.1\r\nHost: b\r\n\r\n")
        .await;
    answer.assert_refused(501, "connect_unsupported");
    // What is not HTTP at all is answered too, and the port goes on serving.
    for junk in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}",
    ] {
        let mut client = bridge.client().await;
        client.send(junk).await;
        let answer = client.answer().await.unwrap();
        assert!(matches!(answer.status, 400 | 505), "{answer:?}");
        answer.json();
        assert!(client.answer().await.is_none());
    }
    let long = format!(
        "GET /webhooks?{} HTTP/1.1\r\nHost: b\r\n\r\n",
        "x".repeat(17_000)
    );
    assert!(matches!(bridge.ask(long).await.status, 414 | 431));
    bridge
        .ask(delivery("/webhooks", EMPTY))
        .await
        .assert_accepted(0, 0);
}

#[tokio::test]
async fn a_body_with_two_lengths_is_no_request() {
    let bridge = Bridge::start().await;
    for smuggled in [
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4\r\nContent-Length: 4",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Content-Length: 4, 4",
        "Content-Length: -1",
        "Content-Length: +4",
        "Transfer-Encoding: gzip",
    ] {
        // Whatever follows is not read as a request.
        let request = format!("POST /webhooks HTTP/1.1\r\nHost: b\r\n{smuggled}\r\n\r\nabcd");
        let mut client = bridge.client().await;
        client
            .send([request.as_bytes(), &delivery("/webhooks", TWO)].concat())
            .await;
        let answer = client.answer().await.unwrap();
        answer.assert_refused(400, "request_malformed");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(client.answer().await.is_none(), "{smuggled}");
    }
    assert_eq!(bridge.events(), 0);
}

#[tokio::test]
async fn a_malformed_request_is_answered_after_those_before_it() {
    let bridge = Bridge::start().await;
    let mut client = bridge.client().await;
    let malformed = b"GET / HTTP/1.1\r\nHost: b\r\n folded\r\n\r\n";
    let requests = [
        delivery("/webhooks", TWO),
        malformed.to_vec(),
        delivery("/webhooks", EMPTY),
    ];
    client.send(requests.concat()).await;
    client.answer().await.unwrap().assert_accepted(2, 0);
    let answer = client.answer().await.unwrap();
    answer.assert_refused(400, "request_malformed");
    assert!(client.answer().await.is_none());
    let page = bridge.metrics.render();
    assert!(page.contains(r#"requests_total{outcome="request_malformed",status="400"} 1"#));
    // Counted when the connection is gone.
    let closed = r#"connections_closed_total{listener="webhook",reason="protocol_error"} 1"#;
    while !bridge.metrics.render().contains(closed) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_malformed_body_is_refused_and_ends_the_connection() {
    let bridge = Bridge::start().await;
    let request = |body: &str| {
        let good = chunked_delivery("/webhooks", "", 1);
        let head = good.strip_suffix(b"0\r\n\r\n").unwrap();
        [head, body.as_bytes(), &delivery("/webhooks", TWO)].concat()
    };
    for body in [
        "x\r\n",
        "2\r\n{}0\r\n\r\n",
        "2\n{}\r\n0\r\n\r\n",
        "0\r\nA b\r\n\r\n",
    ] {
        let mut client = bridge.client().await;
        client.send(request(body)).await;
        let answer = client.answer().await.unwrap();
        answer.assert_refused(400, "request_malformed");
        assert!(client.answer().await.is_none(), "{body:?}");
    }
    let mut client = bridge.client().await;
    client.send(request("ffffffffffffffffff\r\n")).await;
    let answer = client.answer().await.unwrap();
    answer.assert_refused(413, "body_too_large");
    assert_eq!(bridge.events(), 0);
}

/// One byte at a time, and all at once: what comes between the packets changes nothing.
#[tokio::test]
async fn requests_may_be_cut_anywhere() {
    let bridge = Bridge::start().await;
    let requests = [
        delivery("/webhooks", EMPTY),
        b"\r\n".to_vec(),
        chunked_delivery("/webhooks", EMPTY, 9),
        delivery("/webhooks", EMPTY),
    ]
    .concat();
    for piece in [1, 7, 100, requests.len()] {
        let mut client = bridge.client().await;
        client.stream.set_nodelay(true).unwrap();
        for piece in requests.chunks(piece) {
            client.send(piece).await;
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            client.answer().await.unwrap().assert_accepted(0, 0);
        }
    }
}

#[tokio::test]
async fn a_client_that_closes_its_side_gets_its_answers() {
    let bridge = Bridge::start().await;
    let (whole, chunked) = (
        delivery("/webhooks", EMPTY),
        chunked_delivery("/webhooks", EMPTY, 9),
    );
    for (requests, statuses) in [
        (whole.clone(), &[200][..]),
        (chunked.clone(), &[200]),
        (
            [whole.as_slice(), &chunked, &whole].concat(),
            &[200, 200, 200],
        ),
        (whole[..whole.len() - 1].to_vec(), &[503]),
        (chunked[..chunked.len() - 1].to_vec(), &[503]),
        ([whole.as_slice(), b"GET /webh"].concat(), &[200, 400]),
        (Vec::new(), &[]),
    ] {
        let mut client = bridge.client().await;
        client.send(&requests).await;
        client.stream.shutdown().await.unwrap();
        for status in statuses {
            assert_eq!(client.answer().await.unwrap().status, *status);
        }
        assert!(client.answer().await.is_none());
    }
}

#[tokio::test]
async fn requests_in_flight_are_finished_at_a_shutdown() {
    let bridge = Bridge::start().await;
    let request = delivery("/webhooks/54e9ujn", TWO);
    let mut busy = bridge.client().await;
    let mut idle = bridge.client().await;
    idle.send(delivery("/webhooks", EMPTY)).await;
    idle.answer().await.unwrap();
    let mut silent = bridge.client().await;
    busy.send(&request[..request.len() - 1]).await;
    // The answer to a request that came later says that the first one has been begun.
    let mut later = bridge.client().await;
    later.send(delivery("/webhooks", EMPTY)).await;
    later.answer().await.unwrap();
    bridge.shutdown.cancel();
    assert!(idle.answer().await.is_none());
    assert!(silent.answer().await.is_none());
    busy.send(&request[request.len() - 1..]).await;
    busy.answer().await.unwrap().assert_accepted(2, 0);
    assert!(busy.answer().await.is_none());
    assert_eq!(bridge.running.await.unwrap(), net::Drained { cut: 0 });
}
