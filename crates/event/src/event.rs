//! Owns what an event *is*: its identity, its place in the log, and a batch of events on its way
//! there. Pure values; knows nothing of HTTP, gRPC, files or time of day.

use std::{
    fmt,
    ops::{Deref, Range},
    str::FromStr,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// The position of an event in a log. The first event has 1; 0 is the place before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The place before the first event.
    pub const ZERO: Self = Self(0);

    /// The position `count` events further on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The position just before this one; [`Sequence::ZERO`] has none before it.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The events from this one to the last, in words: `event 3`, or `events 3 to 5`.
    #[must_use]
    pub fn to_last(self, last: Self) -> String {
        if self == last {
            format!("event {self}")
        } else {
            format!("events {self} to {last}")
        }
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A moment by the bridge's own clock: microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMicros(pub i64);

impl UnixMicros {
    /// The current time of the system clock.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }
}

/// Identifies a log from its creation on: a cursor of another log is recognised by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(pub u64);

/// Identifies a part of a log's history that one run of a writer has begun. A log that was restored
/// to an earlier state continues in a new epoch, so a cursor of the events that it lost is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u32);

/// A place in a log: after the event with this sequence number.
///
/// As text it is opaque and URL-safe: base64url of a version, the log, the epoch and the sequence, and
/// of the time where there is one. Version 2 has a time, version 1 has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The log that the place is in.
    pub log: LogId,
    /// The epoch that the event at the place was written in.
    pub epoch: Epoch,
    /// The event that the place is after.
    pub sequence: Sequence,
    /// Of the events after the place, those received before this time are not wanted. Only for a stream
    /// that starts at a time which has not come; a cursor behind that time has none.
    pub not_before: Option<UnixMicros>,
}

/// The length of a cursor's text if it has no time: it can be written in place.
pub const CURSOR_TEXT_BYTES: usize = 28;
/// The length of one with a time.
pub const TIMED_TEXT_BYTES: usize = 39;

const CURSOR_VERSION: u8 = 1;
const CURSOR_BYTES: usize = 21;
const TIMED_VERSION: u8 = 2;
const TIMED_BYTES: usize = CURSOR_BYTES + 8;

/// A cursor as text.
#[derive(Clone, Copy)]
pub struct CursorText {
    bytes: [u8; TIMED_TEXT_BYTES],
    len: usize,
}

impl Deref for CursorText {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Cursor {
    /// The text of this cursor: [`CURSOR_TEXT_BYTES`] bytes, unless it has a time.
    #[must_use]
    pub fn to_text(self) -> CursorText {
        let mut bytes = [0; TIMED_BYTES];
        let (version, rest) = bytes.split_at_mut(1);
        let (log, rest) = rest.split_at_mut(8);
        let (epoch, rest) = rest.split_at_mut(4);
        let (sequence, not_before) = rest.split_at_mut(8);
        log.copy_from_slice(&self.log.0.to_be_bytes());
        epoch.copy_from_slice(&self.epoch.0.to_be_bytes());
        sequence.copy_from_slice(&self.sequence.0.to_be_bytes());
        let count = match self.not_before {
            None => {
                version.copy_from_slice(&[CURSOR_VERSION]);
                CURSOR_BYTES
            }
            Some(at) => {
                version.copy_from_slice(&[TIMED_VERSION]);
                not_before.copy_from_slice(&at.0.to_be_bytes());
                TIMED_BYTES
            }
        };
        let mut text = [0; TIMED_TEXT_BYTES];
        let content = bytes.get(..count).unwrap_or_default();
        // 29 bytes are 39 characters without padding, so this always fits.
        let len = URL_SAFE_NO_PAD.encode_slice(content, &mut text);
        CursorText {
            bytes: text,
            len: len.unwrap_or(0),
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.to_text()))
    }
}

/// Why a text is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// Not the alphabet or the length of a cursor.
    #[error("not a cursor: pass the `cursor` of an earlier response, event or range unchanged")]
    Malformed,
    /// A cursor of a future release.
    #[error("the cursor has version {0}, which this release does not know: upgrade the bridge")]
    Version(u8),
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        // A cursor of another version may have another length, so the version is looked at first.
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| CursorError::Malformed)?;
        let (&version, rest) = bytes.split_first().ok_or(CursorError::Malformed)?;
        let (log, rest) = rest
            .split_first_chunk::<8>()
            .ok_or(CursorError::Malformed)?;
        let (epoch, rest) = rest
            .split_first_chunk::<4>()
            .ok_or(CursorError::Malformed)?;
        if !matches!(version, CURSOR_VERSION | TIMED_VERSION) {
            return Err(CursorError::Version(version));
        }
        let (sequence, rest) = rest
            .split_first_chunk::<8>()
            .ok_or(CursorError::Malformed)?;
        let not_before = match (version, rest) {
            (CURSOR_VERSION, []) => None,
            (TIMED_VERSION, at) => {
                let at = at.try_into().map_err(|_| CursorError::Malformed)?;
                Some(UnixMicros(i64::from_be_bytes(at)))
            }
            _ => return Err(CursorError::Malformed),
        };
        Ok(Self {
            log: LogId(u64::from_be_bytes(*log)),
            epoch: Epoch(u32::from_be_bytes(*epoch)),
            sequence: Sequence(u64::from_be_bytes(*sequence)),
            not_before,
        })
    }
}

