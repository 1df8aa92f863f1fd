//! Owns the block: one group commit as immutable bytes. The log stores it as it is, the bus holds
//! it, and the streams send slices of it; nobody decodes or encodes an event again.
//!
//! Layout, all numbers little-endian:
//! ```text
//! magic "PBK" · version of the encoding of events u8 · crc32c of all that follows · epoch u32 · count u32 · first sequence u64 ·
//! received_at i64 (µs) · types u16 · apps u16 · typed bytes u32 · raw bytes u32
//! types, apps    each: u16 length, text
//! entries        each: u32 end in typed · u32 end in raw · u32 end of the common fields in typed ·
//!                      u32 user hash · u16 type · u16 app
//! typed          each event as `SubscribeResponse.events`: prefix, common fields, payload
//! raw            each event's `Event.raw_json`
//! ```
//! The stored events are in the encoding of the contract, which `wire` owns and whose version is
//! [`wire::ENCODING_VERSION`]. The rest of the layout does not depend on the contract.
//!
//! The other payload formats are put together from these parts once, when somebody first asks.

mod builder;
mod keys;

use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::{Buf, Bytes};

pub use self::builder::{BLOCK_BYTES_TARGET, BLOCK_EVENTS_MAX, Builder};
use crate::{
    event::{Cursor, Epoch, LogId, Sequence, UnixMicros},
    wire,
};

const MAGIC: [u8; 4] = [b'P', b'B', b'K', wire::ENCODING_VERSION];
/// What blocks of all encodings begin with.
const MAGIC_OF_ALL: &[u8] = b"PBK";
const HEADER_BYTES: usize = 44;
/// The checksum covers what follows it.
const CHECKED_FROM: usize = 8;
const ENTRY_BYTES: usize = 20;

/// Which form of an event's content a subscriber gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// The payload message.
    #[default]
    Typed,
    /// The JSON as it was signed.
    Raw,
    /// The payload message and the JSON.
    Both,
}

/// One group commit: at least one event, in the log's order.
pub struct Block {
    log: LogId,
    epoch: Epoch,
    first_sequence: Sequence,
    received_at: UnixMicros,
    types: Box<[Arc<str>]>,
    apps: Box<[Arc<str>]>,
    entries: Box<[Entry]>,
    bytes: Bytes,
    typed: View,
    raw_fields: Bytes,
    raw: OnceLock<View>,
    both: OnceLock<View>,
}

/// What a filter needs to know of one event, and where its bytes are.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    typed_end: u32,
    raw_end: u32,
    common_end: u32,
    /// [`crate::event::user_hash`] of the event's user.
    pub user_hash: u32,
    /// The event's type, an index into [`Block::types`].
    pub event_type: u16,
    /// The event's app, an index into [`Block::apps`].
    pub app: u16,
}

/// All events of a block in one payload format, each a `SubscribeResponse.events` field, so that
/// any run of them is part of a response as it is.
pub struct View {
    bytes: Bytes,
    /// The memory that a slice of these keeps alive.
    held_bytes: usize,
    ends: Box<[u32]>,
}

