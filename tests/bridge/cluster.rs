//! Several bridges with one log, over real engines of which every process is killed, stopped and started again,
//! like the bridges themselves. Senders repeat what was not acknowledged, now and then at two bridges at once;
//! subscribers move between the bridges. A ledger of what was acknowledged is compared with what each has seen.

#![expect(clippy::print_stderr, reason = "how long a pause was")]

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prelude_bridge::proto::event_service_client::EventServiceClient;
use prelude_bridge_jetstream::testing::{Config, Nats};
use prelude_bridge_postgres::testing as postgres;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic_types::StatusExt as _;

use crate::support::{
    Bridge, SOON, Setup, count,
    sender::{Delivery, Sender},
    stream::{Earliest, Received, after, from},
};
use prelude_bridge::proto::start_position::Position;

const BRIDGES: usize = 3;
const SENDERS: u64 = 3;
const BATCH: u64 = 5;
/// How long a subscriber stays with a bridge.
const STAY: Duration = Duration::from_millis(700);

/// What senders were promised, and when the last promise was made.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<HashSet<String>>,
    stopping: AtomicBool,
    count: AtomicU64,
}

impl Ledger {
    fn acknowledge(&self, ids: &[String]) {
        let mut acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.extend(ids.iter().cloned());
        self.count
            .store(acknowledged.len() as u64, Ordering::SeqCst);
    }

