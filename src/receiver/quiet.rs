//! Owns how much of the log strangers can fill: of each kind of refusal some lines, and then a few
//! in a second with the number of those that were left out. Everything is counted in the metrics
//! anyway. Knows nothing of what is in the lines.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines of one kind in a row: a morning's worth of scanners, and each attempt of somebody who sets
/// the sender up.
const LINES_AT_ONCE: u32 = 100;
/// After that, one line in this time.
const LINE_INTERVAL: Duration = Duration::from_millis(100);

/// Who may still write a line.
#[derive(Default)]
pub(super) struct Quiet {
    /// By the code of the refusal; there are some twenty.
    kinds: Mutex<HashMap<&'static str, Kind>>,
}

struct Kind {
    lines_left: u32,
    counted_at: Instant,
    unlogged: u64,
}

impl Quiet {
    /// Whether a line may be written: `None` if not, else how many were not since the last one.
    pub(super) fn admit(&self, code: &'static str) -> Option<u64> {
        self.admit_at(code, Instant::now())
    }

    fn admit_at(&self, code: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds.entry(code).or_insert(Kind {
            lines_left: LINES_AT_ONCE,
            counted_at: now,
            unlogged: 0,
        });
        let passed = now.saturating_duration_since(kind.counted_at).as_millis();
        let earned = passed / LINE_INTERVAL.as_millis();
        if let Ok(earned) = u32::try_from(earned) {
            kind.counted_at += LINE_INTERVAL * earned;
            kind.lines_left = kind.lines_left.saturating_add(earned).min(LINES_AT_ONCE);
        } else {
            // Years have passed.
            kind.counted_at = now;
            kind.lines_left = LINES_AT_ONCE;
        }
        if kind.lines_left == 0 {
            kind.unlogged += 1;
            return None;
        }
        kind.lines_left -= 1;
        Some(std::mem::take(&mut kind.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_writes_few_lines_and_says_how_many_it_did_not() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let lines = |at| {
            let admitted = (0..1_000).filter_map(|_| quiet.admit_at("mismatch", at));
            admitted.collect::<Vec<_>>()
        };
        assert_eq!(lines(start), [0; 100]);
        // Another kind is heard meanwhile.
        assert_eq!(quiet.admit_at("no_batch", start), Some(0));
        let later = lines(start + LINE_INTERVAL * 2);
        assert_eq!(later, [900, 0]);
        let much_later = lines(start + Duration::from_secs(3_600));
        assert_eq!((much_later.len(), much_later[0]), (100, 998));
    }
}
