//! Owns every status of the webhook port: one table from reasons to answers. The compiler checks that it
//! is complete, because it has no `_` arm.
//!
//! | status | when |
//! |---|---|
//! | 200 | `{"challenge":N}`, or the whole batch is durable: `{"accepted":A,"duplicates":D}` |
//! | 204 | OPTIONS: the `Allow` field has the methods |
//! | 400 | a request that breaks a rule of HTTP/1.1, or a malformed activation challenge |
//! | 401 | wrong verification token; signature missing, repeated, malformed or of no key of the app |
//! | 403 | a source address that is not allowed |
//! | 404 | unknown path, an app that is not configured, or a source that takes deliveries on its own path only |
//! | 405 | a method of HTTP, but none of GET, HEAD, OPTIONS and POST; GET for a source without an activation challenge |
//! | 408 | a header that does not end in time; or the connection ended before the answer, which is only counted |
//! | 411 | a POST without a length |
//! | 413 | a body over the limit, or one whose chunks have too much overhead, or 16 KiB of extensions |
//! | 414 | a request line that is longer than a header may be |
//! | 415 | a content type that is not JSON (a missing one counts as JSON), or any content encoding |
//! | 417 | another expectation than `100-continue` |
//! | 422 | signed, but not a batch of this app (for Verify and Notify: no single event of this product), or an ambiguous one, or too old |
//! | 429 | the memory for bodies is used up; or this body made less progress than one that waited; or the address has all connections that it may have |
//! | 431 | too many fields, or too large a header; or the same of trailers, which have 16 KiB in all |
//! | 501 | an unknown method or `CONNECT`, or another transfer coding than `chunked` |
//! | 503 | no keys yet, no connection is left, a body that is too slow, the deadline, the log cannot append now, or a batch that is too old by a clock that may be wrong |
//! | 505 | another version than HTTP/1 |

use std::{borrow::Cow, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use serde_json::json;
use tracing::Level;
use warp::reply::Response;

use super::error::Error;
use crate::{decode, log, metrics::ConnectionRefusal, signature};

/// The outcome of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The challenge, digit for digit.
    Challenge(String),
    /// The batch is durable.
    Accepted(log::Appended),
    /// The caller asked for the methods.
    Options {
        /// Whether GET is one of them.
        has_challenge: bool,
    },
    /// Nothing was done.
    Refused(Error),
}

/// The answer to an outcome, and the name that it is counted under.
pub(super) struct Answer {
    pub(super) response: Response,
    /// The word for it in metrics and logs.
    pub(super) code: &'static str,
}

