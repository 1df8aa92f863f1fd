//! The webhook port over real sockets, byte by byte.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::OnceLock,
};

use futures_util::future::FutureExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use super::*;
use crate::{
    log::{
        self, memory,
        testing::{Script, Scripted},
    },
    signature::KeySource,
    simulator::keys::{AlgLabel, SignatureStyle, SigningKey},
};

const APP: &str = "54e9ujn";
const TOKEN: &str = "a token & more";
const EMPTY: &str = r#"{"app_id":"54e9ujn","events":[]}"#;
const TWO: &str = r#"{"app_id":"54e9ujn","events":[{"id":"evt_1","type":"user.created"},{"id":"evt_2","type":"of.a.stranger"}]}"#;

mod activation;
mod age;
mod answers;
mod limits;
mod protocol;
mod sources;

fn key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::generate(2048).unwrap())
}

fn signature(body: &[u8]) -> String {
    key().sign(body, SignatureStyle::default()).unwrap()
}

type TestLog = Scripted<memory::Memory>;

struct Bridge {
    address: SocketAddr,
    log: Arc<TestLog>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    running: JoinHandle<net::Drained>,
    _keys: tempfile::TempDir,
}

impl Bridge {
    async fn start() -> Self {
        Self::start_with(Options::default(), &[APP]).await
    }

    /// All apps have the same key; `keyless` has none.
    async fn start_with(options: Options, apps: &[&str]) -> Self {
        let (receiver, log, metrics, keys) = receiver(options, apps);
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = net::Listener::bind("webhook", "--webhook-listen", any)
            .await
            .unwrap();
        let shutdown = CancellationToken::new();
        Self {
            address: listener.local_addr(),
            running: tokio::spawn(receiver.run(listener, shutdown.clone())),
            log,
            metrics,
            shutdown,
            _keys: keys,
        }
    }

    async fn client(&self) -> Client {
        Client {
            stream: TcpStream::connect(self.address).await.unwrap(),
            read: Vec::new(),
        }
    }

    /// Sends a request on a connection of its own.
    async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = self.client().await;
        client.send(request).await;
        client.answer().await.expect("an answer")
    }

    fn events(&self) -> u64 {
        self.log.range().event_count()
    }
}

/// A receiver that is not run, with its log, its metrics, and where its keys are. All apps have the
/// same key; `keyless` has none.
fn receiver(
    options: Options,
    apps: &[&str],
) -> (Receiver, Arc<TestLog>, Arc<Metrics>, tempfile::TempDir) {
    let keys = tempfile::tempdir().unwrap();
    let path = keys.path().join("jwks.json");
    let jwks = serde_json::json!({ "keys": [key().public_jwk(AlgLabel::default())] });
    std::fs::write(&path, jwks.to_string()).unwrap();
    let app = |id: &&str| {
        let source = match *id {
            // Nobody listens on port 1.
            "keyless" => KeySource::url("http://127.0.0.1:1/jwks.json").unwrap(),
            _ => KeySource::JwksFile(path.clone()),
        };
        App {
            id: (*id).into(),
            deliveries: match *id {
                "verify" => Deliveries::SingleEvents(Product::Verify),
                "notify" => Deliveries::SingleEvents(Product::Notify),
                _ => {
                    let token = VerificationToken::new(TOKEN);
                    Deliveries::Batches(VerificationTokens::new(vec![token]))
                }
            },
            keyring: Keyring::open(id, source, Default::default(), None).unwrap(),
        }
    };
    let log = memory::open(memory::Options::default()).unwrap();
    let log = Arc::new(Scripted::new(log));
    let metrics = Arc::new(Metrics::new());
    let apps = apps.iter().map(app).collect();
    let receiver = Receiver::new(options, apps, Arc::clone(&log) as _, Arc::clone(&metrics));
    (receiver, log, metrics, keys)
}

struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next answer; `None` where the connection ends without one.
    async fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.buffered() {
                return Some(answer);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The connection ends, and nothing was lost by that.
    async fn assert_not_reset(&mut self) {
        assert_eq!(self.stream.read(&mut [0]).await.unwrap(), 0);
        assert!(self.stream.take_error().unwrap().is_none());
    }

    async fn fill(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let length = self.stream.read(&mut bytes).await.unwrap_or(0);
        self.read.extend_from_slice(&bytes[..length]);
        length > 0
    }

    fn buffered(&mut self) -> Option<Answer> {
        let end = self.read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.read[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let answer = Answer {
            status,
            head: head.to_ascii_lowercase(),
            body: String::new(),
        };
        let length: usize = answer
            .header("content-length")
            .map_or(0, |it| it.parse().unwrap());
        let body = self.read.get(end..end + length)?.to_vec();
        self.read.drain(..end + length);
        Some(Answer {
            body: String::from_utf8(body).unwrap(),
            ..answer
        })
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{self:?}"
        );
        serde_json::from_str(&self.body).unwrap()
    }

    /// Checks a refusal's whole form, and that what is retryable says when and nothing else does.
    #[track_caller]
    fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{self:?}");
        assert!(!error["message"].as_str().unwrap().is_empty());
        let retryable = matches!(status, 408 | 429 | 503);
        assert_eq!(error["retryable"], retryable);
        assert_eq!(self.header("retry-after").is_some(), retryable, "{self:?}");
    }

    #[track_caller]
    fn assert_accepted(&self, accepted: u64, duplicates: u64) {
        assert_eq!(self.status, 200, "{self:?}");
        let expected = format!(r#"{{"accepted":{accepted},"duplicates":{duplicates}}}"#);
        assert_eq!(self.body, expected);
        self.json();
    }
}

/// A connection over which nothing has been sent, but for its first answer.
async fn pooled(bridge: &Bridge) -> Client {
    let mut client = bridge.client().await;
    client.send(delivery("/webhooks", EMPTY)).await;
    client.answer().await.unwrap().assert_accepted(0, 0);
    client
}

/// A request with a length; `headers` are whole lines without their ends.
fn post_with(path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: bridge\r\n");
    for line in headers {
        let _ = write!(head, "{line}\r\n");
    }
    let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A delivery as the sender makes it.
fn delivery(path: &str, body: &str) -> Vec<u8> {
    let signature = format!("X-Webhook-Signature: {}", signature(body.as_bytes()));
    post_with(
        path,
        &["Content-Type: application/json", &signature],
        body.as_bytes(),
    )
}

/// The same, in chunks of a size.
fn chunked_delivery(path: &str, body: &str, chunk_bytes: usize) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: bridge\r\nTransfer-Encoding: chunked\r\nX-Webhook-Signature: {}\r\n\r\n",
        signature(body.as_bytes())
    )
    .into_bytes();
    for chunk in body.as_bytes().chunks(chunk_bytes) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

/// A batch of exactly so many bytes.
fn batch_of_bytes(bytes: usize) -> String {
    let frame = r#"{"app_id":"54e9ujn","events":[""]}"#.len();
    format!(
        r#"{{"app_id":"54e9ujn","events":["{}"]}}"#,
        "x".repeat(bytes - frame)
    )
}
