//! `trigger` against the built program: one event, in the log or refused with the reason.

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use tempfile::tempdir;

use crate::{
    cli::{program, stderr, stdout},
    doctor::server_that_says,
    setup::{APP, Bridge, TOKEN, free_port},
    support::{Setup, certificates::Authority},
    tls::Secured as _,
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
fn only_a_bridges_answer_counts() {
    let home = tempdir().unwrap();
    for body in [
        "",
        "OK",
        "<html>",
        "{}",
        r#"{"accepted":1}"#,
        r#"{"accepted":"1","duplicates":0}"#,
        r#"{"accepted":0,"duplicates":0}"#,
        r#"{"accepted":18446744073709551615,"duplicates":2}"#,
        r#"{"status":"up"}"#,
    ] {
        let url = server_that_says("", body);
        let output = trigger(home.path(), &["user.created", "--to", &url]).output();
        let output = output.unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{body}: {said}");
        assert_eq!(stdout(&output), "", "{body}");
        for part in [&url[..], "answered 200, but not as a bridge does", "--to"] {
            assert!(said.contains(part), "{body}: {part}: {said}");
        }
    }
    for body in [
        r#"{"accepted":1,"duplicates":0}"#,
        r#"{"accepted":0,"duplicates":1}"#,
    ] {
        let url = server_that_says("", body);
        let output = trigger(home.path(), &["user.created", "--to", &url]).output();
        assert_eq!(output.unwrap().status.code(), Some(0), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_of_an_issuer_of_ones_own_is_reached_with_its_certificate() {
    let home = tempdir().unwrap();
    let authority = Authority::new();
    let jwks = home.path().join("jwks.json");
    let jwks = jwks.to_str().unwrap();
    // Nobody is there, but the key set is written.
    let nowhere = [
        "user.created",
        "--to",
        "http://127.0.0.1:1",
        "--jwks-out",
        jwks,
    ];
    let output = trigger(home.path(), &nowhere).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let setup = Setup::default().secured("webhook", &authority.server("server"));
    let mut bridge = setup.prepare();
    bridge.use_keys(&fs::read_to_string(jwks).unwrap());
    bridge.restart().await;
    let address = bridge.addresses.webhook;
    let https = format!("https://{address}/webhooks/{{app}}");
    let http = format!("http://{address}/webhooks/{{app}}");
    let ca = authority.certificate();
    let with = ["--ca-file", ca.to_str().unwrap()];
    for (url, flags, code, words) in [
        (&https, &with[..], 0, &[][..]),
        (
            &https,
            &[][..],
            3,
            &["not trusted here (UnknownIssuer)", "--ca-file"][..],
        ),
        (&http, &[], 3, &["not HTTP", "write https://"]),
    ] {
        let mut command = trigger(home.path(), &["user.created", "--to", url]);
        let output = tokio::task::spawn_blocking({
            command.args(flags);
            move || command.output().unwrap()
        });
        let output = output.await.unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{url} {flags:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{url} {flags:?}: {word}: {said}");
        }
        assert!(
            !said.contains("start the bridge"),
            "{url} {flags:?}: {said}"
        );
    }
    bridge.finish().await;
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
