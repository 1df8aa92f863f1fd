//! Owns how much memory responses may take that h2 has and the socket has not taken yet: in all
//! connections together, and in each. A client that opens its windows wide and reads nothing
//! holds no more than this, however many streams and connections it has. Knows nothing of what is in
//! the responses.
//!
//! Half of the memory is divided among all the connections that there may be: so much each has for
//! itself, and goes on whatever the others do. The other half is a pool. A connection may hold as much
//! of the pool as [`Budget::pool_limit`] says, which shrinks with what is left of it. Connections
//! that hold part of the pool and do not read are closed when others run short, those first that have
//! held most of it for longest.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::credentials::Quota;

/// Everything is counted in this unit: a response that is smaller takes about as much, with what h2
/// needs for it.
const UNIT_BYTES: usize = 1024;

/// Whoever waits for room waits for no more than this: larger responses go out in pieces.
const NEEDED_UNITS_MAX: usize = 16;

/// The part of the pool's rest that one connection may hold.
const POOL_PART: usize = 4;

/// The pool is short when less than this part of it is left.
const SHORT_PART: usize = 8;

/// A connection does not read when what it held so long ago has not been taken by its socket yet.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// How often connections are looked at that may be closed: looking at ten thousand takes a
/// millisecond.
const RELIEF_INTERVAL: Duration = Duration::from_millis(100);

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For all connections, in bytes; but never less than two units for each.
    pub(super) total_bytes_max: usize,
    /// For the connections of one credential, besides what each has for itself, in bytes.
    pub(super) credential_bytes_max: usize,
    /// For one connection, in bytes.
    pub(super) connection_bytes_max: usize,
    /// How many connections there may be.
    pub(super) connections_max: usize,
}

/// The memory of all connections.
#[derive(Debug)]
pub(super) struct Budget {
    connection_units_max: usize,
    /// What each connection has for itself.
    reserved_units: usize,
    pool_units: usize,
    /// How much of the pool a credential may hold that has no quota of its own, in bytes.
    quota_bytes: usize,
    pool_units_left: AtomicUsize,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    all: HashMap<u64, Weak<Connection>>,
    relieved_at: Option<Instant>,
}

/// The memory of one connection, as one of its streams sees it.
#[derive(Clone, Debug)]
pub(super) struct Unsent {
    connection: Arc<Connection>,
    /// That of the stream's credential.
    quota: Option<Arc<Quota>>,
}

#[derive(Debug)]
struct Connection {
    budget: Arc<Budget>,
    number: u64,
    held: Mutex<Held>,
    /// Notified when something is given back.
    room: Notify,
    /// Cancelled when the connection has to go.
    closing: CancellationToken,
}

/// What a connection holds, in units.
#[derive(Debug)]
struct Held {
    reserved: usize,
    pooled: usize,
    /// What was given back since the connection began.
    given_back: u64,
    /// What was held at `since` is gone when this much was given back.
    turned_over: u64,
    /// When the socket took something last.
    taken_at: Instant,
    since: Instant,
    is_squeezed: bool,
}

/// What a connection that does not read holds of the pool, in units; nothing if it does read.
#[derive(Debug, Default)]
struct Stalled {
    pooled: usize,
    /// The same times for how long. A client that reads slowly takes all of it every few seconds, and one
    /// that reads nothing never does.
    unit_millis: u128,
}

/// What was on its way to a connection's socket at some time, and whether it still moves: no client makes room
/// for more before it has read that.
#[derive(Debug)]
pub(super) struct Backlog {
    connection: Arc<Connection>,
    /// It is gone when so many units were given back.
    gone_at: u64,
    is_gone: bool,
}

