//! Checks the data directory and the log in it. Writes one temporary file, and nothing to the log.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::Check;
use crate::{
    admin,
    config::{ByteSize, Config, Store},
    event::UnixMicros,
    log::{IdsUsage, Inspection, OpenError, ids_bytes, inspect},
};

/// With less free space a log stops soon: this is four of the largest segments.
const FREE_MIN: ByteSize = ByteSize::mib(256);
/// Prelude waits 10 s, in which several such writes have to finish.
const SYNC_MAX: Duration = Duration::from_secs(1);

const DIRECTORY: &str = "data directory";
pub(super) const LOG: &str = "log";
const IDS: &str = "ids";

/// What to do about a damaged log.
pub(super) const DAMAGE_REMEDY: &str = "find the damaged files with `prelude-bridge log check`; see \
                                        \"When part of the log is damaged\" in docs/operating.md";

/// What was found.
pub(super) struct Disk {
    pub(super) checks: Vec<Check>,
    /// Whether a running bridge uses the directory.
    pub(super) is_in_use: bool,
    /// When the newest event was received.
    pub(super) head_at: Option<UnixMicros>,
}

/// Checks directory and log.
pub(super) fn examine(config: &Config) -> Disk {
    if config.store == Store::Memory {
        let found = "the store is memory, so nothing is kept on disk";
        return Disk {
            checks: [DIRECTORY, LOG, IDS]
                .map(|name| Check::skipped(name, found))
                .into(),
            is_in_use: false,
            head_at: None,
        };
    }
    let inspected = inspect(&config.data_dir);
    let is_in_use = matches!(inspected, Err(OpenError::InUse { .. }));
    let head_at = match &inspected {
        Ok(Some(inspection)) => inspection.range.head_at,
        Ok(None) | Err(_) => None,
    };
    Disk {
        checks: vec![
            directory(&config.data_dir),
            log(inspected, config.store.engine().is_some()),
            ids(config),
        ],
        is_in_use,
        head_at,
    }
}

fn directory(data_dir: &Path) -> Check {
    let shown = data_dir.display();
    let (tried, note) = match existing(data_dir) {
        Some(tried) if tried == data_dir => (tried, ""),
        Some(tried) => (tried, ", and does not exist yet: `serve` makes it"),
        None => (
            PathBuf::from("."),
            ", and does not exist yet: `serve` makes it",
        ),
    };
    let remedy = "name a directory on a disk that this user can write to, with --data-dir";
    let sync_took = match write_and_sync(&tried) {
        Ok(took) => took,
        Err(error) => {
            let found = format!("{shown} cannot be written to: {error}");
            return Check::fault(DIRECTORY, found, remedy);
        }
    };
    if sync_took > SYNC_MAX {
        let found = format!("{shown} takes {sync_took:.1?} to make a write durable");
        let remedy =
            "use a local disk: each delivery waits for such a write, and Prelude waits 10 s";
        return Check::fault(DIRECTORY, found, remedy);
    }
    let free = match free_bytes(&tried) {
        Ok(free) => free,
        Err(error) => {
            let found = format!("the free space of {shown} is not known: {error}");
            return Check::fault(DIRECTORY, found, remedy);
        }
    };
    let free_mib = free >> 20;
    if free < FREE_MIN.0 {
        return Check::fault(
            DIRECTORY,
            format!("{shown} has {free_mib} MiB left, of which a log needs at least {FREE_MIN}"),
            "make room, or lower `retention.bytes_max`",
        );
    }
    Check::good(
        DIRECTORY,
        format!(
            "{shown} can be written to, syncs in {sync_took:.1?}, has {free_mib} MiB left{note}"
        ),
    )
}

/// The nearest parent directory that exists.
fn existing(data_dir: &Path) -> Option<PathBuf> {
    let mut above = data_dir.ancestors();
    let found = above.find(|path| path.symlink_metadata().is_ok());
    found.map(Path::to_path_buf)
}

/// Does what a commit does: writes a new file and flushes it and its directory.
fn write_and_sync(directory: &Path) -> io::Result<Duration> {
    let mut file = tempfile::Builder::new()
        .prefix(".prelude-bridge-doctor-")
        .tempfile_in(directory)?;
    file.write_all(&[0; 4096])?;
    let began = Instant::now();
    file.as_file().sync_all()?;
    File::open(directory)?.sync_all()?;
    Ok(began.elapsed())
}

fn free_bytes(directory: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(directory)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// What the ids take of what they may, before the oldest are forgotten early.
fn ids(config: &Config) -> Check {
    let limit = config.retention.id_bytes_max;
    let bytes = match ids_bytes(&config.data_dir) {
        Ok(bytes) => bytes,
        Err(error) => {
            let found = format!("the size of the ids is not known: {error}");
            return Check::skipped(IDS, found);
        }
    };
    let found = format!("they take {} MiB of {limit}", bytes >> 20);
    let usage = IdsUsage {
        bytes,
        bytes_max: limit.0,
        ..IdsUsage::default()
    };
    if usage.is_tight() {
        let remedy = "raise `retention.id_bytes_max`, or lower `retention.id_age_min`: above the limit \
                      the oldest ids are forgotten, and late repetitions count as new events";
        return Check::fault(IDS, found, remedy);
    }
    Check::good(IDS, found)
}

/// The log, or this bridge's replica of it.
fn log(inspected: Result<Option<Inspection>, OpenError>, is_replica: bool) -> Check {
    let error = match inspected {
        Ok(None) if is_replica => {
            return Check::good(
                LOG,
                "there is no replica yet: `serve` builds it from the store, and is ready when it is whole",
            );
        }
        Ok(None) => return Check::good(LOG, "there is none yet: `serve` makes it"),
        Ok(Some(Inspection {
            log,
            epochs,
            range,
            damaged,
        })) => {
            if let Some(damage) = admin::damage(&damaged) {
                return Check::fault(LOG, damage, DAMAGE_REMEDY);
            }
            let (count, earliest, head) = (range.event_count(), range.earliest, range.head);
            let events = if count == 0 {
                format!("no events, the next is {}", head.plus(1))
            } else {
                earliest.to_last(head)
            };
            let epoch = format!("id {:016x}, {epochs} epochs", log.0);
            return Check::good(LOG, format!("it opens: {events}; {epoch}"));
        }
        Err(OpenError::InUse { .. }) => {
            return Check::skipped(LOG, "a bridge has it open, and is asked below");
        }
        Err(error) => error,
    };
    let remedy = match &error {
        OpenError::Older { .. } | OpenError::Damaged { .. } if is_replica => {
            "name an empty directory with --data-dir: `serve` builds a new replica from the store"
        }
        OpenError::NotALog { .. } => "choose another directory with --data-dir",
        OpenError::NotAReplica { .. } | OpenError::Replica { .. } | OpenError::Store { .. } => {
            "choose the store or the directory that belong together"
        }
        OpenError::Older { .. } => "begin anew in another directory and let consumers know",
        OpenError::Newer { .. } => "run the release that wrote it, or a newer one",
        OpenError::Damaged { .. } => {
            "restore it from a backup, or begin anew in another directory and let consumers know"
        }
        OpenError::DamagedManifest { .. } => {
            "start the bridge: it makes the manifest anew from the segments, and keeps the damaged one"
        }
        OpenError::Directory { .. }
        | OpenError::InUse { .. }
        | OpenError::Random(_)
        | OpenError::Thread(_) => "check the permissions of the directory and its files",
    };
    Check::fault(LOG, error.to_string(), remedy)
}
