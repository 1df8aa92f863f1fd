//! The settings of retention, and those that bound what anybody may take.

use std::{ops::RangeInclusive, time::Duration};

use super::{days, macros::settings, seconds, units::ByteSize};
use crate::{
    event::{ID_BYTES_MAX, TYPE_BYTES_MAX},
    filter,
    log::embedded,
};

/// Counts of things; the upper end only catches typing errors.
pub(super) const COUNTS: RangeInclusive<usize> = 1..=10_000_000;
pub(super) const COUNTS_U32: RangeInclusive<u32> = 1..=10_000_000;
const COUNTS_U64: RangeInclusive<u64> = 1..=10_000_000;
const MILLISECONDS_100: Duration = Duration::from_millis(100);
/// Below the 10 s that the sender waits.
const REQUEST_TIMES: RangeInclusive<Duration> = MILLISECONDS_100..=Duration::from_millis(9_500);
/// Long enough for a bad network, short enough that silent sockets cost nothing.
const HEADER_TIMES: RangeInclusive<Duration> = MILLISECONDS_100..=seconds(60);
const STREAM_TIMES: RangeInclusive<Duration> = seconds(1)..=seconds(3600);
/// For connections between two requests.
const KEPT_TIMES: RangeInclusive<Duration> = MILLISECONDS_100..=seconds(3600);
/// A week is as good as never.
const IDLE_TIMES: RangeInclusive<Duration> = seconds(1)..=days(7);
/// What buffers may take of memory; the upper end only catches typing errors.
const BUFFERS: RangeInclusive<ByteSize> = ByteSize::mib(1)..=ByteSize::gib(1 << 10);
/// Parts of these may be smaller.
const KIBIBYTES: RangeInclusive<ByteSize> = ByteSize::kib(1)..=ByteSize::gib(1 << 10);

/// Room for the largest request that the contract allows: the entries of its filter, three bytes before each,
/// and 2 KiB for everything else.
const REQUEST_BYTES: ByteSize = {
    let types = 2 * (TYPE_BYTES_MAX + "=".len());
    let entries = types + filter::ENTRY_BYTES_MAX + ID_BYTES_MAX + 4 * 3;
    let bytes = filter::ENTRIES_MAX * entries + 2048;
    ByteSize::kib(bytes.div_ceil(8 << 10) as u64 * 8)
};
/// Room for the largest filter in memory.
const FILTER_BYTES: ByteSize = ByteSize::kib(512);

settings! {
    /// How long events are kept. Whichever limit is reached first, the oldest events are removed.
    pub struct Retention in "retention" {
        /// Events older than this are removed. By the monotonic clock: a wrong wall clock removes
        /// nothing. The default is twice as long as the sender retries.
        age_max: Duration = embedded::Options::default().retention_age, in days(1)..=days(36_500);

        /// The oldest events are removed while they occupy more than this. Ids are not counted. The
        /// default holds some twenty million events.
        bytes_max: ByteSize = ByteSize(embedded::Options::default().retention_bytes),
            in ByteSize::mib(1)..=ByteSize::gib(1 << 20);

        /// How long the ids of events are remembered, whatever happens to the events. The sender
        /// retries for two weeks, and a retry must not become a new event.
        id_age_min: Duration = embedded::Options::default().ids_age, in days(15)..=days(36_500);

        /// What the ids may occupy, about a fifteenth of it in memory too. The bridge warns from half of
        /// it on, and when it will be reached at the present rate. When it is reached, the oldest ids
        /// are forgotten before their time, but none of the last day: events are not refused. The
        /// default is for 180 events a second.
        id_bytes_max: ByteSize = ByteSize(embedded::Options::default().ids_bytes),
            in ByteSize::mib(64)..=ByteSize::gib(1 << 20);
    }
}

