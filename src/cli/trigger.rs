//! `trigger`: one signed event, now, to a bridge that trusts the simulator's key. Owns its flags and
//! what the bridge's answer means; the event, its signature and the POST are the simulator's.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::{ValueEnum, builder::NonEmptyStringValueParser};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    access,
    exit::{self, Exit, Failure},
    public_file, signing_key,
    simulate::{default_id, flags::named},
};
use crate::{
    decode::Product,
    management::challenge,
    plain,
    simulator::{
        AppOptions, Error, Event, EventType, Options, SigningKey, Simulator, SourceKind,
        delivery::Answer, ledger::AttemptResult,
    },
};

/// As large as the body of a delivery may be.
const PAYLOAD_BYTES_MAX: u64 = 1024 * 1024;

/// `trigger`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The event's type: a documented one of Auth, Verify or Notify, or any with --file
    #[arg(value_name = "TYPE", value_parser = NonEmptyStringValueParser::new())]
    event_type: String,

    /// Take the payload from this JSON file instead of inventing one
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// The bridge's webhook URL; `{app}` in it becomes the id of the app or source
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8080/webhooks/{app}"
    )]
    to: String,

    /// Send it as this product of Prelude does: auth in a batch, verify and notify by itself [default:
    /// the product that documents the type, else auth]
    #[arg(long, value_name = "KIND", value_parser = named::<SourceKind>)]
    source: Option<SourceKind>,

    // Not read from the environment by clap: each variable names an app or source of one kind.
    /// The id of the app or source [env: PRELUDE_BRIDGE_APP_ID or PRELUDE_BRIDGE_SOURCE_ID] [default:
    /// 54e9ujn, verify or notify]
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    app: Option<String>,

    /// Sign with the RSA key in this PEM file [default: this user's own, as `simulate` does]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// Trust a bridge with a certificate of these issuers (PEM) too
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Write the key set to this file, for the `jwks_file` of a bridge that is to trust it
    #[arg(long, value_name = "FILE")]
    jwks_out: Option<PathBuf>,

    /// Write the public key as PEM to this file, for the `pem_file` of a source of verify or notify
    #[arg(long, value_name = "FILE")]
    pem_out: Option<PathBuf>,

    /// How to print what came of it
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// A sentence
    Human,
    /// One JSON object
    Json,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  To a bridge that was started for `prelude-bridge simulate` on this machine:
    prelude-bridge trigger user.created
  With a payload of your own:
    prelude-bridge trigger user.profile.updated --file payload.json
  To a bridge without a simulator, which is given the key first:
    prelude-bridge trigger user.created --jwks-out jwks.json
    PRELUDE_BRIDGE_JWKS_FILE=jwks.json PRELUDE_BRIDGE_APP_ID=54e9ujn PRELUDE_BRIDGE_VERIFICATION_TOKEN=trial prelude-bridge serve
  As Prelude Verify does, to a source of the bridge with that id:
    prelude-bridge trigger verify.attempt --pem-out verify.pem
    prelude-bridge trigger verify.delivery_status --to http://127.0.0.1:8080/webhooks/verify
  To a bridge whose certificate is of an issuer of your own:
    prelude-bridge trigger user.created --to https://bridge.example.com/webhooks/{app} --ca-file ca.crt
  To a type that nobody documented yet:
    prelude-bridge trigger user.mood.changed --file payload.json --to http://127.0.0.1:8080/webhooks

Exit codes: 0 the event is in the log, 1 the bridge refused it, 2 bad usage, 3 nobody answers.";

