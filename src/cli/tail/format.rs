//! Owns how an event looks: a line for people, a JSON object, or the JSON as it was signed. Pure.
//!
//! What an event says was written by somebody else, so for people everything that could steer a
//! terminal is written as an escape.

use std::borrow::Cow;

use anstyle::{AnsiColor, Color, Effects, Style};
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Output;
use crate::proto::{Event, Identifier, PayloadFormat, event::Payload};

/// The longest documented type, `user.identifier.created`.
const TYPE_WIDTH: usize = 23;
/// Columns grow with what they hold, up to here.
const COLUMN_WIDTH_MAX: usize = 32;
/// The details of an event are cut here, in characters: a line is for glancing at.
const DETAIL_CHARS_MAX: usize = 160;
/// How many identifiers of a new user are shown.
const IDENTIFIERS_MAX: usize = 3;

const DIM: Style = Style::new().effects(Effects::DIMMED);

/// Turns events into text.
pub(in crate::cli) struct Formatter {
    output: Output,
    has_colour: bool,
    zone: TimeZone,
    app_width: usize,
    user_width: usize,
}

impl Formatter {
    pub(in crate::cli) fn new(output: Output, has_colour: bool) -> Self {
        Self::in_zone(output, has_colour, TimeZone::system())
    }

    fn in_zone(output: Output, has_colour: bool, zone: TimeZone) -> Self {
        Self {
            output,
            has_colour,
            zone,
            app_width: 0,
            user_width: 0,
        }
    }

    pub(super) fn output(&self) -> Output {
        self.output
    }

    /// What has to be asked for to be shown.
    pub(super) fn payload_format(&self) -> PayloadFormat {
        match self.output {
            Output::Human => PayloadFormat::Typed,
            Output::Json | Output::Raw => PayloadFormat::Raw,
        }
    }

    /// The event with a newline at its end.
    pub(in crate::cli) fn line(&mut self, event: &Event) -> Vec<u8> {
        let mut line = match self.output {
            Output::Human => self.human(event).into_bytes(),
            Output::Json => json(event),
            Output::Raw => event.raw_json.to_vec(),
        };
        line.push(b'\n');
        line
    }

