//! Owns how many JWTs of one address are verified in vain: so many in a second, whatever they are and on however
//! many connections they come. A verification is paid for before it begins, because it costs the same whether
//! the JWT is accepted or not, and what is accepted gets its payment back. A JWT that was accepted lately pays
//! nothing, so whoever shares the address of a flood goes on. Knows nothing of keys and claims.

use std::{
    collections::HashMap,
    mem,
    net::{IpAddr, Ipv4Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    credentials::token::Digest,
    net::{known::Known, network::Network},
    rate::Bucket,
};

/// How many verifications of an address may be in vain at once, after a time without any: whoever sets a client
/// up and tries wrong JWTs never notices the limit.
const FAILED_AT_ONCE: u64 = 100;
/// How many in a second after that. One takes 20 µs to 2 ms, by its key, so an address gets at most a tenth of a
/// core, and usually a five-hundredth.
const FAILED_PER_SECOND: u64 = 50;
/// The same of all addresses that many clients share, such as proxies, together: so many times as much.
const SHARED_PART: u64 = 16;
/// How long one waits for its turn. Well below the time that a client has.
const TURN_WAIT_MAX: Duration = Duration::from_secs(1);
/// No more is owed than what comes in within so long.
const OWED_MAX: Duration = Duration::from_secs(60);
/// How many addresses are remembered at least.
const ADDRESSES_MIN: usize = 1024;
/// How many accepted JWTs are remembered at least.
const ACCEPTED_MIN: usize = 4096;

/// The attempts of all addresses.
pub(super) struct Attempts(Mutex<Remembered>);

struct Remembered {
    latest: HashMap<Network, Bucket>,
    /// What `latest` was when it was full.
    before: HashMap<Network, Bucket>,
    accepted: Known<Digest>,
}

/// A JWT that is about to be verified. What it costs is settled when this is dropped, whatever became of it.
pub(super) struct Attempt<'a> {
    attempts: &'a Attempts,
    client: Option<Network>,
    token: Digest,
    /// When it may be verified.
    pub(super) turn: Instant,
    paid: u64,
    /// How many keys were tried.
    pub(super) tried: u64,
    is_accepted: bool,
}

