//! Owns the work beside the commits, and the list of files that it changes: it writes a full set
//! into a file, merges the files of a day, and removes files that are forgotten. A step of it takes
//! some tens of milliseconds at most, and the set comes before the merges, so that memory is free
//! again soon.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Error, Key, Limits, budget,
    directory::{self, Aside, Found},
    event_of,
    file::{Cursor, Footer, IdFile, Output, section_range},
    recent::Recent,
};
use crate::clock::RetentionTime;
use prelude_bridge_event::{LogId, Sequence};

/// The files, and the work on them. One thread at a time works; anybody may ask for the files.
pub(crate) struct Background {
    directory: PathBuf,
    log: LogId,
    limits: Limits,
    /// Held for a moment only.
    state: Mutex<State>,
    /// Held while a step is done.
    jobs: Mutex<Jobs>,
}

struct State {
    view: View,
    /// Keys of the events up to this one are forgotten.
    forgotten: Sequence,
    /// That is durable for the events up to this one.
    marked: Sequence,
    /// Files that have to be removed: they are forgotten, or were merged.
    dead: Vec<Arc<IdFile>>,
    /// The first event of the files that are being merged: they are not forgotten meanwhile.
    merging: Option<Sequence>,
}

/// Where keys are, besides the newest ones.
#[derive(Clone, Default)]
pub(super) struct View {
    /// Is being written into a file.
    pub(super) sealed: Option<Arc<Recent>>,
    /// Oldest first.
    pub(super) files: Arc<Vec<Arc<IdFile>>>,
}

/// What is being written.
#[derive(Default)]
struct Jobs {
    set: Option<Job>,
    merge: Option<Job>,
    /// What nobody finds any more. Whoever is the last to have it closes it, which takes long.
    retired_files: Vec<Arc<IdFile>>,
    retired_sets: Vec<Arc<Recent>>,
    /// Keys of a section, kept for its memory while there is work.
    keys: Vec<Key>,
}

struct Job {
    source: Source,
    output: Output,
    path: PathBuf,
}

enum Source {
    Set(Arc<Recent>),
    Files(Vec<(Arc<IdFile>, Cursor)>),
}

impl Background {
    pub(super) fn new(directory: &Path, log: LogId, limits: Limits, found: Found) -> Self {
        let files = found.files.into_iter().map(Arc::new).collect();
        let state = State {
            view: View {
                sealed: None,
                files: Arc::new(files),
            },
            forgotten: found.forgotten,
            marked: found.forgotten,
            dead: Vec::new(),
            merging: None,
        };
        Self {
            directory: directory.to_owned(),
            log,
            limits,
            state: Mutex::new(state),
            jobs: Mutex::default(),
        }
    }

    pub(super) fn view(&self) -> View {
        self.state().view.clone()
    }

    /// Files have the keys of the events up to this one.
    pub(super) fn through(&self) -> Sequence {
        self.state().through()
    }

    /// Puts the files aside that have keys of events after this one.
    pub(super) fn discard_after(
        &self,
        last: Sequence,
        aside: &mut Vec<Aside>,
    ) -> Result<(), Error> {
        let mut state = self.state();
        let files = Arc::clone(&state.view.files);
        let kept = files.partition_point(|file| file.footer.through <= last);
        let (kept, discarded) = files.split_at_checked(kept).unwrap_or_default();
        for file in discarded.iter().rev() {
            let reason = format!("the log ends with event {last}");
            directory::put_aside(&file.path, reason, aside)?;
        }
        state.view.files = Arc::new(kept.to_vec());
        if state.forgotten > last {
            directory::mark_forgotten(&self.directory, state.forgotten, last)?;
            (state.forgotten, state.marked) = (last, last);
        }
        Ok(())
    }

    /// Takes a set to write it into a file, unless there is one already. Then it stays where it is.
    pub(super) fn seal(&self, set: &mut Recent) -> bool {
        let mut state = self.state();
        // A file with the keys of no event would have no place among the others.
        let takes = state.view.sealed.is_none() && set.through() > state.through();
        if takes {
            let set = std::mem::replace(set, Recent::new());
            state.view.sealed = Some(Arc::new(set));
        }
        takes
    }

