//! `log`: what can be done with a log beside serving it. Owns how a check is shown, and `copy` how a copy
//! is; the log's own crate checks and copies.

mod bar;
mod copy;

use std::{path::PathBuf, time::Instant};

use anstyle::{AnsiColor, Style};
use clap::{Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use serde_json::json;

use self::{
    bar::{Bar, size, sizes},
    copy::Copy,
};
use super::{
    exit::{self, Exit, Failure},
    settings,
};
use crate::{
    config,
    log::{self, CheckFault, CheckReport, OpenError, Remedy},
};

/// `log`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check every byte of a log: checksums, sequence numbers, indexes
    ///
    /// Writes nothing. Works on the data directory of a bridge that runs, on one that does not, and on
    /// a backup. Prints a line for each fault: the file, the offset, the events that cannot be read
    /// because of it, and what to do.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
    /// Copy a log to another store: directory, NATS JetStream or PostgreSQL
    ///
    /// The copy continues the same log: subscribers go on with their cursors, and repetitions are recognised.
    /// Stop all bridges of both stores first. The target has to be empty, or to have the beginning of the same
    /// copy: a copy that was interrupted goes on. At the end the copy is read back and compared.
    #[command(after_help = copy::EXAMPLES)]
    Copy(Copy),
}

#[derive(Debug, clap::Args)]
struct Check {
    /// The bridge's configuration, which may name the data directory [env: PRELUDE_BRIDGE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The data directory, or a copy of one [env: PRELUDE_BRIDGE_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIRECTORY", value_parser = NonEmptyStringValueParser::new())]
    data_dir: Option<String>,

    /// How to print what was found
    #[arg(short = 'o', long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people
    Human,
    /// JSON
    Json,
}

const CHECK_EXAMPLES: &str = "\
Examples:
  The log of a bridge, which may be running:
    prelude-bridge log check --data-dir /var/lib/prelude-bridge
  A backup, before it is needed:
    prelude-bridge log check --data-dir /backup/prelude-bridge
  The files to restore, for a program:
    prelude-bridge log check --output json | jq -r '.faults[] | select(.remedy == \"restore\").file'

Exit codes: 0 everything is as it was written, 1 something is not, 2 there is no log.";

const FAULT: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default();

/// Runs the command: [`Exit::Done`] if nothing is wrong with the log, else [`Exit::Failed`].
///
/// # Errors
/// There is no log, its files cannot be read, or stdout cannot be written to.
pub fn run(args: Args) -> Result<Exit, Failure> {
    match args.command {
        Command::Check(check) => check.run(),
        Command::Copy(copy) => super::block_on(copy.run()),
    }
}

impl Check {
    fn run(self) -> Result<Exit, Failure> {
        let sources = settings::sources_of_files(self.config, self.data_dir);
        let data_dir = config::resolve(&sources)?.config.data_dir;
        let began = Instant::now();
        let mut bar = Bar::of_stderr(sizes);
        let checked = log::check(&data_dir, &mut |progress| {
            bar.show(progress.done_bytes, progress.total_bytes);
        });
        bar.clear();
        let report = checked.map_err(|error| failure(&error))?.ok_or_else(|| {
            let cause = format!("there is no log in {}", data_dir.display());
            Failure::new(Exit::Usage, cause).help("name a data directory with --data-dir")
        })?;
        let seconds = began.elapsed().as_secs_f64();
        exit::print(&match self.output {
            Output::Human => human(&report, seconds),
            Output::Json => json(&report, seconds),
        })?;
        Ok(if is_clean(&report) {
            Exit::Done
        } else {
            Exit::Failed
        })
    }
}

fn is_clean(report: &CheckReport) -> bool {
    report.faults.is_empty() && report.more_faults == 0
}

/// Why a log cannot be checked. The error says what to do.
fn failure(error: &OpenError) -> Failure {
    let exit = match error {
        OpenError::NotALog { .. }
        | OpenError::Older { .. }
        | OpenError::Newer { .. }
        | OpenError::NotAReplica { .. }
        | OpenError::Replica { .. } => Exit::Usage,
        OpenError::Directory { .. }
        | OpenError::InUse { .. }
        | OpenError::Damaged { .. }
        | OpenError::DamagedManifest { .. }
        | OpenError::Store { .. }
        | OpenError::Random(_)
        | OpenError::Thread(_) => Exit::Failed,
    };
    Failure::new(exit, error)
}

fn human(report: &CheckReport, seconds: f64) -> String {
    let mut text = String::new();
    for fault in &report.faults {
        text.push_str(&format!("{FAULT}FAULT{FAULT:#}  {}\n", line(fault)));
    }
    let range = match report.range.event_count() {
        0 => String::new(),
        1 => format!(" ({})", report.range.head),
        _ => format!(" ({} to {})", report.range.earliest, report.range.head),
    };
    let found = match report.faults.len() as u64 + report.more_faults {
        0 => format!("{GOOD}nothing is wrong{GOOD:#}"),
        1 => format!("{FAULT}1 fault{FAULT:#}"),
        count => match report.more_faults {
            0 => format!("{FAULT}{count} faults{FAULT:#}"),
            more => format!("{FAULT}{count} faults{FAULT:#}, of which {more} are not listed"),
        },
    };
    let segments = match report.segments {
        1 => "1 segment".to_owned(),
        count => format!("{count} segments"),
    };
    let events = match report.events {
        1 => "1 whole event".to_owned(),
        count => format!("{count} whole events"),
    };
    text.push_str(&format!(
        "checked {segments} with {events}{range}, {} in {seconds:.1} s: {found}\n",
        size(report.bytes),
    ));
    text
}

