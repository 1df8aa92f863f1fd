//! Owns bridges that have one log: processes beside the load, on a stream of their own.

use anyhow::{Context as _, Result};
use prelude_bridge_load::{Process, ServerProcess, Stop};
use tempfile::TempDir;

use super::cluster::{Cluster, Stream};
use crate::system::{Host, Store, bridge};

const ATTEMPTS_MAX: usize = 5;

/// Bridges that run, the first one first.
pub(super) struct Bridges {
    pub(super) servers: Vec<ServerProcess>,
    // Dropped after the servers.
    _homes: Vec<TempDir>,
}

impl Bridges {
    /// Starts them with an empty log.
    pub(super) fn start(
        host: &Host,
        cluster: &Cluster,
        stream: &Stream<'_>,
        count: usize,
    ) -> Result<Self> {
        let (mut servers, mut homes) = (Vec::new(), Vec::new());
        let split = host.split.beside_load();
        let store = Store::JetStream {
            servers: cluster.servers(),
            stream: stream.name.clone(),
            replicas: cluster.replicas(),
        };
        for _ in 0..count {
            let home = host.home()?;
            let mut attempts = 1;
            // A stream that was just made on three servers may have no leader for a moment, and a bridge
            // leaves it to its supervisor to start it again.
            let server = loop {
                let command = bridge(&host.programs, home.path(), &store)?;
                match ServerProcess::start(command, &split, &Stop::default()) {
                    Err(_) if attempts < ATTEMPTS_MAX => attempts += 1,
                    started => break started.context("a bridge does not start")?,
                }
            };
            servers.push(server);
            homes.push(home);
        }
        Ok(Self {
            servers,
            _homes: homes,
        })
    }

    pub(super) fn processes(&self) -> impl Iterator<Item = Process> {
        self.servers.iter().map(ServerProcess::process)
    }
}
