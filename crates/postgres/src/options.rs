//! Owns where the database is, and how to get there: options, and the URL that has them. Knows nothing of
//! connections.

use std::{borrow::Cow, fmt, net::IpAddr, path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;

use crate::OpenError;

/// The name of the table, when none is given.
pub const TABLE: &str = "prelude_bridge_log";

/// How long commits are kept at least, when nothing else is said: as long as ids are remembered.
pub const IDS_AGE: Duration = Duration::from_secs(15 * 24 * 60 * 60);

const PORT: u16 = 5432;

/// PostgreSQL cuts longer names.
const NAME_BYTES_MAX: usize = 63;

const PARAMETERS: &str =
    "sslmode, sslrootcert, sslcert, sslkey, application_name, target_session_attrs";

/// A password. Printing it prints a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to be sent only.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(redacted)")
    }
}

/// Whether connections are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// They are not.
    Off,
    /// They are, and the server's certificate has to be valid for the host's name.
    Required {
        /// The file of the issuers that are trusted, in PEM; those of the system otherwise.
        authority: Option<PathBuf>,
        /// The files of the certificate that is shown and of its key, in PEM.
        certificate: Option<(PathBuf, PathBuf)>,
    },
}

/// Where a URL was written, which decides whether a password may stand in it: everybody on the machine can
/// read the flags of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlSource {
    /// A flag of the command line.
    Flag,
    /// The environment or a file.
    Environment,
}

/// Where the database is, and what is expected of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The servers: names, addresses or directories of Unix sockets, with their ports. Several: whichever is
    /// the primary.
    pub hosts: Vec<(String, u16)>,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// Its password, where the server asks for one.
    pub password: Option<Secret>,
    /// The table, with its schema (`events.log`) or where the role's `search_path` leads.
    pub table: String,
    /// Whether connections are encrypted.
    pub tls: TlsMode,
    /// Whether a server without a synchronous standby is refused; otherwise it is a warning.
    pub require_standby: bool,
    /// Younger commits than this are not removed, whatever is asked for: a bridge that rebuilds its replica
    /// needs the ids in them.
    pub ids_age: Duration,
}

impl Options {
    /// Takes `postgres://user@host[:port][,host2[:port]…]/database[?parameters]`. The scheme `postgresql` and
    /// the parameters mean what they mean to libpq, except that a certificate is never used unchecked:
    /// `sslmode` is `disable` or `verify-full`, and `require` and `verify-ca` mean the latter. Without it,
    /// connections are encrypted unless all hosts are this machine.
    ///
    /// # Errors
    /// [`OpenError::Options`], without the password.
    pub fn parse_url(url: &str, source: UrlSource) -> Result<Self, OpenError> {
        parse(url, source).map_err(OpenError::Options)
    }

    /// The table, quoted for a statement.
    pub(crate) fn quoted_table(&self) -> String {
        let names: Vec<_> = self
            .table
            .split('.')
            .map(|name| format!("\"{name}\""))
            .collect();
        names.join(".")
    }

    /// What the server is called in messages.
    pub(crate) fn name(&self) -> String {
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|(host, port)| address(host, *port))
            .collect();
        format!(
            "the table {} in the database {} of PostgreSQL at {}",
            self.table,
            self.database,
            hosts.join(", ")
        )
    }

    /// What cannot be right, before anything is connected.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.hosts.is_empty() || self.hosts.iter().any(|(host, _)| host.is_empty()) {
            return Err("name the host of PostgreSQL: postgres://user@host/database".to_owned());
        }
        if self.user.is_empty() {
            return Err("name the role of PostgreSQL: postgres://user@host/database".to_owned());
        }
        if self.database.is_empty() {
            return Err("name the database: postgres://user@host/database".to_owned());
        }
        let names: Vec<_> = self.table.split('.').collect();
        if names.len() > 2 || !names.iter().all(|name| is_name(name)) {
            return Err(format!(
                "{:?} is no name of a table: it has lower-case letters, digits and underscores, and \
                 may have a schema before it (events.log)",
                self.table
            ));
        }
        let socket = self.hosts.iter().find(|(host, _)| host.starts_with('/'));
        match (socket, &self.tls) {
            (Some((host, _)), TlsMode::Required { .. }) => Err(format!(
                "there is no TLS on the socket in {host}: write sslmode=disable"
            )),
            _ => Ok(()),
        }
    }
}

/// Whether a host is this machine.
pub(crate) fn is_local(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.starts_with('/') || host.eq_ignore_ascii_case("localhost"),
    }
}

