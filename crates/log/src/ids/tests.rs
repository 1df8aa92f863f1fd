//! The keys against a naive map: with merges, forgetting, starts and crashes at any moment.

use std::{collections::HashMap, fs, thread};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

pub(super) const LOG: LogId = LogId(7);
const AGE: i64 = 1_000;
const SPAN: i64 = 100;
/// Small, so that everything happens often.
pub(super) const LIMITS: Limits = Limits {
    age_micros: AGE,
    span_micros: SPAN,
    part_keys_max: 40,
    file_keys_max: 160,
    section_keys: 16,
    fan_in: 3,
    bytes_max: u64::MAX,
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

/// A log that has nothing but keys: its commits stand for the segments.
pub(super) struct Rig {
    pub(super) directory: TempDir,
    pub(super) ids: Ids,
    limits: Limits,
    commits: Vec<(Vec<Key>, Sequence)>,
    pub(super) now: i64,
}

impl Rig {
    pub(super) fn new(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            ids: Ids::open(directory.path(), LOG, limits).unwrap(),
            directory,
            limits,
            commits: Vec::new(),
            now: 1_000_000,
        }
    }

    pub(super) fn head(&self) -> Sequence {
        let last = self.commits.last();
        last.map_or(Sequence::ZERO, |&(_, last)| last)
    }

    pub(super) fn known(&mut self, keys: &[Key]) -> Vec<bool> {
        let mut known = vec![Some(0); 3];
        self.ids.find(keys, &mut known).unwrap();
        known.iter().map(Option::is_some).collect()
    }

    /// Adds the keys that are new.
    fn append(&mut self, keys: &[Key]) -> Vec<bool> {
        let known = self.known(keys);
        let fresh = keys.iter().zip(&known);
        let fresh = fresh.filter_map(|(&key, &known)| (!known).then_some(key));
        let fresh: Vec<Key> = fresh.collect();
        if !fresh.is_empty() {
            self.add(&fresh);
        }
        known
    }

    pub(super) fn add(&mut self, keys: &[Key]) {
        let last = self.head().plus(keys.len() as u64);
        self.ids.add(keys, last, UnixMicros(self.now));
        self.commits.push((keys.to_vec(), last));
    }

    pub(super) fn add_numbers(&mut self, numbers: std::ops::Range<u64>) {
        let keys: Vec<Key> = numbers.map(key).collect();
        self.add(&keys);
    }

    /// Does so many steps, or all that there are.
    pub(super) fn work(&mut self, steps: usize) -> usize {
        let background = self.ids.background();
        (0..steps)
            .take_while(|_| background.run_once().unwrap())
            .count()
    }

    pub(super) fn finish(&mut self) {
        self.ids.seal();
        self.work(usize::MAX);
        self.ids.seal();
        self.work(usize::MAX);
    }

    fn usage(&self) -> Usage {
        let now = RetentionNow::at(self.now);
        self.ids.usage(self.head(), Some(&now))
    }

    pub(super) fn forget(&mut self) {
        self.ids.forget(&RetentionNow::at(self.now));
    }

    /// What a start makes of a directory.
    fn open(&self, directory: &Path) -> Ids {
        let mut ids = Ids::open(directory, LOG, self.limits).unwrap();
        let through = ids.through();
        for (keys, last) in &self.commits {
            if *last > through {
                ids.add(keys, *last, UnixMicros(self.now));
            }
        }
        ids
    }

    pub(super) fn reopen(&mut self) {
        self.ids = self.open(self.directory.path());
    }

    fn crash(&mut self) {
        let copy = copy(self.directory.path());
        self.ids = self.open(copy.path());
        self.directory = copy;
    }

    pub(super) fn file_count(&self) -> usize {
        self.ids.background.view().files.len()
    }

    /// The names of what is there.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = self.directory.path().read_dir().unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn assert_sound(&self) {
        let view = self.ids.background.view();
        for (before, after) in view.files.iter().zip(view.files.iter().skip(1)) {
            assert_eq!(before.footer.through.plus(1), after.footer.from);
        }
        for file in view.files.iter() {
            assert_eq!(file.bytes, file.path.metadata().unwrap().len());
        }
        assert_eq!(self.ids.aside(), []);
    }
}

