//! What every log must do, run against each of them.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    Appended, Block, Error, Log, ReadError, Tail,
    clock::{Boot, Clock, Reading},
    embedded, fixtures, memory,
};
use prelude_bridge_event::{Sequence, UnixMicros};

const ALL: usize = usize::MAX;
/// A time at which no test begins.
const START: i64 = 1_700_000_000_000_000;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Memory,
    Embedded,
}

/// A log with everything that a test wants to see or to turn.
struct Rig {
    log: Arc<dyn Log>,
    tailed: Arc<Mutex<Vec<Arc<Block>>>>,
    now: Arc<AtomicI64>,
    _dir: Option<TempDir>,
}

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
    fn new(kind: Kind) -> Self {
        Self::keeping(kind, Keep::default())
    }

    fn keeping(kind: Kind, keep: Keep) -> Self {
        let now = Arc::new(AtomicI64::new(START));
        let (tail, tailed) = recording_tail();
        let (log, dir): (Arc<dyn Log>, _) = match kind {
            Kind::Memory => {
                let options = memory::Options {
                    retention_age: keep.age,
                    retention_bytes: keep.bytes,
                    ..memory::Options::default()
                };
                let log = memory::open_with_clock(options, tail, clock(&now)).unwrap();
                (log, None)
            }
            Kind::Embedded => {
                let dir = tempfile::tempdir().unwrap();
                let options = embedded::Options {
                    retention_age: keep.age,
                    retention_bytes: keep.bytes,
                    ..embedded::Options::default()
                };
                let seams = embedded::Seams {
                    clock: clock(&now),
                    ..embedded::Seams::default()
                };
                let log = embedded::open_with_seams(dir.path(), options, tail, seams).unwrap();
                (log, Some(dir))
            }
        };
        Self {
            log,
            tailed,
            now,
            _dir: dir,
        }
    }

    fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).unwrap();
        self.now.fetch_add(micros, Ordering::SeqCst);
    }

    async fn append(&self, numbers: &[u64]) -> Appended {
        self.log
            .append(fixtures::numbered_list("app_1", numbers))
            .await
            .unwrap()
    }

    async fn events(&self) -> Vec<(u64, String)> {
        fixtures::events(
            &self
                .log
                .read(before_earliest(&*self.log), ALL)
                .await
                .unwrap(),
        )
    }
}

fn before_earliest(log: &dyn Log) -> Sequence {
    log.range().earliest.before()
}

fn clock(now: &Arc<AtomicI64>) -> Clock {
    let now = Arc::clone(now);
    let read = move || {
        let now = now.load(Ordering::SeqCst);
        Reading {
            wall: UnixMicros(now),
            steady: now,
        }
    };
    Clock {
        read: Arc::new(read),
        boot: Some(Boot::default()),
    }
}

fn recording_tail() -> (Tail, Arc<Mutex<Vec<Arc<Block>>>>) {
    let tailed = Arc::new(Mutex::new(Vec::new()));
    let tail = {
        let tailed = Arc::clone(&tailed);
        Box::new(move |block| tailed.lock().unwrap().push(block))
    };
    (tail, tailed)
}

fn numbered(numbers: &[u64]) -> Vec<(u64, String)> {
    (1..)
        .zip(numbers.iter().map(|n| format!("evt_{n}")))
        .collect()
}

async fn waits_until(mut condition: impl AsyncFnMut() -> bool) {
    tokio::time::timeout(Duration::from_secs(30), async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the condition comes true");
}

/// One test for each log.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod memory_log {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
                super::$name(super::Kind::Memory).await;
            })*
        }
        mod embedded_log {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
                super::$name(super::Kind::Embedded).await;
            })*
        }
    };
}

contract![
    a_new_log_is_empty,
    events_are_numbered_in_order_without_holes,
    concurrent_appends_have_one_order_which_all_see,
    repetitions_are_left_out,
    the_same_id_of_another_app_is_another_event,
    a_place_can_be_found_by_its_time,
    time_never_goes_back,
    reading_ends_at_its_limit_but_brings_at_least_one_block,
    a_large_batch_becomes_several_blocks,
    what_is_too_old_expires,
    what_is_too_much_expires,
    a_log_that_expired_whole_goes_on,
    a_closed_log_refuses_and_can_be_read,
    an_append_goes_on_when_nobody_waits_for_it,
    an_empty_batch_is_nothing,
    cursors_of_the_log_belong_to_it,
    usage_grows_with_what_is_kept,
];

async fn a_new_log_is_empty(kind: Kind) {
    let rig = Rig::new(kind);
    let range = rig.log.range();
    assert_eq!((range.earliest, range.head), (Sequence(1), Sequence(0)));
    assert_eq!((range.earliest_at, range.head_at), (None, None));
    assert_eq!(range.event_count(), 0);
    assert!(rig.log.read(Sequence(0), ALL).await.unwrap().is_empty());
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(0)));
    assert_eq!(rig.log.health(), Ok(()));
}

