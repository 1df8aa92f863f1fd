//! Sends the activation challenge as Prelude does, to find out why an activation failed. Owns the
//! request and every way it can end; [`Finding`] has the texts, so that all commands say the same.

use std::{borrow::Cow, fmt, time::Duration};

use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{innermost, is_loopback};
use crate::net::tls::{self, Trouble};

/// Prelude waits this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How a challenge ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The bridge answered with the challenge.
    Met,
    /// The URL is invalid.
    Url(String),
    /// Nothing accepts connections there, or its name is not known.
    Unreachable(String),
    /// The server answers, but the TLS handshake failed.
    Tls(Trouble),
    /// Something accepted the connection and did not answer in time.
    TimedOut,
    /// The bridge has another verification token.
    OtherToken,
    /// The bridge does not know this app.
    AppUnknown,
    /// The path is that of a source of Verify or Notify, which has no activation.
    NoApp,
    /// The bridge serves another path.
    PathUnknown,
    /// A bridge is there, and refuses this machine's address.
    SourceRefused,
    /// A redirect, which Prelude may not follow.
    Redirect(u16),
    /// Another status.
    Status {
        /// The status.
        status: u16,
        /// The bridge's code, if a bridge answered.
        code: Option<String>,
    },
    /// 200 with something else than the challenge.
    OtherAnswer,
}

impl Finding {
    /// Whether the cause may be that the bridge has not started yet.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut => true,
            // The answer of a proxy when the bridge does not run.
            Self::Status { status, code } => code.is_none() && matches!(status, 502..=504),
            Self::Met
            | Self::Url(_)
            | Self::Tls(_)
            | Self::OtherToken
            | Self::AppUnknown
            | Self::NoApp
            | Self::PathUnknown
            | Self::SourceRefused
            | Self::Redirect(_)
            | Self::OtherAnswer => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Cow<'static, str> {
        let remedy = match self {
            Self::Tls(trouble) => {
                return trouble.advice().map_or_else(
                    || {
                        "Prelude trusts the issuers that every system trusts, and no others: get a \
                         certificate of such an issuer for the host of the URL, or put a proxy that \
                         has one in front of the bridge"
                            .into()
                    },
                    Cow::Owned,
                );
            }
            Self::Met => {
                "Prelude may reach another server at this URL (check DNS and firewalls), \
                 or the webhook was registered with another verification token: delete it, and run \
                 `prelude-bridge webhook setup` again"
            }
            Self::Url(_) => {
                "give the public URL of the bridge, such as https://example.com/webhooks"
            }
            Self::Unreachable(_) => {
                "start `prelude-bridge serve`, and check that the URL leads to its webhook port: \
                 DNS, proxy, firewall"
            }
            Self::TimedOut => {
                "check what is between the URL and the bridge's webhook port: it accepts \
                 connections and does not forward them"
            }
            Self::OtherToken => {
                "give both the same configuration: `prelude-bridge serve` reads a changed token file \
                 within seconds, and a variable when it starts"
            }
            Self::AppUnknown => {
                "add the app to the configuration of the bridge there (`[[apps]]`, or \
                 PRELUDE_BRIDGE_APP_ID), or name the right one with --app; if the URL ends with the id \
                 of another app, end it with the right one or with /webhooks"
            }
            Self::NoApp => {
                "Verify and Notify have no activation: end the URL with the id of the app, or with /webhooks"
            }
            Self::PathUnknown => {
                "the path is /webhooks/APP_ID or /webhooks: check the URL, and whether a proxy \
                 rewrites it"
            }
            Self::SourceRefused => {
                "check `allowed_sources` of the bridge there, and `trusted_proxies` if it is \
                 behind a proxy"
            }
            Self::Redirect(_) => "give the URL that it redirects to",
            Self::Status { code: Some(_), .. } => "the log of the bridge there says more",
            Self::Status { code: None, .. } | Self::OtherAnswer => {
                "something else than a bridge answers: check where the URL leads, and what a proxy \
                 in between demands"
            }
        };
        remedy.into()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Met => {
                formatter.write_str("the challenge is answered when this machine sends it")
            }
            Self::Url(fault) => write!(formatter, "the URL cannot be called: {fault}"),
            Self::Unreachable(fault) => write!(formatter, "nothing answers at the URL: {fault}"),
            Self::Tls(trouble) => write!(formatter, "{trouble}"),
            Self::TimedOut => {
                let seconds = ANSWER_TIMEOUT.as_secs();
                write!(formatter, "there is no answer within {seconds} s")
            }
            Self::OtherToken => {
                formatter.write_str("the bridge there has another verification token for this app")
            }
            Self::AppUnknown => formatter.write_str("the bridge there does not know this app"),
            Self::NoApp => {
                formatter.write_str("the URL leads the bridge there to a source that is no app")
            }
            Self::PathUnknown => formatter.write_str("the bridge there has nothing at this path"),
            Self::SourceRefused => {
                formatter.write_str("the bridge there refuses this machine's address")
            }
            Self::Redirect(status) => {
                write!(formatter, "the URL answers with a redirect ({status})")
            }
            Self::Status {
                status,
                code: Some(code),
            } => write!(formatter, "the bridge there answers {status} ({code})"),
            Self::Status { status, code: None } => {
                write!(formatter, "the URL answers {status} instead of 200")
            }
            Self::OtherAnswer => {
                formatter.write_str("the URL answers 200, but not with the challenge")
            }
        }
    }
}

/// Sends the challenge to a URL, as Prelude would for this app and token.
pub async fn send(url: &str, app_id: &str, verification_token: &str) -> Finding {
    send_trusting(url, app_id, verification_token, &[]).await
}

