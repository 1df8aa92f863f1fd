//! What every log must do. A crate with an implementation says how one is opened ([`Factory`]), and
//! gets the tests by [`conformance_tests!`](crate::conformance_tests).

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "these are tests: each is a claim, and fails by panicking"
)]

use std::{
    any::Any,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use super::{Appended, Block, Error, Gap, Health, Log, Range, ReadError};
use prelude_bridge_event::{Sequence, UnixMicros, testing as fixtures};

const ALL: usize = usize::MAX;

/// The time at which every test begins.
pub const START: UnixMicros = UnixMicros(1_700_000_000_000_000);

/// How logs of a kind are opened.
pub trait Factory {
    /// Opens a new, empty log.
    fn open(&self, setup: Setup) -> Opened;
}

/// What a test wants of a log.
#[derive(Clone)]
pub struct Setup {
    /// What the log takes for the time, also for retention.
    pub clock: TestClock,
    /// Older events are removed.
    pub retention_age: Duration,
    /// The oldest events are removed when there are more bytes.
    pub retention_bytes: u64,
}

/// A log, and what a test needs beside it.
pub struct Opened {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Makes the log unavailable for now (`true`), and available again. `None` where nothing can.
    pub set_outage: Option<Box<dyn Fn(bool) + Send + Sync>>,
    /// Dropped after the log.
    pub keep: Box<dyn Any + Send>,
}

/// A clock that stands still unless a test moves it.
#[derive(Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    fn new() -> Self {
        Self(Arc::new(AtomicI64::new(START.0)))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> UnixMicros {
        UnixMicros(self.0.load(Ordering::SeqCst))
    }
}

/// A log that is tested, with a recording follower.
struct Rig {
    log: Arc<dyn Log>,
    followed: Followed,
    clock: TestClock,
    set_outage: Option<Box<dyn Fn(bool) + Send + Sync>>,
    _keep: Box<dyn Any + Send>,
}

type Followed = Arc<Mutex<Vec<Arc<Block>>>>;

#[derive(Clone, Copy)]
struct Keep {
    age: Duration,
    bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(3600),
            bytes: 1 << 30,
        }
    }
}

impl Rig {
    fn new(factory: &dyn Factory) -> Self {
        Self::keeping(factory, Keep::default())
    }

    fn keeping(factory: &dyn Factory, keep: Keep) -> Self {
        let clock = TestClock::new();
        let opened = factory.open(Setup {
            clock: clock.clone(),
            retention_age: keep.age,
            retention_bytes: keep.bytes,
        });
        let followed = record(&*opened.log, Sequence::ZERO).unwrap();
        Self {
            log: opened.log,
            followed,
            clock,
            set_outage: opened.set_outage,
            _keep: opened.keep,
        }
    }

    fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).unwrap();
        self.clock.0.fetch_add(micros, Ordering::SeqCst);
    }

    async fn append(&self, numbers: &[u64]) -> Appended {
        self.try_append(numbers).await.unwrap()
    }

    async fn try_append(&self, numbers: &[u64]) -> Result<Appended, Error> {
        let batch = fixtures::numbered_list("app_1", numbers);
        self.log.append(batch).await
    }

    async fn events(&self) -> Vec<(u64, String)> {
        let after = self.log.range().earliest.before();
        fixtures::events(&self.log.read(after, ALL).await.unwrap())
    }

    fn followed(&self) -> Vec<(u64, String)> {
        fixtures::events(&self.followed.lock().unwrap())
    }

    async fn range_where(&self, condition: impl FnMut(&Range) -> bool) -> Range {
        let met = self.log.status().range_where(condition);
        in_time(met).await.unwrap()
    }
}

/// Follows a log and records what it is handed.
fn record(log: &dyn Log, after: Sequence) -> Result<Followed, Gap> {
    let followed = Followed::default();
    let noted = Arc::clone(&followed);
    let follower = move |block: &Arc<Block>| {
        noted.lock().unwrap().push(Arc::clone(block));
        Ok(())
    };
    log.follow(after, Arc::new(follower)).map(|()| followed)
}

