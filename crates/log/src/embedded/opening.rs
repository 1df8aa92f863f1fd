//! Owns the opening of a log: the manifest, the ids, the segments, and what has to be put right before
//! anything is written. A damaged manifest is made anew from the segments; what is taken out of the
//! log is kept in the quarantine, and said.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Fault, Seams, Stage,
    commit::numbers,
    directory::{self, Directory, IDS_DIRECTORY, MANIFEST_FILE},
    disk_error, keeper,
    manifest::{Manifest, NO_MANIFEST},
    missing_ids::MissingIds,
    open_error::OpenError,
    quarantine,
    recovery::{self, Found},
    segments, survey,
};
use crate::{
    clock::{Ages, Clock, LogClock, Mark, RetentionTime, Stored},
    group,
    ids::{self, Ids},
};
use prelude_bridge_event::{Epoch, Sequence, UnixMicros};

/// A log right after it was opened.
pub(super) struct Opened {
    /// As it is on disk.
    pub(super) manifest: Manifest,
    pub(super) ids: Ids,
    /// Those that there was no room for.
    pub(super) missing_ids: Option<MissingIds>,
    /// That of this run, the last one in the manifest.
    pub(super) epoch: Epoch,
    pub(super) clock: LogClock,
    pub(super) ages: Ages,
    pub(super) found: Found,
    /// The disk has no room to write down what was found, which is done as soon as there is some.
    pub(super) is_full: bool,
}

/// Opens a log, makes a new one where there is none, and begins a new epoch.
pub(super) fn open(
    directory: &Directory,
    limits: ids::Limits,
    seams: &Seams,
    age_max: Duration,
    is_replica: bool,
) -> Result<Opened, OpenError> {
    let data_dir = directory.path();
    let failed = |source| directory_error(data_dir, source);
    // Nothing is changed until it is known that nothing would be lost.
    let manifest = whole_manifest(data_dir)?;
    let is_new = manifest.is_none();
    let (mut manifest, damage) = match manifest {
        Some(found) => found,
        None => (
            Manifest::beginning(group::new_log_id()?, 1, Sequence::ZERO),
            None,
        ),
    };
    if manifest.replica.is_some() != is_replica {
        let path = data_dir.to_owned();
        return Err(OpenError::Replica { path });
    }
    let ids_dir = data_dir.join(IDS_DIRECTORY);
    let mut ids = Ids::open(&ids_dir, manifest.log, limits).map_err(ids_error)?;
    if is_replica {
        // What was not flushed was cut off.
        ids.discard_after(manifest.confirmed).map_err(ids_error)?;
    }
    let (mut clock, marks) = resume_clock(&manifest, &seams.clock, &ids);
    let now = clock.now().retention.time;
    // Later than they came, so that none is forgotten too early.
    let ids_at = UnixMicros(now.0);
    let (mut found, added) = loop {
        match read_segments(data_dir, &manifest, &mut ids, ids_at, seams) {
            // Each time there is a file fewer.
            Err(error) if was_put_aside(&error, &ids_dir) => {
                ids = Ids::open(&ids_dir, manifest.log, limits).map_err(ids_error)?;
            }
            read => break read?,
        }
    };
    let missing_ids = added.map(|through| MissingIds {
        manifest: manifest.clone(),
        through,
        head: found.range.head,
        at: ids_at,
        retry_at: None,
    });
    let removal = Removal {
        data_dir,
        now,
        fault: &seams.fault,
    };
    removal.take_ids(&ids).map_err(failed)?;
    if let Some(reason) = damage {
        removal.take_manifest(&reason, &found)?;
    }
    removal.put_right(&mut found)?;
    clock.compare_with_newest_event(found.last_at);
    let mut ages = Ages::resume(age_max, &marks, found.range.head, now);
    ages.forget_before(found.range.earliest);
    let epoch = group::new_epoch()?;
    manifest.epochs = epochs(&manifest, &found);
    manifest.epochs.push((found.range.head.plus(1), epoch));
    manifest.last_at = found.last_at;
    let is_full = match (seams.fault)(Stage::Open).and_then(|()| manifest.write(data_dir)) {
        // Blocks say in which epoch they were written; but a log without a file is none.
        Err(error) if disk_error::is_no_space(&error) && !is_new => true,
        written => written.map_err(failed).map(|()| false)?,
    };
    Ok(Opened {
        is_full: is_full || missing_ids.is_some(),
        manifest,
        ids,
        missing_ids,
        epoch,
        clock,
        ages,
        found,
    })
}

/// Looks at the segments, and adds the ids that are in no file yet, as of this time of the retention clock.
/// If the disk has no room for all of them, it returns the last event whose id was added: memory is bounded.
fn read_segments(
    data_dir: &Path,
    manifest: &Manifest,
    ids: &mut Ids,
    at: UnixMicros,
    seams: &Seams,
) -> Result<(Found, Option<Sequence>), OpenError> {
    let mut has_all = true;
    let mut through = ids.through();
    let found = recovery::look(data_dir, manifest, Some(through), &mut |last, keys| {
        if has_all && ids.is_full() {
            write_ids(ids, &seams.fault).map_err(ids_error)?;
            has_all = ids.seal();
        }
        if has_all {
            through = last;
            if ids.add(&numbers(keys), last, at) {
                write_ids(ids, &seams.fault).map_err(ids_error)?;
            }
        }
        Ok(())
    })?;
    if !has_all {
        tracing::error!(
            "the disk has no room for the ids of all events: no event is accepted until there is room"
        );
    }
    Ok((found, (!has_all).then_some(through)))
}

