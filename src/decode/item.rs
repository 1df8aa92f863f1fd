//! Owns where in one event its fields are: in the object of its payload, or beside it. Knows nothing
//! of what they mean.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    ID_BYTES_MAX,
    ambiguity::{Ambiguity, Seen, repeated_of},
    json::{self, Name, Value},
    payload::{self, Fields},
};

/// The members of one event that matter, as far as they are there.
///
/// It deserializes only from what is usual: an object, whose `payload` and `data` are objects, and in
/// which nothing is ambiguous. [`Item::read`] takes anything, and says what is ambiguous.
#[derive(Default)]
pub(super) struct Item<'a> {
    id: Option<Value<'a>>,
    r#type: Option<Value<'a>>,
    event: Option<Value<'a>>,
    payload: Nested<'a>,
    data: Nested<'a>,
    /// The item's own members.
    beside: Fields<'a>,
}

/// What a member is that fields may be in.
#[derive(Default, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a box would be an allocation for every event"
)]
enum Nested<'a> {
    /// Not there, or null.
    #[default]
    None,
    Object(Fields<'a>),
    Other,
}

impl<'a> Item<'a> {
    /// Reads any JSON. What is no object has no members.
    pub(super) fn read(raw_json: &'a str) -> Result<Self, Ambiguity> {
        match json::object(raw_json) {
            Some(AnyItem(item)) => Ok(item),
            // It is read again only to tell what is wrong with it.
            None => ambiguity(raw_json).map_or_else(|| Ok(Self::default()), Err),
        }
    }

    /// Two members that mean the same and say something else.
    fn contradiction(&self) -> Option<Ambiguity> {
        let text = |value: Option<Value<'a>>| value?.string().filter(|text| !text.is_empty());
        if let (Some(one), Some(other)) = (text(self.r#type), text(self.event))
            && one != other
        {
            return Some(Ambiguity::different("type", "event"));
        }
        match (&self.payload, &self.data) {
            (Nested::Object(one), Nested::Object(other)) if one != other => {
                Some(Ambiguity::different("payload", "data"))
            }
            _ => None,
        }
    }

    /// The fields of the payload, wherever they are; `None` where there is no object for them.
    pub(super) fn fields(&self) -> Option<&Fields<'a>> {
        match (&self.payload, &self.data) {
            (Nested::Object(fields), _) | (_, Nested::Object(fields)) => Some(fields),
            (Nested::None, Nested::None) => Some(&self.beside),
            _ => None,
        }
    }

    /// The fields that stand beside the payload.
    pub(super) fn beside(&self) -> &Fields<'a> {
        &self.beside
    }

    /// What the event calls itself.
    pub(super) fn event_type(&self) -> Option<Cow<'a, str>> {
        let candidates = [self.r#type, self.event];
        let mut texts = candidates.into_iter().flatten().filter_map(Value::string);
        texts.find(|text| !text.is_empty())
    }

    /// The event's own id.
    pub(super) fn id(&self) -> Option<Cow<'a, str>> {
        bounded_id(self.id?)
    }

    /// An id of the payload, or else the one beside it. One of the payload that cannot be used has no
    /// substitute: what stands beside it may be another id.
    pub(super) fn inner_id(inner: Option<Value<'a>>, outer: Option<Value<'a>>) -> Cow<'a, str> {
        inner.or(outer).and_then(bounded_id).unwrap_or_default()
    }
}

/// What is ambiguous in an event that could not be read.
fn ambiguity(raw_json: &str) -> Option<Ambiguity> {
    let (mut names, mut found) = (Vec::new(), None);
    let mut item = Item::default();
    json::members(raw_json, |name, value| {
        let fields = || Fields::read(value.json()).map_or(Nested::None, Nested::Object);
        match name.text() {
            "payload" => {
                item.payload = fields();
                found = found.or_else(|| Fields::ambiguity("payload", value.json()));
            }
            "data" => {
                item.data = fields();
                found = found.or_else(|| Fields::ambiguity("data", value.json()));
            }
            "type" => item.r#type = value.not_null(),
            "event" => item.event = value.not_null(),
            _ if bit(name.folded().text()).is_none() => return,
            _ => {}
        }
        names.push(name);
    })?;
    let twice = repeated_of(names, payload::member_name);
    let twice = twice.map(|members| Ambiguity::of("event", members));
    found.or(twice).or_else(|| item.contradiction())
}

fn bounded_id(value: Value<'_>) -> Option<Cow<'_, str>> {
    let text = value.string_or_number()?;
    (1..=ID_BYTES_MAX).contains(&text.len()).then_some(text)
}

impl<'de> Deserialize<'de> for Item<'de> {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        parser.deserialize_map(ItemVisitor { any_payload: false })
    }
}

/// An item whose payload need not be an object.
#[derive(Default)]
struct AnyItem<'a>(Item<'a>);

impl<'de> Deserialize<'de> for AnyItem<'de> {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        let visitor = ItemVisitor { any_payload: true };
        parser.deserialize_map(visitor).map(Self)
    }
}

/// The bits of an event's own members; those of its fields are below.
const ID: u64 = 1 << 58;
const TYPE: u64 = 1 << 59;
const EVENT: u64 = 1 << 60;
const PAYLOAD: u64 = 1 << 61;
const DATA: u64 = 1 << 62;
const APP_ID: u64 = 1 << 63;

/// The bit of the member with this name.
fn bit(name: &str) -> Option<u64> {
    match name {
        "id" => Some(ID),
        "type" => Some(TYPE),
        "event" => Some(EVENT),
        "payload" => Some(PAYLOAD),
        "data" => Some(DATA),
        "app_id" => Some(APP_ID),
        name => Fields::bit(name),
    }
}

struct ItemVisitor {
    /// Whether a payload may be anything, which costs one more walk over it.
    any_payload: bool,
}

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Item<'de>, A::Error> {
        let mut item = Item::default();
        let mut seen = Seen::default();
        while let Some(name) = members.next_key::<&RawValue>()? {
            let name = Name::new(name);
            let member = match name.text() {
                "payload" => {
                    seen.first(PAYLOAD)?;
                    item.payload = self.nested(&mut members)?;
                    continue;
                }
                "data" => {
                    seen.first(DATA)?;
                    item.data = self.nested(&mut members)?;
                    continue;
                }
                "id" => Some((ID, &mut item.id)),
                "type" => Some((TYPE, &mut item.r#type)),
                "event" => Some((EVENT, &mut item.event)),
                "app_id" => {
                    seen.first(APP_ID)?;
                    None
                }
                known => {
                    let member = item.beside.member(known);
                    if member.is_none() {
                        seen.in_other_case(&name, bit)?;
                    }
                    member
                }
            };
            match member {
                Some((bit, member)) => {
                    seen.first(bit)?;
                    *member = Value::new(members.next_value()?).not_null();
                }
                None => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        match item.contradiction() {
            None => Ok(item),
            Some(_) => Err(A::Error::custom("contradictory")),
        }
    }
}

impl ItemVisitor {
    fn nested<'de, A: MapAccess<'de>>(&self, members: &mut A) -> Result<Nested<'de>, A::Error> {
        if !self.any_payload {
            return members.next_value().map(Nested::Object);
        }
        let Some(value) = Value::new(members.next_value()?).not_null() else {
            return Ok(Nested::None);
        };
        match Fields::read(value.json()) {
            Some(fields) => Ok(Nested::Object(fields)),
            None if Fields::ambiguity("payload", value.json()).is_some() => {
                Err(A::Error::custom("ambiguous"))
            }
            None => Ok(Nested::Other),
        }
    }
}