impl View {
    /// The bytes of the events from `range.start` up to but not including `range.end`, shared, not
    /// copied.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        let bytes = self.start(range.start)..self.start(range.end);
        if bytes.start < bytes.end {
            self.bytes.slice(bytes)
        } else {
            Bytes::new()
        }
    }

    /// The same bytes, for a caller that copies them: without another reference to the block, whose
    /// count all its readers share.
    #[must_use]
    pub fn as_slice(&self, range: Range<usize>) -> &[u8] {
        let bytes = self.start(range.start)..self.start(range.end);
        self.bytes.get(bytes).unwrap_or_default()
    }

    /// The events of these runs side by side, in memory of their own.
    #[must_use]
    pub fn copy(&self, runs: impl Iterator<Item = Range<usize>> + Clone) -> Self {
        let bytes = runs.clone().map(|run| self.slice_bytes(run)).sum();
        let mut copied = Vec::with_capacity(bytes);
        let mut ends = Vec::new();
        for run in runs {
            // Adding first: an end is never before its start in the block.
            let at = copied.len();
            let start = self.start(run.start);
            let run_ends = self.ends.get(run.clone()).unwrap_or_default();
            ends.extend(
                run_ends
                    .iter()
                    .map(|&end| (at + end as usize - start) as u32),
            );
            copied.extend_from_slice(&self.slice(run));
        }
        Self {
            held_bytes: copied.capacity(),
            bytes: copied.into(),
            ends: ends.into(),
        }
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no event.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes all of them have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The memory that a slice of so many bytes keeps alive, if the rest of the events is kept alive by
    /// slices as well: the block has more than these bytes.
    #[must_use]
    pub fn held_bytes(&self, slice_bytes: usize) -> usize {
        match self.bytes.len() {
            0 => 0,
            bytes => slice_bytes.saturating_mul(self.held_bytes) / bytes,
        }
    }

    /// How many bytes that slice has.
    #[must_use]
    pub fn slice_bytes(&self, range: Range<usize>) -> usize {
        self.start(range.end)
            .saturating_sub(self.start(range.start))
    }

    /// The furthest end such that the events from `start` up to it fit into `bytes_max`.
    #[must_use]
    pub fn fitting_end(&self, start: usize, bytes_max: usize) -> usize {
        let limit = self.start(start).saturating_add(bytes_max);
        self.ends
            .partition_point(|&end| end as usize <= limit)
            .max(start)
    }

    /// Where an event begins; for an index past the last, where that ends.
    fn start(&self, index: usize) -> usize {
        let before = index.min(self.ends.len()).checked_sub(1);
        before
            .and_then(|before| self.ends.get(before))
            .map_or(0, |&end| end as usize)
    }
}

impl Block {
    /// The log that the events are in.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The epoch that the events were written in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The cursor of the place after the event at `index`.
    #[must_use]
    pub fn cursor(&self, index: usize) -> Cursor {
        Cursor {
            log: self.log,
            epoch: self.epoch,
            sequence: self.first_sequence.plus(index as u64),
            not_before: None,
        }
    }

    /// The sequence number of the first event.
    #[must_use]
    pub fn first_sequence(&self) -> Sequence {
        self.first_sequence
    }

    /// The sequence number of the last event.
    #[must_use]
    pub fn last_sequence(&self) -> Sequence {
        self.first_sequence.plus(self.entries.len() as u64).before()
    }

    /// When the events became durable.
    #[must_use]
    pub fn received_at(&self) -> UnixMicros {
        self.received_at
    }

    /// The event types that occur.
    #[must_use]
    pub fn types(&self) -> &[Arc<str>] {
        &self.types
    }

    /// The apps that occur.
    #[must_use]
    pub fn apps(&self) -> &[Arc<str>] {
        &self.apps
    }

    /// The events.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The user id of the event at `index`; empty where it names no user.
    #[must_use]
    pub fn user_id(&self, index: usize) -> &[u8] {
        wire::user_id(self.common_fields(index))
    }

    /// The encoded fields of the event at `index` that all payload formats have.
    fn common_fields(&self, index: usize) -> &[u8] {
        let Some(entry) = self.entries.get(index) else {
            return &[];
        };
        let common = self.typed.start(index)..entry.common_end as usize;
        event_fields(self.typed.bytes.get(common).unwrap_or_default())
    }

    /// All events in a payload format.
    #[must_use]
    pub fn view(&self, format: Format) -> &View {
        match format {
            Format::Typed => &self.typed,
            Format::Raw => self.raw.get_or_init(|| self.assemble(false)),
            Format::Both => self.both.get_or_init(|| self.assemble(true)),
        }
    }

