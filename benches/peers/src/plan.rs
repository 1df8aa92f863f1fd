//! Owns the plan: which works are done on which servers, in full and quickly, and which results
//! are compared, with what is aimed at.

use crate::{system::System, work::Work};

/// A work and the servers that do it, one after the other, the order turning with each round.
pub struct Step {
    /// What is done.
    pub work: Work,
    /// Who does it.
    pub systems: Vec<System>,
}

const fn fanout(subscribers: usize) -> Work {
    Work::Fanout {
        subscribers,
        filtered: false,
        standard: false,
    }
}

const fn filtered(subscribers: usize) -> Work {
    Work::Fanout {
        subscribers,
        filtered: true,
        standard: false,
    }
}

const STANDARD: Work = Work::Fanout {
    subscribers: 100,
    filtered: false,
    standard: true,
};

const fn latency(batch: usize) -> Work {
    Work::Latency {
        batch,
        subscribers: 10,
    }
}

const INGEST_ALONE: Work = Work::Latency {
    batch: 1,
    subscribers: 0,
};

const fn idle(subscribers: usize) -> Work {
    Work::Idle { subscribers }
}

/// Everything.
#[must_use]
pub fn full() -> Vec<Step> {
    use System as S;
    let some = [
        S::BridgeMemory,
        S::Nats,
        S::JetStream,
        S::PlainTonic,
        S::Go,
        S::RawTcp,
    ];
    let more = [S::BridgeMemoryLargeFrames, S::BridgeEmbedded];
    let step = |work, systems: &[&[System]]| Step {
        work,
        systems: systems.concat(),
    };
    let latencies = [some.as_slice(), &[S::BridgeEmbedded]];
    vec![
        step(fanout(1), &[&some]),
        step(fanout(10), &[&some, &more]),
        step(fanout(100), &[&some, &more, &[S::Node]]),
        step(fanout(1_000), &[&some, &more]),
        step(
            filtered(100),
            &[&[S::BridgeMemory, S::Nats, S::JetStream, S::PlainTonic, S::Go]],
        ),
        step(
            filtered(1_000),
            &[&[S::BridgeMemory, S::Nats, S::PlainTonic]],
        ),
        step(STANDARD, &[&[S::BridgeMemory, S::PlainTonic, S::Go]]),
        step(latency(1), &latencies),
        step(latency(10), &latencies),
        step(
            INGEST_ALONE,
            &[&[S::BridgeMemory, S::Nats, S::PlainTonic, S::RawTcp]],
        ),
        step(Work::Ingest, &[&ingest(), &[S::BridgeMemory]]),
        step(idle(1_000), &[&some]),
        step(idle(9_000), &[&[S::BridgeMemory, S::Nats, S::PlainTonic]]),
    ]
}

fn ingest() -> Vec<System> {
    use System as S;
    vec![
        S::BridgeEmbedded,
        S::Go,
        S::Node,
        S::GoDurable,
        S::NodeDurable,
        S::VerificationAlone,
        S::AppendAlone,
    ]
}

/// What most goals need, in a few minutes.
#[must_use]
pub fn quick() -> Vec<Step> {
    use System as S;
    let step = |work, systems: Vec<System>| Step { work, systems };
    vec![
        step(
            fanout(100),
            vec![
                S::BridgeMemory,
                S::BridgeMemoryLargeFrames,
                S::Nats,
                S::PlainTonic,
                S::Go,
                S::RawTcp,
            ],
        ),
        step(fanout(1_000), vec![S::BridgeMemory, S::Nats, S::RawTcp]),
        step(filtered(100), vec![S::BridgeMemory]),
        step(
            latency(1),
            vec![S::BridgeMemory, S::BridgeEmbedded, S::Nats, S::RawTcp],
        ),
        step(Work::Ingest, ingest()),
        step(idle(1_000), vec![S::BridgeMemory, S::Nats]),
    ]
}

/// One side of a comparison.
#[derive(Clone)]
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
    pub title: &'static str,
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
const CPU_DELIVERY: &str = "CPU µs/delivery";
const CPU_EVENT: &str = "CPU µs/event";
const CPU_BATCH: &str = "CPU µs/batch";
const P50: &str = "p50 µs";
const P99: &str = "p99 µs";

fn side(work: Work, system: System, quantity: &'static str) -> Side {
    Side {
        work,
        system,
        quantity,
        less: None,
    }
}

