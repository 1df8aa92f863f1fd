//! Owns the bytes of the contract: how an event and a response are laid out as protobuf, so that
//! an event is encoded once and its bytes are shared by everybody who receives it.
//!
//! Protobuf lets fields come in any order and lets messages be concatenated, and this is what the
//! layout uses: an event's fields are grouped by when they become known (*head* when it is
//! decoded, *place* when it is committed, then the content), and a response is its cursor and
//! notice followed by whole events. Field numbers are those of `proto/prelude/bridge/v1`; the
//! tests hold them against the generated types. Knows nothing of who stores or sends the bytes.

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::event::{Cursor, Sequence, UnixMicros};

/// The version of the encoding: events as `SubscribeResponse.events` fields of the package
/// `prelude.bridge.v1`. A log stores events as they are sent, so that nobody encodes one again, and
/// each block carries this version. When the contract changes such that stored bytes would no longer
/// be right, it becomes another one, blocks with the old one are translated when they are read, and
/// the formats of the stores get another version too: an older release then refuses the log as newer.
pub const ENCODING_VERSION: u8 = b'1';

/// The tag of `SubscribeResponse.events`.
const RESPONSE_EVENTS: u8 = tag(1, LENGTH_DELIMITED);
/// The tag of `SubscribeResponse.cursor`.
const RESPONSE_CURSOR: u8 = tag(2, LENGTH_DELIMITED);

const EVENT_ID: u8 = tag(1, LENGTH_DELIMITED);
const EVENT_TYPE: u8 = tag(2, LENGTH_DELIMITED);
const EVENT_APP_ID: u8 = tag(3, LENGTH_DELIMITED);
const EVENT_USER_ID: u8 = tag(4, LENGTH_DELIMITED);
const EVENT_CURSOR: u8 = tag(5, LENGTH_DELIMITED);
const EVENT_SEQUENCE: u8 = tag(6, VARINT);
const EVENT_OCCURRED_AT: u8 = tag(7, LENGTH_DELIMITED);
const EVENT_RECEIVED_AT: u8 = tag(8, LENGTH_DELIMITED);
const EVENT_CORRELATION_ID: u8 = tag(9, LENGTH_DELIMITED);
const EVENT_TRACEPARENT: u8 = tag(10, LENGTH_DELIMITED);
const EVENT_RAW_JSON: u8 = tag(11, LENGTH_DELIMITED);

const TIMESTAMP_SECONDS: u8 = tag(1, VARINT);
const TIMESTAMP_NANOS: u8 = tag(2, VARINT);

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;

const fn tag(field: u8, wire_type: u8) -> u8 {
    // Fields up to 15 have tags of one byte; all that are written here do.
    assert!(field < 16);
    field << 3 | wire_type
}

/// A moment, as `google.protobuf.Timestamp` has it: from the year 1 to the year 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Since the Unix epoch; negative before it.
    pub seconds: i64,
    /// After that second: 0 to 999,999,999.
    pub nanos: i32,
}

impl From<Timestamp> for UnixMicros {
    fn from(at: Timestamp) -> Self {
        let micros = at.seconds.saturating_mul(1_000_000);
        Self(micros.saturating_add(i64::from(at.nanos) / 1_000))
    }
}

/// The fields of an event that are known when it is decoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// `Event.id`.
    pub id: &'a str,
    /// `Event.type`.
    pub event_type: &'a str,
    /// `Event.app_id`.
    pub app_id: &'a str,
    /// `Event.user_id`; empty where there is none.
    pub user_id: &'a str,
    /// `Event.occurred_at`.
    pub occurred_at: Option<Timestamp>,
    /// `Event.correlation_id`; empty where there is none.
    pub correlation_id: &'a str,
    /// `Event.traceparent`; empty where there is none.
    pub traceparent: &'a str,
}

impl Head<'_> {
    /// Appends the fields to `buffer`. The user id comes first, where [`user_id`] finds it.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        put_text(buffer, EVENT_USER_ID, self.user_id);
        put_text(buffer, EVENT_ID, self.id);
        put_text(buffer, EVENT_TYPE, self.event_type);
        put_text(buffer, EVENT_APP_ID, self.app_id);
        if let Some(Timestamp { seconds, nanos }) = self.occurred_at {
            put_timestamp(buffer, EVENT_OCCURRED_AT, seconds, nanos);
        }
        put_text(buffer, EVENT_CORRELATION_ID, self.correlation_id);
        put_text(buffer, EVENT_TRACEPARENT, self.traceparent);
    }
}

/// The user id in the encoded fields of an event; empty where there is none.
#[must_use]
pub fn user_id(event_fields: &[u8]) -> &[u8] {
    take_text(&mut { event_fields }, EVENT_USER_ID)
}

