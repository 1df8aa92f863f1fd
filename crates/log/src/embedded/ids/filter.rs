//! Owns the filter over one slice of a run: two bytes a key that tell, without a look at the disk,
//! that a key is not in it. It errs in one direction only: what it denies is not there.
//!
//! A Bloom filter whose bits for a key all lie in one cache line. Keys are hashes already, so their
//! own bits choose the places. It can be halved at any time, for a higher rate of false alarms.

use super::Key;

/// A cache line.
const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: usize = BLOCK_WORDS * 64;
/// Bits that are set for a key, nine bits of the key each: one false alarm in a thousand at 16 bits
/// a key, one in fifty at 8, one in five at 4.
const PROBES: u32 = 6;
/// Blocks come in this number, so that they can be halved three times.
const BLOCKS_STEP: usize = 8;

/// A filter over some keys.
pub(super) struct Filter {
    /// Without any, everything may be there.
    words: Box<[u64]>,
}

impl Filter {
    pub(super) fn new(keys: &[Key], bits_per_key: usize) -> Self {
        let blocks = (keys.len() * bits_per_key).div_ceil(BLOCK_BITS).max(1);
        let words = blocks.next_multiple_of(BLOCKS_STEP) * BLOCK_WORDS;
        let mut filter = Self {
            words: vec![0; words].into(),
        };
        for &key in keys {
            let block = filter.block_of(key);
            if let Some(block) = filter.words.get_mut(block..block + BLOCK_WORDS) {
                for (word, bit) in places(key) {
                    if let Some(word) = block.get_mut(word) {
                        *word |= bit;
                    }
                }
            }
        }
        filter
    }

    /// Takes no memory.
    fn of_nothing() -> Self {
        Self {
            words: Box::default(),
        }
    }

    /// Whether a look at the disk is needed.
    fn may_hold(&self, key: Key) -> bool {
        let block = self.block_of(key);
        match self.words.get(block..block + BLOCK_WORDS) {
            Some(block) => {
                places(key).all(|(word, bit)| block.get(word).is_none_or(|word| word & bit != 0))
            }
            None => true,
        }
    }

    /// Gives up half of its memory, in the end all of it.
    pub(super) fn halve(&mut self) {
        let pairs = self.words.chunks_exact(2 * BLOCK_WORDS);
        self.words = if pairs.remainder().is_empty() {
            pairs
                .flat_map(|pair| {
                    let (left, right) = pair.split_at(BLOCK_WORDS);
                    left.iter().zip(right).map(|(left, right)| left | right)
                })
                .collect()
        } else {
            Box::default()
        };
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.words)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    /// What [`to_bytes`](Self::to_bytes) made.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks();
        Self {
            words: words.iter().map(|&word| u64::from_le_bytes(word)).collect(),
        }
    }

    /// The first word of a key's block. In halves of the filter it is the half, rounded down.
    fn block_of(&self, key: Key) -> usize {
        let blocks = (self.words.len() / BLOCK_WORDS) as u128;
        // The highest bits are alike in a slice, and the lowest are used within the block.
        let place = (key >> 64) & 0xffff_ffff;
        ((place * blocks) >> 32) as usize * BLOCK_WORDS
    }
}

/// The bits of a key: words of its block, and masks.
fn places(key: Key) -> impl Iterator<Item = (usize, u64)> {
    let low = key as u64;
    (0..PROBES).map(move |probe| {
        let place = low >> (probe * 9);
        ((place >> 6) as usize % BLOCK_WORDS, 1 << (place % 64))
    })
}

/// The filters of a run's first slices. A slice that has none may hold anything, and one that was
/// retired holds nothing.
#[derive(Default)]
pub(super) struct Filters {
    slices: Vec<Filter>,
    /// So many of the first are retired.
    retired: usize,
    bytes: usize,
    /// The one that is halved next.
    next: usize,
}

impl Filters {
    /// Whether a look at the disk is needed for a key of this slice.
    pub(super) fn may_hold(&self, slice: u64, key: Key) -> bool {
        let slice = usize::try_from(slice).unwrap_or(usize::MAX);
        slice >= self.retired && self.slices.get(slice).is_none_or(|it| it.may_hold(key))
    }

