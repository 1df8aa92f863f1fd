//! What it costs to deliver events to many subscribers over loopback sockets: one commit of a
//! hundred events at a time, until every subscriber has every event. Server and clients share the
//! machine's cores, so compare subscribers with each other, not with other machines.

#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot go on should stop"
)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use http::Request;
use prelude_bridge::{
    bus::{self, Bus},
    credentials::Credentials,
    event::{Batch, Draft, EventKey},
    grpc,
    log::{Log, memory},
    metrics::Metrics,
    proto::SubscribeRequest,
    wire::Head,
};
use prost::Message as _;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
};

const BATCH_EVENTS: usize = 100;
const BATCHES: usize = 10;
/// About what a session event weighs on the wire.
const PAYLOAD_BYTES: usize = 300;

struct Bridge {
    log: Arc<dyn Log>,
    address: SocketAddr,
    next_id: u64,
}

impl Bridge {
    async fn start() -> Self {
        let log: Arc<dyn Log> = memory::open(memory::Options::default()).expect("random bytes");
        let bus = Bus::follow(bus::Options::default(), &*log).expect("a log without writers");
        let metrics = Arc::new(Metrics::new());
        let streams = grpc::Server::new(
            grpc::Options::default(),
            Credentials::anonymous(),
            Arc::clone(&log),
            bus,
            metrics,
        )
        .await
        .expect("the services");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((connection, peer)) = listener.accept().await {
                let _ = connection.set_nodelay(true);
                let streams = streams.clone();
                tokio::spawn(async move { streams.serve(connection, peer.into()).await });
            }
        });
        Self {
            log,
            address,
            next_id: 0,
        }
    }

    async fn append(&mut self) {
        let mut encoded = Vec::new();
        let mut drafts = Vec::new();
        let event_type: Arc<str> = "user.session.created".into();
        for _ in 0..BATCH_EVENTS {
            self.next_id += 1;
            let id = format!("evt_{:026}", self.next_id);
            let start = encoded.len();
            let head = Head {
                id: &id,
                event_type: &event_type,
                app_id: "54e9ujn",
                user_id: "usr_01jq9zv8x5f8wbqk3d5n7r2c4m",
                ..Head::default()
            };
            head.encode(&mut encoded);
            let payload = encoded.len();
            // `Event.user_session_created` (25) with a session id of the wanted length.
            encoded.extend_from_slice(&[0xca, 0x01]);
            prost::encoding::encode_varint(PAYLOAD_BYTES as u64 + 3, &mut encoded);
            encoded.push(0x12);
            prost::encoding::encode_varint(PAYLOAD_BYTES as u64, &mut encoded);
            encoded.resize(encoded.len() + PAYLOAD_BYTES, b'x');
            drafts.push(Draft {
                key: EventKey::new("54e9ujn", &id, &event_type, b""),
                event_type: Arc::clone(&event_type),
                user_hash: 1,
                head: start..payload,
                payload: payload..encoded.len(),
                raw_json: 0..0,
            });
        }
        let batch = Batch {
            app_id: "54e9ujn".into(),
            body: Bytes::new(),
            encoded: encoded.into(),
            drafts,
            dates: Default::default(),
        };
        self.log.append(batch).await.expect("an append");
    }
}

/// A subscriber that reads as fast as it can and looks only at how many bytes came.
struct Subscriber {
    bytes: watch::Receiver<u64>,
}

impl Subscriber {
    async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("a connection");
        let _ = socket.set_nodelay(true);
        let (mut client, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 20)
            .handshake::<_, Bytes>(socket)
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        let request = Request::post("http://bench/prelude.bridge.v1.EventService/Subscribe")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let (response, mut send) = client.send_request(request, false).expect("a stream");
        let message = SubscribeRequest::default().encode_to_vec();
        let length = u32::try_from(message.len()).expect("a short message");
        let framed = [&[0][..], &length.to_be_bytes(), &message].concat();
        send.send_data(framed.into(), true)
            .expect("room for the request");
        let mut body = response.await.expect("a response").into_body();
        let (counter, bytes) = watch::channel(0);
        tokio::spawn(async move {
            // The connection lives as long as somebody can still send on it.
            let _client = client;
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                counter.send_modify(|count| *count += data.len() as u64);
            }
        });
        Self { bytes }
    }

    async fn has(&mut self, bytes: u64) {
        self.bytes
            .wait_for(|&count| count >= bytes)
            .await
            .expect("the stream goes on");
    }

    fn count(&self) -> u64 {
        *self.bytes.borrow()
    }
}

async fn deliver(bridge: &mut Bridge, subscribers: &mut [Subscriber]) {
    let before: Vec<u64> = subscribers.iter().map(Subscriber::count).collect();
    for _ in 0..BATCHES {
        bridge.append().await;
    }
    // An event has 143 to 146 bytes beside its payload. The last percent may still be on its way,
    // and is then counted with the next round.
    let events_bytes = (BATCHES * BATCH_EVENTS * (PAYLOAD_BYTES + 143)) as u64;
    for (subscriber, before) in subscribers.iter_mut().zip(before) {
        subscriber.has(before + events_bytes).await;
    }
}

fn fanout(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("fanout");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    for count in [1, 10, 100, 1_000] {
        let (mut bridge, mut subscribers) = runtime.block_on(async {
            let bridge = Bridge::start().await;
            let mut subscribers = Vec::new();
            for _ in 0..count {
                let mut subscriber = Subscriber::connect(bridge.address).await;
                // `Started` and `CaughtUp`: from here on it is live.
                subscriber.has(100).await;
                subscribers.push(subscriber);
            }
            (bridge, subscribers)
        });
        group.throughput(Throughput::Elements(
            (count * BATCHES * BATCH_EVENTS) as u64,
        ));
        group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bencher, _| {
            bencher.iter_custom(|iterations| {
                runtime.block_on(async {
                    let started = std::time::Instant::now();
                    for _ in 0..iterations {
                        deliver(&mut bridge, &mut subscribers).await;
                    }
                    started.elapsed()
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, fanout);
criterion_main!(benches);