pub(super) fn copy(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in directory.read_dir().unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u64>),
    Seal,
    Pass(i64),
    Forget,
    Work(usize),
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let some = proptest::collection::vec(0_u64..900, 0..30);
    // Many that are new: numbers from anywhere.
    let new = proptest::collection::vec(any::<u64>(), 0..30);
    prop_oneof![
        4 => some.prop_map(Step::Append),
        8 => new.prop_map(Step::Append),
        1 => Just(Step::Seal),
        2 => (1..AGE / 4).prop_map(Step::Pass),
        2 => Just(Step::Forget),
        8 => (1_usize..12).prop_map(Step::Work),
        1 => Just(Step::Work(usize::MAX)),
        1 => Just(Step::Reopen),
        2 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn ids_do_what_the_naive_map_does(steps in proptest::collection::vec(step(), 1..100)) {
        let mut rig = Rig::new(LIMITS);
        // When keys were added.
        let mut naive: HashMap<u64, i64> = HashMap::new();
        for step in steps {
            match step {
                Step::Append(mut numbers) => {
                    numbers.sort_unstable();
                    numbers.dedup();
                    let keys: Vec<Key> = numbers.iter().map(|&n| key(n)).collect();
                    let known = rig.append(&keys);
                    for (n, known) in numbers.into_iter().zip(known) {
                        match naive.get(&n) {
                            None => assert!(!known, "what never was is new"),
                            Some(&at) if rig.now - at <= AGE => assert!(known, "{n} is young"),
                            // It may have been forgotten, or not yet.
                            Some(_) => {}
                        }
                        if !known {
                            naive.insert(n, rig.now);
                        }
                    }
                }
                Step::Seal => drop(rig.ids.seal()),
                Step::Pass(time) => rig.now += time,
                Step::Forget => rig.forget(),
                Step::Work(steps) => drop(rig.work(steps)),
                Step::Reopen => rig.reopen(),
                Step::Crash => rig.crash(),
            }
            rig.assert_sound();
        }
        let keys: Vec<Key> = naive.keys().map(|&n| key(n)).collect();
        let young: Vec<bool> = naive.values().map(|at| rig.now - at <= AGE).collect();
        let known = rig.known(&keys);
        assert!(young.iter().zip(known).all(|(&young, known)| !young || known));
        rig.finish();
        rig.commits.clear();
        rig.now += 2 * AGE;
        rig.forget();
        rig.work(usize::MAX);
        assert_eq!((rig.ids.len(), rig.file_count(), rig.ids.stored_bytes()), (0, 0, 0));
        assert!(rig.names().len() <= 1, "only the mark is left: {:?}", rig.names());
        assert!(rig.known(&keys).iter().all(|known| !known));
    }
}

/// Copies the directory after each step, as a crash would leave it.
#[test]
fn a_crash_between_any_two_steps_loses_no_key() {
    let mut rig = Rig::new(LIMITS);
    let (mut crashes, mut merged) = (0, false);
    let mut all = Vec::new();
    for commit in 0..60 {
        rig.add_numbers(commit * 10..commit * 10 + 10);
        all.extend((commit * 10..commit * 10 + 10).map(key));
        rig.now += 3;
        loop {
            let copy = copy(rig.directory.path());
            let mut ids = rig.open(copy.path());
            assert_eq!(ids.aside(), []);
            let mut known = Vec::new();
            ids.find(&all, &mut known).unwrap();
            assert!(known.iter().all(Option::is_some), "after crash {crashes}");
            assert_eq!(ids.len(), all.len() as u64, "each key is in one place");
            crashes += 1;
            if rig.work(1) == 0 {
                break;
            }
        }
        let view = rig.ids.background.view();
        merged |= view.files.iter().any(|file| file.footer.keys > 100);
    }
    assert!(crashes > 300 && merged, "{crashes}");
}

