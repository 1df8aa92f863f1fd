//! `prelude-bridge verify`: one captured delivery, explained.
//!
//! It owns reading the pieces and wording the report; what a signature means is decided by
//! [`signature::explain`], and what a body is by `delivery`.

mod delivery;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{ArgGroup, ValueEnum};
use serde::Serialize;

use crate::signature::{self, Attempt, Explanation, FetchFault, Finding, KeySource, Options};

use self::delivery::Delivery;
use super::exit::{self, Exit, Failure};

/// The largest body that is read: sixteen times what the bridge itself accepts by default.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The largest header file that is read.
const HEADER_BYTES_MAX: u64 = 64 * 1024;

/// Shown below the help; the command line's own tests parse them.
pub const EXAMPLES: &str = "\
Examples:
  A delivery that was captured in files, against a saved key set:
    prelude-bridge verify --body body.bin --header-file headers.txt --jwks jwks.json
  Against the keys that are published now:
    prelude-bridge verify --body body.bin --header-file headers.txt --jwks https://54e9ujn.session.prelude.dev/.well-known/jwks.json
  A delivery of Verify or Notify, with the public key of Prelude's dashboard:
    prelude-bridge verify --body body.bin --header-file headers.txt --pem prelude.pem
  For a program:
    prelude-bridge verify --body - --signature rsassa-pss-sha256=… --pem key.pem --output json

Save the body byte for byte: a newline that an editor adds makes another body of it.

Exit codes: 0 valid, 1 not valid, 2 unreadable input, 3 key server unreachable.";

/// `verify`
#[derive(Debug, clap::Args)]
// As groups, so that whoever gives neither is told of both.
#[command(
    group = ArgGroup::new("header").args(["signature", "header_file"]).required(true),
    group = ArgGroup::new("keys").args(["jwks", "pem"]).required(true),
)]
pub struct Args {
    /// The raw body of the request; - reads standard input
    #[arg(long, value_name = "FILE|-")]
    body: PathBuf,
    /// The value of the X-Webhook-Signature header; or give --header-file
    #[arg(long, value_name = "TEXT")]
    signature: Option<String>,
    /// A file with that value, or with the whole head of the request
    #[arg(long, value_name = "FILE")]
    header_file: Option<PathBuf>,
    /// The key set: a JWKS file or its URL; or give --pem
    #[arg(long, value_name = "FILE|URL")]
    jwks: Option<String>,
    /// The public keys as a PEM file
    #[arg(long, value_name = "FILE")]
    pem: Option<PathBuf>,
    /// How to print the report
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

/// The form of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Sentences
    Human,
    /// One JSON object
    Json,
}

/// Runs the command: [`Exit::Done`] for a valid signature, [`Exit::Failed`] for any other.
///
/// # Errors
/// As [`report`], or a stdout that cannot be written to.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let (exit, text) = report(&args, &mut io::stdin().lock()).await?;
    exit::print(&text)?;
    Ok(exit)
}

/// The report and what the process exits with for it.
///
/// # Errors
/// Where there is nothing to report on: input that cannot be read, or keys that cannot be had.
pub async fn report(args: &Args, stdin: &mut impl Read) -> Result<(Exit, String), Failure> {
    let header = match (&args.signature, &args.header_file) {
        (Some(text), _) => header_value(text).to_owned(),
        (None, Some(path)) => read_header(path)?,
        (None, None) => return Err(usage("give --signature or --header-file")),
    };
    // Before the body, which may come from a terminal.
    let source = key_source(args)?;
    let body = read_body(&args.body, stdin)?;
    let keys = signature::fetch(&source, Options::default().fetch_timeout)
        .await
        .map_err(|fault| no_keys(&source, &fault))?;
    let explanation = signature::explain(&body, &header, &keys);
    let exit = if explanation.is_valid {
        Exit::Done
    } else {
        Exit::Failed
    };
    let delivery = Delivery::of(&body);
    let text = match args.output {
        Output::Human => {
            let is_pem = matches!(source, KeySource::PemFiles(_));
            sentences(&explanation, &delivery, is_pem)
        }
        Output::Json => json(&explanation, &delivery)?,
    };
    Ok((exit, text))
}

fn key_source(args: &Args) -> Result<KeySource, Failure> {
    match (&args.jwks, &args.pem) {
        (Some(text), _) if text.contains("://") => KeySource::url(text).map_err(usage),
        (Some(path), _) => Ok(KeySource::JwksFile(path.into())),
        (None, Some(path)) => Ok(KeySource::PemFiles(vec![path.clone()])),
        (None, None) => Err(usage("give --jwks or --pem")),
    }
}

/// A key server that cannot be reached is not the same as an input that cannot be read.
fn no_keys(source: &KeySource, fault: &signature::Error) -> Failure {
    match fault {
        signature::Error::Fetch(
            FetchFault::Timeout { .. }
            | FetchFault::Transport { .. }
            | FetchFault::Tls { .. }
            | FetchFault::Status { .. }
            | FetchFault::Redirect { .. },
        ) => Failure::new(Exit::Unreachable, fault)
            .help("save the key set with a browser or curl, and give the file with --jwks"),
        signature::Error::Fetch(_) => usage(fault),
        _ => usage(format!("{source}: {fault}")),
    }
}