/// A part of the memory, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    unsent: Unsent,
    reserved: usize,
    pooled: usize,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let connections_max = limits.connections_max.max(1);
        let total = (limits.total_bytes_max / UNIT_BYTES).max(2 * connections_max);
        let connection_units_max = (limits.connection_bytes_max / UNIT_BYTES).max(1);
        let reserved_units = total / 2 / connections_max;
        let pool_units = total - total / 2;
        Arc::new(Self {
            connection_units_max,
            reserved_units: reserved_units.min(connection_units_max),
            pool_units,
            quota_bytes: limits.credential_bytes_max,
            pool_units_left: AtomicUsize::new(pool_units),
            connections: Mutex::default(),
        })
    }

    /// The memory of a new connection. `closing` is cancelled if the connection has to go.
    pub(super) fn connect(self: &Arc<Self>, closing: CancellationToken) -> Unsent {
        let mut connections = lock(&self.connections);
        let number = connections.next;
        connections.next += 1;
        let connection = Arc::new(Connection {
            budget: Arc::clone(self),
            number,
            held: Mutex::new(Held {
                reserved: 0,
                pooled: 0,
                given_back: 0,
                turned_over: 0,
                taken_at: Instant::now(),
                since: Instant::now(),
                is_squeezed: false,
            }),
            room: Notify::new(),
            closing,
        });
        connections.all.insert(number, Arc::downgrade(&connection));
        Unsent {
            connection,
            quota: None,
        }
    }

    /// How much of the pool one connection may hold while so much is left of it. What a few hold does
    /// not take everything from the next, however often they take more.
    fn pool_limit(units_left: usize) -> usize {
        units_left / POOL_PART
    }

    /// Takes at most `wanted` from the pool, for a connection that holds `pooled` of it.
    fn take(&self, wanted: usize, pooled: usize) -> usize {
        let mut taken = 0;
        let take = |left: usize| {
            taken = wanted.min(Self::pool_limit(left).saturating_sub(pooled));
            (taken > 0).then(|| left - taken)
        };
        let order = Ordering::Relaxed;
        match self.pool_units_left.fetch_update(order, order, take) {
            Ok(_) => taken,
            Err(_) => 0,
        }
    }

    fn give_back(&self, units: usize) {
        if units > 0 {
            self.pool_units_left.fetch_add(units, Ordering::Relaxed);
        }
    }

    fn is_short(&self) -> bool {
        self.pool_units_left.load(Ordering::Relaxed) < self.pool_units / SHORT_PART
    }

    /// Closes connections that do not read, if the pool is short, until it is not.
    fn relieve(&self) {
        if !self.is_short() {
            return;
        }
        let now = Instant::now();
        let mut stalled: Vec<(Stalled, Arc<Connection>)> = {
            let mut connections = lock(&self.connections);
            let relieved_at = connections.relieved_at;
            if relieved_at.is_some_and(|at| now < at + RELIEF_INTERVAL) {
                return;
            }
            connections.relieved_at = Some(now);
            let all = connections.all.values().filter_map(Weak::upgrade);
            // Looked at after the lock is gone: the last owner of a connection needs it.
            all.map(|connection| (Stalled::default(), connection))
                .collect()
        };
        stalled.retain_mut(|(stalled, connection)| {
            *stalled = lock(&connection.held).stalled(now);
            stalled.pooled > 0
        });
        stalled.sort_unstable_by_key(|(stalled, connection)| {
            (Reverse(stalled.unit_millis), connection.number)
        });
        let mut left = self.pool_units_left.load(Ordering::Relaxed);
        for (Stalled { pooled, .. }, connection) in stalled {
            if left >= self.pool_units / POOL_PART {
                return;
            }
            left += pooled;
            lock(&connection.held).is_squeezed = true;
            connection.closing.cancel();
        }
    }
}

impl Held {
    fn units(&self) -> usize {
        self.reserved + self.pooled
    }

    /// How much of the pool the connection holds, if it does not read.
    fn stalled(&self, now: Instant) -> Stalled {
        if self.is_squeezed || now < self.since + STALLED_AFTER {
            return Stalled::default();
        }
        let millis = now.duration_since(self.since).as_millis();
        Stalled {
            pooled: self.pooled,
            unit_millis: millis.saturating_mul(self.pooled as u128),
        }
    }

