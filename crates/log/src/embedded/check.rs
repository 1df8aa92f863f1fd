//! Owns the check of a log: every checksum, every sequence number and every entry of an index, of a
//! log that a bridge has open, of one that none has, and of a copy. Writes nothing.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use super::{
    directory::{IDS_DIRECTORY, LOCK_FILE, MANIFEST_FILE},
    footer,
    frame::{self, Kind},
    manifest::Manifest,
    open_error::OpenError,
    opening,
    readers::{self, Fault, Located},
    recovery::{self, Found},
    scan::unreadable,
    segments::{self, Segment},
    verify::{Finding, IndexCheck, Verification},
};
use crate::{Damaged, Range, ids};
use prelude_bridge_event::{LogId, Sequence};

/// Read at once.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Progress is told each time that so much was read.
const PROGRESS_BYTES: u64 = 1024 * 1024;
const INDEX_MISSING: &str = "its index is damaged or missing";
/// More faults are counted only.
const FAULTS_MAX: usize = 10_000;

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckProgress {
    /// What was checked.
    pub done_bytes: u64,
    /// What is to be checked in all.
    pub total_bytes: u64,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The identity of the log.
    pub log: LogId,
    /// Its two ends.
    pub range: Range,
    /// How many segments there are.
    pub segments: u64,
    /// How many bytes were checked.
    pub bytes: u64,
    /// How many events are whole.
    pub events: u64,
    /// What is wrong: at most ten thousand faults, those of the segments in the order of their events.
    pub faults: Vec<CheckFault>,
    /// How many faults there are beyond those.
    pub more_faults: u64,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckFault {
    /// The file.
    pub file: PathBuf,
    /// Where in the file it begins, if that is known.
    pub offset: Option<u64>,
    /// The events that cannot be read because of it.
    pub events: Option<Damaged>,
    /// What is wrong.
    pub what: String,
    /// What becomes of it.
    pub remedy: Remedy,
}

/// What becomes of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// Events are lost unless the file is restored from a backup. All others are served.
    Restore,
    /// A start of the bridge makes it anew from the rest of the log. Nothing is lost.
    Rebuilt,
    /// It is the end of a commit that nobody got an answer for, or that was damaged since. A start of the
    /// bridge takes it out of the log, and keeps it in the quarantine.
    Cut,
    /// It harms nothing.
    Harmless,
}

