//! Owns writing: a thread prints lines in order and records what it has written.
//!
//! A write to stdout can block for as long as its reader does not read. In a thread of its own it blocks
//! neither signals nor the connection, and a program that ends does not wait for it.

use std::{
    io::{self, BufWriter, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};

use crate::cli::exit::{self, Exit, Failure};

/// How many lines may wait. With more, lines would only be printed later.
const LINES_MAX: usize = 64;
const BUFFER_BYTES: usize = 64 * 1024;

/// One thing to print.
#[derive(Debug)]
pub(super) enum Line {
    /// An event, to stdout.
    Event {
        /// With its newline.
        text: Vec<u8>,
        /// The cursor after it.
        cursor: String,
    },
    /// A notice, to stderr if it says anything.
    Notice {
        text: Option<Remark>,
        /// The cursor after it.
        cursor: Option<String>,
    },
}

/// A line for stderr.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remark {
    /// Information.
    Plain(String),
    /// A warning; the command continues.
    Warning(String),
}

/// What has been written to stdout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// The cursor after everything that was written and flushed.
    pub(super) cursor: Option<String>,
    /// How many events that was.
    pub(super) events: u64,
}

/// The thread's handle.
pub(super) struct Printer {
    lines: mpsc::Sender<Line>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Printer {
    /// Starts to print to `out`.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        written: Arc<Mutex<Written>>,
    ) -> Result<Self, Failure> {
        let (lines, receiver) = mpsc::channel(LINES_MAX);
        let (sender, done) = oneshot::channel();
        let work = move || {
            // The receiver is gone if the program ends at once.
            let _ = sender.send(print_all(receiver, out, &written));
        };
        match thread::Builder::new().name("printer".into()).spawn(work) {
            Ok(_) => Ok(Self { lines, done }),
            Err(error) => {
                let cause = format!("a thread cannot be started: {error}");
                Err(Failure::new(Exit::Failed, cause))
            }
        }
    }

    /// Hands over a line; `false` when nothing can be written any more.
    pub(super) async fn print(&self, line: Line) -> bool {
        self.lines.send(line).await.is_ok()
    }

    /// Waits until nothing can be written any more.
    pub(super) async fn closed(&self) {
        self.lines.closed().await;
    }

    /// Waits until everything is written.
    pub(super) async fn finish(self) -> io::Result<()> {
        drop(self.lines);
        let ended_early = |_| Err(io::Error::other("the printing thread ended early"));
        self.done.await.unwrap_or_else(ended_early)
    }
}

/// Locks it, also after a thread that held the lock panicked: the value is always replaced whole.
pub(super) fn locked(written: &Mutex<Written>) -> MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Flushes whenever nothing waits: a line never stays in the buffer, and many together cost one
/// write.
fn print_all(
    mut lines: mpsc::Receiver<Line>,
    out: impl Write,
    written: &Mutex<Written>,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    let mut reached = Written::default();
    loop {
        let line = match lines.try_recv() {
            Ok(line) => Some(line),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                out.flush()?;
                locked(written).clone_from(&reached);
                lines.blocking_recv()
            }
        };
        match line {
            None => return Ok(()),
            Some(Line::Event { text, cursor }) => {
                out.write_all(&text)?;
                reached.cursor = Some(cursor);
                reached.events += 1;
            }
            Some(Line::Notice { text, cursor }) => {
                if let Some(remark) = text {
                    // In its order among the events.
                    out.flush()?;
                    remark.write();
                }
                reached.cursor = cursor.or(reached.cursor);
            }
        }
    }
}

impl Remark {
    fn write(&self) {
        match self {
            Self::Plain(text) => exit::note(text),
            Self::Warning(text) => exit::warn(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written to by the thread, read by the test.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    /// Takes bytes only when the test says so.
    struct Stuck(std::sync::mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn event(sequence: u64) -> Line {
        Line::Event {
            text: format!("{sequence}\n").into_bytes(),
            cursor: format!("cursor-{sequence}"),
        }
    }

    #[tokio::test]
    async fn lines_are_written_in_order_and_the_place_follows() {
        let (out, written) = (Shared::default(), Arc::default());
        let printer = Printer::start(out.clone(), Arc::clone(&written)).unwrap();
        for sequence in 1..=200 {
            assert!(printer.print(event(sequence)).await);
        }
        let progress = Line::Notice {
            text: None,
            cursor: Some("cursor-250".into()),
        };
        assert!(printer.print(progress).await);
        printer.finish().await.unwrap();
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let expected: Vec<String> = (1..=200).map(|sequence| sequence.to_string()).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        let reached = Written {
            cursor: Some("cursor-250".into()),
            events: 200,
        };
        assert_eq!(*locked(&written), reached);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_noticed_without_another_line() {
        let kind = io::ErrorKind::BrokenPipe;
        let printer = Printer::start(Broken(kind), Arc::default()).unwrap();
        printer.print(event(1)).await;
        printer.closed().await;
        assert!(!printer.print(event(2)).await);
        assert_eq!(printer.finish().await.unwrap_err().kind(), kind);
    }

    #[tokio::test]
    async fn what_is_stuck_does_not_count_as_written() {
        let (release, wait) = std::sync::mpsc::channel();
        let written = Arc::default();
        let printer = Printer::start(Stuck(wait), Arc::clone(&written)).unwrap();
        for sequence in 1..=3 {
            assert!(printer.print(event(sequence)).await);
        }
        assert_eq!(locked(&written).cursor, None);
        for _ in 0..3 {
            release.send(()).unwrap();
        }
        printer.finish().await.unwrap();
        assert_eq!(locked(&written).cursor.as_deref(), Some("cursor-3"));
    }
}
