//! What only the log on disk promises: reopening, failures of the disk, bounds, and `kill -9`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};

use super::{
    directory::{IDS_DIRECTORY, MANIFEST_FILE},
    disk_error::NO_SPACE_MEMORY,
    frame::{Header, SEGMENT_HEADER_BYTES},
    testing::{
        PATIENCE, clock, copy, cut, failing_disk, flip, footer_of, frames_of, last_segment,
        manifest_of, no_space, rewind, said, segment_paths, small_ids, waits_until,
    },
    *,
};
use crate::{Damaged, fixtures};
use prelude_bridge_event::Epoch;

const ALL: usize = usize::MAX;

fn open_default(path: &Path) -> Arc<Embedded> {
    open(path, Options::default()).unwrap()
}

fn open_error(path: &Path) -> OpenError {
    match open(path, Options::default()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

async fn append(log: &Embedded, numbers: std::ops::Range<u64>) -> Result<Appended, Error> {
    log.append(fixtures::numbered("app_1", numbers)).await
}

async fn events(log: &Embedded) -> Vec<(u64, String)> {
    let after = log.range().earliest.before();
    fixtures::events(&log.read(after, ALL).await.unwrap())
}

fn in_order(numbers: std::ops::Range<u64>) -> Vec<(u64, String)> {
    (1..).zip(numbers.map(|n| format!("evt_{n}"))).collect()
}

/// Changes a byte of a file.
fn damage(path: &Path, offset: u64) {
    flip(path, offset * 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reopened_log_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_default(dir.path());
    append(&log, 0..5).await.unwrap();
    let range = log.range();
    drop(log);
    let log = open_default(dir.path());
    assert_eq!(log.range(), range);
    let appended = append(&log, 3..8).await.unwrap();
    assert_eq!((appended.accepted, appended.duplicates), (3, 2));
    assert_eq!(events(&log).await, in_order(0..8));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_opening_is_an_epoch_and_those_without_events_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let first = open_default(dir.path());
    append(&first, 0..2).await.unwrap();
    let cursors = [1, 2].map(|n| first.status().epochs().cursor(Sequence(n)));
    let would_be_third = first.status().epochs().cursor(Sequence(3));
    drop(first);
    for _ in 0..3 {
        drop(open_default(dir.path()));
    }
    let last = open_default(dir.path());
    append(&last, 2..3).await.unwrap();
    for cursor in cursors {
        assert!(last.status().epochs().check(cursor, Sequence(3)).is_ok());
    }
    assert!(
        last.status()
            .epochs()
            .check(would_be_third, Sequence(3))
            .is_err()
    );
    drop(last);
    assert_eq!(inspect(dir.path()).unwrap().unwrap().epochs, 2);
}

/// A log by this clock that keeps events for ten seconds.
fn open_briefly_kept(path: &Path, now: &Arc<AtomicI64>) -> Arc<Embedded> {
    let options = Options {
        retention_age: Duration::from_secs(10),
        ..Options::default()
    };
    let seams = Seams {
        clock: clock(now),
        ..Seams::default()
    };
    open_with_seams(path, options, seams).unwrap()
}

/// Appends the first three events, waits until they are removed, and closes the log.
async fn expire_three_events(log: Arc<Embedded>, now: &AtomicI64) {
    append(&log, 0..3).await.unwrap();
    now.fetch_add(100_000_000, Ordering::SeqCst);
    waits_until(|| log.range().event_count() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_expired_whole_keeps_its_place_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let open_log = || open_briefly_kept(dir.path(), &now);
    expire_three_events(open_log(), &now).await;
    // Not even with a clock that went back does time go back.
    now.fetch_sub(1_000_000_000, Ordering::SeqCst);
    let log = open_log();
    assert_eq!(log.range().earliest, Sequence(4));
    append(&log, 3..4).await.unwrap();
    assert_eq!(log.range().head, Sequence(4));
    assert!(log.range().head_at >= Some(UnixMicros(1_700_000_000_000_000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_expired_whole_gives_no_number_twice_without_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let open_log = || open_briefly_kept(dir.path(), &now);
    let log = open_log();
    append(&log, 0..3).await.unwrap();
    drop(log);
    for (next, is_removed) in [(3, false), (4, true)] {
        if is_removed {
            let log = open_log();
            waits_until(|| segment_paths(dir.path()).is_empty()).await;
            log.close().await;
        }
        fs::remove_file(dir.path().join(MANIFEST_FILE)).unwrap();
        let log = open_log();
        let back = if is_removed { 0..0 } else { 0..3 };
        assert_eq!(events(&log).await, in_order(back));
        append(&log, next..next + 1).await.unwrap();
        assert_eq!(log.range().head, Sequence(next + 1));
        now.fetch_add(100_000_000, Ordering::SeqCst);
        waits_until(|| log.range().event_count() == 0).await;
        assert_eq!(append(&log, 0..next + 1).await.unwrap().accepted, 0);
    }
}

#[test]
fn a_second_process_is_told_that_the_directory_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_default(dir.path());
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::InUse { .. }));
    assert!(error.to_string().contains("another prelude-bridge uses"));
    drop(log);
    drop(open_default(dir.path()));
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn directory_and_files_are_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("new").join("data");
    let log = open_default(&data_dir);
    append(&log, 0..1).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data_dir), 0o700);
    let files: Vec<_> = fs::read_dir(&data_dir).unwrap().collect();
    assert!(files.len() >= 3);
    for file in files {
        let path = file.unwrap().path();
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
}

#[test]
fn what_is_no_log_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join(MANIFEST_FILE);
    for text in ["", "Dear diary", &"This is no manifest.".repeat(100)] {
        fs::write(&manifest, text).unwrap();
        assert!(matches!(open_error(dir.path()), OpenError::NotALog { .. }));
        assert_eq!(fs::read_to_string(&manifest).unwrap(), text);
    }
    // One of ours, without segments that it could be made anew from.
    fs::write(&manifest, b"PBMAN\0\0\x01 and no more").unwrap();
    let error = open_error(dir.path());
    assert!(error.to_string().contains("no segments"), "{error}");
}

/// The manifest of a log, as if another release had written it.
fn set_manifest_version(dir: &Path, version: u8) {
    let mut bytes = manifest_of(dir);
    bytes[7] = version;
    let content = bytes.len() - 4;
    let checksum = crc32c::crc32c(&bytes[..content]);
    bytes[content..].copy_from_slice(&checksum.to_le_bytes());
    fs::write(dir.join(MANIFEST_FILE), bytes).unwrap();
}

#[test]
fn a_log_of_a_later_release_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_default(dir.path()));
    set_manifest_version(dir.path(), 9);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Newer { found: 9, .. }));
    assert!(error.to_string().contains("upgrade prelude-bridge"));
    assert!(inspect(dir.path()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_before_the_first_release_is_refused_and_left_alone() {
    type Age = fn(&Path);
    let ages: [Age; 3] = [
        |dir| set_manifest_version(dir, 0),
        |dir| fs::write(dir.join("log.sqlite3"), "SQLite format 3").unwrap(),
        |dir| {
            fs::remove_file(dir.join(MANIFEST_FILE)).unwrap();
            let path = last_segment(dir);
            let mut bytes = fs::read(&path).unwrap();
            bytes[7] = 3;
            let checksum = crc32c::crc32c(&bytes[..24]);
            bytes[24..28].copy_from_slice(&checksum.to_le_bytes());
            fs::write(&path, bytes).unwrap();
        },
    ];
    for age in ages {
        let dir = tempfile::tempdir().unwrap();
        write_three_blocks(dir.path()).await;
        let segment = last_segment(dir.path());
        age(dir.path());
        let before = fs::read(&segment).unwrap();
        for error in [open_error(dir.path()), inspect(dir.path()).unwrap_err()] {
            assert!(matches!(error, OpenError::Older { .. }), "{error}");
            assert!(error.to_string().contains("--data-dir"));
        }
        assert_eq!(fs::read(&segment).unwrap(), before);
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open_error(&file.join("data"));
    assert!(matches!(error, OpenError::Directory { .. }));
    assert!(error.to_string().contains("data directory"));
}

fn range_of(first: u64, last: u64) -> Damaged {
    Damaged {
        first: Sequence(first),
        last: Sequence(last),
    }
}

/// The events that can be read, and the damaged ranges that a reader is told of on the way.
async fn events_and_damage(log: &Embedded) -> (Vec<u64>, Vec<Damaged>) {
    let (mut events, mut damage) = (Vec::new(), Vec::new());
    let mut after = log.range().earliest.before();
    while after < log.range().head {
        match log.read(after, ALL).await {
            Ok(blocks) => {
                events.extend(fixtures::events(&blocks).into_iter().map(|(n, _)| n));
                after = blocks.last().unwrap().last_sequence();
            }
            Err(ReadError::Damaged(range)) => {
                assert_eq!(range.first, after.plus(1));
                damage.push(range);
                after = range.last;
            }
            Err(error) => panic!("{error}"),
        }
    }
    (events, damage)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_end_is_known_at_the_start_and_its_numbers_are_not_given_again() {
    type Damage = fn(&Path, &[(u64, Header)]);
    let damages: [(&str, u64, Damage); 5] = [
        ("the last block", 5, |path, frames| {
            damage(path, frames[2].0 + 200);
        }),
        ("the last header", 5, |path, frames| {
            damage(path, frames[2].0 + 20);
        }),
        ("the first header", 1, |path, frames| {
            damage(path, frames[0].0 + 20);
        }),
        ("a segment that is cut", 5, |path, frames| {
            cut(path, frames[2].0);
        }),
        ("a segment that is cut in a block", 5, |path, frames| {
            cut(path, frames[2].0 + 200);
        }),
    ];
    for (what, first, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        write_three_blocks(dir.path()).await;
        let path = last_segment(dir.path());
        damage(&path, &frames_of(&path));
        let damaged = fs::read(&path).unwrap();
        let expected = [range_of(first, first + 1)];
        assert_eq!(inspect(dir.path()).unwrap().unwrap().damaged, expected);
        for restart in 0..3 {
            let log = open_default(dir.path());
            // In the middle of the log it was found before.
            waits_until(|| log.status().damaged()[..] == expected).await;
            let head = 6 + 2 * restart;
            assert_eq!(log.range().head, Sequence(head), "{what}, {restart}");
            let is_whole = |&n: &u64| !(first..=first + 1).contains(&n);
            let whole: Vec<u64> = (1..=head).filter(is_whole).collect();
            assert_eq!(events_and_damage(&log).await, (whole, expected.to_vec()));
            let number = 1_000 * (restart + 1);
            append(&log, number..number + 2).await.unwrap();
            assert_eq!(log.range().head, Sequence(head + 2));
            assert_eq!(log.status().health(), Health::Ready);
        }
        let now = fs::read(&path).unwrap();
        let end = damaged.iter().rposition(|&byte| byte != 0).unwrap();
        assert_eq!(now[..end], damaged[..end], "{what}: nothing is cut");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_is_named_and_never_skipped() {
    let dir = tempfile::tempdir().unwrap();
    write_three_blocks(dir.path()).await;
    let path = last_segment(dir.path());
    damage(&path, frames_of(&path)[1].0 + 200);
    let log = open_default(dir.path());
    assert_eq!(log.status().damaged()[..], []);
    let before = log.read(Sequence(0), ALL).await.unwrap();
    assert_eq!(fixtures::events(&before).len(), 2);
    for after in [2, 3] {
        let read = log.read(Sequence(after), ALL).await;
        assert_eq!(read.err(), Some(ReadError::Damaged(range_of(3, 4))));
    }
    assert_eq!(log.status().damaged()[..], [range_of(3, 4)]);
    let rest = log.read(Sequence(4), ALL).await.unwrap();
    assert_eq!(fixtures::events(&rest).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_missing_segment_are_damaged_and_all_others_are_served() {
    let template = tempfile::tempdir().unwrap();
    write_segments(template.path(), 4).await;
    let paths = segment_paths(template.path());
    let counts: Vec<(u64, u64)> = (paths.iter())
        .map(|path| {
            let frames = frames_of(path);
            let (first, last) = (frames[0].1, frames[frames.len() - 1].1);
            (first.first_sequence.0, last.last_sequence().0)
        })
        .collect();
    for (path, (first, last)) in paths.iter().zip(counts) {
        let dir = copy(template.path());
        fs::remove_file(dir.path().join(path.file_name().unwrap())).unwrap();
        let expected = vec![range_of(first, last)];
        for _ in 0..2 {
            let (log, text) = said(|| open_default(dir.path()));
            assert_eq!(log.status().damaged()[..], expected);
            let is_whole = |&n: &u64| !(first..=last).contains(&n);
            let whole: Vec<u64> = (1..=400).filter(is_whole).collect();
            assert_eq!(events_and_damage(&log).await, (whole, expected.clone()));
            assert!(text.contains("is_missing=true"), "{text}");
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(text.contains(&format!("{name} ")), "{name} in {text}");
        }
        let log = open_default(dir.path());
        append(&log, 1_000..1_001).await.unwrap();
        assert_eq!(log.range().head, Sequence(401));
        drop(log);
        // The file is restored.
        fs::copy(path, dir.path().join(path.file_name().unwrap())).unwrap();
        let (log, text) = said(|| open_default(dir.path()));
        assert_eq!(text, "");
        let expected = ((1..=401).collect(), Vec::new());
        assert_eq!(events_and_damage(&log).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_which_nothing_is_left_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_segments(dir.path(), 2).await;
    for path in segment_paths(dir.path()) {
        fs::remove_file(path).unwrap();
    }
    for ordinal in segments::ordinals(dir.path()).unwrap() {
        fs::remove_file(segments::path(dir.path(), ordinal)).unwrap();
    }
    let error = open_error(dir.path()).to_string();
    assert!(error.contains("all segments are missing"), "{error}");
}

/// So many segments of small size, closed well: a hundred events in each.
async fn write_segments(path: &Path, count: u64) {
    write_segments_at(path, count, small_segments(), clock::system_clock(), || ()).await;
}

/// The same by a clock, and with something after each of them.
async fn write_segments_at(
    path: &Path,
    count: u64,
    options: Options,
    clock: Clock,
    after_each: impl Fn(),
) {
    let seams = Seams {
        clock,
        ..Seams::default()
    };
    let log = open_with_seams(path, options, seams).unwrap();
    for n in 0..count {
        let events: Vec<(String, String)> = (n * 100..n * 100 + 100)
            .map(|n| (format!("evt_{n}"), format!("usr_{n}_{}", "x".repeat(500))))
            .collect();
        let events: Vec<(&str, &str, &str)> = (events.iter())
            .map(|(id, user)| (id.as_str(), "user.created", user.as_str()))
            .collect();
        log.append(fixtures::batch("app_1", &events)).await.unwrap();
        // The next one is to be ready, so that there is one for each batch.
        waits_until(|| {
            let ordinals = segments::ordinals(path).unwrap();
            ordinals.last().is_some_and(|&last| last >= n + 2)
        })
        .await;
        after_each();
    }
    log.close().await;
}

/// Segments of 64 KiB.
fn small_segments() -> Options {
    Options {
        retention_bytes: 1024 * 1024,
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_passes_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    // One each hundred seconds.
    let pass = || {
        now.fetch_add(100_000_000, Ordering::SeqCst);
    };
    let options = Options {
        retention_age: Duration::from_secs(450),
        ..small_segments()
    };
    write_segments_at(dir.path(), 4, options, clock(&now), pass).await;
    damage(&segments::path(dir.path(), 2), SEGMENT_HEADER_BYTES + 20);
    // Everything before the second one is too old now, and then everything before the third.
    let options = Options {
        retention_age: Duration::from_secs(350),
        ..small_segments()
    };
    let seams = Seams {
        clock: clock(&now),
        ..Seams::default()
    };
    let log = open_with_seams(dir.path(), options, seams).unwrap();
    waits_until(|| log.range().earliest == Sequence(101)).await;
    let read = log.read(Sequence(100), ALL).await;
    assert!(matches!(read, Err(ReadError::Damaged(_))), "{read:?}");
    assert_eq!(log.status().damaged().len(), 1);
    pass();
    waits_until(|| log.range().earliest == Sequence(201)).await;
    assert_eq!(log.status().damaged().len(), 0, "it was removed");
    assert_eq!(log.status().health(), Health::Ready);
    let rest = log.read(Sequence(200), ALL).await.unwrap();
    assert_eq!(fixtures::events(&rest).len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_commit_at_the_end_is_passed_over_and_what_was_acknowledged_is_kept() {
    // One block, and so many that they need the next segment.
    for end in [6, 10_004] {
        let dir = tempfile::tempdir().unwrap();
        let log = open_default(dir.path());
        append(&log, 0..2).await.unwrap();
        drop(log);
        let manifest = manifest_of(dir.path());
        let log = open_default(dir.path());
        append(&log, 2..4).await.unwrap();
        append(&log, 4..end).await.unwrap();
        drop(log);
        let path = last_segment(dir.path());
        let whole = fs::read(&path).unwrap();
        let mut frames = frames_of(&path);
        frames.retain(|(_, header)| header.first_sequence > Sequence(4));
        let tears = frames
            .iter()
            .flat_map(|&(at, header)| [at + 1, at + 30, at + 60, at + header.frame_bytes() - 12]);
        for (tear, cut) in tears.flat_map(|tear| [(tear, false), (tear, true)]) {
            let mut torn = whole.clone();
            if cut {
                torn.truncate(usize::try_from(tear).unwrap());
            } else {
                torn[usize::try_from(tear).unwrap()] ^= 0xff;
            }
            for ordinal in segments::ordinals(dir.path()).unwrap() {
                if segments::path(dir.path(), ordinal) > path {
                    fs::remove_file(segments::path(dir.path(), ordinal)).unwrap();
                }
            }
            fs::write(&path, &torn).unwrap();
            rewind(dir.path(), &manifest);
            let looked = inspect(dir.path()).unwrap().unwrap();
            assert_eq!(
                looked.range.head,
                Sequence(4),
                "torn at {tear} of {frames:?}"
            );
            let log = open_default(dir.path());
            assert_eq!(events(&log).await, in_order(0..4));
            assert_eq!(append(&log, 0..4).await.unwrap().duplicates, 4);
            // What was torn comes again, and then something else.
            let again = append(&log, 4..end).await.unwrap();
            assert_eq!(again.accepted as u64, end - 4);
            append(&log, end..end + 2).await.unwrap();
            drop(log);
            let log = open_default(dir.path());
            assert_eq!(events(&log).await, in_order(0..end + 2));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_damaged_and_not_torn_if_another_one_follows() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_default(dir.path()));
    let manifest = manifest_of(dir.path());
    write_three_blocks(dir.path()).await;
    let path = last_segment(dir.path());
    let whole = fs::read(&path).unwrap();
    let frames = frames_of(&path);
    for (frame, byte) in [(1, 3), (1, 20), (1, 200)] {
        damage(&path, frames[frame].0 + byte);
        rewind(dir.path(), &manifest);
        let log = open_default(dir.path());
        assert_eq!(log.status().damaged()[..], [range_of(3, 4)]);
        let expected = (vec![1, 2, 5, 6], vec![range_of(3, 4)]);
        assert_eq!(events_and_damage(&log).await, expected);
        drop(log);
        fs::write(&path, &whole).unwrap();
    }
    rewind(dir.path(), &manifest);
    assert_eq!(events(&open_default(dir.path())).await, in_order(0..6));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_segments_and_lost_its_end_gets_it_again_from_them() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), small_segments()).unwrap());
    let first = manifest_of(dir.path());
    write_segments(dir.path(), 4).await;
    let full = manifest_of(dir.path());
    for (manifest, is_sealed, restarts) in [
        (&first, false, 1),
        (&first, true, 3),
        (&full, false, 2),
        (&full, true, 2),
    ] {
        if is_sealed {
            fs::write(dir.path().join(MANIFEST_FILE), manifest).unwrap();
        } else {
            rewind(dir.path(), manifest);
        }
        for _ in 0..restarts {
            let log = open(dir.path(), small_segments()).unwrap();
            assert_eq!(log.range().head, Sequence(400));
            assert_eq!(events(&log).await, in_order(0..400));
            assert_eq!(append(&log, 0..400).await.unwrap().duplicates, 400);
            let middle = fixtures::events(&log.read(Sequence(250), 1).await.unwrap());
            assert_eq!(middle[0].0, 201);
            log.close().await;
            drop(log);
            // A start gives the segments their footers again, except for the last one.
            let paths = segment_paths(dir.path());
            let footers = paths.iter().map(|path| footer_of(path).is_some());
            assert!(footers.eq([true, true, true, false]));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_last_segment_is_noticed_also_without_the_manifest() {
    let template = tempfile::tempdir().unwrap();
    write_segments(template.path(), 3).await;
    fs::remove_file(last_segment(template.path())).unwrap();
    // Without the manifest, nothing says how many events were in it; but there was one.
    for (has_manifest, last) in [(true, 300), (false, 201)] {
        let dir = copy(template.path());
        if !has_manifest {
            fs::remove_file(dir.path().join(MANIFEST_FILE)).unwrap();
        }
        for _ in 0..2 {
            let log = open_default(dir.path());
            assert_eq!(log.status().damaged()[..], [range_of(201, last)]);
            assert_eq!(log.range().head, Sequence(last));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_only_the_manifest_knows_of_are_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_default(dir.path());
    append(&log, 0..2).await.unwrap();
    drop(log);
    let path = last_segment(dir.path());
    let earlier = fs::read(&path).unwrap();
    let log = open_default(dir.path());
    append(&log, 2..4).await.unwrap();
    drop(log);
    // A backup of the segments that is older than that of the manifest.
    fs::write(&path, earlier).unwrap();
    let log = open_default(dir.path());
    assert_eq!(log.status().damaged()[..], [range_of(3, 4)]);
    append(&log, 4..6).await.unwrap();
    drop(log);
    let log = open_default(dir.path());
    let expected = (vec![1, 2, 5, 6], vec![range_of(3, 4)]);
    assert_eq!(events_and_damage(&log).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_another_log_is_refused() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for dir in &dirs {
        write_three_blocks(dir.path()).await;
    }
    fs::copy(last_segment(dirs[0].path()), last_segment(dirs[1].path())).unwrap();
    let error = open_error(dirs[1].path());
    assert!(error.to_string().contains("of another log"), "{error}");
}

async fn write_three_blocks(path: &Path) {
    let log = open_default(path);
    for n in 0..3 {
        append(&log, n * 2..n * 2 + 2).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_flush_ends_the_log_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    let seams = {
        let broken = Arc::clone(&broken);
        Seams {
            fault: Arc::new(move |stage| {
                if stage == Stage::Flush && broken.swap(false, Ordering::SeqCst) {
                    return Err(io::Error::from(io::ErrorKind::StorageFull));
                }
                Ok(())
            }),
            ..Seams::default()
        }
    };
    let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
    append(&log, 0..2).await.unwrap();
    broken.store(true, Ordering::SeqCst);
    let failed = append(&log, 2..4).await.unwrap_err();
    assert!(matches!(failed, Error::Failed(_)));
    // The disk would work again, but what was flushed is unknown.
    assert_eq!(append(&log, 4..6).await, Err(failed.clone()));
    assert_eq!(log.status().health().refusal(), Some(failed));
    assert_eq!(log.range().head, Sequence(2));
    assert_eq!(events(&log).await, in_order(0..2), "it can still be read");
    log.close().await;
    drop(log);
    // What was refused may be there all the same; then it is made durable before anything else.
    let log = open_default(dir.path());
    assert_eq!(append(&log, 0..6).await.unwrap().accepted, 2);
    assert_eq!(events(&log).await, in_order(0..6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_panics_leaves_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_default(dir.path());
    let follower = |_: &Arc<Block>| panic!("a bug");
    log.follow(Sequence::ZERO, Arc::new(follower)).unwrap();
    assert!(append(&log, 0..1).await.is_err());
    let health = log.status().health_where(Health::is_final).await;
    assert!(matches!(health, Health::Failed { .. }));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let seams = failing_disk(Stage::Write, &full, no_space);
    let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
    append(&log, 0..10).await.unwrap();
    full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(append(&log, 10..3_000).await, Err(Error::NoSpace));
    }
    let known = append(&log, 0..10).await.unwrap();
    assert_eq!(known.duplicates, 10, "what is known needs no room");
    assert_eq!(log.status().health(), Health::Full);
    assert_eq!(log.range().head, Sequence(10));
    full.store(false, Ordering::SeqCst);
    let appended = append(&log, 0..3_000).await.unwrap();
    assert_eq!((appended.accepted, appended.duplicates), (2_990, 10));
    assert_eq!(log.status().health(), Health::Ready);
    assert_eq!(events(&log).await, in_order(0..3_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_tried_again_after_a_while_without_appends() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let seams = failing_disk(Stage::Write, &full, no_space);
    let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
    assert_eq!(append(&log, 0..10).await, Err(Error::NoSpace));
    assert_eq!(log.status().health(), Health::Full);
    *log.shared.no_space_at() = Instant::now().checked_sub(NO_SPACE_MEMORY);
    let ready = log.status().health_where(|health| *health == Health::Ready);
    let waited = tokio::time::timeout(PATIENCE, ready).await;
    assert_eq!(waited, Ok(Health::Ready));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_without_room_on_the_disk_take_only_so_much_memory() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let seams = Seams {
        ids_limits: Some(small_ids(20_000)),
        ..failing_disk(Stage::Ids, &full, no_space)
    };
    let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
    let mut taken = 0;
    while let Ok(appended) = append(&log, taken..taken + 8_000).await {
        assert_eq!(appended.accepted, 8_000);
        taken += 8_000;
        assert!(taken < 60_000, "it stops at some time");
    }
    assert!(taken > 40_000, "{taken}");
    assert_eq!(append(&log, taken..taken + 1).await, Err(Error::NoSpace));
    assert_eq!(append(&log, 0..taken).await.unwrap().accepted, 0);
    full.store(false, Ordering::SeqCst);
    assert_eq!(append(&log, 0..taken + 2).await.unwrap().accepted, 2);
    full.store(true, Ordering::SeqCst);
    append(&log, taken + 2..taken + 4).await.unwrap();
    drop(log);
    let log = open_default(dir.path());
    assert_eq!(append(&log, 0..taken + 5).await.unwrap().accepted, 1);
    assert_eq!(events(&log).await, in_order(0..taken + 5));
}

/// Counts the steps of the ids' work too.
fn counting_ids(seams: Seams, steps: &Arc<AtomicU64>) -> Seams {
    let (fault, steps) = (seams.fault, Arc::clone(steps));
    Seams {
        fault: Arc::new(move |stage| {
            steps.fetch_add(u64::from(stage == Stage::Ids), Ordering::SeqCst);
            fault(stage)
        }),
        ..Seams::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_room_for_ids_takes_only_so_much_memory_and_reads_the_rest_later() {
    const EVENTS: u64 = 10_000;
    for comes_a_batch in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let with_small_ids = |seams| Seams {
            ids_limits: Some(small_ids(1_000)),
            ..seams
        };
        let open = |seams| open_with_seams(dir.path(), Options::default(), with_small_ids(seams));
        let log = open(Seams::default()).unwrap();
        for n in 0..20 {
            append(&log, n * 500..n * 500 + 500).await.unwrap();
        }
        log.close().await;
        drop(log);
        fs::remove_dir_all(dir.path().join(IDS_DIRECTORY)).unwrap();
        let full = Arc::new(AtomicBool::new(true));
        let attempts = Arc::new(AtomicU64::new(0));
        let seams = counting_ids(failing_disk(Stage::Ids, &full, no_space), &attempts);
        let (log, text) = said(|| open(seams).unwrap());
        assert!(text.contains("no room for the ids"), "{text}");
        let missing = || log.usage().ids.unwrap().forgotten;
        // Two full sets, and a commit on top of each.
        assert!(missing() >= EVENTS - 3_000, "{}", missing());
        assert_eq!(log.status().health(), Health::Full);
        assert_eq!(events(&log).await, in_order(0..EVENTS));
        let keys = || -> Vec<_> {
            let batch = fixtures::numbered("app_1", 0..10);
            batch.drafts.iter().map(|draft| draft.key).collect()
        };
        assert_eq!(append(&log, 0..10).await, Err(Error::NoSpace));
        assert_eq!(log.recall(keys()).await, Err(Error::NoSpace));
        let before = attempts.load(Ordering::SeqCst);
        for _ in 0..100 {
            assert_eq!(append(&log, 0..10).await, Err(Error::NoSpace));
        }
        let tried = attempts.load(Ordering::SeqCst) - before;
        assert!(tried < 50, "{tried}: not with each batch");
        // A reserve that is made again, or the disk's room, is not enough.
        log.shared.set_no_space(false);
        assert_eq!(log.status().health(), Health::Full);
        *log.shared.no_space_at() = Instant::now().checked_sub(disk_error::NO_SPACE_MEMORY);
        log.shared.forget_no_space();
        assert_eq!(log.status().health(), Health::Full);
        assert!(missing() >= EVENTS - 3_000, "{}", missing());
        full.store(false, Ordering::SeqCst);
        if !comes_a_batch {
            waits_until(|| missing() == 0).await;
            let ready = log.status().health_where(|health| *health == Health::Ready);
            ready.await;
        }
        let appended = loop {
            match append(&log, 0..EVENTS + 1).await {
                Err(Error::NoSpace) => tokio::time::sleep(Duration::from_millis(20)).await,
                appended => break appended.unwrap(),
            }
        };
        assert_eq!(appended.accepted, 1);
        let known: Vec<_> = log
            .recall(keys())
            .await
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(known, keys());
        waits_until(|| missing() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_before_the_manifest_says_so_durably() {
    for error in [no_space, || rustix::io::Errno::MFILE.into()] {
        let dir = tempfile::tempdir().unwrap();
        let full = Arc::new(AtomicBool::new(true));
        let seams = failing_disk(Stage::Manifest, &full, error);
        let log = open_with_seams(dir.path(), small_segments(), seams).unwrap();
        let before = manifest_of(dir.path());
        let mut next = 0;
        while log.range().earliest == Sequence(1) {
            append(&log, next..next + 1_000).await.unwrap();
            next += 1_000;
        }
        // Until the writer has left a manifest, which is not written.
        waits_until(|| log.status().health() != Health::Ready || error().raw_os_error().is_some())
            .await;
        assert_eq!(segments::ordinals(dir.path()).unwrap()[0], 1);
        assert_eq!(manifest_of(dir.path()), before);
        // As after a kill.
        let killed = copy(dir.path());
        let again = open_default(killed.path());
        assert_eq!(again.range().earliest, Sequence(1));
        assert_eq!(events(&again).await, in_order(0..again.range().head.0));
        full.store(false, Ordering::SeqCst);
        waits_until(|| segments::ordinals(dir.path()).unwrap()[0] > 1).await;
        assert_ne!(manifest_of(dir.path()), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_stays_until_its_ids_are_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let seams = failing_disk(Stage::Ids, &full, no_space);
    let log = open_with_seams(dir.path(), small_segments(), seams).unwrap();
    let mut next = 0;
    while log.range().earliest == Sequence(1) {
        append(&log, next..next + 1_000).await.unwrap();
        next += 1_000;
    }
    let trimmed = || {
        manifest::Manifest::read(dir.path())
            .unwrap()
            .unwrap()
            .trimmed
    };
    waits_until(|| trimmed().plus(1) == log.range().earliest).await;
    assert_eq!(segments::ordinals(dir.path()).unwrap()[0], 1);
    for ids_are_written in [false, true] {
        if ids_are_written {
            full.store(false, Ordering::SeqCst);
            waits_until(|| segments::ordinals(dir.path()).unwrap()[0] > 1).await;
        }
        // As after a kill.
        let killed = copy(dir.path());
        let again = open_default(killed.path());
        assert!(again.range().earliest > Sequence(1));
        assert_eq!(append(&again, 0..next).await.unwrap().accepted, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_or_footer_whose_flush_failed_ends_the_log_and_loses_nothing() {
    for stage in [Stage::Manifest, Stage::Footer, Stage::Ids] {
        let dir = tempfile::tempdir().unwrap();
        let broken = Arc::new(AtomicBool::new(true));
        let seams = Seams {
            ids_limits: Some(small_ids(1_000)),
            ..failing_disk(stage, &broken, || io::Error::other("broken"))
        };
        let log = open_with_seams(dir.path(), small_segments(), seams).unwrap();
        let mut taken = 0;
        while append(&log, taken..taken + 500).await.is_ok() {
            taken += 500;
            assert!(taken < 1_000_000);
        }
        assert!(matches!(log.status().health(), Health::Failed { .. }));
        log.close().await;
        drop(log);
        let log = open(dir.path(), Options::default()).unwrap();
        let head = log.range().head.0;
        assert!(head == taken || head == taken + 500, "{head} of {taken}");
        assert_eq!(
            append(&log, 0..head).await.unwrap().accepted,
            0,
            "{stage:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (resume, resumed) = std::sync::mpsc::channel::<()>();
    let resumed = Mutex::new(resumed);
    let options = Options {
        queue_batches_max: 2,
        ..Options::default()
    };
    let seams = Seams {
        fault: Arc::new(move |stage| {
            if stage == Stage::Begin {
                let _ = resumed.lock().unwrap().recv();
            }
            Ok(())
        }),
        ..Seams::default()
    };
    let log = open_with_seams(dir.path(), options, seams).unwrap();
    let writing = append_soon(&log, 0);
    waits_until(|| log.usage().queued_batches == 0).await;
    let waiting = [append_soon(&log, 1), append_soon(&log, 2)];
    assert_eq!(append(&log, 3..4).await, Err(Error::Overloaded));
    drop(resume);
    assert_eq!(writing.await.unwrap().accepted, 1);
    for append in waiting {
        assert_eq!(append.await.unwrap().accepted, 1);
    }
    assert_eq!(append(&log, 3..4).await.unwrap().accepted, 1);
}

fn append_soon(log: &Embedded, n: u64) -> BoxFuture<'_, Result<Appended, Error>> {
    log.append(fixtures::numbered("app_1", n..n + 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_remembered_for_their_time_and_forgotten_a_day_later() {
    let dir = tempfile::tempdir().unwrap();
    let day = 24 * 3_600 * 1_000_000;
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let open_log = || {
        let seams = Seams {
            clock: clock(&now),
            ..Seams::default()
        };
        let options = Options {
            // The events go long before their ids.
            retention_age: Duration::from_secs(3_600),
            ..Options::default()
        };
        open_with_seams(dir.path(), options, seams).unwrap()
    };
    for restart in [false, true] {
        let mut log = open_log();
        let numbers = if restart { 10_000..15_000 } else { 0..5_000 };
        append(&log, numbers.clone()).await.unwrap();
        for _ in 0..3 {
            now.fetch_add(5 * day, Ordering::SeqCst);
            if restart {
                drop(log);
                log = open_log();
            }
            let again = append(&log, numbers.clone()).await.unwrap();
            assert_eq!(again.accepted, 0, "15 days");
            assert_eq!(log.has_forgotten_ids(), restart, "only of the first round");
        }
        now.fetch_add(16 * day, Ordering::SeqCst);
        let head = log.range().head.0;
        waits_until(|| forgotten_through(dir.path()) == head).await;
        waits_until(|| log.has_forgotten_ids()).await;
        assert_eq!(append(&log, numbers).await.unwrap().accepted, 5_000);
    }
}

/// Up to which event ids are forgotten, as the directory of ids says.
fn forgotten_through(path: &Path) -> u64 {
    let names = fs::read_dir(path.join(IDS_DIRECTORY)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name());
    let marks = names.filter_map(|name| name.to_str()?.strip_prefix("forgotten-")?.parse().ok());
    marks.max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_removes_to_the_event_and_its_segments_go() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let open_log = || {
        let options = Options {
            retention_age: Duration::from_secs(100),
            ..small_segments()
        };
        let seams = Seams {
            clock: clock(&now),
            ..Seams::default()
        };
        open_with_seams(dir.path(), options, seams).unwrap()
    };
    let mut log = open_log();
    // Two events each second, some hundred seconds a segment.
    let appended = 3_000;
    for n in 0..appended / 2 {
        append(&log, n * 2..n * 2 + 2).await.unwrap();
        now.fetch_add(1_000_000, Ordering::SeqCst);
        if n % 400 == 300 {
            log.close().await;
            drop(log);
            log = open_log();
        }
    }
    // The slack passes too.
    now.fetch_add(1_600_000, Ordering::SeqCst);
    waits_until(|| log.range().earliest > Sequence(appended - 200)).await;
    let range = log.range();
    assert!(range.earliest.0 <= appended - 200 + 5, "{range:?}");
    let earliest_at = range.earliest_at.unwrap().0;
    assert!(
        now.load(Ordering::SeqCst) - earliest_at <= 102_000_000,
        "{range:?}"
    );
    let (first, _) = events(&log).await[0];
    assert_eq!(first, range.earliest.0);
    waits_until(|| segments::ordinals(dir.path()).unwrap()[0] > 3).await;
    log.close().await;
    drop(log);
    let log = open_log();
    assert_eq!(log.range(), range);
    assert_eq!(append(&log, 0..appended).await.unwrap().duplicates, 3_000);
}

fn directory_bytes(path: &Path) -> u64 {
    let files = fs::read_dir(path).unwrap();
    // One may go while we look.
    let sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_are_bounded_when_events_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        retention_bytes: 2_000_000,
        ..Options::default()
    };
    let log = open(dir.path(), options).unwrap();
    for n in 0..150 {
        // The same ids each time would be repetitions: an app of its own for each batch.
        let batch = fixtures::numbered(&format!("app_{n}"), 0..500);
        log.append(batch).await.unwrap();
    }
    assert!(log.range().event_count() >= 500);
    // 75,000 events of some 200 bytes, and ids of some 30: without retention 17 MB.
    waits_until(|| directory_bytes(dir.path()) < 8_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_commit_is_reported_with_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let commits: Arc<Mutex<Vec<CommitReport>>> = Arc::default();
    let options = {
        let commits = Arc::clone(&commits);
        Options {
            on_commit: Some(Arc::new(move |commit| commits.lock().unwrap().push(commit))),
            ..Options::default()
        }
    };
    let log = open(dir.path(), options).unwrap();
    append(&log, 0..3).await.unwrap();
    append(&log, 0..3).await.unwrap();
    let commits = commits.lock().unwrap();
    assert_eq!(commits.len(), 1, "repetitions commit nothing");
    assert_eq!((commits[0].batches, commits[0].events), (1, 3));
    assert!(commits[0].bytes > 0);
}

const CHILD_DIR: &str = "PRELUDE_BRIDGE_TEST_CHILD_DIR";

/// The part of the next test that is killed: appends events from the head on in batches of changing
/// sizes, several at once, and prints the numbers of those that were acknowledged.
async fn append_until_killed(dir: &Path) {
    let seams = Seams {
        ids_limits: Some(small_ids(200)),
        ..Seams::default()
    };
    let log = open_with_seams(dir, Options::default(), seams).unwrap();
    let start = log.range().head.0 * 10;
    let next = Arc::new(AtomicU64::new(start));
    let tasks: Vec<_> = (1..=4)
        .map(|size| {
            let (log, next) = (Arc::clone(&log), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let first = next.fetch_add(size * 7, Ordering::SeqCst);
                    let numbers = first..first + size * 7;
                    if append(&log, numbers.clone()).await.is_err() {
                        break;
                    }
                    // A line in one write, so that what the parent reads is whole.
                    let line = format!("\nacknowledged {} {}\n", numbers.start, numbers.end);
                    std::io::stderr().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill_once_and_in_order() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return runtime.block_on(append_until_killed(Path::new(&dir)));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<std::ops::Range<u64>> = Vec::new();
    for kill_after in [1, 40, 3, 200, 17, 90] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("embedded::tests::what_was_acknowledged_survives_a_kill_once_and_in_order")
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut acknowledge = |line: &str| {
            let mut words = line.strip_prefix("acknowledged ")?.split(' ');
            let mut number = || words.next().unwrap().parse::<u64>().unwrap();
            acknowledged.push(number()..number());
            Some(())
        };
        let mut count = 0;
        while count < kill_after {
            let line = lines.next().expect("the child goes on").unwrap();
            count += usize::from(acknowledge(&line).is_some());
        }
        child.kill().unwrap();
        // What it said before it was killed counts too.
        lines.map_while(Result::ok).for_each(|line| {
            acknowledge(&line);
        });
        child.wait().unwrap();

        let log = open_default(dir.path());
        let events = runtime.block_on(events(&log));
        assert!(
            events
                .iter()
                .map(|&(sequence, _)| sequence)
                .eq(1..=events.len() as u64)
        );
        let places: std::collections::HashMap<&str, u64> = events
            .iter()
            .map(|(sequence, id)| (id.as_str(), *sequence))
            .collect();
        assert_eq!(places.len(), events.len(), "each once");
        for batch in &acknowledged {
            let first = places[format!("evt_{}", batch.start).as_str()];
            for (offset, n) in (0..).zip(batch.clone()) {
                assert_eq!(places[format!("evt_{n}").as_str()], first + offset);
            }
        }
        let newest = acknowledged.last().unwrap().clone();
        let again = runtime.block_on(append(&log, newest)).unwrap();
        assert_eq!(again.accepted, 0);
    }
}

#[test]
fn an_opened_log_has_no_older_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let epochs = [(); 2].map(|()| {
        let log = open_default(dir.path());
        log.status().epochs().cursor(Sequence(1)).epoch
    });
    assert_ne!(epochs[0], epochs[1]);
    assert!(!epochs.contains(&Epoch(0)));
}
