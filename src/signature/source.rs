//! Where keys come from: a URL, a JWKS file or a PEM file, and how a document is got from there.
//!
//! It enforces the rules of the way (https, no redirects, time, size) and knows nothing of when to
//! fetch or what to do when it fails.

use std::error::Error as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use reqwest::redirect;

use super::{Error, FetchFault, KeySet, KeySetFault};
use crate::{
    net::tls,
    permissions::{self, By},
};

/// The largest key document that is read: hundreds of times an honest one.
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// Where the keys of an app are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A JWKS URL; see [`KeySource::url`] for what is accepted.
    Url(reqwest::Url),
    /// A JWKS document on this machine.
    JwksFile(PathBuf),
    /// PEM blocks on this machine.
    PemFile(PathBuf),
}

impl KeySource {
    /// A JWKS URL. Only https, because whoever can swap the keys can sign anything; plain http is
    /// accepted for loopback, where trials and tests run.
    ///
    /// # Errors
    /// [`FetchFault::NotUrl`], [`FetchFault::Insecure`] or [`FetchFault::Credentials`].
    pub fn url(text: &str) -> Result<Self, Error> {
        let url = reqwest::Url::parse(text).map_err(|fault| FetchFault::NotUrl {
            url: text.to_owned(),
            detail: fault.to_string(),
        })?;
        check_transport(&url)?;
        Ok(Self::Url(url))
    }

    /// Where the sender documents the keys of an app: its own host.
    ///
    /// # Errors
    /// [`FetchFault::NotUrl`] if the app id cannot be part of a host name.
    pub fn of_app(app_id: &str) -> Result<Self, Error> {
        let is_label = |id: &str| id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let text = format!("https://{app_id}.session.prelude.dev/.well-known/jwks.json");
        if app_id.is_empty() || !is_label(app_id) {
            let detail = "the app id is no part of a host name; configure jwks_url".to_owned();
            return Err(FetchFault::NotUrl { url: text, detail }.into());
        }
        Self::url(&text)
    }

    /// Reads a document of this source's kind.
    ///
    /// # Errors
    /// [`KeySetFault`].
    pub fn read(&self, document: &[u8]) -> Result<KeySet, KeySetFault> {
        match self {
            Self::Url(_) | Self::JwksFile(_) => KeySet::from_jwks(document),
            Self::PemFile(_) => KeySet::from_pem(document),
        }
    }
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => formatter.write_str(url.as_str()),
            Self::JwksFile(path) | Self::PemFile(path) => path.display().fmt(formatter),
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
    /// How often a key file is looked at for changes (its time and length, not its content): 5 s.
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
    let document = match source {
        KeySource::Url(url) => Client::trusting(url, timeout, issuers)?.get().await?,
        KeySource::JwksFile(_) | KeySource::PemFile(_) => fetch_document(source, timeout).await?,
    };
    Ok(source.read(&document)?)
}

/// The same without judging the document, for keys that are none of ours: those of JWTs.
pub(crate) async fn fetch_document(
    source: &KeySource,
    timeout: Duration,
) -> Result<Vec<u8>, Error> {
    match source {
        KeySource::Url(url) => Client::new(url, timeout)?.get().await,
        KeySource::JwksFile(path) | KeySource::PemFile(path) => {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || read_file(&path));
            // Reading does not panic; a runtime that is shutting down ends this task as well.
            let file = read.await.unwrap_or(Err(Error::NoRuntime))?;
            Ok(file.document)
        }
    }
}

/// A client for one URL.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: reqwest::Url,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(url: &reqwest::Url, timeout: Duration) -> Result<Self, Error> {
        Self::trusting(url, timeout, &[])
    }

    /// One that trusts these issuers beside those of the system.
    fn trusting(
        url: &reqwest::Url,
        timeout: Duration,
        issuers: &[reqwest::Certificate],
    ) -> Result<Self, Error> {
        check_transport(url)?;
        let mut builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(timeout)
            .user_agent(concat!("prelude-bridge/", env!("CARGO_PKG_VERSION")))
            // A fetch every ten minutes has no use for connections kept open in between.
            .pool_max_idle_per_host(0);
        if url.scheme() == "http" {
            // Loopback: a proxy would not find it.
            builder = builder.no_proxy();
        } else {
            builder = builder
                .https_only(true)
                .tls_certs_merge(issuers.iter().cloned());
        }
        let http = builder.build().map_err(|fault| transport(url, &fault))?;
        Ok(Self {
            http,
            url: url.clone(),
            timeout,
        })
    }

    /// The document, whole and within all limits.
    pub(super) async fn get(&self) -> Result<Vec<u8>, Error> {
        let url = || self.url.to_string();
        let request = self
            .http
            .get(self.url.clone())
            .header("accept", "application/json");
        let mut response = request.send().await.map_err(|fault| self.fault(&fault))?;
        let status = response.status().as_u16();
        match status {
            200 => {}
            300..=399 => return Err(FetchFault::Redirect { url: url(), status }.into()),
            _ => return Err(FetchFault::Status { url: url(), status }.into()),
        }
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|fault| self.fault(&fault))? {
            if document.len() + chunk.len() > DOCUMENT_BYTES_MAX {
                return Err(KeySetFault::TooLarge {
                    bytes_max: DOCUMENT_BYTES_MAX,
                }
                .into());
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document)
    }

    fn fault(&self, fault: &reqwest::Error) -> FetchFault {
        if fault.is_timeout() {
            return FetchFault::Timeout {
                url: self.url.to_string(),
                timeout: self.timeout,
            };
        }
        transport(&self.url, fault)
    }
}

