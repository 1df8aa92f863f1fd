//! The settings of the bridge: what they are, what they default to, and why. Each is declared in one
//! place, by the macro `settings!`; the example file and `docs/settings.md` are generated from that.
//!
//! What was typed ([`Sources`]) is kept apart from what it means ([`Config`]). [`resolve`] goes
//! from one to the other and reports every fault at once. Owns precedence, defaults, bounds and
//! messages; opens no socket, no log and no connection, and starts nothing.
//!
//! | file | owns |
//! |---|---|
//! | `declared`, `macros` | how a setting is declared, and what follows from it |
//! | `apps`, `app_checks` | the apps with their tokens and key sources |
//! | `credentials` | who may subscribe: the credentials file, the issuer of JWTs |
//! | `resolver` | flag before environment before file before default, and where each value is from |
//! | `value` | how each type of setting is read and shown |
//! | `file` | TOML into keys with lines |
//! | `tls` | which ports do TLS, and with what |
//! | `limits` | retention, and how much anybody may take of anything |
//! | `units` | durations and sizes as text |
//! | `fault`, `secret` | what is wrong, and what must not be seen |

mod app_checks;
mod apps;
mod credentials;
mod declared;
mod fault;
mod file;
mod limits;
mod macros;
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

pub use self::{
    apps::{
        APP_ID_CHARS_MAX, App, ID as APP_ID_VARIABLE, KeySource, Planned, TOKEN_CHARS_MAX,
        TokenSource, default_jwks_url, default_token_file,
    },
    credentials::{CredentialsSetup, Jwt, credentials_file, credentials_setup},
    declared::{Declared, Name, Section},
    fault::{Error, Fault, Origin},
    limits::{
        AdminLimits, BusLimits, GrpcLimits, LogLimits, RefusalLimits, Retention, WebhookLimits,
    },
    resolver::{ENVIRONMENT_PREFIX, Setting, Sources, variable_of},
    secret::Secret,
    tls::{GrpcTls, Tls, WebhookTls},
    units::{ByteSize, parse_duration, parse_size, show_duration},
};
use self::{macros::settings, resolver::Resolver};
use crate::{logging, net::network::Network, receiver::source};

/// The variable that names the file, for where `--config` cannot be given.
pub const CONFIG_VARIABLE: &str = "PRELUDE_BRIDGE_CONFIG";

