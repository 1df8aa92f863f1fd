//! Owns how many TLS handshakes there may be: so many in a second, of each address, of each network around
//! it and in all, paid for before any of the work is done. Clients that have proven something before have a
//! rate of their own, which a flood of others does not touch, and so have proxies. Knows nothing of TLS.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Newcomer,
    groups::{GROUPS, groups_of},
    network::Network,
};
use crate::rate::Bucket;

const SECOND: Duration = Duration::from_secs(1);

/// How many addresses and networks are counted at once.
const COUNTED_MAX: usize = 4096;

/// The part that one address has of what may begin at once.
const ADDRESS_PART: u32 = 4;

/// The part that the strangers of one network have at most, so that some is left for others.
const NETWORK_PART: u32 = 2;

/// How many handshakes there may be on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At once, after a time without any. One address has a quarter of them.
    pub at_once: u32,
    /// In a second after that. Known clients have as many again, and so have addresses that many clients
    /// share.
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
    /// Those of addresses that many clients share.
    exempt: Bucket,
    shares: HashMap<Network, Bucket>,
}

/// What one address may begin, or the strangers of a network together.
struct Share {
    of: Network,
    per_second: u32,
    at_once: u32,
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
                exempt: all(),
                shares: HashMap::new(),
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
        let shares = self.shares_of(newcomer);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.reserve(&shares, newcomer, now, deadline)
    }

    /// The shares that a handshake counts in, the largest network first: a refused one is not remembered
    /// for each address of it.
    fn shares_of(&self, newcomer: &Newcomer) -> Vec<Share> {
        let Limits {
            at_once,
            per_second,
            per_address_per_second,
        } = self.limits;
        if newcomer.is_exempt {
            return Vec::new();
        }
        let client = Network::of_client(newcomer.peer.ip());
        let of_client = Share {
            of: client,
            per_second: per_address_per_second,
            at_once: at_once.div_ceil(ADDRESS_PART),
        };
        if newcomer.is_known {
            return vec![of_client];
        }
        let part = |of_address: u32, shares: usize, all: u32| {
            let shares = u32::try_from(shares).unwrap_or(u32::MAX);
            // One address may have been given more than that.
            let most = (all / NETWORK_PART).max(of_address);
            of_address.saturating_mul(shares).min(most)
        };
        let groups = groups_of(client).into_iter().zip(&GROUPS).rev();
        let of_groups = groups.map(|(of, grouping)| Share {
            of,
            per_second: part(of_client.per_second, grouping.shares, per_second),
            at_once: part(of_client.at_once, grouping.shares, at_once),
        });
        let mut shares: Vec<_> = of_groups.collect();
        shares.push(of_client);
        shares
    }
}

impl Buckets {
    /// Reserves from all of these shares, then from what all have. One that refuses takes nothing from
    /// the others.
    fn reserve(
        &mut self,
        shares: &[Share],
        newcomer: &Newcomer,
        now: Instant,
        deadline: Instant,
    ) -> Option<Instant> {
        let [share, others @ ..] = shares else {
            return self.of_all(newcomer).reserve(1, now, deadline);
        };
        let at = self.of_share(share, now).reserve(1, now, deadline)?;
        let others_at = self.reserve(others, newcomer, now, deadline);
        if others_at.is_none() {
            self.of_share(share, now).add(1);
        }
        Some(others_at?.max(at))
    }

    fn of_all(&mut self, newcomer: &Newcomer) -> &mut Bucket {
        if newcomer.is_exempt {
            &mut self.exempt
        } else if newcomer.is_known {
            &mut self.known
        } else {
            &mut self.strangers
        }
    }

    fn of_share(&mut self, share: &Share, now: Instant) -> &mut Bucket {
        if self.shares.len() >= COUNTED_MAX && !self.shares.contains_key(&share.of) {
            self.shares.retain(|_, bucket| !bucket.is_full(now));
            // The limit of all holds for a crowd of addresses.
            if self.shares.len() > COUNTED_MAX / 2 {
                self.shares.clear();
            }
        }
        let (per_second, at_once) = (share.per_second.into(), share.at_once.into());
        let bucket = || Bucket::new(per_second, SECOND, at_once, now);
        self.shares.entry(share.of).or_insert_with(bucket)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

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
            let client = newcomer(&format!("198.{host}.2.1"));
            of_all += admitted(&handshakes, &client, now, second);
        }
        assert_eq!(of_all, 40 + 100);
        let known = known("198.51.100.1");
        assert_eq!(handshakes.reserve(&known, now, now), Some(now));
        // They have their share too.
        assert_eq!(admitted(&handshakes, &known, now, second), 10 + 20 - 1);
    }

    #[test]
    fn the_strangers_of_a_network_leave_half_to_others() {
        for address in [
            Box::new(|number| format!("2001:db8:1:{number:x}::1")) as Box<dyn Fn(usize) -> String>,
            Box::new(|number| format!("2001:db8:{number:x}::1")),
            Box::new(|number| format!("192.0.2.{number}")),
            Box::new(|number| format!("192.0.{number}.1")),
        ] {
            let (handshakes, now) = (Handshakes::new(LIMITS), Instant::now());
            let second = now + SECOND;
            let flood = |from: usize| -> usize {
                let clients = (from..from + 40).map(|number| newcomer(&address(number)));
                clients
                    .map(|client| admitted(&handshakes, &client, now, second))
                    .sum()
            };
            assert_eq!(flood(0), 20 + 50);
            assert_eq!(flood(100), 0);
            let fresh = newcomer("198.51.100.1");
            assert!(handshakes.reserve(&fresh, now, second).is_some());
            // What the network was refused is given back: its addresses have theirs later.
            let later = second + SECOND;
            let client = newcomer(&address(0));
            assert_eq!(handshakes.reserve(&client, later, later), Some(later));
            // It is no limit for clients that are known.
            let known = known(&address(200));
            assert_eq!(handshakes.reserve(&known, now, now), Some(now));
        }
    }

    #[test]
    fn a_network_has_no_less_than_one_address_of_it() {
        let limits = Limits {
            per_address_per_second: 100,
            ..LIMITS
        };
        let (handshakes, now) = (Handshakes::new(limits), Instant::now());
        let client = newcomer("192.0.2.1");
        assert_eq!(admitted(&handshakes, &client, now, now + SECOND), 10 + 100);
    }

    #[test]
    fn a_proxy_has_no_share() {
        let (handshakes, now) = (Handshakes::new(LIMITS), Instant::now());
        let proxy = Newcomer {
            is_exempt: true,
            ..newcomer("192.0.2.1")
        };
        for host in 0..=255 {
            let stranger = newcomer(&format!("198.{host}.2.1"));
            admitted(&handshakes, &stranger, now, now + SECOND);
        }
        // Nor does it wait for strangers.
        assert_eq!(admitted(&handshakes, &proxy, now, now + SECOND), 40 + 100);
    }

    #[test]
    fn counted_addresses_are_bounded() {
        let (handshakes, now) = (Handshakes::new(LIMITS), Instant::now());
        for number in 0..3 * COUNTED_MAX as u32 {
            let address = IpAddr::from((number << 16).to_be_bytes());
            let client = newcomer(&address.to_string());
            let _ = handshakes.reserve(&client, now, now + SECOND);
            let counted = handshakes.buckets.lock().unwrap().shares.len();
            assert!(counted <= COUNTED_MAX);
        }
    }
}
