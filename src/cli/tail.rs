//! `tail`: subscribes and prints.

use std::time::Duration;

use clap::{ValueEnum, builder::NonEmptyStringValueParser};
use jiff::Timestamp;

use crate::config;

use super::exit::{Exit, Failure};

/// `tail`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The bridge's gRPC address, `http://host:port`
    #[arg(
        long,
        value_name = "URL",
        env = "PRELUDE_BRIDGE_SERVER",
        default_value = "http://127.0.0.1:50051",
        value_parser = server_url
    )]
    pub server: String,

    /// Only events of this type; repeatable. `*` is one segment (`user.session.*`), a last `**`
    /// one or more (`user.**`)
    #[arg(long = "type", value_name = "PATTERN", help_heading = "Which events")]
    pub types: Vec<String>,

    /// Not the events of this type; repeatable, patterns as above
    #[arg(
        long = "exclude-type",
        value_name = "PATTERN",
        help_heading = "Which events"
    )]
    pub exclude_types: Vec<String>,

    /// Only events of this app; repeatable
    #[arg(long = "app", value_name = "APP_ID", help_heading = "Which events")]
    pub apps: Vec<String>,

    /// Only events of this user; repeatable
    #[arg(long = "user", value_name = "USER_ID", help_heading = "Which events")]
    pub users: Vec<String>,

    /// Start this long ago (`10m`, `2h`, `7d`) or at an RFC 3339 time [default: now]
    #[arg(
        long,
        value_name = "TIME",
        value_parser = parse_since,
        group = "start",
        help_heading = "From where to where"
    )]
    pub since: Option<Since>,

    /// Start with the newest N events that are there
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..),
        group = "start",
        help_heading = "From where to where"
    )]
    pub last: Option<u64>,

    /// Start right after this cursor
    #[arg(
        long,
        value_name = "CURSOR",
        value_parser = NonEmptyStringValueParser::new(),
        group = "start",
        help_heading = "From where to where"
    )]
    pub from: Option<String>,

    /// Stop after N events
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "From where to where"
    )]
    pub count: Option<u64>,

    /// Stop when everything that is there now has been printed
    #[arg(long, help_heading = "From where to where")]
    pub until_caught_up: bool,

    /// How to print events [default: human on a terminal, json into a pipe]
    #[arg(long, value_enum)]
    pub output: Option<Output>,

    /// What the bridge calls this client in its logs and metrics
    #[arg(long, value_name = "NAME", default_value = "prelude-bridge tail")]
    pub client_name: String,
}

/// Where `--since` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// This long before now.
    Ago(Duration),
    /// At this time.
    At(Timestamp),
}

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One coloured line each
    Human,
    /// One JSON object a line, with cursor, times and payload
    Json,
    /// The event as it was signed, byte for byte, one a line
    Raw,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Everything from now on:
    prelude-bridge tail
  Sessions of the last ten minutes, and those to come:
    prelude-bridge tail --type 'user.session.*' --since 10m
  The newest hundred as JSON lines, then stop:
    prelude-bridge tail --last 100 --until-caught-up --output json
  Ten events of users, but not of deleted ones, into another program:
    prelude-bridge tail --type 'user.*' --exclude-type user.deleted --count 10 | jq .type

It reconnects by itself and goes on where it was. Ctrl-C prints the command that continues.
Exit codes: 3 the server cannot be reached, 4 it refused the credential, 5 the cursor has expired.";

/// Subscribes and prints.
///
/// # Errors
/// The server cannot be reached, refuses, or has lost the place.
#[expect(clippy::unused_async, reason = "the subscription is awaited here")]
pub async fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::new(
        Exit::Failed,
        "the client is not part of this build",
    ))
}

/// `--server`, where `host:port` is enough.
fn server_url(text: &str) -> Result<String, String> {
    let url = match text.split_once("://") {
        None => format!("http://{text}"),
        Some(("http", _)) => text.to_owned(),
        Some(("https", _)) => {
            return Err("TLS is not in this version; write `http://host:port`".to_owned());
        }
        Some((scheme, _)) => return Err(format!("`{scheme}` is not `http`")),
    };
    let uri: http::Uri = url.parse().map_err(|error| format!("not a URL: {error}"))?;
    match uri.host() {
        Some(host) if !host.is_empty() => Ok(url),
        Some(_) | None => Err("it names no host; write `http://host:port`".to_owned()),
    }
}

fn parse_since(text: &str) -> Result<Since, String> {
    // A time has a `T` or a `:` in it, which no duration has.
    if text.contains([':', 'T', 't']) {
        let time = text.parse();
        return time.map(Since::At).map_err(|_| {
            format!("`{text}` is not an RFC 3339 time; write one such as 2026-11-20T08:30:00Z")
        });
    }
    config::parse_duration(text)
        .map(Since::Ago)
        .map_err(|reason| {
            format!(
                "{reason}; write a duration such as 10m, or a time such as 2026-11-20T08:30:00Z"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_or_a_time() {
        assert_eq!(parse_since("10m"), Ok(Since::Ago(Duration::from_secs(600))));
        let time = "2026-11-20T08:30:00Z".parse().unwrap();
        assert_eq!(parse_since("2026-11-20T08:30:00Z"), Ok(Since::At(time)));
        assert_eq!(
            parse_since("2026-11-20T09:30:00+01:00"),
            Ok(Since::At(time))
        );
        for text in ["", "yesterday", "10", "2026-11-20", "2026-11-20T08:30:00"] {
            assert!(parse_since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_is_a_url_or_a_host_with_a_port() {
        assert_eq!(
            server_url("http://bridge:50051").unwrap(),
            "http://bridge:50051"
        );
        assert_eq!(server_url("bridge:50051").unwrap(), "http://bridge:50051");
        assert_eq!(server_url("[::1]:50051").unwrap(), "http://[::1]:50051");
        for text in ["", "https://bridge", "ftp://bridge", "http://", "a b"] {
            assert!(server_url(text).is_err(), "{text}");
        }
    }
}
