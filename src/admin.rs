//! Owns the admin port: whether the process is up (`/healthz`), whether it can receive and serve events
//! (`/readyz`), and its metrics (`/metrics`). It reads the state of other parts and changes nothing.
//! Only [`Readiness`] defines what "ready" means.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warp::{Filter, filters::path::FullPath, reply::Response};

use crate::{
    credentials::Credentials,
    log::{Damaged, Health, IdsUsage, Log},
    metrics::Metrics,
    net::{
        self,
        fields::{self, MediaType},
        http1::{self, Fault},
    },
    rate::Bucket,
    signature::Keyring,
};

/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How often the metrics are written out in a second, in each format: many times as often as anybody scrapes
/// them. Whoever asks more often gets what was written last, less than 50 ms ago.
const PAGES_PER_SECOND: u64 = 20;

/// How many damaged ranges a warning names.
const DAMAGED_RANGES_NAMED_MAX: usize = 8;

/// Whether a bridge can receive and serve events: the log can append, every app has a key, and the
/// bridge is not shutting down.
#[derive(Clone)]
pub struct Readiness {
    log: Arc<dyn Log>,
    keyrings: Arc<[Keyring]>,
    draining: CancellationToken,
    credentials: Option<Credentials>,
}

impl Readiness {
    /// The readiness of a bridge with this log and these apps' keys, until `draining` is cancelled.
    #[must_use]
    pub fn new(log: Arc<dyn Log>, keyrings: &[Keyring], draining: CancellationToken) -> Self {
        Self {
            log,
            keyrings: keyrings.into(),
            draining,
            credentials: None,
        }
    }

    /// Reports on these credentials too.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Each requirement that is not met, as a phrase; empty if the bridge is ready.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let checks = self.checks().into_iter();
        let faults = checks.filter_map(|check| {
            let fault = check.fault?;
            Some(match check.app {
                Some(app) => format!("{} of {app}: {fault}", check.name),
                None => format!("{}: {fault}", check.name),
            })
        });
        faults.collect()
    }

    /// Waits until nothing is missing. `false` if the bridge shuts down first.
    pub async fn reached(&self) -> bool {
        let all_met = async {
            while !self.missing().is_empty() {
                for keyring in &*self.keyrings {
                    keyring.usable().await;
                }
                let appends = |health: &Health| health.refusal().is_none();
                if !appends(&self.log.status().health_where(appends).await) {
                    // The log is closed, and nothing changes that.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.draining.cancelled() => false,
            () = all_met => true,
        }
    }

    /// Each requirement, and why it is not met.
    fn checks(&self) -> Vec<Check> {
        let status = self.log.status();
        // The bridge still accepts deliveries, and serves all other events.
        let mut checks = vec![Check {
            name: "log",
            app: None,
            fault: log_fault(&status.health()),
            warning: damage(&status.damaged()),
        }];
        checks.extend(self.log.usage().ids.map(|ids| Check {
            name: "ids",
            app: None,
            fault: None,
            warning: ids_warning(&ids),
        }));
        checks.extend(self.keyrings.iter().map(|keyring| Check {
            name: "keys",
            app: Some(keyring.app_id().to_owned()),
            fault: (!keyring.is_usable()).then(|| "no usable key is known yet".to_owned()),
            warning: None,
        }));
        // The bridge still accepts deliveries, and must: the sender gives up after two weeks.
        checks.extend(self.credentials.as_ref().map(|credentials| Check {
            name: "credentials",
            app: None,
            fault: None,
            warning: credentials.warning(),
        }));
        let draining = self.draining.is_cancelled();
        checks.push(Check {
            name: "serving",
            app: None,
            fault: draining.then(|| "the bridge is shutting down".to_owned()),
            warning: None,
        });
        checks
    }
}

/// Why the log takes no events, and what becomes of it or has to be done.
fn log_fault(health: &Health) -> Option<String> {
    let remedy = match health {
        Health::Ready => return None,
        Health::CatchingUp(catch_up) => {
            return Some(format!(
                "it is catching up with the store, {catch_up}: it takes events, by itself, when it has them all"
            ));
        }
        Health::Full => "free some space: it then continues by itself",
        Health::Unavailable { .. } => {
            "check the servers of the store and the network to them: it continues by itself when they \
             answer"
        }
        Health::Failed { .. } => "the process ends, and says more in its log",
        Health::Closed => "the process ends",
    };
    let refusal = health.refusal()?;
    Some(format!("{refusal}; {remedy}"))
}

/// What the operator has to do before ids are forgotten before their time.
fn ids_warning(ids: &IdsUsage) -> Option<String> {
    let [used, limit, expected] =
        [ids.bytes, ids.bytes_max, ids.bytes_expected].map(|bytes| bytes >> 20);
    ids.is_tight().then(|| {
        format!(
            "the ids take {used} of {limit} MiB, and {expected} MiB at the present rate: above the \
             limit the oldest are forgotten early; raise retention.id_bytes_max"
        )
    })
}

impl fmt::Debug for Readiness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Readiness")
            .field("keyrings", &self.keyrings)
            .finish_non_exhaustive()
    }
}

