//! Generates realistic events of the seven documented types from a seed. Owns the users, identifiers and
//! sessions that they are about; knows nothing of batches, keys or delivery.
//!
//! Every person is invented: addresses are at example.com (RFC 2606), phone numbers in the block
//! reserved for fiction (555-01xx), network addresses in the documentation ranges (RFC 5737).

use std::{fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::random::Random;

/// How many users a generator remembers; beyond it the oldest is forgotten.
const USERS_MAX: usize = 1_000;
const SESSIONS_PER_USER_MAX: usize = 8;
const IDENTIFIERS_PER_USER_MAX: usize = 4;
/// A late event is at most as old as the last retry of the sender.
const LATE_SECONDS_MAX: usize = 14 * 24 * 3600;

const GIVEN_NAMES: [&str; 12] = [
    "Ada", "Grace", "Alan", "Edsger", "Barbara", "Ken", "Radia", "Leslie", "Frances", "Tony",
    "Zoë", "Søren",
];
const FAMILY_NAMES: [&str; 10] = [
    "Okafor",
    "Lindqvist",
    "Moreau",
    "Tanaka",
    "Silva",
    "Novák",
    "Haddad",
    "O'Neill",
    "Nguyen",
    "García",
];
const AREA_CODES: [&str; 5] = ["202", "212", "303", "415", "617"];
const SOURCES: [&str; 3] = ["api", "login", "import"];
const USER_AGENTS: [&str; 3] = [
    "Mozilla/5.0 (X11; Linux x86_64) Firefox/142.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) Safari/605.1.15",
    "ExampleApp/4.2 (Android 16)",
];

/// One of the seven types Prelude documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum EventType {
    /// `user.created`
    UserCreated,
    /// `user.deleted`
    UserDeleted,
    /// `user.profile.updated`
    UserProfileUpdated,
    /// `user.identifier.created`
    UserIdentifierCreated,
    /// `user.identifier.deleted`
    UserIdentifierDeleted,
    /// `user.session.created`
    UserSessionCreated,
    /// `user.session.revoked`
    UserSessionRevoked,
}

/// A name that is not one of the seven types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an event type: take one of {list}", list = EventType::list())]
pub struct UnknownType(String);

impl EventType {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::UserCreated,
        Self::UserDeleted,
        Self::UserProfileUpdated,
        Self::UserIdentifierCreated,
        Self::UserIdentifierDeleted,
        Self::UserSessionCreated,
        Self::UserSessionRevoked,
    ];

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserCreated => "user.created",
            Self::UserDeleted => "user.deleted",
            Self::UserProfileUpdated => "user.profile.updated",
            Self::UserIdentifierCreated => "user.identifier.created",
            Self::UserIdentifierDeleted => "user.identifier.deleted",
            Self::UserSessionCreated => "user.session.created",
            Self::UserSessionRevoked => "user.session.revoked",
        }
    }

    /// How often it happens compared with the others: sessions begin and end more often than users.
    fn weight(self) -> usize {
        match self {
            Self::UserSessionCreated => 8,
            Self::UserSessionRevoked => 5,
            Self::UserCreated => 4,
            Self::UserProfileUpdated => 3,
            Self::UserIdentifierCreated => 2,
            Self::UserIdentifierDeleted | Self::UserDeleted => 1,
        }
    }

    fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for EventType {
    type Err = UnknownType;

    fn from_str(name: &str) -> Result<Self, UnknownType> {
        let found = Self::ALL
            .into_iter()
            .find(|candidate| candidate.as_str() == name);
        found.ok_or_else(|| UnknownType(name.to_owned()))
    }
}

impl TryFrom<String> for EventType {
    type Error = UnknownType;

    fn try_from(name: String) -> Result<Self, UnknownType> {
        name.parse()
    }
}

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
        self.payload.get("correlation_id")?.as_str()
    }
}

struct User {
    id: String,
    identifiers: Vec<Value>,
    sessions: Vec<String>,
}

/// Generates events from a seed: the same seed and the same calls give the same events.
pub struct Generator {
    random: Random,
    users: Vec<User>,
    invented: u64,
}

impl fmt::Debug for Generator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Generator")
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

