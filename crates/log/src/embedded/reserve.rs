//! Owns the reserve: room on the disk that is kept so that old events can be removed when the disk is
//! full, as what is removed has to be noted down first. Where there is none, because it was used or because
//! a start finds no room for it, no event is taken until there is one: otherwise events would take the room
//! that is to free others.

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
    Fault, Stage,
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
    /// There is none: it was used, or there was no room for it.
    is_missing: AtomicBool,
}

impl Reserve {
    /// The reserve of a log of this size.
    pub(super) fn new(directory: &Path, log_bytes_max: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            bytes: (log_bytes_max / LOG_PARTS).clamp(BYTES_MIN, BYTES_MAX),
            is_missing: AtomicBool::new(false),
        }
    }

    /// Whether there is none: it was used, or there was no room for it.
    pub(super) fn is_missing(&self) -> bool {
        self.is_missing.load(Ordering::Relaxed)
    }

    /// Gives the room free. False when there is no reserve: somebody else may have removed it.
    pub(super) fn release(&self) -> bool {
        let removed = fs::remove_file(self.path());
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        if removed.as_ref().map_or_else(is_gone, |()| true) {
            self.is_missing.store(true, Ordering::Relaxed);
        }
        removed.is_ok()
    }

    /// Whether so many bytes have room in it and in what the disk has free. Where that is not known, trying
    /// tells.
    pub(super) fn makes_room_for(&self, bytes: u64, free: Option<u64>) -> bool {
        let reserved = fs::metadata(self.path()).map_or(0, |file| file.len());
        free.is_none_or(|free| bytes <= free.saturating_add(reserved))
    }

    /// Makes the reserve, as far as there is room. True when there is one now.
    ///
    /// # Errors
    /// Failures of the disk other than that it is full.
    pub(super) fn make(&self, fault: &Fault) -> io::Result<bool> {
        let made = fault(Stage::Reserve).and_then(|()| self.make_of(self.free_bytes()));
        let is_there = match made {
            Err(error) if disk_error::is_no_space(&error) => false,
            made => made?,
        };
        self.is_missing.store(!is_there, Ordering::Relaxed);
        Ok(is_there)
    }

    /// The same on a disk that has so much free. Where that is not known, trying tells.
    fn make_of(&self, free: Option<u64>) -> io::Result<bool> {
        let file = directory::open_private(&self.path())?;
        let found = file.metadata()?.len();
        let wanted = free.map_or(self.bytes, |free| self.bytes.min(free / FREE_PARTS));
        let mut bytes = found;
        if wanted > found && wanted >= BYTES_MIN {
            match allocate(&file, found, wanted) {
                Ok(()) => bytes = wanted,
                Err(error) if disk_error::is_no_space(&error) => file.set_len(found)?,
                Err(error) => return Err(error),
            }
        }
        let is_there = bytes >= BYTES_MIN;
        if !is_there {
            fs::remove_file(self.path())?;
        }
        Ok(is_there)
    }

    /// What the disk has free for this process, if that is known.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let disk = statvfs(&self.directory).ok()?;
        // Some file systems do not say how large they are.
        let is_known = disk.f_blocks > 0;
        is_known.then_some(disk.f_bavail.saturating_mul(disk.f_frsize))
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
    use std::sync::Arc;

    use super::*;

    fn make(reserve: &Reserve) -> bool {
        let no_fault: Fault = Arc::new(|_| Ok(()));
        reserve.make(&no_fault).unwrap()
    }

    #[test]
    fn a_reserve_is_made_once_grows_and_is_made_again_after_it_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = || fs::metadata(dir.path().join(RESERVE_FILE)).map(|file| file.len());
        let small = Reserve::new(dir.path(), 1);
        assert!(!small.release() && small.is_missing(), "there is none yet");
        assert!(make(&small) && !small.is_missing());
        assert_eq!(bytes().unwrap(), BYTES_MIN);
        let large = Reserve::new(dir.path(), u64::MAX);
        assert!(make(&large));
        assert_eq!(bytes().unwrap(), BYTES_MAX);
        assert!(make(&small));
        assert_eq!(bytes().unwrap(), BYTES_MAX, "it does not shrink");
        assert!(large.release() && large.is_missing());
        assert!(bytes().is_err());
        assert!(!large.release() && large.is_missing());
        assert!(make(&large) && !large.is_missing());
        assert_eq!(bytes().unwrap(), BYTES_MAX);
        let of_a_gib = Reserve::new(dir.path(), 64 * 1024 * 1024);
        assert_eq!(of_a_gib.bytes, 1024 * 1024);
    }

    #[test]
    fn without_room_for_it_a_reserve_is_missing_until_there_is_some() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path(), u64::MAX);
        let full: Fault = Arc::new(|_| Err(Errno::NOSPC.into()));
        assert!(!reserve.make(&full).unwrap() && reserve.is_missing());
        let room_min = BYTES_MIN * FREE_PARTS;
        assert!(!reserve.make_of(Some(room_min - 1)).unwrap());
        assert!(!reserve.path().exists());
        assert!(reserve.make_of(Some(room_min)).unwrap());
        assert_eq!(fs::metadata(reserve.path()).unwrap().len(), BYTES_MIN);
        assert!(reserve.make_of(Some(0)).unwrap(), "it is there");
        assert!(!reserve.makes_room_for(BYTES_MIN + 1, Some(0)));
        assert!(reserve.makes_room_for(BYTES_MIN + 1, Some(1)));
        assert!(reserve.makes_room_for(BYTES_MAX, None));
        assert!(reserve.make_of(None).unwrap());
        assert_eq!(fs::metadata(reserve.path()).unwrap().len(), BYTES_MAX);
        assert!(make(&reserve) && !reserve.is_missing());
        fs::remove_file(reserve.path()).unwrap();
        assert!(!reserve.release() && reserve.is_missing());
    }
}