impl Attempts {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Remembered {
            latest: HashMap::new(),
            before: HashMap::new(),
            accepted: Known::new(ACCEPTED_MIN),
        }))
    }

    /// Begins with a JWT of an address; `None` for one that many clients share. Nothing if the address has no
    /// turn soon.
    pub(super) fn begin(&self, address: Option<IpAddr>, token: &str) -> Option<Attempt<'_>> {
        let now = Instant::now();
        let (client, token) = (address.map(Network::of_client), Digest::of(token));
        let mut remembered = self.lock();
        let is_known = remembered.accepted.contains(token);
        let turn = if is_known {
            now
        } else {
            let bucket = remembered.bucket(client, now);
            bucket.reserve(1, now, now + TURN_WAIT_MAX)?
        };
        Some(Attempt {
            attempts: self,
            client,
            token,
            turn,
            paid: u64::from(!is_known),
            tried: 0,
            is_accepted: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn bucket(&mut self, client: Option<Network>, now: Instant) -> &mut Bucket {
        // An address that nobody has.
        let nobody = || Network::single(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let part = if client.is_none() { SHARED_PART } else { 1 };
        let client = client.unwrap_or_else(nobody);
        if self.latest.len() >= ADDRESSES_MIN && !self.latest.contains_key(&client) {
            self.before = mem::take(&mut self.latest);
        }
        let before = self.before.remove(&client);
        self.latest.entry(client).or_insert_with(|| {
            let new = || {
                let (per_second, at_once) = (part * FAILED_PER_SECOND, part * FAILED_AT_ONCE);
                Bucket::new(per_second, Duration::from_secs(1), at_once, now)
            };
            before.unwrap_or_else(new)
        })
    }
}

impl Attempt<'_> {
    /// It was accepted.
    pub(super) fn accepted(mut self) {
        self.is_accepted = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut remembered = self.attempts.lock();
        let cost = if self.is_accepted {
            remembered.accepted.insert(self.token);
            0
        } else {
            remembered.accepted.remove(self.token);
            self.tried
        };
        let now = Instant::now();
        let bucket = remembered.bucket(self.client, now);
        bucket.add(self.paid.saturating_sub(cost));
        // What is owed beyond a minute is not counted.
        let deadline = now + OWED_MAX;
        let _ = bucket.reserve(cost.saturating_sub(self.paid), now, deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Option<IpAddr> {
        Some(IpAddr::from((0x0a00_0000 + number).to_be_bytes()))
    }

    fn refuse(mut attempt: Attempt<'_>, keys_tried: u64) {
        attempt.tried += keys_tried;
    }

    /// Refuses JWTs of an address until it has no more turn at once. Returns how many.
    fn exhaust(attempts: &Attempts, address: Option<IpAddr>) -> u64 {
        let mut refused = 0;
        loop {
            let attempt = attempts.begin(address, "forged").unwrap();
            if attempt.turn > Instant::now() {
                return refused;
            }
            refuse(attempt, 1);
            refused += 1;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_vain_has_a_rate_for_each_address() {
        let attempts = Attempts::new();
        assert_eq!(exhaust(&attempts, address(1)), FAILED_AT_ONCE);
        let since = Instant::now();
        let mut refused = 0;
        while let Some(attempt) = attempts.begin(address(1), "forged") {
            assert!(attempt.turn <= since + TURN_WAIT_MAX);
            refuse(attempt, 1);
            refused += 1;
        }
        assert!(refused <= FAILED_PER_SECOND, "{refused}");
        // Others have their own.
        assert_eq!(exhaust(&attempts, address(2)), FAILED_AT_ONCE);
        let shared = exhaust(&attempts, None);
        assert_eq!(shared, SHARED_PART * FAILED_AT_ONCE);
        tokio::time::advance(2 * TURN_WAIT_MAX).await;
        assert!(attempts.begin(address(1), "forged").unwrap().turn <= Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_accepted_costs_nothing_and_never_waits_again() {
        let attempts = Attempts::new();
        for number in 0..1_000 {
            let attempt = attempts.begin(address(1), &format!("genuine {number}"));
            attempt.unwrap().accepted();
        }
        assert_eq!(exhaust(&attempts, address(1)), FAILED_AT_ONCE);
        let known = attempts.begin(address(1), "genuine 999").unwrap();
        assert!(known.turn <= Instant::now());
        // Until it is refused, for which it pays like any other.
        refuse(known, 1);
        let refused = attempts.begin(address(1), "genuine 999").unwrap();
        assert!(refused.turn > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_that_is_tried_in_vain_is_paid_for_and_nothing_else() {
        let attempts = Attempts::new();
        for _ in 0..10 * FAILED_AT_ONCE {
            drop(attempts.begin(address(1), "unknown key"));
        }
        for _ in 0..FAILED_AT_ONCE / 20 {
            refuse(attempts.begin(address(1), "forged").unwrap(), 20);
        }
        assert!(attempts.begin(address(1), "forged").unwrap().turn > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_without_number_take_no_memory_without_bound() {
        let attempts = Attempts::new();
        for number in 0..10 * ADDRESSES_MIN as u32 {
            refuse(attempts.begin(address(number), "forged").unwrap(), 1);
            let remembered = attempts.lock();
            let count = remembered.latest.len() + remembered.before.len();
            assert!(count <= 2 * ADDRESSES_MIN);
        }
        // One that goes on stays.
        exhaust(&attempts, address(0));
        for number in 1..2 * ADDRESSES_MIN as u32 {
            refuse(attempts.begin(address(number), "forged").unwrap(), 1);
            if number % 500 == 0 {
                let attempt = attempts.begin(address(0), "forged");
                assert!(attempt.unwrap().turn > Instant::now());
            }
        }
    }
}
