//! The settings of TLS: which ports do it, and with which files. Says what does not go together;
//! what is in the files is judged by whoever opens them.

use std::{path::PathBuf, time::Duration};

use super::{limits::COUNTS_U32, macros::settings, resolver::Resolver};
use crate::net::{
    handshakes,
    tls::{self, ClientCertificates},
};

/// Which ports do TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// From a connection to the end of its handshake. Default 5 s: it is two round trips.
    pub handshake_timeout: Duration,
    /// How many handshakes each port takes. See the settings.
    pub handshakes: handshakes::Limits,
    /// The webhook port's. Default none: plain text, for a proxy that does TLS.
    pub webhook: Option<WebhookTls>,
    /// The gRPC port's. Default none: plain text, and on loopback.
    pub grpc: Option<GrpcTls>,
}

/// TLS of the webhook port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookTls {
    /// Its certificate and those of its intermediate issuers.
    pub certificate_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// TLS of the gRPC port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcTls {
    /// Its certificate and those of its intermediate issuers.
    pub certificate_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
    /// The issuers of subscribers' certificates. Default none: nobody is asked for one.
    pub client_ca_file: Option<PathBuf>,
    /// Whether subscribers must show one. Default required: whoever names an issuer means it.
    pub client_certificates: ClientCertificates,
}

impl Tls {
    /// What the webhook port's listener needs.
    #[must_use]
    pub fn of_webhook(&self) -> Option<tls::Options> {
        let port = self.webhook.as_ref()?;
        Some(tls::Options {
            certificate: port.certificate_file.clone(),
            key: port.key_file.clone(),
            client_ca: None,
            client_certificates: ClientCertificates::default(),
            protocols: tls::HTTP1,
            handshake_timeout: self.handshake_timeout,
            handshakes: self.handshakes,
        })
    }

    /// What the gRPC port's listener needs.
    #[must_use]
    pub fn of_grpc(&self) -> Option<tls::Options> {
        let port = self.grpc.as_ref()?;
        Some(tls::Options {
            certificate: port.certificate_file.clone(),
            key: port.key_file.clone(),
            client_ca: port.client_ca_file.clone(),
            client_certificates: port.client_certificates,
            protocols: tls::HTTP2_AND_HTTP1,
            handshake_timeout: self.handshake_timeout,
            handshakes: self.handshakes,
        })
    }
}

settings! {
    /// TLS, on each port that has a certificate; without one a port speaks plain text. All files are PEM.
    /// They are read again when they change, and new connections get the new certificate; what cannot be
    /// used is reported, and the old one stays.
    struct Handshake in "tls" {
        /// How long a client may take from its connection to the end of the handshake: two round trips.
        handshake_timeout: Duration = Duration::from_secs(5),
            in Duration::from_millis(100)..=Duration::from_secs(60);

        /// Handshakes that a port begins at once, after a time without any; one address has a quarter of
        /// them. Each costs the port a signature.
        handshakes_at_once: u32 = 200, in COUNTS_U32;

        /// Handshakes that a port begins in a second after that. Others wait for their turn, half of
        /// `handshake_timeout` at most, and are refused if there is none. With an RSA key of 2048 bits
        /// (half a millisecond each) the default takes half of a core; an ECDSA key is many times cheaper.
        /// Clients that have shown a credential, or sent a genuine delivery, before have a rate of their
        /// own, which is as high.
        handshakes_per_second: u32 = 1_000, in COUNTS_U32;

        /// Of these, those of one address (of an IPv6 /64). Default: a quarter of `handshakes_per_second`. It
        /// does not hold for `trusted_proxies` and `grpc_proxies`.
        handshakes_per_address_per_second: u32 = (handshakes_per_second / 4).max(1), in COUNTS_U32;
    }
}

settings! {
    /// TLS of the webhook port.
    struct WebhookFiles in "tls.webhook" {
        /// The certificate, followed by those of its intermediate issuers.
        certificate_file: Option<PathBuf> = None;

        /// Its private key.
        key_file: Option<PathBuf> = None;
    }
}

