//! A run written down: apps, webhooks, and steps in the order they are taken. Owns the TOML and
//! its messages, which name the line and the key; the simulator does what the steps say.

use std::{fmt, ops::Range, path::Path, time::Duration};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::{
    AppOptions, BATCH_EVENTS_MAX, Error, EventType, Faults, Options, RetrySchedule, SigningKey,
    Simulator, SourceKind, WireStyle,
    options::{ApiStyle, DEFAULT_APP_ID, duration},
    traffic::{Burst, Traffic},
};

/// A scenario of more bytes than this is refused.
pub const SCENARIO_BYTES_MAX: usize = 256 * 1024;

/// A scenario of more steps than this is refused.
pub const STEPS_MAX: usize = 1_000;

const STEP_HELP: &str = "a `[[steps]]` entry does exactly one thing: send, wait, settle, \
     rotate_key, jwks, faults or wire";

/// Why a scenario cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ScenarioError {
    /// The line it is on, from 1; none if it is about the whole file.
    pub line: Option<usize>,
    /// The key it is about, if there is one on that line.
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(formatter, "line {line}: ")?;
        }
        if let Some(key) = &self.key {
            write!(formatter, "`{key}`: ")?;
        }
        formatter.write_str(&self.message)
    }
}

/// A run, checked.
#[derive(Debug)]
pub struct Scenario {
    file: File,
    keys: Vec<Vec<SigningKey>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    seed: Option<u64>,
    #[serde(default = "one", deserialize_with = "above_zero")]
    time_scale: f64,
    #[serde(default, deserialize_with = "optional_duration")]
    answer_timeout: Option<Duration>,
    #[serde(default)]
    wire: WireStyle,
    #[serde(default)]
    api: ApiStyle,
    #[serde(default)]
    faults: Faults,
    #[serde(default)]
    apps: Vec<AppEntry>,
    #[serde(default)]
    webhooks: Vec<WebhookEntry>,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AppEntry {
    id: Spanned<String>,
    #[serde(default)]
    kind: SourceKind,
    #[serde(default)]
    key_files: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookEntry {
    app: Option<Spanned<String>>,
    url: Option<String>,
    verification_token: Option<String>,
    events: Option<Vec<EventType>>,
}

impl fmt::Debug for WebhookEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WebhookEntry")
            .field("app", &self.app)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// Lets events happen.
    Send(Send),
    /// Lets time pass.
    Wait(Span),
    /// Waits until nothing is on its way, at most this long.
    Settle(Span),
    /// Signs with another key from here on.
    RotateKey(RotateKey),
    /// Stops serving keys, or serves them again.
    Jwks(Jwks),
    /// From here on these faults and no others.
    Faults(Faults),
    /// From here on deliveries look like this.
    Wire(WireStyle),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Send {
    events: u64,
    #[serde(default, deserialize_with = "optional_rate")]
    rate: Option<f64>,
    #[serde(default = "ten", deserialize_with = "batch_size")]
    batch: usize,
    #[serde(default)]
    types: Vec<EventType>,
    app: Option<Spanned<String>>,
    burst: Option<BurstEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BurstEntry {
    #[serde(deserialize_with = "duration")]
    every: Duration,
    events: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Span(#[serde(deserialize_with = "duration")] Duration);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateKey {
    app: Option<Spanned<String>>,
    #[serde(default)]
    overlap: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Jwks {
    app: Option<Spanned<String>>,
    up: bool,
}

/// Where the webhooks of a scenario go when it does not say so itself.
#[derive(Clone)]
pub struct Target {
    /// The URL; `{app}` in it becomes the app's id.
    pub url: Option<String>,
    /// The verification token.
    pub verification_token: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Target").finish_non_exhaustive()
    }
}

/// A webhook a scenario wants connected before its first step.
#[derive(Clone)]
pub struct Connection {
    /// The app.
    pub app_id: String,
    /// Where its deliveries go.
    pub url: String,
    /// What its activation carries, if it has to be activated.
    pub verification_token: String,
    /// Which events it gets.
    pub events: Vec<EventType>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("app_id", &self.app_id)
            .finish_non_exhaustive()
    }
}

impl Scenario {
    /// Reads a scenario. Key files are looked for beside it, in `directory`.
    ///
    /// # Errors
    /// [`ScenarioError`] names the line and the key of the first fault.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, ScenarioError> {
        let whole = |message: String| ScenarioError {
            line: None,
            key: None,
            message,
        };
        if text.len() > SCENARIO_BYTES_MAX {
            return Err(whole(format!(
                "a scenario has at most {SCENARIO_BYTES_MAX} bytes"
            )));
        }
        let file: File = toml::from_str(text).map_err(|error| {
            // The multi-line form of the error would repeat the line, token and all.
            let message = if error.message().starts_with("wanted exactly 1 element") {
                STEP_HELP.to_owned()
            } else {
                error.message().replace('\n', ", ")
            };
            fault(text, error.span().unwrap_or(0..0), message)
        })?;
        if file.steps.len() > STEPS_MAX {
            return Err(whole(format!("a scenario has at most {STEPS_MAX} steps")));
        }
        let keys = file.apps.iter().map(|app| app.load_keys(text, directory));
        let keys = keys.collect::<Result<_, _>>()?;
        let scenario = Self { file, keys };
        scenario.check(text)?;
        Ok(scenario)
    }

    fn check(&self, text: &str) -> Result<(), ScenarioError> {
        let known = self.app_ids();
        for name in self.file.named_apps() {
            if !known.contains(&name.get_ref().as_str()) {
                let message = format!(
                    "there is no app `{}`: it is one of {}",
                    name.get_ref(),
                    known.join(", ")
                );
                return Err(fault(text, name.span(), message));
            }
        }
        self.options().check().map_err(|error| {
            let span = self.file.apps.last().map_or(0..0, |app| app.id.span());
            fault(text, span, error.to_string())
        })
    }

    /// What to start the simulator with; where it listens and what its management key is are the
    /// caller's to add.
    #[must_use]
    pub fn options(&self) -> Options {
        let defaults = Options::default();
        let apps = self.file.apps.iter().zip(&self.keys);
        let apps: Vec<AppOptions> = apps
            .map(|(app, keys)| {
                AppOptions::with_keys(app.id.get_ref(), keys.clone()).of_kind(app.kind)
            })
            .collect();
        Options {
            apps: if apps.is_empty() { defaults.apps } else { apps },
            seed: self.file.seed,
            wire: self.file.wire,
            api: self.file.api.clone(),
            faults: self.file.faults,
            retry: RetrySchedule::scaled(self.file.time_scale),
            answer_timeout: self.file.answer_timeout.unwrap_or(defaults.answer_timeout),
            ..defaults
        }
    }

    /// The webhooks to connect before the steps are taken. A scenario without any has one for each
    /// app, if the target has a URL.
    #[must_use]
    pub fn connections(&self, target: &Target) -> Vec<Connection> {
        let connection = |app_id: &str, entry: Option<&WebhookEntry>| {
            let own_url = entry.and_then(|entry| entry.url.as_ref());
            let url = own_url.or(target.url.as_ref())?.replace("{app}", app_id);
            let token = entry.and_then(|entry| entry.verification_token.clone());
            let events = entry.and_then(|entry| entry.events.clone());
            Some(Connection {
                app_id: app_id.to_owned(),
                url,
                verification_token: token.unwrap_or_else(|| target.verification_token.clone()),
                events: events.unwrap_or_else(|| self.kind_of(app_id).event_types().to_vec()),
            })
        };
        let apps = self.app_ids();
        if self.file.webhooks.is_empty() {
            return apps
                .iter()
                .filter_map(|app| connection(app, None))
                .collect();
        }
        let first = apps.first().copied().unwrap_or(DEFAULT_APP_ID);
        let webhooks = self.file.webhooks.iter();
        let named =
            webhooks.map(|entry| (entry.app.as_ref().map_or(first, |a| a.get_ref()), entry));
        named
            .filter_map(|(app, entry)| connection(app, Some(entry)))
            .collect()
    }

    /// How many steps it has.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.file.steps.len()
    }

    /// Takes one step, counted from 0. What it did is in the simulator's ledger.
    ///
    /// # Errors
    /// Those of the simulator.
    pub async fn take_step(&self, index: usize, simulator: &Simulator) -> Result<(), Error> {
        let Some(step) = self.file.steps.get(index) else {
            return Ok(());
        };
        match step {
            Step::Send(send) => {
                send.traffic().run(simulator).await?;
            }
            Step::Wait(Span(time)) => tokio::time::sleep(*time).await,
            Step::Settle(Span(time)) => {
                // What is still on its way afterwards shows in the ledger.
                let _ = simulator.settle(*time).await;
            }
            Step::RotateKey(rotate) => {
                for app in named_or_all(rotate.app.as_ref(), simulator) {
                    simulator.rotate_key(app, rotate.overlap).await?;
                }
            }
            Step::Jwks(jwks) => {
                for app in named_or_all(jwks.app.as_ref(), simulator) {
                    simulator.set_jwks_up(app, jwks.up)?;
                }
            }
            Step::Faults(faults) => simulator.set_faults(*faults)?,
            Step::Wire(wire) => simulator.set_wire(*wire),
        }
        Ok(())
    }

    fn kind_of(&self, app_id: &str) -> SourceKind {
        let mut apps = self.file.apps.iter();
        let found = apps.find(|app| app.id.get_ref() == app_id);
        found.map(|app| app.kind).unwrap_or_default()
    }

    fn app_ids(&self) -> Vec<&str> {
        if self.file.apps.is_empty() {
            return vec![DEFAULT_APP_ID];
        }
        self.file
            .apps
            .iter()
            .map(|app| app.id.get_ref().as_str())
            .collect()
    }
}

impl File {
    fn named_apps(&self) -> impl Iterator<Item = &Spanned<String>> {
        let webhooks = self
            .webhooks
            .iter()
            .filter_map(|webhook| webhook.app.as_ref());
        webhooks.chain(self.steps.iter().filter_map(|step| match step {
            Step::Send(send) => send.app.as_ref(),
            Step::RotateKey(rotate) => rotate.app.as_ref(),
            Step::Jwks(jwks) => jwks.app.as_ref(),
            Step::Wait(_) | Step::Settle(_) | Step::Faults(_) | Step::Wire(_) => None,
        }))
    }
}

impl AppEntry {
    fn load_keys(&self, text: &str, directory: &Path) -> Result<Vec<SigningKey>, ScenarioError> {
        let load = |name: &Spanned<String>| {
            let read = std::fs::read_to_string(directory.join(name.get_ref()));
            let pem = read.map_err(|error| fault(text, name.span(), error.to_string()))?;
            SigningKey::from_pem(&pem).map_err(|error| fault(text, name.span(), error.to_string()))
        };
        self.key_files.iter().map(load).collect()
    }
}

impl Send {
    fn traffic(&self) -> Traffic {
        Traffic {
            events_per_second: self.rate,
            batch_events: self.batch,
            events_max: Some(self.events),
            duration: None,
            types: self.types.clone(),
            apps: self.app.iter().map(|app| app.get_ref().clone()).collect(),
            burst: self.burst.as_ref().map(|burst| Burst {
                every: burst.every,
                events: burst.events,
            }),
        }
    }
}

fn named_or_all<'a>(named: Option<&'a Spanned<String>>, simulator: &'a Simulator) -> Vec<&'a str> {
    match named {
        Some(name) => vec![name.get_ref()],
        None => simulator.app_ids().collect(),
    }
}

/// A fault at this place in the text. The key is what stands before the `=` of that line, or the
/// name of the section it opens.
fn fault(text: &str, span: Range<usize>, message: String) -> ScenarioError {
    let before = text.get(..span.start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let content = text.lines().nth(line - 1).unwrap_or_default().trim();
    let section = content
        .starts_with('[')
        .then(|| content.trim_matches(['[', ']']));
    let key = content
        .split_once('=')
        .map(|(key, _)| key.trim())
        .or(section);
    let key = key.map(str::to_owned);
    ScenarioError {
        line: Some(line),
        key,
        message,
    }
}

fn one() -> f64 {
    1.0
}

fn ten() -> usize {
    10
}

fn above_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(de::Error::custom("a number above 0 is expected"))
    }
}

