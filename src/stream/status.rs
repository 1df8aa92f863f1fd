//! Owns what a subscriber is told when a call fails: one list of failures, one map from them to
//! gRPC codes and reasons. Nobody else chooses a status.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::calls::NoSlot;
use crate::{
    credentials::{Ended, Forbidden, QuotaReached, Refusal},
    event::{Cursor, CursorError},
    filter,
    log::CursorFault,
};

/// The domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "prelude-bridge";

/// How many faults of a filter the details list. A filter can have over a thousand, but a status
/// travels in trailers, and clients take as little as 8 KiB of those.
const FAULTS_LISTED_MAX: usize = 32;
/// How many of them the message lists. It travels twice: by itself, and again in the details.
const FAULTS_IN_MESSAGE_MAX: usize = 8;

/// Why a call ends with another status than OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The filter has faults: all of them.
    Filter(Vec<filter::Fault>),
    /// Another field of the request is out of its bounds.
    Request {
        /// The field's path.
        field: &'static str,
        /// What is wrong, and what would be right.
        description: String,
    },
    /// There is no message in the request, or what is there is none.
    Message {
        /// What is wrong.
        description: String,
    },
    /// The message of the request did not come.
    MessageTimeout {
        /// How long was waited for it.
        waited: Duration,
    },
    /// There is no such RPC. Its name is the caller's, and stays with the caller.
    Rpc,
    /// A text in the request is no cursor.
    CursorMalformed {
        /// The field's path.
        field: &'static str,
        /// What is wrong with it.
        error: CursorError,
    },
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
    /// The caller is not let in.
    Credential(Refusal),
    /// What let the caller in does so no longer.
    CredentialEnded {
        /// Why.
        ended: Ended,
        /// The place to resume from, once the stream has one.
        cursor: Option<Cursor>,
    },
    /// The filter asks for more than the credential allows.
    Forbidden(Forbidden),
    /// The credential has as many streams as it may.
    Quota(QuotaReached),
    /// The server has as many streams as it may.
    Streams {
        /// The limit.
        streams_max: usize,
    },
    /// There is no slot for a call.
    NoSlot(NoSlot),
    /// The client read too little for too long.
    SlowConsumer {
        /// How long.
        waited: Duration,
        /// The place to resume from.
        cursor: Cursor,
    },
    /// The server is about to shut down.
    Draining {
        /// How long to wait before reconnecting.
        retry_after: Duration,
        /// The place to resume from, once the stream has one.
        cursor: Option<Cursor>,
    },
    /// The log cannot be read. The operator's log says why.
    LogUnavailable {
        /// The place to resume from, once the stream has one.
        cursor: Option<Cursor>,
    },
}