settings! {
    /// The webhook port, which strangers can reach.
    pub struct WebhookLimits in "limits.webhook" {
        /// Bytes of a body; a larger one is refused with 413. A batch of two thousand events fits.
        body_bytes_max: ByteSize = ByteSize::mib(1), in ByteSize::kib(1)..=ByteSize::mib(64);

        /// Bytes of all bodies in memory at once, each by what has arrived of it. Whoever sends
        /// slowest is refused when others wait; if nobody is slow, the sender is told to come back
        /// (429). A quarter is for bodies up to 64 KiB alone.
        bodies_bytes_max: ByteSize = ByteSize::mib(64), in BUFFERS;

        /// Of these, bytes of the bodies of one IPv4 address or one IPv6 /64: three thousand usual
        /// batches at once, and one stranger cannot take them all. Behind a trusted proxy the address
        /// counts that the proxy names; a proxy that names none may have all.
        bodies_bytes_per_address_max: ByteSize = ByteSize::mib(16), in BUFFERS;

        /// Deliveries that are verified at once; others wait. It bounds how long a genuine one waits
        /// behind a flood of forged ones. One that waits for newer keys does not count.
        verifications_max: usize = 1_024, in COUNTS;

        /// Forged deliveries that are verified at once, after a time without any. Whoever sets a
        /// sender up and tries wrong keys is never kept waiting.
        forgeries_at_once: u32 = 100, in COUNTS_U32;

        /// Forged deliveries that are verified in a second after that. The others wait, before they
        /// are verified (a second at most, and not where the address last sent something genuine) and
        /// for their 401, on a connection that meanwhile sends nothing else: so a flood of them costs
        /// some hundredths of a core. A large body, a larger key than 2048 bits, or several keys count
        /// for more.
        forgeries_per_second: u32 = 500, in COUNTS_U32;

        /// Connections in all, at 20 KiB of headers each. Beyond that, a new one takes the slot of one that
        /// has sent nothing genuine: the oldest of the address that has most of them. One in sixteen is
        /// kept for addresses that have sent something genuine before.
        connections_max: usize = 10_000, in COUNTS;

        /// Connections of one address (of an IPv6 /64), so that one stranger cannot take them all. All
        /// those of a network that have sent nothing genuine have four times as many (an IPv4 /24 or an
        /// IPv6 /48) or sixteen times (a /16 or a /32). It does not hold for `trusted_proxies`.
        connections_per_address_max: usize = 256, in COUNTS;

        /// From the first byte of a request to the end of its header; for the first one from the beginning of
        /// the connection.
        header_timeout: Duration = seconds(5), in REQUEST_TIMES;

        /// How long a connection is kept open after an answer. Longer than the proxy in front of the bridge
        /// keeps one without requests: else the proxy may send a request on a connection that the bridge
        /// is just closing, and answers its client with 502. Many proxies keep them for 60 s. When the
        /// connections are used up, one that was idle for `header_timeout` makes room for a new one.
        idle_timeout: Duration = seconds(75), in KEPT_TIMES;

        /// Headers of a request. A delivery has about ten.
        headers_max: usize = 64, in 16..=1_000;

        /// Bytes of all headers of a request together. The HTTP library takes no smaller buffer than
        /// 8 KiB.
        header_bytes_max: ByteSize = ByteSize::kib(16), in ByteSize::kib(8)..=ByteSize::mib(1);

        /// Bytes of a request that are neither header nor body: the sizes of chunks. What the header leaves
        /// of `header_bytes_max` may be used for them too, and each byte of the body allows for eight more,
        /// so chunks may be as small as the sender likes.
        framing_bytes_max: ByteSize = ByteSize::kib(64), in ByteSize::kib(1)..=ByteSize::mib(64);

        /// From the end of the header to the end of the body. A batch is a few packets, and three
        /// seconds are left for what comes after.
        body_timeout: Duration = seconds(5), in REQUEST_TIMES;

        /// From the end of the header to the answer. Prelude waits 10 s, and an answer has to travel.
        request_timeout: Duration = seconds(8), in REQUEST_TIMES;

        /// How long a client may refuse to take an answer, which is one packet.
        write_timeout: Duration = seconds(8), in HEADER_TIMES;
    }
}

