//! The address of a store, as `store` says it: a word, or the URL of the servers of an engine. Owns the
//! grammar of these URLs. Opens no connection, and knows no other setting.
//!
//! A URL can contain a password or a token, in its proper place or, mistyped, in any other. So no message
//! repeats a part of a URL that has an `@` in it, and none repeats the value of a parameter.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::super::{
    secret::Secret,
    value::{Shape, Value, quoted},
};
use crate::nearest::nearest;

/// More servers than any cluster has for one stream.
pub(super) const HOSTS_MAX: usize = 16;
/// The longest name of a host (RFC 1035 section 2.3.4).
const HOST_CHARS_MAX: usize = 253;
/// The longest password or token. Tokens that an identity provider signs have some kilobytes.
pub(super) const SECRET_BYTES_MAX: usize = 8 << 10;
/// The longest identifier of PostgreSQL.
pub(super) const IDENTIFIER_BYTES_MAX: usize = 63;

const SCHEMES: [&str; 4] = ["nats", "tls", "postgres", "postgresql"];
const WORDS: [&str; 2] = ["embedded", "memory"];

/// What is left as it is when a name becomes part of a URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// What `store` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// Files in the data directory.
    Embedded,
    /// Memory only.
    Memory,
    /// The servers of an engine.
    Remote(Remote),
}

/// An engine that orders and keeps the events of several bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// NATS JetStream.
    Nats,
    /// PostgreSQL.
    Postgres,
}

/// A URL in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) engine: Engine,
    pub(super) hosts: Vec<Host>,
    /// The database of PostgreSQL.
    pub(super) database: Option<String>,
    /// Whether the URL asks for TLS or refuses it.
    pub(super) tls: Option<bool>,
    pub(super) user: Option<String>,
    /// The password of the user; without a user, the token.
    pub(super) secret: Option<Secret>,
}

/// A server of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name or IP address, without the brackets of an IPv6 address.
    pub name: String,
    /// Its port.
    pub port: u16,
}

impl Host {
    /// Whether it is this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let address = self.name.parse::<IpAddr>();
        let is_loopback = address.is_ok_and(|address| address.to_canonical().is_loopback());
        is_loopback || self.name.eq_ignore_ascii_case("localhost")
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port } = self;
        if name.contains(':') {
            write!(formatter, "[{name}]:{port}")
        } else {
            write!(formatter, "{name}:{port}")
        }
    }
}

impl Engine {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nats => "NATS JetStream",
            Self::Postgres => "PostgreSQL",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Nats => 4222,
            Self::Postgres => 5432,
        }
    }
}

/// The URL without its login.
impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match (self.engine, self.tls) {
            (Engine::Nats, Some(true)) => "tls://",
            (Engine::Nats, _) => "nats://",
            (Engine::Postgres, _) => "postgres://",
        })?;
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        formatter.write_str(&hosts.join(","))?;
        if let Some(database) = &self.database {
            write!(formatter, "/{}", utf8_percent_encode(database, ENCODED))?;
        }
        formatter.write_str(match (self.engine, self.tls) {
            (Engine::Postgres, Some(true)) => "?sslmode=verify-full",
            (Engine::Postgres, Some(false)) => "?sslmode=disable",
            _ => "",
        })
    }
}

impl Value for Address {
    const SHAPE: Shape = Shape::Text;
    const KIND: &'static str = "store";
    const HELP: &'static str = "write \"embedded\" (files in the data directory), \"memory\" (for \
                                trials, lost on exit), or the URL of NATS or PostgreSQL servers, such as \
                                \"nats://a:4222,b:4222\" or \"postgres://a:5432,b:5432/events\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "embedded" => Ok(Self::Embedded),
            "memory" => Ok(Self::Memory),
            "" => Err("it is empty".to_owned()),
            text => match text.split_once("://") {
                Some((scheme, rest)) => remote(scheme, rest).map(Self::Remote),
                // It is not repeated, because it may hold a password.
                None if text.contains([':', '/', '@']) => {
                    Err("it is neither a word for a store nor the whole URL of one".to_owned())
                }
                None => Err(format!("`{text}` is not a store{}", hint(text, &WORDS))),
            },
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Embedded => quoted("embedded"),
            Self::Memory => quoted("memory"),
            Self::Remote(remote) => quoted(&remote.to_string()),
        }
    }
}

