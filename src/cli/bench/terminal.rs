//! Prints a run: progress on stderr, figures on stdout.

use std::{
    fmt::Display,
    io::{self, Write as _},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anstyle::{Effects, Style};
use prelude_bridge_load::{Error, Line, Observer, Table};

use super::Output;
use crate::cli::exit;

const DIM: Style = Style::new().effects(Effects::DIMMED);

/// Progress to stderr, figures to stdout.
pub(super) struct Terminal {
    output: Output,
    started: Instant,
    table: Mutex<Table>,
}

impl Terminal {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            started: Instant::now(),
            table: Mutex::default(),
        }
    }
}

impl Observer for Terminal {
    fn progress(&self, text: &str) {
        let seconds = self.started.elapsed().as_secs();
        // A closed stderr changes nothing.
        let _ = writeln!(anstream::stderr(), "{DIM}{seconds:>4} s  {text}{DIM:#}");
    }

    fn warn(&self, text: &str) {
        exit::warn(text);
    }

    fn line(&self, line: &Line) -> Result<(), Error> {
        let text = match self.output {
            Output::Human => self
                .table
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .line(line),
            Output::Json => {
                let json = serde_json::to_string(line);
                json.map_err(|error| output_error(&error))? + "\n"
            }
        };
        let mut out = anstream::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::Unread,
            _ => output_error(&error),
        })
    }
}

fn output_error(error: &dyn Display) -> Error {
    Error::Output(format!("stdout cannot be written to: {error}"))
}
