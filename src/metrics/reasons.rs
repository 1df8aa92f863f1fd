//! Owns the reasons for which connections are refused and closed, as they are counted and logged.

/// Why a new connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionRefusal {
    /// The listener has reached its limit.
    Full,
    /// The client's address has reached its limit.
    AddressFull,
    /// The client's address is not one of those that may connect.
    Source,
}

impl ConnectionRefusal {
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

/// Why a connection that had shown no credential was closed for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// The listener had reached its limit.
    Full,
    /// The address had reached its limit.
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
    /// What the client sent is not TLS, but for example HTTP.
    NotTls,
    /// Client and port have no version, cipher or protocol in common, or the client broke the
    /// rules.
    Protocol,
    /// There were too many handshakes, of the client's address or in all.
    RateLimited,
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
            Self::RateLimited => "rate_limited",
        }
    }
}

/// Why the bridge closed a connection that its client had not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closure {
    /// The client did not begin or continue a request in time.
    Silent,
    /// What it sent was not the protocol, or broke its rules.
    Protocol,
    /// It exceeded a rate limit on frames or another limit on what it sends.
    Flood,
    /// It did not read what the bridge sent.
    Unread,
    /// It did not answer a ping.
    Unanswered,
    /// It showed no credential in time.
    NoCredential,
    /// It made no call for a long time.
    Idle,
    /// It was old enough for its client to go elsewhere.
    Age,
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
            Self::Age => "age",
        }
    }
}
