//! Owns what a subscriber is told when a call fails: one list of failures, one map from them to
//! gRPC codes and reasons. Nobody else chooses a status.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    credentials::{Ended, Forbidden, Refusal},
    event::CursorError,
    filter,
    http2::NoSlot,
    subscription::Failure as Stream,
};

/// The domain of every `google.rpc.ErrorInfo`.
const DOMAIN: &str = "prelude-bridge";

/// The encodings that requests may have, as the header `grpc-accept-encoding` lists them.
pub(super) const ACCEPTED_ENCODINGS: &str = "identity,gzip";

/// How many faults of a filter the details list. A filter can have over a thousand, but a status
/// travels in trailers, and clients take as little as 8 KiB of those.
const FAULTS_LISTED_MAX: usize = 32;
/// How many of them the message lists. It travels twice: by itself, and again in the details.
const FAULTS_IN_MESSAGE_MAX: usize = 8;

/// How long a client should wait after `LOG_UNAVAILABLE`. Behind a load balancer another bridge can serve it at
/// once, and a stream whose bridge is cut off should go on within a second. Clients add a backoff with jitter,
/// which grows while they come to the same bridge again, so this has only to slow down those without one: to
/// four attempts a second.
const LOG_RETRY_AFTER: Duration = Duration::from_millis(250);

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
    /// What is in the request is no message.
    Message {
        /// What is wrong.
        description: String,
    },
    /// A message of the request is too large, perhaps only when it is decompressed.
    MessageTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// A message is not compressed as the request says.
    Compression {
        /// What is wrong.
        description: &'static str,
    },
    /// There has to be one message, and there is none or another one.
    Cardinality {
        /// Whether it is the first one.
        is_missing: bool,
    },
    /// The request is in a format or an encoding that this server does not read.
    Unsupported {
        /// The header that says so.
        header: &'static str,
        /// The values that it may have.
        supported: &'static str,
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
    /// The caller is not let in.
    Credential(Refusal),
    /// The filter asks for more than the credential allows.
    Forbidden(Forbidden),
    /// There is no slot for a call.
    NoSlot(NoSlot),
    /// A stream does not begin, or has ended.
    Stream(Stream),
}

impl From<Stream> for Failure {
    fn from(failure: Stream) -> Self {
        Self::Stream(failure)
    }
}

