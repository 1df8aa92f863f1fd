//! The settings of the bridge, with their defaults, bounds and reasons. The macro `settings!` declares
//! each in one place; the example file and `docs/settings.md` are generated from the declarations.
//!
//! The input ([`Sources`]) and the validated configuration ([`Config`]) have types of their own.
//! [`resolve`] makes one from the other and reports all faults at once. Owns precedence, defaults,
//! bounds and messages; opens no socket, no log and no connection, and starts nothing.
//!
//! | file | owns |
//! |---|---|
//! | `declared`, `macros` | the declaration of a setting, and what is generated from it |
//! | `event_sources` | the apps and other sources of events, with their tokens and key sources |
//! | `credentials` | the credentials file, the issuer of JWTs |
//! | `resolver` | flag before environment before file before default; the origin of each value |
//! | `value` | how each type of setting is read and shown |
//! | `file` | TOML into keys with lines |
//! | `store` | the store of the log: its address, its login, its TLS |
//! | `tls` | the certificates of the ports |
//! | `limits` | retention, and the limits of the ports, the bus and the log |
//! | `units` | durations and sizes as text |
//! | `fault`, `secret` | faults; values that are never shown |

mod credentials;
mod declared;
mod event_sources;
mod fault;
mod file;
mod limits;
mod macros;
mod resolver;
mod secret;
mod show;
mod store;
mod tls;
mod units;
mod value;

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

pub(crate) use self::value::quoted;
pub use self::{
    credentials::{CredentialsSetup, Jwt, credentials_file, credentials_setup},
    declared::{Declared, Name, Section},
    event_sources::{
        APP_ID_VARIABLE, Activation, EventSource, KeySource, Planned, SOURCE_ID_CHARS_MAX,
        SourceKind, TOKEN_CHARS_MAX, TokenSource, default_jwks_url, default_token_file,
        list_sources, read_verification_tokens,
    },
    fault::{Error, Fault, Origin},
    limits::{
        AdminLimits, BusLimits, GrpcLimits, LogLimits, RefusalLimits, Retention, WebhookLimits,
    },
    resolver::{ENVIRONMENT_PREFIX, Setting, Sources, flag_of, variable_of},
    secret::Secret,
    store::{Engine, Host, Login, Nats, Postgres, Store, StoreSecret, StoreTls},
    tls::{GrpcTls, Tls, WebhookTls},
    units::{ByteSize, parse_duration, parse_size, show_duration},
};
use self::{macros::settings, resolver::Resolver};
use crate::{logging, net::network::Network, receiver::source};

/// The variable that names the file if there is no `--config`.
pub const CONFIG_VARIABLE: &str = "PRELUDE_BRIDGE_CONFIG";

