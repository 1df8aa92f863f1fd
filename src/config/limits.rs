//! The settings that bound what anybody may take, each with its default and the reason for it.

use std::time::Duration;

use super::{resolver::Resolver, seconds, units::ByteSize};

/// Limits of the webhook port, which strangers can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebhookLimits {
    /// Bytes of a body. Default 1 MiB: some two thousand events, far above any batch.
    pub body_bytes_max: ByteSize,
    /// Bytes of all bodies that are in memory at once; beyond it the sender is told to come back.
    /// Default 64 MiB. A body counts by what has arrived, from its first bytes to its answer.
    pub bodies_bytes_max: ByteSize,
    /// Of these, bytes of the bodies of one IPv4 address or one IPv6 /64. Default 16 MiB: three
    /// thousand usual batches at once, and one stranger cannot take them all.
    pub bodies_bytes_per_address_max: ByteSize,
    /// Deliveries that are being verified at once; others wait their turn. Default 1,024: so a
    /// flood of forged ones does not keep genuine ones from their answer. Those that wait for newer
    /// keys do not count meanwhile.
    pub verifications_max: usize,
    /// Forged deliveries that are verified at once, after a time without any. Default 100: whoever
    /// sets a sender up and tries wrong keys is never kept waiting.
    pub forgeries_at_once: usize,
    /// Forged deliveries that are verified in a second after that; the others wait. Default 500: some
    /// hundredths of a core, whatever they do. Large bodies, large keys and several keys count for more.
    pub forgeries_per_second: usize,
    /// Connections in all. Default 10,000: at most 160 MiB of header buffers.
    pub connections_max: usize,
    /// Connections of one address; those of `trusted_proxies` have no limit of their own. Default
    /// 256: one stranger cannot take them all.
    pub connections_per_address_max: usize,
    /// From a connection's first byte, or the last answer, to the end of a header. Default 5 s.
    pub header_timeout: Duration,
    /// Headers of a request. Default 64: a delivery has about ten.
    pub headers_max: usize,
    /// Bytes of a request's header. Default 16 KiB.
    pub header_bytes_max: ByteSize,
    /// Bytes of a request that are neither header nor body: the sizes of chunks. Default 64 KiB, and
    /// eight more for each byte of the body, so that chunks may be as small as they like.
    pub framing_bytes_max: ByteSize,
    /// From the end of the header to the end of the body. Default 5 s: a batch is a few packets, and
    /// three seconds are left for what comes after.
    pub body_timeout: Duration,
    /// Everything from the header to the answer. Default 8 s, so that the sender's 10 s never run
    /// out on an answer that is on its way.
    pub request_timeout: Duration,
    /// How long a client may refuse to take an answer. Default 8 s: an answer is one packet, and
    /// only who sends requests without reading answers gets here.
    pub write_timeout: Duration,
}

