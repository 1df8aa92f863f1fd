//! Owns the work beside the commits, on a thread of its own: making the next segment ready, the footers
//! of sealed segments, the manifest, the files of ids, and removing segments. No commit waits for any
//! of it, and none of it for the whole of another: a segment and a file of ids are made a piece at a
//! time.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Shared, Stage, footer,
    manifest::Manifest,
    preparation::{Order, Preparation, Ready},
    quarantine,
    segments::{self, Segment},
};
use crate::{clock::RetentionNow, ids::Background};
use prelude_bridge_event::LogId;

/// What could not be done, as there was no room, is tried again after this time.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// When the reserve failed for another reason than want of room, it is tried again after this time, with
/// a line in the log each time.
const RESERVE_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// After a step of the ids' work there is a rest of so many times as long as that took, unless commits
/// may have to wait for it: most of them find the disk free.
const REST_TIMES: u32 = 3;
/// How long the thread waits when there is nothing to do.
const IDLE_WAIT: Duration = Duration::from_secs(3_600);

/// Where the writer leaves its wishes, and finds what came of them.
#[derive(Default)]
pub(super) struct Keeper {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    order: Option<Order>,
    making: bool,
    made: Option<io::Result<Ready>>,
    /// What is being made was looked for already: there is no time to rest.
    is_late: bool,
    /// Somebody waits for what is being made.
    hurry: bool,
    notes: Notes,
    ids_have_work: bool,
    stopped: bool,
    ended: bool,
}

/// What is to be written down.
#[derive(Default)]
struct Notes {
    /// Segments that are not written to any more.
    sealed: Vec<Segment>,
    manifest: Option<Manifest>,
    /// Segments that this manifest gives up.
    given_up: Vec<u64>,
    /// Others are given up as soon as their ids are in files.
    waits_for_ids: bool,
    /// What has been in the quarantine for so many microseconds by this time is to go.
    quarantine: Option<(RetentionNow, i64)>,
}

/// A manifest that is to be written, and what depends on it.
pub(super) struct Save {
    pub(super) manifest: Manifest,
    /// Segments that it gives up.
    pub(super) given_up: Vec<u64>,
    /// Others are given up as soon as their ids are in files.
    pub(super) waits_for_ids: bool,
}

impl Notes {
    fn is_empty(&self) -> bool {
        self.sealed.is_empty()
            && self.manifest.is_none()
            && self.given_up.is_empty()
            && self.quarantine.is_none()
    }

    /// Later ones come on top.
    fn add(&mut self, later: Self) {
        self.sealed.extend(later.sealed);
        if later.manifest.is_some() {
            self.waits_for_ids = later.waits_for_ids;
        }
        self.manifest = later.manifest.or(self.manifest.take());
        self.given_up.extend(later.given_up);
        self.quarantine = later.quarantine.or(self.quarantine.take());
    }
}

/// What there is to do.
struct Chores {
    order: Option<Order>,
    /// What is being made is looked for already, …
    is_late: bool,
    /// … and has to do as it is.
    is_enough: bool,
    notes: Notes,
    ids_have_work: bool,
    /// Nothing comes after these.
    is_last: bool,
}

impl Keeper {
    /// Asks for a segment.
    pub(super) fn order(&self, order: Order) {
        self.state().order = Some(order);
        self.changed.notify_all();
    }

    /// Takes the segment that was asked for, or why there is none, if it is ready. When it is late,
    /// it is made without rests from now on.
    pub(super) fn take(&self, is_late: bool) -> Option<io::Result<Ready>> {
        let mut state = self.state();
        if state.made.is_none() && is_late && !state.is_late {
            state.is_late = true;
            self.changed.notify_all();
        }
        state.made.take()
    }

    /// Waits for a segment, as it is.
    pub(super) fn demand(&self, order: Order) -> io::Result<Ready> {
        let mut state = self.state();
        if !state.making && state.made.is_none() {
            state.order = Some(order);
        }
        state.hurry = true;
        self.changed.notify_all();
        let waiting = |state: &mut State| state.made.is_none() && !state.ended;
        let waited = self.changed.wait_while(state, waiting);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.hurry = false;
        let made = state.made.take();
        made.unwrap_or_else(|| Err(io::Error::other("the keeper ended")))
    }

    /// Has a segment given its footer. The next one has a commit that is durable.
    pub(super) fn seal(&self, segment: Segment) {
        self.state().notes.sealed.push(segment);
        self.changed.notify_all();
    }

