//! The handle that the receiver holds for each app: it picks keys, verifies, and asks for newer keys
//! when none fits.
//!
//! Reading sources is the business of the service behind it; statuses are the business of the caller.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::app_keys::AppKeys;
use super::{Error, KeySet, KeySource, Options, PublicKey, Signature, Status, pss};
use crate::key_source::FreshKeys;

/// The keys of one app, kept fresh in the background until the last clone is dropped.
#[derive(Clone)]
pub struct Keyring {
    shared: Arc<Shared>,
}

/// A body whose signature was verified: holding one is the proof. Only this room can build it.
#[derive(Clone)]
pub struct VerifiedBody {
    body: Bytes,
    key_id: Option<Arc<str>>,
}

/// A body that no known key has signed.
pub struct Unmatched {
    body: Bytes,
    digest: pss::BodyDigest,
    keys: Arc<KeySet>,
    attempts: u64,
}

struct Shared {
    app_id: String,
    source: KeySource,
    keys: FreshKeys<AppKeys>,
}

impl Keyring {
    /// Opens the keys of an app and starts keeping them fresh.
    ///
    /// A URL that is down is no error: the keyring starts with the set that an earlier run left in
    /// `cache_directory`, or without keys, and keeps trying.
    ///
    /// # Errors
    /// What a person has to correct: a URL that is not allowed, a file that cannot be read, a file
    /// without a usable key. [`Error::NoRuntime`] outside of tokio.
    pub fn open(
        app_id: &str,
        source: KeySource,
        options: Options,
        cache_directory: Option<&Path>,
    ) -> Result<Self, Error> {
        let app_id = app_id.to_owned();
        let app_keys = AppKeys {
            app_id: app_id.clone(),
        };
        let cache = cache_directory.map(|directory| (directory, app_id.as_str()));
        let keys = FreshKeys::open(app_keys, &source, options, cache)?;
        Ok(Self {
            shared: Arc::new(Shared {
                app_id,
                source,
                keys,
            }),
        })
    }

    /// Verifies the raw bytes of a body. A `key_id` that the sender gave picks the key to try
    /// first; every other key is tried after it. If none fits, the source is read anew, at most
    /// once in a while and once for all who wait, and the keys that are new are tried.
    ///
    /// Takes no longer than [`Options::fetch_timeout`] and a little, and gives way to other tasks
    /// after each key. Dropping the future cancels this verification only.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if no key fits, [`Error::NoKeys`] if there is none to try.
    pub async fn verify(
        &self,
        body: Bytes,
        signature: &Signature,
        key_id: Option<&str>,
    ) -> Result<VerifiedBody, Error> {
        let (alone, tried) = (Semaphore::new(1), AtomicBool::new(false));
        let first = self.try_keys(body, signature, key_id, &alone, &tried);
        match first.await {
            Ok(verified) => Ok(verified),
            Err(unmatched) => {
                self.newer_keys(&unmatched).await;
                self.try_newer_keys(*unmatched, signature, key_id, &alone, &tried)
                    .await
            }
        }
    }

    /// Verifies with the keys that are known, where each attempt takes a permit of `turns`. `tried` is set
    /// as soon as a key did not verify the body, for a caller that drops the future.
    ///
    /// # Errors
    /// No key fits.
    pub async fn try_keys(
        &self,
        body: Bytes,
        signature: &Signature,
        key_id: Option<&str>,
        turns: &Semaphore,
        tried: &AtomicBool,
    ) -> Result<VerifiedBody, Box<Unmatched>> {
        // The semaphore is never closed, so this does not fail.
        let _turn = turns.acquire().await.ok();
        let digest = pss::BodyDigest::of(&body);
        let (keys, attempts) = self.shared.keys.snapshot();
        if let Some(key) = find(keys.in_order(key_id), &digest, signature, tried).await {
            return Ok(VerifiedBody::new(body, key));
        }
        Err(Box::new(Unmatched {
            body,
            digest,
            keys,
            attempts,
        }))
    }

    /// Waits until there are newer keys than those that did not fit, or none are to be expected.
    pub async fn newer_keys(&self, unmatched: &Unmatched) {
        self.shared.keys.demand(unmatched.attempts).await;
    }

