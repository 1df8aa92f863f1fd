//! Owns what a valid request for events asks for. Pure; knows nothing of the state of the log, nor of
//! how the request came.

use std::time::Duration;

use crate::{
    event::{Cursor, UnixMicros},
    filter::Filter,
    log::Format,
};

/// A valid request.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Which events.
    pub(crate) filter: Filter,
    /// Where to start.
    pub(crate) start: StartAt,
    /// Where to stop.
    pub(crate) stop: StopAt,
    /// After how many events to stop, if at all.
    pub(crate) events_max: Option<u64>,
    /// What to do when retention has passed the place.
    pub(crate) on_expired: OnExpired,
    /// What to do when the next events are damaged.
    pub(crate) on_damaged: OnDamaged,
    /// Which form of the content.
    pub(crate) format: Format,
    /// How often to send progress.
    pub(crate) progress_interval: Duration,
    /// What the client calls itself. It may be anything; [`plain::name`](crate::plain::name) says
    /// whether it is shown.
    pub(crate) client_name: String,
}

/// Where a stream starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartAt {
    /// At the live end.
    Latest,
    /// At the oldest event.
    Earliest,
    /// After a cursor.
    After(Cursor),
    /// At the first event received at or after a time.
    Time(UnixMicros),
}

/// Where a stream stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopAt {
    /// Nowhere.
    Never,
    /// At the newest event as of the start.
    Head,
    /// At the event of a cursor, inclusive.
    Cursor(Cursor),
    /// Before the first event received at or after a time.
    Time(UnixMicros),
}

/// What to do when retention has passed the place to continue from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnExpired {
    /// End the stream.
    Fail,
    /// Go on with the oldest event.
    Earliest,
    /// Go on at the live end.
    Latest,
}

/// What to do when the next events of the log are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDamaged {
    /// End the stream.
    Fail,
    /// Go on with the event after them.
    Skip,
}
