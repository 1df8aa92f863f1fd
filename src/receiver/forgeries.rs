//! Owns what forged deliveries may cost: so many verifications in a second and no more, whichever
//! addresses they come from, also when a proxy makes them all one, and however their senders behave.
//!
//! Verifying costs the same whether a delivery is forged or not, so it is paid for before it begins,
//! and given back for what turns out to be genuine. While there is nothing left to pay with, a
//! delivery waits for its turn:
//!
//! - **before it is verified**, for a second at most, unless the last delivery of its client
//!   was genuine. A genuine delivery whose client's last one was forged, because a proxy makes the two
//!   one, is kept only that long. Whoever closes its side of the connection meanwhile is not verified,
//!   also if it was genuine, and has cost nothing: no answer could slow it down afterwards.
//! - **before it is answered**, for the rest of that turn, if it was forged. The answer is worth nothing
//!   to its sender, who cannot send the next one on that connection meanwhile.
//!
//! Knows nothing of keys and signatures.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    net::{known::Known, network::Network},
    rate::Bucket,
};

/// How long a delivery waits before it is verified. Well below the time that a request has, as it may
/// be genuine; and so the connections of a flood have one verification in a second each at most.
const TURN_WAIT_MAX: Duration = Duration::from_secs(1);

/// How many clients are known at least to have sent something genuine last. Only signed deliveries get a client
/// among them, so strangers cannot fill it.
const PROVEN_MIN: usize = 1024;

/// How many forged deliveries are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Verified and answered at once, after a time without any: whoever sets a sender up
    /// and tries wrong keys is never kept waiting.
    pub at_once: u32,
    /// Verified in a second after that. A delivery counts as
    /// one if it is small and there is one key of 2048 bits to try, and for more where it costs more.
    pub per_second: u32,
}

/// The turns of all deliveries.
pub(super) struct Forgeries {
    turns: Mutex<Turns>,
}

struct Turns {
    /// What verifications are paid with. Those that are still to come are paid with too: a turn is
    /// when they will be there.
    tokens: Bucket,
    /// The clients whose last delivery was genuine.
    proven: Known,
}

/// A delivery that is about to be verified. Dropped before its outcome is known, it gives back what it
/// paid.
pub(super) struct Trial<'f> {
    forgeries: &'f Forgeries,
    client: Network,
    cost: u32,
    deadline: Instant,
    /// `None` for a proven client, who pays only for a forgery.
    turn: Option<Turn>,
    is_open: bool,
}

#[derive(Clone, Copy)]
struct Turn {
    at: Instant,
    paid: u32,
}

impl Forgeries {
    pub(super) fn new(limits: Limits) -> Self {
        let (per_second, at_once) = (limits.per_second.into(), limits.at_once.into());
        let second = Duration::from_secs(1);
        Self {
            turns: Mutex::new(Turns {
                tokens: Bucket::new(per_second, second, at_once, Instant::now()),
                proven: Known::new(PROVEN_MIN),
            }),
        }
    }

