//! Finds out what keeps a bridge from working: from its configuration outwards, each thing that
//! must hold, what was found, and what to do. Looks and changes nothing, and goes on after a fault,
//! as far as the next check can mean something without the last one.
//!
//! `disk` looks at the data directory and the log, `credentials` at who may subscribe, `tls` at
//! certificates, `readiness` at what a bridge that runs says of itself, `outside` at everything else
//! over a socket. The words are made here; how they are shown is the command's business.

mod credentials;
mod disk;
mod outside;
mod readiness;
mod tls;

use serde::Serialize;

pub use self::readiness::{Readiness, readiness};

use crate::{
    client,
    config::{self, Config, Resolved, Store},
    net::network::Network,
    plain,
    receiver::source::PRELUDE,
};

/// What is to be examined.
#[derive(Debug)]
pub struct Options {
    /// What `serve` would run with, or why it would not.
    pub configuration: Result<Resolved, config::Error>,
    /// Where Prelude calls, if that is to be tried.
    pub public_url: Option<String>,
    /// How the streams are to be reached; the URL comes from the configuration.
    pub client: client::Options,
    /// Whose certificates are trusted beside those that the system trusts.
    pub issuers: Vec<reqwest::Certificate>,
}

/// All checks, in their order.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub well: bool,
    /// Each check.
    pub checks: Vec<Check>,
}

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which one: one of a few fixed words.
    pub name: &'static str,
    /// Whose, where it is of one app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, in one sentence.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Not as it should be.
    Fault,
    /// Not looked at, and `found` says why. That alone is no fault.
    Skipped,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            app: None,
            verdict,
            // A URL with a query may be in it.
            found: plain::configured(found.into()),
            remedies: Vec::new(),
        }
    }

    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Good, found)
    }

    fn fault(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            remedies: vec![remedy.into()],
            ..Self::new(name, Verdict::Fault, found)
        }
    }

    fn skipped(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Skipped, found)
    }

    fn of_app(mut self, app: &str) -> Self {
        self.app = Some(app.to_owned());
        self
    }
}

/// Examines everything, which takes as long as what is outside takes to answer.
pub async fn examine(options: Options) -> Report {
    let mut checks = Vec::new();
    if let Some(config) = configuration(options.configuration, &mut checks) {
        checks.extend(allowed_sources(&config.allowed_networks()));
        let disk = disk::examine(&config);
        let is_running = disk.is_in_use
            || (config.store == Store::Memory && outside::answers(config.admin_listen).await);
        checks.extend(disk.checks);
        checks.extend(credentials::examine(&config));
        checks.extend(tls::examine(&config.tls));
        let head_at = disk.head_at;
        let outside = outside::Outside {
            config: &config,
            public_url: options.public_url.as_deref(),
            client: options.client,
            issuers: &options.issuers,
            is_running,
            head_at,
        };
        checks.extend(outside.examine().await);
        checks.push(readiness::check(config.admin_listen, is_running).await);
    }
    Report {
        well: checks.iter().all(|check| check.verdict != Verdict::Fault),
        checks,
    }
}

const CONFIGURATION: &str = "configuration";

fn configuration(
    resolved: Result<Resolved, config::Error>,
    checks: &mut Vec<Check>,
) -> Option<Config> {
    let warnings = match &resolved {
        Ok(resolved) => resolved.warnings.clone(),
        Err(_) => Vec::new(),
    };
    match resolved.and_then(Resolved::servable) {
        Ok(config) => {
            let ids: Vec<&str> = config.apps.iter().map(|app| app.id.as_str()).collect();
            let mut found = format!("it is good; apps: {}", ids.join(", "));
            for warning in warnings {
                found.push_str(&format!(" ({warning})"));
            }
            checks.push(Check::good(CONFIGURATION, found));
            Some(config)
        }
        Err(error) => {
            let faults = error.faults.into_iter();
            checks.extend(
                faults.map(|fault| {
                    Check::fault(CONFIGURATION, fault.to_string(), fault.help.clone())
                }),
            );
            let found = "nothing else can be examined without a configuration";
            checks.push(Check::skipped("the rest", found));
            None
        }
    }
}

/// A list that leaves Prelude out refuses every delivery.
fn allowed_sources(networks: &[Network]) -> Option<Check> {
    let name = "allowed sources";
    if networks.is_empty() {
        return None;
    }
    let is_allowed = |address| networks.iter().any(|network| network.contains(address));
    let left_out: Vec<String> = PRELUDE
        .into_iter()
        .filter(|address| !is_allowed(*address))
        .map(|address| address.to_string())
        .collect();
    Some(if left_out.is_empty() {
        Check::good(name, "Prelude's documented addresses are allowed")
    } else {
        Check::fault(
            name,
            format!(
                "`allowed_sources` leaves out addresses that Prelude sends from: {}",
                left_out.join(", ")
            ),
            "add \"prelude\" to `allowed_sources`",
        )
    })
}
