//! Streams with a maximum age: each ends with its cursor and its client goes on where it was, over another
//! connection, so that clients spread over bridges again. Clients in other languages do the same in
//! `examples/run-interop` and `tests/interop/ages`.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prelude_bridge::{
    bus::{self, Bus},
    client::{self, Client, Item, Request, Start},
    credentials::Credentials,
    grpc, http2,
    log::{Log as _, memory},
    metrics::Metrics,
    proto::{
        SubscribeRequest, event_service_client::EventServiceClient, start_position::Position,
        subscribe_response::Notice,
    },
    subscription,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    abuse::frames::{ACK, DATA, GOAWAY, Http2, PING, SUBSCRIBE, frame, whole_call},
    cli::program,
    grpc_web,
    support::{
        Bridge, SOON, Setup, item, reader,
        sender::eventually,
        stream::{Earliest, Received, after, from, reason},
    },
    tail,
};

const KEY: &str = "limits.grpc.stream_age_max";
const AGE: Duration = Duration::from_secs(1);
/// How often each subscriber is to reach it.
const AGES: usize = 3;

async fn aging_bridge() -> Bridge {
    Setup::default().with(KEY, "1s").start().await
}

fn everything() -> SubscribeRequest {
    from(Position::Earliest(Earliest {}))
}

/// The same with frequent notices, so that whoever waits for the end of a test looks for it.
fn lively(request: SubscribeRequest) -> SubscribeRequest {
    SubscribeRequest {
        progress_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
        ..request
    }
}

/// That the last words of a stream are those of one that has reached its age.
fn assert_aged(stream: &Received, status: &tonic::Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let (reason, details) = reason(status);
    assert_eq!(reason, "DRAINING");
    assert!(status.message().contains("maximum age"), "{status:?}");
    let info = details.error_info().unwrap();
    assert_eq!(info.metadata["cursor"], stream.cursor());
    let retry = details.retry_info().unwrap();
    assert_eq!(retry.retry_delay, Some(Duration::ZERO));
}

/// What all subscribers of a test know of it.
#[derive(Clone)]
struct Plan {
    /// The number of the last event, once it is known.
    last: watch::Receiver<Option<u64>>,
    /// How often this subscriber's streams have ended.
    ages: Arc<AtomicUsize>,
}

impl Plan {
    fn is_done(&self, sequences: &[u64]) -> bool {
        *self.last.borrow() == Some(sequences.len() as u64)
    }
}

/// Subscribes. The first call of a tonic channel after its connection was told to take no more can fail
/// without having been sent: hyper learns of it only then.
async fn subscribe(
    client: &mut EventServiceClient<Channel>,
    request: SubscribeRequest,
) -> Received {
    match Received::subscribe(client, request.clone()).await {
        Err(status) if status.code() == Code::Cancelled => {
            Received::subscribe(client, request).await.unwrap()
        }
        subscribed => subscribed.unwrap(),
    }
}

/// Reads stream after stream on one channel, each from the cursor of the one before, as a consumer without
/// the client library does. Returns the events' numbers.
async fn consume(mut client: EventServiceClient<Channel>, plan: Plan) -> Vec<u64> {
    let mut sequences = Vec::new();
    let mut request = everything();
    loop {
        let mut stream = subscribe(&mut client, lively(request)).await;
        let status = loop {
            match stream.next().await {
                Ok(Some(response)) => {
                    sequences.extend(response.events.iter().map(|event| event.sequence));
                }
                Ok(None) => unreachable!("a stream without an end has ended well"),
                Err(status) => break status,
            }
            if plan.is_done(&sequences) {
                return sequences;
            }
        };
        let last = stream.notices().pop();
        let Some(Notice::Draining(notice)) = last else {
            unreachable!("the last notice is {last:?}");
        };
        assert_eq!(notice.retry_after, Some(prost_types::Duration::default()));
        assert_aged(&stream, &status);
        plan.ages.fetch_add(1, Ordering::Relaxed);
        request = after(stream.cursor());
    }
}

/// The same with the client library, which does it all by itself.
async fn follow(client: Client, plan: Plan) -> Vec<u64> {
    let request = Request::new()
        .start(Start::Earliest)
        .progress_interval(Duration::from_millis(100));
    let mut subscription = client.subscribe(request);
    let mut sequences = Vec::new();
    while !plan.is_done(&sequences) {
        let item = tokio::time::timeout(SOON, subscription.next()).await;
        match item.unwrap().unwrap().unwrap() {
            Item::Event(event) => sequences.push(event.sequence),
            Item::Notice(notice @ client::Notice::Reconnecting { .. }) => {
                assert!(notice.is_planned(), "{notice}");
                plan.ages.fetch_add(1, Ordering::Relaxed);
            }
            Item::Notice(_) => {}
        }
    }
    sequences
}

