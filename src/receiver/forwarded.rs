//! Owns the grammar of the `Forwarded` header (RFC 7239 section 4) on top of the lists and parameters that
//! fields share ([`fields`]). Knows nothing of who is believed.
//!
//! ```text
//! Forwarded         = 1#forwarded-element
//! forwarded-element = [ forwarded-pair ] *( ";" [ forwarded-pair ] )
//! forwarded-pair    = token "=" ( token / quoted-string )
//! ```
//!
//! Spaces around `;` are accepted although the RFC has none there, because several proxies write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::fields::{self, Parameter, Reader};

/// The addresses that the elements of one header line name with `for`, from left to right: `None`
/// for an element without a `for`, or with one that is not an address. `None` instead of the list where
/// the line does not follow the grammar, or an element has a parameter twice.
///
/// Each line of several is read by itself: a quoted string does not go on in the next one.
pub(crate) fn addresses(line: &[u8]) -> Option<Vec<Option<IpAddr>>> {
    fields::list(line, |reader| {
        let pairs = element(reader)?;
        let node = pairs.iter().find(|pair| pair.name == "for");
        Some(node.and_then(|pair| node_address(&pair.value)))
    })
}

/// The pairs up to the next comma, or the end.
fn element(reader: &mut Reader<'_>) -> Option<Vec<Parameter>> {
    let mut pairs = Vec::new();
    if reader.peek() != Some(b';') {
        pairs.push(reader.parameter()?);
    }
    pairs.extend(reader.parameters()?);
    let mut names: Vec<&str> = pairs.iter().map(|pair| pair.name.as_str()).collect();
    names.sort_unstable();
    let is_repeated = names.windows(2).any(|two| matches!(two, [a, b] if a == b));
    (!is_repeated).then_some(pairs)
}

/// The address of a node (RFC 7239 section 6), with or without a port. `unknown` and names that hide
/// an address are none.
fn node_address(node: &[u8]) -> Option<IpAddr> {
    let node = str::from_utf8(node).ok()?;
    let (address, port) = match node.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            (IpAddr::V6(address), port)
        }
        None => {
            let (address, port) = node.split_at(node.find(':').unwrap_or(node.len()));
            let address: Ipv4Addr = address.parse().ok()?;
            (IpAddr::V4(address), port)
        }
    };
    (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(address)
}

