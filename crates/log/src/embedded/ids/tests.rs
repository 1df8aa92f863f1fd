//! The ids against a naive set: with merges, expiry, reopening and failures at any moment.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;

use super::{run::prefix_range, *};
use crate::embedded::schema;

const AGE: i64 = 1_000;
/// Small, so that everything happens often.
const LIMITS: Limits = Limits {
    age_micros: AGE,
    recent_keys: 40,
    slice_keys: 8,
    fan_in: 3,
    filter_bytes: 4_096,
};

/// Spreads numbers like a hash.
pub(super) fn key(n: u64) -> Key {
    let half = |seed: u64| {
        let mut x = n.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    Key::from(half(1)) << 64 | Key::from(half(0x5bd1_e995))
}

fn event_keys(numbers: &[u64]) -> Vec<EventKey> {
    let keys = numbers.iter().map(|&n| EventKey(key(n).to_be_bytes()));
    keys.collect()
}

struct Rig {
    connection: Connection,
    ids: Ids,
    limits: Limits,
    now: i64,
    reopens: usize,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(schema::TABLES).unwrap();
        connection
            .execute(
                "INSERT INTO log (one, id, trimmed_sequence, trimmed_at, first_segment, \
                 indexed_through, ids_in_runs) VALUES (1, 1, 0, 0, 1, 0, 0)",
                [],
            )
            .unwrap();
        let ids = Ids::open(&connection, limits).unwrap();
        Self {
            connection,
            ids,
            limits,
            now: 1_000_000,
            reopens: 0,
        }
    }

    /// As after a crash: with what the index has, and the keys of the commits that it has not got.
    fn reopen(&mut self, with_filters: bool) {
        let unwritten: Vec<EventKey> = (self.ids.unwritten.iter())
            .map(|key| EventKey(key.to_be_bytes()))
            .collect();
        let at = self.ids.unwritten_at;
        self.ids = Ids::open(&self.connection, self.limits).unwrap();
        if let Some(at) = at {
            self.ids.restore(&unwritten, at);
        }
        self.reopens += 1;
        if with_filters {
            self.ids.read_filters(&self.connection).unwrap();
        }
    }

    /// A transaction of the index.
    fn index(&mut self, commit: bool, effort: Effort) -> rusqlite::Result<()> {
        let now = RetentionNow::at(self.now);
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        let worked = begun.and_then(|()| self.ids.write_behind(&self.connection, &now, effort));
        let done = worked.and_then(|()| {
            // What is interrupted when it has committed already would count as a failure.
            self.connection.progress_handler(1, None::<fn() -> bool>)?;
            let end = if commit { "COMMIT" } else { "ROLLBACK" };
            self.connection.execute_batch(end)
        });
        if done.is_ok() && commit {
            self.ids.written();
        } else {
            self.connection
                .progress_handler(1, None::<fn() -> bool>)
                .unwrap();
            if !self.connection.is_autocommit() {
                self.connection.execute_batch("ROLLBACK").unwrap();
            }
            self.ids.not_written();
        }
        done
    }

    /// A commit that the index has not got yet.
    fn append(&mut self, numbers: &[u64]) -> Vec<bool> {
        let keys = event_keys(numbers);
        let fresh = self.ids.sift(&self.connection, &keys).unwrap();
        self.ids.keep(RetentionTime(self.now));
        fresh
    }

    fn insert(&mut self, numbers: &[u64]) -> Vec<bool> {
        let fresh = self.append(numbers);
        self.index(true, Effort::Due).unwrap();
        fresh
    }

    /// Tidies up until there is nothing to do, at most `steps` times.
    fn tidy(&mut self, steps: usize) {
        for _ in 0..steps {
            if !self.ids.is_untidy(&RetentionNow::at(self.now)) {
                break;
            }
            self.index(true, Effort::Idle).unwrap();
        }
    }

    fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.connection
            .query_row(&sql, [], |row| row.get(0))
            .unwrap()
    }

    /// Everything that is remembered.
    fn keys(&self) -> HashSet<Key> {
        let mut keys = self.ids.young.slice(0, 0);
        if let Some(frozen) = &self.ids.frozen {
            keys.extend(frozen.slice(0, 0));
        }
        for run in &self.ids.runs {
            let before = keys.len();
            run.read(&self.connection, &prefix_range(0, 0), &mut keys)
                .unwrap();
            assert_eq!((keys.len() - before) as u64, run.keys);
        }
        let set: HashSet<Key> = keys.iter().copied().collect();
        assert_eq!(set.len(), keys.len(), "a key is in two places");
        set
    }

    fn assert_bounded(&self, batch_max: usize) {
        let ids = &self.ids;
        // Work that a start interrupts is taken up again one append later.
        let appends = 3 + self.reopens;
        let young_max = 2 * self.limits.recent_keys as usize + appends * batch_max;
        assert!(ids.young.len() <= young_max, "{}", ids.young.len());
        assert!(ids.filter_bytes <= self.limits.filter_bytes);
        let outputs = ids.jobs.iter().map(|job| &job.output);
        let runs = ids.runs.iter().chain(outputs);
        let bytes: usize = runs.map(|run| run.filters.memory_bytes()).sum();
        assert_eq!(bytes, ids.filter_bytes);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u64>),
    /// The index follows later.
    Append(Vec<u64>),
    /// The index has no room.
    FailToIndex,
    /// The disk has none.
    Fail(Vec<u64>),
    Pass(i64),
    Tidy(usize),
    Reopen(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = || proptest::collection::vec(0_u64..600, 0..30);
    // Many that are new: numbers from anywhere.
    let new = proptest::collection::vec(any::<u64>(), 0..30);
    prop_oneof![
        4 => numbers().prop_map(Step::Insert),
        8 => new.clone().prop_map(Step::Insert),
        4 => new.prop_map(Step::Append),
        1 => Just(Step::FailToIndex),
        1 => numbers().prop_map(Step::Fail),
        2 => (1..AGE / 4).prop_map(Step::Pass),
        2 => (0_usize..40).prop_map(Step::Tidy),
        1 => any::<bool>().prop_map(Step::Reopen),
    ]
}

