//! The settings of the bridge: what they are, what they default to, and why.
//!
//! What was typed ([`Sources`]) is kept apart from what it means ([`Config`]). [`resolve`] goes
//! from one to the other and reports every fault at once. Owns precedence, defaults, bounds and
//! messages; opens no socket, no log and no connection, and starts nothing.
//!
//! | file | owns |
//! |---|---|
//! | `apps`, `app_checks` | the apps with their tokens and key sources |
//! | `credentials` | who may subscribe: the credentials file, the issuer of JWTs |
//! | `resolver` | flag before environment before file before default, and where each value is from |
//! | `value` | how each type of setting is read and shown |
//! | `file` | TOML into keys with lines |
//! | `tls` | which ports do TLS, and with what |
//! | `limits` | how much anybody may take of anything |
//! | `units` | durations and sizes as text |
//! | `fault`, `secret` | what is wrong, and what must not be seen |

mod app_checks;
mod apps;
mod credentials;
mod fault;
mod file;
mod limits;
mod resolver;
mod secret;
mod show;
mod tls;
mod units;
mod value;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use self::resolver::Resolver;
pub use self::{
    apps::{
        APP_ID_CHARS_MAX, App, ID as APP_ID_VARIABLE, KeySource, Planned, TOKEN_CHARS_MAX,
        TokenSource, default_jwks_url, default_token_file,
    },
    credentials::{Credentials, CredentialsSetup, Jwt, credentials_file, credentials_setup},
    fault::{Error, Fault, Origin},
    limits::{BusLimits, GrpcLimits, LogLimits, RefusalLimits, WebhookLimits},
    resolver::{ENVIRONMENT_PREFIX, Setting, Sources, variable_of},
    secret::Secret,
    tls::{GrpcTls, Tls, WebhookTls},
    units::{ByteSize, parse_duration, parse_size, show_duration},
};
use crate::{logging, net::network::Network, receiver::source};

/// The variable that names the file, for where `--config` cannot be given.
pub const CONFIG_VARIABLE: &str = "PRELUDE_BRIDGE_CONFIG";

/// Every setting, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where Prelude's deliveries arrive. Default `0.0.0.0:8080`: they come from outside.
    pub webhook_listen: SocketAddr,
    /// Where subscribers connect. Default `127.0.0.1:50051`: nobody outside until that is decided.
    pub grpc_listen: SocketAddr,
    /// Where health and metrics are served. Default `127.0.0.1:9090`, for the same reason.
    pub admin_listen: SocketAddr,
    /// Where the log and the last good key sets are kept. Default `./data`.
    pub data_dir: PathBuf,
    /// What keeps the events. Default embedded: durable with nothing else to run.
    pub store: Store,
    /// Whose deliveries are taken.
    pub apps: Vec<App>,
    /// Which addresses may speak to the webhook port. Default all: signatures decide.
    pub allowed_sources: AllowedSources,
    /// The proxies whose `X-Forwarded-For` or `Forwarded` is believed. Default none.
    pub trusted_proxies: Vec<Network>,
    /// The proxies before the gRPC port, whose addresses many clients share. Default none.
    pub grpc_proxies: Vec<Network>,
    /// The sites whose pages may subscribe by gRPC-Web, beside those of this machine.
    pub web_origins: Vec<WebOrigin>,
    /// Who may subscribe.
    pub credentials: Credentials,
    /// How long requests and streams may take to finish after SIGTERM. Default 15 s: above a
    /// request's 8 s, below the 30 s that container platforms wait before they kill.
    pub drain_timeout: Duration,
    /// Which ports do TLS. Default none.
    pub tls: Tls,
    /// How the program logs.
    pub logging: logging::Options,
    /// How long events are kept.
    pub retention: Retention,
    /// Limits of the webhook port.
    pub webhook_limits: WebhookLimits,
    /// Limits of the gRPC port.
    pub grpc_limits: GrpcLimits,
    /// Limits of the events held in memory.
    pub bus_limits: BusLimits,
    /// Limits of the log's queue.
    pub log_limits: LogLimits,
    /// Limits of the log lines about refusals.
    pub refusal_limits: RefusalLimits,
}

/// A site, as a browser names it: `https://app.example.com`, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin(pub String);

/// What keeps the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Files in the data directory.
    Embedded,
    /// Nothing but memory: for trials and tests.
    Memory,
}

/// Which addresses may speak to the webhook port; all, if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedSources(pub Vec<AllowedSource>);

/// Some addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedSource {
    /// Those that Prelude documents as its own.
    Prelude,
    /// A network, or one address.
    Network(Network),
}

impl AllowedSources {
    /// The networks they come to.
    #[must_use]
    pub fn networks(&self) -> Vec<Network> {
        let networks = self.0.iter().flat_map(|source| match source {
            AllowedSource::Prelude => source::PRELUDE.map(Network::single).to_vec(),
            AllowedSource::Network(network) => vec![*network],
        });
        networks.collect()
    }
}

