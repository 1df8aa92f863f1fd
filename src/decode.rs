//! Owns what a delivery's body means: a verified body becomes the events of a batch, encoded as far
//! as that is possible before they have their place in the log. What follows is about the batches of
//! Prelude Auth; `single` has the bodies of Verify and Notify, which are one event each.
//!
//! Two things are strict, because without them there is no batch: the body is a JSON object in
//! UTF-8 with an `events` array, and its `app_id` is the app whose keys verified it. Everything
//! about a single event is lenient: the sender documents no shape for it, and what is not
//! understood must still reach the subscribers. So every item of the array is an event, whatever
//! it is, and its bytes are kept as they are; each further field is found or left empty.
//!
//! - **type**: `type`, else `event`. Empty where neither is a string, or it has more than
//!   [`TYPE_BYTES_MAX`] bytes.
//! - **id**: `id`, a string or the text of a number: `1` and `"1"` are the same id. Where there is none, or none of 1 to
//!   [`ID_BYTES_MAX`] bytes, `syn_` and a hash of app, type and the item's bytes.
//! - **payload fields**: those of the object in `payload`, else `data`, else of the item itself.
//! - **user_id, correlation_id**: from the payload fields, else from beside them. That of the payload
//!   counts even where the two differ, because the one beside it may be of somebody else; and where it is
//!   no string or number, or has more than [`ID_BYTES_MAX`] bytes: then the field is empty.
//!   The correlation id also from the payload's `metadata`, of Verify and of types that are not known.
//! - **occurred_at**: the date that is documented for the type; else the `created_at` beside the
//!   payload; else the first readable of the payload's `occurred_at`, `time`, `revoked_at`,
//!   `deleted_at`, `updated_at` and `created_at`. Dates are RFC 3339; what is beyond a timestamp's
//!   precision is cut off, and a date beyond its range is left out.
//! - **the batch's dates**: of each event the later one of `occurred_at` and the `created_at` beside
//!   the payload.
//! - **payload message**: for the types in the table of `payload/types.rs`. Missing members and nulls
//!   get protobuf's defaults. A member of the wrong shape leaves the message out, and the event says
//!   so: [`payload_issue`].
//!
//! And nothing may be ambiguous, as the filter of a subscription and its consumer would not mean the same
//! event: a batch is refused where the body has any member twice, or an event or its payload one that
//! is read of any type, or an object that becomes part of the message one of its own; or where `type`
//! and `event` are both there and differ, or `payload` and `data` in one of these members. Names are
//! compared as they are without escapes. Those that are read may not differ only in case either: `Type`
//! is not read, but stands for `type` to some consumers. Members that nothing here reads may be there as
//! often as they like, and are passed on as they are.
//!
//! Knows nothing of HTTP, keys and the log.

mod ambiguity;
mod date;
mod envelope;
mod item;
mod json;
mod payload;
mod single;

use std::{
    borrow::Cow,
    ops::Range,
    sync::{Arc, LazyLock},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

pub use self::{
    ambiguity::{Ambiguity, Members},
    payload::{event_types, event_types_of, issue_name, payload_issue},
    single::{Product, single_event},
};
use self::{
    envelope::Envelope,
    item::Item,
    json::Value,
    payload::{Fields, Known},
};
pub use crate::event::{ID_BYTES_MAX, TYPE_BYTES_MAX};
use crate::{
    event::{Batch, Dates, Draft, EventKey, user_hash},
    signature::VerifiedBody,
    wire::Head,
};

/// The most events of one batch. The smallest event with a type and a user has over 40 bytes, so
/// a body within its limit of 1 MiB never gets here with such; but `[0,0,0…]` would, and each item
/// costs a hundred bytes of memory.
pub const EVENTS_MAX: usize = 65_536;

/// Why a verified body is no batch. Never shows what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Some byte sequence in it is not UTF-8.
    #[error("the body is not UTF-8: byte {at} begins no character")]
    NotUtf8 {
        /// The offset of the first wrong byte.
        at: usize,
    },
    /// Not JSON, or something after it.
    #[error("the body is not JSON: line {line}, column {column}")]
    NotJson {
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
    },
    /// JSON of another kind.
    #[error("the body is JSON but no object")]
    NotObject,
    /// No `app_id`, or not a string.
    #[error("the body's app_id is missing or not a string")]
    NoAppId,
    /// The `app_id` of an app other than the one whose keys verified the body.
    #[error("the body's app_id is another app's")]
    OtherApp,
    /// No `events`, or not an array.
    #[error("the body's events are missing or not an array")]
    NoEvents,
    /// More than [`EVENTS_MAX`].
    #[error("the body has more than {EVENTS_MAX} events")]
    TooManyEvents,
    /// It can be read in two ways.
    #[error("{0}")]
    Ambiguous(Ambiguity),
    /// A single event where batches belong.
    #[error(
        "the body is a single event, as Verify and Notify send it, and this path takes batches of \
         Prelude Auth: use the path of a source of kind verify or notify as the callback_url"
    )]
    UnexpectedEvent,
    /// A batch where single events belong.
    #[error(
        "the body is a batch of Prelude Auth, and this path takes single events of Verify or Notify: \
         register the webhook with the path of the app"
    )]
    UnexpectedBatch,
    /// An event of Verify at a source of kind notify, or the other way round.
    #[error(
        "the body is an event of another product than this source's kind: Verify and Notify need a \
         source each, and the path of their own source as the callback_url"
    )]
    OtherProduct,
}

