//! Owns the ids of events that a start could not read from the segments, because the disk has no room for
//! their files and memory is bounded. They are read as soon as there is room. Until then no event is
//! appended, because a repetition would count as new.

use super::{
    Shared, commit::numbers, manifest::Manifest, open_error::OpenError, scan::Scanner, segments,
};
use crate::{Error, ids::Ids};
use prelude_bridge_event::{Sequence, UnixMicros};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// After want of room it is tried again after this time.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Events whose ids are missing.
pub(super) struct MissingIds {
    /// As it was at the start: no event was appended since.
    pub(super) manifest: Manifest,
    /// The last event whose id was added.
    pub(super) through: Sequence,
    /// The last event of the log.
    pub(super) head: Sequence,
    /// When the ids count as added, by the retention clock.
    pub(super) at: UnixMicros,
    /// Want of room is answered without another attempt until then.
    pub(super) retry_at: Option<Instant>,
}

impl MissingIds {
    /// Reads the ids. What fails can be tried again, and goes on where it ended: no id is added twice. An
    /// attempt without room writes much of a file for nothing, so there is one in a while, however many
    /// batches come.
    pub(super) fn read(&mut self, shared: &Shared, ids: &mut Ids) -> Result<(), Error> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(Error::NoSpace);
        }
        let read = self.try_read(shared, ids);
        let is_full = matches!(read, Err(Error::NoSpace));
        self.retry_at = is_full.then(|| Instant::now() + RETRY_INTERVAL);
        if read.is_ok() {
            shared.has_missing_ids.store(false, Ordering::Relaxed);
            shared.set_no_space(shared.reserve.is_missing());
        }
        read
    }

    fn try_read(&mut self, shared: &Shared, ids: &mut Ids) -> Result<(), Error> {
        // Without room it ends here.
        make_room(shared, ids)?;
        let directory = shared.segments.directory();
        let ordinals = segments::ordinals(directory);
        let ordinals = ordinals.map_err(|error| shared.evaluate(&error, "the data directory"))?;
        let (begin, through) = (self.through, &mut self.through);
        let mut refusal = None;
        let mut sink = |last, keys: &[_]| {
            let room = make_room(shared, ids);
            room.map_err(|error| stopped(&mut refusal, error, directory))?;
            if ids.add(&numbers(keys), last, self.at) {
                shared.keeper.work_on_ids();
            }
            *through = last;
            Ok(())
        };
        let mut scanner = Scanner::new(directory, &self.manifest, Some(begin), &mut sink);
        let read = scanner.scan_all(&ordinals);
        let read = read.and_then(|()| scanner.fill_gap(self.head));
        match (read, refusal) {
            (Ok(()), _) => {
                tracing::info!("the ids were read for which the start found no room");
                Ok(())
            }
            (Err(_), Some(refusal)) => Err(refusal),
            (Err(OpenError::Directory { path, source }), None) => {
                Err(shared.evaluate(&source, &path.display().to_string()))
            }
            (Err(error), None) => Err(shared.fail(&error.to_string())),
        }
    }
}

/// Ends a scan. It fails in its own way, so what it failed for is noted beside it.
fn stopped(refusal: &mut Option<Error>, error: Error, directory: &std::path::Path) -> OpenError {
    let source = std::io::Error::other(error.to_string());
    *refusal = Some(error);
    let path = directory.to_owned();
    OpenError::Directory { path, source }
}

/// Does the ids' work where the keys of one more commit would take more memory than they may.
pub(super) fn make_room(shared: &Shared, ids: &mut Ids) -> Result<(), Error> {
    while ids.is_full() {
        shared.step_ids(&ids.background(), false)?;
        if ids.seal() {
            shared.keeper.work_on_ids();
        }
    }
    Ok(())
}