    /// Everything that is held now counts as held since now.
    fn turn_over(&mut self) {
        self.since = Instant::now();
        self.turned_over = self.given_back + self.units() as u64;
    }
}

impl Unsent {
    /// The same for a stream whose credential has this quota.
    pub(super) fn under(mut self, quota: Option<Arc<Quota>>) -> Self {
        self.quota = quota;
        self
    }

    /// Whether the connection is closed because it does not read and others need its memory.
    pub(super) fn is_squeezed(&self) -> bool {
        lock(&self.connection.held).is_squeezed
    }

    /// Whether anything is on its way to the socket.
    pub(super) fn is_held(&self) -> bool {
        lock(&self.connection.held).units() > 0
    }

    /// What is on its way to the socket now.
    pub(super) fn backlog(&self) -> Backlog {
        let held = lock(&self.connection.held);
        let gone_at = held.given_back + held.units() as u64;
        Backlog {
            is_gone: held.units() == 0,
            gone_at,
            connection: Arc::clone(&self.connection),
        }
    }

    /// A share of at most `bytes_max`, if there is one of `bytes` now. A connection that holds
    /// nothing gets one, but it may be smaller than `bytes`.
    pub(super) fn try_hold(&self, bytes: usize, bytes_max: usize) -> Option<Share> {
        let budget = &self.connection.budget;
        let needed = units(bytes)
            .min(NEEDED_UNITS_MAX)
            .min(budget.reserved_units);
        let share = self.hold_units(needed, units(bytes_max));
        // What is refused for want of memory is what others hold, or the connection itself.
        if share.as_ref().is_none_or(|share| share.bytes() < bytes) {
            budget.relieve();
        }
        share
    }

    fn hold_units(&self, needed: usize, wanted: usize) -> Option<Share> {
        let budget = &self.connection.budget;
        let mut held = lock(&self.connection.held);
        let wanted = wanted.min(budget.connection_units_max.saturating_sub(held.units()));
        if wanted < needed {
            return None;
        }
        let reserved = wanted.min(budget.reserved_units - held.reserved);
        let pooled = self.take_pooled(wanted - reserved, held.pooled);
        if reserved + pooled < needed.max(1) {
            self.give_back_pooled(pooled);
            return None;
        }
        let was_empty = held.units() == 0;
        held.reserved += reserved;
        held.pooled += pooled;
        if was_empty {
            held.turn_over();
        }
        drop(held);
        Some(Share {
            unsent: self.clone(),
            reserved,
            pooled,
        })
    }

    /// Waits for a share of `bytes`, or of less where little is left.
    pub(super) async fn hold(&self, bytes: usize) -> Share {
        loop {
            let room = self.connection.room.notified();
            if let Some(share) = self.try_hold(bytes, bytes) {
                // There may be enough for the next one as well.
                self.connection.room.notify_one();
                return share;
            }
            // Something is held, or there would have been a share: it is given back when the socket
            // takes it.
            room.await;
        }
    }

    fn take_pooled(&self, wanted: usize, pooled: usize) -> usize {
        if wanted == 0 {
            return 0;
        }
        let taken = self.connection.budget.take(wanted, pooled);
        let Some(quota) = &self.quota else {
            return taken;
        };
        // Half of what others may have is better than nothing.
        for part in [taken, taken / 2, taken / 8] {
            if quota.take_unsent(part * UNIT_BYTES, self.connection.budget.quota_bytes) {
                self.connection.budget.give_back(taken - part);
                return part;
            }
        }
        self.connection.budget.give_back(taken);
        0
    }

    fn give_back_pooled(&self, units: usize) {
        self.connection.budget.give_back(units);
        if let Some(quota) = &self.quota {
            quota.give_back_unsent(units * UNIT_BYTES);
        }
    }
}

