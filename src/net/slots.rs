//! Owns a limited number of slots and who holds them: so many in all, so many for each address and for
//! each network around it, and none for good to a holder that has proven nothing. A newcomer for whom
//! there is no slot takes the one of a holder that is still unproven, else of one that rests. Only where
//! everybody else has proven something and is busy is the newcomer refused, and some slots are kept for
//! clients that have proven something before. Knows nothing of what a slot is for, nor of what proves somebody.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::standing::Held;
pub use self::standing::Standing;
use super::{
    groups::{GROUPS, groups_of},
    known::Known,
    network::Network,
};

mod standing;

/// How many slots there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub slots_max: usize,
    /// Of these, the slots that only known clients get: those that have proven something before.
    pub slots_reserved: usize,
    /// For one client: an IPv4 address or an IPv6 /64. The networks around it have shares too: four
    /// times as much for the unproven of an IPv4 /24 or IPv6 /48, and sixteen times for a /16 or /32.
    pub slots_per_address_max: usize,
}

/// How many clients are known at least to have proven something, of those that did so last.
const KNOWN_MIN: usize = 1024;

/// Which of the two limits a newcomer met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All slots are taken.
    Total,
    /// Those of the newcomer's address are, or of a network around it.
    Address,
}

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

#[derive(Debug)]
struct Holders {
    count: usize,
    /// The number of the next holder: a lower one came earlier.
    next: u64,
    known: Known,
    clients: HashMap<Network, Client>,
    /// The networks around clients with holders that may be evicted.
    groups: HashMap<Network, Group>,
    /// The group of all strangers.
    all: Group,
    /// The known clients with holders that may be evicted where no stranger is left for it.
    all_known: Group,
    /// The holders that have proven something and rest, the oldest first.
    all_resting: BTreeSet<(u64, Network)>,
}

/// How many holders of a client or group may be evicted, then the oldest of those to begin with.
type Rank = (usize, Reverse<u64>, Network);

/// The holders of one client.
#[derive(Debug, Default)]
struct Client {
    count: usize,
    /// Exempt addresses do not count among the networks around them.
    is_exempt: bool,
    /// Known clients lose no slot while a stranger has one to lose.
    is_known: bool,
    /// Those that were unproven when they were last looked at, by age.
    unproven: BTreeMap<u64, Candidate>,
    /// Those that have proven something and rest, by age.
    resting: BTreeMap<u64, CancellationToken>,
}

/// Clients, or smaller groups.
#[derive(Debug, Default)]
struct Group {
    /// How many holders may be evicted.
    unproven: usize,
    /// The members with such holders, the one to begin with last.
    ranks: BTreeSet<Rank>,
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
    client: Network,
    is_known: bool,
    number: u64,
    evicted: CancellationToken,
}

