//! Everything that can go wrong between a header and a verified body, one variant a cause.
//!
//! It owns the words; statuses and exit codes are chosen by whoever translates them.

use std::path::PathBuf;
use std::time::Duration;

use crate::{net::tls::Trouble, plain};

/// Why a body was not verified, or why a keyring could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The header is not what the sender documents. Sending the same again cannot help.
    #[error(transparent)]
    Header(#[from] HeaderFault),
    /// Nothing is known yet that could verify anything: the sender should try again later.
    #[error("no usable key of app {app_id} is known yet; the key source is tried again by itself")]
    NoKeys {
        /// The app whose keys are missing.
        app_id: String,
    },
    /// No known key made this signature over these bytes.
    #[error("no known key made this signature over this body")]
    Mismatch,
    /// A key breaks the policy for keys.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// A document is no set of keys.
    #[error(transparent)]
    KeySet(#[from] KeySetFault),
    /// A key source could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchFault),
    /// A keyring keeps itself fresh in the background, which takes a runtime.
    #[error("a keyring has to be opened inside a tokio runtime")]
    NoRuntime,
}

impl Error {
    /// A short, stable name for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Header(HeaderFault::Hmac) => "header_hmac",
            Self::Header(_) => "header_malformed",
            Self::NoKeys { .. } => "no_keys",
            Self::Mismatch => "mismatch",
            Self::Key(_) => "key_refused",
            Self::KeySet(_) => "key_set_malformed",
            Self::Fetch(_) => "key_source_unreadable",
            Self::NoRuntime => "no_runtime",
        }
    }

    /// The text for a log: what the operator configured, such as a URL, is shown, and what the
    /// source of the keys wrote is withheld where it could be private.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::KeySet(_) => plain::words(self),
            Self::Fetch(_)
            | Self::Header(_)
            | Self::NoKeys { .. }
            | Self::Mismatch
            | Self::Key(_)
            | Self::NoRuntime => plain::configured(self),
        }
    }

    /// Whether the same request may succeed later with nothing changed but our keys.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoKeys { .. } | Self::Fetch(_) => true,
            Self::Header(_) | Self::Mismatch | Self::Key(_) | Self::KeySet(_) | Self::NoRuntime => {
                false
            }
        }
    }
}

/// What is wrong with the text of an `X-Webhook-Signature` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// An earlier scheme of the sender's, with a shared secret that this product never had.
    #[error(
        "the signature is an HMAC (sha256=), which is not accepted: expected rsassa-pss-sha256=<base64url>"
    )]
    Hmac,
    /// No scheme, or one that nobody documents.
    #[error("the signature does not begin with rsassa-pss-sha256=")]
    Scheme,
    /// `+` or `/`: the other base64.
    #[error("the signature is standard base64 (it has + or /): expected base64url, with - and _")]
    StandardAlphabet,
    /// A byte of no base64 alphabet, spaces included.
    #[error("the signature has a character outside of A-Z a-z 0-9 - _")]
    Alphabet,
    /// The right characters that make no whole number of bytes, or wrong padding.
    #[error("the signature is cut short or wrongly padded: it is not whole base64url")]
    Length,
    /// The prefix and nothing else.
    #[error("the signature is empty after rsassa-pss-sha256=")]
    Empty,
    /// More than the largest supported key could make.
    #[error("the signature is longer than that of the largest supported key (8192 bits)")]
    TooLong,
}

/// Why a key is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Shorter than 2048 bits can be forged with money, and the fast path refuses it too.
    #[error("the modulus has {bits} bits, fewer than 2048")]
    ModulusTooSmall {
        /// Its length.
        bits: usize,
    },
    /// Longer than 8192 bits makes every forged delivery expensive for us.
    #[error("the modulus has {bits} bits, more than 8192")]
    ModulusTooLarge {
        /// Its length.
        bits: usize,
    },
    /// Even, or smaller than the exponent: no RSA modulus.
    #[error("the modulus is even, so this is no RSA key")]
    ModulusEven,
    /// Outside of odd, 65537 ≤ e < 2^33.
    #[error("the public exponent is not odd and between 65537 and 2^33")]
    Exponent,
    /// The numbers pass the policy and yet the library does not take them.
    #[error("the numbers make no usable RSA key")]
    Rejected,
}

/// Why a document is no set of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetFault {
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
    /// No PEM block in it.
    #[error("the file has no PEM block (-----BEGIN PUBLIC KEY-----)")]
    NotPem,
    /// A set without one key that we may use.
    #[error("the set has no usable RSA key{detail}")]
    NoUsableKey {
        /// The reasons, ready to follow the sentence; empty when the set is.
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
