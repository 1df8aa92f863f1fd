//! Owns how much of the log strangers can fill by being refused: of each kind of refusal some lines,
//! and then a few in a second with the number of those that were left out. Everything is counted in
//! the metrics anyway. Knows nothing of what is in the lines.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::rate::Bucket;

/// How many lines there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lines of one kind in a row: a morning's worth of scanners, and each attempt of
    /// somebody who sets a client up.
    pub lines_at_once: u32,
    /// After that, one line in this time.
    pub line_interval: Duration,
}

/// Who may still write a line.
pub struct Quiet {
    limits: Limits,
    /// By the code of the refusal; there are some twenty on a port.
    kinds: Mutex<HashMap<&'static str, Kind>>,
}

struct Kind {
    lines: Bucket,
    unlogged: u64,
}

/// A line may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// How many of its kind were not since the last one; nothing where there were none, so that it
    /// is a field of the line only where it says something.
    pub unlogged: Option<u64>,
}

impl Quiet {
    /// Nobody has said anything yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            kinds: Mutex::default(),
        }
    }

    /// Whether a line about a refusal of this kind may be written.
    pub fn admit(&self, code: &'static str) -> Option<Admitted> {
        self.admit_at(code, Instant::now())
    }

    fn admit_at(&self, code: &'static str, now: Instant) -> Option<Admitted> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds.entry(code).or_insert_with(|| Kind {
            lines: Bucket::new(
                1,
                self.limits.line_interval,
                self.limits.lines_at_once.into(),
                now,
            ),
            unlogged: 0,
        });
        if !kind.lines.take(1, now) {
            kind.unlogged += 1;
            return None;
        }
        let unlogged = std::mem::take(&mut kind.unlogged);
        Some(Admitted {
            unlogged: (unlogged > 0).then_some(unlogged),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_writes_few_lines_and_says_how_many_it_did_not() {
        let limits = Limits::default();
        let (quiet, start) = (Quiet::new(limits), Instant::now());
        let lines = |at| {
            let admitted = (0..1_000).filter_map(|_| quiet.admit_at("mismatch", at));
            admitted.map(|line| line.unlogged).collect::<Vec<_>>()
        };
        assert_eq!(lines(start), [None; 100]);
        // Another kind is heard meanwhile.
        assert!(quiet.admit_at("no_batch", start).is_some());
        let later = lines(start + limits.line_interval * 2);
        assert_eq!(later, [Some(900), None]);
        let much_later = lines(start + Duration::from_secs(3_600));
        assert_eq!((much_later.len(), much_later[0]), (100, Some(998)));
    }

    #[test]
    fn as_many_lines_are_written_as_the_limits_say() {
        let limits = Limits {
            lines_at_once: 1,
            line_interval: Duration::from_secs(60),
        };
        let (quiet, start) = (Quiet::new(limits), Instant::now());
        let lines = |seconds| {
            let at = start + Duration::from_secs(seconds);
            (0..10)
                .filter(|_| quiet.admit_at("mismatch", at).is_some())
                .count()
        };
        assert_eq!(
            [0, 1, 59, 60, 119, 120, 600].map(lines),
            [1, 0, 0, 1, 0, 1, 1]
        );
    }
}
