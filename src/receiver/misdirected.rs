//! Owns the hint for a delivery that no key of its source signed, but a key of another source did: then
//! the URL that Prelude calls belongs to the other source. Only the log has it, and only a sender with
//! one of our keys can cause it, so strangers learn nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{App, Shared};
use crate::{
    rate::Bucket,
    signature::{BodyDigest, Signature},
};

/// Forged deliveries of which the other keys are tried in a second, and at once after a time without
/// any. A misdirected delivery is retried for two weeks, so a hint that is left out comes later; and a
/// flood of forged ones costs this many attempts and no more.
const PER_SECOND: u64 = 1;
const AT_ONCE: u64 = 10;

/// The rate limit of the attempts.
pub(super) struct Attempts {
    tokens: Mutex<Bucket>,
}

impl Attempts {
    pub(super) fn new() -> Self {
        let second = Duration::from_secs(1);
        Self {
            tokens: Mutex::new(Bucket::new(PER_SECOND, second, AT_ONCE, Instant::now())),
        }
    }

    fn admit(&self) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.take(1, Instant::now())
    }
}

impl Shared {
    /// The other sources whose keys made this signature, as far as they are tried.
    pub(super) async fn signing_sources(
        &self,
        app: &App,
        digest: &BodyDigest,
        signature: &Signature,
    ) -> Vec<Arc<str>> {
        let mut signers = Vec::new();
        if self.apps.len() < 2 || !self.misdirected.admit() {
            return signers;
        }
        // The semaphore is never closed, so this does not fail.
        let _turn = self.verifications.acquire().await.ok();
        for other in self.apps.values().filter(|other| other.id != app.id) {
            if other.keyring.has_signed(digest, signature).await {
                signers.push(Arc::clone(&other.id));
            }
        }
        signers.sort();
        signers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn other_keys_are_tried_ten_times_at_once_and_once_a_second() {
        let attempts = Attempts::new();
        let admitted = || (0..100).filter(|_| attempts.admit()).count();
        assert_eq!(admitted(), 10);
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(admitted(), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(admitted(), 1);
    }
}
