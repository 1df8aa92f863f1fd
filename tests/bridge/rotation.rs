//! Secrets that are replaced while the bridge runs, from outside: a subscriber's token, and the verification
//! token of an app. Nobody notices but whoever still uses the old one when it ends.

use std::{
    fs,
    process::{Output, Stdio},
    thread,
    time::Duration,
};

use prelude_bridge::client::{Client, Options, Request, Start, Subscription};
use serde_json::Value;
use tokio_stream::StreamExt as _;

use crate::{
    access::{reason_of, token},
    cli::{program, stderr, stdout},
    credentials::next_event,
    support::{APP, Bridge, Request as HttpRequest, SOON, Setup, TOKEN, item, sender::eventually},
};

/// Runs a command for the credentials of this bridge.
fn command(bridge: &Bridge, arguments: &[&str]) -> Output {
    let mut command = program(&["token"]);
    let data_dir = bridge.data_dir();
    command.args(arguments).arg("--data-dir").arg(data_dir);
    command.output().unwrap()
}

/// The token that a rotation prints.
fn rotate(bridge: &Bridge, arguments: &[&str]) -> String {
    let output = command(bridge, &[&["rotate"], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim().to_owned()
}

/// A credential as `token list` has it.
fn listed(bridge: &Bridge, name: &str) -> Value {
    let output = command(bridge, &["list", "--output", "json"]);
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    all.into_iter().find(|one| one["name"] == name).unwrap()
}

/// Has the old token of the only rotation end after this time, as an editor does.
fn expire_old_token_in(bridge: &Bridge, time: Duration) {
    let file = bridge.data_dir().join("credentials.toml");
    let text = fs::read_to_string(&file).unwrap();
    let at = jiff::Timestamp::now() + time;
    let lines = text
        .lines()
        .map(|line| match line.strip_prefix("previous_expires_at = ") {
            Some(_) => format!("previous_expires_at = {at}\n"),
            None => format!("{line}\n"),
        });
    fs::write(&file, lines.collect::<String>()).unwrap();
}

async fn client(bridge: &Bridge, token: &str) -> Client {
    let url = format!("http://{}", bridge.addresses.grpc);
    Client::connect(&Options::new(url).token(token))
        .await
        .unwrap()
}

async fn is_served(bridge: &Bridge, token: &str) -> bool {
    client(bridge, token).await.range().await.is_ok()
}

async fn subscribe(bridge: &Bridge, token: &str) -> Subscription {
    let request = Request::new().start(Start::Earliest);
    client(bridge, token).await.subscribe(request)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_rotated_under_a_stream_that_never_ends_until_its_own_token_does() {
    let mut bridge = Setup::default().prepare();
    let old = token(&bridge.data_dir(), &["billing"]);
    bridge.restart().await;
    let mut stream = subscribe(&bridge, &old).await;
    let append = async |number: usize| {
        let id = format!("evt_{number}");
        bridge.append(&[item(&id, "user.created", "usr_1")]).await;
    };
    append(1).await;
    assert_eq!(next_event(&mut stream).await, "evt_1");

    let new = rotate(&bridge, &["billing"]);
    eventually(async || is_served(&bridge, &new).await.then_some(())).await;
    assert!(is_served(&bridge, &old).await);
    let mut newer = subscribe(&bridge, &new).await;
    assert_eq!(next_event(&mut newer).await, "evt_1");
    append(2).await;
    assert_eq!(next_event(&mut stream).await, "evt_2");
    assert_eq!(next_event(&mut newer).await, "evt_2");

    // The old token ends by itself: with its reason and the cursor of what was delivered. A day is long, so its
    // end is moved.
    expire_old_token_in(&bridge, Duration::from_secs(2));
    let error = loop {
        match tokio::time::timeout(SOON, stream.next()).await.unwrap() {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => unreachable!("it ends with a reason"),
        }
    };
    assert_eq!(reason_of(&error), "TOKEN_EXPIRED");
    let cursor = stream.cursor().unwrap().to_owned();
    assert!(!is_served(&bridge, &old).await);
    append(3).await;
    assert_eq!(next_event(&mut newer).await, "evt_3");
    let resumed = Request::new().start(Start::After(cursor));
    let mut resumed = client(&bridge, &new).await.subscribe(resumed);
    assert_eq!(next_event(&mut resumed).await, "evt_3");

    // The next rotation, and an operator who does not wait.
    let newest = rotate(&bridge, &["billing"]);
    eventually(async || is_served(&bridge, &newest).await.then_some(())).await;
    assert!(is_served(&bridge, &new).await);
    assert!(
        command(&bridge, &["revoke", "billing", "--old"])
            .status
            .success()
    );
    eventually(async || (!is_served(&bridge, &new).await).then_some(())).await;
    assert!(is_served(&bridge, &newest).await);
    let log = bridge.stderr();
    for token in [&old, &new, &newest] {
        assert!(!log.contains(token.trim_start_matches("pb_")));
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_is_killed_at_any_moment_loses_no_token() {
    let mut bridge = Setup::default().prepare();
    let old = token(&bridge.data_dir(), &["billing"]);
    bridge.restart().await;
    let mut stream = subscribe(&bridge, &old).await;
    let file = bridge.data_dir().join("credentials.toml");
    let before = fs::read(&file).unwrap();
    let digest = listed(&bridge, "billing")["sha256_prefix"].clone();
    let (mut done, mut undone) = (0, 0);
    for attempt in 0..40_u64 {
        let mut rotation = program(&["token", "rotate", "billing", "--data-dir"]);
        rotation.arg(bridge.data_dir());
        rotation.stdout(Stdio::null()).stderr(Stdio::null());
        let mut rotation = rotation.spawn().unwrap();
        // Not to wait for anything: to hit different moments.
        thread::sleep(Duration::from_micros(attempt * 2_000));
        let _ = rotation.kill();
        rotation.wait().unwrap();
        let entry = listed(&bridge, "billing");
        let prefixes = [
            &entry["sha256_prefix"],
            &entry["old_token"]["sha256_prefix"],
        ];
        assert!(prefixes.contains(&&digest), "{entry}");
        if *prefixes[0] == digest {
            undone += 1;
        } else {
            done += 1;
            fs::write(&file, &before).unwrap();
        }
    }
    eprintln!("{done} rotations were done, {undone} were not");
    // And the bridge itself, after one.
    let new = rotate(&bridge, &["billing"]);
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    assert_eq!(next_event(&mut stream).await, "evt_1");
    bridge.kill();
    bridge.restart().await;
    assert!(is_served(&bridge, &old).await && is_served(&bridge, &new).await);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_use_of_each_token_is_listed_and_survives_restarts() {
    let mut bridge = Setup::default().prepare();
    let old = token(&bridge.data_dir(), &["billing"]);
    token(&bridge.data_dir(), &["unused"]);
    bridge.restart().await;
    assert_eq!(listed(&bridge, "billing")["last_used_at"], Value::Null);
    assert!(is_served(&bridge, &old).await);
    let used = eventually(async || {
        let used = listed(&bridge, "billing")["last_used_at"].clone();
        used.is_string().then_some(used)
    })
    .await;
    bridge.kill();
    bridge.restart().await;
    let new = rotate(&bridge, &["billing"]);
    let entry = listed(&bridge, "billing");
    assert_eq!(entry["last_used_at"], Value::Null, "the new one");
    assert_eq!(entry["old_token"]["last_used_at"], used);
    eventually(async || is_served(&bridge, &new).await.then_some(())).await;
    // Within the minute it is written at the latest when the bridge ends.
    assert!(bridge.terminate().await.success());
    let entry = listed(&bridge, "billing");
    assert!(entry["last_used_at"].is_string(), "{entry}");
    assert_eq!(entry["old_token"]["last_used_at"], used);
    assert_eq!(listed(&bridge, "unused")["last_used_at"], Value::Null);
    let table = stdout(&command(&bridge, &["list"]));
    assert_eq!(table.lines().count(), 4, "{table}");

    // Nothing depends on the file.
    fs::remove_file(bridge.data_dir().join("last-use.txt")).unwrap();
    bridge.restart().await;
    assert!(is_served(&bridge, &new).await && is_served(&bridge, &old).await);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_hear_of_an_expiry_before_it_comes() {
    let mut bridge = Setup::default().prepare();
    token(&bridge.data_dir(), &["billing", "--expires-in", "13d"]);
    token(&bridge.data_dir(), &["audit", "--expires-in", "30d"]);
    // Made long ago, so that the two weeks count and not its last quarter.
    let file = bridge.data_dir().join("credentials.toml");
    let text = fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("created_at"));
    fs::write(&file, lines.collect::<Vec<_>>().join("\n") + "\n").unwrap();
    bridge.restart().await;
    assert!(
        bridge
            .metric("prelude_bridge_credential_expiry_seconds{credential=\"audit\"}")
            .await
            .is_some()
    );
    let left = bridge
        .metric("prelude_bridge_credential_expiry_seconds{credential=\"billing\"}")
        .await
        .unwrap()
        - jiff::Timestamp::now().as_duration().as_secs_f64();
    assert!(left > 12.9 * 86_400.0 && left < 13.1 * 86_400.0, "{left}");
    let ready = bridge.admin("/readyz").await;
    assert_eq!(ready.status, 200);
    let mut doctor = bridge.command_of("doctor");
    let doctor = tokio::task::spawn_blocking(move || doctor.output().unwrap());
    let log = eventually(async || {
        let log = bridge.stderr();
        log.contains("expires soon").then_some(log)
    })
    .await;
    for said in [ready.text(), stdout(&doctor.await.unwrap()), log] {
        assert!(
            said.contains("billing") && said.contains("token rotate"),
            "{said}"
        );
        assert!(!said.contains("audit"), "{said}");
    }
    assert_eq!(listed(&bridge, "billing")["state"], "expiring");
    rotate(&bridge, &["billing"]);
    eventually(async || {
        let page = bridge.admin("/readyz").await.text();
        (!page.contains("warning")).then_some(())
    })
    .await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_token_is_replaced_without_a_restart_and_without_a_gap() {
    const NEW: &str = "canary-new-token-8Kr3";
    let bridge = Bridge::start().await;
    let file = bridge.data_dir().with_file_name("token.txt");
    let challenge = async |token: &str| {
        let target = format!(
            "/webhooks/{APP}?event=activate&app_id={APP}&verification_token={token}&challenge=7"
        );
        let request = HttpRequest::get(&target);
        request.send(bridge.addresses.webhook).await.unwrap().status
    };
    assert_eq!((challenge(TOKEN).await, challenge(NEW).await), (200, 401));
    fs::write(&file, format!("{NEW}\n{TOKEN}\n")).unwrap();
    eventually(async || (challenge(NEW).await == 200).then_some(())).await;
    assert_eq!(challenge(TOKEN).await, 200);
    bridge.signal("HUP");
    // Files that cannot be used.
    for text in ["", "one\ntwo\nthree\n"] {
        fs::write(&file, text).unwrap();
        let complaints = bridge.stderr().matches("cannot be used").count();
        eventually(async || {
            let now = bridge.stderr().matches("cannot be used").count();
            (now > complaints).then_some(())
        })
        .await;
        assert_eq!((challenge(TOKEN).await, challenge(NEW).await), (200, 200));
    }
    fs::write(&file, NEW).unwrap();
    eventually(async || (challenge(TOKEN).await == 401).then_some(())).await;
    assert_eq!(challenge(NEW).await, 200);
    bridge
        .append(&[item("evt_1", "user.created", "usr_1")])
        .await;
    assert!(!bridge.stderr().contains(NEW));
    bridge.finish().await;
}
