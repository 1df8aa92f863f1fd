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
        clock, copy, cut, flip, footer_of, frames_of, manifest_of, quarantined, rewind, said,
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

/// A log of these batches, closed well, with the manifest that it began with.
async fn log_of(batches: &[std::ops::Range<u64>]) -> (tempfile::TempDir, Vec<u8>) {
    let (dir, now) = (tempfile::tempdir().unwrap(), now());
    drop(open_at(dir.path(), &now));
    let manifest = manifest_of(dir.path());
    for numbers in batches {
        // Opened anew, a log whose segment is full goes on in the next one.
        let log = open_at(dir.path(), &now);
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
        let (dir, manifest) = log_of(batches).await;
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
            assert_eq!(log.status().damaged()[..], [lost], "log {index}");
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
            assert_eq!(log.status().damaged()[..], [lost], "log {index}");
            log.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_segment_with_damaged_first_bytes_is_kept_when_the_manifest_is_lost() {
    let (template, _) = log_of(&[0..100, 100..200, 200..300]).await;
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
            let kept = quarantined(dir.path());
            assert_eq!(fs::read(&kept[0]).unwrap(), bytes);
        }
    }
}
