//! Who holds places on the gRPC port without having shown anything, and the subscribers and probes
//! that come after them: they are always let in.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use prelude_bridge::{
    client::{Client, Options},
    proto::{GetRangeRequest, SubscribeRequest, start_position::Position},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, metadata::MetadataValue, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    Guarded,
    frames::{
        self, ENHANCE_YOUR_CALM, End, GET_RANGE, GOAWAY, Http2, SUBSCRIBE, authorized_call, call,
        whole_call,
    },
    sockets, within,
};
use crate::{
    access::token,
    support::{
        Bridge, SOON, Setup,
        certificates::Authority,
        item,
        sender::eventually,
        stream::{Latest, from, reason},
    },
    tls::Secured as _,
};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Where subscribers and probes are, and some of the others.
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

const NO_ERROR: u32 = 0;

/// More connections than there are places.
const CROWD: usize = 60;

/// A bridge, and the token of a subscriber where it asks for one.
async fn bridge(setup: Setup, has_credentials: bool) -> (Bridge, Option<String>) {
    let mut bridge = setup.with("store", "memory").prepare();
    let token = has_credentials.then(|| token(&bridge.data_dir(), &["somebody"]));
    bridge.restart().await;
    (bridge, token)
}

/// Connections that begin properly and answer pings, until the test ends.
#[derive(Default)]
struct Idlers(JoinSet<End>);

impl Idlers {
    /// Some of them make these calls.
    async fn come(&mut self, source: Ipv4Addr, address: SocketAddr, calls: &[Vec<u8>]) {
        for number in 0..CROWD {
            let mut connection = Http2::begin_from(source, address).await.unwrap();
            if let Some(call) = calls.get(number % 4) {
                // It may be closed for the next one already.
                let _ = connection.send(call).await;
            }
            self.0.spawn(connection.idle());
        }
    }
}

/// Asks over a new connection whether the bridge is well, as an orchestrator does.
async fn probe(bridge: &Bridge) {
    let answer = HealthClient::new(bridge.channel().await)
        .check(HealthCheckRequest::default())
        .await;
    answer.unwrap();
}

fn authorized<T>(message: T, token: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        let bearer: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
    }
    request
}

/// A subscriber that sees each event of the bridge.
struct Subscriber {
    stream: tonic::Streaming<prelude_bridge::proto::SubscribeResponse>,
}

impl Subscriber {
    async fn come(bridge: &Bridge, token: Option<&str>) -> Self {
        let request: SubscribeRequest = from(Position::Latest(Latest {}));
        let mut client = bridge.client().await;
        let answer = client.subscribe(authorized(request, token));
        let mut stream = answer.await.unwrap().into_inner();
        // It has its place.
        assert!(stream.message().await.unwrap().is_some());
        Self { stream }
    }

