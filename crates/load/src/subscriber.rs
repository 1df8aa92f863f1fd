//! Owns the receiving side: a crowd of subscribers with a connection each, which read as fast as
//! they can and count. Each of its threads reads its share of them; nothing is kept but counts.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Token, Waker};

use super::{
    Context, Error, Shape, Stop,
    engine::{Engine, Protocol, ProtocolError},
    events::APP_ID,
    responses::{Counts, Messages},
    subscription::Subscription,
};
use prelude_bridge_contract::{
    Earliest, Latest, StartPosition, SubscribeRequest, start_position::Position,
};

/// How long nothing may arrive that should.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a wait looks whether it is still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Wakes a thread of a crowd.
const WAKER: Token = Token(usize::MAX);

/// Gets every message of one subscriber, and when it was read.
pub(super) type Look = Box<dyn FnMut(&[u8], Instant) + Send>;

/// Where a subscriber starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// Now.
    Latest,
    /// The beginning of the log.
    Earliest,
}

/// What a subscriber wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) shape: Shape,
    pub(super) begin: Begin,
    pub(super) frame_bytes: u32,
}

impl Wish {
    fn request(self) -> SubscribeRequest {
        let position = match self.begin {
            Begin::Latest => Position::Latest(Latest {}),
            Begin::Earliest => Position::Earliest(Earliest {}),
        };
        SubscribeRequest {
            filter: Some(self.shape.filter()),
            start: Some(StartPosition {
                position: Some(position),
            }),
            client_name: APP_ID.to_owned(),
            ..SubscribeRequest::default()
        }
    }
}

/// Subscribers that want the same.
pub(super) struct Crowd {
    counts: Vec<Arc<Mutex<Counts>>>,
    totals: Arc<Totals>,
    stop: Stop,
    /// Ended with the crowd.
    _threads: Vec<ReadingThread>,
}

/// What all subscribers of a crowd have come to.
#[derive(Debug, Default)]
struct Totals {
    delivered: Tally,
    caught_up: Tally,
}

