//! Owns the directory of what a start took out of the log: the ends of commits that were torn, files
//! without a commit, a manifest that was damaged. Nothing is read there again; it is kept for a person
//! to look at, within bounds.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use super::directory;
use crate::clock::{RetentionNow, RetentionTime};
use prelude_bridge_event::UnixMicros;

/// The directory, in the data directory.
pub(super) const DIRECTORY: &str = "quarantine";
/// Of what is kept, the oldest goes when there are more files, …
const FILES_MAX: usize = 16;
/// … or more bytes: four segments. The newest always stays.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Behind this in a file's name is since when it is there, by the retention clock.
const SINCE: &str = ".since-";

/// Moves a file there, at this time of the retention clock. Durable when this returns.
pub(super) fn take_file(data_dir: &Path, path: &Path, now: RetentionTime) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kept = place(data_dir, &name, now)?;
    fs::rename(path, &kept)?;
    finish(data_dir, &kept)?;
    Ok(kept)
}

/// Copies these bytes of a file there, and writes zeros over them: so nothing is left of a commit
/// that is not there, for a later one to be mixed with. Durable when this returns.
pub(super) fn take_bytes(
    data_dir: &Path,
    path: &Path,
    (from, to): (u64, u64),
    now: RetentionTime,
) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kept = place(data_dir, &format!("{name}-from-{from}"), now)?;
    let mut source = directory::open_private(path)?;
    source.seek(io::SeekFrom::Start(from))?;
    let length = to.saturating_sub(from);
    copy((&mut source).take(length), &kept)?;
    finish(data_dir, &kept)?;
    source.seek(io::SeekFrom::Start(from))?;
    io::copy(&mut io::repeat(0).take(length), &mut source)?;
    source.flush()?;
    source.sync_all()?;
    Ok(kept)
}

/// Writes a copy that is whole, or none: a start that finds no room for it tries again.
fn copy(mut from: impl io::Read, kept: &Path) -> io::Result<()> {
    let mut file = directory::open_private(kept)?;
    let copied = io::copy(&mut from, &mut file).and_then(|_| file.sync_all());
    copied.inspect_err(|_| {
        let _ = fs::remove_file(kept);
    })
}

/// A free name. It begins with the time, so that they sort by age, and ends with that of the retention
/// clock. The file keeps it: the line in the log that names it stays true.
fn place(data_dir: &Path, name: &str, now: RetentionTime) -> io::Result<PathBuf> {
    let directory = data_dir.join(DIRECTORY);
    directory::create_directory(&directory)?;
    let wall = UnixMicros::now().0;
    let mut count = 0;
    loop {
        let path = directory.join(format!("{wall:016}-{count:03}-{name}{SINCE}{}", now.0));
        if !path.try_exists()? {
            return Ok(path);
        }
        count += 1;
    }
}

/// Removes what has been there for longer than `micros_max`. A file's name says since when it is there
/// by the retention clock: the clock of its modification can be wrong. One that another retention clock has
/// named, or nobody, gets a new name.
pub(super) fn remove_old(data_dir: &Path, micros_max: i64, now: &RetentionNow) -> io::Result<()> {
    let directory = data_dir.join(DIRECTORY);
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (name, since) = name.rsplit_once(SINCE).unwrap_or((&name, ""));
        // Of a later time is what another clock has named.
        let since = since.parse().ok().map(RetentionTime);
        match since.filter(|&since| since <= now.time) {
            Some(since) if now.age_of(since) > micros_max => {
                fs::remove_file(&path)?;
                tracing::info!(path = %path.display(), "a file was in the quarantine for its time, and was removed");
            }
            Some(_) => {}
            None => {
                let kept = directory.join(format!("{name}{SINCE}{}", now.time.0));
                fs::rename(&path, &kept)?;
                tracing::info!(
                    path = %path.display(),
                    kept = %kept.display(),
                    "the time of a file in the quarantine counts from now on"
                );
            }
        }
    }
    Ok(())
}

fn finish(data_dir: &Path, kept: &Path) -> io::Result<()> {
    let directory = data_dir.join(DIRECTORY);
    directory::sync_directory(&directory)?;
    directory::sync_directory(data_dir)?;
    let mut files = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let bytes = path.metadata().map_or(0, |metadata| metadata.len());
        files.push((path, bytes));
    }
    files.sort();
    let mut bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    let mut count = files.len();
    for (path, size) in files {
        if (count <= FILES_MAX && bytes <= BYTES_MAX) || path == kept {
            break;
        }
        fs::remove_file(&path)?;
        tracing::warn!(path = %path.display(), "the quarantine is full: its oldest file was removed");
        count -= 1;
        bytes -= size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: RetentionTime = RetentionTime(5);

    fn kept(dir: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<_> = (fs::read_dir(dir.join(DIRECTORY)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths
    }

    #[test]
    fn what_is_taken_out_is_kept_and_leaves_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events-00001");
        fs::write(&path, b"whole torn rest").unwrap();
        let copy = take_bytes(dir.path(), &path, (6, 10), NOW).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"torn");
        assert_eq!(fs::read(&path).unwrap(), b"whole \0\0\0\0 rest");
        let moved = take_file(dir.path(), &path, NOW).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&moved).unwrap(), b"whole \0\0\0\0 rest");
        assert_eq!(kept(dir.path()), [copy, moved]);
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing() {
        struct Failing;
        impl io::Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        let copied = copy(io::Cursor::new([7; 100]).chain(Failing), &path);
        assert_eq!(copied.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_goes_after_its_time_and_a_clock_that_began_anew_removes_none() {
        let dir = tempfile::tempdir().unwrap();
        remove_old(dir.path(), 10, &RetentionNow::at(0)).unwrap();
        let path = dir.path().join("events-00001");
        fs::write(&path, b"torn").unwrap();
        let said = take_bytes(dir.path(), &path, (0, 4), NOW).unwrap();
        let count = |now| {
            remove_old(dir.path(), 10, &RetentionNow::at(now)).unwrap();
            kept(dir.path()).len()
        };
        assert_eq!((count(5), count(15)), (1, 1));
        assert_eq!(kept(dir.path()), [said], "it keeps its name");
        // Its time counts from now on.
        assert_eq!((count(2), count(12)), (1, 1));
        take_file(dir.path(), &path, RetentionTime(12)).unwrap();
        assert_eq!((count(12), count(13)), (2, 1), "each has a time of its own");
        assert_eq!((count(22), count(23)), (1, 0));
        let without_time = dir.path().join(DIRECTORY).join("1-000-events-00001");
        fs::write(&without_time, b"torn").unwrap();
        assert_eq!((count(30), count(40), count(41)), (1, 1, 0));
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_or_they_are_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events-00001");
        for n in 0..FILES_MAX + 3 {
            fs::write(&path, n.to_string()).unwrap();
            take_file(dir.path(), &path, NOW).unwrap();
        }
        let left = kept(dir.path());
        assert_eq!(left.len(), FILES_MAX);
        assert_eq!(fs::read(&left[0]).unwrap(), b"3");
        let large = fs::File::create(&path).unwrap();
        large.set_len(BYTES_MAX + 1).unwrap();
        let large = take_file(dir.path(), &path, NOW).unwrap();
        assert_eq!(kept(dir.path()), [large], "the newest stays");
    }
}
