//! Log lines on stderr: text for people, JSON for log collectors. Owns their format and their level;
//! knows nothing of what is logged.

use std::{fmt, io};

use tracing::{Subscriber, field::Field, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer as _,
    field::MakeExt as _,
    filter::Targets,
    fmt::{MakeWriter, format},
    layer::SubscriberExt as _,
};

use crate::plain::{self, steers};

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
    /// Something failed, and a person has to act.
    Error,
    /// Something is wrong, and the program continues.
    Warn,
    /// What an operator needs to reconstruct what happened.
    #[default]
    Info,
    /// Details for developers.
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

/// This process has set up its log already.
#[derive(Debug, thiserror::Error)]
#[error("logging is already set up in this process")]
pub struct AlreadySetUp;

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
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
    // Boxed, because each format is a subscriber of another type.
    set(subscriber(options, colours, io::stderr)).map_err(|_| AlreadySetUp)
}

fn subscriber<W>(options: Options, colours: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // h2 warns of each frame that a peer should not have sent, so a peer could fill the log. The bridge
    // logs the consequence once for each connection.
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("h2", LevelFilter::ERROR)
        .with_target("prelude_bridge", options.level.filter());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        // A closed stderr must not stop the program; the default is to panic.
        .log_internal_errors(false);
    let lines = match options.format {
        Format::Text => lines
            .with_ansi(colours)
            .with_target(false)
            .fmt_fields(format::debug_fn(write_field).delimited(" "))
            .with_filter(filter)
            .boxed(),
        Format::Json => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .map_writer(EscapeJson)
            .with_filter(filter)
            .boxed(),
    };
    Box::new(tracing_subscriber::registry().with(lines))
}

/// Writes one field of a text line. Control characters and line ends are escaped, so that text of a
/// client can neither control the terminal nor forge a line.
fn write_field(
    writer: &mut format::Writer<'_>,
    field: &Field,
    value: &dyn fmt::Debug,
) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    writer.write_str(&plain::escaped(&format!("{value:?}")))
}

/// Makes writers that escape control characters in lines of JSON. JSON itself requires that only below
/// U+0020.
struct EscapeJson<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for EscapeJson<W> {
    type Writer = EscapingWriter<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        EscapingWriter(self.0.make_writer())
    }
}

struct EscapingWriter<W>(W);

impl<W: io::Write> io::Write for EscapingWriter<W> {
    /// Gets whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let is_escaped = |character: char| steers(character) && character != '\n';
        match str::from_utf8(line) {
            Ok(text) if text.contains(is_escaped) => {
                let mut escaped = String::with_capacity(2 * text.len());
                for character in text.chars() {
                    if is_escaped(character) {
                        // None of them is above U+FFFF. Writing to a string cannot fail.
                        let _ = fmt::Write::write_fmt(
                            &mut escaped,
                            format_args!("\\u{:04x}", u32::from(character)),
                        );
                    } else {
                        escaped.push(character);
                    }
                }
                self.0.write_all(escaped.as_bytes())?;
            }
            Ok(_) | Err(_) => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::with_default;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, level: Level, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let options = Options { format, level };
        with_default(subscriber(options, false, move || writer.clone()), log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_lines_have_their_fields_at_the_top_level() {
        let line = logged(Format::Json, Level::Info, || {
            tracing::info!(webhook = %"127.0.0.1:8080", count = 3, "ready");
        });
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object.get("message").unwrap(), "ready");
        assert_eq!(object.get("webhook").unwrap(), "127.0.0.1:8080");
        assert_eq!(object.get("count").unwrap(), 3);
        assert_eq!(object.get("level").unwrap(), "INFO");
    }

    #[test]
    fn text_lines_have_their_fields_after_the_message() {
        let line = logged(Format::Text, Level::Info, || {
            tracing::info!(webhook = %"127.0.0.1:8080", app = "one", "ready");
        });
        assert!(
            line.ends_with(" INFO ready webhook=127.0.0.1:8080 app=\"one\"\n"),
            "{line}"
        );
    }

    #[test]
    fn what_a_client_sent_cannot_steer_the_terminal_or_forge_a_line() {
        for format in [Format::Text, Format::Json] {
            let line = logged(format, Level::Info, || {
                let sent =
                    "a\u{1b}[2J\r\n2026 INFO forged\u{7}\u{9b}31m\u{202e}\u{2066}\u{2028}\u{7f}";
                tracing::info!(path = %sent, other = sent, "refused: {sent}");
            });
            let (content, end) = line.split_at(line.len() - 1);
            assert_eq!(end, "\n");
            assert!(!content.contains(steers), "{content:?}");
            let parsed = serde_json::from_str::<serde_json::Value>(content);
            assert_eq!(parsed.is_ok(), format == Format::Json);
        }
    }

    #[test]
    fn lines_below_the_level_are_left_out() {
        let log = || {
            tracing::debug!("small");
            tracing::warn!("large");
        };
        assert!(!logged(Format::Text, Level::Info, log).contains("small"));
        assert!(logged(Format::Text, Level::Debug, log).contains("small"));
        assert!(!logged(Format::Text, Level::Error, log).contains("large"));
    }

    #[test]
    fn dependencies_are_not_heard_below_warnings() {
        let lines = logged(Format::Text, Level::Trace, || {
            tracing::info!(target: "hyper::proto", "a body with a payload");
            tracing::warn!(target: "hyper::proto", "a defect");
            tracing::warn!(target: "h2::proto", "one of a million frames");
        });
        assert!(
            !lines.contains("payload") && !lines.contains("frames") && lines.contains("defect"),
            "{lines}"
        );
    }
}
