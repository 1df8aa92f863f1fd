//! `tail`: subscribes and prints. The files below format events, find where `--last` begins and choose
//! the remarks; the client library reconnects.

mod format;
mod last;
mod narrator;
mod printer;
mod resume;
mod since;

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::{ValueEnum, builder::NonEmptyStringValueParser};
use jiff::{Timestamp, tz::TimeZone};
use tokio_stream::StreamExt as _;

pub(super) use self::format::Formatter;
use self::{
    narrator::Narrator,
    printer::{Line, Printer, Written, locked},
    since::Since,
};
use super::{
    access,
    exit::{self, Exit, Failure, finish_stdout},
    near,
    terminal::Width,
};
use crate::{
    client::{self, Client, Item, Options, Request, Start, Stop},
    proto::DamagedPolicy,
};

/// `tail`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The bridge's gRPC address, `https://host:port`, or `http://host:port` without TLS
    #[arg(
        long,
        value_name = "URL",
        env = "PRELUDE_BRIDGE_SERVER",
        default_value = "http://127.0.0.1:50051",
        value_parser = server_url
    )]
    pub server: String,

    /// Only events of this type; repeatable. `*` is one segment (`user.session.*`), a last `**`
    /// one or more (`user.**`); what follows a `=` is exact, whatever it is
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

    /// Start this long ago (`10m`, `2h`, `7d`), or at a time (`yesterday`, `2026-11-20`, `2026-11-20 08:30`,
    /// RFC 3339); without an offset it is in the zone in which times are shown [default: now]
    #[arg(
        long,
        value_name = "TIME",
        value_parser = since::parse,
        group = "start",
        help_heading = "From where to where"
    )]
    pub since: Option<Since>,

    /// Start with the newest N events of the log
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=LAST_EVENTS_MAX),
        group = "start",
        help_heading = "From where to where"
    )]
    pub last: Option<u64>,

    /// Start right after this cursor, or with the oldest event of the log: `earliest`
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
        short = 'n',
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "From where to where"
    )]
    pub count: Option<u64>,

    /// Stop when all events that are in the log now have been printed
    #[arg(long, help_heading = "From where to where")]
    pub until_caught_up: bool,

    /// What to do when the next events are damaged on the bridge's disk
    #[arg(
        long,
        value_enum,
        value_name = "POLICY",
        default_value_t = OnDamaged::Fail,
        help_heading = "From where to where"
    )]
    pub on_damaged: OnDamaged,

    /// How to print events [default: human on a terminal, json into a pipe]
    #[arg(short = 'o', long, value_enum)]
    pub output: Option<Output>,

    /// Show times in UTC [default: in this machine's zone]
    #[arg(long)]
    pub utc: bool,

    /// When to use colours
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    pub color: Color,

    /// The name of this client in the bridge's log
    #[arg(long, value_name = "NAME", default_value = CLIENT_NAME)]
    pub client_name: String,

    /// How to connect.
    #[command(flatten)]
    pub access: access::Args,
}

/// What to do when the next events are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDamaged {
    /// End with exit code 1, and say how to go on
    Fail,
    /// Name the damaged events on stderr, and go on after them
    Skip,
}

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line each, which fits a terminal: coloured, with short ids, and the day only when it
    /// changes
    Human,
    /// One JSON object a line, with cursor, times and payload
    Json,
    /// The event as it was signed, byte for byte, and a newline; more than one line where the JSON
    /// itself has newlines
    Raw,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Also in a pipe
    Always,
    /// Never
    Never,
}

