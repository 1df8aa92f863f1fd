//! The webhooks registered with the simulator, and the documented limits on them. Pure state:
//! knows nothing of HTTP or of delivering.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{event_type::EventType, random::Random};

/// The longest URL, in characters, as documented.
pub const URL_CHARS_MAX: usize = 2048;

/// The longest verification token, in characters, as documented.
pub const TOKEN_CHARS_MAX: usize = 100;

/// How many webhooks an app can have. Not documented; bounded because everything is.
pub const WEBHOOKS_PER_APP_MAX: usize = 100;

/// Why the registry refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such webhook for this app.
    #[error("there is no webhook `{0}` in this app")]
    Unknown(String),
    /// A member is missing, too long, or of no known value.
    #[error("{0}")]
    Invalid(String),
    /// [`WEBHOOKS_PER_APP_MAX`] is reached.
    #[error("this app has {WEBHOOKS_PER_APP_MAX} webhooks already: delete one first")]
    Limit,
}

/// A registered webhook.
#[derive(Clone)]
pub struct Webhook {
    /// `web_` and an opaque rest.
    pub id: String,
    /// The app it belongs to.
    pub app_id: String,
    /// Where deliveries go.
    pub url: String,
    /// What the activation challenge carries; nothing where there is no challenge.
    pub verification_token: String,
    /// Which events it gets.
    pub events: Vec<EventType>,
    /// Whether the challenge was met.
    pub active: bool,
    /// The status of the latest answer, and when it came.
    pub last_http_code: Option<(u16, Timestamp)>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// The token is a secret and the URL may hold one.
impl fmt::Debug for Webhook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Webhook")
            .field("id", &self.id)
            .field("app_id", &self.app_id)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl Webhook {
    /// The object of the management API, which never shows the token.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let events: Vec<&str> = self.events.iter().map(|event| event.as_str()).collect();
        json!({
            "id": self.id,
            "url": self.url,
            "events": events,
            "active": self.active,
            "last_http_code": self.last_http_code.map(|(code, _)| code),
            "last_http_code_date": self.last_http_code.map(|(_, date)| date.to_string()),
            "created_at": self.created_at.to_string(),
            "updated_at": self.updated_at.to_string(),
        })
    }
}

/// What a webhook is created from, or changed to.
#[derive(Clone, Default)]
pub struct Draft {
    /// Where deliveries go.
    pub url: Option<String>,
    /// What the activation challenge will carry.
    pub verification_token: Option<String>,
    /// Which events it gets.
    pub events: Option<Vec<EventType>>,
}

impl fmt::Debug for Draft {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Draft")
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl Draft {
    fn check(&self) -> Result<(), Error> {
        if let Some(url) = &self.url {
            if url.chars().count() > URL_CHARS_MAX {
                return Err(Error::Invalid(format!(
                    "`url` is longer than {URL_CHARS_MAX} characters"
                )));
            }
            let parsed = reqwest::Url::parse(url);
            // Plain http is for the loopback addresses this simulator is made for.
            if !parsed.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
                return Err(Error::Invalid(
                    "`url` must be an http or https URL".to_owned(),
                ));
            }
        }
        if let Some(token) = &self.verification_token {
            let chars = token.chars().count();
            if chars == 0 || chars > TOKEN_CHARS_MAX {
                return Err(Error::Invalid(format!(
                    "`verification_token` must have 1 to {TOKEN_CHARS_MAX} characters"
                )));
            }
        }
        Ok(())
    }
}

/// All webhooks of all apps.
#[derive(Debug)]
pub struct Registry {
    webhooks: BTreeMap<String, Webhook>,
    /// The order of creation, which listings keep.
    order: Vec<String>,
    random: Random,
}