impl Backlog {
    /// When the socket took something last, if some of this was on its way at the last call.
    pub(super) fn moved_at(&mut self) -> Option<Instant> {
        let held = lock(&self.connection.held);
        let moved_at = (!self.is_gone).then_some(held.taken_at);
        self.is_gone |= held.given_back >= self.gone_at;
        moved_at
    }
}

impl Share {
    /// The socket takes some of what holds this.
    pub(super) fn moves(&self) {
        lock(&self.unsent.connection.held).taken_at = Instant::now();
    }

    pub(super) fn bytes(&self) -> usize {
        (self.reserved + self.pooled) * UNIT_BYTES
    }

    /// Makes the share as large as `bytes` need, unless there is not enough. Returns whether it is
    /// large enough.
    pub(super) fn fit(&mut self, bytes: usize) -> bool {
        let wanted = units(bytes);
        let has = self.reserved + self.pooled;
        if wanted <= has {
            let pooled = self.pooled.min(has - wanted);
            self.give_back(has - wanted - pooled, pooled);
            return true;
        }
        let more = wanted - has;
        match self.unsent.hold_units(more, more) {
            Some(mut share) => {
                self.reserved += std::mem::take(&mut share.reserved);
                self.pooled += std::mem::take(&mut share.pooled);
                true
            }
            None => false,
        }
    }

    fn give_back(&mut self, reserved: usize, pooled: usize) {
        if reserved + pooled == 0 {
            return;
        }
        self.reserved -= reserved;
        self.pooled -= pooled;
        self.unsent.give_back_pooled(pooled);
        let connection = &self.unsent.connection;
        let mut held = lock(&connection.held);
        held.reserved -= reserved;
        held.pooled -= pooled;
        held.given_back += (reserved + pooled) as u64;
        if held.given_back >= held.turned_over {
            held.turn_over();
        }
        drop(held);
        connection.room.notify_one();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.reserved, self.pooled);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.budget.connections).all.remove(&self.number);
    }
}

