//! Several replicas of one log, over a sequence in memory that does what engines do at their worst.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;
use crate::{
    Appended, Error, Log,
    conformance::{Factory, Opened, Setup},
    conformance_tests,
    embedded::{
        Embedded, OpenError, Options, STORE_PATIENCE, Seams, open_replica, open_replica_with_seams,
        testing::waits_until,
    },
    fixtures,
    sequencer::memory::{Connection, Sequence as Commits},
};

const ALL: usize = usize::MAX;

struct Bridge {
    log: Option<Arc<Embedded>>,
    connection: Arc<Connection>,
    dir: tempfile::TempDir,
    patience: Duration,
}

impl Bridge {
    async fn start(commits: &Arc<Commits>) -> Self {
        Self::start_with(commits, STORE_PATIENCE).await
    }

    /// The same with batches that wait so long for the store.
    async fn start_with(commits: &Arc<Commits>, patience: Duration) -> Self {
        let mut bridge = Self {
            log: None,
            connection: commits.connect(),
            dir: tempfile::tempdir().unwrap(),
            patience,
        };
        bridge.open(commits).await;
        bridge
    }

    async fn open(&mut self, commits: &Arc<Commits>) {
        self.connection = commits.connect();
        self.log = Some(self.try_open().await.unwrap());
    }

    async fn try_open(&self) -> Result<Arc<Embedded>, OpenError> {
        let connection = Arc::clone(&self.connection);
        let seams = Seams {
            store_patience: self.patience,
            ..Seams::default()
        };
        open_replica_with_seams(self.dir.path(), Options::default(), connection, seams).await
    }

    fn log(&self) -> &Embedded {
        self.log.as_ref().unwrap()
    }

    /// Ends it as `kill -9` does: what was not flushed is on the disk or not.
    async fn close(&mut self) {
        if let Some(log) = self.log.take() {
            log.close().await;
        }
    }

    async fn append(&self, numbers: &[u64]) -> Result<Appended, Error> {
        let batch = fixtures::numbered_list("app_1", numbers);
        self.log().append(batch).await
    }

    async fn events(&self) -> Vec<(u64, String)> {
        let after = self.log().range().earliest.before();
        fixtures::events(&self.log().read(after, ALL).await.unwrap())
    }

    /// Waits until it has everything.
    async fn caught_up(&self, commits: &Commits) {
        let applied = &self.log().shared.replicated.as_ref().unwrap().applied;
        let mut applied = applied.subscribe();
        let last = commits.ends_now().last;
        let caught_up = applied.wait_for(|&applied| applied >= last);
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), caught_up).await;
        waited.expect("it catches up").unwrap();
    }
}

fn numbered(numbers: impl IntoIterator<Item = u64>) -> Vec<(u64, String)> {
    (1..)
        .zip(numbers.into_iter().map(|n| format!("evt_{n}")))
        .collect()
}

mod conforms {
    use super::*;
    use crate::conformance::open_replica;

    struct Replicas;

    impl Factory for Replicas {
        fn open(&self, setup: Setup) -> Opened {
            let commits = Arc::<Commits>::default();
            let connection = commits.connect();
            let dir = tempfile::tempdir().unwrap();
            let opened = open_replica(&setup, dir, async move { connection as _ });
            let set_outage = move |is_out: bool| {
                let outage = Outage::Unavailable("nobody answers".into());
                commits.set_outage(is_out.then_some(outage));
            };
            Opened {
                set_outage: Some(Box::new(set_outage)),
                ..opened
            }
        }
    }

    conformance_tests!(Replicas, outages);
}

