//! Owns how an event looks: a line for people, a JSON object, or the JSON as it was signed. Pure.
//!
//! Others wrote the content of an event, so control characters are escaped for people.

use std::borrow::Cow;

use anstyle::{AnsiColor, Color, Effects, Style};
use jiff::{
    Timestamp, Zoned,
    civil::Date,
    tz::{Offset, TimeZone},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Output;
use crate::cli::terminal::{self, Width};
use crate::{
    decode,
    proto::{Event, Identifier, Money, PayloadFormat, PayloadIssue, event::Payload},
};

/// The longest type of Auth, `user.identifier.created`. Those of Notify are longer.
const TYPE_WIDTH: usize = 23;
/// Columns grow with their content up to this width.
const COLUMN_WIDTH_MAX: usize = 32;
/// The same on a terminal, where ids are shortened.
const SHORT_ID_WIDTH_MAX: usize = 12;
/// How many of an id's last characters are shown: the first ones are often its time.
const SHORT_ID_END: usize = 7;
/// The details of an event are cut at this width.
const DETAIL_COLUMNS_MAX: usize = 160;
/// A narrower terminal does not show fractions of seconds and sequence numbers.
const ROOMY_COLUMNS: usize = 100;
/// Details that would get fewer columns are not shown.
const DETAIL_COLUMNS_MIN: usize = 8;
/// What separates two cells.
const GAP: &str = "  ";
/// How many identifiers of a new user are shown.
const IDENTIFIERS_MAX: usize = 3;

const DIM: Style = Style::new().effects(Effects::DIMMED);

/// Turns events into text.
pub(in crate::cli) struct Formatter {
    output: Output,
    has_colour: bool,
    width: Width,
    zone: TimeZone,
    /// The last heading.
    day: Option<(Date, Offset)>,
    app_width: usize,
    user_width: usize,
}

/// One part of a line.
struct Cell<'a> {
    text: Cow<'a, str>,
    style: Style,
    width: usize,
}

impl Formatter {
    pub(in crate::cli) fn new(
        output: Output,
        has_colour: bool,
        width: Width,
        zone: TimeZone,
    ) -> Self {
        Self {
            output,
            has_colour,
            width,
            zone,
            day: None,
            app_width: 0,
            user_width: 0,
        }
    }

    pub(super) fn output(&self) -> Output {
        self.output
    }

    /// A field that is shown only on request.
    pub(super) fn payload_format(&self) -> PayloadFormat {
        match self.output {
            Output::Human => PayloadFormat::Typed,
            Output::Json | Output::Raw => PayloadFormat::Raw,
        }
    }

