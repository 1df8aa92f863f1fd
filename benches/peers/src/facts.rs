//! Owns what has to be known about a machine and the versions of what runs on it, so that figures
//! can be judged. No paths, no names of hosts.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use prelude_bridge_peers::system::Programs;

pub(super) fn machine() -> BTreeMap<String, String> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let memory = memory.map(|value| value.trim().to_owned());
    let memory = memory.unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let facts = [
        ("CPU", prelude_bridge_load::cpu_model()),
        ("cores", cores.to_string()),
        (
            "date",
            jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        ),
        ("kernel", prelude_bridge_load::kernel_release()),
        ("memory", memory),
    ];
    facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

pub(super) fn versions(programs: &Programs) -> BTreeMap<String, String> {
    let go = output(Command::new("go").args(["version", "-m"]).arg(&programs.go));
    let locked = include_str!("../Cargo.lock");
    let facts = [
        (
            "prelude-bridge",
            second_word(&output(Command::new(&programs.bridge).arg("--version"))),
        ),
        (
            "nats-server",
            last_word(&output(Command::new(&programs.nats).arg("--version"))),
        ),
        ("tonic", locked_version(locked, "tonic")),
        ("aws-lc-rs", locked_version(locked, "aws-lc-rs")),
        ("Go", last_word(go.lines().next().unwrap_or_default())),
        ("grpc-go", module_version(&go, "google.golang.org/grpc")),
        (
            "Node",
            output(Command::new("node").arg("--version"))
                .trim()
                .to_owned(),
        ),
        ("grpc-js", package_version(&programs.node, "@grpc/grpc-js")),
    ];
    facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn output(command: &mut Command) -> String {
    let output = command.output().ok();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

fn second_word(text: &str) -> String {
    let mut words = text.split_whitespace();
    words.nth(1).unwrap_or_default().to_owned()
}

fn last_word(text: &str) -> String {
    text.split_whitespace()
        .next_back()
        .unwrap_or_default()
        .to_owned()
}

/// The version of a package in a `Cargo.lock`.
fn locked_version(lock: &str, name: &str) -> String {
    let mut lines = lock.lines();
    let found = lines.any(|line| line == format!("name = \"{name}\""));
    let version = lines
        .next()
        .filter(|_| found)
        .and_then(|line| line.split('"').nth(1));
    version.unwrap_or_default().to_owned()
}

/// The version of a module that `go version -m` names.
fn module_version(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("dep") && words.next() == Some(name)).then(|| words.next())
    });
    line.flatten().unwrap_or_default().to_owned()
}

fn package_version(node: &Path, name: &str) -> String {
    let path = node.join("node_modules").join(name).join("package.json");
    let text = fs::read_to_string(path).unwrap_or_default();
    let package: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    package["version"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_locks_and_binaries() {
        let lock = "[[package]]\nname = \"tonic\"\nversion = \"0.14.9\"\n";
        assert_eq!(locked_version(lock, "tonic"), "0.14.9");
        assert_eq!(locked_version(lock, "none"), "");
        let modules = "receiver: go1.26.8\n\tdep\tgoogle.golang.org/grpc\tv1.85.0\th1:x=\n";
        assert_eq!(module_version(modules, "google.golang.org/grpc"), "v1.85.0");
    }
}