fn line(fault: &CheckFault) -> String {
    let mut place = fault.file.display().to_string();
    if let Some(offset) = fault.offset {
        place.push_str(&format!(", byte {offset}"));
    }
    // Some faults begin with their events.
    if let Some(events) = fault.events
        && !fault.what.starts_with(&events.to_string())
    {
        place.push_str(&format!(", {events}"));
    }
    exit::one_line(&format!(
        "{place}: {}; {}",
        fault.what,
        advice(fault.remedy)
    ))
}

/// What to do about a fault.
fn advice(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::Restore => {
            "restore the file from a backup, or these events are lost; all others are served"
        }
        Remedy::Rebuilt => "restart the bridge, which makes it anew from the rest of the log",
        Remedy::Cut => "start the bridge, which moves these bytes into quarantine/",
        Remedy::Harmless => "it harms nothing, but check the disk",
    }
}

fn json(report: &CheckReport, seconds: f64) -> String {
    let fault = |fault: &CheckFault| {
        json!({
            "file": fault.file.display().to_string(),
            "offset": fault.offset,
            "first_sequence": fault.events.map(|events| events.first.0),
            "last_sequence": fault.events.map(|events| events.last.0),
            "what": fault.what,
            "remedy": match fault.remedy {
                Remedy::Restore => "restore",
                Remedy::Rebuilt => "rebuilt",
                Remedy::Cut => "cut",
                Remedy::Harmless => "harmless",
            },
            "advice": advice(fault.remedy),
        })
    };
    let report = json!({
        "clean": is_clean(report),
        "log": format!("{:016x}", report.log.0),
        "segments": report.segments,
        "events": report.events,
        "earliest_sequence": report.range.earliest.0,
        "head_sequence": report.range.head.0,
        "bytes": report.bytes,
        "seconds": (seconds * 1_000.0).round() / 1_000.0,
        "faults": report.faults.iter().map(fault).collect::<Vec<_>>(),
        "more_faults": report.more_faults,
    });
    format!("{report}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{LogId, Sequence},
        log::{Damaged, Range},
    };

    fn report(faults: Vec<CheckFault>, more_faults: u64) -> CheckReport {
        CheckReport {
            log: LogId(0xab),
            range: Range {
                earliest: Sequence(3),
                head: Sequence(9),
                earliest_at: None,
                head_at: None,
            },
            segments: 2,
            bytes: 5 << 20,
            events: 6,
            faults,
            more_faults,
        }
    }

    fn fault(remedy: Remedy) -> CheckFault {
        CheckFault {
            file: "data/events-00001".into(),
            offset: Some(4096),
            events: Some(Damaged {
                first: Sequence(5),
                last: Sequence(5),
            }),
            what: "its checksum\nis wrong".to_owned(),
            remedy,
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_fault_is_one_line_with_what_to_do() {
        let remedies = [
            Remedy::Restore,
            Remedy::Rebuilt,
            Remedy::Cut,
            Remedy::Harmless,
        ];
        let text = plain(&human(&report(remedies.map(fault).into(), 0), 0.25));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(
            lines[0].starts_with(
                "FAULT  data/events-00001, byte 4096, event 5: its checksum; is wrong; restore"
            ),
            "{text}"
        );
        assert_eq!(
            lines[4],
            "checked 2 segments with 6 whole events (3 to 9), 5.0 MiB in 0.2 s: 4 faults"
        );
    }

    #[test]
    fn events_are_named_once_and_one_segment_is_one() {
        let fault = CheckFault {
            what: "event 5 is damaged: bytes 4096 to 5000".to_owned(),
            ..fault(Remedy::Restore)
        };
        let report = CheckReport {
            segments: 1,
            ..report(vec![fault], 0)
        };
        let text = plain(&human(&report, 1.0));
        let expected = "FAULT  data/events-00001, byte 4096: event 5 is damaged: bytes";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("\nchecked 1 segment with"), "{text}");
    }

    #[test]
    fn a_summary_says_what_is_not_listed_and_when_nothing_is_wrong() {
        let text = plain(&human(&report(vec![fault(Remedy::Restore)], 4), 1.0));
        assert!(
            text.ends_with(": 5 faults, of which 4 are not listed\n"),
            "{text}"
        );
        let clean = report(Vec::new(), 0);
        assert!(plain(&human(&clean, 1.0)).ends_with(": nothing is wrong\n"));
        assert!(is_clean(&clean) && !is_clean(&report(Vec::new(), 1)));
    }

    #[test]
    fn a_program_gets_the_same_as_one_object() {
        let text = json(&report(vec![fault(Remedy::Rebuilt)], 0), 0.5);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["clean"], &value["log"], &value["seconds"]),
            (&false.into(), &"00000000000000ab".into(), &0.5.into())
        );
        let fault = &value["faults"][0];
        assert_eq!(
            (&fault["offset"], &fault["first_sequence"], &fault["remedy"]),
            (&4096.into(), &5.into(), &"rebuilt".into())
        );
    }
}
