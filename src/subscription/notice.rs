//! Owns the notices of a stream, each as the encoded field of a `SubscribeResponse`.

use std::time::Duration;

use prost::Message as _;

use crate::{
    event::{Sequence, UnixMicros},
    filter::Filter,
    log::{self, Epochs},
    proto::{
        self, CaughtUp, Draining, FellBehind, LogEnd, LogRange, Progress, SkipReason, Skipped,
        Started, SubscribeResponse, subscribe_response::Notice,
    },
};

pub(super) fn started(
    epochs: &Epochs,
    filter: &Filter,
    range: &log::Range,
    after: Sequence,
) -> Vec<u8> {
    let spec = filter.to_spec();
    encode(Notice::Started(Started {
        filter: Some(proto::Filter {
            types: spec.types,
            exclude_types: spec.exclude_types,
            app_ids: spec.app_ids,
            user_ids: spec.user_ids,
        }),
        range: Some(log_range(epochs, range)),
        after_sequence: after.0,
    }))
}

pub(super) fn progress(position: Sequence, head: Sequence) -> Vec<u8> {
    encode(Notice::Progress(Progress {
        sequence: position.0,
        head_sequence: head.0,
    }))
}

pub(super) fn caught_up(position: Sequence) -> Vec<u8> {
    encode(Notice::CaughtUp(CaughtUp {
        sequence: position.0,
    }))
}

pub(super) fn fell_behind(position: Sequence, head: Sequence) -> Vec<u8> {
    encode(Notice::FellBehind(FellBehind {
        sequence: position.0,
        head_sequence: head.0,
    }))
}

pub(super) fn skipped(first: Sequence, last: Sequence, reason: SkipReason) -> Vec<u8> {
    encode(Notice::Skipped(Skipped {
        first_sequence: first.0,
        last_sequence: last.0,
        reason: reason.into(),
    }))
}

pub(super) fn draining(retry_after: Duration) -> Vec<u8> {
    // Durations that a configuration can hold are within protobuf's.
    encode(Notice::Draining(Draining {
        retry_after: retry_after.try_into().ok(),
    }))
}

/// A range as the contract has it.
pub(super) fn log_range(epochs: &Epochs, range: &log::Range) -> LogRange {
    let empty = range.event_count() == 0;
    let earliest = if empty { range.head } else { range.earliest };
    let end = |after: Sequence, sequence: Sequence, at: Option<UnixMicros>| LogEnd {
        cursor: epochs.cursor(after).to_string(),
        sequence: sequence.0,
        received_at: at.map(|at| prost_types::Timestamp {
            seconds: at.0.div_euclid(1_000_000),
            nanos: i32::try_from(at.0.rem_euclid(1_000_000) * 1_000).unwrap_or_default(),
        }),
    };
    LogRange {
        earliest: Some(end(range.earliest.before(), earliest, range.earliest_at)),
        head: Some(end(range.head, range.head, range.head_at)),
        event_count: range.event_count(),
    }
}

/// Only the notice's own field: the cursor and the events of the message are left out.
fn encode(notice: Notice) -> Vec<u8> {
    SubscribeResponse {
        notice: Some(notice),
        ..SubscribeResponse::default()
    }
    .encode_to_vec()
}