fn hint(typed: &str, known: &[&str]) -> String {
    let near = nearest(typed, known.iter().copied());
    near.map(|near| format!(" (did you mean `{near}`?)"))
        .unwrap_or_default()
}

fn remote(scheme: &str, rest: &str) -> Result<Remote, String> {
    let lower = scheme.to_ascii_lowercase();
    let (engine, tls) = match lower.as_str() {
        "nats" => (Engine::Nats, None),
        "tls" => (Engine::Nats, Some(true)),
        "postgres" | "postgresql" => (Engine::Postgres, None),
        _ => return Err(unknown_scheme(&lower)),
    };
    // `nats://a,nats://b` is how NATS's own tools write several servers.
    let again = format!("{scheme}://");
    let pieces = rest
        .split(',')
        .map(|piece| piece.trim().strip_prefix(&again).unwrap_or(piece.trim()));
    let rest = pieces.collect::<Vec<_>>().join(",");
    if rest.contains("://") {
        return Err("its servers have different schemes".to_owned());
    }
    let has_login = rest.contains('@');
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if tail.contains('@') {
        return Err(
            "a character of its login has to be percent-encoded: `/` is %2F, `?` is %3F, `#` is %23"
                .to_owned(),
        );
    }
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, authority),
    };
    let (user, secret) = match login {
        Some(login) => parse_login(engine, login)?,
        None => (None, None),
    };
    let hosts = parse_hosts(engine, hosts, has_login)?;
    let (path, parameters) = split_tail(tail)?;
    let mut remote = Remote {
        engine,
        hosts,
        database: None,
        tls,
        user,
        secret,
    };
    match engine {
        Engine::Nats if path.is_empty() && parameters.is_none() => {}
        Engine::Nats => return Err("nothing can follow the servers of NATS".to_owned()),
        Engine::Postgres => {
            remote.database = parse_database(path)?;
            for parameter in parameters.unwrap_or_default().split('&') {
                parse_parameter(parameter, &mut remote.tls)?;
            }
        }
    }
    Ok(remote)
}

fn unknown_scheme(scheme: &str) -> String {
    let known = "known are `nats`, `tls`, `postgres` and `postgresql`";
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if scheme.len() > 16 || scheme.is_empty() || !scheme.chars().all(is_plain) {
        return format!("its scheme is not that of a store; {known}");
    }
    let hint = hint(scheme, &SCHEMES);
    format!("`{scheme}` is not the scheme of a store{hint}; {known}")
}

/// The user, and the password or token.
fn parse_login(engine: Engine, login: &str) -> Result<(Option<String>, Option<Secret>), String> {
    if login.contains(['@', ',']) {
        return Err(
            "an `@` or `,` of its login has to be percent-encoded (%40, %2C), and the login is written \
             once, before the first server"
                .to_owned(),
        );
    }
    let (user, secret) = match (login.split_once(':'), engine) {
        (Some((user, password)), _) => (user, password),
        (None, Engine::Nats) => ("", login),
        (None, Engine::Postgres) => (login, ""),
    };
    if user.is_empty() && (secret.is_empty() || login.contains(':')) {
        return Err("its login has no user".to_owned());
    }
    let [user, secret] = [user, secret].map(|text| decode(text).filter(|text| is_secret(text)));
    let (Some(user), Some(secret)) = (user, secret) else {
        return Err(format!(
            "its login is not UTF-8, has a control character in it, or is longer than \
             {SECRET_BYTES_MAX} bytes"
        ));
    };
    let secret = (!secret.is_empty()).then(|| Secret::new(secret));
    Ok(((!user.is_empty()).then_some(user), secret))
}

/// Whether a text can be a password or a token, if it is not empty.
pub(super) fn is_secret(text: &str) -> bool {
    text.len() <= SECRET_BYTES_MAX && !text.chars().any(char::is_control)
}

fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

fn parse_hosts(engine: Engine, text: &str, has_login: bool) -> Result<Vec<Host>, String> {
    let hosts: Vec<&str> = text.split(',').collect();
    if hosts.len() > HOSTS_MAX {
        return Err(format!("it has more than {HOSTS_MAX} servers"));
    }
    let hosts = hosts.into_iter().map(|text| {
        parse_host(text, engine.default_port()).ok_or_else(|| match text {
            "" => "the name of a server is missing".to_owned(),
            _ if has_login => {
                "one of its servers is not a host, or a host and a port".to_owned()
            }
            _ => format!(
                "`{text}` is not a host, or a host and a port; an IPv6 address is written in brackets"
            ),
        })
    });
    hosts.collect()
}