/// Decodes the body of a delivery that the keys of `app_id` have verified. All its events carry
/// the `traceparent` of the request (empty where it had none).
///
/// # Errors
/// Where the body is no batch of this app, or is ambiguous; never for the shape of one event.
pub fn batch(verified: VerifiedBody, app_id: &Arc<str>, traceparent: &str) -> Result<Batch, Error> {
    batch_of(verified.into_body(), app_id, traceparent)
}

/// The `app_id` that a body claims, before anybody has verified it: only to choose the keys that
/// can. `None` where [`batch`] would find none. Of two that claim to be it the last one is taken, and
/// [`batch`] says that there are two.
#[must_use]
pub fn claimed_app_id(body: &[u8]) -> Option<Cow<'_, str>> {
    let text = str::from_utf8(body).ok()?;
    let mut app_id = None;
    json::members(text, |name, value| {
        if name.is("app_id") {
            app_id = Some(value);
        }
    })?;
    app_id?.string()
}

fn batch_of(body: Bytes, app_id: &Arc<str>, traceparent: &str) -> Result<Batch, Error> {
    let text = utf_8(&body)?;
    let mut encoder = Encoder::new(text, app_id, traceparent);
    if !encoder.push_usual() {
        // What has been made of it so far is given up.
        encoder = Encoder::new(text, app_id, traceparent);
        encoder.push_any()?;
    }
    if let Some(ambiguity) = encoder.ambiguity {
        return Err(Error::Ambiguous(ambiguity));
    }
    let (encoded, drafts, dates) = encoder.finish();
    Ok(Batch {
        app_id: Arc::clone(app_id),
        body,
        encoded,
        drafts,
        dates,
    })
}

fn utf_8(body: &[u8]) -> Result<&str, Error> {
    str::from_utf8(body).map_err(|error| Error::NotUtf8 {
        at: error.valid_up_to(),
    })
}

/// Encodes the events of one batch, one after another into one buffer.
struct Encoder<'a> {
    text: &'a str,
    app_id: &'a Arc<str>,
    traceparent: &'a str,
    encoded: Vec<u8>,
    drafts: Vec<Draft>,
    dates: Dates,
    /// The first that was found in a payload.
    ambiguity: Option<Ambiguity>,
}

impl<'a> Encoder<'a> {
    fn new(text: &'a str, app_id: &'a Arc<str>, traceparent: &'a str) -> Self {
        Self {
            text,
            app_id,
            traceparent,
            // What leaves JSON comes out shorter; what is added per event is about this much.
            encoded: Vec::with_capacity(text.len() + text.len() / 8),
            drafts: Vec::new(),
            dates: Dates::default(),
            ambiguity: None,
        }
    }

    /// Encodes a batch of this app that looks as they usually do. False for everything else, with
    /// some of it encoded.
    fn push_usual(&mut self) -> bool {
        let claimed = envelope::walk(self.text, |range, item| self.push(range, &item));
        claimed.is_some_and(|claimed| claimed == **self.app_id)
    }

