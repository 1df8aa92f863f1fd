//! A data directory of which bytes were changed: opening it never fails in an unforeseen way, what is read
//! from it is what was written, and a second start finds what the first one left.
#![no_main]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use libfuzzer_sys::fuzz_target;
use prelude_bridge::{
    event::{Batch, Draft, EventKey, Sequence},
    log::{Log as _, ReadError, embedded},
    wire::Head,
};
use tokio::runtime::{self, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| runtime::Builder::new_current_thread().build().unwrap());
/// The files of a log of nine commits.
static FILES: LazyLock<BTreeMap<PathBuf, Vec<u8>>> = LazyLock::new(|| {
    let home = tempfile::tempdir_in("/dev/shm").unwrap();
    for _ in 0..3 {
        let log = embedded::open(home.path(), embedded::Options::default()).unwrap();
        for _ in 0..3 {
            let first = log.range().head.0 + 1;
            RUNTIME
                .block_on(log.append(batch(first, 1 + first % 3)))
                .unwrap();
        }
        RUNTIME.block_on(log.close());
    }
    files(home.path(), home.path())
});

/// Events whose ids are their sequence numbers.
fn batch(first: u64, count: u64) -> Batch {
    let (mut encoded, mut drafts) = (Vec::new(), Vec::new());
    for number in first..first + count {
        let start = encoded.len();
        let id = number.to_string();
        let head = Head {
            id: &id,
            event_type: "user.created",
            app_id: "a",
            ..Head::default()
        };
        head.encode(&mut encoded);
        drafts.push(Draft {
            key: EventKey::new("a", &id, "user.created", b""),
            event_type: "user.created".into(),
            user_hash: 0,
            head: start..encoded.len(),
            payload: 0..0,
            raw_json: 0..0,
        });
    }
    Batch {
        app_id: "a".into(),
        body: Default::default(),
        encoded: encoded.into(),
        drafts,
        dates: Default::default(),
    }
}

fn files(root: &Path, directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(root, &path));
        } else {
            let mut bytes = fs::read(&path).unwrap();
            // What was prepared in advance is zeros.
            let written = bytes
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |at| at + 1);
            bytes.truncate(written.next_multiple_of(4096).min(bytes.len()));
            found.insert(path.strip_prefix(root).unwrap().to_owned(), bytes);
        }
    }
    found
}

/// Four bytes a change: which file, what is done, and where.
fn damaged(changes: &[u8]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = FILES.clone();
    for change in changes.chunks_exact(4).take(8) {
        let &[file, value, high, low] = change else {
            continue;
        };
        let at = usize::from(u16::from_be_bytes([high, low]));
        let index = usize::from(file & 0x3f) % files.len();
        let (path, bytes) = files.iter_mut().nth(index).unwrap();
        let at = at % bytes.len().max(1);
        match file >> 6 {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= value;
                }
            }
            2 => bytes.truncate(at),
            _ => {
                let path = path.clone();
                files.remove(&path);
                if files.is_empty() {
                    break;
                }
            }
        }
    }
    files
}

/// The sequence numbers that can be read; `None` if the log does not open.
fn open(directory: &Path) -> Option<(Vec<u64>, Option<ReadError>)> {
    let log = embedded::open(directory, embedded::Options::default()).ok()?;
    let range = log.range();
    let (mut after, mut read) = (range.earliest.before(), Vec::new());
    let mut failed = None;
    while after < range.head {
        let blocks = match RUNTIME.block_on(log.read(after, 1 << 20)) {
            Ok(blocks) => blocks,
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        for block in &blocks {
            for (index, key) in block.keys().enumerate() {
                let sequence = block.first_sequence().plus(index as u64);
                assert_eq!(key, EventKey::new("a", &sequence.0.to_string(), "user.created", b""));
                read.push(sequence.0);
            }
            after = block.last_sequence();
        }
        assert!(!blocks.is_empty());
    }
    assert!(range.head <= Sequence(FILES_HEAD));
    RUNTIME.block_on(log.close());
    drop(Arc::clone(&log));
    Some((read, failed))
}

/// More events than the log has.
const FILES_HEAD: u64 = 27;

fuzz_target!(|changes: &[u8]| {
    let home = tempfile::tempdir_in("/dev/shm").unwrap();
    for (path, bytes) in damaged(changes) {
        let path = home.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let Some((read, failed)) = open(home.path()) else {
        return;
    };
    assert!(read.is_sorted());
    let (again, _) = open(home.path()).expect("what was opened opens again");
    if failed.is_none() {
        assert_eq!(again, read);
    }
});
