//! Owns the reserve: room on the disk that is kept so that old events can be removed when the disk is
//! full, as what is removed has to be noted down first. When the reserve was used, no event is taken
//! until there is one again: otherwise events would take the room that is to free others.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
};

use super::{
    directory::{self, RESERVE_FILE},
    disk_error,
};

/// It has this part of the log's size, …
const LOG_PARTS: u64 = 64;
/// … at least so much: a manifest, a segment's header, and a small file of ids, …
const BYTES_MIN: u64 = 64 * 1024;
/// … and at most so much: a file of 200,000 ids.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// It takes no more than this part of what is free.
const FREE_PARTS: u64 = 16;

/// Room that is kept.
pub(super) struct Reserve {
    directory: PathBuf,
    bytes: u64,
    /// It was used, and there is none again yet.
    is_used: AtomicBool,
}

impl Reserve {
    /// The reserve of a log of this size.
    pub(super) fn new(directory: &Path, log_bytes_max: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            bytes: (log_bytes_max / LOG_PARTS).clamp(BYTES_MIN, BYTES_MAX),
            is_used: AtomicBool::new(false),
        }
    }

    /// Whether it was used, and there is none again yet.
    pub(super) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// Gives the room free. False when there is no reserve.
    pub(super) fn release(&self) -> bool {
        let is_released = fs::remove_file(self.path()).is_ok();
        if is_released {
            self.is_used.store(true, Ordering::Relaxed);
        }
        is_released
    }

    /// Makes the reserve, as far as there is room. True when there is one now.
    ///
    /// # Errors
    /// Failures of the disk other than that it is full.
    pub(super) fn make(&self) -> io::Result<bool> {
        let file = directory::open_private(&self.path())?;
        let found = file.metadata()?.len();
        let free = self.free_bytes().unwrap_or(0);
        let wanted = self.bytes.min(free / FREE_PARTS);
        let mut bytes = found;
        if wanted > found && wanted >= BYTES_MIN {
            match allocate(&file, found, wanted) {
                Ok(()) => bytes = wanted,
                Err(error) if disk_error::is_no_space(&error) => file.set_len(found)?,
                Err(error) => return Err(error),
            }
        }
        let is_there = bytes >= BYTES_MIN;
        if is_there {
            self.is_used.store(false, Ordering::Relaxed);
        } else {
            fs::remove_file(self.path())?;
        }
        Ok(is_there)
    }

    /// What the disk has free for this process, if that is known.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let disk = statvfs(&self.directory).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    fn path(&self) -> PathBuf {
        self.directory.join(RESERVE_FILE)
    }
}

fn allocate(mut file: &File, from: u64, to: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), from, to - from) {
        // Not every file system can do it.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            use io::Seek as _;
            file.seek(io::SeekFrom::Start(from))?;
            let length = usize::try_from(to - from).map_err(io::Error::other)?;
            file.write_all(&vec![0; length])?;
        }
        allocated => allocated?,
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_made_once_grows_and_is_made_again_after_it_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = || fs::metadata(dir.path().join(RESERVE_FILE)).map(|file| file.len());
        let small = Reserve::new(dir.path(), 1);
        assert!(!small.release() && !small.is_used(), "there is none yet");
        assert!(small.make().unwrap());
        assert_eq!(bytes().unwrap(), BYTES_MIN);
        let large = Reserve::new(dir.path(), u64::MAX);
        assert!(large.make().unwrap());
        assert_eq!(bytes().unwrap(), BYTES_MAX);
        assert!(small.make().unwrap());
        assert_eq!(bytes().unwrap(), BYTES_MAX, "it does not shrink");
        assert!(large.release() && large.is_used());
        assert!(bytes().is_err());
        assert!(!large.release() && large.is_used());
        assert!(large.make().unwrap() && !large.is_used());
        assert_eq!(bytes().unwrap(), BYTES_MAX);
        let of_a_gib = Reserve::new(dir.path(), 64 * 1024 * 1024);
        assert_eq!(of_a_gib.bytes, 1024 * 1024);
    }
}
