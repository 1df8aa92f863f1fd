//! Runs the plan: every work on every server, round after round, and writes what came of it.

mod facts;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use prelude_bridge_load::{Key, Split, Stop, open_files};
use prelude_bridge_peers::{
    compare,
    events::Chunks,
    plan::{self, Step},
    report,
    results::Results,
    store::cluster::Clusters,
    system::{Host, Programs},
    work::{Bench, Sample},
};

/// Open files that 9,000 subscribers need.
const FILES: u64 = 12_000;

/// Compares prelude-bridge with what a user would pick instead.
#[derive(Parser)]
struct Arguments {
    /// Only the main works, three short rounds: figures to look at, not to publish.
    #[arg(long)]
    quick: bool,
    /// How often each work is done on each server [default: 5, quickly 3].
    #[arg(long)]
    rounds: Option<usize>,
    /// Only the work with this name, or those whose name contains it if none has it; repeatable.
    /// --list shows the names.
    #[arg(long)]
    only: Vec<String>,
    /// The same for servers.
    #[arg(long)]
    system: Vec<String>,
    /// Events on the way to each subscriber in a fan-out.
    #[arg(long, default_value_t = 2_000)]
    window_events: u64,
    /// Shows what would be done.
    #[arg(long)]
    list: bool,
    /// Where DATE.json, .md and .svg are written; nothing is written without it.
    #[arg(long)]
    results: Option<PathBuf>,
    /// What is added to DATE in the names of these files, where only a part is measured.
    #[arg(long)]
    label: Option<String>,
    /// What is printed in the end.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// The prelude-bridge to measure.
    #[arg(long)]
    bridge: PathBuf,
    /// The nats-server to measure.
    #[arg(long)]
    nats: PathBuf,
    /// The Go receiver.
    #[arg(long)]
    go: PathBuf,
    /// The directory of the Node receiver.
    #[arg(long)]
    node: PathBuf,
    /// Where servers keep their data, on the disk that is meant.
    #[arg(long)]
    data: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// Markdown tables.
    Human,
    /// All of it as JSON.
    Json,
}

/// What a run needs of time and of signed batches.
struct Extent {
    rounds: usize,
    duration: Duration,
    latency_duration: Duration,
    /// Batches of a hundred for fan-out, of ten for ingest.
    hundreds: usize,
    tens: usize,
}

impl Extent {
    fn new(arguments: &Arguments) -> Self {
        if arguments.quick {
            Self {
                rounds: arguments.rounds.unwrap_or(3),
                duration: Duration::from_millis(800),
                latency_duration: Duration::from_secs(2),
                hundreds: 2_000,
                tens: 20_000,
            }
        } else {
            Self {
                rounds: arguments.rounds.unwrap_or(5),
                duration: Duration::from_secs(2),
                latency_duration: Duration::from_secs(4),
                hundreds: 6_000,
                tens: 50_000,
            }
        }
    }

    /// One request for each event, and some for the time before anything counts.
    fn singles(&self) -> usize {
        usize::try_from(self.latency_duration.as_millis() * 2 + 2_000).unwrap_or(usize::MAX)
    }
}

