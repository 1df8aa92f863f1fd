//! Owns the servers of NATS that order and keep the log of several bridges: started on loopback, alone or
//! three of them, ended when they are dropped. What they say of themselves comes from their monitoring.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use prelude_bridge_load::{Engine, ServerProcess, Split, Stop};
use serde_json::Value;
use tempfile::TempDir;

use super::Durability;
use crate::protocol::nats;

/// How long a cluster may take until it has a leader.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Where the servers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the core of the server, because they are what is measured.
    Server,
    /// On the core of the load, beside a bridge that is measured.
    BesideLoad,
}

/// The servers that run now: one after the other takes its work from them, each on streams of its own.
#[derive(Default)]
pub struct Clusters(RefCell<Option<Rc<Cluster>>>);

impl Clusters {
    /// Those that run, if they are of this kind; else others are started in their place.
    ///
    /// # Errors
    /// They do not start.
    pub fn get(
        &self,
        program: &Path,
        data: &Path,
        split: &Split,
        kind: (Durability, Place),
    ) -> Result<Rc<Cluster>> {
        let mut running = self.0.borrow_mut();
        if let Some(cluster) = running.as_ref().filter(|cluster| cluster.kind == kind) {
            return Ok(Rc::clone(cluster));
        }
        // Two at a time would be measured together.
        *running = None;
        let split = match kind.1 {
            Place::Server => split.clone(),
            Place::BesideLoad => split.beside_load(),
        };
        let cluster = Cluster::start(program, data, &split, kind);
        let cluster = Rc::new(cluster.context("the servers of NATS do not start")?);
        *running = Some(Rc::clone(&cluster));
        Ok(cluster)
    }

    /// Ends those that run.
    pub fn end(&self) {
        *self.0.borrow_mut() = None;
    }
}

/// Servers with JetStream.
pub struct Cluster {
    kind: (Durability, Place),
    nodes: Vec<Node>,
    streams: Cell<u32>,
    // Dropped after the servers.
    _home: TempDir,
}

struct Node {
    process: ServerProcess,
    address: SocketAddr,
    monitor: SocketAddr,
}

/// A stream, which is deleted when this is dropped.
pub struct Stream<'a> {
    cluster: &'a Cluster,
    /// Its name.
    pub name: String,
}