    fn human(&mut self, event: &Event) -> String {
        let received_at = timestamp(event.received_at.as_ref()).map_or_else(String::new, |at| {
            let local = at.to_zoned(self.zone.clone());
            local.strftime("%b %d %H:%M:%S%.3f").to_string()
        });
        let app = escape(&event.app_id);
        let user = escape(&event.user_id);
        self.app_width = column_width(self.app_width, &app);
        self.user_width = column_width(self.user_width, &user);
        let detail = event.payload.as_ref().map_or_else(String::new, detail);
        let cells = [
            (received_at.into(), DIM, 0),
            (escape(&event.r#type), type_style(&event.r#type), TYPE_WIDTH),
            (app, Style::new(), self.app_width),
            (user, Style::new(), self.user_width),
            (cut(escape(&detail)), Style::new(), 0),
            (format!("#{}", event.sequence).into(), DIM, 0),
        ];
        let mut line = String::new();
        for (text, style, width) in cells {
            self.put_cell(&mut line, &text, style, width);
        }
        line
    }

    /// Empty cells keep their column, if they have one.
    fn put_cell(&self, line: &mut String, text: &str, style: Style, width: usize) {
        let padding = width.saturating_sub(text.chars().count());
        if text.is_empty() && padding == 0 {
            return;
        }
        if !line.is_empty() {
            line.push_str("  ");
        }
        if self.has_colour {
            line.push_str(&format!("{style}{text}{style:#}"));
        } else {
            line.push_str(text);
        }
        line.extend(std::iter::repeat_n(' ', padding));
    }
}

fn column_width(width: usize, text: &str) -> usize {
    width.max(text.chars().count()).min(COLUMN_WIDTH_MAX)
}

/// The colour says what became of the subject: new, gone or changed.
fn type_style(event_type: &str) -> Style {
    let colour = match event_type.rsplit('.').next() {
        Some("created") => AnsiColor::Green,
        Some("deleted" | "revoked") => AnsiColor::Red,
        Some("updated") => AnsiColor::Yellow,
        Some(_) | None => AnsiColor::Cyan,
    };
    Style::new().fg_color(Some(Color::Ansi(colour)))
}

/// What is particular about an event, in a few words.
fn detail(payload: &Payload) -> String {
    match payload {
        Payload::UserCreated(created) => {
            let mut parts: Vec<String> = created
                .identifiers
                .iter()
                .take(IDENTIFIERS_MAX)
                .map(identifier)
                .collect();
            let more = created.identifiers.len().saturating_sub(IDENTIFIERS_MAX);
            if more > 0 {
                parts.push(format!("{more} more"));
            }
            if !created.source.is_empty() {
                parts.push(format!("by {}", created.source));
            }
            parts.join(", ")
        }
        Payload::UserDeleted(_) => String::new(),
        Payload::UserProfileUpdated(updated) => {
            let fields = updated.profile.as_ref().map(|profile| &profile.fields);
            let names: Vec<&str> = fields
                .into_iter()
                .flatten()
                .map(|(name, _)| name.as_str())
                .collect();
            names.join(", ")
        }
        Payload::UserIdentifierCreated(created) => created
            .identifier
            .as_ref()
            .map_or_else(String::new, identifier),
        Payload::UserIdentifierDeleted(deleted) => deleted
            .identifier
            .as_ref()
            .map_or_else(String::new, identifier),
        Payload::UserSessionCreated(created) => match &created.identifier {
            Some(used) => format!("{} with {}", created.session_id, identifier(used)),
            None => created.session_id.clone(),
        },
        Payload::UserSessionRevoked(revoked) => revoked.session_id.clone(),
    }
}

fn identifier(identifier: &Identifier) -> String {
    format!("{} {}", identifier.r#type, identifier.value)
}

/// Writes what could steer a terminal, or turn around how its text reads, as an escape.
fn escape(text: &str) -> Cow<'_, str> {
    let is_harmful = |character: char| {
        character.is_control()
            || matches!(
                character,
                '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            )
    };
    if !text.contains(is_harmful) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if is_harmful(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped.into()
}

/// Shortens after escaping, so that no escape makes it long again.
fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    match text.char_indices().nth(DETAIL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()).into(),
        None => text,
    }
}

/// An event as a JSON object: the contract's fields, and the payload as it was signed.
#[derive(Serialize)]
struct Json<'a> {
    id: &'a str,
    r#type: &'a str,
    app_id: &'a str,
    user_id: &'a str,
    cursor: &'a str,
    sequence: u64,
    /// RFC 3339, in UTC.
    occurred_at: Option<String>,
    received_at: Option<String>,
    correlation_id: &'a str,
    traceparent: &'a str,
    payload: Option<&'a RawValue>,
}

/// Where an event can have its payload.
#[derive(Deserialize)]
struct Signed<'a> {
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

fn json(event: &Event) -> Vec<u8> {
    // JSON has newlines between its tokens only, where they mean nothing.
    let signed = String::from_utf8_lossy(&event.raw_json).replace(['\n', '\r'], "");
    let whole: Option<&RawValue> = serde_json::from_str(&signed).ok();
    let payload = serde_json::from_str::<Signed<'_>>(&signed)
        .ok()
        .and_then(|signed| signed.payload.or(signed.data));
    let line = Json {
        id: &event.id,
        r#type: &event.r#type,
        app_id: &event.app_id,
        user_id: &event.user_id,
        cursor: &event.cursor,
        sequence: event.sequence,
        occurred_at: timestamp(event.occurred_at.as_ref()).map(|at| at.to_string()),
        received_at: timestamp(event.received_at.as_ref()).map(|at| at.to_string()),
        correlation_id: &event.correlation_id,
        traceparent: &event.traceparent,
        // Some senders put the payload's members beside the type: then it is the whole.
        payload: payload.or(whole),
    };
    // Texts, numbers and checked JSON always serialise.
    serde_json::to_vec(&line).unwrap_or_default()
}

fn timestamp(proto: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    let proto = proto?;
    Timestamp::new(proto.seconds, proto.nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{UserCreated, UserDeleted, UserProfileUpdated, UserSessionCreated};

    const ALICE: &str = "alice@example.com";

    fn event(event_type: &str, payload: Option<Payload>) -> Event {
        Event {
            id: "evt_1".into(),
            r#type: event_type.into(),
            app_id: "54e9ujn".into(),
            user_id: "usr_1".into(),
            cursor: "AQ".into(),
            sequence: 42,
            received_at: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_456_789,
            }),
            payload,
            ..Event::default()
        }
    }

    fn email() -> Identifier {
        Identifier {
            r#type: "email_address".into(),
            value: ALICE.into(),
        }
    }

    fn human(event: &Event) -> String {
        let mut formatter = Formatter::in_zone(Output::Human, false, TimeZone::UTC);
        String::from_utf8(formatter.line(event)).unwrap()
    }

