//! Owns what lets one stream go on: what it takes of the quotas of its credential, and a wait for the
//! end of the credential, for the call's deadline or for the age at which the stream drains.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, poll_immediate},
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::{
    credentials::{CountedFilter, Ended, Grant, Quota, QuotaSlot},
    net::slots::Slot,
};

/// Held by a session for as long as it lasts.
pub(crate) struct Permit {
    _quota_slot: QuotaSlot,
    _slot: Option<Slot>,
    filter: Vec<CountedFilter>,
    quota: Option<Arc<Quota>>,
    pub(super) deadline: Option<Instant>,
    ended: BoxFuture<'static, PermitEnd>,
    draining: CancellationToken,
}

/// What limits a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How many streams a credential may have that has no quota of its own.
    pub(super) streams_max: usize,
    /// When the time is over that the client gave the call.
    pub(super) deadline: Option<Instant>,
    /// After how long the stream drains.
    pub(super) age: Option<Duration>,
}

/// Why a stream may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PermitEnd {
    /// Its credential is not valid any more.
    Credential(Ended),
    /// The deadline of its call has passed.
    Deadline,
}

/// Resolves when a deadline has passed; at once if it already has. A timer alone fires at the next
/// millisecond.
pub(crate) async fn passed(deadline: Instant) {
    if deadline > Instant::now() {
        sleep_until(deadline).await;
    }
}

/// Lets a stream drain after a time, and waits for its end all the while.
async fn drain_after(
    age: Duration,
    draining: CancellationToken,
    mut ended: BoxFuture<'static, PermitEnd>,
) -> PermitEnd {
    tokio::select! {
        ended = &mut ended => return ended,
        () = tokio::time::sleep(age) => draining.cancel(),
    }
    ended.await
}

impl Permit {
    /// Takes a slot of the grant's quota. The slot is released together with the other slot that the stream
    /// occupies. The permit ends at the deadline. `draining` is the stream's own: it is cancelled at the age,
    /// as soon as anybody waits for the end of the permit.
    ///
    /// # Errors
    /// The credential's quota is used up.
    pub(super) fn new(
        grant: &Grant,
        slot: Option<Slot>,
        limits: Limits,
        draining: CancellationToken,
    ) -> Result<Self, Failure> {
        let quota_slot = grant.enter(limits.streams_max).map_err(Failure::Quota)?;
        let quota = grant.quota().cloned();
        let grant = grant.clone();
        // Made once and kept: waking thousands of streams must not register thousands of timers.
        let ended = async move { PermitEnd::Credential(grant.ended().await) };
        let ended = match limits.deadline {
            // Most streams have none, and no memory for it.
            None => ended.boxed(),
            Some(deadline) => Box::pin(async move {
                tokio::select! {
                    ended = ended => ended,
                    () = passed(deadline) => PermitEnd::Deadline,
                }
            }),
        };
        let ended = match limits.age {
            None => ended,
            Some(age) => drain_after(age, draining.clone(), ended).boxed(),
        };
        Ok(Self {
            _quota_slot: quota_slot,
            _slot: slot,
            filter: Vec::new(),
            quota,
            deadline: limits.deadline,
            ended,
            draining,
        })
    }

    /// Cancelled when the server begins to drain, or at the stream's age.
    pub(super) fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// What the credential has; `None` without one.
    pub(super) fn quota(&self) -> Option<&Arc<Quota>> {
        self.quota.as_ref()
    }

    /// Holds the memory of the stream's filter.
    pub(super) fn hold(&mut self, filter: Vec<CountedFilter>) {
        self.filter = filter;
    }

    /// Resolves when the stream may not go on. Once it has, do not ask again.
    pub(super) async fn ended(&mut self) -> PermitEnd {
        self.ended.as_mut().await
    }

    /// Whether it may not go on.
    pub(super) async fn has_ended(&mut self) -> Option<PermitEnd> {
        poll_immediate(self.ended.as_mut()).await
    }
}
