//! What becomes of a log in which something was damaged: nothing that was acknowledged is hidden or
//! removed without a word, whatever it was.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
};

use tokio::task::spawn_blocking;

use super::{
    directory::MANIFEST_FILE,
    frame::{Header, SEGMENT_HEADER_BYTES},
    manifest::Manifest,
    testing::{
        PATIENCE, clock, copy, cut, failing_disk, flip, footer_of, frames_of, id_files,
        manifest_of, quarantined, read_quarantined, rewind, said, segment_paths, small_ids,
        waits_until,
    },
    *,
};
use crate::{Damaged, fixtures};

const START: i64 = 1_700_000_000_000_000;
const BATCHES: u64 = 4;
const BATCH_EVENTS: u64 = 100;
/// The events that retention has removed.
pub(super) const TRIMMED: u64 = 20;
pub(super) const HEAD: u64 = BATCHES * BATCH_EVENTS + TRIMMED;

fn options(age: Duration) -> Options {
    Options {
        retention_age: age,
        // Segments of 64 KiB.
        retention_bytes: 1024 * 1024,
        ..Options::default()
    }
}

fn seams(now: i64) -> Seams {
    Seams {
        clock: clock(&Arc::new(AtomicI64::new(now))),
        ids_limits: Some(small_ids(90)),
        ..Seams::default()
    }
}

/// With small segments.
fn open_small(dir: &Path) -> Arc<Embedded> {
    open_with_seams(dir, options(Duration::MAX), seams(START)).unwrap()
}

/// With room for everything, so that retention removes nothing.
fn open_at(dir: &Path) -> Result<Arc<Embedded>, OpenError> {
    let options = Options {
        retention_age: Duration::MAX,
        ..Options::default()
    };
    open_with_seams(dir, options, seams(START))
}

/// The same, verified as fast as possible.
pub(super) fn open_scrubbed(dir: &Path) -> Arc<Embedded> {
    open_verified(dir, u64::MAX)
}

/// The same, and no thread verifies it.
pub(super) fn open_unscrubbed(dir: &Path) -> Arc<Embedded> {
    open_verified(dir, 0)
}

fn open_verified(dir: &Path, scrub_bytes_per_second: u64) -> Arc<Embedded> {
    let options = Options {
        retention_age: Duration::MAX,
        scrub_bytes_per_second,
        ..Options::default()
    };
    open_with_seams(dir, options, seams(START)).unwrap()
}

/// Events of such a size that a batch fills a segment.
fn batch(numbers: std::ops::Range<u64>) -> Batch {
    let events: Vec<(String, String)> = numbers
        .map(|n| (format!("evt_{n}"), format!("usr_{n}_{}", "x".repeat(570))))
        .collect();
    let events: Vec<(&str, &str, &str)> = (events.iter())
        .map(|(id, user)| (id.as_str(), "user.created", user.as_str()))
        .collect();
    fixtures::batch("app_1", &events)
}

fn batches() -> impl Iterator<Item = std::ops::Range<u64>> {
    let rest = (0..BATCHES).map(|n| TRIMMED + n * BATCH_EVENTS..TRIMMED + (n + 1) * BATCH_EVENTS);
    std::iter::once(0..TRIMMED).chain(rest)
}

/// A log of several segments, epochs and files of ids, the first events of which retention has
/// removed; closed well. They are in a segment with others, so that is there.
pub(super) async fn template() -> tempfile::TempDir {
    template_with_manifests().await.0
}

/// The same with all manifests that it had when it was closed.
async fn template_with_manifests() -> (tempfile::TempDir, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let open = |age| {
        let seams = Seams {
            clock: clock(&now),
            ..seams(START)
        };
        open_with_seams(dir.path(), options(age), seams).unwrap()
    };
    let mut manifests = Vec::new();
    let mut batches = batches();
    // With it the ages of the two are told apart, and both go into one segment.
    let log = open(Duration::from_micros(6_400));
    log.append(batch(batches.next().unwrap())).await.unwrap();
    now.fetch_add(1_000, Ordering::SeqCst);
    log.append(batch(batches.next().unwrap())).await.unwrap();
    waits_until(|| !id_files(dir.path()).is_empty()).await;
    close(log, dir.path(), &mut manifests).await;
    // Between the times of the first two.
    now.fetch_add(500, Ordering::SeqCst);
    let log = open(Duration::from_micros(640));
    waits_until(|| log.range().earliest == Sequence(TRIMMED + 1)).await;
    close(log, dir.path(), &mut manifests).await;
    for numbers in batches {
        now.fetch_add(1_000, Ordering::SeqCst);
        let log = open(Duration::MAX);
        log.append(batch(numbers)).await.unwrap();
        close(log, dir.path(), &mut manifests).await;
    }
    let segments = segment_paths(dir.path());
    assert_eq!(segments.len() as u64, BATCHES);
    assert_eq!(frames_of(&segments[0])[0].1.first_sequence, Sequence(1));
    (dir, manifests)
}

