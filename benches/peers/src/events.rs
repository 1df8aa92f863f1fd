//! Owns what is published: events of 500 bytes on the wire, the seven documented types in turn, as
//! the JSON that Prelude signs and as the encoded `Event` that the bridge makes of it. Everything
//! is made, and signed, before anything is measured.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use prelude_bridge_load::{Key, Split};
use prost::Message as _;
use prost_types::Timestamp;

use crate::proto::{self, event::Payload};

/// The app that the events belong to.
pub const APP: &str = "54e9ujn";

/// The verification token of its webhook; nothing here asks for it.
pub const TOKEN: &str = "peers";

/// The size of an encoded `Event`, as a subscriber receives it.
pub const EVENT_BYTES: usize = 500;

/// The types of the events: number `n` has the type `n % 7`.
pub const TYPES: [&str; 7] = [
    "user.created",
    "user.deleted",
    "user.profile.updated",
    "user.identifier.created",
    "user.identifier.deleted",
    "user.session.created",
    "user.session.revoked",
];

/// One event in both of its forms.
struct Event {
    json: String,
    encoded: Vec<u8>,
}

const DATE: &str = "2026-11-23T10:58:38Z";
const DATE_SECONDS: i64 = 1_795_431_518;

impl Event {
    fn new(number: u64) -> Self {
        // The correlation id is in the event and in its payload: padding comes in twos.
        let bare = encode(number, "", 0).len();
        let correlation = "c".repeat(EVENT_BYTES.saturating_sub(bare + 10) / 2);
        // What is missing then is of no meaning to anybody: the cursor is made up.
        let missing = EVENT_BYTES.saturating_sub(encode(number, &correlation, 0).len());
        Self {
            json: json(number, &correlation),
            encoded: encode(number, &correlation, missing),
        }
    }
}

fn kind(number: u64) -> usize {
    usize::try_from(number % 7).unwrap_or_default()
}

fn user(number: u64) -> String {
    format!("usr_{:026}", number % 10_000)
}