settings! {
    /// The gRPC port.
    pub struct GrpcLimits in "limits.grpc" {
        /// Connections in all: as many as streams, for clients that open one each.
        connections_max: usize = 10_000, in COUNTS;

        /// Connections of one IPv4 address, or one IPv6 /64. Default: a quarter of `connections_max`. Those of
        /// a network that have shown no credential may be four times as many (an IPv4 /24 or an IPv6 /48) or
        /// sixteen times (a /16 or a /32). It does not apply to `grpc_proxies`. At a limit, a new connection
        /// takes the slot of one that has shown no credential: the oldest of the address that has most of
        /// them. It is refused only if all others have shown one. One slot in sixteen is kept for addresses
        /// that have shown one before. If no credentials are configured, any call but a health check counts.
        connections_per_address_max: usize = quarter(connections_max), in COUNTS;

        /// Connections on which one credential was shown. Default: a quarter of
        /// `connections_max`. A credential's `connections_max` in the credentials file comes first.
        connections_per_credential_max: usize = quarter(connections_max), in COUNTS;

        /// How long a connection may take to show a credential, where there are credentials: then it is
        /// closed. Probes of the health need none and connect again.
        credential_timeout: Duration = seconds(60), in STREAM_TIMES;

        /// How long a connection stays on which nothing is called. Clients are told (GOAWAY) and connect
        /// again at their next call.
        idle_timeout: Duration = seconds(900), in IDLE_TIMES;

        /// Streams of one connection; HTTP/2's own recommendation.
        streams_per_connection_max: u32 = 100, in COUNTS_U32;

        /// Streams in all. Ten thousand idle ones take less than half a GiB.
        streams_max: usize = 10_000, in COUNTS;

        /// Streams of one credential. Default: a quarter of `streams_max`. A credential's
        /// `streams_max` in the credentials file, and `jwt.streams_max`, come first.
        streams_per_credential_max: usize = quarter(streams_max), in COUNTS;

        /// Bytes of memory that the filters of all streams take, and the requests that have not come whole
        /// yet. Filters below 1 KiB are not counted; the largest that the contract allows takes 500 KiB.
        filters_bytes_max: ByteSize = ByteSize::mib(64), in ByteSize::mib(2)..=ByteSize::gib(1 << 10);

        /// Of these, bytes of one credential. Default: a quarter. The least has room for the largest filter.
        filters_bytes_per_credential_max: ByteSize = quarter_bytes(filters_bytes_max),
            in FILTER_BYTES..=ByteSize::gib(1 << 10);

        /// Streams that have blocks of the log in memory at once, while they catch up: each up to 3 MiB, and
        /// for no longer than one response takes, or a client that does not read is given. Others wait for
        /// their turn.
        history_streams_max: usize = 64, in COUNTS;

        /// Streams of one address whose callers show no credential. Default: a quarter of
        /// `streams_max`. Those with a credential have the quota of that.
        streams_per_address_max: usize = quarter(streams_max), in COUNTS;

        /// Calls in progress that are neither subscriptions nor about the health. A call with a credential
        /// takes the slot of one without.
        calls_max: usize = 1_024, in COUNTS;

        /// Such calls of one address. Default: a quarter of `calls_max`.
        calls_per_address_max: usize = quarter(calls_max), in COUNTS;

        /// Checks of the health in progress. None is refused for want of room: they are answered at once,
        /// and the oldest that does not come whole makes room.
        checks_max: usize = 1_024, in COUNTS;

        /// Watches on the health, which anybody may begin. Where there is no room, the oldest without a
        /// credential on its connection ends.
        watches_max: usize = 4_096, in COUNTS;

        /// Such watches of one address. Default: a quarter of `watches_max`.
        watches_per_address_max: usize = quarter(watches_max), in COUNTS;

        /// Streams of a connection that the server may have to reset for the client's errors, before the
        /// connection is closed. A flood of them is a known attack (RUSTSEC-2024-0003).
        local_error_resets_max: usize = 128, in COUNTS;

        /// Streams of a connection that the client may reset before the server has looked at them, before
        /// the connection is closed. More is a known attack (rapid reset, CVE-2023-44487).
        pending_accept_resets_max: usize = 20, in COUNTS;

        /// From the first byte of a connection to the end of its HTTP/2 preface, and of a request's header
        /// to its message.
        header_timeout: Duration = seconds(5), in HEADER_TIMES;

        /// Bytes of the headers of a request, with 32 for each header, as HTTP/2 counts them. Room for a
        /// large token. A request with more, up to twice as many, gets a gRPC status, beyond that the
        /// HTTP status 431, as over HTTP/1.1.
        header_bytes_max: ByteSize = ByteSize::kib(16), in ByteSize::kib(1)..=ByteSize::mib(1);

        /// Bytes of the message of a request, also when it is decompressed. The least has room for the
        /// largest filter that the contract allows: 256 entries in each of four fields, types of 257 bytes, apps
        /// of 256, users of 1,024. It is for subscriptions; other requests have at most 4 KiB.
        request_bytes_max: ByteSize = ByteSize(REQUEST_BYTES.0.next_power_of_two()),
            in REQUEST_BYTES..=ByteSize::mib(4);

        /// How often a quiet connection is asked whether it is still there. Below the idle timeouts of
        /// common proxies.
        ping_interval: Duration = seconds(30), in STREAM_TIMES;

        /// How long it may take to answer that, before it counts as gone.
        ping_timeout: Duration = seconds(20), in STREAM_TIMES;

        /// Bytes of events gathered into one response. Larger responses gain nothing; an event above it
        /// travels alone. Clients refuse messages above 4 MiB unless they are told not to.
        response_bytes_max: ByteSize = ByteSize::kib(256), in ByteSize::kib(1)..=ByteSize::mib(3);

        /// Bytes of memory that a connection's responses take while they wait for its socket, with the
        /// blocks that they are in, whatever windows its client opened. Four of the largest usual responses
        /// keep a socket busy.
        unsent_bytes_max: ByteSize = ByteSize::mib(1), in ByteSize::kib(64)..=ByteSize::gib(1);

        /// The same of all connections together, but never less than 2 KiB for each of `connections_max`.
        /// Half of it is divided among all the connections that there may be, so that each goes on. The
        /// other half is for connections that need more. When it is short, connections that do not read are
        /// closed, first those that have held most of it for longest.
        unsent_total_bytes_max: ByteSize = ByteSize::mib(256), in BUFFERS;

        /// Of the other half, bytes of the connections of one credential. Default: half of that
        /// half. A credential's `unsent_bytes_max` in the credentials file comes
        /// first.
        unsent_bytes_per_credential_max: ByteSize = quarter_bytes(unsent_total_bytes_max), in KIBIBYTES;

        /// Bytes written to a client that pay for one frame of its own. The shortest frame of a stream has
        /// 70, and a client has two or three to say to it.
        frame_cost_bytes: ByteSize = ByteSize(32), in ByteSize(1)..=ByteSize::kib(1);

        /// Frames that a client has by itself in a second: three hundred calls, or their cancellation.
        frames_per_second: u64 = 1_000, in COUNTS_U64;

        /// Frames that a new connection begins with: all its streams and their settings many times over.
        frames_at_first: u64 = 10_000, in COUNTS_U64;

        /// Frames that can be saved up: what was written yesterday pays for no flood today.
        frames_saved_max: u64 = 100_000, in COUNTS_U64;

        /// How long a client may leave its stream unread before the stream is ended, with its cursor. In
        /// this time it has to take something of the message that waits for it.
        slow_consumer_timeout: Duration = seconds(60), in STREAM_TIMES;

        /// How long a stream may last, so that subscribers spread over several bridges again: 0 means for ever,
        /// otherwise at least 1 s. A stream ends at a random time after four fifths of it, as in a drain: with
        /// the notice `Draining`, its cursor and UNAVAILABLE, and its client goes on where it was. Before that,
        /// after three to four fifths of it, a connection takes no new calls (GOAWAY), so that the client
        /// opens another one, which a load balancer or the client itself may direct elsewhere. The default is
        /// for a single bridge; with several, 30 minutes are a good value.
        stream_age_max: Duration = seconds(0), in seconds(0)..=days(7);

        /// Over how long the clients of a bridge that drains are told to spread their return, so that they
        /// do not come all at once.
        drain_retry_spread: Duration = seconds(5), in seconds(0)..=seconds(600);
    }
}

