//! Owns how any JSON object becomes a `google.protobuf.Struct`. It reads the JSON itself, because a
//! parser that goes by Unicode and by the range of a double would take nothing of a profile that has
//! one odd value.

use std::borrow::Cow;

use super::member::{NoMessage, Writer};
use crate::{
    decode::ambiguity::{Ambiguity, Members, UNKNOWN},
    proto::PayloadIssue,
};

/// How deep a free-form object may be nested. Each level is three levels of messages, and clients
/// refuse what is nested deeper than 100.
const DEPTH_MAX: usize = 24;

/// How many values a free-form object may have: each takes some 70 bytes of a client's memory.
const VALUES_MAX: usize = 65_536;

// The fields of `Struct`, of its map's entries, of `Value` and of `ListValue`:
// <https://github.com/protocolbuffers/protobuf/blob/main/src/google/protobuf/struct.proto>.
const STRUCT_FIELDS: u32 = 1;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;
const VALUE_NULL: u32 = 1;
const VALUE_NUMBER: u32 = 2;
const VALUE_STRING: u32 = 3;
const VALUE_BOOL: u32 = 4;
const VALUE_STRUCT: u32 = 5;
const VALUE_LIST: u32 = 6;
const LIST_VALUES: u32 = 1;

/// The JSON was read once, as a part of the body; so it is valid, and this never happens.
const INVALID: PayloadIssue = PayloadIssue::WrongShape;

impl Writer<'_> {
    /// Writes a field with any JSON object.
    pub(super) fn free_form(&mut self, number: u32, json: &str) -> Result<(), NoMessage> {
        let mut object = FreeForm {
            rest: json,
            names: Vec::new(),
            values_left: VALUES_MAX,
        };
        if object.next() != Some(b'{') {
            return Err(PayloadIssue::WrongShape.into());
        }
        self.nested(number, |writer| object.write_object(writer, DEPTH_MAX))
    }
}

/// A free-form object that is being read.
struct FreeForm<'a> {
    rest: &'a str,
    /// The names in the objects that are open, those of the innermost last, each with whether it is
    /// exact.
    names: Vec<(Cow<'a, str>, bool)>,
    values_left: usize,
}

impl<'a> FreeForm<'a> {
    fn write_object(
        &mut self,
        writer: &mut Writer<'_>,
        depth_left: usize,
    ) -> Result<(), NoMessage> {
        let first_name = self.names.len();
        let mut is_first = true;
        self.take(b'{')?;
        while !self.ends(b'}', &mut is_first)? {
            let (name, is_exact) = self.string()?;
            self.take(b':')?;
            writer.nested(STRUCT_FIELDS, |writer| {
                writer.any_text(ENTRY_KEY, &name);
                if !is_exact {
                    writer.note(PayloadIssue::TextNotUnicode);
                }
                self.names.push((name, is_exact));
                self.write_value(writer, ENTRY_VALUE, depth_left)
            })?;
        }
        self.check_names(first_name, writer)?;
        self.names.truncate(first_name);
        Ok(())
    }

    fn write_list(&mut self, writer: &mut Writer<'_>, depth_left: usize) -> Result<(), NoMessage> {
        let mut is_first = true;
        self.take(b'[')?;
        while !self.ends(b']', &mut is_first)? {
            self.write_value(writer, LIST_VALUES, depth_left)?;
        }
        Ok(())
    }

    /// Writes a value in as many objects and lists as have been left.
    fn write_value(
        &mut self,
        writer: &mut Writer<'_>,
        number: u32,
        depth_left: usize,
    ) -> Result<(), NoMessage> {
        let depth_left = depth_left
            .checked_sub(1)
            .ok_or(PayloadIssue::NestedTooDeep)?;
        self.values_left = self
            .values_left
            .checked_sub(1)
            .ok_or(PayloadIssue::TooManyValues)?;
        let first = self.next().ok_or(INVALID)?;
        writer.nested(number, |writer| match first {
            b'"' => {
                let (text, is_exact) = self.string()?;
                writer.any_text(VALUE_STRING, &text);
                if !is_exact {
                    writer.note(PayloadIssue::TextNotUnicode);
                }
                Ok(())
            }
            b'{' => writer.nested(VALUE_STRUCT, |writer| self.write_object(writer, depth_left)),
            b'[' => writer.nested(VALUE_LIST, |writer| self.write_list(writer, depth_left)),
            _ => {
                match self.scalar() {
                    "null" => writer.varint(VALUE_NULL, 0),
                    "true" => writer.varint(VALUE_BOOL, 1),
                    "false" => writer.varint(VALUE_BOOL, 0),
                    number => match number.parse::<f64>() {
                        Ok(double) if double.is_finite() => writer.double(VALUE_NUMBER, double),
                        // A `Value` must not be infinite: its JSON form has no way to say that.
                        _ => {
                            writer.any_text(VALUE_STRING, number);
                            writer.note(PayloadIssue::NumberOutOfRange);
                        }
                    },
                }
                Ok(())
            }
        })
    }

