//! Owns the memory that all bodies share: who may have how much of it, and who gives way when somebody
//! waits for some. Knows nothing of how bodies are read.
//!
//! - Memory is taken for what has arrived, so that holding it costs the sender as much as sending it.
//! - A client has a share of the whole, and small bodies have a part of both for themselves: large ones
//!   never keep a usual batch out.
//! - Each body lives on what it sends: each byte gives it time, up to [`GRACE`] in advance. While one
//!   waits for room, the one with the least time left gives way to it, if it has fallen behind by
//!   [`STALL`]. So what silent senders hold is there for whoever needs it a moment later.
//! - Only where nobody has fallen behind does a body wait, and is then refused.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{error::Error, source::Client};
use crate::net::network::Network;

/// A body up to this size is small; batches usually are.
pub(super) const SMALL_BYTES: usize = 64 * 1024;
/// The part of all memory, and of each share, that large bodies leave to small ones: one in so many.
const SMALL_PART: usize = 4;
/// The least that a body has to send in a second. Its deadline demands three times as much of the
/// largest one.
pub(super) const BYTES_PER_SECOND_MIN: u32 = 64 * 1024;
/// How far ahead a body can be. TCP sends what was lost again within a second.
const GRACE: Duration = Duration::from_secs(2);
/// How far a body has to fall behind before it gives way to another one.
const STALL: Duration = Duration::from_millis(250);
/// How long a body waits for room. Well below the time that it has in all.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of all bodies.
    pub(super) bytes_max: usize,
    /// Bytes of the bodies of one client; at least one body.
    pub(super) bytes_per_client_max: usize,
    /// Bytes of one body.
    pub(super) body_bytes_max: usize,
}

/// The memory that all bodies share.
pub(super) struct Budget {
    bytes_max: usize,
    all: Most,
    of_client: Most,
    bodies: Mutex<Bodies>,
    released: Notify,
}

/// The most that bodies may have.
#[derive(Clone, Copy)]
struct Most {
    bytes: usize,
    large_bytes: usize,
}

#[derive(Default)]
struct Bodies {
    next_id: u64,
    by_id: HashMap<u64, Entry>,
    used: Used,
    used_by_client: HashMap<Network, Used>,
}

/// What bodies have.
#[derive(Clone, Copy, Default)]
struct Used {
    bytes: usize,
    /// Of these, the bytes of bodies that are no longer small.
    large_bytes: usize,
}

struct Entry {
    client: Client,
    bytes: usize,
    /// Until when the body lives on what it has sent. `None` while it does not give way: it waits for
    /// room itself, or is whole.
    lively_until: Option<Instant>,
    gave_way: Arc<Notify>,
}

/// What one body has of the budget, until it is dropped.
pub(super) struct Held {
    budget: Arc<Budget>,
    id: u64,
    bytes: usize,
    gave_way: Arc<Notify>,
}

enum Taken {
    Yes,
    /// There is no room; a body may give way at this time, if nothing changes.
    Full(Option<Instant>),
    /// The body itself has given way.
    GaveWay,
}

impl Most {
    fn new(bytes: usize, body_bytes_max: usize) -> Self {
        let large_bytes = bytes - bytes / SMALL_PART;
        Self {
            bytes,
            // A body of any size that is allowed fits where it is alone.
            large_bytes: large_bytes.max(body_bytes_max).min(bytes),
        }
    }

    fn allows(&self, used: Used) -> bool {
        used.bytes <= self.bytes && used.large_bytes <= self.large_bytes
    }
}

impl Used {
    fn of(bytes: usize) -> Self {
        let is_large = bytes > SMALL_BYTES;
        Self {
            bytes,
            large_bytes: if is_large { bytes } else { 0 },
        }
    }