/// Everything that is compared; what was not measured is left out.
#[must_use]
pub fn comparisons() -> Vec<Comparison> {
    [fanouts(), filters(), latencies(), ingests(), memories()]
        .into_iter()
        .flatten()
        .collect()
}

fn fanouts() -> Vec<Comparison> {
    use Goal::{AtLeast, None as Shown};
    use System as S;
    let (ours, large, embedded) = (
        S::BridgeMemory,
        S::BridgeMemoryLargeFrames,
        S::BridgeEmbedded,
    );
    let rows = [
        ("1 subscriber", 1, "nats-server core", ours, S::Nats, Shown),
        ("1 subscriber", 1, "plain tonic", ours, S::PlainTonic, Shown),
        ("1 subscriber", 1, "raw TCP", ours, S::RawTcp, Shown),
        (
            "10 subscribers",
            10,
            "nats-server core",
            ours,
            S::Nats,
            Shown,
        ),
        (
            "10 subscribers",
            10,
            "JetStream, files (ours embedded)",
            embedded,
            S::JetStream,
            Shown,
        ),
        (
            "10 subscribers",
            10,
            "plain tonic",
            ours,
            S::PlainTonic,
            Shown,
        ),
        ("10 subscribers", 10, "grpc-go", ours, S::Go, Shown),
        ("10 subscribers", 10, "raw TCP", ours, S::RawTcp, Shown),
        (
            "100 subscribers",
            100,
            "nats-server core",
            ours,
            S::Nats,
            AtLeast(3.5),
        ),
        (
            "100 subscribers",
            100,
            "JetStream, files (ours embedded)",
            embedded,
            S::JetStream,
            Shown,
        ),
        (
            "100 subscribers",
            100,
            "plain tonic",
            ours,
            S::PlainTonic,
            AtLeast(2.5),
        ),
        ("100 subscribers", 100, "grpc-go", ours, S::Go, AtLeast(3.5)),
        ("100 subscribers", 100, "grpc-js", ours, S::Node, Shown),
        (
            "100 subscribers",
            100,
            "raw TCP",
            ours,
            S::RawTcp,
            AtLeast(0.5),
        ),
        (
            "100 subscribers",
            100,
            "raw TCP, ours with 64 KiB frames",
            large,
            S::RawTcp,
            AtLeast(0.7),
        ),
        (
            "1,000 subscribers",
            1_000,
            "nats-server core",
            ours,
            S::Nats,
            AtLeast(6.0),
        ),
        (
            "1,000 subscribers",
            1_000,
            "JetStream, files (ours embedded)",
            embedded,
            S::JetStream,
            AtLeast(50.0),
        ),
        (
            "1,000 subscribers",
            1_000,
            "plain tonic",
            ours,
            S::PlainTonic,
            Shown,
        ),
        ("1,000 subscribers", 1_000, "grpc-go", ours, S::Go, Shown),
        (
            "1,000 subscribers",
            1_000,
            "raw TCP",
            ours,
            S::RawTcp,
            Shown,
        ),
        (
            "1,000 subscribers",
            1_000,
            "raw TCP, ours with 64 KiB frames",
            large,
            S::RawTcp,
            Shown,
        ),
    ];
    let fanouts = rows
        .into_iter()
        .map(|(count, subscribers, title, ours, theirs, goal)| {
            let work = fanout(subscribers);
            Comparison {
                group: match count {
                    "1 subscriber" => "Fan-out, 1 subscriber: deliveries/s",
                    "10 subscribers" => "Fan-out, 10 subscribers: deliveries/s",
                    "100 subscribers" => "Fan-out, 100 subscribers: deliveries/s",
                    _ => "Fan-out, 1,000 subscribers: deliveries/s",
                },
                title,
                ours: side(work, ours, RATE),
                theirs: side(work, theirs, RATE),
                cpu: Some(CPU_DELIVERY),
                more_is_better: true,
                is_race: true,
                goal,
            }
        });
    let own = Comparison {
        group: "Fan-out, 1,000 subscribers: deliveries/s",
        title: "itself with 10 subscribers",
        ours: side(fanout(1_000), ours, RATE),
        theirs: side(fanout(10), ours, RATE),
        cpu: Some(CPU_DELIVERY),
        more_is_better: true,
        is_race: true,
        goal: AtLeast(0.95),
    };
    let standard = [("plain tonic", S::PlainTonic), ("grpc-go", S::Go)];
    let standard = standard.into_iter().map(|(title, theirs)| Comparison {
        group: "Fan-out, 100 of tonic's own clients: deliveries/s",
        title,
        ours: side(STANDARD, ours, RATE),
        theirs: side(STANDARD, theirs, RATE),
        cpu: Some(CPU_DELIVERY),
        more_is_better: true,
        is_race: true,
        goal: Shown,
    });
    fanouts.chain([own]).chain(standard).collect()
}

