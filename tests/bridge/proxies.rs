//! Streams through the proxies that stand before bridges, with the settings of `examples/proxies`:
//! an idle stream outlives the proxy's patience, the last words of a drain come through, and a
//! client that resumes is led to the next process. And deliveries through nginx, which says where they
//! come from. `make tools` installs the proxies; the test of
//! one that is missing says so, and with `CI=true` fails.

use std::{
    env, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use prelude_bridge::proto::{
    SubscribeRequest, event_service_client::EventServiceClient, start_position::Position,
    subscribe_response::Notice,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    support::{
        APP, Bridge, Setup, batch, item,
        sender::eventually,
        sign,
        stream::{Earliest, Received, after, from, reason},
    },
    tools::tool,
};

/// How long the proxies wait here instead of for hours, in seconds.
const PATIENCE_SECONDS: u32 = 2;
/// Together they take twice as long as that.
const PROGRESS_INTERVAL_MILLISECONDS: i32 = 500;
const PROGRESS_NOTICES: usize = 8;

/// What comes before the name of Envoy's settings: others of it may run on this machine.
pub(crate) const ENVOY_ARGUMENTS: [&str; 6] = [
    "--concurrency",
    "1",
    "--use-dynamic-base-id",
    "-l",
    "warning",
    "-c",
];

/// nginx ends with its test only as a single process, and writes below its own directory.
pub(crate) const NGINX_ARGUMENTS: [&str; 5] = [
    "-p",
    ".",
    "-g",
    "daemon off; master_process off; pid nginx.pid; error_log stderr;",
    "-c",
];

/// A proxy in a process of its own before a bridge.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) url: String,
    home: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Starts `program` with a file of `examples/proxies`, in which its own port, that of the bridge
    /// and its patience are replaced. `arguments` come before the file's path.
    async fn start(
        program: &Path,
        arguments: &[&str],
        name: &str,
        patience: (&str, &str),
        bridge: &Bridge,
    ) -> Self {
        let port = free_port().await;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/proxies");
        let mut settings = fs::read_to_string(file.join(name)).unwrap();
        let bridge_port = bridge.addresses.grpc.port().to_string();
        for (of_example, here) in [
            ("50050", port.to_string().as_str()),
            ("50051", bridge_port.as_str()),
            patience,
        ] {
            assert!(settings.contains(of_example), "{of_example} is not in it");
            settings = settings.replace(of_example, here);
        }
        Self::start_with(program, arguments, (name, &settings), port).await
    }

    /// Starts `program` with these settings, by which it listens on `port`. They are in a file of
    /// this name: Envoy reads YAML only where the name says so.
    pub(crate) async fn start_with(
        program: &Path,
        arguments: &[&str],
        (name, settings): (&str, &str),
        port: u16,
    ) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(name);
        fs::write(&path, settings).unwrap();
        let log = fs::File::create(home.path().join("log")).unwrap();
        let child = Command::new(program)
            .current_dir(home.path())
            .args(arguments)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut proxy = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            home,
        };
        eventually(async || {
            let ended = proxy.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", proxy.log());
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        proxy
    }

    async fn client(&self) -> EventServiceClient<Channel> {
        let channel = Channel::from_shared(self.url.clone()).unwrap();
        EventServiceClient::new(channel.connect().await.unwrap())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap()
    }
}

pub(crate) async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// Where a program of the system is. `None` says, loudly, that its test proves nothing here.
#[expect(clippy::print_stderr, reason = "whoever runs the test reads it")]
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian has its servers where only root looks for programs.
    let places = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = places.map(|place| place.join(name)).find(|it| it.exists());
    if found.is_none() {
        assert_ne!(
            env::var("CI").as_deref(),
            Ok("true"),
            "{name} is missing: run `make tools` as root, which installs it"
        );
        eprintln!("NOT PROVEN: {name} is not installed");
    }
    found
}

fn everything(progress_interval_milliseconds: i32) -> SubscribeRequest {
    SubscribeRequest {
        progress_interval: Some(prost_types::Duration {
            seconds: i64::from(progress_interval_milliseconds / 1_000),
            nanos: progress_interval_milliseconds % 1_000 * 1_000_000,
        }),
        ..from(Position::Earliest(Earliest {}))
    }
}

