//! What becomes of a log in which something was damaged: nothing that was acknowledged is hidden or
//! removed without a word, whatever it was.

use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, atomic::AtomicBool},
};

use rusqlite::Connection;
use tokio::task::spawn_blocking;

use super::{
    frame::{Frames, Header, SEGMENT_HEADER_BYTES},
    *,
};
use crate::{
    clock::{Boot, Clock, Reading},
    fixtures,
};

const DATABASE: &str = directory::DATABASE_FILE;
const START: i64 = 1_700_000_000_000_000;
const BATCHES: u64 = 4;
const BATCH_EVENTS: u64 = 100;
/// The events that retention has removed.
const TRIMMED: u64 = 20;
const HEAD: u64 = BATCHES * BATCH_EVENTS + TRIMMED;
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

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
        clock: Clock {
            read: Arc::new(move || Reading {
                wall: UnixMicros(now),
                steady: now,
            }),
            boot: Some(Boot::default()),
        },
        // So small that there are rows in all tables.
        ids_limits: Some(ids::Limits {
            recent_keys: 90,
            slice_keys: 20,
            fan_in: 3,
            ..ids::Limits::new(i64::MAX)
        }),
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

/// A log of several segments, terms and runs of ids, the first events of which retention has
/// removed; closed well.
async fn template() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (index, numbers) in (0..).zip(batches()) {
        // Between the times of the first two.
        let age = if index == 1 {
            Duration::from_micros(640)
        } else {
            Duration::MAX
        };
        let seams = seams(START + index * 1_000);
        let log = open_with_seams(dir.path(), options(age), seams).unwrap();
        log.append(batch(numbers)).await.unwrap();
        if index == 1 {
            waits_until(|| log.range().earliest == Sequence(TRIMMED + 1)).await;
        }
        log.close().await;
    }
    assert!(segments::ordinals(dir.path()).unwrap().len() >= 3);
    dir
}

async fn waits_until(condition: impl Fn() -> bool) {
    tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the condition comes true");
}