struct ReadingThread {
    is_over: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ReadingThread {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // A thread that cannot be woken looks by itself soon.
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}

impl Crowd {
    /// Connects them all, and returns before they are connected. `look` makes for each of them what
    /// is to see its messages, if anything.
    pub(super) fn connect(
        context: &Context<'_>,
        address: SocketAddr,
        count: usize,
        wish: Wish,
        look: impl Fn(usize) -> Option<Look>,
    ) -> Result<Self, Error> {
        let (totals, request) = (Arc::<Totals>::default(), wish.request());
        let counts: Vec<Arc<Mutex<Counts>>> = (0..count).map(|_| Arc::default()).collect();
        let readers = counts.iter().enumerate().map(|(index, counts)| Reader {
            subscription: Subscription::new(&request, wish.frame_bytes),
            counts: Arc::clone(counts),
            look: look(index).map(|look| (Messages::default(), look)),
            totals: Arc::clone(&totals),
        });
        let mut readers = readers.map(|reader| Box::new(reader) as Box<dyn Protocol>);
        let share = count.div_ceil(context.split.load_cpus()).max(1);
        let mut threads = Vec::new();
        loop {
            let readers: Vec<_> = readers.by_ref().take(share).collect();
            if readers.is_empty() {
                break;
            }
            threads.push(ReadingThread::start(address, readers, &totals)?);
        }
        Ok(Self {
            counts,
            totals,
            stop: context.stop.clone(),
            _threads: threads,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Waits until all have read all history there is.
    pub(super) fn caught_up(&self) -> Result<(), Error> {
        self.totals
            .caught_up
            .wait_for(self.len() as u64, &self.stop)
    }

    /// Waits until so many events have arrived, with all of them together.
    pub(super) fn delivered(&self, events: u64) -> Result<(), Error> {
        self.totals.delivered.wait_for(events, &self.stop)
    }

    /// What each of them has counted.
    pub(super) fn counts(&self) -> impl Iterator<Item = Counts> {
        self.counts.iter().map(|counts| *locked(counts))
    }

    /// Checks that each has got `events` since it started, and that without a filter the places of
    /// its responses have no gap.
    pub(super) fn check(&self, shape: Shape, events: u64) -> Result<(), Error> {
        for counts in self.counts() {
            if counts.events != events {
                let got = counts.events;
                return Err(Error::Lost(format!(
                    "a subscriber got {got} events instead of {events}"
                )));
            }
            if counts.skipped || (shape == Shape::All && counts.jumped) {
                let place = counts.place;
                return Err(Error::Lost(format!(
                    "a stream has a gap before sequence number {place}"
                )));
            }
        }
        Ok(())
    }
}

impl ReadingThread {
    fn start(
        address: SocketAddr,
        readers: Vec<Box<dyn Protocol>>,
        totals: &Arc<Totals>,
    ) -> Result<Self, Error> {
        let engine = Engine::new()?;
        let waker = Waker::new(engine.registry(), WAKER)
            .map_err(Error::system("no event queue can be made"))?;
        let (is_over, totals) = (Arc::<AtomicBool>::default(), Arc::clone(totals));
        let over = Arc::clone(&is_over);
        let thread = thread::Builder::new().name("subscribers".to_owned());
        let thread = thread.spawn(move || {
            let Err(error) = read(engine, address, readers, &over);
            if !over.load(Ordering::SeqCst) {
                let text = error.to_string();
                totals.delivered.fail(&text);
                totals.caught_up.fail(&text);
            }
        });
        Ok(Self {
            is_over,
            waker,
            thread: Some(thread.map_err(Error::system("no thread can be started"))?),
        })
    }
}

/// Reads until it is over, which is an error like any other that ends it.
fn read(
    mut engine: Engine,
    address: SocketAddr,
    readers: Vec<Box<dyn Protocol>>,
    is_over: &AtomicBool,
) -> Result<std::convert::Infallible, Error> {
    let wanted = || match is_over.load(Ordering::SeqCst) {
        true => Err(Error::Interrupted),
        false => Ok(()),
    };
    engine.open_all(address, readers, wanted)?;
    loop {
        wanted()?;
        engine.turn(Some(LOOK_INTERVAL), |_, _| ())?;
    }
}

/// One subscriber.
struct Reader {
    subscription: Subscription,
    counts: Arc<Mutex<Counts>>,
    look: Option<(Messages, Look)>,
    totals: Arc<Totals>,
}

impl Protocol for Reader {
    fn opening(&self) -> Vec<u8> {
        self.subscription.opening()
    }

    fn receive(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Result<u64, ProtocolError> {
        let had_caught_up = self.subscription.counts().caught_up;
        let look = &mut self.look;
        let now = look.is_some().then(Instant::now);
        let received = self.subscription.receive_with(bytes, replies, |content| {
            match (look.as_mut(), now) {
                (Some((messages, look)), Some(now)) => {
                    messages.feed(content, |message| look(message, now))
                }
                _ => Ok(()),
            }
        })?;
        let counts = self.subscription.counts();
        *locked(&self.counts) = counts;
        if counts.caught_up && !had_caught_up {
            self.totals.caught_up.add(1);
        }
        self.totals.delivered.add(received);
        Ok(received)
    }

    fn is_ready(&self) -> bool {
        self.subscription.is_ready()
    }
}

/// A sum that others wait for.
#[derive(Debug, Default)]
struct Tally {
    sum: AtomicU64,
    /// The smallest sum that somebody waits for; nobody does at 0.
    wanted: AtomicU64,
    fault: Mutex<Option<String>>,
    moved: Condvar,
}

impl Tally {
    fn sum(&self) -> u64 {
        self.sum.load(Ordering::SeqCst)
    }

    /// Wakes who waits only when it gets what it waits for: this is called for every read.
    fn add(&self, count: u64) {
        let sum = self.sum.fetch_add(count, Ordering::SeqCst) + count;
        let wanted = self.wanted.load(Ordering::SeqCst);
        if wanted != 0 && sum >= wanted {
            let _guard = locked(&self.fault);
            self.wanted.store(0, Ordering::SeqCst);
            self.moved.notify_all();
        }
    }

    fn fail(&self, fault: &str) {
        locked(&self.fault).get_or_insert_with(|| fault.to_owned());
        self.moved.notify_all();
    }

    /// Waits until the sum is at least this.
    ///
    /// # Errors
    /// [`Error::Subscriber`] when one failed, [`Error::Stalled`] when nothing moves any more,
    /// [`Error::Interrupted`].
    fn wait_for(&self, wanted: u64, stop: &Stop) -> Result<(), Error> {
        let mut moved = (self.sum(), Instant::now());
        let mut fault = locked(&self.fault);
        loop {
            stop.check()?;
            if let Some(fault) = &*fault {
                return Err(Error::Subscriber(fault.clone()));
            }
            // Written before the sum is read: whoever adds either sees it or is seen.
            let others = self.wanted.load(Ordering::SeqCst);
            if others == 0 || wanted < others {
                self.wanted.store(wanted, Ordering::SeqCst);
            }
            let sum = self.sum();
            if sum >= wanted {
                return Ok(());
            }
            if sum != moved.0 {
                moved = (sum, Instant::now());
            } else if moved.1.elapsed() > STALL_TIMEOUT {
                return Err(Error::Stalled(STALL_TIMEOUT));
            }
            let woken = self.moved.wait_timeout(fault, LOOK_INTERVAL);
            (fault, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_sum_is_waited_for_by_many_until_each_has_its_own() {
        let (tally, stop) = (Tally::default(), Stop::default());
        thread::scope(|scope| {
            for wanted in [1, 10, 100, 1_000] {
                let (tally, stop) = (&tally, &stop);
                scope.spawn(move || {
                    tally.wait_for(wanted, stop).unwrap();
                    assert!(tally.sum() >= wanted);
                });
            }
            for _ in 0..1_000 {
                tally.add(1);
            }
        });
    }

    #[test]
    fn a_wait_ends_with_the_first_fault_and_on_a_stop() {
        let (tally, stop) = (Tally::default(), Stop::default());
        tally.fail("it broke");
        tally.fail("and again");
        let error = tally.wait_for(1, &stop).unwrap_err();
        assert_eq!(error.to_string(), "a subscriber failed: it broke");
        stop.stop();
        assert!(matches!(tally.wait_for(1, &stop), Err(Error::Interrupted)));
    }
}
