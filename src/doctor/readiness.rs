//! Asks a running bridge for `/readyz`, which lists all that the bridge needs.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

use super::{
    Check,
    disk::{DAMAGE_REMEDY, LOG},
    outside::{http_client, reachable},
};

const READINESS: &str = "readiness";

/// The answer of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It receives and serves events.
    Ready {
        /// The apps whose deliveries it accepts.
        apps: Vec<String>,
        /// Damage of its log, if there is any.
        damage: Option<String>,
        /// Each other thing that the operator has to correct.
        warnings: Vec<String>,
    },
    /// It does not, for these reasons.
    Missing {
        /// The apps that it is configured for.
        apps: Vec<String>,
        /// Each reason.
        reasons: Vec<String>,
    },
    /// No bridge answered, for this reason.
    Unknown(String),
}

#[derive(Deserialize)]
struct Page {
    ready: bool,
    checks: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    name: String,
    app: Option<String>,
    fault: Option<String>,
    warning: Option<String>,
}

impl Line {
    /// The text with what it is about.
    fn of(&self, text: &str) -> String {
        match &self.app {
            Some(app) => format!("{} of {app}: {text}", self.name),
            None => format!("{}: {text}", self.name),
        }
    }
}

/// Asks the bridge whose admin port has this address.
pub async fn readiness(listen: SocketAddr) -> Readiness {
    if listen.port() == 0 {
        let reason = "the port of `admin_listen` was chosen when the bridge started";
        return Readiness::Unknown(reason.to_owned());
    }
    let url = format!("http://{}/readyz", reachable(listen));
    let page = async {
        let parsed = reqwest::Url::parse(&url).ok()?;
        let client = http_client(&parsed, &[])?;
        let answer = client.get(parsed).timeout(Duration::from_secs(5)).send();
        answer.await.ok()?.json::<Page>().await.ok()
    };
    match page.await {
        Some(page) => readiness_of(&page),
        None => Readiness::Unknown(format!("no bridge answers at {url}")),
    }
}

fn readiness_of(page: &Page) -> Readiness {
    let apps = page.checks.iter().filter_map(|line| line.app.clone());
    let apps = apps.collect();
    let lines = page.checks.iter();
    if page.ready {
        let (log, others): (Vec<&Line>, Vec<&Line>) = lines.partition(|line| line.name == LOG);
        let warning = |line: &Line| Some(line.of(line.warning.as_deref()?));
        return Readiness::Ready {
            apps,
            damage: log.into_iter().find_map(|line| line.warning.clone()),
            warnings: others.into_iter().filter_map(warning).collect(),
        };
    }
    let reasons = lines.filter_map(|line| Some(line.of(line.fault.as_deref()?)));
    let reasons = reasons.collect();
    Readiness::Missing { apps, reasons }
}

/// Checks whether the running bridge is ready, and what it knows of its log.
pub(super) async fn check(listen: SocketAddr, is_running: bool) -> Vec<Check> {
    if !is_running {
        return vec![Check::skipped(READINESS, "no bridge is running")];
    }
    let check = match readiness(listen).await {
        Readiness::Ready {
            damage, warnings, ..
        } => {
            let mut found = "the running bridge is ready".to_owned();
            for warning in warnings {
                found.push_str(&format!(" ({warning})"));
            }
            let damage = damage.map(|damage| Check::fault(LOG, damage, DAMAGE_REMEDY));
            let ready = Check::good(READINESS, found);
            return std::iter::once(ready).chain(damage).collect();
        }
        Readiness::Missing { reasons, .. } => Check::fault(
            READINESS,
            format!(
                "the running bridge is not ready, so it answers deliveries with 503: {}",
                reasons.join("; ")
            ),
            "correct what it names; the bridge then becomes ready by itself",
        ),
        Readiness::Unknown(reason) => Check::skipped(READINESS, reason),
    };
    vec![check]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_that_is_not_ready_says_what_is_missing() {
        let page = |text: &str| readiness_of(&serde_json::from_str(text).unwrap());
        let apps = vec!["54e9ujn".to_owned()];
        let missing = page(
            r#"{"ready":false,"checks":[{"name":"log","fault":null},
                {"name":"keys","app":"54e9ujn","fault":"none"},{"name":"serving","fault":"no"}]}"#,
        );
        let reasons = ["keys of 54e9ujn: none", "serving: no"].map(str::to_owned);
        let expected = Readiness::Missing {
            apps: apps.clone(),
            reasons: reasons.into(),
        };
        assert_eq!(missing, expected);
        let ready = page(r#"{"ready":true,"checks":[{"name":"keys","app":"54e9ujn"}]}"#);
        let expected = |damage: Option<&str>, warnings: &[&str]| Readiness::Ready {
            apps: apps.clone(),
            damage: damage.map(str::to_owned),
            warnings: warnings.iter().map(|&warning| warning.to_owned()).collect(),
        };
        assert_eq!(ready, expected(None, &[]));
        let warned = page(
            r#"{"ready":true,"checks":[{"name":"log","warning":"events 1 to 2 are damaged"},
                {"name":"keys","app":"54e9ujn"},{"name":"credentials","warning":"no file"}]}"#,
        );
        let damage = Some("events 1 to 2 are damaged");
        assert_eq!(warned, expected(damage, &["credentials: no file"]));
    }

    #[tokio::test]
    async fn nobody_there_is_no_bridge_that_is_not_ready() {
        for address in ["127.0.0.1:0", "127.0.0.1:1"] {
            let said = readiness(address.parse().unwrap()).await;
            assert!(matches!(said, Readiness::Unknown(_)), "{said:?}");
        }
    }
}