fn copy(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

fn segment_paths(dir: &Path) -> Vec<PathBuf> {
    let ordinals = segments::ordinals(dir).unwrap();
    let paths = ordinals.iter().map(|&ordinal| segments::path(dir, ordinal));
    paths.filter(|path| !frames_of(path).is_empty()).collect()
}

/// The frames of a segment: where they begin, and their headers.
fn frames_of(path: &Path) -> Vec<(u64, Header)> {
    let file = fs::File::open(path).unwrap();
    let Some(log) = frame::log_of(&file).unwrap() else {
        return Vec::new();
    };
    let mut frames = Frames::new(file, log, SEGMENT_HEADER_BYTES, 65_536);
    let mut found = Vec::new();
    while let Some(header) = frames.header().unwrap() {
        found.push((frames.offset(), header));
        frames.skip(&header);
    }
    found
}

fn flip(path: &Path, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

fn zero(path: &Path, count: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[..count].fill(0);
    fs::write(path, bytes).unwrap();
}

fn quarantined(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join(quarantine::DIRECTORY)) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// What the files of segments that had events held is still there, in the log or in the quarantine.
fn assert_all_kept(before: &Path, after: &Path, what: &str) {
    for path in segment_paths(before) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (last, header) = frames_of(&path).last().copied().unwrap();
        let held = fs::read(&path).unwrap();
        let end = usize::try_from(last + header.frame_bytes()).unwrap();
        // The bytes behind the last frame need not be there.
        let held = &held[..end.min(held.len())];
        let moved = quarantined(after)
            .into_iter()
            .filter(|path| path.to_str().unwrap().ends_with(name));
        let mut places = std::iter::once(after.join(name)).chain(moved);
        let is_kept = places.any(|path| fs::read(path).is_ok_and(|now| now.starts_with(held)));
        assert!(is_kept, "{what}: {name} is gone");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Everything is there and can be read.
    Whole,
    /// An error said what is wrong.
    Told(String),
}

/// Opens a log in which something was damaged, and uses it. What is damaged in the ids may be found
/// out only now; then the next start has put it right.
async fn fate(dir: &Path) -> Fate {
    for attempt in 0.. {
        let path = dir.to_owned();
        let opened = tokio::time::timeout(PATIENCE, spawn_blocking(move || open_at(&path)));
        let log = match opened.await.expect("opening ends").unwrap() {
            Ok(log) => log,
            Err(error) => return Fate::Told(error.to_string()),
        };
        let after = log.range().earliest.before();
        let read = tokio::time::timeout(PATIENCE, log.read(after, usize::MAX));
        let events = match read.await.expect("reading ends") {
            Ok(blocks) => fixtures::events(&blocks),
            Err(error) => return Fate::Told(error.to_string()),
        };
        let expected = (1..=HEAD).map(|n| (n, format!("evt_{}", n - 1)));
        let expected: Vec<_> = expected.skip(usize::try_from(after.0).unwrap()).collect();
        assert!(after.0 <= TRIMMED, "events up to {after} are hidden");
        assert_eq!(events, expected);
        let seek = tokio::time::timeout(PATIENCE, log.seek(UnixMicros(START + 3_000)));
        seek.await.expect("seeking ends").unwrap();
        let mut failure = None;
        for numbers in batches().skip(1) {
            match log.append(batch(numbers)).await {
                Ok(appended) => assert_eq!(appended.accepted, 0, "it was there before"),
                Err(error) => failure = Some(error),
            }
        }
        let Some(error) = failure else {
            return Fate::Whole;
        };
        assert!(attempt == 0, "a new start does not put it right: {error}");
        log.close().await;
    }
    unreachable!()
}

/// Changes the database in ways that its tables do not allow.
fn tamper(dir: &Path, change: impl FnOnce(&Connection) -> rusqlite::Result<usize>) -> bool {
    let path = dir.join(DATABASE);
    let connection = Connection::open(&path).unwrap();
    let mut schema = connection
        .prepare("SELECT name, sql FROM sqlite_schema")
        .unwrap();
    let rows = schema
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let tables: Vec<(String, String)> = rows.collect::<Result<_, _>>().unwrap();
    drop(schema);
    connection
        .execute_batch(
            "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = \
             replace(replace(replace(sql, ' NOT NULL', ''), ' STRICT', ''), 'CHECK (one = 1)', '')",
        )
        .unwrap();
    drop(connection);
    let connection = Connection::open(&path).unwrap();
    let changed = change(&connection).is_ok_and(|changed| changed > 0);
    connection
        .execute_batch("PRAGMA writable_schema = ON")
        .unwrap();
    for (name, sql) in tables {
        let restore = "UPDATE sqlite_schema SET sql = ?2 WHERE name = ?1";
        connection.execute(restore, [name, sql]).unwrap();
    }
    changed
}

fn columns(dir: &Path, table: &str) -> Vec<String> {
    let connection = Connection::open(dir.join(DATABASE)).unwrap();
    let statement = connection
        .prepare(&format!("SELECT * FROM {table}"))
        .unwrap();
    let names = statement.column_names();
    names.into_iter().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_in_the_index_hides_or_removes_an_event() {
    let template = template().await;
    let values = [
        "0",
        "1",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        "{} + 1",
        "{} - 1",
        "'text'",
        "NULL",
        "x'00ff'",
    ];
    let (mut cases, mut whole) = (0, 0);
    for table in [
        "log",
        "terms",
        "segments",
        "id_log",
        "id_runs",
        "id_filters",
        "id_pages",
    ] {
        for column in columns(template.path(), table) {
            for value in values {
                let value = value.replace("{}", &column);
                let dir = copy(template.path());
                let what = format!("{table}.{column} = {value}");
                // One row, as what changes a key would collide with others.
                let sql = format!(
                    "UPDATE {table} SET {column} = {value} \
                     WHERE rowid = (SELECT max(rowid) FROM {table}) AND {column} IS NOT {value}"
                );
                if !tamper(dir.path(), |connection| connection.execute(&sql, [])) {
                    continue;
                }
                let fate = fate(dir.path()).await;
                assert_all_kept(template.path(), dir.path(), &what);
                cases += 1;
                match fate {
                    Fate::Whole => whole += 1,
                    Fate::Told(error) => {
                        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
                    }
                }
            }
        }
    }
    assert!(
        cases > 200 && whole * 10 > cases * 9,
        "{whole} of {cases} are whole again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_in_the_index_is_found_in_the_segments_again() {
    let template = template().await;
    for table in [
        "log",
        "terms",
        "segments",
        "id_log",
        "id_runs",
        "id_filters",
        "id_pages",
    ] {
        let one =
            |end| format!("DELETE FROM {table} WHERE rowid = (SELECT {end}(rowid) FROM {table})");
        let all = format!("DELETE FROM {table}");
        for sql in [one("min"), one("max"), all, format!("DROP TABLE {table}")] {
            let dir = copy(template.path());
            let connection = Connection::open(dir.path().join(DATABASE)).unwrap();
            connection.execute_batch(&sql).unwrap();
            drop(connection);
            assert_eq!(fate(dir.path()).await, Fate::Whole, "{sql}");
            assert_all_kept(template.path(), dir.path(), &sql);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_wrong_with_good_checksums_removes_nothing_and_reading_ends() {
    let template = template().await;
    let columns = [
        "trimmed_sequence",
        "trimmed_at",
        "first_segment",
        "indexed_through",
    ];
    for column in columns {
        for value in ["0", "1", "2", "-1", "9223372036854775807", "150"] {
            let dir = copy(template.path());
            let connection = Connection::open(dir.path().join(DATABASE)).unwrap();
            connection
                .execute(&format!("UPDATE log SET {column} = {value}"), [])
                .unwrap();
            schema::seal(&connection).unwrap();
            drop(connection);
            let path = dir.path().to_owned();
            let opened = tokio::time::timeout(PATIENCE, spawn_blocking(move || open_at(&path)));
            if let Ok(log) = opened.await.expect("opening ends").unwrap() {
                let read = log.read(log.range().earliest.before(), usize::MAX);
                let read = tokio::time::timeout(PATIENCE, read);
                read.await.expect("reading ends").unwrap();
                log.close().await;
            }
            assert_all_kept(template.path(), dir.path(), &format!("{column} = {value}"));
        }
    }
}

/// Numbers that look like chance, the same in each run.
fn chance(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[tokio::test(flavor = "multi_thread")]
async fn no_flipped_bit_in_the_index_is_believed() {
    let template = template().await;
    let bits = fs::metadata(template.path().join(DATABASE)).unwrap().len() * 8;
    let mut seed = 20_261_130;
    let mut whole = 0;
    let flips = 300;
    for n in 0..flips {
        let dir = copy(template.path());
        // Each tenth is in the first page, where the database says what it is.
        let bit = chance(&mut seed) % if n % 10 == 0 { 8 * 8_192 } else { bits };
        flip(&dir.path().join(DATABASE), bit);
        match fate(dir.path()).await {
            Fate::Whole => whole += 1,
            Fate::Told(error) => assert!(error.contains(DATABASE), "bit {bit}: {error}"),
        }
        assert_all_kept(template.path(), dir.path(), &format!("bit {bit}"));
    }
    assert!(whole * 10 > flips * 9, "{whole} of {flips} are whole again");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_flipped_bit_in_a_segment_hides_an_event() {
    let template = template().await;
    let paths = segment_paths(template.path());
    let mut seed = 4_711;
    let mut told = 0;
    for n in 0..300 {
        let dir = copy(template.path());
        let path = &paths[n % paths.len()];
        let name = path.file_name().unwrap();
        let bits = fs::metadata(path).unwrap().len() * 8;
        // Many of them in the headers.
        let bits = if n % 3 == 0 { 8 * 128 } else { bits };
        flip(&dir.path().join(name), chance(&mut seed) % bits);
        if let Fate::Told(error) = fate(dir.path()).await {
            let is_named = error.contains("damaged") && error.contains("event");
            assert!(is_named, "{error}");
            told += 1;
        }
        let mut kept = segment_paths(dir.path());
        kept.extend(quarantined(dir.path()));
        let is_there = |path: &PathBuf| dir.path().join(path.file_name().unwrap()).exists();
        assert!(paths.iter().all(is_there), "{kept:?}");
    }
    assert!(told > 50, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_without_its_first_bytes_is_read_or_said_to_be_damaged() {
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
                Fate::Told(error) => assert!(
                    error.contains("damaged") || error.contains("ends with"),
                    "{error}"
                ),
                // What retention has removed may be damaged.
                Fate::Whole => assert_eq!(name, paths[0].file_name().unwrap()),
            }
            assert!(dir.path().join(name).exists());
        }
    }
}

/// What a log says while something is done.
fn said<T>(work: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let done = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (done, text)
}

/// A log whose index has none of its events, as when the power went before it got them.
async fn without_index(batches: &[std::ops::Range<u64>]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    drop(open_small(dir.path()));
    let index = fs::read(dir.path().join(DATABASE)).unwrap();
    let log = open_small(dir.path());
    for numbers in batches {
        let batch = fixtures::numbered("app_1", numbers.clone());
        log.append(batch).await.unwrap();
    }
    log.close().await;
    drop(log);
    fs::write(dir.path().join(DATABASE), index).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_first_commit_of_a_new_log_is_no_torn_end() {
    let template = without_index(&[0..2, 2..4, 4..6]).await;
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
        let error = open_at(dir.path()).map(|_| ()).unwrap_err().to_string();
        let range = format!("bytes {SEGMENT_HEADER_BYTES} to {}", frames[1].0);
        assert!(error.contains("events 1 to 2 are damaged"), "{error}");
        assert!(error.contains(&range), "{error}");
        assert!(quarantined(dir.path()).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_behind_damage_is_found_however_long_the_damaged_one_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), Options::default()).unwrap());
    let index = fs::read(dir.path().join(DATABASE)).unwrap();
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
    fs::write(dir.path().join(DATABASE), index).unwrap();
    let error = open(dir.path(), Options::default());
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("events 1 to ") && error.contains("are damaged"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_is_said_with_its_range_kept_and_overwritten_with_zeros() {
    let dir = without_index(&[0..2, 2..4]).await;
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
    let [kept] = &quarantined(dir.path())[..] else {
        panic!("one file");
    };
    assert!(text.contains(kept.to_str().unwrap()), "{text}");
    let kept = fs::read(kept).unwrap();
    assert!(torn.starts_with(&kept) && torn[kept.len()..].iter().all(|&byte| byte == 0));
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
async fn the_last_commit_is_no_torn_end_once_the_index_has_it() {
    let dir = without_index(&[]).await;
    let log = open_at(dir.path()).unwrap();
    let indexed = || {
        let connection = schema::open_reader(&dir.path().join(DATABASE)).unwrap();
        let sql = "SELECT indexed_through FROM log";
        let indexed: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        indexed.cast_unsigned()
    };
    // So few events, and with so little rest, that nothing but the time makes the index follow.
    let mut count = 0;
    while indexed() == 0 {
        log.append(fixtures::numbered("app_1", count..count + 1))
            .await
            .unwrap();
        count += 1;
        assert!(count < 1_000);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let head = log.range().head.0;
    waits_until(|| indexed() == head).await;
    // As after a kill.
    let killed = copy(dir.path());
    let path = segment_paths(killed.path()).remove(0);
    let (last, _) = frames_of(&path).pop().unwrap();
    flip(&path, (last + 20) * 8);
    let error = open_at(killed.path()).map(|_| ()).unwrap_err().to_string();
    let expected = format!("ends with event {}, not {head}", head - 1);
    assert!(error.contains(&expected), "{error}");
    assert!(quarantined(killed.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_two_commits_are_not_taken_for_one() {
    let template = without_index(&[0..1, 1..2]).await;
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
    let other = without_index(&[0..1, 1..2]).await;
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
        let [kept] = &quarantined(dir.path())[..] else {
            panic!("one file");
        };
        assert_eq!(fs::read(kept).unwrap(), stale);
        drop(log);
        assert_eq!(fate(dir.path()).await, Fate::Whole);
    }
    // With events that come next it is not.
    let dir = copy(template.path());
    let last = &paths[paths.len() - 1];
    fs::remove_file(dir.path().join(DATABASE)).unwrap();
    let wrong = segments::path(dir.path(), next);
    fs::rename(dir.path().join(last.file_name().unwrap()), &wrong).unwrap();
    let error = open_at(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(wrong.to_str().unwrap()), "{error}");
    assert!(wrong.exists() && quarantined(dir.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_or_no_database_is_made_anew() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("it is gone", |path| fs::remove_file(path).unwrap()),
        ("it is empty", |path| fs::write(path, "").unwrap()),
        ("it is no database", |path| zero(path, 16)),
        ("it has no first page", |path| zero(path, 8_192)),
        ("it is cut", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 16 * 8]).unwrap();
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
        damage(&dir.path().join(DATABASE));
        let inspected = inspect(dir.path());
        assert!(inspected.is_err(), "{what}: {inspected:?}");
        let (log, text) = said(|| open_at(dir.path()).unwrap());
        assert!(
            text.contains("it is made anew from the segments"),
            "{what}: {text}"
        );
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
async fn an_index_is_not_made_anew_from_segments_that_lack_what_it_knew() {
    let template = template().await;
    let paths = segment_paths(template.path());
    for path in &paths {
        // A row is damaged that does not say what is missing, and then one that does.
        for (table, column) in [("terms", "term"), ("id_runs", "keys")] {
            let dir = copy(template.path());
            fs::remove_file(dir.path().join(path.file_name().unwrap())).unwrap();
            let sql = format!("UPDATE {table} SET {column} = {column} + 1");
            assert!(tamper(dir.path(), |connection| connection.execute(&sql, [])));
            let index = fs::read(dir.path().join(DATABASE)).unwrap();
            for _ in 0..2 {
                let opened = open_at(dir.path()).map(|_| ());
                let error = opened.unwrap_err().to_string();
                assert!(error.contains("event"), "{error}");
            }
            assert_eq!(fs::read(dir.path().join(DATABASE)).unwrap(), index);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_descriptors_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let none_left = Arc::new(AtomicBool::new(true));
    let seams = {
        let none_left = Arc::clone(&none_left);
        Seams {
            fault: Box::new(move |stage| {
                if stage == Stage::Write && none_left.load(Ordering::SeqCst) {
                    return Err(rustix::io::Errno::MFILE.into());
                }
                Ok(())
            }),
            ..Seams::default()
        }
    };
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
    let mut marks = Vec::new();
    // It says that event 9 is here, in a segment that ends with event 5.
    for number in [9_u64, 0, 32] {
        marks.extend_from_slice(&number.to_le_bytes());
    }
    let sequences = (Sequence(1), Sequence(5));
    let segment = segments::Segment::stored(1, sequences, UnixMicros(0), 1_000, &marks);
    assert!(!segment.is_plausible());
    let segments = Segments::new(dir.path(), log, [segment].into());
    let read = readers::read(&segments, Sequence(5), Sequence(0), 100);
    assert!(matches!(read, Err(readers::Fault::Damaged(_))));
    assert!(readers::time_after(&segments, Sequence(5), Sequence(0)).is_err());
    let seek = readers::seek(&segments, Sequence(5), UnixMicros(1)).unwrap();
    assert_eq!(seek, None);
}