/// The id of an event in its encoded fields.
#[must_use]
pub fn event_id(mut event_fields: &[u8]) -> &[u8] {
    take_text(&mut event_fields, EVENT_USER_ID);
    take_text(&mut event_fields, EVENT_ID)
}

/// The JSON of an event in its field `Event.raw_json`.
#[must_use]
pub fn raw_json(mut field: &[u8]) -> &[u8] {
    take_text(&mut field, EVENT_RAW_JSON)
}

/// Takes the text of the next field, if it has this tag; empty where it has not.
fn take_text<'a>(fields: &mut &'a [u8], tag: u8) -> &'a [u8] {
    let Some((&found, mut rest)) = fields.split_first() else {
        return &[];
    };
    if found != tag {
        return &[];
    }
    let length = prost::encoding::decode_varint(&mut rest).unwrap_or(u64::MAX);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let Some((text, others)) = rest.split_at_checked(length) else {
        return &[];
    };
    *fields = others;
    text
}

/// The cursor in the encoded fields of an event; `None` where there is none.
#[must_use]
pub fn cursor(mut event_fields: &[u8]) -> Option<Cursor> {
    // Only fields with a length stand before it.
    while let Some((&tag, mut rest)) = event_fields.split_first()
        && tag & 7 == LENGTH_DELIMITED
    {
        let length = prost::encoding::decode_varint(&mut rest).ok()?;
        let (value, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        if tag == EVENT_CURSOR {
            return str::from_utf8(value).ok()?.parse().ok();
        }
        event_fields = after;
    }
    None
}

/// Appends the fields of an event that are known when it is committed.
pub fn put_place(buffer: &mut Vec<u8>, cursor: Cursor, received_at: UnixMicros) {
    buffer.push(EVENT_CURSOR);
    put_cursor_text(buffer, cursor);
    let Sequence(sequence) = cursor.sequence;
    buffer.push(EVENT_SEQUENCE);
    encode_varint(sequence, buffer);
    let seconds = received_at.0.div_euclid(1_000_000);
    let nanos = received_at.0.rem_euclid(1_000_000) * 1_000;
    put_timestamp(
        buffer,
        EVENT_RECEIVED_AT,
        seconds,
        i32::try_from(nanos).unwrap_or_default(),
    );
}

/// Appends the field `Event.raw_json`.
pub fn put_raw_json(buffer: &mut Vec<u8>, raw_json: &[u8]) {
    buffer.push(EVENT_RAW_JSON);
    encode_varint(raw_json.len() as u64, buffer);
    buffer.extend_from_slice(raw_json);
}

/// Appends what stands before an event of `event_bytes` in a response, and returns how much that
/// is.
pub fn put_event_prefix(buffer: &mut Vec<u8>, event_bytes: usize) -> usize {
    buffer.push(RESPONSE_EVENTS);
    encode_varint(event_bytes as u64, buffer);
    1 + encoded_len_varint(event_bytes as u64)
}

/// The length of a gRPC message's prefix: a compression flag and 32 bits of length
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
pub const GRPC_PREFIX_BYTES: usize = 5;

/// The length of what [`put_response_head`] writes for a cursor without a time.
pub const RESPONSE_HEAD_BYTES: usize = GRPC_PREFIX_BYTES + 2 + crate::event::CURSOR_TEXT_BYTES;

/// The length of what [`put_response_head`] writes for this cursor.
#[must_use]
pub fn response_head_bytes(cursor: Cursor) -> usize {
    GRPC_PREFIX_BYTES + 2 + cursor.to_text().len()
}

/// Begins a gRPC message: a `SubscribeResponse` with this cursor, and `rest_bytes` of an encoded
/// notice field or of events, which the caller sends right after.
pub fn put_response_head(buffer: &mut impl BufMut, cursor: Cursor, rest_bytes: usize) {
    let text = cursor.to_text();
    let message_bytes = 2 + text.len() + rest_bytes;
    buffer.put_u8(0);
    // The limits on responses and events keep a message far below 4 GiB.
    buffer.put_u32(u32::try_from(message_bytes).unwrap_or(u32::MAX));
    buffer.put_u8(RESPONSE_CURSOR);
    encode_varint(text.len() as u64, buffer);
    buffer.put_slice(&text);
}

/// A whole gRPC message.
#[must_use]
pub fn grpc_message(message: &impl prost::Message) -> Bytes {
    let message_bytes = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(GRPC_PREFIX_BYTES + message_bytes);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(message_bytes).unwrap_or(u32::MAX));
    message.encode_raw(&mut buffer);
    buffer.freeze()
}

