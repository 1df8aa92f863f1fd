//! Owns what stands around the events of a body: it takes everything that is a batch and says what is
//! wrong with what is none.
//!
//! Each item is passed over twice, as serde_json gives either its bytes or its members. A second parser,
//! which passed over usual items once, was given up: of a delivery of 10 events it saved 2 µs, and 26 µs
//! of one of 100, beside 28 µs for the signature and 120 to 180 µs for the append (benches/README.md).

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    EVENTS_MAX, Error,
    ambiguity::{Ambiguity, repeated},
    json::{Name, Value},
};

/// The members of a body that matter.
#[derive(Default)]
pub(super) struct Envelope<'a> {
    pub(super) app_id: Option<Value<'a>>,
    pub(super) events: Option<Vec<&'a str>>,
}

impl<'a> Envelope<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Error> {
        let mut fault = None;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let parsed = deserializer
            .deserialize_map(EnvelopeVisitor { fault: &mut fault })
            .and_then(|envelope| deserializer.end().map(|()| envelope));
        // The parser's own message could quote the body.
        parsed.map_err(|error| match fault {
            Some(fault) => fault,
            None if error.is_data() => Error::NotObject,
            None => Error::NotJson {
                line: error.line(),
                column: error.column(),
            },
        })
    }
}

pub(super) struct EnvelopeVisitor<'f> {
    fault: &'f mut Option<Error>,
}

impl<'de> Visitor<'de> for EnvelopeVisitor<'_> {
    type Value = Envelope<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a batch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut envelope = Envelope::default();
        let mut names = Vec::new();
        while let Some(name) = members.next_key::<&RawValue>()? {
            let name = Name::new(name);
            if name.is("events") {
                let fault = &mut *self.fault;
                envelope.events = Some(members.next_value_seed(EventsSeed { fault })?);
            } else {
                let value = Value::new(members.next_value()?);
                if name.is("app_id") {
                    envelope.app_id = Some(value);
                }
            }
            names.push(name);
        }
        if let Some(member) = repeated(names) {
            *self.fault = Some(Error::Ambiguous(Ambiguity::repeated("body", member)));
            return Err(serde::de::Error::custom("a member twice"));
        }
        Ok(envelope)
    }
}

/// Takes the items of the array as they are, in the one pass that checks the whole body.
struct EventsSeed<'f> {
    fault: &'f mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for EventsSeed<'_> {
    type Value = Vec<&'de str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        // Assumed until the visitor finds an array.
        *self.fault = Some(Error::NoEvents);
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EventsSeed<'_> {
    type Value = Vec<&'de str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        *self.fault = None;
        let mut items = Vec::new();
        while let Some(item) = array.next_element::<&RawValue>()? {
            if items.len() == EVENTS_MAX {
                *self.fault = Some(Error::TooManyEvents);
                return Err(serde::de::Error::custom("too many events"));
            }
            items.push(item.get());
        }
        Ok(items)
    }
}
