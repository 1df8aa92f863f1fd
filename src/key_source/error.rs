//! Everything that can go wrong between a source and its document. It owns the words.

use std::path::PathBuf;
use std::time::Duration;

use crate::{net::tls::Trouble, plain};

/// Why there is no document, or why it cannot be kept fresh.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchFault),
    /// What it has is no key set.
    #[error(transparent)]
    Document(#[from] DocumentFault),
    /// Keys are kept fresh in the background, which takes a runtime.
    #[error("a keyring has to be opened inside a tokio runtime")]
    NoRuntime,
}

impl Error {
    /// The text for a log: what the operator configured, such as a URL, is shown, and what the
    /// source of the keys wrote is withheld where it could be private.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Document(_) => plain::words(self),
            Self::Fetch(_) | Self::NoRuntime => plain::configured(self),
        }
    }
}

/// Why a document is no key set, whatever its keys are for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentFault {
    /// Larger than any honest set.
    #[error("the key document is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// Not `{"keys": […]}`.
    #[error(r#"the document is no JSON key set like {{"keys":[…]}}: {detail}"#)]
    NotJwks {
        /// What the parser said.
        detail: String,
    },
}

/// Why a key source could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchFault {
    /// The text is no URL.
    #[error("{url:?} is no URL: {detail}")]
    NotUrl {
        /// As given.
        url: String,
        /// What the parser said.
        detail: String,
    },
    /// Keys over plain http can be swapped on the way.
    #[error("{url} is refused: keys are fetched over https only (http is allowed for loopback)")]
    Insecure {
        /// As given.
        url: String,
    },
    /// A name or password in the URL would end up in logs. The URL is not repeated here.
    #[error("the key URL has a user name or password in it, which is refused: key sets are public")]
    Credentials,
    /// A redirect could lead the request anywhere.
    #[error(
        "{url} answered with a redirect ({status}), which is not followed: configure its target"
    )]
    Redirect {
        /// What was asked.
        url: String,
        /// The status it gave.
        status: u16,
    },
    /// Anything but 200.
    #[error("{url} answered with status {status}")]
    Status {
        /// What was asked.
        url: String,
        /// The status it gave.
        status: u16,
    },
    /// No whole answer in time.
    #[error("{url} gave no whole answer within {timeout:?}")]
    Timeout {
        /// What was asked.
        url: String,
        /// The limit.
        timeout: Duration,
    },
    /// No connection over TLS.
    #[error("{url} could not be fetched: {trouble}")]
    Tls {
        /// What was asked.
        url: String,
        /// Why.
        trouble: Trouble,
    },
    /// Name, connection or a broken answer.
    #[error("{url} could not be fetched: {detail}")]
    Transport {
        /// What was asked.
        url: String,
        /// The chain of causes.
        detail: String,
    },
    /// A key file.
    #[error("{} could not be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
