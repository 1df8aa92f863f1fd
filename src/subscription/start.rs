//! Owns where a stream starts: the place that its plan names, what retention has left of it, and what
//! the client is told of that.

use std::collections::VecDeque;

use super::{
    Subscriptions,
    failure::Failure,
    notice,
    plan::{OnExpired, Plan, StartAt, StopAt},
};
use crate::{
    event::{Cursor, Sequence, UnixMicros},
    log::{self, ReadError},
    proto::SkipReason,
};

/// Which part of the log the subscription is about.
pub(super) struct Bounds {
    /// The last event that may be delivered.
    pub(super) last: Sequence,
    /// Events received before this are not delivered. `None` once they are all behind the position.
    pub(super) not_before: Option<UnixMicros>,
    pub(super) before: Option<UnixMicros>,
    pub(super) events_left: u64,
}

/// Where a stream starts, and what its client is told first.
pub(super) struct Start {
    pub(super) position: Sequence,
    pub(super) bounds: Bounds,
    pub(super) notices: VecDeque<Vec<u8>>,
}

impl Start {
    pub(super) async fn find(subscriptions: &Subscriptions, plan: &Plan) -> Result<Self, Failure> {
        let range = known_range(subscriptions, plan).await?;
        let mut not_before = None;
        let mut before = None;
        let wanted = match plan.start {
            StartAt::Latest => range.head,
            StartAt::Earliest => range.earliest.before(),
            StartAt::After(cursor) => {
                not_before = cursor.not_before;
                subscriptions.check("start.after_cursor", cursor, not_before, &range)?
            }
            StartAt::Time(at) => {
                let has_come = range.head_at.is_some_and(|head_at| head_at >= at)
                    || subscriptions.settles_within(at).is_zero();
                match subscriptions.log.seek(at).await {
                    Ok(place) => {
                        not_before = (!has_come).then_some(at);
                        place
                    }
                    // The first event of that time may be one of the damaged ones, or come after them.
                    Err(ReadError::Damaged(damaged)) => {
                        not_before = Some(at);
                        damaged.first.before()
                    }
                    Err(error) => return Err(Subscriptions::unreadable(&error, None)),
                }
            }
        };
        let last = match plan.stop {
            StopAt::Never => Sequence(u64::MAX),
            StopAt::Head => range.head,
            StopAt::Cursor(cursor) => {
                subscriptions.check("stop.at_cursor", cursor, not_before, &range)?
            }
            StopAt::Time(at) => {
                before = Some(at);
                Sequence(u64::MAX)
            }
        };
        let mut notices = VecDeque::new();
        let position = if range.reaches(wanted) {
            wanted
        } else {
            let after = (wanted, not_before);
            let (position, notice) = skip(subscriptions, &range, after, plan.on_expired)?;
            notices.push_back(notice);
            position
        };
        let epochs = subscriptions.log.status().epochs();
        notices.push_front(notice::started(&epochs, &plan.filter, &range, position));
        let events_left = plan.events_max.unwrap_or(u64::MAX);
        let bounds = Bounds {
            last,
            not_before,
            before,
            events_left,
        };
        Ok(Self {
            position,
            bounds,
            notices,
        })
    }
}

/// The ends of the log, which are those that the plan's cursors have seen: they may come from another bridge,
/// which knew more a moment ago.
async fn known_range(subscriptions: &Subscriptions, plan: &Plan) -> Result<log::Range, Failure> {
    let status = subscriptions.log.status();
    if status.health().is_behind() {
        return Err(Failure::LogUnavailable { cursor: None });
    }
    let range = subscriptions.range();
    let start = match plan.start {
        StartAt::After(cursor) => Some(cursor),
        _ => None,
    };
    let stop = match plan.stop {
        StopAt::Cursor(cursor) => Some(cursor),
        _ => None,
    };
    let log = status.epochs().log();
    let is_ahead = |cursor: &Cursor| cursor.log == log && cursor.sequence > range.head;
    if !start.iter().chain(&stop).any(is_ahead) {
        return Ok(range);
    }
    let caught_up = subscriptions.log.catch_up().await;
    caught_up.map_err(|error| Subscriptions::unreadable(&error, None))?;
    Ok(subscriptions.range())
}

/// Decides where to go on when retention has passed a place, with the time that its cursor has.
pub(super) fn skip(
    subscriptions: &Subscriptions,
    range: &log::Range,
    (after, not_before): (Sequence, Option<UnixMicros>),
    on_expired: OnExpired,
) -> Result<(Sequence, Vec<u8>), Failure> {
    let position = match on_expired {
        OnExpired::Fail => return Err(expired(subscriptions, range, not_before)),
        OnExpired::Earliest => range.earliest.before(),
        OnExpired::Latest => range.head,
    };
    let notice = notice::skipped(after.plus(1), position, SkipReason::Expired);
    Ok((position, notice))
}

/// What to answer when retention has passed a place. Whoever goes on from the answer's cursors still does
/// not want what was received before the time.
pub(super) fn expired(
    subscriptions: &Subscriptions,
    range: &log::Range,
    not_before: Option<UnixMicros>,
) -> Failure {
    let epochs = subscriptions.log.status().epochs();
    let cursor = |sequence| Cursor {
        not_before,
        ..epochs.cursor(sequence)
    };
    Failure::CursorExpired {
        earliest: cursor(range.earliest.before()),
        head: cursor(range.head),
    }
}
