//! Owns the bounded queue between the senders' requests and the writer's thread: of batches to append, and
//! of keys of which somebody asks whether they are remembered; and of the commits that other bridges have
//! written. Knows nothing of how either is done.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use crate::{
    Appended, Error,
    sequencer::{Outage, Position},
};
use bytes::Bytes;
use prelude_bridge_event::{Batch, EventKey, Sequence};

/// For each key that was asked for, the one that its event was appended with.
pub(super) type Recalled = Result<Vec<Option<EventKey>>, Error>;

/// What the writer is asked for, with the place where the answer is awaited.
pub(super) enum Job {
    /// Append these events.
    Append {
        batch: Batch,
        reply: oneshot::Sender<Result<Appended, Error>>,
        /// Another bridge has left it to this one, or was to write it and did not.
        is_forwarded: bool,
    },
    /// Find the keys that the events of these were appended with.
    Recall {
        keys: Vec<EventKey>,
        reply: oneshot::Sender<Recalled>,
    },
}

impl Job {
    fn events(&self) -> usize {
        match self {
            Self::Append { batch, .. } => batch.drafts.len(),
            Self::Recall { keys, .. } => keys.len(),
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Append { batch, .. } => batch.memory_bytes(),
            Self::Recall { keys, .. } => size_of_val(&**keys),
        }
    }

