//! Finds what prevents a bridge from working. It begins with the configuration and ends with the
//! network; each check has a requirement, a finding and a remedy. It changes nothing, and continues
//! after a failed check unless the next one depends on it.
//!
//! `disk` checks the data directory and the log, `store` the servers of a store on other machines,
//! `credentials` who may subscribe, `tls` the certificates, `step_up` explains a wrong key set, `readiness` what a running bridge answers to `/readyz`, and `outside` everything else
//! that needs a socket. The texts are made here; the command decides how they are shown.

mod credentials;
mod disk;
mod outside;
mod readiness;
mod step_up;
mod store;
mod tls;

use std::time::Duration;

use serde::Serialize;

pub use self::readiness::{Readiness, readiness};

use crate::{
    client,
    config::{self, Config, EventSource, Resolved, SourceKind, Store},
    plain,
    receiver::source::PRELUDE,
};

/// How long a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What to check.
#[derive(Debug)]
pub struct Options {
    /// The configuration of `serve`, or why `serve` would refuse it.
    pub configuration: Result<Resolved, config::Error>,
    /// The public URL that Prelude calls, if it is to be checked.
    pub public_url: Option<String>,
    /// How to connect to the gRPC port; the URL comes from the configuration.
    pub client: client::Options,
    /// Issuers that are trusted in addition to those of the system.
    pub issuers: Vec<reqwest::Certificate>,
}

/// All checks, in their order.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether no check failed.
    pub well: bool,
    /// Each check.
    pub checks: Vec<Check>,
}

/// One requirement and whether it is met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name: one of a few fixed words.
    pub name: &'static str,
    /// The app, if the check is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The result.
    pub verdict: Verdict,
    /// What was found, in one sentence.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<String>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The requirement is met.
    Good,
    /// The requirement is not met.
    Fault,
    /// The check was skipped, and `found` says why. This does not count as a failure.
    Skipped,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            app: None,
            verdict,
            // It may contain a URL with a query.
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

/// Runs all checks, which takes as long as the servers that it calls take to answer.
pub async fn examine(options: Options) -> Report {
    let mut checks = Vec::new();
    if let Some(config) = configuration(options.configuration, &mut checks) {
        checks.extend(allowed_sources(&config));
        let disk = disk::examine(&config);
        let is_running = disk.is_in_use
            || (config.store == Store::Memory && outside::answers(config.admin_listen).await);
        checks.extend(disk.checks);
        checks.extend(store::examine(&config.store).await);
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
        checks.extend(readiness::check(config.admin_listen, is_running).await);
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
            let mut found = format!("it is good; {}", config::list_sources(&config.sources));
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
            let found = "the other checks need a valid configuration";
            checks.push(Check::skipped("the rest", found));
            None
        }
    }
}

/// A list without Auth's addresses refuses every delivery of an app. Those of Verify and Notify are not
/// documented.
fn allowed_sources(config: &Config) -> Vec<Check> {
    let name = "allowed sources";
    let networks = config.allowed_networks();
    if networks.is_empty() {
        return Vec::new();
    }
    let is_app = |source: &EventSource| source.kind == SourceKind::Auth;
    let mut checks = Vec::new();
    if config.sources.iter().any(is_app) {
        let is_allowed = |address| networks.iter().any(|network| network.contains(address));
        let left_out: Vec<String> = PRELUDE
            .into_iter()
            .filter(|address| !is_allowed(*address))
            .map(|address| address.to_string())
            .collect();
        checks.push(if left_out.is_empty() {
            Check::good(name, "the documented addresses of Prelude Auth are allowed")
        } else {
            Check::fault(
                name,
                format!(
                    "`allowed_sources` lacks addresses that Prelude Auth sends from: {}",
                    left_out.join(", ")
                ),
                "add \"prelude\" to `allowed_sources`",
            )
        });
    }
    if !config.sources.iter().all(is_app) {
        checks.push(Check::skipped(
            name,
            "Prelude does not document the addresses that Verify and Notify send from: watch the log for \
             `source_refused`",
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AllowedSource, KeySource, Origin};

    #[test]
    fn allowed_sources_are_held_against_the_addresses_of_auth_for_apps_alone() {
        use SourceKind::{Auth, Notify, Verify};

        let verdicts = |allowed: &[AllowedSource], kinds: &[SourceKind]| -> Vec<Verdict> {
            let source = |kind: &SourceKind| EventSource {
                id: kind.name().to_owned(),
                kind: *kind,
                activation: None,
                keys: KeySource::PemFiles(Vec::new()),
                origin: Origin::Default,
            };
            let config = Config {
                allowed_sources: allowed.to_vec(),
                sources: kinds.iter().map(source).collect(),
                ..Config::default()
            };
            let checks = allowed_sources(&config);
            checks.iter().map(|check| check.verdict).collect()
        };
        let own = [AllowedSource::Network("192.0.2.0/24".parse().unwrap())];
        let all = [AllowedSource::Prelude];
        assert!(verdicts(&[], &[Auth, Verify]).is_empty());
        assert_eq!(verdicts(&own, &[Auth]), [Verdict::Fault]);
        assert_eq!(verdicts(&all, &[Auth]), [Verdict::Good]);
        for allowed in [&own, &all] {
            assert_eq!(verdicts(allowed, &[Verify, Notify]), [Verdict::Skipped]);
        }
        assert_eq!(
            verdicts(&own, &[Auth, Notify]),
            [Verdict::Fault, Verdict::Skipped]
        );
        assert_eq!(
            verdicts(&all, &[Auth, Notify]),
            [Verdict::Good, Verdict::Skipped]
        );
    }
}
