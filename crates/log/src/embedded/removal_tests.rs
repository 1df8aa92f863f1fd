//! What retention removed is not on the disk any more, also of a log to which nothing is added; and a disk
//! that is full can be read, and recovers by retention alone.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
};

use super::{
    directory::{IDS_DIRECTORY, MANIFEST_FILE, RESERVE_FILE},
    disk_error::NO_SPACE_MEMORY,
    testing::{
        clock, copy, failing_disk, footer_of, frames_of, id_files, last_segment, manifest_of,
        no_space, quarantined, rewind, segment_paths, small_ids, waits_until,
    },
    *,
};
use crate::fixtures;

const START: i64 = 1_700_000_000_000_000;
const HOUR: i64 = 3_600 * 1_000_000;
const DAY: i64 = 24 * HOUR;
const ALL: usize = usize::MAX;

/// A log by this clock that keeps events for four days.
fn open_kept(path: &Path, now: &Arc<AtomicI64>, fault: Fault) -> Arc<Embedded> {
    let options = Options {
        retention_age: Duration::from_secs(4 * 24 * 3_600),
        ..Options::default()
    };
    let seams = Seams {
        clock: clock(now),
        fault,
        ..Seams::default()
    };
    open_with_seams(path, options, seams).unwrap()
}

fn no_fault() -> Fault {
    Arc::new(|_| Ok(()))
}

/// One event of a user.
async fn append_of(log: &Embedded, user: &str) -> Result<Appended, Error> {
    let events = [(user, "user.created", user)];
    log.append(fixtures::batch("app_1", &events)).await
}

async fn append(log: &Embedded, numbers: std::ops::Range<u64>) -> Result<Appended, Error> {
    log.append(fixtures::numbered("app_1", numbers)).await
}

