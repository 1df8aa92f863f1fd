//! Owns the seven documented payloads: their fields in JSON, and the messages of the contract that
//! they become. Source: <https://docs.prelude.so/session/documentation/webhooks>.

use std::{collections::BTreeMap, fmt};

use prost_types::{ListValue, NullValue, Struct, Timestamp, value::Kind};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::json::{self, Name, Value};
use crate::proto::{self, event::Payload};

/// The types with a payload message.
pub(super) const DOCUMENTED_TYPES: [&str; 7] = [
    "user.created",
    "user.deleted",
    "user.profile.updated",
    "user.identifier.created",
    "user.identifier.deleted",
    "user.session.created",
    "user.session.revoked",
];

/// The longest payload message, in bytes. Clients of gRPC refuse messages above 4 MiB unless told
/// otherwise, and a stream must not stop at one event: with the JSON beside it, this stays below.
/// Free-form JSON can grow sixfold when it becomes a `Struct`.
const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// How deep a free-form object may be nested. Each level is three levels of messages, and clients
/// refuse what is nested deeper than 100.
const STRUCT_DEPTH_MAX: usize = 24;

/// How many values a free-form object may have: each takes some 70 bytes of memory for a moment.
const STRUCT_VALUES_MAX: usize = 65_536;

/// The members of any documented payload, as far as they are there and not null.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) user_id: Option<Value<'a>>,
    pub(super) correlation_id: Option<Value<'a>>,
    source: Option<Value<'a>>,
    session_id: Option<Value<'a>>,
    identifier: Option<Value<'a>>,
    identifiers: Option<Value<'a>>,
    profile: Option<Value<'a>>,
    metadata: Option<Value<'a>>,
    pub(super) created_at: Option<Value<'a>>,
    updated_at: Option<Value<'a>>,
    deleted_at: Option<Value<'a>>,
    revoked_at: Option<Value<'a>>,
}

/// A date, where there is one.
type Date = Option<jiff::Timestamp>;

/// A field is there but is not what is documented.
pub(super) struct WrongShape;

impl<'a> Fields<'a> {
    /// Finds the fields in an object; `None` where it is none.
    pub(super) fn read(object: &'a str) -> Option<Self> {
        json::object(object)
    }