    fn refuse(self, error: Error) {
        // Nobody may be waiting any more.
        match self {
            Self::Append { reply, .. } => drop(reply.send(Err(error))),
            Self::Recall { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// What comes from the sequence that orders the commits of several bridges.
pub(super) enum Arrival {
    /// A commit, with its part of the room that all that wait have.
    Commit(Position, Bytes, OwnedSemaphorePermit),
    /// The sequence begins with this event: the events before it were removed.
    Trim(Sequence),
    /// What is being followed did not answer; `None` when it does again.
    Outage(Option<Outage>),
    /// The connection is a new one.
    Reconnected,
}

/// How much may wait, and how much is taken at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) queue_batches_max: usize,
    pub(super) queue_bytes_max: usize,
    pub(super) group_events_max: usize,
    pub(super) group_bytes_max: usize,
}

/// A bounded queue of one consumer.
pub(super) struct Queue {
    limits: Limits,
    state: Mutex<State>,
    arrived: Condvar,
    /// Why no batch is taken for now. Changes under the lock of `state` only.
    unavailable: watch::Sender<Option<Error>>,
}

#[derive(Default)]
struct State {
    arrivals: VecDeque<Arrival>,
    jobs: VecDeque<Job>,
    bytes: usize,
    refusal: Option<Error>,
}

/// What the consumer is to do.
pub(super) enum Taken {
    /// Take note of this; it comes before what is to be done.
    Arrival(Arrival),
    /// Do these, in this order.
    Group(Vec<Job>),
    /// Nothing has come within the time.
    Nothing,
    /// Nothing is left, and nothing more will come.
    End,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            arrived: Condvar::new(),
            unavailable: watch::Sender::new(None),
        }
    }

    /// Puts a batch in line, or says at once why not.
    pub(super) fn push(
        &self,
        batch: Batch,
    ) -> Result<oneshot::Receiver<Result<Appended, Error>>, Error> {
        self.push_as(batch, false)
    }

    /// The same for a batch that another bridge has forwarded.
    pub(super) fn push_forwarded(
        &self,
        batch: Batch,
    ) -> Result<oneshot::Receiver<Result<Appended, Error>>, Error> {
        self.push_as(batch, true)
    }

    fn push_as(
        &self,
        batch: Batch,
        is_forwarded: bool,
    ) -> Result<oneshot::Receiver<Result<Appended, Error>>, Error> {
        let (reply, fate) = oneshot::channel();
        self.add(Job::Append {
            batch,
            reply,
            is_forwarded,
        })?;
        Ok(fate)
    }

    /// Puts jobs first in line that were taken, whatever else waits.
    pub(super) fn put_back(&self, jobs: impl DoubleEndedIterator<Item = Job>) {
        let mut state = self.state();
        let unavailable = self.unavailable.borrow().clone();
        let refusal = state.refusal.clone().or(unavailable);
        for job in jobs.rev() {
            match &refusal {
                Some(refusal) => job.refuse(refusal.clone()),
                None => {
                    state.bytes += job.memory_bytes();
                    state.jobs.push_front(job);
                }
            }
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Puts a question in line, or says at once why not.
    pub(super) fn recall(&self, keys: Vec<EventKey>) -> Result<oneshot::Receiver<Recalled>, Error> {
        let (reply, answer) = oneshot::channel();
        self.add(Job::Recall { keys, reply })?;
        Ok(answer)
    }

    fn add(&self, job: Job) -> Result<(), Error> {
        let bytes = job.memory_bytes();
        let mut state = self.state();
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        if let (Job::Append { .. }, Some(error)) = (&job, &*self.unavailable.borrow()) {
            return Err(error.clone());
        }
        // A single batch may be larger than all that may wait: then it waits alone.
        let fits = state.jobs.is_empty() || state.bytes + bytes <= self.limits.queue_bytes_max;
        if !fits || state.jobs.len() >= self.limits.queue_batches_max {
            return Err(Error::Overloaded);
        }
        state.bytes += bytes;
        state.jobs.push_back(job);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Refuses batches from now on with `error`, also those that wait; with none, takes them again. Questions
    /// are taken all the same.
    pub(super) fn set_unavailable(&self, error: Option<Error>) {
        let mut state = self.state();
        let set = |now: &mut Option<Error>| std::mem::replace(now, error.clone()) != error;
        self.unavailable.send_if_modified(set);
        let Some(error) = error else {
            return;
        };
        let jobs = std::mem::take(&mut state.jobs).into_iter();
        let (refused, kept): (Vec<_>, Vec<_>) =
            jobs.partition(|job| matches!(job, Job::Append { .. }));
        state.bytes = kept.iter().map(Job::memory_bytes).sum();
        state.jobs = kept.into();
        drop(state);
        for job in refused {
            job.refuse(error.clone());
        }
    }

    /// Whether no batch is taken for now.
    pub(super) fn is_unavailable(&self) -> bool {
        self.unavailable.borrow().is_some()
    }

    /// Resolves when no batch is taken any more for now, with the reason.
    pub(super) async fn unavailable(&self) -> Error {
        let mut unavailable = self.unavailable.subscribe();
        let error = unavailable.wait_for(Option::is_some).await;
        error
            .map_or(None, |error| error.clone())
            .unwrap_or(Error::Closed)
    }

    /// Notes what came from the sequence. What comes after the end is left out.
    pub(super) fn arrive(&self, arrival: Arrival) {
        let mut state = self.state();
        if state.refusal.is_none() {
            state.arrivals.push_back(arrival);
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// Waits for at most so long, or until nothing more is taken in. True when that is so.
    pub(super) fn is_ended_within(&self, wait: Duration) -> bool {
        let state = self.state();
        let waiting = |state: &mut State| state.refusal.is_none();
        let waited = self.arrived.wait_timeout_while(state, wait, waiting);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.refusal.is_some()
    }

    /// Takes everything that waits, up to the limits of a group but at least one batch; waits for
    /// it no longer than `wait`. With `only_arrivals` batches and questions go on waiting.
    pub(super) fn take(&self, wait: Duration, only_arrivals: bool) -> Taken {
        let state = self.state();
        let (mut state, _) = self
            .arrived
            .wait_timeout_while(state, wait, |state| {
                let has_jobs = !only_arrivals && !state.jobs.is_empty();
                state.arrivals.is_empty() && !has_jobs && state.refusal.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(arrival) = state.arrivals.pop_front() {
            return Taken::Arrival(arrival);
        }
        if only_arrivals && state.refusal.is_none() {
            return Taken::Nothing;
        }
        let (mut group, mut events, mut bytes) = (Vec::new(), 0, 0);
        while let Some(job) = state.jobs.front() {
            events += job.events();
            bytes += job.memory_bytes();
            let fits =
                events <= self.limits.group_events_max && bytes <= self.limits.group_bytes_max;
            if !fits && !group.is_empty() {
                break;
            }
            let Some(job) = state.jobs.pop_front() else {
                break;
            };
            state.bytes = state.bytes.saturating_sub(job.memory_bytes());
            group.push(job);
        }
        if !group.is_empty() {
            Taken::Group(group)
        } else if state.refusal.is_some() {
            Taken::End
        } else {
            Taken::Nothing
        }
    }

    /// Refuses what comes from now on; what waits is still taken.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.refusal.get_or_insert(Error::Closed);
        state.arrivals.clear();
        drop(state);
        self.arrived.notify_all();
    }

    /// Refuses everything with `error`, also what waits.
    pub(super) fn fail(&self, error: &Error) {
        let mut state = self.state();
        state.refusal = Some(error.clone());
        state.bytes = 0;
        state.arrivals.clear();
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        for job in jobs {
            job.refuse(error.clone());
        }
        self.arrived.notify_all();
    }

    /// How many batches and questions wait.
    pub(super) fn len(&self) -> usize {
        self.state().jobs.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn limits() -> Limits {
        Limits {
            queue_batches_max: 3,
            queue_bytes_max: 1_000_000,
            group_events_max: 10,
            group_bytes_max: 1_000_000,
        }
    }

    fn push(queue: &Queue, events: u64) -> Result<(), Error> {
        queue.push(fixtures::numbered("app_1", 0..events)).map(drop)
    }

    #[test]
    fn a_full_queue_refuses_at_once_and_takes_again_when_there_is_room() {
        let queue = Queue::new(limits());
        for _ in 0..3 {
            push(&queue, 1).unwrap();
        }
        assert_eq!(push(&queue, 1), Err(Error::Overloaded));
        assert!(matches!(queue.take(Duration::ZERO, false), Taken::Group(jobs) if jobs.len() == 3));
        push(&queue, 1).unwrap();
    }

    #[test]
    fn a_queue_is_bounded_in_bytes_too_but_takes_one_batch_of_any_size() {
        let queue = Queue::new(Limits {
            queue_bytes_max: 100,
            ..limits()
        });
        push(&queue, 50).unwrap();
        assert_eq!(push(&queue, 1), Err(Error::Overloaded));
        assert!(matches!(queue.take(Duration::ZERO, false), Taken::Group(_)));
        push(&queue, 1).unwrap();
    }

    #[test]
    fn a_group_ends_at_its_limits_but_has_at_least_one_batch() {
        let queue = Queue::new(limits());
        push(&queue, 6).unwrap();
        push(&queue, 6).unwrap();
        push(&queue, 60).unwrap();
        for _ in 0..3 {
            assert!(
                matches!(queue.take(Duration::ZERO, false), Taken::Group(jobs) if jobs.len() == 1)
            );
        }
        assert!(matches!(queue.take(Duration::ZERO, false), Taken::Nothing));
    }

    #[test]
    fn questions_count_as_events_and_bytes_like_batches() {
        let queue = Queue::new(Limits {
            queue_bytes_max: 100,
            ..limits()
        });
        let recall = |keys| queue.recall(vec![EventKey([0; 16]); keys]).map(drop);
        recall(6).unwrap();
        assert_eq!(recall(1), Err(Error::Overloaded), "112 bytes");
        assert!(matches!(queue.take(Duration::ZERO, false), Taken::Group(jobs) if jobs.len() == 1));
        let queue = Queue::new(limits());
        for keys in [6, 4, 1] {
            queue.recall(vec![EventKey([0; 16]); keys]).unwrap();
        }
        for jobs_taken in [2, 1] {
            let taken = queue.take(Duration::ZERO, false);
            assert!(matches!(taken, Taken::Group(jobs) if jobs.len() == jobs_taken));
        }
    }

    #[test]
    fn a_closed_queue_is_emptied_first() {
        let queue = Queue::new(limits());
        push(&queue, 1).unwrap();
        queue.close();
        assert_eq!(push(&queue, 1), Err(Error::Closed));
        assert!(matches!(
            queue.take(Duration::from_secs(9), false),
            Taken::Group(_)
        ));
        assert!(matches!(
            queue.take(Duration::from_secs(9), false),
            Taken::End
        ));
    }

    #[test]
    fn a_failure_reaches_what_waits_and_what_comes() {
        let queue = Queue::new(limits());
        let mut fate = queue.push(fixtures::numbered("app_1", 0..1)).unwrap();
        let mut answer = queue.recall(vec![EventKey([1; 16])]).unwrap();
        let error = Error::Failed("disk on fire".into());
        queue.fail(&error);
        assert_eq!(fate.try_recv().unwrap(), Err(error.clone()));
        assert_eq!(answer.try_recv().unwrap(), Err(error.clone()));
        assert_eq!(queue.recall(Vec::new()).map(drop), Err(error.clone()));
        assert_eq!(push(&queue, 1), Err(error.clone()));
        queue.close();
        assert_eq!(push(&queue, 1), Err(error));
    }
}
