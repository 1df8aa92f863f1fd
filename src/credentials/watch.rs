//! Owns the watch over the credentials file: it reads the file, and puts changes into force or refuses them.
//! `settle` decides when a change takes effect.
//!
//! The watch reads the file ten times a second instead of waiting for notifications: that is portable, notices the
//! swapped links of container platforms and edits on network disks, and costs a few microseconds for a small file.
//! It compares the content, because times and lengths can be wrong.

use std::{io, path::Path, sync::Arc};

use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Error, Options, SharedCredentials, Status,
    document::Document,
    entry::Fault,
    file::File,
    grant::{Clock, Ended},
    record::{Record, Recorded},
    set::Set,
    settle::{self, INTERVAL, Seen, Settling},
    tracking::{self, Tracking},
};
use crate::{permissions::By, plain};

/// How often a start reads a file that may be incomplete, until two readings agree.
const READINGS_AT_START_MAX: u32 = 50;
/// How many warnings of one file are logged.
const WARNINGS_LOGGED_MAX: usize = 8;

/// The state of the file.
#[derive(Clone, Default)]
pub(super) struct FileState {
    pub(super) set: Arc<Set>,
    /// Whether credentials are or were in force, so that callers need one.
    pub(super) is_required: bool,
    fault: Option<String>,
    reloads: u64,
    reloads_refused: u64,
}

impl FileState {
    pub(super) fn status(&self) -> Status {
        Status {
            credentials: self.set.len(),
            fault: self.fault.clone(),
            reloads: self.reloads,
            reloads_refused: self.reloads_refused,
        }
    }
}

/// Reads one file again and again.
pub(super) struct Watcher {
    file: File,
    settling: Settling,
    /// Whether the file is in force.
    is_in_force: bool,
    /// Whether the file should be there: it was named, or it was there before.
    is_expected: bool,
    /// Whether the last good file had its last line, so that a file without it is cut short.
    needs_end: bool,
    recording: Recording,
    recorded_at: Instant,
    tracking: Tracking,
}

impl Watcher {
    /// Reads the file for the first time.
    pub(super) async fn open(
        file: File,
        options: &Options,
        clock: &Clock,
    ) -> Result<(Self, FileState), Error> {
        let mut recording = Recording::new(options.record.clone());
        let recorded = recording.read().await;
        let mut state = FileState {
            is_required: options.file_is_named || recorded.is_some(),
            ..FileState::default()
        };
        let recorded = recorded.unwrap_or_default();
        let mut needs_end = recorded.needs_end(file.path());
        let was_there = recorded.credentials_file.is_some();
        let seen = read_settled(&file)
            .await
            .map_err(|source| file.unreadable(source))?;
        match &seen {
            Some(text) => {
                let document = file.parse(text)?;
                if needs_end && !document.has_end {
                    return Err(file.cut_short());
                }
                needs_end = document.has_end;
                warn(file.path(), &document.warnings);
                let set = Set::after(&Set::default(), document.entries, clock);
                tracing::info!(
                    file = plain::configured(file.path().display()),
                    credentials = set.len(),
                    "credentials loaded"
                );
                state.set = Arc::new(set);
                state.is_required = true;
                recording.write(Recorded::of(file.path(), needs_end)).await;
            }
            None if was_there && !options.anonymous => {
                let missing = missing(&file);
                tracing::error!("{}", plain::configured(&missing));
                state.fault = Some(missing);
            }
            None if options.file_is_named => {
                tracing::warn!(
                    file = plain::configured(file.path().display()),
                    "there is no credentials file yet, so nobody has a token: make one with \
                     `prelude-bridge token create`"
                );
                state.fault = (!options.anonymous).then(|| missing(&file));
            }
            None => {}
        }
        let watcher = Self {
            is_in_force: seen.is_some(),
            is_expected: seen.is_some() || was_there || options.file_is_named,
            settling: Settling::new(seen.map_or(Seen::Missing, Seen::Text)),
            file,
            needs_end,
            recording,
            recorded_at: Instant::now(),
            tracking: Tracking::open(options.record.as_ref()).await,
        };
        Ok((watcher, state))
    }

