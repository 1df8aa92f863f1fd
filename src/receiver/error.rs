//! Owns the reasons for which a request is refused, with texts for the operator. [`super::status`] has
//! the texts for the caller.

use std::{fmt, net::IpAddr, sync::Arc};

use tokio::time::Instant;

use crate::{
    decode, log,
    net::{framing::Excess, http1::Fault},
    signature,
};

/// Why a request was refused. The text is for the log: it has no payload, no token, and no other text of
/// a stranger.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("nothing is served at this path")]
    PathUnknown,
    #[error("{address} is in none of the networks of `allowed_sources`")]
    SourceRefused { address: IpAddr },
    #[error("the forwarding headers of a trusted proxy do not say where the request comes from")]
    SourceUnknown,
    #[error("the message breaks a rule of HTTP: {0}")]
    Malformed(Fault),
    #[error("the method is for other resources than these")]
    MethodNotAllowed {
        /// Whether the path has an activation challenge, so that GET is allowed.
        has_challenge: bool,
    },
    #[error("the method is not one of HTTP's own")]
    MethodUnknown,
    #[error("the app is not configured here")]
    AppUnknown,
    #[error("the source has no activation challenge")]
    ChallengeUnexpected,
    #[error("the body names a source as its app that takes deliveries on its own path only")]
    PathWithoutSource,
    #[error("the activation challenge is malformed: {0}")]
    ChallengeMalformed(&'static str),
    #[error("the activation challenge carries another verification token than the configured one")]
    TokenMismatch,
    #[error("the content type is not JSON")]
    ContentTypeUnknown,
    #[error("the body has a content encoding")]
    ContentEncoded,
    #[error("there is neither a Content-Length nor a Transfer-Encoding")]
    LengthMissing,
    #[error("the body has more than {bytes_max} bytes")]
    BodyTooLarge { bytes_max: usize },
    #[error(
        "the bodies in flight take all the memory that they may, or those of this address their \
         share of it ({bytes_max} bytes in all)"
    )]
    BodiesTooLarge { bytes_max: usize },
    #[error("the body made less progress than another one that needed its memory")]
    BodyGaveWay,
    #[error("the body comes slower than {bytes_per_second} bytes a second")]
    BodyStalled { bytes_per_second: u32 },
    #[error("there is more wrapping around the chunks of the body than content in them")]
    FramingTooLarge,
    #[error("the body broke off: {0}")]
    BodyBroken(#[source] warp::Error),
    #[error("the body is not there after {seconds} s")]
    BodyTooSlow { seconds: u64 },
    #[error("the connection ended before the answer")]
    Abandoned,
    #[error("there is no answer after {seconds} s")]
    TooSlow { seconds: u64 },
    #[error("the signature header is missing")]
    SignatureMissing,
    #[error("there is more than one signature header")]
    SignatureRepeated,
    #[error("the body names no app, so there is no key to verify it with")]
    AppUnnamed,
    #[error("{}{}", signature::Error::Mismatch, Misdirected(signers))]
    Forged {
        answer_at: Instant,
        /// The other sources whose keys made the signature.
        signers: Vec<Arc<str>>,
    },
    #[error(
        "{}; the sender did not wait for the answer",
        signature::Error::Mismatch
    )]
    ForgedAndGone,
    #[error(transparent)]
    Unverified(#[from] signature::Error),
    #[error("signed, but not as expected here: {0}")]
    NoBatch(#[from] decode::Error),
    #[error(
        "signed, but its newest event happened {age} ago, and ids are remembered for {age_max}{}: \
         it may be a copy of an earlier delivery. If it is genuine, set `old_events` to \"accept\" while \
         the sender retries, for two weeks",
        if *.is_clock_confirmed { "" } else { ". Check this machine's clock, which has not kept pace for a day yet" }
    )]
    TooOld {
        /// Of the newest event.
        age: Micros,
        age_max: Micros,
        /// Whether more than one reading of the clock says so.
        is_clock_confirmed: bool,
    },
    #[error("not appended: {0}")]
    NotAppended(#[from] log::Error),
}

/// What is said of a signature that keys of these other sources made.
struct Misdirected<'a>(&'a [Arc<str>]);

impl fmt::Display for Misdirected<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(
            formatter,
            ", but a key of {} did: the URL that Prelude calls belongs there. Give Prelude the URL with \
             that id, /webhooks/ID, or give this source that key",
            self.0.join(" or ")
        )
    }
}

/// A time in microseconds, shown in days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Micros(pub(super) i64);

impl fmt::Display for Micros {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.1} days", self.0 as f64 / 86_400_000_000.0)
    }
}

impl From<warp::Error> for Error {
    /// The cause, if a body cannot be read any further.
    fn from(error: warp::Error) -> Self {
        match Fault::cause(&error) {
            Some(fault) => Self::Malformed(fault),
            None if Excess::caused(&error) => Self::FramingTooLarge,
            None => Self::BodyBroken(error),
        }
    }
}
