//! SIGTERM: what is in flight is finished, every stream is told where to go on, and nothing and
//! nobody holds the exit beyond the drain timeout.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use prelude_bridge::proto::{
    SubscribeRequest, event_service_client::EventServiceClient, start_position::Position,
    subscribe_response::Notice,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    cli::program,
    support::{
        APP, Bridge, SOON, Setup, item, reader,
        sender::{Delivery, Sender, eventually},
        stream::{Earliest, Received, after, from, reason},
    },
};

const STREAMS: usize = 50;
/// What a server says when it wants the body.
const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// For a bridge that must not need its drain timeout: a test waits less long than that for anything.
const NEVER: &str = "10m";

/// A delivery that has begun and waits for the test to go on with it.
struct InFlight {
    connection: TcpStream,
    rest: Vec<u8>,
}

impl InFlight {
    /// Sends the header, and the first half of the body once the bridge has asked for it: so the
    /// request is surely under way.
    async fn begin(bridge: &Bridge, delivery: &Delivery) -> Self {
        let mut connection = TcpStream::connect(bridge.addresses.webhook).await.unwrap();
        let header = format!(
            "POST /webhooks/{APP} HTTP/1.1\r\nHost: bridge\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nX-Webhook-Signature: {}\r\nExpect: 100-continue\r\n\r\n",
            delivery.body.len(),
            delivery.signature
        );
        let (first, rest) = delivery.body.split_at(delivery.body.len() / 2);
        connection.write_all(header.as_bytes()).await.unwrap();
        let mut asked = vec![0; GO_ON.len()];
        let asking = connection.read_exact(&mut asked);
        tokio::time::timeout(SOON, asking).await.unwrap().unwrap();
        assert_eq!(asked, GO_ON);
        connection.write_all(first).await.unwrap();
        let rest = rest.to_vec();
        Self { connection, rest }
    }

    /// Sends the rest. Returns all that is answered until the connection is closed.
    async fn finish(mut self) -> String {
        self.connection.write_all(&self.rest).await.unwrap();
        self.answer().await
    }

    async fn answer(mut self) -> String {
        let mut answer = Vec::new();
        let reading = self.connection.read_to_end(&mut answer);
        // A connection that is cut may be reset.
        let _ = tokio::time::timeout(SOON, reading).await.unwrap();
        String::from_utf8(answer).unwrap()
    }
}

/// Waits until it is told to end and has begun to.
async fn is_draining(bridge: &Bridge) {
    eventually(async || (bridge.admin("/readyz").await.status == 503).then_some(())).await;
}

/// All that a stream was given, and how it ended.
async fn to_its_end(mut stream: Received) -> (Received, Status) {
    let ended = stream.end().await;
    (stream, ended.unwrap_err())
}

/// Streams on five connections that have had everything there is, each read to its end.
async fn streams(bridge: &Bridge, count: usize) -> Vec<JoinHandle<(Received, Status)>> {
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut client = bridge.client().await;
        for _ in 0..count / 5 {
            let stream = caught_up(&mut client, everything()).await;
            streams.push(tokio::spawn(to_its_end(stream)));
        }
    }
    streams
}

async fn caught_up(
    client: &mut EventServiceClient<Channel>,
    request: SubscribeRequest,
) -> Received {
    let mut stream = Received::subscribe(client, request).await.unwrap();
    let is_caught_up = |notice: &Notice| matches!(notice, Notice::CaughtUp(_));
    stream.until(is_caught_up).await;
    stream
}

fn everything() -> SubscribeRequest {
    from(Position::Earliest(Earliest {}))
}

/// That the last words of a stream say when to come back and where to go on.
fn assert_drained(stream: &Received, status: &Status) {
    let last = stream.responses.last().unwrap();
    let Some(Notice::Draining(notice)) = &last.notice else {
        unreachable!("the last response is {last:?}");
    };
    assert!(notice.retry_after.is_some());
    assert_says_draining(status, stream.cursor());
}

