//! Owns the one outcome of each request: it is counted and logged once, also if the caller closes the
//! connection before there is an answer.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;
use warp::reply::Response;

use super::{Shared, error::Error, status::Outcome};
use crate::net::http1::Peer;

/// A request without an outcome. Dropped, it is counted as abandoned, or as refused if that was
/// decided.
pub(super) struct Pending<'s> {
    shared: &'s Shared,
    /// The id that the path names, if it is of a configured app: text of strangers is not logged.
    app: Option<&'s str>,
    pub(super) peer: Option<&'s Peer>,
    since: Instant,
    /// A refusal that is decided, while the rest of the request is read.
    decided: Mutex<Option<Error>>,
    is_open: bool,
}

impl<'s> Pending<'s> {
    pub(super) fn new(
        shared: &'s Shared,
        app: Option<&str>,
        peer: Option<&'s Peer>,
        since: Instant,
    ) -> Self {
        let app = app.and_then(|app| shared.apps.get(app));
        Self {
            shared,
            app: app.map(|app| &*app.id),
            peer,
            since,
            decided: Mutex::default(),
            is_open: true,
        }
    }

    /// Where the request comes from.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.peer.map(|peer| peer.address)
    }

    /// Waits for something unless the client closes its side of the connection. Returns whether it did not.
    pub(super) async fn wait_open(&self, something: impl Future<Output = ()>) -> bool {
        match self.peer {
            Some(peer) => peer.wait_open(something).await,
            None => {
                something.await;
                true
            }
        }
    }

    /// Whether the client has closed its side of the connection.
    pub(super) fn is_closed(&self) -> bool {
        self.peer.is_some_and(|peer| peer.closed.is_cancelled())
    }

    /// Waits for something before a refusal is answered. It counts also if that never ends.
    pub(super) async fn refuse_after<T>(
        &self,
        error: Error,
        last: impl Future<Output = T>,
    ) -> (Error, T) {
        *self.decided.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        let done = last.await;
        (self.take_decided().unwrap_or(Error::Abandoned), done)
    }

    /// Counts and logs the outcome, and makes the answer.
    pub(super) fn conclude(mut self, outcome: &Outcome) -> Response {
        self.is_open = false;
        // At the deadline, the refusal that was decided before it is the outcome.
        match self.take_decided() {
            Some(error) => self.note(&Outcome::Refused(error)),
            None => self.note(outcome),
        }
    }

    fn take_decided(&self) -> Option<Error> {
        let mut decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        decided.take()
    }

    fn note(&self, outcome: &Outcome) -> Response {
        let Self { shared, app, .. } = *self;
        let answer = outcome.answer();
        let status = answer.response.status().as_u16();
        let took = self.since.elapsed();
        shared.metrics.request(answer.code, status, took);
        let peer = self.address();
        let shown_peer = peer.map(tracing::field::display);
        match outcome {
            Outcome::Challenge(_) => {
                tracing::info!(app, peer = shown_peer, "activation challenge answered");
            }
            Outcome::Accepted(appended) => tracing::debug!(
                app,
                peer = shown_peer,
                accepted = appended.accepted,
                duplicates = appended.duplicates,
                "batch accepted"
            ),
            Outcome::Options { .. } => {}
            Outcome::Refused(error) => shared.note_refusal(error, answer.code, app, peer),
        }
        answer.response
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let error = self.take_decided().unwrap_or(Error::Abandoned);
            self.note(&Outcome::Refused(error));
        }
    }
}
