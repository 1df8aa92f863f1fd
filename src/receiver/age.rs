//! Owns how old a verified batch may be. Its signature has no time in it, so anybody who has a copy of
//! a delivery can send it again for as long as the key is in use, and the log recognises it only while
//! it remembers the ids. A batch counts as old when every date in it lies further back than that: the
//! sender has given up by then (two weeks), so it is a copy, or something that the operator expects,
//! such as an import. One recent date shows that the batch was signed recently. A log that
//! has forgotten no id recognises every copy of what it ever had, whatever its dates. And an old batch of which
//! the log still remembers every id is a repetition: it is answered as one, and adds nothing.
//!
//! A wrong clock must not refuse what is genuine: the times are those of the log, which ignores jumps
//! ([`Log::now`](crate::log::Log::now), [`Log::earliest_now`](crate::log::Log::earliest_now)).

use std::{net::SocketAddr, time::Duration};

use super::{
    App, Shared,
    error::{Error, Micros},
};
use crate::{
    event::{Batch, Dates, UnixMicros},
    log::{Appended, EarliestNow},
    metrics::Metrics,
    net::quiet::Admitted,
};

/// How old the newest event of a batch may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgeLimit {
    /// As long as ids are remembered.
    pub age_max: Duration,
    /// Whether older batches are accepted.
    pub is_lifted: bool,
}

/// A date may be this far ahead of the clock. More is logged, because no two clocks that are set differ by a
/// day.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a batch may not be what it seems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// It is too old, and refused.
    Refused,
    /// It is too old, and accepted because the operator says so.
    Old,
    /// It is too old, but the log has not forgotten any id: what is new in it, is new to the log.
    NewLog,
    /// It is too old by the clock, of which it is not yet certain that it is right.
    Clock,
    /// It has no date that can be read.
    Undated,
    /// Its newest date is in the future.
    Future,
    /// An event in it is too old, and another one is not.
    Mixed,
    /// The app is new to a log that was empty: no id of it is known.
    FirstOfApp,
}

impl Doubt {
    const ALL: [Self; 8] = [
        Self::Refused,
        Self::Old,
        Self::NewLog,
        Self::Clock,
        Self::Undated,
        Self::Future,
        Self::Mixed,
        Self::FirstOfApp,
    ];

    /// The word that it is counted under.
    fn reason(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Old => "old",
            Self::NewLog => "new_log",
            Self::Clock => "clock",
            Self::Undated => "undated",
            Self::Future => "future",
            Self::Mixed => "mixed",
            Self::FirstOfApp => "first_of_app",
        }
    }

    /// What the log line says.
    fn message(self) -> &'static str {
        match self {
            Self::Refused => "old batch refused",
            Self::Old => "old batch accepted, because `old_events` is \"accept\"",
            Self::NewLog => {
                "old batch accepted, because this log has forgotten no id: its new events may be copies of \
                 what another bridge received"
            }
            Self::Clock => {
                "a batch is old by this machine's clock, and accepted because that clock was set, or \
                 the machine was rebooted, less than a day ago. Check the clock"
            }
            Self::Undated => "a batch without a date accepted: its age cannot be checked",
            Self::Future => {
                "a batch accepted that is dated a day or more in the future. Check the clock"
            }
            Self::Mixed => "a recent batch accepted in which an event is old",
            Self::FirstOfApp => {
                "the first batch of this app in a log that was empty: repetitions of what was \
                 delivered before, to another bridge or before a loss of the data directory, are not \
                 recognised"
            }
        }
    }
}

/// What is to be done with a batch, as its age says.
pub(super) enum Judged {
    /// Append it; and then what is doubtful about it, for [`note_accepted`](Shared::note_accepted).
    Append(Option<Doubt>),
    /// Answer that it was appended before: its sender may not have got the answer.
    Repetition(Appended),
}

