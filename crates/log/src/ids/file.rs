//! Owns the format of a file of keys: how one is written, opened, asked and read again.
//!
//! | part | content |
//! |---|---|
//! | blocks | 4 KiB each: up to 255 keys in order, then their count, the block's number, a checksum |
//! | tail | the upper half of each block's first key, then the filter of each section |
//! | footer | what the file is: see [`Footer`]; a checksum of the tail, and one of the footer |
//!
//! The keys are in order. A section has all keys with the same first bits, and no block has keys of
//! two sections. All numbers are little-endian, but keys are big-endian, so that they sort as bytes.
//! The footer, not a header, says what a file is: how many keys there are is known at the end only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    ops::RangeInclusive,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    CONTENT_BITS, Error, Key, event_of,
    filter::{Filter, take},
};
use crate::clock::RetentionTime;
use prelude_bridge_event::{LogId, Sequence};

/// A block.
pub(super) const BLOCK_BYTES: usize = 4096;
const KEY_BYTES: usize = size_of::<Key>();
/// Keys in a block: they leave room for the count, the number and the checksum.
const BLOCK_KEYS: usize = BLOCK_BYTES / KEY_BYTES - 1;
const BLOCK_CHECKSUM_AT: usize = BLOCK_BYTES - 4;

const MAGIC: [u8; 4] = *b"PIDS";
/// In those of version 1 the type and the content of an event had no part in its key.
const VERSION: u32 = 2;
pub(super) const FOOTER_BYTES: usize = 80;

/// A file is written in pieces of this size, each flushed: a commit that flushes at the same moment
/// waits for no more than this.
const PIECE_BYTES: usize = 256 * 1024;

/// The keys that begin with the bits of a section, of which there are two to the power of `bits`.
pub(super) fn section_range(section: u64, bits: u32) -> RangeInclusive<Key> {
    let first = Key::from(section)
        .checked_shl(Key::BITS - bits)
        .unwrap_or(0);
    first..=first | Key::MAX.checked_shr(bits).unwrap_or(0)
}

fn section_of(key: Key, bits: u32) -> usize {
    key.checked_shr(Key::BITS - bits).unwrap_or(0) as usize
}

fn upper_half(key: Key) -> u64 {
    (key >> 64) as u64
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) log: LogId,
    /// The file has the keys of the events from this one …
    pub(super) from: Sequence,
    /// … to this one.
    pub(super) through: Sequence,
    /// When the first and the last of them were appended.
    pub(super) oldest_at: RetentionTime,
    pub(super) newest_at: RetentionTime,
    pub(super) keys: u64,
    pub(super) blocks: u64,
    /// There are two to the power of this many sections.
    pub(super) section_bits: u32,
}

impl Footer {
    fn write(&self, tail_checksum: u32, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.log.0.to_le_bytes());
        bytes.extend(self.from.0.to_le_bytes());
        bytes.extend(self.through.0.to_le_bytes());
        bytes.extend(self.oldest_at.0.to_le_bytes());
        bytes.extend(self.newest_at.0.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.extend(self.blocks.to_le_bytes());
        bytes.extend(self.section_bits.to_le_bytes());
        bytes.extend(tail_checksum.to_le_bytes());
        let checksum = crc32c::crc32c(bytes.get(start..).unwrap_or_default());
        bytes.extend(u64::from(checksum).to_le_bytes());
    }

