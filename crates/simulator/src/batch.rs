//! Writes events into the body of one POST, in each form that Prelude could plausibly use: a batch of
//! Prelude Auth, or one event of Verify or Notify. Owns the bytes; knows nothing of keys, webhooks or
//! delivery.

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap as _};

use super::events::{Event, IdStyle};

/// Where an item keeps the fields of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadPlace {
    /// Under `payload`, as in the sister APIs.
    #[default]
    Payload,
    /// Under `data`.
    Data,
    /// Beside the type.
    Inline,
}

/// The member that names the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TypeKey {
    /// `"type":"user.created"`, as in the sister APIs.
    #[default]
    Type,
    /// `"event":"user.created"`, as in the activation challenge.
    Event,
}

/// How the items of a batch look. The default is the form of Prelude's sister APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ItemStyle {
    /// Where the payload is.
    pub payload: PayloadPlace,
    /// Which member names the type.
    pub type_key: TypeKey,
    /// How ids look.
    pub ids: IdStyle,
    /// Whether the item has a `created_at` of its own.
    pub created_at: bool,
}

impl Default for ItemStyle {
    fn default() -> Self {
        Self {
            payload: PayloadPlace::default(),
            type_key: TypeKey::default(),
            ids: IdStyle::default(),
            created_at: true,
        }
    }
}

/// What the ledger needs to know of an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EventRef {
    /// The id it was sent with.
    #[serde(rename = "event_id")]
    pub id: Option<String>,
    /// Its correlation id, which tells events apart when they have no id.
    pub correlation_id: Option<String>,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
}

impl EventRef {
    fn of(event: &Event) -> Self {
        Self {
            id: event.id.clone(),
            correlation_id: event.correlation_id().map(str::to_owned),
            event_type: event.event_type.clone(),
        }
    }
}

/// The body of one POST and what it holds. A retry sends the very same bytes.
#[derive(Debug, Clone)]
pub struct Batch {
    app_id: String,
    body: Bytes,
    events: Vec<EventRef>,
}

impl Batch {
    /// Writes a batch of Prelude Auth in this style.
    ///
    /// # Errors
    /// Those of `serde_json`, which writing into memory does not meet.
    pub fn encode(
        app_id: &str,
        events: &[Event],
        style: ItemStyle,
    ) -> Result<Self, serde_json::Error> {
        let items: Vec<Item<'_>> = events.iter().map(|event| Item { event, style }).collect();
        let body = serde_json::to_vec(&Body {
            app_id,
            events: &items,
        })?;
        Ok(Self {
            app_id: app_id.to_owned(),
            body: body.into(),
            events: events.iter().map(EventRef::of).collect(),
        })
    }

    /// Writes one event as Verify and Notify send it: without an envelope.
    ///
    /// # Errors
    /// As [`Batch::encode`].
    pub fn encode_single(
        source_id: &str,
        event: &Event,
        style: ItemStyle,
    ) -> Result<Self, serde_json::Error> {
        let body = serde_json::to_vec(&Item { event, style })?;
        Ok(Self {
            app_id: source_id.to_owned(),
            body: body.into(),
            events: vec![EventRef::of(event)],
        })
    }

    /// Any bytes at all, to be signed and sent as if they were a batch of this app.
    #[must_use]
    pub fn raw(app_id: &str, body: impl Into<Bytes>) -> Self {
        Self {
            app_id: app_id.to_owned(),
            body: body.into(),
            events: Vec::new(),
        }
    }

    /// The app or source whose key signs it.
    #[must_use]
    pub fn app_id(&self) -> &str {
        &self.app_id
    }

    /// The bytes that are signed and sent.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The events in it; none for a raw one.
    #[must_use]
    pub fn events(&self) -> &[EventRef] {
        &self.events
    }
}

#[derive(Serialize)]
struct Body<'a> {
    app_id: &'a str,
    events: &'a [Item<'a>],
}