/// Limits of the gRPC port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcLimits {
    /// Connections in all. Default 10,000: as many as streams, for clients that open one each.
    pub connections_max: usize,
    /// Connections of one address; those of `grpc_proxies` have no limit of their own. Default a
    /// quarter of all: nobody takes them all from one address.
    pub connections_per_address_max: usize,
    /// How long a connection may take to show a credential, where there are credentials. Default
    /// 60 s: subscribers show theirs at once, and probes come back.
    pub credential_timeout: Duration,
    /// How long a connection may stay on which nothing is called. Default 15 min: clients that are
    /// still there connect again at their next call, without an error.
    pub idle_timeout: Duration,
    /// Streams of one connection. Default 100, HTTP/2's own recommendation.
    pub streams_per_connection_max: usize,
    /// Streams in all. Default 10,000: under half a GiB when all are idle.
    pub streams_max: usize,
    /// Streams of one address whose callers show no credential; those of `grpc_proxies` have no
    /// limit of their own. Default a quarter of all.
    pub streams_per_address_max: usize,
    /// Calls in progress that are neither subscriptions nor about the health. Default 1,024: they
    /// are short.
    pub calls_max: usize,
    /// Those of one address; `grpc_proxies` have no limit of their own. Default a quarter of all.
    pub calls_per_address_max: usize,
    /// Checks of the health in progress. Default 1,024. A check is answered as soon as it is there,
    /// and one that does not come whole makes room for the next: no check is refused for want of
    /// room.
    pub checks_max: usize,
    /// Watches on the health, which anybody may begin. Default 4,096: some clients open one for
    /// each connection.
    pub watches_max: usize,
    /// Those of one address; `grpc_proxies` have no limit of their own. Default a quarter of all.
    pub watches_per_address_max: usize,
    /// Resets of streams that a connection may cause the server to send before it is closed.
    /// Default 128: a client that errs does so now and then, not a hundred times
    /// (RUSTSEC-2024-0003).
    pub local_error_resets_max: usize,
    /// Streams that a client has reset before the server looked at them, at once. Default 20: more
    /// is an attack (rapid reset, CVE-2023-44487).
    pub pending_accept_resets_max: usize,
    /// From the first byte of a connection to the end of its HTTP/2 preface, and of a request's
    /// header to its message. Default 5 s.
    pub header_timeout: Duration,
    /// Bytes of a request's headers. Default 16 KiB: room for a large token.
    pub header_bytes_max: ByteSize,
    /// Bytes of a request's message. Default 64 KiB: room for a filter of a thousand users.
    pub request_bytes_max: ByteSize,
    /// How often a quiet connection is asked whether it is still there. Default 30 s: below the
    /// idle timeouts of common proxies.
    pub ping_interval: Duration,
    /// How long it may take to answer that. Default 20 s.
    pub ping_timeout: Duration,
    /// Bytes of events gathered into one response. Default 256 KiB: past that larger messages
    /// gain nothing. An event above it travels alone.
    pub response_bytes_max: ByteSize,
    /// Bytes of a connection's responses that wait for its socket, whatever windows its client
    /// opened. Default 1 MiB: four of the largest usual responses keep a socket busy.
    pub unsent_bytes_max: ByteSize,
    /// Bytes written to a client that pay for one frame of its own. Default 32: the shortest frame
    /// of a stream has 70, and a client has two or three to say to it.
    pub frame_cost_bytes: ByteSize,
    /// Frames that a client has by itself in a second. Default 1,000: three hundred calls, or their
    /// cancellation.
    pub frames_per_second: usize,
    /// Frames that a new connection begins with. Default 10,000: all its streams and their settings
    /// many times over.
    pub frames_at_first: usize,
    /// Frames that can be saved up. Default 100,000: what was written yesterday pays for no flood
    /// today.
    pub frames_saved_max: usize,
    /// How long a client may leave its stream unread before it is ended, with its cursor.
    /// Default 60 s.
    pub slow_consumer_timeout: Duration,
    /// Over how long the clients of a bridge that drains are told to spread their return, each at
    /// a time of its own. Default 5 s: they do not come all at once, and none waits long.
    pub drain_retry_spread: Duration,
}

/// Limits of the events held in memory for live subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusLimits {
    /// Bytes of the newest events, shared by all subscribers. Default 64 MiB: over a minute at a
    /// thousand events a second. Whoever is further behind reads from the log.
    pub window_bytes_max: ByteSize,
}

/// Limits of what waits to be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Batches waiting for the writer; beyond it the sender is told to come back. Default 1,024:
    /// more than the writer takes in the time a request has.
    pub queue_batches_max: usize,
    /// Bytes of the batches waiting. Default 64 MiB: small batches are bounded by their number,
    /// large ones by this.
    pub queue_bytes_max: ByteSize,
}

/// Limits of what refusals may fill the log with, on the ports that strangers may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalLimits {
    /// Lines of one kind in a row. Default 100: a morning's worth of scanners, and each attempt of
    /// somebody who sets a client up.
    pub lines_at_once: usize,
    /// After that, one line in this time, with the number of those left out. Default 100 ms.
    pub line_interval: Duration,
}

