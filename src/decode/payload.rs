//! Owns the seven documented payloads: their fields in JSON, and the messages of the contract that
//! they become. Source: <https://docs.prelude.so/session/documentation/webhooks>.

use std::{collections::BTreeMap, fmt};

use prost_types::{ListValue, NullValue, Struct, Timestamp, value::Kind};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::{
    ambiguity::{Ambiguity, Members, Seen, UNKNOWN, repeated},
    date,
    json::{self, Name, Value},
};
use crate::{
    proto::{self, event::Payload},
    wire,
};

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
#[derive(Default, PartialEq, Eq)]
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
    occurred_at: Option<Value<'a>>,
}

/// A date, where there is one that the contract can hold.
type Date = Option<wire::Timestamp>;

/// A field is there but is not what is documented.
pub(super) struct WrongShape;

/// Why a payload has no message.
enum NoMessage {
    WrongShape,
    /// An object in it has a member twice.
    Ambiguous(Ambiguity),
}

impl From<WrongShape> for NoMessage {
    fn from(WrongShape: WrongShape) -> Self {
        Self::WrongShape
    }
}

impl<'a> Fields<'a> {
    /// Finds the fields in an object; `None` where it is none, or has one of them twice.
    pub(super) fn read(object: &'a str) -> Option<Self> {
        json::object(object)
    }

    /// The field that an object has twice, if that is why it could not be read.
    pub(super) fn ambiguity(name: &'static str, object: &str) -> Option<Ambiguity> {
        let mut names = Vec::new();
        json::members(object, |name, _| {
            if Self::bit(name.folded().text()).is_some() {
                names.push(name);
            }
        })?;
        repeated(names).map(|members| Ambiguity::of(name, members))
    }

    /// The bit of the field with this name.
    pub(super) fn bit(name: &str) -> Option<u32> {
        Self::default().member(name).map(|(bit, _)| bit)
    }

