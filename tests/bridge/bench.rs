//! `bench` from outside, with the smallest sizes: what its JSON holds, that nothing is lost on the
//! way, and that no server is left behind. Its figures say nothing here.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cli::{program, stderr, stdout},
    support::SOON,
};

/// A bench in a temporary directory of its own, so that what it leaves behind shows.
fn bench(directory: &TempDir, arguments: &[&str]) -> Command {
    let mut command = program(&["bench"]);
    command
        .args(arguments)
        .args(["--pin", "off", "--output", "json", "--dir"])
        .arg(directory.path());
    command
}

/// Runs it and returns its lines, the first of which is about the machine.
fn lines(arguments: &[&str]) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let output = bench(&directory, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 0, "temporary directories are removed");
    let text = stdout(&output);
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let mut lines: Vec<Value> = lines.collect();
    let environment = lines.remove(0);
    assert_eq!(environment["bench"], "environment");
    assert_eq!(environment["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(environment["build"], "debug");
    assert!(environment["cpus"].as_u64().unwrap() > 0);
    assert!(
        stderr(&output).contains("debug build"),
        "it says that its figures mean nothing"
    );
    lines
}

/// The median of a figure, which lies between its ends.
fn figure(line: &Value, name: &str) -> f64 {
    let of = |part: &str| {
        line[name][part]
            .as_f64()
            .unwrap_or_else(|| unreachable!("{name}: {line}"))
    };
    let (min, median, max) = (of("min"), of("median"), of("max"));
    assert!(min <= median && median <= max, "{name}: {line}");
    median
}

#[test]
fn ingest_measures_acknowledged_batches() {
    let arguments = [
        "ingest",
        "--runs",
        "2",
        "--requests",
        "40",
        "--connections",
        "4",
    ];
    let lines = lines(&[&arguments[..], &["--batch", "1", "--batch", "10"]].concat());
    assert_eq!(lines.len(), 2);
    for (line, batch_events) in lines.iter().zip([1.0, 10.0]) {
        assert_eq!(line["bench"], "ingest");
        assert_eq!(line["store"], "embedded");
        assert_eq!(line["runs"], 2);
        assert_eq!(line["batch_events"].as_f64(), Some(batch_events));
        let ratio = figure(line, "events_per_second") / figure(line, "requests_per_second");
        assert!((ratio - batch_events).abs() < 0.1 * batch_events, "{line}");
        let quantiles = ["ack_p50_us", "ack_p99_us", "ack_p999_us"].map(|name| figure(line, name));
        assert!(quantiles.is_sorted() && quantiles[0] > 0.0, "{line}");
    }
}

#[test]
fn fanout_loses_nothing_and_counts_what_each_filter_matches() {
    let arguments = [
        "fanout",
        "--runs",
        "1",
        "--seconds",
        "0.3",
        "--events",
        "3000",
    ];
    let lines = lines(&[&arguments[..], &["--subscribers", "3", "--store", "memory"]].concat());
    // Nobody, and then three subscribers with each filter.
    assert_eq!(lines.len(), 4);
    let shares = [0.0, 1.0, 1.0 / 7.0, 1.0 / 1_000.0];
    for ((line, filter), share) in lines
        .iter()
        .zip(["all", "all", "1/7", "1/1000"])
        .zip(shares)
    {
        assert_eq!(line["bench"], "fanout");
        assert_eq!(line["filter"], filter);
        let seconds = figure(line, "seconds");
        let events = figure(line, "events_per_second") * seconds;
        let deliveries = figure(line, "deliveries_per_second") * seconds;
        assert!(events > 99.0, "{line}");
        // A few batches are no multiple of seven or a thousand: one more or less for each of three.
        assert!((deliveries - 3.0 * share * events).abs() < 3.1, "{line}");
        let subscribers = line["subscribers"].as_u64().unwrap();
        assert_eq!(
            subscribers > 0,
            line["bytes_per_delivery"].is_object(),
            "{line}"
        );
        if filter == "all" && subscribers > 0 {
            assert!(figure(line, "bytes_per_delivery") > 400.0, "{line}");
        }
    }
}

#[test]
fn latency_is_the_time_from_the_schedule_to_every_subscriber() {
    let arguments = ["latency", "--runs", "1", "--seconds", "0.5", "--rate", "50"];
    let lines = lines(&[&arguments[..], &["--subscribers", "2"]].concat());
    assert_eq!(lines.len(), 2);
    for (line, store) in lines.iter().zip(["memory", "embedded"]) {
        assert_eq!(line["bench"], "latency");
        assert_eq!(line["store"], store);
        let quantiles = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"];
        let quantiles = quantiles.map(|name| figure(line, name));
        assert!(quantiles.is_sorted() && quantiles[0] > 0.0, "{line}");
        assert!(figure(line, "ack_p50_us") > 0.0, "{line}");
    }
}

#[test]
fn catchup_reads_all_of_history_alone_and_meanwhile() {
    let arguments = [
        "catchup",
        "--runs",
        "1",
        "--events",
        "2050",
        "--seconds",
        "0.5",
    ];
    let lines = lines(&[&arguments[..], &["--rate", "50", "--subscribers", "2"]].concat());
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert_eq!(line["bench"], "catchup");
    for name in ["events_per_second", "events_per_second_while_live"] {
        assert!(figure(line, name) > 0.0, "{line}");
    }
    assert!(figure(line, "live_p99_us") > 0.0);
    assert!(figure(line, "live_p99_us_during_catchup") > 0.0);
}

#[test]
fn idle_connects_every_subscriber_and_wakes_them_all() {
    let lines = lines(&["idle", "--runs", "1", "--subscribers", "50"]);
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert_eq!(line["bench"], "idle");
    assert_eq!(line["subscribers"], 50);
    assert!(figure(line, "one_event_to_all_us") > 0.0, "{line}");
    assert!(figure(line, "connected_per_second") > 0.0, "{line}");
}

#[test]
fn a_report_for_people_is_a_table() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = program(&[
        "bench",
        "idle",
        "--runs",
        "1",
        "--subscribers",
        "2",
        "--dir",
    ]);
    let output = command.arg(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("\nidle\n"), "{text}");
    assert!(text.contains("subscribers"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours into a pipe");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_starts() {
    for arguments in [
        &["bench"][..],
        &["bench", "ingest", "--batch", "0"],
        &["bench", "fanout", "--subscribers", "1000000"],
        &["bench", "latency", "--rate", "many"],
        &["bench", "all", "--server-cpus", "1024"],
    ] {
        let output = program(arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

/// Sends a signal while a server runs, and expects that bench and server end soon.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_bench_leaves_no_server_and_no_directory_behind() {
    for signal in ["INT", "TERM"] {
        let directory = tempfile::tempdir().unwrap();
        let arguments = [
            "latency",
            "--seconds",
            "600",
            "--rate",
            "1",
            "--store",
            "memory",
        ];
        let mut child = bench(&directory, &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut progress = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("run 1 of") {
            line.clear();
            assert!(progress.read_line(&mut line).unwrap() > 0, "it ended early");
        }
        let began = Instant::now();
        let server = loop {
            if let Some(server) = child_of(child.id()) {
                break server;
            }
            assert!(began.elapsed() < SOON, "no server");
            std::thread::yield_now();
        };
        let id = child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(sent.unwrap().success());
        let mut rest = String::new();
        progress.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
        assert!(rest.contains("interrupted"), "{rest}");
        assert!(began.elapsed() < SOON);
        assert!(
            !fs::exists(format!("/proc/{server}")).unwrap(),
            "the server is gone"
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

/// The id of some child of a process.
#[cfg(target_os = "linux")]
fn child_of(parent: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.find(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        after_name.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    })
}
