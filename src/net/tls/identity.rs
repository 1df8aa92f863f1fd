//! Owns what of a client's certificate counts: which name, and how long. That the certificate is
//! genuine was checked before; what the name may do is decided elsewhere.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use jiff::Timestamp;
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// Longer names than any URI that is used for this (SPIFFE ids are at most 2 KiB, and in practice
/// far below) are no names.
const NAME_BYTES_MAX: usize = 1024;

/// What a client's certificate says, whose issuer was found to be trusted and whose time had come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Who the client is; `None` where it is nobody in particular.
    pub identity: Option<Identity>,
    /// When the certificate ends. A connection may go on for longer; what was let in by it may not.
    pub expires_at: Timestamp,
}

impl ClientCertificate {
    /// Reads a certificate. One whose end cannot be read is taken to have ended.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self {
            identity: Identity::of(certificate),
            expires_at: expires_at(certificate).unwrap_or(Timestamp::MIN),
        }
    }
}

/// The end of a certificate's validity (RFC 5280 section 4.1.2.5). The year 9999, which stands for
/// no end, is as late as time goes.
fn expires_at(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let validity = certificate.tbs_certificate().validity();
    let seconds = validity.not_after.to_unix_duration().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Some(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

/// Who a client's certificate says it is: a name that its issuer vouches for, with its kind. Names of
/// different kinds are different, also where their text is the same: issuers check what they put
/// into one kind of name by other rules than for the next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(Arc<str>);

/// The kinds of names. They are written before a name, with a colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// A URI among the subject alternative names, such as a SPIFFE id.
    Uri,
    /// A DNS name there.
    Dns,
    /// An e-mail address there.
    Email,
    /// An IP address there.
    Ip,
    /// The common name of the subject, of a certificate without any of the names above.
    CommonName,
}

impl NameKind {
    /// All of them, those that count first before the others.
    pub const ALL: [Self; 5] = [
        Self::Uri,
        Self::Dns,
        Self::Email,
        Self::Ip,
        Self::CommonName,
    ];

    /// How it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uri => "uri",
            Self::Dns => "dns",
            Self::Email => "email",
            Self::Ip => "ip",
            Self::CommonName => "cn",
        }
    }
}

impl Identity {
    /// A name of a kind. The case of a DNS name does not matter (RFC 4343).
    #[must_use]
    pub fn new(kind: NameKind, name: &str) -> Self {
        let prefix = kind.as_str();
        let text = match kind {
            NameKind::Dns => format!("{prefix}:{}", name.to_ascii_lowercase()),
            NameKind::Uri | NameKind::Email | NameKind::Ip | NameKind::CommonName => {
                format!("{prefix}:{name}")
            }
        };
        Self(text.into())
    }

    /// The kind, a colon, and the name as it was in the certificate: one line of printable text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a common name.
    #[must_use]
    pub fn is_common_name(&self) -> bool {
        let kind = self.0.split(':').next();
        kind == Some(NameKind::CommonName.as_str())
    }

    /// The name in a certificate: of its subject alternative names the first URI, else the first
    /// DNS name, else the first e-mail address, else the first IP address; the common name only
    /// where there is none of these (RFC 5280 section 4.2.1.6).
    ///
    /// `None` where there is no name, or it is not printable, or the names cannot be read: such a
    /// client is nobody in particular.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Certificate::from_der(certificate).ok()?;
        let subject = certificate.tbs_certificate();
        // Names that cannot be read do not make way for others that nobody meant to be used.
        let names = subject.get_extension::<SubjectAltName>().ok()?;
        let alternative = names.and_then(|(_, SubjectAltName(names))| alternative(&names));
        let (kind, name) = match alternative {
            Some(named) => named,
            None => {
                let name = subject.subject().common_name().ok()??.value().into_owned();
                (NameKind::CommonName, name)
            }
        };
        let is_printable = !name.is_empty() && !name.chars().any(char::is_control);
        (is_printable && name.len() <= NAME_BYTES_MAX).then(|| Self::new(kind, &name))
    }
}

/// The name that counts among several, with its kind.
fn alternative(names: &[GeneralName]) -> Option<(NameKind, String)> {
    let named = names.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some((NameKind::Uri, uri.to_string())),
        GeneralName::DnsName(name) => Some((NameKind::Dns, name.to_string())),
        GeneralName::Rfc822Name(address) => Some((NameKind::Email, address.to_string())),
        GeneralName::IpAddress(bytes) => Some((NameKind::Ip, address(bytes.as_bytes())?)),
        GeneralName::OtherName(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::RegisteredId(_) => None,
    });
    // The first of equals.
    named.min_by_key(|(kind, _)| NameKind::ALL.iter().position(|one| one == kind))
}

/// An IP address in a certificate as text.
pub(super) fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).to_string());
    let v6 = <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).to_string());
    v4.or(v6).ok()
}
