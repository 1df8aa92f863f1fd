//! Bridges over real engines of which every process is killed, stopped and started again, like the bridges
//! themselves, under traffic. What was acknowledged is compared with what every subscriber has seen.

#![expect(clippy::print_stderr, reason = "how long each pause was")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use prelude_bridge_jetstream::testing::{Config, Nats};
use prelude_bridge_postgres::testing as postgres;
use tokio::task::JoinSet;

use super::{
    STREAM, addresses, ledger::Ledger, over_nats, over_postgresql, proxies, proxy::Proxy, server,
    servers, traffic,
};
use crate::support::{
    Bridge, SOON, Setup, count,
    stream::{Received, history},
};

const BRIDGES: usize = 3;
/// The bridge that is cut off from the engine.
const REMOTE: usize = BRIDGES - 1;
const SENDERS: usize = 6;
/// Acknowledged events that show that senders go on: more than all senders can have on their way.
const SOME: u64 = 40;
/// No failure of one process may keep senders or subscribers waiting for longer. Usually an election, the
/// longest, takes less than 10 s.
const PAUSE_MAX: Duration = Duration::from_secs(45);
const READY: &str = "prelude_bridge_log_ready";

/// Bridges with one log, and the traffic through them.
struct Cluster {
    bridges: Vec<Bridge>,
    ledger: Arc<Ledger>,
    senders: JoinSet<()>,
    subscribers: JoinSet<()>,
    pauses: BTreeMap<&'static str, Vec<Pause>>,
    began: Instant,
}

/// How long after a failure senders, and then all subscribers, went on.
#[derive(Clone, Copy, Default)]
struct Pause {
    senders: Duration,
    subscribers: Duration,
}

impl Cluster {
    async fn start(setup: impl Fn(usize) -> Setup) -> Self {
        let mut bridges = Vec::new();
        for number in 0..BRIDGES {
            bridges.push(setup(number).start().await);
        }
        let every =
            |port: fn(&Bridge) -> SocketAddr| -> Arc<[_]> { bridges.iter().map(port).collect() };
        let webhooks = every(|bridge| bridge.addresses.webhook);
        let streams = every(|bridge| bridge.addresses.grpc);
        let subscribers = count("PRELUDE_BRIDGE_TEST_CLUSTER_SUBSCRIBERS", 20);
        let ledger = Arc::new(Ledger::of(subscribers));
        let mut cluster = Self {
            bridges,
            ledger: Arc::clone(&ledger),
            senders: JoinSet::new(),
            subscribers: JoinSet::new(),
            pauses: BTreeMap::new(),
            began: Instant::now(),
        };
        for number in 0..SENDERS {
            let sending = traffic::send(number, Arc::clone(&webhooks), Arc::clone(&ledger));
            cluster.senders.spawn(sending);
        }
        for number in 0..subscribers {
            let reading = traffic::read(number, Arc::clone(&streams), Arc::clone(&ledger));
            cluster.subscribers.spawn(reading);
        }
        cluster.goes_on("nothing happens").await;
        cluster
    }

    /// Whether a long run was asked for that has not lasted long enough.
    fn has_time(&self) -> bool {
        let seconds = count("PRELUDE_BRIDGE_TEST_CLUSTER_SECONDS", 0);
        self.began.elapsed() < Duration::from_secs(seconds as u64)
    }

    /// Waits until senders and all subscribers have gone on after this.
    async fn goes_on(&mut self, after: &'static str) {
        let (began, before) = (Instant::now(), self.ledger.acknowledged());
        self.until(after, |ledger| ledger.acknowledged() >= before + SOME)
            .await;
        let senders = began.elapsed();
        self.until(after, |ledger| ledger.seen_by_all() >= before + SOME)
            .await;
        let subscribers = began.elapsed();
        eprintln!("{after}: senders went on after {senders:.1?}, subscribers {subscribers:.1?}");
        assert!(senders < PAUSE_MAX, "{after}: {senders:?}");
        let pauses = self.pauses.entry(after).or_default();
        pauses.push(Pause {
            senders,
            subscribers,
        });
    }