fn filters() -> Vec<Comparison> {
    let rows = [
        (
            "100 subscribers, itself unfiltered",
            100,
            S::BridgeMemory,
            false,
            Goal::AtMost(0.25),
        ),
        (
            "1,000 subscribers, itself unfiltered",
            1_000,
            S::BridgeMemory,
            false,
            Goal::AtMost(0.25),
        ),
        (
            "100 subscribers, nats-server core",
            100,
            S::Nats,
            true,
            Goal::None,
        ),
        (
            "100 subscribers, plain tonic",
            100,
            S::PlainTonic,
            true,
            Goal::None,
        ),
        (
            "1,000 subscribers, nats-server core",
            1_000,
            S::Nats,
            true,
            Goal::None,
        ),
        (
            "1,000 subscribers, plain tonic",
            1_000,
            S::PlainTonic,
            true,
            Goal::None,
        ),
    ];
    use System as S;
    let comparison = |(title, subscribers, theirs, both, goal)| Comparison {
        group: "A filter that matches one in seven: server CPU per committed event",
        title,
        ours: side(filtered(subscribers), S::BridgeMemory, CPU_EVENT),
        theirs: side(
            if both {
                filtered(subscribers)
            } else {
                fanout(subscribers)
            },
            theirs,
            CPU_EVENT,
        ),
        cpu: None,
        more_is_better: false,
        is_race: true,
        goal,
    };
    rows.into_iter().map(comparison).collect()
}

fn latencies() -> Vec<Comparison> {
    use Goal::{AtMost, None as Shown};
    use System as S;
    const ONE: &str = "2,000 events/s one by one × 10 subscribers";
    const TEN: &str = "2,000 events/s ten at a time × 10 subscribers";
    let (memory, embedded) = (S::BridgeMemory, S::BridgeEmbedded);
    let rows = [
        (ONE, 1, "p50, raw TCP", memory, P50, S::RawTcp, AtMost(1.15)),
        (
            ONE,
            1,
            "p50, nats-server core",
            memory,
            P50,
            S::Nats,
            AtMost(1.0),
        ),
        (
            ONE,
            1,
            "p99, nats-server core",
            memory,
            P99,
            S::Nats,
            AtMost(1.0),
        ),
        (
            ONE,
            1,
            "p50, plain tonic",
            memory,
            P50,
            S::PlainTonic,
            Shown,
        ),
        (
            ONE,
            1,
            "p99, plain tonic",
            memory,
            P99,
            S::PlainTonic,
            Shown,
        ),
        (
            ONE,
            1,
            "server CPU with signatures, nats-server core",
            memory,
            CPU_EVENT,
            S::Nats,
            Shown,
        ),
        (
            ONE,
            1,
            "p50, JetStream (ours embedded)",
            embedded,
            P50,
            S::JetStream,
            Shown,
        ),
        (
            ONE,
            1,
            "p99, JetStream (ours embedded)",
            embedded,
            P99,
            S::JetStream,
            Shown,
        ),
        (TEN, 10, "p50, raw TCP", memory, P50, S::RawTcp, Shown),
        (
            TEN,
            10,
            "p50, nats-server core",
            memory,
            P50,
            S::Nats,
            Shown,
        ),
        (
            TEN,
            10,
            "p99, nats-server core",
            memory,
            P99,
            S::Nats,
            Shown,
        ),
        (
            TEN,
            10,
            "server CPU with signatures, nats-server core",
            memory,
            CPU_EVENT,
            S::Nats,
            Shown,
        ),
        (
            TEN,
            10,
            "p50, JetStream (ours embedded)",
            embedded,
            P50,
            S::JetStream,
            Shown,
        ),
        (
            TEN,
            10,
            "p99, JetStream (ours embedded)",
            embedded,
            P99,
            S::JetStream,
            Shown,
        ),
    ];
    let plain = rows
        .into_iter()
        .map(|(group, batch, title, ours, quantity, theirs, goal)| {
            let work = latency(batch);
            Comparison {
                group,
                title,
                ours: side(work, ours, quantity),
                theirs: side(work, theirs, quantity),
                cpu: None,
                more_is_better: false,
                is_race: true,
                goal,
            }
        });
    let sending = |system| Side {
        less: Some((INGEST_ALONE, system)),
        ..side(latency(1), system, CPU_EVENT)
    };
    let flush = side(Work::Ingest, S::AppendAlone, P50);
    let further = [
        (
            "server CPU without taking the events, nats-server core",
            sending(memory),
            sending(S::Nats),
            AtMost(0.75),
        ),
        (
            "p50 of embedded less that of memory, one append + fdatasync",
            Side {
                less: Some((latency(1), memory)),
                ..side(latency(1), embedded, P50)
            },
            flush.clone(),
            AtMost(1.5),
        ),
        (
            "p99 of embedded, one append + fdatasync",
            side(latency(1), embedded, P99),
            flush.clone(),
            AtMost(5.0),
        ),
    ];
    let further = further
        .into_iter()
        .map(|(title, ours, theirs, goal)| Comparison {
            group: ONE,
            title,
            ours,
            theirs,
            cpu: None,
            more_is_better: false,
            is_race: true,
            goal,
        });
    plain.chain(further).collect()
}

