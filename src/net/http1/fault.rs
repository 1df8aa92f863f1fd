//! Owns the reasons for which a message of HTTP/1.1 is not accepted, and the status and code of each.

use std::{error::Error, io};

use http::StatusCode;

/// Why a request is refused before a handler sees it. Nothing after it on the connection is read as a
/// request: where it ends is not known, or not agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The grammar, or a rule of RFC 9112 that asks for 400. Says which, for the caller.
    #[error("{0}")]
    Malformed(&'static str),
    /// The header did not come in time.
    #[error("the header did not end in time")]
    HeaderTooSlow,
    /// More than `u64` holds.
    #[error("the Content-Length is larger than any body may be")]
    LengthTooLarge,
    /// More than `u64` holds.
    #[error("the size of a chunk is larger than any body may be")]
    ChunkTooLarge,
    /// More bytes of extensions, in all chunks of a body, than the decoder takes.
    #[error("the extensions of the chunks have 16 KiB or more in all")]
    ExtensionsTooLarge,
    /// Too many trailers, or more bytes of them than the decoder takes.
    #[error("the trailers are too many, or larger than a header may be or than 16 KiB in all")]
    TrailersTooLarge,
    /// The request line alone fills the buffer.
    #[error("the request target is too long")]
    TargetTooLong,
    /// RFC 9110 section 10.1.1.
    #[error("the only expectation that can be met is 100-continue")]
    ExpectationUnknown,
    /// Too many fields, or too many bytes of them.
    #[error("the header has too many fields or is too large")]
    HeaderTooLarge,
    /// Only a proxy has a use for it (RFC 9110 section 9.3.6).
    #[error("this is no proxy: CONNECT is not implemented")]
    ConnectUnsupported,
    /// RFC 9112 section 6.1.
    #[error("the only transfer coding that is understood is chunked")]
    CodingUnknown,
    /// Another major version than 1.
    #[error("the only version of HTTP that is spoken on this port is 1.1")]
    VersionUnknown,
}

impl Fault {
    /// The status of the answer.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::HeaderTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::LengthTooLarge | Self::ChunkTooLarge | Self::ExtensionsTooLarge => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::ExpectationUnknown => StatusCode::EXPECTATION_FAILED,
            Self::HeaderTooLarge | Self::TrailersTooLarge => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::ConnectUnsupported | Self::CodingUnknown => StatusCode::NOT_IMPLEMENTED,
            Self::VersionUnknown => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }

    /// The word for it in answers, metrics and logs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed(_) => "request_malformed",
            Self::HeaderTooSlow => "header_too_slow",
            Self::LengthTooLarge | Self::ChunkTooLarge => "body_too_large",
            Self::ExtensionsTooLarge => "framing_too_large",
            Self::TrailersTooLarge => "trailers_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::ExpectationUnknown => "expectation_unsupported",
            Self::HeaderTooLarge => "header_too_large",
            Self::ConnectUnsupported => "connect_unsupported",
            Self::CodingUnknown => "transfer_coding_unsupported",
            Self::VersionUnknown => "version_unsupported",
        }
    }

    /// Whether the same request may be accepted later.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        self == Self::HeaderTooSlow
    }

    /// The fault at the root of an error, where a body is malformed.
    #[must_use]
    pub fn cause(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let inner = error.downcast_ref::<io::Error>();
            if let Some(fault) = inner.and_then(|error| error.get_ref()?.downcast_ref::<Self>()) {
                return Some(*fault);
            }
            cause = error.source();
        }
        None
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(io::ErrorKind::InvalidData, fault)
    }
}