/// What the dates of a batch with events say.
fn evaluate(
    dates: Dates,
    now: UnixMicros,
    earliest: EarliestNow,
    limit: AgeLimit,
    has_forgotten_ids: bool,
) -> Result<Option<Doubt>, Error> {
    let (Some(oldest), Some(newest)) = (dates.oldest, dates.newest) else {
        return Ok(Some(Doubt::Undated));
    };
    let is_old = |at, now| age(at, now) > micros(limit.age_max);
    let doubt = if age(newest, now) < -micros(AHEAD_MAX) {
        Doubt::Future
    } else if !is_old(newest, now) {
        if !is_old(oldest, now) {
            return Ok(None);
        }
        Doubt::Mixed
    } else if limit.is_lifted {
        Doubt::Old
    } else if !has_forgotten_ids {
        Doubt::NewLog
    } else if !is_old(newest, earliest.at) {
        Doubt::Clock
    } else {
        return Err(Error::TooOld {
            age: Micros(age(newest, now)),
            age_max: Micros(micros(limit.age_max)),
            is_clock_confirmed: earliest.is_confirmed,
        });
    };
    Ok(Some(doubt))
}

fn age(at: UnixMicros, now: UnixMicros) -> i64 {
    now.0.saturating_sub(at.0)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Makes the series of an app.
pub(super) fn register(metrics: &Metrics, app: &App) {
    for doubt in Doubt::ALL {
        metrics.doubtful_batches(&app.id, doubt.reason(), 0);
    }
}

impl Shared {
    /// Returns what is to be done with a batch, as its age says.
    pub(super) async fn check_age(&self, app: &App, batch: &Batch) -> Result<Judged, Error> {
        if batch.drafts.is_empty() {
            return Ok(Judged::Append(None));
        }
        let (now, earliest) = (self.log.now(), self.log.earliest_now());
        let (limit, has_forgotten_ids) = (self.options.age, self.log.has_forgotten_ids());
        let refusal = match evaluate(batch.dates, now, earliest, limit, has_forgotten_ids) {
            Ok(doubt) => return Ok(Judged::Append(doubt)),
            Err(refusal) => refusal,
        };
        // It is not appended: between the question and that an id could be forgotten.
        let keys = batch.drafts.iter().map(|draft| draft.key).collect();
        if self.log.remembers(keys).await? {
            return Ok(Judged::Repetition(Appended {
                accepted: 0,
                duplicates: batch.drafts.len(),
            }));
        }
        self.count(app, Doubt::Refused);
        Err(refusal)
    }

    /// Notes that events of a batch were appended: counts and logs what is doubtful about it.
    pub(super) fn note_accepted(
        &self,
        app: &App,
        dates: Dates,
        doubt: Option<Doubt>,
        peer: Option<SocketAddr>,
    ) {
        let first = self.is_first_of(app).then_some(Doubt::FirstOfApp);
        for doubt in doubt.into_iter().chain(first) {
            self.count(app, doubt);
            let Some(Admitted { unlogged }) = self.quiet.admit(doubt.reason()) else {
                continue;
            };
            let (reason, message) = (doubt.reason(), doubt.message());
            let peer = peer.map(tracing::field::display);
            let age = dates.newest.map(|at| Micros(age(at, self.log.now())));
            let age = age.map(tracing::field::display);
            let app = &*app.id;
            match doubt {
                Doubt::Undated => tracing::debug!(app, peer, reason, unlogged, "{message}"),
                Doubt::FirstOfApp => tracing::info!(app, peer, reason, age, unlogged, "{message}"),
                _ => tracing::warn!(app, peer, reason, age, unlogged, "{message}"),
            }
        }
    }

    fn count(&self, app: &App, doubt: Doubt) {
        self.metrics.doubtful_batches(&app.id, doubt.reason(), 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const DAY: i64 = 24 * 60 * 60 * SECOND;
    const NOW: UnixMicros = UnixMicros(1_780_000_000 * SECOND);
    const LIMIT: AgeLimit = AgeLimit {
        age_max: Duration::from_secs(15 * 24 * 60 * 60),
        is_lifted: false,
    };
    const CERTAIN: EarliestNow = EarliestNow {
        at: NOW,
        is_confirmed: true,
    };

    /// The dates of events that are so old.
    fn aged(ages: &[i64]) -> Dates {
        let mut dates = Dates::default();
        for age in ages {
            dates.add(UnixMicros(NOW.0 - age));
        }
        dates
    }

    fn doubt(ages: &[i64]) -> Option<Doubt> {
        evaluate(aged(ages), NOW, CERTAIN, LIMIT, true).unwrap()
    }

    fn refusal(ages: &[i64], earliest: EarliestNow) -> Error {
        evaluate(aged(ages), NOW, earliest, LIMIT, true).unwrap_err()
    }

    #[test]
    fn the_newest_date_of_a_batch_decides_to_the_microsecond() {
        for recent in [&[0][..], &[15 * DAY], &[14 * DAY, 15 * DAY], &[-DAY]] {
            assert_eq!(doubt(recent), None, "{recent:?}");
        }
        for old in [&[15 * DAY + 1][..], &[31 * DAY, 16 * DAY], &[NOW.0 + DAY]] {
            assert!(
                matches!(
                    refusal(old, CERTAIN),
                    Error::TooOld {
                        is_clock_confirmed: true,
                        ..
                    }
                ),
                "{old:?}"
            );
        }
        assert_eq!(doubt(&[15 * DAY + 1, 15 * DAY]), Some(Doubt::Mixed));
        assert_eq!(doubt(&[]), Some(Doubt::Undated));
        assert_eq!(doubt(&[-DAY - 1]), Some(Doubt::Future));
        assert_eq!(doubt(&[400 * DAY, i64::MIN / 2]), Some(Doubt::Future));
    }

    #[test]
    fn the_operator_accepts_what_is_old() {
        let limit = AgeLimit {
            is_lifted: true,
            ..LIMIT
        };
        for (ages, expected) in [
            (&[16 * DAY][..], Some(Doubt::Old)),
            (&[14 * DAY], None),
            (&[16 * DAY, 14 * DAY], Some(Doubt::Mixed)),
        ] {
            let found = evaluate(aged(ages), NOW, CERTAIN, limit, true).unwrap();
            assert_eq!(found, expected, "{ages:?}");
        }
    }

    #[test]
    fn a_log_that_never_forgot_anything_accepts_what_is_old() {
        for old in [15 * DAY + 1, 400 * DAY, NOW.0] {
            let check = |forgotten| evaluate(aged(&[old]), NOW, CERTAIN, LIMIT, forgotten);
            assert_eq!(check(false).unwrap(), Some(Doubt::NewLog), "{old}");
            assert!(check(true).is_err(), "{old}");
        }
    }

    #[test]
    fn a_clock_that_may_be_ahead_refuses_nothing() {
        // By the earliest possible time the batch is 15 days old, or a microsecond more.
        let earliest = |age: i64| EarliestNow {
            at: UnixMicros(NOW.0 - 30 * DAY + age),
            is_confirmed: true,
        };
        let check = |ahead| evaluate(aged(&[45 * DAY]), NOW, earliest(ahead), LIMIT, true);
        assert_eq!(check(0).unwrap(), Some(Doubt::Clock));
        assert!(check(1).is_err());
    }

    #[test]
    fn a_refusal_says_whether_it_may_be_the_clocks_fault() {
        let refusal = refusal(
            &[16 * DAY],
            EarliestNow {
                is_confirmed: false,
                ..CERTAIN
            },
        );
        let said = refusal.to_string();
        assert!(
            said.contains("16.0 days") && said.contains("clock"),
            "{said}"
        );
    }

    #[test]
    fn dates_beyond_all_reason_are_compared_without_overflow() {
        let dates = |at| Dates {
            oldest: Some(UnixMicros(at)),
            newest: Some(UnixMicros(at)),
        };
        let limit = AgeLimit {
            age_max: Duration::MAX,
            ..LIMIT
        };
        for at in [i64::MIN, i64::MAX] {
            for now in [i64::MIN, 0, i64::MAX] {
                let earliest = EarliestNow {
                    at: UnixMicros(now),
                    ..CERTAIN
                };
                let _ = evaluate(dates(at), UnixMicros(now), earliest, LIMIT, true);
                let found = evaluate(dates(at), UnixMicros(now), earliest, limit, true);
                assert!(found.is_ok(), "nothing is older than this limit");
            }
        }
    }
}