    /// Watches for ever.
    pub(super) async fn run(&mut self, shared: &SharedCredentials) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let seen = match read(&self.file).await {
                Ok(Some(text)) => Seen::Text(text),
                Ok(None) => Seen::Missing,
                Err(error) => Seen::Unreadable(error.to_string()),
            };
            if let Some(seen) = self.settling.observe(seen) {
                self.apply(seen, shared);
            }
            self.record_again();
            self.recording.write_due().await;
            let (set, now) = (shared.set(), (shared.clock)());
            self.tracking.log_expiries(&set, now);
            self.tracking.write_due(&set, now).await;
        }
    }

    /// Writes what would be lost with the process.
    pub(super) async fn finish(&mut self, shared: &SharedCredentials) {
        self.tracking.write(&shared.set(), (shared.clock)()).await;
    }

    /// Writes the record again if somebody removed it while the bridge runs.
    fn record_again(&mut self) {
        if self.recorded_at.elapsed() >= tracking::INTERVAL {
            self.recorded_at = Instant::now();
            self.recording.due.clone_from(&self.recording.recorded);
        }
    }

    /// Puts a change into force, or says why not.
    fn apply(&mut self, seen: Seen, shared: &SharedCredentials) {
        match seen {
            Seen::Missing if self.is_in_force => self.revoke_all(shared),
            // Nothing was lost: there was no file before, or it was missing before.
            Seen::Missing => {
                let is_missed = self.is_expected && !shared.anonymous_is_let;
                let fault = is_missed.then(|| missing(&self.file));
                shared.state.send_modify(|state| state.fault = fault);
            }
            Seen::Text(text) => match self.file.parse(&text) {
                Ok(document) if self.needs_end && !document.has_end => {
                    self.refuse(&self.file.cut_short(), shared);
                }
                Ok(document) => self.put_in_force(text, document, shared),
                Err(error) => self.refuse(&error, shared),
            },
            Seen::Unreadable(reason) => {
                self.refuse(&self.file.unreadable(io::Error::other(reason)), shared);
            }
        }
    }

    fn put_in_force(&mut self, text: String, document: Document, shared: &SharedCredentials) {
        warn(self.file.path(), &document.warnings);
        self.settling.set_in_force(Some(text));
        self.is_in_force = true;
        self.is_expected = true;
        self.needs_end = document.has_end;
        let before = Arc::clone(&shared.state.borrow().set);
        let set = Set::after(&before, document.entries, &shared.clock);
        self.replace(set, None, shared);
    }

    /// A file that was deleted lets nobody in: somebody may have deleted it in an emergency.
    fn revoke_all(&mut self, shared: &SharedCredentials) {
        self.settling.set_in_force(None);
        self.is_in_force = false;
        // A new file need not have a last line.
        self.needs_end = false;
        let missing = missing(&self.file);
        tracing::error!(
            "{}; all its credentials count as revoked",
            plain::configured(&missing)
        );
        let fault = (!shared.anonymous_is_let).then_some(missing);
        self.replace(Set::default(), fault, shared);
    }

    fn replace(&mut self, set: Set, fault: Option<String>, shared: &SharedCredentials) {
        let set = Arc::new(set);
        let mut before = Arc::default();
        let mut is_first = false;
        shared.state.send_modify(|state| {
            before = std::mem::replace(&mut state.set, Arc::clone(&set));
            is_first = !std::mem::replace(&mut state.is_required, true);
            state.fault = fault;
            state.reloads += 1;
        });
        let recorded = Recorded::of(self.file.path(), self.needs_end);
        self.recording.request(recorded);
        let ends = before.end_for(&set);
        if is_first && shared.jwt.is_none() && !shared.anonymous_is_let {
            tracing::warn!(
                "there are credentials now: callers without one are not let in any more"
            );
            shared.anonymous.end(Ended::Changed);
        }
        tracing::info!(
            file = plain::configured(self.file.path().display()),
            credentials = set.len(),
            revoked = ends.revoked,
            changed = ends.changed,
            "credentials loaded"
        );
    }

    /// Keeps what is in force, and logs that once: `settle` does not return the same reading again.
    fn refuse(&self, error: &Error, shared: &SharedCredentials) {
        if self.is_in_force {
            tracing::error!(
                error = plain::configured(error),
                "the changed credentials are not taken over; those before stay in force"
            );
        } else {
            tracing::error!(
                error = plain::configured(error),
                "the credentials are not taken over, and none were in force before"
            );
        }
        shared.state.send_modify(|state| {
            state.fault = Some(error.to_string());
            state.reloads_refused += 1;
        });
    }
}

