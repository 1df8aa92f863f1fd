//! Owns the bodies of Verify and Notify: one event in each delivery, without a batch around it. The body
//! is the event, with the rules of an event of a batch: every JSON object is one, whatever it lacks.
//! What is refused is a body that was meant for another path.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{Ambiguity, Encoder, Error, Item, json, range_within};
use crate::{event::Batch, signature::VerifiedBody};

/// The products of Prelude that send one event in each delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Prelude Verify.
    Verify,
    /// Prelude Notify.
    Notify,
}

/// The types that Verify documents begin with this.
const OF_VERIFY: [&str; 1] = ["verify."];
/// The types that Notify documents begin with one of these.
const OF_NOTIFY: [&str; 4] = ["transactional.", "marketing.", "subscription.", "inbound."];

impl Product {
    /// The product whose types begin like this one; `None` for those of Prelude Auth and new ones.
    #[must_use]
    pub fn of_type(event_type: &str) -> Option<Self> {
        let begins =
            |prefixes: &[&str]| prefixes.iter().any(|prefix| event_type.starts_with(prefix));
        match () {
            () if begins(&OF_VERIFY) => Some(Self::Verify),
            () if begins(&OF_NOTIFY) => Some(Self::Notify),
            () => None,
        }
    }

    /// Whether a type is documented for another product. Types that neither documents are taken: new ones
    /// will come.
    fn is_others(self, event_type: &str) -> bool {
        Self::of_type(event_type).is_some_and(|product| product != self)
    }
}

/// Decodes the body of a delivery that the keys of the source `id` have verified: one event, whose
/// `app_id` becomes this id. Its `raw_json` is the body without white space around it.
///
/// # Errors
/// The body is no JSON object, is an ambiguous one, or belongs to another path: a batch, or an event of
/// another product.
pub fn single_event(
    verified: VerifiedBody,
    id: &Arc<str>,
    product: Product,
    traceparent: &str,
) -> Result<Batch, Error> {
    single_of(verified.into_body(), id, product, traceparent)
}

pub(super) fn single_of(
    body: Bytes,
    id: &Arc<str>,
    product: Product,
    traceparent: &str,
) -> Result<Batch, Error> {
    let text = super::utf_8(&body)?;
    let raw_json = object(text)?;
    let item = Item::read(raw_json).map_err(Error::Ambiguous)?;
    let event_type = item.event_type();
    if event_type.is_none() && is_batch(raw_json) {
        return Err(Error::UnexpectedBatch);
    }
    if event_type.is_some_and(|event_type| product.is_others(&event_type)) {
        return Err(Error::OtherProduct);
    }
    let mut encoder = Encoder::new(text, id, traceparent);
    encoder.push(range_within(text, raw_json), &item);
    if let Some(ambiguity) = encoder.ambiguity {
        // There are no other events to distinguish it from.
        return Err(Error::Ambiguous(Ambiguity {
            event: None,
            ..ambiguity
        }));
    }
    let (encoded, drafts, dates) = encoder.finish();
    Ok(Batch {
        app_id: Arc::clone(id),
        body,
        encoded,
        drafts,
        dates,
    })
}

/// The text of the body's object, without white space around it.
fn object(text: &str) -> Result<&str, Error> {
    let value: &RawValue = serde_json::from_str(text).map_err(|error| Error::NotJson {
        line: error.line(),
        column: error.column(),
    })?;
    let raw_json = value.get();
    raw_json
        .starts_with('{')
        .then_some(raw_json)
        .ok_or(Error::NotObject)
}

/// Whether an object without a type is a batch of Prelude Auth.
fn is_batch(object: &str) -> bool {
    let mut has_events = false;
    let visited = json::members(object, |name, value| {
        has_events |= name.is("events") && value.json().starts_with('[');
    });
    visited.is_some() && has_events
}

