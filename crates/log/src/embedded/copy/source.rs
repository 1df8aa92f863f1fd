//! Owns the reading of a store from its oldest block to its newest. Refuses what is not whole, and says where.

use std::{fs::File, path::Path, sync::Arc};

use futures_util::StreamExt as _;

use super::{Contents, CopyError, Engine, Patience, Piece, Store, Take};
use crate::{
    embedded::{
        commit::CommitFrames,
        directory::{Directory, MANIFEST_FILE},
        frame::Header,
        frames::Frames,
        opening,
        readers::Located,
        recovery,
        replica::Message,
        scan::{CHUNK_BYTES, unreadable},
        segments::{self, Segment},
        walk::{Step, Walk},
    },
    sequencer::{Ends, Outage, Position, Sequencer},
};
use prelude_bridge_event::{Epoch, Sequence, UnixMicros};

/// A store that is read.
pub(super) enum Source {
    Files(Files),
    Sequence(Commits),
}

impl Source {
    pub(super) fn open(store: &Store, engine: &Engine) -> Result<Self, CopyError> {
        Ok(match store {
            Store::Directory(path) => Self::Files(Files::open(path)?),
            Store::Sequence(sequencer) => Self::Sequence(Commits::open(sequencer, engine)?),
        })
    }

    pub(super) fn contents(&self) -> Contents {
        match self {
            Self::Files(files) => files.contents,
            Self::Sequence(commits) => commits.contents,
        }
    }

    pub(super) fn read(&self, take: Take<'_>) -> Result<(), CopyError> {
        let mut next = self.contents().first;
        let mut in_order = |piece: Piece| {
            if piece.block.first_sequence() != next {
                let found = piece.block.first_sequence();
                return Err(CopyError::Damaged(format!(
                    "event {next} is missing: event {found} comes next"
                )));
            }
            next = piece.block.last_sequence().plus(1);
            take(piece)
        };
        match self {
            Self::Files(files) => files.read(&mut in_order),
            Self::Sequence(commits) => commits.read(&mut in_order),
        }?;
        let head = self.contents().head;
        if next != head.plus(1) {
            return Err(CopyError::Damaged(format!(
                "it ends before event {next}, and not with event {head}"
            )));
        }
        Ok(())
    }

    /// Nobody may write to a source while it is copied. A directory is locked.
    pub(super) fn check_unchanged(&self) -> Result<(), CopyError> {
        match self {
            Self::Files(_) => Ok(()),
            Self::Sequence(commits) => commits.check_unchanged(),
        }
    }
}

/// Refuses a directory without a log.
pub(super) fn check_directory(path: &Path) -> Result<(), CopyError> {
    let has_segments = || segments::ordinals(path).is_ok_and(|found| !found.is_empty());
    let is_log = path.join(MANIFEST_FILE).exists() || has_segments();
    is_log.then_some(()).ok_or_else(|| no_log(path))
}

fn no_log(path: &Path) -> CopyError {
    let path = path.display();
    CopyError::Refused(format!(
        "there is no log in {path}: name the data directory of a bridge"
    ))
}

/// The log in a directory, which no bridge can open meanwhile.
pub(super) struct Files {
    directory: Directory,
    segments: Vec<Segment>,
    contents: Contents,
}

impl Files {
    fn open(path: &Path) -> Result<Self, CopyError> {
        // Opening would create it.
        check_directory(path)?;
        let directory = Directory::open(path)?;
        let found = opening::whole_manifest(path)?;
        let (manifest, damage) = found.ok_or_else(|| no_log(path))?;
        if let Some(reason) = damage {
            return Err(CopyError::Damaged(format!(
                "{} is damaged: {reason}; start a bridge with this directory once, which makes it anew",
                path.join(MANIFEST_FILE).display()
            )));
        }
        let found = recovery::look(path, &manifest, None, &mut |_, _| Ok(()))?;
        let mut head = found.range.head;
        let earliest = found.range.earliest;
        if let Some(damage) = found.damage.iter().find(|it| it.events.last >= earliest) {
            // What a replica has not flushed counts only as far as it is whole.
            if manifest.replica.is_none() || damage.events.first <= manifest.confirmed {
                return Err(damaged(damage));
            }
            head = damage.events.first.before();
        }
        let segments = found.segments.snapshot();
        let mut files = Self {
            directory,
            segments,
            contents: Contents {
                log: manifest.log,
                first: earliest,
                head,
                epoch_before: Epoch(0),
                last_at: found.last_at,
            },
        };
        // A block is copied whole, though retention may have removed its first events.
        if earliest <= head
            && let Some(first) = files.first_header()?
        {
            files.contents.first = first.first_sequence;
        }
        files.contents.epoch_before = epoch_of(
            &opening::epochs(&manifest, &found),
            files.contents.first.before(),
        );
        Ok(files)
    }