/// Nobody panics while it is held, and nobody waits while holding it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;

    use super::*;

    /// Sixteen connections with 8 KiB each for themselves, and as much in the pool.
    const LIMITS: Limits = Limits {
        total_bytes_max: 256 * UNIT_BYTES,
        credential_bytes_max: usize::MAX,
        connection_bytes_max: 24 * UNIT_BYTES,
        connections_max: 16,
    };
    const RESERVED_BYTES: usize = 8 * UNIT_BYTES;
    const EVERYTHING: usize = usize::MAX / 2;

    fn connect(budget: &Arc<Budget>) -> Unsent {
        budget.connect(CancellationToken::new())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_moves_until_it_is_gone() {
        const SECOND: Duration = Duration::from_secs(1);
        let unsent = connect(&Budget::new(LIMITS));
        let mut nothing = unsent.backlog();
        let share = unsent.try_hold(1024, 1024).unwrap();
        let mut backlog = unsent.backlog();
        let since = Instant::now();
        tokio::time::advance(SECOND).await;
        assert_eq!(backlog.moved_at(), Some(since));
        share.moves();
        tokio::time::advance(SECOND).await;
        assert_eq!(backlog.moved_at(), Some(since + SECOND));
        let later = unsent.try_hold(1024, 1024).unwrap();
        share.moves();
        drop(share);
        assert_eq!(
            backlog.moved_at(),
            Some(since + 2 * SECOND),
            "the last of it"
        );
        later.moves();
        assert_eq!(backlog.moved_at(), None, "what came later");
        assert_eq!(nothing.moved_at(), None);
    }

    fn left(budget: &Budget) -> usize {
        budget.pool_units_left.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_connection_holds_no_more_than_its_limit_and_gives_everything_back() {
        let budget = Budget::new(LIMITS);
        let unsent = connect(&budget);
        let most = unsent
            .try_hold(1, LIMITS.connection_bytes_max - 2048)
            .unwrap();
        let rest = unsent.try_hold(1, EVERYTHING).unwrap();
        assert_eq!(rest.bytes(), 2048);
        assert!(unsent.try_hold(1, EVERYTHING).is_none());
        drop(most);
        assert!(unsent.try_hold(1, 3000).is_some());
        drop(rest);
        assert_eq!(lock(&unsent.connection.held).units(), 0);
        assert_eq!(left(&budget), budget.pool_units);
        drop(unsent);
        assert!(lock(&budget.connections).all.is_empty());
    }

    #[tokio::test]
    async fn a_share_becomes_smaller_or_larger_as_long_as_there_is_room() {
        let budget = Budget::new(LIMITS);
        let unsent = connect(&budget);
        let mut share = unsent.try_hold(1, 10_000).unwrap();
        assert!(share.fit(1500));
        assert_eq!(share.bytes(), 2048);
        assert_eq!(left(&budget), budget.pool_units, "the pool comes first");
        assert!(share.fit(LIMITS.connection_bytes_max));
        assert!(!share.fit(LIMITS.connection_bytes_max + 1));
        assert_eq!(share.bytes(), LIMITS.connection_bytes_max);
        drop(share);
        assert_eq!(left(&budget), budget.pool_units);
    }

    #[tokio::test]
    async fn all_connections_together_hold_no_more_than_there_is_and_each_goes_on() {
        let budget = Budget::new(LIMITS);
        let connections: Vec<Unsent> = (0..16).map(|_| connect(&budget)).collect();
        let mut shares = Vec::new();
        for connection in &connections {
            let share = connection.try_hold(1, EVERYTHING).unwrap();
            assert!(share.bytes() >= RESERVED_BYTES);
            shares.push(share);
        }
        // The first got all that one may have, the last hardly more than its own.
        let bytes = |at: usize| shares[at].bytes();
        assert_eq!(bytes(0), LIMITS.connection_bytes_max);
        assert!(bytes(15) < bytes(0));
        let all: usize = shares.iter().map(Share::bytes).sum();
        assert!(all <= LIMITS.total_bytes_max, "{all}");
        assert!(left(&budget) > 0, "there is always something for the next");
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_when_something_is_given_back() {
        let unsent = connect(&Budget::new(LIMITS));
        let all = unsent.try_hold(1, EVERYTHING).unwrap();
        let mut first = Box::pin(unsent.hold(2048));
        let mut second = Box::pin(unsent.hold(2048));
        assert!(poll_immediate(&mut first).await.is_none());
        assert!(poll_immediate(&mut second).await.is_none());
        drop(all);
        let share = first.await;
        assert_eq!(share.bytes(), 2048);
        assert_eq!(second.await.bytes(), 2048);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_keeps_nobody_waiting() {
        let unsent = connect(&Budget::new(LIMITS));
        let all = unsent.try_hold(1, EVERYTHING).unwrap();
        let mut first = Box::pin(unsent.hold(2048));
        let mut second = Box::pin(unsent.hold(2048));
        assert!(poll_immediate(&mut first).await.is_none());
        assert!(poll_immediate(&mut second).await.is_none());
        drop(all);
        drop(first);
        second.await;
    }

    #[tokio::test]
    async fn whoever_needs_more_than_there_can_be_gets_less_once_nothing_is_held() {
        let budget = Budget::new(LIMITS);
        let others: Vec<Unsent> = (0..40).map(|_| connect(&budget)).collect();
        let _held: Vec<_> = others
            .iter()
            .map(|other| other.try_hold(1, EVERYTHING))
            .collect();
        let unsent = connect(&budget);
        let small = unsent.try_hold(1, 1).unwrap();
        let mut most = Box::pin(unsent.hold(EVERYTHING));
        assert!(poll_immediate(&mut most).await.is_none());
        drop(small);
        assert!(most.await.bytes() >= RESERVED_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn where_memory_is_short_those_are_closed_that_hold_most_and_do_not_read() {
        let budget = Budget::new(LIMITS);
        let stalled: Vec<_> = (0..30).map(|_| connect(&budget)).collect();
        let _unread: Vec<_> = stalled
            .iter()
            .map(|other| other.try_hold(1, EVERYTHING))
            .collect();
        assert!(budget.is_short());
        let healthy = connect(&budget);
        let read = healthy.hold(EVERYTHING).await;
        let is_closed = |unsent: &Unsent| unsent.connection.closing.is_cancelled();
        assert!(
            !stalled.iter().any(is_closed),
            "nobody has had time to read"
        );
        tokio::time::advance(STALLED_AFTER).await;
        // The healthy one has read everything that it held, and holds it again.
        drop(read);
        let _again = healthy.hold(EVERYTHING).await;
        assert!(is_closed(&stalled[0]) && stalled[0].is_squeezed());
        assert!(!is_closed(&stalled[29]), "it holds least");
        assert!(!is_closed(&healthy) && !healthy.is_squeezed());
        let closed = stalled.iter().filter(|other| is_closed(other)).count();
        assert!(closed < 10, "no more than it takes: {closed}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_closed_before_who_reads_slowly_and_holds_more() {
        let budget = Budget::new(LIMITS);
        let is_closed = |unsent: &Unsent| unsent.connection.closing.is_cancelled();
        let pooled = |share: &Option<Share>| share.as_ref().unwrap().pooled;
        let hold_little = |unsent: &Unsent| unsent.try_hold(1, RESERVED_BYTES + 2 * UNIT_BYTES);
        let mut silent: Vec<_> = (0..50).map(|_| connect(&budget)).collect();
        let mut unread: Vec<_> = silent.iter().map(hold_little).collect();
        let slow = connect(&budget);
        let mut held = None;
        for _ in 0..10 {
            drop(held.take());
            held = slow.try_hold(1, EVERYTHING);
            tokio::time::advance(2 * STALLED_AFTER).await;
        }
        while !budget.is_short() {
            let late = connect(&budget);
            unread.push(hold_little(&late));
            silent.push(late);
        }
        budget.relieve();
        assert!(pooled(&held) > pooled(&unread[0]));
        assert!(is_closed(&silent[0]) && !is_closed(&slow));
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_not_closed_while_there_is_enough() {
        let budget = Budget::new(LIMITS);
        let slow = connect(&budget);
        let _unread = slow.try_hold(1, EVERYTHING).unwrap();
        tokio::time::advance(10 * STALLED_AFTER).await;
        assert!(slow.try_hold(1, 1).is_none());
        assert!(!slow.is_squeezed());
    }

    #[tokio::test]
    async fn a_credential_holds_no_more_than_its_part_of_the_pool() {
        let limits = Limits {
            credential_bytes_max: 16 * UNIT_BYTES,
            ..LIMITS
        };
        let budget = Budget::new(limits);
        let quota = Arc::<Quota>::default();
        let of_one = || connect(&budget).under(Some(Arc::clone(&quota)));
        let connections: Vec<Unsent> = (0..10).map(|_| of_one()).collect();
        let shares: Vec<Share> = connections
            .iter()
            .map(|connection| connection.try_hold(1, EVERYTHING).unwrap())
            .collect();
        let pooled: usize = shares.iter().map(|share| share.pooled).sum();
        assert_eq!(pooled * UNIT_BYTES, limits.credential_bytes_max);
        assert_eq!(left(&budget), budget.pool_units - pooled);
        let other = connect(&budget).try_hold(1, EVERYTHING).unwrap();
        assert_eq!(other.bytes(), LIMITS.connection_bytes_max);
        drop(shares);
        assert!(quota.take_unsent(limits.credential_bytes_max, limits.credential_bytes_max));
    }
}