async fn close(log: Arc<Embedded>, dir: &Path, manifests: &mut Vec<Vec<u8>>) {
    log.close().await;
    drop(log);
    manifests.push(manifest_of(dir));
}

fn zero(path: &Path, count: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[..count].fill(0);
    fs::write(path, bytes).unwrap();
}

/// What the files of segments that had events held is still there, in the log or in the quarantine.
fn assert_all_kept(before: &Path, after: &Path, what: &str) {
    for path in segment_paths(before) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (last, header) = frames_of(&path).last().copied().unwrap();
        // One whose events retention has removed may go.
        if header.last_sequence() <= Sequence(TRIMMED) {
            continue;
        }
        let held = fs::read(&path).unwrap();
        let end = usize::try_from(last + header.frame_bytes()).unwrap();
        // The bytes behind the last frame need not be there.
        let held = &held[..end.min(held.len())];
        let is_in_place = fs::read(after.join(name)).is_ok_and(|now| now.starts_with(held));
        let is_kept = is_in_place
            || read_quarantined(after)
                .iter()
                .any(|(path, now)| path.to_str().unwrap().ends_with(name) && now.starts_with(held));
        assert!(is_kept, "{what}: {name} is gone");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Everything is there and can be read.
    Whole,
    /// These events are damaged, as every reader is told. All others can be read.
    Damaged(Vec<Damaged>),
    /// The log cannot be opened, for this reason.
    Refused(String),
}

/// Reads a log from its beginning to its end, passing over what is damaged: what was read is what was
/// written, and what was not read is said to be damaged.
pub(super) async fn read_all(log: &Embedded) -> Vec<Damaged> {
    let mut after = log.range().earliest.before();
    assert!(after.0 <= TRIMMED, "events up to {after} are hidden");
    let mut told = Vec::new();
    while after < log.range().head {
        let read = tokio::time::timeout(PATIENCE, log.read(after, usize::MAX));
        match read.await.expect("reading ends") {
            Ok(blocks) => {
                let events = fixtures::events(&blocks).into_iter();
                let passed = after.0;
                for (n, id) in events.skip_while(|&(n, _)| n <= passed) {
                    after = after.plus(1);
                    assert_eq!((n, id), (after.0, format!("evt_{}", n - 1)));
                }
            }
            Err(ReadError::Damaged(range)) => {
                assert!(range.first <= after.plus(1) && range.last > after);
                let all = log.status().damaged();
                let is_known =
                    |known: &&Damaged| known.first <= range.first && range.last <= known.last;
                assert_eq!(all.iter().filter(is_known).count(), 1);
                told.push(range);
                after = range.last;
            }
            Err(error) => panic!("{error}"),
        }
    }
    told
}

/// Opens a log in which something was damaged, and uses it. What is damaged in the ids may be found
/// out only now; then the next start has put it right.
async fn fate(dir: &Path) -> Fate {
    for attempt in 0.. {
        let path = dir.to_owned();
        let opened = tokio::time::timeout(PATIENCE, spawn_blocking(move || open_at(&path)));
        let log = match opened.await.expect("opening ends").unwrap() {
            Ok(log) => log,
            Err(error) => return Fate::Refused(error.to_string()),
        };
        let damaged = read_all(&log).await;
        assert_eq!(log.range().head, Sequence(HEAD));
        let seek = tokio::time::timeout(PATIENCE, log.seek(UnixMicros(START + 3_000)));
        seek.await.expect("seeking ends").unwrap();
        if !damaged.is_empty() {
            return Fate::Damaged(damaged);
        }
        let mut failure = None;
        for numbers in batches().skip(1) {
            match log.append(batch(numbers)).await {
                Ok(appended) => assert_eq!(appended.accepted, 0, "it was there before"),
                Err(error) => failure = Some(error),
            }
        }
        assert_eq!(log.range().head, Sequence(HEAD));
        let Some(error) = failure else {
            return Fate::Whole;
        };
        assert!(attempt == 0, "a new start does not put it right: {error}");
        log.close().await;
    }
    unreachable!()
}

