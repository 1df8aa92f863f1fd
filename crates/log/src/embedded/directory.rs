//! Owns the data directory: its lock, its files other than segments by name, and how files in it are
//! made durable. Knows nothing of what is in them.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use super::open_error::OpenError;

/// The database in the data directory.
pub(super) const DATABASE_FILE: &str = "log.sqlite3";
/// Locked while a process uses the directory.
pub(super) const LOCK_FILE: &str = "lock";
/// There when a running bridge found that the index is damaged.
const DAMAGED_FILE: &str = "index-is-damaged";

/// The data directory, which is ours as long as this lives.
pub(super) struct Directory {
    path: PathBuf,
    database: PathBuf,
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
        let database = path.join(DATABASE_FILE);
        // SQLite gives its other files the permissions of this one. It is closed before SQLite opens
        // it: with a file, POSIX systems give up all locks that a process has on it.
        drop(open_private(&database).map_err(error)?);
        sync_directory(path).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            database,
            _lock: lock,
        })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The database file.
    pub(super) fn database(&self) -> &Path {
        &self.database
    }

    /// Whether the index was found to be damaged while a bridge ran.
    pub(super) fn is_marked_damaged(&self) -> bool {
        self.path.join(DAMAGED_FILE).exists()
    }

    /// It is a new one.
    pub(super) fn clear_damage_mark(&self) -> io::Result<()> {
        match fs::remove_file(self.path.join(DAMAGED_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => sync_directory(&self.path),
        }
    }
}

/// Has the next start make the index anew.
pub(super) fn mark_damaged(data_dir: &Path) -> io::Result<()> {
    open_private(&data_dir.join(DAMAGED_FILE))?.sync_all()?;
    sync_directory(data_dir)
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
