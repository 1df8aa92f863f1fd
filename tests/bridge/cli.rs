//! The command line from outside: help, exit codes, messages, completions, man pages.

use std::{
    fs,
    io::Read as _,
    process::{Command, Output, Stdio},
};

use tempfile::tempdir;

use crate::support::{KEY, jwks};

/// Names another build of the program to test, such as one with optimisations, for figures.
const PROGRAM_VARIABLE: &str = "PRELUDE_BRIDGE_TEST_PROGRAM";

/// Whether the tests run a program with optimisations.
pub(crate) fn is_optimised() -> bool {
    !cfg!(debug_assertions) || std::env::var_os(PROGRAM_VARIABLE).is_some()
}

/// The built program with an environment of its own: nothing of whoever runs the tests leaks in.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let built = env!("CARGO_BIN_EXE_prelude-bridge");
    let program = std::env::var_os(PROGRAM_VARIABLE);
    let mut command = Command::new(program.unwrap_or_else(|| built.into()));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const COMMANDS: [&str; 12] = [
    "serve",
    "tail",
    "trigger",
    "demo",
    "bench",
    "doctor",
    "webhook",
    "token",
    "config",
    "log",
    "completions",
    "man",
];

#[test]
fn help_is_data_and_names_every_command() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
    for command in COMMANDS {
        assert!(
            stdout(&output).contains(&format!("\n  {command} ")),
            "{command}"
        );
    }
    assert!(stdout(&output).contains("Exit codes:"));
}

#[test]
fn help_of_every_command_teaches_by_example() {
    for command in [
        &["serve"][..],
        &["tail"],
        &["demo"],
        &["trigger"],
        &["doctor"],
        &["bench"],
        &["bench", "fanout"],
        &["log", "check"],
        &["webhook", "setup"],
        &["webhook", "list"],
        &["token", "create"],
        &["token", "list"],
        &["token", "revoke"],
        &["config", "show"],
        &["config", "check"],
        &["completions"],
        &["man"],
    ] {
        for flag in ["-h", "--help"] {
            let output = run(&[command, &[flag]].concat());
            assert_eq!(output.status.code(), Some(0));
            let example = format!("    prelude-bridge {}", command.join(" "));
            let text = stdout(&output).replace("source <(", "");
            assert!(
                text.contains("Examples:") && text.contains(&example),
                "{command:?}: {text}"
            );
            assert!(
                text.lines().all(|line| line.chars().count() <= 100),
                "{command:?}: {text}"
            );
        }
    }
}

