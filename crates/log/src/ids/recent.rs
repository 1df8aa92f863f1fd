//! Owns the newest keys: a set in memory that can be read in the order of the keys, a section at a
//! time. Knows nothing of the disk.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hash, Hasher},
};

use super::{Key, event_of, file::section_range};
use crate::clock::RetentionTime;
use prelude_bridge_event::Sequence;

/// The set is divided by the first six bits of the keys, so that no table grows so large that
/// growing it would delay a commit.
const SHARD_BITS: u32 = 6;
/// How many tables that makes.
pub(super) const SHARDS: usize = 1 << SHARD_BITS;
/// What a key and its control byte occupy in a table.
const SLOT_BYTES: usize = size_of::<Key>() + 1;

/// A key that equals all keys of its event.
#[derive(Clone, Copy)]
struct OfEvent(Key);

impl PartialEq for OfEvent {
    fn eq(&self, other: &Self) -> bool {
        event_of(self.0) == event_of(other.0)
    }
}

impl Eq for OfEvent {}

impl Hash for OfEvent {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u128(event_of(self.0));
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not called for the keys of this set.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

/// A set of keys, one of each event.
#[derive(Default)]
pub(crate) struct KeySet(HashSet<OfEvent, BuildHasherDefault<KeyHasher>>);

impl KeySet {
    /// An empty set with room for so many keys.
    pub(crate) fn with_capacity(keys: usize) -> Self {
        let hasher = BuildHasherDefault::default();
        Self(HashSet::with_capacity_and_hasher(keys, hasher))
    }

    /// The key of the same event.
    pub(crate) fn find(&self, key: Key) -> Option<Key> {
        self.0.get(&OfEvent(key)).map(|found| found.0)
    }

    /// Adds a key, unless there is one of the same event. Returns whether it did.
    pub(crate) fn insert(&mut self, key: Key) -> bool {
        self.0.insert(OfEvent(key))
    }
}

/// A set of keys, the times of the oldest and the newest, and the event up to which it goes.
pub(super) struct Recent {
    shards: Box<[KeySet]>,
    len: usize,
    times: Option<(RetentionTime, RetentionTime)>,
    through: Sequence,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| KeySet::default()).collect(),
            len: 0,
            times: None,
            through: Sequence::ZERO,
        }
    }

    /// The key of the same event.
    pub(super) fn find(&self, key: Key) -> Option<Key> {
        self.shards.get(shard_of(key))?.find(key)
    }

    /// Adds the keys of a commit.
    pub(super) fn add(&mut self, keys: &[Key], through: Sequence, at: RetentionTime) {
        for &key in keys {
            let shard = self.shards.get_mut(shard_of(key));
            let inserted = shard.is_some_and(|shard| shard.insert(key));
            self.len += usize::from(inserted);
        }
        let (oldest, newest) = self.times.unwrap_or((at, at));
        self.times = Some((oldest.min(at), newest.max(at)));
        self.through = self.through.max(through);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The times of the oldest and the newest key; `None` when nothing was added.
    pub(super) fn times(&self) -> Option<(RetentionTime, RetentionTime)> {
        self.times
    }

    /// The last event whose key was added.
    pub(super) fn through(&self) -> Sequence {
        self.through
    }

    /// The keys of a section, in order.
    pub(super) fn section(&self, section: u64, bits: u32, keys: &mut Vec<Key>) {
        let range = section_range(section, bits);
        let shards = shard_of(*range.start())..=shard_of(*range.end());
        let shards = self.shards.get(shards).unwrap_or_default();
        keys.extend(
            shards
                .iter()
                .flat_map(|shard| shard.0.iter().map(|key| key.0)),
        );
        if bits > SHARD_BITS {
            keys.retain(|key| range.contains(key));
        }
        keys.sort_unstable();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let slots = self.shards.iter().map(|shard| {
            // hashbrown fills at most seven eighths of a table, whose size is a power of two.
            match shard.0.capacity() {
                0 => 0,
                capacity => (capacity * 8).div_ceil(7).next_power_of_two(),
            }
        });
        slots.sum::<usize>() * SLOT_BYTES
    }
}

fn shard_of(key: Key) -> usize {
    (key >> (Key::BITS - SHARD_BITS)) as usize
}
