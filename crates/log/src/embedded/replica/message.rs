//! Owns the bytes of a commit in a sequence: its frames, as a segment has them; or a mark, which is a
//! header without events. A mark is the first commit of every log, and keeps a sequence from becoming
//! empty when no event comes for a long time.

use bytes::Bytes;

use crate::{
    embedded::{
        commit::CommitFrames,
        frame::{FRAME_MAGIC, HEADER_BYTES, Header},
    },
    sequencer::Position,
};

/// What is at a position.
pub(in crate::embedded) enum Message {
    Commit(CommitFrames),
    Mark(Header),
}

/// Why it cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::embedded) enum Malformed {
    #[error("it was written by a later release: upgrade this bridge")]
    Newer,
    #[error("it is no commit of this log: {0}")]
    Damaged(&'static str),
}

impl Message {
    /// Reads what is at a position.
    pub(in crate::embedded) fn parse(position: Position, bytes: &Bytes) -> Result<Self, Malformed> {
        let (magic, version) = FRAME_MAGIC.split_at(FRAME_MAGIC.len() - 1);
        let found = bytes.get(magic.len()..FRAME_MAGIC.len());
        if bytes.starts_with(magic) && found > Some(version) {
            return Err(Malformed::Newer);
        }
        let header = Header::parse_any(bytes).ok_or(Malformed::Damaged("its header"))?;
        if header.commit != position.0 {
            return Err(Malformed::Damaged("it belongs to another position"));
        }
        if header.events > 0 {
            let frames = CommitFrames::parse(bytes).map_err(Malformed::Damaged)?;
            return Ok(Self::Commit(frames));
        }
        if bytes.len() != HEADER_BYTES {
            return Err(Malformed::Damaged("its length"));
        }
        Ok(Self::Mark(header))
    }

    /// The bytes of a mark.
    pub(in crate::embedded) fn mark(header: &Header) -> Bytes {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        header.put(&mut bytes);
        bytes.into()
    }

    /// The header of a mark, or of the first frame.
    pub(in crate::embedded) fn header(&self) -> Option<&Header> {
        match self {
            Self::Commit(frames) => frames.first(),
            Self::Mark(header) => Some(header),
        }
    }

    /// The digest of the last commit with events, once this is applied.
    pub(in crate::embedded) fn digest(&self) -> u64 {
        match self {
            Self::Commit(frames) => frames.digest(),
            Self::Mark(header) => header.link.digest_before,
        }
    }

    /// The header of a mark, or of the last frame.
    pub(in crate::embedded) fn last(&self) -> Option<&Header> {
        match self {
            Self::Commit(frames) => frames.last(),
            Self::Mark(header) => Some(header),
        }
    }
}