    /// Begins with a delivery of this cost. No turn of it lies beyond `deadline`: whoever has waited
    /// that long has been slowed down enough.
    pub(super) fn trial(&self, client: Network, cost: u32, deadline: Instant) -> Trial<'_> {
        let is_proven = self.lock().proven.contains(client);
        let now = Instant::now();
        Trial {
            forgeries: self,
            client,
            cost,
            deadline,
            turn: (!is_proven).then(|| self.reserve(now, cost, deadline)),
            is_open: true,
        }
    }

    fn reserve(&self, now: Instant, cost: u32, deadline: Instant) -> Turn {
        match self.lock().tokens.reserve(cost.into(), now, deadline) {
            Some(at) => Turn { at, paid: cost },
            // The turn stays for somebody else.
            None => Turn {
                at: deadline,
                paid: 0,
            },
        }
    }

    fn give_back(&self, turn: Turn) {
        self.lock().tokens.add(turn.paid.into());
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trial<'_> {
    /// Waits until the delivery may be verified. `None` where there is nothing to wait for.
    pub(super) fn turn(&self) -> Option<impl Future<Output = ()> + use<>> {
        let now = Instant::now();
        let at = self.turn.filter(|turn| turn.at > now)?.at;
        Some(tokio::time::sleep_until(at.min(now + TURN_WAIT_MAX)))
    }

    /// The delivery was genuine.
    pub(super) fn genuine(&mut self) {
        self.close();
        self.forgeries.lock().proven.insert(self.client);
    }

    /// The delivery was forged. Returns when it may be answered.
    pub(super) fn forged(&mut self) -> Instant {
        self.forgeries.lock().proven.remove(self.client);
        self.pay()
    }

    /// A key was tried in vain, and another one might have verified the delivery. It is paid for like a forgery,
    /// but its client stays known.
    pub(super) fn undecided(&mut self) {
        self.pay();
    }

    fn pay(&mut self) -> Instant {
        self.is_open = false;
        let now = Instant::now();
        let reserve = || self.forgeries.reserve(now, self.cost, self.deadline);
        self.turn.unwrap_or_else(reserve).at
    }

    /// Whether the outcome is not known yet.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// What was paid is given back.
    fn close(&mut self) {
        self.is_open = false;
        if let Some(turn) = self.turn.take() {
            self.forgeries.give_back(turn);
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures_util::FutureExt as _;

    use super::*;

    const LIMITS: Limits = Limits {
        at_once: 10,
        per_second: 100,
    };

    fn client(number: u8) -> Network {
        Network::single(IpAddr::from([192, 0, 2, number]))
    }

    /// How long a delivery waits before it is verified.
    fn wait(trial: &Trial<'_>) -> impl Future<Output = Duration> + use<> {
        let turn = trial.turn();
        async {
            let since = Instant::now();
            if let Some(turn) = turn {
                turn.await;
            }
            since.elapsed()
        }
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test(start_paused = true)]
    async fn some_are_taken_at_once_and_then_so_many_in_a_second() {
        let forgeries = Forgeries::new(LIMITS);
        tokio::time::advance(Duration::from_secs(60)).await;
        let since = Instant::now();
        for _ in 0..10 {
            let mut trial = forgeries.trial(client(1), 1, in_a_minute());
            assert!(trial.turn().is_none());
            assert!(trial.forged() <= since);
        }
        for number in 0..200 {
            // From wherever they come.
            let mut trial = forgeries.trial(client(number), 1, in_a_minute());
            wait(&trial).await;
            tokio::time::sleep_until(trial.forged()).await;
        }
        assert_eq!(since.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_before_or_beyond_the_deadline_after() {
        let forgeries = Forgeries::new(LIMITS);
        let since = Instant::now();
        let deadline = since + Duration::from_secs(8);
        for _ in 0..10_000 {
            let mut trial = forgeries.trial(client(1), 1, deadline);
            assert!(
                wait(&trial)
                    .now_or_never()
                    .is_none_or(|wait| wait.is_zero())
            );
            assert!(trial.forged() <= deadline);
        }
        let trial = forgeries.trial(client(2), 1, deadline);
        assert_eq!(wait(&trial).await, TURN_WAIT_MAX);
        drop(trial);
        // The turns that were given reach as far as the deadline and no further.
        tokio::time::sleep_until(deadline).await;
        let trial = forgeries.trial(client(2), 1, in_a_minute());
        assert!(wait(&trial).await <= Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_genuine_last_does_not_wait_and_pays_for_a_forgery() {
        let forgeries = Forgeries::new(LIMITS);
        forgeries.trial(client(1), 1, in_a_minute()).genuine();
        for _ in 0..30 {
            forgeries.trial(client(2), 1, in_a_minute()).forged();
        }
        let mut proven = forgeries.trial(client(1), 1, in_a_minute());
        assert!(proven.turn().is_none());
        let at = proven.forged();
        assert!(at > Instant::now());
        // And waits like the others from then on, until the next genuine one.
        let mut again = forgeries.trial(client(1), 1, in_a_minute());
        assert!(again.turn.unwrap().at > at);
        assert!(!wait(&again).await.is_zero());
        again.genuine();
        for _ in 0..30 {
            forgeries.trial(client(2), 1, in_a_minute()).forged();
        }
        assert!(
            forgeries
                .trial(client(1), 1, in_a_minute())
                .turn()
                .is_none()
        );
        assert!(
            forgeries
                .trial(client(2), 1, in_a_minute())
                .turn()
                .is_some()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_genuine_or_given_up_before_it_is_verified_costs_nothing() {
        let forgeries = Forgeries::new(LIMITS);
        for number in 0..100 {
            forgeries.trial(client(number), 5, in_a_minute()).genuine();
            drop(forgeries.trial(client(200), 5, in_a_minute()));
        }
        assert!(
            forgeries
                .trial(client(201), 10, in_a_minute())
                .turn()
                .is_none()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_decided_is_paid_for_and_its_client_stays_known() {
        let forgeries = Forgeries::new(LIMITS);
        forgeries.trial(client(1), 1, in_a_minute()).genuine();
        for _ in 0..20 {
            forgeries.trial(client(1), 1, in_a_minute()).undecided();
        }
        let known = forgeries.trial(client(1), 1, in_a_minute());
        assert!(known.turn().is_none());
        let other = forgeries.trial(client(2), 1, in_a_minute());
        assert_eq!(wait(&other).await.as_millis(), 110);
    }

    #[tokio::test(start_paused = true)]
    async fn what_costs_more_pays_more() {
        let forgeries = Forgeries::new(LIMITS);
        let since = Instant::now();
        for _ in 0..20 {
            forgeries.trial(client(1), 6, in_a_minute()).forged();
        }
        // Of 120, 10 were saved up.
        let turn = forgeries.trial(client(1), 1, in_a_minute()).turn.unwrap();
        assert_eq!((turn.at - since).as_millis(), 1_110);
    }
}
