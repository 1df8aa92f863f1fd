//! Owns a client's errors, and which of them are temporary: the only map from gRPC statuses to errors.

use std::{error::Error as StdError, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::cursor_store::StoreError;

/// The domain of the bridge's reasons; proxies have others.
const DOMAIN: &str = "prelude-bridge";
/// The longest wait that a server can ask for, so that a mistaken answer does not stop a client.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Why a call failed or a subscription ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL cannot be used.
    #[error("the server's URL is not valid: {0}")]
    Url(String),
    /// The token or the certificate cannot be used, or would be sent to a server that must not get it.
    /// Nothing was sent.
    #[error("the credential cannot be used: {0}")]
    Credential(String),
    /// No connection could be made.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// The connection broke, or the server asked the client to retry later. Only this error is temporary:
    /// a [`Subscription`](super::Subscription) resumes after it and does not end with it.
    #[error("{message}")]
    Interrupted {
        /// The bridge's reason, such as `DRAINING`; `None` if the network is the reason.
        reason: Option<String>,
        /// What happened.
        message: String,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The credential is missing, wrong or expired, or does not allow this.
    #[error("the server refused the credential: {message}")]
    Refused {
        /// The bridge's reason, such as `TOKEN_EXPIRED`.
        reason: Option<String>,
        /// What the server says.
        message: String,
    },
    /// Retention has removed events after the start position.
    #[error("the cursor has expired: {message}")]
    Expired {
        /// The cursor from which a stream continues with the oldest event that is left.
        earliest: Option<String>,
        /// The cursor from which a stream continues with the next event that arrives.
        head: Option<String>,
        /// What the server says.
        message: String,
    },
    /// The next events are damaged on the bridge's disk. Everything before them was received.
    #[error("the bridge's log is damaged: {message}")]
    Damaged {
        /// The first and the last damaged event, by sequence number.
        sequences: Option<(u64, u64)>,
        /// The cursor from which a stream continues after the damaged events.
        after_cursor: Option<String>,
        /// What the server says.
        message: String,
    },
    /// The cursor is malformed, or is not one of this log.
    #[error("the cursor cannot be used: {message}")]
    Cursor {
        /// The bridge's reason: `CURSOR_MALFORMED`, `CURSOR_EPOCH_MISMATCH` or `CURSOR_AHEAD`.
        reason: String,
        /// What the server says.
        message: String,
    },
    /// The request is not valid.
    #[error("the request is not valid: {message}")]
    Invalid {
        /// What the server says.
        message: String,
        /// Each error of the request.
        faults: Vec<FieldFault>,
    },
    /// The server failed, and a retry does not help.
    #[error("the server failed ({code:?}): {message}")]
    Failed {
        /// The gRPC code.
        code: Code,
        /// What the server says.
        message: String,
    },
    /// The cursor could not be loaded or stored.
    #[error("the cursor store failed: {0}")]
    Store(#[source] StoreError),
}

/// One error of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFault {
    /// The field's path, such as `filter.types[3]`.
    pub field: String,
    /// What is wrong with it and what to do.
    pub problem: String,
}

impl Error {
    /// Whether the same call can succeed later without a change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Interrupted { .. } => true,
            Self::Url(_)
            | Self::Credential(_)
            | Self::Refused { .. }
            | Self::Expired { .. }
            | Self::Damaged { .. }
            | Self::Cursor { .. }
            | Self::Invalid { .. }
            | Self::Failed { .. }
            | Self::Store(_) => false,
        }
    }

    /// How long the server asks to wait before the next attempt.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Interrupted { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the server ended the stream as it had planned, and the client may come back at once.
    pub(super) fn is_planned(&self) -> bool {
        let is_draining = matches!(self, Self::Interrupted { reason, .. } if reason.as_deref() == Some("DRAINING"));
        is_draining && self.retry_after() == Some(Duration::ZERO)
    }

    /// An interruption without a status.
    pub(super) fn interrupted(message: &str) -> Self {
        Self::Interrupted {
            reason: None,
            message: message.to_owned(),
            retry_after: None,
        }
    }

    pub(super) fn unreachable(error: &(dyn StdError + 'static)) -> Self {
        Self::Unreachable(root_cause(error))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details
            .error_info()
            .filter(|info| info.domain == DOMAIN)
            .map(|info| info.reason.clone());
        match reason {
            Some(reason) => from_reason(reason, &status, &details),
            None => from_code(&status, &details),
        }
    }
}

