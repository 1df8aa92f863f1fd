//! When a failed delivery is tried again: the documented schedule, on a clock that can run faster.
//! Pure arithmetic; whoever uses it does the waiting.

use std::time::Duration;

/// How a sender goes on after a failure. The default is what Prelude documents: after 1, 2, 4 …
/// minutes, at most 12 hours apart, for two weeks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetrySchedule {
    /// The first pause; every further one is twice as long.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// No retry starts later than this after the first attempt.
    pub give_up_after: Duration,
    /// How many times faster than the clock on the wall the schedule runs. 60 turns the first
    /// minute into a second.
    pub time_scale: f64,
}

impl Default for RetrySchedule {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(60),
            longest: Duration::from_secs(12 * 3600),
            give_up_after: Duration::from_secs(14 * 24 * 3600),
            time_scale: 1.0,
        }
    }
}

impl RetrySchedule {
    /// The documented schedule, this many times faster.
    #[must_use]
    pub fn scaled(time_scale: f64) -> Self {
        Self {
            time_scale,
            ..Self::default()
        }
    }

    /// The pauses of one delivery, in order.
    #[must_use]
    pub fn pauses(self) -> Pauses {
        Pauses {
            schedule: self,
            next: self.first,
            elapsed: Duration::ZERO,
        }
    }

    fn on_the_wall(&self, documented: Duration) -> Duration {
        Duration::try_from_secs_f64(documented.as_secs_f64() / self.time_scale)
            .unwrap_or(documented)
    }
}

/// One pause: as documented, and as long as it is to be waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// On the sender's clock.
    pub documented: Duration,
    /// On the clock on the wall.
    pub wait: Duration,
}

/// The pauses of one delivery. See [`RetrySchedule::pauses`].
#[derive(Debug, Clone)]
pub struct Pauses {
    schedule: RetrySchedule,
    next: Duration,
    elapsed: Duration,
}

impl Iterator for Pauses {
    type Item = Pause;

    fn next(&mut self) -> Option<Pause> {
        let documented = self.next.min(self.schedule.longest);
        self.elapsed = self.elapsed.saturating_add(documented);
        // A pause of nothing would never reach the end.
        if documented.is_zero() || self.elapsed > self.schedule.give_up_after {
            return None;
        }
        self.next = documented.saturating_mul(2);
        let wait = self.schedule.on_the_wall(documented);
        Some(Pause { documented, wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documented_minutes(schedule: RetrySchedule) -> Vec<u64> {
        schedule
            .pauses()
            .map(|pause| pause.documented.as_secs() / 60)
            .collect()
    }

    #[test]
    fn the_schedule_is_the_documented_one() {
        let minutes = documented_minutes(RetrySchedule::default());
        assert_eq!(minutes[..11], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 720]);
        assert!(minutes[10..].iter().all(|pause| *pause == 720));
        let two_weeks = 14 * 24 * 60;
        let total: u64 = minutes.iter().sum();
        assert!(
            total <= two_weeks && total + 720 > two_weeks,
            "{total} minutes"
        );
    }

    #[test]
    fn a_faster_clock_changes_the_waiting_and_not_the_schedule() {
        let scaled = RetrySchedule::scaled(60.0);
        assert_eq!(
            documented_minutes(scaled),
            documented_minutes(RetrySchedule::default())
        );
        let waits: Vec<u64> = scaled.pauses().map(|pause| pause.wait.as_secs()).collect();
        assert_eq!(waits[..4], [1, 2, 4, 8]);
    }

    #[test]
    fn a_senseless_schedule_ends() {
        let no_pause = RetrySchedule {
            first: Duration::ZERO,
            ..RetrySchedule::default()
        };
        assert_eq!(no_pause.pauses().count(), 0);
        let stopped = RetrySchedule::scaled(0.0);
        assert!(stopped.pauses().all(|pause| pause.wait == pause.documented));
    }
}
