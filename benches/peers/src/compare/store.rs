//! What a log that several bridges have is compared with: the same events as single messages, and a bridge
//! with a log of its own.

use super::{CPU_DELIVERY, CPU_EVENT, Comparison, EMBEDDED_LOG, Goal, P50, P99, RATE, Side};
use crate::{
    store::{Durability, StoreWork},
    system::System,
    work::Work,
};

const EVENTS: &str = "events/s";
const CPU_ENGINE: &str = "engine CPU µs/event";
const CONSUMERS: &str = "consumers";

pub(super) fn comparisons() -> Vec<Comparison> {
    let groups = [appends(), deliveries(), readers(), replicas()];
    groups.into_iter().flatten().collect()
}

fn side(work: StoreWork, system: System, quantity: &'static str) -> Side {
    Side::of(Work::Store(work), system, quantity)
}

/// Against a message with an id for each event.
fn appends() -> Vec<Comparison> {
    const ALONE: &str = "The log alone, batches of 10 ÷ one JetStream message an event: events/s";
    const ALONE_CPU: &str = "… the engine's CPU an event";
    const BRIDGES: &str =
        "Bridges, signed batches of 10 ÷ one JetStream message an event: events/s";
    const BRIDGES_CPU: &str = "… the engine's CPU an event, through bridges";
    let groups = [
        (ALONE, System::ReplicatedLog, EVENTS),
        (ALONE_CPU, System::ReplicatedLog, CPU_ENGINE),
        (BRIDGES, System::BridgeJetStream, EVENTS),
        (BRIDGES_CPU, System::BridgeJetStream, CPU_ENGINE),
    ];
    let mut comparisons = Vec::new();
    for (group, ours, quantity) in groups {
        for durability in Durability::ALL {
            for bridges in [1, 2, 4] {
                let work = StoreWork::Append {
                    durability,
                    bridges,
                };
                let title = format!("{}, writers: {bridges}", durability.title());
                let ours_side = side(work, ours, quantity);
                let theirs = side(work, System::JetStreamMessages, quantity);
                let has_goal = ours == System::ReplicatedLog && durability.replicas == 3;
                let comparison = match quantity {
                    EVENTS => Comparison::more_is_better(group, title, ours_side, theirs).goal(
                        if has_goal {
                            Goal::AtLeast(3.0)
                        } else {
                            Goal::None
                        },
                    ),
                    _ => Comparison::less_is_better(group, title, ours_side, theirs).goal(
                        if has_goal {
                            Goal::AtMost(0.4)
                        } else {
                            Goal::None
                        },
                    ),
                };
                comparisons.push(comparison);
            }
        }
    }
    comparisons
}

fn deliveries() -> Vec<Comparison> {
    const GROUP: &str = "One event to another bridge ÷ one JetStream acknowledgement";
    let mut comparisons = Vec::new();
    let rows = [
        (
            "webhook to subscriber, p50",
            System::BridgeJetStream,
            P50,
            Goal::AtMost(3.0),
        ),
        (
            "webhook to subscriber, p99",
            System::BridgeJetStream,
            P99,
            Goal::None,
        ),
        (
            "the log alone, p50",
            System::ReplicatedLog,
            P50,
            Goal::AtMost(3.0),
        ),
    ];
    for (what, ours, quantity, goal) in rows {
        for durability in Durability::ALL {
            let work = StoreWork::Delivery { durability };
            let title = format!("{what}, {}", durability.title());
            let theirs = side(work, System::JetStreamMessages, quantity);
            let comparison =
                Comparison::less_is_better(GROUP, title, side(work, ours, quantity), theirs);
            comparisons.push(Comparison {
                is_race: false,
                goal,
                ..comparison
            });
        }
    }
    comparisons
}

/// With a thousand subscribers, and without any.
fn readers() -> Vec<Comparison> {
    const GROUP: &str = "Two bridges with 1,000 subscribers ÷ without any";
    let rows = [
        ("consumers of the stream", CONSUMERS, Goal::AtMost(1.0)),
        ("the engine's CPU an event", CPU_ENGINE, Goal::None),
    ];
    let comparison = |(title, quantity, goal)| {
        let side = |subscribers| {
            let work = StoreWork::Readers { subscribers };
            side(work, System::BridgeJetStream, quantity)
        };
        Comparison {
            is_race: false,
            goal,
            ..Comparison::less_is_better(GROUP, title, side(1_000), side(0))
        }
    };
    rows.into_iter().map(comparison).collect()
}

/// A bridge with a replica, and one with a log of its own.
fn replicas() -> Vec<Comparison> {
    const GROUP: &str = "A bridge with a replica (R1, not synced) ÷ with the embedded log";
    let comparison = |title, work, quantity, cpu| {
        let side = |system| Side::of(work, system, quantity);
        let (ours, theirs) = (side(System::BridgeJetStream), side(EMBEDDED_LOG));
        Comparison {
            is_race: false,
            goal: Goal::AtLeast(0.95),
            ..Comparison::more_is_better(GROUP, title, ours, theirs).with_cpu(cpu)
        }
    };
    let fanout = |subscribers| Work::Store(StoreWork::Fanout { subscribers });
    vec![
        comparison("fan-out, 10 subscribers", fanout(10), RATE, CPU_DELIVERY),
        comparison("fan-out, 100 subscribers", fanout(100), RATE, CPU_DELIVERY),
        comparison(
            "catch-up",
            Work::Store(StoreWork::CatchUp),
            EVENTS,
            CPU_EVENT,
        ),
    ]
}