/// By which a repetition of an event is recognised: 96 bits that stand for its app, id and type, and
/// after them 32 bits that stand for its content.
///
/// The first are of SHA-256. A log that remembers 10^9 events takes one of 10^12 new ones for another
/// with a probability of 10^-8. The last are a CRC-32C: two contents of one event that differ are taken
/// for the same with a probability of 2^-32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey(pub [u8; 16]);

/// How many bytes of a key stand for the event. The others stand for its content.
const EVENT_BYTES: usize = 12;
/// Of FNV-1a with 64 bits.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

impl EventKey {
    /// The key of an event with this content.
    #[must_use]
    pub fn new(app_id: &str, event_id: &str, event_type: &str, content: &[u8]) -> Self {
        // The type goes in as a hash: so the usual events fit into one block of SHA-256.
        let event_type = event_type.bytes().fold(FNV_BASIS, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
        });
        let mut hash = Sha256::new();
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        hash.update((app_id.len() as u32).to_be_bytes());
        hash.update(app_id.as_bytes());
        hash.update(event_type.to_be_bytes());
        hash.update(event_id.as_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let mut key = [0; 16];
        key.copy_from_slice(digest.split_at(16).0);
        if let Some(place) = key.last_chunk_mut() {
            *place = crc32c::crc32c(content).to_be_bytes();
        }
        Self(key)
    }

    /// The part that stands for the event: equal for keys of one event, whatever its content.
    #[must_use]
    pub fn event(&self) -> [u8; EVENT_BYTES] {
        self.0.first_chunk().copied().unwrap_or_default()
    }
}

/// A short hash of a user id, by which a filter skips most events without looking at them. Stored,
/// so it never changes: FNV-1a.
#[must_use]
pub fn user_hash(user_id: &str) -> u32 {
    user_id.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// The longest event type that is passed on, in bytes. The documented ones have up to 23; blocks store
/// types as names with a short length.
pub const TYPE_BYTES_MAX: usize = 256;

/// The longest id (of an event, a user, a correlation) that is passed on, in bytes. Real ones have about
/// 30.
pub const ID_BYTES_MAX: usize = 1024;

/// One event of a [`Batch`], encoded as far as that is possible before it has its place.
#[derive(Debug)]
pub struct Draft {
    /// By which a repetition of the event is recognised. Its content is [`Draft::raw_json`].
    pub key: EventKey,
    /// The event type.
    pub event_type: Arc<str>,
    /// [`user_hash`] of the user id; 0 where the event names no user.
    pub user_hash: u32,
    /// In [`Batch::encoded`]: the protobuf fields that do not depend on the place in the log.
    pub head: Range<usize>,
    /// In [`Batch::encoded`]: the protobuf field of the typed payload; empty where there is none.
    pub payload: Range<usize>,
    /// In [`Batch::body`]: the JSON object of the event.
    pub raw_json: Range<usize>,
}

/// Verified, decoded events of one delivery, on their way to the log.
///
/// The ranges of the drafts are within the two buffers; what lies outside reads as empty.
pub struct Batch {
    /// The app that the events belong to.
    pub app_id: Arc<str>,
    /// The delivery's body, as it was signed.
    pub body: Bytes,
    /// Protobuf fields of all events, one after another.
    pub encoded: Bytes,
    /// The events in the order of the delivery.
    pub drafts: Vec<Draft>,
    /// When the events happened, as the sender says.
    pub dates: Dates,
}

/// The span of the dates of a batch. An event counts with the latest of its own dates; one without a
/// date that can be read does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dates {
    /// Of the event that happened first; `None` where no event has a date.
    pub oldest: Option<UnixMicros>,
    /// Of the event that happened last.
    pub newest: Option<UnixMicros>,
}

impl Dates {
    /// Adds an event with this date.
    pub fn add(&mut self, at: UnixMicros) {
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
        self.newest = Some(self.newest.map_or(at, |newest| newest.max(at)));
    }
}