    /// Waits until the ledger is like this. A sender or subscriber that has noticed a fault ends the test.
    async fn until(&mut self, after: &str, is_so: impl Fn(&Ledger) -> bool) {
        let end = Instant::now() + SOON;
        while !is_so(&self.ledger) {
            let tasks = [&mut self.senders, &mut self.subscribers];
            for ended in tasks.into_iter().filter_map(JoinSet::try_join_next) {
                ended.unwrap();
            }
            assert!(
                Instant::now() < end,
                "{after}: {} acknowledged, {} seen by all; missing {:?}\n{}",
                self.ledger.acknowledged(),
                self.ledger.seen_by_all(),
                self.ledger.missing(),
                self.said()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What the bridges said last.
    fn said(&self) -> String {
        let said = self.bridges.iter().map(|bridge| {
            let said = bridge.stderr();
            let last: Vec<&str> = said.lines().rev().take(12).collect();
            last.join("\n")
        });
        said.collect::<Vec<_>>().join("\n\n")
    }

    /// Each bridge is killed, stopped and ended in good order, and comes back on what is left of its replica; one
    /// comes back without it.
    async fn disturb_bridges(&mut self) {
        for number in 0..BRIDGES {
            self.bridges[number].kill();
            self.goes_on("a bridge was killed").await;
            if number == 0 {
                std::fs::remove_dir_all(self.bridges[number].data_dir()).unwrap();
            }
            self.bridges[number].restart().await;
            self.bridges[number].signal("STOP");
            self.goes_on("a bridge was stopped").await;
            self.bridges[number].signal("CONT");
            let status = self.bridges[number].terminate().await;
            assert!(status.success(), "{status}");
            self.bridges[number].restart().await;
            self.goes_on("a bridge was restarted").await;
        }
    }

    /// A bridge is cut off from the engine, and comes back.
    async fn cut_off(&mut self, proxies: &[Proxy]) {
        proxies.iter().for_each(Proxy::cut);
        self.bridges[REMOTE].counts(READY, 0.0).await;
        self.goes_on("a bridge was cut off").await;
        proxies.iter().for_each(Proxy::mend);
        self.bridges[REMOTE].counts(READY, 1.0).await;
    }

    /// Ends the traffic when every subscriber has everything, and compares the logs of all bridges.
    async fn finish(mut self) {
        let lasted = self.began.elapsed();
        self.ledger.is_ending.store(true, Ordering::SeqCst);
        let ending = async {
            while let Some(ended) = self.senders.join_next().await {
                ended.unwrap();
            }
            while let Some(ended) = self.subscribers.join_next().await {
                ended.unwrap();
            }
        };
        let ended = tokio::time::timeout(SOON * 2, ending).await;
        let missing = self.ledger.missing();
        assert!(ended.is_ok() && missing.is_empty(), "missing: {missing:?}");
        let mut events = 0;
        for bridge in &self.bridges {
            let mut client = bridge.client().await;
            let mut read = Received::subscribe(&mut client, history()).await.unwrap();
            read.end().await.unwrap();
            let ids: Vec<String> = read.events().map(|event| event.id.clone()).collect();
            events = self.ledger.compare(&ids);
        }
        let acknowledged = self.ledger.acknowledged();
        eprintln!(
            "{lasted:.0?}: {acknowledged} events acknowledged, {events} in the log, none lost"
        );
        for (after, pauses) in &self.pauses {
            let longest = |of: fn(&Pause) -> Duration| pauses.iter().map(of).max().unwrap();
            let senders = longest(|pause| pause.senders);
            let subscribers = longest(|pause| pause.subscribers);
            let times = pauses.len();
            eprintln!("| {after} | {times} | {senders:.1?} | {subscribers:.1?} |");
        }
        for bridge in self.bridges {
            bridge.finish().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn bridges_over_a_cluster_of_nats_lose_nothing_whoever_is_killed() {
    let nats = Nats::start(3, Config::default()).await;
    let servers = servers(&nats);
    let proxies = proxies(&servers).await;
    let mut cluster = Cluster::start(|number| match number {
        REMOTE => over_nats(&addresses(&proxies), 3),
        _ => over_nats(&servers, 3),
    })
    .await;
    loop {
        disturb_nats(&nats, &mut cluster).await;
        cluster.disturb_bridges().await;
        cluster.cut_off(&proxies).await;
        if !cluster.has_time() {
            break;
        }
    }
    cluster.finish().await;
}

/// The leader, its successor and the followers of both die and stop, one after another; then all servers at once.
async fn disturb_nats(nats: &Nats, cluster: &mut Cluster) {
    let first = nats.leader(STREAM).await;
    nats.kill(first);
    cluster.goes_on("the leader was killed").await;
    nats.restart(first);
    nats.ready().await;
    let second = nats.leader(STREAM).await;
    nats.pause(second);
    cluster.goes_on("the leader was stopped").await;
    nats.resume(second);
    nats.ready().await;
    let third = nats.leader(STREAM).await;
    for follower in (0..3).filter(|&node| node != third) {
        nats.kill(follower);
        cluster.goes_on("a follower was killed").await;
        nats.restart(follower);
        nats.ready().await;
        nats.pause(follower);
        cluster.goes_on("a follower was stopped").await;
        nats.resume(follower);
        nats.ready().await;
    }
    (0..3).for_each(|node| nats.kill(node));
    cluster.bridges[0].counts(READY, 0.0).await;
    (0..3).for_each(|node| nats.restart(node));
    nats.ready().await;
    cluster
        .goes_on("all servers were killed and came back")
        .await;
    (0..3).for_each(|node| nats.pause(node));
    cluster.bridges[0].counts(READY, 0.0).await;
    (0..3).for_each(|node| nats.resume(node));
    cluster
        .goes_on("all servers were stopped and went on")
        .await;
    nats.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn bridges_over_postgresql_lose_nothing_when_the_primary_dies() {
    let (mut primary, mut standby) = postgres::Server::with_standby();
    let servers = [server(&primary), server(&standby)];
    let proxies = proxies(&servers).await;
    let mut cluster = Cluster::start(|number| match number {
        REMOTE => over_postgresql(&addresses(&proxies)),
        _ => over_postgresql(&servers),
    })
    .await;
    loop {
        cluster.disturb_bridges().await;
        cluster.cut_off(&proxies).await;
        primary.kill();
        primary.restart();
        cluster
            .goes_on("the primary was killed and came back")
            .await;
        primary.pause();
        cluster.bridges[0].counts(READY, 0.0).await;
        primary.resume();
        cluster.goes_on("the primary was stopped and went on").await;
        standby.restart();
        cluster
            .goes_on("the standby was killed and came back")
            .await;
        if !cluster.has_time() {
            break;
        }
        standby.pause();
        cluster.bridges[0].counts(READY, 0.0).await;
        standby.resume();
        cluster.goes_on("the standby was stopped and went on").await;
    }
    primary.kill();
    standby.promote();
    cluster
        .goes_on("the primary was killed and the standby promoted")
        .await;
    cluster.finish().await;
}
