//! Owns the receiving side: a crowd of subscribers with a connection each, which read as fast as
//! they can and count. One buffer a thread is read into and forgotten; nothing is kept but counts.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinHandle};

use super::{
    Context, Error, Shape, Stop,
    events::APP_ID,
    frames::{self, Frames},
    responses::{Counts, Messages, Responses},
};
use prelude_bridge_contract::{
    Earliest, Latest, StartPosition, SubscribeRequest, start_position::Position,
};

const PATH: &str = "/prelude.bridge.v1.EventService/Subscribe";

/// Read with one system call; less than a core's second-level cache.
const READ_BYTES: usize = 128 * 1024;

/// How many connections are opened at once: a listener's queue is not endless.
const OPENING_MAX: usize = 64;

/// How long nothing may arrive that should.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a wait looks whether it is still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

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
    fn opening(self) -> Vec<u8> {
        let position = match self.begin {
            Begin::Latest => Position::Latest(Latest {}),
            Begin::Earliest => Position::Earliest(Earliest {}),
        };
        let request = SubscribeRequest {
            filter: Some(self.shape.filter()),
            start: Some(StartPosition {
                position: Some(position),
            }),
            client_name: APP_ID.to_owned(),
            ..SubscribeRequest::default()
        };
        frames::opening(PATH, &request.encode_to_vec(), self.frame_bytes)
    }
}

/// Subscribers that want the same.
pub(super) struct Crowd {
    subscribers: Vec<Subscriber>,
    pub(super) delivered: Arc<Tally>,
    caught_up: Arc<Tally>,
    stop: Stop,
}

struct Subscriber {
    responses: Arc<Mutex<Responses>>,
    task: JoinHandle<()>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for subscriber in &self.subscribers {
            subscriber.task.abort();
        }
    }
}

impl Crowd {
    /// Connects them all. `look` makes for each of them who is to see its messages, if anybody.
    pub(super) fn connect(
        context: &Context<'_>,
        address: SocketAddr,
        count: usize,
        wish: Wish,
        look: impl Fn(usize) -> Option<Look>,
    ) -> Result<Self, Error> {
        let (delivered, caught_up) = (Arc::<Tally>::default(), Arc::<Tally>::default());
        let opening = wish.opening();
        let connecting = stream::iter(0..count)
            .map(|index| {
                let stop = context.stop;
                let (opening, look) = (&opening, look(index));
                let (delivered, caught_up) = (Arc::clone(&delivered), Arc::clone(&caught_up));
                async move {
                    stop.check()?;
                    let stream = open(address, opening)
                        .await
                        .map_err(Error::system("the gRPC port cannot be connected to"))?;
                    let responses = Arc::new(Mutex::new(Responses::new()));
                    let reader = Reader {
                        stream,
                        frames: Frames::new(),
                        responses: Arc::clone(&responses),
                        look: look.map(|look| (Messages::default(), look)),
                        delivered,
                        caught_up,
                    };
                    Ok(Subscriber {
                        responses,
                        task: tokio::spawn(reader.run()),
                    })
                }
            })
            .buffer_unordered(OPENING_MAX)
            .collect::<Vec<_>>();
        let subscribers = context.runtime.block_on(connecting);
        Ok(Self {
            subscribers: subscribers.into_iter().collect::<Result<_, Error>>()?,
            delivered,
            caught_up,
            stop: context.stop.clone(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.subscribers.len()
    }

    /// Waits until all have read all history there is.
    pub(super) fn caught_up(&self) -> Result<(), Error> {
        self.caught_up.wait_for(self.len() as u64, &self.stop)
    }

    /// Waits until so many events have arrived, with all of them together.
    pub(super) fn delivered(&self, events: u64) -> Result<(), Error> {
        self.delivered.wait_for(events, &self.stop)
    }

    /// What each of them has counted.
    pub(super) fn counts(&self) -> impl Iterator<Item = Counts> {
        let counts = |subscriber: &Subscriber| locked(&subscriber.responses).counts;
        self.subscribers.iter().map(counts)
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

async fn open(address: SocketAddr, opening: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(opening).await?;
    Ok(stream)
}

/// One connection.
struct Reader {
    stream: TcpStream,
    frames: Frames,
    responses: Arc<Mutex<Responses>>,
    look: Option<(Messages, Look)>,
    delivered: Arc<Tally>,
    caught_up: Arc<Tally>,
}

impl Reader {
    async fn run(mut self) {
        let Err(fault) = self.read().await;
        self.delivered.fail(&fault);
        self.caught_up.fail(&fault);
    }

    /// Reads for ever.
    async fn read(&mut self) -> Result<std::convert::Infallible, String> {
        loop {
            self.stream
                .readable()
                .await
                .map_err(|error| error.to_string())?;
            let taken = BUFFER.with_borrow_mut(|buffer| match self.stream.try_read(buffer) {
                Ok(0) => Err("the server closed the connection".to_owned()),
                Ok(count) => self.take(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error.to_string()),
            });
            taken?;
            if !self.frames.replies.is_empty() {
                let replies = &mut self.frames.replies;
                let written = self.stream.write_all(replies).await;
                written.map_err(|error| error.to_string())?;
                replies.clear();
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut responses = locked(&self.responses);
        let before = responses.counts;
        let look = &mut self.look;
        let now = look.is_some().then(Instant::now);
        let mut malformed = Ok(());
        let framed = self.frames.feed(bytes, |content| {
            let mut read = responses.feed(content);
            if let (Some((messages, look)), Some(now)) = (look.as_mut(), now) {
                read = read.and_then(|()| messages.feed(content, |message| look(message, now)));
            }
            if malformed.is_ok() {
                malformed = read;
            }
        });
        let after = responses.counts;
        drop(responses);
        if after.caught_up && !before.caught_up {
            self.caught_up.add(1);
        }
        self.delivered.add(after.events - before.events);
        malformed.map_err(|error| error.to_string())?;
        framed.map_err(|end| end.to_string())
    }
}

/// A sum that others wait for.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sum: AtomicU64,
    /// The smallest sum that somebody waits for; nobody does at 0.
    wanted: AtomicU64,
    fault: Mutex<Option<String>>,
    moved: Condvar,
}

impl Tally {
    pub(super) fn sum(&self) -> u64 {
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
    pub(super) fn wait_for(&self, wanted: u64, stop: &Stop) -> Result<(), Error> {
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
