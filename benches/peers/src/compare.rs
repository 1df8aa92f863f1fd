//! Owns what is compared with what, in which quantity, and what is aimed at.

mod store;

use crate::{system::System, work::Work};

/// One side of a comparison.
#[derive(Clone, Copy)]
pub struct Side {
    /// Of this work,
    pub work: Work,
    /// on this server,
    pub system: System,
    /// this quantity,
    pub quantity: &'static str,
    /// less the same of another.
    pub less: Option<(Work, System)>,
}

/// What is aimed at.
#[derive(Clone, Copy)]
pub enum Goal {
    /// It is only shown.
    None,
    /// At least this ratio.
    AtLeast(f64),
    /// At most this ratio.
    AtMost(f64),
}

/// A ratio of two results.
pub struct Comparison {
    /// The kind of work.
    pub group: &'static str,
    /// What is compared with what.
    pub title: String,
    /// The bridge.
    pub ours: Side,
    /// What it is compared with.
    pub theirs: Side,
    /// In which quantity CPU time is compared beside.
    pub cpu: Option<&'static str>,
    /// Whether a large ratio is good.
    pub more_is_better: bool,
    /// Whether the ratio says how much better the bridge is than somebody else, and so can be shown
    /// in one plot with others.
    pub is_race: bool,
    /// What is aimed at.
    pub goal: Goal,
}

const RATE: &str = "deliveries/s";
const BATCHES: &str = "batches/s";
const CPU_DELIVERY: &str = "CPU µs/delivery";
const CPU_EVENT: &str = "CPU µs/event";
const CPU_BATCH: &str = "CPU µs/batch";
const P50: &str = "p50 µs";
const P99: &str = "p99 µs";
const MEMORY: &str = "KiB/subscriber";

const MEMORY_LOG: System = System::BridgeMemory;
const EMBEDDED_LOG: System = System::BridgeEmbedded;

/// Everything that is compared; what was not measured is left out.
#[must_use]
pub fn comparisons() -> Vec<Comparison> {
    let groups = [
        fanouts(),
        filters(),
        latencies(),
        flushes(),
        ingests(),
        memories(),
        store::comparisons(),
    ];
    groups.into_iter().flatten().collect()
}

impl Side {
    fn of(work: Work, system: System, quantity: &'static str) -> Self {
        Self {
            work,
            system,
            quantity,
            less: None,
        }
    }

    fn less(self, work: Work, system: System) -> Self {
        Self {
            less: Some((work, system)),
            ..self
        }
    }
}

impl Comparison {
    fn more_is_better(
        group: &'static str,
        title: impl Into<String>,
        ours: Side,
        theirs: Side,
    ) -> Self {
        Self {
            group,
            title: title.into(),
            ours,
            theirs,
            cpu: None,
            more_is_better: true,
            is_race: true,
            goal: Goal::None,
        }
    }

    fn less_is_better(
        group: &'static str,
        title: impl Into<String>,
        ours: Side,
        theirs: Side,
    ) -> Self {
        Self {
            more_is_better: false,
            ..Self::more_is_better(group, title, ours, theirs)
        }
    }

    fn goal(self, goal: Goal) -> Self {
        Self { goal, ..self }
    }

    fn with_cpu(self, quantity: &'static str) -> Self {
        Self {
            cpu: Some(quantity),
            ..self
        }
    }
}

/// What of ours is comparable with a peer: who keeps nothing is compared with the log in memory.
fn counterpart(theirs: System) -> System {
    match theirs {
        System::JetStream => EMBEDDED_LOG,
        _ => MEMORY_LOG,
    }
}

fn titled(theirs: System) -> String {
    let with = if counterpart(theirs) == EMBEDDED_LOG {
        " (ours embedded)"
    } else {
        ""
    };
    format!("{}{with}", theirs.name())
}

