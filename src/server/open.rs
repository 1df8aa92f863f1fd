//! Opens the parts that can fail to open: the log with its bus, the key sets, TLS.

use std::{path::Path, sync::Arc};

use super::{Error, store};
use crate::{
    bus::Bus,
    config::{Config, EventSource},
    log::Log,
    metrics::Metrics,
    net::tls,
    permissions::{self, By},
    plain,
    signature::{self, Keyring},
};

/// The subdirectory of the data directory that keeps key sets over a restart.
const KEY_CACHE_DIRECTORY: &str = "keys";

/// Refuses a data directory and files that other users can change, and warns of secrets that they can
/// read. Each file is checked again when it is opened.
pub(super) fn check_permissions(config: &Config) -> Result<(), permissions::Untrusted> {
    let Permissions { faults, warnings } = inspect_permissions(config, By::Bridge);
    if let Some(fault) = faults.into_iter().next() {
        return Err(fault);
    }
    for warning in warnings {
        tracing::warn!("{}", plain::configured(warning));
    }
    Ok(())
}

/// The files that other users can change or read.
pub(crate) struct Permissions {
    /// Files that others can change.
    pub(crate) faults: Vec<permissions::Untrusted>,
    /// Secrets that others can read, directories in which others can create files, and directories in
    /// which they can replace the bridge's files.
    pub(crate) warnings: Vec<String>,
}

/// Checks the permissions of the data directory and of the trusted files.
pub(crate) fn inspect_permissions(config: &Config, by: By) -> Permissions {
    let mut found = Permissions {
        faults: Vec::new(),
        warnings: Vec::new(),
    };
    let files = config.trusted_files();
    if config.store.has_files() {
        let directory = permissions::directory(&config.data_dir, by);
        found.faults.extend(directory.err());
        found.warnings.extend(permissions::shared(&config.data_dir));
    }
    for file in &files {
        found.faults.extend(permissions::file(file, by).err());
    }
    let exposed = config.secret_files().filter_map(permissions::exposed);
    found.warnings.extend(exposed);
    for path in files.iter().chain([&config.data_dir]) {
        let replaceable = permissions::replaceable(path);
        let is_new = |warning: &String| !found.warnings.contains(warning);
        let replaceable = replaceable.filter(is_new);
        found.warnings.extend(replaceable);
    }
    found
}

/// The files of the store that cannot be read, of its login and its TLS.
pub(super) fn unreadable_store_files(config: &Config) -> impl Iterator<Item = Error> {
    config.store.files().filter_map(|path| {
        let source = permissions::open_regular(path, None).err()?;
        let path = path.clone();
        Some(Error::StoreFile { path, source })
    })
}

pub(super) async fn log(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<dyn Log>, Arc<Bus>), Error> {
    if let Some(error) = unreadable_store_files(config).next() {
        return Err(error);
    }
    let log = store::open(config, metrics).await?;
    let bus = Bus::follow(config.into(), &*log).map_err(Error::Follow)?;
    Ok((log, bus))
}

pub(super) fn keyrings(config: &Config) -> Result<Vec<Keyring>, Error> {
    // A log in memory leaves no files.
    let has_files = config.store.has_files();
    let cache = has_files.then(|| config.data_dir.join(KEY_CACHE_DIRECTORY));
    let open = |source: &EventSource| keyring(source, cache.as_deref());
    config.sources.iter().map(open).collect()
}

pub(super) fn keyring(source: &EventSource, cache: Option<&Path>) -> Result<Keyring, Error> {
    let options = signature::Options::default();
    let keys = source.keys.open().map_err(signature::Error::from);
    keys.and_then(|keys| Keyring::open(&source.id, keys, options, cache))
        .map_err(|error| Error::Keys {
            of: format!("{} {}", source.kind.noun(), source.id),
            source: error,
        })
}

pub(super) fn tls_port(
    listener: &'static str,
    options: Option<tls::Options>,
    metrics: &Arc<Metrics>,
) -> Result<(Option<tls::Acceptor>, Option<tls::Watch>), tls::Error> {
    let Some(options) = options else {
        return Ok((None, None));
    };
    let (acceptor, watch) = tls::Acceptor::open(listener, options, Arc::clone(metrics))?;
    Ok((Some(acceptor), Some(watch)))
}
