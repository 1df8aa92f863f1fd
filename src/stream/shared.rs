//! Owns what all streams of a server have in common: the log, the bus, the limits, and the list of
//! the streams that are open.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    Caller, Options, calls::Calls, pace::Pace, registry::Registry, status::Failure, tenure,
};
use crate::{
    bus::Bus,
    credentials::Credentials,
    event::{Cursor, Sequence},
    log::{self, Log, ReadError},
    metrics::Metrics,
    net::quiet::{Admitted, Quiet},
};

/// What every stream needs.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) credentials: Credentials,
    pub(super) log: Arc<dyn Log>,
    pub(super) bus: Arc<Bus>,
    pub(super) registry: Arc<Registry>,
    /// The slots of calls.
    pub(super) calls: Calls,
    pub(super) pace: Pace,
    /// Which refusals are still said in the log.
    pub(super) quiet: Quiet,
    /// Cancelled when the server begins to drain.
    pub(super) draining: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        options: Options,
        credentials: Credentials,
        log: Arc<dyn Log>,
        bus: Arc<Bus>,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Arc<Self> {
        let registry = Arc::new(Registry::new(options.streams_max, metrics));
        Arc::new(Self {
            calls: Calls::new(&options),
            quiet: Quiet::new(options.quiet),
            options,
            credentials,
            log,
            bus,
            registry,
            pace: Pace::default(),
            draining,
        })
    }

    /// The ends of the log. A block is on the bus a moment before the log's range has it, and a
    /// client that was quick may already have its cursor.
    pub(super) fn range(&self) -> log::Range {
        let mut range = self.log.range();
        range.head = range.head.max(self.bus.head());
        range
    }

    /// Checks that a cursor belongs to the log.
    pub(super) fn check(
        &self,
        field: &'static str,
        cursor: Cursor,
        range: &log::Range,
    ) -> Result<Sequence, Failure> {
        let epochs = self.log.status().epochs();
        epochs
            .check(cursor, range.head)
            .map_err(|fault| Failure::CursorForeign {
                field,
                fault,
                head: epochs.cursor(range.head),
            })
    }

    /// How long connections may stay.
    pub(super) fn timeouts(&self) -> tenure::Timeouts {
        tenure::Timeouts {
            credential: self.options.credential_timeout,
            idle: self.options.idle_timeout,
        }
    }

    /// The same as [`Shared::refused`] for a call of whoever is on that connection.
    pub(super) fn refused_call(&self, caller: Option<&Caller>, failure: &Failure) {
        let peer = caller.map(|caller| caller.address.to_string());
        self.refused(Refused::Call, peer.as_deref(), failure);
    }

    /// Counts a call that is answered with a failure, and says so in the log, unless that was said
    /// often of late.
    pub(super) fn refused(&self, what: Refused, peer: Option<&str>, failure: &Failure) {
        let reason = failure.reason();
        self.registry.refused(reason);
        let Some(Admitted { unlogged }) = self.quiet.admit(reason) else {
            return;
        };
        match what {
            Refused::Call => tracing::info!(peer, reason, unlogged, "call refused"),
            Refused::Subscription => {
                tracing::info!(peer, reason, unlogged, "subscription refused");
            }
        }
    }

    /// What to answer when the log cannot be read; the operator gets the cause.
    pub(super) fn unreadable(&self, error: &ReadError, cursor: Option<Cursor>) -> Failure {
        match error {
            ReadError::Unavailable(_) => {
                tracing::warn!(%error, "a stream ends because the log is unavailable");
            }
            ReadError::Failed(_) | ReadError::Expired { .. } => {
                tracing::error!(%error, "a stream ends because the log cannot be read");
            }
        }
        Failure::LogUnavailable { cursor }
    }
}

/// What was refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    /// Any call, before anybody looked at what it asks for.
    Call,
    /// A subscription, for what it asks for.
    Subscription,
}

/// Spreads the reconnections of many clients over time, without a random number generator: each
/// call gets the next of a sequence that fills the interval evenly (the golden ratio's multiples).
pub(super) fn spread(over: Duration) -> Duration {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    const GOLDEN_RATIO_64: u64 = 0x9e37_79b9_7f4a_7c15;
    let fraction = CALLS
        .fetch_add(1, Ordering::Relaxed)
        .wrapping_mul(GOLDEN_RATIO_64)
        >> 32;
    let nanos = u64::try_from(over.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(((u128::from(nanos) * u128::from(fraction)) >> 32) as u64)
}