/// A number, or a name that hides one.
fn is_port(port: &str) -> bool {
    if let Some(hidden) = port.strip_prefix('_') {
        let is_hidden = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        return !hidden.is_empty() && hidden.bytes().all(is_hidden);
    }
    (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::fields::is_text_byte;

    /// The addresses as text, `-` for an element without one.
    fn read(line: impl AsRef<[u8]>) -> Option<String> {
        let texts = addresses(line.as_ref())?
            .into_iter()
            .map(|address| address.map_or_else(|| "-".to_owned(), |address| address.to_string()));
        Some(texts.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn elements_and_their_pairs_are_read_by_the_grammar() {
        for (line, expected) in [
            ("", ""),
            ("for=192.0.2.43", "192.0.2.43"),
            ("FOR=192.0.2.43", "192.0.2.43"),
            (
                "for=192.0.2.43, for=198.51.100.17",
                "192.0.2.43 198.51.100.17",
            ),
            (
                "for=192.0.2.43,for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com",
                "192.0.2.43 198.51.100.17",
            ),
            ("\t, ,for=192.0.2.43 \t,,", "192.0.2.43"),
            (";for=192.0.2.43;", "192.0.2.43"),
            (";", "-"),
            ("for=192.0.2.43 ; proto=https", "192.0.2.43"),
            ("proto=https", "-"),
            // Quoted, with a port, escaped.
            (r#"for="192.0.2.43""#, "192.0.2.43"),
            (r#"for="192.0.2.43:47011""#, "192.0.2.43"),
            (r#"for="192.0.2.43:_port""#, "192.0.2.43"),
            (r#"for="[2001:db8:cafe::17]:4711""#, "2001:db8:cafe::17"),
            (r#"for="[::ffff:192.0.2.43]""#, "::ffff:192.0.2.43"),
            (r#"for="19\2.0.2.\43""#, "192.0.2.43"),
            // What hides an address, or is none.
            ("for=unknown, for=_hidden, for=\"_gazonk:80\"", "- - -"),
            ("for=localhost, for=192.0.2.043, for=192.0.2", "- - -"),
            (
                r#"for="2001:db8::1", for="[192.0.2.43]", for="[::1%eth0]""#,
                "- - -",
            ),
            (
                r#"for="192.0.2.43:", for="192.0.2.43:123456", for="[::1]80""#,
                "- - -",
            ),
            (r#"for="", for=" 192.0.2.43""#, "- -"),
            // Separators in quoted strings are text.
            (
                r#"for=192.0.2.43;host="x,for=203.0.113.7;y=";proto=http"#,
                "192.0.2.43",
            ),
            (
                r#"for=192.0.2.43;host="x\",for=203.0.113.7;y=\"";proto=http"#,
                "192.0.2.43",
            ),
            (r#"for=192.0.2.43;host="\\";proto=http"#, "192.0.2.43"),
            (r#"for=192.0.2.43;host="for=203.0.113.7""#, "192.0.2.43"),
        ] {
            assert_eq!(read(line).as_deref(), Some(expected), "{line}");
        }
        // Text that is no ASCII is text in quotes.
        assert_eq!(
            read(b"for=192.0.2.43;host=\"\xfc\\\xff\"").as_deref(),
            Some("192.0.2.43")
        );
    }

    #[test]
    fn a_line_with_a_fault_anywhere_names_nobody() {
        for line in [
            "for",
            "for=",
            "=192.0.2.43",
            "for =192.0.2.43",
            "for= 192.0.2.43",
            "for=192.0.2.43:80",
            "for=[2001:db8::1]",
            "for=192.0.2.43;for=203.0.113.7",
            "for=192.0.2.43;For=192.0.2.43",
            "for=192.0.2.43;proto=http;proto=https",
            "for=192.0.2.43 for=203.0.113.7",
            "for=192.0.2.43;host=a b",
            "for=192.0.2.43;host=a/b",
            // Quotes that do not end, or that something follows.
            r#"for=192.0.2.43;host=""#,
            r#"for=192.0.2.43;host="x"#,
            r#"for=192.0.2.43;host="x\""#,
            r#"for=192.0.2.43;host="x\"#,
            r#"for=192.0.2.43;host="x"y"#,
            r#"for=192.0.2.43;host="x""y""#,
            r#"for=192.0.2.43;host=x"y""#,
            "for=192.0.2.43;host=\"x\u{0}\"",
            "for=192.0.2.43;host=\"x\\\u{7f}\"",
        ] {
            assert_eq!(read(line), None, "{line}");
            let after_a_good_one = format!("for=198.51.100.17, {line}");
            assert_eq!(read(after_a_good_one), None, "{line}");
        }
        assert_eq!(read(b"for=192.0.2.43;h\xf6st=x"), None);
        assert_eq!(read(b"for=192.0.2.43;host=\xfc"), None);
    }

    /// Any text, as a proxy quotes it that knows how to.
    fn quoted(text: &[u8]) -> Vec<u8> {
        let mut quoted = vec![b'"'];
        for &byte in text {
            if matches!(byte, b'"' | b'\\') {
                quoted.push(b'\\');
            }
            quoted.push(byte);
        }
        quoted.push(b'"');
        quoted
    }

    fn any_text() -> impl Strategy<Value = Vec<u8>> {
        // Mostly what could be taken for something else.
        let odd = proptest::sample::select(b"\",;=\\ \tfor".to_vec());
        let byte = prop_oneof![3 => odd, 1 => any::<u8>()];
        let text = byte.prop_filter("no control characters", |&byte| is_text_byte(byte));
        proptest::collection::vec(text, 0..24)
    }

    fn node(address: IpAddr, port: Option<u16>) -> String {
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        match address {
            IpAddr::V4(address) => format!("{address}{port}"),
            IpAddr::V6(address) => format!("[{address}]{port}"),
        }
    }

    proptest! {
        /// Whatever a stranger gets into a quoted string, elements stay what their proxies wrote.
        #[test]
        fn what_is_written_is_what_is_read(
            elements in proptest::collection::vec(
                (any::<Option<IpAddr>>(), any::<Option<u16>>(), any_text(), any::<bool>()),
                0..5,
            ),
            comma in proptest::sample::select(vec![",", " ,\t", ", ,", ",  "]),
        ) {
            let mut line = Vec::new();
            for (index, (address, port, host, host_first)) in elements.iter().enumerate() {
                if index > 0 {
                    line.extend_from_slice(comma.as_bytes());
                }
                let host = [b"host=", quoted(host).as_slice()].concat();
                let mut pairs = vec![host, b"proto=https".to_vec()];
                if let Some(address) = address {
                    let node = quoted(node(*address, *port).as_bytes());
                    let at = usize::from(*host_first);
                    pairs.insert(at, [b"For=", node.as_slice()].concat());
                }
                line.extend_from_slice(&pairs.join(&b';'));
            }
            let expected: Vec<_> = elements.iter().map(|element| element.0).collect();
            prop_assert_eq!(addresses(&line), Some(expected));
        }

        #[test]
        fn no_bytes_make_it_panic(line: Vec<u8>) {
            let _ = addresses(&line);
        }

        /// A line that is cut within a quoted string names nobody.
        #[test]
        fn half_a_quoted_string_names_nobody(text in any_text(), cut in any::<proptest::sample::Index>()) {
            let quoted = quoted(&text);
            let end = cut.index(quoted.len() - 1) + 1;
            let line = [b"for=192.0.2.43;host=", &quoted[..end]].concat();
            prop_assert_eq!(addresses(&line), None);
        }
    }
}
