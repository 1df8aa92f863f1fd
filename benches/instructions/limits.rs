//! Owns what each room may cost, in instructions, and the judgement. Knows nothing of how they are
//! counted.
//!
//! The counts are those of 64-bit x86 in the profile beside this file, built by Rust 1.95. They are
//! above those of a release on the metal: dependencies check themselves here, and valgrind's CPU has
//! no instructions for SHA-256. It is the same CPU on every machine with AVX2, and a repetition
//! differs by less than 0.3 %. What moves them without anybody's fault is another compiler, another
//! version of a dependency, and a change elsewhere in the crate after which other functions are
//! inlined, each by a few percent. So the limits are ten percent above.

/// What one room costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The room, as on the command line.
    pub(crate) room: &'static str,
    /// What is counted.
    pub(crate) unit: &'static str,
    /// Instructions a unit when the limit was last set.
    pub(crate) expected: u64,
}

/// The rooms on an event's way. Most of `verify` is the public-key operation, of `decode` the walk
/// over JSON and two SHA-256, of `append` ids and checksums, of `deliver` h2.
pub(crate) const LIMITS: [Limit; 8] = [
    limit("verify", "a body", 457_700),
    limit("decode-sessions", "an event", 21_340),
    limit("decode-users", "an event", 26_030),
    limit("decode-unknown", "an event", 12_430),
    limit("append", "an event", 4_160),
    limit("encode", "an event", 3_420),
    limit("match", "an event", 307),
    limit("deliver", "a response", 26_200),
];

const fn limit(room: &'static str, unit: &'static str, expected: u64) -> Limit {
    Limit {
        room,
        unit,
        expected,
    }
}

/// Above the expected count by so much, in percent, a room has become slower.
const SLOWER_PERCENT: u64 = 10;
/// Below it by so much, in percent, the limit no longer guards what was gained.
const FASTER_PERCENT: u64 = 20;

/// What a count says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As expected.
    Kept,
    /// Better than expected: lower the limit, so that the gain is kept.
    Gained,
    /// The room has become slower.
    Exceeded,
}

impl Limit {
    /// The most that is allowed.
    pub(crate) fn most(&self) -> u64 {
        self.expected + self.expected * SLOWER_PERCENT / 100
    }

    /// Judges a count.
    pub(crate) fn judge(&self, counted: u64) -> Verdict {
        if counted > self.most() {
            Verdict::Exceeded
        } else if counted < self.expected - self.expected * FASTER_PERCENT / 100 {
            Verdict::Gained
        } else {
            Verdict::Kept
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_room_that_costs_a_tenth_more_has_become_slower() {
        use super::Verdict::{Exceeded, Kept};
        let limit = super::limit("decode", "an event", 1_000);
        assert_eq!(limit.most(), 1_100);
        assert_eq!(limit.judge(1_100), Kept);
        assert_eq!(limit.judge(1_101), Exceeded);
        assert_eq!(limit.judge(u64::MAX), Exceeded);
    }

    #[test]
    fn a_gain_of_a_fifth_asks_for_a_lower_limit() {
        use super::Verdict::{Gained, Kept};
        let limit = super::limit("decode", "an event", 1_000);
        assert_eq!(limit.judge(1_000), Kept);
        assert_eq!(limit.judge(800), Kept);
        assert_eq!(limit.judge(799), Gained);
        assert_eq!(limit.judge(0), Gained);
    }

    #[test]
    fn every_room_is_in_the_table_once() {
        for limit in super::LIMITS {
            let same = super::LIMITS
                .iter()
                .filter(|other| other.room == limit.room);
            assert_eq!(same.count(), 1, "{}", limit.room);
            assert!(limit.expected > 0 && !limit.unit.is_empty());
        }
    }
}
