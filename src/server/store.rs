//! Opens the log in the store that is configured. Only this file knows which ones there are.

use std::sync::Arc;

use super::Error;
use crate::{
    config::{self, Config, Store},
    log::{
        Log, embedded, memory,
        sequencer::{Secret, Sequencer},
    },
    metrics::Metrics,
};
use prelude_bridge_jetstream as jetstream;
use prelude_bridge_postgres as postgres;

/// Why a store on other machines cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// NATS JetStream.
    #[error(transparent)]
    Nats(#[from] jetstream::OpenError),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
}

pub(super) async fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Arc<dyn Log>, Error> {
    if config.store == Store::Memory {
        let options = memory::Options {
            retention_age: config.retention.age_max,
            ..memory::Options::default()
        };
        return Ok(memory::open(options)?);
    }
    let options = files(config, metrics);
    // What connects to an engine is large, and most bridges have none.
    let warn = |warning: &str| tracing::warn!("{warning}");
    let connected = Box::pin(connect(config, Missing::Create, warn)).await?;
    match connected {
        None => Ok(embedded::open(&config.data_dir, options)?),
        Some(sequencer) => Ok(embedded::open_replica(&config.data_dir, options, sequencer).await?),
    }
}

/// Whether a stream or a table that is missing is created, or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Create,
    Refuse,
}

/// Connects to the engine on other machines; `None` where the store has none. Checks the stream or the table,
/// and tells of what may be a mistake.
pub(crate) async fn connect(
    config: &Config,
    missing: Missing,
    warn: fn(&str),
) -> Result<Option<Arc<dyn Sequencer>>, StoreError> {
    let (sequencer, warnings) = match &config.store {
        Store::Memory | Store::Embedded => return Ok(None),
        Store::Nats(nats) => open_nats(config, nats, missing).await?,
        Store::Postgres(postgres) => open_postgres(config, postgres, missing).await?,
    };
    warnings.iter().for_each(|warning| warn(warning));
    Ok(Some(sequencer))
}

/// How the log in the data directory is kept.
fn files(config: &Config, metrics: &Arc<Metrics>) -> embedded::Options {
    let commits = Arc::clone(metrics);
    embedded::Options {
        retention_age: config.retention.age_max,
        retention_bytes: config.retention.bytes_max.0,
        ids_age: config.retention.id_age_min,
        ids_bytes: config.retention.id_bytes_max.0,
        queue_batches_max: config.log_limits.queue_batches_max,
        queue_bytes_max: config.log_limits.queue_bytes_max.into(),
        scrub_bytes_per_second: config.log_limits.scrub_bytes_per_second.0,
        on_commit: Some(Arc::new(move |commit: embedded::CommitReport| {
            let events = usize::try_from(commit.events).unwrap_or(usize::MAX);
            let bytes = usize::try_from(commit.bytes).unwrap_or(usize::MAX);
            commits.committed(events, bytes, commit.duration);
        })),
        ..embedded::Options::default()
    }
}

/// The password or token, which is read at each connection.
fn secret(secret: &config::StoreSecret) -> Secret {
    let secret = secret.clone();
    Secret::read_by(move || {
        let text = secret.read_again()?;
        Ok(text.expose().to_owned())
    })
}

async fn open_nats(
    config: &Config,
    nats: &config::Nats,
    missing: Missing,
) -> Result<(Arc<dyn Sequencer>, Vec<String>), StoreError> {
    let scheme = if nats.tls.is_some() { "tls" } else { "nats" };
    let options = jetstream::Options {
        servers: nats
            .hosts
            .iter()
            .map(|host| format!("{scheme}://{host}"))
            .collect(),
        stream: nats.stream.clone(),
        create: missing == Missing::Create,
        replicas: nats.replicas,
        login: match &nats.login {
            config::Login::None => jetstream::Login::None,
            config::Login::CredentialsFile(path) => jetstream::Login::CredentialsFile(path.clone()),
            config::Login::Token(token) => jetstream::Login::Token(secret(token)),
            config::Login::User { name, password } => jetstream::Login::Password {
                user: name.clone(),
                password: password.as_ref().map_or_else(|| Secret::new(""), secret),
            },
        },
        tls: nats.tls.as_ref().map(|tls| jetstream::Tls {
            authority: tls.authority.clone(),
            certificate: tls.certificate.clone(),
        }),
        retention_age: config.retention.age_max,
        retention_bytes: config.retention.bytes_max.0,
        ids_age: config.retention.id_age_min,
    };
    let opened = jetstream::open(options).await?;
    Ok((opened.sequencer, opened.warnings))
}

async fn open_postgres(
    config: &Config,
    postgres: &config::Postgres,
    missing: Missing,
) -> Result<(Arc<dyn Sequencer>, Vec<String>), StoreError> {
    let hosts = postgres.hosts.iter();
    let options = postgres::Options {
        hosts: hosts.map(|host| (host.name.clone(), host.port)).collect(),
        database: postgres.database.clone(),
        user: postgres.user.clone(),
        password: postgres.password.as_ref().map(secret),
        table: postgres.table.clone(),
        tls: match &postgres.tls {
            None => postgres::TlsMode::Off,
            Some(tls) => postgres::TlsMode::Required {
                authority: tls.authority.clone(),
                certificate: tls.certificate.clone(),
            },
        },
        create: missing == Missing::Create,
        require_standby: postgres.require_standby,
        ids_age: config.retention.id_age_min,
    };
    let opened = postgres::open(options).await?;
    Ok((opened.sequencer, opened.warnings))
}