impl Slots {
    /// All of them are free.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            holders: Mutex::new(Holders {
                count: 0,
                next: 0,
                known: Known::new(KNOWN_MIN),
                clients: HashMap::new(),
                groups: HashMap::new(),
                all: Group::default(),
                all_known: Group::default(),
                all_resting: BTreeSet::new(),
            }),
        })
    }

    /// A standing of somebody at this address, whose client is known here once it has proven something.
    #[must_use]
    pub fn standing(self: &Arc<Self>, address: IpAddr) -> Standing {
        Standing::of(Network::of_client(address), Arc::downgrade(self))
    }

    /// Gives a slot to a newcomer. `standing` says whether it may lose it again; without one it
    /// keeps it. `is_exempt` is for addresses that many clients share, which have no limit of their
    /// own and are not known.
    ///
    /// # Errors
    /// The limit that was met while nobody could be evicted.
    pub fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        is_exempt: bool,
        standing: Option<Standing>,
    ) -> Result<(Slot, Option<Evicted>), Full> {
        let client = if is_exempt {
            Network::single(address)
        } else {
            Network::of_client(address)
        };
        let mut holders = self.lock();
        let is_known = !is_exempt && holders.known.contains(client);
        let mut evicted = None;
        if !is_exempt {
            evicted = holders.make_room_in_share(client, self.limits.slots_per_address_max)?;
            if evicted.is_none() && standing.is_some() && !is_known {
                let share = self.limits.slots_per_address_max;
                evicted = holders.make_room_in_groups(client, share);
            }
        }
        let reserved = self.limits.slots_reserved * usize::from(!is_known);
        if evicted.is_none() && holders.count >= self.limits.slots_max.saturating_sub(reserved) {
            evicted = Some(holders.make_room(reserved)?);
        }
        let (number, evicted_token) = holders.add(client, is_exempt, is_known, standing.clone());
        drop(holders);
        if let Some(standing) = standing {
            standing.hold(Held {
                slots: Arc::downgrade(self),
                client,
                number,
                evicted: evicted_token.clone(),
            });
        }
        let slot = Slot {
            slots: Arc::clone(self),
            client,
            is_known,
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
    /// Evicts a holder of a client that has its share.
    fn make_room_in_share(
        &mut self,
        client: Network,
        share: usize,
    ) -> Result<Option<Evicted>, Full> {
        if self
            .clients
            .get(&client)
            .is_none_or(|held| held.count < share)
        {
            return Ok(None);
        }
        if self.evict_from(client) || self.evict_resting_of(client) {
            return Ok(Some(Evicted::new(Full::Address, client)));
        }
        Err(Full::Address)
    }

    /// Evicts a holder of a network around a client that has its shares: of the member with the most. A
    /// client that has fewer keeps what it has, so that what it shows may arrive before it loses it.
    fn make_room_in_groups(&mut self, client: Network, share: usize) -> Option<Evicted> {
        for (group, grouping) in groups_of(client).into_iter().zip(&GROUPS) {
            let most = share.saturating_mul(grouping.shares);
            let unproven = self.groups.get(&group).map_or(0, |group| group.unproven);
            // There is none to evict if all have proven something since.
            if unproven >= most
                && let Some(loser) = self.evict_from_most(Some(group))
            {
                return Some(Evicted::new(Full::Address, loser));
            }
        }
        None
    }

    /// Evicts somebody where all slots are taken that are not reserved: of the strangers whoever has the
    /// most, else of the known clients, unless all they have are the reserved ones, else whoever rests.
    fn make_room(&mut self, reserved: usize) -> Result<Evicted, Full> {
        let loser = self.evict_from_most(None);
        let loser = loser.or_else(|| self.evict_known(reserved));
        let loser = loser.or_else(|| self.evict_resting());
        let loser = loser.ok_or(Full::Total)?;
        Ok(Evicted::new(Full::Total, loser))
    }

    fn add(
        &mut self,
        client: Network,
        is_exempt: bool,
        is_known: bool,
        standing: Option<Standing>,
    ) -> (u64, CancellationToken) {
        let number = self.next;
        self.next += 1;
        self.count += 1;
        let evicted = CancellationToken::new();
        let candidate = standing.map(|standing| Candidate {
            standing,
            evicted: evicted.clone(),
        });
        self.change(client, |client| {
            client.count += 1;
            client.is_exempt = is_exempt;
            client.is_known = is_known;
            client
                .unproven
                .extend(candidate.map(|candidate| (number, candidate)));
        });
        (number, evicted)
    }

    fn make_known(&mut self, client: Network, is_known: bool) {
        if is_known {
            self.known.insert(client);
        } else {
            self.known.remove(client);
        }
        self.change(client, |client| client.is_known = is_known);
    }

    /// Evicts the oldest unproven holder of a client. Those that are found proven keep their slots
    /// and are not looked at again.
    fn evict_from(&mut self, client: Network) -> bool {
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
        self.count -= usize::from(is_evicted);
        is_evicted
    }

    /// Evicts somebody of the client with the most unproven slots in the smaller group with the most of
    /// this group; `None` is everybody. Returns the client that lost a slot.
    fn evict_from_most(&mut self, group: Option<Network>) -> Option<Network> {
        // Finds none where all have proven themselves since, and takes the rank away then.
        while let Some(client) = self.first_of(group) {
            if self.evict_from(client) {
                return Some(client);
            }
        }
        None
    }

    /// Evicts somebody of the known client with the most unproven slots, if they have more than these.
    fn evict_known(&mut self, reserved: usize) -> Option<Network> {
        while self.all_known.unproven > reserved {
            let &(_, _, client) = self.all_known.ranks.last()?;
            if self.evict_from(client) {
                return Some(client);
            }
        }
        None
    }

    /// Evicts the oldest holder that has proven something and rests.
    fn evict_resting(&mut self) -> Option<Network> {
        let &(_, client) = self.all_resting.first()?;
        self.evict_resting_of(client).then_some(client)
    }

    /// The same of one client.
    fn evict_resting_of(&mut self, client: Network) -> bool {
        let resting = self.clients.get(&client).map(|client| &client.resting);
        let oldest = resting.and_then(|resting| resting.first_key_value());
        let Some((number, evicted)) = oldest.map(|(&number, token)| (number, token.clone())) else {
            return false;
        };
        evicted.cancel();
        self.remove(client, number);
        true
    }

    /// A holder rests no longer.
    fn resume(&mut self, client: Network, number: u64) {
        if self.all_resting.remove(&(number, client)) {
            self.change(client, |client| client.resting.remove(&number));
        }
    }

    /// The client to evict somebody of.
    fn first_of(&self, group: Option<Network>) -> Option<Network> {
        let mut group = match group {
            None => &self.all,
            Some(network) => self.groups.get(&network)?,
        };
        loop {
            let &(_, _, member) = group.ranks.last()?;
            match self.groups.get(&member) {
                Some(smaller) => group = smaller,
                None => return Some(member),
            }
        }
    }

    fn remove(&mut self, client: Network, number: u64) {
        self.resume(client, number);
        self.count -= 1;
        self.change(client, |client| {
            client.count -= 1;
            client.unproven.remove(&number);
        });
    }

    /// Changes what a client holds, if only nothing, and the ranks that follow from it.
    fn change<T>(&mut self, network: Network, change: impl FnOnce(&mut Client) -> T) -> T {
        let client = self.clients.entry(network).or_default();
        let [before, known_before] = client.ranks(network);
        let changed = change(client);
        let [after, known_after] = client.ranks(network);
        let is_exempt = client.is_exempt;
        if client.count == 0 {
            self.clients.remove(&network);
        }
        self.all_known.replace((known_before, known_after));
        if before != after {
            let mut ranks = (before, after);
            for network in groups_of(network).into_iter().filter(|_| !is_exempt) {
                let group = self.groups.entry(network).or_default();
                let before = group.rank(network);
                group.replace(ranks);
                ranks = (before, group.rank(network));
                if group.ranks.is_empty() {
                    self.groups.remove(&network);
                }
            }
            self.all.replace(ranks);
        }
        changed
    }
}

impl Client {
    /// Its rank among strangers and its rank among known clients: one of them, if it has a holder that may
    /// be evicted.
    fn ranks(&self, network: Network) -> [Option<Rank>; 2] {
        let oldest = self.unproven.first_key_value();
        let rank = oldest.map(|(&oldest, _)| (self.unproven.len(), Reverse(oldest), network));
        if self.is_known {
            [None, rank]
        } else {
            [rank, None]
        }
    }
}

impl Group {
    fn rank(&self, network: Network) -> Option<Rank> {
        let &(_, oldest, _) = self.ranks.last()?;
        Some((self.unproven, oldest, network))
    }

    /// The rank of a member changed.
    fn replace(&mut self, (before, after): (Option<Rank>, Option<Rank>)) {
        if let Some(rank) = before {
            self.unproven -= rank.0;
            self.ranks.remove(&rank);
        }
        if let Some(rank) = after {
            self.unproven += rank.0;
            self.ranks.insert(rank);
        }
    }
}

impl Evicted {
    fn new(limit: Full, client: Network) -> Self {
        Self {
            limit,
            address: client.address(),
        }
    }
}

impl Slot {
    /// Whether the client had proven something before.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(slots_max: usize, slots_per_address_max: usize) -> Arc<Slots> {
        Slots::new(Limits {
            slots_max,
            slots_reserved: 0,
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
        assert!(holders.groups.is_empty(), "{holders:?}");
        assert!(holders.all.ranks.is_empty(), "{holders:?}");
        assert!(holders.all_known.ranks.is_empty(), "{holders:?}");
        assert_eq!((holders.all.unproven, holders.all_known.unproven), (0, 0));
        assert!(holders.all_resting.is_empty(), "{holders:?}");
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
    fn whoever_rests_makes_room_whatever_it_has_proven() {
        let slots = slots(3, 2);
        let [first, second, third] = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(|from| {
            let (slot, standing, _) = enter(&slots, from).unwrap();
            standing.prove();
            (slot, standing)
        });
        assert_eq!(enter(&slots, "192.0.2.3").unwrap_err(), Full::Total);
        for (_, standing) in [&third, &second, &first] {
            assert!(standing.rest());
        }
        // Whoever goes on keeps its slot again.
        first.1.resume();
        let (newcomer, _, evicted) = enter(&slots, "192.0.2.1").unwrap();
        assert_eq!(evicted.unwrap().limit, Full::Address);
        let (_other, standing, evicted) = enter(&slots, "192.0.2.3").unwrap();
        standing.prove();
        // A newcomer that has proven nothing loses its slot before anybody else.
        assert_eq!(evicted.unwrap().address, address("192.0.2.1"));
        assert!(newcomer.is_evicted());
        assert_eq!(
            [&first, &second, &third].map(|(slot, _)| slot.is_evicted()),
            [false, true, false]
        );
        assert!(!second.1.rest(), "it has no slot to come back to");
        let (_last, _, evicted) = enter(&slots, "192.0.2.4").unwrap();
        assert_eq!(evicted.unwrap().address, address("192.0.2.2"));
        assert!(third.0.is_evicted());
        second.1.resume();
        third.1.resume();
        drop((first, second, third, newcomer, _other, _last));
        assert_empty(&slots);
    }

    #[test]
    fn whoever_ends_while_it_rests_leaves_nothing() {
        let slots = slots(3, 2);
        for _ in 0..3 {
            let (slot, standing, _) = enter(&slots, "192.0.2.1").unwrap();
            standing.prove();
            assert!(standing.rest());
            assert!(standing.is_resting());
            drop(slot);
            assert_empty(&slots);
            standing.resume();
            assert_empty(&slots);
        }
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
    fn whoever_was_let_in_without_proving_anything_gives_way() {
        let slots = slots(1, 1);
        let (slot, standing) = enter_known(&slots, "192.0.2.1").unwrap();
        standing.admit();
        assert!(standing.is_admitted() && !standing.is_proven());
        let (newcomer, _) = enter_known(&slots, "192.0.2.1").unwrap();
        assert!(slot.is_evicted() && !newcomer.is_known());
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
    fn a_fresh_address_does_not_evict_its_own_while_others_have_more() {
        for (limits, others) in [
            // All slots are taken, by one address, by a network, and by the own network.
            (
                (10, 10),
                Box::new(|_| "192.0.2.1".to_owned()) as Box<dyn Fn(usize) -> String>,
            ),
            ((10, 10), Box::new(|number| format!("198.51.{number}.1"))),
            (
                (10, 10),
                Box::new(|number| format!("203.0.113.{}", number % 2)),
            ),
            (
                (10, 10),
                Box::new(|number| format!("2001:db8:{number:x}::1")),
            ),
            // The share of the own networks is.
            (
                (1_000, 4),
                Box::new(|number| format!("203.0.113.{}", number % 4)),
            ),
            (
                (1_000, 4),
                Box::new(|number| format!("203.0.{}.1", number % 16)),
            ),
        ] {
            let slots = slots(limits.0, limits.1);
            let held: Vec<_> = (0..limits.0.min(64))
                .filter_map(|number| enter(&slots, &others(number)).ok())
                .collect();
            let fresh = [(); 3].map(|()| enter(&slots, "203.0.113.99").unwrap());
            assert!(fresh.iter().all(|(slot, ..)| !slot.is_evicted()));
            assert!(fresh.iter().all(|(.., evicted)| evicted.is_some()));
            drop((held, fresh));
            assert_empty(&slots);
        }
    }

    #[test]
    fn whoever_comes_for_more_than_others_have_evicts_its_own() {
        let slots = slots(3, 3);
        let (old, ..) = enter(&slots, "192.0.2.1").unwrap();
        let (of_its_own, ..) = enter(&slots, "198.51.100.1").unwrap();
        let (_of_its_own, ..) = enter(&slots, "198.51.100.1").unwrap();
        let _newcomer = enter(&slots, "198.51.100.1").unwrap();
        assert!(of_its_own.is_evicted() && !old.is_evicted());
    }

    /// As many as enter one after another, each from an address of its own, without an eviction.
    fn enter_until_evicted(
        slots: &Arc<Slots>,
        mut address: impl FnMut(usize) -> String,
    ) -> (Vec<(Slot, Standing)>, Evicted) {
        let mut held = Vec::new();
        for number in 0.. {
            let (slot, standing, evicted) = enter(slots, &address(number)).unwrap();
            held.push((slot, standing));
            if let Some(evicted) = evicted {
                return (held, evicted);
            }
        }
        unreachable!("slots are limited")
    }

    #[test]
    fn the_unproven_of_a_network_have_so_many_shares_together() {
        for (shares, address) in [
            (
                4,
                Box::new(|number| format!("192.0.2.{number}")) as Box<dyn Fn(usize) -> String>,
            ),
            (16, Box::new(|number| format!("192.0.{number}.1"))),
            (4, Box::new(|number| format!("2001:db8:1:{number:x}::1"))),
            // A /58, which has 64 networks of hosts.
            (
                4,
                Box::new(|number| format!("2001:db8:1:ffc{:x}::1", number % 16)),
            ),
            (16, Box::new(|number| format!("2001:db8:{number:x}::1"))),
        ] {
            let slots = slots(1_000, 2);
            let other = enter(&slots, "198.51.100.1").unwrap();
            let (held, evicted) = enter_until_evicted(&slots, &address);
            assert_eq!(held.len() - 1, shares * 2, "{}", address(0));
            // The oldest of the network, whoever else there is.
            let oldest = Network::of_client(address(0).parse().unwrap());
            let expected = Evicted {
                limit: Full::Address,
                address: oldest.address(),
            };
            assert_eq!(evicted, expected);
            assert!(held[0].0.is_evicted() && !other.0.is_evicted());
            // Whoever has proven something is not counted among them.
            held.iter().for_each(|(_, standing)| standing.prove());
            let proven = enter(&slots, &address(held.len())).unwrap();
            assert_eq!(proven.2, None);
            drop((held, proven, other));
            assert_empty(&slots);
        }
    }

    #[test]
    fn a_network_of_many_addresses_with_one_holder_each_has_the_most_of_them() {
        let slots = slots(8, 8);
        let honest = enter(&slots, "198.51.100.1").unwrap();
        let also_honest = enter(&slots, "198.51.100.1").unwrap();
        let (held, evicted) =
            enter_until_evicted(&slots, |number| format!("2001:db8:1:{number:x}::1"));
        assert_eq!(held.len(), 7);
        // It has the most, whoever comes.
        let site = |number: usize| address(&format!("2001:db8:1:{number:x}::"));
        assert_eq!(evicted.address, site(0));
        let newcomer = enter(&slots, "203.0.113.1").unwrap();
        assert_eq!(newcomer.2.unwrap().address, site(1));
        assert!(!honest.0.is_evicted() && !also_honest.0.is_evicted());
        drop((honest, also_honest, held, newcomer));
        assert_empty(&slots);
    }

    /// Enters as a client that is known once it has proven something.
    fn enter_known(slots: &Arc<Slots>, from: &str) -> Result<(Slot, Standing), Full> {
        let standing = slots.standing(address(from));
        let (slot, _) = slots.enter(address(from), false, Some(standing.clone()))?;
        Ok((slot, standing))
    }

    #[test]
    fn slots_are_kept_for_clients_that_have_proven_something_before() {
        let slots = Slots::new(Limits {
            slots_max: 10,
            slots_reserved: 2,
            slots_per_address_max: 10,
        });
        let (slot, standing) = enter_known(&slots, "192.0.2.1").unwrap();
        assert!(!slot.is_known());
        standing.prove();
        drop(slot);
        let held: Vec<_> = (0..8)
            .map(|_| enter(&slots, "192.0.2.9").unwrap())
            .collect();
        held.iter().for_each(|(_, standing, _)| standing.prove());
        assert_eq!(enter(&slots, "192.0.2.2").unwrap_err(), Full::Total);
        let first = enter_known(&slots, "192.0.2.1").unwrap();
        assert!(first.0.is_known());
        let _second = enter_known(&slots, "192.0.2.1").unwrap();
        // It evicts only itself beyond that.
        let _third = enter_known(&slots, "192.0.2.1").unwrap();
        assert!(first.0.is_evicted());
        // What was wrong last makes it a stranger again.
        standing.discredit();
        assert!(standing.is_proven());
        let (again, _) = enter_known(&slots, "192.0.2.1").unwrap();
        assert!(!again.is_known());
        // What is right again makes it known again.
        standing.prove();
        let (again, _) = enter_known(&slots, "192.0.2.1").unwrap();
        assert!(again.is_known());
    }

    #[test]
    fn known_clients_do_not_keep_all_slots_without_showing_anything_again() {
        let slots = Slots::new(Limits {
            slots_max: 20,
            slots_reserved: 2,
            slots_per_address_max: 20,
        });
        for (client, count) in [("192.0.2.1", 14), ("192.0.2.2", 6)] {
            let (slot, standing) = enter_known(&slots, client).unwrap();
            standing.prove();
            drop(slot);
            for _ in 0..count {
                std::mem::forget(enter_known(&slots, client).unwrap());
            }
        }
        // A known client and strangers take slots of the one that has the most.
        let mut losers = Vec::new();
        let mut newcomers = Vec::new();
        for number in 0..18 {
            let from = format!("198.51.{number}.1");
            let newcomer = enter(&slots, &from).unwrap();
            newcomer.1.prove();
            losers.push(newcomer.2.unwrap().address);
            newcomers.push(newcomer);
        }
        assert!(
            losers[..8]
                .iter()
                .all(|&loser| loser == address("192.0.2.1"))
        );
        // What is reserved is left to them.
        assert_eq!(enter(&slots, "203.0.113.1").unwrap_err(), Full::Total);
        let (known, _) = enter_known(&slots, "192.0.2.2").unwrap();
        assert!(known.is_known());
    }

    #[test]
    fn a_known_client_loses_no_slot_to_others() {
        let slots = slots(4, 4);
        let (slot, standing) = enter_known(&slots, "192.0.2.1").unwrap();
        standing.prove();
        drop(slot);
        let held = [(); 3].map(|()| enter_known(&slots, "192.0.2.1").unwrap());
        let stranger = enter(&slots, "192.0.2.2").unwrap();
        let other = enter(&slots, "192.0.2.3").unwrap();
        assert!(stranger.0.is_evicted());
        assert!(held.iter().all(|(slot, _)| !slot.is_evicted()));
        drop((held, stranger, other));
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

    #[test]
    fn an_exempt_address_takes_no_share_of_its_network() {
        for (proxy, neighbour) in [
            ("192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2"),
            ("2001:db8::1", "2001:db8:0:1::2"),
        ] {
            let slots = slots(1_000, 2);
            let of_proxy = |standing| slots.enter(address(proxy), true, standing).unwrap();
            let held: Vec<_> = (0..100)
                .map(|_| of_proxy(Some(Standing::default())))
                .collect();
            let beside = [(); 2].map(|()| enter(&slots, neighbour).unwrap());
            assert!(beside.iter().all(|(.., evicted)| evicted.is_none()));
            assert!(held.iter().all(|(slot, _)| !slot.is_evicted()));
            drop((held, beside));
            assert_empty(&slots);
        }
        // It loses slots like others where all are taken.
        let slots = slots(2, 1);
        let held = [(); 2].map(|()| {
            let standing = Some(Standing::default());
            slots.enter(address("192.0.2.1"), true, standing).unwrap().0
        });
        let newcomer = enter(&slots, "192.0.2.2").unwrap();
        assert!(held[0].is_evicted() && !held[1].is_evicted());
        drop((held, newcomer));
        assert_empty(&slots);
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
