//! `doctor` against set-ups that are broken in one way each, which it must name, and nothing else.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use serde_json::{Value, json};

use crate::{
    cli::{program, run, stdout},
    setup::{APP, Bridge, SOON, Scene, TOKEN, free_port, output},
};

/// What `doctor` says of a scene, with these changes to its environment and flags.
struct Visit {
    code: Option<i32>,
    report: Value,
}

impl Visit {
    async fn to(scene: &Scene, environment: &[(&str, &str)], flags: &[&str]) -> Self {
        let jwks_url = scene.simulator.jwks_url(APP);
        let mut command = program(&["doctor", "--output", "json"]);
        command
            .args(flags)
            .env("PRELUDE_BRIDGE_DATA_DIR", scene.directory.path())
            .env("PRELUDE_BRIDGE_APP_ID", APP)
            .env("PRELUDE_BRIDGE_JWKS_URL", jwks_url)
            .envs(environment.iter().copied());
        for listener in ["WEBHOOK", "GRPC", "ADMIN"] {
            let name = format!("PRELUDE_BRIDGE_{listener}_LISTEN");
            if !environment.iter().any(|(other, _)| *other == name) {
                command.env(name, "127.0.0.1:0");
            }
        }
        let output = output(&mut command).await;
        assert!(!stdout(&output).contains(TOKEN), "{}", stdout(&output));
        Self {
            code: output.status.code(),
            report: serde_json::from_str(&stdout(&output)).unwrap(),
        }
    }

    /// The checks with a verdict, as `name: found (remedies)`.
    fn of(&self, verdict: &str) -> Vec<String> {
        let checks = self.report["checks"].as_array().unwrap().iter();
        checks
            .filter(|check| check["verdict"] == verdict)
            .map(|check| {
                let text = |name: &str| check[name].as_str().unwrap().to_owned();
                let remedies = check.get("remedies").map(Value::to_string);
                let remedies = remedies.unwrap_or_default();
                format!("{}: {} ({remedies})", text("name"), text("found"))
            })
            .collect()
    }

    /// Expects one fault with these words, and the exit code to say so.
    fn finds(&self, words: &[&str]) {
        let faults = self.of("fault");
        assert_eq!(faults.len(), 1, "{:#}", self.report);
        for word in words {
            assert!(faults[0].contains(word), "{word}: {}", faults[0]);
        }
        assert!(!faults[0].ends_with("()"), "no remedy: {}", faults[0]);
        assert_eq!((self.code, &self.report["well"]), (Some(1), &json!(false)));
    }

    fn is_well(&self) {
        assert_eq!(self.of("fault"), Vec::<String>::new());
        assert_eq!((self.code, &self.report["well"]), (Some(0), &json!(true)));
    }
}