/// Checks every checksum, sequence number and index entry of the log in a directory, whether a bridge
/// has it open or not. Writes nothing. `None` if there is no log.
///
/// # Errors
/// [`OpenError`], where there is something else, or where nothing of a log is left.
pub fn check(
    data_dir: &Path,
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<Option<CheckReport>, OpenError> {
    if !data_dir.is_dir() {
        return Ok(None);
    }
    let Some((manifest, damage)) = opening::whole_manifest(data_dir)? else {
        return Ok(None);
    };
    let found = look(data_dir, &manifest)?;
    let mut check = Check::new(data_dir, &manifest, &found, progress)?;
    if let Some(reason) = damage {
        check.add_file(data_dir.join(MANIFEST_FILE), reason, Remedy::Rebuilt);
    }
    check.check_segments()?;
    check.check_ids()?;
    if let Some(torn) = found.torn.filter(|_| !is_in_use(data_dir)) {
        let file = segments::path(data_dir, torn.ordinal);
        let what = format!("the last commit is not whole, up to byte {}", torn.to);
        check.add(CheckFault {
            offset: Some(torn.from),
            ..fault(file, what, Remedy::Cut)
        });
    }
    check.finish().map(Some)
}

fn look(data_dir: &Path, manifest: &Manifest) -> Result<Found, OpenError> {
    recovery::look(data_dir, manifest, None, &mut |_, _| Ok(()))
}

/// Whether a bridge has the log open, which may be writing its end.
fn is_in_use(data_dir: &Path) -> bool {
    let lock = File::open(data_dir.join(LOCK_FILE));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

fn fault(file: PathBuf, what: String, remedy: Remedy) -> CheckFault {
    CheckFault {
        file,
        offset: None,
        events: None,
        what,
        remedy,
    }
}

fn missing(events: Damaged) -> String {
    format!("{events} {} missing: there is no such file", events.verb())
}

/// A check that is under way.
struct Check<'a> {
    data_dir: &'a Path,
    log: LogId,
    range: Range,
    segments: Vec<Segment>,
    faults: Vec<CheckFault>,
    more_faults: u64,
    events: u64,
    progress: &'a mut dyn FnMut(CheckProgress),
    done: CheckProgress,
    told_bytes: u64,
}

impl<'a> Check<'a> {
    fn new(
        data_dir: &'a Path,
        manifest: &Manifest,
        found: &Found,
        progress: &'a mut dyn FnMut(CheckProgress),
    ) -> Result<Self, OpenError> {
        let ids = ids::check_bytes(&data_dir.join(IDS_DIRECTORY)).map_err(opening::ids_error)?;
        let segments = found.segments.snapshot();
        let ends = segments.iter().map(|segment| segment.end).sum::<u64>();
        let mut check = Self {
            data_dir,
            log: manifest.log,
            range: found.range,
            segments,
            faults: Vec::new(),
            more_faults: 0,
            events: 0,
            progress,
            done: CheckProgress {
                done_bytes: 0,
                total_bytes: ends + ids,
            },
            told_bytes: 0,
        };
        // What is damaged within a segment is found again, in its place.
        let is_missing = |located: &&Located| located.bytes.is_none();
        for located in found.damage.iter().filter(is_missing) {
            let what = if located.path.exists() {
                format!("{} cannot be found in it", located.events)
            } else {
                missing(located.events)
            };
            check.add_events(located, what);
        }
        Ok(check)
    }

    fn add(&mut self, fault: CheckFault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }

    fn add_file(&mut self, file: PathBuf, what: String, remedy: Remedy) {
        self.add(fault(file, what, remedy));
    }

    fn add_events(&mut self, located: &Located, what: String) {
        self.add(CheckFault {
            offset: located.bytes.map(|(from, _)| from),
            events: Some(located.events),
            ..fault(located.path.clone(), what, Remedy::Restore)
        });
    }

    /// What retention has removed may be damaged.
    fn add_finding(&mut self, finding: &Finding) {
        let (Finding::Events(found) | Finding::Keys(found) | Finding::Padding(found)) = finding;
        if found.events.last < self.range.earliest {
            return;
        }
        let bytes = |located: &Located| {
            let (from, to) = located.bytes.unwrap_or_default();
            format!("bytes {from} to {to}")
        };
        let (located, what, remedy) = match finding {
            Finding::Events(located) => {
                let (events, verb) = (located.events, located.events.verb());
                let what = format!("{events} {verb} damaged: {}", bytes(located));
                return self.add_events(located, what);
            }
            Finding::Keys(located) => (
                located,
                format!(
                    "the keys of {} are damaged: their ids tell them",
                    located.events
                ),
                Remedy::Harmless,
            ),
            Finding::Padding(located) => (
                located,
                format!("unused bytes behind {} have changed", located.events),
                Remedy::Harmless,
            ),
        };
        self.add(CheckFault {
            offset: located.bytes.map(|(from, _)| from),
            ..fault(located.path.clone(), what, remedy)
        });
    }

    fn pass(&mut self, bytes: u64) {
        self.done.done_bytes += bytes;
        // It grows while a bridge writes to it.
        self.done.total_bytes = self.done.total_bytes.max(self.done.done_bytes);
        if self.done.done_bytes >= self.told_bytes + PROGRESS_BYTES {
            self.told_bytes = self.done.done_bytes;
            (self.progress)(self.done);
        }
    }

    fn check_segments(&mut self) -> Result<(), OpenError> {
        let segments = std::mem::take(&mut self.segments);
        let last = segments.last().map(|last| last.ordinal);
        for segment in &segments {
            self.check_segment(segment, last == Some(segment.ordinal))?;
        }
        self.segments = segments;
        Ok(())
    }

    fn check_segment(&mut self, segment: &Segment, is_last: bool) -> Result<(), OpenError> {
        let path = segments::path(self.data_dir, segment.ordinal);
        let failed = |error| unreadable(&path, error);
        let verification = segment.beginning().map(|place| {
            Verification::open(self.data_dir, self.log, &place, CHUNK_BYTES).map_err(failed)
        });
        // Retention has removed it, or it is missing, which the end of the check tells apart.
        let Some(mut verification) = verification.transpose()?.flatten() else {
            return self.add_missing(&path, segment);
        };
        self.pass(frame::SEGMENT_HEADER_BYTES);
        let file = File::open(&path).map_err(failed)?;
        let kind = frame::identify(&file, self.log, segment.ordinal).map_err(failed)?;
        if kind != Kind::Segment {
            let what = "its header is damaged: its events are read without it".to_owned();
            self.add_file(path.clone(), what, Remedy::Harmless);
        }
        let mut findings = Vec::new();
        let mut index = IndexCheck::new(segment);
        while let Some(passed) = verification
            .step(&mut |finding| findings.push(finding))
            .map_err(failed)?
        {
            index.compare(&passed);
            self.events += passed.events;
            self.pass(passed.bytes);
            for finding in findings.drain(..) {
                self.add_finding(&finding);
            }
        }
        let footer = footer::read(&file, self.log, segment.ordinal).map_err(failed)?;
        let what = match footer {
            None if !is_last => INDEX_MISSING,
            Some(_) if !index.is_right() => "its index leads to other places than it says",
            _ => return Ok(()),
        };
        self.add_file(path.clone(), what.to_owned(), Remedy::Rebuilt);
        Ok(())
    }

    fn add_missing(&mut self, path: &Path, segment: &Segment) -> Result<(), OpenError> {
        let events = Damaged {
            first: segment.first_sequence,
            last: segment.last_sequence,
        };
        let located = Located {
            events,
            path: path.to_owned(),
            bytes: None,
        };
        self.add_events(&located, missing(events));
        Ok(())
    }

    fn check_ids(&mut self) -> Result<(), OpenError> {
        let directory = self.data_dir.join(IDS_DIRECTORY);
        let log = self.log;
        let mut damaged = Vec::new();
        let mut bytes = 0;
        ids::check(&directory, log, &mut |checked| match checked {
            ids::Checked::Bytes(more) => bytes += more,
            ids::Checked::Damaged(path, reason) => damaged.push((path, reason)),
        })
        .map_err(opening::ids_error)?;
        self.pass(bytes);
        for (path, reason) in damaged {
            let what = format!("{reason}: its ids are read from the segments again");
            self.add_file(path, what, Remedy::Rebuilt);
        }
        Ok(())
    }

    /// Whether a file has an index by now, or is gone.
    fn has_index(&self, path: &Path) -> bool {
        let mut segments = self.segments.iter();
        let is_this = |segment: &&Segment| segments::path(self.data_dir, segment.ordinal) == path;
        let ordinal = segments.find(is_this).map(|segment| segment.ordinal);
        let (Some(ordinal), Ok(file)) = (ordinal, File::open(path)) else {
            return !path.exists();
        };
        matches!(footer::read(&file, self.log, ordinal), Ok(Some(_)))
    }

    /// Leaves out what was not damaged after all: a bridge has written or removed it meanwhile.
    fn finish(mut self) -> Result<CheckReport, OpenError> {
        let has_lost = |fault: &CheckFault| fault.events.is_some();
        if self.faults.iter().any(has_lost)
            && let Some((manifest, _)) = opening::whole_manifest(self.data_dir)?
        {
            let now = look(self.data_dir, &manifest)?;
            self.faults.retain(|fault| {
                let is_still = |events: Damaged| is_damaged(&now, manifest.trimmed, events);
                fault.events.is_none_or(is_still)
            });
        }
        let mut faults = std::mem::take(&mut self.faults);
        faults.retain(|fault| fault.what != INDEX_MISSING || !self.has_index(&fault.file));
        self.faults = faults;
        self.faults
            .sort_by_key(|fault| fault.events.map(|events| events.first));
        self.done.done_bytes = self.done.total_bytes;
        (self.progress)(self.done);
        Ok(CheckReport {
            log: self.log,
            range: self.range,
            segments: self.segments.len() as u64,
            bytes: self.done.total_bytes,
            events: self.events,
            faults: self.faults,
            more_faults: self.more_faults,
        })
    }
}

/// Whether events cannot be read of a log as it is now.
fn is_damaged(now: &Found, trimmed: Sequence, events: Damaged) -> bool {
    let head = now.range.head;
    let after = events.first.before().max(trimmed);
    if events.last <= trimmed || after >= head {
        return false;
    }
    matches!(
        readers::read(&now.segments, head, after, 0),
        Err(Fault::Damaged(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Log as _,
        embedded::{Options, open},
        fixtures,
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn an_index_that_is_written_while_a_check_goes_on_was_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let options = || Options {
            // Segments of 64 KiB.
            retention_bytes: 1024 * 1024,
            ..Options::default()
        };
        for from in [0, 4_000] {
            let log = open(dir.path(), options()).unwrap();
            let batch = fixtures::numbered("app_1", from..from + 4_000);
            log.append(batch).await.unwrap();
            log.close().await;
        }
        let sealed = segments::path(dir.path(), 1);
        let mut bytes = std::fs::read(&sealed).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&sealed, bytes).unwrap();
        let (manifest, _) = opening::whole_manifest(dir.path()).unwrap().unwrap();
        let found = look(dir.path(), &manifest).unwrap();
        for is_written in [false, true] {
            let mut progress = |_| ();
            let mut check = Check::new(dir.path(), &manifest, &found, &mut progress).unwrap();
            check.check_segments().unwrap();
            if is_written {
                let segment = &found.segments.snapshot()[0];
                footer::append(dir.path(), manifest.log, segment).unwrap();
            }
            let faults = check.finish().unwrap().faults;
            let missing = faults.iter().filter(|fault| fault.what == INDEX_MISSING);
            let files: Vec<_> = missing.map(|fault| &fault.file).collect();
            assert_eq!(files.is_empty(), is_written, "{files:?}");
        }
    }
}
