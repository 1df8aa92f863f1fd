//! Owns where in one event its fields are: in the object of its payload, or beside it. Knows nothing
//! of what they mean.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    ID_BYTES_MAX,
    json::{self, Name, Value},
    payload::Fields,
};

/// The members of one event that matter, as far as they are there.
///
/// It deserializes only from what is usual: an object, whose `payload` and `data` are objects.
/// [`Item::read`] takes anything.
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
#[derive(Default)]
enum Nested<'a> {
    /// Not there, or null.
    #[default]
    None,
    Object(Fields<'a>),
    Other,
}

impl<'a> Item<'a> {
    /// Reads any JSON. What is no object has no members.
    pub(super) fn read(raw_json: &'a str) -> Self {
        let AnyItem(item) = json::object(raw_json).unwrap_or_default();
        item
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

    /// The first of two ids that there is.
    pub(super) fn first_id(inner: Option<Value<'a>>, outer: Option<Value<'a>>) -> Cow<'a, str> {
        let mut found = [inner, outer].into_iter().flatten().filter_map(bounded_id);
        found.next().unwrap_or_default()
    }
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
        while let Some(name) = members.next_key::<&RawValue>()? {
            let name = Name::new(name);
            let member = match name.text() {
                "payload" => {
                    item.payload = self.nested(&mut members)?;
                    continue;
                }
                "data" => {
                    item.data = self.nested(&mut members)?;
                    continue;
                }
                "id" => Some(&mut item.id),
                "type" => Some(&mut item.r#type),
                "event" => Some(&mut item.event),
                name => item.beside.member(name),
            };
            match member {
                Some(member) => *member = Value::new(members.next_value()?).not_null(),
                None => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(item)
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
        let fields = Fields::read(value.json());
        Ok(fields.map_or(Nested::Other, Nested::Object))
    }
}
