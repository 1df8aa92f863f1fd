//! A sequence in memory, for tests: it answers late, refuses without a reason, loses its tail and goes back
//! in time, as it is told or by chance.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt as _},
};
use tokio::sync::watch;

use super::{Answer, Ends, Outage, Outcome, Peers, Position, Sequencer};

/// A sequence, which all its connections share.
pub struct Sequence {
    state: Mutex<State>,
    /// Changes with everything that happens.
    changes: watch::Sender<u64>,
    peers: Arc<Directory>,
}

struct State {
    /// How many commits retention has removed.
    removed: u64,
    commits: VecDeque<Bytes>,
    /// Commits that are on their way, and are stored if their position is still the next one.
    late: Vec<(Position, Bytes)>,
    outage: Option<Outage>,
    /// Appends are answered later.
    holds_appends: bool,
    /// Nothing comes to followers.
    holds_followers: bool,
    chance: Option<Chance>,
    /// How often anything was followed.
    followed: u64,
}

/// Decides by chance, and the same each time.
struct Chance {
    state: u64,
    /// One call of so many goes wrong.
    one_of: u64,
}

impl Chance {
    fn next(&mut self) -> u64 {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn strikes(&mut self) -> bool {
        self.next().is_multiple_of(self.one_of)
    }
}

impl State {
    fn ends(&self) -> Ends {
        let last = self.removed + self.commits.len() as u64;
        Ends {
            first: Position(self.removed + 1),
            last: Position(last),
        }
    }

    fn get(&self, position: Position) -> Option<Bytes> {
        let index = position.0.checked_sub(self.removed + 1)?;
        self.commits.get(usize::try_from(index).ok()?).cloned()
    }

    fn store(&mut self, position: Position, commit: Bytes) -> Outcome {
        if position != self.ends().last.next() {
            return Outcome::Refused;
        }
        self.commits.push_back(commit);
        Outcome::Won
    }

    fn store_late(&mut self) {
        for (position, commit) in std::mem::take(&mut self.late) {
            self.store(position, commit);
        }
    }

    fn strikes(&mut self) -> bool {
        self.chance.as_mut().is_some_and(Chance::strikes)
    }

    fn append(&mut self, position: Position, commit: Bytes) -> Result<Outcome, Outage> {
        if !self.strikes() {
            let outcome = self.store(position, commit);
            self.store_late();
            return Ok(outcome);
        }
        let kind = self.chance.as_mut().map_or(0, Chance::next) % 4;
        match kind {
            0 => return Ok(Outcome::Refused),
            1 => {
                self.store(position, commit);
            }
            2 => self.late.push((position, commit)),
            _ => {}
        }
        Err(Outage::Unavailable("no answer came in time".into()))
    }

    fn ask(&mut self) -> Result<(), Outage> {
        if let Some(outage) = &self.outage {
            return Err(outage.clone());
        }
        self.store_late();
        if self.strikes() {
            return Err(Outage::Unavailable("no answer came in time".into()));
        }
        Ok(())
    }
}

impl Default for Sequence {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                removed: 0,
                commits: VecDeque::new(),
                late: Vec::new(),
                outage: None,
                holds_appends: false,
                holds_followers: false,
                chance: None,
                followed: 0,
            }),
            changes: watch::Sender::new(0),
            peers: Arc::default(),
        }
    }
}

impl Sequence {
    /// A connection of a bridge.
    #[must_use]
    pub fn connect(self: &Arc<Self>) -> Arc<Connection> {
        self.connect_with(8 * 1024 * 1024)
    }

    /// The same, where a commit may have only so many bytes.
    #[must_use]
    pub fn connect_with(self: &Arc<Self>, commit_bytes_max: usize) -> Arc<Connection> {
        Arc::new(Connection {
            sequence: Arc::clone(self),
            is_cut_off: Arc::default(),
            connections: watch::Sender::new(1),
            commit_bytes_max,
        })
    }

    /// From now on one call of so many goes wrong, which ones depends on the seed; none with 0.
    pub fn strike(&self, seed: u64, one_of: u64) {
        let chance = Chance {
            state: seed | 1,
            one_of,
        };
        self.change(|state| state.chance = (one_of > 0).then_some(chance));
    }

    /// Answers everything like this, or goes on.
    pub fn set_outage(&self, outage: Option<Outage>) {
        self.change(|state| state.outage = outage);
    }

    /// Answers no appends, as a server that was stopped, or goes on with those that wait.
    pub fn hold_appends(&self, is_held: bool) {
        self.change(|state| state.holds_appends = is_held);
    }

    /// Passes nothing to followers, or goes on.
    pub fn hold_followers(&self, is_held: bool) {
        self.change(|state| state.holds_followers = is_held);
    }

    /// Loses the last commits, as after a loss of power without a flush.
    pub fn lose_tail(&self, commits: usize) {
        self.change(|state| {
            state.late.clear();
            let left = state.commits.len().saturating_sub(commits);
            state.commits.truncate(left);
        });
    }

    /// Removes the oldest commits, as retention does.
    pub fn remove_before(&self, position: Position) {
        self.change(|state| {
            while state.ends().first < position && state.commits.pop_front().is_some() {
                state.removed += 1;
            }
        });
    }

    /// The commits that are there, oldest first.
    #[must_use]
    pub fn commits(&self) -> Vec<Bytes> {
        self.state().commits.iter().cloned().collect()
    }

    /// The ends of the sequence.
    #[must_use]
    pub fn ends_now(&self) -> Ends {
        self.state().ends()
    }

