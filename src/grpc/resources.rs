//! Owns what the RPCs work with, and how a refused call is counted and said.

use std::sync::Arc;

use super::status::Failure;
use crate::{
    credentials::Credentials,
    http2::{Caller, Calls, Options},
    metrics::Metrics,
    net::quiet::{Admitted, Quiet},
    subscription::Subscriptions,
};

/// What every call needs.
pub(super) struct Resources {
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) credentials: Credentials,
    /// The slots of calls.
    pub(super) calls: Calls,
    /// The limits of connections, which are those of requests and responses too.
    pub(super) options: Options,
    /// Which refusals are still said in the log.
    pub(super) quiet: Arc<Quiet>,
    pub(super) metrics: Arc<Metrics>,
}

/// What was refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    /// Any call, before anybody looked at what it asks for.
    Call,
    /// A subscription, for what it asks for.
    Subscription,
}

impl Resources {
    /// Counts a call that is answered with a failure, and says so in the log, unless that was said
    /// often of late.
    pub(super) fn refused(&self, what: Refused, caller: Option<&Caller>, failure: &Failure) {
        let reason = failure.reason();
        self.metrics.stream_ended(reason);
        let Some(Admitted { unlogged }) = self.quiet.admit(reason) else {
            return;
        };
        let peer = caller.map(|caller| tracing::field::display(caller.address));
        match what {
            Refused::Call => tracing::info!(peer, reason, unlogged, "call refused"),
            Refused::Subscription => {
                tracing::info!(peer, reason, unlogged, "subscription refused");
            }
        }
    }
}
