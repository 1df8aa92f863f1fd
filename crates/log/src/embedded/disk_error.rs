//! Owns what failures of the disk mean for the log: which of them pass by themselves, so that they end no
//! log, and for how long the disk counts as full.

use std::{
    io::{self, ErrorKind},
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tokio::sync::oneshot::error::RecvError;

use super::{Shared, Stage};
use crate::{
    Error, Health,
    ids::{self, Background},
};

/// A full disk is reported for so long after it was last met. Then the log counts as healthy, so
/// that somebody tries again.
pub(super) const NO_SPACE_MEMORY: Duration = Duration::from_secs(5);

/// With less room than this the disk counts as full still.
const FREE_BYTES_MIN: u64 = 256 * 1024;

/// The disk has no room, for now.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

/// The process or the system has no more file descriptors, for now. Said of opening a file only, so
/// nothing was written.
pub(super) fn is_no_descriptor(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno.is_some_and(|errno| {
        [Errno::MFILE, Errno::NFILE]
            .map(Errno::raw_os_error)
            .contains(&errno)
    })
}

impl Shared {
    /// What a failure of the disk means for those who wait. `what` failed.
    pub(super) fn evaluate(&self, error: &io::Error, what: &str) -> Error {
        if is_no_space(error) {
            self.set_no_space(true);
            return Error::NoSpace;
        }
        // Only what opens a file fails so, which is before anything is written.
        if is_no_descriptor(error) {
            tracing::error!(%error, "no file can be opened: events are refused until one can");
            return Error::Overloaded;
        }
        self.fail(&format!("{what}: {error}"))
    }

    /// The same for the files of ids. One that is damaged was put aside: the next start reads its keys
    /// from the segments again.
    pub(super) fn evaluate_ids(&self, error: &ids::Error) -> Error {
        match error {
            ids::Error::Io { source, .. } => self.evaluate(source, "the files of ids"),
            ids::Error::Damaged { .. } => self.fail(&error.to_string()),
        }
    }

    /// What the writer answered. One that ends without an answer has failed, and says why.
    pub(super) fn answer<T>(
        &self,
        answer: Result<Result<T, Error>, RecvError>,
    ) -> Result<T, Error> {
        answer.unwrap_or_else(|_| Err(self.failure().unwrap_or(Error::Closed)))
    }

    /// Does what is needed to remove old events or ids, with the reserve where the disk is full.
    pub(super) fn with_reserve<T>(&self, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if is_no_space(&error) && self.use_reserve() => work(),
            done => done,
        }
    }

    /// Does a step of the ids' work, on a full disk with the reserve where that gives room back: files of ids
    /// are removed, or old segments wait for their ids (`frees_segments`) and these have room then. False when
    /// nothing is left of it.
    pub(super) fn step_ids(&self, ids: &Background, frees_segments: bool) -> Result<bool, Error> {
        match self.try_step_ids(ids) {
            Err(Error::NoSpace)
                if self.reserve_helps(ids, frees_segments, self.reserve.free_bytes())
                    && self.use_reserve() =>
            {
                self.try_step_ids(ids)
            }
            done => done,
        }
    }

    /// Whether the ids' work frees something with the reserve, on a disk that has so much free.
    fn reserve_helps(&self, ids: &Background, frees_segments: bool, free: Option<u64>) -> bool {
        let has_room = || self.reserve.makes_room_for(ids.pending_bytes(), free);
        ids.has_files_to_remove() || (frees_segments && has_room())
    }

    fn try_step_ids(&self, ids: &Background) -> Result<bool, Error> {
        (self.fault)(Stage::Ids).map_err(|error| self.evaluate(&error, "the files of ids"))?;
        ids.run_once().map_err(|error| self.evaluate_ids(&error))
    }

    /// Gives the room of the reserve free, to remove old events or ids. False when there is none.
    pub(super) fn use_reserve(&self) -> bool {
        let is_used = self.reserve.release();
        if is_used {
            tracing::warn!(
                "the disk is full: the room of the reserve is used to remove old events and ids"
            );
            self.set_no_space(true);
        }
        is_used
    }

    pub(super) fn no_space_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.no_space_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A log whose ids are missing stays full.
    pub(super) fn set_no_space(&self, no_space: bool) {
        let no_space = no_space || self.has_missing_ids.load(Ordering::Relaxed);
        let mut at = self.no_space_at();
        if no_space {
            if at.is_none() {
                tracing::error!("the disk of the data directory is full: events are refused");
            }
            self.publisher.set_health(Health::Full);
        } else if at.is_some() {
            self.publisher.set_health(self.health_of_engine());
        }
        *at = no_space.then(Instant::now);
    }

    /// Counts as healthy again when the disk was last found full a while ago, and has room.
    pub(super) fn forget_no_space(&self) {
        let at = *self.no_space_at();
        if at.is_some_and(|at| at.elapsed() >= NO_SPACE_MEMORY)
            && !self.reserve.is_missing()
            && !self.has_missing_ids.load(Ordering::Relaxed)
            && self
                .reserve
                .free_bytes()
                .is_none_or(|free| free >= FREE_BYTES_MIN)
        {
            self.publisher.set_health(self.health_of_engine());
        }
    }

    /// What holds where the disk has room.
    fn health_of_engine(&self) -> Health {
        let health = self.engine_health.lock();
        let health = health.unwrap_or_else(PoisonError::into_inner);
        health.clone().unwrap_or(Health::Ready)
    }

    /// Whether the engine that orders the commits lets this log take events; `None` when it does.
    pub(super) fn set_engine_health(&self, health: Option<Health>) {
        let no_space_at = self.no_space_at();
        *self
            .engine_health
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = health;
        if no_space_at.is_none_or(|at| at.elapsed() >= NO_SPACE_MEMORY) {
            self.publisher.set_health(self.health_of_engine());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Options, directory::RESERVE_FILE, open, testing::waits_until},
        *,
    };
    use prelude_bridge_event::{LogId, Sequence, UnixMicros};

    #[tokio::test(flavor = "multi_thread")]
    async fn the_reserve_is_not_used_for_a_file_of_ids_that_has_no_room_in_it() {
        let (dir, ids_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = Options {
            retention_bytes: 1024 * 1024,
            ..Options::default()
        };
        let log = open(dir.path(), options).unwrap();
        waits_until(|| dir.path().join(RESERVE_FILE).exists()).await;
        let limits = ids::Limits {
            part_keys_max: 5_000,
            ..ids::Limits::new(Duration::MAX, u64::MAX)
        };
        let mut ids = ids::Ids::open(ids_dir.path(), LogId(1), limits).unwrap();
        let background = ids.background();
        assert_eq!(background.pending_bytes(), 0);
        let keys: Vec<ids::Key> = (0..5_000).map(|number| number << 100).collect();
        assert!(ids.add(&keys, Sequence(5_000), UnixMicros(1)));
        let helps = |frees_segments, free| {
            (log.shared).reserve_helps(&background, frees_segments, Some(free))
        };
        let pending = background.pending_bytes();
        assert!(pending > 64 * 1024, "{pending}");
        assert!(!helps(true, 0) && helps(true, pending) && !helps(false, pending));
        while background.run_once().unwrap() {}
        let written = ids.stored_bytes();
        assert!(written <= pending, "{written} of {pending}");
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        let of = |errno: Errno| io::Error::from(errno);
        assert!(is_no_descriptor(&of(Errno::MFILE)) && is_no_descriptor(&of(Errno::NFILE)));
        assert!(is_no_space(&of(Errno::NOSPC)) && is_no_space(&of(Errno::DQUOT)));
        assert!(!is_no_descriptor(&of(Errno::IO)) && !is_no_space(&of(Errno::IO)));
    }
}
