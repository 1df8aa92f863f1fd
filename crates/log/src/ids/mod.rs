//! Owns the memory for repetitions: which event keys were added within the last weeks.
//!
//! Keys are hashes: wherever they are kept in order, each new one belongs to another page. So the
//! newest are in a set in memory (`recent`), and in the segments, from which a start reads them
//! again. A full set is written out once, in order, as a file (`file`) with a filter (`filter`) in
//! memory: so only a key that was there before, and one new key in some tens, is looked up on disk.
//! The files of a day are merged into one (`background`), and forgotten by removing it.
//!
//! Each file says which events its keys are of, and continues the one before it (`directory`). What
//! is damaged or does not fit is put aside, with all that follows it, and the caller adds those keys
//! again. A damaged block that is found later is an error: nothing counts as new because a file
//! cannot be read.
//!
//! No key has a time of its own: a file is forgotten when its newest key is old enough. It spans a
//! day at most, so a key is remembered for its time and a day at most. All times are the retention
//! clock's. Knows nothing of events, commits and segments.

mod background;
mod budget;
mod check;
#[cfg(test)]
mod damage_tests;
mod directory;
mod file;
mod filter;
mod recent;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use self::budget::Usage;
pub(crate) use self::check::{Checked, check, check_bytes};
pub(crate) use self::recent::KeySet;
pub(crate) use self::{
    background::Background,
    directory::{Aside, last_event, stored_bytes},
};
use self::{background::View, file::BLOCK_BYTES, recent::Recent};
use crate::clock::{RetentionNow, RetentionTime};
use prelude_bridge_event::{LogId, Sequence, UnixMicros};

/// An [`EventKey`](prelude_bridge_event::EventKey) as a number, in the same order. Keys of one event
/// differ only in their last bits, which stand for its content: of each event there is one.
pub(crate) type Key = u128;

/// How many of a key's bits stand for the content.
const CONTENT_BITS: u32 = 32;

/// The part of a key that stands for the event.
fn event_of(key: Key) -> u128 {
    key >> CONTENT_BITS
}

/// The keys of one file are of this time at most, unless keys are remembered for less.
const SPAN_MICROS_MAX: i64 = 24 * 60 * 60 * 1_000_000;
/// The most keys of a commit.
const COMMIT_KEYS_MAX: u64 = 8_192;

/// How long keys are remembered, and what that may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Keys are remembered for so long at least, and for `span_micros` longer at most.
    pub(crate) age_micros: i64,
    /// The keys of a file, and of the set in memory, are of so much time at most.
    pub(crate) span_micros: i64,
    /// The set in memory is written out when it has so many keys. As many again may be there while
    /// it is written.
    pub(crate) part_keys_max: u64,
    /// Files are merged if together they have no more keys than this.
    pub(crate) file_keys_max: u64,
    /// A section has no more keys than this, on average.
    pub(crate) section_keys: u64,
    /// So many files of a size are merged before their group is complete.
    pub(crate) fan_in: usize,
    /// When the files occupy more than this, the oldest are forgotten before their time.
    pub(crate) bytes_max: u64,
}

impl Limits {
    /// The usual limits, for keys that are remembered for `age`, in files of `bytes_max`.
    pub(crate) fn new(age: Duration, bytes_max: u64) -> Self {
        let age_micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        // The tables of the set have 14,336 places each before they grow. So they are not full: the
        // keys are not spread evenly, and a commit goes beyond. That makes 18 MB.
        let part_keys_max = recent::SHARDS as u64 * 13_312;
        let fan_in = 10;
        Self {
            age_micros,
            span_micros: age_micros.min(SPAN_MICROS_MAX),
            part_keys_max,
            file_keys_max: fan_in as u64 * (part_keys_max + COMMIT_KEYS_MAX),
            // What makes a filter takes 33 bytes a key for a moment: 9 MB. A file of the most keys
            // has 32 sections.
            section_keys: 270_000,
            fan_in,
            bytes_max,
        }
    }
}

