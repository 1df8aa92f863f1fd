//! Owns how a session gives a response that is larger than its client's room: piece by piece, and
//! from the log again where the client was slow.

use tokio::time::Instant;

use super::Session;
use crate::{
    event::Sequence,
    log::ReadError,
    subscription::{
        Subscriptions, failure::Failure, response::Response, rest::Rest, source::Source,
    },
};

impl<S: Source> Session<S> {
    /// Takes back a response that is larger than the client's room, to give it in pieces.
    pub(crate) fn split(&mut self, response: Response) {
        self.rest = Some(Box::new(Rest::new(response)));
    }

    /// How much of it was not given yet, in bytes.
    #[must_use]
    pub(crate) fn rest_bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.remaining())
    }

    /// The next piece of it, of at most `bytes_max`. `None` once it is whole, and when the rest of
    /// it cannot be read again, which ends the stream.
    pub(crate) async fn piece(&mut self, bytes_max: usize) -> Option<Response> {
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
        let event = self.source.event(sequence).await?;
        if self.rest.as_mut().is_some_and(|rest| rest.load(event)) {
            return Ok(());
        }
        let error = ReadError::Failed("an event is not what it was".into());
        let cursor = Some(self.source.sent_cursor());
        Err(Subscriptions::unreadable(&error, cursor))
    }

    /// Since when it holds what it would let go of, if that was not only now.
    #[must_use]
    pub(crate) fn holds_since(&self) -> Option<Instant> {
        let rest = self.rest.as_ref().map(|rest| rest.loaded_at());
        // Each response would begin anew, and a client can take one event after the other.
        let history = self.history.as_ref().map(|&(_, since)| since);
        rest.into_iter().chain(history).min()
    }
}
