//! Owns subscriptions: which events a client wants, how far it is, what it is sent next, and why its
//! stream ends. Knows no connections and no statuses: whoever has a connection asks a `Session`
//! what to send, and whoever speaks a protocol says what a `Failure` is in it.

mod cursor;
mod cut_off;
mod failure;
mod notice;
mod pace;
mod permit;
mod plan;
mod registry;
mod response;
mod rest;
mod session;
mod source;
mod start;

use std::{net::SocketAddr, num::NonZero, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::registry::Snapshot;
use self::{cursor::CursorSource, cut_off::Together, pace::Pace, registry::Registry};
pub(crate) use self::{
    failure::Failure,
    permit::{Permit, passed},
    plan::{OnDamaged, OnExpired, Plan, StartAt, StopAt},
    response::Response,
    session::{Session, Step},
    source::Source,
};
use crate::{
    bus::Bus,
    credentials::{CountedFilter, Grant, Quota},
    event::{Cursor, Sequence, UnixMicros},
    log::{self, Log, ReadError},
    metrics::Metrics,
    net::slots::Slot,
    proto,
};

/// Smaller filters are not counted: a stream takes more.
const FREE_FILTER_BYTES: usize = 1024;

/// The share of the maximum age that every stream reaches.
const STREAM_AGE_LEAST: f64 = 0.8;

/// The limits of subscriptions.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many streams may be open in all.
    pub streams_max: usize,
    /// How many streams a credential may have that has no quota of its own.
    pub streams_per_credential_max: usize,
    /// How much memory the filters of all streams may take, in bytes.
    pub filters_bytes_max: usize,
    /// How much of it those of one credential may take.
    pub filters_bytes_per_credential_max: usize,
    /// How many streams may have blocks of the log in memory while they catch up.
    pub history_streams_max: usize,
    /// Over how long the reconnections of all clients are spread when the server drains.
    pub drain_retry_spread: Duration,
    /// How long a stream may last, so that clients spread over several bridges again; zero means for ever.
    pub stream_age_max: Duration,
}

/// A session of a client that keeps its own place in the log.
pub(crate) type CursorSession = Session<CursorSource>;

/// All subscriptions to a log and the bus that follows it.
pub(crate) struct Subscriptions {
    options: Options,
    log: Arc<dyn Log>,
    bus: Arc<Bus>,
    registry: Arc<Registry>,
    pace: Pace,
    /// What all filters together count under.
    filters: Arc<Quota>,
    /// Held by each stream that has blocks of the log in memory.
    history: Arc<Semaphore>,
    /// Held by each stream that looks for events of the past or puts them together, so that whoever has little
    /// to do waits behind as many of those as there are CPUs, and not behind all of them.
    catching_up: Arc<Semaphore>,
    /// Cancelled when the server begins to drain.
    draining: CancellationToken,
    together: Together,
}

impl Subscriptions {
    /// None is open yet. All end when `draining` is cancelled.
    pub(crate) fn new(
        options: Options,
        log: Arc<dyn Log>,
        bus: Arc<Bus>,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Arc<Self> {
        let registry = Arc::new(Registry::new(options.streams_max, metrics));
        let history = options.history_streams_max.min(Semaphore::MAX_PERMITS);
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        Arc::new(Self {
            history: Arc::new(Semaphore::new(history)),
            catching_up: Arc::new(Semaphore::new(cpus)),
            options,
            log,
            bus,
            registry,
            pace: Pace::default(),
            filters: Arc::default(),
            together: Together::new(&draining),
            draining,
        })
    }

    /// Opens a subscription for a caller at `peer` with the credential of this name.
    ///
    /// # Errors
    /// The `Failure` to answer with, before any response.
    pub(crate) async fn open(
        self: &Arc<Self>,
        mut plan: Plan,
        mut permit: Permit,
        peer: Option<SocketAddr>,
        credential: &str,
    ) -> Result<CursorSession, Failure> {
        permit.hold(self.filter(&plan, permit.quota())?);
        let mut registration = self.registry.admit()?;
        let progress_interval = plan.progress_interval;
        let client_name = std::mem::take(&mut plan.client_name);
        let (source, notices) = CursorSource::open(Arc::clone(self), plan).await?;
        registration.opened(source.position(), peer, credential, &client_name);
        Ok(Session::new(
            Arc::clone(self),
            source,
            notices,
            progress_interval,
            permit,
            registration,
        ))
    }

    /// Takes a place for a stream under the quota of its credential, until the deadline of the call if it
    /// has one. A slot that the stream also occupies is given back together with it.
    ///
    /// # Errors
    /// The quota is used up.
    pub(crate) fn permit(
        &self,
        grant: &Grant,
        slot: Option<Slot>,
        deadline: Option<Instant>,
    ) -> Result<Permit, Failure> {
        let is_known = grant.quota().is_some();
        let default_max = if is_known {
            self.options.streams_per_credential_max
        } else {
            usize::MAX
        };
        let limits = permit::Limits {
            streams_max: default_max,
            deadline,
            age: age(self.options.stream_age_max, STREAM_AGE_LEAST),
        };
        Permit::new(grant, slot, limits, self.together.child())
    }

    /// Counts the memory of a filter, in all and for its credential.
    fn filter(
        &self,
        plan: &Plan,
        quota: Option<&Arc<Quota>>,
    ) -> Result<Vec<CountedFilter>, Failure> {
        let bytes = plan.filter.memory_bytes();
        if bytes <= FREE_FILTER_BYTES {
            return Ok(Vec::new());
        }
        self.count(bytes, quota)
    }

    /// Counts the memory of a filter, or of a request that is coming.
    pub(crate) fn count(
        &self,
        bytes: usize,
        quota: Option<&Arc<Quota>>,
    ) -> Result<Vec<CountedFilter>, Failure> {
        let options = &self.options;
        let of_credential = quota.map(|quota| (quota, options.filters_bytes_per_credential_max));
        let of_all = Some((&self.filters, options.filters_bytes_max));
        let counted = [of_credential, of_all].into_iter().flatten();
        let counted = counted.map(|(quota, bytes_max)| quota.filter(bytes, bytes_max));
        counted.collect::<Result<_, _>>().map_err(Failure::Quota)
    }

    /// What can be seen of all streams now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.registry.snapshot(self.bus.head())
    }

