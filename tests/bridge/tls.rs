//! TLS from outside: certificates of openssl, and clients that others wrote (curl, grpcurl,
//! openssl, grpcio) beside our own.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use prelude_bridge::client::{Client, Item, Notice, Options, Request, Start, Subscription};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;

use crate::{
    cli::{program, stderr, stdout},
    support::{
        APP, Bridge, KEY, SOON, Setup, batch,
        certificates::{Authority, Issued, replace},
        item, jwks,
        sender::eventually,
        sign,
    },
    tools::{objects, python, tool},
};

const SERVICE: &str = "prelude.bridge.v1.EventService";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Ports with TLS.
pub(crate) trait Secured: Sized {
    fn secured(self, port: &str, issued: &Issued) -> Self;
    fn asking(self, authority: &Authority) -> Self;
}

impl Secured for Setup {
    fn secured(self, port: &str, issued: &Issued) -> Self {
        let certificate = format!("tls.{port}.certificate_file");
        self.with(&certificate, text(&issued.certificate))
            .with(&format!("tls.{port}.key_file"), text(&issued.key))
    }

    fn asking(self, authority: &Authority) -> Self {
        self.with("tls.grpc.client_ca_file", text(&authority.certificate()))
    }
}

/// What a command comes to, without keeping the runtime from its work.
async fn output(mut command: Command) -> Output {
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(SOON, running).await.unwrap().unwrap()
}

/// Our own client, which trusts this authority.
fn options(bridge: &Bridge, authority: &Authority) -> Options {
    let ca = fs::read_to_string(authority.certificate()).unwrap();
    Options::new(format!("https://{}", bridge.addresses.grpc)).ca_certificate(ca)
}

/// `tail` of everything that is there, with these flags.
fn tail(bridge: &Bridge, flags: &[&str]) -> Command {
    let server = format!("https://{}", bridge.addresses.grpc);
    let mut command = program(&["tail", "--server", &server]);
    command.args(["--last", "10", "--until-caught-up", "--output", "json"]);
    command.args(flags);
    command
}

/// The certificate that a port shows, as PEM.
async fn shown(address: SocketAddr) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address.to_string()]);
    command.stdin(Stdio::null());
    let said = stdout(&output(command).await);
    let begin = said.find("-----BEGIN").unwrap();
    let end = said.find("-----END CERTIFICATE-----\n").unwrap();
    said[begin..end].to_owned()
}

