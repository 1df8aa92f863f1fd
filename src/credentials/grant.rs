//! Owns what a caller has once it has been let in: a scope, slots of a quota, and an end that it can wait for.
//! Knows nothing of how it was let in.

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

/// The credential has as many streams open as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this credential has {streams_max} streams open, which is all it may have: close one, or ask \
     the operator of this bridge for a higher quota"
)]
pub struct QuotaReached {
    /// The quota.
    pub streams_max: usize,
}

/// A slot of the quota of a credential, which is released when this is dropped.
#[must_use = "the slot is released when this is dropped"]
pub struct QuotaSlot(Arc<Quota>);

/// How many streams one credential has open, and may have.
#[derive(Debug)]
pub(super) struct Quota {
    /// `None`: as many as the bridge has.
    streams_max: Option<usize>,
    streams: AtomicUsize,
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

    /// Takes a slot of the quota, for one stream.
    ///
    /// # Errors
    /// All slots are taken.
    pub fn enter(&self) -> Result<QuotaSlot, QuotaReached> {
        self.holder.quota.enter()
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
    pub(super) fn new(streams_max: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            streams_max,
            streams: AtomicUsize::new(0),
        })
    }

    fn enter(self: &Arc<Self>) -> Result<QuotaSlot, QuotaReached> {
        let streams_max = self.streams_max.unwrap_or(usize::MAX);
        let one_more = |streams: usize| (streams < streams_max).then_some(streams + 1);
        self.streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map(|_| QuotaSlot(Arc::clone(self)))
            .map_err(|_| QuotaReached { streams_max })
    }
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
