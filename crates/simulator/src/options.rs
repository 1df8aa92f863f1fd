//! What a simulator can be told: its apps, its limits, and a switch for everything Prelude does
//! not document. Checks them; acts on none.

use std::{fmt, net::SocketAddr, time::Duration};

use jiff::{SpanRelativeTo, fmt::friendly::SpanParser};
use serde::{Deserialize, Deserializer, de};

use super::{
    batch::ItemStyle,
    event_type::SourceKind,
    keys::{SetStyle, SignatureStyle, SigningKey},
    schedule::RetrySchedule,
};

/// The app a simulator has unless it is told otherwise.
pub const DEFAULT_APP_ID: &str = "54e9ujn";

/// The management key a simulator accepts unless it is told otherwise. It protects nothing.
pub const DEFAULT_MANAGEMENT_TOKEN: &str = "simulated-management-key";

/// How long Prelude waits for an answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How many apps one simulator plays.
pub const APPS_MAX: usize = 64;

/// An option that makes no sense, with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(super) String);

/// One app or other source, and the keys it signs with.
#[derive(Debug, Clone)]
pub struct AppOptions {
    /// Its id, for example `54e9ujn`.
    pub id: String,
    /// Which product of Prelude it plays.
    pub kind: SourceKind,
    /// The first signs at the start, the others take over at each rotation. When none is left, a
    /// new one is made, which takes tenths of a second at 2048 bits.
    pub keys: Vec<SigningKey>,
}

impl AppOptions {
    /// An app whose keys are made when they are needed.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self::with_keys(id, Vec::new())
    }

    /// An app that signs with these keys in turn.
    #[must_use]
    pub fn with_keys(id: impl Into<String>, keys: Vec<SigningKey>) -> Self {
        Self {
            id: id.into(),
            kind: SourceKind::Auth,
            keys,
        }
    }

    /// The same as a source of another product.
    #[must_use]
    pub fn of_kind(self, kind: SourceKind) -> Self {
        Self { kind, ..self }
    }
}

/// How deliveries look on the wire. Can be changed while the simulator runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WireStyle {
    /// The items of a batch.
    pub item: ItemStyle,
    /// The signatures.
    pub signature: SignatureStyle,
    /// The published key sets.
    pub key_set: SetStyle,
    /// Whether `X-Webhook-Signature-Key-Id` is sent, as a sibling hook of the API does.
    pub key_id_header: bool,
    /// Whether a W3C `traceparent` is sent.
    pub traceparent: bool,
    /// Whether the activation challenge is beyond 2^53, where JSON numbers lose digits in many
    /// languages.
    pub wide_challenge: bool,
}

/// How the management API refuses what Prelude does not document: which event types it takes, and what
/// an error says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiStyle {
    /// Documented types that it does not take.
    pub refuse_events: Vec<String>,
    /// Whether a refusal names only the parameter, and not the event.
    pub vague_refusals: bool,
}

/// What goes wrong on purpose. Every share is a probability from 0 to 1. Can be changed while the
/// simulator runs.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The share of answers that are read and thrown away: the receiver did its work, the sender
    /// takes it for a timeout and sends again.
    #[serde(deserialize_with = "share")]
    pub lose_answers: f64,
    /// The share of attempts whose connection is closed within milliseconds, with or without the
    /// receiver having seen the whole request.
    #[serde(deserialize_with = "share")]
    pub hang_up: f64,
    /// The share of acknowledged batches that are sent once more.
    #[serde(deserialize_with = "share")]
    pub duplicates: f64,
    /// The share of batches that are held back before their first attempt, so that later ones
    /// overtake them.
    #[serde(deserialize_with = "share")]
    pub hold_back: f64,
    /// How long such a batch is held back.
    #[serde(deserialize_with = "duration")]
    pub hold_back_for: Duration,
    /// The share of events that happened up to two weeks before they are sent.
    #[serde(deserialize_with = "share")]
    pub late: f64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            lose_answers: 0.0,
            hang_up: 0.0,
            duplicates: 0.0,
            hold_back: 0.0,
            hold_back_for: Duration::from_millis(250),
            late: 0.0,
        }
    }
}

impl Faults {
    /// # Errors
    /// [`Invalid`] if a share is no probability.
    pub fn check(&self) -> Result<(), Invalid> {
        let shares = [
            ("lose_answers", self.lose_answers),
            ("hang_up", self.hang_up),
            ("duplicates", self.duplicates),
            ("hold_back", self.hold_back),
            ("late", self.late),
        ];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return Err(Invalid(format!(
                    "`{name} = {share}` is not a share: take a number from 0 to 1"
                )));
            }
        }
        Ok(())
    }
}

