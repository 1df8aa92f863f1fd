//! The settings of the store: where the log of the bridge is, and, for an engine on other machines, its
//! servers, its login and its TLS. `address` owns the URLs, `login` the secrets, `plain_text` the warning of what
//! is not encrypted. Says which settings go together; it depends on no client of an engine and connects to nothing.

mod address;
mod login;
mod plain_text;

use std::{fmt, path::PathBuf};

use self::{
    address::{Address, Remote, StreamName, TableName},
    login::Refused,
};
pub use self::{
    address::{Engine, Host},
    login::{Login, StoreSecret},
};
use super::{
    Config,
    fault::{Fault, Origin},
    macros::settings,
    resolver::Resolver,
    units::show_duration,
};

/// The setting of the address. In a flag, a variable, and above the sections of a file it is `store`.
const URL: &str = "store.url";
const AGE_MAX: &str = "retention.age_max";
const ID_AGE_MIN: &str = "retention.id_age_min";

/// Variables that are no settings: they hold secrets.
pub(super) const VARIABLES: [&str; 2] = [login::PASSWORD, login::TOKEN];
/// What the variable of [`URL`] would be called if it were like the others.
const WRONG_VARIABLE: &str = "PRELUDE_BRIDGE_STORE_URL";

/// The settings of one engine, and what they are for. All others of the section are for both.
const OF_NATS: [&str; 5] = [
    "store.stream",
    "store.replicas",
    "store.credentials_file",
    "store.token_env",
    "store.token_file",
];
const OF_POSTGRES: [&str; 2] = ["store.table", "store.require_standby"];
const TLS_FILES: [&str; 3] = [
    "store.tls_ca_file",
    "store.tls_certificate_file",
    "store.tls_key_file",
];

/// The store of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// Files in the data directory.
    Embedded,
    /// Memory only: for trials and tests.
    Memory,
    /// A stream of NATS JetStream, and a replica in the data directory.
    Nats(Nats),
    /// A table of PostgreSQL, and a replica in the data directory.
    Postgres(Postgres),
}

/// A stream of NATS JetStream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nats {
    /// The servers of the cluster, at least one.
    pub hosts: Vec<Host>,
    /// The name of the stream.
    pub stream: String,
    /// On how many servers the stream is.
    pub replicas: usize,
    /// The login.
    pub login: Login,
    /// TLS; `None` for plain text unless the servers ask for TLS.
    pub tls: Option<StoreTls>,
}

/// A table of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// The primary and those that can take its place, at least one.
    pub hosts: Vec<Host>,
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// The user's password; `None` where the server asks for none, or for a certificate.
    pub password: Option<StoreSecret>,
    /// The name of the table, with its schema if it has one.
    pub table: String,
    /// Whether the bridge appends nothing on a server without a synchronous standby.
    pub require_standby: bool,
    /// TLS; `None` for plain text, as to this machine and where the URL says so.
    pub tls: Option<StoreTls>,
}

/// TLS to the servers of a store. Their certificates are always verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreTls {
    /// The issuers of the servers' certificates; `None` for those of the system.
    pub authority: Option<PathBuf>,
    /// The certificate that the bridge shows, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

