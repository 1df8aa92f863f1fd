//! The activation challenge: a GET with a random number that the receiver has to send back. Owns the
//! request and checks the answer; knows nothing of registries.

use http_body_util::BodyExt as _;
use reqwest::Url;
use serde::Deserialize;
use serde_json::value::RawValue;

/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long a receiver may take to accept a connection.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Why a challenge failed, in words for the operator of the receiver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The URL cannot be called.
    #[error("the URL cannot be called: {0}")]
    Url(String),
    /// Nothing accepted the connection, or it broke.
    #[error("nothing answered: is the receiver running and reachable at this URL?")]
    Unreachable,
    /// No answer in time.
    #[error("the receiver did not answer in time")]
    TimedOut,
    /// A status other than 200.
    #[error(
        "the receiver answered {0} instead of 200: {hint}",
        hint = status_hint(*.0)
    )]
    Status(u16),
    /// The answer is not `{"challenge":<number>}`.
    #[error("the receiver's answer is not JSON of the form {{\"challenge\":1234567890}}")]
    Form,
    /// The number is different.
    #[error("the receiver sent back another challenge than it was given")]
    Number,
}

/// What a receiver's refusal most likely means.
fn status_hint(status: u16) -> &'static str {
    match status {
        401 | 403 => "its verification token is not the one the webhook was registered with",
        404 => "it does not know this app id, or the path is another one",
        500..=599 => "it has a problem of its own; its log says more",
        _ => "its log says more",
    }
}

/// Whether something accepts connections where this URL leads. Verify and Notify do not ask before they
/// send; this is for people who start a receiver after its sender.
pub async fn is_reachable(url: &str) -> bool {
    let Some((host, port)) = Url::parse(url)
        .ok()
        .and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)))
    else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let connecting = tokio::net::TcpStream::connect((host, port));
    matches!(
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await,
        Ok(Ok(_))
    )
}

/// A challenge, ready to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Challenge(u64);

impl Challenge {
    /// Makes a challenge from random bits. A wide one is larger than 2^53 and fits a signed 64-bit
    /// integer.
    pub(super) fn new(random: u64, wide: bool) -> Self {
        Self(if wide {
            (random >> 2) | 1 << 60
        } else {
            random >> 33
        })
    }

    /// Sends the challenge and checks the answer.
    pub(super) async fn send(
        self,
        client: &reqwest::Client,
        url: &str,
        app_id: &str,
        token: &str,
        timeout: std::time::Duration,
    ) -> Result<(), Failure> {
        let mut url = Url::parse(url).map_err(|error| Failure::Url(error.to_string()))?;
        url.query_pairs_mut()
            .append_pair("event", "activate")
            .append_pair("verification_token", token)
            .append_pair("challenge", &self.0.to_string())
            .append_pair("app_id", app_id);
        let answer = client
            .get(url)
            .timeout(timeout)
            .send()
            .await
            .map_err(|error| {
                if error.is_timeout() {
                    Failure::TimedOut
                } else {
                    Failure::Unreachable
                }
            })?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(Failure::Status(status));
        }
        let body = http_body_util::Limited::new(reqwest::Body::from(answer), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|_| Failure::Form)?.to_bytes();
        self.check_answer(&body)
    }

    /// Compares the number digit for digit: as a float it could lose its last digits.
    fn check_answer(self, body: &[u8]) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            challenge: &'a RawValue,
        }
        let answer: Answer<'_> = serde_json::from_slice(body).map_err(|_| Failure::Form)?;
        let digits = answer.challenge.get();
        if digits == self.0.to_string() {
            Ok(())
        } else if digits.starts_with('"') {
            Err(Failure::Form)
        } else {
            Err(Failure::Number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_digits_as_a_json_number_meet_a_challenge() {
        let challenge = Challenge(1_234_567_890);
        assert_eq!(
            challenge.check_answer(br#"{"challenge":1234567890}"#),
            Ok(())
        );
        assert_eq!(
            challenge.check_answer(br#"{ "challenge" : 1234567890 , "more":1}"#),
            Ok(())
        );
        assert_eq!(
            challenge.check_answer(br#"{"challenge":"1234567890"}"#),
            Err(Failure::Form)
        );
        assert_eq!(
            challenge.check_answer(br#"{"challenge":1234567891}"#),
            Err(Failure::Number)
        );
        assert_eq!(
            challenge.check_answer(br#"{"challenge":1.23456789e9}"#),
            Err(Failure::Number)
        );
        assert_eq!(
            challenge.check_answer(br#"{"answer":1234567890}"#),
            Err(Failure::Form)
        );
        assert_eq!(challenge.check_answer(b"1234567890"), Err(Failure::Form));
    }

    #[tokio::test]
    async fn a_url_is_reachable_while_something_listens_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhooks/verify", listener.local_addr().unwrap());
        assert!(is_reachable(&url).await);
        drop(listener);
        assert!(!is_reachable(&url).await && !is_reachable("nonsense").await);
    }

    #[test]
    fn a_wide_challenge_is_beyond_what_a_float_holds_and_still_an_integer() {
        for random in [0, 1, u64::MAX] {
            let Challenge(wide) = Challenge::new(random, true);
            assert!(wide > 1 << 53 && i64::try_from(wide).is_ok());
            let Challenge(narrow) = Challenge::new(random, false);
            assert!(i32::try_from(narrow).is_ok());
        }
    }
}
