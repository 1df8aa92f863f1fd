//! Servers of NATS for tests: processes on loopback with directories of their own, alone or as a cluster,
//! which can be killed, stopped and started again, and never outlive their test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "only tests use it, and a test that cannot go on should panic"
)]

use std::{
    env,
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// Long enough for a loaded machine, and never waited out when all is well.
pub const SOON: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
/// Not among those that the system gives to outgoing connections: a node that was killed finds its port
/// free when it starts again.
const PORTS: std::ops::Range<u32> = 20_000..32_000;
/// Another process may have taken a port before the server did.
const STARTS_MAX: usize = 5;

/// How the servers are configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// In the block `jetstream`; none without JetStream.
    pub jetstream: Option<String>,
    /// Beside it, as accounts, users and TLS.
    pub server: String,
    /// The largest message.
    pub max_payload: usize,
    /// Another program than the tool.
    pub program: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            jetstream: Some("sync_interval: always, max_file_store: 8GB".to_owned()),
            server: String::new(),
            max_payload: 8 << 20,
            program: None,
        }
    }
}

/// Some servers.
#[derive(Debug)]
pub struct Nats {
    directory: TempDir,
    nodes: Vec<Node>,
    program: PathBuf,
}

#[derive(Debug)]
struct Node {
    name: String,
    port: u16,
    monitor: u16,
    child: Mutex<Option<Child>>,
}

/// The program that `make tools` installs.
#[must_use]
pub fn program() -> PathBuf {
    let tools = env::var_os("TOOLS_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools"),
        PathBuf::from,
    );
    let program = tools.join("bin/nats-server");
    assert!(
        program.exists(),
        "{} is missing: run `make tools` once, which installs it",
        program.display()
    );
    program
}

impl Nats {
    /// Starts one server, or a cluster, and waits until it is ready.
    pub async fn start(nodes: usize, config: Config) -> Self {
        let mut log = String::new();
        for _ in 0..STARTS_MAX {
            let nats = Self::prepare(nodes, &config);
            for node in 0..nodes {
                nats.restart(node);
            }
            if nats.is_ready(SOON).await {
                return nats;
            }
            log = nats.log(0);
        }
        panic!("the servers of NATS do not start:\n{log}");
    }

    fn prepare(count: usize, config: &Config) -> Self {
        let directory = TempDir::new().unwrap();
        let mut listeners: Vec<TcpListener> = (0..3 * count).map(|_| free_port()).collect();
        let mut port = || listeners.pop().unwrap().local_addr().unwrap().port();
        let ports: Vec<[u16; 3]> = (0..count).map(|_| [port(), port(), port()]).collect();
        let routes: Vec<String> = ports
            .iter()
            .map(|[.., route]| format!("nats://127.0.0.1:{route}"))
            .collect();
        let nodes = ports.iter().enumerate().map(|(index, &[port, monitor, route])| {
            let name = format!("n{index}");
            let store = directory.path().join(&name);
            let mut text = format!(
                "server_name: {name}\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor}\"\n\
                 max_payload: {}\n{}\n",
                config.max_payload, config.server
            );
            if let Some(jetstream) = &config.jetstream {
                writeln!(text, "jetstream {{ store_dir: \"{}\", {jetstream} }}", store.display()).unwrap();
            }
            if count > 1 {
                writeln!(
                    text,
                    // Clients know the servers that they were given, and no way around a proxy.
                    "cluster {{ name: test, listen: \"127.0.0.1:{route}\", no_advertise: true, routes: [{}] }}",
                    routes.join(", ")
                )
                .unwrap();
            }
            fs::write(directory.path().join(format!("{name}.conf")), text).unwrap();
            Node { name, port, monitor, child: Mutex::default() }
        });
        let nodes = nodes.collect();
        Self {
            directory,
            nodes,
            program: config.program.clone().unwrap_or_else(program),
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("nats://127.0.0.1:{}", node.port))
            .collect()
    }

    /// Where a server keeps its streams.
    #[must_use]
    pub fn store(&self, node: usize) -> PathBuf {
        self.directory.path().join(&self.nodes[node].name)
    }