#[test]
fn the_version_is_data_and_names_what_was_built() {
    let short = format!("prelude-bridge {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&run(&["-V"])).trim_end(), short);
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    let (version, built) = text.trim_end().split_once(" (").unwrap();
    assert_eq!(version, short);
    let (source, target) = built.strip_suffix(')').unwrap().split_once(", ").unwrap();
    assert!(target.contains(std::env::consts::ARCH), "{text}");
    let (commit, date) = source.split_once(' ').unwrap();
    // Without a repository and without the variables of a package build neither is known.
    let is_commit = commit.len() == 12 && commit.chars().all(|c| c.is_ascii_hexdigit());
    assert!(is_commit || commit == "unknown", "{text}");
    let is_date = date.len() == 10 && date.split('-').count() == 3;
    assert!(is_date || date == "unknown", "{text}");
}

#[test]
fn a_command_line_that_cannot_be_meant_exits_with_2_and_says_why_on_stderr() {
    for (arguments, part) in [
        (&[][..], "Usage:"),
        (&["config"], "Usage:"),
        (&["sreve"], "similar subcommand exists: 'serve'"),
        (
            &["serve", "--data-dri", "x"],
            "similar argument exists: '--data-dir'",
        ),
        (
            &["serve", "--verification-token", "x"],
            "unexpected argument",
        ),
        (&["tail", "--since", "10"], "`10` has no unit"),
        (
            &["tail", "--since", "tomorrow"],
            "write a duration such as `10m` or `2d`",
        ),
        (&["tail", "--since", "tomorrow"], "'tomorrow'"),
        (&["tail", "--since", "20261120"], "`20261120` has no unit"),
        (&["demo", "--count", "1234567x"], "'1234567x'"),
        (
            &["tail", "--since", "10m", "--last", "5"],
            "cannot be used with",
        ),
        (
            &["tail", "--from", "x", "--last", "5"],
            "cannot be used with",
        ),
        (&["tail", "--count", "0"], "0 is not in 1.."),
        (
            &["tail", "--output", "xml"],
            "[possible values: human, json, raw]",
        ),
        (
            &["tail", "--server", "ftp://bridge"],
            "neither `https` nor `http`",
        ),
        (&["demo", "--rate", "0"], "0 is not in 1.."),
        (&["completions", "cobol"], "possible values: bash"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(
            stderr(&output).contains(part),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn completions_come_for_every_shell_and_know_the_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        for word in ["until-caught-up", "data-dir", "serve"] {
            assert!(stdout(&output).contains(word), "{shell} {word}");
        }
    }
}

#[test]
fn bash_understands_its_completions() {
    let script = run(&["completions", "bash"]).stdout;
    let directory = tempdir().unwrap();
    let path = directory.path().join("script");
    fs::write(&path, script).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{}", stderr(&checked));
}

/// What bash offers after these words, asked as it asks when somebody presses Tab at their end.
fn offered(words: &[&str]) -> Vec<String> {
    let script = r#"
        source "$SCRIPT"
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        completer=$(complete -p prelude-bridge | sed 's/.*-F \([^ ]*\) .*/\1/')
        "$completer" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let directory = tempdir().unwrap();
    let path = directory.path().join("script");
    fs::write(&path, run(&["completions", "bash"]).stdout).unwrap();
    let output = Command::new("bash")
        .args(["--norc", "-c", script, "bash", "prelude-bridge"])
        .args(words)
        .env("SCRIPT", &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    stdout(&output).lines().map(str::to_owned).collect()
}

#[test]
fn bash_offers_subcommands_flags_and_values_at_every_depth() {
    for (words, expected) in [
        (&[""][..], "serve"),
        (&["co"], "config"),
        (&["serve", "--"], "--webhook-listen"),
        (&["tail", "--until"], "--until-caught-up"),
        (&["config", ""], "check"),
        (&["config", "show", "--out"], "--output"),
        (&["config", "show", "--output", ""], "json"),
        (&["webhook", "a"], "add-event"),
        (&["webhook", "add-event", "--api-u"], "--api-url"),
        (&["bench", "fanout", "--"], "--help"),
        (&["serve", "--store", "memory", "--log-f"], "--log-format"),
    ] {
        let offered = offered(words);
        assert!(
            offered.iter().any(|word| word == expected),
            "{words:?}: {expected} is not in {offered:?}"
        );
    }
    assert!(!offered(&["serve", "--"]).contains(&"--server".to_owned()));
}

#[test]
fn verify_says_which_of_its_inputs_is_missing() {
    let directory = tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let body = file("body", "{}");
    let keys = file("jwks.json", &jwks(&KEY));
    let head = "POST /webhooks/54e9ujn HTTP/1.1\r\nHost: bridge\r\n";
    let unsigned = file(
        "unsigned",
        &format!("{head}Content-Type: application/json\r\n"),
    );
    let one_line = file("one-line", "Content-Type: application/json\n");
    let blank = file("blank", &format!("{head}x-webhook-signature: \r\n"));
    let empty = file("empty", "\n");
    let value = file("value", "rsassa-pss-sha256=AAAA\n");
    for (flags, cause, remedies) in [
        (
            &["--header-file", &unsigned, "--jwks", &keys][..],
            "unsigned has no header X-Webhook-Signature",
            &["was not signed by Prelude", "save all headers"][..],
        ),
        (
            &["--header-file", &one_line, "--jwks", &keys],
            "one-line has no header X-Webhook-Signature",
            &["save all headers"],
        ),
        (
            &["--header-file", &blank, "--jwks", &keys],
            "blank is empty",
            &["save all headers"],
        ),
        (
            &["--header-file", &empty, "--jwks", &keys],
            "empty is empty",
            &["save all headers"],
        ),
        (
            &["--header-file", &value],
            "<--jwks <FILE|URL>|--pem <FILE>>",
            &["required arguments were not provided"],
        ),
        (
            &["--pem", "key.pem"],
            "<--signature <TEXT>|--header-file <FILE>>",
            &["required arguments were not provided"],
        ),
    ] {
        let output = run(&[&["verify", "--body", &body], flags].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains(cause), "{flags:?}: {cause}: {said}");
        for remedy in remedies {
            assert!(said.contains(remedy), "{flags:?}: {remedy}: {said}");
        }
        assert!(!said.contains("does not begin with"), "{flags:?}: {said}");
    }
    // A value that is there and wrong is judged.
    let wrong = file("wrong", "sha256=00ff\n");
    let output = run(&[
        "verify",
        "--body",
        &body,
        "--header-file",
        &wrong,
        "--jwks",
        &keys,
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("is an HMAC"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn man_prints_a_page_with_the_examples() {
    let output = run(&["man"]);
    assert_eq!(output.status.code(), Some(0));
    let page = stdout(&output);
    assert!(
        page.contains(".TH prelude\\-bridge 1") || page.contains(".TH prelude-bridge 1"),
        "{page}"
    );
    assert!(
        page.contains("Examples:") && page.contains("Exit codes:"),
        "{page}"
    );
}

#[test]
fn man_writes_a_page_for_each_command_into_a_directory() {
    let directory = tempdir().unwrap();
    let pages = directory.path().join("share/man1");
    let output = run(&["man", "--dir", pages.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for command in COMMANDS.iter().chain(&["config-show", "config-check"]) {
        let page = pages.join(format!("prelude-bridge-{command}.1"));
        assert!(
            fs::read_to_string(&page).unwrap().contains(".TH"),
            "{}",
            page.display()
        );
    }
    assert!(pages.join("prelude-bridge.1").is_file());
}

#[test]
fn a_man_directory_that_cannot_be_written_to_exits_with_1() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let output = run(&["man", "--dir", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("error: ") && stderr(&output).contains("\n  help: "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_closed_stdout_is_success() {
    for arguments in [
        &["--help"][..],
        &["man"],
        &["config", "show"],
        &["completions", "zsh"],
    ] {
        // A pipe whose reader is gone before the program starts.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_stdout_is_a_failure() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = program(&["config", "show"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("error: stdout cannot be written to"));
}

#[test]
fn a_pipe_gets_no_colours_unless_they_are_asked_for_and_no_color_wins() {
    let has_colours = |name: &str, value: &str| {
        let mut command = program(&["config", "check", "no-such-file"]);
        let output = command.env(name, value).output().unwrap();
        stderr(&output).contains('\u{1b}')
    };
    assert!(!has_colours("TERM", "xterm"));
    assert!(has_colours("CLICOLOR_FORCE", "1"));
    let mut command = program(&["config", "check", "no-such-file"]);
    command.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
    assert!(!stderr(&command.output().unwrap()).contains('\u{1b}'));
}

#[test]
fn help_goes_to_a_reader_that_takes_its_time() {
    let mut child = program(&["man"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut page = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut page)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(page.ends_with('\n'));
}
