//! Prelude's management API for the webhooks of Prelude Auth: create, list, get, activate, deactivate, add
//! an event, delete. Owns the calls, their limits, and the forms of an answer; `challenge` finds out why
//! an activation failed. Knows nothing of configuration files or terminals.
//!
//! Documented at <https://docs.prelude.so/session/documentation/webhooks>. Members of the webhook object
//! and of errors that differ between endpoints are read tolerantly.

pub mod challenge;

use std::{fmt, net::IpAddr, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, Url, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::decode::{self, Product};

/// The URL of Prelude's API.
pub const API_URL: &str = "https://api.prelude.dev";

/// How many of [`event_types`], from the first, are those that the API has always taken. Whether it takes
/// the others is not documented.
pub const LONG_KNOWN_TYPES: usize = 7;

/// The longest URL that a webhook can have, in characters, as documented.
pub const URL_CHARS_MAX: usize = 2048;

/// How long a call may take. An activation waits for the receiver, which has 10 s.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer that is read: thousands of webhooks.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How much of an error that has no known form is shown.
const MESSAGE_CHARS_MAX: usize = 300;
/// How much of each other member of an error is shown.
const MEMBER_CHARS_MAX: usize = 100;
/// Where the id of a request is, if an error has none in its body.
const REQUEST_ID_HEADER: &str = "x-request-id";
/// Characters that need no encoding in a path (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The types that Prelude documents for the webhooks of this API.
pub fn event_types() -> impl Iterator<Item = &'static str> {
    decode::event_types_of(None)
}

/// Whether Prelude documents a type for Verify or Notify. No webhook of this API gets it: each request to
/// Verify and Notify names its own URL.
#[must_use]
pub fn is_of_verify_or_notify(event_type: &str) -> bool {
    Product::of_type(event_type).is_some()
}

/// Why a call failed. It never holds the management key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL cannot be used.
    #[error("the API's URL cannot be used: {0}")]
    Url(String),
    /// The management key cannot be sent in a header.
    #[error("the management key has characters that are not allowed in a header")]
    Key,
    /// Nothing answered.
    #[error("Prelude's API cannot be reached: {0}")]
    Unreachable(String),
    /// It took longer than [`CALL_TIMEOUT`].
    #[error("Prelude's API did not answer within {} s", CALL_TIMEOUT.as_secs())]
    TimedOut,
    /// The API refused the call.
    #[error("Prelude refused: {0}")]
    Refused(Box<ApiRefusal>),
    /// The API accepted the call, but its answer has an unknown form.
    #[error("Prelude's answer cannot be understood: {0}")]
    Answer(String),
}

/// A refusal by the API. Which of the members an answer has depends on the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiRefusal {
    /// The HTTP status.
    pub status: u16,
    /// Prelude's code, if the answer has one.
    pub code: Option<String>,
    /// Prelude's message, or else the beginning of the answer.
    pub message: String,
    /// The kind of error.
    pub kind: Option<String>,
    /// The parameter that Prelude does not accept.
    pub param: Option<String>,
    /// What Prelude's support asks for.
    pub request_id: Option<String>,
}

impl ApiRefusal {
    /// Whether the refusal may be about an event type: Prelude understood the call, did not accept what is
    /// in it, and names no other parameter.
    #[must_use]
    pub fn may_be_about_events(&self) -> bool {
        let is_about_content = matches!(self.status, 400 | 422);
        let names_events = |param: &String| param.contains("event");
        is_about_content && self.param.as_ref().is_none_or(names_events)
    }
}

impl fmt::Display for ApiRefusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.status)?;
        if let Some(code) = &self.code {
            write!(formatter, " {code}")?;
        }
        if !self.message.is_empty() {
            write!(formatter, ": {}", self.message)?;
        }
        let more = [
            ("type", &self.kind),
            ("param", &self.param),
            ("request_id", &self.request_id),
        ];
        let more: Vec<String> = more
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} {}", value.as_deref()?)))
            .collect();
        if more.is_empty() {
            return Ok(());
        }
        write!(formatter, " ({})", more.join(", "))
    }
}

