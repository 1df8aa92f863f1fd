//! Calls of one connection that wait until it is known whether they are let in. The clock is paused: it
//! goes on only when nobody has anything to do, so what is answered while it stands waits for nothing.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use tokio::{task::JoinSet, time::Instant};

use super::*;
use crate::{
    credentials::{self, jwt},
    key_source::{self, KeySource},
};

/// A JWT with the headers `{"alg":"ES256","kid":"unknown"}` and no claims.
const UNKNOWN_KEY: &str = "Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6InVua25vd24ifQ.e30.AAAA";

/// As many callers of one address may wait for newer keys.
const WAITING_MAX: usize = 8;

/// What a stream may send before it is read: the part of a message without its end.
const WINDOW_BYTES: usize = 65_535;

/// A bridge that trusts an issuer whose key server takes connections and says nothing.
async fn with_silent_issuer() -> (Bridge, TcpListener) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", server.local_addr().unwrap());
    let issuer = jwt::Options {
        keys: KeySource::url(&url).unwrap(),
        issuer: "https://issuer.example.com".to_owned(),
        audience: "bridge".to_owned(),
        types_claim: "types".to_owned(),
        apps_claim: None,
        streams_max: 1,
        refresh: key_source::Options::default(),
    };
    let credentials = Credentials::open(credentials::Options {
        jwt: Some(issuer),
        ..credentials::Options::default()
    });
    let log = memory::open(memory::Options::default()).unwrap();
    let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
    let credentials = credentials.await.unwrap();
    let bridge = Bridge::serve(Options::default(), credentials, log, bus).await;
    (bridge, server)
}

/// Connects by a pipe that holds so many bytes.
async fn connect(bridge: &Bridge, pipe_bytes: usize) -> SendRequest<Bytes> {
    let (client, server) = tokio::io::duplex(pipe_bytes);
    let streams = bridge.streams.clone();
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    tokio::spawn(async move { streams.serve(server, peer.into()).await });
    let (send, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    send
}

/// A call whose credential is looked at for long, and its message, which does not end.
async fn call(send: &SendRequest<Bytes>) -> (ResponseFuture, SendStream<Bytes>) {
    let mut send = send.clone().ready().await.unwrap();
    let uri = "http://bridge/prelude.bridge.v1.EventService/GetRange";
    let head = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("authorization", UNKNOWN_KEY);
    send.send_request(head.body(()).unwrap(), false).unwrap()
}

/// Sends all that a stream may send before it is read, as the window of the connection allows.
/// Returns whether the call was not ended before.
async fn send_window(body: &mut SendStream<Bytes>) -> bool {
    let mut left = WINDOW_BYTES;
    while left > 0 {
        body.reserve_capacity(left);
        let Some(Ok(room)) = poll_fn(|context| body.poll_capacity(context)).await else {
            return false;
        };
        if body.send_data(vec![0; room].into(), false).is_err() {
            return false;
        }
        left -= room;
    }
    true
}

/// After which time a call was answered with which code.
async fn answer(response: ResponseFuture, began: Instant) -> (Duration, Code) {
    let response = response.await.unwrap();
    let waited = began.elapsed();
    let status = Status::from_header_map(response.headers()).unwrap();
    (waited, status.code())
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_connection_is_read_however_many_wait_to_be_let_in() {
    for calls in [19, 100] {
        for pipe_bytes in [64, 1024, 16 * 1024, 1 << 20] {
            let (bridge, _server) = with_silent_issuer().await;
            let send = connect(&bridge, pipe_bytes).await;
            let began = Instant::now();
            let (mut bodies, mut answers) = (JoinSet::new(), JoinSet::new());
            for _ in 0..calls {
                let (response, mut body) = call(&send).await;
                answers.spawn(answer(response, began));
                bodies.spawn(async move {
                    let is_read = send_window(&mut body).await;
                    (is_read, began.elapsed(), body)
                });
            }
            let bodies = bodies.join_all().await;
            assert!(bodies.iter().all(|(_, sent, _)| sent.is_zero()));
            let read = bodies.iter().filter(|(is_read, ..)| *is_read).count();
            assert!(read >= WAITING_MAX, "{read} messages");
            let mut answers = answers.join_all().await;
            answers.sort_unstable_by_key(|(waited, _)| *waited);
            assert!(answers.iter().all(|(_, code)| *code == Code::Unavailable));
            let (refused, waited) = answers.split_at(calls - WAITING_MAX);
            assert!(refused.iter().all(|(waited, _)| waited.is_zero()));
            let given_up = key_source::Options::default().fetch_timeout;
            assert!(
                waited.iter().all(|(waited, _)| *waited == given_up),
                "{waited:?}"
            );
            drop(bodies);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_reset_while_it_waits_gives_its_place_to_another() {
    let (bridge, _server) = with_silent_issuer().await;
    let send = connect(&bridge, 1024).await;
    let began = Instant::now();
    let mut waiting = Vec::new();
    for _ in 0..WAITING_MAX {
        waiting.push(call(&send).await);
    }
    let (refused, _body) = call(&send).await;
    assert_eq!(
        answer(refused, began).await,
        (Duration::ZERO, Code::Unavailable)
    );
    let (_, mut body) = waiting.pop().unwrap();
    body.send_reset(h2::Reason::CANCEL);
    let (_last, _body) = call(&send).await;
    let (refused, _body) = call(&send).await;
    assert_eq!(
        answer(refused, began).await,
        (Duration::ZERO, Code::Unavailable)
    );
    let page = bridge.metrics.render();
    for sample in [
        r#"prelude_bridge_streams_ended_total{reason="TOKEN_INVALID"} 1"#,
        r#"prelude_bridge_streams_ended_total{reason="TOKEN_UNVERIFIABLE"} 2"#,
    ] {
        assert!(page.lines().any(|line| line == sample), "{page}");
    }
    // Until here.
    drop(waiting);
}
