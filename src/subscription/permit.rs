//! Owns what lets one stream go on: what it takes of the quotas of its credential, and a wait for the
//! end of the credential or for the call's deadline.

use std::sync::Arc;

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, poll_immediate},
};
use tokio::time::{Instant, sleep_until};

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

impl Permit {
    /// Takes a slot of the grant's quota, which is `default_max` if it has none of its own. The slot is
    /// released together with the other slot that the stream occupies. The permit ends at the deadline.
    ///
    /// # Errors
    /// The credential's quota is used up.
    pub(super) fn new(
        grant: &Grant,
        slot: Option<Slot>,
        deadline: Option<Instant>,
        default_max: usize,
    ) -> Result<Self, Failure> {
        let quota_slot = grant.enter(default_max).map_err(Failure::Quota)?;
        let quota = grant.quota().cloned();
        let grant = grant.clone();
        // Made once and kept: waking thousands of streams must not register thousands of timers.
        let ended = async move { PermitEnd::Credential(grant.ended().await) };
        let ended = match deadline {
            // Most streams have none, and no memory for it.
            None => ended.boxed(),
            Some(deadline) => Box::pin(async move {
                tokio::select! {
                    ended = ended => ended,
                    () = passed(deadline) => PermitEnd::Deadline,
                }
            }),
        };
        Ok(Self {
            _quota_slot: quota_slot,
            _slot: slot,
            filter: Vec::new(),
            quota,
            deadline,
            ended,
        })
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
