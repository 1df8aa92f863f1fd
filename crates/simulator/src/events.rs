//! Generates realistic events of all documented types from a seed. `auth`, `verify` and `notify` own the
//! payloads and what they are about; nothing here knows of batches, keys or delivery.

mod auth;
mod draw;
mod notify;
mod verify;

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::{auth::Users, notify::Messages, verify::Verifications};
pub use super::event_type::{EventType, SourceKind, UnknownType};
use super::random::Random;

/// A late event is at most as old as the last retry of the sender.
const LATE_SECONDS_MAX: usize = 14 * 24 * 3600;
/// How much later than an event a Verify or Notify source writes it down.
const WRITTEN_NANOSECONDS_MAX: usize = 2_000_000_000;

/// How event ids look. Prelude documents none for these webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdStyle {
    /// `evt_` and 26 characters, as in the sister APIs.
    #[default]
    Prefixed,
    /// A UUID, version 4.
    Uuid,
    /// A JSON number.
    Number,
    /// No id at all.
    None,
}

/// One event before it is written into a batch. The fields are public, so that a test can change a
/// generated event.
#[derive(Clone, PartialEq)]
pub struct Event {
    /// Its id, if the style has one.
    pub id: Option<String>,
    /// Its type: one of [`EventType`], or any other that a test needs.
    pub event_type: String,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// The members of `payload`.
    pub payload: Map<String, Value>,
}

/// Payloads hold identifiers of persons, so they stay out of debug output even here.
impl fmt::Debug for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Event")
            .field("id", &self.id)
            .field("event_type", &self.event_type)
            .field("occurred_at", &self.occurred_at)
            .finish_non_exhaustive()
    }
}

impl Event {
    /// The correlation id, which related events share.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        let beside = self.payload.get("correlation_id");
        let within = || self.payload.get("metadata")?.get("correlation_id");
        beside.or_else(within)?.as_str()
    }
}

/// Generates events from a seed: the same seed and the same calls give the same events.
pub struct Generator {
    random: Random,
    users: Users,
    verifications: Verifications,
    messages: Messages,
}

impl fmt::Debug for Generator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Generator")
            .field("users", &self.users.count())
            .finish_non_exhaustive()
    }
}

impl Generator {
    /// A generator with this seed, which knows no users, verifications and messages yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            users: Users::default(),
            verifications: Verifications::default(),
            messages: Messages::default(),
        }
    }

    /// An event of one of these types (of all of Prelude Auth if none is given), which happened `at`, or
    /// long before it with the probability `late`.
    pub fn next(&mut self, at: Timestamp, types: &[EventType], ids: IdStyle, late: f64) -> Event {
        let event_type = self.choose(types);
        let at = if self.random.chance(late) {
            let seconds = self.random.below(LATE_SECONDS_MAX);
            let back = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0));
            at.checked_sub(back).unwrap_or(at)
        } else {
            at
        };
        self.event(event_type, at, ids)
    }

    /// An event of this type.
    pub fn event(&mut self, event_type: EventType, at: Timestamp, ids: IdStyle) -> Event {
        let random = &mut self.random;
        let (occurred_at, payload) = match event_type.source_kind() {
            SourceKind::Auth => {
                let at = blur(random, at);
                let payload = self.users.payload(random, event_type, &at.to_string());
                (at, payload)
            }
            SourceKind::Verify => {
                let happened = earlier(random, at).to_string();
                let payload = self.verifications.payload(random, event_type, &happened);
                (at, payload)
            }
            SourceKind::Notify => {
                let happened = earlier(random, at).to_string();
                let payload = self.messages.payload(random, event_type, &happened);
                (at, payload)
            }
        };
        let id = match ids {
            IdStyle::Prefixed => Some(draw::id(random, "evt_")),
            IdStyle::Uuid => Some(draw::uuid(random)),
            // Below 2^53, so that every JSON reader keeps every digit.
            IdStyle::Number => Some((random.next_u64() >> 11).to_string()),
            IdStyle::None => None,
        };
        Event {
            id,
            event_type: event_type.as_str().to_owned(),
            occurred_at,
            payload,
        }
    }

    fn choose(&mut self, types: &[EventType]) -> EventType {
        let types = if types.is_empty() {
            &EventType::AUTH
        } else {
            types
        };
        let total = types.iter().map(|candidate| candidate.weight()).sum();
        let mut drawn = self.random.below(total);
        for candidate in types {
            if drawn < candidate.weight() {
                return *candidate;
            }
            drawn -= candidate.weight();
        }
        EventType::UserCreated
    }
}

/// Auth writes 0 to 9 fractional digits, so the events carry all of them.
fn blur(random: &mut Random, at: Timestamp) -> Timestamp {
    let unit = random.pick(&[&1, &1_000, &1_000_000, &1_000_000_000], &1);
    let nanosecond = at.subsec_nanosecond() / unit * unit;
    Timestamp::new(at.as_second(), nanosecond).unwrap_or(at)
}

