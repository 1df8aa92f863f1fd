//! Owns the decision whether the wall clock is believed. It is followed as long as it runs about as
//! fast as the steady clock, so also while it is slewed. When it jumps, the time from before goes on;
//! where it jumped to counts when it has stayed there for a minute.

use super::{MINUTE, Reading, SECOND};
use prelude_bridge_event::UnixMicros;

/// The wall clock may be off by so much at once. Two seconds: time daemons step a clock that is off
/// by half a second or so, and slew it when it is off by less; a leap second is one.
pub(super) const TOLERANCE: i64 = 2 * SECOND;
/// Within a minute it may run faster or slower by this part: chrony slews by a twelfth at most.
const SLEW_DIVISOR: i64 = 10;
/// Over longer times without a reading, by this part: clocks of machines are better than that.
const DRIFT_DIVISOR: i64 = 2_000;
/// A jump counts when it has lasted for so long.
const ADOPTED_AFTER: i64 = MINUTE;

/// How far wall clock and steady clock may come apart within a time.
fn tolerance(elapsed: i64) -> i64 {
    let elapsed = elapsed.max(0);
    TOLERANCE + elapsed.min(MINUTE) / SLEW_DIVISOR + elapsed / DRIFT_DIVISOR
}

/// What a reading brought. `ahead` is by how much the wall clock is before the time that was
/// expected; negative, if it is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The wall clock has jumped (again).
    Jumped { ahead: i64 },
    /// It is back where it was expected.
    Returned,
    /// It has stayed where it jumped to: that is the time now.
    Adopted { ahead: i64 },
}

pub(super) struct Wall {
    /// What readings are compared with. Renewed once a minute only, so that many small steps do not
    /// pass for a slow clock.
    anchor: Reading,
    /// The last reading that was believed.
    followed: Reading,
    jump: Option<Jump>,
}

#[derive(Clone, Copy)]
struct Jump {
    /// Since when, by the steady clock.
    since: i64,
    /// Wall clock minus steady clock.
    offset: i64,
}

impl Wall {
    /// Believes a reading.
    pub(super) fn new(reading: Reading) -> Self {
        Self {
            anchor: reading,
            followed: reading,
            jump: None,
        }
    }

    /// Takes a reading, whose steady clock is not before the last one's.
    pub(super) fn follow(&mut self, reading: Reading) -> Option<Change> {
        let elapsed = reading.steady.saturating_sub(self.anchor.steady);
        let expected = self.anchor.wall.0.saturating_add(elapsed);
        let ahead = reading.wall.0.saturating_sub(expected);
        if ahead.saturating_abs() <= tolerance(elapsed) {
            self.followed = reading;
            if elapsed >= MINUTE {
                self.anchor = reading;
            }
            return self.jump.take().map(|_| Change::Returned);
        }
        let ahead = reading.wall.0.saturating_sub(self.time(reading.steady).0);
        let offset = reading.wall.0.saturating_sub(reading.steady);
        let lasting = self.jump.filter(|jump| {
            let elapsed = reading.steady.saturating_sub(jump.since);
            offset.saturating_sub(jump.offset).saturating_abs() <= tolerance(elapsed)
        });
        let Some(jump) = lasting else {
            self.jump = Some(Jump {
                since: reading.steady,
                offset,
            });
            return Some(Change::Jumped { ahead });
        };
        if reading.steady.saturating_sub(jump.since) < ADOPTED_AFTER {
            return None;
        }
        *self = Self::new(reading);
        Some(Change::Adopted { ahead })
    }

    /// Whether the wall clock is somewhere else than it should be.
    pub(super) fn is_in_jump(&self) -> bool {
        self.jump.is_some()
    }

    /// The time at a moment of the steady clock.
    pub(super) fn time(&self, steady: i64) -> UnixMicros {
        let elapsed = steady.saturating_sub(self.followed.steady);
        UnixMicros(self.followed.wall.0.saturating_add(elapsed))
    }
}
