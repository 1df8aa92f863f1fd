//! Owns the filter over one section of a file: nine bits a key that tell, without a look at the
//! disk, that a key is not in it. It errs in one direction only: a key that it denies is not there.
//!
//! A binary fuse filter. It takes the low bits of what stands for an event: the high ones are alike in a
//! section.

use xorf::{BinaryFuse8, Descriptor, Filter as _};

use super::{Key, event_of};

/// Where the number of fingerprints stands for a section without a filter.
const UNFILTERED: u32 = u32::MAX;

/// A filter over some keys.
pub(super) enum Filter {
    /// There are no keys.
    Empty,
    /// Of some keys.
    Fuse(BinaryFuse8),
    /// Every key may be there.
    Unfiltered,
}

impl Filter {
    /// The filter over these keys. `hashes` is memory to use.
    pub(super) fn new(keys: &[Key], hashes: &mut Vec<u64>) -> Self {
        if keys.is_empty() {
            return Self::Empty;
        }
        hashes.clear();
        hashes.extend(keys.iter().map(|&key| event_of(key) as u64));
        // The construction fails on duplicates. Whoever chooses ids can make some.
        hashes.sort_unstable();
        hashes.dedup();
        BinaryFuse8::try_from(hashes.as_slice()).map_or(Self::Unfiltered, Self::Fuse)
    }

    /// Whether a look at the disk is needed.
    pub(super) fn may_hold(&self, key: Key) -> bool {
        match self {
            Self::Empty => false,
            Self::Fuse(filter) => filter.contains(&(event_of(key) as u64)),
            Self::Unfiltered => true,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Fuse(filter) => filter.fingerprints.len(),
            Self::Empty | Self::Unfiltered => 0,
        }
    }

    /// Appends what [`read`](Self::read) reads.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let filter = match self {
            Self::Empty => return bytes.extend(0_u32.to_le_bytes()),
            Self::Unfiltered => return bytes.extend(UNFILTERED.to_le_bytes()),
            Self::Fuse(filter) => filter,
        };
        let count = u32::try_from(filter.fingerprints.len()).unwrap_or(UNFILTERED);
        bytes.extend(count.to_le_bytes());
        if count != UNFILTERED {
            bytes.extend(filter.descriptor.seed.to_le_bytes());
            bytes.extend(filter.descriptor.segment_length.to_le_bytes());
            bytes.extend(filter.descriptor.segment_count_length.to_le_bytes());
            bytes.extend(&filter.fingerprints);
        }
    }

    /// Takes a filter off the front of `bytes`; `None` if there is none that makes sense.
    pub(super) fn read(bytes: &mut &[u8]) -> Option<Self> {
        let count = u32::from_le_bytes(take(bytes)?);
        match count {
            0 => return Some(Self::Empty),
            UNFILTERED => return Some(Self::Unfiltered),
            _ => {}
        }
        let seed = u64::from_le_bytes(take(bytes)?);
        let segment_length = u32::from_le_bytes(take(bytes)?);
        let segment_count_length = u32::from_le_bytes(take(bytes)?);
        let (fingerprints, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
        *bytes = rest;
        // Or a place beyond the fingerprints could be asked for.
        let fits = segment_length.is_power_of_two()
            && segment_count_length.is_multiple_of(segment_length)
            && u64::from(segment_count_length) + 2 * u64::from(segment_length) == u64::from(count);
        fits.then(|| {
            Self::Fuse(BinaryFuse8 {
                descriptor: Descriptor {
                    seed,
                    segment_length,
                    segment_length_mask: segment_length - 1,
                    segment_count_length,
                },
                fingerprints: fingerprints.into(),
            })
        })
    }
}

/// Takes the next bytes off the front.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CONTENT_BITS, tests::key};

    fn false_alarms(filter: &Filter) -> usize {
        let others = 1_000_000..1_010_000;
        others.filter(|&n| filter.may_hold(key(n))).count()
    }

    #[test]
    fn a_filter_denies_most_of_what_is_not_there_and_nothing_that_is() {
        for count in (0..70).chain([1_000, 20_000]) {
            let keys: Vec<Key> = (0..count).map(key).collect();
            let filter = Filter::new(&keys, &mut Vec::new());
            assert!(keys.iter().all(|&key| filter.may_hold(key)), "{count}");
            let alarms = false_alarms(&filter);
            assert!(alarms < 80, "{alarms} for {count}");
            let mut bytes = Vec::new();
            filter.write(&mut bytes);
            bytes.push(7);
            let rest = &mut bytes.as_slice();
            let again = Filter::read(rest).unwrap();
            assert_eq!(rest, &[7]);
            assert!(keys.iter().all(|&key| again.may_hold(key)), "{count}");
            assert_eq!(false_alarms(&again), alarms);
            assert_eq!(again.memory_bytes(), filter.memory_bytes());
        }
        let keys: Vec<Key> = (0..200_000).map(key).collect();
        let bits = Filter::new(&keys, &mut Vec::new()).memory_bytes() as f64 * 8.0 / 200_000.0;
        assert!(bits < 9.6, "{bits} bits a key");
    }

    #[test]
    fn keys_with_the_same_low_bits_do_not_keep_a_filter_from_being_made() {
        let keys = (0..3_000).map(|n| (n << 96) | (n % 1_000) << CONTENT_BITS);
        let keys: Vec<Key> = keys.collect();
        let filter = Filter::new(&keys, &mut Vec::new());
        assert!(matches!(filter, Filter::Fuse(_)));
        assert!(keys.iter().all(|&key| filter.may_hold(key)));
    }

    #[test]
    fn what_is_no_filter_is_not_taken_for_one() {
        let keys: Vec<Key> = (0..500).map(key).collect();
        let mut bytes = Vec::new();
        Filter::new(&keys, &mut Vec::new()).write(&mut bytes);
        for length in 0..bytes.len() {
            assert!(Filter::read(&mut &bytes[..length]).is_none(), "{length}");
        }
        for (place, _) in bytes.iter().enumerate().take(20) {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[place] ^= 1 << bit;
                // No panic, whatever it is taken for.
                if let Some(filter) = Filter::read(&mut changed.as_slice()) {
                    false_alarms(&filter);
                }
            }
        }
    }
}
