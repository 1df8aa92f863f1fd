//! Owns a server in a process of its own: on the server's CPUs, ended with its owner, ready when it
//! says so with a line of JSON. Knows nothing of which server it is.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Error, Stop, cpus::Split, machine::Process};

/// How long a start may take: a debug build on a loaded machine needs seconds.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How many of the last lines are kept for the case that it fails.
const LAST_LINES: usize = 5;

/// Lines that wait to be looked at; more are dropped, so that the server never waits for a reader.
const LINES_MAX: usize = 1_024;

/// A server that was started. It is ended when this is dropped, or `Stop` is told to.
pub struct ServerProcess {
    process: Process,
    stop: Stop,
    ready: Value,
}

impl ServerProcess {
    /// Starts it on the server's CPUs, and waits for a line of JSON with the `message` `ready`, on
    /// stdout or stderr. One runs at a time.
    ///
    /// # Errors
    /// [`Error::System`]; [`Error::Server`], with the last that it said, when it is not ready in
    /// time; [`Error::Interrupted`] when it is not wanted any more.
    pub fn start(command: Command, split: &Split, stop: &Stop) -> Result<Self, Error> {
        let (mut server, lines) = Self::spawn(command, split, stop)?;
        match wait_until_ready(&lines) {
            Ok(ready) => server.ready = ready,
            Err(last_lines) => {
                stop.check()?;
                return Err(failure(last_lines));
            }
        }
        Ok(server)
    }

    /// The same for a server that is ready without saying so.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_silently(command: Command, split: &Split, stop: &Stop) -> Result<Self, Error> {
        Ok(Self::spawn(command, split, stop)?.0)
    }

    fn spawn(
        mut command: Command,
        split: &Split,
        stop: &Stop,
    ) -> Result<(Self, mpsc::Receiver<String>), Error> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Ctrl-C on the terminal is for us alone: the server is ended by its id.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = split
            .on_server(|| command.spawn())
            .map_err(Error::system("the server process cannot be started"))?;
        let process = Process::new(child.id());
        let (sender, lines) = mpsc::sync_channel(LINES_MAX);
        if let Some(stdout) = child.stdout.take() {
            forward(stdout, sender.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            forward(stderr, sender);
        }
        stop.guard_server(child)?;
        let server = Self {
            process,
            stop: stop.clone(),
            ready: Value::Null,
        };
        Ok((server, lines))
    }

    /// An address that it named in its `ready` line.
    ///
    /// # Errors
    /// [`Error::Server`] when it named none of this name.
    pub fn address(&self, name: &str) -> Result<SocketAddr, Error> {
        let address = self.ready.get(name).and_then(Value::as_str);
        address
            .and_then(|address| address.parse().ok())
            .ok_or_else(|| failure(VecDeque::from([self.ready.to_string()])))
    }

    /// Its use of CPU and memory.
    #[must_use]
    pub fn process(&self) -> Process {
        self.process
    }
}

/// Waits for the line that says it; the last lines before where none comes.
fn wait_until_ready(lines: &mpsc::Receiver<String>) -> Result<Value, VecDeque<String>> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut last_lines = VecDeque::with_capacity(LAST_LINES);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(line) = lines.recv_timeout(left) else {
            return Err(last_lines);
        };
        match serde_json::from_str::<Value>(&line) {
            Ok(value) if value.get("message").and_then(Value::as_str) == Some("ready") => {
                return Ok(value);
            }
            Ok(_) | Err(_) => {
                if last_lines.len() == LAST_LINES {
                    last_lines.pop_front();
                }
                last_lines.push_back(line);
            }
        }
    }
}

fn failure(last_lines: VecDeque<String>) -> Error {
    let last_words = match Vec::from(last_lines) {
        lines if lines.is_empty() => "it said nothing".to_owned(),
        lines => lines.join("; "),
    };
    Error::Server {
        what: "did not start",
        last_words,
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.stop.end_server();
    }
}

/// Reads what a server writes to its end, on a thread that ends with it.
fn forward(output: impl Read + Send + 'static, lines: mpsc::SyncSender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Nobody listens once the server is ready.
            let _ = lines.try_send(line);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, cpus::Split};

    fn start(script: &str) -> Result<ServerProcess, Error> {
        let settings = Settings::unpinned();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        ServerProcess::start(command, &Split::new(&settings)?, &Stop::default())
    }

    #[test]
    fn a_server_is_ready_when_it_says_so_on_either_output() {
        for output in [1, 2] {
            let ready = r#"{"message":"ready","grpc":"127.0.0.1:7"}"#;
            let script = format!("echo first; echo '{ready}' >&{output}; exec sleep 60");
            let server = start(&script).unwrap();
            assert_eq!(server.address("grpc").unwrap(), ([127, 0, 0, 1], 7).into());
            let error = server.address("webhook").unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:7"), "{error}");
            assert!(server.process().resident_bytes().is_some());
        }
    }

    #[test]
    fn a_server_that_ends_is_reported_with_its_last_lines() {
        let error = start("for n in 1 2 3 4 5 6 7; do echo line $n; done").err();
        assert_eq!(
            error.unwrap().to_string(),
            "the server did not start: line 3; line 4; line 5; line 6; line 7"
        );
        let error = start("exit 1").err().unwrap();
        assert!(error.to_string().ends_with("it said nothing"), "{error}");
    }
}