impl Failure {
    /// The reason in the `ErrorInfo`, also the label in logs and metrics.
    #[must_use]
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Filter(_) => "FILTER_INVALID",
            Self::Request { .. } | Self::Message { .. } => "REQUEST_INVALID",
            Self::MessageTimeout { .. } => "REQUEST_TIMEOUT",
            Self::Rpc => "RPC_UNKNOWN",
            Self::CursorMalformed { .. } => "CURSOR_MALFORMED",
            Self::CursorForeign { fault, .. } => match fault {
                CursorFault::OtherLog | CursorFault::OtherEpoch => "CURSOR_EPOCH_MISMATCH",
                CursorFault::Ahead { .. } => "CURSOR_AHEAD",
            },
            Self::CursorExpired { .. } => "CURSOR_EXPIRED",
            Self::Credential(refusal) => match refusal {
                Refusal::Missing
                | Refusal::Malformed
                | Refusal::Unknown
                | Refusal::UnknownCommonName
                | Refusal::Jwt(_) => "TOKEN_INVALID",
                Refusal::Expired => "TOKEN_EXPIRED",
                Refusal::Unavailable => "TOKEN_UNVERIFIABLE",
            },
            Self::CredentialEnded { ended, .. } => match ended {
                Ended::Revoked => "TOKEN_INVALID",
                Ended::Expired => "TOKEN_EXPIRED",
                Ended::Changed => "CREDENTIAL_CHANGED",
            },
            Self::Forbidden(Forbidden::Types(_)) => "TYPE_FORBIDDEN",
            Self::Forbidden(Forbidden::Apps(_)) => "APP_FORBIDDEN",
            Self::Streams { .. } | Self::NoSlot(_) | Self::Quota(_) => "LIMIT_STREAMS",
            Self::SlowConsumer { .. } => "SLOW_CONSUMER",
            Self::Draining { .. } => "DRAINING",
            Self::LogUnavailable { .. } => "LOG_UNAVAILABLE",
        }
    }

    /// The gRPC code.
    #[must_use]
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Filter(_)
            | Self::Request { .. }
            | Self::Message { .. }
            | Self::CursorMalformed { .. } => Code::InvalidArgument,
            Self::MessageTimeout { .. } => Code::DeadlineExceeded,
            Self::Rpc => Code::Unimplemented,
            Self::CursorForeign { .. } => Code::FailedPrecondition,
            Self::CursorExpired { .. } => Code::OutOfRange,
            Self::Credential(refusal) => match refusal {
                Refusal::Missing
                | Refusal::Malformed
                | Refusal::Unknown
                | Refusal::UnknownCommonName
                | Refusal::Jwt(_)
                | Refusal::Expired => Code::Unauthenticated,
                Refusal::Unavailable => Code::Unavailable,
            },
            Self::CredentialEnded { ended, .. } => match ended {
                Ended::Revoked | Ended::Expired => Code::Unauthenticated,
                // Nothing is wrong with the credential: clients come back by themselves.
                Ended::Changed => Code::Unavailable,
            },
            Self::Forbidden(_) => Code::PermissionDenied,
            Self::Streams { .. } | Self::NoSlot(_) | Self::Quota(_) | Self::SlowConsumer { .. } => {
                Code::ResourceExhausted
            }
            Self::Draining { .. } | Self::LogUnavailable { .. } => Code::Unavailable,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Filter(faults) => {
                let listed = faults.iter().take(FAULTS_IN_MESSAGE_MAX);
                let listed: Vec<String> = listed.map(ToString::to_string).collect();
                let more = match faults.len().saturating_sub(FAULTS_IN_MESSAGE_MAX) {
                    0 => String::new(),
                    more => format!("; and {more} more"),
                };
                format!("the filter is not valid: {}{more}", listed.join("; "))
            }
            Self::Request { field, description } => format!("{field}: {description}"),
            Self::Message { description } => format!("the request cannot be read: {description}"),
            Self::MessageTimeout { waited } => {
                format!("the request did not come within {} s", waited.as_secs())
            }
            Self::Rpc => "there is no such RPC: ask the reflection service what there is".into(),
            Self::CursorMalformed { field, error } => format!("{field}: {error}"),
            Self::CursorForeign { field, fault, .. } => format!(
                "{field}: {fault}; start from earliest, or from a time that is safely processed"
            ),
            Self::CursorExpired { earliest, head } => format!(
                "retention has removed events after this cursor; events {} to {} are still there: \
                 start from earliest, or set on_expired",
                earliest.sequence.plus(1),
                head.sequence,
            ),
            Self::Credential(refusal) => refusal.to_string(),
            Self::CredentialEnded { ended, .. } => ended.to_string(),
            Self::Forbidden(forbidden) => forbidden.to_string(),
            Self::Quota(reached) => reached.to_string(),
            Self::Streams { streams_max } => {
                format!("the server has its maximum of {streams_max} streams; retry later")
            }
            Self::NoSlot(why) => why.to_string(),
            Self::SlowConsumer { waited, .. } => format!(
                "the client read too little for {} s; resume from the cursor in the metadata",
                waited.as_secs()
            ),
            Self::Draining { .. } => {
                "the server is shutting down; resume elsewhere or later".into()
            }
            Self::LogUnavailable { .. } => "the log cannot be read now; retry later".into(),
        }
    }

    fn metadata(&self) -> HashMap<String, String> {
        let cursors = match self {
            Self::CursorExpired { earliest, head } => {
                vec![("earliest", *earliest), ("head", *head)]
            }
            Self::CursorForeign { head, .. } => vec![("head", *head)],
            Self::SlowConsumer { cursor, .. } => vec![("cursor", *cursor)],
            Self::Draining { cursor, .. }
            | Self::LogUnavailable { cursor }
            | Self::CredentialEnded { cursor, .. } => {
                cursor.iter().map(|&cursor| ("cursor", cursor)).collect()
            }
            Self::Filter(_)
            | Self::Request { .. }
            | Self::Message { .. }
            | Self::MessageTimeout { .. }
            | Self::Rpc
            | Self::CursorMalformed { .. }
            | Self::Credential(_)
            | Self::Forbidden(_)
            | Self::Quota(_)
            | Self::NoSlot(_)
            | Self::Streams { .. } => Vec::new(),
        };
        cursors
            .into_iter()
            .map(|(key, cursor)| (key.into(), cursor.to_string()))
            .collect()
    }

    fn violations(&self) -> Vec<FieldViolation> {
        match self {
            Self::Filter(faults) => {
                let listed = faults.iter().take(FAULTS_LISTED_MAX);
                let more = faults.len().saturating_sub(FAULTS_LISTED_MAX);
                let more = (more > 0)
                    .then(|| FieldViolation::new("filter", format!("has {more} more faults")));
                listed
                    .map(|fault| FieldViolation::new(fault.field.as_str(), fault.problem))
                    .chain(more)
                    .collect()
            }
            Self::Request { field, description } => vec![FieldViolation::new(*field, description)],
            Self::CursorMalformed { field, error } => {
                vec![FieldViolation::new(*field, error.to_string())]
            }
            Self::Forbidden(forbidden) => {
                let field = match forbidden {
                    Forbidden::Types(_) => "filter.types",
                    Forbidden::Apps(_) => "filter.app_ids",
                };
                vec![FieldViolation::new(field, forbidden.to_string())]
            }
            Self::Message { .. }
            | Self::MessageTimeout { .. }
            | Self::Rpc
            | Self::CursorForeign { .. }
            | Self::CursorExpired { .. }
            | Self::Credential(_)
            | Self::CredentialEnded { .. }
            | Self::Quota(_)
            | Self::Streams { .. }
            | Self::NoSlot(_)
            | Self::SlowConsumer { .. }
            | Self::Draining { .. }
            | Self::LogUnavailable { .. } => Vec::new(),
        }
    }

    /// How long a client should wait, where waiting helps.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Draining { retry_after, .. } => Some(*retry_after),
            Self::LogUnavailable { .. } => Some(Duration::from_secs(5)),
            Self::Credential(Refusal::Unavailable) => Some(Duration::from_secs(5)),
            Self::Streams { .. } | Self::NoSlot(_) => Some(Duration::from_secs(1)),
            Self::CredentialEnded {
                ended: Ended::Changed,
                ..
            } => Some(Duration::ZERO),
            Self::Filter(_)
            | Self::Request { .. }
            | Self::Message { .. }
            | Self::MessageTimeout { .. }
            | Self::Rpc
            | Self::CursorMalformed { .. }
            | Self::CursorForeign { .. }
            | Self::CursorExpired { .. }
            | Self::Credential(
                Refusal::Missing
                | Refusal::Malformed
                | Refusal::Unknown
                | Refusal::UnknownCommonName
                | Refusal::Jwt(_)
                | Refusal::Expired,
            )
            | Self::CredentialEnded {
                ended: Ended::Revoked | Ended::Expired,
                ..
            }
            | Self::Forbidden(_)
            | Self::Quota(_)
            | Self::SlowConsumer { .. } => None,
        }
    }
}