    /// Reads a footer and the checksum of the tail, or says what is wrong with it.
    fn read(bytes: &[u8; FOOTER_BYTES]) -> Result<(Self, u32), &'static str> {
        let (content, checksum) = bytes.split_at(FOOTER_BYTES - 8);
        let expected = u64::from(crc32c::crc32c(content)).to_le_bytes();
        if checksum != expected {
            return Err("its end is damaged");
        }
        let rest = &mut { content };
        if take(rest) != Some(MAGIC) {
            return Err("it is no file of ids");
        }
        if take(rest).map(u32::from_le_bytes) != Some(VERSION) {
            return Err("it was written by another version");
        }
        let long = |rest: &mut &[u8]| take(rest).map_or(0, u64::from_le_bytes);
        let short = |rest: &mut &[u8]| take(rest).map_or(0, u32::from_le_bytes);
        let footer = Self {
            log: LogId(long(rest)),
            from: Sequence(long(rest)),
            through: Sequence(long(rest)),
            oldest_at: RetentionTime(long(rest).cast_signed()),
            newest_at: RetentionTime(long(rest).cast_signed()),
            keys: long(rest),
            blocks: long(rest),
            section_bits: short(rest),
        };
        Ok((footer, short(rest)))
    }
}

/// A file of keys that is whole.
pub(super) struct IdFile {
    pub(super) path: PathBuf,
    pub(super) footer: Footer,
    pub(super) bytes: u64,
    file: File,
    tail: Tail,
}

/// What tells where a key would be.
struct Tail {
    /// The upper half of each block's first key.
    index: Box<[u64]>,
    /// Of each section.
    filters: Box<[Filter]>,
}

impl IdFile {
    /// Opens a file, and reads its index and its filters.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let error = |source| Error::io(path, source);
        let damaged = |reason: &str| Error::damaged(path, reason);
        let file = File::open(path).map_err(error)?;
        let bytes = file.metadata().map_err(error)?.len();
        let cut = "it is cut short";
        let footer_at = bytes
            .checked_sub(FOOTER_BYTES as u64)
            .ok_or_else(|| damaged(cut))?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, footer_at).map_err(error)?;
        let (footer, checksum) = Footer::read(&footer).map_err(damaged)?;
        let tail_at = footer.blocks.checked_mul(BLOCK_BYTES as u64);
        let tail_at = tail_at.filter(|&at| at <= footer_at);
        let tail_at = tail_at.ok_or_else(|| damaged(cut))?;
        let tail_bytes = usize::try_from(footer_at - tail_at).map_err(|_| damaged(cut))?;
        let mut tail = vec![0; tail_bytes];
        file.read_exact_at(&mut tail, tail_at).map_err(error)?;
        if crc32c::crc32c(&tail) != checksum {
            return Err(damaged("its index is damaged"));
        }
        let tail = Tail::read(&tail, &footer).ok_or_else(|| damaged("its index makes no sense"))?;
        Ok(Self {
            path: path.to_owned(),
            footer,
            bytes,
            file,
            tail,
        })
    }

    /// Whether a look at the disk is needed for a key.
    pub(super) fn may_hold(&self, key: Key) -> bool {
        let filter = self
            .tail
            .filters
            .get(section_of(key, self.footer.section_bits));
        filter.is_none_or(|filter| filter.may_hold(key))
    }

    /// Looks on disk for the key of the same event.
    pub(super) fn find(
        &self,
        key: Key,
        block: &mut [u8; BLOCK_BYTES],
    ) -> Result<Option<Key>, Error> {
        let event = event_of(key);
        let first = (event << CONTENT_BITS).to_be_bytes();
        let upper = upper_half(key);
        let candidates = self.tail.index.partition_point(|&first| first <= upper);
        // Usually there is one. But blocks can begin with keys that have the same upper half.
        for number in (0..candidates).rev() {
            let keys = self.block(number, block)?;
            let (keys, _) = keys.as_chunks::<KEY_BYTES>();
            let place = keys.partition_point(|key| *key < first);
            let found = keys.get(place).map(|&key| Key::from_be_bytes(key));
            if found.is_some_and(|found| event_of(found) == event) {
                return Ok(found);
            }
            if self.tail.index.get(number) != Some(&upper) {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Reads the keys of a block, as bytes.
    fn block<'a>(
        &self,
        number: usize,
        block: &'a mut [u8; BLOCK_BYTES],
    ) -> Result<&'a [u8], Error> {
        let at = number as u64 * BLOCK_BYTES as u64;
        self.file.read_exact_at(block, at).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return Error::damaged(&self.path, "it is cut short");
            }
            Error::io(&self.path, error)
        })?;
        let first = self.tail.index.get(number).copied();
        let keys = check_block(block, number, first);
        keys.ok_or_else(|| Error::damaged(&self.path, &format!("block {number} is damaged")))
    }

    /// Reads all blocks, and checks that there are as many keys as the footer says.
    pub(super) fn check_blocks(&self, block: &mut [u8; BLOCK_BYTES]) -> Result<(), Error> {
        let mut keys = 0;
        for number in 0..self.tail.index.len() {
            keys += self.block(number, block)?.len() / KEY_BYTES;
        }
        if keys as u64 == self.footer.keys {
            return Ok(());
        }
        Err(Error::damaged(
            &self.path,
            "it has not as many keys as it says",
        ))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let Tail { index, filters } = &self.tail;
        let fingerprints = filters.iter().map(Filter::memory_bytes);
        size_of_val(&**index) + size_of_val(&**filters) + fingerprints.sum::<usize>()
    }
}

