//! What the parts can do at most, each alone in a process on the servers' core.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bench, Sample, sample};

pub(super) fn verification(bench: &Bench) -> Result<Sample> {
    let mut command = Command::new(bench.host.programs.own.join("limits"));
    command.arg("verify");
    let (rate, p50) = run(bench, command)?;
    Ok(sample([
        ("batches/s", rate),
        ("events/s", rate * 10.0),
        ("CPU µs/batch", 1e6 / rate),
        ("p50 µs", p50),
    ]))
}

/// The flush is a wait and no work: it has no CPU time to compare.
pub(super) fn append(bench: &Bench) -> Result<Sample> {
    let mut command = Command::new(bench.host.programs.own.join("limits"));
    command.arg("append").arg(&bench.host.programs.data);
    let (rate, p50) = run(bench, command)?;
    Ok(sample([
        ("batches/s", rate),
        ("events/s", rate * 10.0),
        ("p50 µs", p50),
    ]))
}

fn run(bench: &Bench, mut command: Command) -> Result<(f64, f64)> {
    command.args(["--seconds", &bench.duration.as_secs_f64().to_string()]);
    let output = bench.host.split.on_server(|| command.output());
    let output = output.context("cannot start limits")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "limits: {text}");
    let result: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| result[name].as_f64().context("an odd answer of limits");
    Ok((number("rate")?, number("p50")?))
}