/// A host and port as people write them.
pub(crate) fn address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// No name needs quotes that PostgreSQL would write without, so that it means the same everywhere.
fn is_name(name: &str) -> bool {
    let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    begins
        && name.len() <= NAME_BYTES_MAX
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn parse(url: &str, source: UrlSource) -> Result<Options, String> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or("a URL of PostgreSQL begins with postgres://")?;
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    // Nothing is repeated that may be a piece of a password.
    let Some((credentials, place)) = rest.rsplit_once('@') else {
        return Err(if parameters.contains('@') {
            "there is a ? before the @ of the URL: in a password write it as %3F".to_owned()
        } else {
            "name the role of PostgreSQL: postgres://user@host/database".to_owned()
        });
    };
    let (user, password) = match credentials.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (credentials, None),
    };
    let password = match (password, source) {
        (None, _) => None,
        (Some(password), UrlSource::Environment) => Some(Secret(decode(password, "the password")?)),
        (Some(_), UrlSource::Flag) => {
            return Err(
                "there is a password in the URL, where everybody on this machine can read \
                        it: leave it out, and give it by the environment or a file"
                    .to_owned(),
            );
        }
    };
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    let hosts: Vec<_> = hosts.split(',').map(host).collect::<Result<_, _>>()?;
    let tls = tls(parameters, hosts.iter().all(|(host, _)| is_local(host)))?;
    let options = Options {
        hosts,
        database: decode(database, "the database")?,
        user: decode(user, "the user")?,
        password,
        table: TABLE.to_owned(),
        tls,
        require_standby: false,
        ids_age: IDS_AGE,
    };
    options.check()?;
    Ok(options)
}

fn host(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest
                .split_once(']')
                .ok_or_else(|| format!("{text}: the address of IPv6 has no end: ]"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(format!("{text} is no host and port")),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => PORT,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(format!("{port:?} is no port of {host:?}")),
        },
    };
    Ok((decode(host, "the host")?, port))
}

fn tls(parameters: &str, local: bool) -> Result<TlsMode, String> {
    let (mut mode, mut authority, mut certificate, mut key) = (None, None, None, None);
    for parameter in parameters
        .split('&')
        .filter(|parameter| !parameter.is_empty())
    {
        let (name, value) = parameter
            .split_once('=')
            .ok_or_else(|| format!("the parameter {parameter:?} has no value"))?;
        let value = decode(value, name)?;
        match name {
            "sslmode" => mode = Some(value),
            "sslrootcert" => authority = Some(PathBuf::from(value)),
            "sslcert" => certificate = Some(PathBuf::from(value)),
            "sslkey" => key = Some(PathBuf::from(value)),
            "application_name" => {}
            "target_session_attrs" if matches!(&*value, "read-write" | "primary") => {}
            "target_session_attrs" => {
                return Err(format!(
                    "target_session_attrs={value}: it is always the primary that is used"
                ));
            }
            "password" => return Err("write no password among the parameters".to_owned()),
            _ => {
                return Err(format!("there is no parameter {name:?}, only {PARAMETERS}"));
            }
        }
    }
    let files = authority.is_some() || certificate.is_some() || key.is_some();
    let encrypted = match mode.as_deref() {
        None => files || !local,
        Some("disable") if files => {
            return Err("there are files for TLS, and sslmode=disable".to_owned());
        }
        Some("disable") => false,
        Some("require" | "verify-ca" | "verify-full") => true,
        Some(mode @ ("allow" | "prefer")) => {
            return Err(format!(
                "sslmode={mode} would send events in plain text when the server wants it: write \
                 verify-full or disable"
            ));
        }
        Some(mode) => return Err(format!("sslmode={mode}: write verify-full or disable")),
    };
    if !encrypted {
        return Ok(TlsMode::Off);
    }
    let certificate = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => return Err("sslcert and sslkey belong together".to_owned()),
    };
    Ok(TlsMode::Required {
        authority,
        certificate,
    })
}

