//! Owns what the keys occupy and may occupy, and what they will occupy if as many come as in the last day.

use super::{
    file::{BLOCK_BYTES, IdFile},
    recent::Recent,
};
use crate::clock::{RetentionNow, RetentionTime};

const HOUR: i64 = 60 * 60 * 1_000_000;
const DAY: i64 = 24 * HOUR;
/// In a block there are so many keys. The index and the filters add some nine bytes a block and nine bits a
/// key: a twelfth.
const BLOCK_KEYS: u64 = BLOCK_BYTES as u64 / 16 - 1;

/// What the ids occupy by which repetitions are recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk. About a fifteenth of that is in memory as well.
    pub bytes: u64,
    /// When they occupy more than this, the oldest are forgotten before their time.
    pub bytes_max: u64,
    /// What they will occupy if as many come as in the last day; at least what they do.
    pub bytes_expected: u64,
    /// How many were forgotten before their time since the log was opened.
    pub forgotten_early: u64,
    /// Of how many events the id is not known any more, at their time, before it, or because of damage.
    pub forgotten: u64,
}

impl Usage {
    /// Whether somebody should do something before ids are forgotten before their time: half of what
    /// they may take is taken, or the whole will be.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.bytes >= self.bytes_max.div_ceil(2) || self.bytes_expected > self.bytes_max
    }
}

/// Some keys: when the oldest and the newest of them came, and what they occupy or will.
pub(super) struct Part {
    oldest_at: RetentionTime,
    newest_at: RetentionTime,
    bytes: u64,
}

impl Part {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn of_file(file: &IdFile) -> Self {
        Self {
            oldest_at: file.footer.oldest_at,
            newest_at: file.footer.newest_at,
            bytes: file.bytes,
        }
    }

    pub(super) fn of_set(set: &Recent) -> Option<Self> {
        let (oldest_at, newest_at) = set.times()?;
        let blocks = (set.len() as u64).div_ceil(BLOCK_KEYS);
        Some(Self {
            oldest_at,
            newest_at,
            bytes: blocks * BLOCK_BYTES as u64 / 12 * 13,
        })
    }
}

/// What keys of `age_micros` occupy together if as many come as in the last day. 0 as long as too little
/// is known.
pub(super) fn expected_bytes(
    parts: impl Iterator<Item = Part>,
    now: &RetentionNow,
    age_micros: i64,
) -> u64 {
    let parts = parts.filter(|part| now.age_of(part.newest_at) <= DAY);
    let (mut bytes, mut micros) = (0, 0);
    for part in parts {
        bytes += part.bytes;
        micros = micros.max(now.age_of(part.oldest_at));
    }
    // What came in a moment says little of a day.
    if micros <= HOUR {
        return 0;
    }
    let age_micros = u128::from(age_micros.max(0).unsigned_abs());
    let all = u128::from(bytes) * age_micros / u128::from(micros.unsigned_abs());
    u64::try_from(all).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(parts: &[(i64, i64, u64)], now: i64) -> u64 {
        let parts = parts.iter().map(|&(oldest, newest, bytes)| Part {
            oldest_at: RetentionTime(oldest),
            newest_at: RetentionTime(newest),
            bytes,
        });
        expected_bytes(parts, &RetentionNow::at(now), 16 * DAY)
    }

    #[test]
    fn the_rate_of_the_last_day_goes_on() {
        assert_eq!(expected(&[], 5 * DAY), 0);
        assert_eq!(expected(&[(4 * DAY, 5 * DAY, 100)], 5 * DAY), 1_600);
        // What came before that does not count, …
        let parts = [(0, 4 * DAY - 1, 9_999), (4 * DAY, 5 * DAY, 100)];
        assert_eq!(expected(&parts, 5 * DAY), 1_600);
        // … and what is in several parts counts together.
        let parts = [(4 * DAY, 5 * DAY - 10, 60), (5 * DAY - 10, 5 * DAY, 40)];
        assert_eq!(expected(&parts, 5 * DAY), 1_600);
        assert_eq!(expected(&[(3 * DAY, 4 * DAY, 100)], 5 * DAY), 800);
    }

    #[test]
    fn an_hour_says_nothing_of_a_day() {
        assert_eq!(expected(&[(0, 10, 1_000_000)], HOUR), 0);
        assert_ne!(expected(&[(0, 10, 1_000_000)], HOUR + 1), 0);
        assert_eq!(expected(&[(0, 10, u64::MAX / 2)], 2 * HOUR), u64::MAX);
    }

    #[test]
    fn half_of_the_budget_or_the_whole_before_long_is_tight() {
        let usage = |bytes, bytes_expected| Usage {
            bytes,
            bytes_max: 101,
            bytes_expected,
            forgotten_early: 0,
            forgotten: 0,
        };
        assert!(!usage(50, 101).is_tight());
        assert!(usage(51, 51).is_tight());
        assert!(usage(50, 102).is_tight());
    }
}
