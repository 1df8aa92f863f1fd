//! `webhook`: the webhooks of an app at Prelude. Owns the flags, which app and which keys are meant,
//! and what each refusal means here; `setup` owns the way from nothing to an active webhook,
//! `registration` which event types a webhook gets, `table` how webhooks are shown, `token` where
//! verification tokens are made and kept.

mod examples;
mod path;
mod readiness;
mod registration;
mod setup;
mod table;
#[cfg(test)]
mod testing;
mod token;

use std::{env, fmt::Display, fs, path::PathBuf, time::Duration};

use clap::{Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use serde_json::json;
use tokio::time::Instant;

use self::registration::Registration;
use super::{
    exit::{self, Exit, Failure},
    settings,
};
use crate::{
    config::{self, Planned, Secret, SourceKind, Sources},
    management::{
        API_URL, Client, Error, URL_CHARS_MAX, Webhook, challenge, event_types, is_loopback,
        is_of_verify_or_notify,
    },
    nearest::nearest,
};

/// The variable with the management key.
const KEY_VARIABLE: &str = "PRELUDE_API_TOKEN";

/// `webhook`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Do it all: make a verification token, create the webhook, activate it
    ///
    /// What is there already is left as it is, so running it twice changes nothing. The bridge has
    /// to be running for the activation; for a while it is waited for.
    #[command(after_help = setup::EXAMPLES)]
    Setup(setup::Args),
    /// Register a webhook, inactive
    #[command(after_help = examples::CREATE_EXAMPLES)]
    Create {
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        access: Access,
    },
    /// List the webhooks of an app
    #[command(after_help = examples::LIST_EXAMPLES)]
    List {
        #[command(flatten)]
        access: Access,
    },
    /// Show one webhook
    #[command(after_help = examples::GET_EXAMPLES)]
    Get {
        /// The webhook
        #[arg(value_name = "WEBHOOK_ID", value_parser = NonEmptyStringValueParser::new())]
        id: String,
        #[command(flatten)]
        access: Access,
    },
    /// Have Prelude challenge a webhook's URL, and send events from then on
    #[command(after_help = examples::ACTIVATE_EXAMPLES)]
    Activate {
        /// The webhook
        #[arg(value_name = "WEBHOOK_ID", value_parser = NonEmptyStringValueParser::new())]
        id: String,
        #[command(flatten)]
        access: Access,
    },
    /// Stop deliveries to a webhook, until it is activated again
    #[command(after_help = examples::DEACTIVATE_EXAMPLES)]
    Deactivate {
        /// The webhook
        #[arg(value_name = "WEBHOOK_ID", value_parser = NonEmptyStringValueParser::new())]
        id: String,
        #[command(flatten)]
        access: Access,
    },
    /// Have a webhook get one more type of events
    #[command(after_help = examples::ADD_EVENT_EXAMPLES)]
    AddEvent {
        /// The webhook
        #[arg(value_name = "WEBHOOK_ID", value_parser = NonEmptyStringValueParser::new())]
        id: String,
        /// The type, such as user.created
        #[arg(value_name = "TYPE", value_parser = NonEmptyStringValueParser::new())]
        event: String,
        #[command(flatten)]
        access: Access,
    },
    /// Remove a webhook; what Prelude has still to deliver to it is lost
    #[command(after_help = examples::DELETE_EXAMPLES)]
    Delete {
        /// The webhook
        #[arg(value_name = "WEBHOOK_ID", value_parser = NonEmptyStringValueParser::new())]
        id: String,
        #[command(flatten)]
        access: Access,
    },
}

/// The webhook that is wanted.
#[derive(Clone, Debug, clap::Args)]
struct Wanted {
    /// The public URL of the bridge; `{app}` in it becomes the app's id
    #[arg(long, value_name = "URL", value_parser = NonEmptyStringValueParser::new())]
    url: String,

    /// Only events of these types, which may be new ones; repeatable, or with commas [default: all
    /// that are documented and that Prelude takes]
    #[arg(long = "event", value_name = "TYPE", value_delimiter = ',')]
    events: Vec<String>,
}

/// Whose webhooks, and with what right.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Access")]
struct Access {
    /// The app [env: PRELUDE_BRIDGE_APP_ID] [default: the one that is configured]
    #[arg(long, value_name = "APP_ID", value_parser = NonEmptyStringValueParser::new())]
    app: Option<String>,