async fn events_are_numbered_in_order_without_holes(kind: Kind) {
    let rig = Rig::new(kind);
    for numbers in [&[5, 3][..], &[9], &[1, 2, 4]] {
        let appended = rig.append(numbers).await;
        assert_eq!(appended.accepted, numbers.len());
    }
    let expected = numbered(&[5, 3, 9, 1, 2, 4]);
    assert_eq!(rig.events().await, expected);
    assert_eq!(fixtures::events(&rig.tailed.lock().unwrap()), expected);
    let range = rig.log.range();
    assert_eq!((range.earliest, range.head), (Sequence(1), Sequence(6)));
    assert_eq!(range.head_at, Some(UnixMicros(START)));
    let after = rig.log.read(Sequence(3), ALL).await.unwrap();
    assert_eq!(fixtures::events(&after), expected[3..]);
    assert!(rig.log.read(Sequence(6), ALL).await.unwrap().is_empty());
}

async fn concurrent_appends_have_one_order_which_all_see(kind: Kind) {
    let rig = Rig::new(kind);
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
    assert_eq!(events, fixtures::events(&rig.tailed.lock().unwrap()));
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

async fn repetitions_are_left_out(kind: Kind) {
    let rig = Rig::new(kind);
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

async fn the_same_id_of_another_app_is_another_event(kind: Kind) {
    let rig = Rig::new(kind);
    rig.append(&[1]).await;
    let other = rig.log.append(fixtures::numbered("app_2", 1..2)).await;
    assert_eq!(other.unwrap().accepted, 1);
}

async fn a_place_can_be_found_by_its_time(kind: Kind) {
    let rig = Rig::new(kind);
    for n in 0..30 {
        rig.append(&[n * 2, n * 2 + 1]).await;
        rig.pass(Duration::from_micros(10));
    }
    for n in 0..30 {
        let at = UnixMicros(START + i64::try_from(n * 10).unwrap());
        assert_eq!(rig.log.seek(at).await, Ok(Sequence(n * 2)));
        let later = UnixMicros(at.0 + 1);
        assert_eq!(rig.log.seek(later).await, Ok(Sequence(n * 2 + 2)));
    }
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(0)));
    assert_eq!(rig.log.seek(UnixMicros(i64::MAX)).await, Ok(Sequence(60)));
}

async fn time_never_goes_back(kind: Kind) {
    let rig = Rig::new(kind);
    rig.append(&[1]).await;
    rig.now.fetch_sub(1_000_000, Ordering::SeqCst);
    rig.append(&[2]).await;
    let tailed = rig.tailed.lock().unwrap();
    assert_eq!(tailed[1].received_at(), UnixMicros(START));
}

async fn reading_ends_at_its_limit_but_brings_at_least_one_block(kind: Kind) {
    let rig = Rig::new(kind);
    for n in 0..10 {
        rig.append(&[n]).await;
    }
    let block_bytes = rig.tailed.lock().unwrap()[0].as_bytes().len();
    for (bytes_max, blocks) in [(0, 1), (block_bytes * 3, 3), (block_bytes * 3 + 1, 3)] {
        let read = rig.log.read(Sequence(2), bytes_max).await.unwrap();
        assert_eq!(read.len(), blocks);
        assert_eq!(read[0].first_sequence(), Sequence(3));
    }
}

async fn a_large_batch_becomes_several_blocks(kind: Kind) {
    let rig = Rig::new(kind);
    let numbers: Vec<u64> = (0..20_000).collect();
    rig.append(&numbers).await;
    assert_eq!(rig.events().await, numbered(&numbers));
    assert!(rig.tailed.lock().unwrap().len() >= 3);
    let inside = rig.log.read(Sequence(10_000), 1).await.unwrap();
    assert!(inside[0].first_sequence() <= Sequence(10_001));
    assert!(inside[0].last_sequence() >= Sequence(10_001));
}

async fn what_is_too_old_expires(kind: Kind) {
    let keep = Keep {
        age: Duration::from_secs(640),
        ..Keep::default()
    };
    let rig = Rig::keeping(kind, keep);
    rig.append(&[1, 2]).await;
    rig.pass(Duration::from_secs(600));
    rig.append(&[3]).await;
    rig.pass(Duration::from_secs(100));
    rig.append(&[4]).await;
    waits_until(async || rig.log.range().earliest == Sequence(3)).await;
    let expired = ReadError::Expired {
        earliest: Sequence(3),
    };
    for after in [0, 1] {
        let read = rig.log.read(Sequence(after), ALL).await;
        assert_eq!(read.unwrap_err(), expired);
    }
    assert_eq!(rig.events().await, numbered(&[1, 2, 3, 4])[2..]);
    assert_eq!(rig.log.seek(UnixMicros(0)).await, Ok(Sequence(2)));
    let earliest_at = UnixMicros(START + 600_000_000);
    assert_eq!(rig.log.range().earliest_at, Some(earliest_at));
    assert_eq!(
        rig.append(&[1, 2]).await.duplicates,
        2,
        "ids outlive events"
    );
}