    /// Encodes any batch of this app.
    fn push_any(&mut self) -> Result<(), Error> {
        let envelope = Envelope::parse(self.text)?;
        if envelope.events.is_none() && single::is_event(self.text) {
            return Err(Error::UnexpectedEvent);
        }
        let claimed = envelope.app_id.and_then(Value::string);
        if claimed.ok_or(Error::NoAppId)? != **self.app_id {
            return Err(Error::OtherApp);
        }
        for raw_json in envelope.events.ok_or(Error::NoEvents)? {
            let item = Item::read(raw_json);
            let item = item.map_err(|found| Error::Ambiguous(found.in_event(self.drafts.len())))?;
            self.push(range_within(self.text, raw_json), &item);
        }
        Ok(())
    }

    /// What makes a batch of the events, without the body that they were read from.
    fn finish(self) -> (Bytes, Vec<Draft>, Dates) {
        (self.encoded.into(), self.drafts, self.dates)
    }

    fn push(&mut self, range: Range<usize>, item: &Item<'_>) {
        let (event_type, known) = intern(item.event_type().as_deref().unwrap_or_default());
        let raw_json = self.text.get(range.clone()).unwrap_or_default();
        let id = match item.id() {
            Some(id) => id,
            None => synthetic_id(self.app_id, &event_type, raw_json).into(),
        };
        let beside = item.beside();
        let none;
        let fields = match item.fields() {
            Some(fields) => fields,
            None => {
                none = Fields::default();
                &none
            }
        };
        let user_id = Item::inner_id(fields.user_id(), beside.user_id());
        let correlation_id = [fields, beside].map(|fields| fields.correlation_id(known));
        let documented = fields.documented_date(known);
        let beside_date = beside.created_at();
        let occurred_at = fields.occurred_at(documented, beside_date);
        if let Some(at) = occurred_at.max(beside_date) {
            self.dates.add(at.into());
        }
        let head_start = self.encoded.len();
        Head {
            id: &id,
            event_type: &event_type,
            app_id: self.app_id,
            user_id: &user_id,
            occurred_at,
            correlation_id: &Item::inner_id(correlation_id[0], correlation_id[1]),
            traceparent: self.traceparent,
        }
        .encode(&mut self.encoded);
        let payload_start = self.encoded.len();
        match (known, item.fields()) {
            (None, _) => {}
            (Some(_), None) => payload::put_no_object(&mut self.encoded),
            (Some(known), Some(fields)) => {
                if let Err(found) = fields.encode(known, documented, &mut self.encoded) {
                    let found = found.in_event(self.drafts.len());
                    self.ambiguity = self.ambiguity.or(Some(found));
                }
            }
        }
        self.drafts.push(Draft {
            key: EventKey::new(self.app_id, &id, &event_type, raw_json.as_bytes()),
            user_hash: if user_id.is_empty() {
                0
            } else {
                user_hash(&user_id)
            },
            event_type,
            head: head_start..payload_start,
            payload: payload_start..self.encoded.len(),
            raw_json: range,
        });
    }
}

/// Where a slice of a text is in it. Empty, should it be a slice of something else.
fn range_within(text: &str, slice: &str) -> Range<usize> {
    let start = (slice.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    start..start.saturating_add(slice.len())
}

static NO_TYPE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));

/// The type's name, which events of a known type share, and what is known of it.
fn intern(event_type: &str) -> (Arc<str>, Option<&'static Known>) {
    if event_type.is_empty() || event_type.len() > TYPE_BYTES_MAX {
        return (Arc::clone(&NO_TYPE), None);
    }
    let known = Known::find(event_type);
    let name = known.map_or_else(|| event_type.into(), |known| Arc::clone(&known.name));
    (name, known)
}

/// The id of an event that was sent without: the same whenever the same bytes are sent again.
fn synthetic_id(app_id: &str, event_type: &str, raw_json: &str) -> String {
    let mut hash = Sha256::new();
    // The lengths keep the parts apart.
    for part in [app_id, event_type] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(raw_json);
    let digest: [u8; 32] = hash.finalize().into();
    let (half, _) = digest.split_at(16);
    format!("syn_{}", URL_SAFE_NO_PAD.encode(half))
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests;