    /// Has the manifest replaced, and then the files removed of segments that it gives up.
    pub(super) fn save(&self, save: Save) {
        self.state().notes.add(Notes {
            manifest: Some(save.manifest),
            given_up: save.given_up,
            waits_for_ids: save.waits_for_ids,
            ..Notes::default()
        });
        self.changed.notify_all();
    }

    /// Has the files removed that have been in the quarantine for so many microseconds.
    pub(super) fn look_through_quarantine(&self, now: RetentionNow, micros_max: i64) {
        self.state().notes.quarantine = Some((now, micros_max));
        self.changed.notify_all();
    }

    /// Has the ids' work done until nothing is left of it.
    pub(super) fn work_on_ids(&self) {
        let mut state = self.state();
        if !state.ids_have_work {
            state.ids_have_work = true;
            self.changed.notify_all();
        }
    }

    /// Ends the thread, once the notes are written down.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to do, and no longer than until `wake_at`, if there is such a
    /// moment. `ids_rest` when the ids' work is not to be gone on with before that.
    fn wait(&self, wake_at: Option<Instant>, ids_rest: bool) -> Chores {
        let state = self.state();
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        let moment = wake_at.map_or(IDLE_WAIT, until);
        let nothing = |state: &mut State| {
            let is_urgent = state.making && (state.is_late || state.hurry);
            let has_ids = state.ids_have_work && !ids_rest;
            let idle = state.order.is_none() && state.notes.is_empty() && !is_urgent;
            idle && !has_ids && !state.stopped
        };
        let waited = self.changed.wait_timeout_while(state, moment, nothing);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.making |= state.order.is_some();
        Chores {
            order: state.order.take(),
            is_late: state.is_late,
            is_enough: state.hurry,
            notes: std::mem::take(&mut state.notes),
            ids_have_work: std::mem::take(&mut state.ids_have_work),
            is_last: state.stopped,
        }
    }

    /// Leaves a segment for whoever asked for it.
    fn hand_over(&self, made: io::Result<Ready>) {
        let mut state = self.state();
        state.making = false;
        state.is_late = false;
        state.made = Some(made);
        drop(state);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread works on.
pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    pub(super) log: LogId,
    pub(super) ids: Arc<Background>,
    making: Option<Preparation>,
    notes: Notes,
    /// No file is left of a segment before this one.
    first_ordinal: u64,
    /// When what failed for want of room is tried again.
    retry_at: Option<Instant>,
    /// When it is tried to make the reserve again, …
    reserve_at: Instant,
    /// … if there is none, or the last attempt failed.
    reserve_failed: bool,
    ids_have_work: bool,
    ids_rest_until: Instant,
}

impl Work {
    pub(super) fn new(shared: Arc<Shared>, log: LogId, ids: Arc<Background>) -> Self {
        Self {
            shared,
            log,
            ids,
            making: None,
            notes: Notes::default(),
            first_ordinal: 0,
            retry_at: None,
            reserve_at: Instant::now(),
            reserve_failed: false,
            ids_have_work: true,
            ids_rest_until: Instant::now(),
        }
    }

    /// Runs until the keeper is stopped.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _ended = Ended(&shared.keeper);
        self.make_reserve();
        loop {
            let chores = shared.keeper.wait(self.wake_at(), self.ids_have_work);
            // First, as a commit may wait for it.
            self.make_segment(chores.order, chores.is_late, chores.is_enough);
            self.notes.add(chores.notes);
            self.ids_have_work |= chores.ids_have_work;
            if chores.is_last || self.retry_at.is_none_or(|at| at <= Instant::now()) {
                self.write_notes();
            }
            if chores.is_last {
                break;
            }
            self.step_ids();
            if self.wants_reserve() && self.reserve_at <= Instant::now() {
                self.make_reserve();
            }
        }
        // Zeros that nobody wrote over. Where that fails, the next start removes them.
        let made = shared.keeper.state().made.take().and_then(Result::ok);
        if let Some(unused) = self.making.map(Preparation::ready).or(made) {
            let _ = remove(shared.segments.directory(), &[unused.ordinal]);
        }
    }

