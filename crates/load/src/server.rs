//! Owns the bridge that is measured: this very program as `serve`, in a process of its own, on free
//! ports, in a temporary directory, with nothing of the environment's settings. It never outlives
//! its owner.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Context, Error, Stop, Store, events::APP_ID, machine::Process};

/// What the names of the bridge's variables begin with.
const ENVIRONMENT_PREFIX: &str = "PRELUDE_BRIDGE_";

/// How long a start may take: a debug build on a loaded machine needs seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How many lines of its stderr are kept for the case that it fails.
const LAST_LINES: usize = 5;

/// It never asks for a challenge, so nobody has to know it.
const VERIFICATION_TOKEN: &str = "bench-verification-token";

/// Connections and streams beyond the defaults: the load of a whole machine comes from one address.
const LIMITS: [(&str, &str); 6] = [
    ("LIMITS_WEBHOOK_CONNECTIONS_PER_ADDRESS_MAX", "10000"),
    ("LIMITS_GRPC_CONNECTIONS_MAX", "100000"),
    ("LIMITS_GRPC_STREAMS_MAX", "100000"),
    // All subscribers are on this machine.
    ("LIMITS_GRPC_CONNECTIONS_PER_ADDRESS_MAX", "100000"),
    ("LIMITS_GRPC_STREAMS_PER_ADDRESS_MAX", "100000"),
    ("LIMITS_GRPC_SLOW_CONSUMER_TIMEOUT", "300s"),
];

/// A running bridge.
pub(super) struct Server {
    pub(super) webhook: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) process: Process,
    stop: Stop,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    /// Removed when the server is gone.
    _directory: TempDir,
}

impl Server {
    /// Starts one and waits until it is ready. `settings` are variables without their prefix.
    pub(super) fn start(
        context: &Context<'_>,
        store: Store,
        settings: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let directory = directory(context)?;
        fs::write(directory.path().join("jwks.json"), context.key.jwks())
            .map_err(Error::system("the key set cannot be written"))?;
        let mut command = command(&directory, store, settings)?;
        let mut child = context
            .split
            .on_server(|| command.spawn())
            .map_err(Error::system("the server process cannot be started"))?;
        let process = Process::new(child.id());
        let stderr = child.stderr.take();
        context.stop.guard_server(child)?;
        let last_lines = Arc::default();
        let ready = stderr.map(|stderr| follow(stderr, Arc::clone(&last_lines)));
        let mut server = Self {
            webhook: ([127, 0, 0, 1], 0).into(),
            grpc: ([127, 0, 0, 1], 0).into(),
            process,
            stop: context.stop.clone(),
            last_lines,
            _directory: directory,
        };
        let ready = ready.and_then(|ready| ready.recv_timeout(START_TIMEOUT).ok());
        let address =
            |name| -> Option<SocketAddr> { ready.as_ref()?.get(name)?.as_str()?.parse().ok() };
        let (Some(webhook), Some(grpc)) = (address("webhook"), address("grpc")) else {
            context.stop.check()?;
            return Err(server.failure("did not start"));
        };
        (server.webhook, server.grpc) = (webhook, grpc);
        Ok(server)
    }

    /// Says that it failed, with what it said last.
    pub(super) fn failure(&self, what: &'static str) -> Error {
        let lines = self
            .last_lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let last_words = match lines.as_slice() {
            [] => "it said nothing".to_owned(),
            lines => lines.join("; "),
        };
        Error::Server { what, last_words }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.end_server();
    }
}

fn directory(context: &Context<'_>) -> Result<TempDir, Error> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("prelude-bridge-bench-");
    let made = match &context.settings.directory {
        Some(parent) => builder.tempdir_in(parent),
        None => builder.tempdir(),
    };
    made.map_err(Error::system("no temporary directory can be made"))
}

fn command(directory: &TempDir, store: Store, settings: &[(&str, &str)]) -> Result<Command, Error> {
    let program =
        std::env::current_exe().map_err(Error::system("this program's own file is not known"))?;
    let mut command = Command::new(program);
    let anywhere = "127.0.0.1:0";
    command
        .args(["serve", "--log-format", "json", "--log-level", "info"])
        .args(["--store", store.name()])
        .args(["--webhook-listen", anywhere])
        .args(["--grpc-listen", anywhere])
        .args(["--admin-listen", anywhere])
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let is_setting = |name: &std::ffi::OsString| {
        let name = name.to_string_lossy();
        name.starts_with(ENVIRONMENT_PREFIX)
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
        command.env_remove(name);
    }
    let app = [
        ("APP_ID", APP_ID),
        ("VERIFICATION_TOKEN", VERIFICATION_TOKEN),
        ("JWKS_FILE", "jwks.json"),
    ];
    for (name, value) in app.iter().chain(&LIMITS).chain(settings) {
        command.env(format!("{ENVIRONMENT_PREFIX}{name}"), value);
    }
    // Ctrl-C on the terminal is for us alone: the server is ended by its id.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    Ok(command)
}

/// Reads the server's stderr to its end, on a thread that ends with it. The `ready` line comes out.
fn follow(
    stderr: impl Read + Send + 'static,
    last_lines: Arc<Mutex<VecDeque<String>>>,
) -> mpsc::Receiver<Value> {
    let (sender, ready) = mpsc::sync_channel(1);
    let mut sender = Some(sender);
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.is_some()
                && let Ok(value) = serde_json::from_str::<Value>(&line)
                && value.get("message").and_then(Value::as_str) == Some("ready")
                && let Some(sender) = sender.take()
            {
                // Whoever waited may have given up.
                let _ = sender.send(value);
                continue;
            }
            let mut lines = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == LAST_LINES {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    });
    ready
}
