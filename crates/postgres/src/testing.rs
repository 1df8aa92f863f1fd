//! PostgreSQL servers for tests: a real one, of Debian's package, in a temporary directory and on a free
//! port. A server is paused, killed, restarted and promoted as a test wants; dropping it kills its own
//! processes and removes its directory. Root cannot run PostgreSQL, so for root it runs as `postgres`.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where its server cannot be started"
)]

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

pub use crate::options::local;
use crate::{OpenError, Opened, Options, Patience};

/// [`open`](crate::open) with two seconds of patience instead of ten, for tests of what does not answer.
///
/// # Errors
/// [`OpenError`].
pub async fn open_impatiently(options: Options) -> Result<Opened, OpenError> {
    let seconds = Duration::from_secs(2);
    let patience = Patience {
        append: seconds,
        answer: seconds,
        silence: seconds,
    };
    crate::open_with(options, patience).await
}

/// How long a server may take to start or stop on a busy machine.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// What every server of tests has: room for all connections of a test, and its sockets at home.
const SETTINGS: &str = "listen_addresses = '127.0.0.1'
max_connections = 60
shared_buffers = 32MB
wal_keep_size = 256MB
unix_socket_directories = ''
logging_collector = off
timezone = 'UTC'
";

/// A server, and everything that belongs to it.
pub struct Server {
    directory: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Server {
    /// A server with one superuser, `bridge`, whom it trusts.
    #[must_use]
    pub fn start() -> Self {
        Self::with_settings("")
    }

    /// The same with lines for `postgresql.conf`.
    #[must_use]
    pub fn with_settings(settings: &str) -> Self {
        let mut server = Self::new();
        let initdb = ["initdb", "--no-sync", "--auth=trust", "--username=bridge"];
        let initdb = initdb
            .iter()
            .chain(&["--no-instructions", "--encoding=UTF8", "--locale=C"]);
        let data = server.data();
        run(program(initdb).arg("--pgdata").arg(data));
        server.configure(SETTINGS);
        server.configure(settings);
        server.restart();
        server
    }

    /// A primary, and a standby that its commits wait for.
    #[must_use]
    pub fn with_standby() -> (Self, Self) {
        let mut primary = Self::start();
        let mut standby = Self::new();
        let data = standby.data();
        let from = format!(
            "host=127.0.0.1 port={} user=bridge application_name=standby",
            primary.port
        );
        let backup = [
            "pg_basebackup",
            "--checkpoint=fast",
            "--write-recovery-conf",
            "--no-sync",
        ];
        run(program(&backup)
            .args(["--dbname", &from, "--pgdata"])
            .arg(data));
        standby.restart();
        primary.configure("synchronous_standby_names = 'ANY 1 (*)'\n");
        primary.reload();
        primary.until(
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'",
            "1",
        );
        (primary, standby)
    }

    fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("prelude-bridge-postgres-")
            .tempdir()
            .unwrap();
        if geteuid().is_root() {
            run(Command::new("chown").arg(OWNER).arg(directory.path()));
        }
        Self {
            directory,
            port: free_port(),
            process: None,
        }
    }