    /// What a server has logged.
    #[must_use]
    pub fn log(&self, node: usize) -> String {
        fs::read_to_string(self.log_path(node)).unwrap_or_default()
    }

    fn log_path(&self, node: usize) -> PathBuf {
        self.directory
            .path()
            .join(format!("{}.log", self.nodes[node].name))
    }

    /// Kills a server, as a crash does.
    pub fn kill(&self, node: usize) {
        self.nodes[node].kill();
    }

    /// Stops a server without closing its connections.
    pub fn pause(&self, node: usize) {
        self.nodes[node].signal(Signal::STOP);
    }

    /// Lets a stopped server go on.
    pub fn resume(&self, node: usize) {
        self.nodes[node].signal(Signal::CONT);
    }

    /// Lets a server read its configuration again.
    pub fn reload(&self, node: usize) {
        self.nodes[node].signal(Signal::HUP);
    }

    /// Starts a server that was killed. Does not wait until it is ready.
    pub fn restart(&self, node: usize) {
        let name = &self.nodes[node].name;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path(node))
            .unwrap();
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(self.directory.path().join(format!("{name}.conf")))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.nodes[node].child() = Some(child);
    }

    /// Waits until all servers that run are ready.
    pub async fn ready(&self) {
        assert!(
            self.is_ready(SOON).await,
            "the servers of NATS are not ready:\n{}",
            self.log(0)
        );
    }

    async fn is_ready(&self, time_max: Duration) -> bool {
        let end = Instant::now() + time_max;
        for node in &self.nodes {
            while node.runs()
                && !node
                    .ask("/healthz")
                    .await
                    .is_some_and(|said| said.contains("200 OK"))
            {
                if Instant::now() >= end {
                    return false;
                }
                sleep(PAUSE).await;
            }
        }
        // One that could not start because another process has its port runs no more.
        self.nodes
            .iter()
            .all(|node| node.child().is_none() || node.runs())
    }

    /// The server that leads a stream, as soon as there is one.
    pub async fn leader(&self, stream: &str) -> usize {
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            for node in self.nodes.iter().filter(|node| node.runs()) {
                let said = node
                    .ask("/jsz?accounts=true&streams=true")
                    .await
                    .unwrap_or_default();
                let body = said.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                let info: Value = serde_json::from_str(body).unwrap_or_default();
                if let Some(leader) = leader_in(&info, stream) {
                    let found = self.nodes.iter().position(|node| node.name == leader);
                    // It may be told of one that was killed.
                    if let Some(found) = found.filter(|&found| self.nodes[found].runs()) {
                        return found;
                    }
                }
            }
            sleep(PAUSE).await;
        }
        panic!("the stream {stream} has no leader");
    }
}

/// Alone, a server leads without saying so.
fn leader_in(info: &Value, stream: &str) -> Option<String> {
    let accounts = info["account_details"].as_array()?;
    let streams = accounts
        .iter()
        .filter_map(|account| account["stream_detail"].as_array())
        .flatten();
    let found = streams
        .into_iter()
        .find(|detail| detail["name"] == stream)?;
    match found.get("cluster") {
        Some(cluster) => cluster["leader"]
            .as_str()
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        None => Some("n0".to_owned()),
    }
}

impl Node {
    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs(&self) -> bool {
        self.child()
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.child().as_ref() {
            kill_process(Pid::from_child(child), signal).unwrap();
        }
    }

    fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What its monitoring port says; nothing when it does not answer, as when it is stopped.
    async fn ask(&self, path: &str) -> Option<String> {
        let asking = async {
            let mut connection = TcpStream::connect(("127.0.0.1", self.monitor)).await.ok()?;
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            connection.write_all(request.as_bytes()).await.ok()?;
            let mut said = String::new();
            connection.read_to_string(&mut said).await.ok()?;
            Some(said)
        };
        timeout(Duration::from_secs(1), asking).await.ok().flatten()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> TcpListener {
    loop {
        let random = getrandom::u32().unwrap();
        let port = PORTS.start + random % (PORTS.end - PORTS.start);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", u16::try_from(port).unwrap())) {
            return listener;
        }
    }
}
