//! The settings of TLS: which ports do it, and with which files. Says what does not go together;
//! what is in the files is judged by whoever opens them.

use std::{path::PathBuf, time::Duration};

use super::{Origin, Resolver};
use crate::net::tls::{self, ClientCertificates};

/// Which ports do TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// From a connection to the end of its handshake. Default 5 s: it is two round trips.
    pub handshake_timeout: Duration,
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
        })
    }
}

pub(super) fn take(take: &mut Resolver<'_>) -> Tls {
    let bounds = Duration::from_millis(100)..=Duration::from_secs(60);
    Tls {
        handshake_timeout: take.take_in("tls.handshake_timeout", Duration::from_secs(5), bounds),
        webhook: pair(take, "tls.webhook.certificate_file", "tls.webhook.key_file").map(
            |(certificate_file, key_file)| WebhookTls {
                certificate_file,
                key_file,
            },
        ),
        grpc: grpc(take),
    }
}

fn grpc(take: &mut Resolver<'_>) -> Option<GrpcTls> {
    const CERTIFICATE: &str = "tls.grpc.certificate_file";
    const KEY: &str = "tls.grpc.key_file";
    const CLIENT_CA: &str = "tls.grpc.client_ca_file";
    const CLIENT_CERTIFICATES: &str = "tls.grpc.client_certificates";
    let pair = pair(take, CERTIFICATE, KEY);
    let client_ca_file = take.take_optional_path(CLIENT_CA);
    let client_certificates = take.take(CLIENT_CERTIFICATES, None::<ClientCertificates>);
    if client_ca_file.is_none() && client_certificates.is_some() {
        let reason = format!("there is no `{CLIENT_CA}` to judge them by");
        refuse(take, CLIENT_CERTIFICATES, &reason, CLIENT_CA);
    }
    let Some((certificate_file, key_file)) = pair else {
        // Half of the pair was refused already.
        let is_alone = take.origin_of(CERTIFICATE) == Origin::Default
            && take.origin_of(KEY) == Origin::Default;
        if client_ca_file.is_some() && is_alone {
            let reason =
                format!("certificates are shown over TLS, and there is no `{CERTIFICATE}`");
            refuse(take, CLIENT_CA, &reason, CERTIFICATE);
        }
        return None;
    };
    Some(GrpcTls {
        certificate_file,
        key_file,
        client_ca_file,
        client_certificates: client_certificates.unwrap_or_default(),
    })
}

/// A certificate and its key: both or neither.
fn pair(
    take: &mut Resolver<'_>,
    certificate: &'static str,
    key: &'static str,
) -> Option<(PathBuf, PathBuf)> {
    let files = (
        take.take_optional_path(certificate),
        take.take_optional_path(key),
    );
    match files {
        (Some(certificate_file), Some(key_file)) => Some((certificate_file, key_file)),
        (None, None) => None,
        (Some(_), None) => {
            refuse(
                take,
                certificate,
                &format!("there is no `{key}` with it"),
                key,
            );
            None
        }
        (None, Some(_)) => {
            let reason = format!("there is no `{certificate}` with it");
            refuse(take, key, &reason, certificate);
            None
        }
    }
}

fn refuse(take: &mut Resolver<'_>, key: &str, reason: &str, missing: &str) {
    let origin = take.origin_of(key);
    take.refuse(
        origin,
        key,
        reason,
        &format!("set `{missing}` too, or neither"),
    );
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

    #[test]
    fn a_handshake_gets_from_a_tenth_of_a_second_to_a_minute() {
        for refused in ["99ms", "61s"] {
            fault(&[("tls.handshake_timeout", refused)]);
        }
        assert!(resolved(&[("tls.handshake_timeout", "60s")]).is_ok());
    }
}