#[test]
fn what_a_crash_left_of_a_merge_is_removed() {
    let mut rig = Rig::new(LIMITS);
    for commit in 0..2 {
        rig.add_numbers(commit * 40..commit * 40 + 40);
        rig.work(usize::MAX);
    }
    let before = copy(rig.directory.path());
    rig.add_numbers(80..120);
    rig.work(usize::MAX);
    assert_eq!(rig.file_count(), 1, "{:?}", rig.names());
    for entry in before.path().read_dir().unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), rig.directory.path().join(entry.file_name())).unwrap();
    }
    fs::write(rig.directory.path().join("ids-1-2.writing"), b"x").unwrap();
    assert_eq!(rig.names().len(), 4);
    rig.reopen();
    rig.assert_sound();
    assert_eq!((rig.names().len(), rig.ids.len()), (1, 120));
}

#[test]
fn what_a_crash_left_of_forgotten_files_is_removed() {
    let mut rig = Rig::new(LIMITS);
    for commit in 0..3 {
        rig.add_numbers(commit * 40..commit * 40 + 40);
        rig.work(usize::MAX);
        rig.now += SPAN + 1;
    }
    assert_eq!(rig.file_count(), 3);
    let before = copy(rig.directory.path());
    rig.now += AGE - SPAN - 1;
    rig.forget();
    rig.work(usize::MAX);
    assert_eq!((rig.file_count(), rig.ids.len()), (1, 40));
    for entry in before.path().read_dir().unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), rig.directory.path().join(entry.file_name())).unwrap();
    }
    // An older mark, too.
    fs::write(
        rig.directory.path().join(format!("forgotten-{:020}", 40)),
        b"",
    )
    .unwrap();
    rig.reopen();
    rig.assert_sound();
    assert_eq!((rig.names().len(), rig.ids.len()), (2, 40));
    assert_eq!(rig.ids.through(), Sequence(120));
}

#[test]
fn keys_are_remembered_for_their_time_and_a_span_at_most() {
    let mut rig = Rig::new(LIMITS);
    let mut added: Vec<(Key, i64)> = Vec::new();
    for n in 0..2_000_u64 {
        rig.add(&[key(n)]);
        added.push((key(n), rig.now));
        rig.now += (n % 7).cast_signed();
        rig.forget();
        rig.work(usize::MAX);
        if n % 50 == 0 {
            let keys: Vec<Key> = added.iter().map(|&(key, _)| key).collect();
            for (known, &(_, at)) in rig.known(&keys).into_iter().zip(&added) {
                let age = rig.now - at;
                assert!(known || age > AGE, "forgotten after {age}");
                assert!(!known || age <= AGE + SPAN, "known after {age}");
            }
        }
    }
    let many = rig.file_count();
    assert!(
        (10..30).contains(&many),
        "{many} files of {} spans",
        AGE / SPAN
    );
    // Nothing comes any more: the set becomes too old as well.
    for _ in 0..20 {
        rig.now += SPAN;
        rig.forget();
        rig.work(usize::MAX);
    }
    assert_eq!((rig.ids.len(), rig.names().len()), (0, 1));
    assert_eq!(rig.ids.through(), rig.head());
    rig.reopen();
    assert_eq!(
        rig.ids.through(),
        rig.head(),
        "what is forgotten is not asked for"
    );
}

