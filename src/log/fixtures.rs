//! Events to test logs, the bus and streams with.

use std::sync::Arc;

use super::block::{Block, Builder};
use crate::{
    event::{self, Batch, Draft, EventKey, LogId, Sequence, Term, UnixMicros},
    wire::Head,
};

/// A batch of events given as (id, type, user).
pub(crate) fn batch(app_id: &str, events: &[(&str, &str, &str)]) -> Batch {
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
        body.extend_from_slice(format!(r#"{{"id":"{id}","type":"{event_type}"}}"#).as_bytes());
        drafts.push(Draft {
            key: EventKey::new(app_id, id),
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
    }
}

/// A block of `count` events of changing types.
pub(crate) fn block(first_sequence: Sequence, count: usize) -> Arc<Block> {
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

/// A block of the events of a batch, of log 1 and term 1.
pub(crate) fn block_of(first_sequence: Sequence, batch: &Batch) -> Arc<Block> {
    let received_at =
        UnixMicros(1_700_000_000_000_000 + i64::try_from(first_sequence.0).unwrap_or(0));
    let mut builder = Builder::new(LogId(1), Term(1), first_sequence, received_at);
    for draft in &batch.drafts {
        builder.push(batch, draft);
    }
    Arc::new(builder.finish().unwrap())
}