fn decode(text: &str, what: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Cow::into_owned)
        .map_err(|_| format!("{what} in the URL is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Options {
        Options::parse_url(url, UrlSource::Flag).unwrap()
    }

    fn refused(url: &str) -> String {
        let error = Options::parse_url(url, UrlSource::Flag).unwrap_err();
        assert!(matches!(error, OpenError::Options(_)));
        error.to_string()
    }

    #[test]
    fn a_url_has_hosts_ports_user_and_database() {
        let options =
            parsed("postgres://us%40er@one:5433,two,[::1]:7,%2Frun%2Fpg/d%20b?sslmode=disable");
        let hosts: Vec<_> = options
            .hosts
            .iter()
            .map(|(host, port)| (&**host, *port))
            .collect();
        assert_eq!(
            hosts,
            [("one", 5433), ("two", 5432), ("::1", 7), ("/run/pg", 5432)]
        );
        assert_eq!((&*options.user, &*options.database), ("us@er", "d b"));
        assert_eq!((&*options.table, options.ids_age), (TABLE, IDS_AGE));
        assert_eq!(
            options.name(),
            "the table prelude_bridge_log in the database d b of PostgreSQL at one:5433, two:5432, \
             [::1]:7, /run/pg:5432"
        );
        assert_eq!(parsed("postgresql://u@localhost/d").database, "d");
    }

    #[test]
    fn connections_are_encrypted_unless_all_hosts_are_this_machine_or_it_is_switched_off() {
        let required =
            |authority: Option<&str>, certificate: Option<(&str, &str)>| TlsMode::Required {
                authority: authority.map(PathBuf::from),
                certificate: certificate.map(|(one, two)| (one.into(), two.into())),
            };
        for (url, mode) in [
            ("postgres://u@127.0.0.1,localhost,[::1]/d", TlsMode::Off),
            ("postgres://u@[::ffff:127.0.0.1]/d", TlsMode::Off),
            ("postgres://u@db/d?sslmode=disable", TlsMode::Off),
            ("postgres://u@localhost,db/d", required(None, None)),
            (
                "postgres://u@localhost/d?sslmode=require",
                required(None, None),
            ),
            (
                "postgres://u@localhost/d?sslmode=verify-ca",
                required(None, None),
            ),
            (
                "postgres://u@localhost/d?sslrootcert=%2Fa.crt",
                required(Some("/a.crt"), None),
            ),
            (
                "postgres://u@db/d?sslcert=c&sslkey=k&application_name=x&target_session_attrs=primary",
                required(None, Some(("c", "k"))),
            ),
        ] {
            assert_eq!(parsed(url).tls, mode, "{url}");
        }
    }

    #[test]
    fn a_password_is_taken_from_the_environment_only_and_never_printed() {
        let url = "postgres://u:can%23ary@h:1/d";
        let said = refused(url);
        assert!(said.contains("password") && !said.contains("ary"), "{said}");
        let options = Options::parse_url(url, UrlSource::Environment).unwrap();
        assert_eq!(options.password.as_ref().unwrap().expose(), "can#ary");
        let printed = format!("{options:?} {}", options.name());
        assert!(!printed.contains("ary"), "{printed}");
        // What is wrong elsewhere does not repeat it either.
        for broken in [
            "postgres://u:canary@h:x/d",
            "postgres://u:can@ary@/d",
            "postgres://u:%ff@h/d",
            "postgres://u:can?ary@h/d",
            "postgres://u:canary/d",
        ] {
            let error = Options::parse_url(broken, UrlSource::Environment).unwrap_err();
            assert!(!error.to_string().contains("ary"), "{error}");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_in_words_that_say_what_is_wrong() {
        for (url, words) in [
            ("mysql://u@h/d", "begins with postgres://"),
            ("postgres://h/d", "name the role"),
            ("postgres://u@h", "name the database"),
            ("postgres://u@h/", "name the database"),
            ("postgres://u@/d", "name the host"),
            ("postgres://u@a,,b/d", "name the host"),
            ("postgres://u@h:0/d", "no port"),
            ("postgres://u@h:99999/d", "no port"),
            ("postgres://u@[::1/d", "no end"),
            ("postgres://u@[::1]x/d", "no host and port"),
            ("postgres://u@h/d?sslmode=prefer", "verify-full or disable"),
            ("postgres://u@h/d?sslmode=on", "verify-full or disable"),
            (
                "postgres://u@h/d?sslmode=disable&sslrootcert=a",
                "sslmode=disable",
            ),
            ("postgres://u@h/d?sslcert=a", "belong together"),
            ("postgres://u@h/d?sslkey=a", "belong together"),
            ("postgres://u@h/d?options=x", "no parameter \"options\""),
            ("postgres://u@h/d?password=x", "no password"),
            ("postgres://u@h/d?sslmode", "has no value"),
            (
                "postgres://u@h/d?target_session_attrs=any",
                "always the primary",
            ),
            ("postgres://u@%2Frun,h/d", "no TLS on the socket"),
            ("postgres://u@%ff/d", "not UTF-8"),
        ] {
            let said = refused(url);
            assert!(said.contains(words), "{url}: {said}");
        }
    }

    #[test]
    fn the_name_of_a_table_needs_no_quotes() {
        let with = |table: &str| Options {
            table: table.to_owned(),
            ..parsed("postgres://u@localhost/d")
        };
        for table in ["log", "events.log_2", "_x"] {
            assert_eq!(with(table).check(), Ok(()), "{table}");
        }
        let long = "x".repeat(64);
        for table in ["", "Log", "a.b.c", "a.", "1x", "a\"b", "a b", "ä", &long] {
            assert!(
                with(table)
                    .check()
                    .unwrap_err()
                    .contains("no name of a table"),
                "{table}"
            );
        }
        assert_eq!(with("events.log").quoted_table(), "\"events\".\"log\"");
    }
}
