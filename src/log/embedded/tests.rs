//! What only the log on disk promises: reopening, failures of the disk, bounds, and `kill -9`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicI64, AtomicUsize},
};

use super::*;
use crate::{event::Term, log::fixtures};

const ALL: usize = usize::MAX;
const DATABASE: &str = "log.sqlite3";

fn no_tail() -> Tail {
    Box::new(|_| {})
}

fn open_default(path: &Path) -> Arc<Embedded> {
    open(path, Options::default(), no_tail()).unwrap()
}

fn open_error(path: &Path) -> OpenError {
    match open(path, Options::default(), no_tail()) {
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

async fn waits_until(condition: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the condition comes true");
}

fn clock(now: &Arc<AtomicI64>) -> Clock {
    let now = Arc::clone(now);
    Arc::new(move || UnixMicros(now.load(Ordering::SeqCst)))
}

/// What SQLite would say.
fn sqlite_error(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
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
async fn each_opening_is_a_term_and_those_without_events_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let first = open_default(dir.path());
    append(&first, 0..2).await.unwrap();
    let cursors = [1, 2].map(|n| first.lineage().cursor(Sequence(n)));
    let would_be_third = first.lineage().cursor(Sequence(3));
    drop(first);
    for _ in 0..3 {
        drop(open_default(dir.path()));
    }
    let last = open_default(dir.path());
    append(&last, 2..3).await.unwrap();
    for cursor in cursors {
        assert!(last.lineage().check(cursor, Sequence(3)).is_ok());
    }
    assert!(last.lineage().check(would_be_third, Sequence(3)).is_err());
    drop(last);
    let connection = Connection::open(dir.path().join(DATABASE)).unwrap();
    let terms: i64 = connection
        .query_row("SELECT count(*) FROM terms", [], |row| row.get(0))
        .unwrap();
    assert_eq!(terms, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_expired_whole_keeps_its_place_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let open_log = || {
        let options = Options {
            retention_age: Duration::from_secs(10),
            ..Options::default()
        };
        let seams = Seams {
            clock: clock(&now),
            ..Seams::default()
        };
        open_with_seams(dir.path(), options, no_tail(), seams).unwrap()
    };
    let log = open_log();
    append(&log, 0..3).await.unwrap();
    now.fetch_add(100_000_000, Ordering::SeqCst);
    waits_until(|| log.range().event_count() == 0).await;
    drop(log);
    // Not even with a clock that went back does time go back.
    now.fetch_sub(1_000_000_000, Ordering::SeqCst);
    let log = open_log();
    assert_eq!(log.range().earliest, Sequence(4));
    append(&log, 3..4).await.unwrap();
    assert_eq!(log.range().head, Sequence(4));
    assert!(log.range().head_at >= Some(UnixMicros(1_700_000_000_000_000)));
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
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn what_is_no_log_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join(DATABASE);
    let text = "Dear diary, this is no database.".repeat(100);
    fs::write(&database, &text).unwrap();
    assert!(matches!(open_error(dir.path()), OpenError::NotALog { .. }));
    assert_eq!(fs::read_to_string(&database).unwrap(), text);

    fs::remove_file(&database).unwrap();
    let other = Connection::open(&database).unwrap();
    other.execute_batch("CREATE TABLE recipes (a)").unwrap();
    drop(other);
    assert!(matches!(open_error(dir.path()), OpenError::NotALog { .. }));
}

#[test]
fn a_log_of_a_later_release_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_default(dir.path()));
    let connection = Connection::open(dir.path().join(DATABASE)).unwrap();
    connection.pragma_update(None, "user_version", 9).unwrap();
    drop(connection);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Newer { found: 9, .. }));
    assert!(error.to_string().contains("upgrade prelude-bridge"));
}

