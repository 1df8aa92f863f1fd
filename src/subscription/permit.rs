//! Owns what lets one stream go on: a slot of the quota of its credential, and a wait for the credential's end.

use futures_util::future::{BoxFuture, poll_immediate};

use super::Failure;
use crate::{
    credentials::{Ended, Grant, QuotaSlot},
    net::slots::Slot,
};

/// Held by a session for as long as it lasts.
pub(crate) struct Permit {
    _quota_slot: QuotaSlot,
    _slot: Option<Slot>,
    ended: BoxFuture<'static, Ended>,
}

impl Permit {
    /// Takes a slot of the grant's quota. It is released together with the other slot that the stream occupies.
    ///
    /// # Errors
    /// The credential's quota is used up.
    pub(crate) fn new(grant: &Grant, slot: Option<Slot>) -> Result<Self, Failure> {
        let quota_slot = grant.enter().map_err(Failure::Quota)?;
        let grant = grant.clone();
        // Made once and kept: waking thousands of streams must not register thousands of timers.
        let ended = Box::pin(async move { grant.ended().await });
        Ok(Self {
            _quota_slot: quota_slot,
            _slot: slot,
            ended,
        })
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
