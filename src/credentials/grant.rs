//! Owns what a caller holds once it has been let in: its scope, what it takes of the quotas of its
//! credential, and the news of its end. Knows nothing of how it was let in.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::scope::{Forbidden, Scope};
use crate::filter::Spec;

/// How long a wait for an expiry goes without looking at the clock, which may have been set.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The time of day. Tests bring one that follows tokio's.
pub(super) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Proof that a caller may subscribe, and to what. Clones share one quota and one end.
#[derive(Clone)]
pub struct Grant {
    holder: Arc<Holder>,
    /// The credential's end, or that of the certificate it was shown with.
    expires_at: Option<Timestamp>,
}

/// How a caller was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Without a credential.
    Anonymous,
    /// A bearer token of the credentials file.
    Token,
    /// A client certificate whose identity is in the credentials file.
    Certificate,
    /// A JWT of the configured issuer.
    Jwt,
}

/// Why what a grant allowed is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ended {
    /// The credential is gone.
    #[error("the credential was revoked: get a new one from the operator of this bridge")]
    Revoked,
    /// What it allows is not what it was; the same credential gets the new.
    #[error(
        "the permissions of the credential changed: reconnect, with the cursor, to get the new"
    )]
    Changed,
    /// Its time is over.
    #[error("the credential has expired: reconnect, with the cursor and a new one")]
    Expired,
}

/// The credential has all that it may have of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaReached {
    /// Streams.
    #[error(
        "this credential has {streams_max} streams open, which is all it may have: close one, or \
         ask the operator of this bridge for a higher quota"
    )]
    Streams {
        /// The quota.
        streams_max: usize,
    },
    /// Connections on which it was shown.
    #[error(
        "this credential has {connections_max} connections open, which is all it may have: use \
         one of them, or ask the operator of this bridge for a higher quota"
    )]
    Connections {
        /// The quota.
        connections_max: usize,
    },
    /// The memory of filters: its own, or that of the whole bridge.
    #[error(
        "there is no memory for another filter of this size, of which {bytes_max} bytes are for \
         all together: name fewer users, or retry later"
    )]
    Filters {
        /// The limit that was reached.
        bytes_max: usize,
    },
}

/// A place under the quota of a credential, given back when it is dropped.
#[must_use = "the place is given back when this is dropped"]
pub struct Place(Arc<Quota>);

/// What a credential may have of its own, where it has quotas of its own: those of the bridge hold
/// otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quotas {
    pub(super) streams_max: Option<usize>,
    pub(super) connections_max: Option<usize>,
    pub(super) unsent_bytes_max: Option<usize>,
}

/// How much one credential has, and may have. `None`: what is usual, which whoever takes something
/// says.
#[derive(Debug, Default)]
pub struct Quota {
    quotas: Quotas,
    streams: AtomicUsize,
    connections: AtomicUsize,
    unsent_bytes: AtomicUsize,
    filter_bytes: AtomicUsize,
}

/// A connection under the quota of a credential, given back when it is dropped.
#[derive(Debug)]
pub struct CountedConnection(Arc<Quota>);

/// The memory of a filter under the quota of a credential, given back when it is dropped.
#[derive(Debug)]
pub struct CountedFilter {
    quota: Arc<Quota>,
    bytes: usize,
}

/// What all grants of one credential share.
pub(super) struct Holder {
    pub(super) kind: Kind,
    pub(super) name: Box<str>,
    pub(super) scope: Scope,
    pub(super) quota: Arc<Quota>,
    pub(super) expires_at: Option<Timestamp>,
    clock: Clock,
    ended: watch::Sender<Option<Ended>>,
}

impl Grant {
    /// A grant of a credential, for no longer than the certificate that it was shown with.
    pub(super) fn new(holder: Arc<Holder>, certificate_expires_at: Option<Timestamp>) -> Self {
        let ends = [holder.expires_at, certificate_expires_at];
        let expires_at = ends.into_iter().flatten().min();
        Self { holder, expires_at }
    }

