//! Where keys come from: a URL or a file, how a document is got from there, when, and what is kept of
//! it for worse times. Owns the rules that hold for every key set, whatever its keys verify:
//!
//! ```text
//! KeySource ── fetch (https, no redirects, time, size) ── refresh ── the keys in use
//!                                            cache (the last good set, on disk) ──┘
//! ```
//!
//! It reads JWKS as far as all of them are alike (`jwks`). Which keys are good for what is known by
//! their users: `signature` for those of webhooks, `credentials` for those of JWTs.

mod cache;
mod error;
mod fetch;
mod jwks;
mod refresh;

pub use error::{DocumentFault, Error, FetchFault};
pub(crate) use fetch::fetch_documents;
pub(crate) use jwks::{Jwk, check_size, read_jwks};
pub use refresh::Origin;
pub(crate) use refresh::{Failure, FreshKeys, KeyUse, State};

use std::path::PathBuf;
use std::time::Duration;

/// The largest key document that is read: hundreds of times an honest one.
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// How many keys of a set are used: each one costs a public-key operation for every forged
/// signature, and issuers publish two or three.
pub const KEYS_MAX: usize = 32;

/// Where keys are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A JWKS URL; see [`KeySource::url`] for what is accepted.
    Url(reqwest::Url),
    /// A JWKS document on this machine.
    JwksFile(PathBuf),
    /// PEM files on this machine, each with one or more keys: several while a key is replaced.
    PemFiles(Vec<PathBuf>),
}

impl KeySource {
    /// A JWKS URL. Only https, because whoever can swap the keys can sign anything; plain http is
    /// accepted for loopback, where trials and tests run.
    ///
    /// # Errors
    /// [`FetchFault::NotUrl`], [`FetchFault::Insecure`] or [`FetchFault::Credentials`].
    pub fn url(text: &str) -> Result<Self, FetchFault> {
        let url = reqwest::Url::parse(text).map_err(|fault| FetchFault::NotUrl {
            url: text.to_owned(),
            detail: fault.to_string(),
        })?;
        fetch::check_transport(&url)?;
        Ok(Self::Url(url))
    }

    /// The files that are read; none for a URL.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Self::Url(_) => &[],
            Self::JwksFile(path) => std::slice::from_ref(path),
            Self::PemFiles(paths) => paths,
        }
    }
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => formatter.write_str(url.as_str()),
            Self::JwksFile(_) | Self::PemFiles(_) => {
                for (index, path) in self.files().iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(formatter, "{comma}{}", path.display())?;
                }
                Ok(())
            }
        }
    }
}

/// How keys are kept fresh. The defaults are meant to be right.
#[derive(Debug, Clone)]
pub struct Options {
    /// The limit for one whole fetch. The sender waits 10 s for its answer, and a delivery may be
    /// waiting for the fetch: 5 s.
    pub fetch_timeout: Duration,
    /// How often keys are fetched anew while all is well. Rotation is noticed at once by the first
    /// unknown signature; this is for keys that were retired: 10 min.
    pub refresh_interval: Duration,
    /// The first pause after a failed fetch, doubled each time: 1 s.
    pub retry_interval_min: Duration,
    /// The longest pause after failed fetches: 60 s.
    pub retry_interval_max: Duration,
    /// The shortest time between fetches caused by unknown signatures, which anyone can send: 30 s.
    pub unknown_interval_min: Duration,
    /// How long the last good set is used when no newer one can be had: 24 h.
    pub outage_max: Duration,
    /// How often key files are checked for changes (their metadata, not their content): 5 s.
    pub file_check_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fetch_timeout: Duration::from_secs(5),
            refresh_interval: Duration::from_secs(10 * 60),
            retry_interval_min: Duration::from_secs(1),
            retry_interval_max: Duration::from_secs(60),
            unknown_interval_min: Duration::from_secs(30),
            outage_max: Duration::from_secs(24 * 60 * 60),
            file_check_interval: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_https_or_from_loopback() {
        for accepted in [
            "https://auth.example.com/.well-known/jwks.json",
            "http://127.0.0.1:8080/jwks.json",
            "http://127.9.9.9/",
            "http://[::1]:80/",
            "http://localhost:1/",
        ] {
            assert!(KeySource::url(accepted).is_ok(), "{accepted}");
        }
        for refused in [
            "http://example.com/jwks.json",
            "http://10.0.0.1/",
            "http://localhost.example.com/",
            "http://[::2]/",
            "file:///etc/keys",
            "ftp://127.0.0.1/",
        ] {
            let fault = KeySource::url(refused).unwrap_err();
            assert!(matches!(fault, FetchFault::Insecure { .. }), "{refused}");
        }
        for secret in ["https://me:hush@example.com/", "https://hush@example.com/"] {
            let fault = KeySource::url(secret).unwrap_err();
            assert!(matches!(fault, FetchFault::Credentials));
            assert!(!format!("{fault} {fault:?}").contains("hush"));
        }
        let fault = KeySource::url("jwks.json").unwrap_err();
        assert!(matches!(fault, FetchFault::NotUrl { .. }));
    }
}
