//! Owns the newest part of the log in memory: a bounded window of committed blocks that all
//! subscribers share, and their wake-ups. A subscriber has a position and a filter instead of a queue,
//! so publishing never waits for a subscriber. A subscriber whose position has left the window reads
//! from the log until its position is in the window again. The bus follows one log and accepts only
//! the block that comes next. Knows nothing of how blocks are sent.

mod extract;

use std::{
    collections::VecDeque,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use dashmap::DashMap;
use tokio::sync::watch;

pub use self::extract::Extract;
use self::extract::{Extracts, Taken};
use crate::{
    event::{LogId, Sequence, UnixMicros},
    filter::Filter,
    log::{Block, Follower, Format, Gap, Log},
};

/// The limits of the bus.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The most bytes of blocks that the window holds. The newest block always stays.
    pub window_bytes_max: usize,
}

/// The most matching blocks that a group remembers. A subscriber that is further behind looks at each block,
/// as it would without a group. A window can have a hundred thousand blocks, and a bus ten thousand
/// groups.
const MATCHES_KEPT_MAX: usize = 128;

/// The extracts of all groups take at most this part of the window's bytes.
const EXTRACTS_PART: usize = 4;

/// How often [`Bus::follow`] tries again when the log grew between the reading of its head and the
/// registration as a follower, which takes less than a microsecond.
const FOLLOW_ATTEMPTS_MAX: usize = 1_000;

/// The window and its subscribers. Shared as an `Arc`.
pub struct Bus {
    options: Options,
    log: LogId,
    window: RwLock<Window>,
    /// The newest sequence number: a copy of the window's, which is read without the lock.
    head: AtomicU64,
    /// Subscribers with equal filters are woken together, so that publishing evaluates each distinct
    /// filter once.
    groups: DashMap<Filter, Arc<Group>>,
    bytes: AtomicUsize,
    /// What the extracts of all groups take, in bytes.
    extract_bytes: AtomicUsize,
}

struct Window {
    blocks: VecDeque<Published>,
    head: Sequence,
    bytes: usize,
}

struct Published {
    block: Arc<Block>,
    at: Instant,
}

struct Group {
    /// Is sent each time that a block may match.
    matched: watch::Sender<()>,
    recent: RwLock<Recent>,
    extracts: Extracts,
    /// The number of subscribers. It changes only under the lock of the group's entry in the map.
    subscribers: AtomicUsize,
}

/// Which of the published blocks may match a filter. With it a subscriber passes over the blocks that
/// cannot match without looking at them, also when they have left the window.
struct Recent {
    /// The last sequence number of each block in the window that may match.
    in_window: VecDeque<Sequence>,
    /// The end of the newest block that may have matched and is not in the window any more.
    gone: Sequence,
    /// The end of the newest block that the filter was evaluated for.
    seen: Sequence,
}

/// What a group knows about the blocks after a position. The group may be behind the window: it knows
/// nothing of the blocks that its filter was not evaluated for yet.
#[derive(Clone, Copy)]
enum Known {
    /// Nothing: the next block was published before the group existed, or has left the window.
    Nothing,
    /// The first block that may match ends with this event.
    NextMatch { last: Sequence },
    /// No block up to this event can match.
    NoMatchUntil(Sequence),
}

/// What comes after a position.
#[derive(Debug)]
pub enum Next {
    /// A block with an event that may match.
    Block {
        /// The block. It may begin before the position.
        block: Arc<Block>,
        /// When the block was published.
        published_at: Instant,
    },
    /// Nothing yet: no event between the position and this one matches.
    AtHead(Sequence),
    /// The position has left the window: read from the log.
    Behind,
}

impl Bus {
    /// Makes a bus that follows a log from its head on.
    ///
    /// # Errors
    /// [`Gap`] if the log grew during every attempt to follow it.
    pub fn follow(options: Options, log: &dyn Log) -> Result<Arc<Self>, Gap> {
        let mut attempts_left = FOLLOW_ATTEMPTS_MAX;
        loop {
            let (id, head) = (log.status().epochs().log(), log.range().head);
            let bus = Self::new(options, id, head);
            match log.follow(head, Arc::clone(&bus) as _) {
                Ok(()) => return Ok(bus),
                Err(gap) if attempts_left == 0 => return Err(gap),
                // A commit of another bridge came in between.
                Err(_) => attempts_left -= 1,
            }
        }
    }

