//! Looks at a log on disk without writing to it: for finding out what is wrong before a bridge
//! opens it.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use super::{
    directory::{LOCK_FILE, MANIFEST_FILE},
    open_error::OpenError,
    opening, recovery,
};
use crate::{Damaged, Range};
use prelude_bridge_event::LogId;

/// What a log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Its identity, which cursors carry.
    pub log: LogId,
    /// How often it was opened and written to since it was made or restored.
    pub epochs: u64,
    /// Its two ends.
    pub range: Range,
    /// Events that are damaged or missing, as far as a start would find out.
    pub damaged: Vec<Damaged>,
}

/// Looks at the log in a directory; `None` if there is none yet. A log that a bridge has open is
/// left to it.
///
/// # Errors
/// What would keep a bridge from opening it, [`OpenError::InUse`] included.
pub fn inspect(data_dir: &Path) -> Result<Option<Inspection>, OpenError> {
    let _lock = lock(data_dir)?;
    if !data_dir.is_dir() {
        return Ok(None);
    }
    let manifest = match opening::whole_manifest(data_dir)? {
        None => return Ok(None),
        Some((manifest, None)) => manifest,
        Some((_, Some(reason))) => {
            let path = data_dir.join(MANIFEST_FILE);
            return Err(OpenError::DamagedManifest { path, reason });
        }
    };
    // No keys are asked for.
    let found = recovery::look(data_dir, &manifest, None, &mut |_, _| Ok(()))?;
    Ok(Some(Inspection {
        log: manifest.log,
        epochs: manifest.epochs.len() as u64,
        range: found.range,
        damaged: found.damage.iter().map(|found| found.events).collect(),
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
        assert_eq!(once.damaged, []);
        assert_eq!(inspect(directory.path()).unwrap(), Some(once));
    }

    #[test]
    fn what_is_no_log_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(MANIFEST_FILE);
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        let other = inspect(directory.path());
        assert!(matches!(other, Err(OpenError::NotALog { .. })), "{other:?}");
    }
}
