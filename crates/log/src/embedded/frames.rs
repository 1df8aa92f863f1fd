//! Owns the reading of a segment's frames, a chunk at a time: one after another, or the next one that can
//! be found. What the disk cannot read counts as zeros, unless it is most of a chunk. Knows their bytes from `frame`.

use std::{fs::File, io, num::NonZeroU64};

use rustix::fs::{Advice, fadvise};

use super::{
    frame::{ALIGNMENT, Body, FRAME_MAGIC, HEADER_BYTES, Header},
    readable::read_what_is_readable,
};
use prelude_bridge_event::LogId;

const ZEROS: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];

/// Chunks overlap by so much, in which a header that begins in one of them ends.
const MARGIN_BYTES: usize = 128;
const _: () =
    assert!(MARGIN_BYTES >= HEADER_BYTES && MARGIN_BYTES.is_multiple_of(ALIGNMENT as usize));

/// What there is behind the last commit of a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rest {
    /// From the first byte that is not zero (rounded down to where a frame could begin) to behind the
    /// last one.
    pub(super) written: Option<(u64, u64)>,
    /// The header that was looked for, and where it is. What is behind it was not looked at.
    pub(super) found: Option<(u64, Header)>,
}

/// Passes over the frames of a segment, reading them a chunk at a time.
pub(super) struct Frames {
    file: File,
    log: LogId,
    offset: u64,
    chunk_bytes: usize,
    buffer: Vec<u8>,
    buffer_at: u64,
    buffered: usize,
    /// What cannot be read counts as zeros also where it is most of a chunk.
    forgives: bool,
}

impl Frames {
    pub(super) fn new(file: File, log: LogId, offset: u64, chunk_bytes: usize) -> Self {
        Self {
            file,
            log,
            offset,
            chunk_bytes,
            buffer: Vec::new(),
            buffer_at: 0,
            buffered: 0,
            forgives: false,
        }
    }

    /// Has what cannot be read count as zeros, however much it is: then it is damaged, and what follows is
    /// found.
    pub(super) fn forgive(&mut self) {
        self.forgives = true;
    }

    /// Where it is: at the beginning of a frame.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes to a place where a frame begins.
    pub(super) fn go_to(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// The header of the frame here; `None` if there is none.
    pub(super) fn header(&mut self) -> io::Result<Option<Header>> {
        let log = self.log;
        let bytes = self.window(self.offset, HEADER_BYTES)?;
        Ok(bytes.and_then(|bytes| Header::parse(bytes, log)))
    }

    /// The rest of the frame here; `None` if the file ends before it does.
    pub(super) fn body(&mut self, header: &Header) -> io::Result<Option<Body<'_>>> {
        let keys_bytes = header.keys_bytes();
        let from = self.offset + HEADER_BYTES as u64;
        let bytes = self.window(from, keys_bytes + header.block_bytes())?;
        Ok(bytes.map(|bytes| {
            let (keys, block) = bytes.split_at(keys_bytes);
            Body { keys, block }
        }))
    }