    /// Checks that the innermost object has no name twice.
    fn check_names(&mut self, first: usize, writer: &Writer<'_>) -> Result<(), NoMessage> {
        let names = self.names.get_mut(first..).unwrap_or_default();
        names.sort_unstable();
        let mut pairs = names.iter().zip(names.iter().skip(1));
        match pairs.find(|((one, _), (other, _))| one == other) {
            None => Ok(()),
            Some(((_, true), (_, true))) => Err(NoMessage::Ambiguous(Ambiguity::of(
                writer.path.member,
                Members::Repeated(UNKNOWN),
            ))),
            // They are the same only in the message.
            Some(_) => Err(PayloadIssue::TextNotUnicode.into()),
        }
    }

    /// The next character that is no space, which stays.
    fn next(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.bytes().next()
    }

    fn take(&mut self, byte: u8) -> Result<(), PayloadIssue> {
        if self.next() != Some(byte) {
            return Err(INVALID);
        }
        self.skip(1)
    }

    /// Whether an object or list ends here, which is taken, or the comma before its next value.
    fn ends(&mut self, end: u8, is_first: &mut bool) -> Result<bool, PayloadIssue> {
        let is_first = std::mem::replace(is_first, false);
        match self.next() {
            Some(byte) if byte == end => self.skip(1).map(|()| true),
            Some(b',') if !is_first => self.skip(1).map(|()| false),
            Some(_) if is_first => Ok(false),
            _ => Err(INVALID),
        }
    }

    fn skip(&mut self, bytes: usize) -> Result<(), PayloadIssue> {
        self.rest = self.rest.get(bytes..).ok_or(INVALID)?;
        Ok(())
    }

    /// Takes a number or a literal.
    fn scalar(&mut self) -> &'a str {
        let is_end = |byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
        let end = self.rest.bytes().position(is_end);
        let end = end.unwrap_or(self.rest.len());
        let (scalar, rest) = self.rest.split_at(end);
        self.rest = rest;
        scalar
    }

    /// Takes a string: its text, and whether that is exact. Halves of surrogate pairs become U+FFFD.
    fn string(&mut self) -> Result<(Cow<'a, str>, bool), PayloadIssue> {
        self.take(b'"')?;
        let mut text = Cow::Borrowed("");
        let mut is_exact = true;
        loop {
            let mut bytes = self.rest.bytes();
            let end = bytes.position(|byte| byte == b'"' || byte == b'\\');
            let end = end.ok_or(INVALID)?;
            let (plain, rest) = self.rest.split_at(end);
            self.rest = rest;
            if text.is_empty() {
                text = Cow::Borrowed(plain);
            } else {
                text.to_mut().push_str(plain);
            }
            if self.rest.starts_with('"') {
                self.skip(1)?;
                return Ok((text, is_exact));
            }
            let character = self.escaped()?;
            is_exact &= character.is_some();
            text.to_mut()
                .push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }

    /// Takes an escaped character (RFC 8259, section 7); `None` for half of a surrogate pair.
    fn escaped(&mut self) -> Result<Option<char>, PayloadIssue> {
        let kind = *self.rest.as_bytes().get(1).ok_or(INVALID)?;
        self.skip(2)?;
        let character = match kind {
            b'"' | b'\\' | b'/' => char::from(kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.escaped_unit(),
            _ => return Err(INVALID),
        };
        Ok(Some(character))
    }

    fn escaped_unit(&mut self) -> Result<Option<char>, PayloadIssue> {
        let first = unit(self.rest).ok_or(INVALID)?;
        self.skip(4)?;
        let second = self.rest.strip_prefix("\\u").and_then(unit);
        let pair = [first, second.unwrap_or_default()];
        match char::decode_utf16(pair).next() {
            Some(Ok(character)) => {
                if character.len_utf16() == 2 {
                    self.skip(6)?;
                }
                Ok(Some(character))
            }
            _ => Ok(None),
        }
    }
}

/// The UTF-16 code unit that these four hexadecimal digits are.
fn unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.get(..4)?, 16).ok()
}