impl Color {
    fn is_wanted(self) -> bool {
        match self {
            Self::Auto => {
                anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
            }
            Self::Always => true,
            Self::Never => false,
        }
    }
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Everything from now on:
    prelude-bridge tail
  Sessions of the last ten minutes, and those to come:
    prelude-bridge tail --type 'user.session.*' --since 10m
  The newest hundred as JSON lines, then stop:
    prelude-bridge tail --last 100 --until-caught-up --output json
  A bridge with TLS that wants a token:
    prelude-bridge tail --server https://bridge.example.com:50051 --token-file token.txt
  Ten events of users, but not of deleted ones, into another program:
    prelude-bridge tail --type 'user.*' --exclude-type user.deleted --count 10 | jq .type

It reconnects by itself and goes on where it was. Ctrl-C prints the command that continues.
Exit codes: 1 the next events are damaged, 3 the server cannot be reached, 4 it refused the credential, 5 the cursor has expired.";

/// The word that `--from` takes besides cursors; no cursor is a word.
const EARLIEST: &str = "earliest";

const CLIENT_NAME: &str = "prelude-bridge tail";

/// The limit of `--last`: it keeps a little memory for each event.
const LAST_EVENTS_MAX: u64 = 1_000_000;

/// How long an interrupted command waits for a stdout that may be blocked.
const PARTING_TIMEOUT: Duration = Duration::from_millis(250);

/// Subscribes and prints.
///
/// # Errors
/// The server cannot be reached, refuses, or does not know the cursor any more.
pub async fn run(args: Args) -> Result<(), Failure> {
    let output = args.output.unwrap_or_else(|| {
        let is_terminal = io::stdout().is_terminal();
        if is_terminal {
            Output::Human
        } else {
            Output::Json
        }
    });
    for doubt in args.doubts() {
        exit::warn(&doubt);
    }
    let written = Arc::new(Mutex::new(Written::default()));
    let printer = Printer::start(io::stdout(), Arc::clone(&written))?;
    let zone = args.zone();
    let formatter = Formatter::new(output, args.color.is_wanted(), Width::of_stdout(), zone);
    let outcome = tokio::select! {
        outcome = follow(&args, formatter, &printer) => Some(outcome),
        heard = interrupt() => {
            heard?;
            None
        }
    };
    if let Some(outcome) = outcome {
        finish_stdout(printer.finish().await)?;
        return outcome;
    }
    // Lines that are queued are printed and recorded, so that none of them comes again.
    let _ = tokio::time::timeout(PARTING_TIMEOUT, printer.finish()).await;
    if let Some(command) = resume::command(&args, &locked(&written)) {
        let _ = writeln!(anstream::stderr(), "\nto continue: {command}");
    }
    Ok(())
}

impl Args {
    /// The zone in which times are shown and read.
    fn zone(&self) -> TimeZone {
        if self.utc {
            TimeZone::UTC
        } else {
            TimeZone::system()
        }
    }

