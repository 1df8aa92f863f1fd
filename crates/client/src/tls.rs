//! Owns the words for connections that failed because of TLS: what is wrong with the server's
//! certificate, or that only one side speaks TLS. Errors of rustls name it in its own terms, below
//! layers of other errors. Knows nothing of who connects, or why.

use std::{error::Error, fmt, io};

use tokio_rustls::rustls::{self, CertificateError, InvalidMessage};

/// Makes a certificate that signs itself and that every client takes: `-x509` alone makes one of an
/// issuer, which is none of a server.
pub const SELF_SIGNED: &str = "openssl req -x509 -newkey rsa:2048 -noenc -days 365 -subj /CN=NAME \
                               -addext basicConstraints=critical,CA:FALSE \
                               -addext subjectAltName=DNS:NAME -keyout tls.key -out tls.crt";

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The server's certificate leads to no issuer that this side trusts.
    UnknownIssuer,
    /// The server shows the certificate of an issuer as its own.
    IssuerAsServer,
    /// The server's certificate is for other names.
    OtherName(String),
    /// The server's certificate is not valid at this time.
    Time(String),
    /// Something else about the server's certificate.
    Certificate(String),
    /// The server answers, and not in TLS.
    PlainText,
    /// The server answers in TLS a client that does not speak it.
    Tls,
    /// The server answers a request of HTTP/1.1 with something else.
    NotHttp,
}

impl Trouble {
    /// What to do about it at the server or in the URL, where that is all there is to do.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::IssuerAsServer => Some(format!(
                "make one for a server, with the name that clients call it by: {SELF_SIGNED}"
            )),
            Self::PlainText => Some("write http:// instead of https://".to_owned()),
            Self::Tls => Some("write https:// instead of http://".to_owned()),
            Self::NotHttp => {
                Some("if that port speaks TLS, write https:// instead of http://".to_owned())
            }
            Self::UnknownIssuer | Self::OtherName(_) | Self::Time(_) | Self::Certificate(_) => None,
        }
    }

    /// The same with the advice, as one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self.advice() {
            Some(advice) => format!("{self}; {advice}"),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownIssuer => formatter.write_str(
                "the server's certificate is of an issuer that is not trusted here (UnknownIssuer)",
            ),
            Self::IssuerAsServer => formatter.write_str(
                "the server shows a certificate that is for an issuer and not for a server \
                 (CaUsedAsEndEntity)",
            ),
            Self::OtherName(detail) => write!(
                formatter,
                "the server's certificate is not for the name that it was called by: {detail}"
            ),
            Self::Time(detail) | Self::Certificate(detail) => {
                write!(formatter, "the server's certificate is refused: {detail}")
            }
            Self::PlainText => formatter.write_str("the server does not speak TLS"),
            Self::Tls => formatter.write_str("the server speaks TLS"),
            Self::NotHttp => formatter.write_str("the server's answer is not HTTP"),
        }
    }
}

/// What TLS has to do with an error, if it has: looks through all its causes.
#[must_use]
pub fn trouble(error: &(dyn Error + 'static)) -> Option<Trouble> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return of_rustls(error);
        }
        if error.downcast_ref().is_some_and(hyper::Error::is_parse) {
            return Some(Trouble::NotHttp);
        }
        // An error of the system has another inside, which is not among its causes.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if let Some(trouble) = inner.and_then(|inner| trouble(inner)) {
            return Some(trouble);
        }
        cause = error.source();
    }
    None
}

/// Whether these are the first bytes of an answer in TLS: an alert or a handshake, of any version
/// since SSL 3 (RFC 8446 section 5.1).
#[must_use]
pub fn is_tls(beginning: &[u8]) -> bool {
    matches!(beginning, [0x15 | 0x16, 0x03, ..])
}

fn of_rustls(error: &rustls::Error) -> Option<Trouble> {
    match error {
        rustls::Error::InvalidCertificate(fault) => Some(of_certificate(fault)),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some(Trouble::PlainText)
        }
        _ => None,
    }
}

fn of_certificate(fault: &CertificateError) -> Trouble {
    match fault {
        CertificateError::UnknownIssuer => Trouble::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Trouble::OtherName(fault.to_string())
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Trouble::Time(fault.to_string()),
        // An error of the verifier's own type, which has no other way out than its text.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            Trouble::IssuerAsServer
        }
        // An issuer with the same name is trusted, and has another key.
        CertificateError::BadSignature => Trouble::Certificate(
            "an issuer of that name is trusted here, but it did not sign it (BadSignature)".into(),
        ),
        other => Trouble::Certificate(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the outermost")]
    struct Outermost(#[source] io::Error);

    fn of(error: rustls::Error) -> Option<Trouble> {
        trouble(&Outermost(io::Error::other(error)))
    }

    #[test]
    fn the_cause_is_found_below_other_errors() {
        let unknown = CertificateError::UnknownIssuer;
        assert_eq!(of(unknown.clone().into()), Some(Trouble::UnknownIssuer));
        let twice = io::Error::other(Outermost(io::Error::other(rustls::Error::from(unknown))));
        assert_eq!(trouble(&twice), Some(Trouble::UnknownIssuer));
        assert_eq!(
            trouble(&Outermost(io::ErrorKind::ConnectionReset.into())),
            None
        );
        assert_eq!(of(rustls::Error::NoApplicationProtocol), None);
    }

    #[test]
    fn each_cause_has_its_words_and_its_advice() {
        let plain = rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
        let said = of(plain).unwrap().sentence();
        assert_eq!(
            said,
            "the server does not speak TLS; write http:// instead of https://"
        );
        let expired = of(CertificateError::Expired.into()).unwrap();
        assert!(matches!(&expired, Trouble::Time(_)) && expired.advice().is_none());
        let name = of(CertificateError::NotValidForName.into()).unwrap();
        assert!(matches!(name, Trouble::OtherName(_)));
        let said = Trouble::IssuerAsServer.sentence();
        assert!(
            said.contains("CA:FALSE") && said.contains("subjectAltName"),
            "{said}"
        );
    }

    #[test]
    fn an_answer_in_tls_is_known_by_its_first_bytes() {
        // The alert that a server of TLS answers to the preface of HTTP/2.
        assert!(is_tls(&[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x32]));
        assert!(is_tls(&[0x16, 0x03]));
        // Settings, as HTTP/2 begins, and HTTP/1.1.
        assert!(!is_tls(&[0, 0, 0x12, 0x04, 0]));
        assert!(!is_tls(b"HTTP/1.1 400"));
        assert!(!is_tls(&[0x15]) && !is_tls(&[]));
    }
}