    /// The header of the block with the first event.
    fn first_header(&self) -> Result<Option<Header>, CopyError> {
        let mut found = None;
        self.walk(&mut |header, _, _| {
            found = Some(*header);
            Ok(false)
        })?;
        Ok(found)
    }

    fn read(&self, take: Take<'_>) -> Result<(), CopyError> {
        self.walk(&mut |header, frames, path| {
            let at = (frames.offset(), frames.offset() + header.frame_bytes());
            let body = frames
                .body(header)
                .map_err(|error| unreadable(path, error))?;
            let piece = body
                .filter(|body| body.has_whole_block(header))
                .and_then(|body| {
                    let block = Arc::new(body.to_block().ok()?);
                    let fits = block.log() == header.log
                        && block.epoch() == header.epoch
                        && block.first_sequence() == header.first_sequence
                        && block.last_sequence() == header.last_sequence();
                    let keys = body.keys(header)?;
                    fits.then_some(Piece { block, keys })
                });
            let Some(piece) = piece else {
                return Err(damaged(&Located {
                    events: header.event_range(),
                    path: path.to_owned(),
                    bytes: Some(at),
                }));
            };
            take(piece)?;
            Ok(true)
        })
    }

    /// Passes over the frames from the first event on, as long as that is wanted.
    fn walk(
        &self,
        visit: &mut dyn FnMut(&Header, &mut Frames, &Path) -> Result<bool, CopyError>,
    ) -> Result<(), CopyError> {
        let Contents {
            log, first, head, ..
        } = self.contents;
        for segment in &self.segments {
            let path = segments::path(self.directory.path(), segment.ordinal);
            let failed = |error| unreadable(&path, error);
            let Some(place) = segment.beginning() else {
                continue;
            };
            let file = File::open(&path).map_err(failed)?;
            let mut frames = Frames::new(file, log, place.offset, CHUNK_BYTES);
            let mut walk = Walk::new(&place);
            while let Some(step) = walk.step(&mut frames).map_err(failed)? {
                let header = match step {
                    Step::Frame(header) => header,
                    Step::Damaged(events, _) if events.last < first || events.first > head => {
                        continue;
                    }
                    Step::Damaged(events, bytes) => {
                        let bytes = Some(bytes);
                        return Err(damaged(&Located {
                            events,
                            path,
                            bytes,
                        }));
                    }
                };
                let is_wanted = header.last_sequence() >= first && header.first_sequence <= head;
                if is_wanted && !visit(&header, &mut frames, &path)? {
                    return Ok(());
                }
                walk.pass(&mut frames, &header);
            }
        }
        Ok(())
    }
}

fn damaged(located: &Located) -> CopyError {
    CopyError::Damaged(format!(
        "{located}: restore the file from a backup (`prelude-bridge log check` finds all damage); a log is copied \
         only whole"
    ))
}

fn epoch_of(epochs: &[(Sequence, Epoch)], event: Sequence) -> Epoch {
    let began = epochs.iter().rev().find(|&&(first, _)| first <= event);
    began
        .filter(|_| event > Sequence::ZERO)
        .map_or(Epoch(0), |&(_, epoch)| epoch)
}

/// The log in a sequence.
pub(super) struct Commits {
    pub(super) sequencer: Arc<dyn Sequencer>,
    engine: Engine,
    pub(super) ends: Ends,
    contents: Contents,
}

