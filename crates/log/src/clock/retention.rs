//! Owns the clock by which events and ids become too old. What it makes others remove does not come
//! back, so it never runs faster than time can have passed:
//!
//! - While the process runs, and over a restart within one boot of the machine, it advances with
//!   the steady clock. A jump of the wall clock does not move it, however long it lasts.
//! - Over a reboot (or in a directory that was restored on another machine) only the wall clock tells
//!   how much time has passed. One reading of it proves nothing: a machine without a battery starts
//!   in 1970, one with a wrong one in any year. So that time is credited when the wall clock has kept
//!   pace with the steady clock for a day, and no more of it than both the last reading and the last
//!   day of which the clock had kept pace before allow.
//!
//! A time that is credited late makes older what was written before it, and nothing else. So moments
//! are kept without it, and the credits beside them: see [`RetentionNow`].
//!
//! Where it errs it is slow: then what is kept is kept for longer than it has to be.

use std::sync::Arc;

use super::{Boot, HOUR, Reading, SECOND, Stored};
use prelude_bridge_event::UnixMicros;

/// So long the wall clock has to keep pace before it is believed that time has passed while the
/// machine was down. A day: long enough for a time daemon to have corrected it, and for somebody to
/// have read what the log says about it; and events are not kept much longer than they should be.
pub(super) const CONFIRMED_AFTER: i64 = 24 * HOUR;
/// A clock that shows a time before 2025 is wrong, as this program was written later: such a
/// clock confirms nothing.
pub(super) const EARLIEST_PLAUSIBLE: UnixMicros = UnixMicros(1_735_689_600 * SECOND);

/// So many credits are kept. When there are more, the oldest are dropped: as if that time had not
/// passed.
pub(super) const CREDITS_MAX: usize = 64;

/// A moment by the retention clock of a log: how many microseconds it has run. Not a time of day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RetentionTime(pub(crate) i64);

/// So much time has passed, besides, right after a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credit {
    pub(super) after: RetentionTime,
    pub(super) micros: i64,
}

/// The time by the retention clock, which tells how old things are.
#[derive(Clone, Debug)]
pub(crate) struct RetentionNow {
    /// What is written now gets this time.
    pub(crate) time: RetentionTime,
    credits: Arc<Vec<Credit>>,
}

impl RetentionNow {
    /// A clock that has run for so many microseconds, without a break.
    #[cfg(test)]
    pub(crate) fn at(micros: i64) -> Self {
        Self {
            time: RetentionTime(micros),
            credits: Arc::default(),
        }
    }

    /// How many microseconds have passed for certain since then.
    pub(crate) fn age_of(&self, earlier: RetentionTime) -> i64 {
        let credits = self.credits.iter().rev();
        let credits = credits.take_while(|credit| credit.after >= earlier);
        credits.fold(self.time.0.saturating_sub(earlier.0), |age, credit| {
            age.saturating_add(credit.micros)
        })
    }
}

pub(super) struct Retention {
    time: RetentionTime,
    /// Ascending.
    credits: Arc<Vec<Credit>>,
    /// All that was ever credited, in microseconds.
    credited: i64,
    /// The steady clock's reading at this time.
    steady: i64,
    /// For how long the wall clock has kept pace until now, at most [`CONFIRMED_AFTER`].
    kept_pace: i64,
    /// Nobody looked at the wall clock since the steady clock's last reading.
    was_down: bool,
    /// The wall clock minus this clock and all credits, when the wall clock had last kept pace for a
    /// day.
    confirmed: Option<i64>,
    /// By how much the wall clock advanced while the machine was down, and when that was, if that is
    /// not settled yet.
    claim: Option<Credit>,
}

impl Retention {
    pub(super) fn new(time: RetentionTime, steady: i64) -> Self {
        Self {
            time,
            credits: Arc::default(),
            credited: 0,
            steady,
            kept_pace: 0,
            was_down: false,
            confirmed: None,
            claim: None,
        }
    }

    /// Goes on within the same boot: the next reading tells how much time has passed.
    pub(super) fn resume(stored: &Stored) -> Self {
        Self {
            time: stored.time,
            credits: Arc::new(stored.credits.clone()),
            credited: stored.credited,
            steady: stored.steady,
            kept_pace: stored.kept_pace,
            was_down: true,
            confirmed: stored.confirmed,
            claim: stored.claim,
        }
    }

