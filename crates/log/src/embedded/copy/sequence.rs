//! Owns the target that is a sequence: it begins with a mark, which says where the log begins, and goes on
//! with the blocks, as many in a commit as make good use of one. A copy that was interrupted is recognised
//! by its first commit and its last.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{
    Contents, CopyError, Engine, Patience, Piece,
    source::{parse, pieces},
};
use crate::{
    embedded::{
        commit::CommitFrames,
        frame::{ALIGNMENT, HEADER_BYTES, Header, Link},
        replica::Message,
    },
    sequencer::{Outage, Outcome, Position, Sequencer},
};
use prelude_bridge_event::{Epoch, EventKey, LogId, Sequence};

/// Blocks are put into one commit up to this size, if the engine takes as much. 1 MiB: an engine that
/// flushes three disks for each takes a hundred of them a second.
const COMMIT_BYTES: usize = 1024 * 1024;

/// A sequence that is copied into.
pub(super) struct Target<'a> {
    sequencer: &'a Arc<dyn Sequencer>,
    engine: &'a Engine,
    log: LogId,
    writer: u32,
    position: Position,
    digest: u64,
    epoch_before: Epoch,
    /// The last event that was there before.
    head: Sequence,
    /// The last commit that was there before, which has to be in the source.
    expected: VecDeque<Piece>,
    /// What makes the next commit.
    pieces: Vec<Piece>,
    bytes: usize,
}

impl<'a> Target<'a> {
    pub(super) fn begin(
        sequencer: &'a Arc<dyn Sequencer>,
        engine: &'a Engine,
        contents: &Contents,
    ) -> Result<Self, CopyError> {
        let writer = getrandom::u32().map_err(|error| CopyError::Open(error.into()))?;
        let mut target = Self {
            sequencer,
            engine,
            log: contents.log,
            writer: writer.max(1),
            position: Position(0),
            digest: 0,
            epoch_before: contents.epoch_before,
            head: contents.first.before(),
            expected: VecDeque::new(),
            pieces: Vec::new(),
            bytes: 0,
        };
        let ends = engine.ask(|| sequencer.ends())?;
        if ends.last > Position(0) {
            target.go_on(contents, (ends.first, ends.last))?;
            return Ok(target);
        }
        let place = (contents.first, contents.last_at);
        let link = Link {
            epoch_before: contents.epoch_before,
            digest_before: 0,
            writer: target.writer,
        };
        let header = Header::of_mark(contents.log, place, (1, contents.epoch_before), link);
        target.append(&Message::mark(&header))?;
        Ok(target)
    }

    /// The last event that was there before.
    pub(super) fn head(&self) -> Sequence {
        self.head
    }

    /// Takes up a copy that was interrupted.
    fn go_on(
        &mut self,
        contents: &Contents,
        (first, last): (Position, Position),
    ) -> Result<(), CopyError> {
        let name = self.sequencer.name();
        if first > Position(1) {
            return Err(
                self.refused("does not begin with its first commit: it is older than this copy")
            );
        }
        let get = |position| {
            let bytes = self.engine.ask(|| self.sequencer.get(position))?;
            let bytes = bytes.ok_or(Outage::Removed {
                first: position.next(),
            })?;
            parse(&name, position, &bytes)
        };
        let (first, message) = (get(first)?, get(last)?);
        let begins = first.header().is_some_and(|header| {
            header.log == contents.log
                && header.first_sequence == contents.first
                && header.link.epoch_before == contents.epoch_before
        });
        if let Some(header) = first.header().filter(|header| header.log != contents.log) {
            let (LogId(ours), LogId(theirs)) = (contents.log, header.log);
            return Err(self.refused(&format!(
                "has log {theirs:016x}, and the source has log {ours:016x}"
            )));
        }
        let Some(end) = message.last().filter(|_| begins) else {
            return Err(self.refused("has another part of this log"));
        };
        self.head = end.last_sequence();
        if end.log != contents.log || self.head > contents.head {
            return Err(self.refused(
                "goes on after the last event of the source: a bridge has written to it",
            ));
        }
        (self.position, self.digest) = (last, message.digest());
        if let Message::Commit(frames) = &message {
            self.expected = pieces(frames).collect();
        }
        Ok(())
    }

