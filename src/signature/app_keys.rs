//! The keys of one app or other source of events: reads the documents of its key source as RSA keys, and
//! reports which are in use. [`crate::key_source`] decides when a document is read.

use std::path::Path;
use std::time::SystemTime;

use super::{Error, KeySet, PublicKey, Skipped};
use crate::key_source::{Failure, KeySource, KeyUse, Origin, State};
use crate::plain;

/// The keys of one app.
pub(super) struct AppKeys {
    pub(super) app_id: String,
}

/// A snapshot for readiness, metrics and operators.
#[derive(Debug, Clone)]
pub struct Status {
    /// The app.
    pub app_id: String,
    /// The URL or file.
    pub source: String,
    /// Where the keys in use were read.
    pub origin: Origin,
    /// The keys in use.
    pub keys: Vec<KeyStatus>,
    /// Keys of the same document that were left out, at most 64.
    pub skipped: Vec<Skipped>,
    /// How many were left out in all.
    pub skipped_count: usize,
    /// When the source last confirmed the keys in use.
    pub fetched_at: Option<SystemTime>,
    /// What the last read of the source failed with; `None` after a good one.
    pub last_error: Option<String>,
    /// How many reads of the source have ended, successful or not.
    pub attempts: u64,
    /// How many of them were caused by a signature that no known key had made.
    pub attempts_for_unknown: u64,
}

/// One key in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// Its `kid`, where it has one.
    pub id: Option<String>,
    /// Its RFC 7638 thumbprint.
    pub thumbprint: String,
    /// The length of its modulus.
    pub bits: usize,
}

impl Status {
    pub(super) fn new(app_id: &str, source: &KeySource, state: &State<KeySet>) -> Self {
        let key = |key: &PublicKey| KeyStatus {
            id: key.id().map(str::to_owned),
            thumbprint: key.thumbprint().to_owned(),
            bits: key.bits(),
        };
        Self {
            app_id: app_id.to_owned(),
            source: source.to_string(),
            origin: state.origin,
            keys: state.keys.keys().iter().map(key).collect(),
            skipped: state.keys.skipped().to_vec(),
            skipped_count: state.keys.skipped_count(),
            fetched_at: state.fetched_at,
            last_error: state.last_error.clone(),
            attempts: state.attempts,
            attempts_for_unknown: state.attempts_for_unknown,
        }
    }
}

impl KeyUse for AppKeys {
    type Keys = KeySet;
    type Error = Error;

    fn read(&self, source: &KeySource, documents: &[Vec<u8>]) -> Result<KeySet, Error> {
        Ok(KeySet::read(source, documents)?.require_usable()?)
    }

    fn count(keys: &KeySet) -> usize {
        keys.keys().len()
    }

    fn log_loaded(&self, source: &KeySource, keys: &KeySet) {
        let ids: Vec<&str> = keys
            .keys()
            .iter()
            // The source may call a key anything.
            .map(|key| {
                let id = key.id().filter(|id| plain::is_name(id));
                id.unwrap_or(key.thumbprint())
            })
            .collect();
        tracing::info!(
            app = %self.app_id, source = plain::configured(source), keys = ?ids, skipped = keys.skipped_count(),
            "signing keys loaded"
        );
        for skipped in keys.skipped() {
            tracing::debug!(app = %self.app_id, "{}", plain::words(skipped));
        }
    }

    fn log_failure(&self, source: &KeySource, failure: &Failure<'_, Error>) {
        let &Failure { keys, .. } = failure;
        let (source, error) = (plain::configured(source), failure.error.shown());
        if failure.are_expired {
            tracing::error!(
                app = %self.app_id, source, error,
                "the signing keys could not be refreshed; those in use are too old and no longer \
                 trusted: deliveries are answered 503 until the source can be read"
            );
        } else if keys > 0 {
            tracing::warn!(
                app = %self.app_id, source, error, keys,
                "the signing keys could not be refreshed; the last good ones stay in use for now"
            );
        } else {
            tracing::warn!(
                app = %self.app_id, source, error, keys,
                "the signing keys could not be read, and none are known: deliveries are answered \
                 503 until the source can be read"
            );
        }
    }

    fn log_not_kept(&self, path: &Path, fault: &std::io::Error) {
        tracing::warn!(
            app = %self.app_id, path = plain::configured(path.display()), error = %fault,
            "the signing keys could not be kept on disk for the next start"
        );
    }
}