fn numbered(numbers: &[u64]) -> Vec<(u64, String)> {
    (1..)
        .zip(numbers.iter().map(|n| format!("evt_{n}")))
        .collect()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, future)
        .await
        .expect("it comes to pass")
}

async fn waits_until(mut condition: impl AsyncFnMut() -> bool) {
    in_time(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A test for each claim about the logs that a [`Factory`] opens. The crate needs tokio with the
/// features `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! conformance_tests {
    ($factory:expr) => {
        $crate::conformance_tests! { $factory;
            a_new_log_is_empty
            events_are_numbered_in_order_without_holes
            concurrent_appends_have_one_order_which_all_see
            repetitions_are_left_out
            the_same_id_of_another_app_is_another_event
            a_place_can_be_found_by_its_time
            time_never_goes_back
            reading_ends_at_its_limit_but_brings_at_least_one_block
            a_large_batch_becomes_several_blocks
            what_is_too_old_expires
            what_is_too_much_expires
            a_log_that_expired_whole_goes_on
            a_closed_log_refuses_and_can_be_read
            an_append_goes_on_when_nobody_waits_for_it
            an_empty_batch_is_nothing
            cursors_of_the_log_belong_to_it
            usage_grows_with_what_is_kept
            a_follower_begins_at_the_head_and_is_handed_every_commit
            followers_have_a_batch_before_it_is_answered
            a_block_that_a_follower_refuses_fails_the_log
            those_who_wait_see_commits_and_the_end
            an_epoch_is_known_before_any_of_its_events
            a_log_that_is_unavailable_says_so_and_goes_on_later
        }
    };
    ($factory:expr; $($name:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $crate::conformance::$name(&$factory).await;
        })*
    };
}

pub async fn a_new_log_is_empty(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let range = rig.log.range();
    assert_eq!((range.earliest, range.head), (Sequence(1), Sequence(0)));
    assert_eq!((range.earliest_at, range.head_at), (None, None));
    assert_eq!(range.event_count(), 0);
    assert!(rig.log.read(Sequence(0), ALL).await.unwrap().is_empty());
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(0)));
    assert_eq!(rig.log.status().health(), Health::Ready);
}

pub async fn events_are_numbered_in_order_without_holes(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    for numbers in [&[5, 3][..], &[9], &[1, 2, 4]] {
        let appended = rig.append(numbers).await;
        assert_eq!(appended.accepted, numbers.len());
    }
    let expected = numbered(&[5, 3, 9, 1, 2, 4]);
    assert_eq!(rig.events().await, expected);
    assert_eq!(rig.followed(), expected);
    let range = rig.log.range();
    assert_eq!((range.earliest, range.head), (Sequence(1), Sequence(6)));
    assert_eq!(range.head_at, Some(START));
    let after = rig.log.read(Sequence(3), ALL).await.unwrap();
    assert_eq!(fixtures::events(&after), expected[3..]);
    assert!(rig.log.read(Sequence(6), ALL).await.unwrap().is_empty());
}

pub async fn concurrent_appends_have_one_order_which_all_see(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let appends: Vec<_> = (0..200)
        .map(|n| {
            let log = Arc::clone(&rig.log);
            tokio::spawn(async move {
                let batch = fixtures::numbered("app_1", n * 3..n * 3 + 3);
                log.append(batch).await.unwrap()
            })
        })
        .collect();
    for append in appends {
        assert_eq!(append.await.unwrap().accepted, 3);
    }
    let events = rig.events().await;
    assert_eq!(events, rig.followed());
    assert!(events.iter().map(|&(sequence, _)| sequence).eq(1..=600));
    for batch in events.chunks(3) {
        let numbers: Vec<u64> = batch
            .iter()
            .map(|(_, id)| id["evt_".len()..].parse().unwrap())
            .collect();
        assert_eq!(numbers[0] % 3, 0, "a batch is in one piece");
        assert_eq!(numbers, [numbers[0], numbers[0] + 1, numbers[0] + 2]);
    }
}