/// Everything a simulator is started with. The default is one app, without faults, on a free port.
#[derive(Clone)]
pub struct Options {
    /// Where JWKS and management API are served.
    pub listen: SocketAddr,
    /// The apps, and sources of other kinds.
    pub apps: Vec<AppOptions>,
    /// The size of keys that have to be made, in bits.
    pub key_bits: usize,
    /// What the management API takes as `Authorization: Bearer`.
    pub management_token: String,
    /// The seed of events and faults. Two runs with one seed send the same event ids, so against
    /// the same bridge the second is all duplicates; without one each run draws its own.
    pub seed: Option<u64>,
    /// How deliveries look.
    pub wire: WireStyle,
    /// How the management API refuses.
    pub api: ApiStyle,
    /// The faults to inject.
    pub faults: Faults,
    /// When failed deliveries are tried again.
    pub retry: RetrySchedule,
    /// How long an attempt waits for its answer. Never scaled: the receiver's clock runs as usual.
    pub answer_timeout: Duration,
    /// How many batches may be on their way, those waiting for a retry included. Beyond it sending
    /// waits.
    pub deliveries_max: usize,
    /// How many requests are made at a time.
    pub requests_max: usize,
    /// How many deliveries the ledger lists.
    pub ledger_deliveries_max: usize,
    /// Whose certificates are trusted beside those that the system trusts. Default none.
    pub issuers: Vec<reqwest::Certificate>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            apps: vec![AppOptions::new(DEFAULT_APP_ID)],
            key_bits: 2048,
            management_token: DEFAULT_MANAGEMENT_TOKEN.to_owned(),
            seed: None,
            wire: WireStyle::default(),
            api: ApiStyle::default(),
            faults: Faults::default(),
            retry: RetrySchedule::default(),
            answer_timeout: ANSWER_TIMEOUT,
            // Ten events a batch are about 5 KB: 50 MB of waiting bodies at most.
            deliveries_max: 10_000,
            requests_max: 64,
            // About 2 KB for ten events: 200 MB at most.
            ledger_deliveries_max: 100_000,
            issuers: Vec::new(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Options")
            .field("listen", &self.listen)
            .field("apps", &self.apps)
            .field("seed", &self.seed)
            .field("wire", &self.wire)
            .field("faults", &self.faults)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// # Errors
    /// [`Invalid`] names the first option that makes no sense.
    pub fn check(&self) -> Result<(), Invalid> {
        let invalid = |text: &str| Err(Invalid(text.to_owned()));
        if self.apps.is_empty() || self.apps.len() > APPS_MAX {
            return Err(Invalid(format!("a simulator plays 1 to {APPS_MAX} apps")));
        }
        for (index, app) in self.apps.iter().enumerate() {
            let is_app = app.kind == SourceKind::Auth;
            let usable = |character: char| {
                character.is_ascii_alphanumeric()
                    || character == '-'
                    || (character == '_' && !is_app)
            };
            if app.id.is_empty() || app.id.len() > 63 || !app.id.chars().all(usable) {
                return invalid(if is_app {
                    "an app id is 1 to 63 letters, digits and hyphens: it is the first label of the app's host name"
                } else {
                    "the id of a source is 1 to 63 letters, digits, hyphens and underscores"
                });
            }
            if self.apps.iter().take(index).any(|other| other.id == app.id) {
                return Err(Invalid(format!("app `{}` is named twice", app.id)));
            }
        }
        if !(self.retry.time_scale.is_finite() && self.retry.time_scale > 0.0) {
            return invalid("the time scale must be above 0: 60 makes a minute a second");
        }
        if self.answer_timeout.is_zero() {
            return invalid("the answer timeout must be above 0 (Prelude's is 10s)");
        }
        if self.deliveries_max == 0 || self.requests_max == 0 {
            return invalid("at least one delivery and one request must be allowed");
        }
        self.faults.check()
    }
}

/// Reads a duration from a file as people write it: `250ms`, `10s`, `1m 30s`, `2h`.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(de::Error::custom)
}

/// Reads a probability, so that a fault in a file is found at its line.
fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(de::Error::custom("a share is a number from 0 to 1"))
    }
}

/// Reads a duration as people write it: `250ms`, `10s`, `1m 30s`, `2h`, `1d` of 24 hours. Clock times
/// such as `10:30:00` are none.
///
/// # Errors
/// [`Invalid`] with examples.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    let span = SpanParser::new().parse_span(text.trim()).ok();
    span.filter(|_| !text.contains(':'))
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok())
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| {
            Invalid(format!(
                "`{text}` is not a duration: write for example 250ms, 10s, 1m 30s or 2h"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Options)) -> String {
        let mut options = Options::default();
        change(&mut options);
        options.check().unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_valid_and_each_invalid_option_is_refused_with_a_remedy() {
        Options::default().check().unwrap();
        assert!(refused(|options| options.apps.clear()).contains("1 to 64"));
        assert!(refused(|options| options.apps.push(AppOptions::new("a/b"))).contains("app id"));
        let source = |id: &str| AppOptions::new(id).of_kind(SourceKind::Verify);
        assert!(refused(|options| options.apps.push(AppOptions::new("a_b"))).contains("app id"));
        assert!(refused(|options| options.apps.push(source("a.b"))).contains("underscores"));
        let mut underscored = Options::default();
        underscored.apps.push(source("a_b"));
        underscored.check().unwrap();
        let twice = refused(|options| options.apps.push(AppOptions::new(DEFAULT_APP_ID)));
        assert!(twice.contains("twice"));
        assert!(refused(|options| options.retry.time_scale = 0.0).contains("60"));
        assert!(refused(|options| options.retry.time_scale = f64::NAN).contains("60"));
        assert!(refused(|options| options.answer_timeout = Duration::ZERO).contains("10s"));
        assert!(refused(|options| options.requests_max = 0).contains("at least one"));
        let share = refused(|options| options.faults.lose_answers = 20.0);
        assert!(share.contains("lose_answers") && share.contains("from 0 to 1"));
    }

    #[test]
    fn durations_read_as_people_write_them() {
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_duration("1m 30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("2d").unwrap(), Duration::from_secs(172_800));
        for text in ["-1s", "10:30:00", "1mo", "15", ""] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(
            parse_duration("soon")
                .unwrap_err()
                .to_string()
                .contains("10s")
        );
    }

    #[test]
    fn debug_output_holds_no_management_token() {
        let shown = format!("{:?}", Options::default());
        assert!(!shown.contains(DEFAULT_MANAGEMENT_TOKEN), "{shown}");
    }
}