    /// Whether there are only zeros between the end of the block and the next frame.
    pub(super) fn is_padded(&mut self, header: &Header) -> io::Result<bool> {
        let content = HEADER_BYTES + header.keys_bytes() + header.block_bytes();
        let padding = content.next_multiple_of(ALIGNMENT as usize) - content;
        let bytes = self.window(self.offset + content as u64, padding)?;
        Ok(bytes.is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0)))
    }

    /// What the buffer occupies.
    #[cfg(test)]
    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Goes on to the next frame.
    pub(super) fn skip(&mut self, header: &Header) {
        self.offset += header.frame_bytes();
    }

    /// Looks through everything from a place on, to the end of the file, for the first header at or
    /// behind `find_from` that is `wanted`. Where there is none, says which bytes were written.
    pub(super) fn rest(
        &mut self,
        from: u64,
        find_from: u64,
        wanted: impl Fn(u64, &Header) -> bool,
    ) -> io::Result<Rest> {
        let file_bytes = self.file_bytes()?;
        let mut rest = Rest::default();
        let is_wanted = |place, header: &Header| place >= find_from && wanted(place, header);
        rest.found = self.search(from, file_bytes, is_wanted, |from, to| {
            let (first, _) = rest.written.unwrap_or((from, to));
            rest.written = Some((first, to));
        })?;
        Ok(rest)
    }

    /// The first header between two places that is `wanted`, and where it is.
    pub(super) fn find(
        &mut self,
        from: u64,
        to: u64,
        wanted: impl Fn(u64, &Header) -> bool,
    ) -> io::Result<Option<(u64, Header)>> {
        let to = to.min(self.file_bytes()?);
        self.search(from, to, wanted, |_, _| ())
    }

    /// Has the system read what comes next from the disk, not from its memory.
    pub(super) fn forget_cached(&self, bytes: u64) {
        // It is advice, and where it is not taken nothing is wrong.
        let _ = fadvise(
            &self.file,
            self.offset,
            NonZeroU64::new(bytes),
            Advice::DontNeed,
        );
    }

    /// The size of the file.
    pub(super) fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Looks for a header between two places; tells which bytes before it are not zero.
    fn search(
        &mut self,
        from: u64,
        to: u64,
        wanted: impl Fn(u64, &Header) -> bool,
        mut written: impl FnMut(u64, u64),
    ) -> io::Result<Option<(u64, Header)>> {
        let log = self.log;
        let step = self.chunk_bytes.max(MARGIN_BYTES * 2) & !(MARGIN_BYTES - 1);
        let mut at = from;
        while at < to {
            let left = usize::try_from(to - at).unwrap_or(usize::MAX);
            let Some(chunk) = self.window(at, step.min(left))? else {
                break;
            };
            // A header may begin in one chunk and end in the next: those of the margin are left to it.
            let own = if left <= step {
                chunk.len()
            } else {
                step - MARGIN_BYTES
            };
            let words = chunk.get(..own).unwrap_or(chunk);
            for (index, word) in words.chunks(ALIGNMENT as usize).enumerate() {
                if word == ZEROS.get(..word.len()).unwrap_or_default() {
                    continue;
                }
                let offset = index * ALIGNMENT as usize;
                let place = at + offset as u64;
                if word.starts_with(&FRAME_MAGIC) {
                    let bytes = chunk.get(offset..).unwrap_or_default();
                    let header = Header::parse(bytes, log).filter(|header| wanted(place, header));
                    if let Some(header) = header {
                        return Ok(Some((place, header)));
                    }
                }
                written(place, place + word.len() as u64);
            }
            at += own as u64;
        }
        Ok(None)
    }

    /// These bytes of the file, if it has them all.
    fn window(&mut self, from: u64, bytes: usize) -> io::Result<Option<&[u8]>> {
        let start = from
            .checked_sub(self.buffer_at)
            .and_then(|start| usize::try_from(start).ok());
        let held = start.filter(|start| start.saturating_add(bytes) <= self.buffered);
        let start = match held {
            Some(start) => start,
            None => {
                // The length in a header is no reason to allocate it: the file has it or not.
                let end = from.saturating_add(bytes as u64);
                if bytes > self.chunk_bytes && end > self.file.metadata()?.len() {
                    return Ok(None);
                }
                let wanted = bytes.max(self.chunk_bytes);
                if self.buffer.len() < wanted {
                    self.buffer = vec![0; wanted];
                }
                let Self { file, buffer, .. } = self;
                self.buffered = read_what_is_readable(file, buffer, from, self.forgives)?;
                self.buffer_at = from;
                0
            }
        };
        let held = self.buffer.get(..self.buffered).unwrap_or_default();
        Ok(held.get(start..start.saturating_add(bytes)))
    }
}

#[cfg(fuzzing)]
pub mod fuzzing;