    /// The event with a newline at its end. On a terminal a line with the day comes before it where
    /// that has changed.
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
        let columns = self.width.columns();
        let at = timestamp(event.received_at.as_ref()).map(|at| at.to_zoned(self.zone.clone()));
        match columns {
            None => self.whole(event, at.as_ref()),
            Some(columns) => {
                let heading = at.as_ref().and_then(|at| self.heading(at, columns));
                heading.unwrap_or_default() + &self.fitted(event, at.as_ref(), columns)
            }
        }
    }

    /// For files and other programs: a line with all fields.
    fn whole(&mut self, event: &Event, at: Option<&Zoned>) -> String {
        let received_at = at.map_or_else(String::new, |at| {
            at.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
        });
        let (app, user) = (escape(&event.app_id), escape(&event.user_id));
        self.app_width = column_width(self.app_width, &app, COLUMN_WIDTH_MAX);
        self.user_width = column_width(self.user_width, &user, COLUMN_WIDTH_MAX);
        let detail = event
            .payload
            .as_ref()
            .map_or_else(|| lack(event), |payload| detail(payload, false));
        self.put(&[
            cell(received_at, DIM, 0),
            type_cell(event),
            cell(app, Style::new(), self.app_width),
            cell(user, Style::new(), self.user_width),
            // After escaping, so that no escape makes it long again.
            cell(
                terminal::cut(&escape(&detail), DETAIL_COLUMNS_MAX),
                Style::new(),
                0,
            ),
            cell(format!("#{}", event.sequence), DIM, 0),
        ])
    }

    /// For a terminal: a line that does not wrap.
    fn fitted(&mut self, event: &Event, at: Option<&Zoned>, columns: usize) -> String {
        let is_roomy = columns >= ROOMY_COLUMNS;
        let time = if is_roomy { "%H:%M:%S%.3f" } else { "%H:%M:%S" };
        let received_at = at.map_or_else(String::new, |at| at.strftime(time).to_string());
        let (app, user) = (short(&event.app_id), short(&event.user_id));
        let (app, user) = (escape(&app), escape(&user));
        self.app_width = column_width(self.app_width, &app, SHORT_ID_WIDTH_MAX);
        self.user_width = column_width(self.user_width, &user, SHORT_ID_WIDTH_MAX);
        let mut cells = vec![
            cell(received_at, DIM, 0),
            type_cell(event),
            cell(app, Style::new(), self.app_width),
            cell(user, Style::new(), self.user_width),
        ];
        let sequence = is_roomy.then(|| cell(format!("#{}", event.sequence), DIM, 0));
        let taken = |cell: &Cell<'_>| terminal::columns(&cell.text).max(cell.width) + GAP.len();
        let taken: usize = cells.iter().chain(&sequence).map(taken).sum();
        let left = columns.saturating_sub(taken).min(DETAIL_COLUMNS_MAX);
        if left >= DETAIL_COLUMNS_MIN {
            let detail = event
                .payload
                .as_ref()
                .map_or_else(|| lack(event), |payload| detail(payload, !is_roomy));
            cells.push(cell(terminal::cut(&escape(&detail), left), Style::new(), 0));
        }
        cells.extend(sequence);
        // Types and ids that are longer than documented ones.
        let mut left = columns;
        for cell in &mut cells {
            cell.width = cell.width.min(left);
            cell.text = terminal::cut(&cell.text, left).into();
            let taken = terminal::columns(&cell.text).max(cell.width);
            left = left.saturating_sub(taken + GAP.len());
        }
        self.put(&cells)
    }

    /// The day and the zone, in which all times below are.
    fn heading(&mut self, at: &Zoned, columns: usize) -> Option<String> {
        let day = (at.date(), at.offset());
        if self.day.replace(day) == Some(day) {
            return None;
        }
        let text = at.strftime("%a, %b %d %Y, UTC%:z").to_string();
        let text = text.strip_suffix("+00:00").unwrap_or(&text);
        let text = terminal::cut(text, columns);
        Some(self.put(&[cell(text, DIM, 0)]) + "\n")
    }

    /// Empty cells keep their column, if they have one.
    fn put(&self, cells: &[Cell<'_>]) -> String {
        let mut line = String::new();
        for Cell { text, style, width } in cells {
            let padding = width.saturating_sub(terminal::columns(text));
            if text.is_empty() && padding == 0 {
                continue;
            }
            if !line.is_empty() {
                line.push_str(GAP);
            }
            if self.has_colour {
                line.push_str(&format!("{style}{text}{style:#}"));
            } else {
                line.push_str(text);
            }
            line.extend(std::iter::repeat_n(' ', padding));
        }
        // Blanks at the end say nothing, and a terminal may wrap them.
        line.truncate(line.trim_end_matches(' ').len());
        line
    }
}

fn cell<'a>(text: impl Into<Cow<'a, str>>, style: Style, width: usize) -> Cell<'a> {
    Cell {
        text: text.into(),
        style,
        width,
    }
}

