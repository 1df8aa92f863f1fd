//! Owns how fast forged deliveries are answered. What a forgery costs is known only once it has been
//! paid for, so genuine deliveries never wait in front of the keys; who forges waits afterwards, for
//! an answer that is worth nothing, and meanwhile cannot send the next one on that connection. So a
//! flood of forgeries gets a few hundred verifications in a second and no more, whichever addresses
//! it comes from, also when a proxy makes them all one.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How many forged deliveries are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Answered at once, after a time without any. Default 100: whoever sets a sender up and tries
    /// wrong keys is never kept waiting.
    pub at_once: u32,
    /// Answered in a second after that. Default 500: some hundredths of a core.
    pub per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            at_once: 100,
            per_second: 500,
        }
    }
}

/// The turns of the answers.
pub(super) struct Forgeries {
    /// Between two answers.
    interval: Duration,
    /// How far the turns may lie back without being lost.
    burst: Duration,
    next: Mutex<Instant>,
}

impl Forgeries {
    pub(super) fn new(limits: Limits) -> Self {
        let interval = Duration::from_secs(1) / limits.per_second.max(1);
        let burst = interval * limits.at_once;
        let now = Instant::now();
        Self {
            interval,
            burst,
            next: Mutex::new(now.checked_sub(burst).unwrap_or(now)),
        }
    }

    /// Waits for the turn of an answer, but not beyond `deadline`: whoever has waited that long has
    /// been slowed down enough.
    pub(super) async fn turn(&self, deadline: Instant) {
        tokio::time::sleep_until(self.reserve(Instant::now(), deadline)).await;
    }

    fn reserve(&self, now: Instant, deadline: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // A burst is what was saved up in the time without forgeries.
        let saved = now.checked_sub(self.burst).unwrap_or(now);
        let turn = (*next).max(saved) + self.interval;
        if turn > deadline {
            // The turn stays for somebody else.
            return deadline;
        }
        *next = turn;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        at_once: 10,
        per_second: 100,
    };

    #[tokio::test(start_paused = true)]
    async fn some_are_answered_at_once_and_then_so_many_in_a_second() {
        let forgeries = Forgeries::new(LIMITS);
        tokio::time::advance(Duration::from_secs(60)).await;
        let since = Instant::now();
        let deadline = since + Duration::from_secs(8);
        for _ in 0..10 {
            forgeries.turn(deadline).await;
        }
        assert_eq!(since.elapsed(), Duration::ZERO);
        for _ in 0..200 {
            forgeries.turn(deadline).await;
        }
        assert_eq!(since.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_deadline_or_pushes_others_back_for_ever() {
        let forgeries = Forgeries::new(LIMITS);
        let since = Instant::now();
        let deadline = since + Duration::from_secs(1);
        let turns: Vec<_> = (0..10_000)
            .map(|_| forgeries.reserve(since, deadline))
            .collect();
        assert!(turns.iter().all(|turn| *turn <= deadline));
        // The turns that were given reach as far as the deadline and no further.
        let later = since + Duration::from_secs(2);
        let next = forgeries.reserve(later, later + Duration::from_secs(1));
        assert!(next <= later, "{:?}", next - later);
    }
}