settings! {
    /// Every setting, checked.
    pub struct Config in "" {
        /// Where Prelude's deliveries arrive. They come from outside, through your proxy or directly.
        webhook_listen: SocketAddr = address(Ipv4Addr::UNSPECIFIED, 8080);

        /// Where subscribers connect. Only from this machine, until you decide otherwise.
        grpc_listen: SocketAddr = address(Ipv4Addr::LOCALHOST, 50051);

        /// Where `/healthz`, `/readyz` and `/metrics` are served. Only from this machine, likewise.
        admin_listen: SocketAddr = address(Ipv4Addr::LOCALHOST, 9090);

        /// Where the log and the last good key sets are kept. It has to be a disk that stays.
        data_dir: PathBuf = PathBuf::from("./data");

        /// Which addresses may speak to the webhook port: networks, and "prelude" for the three addresses
        /// that Prelude documents. Others get 403. Nothing here means everybody: the signature decides
        /// anyhow. Behind a proxy this needs `trusted_proxies`, or all requests seem to come from the proxy.
        allowed_sources: Vec<AllowedSource> = Vec::new();

        /// The proxies whose `X-Forwarded-For` or `Forwarded` header is believed, read from right to left
        /// as far as the hops are in this list. List only proxies that set the header themselves. Their
        /// connections have no limit by address either: it would be one for all clients together.
        trusted_proxies: Vec<Network> = Vec::new();

        /// The proxies in front of the gRPC port. Nothing they say is believed; but many clients share
        /// their addresses, so the limits by address of `[limits.grpc]` do not hold for them. List only
        /// proxies: who comes from such an address can take all there is.
        grpc_proxies: Vec<Network> = Vec::new();

        /// The sites whose pages may subscribe by gRPC-Web, as browsers name them, such as
        /// `https://app.example.com`, or "*" for all. Pages that this machine serves to itself always may.
        /// Anything else gets 403, so that no stranger's page reads events through its visitor's browser.
        web_origins: Vec<WebOrigin> = Vec::new();

        /// Who may subscribe: the file with the hashes of tokens and the names of client certificates,
        /// which `prelude-bridge token create` makes. Empty: credentials.toml in the data directory, if
        /// there is one. A running bridge sees changes within a second. Without a file, and without
        /// `[jwt]`, subscribers need nothing, and may connect only from this machine. But a file that is
        /// named here, or that was there before, and is missing lets nobody in. Nobody but root and the
        /// bridge's user may write it.
        credentials_file: Option<PathBuf> = None;

        /// Let subscribers in without a credential, from everywhere. What they get are people's phone
        /// numbers and e-mail addresses: only for networks that nobody else is in. It is also the way back
        /// to a bridge without credentials after it had some.
        allow_anonymous: bool = false;

        /// What keeps the events: "embedded" (files in the data directory) or "memory" (for trials; lost
        /// on exit).
        store: Store = Store::Embedded;

        /// How long requests and streams may take to finish after SIGTERM. Longer than a request's 8 s,
        /// shorter than the 30 s after which container platforms kill.
        drain_timeout: Duration = seconds(15), in seconds(0)..=seconds(3600);

        /// How log lines are written on stderr: "text" or "json".
        log_format: logging::Format = logging::Format::Text;

        /// The least severe log lines that are written: "error", "warn", "info", "debug" or "trace".
        log_level: logging::Level = logging::Level::Info;
    }
    with resolver {
        /// Which ports do TLS.
        tls: Tls = tls::take(resolver);
        /// How long events are kept.
        retention: Retention = Retention::take(resolver);
        /// Limits of the webhook port.
        webhook_limits: WebhookLimits = WebhookLimits::take(resolver);
        /// Limits of the gRPC port.
        grpc_limits: GrpcLimits = GrpcLimits::take(resolver);

        /// The admin port.
        admin_limits: AdminLimits = AdminLimits::take(resolver);
        /// Limits of the events held in memory.
        bus_limits: BusLimits = BusLimits::take(resolver);
        /// Limits of the log's queue.
        log_limits: LogLimits = LogLimits::take(resolver);
        /// Limits of the log lines about refusals.
        refusal_limits: RefusalLimits = RefusalLimits::take(resolver);
        /// Whose JWTs are taken.
        jwt: Option<Jwt> = credentials::take_jwt(resolver);
        /// Whose deliveries are taken. They are no settings: [`resolve`] adds them.
        apps: Vec<App> = Vec::new();
    }
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

/// Some addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedSource {
    /// Those that Prelude documents as its own.
    Prelude,
    /// A network, or one address.
    Network(Network),
}

impl Config {
    /// The networks that may speak to the webhook port; all, if there are none.
    #[must_use]
    pub fn allowed_networks(&self) -> Vec<Network> {
        let networks = self.allowed_sources.iter().flat_map(|source| match source {
            AllowedSource::Prelude => source::PRELUDE.map(Network::single).to_vec(),
            AllowedSource::Network(network) => vec![*network],
        });
        networks.collect()
    }
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
        Self::take(&mut Resolver::new(&Sources::default()))
    }
}

/// Every setting as it is declared, in the order of the example file.
pub fn declared() -> Vec<Declared> {
    let nothing = Sources::default();
    let mut resolver = Resolver::new(&nothing);
    Config::take(&mut resolver);
    let settings = resolver.settings.into_iter();
    settings.map(|setting| setting.declared).collect()
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
/// Everything that is wrong with what was typed, in the order of the file.
pub fn resolve(sources: &Sources) -> Result<Resolved, Error> {
    let mut resolver = Resolver::new(sources);
    let mut config = Config::take(&mut resolver);
    config.apps = app_checks::take(&mut resolver, &config.data_dir);
    refuse_shared_addresses(&mut resolver, &config);
    resolver.refuse_unknown_keys();
    let warnings = resolver.misspelt_variables(&apps::VARIABLES);
    Ok(Resolved {
        config,
        settings: resolver.finish()?,
        warnings,
    })
}

/// The apps that were typed, with tokens or without: for the command that makes the tokens.
///
/// # Errors
/// A file that cannot be read, or invalid settings of apps.
pub fn planned_apps(sources: &Sources) -> Result<Vec<Planned>, Error> {
    let mut resolver = Resolver::only(sources, &["data_dir"]);
    let config = Config::take(&mut resolver);
    let planned = apps::planned(&mut resolver, &config.data_dir);
    resolver.finish()?;
    Ok(planned)
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
#[expect(clippy::too_many_lines, reason = "tables of cases")]
mod tests;
