//! How a command ends: its exit code, its last words on stderr, and what a closed stdout means.
//! Knows nothing of any one command.

use std::{
    fmt,
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};

use crate::{config, plain};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HELP: Style = AnsiColor::Cyan.on_default().bold();

/// The exit codes that scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All was done.
    Done = 0,
    /// Something failed on the way.
    Failed = 1,
    /// The command line or the configuration cannot be meant.
    Usage = 2,
    /// The server cannot be reached.
    Unreachable = 3,
    /// The server refused the credential.
    Refused = 4,
    /// Retention has passed the cursor.
    CursorExpired = 5,
}

/// Why a command did not end well, in words for the person at the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    faults: Vec<(String, Vec<String>)>,
}

impl Failure {
    /// A failure with its cause, written as `error: …`.
    pub fn new(exit: Exit, cause: impl fmt::Display) -> Self {
        Self {
            exit,
            faults: vec![(cause.to_string(), Vec::new())],
        }
    }

    /// Adds what to do about it, written as `help: …` below the cause.
    #[must_use]
    pub fn help(mut self, remedy: impl fmt::Display) -> Self {
        if let Some((_, remedies)) = self.faults.last_mut() {
            remedies.push(remedy.to_string());
        }
        self
    }

    /// Writes the failure to stderr. A stderr that is gone changes nothing.
    pub fn report(&self) {
        let _ = self.write(&mut anstream::stderr().lock());
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (cause, remedies) in &self.faults {
            writeln!(out, "{ERROR}error:{ERROR:#} {}", one_line(cause))?;
            for remedy in remedies {
                writeln!(out, "  {HELP}help:{HELP:#} {}", one_line(remedy))?;
            }
        }
        out.flush()
    }
}

/// Writes what clap has to say: help and version, which are such errors too, or what is wrong with the
/// command line. That repeats what was typed, which may have been pasted in the wrong place.
pub fn report_usage(error: &clap::Error) {
    let text = error.render().to_string();
    let shown: Vec<String> = text
        .split('\n')
        .map(|line| plain::escaped(&usage_line(line)).into_owned())
        .collect();
    let shown = shown.join("\n");
    // A closed pipe loses nothing.
    let _ = if !error.use_stderr() || shown == text {
        error.print()
    } else {
        anstream::stderr().lock().write_all(shown.as_bytes())
    };
}

/// A line of clap's: with what was typed, as whoever reads it typed it, but without what was pasted
/// in the wrong place. The range that a number is not in is ours, and the last thing on its line.
fn usage_line(line: &str) -> String {
    const NOT_IN: &str = " is not in ";
    let is_range = |text: &str| {
        text.chars()
            .all(|character| character.is_ascii_digit() || matches!(character, '.' | '='))
    };
    match line.rsplit_once(NOT_IN) {
        Some((before, range)) if is_range(range) => {
            format!("{}{NOT_IN}{range}", typed_words(before))
        }
        _ => typed_words(line),
    }
}

fn typed_words(line: &str) -> String {
    // Numbers are written in groups, so groups are judged together.
    let is_group = |word: &str| !word.is_empty() && word.chars().all(is_of_number);
    let mut groups: Vec<String> = Vec::new();
    let mut was_group = false;
    for word in line.split(' ') {
        let is_group = is_group(word);
        match groups.last_mut() {
            Some(group) if is_group && was_group => *group = format!("{group} {word}"),
            _ => groups.push(word.to_owned()),
        }
        was_group = is_group;
    }
    for group in &mut groups {
        if is_pasted(group) {
            plain::WITHHELD.clone_into(group);
        }
    }
    groups.join(" ")
}

/// Whether something is an address, a number that can be called, or a secret, and so no word, time,
/// number or name that belongs on a command line.
fn is_pasted(text: &str) -> bool {
    /// A JWT begins with `{"`, in base64.
    const SECRETS: [&str; 2] = ["pb_", "eyJ"];
    /// Longer than cursors, which are no secrets.
    const MIXED_CHARS_MAX: usize = 32;
    let is_key = |stretch: &str| {
        let has = |kind: fn(&char) -> bool| stretch.chars().any(|character| kind(&character));
        stretch.len() > MIXED_CHARS_MAX
            && has(char::is_ascii_lowercase)
            && has(char::is_ascii_uppercase)
            && has(char::is_ascii_digit)
    };
    text.contains('@')
        || text.contains("%40")
        || SECRETS.iter().any(|secret| text.contains(secret))
        || text.split(|c: char| !is_of_number(c)).any(can_be_called)
        || text.split(|c: char| !c.is_ascii_alphanumeric()).any(is_key)
}

