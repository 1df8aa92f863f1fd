//! Owns what a port's TLS is made of: reading certificates and keys, judging whether they are and
//! belong together, and saying what is wrong with them. Knows nothing of connections.

use std::{
    fmt,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::{
    self, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{BasicConstraints, SubjectAltName, name::GeneralName},
};

use super::{ClientCertificates, Options, SELF_SIGNED};
use crate::permissions::{self, By};

/// More than the bundle of a whole operating system has: a larger file is some other file.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Why a port cannot do TLS.
#[derive(Debug, thiserror::Error)]
#[error("TLS of the {listener} port: {fault}")]
pub struct Error {
    /// Which port.
    pub listener: &'static str,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file cannot be read.
    #[error("the {role} {} cannot be read: {source}; check the path and who may read it", path.display())]
    Read {
        /// Which of the files.
        role: Role,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds no PEM of the right kind.
    #[error("the {role} {} has no PEM section {}: {problem}", path.display(), role.section())]
    Pem {
        /// Which of the files.
        role: Role,
        /// Where.
        path: PathBuf,
        /// What is there instead, and what to do.
        problem: String,
    },
    /// What the PEM holds cannot be used.
    #[error("the {role} {} cannot be used: {problem}", path.display())]
    Unusable {
        /// Which of the files.
        role: Role,
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The key is that of another certificate.
    #[error(
        "the key {} does not belong to the certificate {}; give the key that the certificate was \
         issued for, and the certificate first in its file", key.display(), certificate.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The port's own certificate, with those of its issuers.
    Certificate,
    /// The private key of it.
    Key,
    /// The issuers of clients' certificates.
    ClientCa,
}

impl Role {
    fn section(self) -> &'static str {
        match self {
            Self::Certificate | Self::ClientCa => "CERTIFICATE",
            Self::Key => "PRIVATE KEY",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::ClientCa => "client CA",
        })
    }
}

/// A port's own certificate, as far as an operator wants to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The names that clients may call the port by.
    pub names: Vec<String>,
    /// Whether it is for issuing others (RFC 5280 section 4.2.1.9), as `openssl req -x509` makes
    /// them.
    pub is_issuer: bool,
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

impl Leaf {
    /// What is wrong with its dates, if anything is.
    #[must_use]
    pub fn complaint(&self, now: Timestamp) -> Option<String> {
        let Self {
            not_before,
            not_after,
            ..
        } = self;
        if now > *not_after {
            return Some(format!("the certificate expired at {not_after}"));
        }
        (now < *not_before).then(|| format!("the certificate is not valid before {not_before}"))
    }

    /// Why clients refuse it whatever the time is, if they do. A server can show it all the same,
    /// and some clients take it.
    #[must_use]
    pub fn unfit(&self) -> Option<&'static str> {
        if self.is_issuer {
            return Some(
                "the certificate is for an issuer and not for a server (its basicConstraints say \
                 CA:TRUE), so clients refuse it with CaUsedAsEndEntity",
            );
        }
        self.names.is_empty().then_some(
            "the certificate has no subjectAltName, so clients refuse it whatever they call the \
             port by",
        )
    }

    /// What to do about [`Leaf::unfit`].
    #[must_use]
    pub fn fitting() -> String {
        format!("make one for a server, with the name that clients call it by: {SELF_SIGNED}")
    }
}

/// What the files came to.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    pub(super) leaf: Leaf,
    pub(super) digest: Digest,
}

/// What tells one state of the files from another.
pub(super) type Digest = [u8; 32];

/// Judges the files of a port without opening it.
///
/// # Errors
/// What is wrong with them.
pub fn examine(options: &Options) -> Result<Leaf, Fault> {
    load(options).map(|loaded| loaded.leaf)
}

pub(super) fn load(options: &Options) -> Result<Loaded, Fault> {
    Contents::read(options)?.load(options)
}

