//! Owns one credential as the file has it, and the faults that a written one can have. Knows no
//! files: `document` reads them, `edit` changes them.

use std::{fmt, iter};

use jiff::Timestamp;

use super::{certificate::CertificateName, grant::Quotas, scope::Scope, token::Digest};
use crate::{filter, net::tls::NameKind};

/// The longest name, in bytes: it is in every log line about a stream.
pub const NAME_BYTES_MAX: usize = 128;
/// The longest identity of a certificate, in bytes: SPIFFE ids have at most 2,048.
const IDENTITY_BYTES_MAX: usize = 2048;
/// The most streams that a quota can be: as many as a bridge can have in all, and more.
pub const STREAMS_MAX: usize = 10_000_000;

/// One credential: who a caller is, and what it may do. A caller shows its proof, or for a while
/// after a rotation the token before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, in the file and in logs.
    pub name: String,
    /// What its caller shows.
    pub proof: Proof,
    /// The token that a rotation replaced, as long as it is still accepted.
    pub previous: Option<PreviousToken>,
    /// What it allows.
    pub scope: Scope,
    /// Streams at once; `None` for the bridge's default.
    pub streams_max: Option<usize>,
    /// Connections at once on which it is shown; `None` for the bridge's default.
    pub connections_max: Option<usize>,
    /// The most bytes of its responses that may wait for their sockets; `None` for the bridge's default.
    pub unsent_bytes_max: Option<usize>,
    /// When the proof was made; only for people.
    pub created_at: Option<Timestamp>,
    /// When the proof expires; `None` for never.
    pub expires_at: Option<Timestamp>,
}

/// What a caller shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A bearer token with this hash.
    Token(Digest),
    /// A client certificate with this name.
    Certificate(CertificateName),
}

/// A token that a newer one of the same credential replaces. It always expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreviousToken {
    /// Its hash.
    pub digest: Digest,
    /// When it was made; only for people.
    pub created_at: Option<Timestamp>,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// One thing that is wrong with a credentials file. It repeats nothing that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from one; `None` when the fault is the whole file's.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl Entry {
    /// Each proof that a caller may show, with the time when it expires: the current one first.
    pub(super) fn proofs(&self) -> impl Iterator<Item = (Proof, Option<Timestamp>)> {
        let previous = self
            .previous
            .map(|token| (Proof::Token(token.digest), Some(token.expires_at)));
        iter::once((self.proof.clone(), self.expires_at)).chain(previous)
    }

    /// The quotas of the credential itself.
    pub(super) fn quotas(&self) -> Quotas {
        Quotas {
            streams_max: self.streams_max,
            connections_max: self.connections_max,
            unsent_bytes_max: self.unsent_bytes_max,
        }
    }
}

/// What is wrong with a name, as a clause that follows it; `None` for a good one.
#[must_use]
pub fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > NAME_BYTES_MAX {
        Some("is longer than 128 bytes")
    } else if name.chars().any(char::is_control) || name.trim() != name {
        Some("has a control character in it, or a space at one of its ends")
    } else {
        None
    }
}

/// What is wrong with an app of a scope; `None` for a good one. Apps are named exactly, and no id
/// looks like a pattern: a credential for one would get nothing.
#[must_use]
pub fn app_problem(app: &str) -> Option<&'static str> {
    if app.contains('*') {
        Some("is a pattern, and apps are named exactly")
    } else {
        filter::text_problem(app)
    }
}

/// What is wrong with the identity of a certificate; `None` for a good one.
#[must_use]
pub fn identity_problem(identity: &str) -> Option<&'static str> {
    let is_kind_alone = NameKind::ALL
        .into_iter()
        .any(|kind| identity.strip_suffix(':') == Some(kind.as_str()));
    if identity.is_empty() || is_kind_alone {
        Some("is empty")
    } else if identity.len() > IDENTITY_BYTES_MAX {
        Some("is longer than 2048 bytes")
    } else if identity.chars().any(char::is_control) || identity.trim() != identity {
        Some("has a control character in it, or a space at one of its ends")
    } else {
        None
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(formatter, "line {line}: ")?;
        }
        write!(formatter, "{} ({})", self.message, self.help)
    }
}