impl Tail {
    /// `None` when the bytes are not what the footer says.
    fn read(bytes: &[u8], footer: &Footer) -> Option<Self> {
        let index_bytes = usize::try_from(footer.blocks).ok()?.checked_mul(8)?;
        let (index, mut rest) = bytes.split_at_checked(index_bytes)?;
        let (index, _) = index.as_chunks();
        let index = index.iter().map(|&first| u64::from_le_bytes(first));
        let filters = 1_u64.checked_shl(footer.section_bits)?;
        let filters = (0..filters).map(|_| Filter::read(&mut rest));
        let filters = filters.collect::<Option<_>>()?;
        let index = index.collect();
        rest.is_empty().then_some(Self { index, filters })
    }
}

/// Appends a block with these keys.
fn write_block(keys: &[Key], number: u64, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.extend(keys.iter().flat_map(|key| key.to_be_bytes()));
    bytes.resize(start + BLOCK_KEYS * KEY_BYTES, 0);
    bytes.extend(number.to_le_bytes());
    bytes.extend((keys.len() as u32).to_le_bytes());
    let checksum = crc32c::crc32c(bytes.get(start..).unwrap_or_default());
    bytes.extend(checksum.to_le_bytes());
}

/// The keys of a block; `None` when it is not the one with this number that begins so.
fn check_block(block: &[u8; BLOCK_BYTES], number: usize, first: Option<u64>) -> Option<&[u8]> {
    let (content, checksum) = block.split_at_checked(BLOCK_CHECKSUM_AT)?;
    if checksum != crc32c::crc32c(content).to_le_bytes() {
        return None;
    }
    let (keys, mut numbers) = content.split_at_checked(BLOCK_KEYS * KEY_BYTES)?;
    let is_it = u64::from_le_bytes(take(&mut numbers)?) == number as u64;
    let count = u32::from_le_bytes(take(&mut numbers)?) as usize;
    let begins = keys.first_chunk().map(|&first| u64::from_be_bytes(first));
    let keys = keys.get(..count.checked_mul(KEY_BYTES)?)?;
    (is_it && begins == first).then_some(keys)
}

/// Reads a file from its beginning to its end.
pub(super) struct Cursor {
    block: usize,
    /// Keys that were read and not taken, in reverse order.
    keys: Vec<Key>,
}

impl Cursor {
    pub(super) fn new() -> Self {
        Self {
            block: 0,
            keys: Vec::new(),
        }
    }

    /// Takes the next keys, up to `last`.
    pub(super) fn take(
        &mut self,
        file: &IdFile,
        last: Key,
        taken: &mut Vec<Key>,
    ) -> Result<(), Error> {
        let mut block = [0; BLOCK_BYTES];
        loop {
            while let Some(key) = self.keys.pop_if(|key| *key <= last) {
                taken.push(key);
            }
            if !self.keys.is_empty() || self.block == file.tail.index.len() {
                return Ok(());
            }
            let (keys, _) = file.block(self.block, &mut block)?.as_chunks();
            let keys = keys.iter().rev();
            self.keys.extend(keys.map(|&key| Key::from_be_bytes(key)));
            self.block += 1;
        }
    }
}

