//! What a start makes of a log in which more than one thing is damaged: no number of an acknowledged event
//! is given to another one, and no file of the log goes without a word.

use std::{
    fs,
    sync::atomic::{AtomicI64, Ordering},
};

use super::{
    directory::MANIFEST_FILE,
    frame::{HEADER_BYTES, SEGMENT_HEADER_BYTES},
    manifest::Manifest,
    testing::{
        clock, copy, cut, flip, footer_of, frames_of, manifest_of, read_quarantined, rewind, said,
        segment_paths, waits_until,
    },
    *,
};
use crate::{Damaged, fixtures};

const START: i64 = 1_700_000_000_000_000;
const HOUR: i64 = 3_600 * 1_000_000;

/// A log of small segments that keeps events for four days, by this clock.
fn open_at(dir: &Path, now: &Arc<AtomicI64>) -> Arc<Embedded> {
    let options = Options {
        retention_age: Duration::from_secs(4 * 24 * 3_600),
        retention_bytes: 1024 * 1024,
        ..Options::default()
    };
    let seams = Seams {
        clock: clock(now),
        ..Seams::default()
    };
    open_with_seams(dir, options, seams).unwrap()
}

fn now() -> Arc<AtomicI64> {
    Arc::new(AtomicI64::new(START))
}

/// Events of such a size that `count` of them fill a segment where they are a hundred.
fn batch(numbers: std::ops::Range<u64>) -> Batch {
    let events: Vec<(String, String)> = numbers
        .map(|n| (format!("evt_{n}"), format!("usr_{n}_{}", "x".repeat(1_400))))
        .collect();
    let events: Vec<(&str, &str, &str)> = (events.iter())
        .map(|(id, user)| (id.as_str(), "user.created", user.as_str()))
        .collect();
    fixtures::batch("app_1", &events)
}

/// Damages the block of a frame, and its keys where they are to go too.
fn damage(path: &Path, frame: usize, with_keys: bool) {
    let (at, header) = frames_of(path)[frame];
    flip(
        path,
        (at + (HEADER_BYTES + header.keys_bytes()) as u64 + 20) * 8,
    );
    if with_keys {
        flip(path, (at + HEADER_BYTES as u64 + 3) * 8);
    }
}

fn events(first: u64, last: u64) -> Damaged {
    Damaged {
        first: Sequence(first),
        last: Sequence(last),
    }
}