impl Generator {
    /// A generator with this seed and no users.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            users: Vec::new(),
            invented: 0,
        }
    }

    /// An event of one of these types (of all seven if none is given), which happened `at`, or
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
        let occurred_at = self.blur(at);
        let mut payload = self.payload(event_type, &occurred_at.to_string());
        payload.insert("correlation_id".to_owned(), self.id("corr_").into());
        let id = match ids {
            IdStyle::Prefixed => Some(self.id("evt_")),
            IdStyle::Uuid => Some(self.uuid()),
            // Below 2^53, so that every JSON reader keeps every digit.
            IdStyle::Number => Some((self.random.next_u64() >> 11).to_string()),
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
            &EventType::ALL
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

    fn payload(&mut self, event_type: EventType, at: &str) -> Map<String, Value> {
        // A user is never added implicitly for its own creation, or without an identifier to log in with.
        let index = match event_type {
            EventType::UserCreated => self.invent(),
            _ if self.users.is_empty() => self.invent(),
            _ => self.random.below(self.users.len()),
        };
        let fields = match event_type {
            EventType::UserCreated => self.user_created(index, at),
            EventType::UserDeleted => json!({ "deleted_at": at }),
            EventType::UserProfileUpdated => {
                json!({ "profile": self.profile(), "updated_at": at })
            }
            EventType::UserIdentifierCreated => {
                let identifier = self.identifier();
                if let Some(user) = self.users.get_mut(index)
                    && user.identifiers.len() < IDENTIFIERS_PER_USER_MAX
                {
                    user.identifiers.push(identifier.clone());
                }
                json!({ "identifier": identifier, "created_at": at })
            }
            EventType::UserIdentifierDeleted => {
                let removed = self
                    .users
                    .get_mut(index)
                    .and_then(|user| user.identifiers.pop());
                let identifier = removed.unwrap_or_else(|| self.identifier());
                json!({ "identifier": identifier, "deleted_at": at })
            }
            EventType::UserSessionCreated => self.session_created(index, at),
            EventType::UserSessionRevoked => {
                let revoked = self
                    .users
                    .get_mut(index)
                    .and_then(|user| user.sessions.pop());
                let session = revoked.unwrap_or_else(|| self.id("ses_"));
                json!({ "session_id": session, "revoked_at": at })
            }
        };
        let user_id = self
            .users
            .get(index)
            .map(|user| user.id.clone())
            .unwrap_or_default();
        if event_type == EventType::UserDeleted && index < self.users.len() {
            self.users.remove(index);
        }
        let mut payload = Map::from_iter([("user_id".to_owned(), user_id.into())]);
        if let Value::Object(fields) = fields {
            payload.extend(fields);
        }
        payload
    }

    fn user_created(&mut self, index: usize, at: &str) -> Value {
        let identifiers = self.users.get(index).map(|user| user.identifiers.clone());
        json!({
            "identifiers": identifiers.unwrap_or_default(),
            "profile": self.profile(),
            "source": self.random.pick(&SOURCES, "api"),
            "created_at": at,
        })
    }

    fn session_created(&mut self, index: usize, at: &str) -> Value {
        let session = self.id("ses_");
        let known = self.users.get_mut(index).and_then(|user| {
            if user.sessions.len() < SESSIONS_PER_USER_MAX {
                user.sessions.push(session.clone());
            }
            user.identifiers.last().cloned()
        });
        let identifier = known.unwrap_or_else(|| self.identifier());
        json!({
            "session_id": session,
            "identifier": identifier,
            "metadata": {
                "ip": format!("203.0.113.{}", self.random.below(256)),
                "user_agent": self.random.pick(&USER_AGENTS, "ExampleApp/4.2"),
                "trusted": self.random.chance(0.8),
            },
            "created_at": at,
        })
    }

    /// Adds a user and returns its index.
    fn invent(&mut self) -> usize {
        if self.users.len() >= USERS_MAX {
            self.users.remove(0);
        }
        let id = self.id("usr_");
        let identifiers = vec![self.identifier()];
        self.users.push(User {
            id,
            identifiers,
            sessions: Vec::new(),
        });
        self.users.len() - 1
    }

    fn identifier(&mut self) -> Value {
        if self.random.chance(0.5) {
            let area_code = self.random.pick(&AREA_CODES, "202");
            let line = self.random.below(100);
            json!({ "type": "phone_number", "value": format!("+1{area_code}55501{line:02}") })
        } else {
            self.invented += 1;
            let given = self
                .random
                .pick(&["ada", "grace", "alan", "radia", "ken"], "ada");
            json!({
                "type": "email_address",
                "value": format!("{given}.{}@example.com", self.invented),
            })
        }
    }

    fn profile(&mut self) -> Value {
        json!({
            "given_name": self.random.pick(&GIVEN_NAMES, "Ada"),
            "family_name": self.random.pick(&FAMILY_NAMES, "Okafor"),
            "locale": self.random.pick(&["en-US", "fr-FR", "sv-SE", "ja-JP"], "en-US"),
            "newsletter": self.random.chance(0.3),
        })
    }

    /// Prelude writes 0 to 9 fractional digits, so the events carry all of them.
    fn blur(&mut self, at: Timestamp) -> Timestamp {
        let second = at.as_second();
        let unit = self
            .random
            .pick(&[&1, &1_000, &1_000_000, &1_000_000_000], &1);
        let nanosecond = at.subsec_nanosecond() / unit * unit;
        Timestamp::new(second, nanosecond).unwrap_or(at)
    }

    /// An opaque id as Prelude writes them: a prefix and 26 characters of Crockford's base 32.
    fn id(&mut self, prefix: &str) -> String {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let mut id = String::with_capacity(prefix.len() + 26);
        id.push_str(prefix);
        for _ in 0..26 {
            let index = self.random.below(ALPHABET.len());
            id.push(ALPHABET.get(index).copied().map_or('0', char::from));
        }
        id
    }

    fn uuid(&mut self) -> String {
        let (high, low) = (self.random.next_u64(), self.random.next_u64());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xFFFF,
            high & 0x0FFF,
            0x8000 | (low >> 48) & 0x3FFF,
            low & 0xFFFF_FFFF_FFFF,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn at() -> Timestamp {
        "2026-11-23T10:58:38.123456789Z".parse().unwrap()
    }

    #[test]
    fn every_type_carries_its_documented_fields() {
        let required = |event_type| -> &[&str] {
            match event_type {
                EventType::UserCreated => &["identifiers", "profile", "source", "created_at"],
                EventType::UserDeleted => &["deleted_at"],
                EventType::UserProfileUpdated => &["profile", "updated_at"],
                EventType::UserIdentifierCreated => &["identifier", "created_at"],
                EventType::UserIdentifierDeleted => &["identifier", "deleted_at"],
                EventType::UserSessionCreated => {
                    &["session_id", "identifier", "metadata", "created_at"]
                }
                EventType::UserSessionRevoked => &["session_id", "revoked_at"],
            }
        };
        let mut generator = Generator::new(3);
        for _ in 0..200 {
            for event_type in EventType::ALL {
                let event = generator.event(event_type, at(), IdStyle::Prefixed);
                let present: BTreeSet<&str> = event.payload.keys().map(String::as_str).collect();
                let expected = required(event_type).iter().copied();
                let expected: BTreeSet<&str> =
                    expected.chain(["user_id", "correlation_id"]).collect();
                assert_eq!(present, expected, "{event_type}");
                assert!(event.payload.values().all(|value| !value.is_null()));
            }
        }
        assert!(generator.users.len() <= USERS_MAX);
    }

    #[test]
    fn a_seed_tells_the_same_events_again() {
        let tell = |seed| -> Vec<Event> {
            let mut generator = Generator::new(seed);
            (0..50)
                .map(|_| generator.next(at(), &[], IdStyle::Uuid, 0.1))
                .collect()
        };
        assert!(tell(7) == tell(7));
        assert!(tell(7) != tell(8));
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
            let event = generator.event(EventType::UserCreated, at(), IdStyle::Prefixed);
            let shown = format!("{event:?} {generator:?}");
            assert!(
                !shown.contains("example.com") && !shown.contains("+1"),
                "{shown}"
            );
        }
    }

    #[test]
    fn an_unknown_type_is_refused_with_the_list() {
        let error = "user.exploded"
            .parse::<EventType>()
            .unwrap_err()
            .to_string();
        assert!(error.contains("user.exploded") && error.contains("user.session.revoked"));
    }
}
