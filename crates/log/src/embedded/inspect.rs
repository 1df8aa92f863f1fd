//! Looks at a log on disk without writing to it: for finding out what is wrong before a bridge
//! opens it.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use super::{
    directory::{DATABASE_FILE, LOCK_FILE},
    open_error::{OpenError, database_error},
    rebuild, recovery, schema,
};
use crate::Range;
use prelude_bridge_event::LogId;

/// What a log says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Its identity, which cursors carry.
    pub log: LogId,
    /// How often it was opened and written to since it was made or restored.
    pub epochs: u64,
    /// Its two ends.
    pub range: Range,
}

/// Looks at the log in a directory; `None` if there is none yet. A log that a bridge has open is
/// left to it.
///
/// # Errors
/// What would keep a bridge from opening it, [`OpenError::InUse`] included.
pub fn inspect(data_dir: &Path) -> Result<Option<Inspection>, OpenError> {
    let path = data_dir.join(DATABASE_FILE);
    let _lock = lock(data_dir)?;
    let is_empty = match path.metadata() {
        // A file without content is one that was to become a log.
        Ok(metadata) => metadata.len() == 0,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(source) => return Err(OpenError::Directory { path, source }),
    };
    if is_empty {
        if !data_dir.is_dir() || !rebuild::is_possible(data_dir)? {
            return Ok(None);
        }
        let reason = "there is none, though there are segments".to_owned();
        return Err(OpenError::DamagedIndex { path, reason });
    }
    let error = |source| database_error(&path, source);
    let connection = schema::open_reader(&path).map_err(error)?;
    schema::check_version(&connection, &path)?;
    let terms: i64 = connection
        .query_row("SELECT count(*) FROM terms", [], |row| row.get(0))
        .map_err(error)?;
    let facts = schema::facts(&connection).map_err(error)?;
    let log = facts.log;
    let found = recovery::look(data_dir, facts, &mut |_| Ok(()))?;
    Ok(Some(Inspection {
        log,
        epochs: terms.cast_unsigned(),
        range: found.range,
    }))
}

/// Held as long as we look, so that no bridge starts meanwhile and finds us reading.
fn lock(data_dir: &Path) -> Result<Option<File>, OpenError> {
    let path = data_dir.join(LOCK_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::Directory { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: data_dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Directory { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Log as _, embedded};

    #[tokio::test]
    async fn a_log_is_left_as_it_is_and_a_bridge_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(inspect(directory.path()).unwrap(), None);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let options = embedded::Options::default();
        let log = embedded::open(directory.path(), options).unwrap();
        let in_use = inspect(directory.path());
        assert!(matches!(in_use, Err(OpenError::InUse { .. })), "{in_use:?}");
        let (id, range) = (log.status().epochs().log(), log.range());
        log.close().await;
        drop(log);
        let once = inspect(directory.path()).unwrap().unwrap();
        assert_eq!((once.log, once.epochs, once.range), (id, 1, range));
        assert_eq!(inspect(directory.path()).unwrap(), Some(once));
    }

    #[test]
    fn what_is_no_log_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(DATABASE_FILE);
        std::fs::write(&path, "").unwrap();
        assert_eq!(inspect(directory.path()).unwrap(), None);
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        let other = inspect(directory.path());
        assert!(matches!(other, Err(OpenError::NotALog { .. })), "{other:?}");
    }
}
