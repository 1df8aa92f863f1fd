//! Owns a client's token, its certificate, and the issuers that it trusts. No secret of these can be
//! printed.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use http::header::AUTHORIZATION;
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
};

use super::{connector::TlsEvidence, error::Error};
use crate::tls::Trouble;

/// Larger than any token; a server accepts 16 KiB of headers.
const TOKEN_BYTES_MAX: usize = 12 * 1024;

/// Where a client's bearer token is.
#[derive(Clone)]
pub struct TokenSource(Source);

#[derive(Clone)]
enum Source {
    Text(Arc<str>),
    File(PathBuf),
}

impl TokenSource {
    /// A file with nothing else in it. It is read for every call, so a token that is replaced there
    /// is used from the next reconnection on, and one that is refused is read again once.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }
}

impl From<&str> for TokenSource {
    fn from(token: &str) -> Self {
        Self(Source::Text(token.into()))
    }
}

impl From<String> for TokenSource {
    fn from(token: String) -> Self {
        Self(Source::Text(token.into()))
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Text(_) => formatter.write_str("TokenSource(redacted)"),
            Source::File(path) => formatter.debug_tuple("TokenSource").field(path).finish(),
        }
    }
}

/// The credential that every call sends, and whether the server refused the certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct Credential {
    token: Option<TokenSource>,
    pub(super) evidence: TlsEvidence,
}

impl Credential {
    pub(super) fn new(token: Option<TokenSource>) -> Self {
        Self {
            token,
            evidence: TlsEvidence::default(),
        }
    }

    /// The real cause of a failed call or connection: the end of a connection does not say that the
    /// server refused the certificate.
    pub(super) fn explain(&self, error: Error) -> Error {
        let is_of_connection = matches!(
            error,
            Error::Unreachable(_) | Error::Interrupted { reason: None, .. }
        );
        if is_of_connection && self.evidence.asks_for_tls() {
            return Error::Url(Trouble::Tls.sentence());
        }
        match (&error, self.evidence.certificate_refusal()) {
            (Error::Unreachable(_) | Error::Interrupted { reason: None, .. }, Some(message)) => {
                Error::Refused {
                    reason: None,
                    message,
                }
            }
            _ => error,
        }
    }

    /// Whether the next call can have another token.
    pub(super) fn can_change(&self) -> bool {
        matches!(&self.token, Some(TokenSource(Source::File(_))))
    }

    /// Fails if no call could be made.
    pub(super) async fn check(&self) -> Result<(), Error> {
        self.authorization().await.map(drop)
    }

    /// A call's message with the credential.
    ///
    /// A file that cannot be read passes, as it may be about to be replaced.
    pub(super) async fn request<M>(&self, message: M) -> Result<Request<M>, Error> {
        let mut request = Request::new(message);
        let authorization = self.authorization().await.map_err(|error| {
            if self.can_change() {
                Error::interrupted(&error.to_string())
            } else {
                error
            }
        })?;
        if let Some(value) = authorization {
            request.metadata_mut().insert(AUTHORIZATION.as_str(), value);
        }
        Ok(request)
    }

    async fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let source = match &self.token {
            None => return Ok(None),
            Some(TokenSource(source)) => source,
        };
        match source {
            Source::Text(token) => {
                bearer(token).map_err(|problem| Error::Credential(format!("the token {problem}")))
            }
            Source::File(path) => read(path).await.map_err(|problem| {
                // Not its path: it may be the token itself, by mistake.
                Error::Credential(format!("the token file {problem}"))
            }),
        }
        .map(Some)
    }
}

/// Reads on a blocking thread, because disks can be slow.
async fn read(path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let file = File::open(path)?.take(TOKEN_BYTES_MAX as u64 + 2);
        io::BufReader::new(file).read_to_string(&mut text)?;
        Ok(text)
    });
    let read = reading
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    let text = read.map_err(|error| format!("cannot be read: {error}"))?;
    bearer(text.trim())
}

/// As RFC 6750 section 2.1 has it. Says what is wrong without repeating any of it.
fn bearer(token: &str) -> Result<MetadataValue<Ascii>, String> {
    if token.is_empty() {
        return Err("is empty".to_owned());
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err(format!("is longer than {TOKEN_BYTES_MAX} bytes"));
    }
    let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
    match value {
        Ok(mut value) if token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            // Keeps it out of debug prints and out of HPACK's table.
            value.set_sensitive(true);
            Ok(value)
        }
        _ => Err("is not one word of printable ASCII".to_owned()),
    }
}

