//! `webhook setup`: from nothing to an active webhook, each step only where it is needed.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::{
    ACTIVE_PATIENCE, Access, App, Output, Registration, Wanted, is_failed_challenge, not_activated,
    readiness, refused, table, token,
};
use crate::{
    cli::exit::{self, Exit, Failure},
    config::{self, Secret, TokenSource, parse_duration},
    management::{
        ApiRefusal, Client, Error, Webhook,
        challenge::{self, Finding},
    },
};

/// How often the bridge is asked whether it is there by now.
const ASK_PAUSE: Duration = Duration::from_millis(500);

/// `webhook setup`
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    wanted: Wanted,

    /// How long to wait for a bridge that does not answer yet
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    wait: Duration,

    #[command(flatten)]
    access: Access,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  One app without a file; `serve` with the same variable finds the token:
    export PRELUDE_API_TOKEN=…
    export PRELUDE_BRIDGE_APP_ID=54e9ujn
    prelude-bridge webhook setup --url https://example.com/webhooks
  An app of a file, which says where the token is kept:
    prelude-bridge webhook setup --config prelude-bridge.toml --app 54e9ujn --url https://example.com/webhooks/{app}
  Against the simulator:
    PRELUDE_API_TOKEN=simulated-management-key prelude-bridge webhook setup --api-url http://127.0.0.1:7070 --app 54e9ujn --url http://127.0.0.1:8080/webhooks/54e9ujn

Exit codes: 0 the webhook is active, 1 Prelude refused or could not activate it, or the bridge is
not ready, 2 bad usage or configuration, 3 Prelude's API cannot be reached, 4 it refused the management key.";

/// Runs the command.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let Args {
        wanted,
        wait,
        access,
    } = args;
    let app = access.app()?;
    let url = wanted.url(&app)?;
    access.check_reach(&url)?;
    // Before a token is made for nothing.
    let client = access.client(&app)?;
    let mut changes = Changes(Vec::new());
    let token = token_of(&app, &mut changes)?;
    let events = wanted.events();
    let setup = Setup {
        client,
        app,
        url,
        token,
    };
    let mut registration = Registration::new(&setup.client, &events);
    let webhook = setup.register(&mut registration, &mut changes).await?;
    registration.warn();
    if !events.iter().any(|event| webhook.events.contains(event))
        && let [(_, refusal), ..] = registration.refused()
    {
        return Err(refused(&Error::Refused(Box::new(refusal.clone()))));
    }
    let webhook = setup.activate(webhook, wait, &mut changes).await?;
    let deadline = Instant::now() + wait.min(readiness::PATIENCE);
    let ready = readiness::confirm(&setup.app, deadline).await;
    // Shown also where the bridge is not ready: the webhook is active.
    let is_ready = ready.as_ref().ok().copied().unwrap_or(Some(false));
    report(
        &access,
        &webhook,
        &changes.0,
        registration.refused(),
        is_ready,
    )?;
    ready.map(drop)
}

/// The token, made if there is none, and only now the whole configuration: it names the token.
fn token_of(app: &App, changes: &mut Changes) -> Result<Secret, Failure> {
    let planned = config::planned_sources(&app.sources)?;
    if let Some(planned) = planned.iter().find(|planned| planned.id == app.id)
        && is_file_name(&planned.id)
        && token::ensure(planned)?
        && let TokenSource::File(path) = &planned.token_source
    {
        changes.add(format!(
            "made a verification token in {}, where `serve` finds it",
            path.display()
        ));
    }
    app.token()
}

/// An id with a slash in it is refused with the configuration, before it names a file.
fn is_file_name(id: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !id.is_empty() && id.chars().all(fits)
}

/// What was done. Said at once, so that it is known also where a later step fails.
struct Changes(Vec<String>);

impl Changes {
    fn add(&mut self, change: String) {
        exit::note(&change);
        self.0.push(change);
    }
}

struct Setup {
    client: Client,
    app: App,
    url: String,
    token: Secret,
}

impl Setup {
    /// The webhook of this URL with at least the events that Prelude takes: the one that exists, or a
    /// new one.
    async fn register(
        &self,
        registration: &mut Registration<'_>,
        changes: &mut Changes,
    ) -> Result<Webhook, Failure> {
        let webhooks = self.client.list().await.map_err(|error| refused(&error))?;
        let mut same: Vec<Webhook> = webhooks
            .into_iter()
            .filter(|webhook| webhook.url == self.url)
            .collect();
        // The active one first; of several, the others get the same events again.
        same.sort_by_key(|webhook| !webhook.active);
        if same.len() > 1 {
            exit::warn(&format!(
                "{} webhooks have this URL, so events arrive as often (the bridge keeps them once): \
                 delete all but one",
                same.len()
            ));
        }
        let Some(webhook) = same.into_iter().next() else {
            let made = registration.create(&self.url, self.token.expose());
            let webhook = made.await?;
            changes.add(format!("created the webhook {}", webhook.id));
            return Ok(webhook);
        };
        let id = webhook.id.clone();
        let added = |event: &str| changes.add(format!("added {event} to {id}"));
        registration.add_missing(webhook, added).await
    }