impl Batch {
    /// The encoded fields of `draft` that do not depend on its place.
    #[must_use]
    pub fn head(&self, draft: &Draft) -> &[u8] {
        self.encoded.get(draft.head.clone()).unwrap_or_default()
    }

    /// The encoded payload field of `draft`.
    #[must_use]
    pub fn payload(&self, draft: &Draft) -> &[u8] {
        self.encoded.get(draft.payload.clone()).unwrap_or_default()
    }

    /// The JSON object of `draft`.
    #[must_use]
    pub fn raw_json(&self, draft: &Draft) -> &[u8] {
        self.body.get(draft.raw_json.clone()).unwrap_or_default()
    }

    /// What the batch weighs in a queue, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.body.len() + self.encoded.len() + self.drafts.len() * size_of::<Draft>()
    }
}

/// Shows sizes only: the content is personal data.
impl fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Batch")
            .field("app_id", &self.app_id)
            .field("body_bytes", &self.body.len())
            .field("events", &self.drafts.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_survives_its_text(log: u64, epoch: u32, sequence: u64, at: Option<i64>) {
            let cursor = Cursor {
                log: LogId(log),
                epoch: Epoch(epoch),
                sequence: Sequence(sequence),
                not_before: at.map(UnixMicros),
            };
            let text = cursor.to_string();
            prop_assert_eq!(text.len() == CURSOR_TEXT_BYTES, at.is_none());
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(text.parse::<Cursor>(), Ok(cursor));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<Cursor>();
        }
    }

    const CURSOR: Cursor = Cursor {
        log: LogId(7),
        epoch: Epoch(8),
        sequence: Sequence(9),
        not_before: None,
    };

    #[test]
    fn cursors_that_clients_have_stored_stay_what_they_are() {
        let timed = Cursor {
            not_before: Some(UnixMicros(-10)),
            ..CURSOR
        };
        for (text, cursor) in [
            ("AQAAAAAAAAAHAAAACAAAAAAAAAAJ", CURSOR),
            ("AgAAAAAAAAAHAAAACAAAAAAAAAAJ__________Y", timed),
        ] {
            assert_eq!(text.parse(), Ok(cursor));
            assert_eq!(cursor.to_string(), text);
        }
    }

    #[test]
    fn one_event_and_several_are_named_as_such() {
        assert_eq!(Sequence(3).to_last(Sequence(3)), "event 3");
        assert_eq!(Sequence(3).to_last(Sequence(5)), "events 3 to 5");
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let good = CURSOR.to_string();
        let timed = Cursor {
            not_before: Some(UnixMicros(10)),
            ..CURSOR
        };
        let timed = timed.to_string();
        for bad in [
            &timed[..38],
            &timed[..28],
            &format!("{timed}A"),
            // A time, or none, behind the version of the other.
            &format!("Ag{}", &good[2..]),
            &format!("AQ{}", &timed[2..]),
            "",
            "x",
            "AAAA",
            &good[1..],
            &format!("{good}A"),
            &good.replace('A', "+"),
        ] {
            assert_eq!(
                bad.parse::<Cursor>(),
                Err(CursorError::Malformed),
                "{bad:?}"
            );
        }
        let newer = URL_SAFE_NO_PAD.encode([3_u8; 30]);
        assert_eq!(newer.parse::<Cursor>(), Err(CursorError::Version(3)));
        let newer = URL_SAFE_NO_PAD.encode([9_u8; 30]);
        assert_eq!(newer.parse::<Cursor>(), Err(CursorError::Version(9)));
    }

    #[test]
    fn keys_tell_apps_ids_and_types_apart() {
        let event = |app, id, event_type| EventKey::new(app, id, event_type, b"{}").event();
        let different = [
            event("a", "bc", "d"),
            event("ab", "c", "d"),
            event("a", "b", "cd"),
            event("a", "bcd", ""),
            event("", "abcd", ""),
            event("a", "bc", "D"),
        ];
        for (index, one) in different.iter().enumerate() {
            assert!(!different[index + 1..].contains(one), "{index}");
        }
        assert_eq!(different[0], event("a", "bc", "d"));
    }

    #[test]
    fn keys_of_one_event_tell_its_contents_apart() {
        let key = |content: &str| EventKey::new("a", "b", "c", content.as_bytes());
        let contents = ["", "{}", "{ }", r#"{"a":1}"#, r#"{"a":2}"#];
        for (index, one) in contents.map(key).into_iter().enumerate() {
            assert_eq!(one.event(), key("").event());
            assert_eq!(one, key(contents[index]));
            let others = &contents[index + 1..];
            assert!(others.iter().all(|other| key(other) != one), "{index}");
        }
    }
}
