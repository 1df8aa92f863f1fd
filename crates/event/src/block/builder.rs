//! Owns the writing of blocks: events of batches become bytes, each once.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{Block, CHECKED_FROM, ENTRY_BYTES, Entry, HEADER_BYTES, MAGIC, View};
use crate::{
    event::{Batch, Cursor, Draft, Epoch, LogId, Sequence, UnixMicros},
    wire,
};

/// Writes the events of a group commit into blocks.
pub struct Builder {
    log: LogId,
    epoch: Epoch,
    first_sequence: Sequence,
    received_at: UnixMicros,
    types: Vec<Arc<str>>,
    apps: Vec<Arc<str>>,
    entries: Vec<Entry>,
    typed: Vec<u8>,
    raw: Vec<u8>,
    fields: Vec<u8>,
}

/// A block is closed at this size, so that a slow reader never has to hold more than a little
/// above it for the event that it is at.
pub const BLOCK_BYTES_TARGET: usize = 1024 * 1024;
/// A block is closed at this many events: indices into it stay small.
pub const BLOCK_EVENTS_MAX: usize = 8_192;

impl Builder {
    /// Begins a block whose first event gets `first_sequence`.
    #[must_use]
    pub fn new(
        log: LogId,
        epoch: Epoch,
        first_sequence: Sequence,
        received_at: UnixMicros,
    ) -> Self {
        Self {
            log,
            epoch,
            first_sequence,
            received_at,
            types: Vec::new(),
            apps: Vec::new(),
            entries: Vec::new(),
            typed: Vec::new(),
            raw: Vec::new(),
            fields: Vec::new(),
        }
    }

    /// Begins at another place. What was not [finished](Self::finish) is given up.
    pub fn begin(
        &mut self,
        log: LogId,
        epoch: Epoch,
        first_sequence: Sequence,
        received_at: UnixMicros,
    ) {
        let next = Self::new(log, epoch, first_sequence, received_at);
        let done = std::mem::replace(self, next);
        self.reuse(done.typed, done.raw, done.fields);
    }

    /// Takes over the memory of a block that is done, unless it was for an unusually large one.
    fn reuse(&mut self, typed: Vec<u8>, raw: Vec<u8>, fields: Vec<u8>) {
        let buffers = [
            (&mut self.typed, typed),
            (&mut self.raw, raw),
            (&mut self.fields, fields),
        ];
        for (place, mut buffer) in buffers {
            if buffer.capacity() <= 2 * BLOCK_BYTES_TARGET {
                buffer.clear();
                *place = buffer;
            }
        }
    }

    /// The sequence number that the next event gets.
    #[must_use]
    pub fn next_sequence(&self) -> Sequence {
        self.first_sequence.plus(self.entries.len() as u64)
    }

