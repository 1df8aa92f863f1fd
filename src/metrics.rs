//! Owns what the bridge counts and every name it counts under, so that a dashboard has one file to
//! agree with. It comes first because every room may count; it knows none of them: what it is told
//! are plain numbers and short, fixed words.
//!
//! Labels never carry what a stranger chose: event types that are not documented are `other`, and
//! the remaining labels are words of the code or ids of configured apps. So the number of series
//! is bounded.

mod text;
mod watched;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use self::watched::Watched;
pub use self::watched::{Bus, Keys, Log, Streams};

/// The event types that have a series of their own; all others are counted as `other`.
pub const COUNTED_TYPES: [&str; 7] = [
    "user.created",
    "user.deleted",
    "user.profile.updated",
    "user.identifier.created",
    "user.identifier.deleted",
    "user.session.created",
    "user.session.revoked",
];

const OTHER: &str = "other";

/// All metrics of one bridge. Shared; every method is cheap enough for the hot path.
pub struct Metrics {
    registry: Mutex<Registry>,
    webhook: Webhook,
    events: Events,
    log: LogWrites,
    streams: StreamWrites,
    connections: Connections,
    watched: Arc<Watched>,
}

/// Why a connection was turned away at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The listener holds as many as it may.
    Full,
    /// The client's address holds as many as one address may.
    AddressFull,
    /// The client's address is none of those that may connect.
    Source,
}

/// Why a TLS handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The client took too long.
    Timeout,
    /// The client gave up, mostly because it does not trust the certificate, or went away.
    Aborted,
    /// The client's certificate is missing, expired, or of another issuer.
    ClientCertificate,
    /// What the client sent is no TLS, such as HTTP.
    NotTls,
    /// Client and port have no version, cipher or protocol in common, or the client broke the
    /// rules.
    Protocol,
}

impl Handshake {
    fn reason(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Aborted => "aborted",
            Self::ClientCertificate => "client_certificate",
            Self::NotTls => "not_tls",
            Self::Protocol => "protocol",
        }
    }
}

