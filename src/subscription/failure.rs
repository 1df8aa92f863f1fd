//! Owns why a subscription does not begin, or ends before its client wanted it to, each with the
//! word that logs, metrics and statuses have for it. Knows no statuses.

use std::time::Duration;

use crate::{
    credentials::{Ended, QuotaReached},
    event::Cursor,
    log::{CursorFault, Damaged},
};

/// Why a stream ends, or does not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A cursor in the request does not belong to this log.
    CursorForeign {
        /// The field's path.
        field: &'static str,
        /// Why not.
        fault: CursorFault,
        /// Where the log ends.
        head: Cursor,
    },
    /// Retention has removed events after the place to continue from.
    CursorExpired {
        /// The cursor before the oldest event that is left.
        earliest: Cursor,
        /// The cursor of the newest event.
        head: Cursor,
    },
    /// The events after the place are damaged.
    LogDamaged {
        /// Which events.
        damaged: Damaged,
        /// The place to resume from, before them (or among them, where the stream started there).
        cursor: Cursor,
        /// The place after them.
        after: Cursor,
    },
    /// The credential that admitted the caller is no longer valid.
    CredentialEnded {
        /// Why.
        ended: Ended,
        /// The place to resume from, once the stream has one.
        cursor: Option<Cursor>,
    },
    /// The credential has as many streams as it may.
    Quota(QuotaReached),
    /// The server has as many streams as it may.
    Streams {
        /// The limit.
        streams_max: usize,
    },
    /// The client read too little for too long.
    SlowConsumer {
        /// How long.
        waited: Duration,
        /// The place to resume from.
        cursor: Cursor,
    },
    /// The time that the client gave the call is over.
    DeadlineExceeded {
        /// The place to resume from, once the stream has one.
        cursor: Option<Cursor>,
    },
    /// The server is about to shut down.
    Draining {
        /// How long to wait before reconnecting.
        retry_after: Duration,
        /// The place to resume from, once the stream has one.
        cursor: Option<Cursor>,
    },
    /// The stream has reached the age at which its client is to reconnect, perhaps to another bridge.
    Aged {
        /// The place to resume from.
        cursor: Option<Cursor>,
    },
    /// The log cannot be read. The operator's log says why.
    LogUnavailable {
        /// The place to resume from, once the stream has one.
        cursor: Option<Cursor>,
    },
}

impl Failure {
    /// The reason's name in statuses.
    #[must_use]
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::CursorForeign { fault, .. } => match fault {
                CursorFault::OtherLog | CursorFault::OtherEpoch => "CURSOR_EPOCH_MISMATCH",
                CursorFault::Ahead { .. } => "CURSOR_AHEAD",
            },
            Self::CursorExpired { .. } => "CURSOR_EXPIRED",
            Self::CredentialEnded { ended, .. } => match ended {
                Ended::Revoked => "TOKEN_INVALID",
                Ended::Expired => "TOKEN_EXPIRED",
                Ended::Changed => "CREDENTIAL_CHANGED",
            },
            Self::Quota(_) | Self::Streams { .. } => "LIMIT_STREAMS",
            Self::SlowConsumer { .. } => "SLOW_CONSUMER",
            Self::DeadlineExceeded { .. } => "DEADLINE_EXCEEDED",
            // To the client it is the same: it goes on elsewhere.
            Self::Draining { .. } | Self::Aged { .. } => "DRAINING",
            Self::LogUnavailable { .. } => "LOG_UNAVAILABLE",
            Self::LogDamaged { .. } => "LOG_DAMAGED",
        }
    }

    /// The reason's name in logs and metrics, where an operator can tell a drain of the bridge from the age of
    /// a stream.
    #[must_use]
    pub(crate) fn counted_reason(&self) -> &'static str {
        match self {
            Self::Aged { .. } => "STREAM_AGE",
            _ => self.reason(),
        }
    }

    /// How long the client of a stream that drains is to wait before it reconnects. Streams reach their ages at
    /// different times, so there is no need to spread their clients any further.
    #[must_use]
    pub(crate) fn drain_retry_after(&self) -> Option<Duration> {
        match self {
            Self::Draining { retry_after, .. } => Some(*retry_after),
            Self::Aged { .. } | Self::LogUnavailable { .. } => Some(Duration::ZERO),
            _ => None,
        }
    }
}