    /// The block as the log stores it.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What the block costs a window, in bytes: everything that it holds or may come to hold when
    /// all payload formats are asked for.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let views = 2 * self.typed.bytes.len() + 2 * self.raw_fields.len();
        self.bytes.len() + views + self.entries.len() * size_of::<Entry>() + size_of::<Self>()
    }

    /// Reads a block that the log has stored.
    ///
    /// # Errors
    /// [`Damaged`], when the bytes are not those that were written. Never panics, whatever the
    /// bytes.
    pub fn parse(bytes: Bytes) -> Result<Self, Damaged> {
        let mut rest = bytes.as_ref();
        if rest.len() < HEADER_BYTES {
            return Err(Damaged("it is cut short"));
        }
        let mut magic = [0; 4];
        rest.copy_to_slice(&mut magic);
        if !magic.starts_with(MAGIC_OF_ALL) {
            return Err(Damaged("it does not begin like a block"));
        }
        let checksum = rest.get_u32_le();
        if crc32c::crc32c(rest) != checksum {
            return Err(Damaged("its checksum does not match"));
        }
        if magic != MAGIC {
            return Err(Damaged(
                "this release does not know the encoding of its events",
            ));
        }
        let epoch = Epoch(rest.get_u32_le());
        let count = rest.get_u32_le() as usize;
        let first_sequence = Sequence(rest.get_u64_le());
        let received_at = UnixMicros(rest.get_i64_le());
        let type_count = usize::from(rest.get_u16_le());
        let app_count = usize::from(rest.get_u16_le());
        let typed_bytes = rest.get_u32_le() as usize;
        let raw_bytes = rest.get_u32_le() as usize;
        let types = get_texts(&mut rest, type_count)?;
        let apps = get_texts(&mut rest, app_count)?;
        let expected = count
            .checked_mul(ENTRY_BYTES)
            .and_then(|entries| entries.checked_add(typed_bytes)?.checked_add(raw_bytes));
        if expected != Some(rest.len()) || count == 0 {
            return Err(Damaged("its parts do not add up to its length"));
        }
        let entries: Box<[Entry]> = (0..count).map(|_| get_entry(&mut rest)).collect();
        check_entries(&entries, types.len(), apps.len(), typed_bytes, raw_bytes)?;
        let typed_start = bytes.len() - rest.len();
        let typed = View {
            bytes: bytes.slice(typed_start..typed_start + typed_bytes),
            held_bytes: bytes.len(),
            ends: entries.iter().map(|entry| entry.typed_end).collect(),
        };
        let cursor = wire::cursor(event_fields(&typed.bytes));
        let cursor = cursor.ok_or(Damaged("its first event has no cursor"))?;
        if (cursor.epoch, cursor.sequence) != (epoch, first_sequence) {
            return Err(Damaged("its first event is of another place"));
        }
        Ok(Self {
            log: cursor.log,
            epoch,
            first_sequence,
            received_at,
            types,
            apps,
            entries,
            typed,
            raw_fields: bytes.slice(typed_start + typed_bytes..),
            bytes,
            raw: OnceLock::new(),
            both: OnceLock::new(),
        })
    }

    /// The checksum that a stored block carries; 0 if it is cut short.
    #[must_use]
    pub fn carried_checksum(bytes: &[u8]) -> u32 {
        bytes
            .get(MAGIC.len()..)
            .map_or(0, |mut bytes| bytes.try_get_u32_le().unwrap_or(0))
    }

    /// Whether that is the checksum of what a stored block has.
    #[must_use]
    pub fn is_whole(bytes: &[u8]) -> bool {
        let checked = bytes.get(CHECKED_FROM..);
        let checksum = checked.map(crc32c::crc32c);
        checksum == Some(Self::carried_checksum(bytes)) && bytes.starts_with(&MAGIC)
    }

    /// Puts together the view with `raw_json`, with or without the payload.
    fn assemble(&self, with_payload: bool) -> View {
        let capacity = self.typed.bytes.len() + self.raw_fields.len() + self.entries.len();
        let mut bytes = Vec::with_capacity(capacity);
        let mut ends = Vec::with_capacity(self.entries.len());
        let (mut typed_start, mut raw_start) = (0, 0);
        for entry in &self.entries {
            let end = if with_payload {
                entry.typed_end
            } else {
                entry.common_end
            };
            let fields = self
                .typed
                .bytes
                .get(typed_start..end as usize)
                .unwrap_or_default();
            // The old length goes: it was that of the typed form.
            let fields = event_fields(fields);
            let raw = self
                .raw_fields
                .get(raw_start..entry.raw_end as usize)
                .unwrap_or_default();
            wire::put_event_prefix(&mut bytes, fields.len() + raw.len());
            bytes.extend_from_slice(fields);
            bytes.extend_from_slice(raw);
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            (typed_start, raw_start) = (entry.typed_end as usize, entry.raw_end as usize);
        }
        View {
            held_bytes: bytes.capacity(),
            bytes: bytes.into(),
            ends: ends.into(),
        }
    }
}

