//! Owns what a start of a replica finds out before anything is opened: which log the sequence has, whether
//! the replica in the directory is a part of its history, and where it goes on. What was not flushed is cut
//! off. A replica that is lost, too old or of another history is made anew.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use super::{Beginning, FIRST_ANSWER, message::Message};
use crate::{
    clock::{Clock, LogClock, RetentionTime, Stored},
    embedded::{
        directory::{self, DIVERGED_FILE, Directory, IDS_DIRECTORY, MANIFEST_FILE},
        frame::{Header, Link, SEGMENT_HEADER_BYTES},
        frames::Frames,
        manifest::Manifest,
        open_error::OpenError,
        quarantine,
        scan::CHUNK_BYTES,
        segments::{self, Segments},
    },
    group,
    sequencer::{Ends, Outage, Outcome, Position, Sequencer},
};
use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

/// The pause before the engine is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// What there is in the sequence.
struct Look {
    ends: Ends,
    /// The oldest commit; `None` where retention has removed all.
    first: Option<Header>,
}

/// Why a replica is made anew.
struct Unfit {
    reason: String,
    /// It has, or may have, events that the sequence has not.
    is_kept: bool,
}

/// A start of the replica in a directory.
pub(in crate::embedded) struct Start<'a> {
    pub(in crate::embedded) directory: &'a Directory,
    pub(in crate::embedded) sequencer: &'a Arc<dyn Sequencer>,
    pub(in crate::embedded) runtime: &'a Handle,
    pub(in crate::embedded) clock: &'a Clock,
}