settings! {
    /// TLS of the gRPC port.
    struct GrpcFiles in "tls.grpc" {
        /// The certificate, followed by those of its intermediate issuers.
        certificate_file: Option<PathBuf> = None;

        /// Its private key.
        key_file: Option<PathBuf> = None;

        /// The issuers of the certificates that subscribers show (mTLS). Who a subscriber is, is then the
        /// name in its certificate: of its alternative names the first URI, else the first DNS name, e-mail
        /// or IP address; the common name where there is none. A credential has it with its kind, such as
        /// "uri:spiffe://example.com/billing" or "cn:billing". Nothing here means that nobody is asked.
        client_ca_file: Option<PathBuf> = None;

        /// Whether a subscriber has to show a certificate, where `client_ca_file` is set: "required", which
        /// is also what nothing here means, or "optional" where some have other credentials.
        client_certificates: Option<ClientCertificates> = None;
    }
}

pub(super) fn take(resolver: &mut Resolver<'_>) -> Tls {
    let handshake = Handshake::take(resolver);
    Tls {
        handshake_timeout: handshake.handshake_timeout,
        handshakes: handshakes::Limits {
            at_once: handshake.handshakes_at_once,
            per_second: handshake.handshakes_per_second,
            per_address_per_second: handshake.handshakes_per_address_per_second,
        },
        webhook: webhook(resolver),
        grpc: grpc(resolver),
    }
}

fn webhook(resolver: &mut Resolver<'_>) -> Option<WebhookTls> {
    let files = WebhookFiles::take(resolver);
    let certificate = ("tls.webhook.certificate_file", files.certificate_file);
    let key = ("tls.webhook.key_file", files.key_file);
    let (certificate_file, key_file) = pair(resolver, certificate, key)?;
    Some(WebhookTls {
        certificate_file,
        key_file,
    })
}

fn grpc(resolver: &mut Resolver<'_>) -> Option<GrpcTls> {
    const CERTIFICATE: &str = "tls.grpc.certificate_file";
    const KEY: &str = "tls.grpc.key_file";
    const CLIENT_CA: &str = "tls.grpc.client_ca_file";
    const CLIENT_CERTIFICATES: &str = "tls.grpc.client_certificates";
    let files = GrpcFiles::take(resolver);
    let has_neither = files.certificate_file.is_none() && files.key_file.is_none();
    if files.client_ca_file.is_none() && files.client_certificates.is_some() {
        let reason = format!("there is no `{CLIENT_CA}` to verify them by");
        refuse(resolver, CLIENT_CERTIFICATES, &reason, CLIENT_CA);
    }
    if files.client_ca_file.is_some() && has_neither {
        let reason = format!("certificates are shown over TLS, and there is no `{CERTIFICATE}`");
        refuse(resolver, CLIENT_CA, &reason, CERTIFICATE);
    }
    let certificate = (CERTIFICATE, files.certificate_file);
    let (certificate_file, key_file) = pair(resolver, certificate, (KEY, files.key_file))?;
    Some(GrpcTls {
        certificate_file,
        key_file,
        client_ca_file: files.client_ca_file,
        client_certificates: files.client_certificates.unwrap_or_default(),
    })
}

/// A certificate and its key: both or neither.
pub(super) fn pair(
    resolver: &mut Resolver<'_>,
    (certificate, certificate_file): (&str, Option<PathBuf>),
    (key, key_file): (&str, Option<PathBuf>),
) -> Option<(PathBuf, PathBuf)> {
    let (present, missing) = match (certificate_file, key_file) {
        (Some(certificate_file), Some(key_file)) => return Some((certificate_file, key_file)),
        (None, None) => return None,
        (Some(_), None) => (certificate, key),
        (None, Some(_)) => (key, certificate),
    };
    let reason = format!("there is no `{missing}` with it");
    refuse(resolver, present, &reason, missing);
    None
}

