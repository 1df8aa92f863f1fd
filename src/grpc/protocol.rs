//! Owns what the head of a request says about its protocol: gRPC, gRPC-Web or neither, the encoding of
//! its messages, its deadline, and whether its metadata is within the limit. By
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md> and PROTOCOL-WEB.md beside it.
//! Knows no RPCs.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header, request::Parts};
use tokio::time::Instant;

use super::status::{ACCEPTED_ENCODINGS, Failure};
use crate::net::{fields, http1::Fault};

/// The header with the deadline of a call.
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The header with the encoding of messages whose compressed flag is set.
pub(super) const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// How many digits a timeout has at most.
const TIMEOUT_DIGITS_MAX: usize = 8;
/// What each header counts beside its name and value: RFC 9113, section 6.5.2.
const HEADER_OVERHEAD_BYTES: usize = 32;

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// A call by gRPC.
    Grpc,
    /// A call by gRPC-Web, with its content type as it is written without parameters.
    Web(&'static str),
    /// A browser asks whether a page may call.
    Preflight,
}

/// Why a request is neither. It is answered by HTTP alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoCall {
    /// Calls are POST.
    Method,
    /// The content type is none of gRPC's.
    ContentType,
    /// gRPC needs HTTP/2.
    Version,
    /// It breaks a rule of HTTP/1.1.
    Malformed(Fault),
}

impl NoCall {
    /// The status, and an explanation for whoever looks at the answer.
    pub(super) fn answer(self) -> (StatusCode, String) {
        let (status, explanation) = match self {
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "this port serves gRPC and gRPC-Web: calls are POST requests",
            ),
            Self::ContentType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "this port serves gRPC and gRPC-Web: the content type has to be application/grpc, \
                 application/grpc-web or application/grpc-web-text",
            ),
            Self::Version => (
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                "gRPC needs HTTP/2; over HTTP/1.1 this port serves gRPC-Web only",
            ),
            Self::Malformed(fault) => return (fault.status(), format!("{fault}\n")),
        };
        (status, format!("{explanation}\n"))
    }
}

/// The protocol of a request.
///
/// # Errors
/// It is no call.
pub(super) fn protocol(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<Protocol, NoCall> {
    if method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return Ok(Protocol::Preflight);
    }
    if method != Method::POST {
        return Err(NoCall::Method);
    }
    match content_type(headers).as_deref() {
        Some("-web" | "-web+proto") => Ok(Protocol::Web("application/grpc-web+proto")),
        Some("-web-text" | "-web-text+proto") => {
            Ok(Protocol::Web("application/grpc-web-text+proto"))
        }
        // An unknown format after the plus sign gets a gRPC status: see `Head::read`.
        Some(format) if format.is_empty() || format.starts_with('+') => match version {
            Version::HTTP_2 => Ok(Protocol::Grpc),
            _ => Err(NoCall::Version),
        },
        _ => Err(NoCall::ContentType),
    }
}

/// What follows `application/grpc` in the content type, in small letters and without parameters.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let media_type = fields::media_type(values.next()?.as_bytes())?;
    if values.next().is_some() {
        return None;
    }
    let subtype = media_type.essence.strip_prefix("application/grpc");
    subtype.map(str::to_owned)
}

/// How the messages of a request are encoded whose compressed flag is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// None is.
    Identity,
    /// RFC 1952.
    Gzip,
}

/// What the head of a call says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) encoding: Encoding,
    /// When the call ends, whatever has become of it.
    pub(super) deadline: Option<Instant>,
}

impl Head {
    /// Reads the head of a call.
    ///
    /// # Errors
    /// The [`Failure`] to answer with.
    pub(super) fn read(parts: &Parts, header_bytes_max: usize) -> Result<Self, Failure> {
        let bytes = header_bytes(parts);
        if bytes > header_bytes_max {
            return Err(Failure::Request {
                field: "metadata",
                description: format!(
                    "the request's headers have {bytes} bytes, with {HEADER_OVERHEAD_BYTES} for each, \
                     and may have {header_bytes_max}"
                ),
            });
        }
        if let Some(subtype) = content_type(&parts.headers)
            && !matches!(subtype.as_str(), "" | "+proto")
        {
            return Err(Failure::Unsupported {
                header: "content-type",
                supported: "application/grpc, application/grpc+proto",
            });
        }
        let now = Instant::now();
        Ok(Self {
            encoding: encoding(&parts.headers)?,
            // One that is too far away to be told is none.
            deadline: timeout(&parts.headers)?.and_then(|timeout| now.checked_add(timeout)),
        })
    }
}