/// Shows the place only: the content is personal data.
impl fmt::Debug for Block {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Block")
            .field("first_sequence", &self.first_sequence)
            .field("last_sequence", &self.last_sequence())
            .field("epoch", &self.epoch)
            .field("received_at", &self.received_at)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// A stored block is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a block of the log is damaged: {0}")]
pub struct Damaged(&'static str);

/// The fields of the event that bytes begin with, and whatever follows it. Before an event stands a
/// tag of one byte, and the length.
fn event_fields(bytes: &[u8]) -> &[u8] {
    let mut fields = bytes.get(1..).unwrap_or_default();
    match prost::encoding::decode_varint(&mut fields) {
        Ok(_) => fields,
        Err(_) => &[],
    }
}

fn get_texts(rest: &mut &[u8], count: usize) -> Result<Box<[Arc<str>]>, Damaged> {
    let cut = Damaged("a name is cut short");
    let mut texts = Vec::with_capacity(count);
    for _ in 0..count {
        let length = usize::from(rest.try_get_u16_le().map_err(|_| cut)?);
        let (text, after) = rest.split_at_checked(length).ok_or(cut)?;
        let text = str::from_utf8(text).map_err(|_| Damaged("a name is not UTF-8"))?;
        texts.push(text.into());
        *rest = after;
    }
    Ok(texts.into())
}

/// The caller has checked that the entry is there.
fn get_entry(rest: &mut &[u8]) -> Entry {
    Entry {
        typed_end: rest.get_u32_le(),
        raw_end: rest.get_u32_le(),
        common_end: rest.get_u32_le(),
        user_hash: rest.get_u32_le(),
        event_type: rest.get_u16_le(),
        app: rest.get_u16_le(),
    }
}

/// Checks that the entries lie within their parts, so that nobody needs to check again.
fn check_entries(
    entries: &[Entry],
    types: usize,
    apps: usize,
    typed_bytes: usize,
    raw_bytes: usize,
) -> Result<(), Damaged> {
    let (mut typed_start, mut raw_start) = (0, 0);
    for entry in entries {
        let in_order = typed_start < entry.common_end
            && entry.common_end <= entry.typed_end
            && raw_start <= entry.raw_end;
        if !in_order || usize::from(entry.event_type) >= types || usize::from(entry.app) >= apps {
            return Err(Damaged("an event lies outside of it"));
        }
        (typed_start, raw_start) = (entry.typed_end, entry.raw_end);
    }
    if typed_start as usize != typed_bytes || raw_start as usize != raw_bytes {
        return Err(Damaged("its events do not fill it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{event::EventKey, testing};
    use prelude_bridge_contract as proto;

    fn events(view: &View, range: Range<usize>) -> Vec<proto::Event> {
        proto::SubscribeResponse::decode(view.slice(range))
            .unwrap()
            .events
    }

    #[test]
    fn every_format_has_the_same_events_with_its_own_content() {
        let block = testing::block(Sequence(41), 3);
        let typed = events(block.view(Format::Typed), 0..3);
        let raw = events(block.view(Format::Raw), 0..3);
        let both = events(block.view(Format::Both), 0..3);
        for (index, event) in both.iter().enumerate() {
            assert_eq!(event.sequence, 41 + index as u64);
            assert!(event.payload.is_some());
            assert!(!event.raw_json.is_empty());
            let without_json = proto::Event {
                raw_json: Bytes::new(),
                ..event.clone()
            };
            assert_eq!(typed[index], without_json);
            assert_eq!(
                raw[index],
                proto::Event {
                    payload: None,
                    ..event.clone()
                }
            );
            assert_eq!(block.user_id(index), event.user_id.as_bytes());
            let key = EventKey::new(&event.app_id, &event.id, &event.r#type, &event.raw_json);
            assert_eq!(block.keys().nth(index), Some(key));
        }
        assert_eq!(events(block.view(Format::Both), 1..2), both[1..2]);
        assert_eq!(block.last_sequence(), Sequence(43));
    }

    #[test]
    fn a_stored_block_reads_back_the_same() {
        let block = testing::block(Sequence(1), 5);
        let again = Block::parse(block.as_bytes().clone()).unwrap();
        assert_eq!(again.first_sequence(), block.first_sequence());
        assert_eq!((again.log(), again.epoch()), (block.log(), block.epoch()));
        assert_eq!(again.received_at(), block.received_at());
        assert_eq!(again.types(), block.types());
        assert_eq!(again.apps(), block.apps());
        for format in [Format::Typed, Format::Raw, Format::Both] {
            assert_eq!(
                again.view(format).slice(0..5),
                block.view(format).slice(0..5)
            );
        }
    }

    #[test]
    fn a_block_has_the_cursors_of_its_events() {
        let block = testing::block(Sequence(41), 3);
        for (index, event) in (0..).zip(events(block.view(Format::Typed), 0..3)) {
            assert_eq!(block.cursor(index).to_string(), event.cursor);
        }
    }

    /// The fixture was written by the release that introduced the encoding. When this fails, the
    /// contract has changed what stored bytes mean: give [`wire::ENCODING_VERSION`] another value, and
    /// translate blocks of this one.
    #[test]
    fn a_block_of_encoding_1_is_read_as_it_was_written() {
        let stored = include_bytes!("block/encoding-1.block");
        let block = Block::parse(Bytes::from_static(stored)).unwrap();
        let expected = testing::block(Sequence(41), 3);
        for format in [Format::Typed, Format::Raw, Format::Both] {
            let read = events(block.view(format), 0..3);
            assert_eq!(read, events(expected.view(format), 0..3));
        }
        assert_eq!(
            expected.as_bytes(),
            &stored[..],
            "this release writes the same"
        );
    }

    #[test]
    fn a_block_of_another_encoding_is_not_read() {
        let mut bytes = testing::block(Sequence(1), 2).as_bytes().to_vec();
        bytes[3] = b'2';
        assert!(!Block::is_whole(&bytes));
        let Err(Damaged(reason)) = Block::parse(bytes.into()) else {
            panic!("it was read");
        };
        assert!(reason.contains("encoding"), "{reason}");
    }

    #[test]
    fn a_block_whose_first_event_is_of_another_place_is_damaged() {
        let good = testing::block(Sequence(41), 2).as_bytes().to_vec();
        // The epoch, and the lowest byte of the first sequence number.
        for at in [8, 16] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            seal(&mut bad);
            assert!(Block::is_whole(&bad));
            assert!(Block::parse(bad.into()).is_err(), "byte {at}");
        }
    }

    fn seal(bytes: &mut [u8]) {
        let checksum = crc32c::crc32c(&bytes[CHECKED_FROM..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    fn look_everywhere(block: &Block) {
        for format in [Format::Typed, Format::Raw, Format::Both] {
            let _ = block.view(format).slice(0..block.entries().len());
        }
        for index in 0..block.entries().len() {
            let _ = block.user_id(index);
        }
    }

    #[test]
    fn a_run_ends_where_the_budget_does() {
        let block = testing::block(Sequence(1), 4);
        let view = block.view(Format::Typed);
        let two = view.slice_bytes(1..3);
        assert_eq!(view.fitting_end(1, two), 3);
        assert_eq!(view.fitting_end(1, two - 1), 2);
        assert_eq!(view.fitting_end(1, 0), 1);
        assert_eq!(view.fitting_end(1, usize::MAX), 4);
        assert_eq!(view.slice(4..4), Bytes::new());
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let good = testing::block(Sequence(1), 2).as_bytes().to_vec();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Block::parse(bad.into()).is_err(), "bit of byte {at}");
            assert!(
                Block::parse(good[..at].to_vec().into()).is_err(),
                "cut at {at}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_with_a_good_checksum_make_the_parser_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES..200),
            small in any::<[u8; 3]>(),
        ) {
            // Small counts reach the deeper checks.
            bytes[12..16].copy_from_slice(&u32::from(small[0] % 4).to_le_bytes());
            bytes[32..34].copy_from_slice(&u16::from(small[1] % 3).to_le_bytes());
            bytes[34..36].copy_from_slice(&u16::from(small[2] % 3).to_le_bytes());
            bytes[..4].copy_from_slice(&MAGIC);
            seal(&mut bytes);
            if let Ok(block) = Block::parse(bytes.into()) {
                look_everywhere(&block);
            }
        }

        #[test]
        fn no_change_with_a_good_checksum_makes_the_parser_panic(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = testing::block(Sequence(1), 3).as_bytes().to_vec();
            for (at, value) in changes {
                let at = CHECKED_FROM + at.index(bytes.len() - CHECKED_FROM);
                bytes[at] = value;
            }
            seal(&mut bytes);
            if let Ok(block) = Block::parse(bytes.into()) {
                look_everywhere(&block);
            }
        }
    }
}
