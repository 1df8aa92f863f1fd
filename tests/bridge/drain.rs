//! SIGTERM: what is in flight is finished, every stream is told where to go on, and nothing and
//! nobody holds the exit beyond the drain timeout.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use prelude_bridge::proto::{
    SubscribeRequest, SubscribeResponse, start_position::Position, subscribe_response::Notice,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    cli::program,
    support::{
        APP, Bridge, SOON, Setup, item,
        reader::{self, Reader, everything},
        sender::{Delivery, Sender, eventually},
    },
};

const STREAMS: usize = 50;
/// What a server says when it wants the body.
const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// The bridge's own default.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

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

/// What a stream was given from now on, and how it ended.
async fn to_its_end(mut reader: Reader) -> (Vec<SubscribeResponse>, Option<Status>) {
    let mut responses = Vec::new();
    loop {
        match reader.next().await {
            Ok(Some(response)) => responses.push(response),
            Ok(None) => return (responses, None),
            Err(status) => return (responses, Some(status)),
        }
    }
}

/// Streams on five connections that have had everything there is.
async fn streams(bridge: &Bridge, count: usize) -> Vec<Reader> {
    let mut readers = Vec::new();
    for _ in 0..5 {
        let mut client = bridge.client().await;
        for _ in 0..count / 5 {
            let mut reader = Reader::open(&mut client, everything()).await;
            reader
                .until(|notice| matches!(notice, Notice::CaughtUp(_)))
                .await;
            readers.push(reader);
        }
    }
    readers
}

fn ids(responses: &[SubscribeResponse]) -> Vec<&str> {
    let events = responses.iter().flat_map(|response| &response.events);
    events.map(|event| event.id.as_str()).collect()
}

/// That the last words of a stream say when to come back and where to go on.
fn assert_drained(responses: &[SubscribeResponse], status: Option<&Status>) {
    let last = responses.last().unwrap();
    let Some(Notice::Draining(notice)) = &last.notice else {
        unreachable!("the last response is {last:?}");
    };
    assert!(notice.retry_after.is_some() && !last.cursor.is_empty());
    assert_says_draining(status.unwrap(), &last.cursor);
}

/// That a status says when to come back and where to go on.
fn assert_says_draining(status: &Status, cursor: &str) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        ("DRAINING", "prelude-bridge")
    );
    assert_eq!(info.metadata["cursor"], cursor);
    assert!(details.retry_info().unwrap().retry_delay.is_some());
}