    /// Verifies with the keys that have become known since.
    ///
    /// # Errors
    /// As [`Keyring::verify`].
    pub async fn try_newer_keys(
        &self,
        unmatched: Unmatched,
        signature: &Signature,
        key_id: Option<&str>,
        turns: &Semaphore,
        tried: &AtomicBool,
    ) -> Result<VerifiedBody, Error> {
        let Unmatched {
            body, digest, keys, ..
        } = unmatched;
        let _turn = turns.acquire().await.ok();
        let (newer, _) = self.shared.keys.snapshot();
        let unknown = newer.in_order(key_id).filter(|key| !keys.contains(key));
        if let Some(key) = find(unknown, &digest, signature, tried).await {
            return Ok(VerifiedBody::new(body, key));
        }
        if newer.is_empty() {
            return Err(Error::NoKeys {
                app_id: self.shared.app_id.clone(),
            });
        }
        Err(Error::Mismatch)
    }

    /// Whether a key that is known made this signature: for an explanation, not as a proof.
    pub async fn has_signed(&self, digest: &pss::BodyDigest, signature: &Signature) -> bool {
        let (keys, _) = self.shared.keys.snapshot();
        let tried = AtomicBool::new(false);
        find(keys.in_order(None), digest, signature, &tried)
            .await
            .is_some()
    }

    /// What it costs to try all keys on a signature, in attempts with a key of 2048 bits.
    #[must_use]
    pub fn cost(&self, signature: &Signature) -> u32 {
        let state = self.shared.keys.state();
        let costs = state.keys.keys().iter().map(|key| key.cost(signature));
        costs.sum()
    }

    /// The app whose keys these are.
    pub fn app_id(&self) -> &str {
        &self.shared.app_id
    }

    /// Whether there is a key to verify with: what readiness asks.
    pub fn is_usable(&self) -> bool {
        !self.shared.keys.state().keys.is_empty()
    }

    /// Resolves when there is a key to verify with, at once where there is one already.
    pub async fn usable(&self) {
        let keys = &self.shared.keys;
        keys.keys_where(|keys| !keys.keys().is_empty()).await;
    }

    /// What is known at this moment.
    pub fn status(&self) -> Status {
        let Shared {
            app_id,
            source,
            keys,
        } = &*self.shared;
        Status::new(app_id, source, &keys.state())
    }

    /// Waits until the source has been read once, successfully or not (a file is read when opening).
    pub async fn settled(&self) {
        self.shared.keys.settled().await;
    }

    /// Has the source read now, without waiting for it: for an operator who says that it changed.
    pub fn read_again(&self) {
        self.shared.keys.read_again();
    }

    /// Stops the background service and waits for its end. The keys known so far go on verifying.
    pub async fn shutdown(&self) {
        self.shared.keys.shutdown().await;
    }
}

/// The first key that made the signature. An attempt takes tens of microseconds, and a forged
/// delivery is tried with every key: others get their turn in between.
async fn find<'a>(
    keys: impl Iterator<Item = &'a PublicKey>,
    digest: &pss::BodyDigest,
    signature: &Signature,
    tried: &AtomicBool,
) -> Option<&'a PublicKey> {
    for key in keys {
        if key.verify_digest(digest, signature) {
            return Some(key);
        }
        tried.store(true, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
    None
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "Keyring({} from {})",
            self.shared.app_id, self.shared.source
        )
    }
}

impl VerifiedBody {
    pub(super) fn new(body: Bytes, key: &PublicKey) -> Self {
        Self {
            body,
            key_id: key.shared_id(),
        }
    }

    /// The bytes that were signed.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The bytes that were signed, for whoever consumes the proof.
    pub fn into_body(self) -> Bytes {
        self.body
    }

    /// The id of the key that signed, where it has one.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }
}

impl Unmatched {
    /// The hash of the body.
    pub fn digest(&self) -> &pss::BodyDigest {
        &self.digest
    }
}

/// Likewise.
impl std::fmt::Debug for Unmatched {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Unmatched({} bytes)", self.body.len())
    }
}

/// Bodies carry phone numbers and addresses: only their length is shown.
impl std::fmt::Debug for VerifiedBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "VerifiedBody({} bytes)", self.body.len())
    }
}

#[cfg(test)]
mod tests;