    /// The field with this name.
    pub(super) fn member(&mut self, name: &str) -> Option<&mut Option<Value<'a>>> {
        Some(match name {
            "user_id" => &mut self.user_id,
            "correlation_id" => &mut self.correlation_id,
            "source" => &mut self.source,
            "session_id" => &mut self.session_id,
            "identifier" => &mut self.identifier,
            "identifiers" => &mut self.identifiers,
            "profile" => &mut self.profile,
            "metadata" => &mut self.metadata,
            "created_at" => &mut self.created_at,
            "updated_at" => &mut self.updated_at,
            "deleted_at" => &mut self.deleted_at,
            "revoked_at" => &mut self.revoked_at,
            _ => return None,
        })
    }

    /// The date that is documented for a type.
    pub(super) fn documented_date(&self, event_type: &str) -> Result<Date, WrongShape> {
        let value = match event_type {
            "user.created" | "user.identifier.created" | "user.session.created" => self.created_at,
            "user.profile.updated" => self.updated_at,
            "user.deleted" | "user.identifier.deleted" => self.deleted_at,
            "user.session.revoked" => self.revoked_at,
            _ => None,
        };
        value
            .map(|value| instant(value).ok_or(WrongShape))
            .transpose()
    }

    /// When it happened: the date that is documented for the type; else the `created_at` beside
    /// the payload; else the first readable of `revoked_at`, `deleted_at`, `updated_at` and
    /// `created_at`, latest in a thing's life first.
    pub(super) fn occurred_at(&self, documented: Date, beside: Option<Value<'_>>) -> Date {
        documented.or_else(|| {
            let life = [
                self.revoked_at,
                self.deleted_at,
                self.updated_at,
                self.created_at,
            ];
            [beside].into_iter().chain(life).flatten().find_map(instant)
        })
    }

    /// Appends the payload message of a documented type, if the fields have the right shapes.
    pub(super) fn encode(&self, event_type: &str, date: Date, buffer: &mut Vec<u8>) {
        match self.message(event_type, date.map(timestamp)) {
            Ok(Some(message)) if message.encoded_len() <= PAYLOAD_BYTES_MAX => {
                message.encode(buffer);
            }
            // What has no message is whole in the event's JSON.
            Ok(_) | Err(WrongShape) => {}
        }
    }

    fn message(
        &self,
        event_type: &str,
        date: Option<Timestamp>,
    ) -> Result<Option<Payload>, WrongShape> {
        let message = match event_type {
            "user.created" => Payload::UserCreated(proto::UserCreated {
                user_id: string(self.user_id)?,
                identifiers: identifiers(self.identifiers)?,
                profile: free_form(self.profile)?,
                source: string(self.source)?,
                created_at: date,
                correlation_id: string(self.correlation_id)?,
            }),
            "user.deleted" => Payload::UserDeleted(proto::UserDeleted {
                user_id: string(self.user_id)?,
                deleted_at: date,
                correlation_id: string(self.correlation_id)?,
            }),
            "user.profile.updated" => Payload::UserProfileUpdated(proto::UserProfileUpdated {
                user_id: string(self.user_id)?,
                profile: free_form(self.profile)?,
                updated_at: date,
                correlation_id: string(self.correlation_id)?,
            }),
            "user.identifier.created" => {
                Payload::UserIdentifierCreated(proto::UserIdentifierCreated {
                    user_id: string(self.user_id)?,
                    identifier: self.identifier.map(identifier).transpose()?,
                    created_at: date,
                    correlation_id: string(self.correlation_id)?,
                })
            }
            "user.identifier.deleted" => {
                Payload::UserIdentifierDeleted(proto::UserIdentifierDeleted {
                    user_id: string(self.user_id)?,
                    identifier: self.identifier.map(identifier).transpose()?,
                    deleted_at: date,
                    correlation_id: string(self.correlation_id)?,
                })
            }
            "user.session.created" => Payload::UserSessionCreated(proto::UserSessionCreated {
                user_id: string(self.user_id)?,
                session_id: string(self.session_id)?,
                identifier: self.identifier.map(identifier).transpose()?,
                metadata: free_form(self.metadata)?,
                created_at: date,
                correlation_id: string(self.correlation_id)?,
            }),
            "user.session.revoked" => Payload::UserSessionRevoked(proto::UserSessionRevoked {
                user_id: string(self.user_id)?,
                session_id: string(self.session_id)?,
                revoked_at: date,
                correlation_id: string(self.correlation_id)?,
            }),
            _ => return Ok(None),
        };
        Ok(Some(message))
    }
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
        while let Some(name) = members.next_key::<&RawValue>()? {
            match fields.member(Name::new(name).text()) {
                Some(field) => *field = Value::new(members.next_value()?).not_null(),
                None => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

fn string(value: Option<Value<'_>>) -> Result<String, WrongShape> {
    match value {
        None => Ok(String::new()),
        Some(value) => Ok(value.string().ok_or(WrongShape)?.into_owned()),
    }
}

fn timestamp(at: jiff::Timestamp) -> Timestamp {
    // Before 1970 both parts are negative; protobuf wants nanoseconds that count forwards.
    let (seconds, nanos) = match (at.as_second(), at.subsec_nanosecond()) {
        (seconds, nanos) if nanos < 0 => (seconds - 1, nanos + 1_000_000_000),
        both => both,
    };
    Timestamp { seconds, nanos }
}

/// An RFC 3339 date. Those before the year 1 are none: protobuf ends there.
fn instant(value: Value<'_>) -> Option<jiff::Timestamp> {
    const YEAR_ONE: jiff::Timestamp = jiff::Timestamp::constant(-62_135_596_800, 0);
    let at: jiff::Timestamp = value.string()?.parse().ok()?;
    (at >= YEAR_ONE).then_some(at)
}

fn identifiers(value: Option<Value<'_>>) -> Result<Vec<proto::Identifier>, WrongShape> {
    let Some(value) = value else {
        return Ok(Vec::new());
    };
    let elements = value.elements().ok_or(WrongShape)?;
    elements.into_iter().map(identifier).collect()
}

fn identifier(value: Value<'_>) -> Result<proto::Identifier, WrongShape> {
    let (mut kind, mut text) = (None, None);
    json::members(value.json(), |name, value| match name.text() {
        "type" => kind = value.not_null(),
        "value" => text = value.not_null(),
        _ => {}
    })
    .ok_or(WrongShape)?;
    Ok(proto::Identifier {
        r#type: string(kind)?,
        value: string(text)?,
    })
}

/// Any object, as a `Struct`.
fn free_form(value: Option<Value<'_>>) -> Result<Option<Struct>, WrongShape> {
    let Some(value) = value else {
        return Ok(None);
    };
    let mut values_left = STRUCT_VALUES_MAX;
    let seed = FreeForm {
        depth_left: STRUCT_DEPTH_MAX,
        values_left: &mut values_left,
    };
    let mut deserializer = serde_json::Deserializer::from_str(value.json());
    match seed.deserialize(&mut deserializer) {
        Ok(Kind::StructValue(object)) => Ok(Some(object)),
        Ok(_) | Err(_) => Err(WrongShape),
    }
}

struct FreeForm<'b> {
    depth_left: usize,
    values_left: &'b mut usize,
}

impl FreeForm<'_> {
    /// What stands inside of this value.
    fn inner<E: serde::de::Error>(&mut self) -> Result<FreeForm<'_>, E> {
        let depth_left = self.depth_left.checked_sub(1);
        let values_left = self.values_left.checked_sub(1);
        let (Some(depth_left), Some(left)) = (depth_left, values_left) else {
            return Err(E::custom("too deep or too much"));
        };
        *self.values_left = left;
        Ok(FreeForm {
            depth_left,
            values_left: self.values_left,
        })
    }
}

impl<'de> DeserializeSeed<'de> for FreeForm<'_> {
    type Value = Kind;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Kind, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FreeForm<'_> {
    type Value = Kind;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::NullValue(NullValue::NullValue.into()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::BoolValue(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::NumberValue(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::NumberValue(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Kind, E> {
        Ok(Kind::NumberValue(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
        Ok(Kind::StringValue(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Kind, E> {
        Ok(Kind::StringValue(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<Kind, A::Error> {
        let mut values = Vec::new();
        while let Some(kind) = array.next_element_seed(self.inner()?)? {
            values.push(prost_types::Value { kind: Some(kind) });
        }
        Ok(Kind::ListValue(ListValue { values }))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<Kind, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = object.next_key::<String>()? {
            let kind = object.next_value_seed(self.inner()?)?;
            fields.insert(name, prost_types::Value { kind: Some(kind) });
        }
        Ok(Kind::StructValue(Struct { fields }))
    }
}
