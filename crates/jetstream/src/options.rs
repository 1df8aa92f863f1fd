//! Owns what is configured: servers, login, TLS, and the stream; and the subjects that follow from it.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use prelude_bridge_log::sequencer::Secret;

use crate::error::OpenError;

/// How long the name of a stream may be: it is a part of every subject.
const STREAM_BYTES_MAX: usize = 64;
/// JetStream has no more replicas of a stream.
const REPLICAS_MAX: usize = 5;

/// Where the stream is, and how it must be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The servers, as `nats://host:port` or `tls://host:port`. More servers of the cluster are learned from
    /// those that answer.
    pub servers: Vec<String>,
    /// The name of the stream.
    pub stream: String,
    /// Whether the stream is created if it is missing; otherwise that is refused.
    pub create: bool,
    /// On how many servers each commit is stored before it is acknowledged: at least.
    pub replicas: usize,
    /// Who the bridge is to NATS.
    pub login: Login,
    /// TLS, also where the scheme is `nats`.
    pub tls: Option<Tls>,
    /// How long a new stream keeps commits; zero is for ever.
    pub retention_age: Duration,
    /// How many bytes a new stream keeps; zero is without a limit.
    pub retention_bytes: u64,
    /// How long the ids of events must be remembered: the stream has to keep commits at least as long.
    pub ids_age: Duration,
}

/// Who the bridge is to NATS. `Debug` shows no secret.
#[derive(Clone, Default)]
pub enum Login {
    /// Nobody, or whoever the client certificate names.
    #[default]
    None,
    /// A `.creds` file (JWT and seed), or a file with the seed of a user's NKey. It is read at the start.
    CredentialsFile(PathBuf),
    /// A token.
    Token(Secret),
    /// A user with a password.
    Password {
        /// The name of the user.
        user: String,
        /// The password.
        password: Secret,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("None"),
            Self::CredentialsFile(path) => formatter
                .debug_tuple("CredentialsFile")
                .field(path)
                .finish(),
            Self::Token(_) => formatter.write_str("Token(…)"),
            Self::Password { user, .. } => formatter
                .debug_struct("Password")
                .field("user", user)
                .finish_non_exhaustive(),
        }
    }
}

/// How the servers and the bridge prove who they are. The files are read at each connection.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The certificates (PEM) of the authorities that sign the servers'; without, those of the system.
    pub authority: Option<PathBuf>,
    /// The certificate of the bridge and its key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// What the stream and its parts are called.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) stream: String,
    /// The only subject of the stream.
    pub(crate) commits: String,
    /// For messages: `the stream prelude-bridge of NATS at host:4222`.
    pub(crate) whole: Arc<str>,
}

impl Names {
    pub(crate) fn new(options: &Options) -> Self {
        let servers: Vec<_> = options.servers.iter().map(|url| place(url)).collect();
        let (stream, servers) = (options.stream.clone(), servers.join(", "));
        Self {
            commits: format!("prelude-bridge.{stream}.commits"),
            whole: format!("the stream {stream} of NATS at {servers}").into(),
            stream,
        }
    }

    /// Where a bridge is asked.
    pub(crate) fn peer(&self, number: impl fmt::Display) -> String {
        format!("prelude-bridge.{}.peer.{number}", self.stream)
    }
}

/// What of a URL is not its scheme.
pub(crate) fn place(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, place)| place)
}

impl Options {
    /// Refuses what no server could make true.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let invalid = |what: String| Err(OpenError::Options(what));
        if self.servers.is_empty() {
            return invalid("there is no server: name one, as nats://host:4222".to_owned());
        }
        for url in &self.servers {
            // A password in it would be shown wherever the URL is.
            if url.contains('@') {
                return invalid(
                    "the URL of a server has a user or a password: configure them as the login"
                        .to_owned(),
                );
            }
            let scheme = url.split_once("://").map(|(scheme, _)| scheme);
            let is_address =
                url.parse::<async_nats::ServerAddr>().is_ok() && !place(url).is_empty();
            if !matches!(scheme, Some("nats" | "tls")) || !is_address || place(url).contains('/') {
                return invalid(format!(
                    "`{url}` is no URL of a server: write nats://host:4222 or tls://host:4222"
                ));
            }
        }
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if self.stream.is_empty()
            || self.stream.len() > STREAM_BYTES_MAX
            || !self.stream.chars().all(letters)
        {
            return invalid(format!(
                "`{}` cannot be the name of a stream: use up to {STREAM_BYTES_MAX} letters, digits, \
                 `-` and `_`",
                self.stream.escape_debug()
            ));
        }
        if !(1..=REPLICAS_MAX).contains(&self.replicas) {
            return invalid(format!(
                "{} replicas are not possible: JetStream has 1 to {REPLICAS_MAX}; 3 survive the loss of \
                 one server",
                self.replicas
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) fn test_options() -> Options {
    Options {
        servers: vec!["nats://127.0.0.1:4222".to_owned()],
        create: true,
        stream: "prelude-bridge".to_owned(),
        replicas: 3,
        login: Login::None,
        tls: None,
        retention_age: Duration::from_secs(30 * 86_400),
        retention_bytes: 10 << 30,
        ids_age: Duration::from_secs(15 * 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut Options)) -> String {
        let mut options = test_options();
        change(&mut options);
        options.check().unwrap_err().to_string()
    }

    #[test]
    fn what_no_server_can_make_true_is_refused() {
        assert!(test_options().check().is_ok());
        assert!(refused(|o| o.servers.clear()).contains("nats://host:4222"));
        for url in [
            "localhost:4222",
            "http://h:1",
            "ws://h:1",
            "nats://",
            "nats://:4222",
            "nats://h:1/path",
            "nats://h:x",
        ] {
            let said = refused(|o| o.servers.push(url.to_owned()));
            assert!(said.contains(url), "{said}");
        }
        for name in ["", "a b", "a.b", "a*", "a>", "a/b", "é", &"x".repeat(65)] {
            refused(|o| o.stream = name.to_owned());
        }
        let longest = "x".repeat(64);
        let options = Options {
            stream: longest,
            replicas: 5,
            ..test_options()
        };
        assert!(options.check().is_ok());
        refused(|o| o.replicas = 0);
        refused(|o| o.replicas = 6);
    }

    #[test]
    fn a_password_is_never_shown() {
        let said = refused(|o| o.servers = vec!["nats://me:canary@h:1".to_owned()]);
        assert!(said.contains("login") && !said.contains("canary"), "{said}");
        for login in [
            Login::Token(Secret::new("canary")),
            Login::Password {
                user: "me".to_owned(),
                password: Secret::new("canary"),
            },
        ] {
            let shown = format!(
                "{:?}",
                Options {
                    login,
                    ..test_options()
                }
            );
            assert!(!shown.contains("canary"), "{shown}");
        }
    }
}