#[tokio::test(flavor = "multi_thread")]
async fn bridges_have_one_log_with_one_order() {
    let commits = Arc::<Commits>::default();
    let bridges = [Bridge::start(&commits).await, Bridge::start(&commits).await];
    for n in 0..20 {
        let [one, other] = &bridges;
        let numbers = ([n, 100 + n], [n, 200 + n]);
        let (first, second) = tokio::join!(one.append(&numbers.0), other.append(&numbers.1));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first.accepted + second.accepted, 3);
        assert_eq!(first.duplicates + second.duplicates, 1);
    }
    for bridge in &bridges {
        bridge.caught_up(&commits).await;
    }
    let [one, other] = &bridges;
    let events = one.events().await;
    assert_eq!(events, other.events().await);
    assert_eq!(events.len(), 60);
    let entries = |bridge: &Bridge| bridge.log().status().epochs().entries().to_vec();
    assert_eq!(entries(one), entries(other));
    let mut cursors = one.log().status().cursors();
    for n in 0..=60 {
        let cursor = cursors.at(Sequence(n));
        let checked = other.log().status().epochs().check(cursor, Sequence(60));
        assert_eq!(checked, Ok(Sequence(n)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_goes_on_where_it_was_and_a_lost_one_is_made_anew() {
    let commits = Arc::<Commits>::default();
    let one = Bridge::start(&commits).await;
    let mut other = Bridge::start(&commits).await;
    one.append(&[1, 2]).await.unwrap();
    other.append(&[3]).await.unwrap();
    other.close().await;
    one.append(&[4]).await.unwrap();
    other.open(&commits).await;
    other.append(&[1, 5]).await.unwrap();
    assert_eq!(other.events().await, numbered(1..=5));
    other.close().await;
    other.dir = tempfile::tempdir().unwrap();
    other.open(&commits).await;
    other.caught_up(&commits).await;
    assert_eq!(other.events().await, numbered(1..=5));
    let again = other.append(&[2, 3, 6]).await.unwrap();
    assert_eq!((again.accepted, again.duplicates), (1, 2));
    one.caught_up(&commits).await;
    assert_eq!(one.events().await, numbered(1..=6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_begins_where_retention_has_left_the_sequence() {
    let commits = Arc::<Commits>::default();
    let one = Bridge::start(&commits).await;
    for n in 1..=10 {
        one.append(&[n]).await.unwrap();
    }
    let cursor = one.log().status().cursors().at(Sequence(5));
    let older = one.log().status().cursors().at(Sequence(2));
    // The first position has a mark.
    commits.remove_before(Position(7));
    waits_until(|| one.log().range().earliest == Sequence(6)).await;
    let other = Bridge::start(&commits).await;
    other.caught_up(&commits).await;
    assert_eq!(other.events().await, one.events().await);
    assert_eq!(other.log().range().earliest, Sequence(6));
    let epochs = other.log().status().epochs();
    assert_eq!(epochs.check(cursor, Sequence(10)), Ok(Sequence(5)));
    assert_eq!(
        epochs.check(older, Sequence(10)),
        Ok(Sequence(2)),
        "expired, not foreign"
    );
    other.append(&[11]).await.unwrap();
    one.caught_up(&commits).await;
    assert_eq!(other.events().await, one.events().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_ahead_of_a_sequence_which_went_back_fails_and_is_made_anew() {
    let commits = Arc::<Commits>::default();
    let mut one = Bridge::start(&commits).await;
    one.append(&[1]).await.unwrap();
    one.append(&[2]).await.unwrap();
    let lost = one.log().status().cursors().at(Sequence(2));
    commits.lose_tail(1);
    one.connection.reconnect();
    let refused = one.append(&[3]).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Failed(reason) if reason.contains("has lost commits")),
        "{refused}"
    );
    one.close().await;
    one.open(&commits).await;
    one.append(&[3]).await.unwrap();
    assert_eq!(one.events().await, numbered([1, 3]));
    let checked = one.log().status().epochs().check(lost, Sequence(2));
    assert_eq!(checked, Err(crate::CursorFault::OtherEpoch));
    let kept = std::fs::read_dir(one.dir.path().join("quarantine")).unwrap();
    assert_eq!(kept.count(), 1, "the segment with the lost event");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_was_behind_goes_on_in_another_epoch_than_what_was_lost() {
    let commits = Arc::<Commits>::default();
    let mut one = Bridge::start(&commits).await;
    let other = Bridge::start(&commits).await;
    one.append(&[1]).await.unwrap();
    other.caught_up(&commits).await;
    other.append(&[2]).await.unwrap();
    one.append(&[3]).await.unwrap();
    // It does not see the last commit.
    other.caught_up(&commits).await;
    other.connection.cut_off();
    one.append(&[4]).await.unwrap();
    let lost = one.log().status().cursors().at(Sequence(4));
    one.close().await;
    commits.lose_tail(1);
    other.connection.reconnect();
    let appended = async || other.append(&[5]).await.is_ok();
    while !appended().await {}
    let checked = other
        .log()
        .status()
        .epochs()
        .check(lost, other.log().range().head);
    assert_eq!(checked, Err(crate::CursorFault::OtherEpoch));
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_stores_that_do_not_belong_together_are_refused() {
    let commits = Arc::<Commits>::default();
    let mut one = Bridge::start(&commits).await;
    one.append(&[1]).await.unwrap();
    one.close().await;
    let embedded = crate::embedded::open(one.dir.path(), Options::default());
    assert!(matches!(embedded, Err(OpenError::Replica { .. })));
    let empty = Arc::<Commits>::default();
    one.connection = empty.connect();
    let refused = one.try_open().await.err().unwrap().to_string();
    assert!(
        refused.contains("is empty, and the data directory has a replica"),
        "{refused}"
    );
    let another = Bridge::start(&empty).await;
    another.append(&[1]).await.unwrap();
    let refused = one.try_open().await.err().unwrap().to_string();
    assert!(refused.contains("choose another --data-dir"), "{refused}");
    let dir = tempfile::tempdir().unwrap();
    let log = crate::embedded::open(dir.path(), Options::default()).unwrap();
    log.close().await;
    drop(log);
    let refused = open_replica(dir.path(), Options::default(), commits.connect()).await;
    assert!(matches!(refused, Err(OpenError::NotAReplica { .. })));
}

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(60 * 60);
const MOMENT: Duration = Duration::from_millis(50);

/// The store takes no batch, and says so without waiting; none waits.
async fn assert_refused_at_once(bridge: &Bridge) {
    for n in 900..910 {
        let refused = bridge.append(&[n]).now_or_never();
        let refused = refused.expect("it waits");
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
    assert_eq!(bridge.log().usage().queued_batches, 0);
}

async fn becomes_ready(bridge: &Bridge) {
    let status = bridge.log().status().clone();
    let ready = status.health_where(|health| *health == Health::Ready);
    let ready = tokio::time::timeout(Duration::from_secs(60), ready).await;
    assert_eq!(ready.expect("it becomes ready"), Health::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_wait_for_a_store_that_is_away_for_a_moment() {
    for hold in [false, true] {
        let commits = Arc::<Commits>::default();
        let bridge = Bridge::start_with(&commits, FOR_EVER).await;
        bridge.append(&[1]).await.unwrap();
        if hold {
            commits.hold_appends(true);
        } else {
            commits.set_outage(Some(Outage::Unavailable("nobody answers".into())));
        }
        let (appended, ()) = tokio::join!(bridge.append(&[1, 2]), async {
            if !hold {
                let status = bridge.log().status().clone();
                status.health_where(|health| *health != Health::Ready).await;
            }
            commits.set_outage(None);
            commits.hold_appends(false);
        });
        let appended = appended.unwrap();
        assert_eq!((appended.accepted, appended.duplicates), (1, 1));
        becomes_ready(&bridge).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_refused_at_once_while_the_store_is_away_for_longer() {
    let outages = [
        Outage::Unavailable("nobody answers".into()),
        Outage::Disconnected("nobody".into()),
        Outage::Full("it is full".into()),
    ];
    for outage in outages {
        let commits = Arc::<Commits>::default();
        let bridge = Bridge::start_with(&commits, MOMENT).await;
        bridge.append(&[1]).await.unwrap();
        commits.set_outage(Some(outage.clone()));
        // A store that is full says so at once, and is asked again for a moment.
        while !bridge.log().shared.queue.is_unavailable() {
            let refused = bridge.append(&[2]).await;
            assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        }
        assert_refused_at_once(&bridge).await;
        let health = bridge.log().status().health();
        let Health::Unavailable { reason, .. } = &health else {
            panic!("{outage}: {health:?}");
        };
        assert!(reason.contains(&outage.to_string()), "{reason}");
        let known = bridge.log().recall(Vec::new()).await;
        assert_eq!(known, Ok(Vec::new()), "questions are answered");
        commits.set_outage(None);
        becomes_ready(&bridge).await;
        bridge.append(&[1, 2, 3]).await.unwrap();
        let ids: HashSet<String> = bridge.events().await.into_iter().map(|it| it.1).collect();
        assert_eq!(bridge.events().await.len(), ids.len());
        assert_eq!(ids.len(), 3, "{ids:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_on_its_way_to_a_store_that_does_not_answer_is_refused_and_known_when_it_comes_again()
 {
    let commits = Arc::<Commits>::default();
    let bridge = Bridge::start_with(&commits, MOMENT).await;
    bridge.append(&[1]).await.unwrap();
    commits.hold_appends(true);
    let both = tokio::join!(bridge.append(&[2]), bridge.append(&[3]));
    for refused in [both.0, both.1] {
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
    let reason = bridge
        .append(&[2])
        .now_or_never()
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(reason.contains("does not answer"), "{reason}");
    assert_refused_at_once(&bridge).await;
    commits.hold_appends(false);
    becomes_ready(&bridge).await;
    let again = bridge.append(&[2, 4]).await.unwrap();
    assert_eq!(again.duplicates, 1, "it was stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_catches_up_appends_nothing_and_refuses_batches_after_a_moment() {
    let commits = Arc::<Commits>::default();
    let one = Bridge::start(&commits).await;
    for n in 1..=5 {
        one.append(&[n]).await.unwrap();
    }
    commits.hold_followers(true);
    let other = Bridge::start_with(&commits, MOMENT).await;
    let last = commits.ends_now().last;
    let refused = other.append(&[6]).await.unwrap_err().to_string();
    assert!(
        refused.contains("catching up, 5 of 5 commits behind"),
        "{refused}"
    );
    assert_refused_at_once(&other).await;
    assert_eq!(commits.ends_now().last, last);
    commits.hold_followers(false);
    becomes_ready(&other).await;
    other.append(&[6]).await.unwrap();
    assert_eq!(other.events().await, numbered(1..=6));
}

/// Bridges, senders that repeat what was not answered, and an engine at its worst.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_is_there_twice_whatever_the_engine_does() {
    let schedules = std::env::var("PRELUDE_BRIDGE_TEST_SCHEDULES");
    let schedules: u64 = schedules.map_or(30, |count| count.parse().unwrap());
    let first: u64 =
        std::env::var("PRELUDE_BRIDGE_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    // Most of their time they wait.
    let schedules = futures_util::stream::iter((first..first + schedules).map(schedule));
    let mut schedules = schedules.map(tokio::spawn).buffer_unordered(16);
    while let Some(done) = schedules.next().await {
        done.unwrap();
    }
}

async fn schedule(seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let commits = Arc::<Commits>::default();
    let mut bridges = Vec::new();
    for _ in 0..3 {
        bridges.push(Bridge::start(&commits).await);
    }
    commits.strike(seed, 3 + draw(6));
    let mut acknowledged = HashSet::new();
    for step in 0..30 {
        let which = usize::try_from(draw(3)).unwrap();
        match draw(20) {
            0 => {
                commits.strike(seed, 0);
                bridges[which].close().await;
                bridges[which].open(&commits).await;
                commits.strike(seed + step, 3 + draw(6));
            }
            1 => bridges[which].connection.reconnect(),
            2 => {
                bridges[which].connection.cut_off();
                bridges[which].connection.reconnect();
            }
            _ => {
                let numbers: Vec<u64> = (0..=draw(4)).map(|_| draw(60)).collect();
                let twice = (draw(4) == 0).then(|| (which + 1) % 3);
                let one = bridges[which].append(&numbers);
                let (one, other) = match twice {
                    Some(other) => {
                        let both = tokio::join!(one, bridges[other].append(&numbers));
                        (both.0, Some(both.1))
                    }
                    None => (one.await, None),
                };
                for answer in [Some(one), other].into_iter().flatten() {
                    match answer {
                        Ok(_) => acknowledged.extend(numbers.iter().copied()),
                        Err(Error::Unavailable(_)) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
            }
        }
    }
    commits.strike(seed, 0);
    compare(seed, &commits, &bridges, &acknowledged).await;
}

/// All bridges have one log, in which nothing is missing that was acknowledged, and nothing is twice.
async fn compare(seed: u64, commits: &Commits, bridges: &[Bridge], acknowledged: &HashSet<u64>) {
    let mut logs = HashMap::new();
    for bridge in bridges {
        bridge.caught_up(commits).await;
        let events = bridge.events().await;
        let sequences: Vec<u64> = events.iter().map(|&(sequence, _)| sequence).collect();
        let expected: Vec<u64> = (1..=events.len() as u64).collect();
        assert_eq!(sequences, expected, "seed {seed}: a hole");
        let ids: HashSet<&String> = events.iter().map(|(_, id)| id).collect();
        assert_eq!(
            ids.len(),
            events.len(),
            "seed {seed}: an event is there twice"
        );
        for number in acknowledged {
            assert!(
                ids.contains(&format!("evt_{number}")),
                "seed {seed}: {number} is lost"
            );
        }
        *logs.entry(format!("{events:?}")).or_insert(0) += 1;
    }
    assert_eq!(logs.len(), 1, "seed {seed}: the logs differ");
}
