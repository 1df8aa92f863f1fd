//! Implements the contract of sequencers on the parts of this crate.
//!
//! Commits are written and looked up over one connection and followed over another: who catches up must
//! not delay the acknowledgements behind some MiB of old commits.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use prelude_bridge_log::sequencer::{Ends, Outage, Outcome, Peers, Position, Sequencer};
use tokio::sync::watch;

use crate::{
    follow::Follower,
    peers::Questions,
    settings::COMMIT_BYTES_MAX,
    stream::{ANSWER_TIME_MAX, Stream},
};

/// A stream of JetStream as a sequencer.
#[derive(Debug)]
pub struct JetStream {
    pub(crate) stream: Arc<Stream>,
    pub(crate) questions: Arc<Questions>,
}

impl JetStream {
    pub(crate) fn new(stream: Stream) -> Self {
        let stream = Arc::new(stream);
        let questions = Arc::new(Questions::new(Arc::clone(&stream)));
        Self { stream, questions }
    }
}

impl Drop for JetStream {
    fn drop(&mut self) {
        self.questions.stop();
    }
}

impl Sequencer for JetStream {
    fn append(&self, position: Position, commit: Bytes) -> BoxFuture<'_, Result<Outcome, Outage>> {
        self.stream.append(position, commit).boxed()
    }

    fn get(&self, position: Position) -> BoxFuture<'_, Result<Option<Bytes>, Outage>> {
        self.stream.get(position).boxed()
    }

    fn ends(&self) -> BoxFuture<'_, Result<Ends, Outage>> {
        self.stream.ends().boxed()
    }

    fn follow(&self, from: Position) -> BoxStream<'static, Result<(Position, Bytes), Outage>> {
        let follower = Follower::new(Arc::clone(&self.stream), from);
        stream::unfold(Some(follower), async |follower| {
            let mut follower = follower?;
            Some(match follower.next().await {
                Ok(commit) => (Ok(commit), Some(follower)),
                Err(outage) => (Err(outage), None),
            })
        })
        .boxed()
    }

    /// Retention is the stream's.
    fn trim(&self, _: Position) -> BoxFuture<'_, Result<(), Outage>> {
        std::future::ready(Ok(())).boxed()
    }

    fn connections(&self) -> watch::Receiver<u64> {
        self.stream.connections.subscribe()
    }

    fn commit_bytes_max(&self) -> usize {
        COMMIT_BYTES_MAX
    }

    fn append_time_max(&self) -> Duration {
        ANSWER_TIME_MAX
    }

    fn name(&self) -> Arc<str> {
        Arc::clone(&self.stream.names.whole)
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        Some(Arc::clone(&self.questions) as Arc<dyn Peers>)
    }
}