settings! {
    /// The store of the log. With NATS JetStream or PostgreSQL, any number of bridges have one log, and each
    /// keeps a replica of it in its data directory: see "Beyond one machine" in docs/operating.md. A file that
    /// needs only `url` can say `store = "…"` above the first section instead of this section.
    struct Section in "store" {
        /// The store of the log: "embedded" (files in the data directory), "memory" (for trials; lost on
        /// exit), or the servers of NATS JetStream or PostgreSQL, such as `nats://a:4222,b:4222` or
        /// `postgres://a:5432,b:5432/events`. `tls://` instead of `nats://` asks for TLS. PostgreSQL on other
        /// machines has it (`?sslmode=verify-full` behind the database asks for it on this one too) unless
        /// `?sslmode=disable` is there. A password or a token can be in this URL only if the variable
        /// PRELUDE_BRIDGE_STORE has it.
        url: Address = Address::Embedded;

        /// The stream of NATS. `serve` makes the stream if it is missing,
        /// and checks its settings if it is there. Bridges with the same stream have the same log.
        stream: StreamName = StreamName("prelude-bridge".to_owned());

        /// On how many servers of NATS each event is before a delivery is answered. With three, the log
        /// outlives the loss of one server and its disk. With one, it does not.
        replicas: usize = 3, in 1..=5;

        /// The table of PostgreSQL. `serve` makes it if it is missing. Bridges with the same table have the
        /// same log.
        table: TableName = TableName("prelude_bridge".to_owned());

        /// Whether the bridge refuses to start on a PostgreSQL server without a synchronous standby, on
        /// whose disk a commit is before a delivery is answered, and answers 503 while a server that
        /// took over has none. Without one, a failover loses events that
        /// were answered with 200. Write false if the server's storage is replicated in another way, or for
        /// one server whose disk is as good as the embedded log's.
        require_standby: bool = true;

        /// The user at the store. PostgreSQL always needs one; NATS, where it has users and passwords.
        user: String = String::new();

        /// The variable that holds the user's password. PRELUDE_BRIDGE_STORE_PASSWORD need not be named.
        password_env: String = String::new();

        /// The file that holds the user's password, instead of a variable. It is read at each connection to the
        /// store, so a changed password needs no restart.
        password_file: Option<PathBuf> = None;

        /// The variable that holds the token of NATS, where it has tokens without users.
        /// PRELUDE_BRIDGE_STORE_TOKEN need not be named.
        token_env: String = String::new();

        /// The file that holds the token of NATS, instead of a variable. It is read at each connection too.
        token_file: Option<PathBuf> = None;

        /// The credentials file of a user of NATS, as `nsc` writes it: a JWT, and the seed of a key that never
        /// leaves the bridge.
        credentials_file: Option<PathBuf> = None;

        /// The issuers of the servers' certificates, in PEM. Asks for TLS. Empty: those of the system.
        tls_ca_file: Option<PathBuf> = None;

        /// The certificate that the bridge shows to the servers (mTLS), in PEM. Asks for TLS.
        tls_certificate_file: Option<PathBuf> = None;

        /// The private key of this certificate.
        tls_key_file: Option<PathBuf> = None;
    }
}

impl Store {
    /// Whether the bridge keeps files of the log in its data directory.
    #[must_use]
    pub fn has_files(&self) -> bool {
        *self != Self::Memory
    }

    /// The engine on other machines and its servers, if there is one.
    #[must_use]
    pub fn engine(&self) -> Option<(Engine, &[Host])> {
        match self {
            Self::Embedded | Self::Memory => None,
            Self::Nats(nats) => Some((Engine::Nats, &nats.hosts)),
            Self::Postgres(postgres) => Some((Engine::Postgres, &postgres.hosts)),
        }
    }

    fn tls(&self) -> Option<&StoreTls> {
        match self {
            Self::Embedded | Self::Memory => None,
            Self::Nats(nats) => nats.tls.as_ref(),
            Self::Postgres(postgres) => postgres.tls.as_ref(),
        }
    }

    /// All files that the bridge needs to connect.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.secret_files().chain(self.certificate_files())
    }

    /// The files whose content is a secret.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = &PathBuf> {
        let login = match self {
            Self::Embedded | Self::Memory => None,
            Self::Nats(nats) => match &nats.login {
                Login::None => None,
                Login::CredentialsFile(path) => Some(path),
                Login::Token(secret) => secret.file.as_ref(),
                Login::User { password, .. } => password.as_ref().and_then(|it| it.file.as_ref()),
            },
            Self::Postgres(postgres) => postgres.password.as_ref().and_then(|it| it.file.as_ref()),
        };
        let certificate = self.tls().and_then(|tls| tls.certificate.as_ref());
        login.into_iter().chain(certificate.map(|(_, key)| key))
    }

    /// The certificates that the bridge trusts or shows.
    pub(super) fn certificate_files(&self) -> impl Iterator<Item = &PathBuf> {
        let tls = self.tls();
        let authority = tls.and_then(|tls| tls.authority.as_ref());
        let certificate = tls.and_then(|tls| tls.certificate.as_ref());
        authority
            .into_iter()
            .chain(certificate.map(|(file, _)| file))
    }
}

/// The kind of store and its servers, without a login.
impl fmt::Display for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = |hosts: &[Host]| {
            let hosts: Vec<String> = hosts.iter().map(Host::to_string).collect();
            hosts.join(",")
        };
        match self {
            Self::Embedded => formatter.write_str("embedded"),
            Self::Memory => formatter.write_str("memory"),
            Self::Nats(nats) => write!(formatter, "nats://{}", hosts(&nats.hosts)),
            Self::Postgres(postgres) => {
                let hosts = hosts(&postgres.hosts);
                write!(formatter, "postgres://{hosts}/{}", postgres.database)
            }
        }
    }
}

