//! Owns what a member of a payload can be, and how it becomes a field of the payload's message. The
//! fields are written as protobuf at once: nobody needs the message as a value.

use prost::encoding::encode_varint;

use crate::{
    decode::{
        ambiguity::{Ambiguity, repeated_of},
        date,
        json::{self, Value},
    },
    proto::PayloadIssue,
    wire::Timestamp,
};

/// A member of a payload, or of an object in it, and the field that it becomes.
#[derive(Clone, Copy)]
pub(in crate::decode) struct Member {
    pub(super) name: &'static str,
    /// Taken where there is none of the first name. Only in the payload itself.
    pub(super) second_name: Option<&'static str>,
    /// The number of the field.
    pub(super) number: u32,
    pub(super) kind: Kind,
}

/// What a member is in JSON, and in the message.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A string.
    Text,
    /// A string, or a number by its digits as they were sent: never through a float.
    TextOrNumber,
    /// RFC 3339; a `Timestamp` in the message.
    Date,
    /// An object whose members are documented.
    Object(&'static Shape),
    /// An array of such objects.
    Objects(&'static Shape),
    /// Any object; a `Struct` in the message.
    FreeForm,
    /// A string; a value of an enum in the message: its place among these, counted from 1.
    Known {
        texts: &'static [&'static str],
        /// The value for every other string, and if there is none.
        otherwise: i32,
    },
}

/// The documented members of an object in a payload.
pub(super) struct Shape {
    /// What the object is called if it has one of them twice.
    pub(super) name: &'static str,
    /// At most [`SHAPE_MEMBERS_MAX`].
    pub(super) members: &'static [Member],
}

impl Shape {
    fn member(&self, name: &str) -> Option<&'static str> {
        let member = self.members.iter().find(|member| member.name == name)?;
        Some(member.name)
    }

    /// The member that an object has twice.
    fn ambiguity(&self, object: &str) -> Option<Ambiguity> {
        let mut names = Vec::new();
        json::members(object, |name, _| {
            if self.member(name.folded().text()).is_some() {
                names.push(name);
            }
        })?;
        let members = repeated_of(names, |name| self.member(name))?;
        Some(Ambiguity::of(self.name, members))
    }
}

const SHAPE_MEMBERS_MAX: usize = 4;

const fn member(name: &'static str, number: u32, kind: Kind) -> Member {
    Member {
        name,
        second_name: None,
        number,
        kind,
    }
}

pub(super) const fn text(name: &'static str, number: u32) -> Member {
    member(name, number, Kind::Text)
}

/// A text that has another name in other events.
pub(super) const fn text_of(names: [&'static str; 2], number: u32) -> Member {
    let [name, second_name] = names;
    Member {
        second_name: Some(second_name),
        ..text(name, number)
    }
}

pub(super) const fn text_or_number(name: &'static str, number: u32) -> Member {
    member(name, number, Kind::TextOrNumber)
}

pub(super) const fn date(name: &'static str, number: u32) -> Member {
    member(name, number, Kind::Date)
}

pub(super) const fn free_form(name: &'static str, number: u32) -> Member {
    member(name, number, Kind::FreeForm)
}

pub(super) const fn object(name: &'static str, number: u32, shape: &'static Shape) -> Member {
    assert!(shape.members.len() <= SHAPE_MEMBERS_MAX);
    member(name, number, Kind::Object(shape))
}

pub(super) const fn objects(name: &'static str, number: u32, shape: &'static Shape) -> Member {
    assert!(shape.members.len() <= SHAPE_MEMBERS_MAX);
    member(name, number, Kind::Objects(shape))
}

pub(super) const fn known(
    name: &'static str,
    number: u32,
    texts: &'static [&'static str],
) -> Member {
    known_or(0, name, number, texts)
}

pub(super) const fn known_or(
    otherwise: i32,
    name: &'static str,
    number: u32,
    texts: &'static [&'static str],
) -> Member {
    member(name, number, Kind::Known { texts, otherwise })
}

/// A documented member of a payload: `inner` is empty, or a member of the object that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) member: &'static str,
    pub(super) inner: &'static str,
}

/// What is wrong with a payload, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Issue {
    pub(super) kind: PayloadIssue,
    pub(super) path: Path,
}

/// Why a payload has no message.
pub(super) enum NoMessage {
    /// At the member that is being written.
    Issue(PayloadIssue),
    /// An object in it has a member twice.
    Ambiguous(Ambiguity),
}

impl From<PayloadIssue> for NoMessage {
    fn from(kind: PayloadIssue) -> Self {
        Self::Issue(kind)
    }
}

/// The date that a value is.
///
/// # Errors
/// `WrongShape` if it is none, `DateOutOfRange` if no timestamp can hold it.
pub(super) fn date_of(value: Value<'_>) -> Result<Timestamp, PayloadIssue> {
    let date = value.string().and_then(|text| date::parse(&text));
    let date = date.ok_or(PayloadIssue::WrongShape)?;
    date.timestamp().ok_or(PayloadIssue::DateOutOfRange)
}

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH_DELIMITED: u32 = 2;

/// Writes a message.
pub(super) struct Writer<'b> {
    pub(super) buffer: &'b mut Vec<u8>,
    /// The member that is being written.
    pub(super) path: Path,
    /// The first value that the message does not have exactly.
    pub(super) inexact: Option<Issue>,
}

impl<'b> Writer<'b> {
    pub(super) fn new(buffer: &'b mut Vec<u8>) -> Self {
        Self {
            buffer,
            path: Path::default(),
            inexact: None,
        }
    }