    /// The directory that is the server's own: for certificates, or a file system of another size.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The directory of the database.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of its first database, for its superuser.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://bridge@127.0.0.1:{}/postgres", self.port)
    }

    /// Adds lines to `postgresql.conf`. They count after a reload or restart.
    pub fn configure(&mut self, settings: &str) {
        append(&self.data().join("postgresql.conf"), settings);
    }

    /// Puts lines before those of `pg_hba.conf`.
    pub fn authenticate(&mut self, lines: &str) {
        let path = self.data().join("pg_hba.conf");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{lines}\n{before}")).unwrap();
    }

    /// Has it read its settings again.
    pub fn reload(&mut self) {
        self.signal(Signal::HUP);
    }

    /// Starts it, or kills it before that when it runs.
    pub fn restart(&mut self) {
        self.kill();
        self.process = Some(self.spawn());
        let port = self.port.to_string();
        self.wait("start", |server| {
            let process = server.process.as_mut();
            if process.is_some_and(|process| process.try_wait().unwrap().is_some()) {
                // A process of the one that was killed may still be about to end: it has the memory that they share.
                server.process = Some(server.spawn());
            }
            let mut ready = program(&["pg_isready", "--quiet", "--host=127.0.0.1", "--port"]);
            ready.arg(&port).status().unwrap().success()
        });
    }

    fn spawn(&self) -> Child {
        let log = fs::OpenOptions::new();
        let log = { log }
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let mut command = program(&["postgres"]);
        command
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command.spawn().unwrap()
    }

    /// Ends every process of it at once, as a machine does that loses power (though what the system has in
    /// memory is kept).
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        let main = pid(&process);
        // The main process would start others for those that are killed.
        let _ = kill_process(main, Signal::STOP);
        for child in children(main) {
            let _ = kill_process(child, Signal::KILL);
        }
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Stops it in good order, with all its connections.
    pub fn stop(&mut self) {
        self.signal(Signal::INT);
        self.wait("stop", |server| {
            server
                .process
                .as_mut()
                .unwrap()
                .try_wait()
                .unwrap()
                .is_some()
        });
        self.process = None;
    }

    /// Holds every process of it, until [`resume`](Self::resume). Its connections stay open.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        for child in self.children() {
            let _ = kill_process(child, Signal::STOP);
        }
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        for child in self.children() {
            let _ = kill_process(child, Signal::CONT);
        }
        self.signal(Signal::CONT);
    }

    /// Makes a standby a primary.
    pub fn promote(&mut self) {
        self.sql("SELECT pg_promote()");
        self.until("SELECT pg_is_in_recovery()", "f");
    }

    /// Runs a statement as its superuser; what it prints, without decoration.
    #[must_use]
    pub fn ask(&self, statement: &str) -> String {
        let mut psql = program(&[
            "psql",
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
        ]);
        psql.args([
            "--set=ON_ERROR_STOP=1",
            "--command",
            statement,
            "--dbname",
            &self.url(),
        ]);
        run(&mut psql).trim().to_owned()
    }

    /// The same without a look at the answer.
    pub fn sql(&self, statement: &str) {
        let _ = self.ask(statement);
    }

    /// Asks until the answer is this one.
    pub fn until(&mut self, question: &str, answer: &str) {
        self.wait(question, |server| server.ask(question) == answer);
    }

    /// What it wrote into its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let until = Instant::now() + START_TIME_MAX;
        while !done(self) {
            assert!(
                Instant::now() < until,
                "{what}: not within {START_TIME_MAX:?}: {}",
                self.log()
            );
            thread::sleep(LOOK);
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.process.as_ref().unwrap()), signal).unwrap();
    }

    fn children(&self) -> Vec<Pid> {
        children(pid(self.process.as_ref().unwrap()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Who runs servers when root runs tests: the user of Debian's package.
const OWNER: &str = "postgres:postgres";

/// A program of PostgreSQL, to be run as somebody who may.
fn program<'a>(arguments: impl IntoIterator<Item = &'a &'a str>) -> Command {
    let mut arguments = arguments.into_iter();
    let program = binaries().join(arguments.next().unwrap());
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).current_dir("/");
    command
}

/// The newest PostgreSQL that is installed as Debian does it.
fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = versions
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, path)| path.join("initdb").exists())
        .max();
    let Some((_, path)) = newest else {
        panic!("PostgreSQL is missing: run `make tools` once, which installs Debian's postgresql");
    };
    path
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    writeln!(file, "{text}").unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn pid(process: &Child) -> Pid {
    Pid::from_child(process)
}

/// The processes that a process has started: every connection has one, in a group of its own.
fn children(of: Pid) -> Vec<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children", pid = of.as_raw_nonzero());
    let text = fs::read_to_string(path).unwrap_or_default();
    let numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
}
