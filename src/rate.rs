//! Owns rate limits: a bucket of tokens that come in by time, up to a limit. Knows nothing of what is
//! paid with them.
//!
//! Written here because `governor` can neither give tokens back, nor earn them by anything but time,
//! nor reserve those that come in later only within a deadline, and each of that is needed.

use std::time::Duration;

use tokio::time::Instant;

/// A bucket of tokens. It counts in parts of a token, as many as there are nanoseconds in its period,
/// so nothing is lost in rounding however often it is looked at.
#[derive(Clone, Debug)]
pub struct Bucket {
    token_parts: i128,
    parts_per_nanosecond: i128,
    parts_max: i128,
    /// What there is; less than nothing while tokens are reserved that are still to come.
    parts: i128,
    counted_at: Instant,
}

impl Bucket {
    /// A full bucket of so many tokens, into which `tokens` come in each `period`.
    #[must_use]
    pub fn new(tokens: u64, period: Duration, tokens_max: u64, now: Instant) -> Self {
        let token_parts = i128::try_from(period.as_nanos()).unwrap_or(i128::MAX);
        let parts_max = token_parts.saturating_mul(tokens_max.into());
        Self {
            token_parts,
            parts_per_nanosecond: tokens.max(1).into(),
            parts_max,
            parts: parts_max,
            counted_at: now,
        }
    }

    /// The same with no more than so many tokens in it at first.
    #[must_use]
    pub fn starting_with(mut self, tokens: u64) -> Self {
        self.parts = self
            .parts
            .min(self.token_parts.saturating_mul(tokens.into()));
        self
    }

    /// Takes tokens, if they are there.
    pub fn take(&mut self, tokens: u64, now: Instant) -> bool {
        self.reserve(tokens, now, now).is_some()
    }

    /// Takes tokens that may come in later, and returns when they will all have. Takes none if that
    /// is after the deadline.
    pub fn reserve(&mut self, tokens: u64, now: Instant, deadline: Instant) -> Option<Instant> {
        self.count(now);
        let left = self.parts.saturating_sub(self.parts_of(tokens));
        let missing = left.min(0).unsigned_abs();
        let nanoseconds = missing.div_ceil(self.parts_per_nanosecond.unsigned_abs());
        let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        let at = now.checked_add(Duration::from_nanos(nanoseconds))?;
        if at > deadline {
            return None;
        }
        self.parts = left;
        Some(at)
    }

    /// Adds tokens beside those that come in by time.
    pub fn add(&mut self, tokens: u64) {
        let parts = self.parts.saturating_add(self.parts_of(tokens));
        self.parts = parts.min(self.parts_max);
    }

    /// Whether there is no room for more tokens.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.count(now);
        self.parts == self.parts_max
    }

    fn count(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted_at).as_nanos();
        let passed = i128::try_from(passed).unwrap_or(i128::MAX);
        let earned = passed.saturating_mul(self.parts_per_nanosecond);
        self.parts = self.parts.saturating_add(earned).min(self.parts_max);
        self.counted_at = self.counted_at.max(now);
    }

    fn parts_of(&self, tokens: u64) -> i128 {
        self.token_parts.saturating_mul(tokens.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn tokens_come_in_by_time_up_to_the_limit() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, SECOND, 5, start);
        assert!(bucket.take(5, start) && !bucket.take(1, start));
        assert!(bucket.take(3, start + SECOND) && !bucket.take(1, start + SECOND));
        assert!(!bucket.is_full(start + SECOND) && bucket.is_full(start + 60 * SECOND));
        assert!(!bucket.take(6, start + 60 * SECOND));
        assert!(bucket.take(5, start + 60 * SECOND));
        // A clock that goes back adds nothing and takes nothing away.
        assert!(!bucket.take(1, start));
        assert!(bucket.take(3, start + 61 * SECOND));
    }

    #[test]
    fn nothing_is_lost_in_rounding() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, SECOND, 3, start).starting_with(0);
        let mut taken = 0;
        for millisecond in 1..=7_000 {
            let now = start + Duration::from_millis(millisecond);
            taken += u32::from(bucket.take(1, now));
        }
        assert_eq!(taken, 21);
    }

    #[test]
    fn tokens_are_reserved_within_the_deadline() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, SECOND, 5, start);
        assert_eq!(bucket.reserve(5, start, start), Some(start));
        let deadline = start + SECOND;
        assert_eq!(
            bucket.reserve(4, start, deadline),
            Some(start + SECOND * 2 / 5)
        );
        assert_eq!(bucket.reserve(7, start, deadline), None);
        assert_eq!(bucket.reserve(6, start, deadline), Some(deadline));
        // What is given back comes to whoever asks next.
        bucket.add(6);
        assert_eq!(bucket.reserve(6, start, deadline), Some(deadline));
        assert!(!bucket.take(1, deadline) && bucket.take(1, deadline + SECOND / 10));
    }

    #[test]
    fn what_is_added_is_kept_up_to_the_limit() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1, SECOND, 20, start).starting_with(10);
        bucket.add(5);
        assert!(bucket.take(15, start) && !bucket.take(1, start));
        bucket.add(1_000);
        assert!(bucket.take(20, start) && !bucket.take(1, start));
    }

    #[test]
    fn no_limit_is_too_large_or_too_small() {
        let start = Instant::now();
        let mut bucket = Bucket::new(u64::MAX, Duration::MAX, u64::MAX, start);
        assert!(bucket.take(1, start));
        bucket.add(u64::MAX);
        assert_eq!(bucket.reserve(u64::MAX, start, start), Some(start));
        let mut bucket = Bucket::new(0, Duration::from_nanos(1), 0, start);
        assert!(!bucket.take(1, start));
        assert!(bucket.take(0, start));
    }
}