/// The size of a request's headers as HTTP/2 counts it.
fn header_bytes(parts: &Parts) -> usize {
    let uri = &parts.uri;
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    let pseudo = [
        (":method", parts.method.as_str()),
        (":scheme", uri.scheme_str().unwrap_or_default()),
        (
            ":authority",
            uri.authority().map_or("", |name| name.as_str()),
        ),
        (":path", path),
    ];
    let pseudo = pseudo.iter().map(|(name, value)| name.len() + value.len());
    let headers = parts.headers.iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len());
    pseudo
        .chain(headers)
        .map(|bytes| bytes + HEADER_OVERHEAD_BYTES)
        .sum()
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Failure> {
    let mut values = headers.get_all(ENCODING).iter();
    match (values.next().map(|value| value.as_bytes()), values.next()) {
        (None | Some(b"identity"), None) => Ok(Encoding::Identity),
        (Some(b"gzip"), None) => Ok(Encoding::Gzip),
        _ => Err(Failure::Unsupported {
            header: "grpc-encoding",
            supported: ACCEPTED_ENCODINGS,
        }),
    }
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let mut values = headers.get_all(TIMEOUT).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let timeout = match values.next() {
        None => duration(value.as_bytes()),
        Some(_) => None,
    };
    timeout.map(Some).ok_or_else(|| Failure::Request {
        field: "grpc-timeout",
        description: format!(
            "must be one to {TIMEOUT_DIGITS_MAX} digits and a unit, which is H, M, S, m, u or n"
        ),
    })
}