/// Like [`send`], but also trusts certificates of these issuers. Prelude trusts only those that the
/// system trusts.
pub async fn send_trusting(
    url: &str,
    app_id: &str,
    verification_token: &str,
    issuers: &[reqwest::Certificate],
) -> Finding {
    let mut parsed = match Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => parsed,
        Ok(_) => return Finding::Url("it is neither http nor https".to_owned()),
        Err(fault) => return Finding::Url(fault.to_string()),
    };
    let Ok(number) = getrandom::u64() else {
        return Finding::Url("the system gives no random number".to_owned());
    };
    // At most 53 bits, so that a proxy that parses JSON does not change it.
    let number = number >> 11;
    parsed
        .query_pairs_mut()
        .append_pair("event", "activate")
        .append_pair("verification_token", verification_token)
        .append_pair("challenge", &number.to_string())
        .append_pair("app_id", app_id);
    let answered = match client(&parsed, issuers) {
        Ok(client) => answer(&client, parsed).await,
        Err(fault) => Err(fault),
    };
    match answered {
        Ok((status, body)) => finding_of(status, &body, number),
        Err(fault) if fault.is_timeout() => Finding::TimedOut,
        Err(fault) => match tls::trouble(&fault) {
            Some(trouble) => Finding::Tls(trouble),
            None => Finding::Unreachable(innermost(&fault)),
        },
    }
}

/// Why a URL cannot be called because of TLS; `None` if TLS works.
pub async fn trouble_at(url: &str, issuers: &[reqwest::Certificate]) -> Option<Trouble> {
    let url = Url::parse(url).ok()?;
    let client = client(&url, issuers).ok()?;
    let fault = client.get(url).send().await.err()?;
    tls::trouble(&fault)
}

fn client(url: &Url, issuers: &[reqwest::Certificate]) -> reqwest::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .timeout(ANSWER_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("prelude-bridge/", env!("CARGO_PKG_VERSION")))
        .tls_certs_merge(issuers.iter().cloned());
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    builder.build()
}

async fn answer(client: &reqwest::Client, url: Url) -> reqwest::Result<(u16, Vec<u8>)> {
    let mut response = client.get(url).send().await?;
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok((status, body))
}

fn finding_of(status: u16, body: &[u8], number: u64) -> Finding {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        challenge: &'a RawValue,
    }
    if status == 200 {
        let answer: Result<Answer<'_>, _> = serde_json::from_slice(body);
        let is_met = answer.is_ok_and(|answer| answer.challenge.get() == number.to_string());
        return if is_met {
            Finding::Met
        } else {
            Finding::OtherAnswer
        };
    }
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let code = value.pointer("/error/code").and_then(Value::as_str);
    match (status, code) {
        (_, Some("token_mismatch")) => Finding::OtherToken,
        (_, Some("app_unknown")) => Finding::AppUnknown,
        (_, Some("challenge_unexpected")) => Finding::NoApp,
        (_, Some("path_unknown")) => Finding::PathUnknown,
        (_, Some("source_refused")) => Finding::SourceRefused,
        (300..=399, _) => Finding::Redirect(status),
        (_, code) => Finding::Status {
            status,
            code: code.map(str::to_owned),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_its_finding() {
        let refused = |code: &str| format!(r#"{{"error":{{"code":"{code}"}}}}"#);
        let status = |status, code: Option<&str>| Finding::Status {
            status,
            code: code.map(str::to_owned),
        };
        for (code, body, finding) in [
            (200, r#"{"challenge":7}"#.to_owned(), Finding::Met),
            (200, r#"{"challenge":"7"}"#.to_owned(), Finding::OtherAnswer),
            (200, "hello".to_owned(), Finding::OtherAnswer),
            (401, refused("token_mismatch"), Finding::OtherToken),
            (404, refused("app_unknown"), Finding::AppUnknown),
            (405, refused("challenge_unexpected"), Finding::NoApp),
            (404, refused("path_unknown"), Finding::PathUnknown),
            (403, refused("source_refused"), Finding::SourceRefused),
            (301, String::new(), Finding::Redirect(301)),
            (404, "<html>".to_owned(), status(404, None)),
            (
                503,
                refused("deadline_exceeded"),
                status(503, Some("deadline_exceeded")),
            ),
        ] {
            assert_eq!(finding_of(code, body.as_bytes(), 7), finding);
            assert!(!finding.remedy().is_empty() && !finding.to_string().is_empty());
        }
    }

    #[test]
    fn a_path_of_another_source_is_said_to_be_one() {
        for code in ["app_unknown", "challenge_unexpected"] {
            let body = format!(r#"{{"error":{{"code":"{code}"}}}}"#);
            let finding = finding_of(405, body.as_bytes(), 7);
            assert!(
                finding.remedy().contains("or with /webhooks"),
                "{finding:?}"
            );
            assert!(!finding.may_pass());
        }
    }

    #[test]
    fn only_what_a_start_of_the_bridge_can_mend_may_pass() {
        assert!(Finding::Unreachable(String::new()).may_pass());
        assert!(finding_of(502, b"<h1>Bad Gateway</h1>", 7).may_pass());
        assert!(!finding_of(503, br#"{"error":{"code":"keys_unavailable"}}"#, 7).may_pass());
        assert!(!Finding::OtherToken.may_pass());
    }

    #[tokio::test]
    async fn a_url_that_is_none_is_not_called() {
        for url in ["", "example.com/webhooks", "ftp://example.com"] {
            assert!(
                matches!(send(url, "a", "t").await, Finding::Url(_)),
                "{url}"
            );
        }
    }
}