impl Outcome {
    pub(super) fn answer(&self) -> Answer {
        match self {
            Self::Challenge(digits) => Answer {
                // Not as a number type: it may have more digits than any of them holds.
                response: response(StatusCode::OK, format!(r#"{{"challenge":{digits}}}"#)),
                code: "challenge_answered",
            },
            Self::Accepted(appended) => Answer {
                response: response(
                    StatusCode::OK,
                    format!(
                        r#"{{"accepted":{},"duplicates":{}}}"#,
                        appended.accepted, appended.duplicates
                    ),
                ),
                code: "accepted",
            },
            Self::Options { has_challenge } => {
                let mut response = Response::default();
                *response.status_mut() = StatusCode::NO_CONTENT;
                let methods = methods(*has_challenge);
                response.headers_mut().insert(header::ALLOW, methods);
                Answer {
                    response,
                    code: "options",
                }
            }
            Self::Refused(error) => refuse(error),
        }
    }
}

/// The log level of a refusal.
pub(super) fn level(error: &Error) -> Level {
    match error {
        // The sender's form of a batch is not ours, or the disk failed: the operator must act.
        Error::NoBatch(_)
        | Error::TooOld { .. }
        | Error::NotAppended(log::Error::Failed(_) | log::Error::NoSpace) => Level::ERROR,
        Error::ChallengeMalformed(_)
        | Error::TokenMismatch
        | Error::BodyTooLarge { .. }
        | Error::BodiesTooLarge { .. }
        | Error::BodyGaveWay
        | Error::BodyStalled { .. }
        | Error::FramingTooLarge
        | Error::BodyTooSlow { .. }
        | Error::TooSlow { .. }
        | Error::SignatureMissing
        | Error::SignatureRepeated
        | Error::AppUnnamed
        | Error::Forged { .. }
        | Error::ForgedAndGone
        | Error::Unverified(_)
        | Error::NotAppended(
            log::Error::Overloaded | log::Error::Unavailable(_) | log::Error::Closed,
        ) => Level::WARN,
        // Scanners of the internet.
        Error::PathUnknown
        | Error::SourceRefused { .. }
        | Error::SourceUnknown
        | Error::Malformed(_)
        | Error::MethodNotAllowed { .. }
        | Error::MethodUnknown
        | Error::AppUnknown
        | Error::ChallengeUnexpected
        | Error::PathWithoutSource
        | Error::ContentTypeUnknown
        | Error::ContentEncoded
        | Error::LengthMissing
        | Error::Abandoned
        | Error::BodyBroken(_) => Level::INFO,
    }
}

/// One row of the table.
struct Row {
    status: StatusCode,
    code: &'static str,
    /// When the same request may succeed; `None` if it never will.
    retry_after: Option<Duration>,
}

/// The word for a refusal in metrics and logs.
pub(super) fn code(error: &Error) -> &'static str {
    row(error).code
}

/// What a connection is told that is refused before it has sent a request.
pub(super) fn refusal(refusal: ConnectionRefusal) -> Vec<u8> {
    let Row {
        status,
        code,
        retry_after,
    } = connection_row(refusal);
    let message = match refusal {
        ConnectionRefusal::Source => SOURCE_REFUSED,
        ConnectionRefusal::Full => "the bridge has its maximum of connections",
        ConnectionRefusal::AddressFull => "your address has its maximum of connections",
    };
    let body = body(code, message, retry_after.is_some());
    let after = retry_after.map(|after| format!("Retry-After: {}\r\n", after.as_secs()));
    let (length, after) = (body.len(), after.unwrap_or_default());
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
    let date = date
        .map(|date| format!("Date: {date}\r\n"))
        .unwrap_or_default();
    format!(
        "HTTP/1.1 {status}\r\n{date}Content-Type: application/json\r\nContent-Length: {length}\r\n{after}\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

fn connection_row(refusal: ConnectionRefusal) -> Row {
    match refusal {
        ConnectionRefusal::Source => never(StatusCode::FORBIDDEN, "source_refused"),
        ConnectionRefusal::Full => {
            later(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", 2)
        }
        ConnectionRefusal::AddressFull => {
            later(StatusCode::TOO_MANY_REQUESTS, "too_many_connections", 2)
        }
    }
}

/// The body of every refusal.
fn body(code: &str, message: &str, is_retryable: bool) -> String {
    json!({ "error": { "code": code, "message": message, "retryable": is_retryable } }).to_string()
}

fn refuse(error: &Error) -> Answer {
    let row = row(error);
    let body = body(row.code, &message(error), row.retry_after.is_some());
    let mut response = response(row.status, body);
    let headers = response.headers_mut();
    if let Some(after) = row.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    headers.extend(demanded(error, row.status));
    Answer {
        response,
        code: row.code,
    }
}

/// The methods of a path.
fn methods(has_challenge: bool) -> HeaderValue {
    HeaderValue::from_static(if has_challenge {
        "GET, HEAD, OPTIONS, POST"
    } else {
        "OPTIONS, POST"
    })
}

/// The field that RFC 9110 demands of an answer with this status, or recommends (section 15.5.16).
fn demanded(error: &Error, status: StatusCode) -> Option<(HeaderName, HeaderValue)> {
    // Of no registered scheme. A client that handles 401 in general must find a challenge (section 11.6.1).
    const BY_TOKEN: HeaderValue = HeaderValue::from_static(
        r#"Verification-Token realm="webhooks", parameter="verification_token""#,
    );
    const BY_SIGNATURE: HeaderValue = HeaderValue::from_static(
        r#"Webhook-Signature realm="webhooks", header="X-Webhook-Signature", algorithm="rsassa-pss-sha256""#,
    );
    Some(match (status, error) {
        (_, Error::ChallengeUnexpected) => (header::ALLOW, methods(false)),
        (_, Error::MethodNotAllowed { has_challenge }) => (header::ALLOW, methods(*has_challenge)),
        (StatusCode::UNAUTHORIZED, Error::TokenMismatch) => (header::WWW_AUTHENTICATE, BY_TOKEN),
        (StatusCode::UNAUTHORIZED, _) => (header::WWW_AUTHENTICATE, BY_SIGNATURE),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, Error::ContentEncoded) => {
            let identity = HeaderValue::from_static("identity");
            (header::ACCEPT_ENCODING, identity)
        }
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, _) => {
            let json = HeaderValue::from_static("application/json");
            (header::ACCEPT, json)
        }
        _ => return None,
    })
}

fn row(error: &Error) -> Row {
    use StatusCode as Status;
    match error {
        Error::PathUnknown => never(Status::NOT_FOUND, "path_unknown"),
        Error::SourceRefused { .. } | Error::SourceUnknown => {
            connection_row(ConnectionRefusal::Source)
        }
        Error::Malformed(fault) if fault.is_retryable() => later(fault.status(), fault.code(), 1),
        Error::Malformed(fault) => never(fault.status(), fault.code()),
        Error::MethodNotAllowed { .. } => never(Status::METHOD_NOT_ALLOWED, "method_not_allowed"),
        Error::MethodUnknown => never(Status::NOT_IMPLEMENTED, "method_unknown"),
        Error::AppUnknown => never(Status::NOT_FOUND, "app_unknown"),
        Error::ChallengeUnexpected => never(Status::METHOD_NOT_ALLOWED, "challenge_unexpected"),
        Error::PathWithoutSource => never(Status::NOT_FOUND, "path_without_source"),
        Error::ChallengeMalformed(_) => never(Status::BAD_REQUEST, "challenge_malformed"),
        Error::TokenMismatch => never(Status::UNAUTHORIZED, "token_mismatch"),
        Error::ContentTypeUnknown => {
            never(Status::UNSUPPORTED_MEDIA_TYPE, "content_type_unsupported")
        }
        Error::ContentEncoded => never(
            Status::UNSUPPORTED_MEDIA_TYPE,
            "content_encoding_unsupported",
        ),
        Error::LengthMissing => never(Status::LENGTH_REQUIRED, "length_required"),
        Error::BodyTooLarge { .. } => never(Status::PAYLOAD_TOO_LARGE, "body_too_large"),
        Error::FramingTooLarge => never(Status::PAYLOAD_TOO_LARGE, "framing_too_large"),
        Error::BodiesTooLarge { .. } | Error::BodyGaveWay => {
            later(Status::TOO_MANY_REQUESTS, "too_many_bodies", 2)
        }
        // Seldom read: the caller is usually gone.
        Error::Abandoned => later(Status::REQUEST_TIMEOUT, "abandoned", 1),
        Error::BodyBroken(_) => later(Status::SERVICE_UNAVAILABLE, "body_incomplete", 1),
        Error::BodyTooSlow { .. } | Error::BodyStalled { .. } | Error::TooSlow { .. } => {
            later(Status::SERVICE_UNAVAILABLE, "deadline_exceeded", 5)
        }
        Error::SignatureMissing => never(Status::UNAUTHORIZED, "signature_missing"),
        Error::SignatureRepeated => never(Status::UNAUTHORIZED, "signature_repeated"),
        Error::AppUnnamed => never(Status::UNAUTHORIZED, "signature_unverifiable"),
        Error::Forged { .. } | Error::ForgedAndGone => unverified(&signature::Error::Mismatch),
        Error::Unverified(error) => unverified(error),
        Error::NoBatch(error) => no_batch(*error),
        // The sender retries both for two weeks: time for the operator to accept it.
        Error::TooOld {
            is_clock_confirmed: true,
            ..
        } => never(Status::UNPROCESSABLE_ENTITY, "batch_too_old"),
        Error::TooOld {
            is_clock_confirmed: false,
            ..
        } => later(Status::SERVICE_UNAVAILABLE, "clock_unconfirmed", 3_600),
        Error::NotAppended(error) => not_appended(error),
    }
}

/// What the caller is told beside the code.
fn message(error: &Error) -> Cow<'static, str> {
    let fixed = match error {
        Error::PathUnknown => "nothing is here: webhooks go to /webhooks/{app_id} or /webhooks",
        Error::SourceRefused { .. } | Error::SourceUnknown => SOURCE_REFUSED,
        Error::Malformed(fault) => return fault.to_string().into(),
        Error::MethodNotAllowed { .. } | Error::MethodUnknown => {
            "use GET for the activation challenge and POST for deliveries"
        }
        Error::AppUnknown => "this app is not configured here",
        Error::ChallengeUnexpected => {
            "this source has no activation challenge: Verify and Notify deliver with POST, to the \
             callback_url, and need no activation"
        }
        Error::PathWithoutSource => {
            "this source takes deliveries at its own path only: /webhooks/{id}"
        }
        Error::ChallengeMalformed(fault) => fault,
        Error::TokenMismatch => {
            "the verification token is not the one that is configured for this app"
        }
        Error::ContentTypeUnknown => "send the batch as application/json",
        Error::ContentEncoded => "send the body as it was signed, without a content encoding",
        Error::LengthMissing => "send a Content-Length, or the body in chunks",
        Error::BodyTooLarge { bytes_max } => {
            return format!("the body may have at most {bytes_max} bytes").into();
        }
        Error::FramingTooLarge => {
            "send the body in larger chunks, or with its length and not in chunks"
        }
        Error::BodiesTooLarge { .. } | Error::BodyGaveWay => "too many deliveries at once",
        Error::Abandoned => "the connection ended before the answer",
        Error::BodyBroken(_) => "the body broke off",
        Error::BodyTooSlow { seconds } => {
            return format!("the body was not there within {seconds} s").into();
        }
        Error::BodyStalled { bytes_per_second } => {
            let rate = bytes_per_second;
            return format!("the body comes slower than {rate} bytes a second").into();
        }
        Error::TooSlow { seconds } => {
            return format!("the request was not done within {seconds} s").into();
        }
        Error::SignatureMissing => "the X-Webhook-Signature header is missing",
        Error::SignatureRepeated => "there is more than one X-Webhook-Signature header",
        Error::AppUnnamed => {
            "the body names no app whose keys could verify it; single events of Verify and Notify go to \
             /webhooks/{id} of their source"
        }
        Error::Forged { .. } | Error::ForgedAndGone => FORGED,
        Error::Unverified(error) => return unverified_message(error),
        Error::NoBatch(error) => return error.to_string().into(),
        Error::TooOld {
            is_clock_confirmed: true,
            ..
        } => "every event of this batch is older than its repetitions can be recognised",
        Error::TooOld {
            is_clock_confirmed: false,
            ..
        } => "by a clock that may be wrong, this batch is too old",
        Error::NotAppended(error) => not_appended_message(error),
    };
    fixed.into()
}

const SOURCE_REFUSED: &str = "requests from this address are not taken here";
const FORGED: &str = "no key of this app made this signature over this body";

fn unverified(error: &signature::Error) -> Row {
    match error {
        signature::Error::Header(_) => never(StatusCode::UNAUTHORIZED, "signature_malformed"),
        signature::Error::Mismatch => never(StatusCode::UNAUTHORIZED, "signature_mismatch"),
        // The rest is about our side of the keys.
        signature::Error::NoKeys { .. }
        | signature::Error::Key(_)
        | signature::Error::KeySet(_)
        | signature::Error::Fetch(_)
        | signature::Error::NoRuntime => {
            later(StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable", 30)
        }
    }
}

fn unverified_message(error: &signature::Error) -> Cow<'static, str> {
    match error {
        signature::Error::Header(fault) => fault.to_string().into(),
        signature::Error::Mismatch => FORGED.into(),
        signature::Error::NoKeys { .. }
        | signature::Error::Key(_)
        | signature::Error::KeySet(_)
        | signature::Error::Fetch(_)
        | signature::Error::NoRuntime => "the keys of this app are not known yet".into(),
    }
}

fn no_batch(error: decode::Error) -> Row {
    let code = match error {
        decode::Error::NotUtf8 { .. } | decode::Error::NotJson { .. } => "body_not_json",
        decode::Error::OtherApp => "app_mismatch",
        decode::Error::Ambiguous(_) => "body_ambiguous",
        decode::Error::UnexpectedEvent => "body_is_single_event",
        decode::Error::UnexpectedBatch => "body_is_batch",
        decode::Error::OtherProduct => "event_of_other_product",
        decode::Error::NotObject
        | decode::Error::NoAppId
        | decode::Error::NoEvents
        | decode::Error::TooManyEvents => "body_not_a_batch",
    };
    never(StatusCode::UNPROCESSABLE_ENTITY, code)
}

fn not_appended(error: &log::Error) -> Row {
    let (code, seconds) = match error {
        log::Error::Overloaded => ("log_overloaded", 2),
        log::Error::NoSpace => ("log_full", 60),
        log::Error::Unavailable(_) => ("log_unavailable", 5),
        log::Error::Failed(_) => ("log_failed", 30),
        log::Error::Closed => ("shutting_down", 5),
    };
    later(StatusCode::SERVICE_UNAVAILABLE, code, seconds)
}

fn not_appended_message(error: &log::Error) -> &'static str {
    match error {
        log::Error::Overloaded => "more arrives than can be stored",
        log::Error::NoSpace => "there is no room to store the batch",
        log::Error::Unavailable(_) => "the batch cannot be stored for now",
        log::Error::Failed(_) => "the batch cannot be stored",
        log::Error::Closed => "the bridge is shutting down",
    }
}

/// The same request will be refused again.
fn never(status: StatusCode, code: &'static str) -> Row {
    Row {
        status,
        code,
        retry_after: None,
    }
}

/// The same request may be taken after so many seconds.
fn later(status: StatusCode, code: &'static str, seconds: u64) -> Row {
    Row {
        status,
        code,
        retry_after: Some(Duration::from_secs(seconds)),
    }
}

fn response(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