async fn what_is_too_much_expires(kind: Kind) {
    let keep = Keep {
        bytes: 300_000,
        ..Keep::default()
    };
    let rig = Rig::keeping(kind, keep);
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

async fn a_log_that_expired_whole_goes_on(kind: Kind) {
    let keep = Keep {
        age: Duration::from_secs(10),
        ..Keep::default()
    };
    let rig = Rig::keeping(kind, keep);
    rig.append(&[1, 2]).await;
    rig.pass(Duration::from_secs(100));
    // The memory log looks only when something is appended.
    rig.append(&[]).await;
    waits_until(async || rig.log.range().event_count() == 0).await;
    let range = rig.log.range();
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

async fn a_closed_log_refuses_and_can_be_read(kind: Kind) {
    let rig = Rig::new(kind);
    let last = rig.log.append(fixtures::numbered("app_1", 0..3));
    rig.log.close().await;
    assert_eq!(last.await.unwrap().accepted, 3, "what waits is written");
    let refused = rig.log.append(fixtures::numbered("app_1", 3..4)).await;
    assert_eq!(refused, Err(Error::Closed));
    assert_eq!(rig.log.health(), Err(Error::Closed));
    assert_eq!(rig.events().await, numbered(&[0, 1, 2]));
    rig.log.close().await;
}

async fn an_append_goes_on_when_nobody_waits_for_it(kind: Kind) {
    let rig = Rig::new(kind);
    drop(rig.log.append(fixtures::numbered("app_1", 0..3)));
    waits_until(async || rig.log.range().head == Sequence(3)).await;
    assert_eq!(rig.append(&[0, 1, 2]).await.duplicates, 3);
}

async fn an_empty_batch_is_nothing(kind: Kind) {
    let rig = Rig::new(kind);
    let nothing = Appended {
        accepted: 0,
        duplicates: 0,
    };
    assert_eq!(rig.append(&[]).await, nothing);
    assert_eq!(rig.log.range().head, Sequence(0));
    assert!(rig.tailed.lock().unwrap().is_empty());
}

async fn cursors_of_the_log_belong_to_it(kind: Kind) {
    let rig = Rig::new(kind);
    rig.append(&[1, 2]).await;
    let lineage = rig.log.lineage();
    let blocks = rig.log.read(Sequence(0), ALL).await.unwrap();
    let response = {
        use prost::Message as _;
        let all = blocks[0].view(super::Format::Typed).slice(0..2);
        prelude_bridge_contract::SubscribeResponse::decode(all).unwrap()
    };
    for event in response.events {
        let cursor = event.cursor.parse().unwrap();
        assert_eq!(cursor, lineage.cursor(Sequence(event.sequence)));
        assert!(lineage.check(cursor, rig.log.range().head).is_ok());
    }
}

async fn usage_grows_with_what_is_kept(kind: Kind) {
    let rig = Rig::new(kind);
    let before = rig.log.usage().stored_bytes;
    let numbers: Vec<u64> = (0..5_000).collect();
    rig.append(&numbers).await;
    waits_until(async || rig.log.usage().stored_bytes > before + 100_000).await;
    assert_eq!(rig.log.usage().queued_batches, 0);
}

/// The log that everybody understands.
#[derive(Default)]
struct Naive {
    seen: HashSet<u64>,
    events: Vec<u64>,
}

impl Naive {
    fn append(&mut self, numbers: &[u64]) -> Appended {
        let before = self.events.len();
        for &n in numbers {
            if self.seen.insert(n) {
                self.events.push(n);
            }
        }
        let accepted = self.events.len() - before;
        Appended {
            accepted,
            duplicates: numbers.len() - accepted,
        }
    }
}

fn open_embedded(path: &Path) -> Arc<embedded::Embedded> {
    embedded::open(path, embedded::Options::default(), Box::new(|_| {})).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Batches of few different events, now and then a reopening, and reads from anywhere.
    #[test]
    fn both_logs_do_what_the_naive_log_does(
        batches in proptest::collection::vec(
            (proptest::collection::vec(0_u64..60, 0..12), proptest::bool::weighted(0.1)), 1..30),
        places in proptest::collection::vec(0_u64..60, 5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut embedded = open_embedded(dir.path());
            let memory = memory::open(memory::Options::default(), Box::new(|_| {})).unwrap();
            let mut naive = Naive::default();
            for (numbers, reopen) in &batches {
                let expected = naive.append(numbers);
                for log in [&*embedded as &dyn Log, &*memory] {
                    let batch = fixtures::numbered_list("app_1", numbers);
                    assert_eq!(log.append(batch).await, Ok(expected));
                }
                if *reopen {
                    drop(embedded);
                    embedded = open_embedded(dir.path());
                }
            }
            let all = numbered(&naive.events);
            for log in [&*embedded as &dyn Log, &*memory] {
                assert_eq!(log.range().head, Sequence(all.len() as u64));
                for &place in places.iter().filter(|&&place| place <= all.len() as u64) {
                    let read = log.read(Sequence(place), ALL).await.unwrap();
                    let mut events = fixtures::events(&read);
                    events.retain(|&(sequence, _)| sequence > place);
                    assert_eq!(events, all[usize::try_from(place).unwrap()..]);
                }
            }
        });
    }
}
