//! What the parts of an ingest can do at most, each alone: aws-lc's verification of signed batches,
//! and their append to a file with one flush each. Prints one line of JSON.

use std::{
    fs::File,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PSS_2048_8192_SHA256};
use clap::{Parser, Subcommand};
use prelude_bridge_load::Key;
use prelude_bridge_peers::events;

/// Batches that are used again and again.
const BATCHES: usize = 100;

/// A batch and its signature.
struct Signed {
    body: String,
    signature: Vec<u8>,
}

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Events in a batch.
    #[arg(long, default_value_t = 10, global = true)]
    events: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 1.0, global = true)]
    seconds: f64,
}

#[derive(Subcommand)]
enum Command {
    /// Verify.
    Verify,
    /// Append and flush to a file in this directory.
    Append {
        /// On the disk that is meant.
        directory: PathBuf,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let key = Key::generate()?;
    let signed: Vec<Signed> = (0..BATCHES)
        .map(|batch| {
            let body = events::body((batch * arguments.events) as u64, arguments.events);
            let signature = key.sign(body.as_bytes())?;
            Ok(Signed { body, signature })
        })
        .collect::<Result<_>>()?;
    let duration = Duration::from_secs_f64(arguments.seconds);
    let mut took = match arguments.command {
        Command::Verify => {
            let key = ParsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key.public_der()?);
            let key = key.ok().context("no key")?;
            repeat(duration, &signed, |Signed { body, signature }| {
                let verified = key.verify_sig(body.as_bytes(), signature);
                verified.ok().context("a wrong signature")
            })?
        }
        Command::Append { directory } => {
            let path = tempfile::NamedTempFile::new_in(directory)?;
            let mut file = File::create(path.path())?;
            repeat(duration, &signed, |signed| {
                file.write_all(signed.body.as_bytes())?;
                Ok(file.sync_data()?)
            })?
        }
    };
    took.sort_unstable();
    let total: Duration = took.iter().sum();
    let median = took.get(took.len() / 2).context("nothing was measured")?;
    let line = serde_json::json!({
        "rate": took.len() as f64 / total.as_secs_f64(),
        "p50": median.as_secs_f64() * 1e6,
    });
    println!("{line}");
    Ok(())
}

fn repeat(
    duration: Duration,
    signed: &[Signed],
    mut work: impl FnMut(&Signed) -> Result<()>,
) -> Result<Vec<Duration>> {
    ensure!(!signed.is_empty(), "no batches");
    let started = Instant::now();
    let mut took = Vec::new();
    for signed in signed.iter().cycle() {
        let before = Instant::now();
        if before - started > duration {
            break;
        }
        work(signed)?;
        took.push(before.elapsed());
    }
    Ok(took)
}