    /// How often it was followed.
    #[must_use]
    pub fn followed(&self) -> u64 {
        self.state().followed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.changes.send_modify(|changes| *changes += 1);
        changed
    }
}

/// Who answers to a number.
#[derive(Default)]
struct Directory(Mutex<HashMap<u32, Answer>>);

impl Peers for Directory {
    fn ask(&self, peer: u32, question: Bytes, timeout: Duration) -> BoxFuture<'_, Option<Bytes>> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.get(&peer).map(|answer| answer(question));
        Box::pin(async move {
            let answer = tokio::time::timeout(timeout, answer?).await.ok();
            answer.filter(|answer| !answer.is_empty())
        })
    }

    fn serve(&self, number: u32, answer: Answer) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert(number, answer);
    }
}

/// A bridge's connection to a sequence.
pub struct Connection {
    sequence: Arc<Sequence>,
    is_cut_off: Arc<AtomicBool>,
    connections: watch::Sender<u64>,
    commit_bytes_max: usize,
}

impl Connection {
    /// Cuts this bridge off from the sequence.
    pub fn cut_off(&self) {
        self.is_cut_off.store(true, Ordering::SeqCst);
        self.sequence.change(|_| ());
    }

    /// Connects this bridge again.
    pub fn reconnect(&self) {
        self.connections
            .send_modify(|connections| *connections += 1);
        self.is_cut_off.store(false, Ordering::SeqCst);
        self.sequence.change(|_| ());
    }

    fn ask<T>(&self, ask: impl FnOnce(&mut State) -> Result<T, Outage>) -> Result<T, Outage> {
        if self.is_cut_off.load(Ordering::SeqCst) {
            return Err(Outage::Disconnected("the sequence in memory".into()));
        }
        self.sequence.change(|state| {
            state.ask()?;
            ask(state)
        })
    }
}

impl Sequencer for Connection {
    fn append(&self, position: Position, commit: Bytes) -> BoxFuture<'_, Result<Outcome, Outage>> {
        Box::pin(async move {
            let mut changes = self.sequence.changes.subscribe();
            while self.sequence.state().holds_appends {
                let _ = changes.changed().await;
            }
            if self.is_cut_off.load(Ordering::SeqCst) {
                return Err(Outage::Disconnected("the sequence in memory".into()));
            }
            self.sequence.change(|state| match &state.outage {
                Some(outage) => Err(outage.clone()),
                None => state.append(position, commit),
            })
        })
    }

    fn get(&self, position: Position) -> BoxFuture<'_, Result<Option<Bytes>, Outage>> {
        let found = self.ask(|state| Ok(state.get(position)));
        Box::pin(async move { found })
    }

    fn ends(&self) -> BoxFuture<'_, Result<Ends, Outage>> {
        let ends = self.ask(|state| Ok(state.ends()));
        Box::pin(async move { ends })
    }

    fn follow(&self, from: Position) -> BoxStream<'static, Result<(Position, Bytes), Outage>> {
        let sequence = Arc::clone(&self.sequence);
        let connections = self.connections.subscribe();
        let begun = *connections.borrow();
        let is_cut_off = Arc::clone(&self.is_cut_off);
        sequence.state().followed += 1;
        let changes = sequence.changes.subscribe();
        let next = move |(at, mut changes): (Option<Position>, watch::Receiver<u64>)| {
            let (sequence, connections) = (Arc::clone(&sequence), connections.clone());
            let is_cut_off = Arc::clone(&is_cut_off);
            async move {
                let at = at?;
                loop {
                    changes.mark_unchanged();
                    let is_cut_off = is_cut_off.load(Ordering::SeqCst);
                    if is_cut_off || *connections.borrow() != begun {
                        let outage = Outage::Disconnected("the sequence in memory".into());
                        return Some((Err(outage), (None, changes)));
                    }
                    let found = {
                        let mut state = sequence.state();
                        let outage = state.outage.clone();
                        let ends = state.ends();
                        match (outage, state.get(at)) {
                            (Some(outage), _) => Some(Err(outage)),
                            (None, _) if state.holds_followers => None,
                            (None, Some(bytes)) if state.strikes() => {
                                drop(bytes);
                                Some(Err(Outage::Unavailable("the reader ended".into())))
                            }
                            (None, Some(bytes)) => Some(Ok((at, bytes))),
                            (None, None) if at < ends.first => {
                                Some(Err(Outage::Removed { first: ends.first }))
                            }
                            (None, None) => None,
                        }
                    };
                    match found {
                        Some(Ok(commit)) => return Some((Ok(commit), (Some(at.next()), changes))),
                        Some(Err(outage)) => return Some((Err(outage), (None, changes))),
                        None => changes.changed().await.ok()?,
                    }
                }
            }
        };
        stream::unfold((Some(from), changes), next).boxed()
    }

    fn trim(&self, before: Position) -> BoxFuture<'_, Result<(), Outage>> {
        self.sequence.remove_before(before);
        Box::pin(async { Ok(()) })
    }

    fn connections(&self) -> watch::Receiver<u64> {
        self.connections.subscribe()
    }

    fn commit_bytes_max(&self) -> usize {
        self.commit_bytes_max
    }

    fn append_time_max(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn name(&self) -> Arc<str> {
        "the sequence in memory".into()
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        let is_cut_off = self.is_cut_off.load(Ordering::SeqCst);
        (!is_cut_off).then(|| Arc::clone(&self.sequence.peers) as Arc<dyn Peers>)
    }
}