/// A scene with a token.
async fn scene() -> Scene {
    let scene = Scene::new().await;
    scene.write_token(APP, TOKEN);
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_a_store_that_cannot_be_reached_are_named_without_its_password() {
    let scene = scene().await;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (up, down) = (server.local_addr().unwrap().port(), free_port());
    let url = format!("nats://me:hunter2@127.0.0.1:{up},127.0.0.1:{down}");
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_STORE", &url)], &[]).await;
    let named = format!("127.0.0.1:{down} cannot be reached");
    visit.finds(&["store: NATS JetStream", &named, "start these servers"]);
    assert!(!visit.report.to_string().contains("hunter2"));

    let url = format!("postgres://me@127.0.0.1:{up}/events");
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_STORE", &url)], &[]).await;
    visit.is_well();
    let good = visit.of("good").concat();
    assert!(
        good.contains("store: PostgreSQL") && good.contains("there is no replica yet"),
        "{good}"
    );
}

/// A server that says the same to everybody.
pub(crate) fn server_that_says(head: &str, body: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let answer = format!(
        "HTTP/1.1 200 OK\r\n{head}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // Ends with the process of the test.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_setup_is_well_before_the_first_start_and_while_it_runs() {
    let scene = scene().await;
    let before = Visit::to(&scene, &[], &[]).await;
    before.is_well();
    assert!(
        before
            .of("skipped")
            .iter()
            .any(|check| check.starts_with("gRPC"))
    );
    // It looked and left nothing behind.
    let left = fs::read_dir(scene.directory.path()).unwrap().count();
    assert_eq!(left, 1, "only the tokens");

    let bridge = scene.bridge(&[]);
    let webhook = format!("127.0.0.1:{}", scene.port);
    let environment = [
        ("PRELUDE_BRIDGE_WEBHOOK_LISTEN", webhook.as_str()),
        ("PRELUDE_BRIDGE_GRPC_LISTEN", &bridge.grpc),
        ("PRELUDE_BRIDGE_ADMIN_LISTEN", &bridge.admin),
    ];
    let during = Visit::to(&scene, &environment, &["--url", &scene.url()]).await;
    during.is_well();
    let good = during.of("good").join("\n");
    assert!(
        during
            .of("skipped")
            .join("\n")
            .contains("log: a bridge has it open"),
        "{:#}",
        during.report
    );
    for part in [
        "keys: 1 usable, of 2048 bits",
        "the running bridge has",
        "public URL: the challenge is answered",
        "the log's newest event is 0",
    ] {
        assert!(good.contains(part), "{part}: {good}");
    }
    drop(bridge);
    let after = Visit::to(&scene, &[], &[]).await;
    after.is_well();
    let good = after.of("good").join("\n");
    assert!(
        good.contains("log: it opens: no events, the next is 1; id "),
        "{good}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_setting_is_a_fault_of_the_configuration() {
    let scene = scene().await;
    let file = scene.directory.path().join("bridge.toml");
    fs::write(&file, "data_dri = \"x\"\n").unwrap();
    let visit = Visit::to(&scene, &[], &["--config", file.to_str().unwrap()]).await;
    visit.finds(&["configuration:", "bridge.toml:1", "did you mean `data_dir`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_token_is_a_fault_of_the_configuration() {
    let scene = Scene::new().await;
    let visit = Visit::to(&scene, &[], &[]).await;
    visit.finds(&[
        "configuration:",
        "has no verification token",
        "webhook setup",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_is_none_is_named() {
    let scene = scene().await;
    let file = scene.directory.path().join("file");
    fs::write(&file, "").unwrap();
    let environment = [
        ("PRELUDE_BRIDGE_DATA_DIR", file.to_str().unwrap()),
        ("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN),
    ];
    let visit = Visit::to(&scene, &environment, &[]).await;
    let faults = visit.of("fault");
    assert!(faults[0].starts_with("data directory:") && faults[0].contains("--data-dir"));
    assert_eq!(visit.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_log_is_named() {
    let scene = scene().await;
    let manifest = scene.directory.path().join("manifest");
    fs::write(
        &manifest,
        "something else, and long enough to be looked at".repeat(100),
    )
    .unwrap();
    let visit = Visit::to(&scene, &[], &[]).await;
    visit.finds(&["log:", "is not a log of prelude-bridge", "--data-dir"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_that_cannot_be_fetched_is_named() {
    let scene = scene().await;
    scene.simulator.set_jwks_up(APP, false).unwrap();
    let visit = Visit::to(&scene, &[], &[]).await;
    visit.finds(&["keys:", "503", "jwks_url"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_without_a_usable_key_says_why_each_is_not_used() {
    let scene = scene().await;
    let keys = r#"{"keys":[{"kty":"EC","kid":"ec-1","crv":"P-256","x":"AA","y":"AA"}]}"#;
    let url = server_that_says("", keys);
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_JWKS_URL", &url)], &[]).await;
    visit.finds(&["keys:", "no usable key", "ec-1", "RSA keys"]);
}

const EDDSA_KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"step-1",
    "x":"sWwGLrppREpL7XnTms0fqsGtrii8pujILL3YBk28CAw"}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_key_set_of_step_up_tokens_is_recognised_and_the_right_url_named() {
    let scene = scene().await;
    let right = "https://54e9ujn.session.prelude.dev/.well-known/jwks.json";
    let url = server_that_says("", EDDSA_KEYS);
    let step_up = url.replace("/jwks.json", "/.well-known/step-up-jwks.json");
    let beside = url.replace("/jwks.json", "/.well-known/jwks.json");
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_JWKS_URL", &url)], &[]).await;
    visit.finds(&["keys:", "no usable key", "step-up tokens", right]);
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_JWKS_URL", &step_up)], &[]).await;
    visit.finds(&["keys:", "no usable key", "step-up tokens", &beside]);

    let file = scene.directory.path().join("keys.json");
    fs::write(&file, EDDSA_KEYS).unwrap();
    let environment = [
        ("PRELUDE_BRIDGE_JWKS_URL", ""),
        ("PRELUDE_BRIDGE_JWKS_FILE", file.to_str().unwrap()),
    ];
    let visit = Visit::to(&scene, &environment, &[]).await;
    visit.finds(&["keys:", "step-up tokens", right]);

    // Nothing answers there, but the name is known.
    let nowhere = "http://127.0.0.1:1/.well-known/step-up-jwks.json";
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_JWKS_URL", nowhere)], &[]).await;
    visit.finds(&["keys:", "http://127.0.0.1:1/.well-known/jwks.json"]);

    // Usable keys under that name are a reason for a warning only.
    let keys = scene.simulator.jwks(APP).unwrap().to_string();
    let url = server_that_says("", &keys).replace("/jwks.json", "/step-up-jwks.json");
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_JWKS_URL", &url)], &[]).await;
    visit.is_well();
    let good = visit.of("good").join("\n");
    assert!(
        good.contains("(warning: this is the key set of step-up tokens"),
        "{good}"
    );

    // An EC key is something else.
    let keys = r#"{"keys":[{"kty":"EC","kid":"ec-1","crv":"P-256","x":"AA","y":"AA"}]}"#;
    let url = server_that_says("", keys);
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_JWKS_URL", &url)], &[]).await;
    assert!(
        !visit.report.to_string().contains("step-up"),
        "{:#}",
        visit.report
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_server_that_is_not_there_says_nothing_of_the_clock() {
    let scene = scene().await;
    for url in [
        "https://prelude.invalid/jwks.json",
        "http://127.0.0.1:1/jwks.json",
    ] {
        let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_JWKS_URL", url)], &[]).await;
        visit.finds(&["keys:", url, "DNS"]);
        let skipped = visit.of("skipped").join("\n");
        let words = "clock: it could not be compared: no key server answers";
        assert!(skipped.contains(words), "{skipped}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_issuers_is_read_before_anything_is_looked_at() {
    let scene = scene().await;
    for (path, cause) in [
        (scene.directory.path().join("nowhere"), "cannot be read"),
        (
            scene
                .directory
                .path()
                .join("tokens")
                .join(format!("{APP}.txt")),
            "no certificate",
        ),
    ] {
        let mut doctor = program(&["doctor", "--ca-file", path.to_str().unwrap()]);
        let output = output(&mut doctor).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--ca-file") && said.contains(cause), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_runs_and_is_not_ready_is_named() {
    let scene = scene().await;
    scene.simulator.set_jwks_up(APP, false).unwrap();
    let bridge = scene.bridge_until("listening", &[]);
    let environment = [("PRELUDE_BRIDGE_ADMIN_LISTEN", bridge.admin.as_str())];
    let visit = Visit::to(&scene, &environment, &[]).await;
    let faults = visit.of("fault");
    let words = "readiness: the running bridge is not ready, so it answers deliveries with 503";
    assert!(
        faults.iter().any(|fault| fault.contains(words)),
        "{faults:?}"
    );
    assert!(
        faults.iter().any(|fault| fault.starts_with("keys:")),
        "{faults:?}"
    );
    scene.simulator.set_jwks_up(APP, true).unwrap();
    until(async || {
        Visit::to(&scene, &environment, &[])
            .await
            .of("fault")
            .is_empty()
    })
    .await;
}

/// Waits until something holds that another process brings about.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async { while !holds().await {} };
    tokio::time::timeout(SOON, waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_named() {
    let scene = scene().await;
    let keys = scene.simulator.jwks(APP).unwrap().to_string();
    let url = server_that_says("date: Sun, 06 Nov 1994 08:49:37 GMT\r\n", &keys);
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_JWKS_URL", &url)], &[]).await;
    visit.finds(&["clock:", "s off", "NTP"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_program_has_is_named() {
    let scene = scene().await;
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_ADMIN_LISTEN", &address)], &[]).await;
    visit.finds(&["ports:", "another program", "admin_listen"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_url_that_leads_nowhere_is_named() {
    let scene = scene().await;
    let visit = Visit::to(&scene, &[], &["--url", &scene.url()]).await;
    visit.finds(&[
        "public URL:",
        "nothing answers",
        "start `prelude-bridge serve`",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_url_of_a_bridge_with_another_token_is_named() {
    let scene = scene().await;
    // Another machine's bridge: with a data directory and a token of its own.
    let elsewhere = tempfile::tempdir().unwrap();
    let port = free_port();
    let environment = [
        ("PRELUDE_BRIDGE_APP_ID", APP),
        ("PRELUDE_BRIDGE_VERIFICATION_TOKEN", "another-token"),
        ("PRELUDE_BRIDGE_JWKS_URL", &scene.simulator.jwks_url(APP)),
    ];
    let _bridge = Bridge::start(port, elsewhere.path(), &environment);
    let url = format!("http://127.0.0.1:{port}/webhooks/{{app}}");
    let visit = Visit::to(&scene, &[], &["--url", &url]).await;
    visit.finds(&["public URL:", "another verification token"]);
    let wrong_path = format!("http://127.0.0.1:{port}/hooks/{{app}}");
    let visit = Visit::to(&scene, &[], &["--url", &wrong_path]).await;
    visit.finds(&["public URL:", "nothing at this path"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_list_without_prelude_is_named() {
    let scene = scene().await;
    let environment = [("PRELUDE_BRIDGE_ALLOWED_SOURCES", "10.0.0.0/8,52.30.192.161")];
    let visit = Visit::to(&scene, &environment, &[]).await;
    visit.finds(&["allowed sources:", "34.252.67.209", "add \\\"prelude\\\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_runs_with_other_ports_is_named() {
    let scene = scene().await;
    let _bridge = scene.bridge(&[]);
    let other = format!("127.0.0.1:{}", free_port());
    let visit = Visit::to(&scene, &[("PRELUDE_BRIDGE_WEBHOOK_LISTEN", &other)], &[]).await;
    visit.finds(&["ports:", "a bridge runs, but not with `webhook_listen`"]);
}

#[test]
fn a_report_for_people_has_a_line_for_each_check() {
    let output = run(&["doctor"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(
        text.starts_with("FAULT  configuration: no app is configured"),
        "{text}"
    );
    assert!(
        text.contains("\n       help: ") && text.ends_with("\nnot all is well\n"),
        "{text}"
    );
}
