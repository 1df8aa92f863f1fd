//! Owns just enough of gRPC and protobuf to count: how many events came, in how many responses, and
//! whether the places that the responses name are what so many events lead to. An event's content
//! is skipped, unless whole messages are asked for.

use prelude_bridge_event::{CURSOR_TEXT_BYTES, Cursor, TIMED_TEXT_BYTES};

/// The length of a gRPC message's prefix.
const PREFIX_BYTES: usize = 5;

/// The longest message that is put together: above every response and any single event.
const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The fields of `SubscribeResponse`.
mod field {
    pub(super) const EVENTS: u64 = 1;
    pub(super) const CURSOR: u64 = 2;
    pub(super) const CAUGHT_UP: u64 = 5;
    pub(super) const FELL_BEHIND: u64 = 6;
    pub(super) const SKIPPED: u64 = 7;
}

/// The wire type of everything in a response.
const LENGTH_DELIMITED: u64 = 2;

/// The content of a stream is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream's content cannot be read: {0}")]
pub(super) struct Malformed(&'static str);

/// What has come so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) events: u64,
    pub(super) responses: u64,
    pub(super) bytes: u64,
    /// The place of the first response: where the stream starts.
    pub(super) started_after: Option<u64>,
    /// The place of the last response.
    pub(super) place: u64,
    /// Whether some response moved the place by another number than that of its events. Normal for
    /// a filter, a loss or a repetition without one.
    pub(super) jumped: bool,
    pub(super) caught_up: bool,
    pub(super) fell_behind: u64,
    pub(super) skipped: bool,
}

/// Where in the content the next byte is.
#[derive(Clone, Copy, Debug)]
enum State {
    /// In a message's prefix.
    Prefix {
        bytes: [u8; PREFIX_BYTES],
        have: usize,
    },
    /// At a field's tag.
    Tag,
    /// In a field's length.
    Length { field: u64, value: u64, shift: u32 },
    /// In a field that is skipped.
    Skip { left: usize },
    /// In the cursor.
    Cursor { left: usize },
}

impl State {
    /// At the start of a message.
    const PREFIX: Self = Self::Prefix {
        bytes: [0; PREFIX_BYTES],
        have: 0,
    };
}

/// Counts the responses of one stream, however they are cut.
#[derive(Debug)]
pub(super) struct Responses {
    state: State,
    message_left: usize,
    events: u64,
    /// Whether each response has to have a cursor.
    has_cursors: bool,
    cursor: [u8; TIMED_TEXT_BYTES],
    cursor_bytes: usize,
    pub(super) counts: Counts,
}

impl Responses {
    /// Of a bridge.
    pub(super) fn new() -> Self {
        Self {
            state: State::PREFIX,
            message_left: 0,
            events: 0,
            has_cursors: true,
            cursor: [0; TIMED_TEXT_BYTES],
            cursor_bytes: 0,
            counts: Counts::default(),
        }
    }

    /// Of a server whose cursors are not looked at, if it sends any.
    pub(super) fn without_cursors() -> Self {
        Self {
            has_cursors: false,
            ..Self::new()
        }
    }

