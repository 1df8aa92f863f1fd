//! Owns the reasons why a log cannot be opened, each with what to do.

use std::{io, path::PathBuf};

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be created, locked or flushed.
    #[error(
        "cannot use the data directory {}: {source}; make it a directory that this user may write \
         to, or choose another with --data-dir",
        path.display()
    )]
    Directory {
        /// What could not be used.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has the directory.
    #[error(
        "another prelude-bridge uses the data directory {}: stop it, or choose another with \
         --data-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file is something else.
    #[error(
        "{} is not a log of prelude-bridge: choose another directory with --data-dir",
        path.display()
    )]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later release.
    #[error(
        "{} has version {found}, but this release reads version {known} at most: upgrade \
         prelude-bridge",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u8,
        /// The version of this release.
        known: u8,
    },
    /// The file was written before the first release.
    #[error(
        "{} was written by a version older than the first release, which this release cannot read: \
         choose another directory with --data-dir, or remove this one if its events are no longer \
         needed",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
    },
    /// The log contradicts itself.
    #[error("{} is damaged: {reason}; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The manifest is damaged or missing, or contradicts the segments. Opening the log makes it anew
    /// from the segments, so this is what only an inspection says.
    #[error(
        "the manifest {} is damaged: {reason}; a start of the bridge makes it anew from the segments",
        path.display()
    )]
    DamagedManifest {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The directory has a log of its own, and is to be a replica.
    #[error(
        "the data directory {} has a log of its own, not a replica: copy it into the store with \
         `prelude-bridge log copy`, and choose another directory with --data-dir",
        path.display()
    )]
    NotAReplica {
        /// The directory.
        path: PathBuf,
    },
    /// The directory has a replica, and is to be a log of its own.
    #[error(
        "the data directory {} has a replica of a log in another store: choose that with --store, or another \
         directory with --data-dir",
        path.display()
    )]
    Replica {
        /// The directory.
        path: PathBuf,
    },
    /// The store that orders the commits cannot be used.
    #[error("{reason}")]
    Store {
        /// Why, and what to do.
        reason: String,
    },
    /// The system gives no random bytes for the log's identity.
    #[error("cannot make an identity for the log: {0}")]
    Random(#[from] getrandom::Error),
    /// The system gives no thread.
    #[error("cannot start the log's threads: {0}")]
    Thread(io::Error),
}