fn shows(issued: &Issued, certificate: &str) -> bool {
    fs::read_to_string(&issued.certificate)
        .unwrap()
        .contains(certificate)
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_delivers_over_tls_and_only_over_tls() {
    let authority = Authority::new();
    let setup = Setup::default().secured("webhook", &authority.server("server"));
    let bridge = setup.start().await;
    assert!(
        bridge.stderr().contains(r#""tls":"webhook""#),
        "{}",
        bridge.stderr()
    );
    let body = batch(APP, &[item("evt_1", "user.created", "usr_1")]);
    let curl = |scheme: &str, trusts: bool| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--data-binary", &body]);
        command.args(["-H", "Content-Type: application/json", "-H"]);
        command.arg(format!("X-Webhook-Signature: {}", sign(body.as_bytes())));
        if trusts {
            command.arg("--cacert").arg(authority.certificate());
        }
        command.arg(format!(
            "{scheme}://{}/webhooks/{APP}",
            bridge.addresses.webhook
        ));
        output(command)
    };
    let delivered = curl("https", true).await;
    assert_eq!(
        stdout(&delivered),
        r#"{"accepted":1,"duplicates":0}"#,
        "{}",
        stderr(&delivered)
    );
    // A stranger's certificate; and an answer that is no HTTP.
    assert_eq!(curl("https", false).await.status.code(), Some(60));
    assert!(!curl("http", true).await.status.success());
    // The other ports have none.
    assert_eq!(bridge.head().await, 1);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_turned_away_before_the_handshake() {
    let authority = Authority::new();
    let setup = Setup::default()
        .secured("webhook", &authority.server("server"))
        .with("allowed_sources", "192.0.2.0/24");
    let bridge = setup.start().await;
    let mut stream = TcpStream::connect(bridge.addresses.webhook).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let sample = r#"prelude_bridge_connections_refused_total{listener="webhook",reason="source"}"#;
    bridge.counts(sample, 1.0).await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_calls_over_tls_and_with_a_client_certificate() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let setup = Setup::default()
        .secured("grpc", &authority.server("server"))
        .asking(&authority);
    let bridge = setup.start().await;
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    let grpcurl = |issued: Option<&Issued>| {
        let mut command = Command::new(tool("bin/grpcurl"));
        command
            .args(["-max-time", "60", "-cacert"])
            .arg(authority.certificate());
        if let Some(issued) = issued {
            command.arg("-cert").arg(&issued.certificate);
            command.arg("-key").arg(&issued.key);
        }
        command.arg(bridge.addresses.grpc.to_string());
        command.arg(format!("{SERVICE}/GetRange"));
        output(command)
    };
    let answered = objects(&grpcurl(Some(&authority.client("billing"))).await);
    assert_eq!(answered[0]["eventCount"], "1");
    for refused in [
        None,
        Some(strangers.client("billing")),
        Some(authority.expired_client("late")),
    ] {
        let output = grpcurl(refused.as_ref()).await;
        assert!(!output.status.success());
        assert!(stderr(&output).contains("tls"), "{}", stderr(&output));
    }
    let sample = r#"prelude_bridge_tls_handshake_failures_total{listener="grpc",reason="client_certificate"}"#;
    bridge.counts_at_least(sample, 3.0).await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_reads_over_tls_and_says_what_is_missing() {
    let authority = Authority::new();
    let setup = Setup::default().secured("grpc", &authority.server("server"));
    let mut bridge = setup.prepare();
    bridge.restart().await;
    let ca = authority.certificate();
    append(&bridge, "evt_1").await;
    let read = output(tail(&bridge, &["--ca-file", text(&ca)])).await;
    assert_eq!(read.status.code(), Some(0), "{}", stderr(&read));
    assert!(stdout(&read).contains("evt_1"));

    let untrusted = output(tail(&bridge, &[])).await;
    assert_eq!(untrusted.status.code(), Some(3));
    let said = stderr(&untrusted);
    assert!(
        said.contains("UnknownIssuer") && said.contains("--ca-file"),
        "{said}"
    );

    let nowhere = output(tail(&bridge, &["--ca-file", "/no/such/file"])).await;
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(stderr(&nowhere).contains("/no/such/file"));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_a_client_certificate_and_is_told_when_it_does_not_count() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let setup = Setup::default()
        .secured("grpc", &authority.server("server"))
        .asking(&authority);
    let bridge = setup.start().await;
    append(&bridge, "evt_1").await;
    let ca = authority.certificate();
    let with = |issued: Option<&Issued>| {
        let mut flags = vec!["--ca-file", text(&ca)];
        if let Some(issued) = issued {
            flags.extend(["--client-certificate-file", text(&issued.certificate)]);
            flags.extend(["--client-key-file", text(&issued.key)]);
        }
        output(tail(&bridge, &flags))
    };
    let read = with(Some(&authority.client("billing"))).await;
    assert_eq!(read.status.code(), Some(0), "{}", stderr(&read));
    assert!(stdout(&read).contains("evt_1"));
    for (issued, cause) in [
        (None, "client certificate"),
        (Some(strangers.client("billing")), "client certificate"),
        (Some(authority.expired_client("late")), "client certificate"),
    ] {
        let refused = with(issued.as_ref()).await;
        assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(cause), "{}", stderr(&refused));
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_ends_tail_with_its_own_exit_code() {
    let authority = Authority::new();
    let server = authority.server("server");
    // A server of somebody else's that refuses everybody and says whom.
    let doorman = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/doorman.py");
    let mut child = python()
        .arg(doorman)
        .args([&server.key, &server.certificate])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || said.next().unwrap().unwrap();
    // It has a second port, for pages.
    let ports = line();
    let url = format!("https://localhost:{}", ports.split(' ').next().unwrap());
    let token = authority.certificate().with_file_name("token");
    fs::write(&token, "canary-in-a-file\n").unwrap();
    let ca = authority.certificate();
    let tail = |flags: &[&str]| {
        let mut command = program(&["tail", "--server", &url, "--ca-file", text(&ca)]);
        command
            .args(flags)
            .env("PRELUDE_BRIDGE_TOKEN", "canary-in-a-variable");
        output(command)
    };
    for (flags, shown) in [
        (&[][..], "canary-in-a-variable"),
        (&["--token-file", text(&token)], "canary-in-a-file"),
    ] {
        let refused = tail(flags).await;
        assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("--token-file"));
        assert!(!stderr(&refused).contains("canary"), "{}", stderr(&refused));
        let shown_to = line();
        assert!(
            shown_to.starts_with(&format!("Bearer {shown} ")),
            "{shown_to}"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_sent_in_plain_text_to_another_machine() {
    let mut command = program(&["tail", "--server", "http://192.0.2.1:50051"]);
    command.env("PRELUDE_BRIDGE_TOKEN", "canary-token");
    let refused = output(command).await;
    assert_eq!(refused.status.code(), Some(2));
    let said = stderr(&refused);
    assert!(
        said.contains("https://") && said.contains("--token-over-plain-text"),
        "{said}"
    );
    assert!(!said.contains("canary"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_handshake_is_closed_at_its_deadline() {
    let authority = Authority::new();
    let server = authority.server("server");
    let setup = Setup::default()
        .secured("webhook", &server)
        .secured("grpc", &server)
        .with("tls.handshake_timeout", "300ms");
    let bridge = setup.start().await;
    for address in [bridge.addresses.webhook, bridge.addresses.grpc] {
        let mut halves = Vec::new();
        for said in [&[][..], &[0x16], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();
            halves.push(stream);
        }
        for mut stream in halves {
            let mut answer = [0; 16];
            let closed = stream.read(&mut answer);
            let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
            assert_eq!(closed.unwrap().unwrap_or(0), 0);
        }
    }
    for listener in ["webhook", "grpc"] {
        let labels = format!(r#"{{listener="{listener}",reason="timeout"}}"#);
        let sample = format!("prelude_bridge_tls_handshake_failures_total{labels}");
        bridge.counts(&sample, 3.0).await;
        let open = format!(r#"prelude_bridge_connections_open{{listener="{listener}"}}"#);
        bridge.counts(&open, 0.0).await;
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_speaks_the_versions_that_are_safe_and_no_others() {
    let authority = Authority::new();
    let setup = Setup::default().secured("grpc", &authority.server("server"));
    let bridge = setup.start().await;
    let s_client = |version: &str, protocols: &str| {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            &bridge.addresses.grpc.to_string(),
            version,
        ]);
        // So that it is not openssl itself that refuses old versions.
        command.args(["-cipher", "ALL:@SECLEVEL=0", "-alpn", protocols]);
        command.arg("-CAfile").arg(authority.certificate());
        output({
            command.stdin(Stdio::null());
            command
        })
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let said = stdout(&s_client(version, "h2,http/1.1").await);
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        assert!(said.contains("ALPN protocol: h2"), "{said}");
    }
    let web = stdout(&s_client("-tls1_3", "http/1.1").await);
    assert!(web.contains("ALPN protocol: http/1.1"), "{web}");
    for version in ["-tls1", "-tls1_1"] {
        let refused = s_client(version, "h2").await;
        assert!(!refused.status.success());
        // By us, and not by openssl itself.
        let said = stderr(&refused);
        assert!(said.contains("SSL alert number"), "{said}");
    }
    let foreign = s_client("-tls1_3", "smtp").await;
    assert!(
        stderr(&foreign).contains("no application protocol"),
        "{}",
        stderr(&foreign)
    );
    bridge.finish().await;
}

/// The events of a subscription, which must go on without a break.
async fn next_event(subscription: &mut Subscription) -> String {
    loop {
        let item = tokio::time::timeout(SOON, subscription.next()).await;
        match item.unwrap().unwrap().unwrap() {
            Item::Event(event) => return event.id,
            Item::Notice(Notice::Reconnecting { error, .. }) => unreachable!("{error}"),
            Item::Notice(_) => {}
        }
    }
}

async fn append(bridge: &Bridge, id: &str) {
    bridge.append(&[item(id, "user.created", "usr_1")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_reaches_new_connections_and_costs_no_stream() {
    let authority = Authority::new();
    let (used, successor) = (authority.server("used"), authority.server("successor"));
    let bridge = Setup::default().secured("grpc", &used).start().await;
    append(&bridge, "evt_1").await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let client = Client::connect(&options(&bridge, &authority))
            .await
            .unwrap();
        let mut stream = client.subscribe(Request::new().start(Start::Earliest));
        assert_eq!(next_event(&mut stream).await, "evt_1");
        streams.push(stream);
    }
    let address = bridge.addresses.grpc;
    assert!(shows(&used, &shown(address).await));
    successor.replace(&used);
    eventually(async || shows(&successor, &shown(address).await).then_some(())).await;
    append(&bridge, "evt_2").await;
    for stream in &mut streams {
        assert_eq!(next_event(stream).await, "evt_2");
    }
    // Two files are never written at once, which is nothing to report.
    let said = bridge.stderr();
    assert!(!said.contains(r#""level":"ERROR""#), "{said}");
    assert!(said.contains("the TLS certificate was replaced"), "{said}");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_a_new_pair_leaves_the_old_one_in_use_and_is_reported_once() {
    let authority = Authority::new();
    let (used, successor) = (authority.server("used"), authority.server("successor"));
    let before = authority.server("before");
    before.replace(&used);
    let bridge = Setup::default().secured("grpc", &used).start().await;
    let reports = || bridge.stderr().matches("the old ones stay in use").count();
    replace(&successor.certificate, &used.certificate);
    eventually(async || (reports() > 0).then_some(())).await;
    assert!(
        bridge
            .stderr()
            .contains("does not belong to the certificate")
    );
    assert!(shows(&before, &shown(bridge.addresses.grpc).await));

    replace(&successor.key, &used.key);
    let address = bridge.addresses.grpc;
    eventually(async || shows(&successor, &shown(address).await).then_some(())).await;
    assert_eq!(reports(), 1);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_does_not_start_with_files_that_it_cannot_use() {
    let authority = Authority::new();
    let (one, other) = (authority.server("one"), authority.server("other"));
    let mixed = Issued {
        certificate: one.certificate.clone(),
        key: other.key,
    };
    let bridge = Setup::default().secured("grpc", &mixed).prepare();
    let refused = output(bridge.command()).await;
    assert_eq!(refused.status.code(), Some(2));
    let said = stderr(&refused);
    for part in [
        "TLS of the grpc port",
        "other.key",
        "does not belong",
        "issued for",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_looks_at_certificates_and_calls_over_tls() {
    let authority = Authority::new();
    let server = authority.server("server");
    let setup = Setup::default()
        .secured("webhook", &server)
        .secured("grpc", &server);
    let bridge = setup.start().await;
    let doctor = |flags: &[&str]| {
        let mut command = bridge.command_of("doctor");
        command.args(flags);
        output(command)
    };
    let ca = authority.certificate();
    let well = stdout(&doctor(&["--ca-file", text(&ca)]).await);
    let grpc = format!("https://{} answers", bridge.addresses.grpc);
    for part in [
        "webhook port's certificate is for localhost",
        "until 2045",
        &grpc,
    ] {
        assert!(well.contains(part), "{part} is not in: {well}");
    }
    let untrusting = stdout(&doctor(&[]).await);
    assert!(untrusting.contains("--ca-file"), "{untrusting}");

    let url = format!("https://{}/webhooks/{{app}}", bridge.addresses.webhook);
    let well = stdout(&doctor(&["--ca-file", text(&ca), "--url", &url]).await);
    let met =
        "the challenge is answered through it, with the issuers of --ca-file, which Prelude does";
    assert!(
        well.contains(met) && well.contains("\nall is well\n"),
        "{well}"
    );
    let untrusting = stdout(&doctor(&["--url", &url]).await);
    let fault = untrusting
        .lines()
        .position(|line| line.contains("public URL"))
        .unwrap();
    let said: Vec<&str> = untrusting.lines().skip(fault).take(3).collect();
    let said = said.join("\n");
    for part in ["FAULT", "UnknownIssuer", "Prelude trusts", "--ca-file"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert!(!said.contains("`prelude-bridge serve`"), "{said}");
    // The other way round: a URL without TLS for a port with it.
    let plain = url.replace("https", "http");
    let said = stdout(&doctor(&["--ca-file", text(&ca), "--url", &plain]).await);
    assert!(said.contains("write https://"), "{said}");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn issuers_for_the_public_url_do_not_keep_doctor_from_a_port_without_tls() {
    let authority = Authority::new();
    let setup = Setup::default().secured("webhook", &authority.server("server"));
    let bridge = setup.start().await;
    let url = format!("https://{}/webhooks/{{app}}", bridge.addresses.webhook);
    let mut doctor = bridge.command_of("doctor");
    doctor
        .args(["--url", &url, "--ca-file"])
        .arg(authority.certificate());
    let doctor = output(doctor).await;
    let said = stdout(&doctor);
    assert!(said.contains("the log's newest event is"), "{said}");
    assert_eq!(doctor.status.code(), Some(0), "{said}");
    bridge.finish().await;
}

/// A server of key sets with a certificate, which is the `openssl` command line.
struct KeyServer {
    child: std::process::Child,
    url: String,
    _directory: tempfile::TempDir,
}

impl KeyServer {
    fn start(issued: &Issued) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("jwks.json"), jwks(&KEY)).unwrap();
        let mut child = Command::new("openssl")
            .args(["s_server", "-WWW", "-accept", "127.0.0.1:0", "-cert"])
            .arg(&issued.certificate)
            .arg("-key")
            .arg(&issued.key)
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.strip_prefix("ACCEPT ")?.to_owned()));
        let url = format!("https://{}/jwks.json", address.unwrap());
        // So that it never waits for somebody to read.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            url,
            _directory: directory,
        }
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_trusts_the_server_of_a_key_set_no_more_than_serve_does() {
    let authority = Authority::new();
    let server = KeyServer::start(&authority.server("server"));
    let bridge = Setup::default().jwks_url(&server.url).prepare();
    let ca = authority.certificate();
    let doctor = |flags: &[&str], trusted: Option<&Path>| {
        let mut command = bridge.command_of("doctor");
        command.args(flags);
        if let Some(path) = trusted {
            command.env("SSL_CERT_FILE", path);
        }
        output(command)
    };
    let untrusting = stdout(&doctor(&[], None).await);
    for part in [
        "FAULT  keys of 54e9ujn",
        "not trusted here (UnknownIssuer)",
        "SSL_CERT_FILE",
    ] {
        assert!(untrusting.contains(part), "{part} is not in: {untrusting}");
    }
    let with_file = stdout(&doctor(&["--ca-file", text(&ca)], None).await);
    for part in [
        "FAULT  keys of 54e9ujn",
        "with --ca-file the set can be fetched, but `serve` trusts no such file",
    ] {
        assert!(with_file.contains(part), "{part} is not in: {with_file}");
    }
    // What it advises helps.
    let trusting = stdout(&doctor(&[], Some(&ca)).await);
    assert!(trusting.contains("keys of 54e9ujn: 1 usable"), "{trusting}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuers_certificate_on_a_port_is_explained_by_all_who_see_it() {
    let authority = Authority::new();
    let setup = Setup::default().secured("grpc", &authority.itself());
    let bridge = setup.start().await;
    let ca = authority.certificate();
    let tail = output(tail(&bridge, &["--ca-file", text(&ca)])).await;
    assert_eq!(tail.status.code(), Some(3), "{}", stderr(&tail));
    let mut doctor = bridge.command_of("doctor");
    doctor.arg("--ca-file").arg(&ca);
    let doctor = output(doctor).await;
    assert_eq!(doctor.status.code(), Some(1));
    let said = [
        ("tail", stderr(&tail)),
        ("doctor", stdout(&doctor)),
        ("serve", bridge.stderr()),
    ];
    for (who, said) in said {
        for part in [
            "CaUsedAsEndEntity",
            "for an issuer and not for a server",
            "-addext basicConstraints=critical,CA:FALSE",
            "-addext subjectAltName=DNS:NAME",
        ] {
            assert!(said.contains(part), "{who}: {part} is not in: {said}");
        }
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_that_is_advised_is_one_that_clients_take() {
    let directory = tempfile::tempdir().unwrap();
    let line = prelude_bridge::net::tls::SELF_SIGNED.replace("NAME", "localhost");
    let mut openssl = Command::new("sh");
    openssl.args(["-c", &line]).current_dir(&directory);
    let made = output(openssl).await;
    assert!(made.status.success(), "{}", stderr(&made));
    let issued = Issued {
        certificate: directory.path().join("tls.crt"),
        key: directory.path().join("tls.key"),
    };
    let bridge = Setup::default().secured("grpc", &issued).start().await;
    append(&bridge, "evt_1").await;
    let server = format!("https://localhost:{}", bridge.addresses.grpc.port());
    let mut tail = program(&["tail", "--server", &server, "--last", "1", "--count", "1"]);
    tail.arg("--ca-file").arg(&issued.certificate);
    let read = output(tail).await;
    assert_eq!(read.status.code(), Some(0), "{}", stderr(&read));
    assert!(stdout(&read).contains("evt_1"));
    assert!(!bridge.stderr().contains("CaUsedAsEndEntity"));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_with_the_wrong_scheme_is_recognised_at_both_kinds_of_port() {
    let authority = Authority::new();
    let setup = Setup::default().secured("grpc", &authority.server("server"));
    let (secured, plain) = (setup.start().await, Bridge::start().await);
    for (scheme, bridge, flags, code, words) in [
        (
            "http",
            &secured,
            &["--count", "1"],
            2,
            ["speaks TLS", "write https://"],
        ),
        (
            "http",
            &secured,
            &["--last", "1"],
            2,
            ["speaks TLS", "write https://"],
        ),
        (
            "https",
            &plain,
            &["--count", "1"],
            3,
            ["does not speak TLS", "write http://"],
        ),
    ] {
        let server = format!("{scheme}://{}", bridge.addresses.grpc);
        let mut tail = program(&["tail", "--server", &server]);
        tail.args(flags);
        let tail = output(tail).await;
        let said = stderr(&tail);
        assert_eq!(tail.status.code(), Some(code), "{scheme}: {said}");
        for word in words {
            assert!(said.contains(word), "{scheme}: {word} is not in: {said}");
        }
        assert!(!said.contains("invalid size"), "{said}");
    }
    secured.finish().await;
    plain.finish().await;
}
