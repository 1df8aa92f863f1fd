//! Owns the newest keys: a set in memory that can be given out in the order of the keys, one slice
//! after another. Knows nothing of the disk.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
};

use super::{Key, run::prefix_range};
use crate::clock::RetentionTime;

/// The set is divided by the first six bits of the keys: a slice of it is sorted in little time,
/// and no part grows so large that growing it would hold up a commit.
const SHARD_BITS: u32 = 6;

/// Keys are hashes already.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

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

/// A set of keys with the times of the oldest and the newest.
pub(super) struct Recent {
    shards: Box<[HashSet<Key, BuildHasherDefault<KeyHasher>>]>,
    len: usize,
    times: Option<(RetentionTime, RetentionTime)>,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..1 << SHARD_BITS).map(|_| HashSet::default()).collect(),
            len: 0,
            times: None,
        }
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.shards
            .get(shard_of(key))
            .is_some_and(|shard| shard.contains(&key))
    }

    /// True when it was not there. Its time is noted apart, see [`note`](Self::note).
    pub(super) fn insert(&mut self, key: Key) -> bool {
        let inserted = self
            .shards
            .get_mut(shard_of(key))
            .is_some_and(|shard| shard.insert(key));
        self.len += usize::from(inserted);
        inserted
    }

    pub(super) fn remove(&mut self, key: Key) {
        if let Some(shard) = self.shards.get_mut(shard_of(key))
            && shard.remove(&key)
        {
            self.len -= 1;
        }
    }

    /// Keys of this time are among them.
    pub(super) fn note(&mut self, at: RetentionTime) {
        let (oldest, newest) = self.times.unwrap_or((at, at));
        self.times = Some((oldest.min(at), newest.max(at)));
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The times of the oldest and the newest key; `None` when there is none.
    pub(super) fn times(&self) -> Option<(RetentionTime, RetentionTime)> {
        self.times.filter(|_| self.len > 0)
    }

    /// The keys that begin with these bits, in order.
    pub(super) fn slice(&self, prefix: u64, bits: u32) -> Vec<Key> {
        let range = prefix_range(prefix, bits);
        let shards = shard_of(*range.start())..=shard_of(*range.end());
        let shards = self.shards.get(shards).unwrap_or_default();
        let mut keys: Vec<Key> = shards.iter().flatten().copied().collect();
        if bits > SHARD_BITS {
            keys.retain(|key| range.contains(key));
        }
        keys.sort_unstable();
        keys
    }
}

fn shard_of(key: Key) -> usize {
    (key >> (Key::BITS - SHARD_BITS)) as usize
}
