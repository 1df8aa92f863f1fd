//! `log copy`: finds out which two stores are meant, and shows how far the copy is.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::builder::NonEmptyStringValueParser;
use serde_json::json;

use super::{
    GOOD, Output,
    bar::{Bar, size},
    failure,
};
use crate::{
    cli::{
        exit::{self, Exit, Failure},
        settings,
    },
    config::{self, Store},
    log::embedded::copy::{self, CopyError, CopyPhase, CopyProgress, CopyReport},
    server::{self, Missing},
};

/// How often a program is told how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Copy {
    /// The store that has the log: a data directory, or the URL of NATS or PostgreSQL
    #[arg(long, value_name = "STORE", value_parser = NonEmptyStringValueParser::new())]
    from: Option<String>,

    /// The store that gets it: a directory, or the URL of NATS or PostgreSQL
    #[arg(long, value_name = "STORE", value_parser = NonEmptyStringValueParser::new())]
    to: Option<String>,

    /// The configuration of the bridge that has the log, with `[store]`: its login, TLS, stream or table
    #[arg(long, value_name = "FILE")]
    from_config: Option<PathBuf>,

    /// The configuration of the bridge that is to have it: also what a new stream needs of `[retention]`
    #[arg(long, value_name = "FILE")]
    to_config: Option<PathBuf>,

    /// How to print progress and the outcome
    #[arg(short = 'o', long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  From one machine to NATS, as the bridges will be configured:
    prelude-bridge log copy --from /var/lib/prelude-bridge --to-config bridge.toml
  Back from PostgreSQL to files:
    PRELUDE_BRIDGE_STORE_PASSWORD=… PRELUDE_BRIDGE_STORE_USER=bridge \\
      prelude-bridge log copy --from postgres://pg-1:5432/events --to ./data
  From NATS to PostgreSQL, each with its own login:
    prelude-bridge log copy --from-config nats.toml --to-config postgres.toml

A store with a file takes its settings from that file alone; one without takes them from the
environment, as `serve` does. PRELUDE_BRIDGE_STORE is the store that no flag names.

Exit codes: 0 copied and verified, 1 failed (run it again, it goes on), 2 the stores cannot be used
for this copy.";

/// One of the two stores, as it was named.
struct Named {
    flag: &'static str,
    store: Option<String>,
    config: Option<PathBuf>,
}

impl Copy {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let from = Named {
            flag: "--from",
            store: self.from,
            config: self.from_config,
        };
        let to = Named {
            flag: "--to",
            store: self.to,
            config: self.to_config,
        };
        if let (false, false) = (from.is_named(), to.is_named()) {
            let cause = "neither --from nor --to is there";
            let help =
                "name the store that has the log with --from, and the one that gets it with --to";
            return Err(Failure::new(Exit::Usage, cause).help(help));
        }
        let (from, to) = (from.resolve()?, to.resolve()?);
        // What is made for the copy is made when it is known that there is something to copy.
        let from = open(from, Missing::Refuse).await?;
        copy::check_source(&from).map_err(|error| refusal(&error))?;
        let to = open(to, Missing::Create).await?;
        let (began, mut shown) = (Instant::now(), Shown::new(self.output));
        let runtime = tokio::runtime::Handle::current();
        let copied = tokio::task::spawn_blocking(move || {
            let copied = copy::copy(&from, &to, &runtime, &mut |progress| shown.show(progress));
            shown.clear();
            copied
        });
        let copied = copied
            .await
            .map_err(|panic| Failure::new(Exit::Failed, panic))?;
        let report = copied.map_err(|error| refusal(&error))?;
        let seconds = began.elapsed().as_secs_f64();
        exit::print(&match self.output {
            Output::Human => human(&report, seconds),
            Output::Json => summary(&report, seconds),
        })?;
        Ok(Exit::Done)
    }
}

/// Where a store is, before it is opened.
enum Resolved {
    Directory(PathBuf),
    Engine(Box<config::Config>),
}

impl Named {
    fn is_named(&self) -> bool {
        self.store.is_some() || self.config.is_some()
    }