pub async fn repetitions_are_left_out(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let both = |accepted, duplicates| Appended {
        accepted,
        duplicates,
    };
    assert_eq!(rig.append(&[1, 2, 1, 3, 2]).await, both(3, 2));
    assert_eq!(rig.append(&[3, 4]).await, both(1, 1));
    assert_eq!(rig.append(&[1, 2, 3, 4]).await, both(0, 4));
    assert_eq!(rig.events().await, numbered(&[1, 2, 3, 4]));

    // Together, so that they meet in one group.
    let appends: Vec<_> = (0..50)
        .map(|_| rig.log.append(fixtures::numbered("app_1", 100..110)))
        .collect();
    let mut accepted = 0;
    for append in appends {
        accepted += append.await.unwrap().accepted;
    }
    assert_eq!(accepted, 10);
    assert_eq!(rig.log.range().head, Sequence(14));
}

pub async fn the_same_id_of_another_app_is_another_event(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1]).await;
    let other = rig.log.append(fixtures::numbered("app_2", 1..2)).await;
    assert_eq!(other.unwrap().accepted, 1);
}

pub async fn a_place_can_be_found_by_its_time(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    for n in 0..30 {
        rig.append(&[n * 2, n * 2 + 1]).await;
        rig.pass(Duration::from_micros(10));
    }
    for n in 0..30 {
        let at = UnixMicros(START.0 + i64::try_from(n * 10).unwrap());
        assert_eq!(rig.log.seek(at).await, Ok(Sequence(n * 2)));
        let later = UnixMicros(at.0 + 1);
        assert_eq!(rig.log.seek(later).await, Ok(Sequence(n * 2 + 2)));
    }
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(0)));
    assert_eq!(rig.log.seek(UnixMicros(i64::MAX)).await, Ok(Sequence(60)));
}

pub async fn time_never_goes_back(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1]).await;
    rig.clock.0.fetch_sub(1_000_000, Ordering::SeqCst);
    rig.append(&[2]).await;
    let followed = rig.followed.lock().unwrap();
    assert_eq!(followed[1].received_at(), START);
}

pub async fn reading_ends_at_its_limit_but_brings_at_least_one_block(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    for n in 0..10 {
        rig.append(&[n]).await;
    }
    let block_bytes = rig.followed.lock().unwrap()[0].as_bytes().len();
    for (bytes_max, blocks) in [(0, 1), (block_bytes * 3, 3), (block_bytes * 3 + 1, 3)] {
        let read = rig.log.read(Sequence(2), bytes_max).await.unwrap();
        assert_eq!(read.len(), blocks);
        assert_eq!(read[0].first_sequence(), Sequence(3));
    }
}

pub async fn a_large_batch_becomes_several_blocks(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let numbers: Vec<u64> = (0..20_000).collect();
    rig.append(&numbers).await;
    assert_eq!(rig.events().await, numbered(&numbers));
    assert!(rig.followed.lock().unwrap().len() >= 3);
    let inside = rig.log.read(Sequence(10_000), 1).await.unwrap();
    assert!(inside[0].first_sequence() <= Sequence(10_001));
    assert!(inside[0].last_sequence() >= Sequence(10_001));
}

pub async fn what_is_too_old_expires(factory: &dyn Factory) {
    let keep = Keep {
        age: Duration::from_secs(640),
        ..Keep::default()
    };
    let rig = Rig::keeping(factory, keep);
    rig.append(&[1, 2]).await;
    rig.pass(Duration::from_secs(600));
    rig.append(&[3]).await;
    rig.pass(Duration::from_secs(100));
    rig.append(&[4]).await;
    rig.range_where(|range| range.earliest == Sequence(3)).await;
    let expired = ReadError::Expired {
        earliest: Sequence(3),
    };
    for after in [0, 1] {
        let read = rig.log.read(Sequence(after), ALL).await;
        assert_eq!(read.unwrap_err(), expired);
    }
    assert_eq!(rig.events().await, numbered(&[1, 2, 3, 4])[2..]);
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(2)));
    let earliest_at = UnixMicros(START.0 + 600_000_000);
    assert_eq!(rig.log.range().earliest_at, Some(earliest_at));
    assert_eq!(
        rig.append(&[1, 2]).await.duplicates,
        2,
        "ids outlive events"
    );
}