impl Start<'_> {
    /// Leaves a directory that has a replica which is flushed to its end, and tells where it ends.
    pub(in crate::embedded) fn begin(&self) -> Result<Beginning, OpenError> {
        let local = self.local()?;
        let mut look = self.look()?;
        if look.ends.last == Position(0) {
            self.check_may_begin(local.as_ref())?;
            self.begin_log()?;
            look = self.look()?;
        }
        let catch_up_to = look.ends.last;
        let beginning = |position, digest, log| Beginning {
            log,
            position,
            digest,
            catch_up_to,
        };
        let unfit = match local {
            None => None,
            Some(Err(unfit)) => Some(unfit),
            Some(Ok(manifest)) => {
                self.check_same_log(&manifest, &look)?;
                match self.go_on(&manifest, &look)? {
                    Ok((position, digest)) => return Ok(beginning(position, digest, manifest.log)),
                    Err(unfit) => Some(unfit),
                }
            }
        };
        let Some(first) = look.first else {
            return Err(self.refused(
                "has no commits any more, and this bridge does not know which event comes next: start the bridge \
                 first that wrote last, with its data directory",
            ));
        };
        if let Some(Unfit { reason, is_kept }) = unfit {
            tracing::warn!(
                reason,
                "the replica in the data directory is made anew from the store"
            );
            self.remove(is_kept).map_err(|source| self.failed(source))?;
        }
        // A mark has nothing to apply.
        let behind = u64::from(first.events > 0);
        let position = Position(first.commit.saturating_sub(behind));
        let digest = first.link.digest_before;
        let made = self.make(&first, (position, digest));
        made.map_err(|source| self.failed(source))?;
        Ok(beginning(position, Some(digest), first.log))
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn failed(&self, source: io::Error) -> OpenError {
        let path = self.path().to_owned();
        OpenError::Directory { path, source }
    }

    fn refused(&self, reason: &str) -> OpenError {
        OpenError::Store {
            reason: format!("{} {reason}", self.sequencer.name()),
        }
    }

    /// The manifest that is there, or why it is of no use; `None` where there is no log.
    fn local(&self) -> Result<Option<Result<Manifest, Unfit>>, OpenError> {
        directory::refuse_older(self.path())?;
        let unfit = |reason: String| {
            Ok(Some(Err(Unfit {
                reason,
                is_kept: true,
            })))
        };
        let diverged = fs::read_to_string(self.path().join(DIVERGED_FILE));
        match Manifest::read(self.path()) {
            Ok(Some(manifest)) if manifest.replica.is_some() && diverged.is_ok() => {
                unfit(diverged.unwrap_or_default())
            }
            Ok(Some(manifest)) if manifest.replica.is_none() => Err(OpenError::NotAReplica {
                path: self.path().to_owned(),
            }),
            Ok(Some(manifest)) => Ok(Some(Ok(manifest))),
            Ok(None) => {
                let ordinals = segments::ordinals(self.path());
                let ordinals = ordinals.map_err(|source| self.failed(source))?;
                if ordinals.is_empty() {
                    return Ok(None);
                }
                unfit("its manifest is missing".to_owned())
            }
            Err(OpenError::DamagedManifest { reason, .. }) => {
                unfit(format!("its manifest is damaged: {reason}"))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the engine answers.
    fn look(&self) -> Result<Look, OpenError> {
        let began = Instant::now();
        loop {
            let outage = match self.runtime.block_on(self.try_look()) {
                Ok(look) => return look,
                Err(outage) => outage,
            };
            let passes = matches!(outage, Outage::Disconnected(_) | Outage::Unavailable(_));
            if !passes || began.elapsed() >= FIRST_ANSWER {
                return Err(OpenError::Store {
                    reason: outage.to_string(),
                });
            }
            std::thread::sleep(PAUSE);
        }
    }

    async fn try_look(&self) -> Result<Result<Look, OpenError>, Outage> {
        loop {
            let ends = self.sequencer.ends().await?;
            if ends.first > ends.last {
                return Ok(Ok(Look { ends, first: None }));
            }
            let Some(bytes) = self.sequencer.get(ends.first).await? else {
                // Retention has removed it meanwhile.
                continue;
            };
            let message = Message::parse(ends.first, &bytes);
            let header = message.map(|message| message.header().copied());
            return Ok(match header {
                Ok(first) => Ok(Look { ends, first }),
                Err(fault) => Err(self.refused(&format!(
                    "has something else than a log of prelude-bridge: commit {}: {fault}",
                    ends.first
                ))),
            });
        }
    }

    /// A directory that has events of a log is not for a new one: it is more likely that somebody is mistaken
    /// about the store, or that the store has lost everything.
    fn check_may_begin(&self, local: Option<&Result<Manifest, Unfit>>) -> Result<(), OpenError> {
        match local {
            None => Ok(()),
            Some(Ok(manifest)) if manifest.confirmed == Sequence::ZERO => Ok(()),
            Some(_) => Err(self.refused(
                "is empty, and the data directory has a replica of a log: if the store was lost, restore it, or copy \
                 the log back with `prelude-bridge log copy`; for a new log, choose another --data-dir",
            )),
        }
    }

    /// Puts the first mark into an empty sequence. Somebody else may do so at the same time.
    fn begin_log(&self) -> Result<(), OpenError> {
        let log = group::new_log_id()?;
        let place = (Sequence(1), UnixMicros(0));
        let header = Header::of_mark(log, place, (1, Epoch(0)), Link::NONE);
        let began = Instant::now();
        loop {
            let mark = Message::mark(&header);
            let appended = self
                .runtime
                .block_on(self.sequencer.append(Position(1), mark));
            match appended {
                Ok(Outcome::Won) => {
                    tracing::info!(store = %self.sequencer.name(), "a new log begins");
                    return Ok(());
                }
                Err(error @ (Outage::Unusable(_) | Outage::Full(_))) => {
                    let reason = error.to_string();
                    return Err(OpenError::Store { reason });
                }
                Ok(Outcome::Refused) | Err(_) => {}
            }
            if self.look()?.ends.last > Position(0) {
                return Ok(());
            }
            if began.elapsed() >= FIRST_ANSWER {
                return Err(self.refused("takes no commits: it may have no quorum"));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn check_same_log(&self, manifest: &Manifest, look: &Look) -> Result<(), OpenError> {
        let found = look.first.map_or(manifest.log, |first| first.log);
        if found == manifest.log {
            return Ok(());
        }
        let (LogId(ours), LogId(theirs)) = (manifest.log, found);
        Err(self.refused(&format!(
            "has log {theirs:016x}, and the data directory has a replica of log {ours:016x}: choose another \
             --data-dir, or correct --store"
        )))
    }

    /// Cuts off what was not flushed. Returns the position and the digest that the replica goes on from, or
    /// why it cannot.
    fn go_on(
        &self,
        manifest: &Manifest,
        look: &Look,
    ) -> Result<Result<(Position, Option<u64>), Unfit>, OpenError> {
        let unfit = |reason: String, is_kept| Ok(Err(Unfit { reason, is_kept }));
        let Some((position, digest)) = manifest.replica else {
            return unfit("it is none".to_owned(), true);
        };
        let is_whole = cut(self.path(), manifest).map_err(|source| self.failed(source))?;
        if !is_whole {
            return unfit("a part of it is damaged or missing".to_owned(), true);
        }
        let Ends { first, last } = look.ends;
        if last < position {
            let reason = format!(
                "it has commit {position}, and the store ends with commit {last}: the store has lost commits that it \
                 had acknowledged, or was restored to an earlier state; cursors of what was lost are refused"
            );
            return unfit(reason, true);
        }
        // What it ends with is to be there, or what comes next is to follow it.
        let next = position.next();
        let at = if position >= first { position } else { next };
        if at < first {
            let reason =
                format!("it ends with commit {position}, and the store begins with commit {first}");
            return unfit(reason, false);
        }
        if at > last || position == Position(0) {
            return Ok(Ok((position, Some(digest))));
        }
        let found = self.runtime.block_on(self.sequencer.get(at));
        let found = found.map_err(|outage| OpenError::Store {
            reason: outage.to_string(),
        })?;
        let message = found.and_then(|bytes| Message::parse(at, &bytes).ok());
        let is_same = message.is_some_and(|message| {
            if at == position {
                let head = message.last().map(Header::last_sequence);
                message.digest() == digest && head == Some(manifest.confirmed)
            } else {
                let header = message.header();
                header.is_some_and(|header| header.link.digest_before == digest)
            }
        });
        if is_same {
            Ok(Ok((position, Some(digest))))
        } else {
            let reason = format!(
                "it is of another history of the log: commit {at} of the store does not fit"
            );
            unfit(reason, true)
        }
    }

    /// Removes a replica. What may be nowhere else goes to the quarantine.
    fn remove(&self, is_kept: bool) -> io::Result<()> {
        let now = self.retention_time();
        for ordinal in segments::ordinals(self.path())? {
            let path = segments::path(self.path(), ordinal);
            if is_kept {
                let kept = quarantine::take_file(self.path(), &path, now)?;
                tracing::warn!(kept = %kept.display(), "a segment of the replica is kept");
            } else {
                fs::remove_file(path)?;
            }
        }
        remove_if_there(fs::remove_dir_all(self.path().join(IDS_DIRECTORY)))?;
        remove_if_there(fs::remove_file(self.path().join(MANIFEST_FILE)))?;
        remove_if_there(fs::remove_file(self.path().join(DIVERGED_FILE)))?;
        directory::sync_directory(self.path())
    }

    fn retention_time(&self) -> RetentionTime {
        let stored = Manifest::read(self.path()).ok().flatten();
        let stored = stored.and_then(|manifest| Stored::decode(&manifest.clock));
        let mut clock = match stored {
            Some((stored, _)) => LogClock::resume(self.clock.clone(), &stored),
            None => LogClock::new(self.clock.clone(), RetentionTime::default()),
        };
        clock.now().retention.time
    }

    /// Makes the replica that begins before a commit.
    fn make(&self, first: &Header, (position, digest): (Position, u64)) -> io::Result<()> {
        let trimmed = first.first_sequence.before();
        let mut manifest = Manifest::beginning(first.log, 1, trimmed);
        manifest.confirmed = trimmed;
        manifest.replica = Some((position, digest));
        if trimmed > Sequence::ZERO {
            manifest.epochs = vec![(trimmed, first.link.epoch_before)];
        }
        manifest.write(self.path())
    }
}

fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Cuts everything off behind the last event that was flushed. False where that event is not found.
fn cut(data_dir: &Path, manifest: &Manifest) -> io::Result<bool> {
    let confirmed = manifest.confirmed;
    let mut ordinals = segments::ordinals(data_dir)?;
    ordinals.retain(|&ordinal| ordinal >= manifest.first_ordinal);
    while let Some(ordinal) = ordinals.pop() {
        let path = segments::path(data_dir, ordinal);
        let file = fs::File::options().read(true).write(true).open(&path)?;
        let mut frames = Frames::new(
            file.try_clone()?,
            manifest.log,
            SEGMENT_HEADER_BYTES,
            CHUNK_BYTES,
        );
        let mut last = None;
        while let Some(header) = frames.header()?
            && header.last_sequence() <= confirmed
        {
            last = Some(header);
            frames.skip(&header);
        }
        match last {
            None => {
                fs::remove_file(path)?;
            }
            Some(last) if last.last_sequence() == confirmed && last.frames_after == 0 => {
                file.set_len(frames.offset())?;
                file.sync_all()?;
                directory::sync_directory(data_dir)?;
                return Ok(true);
            }
            Some(_) => return Ok(false),
        }
    }
    directory::sync_directory(data_dir)?;
    Ok(confirmed <= manifest.trimmed)
}

/// The position of the commit that an event is in.
pub(in crate::embedded) fn position_of(
    segments: &Segments,
    event: Sequence,
    head: Sequence,
) -> Option<Position> {
    let segments::Position::At(place) = segments.place_after(event.before(), head) else {
        return None;
    };
    let mut frames = segments.open(&place, CHUNK_BYTES).ok()?;
    while let Ok(Some(header)) = frames.header() {
        if header.last_sequence() >= event {
            return Some(Position(header.commit));
        }
        frames.skip(&header);
    }
    None
}
