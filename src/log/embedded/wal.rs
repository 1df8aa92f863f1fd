//! Owns the length of the write-ahead log's file. SQLite makes it longer page by page, and then
//! each flush waits for the file system to write down where the new pages are: twice as long as
//! flushing what is written over, and ten times when other files grow too. So room is made ahead,
//! in large pieces, filled with zeros. To SQLite they are what is left behind the log's end, which
//! it never takes for a part of the log. Knows nothing of what is in the file.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

/// How much room is made at once: written and flushed in some ten milliseconds.
pub(super) const ROOM_BYTES: u64 = 4 * 1024 * 1024;
/// Room is made only where the disk has so many times as much: it is worth nothing on a disk that
/// is nearly full.
const FREE_ROOMS_MIN: u64 = 16;

/// The write-ahead log's file, beside SQLite's own handle of it.
pub(super) struct WalFile {
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl WalFile {
    /// Opens the file of a database that has been written to, and is not written to now.
    pub(super) fn open(database: &Path, bytes_max: u64) -> io::Result<Self> {
        let mut path = OsString::from(database);
        path.push("-wal");
        let file = OpenOptions::new().append(true).open(path)?;
        let bytes = file.metadata()?.len();
        let mut wal = Self {
            file,
            bytes,
            bytes_max,
        };
        wal.make_room()?;
        Ok(wal)
    }

    /// Whether a log of this size soon meets the end of the file.
    pub(super) fn is_short(&self, wal_bytes: u64) -> bool {
        self.bytes < self.bytes_max && wal_bytes + ROOM_BYTES / 2 > self.bytes
    }

    /// Makes the file longer, if it may be and there is room. Nobody may write to it meanwhile.
    pub(super) fn make_room(&mut self) -> io::Result<()> {
        // SQLite may have made it longer.
        self.bytes = self.file.metadata()?.len();
        let more = ROOM_BYTES.min(self.bytes_max.saturating_sub(self.bytes));
        if more == 0 || !self.disk_has_room() {
            self.bytes_max = self.bytes;
            return Ok(());
        }
        let zeros = vec![0; usize::try_from(more).unwrap_or_default()];
        if self.file.write_all(&zeros).is_err() {
            // It works without, and whoever set a limit meant it.
            self.file.set_len(self.bytes)?;
            self.bytes_max = self.bytes;
            return Ok(());
        }
        self.file.sync_data()?;
        self.bytes += more;
        Ok(())
    }

    fn disk_has_room(&self) -> bool {
        rustix::fs::fstatvfs(&self.file).is_ok_and(|disk| {
            disk.f_bavail.saturating_mul(disk.f_frsize) >= ROOM_BYTES * FREE_ROOMS_MIN
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_behind_what_is_there_and_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("log");
        let path = dir.path().join("log-wal");
        std::fs::write(&path, "frames").unwrap();
        let mut wal = WalFile::open(&database, 2 * ROOM_BYTES).unwrap();
        assert!(!wal.is_short(6));
        assert!(wal.is_short(ROOM_BYTES));
        wal.make_room().unwrap();
        assert!(!wal.is_short(3 * ROOM_BYTES), "it has its largest size");
        wal.make_room().unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content.len() as u64, 2 * ROOM_BYTES);
        assert!(content.starts_with(b"frames\0"));
        // One that is longer already stays as it is.
        drop(WalFile::open(&database, 10).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}