/// Whether the object of a body without `events` is an event: what a source of another kind sends.
pub(super) fn is_event(text: &str) -> bool {
    let item = Item::read(text);
    item.is_ok_and(|item| item.event_type().is_some())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{event::EventKey, proto};

    const ID: &str = "calls";

    fn decode(body: impl Into<Bytes>, product: Product) -> Result<Batch, Error> {
        single_of(body.into(), &ID.into(), product, "")
    }

    /// Decodes a body, and reads its event back with the generated types, with its JSON.
    fn event(body: &str, product: Product) -> (proto::Event, String) {
        let batch = decode(body.to_owned(), product).unwrap();
        let [draft] = batch.drafts.as_slice() else {
            panic!("one event: {:?}", batch.drafts);
        };
        let fields = [batch.head(draft), batch.payload(draft)].concat();
        let event = proto::Event::decode(fields.as_slice()).unwrap();
        let raw_json = String::from_utf8(batch.raw_json(draft).to_vec()).unwrap();
        let key = EventKey::new(ID, &event.id, &event.r#type, raw_json.as_bytes());
        assert_eq!(draft.key, key);
        assert_eq!(event.app_id, ID);
        (event, raw_json)
    }

    const ATTEMPT: &str = r#"{"id":"evt_1","type":"verify.attempt","payload":{"verification_id":"vrf_1",
        "id":"att_1","time":"2026-11-01T00:00:00.123456789Z","price":{"amount":0.009,"currency":"EUR"}},
        "created_at":"2026-11-01T00:00:01.987654321Z"}"#;

    const MESSAGE: &str = r#"{"id":"evt_2","type":"transactional.message.created","payload":{
        "id":"tx_1","correlation_id":"corr_1","fee":{"amount":"0.009","currency":"EUR"},
        "created_at":"2026-11-01T00:00:00.349000489Z"},"created_at":"2026-11-01T00:00:01.36881397Z"}"#;

    #[test]
    fn the_body_is_the_event_byte_for_byte_without_white_space_around_it() {
        for around in [("", ""), (" \r\n\t", "\n \t\r")] {
            let body = format!("{}{ATTEMPT}{}", around.0, around.1);
            let (event, raw_json) = event(&body, Product::Verify);
            assert_eq!(raw_json, ATTEMPT);
            assert_eq!((&*event.id, &*event.r#type), ("evt_1", "verify.attempt"));
            assert_eq!(event.occurred_at.unwrap().nanos, 123_456_789);
        }
        let (event, raw_json) = event(MESSAGE, Product::Notify);
        assert_eq!(raw_json, MESSAGE);
        assert_eq!(event.correlation_id, "corr_1");
        assert_eq!(event.occurred_at.unwrap().nanos, 349_000_489);
        // A form feed and a no-break space are no white space of JSON.
        for around in ["\u{c}", "\u{a0}", "\u{feff}"] {
            let refused = decode(format!("{around}{ATTEMPT}"), Product::Verify);
            assert!(matches!(refused, Err(Error::NotJson { .. })), "{around:?}");
        }
    }

    #[test]
    fn an_object_of_any_shape_is_an_event() {
        for body in [
            "{}",
            r#"{"id":7}"#,
            r#"{"type":"of.a.stranger","payload":null}"#,
            r#"{"type":"authentication","auth_uuid":"f54b","time":"2023-05-09T12:09:31+0000"}"#,
            // Members that a batch has, in what says that it is an event.
            r#"{"type":"verify.attempt","app_id":"other","payload":{}}"#,
            r#"{"type":"verify.attempt","app_id":"other","events":[1]}"#,
            r#"{"events":{}}"#,
            r#"{"app_id":"other"}"#,
        ] {
            let (event, raw_json) = event(body, Product::Verify);
            assert_eq!(raw_json, body);
            assert!(!event.id.is_empty());
        }
        // Without an id, the bytes make one.
        let id = |body: &str| event(body, Product::Notify).0.id;
        assert_eq!(id("{}"), id(" {} "));
        assert_ne!(id("{}"), id(r#"{"a":1}"#));
    }

    #[test]
    fn what_is_no_event_of_this_product_is_refused_by_its_cause() {
        let json = |line, column| Error::NotJson { line, column };
        for (body, cause) in [
            (&b""[..], json(1, 0)),
            (b"{", json(1, 1)),
            (b"{}\n{}", json(2, 1)),
            (b"\xff{}", Error::NotUtf8 { at: 0 }),
            (b"null", Error::NotObject),
            (b"[{\"type\":\"verify.attempt\"}]", Error::NotObject),
            (b"\"{}\"", Error::NotObject),
            (
                br#"{"app_id":"54e9ujn","events":[]}"#,
                Error::UnexpectedBatch,
            ),
            (
                br#"{"events":[{"type":"user.created"}]}"#,
                Error::UnexpectedBatch,
            ),
            (br#"{"\u0065vents":[]}"#, Error::UnexpectedBatch),
        ] {
            for product in [Product::Verify, Product::Notify] {
                let refused = decode(body.to_vec(), product).unwrap_err();
                assert_eq!(refused, cause, "{}", String::from_utf8_lossy(body));
            }
        }
    }

    #[test]
    fn an_event_of_the_other_product_is_refused_and_an_unknown_one_is_not() {
        let of = |event_type: &str, product| {
            decode(format!(r#"{{"type":"{event_type}"}}"#), product).map(|batch| batch.drafts.len())
        };
        for event_type in [
            "verify.authentication",
            "verify.attempt",
            "verify.of.tomorrow",
        ] {
            assert_eq!(of(event_type, Product::Verify), Ok(1));
            assert_eq!(of(event_type, Product::Notify), Err(Error::OtherProduct));
        }
        for event_type in [
            "transactional.message.delivered",
            "marketing.message.created",
            "subscription.stopped",
            "inbound.message.received",
        ] {
            assert_eq!(of(event_type, Product::Notify), Ok(1));
            assert_eq!(of(event_type, Product::Verify), Err(Error::OtherProduct));
        }
        for event_type in ["verify", "verifyx.a", "message.created", "user.created", ""] {
            assert_eq!(of(event_type, Product::Verify), Ok(1), "{event_type}");
            assert_eq!(of(event_type, Product::Notify), Ok(1), "{event_type}");
        }
    }

    #[test]
    fn a_single_event_is_as_unambiguous_as_one_of_a_batch() {
        let said = |body: &str| {
            decode(body.to_owned(), Product::Verify)
                .unwrap_err()
                .to_string()
        };
        for (body, expected) in [
            (
                r#"{"id":"a","id":"b"}"#,
                "the event has its member id twice",
            ),
            (
                r#"{"type":"a","t\u0079pe":"b"}"#,
                "the event has its member type twice",
            ),
            (
                r#"{"app_id":"a","app_id":"b"}"#,
                "the event has its member app_id twice",
            ),
            (
                r#"{"type":"verify.a","event":"verify.b"}"#,
                "the event has type and event, which are not the same",
            ),
            (
                r#"{"payload":{"correlation_id":"a","correlation_id":"b"}}"#,
                "the payload has its member correlation_id twice",
            ),
            (
                r#"{"type":"user.created","payload":{"profile":{"a":1,"a":2}}}"#,
                "the profile has its member (another) twice",
            ),
        ] {
            assert_eq!(said(body), expected, "{body}");
        }
    }

    #[test]
    fn a_single_event_is_no_batch_and_says_where_it_belongs() {
        for body in [
            ATTEMPT,
            MESSAGE,
            r#"{"type":"user.created"}"#,
            r#"{"app_id":"calls","type":"user.created","payload":{}}"#,
            r#" {"event":"user.created","data":{}} "#,
        ] {
            let refused = super::super::batch_of(body.to_owned().into(), &ID.into(), "");
            assert_eq!(refused.unwrap_err(), Error::UnexpectedEvent, "{body}");
        }
        for (body, cause) in [
            ("{}", Error::NoAppId),
            (r#"{"id":"evt_1","payload":{}}"#, Error::NoAppId),
            (r#"{"type":"a","events":[]}"#, Error::NoAppId),
            (r#"{"type":7,"app_id":"calls"}"#, Error::NoEvents),
        ] {
            let refused = super::super::batch_of(body.to_owned().into(), &ID.into(), "");
            assert_eq!(refused.unwrap_err(), cause, "{body}");
        }
    }

    proptest! {
        /// Nothing panics; whatever is taken is one event whose JSON is the body.
        #[test]
        fn any_damage_leaves_one_event_or_a_refusal(at: usize, byte: u8, cut: usize) {
            let mut body = ATTEMPT.as_bytes().to_vec();
            let length = body.len();
            body[at % length] = byte;
            body.truncate(length - cut % 3);
            if let Ok(batch) = decode(body.clone(), Product::Verify) {
                prop_assert_eq!(batch.drafts.len(), 1);
                prop_assert_eq!(batch.raw_json(&batch.drafts[0]), body.trim_ascii());
            }
        }
    }
}