/// The JSON object, as Prelude would send it.
fn json(number: u64, correlation: &str) -> String {
    let kind = kind(number);
    let identifier = r#"{"type":"email_address","value":"someone@example.com"}"#;
    let rest = match kind {
        0 => format!(
            r#""identifiers":[{identifier}],"profile":{{"locale":"en"}},"source":"api","created_at":"{DATE}""#
        ),
        1 => format!(r#""deleted_at":"{DATE}""#),
        2 => format!(r#""profile":{{"locale":"en"}},"updated_at":"{DATE}""#),
        3 => format!(r#""identifier":{identifier},"created_at":"{DATE}""#),
        4 => format!(r#""identifier":{identifier},"deleted_at":"{DATE}""#),
        5 => format!(
            r#""session_id":"ses_{number:026}","identifier":{identifier},"metadata":{{"device":"phone"}},"created_at":"{DATE}""#
        ),
        _ => format!(r#""session_id":"ses_{number:026}","revoked_at":"{DATE}""#),
    };
    let (name, user) = (TYPES[kind], user(number));
    format!(
        r#"{{"id":"evt_{number:026}","type":"{name}","payload":{{"user_id":"{user}",{rest},"correlation_id":"{correlation}"}},"created_at":"{DATE}"}}"#
    )
}

/// The same as the bridge would encode it.
fn encode(number: u64, correlation: &str, padding: usize) -> Vec<u8> {
    let at = Some(Timestamp {
        seconds: DATE_SECONDS,
        nanos: 0,
    });
    let identifier = proto::Identifier {
        r#type: "email_address".into(),
        value: "someone@example.com".into(),
    };
    let text = |key: &str, value: &str| prost_types::Struct {
        fields: [(
            key.to_owned(),
            prost_types::Value {
                kind: Some(prost_types::value::Kind::StringValue(value.to_owned())),
            },
        )]
        .into(),
    };
    let (user_id, correlation_id) = (user(number), correlation.to_owned());
    let session_id = format!("ses_{number:026}");
    let payload = match kind(number) {
        0 => Payload::UserCreated(proto::UserCreated {
            user_id,
            identifiers: vec![identifier],
            profile: Some(text("locale", "en")),
            source: "api".into(),
            created_at: at,
            correlation_id,
        }),
        1 => Payload::UserDeleted(proto::UserDeleted {
            user_id,
            deleted_at: at,
            correlation_id,
        }),
        2 => Payload::UserProfileUpdated(proto::UserProfileUpdated {
            user_id,
            profile: Some(text("locale", "en")),
            updated_at: at,
            correlation_id,
        }),
        3 => Payload::UserIdentifierCreated(proto::UserIdentifierCreated {
            user_id,
            identifier: Some(identifier),
            created_at: at,
            correlation_id,
        }),
        4 => Payload::UserIdentifierDeleted(proto::UserIdentifierDeleted {
            user_id,
            identifier: Some(identifier),
            deleted_at: at,
            correlation_id,
        }),
        5 => Payload::UserSessionCreated(proto::UserSessionCreated {
            user_id,
            session_id,
            identifier: Some(identifier),
            metadata: Some(text("device", "phone")),
            created_at: at,
            correlation_id,
        }),
        _ => Payload::UserSessionRevoked(proto::UserSessionRevoked {
            user_id,
            session_id,
            revoked_at: at,
            correlation_id,
        }),
    };
    let event = proto::Event {
        id: format!("evt_{number:026}"),
        r#type: TYPES[kind(number)].into(),
        app_id: APP.into(),
        user_id: user(number),
        // What the bridge adds: a cursor is 28 characters, a time has nanoseconds.
        cursor: "c".repeat(28 + padding),
        sequence: 100_000 + number,
        occurred_at: at,
        received_at: Some(Timestamp {
            seconds: DATE_SECONDS,
            nanos: 123_456_000,
        }),
        correlation_id: correlation.to_owned(),
        payload: Some(payload),
        ..proto::Event::default()
    };
    event.encode_to_vec()
}

/// The body of a batch of the events `from..from + count`.
#[must_use]
pub fn body(from: u64, count: usize) -> String {
    let items: Vec<String> = (from..from + count as u64)
        .map(|number| Event::new(number).json)
        .collect();
    format!(r#"{{"app_id":"{APP}","events":[{}]}}"#, items.join(","))
}

/// The same events in the form that each kind of server takes, in chunks of equal size.
///
/// Requests are all different, as the bridge drops what it has seen. The other forms are used
/// again and again: nobody looks whether they come a second time.
pub struct Chunks {
    /// Events in each chunk.
    pub size: usize,
    /// Signed HTTP requests.
    pub requests: Vec<Bytes>,
    /// Frames of encoded events for the servers that are fed by a plain connection.
    pub frames: Vec<Bytes>,
    /// `PUB` commands of NATS.
    pub publishes: Vec<Bytes>,
    /// The same with a place to acknowledge to, for JetStream.
    pub acknowledged_publishes: Vec<Bytes>,
}

/// How many chunks there are of the forms that can be used again: a multiple of seven, so that the
/// types go on in turn.
const REUSED_CHUNKS: u64 = 70;

impl Chunks {
    /// Makes them: `requests` signed requests, and the other forms. Signing is the slow part, and
    /// done on all cores.
    ///
    /// # Errors
    /// A signature cannot be made.
    pub fn new(split: &Split, key: &Key, size: usize, requests: usize) -> Result<Self> {
        let requests = split.make_all(requests, |chunk| {
            let body = body((chunk * size) as u64, size);
            key.request(APP, body.as_bytes()).map(Bytes::from)
        })?;
        let mut chunks = Self {
            size,
            requests,
            frames: Vec::new(),
            publishes: Vec::new(),
            acknowledged_publishes: Vec::new(),
        };
        for chunk in 0..REUSED_CHUNKS {
            let (mut frames, mut publishes, mut acknowledged) = (vec![], vec![], vec![]);
            for number in chunk * size as u64..(chunk + 1) * size as u64 {
                let encoded = Event::new(number).encoded;
                let length = u32::try_from(encoded.len()).context("a large event")?;
                frames.extend_from_slice(&length.to_be_bytes());
                frames.extend_from_slice(&encoded);
                let name = TYPES[kind(number)];
                publishes.extend_from_slice(format!("PUB ev.{name} {length}\r\n").as_bytes());
                acknowledged
                    .extend_from_slice(format!("PUB ev.{name} _ack.1 {length}\r\n").as_bytes());
                for form in [&mut publishes, &mut acknowledged] {
                    form.extend_from_slice(&encoded);
                    form.extend_from_slice(b"\r\n");
                }
            }
            chunks.frames.push(frames.into());
            chunks.publishes.push(publishes.into());
            chunks.acknowledged_publishes.push(acknowledged.into());
        }
        Ok(chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_five_hundred_bytes_whatever_its_type() {
        for number in [0, 1, 2, 3, 4, 5, 6, 699_999] {
            assert_eq!(Event::new(number).encoded.len(), EVENT_BYTES, "{number}");
        }
    }

    #[test]
    fn every_form_has_the_same_events() {
        let (split, key) = (Split::pair().unwrap(), Key::generate().unwrap());
        let chunks = Chunks::new(&split, &key, 10, 2).unwrap();
        assert_eq!(chunks.requests.len(), 2);
        let text = String::from_utf8(chunks.requests[1].to_vec()).unwrap();
        assert!(text.contains("evt_00000000000000000000000019"));
        let events = chunks.publishes[1].len() / EVENT_BYTES;
        assert_eq!(events, 10);
        assert_eq!(
            proto::Event::decode(&chunks.frames[1][4..4 + frame(&chunks.frames[1])])
                .unwrap()
                .id,
            "evt_00000000000000000000000010"
        );
    }

    fn frame(bytes: &[u8]) -> usize {
        u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize
    }
}