pub async fn what_is_too_much_expires(factory: &dyn Factory) {
    let keep = Keep {
        bytes: 300_000,
        ..Keep::default()
    };
    let rig = Rig::keeping(factory, keep);
    for n in 0..100 {
        let numbers: Vec<u64> = (n * 100..n * 100 + 100).collect();
        rig.append(&numbers).await;
    }
    waits_until(async || {
        // The oldest may go between one look and the next.
        let range = rig.log.range();
        let Ok(blocks) = rig.log.read(range.earliest.before(), ALL).await else {
            return false;
        };
        let events = fixtures::events(&blocks);
        assert_eq!(events.last().unwrap().0, 10_000);
        range.event_count() < 5_000 && events.len() as u64 == range.event_count()
    })
    .await;
}

pub async fn a_log_that_expired_whole_goes_on(factory: &dyn Factory) {
    let keep = Keep {
        age: Duration::from_secs(10),
        ..Keep::default()
    };
    let rig = Rig::keeping(factory, keep);
    rig.append(&[1, 2]).await;
    rig.pass(Duration::from_secs(100));
    // The memory log looks only when something is appended.
    rig.append(&[]).await;
    let range = rig.range_where(|range| range.event_count() == 0).await;
    assert_eq!((range.earliest, range.head), (Sequence(3), Sequence(2)));
    assert_eq!((range.earliest_at, range.head_at), (None, None));
    assert!(rig.log.read(Sequence(2), ALL).await.unwrap().is_empty());
    let read = rig.log.read(Sequence(0), ALL).await;
    let earliest = Sequence(3);
    assert_eq!(read.unwrap_err(), ReadError::Expired { earliest });
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(2)));
    rig.append(&[3]).await;
    assert_eq!(rig.events().await, [(3, "evt_3".to_owned())]);
}

pub async fn a_closed_log_refuses_and_can_be_read(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let last = rig.log.append(fixtures::numbered("app_1", 0..3));
    rig.log.close().await;
    assert_eq!(last.await.unwrap().accepted, 3, "what waits is written");
    let refused = rig.log.append(fixtures::numbered("app_1", 3..4)).await;
    assert_eq!(refused, Err(Error::Closed));
    assert_eq!(rig.log.status().health(), Health::Closed);
    assert_eq!(rig.events().await, numbered(&[0, 1, 2]));
    rig.log.close().await;
}

pub async fn an_append_goes_on_when_nobody_waits_for_it(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    drop(rig.log.append(fixtures::numbered("app_1", 0..3)));
    rig.range_where(|range| range.head == Sequence(3)).await;
    assert_eq!(rig.append(&[0, 1, 2]).await.duplicates, 3);
}

pub async fn an_empty_batch_is_nothing(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let nothing = Appended {
        accepted: 0,
        duplicates: 0,
    };
    assert_eq!(rig.append(&[]).await, nothing);
    assert_eq!(rig.log.range().head, Sequence(0));
    assert!(rig.followed.lock().unwrap().is_empty());
}

pub async fn cursors_of_the_log_belong_to_it(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1, 2]).await;
    let epochs = rig.log.status().epochs();
    let mut cursors = rig.log.status().cursors();
    let blocks = rig.log.read(Sequence(0), ALL).await.unwrap();
    for (index, sequence) in [1, 2].map(Sequence).into_iter().enumerate() {
        let cursor = blocks[0].cursor(index);
        assert_eq!(cursor, epochs.cursor(sequence));
        assert_eq!(cursor, cursors.at(sequence));
        assert_eq!(epochs.check(cursor, rig.log.range().head), Ok(sequence));
    }
}

pub async fn usage_grows_with_what_is_kept(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let before = rig.log.usage().stored_bytes;
    let numbers: Vec<u64> = (0..5_000).collect();
    rig.append(&numbers).await;
    waits_until(async || rig.log.usage().stored_bytes > before + 100_000).await;
    assert_eq!(rig.log.usage().queued_batches, 0);
}