    /// The ends of the log, as the contract has them.
    pub(crate) fn log_range(&self) -> proto::LogRange {
        notice::log_range(&self.log.status().epochs(), &self.range())
    }

    /// Why a stream ends that drains: because the server does, because the log knows less than those of other
    /// bridges, or because of its own age.
    pub(crate) fn drained(&self, cursor: Option<Cursor>) -> Failure {
        if !self.draining.is_cancelled() {
            return if self.log.status().health().is_behind() {
                Failure::LogUnavailable { cursor }
            } else {
                Failure::Aged { cursor }
            };
        }
        Failure::Draining {
            retry_after: jitter(self.options.drain_retry_spread),
            cursor,
        }
    }

    /// The ends of the log. A block is on the bus a moment before the log's range has it, and a
    /// client that was quick may already have its cursor.
    fn range(&self) -> log::Range {
        let mut range = self.log.range();
        range.head = range.head.max(self.bus.head());
        range
    }

    /// Until nothing more can come that was received before a time.
    fn settles_within(&self, at: UnixMicros) -> Duration {
        let left = at.0.saturating_sub(self.log.now().0);
        let settling_micros = self.log.settling_time().as_micros();
        let left = left.saturating_add(i64::try_from(settling_micros).unwrap_or(i64::MAX));
        Duration::from_micros(left.try_into().unwrap_or(0))
    }

    /// Checks that a cursor belongs to the log. Whoever goes on from the head instead still does not want what
    /// was received before the time that the start has.
    fn check(
        &self,
        field: &'static str,
        cursor: Cursor,
        not_before: Option<UnixMicros>,
        range: &log::Range,
    ) -> Result<Sequence, Failure> {
        let epochs = self.log.status().epochs();
        epochs
            .check(cursor, range.head)
            .map_err(|fault| Failure::CursorForeign {
                field,
                fault,
                head: Cursor {
                    not_before,
                    ..epochs.cursor(range.head)
                },
            })
    }

    /// What to answer when the log cannot be read; the operator gets the cause.
    fn unreadable(error: &ReadError, cursor: Option<Cursor>) -> Failure {
        match error {
            ReadError::Unavailable(_) => {
                tracing::warn!(%error, "a stream ends because the log is unavailable");
            }
            ReadError::Failed(_) | ReadError::Damaged(_) | ReadError::Expired { .. } => {
                tracing::error!(%error, "a stream ends because the log cannot be read");
            }
        }
        Failure::LogUnavailable { cursor }
    }
}

/// The age that a stream or a connection may reach, where there is a limit: at least this share of it, and up
/// to a fifth of it more, so that those that began together do not end together.
pub(crate) fn age(age_max: Duration, least: f64) -> Option<Duration> {
    let age = || age_max.mul_f64(least) + jitter(age_max / 5);
    (!age_max.is_zero()).then(age)
}

/// A random part of a duration, so that clients that are told to come back do not come together.
fn jitter(over: Duration) -> Duration {
    // Without a source of randomness the middle is as good as anything.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    over.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnections_are_spread_over_the_whole_time_and_no_more() {
        let over = Duration::from_secs(4);
        let quarters = (0..1_000).map(|_| {
            let delay = jitter(over);
            assert!(delay <= over);
            delay.as_millis().min(3_999) / 1_000
        });
        let seen: std::collections::HashSet<u128> = quarters.collect();
        assert_eq!(seen.len(), 4);
        assert_eq!(jitter(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn ages_are_spread_over_the_last_fifth_and_without_a_limit_there_are_none() {
        let age_max = Duration::from_secs(10);
        let tenths = (0..1_000).map(|_| {
            let age = age(age_max, STREAM_AGE_LEAST).unwrap();
            assert!(age >= age_max * 4 / 5 && age <= age_max, "{age:?}");
            age.as_millis().min(9_999) / 500
        });
        let seen: std::collections::HashSet<u128> = tenths.collect();
        assert_eq!(seen.len(), 4);
        assert_eq!(age(Duration::ZERO, STREAM_AGE_LEAST), None);
    }
}