fn optional_rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    above_zero(deserializer).map(Some)
}

fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

fn batch_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let value = usize::deserialize(deserializer)?;
    if (1..=BATCH_EVENTS_MAX).contains(&value) {
        Ok(value)
    } else {
        Err(de::Error::custom(format!(
            "a batch has 1 to {BATCH_EVENTS_MAX} events"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Scenario, ScenarioError> {
        Scenario::parse(text, Path::new(env!("CARGO_MANIFEST_DIR")))
    }

    fn refused(text: &str) -> (Option<usize>, Option<String>, String) {
        let error = parse(text).unwrap_err();
        (error.line, error.key, error.message)
    }

    /// Each text with the line, the key and a part of the message of its fault.
    fn are_refused(cases: &[(&str, usize, &str, &str)]) {
        for &(text, line, key, message) in cases {
            let (found_line, found_key, found_message) = refused(text);
            assert_eq!(found_line, Some(line), "{text}: {found_message}");
            assert_eq!(
                found_key.unwrap_or_default(),
                key,
                "{text}: {found_message}"
            );
            assert!(found_message.contains(message), "{text}: {found_message}");
        }
    }

    #[test]
    fn a_fault_of_a_setting_is_named_by_line_and_key() {
        are_refused(&[
            ("seeed = 1\nsteps = []", 1, "seeed", "unknown field"),
            (
                "steps = []\n\n[faults]\nlose_answers = 2",
                4,
                "lose_answers",
                "from 0 to 1",
            ),
            ("time_scale = -1\nsteps = []", 1, "time_scale", "above 0"),
            (
                "answer_timeout = \"soon\"\nsteps = []",
                1,
                "answer_timeout",
                "10s",
            ),
            (
                "steps = []\n[wire.signature]\nsalt = \"21\"",
                3,
                "salt",
                "`longest`",
            ),
        ]);
    }

    #[test]
    fn a_fault_of_an_app_or_step_is_named_by_line_and_key() {
        are_refused(&[
            ("[[steps]]\nexplode = {}", 2, "explode", "unknown variant"),
            (
                "[[steps]]\nsend = { events = 1, batch = 0 }",
                2,
                "send",
                "1 to 1000",
            ),
            (
                "[[steps]]\n[[steps]]\nwait = \"1s\"",
                1,
                "steps",
                "exactly one thing",
            ),
            (
                "[[steps]]\nsend = { events = 1, types = [\"user.x\"] }",
                2,
                "send",
                "user.created",
            ),
            (
                "[[steps]]\njwks = { app = \"other\", up = true }",
                2,
                "jwks",
                "no app `other`",
            ),
            (
                "[[apps]]\nid = \"a\"\nkind = \"session\"\n[[steps]]\nwait = \"1s\"",
                3,
                "kind",
                "`auth`, `verify`, `notify`",
            ),
            (
                "[api]\nrefuse = []\n[[steps]]\nwait = \"1s\"",
                2,
                "refuse",
                "unknown field",
            ),
            (
                "[[apps]]\nid = \"a/b\"\n[[steps]]\nwait = \"1s\"",
                2,
                "id",
                "app id",
            ),
            (
                "[[apps]]\nid = \"a\"\nkey_files = [\"no.pem\"]\n[[steps]]\nwait = \"1s\"",
                3,
                "key_files",
                "No such file",
            ),
        ]);
    }

    #[test]
    fn the_scenario_in_the_documentation_is_one() {
        let document = include_str!("../../../docs/simulator.md");
        let from_block = document.split("```toml\n").nth(1).unwrap();
        let text = from_block.split("```").next().unwrap();
        let scenario = parse(&text.replace("a.pem", "../../tests/data/keys/test-key-2048-a.pem"));
        assert_eq!(scenario.unwrap().steps(), 7);
    }

    #[test]
    fn too_much_is_refused() {
        let (_, _, message) = refused(&"#".repeat(SCENARIO_BYTES_MAX + 1));
        assert!(message.contains("bytes"));
        let (_, _, message) = refused(&"[[steps]]\nwait = \"1s\"\n".repeat(STEPS_MAX + 1));
        assert!(message.contains("steps"));
    }

    #[test]
    fn webhooks_default_to_one_for_each_app_at_the_target() {
        let target = Target {
            url: Some("http://127.0.0.1:8080/webhooks/{app}".to_owned()),
            verification_token: "token".to_owned(),
        };
        let scenario =
            parse("[[apps]]\nid = \"a\"\n[[apps]]\nid = \"b\"\n[[steps]]\nwait = \"1s\"");
        let connections = scenario.unwrap().connections(&target);
        let urls: Vec<&str> = connections.iter().map(|one| one.url.as_str()).collect();
        let expected = [
            "http://127.0.0.1:8080/webhooks/a",
            "http://127.0.0.1:8080/webhooks/b",
        ];
        assert_eq!(urls, expected);
        let nowhere = Target {
            url: None,
            ..target
        };
        let scenario = parse("[[steps]]\nwait = \"1s\"").unwrap();
        assert!(scenario.connections(&nowhere).is_empty());
    }

    #[test]
    fn a_source_of_another_kind_gets_the_events_of_that_kind() {
        let text = "[[apps]]\nid = \"v\"\nkind = \"verify\"\n[[apps]]\nid = \"n\"\nkind = \"notify\"\n[[steps]]\nwait = \"1s\"";
        let target = Target {
            url: Some("http://127.0.0.1:8080/webhooks/{app}".to_owned()),
            verification_token: "token".to_owned(),
        };
        let scenario = parse(text).unwrap();
        let connections = scenario.connections(&target);
        assert_eq!(connections[0].events, EventType::VERIFY);
        assert_eq!(connections[1].events, EventType::NOTIFY);
        assert_eq!(scenario.options().apps[1].kind, SourceKind::Notify);
    }

    #[test]
    fn a_webhook_says_where_what_and_with_which_token() {
        let text = "[[webhooks]]\nurl = \"http://example.com/\"\nverification_token = \"own\"\nevents = [\"user.deleted\"]\n[[steps]]\nwait = \"1s\"";
        let target = Target {
            url: None,
            verification_token: "token".to_owned(),
        };
        let connections = parse(text).unwrap().connections(&target);
        assert_eq!(connections.len(), 1);
        assert_eq!(connections[0].app_id, DEFAULT_APP_ID);
        assert_eq!(connections[0].verification_token, "own");
        assert_eq!(connections[0].events, [EventType::UserDeleted]);
        assert!(!format!("{connections:?}").contains("own"));
    }
}