impl Registry {
    /// No webhooks; ids are drawn by this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            webhooks: BTreeMap::new(),
            order: Vec::new(),
            random: Random::fork(seed, "webhooks"),
        }
    }

    /// Registers a webhook, inactive.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a missing member or one beyond its limit; [`Error::Limit`].
    pub fn create(&mut self, app_id: &str, draft: Draft) -> Result<Webhook, Error> {
        draft.check()?;
        let missing = |name: &str| Error::Invalid(format!("`{name}` is missing"));
        let url = draft.url.ok_or_else(|| missing("url"))?;
        let token = draft
            .verification_token
            .ok_or_else(|| missing("verification_token"))?;
        let events = draft.events.ok_or_else(|| missing("events"))?;
        self.insert(app_id, url, token, events, false)
    }

    /// Notes a URL that gets events without being activated, as those of Verify and Notify do.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL that cannot be called; [`Error::Limit`].
    pub fn add_callback(
        &mut self,
        source_id: &str,
        url: &str,
        events: &[EventType],
    ) -> Result<Webhook, Error> {
        let draft = Draft {
            url: Some(url.to_owned()),
            ..Draft::default()
        };
        draft.check()?;
        self.insert(
            source_id,
            url.to_owned(),
            String::new(),
            events.to_vec(),
            true,
        )
    }

    fn insert(
        &mut self,
        app_id: &str,
        url: String,
        verification_token: String,
        events: Vec<EventType>,
        active: bool,
    ) -> Result<Webhook, Error> {
        if self.of_app(app_id).count() >= WEBHOOKS_PER_APP_MAX {
            return Err(Error::Limit);
        }
        let now = Timestamp::now();
        let id = format!(
            "web_{:016x}{:016x}",
            self.random.next_u64(),
            self.random.next_u64()
        );
        let webhook = Webhook {
            id: id.clone(),
            app_id: app_id.to_owned(),
            url,
            verification_token,
            events: without_repeats(events),
            active,
            last_http_code: None,
            created_at: now,
            updated_at: now,
        };
        self.order.push(id.clone());
        self.webhooks.insert(id, webhook.clone());
        Ok(webhook)
    }

    /// The webhooks of an app, oldest first.
    pub fn of_app(&self, app_id: &str) -> impl Iterator<Item = &Webhook> {
        let all = self.order.iter().filter_map(|id| self.webhooks.get(id));
        all.filter(move |webhook| webhook.app_id == app_id)
    }

    /// How many webhooks are active, over all apps.
    #[must_use]
    pub fn active_count(&self) -> usize {
        self.webhooks
            .values()
            .filter(|webhook| webhook.active)
            .count()
    }

    /// A webhook by its id alone.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<&Webhook> {
        self.webhooks.get(id)
    }

    /// A webhook of this app.
    ///
    /// # Errors
    /// [`Error::Unknown`] also for a webhook of another app.
    pub fn get(&self, app_id: &str, id: &str) -> Result<&Webhook, Error> {
        let found = self
            .webhooks
            .get(id)
            .filter(|webhook| webhook.app_id == app_id);
        found.ok_or_else(|| Error::Unknown(id.to_owned()))
    }

    /// Changes what the draft names. A new URL or token has to be activated again.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Invalid`].
    pub fn update(&mut self, app_id: &str, id: &str, draft: Draft) -> Result<Webhook, Error> {
        draft.check()?;
        self.change(app_id, id, |webhook| {
            if draft.url.is_some() || draft.verification_token.is_some() {
                webhook.active = false;
            }
            webhook.url = draft.url.unwrap_or_else(|| webhook.url.clone());
            webhook.verification_token = draft
                .verification_token
                .unwrap_or_else(|| webhook.verification_token.clone());
            webhook.events = draft
                .events
                .map_or_else(|| webhook.events.clone(), without_repeats);
        })
    }

    /// Adds an event type; one that is there already stays.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn add_event(
        &mut self,
        app_id: &str,
        id: &str,
        event: EventType,
    ) -> Result<Webhook, Error> {
        self.change(app_id, id, |webhook| {
            if !webhook.events.contains(&event) {
                webhook.events.push(event);
            }
        })
    }

    /// Removes an event type.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn remove_event(
        &mut self,
        app_id: &str,
        id: &str,
        event: EventType,
    ) -> Result<Webhook, Error> {
        self.change(app_id, id, |webhook| {
            webhook.events.retain(|kept| *kept != event);
        })
    }

    /// Switches deliveries on or off.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn set_active(&mut self, app_id: &str, id: &str, active: bool) -> Result<Webhook, Error> {
        self.change(app_id, id, |webhook| webhook.active = active)
    }

    /// Forgets a webhook.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn delete(&mut self, app_id: &str, id: &str) -> Result<(), Error> {
        self.get(app_id, id)?;
        self.webhooks.remove(id);
        self.order.retain(|kept| kept != id);
        Ok(())
    }

    /// Notes the status of an answer. A webhook that is gone by now has none to note.
    pub fn note_http_code(&mut self, id: &str, code: u16) {
        if let Some(webhook) = self.webhooks.get_mut(id) {
            webhook.last_http_code = Some((code, Timestamp::now()));
        }
    }

    fn change(
        &mut self,
        app_id: &str,
        id: &str,
        change: impl FnOnce(&mut Webhook),
    ) -> Result<Webhook, Error> {
        let found = self
            .webhooks
            .get_mut(id)
            .filter(|webhook| webhook.app_id == app_id);
        let webhook = found.ok_or_else(|| Error::Unknown(id.to_owned()))?;
        change(webhook);
        webhook.updated_at = Timestamp::now();
        Ok(webhook.clone())
    }
}