pub async fn a_follower_begins_at_the_head_and_is_handed_every_commit(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    rig.append(&[1, 2]).await;
    for (after, gap) in [
        (
            0,
            Gap::Missing {
                expected: Sequence(1),
                found: Sequence(3),
            },
        ),
        (
            1,
            Gap::Missing {
                expected: Sequence(2),
                found: Sequence(3),
            },
        ),
        (
            3,
            Gap::Repeated {
                expected: Sequence(4),
                found: Sequence(3),
            },
        ),
    ] {
        assert_eq!(record(&*rig.log, Sequence(after)).err(), Some(gap));
    }
    let late = record(&*rig.log, Sequence(2)).unwrap();
    rig.append(&[3]).await;
    rig.append(&[4, 5]).await;
    let all = numbered(&[1, 2, 3, 4, 5]);
    assert_eq!(rig.followed(), all);
    assert_eq!(fixtures::events(&late.lock().unwrap()), all[2..]);
}

pub async fn followers_have_a_batch_before_it_is_answered(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    for n in 0..50 {
        rig.append(&[n]).await;
        assert_eq!(rig.followed().len() as u64, n + 1);
        assert_eq!(rig.log.range().head, Sequence(n + 1));
    }
}

pub async fn a_block_that_a_follower_refuses_fails_the_log(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let gap = Gap::Missing {
        expected: Sequence(3),
        found: Sequence(4),
    };
    let refuse_third = move |block: &Arc<Block>| match block.first_sequence() {
        Sequence(3) => Err(gap),
        _ => Ok(()),
    };
    let follower = Arc::new(refuse_third);
    rig.log.follow(Sequence::ZERO, follower).unwrap();
    let waiter = tokio::spawn({
        let status = rig.log.status().clone();
        async move { status.health_where(|health| *health != Health::Ready).await }
    });
    rig.append(&[1, 2]).await;
    let Err(Error::Failed(reason)) = rig.try_append(&[3]).await else {
        panic!("the log did not fail");
    };
    assert!(reason.contains(&gap.to_string()), "{reason}");
    let failed = Health::Failed { reason };
    assert_eq!(in_time(waiter).await.unwrap(), failed);
    assert_eq!(rig.try_append(&[4]).await.err(), failed.refusal());
    assert_eq!(rig.log.range().head, Sequence(2));
    assert_eq!(rig.events().await, numbered(&[1, 2]));
    rig.log.close().await;
    assert_eq!(rig.log.status().health(), failed);
}

pub async fn those_who_wait_see_commits_and_the_end(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let status = rig.log.status().clone();
    let head = tokio::spawn({
        let status = status.clone();
        async move { status.range_where(|range| range.head >= Sequence(3)).await }
    });
    let end = tokio::spawn(async move { status.health_where(Health::is_final).await });
    rig.append(&[1, 2]).await;
    rig.append(&[3]).await;
    assert_eq!(in_time(head).await.unwrap().unwrap().head, Sequence(3));
    assert!(!end.is_finished());
    rig.log.close().await;
    assert_eq!(in_time(end).await.unwrap(), Health::Closed);
}

pub async fn an_epoch_is_known_before_any_of_its_events(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let status = rig.log.status().clone();
    let follower = move |block: &Arc<Block>| {
        let epochs = status.epochs();
        assert_eq!(epochs.cursor(block.first_sequence()), block.cursor(0));
        Ok(())
    };
    rig.log.follow(Sequence::ZERO, Arc::new(follower)).unwrap();
    for n in 0..20 {
        rig.append(&[n]).await;
    }
}

pub async fn a_log_that_is_unavailable_says_so_and_goes_on_later(factory: &dyn Factory) {
    let rig = Rig::new(factory);
    let Some(set_outage) = &rig.set_outage else {
        return;
    };
    rig.append(&[1]).await;
    set_outage(true);
    let health = rig.log.status();
    let health = in_time(health.health_where(|health| *health != Health::Ready)).await;
    assert!(matches!(health, Health::Unavailable { .. }), "{health:?}");
    let refused = rig.try_append(&[2]).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert_eq!(
        rig.events().await,
        numbered(&[1]),
        "what is there can be read"
    );
    set_outage(false);
    let status = rig.log.status();
    in_time(status.health_where(|health| *health == Health::Ready)).await;
    rig.append(&[1, 2]).await;
    assert_eq!(rig.events().await, numbered(&[1, 2]));
    assert_eq!(rig.followed(), numbered(&[1, 2]));
}