/// A file that is being written, under a temporary name. It is removed unless it is finished.
pub(super) struct Output {
    file: File,
    path: PathBuf,
    /// Bytes that are not in the file yet, and how many of them are.
    unwritten: Vec<u8>,
    written: usize,
    footer: Footer,
    index: Vec<u64>,
    filters: Vec<Filter>,
    hashes: Vec<u64>,
    is_finished: bool,
}

impl Output {
    /// Creates the file. The numbers of keys and blocks in `footer` are counted here.
    pub(super) fn create(path: PathBuf, footer: Footer) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options
            .open(&path)
            .map_err(|error| Error::io(&path, error))?;
        Ok(Self {
            file,
            path,
            unwritten: Vec::new(),
            written: 0,
            footer,
            index: Vec::new(),
            filters: Vec::new(),
            hashes: Vec::new(),
            is_finished: false,
        })
    }

    /// The section whose keys are to be added next, and the bits of sections; `None` after the
    /// last one.
    pub(super) fn next_section(&self) -> Option<(u64, u32)> {
        let (next, bits) = (self.filters.len() as u64, self.footer.section_bits);
        (next < 1 << bits).then_some((next, bits))
    }

    /// Adds the keys of the next section, in order. With the last one the file's end follows.
    pub(super) fn add_section(&mut self, keys: &[Key]) {
        for keys in keys.chunks(BLOCK_KEYS) {
            let first = keys.first().copied().unwrap_or_default();
            self.index.push(upper_half(first));
            write_block(keys, self.footer.blocks, &mut self.unwritten);
            self.footer.blocks += 1;
        }
        self.footer.keys += keys.len() as u64;
        self.filters.push(Filter::new(keys, &mut self.hashes));
        if self.next_section().is_none() {
            self.add_end();
        }
    }

    fn add_end(&mut self) {
        self.hashes = Vec::new();
        let tail_at = self.unwritten.len();
        let index = self.index.iter();
        self.unwritten
            .extend(index.flat_map(|first| first.to_le_bytes()));
        for filter in &self.filters {
            filter.write(&mut self.unwritten);
        }
        let tail = self.unwritten.get(tail_at..).unwrap_or_default();
        let checksum = crc32c::crc32c(tail);
        self.footer.write(checksum, &mut self.unwritten);
    }

    /// Writes and flushes the next piece of what was added. False when there is none.
    pub(super) fn write_piece(&mut self) -> Result<bool, Error> {
        let piece = self.unwritten.get(self.written..).unwrap_or_default();
        let piece = piece.get(..PIECE_BYTES).unwrap_or(piece);
        if piece.is_empty() {
            self.unwritten.clear();
            self.written = 0;
            return Ok(false);
        }
        let written = self.file.write_all(piece);
        let written = written.and_then(|()| self.file.sync_data());
        written.map_err(|error| Error::io(&self.path, error))?;
        self.written += piece.len();
        Ok(true)
    }

    /// Gives the file its name. All of it was written. Durable when this returns.
    pub(super) fn finish(mut self, path: &Path) -> Result<IdFile, Error> {
        let error = |source| Error::io(path, source);
        self.file.sync_all().map_err(error)?;
        // Opened before the name counts: afterwards nothing may fail that leaves it unknown.
        let file = File::open(&self.path).map_err(error)?;
        let bytes = file.metadata().map_err(error)?.len();
        fs::rename(&self.path, path).map_err(error)?;
        self.is_finished = true;
        sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        Ok(IdFile {
            path: path.to_owned(),
            footer: self.footer,
            bytes,
            file,
            tail: Tail {
                index: std::mem::take(&mut self.index).into(),
                filters: std::mem::take(&mut self.filters).into(),
            },
        })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.is_finished {
            // Where that fails, the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn sync_directory(path: &Path) -> Result<(), Error> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::io(path, error))
}
