//! `prelude-bridge verify`: one captured delivery, explained.
//!
//! It owns reading the pieces and wording the report; what a signature means is the business of
//! [`signature::explain`](crate::signature::explain).

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use crate::signature::{self, Attempt, Explanation, FetchFault, Finding, KeySource, Options};

/// The largest body that is read: sixteen times what the bridge itself accepts.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The largest header file that is read.
const HEADER_BYTES_MAX: u64 = 64 * 1024;

const VALID: u8 = 0;
const NOT_VALID: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;

/// Explain the signature of one captured delivery: which key made it, with which salt, or what
/// exactly failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        prelude-bridge verify --body body.bin --header-file headers.txt --jwks jwks.json\n  \
        prelude-bridge verify --body - --signature 'rsassa-pss-sha256=…' --pem key.pem < body.bin\n  \
        prelude-bridge verify --body body.bin --signature 'rsassa-pss-sha256=…' \\\n    \
        --jwks https://54e9ujn.session.prelude.dev/.well-known/jwks.json\n\n\
        Save the body byte for byte: an editor's newline at its end makes another body of it.\n\
        Exit codes: 0 valid, 1 not valid, 2 usage or unreadable input, 3 key server unreachable.")]
pub struct Args {
    /// The raw body of the request; - reads standard input
    #[arg(long, value_name = "FILE|-")]
    body: PathBuf,
    /// The value of the X-Webhook-Signature header
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "header_file",
        required_unless_present = "header_file"
    )]
    signature: Option<String>,
    /// A file with that value, or with the whole head of the request
    #[arg(long, value_name = "FILE")]
    header_file: Option<PathBuf>,
    /// The key set: a JWKS file or its URL
    #[arg(
        long,
        value_name = "FILE|URL",
        conflicts_with = "pem",
        required_unless_present = "pem"
    )]
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

/// Runs the command on this process's streams and returns its exit code: 0 valid, 1 not valid,
/// 2 usage or unreadable input, 3 key server unreachable.
pub async fn run(args: Args) -> u8 {
    run_on(
        args,
        &mut std::io::stdin(),
        &mut std::io::stdout(),
        &mut std::io::stderr(),
    )
    .await
}

/// The same on streams of the caller's choice.
pub async fn run_on(
    args: Args,
    stdin: &mut (impl Read + Send),
    stdout: &mut (impl Write + Send),
    stderr: &mut (impl Write + Send),
) -> u8 {
    match report(&args, stdin).await {
        Ok(explanation) => {
            // A closed pipe is success: whoever reads has read enough.
            let _ = print(&explanation, args.output, stdout);
            if explanation.is_valid {
                VALID
            } else {
                NOT_VALID
            }
        }
        Err(fault) => {
            let _ = writeln!(stderr, "error: {}", fault.message);
            fault.code
        }
    }
}

/// Why there is no report at all.
struct Fault {
    message: String,
    code: u8,
}

async fn report(args: &Args, stdin: &mut impl Read) -> Result<Explanation, Fault> {
    let header = match (&args.signature, &args.header_file) {
        (Some(text), _) => header_value(text).to_owned(),
        (None, Some(path)) => read_header(path)?,
        (None, None) => return Err(usage("give --signature or --header-file")),
    };
    let body = read_body(&args.body, stdin)?;
    let source = match (&args.jwks, &args.pem) {
        (Some(text), _) if text.contains("://") => {
            KeySource::url(text).map_err(|fault| usage(fault.to_string()))?
        }
        (Some(path), _) => KeySource::JwksFile(path.into()),
        (None, Some(path)) => KeySource::PemFile(path.clone()),
        (None, None) => return Err(usage("give --jwks or --pem")),
    };
    let keys = signature::fetch(&source, Options::default().fetch_timeout)
        .await
        .map_err(|fault| Fault {
            code: code_of(&fault),
            message: format!("{source}: {fault}"),
        })?;
    Ok(signature::explain(&body, &header, &keys))
}

/// A key server that cannot be reached is not the same as an input that cannot be read.
fn code_of(fault: &signature::Error) -> u8 {
    match fault {
        signature::Error::Fetch(
            FetchFault::Timeout { .. }
            | FetchFault::Transport { .. }
            | FetchFault::Status { .. }
            | FetchFault::Redirect { .. },
        ) => UNREACHABLE,
        _ => USAGE,
    }
}

fn read_body(path: &Path, stdin: &mut impl Read) -> Result<Vec<u8>, Fault> {
    if path == Path::new("-") {
        return read_within(stdin, BODY_BYTES_MAX, "standard input");
    }
    read_file(path, BODY_BYTES_MAX)
}

/// The header's value out of a file that has only it, or the head of a request.
fn read_header(path: &Path) -> Result<String, Fault> {
    let bytes = read_file(path, HEADER_BYTES_MAX)?;
    let text =
        String::from_utf8(bytes).map_err(|_| usage(format!("{} is no text", path.display())))?;
    let named = text
        .lines()
        .find(|line| header_value(line).len() < line.len());
    Ok(header_value(named.unwrap_or(&text)).trim().to_owned())
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

fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Fault> {
    let name = path.display().to_string();
    let mut file = std::fs::File::open(path).map_err(|fault| usage(format!("{name}: {fault}")))?;
    read_within(&mut file, bytes_max, &name)
}

fn read_within(from: &mut impl Read, bytes_max: u64, name: &str) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    from.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|fault| usage(format!("{name}: {fault}")))?;
    if bytes.len() as u64 > bytes_max {
        return Err(usage(format!("{name} is larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn usage(message: impl Into<String>) -> Fault {
    Fault {
        message: message.into(),
        code: USAGE,
    }
}

fn print(explanation: &Explanation, output: Output, out: &mut impl Write) -> std::io::Result<()> {
    match output {
        Output::Human => print_human(explanation, out),
        Output::Json => {
            serde_json::to_writer(&mut *out, &Report::of(explanation))?;
            writeln!(out)
        }
    }
}

fn print_human(explanation: &Explanation, out: &mut impl Write) -> std::io::Result<()> {
    let verdict = if explanation.is_valid {
        "valid"
    } else {
        "not valid"
    };
    writeln!(out, "{verdict}: {}", explanation.sentence)?;
    if explanation.attempts.len() > 1 {
        for attempt in &explanation.attempts {
            writeln!(out, "  - {}", attempt.sentence(explanation.attempts.len()))?;
        }
    }
    if !explanation.attempts.is_empty() {
        for skipped in &explanation.skipped {
            writeln!(out, "  - not used: {skipped}.")?;
        }
    }
    Ok(())
}

/// The report as one JSON object.
#[derive(Serialize)]
struct Report<'a> {
    valid: bool,
    sentence: &'a str,
    attempts: Vec<ReportedAttempt<'a>>,
    skipped: &'a [String],
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
    fn of(explanation: &'a Explanation) -> Self {
        let attempts = &explanation.attempts;
        Self {
            valid: explanation.is_valid,
            sentence: &explanation.sentence,
            attempts: attempts
                .iter()
                .map(|a| ReportedAttempt::of(a, attempts.len()))
                .collect(),
            skipped: &explanation.skipped,
        }
    }
}

impl<'a> ReportedAttempt<'a> {
    fn of(attempt: &'a Attempt, keys: usize) -> Self {
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
            sentence: attempt.sentence(keys),
        }
    }
}
