//! Owns the attempt to put a commit at the next position of the sequence. Whatever the engine answers,
//! only what is at the position decides: a refusal does not prove that somebody else won, and a commit
//! whose answer was lost may be there.
//!
//! An attempt can be given up at any moment. A commit that is stored later all the same is taken like
//! that of another bridge, and its events are known when they are sent again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Replica, message::Message};
use crate::{
    embedded::Shared,
    sequencer::{Outage, Outcome, Position},
};
use prelude_bridge_event::Sequence;

/// The pause before the same is tried again, which doubles …
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// … up to this.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What became of an attempt.
pub(in crate::embedded) enum Settled {
    /// The commit is at the position.
    Ours,
    /// Another one is.
    Other(Bytes),
    /// It is not there, and was made on another connection: what it followed may be gone.
    Reconnected,
    /// It is not known to be there: why.
    Refused(Outage),
    /// The sequence is not the one that it was: why.
    Failed(String),
}

impl Replica {
    /// Tries until it is known what is at the next position, or those who wait for it are refused.
    pub(in crate::embedded) fn settle(
        &mut self,
        commit: &Bytes,
        patience_ends: Instant,
        shared: &Shared,
    ) -> Settled {
        let mut pause = PAUSE_MIN;
        loop {
            let outage = match self.attempt(commit, patience_ends, shared) {
                Ok(settled) => return settled,
                Err(outage) => outage,
            };
            if let Outage::Unusable(reason) = &outage {
                return Settled::Failed(reason.to_string());
            }
            let is_over = Instant::now() >= patience_ends || matches!(outage, Outage::Full(_));
            if is_over || shared.queue.is_ended_within(pause) {
                self.trouble_began(patience_ends);
                return Settled::Refused(outage);
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Tries once. Fails where it is not known what is at the position, or nothing is.
    pub(in crate::embedded) fn attempt(
        &mut self,
        commit: &Bytes,
        patience_ends: Instant,
        shared: &Shared,
    ) -> Result<Settled, Outage> {
        let (position, sequencer) = (self.position.next(), Arc::clone(self.sequencer()));
        let appended = sequencer.append(position, commit.clone());
        let appended = self.wait_until(appended, patience_ends, shared);
        let refusal = match appended {
            Ok(Outcome::Won) => return Ok(Settled::Ours),
            Ok(Outcome::Refused) => None,
            Err(outage @ Outage::Unusable(_)) => return Err(outage),
            Err(outage) => Some(outage),
        };
        if let Some(found) = self.wait_until(sequencer.get(position), patience_ends, shared)? {
            let is_ours = found == *commit;
            return Ok(if is_ours {
                Settled::Ours
            } else {
                Settled::Other(found)
            });
        }
        if self.is_reconnected() {
            return Ok(Settled::Reconnected);
        }
        let ends = self.wait_until(sequencer.ends(), patience_ends, shared)?;
        let last = ends.last;
        if last < self.position {
            return Ok(Settled::Failed(self.went_back(last)));
        }
        Err(refusal.unwrap_or_else(|| {
            let name = self.sequencer().name();
            Outage::Unavailable(format!("{name} takes no commits: it may have no quorum").into())
        }))
    }

    /// That the sequence has lost commits which were acknowledged.
    pub(in crate::embedded) fn went_back(&self, last: Position) -> String {
        format!(
            "{} ends with commit {last}, and this bridge has commit {}: the engine has lost commits that it had \
             acknowledged, or was restored to an earlier state; the next start makes the replica anew from what \
             is left, and keeps this one in the quarantine",
            self.sequencer().name(),
            self.position,
        )
    }

    pub(in crate::embedded) fn is_reconnected(&self) -> bool {
        self.connections.has_changed().unwrap_or(false)
    }
}

impl Replica {
    /// Compares what is at the position that was reached with what was applied there. `Err` where that cannot
    /// be told, and in it why the log cannot go on.
    pub(in crate::embedded) fn compare(
        &mut self,
        head: Sequence,
        shared: &Shared,
    ) -> Result<Result<(), String>, Outage> {
        let sequencer = Arc::clone(self.sequencer());
        let ends = self.wait(sequencer.ends(), shared)?;
        if ends.last < self.position {
            return Ok(Err(self.went_back(ends.last)));
        }
        if self.position < ends.first {
            // Whether anything is missing in between is told by what follows.
            return Ok(Ok(()));
        }
        let Some(bytes) = self.wait(sequencer.get(self.position), shared)? else {
            return Ok(Ok(()));
        };
        let same = Message::parse(self.position, &bytes).is_ok_and(|message| {
            let ends_with_head = message
                .last()
                .is_some_and(|last| last.log == self.log && last.last_sequence() == head);
            ends_with_head && self.digest.is_none_or(|digest| message.digest() == digest)
        });
        Ok(if same {
            Ok(())
        } else {
            Err(format!(
                "{} has another commit {} than this bridge: it was restored or replaced; the next start makes the \
                 replica anew from it, and keeps this one in the quarantine",
                self.sequencer().name(),
                self.position,
            ))
        })
    }
}