/// Runs subscribers, and appends until each of them has reached its age so often; then all must have had
/// all events once and in order.
async fn lose_and_repeat_nothing(
    subscribers: Vec<(Channel, Client)>,
    mut append: impl AsyncFnMut() -> u64,
) {
    let (last, watched) = watch::channel(None);
    let mut running = JoinSet::new();
    let mut plans = Vec::new();
    let mut plan = || {
        let plan = Plan {
            last: watched.clone(),
            ages: Arc::default(),
        };
        plans.push(plan.clone());
        plan
    };
    for (channel, client) in subscribers {
        running.spawn(consume(EventServiceClient::new(channel), plan()));
        // Two on one connection: the one that ends first leaves it while it is still open.
        running.spawn(follow(client.clone(), plan()));
        running.spawn(follow(client, plan()));
    }
    let head = eventually(async || {
        let head = append().await;
        assert!(running.try_join_next().is_none(), "one has ended early");
        let mut ages = plans.iter().map(|plan| plan.ages.load(Ordering::Relaxed));
        ages.all(|ages| ages >= AGES).then_some(head)
    })
    .await;
    last.send_replace(Some(head));
    for sequences in running.join_all().await {
        assert!(sequences.iter().copied().eq(1..=head), "{sequences:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_end_at_their_age_lose_and_repeat_nothing() {
    let bridge = aging_bridge().await;
    let url = format!("http://{}", bridge.addresses.grpc);
    let mut subscribers = Vec::new();
    for _ in 0..3 {
        let client = Client::connect(&client::Options::new(&url)).await.unwrap();
        subscribers.push((bridge.channel().await, client));
    }
    let mut appended = 0;
    lose_and_repeat_nothing(subscribers, async || {
        appended += 1;
        let id = format!("evt_{appended}");
        bridge.append(&[item(&id, "user.created", "usr_1")]).await;
        appended
    })
    .await;
    let aged = r#"prelude_bridge_streams_ended_total{reason="STREAM_AGE"}"#;
    bridge.counts_at_least(aged, (9 * AGES) as f64).await;
    let closed = r#"prelude_bridge_connections_closed_total{listener="grpc",reason="age"}"#;
    bridge.counts_at_least(closed, 6.0).await;
    // It is no failure of anybody.
    let said = bridge.stderr();
    assert!(said.contains(r#""reason":"STREAM_AGE""#), "{said}");
    let mut alarms = said.lines().filter(|line| {
        // The modes of the test's own files.
        (line.contains("WARN") || line.contains("ERROR")) && !line.contains("chmod")
    });
    assert_eq!(alarms.next(), None);
    bridge.finish().await;
}

/// Servers of one log, as two bridges are that share one, with streams that have a maximum age.
async fn serve(log: &Arc<memory::Memory>, bus: &Arc<Bus>) -> SocketAddr {
    let options = grpc::Options {
        subscriptions: subscription::Options {
            stream_age_max: AGE,
            ..subscription::Options::default()
        },
        connections: http2::Options {
            stream_age_max: AGE,
            ..http2::Options::default()
        },
        ..grpc::Options::default()
    };
    let (log, bus) = (Arc::clone(log), Arc::clone(bus));
    let credentials = Credentials::anonymous();
    let server = grpc::Server::new(options, credentials, log, bus, Metrics::new().into());
    let server = server.await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, peer) = listener.accept().await.unwrap();
            let server = server.clone();
            tokio::spawn(async move { server.serve(io, peer.into()).await });
        }
    });
    address
}