/// The issuers that a client trusts, and the certificate that it shows.
#[derive(Clone, Default)]
pub(super) struct Trust {
    pub(super) ca_certificates: Option<String>,
    pub(super) client_certificate: Option<(String, String)>,
    pub(super) server_name: Option<String>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Trust")
            .field("ca_certificates", &self.ca_certificates.is_some())
            .field("client_certificate", &self.client_certificate.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

impl Trust {
    /// Whether a setting has no effect without TLS.
    pub(super) fn needs_tls(&self) -> bool {
        self.ca_certificates.is_some() || self.client_certificate.is_some()
    }

    /// The TLS configuration, and the name that the server's certificate must have.
    pub(super) fn secure(&self, host: &str) -> Result<(ClientConfig, ServerName<'static>), Error> {
        let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| Error::Credential(error.to_string()))?
            .with_root_certificates(self.roots()?);
        let mut config = match &self.client_certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, "the client certificate")?;
                // The error could repeat parts of the key, so it is left out.
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| {
                    let problem =
                        "the client's key has no PEM section PRIVATE KEY, or it is encrypted";
                    Error::Credential(problem.to_owned())
                })?;
                let shown = builder.with_client_auth_cert(chain, key);
                shown.map_err(|error| Error::Credential(format!("the client's key: {error}")))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // The brackets of an IPv6 address are the URL's.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned());
        let name = name.map_err(|error| Error::Url(format!("the server's name: {error}")))?;
        Ok((config, name))
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        match &self.ca_certificates {
            Some(pem) => {
                for certificate in certificates(pem, "the CA certificate")? {
                    let added = roots.add(certificate);
                    added.map_err(|error| {
                        Error::Credential(format!("the CA certificate: {error}"))
                    })?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                let (usable, _) = roots.add_parsable_certificates(found.certs);
                if usable == 0 {
                    let problem = "this system trusts no issuers: give those of the bridge's \
                                   certificate";
                    return Err(Error::Credential(problem.to_owned()));
                }
            }
        }
        Ok(roots)
    }
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let sections: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match sections {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => {
            let problem = format!("{what} has no whole PEM section CERTIFICATE");
            Err(Error::Credential(problem))
        }
    }
}

/// Whether a host is this machine, so that no other machine can read the connection.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TOKEN: &str = "canary-token-9Qx";

    async fn shown(source: TokenSource) -> Result<String, Error> {
        let request = Credential::new(Some(source)).request(()).await?;
        let value = request.metadata().get("authorization").unwrap();
        assert!(value.is_sensitive());
        Ok(value.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn a_token_is_shown_as_a_bearer_and_never_printed() {
        assert_eq!(
            shown(TOKEN.into()).await.unwrap(),
            "Bearer canary-token-9Qx"
        );
        let source = TokenSource::from(TOKEN);
        let request = Credential::new(Some(source.clone()))
            .request(())
            .await
            .unwrap();
        let printed = format!("{source:?} {:?}", request.metadata());
        assert!(!printed.contains("canary"), "{printed}");
    }

    #[tokio::test]
    async fn a_file_is_read_anew_for_each_call() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let source = TokenSource::file(&path);
        for token in ["one", "two"] {
            fs::write(&path, format!("{token}\n")).unwrap();
            assert_eq!(
                shown(source.clone()).await.unwrap(),
                format!("Bearer {token}")
            );
        }
        // It may be about to be replaced; but before there ever was a call it is a mistake.
        fs::remove_file(&path).unwrap();
        let error = shown(source.clone()).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        let error = Credential::new(Some(source)).check().await.unwrap_err();
        assert!(matches!(error, Error::Credential(_)));
        assert!(
            error.to_string().contains("token file cannot be read"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn what_is_no_token_is_refused_without_being_repeated() {
        let too_long = "canary".repeat(TOKEN_BYTES_MAX);
        for token in ["", "canary canary", "canary\r\nx: y", "canàry", &too_long] {
            let error = Credential::new(Some(token.into()))
                .check()
                .await
                .unwrap_err();
            assert!(matches!(error, Error::Credential(_)));
            assert!(!error.to_string().contains("ary"), "{error}");
        }
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in [
            "localhost",
            "LOCALHOST",
            "127.0.0.1",
            "127.8.8.8",
            "[::1]",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "bridge",
            "localhost.example.com",
            "10.0.0.1",
            "[2001:db8::1]",
            "128.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
