//! Owns what all implementations of the log do alike with the batches of one commit, in three steps:
//!
//! ```text
//! prepare   deduplicate, stamp, number, lay out: batches become the content of a commit
//! commit    make the content durable; how is the implementation's, so nothing of it is here
//! apply     index the content and publish it (`publisher`): also that of a commit which another
//!           writer of the log has made
//! ```
//!
//! Stores nothing.

use std::sync::Arc;

use super::{
    Appended,
    block::{Block, Builder},
};
use prelude_bridge_event::{Batch, Draft, Epoch, EventKey, LogId, Sequence, UnixMicros};

/// What a commit makes durable and what is then applied: events that follow the head, whoever wrote
/// them.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// The keys of the events, in their order.
    pub keys: Vec<EventKey>,
    /// The events.
    pub blocks: Vec<Arc<Block>>,
}

/// Batches that are ready to be committed.
pub(super) struct Prepared {
    /// Empty when all events are in the log already.
    pub(super) commit: Commit,
    /// For each batch what becomes of it once the commit is applied.
    pub(super) appended: Vec<Appended>,
}

/// Turns batches into a commit at a place. `deduplicate` finds for each key the one that its event was
/// first appended with, in the log or in the group; of new events there is none.
pub(super) fn prepare<'a, E>(
    builder: &mut Builder,
    place: Place,
    batches: impl Iterator<Item = &'a Batch> + Clone,
    deduplicate: impl FnOnce(&[EventKey]) -> Result<Vec<Option<EventKey>>, E>,
) -> Result<Prepared, E> {
    let events = batches
        .clone()
        .flat_map(|batch| batch.drafts.iter().map(move |draft| (batch, draft)));
    let mut keys: Vec<EventKey> = events.clone().map(|(_, draft)| draft.key).collect();
    let known = deduplicate(&keys)?;
    let new_events = events.zip(&known).filter(|(_, known)| known.is_none());
    let blocks = lay_out_with(builder, place, new_events.map(|(event, _)| event));
    let mut rest = known.iter();
    let appended = batches.map(|batch| {
        let known = rest.by_ref().take(batch.drafts.len());
        Appended::of(batch, known)
    });
    let appended = appended.collect();
    let mut known = known.iter();
    keys.retain(|_| known.next().is_some_and(Option::is_none));
    let commit = Commit { keys, blocks };
    Ok(Prepared { commit, appended })
}

/// Stamps blocks: the time of the clock, or the last stamp where the clock went back, so that a
/// place can be found by its time.
pub(super) struct Stamps {
    last: UnixMicros,
}

impl Stamps {
    /// Goes on after the last stamp of a log.
    pub(super) fn new(last: UnixMicros) -> Self {
        Self { last }
    }

    /// The last stamp.
    pub(super) fn last(&self) -> UnixMicros {
        self.last
    }

    /// The stamp for what is committed now.
    pub(super) fn next(&self, now: UnixMicros) -> UnixMicros {
        self.last.max(now)
    }

    /// A commit got this stamp. A time at which nothing was committed leaves no trace.
    pub(super) fn used(&mut self, stamp: UnixMicros) {
        self.last = self.last.max(stamp);
    }
}

/// Where in a log a commit begins.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) log: LogId,
    pub(super) epoch: Epoch,
    pub(super) first_sequence: Sequence,
    pub(super) received_at: UnixMicros,
}

/// Lays events out as blocks, in order; none where there are no events. Reuses the builder's buffers:
/// fresh memory costs as much as what is written to it.
pub(super) fn lay_out_with<'a>(
    builder: &mut Builder,
    place: Place,
    events: impl Iterator<Item = (&'a Batch, &'a Draft)>,
) -> Vec<Arc<Block>> {
    let mut blocks = Vec::new();
    builder.begin(
        place.log,
        place.epoch,
        place.first_sequence,
        place.received_at,
    );
    for (batch, draft) in events {
        builder.push(batch, draft);
        if builder.is_full() {
            blocks.extend(builder.finish().map(Arc::new));
        }
    }
    blocks.extend(builder.finish().map(Arc::new));
    blocks
}

/// For [`lay_out_with`].
pub(super) fn new_builder() -> Builder {
    Builder::new(LogId(0), Epoch(0), Sequence(1), UnixMicros(0))
}

/// A random identity for a new log.
pub(super) fn new_log_id() -> Result<LogId, getrandom::Error> {
    getrandom::u64().map(LogId)
}

/// A random identity for one run of a writer; never 0, which is the place before the first event.
pub(super) fn new_epoch() -> Result<Epoch, getrandom::Error> {
    getrandom::u32().map(|epoch| Epoch(epoch.max(1)))
}
