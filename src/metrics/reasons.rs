//! Owns why connections are turned away and closed, as they are counted and logged.

/// Why a connection was turned away at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The listener holds as many as it may.
    Full,
    /// The client's address holds as many as one address may.
    AddressFull,
    /// The client's address is none of those that may connect.
    Source,
}

impl Refusal {
    /// The word that it is counted under.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Full => "listener_full",
            Self::AddressFull => "address_full",
            Self::Source => "source",
        }
    }
}

/// Why a connection that had proven nothing was closed for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// The listener held as many as it may.
    Full,
    /// The address held as many as one address may.
    AddressFull,
}

impl Eviction {
    /// The word that it is counted under.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Full => "evicted_listener_full",
            Self::AddressFull => "evicted_address_full",
        }
    }
}

/// Why a TLS handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The client took too long.
    Timeout,
    /// The client gave up, mostly because it does not trust the certificate, or went away.
    Aborted,
    /// The client's certificate is missing, expired, or of another issuer.
    ClientCertificate,
    /// What the client sent is no TLS, such as HTTP.
    NotTls,
    /// Client and port have no version, cipher or protocol in common, or the client broke the
    /// rules.
    Protocol,
}

impl Handshake {
    /// The word that it is counted under.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Aborted => "aborted",
            Self::ClientCertificate => "client_certificate",
            Self::NotTls => "not_tls",
            Self::Protocol => "protocol",
        }
    }
}

/// Why a connection was closed that its client would have kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closure {
    /// The client did not begin, or did not go on, to ask anything in time.
    Silent,
    /// What it sent was not the protocol, or broke its rules.
    Protocol,
    /// It sent far more than it had reason to.
    Flood,
    /// It did not read what it was sent.
    Unread,
    /// It did not answer a ping.
    Unanswered,
    /// It showed no credential in time.
    NoCredential,
    /// It made no call for a long time.
    Idle,
}

impl Closure {
    /// The word that it is counted under.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Protocol => "protocol_error",
            Self::Flood => "flood",
            Self::Unread => "unread",
            Self::Unanswered => "ping_unanswered",
            Self::NoCredential => "no_credential",
            Self::Idle => "idle",
        }
    }
}