fn type_cell(event: &Event) -> Cell<'_> {
    let style = type_style(&event.r#type);
    cell(escape(&event.r#type), style, TYPE_WIDTH)
}

/// An id without its middle: `usr_…rfsgt1x` shows its kind and its last characters.
fn short(id: &str) -> String {
    let count = id.chars().count();
    if count <= SHORT_ID_WIDTH_MAX {
        return id.to_owned();
    }
    let end: String = id.chars().skip(count - SHORT_ID_END).collect();
    let kind_chars = SHORT_ID_WIDTH_MAX - SHORT_ID_END - 1;
    let kind = id
        .char_indices()
        .take(kind_chars)
        .find(|(_, character)| *character == '_')
        .map(|(at, _)| id.split_at(at + 1).0);
    format!("{}…{end}", kind.unwrap_or_default())
}

fn column_width(width: usize, text: &str, width_max: usize) -> usize {
    width.max(terminal::columns(text)).min(width_max)
}

/// The colour shows what happened to the subject: created, removed or changed.
fn type_style(event_type: &str) -> Style {
    let colour = match event_type.rsplit('.').next() {
        Some("created") => AnsiColor::Green,
        Some("deleted" | "revoked") => AnsiColor::Red,
        Some("updated") => AnsiColor::Yellow,
        Some(_) | None => AnsiColor::Cyan,
    };
    Style::new().fg_color(Some(Color::Ansi(colour)))
}

/// Why an event of a known type has no payload message.
fn lack(event: &Event) -> String {
    let issue = event.payload_issue();
    if issue == PayloadIssue::Unspecified {
        return String::new();
    }
    let of = if event.payload_issue_member.is_empty() {
        ""
    } else {
        " of "
    };
    let issue = decode::issue_name(issue);
    format!("(not typed: {issue}{of}{})", event.payload_issue_member)
}

/// The details of an event, in a long and a short form.
fn detail(payload: &Payload, is_short: bool) -> String {
    let id = |id: &str| if is_short { short(id) } else { id.to_owned() };
    let identifier = |identifier: &Identifier| match is_short {
        // What it is can be seen.
        true => identifier.value.clone(),
        false => format!("{} {}", identifier.r#type, identifier.value),
    };
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
        Payload::UserProfileUpdated(updated) => {
            let fields = updated.profile.as_ref().map(|profile| &profile.fields);
            let names: Vec<&str> = fields
                .into_iter()
                .flatten()
                .map(|(name, _)| name.as_str())
                .collect();
            names.join(", ")
        }
        Payload::UserIdentifierCreated(created) => {
            let identifier = created.identifier.as_ref().map(identifier);
            identifier.unwrap_or_default()
        }
        Payload::UserIdentifierDeleted(deleted) => {
            let identifier = deleted.identifier.as_ref().map(identifier);
            identifier.unwrap_or_default()
        }
        Payload::UserSessionCreated(created) => match &created.identifier {
            Some(used) => format!("{} with {}", id(&created.session_id), identifier(used)),
            None => id(&created.session_id),
        },
        Payload::UserSessionRevoked(revoked) => id(&revoked.session_id),
        Payload::StepUpHookFailed(failed) => failed.reason.clone(),
        Payload::MigrationHookFailed(failed) => failed.reason.clone(),
        Payload::VerifyAuthentication(created) => {
            let target = created.target.as_ref().map(identifier).unwrap_or_default();
            let price = created.price.as_ref().map(money).unwrap_or_default();
            joined([target, price])
        }
        Payload::VerifyAttempt(attempt) => {
            let target = attempt.target.as_ref().map(identifier).unwrap_or_default();
            joined([target, attempt.delivery_status.clone()])
        }
        Payload::VerifyDeliveryStatus(report) => {
            let target = report.target.as_ref().map(identifier).unwrap_or_default();
            joined([target, report.status.clone()])
        }
        Payload::TransactionalMessage(message) => {
            joined([message.to.clone(), message.reason.clone()])
        }
        // Nothing more is known of a user who was deleted, and nothing is said yet of types that are
        // new in the contract.
        _ => String::new(),
    }
}

fn money(money: &Money) -> String {
    format!("{} {}", money.amount, money.currency)
}

fn joined<const N: usize>(parts: [String; N]) -> String {
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

/// Escapes control characters and characters that change the direction of text.
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

    fn formatter(width: Width) -> Formatter {
        Formatter::new(Output::Human, false, width, TimeZone::UTC)
    }

    fn human(event: &Event) -> String {
        let mut formatter = formatter(Width::Unlimited);
        String::from_utf8(formatter.line(event)).unwrap()
    }

    fn json_value(raw: &str) -> serde_json::Value {
        let event = Event {
            raw_json: raw.to_owned().into(),
            ..event("user.created", None)
        };
        let line =
            Formatter::new(Output::Json, true, Width::Columns(20), TimeZone::UTC).line(&event);
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
            "2023-11-14T22:13:20.123+00:00  user.session.created     54e9ujn  usr_1  \
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
        let mut coloured = Formatter::new(Output::Human, true, Width::Unlimited, TimeZone::UTC);
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
            line.contains(&format!("  {}…  #42", "é".repeat(DETAIL_COLUMNS_MAX - 1))),
            "{line}"
        );
    }

    #[test]
    fn columns_stay_in_line() {
        let mut formatter = formatter(Width::Unlimited);
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

    fn session(app: &str, user: &str, session: &str) -> Event {
        let payload = UserSessionCreated {
            session_id: session.into(),
            identifier: Some(email()),
            ..UserSessionCreated::default()
        };
        Event {
            app_id: app.into(),
            user_id: user.into(),
            ..event(
                "user.session.created",
                Some(Payload::UserSessionCreated(payload)),
            )
        }
    }

    fn text(line: Vec<u8>) -> String {
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_terminal_names_the_day_and_the_zone_when_they_change() {
        let mut formatter = formatter(Width::Columns(120));
        let at = |seconds| Event {
            received_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..event("user.deleted", None)
        };
        assert_eq!(
            text(formatter.line(&at(1_700_000_000))),
            "Tue, Nov 14 2023, UTC\n\
             22:13:20.000  user.deleted             54e9ujn  usr_1  #42\n"
        );
        let line = text(formatter.line(&at(1_700_000_001)));
        assert!(line.starts_with("22:13:21.000  user.deleted"), "{line}");
        let line = text(formatter.line(&at(1_700_010_000)));
        assert!(
            line.starts_with("Wed, Nov 15 2023, UTC\n01:00:00.000"),
            "{line}"
        );

        // The hour that comes twice: the offset tells which.
        let zone = TimeZone::get("Europe/Paris").unwrap();
        let mut formatter = Formatter::new(Output::Human, false, Width::Columns(120), zone);
        let line = text(formatter.line(&at(1_698_539_400)));
        assert!(
            line.starts_with("Sun, Oct 29 2023, UTC+02:00\n02:30:00"),
            "{line}"
        );
        let line = text(formatter.line(&at(1_698_543_000)));
        assert!(
            line.starts_with("Sun, Oct 29 2023, UTC+01:00\n02:30:00"),
            "{line}"
        );
    }

    #[test]
    fn ids_are_short_on_a_terminal() {
        let long = session(
            "54e9ujn",
            "usr_01jqebhswje9ka1z7ahr8rfsgt",
            "ses_01jqebhswje9ka1z7ahr8rfxyz",
        );
        let mut formatter = formatter(Width::Columns(80));
        let lines = text(formatter.line(&long));
        assert_eq!(
            lines.lines().nth(1).unwrap(),
            "22:13:20  user.session.created     54e9ujn  usr_…r8rfsgt  ses_…r8rfxyz with ali…"
        );
        assert_eq!(short("usr_1234"), "usr_1234");
        assert_eq!(short("0123456789abc"), "…6789abc");
        assert_eq!(short("日本語日本語日本語日本語日本語"), "…語日本語日本語");
    }

    #[test]
    fn no_line_wraps() {
        let wide = "日本語".repeat(40);
        let long = "x".repeat(256);
        let mut events = vec![
            session("54e9ujn", "usr_1", "ses_1"),
            session(&long, &long, &long),
            session(&wide, &wide, &wide),
            event(&long, None),
            event(&wide, None),
            event("user.created", None),
        ];
        // In each order, as columns grow.
        for _ in 0..events.len() {
            events.rotate_left(1);
            for columns in [20, 21, 40, 60, 79, 80, 81, 99, 100, 120, 300] {
                for has_colour in [false, true] {
                    let width = Width::Columns(columns);
                    let zone = TimeZone::UTC;
                    let mut formatter = Formatter::new(Output::Human, has_colour, width, zone);
                    for event in &events {
                        let shown = formatter.line(event);
                        let shown = anstream::adapter::strip_bytes(&shown).into_vec();
                        for line in text(shown).lines() {
                            assert!(terminal::columns(line) <= columns, "{columns}: {line}");
                        }
                    }
                }
            }
        }
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
    fn an_event_without_its_message_says_why() {
        let mut untyped = event("user.created", None);
        untyped.set_payload_issue(PayloadIssue::WrongShape);
        assert!(human(&untyped).contains("(not typed: wrong_shape)"));
        untyped.payload_issue_member = "identifiers.type".into();
        assert!(human(&untyped).contains("(not typed: wrong_shape of identifiers.type)"));
        assert!(!human(&event("user.suspended", None)).contains("not typed"));
    }

    #[test]
    fn hooks_verifications_and_messages_show_what_they_are_about() {
        use crate::proto::{
            MigrationHookFailed, TransactionalMessage, VerifyAuthentication, VerifyDeliveryStatus,
        };
        let price = Money {
            amount: "1.10".into(),
            currency: "EUR".into(),
        };
        for (payload, shown) in [
            (
                Payload::MigrationHookFailed(MigrationHookFailed {
                    reason: "request_failed".into(),
                    ..MigrationHookFailed::default()
                }),
                "request_failed",
            ),
            (
                Payload::VerifyAuthentication(VerifyAuthentication {
                    target: Some(email()),
                    price: Some(price),
                    ..VerifyAuthentication::default()
                }),
                "email_address alice@example.com, 1.10 EUR",
            ),
            (
                Payload::VerifyDeliveryStatus(VerifyDeliveryStatus {
                    status: "in_transit".into(),
                    ..VerifyDeliveryStatus::default()
                }),
                "in_transit",
            ),
            (
                Payload::TransactionalMessage(TransactionalMessage {
                    to: "+33600000000".into(),
                    reason: "network".into(),
                    ..TransactionalMessage::default()
                }),
                "+33600000000, network",
            ),
        ] {
            let line = human(&event("a.b", Some(payload)));
            assert!(line.ends_with(&format!("{shown}  #42\n")), "{line}");
        }
    }

    #[test]
    fn raw_is_byte_for_byte() {
        let raw = "{ \"id\" :\t\"evt_1\",\n \"x\": 1.0 }";
        let event = Event {
            raw_json: raw.into(),
            ..event("user.created", None)
        };
        let line =
            Formatter::new(Output::Raw, true, Width::Columns(20), TimeZone::UTC).line(&event);
        assert_eq!(line, format!("{raw}\n").into_bytes());
    }
}
