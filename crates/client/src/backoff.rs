//! Owns how long a client waits between attempts. Pure: it computes durations and does not wait.

use std::time::Duration;

/// Exponential backoff with jitter, so that clients that lost a server at the same time do not
/// reconnect at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

impl Default for Backoff {
    /// From 200 ms, which a restart of a healthy server rarely takes, to 30 s, which keeps a
    /// thousand waiting clients below 50 attempts a second.
    fn default() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(30))
    }
}

impl Backoff {
    /// Waits that begin at most at `first` and double up to `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max: max.max(first),
            attempts: 0,
        }
    }

    /// How long to wait before the next attempt: a random time between half of the current step and
    /// all of it, on top of what the server asked for, if it did.
    pub fn next_delay(&mut self, retry_after: Option<Duration>) -> Duration {
        let factor = 1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        let step = self.first.saturating_mul(factor).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        let jittered = step.mul_f64(0.5 + random_fraction() / 2.0);
        retry_after.unwrap_or_default().saturating_add(jittered)
    }

    /// Begins again with the first step. Call it on progress, not on a new connection: otherwise a
    /// server that accepts and fails at once would get many attempts.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// From 0 up to but not including 1.
fn random_fraction() -> f64 {
    // Without a source of randomness, the middle of the range.
    getrandom::u32().map_or(0.5, |random| {
        f64::from(random) / (f64::from(u32::MAX) + 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(2);

    #[test]
    fn the_steps_double_up_to_the_longest() {
        let mut backoff = Backoff::new(FIRST, MAX);
        for step_ms in [100, 200, 400, 800, 1600, 2000, 2000] {
            let step = Duration::from_millis(step_ms);
            let delay = backoff.next_delay(None);
            assert!(step / 2 <= delay && delay <= step, "{delay:?} of {step:?}");
        }
        for _ in 0..100 {
            assert!(backoff.next_delay(None) <= MAX);
        }
    }

    #[test]
    fn progress_begins_again() {
        let mut backoff = Backoff::new(FIRST, MAX);
        for _ in 0..10 {
            backoff.next_delay(None);
        }
        backoff.reset();
        assert!(backoff.next_delay(None) <= FIRST);
    }

    #[test]
    fn what_the_server_asks_for_is_the_least() {
        let asked = Duration::from_secs(5);
        let delay = Backoff::new(FIRST, MAX).next_delay(Some(asked));
        assert!(asked < delay && delay <= asked + FIRST);
    }

    #[test]
    fn clients_do_not_wait_equally_long() {
        let delays: std::collections::HashSet<Duration> = (0..20)
            .map(|_| Backoff::default().next_delay(None))
            .collect();
        assert!(delays.len() > 1);
    }
}