#[test]
fn files_that_are_being_merged_are_forgotten_afterwards() {
    for steps in 1..6 {
        let mut rig = Rig::new(LIMITS);
        for file in 0..3 {
            rig.add_numbers(file * 40..file * 40 + 40);
            // The last one is merged with the others at once.
            rig.work(if file < 2 { usize::MAX } else { 0 });
        }
        let set_steps = (0..).take_while(|_| {
            let is_set = rig.ids.background.is_urgent();
            is_set && rig.work(1) == 1
        });
        assert!(set_steps.count() > 1);
        rig.work(steps);
        assert_eq!(rig.file_count(), 3, "the merge has begun and not ended");
        rig.now += AGE + 1;
        rig.forget();
        assert_eq!(rig.file_count(), 3);
        rig.crash();
        rig.assert_sound();
        rig.work(steps);
        rig.work(usize::MAX);
        assert_eq!(rig.file_count(), 1);
        rig.reopen();
        rig.assert_sound();
        rig.forget();
        rig.work(usize::MAX);
        assert_eq!((rig.ids.len(), rig.ids.through()), (0, rig.head()));
        rig.reopen();
        rig.assert_sound();
        assert_eq!(rig.ids.len(), 0);
    }
}

#[test]
fn sequences_go_on_after_starts_in_a_row() {
    let mut rig = Rig::new(LIMITS);
    for round in 0..6_u64 {
        rig.add_numbers(round * 25..round * 25 + 25);
        rig.reopen();
        rig.reopen();
        if round % 2 == 0 {
            rig.finish();
            assert_eq!(rig.ids.through(), rig.head());
        }
        let keys: Vec<Key> = (0..round * 25 + 50).map(key).collect();
        let known = rig.known(&keys);
        let old = round as usize * 25 + 25;
        assert!(known[..old].iter().all(|&known| known));
        assert!(!known[old..].contains(&true));
        rig.assert_sound();
    }
}

#[test]
fn a_set_is_written_when_it_is_full_and_when_it_is_old() {
    let mut rig = Rig::new(LIMITS);
    let at = UnixMicros(0);
    let keys: Vec<Key> = (0..100).map(key).collect();
    assert!(!rig.ids.add(&keys[..39], Sequence(39), at));
    assert_eq!(rig.work(usize::MAX), 0);
    assert!(rig.ids.add(&keys[39..40], Sequence(40), at), "it is full");
    // The next one stays in memory until this one is written.
    assert!(!rig.ids.add(&keys[40..90], Sequence(90), at));
    assert!(!rig.ids.seal() && rig.ids.background.is_urgent());
    assert_eq!(rig.known(&keys).iter().filter(|&&known| known).count(), 90);
    rig.work(usize::MAX);
    assert_eq!(rig.ids.through(), Sequence(40));
    assert!(rig.ids.seal());
    rig.work(usize::MAX);
    assert_eq!(rig.ids.through(), Sequence(90));
    assert!(!rig.ids.seal(), "there is nothing");
    assert!(!rig.ids.add(&keys[90..91], Sequence(91), at));
    assert!(
        !rig.ids
            .add(&keys[91..92], Sequence(92), UnixMicros(SPAN - 1))
    );
    assert!(rig.ids.add(&keys[92..93], Sequence(93), UnixMicros(SPAN)));
    rig.work(usize::MAX);
    assert_eq!(
        rig.ids.through(),
        Sequence(92),
        "the late one is in the next set"
    );
}

/// Writes files, each by its keys and its time, and checks how many keys those have that are left.
fn assert_merged(files: &[(u64, i64)], expected: &[u64]) {
    let mut rig = Rig::new(Limits {
        part_keys_max: 1_000,
        ..LIMITS
    });
    for &(keys, at) in files {
        let first = rig.head().0;
        rig.now = at;
        rig.add_numbers(first..first + keys);
        rig.finish();
    }
    let view = rig.ids.background.view();
    let left: Vec<u64> = view.files.iter().map(|file| file.footer.keys).collect();
    assert_eq!(left, expected, "{files:?}");
    let all: Vec<Key> = (0..rig.head().0).map(key).collect();
    assert!(rig.known(&all).iter().all(|&known| known));
}