/// Numbers that look like chance, the same in each run.
pub(super) fn chance(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Damages a copy of a log, which has to be whole again afterwards.
async fn assert_made_good(template: &Path, what: &str, damage: impl FnOnce(&Path)) {
    let dir = copy(template);
    damage(dir.path());
    assert_eq!(fate(dir.path()).await, Fate::Whole, "{what}");
    assert_all_kept(template, dir.path(), what);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_with_a_changed_byte_or_without_its_end_is_made_anew() {
    let template = template().await;
    let bytes = manifest_of(template.path()).len() as u64;
    let mut seed = 20_261_130;
    for byte in 0..bytes {
        let what = format!("byte {byte} of the manifest");
        let bit = byte * 8 + chance(&mut seed) % 8;
        let flipped = |dir: &Path| flip(&dir.join(MANIFEST_FILE), bit);
        assert_made_good(template.path(), &what, flipped).await;
        if byte % 5 == 0 {
            let what = format!("the manifest cut at {byte}");
            let cut = |dir: &Path| cut(&dir.join(MANIFEST_FILE), byte);
            assert_made_good(template.path(), &what, cut).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_another_moment_or_log_removes_and_hides_nothing() {
    let (template, mut manifests) = template_with_manifests().await;
    manifests.pop();
    let other = self::template().await;
    manifests.push(manifest_of(other.path()));
    let other = without_manifest(&[]).await;
    manifests.push(manifest_of(other.path()));
    for (index, manifest) in manifests.iter().enumerate() {
        let dir = copy(template.path());
        fs::write(dir.path().join(MANIFEST_FILE), manifest).unwrap();
        let fate = fate(dir.path()).await;
        assert_all_kept(template.path(), dir.path(), &format!("manifest {index}"));
        let is_of_this_log = index < manifests.len() - 2;
        match fate {
            Fate::Whole => assert!(is_of_this_log, "{index}"),
            Fate::Damaged(events) => panic!("{index}: {events:?}"),
            Fate::Refused(error) => {
                assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
                assert!(!is_of_this_log, "{error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_wrong_with_a_good_checksum_removes_nothing_and_reading_ends() {
    type Change = fn(&mut Manifest, u64);
    let changes: [(&str, Change); 4] = [
        ("trimmed", |manifest, value| {
            manifest.trimmed = Sequence(value);
        }),
        ("first ordinal", |manifest, value| {
            manifest.first_ordinal = value;
        }),
        ("confirmed", |manifest, value| {
            manifest.confirmed = Sequence(value);
        }),
        ("log", |manifest, value| {
            manifest.log = prelude_bridge_event::LogId(value);
        }),
    ];
    let template = template().await;
    for (what, change) in changes {
        for value in [0, 1, 2, 150, u64::MAX] {
            let dir = copy(template.path());
            let mut manifest = Manifest::read(dir.path()).unwrap().unwrap();
            change(&mut manifest, value);
            manifest.write(dir.path()).unwrap();
            let path = dir.path().to_owned();
            let opened = tokio::time::timeout(PATIENCE, spawn_blocking(move || open_at(&path)));
            if let Ok(log) = opened.await.expect("opening ends").unwrap() {
                if log.range().earliest.0 <= TRIMMED + 1 {
                    read_all(&log).await;
                }
                assert_eq!(log.range().head, Sequence(HEAD));
                log.close().await;
            }
            assert_all_kept(template.path(), dir.path(), &format!("{what} = {value}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_footer_that_is_damaged_missing_or_of_another_segment_is_written_again() {
    let template = template().await;
    let paths = segment_paths(template.path());
    let sealed: Vec<_> = (paths.iter())
        .filter_map(|path| Some((path, footer_of(path)?)))
        .collect();
    assert!(sealed.len() >= 2 && sealed.len() == paths.len() - 1);
    let mut seed = 99;
    for (index, (path, footer)) in sealed.iter().enumerate() {
        let name = path.file_name().unwrap();
        let step = if index == 0 { 1 } else { 7 };
        for byte in footer.clone().step_by(step) {
            let what = format!("byte {byte} of {name:?}");
            let bit = byte * 8 + chance(&mut seed) % 8;
            assert_made_good(template.path(), &what, |dir| flip(&dir.join(name), bit)).await;
        }
        for bytes in footer.clone().step_by(11) {
            let what = format!("{name:?} cut at {bytes}");
            assert_made_good(template.path(), &what, |dir| cut(&dir.join(name), bytes)).await;
        }
        // That of another segment, behind its own and in its place.
        let (other, of_other) = &sealed[(index + 1) % sealed.len()];
        let range = |range: &std::ops::Range<u64>| {
            usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
        };
        let foreign = fs::read(other).unwrap()[range(of_other)].to_vec();
        let own = fs::read(path).unwrap();
        for front in [&own[..], &own[..range(footer).start]] {
            let bytes = [front, &foreign].concat();
            let put = |dir: &Path| fs::write(dir.join(name), &bytes).unwrap();
            assert_made_good(template.path(), "another footer", put).await;
        }
    }
    // All of them.
    let manifest = manifest_of(template.path());
    assert_made_good(template.path(), "none", |dir| rewind(dir, &manifest)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_damaged_missing_or_of_another_log_are_read_from_the_segments_again() {
    let template = template().await;
    let other = self::template().await;
    let foreign = fs::read(id_files(other.path()).pop().unwrap()).unwrap();
    let mut seed = 7;
    for (index, path) in id_files(template.path()).into_iter().enumerate() {
        let name = path.strip_prefix(template.path()).unwrap();
        let bits = path.metadata().unwrap().len() * 8;
        for _ in 0..25 {
            let bit = chance(&mut seed) % bits;
            let what = format!("bit {bit} of file {index} of ids");
            assert_made_good(template.path(), &what, |dir| flip(&dir.join(name), bit)).await;
        }
        for bytes in [0, 1, bits / 16, bits / 8 - 1] {
            assert_made_good(template.path(), "cut", |dir| cut(&dir.join(name), bytes)).await;
        }
        let gone = |dir: &Path| fs::remove_file(dir.join(name)).unwrap();
        assert_made_good(template.path(), "gone", gone).await;
        let put = |dir: &Path| fs::write(dir.join(name), &foreign).unwrap();
        assert_made_good(template.path(), "of another log", put).await;
    }
    let all = |dir: &Path| fs::remove_dir_all(dir.join(directory::IDS_DIRECTORY)).unwrap();
    assert_made_good(template.path(), "all are gone", all).await;
    let both = |dir: &Path| {
        all(dir);
        fs::remove_file(dir.join(MANIFEST_FILE)).unwrap();
    };
    assert_made_good(template.path(), "and the manifest", both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_ids_is_kept_and_said() {
    let template = template().await;
    let path = id_files(template.path()).remove(0);
    let bits = path.metadata().unwrap().len() * 8;
    flip(&path, bits - 1);
    let (log, text) = said(|| open_at(template.path()).unwrap());
    assert!(text.contains("a file of ids is damaged"), "{text}");
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(!quarantined(template.path()).is_empty());
    log.close().await;
    drop(log);
    let (_, text) = said(|| open_at(template.path()).unwrap());
    assert_eq!(text, "", "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_has_no_room_to_keep_is_said_as_it_is() {
    let dir = template().await;
    let ids_dir = dir.path().join(directory::IDS_DIRECTORY);
    fs::write(ids_dir.join(format!("ids-{:020}-{:020}", 1, 2)), "x").unwrap();
    let files = id_files(dir.path());
    assert!(files.len() > 1, "{files:?}");
    files.iter().for_each(|file| cut(file, 1));
    flip(&dir.path().join(MANIFEST_FILE), 200);
    let full = Arc::new(AtomicBool::new(true));
    let seams = Seams {
        fault: failing_disk(Stage::Quarantine, &full, testing::no_space).fault,
        ..seams(START)
    };
    let (log, text) = said(|| open_with_seams(dir.path(), options(Duration::MAX), seams).unwrap());
    for file in &files {
        assert!(text.contains(file.to_str().unwrap()), "{text}");
    }
    let count = |line| text.matches(line).count();
    assert_eq!(count("a file of ids is damaged"), files.len(), "{text}");
    assert_eq!(count("the next start does it"), files.len(), "{text}");
    assert_eq!(count("the new one replaces it"), 1, "{text}");
    drop(log);
    let (_, text) = said(|| open_at(dir.path()).unwrap());
    assert!(text.contains("the damaged file of ids is kept"), "{text}");
    assert!(!text.contains("manifest"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_of_ids_that_a_start_comes_across_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let with_small_ids = |seams| Seams {
        ids_limits: Some(testing::small_ids(100)),
        ..seams
    };
    let seams = failing_disk(Stage::Ids, &full, testing::no_space);
    let log = open_with_seams(dir.path(), Options::default(), with_small_ids(seams)).unwrap();
    for files in 1..3 {
        let first = (files as u64 - 1) * 100;
        log.append(batch(first..first + 100)).await.unwrap();
        waits_until(|| id_files(dir.path()).len() == files).await;
    }
    // The next start writes the third file, and merges it with these. A log that finds its disk full takes no
    // batch after this one.
    full.store(true, Ordering::SeqCst);
    log.append(batch(200..350)).await.unwrap();
    drop(log);
    let path = id_files(dir.path()).remove(0);
    let mut damaged = fs::read(&path).unwrap();
    damaged[100] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let seams = with_small_ids(Seams::default());
    let (log, text) = said(|| open_with_seams(dir.path(), Options::default(), seams).unwrap());
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    let kept = read_quarantined(dir.path());
    assert!(kept.iter().any(|(_, bytes)| *bytes == damaged), "{text}");
    assert_eq!(log.append(batch(0..350)).await.unwrap().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_knows_at_each_later_start_that_ids_were_lost() {
    type Damage = fn(&Path);
    let nothing: Damage = |_| {};
    let first: Damage = |dir| cut(&id_files(dir)[0], 1);
    let all: Damage = |dir| fs::remove_dir_all(dir.join(directory::IDS_DIRECTORY)).unwrap();
    let manifest: Damage = |dir| fs::remove_file(dir.join(MANIFEST_FILE)).unwrap();
    let segment: Damage = |dir| fs::remove_file(&segment_paths(dir)[0]).unwrap();
    let template = template().await;
    // Nothing was removed from this one.
    let whole = tempfile::tempdir().unwrap();
    let log = open_at(whole.path()).unwrap();
    for first in [0, 100, 200] {
        log.append(batch(first..first + 100)).await.unwrap();
    }
    log.close().await;
    drop(log);
    for (what, damages, are_lost) in [
        ("nothing", &[nothing][..], false),
        ("the manifest", &[manifest], false),
        ("the first segment", &[segment], false),
        // Retention has removed events, which the first segment has together with others.
        ("the first file of ids", &[first], false),
        ("all ids and the manifest", &[all, manifest], false),
        ("a segment and its file of ids", &[segment, first], true),
        ("a segment and all ids", &[segment, all], true),
        ("that and the manifest", &[segment, all, manifest], true),
    ] {
        assert_forgotten(template.path(), what, damages, are_lost).await;
    }
    for damages in [&[nothing][..], &[all], &[manifest], &[all, manifest]] {
        assert_forgotten(whole.path(), "whole", damages, false).await;
    }
}

async fn assert_forgotten(template: &Path, what: &str, damages: &[fn(&Path)], are_lost: bool) {
    let dir = copy(template);
    damages.iter().for_each(|damage| damage(dir.path()));
    for start in 0..3_u64 {
        let log = open_at(dir.path()).unwrap();
        assert_eq!(log.has_forgotten_ids(), are_lost, "{what}, start {start}");
        // Files of ids are written, merged, and continue each other.
        let first = 10_000 + start * 100;
        log.append(batch(first..first + 100)).await.unwrap();
        assert_eq!(log.has_forgotten_ids(), are_lost, "{what}, start {start}");
        log.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_damaged_in_a_segment_are_made_anew_from_its_events() {
    let template = template().await;
    for path in segment_paths(template.path()) {
        let name = path.file_name().unwrap();
        let (at, _) = frames_of(&path)[0];
        let first_key = (at + frame::HEADER_BYTES as u64) * 8;
        let damage = |dir: &Path| {
            fs::remove_dir_all(dir.join(directory::IDS_DIRECTORY)).unwrap();
            flip(&dir.join(name), first_key);
        };
        let dir = copy(template.path());
        damage(dir.path());
        let log = open_at(dir.path()).unwrap();
        let again = log.append(batch(TRIMMED..TRIMMED + BATCHES * BATCH_EVENTS));
        assert_eq!(again.await.unwrap().accepted, 0, "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_without_its_first_bytes_is_read_as_far_as_it_is_whole() {
    let template = template().await;
    let paths = segment_paths(template.path());
    for path in &paths {
        let name = path.file_name().unwrap();
        let dir = copy(template.path());
        zero(&dir.path().join(name), 32);
        assert_eq!(fate(dir.path()).await, Fate::Whole, "{name:?}");
        for count in [33, 512, 4_096] {
            let dir = copy(template.path());
            zero(&dir.path().join(name), count);
            match fate(dir.path()).await {
                Fate::Damaged(events) => {
                    let first = frames_of(path)[0].1.first_sequence;
                    assert!(
                        events[0].first == first.max(Sequence(TRIMMED + 1)),
                        "{events:?}"
                    );
                }
                // What retention has removed may be damaged.
                Fate::Whole => assert_eq!(name, paths[0].file_name().unwrap()),
                refused @ Fate::Refused(_) => panic!("{refused:?}"),
            }
            assert!(dir.path().join(name).exists());
        }
    }
}

/// A log whose manifest confirms none of its events, as when the power went before it did.
async fn without_manifest(batches: &[std::ops::Range<u64>]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    drop(open_small(dir.path()));
    let manifest = manifest_of(dir.path());
    let log = open_small(dir.path());
    for numbers in batches {
        let batch = fixtures::numbered("app_1", numbers.clone());
        log.append(batch).await.unwrap();
    }
    log.close().await;
    drop(log);
    rewind(dir.path(), &manifest);
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_first_commit_of_a_new_log_is_no_torn_end() {
    let template = without_manifest(&[0..2, 2..4, 4..6]).await;
    let [path] = &segment_paths(template.path())[..] else {
        panic!("one segment");
    };
    let frames = frames_of(path);
    for byte in 0..frames[1].0 - SEGMENT_HEADER_BYTES {
        // The last bytes are there for the alignment only.
        if byte % 7 != 0 || byte + 8 > frames[0].1.frame_bytes() {
            continue;
        }
        let dir = copy(template.path());
        let path = dir.path().join(path.file_name().unwrap());
        flip(&path, (SEGMENT_HEADER_BYTES + byte) * 8);
        let (log, text) = said(|| open_at(dir.path()).unwrap());
        let events = range_of(1, 2);
        let keys = frame::HEADER_BYTES as u64;
        if (keys..keys + 2 * 16).contains(&byte) {
            assert_eq!(log.status().damaged()[..], [], "the events tell their keys");
            assert_eq!(log.range().head, Sequence(6));
            continue;
        }
        assert_eq!(log.status().damaged()[..], [events], "byte {byte}");
        for part in [
            "ERROR".to_owned(),
            "first_event=1 last_event=2".to_owned(),
            format!("from_byte={SEGMENT_HEADER_BYTES} to_byte={}", frames[1].0),
        ] {
            assert!(text.contains(&part), "{part} in {text}");
        }
        let read = log.read(Sequence(0), 1).await.err();
        assert_eq!(read, Some(ReadError::Damaged(events)));
        let rest = log.read(Sequence(2), usize::MAX).await.unwrap();
        assert_eq!(fixtures::events(&rest).len(), 4);
        assert!(quarantined(dir.path()).is_empty());
    }
}

fn range_of(first: u64, last: u64) -> Damaged {
    Damaged {
        first: Sequence(first),
        last: Sequence(last),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_behind_damage_is_found_however_long_the_damaged_one_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), Options::default()).unwrap());
    let manifest = manifest_of(dir.path());
    let log = open(dir.path(), Options::default()).unwrap();
    let ids: Vec<String> = (0..24)
        .map(|n| format!("{n}_{}", "x".repeat(1 << 20)))
        .collect();
    let events: Vec<_> = ids
        .iter()
        .map(|id| (id.as_str(), "user.created", ""))
        .collect();
    log.append(fixtures::batch("app_1", &events)).await.unwrap();
    log.close().await;
    drop(log);
    // Opened again, the segment is as large as it has become, and takes one more.
    let log = open(dir.path(), Options::default()).unwrap();
    log.append(fixtures::numbered("app_1", 0..1)).await.unwrap();
    log.close().await;
    drop(log);
    let path = segment_paths(dir.path()).remove(0);
    let frames = frames_of(&path);
    let (last, header) = frames[frames.len() - 1];
    assert_eq!(header.first_sequence, Sequence(25));
    assert!(last > 17 * 1024 * 1024, "{last}");
    flip(&path, (SEGMENT_HEADER_BYTES + 20) * 8);
    rewind(dir.path(), &manifest);
    let log = open(dir.path(), Options::default()).unwrap();
    let (_, first) = frames[0];
    let events = range_of(1, first.last_sequence().0);
    assert_eq!(
        log.status().damaged()[..],
        [events],
        "the other frames are served"
    );
    assert_eq!(log.range().head, Sequence(25));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_is_said_with_its_range_kept_and_overwritten_with_zeros() {
    let dir = without_manifest(&[0..2, 2..4]).await;
    let path = segment_paths(dir.path()).remove(0);
    let (at, header) = frames_of(&path)[1];
    let end = at + header.frame_bytes();
    flip(&path, (at + 100) * 8);
    let torn = fs::read(&path).unwrap();
    let torn = &torn[usize::try_from(at).unwrap()..usize::try_from(end).unwrap()];
    let (log, text) = said(|| open_at(dir.path()).unwrap());
    assert_eq!(log.range().head, Sequence(2));
    for part in [
        format!("from_byte={at}"),
        "to_byte=".to_owned(),
        "after_event=2".to_owned(),
        format!("path={}", path.display()),
        "WARN".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} in {text}");
    }
    let [(path_kept, kept)] = &read_quarantined(dir.path())[..] else {
        panic!("one file");
    };
    assert!(text.contains(path_kept.to_str().unwrap()), "{text}");
    assert!(torn.starts_with(kept) && torn[kept.len()..].iter().all(|&byte| byte == 0));
    drop(log);
    let now = fs::read(&path).unwrap();
    assert!(
        now[usize::try_from(at).unwrap()..]
            .iter()
            .all(|&byte| byte == 0)
    );
    let (log, text) = said(|| open_at(dir.path()).unwrap());
    assert_eq!((log.range().head, text.as_str()), (Sequence(2), ""), "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_commit_is_no_torn_end_once_the_manifest_confirms_it() {
    let dir = without_manifest(&[]).await;
    let log = open_at(dir.path()).unwrap();
    let confirmed = || Manifest::read(dir.path()).unwrap().unwrap().confirmed.0;
    // So few events, and with so little rest, that nothing but the time makes the manifest follow.
    let mut count = 0;
    while confirmed() == 0 {
        log.append(fixtures::numbered("app_1", count..count + 1))
            .await
            .unwrap();
        count += 1;
        assert!(count < 1_000);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let head = log.range().head.0;
    waits_until(|| confirmed() == head).await;
    // As after a kill.
    let killed = copy(dir.path());
    let path = segment_paths(killed.path()).remove(0);
    let (last, _) = frames_of(&path).pop().unwrap();
    flip(&path, (last + 20) * 8);
    let log = open_at(killed.path()).unwrap();
    assert_eq!(log.status().damaged()[..], [range_of(head, head)]);
    assert_eq!(log.range().head, Sequence(head));
    assert!(quarantined(killed.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_two_commits_are_not_taken_for_one() {
    let template = without_manifest(&[0..1, 1..2]).await;
    let written = [10_000, 20_000].map(|first| (copy(template.path()), first));
    let mut files = Vec::new();
    for (dir, first) in &written {
        // The clock stands, so the time does not tell them apart.
        let log = open_small(dir.path());
        log.append(fixtures::numbered("app_1", *first..first + 10_000))
            .await
            .unwrap();
        log.close().await;
        drop(log);
        let path = segment_paths(dir.path()).pop().unwrap();
        let frames = frames_of(&path);
        assert!(frames.len() > 1, "several frames in the second commit");
        files.push((fs::read(&path).unwrap(), frames, path));
    }
    let ((first, frames, path), (second, others, _)) = (&files[0], &files[1]);
    let places = |frames: &[(u64, Header)]| frames.iter().map(|(at, _)| *at).collect::<Vec<_>>();
    assert_eq!(places(frames), places(others));
    let seam = usize::try_from(frames[1].0).unwrap();
    let spliced = [&first[..seam], &second[seam..]].concat();
    let dir = copy(template.path());
    fs::write(dir.path().join(path.file_name().unwrap()), spliced).unwrap();
    let log = open_small(dir.path());
    assert_eq!(log.range().head, Sequence(2));
    assert_eq!(quarantined(dir.path()).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_behind_the_log_that_is_no_part_of_it_is_taken_out() {
    let template = template().await;
    let other = without_manifest(&[0..1, 1..2]).await;
    let paths = segment_paths(template.path());
    let next = segments::ordinals(template.path()).unwrap().last().unwrap() + 1;
    let old = fs::read(&paths[0]).unwrap();
    let foreign = fs::read(&segment_paths(other.path())[0]).unwrap();
    let header_only = [&old[..32], &[0; 5_000]].concat();
    let garbage = vec![7; 70_000];
    for stale in [old, foreign, header_only, garbage] {
        let dir = copy(template.path());
        let path = segments::path(dir.path(), next);
        fs::write(&path, &stale).unwrap();
        let (log, text) = said(|| open_at(dir.path()).unwrap());
        assert_eq!(log.range().head, Sequence(HEAD));
        assert!(text.contains("was taken out of the log"), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        let [(_, kept)] = &read_quarantined(dir.path())[..] else {
            panic!("one file");
        };
        assert_eq!(*kept, stale);
        drop(log);
        assert_eq!(fate(dir.path()).await, Fate::Whole);
    }
    // With events that come next it is a part of it.
    let dir = copy(template.path());
    let last = &paths[paths.len() - 1];
    fs::remove_file(dir.path().join(MANIFEST_FILE)).unwrap();
    let wrong = segments::path(dir.path(), next);
    fs::rename(dir.path().join(last.file_name().unwrap()), &wrong).unwrap();
    assert_eq!(fate(dir.path()).await, Fate::Whole);
    assert!(wrong.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_could_not_be_taken_out_for_want_of_room_keeps_its_name() {
    let dir = template().await;
    let ordinals = segments::ordinals(dir.path()).unwrap();
    let path = segments::path(dir.path(), ordinals.last().unwrap() + 1);
    let garbage = vec![7; 70_000];
    fs::write(&path, &garbage).unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let seams = Seams {
        fault: failing_disk(Stage::Quarantine, &full, testing::no_space).fault,
        ..seams(START)
    };
    let log = open_with_seams(dir.path(), options(Duration::MAX), seams).unwrap();
    let mut next = HEAD;
    for _ in 0..3 {
        log.append(batch(next..next + BATCH_EVENTS)).await.unwrap();
        next += BATCH_EVENTS;
    }
    log.close().await;
    drop(log);
    assert_eq!(fs::read(&path).unwrap(), garbage);
    assert!(quarantined(dir.path()).is_empty());
    // The next start takes it out, and everything is there.
    let log = open_at(dir.path()).unwrap();
    assert_eq!(log.range().head, Sequence(next));
    assert_eq!(read_all(&log).await, []);
    assert!(!path.exists());
    let [(_, kept)] = &read_quarantined(dir.path())[..] else {
        panic!("one file");
    };
    assert_eq!(*kept, garbage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_stays_known_whatever_is_appended_and_verified() {
    let dir = template().await;
    let paths = segment_paths(dir.path());
    let frames = frames_of(&paths[1]);
    let (first, last) = (frames[0].1, frames[frames.len() - 1].1);
    fs::remove_file(&paths[1]).unwrap();
    let gap = range_of(first.first_sequence.0, last.last_sequence().0);
    // Over restarts as well.
    for run in 0..3 {
        let log = open_scrubbed(dir.path());
        assert_eq!(log.status().damaged()[..], [gap], "run {run}");
        let first = log.range().head.0;
        for n in 0..20 {
            log.append(batch(first + n..first + n + 1)).await.unwrap();
            assert_eq!(log.status().damaged()[..], [gap], "run {run}, event {n}");
        }
        waits_until(|| dir.path().join("scrub").exists()).await;
        assert_eq!(read_all(&log).await, [gap]);
        log.close().await;
        assert_eq!(log.status().damaged()[..], [gap], "run {run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_lost_or_something_else_is_made_anew() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("it is gone", |path| fs::remove_file(path).unwrap()),
        ("it is empty", |path| fs::write(path, "").unwrap()),
        ("it is something else", |path| {
            fs::write(path, "Dear diary").unwrap();
        }),
        ("it is all zeros", |path| {
            let bytes = fs::metadata(path).unwrap().len();
            zero(path, usize::try_from(bytes).unwrap());
        }),
    ];
    let template = template().await;
    let cursors: Vec<_> = {
        let dir = copy(template.path());
        let log = open_at(dir.path()).unwrap();
        let cursor = |n| log.status().epochs().cursor(Sequence(n));
        (TRIMMED + 1..=HEAD).map(cursor).collect()
    };
    for (what, damage) in damages {
        let dir = copy(template.path());
        let path = dir.path().join(MANIFEST_FILE);
        damage(&path);
        let damaged = fs::read(&path).ok();
        let inspected = inspect(dir.path());
        let is_told = matches!(inspected, Err(OpenError::DamagedManifest { .. }));
        assert!(is_told, "{what}: {inspected:?}");
        let (log, text) = said(|| open_at(dir.path()).unwrap());
        assert!(
            text.contains("it is made anew from the segments"),
            "{what}: {text}"
        );
        let kept = read_quarantined(dir.path()).pop();
        assert_eq!(kept.map(|(_, kept)| kept), damaged, "{what}");
        for cursor in &cursors {
            assert!(
                log.status().epochs().check(*cursor, Sequence(HEAD)).is_ok(),
                "{what}"
            );
        }
        drop(log);
        assert_eq!(fate(dir.path()).await, Fate::Whole, "{what}");
        inspect(dir.path()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_and_a_segment_may_be_damaged_together() {
    let template = template().await;
    let paths = segment_paths(template.path());
    // Whether the first one was removed by retention, nobody knows without a manifest.
    for path in &paths[1..] {
        let dir = copy(template.path());
        let frames = frames_of(path);
        fs::remove_file(dir.path().join(path.file_name().unwrap())).unwrap();
        flip(&dir.path().join(MANIFEST_FILE), 200);
        for _ in 0..2 {
            let log = open_at(dir.path()).unwrap();
            let damaged = log.status().damaged();
            assert_eq!(damaged.len(), 1, "{damaged:?}");
            assert_eq!(damaged[0].first, frames[0].1.first_sequence);
            assert!(damaged[0].last <= frames[frames.len() - 1].1.last_sequence());
        }
    }
}

/// A log of which nothing of a segment in the middle can be read, as on a disk that fails there; and the
/// events and the file of that segment.
pub(super) async fn with_an_unreadable_segment(dir: &Path) -> (Arc<Embedded>, Damaged, PathBuf) {
    let options = Options {
        retention_age: Duration::MAX,
        scrub_bytes_per_second: 0,
        ..Options::default()
    };
    let log = open_with_seams(dir, options, seams(START)).unwrap();
    let path = segment_paths(dir).remove(1);
    let frames = frames_of(&path);
    let (first, last) = (&frames[0].1, &frames[frames.len() - 1].1);
    let events = Damaged {
        first: first.first_sequence,
        last: last.last_sequence(),
    };
    fs::remove_file(&path).unwrap();
    // Reading where nothing is mapped fails as a bad sector does.
    std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
    (log, events, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_cannot_read_is_damaged_and_can_be_passed() {
    let template = template().await;
    let (log, events, _) = with_an_unreadable_segment(template.path()).await;
    assert_eq!(read_all(&log).await, [events]);
    assert_eq!(log.status().damaged().to_vec(), [events]);
    // All events are of the same few milliseconds.
    let place = log.seek(UnixMicros(START + 3_000)).await.unwrap();
    assert!(place <= log.range().head);
    assert_eq!(log.status().health(), Health::Ready);
    drop(log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_descriptors_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let none_left = Arc::new(AtomicBool::new(true));
    let error = || rustix::io::Errno::MFILE.into();
    let seams = failing_disk(Stage::Write, &none_left, error);
    let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
    let append = || log.append(fixtures::numbered("app_1", 0..2));
    assert_eq!(append().await, Err(Error::Overloaded));
    assert_eq!(log.status().health(), Health::Ready);
    none_left.store(false, Ordering::SeqCst);
    assert_eq!(append().await.unwrap().accepted, 2);
}

#[test]
fn a_mark_that_leads_nowhere_ends_the_reading() {
    let dir = tempfile::tempdir().unwrap();
    let log = prelude_bridge_event::LogId(1);
    fs::write(segments::path(dir.path(), 1), frame::segment_header(log, 1)).unwrap();
    let segment = segments::Segment {
        ordinal: 1,
        first_sequence: Sequence(1),
        last_sequence: Sequence(5),
        last_at: UnixMicros(0),
        end: 1_000,
        // It says that event 9 is here, in a segment that ends with event 5.
        marks: vec![segments::Mark {
            sequence: Sequence(9),
            at: UnixMicros(0),
            offset: 32,
        }],
        epochs: vec![(Sequence(1), prelude_bridge_event::Epoch(1))],
    };
    assert!(!segment.is_plausible());
    let segments = Segments::new(dir.path(), log, [segment].into());
    let read = readers::read(&segments, Sequence(5), Sequence(0), 100);
    assert!(matches!(read, Err(readers::Fault::Damaged(_))));
    assert!(readers::time_after(&segments, Sequence(5), Sequence(0)).is_err());
    assert_eq!(
        readers::seek(&segments, UnixMicros(1), false).unwrap(),
        None
    );
}