/// A log of these batches, closed well, with the manifest that it began with. Between two batches, the
/// clock goes on by so many hours.
async fn log_of(
    batches: &[std::ops::Range<u64>],
    now: &Arc<AtomicI64>,
    hours: i64,
) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    drop(open_at(dir.path(), now));
    let manifest = manifest_of(dir.path());
    for (index, numbers) in batches.iter().enumerate() {
        if index > 0 {
            now.fetch_add(hours * HOUR, Ordering::SeqCst);
        }
        // Opened anew, a log whose segment is full goes on in the next one.
        let log = open_at(dir.path(), now);
        log.append(batch(numbers.clone())).await.unwrap();
        log.close().await;
    }
    (dir, manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_a_damaged_commit_that_a_torn_one_shows_are_not_given_again() {
    // In one segment; as the first commit of the second one; and as the first of all.
    let logs: [&[std::ops::Range<u64>]; 3] = [
        &[0..2, 2..5, 5..9],
        &[0..100, 100..103, 103..107],
        &[0..3, 3..7],
    ];
    for (index, batches) in logs.into_iter().enumerate() {
        let (dir, manifest) = log_of(batches, &now(), 0).await;
        let paths = segment_paths(dir.path());
        assert_eq!(paths.len(), if index == 1 { 2 } else { 1 });
        rewind(dir.path(), &manifest);
        let path = paths.last().unwrap();
        let count = frames_of(path).len();
        damage(path, count - 2, false);
        damage(path, count - 1, false);
        let [.., shown, torn] = batches else {
            panic!("two batches");
        };
        let lost = events(shown.start + 1, shown.end);
        for _ in 0..2 {
            let log = open_at(dir.path(), &now());
            assert_eq!(log.range().head, lost.last, "log {index}");
            let read = log.read(lost.first.before(), 1).await.err();
            assert_eq!(read, Some(ReadError::Damaged(lost)), "log {index}");
            drop(log);
        }
        for again in 0..2 {
            let log = open_at(dir.path(), &now());
            let appended = log.append(batch(torn.clone())).await.unwrap();
            assert_eq!(appended.duplicates == 0, again == 0);
            assert_eq!(log.range().head, Sequence(torn.end), "log {index}");
            let blocks = log.read(lost.last, usize::MAX).await.unwrap();
            let first = (torn.start + 1, format!("evt_{}", torn.start));
            assert_eq!(fixtures::events(&blocks)[0], first);
            let read = log.read(lost.first.before(), 1).await.err();
            assert_eq!(read, Some(ReadError::Damaged(lost)), "log {index}");
            log.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_segment_with_damaged_first_bytes_is_kept_when_the_manifest_is_lost() {
    let (template, _) = log_of(&[0..100, 100..200, 200..300], &now(), 0).await;
    let paths = segment_paths(template.path());
    assert_eq!(paths.len(), 3);
    let name = paths[0].file_name().unwrap();
    let footer = footer_of(&paths[0]).unwrap();
    let has_second_frame = frames_of(&paths[0]).len() > 1;
    for is_sealed in [true, false] {
        let dir = copy(template.path());
        let path = dir.path().join(name);
        if !is_sealed {
            cut(&path, footer.start);
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes[..SEGMENT_HEADER_BYTES as usize + HEADER_BYTES].fill(0);
        fs::write(&path, &bytes).unwrap();
        fs::remove_file(dir.path().join(MANIFEST_FILE)).unwrap();
        let (log, text) = said(|| open_at(dir.path(), &now()));
        assert_eq!(log.range().head, Sequence(300));
        if is_sealed || has_second_frame {
            assert_eq!(log.range().earliest, Sequence(1), "{text}");
            assert_eq!(log.status().damaged()[0].first, Sequence(1));
            assert!(path.exists());
        } else {
            // Nothing tells what it is: it is kept aside.
            assert!(text.contains("was taken out of the log"), "{text}");
            let kept = read_quarantined(dir.path());
            assert_eq!(kept[0].1, bytes);
        }
    }
}

/// Opens a log with which its manifest agrees, and closes it.
async fn reopen(dir: &Path, now: &Arc<AtomicI64>) -> Arc<Embedded> {
    let (log, text) = said(|| open_at(dir, now));
    assert!(!text.contains("manifest"), "{text}");
    log.close().await;
    log
}

/// The first so many events, of which a batch is the only one.
const fn one(count: u64) -> std::ops::Range<u64> {
    0..count
}

fn first_ordinal(dir: &Path) -> u64 {
    Manifest::read(dir).unwrap().unwrap().first_ordinal
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_which_nothing_can_be_read_stays_as_long_as_its_events_and_no_longer() {
    for with_header in [true, false] {
        let now = now();
        let (dir, _) = log_of(&[one(3)], &now, 0).await;
        let path = segment_paths(dir.path()).remove(0);
        let ordinal = first_ordinal(dir.path());
        if with_header {
            damage(&path, 0, false);
            // Of what was confirmed a header is enough.
            let log = reopen(dir.path(), &now).await;
            assert_eq!(log.range().head, Sequence(3));
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes[SEGMENT_HEADER_BYTES as usize..][..HEADER_BYTES].fill(7);
        fs::write(&path, &bytes).unwrap();
        for _ in 0..3 {
            let log = reopen(dir.path(), &now).await;
            assert_eq!(log.status().damaged()[..], [events(1, 3)]);
            assert_eq!(
                (log.range().head, first_ordinal(dir.path())),
                (Sequence(3), ordinal)
            );
            assert!(fs::read(&path).unwrap().starts_with(&bytes));
        }
        let log = open_at(dir.path(), &now);
        now.fetch_add(5 * 24 * HOUR, Ordering::SeqCst);
        waits_until(|| !path.exists()).await;
        assert_eq!(log.range().event_count(), 0);
        assert!(first_ordinal(dir.path()) > ordinal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_which_nothing_can_be_read_stays_when_the_segment_before_it_goes() {
    for is_there in [true, false] {
        let now = now();
        let (dir, _) = log_of(&[0..100, 100..200, 200..300], &now, 10).await;
        let paths = segment_paths(dir.path());
        let second = first_ordinal(dir.path()) + 1;
        let held = fs::read(&paths[1]).unwrap();
        if is_there {
            let mut bytes = held.clone();
            bytes[SEGMENT_HEADER_BYTES as usize..].fill(7);
            fs::write(&paths[1], bytes).unwrap();
        } else {
            fs::remove_file(&paths[1]).unwrap();
        }
        let log = open_at(dir.path(), &now);
        assert_eq!(log.status().damaged()[..], [events(101, 200)]);
        // Of four days and ten hours are the second ones, and events go at most four hours late.
        now.store(START + (96 + 5) * HOUR, Ordering::SeqCst);
        waits_until(|| !paths[0].exists()).await;
        log.close().await;
        drop(log);
        assert_eq!(first_ordinal(dir.path()), second);
        let log = reopen(dir.path(), &now).await;
        assert_eq!(log.range().earliest, Sequence(101));
        assert_eq!(
            (paths[1].exists(), first_ordinal(dir.path())),
            (is_there, second)
        );
        drop(log);
        if !is_there {
            // It was restored from a backup.
            fs::write(&paths[1], held).unwrap();
            let log = reopen(dir.path(), &now).await;
            assert_eq!(log.status().damaged()[..], []);
            drop(log);
        }
        let log = open_at(dir.path(), &now);
        now.fetch_add(10 * HOUR, Ordering::SeqCst);
        waits_until(|| !paths[1].exists()).await;
        waits_until(|| log.range().earliest == Sequence(201)).await;
        assert!(paths[2].exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_whose_last_keys_are_damaged_goes_when_its_events_do() {
    let logs: [&[std::ops::Range<u64>]; 2] = [&[one(3)], &[one(3), 3..5]];
    for batches in logs {
        let now = now();
        let (dir, _) = log_of(batches, &now, 0).await;
        let path = segment_paths(dir.path()).remove(0);
        damage(&path, batches.len() - 1, true);
        let log = open_at(dir.path(), &now);
        let head = log.range().head;
        now.fetch_add(5 * 24 * HOUR, Ordering::SeqCst);
        waits_until(|| !path.exists()).await;
        log.close().await;
        drop(log);
        // A file of ids without a key is one.
        let (log, text) = said(|| open_at(dir.path(), &now));
        assert_eq!(text, "");
        assert_eq!(log.range().head, head);
        let appended = log.append(batch(0..5)).await.unwrap();
        assert_eq!(appended.duplicates, 3 * (batches.len() - 1));
    }
}

#[test]
fn a_log_of_which_only_an_empty_segment_is_left_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_at(dir.path(), &now()));
    let mut manifest = Manifest::read(dir.path()).unwrap().unwrap();
    (manifest.confirmed, manifest.trimmed) = (Sequence(9), Sequence(9));
    manifest.write(dir.path()).unwrap();
    assert_eq!(open_at(dir.path(), &now()).range().head, Sequence(9));
    manifest.trimmed = Sequence(5);
    manifest.write(dir.path()).unwrap();
    fs::write(segments::path(dir.path(), 7), [0; 1_000]).unwrap();
    let opened = open(dir.path(), Options::default());
    assert!(matches!(opened, Err(OpenError::Damaged { .. })));
}
