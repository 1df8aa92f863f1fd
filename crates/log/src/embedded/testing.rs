//! What the tests of the log on disk have in common: logs, their files, and damage to them.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
};

use super::{
    directory::MANIFEST_FILE,
    frame::{Header, SEGMENT_HEADER_BYTES},
    frames::Frames,
    *,
};
use crate::clock::{Boot, Reading};

/// Far more than anything in these tests takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// A clock that shows what it is set to.
pub(super) fn clock(now: &Arc<AtomicI64>) -> Clock {
    let now = Arc::clone(now);
    Clock {
        read: Arc::new(move || {
            let now = now.load(Ordering::SeqCst);
            Reading {
                wall: UnixMicros(now),
                steady: now,
            }
        }),
        boot: Some(Boot::default()),
    }
}

/// A disk that fails at a stage, as long as that is wanted.
pub(super) fn failing_disk(
    at: Stage,
    failing: &Arc<AtomicBool>,
    error: impl Fn() -> io::Error + Send + Sync + 'static,
) -> Seams {
    let failing = Arc::clone(failing);
    Seams {
        fault: Arc::new(move |stage| {
            if stage == at && failing.load(Ordering::SeqCst) {
                return Err(error());
            }
            Ok(())
        }),
        ..Seams::default()
    }
}

pub(super) fn no_space() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

/// So small that files of ids are written and merged all the time.
pub(super) fn small_ids(part_keys_max: u64) -> ids::Limits {
    ids::Limits {
        part_keys_max,
        file_keys_max: 10 * part_keys_max,
        section_keys: 20,
        fan_in: 3,
        ..ids::Limits::new(Duration::MAX, u64::MAX)
    }
}

pub(super) async fn waits_until(condition: impl Fn() -> bool) {
    tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the condition comes true");
}

/// The segments with events in them.
pub(super) fn segment_paths(dir: &Path) -> Vec<PathBuf> {
    let ordinals = segments::ordinals(dir).unwrap();
    let paths = ordinals.iter().map(|&ordinal| segments::path(dir, ordinal));
    // The log may be open, and remove one meanwhile.
    let has_events =
        |path: &PathBuf| fs::File::open(path).is_ok_and(|file| !frames_in(file).is_empty());
    paths.filter(has_events).collect()
}

/// The newest segment with events in it.
pub(super) fn last_segment(dir: &Path) -> PathBuf {
    segment_paths(dir).pop().unwrap()
}

/// The frames of a segment: where they begin, and their headers.
pub(super) fn frames_of(path: &Path) -> Vec<(u64, Header)> {
    frames_in(fs::File::open(path).unwrap())
}

fn frames_in(file: fs::File) -> Vec<(u64, Header)> {
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

/// Changes a bit of a file.
pub(super) fn flip(path: &Path, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

/// Cuts a file.
pub(super) fn cut(path: &Path, bytes: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(bytes).unwrap();
}

pub(super) fn manifest_of(dir: &Path) -> Vec<u8> {
    fs::read(dir.join(MANIFEST_FILE)).unwrap()
}

/// Where the footer of a segment is, if it has one.
pub(super) fn footer_of(path: &Path) -> Option<std::ops::Range<u64>> {
    let file = fs::File::open(path).unwrap();
    let log = frame::log_of(&file).unwrap()?;
    let ordinals = segments::ordinals(path.parent().unwrap()).unwrap();
    let is_this = |&ordinal: &u64| segments::path(path.parent().unwrap(), ordinal) == path;
    let ordinal = ordinals.into_iter().find(is_this).unwrap();
    let segment = footer::read(&file, log, ordinal).unwrap()?;
    let bytes = file.metadata().unwrap().len();
    let tail = fs::read(path).unwrap();
    let tail = &tail[tail.len() - 16..];
    let content = u64::from(u32::from_le_bytes(tail[..4].try_into().unwrap()));
    assert!(segment.end <= bytes - 16 - content);
    Some(bytes - 16 - content..bytes)
}

/// As after a loss of power at an earlier time, when this was the manifest: no segment was sealed
/// since.
pub(super) fn rewind(dir: &Path, manifest: &[u8]) {
    fs::write(dir.join(MANIFEST_FILE), manifest).unwrap();
    for path in segment_paths(dir) {
        if let Some(footer) = footer_of(&path) {
            cut(&path, footer.start);
        }
    }
}

/// The files of ids that are whole.
pub(super) fn id_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(directory::IDS_DIRECTORY)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("ids-") && !name.ends_with(".writing")
        })
        .collect();
    files.sort();
    files
}

/// A copy of a directory and those in it.
pub(super) fn copy(from: &Path) -> tempfile::TempDir {
    fn copy_into(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                fs::create_dir(&to).unwrap();
                copy_into(&path, &to);
            } else if fs::copy(&path, &to).is_err() {
                // The log is open, and a file went while it was copied.
                assert!(!path.exists());
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy_into(from, dir.path());
    dir
}

pub(super) fn quarantined(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join(quarantine::DIRECTORY)) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The files of the quarantine, each with its path and its bytes.
pub(super) fn read_quarantined(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = quarantined(dir).into_iter();
    paths
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

/// What a log says while something is done.
pub(super) fn said<T>(work: impl FnOnce() -> T) -> (T, String) {
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