fn without_repeats(events: Vec<EventType>) -> Vec<EventType> {
    let mut kept = Vec::with_capacity(events.len().min(EventType::ALL.len()));
    for event in events {
        if !kept.contains(&event) {
            kept.push(event);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft {
        Draft {
            url: Some("http://127.0.0.1:8080/webhooks/54e9ujn".to_owned()),
            verification_token: Some("token".to_owned()),
            events: Some(vec![EventType::UserCreated, EventType::UserCreated]),
        }
    }

    #[test]
    fn limits_hold_at_their_edges() {
        let mut registry = Registry::new(1);
        let url = |chars: usize| {
            let start = "https://example.com/";
            Some(format!("{start}{}", "a".repeat(chars - start.len())))
        };
        registry
            .create(
                "app",
                Draft {
                    url: url(URL_CHARS_MAX),
                    ..draft()
                },
            )
            .unwrap();
        let long = registry.create(
            "app",
            Draft {
                url: url(URL_CHARS_MAX + 1),
                ..draft()
            },
        );
        assert!(matches!(long, Err(Error::Invalid(message)) if message.contains("2048")));
        let token = |chars| Draft {
            verification_token: Some("é".repeat(chars)),
            ..draft()
        };
        registry.create("app", token(TOKEN_CHARS_MAX)).unwrap();
        assert!(registry.create("app", token(TOKEN_CHARS_MAX + 1)).is_err());
        assert!(registry.create("app", token(0)).is_err());
        while registry.of_app("app").count() < WEBHOOKS_PER_APP_MAX {
            registry.create("app", draft()).unwrap();
        }
        assert_eq!(registry.create("app", draft()).unwrap_err(), Error::Limit);
        registry.create("another", draft()).unwrap();
    }

    #[test]
    fn each_missing_member_is_named() {
        let mut registry = Registry::new(1);
        for (name, draft) in [
            (
                "url",
                Draft {
                    url: None,
                    ..draft()
                },
            ),
            (
                "verification_token",
                Draft {
                    verification_token: None,
                    ..draft()
                },
            ),
            (
                "events",
                Draft {
                    events: None,
                    ..draft()
                },
            ),
        ] {
            let error = registry.create("app", draft).unwrap_err();
            assert_eq!(error, Error::Invalid(format!("`{name}` is missing")));
        }
        for url in ["not a url", "ftp://example.com/", "file:///etc/passwd"] {
            let error = registry.create(
                "app",
                Draft {
                    url: Some(url.to_owned()),
                    ..draft()
                },
            );
            assert!(matches!(error, Err(Error::Invalid(_))), "{url}");
        }
    }

    #[test]
    fn a_webhook_of_another_app_is_unknown() {
        let mut registry = Registry::new(1);
        let id = registry.create("app", draft()).unwrap().id;
        let unknown = Error::Unknown(id.clone());
        assert_eq!(registry.get("another", &id).unwrap_err(), unknown);
        assert_eq!(registry.delete("another", &id).unwrap_err(), unknown);
        assert_eq!(
            registry.set_active("another", &id, true).unwrap_err(),
            unknown
        );
        registry.delete("app", &id).unwrap();
        assert_eq!(registry.delete("app", &id).unwrap_err(), unknown);
    }

    #[test]
    fn a_callback_needs_no_activation_and_has_to_be_a_url() {
        let mut registry = Registry::new(1);
        let events = [EventType::VerifyAttempt];
        let webhook = registry.add_callback("verify", "https://example.com/", &events);
        assert!(webhook.unwrap().active);
        assert_eq!(registry.active_count(), 1);
        let refused = registry.add_callback("verify", "nonsense", &events);
        assert!(matches!(refused, Err(Error::Invalid(_))));
    }

    #[test]
    fn a_new_url_has_to_be_activated_again_and_new_events_do_not() {
        let mut registry = Registry::new(1);
        let id = registry.create("app", draft()).unwrap().id;
        registry.set_active("app", &id, true).unwrap();
        let webhook = registry
            .add_event("app", &id, EventType::UserDeleted)
            .unwrap();
        assert!(webhook.active);
        assert_eq!(
            webhook.events,
            [EventType::UserCreated, EventType::UserDeleted]
        );
        let moved = Draft {
            url: Some("https://example.com/".to_owned()),
            ..Draft::default()
        };
        let webhook = registry.update("app", &id, moved).unwrap();
        assert!(!webhook.active);
        assert_eq!(webhook.events.len(), 2);
    }

    #[test]
    fn the_token_is_shown_nowhere() {
        let secret = Draft {
            verification_token: Some("s3cret".to_owned()),
            ..draft()
        };
        let shown = format!("{secret:?}");
        let webhook = Registry::new(1).create("app", secret).unwrap();
        assert!(!format!("{shown}{webhook:?}{}", webhook.to_json()).contains("s3cret"));
    }
}
