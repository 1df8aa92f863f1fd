//! Owns the events of the load: numbered, of one length, and such that it is known without looking
//! which of them match a filter. Knows nothing of signatures and sockets.

use std::{ops::Range, sync::LazyLock};

use prelude_bridge_contract as proto;

/// The app that the load plays.
pub(super) const APP_ID: &str = "bench";

/// The types take turns, so one type is one event in seven.
const TYPES: [&str; 7] = [
    "user.session.created",
    "user.created",
    "user.profile.updated",
    "user.identifier.created",
    "user.session.revoked",
    "user.identifier.deleted",
    "user.deleted",
];

/// The users take turns, so one user is one event in a thousand.
const USERS: u64 = 1_000;

/// How many digits the number of an event has in its id.
const ID_DIGITS: usize = 20;

/// The date of every event: that of the start, as a bridge refuses events that are too old.
static DATE: LazyLock<String> =
    LazyLock::new(|| jiff::Timestamp::now().strftime("%FT%TZ").to_string());

/// What subscribers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Everything.
    All,
    /// One of the seven types.
    Seventh,
    /// One of a thousand users.
    Thousandth,
}

impl Shape {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Seventh => "1/7",
            Self::Thousandth => "1/1000",
        }
    }

    pub(super) fn filter(self) -> proto::Filter {
        match self {
            Self::All => proto::Filter::default(),
            Self::Seventh => proto::Filter {
                types: TYPES
                    .first()
                    .map(|&name| name.to_owned())
                    .into_iter()
                    .collect(),
                ..proto::Filter::default()
            },
            Self::Thousandth => proto::Filter {
                user_ids: vec![user_id(0)],
                ..proto::Filter::default()
            },
        }
    }

    /// How many of the events with these numbers match.
    pub(super) fn matching(self, numbers: &Range<u64>) -> u64 {
        let every = match self {
            Self::All => 1,
            Self::Seventh => TYPES.len() as u64,
            Self::Thousandth => USERS,
        };
        // Those with a number divisible by `every` match.
        numbers
            .end
            .div_ceil(every)
            .saturating_sub(numbers.start.div_ceil(every))
    }
}

/// Makes events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events {
    event_bytes: usize,
}

impl Events {
    pub(super) fn new(event_bytes: usize) -> Self {
        Self { event_bytes }
    }

    /// The body of a batch with the events of these numbers.
    pub(super) fn body(self, numbers: Range<u64>) -> Vec<u8> {
        let count = usize::try_from(numbers.end - numbers.start).unwrap_or(0);
        let mut body = format!(r#"{{"app_id":"{APP_ID}","events":["#).into_bytes();
        body.reserve(count * (self.event_bytes + 1));
        let start = numbers.start;
        for number in numbers {
            if number > start {
                body.push(b',');
            }
            self.write(number, &mut body);
        }
        body.extend_from_slice(b"]}");
        body
    }

    /// Appends one event of the wanted length. What is missing is filled up in the payload where
    /// its type has free text, so that it is delivered too.
    fn write(self, number: u64, body: &mut Vec<u8>) {
        let kind = number % TYPES.len() as u64;
        let name = TYPES.iter().zip(0..).find(|(_, index)| *index == kind);
        let name = name.map_or("", |(name, _)| name);
        let user = user_id(number % USERS);
        let at = &*DATE;
        let (before, after) = match kind {
            0 => (
                format!(
                    r#""session_id":"ses_{number:026}","identifier":{{"type":"email_address","value":"person@example.com"}},"metadata":{{"user_agent":""#
                ),
                format!(r#""}},"created_at":"{at}""#),
            ),
            1 => (
                r#""identifiers":[{"type":"email_address","value":"person@example.com"}],"profile":{"note":""#.to_owned(),
                format!(r#""}},"source":"api","created_at":"{at}""#),
            ),
            2 => (
                r#""profile":{"note":""#.to_owned(),
                format!(r#""}},"updated_at":"{at}""#),
            ),
            3 => (
                r#""identifier":{"type":"email_address","value":""#.to_owned(),
                format!(r#""}},"created_at":"{at}""#),
            ),
            4 => (
                r#""session_id":""#.to_owned(),
                format!(r#"","revoked_at":"{at}""#),
            ),
            5 => (
                r#""identifier":{"type":"email_address","value":""#.to_owned(),
                format!(r#""}},"deleted_at":"{at}""#),
            ),
            _ => (
                r#""correlation_id":""#.to_owned(),
                format!(r#"","deleted_at":"{at}""#),
            ),
        };
        let start = body.len();
        let head = format!(
            r#"{{"id":"evt_{number:0ID_DIGITS$}","type":"{name}","payload":{{"user_id":"{user}",{before}"#
        );
        let tail = format!(r#"{after}}},"created_at":"{at}"}}"#);
        body.extend_from_slice(head.as_bytes());
        let filled = start + self.event_bytes.saturating_sub(tail.len());
        body.resize(filled.max(body.len()), b'x');
        body.extend_from_slice(tail.as_bytes());
    }
}

fn user_id(user: u64) -> String {
    format!("usr_{user:026}")
}

/// The number of the event with this id; `None` if it is none of ours.
pub(super) fn number(id: &[u8]) -> Option<u64> {
    let digits = id.strip_prefix(b"evt_")?;
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn events_have_their_length_their_id_and_a_payload_that_is_understood() {
        let events = Events::new(500);
        let body = events.body(993..1_007);
        let value: Value = serde_json::from_slice(&body).unwrap();
        let items = value["events"].as_array().unwrap();
        assert_eq!(items.len(), 14);
        for (item, expected) in items.iter().zip(993..) {
            assert_eq!(item.to_string().len(), 500, "{item}");
            let id = item["id"].as_str().unwrap();
            assert_eq!(number(id.as_bytes()), Some(expected));
        }
    }

    #[test]
    fn what_matches_is_counted_without_looking() {
        for shape in [Shape::All, Shape::Seventh, Shape::Thousandth] {
            for range in [0..1, 0..7, 1..7, 5..5_005, 999..1_001, 1_000..1_000] {
                let body = Events::new(500).body(range.clone());
                let value: Value = serde_json::from_slice(&body).unwrap();
                let matches = |item: &&Value| match shape {
                    Shape::All => true,
                    Shape::Seventh => item["type"] == "user.session.created",
                    Shape::Thousandth => item["payload"]["user_id"] == user_id(0),
                };
                let items = value["events"].as_array().unwrap();
                let counted = items.iter().filter(matches).count();
                assert_eq!(
                    shape.matching(&range),
                    counted as u64,
                    "{shape:?} {range:?}"
                );
            }
        }
    }

    #[test]
    fn foreign_ids_have_no_number() {
        assert_eq!(number(b"evt_00000000000000000012"), Some(12));
        for id in [&b"syn_12"[..], b"evt_", b"evt_x", b"\xff"] {
            assert_eq!(number(id), None);
        }
    }
}
