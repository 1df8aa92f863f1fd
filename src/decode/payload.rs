//! Owns the members of payloads: which are read, when an event happened by them, and the message of the
//! contract that they become. What is known of each type is in the table of [`types`].

mod free_form;
mod member;
mod names;
mod types;

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use prost::encoding::encode_varint;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use self::{
    member::{Issue, NoMessage, Path, Writer, date_of},
    types::{EventType, TYPES},
};
use super::{
    ambiguity::{Ambiguity, Seen, repeated_of},
    json::{self, Name, Value},
    single::Product,
};
use crate::{
    event::{Batch, Draft},
    proto::PayloadIssue,
    wire::Timestamp,
};

/// The longest payload message, in bytes. Clients of gRPC refuse messages above 4 MiB unless told
/// otherwise, and a stream must not stop at one event: with the JSON beside it, this stays below.
/// Free-form JSON can grow sixfold when it becomes a `Struct`.
const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

// The positions of the members that are read of every event.
const USER_ID: usize = names::position("user_id");
const CORRELATION_ID: usize = names::position("correlation_id");
const METADATA: usize = names::position("metadata");
const CREATED_AT: usize = names::position("created_at");

/// The members that say when an event of a type that is not known happened: latest in a thing's life
/// first.
const TIMES: [usize; 6] = [
    names::position("occurred_at"),
    names::position("time"),
    names::position("revoked_at"),
    names::position("deleted_at"),
    names::position("updated_at"),
    CREATED_AT,
];

/// The event types that have a payload message.
pub fn event_types() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|known| known.name)
}

/// Those that a product sends; `None` is Prelude Auth.
pub fn event_types_of(product: Option<Product>) -> impl Iterator<Item = &'static str> {
    let types = TYPES.iter().filter(move |known| known.product == product);
    types.map(|known| known.name)
}

/// An entry of the table of types, with what is made of it at the start.
pub(super) struct Known {
    entry: &'static EventType,
    /// The name, which the events of a batch share.
    pub(super) name: Arc<str>,
    /// The positions of its time and of its members, with those of their second names.
    time: usize,
    members: Vec<(usize, Option<usize>)>,
}

static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let position = |name| names::member(name).unwrap_or(usize::MAX);
    let known = TYPES.iter().map(|entry| Known {
        entry,
        name: entry.name.into(),
        time: position(entry.time),
        members: entry
            .members
            .iter()
            .map(|member| (position(member.name), member.second_name.map(position)))
            .collect(),
    });
    known.collect()
});

impl Known {
    /// What is known of a type.
    pub(super) fn find(event_type: &str) -> Option<&'static Self> {
        KNOWN.get(names::event_type(event_type)?)
    }
}

/// How many members, by their positions, have room of their own: those of the types that there are most
/// of, `user.*`, which come first in the table. For all members it would take twice as long to move.
const INLINE: usize = 14;

/// The members that are read of any payload, as far as they are there and not null.
#[derive(Default)]
pub(super) struct Fields<'a> {
    first: [Option<Value<'a>>; INLINE],
    /// Those that come after, with their positions.
    others: Vec<(usize, Option<Value<'a>>)>,
}

impl PartialEq for Fields<'_> {
    fn eq(&self, other: &Self) -> bool {
        let others = self.others.iter().chain(&other.others);
        let mut positions = others.map(|&(position, _)| position);
        self.first == other.first
            && positions.all(|position| self.get(position) == other.get(position))
    }
}

impl Eq for Fields<'_> {}

/// The time that a type's events have, if it is there; or why it cannot be taken.
type Documented = Option<Result<Timestamp, PayloadIssue>>;

impl<'a> Fields<'a> {
    /// Finds the members in an object; `None` where it is none, or has one of them twice.
    pub(super) fn read(object: &'a str) -> Option<Self> {
        json::object(object)
    }

    /// The member that an object has twice, if that is why it could not be read.
    pub(super) fn ambiguity(name: &'static str, object: &str) -> Option<Ambiguity> {
        let mut found = Vec::new();
        json::members(object, |name, _| {
            if Self::bit(name.folded().text()).is_some() {
                found.push(name);
            }
        })?;
        repeated_of(found, member_name).map(|members| Ambiguity::of(name, members))
    }

    /// The bit of the member with this name.
    pub(super) fn bit(name: &str) -> Option<u64> {
        Some(1 << names::member(name)?)
    }

    /// The member with this name, and its bit.
    pub(super) fn member(&mut self, name: &str) -> Option<(u64, &mut Option<Value<'a>>)> {
        let position = names::member(name)?;
        Some((1 << position, self.slot(position)?))
    }

