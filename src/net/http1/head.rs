//! Owns what a request's head has to be: its grammar (RFC 9112 sections 2 to 5), and how it says where the
//! body ends (section 6). Whatever two readers could understand differently is refused, also where an RFC
//! lets a recipient choose: a proxy in front of the bridge may have chosen otherwise.

use std::net::Ipv6Addr;

use http::{Uri, uri::Scheme};

use super::fault::Fault;
use crate::net::fields::{self, Reader, is_text_byte, is_token};

/// The largest length that hyper reads; it has other uses for the numbers above.
const LENGTH_MAX: u64 = u64::MAX - 2;

/// The only transfer coding, and the only expectation.
const CHUNKED: &[u8] = b"chunked";
const CONTINUE: &[u8] = b"100-continue";

/// How a request says where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// After so many bytes; 0 without a body.
    Bytes(u64),
    /// After the last chunk.
    Chunked,
}

/// Finds the end of a head whose bytes arrive bit by bit, and refuses what cannot become one.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// How far the bytes were looked at.
    scanned: usize,
    line_start: usize,
    lines: usize,
}

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    pub(super) fields_max: usize,
    pub(super) bytes_max: usize,
}

impl Scan {
    /// The length of the head with its last line, once all of it is in `bytes`, which begin with the
    /// request line.
    pub(super) fn end(&mut self, bytes: &[u8], limits: HeadLimits) -> Result<Option<usize>, Fault> {
        while let Some(found) = bytes
            .get(self.scanned..)
            .and_then(|rest| rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')))
        {
            let at = self.scanned + found;
            if bytes.get(at) == Some(&b'\n') {
                return Err(Fault::Malformed("a line ends without a carriage return"));
            }
            let Some(&next) = bytes.get(at + 1) else {
                self.scanned = at;
                break;
            };
            if next != b'\n' {
                return Err(Fault::Malformed(
                    "a carriage return is not followed by a line feed",
                ));
            }
            self.scanned = at + 2;
            if self.scanned > limits.bytes_max {
                break;
            }
            if at == self.line_start {
                return Ok(Some(self.scanned));
            }
            self.line_start = self.scanned;
            self.lines += 1;
            // The first one is the request line.
            if self.lines > limits.fields_max.saturating_add(1) {
                return Err(Fault::HeaderTooLarge);
            }
        }
        if bytes.len() <= limits.bytes_max {
            self.scanned = self
                .scanned
                .max(bytes.len() - usize::from(bytes.ends_with(b"\r")));
            return Ok(None);
        }
        Err(if self.lines == 0 {
            Fault::TargetTooLong
        } else {
            Fault::HeaderTooLarge
        })
    }
}

/// Checks a head from its request line to its empty line, and says how its body is framed.
pub(super) fn check(head: &[u8]) -> Result<Length, Fault> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| {
        // `Scan` has seen that each line ends so.
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    let minor_version = request_line(lines.next().unwrap_or_default())?;
    let mut framing = Framing::default();
    let mut hosts = 0;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = field(line)?;
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("host") {
            hosts += 1;
            if !is_authority(value) {
                return Err(Fault::Malformed("the Host is not a host with a port"));
            }
        } else if is("content-length") {
            framing.content_length(value)?;
        } else if is("transfer-encoding") {
            framing.transfer_encoding(value)?;
        } else if is("expect") && minor_version > 0 {
            let is_known = |known: &&[u8]| known.eq_ignore_ascii_case(CONTINUE);
            let expected = fields::list(value, Reader::token);
            if !expected.is_some_and(|expected| expected.iter().all(is_known)) {
                return Err(Fault::ExpectationUnknown);
            }
        }
    }
    match hosts {
        0 if minor_version > 0 => return Err(Fault::Malformed("the Host is missing")),
        0 | 1 => {}
        _ => return Err(Fault::Malformed("there is more than one Host")),
    }
    framing.length(minor_version)
}

/// Whether a request may begin with this byte.
pub(super) fn is_method_byte(byte: u8) -> bool {
    is_token(&[byte])
}

