//! Owns where the database is, and how to get there. Knows nothing of connections, nor of URLs: those are the
//! configuration's.

use std::{path::PathBuf, time::Duration};

use prelude_bridge_log::sequencer::Secret;

/// PostgreSQL cuts longer names.
const NAME_BYTES_MAX: usize = 63;

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
    /// Whether the table is created if it is missing; otherwise that is refused.
    pub create: bool,
    /// Whether nothing is appended on a server without a synchronous standby; otherwise it is a warning. A start
    /// is refused; later, it is an outage until there is one.
    pub require_standby: bool,
    /// Younger commits than this are not removed, whatever is asked for: a bridge that rebuilds its replica
    /// needs the ids in them.
    pub ids_age: Duration,
}

impl Options {
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

/// Those of a server that tests start, on this port of this machine.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn local(port: u16) -> Options {
    Options {
        hosts: vec![("127.0.0.1".to_owned(), port)],
        database: "postgres".to_owned(),
        user: "bridge".to_owned(),
        password: None,
        table: "prelude_bridge".to_owned(),
        tls: TlsMode::Off,
        create: true,
        require_standby: false,
        ids_age: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_no_message_has_the_password() {
        let hosts = |hosts: &[(&str, u16)]| Options {
            hosts: hosts
                .iter()
                .map(|&(host, port)| (host.to_owned(), port))
                .collect(),
            password: Some(Secret::new("canary")),
            ..local(1)
        };
        let named = hosts(&[("one", 5433), ("::1", 7), ("/run/pg", 5432)]);
        assert_eq!(
            named.name(),
            "the table prelude_bridge in the database postgres of PostgreSQL at one:5433, \
             [::1]:7, /run/pg:5432"
        );
        let printed = format!("{named:?} {}", named.name());
        assert!(!printed.contains("ary"), "{printed}");
        let required = TlsMode::Required {
            authority: None,
            certificate: None,
        };
        for (options, words) in [
            (hosts(&[]), "name the host"),
            (hosts(&[("", 1)]), "name the host"),
            (
                Options {
                    user: String::new(),
                    ..local(1)
                },
                "name the role",
            ),
            (
                Options {
                    database: String::new(),
                    ..local(1)
                },
                "name the database",
            ),
            (
                Options {
                    tls: required,
                    ..named
                },
                "no TLS on the socket",
            ),
        ] {
            let said = options.check().unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn the_name_of_a_table_needs_no_quotes() {
        let with = |table: &str| Options {
            table: table.to_owned(),
            ..local(1)
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
