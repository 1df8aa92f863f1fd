//! Everything that can go wrong between a header and a verified body, one variant a cause.
//!
//! It owns the words; statuses and exit codes are chosen by whoever translates them.

use crate::{
    key_source::{self, DocumentFault, FetchFault},
    plain,
};

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
    /// The background refresh of a keyring needs a tokio runtime.
    #[error("{}", key_source::Error::NoRuntime)]
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
            // The operator's own files, and no text of theirs.
            Self::KeySet(KeySetFault::NotPem { .. } | KeySetFault::PemBlock { .. }) => {
                plain::configured(self)
            }
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

impl From<key_source::Error> for Error {
    fn from(error: key_source::Error) -> Self {
        match error {
            key_source::Error::Fetch(fault) => Self::Fetch(fault),
            key_source::Error::Document(fault) => Self::KeySet(fault.into()),
            key_source::Error::NoRuntime => Self::NoRuntime,
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
    /// Shorter than 2048 bits: a well-funded attacker can forge it, and the library refuses it too.
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
    /// Too large, or no JWKS.
    #[error(transparent)]
    Document(#[from] DocumentFault),
    /// A PEM file without a block.
    #[error("{file} has no PEM block (-----BEGIN PUBLIC KEY-----)")]
    NotPem {
        /// The file.
        file: String,
    },
    /// A block of a PEM file is no key that can be used. The operator put it there, and notices otherwise
    /// only when Prelude signs with it.
    #[error("{block} {reason}; a PEM file has public RSA keys and nothing else")]
    PemBlock {
        /// Which one: its place in its file, counted from 1.
        block: String,
        /// Why, as a verb phrase.
        reason: String,
    },
    /// A set without one key that we may use.
    #[error("the set has no usable RSA key{detail}")]
    NoUsableKey {
        /// The reasons, ready to follow the sentence; empty when the set is.
        detail: String,
    },
}