/// A webhook as Prelude returns it. Only the id is required.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Webhook {
    /// `web_…`, opaque.
    pub id: String,
    /// Where deliveries go.
    #[serde(default)]
    pub url: String,
    /// Which events it gets.
    #[serde(default)]
    pub events: Vec<String>,
    /// Whether the webhook was activated.
    #[serde(default)]
    pub active: bool,
    /// The status of the latest answer to a delivery; 0 or `None` if there was none.
    #[serde(default)]
    pub last_http_code: Option<i64>,
    /// When that was, RFC 3339.
    #[serde(default)]
    pub last_http_code_date: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub created_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub updated_at: Option<String>,
}

/// The API of one app.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// Of the app, without a slash at the end.
    base: String,
    authorization: header::HeaderValue,
}

/// The key stays out of debug output.
impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client without calling the API. `api_url` is [`API_URL`] or that of a simulator.
    ///
    /// # Errors
    /// [`Error::Url`] for anything but https (http to this machine), [`Error::Key`].
    pub fn new(api_url: &str, app_id: &str, management_key: &str) -> Result<Self, Error> {
        let url = Url::parse(api_url).map_err(|fault| Error::Url(fault.to_string()))?;
        let local = is_loopback(&url);
        match (url.scheme(), local) {
            ("https", _) | ("http", true) => {}
            ("http", false) => {
                let problem = "the management key is sent over https only";
                return Err(Error::Url(problem.to_owned()));
            }
            _ => return Err(Error::Url("it is neither https nor http".to_owned())),
        }
        let mut authorization = header::HeaderValue::try_from(format!("Bearer {management_key}"))
            .map_err(|_| Error::Key)?;
        authorization.set_sensitive(true);
        let mut builder = reqwest::Client::builder()
            .timeout(CALL_TIMEOUT)
            // A redirect could take the key to another host.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("prelude-bridge/", env!("CARGO_PKG_VERSION")));
        if local {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|fault| unreachable(&fault))?;
        let app = utf8_percent_encode(app_id, SEGMENT);
        let base = url.as_str().trim_end_matches('/');
        Ok(Self {
            http,
            base: format!("{base}/v2/session/apps/{app}/webhooks"),
            authorization,
        })
    }

    /// Registers a webhook, inactive.
    ///
    /// # Errors
    /// As all calls: [`Error::Refused`], [`Error::Unreachable`], [`Error::TimedOut`],
    /// [`Error::Answer`].
    pub async fn create(
        &self,
        url: &str,
        verification_token: &str,
        events: &[String],
    ) -> Result<Webhook, Error> {
        let body = json!({
            "url": url,
            "verification_token": verification_token,
            "events": events,
        });
        self.one(Method::POST, "", Some(body)).await
    }

    /// All webhooks of the app.
    ///
    /// # Errors
    /// As [`Client::create`].
    pub async fn list(&self) -> Result<Vec<Webhook>, Error> {
        #[derive(Deserialize)]
        struct Listed {
            webhooks: Vec<Webhook>,
        }
        let answer = self.call(Method::GET, "", None).await?;
        let listed: Listed = understand(&answer)?;
        Ok(listed.webhooks)
    }

    /// One webhook.
    ///
    /// # Errors
    /// As [`Client::create`].
    pub async fn get(&self, webhook_id: &str) -> Result<Webhook, Error> {
        let path = format!("/{}", segment(webhook_id));
        self.one(Method::GET, &path, None).await
    }

    /// Makes Prelude stop its deliveries to a webhook, until it is activated again.
    ///
    /// # Errors
    /// As [`Client::create`].
    pub async fn deactivate(&self, webhook_id: &str) -> Result<Webhook, Error> {
        let path = format!("/{}/deactivate", segment(webhook_id));
        self.one(Method::POST, &path, None).await
    }

    /// Makes Prelude send the activation challenge. If this succeeds, the webhook is active.
    ///
    /// # Errors
    /// As [`Client::create`]; a refusal with status 400 means that the challenge failed.
    pub async fn activate(&self, webhook_id: &str) -> Result<Webhook, Error> {
        let path = format!("/{}/activate", segment(webhook_id));
        self.one(Method::POST, &path, None).await
    }

    /// Adds an event type to a webhook.
    ///
    /// # Errors
    /// As [`Client::create`].
    pub async fn add_event(&self, webhook_id: &str, event: &str) -> Result<Webhook, Error> {
        let path = format!("/{}/events", segment(webhook_id));
        let body = json!({ "event": event });
        self.one(Method::POST, &path, Some(body)).await
    }

    /// Removes a webhook. Events that are not delivered yet are not delivered any more.
    ///
    /// # Errors
    /// As [`Client::create`].
    pub async fn delete(&self, webhook_id: &str) -> Result<(), Error> {
        let path = format!("/{}", segment(webhook_id));
        self.call(Method::DELETE, &path, None).await.map(|_| ())
    }

    async fn one(&self, method: Method, path: &str, body: Option<Value>) -> Result<Webhook, Error> {
        #[derive(Deserialize)]
        struct Shown {
            webhook: Webhook,
        }
        let answer = self.call(method, path, body).await?;
        let shown: Shown = understand(&answer)?;
        Ok(shown.webhook)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Vec<u8>, Error> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(header::ACCEPT, "application/json");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let mut response = request.send().await.map_err(|fault| unreachable(&fault))?;
        let status = response.status();
        let request_id = response.headers().get(REQUEST_ID_HEADER);
        let request_id = request_id.and_then(|id| Some(id.to_str().ok()?.to_owned()));
        let mut answer = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|fault| unreachable(&fault))?
        {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                let problem = format!("it is larger than {ANSWER_BYTES_MAX} bytes");
                return Err(Error::Answer(problem));
            }
            answer.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(answer);
        }
        let mut refusal = refusal(status.as_u16(), &answer);
        refusal.request_id = refusal.request_id.or(request_id);
        Err(Error::Refused(Box::new(refusal)))
    }
}

