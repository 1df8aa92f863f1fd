//! The payloads of Prelude Auth. Owns the users, identifiers and sessions that they are about.
//!
//! Network addresses are in the documentation ranges (RFC 5737).

use serde_json::{Map, Value, json};

use super::{
    super::{event_type::EventType, random::Random},
    draw,
};

/// How many users are remembered; beyond it the oldest is forgotten.
const USERS_MAX: usize = 1_000;
const SESSIONS_PER_USER_MAX: usize = 8;
const IDENTIFIERS_PER_USER_MAX: usize = 4;

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
const SOURCES: [&str; 3] = ["api", "login", "import"];
const USER_AGENTS: [&str; 3] = [
    "Mozilla/5.0 (X11; Linux x86_64) Firefox/142.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) Safari/605.1.15",
    "ExampleApp/4.2 (Android 16)",
];
const STEP_UP_REASONS: [&str; 9] = [
    "request_failed",
    "invalid_status_code",
    "response_decode_failed",
    "invalid_status",
    "missing_steps",
    "invalid_granted_for",
    "invalid_grant_mode",
    "invalid_step",
    "invalid_response",
];
const MIGRATION_REASONS: [&str; 6] = [
    "request_failed",
    "invalid_status_code",
    "response_decode_failed",
    "missing_external_id",
    "missing_identifiers",
    "invalid_response",
];

struct User {
    id: String,
    identifiers: Vec<Value>,
    sessions: Vec<String>,
}

/// The users of an app.
#[derive(Default)]
pub(super) struct Users {
    users: Vec<User>,
    invented: u64,
}

impl Users {
    pub(super) fn count(&self) -> usize {
        self.users.len()
    }

    /// The payload of an event of this type; `at` is when it happened.
    pub(super) fn payload(
        &mut self,
        random: &mut Random,
        event_type: EventType,
        at: &str,
    ) -> Map<String, Value> {
        let mut payload = Map::new();
        if event_type == EventType::MigrationHookFailed {
            // The user is not migrated yet, so there is none to name.
            let reason = draw::reason(random, &MIGRATION_REASONS);
            payload.insert("reason".to_owned(), reason.into());
            payload.insert("occurred_at".to_owned(), at.into());
        } else {
            // A user is never added implicitly for its own creation, or without an identifier to log in with.
            let known = match event_type {
                EventType::UserCreated => None,
                _ => draw::index(random, &self.users),
            };
            let index = known.unwrap_or_else(|| self.invent(random));
            let fields = self.fields(random, event_type, index, at);
            let user_id = self.users.get(index).map(|user| user.id.clone());
            payload.insert("user_id".to_owned(), user_id.unwrap_or_default().into());
            if let Value::Object(fields) = fields {
                payload.extend(fields);
            }
            if event_type == EventType::UserDeleted && index < self.users.len() {
                self.users.remove(index);
            }
        }
        let correlation_id = draw::id(random, "corr_");
        payload.insert("correlation_id".to_owned(), correlation_id.into());
        payload
    }

    /// The fields beside `user_id` and `correlation_id`.
    fn fields(
        &mut self,
        random: &mut Random,
        event_type: EventType,
        index: usize,
        at: &str,
    ) -> Value {
        match event_type {
            EventType::UserDeleted => json!({ "deleted_at": at }),
            EventType::UserProfileUpdated => {
                json!({ "profile": profile(random), "updated_at": at })
            }
            EventType::UserIdentifierCreated => {
                let identifier = self.identifier(random);
                if let Some(user) = self.users.get_mut(index)
                    && user.identifiers.len() < IDENTIFIERS_PER_USER_MAX
                {
                    user.identifiers.push(identifier.clone());
                }
                json!({ "identifier": identifier, "created_at": at })
            }
            EventType::UserIdentifierDeleted => {
                let user = self.users.get_mut(index);
                let removed = user.and_then(|user| user.identifiers.pop());
                let identifier = removed.unwrap_or_else(|| self.identifier(random));
                json!({ "identifier": identifier, "deleted_at": at })
            }
            EventType::UserSessionCreated => self.session_created(random, index, at),
            EventType::UserSessionRevoked => {
                let user = self.users.get_mut(index);
                let revoked = user.and_then(|user| user.sessions.pop());
                let session = revoked.unwrap_or_else(|| draw::id(random, "ses_"));
                json!({ "session_id": session, "revoked_at": at })
            }
            EventType::StepUpHookFailed => {
                json!({ "reason": draw::reason(random, &STEP_UP_REASONS), "occurred_at": at })
            }
            // `user.created`; no other type gets here.
            _ => self.user_created(random, index, at),
        }
    }

    fn user_created(&self, random: &mut Random, index: usize, at: &str) -> Value {
        let identifiers = self.users.get(index).map(|user| user.identifiers.clone());
        json!({
            "identifiers": identifiers.unwrap_or_default(),
            "profile": profile(random),
            "source": random.pick(&SOURCES, "api"),
            "created_at": at,
        })
    }

    fn session_created(&mut self, random: &mut Random, index: usize, at: &str) -> Value {
        let session = draw::id(random, "ses_");
        let known = self.users.get_mut(index).and_then(|user| {
            if user.sessions.len() < SESSIONS_PER_USER_MAX {
                user.sessions.push(session.clone());
            }
            user.identifiers.last().cloned()
        });
        let identifier = known.unwrap_or_else(|| self.identifier(random));
        json!({
            "session_id": session,
            "identifier": identifier,
            "metadata": {
                "ip": format!("203.0.113.{}", random.below(256)),
                "user_agent": random.pick(&USER_AGENTS, "ExampleApp/4.2"),
                "trusted": random.chance(0.8),
            },
            "created_at": at,
        })
    }

    /// Adds a user and returns its index.
    fn invent(&mut self, random: &mut Random) -> usize {
        if self.users.len() >= USERS_MAX {
            self.users.remove(0);
        }
        let id = draw::id(random, "usr_");
        let identifiers = vec![self.identifier(random)];
        self.users.push(User {
            id,
            identifiers,
            sessions: Vec::new(),
        });
        self.users.len() - 1
    }

    fn identifier(&mut self, random: &mut Random) -> Value {
        if random.chance(0.5) {
            return json!({ "type": "phone_number", "value": draw::phone_number(random) });
        }
        self.invented += 1;
        let given = random.pick(&["ada", "grace", "alan", "radia", "ken"], "ada");
        json!({
            "type": "email_address",
            "value": format!("{given}.{}@example.com", self.invented),
        })
    }
}

fn profile(random: &mut Random) -> Value {
    json!({
        "given_name": random.pick(&GIVEN_NAMES, "Ada"),
        "family_name": random.pick(&FAMILY_NAMES, "Okafor"),
        "locale": random.pick(&["en-US", "fr-FR", "sv-SE", "ja-JP"], "en-US"),
        "newsletter": random.chance(0.3),
    })
}
