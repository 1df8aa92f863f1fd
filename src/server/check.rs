//! Checks whether a bridge would start, with the code that starts it. It disturbs no running bridge: it
//! opens no port, releases the log's lock at once, and sends nothing to the network. It reports all
//! faults, while a start ends at the first one.

use std::path::Path;

use jiff::Timestamp;
use rustix::fs::Access;

use super::{Error, open, refuse_exposure};
use crate::{
    admin,
    config::Config,
    credentials::{self, Credentials},
    log::{self, OpenError},
    net::tls::{self, Leaf},
    permissions::By,
};

/// The result of the check.
#[derive(Debug, Default)]
pub struct Findings {
    /// Faults: with them the bridge would not start, or its clients could not connect.
    pub faults: Vec<Error>,
    /// Warnings: the bridge would start.
    pub warnings: Vec<String>,
}

/// Checks everything that a start checks, except whether the ports are free, and what is fetched.
pub async fn check(config: &Config) -> Findings {
    let mut findings = Findings::default();
    let permissions = open::inspect_permissions(config, By::Reader);
    findings.warnings.extend(permissions.warnings);
    findings
        .faults
        .extend(permissions.faults.into_iter().map(Error::from));
    if !findings.faults.is_empty() {
        // The bridge does not use such a file, whatever it contains.
        return findings;
    }
    certificates(config, &mut findings);
    findings.faults.extend(open::unreadable_store_files(config));
    if config.store.has_files() {
        data_dir(&config.data_dir, &mut findings);
    }
    if let Err(error) = credentials(config, &mut findings.warnings).await {
        findings.faults.push(error);
    }
    for source in &config.sources {
        if source.keys.files().is_empty() {
            // A start would fetch the keys from their URL at once.
            continue;
        }
        match open::keyring(source, None) {
            Ok(keyring) => keyring.shutdown().await,
            Err(error) => findings.faults.push(error),
        }
    }
    findings
}

fn certificates(config: &Config, findings: &mut Findings) {
    let ports = [
        ("webhook", config.tls.of_webhook()),
        ("grpc", config.tls.of_grpc()),
    ];
    for (listener, options) in ports {
        let Some(options) = options else {
            continue;
        };
        let leaf = match tls::examine(&options) {
            Ok(leaf) => leaf,
            Err(fault) => {
                findings.faults.push(tls::Error { listener, fault }.into());
                continue;
            }
        };
        if let Some(complaint) = leaf.complaint(Timestamp::now()) {
            findings.faults.push(Error::Certificate {
                listener,
                complaint,
                path: options.certificate,
            });
        } else if let Some(reason) = leaf.unfit() {
            let remedy = Leaf::fitting();
            let warning = format!("TLS of the {listener} port: {reason}; {remedy}");
            findings.warnings.push(warning);
        }
    }
}

/// Checks the data directory and the log in it.
fn data_dir(path: &Path, findings: &mut Findings) {
    match log::inspect(path) {
        Ok(inspection) => {
            let damage = inspection.and_then(|inspection| admin::damage(&inspection.damaged));
            findings.warnings.extend(damage);
        }
        // A bridge is running, and is to be restarted.
        Err(OpenError::InUse { .. }) => {}
        // A start rebuilds it.
        Err(error @ OpenError::DamagedManifest { .. }) => findings.warnings.push(error.to_string()),
        Err(error) => return findings.faults.push(error.into()),
    }
    let mut above = path.ancestors();
    let existing = above.find(|path| path.symlink_metadata().is_ok());
    // No part of a relative path exists: it begins in the working directory.
    let existing = existing.unwrap_or(Path::new("."));
    let problem: Option<std::io::Error> = if existing.is_dir() {
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::access(existing, wanted).err().map(Into::into)
    } else {
        Some(std::io::ErrorKind::NotADirectory.into())
    };
    let Some(source) = problem else {
        return;
    };
    let error = Error::Open(OpenError::Directory {
        path: path.to_owned(),
        source,
    });
    if path.is_absolute() {
        findings.faults.push(error);
    } else {
        // `serve` may run in another directory.
        let warning = format!("{error}; it is looked for in the working directory of `serve`");
        findings.warnings.push(warning);
    }
}

/// Checks the credentials file, the key file of JWTs, and whether the port would be open to everybody.
async fn credentials(config: &Config, warnings: &mut Vec<String>) -> Result<(), Error> {
    let mut options = config.credentials_options();
    // The check records nothing, but respects the record of an earlier start.
    let recorded = options.record.take().and_then(|record| record.read());
    options.file_is_named |= recorded.is_some();
    if let Some(path) = &options.file
        && let Some(document) = credentials::File::new(path.clone()).document()?
    {
        if recorded.is_some_and(|recorded| recorded.needs_end(path)) && !document.has_end {
            let path = path.clone();
            return Err(credentials::Error::CutShort { path }.into());
        }
        let shown = path.display();
        let found = document.warnings.iter();
        warnings.extend(found.map(|warning| format!("{shown}: {warning}")));
        warnings.extend(credentials::expiry_warning(
            &document.entries,
            Timestamp::now(),
        ));
    }
    let has_jwt = options.jwt.is_some();
    // A start would fetch keys from a URL at once.
    options.jwt = options
        .jwt
        .filter(|jwt| !matches!(jwt.keys, crate::signature::KeySource::Url(_)));
    let credentials = Credentials::open(options).await?;
    let exposed = if has_jwt {
        Ok(())
    } else {
        refuse_exposure(config, config.grpc_listen, &credentials)
    };
    credentials.shutdown().await;
    exposed
}
