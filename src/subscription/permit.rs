//! Owns what lets one stream go on: what it takes of the quotas of its credential, and a wait for the
//! credential's end.

use std::sync::Arc;

use futures_util::future::{BoxFuture, poll_immediate};

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
    ended: BoxFuture<'static, Ended>,
}

impl Permit {
    /// Takes a slot of the grant's quota, which is `default_max` if it has none of its own. The slot is
    /// released together with the other slot that the stream occupies.
    ///
    /// # Errors
    /// The credential's quota is used up.
    pub(super) fn new(
        grant: &Grant,
        slot: Option<Slot>,
        default_max: usize,
    ) -> Result<Self, Failure> {
        let quota_slot = grant.enter(default_max).map_err(Failure::Quota)?;
        let quota = grant.quota().cloned();
        let grant = grant.clone();
        // Made once and kept: waking thousands of streams must not register thousands of timers.
        let ended = Box::pin(async move { grant.ended().await });
        Ok(Self {
            _quota_slot: quota_slot,
            _slot: slot,
            filter: Vec::new(),
            quota,
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

    /// Resolves when the credential ends. Once it has, do not ask again.
    pub(super) async fn ended(&mut self) -> Ended {
        self.ended.as_mut().await
    }

    /// Whether it has.
    pub(super) async fn has_ended(&mut self) -> Option<Ended> {
        poll_immediate(self.ended.as_mut()).await
    }
}