/// Whether a text is in any file below a directory.
fn holds(dir: &Path, text: &str) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, text);
        }
        // One may go while we look.
        let bytes = fs::read(&path).unwrap_or_default();
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_off_the_disk_within_a_day_also_when_nothing_new_comes() {
    for restarts in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(START));
        let mut log = open_kept(dir.path(), &now, no_fault());
        append_of(&log, "usr_early").await.unwrap();
        now.fetch_add(17 * HOUR, Ordering::SeqCst);
        append_of(&log, "usr_late").await.unwrap();
        assert!(holds(dir.path(), "usr_early") && holds(dir.path(), "usr_late"));
        for hours in [3 * 24, 7 + 24] {
            now.fetch_add(hours * HOUR, Ordering::SeqCst);
            if restarts {
                log.close().await;
                drop(log);
                log = open_kept(dir.path(), &now, no_fault());
            }
        }
        // The first of them was received five days ago.
        waits_until(|| !holds(dir.path(), "usr_early") && !holds(dir.path(), "usr_late")).await;
        assert_eq!(log.range().event_count(), 0);
        assert_eq!(append_of(&log, "usr_late").await.unwrap().duplicates, 1);
        drop(log);
        for manifest in [MANIFEST_FILE, "none"] {
            let _ = fs::rename(dir.path().join(MANIFEST_FILE), dir.path().join(manifest));
            let looked = inspect(dir.path());
            assert!(manifest == "none" || looked.unwrap().unwrap().range.head == Sequence(2));
            let log = open_kept(dir.path(), &now, no_fault());
            assert_eq!(
                (log.range().head, log.range().earliest),
                (Sequence(2), Sequence(3))
            );
            assert_eq!(append_of(&log, "usr_early").await.unwrap().duplicates, 1);
        }
        let log = open_kept(dir.path(), &now, no_fault());
        append_of(&log, "usr_new").await.unwrap();
        let blocks = log.read(Sequence(2), ALL).await.unwrap();
        assert_eq!(fixtures::events(&blocks)[0].0, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_could_not_be_left_once_is_left_later_without_new_events() {
    for is_overlong in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(START));
        let failing = Arc::new(AtomicBool::new(false));
        let error = || rustix::io::Errno::MFILE.into();
        let fault = failing_disk(Stage::Segment, &failing, error).fault;
        let log = open_kept(dir.path(), &now, fault);
        append_of(&log, "usr_early").await.unwrap();
        failing.store(true, Ordering::SeqCst);
        if is_overlong {
            let mut next = 0;
            while append(&log, next..next + 2_000).await.is_ok() {
                next += 2_000;
            }
        } else {
            now.fetch_add(19 * HOUR, Ordering::SeqCst);
        }
        let appended = append_of(&log, "usr_late").await;
        assert!(is_overlong || appended.is_ok());
        failing.store(false, Ordering::SeqCst);
        now.fetch_add(5 * DAY, Ordering::SeqCst);
        waits_until(|| !holds(dir.path(), "usr_early") && !holds(dir.path(), "usr_late")).await;
        drop(log);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_segment_is_not_as_old_as_the_one_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let full = Arc::new(AtomicBool::new(false));
    let fault = failing_disk(Stage::Write, &full, no_space).fault;
    let log = open_kept(dir.path(), &now, fault);
    append_of(&log, "usr_early").await.unwrap();
    full.store(true, Ordering::SeqCst);
    now.fetch_add(19 * HOUR, Ordering::SeqCst);
    // The next segment has taken over, and has no room for the event.
    assert_eq!(append_of(&log, "usr_late").await, Err(Error::NoSpace));
    for _ in 0..50 {
        // Between two appends the writer looks whether its segment is old.
        assert_eq!(append_of(&log, "usr_late").await, Err(Error::NoSpace));
    }
    full.store(false, Ordering::SeqCst);
    append_of(&log, "usr_late").await.unwrap();
    assert_eq!(segments::ordinals(dir.path()).unwrap(), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_an_event_a_day_loses_one_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let log = open_kept(dir.path(), &now, no_fault());
    for day in 0..6 {
        append_of(&log, &format!("usr_of_day_{day}")).await.unwrap();
        now.fetch_add(DAY, Ordering::SeqCst);
        // Those of the last four days stay.
        waits_until(|| {
            (0..=day).all(|of| holds(dir.path(), &format!("usr_of_day_{of}")) == (of + 4 > day))
        })
        .await;
    }
    assert!(segment_paths(dir.path()).len() <= 5);
}

/// The last event that the manifest confirms.
fn confirmed(dir: &Path) -> Sequence {
    let manifest = manifest::Manifest::read(dir).unwrap();
    manifest.unwrap().confirmed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_to_which_nothing_is_added_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let stages: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&stages);
    let fault: Fault = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let readings: Arc<AtomicUsize> = Arc::default();
    let mut read_clock = clock(&now);
    let (read, counted) = (Arc::clone(&read_clock.read), Arc::clone(&readings));
    read_clock.read = Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        read()
    });
    let seams = Seams {
        clock: read_clock,
        fault,
        ..Seams::default()
    };
    let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
    append_of(&log, "usr_1").await.unwrap();
    let passes = async |count| {
        let until = readings.load(Ordering::SeqCst) + count;
        waits_until(|| readings.load(Ordering::SeqCst) >= until).await;
    };
    // Each look at what is too old reads the clock once.
    waits_until(|| confirmed(dir.path()) == Sequence(1)).await;
    passes(2).await;
    let before = (stages.load(Ordering::SeqCst), manifest_of(dir.path()));
    now.fetch_add(HOUR / 2, Ordering::SeqCst);
    passes(2).await;
    let after = (stages.load(Ordering::SeqCst), manifest_of(dir.path()));
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quarantine_is_emptied_when_its_files_were_there_for_their_time() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let log = open_kept(dir.path(), &now, no_fault());
    append_of(&log, "usr_1").await.unwrap();
    drop(log);
    let manifest = manifest_of(dir.path());
    let log = open_kept(dir.path(), &now, no_fault());
    append_of(&log, "usr_torn").await.unwrap();
    drop(log);
    // As if the process had ended while it wrote the last commit.
    let path = last_segment(dir.path());
    let (at, header) = frames_of(&path).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[usize::try_from(at + header.frame_bytes()).unwrap() - 12] ^= 1;
    fs::write(&path, bytes).unwrap();
    rewind(dir.path(), &manifest);
    let log = open_kept(dir.path(), &now, no_fault());
    assert_eq!(log.range().head, Sequence(1));
    assert!(holds(dir.path(), "usr_torn"));
    let kept = quarantined(dir.path());
    drop(log);
    let log = open_kept(dir.path(), &now, no_fault());
    drop(log);
    assert_eq!(quarantined(dir.path()), kept, "each keeps its name");
    now.fetch_add(4 * DAY, Ordering::SeqCst);
    let log = open_kept(dir.path(), &now, no_fault());
    now.fetch_add(5 * HOUR, Ordering::SeqCst);
    waits_until(|| !holds(dir.path(), "usr_torn")).await;
    drop(log);
}