/// Why a connection was closed that its client would have kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closure {
    /// The client did not begin, or did not go on, to ask anything in time.
    Silent,
    /// What it sent was not the protocol, or broke its rules.
    Protocol,
    /// It sent far more than it had reason to.
    Flood,
    /// It did not read what it was sent.
    Unread,
    /// It did not answer a ping.
    Unanswered,
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("prelude_bridge");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The release that is running", build);
        let started = Gauge::<f64, AtomicU64>::default();
        started.set(jiff::Timestamp::now().as_duration().as_secs_f64());
        registry.register_with_unit(
            "start_time",
            "When the process started, since the Unix epoch",
            Unit::Seconds,
            started,
        );
        let watched = Arc::<Watched>::default();
        registry.register_collector(Box::new(Arc::clone(&watched)));
        Self {
            webhook: Webhook::register(&mut registry),
            events: Events::register(&mut registry),
            log: LogWrites::register(&mut registry),
            streams: StreamWrites::register(&mut registry),
            connections: Connections::register(&mut registry),
            registry: Mutex::new(registry),
            watched,
        }
    }

    /// A request on the webhook port was answered: with which outcome (the error's code, or the
    /// name of the success) and status, and how long after its header was read.
    pub fn request(&self, outcome: &'static str, status: u16, took: Duration) {
        self.webhook
            .requests
            .get_or_create(&RequestLabels { outcome, status })
            .inc();
        self.webhook.durations.observe(took.as_secs_f64());
    }

    /// Bytes of a delivery's body were read.
    pub fn body_read(&self, bytes: usize) {
        self.webhook.body_bytes.inc_by(bytes as u64);
    }

    /// A delivery was not verified.
    pub fn verification_failed(&self, reason: &'static str) {
        self.webhook
            .verification_failures
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// An event of a verified batch was decoded.
    pub fn event_received(&self, event_type: &str) {
        let known = COUNTED_TYPES
            .iter()
            .zip(&self.events.received)
            .find(|&(&name, _)| name == event_type);
        match known {
            Some((_, counter)) => counter.inc(),
            None => self.events.received_other.inc(),
        };
    }

    /// A batch became durable: events that were new, and events that the log had already.
    pub fn batch_appended(&self, accepted: usize, duplicates: usize) {
        self.events.accepted.inc_by(accepted as u64);
        self.events.duplicates.inc_by(duplicates as u64);
    }

    /// The log committed a group.
    pub fn committed(&self, events: usize, bytes: usize, took: Duration) {
        self.log.events.observe(events as f64);
        self.log.bytes.observe(bytes as f64);
        self.log.durations.observe(took.as_secs_f64());
    }

    /// A response with events was handed to a subscriber's connection.
    pub fn delivered(&self, events: usize, bytes: usize) {
        self.streams.events.inc_by(events as u64);
        self.streams.responses.inc();
        self.streams.bytes.inc_by(bytes as u64);
    }

    /// A subscriber's stream ended, for a reason that has a name.
    pub fn stream_ended(&self, reason: &'static str) {
        self.streams
            .ended
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// A listener took a connection; it counts as open until the result is dropped.
    #[must_use]
    pub fn connection_opened(&self, listener: &'static str) -> OpenConnection {
        let label = ListenerLabel { listener };
        self.connections.accepted.get_or_create(&label).inc();
        let open = self.connections.open.get_or_create_owned(&label);
        open.inc();
        OpenConnection { open }
    }

    /// A listener turned a connection away.
    pub fn connection_refused(&self, listener: &'static str, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Full => "listener_full",
            Refusal::AddressFull => "address_full",
            Refusal::Source => "source",
        };
        self.connections
            .refused
            .get_or_create(&RefusedLabels { listener, reason })
            .inc();
    }

    /// A listener's connection was closed for what its client did.
    pub fn connection_closed(&self, listener: &'static str, closure: Closure) {
        let reason = match closure {
            Closure::Silent => "silent",
            Closure::Protocol => "protocol_error",
            Closure::Flood => "flood",
            Closure::Unread => "unread",
            Closure::Unanswered => "ping_unanswered",
        };
        self.connections
            .closed
            .get_or_create(&RefusedLabels { listener, reason })
            .inc();
    }

    /// The system could not hand a connection to a listener.
    pub fn accept_failed(&self, listener: &'static str) {
        self.connections
            .accept_errors
            .get_or_create(&ListenerLabel { listener })
            .inc();
    }

    /// A client of a listener did not get through the TLS handshake.
    pub fn handshake_failed(&self, listener: &'static str, failure: Handshake) {
        let reason = failure.reason();
        self.connections
            .handshake_failures
            .get_or_create(&RefusedLabels { listener, reason })
            .inc();
    }

    /// A listener uses a certificate from now on that is valid until then, in seconds since the
    /// Unix epoch.
    pub fn certificate_used(&self, listener: &'static str, not_after: f64) {
        self.connections
            .certificate_expiry
            .get_or_create(&ListenerLabel { listener })
            .set(not_after);
    }

    /// Reads the log at every scrape. The first watch of a kind stays, and lives as long as the
    /// metrics do: it should hold a `Weak`, or what it watches is never dropped.
    pub fn watch_log(&self, read: impl Fn() -> Log + Send + Sync + 'static) {
        let _ = self.watched.log.set(Box::new(read));
    }

    /// Reads the window of the bus at every scrape; see [`Metrics::watch_log`].
    pub fn watch_bus(&self, read: impl Fn() -> Bus + Send + Sync + 'static) {
        let _ = self.watched.bus.set(Box::new(read));
    }

    /// Reads the open streams at every scrape; see [`Metrics::watch_log`].
    pub fn watch_streams(&self, read: impl Fn() -> Streams + Send + Sync + 'static) {
        let _ = self.watched.streams.set(Box::new(read));
    }

    /// Reads the keys of all apps at every scrape; see [`Metrics::watch_log`].
    pub fn watch_keys(&self, read: impl Fn() -> Vec<Keys> + Send + Sync + 'static) {
        let _ = self.watched.keys.set(Box::new(read));
    }

    /// Everything as OpenMetrics 1.0 text, ending in `# EOF`
    /// (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
    #[must_use]
    pub fn render_open_metrics(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut page, &registry);
        page
    }

    /// Everything as Prometheus text, version 0.0.4
    /// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
    #[must_use]
    pub fn render(&self) -> String {
        text::prometheus(&self.render_open_metrics())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The values are on the metrics page; here they would only be noise.
impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// A connection that counts as open.
#[derive(Debug)]
pub struct OpenConnection {
    open: Gauge,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    outcome: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    listener: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

struct Webhook {
    requests: Family<RequestLabels, Counter>,
    durations: Histogram,
    body_bytes: Counter,
    verification_failures: Family<ReasonLabel, Counter>,
}

impl Webhook {
    fn register(registry: &mut Registry) -> Self {
        // 100 µs to 13 s: one request takes little over a signature, the deadline is 8 s.
        let durations = Histogram::new(exponential_buckets(0.000_1, 2.0, 18));
        let these = Self {
            requests: Family::default(),
            durations,
            body_bytes: Counter::default(),
            verification_failures: Family::default(),
        };
        registry.register(
            "webhook_requests",
            "Requests on the webhook port by outcome and status",
            these.requests.clone(),
        );
        registry.register_with_unit(
            "webhook_request_duration",
            "From the end of a request's header to its answer",
            Unit::Seconds,
            these.durations.clone(),
        );
        registry.register_with_unit(
            "webhook_body",
            "Bytes read of deliveries' bodies",
            Unit::Bytes,
            these.body_bytes.clone(),
        );
        registry.register(
            "webhook_verification_failures",
            "Deliveries that were not verified, by reason",
            these.verification_failures.clone(),
        );
        these
    }
}

struct Events {
    received: [Counter; COUNTED_TYPES.len()],
    received_other: Counter,
    accepted: Counter,
    duplicates: Counter,
}

impl Events {
    fn register(registry: &mut Registry) -> Self {
        // All series are there from the start, so that a rate can be taken of the first event.
        let received = Family::<TypeLabel, Counter>::default();
        let of = |r#type| received.get_or_create_owned(&TypeLabel { r#type });
        let these = Self {
            received: COUNTED_TYPES.map(of),
            received_other: of(OTHER),
            accepted: Counter::default(),
            duplicates: Counter::default(),
        };
        registry.register(
            "events_received",
            "Events of verified batches by type, repetitions included",
            received,
        );
        registry.register(
            "events_accepted",
            "Events that were new and are durable",
            these.accepted.clone(),
        );
        registry.register(
            "events_duplicate",
            "Events that the log had already",
            these.duplicates.clone(),
        );
        these
    }
}

struct LogWrites {
    events: Histogram,
    bytes: Histogram,
    durations: Histogram,
}

impl LogWrites {
    fn register(registry: &mut Registry) -> Self {
        let these = Self {
            events: Histogram::new(exponential_buckets(1.0, 2.0, 15)),
            bytes: Histogram::new(exponential_buckets(512.0, 4.0, 10)),
            durations: Histogram::new(exponential_buckets(0.000_05, 2.0, 18)),
        };
        registry.register(
            "log_commit_events",
            "Events of one commit of the log",
            these.events.clone(),
        );
        registry.register_with_unit(
            "log_commit",
            "Size of one commit of the log",
            Unit::Bytes,
            these.bytes.clone(),
        );
        registry.register_with_unit(
            "log_commit_duration",
            "Duration of one commit of the log, flush included",
            Unit::Seconds,
            these.durations.clone(),
        );
        these
    }
}

struct StreamWrites {
    events: Counter,
    responses: Counter,
    bytes: Counter,
    ended: Family<ReasonLabel, Counter>,
}

impl StreamWrites {
    fn register(registry: &mut Registry) -> Self {
        let these = Self {
            events: Counter::default(),
            responses: Counter::default(),
            bytes: Counter::default(),
            ended: Family::default(),
        };
        registry.register(
            "stream_delivered_events",
            "Events handed to subscribers' connections",
            these.events.clone(),
        );
        registry.register(
            "stream_responses",
            "Responses handed to subscribers' connections",
            these.responses.clone(),
        );
        registry.register_with_unit(
            "stream_delivered",
            "Bytes handed to subscribers' connections",
            Unit::Bytes,
            these.bytes.clone(),
        );
        registry.register(
            "streams_ended",
            "Subscribers' streams that ended, by reason",
            these.ended.clone(),
        );
        these
    }
}

struct Connections {
    open: Family<ListenerLabel, Gauge>,
    accepted: Family<ListenerLabel, Counter>,
    refused: Family<RefusedLabels, Counter>,
    closed: Family<RefusedLabels, Counter>,
    accept_errors: Family<ListenerLabel, Counter>,
    handshake_failures: Family<RefusedLabels, Counter>,
    certificate_expiry: Family<ListenerLabel, Gauge<f64, AtomicU64>>,
}

impl Connections {
    fn register(registry: &mut Registry) -> Self {
        let these = Self {
            open: Family::default(),
            accepted: Family::default(),
            refused: Family::default(),
            closed: Family::default(),
            accept_errors: Family::default(),
            handshake_failures: Family::default(),
            certificate_expiry: Family::default(),
        };
        registry.register(
            "connections_open",
            "Open connections by listener",
            these.open.clone(),
        );
        registry.register(
            "connections_accepted",
            "Connections that were taken, by listener",
            these.accepted.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections that were closed at once, by listener and reason",
            these.refused.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that were closed for what their clients did, by listener and reason",
            these.closed.clone(),
        );
        registry.register(
            "connections_accept_errors",
            "Failures of the system to hand over a connection, by listener",
            these.accept_errors.clone(),
        );
        registry.register(
            "tls_handshake_failures",
            "Clients that did not get through the TLS handshake, by listener and reason",
            these.handshake_failures.clone(),
        );
        registry.register_with_unit(
            "tls_certificate_expiry",
            "Until when the certificate in use is valid, since the Unix epoch",
            Unit::Seconds,
            these.certificate_expiry.clone(),
        );
        these
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_on_the_page_with_its_unit() {
        let metrics = Metrics::new();
        metrics.request("accepted", 200, Duration::from_millis(3));
        metrics.verification_failed("mismatch");
        metrics.body_read(450);
        metrics.batch_appended(3, 2);
        metrics.committed(3, 900, Duration::from_micros(400));
        metrics.delivered(5, 1000);
        metrics.stream_ended("draining");
        metrics.connection_refused("webhook", Refusal::AddressFull);
        metrics.connection_closed("grpc", Closure::Flood);
        metrics.handshake_failed("webhook", Handshake::NotTls);
        metrics.certificate_used("grpc", 1_800_000_000.0);
        let open = metrics.connection_opened("webhook");
        metrics.watch_log(|| Log {
            stored_bytes: 77,
            queued_batches: 4,
            clock_jumps: 3,
            ..Log::default()
        });
        metrics.watch_bus(Bus::default);
        metrics.watch_streams(|| Streams {
            subscribers: 9,
            lag_max: Duration::from_millis(1500),
            ..Streams::default()
        });
        metrics.watch_keys(|| {
            vec![Keys {
                app_id: "54e9ujn".into(),
                usable: 2,
                age: Some(Duration::from_secs(60)),
            }]
        });
        let page = metrics.render();
        for line in [
            r#"prelude_bridge_webhook_requests_total{outcome="accepted",status="200"} 1"#,
            "prelude_bridge_webhook_request_duration_seconds_count 1",
            "prelude_bridge_webhook_body_bytes_total 450",
            r#"prelude_bridge_webhook_verification_failures_total{reason="mismatch"} 1"#,
            "prelude_bridge_events_accepted_total 3",
            "prelude_bridge_events_duplicate_total 2",
            "prelude_bridge_log_commit_duration_seconds_count 1",
            "prelude_bridge_log_commit_bytes_sum 900.0",
            "prelude_bridge_log_stored_bytes 77.0",
            "prelude_bridge_log_queue_batches 4.0",
            "prelude_bridge_clock_jumps_total 3",
            "prelude_bridge_stream_delivered_events_total 5",
            "prelude_bridge_stream_delivered_bytes_total 1000",
            r#"prelude_bridge_streams_ended_total{reason="draining"} 1"#,
            "prelude_bridge_subscribers 9.0",
            "prelude_bridge_subscriber_lag_max_seconds 1.5",
            r#"prelude_bridge_keys_usable{app="54e9ujn"} 2"#,
            r#"prelude_bridge_keys_age_seconds{app="54e9ujn"} 60.0"#,
            r#"prelude_bridge_connections_open{listener="webhook"} 1"#,
            r#"prelude_bridge_connections_refused_total{listener="webhook",reason="address_full"} 1"#,
            r#"prelude_bridge_connections_closed_total{listener="grpc",reason="flood"} 1"#,
            r#"prelude_bridge_tls_handshake_failures_total{listener="webhook",reason="not_tls"} 1"#,
            r#"prelude_bridge_tls_certificate_expiry_seconds{listener="grpc"} 1800000000.0"#,
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
        drop(open);
        let line = r#"prelude_bridge_connections_open{listener="webhook"} 0"#;
        assert!(metrics.render().lines().any(|there| there == line));
    }

    #[test]
    fn a_type_that_nobody_documents_makes_no_series() {
        let metrics = Metrics::new();
        metrics.event_received("user.created");
        metrics.event_received("user.of.a.stranger");
        metrics.event_received("");
        let page = metrics.render();
        assert!(page.contains(r#"events_received_total{type="user.created"} 1"#));
        assert!(page.contains(r#"events_received_total{type="other"} 2"#));
        assert!(!page.contains("stranger"));
    }

    #[test]
    fn the_older_format_names_types_as_its_samples_and_every_sample_has_a_type() {
        let page = Metrics::new().render();
        assert!(page.contains("# TYPE prelude_bridge_events_accepted_total counter\n"));
        assert!(page.contains("# HELP prelude_bridge_events_accepted_total Events that"));
        assert!(page.contains("# TYPE prelude_bridge_build_info gauge\n"));
        assert!(!page.contains("# EOF") && !page.contains("# UNIT"));
        let typed: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        for sample in page.lines().filter(|line| !line.starts_with('#')) {
            let name = sample.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            assert!(typed.contains(&name) || typed.contains(&family), "{sample}");
        }
    }

    #[test]
    fn the_newer_format_ends_as_it_must() {
        assert!(Metrics::new().render_open_metrics().ends_with("# EOF\n"));
    }
}