/// What was read, and how to see later that it changed.
pub(super) struct KeyFile {
    pub(super) document: Vec<u8>,
    pub(super) stamp: Stamp,
}

/// A file's time and length: enough to see an edit, a replaced file, or a swapped mount.
pub(super) type Stamp = (Option<SystemTime>, u64);

/// Reads a key file, no more of it than a key document may have. One that others can write is
/// refused: whoever writes it decides which deliveries are genuine.
pub(super) fn read_file(path: &Path) -> Result<KeyFile, Error> {
    let fault = |source| FetchFault::File {
        path: path.to_owned(),
        source,
    };
    // Stamped first: a change during the read is then seen as one later.
    let stamp = stamp(path).map_err(fault)?;
    let mut document = Vec::new();
    permissions::open(path, By::Reader)
        .and_then(|file| {
            file.take(DOCUMENT_BYTES_MAX as u64 + 1)
                .read_to_end(&mut document)
        })
        .map_err(fault)?;
    Ok(KeyFile { document, stamp })
}

pub(super) fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.modified().ok(), metadata.len()))
}

fn check_transport(url: &reqwest::Url) -> Result<(), FetchFault> {
    let loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(FetchFault::Credentials);
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if loopback => Ok(()),
        _ => Err(FetchFault::Insecure {
            url: url.to_string(),
        }),
    }
}

/// The whole chain of causes: the outermost says only that sending failed. The URL is in our own
/// sentence already.
fn transport(url: &reqwest::Url, fault: &reqwest::Error) -> FetchFault {
    if let Some(trouble) = tls::trouble(fault) {
        let url = url.to_string();
        return FetchFault::Tls { url, trouble };
    }
    let mut causes = Vec::new();
    let mut cause = fault.source();
    while let Some(fault) = cause {
        causes.push(fault.to_string());
        cause = fault.source();
    }
    if causes.is_empty() {
        causes.push("the request could not be made".to_owned());
    }
    FetchFault::Transport {
        url: url.to_string(),
        detail: causes.join(": "),
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
            assert!(
                matches!(fault, Error::Fetch(FetchFault::Insecure { .. })),
                "{refused}"
            );
        }
        for secret in ["https://me:hush@example.com/", "https://hush@example.com/"] {
            let fault = KeySource::url(secret).unwrap_err();
            assert!(matches!(fault, Error::Fetch(FetchFault::Credentials)));
            assert!(!format!("{fault} {fault:?}").contains("hush"));
        }
        let fault = KeySource::url("jwks.json").unwrap_err();
        assert!(matches!(fault, Error::Fetch(FetchFault::NotUrl { .. })));
    }

    #[test]
    fn an_app_has_its_documented_host() {
        let source = KeySource::of_app("54e9ujn").unwrap();
        assert_eq!(
            source.to_string(),
            "https://54e9ujn.session.prelude.dev/.well-known/jwks.json"
        );
        for id in ["", "a.b", "evil.example/", "a@b", "a b"] {
            assert!(KeySource::of_app(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn a_file_is_read_no_further_than_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwks.json");
        std::fs::write(&path, vec![b' '; DOCUMENT_BYTES_MAX * 3]).unwrap();
        let file = read_file(&path).unwrap();
        assert_eq!(file.document.len(), DOCUMENT_BYTES_MAX + 1);
        let fault = KeySource::JwksFile(path).read(&file.document).unwrap_err();
        assert!(matches!(fault, KeySetFault::TooLarge { .. }));
    }

    #[test]
    fn a_missing_file_is_named() {
        let fault = read_file(Path::new("/nowhere/jwks.json")).err().unwrap();
        assert!(
            fault
                .to_string()
                .starts_with("/nowhere/jwks.json could not be read"),
            "{fault}"
        );
    }
}