impl Failure {
    /// The reason in the `ErrorInfo`, also the label in logs and metrics.
    #[must_use]
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Filter(_) => "FILTER_INVALID",
            Self::Request { .. } | Self::Message { .. } => "REQUEST_INVALID",
            Self::MessageTooLarge { .. } => "REQUEST_TOO_LARGE",
            Self::Compression { .. } => "COMPRESSION_INVALID",
            Self::Cardinality { .. } => "MESSAGE_COUNT_INVALID",
            Self::Unsupported { .. } => "ENCODING_UNSUPPORTED",
            Self::MessageTimeout { .. } => "REQUEST_TIMEOUT",
            Self::Rpc => "RPC_UNKNOWN",
            Self::CursorMalformed { .. } => "CURSOR_MALFORMED",
            Self::Credential(refusal) => match refusal {
                Refusal::Missing
                | Refusal::Malformed
                | Refusal::Unknown
                | Refusal::UnknownCommonName
                | Refusal::Jwt(_) => "TOKEN_INVALID",
                Refusal::Expired => "TOKEN_EXPIRED",
                Refusal::Unavailable | Refusal::Throttled => "TOKEN_UNVERIFIABLE",
            },
            Self::Forbidden(Forbidden::Types(_)) => "TYPE_FORBIDDEN",
            Self::Forbidden(Forbidden::Apps(_)) => "APP_FORBIDDEN",
            Self::NoSlot(_) => "LIMIT_STREAMS",
            Self::Stream(failure) => failure.reason(),
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
            // These are the codes that gRPC itself has for them:
            // <https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>, and for the flag
            // <https://github.com/grpc/grpc/blob/master/doc/compression.md>.
            Self::MessageTooLarge { .. } => Code::ResourceExhausted,
            Self::Compression { .. } => Code::Internal,
            Self::Cardinality { .. } | Self::Unsupported { .. } | Self::Rpc => Code::Unimplemented,
            Self::MessageTimeout { .. } => Code::DeadlineExceeded,
            Self::Credential(refusal) => match refusal {
                Refusal::Missing
                | Refusal::Malformed
                | Refusal::Unknown
                | Refusal::UnknownCommonName
                | Refusal::Jwt(_)
                | Refusal::Expired => Code::Unauthenticated,
                Refusal::Unavailable | Refusal::Throttled => Code::Unavailable,
            },
            Self::Forbidden(_) => Code::PermissionDenied,
            Self::NoSlot(_) => Code::ResourceExhausted,
            Self::Stream(failure) => stream_code(failure),
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
            Self::MessageTooLarge { bytes_max } => {
                format!("a message of the request has more than {bytes_max} bytes")
            }
            Self::Compression { description } => (*description).to_owned(),
            Self::Cardinality { is_missing: true } => "the request has no message".to_owned(),
            Self::Cardinality { is_missing: false } => {
                "the request has more than one message".to_owned()
            }
            Self::Unsupported { header, supported } => {
                format!("the {header} of the request is not supported; these are: {supported}")
            }
            Self::MessageTimeout { waited } => {
                format!("the request did not come within {} s", waited.as_secs())
            }
            Self::Rpc => "there is no such RPC: ask the reflection service what there is".into(),
            Self::CursorMalformed { field, error } => format!("{field}: {error}"),
            Self::Credential(refusal) => refusal.to_string(),
            Self::Forbidden(forbidden) => forbidden.to_string(),
            Self::NoSlot(why) => why.to_string(),
            Self::Stream(failure) => stream_message(failure),
        }
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
            | Self::MessageTooLarge { .. }
            | Self::Compression { .. }
            | Self::Cardinality { .. }
            | Self::Unsupported { .. }
            | Self::MessageTimeout { .. }
            | Self::Rpc
            | Self::Credential(_)
            | Self::NoSlot(_)
            | Self::Stream(_) => Vec::new(),
        }
    }

    /// How long a client should wait, in addition to its own backoff, if the same call can succeed then.
    /// Clients resume after an error of the bridge if, and only if, it has this.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Credential(Refusal::Unavailable | Refusal::Throttled) => {
                Some(Duration::from_secs(5))
            }
            Self::NoSlot(_) => Some(Duration::from_secs(1)),
            Self::MessageTimeout { .. } => Some(Duration::ZERO),
            Self::Stream(failure) => stream_retry_after(failure),
            Self::Filter(_)
            | Self::Request { .. }
            | Self::Message { .. }
            | Self::MessageTooLarge { .. }
            | Self::Compression { .. }
            | Self::Cardinality { .. }
            | Self::Unsupported { .. }
            | Self::Rpc
            | Self::CursorMalformed { .. }
            | Self::Credential(
                Refusal::Missing
                | Refusal::Malformed
                | Refusal::Unknown
                | Refusal::UnknownCommonName
                | Refusal::Jwt(_)
                | Refusal::Expired,
            )
            | Self::Forbidden(_) => None,
        }
    }
}

fn stream_code(failure: &Stream) -> Code {
    match failure {
        Stream::CursorForeign { .. } => Code::FailedPrecondition,
        Stream::CursorExpired { .. } => Code::OutOfRange,
        Stream::CredentialEnded { ended, .. } => match ended {
            Ended::Revoked | Ended::Expired => Code::Unauthenticated,
            // Nothing is wrong with the credential: clients come back by themselves.
            Ended::Changed => Code::Unavailable,
        },
        Stream::Streams { .. } | Stream::Quota(_) | Stream::SlowConsumer { .. } => {
            Code::ResourceExhausted
        }
        Stream::Draining { .. } | Stream::Aged { .. } | Stream::LogUnavailable { .. } => {
            Code::Unavailable
        }
        Stream::DeadlineExceeded { .. } => Code::DeadlineExceeded,
        Stream::LogDamaged { .. } => Code::DataLoss,
    }
}

