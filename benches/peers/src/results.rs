//! Owns what is kept of a run: every sample, their medians, and ratios. A ratio is taken within
//! each round, as the machine's speed changes between rounds; the median of those ratios counts.

use std::collections::BTreeMap;

use prelude_bridge_load::Summary;
use serde::Serialize;

use crate::{
    compare::{Comparison, Goal, Side},
    system::System,
    work::{Sample, Work},
};

/// Everything that one run came to.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// When it was, and on what.
    pub machine: BTreeMap<String, String>,
    /// The version of everything that was compared.
    pub versions: BTreeMap<String, String>,
    /// How often each work was done on each server, in turn.
    pub rounds: usize,
    /// The works, in the order in which they were done.
    pub works: Vec<Measured>,
    /// What was compared.
    pub comparisons: Vec<Outcome>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// A work and the servers that did it.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Its short name.
    pub work: String,
    /// Its heading.
    pub title: String,
    /// The servers, in the order of the plan.
    pub systems: Vec<Rounds>,
}

/// A server at a work.
#[derive(Debug, Serialize)]
pub struct Rounds {
    /// Its name.
    pub system: String,
    /// The medians.
    pub median: Sample,
    /// Each round; empty where it failed.
    pub rounds: Vec<Sample>,
}

/// What a comparison came to.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The kind of work.
    pub group: String,
    /// What is compared with what, and in which quantity.
    pub title: String,
    /// The median of the rounds' ratios.
    pub ratio: f64,
    /// The least of them.
    pub least: f64,
    /// The greatest of them.
    pub greatest: f64,
    /// The same for the server's CPU time, ours over theirs.
    pub cpu_ratio: Option<f64>,
    /// What is aimed at, in words.
    pub goal: Option<String>,
    /// Whether it was reached.
    pub reached: Option<bool>,
    /// How many times better this is than what it is compared with: below 1 it is worse.
    pub times_better: f64,
    /// The same for the goal.
    pub goal_times_better: Option<f64>,
    /// Whether these two can be shown in a plot with others.
    pub is_race: bool,
}

impl Results {
    /// Adds a sample of a round.
    pub fn add(&mut self, work: Work, system: System, round: usize, sample: Sample) {
        let rounds = self.rounds_of(work, system);
        rounds.rounds.resize(round + 1, Sample::new());
        rounds.rounds[round] = sample;
        rounds.median = medians(&rounds.rounds);
    }

    fn rounds_of(&mut self, work: Work, system: System) -> &mut Rounds {
        let (key, name) = (work.key(), system.name());
        let at = position_or_push(
            &mut self.works,
            |measured| measured.work == key,
            || Measured {
                work: key.clone(),
                title: work.title(),
                systems: Vec::new(),
            },
        );
        let systems = &mut self.works[at].systems;
        let at = position_or_push(
            systems,
            |rounds| rounds.system == name,
            || Rounds {
                system: name.into(),
                median: Sample::new(),
                rounds: Vec::new(),
            },
        );
        &mut systems[at]
    }

    /// Compares all that both sides were measured for.
    pub fn compare(&mut self, comparisons: &[Comparison]) {
        let outcomes = comparisons
            .iter()
            .filter_map(|comparison| self.outcome(comparison));
        self.comparisons = outcomes.collect();
    }