    fn refused(&self, what: &str) -> CopyError {
        CopyError::Refused(format!(
            "{} {what}: choose another stream or table, or remove this one if nothing needs it; only an empty one, or \
             one that a copy of this log has begun, can be copied into",
            self.sequencer.name()
        ))
    }

    /// Takes the next piece of the source.
    pub(super) fn push(&mut self, piece: Piece) -> Result<(), CopyError> {
        let epoch = piece.block.epoch();
        if piece.block.first_sequence() <= self.head {
            let expected = self.expected.front();
            let begins =
                expected.is_some_and(|it| it.block.last_sequence() <= piece.block.last_sequence());
            let is_other = begins
                && !self
                    .expected
                    .pop_front()
                    .is_some_and(|it| it.is_same_as(&piece));
            if is_other || piece.block.last_sequence() > self.head {
                return Err(self.refused("has other events than the source"));
            }
            self.epoch_before = epoch;
            return Ok(());
        }
        let bytes = HEADER_BYTES
            + piece.keys.len() * size_of::<EventKey>()
            + piece
                .block
                .as_bytes()
                .len()
                .next_multiple_of(ALIGNMENT as usize);
        let bytes_max = COMMIT_BYTES.min(self.sequencer.commit_bytes_max());
        let is_other_epoch = self
            .pieces
            .last()
            .is_some_and(|last| last.block.epoch() != epoch);
        // A replica learns an epoch from the first block of a commit.
        if is_other_epoch || self.bytes + bytes > bytes_max {
            self.flush()?;
        }
        self.bytes += bytes;
        self.pieces.push(piece);
        Ok(())
    }

    /// Appends what was taken.
    pub(super) fn flush(&mut self) -> Result<(), CopyError> {
        self.bytes = 0;
        let (mut blocks, mut keys) = (Vec::new(), Vec::new());
        for piece in self.pieces.drain(..) {
            blocks.push(piece.block);
            keys.extend(piece.keys);
        }
        let Some(epoch) = blocks.last().map(|block| block.epoch()) else {
            return Ok(());
        };
        let link = Link {
            epoch_before: self.epoch_before,
            digest_before: self.digest,
            writer: self.writer,
        };
        let frames = CommitFrames::new(self.log, (self.position.next().0, link), blocks, keys);
        let bytes = frames.to_bytes();
        let bytes_max = self.sequencer.commit_bytes_max();
        if bytes.len() > bytes_max {
            let (name, bytes) = (self.sequencer.name(), bytes.len());
            return Err(CopyError::Refused(format!(
                "a commit of the log has {bytes} bytes, and {name} takes {bytes_max} at most: raise that, and run the same \
                 command again"
            )));
        }
        self.append(&bytes)?;
        (self.digest, self.epoch_before) = (frames.digest(), epoch);
        Ok(())
    }

    /// Appends a commit. Whatever the engine answers, what is at the position decides.
    fn append(&mut self, commit: &Bytes) -> Result<(), CopyError> {
        let position = self.position.next();
        let mut patience = Patience::new(self.engine.patience);
        loop {
            let appended = self
                .engine
                .runtime
                .block_on(self.sequencer.append(position, commit.clone()));
            let outage = match appended {
                Ok(Outcome::Won) => break,
                Err(outage @ (Outage::Unusable(_) | Outage::Full(_))) => return Err(outage.into()),
                Err(outage) => outage,
                Ok(Outcome::Refused) => {
                    let name = self.sequencer.name();
                    Outage::Unavailable(
                        format!("{name} takes no commits: it may have no quorum").into(),
                    )
                }
            };
            match self.engine.ask(|| self.sequencer.get(position))? {
                Some(found) if found == *commit => break,
                Some(_) => {
                    return Err(CopyError::Changed(format!(
                        "{} was written to meanwhile: stop the bridges that use it; a bridge that has begun a log of its own \
                         there makes it useless for this copy",
                        self.sequencer.name()
                    )));
                }
                None => patience.wait(outage)?,
            }
        }
        self.position = position;
        Ok(())
    }
}