fn stream_message(failure: &Stream) -> String {
    match failure {
        Stream::CursorForeign { field, fault, .. } => format!(
            "{field}: {fault}; start from earliest, or from a time that is safely processed"
        ),
        Stream::CursorExpired { earliest, head } => format!(
            "retention has removed events after this cursor; events {} to {} are still there: \
             start from earliest, or set on_expired",
            earliest.sequence.plus(1),
            head.sequence,
        ),
        Stream::CredentialEnded { ended, .. } => ended.to_string(),
        Stream::Quota(reached) => reached.to_string(),
        Stream::Streams { streams_max } => {
            format!("the server has its maximum of {streams_max} streams; retry later")
        }
        Stream::SlowConsumer { waited, .. } => format!(
            "the client read too little for {} s; resume from the cursor in the metadata",
            waited.as_secs()
        ),
        Stream::DeadlineExceeded { .. } => "the deadline of the call has passed".into(),
        Stream::Draining { .. } => "the server is shutting down; resume elsewhere or later".into(),
        Stream::Aged { .. } => {
            "the stream has reached its maximum age; reconnect, and resume from the cursor in the metadata"
                .into()
        }
        Stream::LogUnavailable { .. } => "the log cannot be read now; retry later".into(),
        Stream::LogDamaged { damaged, .. } => format!(
            "{damaged} cannot be read, because bytes on the bridge's disk are damaged; a retry does \
             not help: ask the operator to restore them, or continue after the damage from the \
             metadata's after_cursor or with on_damaged"
        ),
    }
}

/// The cursors that a client may go on with, and the events that it would go past.
fn stream_metadata(failure: &Stream) -> HashMap<String, String> {
    let mut metadata = HashMap::new();
    let cursors = match failure {
        Stream::LogDamaged {
            damaged,
            cursor,
            after,
        } => {
            metadata.insert("first_sequence".into(), damaged.first.to_string());
            metadata.insert("last_sequence".into(), damaged.last.to_string());
            vec![("cursor", *cursor), ("after_cursor", *after)]
        }
        Stream::CursorExpired { earliest, head } => {
            vec![("earliest", *earliest), ("head", *head)]
        }
        Stream::CursorForeign { head, .. } => vec![("head", *head)],
        Stream::SlowConsumer { cursor, .. } => vec![("cursor", *cursor)],
        Stream::Draining { cursor, .. }
        | Stream::Aged { cursor }
        | Stream::LogUnavailable { cursor }
        | Stream::DeadlineExceeded { cursor }
        | Stream::CredentialEnded { cursor, .. } => {
            cursor.iter().map(|&cursor| ("cursor", cursor)).collect()
        }
        Stream::Quota(_) | Stream::Streams { .. } => Vec::new(),
    };
    let cursors = cursors.into_iter();
    metadata.extend(cursors.map(|(key, cursor)| (key.into(), cursor.to_string())));
    metadata
}

fn stream_retry_after(failure: &Stream) -> Option<Duration> {
    match failure {
        Stream::Draining { .. } | Stream::Aged { .. } => failure.drain_retry_after(),
        Stream::LogUnavailable { .. } => Some(LOG_RETRY_AFTER),
        Stream::Streams { .. } | Stream::Quota(_) => Some(Duration::from_secs(1)),
        Stream::CredentialEnded { ended, .. } => match ended {
            Ended::Changed => Some(Duration::ZERO),
            Ended::Revoked | Ended::Expired => None,
        },
        Stream::DeadlineExceeded { .. } | Stream::SlowConsumer { .. } => Some(Duration::ZERO),
        Stream::CursorForeign { .. } | Stream::CursorExpired { .. } | Stream::LogDamaged { .. } => {
            None
        }
    }
}

impl From<&Failure> for Status {
    fn from(failure: &Failure) -> Self {
        let metadata = match failure {
            Failure::Stream(failure) => stream_metadata(failure),
            _ => HashMap::new(),
        };
        let mut details = ErrorDetails::with_error_info(failure.reason(), DOMAIN, metadata);
        let violations = failure.violations();
        if !violations.is_empty() {
            details.set_bad_request(violations);
        }
        if let Some(delay) = failure.retry_after() {
            details.set_retry_info(Some(delay));
        }
        let mut metadata = MetadataMap::new();
        if let Failure::Unsupported { .. } = failure {
            let accepted = MetadataValue::from_static(ACCEPTED_ENCODINGS);
            metadata.insert("grpc-accept-encoding", accepted);
        }
        let (code, message) = (failure.code(), failure.message());
        Self::with_error_details_and_metadata(code, message, details, metadata)
    }
}