    /// Forgets the oldest files, as long as they are to go. True when that leaves something to remove.
    pub(super) fn forget(&self, mut is_to_go: impl FnMut(&IdFile) -> bool) -> bool {
        let mut state = self.state();
        let files = Arc::clone(&state.view.files);
        let merging = state.merging;
        let goes = |file: &&Arc<IdFile>| {
            let is_input = merging.is_some_and(|first| file.footer.from >= first);
            !is_input && is_to_go(file)
        };
        let count = files.iter().take_while(goes).count();
        let (expired, rest) = files.split_at_checked(count).unwrap_or_default();
        if let Some(last) = expired.last() {
            state.forgotten = last.footer.through;
            state.dead.extend(expired.iter().cloned());
            state.view.files = Arc::new(rest.to_vec());
        }
        !state.dead.is_empty()
    }

    /// Does a step of the work. False when there is nothing to do, until keys are added or
    /// forgotten.
    ///
    /// After an error what was being written is given up: the next call begins it anew.
    pub(crate) fn run_once(&self) -> Result<bool, Error> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let worked = self.work(&mut jobs);
        if !matches!(worked, Ok(true)) {
            *jobs = Jobs::default();
            self.state().merging = None;
        }
        worked.inspect_err(Error::put_aside)
    }

    /// Whether a full set waits to be written: meanwhile the next one grows. Otherwise the caller
    /// may rest between two steps.
    pub(crate) fn is_urgent(&self) -> bool {
        self.state().view.sealed.is_some()
    }

    /// What the set occupies that waits to be written, about. 0 when there is none.
    pub(crate) fn pending_bytes(&self) -> u64 {
        let set = self.state().view.sealed.clone();
        let part = set.as_deref().and_then(budget::Part::of_set);
        part.map_or(0, |part| part.bytes())
    }

    /// Whether the next step removes files: that needs a little room, and gives some back.
    pub(crate) fn has_files_to_remove(&self) -> bool {
        !self.state().dead.is_empty()
    }

    fn work(&self, jobs: &mut Jobs) -> Result<bool, Error> {
        if jobs.let_go() || self.remove_dead(jobs)? {
            return Ok(true);
        }
        if jobs.set.is_none() {
            jobs.set = self.begin_set()?;
        }
        if jobs.set.is_none() && jobs.merge.is_none() {
            jobs.merge = self.begin_merge()?;
        }
        let Jobs {
            set,
            merge,
            retired_sets,
            keys,
            ..
        } = jobs;
        let job = if set.is_some() { set } else { merge };
        let Some(going) = job else {
            return Ok(false);
        };
        if !going.go_on(keys)?
            && let Some(done) = job.take()
        {
            retired_sets.extend(self.finish(done)?);
        }
        Ok(true)
    }

    fn begin_set(&self) -> Result<Option<Job>, Error> {
        let state = self.state();
        let Some(set) = state.view.sealed.clone() else {
            return Ok(None);
        };
        let from = state.through().plus(1);
        drop(state);
        let times = set.times().unwrap_or_default();
        let footer = self.footer(from, set.through(), times, set.len() as u64);
        self.begin(footer, Source::Set(set)).map(Some)
    }

    fn begin_merge(&self) -> Result<Option<Job>, Error> {
        let mut state = self.state();
        let files = Arc::clone(&state.view.files);
        let footers: Vec<Footer> = files.iter().map(|file| file.footer).collect();
        let inputs = due_merge(&footers, &self.limits).and_then(|range| files.get(range));
        let Some(inputs @ [first, .., last]) = inputs else {
            return Ok(None);
        };
        state.merging = Some(first.footer.from);
        drop(state);
        let times = (first.footer.oldest_at, last.footer.newest_at);
        let keys = inputs.iter().map(|file| file.footer.keys).sum();
        let footer = self.footer(first.footer.from, last.footer.through, times, keys);
        let inputs = inputs.iter().map(|file| (Arc::clone(file), Cursor::new()));
        self.begin(footer, Source::Files(inputs.collect()))
            .map(Some)
    }

    fn footer(
        &self,
        from: Sequence,
        through: Sequence,
        (oldest_at, newest_at): (RetentionTime, RetentionTime),
        keys: u64,
    ) -> Footer {
        let sections = keys.div_ceil(self.limits.section_keys).max(1);
        Footer {
            log: self.log,
            from,
            through,
            oldest_at,
            newest_at,
            keys: 0,
            blocks: 0,
            section_bits: sections.next_power_of_two().ilog2(),
        }
    }

    fn begin(&self, footer: Footer, source: Source) -> Result<Job, Error> {
        let (from, through) = (footer.from, footer.through);
        let writing = directory::writing_path(&self.directory, from, through);
        Ok(Job {
            source,
            output: Output::create(writing, footer)?,
            path: directory::file_path(&self.directory, from, through),
        })
    }

    /// The new file takes the place of those that it was made of. A crash before these are removed
    /// leaves both, and the next start removes what is in both. Returns a set that is needed no more.
    fn finish(&self, job: Job) -> Result<Option<Arc<Recent>>, Error> {
        let file = job.output.finish(&job.path)?;
        let mut state = self.state();
        state.replace(file);
        match job.source {
            Source::Set(set) => {
                state.view.sealed = None;
                Ok(Some(set))
            }
            Source::Files(inputs) => {
                state.merging = None;
                state.dead.extend(inputs.into_iter().map(|(file, _)| file));
                Ok(None)
            }
        }
    }

    fn remove_dead(&self, jobs: &mut Jobs) -> Result<bool, Error> {
        let (dead, forgotten, marked) = {
            let state = self.state();
            (state.dead.clone(), state.forgotten, state.marked)
        };
        if forgotten > marked {
            directory::mark_forgotten(&self.directory, marked, forgotten)?;
            self.state().marked = forgotten;
        }
        for file in &dead {
            directory::remove(&file.path)?;
        }
        // Others may have been added meanwhile, behind these.
        self.state().dead.drain(..dead.len());
        let is_any = !dead.is_empty();
        jobs.retired_files.extend(dead);
        Ok(is_any)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// Lets go of what nobody else has any more: no commit is to be the last to have a file, and to wait
    /// until its blocks are free. True while somebody has something.
    fn let_go(&mut self) -> bool {
        self.retired_files
            .retain(|file| Arc::strong_count(file) > 1);
        self.retired_sets.retain(|set| Arc::strong_count(set) > 1);
        !self.retired_files.is_empty() || !self.retired_sets.is_empty()
    }
}

