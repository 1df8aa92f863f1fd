//! Owns a server in a process of its own: pinned to a core, ended with its owner, and asked by
//! `/proc` what it has cost.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};
use serde_json::Value;

/// The core that servers have to themselves.
pub const SERVER_CORE: usize = 0;
/// The core of everything that loads them.
pub const LOAD_CORE: usize = 1;

/// How long a server may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Binds this thread, and what it starts from now on, to a core.
///
/// # Errors
/// The machine has no such core.
pub fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores)
        .with_context(|| format!("cannot run on core {core}: this needs a machine with two"))
}

/// Lets this thread run anywhere again: for what is done before and after measuring.
///
/// # Errors
/// The system refuses.
pub fn unpin() -> Result<()> {
    let mut cores = CpuSet::new();
    for core in 0..CpuSet::MAX_CPU {
        cores.set(core);
    }
    sched_setaffinity(None, &cores).context("cannot use all cores")
}

/// Raises the limit of open files as far as it goes, for this process and its children. Returns it.
#[must_use]
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it cannot be raised, what is there has to do.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A running server.
pub struct Server {
    child: Child,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Server {
    /// Starts it on the servers' core, and waits for a line of JSON with a `message` of `ready`,
    /// on stdout or stderr.
    ///
    /// # Errors
    /// It does not start, or is not ready in time; with the last that it wrote.
    pub fn start(command: Command) -> Result<Self> {
        let mut server = Self::spawn(command)?;
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = server.child.stdout.take() {
            forward(stdout, sender.clone());
        }
        if let Some(stderr) = server.child.stderr.take() {
            forward(stderr, sender);
        }
        let mut written = Vec::new();
        loop {
            let Ok(line) = lines.recv_timeout(READY_TIMEOUT) else {
                bail!("it was not ready; it wrote:\n{}", written.join("\n"));
            };
            match serde_json::from_str::<Value>(&line) {
                Ok(value) if value["message"] == "ready" => {
                    server.ready = value;
                    return Ok(server);
                }
                _ => written.push(line),
            }
        }
    }

    /// Starts it, for a server whose port is known and that is to be asked whether it is ready.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_silently(command: Command) -> Result<Self> {
        let mut server = Self::spawn(command)?;
        let (sender, _) = mpsc::channel();
        if let Some(stdout) = server.child.stdout.take() {
            forward(stdout, sender.clone());
        }
        if let Some(stderr) = server.child.stderr.take() {
            forward(stderr, sender);
        }
        Ok(server)
    }

    fn spawn(mut command: Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        pin(SERVER_CORE)?;
        let child = command.spawn();
        pin(LOAD_CORE)?;
        Ok(Self {
            child: child.with_context(|| format!("cannot start {program}"))?,
            ready: Value::Null,
        })
    }

    /// The CPU time of all its threads so far, in seconds.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.child.id())
    }

    /// The memory it holds, in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory_bytes(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).context(path)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes: f64 = line
            .and_then(|line| line.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .context("the server has ended")?;
        Ok(kibibytes * 1024.0)
    }

    /// An address that it said when it was ready.
    ///
    /// # Errors
    /// It said none of this name.
    pub fn address(&self, name: &str) -> Result<std::net::SocketAddr> {
        let address = self.ready[name].as_str();
        let address = address.with_context(|| format!("no address {name} in {}", self.ready))?;
        Ok(address.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CPU time of this process so far, in seconds: what the load takes.
#[must_use]
pub fn own_cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds and nanoseconds of one run"
    )]
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    seconds
}

/// User and system time of a process: to the nanosecond, as the kernel keeps it for each thread
/// (`schedstat`). What threads have used that are gone is only in the ticks of the whole (`stat`).
fn cpu_seconds(process: u32) -> Result<f64> {
    let process = Path::new("/proc").join(process.to_string());
    let tasks = fs::read_dir(process.join("task")).context("the server has ended")?;
    let mut seconds = 0.0;
    for task in tasks {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let running = text.split_whitespace().next();
        let nanoseconds: Option<f64> = running.and_then(|number| number.parse().ok());
        seconds += nanoseconds.unwrap_or_default() / 1e9;
    }
    Ok(ticks_seconds(&process.join("stat"))?.max(seconds))
}

fn ticks_seconds(path: &Path) -> Result<f64> {
    let stat = fs::read_to_string(path).context("the server has ended")?;
    // The name of the program may hold anything, but ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').context("an odd stat")?;
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|number| number.parse::<f64>().ok())
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Reads what a server writes to the end, so that it never waits for a reader.
fn forward(output: impl Read + Send + 'static, lines: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Nobody listens once the server is ready.
            let _ = lines.send(line);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_at_least_what_it_says_of_itself() {
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(50) {}
        let own = own_cpu_seconds();
        let seen = cpu_seconds(std::process::id()).unwrap();
        assert!(seen > own / 2.0 && seen < own + 60.0, "{own} {seen}");
    }
}
