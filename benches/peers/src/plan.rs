//! Owns the plan: which works are done on which servers, in full and quickly.

use crate::{
    store::{Durability, StoreWork},
    system::System,
    work::Work,
};

/// A work and the servers that do it, one after the other, the order turning with each round.
pub struct Step {
    /// What is done.
    pub work: Work,
    /// Who does it.
    pub systems: Vec<System>,
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
    let mut steps = vec![
        step(Work::fanout(1), &[&some]),
        step(Work::fanout(10), &[&some, &more]),
        step(Work::fanout(100), &[&some, &more, &[S::Node]]),
        step(Work::fanout(1_000), &[&some, &more]),
        step(
            Work::filtered(100),
            &[&[S::BridgeMemory, S::Nats, S::JetStream, S::PlainTonic, S::Go]],
        ),
        step(
            Work::filtered(1_000),
            &[&[S::BridgeMemory, S::Nats, S::PlainTonic]],
        ),
        step(Work::STANDARD, &[&[S::BridgeMemory, S::PlainTonic, S::Go]]),
        step(Work::latency(1), &latencies),
        step(Work::latency(10), &latencies),
        step(
            Work::TAKING,
            &[&[S::BridgeMemory, S::Nats, S::PlainTonic, S::RawTcp]],
        ),
        step(Work::Ingest, &[&ingest(), &[S::BridgeMemory]]),
        step(Work::idle(1_000), &[&some]),
        step(
            Work::idle(9_000),
            &[&[S::BridgeMemory, S::Nats, S::PlainTonic]],
        ),
    ];
    steps.extend(store());
    steps
}

/// What a log that several bridges have costs. The servers that are its engine go on from work to work, so
/// those with the same are together.
fn store() -> Vec<Step> {
    use System as S;
    let all = [S::ReplicatedLog, S::BridgeJetStream, S::JetStreamMessages];
    let step = |work, systems: &[System]| Step {
        work: Work::Store(work),
        systems: systems.to_vec(),
    };
    let replica = [S::BridgeEmbedded, S::BridgeJetStream];
    let mut steps = vec![
        step(StoreWork::Fanout { subscribers: 10 }, &replica),
        step(StoreWork::Fanout { subscribers: 100 }, &replica),
        step(StoreWork::CatchUp, &replica),
        step(StoreWork::Readers { subscribers: 0 }, &[S::BridgeJetStream]),
        step(
            StoreWork::Readers { subscribers: 1_000 },
            &[S::BridgeJetStream],
        ),
    ];
    for durability in Durability::ALL {
        steps.push(step(StoreWork::Delivery { durability }, &all));
        for bridges in [1, 2, 4] {
            let work = StoreWork::Append {
                durability,
                bridges,
            };
            steps.push(step(work, &all));
        }
    }
    steps
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
            Work::fanout(100),
            vec![
                S::BridgeMemory,
                S::BridgeMemoryLargeFrames,
                S::Nats,
                S::PlainTonic,
                S::Go,
                S::RawTcp,
            ],
        ),
        step(
            Work::fanout(1_000),
            vec![S::BridgeMemory, S::Nats, S::RawTcp],
        ),
        step(Work::filtered(100), vec![S::BridgeMemory]),
        step(
            Work::latency(1),
            vec![
                S::BridgeMemory,
                S::BridgeEmbedded,
                S::Nats,
                S::Go,
                S::RawTcp,
            ],
        ),
        step(Work::TAKING, vec![S::BridgeMemory, S::Nats]),
        step(Work::Ingest, ingest()),
        step(Work::idle(1_000), vec![S::BridgeMemory, S::Nats]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::comparisons;

    fn measures(steps: &[Step], work: Work, system: System) -> bool {
        let mut steps = steps.iter();
        steps.any(|step| step.work == work && step.systems.contains(&system))
    }

    #[test]
    fn the_full_plan_measures_everything_that_is_compared() {
        let steps = full();
        for comparison in comparisons() {
            for side in [&comparison.ours, &comparison.theirs] {
                let title = &comparison.title;
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