    /// The file with the management key [default: the key is in PRELUDE_API_TOKEN]
    #[arg(long, value_name = "FILE", env = "PRELUDE_API_TOKEN_FILE")]
    api_token_file: Option<PathBuf>,

    /// Where Prelude's API is
    #[arg(long, value_name = "URL", env = "PRELUDE_API_URL", default_value = API_URL)]
    api_url: String,

    /// The bridge's configuration, for its apps and tokens [env: PRELUDE_BRIDGE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The bridge's data directory, where tokens are kept [env: PRELUDE_BRIDGE_DATA_DIR]
    #[arg(long, value_name = "DIRECTORY", value_parser = NonEmptyStringValueParser::new())]
    data_dir: Option<String>,

    /// How to print what came of it
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table
    Human,
    /// One JSON object
    Json,
}

/// How long Prelude's list may take to show an activation that Prelude has accepted.
const ACTIVE_PATIENCE: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
/// A refusal of Prelude (exit code 1, or 4 for the key), an API that cannot be reached (3), or
/// invalid arguments or configuration (2).
pub async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Setup(args) => setup::run(args).await,
        Command::Create { wanted, access } => create(wanted, &access).await,
        Command::List { access } => {
            let client = access.client(&access.app()?)?;
            let webhooks = client.list().await.map_err(|error| refused(&error))?;
            access.show(&webhooks, &json!({ "webhooks": webhooks }))
        }
        Command::Get { id, access } => {
            let client = access.client(&access.app()?)?;
            let webhook = client.get(&id).await;
            access.show_one(&webhook.map_err(|error| refused(&error))?)
        }
        Command::Activate { id, access } => activate(&id, &access).await,
        Command::Deactivate { id, access } => {
            let client = access.client(&access.app()?)?;
            let webhook = client.deactivate(&id).await;
            access.show_one(&webhook.map_err(|error| refused(&error))?)
        }
        Command::AddEvent { id, event, access } => {
            warn_of_unknown(&event);
            let client = access.client(&access.app()?)?;
            let changed = client.add_event(&id, &event).await;
            access.show_one(&changed.map_err(|error| refused(&error))?)
        }
        Command::Delete { id, access } => {
            let client = access.client(&access.app()?)?;
            client.delete(&id).await.map_err(|error| refused(&error))?;
            match access.output {
                Output::Human => exit::print(&format!("deleted {}\n", exit::one_line(&id))),
                Output::Json => exit::print(&format!("{}\n", json!({ "deleted": id }))),
            }
        }
    }
}

async fn create(wanted: Wanted, access: &Access) -> Result<(), Failure> {
    let app = access.app()?;
    let events = wanted.events();
    let url = wanted.url(&app)?;
    access.check_reach(&url)?;
    let token = app.token()?;
    let client = access.client(&app)?;
    let webhook = if wanted.events.is_empty() {
        let mut registration = Registration::new(&client, &events);
        let webhook = registration.create(&url, token.expose()).await?;
        registration.warn();
        webhook
    } else {
        // Types that were named are those that are wanted: another webhook would not do.
        let made = client.create(&url, token.expose(), &events).await;
        made.map_err(|error| refused(&error))?
    };
    access.show_one(&webhook)?;
    if !webhook.active {
        exit::note(&format!(
            "it is not active yet: start the bridge, then run `prelude-bridge webhook activate {}`",
            webhook.id
        ));
    }
    Ok(())
}

async fn activate(id: &str, access: &Access) -> Result<(), Failure> {
    let app = access.app()?;
    let client = access.client(&app)?;
    let error = match client.activate(id).await {
        Ok(webhook) => {
            let deadline = Instant::now() + ACTIVE_PATIENCE;
            let webhook = setup::confirm_active(&client, webhook, deadline).await?;
            access.show_one(&webhook)?;
            let deadline = Instant::now() + readiness::PATIENCE;
            return readiness::confirm(&app, deadline).await.map(drop);
        }
        Err(error) => error,
    };
    if !is_failed_challenge(&error) {
        return Err(refused(&error));
    }
    let webhook = client.get(id).await.map_err(|error| refused(&error))?;
    match app.token() {
        Ok(token) => {
            let finding = challenge::send(&webhook.url, &app.id, token.expose()).await;
            Err(not_activated(&error, &finding))
        }
        // Without a token no challenge can be sent, so there is only what Prelude said.
        Err(_) => Err(refused(&error)),
    }
}

