//! Owns what a caller has once it has been let in: a scope, what it takes of the quotas of its credential, and
//! an end that it can wait for. Knows nothing of how it was let in.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::scope::{Forbidden, Scope};
use crate::filter::Spec;

/// How often a wait for an expiry reads the clock again, which somebody may have set.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The time of day. Tests have one that follows tokio's.
pub(super) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Proof that a caller may subscribe, and to what. Clones share one quota and one end.
#[derive(Clone)]
pub struct Grant {
    holder: Arc<Holder>,
    /// When the certificate expires that the credential was shown with.
    certificate_expires_at: Option<Timestamp>,
    /// Tells the holder that this grant is in use.
    _alive: Arc<()>,
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

/// Why a grant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ended {
    /// The credential was removed.
    #[error("the credential was revoked: get a new one from the operator of this bridge")]
    Revoked,
    /// The credential allows something else now; a caller that shows it again gets that.
    #[error(
        "the permissions of the credential changed: reconnect, with the cursor, to get the new"
    )]
    Changed,
    /// The credential has expired.
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

/// A slot of the quota of a credential, which is released when this is dropped.
#[must_use = "the slot is released when this is dropped"]
pub struct QuotaSlot(Arc<Quota>);

/// The quotas of one credential. `None`: the bridge's default applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quotas {
    pub(super) streams_max: Option<usize>,
    pub(super) connections_max: Option<usize>,
    pub(super) unsent_bytes_max: Option<usize>,
}

/// What one credential has at present, and its quotas.
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

/// What all grants share that were given for one proof of a credential.
pub(super) struct Holder {
    pub(super) kind: Kind,
    pub(super) name: Box<str>,
    pub(super) scope: Scope,
    pub(super) quota: Arc<Quota>,
    clock: Clock,
    end: watch::Sender<End>,
    /// Whether a grant was given since the last look.
    was_used: AtomicBool,
    /// Each grant has one of these.
    alive: Arc<()>,
}

/// When grants end, or why they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    expires_at: Option<Timestamp>,
    ended: Option<Ended>,
}

impl Grant {
    /// A grant of a credential, for no longer than the certificate that it was shown with.
    pub(super) fn new(holder: Arc<Holder>, certificate_expires_at: Option<Timestamp>) -> Self {
        let alive = Arc::clone(&holder.alive);
        Self {
            holder,
            certificate_expires_at,
            _alive: alive,
        }
    }

    /// Notes that the credential is used.
    pub(super) fn note_use(&self) {
        // Written rarely, so that callers of one credential do not compete for it.
        if !self.holder.was_used.load(Ordering::Relaxed) {
            self.holder.was_used.store(true, Ordering::Relaxed);
        }
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

    /// The filter of a request within the scope; see [`Scope::narrow`].
    ///
    /// # Errors
    /// Everything in one field that the scope does not allow.
    pub fn narrow(&self, spec: Spec) -> Result<Spec, Forbidden> {
        self.holder.scope.narrow(spec)
    }

    /// Takes a slot of the quota, for one stream. There are `default_max` if the credential has no quota of
    /// its own.
    ///
    /// # Errors
    /// All slots are taken.
    pub fn enter(&self, default_max: usize) -> Result<QuotaSlot, QuotaReached> {
        let quota = &self.holder.quota;
        let streams_max = quota.quotas.streams_max.unwrap_or(default_max);
        if take(&quota.streams, 1, streams_max) {
            Ok(QuotaSlot(Arc::clone(quota)))
        } else {
            Err(QuotaReached::Streams { streams_max })
        }
    }

    /// The quota of the credential; `None` for callers without a credential, who are not one caller.
    #[must_use]
    pub fn quota(&self) -> Option<&Arc<Quota>> {
        (self.holder.kind != Kind::Anonymous).then_some(&self.holder.quota)
    }

    /// The quota that the caller's requests count under while they come: callers without a credential have one
    /// together.
    pub(crate) fn request_quota(&self) -> &Arc<Quota> {
        &self.holder.quota
    }

    pub(super) fn is_expired(&self) -> bool {
        let expires_at = self.holder.end.borrow().expires_at;
        self.remaining(expires_at) == Some(Duration::ZERO)
    }

    /// Resolves when the credential is revoked, changed or expired; at once if it already was.
    /// Dropping the future loses nothing.
    pub async fn ended(&self) -> Ended {
        let mut changes = self.holder.end.subscribe();
        loop {
            let End { expires_at, ended } = *changes.borrow_and_update();
            let pause = match self.remaining(expires_at) {
                Some(Duration::ZERO) => return Ended::Expired,
                Some(remaining) => remaining.min(CLOCK_CHECK_INTERVAL),
                None => Duration::MAX,
            };
            if let Some(ended) = ended {
                return ended;
            }
            // The sender is in the holder, which is in this grant: it cannot be gone.
            let _ = tokio::time::timeout(pause, changes.changed()).await;
        }
    }

    /// The time until the credential or the certificate expires, whichever is first.
    fn remaining(&self, expires_at: Option<Timestamp>) -> Option<Duration> {
        let ends = [expires_at, self.certificate_expires_at];
        let first = ends.into_iter().flatten().min()?;
        let left = first.duration_since((self.holder.clock)());
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
    pub fn connect(
        self: &Arc<Self>,
        default_max: usize,
    ) -> Result<CountedConnection, QuotaReached> {
        let connections_max = self.quotas.connections_max.unwrap_or(default_max);
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
    pub fn take_unsent(&self, bytes: usize, default_max: usize) -> bool {
        let bytes_max = self.quotas.unsent_bytes_max.unwrap_or(default_max);
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
            clock,
            end: watch::Sender::new(End {
                expires_at,
                ended: None,
            }),
            was_used: AtomicBool::new(false),
            alive: Arc::default(),
        })
    }

    /// Ends everything that was granted; the first reason stays.
    pub(super) fn end(&self, why: Ended) {
        self.end.send_if_modified(|end| {
            let is_first = end.ended.is_none();
            end.ended.get_or_insert(why);
            is_first
        });
    }

    /// Sets when everything that was granted expires.
    pub(super) fn set_expiry(&self, expires_at: Option<Timestamp>) {
        self.end.send_if_modified(|end| {
            let is_changed = end.expires_at != expires_at;
            end.expires_at = expires_at;
            is_changed
        });
    }

    /// Whether the credential was used since the last call, or a stream or call under it is open.
    pub(super) fn take_use(&self) -> bool {
        let was_used = self.was_used.swap(false, Ordering::Relaxed);
        was_used || Arc::strong_count(&self.alive) > 1
    }
}

impl Drop for QuotaSlot {
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

impl fmt::Debug for QuotaSlot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = self.0.streams.load(Ordering::Relaxed);
        write!(formatter, "QuotaSlot(one of {streams})")
    }
}
