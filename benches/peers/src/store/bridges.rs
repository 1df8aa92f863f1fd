//! Owns bridges that have one log: processes beside the load, on a stream of their own.

use anyhow::{Context as _, Result};
use prelude_bridge_load::{Process, ServerProcess, Stop};
use tempfile::TempDir;

use super::cluster::{Cluster, Stream};
use crate::system::{Host, Store, bridge};

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
        for _ in 0..count {
            let home = host.home()?;
            let store = Store::JetStream {
                servers: cluster.servers(),
                stream: stream.name.clone(),
                replicas: cluster.replicas(),
            };
            let command = bridge(&host.programs, home.path(), &store)?;
            let server = ServerProcess::start(command, &split, &Stop::default());
            servers.push(server.context("a bridge does not start")?);
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