/// The files as they were at one moment.
pub(super) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    pub(super) fn read(options: &Options) -> Result<Self, Fault> {
        let client_ca = options.client_ca.as_deref();
        Ok(Self {
            certificate: read(Role::Certificate, &options.certificate)?,
            key: read(Role::Key, &options.key)?,
            client_ca: client_ca
                .map(|path| read(Role::ClientCa, path))
                .transpose()?,
        })
    }

    pub(super) fn digest(&self) -> Digest {
        let mut digest = Sha256::new();
        for part in [
            Some(&self.certificate),
            Some(&self.key),
            self.client_ca.as_ref(),
        ] {
            // With its length, so that nothing can move from one file to the next unseen.
            let part = part.map_or(&[][..], Vec::as_slice);
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    pub(super) fn load(&self, options: &Options) -> Result<Loaded, Fault> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(Role::Certificate, &options.certificate, &self.certificate)?;
        let leaf = leaf(&chain, &options.certificate)?;
        let key = private_key(&options.key, &self.key)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| unusable(Role::Certificate, &options.certificate, error))?;
        let builder = match (&options.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                let mut verifier =
                    WebPkiClientVerifier::builder_with_provider(roots(path, pem)?, provider);
                if options.client_certificates == ClientCertificates::Optional {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier
                    .build()
                    .map_err(|error| unusable(Role::ClientCa, path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let built = builder.with_single_cert(chain, key);
        let mut config = built.map_err(|error| unpaired(options, error))?;
        config.alpn_protocols = options.protocols.iter().map(|name| name.to_vec()).collect();
        if options.client_ca.is_some() {
            // A resumed session would not look at the client's certificate again, and so outlive
            // its expiry. Streams are long: a whole handshake for each costs nothing.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Loaded {
            config: Arc::new(config),
            leaf,
            digest: self.digest(),
        })
    }
}

fn read(role: Role, path: &Path) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let read = permissions::open(path, By::Reader)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .and_then(|_| {
            if bytes.len() as u64 > FILE_BYTES_MAX {
                let problem = format!("it is larger than {FILE_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            Ok(())
        });
    match read {
        Ok(()) => Ok(bytes),
        Err(source) => Err(Fault::Read {
            role,
            path: path.to_owned(),
            source,
        }),
    }
}

fn certificates(
    role: Role,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let sections: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let problem = match sections {
        Ok(certificates) if !certificates.is_empty() => return Ok(certificates),
        Ok(_) => pem::Error::NoItemsFound,
        Err(error) => error,
    };
    Err(not_pem(
        role,
        path,
        &problem,
        "DER becomes PEM with `openssl x509 -inform der`",
    ))
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Fault> {
    let remedy = if pem.windows(9).any(|nine| nine == b"ENCRYPTED") {
        "it is encrypted: decrypt it with `openssl pkey`"
    } else {
        "DER becomes PEM with `openssl pkey -inform der`"
    };
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| not_pem(Role::Key, path, &error, remedy))
}

fn roots(path: &Path, pem: &[u8]) -> Result<Arc<RootCertStore>, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(Role::ClientCa, path, pem)? {
        let added = roots.add(certificate);
        added.map_err(|error| unusable(Role::ClientCa, path, error))?;
    }
    Ok(Arc::new(roots))
}

/// In words of ours: those of the error could repeat what is in the file.
fn not_pem(role: Role, path: &Path, error: &pem::Error, remedy: &str) -> Fault {
    let problem = match error {
        pem::Error::NoItemsFound => "there is none in it",
        pem::Error::MissingSectionEnd { .. } => "a section is cut off",
        pem::Error::IllegalSectionStart { .. } => "a section begins wrongly",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it is not PEM",
    };
    Fault::Pem {
        role,
        path: path.to_owned(),
        problem: format!("{problem} ({remedy})"),
    }
}

fn unusable(role: Role, path: &Path, problem: impl fmt::Display) -> Fault {
    Fault::Unusable {
        role,
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

fn unpaired(options: &Options, error: rustls::Error) -> Fault {
    match error {
        rustls::Error::InconsistentKeys(_) => Fault::Mismatch {
            certificate: options.certificate.clone(),
            key: options.key.clone(),
        },
        rustls::Error::InvalidCertificate(_) => {
            unusable(Role::Certificate, &options.certificate, error)
        }
        _ => unusable(Role::Key, &options.key, error),
    }
}

fn leaf(chain: &[CertificateDer<'_>], path: &Path) -> Result<Leaf, Fault> {
    let unusable = |problem| unusable(Role::Certificate, path, problem);
    let first = chain.first().map_or(&[][..], |first| first);
    let certificate = Certificate::from_der(first)
        .map_err(|error| unusable(format!("it is no X.509 certificate: {error}")))?;
    let subject = certificate.tbs_certificate();
    let time = |time: x509_cert::time::Time| {
        let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
        let time = Timestamp::from_second(seconds);
        time.map_err(|_| unusable("its dates cannot be read".to_owned()))
    };
    let validity = subject.validity();
    let names = subject.get_extension::<SubjectAltName>().ok().flatten();
    let constraints = subject.get_extension::<BasicConstraints>().ok().flatten();
    Ok(Leaf {
        names: names.map_or_else(Vec::new, |(_, SubjectAltName(names))| {
            names.iter().filter_map(server_name).collect()
        }),
        is_issuer: constraints.is_some_and(|(_, constraints)| constraints.ca),
        not_before: time(validity.not_before)?,
        not_after: time(validity.not_after)?,
    })
}

fn server_name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => super::identity::address(bytes.as_bytes()),
        _ => None,
    }
}