/// The service behind the admin port.
#[derive(Clone)]
pub struct Admin {
    /// The limits of its connections.
    pub limits: net::Limits,
    metrics: Arc<Metrics>,
    pages: Arc<[Page; 2]>,
    readiness: Readiness,
}

/// The metrics in one format.
struct Page {
    content_type: &'static str,
    render: fn(&Metrics) -> String,
    written: Mutex<(Bucket, Bytes)>,
}

impl Page {
    fn new(content_type: &'static str, render: fn(&Metrics) -> String) -> Self {
        let second = Duration::from_secs(1);
        let bucket = Bucket::new(PAGES_PER_SECOND, second, PAGES_PER_SECOND, Instant::now());
        Self {
            content_type,
            render,
            written: Mutex::new((bucket, Bytes::new())),
        }
    }

    /// The metrics as they are, or as they were a moment ago.
    fn read(&self, metrics: &Metrics) -> Bytes {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, page) = &mut *written;
        if bucket.take(1, Instant::now()) {
            *page = (self.render)(metrics).into();
        }
        page.clone()
    }
}

impl Admin {
    /// Serves these metrics and this readiness.
    #[must_use]
    pub fn new(limits: net::Limits, metrics: Arc<Metrics>, readiness: Readiness) -> Self {
        Self {
            limits,
            metrics,
            pages: Arc::new([
                Page::new(PROMETHEUS_TEXT, Metrics::render),
                Page::new(OPEN_METRICS, Metrics::render_open_metrics),
            ]),
            readiness,
        }
    }

    /// Serves the port until `shutdown` is cancelled. That should be later than `draining`, so that
    /// `/readyz` answers while the bridge drains.
    pub async fn run(self, listener: net::Listener, shutdown: CancellationToken) -> net::Drained {
        let (limits, metrics) = (self.limits, Arc::clone(&self.metrics));
        let service = warp::service(routes(self));
        let stopping = shutdown.clone();
        let connection = http1::Limits::default();
        listener
            .run(limits, metrics, shutdown, move |stream, peer| {
                http1::serve(stream, peer, connection, service.clone(), stopping.clone())
            })
            .await
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Admin")
            .field("limits", &self.limits)
            .field("readiness", &self.readiness)
            .finish_non_exhaustive()
    }
}

/// One line of `/readyz`.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    /// `null` if the requirement is met.
    fault: Option<String>,
    /// What the operator has to correct although the bridge is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// Names the damaged events, if there are any.
pub(crate) fn damage(ranges: &[Damaged]) -> Option<String> {
    if ranges.is_empty() {
        return None;
    }
    let named = ranges.iter().take(DAMAGED_RANGES_NAMED_MAX);
    let named: Vec<String> = named.map(ToString::to_string).collect();
    let verb = match ranges {
        [only] => only.verb(),
        _ => "are",
    };
    let more = match ranges.len().saturating_sub(DAMAGED_RANGES_NAMED_MAX) {
        0 => String::new(),
        1 => ", and one more range".to_owned(),
        more => format!(", and {more} more ranges"),
    };
    Some(format!(
        "{}{more} {verb} damaged on the disk: subscribers that come to them end with LOG_DAMAGED or skip \
         them; `prelude-bridge log check` names the files",
        named.join(", ")
    ))
}

fn routes(admin: Admin) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let request = warp::path::full()
        .and(warp::method())
        .and(warp::header::headers_cloned());
    request.and(warp::ext::optional()).map(
        move |path: FullPath, method: Method, headers: HeaderMap, fault: Option<Fault>| match fault
        {
            Some(fault) => malformed(fault),
            None => answer(&admin, path.as_str(), &method, &headers),
        },
    )
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

