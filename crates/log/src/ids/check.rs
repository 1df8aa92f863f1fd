//! Owns the check of all files of keys: each block, each index, and that they continue each other.
//! Changes nothing, so it can look at a directory that is in use.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Error,
    directory::{self, is_file_of_keys},
    file::BLOCK_BYTES,
};
use prelude_bridge_event::LogId;

/// What a check has come across.
pub(crate) enum Checked {
    /// So much was checked.
    Bytes(u64),
    /// A file is damaged, for this reason.
    Damaged(PathBuf, String),
}

/// How many bytes a check reads.
pub(crate) fn check_bytes(directory: &Path) -> Result<u64, Error> {
    let mut bytes = 0;
    for path in files(directory)? {
        bytes += path.metadata().map_or(0, |metadata| metadata.len());
    }
    Ok(bytes)
}

/// Checks the files in a directory. One that was removed meanwhile was not damaged.
pub(crate) fn check(
    directory: &Path,
    log: LogId,
    found: &mut dyn FnMut(Checked),
) -> Result<(), Error> {
    for path in files(directory)? {
        match check_file(&path, log) {
            Ok(bytes) => found(Checked::Bytes(bytes)),
            Err(Error::Damaged { path, reason }) => found(Checked::Damaged(path, reason)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn check_file(path: &Path, log: LogId) -> Result<u64, Error> {
    let file = directory::open_file(path, log)?;
    let mut block = Box::new([0; BLOCK_BYTES]);
    file.check_blocks(&mut block)?;
    Ok(file.bytes)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| Error::io(directory, error))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::io(directory, error))?.path();
        if is_file_of_keys(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