/// Runs the command.
///
/// # Errors
/// A type, payload or key that cannot be used, a bridge that does not answer, or one that refuses.
pub async fn run(args: Args) -> Result<(), Failure> {
    let known: Result<EventType, _> = args.event_type.parse();
    let documented_kind = known.as_ref().ok().map(|known| known.source_kind());
    let kind = args.source.or(documented_kind);
    let kind = kind.unwrap_or_else(|| kind_of_prefix(&args.event_type));
    let payload = args.file.as_deref().map(read_payload).transpose()?;
    // The id and the times of another type are those of any event of this kind.
    let template = match (known, &payload) {
        (Ok(known), _) => Some(known),
        (Err(_), Some(_)) => kind.event_types().first().copied(),
        (Err(error), None) => {
            return Err(Failure::new(Exit::Usage, error)
                .help("another type needs its payload, with --file"));
        }
    };
    let id = args.app.clone().unwrap_or_else(|| default_id(kind));
    let key = args.signing_key()?;
    let issuers = access::issuers(args.ca_file.as_deref())?;
    let options = Options {
        apps: vec![AppOptions::with_keys(&id, vec![key]).of_kind(kind)],
        issuers: issuers.clone(),
        ..Options::default()
    };
    let simulator = Simulator::start(options).await.map_err(explain)?;
    args.write_keys(&simulator, &id)?;
    let types: Vec<EventType> = template.into_iter().collect();
    let mut events = simulator.events(&id, 1, &types).map_err(explain)?;
    for event in &mut events {
        event.event_type.clone_from(&args.event_type);
        if let Some(payload) = &payload {
            event.payload.clone_from(payload);
        }
    }
    let url = args.to.replace("{app}", &id);
    let body = simulator.encode(&id, &events).map_err(explain)?.pop();
    let posted = match body {
        Some(body) => simulator.post(&url, &body).await,
        None => Err(Error::NotOneEvent(0)),
    };
    simulator.stop().await;
    match posted {
        Ok(answer) => args.report(&id, &events, &answer),
        Err(error @ Error::NoAnswer(_)) => Err(no_answer(error, &url, &issuers).await),
        Err(error) => Err(explain(error)),
    }
}

/// The kind of source that sends the types that begin like this one.
fn kind_of_prefix(event_type: &str) -> SourceKind {
    match Product::of_type(event_type) {
        Some(Product::Verify) => SourceKind::Verify,
        Some(Product::Notify) => SourceKind::Notify,
        None => SourceKind::Auth,
    }
}

/// Why nobody answered: a sender says only that there was no connection.
async fn no_answer(error: Error, url: &str, issuers: &[reqwest::Certificate]) -> Failure {
    let Some(trouble) = challenge::trouble_at(url, issuers).await else {
        return explain(error);
    };
    let advice = trouble.advice().unwrap_or_else(|| {
        "give the issuers of the bridge's certificate with --ca-file, and check the name in --to"
            .to_owned()
    });
    Failure::new(Exit::Unreachable, format!("{error}: {trouble}")).help(advice)
}

/// What a bridge says of a batch that is in its log.
#[derive(Deserialize)]
struct Accepted {
    accepted: u64,
    duplicates: u64,
}

impl Args {
    fn signing_key(&self) -> Result<SigningKey, Failure> {
        match (&self.key, signing_key::own_path()) {
            (Some(path), _) => signing_key::read(path),
            (None, Some(path)) => signing_key::own(&path),
            (None, None) => Err(Failure::new(Exit::Usage, "this user has no home for a key")
                .help("name a PEM file with an RSA private key with `--key`")),
        }
    }

    /// Writes the public key to the files that were asked for.
    fn write_keys(&self, simulator: &Simulator, id: &str) -> Result<(), Failure> {
        let write = |flag: &str, path: Option<&Path>, text: String| {
            let Some(path) = path else {
                return Ok(());
            };
            public_file::write(path, &text).map_err(|error| {
                let cause = format!("the key cannot be written to {}: {error}", path.display());
                Failure::new(Exit::Usage, cause).help(format!("check the directory of `{flag}`"))
            })
        };
        let set = simulator.jwks(id).map_err(explain)?;
        write("--jwks-out", self.jwks_out.as_deref(), format!("{set:#}\n"))?;
        let pem = simulator.public_pem(id).map_err(explain)?;
        write("--pem-out", self.pem_out.as_deref(), pem)
    }