    /// Takes the next piece of the content.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        self.counts.bytes += bytes.len() as u64;
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = match self.state {
                State::Skip { left } => self.skip(bytes, left)?,
                State::Cursor { left } => self.read_cursor(bytes, left)?,
                State::Tag => {
                    self.read_tag(byte)?;
                    rest
                }
                State::Length {
                    field,
                    value,
                    shift,
                } => {
                    self.read_length(byte, field, value, shift)?;
                    rest
                }
                State::Prefix {
                    bytes: prefix,
                    have,
                } => {
                    self.read_prefix(byte, prefix, have)?;
                    rest
                }
            };
        }
        Ok(())
    }

    /// Skips what has come of a field, and returns what comes after it.
    fn skip<'a>(&mut self, bytes: &'a [u8], left: usize) -> Result<&'a [u8], Malformed> {
        let (skipped, rest) = bytes.split_at(left.min(bytes.len()));
        let left = left - skipped.len();
        self.state = State::Skip { left };
        self.passed(skipped.len(), left == 0)?;
        Ok(rest)
    }

    fn read_cursor<'a>(&mut self, bytes: &'a [u8], left: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = bytes.split_at(left.min(bytes.len()));
        let from = self.cursor_bytes.saturating_sub(left);
        let places = self.cursor.iter_mut().skip(from);
        places.zip(taken).for_each(|(place, byte)| *place = *byte);
        let left = left - taken.len();
        self.state = State::Cursor { left };
        self.passed(taken.len(), left == 0)?;
        Ok(rest)
    }

    fn read_tag(&mut self, byte: u8) -> Result<(), Malformed> {
        if byte >= 0x80 || u64::from(byte) & 7 != LENGTH_DELIMITED {
            return Err(Malformed("an unknown field in a response"));
        }
        self.state = State::Length {
            field: u64::from(byte) >> 3,
            value: 0,
            shift: 0,
        };
        self.passed(1, false)
    }

    fn read_length(
        &mut self,
        byte: u8,
        field: u64,
        value: u64,
        shift: u32,
    ) -> Result<(), Malformed> {
        if shift > 28 {
            return Err(Malformed("a length beyond 32 bits"));
        }
        let value = value | u64::from(byte & 0x7f) << shift;
        self.message_left = self.message_left.saturating_sub(1);
        if byte < 0x80 {
            return self.begin(field, value);
        }
        self.state = State::Length {
            field,
            value,
            shift: shift + 7,
        };
        Ok(())
    }

    fn read_prefix(
        &mut self,
        byte: u8,
        mut bytes: [u8; PREFIX_BYTES],
        have: usize,
    ) -> Result<(), Malformed> {
        if let Some(place) = bytes.get_mut(have) {
            *place = byte;
        }
        let have = have + 1;
        self.state = State::Prefix { bytes, have };
        if have < PREFIX_BYTES {
            return Ok(());
        }
        let [compressed, a, b, c, d] = bytes;
        if compressed != 0 {
            return Err(Malformed("a compressed message"));
        }
        self.message_left = u32::from_be_bytes([a, b, c, d]) as usize;
        self.passed(0, true)
    }

    /// Begins a field's content.
    fn begin(&mut self, field: u64, length: u64) -> Result<(), Malformed> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > self.message_left {
            return Err(Malformed("a field that is longer than its response"));
        }
        self.state = State::Skip { left: length };
        match field {
            field::EVENTS => self.events += 1,
            field::CURSOR if !self.has_cursors => {}
            field::CURSOR if matches!(length, CURSOR_TEXT_BYTES | TIMED_TEXT_BYTES) => {
                self.cursor_bytes = length;
                self.state = State::Cursor { left: length };
            }
            field::CURSOR => return Err(Malformed("a cursor of another length")),
            field::CAUGHT_UP => self.counts.caught_up = true,
            field::FELL_BEHIND => self.counts.fell_behind += 1,
            field::SKIPPED => self.counts.skipped = true,
            _ => {}
        }
        self.passed(0, length == 0)
    }

    /// So many bytes of the message have gone by, and with them perhaps a field.
    fn passed(&mut self, count: usize, field_is_over: bool) -> Result<(), Malformed> {
        let Some(left) = self.message_left.checked_sub(count) else {
            return Err(Malformed("a response that is longer than it says"));
        };
        self.message_left = left;
        if !field_is_over {
            return Ok(());
        }
        self.state = State::Tag;
        if left == 0 {
            self.state = State::PREFIX;
            self.end_response()?;
        }
        Ok(())
    }

    fn end_response(&mut self) -> Result<(), Malformed> {
        let events = std::mem::take(&mut self.events);
        let counts = &mut self.counts;
        counts.responses += 1;
        counts.events += events;
        if !self.has_cursors {
            return Ok(());
        }
        // The next response has to bring its own.
        let length = std::mem::take(&mut self.cursor_bytes);
        let text = self.cursor.get(..length);
        let text = text.and_then(|text| str::from_utf8(text).ok());
        let cursor = text.and_then(|text| text.parse::<Cursor>().ok());
        let Some(cursor) = cursor else {
            return Err(Malformed("a response without a cursor"));
        };
        let place = cursor.sequence.0;
        match counts.started_after {
            None => counts.started_after = Some(place.saturating_sub(events)),
            Some(_) => counts.jumped |= counts.place.checked_add(events) != Some(place),
        }
        counts.place = place;
        Ok(())
    }
}

