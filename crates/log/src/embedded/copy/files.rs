//! Owns the target that is a directory: a replica that catches up with the sequence, and then becomes a log
//! of its own. Until then it is a replica, so that a copy which was interrupted goes on as one.

use std::{path::Path, sync::Arc, time::Duration};

use super::{Contents, CopyError, CopyPhase, Engine, Patience, Tell, source::Commits};
use crate::{
    Log as _,
    embedded::{
        Embedded, Options, directory::Directory, manifest::Manifest, open_error::OpenError,
        open_replica, segments,
    },
    sequencer::Outage,
};
use prelude_bridge_event::LogId;

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Nothing is removed while it is copied.
const AGE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Copies, and returns how many events were there before. A directory that has a log of its own is left as it
/// is: it may be what an earlier run has copied, which the comparison tells.
pub(super) fn copy(
    source: &Commits,
    path: &Path,
    contents: &Contents,
    engine: &Engine,
    tell: &mut Tell<'_>,
) -> Result<u64, CopyError> {
    let events = |head: u64| head.saturating_sub(contents.first.before().0);
    let mut events_before = 0;
    if path.is_dir() {
        match Manifest::read(path)? {
            Some(manifest) if manifest.log != contents.log => {
                let (LogId(ours), LogId(theirs)) = (contents.log, manifest.log);
                return Err(CopyError::Refused(format!(
                    "{} has log {theirs:016x}, and the source has log {ours:016x}: choose an empty directory",
                    path.display()
                )));
            }
            Some(manifest) if manifest.replica.is_none() => return Ok(events(contents.head.0)),
            Some(manifest) => events_before = events(manifest.confirmed.0),
            None => check_no_segments(path)?,
        }
    }
    let options = Options {
        retention_age: AGE_MAX,
        retention_bytes: u64::MAX / 2,
        scrub_bytes_per_second: 0,
        ..Options::default()
    };
    let sequencer = Arc::clone(&source.sequencer);
    let log = engine
        .runtime
        .block_on(open_replica(path, options, sequencer))?;
    let caught_up = catch_up(&log, source, engine, tell);
    engine.runtime.block_on(log.close());
    let failure = log.shared.failure();
    drop(log);
    caught_up?;
    if let Some(failure) = failure {
        return Err(failed(path, &failure));
    }
    source.check_unchanged()?;
    detach(path, contents)?;
    Ok(events_before)
}

fn check_no_segments(path: &Path) -> Result<(), CopyError> {
    let ordinals = segments::ordinals(path).map_err(|source| OpenError::Directory {
        path: path.to_owned(),
        source,
    })?;
    if ordinals.is_empty() {
        return Ok(());
    }
    Err(CopyError::Refused(format!(
        "{} has a log without a manifest: choose an empty directory",
        path.display()
    )))
}

fn failed(path: &Path, failure: &crate::Error) -> CopyError {
    CopyError::Damaged(format!("the copy in {} failed: {failure}", path.display()))
}

/// Waits until the replica has everything, for as long as it grows.
fn catch_up(
    log: &Arc<Embedded>,
    source: &Commits,
    engine: &Engine,
    tell: &mut Tell<'_>,
) -> Result<(), CopyError> {
    let Some(replicated) = &log.shared.replicated else {
        return Ok(());
    };
    let mut applied = replicated.applied.subscribe();
    let (mut patience, mut reached) = (Patience::new(engine.patience), *applied.borrow());
    loop {
        tell.at(CopyPhase::Copy, log.range().head);
        if reached >= source.ends.last {
            return Ok(());
        }
        if let Some(failure) = log.shared.failure() {
            return Err(failed(log.shared.segments.directory(), &failure));
        }
        let grows = async { tokio::time::timeout(PROGRESS_INTERVAL, applied.changed()).await };
        let _ = engine.runtime.block_on(grows);
        let now = *applied.borrow_and_update();
        if now > reached {
            reached = now;
            patience.renew();
        } else {
            let health = log.status().health();
            patience.wait(Outage::Unavailable(
                format!("the copy does not go on: {health:?}").into(),
            ))?;
        }
    }
}

/// Makes the replica a log of its own.
fn detach(path: &Path, contents: &Contents) -> Result<(), CopyError> {
    let directory = Directory::open(path)?;
    let Some(mut manifest) =
        Manifest::read(directory.path())?.filter(|it| it.confirmed == contents.head)
    else {
        return Err(CopyError::Damaged(format!(
            "not everything in {} is durable; run the same command again, which goes on where this one ended",
            path.display()
        )));
    };
    manifest.replica = None;
    let written = manifest.write(directory.path());
    written.map_err(|source| {
        CopyError::Open(OpenError::Directory {
            path: path.to_owned(),
            source,
        })
    })
}
