//! Log lines on stderr: text for people, JSON for collectors. Owns their format and what is let
//! through; knows nothing of what is logged.

use std::{fmt, io};

use tracing::{Subscriber, field::Field};
use tracing_subscriber::{
    EnvFilter,
    fmt::{MakeWriter, format},
};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, fields at the top level beside `timestamp`, `level`, `target` and
    /// `message`.
    Json,
}

/// The least severe lines that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Something failed that needs a person.
    Error,
    /// Something is wrong that the program lives with.
    Warn,
    /// What an operator wants to read afterwards.
    #[default]
    Info,
    /// What a developer wants to read.
    Debug,
    /// Everything.
    Trace,
}

/// What the program's log lines look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Text or JSON.
    pub format: Format,
    /// Of our own lines: dependencies are heard from `warn` on, because below that they print
    /// what passes through them, and payloads are not to be logged.
    pub level: Level,
}

/// The log was set up before, or by somebody else in the process.
#[derive(Debug, thiserror::Error)]
#[error("logging is already set up in this process")]
pub struct AlreadySetUp;

impl Format {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// The name as it is written in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl Level {
    /// Every level, the most severe first.
    pub const ALL: [Self; 5] = [
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    /// The name as it is written in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Sends the log lines of this process to stderr.
///
/// # Errors
/// The process has a log already.
pub fn start(options: Options) -> Result<(), AlreadySetUp> {
    let colours = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let set = tracing::subscriber::set_global_default;
    // Boxed, as each format is a subscriber of a type of its own.
    set(subscriber(options, colours, io::stderr)).map_err(|_| AlreadySetUp)
}

fn subscriber<W>(options: Options, colours: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::new(format!("warn,prelude_bridge={}", options.level.name()));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // A stderr that is gone must not stop the program: its default is to panic there.
        .log_internal_errors(false);
    match options.format {
        Format::Text => Box::new(
            builder
                .with_ansi(colours)
                .with_target(false)
                .fmt_fields(format::debug_fn(write_field))
                .finish(),
        ),
        Format::Json => Box::new(
            builder
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .finish(),
        ),
    }
}

/// One field in a line of text. Control characters are escaped, line ends too: what a client sent
/// must neither steer the terminal nor forge a line.
fn write_field(
    writer: &mut format::Writer<'_>,
    field: &Field,
    value: &dyn fmt::Debug,
) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    for character in format!("{value:?}").chars() {
        if character.is_control() {
            write!(writer, "{}", character.escape_default())?;
        } else {
            writer.write_char(character)?;
        }
    }
    Ok(())
}
