//! `trigger` against the built program: one event, in the log or refused with the reason.

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use tempfile::tempdir;

use crate::{
    cli::{program, stderr, stdout},
    setup::{APP, Bridge, TOKEN, free_port},
};

/// `trigger` by a user with this home.
fn trigger(home: &Path, arguments: &[&str]) -> Command {
    let mut command = program(&["trigger"]);
    command.args(arguments).env("HOME", home);
    command
}

#[test]
fn an_event_of_ones_own_is_in_the_log_when_the_command_ends() {
    let home = tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/webhooks/{{app}}");
    let jwks = home.path().join("jwks.json");
    let jwks = jwks.to_str().unwrap();
    // Nobody is there yet, but the key set is written.
    let output = trigger(
        home.path(),
        &["user.created", "--to", &url, "--jwks-out", jwks],
    )
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("start the bridge"));

    let environment = [
        ("PRELUDE_BRIDGE_APP_ID", APP),
        ("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN),
        ("PRELUDE_BRIDGE_JWKS_FILE", jwks),
    ];
    let data = tempdir().unwrap();
    let bridge = Bridge::start(port, data.path(), &environment);
    let payload = home.path().join("payload.json");
    fs::write(&payload, r#"{"user_id":"usr_mine","mood":"good"}"#).unwrap();
    let payload = payload.to_str().unwrap();
    for arguments in [
        &["user.session.created", "--to", &url][..],
        &[
            "user.mood.changed",
            "--to",
            &url,
            "--file",
            payload,
            "--output",
            "json",
        ],
    ] {
        let output = trigger(home.path(), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(
            stdout(&output).contains(arguments[0]),
            "{}",
            stdout(&output)
        );
    }
    let server = format!("http://{}", bridge.grpc);
    let tail = program(&["tail", "--server", &server, "--last", "2", "--count", "2"])
        .args(["--output", "raw"])
        .output()
        .unwrap();
    assert_eq!(tail.status.code(), Some(0), "{}", stderr(&tail));
    let events: Vec<Value> = stdout(&tail)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events[0]["type"], "user.session.created");
    assert_eq!(events[1]["payload"]["mood"], "good");

    // Another user's key is not trusted, and the message says what to do.
    let stranger = tempdir().unwrap();
    let output = trigger(stranger.path(), &["user.created", "--to", &url]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("does not trust this key"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn what_cannot_be_sent_is_named() {
    let home = tempdir().unwrap();
    let file = home.path().join("payload.json");
    fs::write(&file, "[1]").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, word) in [
        (&["user.craeted"][..], "is not an event type"),
        (&["user.created", "--file", "nowhere.json"], "nowhere.json"),
        (&["user.created", "--file", file], "one JSON object"),
        (&["user.created", "--key", file], "RSA private key"),
    ] {
        let output = trigger(home.path(), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(
            stderr(&output).contains(word),
            "{word}: {}",
            stderr(&output)
        );
    }
}