/// That a status says when to come back and where to go on.
fn assert_says_draining(status: &Status, cursor: &str) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let (reason, details) = reason(status);
    assert_eq!(reason, "DRAINING");
    assert_eq!(details.error_info().unwrap().metadata["cursor"], cursor);
    assert!(details.retry_info().unwrap().retry_delay.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_requests_and_ends_every_stream_with_its_cursor() {
    let mut bridge = Setup::default().with("drain_timeout", NEVER).start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let streams = streams(&bridge, STREAMS).await;
    let mut in_flight = Vec::new();
    for index in 0..5 {
        let delivery = Delivery::of_ids([format!("evt_flight_{index}")]);
        in_flight.push(InFlight::begin(&bridge, &delivery).await);
    }

    bridge.signal("TERM");
    is_draining(&bridge).await;
    assert_eq!(bridge.admin("/healthz").await.status, 200);
    for request in in_flight {
        let answer = request.finish().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(
            answer.ends_with(r#"{"accepted":1,"duplicates":0}"#),
            "{answer}"
        );
    }
    let mut ended_streams = Vec::new();
    for stream in streams {
        let (stream, status) = stream.await.unwrap();
        assert_drained(&stream, &status);
        ended_streams.push(stream);
    }
    let ended = bridge.ended().await;
    assert_eq!(ended.code(), Some(0), "{}", bridge.stderr());
    assert_eq!(ended_streams.len(), STREAMS);

    // What was accepted last may have come too late for a stream. Its cursor knows, and means the
    // same to the next process.
    bridge.restart_elsewhere().await;
    bridge
        .append(&[item("evt_2", "user.created", "usr_1")])
        .await;
    let mut client = bridge.client().await;
    for ended in ended_streams {
        let resumed = caught_up(&mut client, after(ended.cursor())).await;
        let all = [ended.sequences(), resumed.sequences()].concat();
        assert!(all.into_iter().eq(1..=7), "{:?}", ended.sequences());
    }
    assert_eq!(reader::ids(&bridge).await.len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_is_cut_and_costs_no_stream_its_last_words() {
    let setup = Setup::default().with("drain_timeout", "3s");
    let mut bridge = setup.start().await;
    let streams = streams(&bridge, 5).await;
    let delivery = Delivery::of_ids(["evt_never"]);
    let endless = InFlight::begin(&bridge, &delivery).await;
    let told = Instant::now();
    bridge.signal("TERM");
    for stream in streams {
        let (stream, status) = stream.await.unwrap();
        assert_drained(&stream, &status);
    }
    assert_eq!(bridge.ended().await.code(), Some(0), "{}", bridge.stderr());
    // Only that it waited can be told: how long it took, on a busy machine, says nothing.
    let took = told.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    let answer = endless.answer().await;
    assert!(!answer.contains("200"), "{answer}");
    bridge.restart_elsewhere().await;
    assert_eq!(bridge.head().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_does_not_hold_the_exit() {
    let mut bridge = Setup::default().with("drain_timeout", NEVER).start().await;
    let user = "u".repeat(400);
    let mut client = reader::narrow_client(&bridge).await;
    let unread = caught_up(&mut client, everything()).await;
    for batch in 0..4 {
        let items: Vec<String> = (0..500)
            .map(|index| item(&format!("evt_{batch}_{index}"), "user.created", &user))
            .collect();
        bridge.append(&items).await;
    }
    // More than the client's window holds: the stream stands.
    assert_eq!(
        bridge.terminate().await.code(),
        Some(0),
        "{}",
        bridge.stderr()
    );
    // What it had was not lost on the way, and it can go on after it.
    let (stream, status) = to_its_end(unread).await;
    let got = stream.sequences();
    assert!(got.len() < 2_000, "all was read, so nothing stood");
    // There was no room for a notice, and the status needs none.
    assert_says_draining(&status, stream.cursor());
    bridge.restart_elsewhere().await;
    let rest = caught_up(&mut bridge.client().await, after(stream.cursor())).await;
    assert!([got, rest.sequences()].concat().into_iter().eq(1..=2_000));
}

/// A `tail` that has seen an event and is then stopped, so that its connection stands open and
/// nobody answers on it.
struct Frozen(Child);

impl Frozen {
    async fn start(bridge: &Bridge) -> Self {
        let server = format!("http://{}", bridge.addresses.grpc);
        let mut child = program(&["tail", "--server", &server, "--since", "1h"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let read = move || std::io::Read::read(&mut stdout, &mut [0; 1]).unwrap();
        let reading = tokio::task::spawn_blocking(read);
        assert_eq!(
            tokio::time::timeout(SOON, reading).await.unwrap().unwrap(),
            1
        );
        let id = child.id().to_string();
        let sent = Command::new("kill").args(["-s", "STOP", &id]).status();
        assert!(sent.unwrap().success());
        Self(child)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_whose_machine_hangs_holds_the_exit_no_longer_than_the_drain_timeout() {
    // Nothing else ends the connection while the test waits.
    let setup = Setup::default()
        .with("drain_timeout", "2s")
        .with("limits.grpc.ping_interval", "1h");
    let mut bridge = setup.start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let _frozen = Frozen::start(&bridge).await;
    assert_eq!(
        bridge.terminate().await.code(),
        Some(0),
        "{}",
        bridge.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_process_at_once_and_loses_nothing_that_was_answered() {
    for second in ["TERM", "INT"] {
        let setup = Setup::default().with("drain_timeout", NEVER);
        let mut bridge = setup.start().await;
        let sender = Sender::to(bridge.addresses.webhook);
        let answered = sender.send(&Delivery::of_ids(["evt_1"])).await;
        assert_eq!(answered.counts(), (1, 0));
        let delivery = Delivery::of_ids(["evt_never"]);
        let _endless = InFlight::begin(&bridge, &delivery).await;
        bridge.signal("TERM");
        is_draining(&bridge).await;
        bridge.signal(second);
        assert_eq!(bridge.ended().await.code(), Some(1), "{}", bridge.stderr());
        bridge.restart_elsewhere().await;
        assert_eq!(reader::ids(&bridge).await, ["evt_1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_while_it_drains_is_turned_away_and_comes_again() {
    let mut bridge = Setup::default().with("drain_timeout", NEVER).start().await;
    let delivery = Delivery::of_ids(["evt_1"]);
    let in_flight = InFlight::begin(&bridge, &delivery).await;
    bridge.signal("TERM");
    is_draining(&bridge).await;
    let late = Delivery::of_ids(["evt_2"]);
    eventually(async || {
        let sent = Sender::to(bridge.addresses.webhook).try_send(&late).await;
        match sent {
            Err(_) => Some(()),
            // Let in at the last moment.
            Ok(reply) => {
                assert!(reply.status == 200 || reply.status == 503, "{reply:?}");
                None
            }
        }
    })
    .await;
    assert!(in_flight.finish().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(bridge.ended().await.code(), Some(0));
    bridge.restart_elsewhere().await;
    let again = Sender::to(bridge.addresses.webhook).send(&late).await;
    assert_eq!(again.status, 200);
    assert_eq!(reader::ids(&bridge).await.len(), 2);
}
