//! Owns what errors of PostgreSQL mean: which pass by themselves, which do not, and in which words they are
//! told. A message of the server is repeated without its detail, which can contain what a row contains.
//! Knows nothing of statements.

use std::{error::Error as _, io, time::Duration};

use prelude_bridge_log::sequencer::Outage;
use tokio_postgres::{Error, error::SqlState};

use crate::OpenError;

/// Why there is no connection, or why a statement failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is gone, or there never was one.
    Lost(String),
    /// The server answers, and cannot do it now.
    Busy(String),
    /// The server's disk is full.
    Full(String),
    /// The server refuses the login. A start fails; later, somebody may be changing the password just now.
    Login(String),
    /// It stays like this until somebody changes something.
    Unusable(String),
}

impl Fault {
    /// There was no answer in time.
    pub(crate) fn late(limit: Duration) -> Self {
        Self::Busy(format!("no answer within {} s", limit.as_secs()))
    }

    /// The same for callers, with the name of the database.
    pub(crate) fn outage(&self, name: &str) -> Outage {
        match self {
            Self::Lost(why) => Outage::Disconnected(format!("{name}: {why}").into()),
            Self::Busy(why) | Self::Login(why) => {
                Outage::Unavailable(format!("{name}: {why}").into())
            }
            Self::Full(why) => Outage::Full(format!("{name}: {why}").into()),
            Self::Unusable(why) => Outage::Unusable(format!("{name}: {why}").into()),
        }
    }

    /// The same for a start.
    pub(crate) fn open_error(&self, name: &str) -> OpenError {
        match self {
            Self::Lost(why) | Self::Busy(why) => OpenError::Unreachable(format!("{name}: {why}")),
            Self::Full(why) | Self::Login(why) | Self::Unusable(why) => {
                OpenError::Unusable(format!("{name}: {why}"))
            }
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let words = words(&error);
        match error.code() {
            None => of_connection(&error, words),
            Some(code) => of_code(code, words),
        }
    }
}

/// An error without a code is the client library's.
fn of_connection(error: &Error, words: String) -> Fault {
    let text = error.to_string();
    if words.contains("server does not support TLS") {
        return Fault::Unusable(format!(
            "{words}: switch it on there (ssl = on), or write sslmode=disable where the network is trusted"
        ));
    }
    if words.contains("UnknownIssuer") {
        return Fault::Unusable(format!(
            "{words}: the server's certificate is of an issuer that is not trusted; name the file of the issuers \
             with tls_ca_file, or write sslmode=disable where the network is trusted"
        ));
    }
    if words.contains("password missing") {
        return Fault::Unusable("the server asks for a password, and none is given".to_owned());
    }
    let permanent = text.contains("TLS handshake")
        || text.contains("authentication")
        || words.contains("fatal alert");
    // A handshake that was cut off is no refusal.
    let cut = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| error.get_ref().is_none());
    if permanent && !cut {
        Fault::Unusable(words)
    } else {
        Fault::Lost(words)
    }
}

fn of_code(code: &SqlState, words: String) -> Fault {
    if *code == SqlState::DISK_FULL {
        return Fault::Full(format!("{words}: make room on the server's disk"));
    }
    // A primary that became a standby, or is shutting down or starting: another may be the primary now.
    if *code == SqlState::READ_ONLY_SQL_TRANSACTION
        || *code == SqlState::ADMIN_SHUTDOWN
        || *code == SqlState::CRASH_SHUTDOWN
        || *code == SqlState::CANNOT_CONNECT_NOW
        || *code == SqlState::TOO_MANY_CONNECTIONS
    {
        return Fault::Lost(words);
    }
    let class = code.code().get(..2).unwrap_or_default();
    match class {
        // Authentication.
        "28" => Fault::Login(remedy(code, words)),
        // Catalogs, syntax and access rules, wrong objects, corrupted data.
        "3D" | "3F" | "42" | "XX" | "22" | "23" => Fault::Unusable(remedy(code, words)),
        _ if *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => Fault::Unusable(words),
        _ => Fault::Busy(words),
    }
}

/// What to do about it, where that is known.
fn remedy(code: &SqlState, words: String) -> String {
    let remedy = if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        "grant the role what docs/postgresql.md lists"
    } else if *code == SqlState::UNDEFINED_TABLE {
        "the table was dropped or renamed while it was used: restore it from a backup"
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        "create the database first"
    } else if *code == SqlState::INVALID_PASSWORD {
        "check user and password"
    } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        "check user, client certificate and the server's pg_hba.conf"
    } else if *code == SqlState::INVALID_COLUMN_REFERENCE {
        "the table has no primary key: restore it from a backup"
    } else {
        return words;
    };
    format!("{words}: {remedy}")
}

/// The error and its causes, or the server's message with its code.
pub(crate) fn words(error: &Error) -> String {
    if let Some(server) = error.as_db_error() {
        let code = server.code().code();
        return match server.hint() {
            Some(hint) => format!("{} ({code}; {hint})", server.message()),
            None => format!("{} ({code})", server.message()),
        };
    }
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_whether_it_passes_by_itself() {
        let of = |code: SqlState| of_code(&code, "said".to_owned());
        for lost in [
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::TOO_MANY_CONNECTIONS,
        ] {
            assert_eq!(of(lost), Fault::Lost("said".to_owned()));
        }
        for busy in [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::QUERY_CANCELED,
            SqlState::OUT_OF_MEMORY,
            SqlState::IO_ERROR,
        ] {
            assert_eq!(of(busy), Fault::Busy("said".to_owned()));
        }
        for unusable in [
            SqlState::UNDEFINED_TABLE,
            SqlState::INSUFFICIENT_PRIVILEGE,
            SqlState::DATA_CORRUPTED,
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        ] {
            assert!(matches!(of(unusable), Fault::Unusable(_)));
        }
        for login in [
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        ] {
            let fault = of(login);
            assert!(matches!(fault, Fault::Login(_)));
            assert!(matches!(fault.outage("it"), Outage::Unavailable(_)));
            assert!(matches!(fault.open_error("it"), OpenError::Unusable(_)));
        }
        assert!(matches!(of(SqlState::DISK_FULL), Fault::Full(_)));
    }
}