/// Whether a URL leads to this machine.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

fn segment(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, SEGMENT)
}

fn understand<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|fault| Error::Answer(fault.to_string()))
}

/// Reads `{"code","message","type","param","request_id"}`, each at the top or under `error`; anything else
/// is shown as it came, up to a length.
fn refusal(status: u16, answer: &[u8]) -> ApiRefusal {
    let value: Value = serde_json::from_slice(answer).unwrap_or_default();
    let inner = value.get("error").filter(|inner| inner.is_object());
    let member = |name: &str| {
        let places = [inner, Some(&value)];
        let found = places.into_iter().flatten().find_map(|at| at.get(name));
        match found? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    };
    let short = |name: &str| member(name).map(|text| shortened(&text, MEMBER_CHARS_MAX));
    let whole = || String::from_utf8_lossy(answer).trim().to_owned();
    let message = member("message").unwrap_or_else(whole);
    ApiRefusal {
        status,
        code: short("code"),
        message: shortened(&message, MESSAGE_CHARS_MAX),
        kind: short("type"),
        param: short("param"),
        request_id: short("request_id"),
    }
}

fn shortened(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

fn unreachable(fault: &reqwest::Error) -> Error {
    if fault.is_timeout() {
        return Error::TimedOut;
    }
    Error::Unreachable(innermost(fault))
}

/// The cause at the bottom: "connection refused" says more than "error sending request".
fn innermost(fault: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = fault;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_goes_over_https_or_to_this_machine_only() {
        for good in [API_URL, "http://127.0.0.1:7070", "http://localhost:1/"] {
            assert!(Client::new(good, "54e9ujn", "key").is_ok(), "{good}");
        }
        for bad in [
            "http://api.prelude.dev",
            "ftp://localhost",
            "api.prelude.dev",
        ] {
            let refused = Client::new(bad, "54e9ujn", "key");
            assert!(matches!(refused, Err(Error::Url(_))), "{bad}");
        }
        let refused = Client::new(API_URL, "54e9ujn", "two\nlines");
        assert!(matches!(refused, Err(Error::Key)));
    }

    #[test]
    fn the_types_of_this_api_begin_with_those_that_it_has_always_taken() {
        let types: Vec<&str> = event_types().collect();
        assert_eq!(types.len(), 9);
        assert!(!types.iter().any(|known| is_of_verify_or_notify(known)));
        assert!(is_of_verify_or_notify("verify.attempt"));
        let long_known = &types[..LONG_KNOWN_TYPES];
        assert!(long_known.iter().all(|known| known.starts_with("user.")));
        assert_eq!(
            types[LONG_KNOWN_TYPES..],
            ["step_up.hook_failed", "migration.hook_failed"]
        );
    }

    #[test]
    fn a_client_does_not_show_its_key_and_cannot_leave_its_app() {
        let client = Client::new(API_URL, "a/../b", "hunter2").unwrap();
        assert!(!format!("{client:?}").contains("hunter2"));
        assert_eq!(
            client.base,
            "https://api.prelude.dev/v2/session/apps/a%2F..%2Fb/webhooks"
        );
    }

    #[test]
    fn a_refusal_is_read_in_every_plausible_form() {
        let documented = br#"{"code":"bad_request","status":400,"message":"no"}"#;
        let nested = br#"{"error":{"code":"bad_request","message":"no"}}"#;
        for answer in [&documented[..], nested] {
            assert_eq!(refusal(400, answer).to_string(), "400 bad_request: no");
        }
        let whole =
            br#"{"code":"c","message":"no","type":"t","param":"events","request_id":"req_1"}"#;
        assert_eq!(
            refusal(400, whole).to_string(),
            "400 c: no (type t, param events, request_id req_1)"
        );
        // The id of the request is beside the error, not in it.
        let beside = br#"{"error":{"code":7,"message":"no"},"request_id":"req_2"}"#;
        assert_eq!(
            refusal(500, beside).to_string(),
            "500 7: no (request_id req_2)"
        );
        assert_eq!(
            refusal(502, b"<h1>Bad</h1>").to_string(),
            "502: <h1>Bad</h1>"
        );
        assert_eq!(refusal(403, b"").to_string(), "403");
        let long = refusal(500, "é".repeat(9_999).as_bytes());
        assert_eq!(long.message.chars().count(), MESSAGE_CHARS_MAX);
        let long = format!(r#"{{"message":"no","request_id":"{}"}}"#, "r".repeat(9_999));
        let request_id = refusal(500, long.as_bytes()).request_id.unwrap();
        assert_eq!(request_id.len(), MEMBER_CHARS_MAX);
    }

    #[test]
    fn only_a_refusal_of_what_is_in_a_call_may_be_about_events() {
        let refused = |status, param: Option<&str>| {
            ApiRefusal {
                status,
                param: param.map(str::to_owned),
                ..ApiRefusal::default()
            }
            .may_be_about_events()
        };
        for param in [None, Some("events"), Some("events[7]"), Some("event")] {
            assert!(refused(400, param) && refused(422, param), "{param:?}");
        }
        assert!(!refused(400, Some("url")));
        for status in [401, 403, 404, 409, 429, 500, 503] {
            assert!(!refused(status, None), "{status}");
        }
    }

    #[test]
    fn a_webhook_is_known_by_its_id_whatever_else_is_missing() {
        let webhook: Webhook = serde_json::from_str(r#"{"id":"web_1","more":1}"#).unwrap();
        assert_eq!((webhook.id.as_str(), webhook.active), ("web_1", false));
    }
}
