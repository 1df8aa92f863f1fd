//! What each kind of failure looks like: to a sender, to a subscriber, and to an operator on `/readyz`, in the
//! metrics and in the log.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use prelude_bridge::proto::{
    SubscribeRequest, start_position::Position, subscribe_response::Notice,
};
use prelude_bridge_jetstream::{
    self as jetstream,
    testing::{Config, Nats},
};
use prelude_bridge_postgres::testing as postgres;
use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, Status};

use super::{
    STREAM, addresses, connect, over_nats, over_postgresql, proxies, proxy::Proxy, server, servers,
};
use crate::support::{
    Bridge, Setup, item,
    sender::{Delivery, Sender, eventually},
    stream::{Earliest, Received, after, from, history, reason},
};

const READY: &str = "prelude_bridge_log_ready";
const SUBSCRIBERS: usize = 20;

async fn nats(nodes: usize) -> Nats {
    Nats::start(nodes, Config::default()).await
}

fn sender(bridge: &Bridge) -> Sender {
    Sender::to(bridge.addresses.webhook)
}

/// Repeats a batch until it is acknowledged. Every refusal until then is temporary and says when to come again.
async fn acknowledged(sender: &Sender, id: &str) {
    let delivery = Delivery::of_ids([id]);
    eventually(async || {
        let reply = sender.try_send(&delivery).await.ok()?;
        let is_refused = reply.status == 503 && reply.retry_after_seconds.is_some();
        assert!(reply.status == 200 || is_refused, "{reply:?}");
        (!is_refused).then_some(())
    })
    .await;
}

/// Sends a batch until it is refused because the store takes nothing: at once, or when it has waited for that long
/// enough.
async fn refused(sender: &Sender, id: &str) {
    let delivery = Delivery::of_ids([id]);
    let reply = eventually(async || {
        let reply = sender.try_send(&delivery).await.ok()?;
        (reply.status != 200).then_some(reply)
    });
    let reply = reply.await;
    let (status, code) = reply.refusal();
    assert_eq!(status, 503, "{reply:?}");
    assert!(
        ["log_unavailable", "deadline_exceeded"].contains(&code),
        "{reply:?}"
    );
    assert!(reply.retry_after_seconds.is_some(), "{reply:?}");
}

/// What `/readyz` says of the log, once it says something of this kind.
async fn fault(bridge: &Bridge, contains: &str) -> String {
    eventually(async || {
        let answer = bridge.admin("/readyz").await;
        let checks = answer.json()["checks"].clone();
        let mut checks = checks.as_array().unwrap().iter();
        let log = checks.find(|check| check["name"] == "log").unwrap();
        let fault = log["fault"].as_str()?.to_owned();
        assert_eq!(answer.status, 503, "{fault}");
        fault.contains(contains).then_some(fault)
    })
    .await
}

/// Waits until the bridge has logged this.
async fn says(bridge: &Bridge, text: &str) {
    eventually(async || bridge.stderr().contains(text).then_some(())).await;
}

/// All events, with a notice of progress as often as possible.
fn all() -> SubscribeRequest {
    SubscribeRequest {
        progress_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
        ..from(Position::Earliest(Earliest {}))
    }
}

async fn subscribe(bridge: &Bridge, request: SubscribeRequest) -> Result<Received, Status> {
    Received::subscribe(&mut bridge.client().await, request).await
}

/// The ids of the events that a bridge has.
async fn ids(bridge: &Bridge) -> Vec<String> {
    let mut read = subscribe(bridge, history()).await.unwrap();
    read.end().await.unwrap();
    read.events().map(|event| event.id.clone()).collect()
}

/// A stream is refused or ends because the log does not know what is new.
#[track_caller]
fn is_unavailable(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(status).0, "LOG_UNAVAILABLE");
}

