//! Owns the task that follows the sequence: it leaves the commits of others, and what retention has
//! removed, to the writer. It begins again after the last commit that was applied, whatever ends it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, watch};

use super::{super::Shared, super::queue::Arrival, Replicated, message::Message};
use crate::sequencer::{Ends, Outage, Position};
use prelude_bridge_event::Sequence;

/// So many KiB of commits may wait for the writer: some of the largest ones.
const WAITING_KIB_MAX: u32 = 32 * 1024;
/// The pause before it begins again.
const PAUSE: Duration = Duration::from_millis(250);
/// How often it looks where the sequence begins.
const TRIM_INTERVAL: Duration = Duration::from_secs(2);

pub(in crate::embedded) struct Follow {
    shared: Arc<Shared>,
    replicated: Arc<Replicated>,
    room: Arc<Semaphore>,
    /// Where the sequence began when it was last looked at.
    first: Position,
    has_outage: bool,
}

impl Follow {
    pub(in crate::embedded) fn new(shared: Arc<Shared>, replicated: Arc<Replicated>) -> Self {
        Self {
            shared,
            replicated,
            room: Arc::new(Semaphore::new(WAITING_KIB_MAX as usize)),
            first: Position(0),
            has_outage: false,
        }
    }

    /// Runs until the writer has ended.
    pub(in crate::embedded) async fn run(mut self) {
        let mut ended = self.shared.done.subscribe();
        let follow = async {
            loop {
                let outage = self.follow().await;
                self.has_outage = true;
                self.shared.queue.arrive(Arrival::Outage(Some(outage)));
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = follow => {}
            _ = ended.wait_for(|&ended| ended) => {}
        }
    }

    /// Follows until something fails.
    async fn follow(&mut self) -> Outage {
        let mut connections = self.replicated.sequencer.connections();
        let ends = match self.replicated.sequencer.ends().await {
            Ok(ends) => ends,
            Err(outage) => return outage,
        };
        if std::mem::take(&mut self.has_outage) {
            self.shared.queue.arrive(Arrival::Outage(None));
        }
        if let Err(outage) = self.look_where_it_begins(ends).await {
            return outage;
        }
        let from = self.replicated.applied.borrow().next();
        let mut commits = self.replicated.sequencer.follow(from);
        let mut trim =
            tokio::time::interval_at(tokio::time::Instant::now() + TRIM_INTERVAL, TRIM_INTERVAL);
        loop {
            tokio::select! {
                commit = commits.next() => match commit {
                    Some(Ok((position, bytes))) => self.pass(position, bytes).await,
                    Some(Err(outage)) => return outage,
                    None => return Outage::Unavailable("the sequence has ended".into()),
                },
                _ = changed(&mut connections) => self.shared.queue.arrive(Arrival::Reconnected),
                _ = trim.tick() => {
                    let looked = match self.replicated.sequencer.ends().await {
                        Ok(ends) => self.look_where_it_begins(ends).await,
                        Err(outage) => Err(outage),
                    };
                    if let Err(outage) = looked {
                        return outage;
                    }
                }
            }
        }
    }

    async fn pass(&self, position: Position, bytes: Bytes) {
        let kib = u32::try_from(bytes.len() / 1024).unwrap_or(u32::MAX);
        let kib = kib.clamp(1, WAITING_KIB_MAX);
        // It is never closed.
        if let Ok(room) = Arc::clone(&self.room).acquire_many_owned(kib).await {
            let arrival = Arrival::Commit(position, bytes, room);
            self.shared.queue.arrive(arrival);
        }
    }

    /// Has everything removed that the sequence has not got any more.
    async fn look_where_it_begins(&mut self, ends: Ends) -> Result<(), Outage> {
        if ends.first <= self.first {
            return Ok(());
        }
        let first = if ends.first > ends.last {
            // Nothing is left; what was applied since then comes after it.
            let has_all = *self.replicated.applied.borrow() == ends.last;
            has_all.then_some(Sequence(u64::MAX))
        } else {
            let found = self.replicated.sequencer.get(ends.first).await?;
            let message = found.and_then(|bytes| Message::parse(ends.first, &bytes).ok());
            let header = message.as_ref().and_then(Message::header);
            header.map(|header| header.first_sequence)
        };
        if let Some(first) = first {
            self.first = ends.first;
            self.shared.queue.arrive(Arrival::Trim(first));
        }
        Ok(())
    }
}

/// A sequencer that is dropped has no more connections.
async fn changed(connections: &mut watch::Receiver<u64>) {
    if connections.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