    fn slot(&mut self, position: usize) -> Option<&mut Option<Value<'a>>> {
        if position < INLINE {
            return self.first.get_mut(position);
        }
        let found = self.others.iter().position(|&(other, _)| other == position);
        let index = found.unwrap_or(self.others.len());
        if found.is_none() {
            self.others.push((position, None));
        }
        self.others.get_mut(index).map(|(_, value)| value)
    }

    fn get(&self, position: usize) -> Option<Value<'a>> {
        if let Some(value) = self.first.get(position) {
            return *value;
        }
        let mut others = self.others.iter();
        others.find(|&&(other, _)| other == position)?.1
    }

    pub(super) fn user_id(&self) -> Option<Value<'a>> {
        self.get(USER_ID)
    }

    /// The correlation id: a member of the payload, or of the payload's `metadata` where that can be
    /// Prelude's.
    pub(super) fn correlation_id(&self, known: Option<&Known>) -> Option<Value<'a>> {
        let own = self.get(CORRELATION_ID);
        if own.is_some() || known.is_some_and(|known| !known.entry.is_correlated_by_metadata) {
            return own;
        }
        let metadata = self.get(METADATA)?;
        let (mut found, mut count) = (None, 0);
        json::members(metadata.json(), |name, value| {
            if name.is("correlation_id") {
                (found, count) = (value.not_null(), count + 1);
            }
        })?;
        found.filter(|_| count == 1)
    }

    /// The date in the member that is documented for a type.
    pub(super) fn documented_date(&self, known: Option<&Known>) -> Documented {
        self.get(known?.time).map(date_of)
    }

    /// The `created_at` that is a readable date.
    pub(super) fn created_at(&self) -> Option<Timestamp> {
        date_of(self.get(CREATED_AT)?).ok()
    }

    /// When it happened: the date that is documented for the type; else the `created_at` beside
    /// the payload; else the first readable of [`TIMES`].
    pub(super) fn occurred_at(
        &self,
        documented: Documented,
        beside: Option<Timestamp>,
    ) -> Option<Timestamp> {
        let documented = documented.and_then(Result::ok);
        documented.or(beside).or_else(|| {
            let mut dates = TIMES.into_iter().filter_map(|time| self.get(time));
            dates.find_map(|date| date_of(date).ok())
        })
    }

    /// Appends the message of a payload, and what it lacks.
    ///
    /// # Errors
    /// An object that becomes part of the message has a member twice.
    pub(super) fn encode(
        &self,
        known: &Known,
        time: Documented,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Ambiguity> {
        let start = buffer.len();
        let mut writer = Writer::new(buffer);
        let written = writer.nested(known.entry.number, |writer| {
            for (member, &(first, second)) in known.entry.members.iter().zip(&known.members) {
                writer.path.member = member.name;
                let value = self.get(first);
                let value = value.or_else(|| self.get(second?));
                let time = time.filter(|_| first == known.time);
                writer.member(member, value, time)?;
            }
            Ok(())
        });
        let (path, inexact) = (writer.path, writer.inexact);
        let bytes = buffer.len() - start;
        let issue = match written {
            Ok(()) if bytes <= PAYLOAD_BYTES_MAX => {
                if let Some(issue) = inexact {
                    let message = buffer.split_off(start);
                    put_issue(buffer, issue);
                    buffer.extend_from_slice(&message);
                }
                return Ok(());
            }
            Ok(()) => Issue {
                kind: PayloadIssue::TooLarge,
                path: Path::default(),
            },
            Err(NoMessage::Issue(kind)) => Issue { kind, path },
            Err(NoMessage::Ambiguous(ambiguity)) => {
                buffer.truncate(start);
                return Err(ambiguity);
            }
        };
        // What has no message is whole in the event's JSON.
        buffer.truncate(start);
        put_issue(buffer, issue);
        Ok(())
    }
}

/// Appends that a payload of a known type is no object.
pub(super) fn put_no_object(buffer: &mut Vec<u8>) {
    let issue = Issue {
        kind: PayloadIssue::WrongShape,
        path: Path::default(),
    };
    put_issue(buffer, issue);
}

/// The tags of `Event.payload_issue`, a varint, and of `Event.payload_issue_member`, a text.
const ISSUE: u8 = 12 << 3;
const ISSUE_MEMBER: u8 = 13 << 3 | 2;

/// Appends the fields of an event that say what its payload's message lacks.
fn put_issue(buffer: &mut Vec<u8>, Issue { kind, path }: Issue) {
    buffer.push(ISSUE);
    encode_varint(i64::from(i32::from(kind)).cast_unsigned(), buffer);
    let separator = if path.inner.is_empty() { "" } else { "." };
    let texts = [path.member, separator, path.inner];
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    if bytes > 0 {
        buffer.push(ISSUE_MEMBER);
        encode_varint(bytes as u64, buffer);
        for text in texts {
            buffer.extend_from_slice(text.as_bytes());
        }
    }
}

/// What the payload message of an event lacks, and the member that has the issue (empty if it is none).
#[must_use]
pub fn payload_issue<'b>(batch: &'b Batch, draft: &Draft) -> Option<(PayloadIssue, &'b str)> {
    // These fields come before the message.
    let (&kind, rest) = batch.payload(draft).strip_prefix(&[ISSUE])?.split_first()?;
    let kind = PayloadIssue::try_from(i32::from(kind)).ok()?;
    let member = rest
        .strip_prefix(&[ISSUE_MEMBER])
        .and_then(|rest| {
            let (&length, rest) = rest.split_first()?;
            str::from_utf8(rest.get(..usize::from(length))?).ok()
        })
        .unwrap_or_default();
    Some((kind, member))
}

/// The name of an issue in metrics and log lines.
#[must_use]
pub fn issue_name(issue: PayloadIssue) -> &'static str {
    match issue {
        PayloadIssue::Unspecified => "none",
        PayloadIssue::WrongShape => "wrong_shape",
        PayloadIssue::DateOutOfRange => "date_out_of_range",
        PayloadIssue::NumberOutOfRange => "number_out_of_range",
        PayloadIssue::TextNotUnicode => "text_not_unicode",
        PayloadIssue::NestedTooDeep => "nested_too_deep",
        PayloadIssue::TooManyValues => "too_many_values",
        PayloadIssue::TooLarge => "too_large",
    }
}

/// The name of a member, if it is one that is read.
pub(super) fn member_name(name: &str) -> Option<&'static str> {
    names::member_name(names::member(name)?)
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        parser.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a payload")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        let mut seen = Seen::default();
        while let Some(name) = members.next_key::<&RawValue>()? {
            let name = Name::new(name);
            match fields.member(name.text()) {
                Some((bit, field)) => {
                    seen.first(bit)?;
                    *field = Value::new(members.next_value()?).not_null();
                }
                None => {
                    seen.in_other_case(&name, Fields::bit)?;
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests;