#[test]
fn a_log_of_before_the_first_release_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_default(dir.path()));
    let connection = Connection::open(dir.path().join(DATABASE)).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Older { found: 1, .. }));
    assert!(error.to_string().contains("--data-dir"));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_end_is_noticed_at_the_start() {
    for damage in [
        "UPDATE blocks SET data = zeroblob(length(data)) WHERE last_sequence = 6",
        "UPDATE blocks SET first_sequence = 4 WHERE last_sequence = 6",
        "DELETE FROM blocks WHERE last_sequence = 2",
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_three_blocks(dir.path()).await;
        let connection = Connection::open(dir.path().join(DATABASE)).unwrap();
        assert_eq!(connection.execute(damage, []).unwrap(), 1);
        drop(connection);
        let error = open_error(dir.path());
        assert!(matches!(error, OpenError::Damaged { .. }), "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_block_is_named_and_never_skipped() {
    for (damage, named) in [
        (
            "UPDATE blocks SET data = zeroblob(length(data)) WHERE last_sequence = 4",
            "events 3 to 4",
        ),
        (
            "DELETE FROM blocks WHERE last_sequence = 4",
            "events 3 to 4 are missing",
        ),
        (
            "UPDATE blocks SET data = (SELECT data FROM blocks WHERE last_sequence = 2) \
             WHERE last_sequence = 4",
            "events 3 to 4 are not in their place",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_three_blocks(dir.path()).await;
        let connection = Connection::open(dir.path().join(DATABASE)).unwrap();
        assert_eq!(connection.execute(damage, []).unwrap(), 1);
        drop(connection);
        let log = open_default(dir.path());
        match log.read(Sequence(0), ALL).await {
            Err(ReadError::Failed(reason)) => assert!(reason.contains(named), "{reason}"),
            other => panic!("{damage}: {other:?}"),
        }
        let rest = log.read(Sequence(4), ALL).await.unwrap();
        assert_eq!(fixtures::events(&rest).len(), 2);
    }
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
            fault: Box::new(move |stage, _| {
                if stage == Stage::Commit && broken.swap(false, Ordering::SeqCst) {
                    return Err(sqlite_error(rusqlite::ffi::SQLITE_IOERR_FSYNC));
                }
                Ok(())
            }),
            ..Seams::default()
        }
    };
    let log = open_with_seams(dir.path(), Options::default(), no_tail(), seams).unwrap();
    append(&log, 0..2).await.unwrap();
    broken.store(true, Ordering::SeqCst);
    let failed = append(&log, 2..4).await.unwrap_err();
    assert!(matches!(failed, Error::Failed(_)));
    // The disk would work again, but what was flushed is unknown.
    assert_eq!(append(&log, 4..6).await, Err(failed.clone()));
    assert_eq!(log.health(), Err(failed));
    assert_eq!(log.range().head, Sequence(2));
    assert_eq!(events(&log).await, in_order(0..2), "it can still be read");
    log.close().await;
    drop(log);
    let log = open_default(dir.path());
    assert_eq!(append(&log, 0..6).await.unwrap().accepted, 4);
    assert_eq!(events(&log).await, in_order(0..6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_panics_leaves_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let tail: Tail = Box::new(|_| panic!("a bug"));
    let log = open(dir.path(), Options::default(), tail).unwrap();
    assert!(append(&log, 0..1).await.is_err());
    waits_until(|| matches!(log.health(), Err(Error::Failed(_)))).await;
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let pages_max = Arc::new(AtomicUsize::new(100_000));
    let seams = {
        let pages_max = Arc::clone(&pages_max);
        Seams {
            fault: Box::new(move |_, connection| {
                let pages = i64::try_from(pages_max.load(Ordering::SeqCst)).unwrap();
                connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            }),
            ..Seams::default()
        }
    };
    let log = open_with_seams(dir.path(), Options::default(), no_tail(), seams).unwrap();
    append(&log, 0..10).await.unwrap();
    pages_max.store(1, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(append(&log, 10..3_000).await, Err(Error::NoSpace));
    }
    assert_eq!(log.health(), Err(Error::NoSpace));
    assert_eq!(log.range().head, Sequence(10));
    pages_max.store(100_000, Ordering::SeqCst);
    let appended = append(&log, 0..3_000).await.unwrap();
    assert_eq!((appended.accepted, appended.duplicates), (2_990, 10));
    assert_eq!(log.health(), Ok(()));
    assert_eq!(events(&log).await, in_order(0..3_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (resume, resumed) = std::sync::mpsc::channel::<()>();
    let options = Options {
        queue_batches_max: 2,
        ..Options::default()
    };
    let seams = Seams {
        fault: Box::new(move |stage, _| {
            if stage == Stage::Begin {
                let _ = resumed.recv();
            }
            Ok(())
        }),
        ..Seams::default()
    };
    let log = open_with_seams(dir.path(), options, no_tail(), seams).unwrap();
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
async fn ids_are_remembered_for_their_time_and_forgotten_after_twice_that() {
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
        open_with_seams(dir.path(), options, no_tail(), seams).unwrap()
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
        }
        now.fetch_add(16 * day, Ordering::SeqCst);
        waits_until(|| id_count(dir.path()) == 0).await;
        assert_eq!(append(&log, numbers).await.unwrap().accepted, 5_000);
    }
}

fn query(path: &Path, sql: &str) -> i64 {
    let connection = schema::open_reader(&path.join(DATABASE)).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn id_count(path: &Path) -> i64 {
    query(
        path,
        "SELECT (SELECT count(*) FROM id_log) + (SELECT count(*) FROM id_runs) \
         + (SELECT count(*) FROM id_pages) + (SELECT count(*) FROM id_filters)",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_removes_in_small_steps_between_appends() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let steps: Arc<Mutex<Vec<(usize, u64)>>> = Arc::default();
    let appended = Arc::new(AtomicU64::new(0));
    let options = Options {
        retention_age: Duration::from_secs(100),
        ..Options::default()
    };
    let seams = {
        let (steps, appended) = (Arc::clone(&steps), Arc::clone(&appended));
        Seams {
            clock: clock(&now),
            on_removed: Box::new(move |blocks| {
                let so_far = appended.load(Ordering::SeqCst);
                steps.lock().unwrap().push((blocks, so_far));
            }),
            ..Seams::default()
        }
    };
    let log = open_with_seams(dir.path(), options, no_tail(), seams).unwrap();
    for n in 0..500 {
        append(&log, n..n + 1).await.unwrap();
    }
    now.fetch_add(200_000_000, Ordering::SeqCst);
    for n in 500..600 {
        append(&log, n..n + 1).await.unwrap();
        appended.fetch_add(1, Ordering::SeqCst);
    }
    waits_until(|| log.range().earliest == Sequence(501)).await;
    let steps = steps.lock().unwrap();
    assert!(steps.len() >= 500 / retention::STEP_BLOCKS_MAX);
    assert!(
        steps
            .iter()
            .all(|&(blocks, _)| blocks <= retention::STEP_BLOCKS_MAX)
    );
    assert!(
        steps.windows(2).all(|pair| pair[0].1 <= pair[1].1) && steps[0].1 < 100,
        "appends went on meanwhile"
    );
    assert_eq!(log.range().head, Sequence(600));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_bounded_when_events_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        retention_bytes: 2_000_000,
        wal_bytes_max: 1_000_000,
        ..Options::default()
    };
    let log = open(dir.path(), options, no_tail()).unwrap();
    for n in 0..150 {
        // The same ids each time would be repetitions: an app of its own for each batch.
        let batch = fixtures::numbered(&format!("app_{n}"), 0..500);
        log.append(batch).await.unwrap();
    }
    // 75,000 events of some 200 bytes, and ids of some 30: without retention 17 MB.
    let file_bytes = fs::metadata(dir.path().join(DATABASE)).unwrap().len();
    assert!(file_bytes < 8_000_000, "{file_bytes} bytes");
    assert!(log.range().event_count() >= 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_ahead_log_is_bounded_under_load_and_under_readers() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        wal_bytes_max: 2_000_000,
        ..Options::default()
    };
    let log = open(dir.path(), options, no_tail()).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..6)
        .map(|_| {
            let (log, done) = (Arc::clone(&log), Arc::clone(&done));
            tokio::spawn(async move {
                let mut read = 0_u64;
                while !done.load(Ordering::SeqCst) {
                    let blocks = log.read(Sequence(0), 500_000).await.unwrap();
                    read += blocks.len() as u64;
                }
                read
            })
        })
        .collect();
    let wal = dir.path().join(format!("{DATABASE}-wal"));
    let (mut written, mut largest) = (0, 0);
    for n in 0..300 {
        append(&log, n * 300..n * 300 + 300).await.unwrap();
        written += 300;
        largest = largest.max(fs::metadata(&wal).unwrap().len());
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    // Without being begun anew it would have some 60 MB by now.
    assert!(largest < 8_000_000, "{largest} bytes");
    assert_eq!(log.range().head, Sequence(written));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_commit_is_reported_with_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let commits: Arc<Mutex<Vec<Commit>>> = Arc::default();
    let options = {
        let commits = Arc::clone(&commits);
        Options {
            on_commit: Some(Arc::new(move |commit| commits.lock().unwrap().push(commit))),
            ..Options::default()
        }
    };
    let log = open(dir.path(), options, no_tail()).unwrap();
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
#[tokio::test(flavor = "multi_thread")]
async fn child_that_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else {
        return;
    };
    let options = Options {
        wal_bytes_max: 300_000,
        retention_bytes: 1 << 40,
        ..Options::default()
    };
    let seams = Seams {
        // So small that runs are written, merged and deleted all the time.
        ids_limits: Some(ids::Limits {
            recent_keys: 200,
            slice_keys: 20,
            fan_in: 3,
            ..ids::Limits::new(i64::MAX)
        }),
        ..Seams::default()
    };
    let log = open_with_seams(Path::new(&dir), options, no_tail(), seams).unwrap();
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
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut acknowledged: Vec<std::ops::Range<u64>> = Vec::new();
    for kill_after in [1, 40, 3, 200, 17, 90] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("log::embedded::tests::child_that_appends_until_it_is_killed")
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
fn an_opened_log_is_no_older_term() {
    let dir = tempfile::tempdir().unwrap();
    let terms = [(); 2].map(|()| {
        let log = open_default(dir.path());
        log.lineage().cursor(Sequence(1)).term
    });
    assert_ne!(terms[0], terms[1]);
    assert!(!terms.contains(&Term(0)));
}