/// Whether it is a file of ids in which a merge found damage, and which does not count any more. Says so.
fn was_put_aside(error: &OpenError, ids_dir: &Path) -> bool {
    let OpenError::Damaged { path, reason } = error else {
        return false;
    };
    let is_aside = path.parent() == Some(ids_dir) && !path.exists();
    if is_aside {
        tracing::error!(path = %path.display(), reason, "a file of ids is damaged: it is put aside");
    }
    is_aside
}

/// Writes the ids that were read from segments. Without room they stay in memory.
fn write_ids(ids: &Ids, fault: &Fault) -> Result<(), ids::Error> {
    let step = || {
        let path = PathBuf::from(IDS_DIRECTORY);
        fault(Stage::Ids).map_err(|source| ids::Error::Io { path, source })?;
        ids.background().run_once()
    };
    loop {
        match step() {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(ids::Error::Io { source, .. }) if disk_error::is_no_space(&source) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// What needs room that is not there is left to the next start: the log can be read.
fn postpone(error: io::Error) -> io::Result<()> {
    if !disk_error::is_no_space(&error) {
        return Err(error);
    }
    tracing::error!(
        %error,
        "the disk has no room to take a damaged file out of the log: the next start does it"
    );
    Ok(())
}

/// The manifest of a directory, with which the segments agree; or one made from the segments, with
/// what is wrong with the one that is there. `None` if there is no log.
pub(super) fn whole_manifest(
    data_dir: &Path,
) -> Result<Option<(Manifest, Option<String>)>, OpenError> {
    directory::refuse_older(data_dir)?;
    let look = |manifest: &Manifest| recovery::look(data_dir, manifest, None, &mut |_, _| Ok(()));
    let mut confirmed = Sequence::ZERO;
    let agreed = Manifest::read(data_dir).and_then(|manifest| {
        if let Some(manifest) = &manifest {
            confirmed = manifest.confirmed;
            look(manifest)?;
        }
        Ok(manifest)
    });
    let (path, reason) = match agreed {
        Ok(Some(manifest)) => return Ok(Some((manifest, None))),
        Ok(None) => {
            let reason = "there is none, though there are segments";
            (data_dir.join(MANIFEST_FILE), reason.to_owned())
        }
        Err(OpenError::DamagedManifest { path, reason }) => (path, reason),
        Err(error) => return Err(error),
    };
    let survey = survey::manifest(data_dir).map_err(|source| directory_error(data_dir, source))?;
    let Some(mut manifest) = survey else {
        return no_log(path, &reason);
    };
    manifest.confirmed = confirmed;
    if let Err(OpenError::DamagedManifest { .. }) = look(&manifest) {
        // What it confirms is wrong too.
        manifest.confirmed = Sequence::ZERO;
    }
    look(&manifest)?;
    Ok(Some((manifest, Some(reason))))
}

/// A directory without segments is one without a log, unless there is something in the manifest's
/// place.
fn no_log<T>(path: PathBuf, reason: &str) -> Result<Option<T>, OpenError> {
    if !path.exists() {
        return Ok(None);
    }
    if reason == NO_MANIFEST {
        return Err(OpenError::NotALog { path });
    }
    let reason = format!("{reason}, and there are no segments to make it anew from");
    Err(OpenError::Damaged { path, reason })
}

/// Takes up the clocks where they were left, with the marks of the events' ages. What is not known is
/// no reason not to open the log: then everything in it counts as new, and is kept for longer than it
/// has to be.
fn resume_clock(manifest: &Manifest, source: &Clock, ids: &Ids) -> (LogClock, Vec<Mark>) {
    if let Some((stored, marks)) = Stored::decode(&manifest.clock) {
        return (LogClock::resume(source.clone(), &stored), marks);
    }
    // Ids of a later time than the clock's would never be forgotten.
    (LogClock::new(source.clone(), ids.newest_at()), Vec::new())
}

/// Each epoch with the first event that it wrote: as the segments say, and as the manifest does before
/// the first of them and where they are damaged. An epoch that wrote nothing leaves no trace.
pub(super) fn epochs(manifest: &Manifest, found: &Found) -> Vec<(Sequence, Epoch)> {
    let from = found.epochs.first().map(|&(first, _)| first);
    let from = from.unwrap_or(found.range.head.plus(1));
    let is_damaged = |first: Sequence| {
        let mut damage = found.damage.iter().map(|found| found.events);
        damage.any(|events| events.first <= first && first <= events.last)
    };
    let known = manifest.epochs.iter().copied();
    let known = known.filter(|&(first, _)| first < from || is_damaged(first));
    let mut all: Vec<_> = known.chain(found.epochs.iter().copied()).collect();
    // Of two that begin with the same event, the segments' is the last.
    all.sort_by_key(|&(first, _)| first);
    let mut epochs: Vec<(Sequence, Epoch)> = Vec::new();
    for (first, epoch) in all {
        epochs.pop_if(|(other, _)| *other == first);
        if epochs.last().is_none_or(|&(_, last)| last != epoch) {
            epochs.push((first, epoch));
        }
    }
    epochs
}

pub(super) fn ids_error(error: ids::Error) -> OpenError {
    match error {
        ids::Error::Io { path, source } => OpenError::Directory { path, source },
        ids::Error::Damaged { path, reason } => OpenError::Damaged { path, reason },
    }
}

/// Takes out of the log what is no part of it, into the quarantine.
struct Removal<'a> {
    data_dir: &'a Path,
    now: RetentionTime,
    fault: &'a Fault,
}

impl Removal<'_> {
    /// Takes the files of ids that do not count: the keys of their events are read from the segments, as far
    /// as retention has left them.
    fn take_ids(&self, ids: &Ids) -> io::Result<()> {
        for file in ids.aside() {
            tracing::error!(
                path = %file.path.display(),
                reason = file.reason,
                "a file of ids is damaged: its ids are read from the segments again; repetitions of events \
                 that retention has removed are not recognised any more"
            );
            match self.take_file(&file.path) {
                Ok(kept) => {
                    tracing::warn!(kept = %kept.display(), "the damaged file of ids is kept");
                }
                Err(error) => postpone(error)?,
            }
        }
        Ok(())
    }

    /// Keeps a manifest that was damaged, and says what is lost with it.
    fn take_manifest(&self, reason: &str, found: &Found) -> Result<(), OpenError> {
        let failed = |source| directory_error(self.data_dir, source);
        let path = self.data_dir.join(MANIFEST_FILE);
        tracing::error!(
            path = %path.display(),
            reason,
            first_event = found.range.earliest.0,
            last_event = found.range.head.0,
            "the manifest of the log is damaged: it is made anew from the segments; the age of all events is \
             counted from now on"
        );
        if path.try_exists().map_err(failed)? {
            match self.take_file(&path) {
                Ok(kept) => tracing::warn!(kept = %kept.display(), "the damaged manifest is kept"),
                Err(error) if disk_error::is_no_space(&error) => tracing::error!(
                    %error,
                    "the disk has no room to keep the damaged manifest: the new one replaces it"
                ),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Takes the end of the log, if it is torn, and the files without a commit; removes those that are not
    /// needed.
    fn put_right(&self, found: &mut Found) -> Result<(), OpenError> {
        let failed = |source| directory_error(self.data_dir, source);
        self.take_torn(found).map_err(failed)?;
        for &(ordinal, why) in &found.discarded {
            let path = segments::path(self.data_dir, ordinal);
            let bytes = path.metadata().map_or(0, |metadata| metadata.len());
            let kept = match self.take_file(&path) {
                Ok(kept) => kept,
                Err(error) => {
                    postpone(error).map_err(failed)?;
                    // The next segment must not get the name of this file: the log goes on behind it.
                    found.tip = None;
                    continue;
                }
            };
            tracing::warn!(
                path = %path.display(),
                from_byte = 0,
                to_byte = bytes,
                after_event = found.range.head.0,
                why,
                kept = %kept.display(),
                "a file that holds no commit was taken out of the log"
            );
        }
        keeper::remove(self.data_dir, &found.given_up).map_err(failed)?;
        keeper::remove(self.data_dir, &found.unused).map_err(failed)
    }

    /// Cuts the end of the log off, if it is torn.
    fn take_torn(&self, found: &Found) -> io::Result<()> {
        let Some(torn) = found.torn else {
            return Ok(());
        };
        let after = found.range.head.0;
        let path = segments::path(self.data_dir, torn.ordinal);
        let bytes = (torn.from, torn.to);
        let taken = (self.fault)(Stage::Quarantine)
            .and_then(|()| quarantine::take_bytes(self.data_dir, &path, bytes, self.now));
        match taken {
            Ok(kept) => tracing::warn!(
                path = %path.display(),
                from_byte = torn.from,
                to_byte = torn.to,
                after_event = after,
                kept = %kept.display(),
                "the last commit of the log is not whole, and was cut: the process ended while it \
                 was written, and nobody got an answer, or it was damaged since"
            ),
            Err(error) if disk_error::is_no_space(&error) => tracing::error!(
                path = %path.display(),
                from_byte = torn.from,
                to_byte = torn.to,
                after_event = after,
                %error,
                "the last commit of the log is not whole, and the disk has no room to keep what \
                 there is of it: the next commit is written over it"
            ),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take_file(&self, path: &Path) -> io::Result<PathBuf> {
        (self.fault)(Stage::Quarantine)?;
        quarantine::take_file(self.data_dir, path, self.now)
    }
}

fn directory_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Directory {
        path: path.to_owned(),
        source,
    }
}