#[test]
fn files_are_merged_as_far_as_keys_and_span_allow() {
    // Three of a size.
    assert_merged(&[(40, 0), (40, 1)], &[40, 40]);
    assert_merged(&[(40, 0), (40, 1), (40, 2)], &[120]);
    // The third does not fit: so the first ones are complete.
    assert_merged(&[(80, 0), (80, 1)], &[80, 80]);
    assert_merged(&[(80, 0), (80, 1), (40, 2)], &[160, 40]);
    assert_merged(&[(80, 0), (81, 1), (40, 2)], &[80, 81, 40]);
    // The span.
    assert_merged(&[(40, 0), (40, SPAN), (40, SPAN + 1)], &[80, 40]);
}

#[test]
fn however_small_files_are_there_are_few_and_each_key_is_written_a_few_times() {
    let mut rig = Rig::new(Limits {
        file_keys_max: 100_000,
        ..LIMITS
    });
    let mut steps = 0;
    for n in 0..2_000 {
        rig.add(&[key(n)]);
        rig.ids.seal();
        steps += rig.work(usize::MAX);
        // One of each size below the fan-in, for seven sizes.
        let most = 2 * 7;
        assert!(rig.file_count() <= most, "{} files", rig.file_count());
    }
    assert_eq!(rig.ids.len(), 2_000);
    assert!(steps < 2_000 * 14, "{steps} steps for 2,000 keys");
}

#[test]
fn keys_that_differ_in_their_lower_half_only_are_told_apart() {
    let mut rig = Rig::new(Limits {
        part_keys_max: 100_000,
        ..LIMITS
    });
    // Several blocks that begin alike, between others.
    let alike = |n: u64| Key::from(7_u64 << 40) << 64 | Key::from(n) << CONTENT_BITS;
    let keys: Vec<Key> = (0..2_000).map(alike).chain((0..100).map(key)).collect();
    rig.add(&keys);
    rig.finish();
    assert!(rig.known(&keys).iter().all(|&known| known));
    let others: Vec<Key> = (2_000..12_000).map(alike).collect();
    assert!(!rig.known(&others).contains(&true));
}

#[test]
fn the_content_is_remembered_with_its_event_wherever_the_key_is() {
    let mut rig = Rig::new(LIMITS);
    let content = |n: u64| (key(n) >> CONTENT_BITS << CONTENT_BITS) | Key::from(n % 3);
    let keys: Vec<Key> = (0..500).map(content).collect();
    for keys in keys.chunks(30) {
        rig.add(keys);
        rig.work(3);
    }
    let check = |rig: &mut Rig| {
        let others: Vec<Key> = keys.iter().map(|key| key ^ 0x00ff_00ff).collect();
        for asked in [&keys, &others] {
            let mut known = Vec::new();
            rig.ids.find(asked, &mut known).unwrap();
            let known: Vec<Key> = known.into_iter().map(Option::unwrap).collect();
            assert_eq!(known, keys);
        }
    };
    assert!(rig.ids.recent.len() > 0, "in the set, and in files");
    check(&mut rig);
    rig.finish();
    check(&mut rig);
    rig.reopen();
    check(&mut rig);
}

#[test]
fn the_first_and_the_last_key_are_found() {
    let mut rig = Rig::new(LIMITS);
    let mut keys: Vec<Key> = (0..38).map(key).collect();
    keys.extend([0, Key::MAX]);
    rig.add(&keys);
    rig.work(usize::MAX);
    assert_eq!(rig.ids.through(), Sequence(40));
    assert!(rig.known(&keys).iter().all(|&known| known));
    let beside = [1 << CONTENT_BITS, Key::MAX - (1 << CONTENT_BITS)];
    assert_eq!(rig.known(&beside), [false; 2]);
    assert_eq!(rig.known(&[]), [false; 0]);
}