impl From<&Failure> for Status {
    fn from(failure: &Failure) -> Self {
        let mut details =
            ErrorDetails::with_error_info(failure.reason(), DOMAIN, failure.metadata());
        let violations = failure.violations();
        if !violations.is_empty() {
            details.set_bad_request(violations);
        }
        if let Some(delay) = failure.retry_after() {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(failure.code(), failure.message(), details)
    }
}

/// The trailers that end a gRPC stream.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails only for a message that no header can carry, and that is percent-encoded before.
    let _ = status.add_header(&mut trailers);
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Epoch, LogId, Sequence};

    fn cursor(sequence: u64) -> Cursor {
        Cursor {
            log: LogId(1),
            epoch: Epoch(2),
            sequence: Sequence(sequence),
        }
    }

    #[test]
    fn an_expired_cursor_names_what_is_still_there() {
        let failure = Failure::CursorExpired {
            earliest: cursor(4),
            head: cursor(9),
        };
        let status = Status::from(&failure);
        assert_eq!(status.code(), Code::OutOfRange);
        assert!(
            status.message().contains("events 5 to 9"),
            "{}",
            status.message()
        );
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("CURSOR_EXPIRED", DOMAIN)
        );
        assert_eq!(info.metadata["earliest"], cursor(4).to_string());
        assert_eq!(info.metadata["head"], cursor(9).to_string());
    }

    #[test]
    fn the_worst_of_filters_is_told_within_what_clients_take() {
        // The longest field name with the longest problem, in every place, and too many entries.
        let entries = vec!["**.x".to_owned(); filter::ENTRIES_MAX + 1];
        let spec = filter::Spec {
            types: entries.clone(),
            exclude_types: entries,
            app_ids: vec!["x".repeat(300); filter::ENTRIES_MAX + 1],
            user_ids: vec![String::new(); filter::ENTRIES_MAX + 1],
        };
        let mut faults = filter::Filter::compile(&spec).unwrap_err();
        assert_eq!(faults.len(), 4 * (filter::ENTRIES_MAX + 1));
        faults.sort_by_key(|fault| std::cmp::Reverse(fault.to_string().len()));
        let status = Status::from(&Failure::Filter(faults));

        let message = status.message();
        assert!(message.ends_with("; and 1020 more"), "{message}");
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations.len(), FAULTS_LISTED_MAX + 1);
        let last = violations.last().unwrap();
        assert_eq!(
            (last.field.as_str(), last.description.as_str()),
            ("filter", "has 996 more faults")
        );
        let response = status.into_http::<()>();
        let bytes = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            // As HTTP/2 counts a list of headers: RFC 9113, section 6.5.2.
            name.as_str().len() + value.len() + 32
        };
        let trailer_bytes: usize = response.headers().iter().map(bytes).sum();
        assert!(trailer_bytes < 8 * 1024, "{trailer_bytes}");
    }

    #[test]
    fn a_few_faults_are_all_told() {
        let spec = filter::Spec {
            types: vec![String::new(); FAULTS_IN_MESSAGE_MAX],
            ..filter::Spec::default()
        };
        let faults = filter::Filter::compile(&spec).unwrap_err();
        let status = Status::from(&Failure::Filter(faults));
        assert!(!status.message().contains("more"), "{}", status.message());
        let details = status.get_error_details();
        let listed = details.bad_request().unwrap().field_violations.len();
        assert_eq!(listed, FAULTS_IN_MESSAGE_MAX);
    }

    #[test]
    fn a_slow_consumer_is_given_its_cursor() {
        let failure = Failure::SlowConsumer {
            waited: Duration::from_secs(60),
            cursor: cursor(7),
        };
        let details = Status::from(&failure).get_error_details();
        assert_eq!(
            details.error_info().unwrap().metadata["cursor"],
            cursor(7).to_string()
        );
    }
}
