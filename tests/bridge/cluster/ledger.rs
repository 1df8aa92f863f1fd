//! What senders were promised and what subscribers have seen. An event that is missing, twice or in another
//! place fails the task that notices it.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use prelude_bridge::proto::Event;

pub(super) struct Ledger {
    pub(super) is_ending: AtomicBool,
    acknowledged: AtomicU64,
    log: Mutex<Log>,
    /// How many events each subscriber has.
    seen: Vec<AtomicU64>,
}

/// The log as far as any subscriber has seen it.
#[derive(Default)]
struct Log {
    order: Vec<String>,
    ids: HashSet<String>,
    /// What was acknowledged and is not in it.
    missing: HashSet<String>,
}

impl Ledger {
    pub(super) fn of(subscribers: usize) -> Self {
        Self {
            is_ending: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            log: Mutex::default(),
            seen: (0..subscribers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(super) fn acknowledge(&self, ids: &[String]) {
        let mut log = self.log.lock().unwrap();
        let missing = ids.iter().filter(|id| !log.ids.contains(*id));
        let missing: Vec<String> = missing.cloned().collect();
        log.missing.extend(missing);
        self.acknowledged
            .fetch_add(ids.len() as u64, Ordering::SeqCst);
    }

    /// How many events were acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// How many events every subscriber has at least.
    pub(super) fn seen_by_all(&self) -> u64 {
        let seen = self.seen.iter().map(|seen| seen.load(Ordering::SeqCst));
        seen.min().unwrap_or_default()
    }

    /// A subscriber gets events.
    pub(super) fn see(&self, subscriber: usize, events: &[Event]) {
        let mut log = self.log.lock().unwrap();
        for event in events {
            let before = self.seen[subscriber].fetch_add(1, Ordering::SeqCst);
            let sequence = event.sequence;
            assert_eq!(sequence, before + 1, "{subscriber}: a hole, or twice");
            let Some(id) = log.order.get(usize::try_from(before).unwrap()) else {
                log.order.push(event.id.clone());
                log.missing.remove(&event.id);
                let is_new = log.ids.insert(event.id.clone());
                assert!(is_new, "{sequence}: {} is twice in the log", event.id);
                continue;
            };
            assert_eq!(*id, event.id, "{subscriber}: another order at {sequence}");
        }
    }

    /// Whether a subscriber has everything that will come.
    pub(super) fn is_complete(&self, subscriber: usize) -> bool {
        let seen = self.seen[subscriber].load(Ordering::SeqCst);
        self.is_ending.load(Ordering::SeqCst) && {
            let log = self.log.lock().unwrap();
            log.missing.is_empty() && seen == log.order.len() as u64
        }
    }

    /// Events that were acknowledged and that no subscriber has.
    pub(super) fn missing(&self) -> Vec<String> {
        self.log.lock().unwrap().missing.iter().cloned().collect()
    }

    /// How many events the log has. The history of a bridge has to begin with them.
    pub(super) fn compare(&self, history: &[String]) -> usize {
        let log = self.log.lock().unwrap();
        let begin = history.get(..log.order.len());
        assert!(begin == Some(&log.order[..]), "the logs differ");
        log.order.len()
    }
}

fn event(sequence: u64, id: &str) -> Event {
    Event {
        sequence,
        id: id.to_owned(),
        ..Event::default()
    }
}

#[test]
fn what_is_acknowledged_is_missing_until_a_subscriber_has_it() {
    let ledger = Ledger::of(2);
    ledger.acknowledge(&["a".to_owned(), "b".to_owned()]);
    ledger.is_ending.store(true, Ordering::SeqCst);
    ledger.see(0, &[event(1, "a")]);
    assert_eq!(ledger.missing(), ["b"]);
    assert!(!ledger.is_complete(0), "it waits for the other one");
    ledger.see(0, &[event(2, "b")]);
    assert!(ledger.is_complete(0) && !ledger.is_complete(1));
    assert_eq!((ledger.seen_by_all(), ledger.acknowledged()), (0, 2));
    ledger.see(1, &[event(1, "a"), event(2, "b")]);
    assert!(ledger.is_complete(1));
    let history = ["a", "b", "c"].map(str::to_owned);
    assert_eq!(ledger.compare(&history), 2);
}

#[test]
#[should_panic(expected = "a hole, or twice")]
fn a_hole_is_noticed() {
    Ledger::of(1).see(0, &[event(1, "a"), event(3, "c")]);
}

#[test]
#[should_panic(expected = "a hole, or twice")]
fn an_event_that_comes_twice_is_noticed() {
    Ledger::of(1).see(0, &[event(1, "a"), event(1, "a")]);
}

#[test]
#[should_panic(expected = "is twice in the log")]
fn an_event_that_is_stored_twice_is_noticed() {
    Ledger::of(1).see(0, &[event(1, "a"), event(2, "a")]);
}

#[test]
#[should_panic(expected = "another order")]
fn another_order_is_noticed() {
    let ledger = Ledger::of(2);
    ledger.see(0, &[event(1, "a"), event(2, "b")]);
    ledger.see(1, &[event(1, "b")]);
}

#[test]
#[should_panic(expected = "the logs differ")]
fn a_bridge_that_lacks_an_event_is_noticed() {
    let ledger = Ledger::of(1);
    ledger.see(0, &[event(1, "a"), event(2, "b")]);
    ledger.compare(&["a".to_owned()]);
}