    fn resolve(self) -> Result<Resolved, Failure> {
        let flag = self.flag;
        let usage = |cause: String, help: String| Err(Failure::new(Exit::Usage, cause).help(help));
        if let Some(word @ ("memory" | "embedded")) = self.store.as_deref() {
            let cause = format!("{flag}: `{word}` is no place");
            return usage(
                cause,
                format!("name a directory, such as ./data (or ./{word}), or a URL"),
            );
        }
        if let Some(path) = self.store.as_ref().filter(|store| !store.contains("://")) {
            if let Some(config) = self.config {
                let cause = format!("{flag} names a directory, which needs no {flag}-config");
                let help = format!("remove {}", config.display());
                return usage(cause, help);
            }
            return Ok(Resolved::Directory(path.into()));
        }
        let mut sources = settings::sources_of_store(self.config.clone(), self.store.clone());
        if self.is_named() {
            // It is for the other one.
            sources
                .environment
                .remove(std::ffi::OsStr::new("PRELUDE_BRIDGE_STORE"));
        }
        let resolved = config::resolve(&sources)?;
        resolved
            .warnings
            .iter()
            .for_each(|warning| exit::warn(warning));
        let config = resolved.config;
        match &config.store {
            Store::Nats(_) | Store::Postgres(_) => Ok(Resolved::Engine(Box::new(config))),
            Store::Embedded if self.config.is_some() => Ok(Resolved::Directory(config.data_dir)),
            Store::Embedded => usage(
                format!("{flag} is missing"),
                format!("name a store with {flag}, {flag}-config or PRELUDE_BRIDGE_STORE"),
            ),
            Store::Memory => usage(
                format!("{flag}: a log in memory cannot be copied"),
                format!("name a directory or a URL with {flag}"),
            ),
        }
    }
}

async fn open(resolved: Resolved, missing: Missing) -> Result<copy::Store, Failure> {
    let config = match resolved {
        Resolved::Directory(path) => return Ok(copy::Store::Directory(path)),
        Resolved::Engine(config) => config,
    };
    let connected = server::connect(&config, missing, exit::warn).await;
    let sequencer = connected.map_err(|error| Failure::new(Exit::Failed, error))?;
    let directory = || copy::Store::Directory(config.data_dir.clone());
    Ok(sequencer.map_or_else(directory, copy::Store::Sequence))
}

/// Why a log is not copied. The error says what to do.
fn refusal(error: &CopyError) -> Failure {
    match error {
        CopyError::Open(error) => failure(error),
        CopyError::Refused(_) => Failure::new(Exit::Usage, error),
        CopyError::Damaged(_) | CopyError::Outage(_) | CopyError::Changed(_) => {
            Failure::new(Exit::Failed, error)
        }
    }
}

/// Shows progress.
struct Shown {
    output: Output,
    bar: Option<(CopyPhase, Bar)>,
    reported_at: Option<Instant>,
}

impl Shown {
    fn new(output: Output) -> Self {
        Self {
            output,
            bar: None,
            reported_at: None,
        }
    }

    fn show(&mut self, progress: CopyProgress) {
        let bar = match &mut self.bar {
            Some((phase, bar)) if *phase == progress.phase => bar,
            bar => {
                self.reported_at = None;
                &mut bar
                    .insert((progress.phase, Bar::of_stderr(words(progress.phase))))
                    .1
            }
        };
        match self.output {
            Output::Human => bar.show(progress.done_events, progress.total_events),
            Output::Json => {
                let is_due = self
                    .reported_at
                    .is_none_or(|at| at.elapsed() >= REPORT_INTERVAL);
                if is_due {
                    self.reported_at = Some(Instant::now());
                    // The outcome is said by the exit code too.
                    let _ = exit::print(&line(progress));
                }
            }
        }
    }

    fn clear(&self) {
        if let Some((_, bar)) = &self.bar {
            bar.clear();
        }
    }
}

fn words(phase: CopyPhase) -> fn(u64, u64) -> String {
    match phase {
        CopyPhase::Copy => |done, total| format!("{done} of {total} events copied"),
        CopyPhase::Verify => |done, total| format!("{done} of {total} events verified"),
    }
}

fn line(progress: CopyProgress) -> String {
    let phase = match progress.phase {
        CopyPhase::Copy => "copy",
        CopyPhase::Verify => "verify",
    };
    let line = json!({
        "type": "progress",
        "phase": phase,
        "done_events": progress.done_events,
        "total_events": progress.total_events,
    });
    format!("{line}\n")
}