/// Writes what hyper would read in another way as it reads it, in a head that follows the rules: a later minor
/// version of HTTP/1 is the last one that is known (RFC 9110 section 2.5), and empty elements of lists are
/// nothing (section 5.6.1.2). `Upgrade` may be ignored (section 7.8), but hyper closes a connection that had
/// one without a shutdown, and the last answer may be lost.
pub(super) fn normalize(head: &mut [u8]) {
    let mut lines = head.split_mut(|&byte| byte == b'\n');
    if let Some(line) = lines.next() {
        let end = line.len().saturating_sub(b"\r".len());
        if let Some(minor) = line.get_mut(..end).and_then(<[u8]>::last_mut) {
            *minor = (*minor).min(b'1');
        }
    }
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':');
        let Some((name, value)) = line.split_at_mut_checked(colon.unwrap_or_default()) else {
            continue;
        };
        if name.eq_ignore_ascii_case(b"upgrade") {
            name.fill(b'x');
            continue;
        }
        let element = if name.eq_ignore_ascii_case(b"transfer-encoding") {
            CHUNKED
        } else if name.eq_ignore_ascii_case(b"expect") {
            CONTINUE
        } else {
            continue;
        };
        let end = value.len().saturating_sub(b"\r".len());
        let value = value.get_mut(1..end).unwrap_or_default();
        if value.iter().all(|byte| b" \t,".contains(byte)) {
            name.fill(b'x');
        } else if let Some((first, rest)) = value.split_at_mut_checked(element.len()) {
            first.copy_from_slice(element);
            rest.fill(b' ');
        }
    }
}

/// Reads a field of a header or trailer.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(Fault::Malformed("a line of the header begins with a space"));
    }
    let colon = line.iter().position(|&byte| byte == b':');
    let (name, rest) = line.split_at(colon.unwrap_or_default());
    if !is_token(name) {
        return Err(Fault::Malformed(
            "a line of the header is not a name and a colon",
        ));
    }
    let value = rest.strip_prefix(b":").unwrap_or(rest).trim_ascii();
    if !value.iter().copied().all(is_text_byte) {
        return Err(Fault::Malformed("the header has control characters"));
    }
    Ok((name, value))
}

/// Checks the request line and returns the minor version.
fn request_line(line: &[u8]) -> Result<u8, Fault> {
    const MALFORMED: Fault =
        Fault::Malformed("the request line is not a method, a target and a version");
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(MALFORMED);
    };
    let minor = match version.strip_prefix(b"HTTP/") {
        Some(&[major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() => {
            if major != b'1' {
                return Err(Fault::VersionUnknown);
            }
            minor - b'0'
        }
        _ => return Err(MALFORMED),
    };
    if !is_token(method) {
        return Err(MALFORMED);
    }
    if !is_target(method, target) {
        return Err(Fault::Malformed("the request target is not a path or URL"));
    }
    if method == b"CONNECT" {
        return Err(Fault::ConnectUnsupported);
    }
    Ok(minor)
}

/// RFC 9112 section 3.2: a path, a URL, or the two forms that belong to one method each.
fn is_target(method: &[u8], target: &[u8]) -> bool {
    let Some(uri) = Uri::try_from(target).ok().filter(|_| is_uri_text(target)) else {
        return false;
    };
    if method == b"CONNECT" {
        return uri.scheme().is_none() && uri.port_u16().is_some() && is_authority(target);
    }
    if target == b"*" {
        return method == b"OPTIONS";
    }
    if target.starts_with(b"/") {
        return true;
    }
    let is_known = |scheme: &Scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS;
    let authority = uri.authority().map(|authority| authority.as_str());
    uri.scheme().is_some_and(is_known)
        && uri.host().is_some_and(|host| !host.is_empty())
        && authority.is_some_and(|authority| is_authority(authority.as_bytes()))
}

/// Whether a text has only the characters of a URI (RFC 3986 section 2), without a fragment.
fn is_uri_text(text: &[u8]) -> bool {
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?@!$&'()*+,;=[]".contains(&byte);
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                after
            }
            _ if is_plain(byte) => after,
            _ => return false,
        };
    }
    true
}

/// A host and perhaps a port (RFC 3986 section 3.2), without user information. Empty where the URI has no
/// authority.
fn is_authority(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else {
        return false;
    };
    let (is_host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => (host.parse::<Ipv6Addr>().is_ok(), port),
            None => return false,
        },
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let is_foreign = |byte: u8| b":/?@[]".contains(&byte);
            (
                is_uri_text(host.as_bytes()) && !host.bytes().any(is_foreign),
                port,
            )
        }
    };
    let is_port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| {
            port.is_empty() || is_digits(port.as_bytes()) && port.parse::<u16>().is_ok()
        });
    is_host && is_port
}

