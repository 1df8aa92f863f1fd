//! Owns the grammar that fields of HTTP share (RFC 9110 section 5.6): lists, tokens, quoted strings and
//! parameters, and media types. Knows nothing of what a field means.
//!
//! A line is read as a whole or not at all. A reader that recovers from an error would continue in the
//! middle of text that somebody else wrote, because proxies copy what they were sent into quoted strings.

/// Reads one line of a field from left to right. `None` is a violation of the grammar.
pub(crate) struct Reader<'l> {
    rest: &'l [u8],
}

/// A parameter of an element. The name is in lower case, the value without its quotes and escapes.
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

/// A media type or a range of them (RFC 9110 sections 8.3.1 and 12.5.1).
pub(crate) struct MediaType {
    /// `type/subtype` in lower case.
    pub(crate) essence: String,
    pub(crate) parameters: Vec<Parameter>,
}

/// The elements of a list. Empty ones are ignored (RFC 9110 section 5.6.1.2).
pub(crate) fn list<'l, T>(
    line: &'l [u8],
    mut element: impl FnMut(&mut Reader<'l>) -> Option<T>,
) -> Option<Vec<T>> {
    let mut reader = Reader { rest: line };
    let mut elements = Vec::new();
    loop {
        reader.skip_spaces();
        match reader.peek() {
            None => return Some(elements),
            Some(b',') => {}
            Some(_) => {
                elements.push(element(&mut reader)?);
                reader.skip_spaces();
            }
        }
        match reader.next() {
            None => return Some(elements),
            Some(b',') => {}
            Some(_) => return None,
        }
    }
}

/// A list of media types.
pub(crate) fn media_types(line: &[u8]) -> Option<Vec<MediaType>> {
    list(line, Reader::media_type)
}

/// One media type, and nothing else.
pub(crate) fn media_type(line: &[u8]) -> Option<MediaType> {
    let mut reader = Reader { rest: line };
    let media_type = reader.media_type()?;
    reader.peek().is_none().then_some(media_type)
}

/// Whether all of a text is one token.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().copied().all(is_token_byte)
}

/// What field values and quoted strings may contain: everything but control characters. Bytes above ASCII
/// are text in an unnamed character set (`obs-text`).
pub(crate) fn is_text_byte(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

impl<'l> Reader<'l> {
    /// RFC 9110 section 8.3.1, with the spaces around it.
    fn media_type(&mut self) -> Option<MediaType> {
        self.skip_spaces();
        let kind = self.token()?;
        if self.next()? != b'/' {
            return None;
        }
        let essence = [kind, b"/", self.token()?].concat();
        Some(MediaType {
            essence: String::from_utf8(essence.to_ascii_lowercase()).ok()?,
            parameters: self.parameters()?,
        })
    }

    /// RFC 9110 section 5.6.2.
    pub(crate) fn token(&mut self) -> Option<&'l [u8]> {
        let is_end = |byte: &u8| !is_token_byte(*byte);
        let length = self.rest.iter().position(is_end);
        let (token, rest) = self
            .rest
            .split_at_checked(length.unwrap_or(self.rest.len()))?;
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    /// RFC 9110 section 5.6.6: any number of parameters, each after a `;`. Spaces around the `;` are
    /// allowed, and so is nothing after it.
    pub(crate) fn parameters(&mut self) -> Option<Vec<Parameter>> {
        let mut parameters = Vec::new();
        loop {
            self.skip_spaces();
            if self.peek() != Some(b';') {
                return Some(parameters);
            }
            self.next();
            self.skip_spaces();
            if matches!(self.peek(), Some(byte) if byte != b';' && byte != b',') {
                parameters.push(self.parameter()?);
            }
        }
    }

    /// `name=value`, the value as a token or quoted.
    pub(crate) fn parameter(&mut self) -> Option<Parameter> {
        let name = String::from_utf8(self.token()?.to_ascii_lowercase()).ok()?;
        if self.next()? != b'=' {
            return None;
        }
        let value = match self.peek()? {
            b'"' => self.quoted_string()?,
            _ => self.token()?.to_vec(),
        };
        Some(Parameter { name, value })
    }

    /// RFC 9110 section 5.6.4, from its first quote to its last.
    fn quoted_string(&mut self) -> Option<Vec<u8>> {
        if self.next()? != b'"' {
            return None;
        }
        let mut text = Vec::new();
        loop {
            match self.next()? {
                b'"' => return Some(text),
                b'\\' => text.push(self.next().filter(|&byte| is_text_byte(byte))?),
                byte if is_text_byte(byte) => text.push(byte),
                _ => return None,
            }
        }
    }

    /// RFC 9110 section 5.6.3.
    pub(crate) fn skip_spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.next();
        }
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    pub(crate) fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_elements_are_nothing() {
        let tokens = |line: &'static str| {
            let tokens = list(line.as_bytes(), Reader::token)?;
            Some(tokens.concat())
        };
        for (line, expected) in [
            ("", Some("")),
            (" \t", Some("")),
            (",", Some("")),
            (" , ,\t,", Some("")),
            ("a", Some("a")),
            (",a", Some("a")),
            ("a ,, b,", Some("ab")),
            ("a b", None),
            ("a;b", None),
            ("a, \"b\"", None),
            ("a, b/", None),
        ] {
            assert_eq!(
                tokens(line).as_deref(),
                expected.map(str::as_bytes),
                "{line}"
            );
        }
    }

    #[test]
    fn media_types_are_read_with_their_parameters() {
        let read = |line: &str| {
            let types = media_types(line.as_bytes())?.into_iter().map(|media_type| {
                let parameters = media_type.parameters.into_iter().map(|parameter| {
                    let value = String::from_utf8(parameter.value).unwrap();
                    format!(";{}={value}", parameter.name)
                });
                media_type.essence + &parameters.collect::<String>()
            });
            Some(types.collect::<Vec<_>>().join(" "))
        };
        for (line, expected) in [
            ("Application/JSON", Some("application/json")),
            ("a/b;Charset=\"x;y,z\"", Some("a/b;charset=x;y,z")),
            ("a/b ; q=0.5 ;; , */* ;", Some("a/b;q=0.5 */*")),
            ("a/b;c=\"\\\"\"", Some("a/b;c=\"")),
            ("", Some("")),
            ("a", None),
            ("a/", None),
            ("/b", None),
            ("a / b", None),
            ("a/b c", None),
            ("a/b; c", None),
            ("a/b; c =d", None),
            ("a/b; c=\"d", None),
            ("a/b; c=d e", None),
        ] {
            assert_eq!(read(line).as_deref(), expected, "{line}");
        }
    }
}
