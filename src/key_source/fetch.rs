//! How a document is got from its source. It enforces the rules of the way (https, no redirects, time,
//! size) and knows nothing of when to fetch or what to do when it fails.

use std::error::Error as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use reqwest::redirect;

use super::{DOCUMENT_BYTES_MAX, DocumentFault, Error, FetchFault, KeySource};
use crate::{
    net::tls,
    permissions::{self, By},
};

/// Reads the documents of a source once, one of each file, without keeping or parsing them. A server may
/// have a certificate of one of these issuers, beside those that the system trusts.
///
/// # Errors
/// A source that cannot be read, or has more than a key document may have.
pub(crate) async fn fetch_documents(
    source: &KeySource,
    timeout: Duration,
    issuers: &[reqwest::Certificate],
) -> Result<Vec<Vec<u8>>, Error> {
    match source {
        KeySource::Url(url) => {
            let document = Client::trusting(url, timeout, issuers)?.get().await?;
            Ok(vec![document])
        }
        KeySource::JwksFile(_) | KeySource::PemFiles(_) => {
            let paths = source.files().to_vec();
            let read = tokio::task::spawn_blocking(move || read_files(&paths));
            // Reading does not panic; a runtime that is shutting down ends this task as well.
            let files = read.await.map_err(|_| Error::NoRuntime)??;
            Ok(files.documents)
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

/// The content of the files of a source, and their stamps, which show later whether one has changed.
pub(super) struct KeyFiles {
    pub(super) documents: Vec<Vec<u8>>,
    pub(super) stamps: Vec<Stamp>,
}

/// The metadata of a file that change with an edit, a replaced file, or a swapped mount: its length, its
/// time of modification, and its device, inode and time of change. The latter three distinguish two
/// keys of one length whose files a deployment gave one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    modified_at: Option<SystemTime>,
    #[cfg(unix)]
    identity: [i128; 4],
}

/// Reads key files, of each no more than a key document may have. One that others can write is
/// refused: whoever writes it decides which signatures are genuine.
pub(super) fn read_files(paths: &[PathBuf]) -> Result<KeyFiles, FetchFault> {
    let mut files = KeyFiles {
        documents: Vec::new(),
        // Before the content: a change during the read is noticed later.
        stamps: stamps(paths)?,
    };
    for path in paths {
        let mut document = Vec::new();
        permissions::open(path, By::Reader)
            .and_then(|file| {
                file.take(DOCUMENT_BYTES_MAX as u64 + 1)
                    .read_to_end(&mut document)
            })
            .map_err(|source| fault_of_file(path, source))?;
        files.documents.push(document);
    }
    Ok(files)
}

/// The stamps of files, in their order.
pub(super) fn stamps(paths: &[PathBuf]) -> Result<Vec<Stamp>, FetchFault> {
    let stamp = |path: &PathBuf| stamp(path).map_err(|source| fault_of_file(path, source));
    paths.iter().map(stamp).collect()
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    Ok(Stamp {
        bytes: metadata.len(),
        modified_at: metadata.modified().ok(),
        #[cfg(unix)]
        identity: {
            use std::os::unix::fs::MetadataExt as _;
            [
                metadata.dev().into(),
                metadata.ino().into(),
                metadata.ctime().into(),
                metadata.ctime_nsec().into(),
            ]
        },
    })
}

fn fault_of_file(path: &Path, source: std::io::Error) -> FetchFault {
    FetchFault::File {
        path: path.to_owned(),
        source,
    }
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
        let files = read_files(&[path]).unwrap();
        let [document] = files.documents.as_slice() else {
            panic!("one document for one file");
        };
        assert_eq!(document.len(), DOCUMENT_BYTES_MAX + 1);
        let fault = read_jwks(document).err().unwrap();
        assert!(matches!(fault, DocumentFault::TooLarge { .. }));
    }

    #[test]
    fn a_missing_file_is_named() {
        let fault = read_files(&["/nowhere/jwks.json".into()]).err().unwrap();
        assert!(
            fault
                .to_string()
                .starts_with("/nowhere/jwks.json could not be read"),
            "{fault}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_of_the_same_length_and_time_has_another_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        let write = |name: &str, text: &str| {
            let written = directory.path().join(name);
            std::fs::write(&written, text).unwrap();
            let file = std::fs::File::options().write(true).open(&written).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            written
        };
        let paths = [write("key.pem", "one")];
        let before = stamps(&paths).unwrap();
        assert_eq!(stamps(&paths).unwrap(), before);
        std::fs::rename(write("new", "two"), &path).unwrap();
        let after = stamps(&paths).unwrap();
        assert_eq!(after[0].modified_at, before[0].modified_at);
        assert_ne!(after, before);
    }
}