    /// When there is something to do of what was begun.
    fn wake_at(&self) -> Option<Instant> {
        let piece = self.making.as_ref().map(Preparation::rest_ends_at);
        let retry = self.retry_at.filter(|_| !self.notes.is_empty());
        let ids = self.ids_have_work.then_some(self.ids_rest_until);
        let reserve = self.wants_reserve().then_some(self.reserve_at);
        [piece, retry, ids, reserve].into_iter().flatten().min()
    }

    fn make_segment(&mut self, order: Option<Order>, is_late: bool, is_enough: bool) {
        let keeper = &self.shared.keeper;
        if let Some(order) = order {
            let begin = || {
                (self.shared.fault)(Stage::Segment)?;
                Preparation::begin(self.directory(), self.log, order)
            };
            let begun = if order.is_replacement {
                self.shared.with_reserve(begin)
            } else {
                begin()
            };
            match begun {
                Ok(begun) => self.making = Some(begun),
                Err(error) => keeper.hand_over(Err(error)),
            }
        }
        let Some(mut segment) = self.making.take() else {
            return;
        };
        let is_whole = if is_enough {
            Ok(true)
        } else {
            segment.go_on(is_late)
        };
        match is_whole {
            Ok(true) => keeper.hand_over(Ok(segment.ready())),
            Ok(false) => self.making = Some(segment),
            Err(error) => keeper.hand_over(Err(error)),
        }
    }

    /// Writes the notes down, in an order in which each step may be the last one.
    fn write_notes(&mut self) {
        self.retry_at = None;
        self.write_footers();
        if self.shared.failure().is_none() {
            self.write_manifest();
        }
        if let Some((now, micros_max)) = self.notes.quarantine.take() {
            let looked = quarantine::remove_old(self.directory(), micros_max, &now);
            if let Err(error) = looked {
                // It is no part of the log.
                tracing::warn!(%error, "the quarantine cannot be looked through");
            }
        }
    }

    /// Where there is no room for footers, a start reads the segments; what follows may make room.
    fn write_footers(&mut self) {
        let given_up = &self.notes.given_up;
        let is_kept = |segment: &Segment| !given_up.contains(&segment.ordinal);
        self.notes.sealed.retain(is_kept);
        while let Some(segment) = self.notes.sealed.first()
            && self.shared.failure().is_none()
        {
            let written = (self.shared.fault)(Stage::Footer)
                .and_then(|()| footer::append(self.directory(), self.log, segment));
            if !self.is_done(written, "the footer of a segment") {
                return;
            }
            self.notes.sealed.remove(0);
        }
    }

    /// Writes the manifest, and then removes the segments that it gives up.
    fn write_manifest(&mut self) {
        if let Some(manifest) = &self.notes.manifest {
            let first_ordinal = manifest.first_ordinal;
            let write = || {
                (self.shared.fault)(Stage::Manifest).and_then(|()| manifest.write(self.directory()))
            };
            let written = if self.notes.given_up.is_empty() {
                write()
            } else {
                self.shared.with_reserve(write)
            };
            if !self.is_done(written, "the manifest") {
                return;
            }
            self.notes.manifest = None;
            let added = self.give_up_before(first_ordinal);
            if !self.is_done(added, "removal of old events") {
                return;
            }
        }
        let removed = remove(self.directory(), &self.notes.given_up);
        if self.is_done(removed, "removal of old events") {
            self.notes.given_up.clear();
        }
    }

    /// Gives up all files before this one, also those of which a start could read nothing: no list has
    /// them.
    fn give_up_before(&mut self, first_ordinal: u64) -> io::Result<()> {
        if first_ordinal > self.first_ordinal {
            let ordinals = segments::ordinals(self.directory())?.into_iter();
            let before = ordinals.filter(|&ordinal| ordinal < first_ordinal);
            self.notes.given_up.extend(before);
            self.first_ordinal = first_ordinal;
        }
        Ok(())
    }

    fn wants_reserve(&self) -> bool {
        self.reserve_failed || self.shared.reserve.is_missing()
    }

