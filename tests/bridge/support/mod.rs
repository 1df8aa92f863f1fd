//! A bridge in a process of its own: the built program with nothing of the environment of whoever
//! runs the tests, a directory of its own, ports that the system chose, and the keys of two apps.
//! It can be stopped, killed and started again on the same directory and the same ports, and never
//! outlives its test.

pub(crate) mod certificates;
mod http;
pub(crate) mod reader;
pub(crate) mod sender;
pub(crate) mod stream;

use std::{
    fs,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, LazyLock, Mutex, mpsc},
    time::Duration,
};

use prelude_bridge::{
    proto::{GetRangeRequest, GetRangeResponse, event_service_client::EventServiceClient},
    simulator::keys::{KeyRing, SetStyle, SignatureStyle, SigningKey},
};
use rustix::{
    event::{PollFd, PollFlags},
    fs::OFlags,
    io::Errno,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::Channel;

pub(crate) use self::http::{Answer, Request, exchange};
use crate::cli::program;

/// Long enough for a loaded machine, and never waited out when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How often something is tried: a number in an environment variable, or what is usual.
pub(crate) fn count(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |count| count.parse().unwrap())
}

/// The app that most tests speak for; `test-key-2048-a` signs for it.
pub(crate) const APP: &str = "54e9ujn";
/// Another configured app; `test-key-2048-b` signs for it.
pub(crate) const OTHER_APP: &str = "another1";
/// The verification token of both. It must appear in no log.
pub(crate) const TOKEN: &str = "canary-token-7Jq2";

/// A person who must appear in no log either. Tests write them wherever personal data can be.
pub(crate) const PHONE: &str = "+12025550142";
pub(crate) const EMAIL: &str = "canary.person@example.com";

/// The signing key of [`APP`].
pub(crate) static KEY: LazyLock<SigningKey> = LazyLock::new(|| key("test-key-2048-a"));
/// The signing key of [`OTHER_APP`].
pub(crate) static OTHER_KEY: LazyLock<SigningKey> = LazyLock::new(|| key("test-key-2048-b"));