/// Reads from one bridge, and from the other one when the first has gone. Says when it had everything.
async fn read_on(first: SocketAddr, second: SocketAddr, events: usize) -> Instant {
    let (mut cursor, mut count) = (None::<String>, 0);
    for bridge in [first, second] {
        let mut client = connect(bridge).await.unwrap();
        let request = cursor.as_deref().map_or_else(all, after);
        let mut stream = Received::subscribe(&mut client, request).await.unwrap();
        while count < events {
            // The connection breaks without a reason.
            let Ok(Some(response)) = stream.next().await else {
                break;
            };
            count += response.events.len();
            if !response.cursor.is_empty() {
                cursor = Some(response.cursor.clone());
            }
        }
    }
    assert_eq!(count, events);
    Instant::now()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_killed_bridge_costs_its_subscribers_a_reconnection_and_its_senders_one_retry() {
    let nats = nats(1).await;
    let mut bridges = Vec::new();
    for _ in 0..2 {
        bridges.push(over_nats(&servers(&nats), 1).start().await);
    }
    let [one, other] = &mut bridges[..] else {
        unreachable!()
    };
    sender(one).send(&Delivery::of_ids(["evt_1"])).await;
    let mut subscribers = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        subscribers.spawn(read_on(one.addresses.grpc, other.addresses.grpc, 2));
    }
    one.counts("prelude_bridge_subscribers", SUBSCRIBERS as f64)
        .await;
    let (webhook, delivery) = (sender(one), Delivery::of_ids(["evt_2"]));
    one.kill();
    let killed_at = Instant::now();
    webhook.try_send(&delivery).await.unwrap_err();
    let reply = sender(other).send(&delivery.signed_anew()).await;
    assert_eq!(reply.counts(), (1, 0), "the first retry");
    let sent = killed_at.elapsed();
    let mut last = Duration::ZERO;
    while let Some(had_all_at) = subscribers.join_next().await {
        last = last.max(had_all_at.unwrap() - killed_at);
    }
    eprintln!(
        "a bridge was killed: its sender went on after {sent:.0?}, {SUBSCRIBERS} subscribers {last:.0?}"
    );
    let [_, other] = <[Bridge; 2]>::try_from(bridges).ok().unwrap();
    other.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn without_a_quorum_senders_are_refused_and_history_is_served() {
    let nats = nats(3).await;
    let bridge = over_nats(&servers(&nats), 3).start().await;
    let webhook = sender(&bridge);
    acknowledged(&webhook, "evt_1").await;

    // One server: an election.
    let leader = nats.leader(STREAM).await;
    nats.kill(leader);
    let killed_at = Instant::now();
    acknowledged(&webhook, "evt_2").await;
    let pause = killed_at.elapsed();
    eprintln!("the leader was killed: 200 again after {pause:.1?}");

    // Two servers.
    let next = nats.leader(STREAM).await;
    nats.kill(next);
    let stream = takes_nothing(&bridge, "stream prelude-bridge").await;
    nats.restart(leader);
    nats.restart(next);
    takes_events_again(bridge, stream).await;
}

/// The engine answers and stores nothing: the bridge, which has two events, refuses a third one, and shows it to
/// nobody. Returns a stream that has the two.
async fn takes_nothing(bridge: &Bridge, words: &str) -> Received {
    refused(&sender(bridge), "evt_3").await;
    bridge.counts(READY, 0.0).await;
    let fault = fault(bridge, words).await;
    assert!(fault.contains("check the servers of the store"), "{fault}");
    says(bridge, "the bridge is not ready").await;
    // While it has no connection, as for a moment after its server was killed, no stream is served.
    let stream = eventually(async || {
        let subscribed = subscribe(bridge, all()).await;
        let mut stream = subscribed.inspect_err(is_unavailable).ok()?;
        while stream.sequences().len() < 2 {
            let _ = stream.next().await.inspect_err(is_unavailable).ok()?;
        }
        let before = stream.responses.len();
        for _ in 0..3 {
            let _ = stream.next().await.inspect_err(is_unavailable).ok()?;
        }
        let later = stream.responses.iter().skip(before);
        let mut notices = later.map(|response| &response.notice);
        let is_progress =
            |notice| matches!(notice, &Some(Notice::Progress(_) | Notice::CaughtUp(_)));
        assert!(notices.all(is_progress), "{:?}", stream.notices());
        Some(stream)
    })
    .await;
    assert_eq!(stream.sequences(), [1, 2], "only what was acknowledged");
    stream
}

/// The engine takes events again: so does the bridge, and the stream goes on, unless the bridge was without a
/// connection for too long.
async fn takes_events_again(bridge: Bridge, mut stream: Received) {
    acknowledged(&sender(&bridge), "evt_3").await;
    bridge.counts(READY, 1.0).await;
    while stream.sequences().len() < 3 {
        if stream.next().await.inspect_err(is_unavailable).is_err() {
            break;
        }
    }
    assert_eq!(ids(&bridge).await, ["evt_1", "evt_2", "evt_3"]);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn without_its_standby_a_primary_takes_nothing_and_history_is_served() {
    let (primary, mut standby) = postgres::Server::with_standby();
    let bridge = over_postgresql(&[server(&primary)]).start().await;
    acknowledged(&sender(&bridge), "evt_1").await;
    acknowledged(&sender(&bridge), "evt_2").await;
    standby.pause();
    let stream = takes_nothing(&bridge, "standby").await;
    standby.resume();
    takes_events_again(bridge, stream).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn an_engine_that_is_full_refuses_new_events_and_nothing_else() {
    const ACCOUNT: &str = "max_file: 8MB";
    let config = Config {
        server: format!(
            "accounts {{ A {{ jetstream: {{ {ACCOUNT} }}, users: [{{ user: a, password: secret }}] }} }}\n\
             no_auth_user: a"
        ),
        ..Config::default()
    };
    let nats = Nats::start(1, config).await;
    // Without a limit of its own, so that the account's is what it meets.
    let stream = jetstream::Options {
        servers: nats.urls(),
        stream: STREAM.to_owned(),
        create: true,
        replicas: 1,
        login: jetstream::Login::None,
        tls: None,
        retention_age: Duration::ZERO,
        retention_bytes: 0,
        ids_age: Duration::from_hours(15 * 24),
    };
    drop(jetstream::open(stream).await.unwrap());
    let bridge = over_nats(&servers(&nats), 1).start().await;
    let webhook = sender(&bridge);
    let padded = |number: usize, bytes: usize| {
        let (id, text) = (format!("evt_{number}"), "x".repeat(bytes));
        Delivery::of(&[item(&id, "user.padded", &text)])
    };
    // As long as anything fits, the bridge goes on.
    let mut taken = 0;
    for bytes in [900 * 1024, 64 * 1024, 4 * 1024, 1] {
        let reply = loop {
            let reply = webhook.send(&padded(taken, bytes)).await;
            if reply.status != 200 {
                break reply;
            }
            taken += 1;
            assert!(taken < 1_000, "it is never full");
        };
        assert_eq!(reply.refusal(), (503, "log_unavailable"));
        assert!(reply.retry_after_seconds.is_some(), "{reply:?}");
    }
    let fault = fault(&bridge, "has no room").await;
    assert!(fault.contains("account"), "{fault}");
    bridge.counts(READY, 0.0).await;
    says(&bridge, "has no room").await;
    assert_eq!(ids(&bridge).await.len(), taken, "what is there is served");

    let path = nats.store(0).with_extension("conf");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace(ACCOUNT, "max_file: 1GB")).unwrap();
    nats.reload(0);
    acknowledged(&webhook, "evt_last").await;
    bridge.counts(READY, 1.0).await;
    assert_eq!(ids(&bridge).await.len(), taken + 1);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_bridge_that_is_cut_off_from_nats_sends_its_subscribers_elsewhere() {
    let nats = nats(1).await;
    let proxies = proxies(&servers(&nats)).await;
    let remote = over_nats(&addresses(&proxies), 1);
    cut_off(remote, over_nats(&servers(&nats), 1), &proxies).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_bridge_that_is_cut_off_from_postgresql_sends_its_subscribers_elsewhere() {
    let database = postgres::Server::start();
    let servers = [server(&database)];
    let proxies = proxies(&servers).await;
    let remote = over_postgresql(&addresses(&proxies));
    cut_off(remote, over_postgresql(&servers), &proxies).await;
}

async fn cut_off(remote: Setup, near: Setup, proxies: &[Proxy]) {
    let (remote, near) = (remote.start().await, near.start().await);
    acknowledged(&sender(&remote), "evt_1").await;
    let mut stream = subscribe(&remote, all()).await.unwrap();
    stream.until_events(1).await;

    proxies.iter().for_each(Proxy::cut);
    refused(&sender(&remote), "evt_2").await;
    let said = fault(&remote, "no connection to").await;
    assert!(said.contains("the network to them"), "{said}");
    remote.counts(READY, 0.0).await;
    is_unavailable(&stream.end().await.unwrap_err());
    says(&remote, "the bridge does not learn of new events").await;
    is_unavailable(&subscribe(&remote, all()).await.err().unwrap());

    // The other bridge takes the same batch, and has the subscriber go on.
    acknowledged(&sender(&near), "evt_2").await;
    let mut moved = subscribe(&near, after(stream.cursor())).await.unwrap();
    moved.until_events(1).await;
    assert_eq!(moved.sequences(), [2]);

    proxies.iter().for_each(Proxy::mend);
    remote.counts(READY, 1.0).await;
    acknowledged(&sender(&remote), "evt_2").await;
    acknowledged(&sender(&remote), "evt_3").await;
    says(&remote, "the bridge learns of new events again").await;
    for bridge in [remote, near] {
        let has_all = async || (ids(&bridge).await == ["evt_1", "evt_2", "evt_3"]).then_some(());
        eventually(has_all).await;
        bridge.finish().await;
    }
}

/// An engine whose server can be put back to where it was.
trait Restorable {
    fn stop(&mut self);
    async fn go_on(&mut self);
    fn files(&self) -> PathBuf;
}

impl Restorable for Nats {
    fn stop(&mut self) {
        self.kill(0);
    }

    async fn go_on(&mut self) {
        self.restart(0);
        self.ready().await;
    }

    fn files(&self) -> PathBuf {
        self.store(0)
    }
}

impl Restorable for postgres::Server {
    fn stop(&mut self) {
        self.kill();
    }

    async fn go_on(&mut self) {
        self.restart();
    }

    fn files(&self) -> PathBuf {
        self.data()
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn bridges_that_are_ahead_of_nats_end_and_cursors_of_what_it_lost_are_refused() {
    let nats = nats(1).await;
    let servers = servers(&nats);
    lose_tail(nats, || over_nats(&servers, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn bridges_that_are_ahead_of_postgresql_end_and_cursors_of_what_it_lost_are_refused() {
    let database = postgres::Server::start();
    let servers = [server(&database)];
    lose_tail(database, || over_postgresql(&servers)).await;
}

async fn lose_tail(mut engine: impl Restorable, setup: impl Fn() -> Setup) {
    let (mut ahead, mut behind) = (setup().start().await, setup().start().await);
    acknowledged(&sender(&ahead), "evt_1").await;
    eventually(async || (ids(&behind).await == ["evt_1"]).then_some(())).await;
    behind.kill();
    engine.stop();
    let copied = engine.files().with_extension("copy");
    copy(&engine.files(), &copied);
    engine.go_on().await;
    acknowledged(&sender(&ahead), "evt_2").await;
    acknowledged(&sender(&ahead), "evt_3").await;
    // It may not have noticed yet that the engine is back.
    let subscribed = async || {
        subscribe(&ahead, all())
            .await
            .inspect_err(is_unavailable)
            .ok()
    };
    let mut stream = eventually(subscribed).await;
    stream.until_events(3).await;
    let cursor = stream.cursor().to_owned();

    engine.stop();
    std::fs::remove_dir_all(engine.files()).unwrap();
    copy(&copied, &engine.files());
    engine.go_on().await;
    let status = ahead.ended().await;
    assert_eq!(status.code(), Some(1), "{}", ahead.stderr());
    let said = ahead.stderr();
    assert!(
        said.contains("the engine has lost commits that it had acknowledged"),
        "{said}"
    );
    assert!(
        said.contains("the next start makes the replica anew"),
        "{said}"
    );

    behind.restart().await;
    acknowledged(&sender(&behind), "evt_4").await;
    ahead.restart().await;
    says(&ahead, "the replica in the data directory is made anew").await;
    let refused = async |bridge: &Bridge| {
        let refused = subscribe(bridge, after(&cursor)).await.err().unwrap();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        reason(&refused).0
    };
    for bridge in [&ahead, &behind] {
        eventually(async || (ids(bridge).await == ["evt_1", "evt_4"]).then_some(())).await;
        assert_eq!(refused(bridge).await, "CURSOR_AHEAD");
    }
    acknowledged(&sender(&ahead), "evt_5").await;
    for bridge in [ahead, behind] {
        eventually(async || (bridge.head().await == 3).then_some(())).await;
        assert_eq!(refused(&bridge).await, "CURSOR_EPOCH_MISMATCH");
        bridge.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_bridge_without_its_replica_is_not_ready_until_it_is_rebuilt() {
    let nats = nats(1).await;
    let proxies = proxies(&servers(&nats)).await;
    let mut bridge = over_nats(&addresses(&proxies), 1).start().await;
    let near = over_nats(&servers(&nats), 1).start().await;
    // More than comes with one read.
    let text = "x".repeat(500 * 1024);
    for number in 0..20 {
        let item = item(&format!("evt_{number}"), "user.padded", &text);
        let reply = sender(&near).send(&Delivery::of(&[item])).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let events = ids(&near).await;
    let mut stream = subscribe(&near, all()).await.unwrap();
    stream.until_events(10).await;

    bridge.kill();
    std::fs::remove_dir_all(bridge.data_dir()).unwrap();
    proxies.iter().for_each(|proxy| proxy.cut_after(4 << 20));
    let command = bridge.command();
    bridge.run_until("listening", command).await;
    bridge.counts(READY, 0.0).await;
    fault(&bridge, "").await;
    refused(&sender(&bridge), "evt_new").await;
    is_unavailable(
        &subscribe(&bridge, after(stream.cursor()))
            .await
            .err()
            .unwrap(),
    );

    proxies.iter().for_each(Proxy::mend);
    bridge.counts(READY, 1.0).await;
    // The refused batch may have been stored after all.
    assert!(ids(&bridge).await.starts_with(&events));
    let mut moved = subscribe(&bridge, after(stream.cursor())).await.unwrap();
    moved.until_events(20 - stream.sequences().len()).await;
    bridge.finish().await;
    near.finish().await;
}