    /// Waits until this many more events are acknowledged; returns how long that took.
    async fn grows_by(&self, events: u64) -> Duration {
        let (began, before) = (Instant::now(), self.count.load(Ordering::SeqCst));
        while self.count.load(Ordering::SeqCst) < before + events {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    }
}

/// Sends batches, each until one bridge has acknowledged it.
async fn send(number: u64, bridges: Arc<[SocketAddr]>, ledger: Arc<Ledger>) {
    let senders: Vec<Sender> = bridges.iter().map(|&bridge| Sender::to(bridge)).collect();
    let mut turn = usize::try_from(number).unwrap();
    for batch in 0.. {
        if ledger.stopping.load(Ordering::SeqCst) {
            return;
        }
        let ids: Vec<String> = (0..BATCH)
            .map(|n| format!("evt_{number}_{batch}_{n}"))
            .collect();
        let delivery = Delivery::of_ids(&ids);
        loop {
            turn += 1;
            let sender = &senders[turn % senders.len()];
            let is_taken = async |sender: &Sender| {
                let reply = sender.try_send(&delivery).await;
                reply.is_ok_and(|reply| {
                    assert!([200, 503].contains(&reply.status), "{reply:?}");
                    reply.status == 200
                })
            };
            let taken = if batch % 10 == 0 {
                let other = &senders[(turn + 1) % senders.len()];
                let both = tokio::join!(is_taken(sender), is_taken(other));
                both.0 || both.1
            } else {
                is_taken(sender).await
            };
            if taken {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ledger.acknowledge(&ids);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads all events once, from one bridge after another, until it has everything that was acknowledged.
async fn read(number: usize, bridges: Arc<[SocketAddr]>, ledger: Arc<Ledger>) -> Vec<String> {
    let (mut seen, mut cursor) = (Vec::new(), None::<String>);
    let mut next_sequence = 1;
    for turn in number.. {
        let is_over = ledger.stopping.load(Ordering::SeqCst) && {
            let acknowledged = ledger.acknowledged.lock().unwrap();
            seen.len() >= acknowledged.len() && {
                let seen: HashSet<&String> = seen.iter().collect();
                acknowledged.iter().all(|id| seen.contains(id))
            }
        };
        if is_over {
            break;
        }
        let bridge = bridges[turn % bridges.len()];
        let endpoint = Endpoint::from_shared(format!("http://{bridge}")).unwrap();
        let Ok(channel) = endpoint.connect().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut client = EventServiceClient::new(channel);
        let request = match &cursor {
            Some(cursor) => after(cursor),
            None => from(Position::Earliest(Earliest {})),
        };
        let mut received = match Received::subscribe(&mut client, request).await {
            Ok(received) => received,
            Err(status) => {
                // A connection of a bridge that was killed says nothing.
                let is_transport = status.get_details_error_info().is_none();
                let is_temporary = status.code() == tonic::Code::Unavailable;
                assert!(is_temporary || is_transport, "{status:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let until = tokio::time::Instant::now() + STAY;
        while let Ok(Ok(Some(response))) = tokio::time::timeout_at(until, received.next()).await {
            for event in &response.events {
                assert_eq!(
                    event.sequence, next_sequence,
                    "subscriber {number}: a hole, or twice"
                );
                next_sequence += 1;
                seen.push(event.id.clone());
            }
            if !response.cursor.is_empty() {
                cursor = Some(response.cursor.clone());
            }
        }
    }
    seen
}

/// Bridges with one log, and what is going on around them.
struct Cluster {
    bridges: Vec<Bridge>,
    ledger: Arc<Ledger>,
    senders: JoinSet<()>,
    subscribers: JoinSet<Vec<String>>,
}

impl Cluster {
    async fn start(setup: impl Fn() -> Setup) -> Self {
        let mut bridges = Vec::new();
        for _ in 0..BRIDGES {
            bridges.push(setup().in_memory().start().await);
        }
        let webhooks: Arc<[_]> = bridges
            .iter()
            .map(|bridge| bridge.addresses.webhook)
            .collect();
        let streams: Arc<[_]> = bridges.iter().map(|bridge| bridge.addresses.grpc).collect();
        let ledger = Arc::<Ledger>::default();
        let (mut senders, mut subscribers) = (JoinSet::new(), JoinSet::new());
        for number in 0..SENDERS {
            senders.spawn(send(number, Arc::clone(&webhooks), Arc::clone(&ledger)));
        }
        for number in 0..count("PRELUDE_BRIDGE_TEST_CLUSTER_SUBSCRIBERS", 6) {
            subscribers.spawn(read(number, Arc::clone(&streams), Arc::clone(&ledger)));
        }
        let cluster = Self {
            bridges,
            ledger,
            senders,
            subscribers,
        };
        cluster.grows_by(50).await;
        cluster
    }

    /// Waits until so many more events are acknowledged. Where none are, what the bridges say tells why.
    async fn grows_by(&self, events: u64) -> Duration {
        match tokio::time::timeout(SOON, self.ledger.grows_by(events)).await {
            Ok(took) => took,
            Err(_) => {
                let said = self.bridges.iter().map(|bridge| {
                    let said = bridge.stderr();
                    let last: Vec<&str> = said.lines().rev().take(12).collect();
                    last.join("\n")
                });
                let said: Vec<String> = said.collect();
                unreachable!("no events are acknowledged:\n{}", said.join("\n\n"))
            }
        }
    }

    /// Each bridge is killed while events come, and comes back on what is left of its replica; one in turn
    /// comes back without it.
    async fn kill_bridges(&mut self) {
        for number in 0..self.bridges.len() {
            self.bridges[number].kill();
            self.grows_by(20).await;
            if number == 0 {
                std::fs::remove_dir_all(self.bridges[number].data_dir()).unwrap();
            }
            self.bridges[number].restart().await;
            self.grows_by(20).await;
        }
    }

    /// Ends the senders, waits until every subscriber has everything, and compares.
    async fn finish(mut self) {
        self.ledger.stopping.store(true, Ordering::SeqCst);
        tokio::time::timeout(SOON, async {
            while self.senders.join_next().await.is_some() {}
        })
        .await
        .unwrap();
        let acknowledged = self.ledger.acknowledged.lock().unwrap().clone();
        let mut logs = Vec::new();
        let all = async {
            while let Some(seen) = self.subscribers.join_next().await {
                logs.push(seen.unwrap());
            }
        };
        tokio::time::timeout(SOON * 2, all).await.unwrap();
        let longest = logs.iter().max_by_key(|seen| seen.len()).unwrap().clone();
        let ids: HashSet<&String> = longest.iter().collect();
        assert_eq!(ids.len(), longest.len(), "an event is twice in the log");
        assert!(
            acknowledged.iter().all(|id| ids.contains(id)),
            "an acknowledged event is lost"
        );
        for seen in &logs {
            assert_eq!(seen[..], longest[..seen.len()], "the order differs");
        }
        eprintln!(
            "{} events acknowledged, {} in the log",
            acknowledged.len(),
            longest.len()
        );
        for bridge in self.bridges {
            bridge.finish().await;
        }
    }
}

fn on_nats(nats: &Nats, replicas: usize) -> Setup {
    Setup::default()
        .with("store", &nats.urls().join(",").replace(",nats://", ","))
        .with("store.replicas", &replicas.to_string())
        .with("retention.bytes_max", "1GiB")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn bridges_over_a_cluster_of_nats_lose_nothing_whoever_is_killed() {
    let nats = Nats::start(3, Config::default()).await;
    let mut cluster = Cluster::start(|| on_nats(&nats, 3)).await;
    for _ in 0..count("PRELUDE_BRIDGE_TEST_CLUSTER_ROUNDS", 1) {
        let leader = nats.leader("prelude-bridge").await;
        nats.kill(leader);
        let pause = cluster.grows_by(20).await;
        eprintln!("after the leader was killed, events were acknowledged again within {pause:.1?}");
        nats.restart(leader);
        nats.ready().await;
        let follower = (nats.leader("prelude-bridge").await + 1) % 3;
        nats.pause(follower);
        cluster.grows_by(20).await;
        nats.resume(follower);
        cluster.kill_bridges().await;
        for node in 0..3 {
            nats.kill(node);
        }
        for node in 0..3 {
            nats.restart(node);
        }
        nats.ready().await;
        cluster.grows_by(50).await;
    }
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn bridges_over_postgresql_lose_nothing_when_the_primary_dies() {
    let (mut primary, mut standby) = postgres::Server::with_standby();
    let url = |server: &postgres::Server| server.url().replace("postgres://", "");
    let host = |url: String| {
        let (_, place) = url.rsplit_once('@').unwrap_or(("", &url));
        place.split('/').next().unwrap().to_owned()
    };
    let hosts = format!("{},{}", host(url(&primary)), host(url(&standby)));
    let store = primary.url().replace(&host(url(&primary)), &hosts);
    // The new primary has no standby, and is told that it needs none.
    let setup = || {
        Setup::default()
            .with("store", &store)
            .with("store.require_standby", "false")
            .with("retention.bytes_max", "1GiB")
    };
    let mut cluster = Cluster::start(setup).await;
    cluster.kill_bridges().await;
    primary.kill();
    standby.promote();
    let pause = cluster.grows_by(50).await;
    eprintln!("after the primary was killed, events were acknowledged again within {pause:.1?}");
    cluster.finish().await;
}