impl Commits {
    fn open(sequencer: &Arc<dyn Sequencer>, engine: &Engine) -> Result<Self, CopyError> {
        let name = sequencer.name();
        let ends = engine.ask(|| sequencer.ends())?;
        let get = |position: Position| {
            let bytes = engine.ask(|| sequencer.get(position))?;
            let bytes = bytes.ok_or(Outage::Removed {
                first: position.next(),
            })?;
            parse(&name, position, &bytes)
        };
        if ends.first > ends.last {
            let name = &name;
            return Err(CopyError::Refused(format!(
                "{name} has no events: name the store with the log, and, if it is not the default, its stream or table"
            )));
        }
        let (first, last) = (get(ends.first)?, get(ends.last)?);
        let (Some(first), Some(last)) = (first.header(), last.last()) else {
            return Err(CopyError::Damaged(format!(
                "{name} has a commit without frames"
            )));
        };
        let contents = Contents {
            log: first.log,
            first: first.first_sequence,
            head: last.last_sequence(),
            epoch_before: first.link.epoch_before,
            last_at: UnixMicros(last.received_at.0),
        };
        Ok(Self {
            sequencer: Arc::clone(sequencer),
            engine: engine.clone(),
            ends,
            contents,
        })
    }

    pub(super) fn read(&self, take: Take<'_>) -> Result<(), CopyError> {
        let (name, mut digest) = (self.sequencer.name(), None);
        self.follow(&mut |position, bytes| {
            let message = parse(&name, position, bytes)?;
            let header = message.header();
            let follows = header.is_some_and(|header| {
                header.log == self.contents.log && digest.is_none_or(|digest| header.link.digest_before == digest)
            });
            if !follows {
                return Err(CopyError::Damaged(format!(
                    "commit {position} of {name} does not follow the one before it: it is of another log, or of \
                     another history of this one"
                )));
            }
            digest = Some(message.digest());
            match message {
                Message::Commit(frames) => pieces(&frames).try_for_each(&mut *take),
                Message::Mark(_) => Ok(()),
            }
        })
    }

    /// Passes all commits, and begins again where an engine has ended it.
    fn follow(
        &self,
        pass: &mut dyn FnMut(Position, &bytes::Bytes) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let (mut next, mut patience) = (self.ends.first, Patience::new(self.engine.patience));
        while next <= self.ends.last {
            // It belongs to the runtime, as its timers do.
            let mut commits = {
                let _entered = self.engine.runtime.enter();
                self.sequencer.follow(next)
            };
            let outage = loop {
                if next > self.ends.last {
                    return Ok(());
                }
                match self.engine.runtime.block_on(commits.next()) {
                    Some(Ok((position, bytes))) if position == next => {
                        pass(position, &bytes)?;
                        patience.renew();
                        next = next.next();
                    }
                    Some(Ok((position, _))) => {
                        let reason = format!("commit {position} came instead of commit {next}");
                        break Outage::Unavailable(reason.into());
                    }
                    Some(Err(outage)) => break outage,
                    None => break Outage::Unavailable("the sequence has ended".into()),
                }
            };
            patience.wait(outage)?;
        }
        Ok(())
    }

    pub(super) fn check_unchanged(&self) -> Result<(), CopyError> {
        let ends = self.engine.ask(|| self.sequencer.ends())?;
        if ends == self.ends {
            return Ok(());
        }
        Err(CopyError::Changed(format!(
            "{} was written to meanwhile, or retention removed its oldest events: stop all bridges that use it, and run \
             the same command again, which goes on where this one ended",
            self.sequencer.name()
        )))
    }
}

pub(super) fn parse(
    name: &str,
    position: Position,
    bytes: &bytes::Bytes,
) -> Result<Message, CopyError> {
    Message::parse(position, bytes).map_err(|fault| {
        CopyError::Damaged(format!(
            "commit {position} of {name} cannot be read: {fault}"
        ))
    })
}

/// The blocks of a commit, each with the keys of its events.
pub(super) fn pieces(frames: &CommitFrames) -> impl Iterator<Item = Piece> {
    let mut rest = frames.keys();
    frames.blocks().map(move |block| {
        let events = block.entries().len();
        let (keys, others) = rest.split_at_checked(events).unwrap_or((rest, &[]));
        rest = others;
        Piece {
            block: Arc::clone(block),
            keys: keys.to_vec(),
        }
    })
}