/// When keys were accepted.
type Naive = HashMap<u64, i64>;

fn check_append(rig: &mut Rig, naive: &mut Naive, numbers: &[u64]) {
    let fresh = rig.append(numbers);
    let mut inserted = HashSet::new();
    for (&n, fresh) in numbers.iter().zip(fresh) {
        if !inserted.insert(n) {
            assert!(!fresh, "the second of two in a batch");
            continue;
        }
        match naive.get(&n) {
            None => assert!(fresh, "what never was is new"),
            Some(&at) if rig.now - at <= AGE => assert!(!fresh, "what is young is remembered"),
            // It may have been forgotten, or not yet.
            Some(_) => {}
        }
        if fresh {
            naive.insert(n, rig.now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn ids_do_what_the_naive_set_does(steps in proptest::collection::vec(step(), 1..120)) {
        let mut rig = Rig::new(LIMITS);
        let mut naive = Naive::new();
        // How many appends the index ever got at once, at most.
        let (mut appended, mut appended_max) = (0, 0);
        for step in steps {
            match step {
                Step::Insert(numbers) => {
                    check_append(&mut rig, &mut naive, &numbers);
                    rig.index(true, Effort::Due).unwrap();
                    appended = 0;
                }
                Step::Append(numbers) => {
                    check_append(&mut rig, &mut naive, &numbers);
                    appended += 1;
                    appended_max = appended.max(appended_max);
                }
                Step::FailToIndex => {
                    let before = rig.keys();
                    rig.index(false, Effort::Due).unwrap();
                    assert_eq!(rig.keys(), before);
                }
                Step::Fail(numbers) => {
                    let before = rig.keys();
                    let keys = event_keys(&numbers);
                    rig.ids.sift(&rig.connection, &keys).unwrap();
                    rig.ids.forget();
                    assert_eq!(rig.keys(), before);
                }
                Step::Pass(time) => rig.now += time,
                Step::Tidy(steps) => rig.tidy(steps),
                Step::Reopen(with_filters) => {
                    let before = rig.keys();
                    rig.reopen(with_filters);
                    assert_eq!(rig.keys(), before);
                }
            }
            rig.assert_bounded(30 * (1 + appended_max));
        }
        rig.index(true, Effort::Due).unwrap();
        for _ in 0..18 {
            rig.now += AGE / 8;
            rig.tidy(usize::MAX);
        }
        for table in ["id_log", "id_runs", "id_pages", "id_filters"] {
            assert_eq!(rig.count(table), 0, "{table} after more than twice the age");
        }
        assert!(rig.keys().is_empty());
        assert_eq!(rig.ids.filter_bytes, 0);
    }
}

/// Stops SQLite every few of its instructions, later with each attempt.
#[test]
fn a_failure_at_any_moment_changes_nothing_and_a_crash_neither() {
    let mut rig = Rig::new(LIMITS);
    let mut failures = 0;
    let mut all = HashSet::new();
    let mut has_merged = false;
    for batch in 0..50 {
        let numbers: Vec<u64> = (batch * 20..batch * 20 + 20).collect();
        rig.append(&numbers);
        // Ordinary steps in turn with those of an idle log.
        for effort in [Effort::Due, Effort::Idle] {
            let before = rig.keys();
            let later = |before: &usize| Some(before + before / 6 + 3);
            for instructions in std::iter::successors(Some(1), later) {
                let left = AtomicUsize::new(instructions);
                let stop = move || left.fetch_sub(1, Ordering::Relaxed) == 0;
                rig.connection.progress_handler(1, Some(stop)).unwrap();
                let done = rig.index(true, effort);
                rig.connection
                    .progress_handler(1, None::<fn() -> bool>)
                    .unwrap();
                let Err(error) = done else {
                    break;
                };
                let code = error.sqlite_error_code();
                assert_eq!(code, Some(rusqlite::ErrorCode::OperationInterrupted));
                failures += 1;
                assert_eq!(rig.keys(), before, "in memory");
                if failures % 7 == 0 {
                    rig.reopen(true);
                    assert_eq!(rig.keys(), before, "on disk");
                }
            }
        }
        all.extend(numbers.iter().map(|&n| key(n)));
        assert_eq!(rig.keys(), all);
        rig.reopen(batch % 2 == 0);
        assert_eq!(rig.keys(), all);
        // With steps of a log that is idle and left alone in between, or nothing would get so far
        // that there is something to merge.
        for _ in 0..batch % 8 {
            rig.tidy(1);
        }
        assert_eq!(rig.keys(), all);
        has_merged |= rig.ids.runs.iter().any(|run| run.level > 0);
        rig.now += 1;
    }
    assert!(failures > 400, "{failures}");
    let runs: Vec<_> = rig.ids.runs.iter().map(|run| run.level).collect();
    assert!(has_merged, "{runs:?}");
}

#[test]
fn work_and_memory_do_not_grow_with_what_is_remembered() {
    let limits = Limits {
        age_micros: i64::MAX,
        ..LIMITS
    };
    let mut rig = Rig::new(limits);
    let mut runs_max = 0;
    for batch in 0..3_000_u64 {
        let numbers: Vec<u64> = (batch * 10..batch * 10 + 10).collect();
        assert!(rig.insert(&numbers).iter().all(|&fresh| fresh));
        rig.assert_bounded(10);
        runs_max = runs_max.max(rig.ids.runs.len());
    }
    // 30,000 keys in runs of 40 and more: log3(750) is 6.
    assert!(runs_max <= 6 * 2 * limits.fan_in, "{runs_max}");
    assert!(rig.count("id_log") <= 20);
    let untidy = rig.count("id_pages");
    for batch in [0, 1, 1_500, 2_999] {
        let numbers: Vec<u64> = (batch * 10..batch * 10 + 10).collect();
        assert!(rig.insert(&numbers).iter().all(|&fresh| !fresh));
    }
    rig.tidy(usize::MAX);
    let pages = rig.count("id_pages");
    assert!(untidy <= 2 * pages, "{untidy} pages before, {pages} after");
}

/// Merging does not take the memory of filters twice, or they would become so coarse that every key
/// is looked up on disk; and where memory is short, that which costs least is given up.
#[test]
fn few_new_keys_are_looked_up_also_while_runs_are_merged() {
    // For 32,000 keys, in filters that are rounded up.
    for (filter_bytes, percent_max) in [(128 * 1024, 1), (64 * 1024, 1), (32 * 1024, 5)] {
        let limits = Limits {
            age_micros: i64::MAX,
            recent_keys: 2_000,
            slice_keys: 250,
            fan_in: 4,
            filter_bytes,
        };
        let mut rig = Rig::new(limits);
        let (mut asked, mut suspects, mut merging) = (0, 0, 0);
        for batch in 0..160_u64 {
            let numbers: Vec<u64> = (batch * 200..batch * 200 + 200).collect();
            assert!(rig.insert(&numbers).iter().all(|&fresh| fresh));
            rig.assert_bounded(400);
            let others: Vec<Key> = (1 << 40..(1 << 40) + 200).map(key).collect();
            asked += others.len();
            suspects += rig.ids.suspects(&others, &[true; 200]).len();
            merging += usize::from(rig.ids.jobs.iter().any(Job::is_merge));
            // What is in the part that was merged already is found there, and the rest where it was.
            let known: Vec<u64> = (0..batch * 200).step_by(97).collect();
            assert!(rig.append(&known).iter().all(|&fresh| !fresh));
        }
        assert!(merging > 40, "{merging} times of 160");
        let most = asked * percent_max / 100;
        assert!(
            suspects <= most,
            "{suspects} of {asked} with {filter_bytes}"
        );
    }
}

#[test]
fn runs_of_the_usual_size_fit_their_pages() {
    let mut rig = Rig::new(Limits::new(i64::MAX));
    let numbers: Vec<u64> = (0..230_000).collect();
    for batch in numbers.chunks(5_000) {
        rig.insert(batch);
    }
    rig.tidy(usize::MAX);
    assert_eq!(rig.ids.runs.len(), 1);
    let page_bytes = PAGE_BYTES;
    let (all, mean, over): (i64, f64, i64) = rig
        .connection
        .query_row(
            "SELECT count(*), avg(length(keys)), sum(length(keys) > ?1 - 50) FROM id_pages",
            [page_bytes.cast_signed() / 2],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    assert!(mean > 0.75 * page_bytes as f64 / 2.0, "{mean} bytes a page");
    assert!(over * 50 < all, "{over} of {all} pages run over");
    let known = rig.insert(&numbers[..2_000]);
    assert!(known.iter().all(|&fresh| !fresh));
    let suspects = (1_000_000..1_010_000)
        .filter(|&n| rig.ids.runs.iter().any(|run| run.may_hold(key(n))))
        .count();
    assert!(suspects < 50, "{suspects} of 10,000 new keys are looked up");
}