fn main() -> ExitCode {
    match run_plan(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_plan(arguments: &Arguments) -> Result<()> {
    let steps = steps(arguments);
    if arguments.list {
        list(&steps);
        return Ok(());
    }
    ensure!(!steps.is_empty(), "nothing is left to be measured");
    let files = open_files(FILES).unwrap_or(u64::MAX);
    ensure!(
        files >= FILES,
        "9,000 subscribers need more open files than {files}: ulimit -n"
    );
    let extent = Extent::new(arguments);
    // Before this thread is bound to one of the machine's cores.
    let machine = facts::machine();
    let bench = prepare(arguments, &extent)?;
    let mut results = Results {
        machine,
        versions: facts::versions(&bench.host.programs),
        rounds: extent.rounds,
        ..Results::default()
    };
    for round in 0..extent.rounds {
        run(&bench, &steps, round, extent.rounds, &mut results);
    }
    bench.host.split.enter_all();
    results.compare(&compare::comparisons());
    if let Some(directory) = &arguments.results {
        write(directory, arguments.label.as_deref(), &results)?;
    }
    match arguments.output {
        Output::Human => println!("{}", report::markdown(&results)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&results)?),
    }
    ensure!(
        results.failures.is_empty(),
        "not everything could be measured"
    );
    Ok(())
}

fn steps(arguments: &Arguments) -> Vec<Step> {
    let mut steps = if arguments.quick {
        plan::quick()
    } else {
        plan::full()
    };
    let works: Vec<String> = steps.iter().map(|step| step.work.key()).collect();
    steps.retain(|step| is_chosen(&step.work.key(), &works, &arguments.only));
    let systems = steps.iter().flat_map(|step| &step.systems);
    let systems: Vec<String> = systems.map(|system| system.name().to_owned()).collect();
    for step in &mut steps {
        step.systems
            .retain(|system| is_chosen(system.name(), &systems, &arguments.system));
    }
    steps.retain(|step| !step.systems.is_empty());
    steps
}

/// Whether a name is among those that are wanted, of which each is a whole name or a part of several.
fn is_chosen(name: &str, names: &[String], wanted: &[String]) -> bool {
    let mut matches = wanted.iter().map(|wanted| match names.contains(wanted) {
        true => name == wanted,
        false => name.contains(wanted.as_str()),
    });
    wanted.is_empty() || matches.any(|is_match| is_match)
}

fn list(steps: &[Step]) {
    for step in steps {
        let names: Vec<&str> = step.systems.iter().map(|system| system.name()).collect();
        println!("{:<28} {}", step.work.key(), names.join(" | "));
    }
}

fn prepare(arguments: &Arguments, extent: &Extent) -> Result<Bench> {
    let absolute = |path: &Path| {
        fs::canonicalize(path).with_context(|| format!("there is no {}", path.display()))
    };
    fs::create_dir_all(&arguments.data)?;
    let own = std::env::current_exe()?;
    let programs = Programs {
        bridge: absolute(&arguments.bridge)?,
        own: own.parent().context("no directory")?.to_owned(),
        nats: absolute(&arguments.nats)?,
        go: absolute(&arguments.go)?,
        node: absolute(&arguments.node)?,
        data: absolute(&arguments.data)?,
    };
    let host = Host {
        programs,
        split: Split::pair()?,
        stop: Stop::default(),
        key: Key::generate()?,
        clusters: Clusters::default(),
    };
    let singles = extent.singles();
    let count = singles + extent.tens + extent.hundreds;
    eprintln!("signing {count} batches");
    let chunks = |size, requests| Chunks::new(&host.split, &host.key, size, requests);
    Ok(Bench {
        singles: chunks(1, singles)?,
        tens: chunks(10, extent.tens)?,
        hundreds: chunks(100, extent.hundreds)?,
        host,
        window_events: arguments.window_events,
        duration: extent.duration,
        latency_duration: extent.latency_duration,
    })
}

/// One round: every work on every server. Each round begins with another server.
fn run(bench: &Bench, steps: &[Step], round: usize, rounds: usize, results: &mut Results) {
    for step in steps {
        let mut systems = step.systems.clone();
        let turn = round % systems.len();
        systems.rotate_left(turn);
        for system in systems {
            let (work, name) = (step.work.key(), system.name());
            let started = Instant::now();
            match bench.measure(step.work, system) {
                Ok(sample) => {
                    let took = started.elapsed().as_secs_f64();
                    let line = summary(&sample);
                    eprintln!(
                        "{}/{rounds} {work:<26} {name:<30} {took:>4.1} s  {line}",
                        round + 1
                    );
                    results.add(step.work, system, round, sample);
                }
                Err(error) => {
                    eprintln!(
                        "{}/{rounds} {work:<26} {name:<30} FAILED: {error:#}",
                        round + 1
                    );
                    let failure = format!("{work}, {name}, round {}: {error:#}", round + 1);
                    results.failures.push(failure);
                }
            }
        }
    }
}

fn summary(sample: &Sample) -> String {
    let values = sample.iter().filter(|(name, _)| *name != "seconds");
    let values = values.map(|(name, value)| format!("{name} {}", report::number(*value)));
    values.collect::<Vec<_>>().join(", ")
}

fn write(directory: &Path, label: Option<&str>, results: &Results) -> Result<()> {
    fs::create_dir_all(directory)?;
    let mut name = results.machine.get("date").context("no date")?.clone();
    if let Some(label) = label {
        name = format!("{name}-{label}");
    }
    let json = serde_json::to_string_pretty(results)? + "\n";
    for (extension, text) in [
        ("json", json),
        ("md", report::markdown(results)),
        ("svg", report::svg(results)),
    ] {
        let path = directory.join(&name).with_extension(extension);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_chosen;

    #[test]
    fn a_whole_name_is_that_work_alone_and_a_part_of_a_name_all_that_have_it() {
        let names = ["fanout-1", "fanout-10", "store-append-r1-1"].map(str::to_owned);
        let chosen = |wanted: &[&str]| -> Vec<&str> {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let names = names.iter().filter(|name| is_chosen(name, &names, &wanted));
            names.map(String::as_str).collect()
        };
        assert_eq!(chosen(&["fanout-1"]), ["fanout-1"]);
        assert_eq!(chosen(&["fanout-"]), ["fanout-1", "fanout-10"]);
        assert_eq!(
            chosen(&["fanout-10", "store-"]),
            ["fanout-10", "store-append-r1-1"]
        );
        assert_eq!(chosen(&[]).len(), 3);
    }
}