settings! {
    /// The admin port. Its callers show no credential, so a new connection always takes the slot of the
    /// oldest where a limit is reached: a probe is never kept out by connections that are left open.
    pub struct AdminLimits in "limits.admin" {
        /// Connections in all: for probes, scrapers and people.
        connections_max: usize = 1_024, in COUNTS;

        /// Connections of one address (of an IPv6 /64; see `limits.webhook` for larger networks). Default: a
        /// quarter of `connections_max`.
        connections_per_address_max: usize = quarter(connections_max), in COUNTS;
    }
}

settings! {
    /// The newest events, held in memory once for all subscribers.
    pub struct BusLimits in "limits.bus" {
        /// Bytes of these events: over a minute at a thousand events a second. Whoever is further behind
        /// reads from the log.
        window_bytes_max: ByteSize = ByteSize::mib(64), in BUFFERS;
    }
}

settings! {
    /// The log: batches waiting to be made durable, beyond either limit of which the sender is told to come
    /// back (503), and the check in the background.
    pub struct LogLimits in "limits.log" {
        /// Batches waiting; it bounds small ones. More than the writer takes in the time that a request
        /// has.
        queue_batches_max: usize = embedded::Options::default().queue_batches_max, in COUNTS;

        /// Bytes of the batches waiting; it bounds large ones.
        queue_bytes_max: ByteSize = ByteSize(embedded::Options::default().queue_bytes_max as u64),
            in BUFFERS;

        /// How many bytes of stored events are checked for damage in a second, in the background; more if a
        /// pass would take longer than a week (above 590 GiB). 0 turns the check off; events that are read
        /// are always checked.
        scrub_bytes_per_second: ByteSize = ByteSize(embedded::Options::default().scrub_bytes_per_second),
            in ByteSize(0)..=ByteSize::mib(1024);
    }
}

