//! Owns how a session gives a response that is larger than its client's room: piece by piece, and
//! from the log again where the client was slow.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Session, expired};
use crate::{
    bus,
    event::Sequence,
    log::{Block, ReadError},
    stream::{request::OnExpired, response::Response, rest::Rest, status::Failure},
};

impl Session {
    /// Takes back a response that is larger than the client's room, to give it in pieces.
    pub(in crate::stream) fn split(&mut self, response: Response) {
        self.rest = Some(Box::new(Rest::new(response)));
    }

    /// How much of it was not given yet, in bytes.
    #[must_use]
    pub(in crate::stream) fn rest_bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.remaining())
    }

    /// The next piece of it, of at most `bytes_max`. `None` once it is whole, and when the rest of
    /// it cannot be read again, which ends the stream.
    pub(in crate::stream) async fn piece(&mut self, bytes_max: usize) -> Option<Response> {
        if let Some(sequence) = self.rest.as_ref()?.unloaded()
            && let Err(failure) = self.load(sequence).await
        {
            self.end_now(failure);
        }
        let rest = self.rest.as_mut()?;
        let piece = rest.split_to(bytes_max);
        if rest.remaining() == 0 {
            self.rest = None;
        }
        Some(piece)
    }

    async fn load(&mut self, sequence: Sequence) -> Result<(), Failure> {
        let event = self.event(sequence).await?;
        if self.rest.as_mut().is_some_and(|rest| rest.load(event)) {
            return Ok(());
        }
        let error = ReadError::Failed("an event is not what it was".into());
        Err(self.unreadable(&error))
    }

    /// An event that was found before, as it is in a response.
    async fn event(&mut self, sequence: Sequence) -> Result<Bytes, Failure> {
        let after = sequence.before();
        let block = match self.subscriber.next(after) {
            bus::Next::Block(block) => Some(block),
            bus::Next::AtHead(_) | bus::Next::Behind => None,
        };
        let holds = |block: &Arc<Block>| {
            (block.first_sequence()..=block.last_sequence()).contains(&sequence)
        };
        let block = match block.filter(holds) {
            Some(block) => block,
            None => {
                let blocks = self.shared.log.read(after, 1).await;
                let blocks = blocks.map_err(|error| match (&error, self.plan.on_expired) {
                    (ReadError::Expired { .. }, OnExpired::Fail) => {
                        expired(&self.shared, &self.shared.range())
                    }
                    // No skip can come within a message: the client gets it when it resumes.
                    (ReadError::Expired { .. }, OnExpired::Earliest | OnExpired::Latest) => {
                        let cursor = Some(self.told_cursor());
                        Failure::LogUnavailable { cursor }
                    }
                    (ReadError::Failed(_) | ReadError::Unavailable(_), _) => {
                        self.unreadable(&error)
                    }
                })?;
                let block = blocks.into_iter().find(holds);
                block.ok_or_else(|| {
                    self.unreadable(&ReadError::Failed("an event is not there any more".into()))
                })?
            }
        };
        let index = usize::try_from(sequence.0 - block.first_sequence().0).unwrap_or(usize::MAX);
        let view = block.view(self.plan.format);
        Ok(view.slice(index..index.saturating_add(1)))
    }

    /// Since when it holds what it would let go of, if that was not only now.
    #[must_use]
    pub(in crate::stream) fn holds_since(&self) -> Option<Instant> {
        self.rest.as_ref().map(|rest| rest.loaded_at())
    }
}
