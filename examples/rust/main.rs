//! Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
//! bridge, the network or itself. Replace `process` by what your service does; reconnecting,
//! backoff and resuming are the library's.

#![expect(
    clippy::print_stderr,
    reason = "stdout has the events, stderr all else"
)]

use std::{
    env,
    error::Error as StdError,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use prelude_bridge_client::{
    Client, Error, FileCursorStore, Item, Options, Request, Start,
    proto::{Event, PayloadFormat},
};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt as _;

#[derive(Parser)]
struct Args {
    /// Event type or pattern, such as `user.session.*`; repeatable
    #[arg(long = "type", value_name = "PATTERN")]
    types: Vec<String>,
    /// Event type or pattern to leave out; repeatable
    #[arg(long, value_name = "PATTERN")]
    exclude_type: Vec<String>,
    /// App id; repeatable
    #[arg(long = "app", value_name = "ID")]
    apps: Vec<String>,
    /// User id; repeatable
    #[arg(long = "user", value_name = "ID")]
    users: Vec<String>,
    /// Where the place in the log is kept
    #[arg(long, value_name = "FILE", default_value = "consumer.cursor")]
    cursor_file: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            exit_code(error.as_ref())
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn StdError>> {
    // Lazy: a bridge that is not there yet is waited for.
    let client = Client::lazy(&options()?)?;
    let request = Request::new()
        .types(args.types)
        .exclude_types(args.exclude_type)
        .app_ids(args.apps)
        .user_ids(args.users)
        .payload_format(PayloadFormat::Raw)
        .client_name("example-rust")
        .start(Start::Earliest);
    let store = FileCursorStore::new(args.cursor_file);
    let mut subscription = client.resume(request, store).await?;
    let mut terminate = signal(SignalKind::terminate())?;

    loop {
        let item = tokio::select! {
            item = subscription.next() => item,
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        };
        match item.transpose()? {
            Some(Item::Event(event)) => process(&event)?,
            Some(Item::Notice(notice)) => eprintln!("{notice}"),
            None => break,
        }
        // Everything that was received is processed: this is where a restart may continue.
        if subscription.buffered() == 0 {
            subscription.acknowledge().await?;
        }
    }
    Ok(subscription.acknowledge().await?)
}

/// The bridge at `BRIDGE_ADDRESS`: over TLS if `BRIDGE_CA` names a file of CA certificates, or is
/// `system` for those of the machine; with `BRIDGE_TOKEN` as the credential.
fn options() -> io::Result<Options> {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let address = variable("BRIDGE_ADDRESS").unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let mut options = match variable("BRIDGE_CA").as_deref() {
        None => Options::new(format!("http://{address}")),
        Some("system") => Options::new(format!("https://{address}")),
        Some(file) => {
            Options::new(format!("https://{address}")).ca_certificate(fs::read_to_string(file)?)
        }
    };
    if let Some(token) = variable("BRIDGE_TOKEN") {
        options = options.token(token);
    }
    Ok(options)
}

/// Where a service does its work. An error ends the program before the cursor is stored.
fn process(event: &Event) -> io::Result<()> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Line<'a> {
        id: &'a str,
        app_id: &'a str,
        sequence: u64,
        cursor: &'a str,
        /// As it was signed.
        event: &'a RawValue,
    }
    let mut line = serde_json::to_vec(&Line {
        id: &event.id,
        app_id: &event.app_id,
        sequence: event.sequence,
        cursor: &event.cursor,
        event: serde_json::from_slice(&event.raw_json)?,
    })?;
    line.push(b'\n');
    io::stdout().write_all(&line)
}

/// Exit codes, those of `prelude-bridge tail`.
fn exit_code(error: &(dyn StdError + 'static)) -> ExitCode {
    ExitCode::from(match error.downcast_ref() {
        Some(Error::Url(_) | Error::Credential(_) | Error::Invalid { .. }) => 2,
        Some(Error::Cursor { reason, .. }) if reason == "CURSOR_MALFORMED" => 2,
        Some(Error::Refused { .. }) => 4,
        Some(Error::Expired { .. }) => 5,
        _ => 1,
    })
}
