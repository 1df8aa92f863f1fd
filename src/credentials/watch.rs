//! Owns the watch over the credentials file: when it is looked at, and what becomes of what is
//! found there.
//!
//! The file is read anew five times a second rather than listened to: that is portable, sees the
//! swapped links of container platforms and edits on network disks, and a small file costs a few
//! microseconds. Its content tells whether it changed, as times and lengths can lie.

use std::{io, sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;

use super::{
    Error, Shared, Status,
    file::File,
    grant::{Clock, Ended},
    set::Set,
};
use crate::plain;

/// A change has to end streams within a second, and a deletion is believed at the second look.
const INTERVAL: Duration = Duration::from_millis(200);

/// What is known of the file.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) set: Arc<Set>,
    /// Whether there is or was a file, so that callers need a credential.
    pub(super) has_file: bool,
    fault: Option<String>,
    reloads: u64,
    reloads_refused: u64,
}

impl State {
    pub(super) fn status(&self) -> Status {
        Status {
            credentials: self.set.len(),
            fault: self.fault.clone(),
            reloads: self.reloads,
            reloads_refused: self.reloads_refused,
        }
    }
}

/// Looks at one file.
pub(super) struct Watcher {
    file: File,
    seen: Seen,
    /// Whether the file was not there at the last look: some programs take a file away for a
    /// moment to put another one in its place.
    was_missing: bool,
}

/// What the last change was to.
#[derive(PartialEq, Eq)]
enum Seen {
    Missing,
    Text(String),
    Unreadable(String),
}

impl Watcher {
    /// Reads the file for the first time.
    pub(super) async fn open(
        file: File,
        is_named: bool,
        clock: &Clock,
    ) -> Result<(Self, State), Error> {
        let text = read(&file)
            .await
            .map_err(|source| file.unreadable(source))?;
        let mut state = State {
            has_file: is_named,
            ..State::default()
        };
        let seen = match text {
            Some(text) => {
                let set = Set::after(&Set::default(), file.parse(&text)?, clock);
                tracing::info!(
                    file = plain::configured(file.path().display()),
                    credentials = set.len(),
                    "credentials loaded"
                );
                state.set = Arc::new(set);
                state.has_file = true;
                Seen::Text(text)
            }
            None => {
                if is_named {
                    tracing::warn!(
                        file = plain::configured(file.path().display()),
                        "there is no credentials file yet, so nobody has a token: make one with \
                         `prelude-bridge token create`"
                    );
                }
                Seen::Missing
            }
        };
        let watcher = Self {
            file,
            seen,
            was_missing: false,
        };
        Ok((watcher, state))
    }

    /// Watches for ever.
    pub(super) async fn run(mut self, shared: Arc<Shared>) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let seen = match read(&self.file).await {
                Ok(Some(text)) => Seen::Text(text),
                Ok(None) => Seen::Missing,
                Err(error) => Seen::Unreadable(error.to_string()),
            };
            self.judge(seen, &shared);
        }
    }

    fn judge(&mut self, seen: Seen, shared: &Shared) {
        let is_missing = seen == Seen::Missing;
        let is_believed = !is_missing || self.was_missing;
        self.was_missing = is_missing;
        if !is_believed || seen == self.seen {
            return;
        }
        match &seen {
            Seen::Missing => self.take_over(Set::default(), shared),
            Seen::Text(text) => match self.file.parse(text) {
                Ok(entries) => {
                    let before = Arc::clone(&shared.state.borrow().set);
                    self.take_over(Set::after(&before, entries, &shared.clock), shared);
                }
                Err(error) => refuse(&error, shared),
            },
            Seen::Unreadable(reason) => {
                let source = io::Error::other(reason.clone());
                refuse(&self.file.unreadable(source), shared);
            }
        }
        if is_missing {
            tracing::warn!(
                file = plain::configured(self.file.path().display()),
                "the credentials file was deleted: all its credentials count as revoked"
            );
        }
        self.seen = seen;
    }

    fn take_over(&self, set: Set, shared: &Shared) {
        let set = Arc::new(set);
        let mut before = Arc::default();
        let mut is_first = false;
        shared.state.send_modify(|state| {
            before = std::mem::replace(&mut state.set, Arc::clone(&set));
            is_first = !std::mem::replace(&mut state.has_file, true);
            state.fault = None;
            state.reloads += 1;
        });
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
}

/// Keeps what holds. It is said once: the same file is not judged again.
fn refuse(error: &Error, shared: &Shared) {
    tracing::error!(
        error = plain::configured(error),
        "the changed credentials are not taken over; those before stay in force"
    );
    shared.state.send_modify(|state| {
        state.fault = Some(error.to_string());
        state.reloads_refused += 1;
    });
}

async fn read(file: &File) -> io::Result<Option<String>> {
    let file = file.clone();
    // Reading does not panic; a runtime that is shutting down ends this task as well.
    tokio::task::spawn_blocking(move || file.text())
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the runtime is shutting down")))
}