fn spawn_to_their_ends(
    readers: Vec<Reader>,
) -> Vec<JoinHandle<(Vec<SubscribeResponse>, Option<Status>)>> {
    let spawn = |reader| tokio::spawn(to_its_end(reader));
    readers.into_iter().map(spawn).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_requests_and_ends_every_stream_with_its_cursor() {
    let mut bridge = Bridge::start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let streams = spawn_to_their_ends(streams(&bridge, STREAMS).await);
    let mut in_flight = Vec::new();
    for index in 0..5 {
        let delivery = Delivery::of_ids([format!("evt_flight_{index}")]);
        in_flight.push(InFlight::begin(&bridge, &delivery).await);
    }

    let told = Instant::now();
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
    let mut cursors = Vec::new();
    for stream in streams {
        let (responses, status) = stream.await.unwrap();
        // What was accepted last was still delivered.
        assert_eq!(ids(&responses).len(), 5, "{:?}", ids(&responses));
        assert_drained(&responses, status.as_ref());
        cursors.push(responses.last().unwrap().cursor.clone());
    }
    let ended = bridge.ended().await;
    assert_eq!(ended.code(), Some(0), "{}", bridge.stderr());
    assert!(told.elapsed() < DRAIN_TIMEOUT, "{:?}", told.elapsed());
    assert_eq!(cursors.len(), STREAMS);

    // The cursors mean the same to the next process.
    bridge.restart_elsewhere().await;
    bridge
        .append(&[item("evt_2", "user.created", "usr_1")])
        .await;
    let request = after(cursors.remove(0));
    let mut reader = Reader::open(&mut bridge.client().await, request).await;
    let (events, _) = reader
        .until(|notice| matches!(notice, Notice::CaughtUp(_)))
        .await;
    let events: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(events, ["evt_2"]);
    assert_eq!(reader::ids(&bridge).await.len(), 7);
}

fn after(cursor: String) -> SubscribeRequest {
    let mut request = everything();
    request.start.as_mut().unwrap().position = Some(Position::AfterCursor(cursor));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_is_cut_and_costs_no_stream_its_last_words() {
    let setup = Setup::default().with("drain_timeout", "3s");
    let mut bridge = setup.start().await;
    let streams = spawn_to_their_ends(streams(&bridge, 5).await);
    let delivery = Delivery::of_ids(["evt_never"]);
    let endless = InFlight::begin(&bridge, &delivery).await;
    let told = Instant::now();
    bridge.signal("TERM");
    for stream in streams {
        let (responses, status) = stream.await.unwrap();
        assert_drained(&responses, status.as_ref());
    }
    assert_eq!(bridge.ended().await.code(), Some(0), "{}", bridge.stderr());
    let took = told.elapsed();
    assert!((2.5..8.0).contains(&took.as_secs_f64()), "{took:?}");
    let answer = endless.answer().await;
    assert!(!answer.contains("200"), "{answer}");
    bridge.restart_elsewhere().await;
    assert_eq!(bridge.head().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_does_not_hold_the_exit() {
    let mut bridge = Bridge::start().await;
    let user = "u".repeat(400);
    let mut client = reader::narrow_client(&bridge).await;
    let mut unread = Reader::open(&mut client, everything()).await;
    unread
        .until(|notice| matches!(notice, Notice::CaughtUp(_)))
        .await;
    let first = unread.cursor.clone();
    for batch in 0..4 {
        let items: Vec<String> = (0..500)
            .map(|index| item(&format!("evt_{batch}_{index}"), "user.created", &user))
            .collect();
        bridge.append(&items).await;
    }
    // More than the client's window holds: the stream stands.
    let told = Instant::now();
    assert_eq!(
        bridge.terminate().await.code(),
        Some(0),
        "{}",
        bridge.stderr()
    );
    assert!(told.elapsed() < DRAIN_TIMEOUT / 2, "{:?}", told.elapsed());
    // What it had was not lost on the way, and it can go on after it.
    let (responses, status) = to_its_end(unread).await;
    let got = ids(&responses).len();
    assert!(got < 2_000, "all was read, so nothing stood");
    let resume = responses.last().map_or(first, |last| last.cursor.clone());
    // There was no room for a notice, and the status needs none.
    assert_says_draining(&status.unwrap(), &resume);
    bridge.restart_elsewhere().await;
    let mut reader = Reader::open(&mut bridge.client().await, after(resume)).await;
    let (rest, _) = reader
        .until(|notice| matches!(notice, Notice::CaughtUp(_)))
        .await;
    assert_eq!(got + rest.len(), 2_000);
    assert_eq!(rest.first().unwrap().sequence, got as u64 + 1);
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
        let sent = std::process::Command::new("kill")
            .args(["-s", "STOP", &id])
            .status();
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
    let setup = Setup::default().with("drain_timeout", "2s");
    let mut bridge = setup.start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let _frozen = Frozen::start(&bridge).await;
    let told = Instant::now();
    assert_eq!(
        bridge.terminate().await.code(),
        Some(0),
        "{}",
        bridge.stderr()
    );
    assert!(
        told.elapsed() < Duration::from_secs(6),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_process_at_once_and_loses_nothing_that_was_answered() {
    for second in ["TERM", "INT"] {
        let setup = Setup::default().with("drain_timeout", "1m");
        let mut bridge = setup.start().await;
        let sender = Sender::to(bridge.addresses.webhook);
        let answered = sender.send(&Delivery::of_ids(["evt_1"])).await;
        assert_eq!(answered.counts(), (1, 0));
        let delivery = Delivery::of_ids(["evt_never"]);
        let _endless = InFlight::begin(&bridge, &delivery).await;
        bridge.signal("TERM");
        is_draining(&bridge).await;
        let told = Instant::now();
        bridge.signal(second);
        assert_eq!(bridge.ended().await.code(), Some(1), "{}", bridge.stderr());
        assert!(
            told.elapsed() < Duration::from_secs(3),
            "{:?}",
            told.elapsed()
        );
        bridge.restart_elsewhere().await;
        assert_eq!(reader::ids(&bridge).await, ["evt_1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_while_it_drains_is_turned_away_and_comes_again() {
    let mut bridge = Setup::default().with("drain_timeout", "1m").start().await;
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
