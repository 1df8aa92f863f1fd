//! Owns one credential as the file has it, and the faults that a written one can have. Knows no
//! files: `document` reads and writes them.

use std::fmt;

use jiff::Timestamp;

use super::{certificate::CertificateName, scope::Scope, token::Digest};
use crate::{filter, net::tls::NameKind};

/// The longest name, in bytes: it is in every log line about a stream.
pub const NAME_BYTES_MAX: usize = 128;
/// The longest identity of a certificate, in bytes: SPIFFE ids have at most 2,048.
const IDENTITY_BYTES_MAX: usize = 2048;
/// The most streams that a quota can be: as many as a bridge can have in all, and more.
pub const STREAMS_MAX: usize = 10_000_000;

/// One credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is called, in the file and in logs.
    pub name: String,
    /// How it is recognised.
    pub proof: Proof,
    /// What it allows.
    pub scope: Scope,
    /// Streams at once; `None` for what is usual.
    pub streams_max: Option<usize>,
    /// Connections at once on which it is shown; `None` for what is usual.
    pub connections_max: Option<usize>,
    /// How much memory its responses may take that wait for their sockets, in bytes; `None` for what
    /// is usual.
    pub unsent_bytes_max: Option<usize>,
    /// When it was made; only for people.
    pub created_at: Option<Timestamp>,
    /// When it ends; `None` for never.
    pub expires_at: Option<Timestamp>,
}

/// How a credential is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A bearer token with this hash.
    Token(Digest),
    /// A client certificate with this name.
    Certificate(CertificateName),
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
    /// Whether a stream under the one is one under the other: all but the time of making is the
    /// same.
    pub(super) fn means_the_same(&self, other: &Self) -> bool {
        let Self {
            name,
            proof,
            scope,
            streams_max,
            connections_max,
            unsent_bytes_max,
            created_at: _,
            expires_at,
        } = self;
        *name == other.name
            && *proof == other.proof
            && *scope == other.scope
            && *streams_max == other.streams_max
            && *connections_max == other.connections_max
            && *unsent_bytes_max == other.unsent_bytes_max
            && *expires_at == other.expires_at
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