struct Item<'a> {
    event: &'a Event,
    style: ItemStyle,
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { event, style } = self;
        let mut map = serializer.serialize_map(None)?;
        if let Some(id) = &event.id {
            match id.parse::<u64>() {
                Ok(number) if style.ids == IdStyle::Number => map.serialize_entry("id", &number)?,
                _ => map.serialize_entry("id", id)?,
            }
        }
        let type_key = match style.type_key {
            TypeKey::Type => "type",
            TypeKey::Event => "event",
        };
        map.serialize_entry(type_key, &event.event_type)?;
        match style.payload {
            PayloadPlace::Payload => map.serialize_entry("payload", &event.payload)?,
            PayloadPlace::Data => map.serialize_entry("data", &event.payload)?,
            PayloadPlace::Inline => {
                for (key, value) in &event.payload {
                    map.serialize_entry(key, value)?;
                }
            }
        }
        // Inline, a payload's own created_at has the name already.
        let taken =
            style.payload == PayloadPlace::Inline && event.payload.contains_key("created_at");
        if style.created_at && !taken {
            map.serialize_entry("created_at", &event.occurred_at.to_string())?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{
        super::events::{EventType, Generator},
        *,
    };

    fn item(style: ItemStyle) -> Value {
        let at = "2026-11-23T10:58:38Z".parse().unwrap();
        let event = Generator::new(1).event(EventType::UserCreated, at, style.ids);
        let batch = Batch::encode("54e9ujn", &[event], style).unwrap();
        let body: Value = serde_json::from_slice(batch.body()).unwrap();
        assert_eq!(body["app_id"], "54e9ujn");
        assert_eq!(batch.events().len(), 1);
        body["events"][0].clone()
    }

    #[test]
    fn the_default_is_the_form_of_the_sister_apis() {
        let item = item(ItemStyle::default());
        assert!(item["id"].as_str().unwrap().starts_with("evt_"));
        assert_eq!(item["type"], "user.created");
        assert_eq!(item["created_at"], "2026-11-23T10:58:38Z");
        assert!(item["payload"]["user_id"].is_string());
    }

    #[test]
    fn verify_and_notify_send_one_event_without_an_envelope() {
        let at = "2026-11-23T10:58:38.123456789Z".parse().unwrap();
        let event = Generator::new(1).event(EventType::VerifyAttempt, at, IdStyle::Prefixed);
        let batch = Batch::encode_single("verify", &event, ItemStyle::default()).unwrap();
        let body: Value = serde_json::from_slice(batch.body()).unwrap();
        let members: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(members, ["created_at", "id", "payload", "type"]);
        assert_eq!(body["type"], "verify.attempt");
        assert_eq!(body["created_at"], "2026-11-23T10:58:38.123456789Z");
        let sent = &batch.events()[0];
        assert_eq!(sent.correlation_id.as_deref(), event.correlation_id());
    }

    #[test]
    fn every_switch_changes_what_it_says() {
        let shown = item(ItemStyle {
            type_key: TypeKey::Event,
            ..ItemStyle::default()
        });
        assert_eq!(shown["event"], "user.created");
        assert!(shown.get("type").is_none());
        let shown = item(ItemStyle {
            payload: PayloadPlace::Data,
            ..ItemStyle::default()
        });
        assert!(shown["data"]["user_id"].is_string());
        let shown = item(ItemStyle {
            payload: PayloadPlace::Inline,
            ..ItemStyle::default()
        });
        assert!(shown["user_id"].is_string());
        let shown = item(ItemStyle {
            ids: IdStyle::Number,
            ..ItemStyle::default()
        });
        assert!(shown["id"].is_u64());
        let shown = item(ItemStyle {
            ids: IdStyle::None,
            ..ItemStyle::default()
        });
        assert!(shown.get("id").is_none());
        let shown = item(ItemStyle {
            created_at: false,
            ..ItemStyle::default()
        });
        assert!(shown.get("created_at").is_none());
    }

    #[test]
    fn an_inline_item_names_no_member_twice() {
        let style = ItemStyle {
            payload: PayloadPlace::Inline,
            ..ItemStyle::default()
        };
        let at = "2026-11-23T10:58:38Z".parse().unwrap();
        let event = Generator::new(1).event(EventType::UserCreated, at, style.ids);
        let batch = Batch::encode("54e9ujn", &[event], style).unwrap();
        let text = std::str::from_utf8(batch.body()).unwrap();
        assert_eq!(text.matches("\"created_at\"").count(), 1);
    }
}