settings! {
    /// All settings, validated.
    pub struct Config in "" {
        /// The address for Prelude's deliveries, which come from outside, through your proxy or directly.
        webhook_listen: SocketAddr = address(Ipv4Addr::UNSPECIFIED, 8080);

        /// The address for subscribers. By default only this machine can connect.
        grpc_listen: SocketAddr = address(Ipv4Addr::LOCALHOST, 50051);

        /// The address for `/healthz`, `/readyz` and `/metrics`. By default only this machine can connect.
        admin_listen: SocketAddr = address(Ipv4Addr::LOCALHOST, 9090);

        /// The directory of the log, or of this bridge's replica of it if the store is on other machines, and
        /// of the last good key sets. It must be on a persistent disk. A lost replica is rebuilt from the store.
        data_dir: PathBuf = PathBuf::from("./data");

        /// The addresses that may call the webhook port: networks, and "prelude" for the three addresses
        /// that Prelude documents. Others get 403. An empty list allows all addresses: every delivery needs
        /// a valid signature anyway. Behind a proxy this needs `trusted_proxies`, or all requests seem to
        /// come from the proxy.
        allowed_sources: Vec<AllowedSource> = Vec::new();

        /// The proxies whose `X-Forwarded-For` or `Forwarded` header is used, read from right to left
        /// while the hops are in this list. List only proxies that set the header themselves. Their
        /// connections have no limit by address, because all clients would share it.
        trusted_proxies: Vec<Network> = Vec::new();

        /// The proxies in front of the gRPC port. The limits by address of `[limits.grpc]` do not apply to
        /// them, because many clients share their addresses; their headers are not used. List only proxies:
        /// a client with such an address can use up a whole limit.
        grpc_proxies: Vec<Network> = Vec::new();

        /// The origins whose pages may subscribe by gRPC-Web, such as `https://app.example.com`, or "*" for
        /// all. Pages from this machine's loopback addresses always may. Others get 403, so that no other
        /// page can read events through its visitor's browser.
        web_origins: Vec<WebOrigin> = Vec::new();

        /// The file with the credentials of subscribers: hashes of tokens and names of client certificates.
        /// `prelude-bridge token create` writes it. Empty: credentials.toml in the data directory, if it
        /// exists. A running bridge applies changes within a second. Without a file and without `[jwt]`,
        /// subscribers need no credential and can connect only from this machine. If the file is named here
        /// or existed before, and is missing, nobody can subscribe. Only root and the bridge's user may be
        /// able to write it.
        credentials_file: Option<PathBuf> = None;

        /// Lets subscribers in without a credential, from everywhere. Events hold phone numbers and e-mail
        /// addresses: use this only in networks without other users. It is also the way back to a bridge
        /// without credentials.
        allow_anonymous: bool = false;

        /// What to do with a signed batch in which every date is older than ids are remembered
        /// (`retention.id_age_min`), once the log has forgotten an id: "refuse" or "accept". The sender has
        /// given up by then, so the batch is a copy, and the log may not recognise it. Refusals are logged
        /// and counted. Prelude retries a refused batch for two weeks: time to accept it, if old events are
        /// expected, such as those of an import.
        old_events: OldEvents = OldEvents::Refuse;

        /// The time that requests and streams have to finish after SIGTERM: more than the 8 s of a request,
        /// less than the 30 s after which container platforms end a process.
        drain_timeout: Duration = seconds(15), in seconds(0)..=seconds(3600);

        /// The form of log lines on stderr: "text" or "json".
        log_format: logging::Format = logging::Format::Text;

        /// The least severe level of log lines that are written: "error", "warn", "info", "debug" or "trace".
        log_level: logging::Level = logging::Level::Info;
    }
    with resolver {
        /// The store of the log.
        store: Store = store::take(resolver);
        /// The TLS certificates of the ports.
        tls: Tls = tls::take(resolver);
        /// The retention of events.
        retention: Retention = Retention::take(resolver);
        /// Limits of the webhook port.
        webhook_limits: WebhookLimits = WebhookLimits::take(resolver);
        /// Limits of the gRPC port.
        grpc_limits: GrpcLimits = GrpcLimits::take(resolver);

        /// The admin port.
        admin_limits: AdminLimits = AdminLimits::take(resolver);
        /// Limits of the events in memory.
        bus_limits: BusLimits = BusLimits::take(resolver);
        /// Limits of the log's queue.
        log_limits: LogLimits = LogLimits::take(resolver);
        /// Limits of the log lines about refusals.
        refusal_limits: RefusalLimits = RefusalLimits::take(resolver);
        /// The issuer of JWTs.
        jwt: Option<Jwt> = credentials::take_jwt(resolver);
        /// The apps, then the other sources of events. They are no settings: [`resolve`] adds them.
        sources: Vec<EventSource> = Vec::new();
    }
}

/// An origin as browsers send it: `https://app.example.com`, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin(pub String);

/// What becomes of batches that are too old to be recognised as repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldEvents {
    /// They are refused.
    Refuse,
    /// They are accepted, logged and counted.
    Accept,
}

/// A set of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedSource {
    /// The addresses that Prelude documents.
    Prelude,
    /// A network, or one address.
    Network(Network),
}

impl Config {
    /// The networks that may call the webhook port; empty means all.
    #[must_use]
    pub fn allowed_networks(&self) -> Vec<Network> {
        let networks = self.allowed_sources.iter().flat_map(|source| match source {
            AllowedSource::Prelude => source::PRELUDE.map(Network::single).to_vec(),
            AllowedSource::Network(network) => vec![*network],
        });
        networks.collect()
    }
}

/// A configuration with the origins of its values.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The validated configuration.
    pub config: Config,
    /// Every setting with its value and origin, for `config show`. Without the sources.
    pub settings: Vec<Setting>,
    /// Warnings: what may be a mistake but is valid.
    pub warnings: Vec<String>,
}

impl Default for Config {
    /// The configuration without any input: no source, and every default.
    fn default() -> Self {
        Self::take(&mut Resolver::new(&Sources::default()))
    }
}

