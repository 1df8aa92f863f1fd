//! Damaged, missing and foreign files, and failures of the disk: nothing counts as new because of
//! them, as long as the caller adds the keys again that it is asked for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use prelude_bridge_event::{LogId, Sequence, UnixMicros};
use tempfile::TempDir;

use super::{
    Error, Ids, Key, Limits,
    tests::{LIMITS, LOG, Rig, copy, key},
};

const FILES: u64 = 3;
const FILE_KEYS: u64 = 30;

/// Three files, and the mark of one that is forgotten.
fn directory() -> TempDir {
    let mut rig = Rig::new(LIMITS);
    for file in 0..FILES + 1 {
        rig.add_numbers(file * FILE_KEYS..(file + 1) * FILE_KEYS);
        rig.finish();
        rig.now += LIMITS.span_micros + 1;
    }
    // Of four the first is too old.
    rig.now += LIMITS.age_micros - 4 * LIMITS.span_micros;
    rig.forget();
    rig.work(usize::MAX);
    assert_eq!(rig.names().len(), 4, "{:?}", rig.names());
    copy(rig.directory.path())
}

fn paths(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.read_dir().unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| path.to_string_lossy().contains("ids-"));
    paths
}

fn open(directory: &Path) -> Ids {
    Ids::open(directory, LOG, LIMITS).unwrap()
}

/// That every key up to `through` is known, and how far that is.
fn check(directory: &Path) -> (u64, usize) {
    let mut ids = open(directory);
    let through = ids.through().0;
    let keys: Vec<Key> = (FILE_KEYS..through).map(key).collect();
    let mut known = Vec::new();
    match ids.find(&keys, &mut known) {
        Ok(()) => {
            assert!(known.iter().all(Option::is_some), "something is forgotten");
            (through, ids.aside().len())
        }
        Err(Error::Damaged { path, .. }) => {
            assert!(!path.exists(), "it was put aside");
            let before = through;
            let (through, aside) = check(directory);
            assert!(through < before);
            (through, aside)
        }
        Err(error) => panic!("{error}"),
    }
}

/// Changes one file of a copy of the directory, and checks what becomes of it: files from this one
/// on do not count, those before it do.
fn assert_noticed(directory: &Path, file: usize, change: impl FnOnce(&Path)) {
    let copy = copy(directory);
    change(&paths(copy.path())[file]);
    let (through, aside) = check(copy.path());
    assert_eq!(through, (file as u64 + 1) * FILE_KEYS, "file {file}");
    assert!(aside >= FILES as usize - file - 1, "{aside} files aside");
    let again = check(copy.path());
    assert_eq!(again.0, through, "and it stays so");
}

/// The same, and adds the keys again that are asked for.
fn assert_mended(directory: &Path, file: usize, change: impl Fn(&Path)) {
    assert_noticed(directory, file, &change);
    let copy = copy(directory);
    change(&paths(copy.path())[file]);
    let (through, _) = check(copy.path());
    let mut ids = open(copy.path());
    for file in through / FILE_KEYS..FILES + 1 {
        let keys: Vec<Key> = (file * FILE_KEYS..(file + 1) * FILE_KEYS)
            .map(key)
            .collect();
        ids.add(&keys, Sequence((file + 1) * FILE_KEYS), UnixMicros(1));
        ids.seal();
        while ids.background().run_once().unwrap() {}
    }
    drop(ids);
    assert_eq!(check(copy.path()).0, (FILES + 1) * FILE_KEYS);
}

#[test]
fn every_changed_byte_of_a_file_is_noticed() {
    let directory = directory();
    for file in 0..FILES as usize {
        let bytes = fs::read(&paths(directory.path())[file]).unwrap();
        // All of one file, and of the others a part.
        let step = if file == 1 { 1 } else { 61 };
        for place in (file..bytes.len()).step_by(step) {
            assert_noticed(directory.path(), file, |path| {
                let mut bytes = bytes.clone();
                bytes[place] ^= 1 << (place % 8);
                fs::write(path, bytes).unwrap();
            });
        }
    }
}

#[test]
fn a_file_of_any_other_length_is_noticed() {
    let directory = directory();
    let bytes = fs::read(&paths(directory.path())[1]).unwrap();
    let near_end = bytes.len() - 300..bytes.len();
    for length in (0..bytes.len() - 300).step_by(37).chain(near_end) {
        assert_noticed(directory.path(), 1, |path| {
            fs::write(path, &bytes[..length]).unwrap();
        });
    }
    for more in [1, 8, 4_096, bytes.len()] {
        assert_noticed(directory.path(), 1, |path| {
            let mut longer = bytes.clone();
            longer.extend(vec![0; more]);
            fs::write(path, longer).unwrap();
        });
    }
    assert_noticed(directory.path(), 2, |path| {
        fs::write(path, [&bytes[..], &bytes[..]].concat()).unwrap();
    });
}

#[test]
fn a_file_that_is_missing_or_another_one_is_noticed() {
    let directory = directory();
    let another = another_log();
    for file in 0..FILES as usize {
        assert_noticed(directory.path(), file, |path| {
            fs::remove_file(path).unwrap();
        });
        // One of another log.
        assert_mended(directory.path(), file, |path| {
            fs::copy(&paths(another.path())[file], path).unwrap();
        });
        // One of this log with other keys.
        assert_mended(directory.path(), file, |path| {
            let other = &paths(directory.path())[(file + 1) % FILES as usize];
            fs::copy(other, path).unwrap();
        });
    }
}