/// Writes the record that credentials are in force.
pub(super) struct Recording {
    record: Option<Record>,
    /// What the record has, or will have.
    recorded: Option<Recorded>,
    /// What is still to be written.
    due: Option<Recorded>,
    is_failure_logged: bool,
}

impl Recording {
    pub(super) fn new(record: Option<Record>) -> Self {
        Self {
            record,
            recorded: None,
            due: None,
            is_failure_logged: false,
        }
    }

    pub(super) async fn read(&mut self) -> Option<Recorded> {
        let record = self.record.clone()?;
        let read = tokio::task::spawn_blocking(move || record.read()).await;
        // Reading does not panic. If the record cannot be known, callers need a credential.
        self.recorded = read.unwrap_or_else(|_| Some(Recorded::default()));
        self.recorded.clone()
    }

    /// Has this written soon.
    fn request(&mut self, recorded: Recorded) {
        self.recorded = Some(recorded.clone());
        self.due = Some(recorded);
    }

    /// Writes the record, now or as soon as that works: the bridge serves callers also while the disk is full.
    pub(super) async fn write(&mut self, recorded: Recorded) {
        self.request(recorded);
        self.write_due().await;
    }

    async fn write_due(&mut self) {
        let Some(recorded) = self.due.take() else {
            return;
        };
        let Some(record) = self.record.clone() else {
            return;
        };
        let path = record.path();
        let again = recorded.clone();
        let written = tokio::task::spawn_blocking(move || record.write(&recorded)).await;
        let error = match written {
            Ok(Ok(())) => {
                self.is_failure_logged = false;
                return;
            }
            Ok(Err(error)) => error,
            Err(_) => io::Error::other("the runtime is shutting down"),
        };
        self.due = Some(again);
        if !std::mem::replace(&mut self.is_failure_logged, true) {
            tracing::error!(
                file = plain::configured(path.display()),
                error = plain::configured(error),
                "it cannot be recorded that subscribers need a credential: until it is, a restart \
                 without the credentials file lets everybody in"
            );
        }
    }
}

/// The fault of a file that should be there, with what an operator can do.
pub(super) fn missing(file: &File) -> String {
    format!(
        "the credentials file {} is missing, so nobody with a token or certificate is let in: \
         restore it, or make credentials with `prelude-bridge token create`; to let subscribers in \
         without any on purpose, set `allow_anonymous`",
        file.path().display()
    )
}

fn warn(file: &Path, warnings: &[Fault]) {
    for warning in warnings.iter().take(WARNINGS_LOGGED_MAX) {
        tracing::warn!(
            file = plain::configured(file.display()),
            "{}",
            plain::configured(warning)
        );
    }
    if let Some(more @ 1..) = warnings.len().checked_sub(WARNINGS_LOGGED_MAX) {
        tracing::warn!(
            more,
            "there are more such warnings: `prelude-bridge doctor` has them all"
        );
    }
}

async fn read(file: &File) -> io::Result<Option<String>> {
    let file = file.clone();
    // Reading does not panic; a runtime that is shutting down ends this task as well.
    tokio::task::spawn_blocking(move || file.text(By::Bridge))
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the runtime is shutting down")))
}

/// The file when the bridge starts. A file that may be incomplete is read until it stays the same.
async fn read_settled(file: &File) -> io::Result<Option<String>> {
    let mut found = read(file).await?;
    for _ in 0..READINGS_AT_START_MAX {
        if found.as_deref().is_none_or(settle::is_whole) {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
        let again = read(file).await?;
        if again == found {
            break;
        }
        found = again;
    }
    Ok(found)
}