/// A key of `tests/data/keys`.
pub(crate) fn key(name: &str) -> SigningKey {
    let path = format!("{}/tests/data/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    SigningKey::from_pem(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The value of `X-Webhook-Signature` for a body of [`APP`].
pub(crate) fn sign(body: &[u8]) -> String {
    KEY.sign(body, SignatureStyle::default()).unwrap()
}

/// The text of the key set that holds this key alone.
pub(crate) fn jwks(key: &SigningKey) -> String {
    KeyRing::new(key.clone())
        .jwks(SetStyle::default())
        .to_string()
}

/// How a bridge is to be started.
#[derive(Default)]
pub(crate) struct Setup {
    variables: Vec<(String, String)>,
    jwks_url: Option<String>,
    in_memory: bool,
    /// Added to the configuration file.
    sections: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Setup {
    /// Adds text to the end of the configuration file, such as a `[[sources]]` section.
    pub(crate) fn section(mut self, text: &str) -> Self {
        self.sections.push_str(text);
        self
    }

    /// Puts a file beside the configuration file.
    pub(crate) fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    /// Sets a key of the configuration, such as `retention.bytes_max`.
    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        let name = key.to_uppercase().replace('.', "_");
        let variable = format!("PRELUDE_BRIDGE_{name}");
        self.variables.push((variable, value.to_owned()));
        self
    }

    /// Fetches the keys of [`APP`] here instead of reading them from a file.
    pub(crate) fn jwks_url(mut self, url: &str) -> Self {
        self.jwks_url = Some(url.to_owned());
        self
    }

    /// Keeps its files in a file system in memory, where there is one: all is done as on a disk, and no
    /// other program that uses the disk makes a flush take long.
    pub(crate) fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(self) -> Bridge {
        let mut bridge = self.prepare();
        bridge.restart().await;
        bridge
    }

    /// Starts it and waits only until its ports answer: for a bridge that has no keys yet.
    pub(crate) async fn start_listening(self) -> Bridge {
        let mut bridge = self.prepare();
        let command = bridge.command();
        bridge.run_until("listening", command).await;
        bridge
    }

    /// Writes its files and starts nothing yet.
    pub(crate) fn prepare(self) -> Bridge {
        let in_memory = || tempfile::tempdir_in("/dev/shm").ok();
        let home = self.in_memory.then(in_memory).flatten();
        let home = home.unwrap_or_else(|| tempfile::tempdir().unwrap());
        let keys = match &self.jwks_url {
            Some(url) => format!("jwks_url = \"{url}\""),
            None => "jwks_file = \"jwks.json\"".to_owned(),
        };
        let token = "verification_token_file = \"token.txt\"";
        let config = format!(
            "[[apps]]\nid = \"{APP}\"\n{token}\n{keys}\n\
             [[apps]]\nid = \"{OTHER_APP}\"\n{token}\njwks_file = \"other-jwks.json\"\n{}",
            self.sections
        );
        for (name, content) in [
            ("bridge.toml", config),
            ("token.txt", TOKEN.to_owned()),
            ("jwks.json", jwks(&KEY)),
            ("other-jwks.json", jwks(&OTHER_KEY)),
        ] {
            fs::write(home.path().join(name), content).unwrap();
        }
        for (name, content) in &self.files {
            fs::write(home.path().join(name), content).unwrap();
        }
        Bridge {
            addresses: Addresses::ANYWHERE,
            variables: self.variables,
            home,
            process: None,
            stderr: Arc::default(),
        }
    }
}

/// Where a bridge listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) webhook: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Addresses {
    /// The ports are for the system to choose.
    const ANYWHERE: Self = {
        let any = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
        Self {
            webhook: any,
            grpc: any,
            admin: any,
        }
    };
}

/// A running (or stopped) bridge.
pub(crate) struct Bridge {
    pub(crate) addresses: Addresses,
    variables: Vec<(String, String)>,
    home: TempDir,
    process: Option<Process>,
    /// What all its processes wrote.
    stderr: Arc<Mutex<Stderr>>,
}

/// What was read of the pipe that is a process's stderr.
#[derive(Default)]
struct Stderr {
    /// The pipe of the running process; reads from it never wait.
    pipe: Option<Arc<OwnedFd>>,
    bytes: Vec<u8>,
}

impl Stderr {
    /// Reads what was written until now. `false` once nobody can write any more.
    fn read(&mut self) -> bool {
        let Some(pipe) = self.pipe.as_deref() else {
            return false;
        };
        let mut part = [0; 65_536];
        loop {
            match rustix::io::read(pipe, &mut part) {
                Ok(0) => break,
                Ok(length) => self.bytes.extend_from_slice(&part[..length]),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(error) => unreachable!("{error}"),
            }
        }
        self.pipe = None;
        false
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A child that does not outlive its owner.
struct Process {
    child: Child,
    /// Ends when stderr is closed, so that nothing written before the end is missed.
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Bridge {
    /// Starts one with every default, the log in its data directory.
    pub(crate) async fn start() -> Self {
        Setup::default().start().await
    }

    /// Starts it again: with the same directory, on the ports that it had.
    pub(crate) async fn restart(&mut self) {
        let command = self.command();
        self.run(command).await;
    }

    /// The program as it is started here, on the ports that it had.
    pub(crate) fn command(&self) -> Command {
        self.command_at("serve", self.addresses)
    }

    /// Another command with the same settings.
    pub(crate) fn command_of(&self, subcommand: &str) -> Command {
        self.command_at(subcommand, self.addresses)
    }

    /// The same on whatever ports are free.
    pub(crate) fn command_elsewhere(&self) -> Command {
        self.command_at("serve", Addresses::ANYWHERE)
    }

    fn command_at(&self, subcommand: &str, addresses: Addresses) -> Command {
        let Addresses {
            webhook,
            grpc,
            admin,
        } = addresses;
        let home = self.home.path();
        let mut command = program(&[subcommand]);
        command
            .arg("--config")
            .arg(home.join("bridge.toml"))
            .arg("--data-dir")
            .arg(home.join("data"))
            .args(["--webhook-listen", &webhook.to_string()])
            .args(["--grpc-listen", &grpc.to_string()])
            .args(["--admin-listen", &admin.to_string()])
            // Unless a test has it otherwise.
            .env("PRELUDE_BRIDGE_LOG_FORMAT", "json")
            .envs(self.variables.iter().cloned());
        command
    }

    /// Starts it without waiting until it is ready.
    pub(crate) fn launch(&mut self) {
        // What it says is kept; where it listens is of no interest.
        let _ = self.spawn(self.command());
    }

    fn spawn(&mut self, command: Command) -> mpsc::Receiver<Value> {
        assert!(self.process.is_none(), "it runs already");
        let (process, started) = spawn(command, Arc::clone(&self.stderr));
        self.process = Some(process);
        started
    }

    /// Starts it in a way of the test's own, and waits until it is ready.
    pub(crate) async fn run(&mut self, command: Command) {
        self.run_until("ready", command).await;
    }

    /// The same, and waits until it says this: `listening` or `ready`.
    pub(crate) async fn run_until(&mut self, message: &'static str, command: Command) {
        if !self.try_run_until(message, command).await {
            // With the reason that it gave.
            unreachable!("not {message}: {}", self.stderr());
        }
    }

    /// The same as [`run`](Self::run), for a start that may fail: says whether it is ready.
    pub(crate) async fn try_run(&mut self, command: Command) -> bool {
        self.try_run_until("ready", command).await
    }

    async fn try_run_until(&mut self, message: &'static str, command: Command) -> bool {
        let started = self.spawn(command);
        let waiting = tokio::task::spawn_blocking(move || {
            loop {
                match started.recv_timeout(SOON) {
                    Ok(line) if line["message"] == message => return Ok(line),
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
        });
        let Ok(ready) = waiting.await.unwrap() else {
            return false;
        };
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        self.addresses = Addresses {
            webhook: address("webhook"),
            grpc: address("grpc"),
            admin: address("admin"),
        };
        true
    }

    /// Starts it again with the same directory, on whatever ports are free: where a test restarts
    /// often and no client has to find it again.
    pub(crate) async fn restart_elsewhere(&mut self) {
        self.addresses = Addresses::ANYWHERE;
        self.restart().await;
    }

    /// Lets it take deliveries that are signed with the keys of this set, from its next start on.
    pub(crate) fn use_keys(&self, jwks: &str) {
        fs::write(self.home.path().join("jwks.json"), jwks).unwrap();
    }

    /// Where its log is. Touch it only while the bridge does not run.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// A file beside its configuration file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Everything it wrote on stderr until this moment, over all restarts. Each line is written before
    /// the program goes on, so a line that comes before an answer is there once the answer is.
    pub(crate) fn stderr(&self) -> String {
        let mut stderr = self.stderr.lock().unwrap();
        stderr.read();
        stderr.text()
    }

    /// The id of the running process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.as_ref().unwrap().child.id()
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process_id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits until it has ended by itself or by a signal.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let ending = tokio::task::spawn_blocking(move || {
            let status = process.child.wait().unwrap();
            // With everything that it wrote.
            drop(process);
            status
        });
        tokio::time::timeout(SOON, ending).await.unwrap().unwrap()
    }

    /// Ends it as a supervisor does, and says how it went.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended().await
    }

    /// Ends it as a supervisor does, and looks into everything that it wrote: nothing of what must
    /// stay out of logs may be in it. Every test of a contract ends with this.
    pub(crate) async fn finish(mut self) {
        let status = self.terminate().await;
        let stderr = self.stderr();
        assert!(status.success(), "{status}: {stderr}");
        for canary in [TOKEN, PHONE, EMAIL] {
            assert!(!stderr.contains(canary), "{canary} in {stderr}");
        }
        assert!(!stderr.contains("panicked"), "{stderr}");
    }

    /// Ends it as a power failure would: `SIGKILL`, at once.
    pub(crate) fn kill(&mut self) {
        assert!(self.process.take().is_some(), "it does not run");
    }

    /// Posts a body of [`APP`] as Prelude would.
    pub(crate) async fn post(&self, body: &[u8]) -> Answer {
        let path = format!("/webhooks/{APP}");
        Request::post(&path, body)
            .header("X-Webhook-Signature", &sign(body))
            .send(self.addresses.webhook)
            .await
            .unwrap()
    }

    /// Posts a batch of these items and expects all of them to be new.
    pub(crate) async fn append<I: AsRef<str>>(&self, items: &[I]) {
        let answer = self.post(batch(APP, items).as_bytes()).await;
        let expected = format!(r#"{{"accepted":{},"duplicates":0}}"#, items.len());
        assert_eq!((answer.status, answer.text()), (200, expected));
    }

    /// A connection to its streams.
    pub(crate) async fn client(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel().await)
    }

    /// A connection to its gRPC port.
    pub(crate) async fn channel(&self) -> Channel {
        let url = format!("http://{}", self.addresses.grpc);
        let endpoint = Channel::from_shared(url).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// The two ends of its log.
    pub(crate) async fn range(&self) -> GetRangeResponse {
        let answer = self.client().await.get_range(GetRangeRequest {}).await;
        answer.unwrap().into_inner()
    }

    /// The sequence number of its newest event.
    pub(crate) async fn head(&self) -> u64 {
        self.range().await.head.unwrap().sequence
    }

    /// A page of its admin port.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        let request = Request::get(path);
        request.send(self.addresses.admin).await.unwrap()
    }

    /// The value of a sample of `/metrics`, named as it is written there, with its labels.
    pub(crate) async fn metric(&self, sample: &str) -> Option<f64> {
        let page = self.admin("/metrics").await.text();
        let line = page.lines().find_map(|line| {
            let rest = line.strip_prefix(sample)?;
            rest.strip_prefix(' ')
        });
        line.map(|value| value.trim().parse().unwrap())
    }

    /// Waits until a sample of `/metrics` has this value: a client may see what happens before it is counted.
    pub(crate) async fn counts(&self, sample: &str, value: f64) {
        self.counts_what(sample, |counted| counted == value).await;
    }

    /// Waits until a sample of `/metrics` has at least this value.
    pub(crate) async fn counts_at_least(&self, sample: &str, value: f64) {
        self.counts_what(sample, |counted| counted >= value).await;
    }

    async fn counts_what(&self, sample: &str, wanted: impl Fn(f64) -> bool) {
        let mut last = None;
        let counted = async {
            loop {
                last = self.metric(sample).await;
                if last.is_some_and(&wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let counted = tokio::time::timeout(SOON, counted).await;
        assert!(counted.is_ok(), "{sample} stays {last:?}");
    }
}

/// Starts the program. Its `listening` and `ready` lines come through the channel, which closes when
/// it ends.
fn spawn(mut command: Command, stderr: Arc<Mutex<Stderr>>) -> (Process, mpsc::Receiver<Value>) {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pipe = Arc::new(OwnedFd::from(child.stderr.take().unwrap()));
    rustix::fs::fcntl_setfl(&*pipe, OFlags::NONBLOCK).unwrap();
    let mut looked_at = {
        let mut stderr = stderr.lock().unwrap();
        stderr.pipe = Some(Arc::clone(&pipe));
        stderr.bytes.len()
    };
    let (sender, started) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        loop {
            // Until something is there to read, or nobody can write any more. A signal is as good.
            let _ = rustix::event::poll(&mut [PollFd::new(&*pipe, PollFlags::IN)], None);
            let mut stderr = stderr.lock().unwrap();
            let goes_on = stderr.read();
            let new = &stderr.bytes[looked_at..];
            let whole = new
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            for line in String::from_utf8_lossy(&new[..whole]).lines() {
                for message in ["listening", "ready"] {
                    if let Some(fields) = fields_of(message, line) {
                        // Nobody waits for it any more where a start took too long.
                        let _ = sender.send(fields);
                    }
                }
            }
            looked_at += whole;
            if !goes_on {
                break;
            }
        }
    });
    let reader = Some(reader);
    (Process { child, reader }, started)
}

/// The fields of a line with this message, in either format of the log.
fn fields_of(message: &str, line: &str) -> Option<Value> {
    if let Ok(object) = serde_json::from_str::<Value>(line) {
        return (object["message"] == message).then_some(object);
    }
    let (_, fields) = line.split_once(&format!(" INFO {message} "))?;
    let pairs = fields.split(' ').filter_map(|field| field.split_once('='));
    let pairs = pairs.chain([("message", message)]);
    let object = pairs.map(|(name, value)| (name.to_owned(), Value::from(value)));
    Some(Value::Object(object.collect()))
}

/// The body of a batch with these items, byte for byte.
pub(crate) fn batch<I: AsRef<str>>(app: &str, items: &[I]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!(r#"{{"app_id":"{app}","events":[{}]}}"#, items.join(","))
}

/// The date of the items: that of the start of the tests.
static DATE: LazyLock<String> =
    LazyLock::new(|| jiff::Timestamp::now().strftime("%FT%TZ").to_string());

/// A small item with this id, of this type and user.
pub(crate) fn item(id: &str, event_type: &str, user: &str) -> String {
    dated(id, event_type, user, &DATE)
}

/// The same with this date.
pub(crate) fn dated(id: &str, event_type: &str, user: &str, date: &str) -> String {
    format!(
        r#"{{"id":"{id}","type":"{event_type}","payload":{{"user_id":"{user}","email":"{EMAIL}","phone":"{PHONE}"}},"created_at":"{date}"}}"#
    )
}
