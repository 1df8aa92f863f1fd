//! Owns the works that servers are compared at, and what each is measured in.

pub(crate) mod fanout;
mod idle;
mod ingest;
mod latency;
mod limits;
mod standard;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use prelude_bridge_load::{Clock, Latencies, Usage};

use crate::{
    events::Chunks,
    store::StoreWork,
    system::{Host, Running, System},
};

/// What one round of one work on one server came to, by the name of the quantity.
pub type Sample = BTreeMap<String, f64>;

/// One of the works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// As many deliveries as can be.
    Fanout {
        /// Subscribers, a connection each.
        subscribers: usize,
        /// Whether each wants one type of the seven.
        filtered: bool,
        /// Whether the subscribers are tonic's clients and not the load's own.
        standard: bool,
    },
    /// 2,000 events a second to ten subscribers.
    Latency {
        /// Events published at once.
        batch: usize,
        /// None tells what it costs to take the events.
        subscribers: usize,
    },
    /// As many signed batches of ten events as can be.
    Ingest,
    /// Something on a log that several bridges have.
    Store(StoreWork),
    /// Subscribers to whom nothing is sent.
    Idle {
        /// How many, a connection each.
        subscribers: usize,
    },
}

impl Work {
    /// To a hundred of tonic's own clients.
    pub const STANDARD: Self = Self::Fanout {
        subscribers: 100,
        filtered: false,
        standard: true,
    };

    /// Events that are taken one by one, for nobody.
    pub const TAKING: Self = Self::Latency {
        batch: 1,
        subscribers: 0,
    };

    /// To subscribers that want everything.
    #[must_use]
    pub const fn fanout(subscribers: usize) -> Self {
        Self::Fanout {
            subscribers,
            filtered: false,
            standard: false,
        }
    }

    /// To subscribers that want one type each.
    #[must_use]
    pub const fn filtered(subscribers: usize) -> Self {
        Self::Fanout {
            subscribers,
            filtered: true,
            standard: false,
        }
    }

    /// To ten subscribers, this many events at a time.
    #[must_use]
    pub const fn latency(batch: usize) -> Self {
        Self::Latency {
            batch,
            subscribers: 10,
        }
    }

    /// To subscribers that wait.
    #[must_use]
    pub const fn idle(subscribers: usize) -> Self {
        Self::Idle { subscribers }
    }

    /// A short name, for files and for choosing.
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::Fanout {
                subscribers,
                filtered,
                standard,
            } => {
                let filtered = if filtered { "-filtered" } else { "" };
                let standard = if standard { "-tonic-clients" } else { "" };
                format!("fanout-{subscribers}{filtered}{standard}")
            }
            Self::Latency { batch, subscribers } => {
                let alone = if subscribers == 0 {
                    "-ingest-alone"
                } else {
                    ""
                };
                format!("latency-{batch}{alone}")
            }
            Self::Ingest => "ingest".into(),
            Self::Store(work) => work.key(),
            Self::Idle { subscribers } => format!("idle-{subscribers}"),
        }
    }

    /// A heading.
    #[must_use]
    pub fn title(self) -> String {
        match self {
            Self::Fanout {
                subscribers,
                filtered,
                standard,
            } => {
                let who = if subscribers == 1 {
                    "subscriber"
                } else {
                    "subscribers"
                };
                let filtered = if filtered {
                    ", each to one type in seven"
                } else {
                    ""
                };
                let standard = if standard {
                    ", tonic's own clients"
                } else {
                    ""
                };
                format!("Fan-out, {subscribers} {who}{filtered}{standard}")
            }
            Self::Latency { batch, subscribers } => {
                let how = match batch {
                    1 => "one by one".to_owned(),
                    batch => format!("{batch} at a time"),
                };
                match subscribers {
                    0 => format!("Taking 2,000 events/s {how}, no subscribers"),
                    _ => format!("Latency, 2,000 events/s {how} × {subscribers} subscribers"),
                }
            }
            Self::Store(work) => work.title(),
            Self::Ingest => "Ingest, signed batches of ten events".into(),
            Self::Idle { subscribers } => format!("Memory, {subscribers} idle subscribers"),
        }
    }
}