fn is_digits(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// What the fields say about the body.
#[derive(Debug, Default)]
struct Framing {
    length: Option<u64>,
    is_coded: bool,
    is_chunked: bool,
    is_coding_unknown: bool,
}

impl Framing {
    fn content_length(&mut self, value: &[u8]) -> Result<(), Fault> {
        // Two that are equal, in two lines or one, would be allowed, but not every proxy reads them so.
        if self.length.is_some() {
            return Err(Fault::Malformed("there is more than one Content-Length"));
        }
        if !is_digits(value) {
            return Err(Fault::Malformed("the Content-Length is not a number"));
        }
        let length = str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse().ok());
        let length = length.filter(|&length| length <= LENGTH_MAX);
        self.length = Some(length.ok_or(Fault::LengthTooLarge)?);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Fault> {
        self.is_coded = true;
        let codings = fields::list(value, |reader| {
            Some((reader.token()?, reader.parameters()?))
        });
        let malformed = Fault::Malformed("the Transfer-Encoding is not a list of codings");
        for (coding, parameters) in codings.ok_or(malformed)? {
            if self.is_chunked {
                return Err(Fault::Malformed("chunked is not the last transfer coding"));
            }
            if !coding.eq_ignore_ascii_case(CHUNKED) {
                self.is_coding_unknown = true;
            } else if parameters.is_empty() {
                self.is_chunked = true;
            } else {
                return Err(Fault::Malformed("chunked has parameters"));
            }
        }
        Ok(())
    }

    fn length(&self, minor_version: u8) -> Result<Length, Fault> {
        if !self.is_coded {
            return Ok(Length::Bytes(self.length.unwrap_or_default()));
        }
        if self.length.is_some() {
            return Err(Fault::Malformed(
                "there are a Content-Length and a Transfer-Encoding",
            ));
        }
        if minor_version == 0 {
            return Err(Fault::Malformed("HTTP/1.0 has no Transfer-Encoding"));
        }
        if !self.is_chunked {
            return Err(Fault::Malformed("chunked is not the last transfer coding"));
        }
        if self.is_coding_unknown {
            return Err(Fault::CodingUnknown);
        }
        Ok(Length::Chunked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(fields: &str) -> Result<Length, Fault> {
        check(format!("GET / HTTP/1.1\r\nHost: b\r\n{fields}\r\n").as_bytes())
    }

    fn status(checked: Result<Length, Fault>) -> u16 {
        checked.map_or_else(|fault| fault.status().as_u16(), |_| 200)
    }

    const LIMITS: HeadLimits = HeadLimits {
        fields_max: 2,
        bytes_max: 64,
    };

    #[test]
    fn a_head_ends_at_its_empty_line_however_it_arrives() {
        let head = b"GET / HTTP/1.1\r\nHost: b\r\n\r\nbody\n";
        for step in 1..head.len() {
            let mut scan = Scan::default();
            let mut lengths = (0..head.len()).step_by(step).chain([head.len()]);
            let end = lengths.find_map(|length| scan.end(&head[..length], LIMITS).unwrap());
            assert_eq!(end, Some(head.len() - 5), "{step}");
        }
    }

    #[test]
    fn lines_end_with_both_characters_and_have_limits() {
        let end = |bytes: &[u8]| Scan::default().end(bytes, LIMITS);
        assert_eq!(end(b"GET / HTTP/1.1\r"), Ok(None));
        for bare in [
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\r\nHost: b\n",
            "GET / HTTP/1.1\rH",
            "GET / HTTP/1.1\r\r\n",
        ] {
            assert!(matches!(end(bare.as_bytes()), Err(Fault::Malformed(_))));
        }
        assert_eq!(end(&[b'x'; 64]), Ok(None));
        assert_eq!(end(&[b'x'; 65]), Err(Fault::TargetTooLong));
        let long = [b"GET / HTTP/1.1\r\n".as_slice(), &[b'x'; 60]].concat();
        assert_eq!(end(&long), Err(Fault::HeaderTooLarge));
        assert_eq!(end(b"G\r\na:\r\nb:\r\n\r\n"), Ok(Some(13)));
        assert_eq!(end(b"G\r\na:\r\nb:\r\nc:\r\n"), Err(Fault::HeaderTooLarge));
    }

    #[test]
    fn lengths_are_one_number() {
        for (value, length) in [("0", 0), ("5", 5), (" 5\t", 5), ("0005", 5)] {
            let fields = format!("Content-Length:{value}\r\n");
            assert_eq!(get(&fields), Ok(Length::Bytes(length)), "{value}");
        }
        assert_eq!(get(""), Ok(Length::Bytes(0)));
        let zeros = format!("content-length: {}7\r\n", "0".repeat(40));
        assert_eq!(get(&zeros), Ok(Length::Bytes(7)));
        for value in [
            "", "+5", "-5", "5 5", "5, 5", "5,", "0x5", "5.0", "5e1", "\u{664}",
        ] {
            let fields = format!("Content-Length: {value}\r\n");
            assert_eq!(status(get(&fields)), 400, "{value}");
        }
        for value in [
            "18446744073709551614",
            "18446744073709551616",
            &"9".repeat(40),
        ] {
            let fields = format!("Content-Length: {value}\r\n");
            assert_eq!(get(&fields), Err(Fault::LengthTooLarge), "{value}");
        }
        for second in [
            "Content-Length: 5",
            "CONTENT-LENGTH: 6",
            "Transfer-Encoding: chunked",
        ] {
            let fields = format!("Content-Length: 5\r\n{second}\r\n");
            assert_eq!(status(get(&fields)), 400, "{second}");
        }
    }

    #[test]
    fn chunked_is_the_only_transfer_coding() {
        for value in ["chunked", "Chunked", ",chunked,", " chunked ,"] {
            let fields = format!("Transfer-Encoding: {value}\r\n");
            assert_eq!(get(&fields), Ok(Length::Chunked), "{value}");
        }
        for (value, expected) in [
            ("", 400),
            (",", 400),
            ("gzip", 400),
            ("identity", 400),
            ("chunked, chunked", 400),
            ("chunked, gzip", 400),
            ("chunked;q=1", 400),
            ("\"chunked\"", 400),
            ("chunked x", 400),
            ("x\u{b}chunked", 400),
            ("gzip, chunked", 501),
            ("identity, chunked", 501),
            ("x;a=\"b,c\", chunked", 501),
        ] {
            let fields = format!("Transfer-Encoding: {value}\r\n");
            assert_eq!(status(get(&fields)), expected, "{value}");
        }
        let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(status(get(twice)), 400);
        let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(status(check(old)), 400);
    }

    #[test]
    fn there_is_one_host() {
        let with = |version: &str, fields: &str| {
            status(check(
                format!("GET / HTTP/1.{version}\r\n{fields}\r\n").as_bytes(),
            ))
        };
        for host in [
            "b",
            "",
            "b:80",
            "b:",
            "[::1]:80",
            "192.0.2.1",
            "a%20b",
            "x,y;z=1",
        ] {
            assert_eq!(with("1", &format!("Host: {host}\r\n")), 200, "{host}");
        }
        for host in [
            "a b", "a/b", "u@b", "b:x", "b:80:80", "b:65536", "[::1", "[x]", "a\"b", "\u{fc}",
            "::1",
        ] {
            for version in ["0", "1"] {
                assert_eq!(with(version, &format!("Host: {host}\r\n")), 400, "{host}");
            }
        }
        assert_eq!(
            (with("0", ""), with("1", ""), with("2", "")),
            (200, 400, 400)
        );
        for twice in ["Host: b\r\nHost: b\r\n", "Host: b\r\nhost: c\r\n"] {
            assert_eq!((with("0", twice), with("1", twice)), (400, 400));
        }
    }

    #[test]
    fn a_request_line_has_three_parts_and_a_target_of_a_known_form() {
        let line = |line: &str| status(check(format!("{line}\r\nHost: b\r\n\r\n").as_bytes()));
        for good in [
            "GET / HTTP/1.1",
            "GET / HTTP/1.9",
            "GET /a%2Fb;c?d=e&%25 HTTP/1.0",
            "GET //a HTTP/1.1",
            "GET http://other.example HTTP/1.1",
            "GET HTTPS://[::1]:8080/a?b HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "M-SEARCH / HTTP/1.1",
        ] {
            assert_eq!(line(good), 200, "{good}");
        }
        for bad in [
            "",
            "GET",
            "GET /",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            " GET / HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "GET / a HTTP/1.1",
            "GET / http/1.1",
            "GET / HTTP/1",
            "GET / HTTP/1.10",
            "GET / HTTP/1.x",
            "G(T / HTTP/1.1",
            "GET * HTTP/1.1",
            "GET a HTTP/1.1",
            "GET other.example:80 HTTP/1.1",
            "GET ftp://other.example/ HTTP/1.1",
            "GET http:///a HTTP/1.1",
            "GET http://u:p@other.example/ HTTP/1.1",
            "GET /a#b HTTP/1.1",
            "GET /% HTTP/1.1",
            "GET /%zz HTTP/1.1",
            "GET /{a} HTTP/1.1",
            "GET /\u{fc} HTTP/1.1",
            "GET /\\ HTTP/1.1",
            "CONNECT / HTTP/1.1",
            "CONNECT other.example HTTP/1.1",
        ] {
            assert_eq!(line(bad), 400, "{bad}");
        }
        assert_eq!(line("CONNECT other.example:443 HTTP/1.1"), 501);
        for version in ["0.9", "2.0", "3.0", "9.9"] {
            assert_eq!(line(&format!("GET / HTTP/{version}")), 505, "{version}");
        }
    }

    #[test]
    fn a_field_is_a_name_a_colon_and_text() {
        for good in [
            "x:\r\n",
            "X-Y: \t z \r\n",
            "x: \u{fc}\ta\r\n",
            "!#$%&'*+-.^_`|~1: x\r\n",
        ] {
            assert_eq!(status(get(good)), 200, "{good:?}");
        }
        for bad in [
            "x\r\n",
            ":x\r\n",
            "x : y\r\n",
            "x\t: y\r\n",
            " x: y\r\n",
            "x: y\r\n z\r\n",
            "x: y\u{0}\r\n",
            "x: \u{7f}\r\n",
            "x(: y\r\n",
            "\u{fc}: y\r\n",
        ] {
            assert_eq!(status(get(bad)), 400, "{bad:?}");
        }
    }

    #[test]
    fn what_means_the_same_is_written_as_hyper_reads_it() {
        for (before, after) in [
            ("GET / HTTP/1.9", "GET / HTTP/1.1"),
            ("GET / HTTP/1.0", "GET / HTTP/1.0"),
            (
                "Transfer-Encoding: , Chunked ,",
                "Transfer-Encoding:chunked     ",
            ),
            ("transfer-encoding:CHUNKED", "transfer-encoding:chunked"),
            ("Transfer-Encoding: ,", "xxxxxxxxxxxxxxxxx: ,"),
            ("Expect:", "xxxxxx:"),
            (
                "Expect: 100-continue, 100-continue",
                "Expect:100-continue               ",
            ),
            ("X-Expect: , y", "X-Expect: , y"),
            ("Upgrade: h2c", "xxxxxxx: h2c"),
        ] {
            let head = |line: &str| match line.strip_prefix("GET") {
                Some(_) => format!("{line}\r\nHost: b\r\n\r\n"),
                None => format!("GET / HTTP/1.1\r\n{line}\r\n\r\n"),
            };
            let mut normalized = head(before).into_bytes();
            normalize(&mut normalized);
            assert_eq!(String::from_utf8(normalized).unwrap(), head(after));
        }
    }

    #[test]
    fn the_only_expectation_is_to_continue() {
        for good in [
            "100-continue",
            "100-Continue",
            "",
            ",100-continue ,100-continue",
        ] {
            assert_eq!(status(get(&format!("Expect: {good}\r\n"))), 200);
        }
        for bad in [
            "200-ok",
            "100-continue, x",
            "100-continue=1",
            "\"100-continue\"",
        ] {
            assert_eq!(status(get(&format!("Expect: {bad}\r\n"))), 417, "{bad}");
        }
        let old = b"GET / HTTP/1.0\r\nExpect: x\r\n\r\n";
        assert_eq!(status(check(old)), 200);
    }
}
