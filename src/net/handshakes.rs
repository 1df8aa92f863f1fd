//! Owns how many TLS handshakes there may be: so many in a second, of each address and in all, paid for
//! before any of the work is done. Clients that have proven something before have a rate of their own,
//! which a flood of others does not touch. Knows nothing of TLS.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Newcomer, network::Network};
use crate::rate::Bucket;

const SECOND: Duration = Duration::from_secs(1);

/// How many addresses are counted at once.
const ADDRESSES_MAX: usize = 4096;

/// The part that one address has of what may begin at once.
const ADDRESS_PART: u32 = 4;

/// How many handshakes there may be on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At once, after a time without any. One address has a quarter of them.
    pub at_once: u32,
    /// In a second after that. Known clients have as many again.
    pub per_second: u32,
    /// Of these, those of one IPv4 address or one IPv6 /64.
    pub per_address_per_second: u32,
}

/// The handshakes of a port.
pub struct Handshakes {
    limits: Limits,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    strangers: Bucket,
    known: Bucket,
    addresses: HashMap<Network, Bucket>,
}

impl Handshakes {
    /// None has begun yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let all = || Bucket::new(limits.per_second.into(), SECOND, limits.at_once.into(), now);
        Self {
            limits,
            buckets: Mutex::new(Buckets {
                strangers: all(),
                known: all(),
                addresses: HashMap::new(),
            }),
        }
    }

    /// When the handshake of a connection may go on. It counts from now on, whatever becomes of the
    /// connection. `None` if that would be after the deadline.
    pub(super) fn reserve(
        &self,
        newcomer: &Newcomer,
        now: Instant,
        deadline: Instant,
    ) -> Option<Instant> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let address = newcomer.peer.ip();
        // A handshake that the address may not begin takes nothing from others.
        let of_address = if newcomer.is_exempt {
            now
        } else {
            let bucket = buckets.of_address(address, self.limits, now);
            bucket.reserve(1, now, deadline)?
        };
        let all = if newcomer.is_known {
            &mut buckets.known
        } else {
            &mut buckets.strangers
        };
        let of_all = all.reserve(1, now, deadline);
        if of_all.is_none() && !newcomer.is_exempt {
            buckets.of_address(address, self.limits, now).add(1);
        }
        Some(of_all?.max(of_address))
    }
}

impl Buckets {
    fn of_address(&mut self, address: IpAddr, limits: Limits, now: Instant) -> &mut Bucket {
        let client = Network::of_client(address);
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&client) {
            self.addresses.retain(|_, bucket| !bucket.is_full(now));
            // The limit of all holds for a crowd of addresses.
            if self.addresses.len() > ADDRESSES_MAX / 2 {
                self.addresses.clear();
            }
        }
        let per_second = limits.per_address_per_second.into();
        let at_once = limits.at_once.div_ceil(ADDRESS_PART).into();
        let bucket = || Bucket::new(per_second, SECOND, at_once, now);
        self.addresses.entry(client).or_insert_with(bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::slots::Standing;

    const LIMITS: Limits = Limits {
        at_once: 40,
        per_second: 100,
        per_address_per_second: 20,
    };

    fn newcomer(address: &str) -> Newcomer {
        Newcomer {
            peer: (address.parse::<IpAddr>().unwrap(), 1).into(),
            standing: Standing::default(),
            is_exempt: false,
            is_known: false,
        }
    }

    fn known(address: &str) -> Newcomer {
        Newcomer {
            is_known: true,
            ..newcomer(address)
        }
    }

    /// How many of a flood of this client may go on by then.
    fn admitted(handshakes: &Handshakes, client: &Newcomer, now: Instant, until: Instant) -> usize {
        let flood = (0..1_000).filter_map(|_| handshakes.reserve(client, now, until));
        flood.filter(|&at| at <= until).count()
    }

    #[test]
    fn an_address_has_its_share_and_takes_nothing_else_from_others() {
        let (handshakes, now) = (Handshakes::new(LIMITS), Instant::now());
        let second = now + SECOND;
        assert_eq!(
            admitted(&handshakes, &newcomer("192.0.2.1"), now, second),
            10 + 20
        );
        // All addresses of an IPv6 host are one.
        let mut of_host = 0;
        for host in 0..20 {
            let client = newcomer(&format!("2001:db8::{host}"));
            of_host += admitted(&handshakes, &client, now, second);
        }
        assert_eq!(of_host, 10 + 20);
        // Whoever comes next goes on within what is left of the rate of all.
        let at = handshakes.reserve(&newcomer("192.0.2.2"), now, second);
        assert!(at.unwrap() <= now + SECOND * 3 / 10);
        // And those that were refused are not paid for later.
        let later = second + SECOND;
        assert!(
            handshakes
                .reserve(&newcomer("192.0.2.1"), later, later)
                .is_some()
        );
    }

    #[test]
    fn a_crowd_has_the_rate_of_all_and_known_clients_do_not_wait_for_it() {
        let (handshakes, now) = (Handshakes::new(LIMITS), Instant::now());
        let second = now + SECOND;
        let mut of_all = 0;
        for host in 0..=255 {
            let client = newcomer(&format!("192.0.2.{host}"));
            of_all += admitted(&handshakes, &client, now, second);
        }
        assert_eq!(of_all, 40 + 100);
        let known = known("198.51.100.1");
        assert_eq!(handshakes.reserve(&known, now, now), Some(now));
        // They have their share too.
        assert_eq!(admitted(&handshakes, &known, now, second), 10 + 20 - 1);
    }

    #[test]
    fn a_proxy_has_no_share() {
        let (handshakes, now) = (Handshakes::new(LIMITS), Instant::now());
        let proxy = Newcomer {
            is_exempt: true,
            ..newcomer("192.0.2.1")
        };
        assert_eq!(admitted(&handshakes, &proxy, now, now + SECOND), 40 + 100);
    }

    #[test]
    fn counted_addresses_are_bounded() {
        let (handshakes, now) = (Handshakes::new(LIMITS), Instant::now());
        for number in 0..3 * ADDRESSES_MAX as u32 {
            let address = IpAddr::from(number.to_be_bytes());
            let client = newcomer(&address.to_string());
            let _ = handshakes.reserve(&client, now, now + SECOND);
            let counted = handshakes.buckets.lock().unwrap().addresses.len();
            assert!(counted <= ADDRESSES_MAX);
        }
    }
}
