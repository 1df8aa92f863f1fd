//! Owns a limited number of slots and who holds them: so many in all, so many for each address, and
//! none for good to a holder that has proven nothing. A newcomer for whom there is no slot takes the
//! one of a holder that is still unproven. Only where everybody has proven something is the newcomer
//! refused. Knows nothing of what a slot is for, nor of what proves somebody.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::network::Network;

/// How many slots there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub slots_max: usize,
    /// For one IPv4 address or one IPv6 /64, which is what one client gets. All clients of an IPv6
    /// /48 together have four times as many.
    pub slots_per_address_max: usize,
}

/// The prefix of the most that a customer of a network is usually given (RFC 6177).
const SITE_PREFIX_BITS: u8 = 48;

/// How many shares an IPv6 /48 has, which is the most that a customer of a network is usually given:
/// it holds 65,536 times a /64, and must not have a share for each.
const SHARES_PER_SITE: usize = 4;

/// Which of the two limits a newcomer met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All slots are taken.
    Total,
    /// Those of the newcomer's address are, or of its IPv6 /48.
    Address,
}

/// Whether a holder has proven something, such as a credential. Clones share it. It is never taken
/// back.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<AtomicBool>);

impl Standing {
    /// From now on the holder keeps its slot.
    pub fn prove(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it has.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The same holder.
impl PartialEq for Standing {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Standing {}

/// Who is told that a slot was taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// The limit that the newcomer met.
    pub limit: Full,
    /// The address whose holder lost its slot.
    pub address: IpAddr,
}

/// All slots of one kind.
#[derive(Debug)]
pub struct Slots {
    limits: Limits,
    holders: Mutex<Holders>,
}

#[derive(Debug, Default)]
struct Holders {
    count: usize,
    /// The number of the next holder: a lower one came earlier.
    next: u64,
    clients: HashMap<IpAddr, Client>,
    /// The holders of each IPv6 /48.
    sites: HashMap<Network, usize>,
    /// The clients with holders that may be evicted, the one to begin with last.
    ranks: BTreeSet<Rank>,
}

/// How many holders of a client may be evicted, then the oldest of them.
type Rank = (usize, Reverse<u64>, IpAddr);

/// The holders of one address.
#[derive(Debug, Default)]
struct Client {
    count: usize,
    /// Those that were unproven when they were last looked at, by age.
    unproven: BTreeMap<u64, Candidate>,
}

#[derive(Debug)]
struct Candidate {
    standing: Standing,
    evicted: CancellationToken,
}

/// A slot, given back when dropped, or taken by somebody else before.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    client: IpAddr,
    number: u64,
    evicted: CancellationToken,
}

impl Slots {
    /// All of them are free.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            holders: Mutex::default(),
        })
    }

    /// Gives a slot to a newcomer. `standing` says whether it may lose it again; without one it
    /// keeps it. `is_exempt` is for addresses that many clients share, which have no limit of their
    /// own.
    ///
    /// # Errors
    /// The limit that was met while nobody could be evicted.
    pub fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        is_exempt: bool,
        standing: Option<Standing>,
    ) -> Result<(Slot, Option<Evicted>), Full> {
        let client = Network::of_client(address).address();
        let mut holders = self.lock();
        let share = self.limits.slots_per_address_max;
        let evicted = if !is_exempt && holders.count_of(client) >= share {
            let own = holders.evict_from(client).then_some(client);
            Some((Full::Address, own))
        } else if !is_exempt
            && holders.count_of_site(client) >= share.saturating_mul(SHARES_PER_SITE)
        {
            let own = holders.evict_from(client).then_some(client);
            let evicted =
                own.or_else(|| holders.evict_from_most(|other| site(other) == site(client)));
            Some((Full::Address, evicted))
        } else if holders.count >= self.limits.slots_max {
            let own = holders.evict_from(client).then_some(client);
            Some((
                Full::Total,
                own.or_else(|| holders.evict_from_most(|_| true)),
            ))
        } else {
            None
        };
        let evicted = match evicted {
            None => None,
            Some((limit, Some(address))) => Some(Evicted { limit, address }),
            Some((limit, None)) => return Err(limit),
        };
        let (number, evicted_token) = holders.add(client, standing);
        drop(holders);
        let slot = Slot {
            slots: Arc::clone(self),
            client,
            number,
            evicted: evicted_token,
        };
        Ok((slot, evicted))
    }

    fn lock(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holders {
    fn count_of(&self, client: IpAddr) -> usize {
        self.clients.get(&client).map_or(0, |client| client.count)
    }

    fn count_of_site(&self, client: IpAddr) -> usize {
        let count = site(client).and_then(|site| self.sites.get(&site));
        count.copied().unwrap_or_default()
    }

    /// One holder more.
    fn entered(&mut self, client: IpAddr) {
        self.count += 1;
        if let Some(site) = site(client) {
            *self.sites.entry(site).or_default() += 1;
        }
    }

    /// One holder less.
    fn left(&mut self, client: IpAddr) {
        self.count -= 1;
        let Some(site) = site(client) else {
            return;
        };
        if let Some(count) = self.sites.get_mut(&site) {
            *count -= 1;
            if *count == 0 {
                self.sites.remove(&site);
            }
        }
    }

    fn add(&mut self, client: IpAddr, standing: Option<Standing>) -> (u64, CancellationToken) {
        let number = self.next;
        self.next += 1;
        self.entered(client);
        let evicted = CancellationToken::new();
        let candidate = standing.map(|standing| Candidate {
            standing,
            evicted: evicted.clone(),
        });
        self.change(client, |client| {
            client.count += 1;
            client
                .unproven
                .extend(candidate.map(|candidate| (number, candidate)));
        });
        (number, evicted)
    }

    /// Evicts the oldest unproven holder of a client. Those that are found proven keep their slots
    /// and are not looked at again.
    fn evict_from(&mut self, client: IpAddr) -> bool {
        if !self.clients.contains_key(&client) {
            return false;
        }
        let is_evicted = self.change(client, |client| {
            while let Some((_, candidate)) = client.unproven.pop_first() {
                if !candidate.standing.is_proven() {
                    candidate.evicted.cancel();
                    client.count -= 1;
                    return true;
                }
            }
            false
        });
        if is_evicted {
            self.left(client);
        }
        is_evicted
    }

    /// Evicts from the client that holds the most unproven slots, of those that may be chosen.
    fn evict_from_most(&mut self, may_be: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        loop {
            let mut ranks = self.ranks.iter().rev();
            let &(_, _, client) = ranks.find(|&&(_, _, client)| may_be(client))?;
            // Finds none where all have proven themselves since, and takes the rank away then.
            if self.evict_from(client) {
                return Some(client);
            }
        }
    }

    fn remove(&mut self, client: IpAddr, number: u64) {
        self.left(client);
        self.change(client, |client| {
            client.count -= 1;
            client.unproven.remove(&number);
        });
    }

    /// Changes what a client holds, and its rank with it.
    fn change<T>(&mut self, address: IpAddr, change: impl FnOnce(&mut Client) -> T) -> T {
        let client = self.clients.entry(address).or_default();
        let before = client.rank(address);
        let changed = change(client);
        let after = client.rank(address);
        if client.count == 0 {
            self.clients.remove(&address);
        }
        if before != after {
            if let Some(rank) = before {
                self.ranks.remove(&rank);
            }
            self.ranks.extend(after);
        }
        changed
    }
}

impl Client {
    fn rank(&self, address: IpAddr) -> Option<Rank> {
        let (&oldest, _) = self.unproven.first_key_value()?;
        Some((self.unproven.len(), Reverse(oldest), address))
    }
}

impl Slot {
    /// Resolves when somebody else has taken the slot.
    pub fn evicted(&self) -> WaitForCancellationFutureOwned {
        self.evicted.clone().cancelled_owned()
    }

    /// Whether somebody else has.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut holders = self.slots.lock();
        // Looked at under the lock, where it is also done.
        if !self.evicted.is_cancelled() {
            holders.remove(self.client, self.number);
        }
    }
}