fn parse_host(text: &str, default_port: u16) -> Option<Host> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address.parse::<Ipv6Addr>().ok()?.to_string(), port)
        }
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let is_of_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            let fits = (1..=HOST_CHARS_MAX).contains(&name.len());
            if !fits || !name.chars().all(is_of_name) {
                return None;
            }
            (name.to_owned(), port)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
        None if port.is_empty() => default_port,
        None => return None,
    };
    (port != 0).then_some(Host { name, port })
}

/// The path without its slash, and the parameters.
fn split_tail(tail: &str) -> Result<(&str, Option<&str>), String> {
    if tail.contains('#') {
        return Err("it has a `#` in it, which a URL of a store has not".to_owned());
    }
    let (path, parameters) = match tail.split_once('?') {
        Some((path, parameters)) => (path, Some(parameters)),
        None => (tail, None),
    };
    Ok((path.strip_prefix('/').unwrap_or(path), parameters))
}

fn parse_database(path: &str) -> Result<Option<String>, String> {
    if path.is_empty() {
        return Ok(None);
    }
    let fits = |name: &String| {
        name.len() <= IDENTIFIER_BYTES_MAX && !name.contains('/') && is_secret(name)
    };
    let name = decode(path).filter(fits);
    name.map(Some).ok_or_else(|| {
        format!("its path is not the name of a database, of up to {IDENTIFIER_BYTES_MAX} bytes")
    })
}

/// Takes `sslmode`, the one parameter that has no setting of its own.
fn parse_parameter(parameter: &str, tls: &mut Option<bool>) -> Result<(), String> {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let setting = match name {
        "" => return Ok(()),
        "sslmode" => {
            *tls = Some(parse_sslmode(value)?);
            return Ok(());
        }
        "sslrootcert" => "tls_ca_file",
        "sslcert" => "tls_certificate_file",
        "sslkey" => "tls_key_file",
        "user" => "user",
        "password" | "passfile" => "password_file",
        _ => return Err("it has another parameter than `sslmode`".to_owned()),
    };
    Err(format!(
        "it has the parameter `{name}`: set `store.{setting}` instead"
    ))
}

/// libpq has modes in between, which encrypt without knowing to whom.
fn parse_sslmode(value: &str) -> Result<bool, String> {
    match value {
        "verify-full" => Ok(true),
        "disable" => Ok(false),
        _ => Err(
            "its `sslmode` is neither `verify-full`, which encrypts and verifies the server, nor \
             `disable`"
                .to_owned(),
        ),
    }
}

/// The name of a stream or a table.
macro_rules! names {
    ($($(#[doc = $doc:literal])+ $name:ident, $kind:literal, $help:literal, $fits:expr;)+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(super) struct $name(pub(super) String);

        impl Value for $name {
            const SHAPE: Shape = Shape::Text;
            const KIND: &'static str = $kind;
            const HELP: &'static str = $help;

            fn parse(text: &str) -> Result<Self, String> {
                let fits: fn(&str) -> bool = $fits;
                if !fits(text) {
                    return Err(format!(concat!("`{}` is not a ", $kind), text));
                }
                Ok(Self(text.to_owned()))
            }

            fn show(&self) -> String {
                quoted(&self.0)
            }
        }
    )+};
}
names! {
    /// A name that every file system and subject of NATS can have.
    StreamName, "name of a stream",
    "write 1 to 63 letters, digits, `-` and `_`, such as \"prelude-bridge\"",
    |text| {
        (1..=63).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    /// An identifier that needs no quotes, with or without its schema.
    TableName, "name of a table",
    "write lower-case letters, digits and `_`, not beginning with a digit, at most 48 characters, such \
     as \"prelude_bridge\"; a schema can be before it, as in \"events.prelude_bridge\"",
    |text| {
        let is_identifier = |part: &str| {
            (1..=48).contains(&part.len())
                && !part.starts_with(|c: char| c.is_ascii_digit())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        let parts: Vec<&str> = text.split('.').collect();
        parts.len() <= 2 && parts.iter().all(|part| is_identifier(part))
    };
}