/// When an event of Verify or Notify happened that was written down `at`: to the nanosecond.
fn earlier(random: &mut Random, at: Timestamp) -> Timestamp {
    let nanoseconds = random.below(WRITTEN_NANOSECONDS_MAX);
    let back = SignedDuration::from_nanos(i64::try_from(nanoseconds).unwrap_or(0));
    at.checked_sub(back).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn at() -> Timestamp {
        "2026-11-23T10:58:38.123456789Z".parse().unwrap()
    }

    /// The fields of a payload, separated by spaces.
    fn documented_fields(event_type: EventType) -> &'static str {
        match event_type {
            EventType::UserCreated => {
                "user_id correlation_id identifiers profile source created_at"
            }
            EventType::UserDeleted => "user_id correlation_id deleted_at",
            EventType::UserProfileUpdated => "user_id correlation_id profile updated_at",
            EventType::UserIdentifierCreated => "user_id correlation_id identifier created_at",
            EventType::UserIdentifierDeleted => "user_id correlation_id identifier deleted_at",
            EventType::UserSessionCreated => {
                "user_id correlation_id session_id identifier metadata created_at"
            }
            EventType::UserSessionRevoked => "user_id correlation_id session_id revoked_at",
            EventType::StepUpHookFailed => "user_id correlation_id reason occurred_at",
            EventType::MigrationHookFailed => "correlation_id reason occurred_at",
            EventType::VerifyAuthentication => "verification_id time target metadata price",
            EventType::VerifyAttempt => {
                "verification_id time target metadata price id channel carrier_information \
                 delivery_status"
            }
            EventType::VerifyDeliveryStatus => {
                "verification_id time target metadata id attempt_id carrier_information status"
            }
            EventType::MessageCreated => {
                "id to created_at expires_at customer_uuid variables fee correlation_id template_id"
            }
            EventType::MessageSubmitted
            | EventType::MessagePendingDelivery
            | EventType::MessageDelivered => {
                "message_id attempt_id customer_uuid created_at correlation_id type channel \
                 template_id"
            }
            EventType::MessageFailed | EventType::MessageUnknown => {
                "message_id attempt_id customer_uuid created_at correlation_id type channel \
                 template_id status reason"
            }
        }
    }

    #[test]
    fn every_type_carries_its_documented_fields() {
        let mut generator = Generator::new(3);
        for _ in 0..200 {
            for event_type in EventType::ALL {
                let event = generator.event(event_type, at(), IdStyle::Prefixed);
                let present: BTreeSet<&str> = event.payload.keys().map(String::as_str).collect();
                let expected = documented_fields(event_type).split_whitespace().collect();
                assert_eq!(present, expected, "{event_type}");
                assert!(event.payload.values().all(|value| !value.is_null()));
                assert!(event.correlation_id().is_some(), "{event_type}");
            }
        }
        assert!(generator.users.count() <= 1_000);
    }

    #[test]
    fn money_is_a_number_in_verify_and_a_string_in_notify() {
        let mut generator = Generator::new(5);
        for _ in 0..50 {
            let verify = generator.event(EventType::VerifyAttempt, at(), IdStyle::Prefixed);
            assert!(verify.payload["price"]["amount"].is_number());
            let notify = generator.event(EventType::MessageCreated, at(), IdStyle::Prefixed);
            assert!(notify.payload["fee"]["amount"].is_string());
        }
    }

    #[test]
    fn verify_and_notify_events_tell_the_time_to_the_nanosecond_and_follow_from_each_other() {
        let mut generator = Generator::new(5);
        let created = generator.event(EventType::VerifyAuthentication, at(), IdStyle::Prefixed);
        let attempt = generator.event(EventType::VerifyAttempt, at(), IdStyle::Prefixed);
        assert_eq!(
            created.payload["verification_id"],
            attempt.payload["verification_id"]
        );
        let status = generator.event(EventType::VerifyDeliveryStatus, at(), IdStyle::Prefixed);
        assert_eq!(attempt.payload["id"], status.payload["attempt_id"]);
        assert_eq!(status.occurred_at, at());
        let time: Timestamp = status.payload["time"].as_str().unwrap().parse().unwrap();
        assert!(time <= at() && time.subsec_nanosecond() % 1_000 != 0);
        let message = generator.event(EventType::MessageCreated, at(), IdStyle::Prefixed);
        let delivered = generator.event(EventType::MessageDelivered, at(), IdStyle::Prefixed);
        assert_eq!(message.payload["id"], delivered.payload["message_id"]);
    }

    #[test]
    fn a_seed_gives_the_same_events_again() {
        let events = |seed| -> Vec<Event> {
            let mut generator = Generator::new(seed);
            (0..50)
                .map(|_| generator.next(at(), &[], IdStyle::Uuid, 0.1))
                .collect()
        };
        assert!(events(7) == events(7));
        assert!(events(7) != events(8));
    }

    #[test]
    fn only_the_types_asked_for_come() {
        let mut generator = Generator::new(1);
        let types = [EventType::UserDeleted, EventType::UserSessionRevoked];
        for _ in 0..100 {
            let event = generator.next(at(), &types, IdStyle::Prefixed, 0.0);
            assert!(types.contains(&event.event_type.parse().unwrap()));
        }
    }

    #[test]
    fn ids_follow_their_style() {
        let mut generator = Generator::new(1);
        let mut id = |style| generator.event(EventType::UserCreated, at(), style).id;
        assert!(id(IdStyle::Prefixed).unwrap().starts_with("evt_"));
        assert_eq!(id(IdStyle::Uuid).unwrap().len(), 36);
        assert!(id(IdStyle::Number).unwrap().parse::<u64>().unwrap() < 1 << 53);
        assert_eq!(id(IdStyle::None), None);
    }

    #[test]
    fn late_events_lie_within_the_two_weeks_of_retries() {
        let mut generator = Generator::new(1);
        for _ in 0..100 {
            let event = generator.next(at(), &[], IdStyle::Prefixed, 1.0);
            let age = at().duration_since(event.occurred_at);
            assert!(age <= SignedDuration::from_hours(14 * 24));
        }
    }

    #[test]
    fn debug_output_holds_no_identifier() {
        let mut generator = Generator::new(1);
        for _ in 0..50 {
            for event_type in EventType::ALL {
                let event = generator.event(event_type, at(), IdStyle::Prefixed);
                let shown = format!("{event:?} {generator:?}");
                assert!(
                    !shown.contains("example.com") && !shown.contains("+1"),
                    "{shown}"
                );
            }
        }
    }
}