    /// With this instead of that.
    fn with(self, new: Self, old: Self) -> Self {
        Self {
            bytes: (self.bytes + new.bytes).saturating_sub(old.bytes),
            large_bytes: (self.large_bytes + new.large_bytes).saturating_sub(old.large_bytes),
        }
    }
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        let Limits {
            bytes_max,
            bytes_per_client_max,
            body_bytes_max,
        } = limits;
        let of_client = bytes_per_client_max.max(body_bytes_max).min(bytes_max);
        Self {
            bytes_max,
            all: Most::new(bytes_max, body_bytes_max),
            of_client: Most::new(of_client, body_bytes_max),
            bodies: Mutex::default(),
            released: Notify::new(),
        }
    }

    /// Begins with a body of a client, which has nothing yet.
    pub(super) fn begin(self: &Arc<Self>, client: Client) -> Held {
        let gave_way = Arc::new(Notify::new());
        let mut bodies = self.lock();
        let id = bodies.next_id;
        bodies.next_id += 1;
        let entry = Entry {
            client,
            bytes: 0,
            lively_until: Some(Instant::now() + GRACE),
            gave_way: Arc::clone(&gave_way),
        };
        bodies.by_id.insert(id, entry);
        Held {
            budget: Arc::clone(self),
            id,
            bytes: 0,
            gave_way,
        }
    }

    /// Lets a body have so many bytes in all, if others leave or give it room.
    fn take(&self, id: u64, bytes: usize, now: Instant) -> Taken {
        let mut bodies = self.lock();
        loop {
            let Some(entry) = bodies.by_id.get(&id) else {
                return Taken::GaveWay;
            };
            let client = entry.client;
            let (new, old) = (Used::of(bytes), Used::of(entry.bytes));
            let of_client = bodies.used_by_client.get(&client.network);
            let of_client = of_client.copied().unwrap_or_default().with(new, old);
            let over = if !client.is_proxy && !self.of_client.allows(of_client) {
                let only_large = of_client.bytes <= self.of_client.bytes;
                Over {
                    client: Some(client.network),
                    only_large,
                }
            } else if !self.all.allows(bodies.used.with(new, old)) {
                let only_large = bodies.used.with(new, old).bytes <= self.all.bytes;
                Over {
                    client: None,
                    only_large,
                }
            } else {
                bodies.resize(id, bytes);
                return Taken::Yes;
            };
            match bodies.least_lively(id, over) {
                Some((slowest, until)) if until + STALL <= now + GRACE => {
                    // Its task frees the memory as soon as it runs, which is a moment later.
                    bodies.remove(slowest);
                    // There may be more room than this one takes.
                    self.released.notify_waiters();
                }
                next => return Taken::Full(next.map(|(_, until)| (until + STALL) - GRACE)),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which limit is in the way.
#[derive(Clone, Copy)]
struct Over {
    /// That of this client, or of all.
    client: Option<Network>,
    /// There is room, but not for large bodies.
    only_large: bool,
}

impl Bodies {
    /// The body, of those whose memory would help, that has the least time left.
    fn least_lively(&self, but: u64, over: Over) -> Option<(u64, Instant)> {
        let helps = |entry: &Entry| {
            entry.bytes > 0
                && over
                    .client
                    .is_none_or(|client| client == entry.client.network)
                && (!over.only_large || Used::of(entry.bytes).large_bytes > 0)
        };
        let candidates = self
            .by_id
            .iter()
            .filter(|&(&id, entry)| id != but && helps(entry));
        let timed = candidates.filter_map(|(&id, entry)| Some((id, entry.lively_until?)));
        timed.min_by_key(|&(_, until)| until)
    }

    fn resize(&mut self, id: u64, bytes: usize) {
        let Some(entry) = self.by_id.get_mut(&id) else {
            return;
        };
        let (new, old) = (Used::of(bytes), Used::of(entry.bytes));
        entry.bytes = bytes;
        let network = entry.client.network;
        self.used = self.used.with(new, old);
        let of_client = self.used_by_client.entry(network).or_default();
        *of_client = of_client.with(new, old);
        if of_client.bytes == 0 {
            self.used_by_client.remove(&network);
        }
    }

    /// Takes everything from a body. Its task is told, if it has not ended.
    fn remove(&mut self, id: u64) {
        self.resize(id, 0);
        if let Some(entry) = self.by_id.remove(&id) {
            entry.gave_way.notify_one();
        }
    }
}

impl Held {
    /// What the body may fill.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many bytes of the body have arrived. Returns until when it lives on them.
    pub(super) fn arrived(&self, bytes: usize) -> Instant {
        let most = Instant::now() + GRACE;
        let mut bodies = self.budget.lock();
        let entry = bodies.by_id.get_mut(&self.id);
        let Some(until) = entry.and_then(|entry| entry.lively_until.as_mut()) else {
            return most;
        };
        let earned = Duration::from_secs(1) / BYTES_PER_SECOND_MIN;
        let earned = earned.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        *until = (*until + earned).min(most);
        *until
    }

    /// Waits for room for so many bytes in all.
    pub(super) async fn extend(&mut self, bytes: usize) -> Result<(), Error> {
        let since = Instant::now();
        let give_up_at = since + ROOM_TIMEOUT;
        let mut left = None;
        loop {
            let mut released = pin!(self.budget.released.notified());
            released.as_mut().enable();
            let now = Instant::now();
            let next = match self.budget.take(self.id, bytes, now) {
                Taken::Yes => break,
                Taken::GaveWay => return Err(Error::BodyGaveWay),
                Taken::Full(_) if now >= give_up_at => {
                    let bytes_max = self.budget.bytes_max;
                    return Err(Error::BodiesTooLarge { bytes_max });
                }
                Taken::Full(next) => next.unwrap_or(give_up_at).min(give_up_at),
            };
            // Whoever waits for room cannot go on sending, and so does not give way.
            if left.is_none() {
                left = self.give_way_from(None).map(|until| until - since);
            }
            let _ = timeout_at(next, released).await;
        }
        self.bytes = bytes;
        if let Some(left) = left {
            self.give_way_from(Some(Instant::now() + left));
        }
        Ok(())
    }

    /// The body is whole: it gives way to nobody from now on.
    pub(super) fn complete(&self) {
        self.give_way_from(None);
    }

    /// Waits for something that is not the body's own progress, and gives way at any time meanwhile.
    pub(super) async fn idle(&self, until: impl Future<Output = ()>) -> Result<(), Error> {
        self.give_way_from(Some(Instant::now()));
        tokio::select! {
            () = until => {}
            () = self.gave_way() => return Err(Error::BodyGaveWay),
        }
        if self.budget.lock().by_id.contains_key(&self.id) {
            self.complete();
            Ok(())
        } else {
            Err(Error::BodyGaveWay)
        }
    }

    /// Waits until the body has given way to another one.
    pub(super) async fn gave_way(&self) {
        self.gave_way.notified().await;
    }

    /// Sets until when the body is lively, and returns what that was.
    fn give_way_from(&self, until: Option<Instant>) -> Option<Instant> {
        let mut bodies = self.budget.lock();
        let entry = bodies.by_id.get_mut(&self.id)?;
        std::mem::replace(&mut entry.lively_until, until)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.lock().remove(self.id);
        self.budget.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const KIB: usize = 1024;

    fn budget(bytes_max: usize, bytes_per_client_max: usize) -> Arc<Budget> {
        Arc::new(Budget::new(Limits {
            bytes_max,
            bytes_per_client_max,
            body_bytes_max: 100 * KIB,
        }))
    }

    fn client(number: u8) -> Client {
        Client {
            network: Network::single(IpAddr::from([192, 0, 2, number])),
            is_proxy: false,
        }
    }

    async fn holding(budget: &Arc<Budget>, number: u8, bytes: usize) -> Held {
        let mut held = budget.begin(client(number));
        held.arrived(bytes);
        held.extend(bytes).await.unwrap();
        held
    }

    fn used(budget: &Budget) -> usize {
        budget.lock().used.bytes
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_falls_silent_gives_way_to_one_that_waits() {
        let budget = budget(400 * KIB, 400 * KIB);
        let since = Instant::now();
        let silent = holding(&budget, 1, 100 * KIB).await;
        let others = [
            holding(&budget, 1, 100 * KIB).await,
            holding(&budget, 2, 100 * KIB).await,
        ];
        for other in &others {
            other.complete();
        }
        // Of the same client or of another one.
        let late = holding(&budget, 1, 100 * KIB).await;
        assert!((STALL..2 * STALL).contains(&since.elapsed()));
        silent.gave_way().await;
        late.complete();
        assert_eq!(used(&budget), 300 * KIB);
        drop((silent, others, late));
        assert_eq!(used(&budget), 0);
        assert!(budget.lock().used_by_client.is_empty() && budget.lock().by_id.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_been_silent_longest_gives_way_first() {
        let budget = budget(400 * KIB, 400 * KIB);
        let first = holding(&budget, 1, 100 * KIB).await;
        tokio::time::advance(STALL).await;
        let second = holding(&budget, 1, 100 * KIB).await;
        let third = holding(&budget, 1, 100 * KIB).await;
        tokio::time::advance(STALL).await;
        // The first one goes on.
        first.arrived(100 * KIB);
        let _fourth = holding(&budget, 1, 100 * KIB).await;
        let gone = |held: &Held| !budget.lock().by_id.contains_key(&held.id);
        assert!(!gone(&first));
        assert!(gone(&second) != gone(&third));
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_go_on_are_not_pushed_out_and_the_next_one_waits() {
        let budget = budget(400 * KIB, 400 * KIB);
        let mut held = Vec::new();
        for number in 0..3 {
            held.push(holding(&budget, number, 100 * KIB).await);
        }
        let going_on = async {
            for _ in 0..200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                for body in &held {
                    // A little faster than they have to.
                    body.arrived(BYTES_PER_SECOND_MIN as usize / 99);
                }
            }
        };
        let since = Instant::now();
        let mut next = budget.begin(client(9));
        let (refused, ()) = tokio::join!(
            async { (next.extend(100 * KIB).await, since.elapsed()) },
            going_on
        );
        let (refused, took) = refused;
        assert!(matches!(refused, Err(Error::BodiesTooLarge { .. })));
        assert!((ROOM_TIMEOUT..2 * ROOM_TIMEOUT).contains(&took));
        assert!(
            held.iter()
                .all(|body| budget.lock().by_id.contains_key(&body.id))
        );
        // A body that ends makes room at once.
        for body in &held {
            body.complete();
        }
        let (taken, ()) = tokio::join!(next.extend(100 * KIB), async { drop(held) });
        assert!(taken.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_client_has_a_share_and_a_proxy_the_whole() {
        let budget = budget(1_600 * KIB, 400 * KIB);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(holding(&budget, 1, 100 * KIB).await);
            held.iter().for_each(Held::complete);
        }
        let mut over = budget.begin(client(1));
        let refused = over.extend(100 * KIB).await;
        assert!(matches!(refused, Err(Error::BodiesTooLarge { .. })));
        // A quarter of the share is for small ones.
        over.extend(SMALL_BYTES).await.unwrap();
        held.push(holding(&budget, 2, 100 * KIB).await);
        held.iter().for_each(Held::complete);
        let proxy = Client {
            is_proxy: true,
            ..client(3)
        };
        for _ in 0..8 {
            let mut body = budget.begin(proxy);
            body.extend(100 * KIB).await.unwrap();
            body.complete();
            held.push(body);
        }
        assert_eq!(used(&budget), 1_200 * KIB + SMALL_BYTES);
        let mut large = budget.begin(client(4));
        assert!(large.extend(100 * KIB).await.is_err());
        let since = Instant::now();
        let _small = holding(&budget, 4, SMALL_BYTES).await;
        assert!(since.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_the_largest_size_fits_where_it_is_alone() {
        for (all, of_client) in [(100 * KIB, KIB), (110 * KIB, 110 * KIB), (KIB * KIB, 1)] {
            let budget = budget(all, of_client);
            let body = holding(&budget, 1, 100 * KIB).await;
            assert_eq!(body.bytes(), 100 * KIB);
            let refused = budget.begin(client(1)).extend(100 * KIB).await;
            assert!(refused.is_ok(), "a silent one gives way");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_something_else_gives_way_at_once() {
        let budget = budget(100 * KIB, 100 * KIB);
        let idle = holding(&budget, 1, 100 * KIB).await;
        idle.complete();
        assert!(idle.idle(async {}).await.is_ok());
        let waiting = idle.idle(std::future::pending());
        let since = Instant::now();
        let (gave_way, taken) = tokio::join!(waiting, holding(&budget, 2, 100 * KIB));
        assert!(matches!(gave_way, Err(Error::BodyGaveWay)));
        assert!(since.elapsed().is_zero());
        drop(taken);
        let refused = idle.idle(async {}).await;
        assert!(matches!(refused, Err(Error::BodyGaveWay)));
    }
}
