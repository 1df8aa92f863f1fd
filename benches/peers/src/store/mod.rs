//! Owns the works on a log that several bridges have, with JetStream as their engine: what appends, the
//! delivery to another bridge, reading and subscribers cost it.
//!
//! ```text
//! cluster   the servers of NATS
//! bridges   several bridges with one log
//! worker    processes without a bridge: the log alone, single messages
//! append    as many events as can be
//! delivery  from one bridge to another
//! readers   what subscribers cost the engine
//! catchup   reading the log from its beginning
//! ```

mod append;
mod bridges;
mod catchup;
pub mod cluster;
mod delivery;
mod readers;
mod worker;

use std::time::Duration;

use anyhow::Result;

use self::cluster::Cluster;
use crate::{
    system::System,
    work::{Bench, Sample, fanout},
};

const FANOUT_SENDERS: usize = 32;
const FANOUT_WINDOW_EVENTS: u64 = 6_000;

/// How the engine keeps what it acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Durability {
    /// On so many servers.
    pub replicas: usize,
    /// Whether it is on their disks (`sync_interval: always`).
    pub synced: bool,
}

impl Durability {
    /// One server that does not sync.
    pub const LEAST: Self = Self {
        replicas: 1,
        synced: false,
    };

    /// One server and three, which sync or do not.
    pub const ALL: [Self; 4] = [
        Self::LEAST,
        Self {
            replicas: 1,
            synced: true,
        },
        Self {
            replicas: 3,
            synced: false,
        },
        Self {
            replicas: 3,
            synced: true,
        },
    ];

    fn key(self) -> String {
        let synced = if self.synced { "-synced" } else { "" };
        format!("r{}{synced}", self.replicas)
    }

    /// `R3, synced`.
    #[must_use]
    pub fn title(self) -> String {
        let synced = if self.synced { "synced" } else { "not synced" };
        format!("R{}, {synced}", self.replicas)
    }
}

/// One of the works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreWork {
    /// As many events as can be, from so many bridges at once.
    Append {
        /// How they are kept.
        durability: Durability,
        /// How many bridges, or publishers.
        bridges: usize,
    },
    /// One event at a time, from one bridge to another.
    Delivery {
        /// How they are kept.
        durability: Durability,
    },
    /// A thousand events a second to subscribers of two bridges.
    Readers {
        /// How many, a connection each.
        subscribers: usize,
    },
    /// As many deliveries as can be, with enough webhooks on the way that an engine which takes longer to
    /// acknowledge is not the limit.
    Fanout {
        /// How many subscribers.
        subscribers: usize,
    },
    /// Reading from the beginning.
    CatchUp,
}

impl StoreWork {
    /// A short name, for files and for choosing.
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::Append {
                durability,
                bridges,
            } => format!("store-append-{}-{bridges}", durability.key()),
            Self::Delivery { durability } => format!("store-delivery-{}", durability.key()),
            Self::Readers { subscribers } => format!("store-readers-{subscribers}"),
            Self::Fanout { subscribers } => format!("store-fanout-{subscribers}"),
            Self::CatchUp => "store-catchup".into(),
        }
    }

    /// A heading.
    #[must_use]
    pub fn title(self) -> String {
        match self {
            Self::Append {
                durability,
                bridges,
            } => {
                let writers = if bridges == 1 { "writer" } else { "writers" };
                format!("Appends, {}, {bridges} {writers}", durability.title())
            }
            Self::Delivery { durability } => {
                format!("One event to another bridge, {}", durability.title())
            }
            Self::Readers { subscribers } => {
                format!("1,000 events/s, two bridges, {subscribers} subscribers")
            }
            Self::Fanout { subscribers } => {
                format!("Fan-out, {subscribers} subscribers, {FANOUT_SENDERS} webhooks on the way")
            }
            Self::CatchUp => "Catch-up of one subscriber".into(),
        }
    }

    pub(crate) fn measure(self, bench: &Bench, system: System) -> Result<Sample> {
        match self {
            Self::Append {
                durability,
                bridges,
            } => append::measure(bench, system, durability, bridges),
            Self::Delivery { durability } => delivery::measure(bench, system, durability),
            Self::Readers { subscribers } => readers::measure(bench, subscribers),
            Self::Fanout { subscribers } => {
                let plan = fanout::Plan {
                    subscribers,
                    filtered: false,
                    standard: false,
                    senders: FANOUT_SENDERS,
                    window_events: FANOUT_WINDOW_EVENTS,
                };
                fanout::measure(bench, system, plan)
            }
            Self::CatchUp => catchup::measure(bench, system),
        }
    }
}

/// The CPU time of the engine and of what uses it.
struct CpuTimes {
    engine: Duration,
    bridges: Duration,
}

impl CpuTimes {
    fn now(
        cluster: &Cluster,
        bridges: impl Iterator<Item = prelude_bridge_load::Process>,
    ) -> Result<Self> {
        use anyhow::Context as _;
        let bridges: Option<Duration> = bridges.map(|process| process.cpu_time()).sum();
        Ok(Self {
            engine: cluster.cpu_time()?,
            bridges: bridges.context("a process has ended")?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            engine: self.engine.saturating_sub(before.engine),
            bridges: self.bridges.saturating_sub(before.bridges),
        }
    }
}