    /// Makes a bus with an empty window, for a log that ends with `head`. The caller publishes to it.
    #[must_use]
    pub fn new(options: Options, log: LogId, head: Sequence) -> Arc<Self> {
        Arc::new(Self {
            options,
            log,
            window: RwLock::new(Window {
                blocks: VecDeque::new(),
                head,
                bytes: 0,
            }),
            head: AtomicU64::new(head.0),
            groups: DashMap::new(),
            bytes: AtomicUsize::new(0),
            extract_bytes: AtomicUsize::new(0),
        })
    }

    /// Adds the newest block, removes the oldest ones above the limit, and wakes the subscribers whose
    /// filter may match. Only one thread at a time may call it, in the log's order.
    ///
    /// # Errors
    /// [`Gap`] if it is not the block that comes next. Nothing changes then.
    pub fn publish(&self, block: &Arc<Block>) -> Result<(), Gap> {
        let evicted = {
            let mut window = self.window.write().unwrap_or_else(PoisonError::into_inner);
            Gap::check(self.log, window.head, block)?;
            window.push(Arc::clone(block), self.options.window_bytes_max)
        };
        // After the window and before the groups: a subscriber that joins in between finds the block
        // in the window, and one that joined before is woken.
        self.bytes.store(evicted.bytes_left, Ordering::Relaxed);
        self.head.store(block.last_sequence().0, Ordering::Release);
        let is_full = self.extract_bytes.load(Ordering::Relaxed) > self.extract_bytes_max();
        for entry in &self.groups {
            if is_full {
                // They are of earlier blocks: who still wants one makes it again.
                entry.value().extracts.try_clear(&self.extract_bytes);
            }
            entry.value().publish(entry.key(), block, evicted.through);
        }
        Ok(())
    }

    fn extract_bytes_max(&self) -> usize {
        self.options.window_bytes_max / EXTRACTS_PART
    }

    /// The sequence number of the newest event.
    #[must_use]
    pub fn head(&self) -> Sequence {
        Sequence(self.head.load(Ordering::Acquire))
    }

    /// The bytes of blocks in the window.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The number of blocks in the window.
    #[must_use]
    pub fn window_blocks(&self) -> usize {
        self.window
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .blocks
            .len()
    }

    /// The first event in the window; `None` while there is none.
    #[must_use]
    pub fn window_first(&self) -> Option<Sequence> {
        let window = self.window.read().unwrap_or_else(PoisonError::into_inner);
        let oldest = window.blocks.front()?;
        Some(oldest.block.first_sequence())
    }

    /// When the event after a position was received. If it has left the window, this is the time of
    /// the oldest block in the window, which is later.
    #[must_use]
    pub fn received_after(&self, after: Sequence) -> Option<UnixMicros> {
        let window = self.window.read().unwrap_or_else(PoisonError::into_inner);
        let published = window.with(after.plus(1))?;
        Some(published.block.received_at())
    }

    /// Adds a subscriber to those with this filter.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, filter: Filter) -> Subscriber {
        let entry = self.groups.entry(filter).or_insert_with(|| {
            // Read under the entry's lock: publishing has set the head before it passes this entry.
            Arc::new(Group::new(self.head()))
        });
        entry.subscribers.fetch_add(1, Ordering::Relaxed);
        let group = Arc::clone(&entry);
        // Equal filters are one in memory.
        let filter = entry.key().clone();
        drop(entry);
        let matched = group.matched.subscribe();
        Subscriber {
            bus: Arc::clone(self),
            filter,
            group,
            matched,
        }
    }
}

impl Follower for Bus {
    fn apply(&self, block: &Arc<Block>) -> Result<(), Gap> {
        self.publish(block)
    }
}