/// `TimeoutValue TimeoutUnit`. Clients whose deadline has passed send zero, though the value should be
/// positive.
fn duration(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX {
        return None;
    }
    let value = digits.iter().try_fold(0, |value: u64, digit| {
        digit
            .is_ascii_digit()
            .then(|| value * 10 + u64::from(digit - b'0'))
    })?;
    Some(match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    fn of(method: &str, version: Version, content_types: &[&str]) -> Result<Protocol, NoCall> {
        let mut headers = HeaderMap::new();
        for text in content_types {
            headers.append(header::CONTENT_TYPE, HeaderValue::from_str(text).unwrap());
        }
        protocol(&method.parse().unwrap(), version, &headers)
    }

    #[test]
    fn grpc_is_told_from_grpc_web_and_from_what_is_neither() {
        let over_2 = |text| of("POST", Version::HTTP_2, &[text]);
        for text in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc+json",
            "application/grpc;charset=utf-8",
            "application/grpc+proto ; a=b; c=d",
            "application/grpc; a=\"b;c, d\"",
            " application/grpc; ",
            "Application/GRPC",
        ] {
            assert_eq!(over_2(text), Ok(Protocol::Grpc), "{text}");
            assert_eq!(of("POST", Version::HTTP_11, &[text]), Err(NoCall::Version));
        }
        for (text, canonical) in [
            ("application/grpc-web", "application/grpc-web+proto"),
            ("application/grpc-web+proto", "application/grpc-web+proto"),
            ("application/grpc-web;x=y", "application/grpc-web+proto"),
            (
                "application/grpc-web-text",
                "application/grpc-web-text+proto",
            ),
            (
                "Application/grpc-web-TEXT+proto",
                "application/grpc-web-text+proto",
            ),
        ] {
            let web = Ok(Protocol::Web(canonical));
            assert_eq!(over_2(text), web, "{text}");
            assert_eq!(of("POST", Version::HTTP_11, &[text]), web, "{text}");
        }
        for text in [
            "text/html",
            "application/json",
            "application/grpc-web+json",
            "application/grpc-webs",
            "application/grpcs",
            "application/grp",
            "x application/grpc",
            ";application/grpc",
            "application/grpc, application/grpc",
            "application/grpc,",
            "application/grpc;charset",
            "application/grpc;charset=\"utf-8",
            "application/grpc/proto",
            "",
        ] {
            assert_eq!(over_2(text), Err(NoCall::ContentType), "{text}");
        }
        let twice = ["application/grpc", "application/grpc"];
        assert_eq!(
            of("POST", Version::HTTP_2, &twice),
            Err(NoCall::ContentType)
        );
        assert_eq!(of("POST", Version::HTTP_2, &[]), Err(NoCall::ContentType));
        for method in ["GET", "PUT", "OPTIONS", "post"] {
            let refused = of(method, Version::HTTP_2, &["application/grpc"]);
            assert_eq!(refused, Err(NoCall::Method), "{method}");
        }
    }

    #[test]
    fn a_timeout_has_every_unit_and_up_to_eight_digits() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("6n", Duration::from_nanos(6)),
            ("0n", Duration::ZERO),
            ("00000001S", Duration::from_secs(1)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(duration(text.as_bytes()), Some(expected), "{text}");
        }
        for text in [
            "",
            "S",
            "1",
            "1s",
            "1h",
            "-1S",
            "+1S",
            "1.5S",
            " 1S",
            "1 S",
            "1SS",
            "000000001S",
            "123456789n",
            "S1",
            "0x1S",
            "\u{661}S",
        ] {
            assert_eq!(duration(text.as_bytes()), None, "{text:?}");
        }
    }

    fn read(headers: &[(&str, &str)], header_bytes_max: usize) -> Result<Head, Failure> {
        let mut request = Request::builder().method("POST").uri("http://bridge/a.B/C");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Head::read(&request.body(()).unwrap().into_parts().0, header_bytes_max)
    }

    #[test]
    fn headers_are_counted_as_http_2_counts_them() {
        // :method POST, :scheme http, :authority bridge, :path /a.B/C, x 12345.
        let bytes = (7 + 4) + (7 + 4) + (10 + 6) + (5 + 6) + (1 + 5) + 5 * 32;
        assert!(read(&[("x", "12345")], bytes).is_ok());
        let failure = read(&[("x", "12345")], bytes - 1).unwrap_err();
        assert_eq!(failure.reason(), "REQUEST_INVALID");
    }

    #[test]
    fn only_known_encodings_are_accepted() {
        let encoding = |values: &[&str]| {
            let headers: Vec<_> = values.iter().map(|text| ("grpc-encoding", *text)).collect();
            read(&headers, 1000).map(|head| head.encoding)
        };
        assert_eq!(encoding(&[]), Ok(Encoding::Identity));
        assert_eq!(encoding(&["identity"]), Ok(Encoding::Identity));
        assert_eq!(encoding(&["gzip"]), Ok(Encoding::Gzip));
        for values in [
            &["deflate"][..],
            &["snappy"],
            &["zstd"],
            &[""],
            &["gzip,identity"],
            &["gzip", "gzip"],
        ] {
            let reason = encoding(values).unwrap_err().reason();
            assert_eq!(reason, "ENCODING_UNSUPPORTED", "{values:?}");
        }
        for subtype in ["json", "", "proto+gzip"] {
            let content_type = format!("application/grpc+{subtype}");
            let refused = read(&[("content-type", &content_type)], 1000);
            assert_eq!(refused.unwrap_err().reason(), "ENCODING_UNSUPPORTED");
        }
    }

    #[test]
    fn a_deadline_beyond_all_clocks_is_none_and_two_are_malformed() {
        let far = read(&[("grpc-timeout", "99999999H")], 1000).unwrap();
        assert!(far.deadline.is_none_or(|at| at > Instant::now()));
        let twice = [("grpc-timeout", "1S"), ("grpc-timeout", "1S")];
        assert_eq!(read(&twice, 1000).unwrap_err().reason(), "REQUEST_INVALID");
    }
}