/// What is measured, and for how long.
pub struct Bench {
    /// Where servers run.
    pub host: Host,
    /// Events by one, by ten and by a hundred.
    pub singles: Chunks,
    /// By ten.
    pub tens: Chunks,
    /// By a hundred.
    pub hundreds: Chunks,
    /// Events that each subscriber may not have yet, where as many as can be are delivered: more
    /// than a server gathers, fewer than it drops.
    pub window_events: u64,
    /// How long a rate is measured.
    pub duration: Duration,
    /// How long latencies are.
    pub latency_duration: Duration,
}

impl Bench {
    /// Measures a work on a server that is started for it.
    ///
    /// # Errors
    /// The server does not do it.
    pub fn measure(&self, work: Work, system: System) -> Result<Sample> {
        if !system.uses_cluster() {
            self.host.clusters.end();
        }
        match (work, system) {
            (Work::Store(work), _) => work.measure(self, system),
            (_, System::VerificationAlone) => limits::verification(self),
            (_, System::AppendAlone) => limits::append(self),
            (
                Work::Fanout {
                    subscribers,
                    filtered,
                    standard,
                },
                _,
            ) => {
                let plan = fanout::Plan {
                    subscribers,
                    filtered,
                    standard,
                    senders: fanout::SENDERS,
                    window_events: self.window_events,
                };
                fanout::measure(self, system, plan)
            }
            (Work::Latency { batch, subscribers }, _) => {
                latency::measure(self, system, batch, subscribers)
            }
            (Work::Ingest, _) => ingest::measure(self, system),
            (Work::Idle { subscribers }, _) => idle::measure(self, system, subscribers),
        }
    }

    /// Measures from now on what a server and the load take.
    pub(crate) fn clock(&self, running: &Running) -> Clock<'_> {
        Clock::start(&self.host.split, running.server.process())
    }

    fn chunks(&self, size: usize) -> &Chunks {
        match size {
            1 => &self.singles,
            10 => &self.tens,
            _ => &self.hundreds,
        }
    }
}

pub(crate) fn sample<const N: usize>(values: [(&str, f64); N]) -> Sample {
    values
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The CPU time of the server, and the share of its core that the server and the load used.
fn cpu(usage: Usage) -> Result<(f64, [(&'static str, f64); 2])> {
    let known = "this system does not tell the CPU time of a process";
    let server = usage.server_cpu.context(known)?.as_secs_f64();
    let load = usage.load_cpu.context(known)?.as_secs_f64();
    let took = usage.seconds();
    let shares = [("server busy", server / took), ("load busy", load / took)];
    Ok((server, shares))
}

/// A quantile in microseconds; of nothing there is none.
pub(crate) fn quantile(latencies: &Latencies, quantile: f64) -> f64 {
    if latencies.is_empty() {
        return f64::NAN;
    }
    #[expect(clippy::cast_precision_loss, reason = "below a hundred seconds")]
    let micros = latencies.value_at_quantile(quantile) as f64;
    micros
}

#[cfg(test)]
mod tests {
    use prelude_bridge_load::histogram;

    use super::quantile;

    #[test]
    fn quantiles_are_values_that_were_seen_and_of_nothing_there_are_none() {
        let mut latencies = histogram();
        assert!(quantile(&latencies, 0.5).is_nan());
        for value in 1..=100 {
            latencies.saturating_record(value);
        }
        assert_eq!(quantile(&latencies, 0.5), 50.0);
        assert_eq!(quantile(&latencies, 0.99), 99.0);
        assert_eq!(quantile(&latencies, 1.0), 100.0);
    }
}