    /// Appends an event and waits until it comes.
    async fn sees(&mut self, bridge: &Bridge, id: &str) {
        bridge.append(&[item(id, "user.created", "usr_1")]).await;
        let coming = async {
            loop {
                let response = self.stream.message().await.unwrap().unwrap();
                if response.events.iter().any(|event| event.id == id) {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, coming).await.unwrap();
    }
}

async fn counted(bridge: &Bridge, sample: &str, least: f64) {
    eventually(async || {
        let value = bridge.metric(sample).await.unwrap_or(0.0);
        (value >= least).then_some(())
    })
    .await;
}

fn closed(reason: &str) -> String {
    format!(r#"prelude_bridge_connections_closed_total{{listener="grpc",reason="{reason}"}}"#)
}

fn refused(reason: &str) -> String {
    format!(r#"prelude_bridge_connections_refused_total{{listener="grpc",reason="{reason}"}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_neither_subscribers_nor_probes_out() {
    let wrong = authorized_call(1, SUBSCRIBE, &format!("pb_{}", "x".repeat(43)));
    for (has_credentials, calls) in [
        (false, vec![whole_call(1, WATCH), whole_call(1, CHECK)]),
        // Where there are none, any call is one of somebody who may make it.
        (true, vec![whole_call(1, WATCH), wrong]),
    ] {
        for (source, share, evicted) in [
            // The default share; and one that lets an address take all there is.
            (HERE, "12", "evicted_address_full"),
            (HERE, "60", "evicted_listener_full"),
            (ELSEWHERE, "12", "evicted_address_full"),
            (ELSEWHERE, "60", "evicted_listener_full"),
        ] {
            let setup = Setup::default()
                .with("limits.grpc.connections_max", "50")
                .with("limits.grpc.connections_per_address_max", share)
                .with("limits.grpc.ping_interval", "1s");
            let (bridge, token) = bridge(setup, has_credentials).await;
            let token = token.as_deref();
            let mut idlers = Idlers::default();
            idlers.come(source, bridge.addresses.grpc, &calls).await;
            counted(&bridge, &closed(evicted), 1.0).await;
            let mut subscriber = Subscriber::come(&bridge, token).await;
            probe(&bridge).await;
            // More of them than there are places, after it.
            idlers.come(source, bridge.addresses.grpc, &calls).await;
            subscriber.sees(&bridge, "evt_1").await;
            probe(&bridge).await;
            let mut late = Subscriber::come(&bridge, token).await;
            late.sees(&bridge, "evt_2").await;
            subscriber.sees(&bridge, "evt_3").await;
            for reason in ["listener_full", "address_full"] {
                assert_eq!(bridge.metric(&refused(reason)).await, None, "{reason}");
            }
            let said = bridge.stderr();
            assert!(said.contains("connection closed for a new one"), "{said}");
            bridge.finish().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_come_back_at_once_keep_nobody_out() {
    let setup = Setup::default()
        .with("limits.grpc.connections_max", "100")
        .with("limits.grpc.connections_per_address_max", "100");
    let guarded = Guarded::start(setup).await;
    let address = guarded.bridge.addresses.grpc;
    let attack = async || {
        let stopping = CancellationToken::new();
        let mut crowd = JoinSet::new();
        for _ in 0..150 {
            let stopping = stopping.clone();
            crowd.spawn(async move {
                let returning = async {
                    loop {
                        if let Ok(connection) = Http2::begin(address, &[]).await {
                            connection.idle().await;
                        }
                    }
                };
                stopping.run_until_cancelled(returning).await;
            });
        }
        for _ in 0..20 {
            probe(&guarded.bridge).await;
        }
        let here = Subscriber::come(&guarded.bridge, None).await;
        drop(here);
        stopping.cancel();
        crowd.join_all().await;
    };
    let attack = async || within(Duration::from_secs(5), attack()).await;
    guarded
        .under("150 connections that come back", attack)
        .await;
    guarded
        .bridge
        .counts_at_least(&closed("evicted_listener_full"), 1.0)
        .await;
    let full = guarded.bridge.metric(&refused("listener_full")).await;
    assert_eq!(full, None);
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_credential_in_time_is_told_to_go() {
    let setup = Setup::default().with("limits.grpc.credential_timeout", "1s");
    let (bridge, token) = bridge(setup, true).await;
    let token = token.as_deref();
    let mut subscriber = Subscriber::come(&bridge, token).await;
    let wrong = format!("pb_{}", "x".repeat(43));
    let sayings = [
        Vec::new(),
        whole_call(1, GET_RANGE),
        authorized_call(1, GET_RANGE, &wrong),
        authorized_call(1, SUBSCRIBE, &wrong),
        whole_call(1, CHECK),
        // It is still open when the time is over.
        whole_call(1, WATCH),
    ];
    let mut strangers = JoinSet::new();
    for said in &sayings {
        let mut connection = Http2::begin_from(HERE, bridge.addresses.grpc)
            .await
            .unwrap();
        connection.send(said).await.unwrap();
        strangers.spawn(connection.idle());
    }
    let ends = within(Duration::from_secs(7), strangers.join_all()).await;
    assert!(
        ends.iter().all(|&end| end == End::GoAway(NO_ERROR)),
        "{ends:?}"
    );
    counted(&bridge, &closed("no_credential"), sayings.len() as f64).await;
    // Whoever has shown one stays.
    subscriber.sees(&bridge, "evt_1").await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nothing_is_called_is_told_to_go() {
    let setup = Setup::default().with("limits.grpc.idle_timeout", "1s");
    let (bridge, _) = bridge(setup, false).await;
    let mut subscriber = Subscriber::come(&bridge, None).await;
    let mut called = Http2::begin_from(HERE, bridge.addresses.grpc)
        .await
        .unwrap();
    called.send(&whole_call(1, GET_RANGE)).await.unwrap();
    assert!(called.is_answered(1).await);
    let silent = Http2::begin_from(HERE, bridge.addresses.grpc)
        .await
        .unwrap();
    let both = async { tokio::join!(called.idle(), silent.idle()) };
    let ends = within(Duration::from_secs(2), both).await;
    assert_eq!(ends, (End::GoAway(NO_ERROR), End::GoAway(NO_ERROR)));
    counted(&bridge, &closed("idle"), 2.0).await;
    subscriber.sees(&bridge, "evt_1").await;

    // A client that stays where it is notices nothing.
    let mut client = bridge.client().await;
    client.get_range(GetRangeRequest {}).await.unwrap();
    counted(&bridge, &closed("idle"), 3.0).await;
    client.get_range(GetRangeRequest {}).await.unwrap();
    bridge.finish().await;
}

/// Eleven connections with a hundred calls each, beside which a probe, and whoever has a credential,
/// is answered: also from the address of the flood.
async fn beside_a_flood(setup: Setup, said: impl Fn(u32) -> Vec<u8>) -> (Bridge, Idlers) {
    let (bridge, token) = bridge(setup, true).await;
    let token = token.unwrap();
    let address = bridge.addresses.grpc;
    let mut flood = Idlers::default();
    for _ in 0..11 {
        let mut connection = Http2::begin(address, &[]).await.unwrap();
        for number in 0..100 {
            connection.send(&said(2 * number + 1)).await.unwrap();
        }
        // All of them have been looked at when this one is answered.
        connection
            .send(&frames::frame(6, 0, 0, &[1; 8]))
            .await
            .unwrap();
        while !(connection.next().await.unwrap()).is_pong() {}
        flood.0.spawn(connection.idle());
    }
    for _ in 0..20 {
        probe(&bridge).await;
    }
    let range = authorized(GetRangeRequest {}, Some(&token));
    bridge.client().await.get_range(range).await.unwrap();
    let mut same = Http2::begin(address, &[]).await.unwrap();
    for (stream, call) in [
        (1, whole_call(1, CHECK)),
        (3, authorized_call(3, GET_RANGE, &token)),
        (5, whole_call(5, WATCH)),
        (7, authorized_call(7, SUBSCRIBE, &token)),
        (9, whole_call(9, CHECK)),
    ] {
        same.send(&call).await.unwrap();
        assert!(same.is_answered(stream).await, "{stream}");
    }
    (bridge, flood)
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_take_nothing_from_other_calls() {
    for watches_max in ["4096", "200"] {
        let setup = Setup::default().with("limits.grpc.watches_max", watches_max);
        let (bridge, flood) = beside_a_flood(setup, |stream| whole_call(stream, WATCH)).await;
        drop(flood);
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_that_do_not_come_whole_take_nothing_from_those_that_do() {
    let setup = Setup::default().with("limits.grpc.checks_max", "100");
    let (bridge, flood) = beside_a_flood(setup, |stream| call(stream, CHECK)).await;
    drop(flood);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_credential_take_nothing_from_those_with_one() {
    let setup = Setup::default().with("limits.grpc.calls_max", "8");
    let refused = r#"prelude_bridge_streams_ended_total{reason="TOKEN_INVALID"}"#;
    let (bridge, flood) = beside_a_flood(setup, |stream| whole_call(stream, GET_RANGE)).await;
    drop(flood);
    counted(&bridge, refused, 1_100.0).await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_a_credential_are_counted_by_address_and_checks_are_not() {
    let setup = Setup::default().with("limits.grpc.calls_max", "16");
    let (bridge, token) = bridge(setup, true).await;
    let token = token.unwrap();
    let address = bridge.addresses.grpc;
    // A conversation that goes on for as long as it is not ended: four of them are a quarter.
    let open = |stream| {
        let bearer = format!("Bearer {token}");
        let block = [
            frames::call_block(REFLECTION),
            frames::literal(b"authorization", bearer.as_bytes()),
        ];
        frames::frame(
            frames::HEADERS,
            frames::END_HEADERS,
            stream,
            &block.concat(),
        )
    };
    let mut holder = Http2::begin_from(HERE, address).await.unwrap();
    for stream in [1, 3, 5, 7] {
        holder.send(&open(stream)).await.unwrap();
    }
    holder.send(&whole_call(9, CHECK)).await.unwrap();
    assert!(holder.is_answered(9).await);
    let range = authorized(GetRangeRequest {}, Some(&token));
    let status = bridge.client().await.get_range(range).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(reason(&status).0, "LIMIT_STREAMS");
    assert!(
        status
            .message()
            .contains("`limits.grpc.calls_per_address_max`"),
        "{status:?}"
    );
    probe(&bridge).await;
    let mut other = Http2::begin_from(ELSEWHERE, address).await.unwrap();
    other
        .send(&authorized_call(1, GET_RANGE, &token))
        .await
        .unwrap();
    assert!(other.is_answered(1).await);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_whose_connections_are_all_in_use_is_told_so_unless_it_is_a_proxy() {
    for proxies in ["", "127.0.0.0/30"] {
        let setup = Setup::default()
            .with("limits.grpc.connections_per_address_max", "2")
            .with("grpc_proxies", proxies);
        let (bridge, _) = bridge(setup, false).await;
        let address = bridge.addresses.grpc;
        let mut users = Vec::new();
        for _ in 0..2 {
            let mut user = Http2::begin_from(ELSEWHERE, address).await.unwrap();
            user.send(&whole_call(1, GET_RANGE)).await.unwrap();
            assert!(user.is_answered(1).await);
            users.push(user);
        }
        let mut third = Http2::begin_from(ELSEWHERE, address).await.unwrap();
        if proxies.is_empty() {
            let told = loop {
                let frame = third.next().await.unwrap();
                if frame.kind == GOAWAY {
                    break frame.payload;
                }
            };
            assert_eq!(told[4..8], ENHANCE_YOUR_CALM.to_be_bytes());
            let reason = String::from_utf8(told[8..].to_vec()).unwrap();
            assert!(
                reason.starts_with("your address has its maximum"),
                "{reason}"
            );
            assert!(reason.contains("limits.grpc.connections_per_address_max"));
            counted(&bridge, &refused("address_full"), 1.0).await;
        } else {
            third.send(&whole_call(1, GET_RANGE)).await.unwrap();
            assert!(third.is_answered(1).await);
        }
        // From anywhere else as ever.
        let mut other = Http2::begin_from(HERE, address).await.unwrap();
        other.send(&whole_call(1, GET_RANGE)).await.unwrap();
        assert!(other.is_answered(1).await);
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_why_it_is_refused() {
    let setup = Setup::default().with("limits.grpc.connections_per_address_max", "1");
    let (bridge, _) = bridge(setup, false).await;
    let mut first = bridge.client().await;
    first.get_range(GetRangeRequest {}).await.unwrap();
    let url = format!("http://{}", bridge.addresses.grpc);
    let channel = Channel::from_shared(url).unwrap().connect_lazy();
    let mut second = prelude_bridge::proto::event_service_client::EventServiceClient::new(channel);
    let status = second.get_range(GetRangeRequest {}).await.unwrap_err();
    assert!(status.code() != Code::Ok, "{status:?}");
    counted(&bridge, &refused("address_full"), 1.0).await;
    assert!(bridge.stderr().contains("address_full"));
    bridge.finish().await;
}

/// The handshake is part of what a connection has to show for its place.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_do_not_go_on_keep_nobody_out() {
    let authority = Authority::new();
    let setup = Setup::default()
        .secured("grpc", &authority.server("server"))
        .with("limits.grpc.connections_max", "20")
        .with("limits.grpc.connections_per_address_max", "20")
        .with("tls.handshake_timeout", "60s");
    let (bridge, token) = bridge(setup, true).await;
    let mut silent = Vec::new();
    for number in 0..60 {
        let source = [HERE, ELSEWHERE][number % 2];
        let stream = sockets::connect_from(source, bridge.addresses.grpc).await;
        silent.push(stream.unwrap());
    }
    counted(&bridge, &closed("evicted_listener_full"), 40.0).await;
    let ca = std::fs::read_to_string(authority.certificate()).unwrap();
    let options = Options::new(format!("https://{}", bridge.addresses.grpc))
        .ca_certificate(ca)
        .token(token.unwrap());
    // The first ones keep their places while others come.
    let mut clients = Vec::new();
    for _ in 0..5 {
        let client = Client::connect(&options).await.unwrap();
        client.range().await.unwrap();
        clients.push(client);
    }
    for client in &clients {
        client.range().await.unwrap();
    }
    bridge.finish().await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_before_the_webhook_port_has_no_share() {
    let setup = Setup::default()
        .with("limits.webhook.connections_per_address_max", "2")
        .with("trusted_proxies", "127.0.0.2/32");
    let (bridge, _) = bridge(setup, false).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        let webhook = bridge.addresses.webhook;
        held.push(sockets::connect_from(ELSEWHERE, webhook).await.unwrap());
    }
    let open = r#"prelude_bridge_connections_open{listener="webhook"}"#;
    counted(&bridge, open, 10.0).await;
    drop(held);
    bridge.finish().await;
}