fn fanouts() -> Vec<Comparison> {
    use Goal::{AtLeast, None as Shown};
    use System as S;
    const ONE: &str = "Fan-out, 1 subscriber: deliveries/s";
    const TEN: &str = "Fan-out, 10 subscribers: deliveries/s";
    const HUNDRED: &str = "Fan-out, 100 subscribers: deliveries/s";
    const THOUSAND: &str = "Fan-out, 1,000 subscribers: deliveries/s";
    const STANDARD: &str = "Fan-out, 100 of tonic's own clients: deliveries/s";
    let against = |group, work, theirs: System, goal| {
        let ours = Side::of(work, counterpart(theirs), RATE);
        let theirs_side = Side::of(work, theirs, RATE);
        Comparison::more_is_better(group, titled(theirs), ours, theirs_side)
            .with_cpu(CPU_DELIVERY)
            .goal(goal)
    };
    let large_frames = |group, work, goal| {
        let ours = Side::of(work, S::BridgeMemoryLargeFrames, RATE);
        let theirs = Side::of(work, S::RawTcp, RATE);
        Comparison::more_is_better(group, "raw TCP (ours with 64 KiB frames)", ours, theirs)
            .with_cpu(CPU_DELIVERY)
            .goal(goal)
    };
    let [one, ten, hundred, thousand] = [1, 10, 100, 1_000].map(Work::fanout);
    let itself = Comparison::more_is_better(
        THOUSAND,
        "itself with 10 subscribers",
        Side::of(thousand, MEMORY_LOG, RATE),
        Side::of(ten, MEMORY_LOG, RATE),
    );
    vec![
        against(ONE, one, S::Nats, Shown),
        against(ONE, one, S::PlainTonic, Shown),
        against(ONE, one, S::RawTcp, Shown),
        against(TEN, ten, S::Nats, Shown),
        against(TEN, ten, S::JetStream, Shown),
        against(TEN, ten, S::PlainTonic, Shown),
        against(TEN, ten, S::Go, Shown),
        against(TEN, ten, S::RawTcp, Shown),
        against(HUNDRED, hundred, S::Nats, AtLeast(3.5)),
        against(HUNDRED, hundred, S::JetStream, Shown),
        against(HUNDRED, hundred, S::PlainTonic, AtLeast(2.5)),
        against(HUNDRED, hundred, S::Go, AtLeast(3.5)),
        against(HUNDRED, hundred, S::Node, Shown),
        against(HUNDRED, hundred, S::RawTcp, AtLeast(0.5)),
        large_frames(HUNDRED, hundred, AtLeast(0.7)),
        against(THOUSAND, thousand, S::Nats, AtLeast(6.0)),
        against(THOUSAND, thousand, S::JetStream, AtLeast(50.0)),
        against(THOUSAND, thousand, S::PlainTonic, Shown),
        against(THOUSAND, thousand, S::Go, Shown),
        against(THOUSAND, thousand, S::RawTcp, Shown),
        large_frames(THOUSAND, thousand, Shown),
        itself.with_cpu(CPU_DELIVERY).goal(AtLeast(0.95)),
        against(STANDARD, Work::STANDARD, S::PlainTonic, Shown),
        against(STANDARD, Work::STANDARD, S::Go, Shown),
    ]
}

fn filters() -> Vec<Comparison> {
    const GROUP: &str = "A filter that matches one in seven: server CPU per committed event";
    let count = |subscribers| match subscribers {
        100 => "100",
        _ => "1,000",
    };
    let itself = |subscribers| {
        let title = format!("{} subscribers, itself unfiltered", count(subscribers));
        let ours = Side::of(Work::filtered(subscribers), MEMORY_LOG, CPU_EVENT);
        let theirs = Side::of(Work::fanout(subscribers), MEMORY_LOG, CPU_EVENT);
        Comparison::less_is_better(GROUP, title, ours, theirs).goal(Goal::AtMost(0.25))
    };
    let against = |subscribers, theirs: System| {
        let title = format!("{} subscribers, {}", count(subscribers), theirs.name());
        let side = |system| Side::of(Work::filtered(subscribers), system, CPU_EVENT);
        Comparison::less_is_better(GROUP, title, side(MEMORY_LOG), side(theirs))
    };
    vec![
        itself(100),
        itself(1_000),
        against(100, System::Nats),
        against(100, System::PlainTonic),
        against(1_000, System::Nats),
        against(1_000, System::PlainTonic),
    ]
}