/// Takes the section.
pub(super) fn take(resolver: &mut Resolver<'_>) -> Store {
    let faults_before = resolver.faults.len();
    let section = Section::take(resolver);
    if resolver.takes_only_some() || has_fault_of_url(resolver, faults_before) {
        return Store::Embedded;
    }
    let key = resolver.written_key(URL);
    let origin = resolver.origin_of(URL);
    refuse_wrong_variable(resolver);
    refuse_settings_of_others(resolver, &section.url);
    match section.url.clone() {
        Address::Embedded => Store::Embedded,
        Address::Memory => Store::Memory,
        Address::Remote(remote) => {
            if remote.secret.is_some() && !matches!(origin, Origin::Environment(_)) {
                refuse_secret(resolver, origin, key, &remote);
                return Store::Embedded;
            }
            take_remote(resolver, (key, &origin), &remote, section).unwrap_or(Store::Embedded)
        }
    }
}

/// A faulty address would make faults of all other settings of the section.
fn has_fault_of_url(resolver: &Resolver<'_>, faults_before: usize) -> bool {
    let mut faults = resolver.faults.iter().skip(faults_before);
    faults.any(|fault| {
        let named = fault.message.starts_with("`store`:");
        named || fault.message.starts_with("`store.url`:")
    })
}

fn refuse_secret(
    resolver: &mut Resolver<'_>,
    origin: Origin,
    key: &str,
    Remote { engine, user, .. }: &Remote,
) {
    let (what, setting, variable) = match (engine, user) {
        (Engine::Nats, None) => ("token", "token_file", login::TOKEN),
        _ => ("password", "password_file", login::PASSWORD),
    };
    let reason = format!("there is a {what} in it");
    let help = format!(
        "secrets come from the environment or from files: remove it here, and set `{variable}`, or write \
         `{setting}` in `[store]`"
    );
    resolver.refuse(origin, key, &reason, &help);
}

/// With a name that follows from the key, the bridge would start with another store than was meant.
fn refuse_wrong_variable(resolver: &mut Resolver<'_>) {
    if resolver.variable(WRONG_VARIABLE).is_some() {
        resolver.faults.push(Fault {
            origin: Origin::Environment(WRONG_VARIABLE.to_owned()),
            message: "it is not known".to_owned(),
            help: "set `PRELUDE_BRIDGE_STORE` instead".to_owned(),
        });
    }
}

/// Refuses what does not fit the kind of store, unless it can belong to a store that is overridden, such as
/// that of the file where a flag names another.
fn refuse_settings_of_others(resolver: &mut Resolver<'_>, address: &Address) {
    if resolver.is_overriding(URL) {
        return;
    }
    let (kind, engine) = match address {
        Address::Embedded => ("embedded", None),
        Address::Memory => ("memory", None),
        Address::Remote(remote) => (remote.engine.name(), Some(remote.engine)),
    };
    let refused = |key: &str| match engine {
        None => true,
        Some(Engine::Nats) => OF_POSTGRES.contains(&key),
        Some(Engine::Postgres) => OF_NATS.contains(&key),
    };
    let settings = resolver.settings.iter().filter(|setting| {
        setting.declared.name.section.name == "store"
            && setting.key() != URL
            && setting.value != setting.declared.default
            && refused(setting.key())
    });
    let unfit: Vec<_> = settings
        .map(|setting| (setting.key(), setting.origin.clone()))
        .collect();
    let reason = format!("the store is {kind}, which has no such setting");
    let help = match engine {
        None => "remove it, or write the URL of the store, such as `url = \"nats://a:4222\"`",
        Some(Engine::Nats) => "remove it; `table` and `require_standby` are for PostgreSQL",
        Some(Engine::Postgres) => {
            "remove it; `stream`, `replicas`, tokens and `credentials_file` are for NATS"
        }
    };
    for (key, origin) in unfit {
        resolver.refuse(origin, key, &reason, help);
    }
    if resolver.takes_file_alone() {
        return;
    }
    for name in VARIABLES {
        let is_refused = match engine {
            None => true,
            Some(Engine::Nats) => false,
            Some(Engine::Postgres) => name == login::TOKEN,
        };
        if is_refused && resolver.variable(name).is_some() {
            resolver.faults.push(Fault {
                origin: Origin::Environment(name.to_owned()),
                message: format!("it is set, but the store is {kind}"),
                help:
                    "set `PRELUDE_BRIDGE_STORE` to the URL of the store that it is for, or unset it"
                        .to_owned(),
            });
        }
    }
}

