//! Owns the data directory: its lock, its files other than segments by name, and how files in it are
//! made durable. Knows nothing of what is in them.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use super::open_error::OpenError;

/// What is true of the log as a whole.
pub(super) const MANIFEST_FILE: &str = "manifest";
/// The directory of the files of ids.
pub(super) const IDS_DIRECTORY: &str = "ids";
/// Room for what is written when old events are removed.
pub(super) const RESERVE_FILE: &str = "reserve";
/// What a log of before the first release has.
const OLD_DATABASE_FILE: &str = "log.sqlite3";
/// Written when a replica and the sequence have different histories: the next start makes the replica anew.
pub(super) const DIVERGED_FILE: &str = "diverged";
/// Locked while a process uses the directory.
pub(super) const LOCK_FILE: &str = "lock";

/// The data directory, which is ours as long as this lives.
pub(super) struct Directory {
    path: PathBuf,
    /// Unlocked when it is dropped, also by the system when the process is killed.
    _lock: File,
}

impl Directory {
    /// Creates the directory if need be, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let error = |source| OpenError::Directory {
            path: path.to_owned(),
            source,
        };
        create_directory(path).map_err(error)?;
        let lock = open_private(&path.join(LOCK_FILE)).map_err(error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.to_owned();
                return Err(OpenError::InUse { path });
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        sync_directory(path).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Refuses the directory of a log of before the first release.
pub(super) fn refuse_older(data_dir: &Path) -> Result<(), OpenError> {
    let path = data_dir.join(OLD_DATABASE_FILE);
    match path.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::Older { path }),
        Err(source) => Err(OpenError::Directory { path, source }),
    }
}

pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    // A directory is durable when the one that it is in was flushed: so for each that is new.
    for directory in missing {
        match directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent)?,
            _ => sync_directory(Path::new("."))?,
        }
    }
    Ok(())
}

/// Opens a file for us alone, and creates it where there is none.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}