fn latencies() -> Vec<Comparison> {
    use Goal::{AtMost, None as Shown};
    use System as S;
    const ONE: &str = "2,000 events/s one by one × 10 subscribers";
    const TEN: &str = "2,000 events/s ten at a time × 10 subscribers";
    let against = |group, batch, quantity, theirs: System, goal| {
        let what = match quantity {
            CPU_EVENT => "server CPU with signatures",
            P99 => "p99",
            _ => "p50",
        };
        let side = |system| Side::of(Work::latency(batch), system, quantity);
        let title = format!("{what}, {}", titled(theirs));
        Comparison::less_is_better(group, title, side(counterpart(theirs)), side(theirs)).goal(goal)
    };
    let delivering =
        |system| Side::of(Work::latency(1), system, CPU_EVENT).less(Work::TAKING, system);
    let net = Comparison::less_is_better(
        ONE,
        "server CPU without taking the events, nats-server core",
        delivering(MEMORY_LOG),
        delivering(S::Nats),
    );
    vec![
        against(ONE, 1, P50, S::RawTcp, AtMost(1.15)),
        against(ONE, 1, P50, S::Nats, AtMost(1.0)),
        against(ONE, 1, P99, S::Nats, AtMost(1.0)),
        against(ONE, 1, P50, S::PlainTonic, Shown),
        against(ONE, 1, P99, S::PlainTonic, Shown),
        against(ONE, 1, P50, S::JetStream, Shown),
        against(ONE, 1, P99, S::JetStream, Shown),
        // What Go does for it is the same: verify, decode, stream. The others are given events.
        against(ONE, 1, P50, S::Go, Shown),
        against(ONE, 1, P99, S::Go, Shown),
        against(ONE, 1, CPU_EVENT, S::Go, Shown),
        against(ONE, 1, CPU_EVENT, S::Nats, Shown),
        net.goal(AtMost(0.75)),
        against(TEN, 10, P50, S::RawTcp, Shown),
        against(TEN, 10, P50, S::Nats, Shown),
        against(TEN, 10, P99, S::Nats, Shown),
        against(TEN, 10, P50, S::JetStream, Shown),
        against(TEN, 10, P99, S::JetStream, Shown),
        against(TEN, 10, CPU_EVENT, S::Nats, Shown),
    ]
}

/// What durability adds to latency, in flushes of the disk: a unit and no rival.
fn flushes() -> Vec<Comparison> {
    const GROUP: &str = "The embedded log at 2,000 events/s, in appends + fdatasync";
    let embedded = |quantity| Side::of(Work::latency(1), EMBEDDED_LOG, quantity);
    let added = embedded(P50).less(Work::latency(1), MEMORY_LOG);
    let flush = Side::of(Work::Ingest, System::AppendAlone, P50);
    let rows = [
        ("p50, less that of the log in memory", added, 1.5),
        ("p99", embedded(P99), 5.0),
    ];
    let comparison = |(title, ours, bound)| Comparison {
        is_race: false,
        goal: Goal::AtMost(bound),
        ..Comparison::less_is_better(GROUP, title, ours, flush)
    };
    rows.into_iter().map(comparison).collect()
}

fn ingests() -> Vec<Comparison> {
    use Goal::{AtLeast, None as Shown};
    use System as S;
    const GROUP: &str = "Ingest, batches of 10, embedded log: batches/s";
    let rows = [
        (S::VerificationAlone, AtLeast(0.35)),
        (S::Go, AtLeast(1.0)),
        (S::Node, AtLeast(1.5)),
        (S::GoDurable, AtLeast(5.0)),
        (S::NodeDurable, AtLeast(5.0)),
        (S::AppendAlone, Shown),
        (S::BridgeMemory, Shown),
    ];
    let comparison = |(theirs, goal): (System, Goal)| {
        let title = match theirs {
            S::Go | S::Node => format!("{}, keeps nothing", theirs.name()),
            _ => theirs.name().to_owned(),
        };
        let side = |system| Side::of(Work::Ingest, system, BATCHES);
        Comparison::more_is_better(GROUP, title, side(EMBEDDED_LOG), side(theirs))
            .with_cpu(CPU_BATCH)
            .goal(goal)
    };
    rows.into_iter().map(comparison).collect()
}

fn memories() -> Vec<Comparison> {
    use Goal::{AtMost, None as Shown};
    use System as S;
    let rows = [
        ("1,000", 1_000, S::Nats, AtMost(0.7)),
        ("1,000", 1_000, S::JetStream, Shown),
        ("1,000", 1_000, S::PlainTonic, Shown),
        ("1,000", 1_000, S::Go, Shown),
        ("9,000", 9_000, S::Nats, AtMost(0.7)),
        ("9,000", 9_000, S::PlainTonic, Shown),
    ];
    let comparison = |(count, subscribers, theirs, goal): (&str, usize, System, Goal)| {
        let title = format!("{count} subscribers, {}", theirs.name());
        let side = |system| Side::of(Work::idle(subscribers), system, MEMORY);
        Comparison::less_is_better(
            "Memory per idle subscriber",
            title,
            side(MEMORY_LOG),
            side(theirs),
        )
        .goal(goal)
    };
    rows.into_iter().map(comparison).collect()
}