    /// Makes the reserve, as far as there is room.
    fn make_reserve(&mut self) {
        let shared = &self.shared;
        let was_missing = shared.reserve.is_missing();
        let made = shared.reserve.make(&shared.fault);
        self.reserve_failed = made.is_err();
        self.reserve_at = Instant::now() + RETRY_INTERVAL;
        match made {
            Ok(true) if was_missing => {
                tracing::info!("the disk has room again: the reserve was made");
                shared.set_no_space(false);
            }
            Ok(false) if !was_missing => shared.set_no_space(true),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "no reserve can be made for a full disk");
                self.reserve_at = Instant::now() + RESERVE_RETRY_INTERVAL;
            }
        }
    }

    /// Does a step of the ids' work, if there is any and it does not rest.
    fn step_ids(&mut self) {
        let began = Instant::now();
        if !self.ids_have_work || began < self.ids_rest_until {
            return;
        }
        if self.shared.failure().is_some() {
            self.ids_have_work = false;
            return;
        }
        // Segments can go when their ids are written.
        match self.shared.step_ids(&self.ids, self.notes.waits_for_ids) {
            Ok(more) => {
                let times = if self.ids.is_urgent() { 0 } else { REST_TIMES };
                self.ids_have_work = more;
                self.ids_rest_until = Instant::now() + began.elapsed() * times;
            }
            // It may pass, or the log has failed.
            Err(_) => self.ids_rest_until = began + RETRY_INTERVAL,
        }
    }

    /// Whether it is done. Want of room or of a file descriptor passes; anything else ends the log.
    fn is_done(&mut self, done: io::Result<()>, what: &str) -> bool {
        let Err(error) = done else {
            return true;
        };
        self.shared.evaluate(&error, what);
        self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
        false
    }

    fn directory(&self) -> &Path {
        self.shared.segments.directory()
    }
}

/// Marks the end of the thread, however it comes.
struct Ended<'a>(&'a Keeper);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_all();
    }
}

/// Removes segments, oldest first. That they were given up is durable.
pub(super) fn remove(directory: &Path, ordinals: &[u64]) -> io::Result<()> {
    for &ordinal in ordinals {
        match std::fs::remove_file(segments::path(directory, ordinal)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::embedded::frame;
    use prelude_bridge_event::Sequence;

    fn save(manifest: Manifest, given_up: u64) -> Save {
        Save {
            manifest,
            given_up: vec![given_up],
            waits_for_ids: false,
        }
    }

    #[test]
    fn nothing_waits_until_a_segment_is_made() {
        let keeper = Keeper::default();
        keeper.order(Order {
            ordinal: 7,
            bytes: 1,
            is_replacement: false,
        });
        let chores = keeper.wait(None, false);
        assert!(chores.order.is_some_and(|order| order.ordinal == 7));
        // It rests for longer than anybody would wait.
        let rest = Some(Instant::now() + Duration::from_secs(3_600));

        let manifest = Manifest::beginning(LogId(1), 4, Sequence(9));
        keeper.save(save(manifest.clone(), 3));
        let notes = keeper.wait(rest, false).notes;
        assert_eq!((notes.manifest, notes.given_up), (Some(manifest), vec![3]));
        keeper.work_on_ids();
        assert!(keeper.wait(rest, false).ids_have_work);
        assert!(keeper.take(false).is_none());
        assert!(!keeper.state().is_late);
        assert!(keeper.take(true).is_none());
        let chores = keeper.wait(rest, false);
        assert!(chores.is_late && !chores.ids_have_work && chores.notes.is_empty());
        keeper.stop();
        assert!(keeper.wait(rest, false).is_last);
    }

    #[test]
    fn the_last_manifest_counts_and_what_was_given_up_before_goes_with_it() {
        let keeper = Keeper::default();
        for ordinal in [3, 4] {
            let manifest = Manifest::beginning(LogId(1), ordinal + 1, Sequence(9));
            keeper.save(save(manifest, ordinal));
        }
        let notes = keeper.wait(None, false).notes;
        let first = notes.manifest.map(|manifest| manifest.first_ordinal);
        assert_eq!((first, notes.given_up), (Some(5), vec![3, 4]));
    }

    #[test]
    fn what_is_demanded_comes_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::default();
        let order = Order {
            ordinal: 1,
            bytes: 10_000_000,
            is_replacement: false,
        };
        thread::scope(|scope| {
            let demanded = scope.spawn(|| keeper.demand(order).unwrap());
            let chores = loop {
                let chores = keeper.wait(None, false);
                if chores.order.is_some() {
                    break chores;
                }
            };
            assert!(chores.is_enough);
            let made = Preparation::begin(dir.path(), LogId(1), chores.order.unwrap());
            keeper.hand_over(made.map(Preparation::ready));
            let ready = demanded.join().unwrap();
            assert_eq!(ready.bytes, frame::SEGMENT_HEADER_BYTES);
        });
    }
}