    /// Of how many slices there are filters, from the first on.
    pub(super) fn len(&self) -> u64 {
        self.slices.len() as u64
    }

    /// Takes the filter of the next slice, and returns how many bytes that adds. One of another
    /// slice is of no use: those before it were not read.
    pub(super) fn add(&mut self, slice: u64, filter: Filter) -> usize {
        if slice != self.slices.len() as u64 {
            return 0;
        }
        let bytes = filter.memory_bytes();
        self.bytes += bytes;
        self.slices.push(filter);
        bytes
    }

    /// The first slices are not asked any more: another run has their keys. Returns how many bytes
    /// that frees.
    pub(super) fn retire(&mut self, slices: u64) -> usize {
        let slices = usize::try_from(slices).unwrap_or(usize::MAX);
        let slices = slices.min(self.slices.len()).max(self.retired);
        let retiring = self.slices.get_mut(self.retired..slices);
        let freed = (retiring.into_iter().flatten())
            .map(|filter| std::mem::replace(filter, Filter::of_nothing()).memory_bytes())
            .sum();
        self.retired = slices;
        self.bytes -= freed;
        freed
    }

    /// Halves a filter, each in its turn, but none that has given more than the others already.
    /// Returns how many bytes that frees.
    pub(super) fn halve_one(&mut self) -> usize {
        let mean = self.bytes / self.asked().max(1);
        let mut turn = (self.next..self.slices.len()).chain(self.retired..self.next);
        let is_due = |slice: &usize| {
            let filter = self.slices.get(*slice);
            filter.is_some_and(|filter| filter.memory_bytes() >= mean)
        };
        let Some(slice) = turn.find(is_due) else {
            return 0;
        };
        self.next = slice + 1;
        let Some(filter) = self.slices.get_mut(slice) else {
            return 0;
        };
        let before = filter.memory_bytes();
        filter.halve();
        let freed = before - filter.memory_bytes();
        self.bytes -= freed;
        freed
    }

    /// What halving costs, where a slice has so many keys: how many more keys that are not there
    /// will be looked up on disk, of each, for each byte that it frees. Nothing can be had of a run
    /// without filters.
    pub(super) fn halving_costs(&self, slice_keys: f64) -> f64 {
        let bits_per_key = self.bytes as f64 * 8.0 / (slice_keys * self.asked() as f64);
        let more = alarm_rate(bits_per_key / 2.0) - alarm_rate(bits_per_key);
        if self.bytes > 0 {
            more / self.bytes as f64
        } else {
            f64::INFINITY
        }
    }

    /// How many filters are not retired.
    fn asked(&self) -> usize {
        self.slices.len() - self.retired
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes
    }
}

/// How many keys that are not there a filter does not deny, as a part of them.
fn alarm_rate(bits_per_key: f64) -> f64 {
    let probes = f64::from(PROBES);
    (1.0 - (-probes / bits_per_key).exp()).powf(probes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::ids::tests::key;

    fn false_alarms(filter: &Filter) -> usize {
        (10_000..20_000)
            .filter(|&n| filter.may_hold(key(n)))
            .count()
    }

    #[test]
    fn a_filter_denies_most_of_what_is_not_there_and_nothing_that_is() {
        let keys: Vec<Key> = (0..3_000).map(key).collect();
        let mut filter = Filter::new(&keys, 16);
        assert!(filter.memory_bytes() < 3_000 * 2 + 1_000);
        for (halved, alarms_max) in [(0, 50), (1, 500), (2, 3_500), (3, 8_000)] {
            assert!(keys.iter().all(|&key| filter.may_hold(key)), "{halved}");
            let alarms = false_alarms(&filter);
            assert!(alarms <= alarms_max, "{alarms} after {halved}");
            let again = Filter::from_bytes(&filter.to_bytes());
            assert_eq!(false_alarms(&again), alarms);
            filter.halve();
        }
        (0..10).for_each(|_| filter.halve());
        assert_eq!(filter.memory_bytes(), 0);
        assert_eq!(false_alarms(&filter), 10_000, "it knows nothing any more");
    }

    #[test]
    fn a_filter_over_nothing_denies_everything() {
        assert_eq!(false_alarms(&Filter::new(&[], 16)), 0);
    }
}