impl Cluster {
    fn start(
        program: &Path,
        data: &Path,
        split: &Split,
        kind: (Durability, Place),
    ) -> Result<Self> {
        let home = tempfile::tempdir_in(data)?;
        let count = kind.0.replicas;
        // All are held until all are known.
        let listeners = (0..3 * count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        let ports = listeners.iter().map(TcpListener::local_addr);
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        drop(listeners);
        let (clients, rest) = ports.split_at(count);
        let (monitors, routes) = rest.split_at(count);
        let mut nodes = Vec::new();
        for (number, ((&address, &monitor), route)) in
            clients.iter().zip(monitors).zip(routes).enumerate()
        {
            let text = configuration(
                kind.0,
                home.path(),
                number,
                (address, monitor, *route),
                routes,
            );
            let path = home.path().join(format!("n{number}.conf"));
            fs::write(&path, text)?;
            let mut command = Command::new(program);
            command.arg("-c").arg(path);
            // Each has its own: one `Stop` guards one server.
            let process = ServerProcess::start_silently(command, split, &Stop::default())?;
            nodes.push(Node {
                process,
                address,
                monitor,
            });
        }
        let cluster = Self {
            kind,
            nodes,
            streams: Cell::new(0),
            _home: home,
        };
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    fn wait_until_ready(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        for node in &self.nodes {
            while !node
                .ask("/healthz")
                .is_ok_and(|said| said["status"] == "ok")
            {
                ensure!(Instant::now() < end, "{} is not ready", node.address);
                // One that could not start has ended, and is not awaited.
                let process = node.process.process();
                ensure!(
                    process.resident_bytes().is_some(),
                    "{} has ended",
                    node.address
                );
                thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// Where clients connect.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        let urls = self
            .nodes
            .iter()
            .map(|node| format!("nats://{}", node.address));
        urls.collect()
    }

    /// On how many servers an event is when it is acknowledged.
    #[must_use]
    pub fn replicas(&self) -> usize {
        self.kind.0.replicas
    }

    /// The CPU time of all servers.
    ///
    /// # Errors
    /// One has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let times = self
            .nodes
            .iter()
            .map(|node| node.process.process().cpu_time());
        let sum: Option<Duration> = times.sum();
        sum.context("a server of NATS has ended")
    }

    /// A name that no other stream has. The stream is for others to make.
    #[must_use]
    pub fn new_stream(&self) -> Stream<'_> {
        Stream {
            cluster: self,
            name: self.new_name(),
        }
    }

    /// The same for a stream that is kept until the servers end.
    #[must_use]
    pub fn new_name(&self) -> String {
        self.streams.update(|number| number + 1);
        format!("log-{}", self.streams.get())
    }

    fn send(&self, client: impl Fn() -> nats::Client) -> Result<()> {
        let node = self.nodes.first().context("no servers")?;
        let end = Instant::now() + PATIENCE;
        loop {
            let opened = Engine::new()?.open_all(node.address, [Box::new(client()) as _], || {
                match Instant::now() > end {
                    true => Err(prelude_bridge_load::Error::Stalled(PATIENCE)),
                    false => Ok(()),
                }
            });
            match opened {
                Ok(()) => return Ok(()),
                // There may be no leader yet.
                Err(error) if Instant::now() > end => bail!(error),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

impl Stream<'_> {
    /// Makes it, for single messages with ids.
    ///
    /// # Errors
    /// There is no leader.
    pub fn create(&self) -> Result<()> {
        let (name, replicas) = (&self.name, self.cluster.replicas());
        self.cluster
            .send(|| nats::Client::stream_creator(name, name, replicas))
    }

    /// How many messages it has had, and how many consumers it has.
    ///
    /// # Errors
    /// No server knows it.
    pub fn state(&self) -> Result<(u64, u64)> {
        let mut found = None;
        for node in &self.cluster.nodes {
            let said = node.ask("/jsz?accounts=true&streams=true&consumers=true")?;
            let accounts = said["account_details"].as_array().into_iter().flatten();
            let streams = accounts.flat_map(|account| account["stream_detail"].as_array());
            let mut streams = streams
                .flatten()
                .filter(|stream| stream["name"] == *self.name);
            if let Some(stream) = streams.next() {
                let number = |name: &str| stream["state"][name].as_u64().unwrap_or_default();
                let (messages, consumers) = found.unwrap_or_default();
                let state = (number("last_seq"), number("consumer_count"));
                found = Some((state.0.max(messages), state.1.max(consumers)));
            }
        }
        found.with_context(|| format!("no server has the stream {}", self.name))
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        // It may not have been made; and the servers are ended soon anyhow.
        let name = &self.name;
        let _ = self.cluster.send(|| nats::Client::stream_deleter(name));
    }
}

impl Node {
    fn ask(&self, path: &str) -> Result<Value> {
        let mut connection = TcpStream::connect(self.monitor)?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(connection, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut said = String::new();
        connection.read_to_string(&mut said)?;
        let (_, body) = said.split_once("\r\n\r\n").context("no answer")?;
        Ok(serde_json::from_str(body)?)
    }
}

fn configuration(
    durability: Durability,
    home: &Path,
    number: usize,
    (address, monitor, route): (SocketAddr, SocketAddr, SocketAddr),
    routes: &[SocketAddr],
) -> String {
    let sync = match durability.synced {
        true => "sync_interval: always, ",
        false => "",
    };
    let store = home.join(format!("n{number}"));
    let mut text = format!(
        "server_name: n{number}\nlisten: \"{address}\"\nhttp: \"{monitor}\"\nmax_payload: 8MB\n\
         jetstream {{ store_dir: \"{}\", {sync}max_file_store: 64GB }}\n",
        store.display()
    );
    if durability.replicas > 1 {
        let routes: Vec<String> = routes
            .iter()
            .map(|route| format!("nats://{route}"))
            .collect();
        let routes = routes.join(", ");
        let _ = writeln!(
            text,
            "cluster {{ name: peers, listen: \"{route}\", routes: [{routes}] }}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_several_servers_are_a_cluster_and_only_synced_ones_sync_always() {
        let port = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let text = |replicas, synced| {
            let durability = Durability { replicas, synced };
            let ports = (port(1), port(2), port(3));
            configuration(durability, Path::new("/x"), 0, ports, &[port(3), port(4)])
        };
        let (one, three) = (text(1, false), text(3, true));
        assert!(
            !one.contains("cluster") && !one.contains("sync_interval"),
            "{one}"
        );
        assert!(
            three.contains("[nats://127.0.0.1:3, nats://127.0.0.1:4]"),
            "{three}"
        );
        assert!(three.contains("sync_interval: always"), "{three}");
    }
}