/// Segments of 64 KiB.
fn small_segments() -> Options {
    Options {
        retention_bytes: 1024 * 1024,
        ..Options::default()
    }
}

/// Appends until the oldest events are removed. Returns how many events came.
async fn fill(log: &Embedded) -> u64 {
    let mut next = 0;
    while log.range().earliest == Sequence(1) {
        append(log, next..next + 1_000).await.unwrap();
        next += 1_000;
    }
    next
}

fn oldest_segment(dir: &Path) -> u64 {
    segments::ordinals(dir).unwrap()[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_waited_for_its_ids_when_the_process_ended_goes_after_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let seams = failing_disk(Stage::Ids, &full, no_space);
    let log = open_with_seams(dir.path(), small_segments(), seams).unwrap();
    let count = fill(&log).await;
    log.close().await;
    let earliest = log.range().earliest;
    drop(log);
    assert_eq!(oldest_segment(dir.path()), 1);
    let log = open(dir.path(), small_segments()).unwrap();
    assert_eq!(log.range().earliest, earliest);
    waits_until(|| oldest_segment(dir.path()) > 1).await;
    assert_eq!(log.range().earliest, earliest, "nothing else is removed");
    assert_eq!(append(&log, 0..count).await.unwrap().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_log_that_waited_for_its_ids_when_the_process_ended_is_emptied_too() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let full = Arc::new(AtomicBool::new(true));
    let fault = failing_disk(Stage::Ids, &full, no_space).fault;
    let log = open_kept(dir.path(), &now, fault);
    append_of(&log, "usr_1").await.unwrap();
    now.fetch_add(5 * DAY, Ordering::SeqCst);
    waits_until(|| log.range().event_count() == 0).await;
    log.close().await;
    drop(log);
    assert!(holds(dir.path(), "usr_1"));
    let log = open_kept(dir.path(), &now, no_fault());
    waits_until(|| !holds(dir.path(), "usr_1")).await;
    assert_eq!(append_of(&log, "usr_1").await.unwrap().duplicates, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_take_nothing_of_what_events_may_take() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small_segments()).unwrap();
    for n in 0..208 {
        append(&log, n * 500..n * 500 + 500).await.unwrap();
    }
    // Of 100 KB each, of which the oldest goes when there is more than 1 MiB.
    waits_until(|| log.shared.segments.bytes() <= 1024 * 1024).await;
    log.close().await;
    drop(log);
    let log = open(dir.path(), small_segments()).unwrap();
    waits_until(|| oldest_segment(dir.path()) > 1).await;
    // What the ids occupy is told as of a while ago.
    waits_until(|| log.usage().ids.unwrap().bytes > 1024 * 1024).await;
    let usage = log.usage();
    assert!(log.shared.segments.bytes() > 1024 * 1024 / 4, "{usage:?}");
    let ids = usage.ids.unwrap();
    assert!(ids.bytes > 1024 * 1024, "{usage:?}");
    assert_eq!(ids.bytes_max, Options::default().ids_bytes);
    assert_eq!(usage.stored_bytes, log.shared.segments.bytes() + ids.bytes);
    assert_eq!(append(&log, 0..8_000).await.unwrap().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_a_full_disk_opens_is_read_and_goes_on_when_there_is_room() {
    for stage in [Stage::Open, Stage::Segment] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path(), Options::default()).unwrap();
        append(&log, 0..10).await.unwrap();
        drop(log);
        let before = manifest_of(dir.path());
        let full = Arc::new(AtomicBool::new(true));
        let seams = failing_disk(stage, &full, no_space);
        let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
        assert_eq!(log.status().health(), Health::Full, "{stage:?}");
        let blocks = log.read(Sequence::ZERO, ALL).await.unwrap();
        assert_eq!(fixtures::events(&blocks).len(), 10);
        assert_eq!(append(&log, 0..10).await.unwrap().duplicates, 10);
        if stage == Stage::Segment {
            assert_eq!(append(&log, 10..11).await, Err(Error::NoSpace));
        }
        full.store(false, Ordering::SeqCst);
        assert_eq!(append(&log, 8..12).await.unwrap().accepted, 2);
        assert_eq!(log.status().health(), Health::Ready);
        let cursor = log.status().epochs().cursor(Sequence(12));
        waits_until(|| manifest_of(dir.path()) != before).await;
        drop(log);
        let log = open(dir.path(), Options::default()).unwrap();
        assert_eq!(log.range().head, Sequence(12));
        assert!(log.status().epochs().check(cursor, Sequence(12)).is_ok());
        drop(log);
        assert_eq!(inspect(dir.path()).unwrap().unwrap().epochs, 3);
    }
}

#[test]
fn a_new_log_on_a_full_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let seams = failing_disk(Stage::Open, &full, no_space);
    let opened = open_with_seams(dir.path(), Options::default(), seams);
    assert!(matches!(opened.map(drop), Err(OpenError::Directory { .. })));
}

/// A disk that has no room for this as long as there is a reserve on it.
fn full_but_for_the_reserve(dir: &Path, at: Stage, full: &Arc<AtomicBool>) -> Seams {
    let (full, reserve) = (Arc::clone(full), dir.join(RESERVE_FILE));
    Seams {
        fault: Arc::new(move |stage| {
            let fails = stage == at && full.load(Ordering::SeqCst) && reserve.exists();
            if fails { Err(no_space()) } else { Ok(()) }
        }),
        ..Seams::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_frees_a_full_disk_with_the_room_of_the_reserve() {
    for stage in [Stage::Manifest, Stage::Ids] {
        let dir = tempfile::tempdir().unwrap();
        let full = Arc::new(AtomicBool::new(true));
        let seams = full_but_for_the_reserve(dir.path(), stage, &full);
        let log = open_with_seams(dir.path(), small_segments(), seams).unwrap();
        waits_until(|| dir.path().join(RESERVE_FILE).exists()).await;
        let count = fill(&log).await;
        waits_until(|| oldest_segment(dir.path()) > 1).await;
        full.store(false, Ordering::SeqCst);
        // There is a reserve again, and events are taken.
        waits_until(|| dir.path().join(RESERVE_FILE).exists()).await;
        let ready = log.status().health_where(|health| *health == Health::Ready);
        ready.await;
        assert_eq!(append(&log, count..count + 1).await.unwrap().accepted, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_forgotten_on_a_full_disk_with_the_room_of_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let full = Arc::new(AtomicBool::new(false));
    let seams = Seams {
        clock: clock(&now),
        ids_limits: Some(ids::Limits {
            age_micros: DAY,
            ..small_ids(90)
        }),
        ..full_but_for_the_reserve(dir.path(), Stage::Ids, &full)
    };
    // No event is removed, so that nothing but the ids makes room.
    let options = Options {
        retention_age: Duration::MAX,
        ..Options::default()
    };
    let log = open_with_seams(dir.path(), options, seams).unwrap();
    let reserve = dir.path().join(RESERVE_FILE);
    append(&log, 0..100).await.unwrap();
    waits_until(|| reserve.exists() && !id_files(dir.path()).is_empty()).await;
    full.store(true, Ordering::SeqCst);
    now.fetch_add(5 * DAY, Ordering::SeqCst);
    waits_until(|| id_files(dir.path()).is_empty()).await;
    assert!(log.has_forgotten_ids());
    full.store(false, Ordering::SeqCst);
    // The file is there a moment before it counts.
    waits_until(|| reserve.exists() && !log.shared.reserve.is_missing()).await;
    assert_eq!(append(&log, 0..100).await.unwrap().accepted, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_log_on_a_full_disk_is_emptied_with_the_room_of_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let full = Arc::new(AtomicBool::new(false));
    let fault = full_but_for_the_reserve(dir.path(), Stage::Segment, &full).fault;
    let log = open_kept(dir.path(), &now, fault);
    append_of(&log, "usr_1").await.unwrap();
    waits_until(|| dir.path().join(RESERVE_FILE).exists()).await;
    full.store(true, Ordering::SeqCst);
    now.fetch_add(5 * DAY, Ordering::SeqCst);
    waits_until(|| !holds(dir.path(), "usr_1")).await;
    drop(log);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_on_a_full_disk_could_not_make_durable_is_not_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small_segments()).unwrap();
    let before = manifest_of(dir.path());
    append(&log, 0..500).await.unwrap();
    waits_until(|| segments::ordinals(dir.path()).unwrap().len() > 1).await;
    append(&log, 500..1_000).await.unwrap();
    log.close().await;
    drop(log);
    rewind(dir.path(), &before);
    let first = segment_paths(dir.path()).remove(0);
    assert_ne!(first, last_segment(dir.path()));
    let full = Arc::new(AtomicBool::new(true));
    let saved: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&saved);
    let fails = failing_disk(Stage::Segment, &full, no_space).fault;
    let seams = Seams {
        fault: Arc::new(move |stage| {
            counted.fetch_add(usize::from(stage == Stage::Manifest), Ordering::SeqCst);
            fails(stage)
        }),
        ..Seams::default()
    };
    let log = open_with_seams(dir.path(), small_segments(), seams).unwrap();
    assert_eq!(append(&log, 1_000..1_001).await, Err(Error::NoSpace));
    waits_until(|| saved.load(Ordering::SeqCst) > 0).await;
    log.close().await;
    assert_eq!(log.range().head, Sequence(1_000));
    drop(log);
    assert_eq!(confirmed(dir.path()), Sequence::ZERO);
    assert_eq!(footer_of(&first), None);
    let log = open(dir.path(), small_segments()).unwrap();
    append(&log, 1_000..1_001).await.unwrap();
    log.close().await;
    drop(log);
    assert_eq!(confirmed(dir.path()), Sequence(1_001));
    assert!(footer_of(&first).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_do_not_take_the_room_of_a_reserve_that_was_used() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Options::default()).unwrap();
    append(&log, 0..2).await.unwrap();
    waits_until(|| confirmed(dir.path()) == Sequence(2)).await;
    waits_until(|| dir.path().join(RESERVE_FILE).exists()).await;
    assert!(log.shared.use_reserve());
    assert!(!log.shared.use_reserve(), "there is none any more");
    assert_eq!(append(&log, 2..4).await, Err(Error::NoSpace));
    assert_eq!(log.status().health(), Health::Full);
    assert_eq!(append(&log, 0..2).await.unwrap().duplicates, 2);
    *log.shared.no_space_at() = Instant::now().checked_sub(NO_SPACE_MEMORY);
    log.shared.forget_no_space();
    assert_eq!(log.status().health(), Health::Full, "there is no reserve");
    log.shared.keeper.work_on_ids();
    let ready = log.status().health_where(|health| *health == Health::Ready);
    ready.await;
    assert!(dir.path().join(RESERVE_FILE).exists());
    assert_eq!(append(&log, 2..4).await.unwrap().accepted, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_start_on_a_full_disk_no_event_takes_the_room_until_there_is_a_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Options::default()).unwrap();
    append(&log, 0..2).await.unwrap();
    waits_until(|| dir.path().join(RESERVE_FILE).exists()).await;
    // The room of the reserve was used, and the process ended.
    assert!(log.shared.use_reserve());
    drop(log);
    let _ = fs::remove_file(dir.path().join(RESERVE_FILE));
    let full = Arc::new(AtomicBool::new(true));
    let seams = failing_disk(Stage::Reserve, &full, no_space);
    let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
    let full_health = log.status().health_where(|health| *health == Health::Full);
    full_health.await;
    assert_eq!(append(&log, 2..4).await, Err(Error::NoSpace));
    assert_eq!(append(&log, 0..2).await.unwrap().duplicates, 2);
    full.store(false, Ordering::SeqCst);
    let ready = log.status().health_where(|health| *health == Health::Ready);
    ready.await;
    assert!(dir.path().join(RESERVE_FILE).exists());
    assert_eq!(append(&log, 2..4).await.unwrap().accepted, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_found_no_room_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Options::default()).unwrap();
    append_of(&log, "usr_1").await.unwrap();
    log.close().await;
    drop(log);
    let found = recovery::look(
        dir.path(),
        &manifest::Manifest::read(dir.path()).unwrap().unwrap(),
        None,
        &mut |_, _| Ok(()),
    );
    let tip = found.unwrap().tip.unwrap();
    let path = last_segment(dir.path());
    let file = fs::File::options().write(true).open(&path).unwrap();
    let bytes = file.metadata().unwrap().len();
    std::os::unix::fs::FileExt::write_all_at(&file, b"usr_half", tip.end + 100).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"usr_half", bytes + 100).unwrap();
    let log = manifest::Manifest::read(dir.path()).unwrap().unwrap().log;
    let mut active = active::Active::new(dir.path(), log, Ok(tip), None, u64::MAX);
    assert!(holds(dir.path(), "usr_half"));
    active.remove_rest_for_test(bytes);
    assert!(!holds(dir.path(), "usr_half") && holds(dir.path(), "usr_1"));
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_without_file_descriptors_passes_wherever_the_log_opens_files() {
    for stage in [Stage::Segment, Stage::Footer, Stage::Manifest, Stage::Ids] {
        let dir = tempfile::tempdir().unwrap();
        let none_left = Arc::new(AtomicBool::new(false));
        let met: Arc<AtomicUsize> = Arc::default();
        let counted = Arc::clone(&met);
        let seams = Seams {
            ids_limits: Some(small_ids(1_000)),
            ..failing_disk(stage, &none_left, move || {
                counted.fetch_add(1, Ordering::SeqCst);
                rustix::io::Errno::MFILE.into()
            })
        };
        let log = open_with_seams(dir.path(), small_segments(), seams).unwrap();
        none_left.store(true, Ordering::SeqCst);
        let mut taken = 0;
        while taken < 8_000 || met.load(Ordering::SeqCst) == 0 {
            match append(&log, taken..taken + 500).await {
                Ok(_) => taken += 500,
                Err(Error::Overloaded) => break,
                Err(error) => panic!("{stage:?}: {error}"),
            }
        }
        waits_until(|| met.load(Ordering::SeqCst) > 0).await;
        assert_eq!(log.status().health(), Health::Ready, "{stage:?}");
        none_left.store(false, Ordering::SeqCst);
        for _ in 0..4 {
            append(&log, taken..taken + 2_000).await.unwrap();
            taken += 2_000;
        }
        log.close().await;
        drop(log);
        let log = open(dir.path(), small_segments()).unwrap();
        assert_eq!(log.range().head.0, taken);
        assert_eq!(append(&log, 0..taken).await.unwrap().accepted, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_directory_of_ids_says_is_the_last_event_that_was_removed() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join(IDS_DIRECTORY);
    assert_eq!(ids::last_event(&ids).unwrap(), Sequence::ZERO);
    assert_eq!(ids_bytes(dir.path()).unwrap(), 0);
    let seams = Seams {
        ids_limits: Some(small_ids(100)),
        ..Seams::default()
    };
    let log = open_with_seams(dir.path(), Options::default(), seams).unwrap();
    append(&log, 0..150).await.unwrap();
    waits_until(|| ids::last_event(&ids).unwrap() == Sequence(150)).await;
    drop(log);
    assert!(ids_bytes(dir.path()).unwrap() > 150 * 16);
    fs::write(ids.join("forgotten-00000000000000000151"), "").unwrap();
    fs::write(ids.join("something else"), "").unwrap();
    assert_eq!(ids::last_event(&ids).unwrap(), Sequence(151));
    drop(copy(dir.path()));
}
