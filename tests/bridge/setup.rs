//! From nothing to the first event, as a new user goes: the simulator plays Prelude, everything
//! else is the built program. Then the same with each thing broken, which the messages must name.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use prelude_bridge::simulator::{ApiStyle, AppOptions, Options, SigningKey, Simulator};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::{
    cli::{program, stderr, stdout},
    doctor::server_that_says,
};

pub(crate) const APP: &str = "54e9ujn";
pub(crate) const TOKEN: &str = "the-verification-token";
/// Long enough for a loaded machine, and never waited out when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Prelude, with one app.
async fn prelude(api: ApiStyle) -> Simulator {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/keys/test-key-2048-a.pem"
    );
    let key = SigningKey::from_pem(&fs::read_to_string(path).unwrap()).unwrap();
    let options = Options {
        apps: vec![AppOptions::with_keys(APP, vec![key])],
        api,
        ..Options::default()
    };
    Simulator::start(options).await.unwrap()
}

/// A port that was free a moment ago, for what has to be known before it listens.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A running `serve`, which ends with the test.
pub(crate) struct Bridge {
    child: Child,
    pub(crate) grpc: String,
    pub(crate) admin: String,
}

impl Bridge {
    /// Starts it and waits for its `ready` line.
    pub(crate) fn start(port: u16, data_dir: &Path, environment: &[(&str, &str)]) -> Self {
        Self::start_until("ready", port, data_dir, environment)
    }

    /// The same, and waits for the line with this message: `listening` or `ready`.
    fn start_until(
        message: &'static str,
        port: u16,
        data_dir: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        let webhook = format!("127.0.0.1:{port}");
        let mut child = program(&["serve", "--log-format", "json"])
            .args(["--webhook-listen", &webhook])
            .args(["--grpc-listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(data_dir)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (found, ready) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Reads on to the end, so that the process never waits for somebody to read.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str::<Value>(&line)
                    && line["message"] == message
                {
                    let address = |name: &str| line[name].as_str().unwrap().to_owned();
                    let _ = found.send((address("grpc"), address("admin")));
                }
            }
        });
        let (grpc, admin) = ready.recv_timeout(SOON).unwrap();
        Self { child, grpc, admin }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One user's machine: a data directory, and where Prelude is.
pub(crate) struct Scene {
    pub(crate) simulator: Simulator,
    pub(crate) directory: TempDir,
    pub(crate) port: u16,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::with(ApiStyle::default()).await
    }

