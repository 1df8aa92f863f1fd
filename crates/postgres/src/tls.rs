//! Owns whom a connection trusts, and which certificate it shows. Knows nothing of PostgreSQL.

use std::path::{Path, PathBuf};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};

/// The TLS configuration: issuers of the file, or those that the system trusts; TLS 1.2 and 1.3.
pub(crate) fn configuration(
    authority: Option<&Path>,
    certificate: Option<&(PathBuf, PathBuf)>,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(authority)?);
    let Some((chain, key)) = certificate else {
        return Ok(builder.with_no_client_auth());
    };
    let shown = certificates(chain)?;
    // The error could repeat parts of the key, so it is left out.
    let private = PrivateKeyDer::from_pem_file(key).map_err(|_| {
        let path = key.display();
        format!("{path} cannot be read, has no PEM section PRIVATE KEY, or is encrypted")
    })?;
    builder
        .with_client_auth_cert(shown, private)
        .map_err(|error| format!("{}: {error}", chain.display()))
}

fn roots(authority: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = authority else {
        let found = rustls_native_certs::load_native_certs();
        let (usable, _) = roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            return Err(
                "this system trusts no issuers: name the file of those of the server's certificate"
                    .to_owned(),
            );
        }
        return Ok(roots);
    };
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let sections =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match sections {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{} has no PEM section CERTIFICATE", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
