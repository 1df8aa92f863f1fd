//! Owns the directory of what a start took out of the log: the ends of commits that were torn, files
//! without a commit, a manifest that was damaged. Nothing is read there again; it is kept for a person
//! to look at, within bounds.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use super::directory;
use prelude_bridge_event::UnixMicros;

/// The directory, in the data directory.
pub(super) const DIRECTORY: &str = "quarantine";
/// Of what is kept, the oldest goes when there are more files, …
const FILES_MAX: usize = 16;
/// … or more bytes: four segments. The newest always stays.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Moves a file there. Durable when this returns.
pub(super) fn take_file(data_dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kept = place(data_dir, &name)?;
    fs::rename(path, &kept)?;
    finish(data_dir, &kept)?;
    Ok(kept)
}

/// Copies these bytes of a file there, and writes zeros over them: so nothing is left of a commit
/// that is not there, for a later one to be mixed with. Durable when this returns.
pub(super) fn take_bytes(data_dir: &Path, path: &Path, from: u64, to: u64) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kept = place(data_dir, &format!("{name}-from-{from}"))?;
    let mut source = directory::open_private(path)?;
    source.seek(io::SeekFrom::Start(from))?;
    let mut copy = directory::open_private(&kept)?;
    let length = to.saturating_sub(from);
    io::copy(&mut (&mut source).take(length), &mut copy)?;
    copy.sync_all()?;
    finish(data_dir, &kept)?;
    source.seek(io::SeekFrom::Start(from))?;
    io::copy(&mut io::repeat(0).take(length), &mut source)?;
    source.flush()?;
    source.sync_all()?;
    Ok(kept)
}

/// A free name: with the time, so that they sort by age.
fn place(data_dir: &Path, name: &str) -> io::Result<PathBuf> {
    let directory = data_dir.join(DIRECTORY);
    directory::create_directory(&directory)?;
    let now = UnixMicros::now().0;
    let mut count = 0;
    loop {
        let path = directory.join(format!("{now:016}-{count:03}-{name}"));
        if !path.try_exists()? {
            return Ok(path);
        }
        count += 1;
    }
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
        let copy = take_bytes(dir.path(), &path, 6, 10).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"torn");
        assert_eq!(fs::read(&path).unwrap(), b"whole \0\0\0\0 rest");
        let moved = take_file(dir.path(), &path).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&moved).unwrap(), b"whole \0\0\0\0 rest");
        assert_eq!(kept(dir.path()), [copy, moved]);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_or_they_are_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events-00001");
        for n in 0..FILES_MAX + 3 {
            fs::write(&path, n.to_string()).unwrap();
            take_file(dir.path(), &path).unwrap();
        }
        let left = kept(dir.path());
        assert_eq!(left.len(), FILES_MAX);
        assert_eq!(fs::read(&left[0]).unwrap(), b"3");
        let large = fs::File::create(&path).unwrap();
        large.set_len(BYTES_MAX + 1).unwrap();
        let large = take_file(dir.path(), &path).unwrap();
        assert_eq!(kept(dir.path()), [large], "the newest stays");
    }
}