/// What the guide for consumers promises of a proxy with these settings.
async fn carries_streams(proxy: &Proxy, bridge: &mut Bridge) {
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let mut client = proxy.client().await;

    // Nothing but progress for longer than the proxy waits.
    let request = everything(PROGRESS_INTERVAL_MILLISECONDS);
    let mut stream = Received::subscribe(&mut client, request).await.unwrap();
    for _ in 0..PROGRESS_NOTICES {
        stream
            .until(|notice| matches!(notice, Notice::Progress(_)))
            .await;
    }
    bridge
        .append(&[item("evt_2", "user.created", "usr_1")])
        .await;
    stream.until_events(2).await;

    // Without progress the proxy would have ended it: the notices are what kept it.
    let mut silent = Received::subscribe(&mut client, everything(60_000))
        .await
        .unwrap();
    let cut = silent.end().await;
    // Some just end the stream: that is for the client to resume as well.
    let may_resume = cut.as_ref().err().is_none_or(is_worth_resuming);
    assert!(may_resume, "{cut:?}; {}", proxy.log());
    assert_eq!(silent.sequences(), [1, 2]);

    // The last words come through, and the cursor is good for the next process.
    bridge.signal("TERM");
    let status = stream.end().await.unwrap_err();
    assert!(matches!(stream.notices().last(), Some(Notice::Draining(_))));
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(reason(&status).0, "DRAINING");
    assert!(bridge.ended().await.success());
    let refused = opened(&mut client, after(stream.cursor())).await;
    let refused = refused.map(|_| ()).unwrap_err();
    assert!(is_worth_resuming(&refused), "{refused:?}; {}", proxy.log());

    bridge.restart().await;
    bridge
        .append(&[item("evt_3", "user.created", "usr_1")])
        .await;
    // A proxy may need a moment to see that the bridge is back.
    let resuming = async || opened(&mut client, after(stream.cursor())).await.ok();
    let mut resumed = eventually(resuming).await;
    resumed.until_events(1).await;
    assert_eq!(resumed.sequences(), [3]);
}

/// A stream that has begun: a proxy can accept a call and answer it without a bridge.
async fn opened(
    client: &mut EventServiceClient<Channel>,
    request: SubscribeRequest,
) -> Result<Received, Status> {
    let mut stream = Received::subscribe(client, request).await?;
    if stream.next().await?.is_none() {
        return Err(Status::unavailable("the stream ended before it began"));
    }
    Ok(stream)
}

