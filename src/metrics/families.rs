//! Owns the metrics, grouped by subject, each with its name and help, and their labels.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::by_type::ByType;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) outcome: &'static str,
    pub(super) status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DoubtLabels {
    pub(super) app: String,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ListenerLabel {
    pub(super) listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusedLabels {
    pub(super) listener: &'static str,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PayloadIssueLabels {
    pub(super) r#type: String,
    pub(super) issue: &'static str,
}

pub(super) struct Webhook {
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) durations: Histogram,
    pub(super) body_bytes: Counter,
    pub(super) verification_failures: Family<ReasonLabel, Counter>,
    pub(super) doubtful_batches: Family<DoubtLabels, Counter>,
}

impl Webhook {
    pub(super) fn register(registry: &mut Registry) -> Self {
        // 100 µs to 13 s: a request takes little longer than its verification, the deadline is 8 s.
        let durations = Histogram::new(exponential_buckets(0.000_1, 2.0, 18));
        let these = Self {
            requests: Family::default(),
            durations,
            body_bytes: Counter::default(),
            verification_failures: Family::default(),
            doubtful_batches: Family::default(),
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
        registry.register(
            "webhook_doubtful_batches",
            "Signed batches that were refused because of their age, or accepted though they may be repetitions, by app and reason",
            these.doubtful_batches.clone(),
        );
        these
    }
}

pub(super) struct Events {
    pub(super) received: ByType,
    pub(super) payload_issues: Family<PayloadIssueLabels, Counter>,
    pub(super) accepted: Counter,
    pub(super) duplicates: Counter,
    pub(super) changed: Counter,
}

impl Events {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let these = Self {
            received: ByType::register(
                registry,
                "events_received",
                "Events of verified batches by type, repetitions included",
            ),
            payload_issues: Family::default(),
            accepted: Counter::default(),
            duplicates: Counter::default(),
            changed: Counter::default(),
        };
        registry.register(
            "event_payload_issues",
            "Events of a known type whose payload has no message or one that is not exact, by type and issue",
            these.payload_issues.clone(),
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
        registry.register(
            "events_changed",
            "Of the events that the log had already, those that came with another content, which is dropped",
            these.changed.clone(),
        );
        these
    }
}

pub(super) struct LogWrites {
    pub(super) events: Histogram,
    pub(super) bytes: Histogram,
    pub(super) durations: Histogram,
}

impl LogWrites {
    pub(super) fn register(registry: &mut Registry) -> Self {
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

pub(super) struct StreamWrites {
    pub(super) events: Counter,
    pub(super) responses: Counter,
    pub(super) bytes: Counter,
    pub(super) ended: Family<ReasonLabel, Counter>,
}

impl StreamWrites {
    pub(super) fn register(registry: &mut Registry) -> Self {
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

pub(super) struct Connections {
    pub(super) open: Family<ListenerLabel, Gauge>,
    pub(super) full: Gauge,
    pub(super) accepted: Family<ListenerLabel, Counter>,
    pub(super) refused: Family<RefusedLabels, Counter>,
    pub(super) closed: Family<RefusedLabels, Counter>,
    pub(super) accept_errors: Family<ListenerLabel, Counter>,
    pub(super) handshake_failures: Family<RefusedLabels, Counter>,
    pub(super) handshakes_delayed: Family<ListenerLabel, Counter>,
    pub(super) certificate_expiry: Family<ListenerLabel, Gauge<f64, AtomicU64>>,
}

impl Connections {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let these = Self {
            open: Family::default(),
            full: Gauge::default(),
            accepted: Family::default(),
            refused: Family::default(),
            closed: Family::default(),
            accept_errors: Family::default(),
            handshake_failures: Family::default(),
            handshakes_delayed: Family::default(),
            certificate_expiry: Family::default(),
        };
        registry.register(
            "connections_open",
            "Open connections by listener",
            these.open.clone(),
        );
        registry.register(
            "grpc_connections_at_stream_limit",
            "Connections on the gRPC port that have all the streams they may: further calls wait in their clients",
            these.full.clone(),
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
            "Connections that were closed for what their clients did or did not do, or for their age, by listener and reason",
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
        registry.register(
            "tls_handshakes_delayed",
            "TLS handshakes that waited for their turn, by listener",
            these.handshakes_delayed.clone(),
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