    /// Has it activated, for which the bridge has to answer; one that is not there yet is waited
    /// for.
    async fn activate(
        &self,
        webhook: Webhook,
        wait: Duration,
        changes: &mut Changes,
    ) -> Result<Webhook, Failure> {
        if webhook.active {
            return Ok(webhook);
        }
        let deadline = Instant::now() + wait;
        // A bridge that came up between Prelude's question and ours deserves another question.
        let mut is_second_try = false;
        loop {
            let error = match self.client.activate(&webhook.id).await {
                Ok(activated) => {
                    let activated = confirm_active(&self.client, activated, deadline).await?;
                    changes.add(format!("activated it: {} met the challenge", self.url));
                    return Ok(activated);
                }
                Err(error) if is_failed_challenge(&error) => error,
                Err(error) => return Err(refused(&error)),
            };
            let mut finding = self.send_challenge().await;
            if finding.may_pass() && Instant::now() < deadline {
                exit::note(&format!(
                    "{finding}: waiting for `prelude-bridge serve` there"
                ));
                while finding.may_pass() && Instant::now() < deadline {
                    tokio::time::sleep(ASK_PAUSE).await;
                    finding = self.send_challenge().await;
                }
                is_second_try = false;
            }
            if finding != Finding::Met || is_second_try {
                return Err(not_activated(&error, &finding).help(format!(
                    "the webhook is registered: run this again when that is mended, or remove it \
                     with `prelude-bridge webhook delete {}`",
                    webhook.id
                )));
            }
            is_second_try = true;
        }
    }

    async fn send_challenge(&self) -> Finding {
        challenge::send(&self.url, &self.app.id, self.token.expose()).await
    }
}

/// Waits until Prelude's answer to an activation says that the webhook is active, or that to a `get` a
/// little later.
///
/// # Errors
/// Prelude says until the deadline that it is not, and for [`ACTIVE_PATIENCE`] at least.
pub(super) async fn confirm_active(
    client: &Client,
    activated: Webhook,
    deadline: Instant,
) -> Result<Webhook, Failure> {
    let deadline = deadline.max(Instant::now() + ACTIVE_PATIENCE);
    let mut webhook = activated;
    while !webhook.active {
        if Instant::now() >= deadline {
            let cause = format!(
                "Prelude took the activation of {}, but shows it as inactive",
                webhook.id
            );
            return Err(Failure::new(Exit::Failed, cause)
                .help("look again later with `prelude-bridge webhook list`"));
        }
        tokio::time::sleep(ASK_PAUSE).await;
        let shown = client.get(&webhook.id).await;
        webhook = shown.map_err(|error| refused(&error))?;
    }
    Ok(webhook)
}

fn report(
    access: &Access,
    webhook: &Webhook,
    changes: &[String],
    refused: &[(String, ApiRefusal)],
    is_ready: Option<bool>,
) -> Result<(), Failure> {
    if changes.is_empty() {
        exit::note("all was set up already; nothing was changed");
    }
    match access.output {
        Output::Json => {
            let refused: Vec<_> = refused
                .iter()
                .map(|(event, refusal)| json!({ "event": event, "error": refusal.to_string() }))
                .collect();
            let whole = json!({
                "changed": !changes.is_empty(),
                "changes": changes,
                // The types that the webhook does not get.
                "refused": refused,
                "webhook": webhook,
                // Null where the bridge could not be asked.
                "bridge_ready": is_ready,
            });
            exit::print(&format!("{whole}\n"))
        }
        Output::Human => {
            let now = jiff::Timestamp::now();
            exit::print(&table::table(std::slice::from_ref(webhook), now))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::api, *};

    #[tokio::test]
    async fn an_activation_is_confirmed_a_little_later_also_without_a_wait() {
        let active = r#"{"webhook":{"id":"wh_1","url":"https://example.com","active":true}}"#;
        let activated = serde_json::from_str(r#"{"id":"wh_1"}"#).unwrap();
        let client = Client::new(&api([(200, active)]).await, "54e9ujn", "a-key").unwrap();
        let confirmed = confirm_active(&client, activated, Instant::now()).await;
        assert!(confirmed.unwrap().active);
    }
}