    /// Goes on in another boot, in which the wall clock is this much further.
    pub(super) fn resume_after(stored: &Stored, gap: i64, steady: i64) -> Self {
        // After several boots the whole of it makes older what was written before the first of them.
        let claim = stored.claim.unwrap_or(Credit {
            after: stored.time,
            micros: 0,
        });
        Self {
            // A microsecond of it, so that all that is written now is after the claim.
            time: RetentionTime(stored.time.0.saturating_add(1)),
            steady,
            kept_pace: 0,
            was_down: false,
            claim: Some(Credit {
                micros: claim.micros.saturating_add(gap).saturating_sub(1),
                ..claim
            }),
            ..Self::resume(stored)
        }
    }

    pub(super) fn now(&self) -> RetentionNow {
        RetentionNow {
            time: self.time,
            credits: Arc::clone(&self.credits),
        }
    }

    /// The last reading of the steady clock.
    pub(super) fn steady(&self) -> i64 {
        self.steady
    }

    /// How much time has passed by this clock, credits included.
    fn passed(&self) -> i64 {
        self.time.0.saturating_add(self.credited)
    }

    /// By how much this clock is behind a wall clock.
    pub(super) fn behind(&self, wall: UnixMicros) -> i64 {
        wall.0.saturating_sub(self.passed())
    }

    /// What a wall clock shows that this clock is behind by so much.
    pub(super) fn wall(&self, behind: i64) -> UnixMicros {
        UnixMicros(self.passed().saturating_add(behind))
    }

    /// By how much this clock was behind the wall clock when that had last kept pace for a day.
    pub(super) fn confirmed(&self) -> Option<i64> {
        self.confirmed
    }

    /// The wall clock was set, by this much. It may have been wrong since the boot.
    pub(super) fn wall_was_set(&mut self, ahead: i64) {
        if let Some(claim) = &mut self.claim {
            claim.micros = claim.micros.saturating_add(ahead);
        }
    }

    /// Takes a reading, in which the wall clock has kept pace since the last one, or not. Returns
    /// how many microseconds are credited with it.
    pub(super) fn advance(&mut self, reading: Reading, is_followed: bool) -> i64 {
        let elapsed = reading.steady.saturating_sub(self.steady).max(0);
        self.steady = self.steady.saturating_add(elapsed);
        self.time.0 = self.time.0.saturating_add(elapsed);
        let was_down = std::mem::take(&mut self.was_down);
        let seen = if was_down { 0 } else { elapsed };
        let kept_pace = self.kept_pace.saturating_add(seen).min(CONFIRMED_AFTER);
        self.kept_pace = if is_followed { kept_pace } else { 0 };
        if self.kept_pace < CONFIRMED_AFTER || reading.wall < EARLIEST_PLAUSIBLE {
            return 0;
        }
        let ahead = self.behind(reading.wall);
        let claim = self.claim.take().zip(self.confirmed);
        let credit = claim.map(|(claim, confirmed)| Credit {
            micros: claim.micros.min(ahead.saturating_sub(confirmed)),
            ..claim
        });
        let credit = credit.filter(|credit| credit.micros > 0);
        let credited = credit.map_or(0, |credit| credit.micros);
        if let Some(credit) = credit {
            self.add(credit);
        }
        self.confirmed = Some(ahead.saturating_sub(credited));
        credited
    }

    fn add(&mut self, credit: Credit) {
        self.credited = self.credited.saturating_add(credit.micros);
        let credits = Arc::make_mut(&mut self.credits);
        credits.push(credit);
        let excess = credits.len().saturating_sub(CREDITS_MAX);
        credits.drain(..excess);
    }

    pub(super) fn to_store(&self, wall: UnixMicros, boot: Option<Boot>) -> Stored {
        Stored {
            time: self.time,
            credits: self.credits.to_vec(),
            credited: self.credited,
            boot,
            steady: self.steady,
            wall,
            kept_pace: self.kept_pace,
            confirmed: self.confirmed,
            claim: self.claim,
        }
    }
}
