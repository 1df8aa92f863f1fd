//! Which event types a webhook gets: all that are wanted and that Prelude takes. Prelude documents neither
//! which types its API takes nor whether a refusal names them, so types are tried, and those that are
//! refused are left out and named. Each type is tried at most three times.

use super::refused;
use crate::{
    cli::exit::{self, Failure},
    management::{ApiRefusal, Client, Error, LONG_KNOWN_TYPES, Webhook, event_types},
};

/// The registration of one webhook.
pub(super) struct Registration<'a> {
    client: &'a Client,
    events: &'a [String],
    /// The types that Prelude refused, each with the refusal.
    refused: Vec<(String, ApiRefusal)>,
}

impl<'a> Registration<'a> {
    pub(super) fn new(client: &'a Client, events: &'a [String]) -> Self {
        Self {
            client,
            events,
            refused: Vec::new(),
        }
    }

    /// The types that Prelude refused.
    pub(super) fn refused(&self) -> &[(String, ApiRefusal)] {
        &self.refused
    }

    /// Creates the webhook with all types. If Prelude refuses that, creates it with the types that the API
    /// has always taken, else with a single one, and adds the others.
    ///
    /// # Errors
    /// A refusal that is not about an event type, or Prelude takes none of the types.
    pub(super) async fn create(&mut self, url: &str, token: &str) -> Result<Webhook, Failure> {
        let first = match self.client.create(url, token, self.events).await {
            Ok(webhook) => return Ok(webhook),
            Err(error) => about_events(error)?,
        };
        let is_long_known = |event: &&String| {
            let mut known = event_types().take(LONG_KNOWN_TYPES);
            known.any(|known| known == event.as_str())
        };
        let long_known: Vec<String> = self.events.iter().filter(is_long_known).cloned().collect();
        let mut tries = Vec::new();
        if !long_known.is_empty() && long_known.len() < self.events.len() {
            tries.push(long_known);
        }
        if self.events.len() > 1 {
            tries.extend(self.events.iter().map(|event| vec![event.clone()]));
        }
        for events in tries {
            match self.client.create(url, token, &events).await {
                Ok(webhook) => {
                    let id = webhook.id.clone();
                    let whole = self.add_missing(webhook, |_| {}).await;
                    return whole.map_err(|failure| failure.help(left_behind(&id)));
                }
                Err(error) => {
                    let refusal = about_events(error)?;
                    if let [event] = events.as_slice() {
                        self.refused.push((event.clone(), refusal));
                    }
                }
            }
        }
        // Nothing was left out: there is no webhook.
        Err(refused(&Error::Refused(Box::new(first))))
    }

    /// Adds the types that a webhook lacks, except those that were refused before. Calls `added` for each
    /// that Prelude accepts.
    ///
    /// # Errors
    /// A refusal that is not about an event type.
    pub(super) async fn add_missing(
        &mut self,
        mut webhook: Webhook,
        mut added: impl FnMut(&str),
    ) -> Result<Webhook, Failure> {
        for event in self.events {
            let is_refused = self.refused.iter().any(|(refused, _)| refused == event);
            if is_refused || webhook.events.contains(event) {
                continue;
            }
            match self.client.add_event(&webhook.id, event).await {
                Ok(changed) => {
                    webhook = changed;
                    added(event);
                }
                Err(error) => self.refused.push((event.clone(), about_events(error)?)),
            }
        }
        Ok(webhook)
    }

    /// Names the types that Prelude refused.
    pub(super) fn warn(&self) {
        for (event, refusal) in &self.refused {
            exit::warn(&format!(
                "Prelude does not take `{event}`, so the webhook does not get it: {refusal}"
            ));
        }
    }
}

/// What to do about a webhook that was created before a failure.
fn left_behind(id: &str) -> String {
    format!(
        "the webhook {id} was created, without all of its events: `prelude-bridge webhook setup` with the same \
         URL adds the others, and `prelude-bridge webhook delete {id}` removes it"
    )
}

/// The refusal, if it may be about an event type.
fn about_events(error: Error) -> Result<ApiRefusal, Failure> {
    match error {
        Error::Refused(refusal) if refusal.may_be_about_events() => Ok(*refusal),
        error => Err(refused(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::api, *};

    #[tokio::test]
    async fn a_webhook_that_a_failure_leaves_behind_is_named() {
        let refusal = r#"{"code":"invalid","message":"no such event"}"#;
        let made = r#"{"webhook":{"id":"wh_left","url":"https://example.com","active":false,
            "events":["user.created"]}}"#;
        let url = api([(400, refusal), (200, made), (503, "{}")]).await;
        let client = Client::new(&url, "54e9ujn", "a-key").unwrap();
        let events = ["user.created", "new.one"].map(str::to_owned);
        let mut registration = Registration::new(&client, &events);
        let made = registration.create("https://example.com", "a-token").await;
        let told = format!("{:?}", made.unwrap_err());
        for part in [
            "503",
            "wh_left was created",
            "webhook delete wh_left",
            "webhook setup",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}
