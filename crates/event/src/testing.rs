//! Events to test logs, the bus and streams with.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "only tests use it, and a test that cannot go on should panic"
)]

use std::sync::Arc;

use prelude_bridge_contract as proto;

use crate::{
    block::{Block, Builder, Format},
    event::{self, Batch, Dates, Draft, Epoch, EventKey, LogId, Sequence, UnixMicros},
    wire::Head,
};

/// A batch of events given as (id, type, user).
#[must_use]
pub fn batch(app_id: &str, events: &[(&str, &str, &str)]) -> Batch {
    let mut body = Vec::new();
    let mut encoded = Vec::new();
    let mut drafts = Vec::new();
    for &(id, event_type, user_id) in events {
        let head_start = encoded.len();
        Head {
            id,
            event_type,
            app_id,
            user_id,
            ..Head::default()
        }
        .encode(&mut encoded);
        let payload_start = encoded.len();
        // `Event.user_deleted` (21) with an empty message.
        encoded.extend_from_slice(&[0xaa, 0x01, 0x00]);
        let raw_start = body.len();
        let raw_json = format!(r#"{{"id":"{id}","type":"{event_type}"}}"#);
        body.extend_from_slice(raw_json.as_bytes());
        drafts.push(Draft {
            key: EventKey::new(app_id, id, event_type, raw_json.as_bytes()),
            event_type: event_type.into(),
            user_hash: if user_id.is_empty() {
                0
            } else {
                event::user_hash(user_id)
            },
            head: head_start..payload_start,
            payload: payload_start..encoded.len(),
            raw_json: raw_start..body.len(),
        });
    }
    Batch {
        app_id: app_id.into(),
        body: body.into(),
        encoded: encoded.into(),
        drafts,
        dates: Dates::default(),
    }
}

/// A batch of the events that these numbers stand for: a number is always the same event.
#[must_use]
pub fn numbered(app_id: &str, numbers: std::ops::Range<u64>) -> Batch {
    let numbers: Vec<u64> = numbers.collect();
    numbered_list(app_id, &numbers)
}

/// The same for a list of numbers, in which one may occur more than once.
#[must_use]
pub fn numbered_list(app_id: &str, numbers: &[u64]) -> Batch {
    let ids: Vec<String> = numbers.iter().map(|n| format!("evt_{n}")).collect();
    let events: Vec<(&str, &str, &str)> = ids
        .iter()
        .map(|id| (id.as_str(), "user.created", "usr_1"))
        .collect();
    batch(app_id, &events)
}

/// The ids of the events in blocks that follow one another, with their sequence numbers.
#[must_use]
pub fn events(blocks: &[Arc<Block>]) -> Vec<(u64, String)> {
    use prost::Message as _;
    let mut events = Vec::new();
    for block in blocks {
        let all = block.view(Format::Typed).slice(0..block.entries().len());
        let response = proto::SubscribeResponse::decode(all).unwrap();
        events.extend(response.events.into_iter().map(|e| (e.sequence, e.id)));
    }
    events
}

/// A block of `count` events of changing types.
#[must_use]
pub fn block(first_sequence: Sequence, count: usize) -> Arc<Block> {
    let types = [
        "user.created",
        "user.session.created",
        "user.session.revoked",
    ];
    let names: Vec<(String, &str, String)> = (0..count)
        .map(|index| {
            let sequence = first_sequence.0 + index as u64;
            let event_type = types.get(index % types.len()).copied().unwrap_or_default();
            (
                format!("evt_{sequence}"),
                event_type,
                format!("usr_{}", sequence % 5),
            )
        })
        .collect();
    let events: Vec<(&str, &str, &str)> = names
        .iter()
        .map(|(id, event_type, user)| (id.as_str(), *event_type, user.as_str()))
        .collect();
    block_of(first_sequence, &batch("app_1", &events))
}

/// A block of the events of a batch, of log 1 and epoch 1.
#[must_use]
pub fn block_of(first_sequence: Sequence, batch: &Batch) -> Arc<Block> {
    block_in(LogId(1), Epoch(1), first_sequence, batch)
}

/// The same of any log and epoch.
#[must_use]
pub fn block_in(log: LogId, epoch: Epoch, first_sequence: Sequence, batch: &Batch) -> Arc<Block> {
    let received_at =
        UnixMicros(1_700_000_000_000_000_i64.saturating_add_unsigned(first_sequence.0));
    let mut builder = Builder::new(log, epoch, first_sequence, received_at);
    for draft in &batch.drafts {
        builder.push(batch, draft);
    }
    Arc::new(builder.finish().unwrap())
}
