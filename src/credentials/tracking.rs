//! Owns what the watch notes of the credentials in force: when each was last used, which goes to a file, and
//! which expire soon, which goes to the log. Decides nothing.

use std::{collections::HashSet, io, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    document::ENTRIES_MAX,
    expiry::Expiry,
    last_use::{LastUse, LastUseFile},
    record::Record,
    set::Set,
};
use crate::plain;

/// How often the file of last uses is written at most. Uses are known to that accuracy.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// How many expiries are logged at once.
const EXPIRIES_LOGGED_MAX: usize = 8;

/// What is noted of credentials.
pub(super) struct Tracking {
    file: Option<LastUseFile>,
    last_use: LastUse,
    written_at: Option<Instant>,
    is_failure_logged: bool,
    /// The expiries that were logged, as close or as over.
    logged: HashSet<(Expiry, bool)>,
}

impl Tracking {
    /// Reads what is known, from the data directory that has this record.
    pub(super) async fn open(record: Option<&Record>) -> Self {
        let file = record.map(Record::last_use_file);
        let reader = file.clone();
        let read = tokio::task::spawn_blocking(move || reader.map(|file| file.read()));
        Self {
            file,
            last_use: read.await.ok().flatten().unwrap_or_default(),
            written_at: None,
            is_failure_logged: false,
            logged: HashSet::new(),
        }
    }

    /// Writes the file if a credential was used, and that is due.
    pub(super) async fn write_due(&mut self, set: &Set, now: Timestamp) {
        let is_due = |at: Instant| at.elapsed() >= INTERVAL;
        if self.written_at.is_none_or(is_due) {
            self.write(set, now).await;
        }
    }

    /// Writes the file if a credential was used.
    pub(super) async fn write(&mut self, set: &Set, now: Timestamp) {
        let Some(file) = self.file.clone() else {
            return;
        };
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let mut is_used = false;
        for (proof, _) in set.proofs().filter(|(_, holder)| holder.take_use()) {
            self.last_use.set(proof, now);
            is_used = true;
        }
        if !is_used {
            return;
        }
        self.last_use.retain(set.proofs().map(|(proof, _)| proof));
        self.written_at = Some(Instant::now());
        let (path, last_use) = (file.path(), self.last_use.clone());
        let written = tokio::task::spawn_blocking(move || file.write(&last_use)).await;
        let written = written.unwrap_or_else(|_| Err(io::Error::other("the runtime shuts down")));
        let was_failure_logged = std::mem::replace(&mut self.is_failure_logged, written.is_err());
        if let Err(error) = written
            && !was_failure_logged
        {
            tracing::warn!(
                file = plain::configured(path.display()),
                error = plain::configured(error),
                "the last use of credentials cannot be recorded"
            );
        }
    }

    /// Logs each credential once when it expires soon, and once when it has expired.
    pub(super) fn log_expiries(&mut self, set: &Set, now: Timestamp) {
        if self.logged.len() > 2 * ENTRIES_MAX {
            self.logged.clear();
        }
        let mut new: Vec<(Expiry, bool)> = set
            .expiries()
            .filter(|expiry| expiry.is_soon(now) || expiry.has_come(now))
            .map(|expiry| (expiry.clone(), expiry.has_come(now)))
            .filter(|noted| !self.logged.contains(noted))
            .collect();
        new.sort_by_key(|(expiry, _)| expiry.expires_at);
        for (expiry, has_come) in new.iter().take(EXPIRIES_LOGGED_MAX) {
            let credential = plain::name(&expiry.name);
            let expires_at = expiry.expires_at;
            if *has_come {
                tracing::warn!(
                    credential,
                    %expires_at,
                    "a credential has expired: replace it with `prelude-bridge token rotate`, or \
                     remove it with `token revoke`"
                );
            } else {
                tracing::warn!(
                    credential,
                    %expires_at,
                    "a credential expires soon: give its subscribers a new token from \
                     `prelude-bridge token rotate`"
                );
            }
        }
        if let Some(more @ 1..) = new.len().checked_sub(EXPIRIES_LOGGED_MAX) {
            tracing::warn!(
                more,
                "more credentials expire soon or have expired: `prelude-bridge token list` has them all"
            );
        }
        self.logged.extend(new);
    }
}