/// A load balancer that knows only connections, and leads each to the next server.
async fn balancer(servers: [SocketAddr; 2]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut outer, _)) = listener.accept().await {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            let mut inner = TcpStream::connect(servers[number % 2]).await.unwrap();
            tokio::spawn(async move {
                let _ = copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    (address, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_age_leads_a_client_to_another_server_of_the_same_log() {
    let log = memory::open(memory::Options::default()).unwrap();
    let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
    let servers = [serve(&log, &bus).await, serve(&log, &bus).await];
    let (mut subscribers, mut counts) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        // Each has its own, so that which server its next connection gets is known.
        let (address, of_channel) = balancer(servers).await;
        let url = format!("http://{address}");
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        let (address, of_client) = balancer(servers).await;
        let options = client::Options::new(format!("http://{address}"));
        let client = Client::connect(&options).await.unwrap();
        subscribers.push((channel, client));
        counts.extend([of_channel, of_client]);
    }
    let mut appended = 0;
    lose_and_repeat_nothing(subscribers, async || {
        appended += 1;
        let added = log.append(tail::batch(appended..=appended)).await;
        added.unwrap();
        appended
    })
    .await;
    // A stream that ended on a connection that takes more calls would be resumed on the same server.
    for count in counts {
        let connections = count.load(Ordering::Relaxed);
        assert!(connections > AGES, "{connections} connections");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_takes_no_new_calls_before_its_stream_ends_and_closes_after_it() {
    let bridge = aging_bridge().await;
    let mut connection = Http2::begin(bridge.addresses.grpc, &[]).await.unwrap();
    connection.send(&whole_call(1, SUBSCRIBE)).await.unwrap();
    let mut seen = Vec::new();
    let closed = async {
        while let Some(next) = connection.next().await {
            if next.kind == PING && next.flags & ACK == 0 {
                let pong = frame(PING, ACK, 0, &next.payload);
                connection.send(&pong).await.unwrap();
            }
            seen.push(next);
        }
    };
    tokio::time::timeout(SOON, closed).await.unwrap();
    let at = |wanted: &dyn Fn(&_) -> bool| seen.iter().position(wanted);
    let told = at(&|frame| frame.kind == GOAWAY).unwrap();
    assert_eq!(
        seen[told].payload[4..8],
        [0; 4],
        "nobody did anything wrong"
    );
    let ended = at(&|frame| frame.stream == 1 && frame.ends()).unwrap();
    assert!(told < ended, "{seen:?}");
    // The notice comes before the end, and after the connection was told.
    let has_notice = seen[told..ended].iter().any(|frame| frame.kind == DATA);
    assert!(has_notice, "{seen:?}");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_ends_at_its_age_with_its_cursor() {
    let bridge = aging_bridge().await;
    let user = "u".repeat(400);
    for batch in 0..4 {
        let items: Vec<String> = (0..500)
            .map(|index| item(&format!("evt_{batch}_{index}"), "user.created", &user))
            .collect();
        bridge.append(&items).await;
    }
    // More than the client's window holds: the stream stands. Nothing else ends it for a minute.
    let mut client = reader::narrow_client(&bridge).await;
    let mut stream = Received::subscribe(&mut client, everything())
        .await
        .unwrap();
    let aged = r#"prelude_bridge_streams_ended_total{reason="STREAM_AGE"}"#;
    eventually(async || bridge.metric(aged).await).await;
    let status = stream.end().await.unwrap_err();
    assert_aged(&stream, &status);
    let got = stream.sequences();
    assert!(got.len() < 2_000, "all was read, so nothing stood");
    let mut rest = Received::subscribe(&mut bridge.client().await, after(stream.cursor()))
        .await
        .unwrap();
    rest.until_events(2_000 - got.len()).await;
    assert!([got, rest.sequences()].concat().into_iter().eq(1..=2_000));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_watches_and_other_calls_are_not_concerned() {
    let mut bridge = aging_bridge().await;
    let url = format!("http://{}", bridge.addresses.grpc);
    let channel = bridge.channel().await;
    let mut health = HealthClient::new(channel.clone());
    let watch = health.watch(HealthCheckRequest::default()).await;
    let mut watch = watch.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let mut client = EventServiceClient::new(channel);
    for _ in 0..AGES {
        let mut stream = subscribe(&mut client, everything()).await;
        let status = stream.end().await.unwrap_err();
        assert_aged(&stream, &status);
        let client = Client::connect(&client::Options::new(&url)).await;
        client.unwrap().range().await.unwrap();
    }
    // The watch is still open, on the connection that was told to go long ago.
    bridge.signal("TERM");
    let told = tokio::time::timeout(SOON, watch.message()).await;
    let told = told.unwrap().unwrap().unwrap();
    assert_eq!(told.status(), ServingStatus::NotServing);
    assert_eq!(bridge.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_page_ends_at_its_age_too() {
    let bridge = aging_bridge().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let origin = "http://localhost:3000";
    let answer = grpc_web::call(&bridge, "Subscribe", &everything(), origin).await;
    let body = tokio::time::timeout(SOON, answer.bytes()).await;
    let body = body.unwrap().unwrap();
    let (messages, trailers) = grpc_web::unframed(&body);
    assert!(messages.len() >= 3, "Started, an event, Draining");
    assert!(trailers.contains("grpc-status:14\r\n"), "{trailers}");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_goes_on_over_ages_without_a_word() {
    const COUNT: usize = 200;
    let bridge = aging_bridge().await;
    let server = format!("http://{}", bridge.addresses.grpc);
    let count = COUNT.to_string();
    let tail = program(&["tail", "--server", &server, "--from", "earliest"])
        .args(["--count", &count, "--output", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let finished = tokio::task::spawn_blocking(move || tail.wait_with_output().unwrap());
    let append = async |number: usize| {
        let id = format!("evt_{number}");
        bridge.append(&[item(&id, "user.created", "usr_1")]).await;
    };
    let aged = r#"prelude_bridge_streams_ended_total{reason="STREAM_AGE"}"#;
    let mut appended = 0;
    eventually(async || {
        // The rest comes when it has reconnected often enough.
        if appended < COUNT / 2 {
            appended += 1;
            append(appended).await;
        }
        let ended = bridge.metric(aged).await;
        ended.filter(|&ended| ended >= AGES as f64)
    })
    .await;
    for number in appended + 1..=COUNT {
        append(number).await;
    }
    let output = tokio::time::timeout(SOON, finished).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let lines = String::from_utf8(output.stdout).unwrap();
    let sequences = lines.lines().map(tail::sequence);
    assert!(sequences.eq(1..=COUNT as u64), "{lines}");
    bridge.finish().await;
}