    fn outcome(&self, comparison: &Comparison) -> Option<Outcome> {
        let ratios = Summary::of(self.ratios(&comparison.ours, &comparison.theirs))?;
        let ratio = ratios.median;
        let cpu = comparison.cpu.and_then(|quantity| {
            let of = |side: &Side| Side { quantity, ..*side };
            median(self.ratios(&of(&comparison.ours), &of(&comparison.theirs)))
        });
        let times_better = |ratio: f64| {
            if comparison.more_is_better {
                ratio
            } else {
                1.0 / ratio
            }
        };
        let (goal, reached, bound) = match comparison.goal {
            Goal::None => (None, None, None),
            Goal::AtLeast(bound) => (
                Some(format!("≥ {bound}")),
                Some(ratio >= bound),
                Some(bound),
            ),
            Goal::AtMost(bound) => (
                Some(format!("≤ {bound}")),
                Some(ratio <= bound),
                Some(bound),
            ),
        };
        Some(Outcome {
            group: comparison.group.into(),
            title: comparison.title.clone(),
            ratio,
            least: ratios.min,
            greatest: ratios.max,
            cpu_ratio: cpu,
            goal,
            reached,
            times_better: times_better(ratio),
            goal_times_better: bound.map(times_better),
            is_race: comparison.is_race,
        })
    }

    fn ratios(&self, ours: &Side, theirs: &Side) -> Vec<f64> {
        (0..self.rounds)
            .filter_map(|round| Some(self.value(ours, round)? / self.value(theirs, round)?))
            .filter(|ratio| ratio.is_finite())
            .collect()
    }

    fn value(&self, side: &Side, round: usize) -> Option<f64> {
        let value = |work: Work, system: System| {
            let measured = self
                .works
                .iter()
                .find(|measured| measured.work == work.key())?;
            let rounds = &measured.systems;
            let rounds = rounds
                .iter()
                .find(|rounds| rounds.system == system.name())?;
            rounds.rounds.get(round)?.get(side.quantity).copied()
        };
        let less = match side.less {
            Some((work, system)) => value(work, system)?,
            None => 0.0,
        };
        Some(value(side.work, side.system)? - less)
    }
}

fn position_or_push<T>(
    items: &mut Vec<T>,
    is_it: impl Fn(&T) -> bool,
    make: impl FnOnce() -> T,
) -> usize {
    items.iter().position(is_it).unwrap_or_else(|| {
        items.push(make());
        items.len() - 1
    })
}

fn medians(rounds: &[Sample]) -> Sample {
    let names = rounds.iter().flat_map(Sample::keys);
    names
        .filter_map(|name| {
            let values: Vec<f64> = rounds
                .iter()
                .filter_map(|sample| sample.get(name).copied())
                .collect();
            Some((name.clone(), median(values)?))
        })
        .collect()
}

fn median(values: Vec<f64>) -> Option<f64> {
    Some(Summary::of(values)?.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(system: System) -> Side {
        Side {
            work: Work::Ingest,
            system,
            quantity: "batches/s",
            less: None,
        }
    }

    #[test]
    fn a_ratio_is_taken_within_a_round_and_a_failed_round_is_left_out() {
        let mut results = Results {
            rounds: 4,
            ..Results::default()
        };
        let rounds = [(10.0, 5.0), (100.0, 50.0), (8.0, 2.0)];
        for (round, (ours, theirs)) in rounds.into_iter().enumerate() {
            let sample = |value| Sample::from([("batches/s".to_owned(), value)]);
            results.add(Work::Ingest, System::BridgeEmbedded, round, sample(ours));
            results.add(Work::Ingest, System::Go, round, sample(theirs));
        }
        let sample = Sample::from([("batches/s".to_owned(), 1.0)]);
        results.add(Work::Ingest, System::BridgeEmbedded, 3, sample);
        let comparison = Comparison {
            group: "ingest",
            title: "Go".into(),
            ours: side(System::BridgeEmbedded),
            theirs: side(System::Go),
            cpu: None,
            more_is_better: true,
            is_race: true,
            goal: Goal::AtLeast(2.5),
        };
        results.compare(&[comparison]);
        let outcome = &results.comparisons[0];
        assert_eq!(
            (outcome.ratio, outcome.least, outcome.greatest),
            (2.0, 2.0, 4.0)
        );
        assert_eq!(outcome.reached, Some(false));
        assert_eq!(results.works[0].systems[1].median["batches/s"], 5.0);
    }
}