fn checksum(report: &CopyReport) -> String {
    report
        .checksum
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn human(report: &CopyReport, seconds: f64) -> String {
    let events = match report.events {
        0 => "a log without events".to_owned(),
        1 => format!("1 event ({})", report.first),
        count => format!("{count} events ({} to {})", report.first, report.last),
    };
    let before = match report.events_before {
        0 => String::new(),
        count => format!(", {count} of them before"),
    };
    format!(
        "copied {events}, {}{before}, in {seconds:.1} s: {GOOD}read back and the same{GOOD:#}\n\
         log {:016x}, SHA-256 {}\n",
        size(report.bytes),
        report.log.0,
        checksum(report)
    )
}

fn summary(report: &CopyReport, seconds: f64) -> String {
    let summary = json!({
        "type": "summary",
        "log": format!("{:016x}", report.log.0),
        "first_sequence": report.first.0,
        "last_sequence": report.last.0,
        "events": report.events,
        "events_before": report.events_before,
        "bytes": report.bytes,
        "seconds": (seconds * 1_000.0).round() / 1_000.0,
        "sha256": checksum(report),
    });
    format!("{summary}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{LogId, Sequence};

    fn named(store: Option<&str>, config: Option<&str>) -> Named {
        Named {
            flag: "--to",
            store: store.map(str::to_owned),
            config: config.map(PathBuf::from),
        }
    }

    fn refused(named: Named) -> String {
        match named.resolve() {
            Ok(_) => panic!("it is accepted"),
            Err(failure) => {
                assert_eq!(failure.exit, Exit::Usage);
                format!("{failure:?}")
            }
        }
    }

    #[test]
    fn a_store_is_a_directory_or_a_url_and_a_file_says_the_rest() {
        let directory = named(Some("./data"), None).resolve();
        assert!(
            matches!(directory, Ok(Resolved::Directory(path)) if path.to_str() == Some("./data"))
        );
        assert!(matches!(
            named(Some("nats://a:4222"), None).resolve(),
            Ok(Resolved::Engine(_))
        ));
        assert!(refused(named(Some("memory"), None)).contains("./memory"));
        assert!(
            refused(named(Some("./data"), Some("bridge.toml"))).contains("needs no --to-config")
        );
        assert!(refused(named(Some("redis://a"), None)).contains("store"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bridge.toml");
        let file = |text: &str| {
            std::fs::write(&path, text).unwrap();
            named(None, path.to_str()).resolve()
        };
        let Ok(Resolved::Engine(config)) =
            file("[store]\nurl = \"nats://b:4222\"\nstream = \"other\"\n")
        else {
            panic!("it is refused");
        };
        assert!(matches!(&config.store, Store::Nats(nats) if nats.stream == "other"));
        let files = file("data_dir = \"/srv/log\"\n");
        assert!(
            matches!(files, Ok(Resolved::Directory(path)) if path.to_str() == Some("/srv/log"))
        );
        assert!(file("store = \"memory\"\n").is_err());
    }

    fn report(events: u64) -> CopyReport {
        CopyReport {
            log: LogId(0xab),
            first: Sequence(3),
            last: Sequence(2 + events),
            events,
            events_before: 4,
            bytes: 5 << 20,
            checksum: [0x1f; 32],
        }
    }

    #[test]
    fn a_copy_is_summed_up_for_people_and_for_programs() {
        let text = anstream::adapter::strip_str(&human(&report(9), 0.25)).to_string();
        let expected = "copied 9 events (3 to 11), 5.0 MiB, 4 of them before, in 0.2 s: read back and the same\n\
                        log 00000000000000ab, SHA-256 1f1f";
        assert!(text.starts_with(expected), "{text}");
        assert!(human(&report(1), 1.0).contains("copied 1 event (3),"));
        assert!(human(&report(0), 1.0).contains("a log without events"));
        let value: serde_json::Value = serde_json::from_str(&summary(&report(9), 0.5)).unwrap();
        assert_eq!(
            (&value["type"], &value["events"]),
            (&"summary".into(), &9.into())
        );
        assert_eq!(value["sha256"], "1f".repeat(32));
        let progress = CopyProgress {
            phase: CopyPhase::Verify,
            done_events: 1,
            total_events: 9,
        };
        let value: serde_json::Value = serde_json::from_str(&line(progress)).unwrap();
        assert_eq!(
            (&value["phase"], &value["total_events"]),
            (&"verify".into(), &9.into())
        );
        assert_eq!(words(CopyPhase::Copy)(1, 9), "1 of 9 events copied");
    }

    #[test]
    fn exit_codes_tell_a_wrong_store_from_a_copy_that_failed() {
        let refused = CopyError::Refused("choose another".to_owned());
        assert_eq!(refusal(&refused).exit, Exit::Usage);
        let changed = CopyError::Changed("stop the bridges".to_owned());
        assert_eq!(refusal(&changed).exit, Exit::Failed);
        let in_use = log_in_use();
        assert_eq!(refusal(&in_use).exit, Exit::Failed);
    }

    fn log_in_use() -> CopyError {
        CopyError::Open(crate::log::OpenError::InUse {
            path: "./data".into(),
        })
    }
}
