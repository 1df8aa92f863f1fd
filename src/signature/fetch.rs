//! Key sets that are read once, as commands do.

use std::time::Duration;

use super::{Error, KeySet};
use crate::key_source::{KeySource, fetch_documents};

/// Reads a key source once, without keeping anything: what a command does.
///
/// # Errors
/// [`Error::Fetch`] or [`Error::KeySet`]. A set without a usable key is no error here.
pub async fn fetch(source: &KeySource, timeout: Duration) -> Result<KeySet, Error> {
    fetch_trusting(source, timeout, &[]).await
}

/// The same for a server with a certificate of one of these issuers, or of those that the system
/// trusts.
///
/// # Errors
/// As [`fetch`].
pub async fn fetch_trusting(
    source: &KeySource,
    timeout: Duration,
    issuers: &[reqwest::Certificate],
) -> Result<KeySet, Error> {
    let documents = fetch_documents(source, timeout, issuers).await?;
    Ok(KeySet::read(source, &documents)?)
}