/// Puts whole messages together, for those who look into them.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
}

impl Messages {
    /// Takes the next piece of the content and passes the messages on that are whole with it.
    pub(super) fn feed(
        &mut self,
        piece: &[u8],
        mut message: impl FnMut(&[u8]),
    ) -> Result<(), Malformed> {
        self.bytes.extend_from_slice(piece);
        let mut rest = self.bytes.as_slice();
        while let Some((&[_, a, b, c, d], content)) = rest.split_first_chunk::<PREFIX_BYTES>() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length > MESSAGE_BYTES_MAX {
                return Err(Malformed("a message beyond all limits"));
            }
            let Some((whole, after)) = content.split_at_checked(length) else {
                break;
            };
            message(whole);
            rest = after;
        }
        let done = self.bytes.len() - rest.len();
        self.bytes.drain(..done);
        Ok(())
    }
}

/// The ids of the events in a message, as they are.
pub(super) fn event_ids(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    // `SubscribeResponse.events` and `Event.id` have the same number.
    let events = fields(message).filter(|(field, _)| *field == field::EVENTS);
    events.filter_map(|(_, event)| {
        fields(event)
            .find(|(field, _)| *field == 1)
            .map(|(_, id)| id)
    })
}

/// The length-delimited fields of a message; ends at what cannot be read.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let tag = varint(&mut message)?;
            match tag & 7 {
                0 => {
                    varint(&mut message)?;
                }
                LENGTH_DELIMITED => {
                    let length = usize::try_from(varint(&mut message)?).ok()?;
                    let (content, rest) = message.split_at_checked(length)?;
                    message = rest;
                    return Some((tag >> 3, content));
                }
                _ => return None,
            }
        }
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use prelude_bridge_contract::{
        CaughtUp, Event, Skipped, Started, SubscribeResponse, subscribe_response::Notice,
    };
    use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

    fn response(place: u64, ids: &[&str], notice: Option<Notice>) -> SubscribeResponse {
        let cursor = Cursor {
            log: LogId(1),
            epoch: Epoch(2),
            sequence: Sequence(place),
            not_before: None,
        };
        let event = |id: &&str| Event {
            id: (*id).to_owned(),
            r#type: "user.created".to_owned(),
            raw_json: vec![b'x'; 300].into(),
            sequence: place,
            ..Event::default()
        };
        SubscribeResponse {
            events: ids.iter().map(event).collect(),
            cursor: cursor.to_string(),
            notice,
        }
    }

    fn content(responses: &[SubscribeResponse]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for response in responses {
            bytes.push(0);
            let length = u32::try_from(response.encoded_len()).unwrap();
            bytes.extend(length.to_be_bytes());
            response.encode(&mut bytes).unwrap();
        }
        bytes
    }

    fn count(bytes: &[u8], piece_bytes: usize) -> Counts {
        let mut responses = Responses::new();
        for piece in bytes.chunks(piece_bytes) {
            responses.feed(piece).unwrap();
        }
        responses.counts
    }

    #[test]
    fn the_cheap_counter_agrees_with_a_full_decode_however_it_is_cut() {
        let responses = [
            response(5, &[], Some(Notice::Started(Started::default()))),
            response(7, &["a", "b"], None),
            response(7, &[], Some(Notice::CaughtUp(CaughtUp { sequence: 7 }))),
            response(8, &["c"], None),
        ];
        let bytes = content(&responses);
        for piece_bytes in 1..100 {
            let counts = count(&bytes, piece_bytes);
            let expected = Counts {
                events: responses
                    .iter()
                    .map(|response| response.events.len() as u64)
                    .sum(),
                responses: 4,
                bytes: bytes.len() as u64,
                started_after: Some(5),
                place: 8,
                jumped: false,
                caught_up: true,
                fell_behind: 0,
                skipped: false,
            };
            assert_eq!(counts, expected);
        }
    }

    #[test]
    fn a_stream_may_start_at_a_time_that_has_not_come() {
        let timed = |place| {
            let mut response = response(place, &[], None);
            let cursor: Cursor = response.cursor.parse().unwrap();
            let not_before = Some(UnixMicros(7));
            response.cursor = Cursor {
                not_before,
                ..cursor
            }
            .to_string();
            response
        };
        let bytes = content(&[timed(5), timed(6), response(7, &["a"], None)]);
        for piece_bytes in 1..100 {
            let counts = count(&bytes, piece_bytes);
            assert_eq!((counts.started_after, counts.place), (Some(5), 7));
        }
    }

    #[test]
    fn events_are_counted_without_cursors_too_where_nobody_looks_at_them() {
        let mut odd = response(9, &["c"], None);
        odd.cursor = "of another kind".to_owned();
        let bytes = content(&[
            SubscribeResponse::default(),
            response(7, &["a", "b"], None),
            odd,
        ]);
        for piece_bytes in [1, 7, 1_000] {
            let mut responses = Responses::without_cursors();
            for piece in bytes.chunks(piece_bytes) {
                responses.feed(piece).unwrap();
            }
            assert_eq!(
                (responses.counts.events, responses.counts.responses),
                (3, 3)
            );
        }
        assert!(Responses::new().feed(&bytes).is_err());
    }

    #[test]
    fn a_gap_and_a_repetition_show_in_the_places() {
        let start = response(5, &[], None);
        assert!(!count(&content(&[start.clone(), response(6, &["a"], None)]), 9).jumped);
        assert!(count(&content(&[start.clone(), response(7, &["a"], None)]), 9).jumped);
        assert!(count(&content(&[start.clone(), response(5, &["a"], None)]), 9).jumped);
        let skipped = response(7, &[], Some(Notice::Skipped(Skipped::default())));
        assert!(count(&content(&[start, skipped]), 9).skipped);
    }

    #[test]
    fn ids_are_found_in_whole_messages_however_they_are_cut() {
        let responses = [
            response(2, &["a", "b"], None),
            response(2, &[], None),
            response(3, &["c"], None),
        ];
        let bytes = content(&responses);
        for piece_bytes in [1, 7, 64, 10_000] {
            let (mut messages, mut ids) = (Messages::default(), Vec::new());
            for piece in bytes.chunks(piece_bytes) {
                let found = |message: &[u8]| ids.extend(event_ids(message).map(<[u8]>::to_vec));
                messages.feed(piece, found).unwrap();
            }
            assert_eq!(ids, [b"a", b"b", b"c"]);
        }
    }

    #[test]
    fn what_is_no_response_is_told() {
        let fails = |bytes: &[u8]| Responses::new().feed(bytes).unwrap_err();
        assert_eq!(fails(&[1, 0, 0, 0, 0]), Malformed("a compressed message"));
        assert_eq!(
            fails(&[0, 0, 0, 0, 0]),
            Malformed("a response without a cursor")
        );
        assert_eq!(
            fails(&[0, 0, 0, 0, 9, 0x08]),
            Malformed("an unknown field in a response")
        );
        let mut second = content(&[response(5, &[], None)]);
        second.extend([0, 0, 0, 0, 0]);
        assert_eq!(fails(&second), Malformed("a response without a cursor"));
        let long = [0, 0, 0, 0, 9, 0x0a, 50];
        assert_eq!(
            fails(&long),
            Malformed("a field that is longer than its response")
        );
        let endless = [0, 0, 0, 0, 99, 0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(fails(&endless), Malformed("a length beyond 32 bits"));
        let large = [0, 0xff, 0, 0, 0];
        assert!(Messages::default().feed(&large, |_| {}).is_err());
    }
}