    fn report(&self, app_id: &str, events: &[Event], answer: &Answer) -> Result<(), Failure> {
        let status = answer.status.as_u16();
        let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if status != 200 {
            let message = said.pointer("/error/message").and_then(Value::as_str);
            let cause = format!(
                "the bridge answered {status}: {}",
                message.unwrap_or("nothing")
            );
            return Err(Failure::new(Exit::Failed, cause).help(remedy(status)));
        }
        // Anything can answer 200 to a POST.
        let counts: Option<Accepted> = serde_json::from_slice(&answer.body).ok();
        let counts =
            counts.filter(|counts| counts.accepted.checked_add(counts.duplicates) == Some(1));
        let Some(Accepted {
            accepted,
            duplicates,
        }) = counts
        else {
            let cause = format!(
                "{} answered 200, but not as a bridge does, so the event is in no log",
                plain::configured(&self.to)
            );
            return Err(Failure::new(Exit::Failed, cause).help(
                "name the bridge's webhook URL with --to: http://HOST:8080/webhooks/{app}; \
                 something else answers there",
            ));
        };
        let id = events.iter().find_map(|event| event.id.as_deref());
        exit::print(&match self.output {
            Output::Human => {
                let named = id.map(|id| format!(" {id}")).unwrap_or_default();
                format!(
                    "{}{named} is in the log\n",
                    exit::one_line(&self.event_type)
                )
            }
            Output::Json => {
                let whole = json!({
                    "type": self.event_type,
                    "id": id,
                    "app_id": app_id,
                    "status": status,
                    "accepted": accepted,
                    "duplicates": duplicates,
                });
                format!("{whole}\n")
            }
        })
    }
}

fn read_payload(path: &Path) -> Result<Map<String, Value>, Failure> {
    let fault = |cause: String| {
        Failure::new(Exit::Usage, format!("{}: {cause}", path.display()))
            .help("give a file with one JSON object: the members of the event's `payload`")
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(PAYLOAD_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| fault(error.to_string()))?;
    if text.len() as u64 > PAYLOAD_BYTES_MAX {
        return Err(fault(format!(
            "it is larger than {PAYLOAD_BYTES_MAX} bytes"
        )));
    }
    // The parser's message has a line and a column, and nothing of the payload.
    serde_json::from_str(&text).map_err(|error| fault(error.to_string()))
}

/// What a refusal most likely means.
fn remedy(status: u16) -> &'static str {
    match status {
        401 => {
            "the bridge does not trust this key: start it with the command that `prelude-bridge \
             simulate` prints, or give it the key set that --jwks-out writes as its `jwks_file`, or the \
             key that --pem-out writes as its `pem_file`"
        }
        403 => "the bridge's `allowed_sources` leaves this machine out",
        404 => "name the bridge's app or source with --app and its webhook URL with --to",
        422 => "check that the id and the URL are those of a source of this kind, or give --source",
        429 | 503 => "try again: the bridge's log says what it waits for",
        _ => "the bridge's log says why",
    }
}

fn explain(error: Error) -> Failure {
    let (exit, help) = match &error {
        Error::NoAnswer(AttemptResult::Unreachable | AttemptResult::TimedOut) => (
            Exit::Unreachable,
            "start the bridge, and name its webhook URL with --to",
        ),
        Error::NoAnswer(_) => (Exit::Unreachable, "check where the URL of --to leads"),
        Error::Options(_) => (Exit::Usage, "check the id given with --app"),
        _ => (
            Exit::Failed,
            "try again; if it happens again, it is a bug in this program",
        ),
    };
    Failure::new(exit, error).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_of_a_type_that_is_not_known_says_who_sends_it() {
        for (event_type, kind) in [
            ("verify.something_new", SourceKind::Verify),
            ("subscription.updated", SourceKind::Notify),
            ("inbound.message.received", SourceKind::Notify),
            ("user.mood.changed", SourceKind::Auth),
            ("verified", SourceKind::Auth),
        ] {
            assert_eq!(kind_of_prefix(event_type), kind, "{event_type}");
        }
    }
}