/// The keys that are remembered.
pub(crate) struct Ids {
    limits: Limits,
    recent: Recent,
    background: Arc<Background>,
    aside: Vec<Aside>,
    /// Memory for [`find`](Self::find).
    suspects: Vec<usize>,
    block: Box<[u8; BLOCK_BYTES]>,
    /// Keys that were forgotten before their time.
    forgotten_early: u64,
}

impl Ids {
    /// Opens `directory`, and creates it if need be. Files that do not count are put
    /// [aside](Self::aside); the keys of events after [`through`](Self::through) have to be added
    /// again.
    pub(crate) fn open(directory: &Path, log: LogId, limits: Limits) -> Result<Self, Error> {
        let mut found = directory::open(directory, log)?;
        let aside = std::mem::take(&mut found.aside);
        Ok(Self {
            limits,
            recent: Recent::new(),
            background: Arc::new(Background::new(directory, log, limits, found)),
            aside,
            suspects: Vec::new(),
            block: Box::new([0; BLOCK_BYTES]),
            forgotten_early: 0,
        })
    }

    /// Files that [`open`](Self::open) put aside, and why.
    pub(crate) fn aside(&self) -> &[Aside] {
        &self.aside
    }

    /// Puts the files aside that have keys of events after `last`, the newest one of the log: when
    /// the log is an older copy, those events are not there, and have to be appended again.
    pub(crate) fn discard_after(&mut self, last: Sequence) -> Result<(), Error> {
        self.background.discard_after(last, &mut self.aside)
    }

    /// Files have the keys of all events up to this one, as far as they are not forgotten.
    pub(crate) fn through(&self) -> Sequence {
        self.background.through()
    }