fn answer(admin: &Admin, path: &str, method: &Method, headers: &HeaderMap) -> Response {
    let path = percent_decode_str(path).decode_utf8_lossy();
    let page = path.strip_prefix('/').unwrap_or_default();
    let page = page.strip_suffix('/').unwrap_or(page);
    let is_page = matches!(page, "healthz" | "readyz" | "metrics");
    match *method {
        Method::OPTIONS if is_page || path == "*" => {
            let mut options = Response::default();
            *options.status_mut() = StatusCode::NO_CONTENT;
            options.headers_mut().insert(header::ALLOW, METHODS);
            return options;
        }
        _ if !is_page => return not_found(),
        // hyper leaves the body of an answer to HEAD out.
        Method::GET | Method::HEAD => {}
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE | Method::TRACE => {
            let message = "this page can only be read";
            let status = StatusCode::METHOD_NOT_ALLOWED;
            let mut refusal = error(status, "method_not_allowed", message);
            refusal.headers_mut().insert(header::ALLOW, METHODS);
            return refusal;
        }
        _ => {
            let message = "this method is not one of HTTP's own";
            return error(StatusCode::NOT_IMPLEMENTED, "method_unknown", message);
        }
    }
    match page {
        "healthz" => json_response(StatusCode::OK, &json!({ "status": "up" })),
        "readyz" => {
            let checks = admin.readiness.checks();
            let ready = checks.iter().all(|check| check.fault.is_none());
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            json_response(status, &json!({ "ready": ready, "checks": checks }))
        }
        _ => {
            let [text, open_metrics] = &*admin.pages;
            let page = if prefers_open_metrics(headers) {
                open_metrics
            } else {
                text
            };
            let mut response = response(StatusCode::OK, page.content_type, String::new());
            *response.body_mut() = page.read(&admin.metrics).into();
            let accept = HeaderValue::from_static("accept");
            response.headers_mut().insert(header::VARY, accept);
            response
        }
    }
}

/// Whether a client that can read both formats of the metrics would rather have the newer one: by its
/// weight, and if both have the same, by its name (RFC 9110 section 12.5.1).
fn prefers_open_metrics(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter();
    let ranges = lines.filter_map(|line| fields::media_types(line.as_bytes()));
    let ranges: Vec<MediaType> = ranges.flatten().collect();
    // The most specific range that fits counts.
    let weight = |names: [&str; 2]| {
        let fitting = names.iter().find_map(|name| {
            let mut fitting = ranges.iter().filter(|range| range.essence == *name);
            fitting.next().map(quality)
        });
        fitting.or_else(|| {
            ranges
                .iter()
                .find(|range| range.essence == "*/*")
                .map(quality)
        })
    };
    let open_metrics = weight(["application/openmetrics-text", "application/*"]).unwrap_or(0.0);
    let text = weight(["text/plain", "text/*"]).unwrap_or(0.0);
    let is_named = ranges
        .iter()
        .any(|range| range.essence == "application/openmetrics-text");
    open_metrics > text || (is_named && open_metrics > 0.0 && open_metrics >= text)
}

/// The weight of a media range: 1 without a valid one.
fn quality(range: &MediaType) -> f32 {
    let weight = range
        .parameters
        .iter()
        .find(|parameter| parameter.name == "q");
    let weight = weight.and_then(|weight| str::from_utf8(&weight.value).ok()?.parse().ok());
    weight
        .filter(|weight| (0.0..=1.0).contains(weight))
        .unwrap_or(1.0)
}

/// The answer to a message that breaks a rule of HTTP.
fn malformed(fault: Fault) -> Response {
    let mut refusal = error(fault.status(), fault.code(), &fault.to_string());
    if fault.is_retryable() {
        let body = json!({ "error": {
            "code": fault.code(), "message": fault.to_string(), "retryable": true
        } });
        refusal = json_response(fault.status(), &body);
        refusal
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(1));
    }
    refusal
}

fn not_found() -> Response {
    let message = "the pages here are /healthz, /readyz and /metrics";
    error(StatusCode::NOT_FOUND, "path_unknown", message)
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let error = json!({ "code": code, "message": message, "retryable": false });
    json_response(status, &json!({ "error": error }))
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    response(status, "application/json", body.to_string())
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests;