pub(super) fn webhook(take: &mut Resolver<'_>) -> WebhookLimits {
    WebhookLimits {
        body_bytes_max: take.take_in(
            "limits.webhook.body_bytes_max",
            ByteSize::mib(1),
            ByteSize::kib(1)..=ByteSize::mib(64),
        ),
        bodies_bytes_max: take.take_in(
            "limits.webhook.bodies_bytes_max",
            ByteSize::mib(64),
            ByteSize::mib(1)..=ByteSize::gib(1 << 10),
        ),
        bodies_bytes_per_address_max: take.take_in(
            "limits.webhook.bodies_bytes_per_address_max",
            ByteSize::mib(16),
            ByteSize::mib(1)..=ByteSize::gib(1 << 10),
        ),
        verifications_max: take.take_in("limits.webhook.verifications_max", 1024, COUNTS),
        forgeries_at_once: take.take_in("limits.webhook.forgeries_at_once", 100, COUNTS),
        forgeries_per_second: take.take_in("limits.webhook.forgeries_per_second", 500, COUNTS),
        connections_max: take.take_in("limits.webhook.connections_max", 10_000, COUNTS),
        connections_per_address_max: take.take_in(
            "limits.webhook.connections_per_address_max",
            256,
            COUNTS,
        ),
        header_timeout: take.take_in("limits.webhook.header_timeout", seconds(5), REQUEST_TIMES),
        headers_max: take.take_in("limits.webhook.headers_max", 64, 16..=1_000),
        header_bytes_max: take.take_in(
            "limits.webhook.header_bytes_max",
            ByteSize::kib(16),
            // The HTTP library takes no smaller buffer.
            ByteSize::kib(8)..=ByteSize::mib(1),
        ),
        framing_bytes_max: take.take_in(
            "limits.webhook.framing_bytes_max",
            ByteSize::kib(64),
            ByteSize::kib(1)..=ByteSize::mib(64),
        ),
        body_timeout: take.take_in("limits.webhook.body_timeout", seconds(5), REQUEST_TIMES),
        request_timeout: take.take_in("limits.webhook.request_timeout", seconds(8), REQUEST_TIMES),
        write_timeout: take.take_in("limits.webhook.write_timeout", seconds(8), HEADER_TIMES),
    }
}