fn refuse(resolver: &mut Resolver<'_>, key: &str, reason: &str, missing: &str) {
    let origin = resolver.origin_of(key);
    let help = format!("set `{missing}` too, or neither");
    resolver.refuse(origin, key, reason, &help);
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ffi::OsString};

    use super::*;
    use crate::config::{Error, Sources, resolve, variable_of};

    fn resolved(settings: &[(&str, &str)]) -> Result<Tls, Error> {
        let environment: BTreeMap<OsString, OsString> = settings
            .iter()
            .map(|(key, value)| (variable_of(key).into(), OsString::from(value)))
            .collect();
        let sources = Sources {
            environment,
            ..Sources::default()
        };
        resolve(&sources).map(|resolved| resolved.config.tls)
    }

    /// The one fault of these settings.
    fn fault(settings: &[(&str, &str)]) -> String {
        let error = resolved(settings).unwrap_err();
        assert_eq!(error.faults.len(), 1, "{error}");
        error.to_string()
    }

    #[test]
    fn a_port_speaks_plain_text_until_it_has_a_certificate() {
        let tls = resolved(&[]).unwrap();
        assert_eq!((tls.of_webhook(), tls.of_grpc()), (None, None));
        let tls = resolved(&[
            ("tls.grpc.certificate_file", "/c.pem"),
            ("tls.grpc.key_file", "/k.pem"),
            ("tls.grpc.client_ca_file", "/ca.pem"),
        ])
        .unwrap();
        assert_eq!(tls.of_webhook(), None);
        let options = tls.of_grpc().unwrap();
        assert_eq!(options.certificate, PathBuf::from("/c.pem"));
        assert_eq!(options.client_ca, Some(PathBuf::from("/ca.pem")));
        assert_eq!(options.client_certificates, ClientCertificates::Required);
        assert_eq!(options.handshake_timeout, Duration::from_secs(5));
    }

    #[test]
    fn an_address_has_a_quarter_of_the_handshakes_unless_it_is_set() {
        let limits = |settings: &[(&str, &str)]| resolved(settings).unwrap().handshakes;
        assert_eq!(limits(&[]).per_address_per_second, 250);
        let few = [("tls.handshakes_per_second", "3")];
        assert_eq!(limits(&few).per_address_per_second, 1);
        let set = [("tls.handshakes_per_address_per_second", "7")];
        assert_eq!(limits(&set).per_address_per_second, 7);
        for setting in ["at_once", "per_second", "per_address_per_second"] {
            let setting = format!("tls.handshakes_{setting}");
            assert!(resolved(&[(&setting, "1")]).is_ok(), "{setting}");
            fault(&[(&setting, "0")]);
        }
    }

    #[test]
    fn half_of_a_pair_is_refused_with_the_name_of_the_other_half() {
        let said = fault(&[("tls.webhook.certificate_file", "/c.pem")]);
        assert!(said.contains("set `tls.webhook.key_file` too"), "{said}");
        let said = fault(&[("tls.grpc.key_file", "/k.pem")]);
        assert!(
            said.contains("set `tls.grpc.certificate_file` too"),
            "{said}"
        );
    }

    #[test]
    fn asking_for_certificates_takes_tls_and_an_issuer() {
        let said = fault(&[("tls.grpc.client_ca_file", "/ca.pem")]);
        assert!(
            said.contains("set `tls.grpc.certificate_file` too"),
            "{said}"
        );
        let said = fault(&[("tls.grpc.client_certificates", "optional")]);
        assert!(said.contains("set `tls.grpc.client_ca_file` too"), "{said}");
        let said = fault(&[
            ("tls.grpc.certificate_file", "/c.pem"),
            ("tls.grpc.key_file", "/k.pem"),
            ("tls.grpc.client_ca_file", "/ca.pem"),
            ("tls.grpc.client_certificates", "sometimes"),
        ]);
        assert!(
            said.contains("required") && said.contains("optional"),
            "{said}"
        );
    }
}