/// The status that a stream ends with.
pub(super) fn ended(end: &Result<(), Stream>) -> Status {
    match end {
        Ok(()) => Status::ok(""),
        Err(failure) => Status::from(&Failure::Stream(failure.clone())),
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
    use crate::event::{Cursor, Epoch, LogId, Sequence};

    fn cursor(sequence: u64) -> Cursor {
        Cursor {
            log: LogId(1),
            epoch: Epoch(2),
            sequence: Sequence(sequence),
            not_before: None,
        }
    }

    #[test]
    fn an_expired_cursor_names_what_is_still_there() {
        let failure = Failure::Stream(Stream::CursorExpired {
            earliest: cursor(4),
            head: cursor(9),
        });
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

    /// The message of the case `special_status_message` in gRPC's interoperability tests, and more.
    #[test]
    fn a_message_in_trailers_is_percent_encoded() {
        for (message, encoded) in [
            (
                "\t\ntest with whitespace\r\nand Unicode BMP \u{263a} and non-BMP \u{1f608}\t\n",
                "%09%0Atest%20with%20whitespace%0D%0Aand%20Unicode%20BMP%20%E2%98%BA%20and%20non-BMP%20\
                 %F0%9F%98%88%09%0A",
            ),
            ("100%", "100%25"),
            ("\u{7f}\u{0}~!", "%7F%00~!"),
        ] {
            let trailers = trailers(&Status::internal(message));
            let sent = trailers["grpc-message"].to_str().unwrap();
            // A space may be encoded or not.
            assert_eq!(sent.replace(' ', "%20"), encoded);
            let read = Status::from_header_map(&trailers).unwrap();
            assert_eq!(read.message(), message);
        }
    }

    #[test]
    fn a_slow_consumer_is_given_its_cursor() {
        let failure = Failure::Stream(Stream::SlowConsumer {
            waited: Duration::from_secs(60),
            cursor: cursor(7),
        });
        let details = Status::from(&failure).get_error_details();
        assert_eq!(
            details.error_info().unwrap().metadata["cursor"],
            cursor(7).to_string()
        );
    }

    #[test]
    fn a_client_whose_bridge_is_cut_off_goes_on_elsewhere_within_a_second() {
        let failure = Failure::Stream(Stream::LogUnavailable { cursor: None });
        let details = Status::from(&failure).get_error_details();
        let asked = details.retry_info().unwrap().retry_delay;
        let mut backoff = prelude_bridge_client::Backoff::default();
        let delay = backoff.next_delay(asked);
        assert!(delay < Duration::from_secs(1), "{delay:?}");
        assert!(asked > Some(Duration::ZERO), "who has no backoff spins");
    }

    #[test]
    fn what_a_retry_mends_has_a_time_to_retry_and_nothing_else_has() {
        let resumes = |failure: &Failure| {
            let details = Status::from(failure).get_error_details();
            details.retry_info().is_some()
        };
        let waited = Duration::from_secs(5);
        let (cursor, place) = (cursor(7), Some(cursor(7)));
        for failure in [
            Failure::MessageTimeout { waited },
            Failure::Credential(Refusal::Unavailable),
            Failure::Stream(Stream::Streams { streams_max: 1 }),
            Failure::Stream(Stream::SlowConsumer { waited, cursor }),
            Failure::Stream(Stream::DeadlineExceeded { cursor: place }),
            Failure::Stream(Stream::LogUnavailable { cursor: place }),
        ] {
            assert!(resumes(&failure), "{}", failure.reason());
        }
        let description = "of a test";
        for failure in [
            Failure::MessageTooLarge { bytes_max: 1 },
            Failure::Compression { description },
            Failure::Rpc,
            Failure::Credential(Refusal::Expired),
            Failure::Stream(Stream::CursorExpired {
                earliest: cursor,
                head: cursor,
            }),
        ] {
            assert!(!resumes(&failure), "{}", failure.reason());
        }
    }
}
