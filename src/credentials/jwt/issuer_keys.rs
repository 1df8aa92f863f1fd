//! What is done with the documents of the JWT issuer's key source: keys for its JWTs, and what the
//! operator is told of them. When they are read is known by [`crate::key_source`].

use super::{Error, KeySet};
use crate::{
    key_source::{Failure, KeySource, KeyUse},
    plain,
};

/// The keys of the issuer.
pub(super) struct IssuerKeys;

impl KeyUse for IssuerKeys {
    type Keys = KeySet;
    type Error = Error;

    fn read(&self, _source: &KeySource, documents: &[Vec<u8>]) -> Result<KeySet, Error> {
        // The source is a URL or one file.
        KeySet::parse(&documents.concat())
    }

    fn count(keys: &KeySet) -> usize {
        keys.len()
    }

    fn log_loaded(&self, source: &KeySource, keys: &KeySet) {
        tracing::info!(
            source = plain::configured(source),
            keys = keys.len(),
            "keys of JWTs loaded"
        );
    }

    fn log_failure(&self, source: &KeySource, failure: &Failure<'_, Error>) {
        let &Failure { keys, .. } = failure;
        let (source, error) = (plain::configured(source), failure.error.shown());
        if failure.are_expired {
            tracing::error!(
                source,
                error,
                keys,
                "the keys of JWTs could not be refreshed; those in use are too old and no longer \
                 trusted"
            );
        } else if keys > 0 {
            tracing::warn!(
                source,
                error,
                keys,
                "the keys of JWTs could not be refreshed; the last good ones stay in use for now"
            );
        } else {
            tracing::warn!(
                source,
                error,
                keys,
                "the keys of JWTs could not be read, and none are known: callers with a JWT are \
                 asked to try again later"
            );
        }
    }
}
