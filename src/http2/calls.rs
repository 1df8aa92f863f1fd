//! Owns the slots of calls: of each kind so many in all and so many for each address. A call without
//! a credential never keeps the last one: a newcomer takes its slot. Knows nothing of what the calls
//! do.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use super::Caller;
use crate::net::{
    network::Network,
    slots::{self, Full, Slot, Slots, Standing},
};

/// How many calls of each kind may be in progress.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How many that are neither subscriptions nor about the health.
    pub calls_max: usize,
    /// How many of them may be of one address.
    pub calls_per_address_max: usize,
    /// How many checks of the health may be in progress. There always is room for another: the
    /// oldest that never sent its message goes.
    pub checks_max: usize,
    /// How many watches on the health may be open, which anybody may begin.
    pub watches_max: usize,
    /// How many of them may be of one address.
    pub watches_per_address_max: usize,
    /// How many streams may be of callers of one address who show no credential.
    pub streams_per_address_max: usize,
    /// Addresses that many clients share, for which there is no share.
    pub proxies: Vec<Network>,
}

/// Calls that share a number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
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
pub(crate) enum NoSlot {
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
pub(crate) struct Calls {
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
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            check: Pool::new(limits.checks_max, limits.checks_max),
            watch: Pool::new(limits.watches_max, limits.watches_per_address_max),
            other: Pool::new(limits.calls_max, limits.calls_per_address_max),
            // The registry has the total of all subscriptions.
            anonymous: Pool::new(usize::MAX, limits.streams_per_address_max),
            proxies: limits.proxies,
        }
    }

    /// Takes a slot for a call of this kind. It may be lost again as long as `standing` has proven
    /// nothing; without a standing it is kept.
    ///
    /// # Errors
    /// There is none, and none can be taken from anybody.
    pub(crate) fn enter(
        &self,
        kind: Kind,
        caller: Option<&Caller>,
        standing: Option<Standing>,
    ) -> Result<Slot, NoSlot> {
        // Callers that come by no address are of one that nobody has.
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let address = caller.map_or(nobody, |caller| caller.address.ip());
        let is_exempt = self.is_proxy(address);
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

    /// Where a caller comes from, unless many share the address.
    pub(crate) fn address_of(&self, caller: &Caller) -> Option<IpAddr> {
        let address = caller.address.ip();
        (!self.is_proxy(address)).then_some(address)
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|proxy| proxy.contains(address))
    }
}

impl Pool {
    fn new(slots_max: usize, slots_per_address_max: usize) -> Self {
        let limits = slots::Limits {
            slots_max,
            slots_reserved: 0,
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