fn ingests() -> Vec<Comparison> {
    use Goal::{AtLeast, None as Shown};
    use System as S;
    let rows = [
        ("verification alone", S::VerificationAlone, AtLeast(0.35)),
        ("Go, keeps nothing", S::Go, AtLeast(1.0)),
        ("Node, keeps nothing", S::Node, AtLeast(1.5)),
        ("Go, durable", S::GoDurable, AtLeast(5.0)),
        ("Node, durable", S::NodeDurable, AtLeast(5.0)),
        (
            "append + fdatasync of each batch alone",
            S::AppendAlone,
            Shown,
        ),
        ("itself in memory", S::BridgeMemory, Shown),
    ];
    let comparison = |(title, theirs, goal)| Comparison {
        group: "Ingest, batches of 10, embedded log: batches/s",
        title,
        ours: side(Work::Ingest, S::BridgeEmbedded, "batches/s"),
        theirs: side(Work::Ingest, theirs, "batches/s"),
        cpu: Some(CPU_BATCH),
        more_is_better: true,
        is_race: true,
        goal,
    };
    rows.into_iter().map(comparison).collect()
}

fn memories() -> Vec<Comparison> {
    use System as S;
    let rows = [
        ("1,000, nats-server core", 1_000, S::Nats, Goal::AtMost(0.7)),
        ("1,000, JetStream", 1_000, S::JetStream, Goal::None),
        ("1,000, plain tonic", 1_000, S::PlainTonic, Goal::None),
        ("1,000, grpc-go", 1_000, S::Go, Goal::None),
        ("9,000, nats-server core", 9_000, S::Nats, Goal::AtMost(0.7)),
        ("9,000, plain tonic", 9_000, S::PlainTonic, Goal::None),
    ];
    let comparison = |(title, subscribers, theirs, goal)| Comparison {
        group: "Memory per idle subscriber",
        title,
        ours: side(idle(subscribers), S::BridgeMemory, "KiB/subscriber"),
        theirs: side(idle(subscribers), theirs, "KiB/subscriber"),
        cpu: None,
        more_is_better: false,
        is_race: true,
        goal,
    };
    rows.into_iter().map(comparison).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures(steps: &[Step], work: Work, system: System) -> bool {
        let mut steps = steps.iter();
        steps.any(|step| step.work == work && step.systems.contains(&system))
    }

    #[test]
    fn the_full_plan_measures_everything_that_is_compared() {
        let steps = full();
        for comparison in comparisons() {
            for side in [&comparison.ours, &comparison.theirs] {
                let title = comparison.title;
                assert!(measures(&steps, side.work, side.system), "{title}");
                if let Some((work, system)) = side.less {
                    assert!(measures(&steps, work, system), "{title}");
                }
            }
        }
    }

    #[test]
    fn the_quick_plan_is_a_part_of_the_full_one() {
        let all = full();
        for step in quick() {
            for system in step.systems {
                assert!(measures(&all, step.work, system), "{:?}", step.work);
            }
        }
    }
}
