//! Bytes of the log that are not those that were written: what subscribers, operators and `log check`
//! are told, how a subscriber goes on, and that a restored file makes everything good again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::{
    cli::{program, run, stderr, stdout},
    setup::output,
    support::{Bridge, item},
};

const EVENTS: u64 = 9;
const DAMAGED: u64 = 5;

/// A bridge whose log has one event in each commit.
async fn bridge() -> Bridge {
    let bridge = Bridge::start().await;
    for number in 1..=EVENTS {
        append(&bridge, number).await;
    }
    bridge
}

async fn append(bridge: &Bridge, number: u64) {
    let id = format!("evt_number_{number}");
    bridge.append(&[item(&id, "user.created", "usr_1")]).await;
}

/// A changed byte of a segment.
struct Damage {
    path: PathBuf,
    at: usize,
}

impl Damage {
    /// Changes a byte within an event.
    fn of_event(data_dir: &Path, number: u64) -> Self {
        let path = data_dir.join("events-00001");
        let id = format!("evt_number_{number}");
        let bytes = fs::read(&path).unwrap();
        let mut windows = bytes.windows(id.len());
        let at = windows.position(|bytes| bytes == id.as_bytes()).unwrap();
        let damage = Self { path, at };
        damage.flip();
        damage
    }

    /// Changes the byte, or changes it back.
    fn flip(&self) {
        let mut bytes = fs::read(&self.path).unwrap();
        bytes[self.at] ^= 0x01;
        fs::write(&self.path, bytes).unwrap();
    }
}

/// The sequence numbers of what `tail` prints from the oldest event to the newest, and how it ends.
async fn tail(bridge: &Bridge, flags: &[&str]) -> (Vec<u64>, Output) {
    let server = format!("http://{}", bridge.addresses.grpc);
    let mut command = program(&["tail", "--until-caught-up", "--output", "json"]);
    command.args(["--server", &server]).args(flags);
    let output = output(&mut command).await;
    let sequence = |line: &str| serde_json::from_str::<Value>(line).unwrap()["sequence"].as_u64();
    let sequences = stdout(&output).lines().filter_map(sequence).collect();
    (sequences, output)
}

fn check(data_dir: &Path, flags: &[&str]) -> Command {
    let mut command = program(&["log", "check", "--data-dir"]);
    command.arg(data_dir).args(flags);
    command
}