    /// Warnings of types and apps that may be misspelt.
    fn doubts(&self) -> Vec<String> {
        let flags = [
            ("--type", &self.types),
            ("--exclude-type", &self.exclude_types),
        ];
        let named = flags
            .into_iter()
            .flat_map(|(flag, patterns)| patterns.iter().map(move |pattern| (flag, pattern)));
        named
            .filter_map(|(flag, pattern)| near::doubt_of_type(flag, pattern))
            .collect()
    }
}

/// Prints until the stop position, a permanent error, or until stdout is closed.
async fn follow(args: &Args, mut formatter: Formatter, printer: &Printer) -> Result<(), Failure> {
    let options = args.access.apply(Options::new(&args.server))?;
    let client = Client::connect(&options).await.map_err(failure)?;
    let mut request = request(args).payload_format(formatter.payload_format());
    request = match start(args, &client, &request).await? {
        Some(start) => request.start(start),
        None => request,
    };
    let mut subscription = client.subscribe(request);
    let mut narrator = Narrator::new(formatter.output());
    let mut outcome = Ok(());
    loop {
        let item = tokio::select! {
            item = subscription.next() => item,
            () = printer.closed() => break,
        };
        let line = match item {
            None => break,
            Some(Err(error)) => {
                outcome = Err(failure(error));
                break;
            }
            Some(Ok(Item::Event(event))) => Line::Event {
                text: formatter.line(&event),
                cursor: event.cursor,
            },
            Some(Ok(Item::Notice(notice))) => Line::Notice {
                text: narrator.remark(&notice),
                cursor: subscription.cursor().map(str::to_owned),
            },
        };
        if !printer.print(line).await {
            break;
        }
    }
    outcome
}

/// The request of the arguments, without the start position.
fn request(args: &Args) -> Request {
    let mut request = Request::new()
        .types(&args.types)
        .exclude_types(&args.exclude_types)
        .app_ids(&args.apps)
        .user_ids(&args.users)
        .client_name(&args.client_name)
        .on_damaged(match args.on_damaged {
            OnDamaged::Fail => DamagedPolicy::Fail,
            OnDamaged::Skip => DamagedPolicy::Skip,
        });
    if args.until_caught_up {
        request = request.stop(Stop::Head);
    }
    match args.count {
        Some(count) => request.events_max(count),
        None => request,
    }
}

async fn start(args: &Args, client: &Client, request: &Request) -> Result<Option<Start>, Failure> {
    if args.from.as_deref() == Some(EARLIEST) {
        return Ok(Some(Start::Earliest));
    }
    if let Some(cursor) = &args.from {
        return Ok(Some(Start::After(cursor.clone())));
    }
    if let Some(count) = args.last {
        let found = last::find(client, request, count).await;
        return found.map(Some).map_err(failure);
    }
    let Some(since) = args.since else {
        return Ok(None);
    };
    match since.time(&args.zone(), Timestamp::now()) {
        Ok(time) => Ok(Some(Start::At(time))),
        Err(reason) => Err(Failure::new(Exit::Usage, format!("--since: {reason}"))),
    }
}

/// Waits for Ctrl-C or SIGTERM.
async fn interrupt() -> Result<(), Failure> {
    let cannot = |error| Failure::new(Exit::Failed, format!("signals cannot be heard: {error}"));
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        tokio::select! {
            heard = tokio::signal::ctrl_c() => heard.map_err(cannot),
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await.map_err(cannot)
}

fn failure(error: client::Error) -> Failure {
    match &error {
        client::Error::Url(_) => Failure::new(Exit::Usage, error),
        client::Error::Credential(_) => Failure::new(Exit::Usage, error)
            .help("see --token-file, --token-over-plain-text, --ca-file and --client-certificate-file"),
        // The error says what to do; only the bridge's operator can.
        client::Error::Unreachable(cause) if cause.contains("CaUsedAsEndEntity") => {
            Failure::new(Exit::Unreachable, error)
                .help("let the operator of the bridge replace its certificate")
        }
        client::Error::Unreachable(cause) if cause.contains("certificate") => {
            Failure::new(Exit::Unreachable, error).help(
                "check the name in --server, and give the issuers of the bridge's certificate \
                 with --ca-file",
            )
        }
        client::Error::Unreachable(_) | client::Error::Interrupted { .. } => {
            Failure::new(Exit::Unreachable, error)
                .help("check --server, and that the bridge runs there")
        }
        client::Error::Refused { .. } => Failure::new(Exit::Refused, error)
            .help("show the token with --token-file, or the certificate with --client-certificate-file")
            .help("ask the bridge's operator what this client may see"),
        client::Error::Expired { earliest, .. } => {
            let failure = Failure::new(Exit::CursorExpired, &error);
            match earliest {
                Some(cursor) => {
                    failure.help(format!("continue with what is left: --from {cursor}"))
                }
                None => failure,
            }
        }
        client::Error::Damaged { after_cursor, .. } => {
            let failure = Failure::new(Exit::Failed, &error);
            let failure = match after_cursor {
                Some(cursor) => failure.help(format!("continue after them: --from {cursor}")),
                None => failure,
            };
            failure.help("leave out all damaged events: --on-damaged skip").help(
                "where the bridge runs, `prelude-bridge log check` names the damaged files",
            )
        }
        client::Error::Cursor { reason, .. } => {
            let exit = match reason.as_str() {
                "CURSOR_MALFORMED" => Exit::Usage,
                _ => Exit::Failed,
            };
            Failure::new(exit, error).help("start with --since or --last instead of --from")
        }
        client::Error::Invalid { faults, .. } => {
            let failure = Failure::new(Exit::Usage, &error);
            faults.iter().fold(failure, |failure, fault| {
                failure.help(format!("{} {}", flag(&fault.field), fault.problem))
            })
        }
        _ => Failure::new(Exit::Failed, error),
    }
}

/// The flag that a field of the request comes from.
fn flag(field: &str) -> String {
    let flags = [
        ("filter.types", "--type"),
        ("filter.exclude_types", "--exclude-type"),
        ("filter.app_ids", "--app"),
        ("filter.user_ids", "--user"),
        ("start.after_cursor", "--from"),
        ("client_name", "--client-name"),
    ];
    match flags.iter().find(|(prefix, _)| field.starts_with(prefix)) {
        Some((_, flag)) => format!("{flag} ({field})"),
        None => field.to_owned(),
    }
}

/// `--server`, where `host:port` is enough.
fn server_url(text: &str) -> Result<String, String> {
    let url = match text.split_once("://") {
        None => format!("http://{text}"),
        Some(("http" | "https", _)) => text.to_owned(),
        Some((scheme, _)) => return Err(format!("`{scheme}` is neither `https` nor `http`")),
    };
    let uri: http::Uri = url.parse().map_err(|error| format!("not a URL: {error}"))?;
    match uri.host() {
        Some(host) if !host.is_empty() => Ok(url),
        Some(_) | None => Err("it names no host; write `https://host:port`".to_owned()),
    }
}

#[cfg(test)]
mod tests;