    /// Whether there is no event yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it is time to [`finish`](Self::finish).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= BLOCK_EVENTS_MAX
            || self.typed.len() + self.raw.len() >= BLOCK_BYTES_TARGET
    }

    /// Appends an event of a batch.
    pub fn push(&mut self, batch: &Batch, draft: &Draft) {
        let cursor = Cursor {
            log: self.log,
            epoch: self.epoch,
            sequence: self.next_sequence(),
            not_before: None,
        };
        self.fields.clear();
        self.fields.extend_from_slice(batch.head(draft));
        wire::put_place(&mut self.fields, cursor, self.received_at);
        let payload = batch.payload(draft);
        wire::put_event_prefix(&mut self.typed, self.fields.len() + payload.len());
        self.typed.extend_from_slice(&self.fields);
        let common_end = self.typed.len();
        self.typed.extend_from_slice(payload);
        wire::put_raw_json(&mut self.raw, batch.raw_json(draft));
        let event_type = index_of(&mut self.types, &draft.event_type);
        let app = index_of(&mut self.apps, &batch.app_id);
        self.entries.push(Entry {
            typed_end: offset(self.typed.len()),
            raw_end: offset(self.raw.len()),
            common_end: offset(common_end),
            user_hash: draft.user_hash,
            event_type,
            app,
        });
    }

    /// Closes the block and begins the next one, at the sequence number after it. `None` when there
    /// is no event.
    pub fn finish(&mut self) -> Option<Block> {
        if self.is_empty() {
            return None;
        }
        let next = Self::new(self.log, self.epoch, self.next_sequence(), self.received_at);
        let done = std::mem::replace(self, next);
        let bytes = done.serialize();
        let typed_start = bytes.len() - done.typed.len() - done.raw.len();
        let raw_start = bytes.len() - done.raw.len();
        self.reuse(done.typed, done.raw, done.fields);
        Some(Block {
            log: done.log,
            epoch: done.epoch,
            first_sequence: done.first_sequence,
            received_at: done.received_at,
            types: done.types.into(),
            apps: done.apps.into(),
            typed: View {
                bytes: bytes.slice(typed_start..raw_start),
                held_bytes: bytes.len(),
                ends: done.entries.iter().map(|entry| entry.typed_end).collect(),
            },
            entries: done.entries.into(),
            raw_fields: bytes.slice(raw_start..),
            bytes,
            raw: OnceLock::new(),
            both: OnceLock::new(),
        })
    }

    fn serialize(&self) -> Bytes {
        let names = self.types.iter().chain(&self.apps);
        let names_bytes: usize = names.clone().map(|name| 2 + name.len()).sum();
        let mut bytes = Vec::with_capacity(
            HEADER_BYTES
                + names_bytes
                + self.entries.len() * ENTRY_BYTES
                + self.typed.len()
                + self.raw.len(),
        );
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&offset(self.entries.len()).to_le_bytes());
        bytes.extend_from_slice(&self.first_sequence.0.to_le_bytes());
        bytes.extend_from_slice(&self.received_at.0.to_le_bytes());
        bytes.extend_from_slice(&index(self.types.len()).to_le_bytes());
        bytes.extend_from_slice(&index(self.apps.len()).to_le_bytes());
        bytes.extend_from_slice(&offset(self.typed.len()).to_le_bytes());
        bytes.extend_from_slice(&offset(self.raw.len()).to_le_bytes());
        for name in names {
            bytes.extend_from_slice(&index(name.len()).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.typed_end.to_le_bytes());
            bytes.extend_from_slice(&entry.raw_end.to_le_bytes());
            bytes.extend_from_slice(&entry.common_end.to_le_bytes());
            bytes.extend_from_slice(&entry.user_hash.to_le_bytes());
            bytes.extend_from_slice(&entry.event_type.to_le_bytes());
            bytes.extend_from_slice(&entry.app.to_le_bytes());
        }
        bytes.extend_from_slice(&self.typed);
        bytes.extend_from_slice(&self.raw);
        let checksum = crc32c::crc32c(bytes.get(CHECKED_FROM..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(4..CHECKED_FROM) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
        bytes.into()
    }
}

/// The index of a name, which is added when it is new. A linear search: there are seven documented
/// types, and few apps.
fn index_of(names: &mut Vec<Arc<str>>, name: &Arc<str>) -> u16 {
    let known = names
        .iter()
        .position(|known| Arc::ptr_eq(known, name) || known == name);
    index(known.unwrap_or_else(|| {
        names.push(Arc::clone(name));
        names.len() - 1
    }))
}

/// Names are cut to fit by decoding, and a block has at most [`BLOCK_EVENTS_MAX`] of them.
fn index(value: usize) -> u16 {
    debug_assert!(value <= usize::from(u16::MAX));
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// A block is closed long before 4 GiB.
fn offset(value: usize) -> u32 {
    debug_assert!(u32::try_from(value).is_ok());
    u32::try_from(value).unwrap_or(u32::MAX)
}