    fn json_value(raw: &str) -> serde_json::Value {
        let event = Event {
            raw_json: raw.to_owned().into(),
            ..event("user.created", None)
        };
        let line = Formatter::in_zone(Output::Json, true, TimeZone::UTC).line(&event);
        let text = String::from_utf8(line).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn people_get_one_line_with_what_matters() {
        let session = UserSessionCreated {
            session_id: "ses_1".into(),
            identifier: Some(email()),
            ..UserSessionCreated::default()
        };
        let event = event(
            "user.session.created",
            Some(Payload::UserSessionCreated(session)),
        );
        assert_eq!(
            human(&event),
            "Nov 14 22:13:20.123  user.session.created     54e9ujn  usr_1  \
             ses_1 with email_address alice@example.com  #42\n"
        );
    }

    #[test]
    fn each_type_has_its_detail() {
        let created = UserCreated {
            identifiers: vec![email(); 5],
            source: "api".into(),
            ..UserCreated::default()
        };
        let line = human(&event("user.created", Some(Payload::UserCreated(created))));
        assert!(
            line.contains("email_address alice@example.com, 2 more, by api"),
            "{line}"
        );

        let updated = UserProfileUpdated {
            profile: Some(prost_types::Struct {
                fields: [("plan", "pro"), ("name", "Alice")]
                    .map(|(name, value)| (name.to_owned(), value.into()))
                    .into(),
            }),
            ..UserProfileUpdated::default()
        };
        let line = human(&event(
            "user.profile.updated",
            Some(Payload::UserProfileUpdated(updated)),
        ));
        assert!(
            line.contains("name, plan") && !line.contains("Alice"),
            "{line}"
        );

        let deleted = Payload::UserDeleted(UserDeleted::default());
        assert!(human(&event("user.deleted", Some(deleted))).ends_with("usr_1  #42\n"));
        assert!(human(&event("order.paid", None)).ends_with("usr_1  #42\n"));
    }

    #[test]
    fn colours_are_used_only_where_they_are_wanted() {
        let event = event("user.created", None);
        assert!(!human(&event).contains('\u{1b}'));
        let mut coloured = Formatter::in_zone(Output::Human, true, TimeZone::UTC);
        let line = String::from_utf8(coloured.line(&event)).unwrap();
        assert!(line.contains("\u{1b}[32muser.created\u{1b}[0m"), "{line:?}");
    }

    #[test]
    fn an_event_cannot_steer_the_terminal() {
        let evil = "\u{1b}[2J\n\u{9b}31m\u{202e}\r";
        let created = UserCreated {
            identifiers: vec![Identifier {
                r#type: evil.into(),
                value: evil.into(),
            }],
            source: evil.into(),
            ..UserCreated::default()
        };
        let event = Event {
            user_id: evil.into(),
            app_id: evil.into(),
            ..event(evil, Some(Payload::UserCreated(created)))
        };
        let line = human(&event);
        let line = line.strip_suffix('\n').unwrap();
        assert!(
            !line.contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{line:?}"
        );
        assert!(
            line.contains("\\u{1b}[2J\\n\\u{9b}31m\\u{202e}\\r"),
            "{line}"
        );
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let identifier = Identifier {
            r#type: "é".repeat(500),
            value: String::new(),
        };
        let created = UserCreated {
            identifiers: vec![identifier],
            ..UserCreated::default()
        };
        let line = human(&event("user.created", Some(Payload::UserCreated(created))));
        assert!(
            line.contains(&format!("{}…  #42", "é".repeat(DETAIL_CHARS_MAX))),
            "{line}"
        );
    }

    #[test]
    fn columns_stay_in_line() {
        let mut formatter = Formatter::in_zone(Output::Human, false, TimeZone::UTC);
        let mut end_of = |user: &str| {
            let event = Event {
                user_id: user.into(),
                ..event("user.deleted", None)
            };
            formatter.line(&event).iter().position(|&byte| byte == b'#')
        };
        let long = end_of("usr_1234567");
        assert_eq!(end_of("usr_1"), long);
        assert_eq!(end_of(""), long);
    }

    #[test]
    fn json_has_the_contracts_fields_and_the_payload_as_it_was_signed() {
        let raw =
            r#"{"id":"evt_1","type":"user.created","payload":{"big":12345678901234567890.10}}"#;
        let value = json_value(raw);
        assert_eq!(value["id"], "evt_1");
        assert_eq!(value["type"], "user.created");
        assert_eq!(value["sequence"], 42);
        assert_eq!(value["received_at"], "2023-11-14T22:13:20.123456789Z");
        assert_eq!(value["occurred_at"], serde_json::Value::Null);
        let event = Event {
            raw_json: raw.into(),
            ..event("user.created", None)
        };
        let line = String::from_utf8(json(&event)).unwrap();
        assert!(
            line.ends_with(r#""payload":{"big":12345678901234567890.10}}"#),
            "{line}"
        );
    }

    #[test]
    fn a_payload_is_found_wherever_it_is() {
        assert_eq!(json_value(r#"{"payload":{"a":1}}"#)["payload"]["a"], 1);
        assert_eq!(json_value(r#"{"data":{"a":1}}"#)["payload"]["a"], 1);
        assert_eq!(
            json_value(r#"{"type":"user.created","a":1}"#)["payload"]["a"],
            1
        );
        assert_eq!(
            json_value("{\n  \"payload\": {\r\n \"a\": \"x\\ny\" }\n}")["payload"]["a"],
            "x\ny"
        );
        assert_eq!(json_value("no json")["payload"], serde_json::Value::Null);
    }

    #[test]
    fn raw_is_byte_for_byte() {
        let raw = "{ \"id\" :\t\"evt_1\",\n \"x\": 1.0 }";
        let event = Event {
            raw_json: raw.into(),
            ..event("user.created", None)
        };
        let line = Formatter::in_zone(Output::Raw, true, TimeZone::UTC).line(&event);
        assert_eq!(line, format!("{raw}\n").into_bytes());
    }
}
