//! How a command ends: its exit code, its last lines on stderr, and what a closed stdout means.
//! Knows nothing of any one command.

use std::{
    fmt,
    io::{self, Write},
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
    /// The command is done.
    Done = 0,
    /// Something failed.
    Failed = 1,
    /// The command line or the configuration is invalid.
    Usage = 2,
    /// The server cannot be reached.
    Unreachable = 3,
    /// The server refused the credential.
    Refused = 4,
    /// Retention has passed the cursor.
    CursorExpired = 5,
}

/// Why a command failed, in words for the person at the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code of the process.
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

    /// The same with another exit code.
    #[must_use]
    pub fn of(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Adds another failure, which is written below this one. The exit code stays.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.faults.extend(other.faults);
        self
    }

    /// Writes the failure to stderr. A closed stderr changes nothing.
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

/// Writes the output of clap: help and version, which clap returns as errors too, or what is wrong with
/// the command line. That repeats what was typed, with secrets masked.
pub fn report_usage(error: &clap::Error) {
    let text = error.render().to_string();
    let shown: Vec<String> = text.split('\n').map(plain::configured).collect();
    let shown = shown.join("\n");
    // A closed pipe loses nothing.
    let _ = if !error.use_stderr() || shown == text {
        error.print()
    } else {
        anstream::stderr().lock().write_all(shown.as_bytes())
    };
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
/// the pipe (`| head -1`) needs no more, so that is success.
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

/// Writes a warning to stderr.
pub fn warn(text: &str) {
    let mut out = anstream::stderr().lock();
    let _ = writeln!(out, "{WARNING}warning:{WARNING:#} {}", one_line(text));
}

/// Writes a note to stderr.
pub fn note(text: &str) {
    let mut out = anstream::stderr().lock();
    let _ = writeln!(out, "{HELP}note:{HELP:#} {}", one_line(text));
}

/// Text from elsewhere must not control the terminal, so control characters are escaped.
pub(super) fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(plain::escaped).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

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
