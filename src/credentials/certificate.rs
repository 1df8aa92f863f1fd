//! Owns how a credentials file names a client certificate: with the kind of the name, as in
//! `uri:spiffe://example.com/billing`, or without, and then the form of the name decides. Knows no certificates.

use std::{fmt, net::IpAddr};

use crate::net::tls::{Identity, NameKind};

/// The name of a client certificate in the file.
#[derive(Clone, Debug)]
pub struct CertificateName {
    written: String,
    identity: Identity,
    /// The name with its kind, if it was written without and the kind is not obvious.
    advice: Option<String>,
}

impl CertificateName {
    /// Parses a name. Without a kind it is a URI if it begins with a scheme, an e-mail address if it
    /// has an `@`, an IP address if it is one, and a DNS name otherwise. It is never a common name:
    /// issuers check those least, so an entry has to say `cn:`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let typed = NameKind::ALL.into_iter().find_map(|kind| {
            let name = text.strip_prefix(kind.as_str())?.strip_prefix(':')?;
            Some((kind, name))
        });
        let (kind, name) = typed.unwrap_or_else(|| (kind_of(text), text));
        let identity = match (kind, name.parse::<IpAddr>()) {
            (NameKind::Ip, Ok(address)) => Identity::new(kind, &address.to_string()),
            _ => Identity::new(kind, name),
        };
        // `spiffe://…` can be nothing but a URI.
        let is_plain = typed.is_some() || (kind == NameKind::Uri && text.contains("://"));
        let advice = (!is_plain).then(|| format!("{}:{name}", kind.as_str()));
        Self {
            written: text.to_owned(),
            identity,
            advice,
        }
    }

    /// The identity that it matches.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The name with its kind, if it was written without and the kind is not obvious.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// The same name, written with its kind where it has to be.
    #[must_use]
    pub fn explicit(self) -> Self {
        match self.advice {
            Some(text) => Self::parse(&text),
            None => self,
        }
    }
}

fn kind_of(text: &str) -> NameKind {
    if text.parse::<IpAddr>().is_ok() {
        NameKind::Ip
    } else if has_scheme(text) {
        NameKind::Uri
    } else if text.contains('@') {
        NameKind::Email
    } else {
        NameKind::Dns
    }
}

/// Whether a text begins as a URI does (RFC 3986 section 3.1).
fn has_scheme(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    })
}

/// Two ways to write one name are equal.
impl PartialEq for CertificateName {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for CertificateName {}

/// As it was written.
impl fmt::Display for CertificateName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_its_kind_is_of_that_kind_alone() {
        for text in [
            "uri:spiffe://example.com/billing",
            "uri:billing",
            "dns:billing.example.com",
            "email:billing@example.com",
            "ip:2001:db8::1",
            "cn:billing",
            "cn:spiffe://example.com/billing",
            "cn:dns:billing",
        ] {
            let name = CertificateName::parse(text);
            assert_eq!(name.identity().as_str(), text);
            assert_eq!(name.to_string(), text);
            assert_eq!(name.advice(), None);
        }
    }

    #[test]
    fn a_name_without_a_kind_is_what_its_form_says_and_never_a_common_name() {
        for (text, identity) in [
            ("urn:uuid:1", "uri:urn:uuid:1"),
            ("billing.example.com", "dns:billing.example.com"),
            ("Billing.Example.com", "dns:billing.example.com"),
            ("billing", "dns:billing"),
            ("Billing service", "dns:billing service"),
            ("billing@example.com", "email:billing@example.com"),
            ("192.0.2.1", "ip:192.0.2.1"),
            ("2001:DB8:0::1", "ip:2001:db8::1"),
            (":x", "dns::x"),
        ] {
            let name = CertificateName::parse(text);
            assert_eq!(name.identity().as_str(), identity);
            assert_eq!(name.to_string(), text);
            assert!(name.advice().is_some(), "{text}");
            assert_eq!(name.clone().explicit(), name);
            assert_eq!(name.explicit().advice(), None);
        }
        let uri = CertificateName::parse("spiffe://example.com/billing");
        assert_eq!(uri.identity().as_str(), "uri:spiffe://example.com/billing");
        assert_eq!(uri.advice(), None, "it can be nothing else");
        assert_eq!(uri.explicit().to_string(), "spiffe://example.com/billing");
    }
}