    /// Notes that the message does not have a value exactly.
    pub(super) fn note(&mut self, kind: PayloadIssue) {
        let path = self.path;
        self.inexact.get_or_insert(Issue { kind, path });
    }

    /// Writes a member. `time` is what it is if it is a date that was read before.
    pub(super) fn member(
        &mut self,
        member: &Member,
        value: Option<Value<'_>>,
        time: Option<Result<Timestamp, PayloadIssue>>,
    ) -> Result<(), NoMessage> {
        if let Kind::Known { texts, otherwise } = member.kind {
            let text = value.map(text_in).transpose()?.unwrap_or_default();
            let known = texts.iter().position(|known| *known == text);
            let known = known.and_then(|place| i32::try_from(place + 1).ok());
            self.number(member.number, known.unwrap_or(otherwise));
            return Ok(());
        }
        let Some(value) = value else {
            return Ok(());
        };
        match member.kind {
            Kind::Known { .. } => {}
            Kind::Text => self.text(member.number, &text_in(value)?),
            Kind::TextOrNumber => {
                let text = value.string_or_number();
                let text = text.ok_or_else(|| not_text(value))?;
                self.text(member.number, &text);
            }
            Kind::Date => match time.unwrap_or_else(|| date_of(value)) {
                Ok(at) => self.timestamp(member.number, at),
                Err(PayloadIssue::DateOutOfRange) => self.note(PayloadIssue::DateOutOfRange),
                Err(issue) => return Err(issue.into()),
            },
            Kind::Object(shape) => self.object(member.number, shape, value)?,
            Kind::Objects(shape) => {
                let elements = value.elements().ok_or(PayloadIssue::WrongShape)?;
                for element in elements {
                    self.object(member.number, shape, element)?;
                }
            }
            Kind::FreeForm => self.free_form(member.number, value.json())?,
        }
        Ok(())
    }

    fn object(&mut self, number: u32, shape: &Shape, object: Value<'_>) -> Result<(), NoMessage> {
        let mut values = [None; SHAPE_MEMBERS_MAX];
        let mut may_repeat = false;
        json::members(object.json(), |name, value| {
            let mut members = shape.members.iter().zip(&mut values);
            may_repeat |= match members.find(|(member, _)| name.is(member.name)) {
                Some((_, slot)) => slot.replace(value).is_some(),
                None => !name.is_folded(),
            };
        })
        .ok_or(PayloadIssue::WrongShape)?;
        if may_repeat && let Some(ambiguity) = shape.ambiguity(object.json()) {
            return Err(NoMessage::Ambiguous(ambiguity));
        }
        self.nested(number, |writer| {
            for (member, value) in shape.members.iter().zip(values) {
                writer.path.inner = member.name;
                writer.member(member, value.and_then(Value::not_null), None)?;
            }
            writer.path.inner = "";
            Ok(())
        })
    }

    fn timestamp(&mut self, number: u32, Timestamp { seconds, nanos }: Timestamp) {
        let start = self.open(number);
        if seconds != 0 {
            self.varint(1, seconds.cast_unsigned());
        }
        self.number(2, nanos);
        self.close(start);
    }

    /// Writes an `int32` or an enum.
    fn number(&mut self, number: u32, value: i32) {
        if value != 0 {
            self.varint(number, i64::from(value).cast_unsigned());
        }
    }

    /// Protobuf leaves out what is empty.
    fn text(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.any_text(number, text);
        }
    }

    // What follows is written also if it is the default: in a `oneof` that is a value too.

    pub(super) fn any_text(&mut self, number: u32, text: &str) {
        self.key(number, LENGTH_DELIMITED);
        encode_varint(text.len() as u64, self.buffer);
        self.buffer.extend_from_slice(text.as_bytes());
    }

    pub(super) fn varint(&mut self, number: u32, value: u64) {
        self.key(number, VARINT);
        encode_varint(value, self.buffer);
    }

    pub(super) fn double(&mut self, number: u32, value: f64) {
        self.key(number, FIXED64);
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn nested(
        &mut self,
        number: u32,
        write: impl FnOnce(&mut Self) -> Result<(), NoMessage>,
    ) -> Result<(), NoMessage> {
        let start = self.open(number);
        write(self)?;
        self.close(start);
        Ok(())
    }

    /// Begins a message, and returns where its length will be. Most have one byte for it.
    fn open(&mut self, number: u32) -> usize {
        self.key(number, LENGTH_DELIMITED);
        self.buffer.push(0);
        self.buffer.len()
    }

    fn close(&mut self, start: usize) {
        let length = self.buffer.len() - start;
        match u8::try_from(length) {
            Ok(short @ 0..0x80) => {
                if let Some(byte) = self.buffer.get_mut(start - 1) {
                    *byte = short;
                }
            }
            _ => {
                let mut bytes = Vec::with_capacity(10);
                encode_varint(length as u64, &mut bytes);
                self.buffer.splice(start - 1..start, bytes);
            }
        }
    }

    fn key(&mut self, number: u32, wire_type: u32) {
        encode_varint(u64::from(number << 3 | wire_type), self.buffer);
    }
}

/// The text of a string.
fn text_in(value: Value<'_>) -> Result<std::borrow::Cow<'_, str>, PayloadIssue> {
    value.string().ok_or_else(|| not_text(value))
}

/// Why a value is no text.
fn not_text(value: Value<'_>) -> PayloadIssue {
    if value.json().starts_with('"') {
        PayloadIssue::TextNotUnicode
    } else {
        PayloadIssue::WrongShape
    }
}
