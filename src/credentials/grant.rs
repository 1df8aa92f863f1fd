//! Owns what a caller holds once it has been let in: its scope, its places under the quota, and the
//! news of its end. Knows nothing of how it was let in.

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

/// A place under the quota of a credential, given back when it is dropped.
#[must_use = "the place is given back when this is dropped"]
pub struct Place(Arc<Quota>);

/// How many streams one credential has open, and may have.
#[derive(Debug)]
pub(super) struct Quota {
    /// `None`: as many as the bridge has.
    streams_max: Option<usize>,
    streams: AtomicUsize,
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

    /// Takes a place under the quota, for one stream.
    ///
    /// # Errors
    /// All are taken.
    pub fn enter(&self) -> Result<Place, QuotaReached> {
        self.holder.quota.enter()
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
    pub(super) fn new(streams_max: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            streams_max,
            streams: AtomicUsize::new(0),
        })
    }

    fn enter(self: &Arc<Self>) -> Result<Place, QuotaReached> {
        let streams_max = self.streams_max.unwrap_or(usize::MAX);
        let one_more = |streams: usize| (streams < streams_max).then_some(streams + 1);
        self.streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map(|_| Place(Arc::clone(self)))
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