fn read_body(path: &Path, stdin: &mut impl Read) -> Result<Vec<u8>, Failure> {
    if path == Path::new("-") {
        return read_within(stdin, BODY_BYTES_MAX, "standard input");
    }
    read_file(path, BODY_BYTES_MAX)
}

/// The header's value out of a file that has only it, or the head of a request.
fn read_header(path: &Path) -> Result<String, Failure> {
    let bytes = read_file(path, HEADER_BYTES_MAX)?;
    let name = path.display();
    let text = String::from_utf8(bytes).map_err(|_| usage(format!("{name} is no text")))?;
    let named = text
        .lines()
        .find(|line| header_value(line).len() < line.len());
    let alone = text.trim();
    match named {
        Some(line) if header_value(line).is_empty() => Err(no_header(format!(
            "the header X-Webhook-Signature in {name} is empty"
        ))),
        Some(line) => Ok(header_value(line).to_owned()),
        None if alone.is_empty() => Err(no_header(format!("{name} is empty"))),
        // A value has neither lines nor colons, whatever else may be wrong with it.
        None if alone.contains([':', '\n']) => Err(no_header(format!(
            "{name} has no header X-Webhook-Signature"
        ))),
        None => Ok(alone.to_owned()),
    }
}

fn no_header(cause: String) -> Failure {
    Failure::new(Exit::Usage, cause)
        .help(
            "save all headers of the delivery as they came, or the value of X-Webhook-Signature \
             alone: rsassa-pss-sha256=<base64url>",
        )
        .help(
            "if the delivery came without it, it was not signed by Prelude, or a proxy removed it",
        )
}

/// The text after `X-Webhook-Signature:`, or the text as it is.
fn header_value(text: &str) -> &str {
    match text.split_once(':') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("x-webhook-signature") => {
            value.trim()
        }
        _ => text,
    }
}

fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Failure> {
    let name = path.display().to_string();
    let mut file = std::fs::File::open(path).map_err(|fault| usage(format!("{name}: {fault}")))?;
    read_within(&mut file, bytes_max, &name)
}

fn read_within(from: &mut impl Read, bytes_max: u64, name: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    from.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|fault| usage(format!("{name}: {fault}")))?;
    if bytes.len() as u64 > bytes_max {
        return Err(usage(format!("{name} is larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn usage(cause: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, cause).help("see prelude-bridge verify --help")
}

fn sentences(explanation: &Explanation, delivery: &Delivery, is_pem: bool) -> String {
    let verdict = if explanation.is_valid {
        "valid"
    } else {
        "not valid"
    };
    let mut lines = vec![format!("{verdict}: {}", explanation.sentence)];
    if explanation.attempts.len() > 1 {
        lines.extend(
            explanation
                .attempts
                .iter()
                .map(|a| format!("  - {}", a.sentence())),
        );
    }
    if !explanation.attempts.is_empty() {
        lines.extend(
            explanation
                .skipped
                .iter()
                .map(|key| format!("  - not used: {key}.")),
        );
    }
    lines.push(delivery.sentence());
    if !explanation.is_valid {
        lines.extend(delivery.other_keys(is_pem));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn json(explanation: &Explanation, delivery: &Delivery) -> Result<String, Failure> {
    // Strings and numbers: there is nothing in it that could fail.
    serde_json::to_string(&Report::of(explanation, delivery))
        .map(|text| text + "\n")
        .map_err(|fault| Failure::new(Exit::Failed, fault))
}

/// The report as one JSON object.
#[derive(Serialize)]
struct Report<'a> {
    valid: bool,
    sentence: &'a str,
    attempts: Vec<ReportedAttempt<'a>>,
    skipped: &'a [String],
    delivery: &'a Delivery,
}

#[derive(Serialize)]
struct ReportedAttempt<'a> {
    key: &'a str,
    bits: usize,
    finding: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt_bytes: Option<usize>,
    sentence: String,
}

impl<'a> Report<'a> {
    fn of(explanation: &'a Explanation, delivery: &'a Delivery) -> Self {
        Self {
            delivery,
            valid: explanation.is_valid,
            sentence: &explanation.sentence,
            attempts: explanation
                .attempts
                .iter()
                .map(ReportedAttempt::of)
                .collect(),
            skipped: &explanation.skipped,
        }
    }
}

impl<'a> ReportedAttempt<'a> {
    fn of(attempt: &'a Attempt) -> Self {
        let salt_bytes = match attempt.finding {
            Finding::Valid { salt_bytes } | Finding::OtherBody { salt_bytes, .. } => {
                Some(salt_bytes)
            }
            _ => None,
        };
        Self {
            key: &attempt.key,
            bits: attempt.bits,
            finding: attempt.finding.name(),
            salt_bytes,
            sentence: attempt.sentence(),
        }
    }
}
