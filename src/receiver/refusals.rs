//! Owns the counters of refusals, and their log lines, which are rate-limited by kind. [`super::status`]
//! has the answers to the caller.

use std::net::SocketAddr;

use tracing::Level;

use super::{Shared, error::Error, status};
use crate::{net::quiet::Admitted, signature};

impl Shared {
    /// Counts a refusal, and logs it. `app` is the id of a configured app: text of strangers is not
    /// logged.
    pub(super) fn note_refusal(
        &self,
        error: &Error,
        code: &'static str,
        app: Option<&str>,
        peer: Option<SocketAddr>,
    ) {
        if let Some(reason) = verification_failure(error) {
            self.metrics.verification_failed(reason);
        }
        let Some(Admitted { unlogged }) = self.quiet.admit(code) else {
            return;
        };
        let peer = peer.map(tracing::field::display);
        match status::level(error) {
            Level::ERROR => tracing::error!(app, peer, code, unlogged, %error, "request refused"),
            Level::WARN => tracing::warn!(app, peer, code, unlogged, %error, "request refused"),
            _ => tracing::info!(app, peer, code, unlogged, %error, "request refused"),
        }
    }
}

fn verification_failure(error: &Error) -> Option<&'static str> {
    match error {
        Error::SignatureMissing => Some("header_missing"),
        Error::SignatureRepeated => Some("header_repeated"),
        Error::AppUnnamed => Some("app_unnamed"),
        Error::Forged { .. } | Error::ForgedAndGone => Some(signature::Error::Mismatch.reason()),
        Error::Unverified(error) => Some(error.reason()),
        _ => None,
    }
}