fn another_log() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut ids = Ids::open(directory.path(), LogId(LOG.0 + 1), LIMITS).unwrap();
    for file in 1..FILES + 1 {
        let keys: Vec<Key> = (file * FILE_KEYS..(file + 1) * FILE_KEYS)
            .map(key)
            .collect();
        let at = file.cast_signed() * (LIMITS.span_micros + 1);
        ids.add(&keys, Sequence((file + 1) * FILE_KEYS), UnixMicros(at));
        ids.seal();
        while ids.background().run_once().unwrap() {}
    }
    directory
}

#[test]
fn without_the_mark_of_what_is_forgotten_all_is_asked_for() {
    let directory = directory();
    fs::remove_file(directory.path().join(format!("forgotten-{FILE_KEYS:020}"))).unwrap();
    assert_eq!(check(directory.path()), (0, FILES as usize));
}

#[test]
fn what_is_put_aside_is_told_until_it_is_taken() {
    let directory = directory();
    fs::remove_file(&paths(directory.path())[1]).unwrap();
    for _ in 0..2 {
        let ids = open(directory.path());
        let [aside] = ids.aside() else {
            panic!("{:?}", ids.aside());
        };
        assert!(aside.path.is_file() && !aside.reason.is_empty());
    }
    let aside = open(directory.path()).aside()[0].clone();
    fs::remove_file(aside.path).unwrap();
    assert_eq!(open(directory.path()).aside(), []);
}

#[test]
fn keys_of_events_that_the_log_does_not_have_are_put_aside() {
    let directory = directory();
    // The head, how far the files go then, and how many do not count.
    let cases = [
        (120, 120, 0),
        (119, 90, 1),
        (90, 90, 1),
        (31, 30, 3),
        (30, 30, 3),
        (29, 29, 3),
    ];
    for (head, through, aside) in cases {
        let copy = copy(directory.path());
        let mut ids = open(copy.path());
        ids.discard_after(Sequence(head)).unwrap();
        assert_eq!(ids.through(), Sequence(through), "head {head}");
        assert_eq!(ids.aside().len(), aside, "head {head}");
        // What is appended in their place is remembered.
        let keys: Vec<Key> = (1_000..1_040).map(key).collect();
        ids.add(&keys, Sequence(head + 40), UnixMicros(1));
        while ids.background().run_once().unwrap() {}
        assert_eq!(ids.through(), Sequence(head + 40));
        assert_eq!(open(copy.path()).through(), Sequence(head + 40));
    }
}

#[test]
fn a_damaged_block_is_noticed_by_a_merge() {
    let mut rig = Rig::new(Limits {
        part_keys_max: 1_000,
        ..LIMITS
    });
    for file in 0..2 {
        rig.add_numbers(file * 40..file * 40 + 40);
        rig.finish();
    }
    let path = &paths(rig.directory.path())[0];
    let mut bytes = fs::read(path).unwrap();
    bytes[100] ^= 1;
    fs::write(path, bytes).unwrap();
    rig.add_numbers(80..120);
    rig.ids.seal();
    let background = rig.ids.background();
    let error = loop {
        match background.run_once() {
            Ok(has_more) => assert!(has_more),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Damaged { path: damaged, .. } if damaged == *path));
    rig.reopen();
    assert_eq!(rig.ids.through(), Sequence::ZERO);
    assert_eq!(rig.ids.aside().len(), 3);
    let keys: Vec<Key> = (0..120).map(key).collect();
    assert!(
        rig.known(&keys).iter().all(|&known| known),
        "from the segments"
    );
}

/// A directory in the place of a file: it can be neither created nor replaced.
#[test]
fn what_cannot_be_written_is_tried_again_and_nothing_is_lost() {
    for name in [
        "ids-00000000000000000001-00000000000000000040",
        "forgotten-00000000000000000040",
    ] {
        for suffix in ["", ".writing"] {
            let mut rig = Rig::new(LIMITS);
            let obstacle = rig.directory.path().join(format!("{name}{suffix}"));
            fs::create_dir_all(obstacle.join("something")).unwrap();
            rig.add_numbers(0..40);
            let is_mark = name.starts_with("forgotten");
            if is_mark {
                rig.work(usize::MAX);
                rig.now += LIMITS.age_micros + 1;
                rig.forget();
            }
            let background = rig.ids.background();
            let expected_to_fail = !is_mark || suffix.is_empty();
            let mut failures = 0;
            for _ in 0..100 {
                failures += usize::from(background.run_once().is_err());
            }
            assert_eq!(failures > 1, expected_to_fail, "{}", obstacle.display());
            let keys: Vec<Key> = (0..40).map(key).collect();
            assert_eq!(rig.known(&keys), [!is_mark; 40]);
            fs::remove_dir_all(&obstacle).unwrap();
            rig.work(usize::MAX);
            assert_eq!(rig.known(&keys), [!is_mark; 40]);
            assert_eq!(rig.names().len(), 1, "{:?}", rig.names());
            rig.reopen();
            assert_eq!(rig.ids.through(), Sequence(40));
        }
    }
}