    /// The field with this name, and its bit.
    pub(super) fn member(&mut self, name: &str) -> Option<(u32, &mut Option<Value<'a>>)> {
        Some(match name {
            "user_id" => (1 << 0, &mut self.user_id),
            "correlation_id" => (1 << 1, &mut self.correlation_id),
            "source" => (1 << 2, &mut self.source),
            "session_id" => (1 << 3, &mut self.session_id),
            "identifier" => (1 << 4, &mut self.identifier),
            "identifiers" => (1 << 5, &mut self.identifiers),
            "profile" => (1 << 6, &mut self.profile),
            "metadata" => (1 << 7, &mut self.metadata),
            "created_at" => (1 << 8, &mut self.created_at),
            "updated_at" => (1 << 9, &mut self.updated_at),
            "deleted_at" => (1 << 10, &mut self.deleted_at),
            "revoked_at" => (1 << 11, &mut self.revoked_at),
            "occurred_at" => (1 << 12, &mut self.occurred_at),
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
        let Some(value) = value else {
            return Ok(None);
        };
        let text = value.string().ok_or(WrongShape)?;
        Ok(date::parse(&text).ok_or(WrongShape)?.timestamp())
    }

    /// The date that a value is; `None` where there is none that can be read.
    pub(super) fn date(value: Option<Value<'_>>) -> Date {
        date::parse(&value?.string()?)?.timestamp()
    }

    /// When it happened: the date that is documented for the type; else the `created_at` beside
    /// the payload; else the first readable of `occurred_at` and, latest in a thing's life first,
    /// `revoked_at`, `deleted_at`, `updated_at` and `created_at`.
    pub(super) fn occurred_at(&self, documented: Date, beside: Date) -> Date {
        documented.or(beside).or_else(|| {
            let life = [
                self.occurred_at,
                self.revoked_at,
                self.deleted_at,
                self.updated_at,
                self.created_at,
            ];
            life.into_iter().find_map(Self::date)
        })
    }

    /// Appends the payload message of a documented type, if the fields have the right shapes.
    pub(super) fn encode(
        &self,
        event_type: &str,
        date: Date,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Ambiguity> {
        match self.message(event_type, date.map(timestamp)) {
            Ok(Some(message)) if message.encoded_len() <= PAYLOAD_BYTES_MAX => {
                message.encode(buffer);
            }
            // What has no message is whole in the event's JSON.
            Ok(_) | Err(NoMessage::WrongShape) => {}
            Err(NoMessage::Ambiguous(ambiguity)) => return Err(ambiguity),
        }
        Ok(())
    }

    fn message(
        &self,
        event_type: &str,
        date: Option<Timestamp>,
    ) -> Result<Option<Payload>, NoMessage> {
        let message = match event_type {
            "user.created" => Payload::UserCreated(proto::UserCreated {
                user_id: string(self.user_id)?,
                identifiers: identifiers(self.identifiers)?,
                profile: free_form("profile", self.profile)?,
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
                profile: free_form("profile", self.profile)?,
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
                metadata: free_form("metadata", self.metadata)?,
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

fn string(value: Option<Value<'_>>) -> Result<String, WrongShape> {
    match value {
        None => Ok(String::new()),
        Some(value) => Ok(value.string().ok_or(WrongShape)?.into_owned()),
    }
}

fn timestamp(wire::Timestamp { seconds, nanos }: wire::Timestamp) -> Timestamp {
    Timestamp { seconds, nanos }
}

fn identifiers(value: Option<Value<'_>>) -> Result<Vec<proto::Identifier>, NoMessage> {
    let Some(value) = value else {
        return Ok(Vec::new());
    };
    let elements = value.elements().ok_or(WrongShape)?;
    elements.into_iter().map(identifier).collect()
}

fn identifier(value: Value<'_>) -> Result<proto::Identifier, NoMessage> {
    let (mut kind, mut text, mut names) = (None, None, Vec::new());
    json::members(value.json(), |name, value| {
        match name.text() {
            "type" => kind = Some(value),
            "value" => text = Some(value),
            _ if matches!(name.folded().text(), "type" | "value") => {}
            _ => return,
        }
        names.push(name);
    })
    .ok_or(WrongShape)?;
    if let Some(members) = repeated(names) {
        let ambiguity = Ambiguity::of("identifier", members);
        return Err(NoMessage::Ambiguous(ambiguity));
    }
    Ok(proto::Identifier {
        r#type: string(kind.and_then(Value::not_null))?,
        value: string(text.and_then(Value::not_null))?,
    })
}

/// Any object, as a `Struct`.
fn free_form(name: &'static str, value: Option<Value<'_>>) -> Result<Option<Struct>, NoMessage> {
    let Some(value) = value else {
        return Ok(None);
    };
    let mut bounds = Bounds {
        values_left: STRUCT_VALUES_MAX,
        is_repeated: false,
    };
    let seed = FreeForm {
        depth_left: STRUCT_DEPTH_MAX,
        bounds: &mut bounds,
    };
    let mut deserializer = serde_json::Deserializer::from_str(value.json());
    match seed.deserialize(&mut deserializer) {
        _ if bounds.is_repeated => {
            let ambiguity = Ambiguity::of(name, Members::Repeated(UNKNOWN));
            Err(NoMessage::Ambiguous(ambiguity))
        }
        Ok(Kind::StructValue(object)) => Ok(Some(object)),
        Ok(_) | Err(_) => Err(NoMessage::WrongShape),
    }
}

/// What all values of one free-form object share.
struct Bounds {
    values_left: usize,
    /// Whether an object in it has a member twice.
    is_repeated: bool,
}

struct FreeForm<'b> {
    depth_left: usize,
    bounds: &'b mut Bounds,
}

impl FreeForm<'_> {
    /// What stands inside of this value.
    fn inner<E: serde::de::Error>(&mut self) -> Result<FreeForm<'_>, E> {
        let depth_left = self.depth_left.checked_sub(1);
        let values_left = self.bounds.values_left.checked_sub(1);
        let (Some(depth_left), Some(left)) = (depth_left, values_left) else {
            return Err(E::custom("too deep or too much"));
        };
        self.bounds.values_left = left;
        Ok(FreeForm {
            depth_left,
            bounds: self.bounds,
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
            let value = prost_types::Value { kind: Some(kind) };
            self.bounds.is_repeated |= fields.insert(name, value).is_some();
        }
        Ok(Kind::StructValue(Struct { fields }))
    }
}