pub(super) fn grpc(take: &mut Resolver<'_>) -> GrpcLimits {
    let connections_max = take.take_in("limits.grpc.connections_max", 10_000, COUNTS);
    let streams_max = take.take_in("limits.grpc.streams_max", 10_000, COUNTS);
    let calls_max = take.take_in("limits.grpc.calls_max", 1024, COUNTS);
    let watches_max = take.take_in("limits.grpc.watches_max", 4096, COUNTS);
    let mut share = |key, all| take.take_in(key, share_of(all), COUNTS);
    let connections_per_address_max =
        share("limits.grpc.connections_per_address_max", connections_max);
    let streams_per_address_max = share("limits.grpc.streams_per_address_max", streams_max);
    let calls_per_address_max = share("limits.grpc.calls_per_address_max", calls_max);
    let watches_per_address_max = share("limits.grpc.watches_per_address_max", watches_max);
    GrpcLimits {
        connections_max,
        connections_per_address_max,
        credential_timeout: take.take_in(
            "limits.grpc.credential_timeout",
            seconds(60),
            STREAM_TIMES,
        ),
        idle_timeout: take.take_in("limits.grpc.idle_timeout", seconds(900), IDLE_TIMES),
        streams_per_connection_max: take.take_in(
            "limits.grpc.streams_per_connection_max",
            100,
            COUNTS,
        ),
        streams_max,
        streams_per_address_max,
        calls_max,
        calls_per_address_max,
        checks_max: take.take_in("limits.grpc.checks_max", 1024, COUNTS),
        watches_max,
        watches_per_address_max,
        local_error_resets_max: take.take_in("limits.grpc.local_error_resets_max", 128, COUNTS),
        pending_accept_resets_max: take.take_in(
            "limits.grpc.pending_accept_resets_max",
            20,
            COUNTS,
        ),
        header_timeout: take.take_in("limits.grpc.header_timeout", seconds(5), HEADER_TIMES),
        header_bytes_max: take.take_in(
            "limits.grpc.header_bytes_max",
            ByteSize::kib(16),
            ByteSize::kib(1)..=ByteSize::mib(1),
        ),
        request_bytes_max: take.take_in(
            "limits.grpc.request_bytes_max",
            ByteSize::kib(64),
            ByteSize::kib(1)..=ByteSize::mib(4),
        ),
        ping_interval: take.take_in("limits.grpc.ping_interval", seconds(30), STREAM_TIMES),
        ping_timeout: take.take_in("limits.grpc.ping_timeout", seconds(20), STREAM_TIMES),
        response_bytes_max: take.take_in(
            "limits.grpc.response_bytes_max",
            ByteSize::kib(256),
            // Clients refuse messages above 4 MiB unless they are told not to.
            ByteSize::kib(1)..=ByteSize::mib(3),
        ),
        unsent_bytes_max: take.take_in(
            "limits.grpc.unsent_bytes_max",
            ByteSize::mib(1),
            ByteSize::kib(64)..=ByteSize::gib(1),
        ),
        frame_cost_bytes: take.take_in(
            "limits.grpc.frame_cost_bytes",
            ByteSize(32),
            ByteSize(1)..=ByteSize::kib(1),
        ),
        frames_per_second: take.take_in("limits.grpc.frames_per_second", 1_000, COUNTS),
        frames_at_first: take.take_in("limits.grpc.frames_at_first", 10_000, COUNTS),
        frames_saved_max: take.take_in("limits.grpc.frames_saved_max", 100_000, COUNTS),
        slow_consumer_timeout: take.take_in(
            "limits.grpc.slow_consumer_timeout",
            seconds(60),
            STREAM_TIMES,
        ),
        drain_retry_spread: take.take_in(
            "limits.grpc.drain_retry_spread",
            seconds(5),
            seconds(0)..=seconds(600),
        ),
    }
}

pub(super) fn bus(take: &mut Resolver<'_>) -> BusLimits {
    BusLimits {
        window_bytes_max: take.take_in(
            "limits.bus.window_bytes_max",
            ByteSize::mib(64),
            ByteSize::mib(1)..=ByteSize::gib(1 << 10),
        ),
    }
}

pub(super) fn log(take: &mut Resolver<'_>) -> LogLimits {
    LogLimits {
        queue_batches_max: take.take_in("limits.log.queue_batches_max", 1024, COUNTS),
        queue_bytes_max: take.take_in(
            "limits.log.queue_bytes_max",
            ByteSize::mib(64),
            ByteSize::mib(1)..=ByteSize::gib(1 << 10),
        ),
    }
}

pub(super) fn refusals(take: &mut Resolver<'_>) -> RefusalLimits {
    RefusalLimits {
        lines_at_once: take.take_in("limits.refusals.lines_at_once", 100, COUNTS),
        line_interval: take.take_in(
            "limits.refusals.line_interval",
            Duration::from_millis(100),
            Duration::from_millis(1)..=seconds(3600),
        ),
    }
}

/// What one address gets of everything by default: so that it takes four to fill a port.
fn share_of(all: usize) -> usize {
    (all / 4).max(1)
}

/// Counts of things; the upper end only catches slips of the keyboard.
const COUNTS: std::ops::RangeInclusive<usize> = 1..=10_000_000;
/// Below the 10 s that the sender waits.
const REQUEST_TIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_millis(9_500);
/// Long enough for a bad network, short enough that silent sockets cost nothing.
const HEADER_TIMES: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=seconds(60);
const STREAM_TIMES: std::ops::RangeInclusive<Duration> = seconds(1)..=seconds(3600);
/// A week is as good as never.
const IDLE_TIMES: std::ops::RangeInclusive<Duration> = seconds(1)..=seconds(7 * 24 * 3600);
