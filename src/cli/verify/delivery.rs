//! What the body of a captured delivery is: a batch of Prelude Auth, one event of Verify or Notify, or
//! neither, and which keys sign such a body. Shows types and ids only, never a payload.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use crate::cli::exit::one_line;

/// How many types of a batch are listed.
const TYPES_LISTED_MAX: usize = 5;

/// The form of a body.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub(super) enum Delivery {
    /// A batch, as Prelude Auth sends it.
    Batch {
        app_id: Option<String>,
        events: usize,
        types: BTreeSet<String>,
    },
    /// One event, as Verify and Notify send it.
    Event {
        r#type: String,
        id: Option<String>,
        /// The kind of the source, if the type shows it.
        kind: Option<&'static str>,
    },
    /// Neither.
    Unknown { reason: String },
}

impl Delivery {
    pub(super) fn of(body: &[u8]) -> Self {
        let unknown = |reason: &str| Self::Unknown {
            reason: reason.to_owned(),
        };
        let value: Value = match serde_json::from_slice(body) {
            Ok(value) => value,
            // The message has a place, and nothing of the body.
            Err(error) => return unknown(&format!("it is not JSON ({error})")),
        };
        if let Some(events) = value.get("events").and_then(Value::as_array) {
            return Self::Batch {
                app_id: text(&value, "app_id"),
                events: events.len(),
                types: events.iter().filter_map(event_type).collect(),
            };
        }
        match event_type(&value) {
            Some(event_type) => Self::Event {
                kind: kind_of(&event_type),
                id: text(&value, "id"),
                r#type: event_type,
            },
            None => unknown("it has neither `events` nor a `type`"),
        }
    }

    /// The form in one sentence, and the path to which such a body belongs.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Batch {
                app_id,
                events,
                types,
            } => {
                let app = app_id.as_deref().map_or_else(
                    || "without an app_id".to_owned(),
                    |id| format!("of the app {}", one_line(id)),
                );
                let count = match events {
                    1 => "1 event".to_owned(),
                    count => format!("{count} events"),
                };
                let listed = types.iter().take(TYPES_LISTED_MAX);
                let mut listed: Vec<String> = listed.map(|name| one_line(name)).collect();
                if types.len() > TYPES_LISTED_MAX {
                    listed.push("…".to_owned());
                }
                let listed = if listed.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", listed.join(", "))
                };
                format!("The body is a batch of Prelude Auth {app}, with {count}{listed}.")
            }
            Self::Event { r#type, id, kind } => {
                let id = id.as_deref().map(|id| format!(", {}", one_line(id)));
                let kind = kind.unwrap_or("verify or notify");
                format!(
                    "The body is one event ({}{}), as a source of kind {kind} sends it: it belongs to the \
                     path of such a source, and not to that of an app.",
                    one_line(r#type),
                    id.unwrap_or_default()
                )
            }
            Self::Unknown { reason } => {
                format!("The body is neither a batch nor one event: {reason}.")
            }
        }
    }

    /// Which keys sign such a body, if those that were given are of the other sort.
    pub(super) fn other_keys(&self, is_pem: bool) -> Option<String> {
        match self {
            Self::Batch { app_id, .. } if is_pem => {
                let host = app_id.as_deref().map_or("APP_ID".to_owned(), one_line);
                Some(format!(
                    "Prelude Auth signs batches with a key of the app's JWKS: give --jwks \
                     https://{host}.session.prelude.dev/.well-known/jwks.json."
                ))
            }
            Self::Event { .. } if !is_pem => Some(
                "Verify and Notify sign with the key that Prelude's dashboard shows as PEM, and not with \
                 one of a JWKS: give that key with --pem."
                    .to_owned(),
            ),
            Self::Batch { .. } | Self::Event { .. } | Self::Unknown { .. } => None,
        }
    }
}

fn event_type(event: &Value) -> Option<String> {
    text(event, "type").or_else(|| text(event, "event"))
}

fn text(value: &Value, name: &str) -> Option<String> {
    let text = value.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// The kind of source that sends a type, by the first part of its name.
fn kind_of(event_type: &str) -> Option<&'static str> {
    match event_type.split('.').next()? {
        "verify" => Some("verify"),
        "transactional" | "marketing" | "subscription" | "inbound" => Some("notify"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_named_with_its_types_and_without_its_payload() {
        for (body, part) in [
            (
                r#"{"app_id":"54e9ujn","events":[{"type":"user.created","payload":{"user_id":"secret"}}]}"#,
                "a batch of Prelude Auth of the app 54e9ujn, with 1 event (user.created).",
            ),
            (
                r#"{"events":[]}"#,
                "a batch of Prelude Auth without an app_id, with 0 events.",
            ),
            (
                r#"{"id":"evt_1","type":"verify.attempt","payload":{"target":"secret"}}"#,
                "one event (verify.attempt, evt_1), as a source of kind verify sends it",
            ),
            (
                r#"{"type":"transactional.message.failed"}"#,
                "one event (transactional.message.failed), as a source of kind notify",
            ),
            (r#"{"type":"new.type"}"#, "of kind verify or notify"),
            (r#"{"secret":1}"#, "neither `events` nor a `type`"),
            ("[1]", "neither `events` nor a `type`"),
            ("secret", "it is not JSON"),
        ] {
            let sentence = Delivery::of(body.as_bytes()).sentence();
            assert!(sentence.contains(part), "{sentence}");
            assert!(!sentence.contains("secret"), "{sentence}");
        }
    }

    #[test]
    fn many_types_are_cut_short_and_control_characters_are_escaped() {
        let events: Vec<_> = (0..9)
            .map(|n| format!(r#"{{"type":"t{n}\u001b"}}"#))
            .collect();
        let body = format!(r#"{{"events":[{}]}}"#, events.join(","));
        let sentence = Delivery::of(body.as_bytes()).sentence();
        assert!(
            sentence.contains("9 events (t0") && sentence.contains(", …)"),
            "{sentence}"
        );
        assert!(
            !sentence.contains('\u{1b}') && !sentence.contains("t6"),
            "{sentence}"
        );
    }

    #[test]
    fn keys_of_the_other_sort_are_named() {
        let batch = Delivery::of(br#"{"app_id":"54e9ujn","events":[]}"#);
        assert_eq!(batch.other_keys(false), None);
        let advice = batch.other_keys(true).unwrap();
        assert!(
            advice.contains("https://54e9ujn.session.prelude.dev"),
            "{advice}"
        );
        let event = Delivery::of(br#"{"type":"verify.attempt"}"#);
        assert_eq!(event.other_keys(true), None);
        assert!(event.other_keys(false).unwrap().contains("--pem"));
        assert_eq!(Delivery::of(b"").other_keys(true), None);
    }
}