/// The declarations of all settings, in the order of the example file.
pub fn declared() -> Vec<Declared> {
    let nothing = Sources::default();
    let mut resolver = Resolver::new(&nothing);
    Config::take(&mut resolver);
    let settings = resolver.settings.into_iter();
    settings.map(|setting| setting.declared).collect()
}

impl Sources {
    /// Removes the variables that set single settings and the kind and keys of a source, which would
    /// override the file and hide its faults. Variables that hold the tokens of apps remain, and the ids
    /// that say whose they are.
    #[must_use]
    pub fn without_setting_variables(mut self) -> Self {
        for declared in declared() {
            let name = variable_of(declared.name.key);
            self.environment.remove(OsStr::new(&name));
        }
        self.is_file_alone = true;
        event_sources::remove_variables_without_token(&mut self.environment);
        self
    }
}

impl Resolved {
    /// Returns the configuration if it has a source.
    ///
    /// # Errors
    /// No source is configured.
    pub fn servable(self) -> Result<Config, Error> {
        if !self.config.sources.is_empty() {
            return Ok(self.config);
        }
        Err(Error {
            faults: vec![Fault {
                origin: Origin::Default,
                message: "no app is configured and no other source, so no delivery can be accepted"
                    .to_owned(),
                help: "set `PRELUDE_BRIDGE_APP_ID` and `PRELUDE_BRIDGE_VERIFICATION_TOKEN`, or \
                       write an `[[apps]]` section with `id` and `verification_token_file` into a \
                       file and name it with `--config`; for Verify and Notify, write a \
                       `[[sources]]` section with `id`, `kind` and `pem_file`"
                    .to_owned(),
            }],
        })
    }
}

/// Resolves and validates the input.
///
/// # Errors
/// All faults of the input, in the order of the file.
pub fn resolve(sources: &Sources) -> Result<Resolved, Error> {
    let mut resolver = Resolver::new(sources);
    let mut config = Config::take(&mut resolver);
    config.sources = event_sources::take(&mut resolver, &config.data_dir);
    refuse_shared_addresses(&mut resolver, &config);
    store::refuse_short_retention(&mut resolver, &config);
    refuse_short_stream_age(&mut resolver, config.grpc_limits.stream_age_max);
    resolver.refuse_unknown_keys();
    let others = [&event_sources::VARIABLES[..], &store::VARIABLES].concat();
    let mut warnings = resolver.misspelt_variables(&others);
    warnings.extend(config.store.warning());
    Ok(Resolved {
        config,
        settings: resolver.finish()?,
        warnings,
    })
}

/// The sources, with or without a verification token: for the command that creates the tokens.
///
/// # Errors
/// A file that cannot be read, or invalid settings of sources.
pub fn planned_sources(sources: &Sources) -> Result<Vec<Planned>, Error> {
    let mut resolver = Resolver::only(sources, &["data_dir"]);
    let config = Config::take(&mut resolver);
    let planned = event_sources::planned(&mut resolver, &config.data_dir);
    resolver.finish()?;
    Ok(planned)
}

/// Two listeners cannot have one address. This fault names both keys, which a bind error does not.
fn refuse_shared_addresses(resolver: &mut Resolver<'_>, config: &Config) {
    let listeners = [
        ("webhook_listen", config.webhook_listen),
        ("grpc_listen", config.grpc_listen),
        ("admin_listen", config.admin_listen),
    ];
    for (index, (key, address)) in listeners.iter().enumerate() {
        let mut earlier = listeners.iter().take(index);
        let Some((other, _)) = earlier.find(|(_, other)| clash(*other, *address)) else {
            continue;
        };
        let origin = resolver.origin_of(key);
        let reason = format!("{address} is taken by `{other}`");
        resolver.refuse(origin, key, &reason, "give each listener a port of its own");
    }
}

/// Zero turns the age off, so the bounds of the setting allow it. Ages below a second would only keep clients
/// reconnecting.
fn refuse_short_stream_age(resolver: &mut Resolver<'_>, age_max: Duration) {
    if age_max.is_zero() || age_max >= seconds(1) {
        return;
    }
    let key = "limits.grpc.stream_age_max";
    let origin = resolver.origin_of(key);
    let reason = format!("{age_max:?} is too short: clients would do nothing but reconnect");
    let help = "use `0s`, which lets streams last for ever, or at least `1s`";
    resolver.refuse(origin, key, &reason, help);
}

fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let same_host =
        one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_host
}

const fn address(host: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(host), port)
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 60 * 60)
}

#[cfg(test)]
#[expect(clippy::too_many_lines, reason = "tables of cases")]
mod tests;