/// Errors of the bridge itself: the reasons of `EventService`.
fn from_reason(reason: String, status: &Status, details: &ErrorDetails) -> Error {
    let message = status.message().to_owned();
    let metadata = |key: &str| details.error_info()?.metadata.get(key).cloned();
    match reason.as_str() {
        "FILTER_INVALID" | "REQUEST_INVALID" => Error::Invalid {
            message,
            faults: field_faults(details),
        },
        "CURSOR_EXPIRED" => Error::Expired {
            earliest: metadata("earliest"),
            head: metadata("head"),
            message,
        },
        "LOG_DAMAGED" => {
            let sequence = |key| metadata(key)?.parse().ok();
            Error::Damaged {
                sequences: sequence("first_sequence").zip(sequence("last_sequence")),
                after_cursor: metadata("after_cursor"),
                message,
            }
        }
        "CURSOR_MALFORMED" | "CURSOR_EPOCH_MISMATCH" | "CURSOR_AHEAD" => {
            Error::Cursor { reason, message }
        }
        "TOKEN_INVALID" | "TOKEN_EXPIRED" | "TYPE_FORBIDDEN" | "APP_FORBIDDEN" => Error::Refused {
            reason: Some(reason),
            message,
        },
        "LIMIT_STREAMS" | "SLOW_CONSUMER" | "DRAINING" | "LOG_UNAVAILABLE"
        | "CREDENTIAL_CHANGED" | "TOKEN_UNVERIFIABLE" => Error::Interrupted {
            reason: Some(reason),
            message,
            retry_after: retry_after(details),
        },
        // Its code is that of limits which pass, but the request stays too large.
        "REQUEST_TOO_LARGE" => Error::Invalid {
            message,
            faults: field_faults(details),
        },
        // Other reasons, also those of a later release: the bridge says of each error whether a retry
        // helps, which the code alone does not.
        _ if details.retry_info().is_some() => Error::Interrupted {
            reason: Some(reason),
            message,
            retry_after: retry_after(details),
        },
        _ => match from_code(status, details) {
            Error::Interrupted { .. } => Error::Failed {
                code: status.code(),
                message,
            },
            error => error,
        },
    }
}

/// Errors of proxies and connections, which have only a code.
fn from_code(status: &Status, details: &ErrorDetails) -> Error {
    let message = describe(status);
    match status.code() {
        // A broken connection has one of many codes, depending on how and where it broke: hence
        // INTERNAL and UNKNOWN too. If it is a bug of the server after all, backing off is what
        // remains to do.
        Code::Unavailable
        | Code::Unknown
        | Code::Internal
        | Code::Cancelled
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::ResourceExhausted => Error::Interrupted {
            reason: None,
            message,
            retry_after: retry_after(details),
        },
        Code::Unauthenticated | Code::PermissionDenied => Error::Refused {
            reason: None,
            message,
        },
        Code::InvalidArgument => Error::Invalid {
            message,
            faults: field_faults(details),
        },
        code @ (Code::Ok
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss) => Error::Failed { code, message },
    }
}

/// Whether a call failed before anything of it was sent. hyper learns only with its next call that the server
/// has told a connection to take no more calls (GOAWAY), and fails that call; the one after it gets a new
/// connection.
pub(super) fn is_unsent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_canceled();
        }
        source = error.source();
    }
    false
}

fn retry_after(details: &ErrorDetails) -> Option<Duration> {
    let delay = details.retry_info()?.retry_delay?;
    Some(delay.min(RETRY_AFTER_MAX))
}

fn field_faults(details: &ErrorDetails) -> Vec<FieldFault> {
    let violations = details
        .bad_request()
        .map(|request| request.field_violations.as_slice());
    violations
        .unwrap_or_default()
        .iter()
        .map(|violation| FieldFault {
            field: violation.field.clone(),
            problem: violation.description.clone(),
        })
        .collect()
}

/// The message of a status; for a broken connection, its innermost cause.
fn describe(status: &Status) -> String {
    let message = status.message();
    match status.source() {
        Some(source) => {
            let cause = root_cause(source);
            if message.is_empty() || message.contains(&cause) {
                cause
            } else {
                format!("{message}: {cause}")
            }
        }
        None if message.is_empty() => status.code().description().to_owned(),
        None => message.to_owned(),
    }
}

fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn status(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
        let metadata: HashMap<String, String> = metadata
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
        details.set_retry_info(Some(Duration::from_secs(7)));
        details.add_bad_request_violation("filter.types[1]", "is empty");
        Status::with_error_details(code, "what the server says", details)
    }

    #[test]
    fn every_reason_of_the_contract_has_its_error() {
        let retryable = |code, reason| Error::from(status(code, reason, &[])).is_retryable();
        for reason in ["DRAINING", "LOG_UNAVAILABLE"] {
            assert!(retryable(Code::Unavailable, reason), "{reason}");
        }
        for reason in ["LIMIT_STREAMS", "SLOW_CONSUMER"] {
            assert!(retryable(Code::ResourceExhausted, reason), "{reason}");
        }
        assert!(!retryable(Code::ResourceExhausted, "REQUEST_TOO_LARGE"));
        for reason in ["TOKEN_INVALID", "TOKEN_EXPIRED"] {
            let error = Error::from(status(Code::Unauthenticated, reason, &[]));
            assert!(matches!(error, Error::Refused { .. }), "{reason}");
        }
        for reason in ["TYPE_FORBIDDEN", "APP_FORBIDDEN"] {
            let error = Error::from(status(Code::PermissionDenied, reason, &[]));
            assert!(matches!(error, Error::Refused { .. }), "{reason}");
        }
        for reason in ["CURSOR_EPOCH_MISMATCH", "CURSOR_AHEAD"] {
            let error = Error::from(status(Code::FailedPrecondition, reason, &[]));
            assert!(matches!(error, Error::Cursor { .. }), "{reason}");
        }
        let malformed = Error::from(status(Code::InvalidArgument, "CURSOR_MALFORMED", &[]));
        assert!(matches!(malformed, Error::Cursor { .. }));
        for reason in ["FILTER_INVALID", "REQUEST_INVALID"] {
            let error = Error::from(status(Code::InvalidArgument, reason, &[]));
            let Error::Invalid { faults, .. } = error else {
                panic!("{reason}");
            };
            assert_eq!(faults[0].field, "filter.types[1]");
        }
    }

    #[test]
    fn a_reason_of_a_later_release_is_temporary_if_the_bridge_says_when_to_retry() {
        for code in [Code::Internal, Code::ResourceExhausted, Code::NotFound] {
            let error = Error::from(status(code, "LATER", &[]));
            assert_eq!(
                error.retry_after(),
                Some(Duration::from_secs(7)),
                "{code:?}"
            );

            let details = ErrorDetails::with_error_info("LATER", DOMAIN, HashMap::new());
            let error = Error::from(Status::with_error_details(code, "why", details));
            assert!(!error.is_retryable(), "{code:?}");
            assert!(error.to_string().contains("why"), "{error}");
        }
    }

    #[test]
    fn an_expired_cursor_tells_what_is_left() {
        let metadata = [("earliest", "AAA"), ("head", "BBB")];
        let error = Error::from(status(Code::OutOfRange, "CURSOR_EXPIRED", &metadata));
        assert!(!error.is_retryable());
        let Error::Expired { earliest, head, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(earliest.as_deref(), Some("AAA"));
        assert_eq!(head.as_deref(), Some("BBB"));
    }

    #[test]
    fn damaged_events_are_named_with_the_cursor_after_them() {
        let metadata = [
            ("first_sequence", "5"),
            ("last_sequence", "9"),
            ("after_cursor", "CCC"),
        ];
        let error = Error::from(status(Code::DataLoss, "LOG_DAMAGED", &metadata));
        assert!(!error.is_retryable());
        let Error::Damaged {
            sequences,
            after_cursor,
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(sequences, Some((5, 9)));
        assert_eq!(after_cursor.as_deref(), Some("CCC"));
        // Also without its details.
        assert!(!Error::from(Status::data_loss("")).is_retryable());
    }

    #[test]
    fn the_server_says_how_long_to_wait_within_bounds() {
        let error = Error::from(status(Code::Unavailable, "DRAINING", &[]));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));

        let mut details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1 << 30)));
        details.set_error_info("DRAINING", DOMAIN, HashMap::new());
        let status = Status::with_error_details(Code::Unavailable, "", details);
        assert_eq!(Error::from(status).retry_after(), Some(RETRY_AFTER_MAX));
    }

    #[test]
    fn what_a_proxy_says_is_judged_by_its_code() {
        let of = |code| Error::from(Status::new(code, "from a proxy"));
        for code in [
            Code::Unavailable,
            Code::Unknown,
            Code::Internal,
            Code::Cancelled,
            Code::ResourceExhausted,
        ] {
            assert!(of(code).is_retryable(), "{code:?}");
        }
        assert!(matches!(of(Code::Unauthenticated), Error::Refused { .. }));
        assert!(matches!(of(Code::Unimplemented), Error::Failed { .. }));
        assert!(matches!(of(Code::OutOfRange), Error::Failed { .. }));

        // A reason of another domain is not the bridge's.
        let details = ErrorDetails::with_error_info("CURSOR_EXPIRED", "other", HashMap::new());
        let status = Status::with_error_details(Code::Unavailable, "", details);
        assert!(Error::from(status).is_retryable());
    }
}