/// How long events are kept; whichever limit is reached first trims the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Events older than this are trimmed. Default 30 days.
    pub age_max: Duration,
    /// The oldest events are trimmed while the log is larger. Default 10 GiB.
    pub bytes_max: ByteSize,
    /// How long the ids of events are remembered whatever happens to the events. Default and
    /// minimum 15 days: the sender retries for two weeks, and a retry must not become new.
    pub id_age_min: Duration,
}

/// A configuration and how it came about.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What it means.
    pub config: Config,
    /// Every setting with its value and origin, for showing. Apps are not among them.
    pub settings: Vec<Setting>,
    /// What looks odd without being wrong.
    pub warnings: Vec<String>,
}

impl Default for Config {
    /// What holds when nothing is typed: no app, and every default.
    fn default() -> Self {
        build(&mut Resolver::new(&Sources::default()))
    }
}

impl Resolved {
    /// The configuration, if there is something to serve.
    ///
    /// # Errors
    /// No app is configured.
    pub fn servable(self) -> Result<Config, Error> {
        if !self.config.apps.is_empty() {
            return Ok(self.config);
        }
        Err(Error {
            faults: vec![Fault {
                origin: Origin::Default,
                message: "no app is configured, so there is nobody whose events to take".to_owned(),
                help: "set `PRELUDE_BRIDGE_APP_ID` and `PRELUDE_BRIDGE_VERIFICATION_TOKEN`, or \
                       write an `[[apps]]` section with `id` and `verification_token_file` into a \
                       file and name it with `--config`"
                    .to_owned(),
            }],
        })
    }
}

/// Goes from what was typed to what it means.
///
/// # Errors
/// Anything that was typed and cannot be meant: all of it, in the order of the file.
pub fn resolve(sources: &Sources) -> Result<Resolved, Error> {
    let mut resolver = Resolver::new(sources);
    let config = build(&mut resolver);
    refuse_shared_addresses(&mut resolver, &config);
    resolver.refuse_unknown_keys();
    if !resolver.faults.is_empty() {
        let mut faults = resolver.faults;
        // Stable, so that faults of one line stay in the order they were found in.
        faults.sort_by(|left, right| left.origin.cmp(&right.origin));
        return Err(Error { faults });
    }
    let warnings = resolver.misspelt_variables(&apps::VARIABLES);
    Ok(Resolved {
        config,
        settings: resolver.settings,
        warnings,
    })
}

/// The apps that were typed, with tokens or without: for the command that makes the tokens.
///
/// # Errors
/// A file that cannot be read, or that says something of apps that cannot be meant.
pub fn planned_apps(sources: &Sources) -> Result<Vec<Planned>, Error> {
    let mut resolver = Resolver::new(sources);
    let data_dir = resolver.take_path(DATA_DIR.0, DATA_DIR.1);
    let planned = apps::planned(&mut resolver, &data_dir);
    let faults = resolver.faults;
    if faults.is_empty() {
        Ok(planned)
    } else {
        Err(Error { faults })
    }
}

/// The key of the data directory and its default.
const DATA_DIR: (&str, &str) = ("data_dir", "./data");

/// The one place that says which settings there are, in the order of the example file.
fn build(take: &mut Resolver<'_>) -> Config {
    let webhook_listen = take.take("webhook_listen", address(Ipv4Addr::UNSPECIFIED, 8080));
    let grpc_listen = take.take("grpc_listen", address(Ipv4Addr::LOCALHOST, 50051));
    let admin_listen = take.take("admin_listen", address(Ipv4Addr::LOCALHOST, 9090));
    let data_dir = take.take_path(DATA_DIR.0, DATA_DIR.1);
    let allowed_sources = take.take("allowed_sources", AllowedSources::default());
    let trusted_proxies = take.take("trusted_proxies", Vec::new());
    let grpc_proxies = take.take("grpc_proxies", Vec::new());
    let web_origins = take.take("web_origins", Vec::new());
    let credentials = credentials::take(take);
    Config {
        webhook_listen,
        grpc_listen,
        admin_listen,
        store: take.take("store", Store::Embedded),
        drain_timeout: take.take_in("drain_timeout", seconds(15), seconds(0)..=seconds(3600)),
        logging: logging::Options {
            format: take.take("log_format", logging::Format::Text),
            level: take.take("log_level", logging::Level::Info),
        },
        tls: tls::take(take),
        retention: Retention {
            age_max: take.take_in("retention.age_max", days(30), days(1)..=days(36_500)),
            bytes_max: take.take_in(
                "retention.bytes_max",
                ByteSize::gib(10),
                ByteSize::mib(1)..=ByteSize::gib(1 << 20),
            ),
            id_age_min: take.take_in("retention.id_age_min", days(15), days(15)..=days(36_500)),
        },
        webhook_limits: limits::webhook(take),
        grpc_limits: limits::grpc(take),
        bus_limits: limits::bus(take),
        log_limits: limits::log(take),
        refusal_limits: limits::refusals(take),
        credentials: Credentials {
            jwt: credentials::take_jwt(take),
            ..credentials
        },
        apps: app_checks::take(take, &data_dir),
        data_dir,
        allowed_sources,
        trusted_proxies,
        grpc_proxies,
        web_origins,
    }
}

/// Two listeners cannot have one address; said here, with both keys, rather than by a bind error.
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
mod tests;