#[test]
fn keys_are_found_while_another_thread_works() {
    let mut rig = Rig::new(LIMITS);
    let background = rig.ids.background();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let disconnected = Err(std::sync::mpsc::TryRecvError::Disconnected);
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            while stopped.try_recv() != disconnected {
                background.run_once().unwrap();
            }
        });
        for commit in 0..300_u64 {
            rig.add_numbers(commit * 10..commit * 10 + 10);
            let keys: Vec<Key> = (0..commit * 10 + 20).map(key).collect();
            let known = rig.known(&keys);
            let old = commit as usize * 10 + 10;
            assert!(known[..old].iter().all(|&known| known));
            assert!(!known[old..].contains(&true));
        }
        drop(stop);
        worker.join().unwrap();
    });
    rig.finish();
    rig.assert_sound();
    assert_eq!(rig.ids.len(), 3_000);
}

#[test]
fn the_usual_limits_take_the_memory_that_they_say() {
    let limits = Limits::new(Duration::from_secs(15 * 24 * 60 * 60), u64::MAX);
    assert_eq!(limits.span_micros, SPAN_MICROS_MAX);
    assert_eq!(
        Limits::new(Duration::from_secs(60), 1).span_micros,
        60_000_000
    );
    assert_eq!(Limits::new(Duration::MAX, 1).age_micros, i64::MAX);
    let mut rig = Rig::new(limits);
    assert_eq!(rig.ids.memory_bytes(), 0);
    let mut first = 0;
    while rig.ids.recent.len() as u64 + COMMIT_KEYS_MAX < limits.part_keys_max {
        rig.add_numbers(first..first + COMMIT_KEYS_MAX);
        first += COMMIT_KEYS_MAX;
    }
    assert_eq!(rig.ids.recent.memory_bytes(), recent::SHARDS * 16_384 * 17);
    rig.finish();
    let bits = rig.ids.memory_bytes() as f64 * 8.0 / rig.ids.len() as f64;
    assert!(bits < 9.7, "{bits} bits a key, the index included");
    let bytes = rig.ids.stored_bytes() as f64 / rig.ids.len() as f64;
    assert!(bytes < 17.5, "{bytes} bytes a key");
}

#[test]
fn too_many_ids_are_forgotten_early_oldest_first_but_none_of_the_last_day() {
    let mut rig = Rig::new(LIMITS);
    // A file of its own for each span.
    for span in 0..8 {
        rig.add_numbers(span * 100..span * 100 + 100);
        rig.finish();
        rig.now += SPAN + 1;
    }
    let of_span = |span: u64| [key(span * 100), key(span * 100 + 99)];
    let sizes: Vec<u64> = {
        let files = rig.ids.background.view().files;
        files.iter().map(|file| file.bytes).collect()
    };
    assert_eq!(sizes.len(), 8);
    let of_last = |count: usize| sizes[8 - count..].iter().sum::<u64>();
    let before = rig.usage();
    assert_eq!((before.bytes, before.forgotten_early), (of_last(8), 0));
    assert_eq!(before.forgotten, 0);
    rig.ids.limits.bytes_max = of_last(5);
    rig.forget();
    rig.work(usize::MAX);
    let after = rig.ids.usage(rig.head(), None);
    assert_eq!((after.bytes, after.forgotten_early), (of_last(5), 300));
    assert_eq!(after.forgotten, 300);
    assert_eq!(after.bytes_expected, after.bytes);
    for span in 0..8 {
        let expected = [span >= 3; 2];
        assert_eq!(rig.known(&of_span(span)), expected, "{span}");
    }
    // One more byte than they may take costs a file, and what is young stays whatever it takes.
    rig.forget();
    assert_eq!(rig.usage().bytes, of_last(5));
    rig.ids.limits.bytes_max = of_last(5) - 1;
    rig.forget();
    assert_eq!(rig.usage().bytes, of_last(4));
    rig.ids.limits.bytes_max = 0;
    rig.now -= 1;
    rig.forget();
    assert_eq!(
        rig.usage().bytes,
        of_last(1),
        "it is no older than its span"
    );
    rig.now += 1;
    rig.forget();
    assert_eq!(rig.usage().bytes, 0);
}