    /// Finds for each key the one of the same event that was added within the time that keys are
    /// remembered. Keys that occur twice in `keys` are not told from others.
    pub(crate) fn find(&mut self, keys: &[Key], known: &mut Vec<Option<Key>>) -> Result<(), Error> {
        let View { sealed, files } = self.background.view();
        let recent = |key| {
            let sealed = sealed.as_ref().and_then(|sealed| sealed.find(key));
            sealed.or_else(|| self.recent.find(key))
        };
        known.clear();
        known.extend(keys.iter().map(|&key| recent(key)));
        // File by file: the processor fetches the filter's bytes for several keys at once.
        for file in files.iter().rev() {
            let asked = keys.iter().zip(known.iter()).enumerate();
            let suspects =
                asked.filter(|&(_, (&key, known))| known.is_none() && file.may_hold(key));
            self.suspects.clear();
            self.suspects.extend(suspects.map(|(place, _)| place));
            for &place in &self.suspects {
                if let (Some(&key), Some(known)) = (keys.get(place), known.get_mut(place)) {
                    let found = file.find(key, &mut self.block);
                    *known = found.inspect_err(Error::put_aside)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the keys of a commit that ends with event `last`, at this time of the retention clock.
    /// Both ascend from call to call, beginning after [`through`](Self::through).
    /// True when there is work for the [background](Self::background).
    pub(crate) fn add(&mut self, keys: &[Key], last: Sequence, at: UnixMicros) -> bool {
        let at = RetentionTime(at.0);
        let span_micros = self.limits.span_micros;
        let is_old = |oldest: RetentionTime| at.0.saturating_sub(oldest.0) >= span_micros;
        let sealed = self.seal_if(is_old);
        self.recent.add(keys, last, at);
        let is_full = self.recent.len() as u64 >= self.limits.part_keys_max;
        (is_full && self.seal()) || sealed
    }

    /// Has the newest keys written into a file, although they are few. False when there are none,
    /// or others are being written.
    pub(crate) fn seal(&mut self) -> bool {
        self.background.seal(&mut self.recent)
    }

    fn seal_if(&mut self, is_old: impl Fn(RetentionTime) -> bool) -> bool {
        let times = self.recent.times();
        times.is_some_and(|(oldest, _)| is_old(oldest)) && self.seal()
    }

    /// What has to be done on a thread of the caller's.
    pub(crate) fn background(&self) -> Arc<Background> {
        Arc::clone(&self.background)
    }

    /// Forgets the files whose newest key is old enough, and the oldest files when they are too large
    /// together, but none of the last day. True when there is work for the background.
    ///
    /// No commit is refused instead: a repetition that late is rare, and all events that come are not.
    pub(crate) fn forget(&mut self, now: &RetentionNow) -> bool {
        let Limits {
            age_micros,
            span_micros,
            bytes_max,
            ..
        } = self.limits;
        let mut bytes = self.stored_bytes();
        let mut early = 0;
        let sealed = self.seal_if(|oldest| now.age_of(oldest) > span_micros);
        let has_work = self.background.forget(|file| {
            let age = now.age_of(file.footer.newest_at);
            let is_early = age <= age_micros;
            let goes = !is_early || (bytes > bytes_max && age > span_micros);
            if goes {
                bytes = bytes.saturating_sub(file.bytes);
                early += if is_early { file.footer.keys } else { 0 };
            }
            goes
        });
        self.forgotten_early += early;
        has_work || sealed
    }

    /// What the keys occupy, and will occupy if that can be told, in a log whose newest event is `head`.
    ///
    /// Each event had a key of its own, so those of as many events are unknown as there are fewer keys:
    /// also when files are gone, and were begun anew with what was left in the segments.
    pub(crate) fn usage(&self, head: Sequence, now: Option<&RetentionNow>) -> Usage {
        let View { sealed, files } = self.background.view();
        let sets = [sealed.as_deref(), Some(&self.recent)]
            .into_iter()
            .flatten();
        let bytes = self.stored_bytes();
        let expected = now.map(|now| {
            let files = files.iter().map(|file| budget::Part::of_file(file));
            let parts = files.chain(sets.filter_map(budget::Part::of_set));
            let age_micros = self
                .limits
                .age_micros
                .saturating_add(self.limits.span_micros);
            budget::expected_bytes(parts, now, age_micros)
        });
        Usage {
            bytes,
            bytes_max: self.limits.bytes_max,
            bytes_expected: expected.unwrap_or(0).max(bytes),
            forgotten_early: self.forgotten_early,
            forgotten: head.0.saturating_sub(self.len()),
        }
    }

    /// Bytes on disk.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let files = self.background.view().files;
        files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes in memory, without what the background takes for a moment.
    pub(crate) fn memory_bytes(&self) -> usize {
        let View { sealed, files } = self.background.view();
        let files = files.iter().map(|file| file.memory_bytes()).sum::<usize>();
        let sealed = sealed.map_or(0, |sealed| sealed.memory_bytes());
        files + sealed + self.recent.memory_bytes()
    }

    /// How many keys are remembered.
    pub(crate) fn len(&self) -> u64 {
        let View { sealed, files } = self.background.view();
        let files = files.iter().map(|file| file.footer.keys).sum::<u64>();
        let sets = self.recent.len() + sealed.map_or(0, |sealed| sealed.len());
        files + sets as u64
    }

    /// Whether the set in memory is full, and the one before it is still being written: the keys of
    /// one more commit would take more memory than they may.
    pub(crate) fn is_full(&self) -> bool {
        self.recent.len() as u64 >= self.limits.part_keys_max && self.background.is_urgent()
    }

    /// The newest time that a key was added at.
    pub(crate) fn newest_at(&self) -> RetentionTime {
        let View { sealed, files } = self.background.view();
        let files = files.iter().map(|file| file.footer.newest_at);
        let sets = [Some(&self.recent), sealed.as_deref()];
        let sets = sets.into_iter().flatten().filter_map(Recent::times);
        let times = files.chain(sets.map(|(_, newest)| newest));
        times.max().unwrap_or_default()
    }
}

/// Why keys are not known to be there or not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or the directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A file is not what was written. It was put aside: the next [`open`](Ids::open) does not find
    /// it, so the keys from there on have to be added again.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
}

impl Error {
    fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { path, source }
    }

    fn damaged(path: &Path, reason: &str) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// Takes a file that is damaged from where the next start would find it.
    fn put_aside(&self) {
        if let Self::Damaged { path, reason } = self {
            // Where that fails, the next start finds it, and the next look the damage.
            let _ = directory::put_aside(path, reason.clone(), &mut Vec::new());
        }
    }
}
