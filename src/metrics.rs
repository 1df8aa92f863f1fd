//! Owns what the bridge counts and every name it counts under, so that a dashboard has one file to
//! agree with. It comes first because every room may count; it knows none of them: what it is told
//! are plain numbers and short, fixed words.
//!
//! Labels never have values that a stranger chose: event types are those of signed events that are words,
//! up to a number, and `other`; the other labels are words of the code, ids of configured apps, or names
//! of the credentials file. So the number of series is bounded.

mod by_type;
mod families;
mod reasons;
mod text;
mod watched;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use self::{
    families::{
        Connections, DoubtLabels, Events, ListenerLabel, LogWrites, PayloadIssueLabels,
        ReasonLabel, RefusedLabels, RequestLabels, StreamWrites, Webhook,
    },
    watched::Watched,
};
pub use self::{
    reasons::{Closure, ConnectionRefusal, Eviction, Handshake},
    watched::{Bus, CredentialExpiry, Keys, Log, Streams},
};

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

    /// A request on the webhook port was answered: its outcome (the error's code, or the name of the
    /// success), its status, and the time since its header was read.
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

    /// Batches of a configured app that may not be what they seem, for this reason.
    pub fn doubtful_batches(&self, app: &str, reason: &'static str, count: u64) {
        let labels = DoubtLabels {
            app: app.to_owned(),
            reason,
        };
        let counter = self.webhook.doubtful_batches.get_or_create(&labels);
        counter.inc_by(count);
    }

    /// Starts the counters of these event types at zero.
    pub fn expect_types(&self, event_types: impl IntoIterator<Item = &'static str>) {
        for event_type in event_types {
            self.events.received.start(event_type);
        }
    }

    /// An event of a verified batch was decoded.
    pub fn event_received(&self, event_type: &str) {
        self.events.received.count(event_type);
    }

    /// The payload of an event, whose type is known, has no message or one that is not exact.
    pub fn payload_issue(&self, event_type: &str, issue: &'static str) {
        let labels = PayloadIssueLabels {
            r#type: event_type.to_owned(),
            issue,
        };
        self.events.payload_issues.get_or_create(&labels).inc();
    }

    /// A batch became durable: how many of its events were new, how many the log had already, and how
    /// many of these with another content.
    pub fn batch_appended(&self, accepted: usize, duplicates: usize, changed: usize) {
        self.events.accepted.inc_by(accepted as u64);
        self.events.duplicates.inc_by(duplicates as u64);
        self.events.changed.inc_by(changed as u64);
    }

    /// The log committed a group of batches.
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

    /// A subscriber's stream ended, for this reason.
    pub fn stream_ended(&self, reason: &'static str) {
        self.streams
            .ended
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// A listener accepted a connection; it counts as open until the result is dropped.
    #[must_use]
    pub fn connection_opened(&self, listener: &'static str) -> OpenConnection {
        let label = ListenerLabel { listener };
        self.connections.accepted.get_or_create(&label).inc();
        let open = self.connections.open.get_or_create_owned(&label);
        open.inc();
        OpenConnection { open }
    }

    /// A connection of a subscriber has as many streams as it may; it counts until the result is dropped.
    #[must_use]
    pub fn connection_full(&self) -> OpenConnection {
        let open = self.connections.full.clone();
        open.inc();
        OpenConnection { open }
    }

    /// A listener refused a connection.
    pub fn connection_refused(&self, listener: &'static str, refusal: ConnectionRefusal) {
        let reason = refusal.reason();
        self.connections
            .refused
            .get_or_create(&RefusedLabels { listener, reason })
            .inc();
    }

    /// A listener's connection was closed because of what its client did or did not do, or for its age.
    pub fn connection_closed(&self, listener: &'static str, closure: Closure) {
        let reason = closure.reason();
        self.connections
            .closed
            .get_or_create(&RefusedLabels { listener, reason })
            .inc();
    }

    /// A listener's connection was closed so that a new one gets its slot.
    pub fn connection_evicted(&self, listener: &'static str, eviction: Eviction) {
        let reason = eviction.reason();
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

    /// A client of a listener did not complete the TLS handshake.
    pub fn handshake_failed(&self, listener: &'static str, failure: Handshake) {
        let reason = failure.reason();
        self.connections
            .handshake_failures
            .get_or_create(&RefusedLabels { listener, reason })
            .inc();
    }

    /// A TLS handshake has to wait for its turn.
    pub fn handshake_delayed(&self, listener: &'static str) {
        let label = ListenerLabel { listener };
        self.connections
            .handshakes_delayed
            .get_or_create(&label)
            .inc();
    }

    /// A listener uses a new certificate, which is valid until `not_after`, in seconds since the Unix
    /// epoch.
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

    /// Reads when credentials expire at every scrape; see [`Metrics::watch_log`].
    pub fn watch_credentials(
        &self,
        read: impl Fn() -> Vec<CredentialExpiry> + Send + Sync + 'static,
    ) {
        let _ = self.watched.credentials.set(Box::new(read));
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

/// The values are on the metrics page, so debug output leaves them out.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::IdsUsage;

    #[test]
    fn what_the_ids_take_is_on_the_page_where_it_is_limited() {
        let usage = IdsUsage {
            bytes: 5,
            bytes_max: 8,
            bytes_expected: 6,
            forgotten_early: 2,
            forgotten: 5,
        };
        for ids in [None, Some(usage)] {
            let metrics = Metrics::new();
            metrics.watch_log(move || Log {
                ids,
                ..Log::default()
            });
            let page = metrics.render();
            for line in [
                "prelude_bridge_log_ids_bytes 5.0",
                "prelude_bridge_log_ids_limit_bytes 8.0",
                "prelude_bridge_log_ids_expected_bytes 6.0",
                "prelude_bridge_ids_forgotten_early_total 2",
            ] {
                let is_there = page.lines().any(|there| there == line);
                assert_eq!(is_there, ids.is_some(), "{line}\n{page}");
            }
        }
    }

    #[test]
    fn credentials_have_one_series_for_each_name() {
        let metrics = Metrics::new();
        let expiry = |credential: &str, expires_at| CredentialExpiry {
            credential: credential.to_owned(),
            expires_at,
        };
        metrics.watch_credentials(move || {
            vec![
                expiry("a", 1_900_000_000.0),
                expiry("(withheld)", 1_800_000_000.0),
                expiry("(withheld)", 1_700_000_000.0),
            ]
        });
        let page = metrics.render();
        for sample in [
            "{credential=\"a\"} 1900000000.0",
            "{credential=\"(withheld)\"} 1700000000.0",
        ] {
            let line = format!("prelude_bridge_credential_expiry_seconds{sample}\n");
            assert!(page.contains(&line), "{page}");
        }
        assert_eq!(page.matches("credential_expiry_seconds{").count(), 2);
    }

    #[test]
    fn a_log_that_catches_up_with_its_store_is_on_the_page() {
        let metrics = Metrics::new();
        metrics.watch_log(|| Log {
            commits_behind: 6,
            ..Log::default()
        });
        let page = metrics.render();
        for line in [
            "prelude_bridge_log_ready 0.0",
            "prelude_bridge_log_commits_behind 6.0",
        ] {
            assert!(page.contains(line), "{line}: {page}");
        }
    }

    #[test]
    fn what_is_counted_is_on_the_page_with_its_unit() {
        let metrics = Metrics::new();
        metrics.request("accepted", 200, Duration::from_millis(3));
        metrics.verification_failed("mismatch");
        metrics.body_read(450);
        metrics.batch_appended(3, 2, 1);
        metrics.committed(3, 900, Duration::from_micros(400));
        metrics.delivered(5, 1000);
        metrics.stream_ended("draining");
        metrics.connection_refused("webhook", ConnectionRefusal::AddressFull);
        metrics.connection_closed("grpc", Closure::Flood);
        metrics.handshake_failed("webhook", Handshake::NotTls);
        metrics.handshake_delayed("webhook");
        metrics.certificate_used("grpc", 1_800_000_000.0);
        let open = metrics.connection_opened("webhook");
        metrics.watch_log(|| Log {
            stored_bytes: 77,
            queued_batches: 4,
            clock_jumps: 3,
            damaged_ranges: 1,
            damaged_events: 12,
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
            "prelude_bridge_events_changed_total 1",
            "prelude_bridge_log_commit_duration_seconds_count 1",
            "prelude_bridge_log_commit_bytes_sum 900.0",
            "prelude_bridge_log_stored_bytes 77.0",
            "prelude_bridge_log_queue_batches 4.0",
            "prelude_bridge_clock_jumps_total 3",
            "prelude_bridge_log_damaged_ranges 1.0",
            "prelude_bridge_log_damaged_events 12.0",
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
            r#"prelude_bridge_tls_handshakes_delayed_total{listener="webhook"} 1"#,
            r#"prelude_bridge_tls_certificate_expiry_seconds{listener="grpc"} 1800000000.0"#,
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
        drop(open);
        let line = r#"prelude_bridge_connections_open{listener="webhook"} 0"#;
        assert!(metrics.render().lines().any(|there| there == line));
    }

    #[test]
    fn every_event_type_is_counted_and_an_expected_one_from_zero() {
        let metrics = Metrics::new();
        metrics.expect_types(["user.created", "user.deleted"]);
        for event_type in ["user.created", "order.paid", "order.paid"] {
            metrics.event_received(event_type);
        }
        let page = metrics.render();
        for (event_type, count) in [
            ("user.created", 1),
            ("user.deleted", 0),
            ("order.paid", 2),
            ("other", 0),
        ] {
            let line =
                format!(r#"prelude_bridge_events_received_total{{type="{event_type}"}} {count}"#);
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
    }

    #[test]
    fn what_is_no_name_of_a_type_is_counted_as_other() {
        let metrics = Metrics::new();
        let long = format!("a.{}", "b".repeat(64));
        let others = [
            "",
            "word",
            "a..b",
            ".a",
            "a.",
            "User.Created",
            "a.b c",
            "a.é",
            "a.b@example.com",
            "sms.33612345678",
            "a.\"}",
            &long,
        ];
        for other in others {
            metrics.event_received(other);
        }
        let page = metrics.render();
        let series: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("prelude_bridge_events_received_total{"))
            .collect();
        let other = format!(
            r#"prelude_bridge_events_received_total{{type="other"}} {}"#,
            others.len()
        );
        assert_eq!(series, [other]);
    }

    #[test]
    fn there_is_a_largest_number_of_counted_types() {
        let metrics = Metrics::new();
        metrics.expect_types(["user.created"]);
        // Names of letters only: long numbers are not counted.
        let letter = |index: usize| char::from(b'a' + u8::try_from(index % 26).unwrap());
        let name = |index: usize| format!("type.{}{}", letter(index / 26), letter(index));
        for index in 0..by_type::NEW_TYPES_MAX + 3 {
            metrics.event_received(&name(index));
        }
        metrics.event_received("user.created");
        metrics.event_received(&name(0));
        let page = metrics.render();
        let lines = page.lines();
        let series = lines.filter(|line| line.starts_with("prelude_bridge_events_received_total{"));
        assert_eq!(series.count(), by_type::NEW_TYPES_MAX + 2);
        assert!(page.contains(r#"events_received_total{type="other"} 3"#));
        assert!(page.contains(r#"events_received_total{type="type.aa"} 2"#));
    }

    #[test]
    fn payload_issues_are_counted_by_type_and_issue() {
        let metrics = Metrics::new();
        metrics.payload_issue("user.created", "wrong_shape");
        let line = r#"event_payload_issues_total{type="user.created",issue="wrong_shape"} 1"#;
        assert!(metrics.render().contains(line));
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