settings! {
    /// Log lines about refusals, on the webhook and on the gRPC port: so strangers cannot fill the disk
    /// with them. All are counted in the metrics whatever is written.
    pub struct RefusalLimits in "limits.refusals" {
        /// Lines of one kind in a row: a morning's worth of scanners, and each attempt of somebody who sets
        /// a client up.
        lines_at_once: u32 = 100, in COUNTS_U32;

        /// After that, one line in this time, which says how many were left out.
        line_interval: Duration = MILLISECONDS_100, in Duration::from_millis(1)..=seconds(3600);
    }
}

fn quarter_bytes(all: ByteSize) -> ByteSize {
    ByteSize(all.0 / 4)
}

/// What one address gets of everything by default, so that it takes four to fill a port.
fn quarter(all: usize) -> usize {
    (all / 4).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_filter_has_room_where_limits_are_as_low_as_they_may_be() {
        let entries = |bytes: usize| -> Vec<String> {
            let rest = "x".repeat(bytes - 4);
            let entries = 0..filter::ENTRIES_MAX;
            entries.map(|at| format!("={at:03}{rest}")).collect()
        };
        let largest = filter::Spec {
            types: entries(TYPE_BYTES_MAX + 1),
            exclude_types: entries(TYPE_BYTES_MAX + 1),
            app_ids: entries(filter::ENTRY_BYTES_MAX),
            user_ids: entries(ID_BYTES_MAX),
        };
        let bytes = filter::Filter::compile(&largest).unwrap().memory_bytes();
        assert!(bytes as u64 <= FILTER_BYTES.0, "{bytes}");
        assert_eq!(REQUEST_BYTES, ByteSize::kib(456));
    }
}