/// What `log check` finds, which is the same whether the bridge runs or not.
async fn assert_found(data_dir: &Path) {
    let human = output(&mut check(data_dir, &[])).await;
    let text = stdout(&human);
    assert_eq!(human.status.code(), Some(1), "{text}");
    assert_eq!(stderr(&human), "", "no bar in a pipe");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for part in ["events-00001, byte ", "event 5", "restore the file"] {
        assert!(lines[0].contains(part), "{part}: {text}");
    }
    assert!(lines[1].ends_with(": 1 fault"), "{text}");

    let json = output(&mut check(data_dir, &["--output", "json"])).await;
    assert_eq!(json.status.code(), Some(1));
    let report: Value = serde_json::from_str(&stdout(&json)).unwrap();
    assert_eq!(report["clean"], false);
    let fault = &report["faults"][0];
    assert_eq!(
        (&fault["first_sequence"], &fault["last_sequence"]),
        (&DAMAGED.into(), &DAMAGED.into())
    );
    assert_eq!(fault["remedy"], "restore");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_to_everybody_and_can_be_passed_and_restored() {
    let mut bridge = bridge().await;
    let data_dir = bridge.data_dir();
    let clean = output(&mut check(&data_dir, &[])).await;
    assert_eq!(clean.status.code(), Some(0), "{}", stdout(&clean));
    assert!(stdout(&clean).ends_with(": nothing is wrong\n"));
    bridge.terminate().await;
    let damage = Damage::of_event(&data_dir, DAMAGED);
    assert_found(&data_dir).await;
    bridge.restart().await;

    // A subscriber gets what is before the damage, and learns how to go on.
    let (sequences, failed) = tail(&bridge, &["--from", "earliest"]).await;
    let said = stderr(&failed);
    assert_eq!(sequences, [1, 2, 3, 4], "{said}");
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(
        said.contains("event 5") && said.contains("--on-damaged skip"),
        "{said}"
    );
    let cursor = said.split("--from ").nth(1).unwrap();
    let cursor = cursor.split_whitespace().next().unwrap();
    let (sequences, _) = tail(&bridge, &["--from", cursor]).await;
    assert_eq!(sequences, [6, 7, 8, 9]);
    let (sequences, skipped) = tail(&bridge, &["--from", "earliest", "--on-damaged", "skip"]).await;
    assert_eq!(sequences, [1, 2, 3, 4, 6, 7, 8, 9]);
    assert_eq!(skipped.status.code(), Some(0));
    assert!(stderr(&skipped).contains("event 5 is damaged"));
    let (sequences, last) = tail(&bridge, &["--last", "3"]).await;
    assert_eq!((sequences, last.status.code()), (vec![7, 8, 9], Some(0)));

    // The operator sees it, and the bridge works.
    let ready = bridge.admin("/readyz").await;
    assert_eq!(ready.status, 200);
    let page: Value = serde_json::from_str(&ready.text()).unwrap();
    let warning = page["checks"][0]["warning"].as_str().unwrap();
    assert!(warning.contains("event 5 is damaged"), "{warning}");
    for (metric, value) in [("ranges", 1.0), ("events", 1.0)] {
        let metric = format!("prelude_bridge_log_damaged_{metric}");
        bridge.counts(&metric, value).await;
    }
    let ended = r#"prelude_bridge_streams_ended_total{reason="LOG_DAMAGED"}"#;
    bridge.counts(ended, 1.0).await;
    append(&bridge, EVENTS + 1).await;
    assert_found(&data_dir).await;
    let doctor = output(bridge.command_of("doctor").args(["--output", "json"])).await;
    let report: Value = serde_json::from_str(&stdout(&doctor)).unwrap();
    let faults = report["checks"].as_array().unwrap().iter();
    let faults: Vec<&Value> = faults
        .filter(|check| check["name"] == "log" && check["verdict"] == "fault")
        .collect();
    assert_eq!(faults.len(), 1, "{report:#}");
    assert!(faults[0]["found"].as_str().unwrap().contains("event 5"));
    assert_eq!(doctor.status.code(), Some(1));

    bridge.terminate().await;
    damage.flip();
    let clean = output(&mut check(&data_dir, &[])).await;
    assert_eq!(clean.status.code(), Some(0), "{}", stdout(&clean));
    bridge.restart().await;
    let (sequences, _) = tail(&bridge, &["--from", "earliest"]).await;
    assert_eq!(sequences, Vec::from_iter(1..=EVENTS + 1));
    assert_eq!(
        bridge.metric("prelude_bridge_log_damaged_ranges").await,
        Some(0.0)
    );
    bridge.finish().await;
}

/// What a start makes good keeps nobody from starting.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_a_warning_before_the_start_that_mends_it() {
    let mut bridge = bridge().await;
    let data_dir = bridge.data_dir();
    let config = data_dir.with_file_name("bridge.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("data_dir = \"data\"\n{text}")).unwrap();
    bridge.terminate().await;
    let manifest = data_dir.join("manifest");
    let mut bytes = fs::read(&manifest).unwrap();
    bytes[20] ^= 0x01;
    fs::write(&manifest, bytes).unwrap();
    let checked = run(&["config", "check", config.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    assert!(
        stderr(&checked).contains("warning: the manifest"),
        "{}",
        stderr(&checked)
    );
    let found = output(&mut check(&data_dir, &[])).await;
    assert_eq!(found.status.code(), Some(1));
    assert!(
        stdout(&found).contains("which makes it anew"),
        "{}",
        stdout(&found)
    );
    bridge.restart().await;
    let clean = output(&mut check(&data_dir, &[])).await;
    assert_eq!(clean.status.code(), Some(0), "{}", stdout(&clean));
    bridge.finish().await;
}

#[test]
fn a_check_of_no_log_says_so() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().to_owned(), directory.path().join("none")] {
        let output = check(&path, &[]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("there is no log in"));
        assert_eq!(stdout(&output), "");
        // It made nothing.
        assert!(!path.join("lock").exists());
    }
    assert_eq!(
        run(&["log", "check", "--output", "xml"]).status.code(),
        Some(2)
    );
}