/// The codes that the guide says to resume after.
fn is_worth_resuming(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_carries_idle_streams_and_drains() {
    let Some(nginx) = installed("nginx") else {
        return;
    };
    let mut bridge = Bridge::start().await;
    let timeout = format!("grpc_read_timeout {PATIENCE_SECONDS}s; access_log off");
    let patience = ("grpc_read_timeout 1h", timeout.as_str());
    let proxy = Proxy::start(&nginx, &NGINX_ARGUMENTS, "nginx.conf", patience, &bridge).await;
    carries_streams(&proxy, &mut bridge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_carries_idle_streams_and_drains() {
    let Some(haproxy) = installed("haproxy") else {
        return;
    };
    let mut bridge = Bridge::start().await;
    let timeout = format!(" {PATIENCE_SECONDS}s");
    let patience = (" 1h", timeout.as_str());
    let proxy = Proxy::start(&haproxy, &["-db", "-f"], "haproxy.cfg", patience, &bridge).await;
    carries_streams(&proxy, &mut bridge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_carries_idle_streams_and_drains() {
    let envoy = tool("bin/envoy");
    let mut bridge = Bridge::start().await;
    let timeout = format!("stream_idle_timeout: {PATIENCE_SECONDS}s");
    let patience = ("stream_idle_timeout: 300s", timeout.as_str());
    let proxy = Proxy::start(&envoy, &ENVOY_ARGUMENTS, "envoy.yaml", patience, &bridge).await;
    carries_streams(&proxy, &mut bridge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_two_bridges_spreads_streams_and_leaves_one_that_drains() {
    let Some(haproxy) = installed("haproxy") else {
        return;
    };
    let (mut first, second) = tokio::join!(Bridge::start(), Bridge::start());
    let (webhook_port, grpc_port) = (free_port().await, free_port().await);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose/haproxy.cfg");
    let mut settings = fs::read_to_string(file).unwrap();
    let mut replace = |of_deployment: &str, here: String| {
        assert!(settings.contains(of_deployment), "no {of_deployment}");
        settings = settings.replace(of_deployment, &here);
    };
    replace("bind :8080", format!("bind 127.0.0.1:{webhook_port}"));
    replace("bind :50051", format!("bind 127.0.0.1:{grpc_port}"));
    for (name, bridge) in [("bridge-1", &first), ("bridge-2", &second)] {
        let addresses = bridge.addresses;
        let admin = addresses.admin.port();
        let server = |address| format!("{address} port {admin}");
        replace(&format!("{name}:8080"), server(addresses.webhook));
        replace(&format!("{name}:50051"), server(addresses.grpc));
    }
    let arguments = ["-db", "-f"];
    let named = ("haproxy.cfg", settings.as_str());
    let proxy = Proxy::start_with(&haproxy, &arguments, named, webhook_port).await;

    // All on one connection: the proxy balances calls.
    let url = format!("http://127.0.0.1:{grpc_port}");
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut client = EventServiceClient::new(channel);
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(opened(&mut client, everything(500)).await.unwrap());
    }
    let on = async |bridge: &Bridge| bridge.metric("prelude_bridge_subscribers").await;
    assert_eq!(
        (on(&first).await, on(&second).await),
        (Some(2.0), Some(2.0))
    );

    first.signal("TERM");
    assert_eq!(first.ended().await.code(), Some(0));
    // Those that were there have ended with their reason; the others go on.
    second
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let mut left = Vec::new();
    for mut stream in streams {
        let ended = loop {
            match stream.next().await {
                Ok(Some(response)) if response.events.is_empty() => {}
                Ok(_) => break None,
                Err(status) => break Some(status),
            }
        };
        match ended {
            None => left.push(stream),
            Some(status) => assert_eq!(reason(&status).0, "DRAINING"),
        }
    }
    assert_eq!(left.len(), 2);
    for _ in 0..2 {
        let opening = async || opened(&mut client, everything(500)).await.ok();
        left.push(eventually(opening).await);
    }
    assert_eq!(on(&second).await, Some(4.0));
    for _ in 0..4 {
        let status = delivered(&proxy, Ipv4Addr::LOCALHOST, "bridge", "").await;
        assert_eq!(status, 200, "{}", proxy.log());
    }
}

/// Where the sender comes from whom the bridge takes deliveries from; strangers are at 127.0.0.1.
const SENDER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// The status of a delivery that comes to the proxy from this address with this `Host`.
async fn delivered(proxy: &Proxy, from: Ipv4Addr, host: &str, more: &str) -> u16 {
    let body = batch(APP, &[item("evt_1", "user.created", "usr_1")]);
    let request = format!(
        "POST /webhooks/{APP} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\
         X-Webhook-Signature: {}\r\nContent-Length: {}\r\n\r\n{body}",
        sign(body.as_bytes()),
        body.len()
    );
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let address = proxy.url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_behind_nginx_cannot_name_another_address() {
    let Some(nginx) = installed("nginx") else {
        return;
    };
    let setup = Setup::default()
        .with("allowed_sources", "127.0.0.66")
        .with("trusted_proxies", "127.0.0.1");
    let bridge = setup.start().await;
    let port = free_port().await;
    let settings = |forwarded: &str| {
        format!(
            "events {{}}
             http {{
                 access_log off;
                 server {{
                     listen 127.0.0.1:{port};
                     location / {{
                         proxy_pass http://{};
                         {forwarded}
                     }}
                 }}
             }}",
            bridge.addresses.webhook
        )
    };
    // As it is found in many guides: the stranger's `Host` in a quoted string.
    let whole = r#"proxy_set_header Forwarded "for=$remote_addr;host=\"$http_host\";proto=http";"#;
    let proxy = Proxy::start_with(
        &nginx,
        &NGINX_ARGUMENTS,
        ("nginx.conf", &settings(whole)),
        port,
    )
    .await;
    let stranger = Ipv4Addr::LOCALHOST;
    for host in [
        "bridge",
        "x,for=127.0.0.66;y=",
        "x;for=127.0.0.66",
        "x,for=127.0.0.66",
        // Quotes end what nginx quoted; what is then left is a fault, or a pair twice.
        "x\",for=127.0.0.66;y=",
        "x\\",
        "x\";for=127.0.0.66;y=\"",
    ] {
        let (theirs, senders) = (
            delivered(&proxy, stranger, host, "").await,
            delivered(&proxy, SENDER, "bridge", "").await,
        );
        assert_eq!((theirs, senders), (403, 200), "{host}; {}", proxy.log());
    }
    // nginx replaces what a client says of itself.
    let claim = "Forwarded: for=127.0.0.66\r\n";
    assert_eq!(delivered(&proxy, stranger, "bridge", claim).await, 403);
    drop(proxy);

    // With a proxy that sets X-Forwarded-For and lets the other header through, they have to agree.
    let other = "proxy_set_header X-Forwarded-For $remote_addr;";
    let proxy = Proxy::start_with(
        &nginx,
        &NGINX_ARGUMENTS,
        ("nginx.conf", &settings(other)),
        port,
    )
    .await;
    assert_eq!(delivered(&proxy, stranger, "bridge", claim).await, 403);
    assert_eq!(delivered(&proxy, SENDER, "bridge", claim).await, 200);
    assert_eq!(delivered(&proxy, SENDER, "bridge", "").await, 200);
    bridge.finish().await;
}
