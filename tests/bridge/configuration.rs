//! The configuration from outside: what `serve` refuses, what `config show` and `config check`
//! say, and which source wins.

use std::{fs, path::PathBuf};

use tempfile::{TempDir, tempdir};

use crate::cli::{program, run, stderr, stdout};

const GOOD: &str = "[[apps]]\nid = \"54e9ujn\"\nverification_token_file = \"token.txt\"\n";
const TOKEN: &str = "tok-secret-1";

/// A configuration file beside a token file.
fn file(content: &str) -> (TempDir, PathBuf) {
    let directory = tempdir().unwrap();
    fs::write(directory.path().join("token.txt"), TOKEN).unwrap();
    let path = directory.path().join("bridge.toml");
    fs::write(&path, content).unwrap();
    (directory, path)
}

#[test]
fn serve_refuses_a_bad_file_and_names_file_line_key_and_remedy() {
    let (_directory, path) = file("\ndata_dri = \"x\"\ndrain_timeout = 15\n");
    let name = path.to_str().unwrap();
    let output = run(&["serve", "--config", name]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    assert_eq!(
        stderr(&output),
        format!(
            "error: {name}:2: unknown key `data_dri`\n  \
             help: did you mean `data_dir`? prelude-bridge.example.toml explains every key\n\
             error: {name}:3: `drain_timeout`: the value is a number, not a string\n  \
             help: write a number with its unit, such as \"500ms\", \"15s\", \"10m\", \"2h\" or \"30d\"\n"
        )
    );
}

#[test]
fn serve_without_an_app_says_how_to_set_one() {
    let output = run(&["serve"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.starts_with("error: no app is configured"), "{text}");
    for way in [
        "PRELUDE_BRIDGE_APP_ID",
        "PRELUDE_BRIDGE_VERIFICATION_TOKEN",
        "[[apps]]",
        "--config",
    ] {
        assert!(text.contains(way), "{text}");
    }
}

#[test]
fn serve_refuses_a_store_of_another_version() {
    let output = run(&["serve", "--store", "nats://me:hunter2@nats:4222"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("flag --store: `store`: a NATS server as the store is not in this version"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn show_prints_each_value_with_its_origin() {
    let (_directory, path) = file(&format!("grpc_listen = \"127.0.0.1:2\"\n{GOOD}"));
    let name = path.to_str().unwrap();
    let output = program(&["config", "show", "--log-level", "debug"])
        .env("PRELUDE_BRIDGE_CONFIG", name)
        .env("PRELUDE_BRIDGE_WEBHOOK_LISTEN", "127.0.0.1:1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let line = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start));
        line.unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        line("webhook_listen"),
        "webhook_listen = \"127.0.0.1:1\" # environment PRELUDE_BRIDGE_WEBHOOK_LISTEN"
    );
    assert_eq!(
        line("grpc_listen"),
        format!("grpc_listen = \"127.0.0.1:2\" # {name}:1")
    );
    assert_eq!(
        line("log_level"),
        "log_level = \"debug\" # flag --log-level"
    );
    assert_eq!(line("store"), "store = \"embedded\" # default");
    assert_eq!(line("id ="), format!("id = \"54e9ujn\" # {name}:2"));
    assert!(!text.contains(TOKEN), "{text}");
}

#[test]
fn a_flag_wins_over_its_variable() {
    let output = program(&["config", "show", "--output", "json", "--store", "memory"])
        .env("PRELUDE_BRIDGE_STORE", "embedded")
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let settings = shown
        .get("settings")
        .and_then(|all| all.as_array())
        .unwrap();
    let expected = serde_json::json!({"key": "store", "value": "memory", "origin": "flag --store"});
    assert!(settings.contains(&expected), "{shown:#}");
}

#[test]
fn what_show_prints_is_a_file_that_check_finds_good() {
    let (directory, path) = file(GOOD);
    let shown = run(&["config", "show", "--config", path.to_str().unwrap()]);
    let copy = directory.path().join("copy.toml");
    fs::write(&copy, shown.stdout).unwrap();
    let checked = run(&["config", "check", copy.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    assert_eq!(
        stdout(&checked),
        format!("{} is good; apps: 54e9ujn\n", copy.display())
    );
}

#[test]
fn show_needs_no_app_and_never_prints_a_token() {
    let output = run(&["config", "show"]);
    assert_eq!(output.status.code(), Some(0));
    for form in ["toml", "json"] {
        let output = program(&["config", "show", "--output", form])
            .env("PRELUDE_BRIDGE_APP_ID", "54e9ujn")
            .env("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN)
            .output()
            .unwrap();
        let text = stdout(&output);
        assert!(
            text.contains("54e9ujn") && text.contains("PRELUDE_BRIDGE_VERIFICATION_TOKEN"),
            "{text}"
        );
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[test]
fn check_judges_the_file_even_where_a_variable_would_win() {
    let (_directory, path) = file(&format!("drain_timeout = \"soon\"\n{GOOD}"));
    let output = program(&["config", "check", path.to_str().unwrap()])
        .env("PRELUDE_BRIDGE_DRAIN_TIMEOUT", "1s")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("bridge.toml:1: `drain_timeout`"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn check_refuses_what_is_not_toml_without_showing_it() {
    let (_directory, path) = file("verification_token = hunter2\n");
    let output = run(&["config", "check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("bridge.toml:1: not valid TOML") && !text.contains("hunter2"),
        "{text}"
    );
}

#[test]
fn check_refuses_a_file_without_an_app() {
    let (_directory, path) = file("store = \"memory\"\n");
    let output = run(&["config", "check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("no app is configured"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_misspelt_variable_is_warned_of() {
    let mut command = program(&["config", "show"]);
    let output = command
        .env("PRELUDE_BRIDGE_DATADIR", "/x")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        stderr(&output),
        "warning: the variable `PRELUDE_BRIDGE_DATADIR` is not known; did you mean `PRELUDE_BRIDGE_DATA_DIR`?\n"
    );
}
