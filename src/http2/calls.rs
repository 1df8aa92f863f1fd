//! Owns the slots of calls: of each kind so many in all and so many for each address. A call without
//! a credential never keeps the last one: a newcomer takes its slot. Knows nothing of what the calls
//! do.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use super::{Caller, Options};
use crate::net::{
    network::Network,
    slots::{self, Full, Slot, Slots, Standing},
};

/// Calls that share a number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Questions about the health. Whoever sends one whole is answered at once, so the oldest that
    /// is still there is one that was never sent whole: there always is a slot for another.
    Check,
    /// Watches on the health, which anybody may leave open.
    Watch,
    /// Everything else but subscriptions.
    Other,
    /// Subscriptions without a credential. Those with one have the quota of that.
    Anonymous,
}

/// Why there is no slot for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// All are taken by callers that keep them.
    Total {
        kind: Kind,
        /// The limit.
        calls_max: usize,
    },
    /// Those of the caller's address are.
    Address {
        kind: Kind,
        /// The limit.
        calls_max: usize,
    },
    /// It had one, which another call took.
    Evicted,
}

/// The slots of all calls.
pub(super) struct Calls {
    proxies: Vec<Network>,
    check: Pool,
    watch: Pool,
    other: Pool,
    anonymous: Pool,
}

struct Pool {
    slots: Arc<Slots>,
    limits: slots::Limits,
}

impl Calls {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            proxies: options.proxies.clone(),
            check: Pool::new(options.checks_max, options.checks_max),
            watch: Pool::new(options.watches_max, options.watches_per_address_max),
            other: Pool::new(options.calls_max, options.calls_per_address_max),
            // The registry has the total of all subscriptions.
            anonymous: Pool::new(usize::MAX, options.streams_per_address_max),
        }
    }

    /// Takes a slot for a call of this kind. It may be lost again as long as `standing` has proven
    /// nothing; without a standing it is kept.
    ///
    /// # Errors
    /// There is none, and none can be taken from anybody.
    pub(super) fn enter(
        &self,
        kind: Kind,
        caller: Option<&Caller>,
        standing: Option<Standing>,
    ) -> Result<Slot, NoSlot> {
        // Callers that come by no address are of one that nobody has.
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let address = caller.map_or(nobody, |caller| caller.address.ip());
        let is_exempt = self.proxies.iter().any(|proxy| proxy.contains(address));
        let Pool { slots, limits } = match kind {
            Kind::Check => &self.check,
            Kind::Watch => &self.watch,
            Kind::Other => &self.other,
            Kind::Anonymous => &self.anonymous,
        };
        match slots.enter(address, is_exempt, standing) {
            // The one that was evicted says so itself.
            Ok((slot, _evicted)) => Ok(slot),
            Err(full) => Err(match full {
                Full::Total => NoSlot::Total {
                    kind,
                    calls_max: limits.slots_max,
                },
                Full::Address => NoSlot::Address {
                    kind,
                    calls_max: limits.slots_per_address_max,
                },
            }),
        }
    }
}

impl Pool {
    fn new(slots_max: usize, slots_per_address_max: usize) -> Self {
        let limits = slots::Limits {
            slots_max,
            slots_per_address_max,
        };
        Self {
            slots: Slots::new(limits),
            limits,
        }
    }
}

impl Kind {
    fn plural(self) -> &'static str {
        match self {
            Self::Check => "checks of the health",
            Self::Watch => "watches on the health",
            Self::Other => "calls that are no subscriptions",
            Self::Anonymous => "streams without a credential",
        }
    }

    /// The setting of the share of an address.
    fn share(self) -> &'static str {
        match self {
            Self::Check => "limits.grpc.checks_max",
            Self::Watch => "limits.grpc.watches_per_address_max",
            Self::Other => "limits.grpc.calls_per_address_max",
            Self::Anonymous => "limits.grpc.streams_per_address_max",
        }
    }
}

impl fmt::Display for NoSlot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Total { kind, calls_max } => write!(
                formatter,
                "the server has its maximum of {calls_max} {}; retry later",
                kind.plural()
            ),
            Self::Address { kind, calls_max } => write!(
                formatter,
                "your address has its maximum of {calls_max} {}; retry later, or ask the operator \
                 to raise `{}` or to name a proxy that many clients share in `grpc_proxies`",
                kind.plural(),
                kind.share()
            ),
            Self::Evicted => formatter.write_str(
                "the call came without a credential and gave its place to a newer one; retry later",
            ),
        }
    }
}