    /// The name of the credential, for logs: at most 128 printable bytes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.holder.name
    }

    /// How the caller was let in.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.holder.kind
    }

    /// What of a request is left within what is allowed; see [`Scope::narrow`].
    ///
    /// # Errors
    /// All that goes beyond it, of one field.
    pub fn narrow(&self, spec: Spec) -> Result<Spec, Forbidden> {
        self.holder.scope.narrow(spec)
    }

    /// Takes a place under the quota, for one stream. There are `usual_max` where the credential has no
    /// quota of its own.
    ///
    /// # Errors
    /// All are taken.
    pub fn enter(&self, usual_max: usize) -> Result<Place, QuotaReached> {
        let quota = &self.holder.quota;
        let streams_max = quota.quotas.streams_max.unwrap_or(usual_max);
        if take(&quota.streams, 1, streams_max) {
            Ok(Place(Arc::clone(quota)))
        } else {
            Err(QuotaReached::Streams { streams_max })
        }
    }

    /// What the credential has; `None` for callers without one, who are not one caller.
    #[must_use]
    pub fn quota(&self) -> Option<&Arc<Quota>> {
        (self.holder.kind != Kind::Anonymous).then_some(&self.holder.quota)
    }

    pub(super) fn is_expired(&self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }

    /// Resolves when the credential is revoked, changed or expired; at once if it already was.
    /// Dropping the future loses nothing.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.holder.ended.subscribe();
        loop {
            let pause = match self.remaining() {
                Some(Duration::ZERO) => return Ended::Expired,
                Some(remaining) => remaining.min(CLOCK_CHECK_INTERVAL),
                None => Duration::MAX,
            };
            // The sender is in the holder, which is in this grant: it cannot be gone.
            if let Ok(Ok(ended)) =
                tokio::time::timeout(pause, ended.wait_for(Option::is_some)).await
                && let Some(ended) = *ended
            {
                return ended;
            }
        }
    }

    fn remaining(&self) -> Option<Duration> {
        let left = self.expires_at?.duration_since((self.holder.clock)());
        Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
    }
}

impl Quota {
    pub(super) fn new(quotas: Quotas) -> Arc<Self> {
        Arc::new(Self {
            quotas,
            ..Self::default()
        })
    }

    /// Counts a connection on which the credential was shown.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub fn connect(self: &Arc<Self>, usual_max: usize) -> Result<CountedConnection, QuotaReached> {
        let connections_max = self.quotas.connections_max.unwrap_or(usual_max);
        if take(&self.connections, 1, connections_max) {
            Ok(CountedConnection(Arc::clone(self)))
        } else {
            Err(QuotaReached::Connections { connections_max })
        }
    }

    /// Counts the memory of a filter.
    ///
    /// # Errors
    /// It would be more than there may be.
    pub fn filter(
        self: &Arc<Self>,
        bytes: usize,
        bytes_max: usize,
    ) -> Result<CountedFilter, QuotaReached> {
        if take(&self.filter_bytes, bytes, bytes_max) {
            let quota = Arc::clone(self);
            Ok(CountedFilter { quota, bytes })
        } else {
            Err(QuotaReached::Filters { bytes_max })
        }
    }

    /// Whether so many bytes more of responses may wait for their sockets: then they count.
    #[must_use]
    pub fn take_unsent(&self, bytes: usize, usual_max: usize) -> bool {
        let bytes_max = self.quotas.unsent_bytes_max.unwrap_or(usual_max);
        take(&self.unsent_bytes, bytes, bytes_max)
    }

    /// So many bytes less do.
    pub fn give_back_unsent(&self, bytes: usize) {
        self.unsent_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Adds to a count, unless it would be more than `max`.
fn take(count: &AtomicUsize, more: usize, max: usize) -> bool {
    let add = |count: usize| count.checked_add(more).filter(|&count| count <= max);
    let order = Ordering::Relaxed;
    count.fetch_update(order, order, add).is_ok()
}

impl Holder {
    pub(super) fn new(
        kind: Kind,
        name: &str,
        scope: Scope,
        quota: Arc<Quota>,
        expires_at: Option<Timestamp>,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            kind,
            name: name.into(),
            scope,
            quota,
            expires_at,
            clock,
            ended: watch::Sender::new(None),
        })
    }

    /// Ends everything that was granted; the first reason stays.
    pub(super) fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(why);
            is_first
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CountedConnection {
    /// Whether it is one under this quota.
    #[must_use]
    pub fn is_of(&self, quota: &Arc<Quota>) -> bool {
        Arc::ptr_eq(&self.0, quota)
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CountedFilter {
    /// Counts what another one under the same quota does as well.
    pub fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for CountedFilter {
    fn drop(&mut self) {
        let Self { quota, bytes } = self;
        quota.filter_bytes.fetch_sub(*bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Grant")
            .field("kind", &self.holder.kind)
            .field("name", &self.holder.name)
            .field("scope", &self.holder.scope)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = self.0.streams.load(Ordering::Relaxed);
        write!(formatter, "Place(one of {streams})")
    }
}
