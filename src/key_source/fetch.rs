//! How a document is got from its source. It enforces the rules of the way (https, no redirects, time,
//! size) and knows nothing of when to fetch or what to do when it fails.

use std::error::Error as _;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use reqwest::redirect;

use super::{DOCUMENT_BYTES_MAX, DocumentFault, Error, FetchFault, KeySource};
use crate::{
    net::tls,
    permissions::{self, By},
};

/// Reads the document of a source once, without keeping or judging it. A server may have a certificate
/// of one of these issuers, beside those that the system trusts.
///
/// # Errors
/// A source that cannot be read, or has more than a key document may have.
pub(crate) async fn fetch_document(
    source: &KeySource,
    timeout: Duration,
    issuers: &[reqwest::Certificate],
) -> Result<Vec<u8>, Error> {
    match source {
        KeySource::Url(url) => Client::trusting(url, timeout, issuers)?.get().await,
        KeySource::JwksFile(path) | KeySource::PemFile(path) => {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || read_file(&path));
            // Reading does not panic; a runtime that is shutting down ends this task as well.
            let file = read.await.map_err(|_| Error::NoRuntime)??;
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
    pub(super) fn new(url: &reqwest::Url, timeout: Duration) -> Result<Self, FetchFault> {
        Self::trusting(url, timeout, &[])
    }

    /// One that trusts these issuers beside those of the system.
    fn trusting(
        url: &reqwest::Url,
        timeout: Duration,
        issuers: &[reqwest::Certificate],
    ) -> Result<Self, FetchFault> {
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
                return Err(DocumentFault::TooLarge {
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
/// refused: whoever writes it decides which signatures are genuine.
pub(super) fn read_file(path: &Path) -> Result<KeyFile, FetchFault> {
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

pub(super) fn check_transport(url: &reqwest::Url) -> Result<(), FetchFault> {
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
    use super::super::read_jwks;
    use super::*;

    #[test]
    fn a_file_is_read_no_further_than_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwks.json");
        std::fs::write(&path, vec![b' '; DOCUMENT_BYTES_MAX * 3]).unwrap();
        let file = read_file(&path).unwrap();
        assert_eq!(file.document.len(), DOCUMENT_BYTES_MAX + 1);
        let fault = read_jwks(&file.document).err().unwrap();
        assert!(matches!(fault, DocumentFault::TooLarge { .. }));
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
