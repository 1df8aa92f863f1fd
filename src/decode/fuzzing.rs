//! What is true of every body and every date, for the fuzz targets.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a broken promise has to be seen"
)]

use prost::Message as _;

use super::*;
use crate::{
    event::{
        Epoch, LogId, Sequence, UnixMicros,
        block::{Block, Builder},
    },
    proto,
};

pub const APP: &str = "54e9ujn";

/// Both ways of reading a body agree, every event is a message, and a block of them is read as it was
/// built.
pub fn batch(body: &[u8]) {
    let app_id: Arc<str> = APP.into();
    let decoded = batch_of(Bytes::copy_from_slice(body), &app_id, "");
    if let Ok(text) = str::from_utf8(body) {
        let mut usual = Encoder::new(text, &app_id, "");
        if usual.push_usual() {
            let mut any = Encoder::new(text, &app_id, "");
            let pushed = any.push_any();
            assert_eq!(pushed, Ok(()), "only one way reads it");
            assert_eq!(usual.encoded, any.encoded);
            assert_eq!(usual.dates, any.dates);
            assert_eq!(format!("{:?}", usual.drafts), format!("{:?}", any.drafts));
        }
    }
    let Ok(batch) = decoded else { return };
    assert_eq!(claimed_app_id(body).as_deref(), Some(APP));
    let place = (LogId(1), Epoch(2), Sequence(3), UnixMicros(4));
    let mut builder = Builder::new(place.0, place.1, place.2, place.3);
    for draft in &batch.drafts {
        let fields = [batch.head(draft), batch.payload(draft)].concat();
        let event = proto::Event::decode(fields.as_slice()).unwrap();
        assert!(!event.id.is_empty() && event.id.len() <= ID_BYTES_MAX);
        assert_eq!(
            draft.key,
            EventKey::new(APP, &event.id, &event.r#type, batch.raw_json(draft))
        );
        assert_eq!(*event.r#type, *draft.event_type);
        serde_json::from_slice::<serde::de::IgnoredAny>(batch.raw_json(draft)).unwrap();
        builder.push(&batch, draft);
        if builder.is_full() {
            check_block(&mut builder);
        }
    }
    check_block(&mut builder);
}

/// A body of one event: what is taken is one event, whose JSON is the body.
pub fn single_event(body: &[u8]) {
    let id: Arc<str> = APP.into();
    for product in [Product::Verify, Product::Notify] {
        let decoded = single::single_of(Bytes::copy_from_slice(body), &id, product, "");
        let Ok(batch) = decoded else { continue };
        assert_eq!(batch.drafts.len(), 1);
        assert_eq!(batch.raw_json(&batch.drafts[0]), body.trim_ascii());
    }
}

fn check_block(builder: &mut Builder) {
    let Some(built) = builder.finish() else {
        return;
    };
    let read = Block::parse(built.as_bytes().clone()).unwrap();
    assert_eq!(format!("{built:?}"), format!("{read:?}"));
    assert_eq!(built.types(), read.types());
    assert!(built.keys().eq(read.keys()));
}

/// RFC 3339 means the same to another parser, as far as that has an answer.
pub fn date(text: &str) {
    let Some(date::Date::At(at)) = date::parse(text) else {
        return;
    };
    assert!((0..1_000_000_000).contains(&at.nanos));
    // A leap second, and more than nine digits, mean something else there.
    if text.contains("60") || text.contains("99999999") {
        return;
    }
    if let Ok(other) = text.parse::<jiff::Timestamp>() {
        let nanos = i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
        assert_eq!(nanos, other.as_nanosecond(), "{text}");
    }
}