impl State {
    fn through(&self) -> Sequence {
        let last = self.view.files.last();
        last.map_or(self.forgotten, |last| last.footer.through)
    }

    /// Adds a file, in place of those whose events it has.
    fn replace(&mut self, file: IdFile) {
        let Footer { from, through, .. } = file.footer;
        let mut files = Vec::clone(&self.view.files);
        files.retain(|other| other.footer.from < from || other.footer.through > through);
        let place = files.partition_point(|other| other.footer.from < from);
        files.insert(place, Arc::new(file));
        self.view.files = Arc::new(files);
    }
}

impl Job {
    /// Writes a piece, or reads what is to be written next. False when all is written.
    fn go_on(&mut self, keys: &mut Vec<Key>) -> Result<bool, Error> {
        if self.output.write_piece()? {
            return Ok(true);
        }
        let Some((section, bits)) = self.output.next_section() else {
            return Ok(false);
        };
        keys.clear();
        match &mut self.source {
            Source::Set(set) => set.section(section, bits, keys),
            Source::Files(inputs) => {
                let last = *section_range(section, bits).end();
                for (file, cursor) in inputs {
                    cursor.take(file, last, keys)?;
                }
                // Not the unstable one: this one makes use of what is in order already.
                keys.sort();
                keys.dedup_by_key(|key| event_of(*key));
            }
        }
        self.output.add_section(keys);
        Ok(true)
    }
}

/// Which files are to be merged next.
///
/// From the oldest on, files form groups that are to become one file each: what spans no more than
/// a day and has no more than the most keys. A group is complete when the next file does not fit.
/// The files of the newest group are merged when there are many of a size, so that there are never
/// more than some, however small they are.
fn due_merge(files: &[Footer], limits: &Limits) -> Option<Range<usize>> {
    let mut group = 0..0;
    let mut keys = 0;
    for (place, file) in files.iter().enumerate() {
        let oldest_at = files
            .get(group.start)
            .map_or(file.oldest_at, |first| first.oldest_at);
        let span = file.newest_at.0.saturating_sub(oldest_at.0);
        keys += file.keys;
        if !group.is_empty() && (keys > limits.file_keys_max || span > limits.span_micros) {
            if group.len() > 1 {
                return Some(group);
            }
            group.start = place;
            keys = file.keys;
        }
        group.end = place + 1;
    }
    let newest = files.get(group.clone())?;
    let size = |file: &Footer| file.keys.max(1).ilog(limits.fan_in.max(2) as u64);
    let largest = newest.iter().map(size).max()?;
    (0..=largest).find_map(|wanted| {
        let smaller = newest.iter().rev().take_while(|file| size(file) <= wanted);
        let (mut count, mut alike) = (0, 0);
        for file in smaller {
            count += 1;
            alike += usize::from(size(file) == wanted);
        }
        (alike >= limits.fan_in.max(2)).then(|| group.end - count..group.end)
    })
}
