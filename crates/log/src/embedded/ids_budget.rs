//! Owns the warning that the ids take more than they may, or will: long before the oldest of them have to
//! be forgotten before their time, and when they are.

use crate::{clock::RetentionTime, ids};

/// Said at most so often.
const INTERVAL_MICROS: i64 = 24 * 60 * 60 * 1_000_000;
const MIB: u64 = 1024 * 1024;

/// What was said of the ids.
#[derive(Default)]
pub(super) struct IdsBudget {
    said_at: Option<RetentionTime>,
    forgotten_early: u64,
}

impl IdsBudget {
    /// Compares what the ids take with what they may take.
    pub(super) fn compare(&mut self, usage: &ids::Usage, now: RetentionTime) {
        let remedy = "raise retention.id_bytes_max, or lower retention.id_age_min";
        let (mib, mib_max) = (usage.bytes / MIB, usage.bytes_max / MIB);
        if usage.forgotten_early > self.forgotten_early {
            tracing::error!(
                ids = usage.forgotten_early - self.forgotten_early,
                mib,
                mib_max,
                "the ids take more than they may: the oldest were forgotten before their time, and \
                 repetitions of their events count as new. {remedy}"
            );
            self.forgotten_early = usage.forgotten_early;
            self.said_at = Some(now);
        }
        let is_due = |at: RetentionTime| now.0.saturating_sub(at.0) >= INTERVAL_MICROS;
        if usage.is_tight() && self.said_at.is_none_or(is_due) {
            self.said_at = Some(now);
            tracing::warn!(
                mib,
                mib_max,
                mib_expected = usage.bytes_expected / MIB,
                "the ids by which repetitions are recognised take half of what they may, or will take \
                 more than that at the present rate: then the oldest are forgotten before their time. \
                 {remedy}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::testing::said;

    fn compare(budget: &mut IdsBudget, usage: ids::Usage, at: i64) -> String {
        said(|| budget.compare(&usage, RetentionTime(at))).1
    }

    #[test]
    fn it_is_said_once_a_day_from_half_of_the_budget_on_and_when_it_will_not_do() {
        let (mut budget, usage) = (IdsBudget::default(), ids::Usage::default());
        let tight = ids::Usage {
            bytes: 50,
            bytes_max: 100,
            ..usage
        };
        let roomy = ids::Usage { bytes: 49, ..tight };
        assert_eq!(compare(&mut budget, roomy, 0), "");
        assert!(compare(&mut budget, tight, 0).contains("retention.id_bytes_max"));
        assert_eq!(compare(&mut budget, tight, INTERVAL_MICROS - 1), "");
        assert!(compare(&mut budget, tight, INTERVAL_MICROS).contains("WARN"));
        let full = ids::Usage {
            bytes_expected: 100,
            ..roomy
        };
        assert_eq!(compare(&mut IdsBudget::default(), full, 0), "");
        let growing = ids::Usage {
            bytes_expected: 101,
            ..roomy
        };
        assert!(compare(&mut IdsBudget::default(), growing, 0).contains("WARN"));
    }

    #[test]
    fn each_time_that_ids_are_forgotten_early_is_said() {
        let mut budget = IdsBudget::default();
        let mut usage = ids::Usage {
            bytes: 90,
            bytes_max: 100,
            ..ids::Usage::default()
        };
        for forgotten_early in [5, 12] {
            usage.forgotten_early = forgotten_early;
            let text = compare(&mut budget, usage, 0);
            assert!(text.contains("ERROR") && !text.contains("WARN"), "{text}");
            assert_eq!(compare(&mut budget, usage, 0), "");
        }
    }
}