/// The IPv6 /48 that a client is in.
fn site(client: IpAddr) -> Option<Network> {
    let is_ipv6 = client.is_ipv6();
    is_ipv6.then(|| Network::around(client, SITE_PREFIX_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(slots_max: usize, slots_per_address_max: usize) -> Arc<Slots> {
        Slots::new(Limits {
            slots_max,
            slots_per_address_max,
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Enters with a standing of its own.
    fn enter(slots: &Arc<Slots>, from: &str) -> Result<(Slot, Standing, Option<Evicted>), Full> {
        let standing = Standing::default();
        let (slot, evicted) = slots.enter(address(from), false, Some(standing.clone()))?;
        Ok((slot, standing, evicted))
    }

    /// Nothing is kept of holders that are gone.
    fn assert_empty(slots: &Slots) {
        let holders = slots.lock();
        assert_eq!(holders.count, 0);
        assert!(holders.clients.is_empty(), "{holders:?}");
        assert!(holders.ranks.is_empty(), "{holders:?}");
        assert!(holders.sites.is_empty(), "{holders:?}");
    }

    #[test]
    fn a_newcomer_takes_the_slot_of_the_oldest_unproven_holder_of_its_address() {
        let slots = slots(10, 3);
        let held: Vec<_> = (0..3)
            .map(|_| enter(&slots, "192.0.2.1").unwrap())
            .collect();
        let _other = enter(&slots, "192.0.2.2").unwrap();
        held[0].1.prove();
        let (newcomer, _, evicted) = enter(&slots, "192.0.2.1").unwrap();
        assert_eq!(
            evicted,
            Some(Evicted {
                limit: Full::Address,
                address: address("192.0.2.1")
            })
        );
        let are_evicted: Vec<bool> = held.iter().map(|(slot, ..)| slot.is_evicted()).collect();
        assert_eq!(are_evicted, [false, true, false]);
        drop((held, newcomer, _other));
        assert_empty(&slots);
    }

    #[test]
    fn whoever_has_proven_something_keeps_its_slot() {
        let slots = slots(3, 2);
        let (first, standing, _) = enter(&slots, "192.0.2.1").unwrap();
        standing.prove();
        // Without a standing it is never evicted either.
        let second = slots.enter(address("192.0.2.1"), false, None).unwrap();
        assert_eq!(enter(&slots, "192.0.2.1").unwrap_err(), Full::Address);
        let (third, standing, _) = enter(&slots, "192.0.2.2").unwrap();
        standing.prove();
        assert_eq!(enter(&slots, "192.0.2.3").unwrap_err(), Full::Total);
        // One that was found proven counts until it goes.
        drop(third);
        let fourth = enter(&slots, "192.0.2.3").unwrap();
        assert!(!first.is_evicted() && !second.0.is_evicted());
        drop((first, second, fourth));
        assert_empty(&slots);
    }

    #[test]
    fn when_all_slots_are_taken_the_address_with_the_most_unproven_holders_loses_one() {
        let slots = slots(6, 6);
        let few: Vec<_> = (0..2)
            .map(|_| enter(&slots, "192.0.2.1").unwrap())
            .collect();
        let many: Vec<_> = (0..3)
            .map(|_| enter(&slots, "192.0.2.2").unwrap())
            .collect();
        let (honest, standing, _) = enter(&slots, "192.0.2.3").unwrap();
        standing.prove();
        let mut newcomers = Vec::new();
        let mut losers = Vec::new();
        for number in 10..15 {
            let newcomer = enter(&slots, &format!("198.51.100.{number}")).unwrap();
            newcomer.1.prove();
            losers.push(newcomer.2.unwrap());
            newcomers.push(newcomer);
        }
        let of = |text| Evicted {
            limit: Full::Total,
            address: address(text),
        };
        // Of two with as many, the one whose oldest has been there for longer.
        let expected = [
            "192.0.2.2",
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.1",
            "192.0.2.2",
        ]
        .map(of);
        assert_eq!(losers, expected);
        assert_eq!(enter(&slots, "198.51.100.99").unwrap_err(), Full::Total);
        assert!(!honest.is_evicted());
        drop((few, many, honest, newcomers));
        assert_empty(&slots);
    }

    #[test]
    fn an_address_that_has_unproven_holders_evicts_its_own_first() {
        let slots = slots(3, 3);
        let (old, ..) = enter(&slots, "192.0.2.1").unwrap();
        let (older_of_its_own, ..) = enter(&slots, "192.0.2.2").unwrap();
        let (_young, ..) = enter(&slots, "192.0.2.1").unwrap();
        let _newcomer = enter(&slots, "192.0.2.2").unwrap();
        assert!(older_of_its_own.is_evicted() && !old.is_evicted());
    }

    #[test]
    fn the_networks_of_an_ipv6_site_have_four_shares_together() {
        let slots = slots(100, 2);
        let mut held = Vec::new();
        for network in 0..8 {
            let (slot, standing, evicted) =
                enter(&slots, &format!("2001:db8:1:{network}::1")).unwrap();
            assert_eq!(evicted, None);
            held.push((slot, standing));
        }
        // The ninth takes the place of the oldest of the site, whoever else there is.
        let other = enter(&slots, "2001:db8:2::1").unwrap();
        let (ninth, standing, evicted) = enter(&slots, "2001:db8:1:99::1").unwrap();
        let expected = Evicted {
            limit: Full::Address,
            address: address("2001:db8:1::"),
        };
        assert_eq!(evicted, Some(expected));
        standing.prove();
        for (_, standing) in &held {
            standing.prove();
        }
        assert_eq!(
            enter(&slots, "2001:db8:1:100::1").unwrap_err(),
            Full::Address
        );
        assert!(enter(&slots, "2001:db8:2::1").is_ok());
        assert!(
            slots
                .enter(address("2001:db8:1:100::1"), true, None)
                .is_ok()
        );
        drop((held, other, ninth));
        assert_empty(&slots);
    }

    #[test]
    fn an_exempt_address_has_no_share_and_is_counted_all_the_same() {
        let slots = slots(3, 1);
        let enter = || slots.enter(address("192.0.2.1"), true, None);
        let held: Vec<_> = (0..3).map(|_| enter().unwrap()).collect();
        assert_eq!(enter().unwrap_err(), Full::Total);
        drop(held);
        assert!(enter().is_ok());
    }

    #[tokio::test]
    async fn an_evicted_holder_is_told_and_gives_nothing_back() {
        let slots = slots(1, 1);
        let (old, ..) = enter(&slots, "192.0.2.1").unwrap();
        let (new, standing, _) = enter(&slots, "192.0.2.1").unwrap();
        standing.prove();
        old.evicted().await;
        drop(old);
        assert_eq!(enter(&slots, "192.0.2.1").unwrap_err(), Full::Address);
        drop(new);
        assert_empty(&slots);
    }
}