    async fn with(api: ApiStyle) -> Self {
        Self {
            simulator: prelude(api).await,
            directory: tempdir().unwrap(),
            port: free_port(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/webhooks/{APP}", self.port)
    }

    /// `webhook` with the management key.
    fn webhook(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = program(&["webhook"]);
        command
            .args(arguments)
            .args(["--app", APP, "--api-url", &self.simulator.api_url()])
            .arg("--data-dir")
            .arg(self.directory.path())
            .env("PRELUDE_API_TOKEN", self.simulator.management_token());
        command
    }

    /// `webhook setup` for a bridge that is there or not.
    async fn setup(&self) -> Output {
        let url = self.url();
        let mut command = self.webhook(&["setup", "--wait", "0s", "--url", &url]);
        output(&mut command).await
    }

    pub(crate) fn bridge(&self, environment: &[(&str, &str)]) -> Bridge {
        self.bridge_until("ready", environment)
    }

    /// The same, and waits for the line with this message: `listening` or `ready`.
    pub(crate) fn bridge_until(
        &self,
        message: &'static str,
        environment: &[(&str, &str)],
    ) -> Bridge {
        let jwks_url = self.simulator.jwks_url(APP);
        let mut all = vec![
            ("PRELUDE_BRIDGE_APP_ID", APP),
            ("PRELUDE_BRIDGE_JWKS_URL", jwks_url.as_str()),
        ];
        all.extend(environment);
        Bridge::start_until(message, self.port, self.directory.path(), &all)
    }

    pub(crate) fn write_token(&self, app: &str, token: &str) {
        let tokens = self.directory.path().join("tokens");
        fs::create_dir_all(&tokens).unwrap();
        fs::write(tokens.join(format!("{app}.txt")), token).unwrap();
    }
}

/// What a command comes to, while the simulator in this process goes on answering.
pub(crate) async fn output(command: &mut std::process::Command) -> Output {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    finish(child).await
}

async fn finish(child: Child) -> Output {
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
    waiting.await.unwrap().unwrap()
}

/// Waits until something holds that another process brings about.
async fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "it does not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_user_gets_from_nothing_to_the_first_event() {
    let scene = Scene::new().await;
    let url = scene.url();
    // Setup first: it makes the token, registers, and waits for the bridge.
    let setup = scene
        .webhook(&["setup", "--url", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let token_file = scene.directory.path().join(format!("tokens/{APP}.txt"));
    until(|| token_file.exists()).await;
    let bridge = scene.bridge(&[]);
    let setup = finish(setup).await;
    assert_eq!(setup.status.code(), Some(0), "{}", stderr(&setup));
    let told = stderr(&setup);
    for part in [
        "made a verification token",
        "created the webhook",
        "activated it",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let token = fs::read_to_string(&token_file).unwrap();
    assert!(!told.contains(token.trim()) && !stdout(&setup).contains(token.trim()));
    assert!(stdout(&setup).contains("all 9") && stdout(&setup).contains("yes"));

    // The first event.
    scene.simulator.emit(APP, 1, &[]).await.unwrap();
    assert!(scene.simulator.settle(SOON).await);
    let server = format!("http://{}", bridge.grpc);
    let mut tail = program(&["tail", "--server", &server, "--last", "1", "--count", "1"]);
    let tail = output(&mut tail).await;
    assert_eq!(tail.status.code(), Some(0), "{}", stderr(&tail));
    let event: Value = serde_json::from_str(stdout(&tail).trim()).unwrap();
    assert!(event.to_string().contains(APP), "{event}");

    // The second time there is nothing to do.
    let mut again = scene.webhook(&["setup", "--url", &url, "--output", "json"]);
    let again = output(&mut again).await;
    assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
    assert!(stderr(&again).contains("nothing was changed"));
    let report: Value = serde_json::from_str(&stdout(&again)).unwrap();
    assert_eq!(report["changed"], false);
    assert_eq!(report["webhook"]["last_http_code"], 200);
    assert_eq!(fs::read_to_string(&token_file).unwrap(), token);
}

/// Runs `setup` in a broken scene, and expects this in its words.
async fn fails_with(scene: &Scene, words: &[&str]) {
    let setup = scene.setup().await;
    let told = stderr(&setup);
    assert_eq!(setup.status.code(), Some(1), "{told}");
    assert!(told.contains("webhook_activation_failed"), "{told}");
    assert!(!told.contains(TOKEN), "{told}");
    for word in words {
        assert!(told.contains(word), "{word}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_not_there_is_named_and_mended_by_starting_it() {
    let scene = Scene::new().await;
    fails_with(
        &scene,
        &["nothing answers at the URL", "start `prelude-bridge serve`"],
    )
    .await;
    let _bridge = scene.bridge(&[]);
    let setup = scene.setup().await;
    assert_eq!(setup.status.code(), Some(0), "{}", stderr(&setup));
    // The webhook of the first attempt is the one that is active now.
    assert!(!stderr(&setup).contains("created"), "{}", stderr(&setup));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_without_keys_is_no_success_although_its_webhook_is_active() {
    let scene = Scene::new().await;
    scene.write_token(APP, TOKEN);
    scene.simulator.set_jwks_up(APP, false).unwrap();
    let bridge = scene.bridge_until("listening", &[]);
    let admin = bridge.admin.clone();
    let url = scene.url();
    let setup = |admin: &str| {
        let mut command = scene.webhook(&["setup", "--wait", "0s", "--url", &url]);
        command
            .args(["--output", "json"])
            .env("PRELUDE_BRIDGE_ADMIN_LISTEN", admin);
        async move { output(&mut command).await }
    };
    let report = |output: &Output| serde_json::from_str::<Value>(&stdout(output)).unwrap();
    let not_ready = setup(&admin).await;
    let told = stderr(&not_ready);
    assert_eq!(not_ready.status.code(), Some(1), "{told}");
    for part in [
        "the webhook is active, but the bridge is not ready",
        "no usable key is known yet",
        "503",
        "prelude-bridge doctor",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let shown = report(&not_ready);
    assert_eq!(shown["webhook"]["active"], true);
    assert_eq!(shown["bridge_ready"], false);

    // Where it cannot be asked, that is said.
    let unknown = setup("127.0.0.1:0").await;
    assert_eq!(unknown.status.code(), Some(0), "{}", stderr(&unknown));
    assert!(
        stderr(&unknown).contains("was not checked"),
        "{}",
        stderr(&unknown)
    );
    assert_eq!(report(&unknown)["bridge_ready"], Value::Null);

    scene.simulator.set_jwks_up(APP, true).unwrap();
    let readyz = format!("http://{admin}/readyz");
    let waiting = async { while reqwest::get(&readyz).await.unwrap().status() != 200 {} };
    tokio::time::timeout(SOON, waiting).await.unwrap();
    let ready = setup(&admin).await;
    assert_eq!(ready.status.code(), Some(0), "{}", stderr(&ready));
    assert_eq!(report(&ready)["bridge_ready"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_with_another_token_is_named() {
    let scene = Scene::new().await;
    scene.write_token(APP, TOKEN);
    let _bridge = scene.bridge(&[("PRELUDE_BRIDGE_VERIFICATION_TOKEN", "another-token")]);
    fails_with(
        &scene,
        &["has another verification token", "changed token file"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_of_another_app_is_named() {
    let scene = Scene::new().await;
    scene.write_token(APP, TOKEN);
    scene.write_token("other", TOKEN);
    let _bridge = scene.bridge(&[("PRELUDE_BRIDGE_APP_ID", "other")]);
    fails_with(&scene, &["does not know this app", "[[apps]]"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_takes_nothing_from_here_is_named() {
    let scene = Scene::new().await;
    scene.write_token(APP, TOKEN);
    let bridge = scene.bridge(&[("PRELUDE_BRIDGE_ALLOWED_SOURCES", "prelude")]);
    fails_with(
        &scene,
        &["refuses this machine's address", "`allowed_sources`"],
    )
    .await;
    // Nor are signed batches taken.
    let batch = scene.simulator.batch(APP, 1, &[]).unwrap();
    let answer = scene.simulator.post(&scene.url(), &batch).await.unwrap();
    assert_eq!(answer.status, 403);
    let metrics = format!("http://{}/metrics", bridge.admin);
    let page = reqwest::get(metrics).await.unwrap().text().await.unwrap();
    let refused = r#"connections_refused_total{listener="webhook",reason="source"}"#;
    assert!(page.contains(refused), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_trusted_proxy_the_forwarded_address_counts() {
    let scene = Scene::new().await;
    scene.write_token(APP, TOKEN);
    let _bridge = scene.bridge(&[
        ("PRELUDE_BRIDGE_ALLOWED_SOURCES", "prelude"),
        ("PRELUDE_BRIDGE_TRUSTED_PROXIES", "127.0.0.0/8"),
    ]);
    let url = format!(
        "{}?event=activate&challenge=7&app_id={APP}&verification_token={TOKEN}",
        scene.url()
    );
    for (source, status) in [("34.252.67.209", 200), ("203.0.113.7", 403)] {
        let client = reqwest::Client::new();
        let request = client.get(&url).header("x-forwarded-for", source);
        assert_eq!(request.send().await.unwrap().status(), status, "{source}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_was_registered_with_another_token_is_named() {
    let scene = Scene::new().await;
    scene.write_token(APP, "the-first-token");
    let url = scene.url();
    let created = output(&mut scene.webhook(&["create", "--url", &url])).await;
    assert_eq!(created.status.code(), Some(0), "{}", stderr(&created));
    scene.write_token(APP, TOKEN);
    let _bridge = scene.bridge(&[]);
    fails_with(
        &scene,
        &[
            "the challenge is answered",
            "another verification token",
            "delete",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_setup_is_also_a_command() {
    let scene = Scene::new().await;
    scene.write_token(APP, TOKEN);
    let _bridge = scene.bridge(&[]);
    let url = scene.url();
    let json = |arguments: &[&str]| {
        let mut command = scene.webhook(arguments);
        command.args(["--output", "json"]);
        async move {
            let output = output(&mut command).await;
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
            serde_json::from_str::<Value>(&stdout(&output)).unwrap()
        }
    };
    let made = json(&["create", "--url", &url, "--event", "user.created"]).await;
    assert_eq!(made["webhook"]["active"], false);
    let id = made["webhook"]["id"].as_str().unwrap().to_owned();
    let active = json(&["activate", &id]).await;
    assert_eq!(active["webhook"]["active"], true);
    assert_eq!(json(&["get", &id]).await, active);
    let inactive = json(&["deactivate", &id]).await;
    assert_eq!(inactive["webhook"]["active"], false);
    assert_eq!(json(&["get", &id]).await, inactive);
    assert_eq!(scene.simulator.emit(APP, 1, &[]).await.unwrap().batches, 0);
    let active = json(&["activate", &id]).await;
    assert_eq!(active["webhook"]["active"], true);
    let more = json(&["add-event", &id, "user.deleted"]).await;
    let events = more["webhook"]["events"].as_array().unwrap();
    assert_eq!(events.len(), 2);
    // Setup finds it, and only adds what is missing.
    let setup = json(&["setup", "--url", &url]).await;
    assert_eq!(setup["webhook"]["id"], id.as_str());
    assert_eq!(setup["changes"].as_array().unwrap().len(), 7);
    assert_eq!(setup["refused"], serde_json::json!([]));
    assert_eq!(json(&["delete", &id]).await["deleted"], id.as_str());
    assert_eq!(json(&["list"]).await["webhooks"], serde_json::json!([]));
}

/// The names in a JSON array, sorted.
fn names(array: &Value) -> Vec<&str> {
    let names = array.as_array().unwrap().iter();
    let mut names: Vec<&str> = names.map(|name| name.as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

/// Sets up a webhook at an API that refuses these types, twice: the second time the webhook exists.
async fn leaves_out(refused: &[&str], vague_refusals: bool) {
    let scene = Scene::with(ApiStyle {
        refuse_events: refused.iter().map(|name| (*name).to_owned()).collect(),
        vague_refusals,
    })
    .await;
    scene.write_token(APP, TOKEN);
    let _bridge = scene.bridge(&[]);
    let url = scene.url();
    for is_new in [true, false] {
        let mut setup = scene.webhook(&["setup", "--url", &url, "--output", "json"]);
        let setup = output(&mut setup).await;
        let told = stderr(&setup);
        assert_eq!(setup.status.code(), Some(0), "{told}");
        let report: Value = serde_json::from_str(&stdout(&setup)).unwrap();
        assert_eq!(report["changed"], is_new);
        assert_eq!(report["webhook"]["active"], true);
        let events = names(&report["webhook"]["events"]);
        assert_eq!(events.len(), 9 - refused.len(), "{events:?}");
        for event in refused {
            assert!(!events.contains(event), "{events:?}");
            let part = format!("Prelude does not take `{event}`");
            assert_eq!(told.matches(&part).count(), 1, "{told}");
        }
        for part in ["request_id req_", "type bad_request", "param event"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let shown = report["refused"].as_array().unwrap().iter();
        let shown: Value = shown.map(|one| one["event"].clone()).collect();
        assert_eq!(names(&shown), refused);
    }
    // `create` does the same for all types, and not for those that were named.
    let created = output(&mut scene.webhook(&["create", "--url", &url])).await;
    assert_eq!(created.status.code(), Some(0), "{}", stderr(&created));
    let named = ["create", "--url", &url, "--event", refused[0]];
    let created = output(&mut scene.webhook(&named)).await;
    assert_eq!(created.status.code(), Some(1), "{}", stderr(&created));
    assert!(stderr(&created).contains("leave an event type out"));
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_leaves_out_the_events_that_prelude_refuses_and_names_them() {
    leaves_out(&["step_up.hook_failed"], false).await;
    leaves_out(&["migration.hook_failed", "step_up.hook_failed"], true).await;
    // Not even all of those that it has always taken.
    let refused = ["migration.hook_failed", "user.created", "user.deleted"];
    leaves_out(&refused, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_tries_an_unknown_type_and_fails_when_prelude_takes_none() {
    let scene = Scene::new().await;
    scene.write_token(APP, TOKEN);
    let url = scene.url();
    let setup = ["setup", "--url", &url, "--event", "user.mood.changed"];
    let failed = output(&mut scene.webhook(&setup)).await;
    let told = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{told}");
    for part in [
        "is not one of the documented types",
        "400 bad_request",
        "param events",
        "request_id req_",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let listed = output(&mut scene.webhook(&["list"])).await;
    assert!(
        stdout(&listed).contains("no webhooks"),
        "{}",
        stdout(&listed)
    );
    // Beside one that is taken, it is left out.
    let _bridge = scene.bridge(&[]);
    let both = [&setup[..], &["--event", "user.created", "--output", "json"]].concat();
    let set_up = output(&mut scene.webhook(&both)).await;
    assert_eq!(set_up.status.code(), Some(0), "{}", stderr(&set_up));
    let report: Value = serde_json::from_str(&stdout(&set_up)).unwrap();
    assert_eq!(names(&report["webhook"]["events"]), ["user.created"]);
    assert_eq!(report["refused"][0]["event"], "user.mood.changed");
    // With a webhook that exists, and nothing else.
    let failed = output(&mut scene.webhook(&["delete", "web_0"])).await;
    assert_eq!(failed.status.code(), Some(1));
    let again = output(&mut scene.webhook(&setup)).await;
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    assert!(stderr(&again).contains("param event"), "{}", stderr(&again));
}

/// An API that has no webhooks and refuses to create any. Counts the calls that would create one.
fn api_that_refuses(status: &'static str, error: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    // Ends with the process of the test.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !is_whole(&request) {
                let mut part = [0; 4096];
                match stream.read(&mut part) {
                    Ok(count) if count > 0 => request.extend_from_slice(&part[..count]),
                    _ => break,
                }
            }
            let is_call = request.starts_with(b"POST ");
            counted.fetch_add(is_call.into(), Ordering::Relaxed);
            let (status, body) = match is_call {
                true => (status, error),
                false => ("200 OK", r#"{"webhooks":[]}"#),
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nx-request-id: req_of_the_header\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (url, calls)
}

/// Whether a request has arrived with the body that its `content-length` announces.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.lines().next());
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_refusal_that_may_be_about_events_is_tried_again_and_never_without_end() {
    // All at once, those that the API has always taken, and each by itself.
    let tries_max = 1 + 1 + 9;
    for (status, error, tries, part) in [
        (
            "400 No",
            r#"{"code":"bad_request"}"#,
            tries_max,
            "400 bad_request",
        ),
        ("400 No", "<html>", tries_max, "400: <html>"),
        (
            "422 No",
            r#"{"param":"events[8]"}"#,
            tries_max,
            "param events[8]",
        ),
        (
            "400 No",
            r#"{"param":"url","message":"bad"}"#,
            1,
            "400: bad (param url",
        ),
        ("401 No", "{}", 1, "401"),
        ("409 No", r#"{"code":"limit"}"#, 1, "409 limit"),
        ("429 No", "{}", 1, "429"),
        (
            "500 No",
            r#"{"request_id":"req_of_the_body"}"#,
            1,
            "req_of_the_body",
        ),
    ] {
        let directory = tempdir().unwrap();
        let (api, calls) = api_that_refuses(status, error);
        let mut setup = program(&["webhook", "setup", "--app", APP, "--api-url", &api]);
        setup
            .args(["--url", "http://127.0.0.1:1/webhooks", "--data-dir"])
            .arg(directory.path())
            .env("PRELUDE_API_TOKEN", "key");
        let failed = output(&mut setup).await;
        let told = stderr(&failed);
        assert_ne!(failed.status.code(), Some(0), "{told}");
        assert_eq!(calls.load(Ordering::Relaxed), tries, "{status} {error}");
        assert!(told.contains(part), "{part}: {told}");
        let has_id_of_header = told.contains("request_id req_of_the_header");
        assert_ne!(has_id_of_header, error.contains("request_id"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_shows_preludes_words_and_the_next_step() {
    let scene = Scene::new().await;
    for (arguments, key, code, words) in [
        (
            &["list"][..],
            "wrong",
            4,
            &["401 unauthorized", "PRELUDE_API_TOKEN"][..],
        ),
        (
            &["activate", "web_0"],
            "",
            1,
            &["404 webhook_not_found", "request_id req_", "webhook list"],
        ),
        (
            &["get", "web_0"],
            "",
            1,
            &["404 webhook_not_found", "type not_found", "webhook list"],
        ),
        (&["deactivate", "web_0"], "", 1, &["404 webhook_not_found"]),
        (
            &["add-event", "web_0", "verify.attempt"],
            "",
            1,
            &["an event of Prelude Verify or Notify", "callback_url"],
        ),
        (
            &["add-event", "web_0", "user.craeted"],
            "",
            1,
            &["did you mean `user.created`"],
        ),
    ] {
        let mut command = scene.webhook(arguments);
        if !key.is_empty() {
            command.env("PRELUDE_API_TOKEN", key);
        }
        let output = output(&mut command).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        for word in words {
            assert!(
                stderr(&output).contains(word),
                "{word}: {}",
                stderr(&output)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_is_said_before_anybody_is_called() {
    let directory = tempdir().unwrap();
    let run = |arguments: &[&str], key: &str| {
        let mut command = program(&["webhook"]);
        command
            .args(arguments)
            .arg("--data-dir")
            .arg(directory.path());
        command.env("PRELUDE_API_TOKEN", key).output().unwrap()
    };
    let setup = &["setup", "--app", APP, "--url"][..];
    let nowhere = ["--api-url", "http://127.0.0.1:1"];
    for (arguments, key, code, word) in [
        (vec!["list"], "key", 2, "no app is named"),
        (
            vec!["list", "--app", APP],
            "",
            2,
            "there is no management key",
        ),
        (
            [&["list", "--app", APP], &nowhere[..]].concat(),
            "key",
            3,
            "cannot be reached",
        ),
        ([setup, &["example.com"]].concat(), "key", 2, "not a URL"),
        (
            [setup, &["ftp://example.com"]].concat(),
            "key",
            2,
            "neither https nor http",
        ),
        (
            [setup, &["http://127.0.0.1:8080/webhooks"]].concat(),
            "key",
            2,
            "cannot reach",
        ),
        (
            vec!["list", "--app", APP, "--api-url", "http://api.example.com"],
            "key",
            2,
            "over https only",
        ),
    ] {
        let output = run(&arguments, key);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(
            told.contains(word) && told.contains("help:"),
            "{arguments:?}: {told}"
        );
    }
    // And no token was made for any of that.
    assert!(!directory.path().join("tokens").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_answers_oddly_is_named() {
    let directory = tempdir().unwrap();
    let url = "http://127.0.0.1:1/webhooks";
    let inactive = r#"{"webhook":{"id":"web_1","active":false},"webhooks":[]}"#;
    let setup = &["setup", "--wait", "0s", "--url", url][..];
    for (arguments, answer, word) in [
        (
            setup,
            inactive,
            "took the activation of web_1, but shows it as inactive",
        ),
        (
            &["activate", "web_1"],
            inactive,
            "took the activation of web_1, but shows it as inactive",
        ),
        (setup, "<html>", "cannot be understood"),
        (setup, r#"{"webhooks":[]}"#, "missing field `webhook`"),
    ] {
        let api = server_that_says("", answer);
        let mut command = program(&["webhook"]);
        command
            .args(arguments)
            .args([
                "--app",
                APP,
                "--api-url",
                api.trim_end_matches("/jwks.json"),
                "--data-dir",
            ])
            .arg(directory.path())
            .env("PRELUDE_API_TOKEN", "key");
        let output = output(&mut command).await;
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(
            stderr(&output).contains(word),
            "{word}: {}",
            stderr(&output)
        );
    }
}
