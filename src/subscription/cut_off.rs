//! Owns the end of all streams when the bridge is cut off from what orders the events: another bridge knows more,
//! and their clients are to resume there.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::Subscriptions;
use crate::log::Health;

/// Streams stay for so long after the bridge was cut off: most connections are there again by then.
const GRACE: Duration = Duration::from_secs(2);

/// What all streams drain with.
pub(super) struct Together(Mutex<CancellationToken>);

impl Together {
    /// Streams also drain with `draining`.
    pub(super) fn new(draining: &CancellationToken) -> Self {
        Self(Mutex::new(draining.child_token()))
    }

    /// A token of one more stream.
    pub(super) fn child(&self) -> CancellationToken {
        let token = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        token.child_token()
    }

    /// Lets those drain that are there now.
    fn drain(&self, draining: &CancellationToken) {
        let mut token = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *token, draining.child_token()).cancel();
    }
}

fn is_cut_off(health: &Health) -> bool {
    let is_cut_off = matches!(
        health,
        Health::Unavailable {
            is_cut_off: true,
            ..
        }
    );
    is_cut_off || health.is_final()
}

impl Subscriptions {
    /// Ends all streams each time the bridge is cut off for longer than a moment, until the log is closed.
    pub(crate) fn watch_cut_offs(self: &Arc<Self>) -> impl Future<Output = ()> + use<> {
        let (subscriptions, status) = (Arc::downgrade(self), self.log.status().clone());
        async move {
            loop {
                if status.health_where(is_cut_off).await.is_final() {
                    return;
                }
                let is_back = status.health_where(|health| !is_cut_off(health));
                if tokio::time::timeout(GRACE, is_back).await.is_ok() {
                    continue;
                }
                let Some(subscriptions) = subscriptions.upgrade() else {
                    return;
                };
                tracing::warn!("streams end, because the bridge does not learn of new events");
                subscriptions.together.drain(&subscriptions.draining);
                drop(subscriptions);
                status
                    .health_where(|health| !is_cut_off(health) || health.is_final())
                    .await;
            }
        }
    }
}