fn is_of_number(character: char) -> bool {
    character.is_ascii_digit() || matches!(character, ' ' | '.' | '-' | '/' | '(' | ')' | '+')
}

/// By its digits: a time has eight before its `T`, and an offset has two after its `+`.
fn can_be_called(number: &str) -> bool {
    let digits = number.chars().filter(char::is_ascii_digit).count();
    let is_address = || {
        let trimmed = number.trim_matches(|c: char| !c.is_ascii_digit());
        trimmed.parse::<IpAddr>().is_ok()
    };
    digits >= 10 && !is_address() || digits >= 5 && number.contains('+')
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        let faults = error.faults.into_iter();
        Self {
            exit: Exit::Usage,
            faults: faults
                .map(|fault| (fault.to_string(), vec![fault.help]))
                .collect(),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Writes data to stdout, in colour where the terminal wants it.
///
/// # Errors
/// Stdout cannot be written to, except that it was closed: see [`finish_stdout`].
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    finish_stdout(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Turns the outcome of writing to stdout into the outcome of the command. A reader that closed
/// the pipe (`| head -1`) has what it wanted, so that is success.
///
/// # Errors
/// Any other failure to write, such as a full disk.
pub fn finish_stdout(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let cause = format!("stdout cannot be written to: {error}");
            Err(Failure::new(Exit::Failed, cause).help("check where it is redirected to"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes something odd to stderr that does not stop the command.
pub fn warn(text: &str) {
    let mut out = anstream::stderr().lock();
    let _ = writeln!(out, "{WARNING}warning:{WARNING:#} {}", one_line(text));
}

/// Writes something to stderr that is good to know.
pub fn note(text: &str) {
    let mut out = anstream::stderr().lock();
    let _ = writeln!(out, "{HELP}note:{HELP:#} {}", one_line(text));
}

/// Text from elsewhere must not steer the terminal, so control characters are written as escapes.
pub(super) fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(plain::escaped).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_said_and_what_was_pasted_is_not() {
        let line = |value: &str, fault: &str| {
            usage_line(&format!(
                "error: invalid value '{value}' for '--count': {fault}"
            ))
        };
        let told = line("0", "0 is not in 1..18446744073709551615");
        assert!(told.ends_with(": 0 is not in 1..18446744073709551615"));
        let told = line("4915112345678", "4915112345678 is not in 1..=200000");
        assert!(!told.contains("4915112345678") && told.ends_with("is not in 1..=200000"));
        let told = line("x is not in 4915112345678", "invalid digit found in string");
        assert!(!told.contains("4915112345678"));
    }

    #[test]
    fn what_was_typed_is_shown_and_what_was_pasted_is_not() {
        for typed in [
            "write one such as 2026-11-20T08:30:00Z",
            "'2026-11-20T08:30' and '2026-11-20 08:30:00' and 2026-11-20T09:30:00+01:00",
            "invalid value '20261120' for '--since <TIME>'",
            "invalid value '1234567x' for '--count <N>'",
            "'user-service-7d9f8c6b5d-x2x4z' and 'http://192.168.100.200:50051'",
            "'b1946ac92492d2347c6235b4d2611184'",
            "  [possible values: human, json, raw]",
            "",
        ] {
            assert_eq!(usage_line(typed), typed);
        }
        for pasted in [
            "+12025550142",
            "'+12025550142'",
            "12025550142",
            "+1 202 555 0142",
            "(202) 555-0142 17",
            "person@example.com",
            "https://example.com/?who=person%40example.com",
            "pb_wJ8Zk2yqQf3bT0vNn1xR7LhUeC4aSdGmPiOkYtXrE01",
            "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln",
            "wJ8Zk2yqQf3bT0vNn1xR7LhUeC4aSdGmPiOkYtXrE01",
        ] {
            let line = format!("error: invalid value {pasted} for --since");
            let expected = "error: invalid value (withheld) for --since";
            assert_eq!(usage_line(&line), expected);
        }
    }

    #[test]
    fn a_failure_is_written_with_its_remedies_below_it() {
        let failure = Failure::new(Exit::Failed, "it broke\u{1b}[2J\u{202e}")
            .help("mend it")
            .help("or not");
        let mut out = anstream::StripStream::new(Vec::new());
        assert!(failure.write(&mut out).is_ok());
        let text = String::from_utf8(out.into_inner()).unwrap_or_default();
        assert_eq!(
            text,
            "error: it broke\\u{1b}[2J\\u{202e}\n  help: mend it\n  help: or not\n"
        );
    }

    #[test]
    fn a_closed_stdout_is_success_and_a_full_disk_is_not() {
        let closed = finish_stdout(Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(closed, Ok(()));
        let full = finish_stdout(Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(full.map_err(|failure| failure.exit), Err(Exit::Failed));
    }
}