/// [`VecDeque::partition_point`] by galloping search from the back: most callers want one of the last
/// items, and only the newest blocks of the window are in the CPU's cache.
fn partition_point_from_back<T>(items: &VecDeque<T>, is_before: impl Fn(&T) -> bool) -> usize {
    let is_before = |index: usize| items.get(index).is_some_and(&is_before);
    let (mut low, mut high) = (items.len(), items.len());
    let mut step = 1;
    while low > 0 {
        low = items.len().saturating_sub(step);
        if is_before(low) {
            low += 1;
            break;
        }
        high = low;
        step *= 2;
    }
    while low < high {
        let middle = low.midpoint(high);
        if is_before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

struct Evicted {
    through: Option<Sequence>,
    bytes_left: usize,
}

impl Window {
    fn push(&mut self, block: Arc<Block>, bytes_max: usize) -> Evicted {
        self.head = block.last_sequence();
        self.bytes += block.memory_bytes();
        self.blocks.push_back(Published {
            block,
            at: Instant::now(),
        });
        let mut through = None;
        while self.bytes > bytes_max && self.blocks.len() > 1 {
            if let Some(oldest) = self.blocks.pop_front() {
                self.bytes -= oldest.block.memory_bytes();
                through = Some(oldest.block.last_sequence());
            }
        }
        Evicted {
            through,
            bytes_left: self.bytes,
        }
    }

    fn next(&self, after: Sequence, known: Known) -> Next {
        if after >= self.head {
            return Next::AtHead(after);
        }
        let first = self
            .blocks
            .front()
            .map_or(self.head.plus(1), |oldest| oldest.block.first_sequence());
        let covered = after.plus(1) >= first;
        match known {
            Known::Nothing if covered => self.block_with(after.plus(1)),
            Known::NextMatch { last } if last >= first => self.block_with(last),
            Known::NoMatchUntil(seen) if seen > after => Next::AtHead(seen),
            Known::NoMatchUntil(_) if covered => self.block_with(after.plus(1)),
            _ => Next::Behind,
        }
    }

    fn block_with(&self, sequence: Sequence) -> Next {
        self.with(sequence)
            .map_or(Next::Behind, |published| Next::Block {
                block: Arc::clone(&published.block),
                published_at: published.at,
            })
    }

    /// The first block that ends with this event or after it.
    fn with(&self, sequence: Sequence) -> Option<&Published> {
        let index = partition_point_from_back(&self.blocks, |published| {
            published.block.last_sequence() < sequence
        });
        self.blocks.get(index)
    }
}

impl Group {
    fn new(head: Sequence) -> Self {
        // Whether earlier blocks match is not known, so they count as if they did.
        let recent = Recent {
            in_window: VecDeque::new(),
            gone: head,
            seen: head,
        };
        Self {
            matched: watch::Sender::new(()),
            recent: RwLock::new(recent),
            extracts: Extracts::default(),
            subscribers: AtomicUsize::new(0),
        }
    }

    fn known(&self, after: Sequence) -> Known {
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        if after < recent.gone {
            return Known::Nothing;
        }
        let index = partition_point_from_back(&recent.in_window, |&last| last <= after);
        match recent.in_window.get(index) {
            Some(&last) => Known::NextMatch { last },
            None => Known::NoMatchUntil(recent.seen),
        }
    }

    fn publish(&self, filter: &Filter, block: &Block, evicted_through: Option<Sequence>) {
        let matches = filter.may_match(block);
        {
            let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
            if matches {
                recent.in_window.push_back(block.last_sequence());
                if recent.in_window.len() > MATCHES_KEPT_MAX
                    && let Some(oldest) = recent.in_window.pop_front()
                {
                    recent.gone = oldest;
                }
            }
            recent.seen = block.last_sequence();
            if let Some(through) = evicted_through {
                while let Some(&oldest) = recent.in_window.front()
                    && oldest <= through
                {
                    recent.gone = oldest;
                    recent.in_window.pop_front();
                }
            }
        }
        if matches {
            self.matched.send_replace(());
        }
    }
}

/// One subscriber of the bus. It leaves its group when it is dropped.
pub struct Subscriber {
    bus: Arc<Bus>,
    filter: Filter,
    group: Arc<Group>,
    matched: watch::Receiver<()>,
}

impl Subscriber {
    /// The filter.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Returns what comes after a position. Never waits.
    pub fn next(&mut self, after: Sequence) -> Next {
        // Before the look: a block that is published after this wakes `changed`.
        self.matched.mark_unchanged();
        // Most calls find nothing new. The head is set before subscribers are woken, so this needs no
        // lock.
        if after >= self.bus.head() {
            return Next::AtHead(after);
        }
        // The group is read before the window, so that it never knows of newer blocks than the window.
        let known = self.group.known(after);
        let window = self
            .bus
            .window
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        window.next(after, known)
    }

    /// The matching events of a block, copied once for all subscribers with this filter. `None` if no
    /// other subscriber has the filter, or if all events match and the block itself can be used.
    #[must_use]
    pub fn extract(&self, block: &Block, format: Format) -> Option<Arc<Extract>> {
        if self.filter.is_everything() || self.group.subscribers.load(Ordering::Relaxed) < 2 {
            return None;
        }
        let bus = &self.bus;
        let taken = Taken {
            bytes: &bus.extract_bytes,
            bytes_max: bus.extract_bytes_max(),
        };
        self.group.extracts.get(&self.filter, block, format, &taken)
    }

    /// Resolves when there may be a new match since the last [`next`](Self::next).
    pub async fn changed(&mut self) {
        // The sender lives as long as the group, which this subscriber holds.
        let _ = self.matched.changed().await;
    }

    /// The newest sequence number.
    #[must_use]
    pub fn head(&self) -> Sequence {
        self.bus.head()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // The last one of a group takes it along.
        self.bus.groups.remove_if(&self.filter, |_, group| {
            let is_last = group.subscribers.fetch_sub(1, Ordering::Relaxed) == 1;
            if is_last {
                group.extracts.clear(&self.bus.extract_bytes);
            }
            is_last
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::testing as fixtures,
        filter::Spec,
        log::{Health, memory, testing::Scripted},
    };

    fn filter(types: &[&str]) -> Filter {
        let types = types.iter().map(ToString::to_string).collect();
        Filter::compile(&Spec {
            types,
            ..Spec::default()
        })
        .unwrap()
    }

    /// A block with one event of a type.
    fn block(sequence: u64, event_type: &str) -> Arc<Block> {
        let id = format!("evt_{sequence}");
        fixtures::block_of(
            Sequence(sequence),
            &fixtures::batch("app", &[(&id, event_type, "")]),
        )
    }

    fn bus_of(blocks: usize) -> Arc<Bus> {
        // Half a block of slack: they differ by a few bytes.
        let block_bytes = block(1, "wanted").memory_bytes();
        let window_bytes_max = block_bytes * blocks + block_bytes / 2;
        Bus::new(Options { window_bytes_max }, LogId(1), Sequence::ZERO)
    }

    fn first(next: Next) -> u64 {
        match next {
            Next::Block { block, .. } => block.first_sequence().0,
            other => panic!("{other:?}"),
        }
    }

    fn is_woken(subscriber: &mut Subscriber) -> bool {
        subscriber.matched.has_changed().unwrap()
    }

    #[test]
    fn a_subscriber_reads_the_window_in_order_and_then_waits() {
        let bus = bus_of(10);
        let mut subscriber = bus.subscribe(Filter::everything());
        for sequence in 1..=3 {
            bus.publish(&block(sequence, "a")).unwrap();
        }
        for after in 0..3 {
            assert_eq!(first(subscriber.next(Sequence(after))), after + 1);
        }
        assert!(matches!(
            subscriber.next(Sequence(3)),
            Next::AtHead(Sequence(3))
        ));
        assert!(!is_woken(&mut subscriber));
        assert_eq!(bus.head(), Sequence(3));
    }

    #[test]
    fn a_search_from_the_back_finds_what_one_from_the_front_does() {
        for length in 0..40 {
            let items: VecDeque<usize> = (0..length).map(|n| n * 2).collect();
            for wanted in 0..=length * 2 + 1 {
                let found = partition_point_from_back(&items, |&item| item < wanted);
                assert_eq!(found, items.partition_point(|&item| item < wanted));
            }
        }
    }

    #[test]
    fn a_block_says_when_it_was_published() {
        let bus = bus_of(10);
        let mut subscriber = bus.subscribe(filter(&["wanted"]));
        let before = Instant::now();
        bus.publish(&block(1, "other")).unwrap();
        bus.publish(&block(2, "wanted")).unwrap();
        let between = Instant::now();
        bus.publish(&block(3, "wanted")).unwrap();
        let mut published_after = |after| match subscriber.next(Sequence(after)) {
            Next::Block { published_at, .. } => published_at,
            other => panic!("{other:?}"),
        };
        let (older, newer) = (published_after(1), published_after(2));
        assert!(before <= older && older <= between && between <= newer);
    }

    #[test]
    fn who_falls_out_of_the_window_is_sent_to_the_log() {
        let bus = bus_of(2);
        let mut early = bus.subscribe(Filter::everything());
        for sequence in 1..=5 {
            bus.publish(&block(sequence, "a")).unwrap();
        }
        let mut late = bus.subscribe(Filter::everything());
        for subscriber in [&mut early, &mut late] {
            assert!(matches!(subscriber.next(Sequence(2)), Next::Behind));
            assert_eq!(first(subscriber.next(Sequence(3))), 4);
        }
        assert!(bus.window_bytes() < 3 * block(1, "a").memory_bytes());
    }

    #[test]
    fn a_group_remembers_few_of_the_blocks_that_match() {
        let bus = bus_of(1_000);
        let mut behind = bus.subscribe(filter(&["wanted"]));
        let mut wanted = Vec::new();
        for sequence in 1..=800 {
            let is_wanted = sequence % 2 == 0;
            bus.publish(&block(sequence, if is_wanted { "wanted" } else { "other" }))
                .unwrap();
        }
        let recent = behind.group.recent.read().unwrap().in_window.len();
        assert_eq!(recent, MATCHES_KEPT_MAX);
        // It finds them all the same, and looks at those that it has forgotten.
        let mut after = Sequence::ZERO;
        while let Next::Block { block, .. } = behind.next(after) {
            after = block.last_sequence();
            if behind.filter().may_match(&block) {
                wanted.push(after.0);
            }
        }
        assert!(wanted.iter().copied().eq((2..=800).step_by(2)));
    }

    #[test]
    fn subscribers_with_equal_filters_have_one_in_memory() {
        let bus = bus_of(10);
        let subscribers = [(); 3].map(|()| bus.subscribe(filter(&["wanted"])));
        let first = subscribers[0].filter();
        for other in &subscribers {
            assert!(other.filter().shares_memory_with(first));
        }
    }

    #[test]
    fn a_bus_over_an_old_log_sends_everybody_to_the_log_first() {
        let bus = Bus::new(Options::default(), LogId(1), Sequence(9));
        let mut subscriber = bus.subscribe(Filter::everything());
        assert!(matches!(subscriber.next(Sequence(8)), Next::Behind));
        assert!(matches!(
            subscriber.next(Sequence(9)),
            Next::AtHead(Sequence(9))
        ));
    }

    #[test]
    fn a_block_that_does_not_come_next_is_refused_and_changes_nothing() {
        let bus = bus_of(10);
        let mut subscriber = bus.subscribe(Filter::everything());
        for sequence in 1..=3 {
            bus.publish(&block(sequence, "a")).unwrap();
        }
        let _ = subscriber.next(Sequence(3));
        let window_bytes = bus.window_bytes();
        let expected = Sequence(4);
        for found in [1, 3].map(Sequence) {
            let refused = bus.publish(&block(found.0, "a"));
            assert_eq!(refused, Err(Gap::Repeated { expected, found }));
        }
        for found in [5, u64::MAX - 1].map(Sequence) {
            let refused = bus.publish(&block(found.0, "a"));
            assert_eq!(refused, Err(Gap::Missing { expected, found }));
        }
        assert_eq!((bus.head(), bus.window_blocks()), (Sequence(3), 3));
        assert_eq!(bus.window_bytes(), window_bytes);
        assert!(!is_woken(&mut subscriber));
        bus.publish(&block(4, "a")).unwrap();
        assert_eq!(first(subscriber.next(Sequence(3))), 4);
    }

    #[test]
    fn a_block_of_another_log_is_refused() {
        let bus = Bus::new(Options::default(), LogId(7), Sequence::ZERO);
        let gap = Gap::OtherLog {
            expected: LogId(7),
            found: LogId(1),
        };
        assert_eq!(bus.publish(&block(1, "a")), Err(gap));
    }

    #[tokio::test]
    async fn a_bus_follows_a_log_from_its_head() {
        let log = memory::open(memory::Options::default()).unwrap();
        let append = |numbers| log.append(fixtures::numbered("app", numbers));
        append(0..5).await.unwrap();
        let bus = Bus::follow(Options::default(), &*log).unwrap();
        assert_eq!((bus.head(), bus.window_blocks()), (Sequence(5), 0));
        append(5..7).await.unwrap();
        assert_eq!((bus.head(), bus.window_blocks()), (Sequence(7), 1));
    }

    #[tokio::test]
    async fn a_bus_begins_between_two_commits_of_a_log_that_grows() {
        let log = memory::open(memory::Options::default()).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 0..2_000 {
                    // It appends at once, and answers later.
                    drop(log.append(fixtures::numbered("app", n..n + 1)));
                }
            });
            let bus = Bus::follow(Options::default(), &*log).unwrap();
            writer.join().unwrap();
            assert_eq!(bus.head(), Sequence(2_000));
        });
        assert_eq!(log.status().health(), Health::Ready);
    }

    #[test]
    fn a_log_that_cannot_be_followed_has_no_bus() {
        let log = Scripted::new(memory::open(memory::Options::default()).unwrap());
        let gap = Gap::Missing {
            expected: Sequence(1),
            found: Sequence(2),
        };
        log.refuse_followers(gap);
        assert_eq!(Bus::follow(Options::default(), &log).err(), Some(gap));
    }

    #[test]
    fn only_those_who_may_want_a_block_are_woken() {
        let bus = bus_of(10);
        let mut wants = bus.subscribe(filter(&["user.session.*"]));
        let mut wants_too = bus.subscribe(filter(&["user.session.*"]));
        let mut other = bus.subscribe(filter(&["user.created"]));
        assert_eq!(bus.groups.len(), 2, "equal filters are one group");
        bus.publish(&block(1, "user.session.created")).unwrap();
        assert!(is_woken(&mut wants) && is_woken(&mut wants_too) && !is_woken(&mut other));
        drop((wants, other));
        assert_eq!(bus.groups.len(), 1, "a group ends with its last subscriber");
        drop(wants_too);
        assert_eq!(bus.groups.len(), 0);
    }

    #[test]
    fn who_sleeps_through_what_it_does_not_want_has_not_fallen_behind() {
        let bus = bus_of(2);
        let mut subscriber = bus.subscribe(filter(&["wanted"]));
        bus.publish(&block(1, "wanted")).unwrap();
        assert_eq!(first(subscriber.next(Sequence(0))), 1);
        for sequence in 2..=8 {
            bus.publish(&block(sequence, "other")).unwrap();
        }
        assert!(!is_woken(&mut subscriber));
        assert!(matches!(
            subscriber.next(Sequence(1)),
            Next::AtHead(Sequence(8))
        ));
        bus.publish(&block(9, "wanted")).unwrap();
        bus.publish(&block(10, "other")).unwrap();
        assert_eq!(first(subscriber.next(Sequence(1))), 9);
        bus.publish(&block(11, "other")).unwrap();
        assert!(
            matches!(subscriber.next(Sequence(1)), Next::Behind),
            "a match has left the window"
        );
    }

    #[test]
    fn a_late_subscriber_looks_at_blocks_from_before_its_time() {
        let bus = bus_of(10);
        bus.publish(&block(1, "other")).unwrap();
        bus.publish(&block(2, "wanted")).unwrap();
        let mut subscriber = bus.subscribe(filter(&["wanted"]));
        bus.publish(&block(3, "other")).unwrap();
        assert_eq!(first(subscriber.next(Sequence(0))), 1);
        assert_eq!(first(subscriber.next(Sequence(1))), 2);
        assert!(matches!(
            subscriber.next(Sequence(2)),
            Next::AtHead(Sequence(3))
        ));
    }

    #[tokio::test]
    async fn a_block_between_looking_and_waiting_is_not_missed() {
        let bus = bus_of(10);
        let mut subscriber = bus.subscribe(Filter::everything());
        assert!(matches!(subscriber.next(Sequence::ZERO), Next::AtHead(_)));
        bus.publish(&block(1, "a")).unwrap();
        let woken =
            tokio::time::timeout(std::time::Duration::from_secs(10), subscriber.changed()).await;
        assert!(woken.is_ok());
    }

    /// Every match is seen, whatever the window and however publishing and reading interleave.
    #[test]
    fn nothing_that_matches_is_passed_over_under_load() {
        const EVENTS: u64 = 20_000;
        let bus = bus_of(16);
        let mut readers: Vec<Subscriber> = Vec::new();
        for types in [&["wanted"][..], &["other"], &[]] {
            readers.push(bus.subscribe(filter(types)));
        }
        let kind = |sequence: u64| {
            if sequence.is_multiple_of(7) {
                "wanted"
            } else {
                "other"
            }
        };
        std::thread::scope(|scope| {
            for mut reader in readers {
                scope.spawn(move || {
                    let mut position = Sequence::ZERO;
                    while position < Sequence(EVENTS) {
                        let next = match reader.next(position) {
                            Next::Block { block, .. } => block.last_sequence(),
                            Next::AtHead(head) => head,
                            // Where the log would come in: one event at a time.
                            Next::Behind => position.plus(1),
                        };
                        // Only a block, or a place known to have no match, moves the position.
                        for passed in position.0 + 1..next.0 {
                            let types = [Arc::from(kind(passed))];
                            let matches = reader.filter().matches(&types[0], "app", "");
                            assert!(!matches, "event {passed} was passed over");
                        }
                        position = next;
                        std::hint::spin_loop();
                    }
                });
            }
            for sequence in 1..=EVENTS {
                bus.publish(&block(sequence, kind(sequence))).unwrap();
            }
        });
    }
}