/// An app, and the configuration it is of.
struct App {
    id: String,
    sources: Sources,
}

impl App {
    /// Its verification token.
    fn token(&self) -> Result<Secret, Failure> {
        let config = config::resolve(&self.sources)?.config;
        let mut sources = config.sources.into_iter();
        let app = sources.find(|source| source.id == self.id);
        match app.and_then(|app| app.activation) {
            Some(activation) => Ok(activation.token),
            // Every app that is named here is put among the sources.
            None => Err(usage(format!("the app `{}` is not configured", self.id))),
        }
    }
}

impl Wanted {
    fn events(&self) -> Vec<String> {
        if self.events.is_empty() {
            return event_types().map(str::to_owned).collect();
        }
        let mut events = self.events.clone();
        events.sort();
        events.dedup();
        events.iter().for_each(|event| warn_of_unknown(event));
        events
    }

    /// The URL, after what can be said of it without calling anybody.
    fn url(&self, app: &App) -> Result<String, Failure> {
        let text = self.url.replace("{app}", &app.id);
        let url = reqwest::Url::parse(&text)
            .map_err(|fault| usage(format!("`--url` is not a URL: {fault}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(usage("`--url` is neither https nor http"));
        }
        if text.chars().count() > URL_CHARS_MAX {
            return Err(usage(format!(
                "`--url` is longer than the {URL_CHARS_MAX} characters that Prelude takes"
            )));
        }
        path::check(&url, &app.id, &config::planned_sources(&app.sources)?)?;
        Ok(text)
    }
}

/// Refuses a source that is no app.
fn without_registration(source: &Planned) -> Failure {
    let (id, kind) = (&source.id, source.kind.name());
    let cause =
        format!("`{id}` is a source of kind {kind}, and only apps have webhooks to register");
    Failure::new(Exit::Usage, cause).help(format!(
        "give Prelude the URL of the source, https://<host>/webhooks/{id}, as the callback_url of your \
         requests"
    ))
}

impl Access {
    /// The app that is meant: the one named, or the only one there is.
    fn app(&self) -> Result<App, Failure> {
        let mut sources = settings::sources_of_files(self.config.clone(), self.data_dir.clone());
        let (planned, others): (Vec<_>, Vec<_>) = config::planned_sources(&sources)?
            .into_iter()
            .partition(|source| source.kind == SourceKind::Auth);
        let other = others.iter().find(|source| match &self.app {
            Some(id) => source.id == *id,
            None => planned.is_empty(),
        });
        if let Some(source) = other {
            return Err(without_registration(source));
        }
        let id = match (&self.app, planned.as_slice()) {
            (Some(id), _) => id.clone(),
            (None, [only]) => only.id.clone(),
            (None, []) => {
                return Err(Failure::new(Exit::Usage, "no app is named").help(
                    "give --app, or set PRELUDE_BRIDGE_APP_ID, or name a configuration with \
                     --config",
                ));
            }
            (None, several) => {
                let ids: Vec<&str> = several.iter().map(|app| app.id.as_str()).collect();
                let cause = format!("several apps are configured: {}", ids.join(", "));
                return Err(Failure::new(Exit::Usage, cause).help("choose one with --app"));
            }
        };
        if !planned.iter().any(|app| app.id == id) {
            // As `serve` would take it: the one app of a bridge without a file.
            let variable = config::APP_ID_VARIABLE.into();
            sources.environment.insert(variable, id.clone().into());
        }
        Ok(App { id, sources })
    }

    fn client(&self, app: &App) -> Result<Client, Failure> {
        let key = self.management_key()?;
        Client::new(&self.api_url, &app.id, key.expose()).map_err(|error| refused(&error))
    }

    fn management_key(&self) -> Result<Secret, Failure> {
        let text = match &self.api_token_file {
            // Not its path: it may be the key itself, by mistake.
            Some(path) => fs::read_to_string(path).map_err(|error| {
                let cause = format!("the file of --api-token-file cannot be read: {error}");
                Failure::new(Exit::Usage, cause).help("put the management key into that file")
            })?,
            None => env::var(KEY_VARIABLE).unwrap_or_default(),
        };
        let key = text.trim();
        if key.is_empty() {
            return Err(Failure::new(Exit::Usage, "there is no management key").help(
                "set PRELUDE_API_TOKEN to a management key of Prelude's dashboard, or name a file \
                 that holds one with --api-token-file",
            ));
        }
        Ok(Secret::new(key))
    }

    /// Prelude is not on this machine, so it cannot call this machine's own addresses.
    fn check_reach(&self, url: &str) -> Result<(), Failure> {
        let leads_here = |text: &str| reqwest::Url::parse(text).is_ok_and(|url| is_loopback(&url));
        if leads_here(url) && !leads_here(&self.api_url) {
            return Err(Failure::new(
                Exit::Usage,
                "Prelude cannot reach `--url`: it leads to this machine only",
            )
            .help("give the URL by which the bridge is reached from the internet"));
        }
        Ok(())
    }

    fn show_one(&self, webhook: &Webhook) -> Result<(), Failure> {
        self.show(
            std::slice::from_ref(webhook),
            &json!({ "webhook": webhook }),
        )
    }

    fn show(&self, webhooks: &[Webhook], whole: &serde_json::Value) -> Result<(), Failure> {
        match self.output {
            Output::Human => exit::print(&table::table(webhooks, jiff::Timestamp::now())),
            Output::Json => exit::print(&format!("{whole}\n")),
        }
    }
}

/// Whether an activation failed because of its challenge.
fn is_failed_challenge(error: &Error) -> bool {
    matches!(error, Error::Refused(refusal) if refusal.status == 400)
}

/// A failed activation, with what we found where Prelude failed.
fn not_activated(error: &Error, finding: &challenge::Finding) -> Failure {
    Failure::new(Exit::Failed, error)
        .help(format!("asked from this machine: {finding}"))
        .help(finding.remedy())
}

/// What a failed call means here, and the next step.
fn refused(error: &Error) -> Failure {
    let (exit, help) = match error {
        Error::Url(_) => (Exit::Usage, "give --api-url an https URL, or leave it out"),
        Error::Key => (Exit::Usage, "copy the management key again, as one line"),
        Error::Unreachable(_) | Error::TimedOut => (
            Exit::Unreachable,
            "check this machine's way to the internet, and --api-url if it was given",
        ),
        Error::Answer(_) => (
            Exit::Failed,
            "check --api-url if it was given; otherwise this release may be too old",
        ),
        Error::Refused(refusal) => match refusal.status {
            401 | 403 => (
                Exit::Refused,
                "the management key is wrong, or is none of this app's account: check \
                 PRELUDE_API_TOKEN and --app",
            ),
            404 => (
                Exit::Failed,
                "Prelude knows no such app or webhook: check --app, and the id with \
                 `prelude-bridge webhook list`",
            ),
            400 | 422 if refusal.may_be_about_events() => (
                Exit::Failed,
                "the message says what Prelude does not accept; leave an event type out that it refuses. \
                 `prelude-bridge webhook list` shows the webhooks that exist",
            ),
            400 | 409 | 422 => (
                Exit::Failed,
                "the message says what Prelude does not accept; `prelude-bridge webhook list` shows \
                 the webhooks that exist",
            ),
            _ => (
                Exit::Failed,
                "try again in a minute; if it happens again, tell Prelude's support the request_id",
            ),
        },
    };
    Failure::new(exit, error).help(help)
}

/// Prelude may have more types than this release knows, so an unknown one is tried all the same.
fn warn_of_unknown(event: &str) {
    if event_types().any(|known| known == event) {
        return;
    }
    if is_of_verify_or_notify(event) {
        exit::warn(&format!(
            "`{event}` is an event of Prelude Verify or Notify, which send to the `callback_url` of each \
             request and not to webhooks of an app"
        ));
        return;
    }
    let near = nearest(event, event_types()).map(|near| format!("; did you mean `{near}`?"));
    exit::warn(&format!(
        "`{event}` is not one of the documented types{}",
        near.unwrap_or_default()
    ));
}

fn usage(cause: impl Display) -> Failure {
    Failure::new(Exit::Usage, cause).help("see `prelude-bridge webhook --help`")
}