fn put_cursor_text(buffer: &mut Vec<u8>, cursor: Cursor) {
    let text = cursor.to_text();
    encode_varint(text.len() as u64, buffer);
    buffer.extend_from_slice(&text);
}

fn put_text(buffer: &mut Vec<u8>, tag: u8, text: &str) {
    // Protobuf leaves out what is empty.
    if !text.is_empty() {
        buffer.push(tag);
        encode_varint(text.len() as u64, buffer);
        buffer.extend_from_slice(text.as_bytes());
    }
}

fn put_timestamp(buffer: &mut Vec<u8>, tag: u8, seconds: i64, nanos: i32) {
    // Negative numbers are ten bytes of two's complement.
    let (seconds, nanos) = (seconds.cast_unsigned(), i64::from(nanos).cast_unsigned());
    buffer.push(tag);
    encode_varint(
        (2 + encoded_len_varint(seconds) + encoded_len_varint(nanos)) as u64,
        buffer,
    );
    buffer.push(TIMESTAMP_SECONDS);
    encode_varint(seconds, buffer);
    buffer.push(TIMESTAMP_NANOS);
    encode_varint(nanos, buffer);
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::event::{Epoch, LogId};
    use prelude_bridge_contract as proto;

    const CURSOR: Cursor = Cursor {
        log: LogId(u64::MAX),
        epoch: Epoch(3),
        sequence: Sequence(1 << 40),
        not_before: None,
    };

    #[test]
    fn the_generated_types_read_what_is_written_by_hand() {
        let head = Head {
            id: "evt_1",
            event_type: "user.created",
            app_id: "54e9ujn",
            user_id: "usr_1",
            occurred_at: Some(Timestamp {
                seconds: -2,
                nanos: 250_000_000,
            }),
            correlation_id: "corr_1",
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        };
        let mut fields = Vec::new();
        head.encode(&mut fields);
        assert_eq!(user_id(&fields), b"usr_1");
        assert_eq!(cursor(&fields), None);
        put_place(&mut fields, CURSOR, UnixMicros(1_700_000_000_123_456));
        assert_eq!(cursor(&fields), Some(CURSOR));
        put_raw_json(&mut fields, b"{}");

        let mut events = Vec::new();
        let prefix_bytes = put_event_prefix(&mut events, fields.len());
        assert_eq!(prefix_bytes, events.len());
        events.extend_from_slice(&fields);
        let mut message = Vec::new();
        put_response_head(&mut message, CURSOR, events.len());
        assert_eq!(message.len(), RESPONSE_HEAD_BYTES);
        message.extend_from_slice(&events);

        assert_eq!(message[0], 0, "not compressed");
        let length = u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize;
        assert_eq!(length, message.len() - GRPC_PREFIX_BYTES);
        let response = proto::SubscribeResponse::decode(&message[GRPC_PREFIX_BYTES..]).unwrap();
        assert_eq!(response.cursor, CURSOR.to_string());
        let expected = proto::Event {
            id: "evt_1".into(),
            r#type: "user.created".into(),
            app_id: "54e9ujn".into(),
            user_id: "usr_1".into(),
            cursor: CURSOR.to_string(),
            sequence: 1 << 40,
            occurred_at: Some(prost_types::Timestamp {
                seconds: -2,
                nanos: 250_000_000,
            }),
            received_at: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_456_000,
            }),
            correlation_id: "corr_1".into(),
            traceparent: head.traceparent.into(),
            raw_json: "{}".into(),
            ..proto::Event::default()
        };
        assert_eq!(response.events, [expected]);
    }

    #[test]
    fn a_response_carries_a_cursor_with_a_time_too() {
        let cursor = Cursor {
            not_before: Some(UnixMicros(i64::MAX)),
            ..CURSOR
        };
        let mut message = Vec::new();
        put_response_head(&mut message, cursor, 0);
        assert_eq!(message.len(), response_head_bytes(cursor));
        let length = u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize;
        assert_eq!(length, message.len() - GRPC_PREFIX_BYTES);
        let response = proto::SubscribeResponse::decode(&message[GRPC_PREFIX_BYTES..]).unwrap();
        assert_eq!(response.cursor, cursor.to_string());
    }

    #[test]
    fn an_event_without_a_user_has_no_user_id() {
        let mut fields = Vec::new();
        Head {
            id: "evt_1",
            ..Head::default()
        }
        .encode(&mut fields);
        assert_eq!(user_id(&fields), b"");
        assert_eq!(user_id(&[]), b"");
        assert_eq!(user_id(&[EVENT_USER_ID, 200]), b"");
    }
}