/// Makes the store of the parts, or records why they do not go together.
fn take_remote(
    resolver: &mut Resolver<'_>,
    url: (&'static str, &Origin),
    remote: &Remote,
    section: Section,
) -> Option<Store> {
    let files = (
        section.tls_ca_file,
        section.tls_certificate_file,
        section.tls_key_file,
    );
    // The faults of the login are recorded too.
    // NATS says by itself whether it wants TLS.
    let is_default = remote.engine == Engine::Postgres && !remote.hosts.iter().all(Host::is_local);
    let of_url = remote.tls.or(is_default.then_some(true));
    let tls = take_tls(resolver, of_url, files).ok();
    let typed = login::Typed {
        user: section.user,
        credentials_file: section.credentials_file,
        password_env: section.password_env,
        password_file: section.password_file,
        token_env: section.token_env,
        token_file: section.token_file,
    };
    let login = login::take(resolver, url, remote, typed)?;
    let hosts = remote.hosts.clone();
    if remote.engine == Engine::Nats {
        return Some(Store::Nats(Nats {
            hosts,
            stream: section.stream.0,
            replicas: section.replicas,
            login,
            tls: tls?,
        }));
    }
    let Login::User {
        name: user,
        password,
    } = login
    else {
        let (key, origin) = url;
        let help = "write `user` in `[store]`, or set `PRELUDE_BRIDGE_STORE_USER`";
        resolver.refuse(
            origin.clone(),
            key,
            "PostgreSQL needs the name of a user",
            help,
        );
        return None;
    };
    Some(Store::Postgres(Postgres {
        hosts,
        // As libpq does.
        database: remote.database.clone().unwrap_or_else(|| user.clone()),
        user,
        password,
        table: section.table.0,
        require_standby: section.require_standby,
        tls: tls?,
    }))
}

/// TLS, if it is asked for.
fn take_tls(
    resolver: &mut Resolver<'_>,
    of_url: Option<bool>,
    (authority, certificate, key): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>),
) -> Result<Option<StoreTls>, Refused> {
    let [ca_file, certificate_file, key_file] = TLS_FILES;
    let set = [&authority, &certificate, &key].map(Option::is_some);
    let first = TLS_FILES.into_iter().zip(set).find(|(_, is_set)| *is_set);
    let has_half = certificate.is_some() || key.is_some();
    if of_url == Some(false)
        && let Some((name, _)) = first
    {
        let origin = resolver.origin_of(name);
        let help = format!(
            "write `sslmode=verify-full`, or remove `{ca_file}`, `{certificate_file}` and `{key_file}`"
        );
        let reason = "the URL of the store has `sslmode=disable`";
        resolver.refuse(origin, name, reason, &help);
        return Err(Refused);
    }
    let pair = super::tls::pair(resolver, (certificate_file, certificate), (key_file, key));
    if pair.is_none() && has_half {
        return Err(Refused);
    }
    let is_wanted = of_url == Some(true) || first.is_some();
    Ok(is_wanted.then_some(StoreTls {
        authority,
        certificate: pair,
    }))
}

/// A new replica learns the ids of `id_age_min` from the events that the store still has.
pub(super) fn refuse_short_retention(resolver: &mut Resolver<'_>, config: &Config) {
    let (events, ids) = (config.retention.age_max, config.retention.id_age_min);
    if config.store.engine().is_none() || events >= ids {
        return;
    }
    let key = match resolver.origin_of(AGE_MAX) {
        Origin::Default => ID_AGE_MIN,
        _ => AGE_MAX,
    };
    let origin = resolver.origin_of(key);
    let [events, ids] = [events, ids].map(show_duration);
    let reason = format!(
        "with the store on other machines, events have to be kept (`{AGE_MAX}`, {events}) as long as ids \
         (`{ID_AGE_MIN}`, {ids}): a new bridge reads the ids from the events"
    );
    let help = format!("raise `{AGE_MAX}` to \"{ids}\" or more");
    resolver.refuse(origin, key, &reason, &help);
}
