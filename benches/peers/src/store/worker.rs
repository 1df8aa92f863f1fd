//! Owns the processes that use the engine without a bridge (`bin/shared-log.rs`), and what they answer.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use prelude_bridge_load::{Process, ServerProcess, Stop};
use serde::Deserialize;
use tempfile::TempDir;

use super::cluster::{Cluster, Stream};
use crate::system::Host;

/// A process that is ready to begin.
pub(super) struct Worker {
    process: ServerProcess,
    control: BufReader<TcpStream>,
    // Dropped after the process.
    _home: TempDir,
}

/// What it has done.
#[derive(Debug, Deserialize)]
pub(super) struct Progress {
    /// Events that were acknowledged since it began.
    pub(super) events: u64,
    /// Of what was acknowledged, or delivered, since the last question, in microseconds.
    pub(super) p50: u64,
    pub(super) p99: u64,
    error: Option<String>,
}

impl Worker {
    /// Starts one that does this; `number` is different for each.
    pub(super) fn start(
        host: &Host,
        cluster: &Cluster,
        stream: &Stream<'_>,
        number: usize,
        task: &[&str],
    ) -> Result<Self> {
        let home = host.home()?;
        let mut command = Command::new(host.programs.own.join("shared-log"));
        command
            .args(["--servers", &cluster.servers().join(",")])
            .args(["--stream", &stream.name])
            .args(["--replicas", &cluster.replicas().to_string()])
            .args(["--number", &number.to_string()])
            .arg("--directory")
            .arg(home.path())
            .args(task);
        let split = host.split.beside_load();
        let process = ServerProcess::start(command, &split, &Stop::default())?;
        let control = TcpStream::connect(process.address("control")?)?;
        Ok(Self {
            process,
            control: BufReader::new(control),
            _home: home,
        })
    }

    pub(super) fn process(&self) -> Process {
        self.process.process()
    }

    /// Lets it begin, the first time, and asks what it has done.
    pub(super) fn progress(&mut self) -> Result<Progress> {
        self.control.get_mut().write_all(b"\n")?;
        let mut line = String::new();
        self.control.read_line(&mut line)?;
        let progress: Progress = serde_json::from_str(&line).context("a process has ended")?;
        match progress.error {
            Some(error) => bail!(error),
            None => Ok(progress),
        }
    }
}
