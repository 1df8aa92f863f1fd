//! The simulator as Prelude Verify and Notify, and `trigger` for every documented type, by a receiver that
//! is not the bridge.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use http::Method;
use prelude_bridge::simulator::{
    AppOptions, Error, EventType, Options, Outcome, RetrySchedule, SigningKey, Simulator,
    SourceKind,
    scenario::{Scenario, Target},
};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{
    cli::{program, stderr, stdout},
    setup::{Bridge, free_port, output},
    simulator::{Act, Api, Receiver, SOON, TEST_KEY, key, ledger_lines, options, simulate},
    sources::{SHARED_KEY, mixed},
    support::{APP, KEY, reader},
};

fn sources() -> Options {
    let source = |id: &str, kind| {
        AppOptions::with_keys(id, vec![key("test-key-2048-a"), key("test-key-2048-b")])
            .of_kind(kind)
    };
    Options {
        apps: vec![
            source("54e9ujn", SourceKind::Auth),
            source("calls", SourceKind::Verify),
            source("texts", SourceKind::Notify),
        ],
        ..options()
    }
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[tokio::test]
async fn verify_and_notify_send_one_event_a_request_without_a_challenge_and_retry_it() {
    for (id, kind) in [("calls", SourceKind::Verify), ("texts", SourceKind::Notify)] {
        let receiver = Receiver::start([Act::Answer(503), Act::HangUp]).await;
        let simulator = Simulator::start(sources()).await.unwrap();
        let types = kind.event_types();
        let webhook = simulator
            .connect(id, &receiver.url, "", types)
            .await
            .unwrap();
        let first = simulator.batch(id, 1, &[]).unwrap();
        let outcome = simulator.deliver(&webhook, first.clone()).await.unwrap();
        assert_eq!(outcome, Outcome::Acknowledged);
        assert_eq!(receiver.bodies(), vec![first.body().clone(); 3]);
        let two = simulator.batch(id, 2, &[]).unwrap_err();
        assert!(matches!(two, Error::NotOneEvent(2)), "{two}");

        let emitted = simulator.emit(id, 40, &[]).await.unwrap();
        assert_eq!((emitted.events, emitted.batches), (40, 40));
        assert!(simulator.settle(SOON).await);
        assert_eq!(receiver.challenges(), 0);
        let bodies = receiver.bodies();
        let ids: BTreeSet<String> = bodies
            .iter()
            .map(|body| {
                let event = parsed(body);
                let event_type: EventType = event["type"].as_str().unwrap().parse().unwrap();
                assert_eq!(event_type.source_kind(), kind);
                assert!(event["payload"].is_object() && event.get("app_id").is_none());
                event["id"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(ids.len(), 41);
        let lines = simulator.ledger().lines();
        assert!(lines.iter().all(|line| line.app_id == id));
        // The events that follow from each other say so, which the ledger knows them by.
        assert!(lines.iter().all(|line| line.event.correlation_id.is_some()));
    }
}

/// An app and a source each of Verify and Notify, as `sources::mixed` configures a bridge for them.
pub(crate) fn of_mixed() -> Options {
    let source = |id: &str, key: &SigningKey, kind| {
        AppOptions::with_keys(id, vec![key.clone()]).of_kind(kind)
    };
    Options {
        apps: vec![
            source(APP, &KEY, SourceKind::Auth),
            source("calls", &SHARED_KEY, SourceKind::Verify),
            source("messages", &SHARED_KEY, SourceKind::Notify),
        ],
        ..options()
    }
}

/// The schedule is the same for all products: 1, 2, 4 … minutes, up to every 12 hours, for two weeks.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_up_to_the_last_retry_is_in_the_log_once() {
    let bridge = mixed().start().await;
    let simulator = Simulator::start(of_mixed()).await.unwrap();
    let retries = RetrySchedule::default().pauses().count();
    for id in [APP, "calls", "messages"] {
        let url = format!("http://{}/webhooks/{id}", bridge.addresses.webhook);
        let refused = std::iter::repeat_n(Act::Answer(503), retries);
        let receiver = Receiver::start(refused.chain([Act::Forward(url)])).await;
        let types = simulator.kind(id).unwrap().event_types();
        let webhook = simulator
            .connect(id, &receiver.url, "token", types)
            .await
            .unwrap();
        let batch = simulator.batch(id, 1, &[]).unwrap();
        let outcome = simulator.deliver(&webhook, batch.clone()).await.unwrap();
        assert_eq!(outcome, Outcome::Acknowledged, "{id}");
        assert_eq!(receiver.bodies(), vec![batch.body().clone(); 1 + retries]);
    }
    let events = reader::log(&bridge).await;
    let apps: Vec<&str> = events.iter().map(|event| event.app_id.as_str()).collect();
    assert_eq!(apps, [APP, "calls", "messages"]);
    bridge.finish().await;
}

#[tokio::test]
async fn a_source_that_is_no_app_has_a_pem_key_and_no_webhooks_to_register() {
    let simulator = Simulator::start(sources()).await.unwrap();
    let pem = reqwest::get(simulator.pem_url("calls")).await.unwrap();
    assert_eq!(pem.status(), 200);
    let pem = pem.text().await.unwrap();
    assert_eq!(pem, simulator.public_pem("calls").unwrap());
    assert_eq!(pem, key("test-key-2048-a").public_pem().unwrap());
    simulator.rotate_key("calls", true).await.unwrap();
    let both = reqwest::get(simulator.pem_url("calls")).await.unwrap();
    let both = both.text().await.unwrap();
    assert!(both.ends_with(&pem) && both.matches("BEGIN PUBLIC KEY").count() == 2);
    simulator.set_jwks_up("calls", false).unwrap();
    for (url, status) in [
        (simulator.pem_url("calls"), 503),
        (simulator.pem_url("54e9ujn"), 404),
        (simulator.pem_url("nobody"), 404),
        (simulator.jwks_url("calls"), 404),
        (simulator.jwks_url("54e9ujn"), 200),
    ] {
        assert_eq!(reqwest::get(&url).await.unwrap().status(), status, "{url}");
    }
    let api = Api::new(&simulator);
    let (status, refused) = api.call(Method::GET, "/calls/webhooks", None).await;
    assert_eq!((status, &refused["code"]), (404, &json!("app_not_found")));
    assert!(refused["request_id"].as_str().unwrap().starts_with("req_"));
}

#[tokio::test]
async fn simulate_plays_verify_and_its_deliveries_verify_with_the_pem_that_it_wrote() {
    let receiver = Receiver::start([]).await;
    let directory = tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let flags = [
        "--source",
        "verify",
        "--to",
        &receiver.url,
        "--count",
        "7",
        "--rate",
        "0",
        "--types",
        "verify.attempt,verify.delivery_status",
        "--pem-out",
        &path("{app}.pem"),
        "--output",
        "json",
    ];
    let done = simulate(&[&TEST_KEY[..], &flags[..]].concat()).await;
    let told = stderr(&done);
    assert_eq!(done.status.code(), Some(0), "{told}");
    for part in [
        "PRELUDE_BRIDGE_SOURCE_ID=verify ",
        "PRELUDE_BRIDGE_SOURCE_KIND=verify ",
        "verify.pem ",
        "source verify sends",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("TOKEN"), "{told}");
    let lines = ledger_lines(&done);
    assert_eq!(lines.len(), 7);
    assert!(lines.iter().all(|line| line["app_id"] == "verify"));

    fs::write(path("body"), &receiver.bodies()[3]).unwrap();
    let signature = receiver.header(3, "x-webhook-signature").unwrap();
    let verify = |keys: [String; 2], more: &[&str]| {
        let mut command = program(&["verify", "--body", &path("body"), "--signature", &signature]);
        command.args(keys).args(more).output().unwrap()
    };
    let with_pem = || ["--pem".to_owned(), path("verify.pem")];
    let valid = verify(with_pem(), &["--output", "json"]);
    assert_eq!(valid.status.code(), Some(0), "{}", stdout(&valid));
    let report = parsed(&valid.stdout);
    assert_eq!(report["valid"], true);
    assert_eq!(report["delivery"]["form"], "event");
    assert_eq!(report["delivery"]["kind"], "verify");
    assert_eq!(
        report["delivery"]["id"],
        parsed(&receiver.bodies()[3])["id"]
    );
    let human = stdout(&verify(with_pem(), &[]));
    assert!(
        human.starts_with("valid: ") && human.contains("of kind verify"),
        "{human}"
    );
    // No identifier of the payload is shown.
    assert!(!human.contains("+1"), "{human}");

    // With the key set of an app, it says where the right key is.
    let other = json!({ "keys": [] }).to_string();
    fs::write(path("jwks.json"), other).unwrap();
    let wrong = verify(["--jwks".to_owned(), path("jwks.json")], &[]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        stdout(&wrong).contains("give that key with --pem"),
        "{}",
        stdout(&wrong)
    );
}

#[tokio::test]
async fn trigger_sends_every_documented_type_in_the_form_of_its_product() {
    let receiver = Receiver::start([]).await;
    let mut commands: Vec<_> = EventType::ALL
        .into_iter()
        .map(|event_type| {
            let mut command = program(&["trigger", event_type.as_str(), "--to", &receiver.url]);
            command.args(["--output", "json"]).args(TEST_KEY);
            command.current_dir(env!("CARGO_MANIFEST_DIR"));
            // An app of the environment is none of Verify or Notify.
            command.env("PRELUDE_BRIDGE_APP_ID", "7k2mzqa");
            (event_type, command)
        })
        .collect();
    for (index, (event_type, command)) in commands.iter_mut().enumerate() {
        let sent = output(command).await;
        assert_eq!(
            sent.status.code(),
            Some(0),
            "{event_type}: {}",
            stderr(&sent)
        );
        let id = match event_type.source_kind() {
            SourceKind::Auth => "7k2mzqa",
            kind => kind.as_str(),
        };
        assert_eq!(parsed(&sent.stdout)["app_id"], id);
        let body = parsed(&receiver.bodies()[index]);
        let event = match event_type.source_kind() {
            SourceKind::Auth => {
                assert_eq!(body["app_id"], id);
                assert_eq!(body["events"].as_array().unwrap().len(), 1);
                body["events"][0].clone()
            }
            SourceKind::Verify | SourceKind::Notify => body,
        };
        assert_eq!(event["type"], event_type.as_str());
        assert!(event["payload"].as_object().unwrap().len() > 2);
        assert_eq!(event["id"], parsed(&sent.stdout)["id"]);
    }
}

#[tokio::test]
async fn trigger_sends_a_type_of_ones_own_in_the_form_that_was_asked_for() {
    let receiver = Receiver::start([]).await;
    let directory = tempdir().unwrap();
    let file = directory.path().join("payload.json");
    fs::write(
        &file,
        r#"{"phone_number":"+12025550100","status":"stopped"}"#,
    )
    .unwrap();
    let pem = directory.path().join("key.pem");
    for (flags, is_batch) in [(&["--source", "auth"][..], true), (&[], false)] {
        let mut trigger = program(&["trigger", "subscription.stopped", "--to", &receiver.url]);
        trigger.args(flags).args(TEST_KEY).arg("--file").arg(&file);
        trigger.arg("--pem-out").arg(&pem);
        trigger.current_dir(env!("CARGO_MANIFEST_DIR"));
        let sent = output(&mut trigger).await;
        assert_eq!(sent.status.code(), Some(0), "{}", stderr(&sent));
        let body = parsed(receiver.bodies().last().unwrap());
        assert_eq!(body["events"].is_array(), is_batch, "{body}");
        let event = if is_batch { &body["events"][0] } else { &body };
        assert_eq!(event["payload"]["status"], "stopped");
        let written = fs::read_to_string(&pem).unwrap();
        assert_eq!(written, key("test-key-2048-a").public_pem().unwrap());
    }
}

#[tokio::test]
async fn the_example_with_all_sources_runs_and_every_event_is_acknowledged() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/scenarios/sources.toml"
    );
    let text = fs::read_to_string(path).unwrap();
    // The pace and the keys are the test's.
    let mut text = text.replace("rate = 100, ", "").replace(", rate = 100", "");
    text = text.replace("wait = \"2s\"", "wait = \"1ms\"");
    for id in ["54e9ujn", "verify", "notify"] {
        let keys = format!(
            "id = \"{id}\"\nkey_files = [\"test-key-2048-a.pem\", \"test-key-2048-b.pem\"]"
        );
        text = text.replace(&format!("id = \"{id}\""), &keys);
    }
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/keys"));
    let scenario = Scenario::parse(&text, directory).unwrap();
    let receiver = Receiver::start([]).await;
    let simulator = Simulator::start(scenario.options()).await.unwrap();
    let target = Target {
        url: Some(receiver.url.clone()),
        verification_token: "token".to_owned(),
    };
    for one in scenario.connections(&target) {
        let connected = simulator.connect(&one.app_id, &one.url, "token", &one.events);
        connected.await.unwrap();
    }
    for step in 0..scenario.steps() {
        scenario.take_step(step, &simulator).await.unwrap();
    }
    let totals = simulator.totals();
    assert_eq!((totals.events, totals.events_acknowledged), (520, 520));
    let lines = simulator.ledger().lines();
    let of = |id: &str| lines.iter().filter(|line| line.app_id == id).count();
    assert_eq!((of("54e9ujn"), of("verify"), of("notify")), (120, 200, 200));
    let hooks = lines
        .iter()
        .filter(|line| line.event.event_type.ends_with("hook_failed"));
    assert!(hooks.count() >= 20);
    let pem = simulator.public_pem("notify").unwrap();
    assert_eq!(pem.matches("BEGIN PUBLIC KEY").count(), 2);
}

/// A bridge reads the file again, so the simulator writes it again.
#[tokio::test]
async fn a_rotation_writes_the_pem_file_again() {
    let receiver = Receiver::start([]).await;
    let directory = tempdir().unwrap();
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/keys");
    let text = format!(
        "[[apps]]\nid = 'calls'\nkind = 'verify'\nkey_files = ['{keys}/test-key-2048-a.pem', \
         '{keys}/test-key-2048-b.pem']\n[[apps]]\nid = 'one'\nkey_files = \
         ['{keys}/test-key-3072.pem']\n[[steps]]\nrotate_key = {{ app = 'calls', overlap = true }}\n\
         [[steps]]\nsend = {{ events = 2 }}\n"
    );
    let scenario = directory.path().join("scenario.toml");
    fs::write(&scenario, text).unwrap();
    let pem = directory.path().join("{app}.pem");
    let (scenario, pem) = (scenario.to_str().unwrap(), pem.to_str().unwrap());
    let flags = [
        "--scenario",
        scenario,
        "--to",
        &receiver.url,
        "--pem-out",
        pem,
    ];
    let done = simulate(&flags).await;
    let told = stderr(&done);
    assert_eq!(done.status.code(), Some(0), "{told}");
    // With an app beside the source, it takes a file to configure the bridge.
    for part in [
        "SIMULATED_TOKEN=",
        "[[sources]]\n  id = \"calls\"\n  kind = \"verify\"\n  pem_file = ",
        "[[apps]]\n  id = \"one\"",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let written = fs::read_to_string(directory.path().join("calls.pem")).unwrap();
    let expected =
        ["test-key-2048-b", "test-key-2048-a"].map(|name| key(name).public_pem().unwrap());
    assert_eq!(written, expected.concat());
}

/// A configuration file with a source each of Verify and Notify, whose key is in this PEM file.
fn configuration(directory: &Path, pem: &str) -> String {
    let source = |kind: &str| {
        format!("[[sources]]\nid = \"{kind}\"\nkind = \"{kind}\"\npem_file = \"{pem}\"\n")
    };
    let file = directory.join("bridge.toml");
    fs::write(&file, source("verify") + &source("notify")).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_takes_what_trigger_and_simulate_send_as_verify_and_notify() {
    let directory = tempdir().unwrap();
    let pem = directory.path().join("key.pem");
    let pem = pem.to_str().unwrap();
    fs::write(pem, key("test-key-2048-a").public_pem().unwrap()).unwrap();
    let file = configuration(directory.path(), pem);
    let port = free_port();
    let data = tempdir().unwrap();
    let bridge = Bridge::start(port, data.path(), &[("PRELUDE_BRIDGE_CONFIG", &file)]);
    let url = format!("http://127.0.0.1:{port}/webhooks/{{app}}");
    let types: Vec<_> = EventType::ALL
        .into_iter()
        .filter(|event_type| event_type.source_kind() != SourceKind::Auth)
        .collect();
    for event_type in &types {
        let mut trigger = program(&["trigger", event_type.as_str(), "--to", &url]);
        trigger
            .args(TEST_KEY)
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let sent = output(&mut trigger).await;
        assert_eq!(
            sent.status.code(),
            Some(0),
            "{event_type}: {}",
            stderr(&sent)
        );
    }
    let server = format!("http://{}", bridge.grpc);
    let events = async |count: usize| -> Vec<Value> {
        let count = count.to_string();
        let mut tail = program(&["tail", "--server", &server, "--from", "earliest"]);
        tail.args(["--count", &count, "--output", "json"]);
        let tail = output(&mut tail).await;
        assert_eq!(tail.status.code(), Some(0), "{}", stderr(&tail));
        stdout(&tail)
            .lines()
            .map(|line| parsed(line.as_bytes()))
            .collect()
    };
    for (event, event_type) in events(types.len()).await.iter().zip(&types) {
        let text = event.to_string();
        assert!(text.contains(event_type.as_str()), "{event_type}: {text}");
        let id = event_type.source_kind().as_str();
        assert!(text.contains(&format!("\"{id}\"")), "{event_type}: {text}");
    }
    // Faults make repetitions, and each event is kept once.
    let flags = [
        "--source",
        "notify",
        "--to",
        &url,
        "--count",
        "30",
        "--rate",
        "0",
        "--lose-answers",
        "0.3",
        "--duplicates",
        "0.3",
        "--time-scale",
        "60000",
    ];
    let done = simulate(&[&TEST_KEY[..], &flags].concat()).await;
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let all = events(types.len() + 30).await;
    let ids: BTreeSet<String> = all.iter().map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), types.len() + 30);

    // The path of a source of another kind.
    let other = format!("http://127.0.0.1:{port}/webhooks/verify");
    let mut wrong = program(&["trigger", "user.created", "--app", "verify", "--to", &other]);
    wrong.args(TEST_KEY).current_dir(env!("CARGO_MANIFEST_DIR"));
    let wrong = output(&mut wrong).await;
    assert_eq!(wrong.status.code(), Some(1), "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("422"), "{}", stderr(&wrong));

    // And `doctor` knows such sources.
    let mut doctor = program(&["doctor", "--config", &file, "--output", "json"]);
    doctor.arg("--data-dir").arg(directory.path().join("other"));
    for listener in ["WEBHOOK", "GRPC", "ADMIN"] {
        doctor.env(format!("PRELUDE_BRIDGE_{listener}_LISTEN"), "127.0.0.1:0");
    }
    let doctor = output(&mut doctor).await;
    let report = parsed(&doctor.stdout);
    let keys = report["checks"].as_array().unwrap().iter();
    let keys: Vec<&Value> = keys.filter(|check| check["name"] == "keys").collect();
    assert_eq!(keys.len(), 2, "{report:#}");
    assert!(
        keys.iter().all(|check| check["verdict"] == "good"),
        "{report:#}"
    );
}

#[tokio::test]
async fn a_source_whose_events_would_go_nowhere_is_refused() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("scenario.toml");
    let path = path.to_str().unwrap();
    let file = "[[apps]]\nid = 'one'\n[[apps]]\nid = 'my_calls'\nkind = 'verify'\n[[steps]]\nwait = '1ms'\n\
                [[webhooks]]\napp = 'one'\nurl = 'http://127.0.0.1:1/webhooks/one'\n";
    fs::write(path, file).unwrap();
    for arguments in [
        &["--scenario", path][..],
        &["--source", "verify", "--app", "my_calls"],
    ] {
        let done = simulate(arguments).await;
        let told = stderr(&done);
        assert_eq!(done.status.code(), Some(2), "{told}");
        assert!(
            told.contains("no URL to send the events of `my_calls` to"),
            "{told}"
        );
    }
}

/// The same command under a umask that lets the group write.
#[cfg(unix)]
fn with_open_umask(command: &Command) -> Command {
    let mut open = Command::new("sh");
    open.args(["-c", r#"umask 002; exec "$0" "$@""#])
        .env_clear();
    open.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => open.env(name, value),
            None => open.env_remove(name),
        };
    }
    open
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_umask_that_lets_others_write_does_not_keep_a_bridge_from_the_keys() {
    use std::os::unix::fs::PermissionsExt as _;

    let mut demo = program(&["demo", "--source", "verify", "--count", "1"]);
    for listener in ["webhook", "grpc", "admin"] {
        demo.args([&format!("--{listener}-listen"), "127.0.0.1:0"]);
    }
    let done = output(&mut with_open_umask(&demo)).await;
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));

    let receiver = Receiver::start([]).await;
    let directory = tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for (command, more) in [
        ("trigger", &["verify.attempt"][..]),
        (
            "simulate",
            &[
                "--source",
                "verify",
                "--count",
                "1",
                "--listen",
                "127.0.0.1:0",
            ],
        ),
    ] {
        for (flag, file) in [("--pem-out", "key.pem"), ("--jwks-out", "keys.json")] {
            let file = path(&format!("{command}-{file}"));
            let mut writing = program(&[command, "--to", &receiver.url, flag, &file]);
            writing.args(TEST_KEY).args(more);
            output(&mut with_open_umask(&writing)).await;
            let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o644, "{file}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_shows_the_events_of_all_sources_in_one_log() {
    let mut demo = program(&["demo", "--source", "all", "--count", "60"]);
    for listener in ["webhook", "grpc", "admin"] {
        demo.args([&format!("--{listener}-listen"), "127.0.0.1:0"]);
    }
    let done = output(&mut demo).await;
    let told = stderr(&done);
    assert_eq!(done.status.code(), Some(0), "{told}");
    assert!(told.contains("60 received, 60 delivered, 0 lost"), "{told}");
    assert!(
        told.contains("/webhooks/verify") && told.contains("/webhooks/notify"),
        "{told}"
    );
    let lines = stdout(&done);
    assert_eq!(
        lines
            .lines()
            .filter(|line| line.contains("verify."))
            .count(),
        20,
        "{lines}"
    );
    assert_eq!(
        lines
            .lines()
            .filter(|line| line.contains("transactional."))
            .count(),
        20,
        "{lines}"
    );
}
