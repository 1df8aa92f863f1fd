//! Owns what a stretch of time has cost: its length, and the CPU that both sides used in it.

use std::time::{Duration, Instant};

use super::{
    cpus::Split,
    machine::{Process, busy_time},
    report::{self, Figure, Measured, Unit},
};

const SECONDS: Figure = Figure {
    name: "seconds",
    title: "",
    unit: Unit::Seconds,
};
const SERVER_CPU_SHARE: Figure = Figure {
    name: report::SERVER_CPU_SHARE,
    title: "server CPU used",
    unit: Unit::Share,
};
const LOAD_CPU_SHARE: Figure = Figure {
    name: report::LOAD_CPU_SHARE,
    title: "load CPU used",
    unit: Unit::Share,
};

/// Who else was at work: noise in every other figure.
const OTHERS_CPU_SHARE: Figure = Figure {
    name: report::OTHERS_CPU_SHARE,
    title: "",
    unit: Unit::Share,
};

/// Measures a stretch of time, and the CPU that both sides use in it.
pub struct Clock<'a> {
    server: Process,
    started: Instant,
    server_cpu: Option<Duration>,
    load_cpu: Option<Duration>,
    busy: Option<Duration>,
    cpus: &'a [usize],
}

/// What was used between a start and a stop; `None` where this system does not tell.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// The time that went by.
    pub elapsed: Duration,
    /// The CPU time of the server.
    pub server_cpu: Option<Duration>,
    /// The CPU time of this process.
    pub load_cpu: Option<Duration>,
    /// What all CPUs did, for whomever.
    busy: Option<Duration>,
}

impl<'a> Clock<'a> {
    /// Begins now.
    #[must_use]
    pub fn start(split: &'a Split, server: Process) -> Self {
        let cpus = split.all();
        Self {
            cpus,
            busy: busy_time(cpus),
            server,
            server_cpu: server.cpu_time(),
            load_cpu: Process::own().cpu_time(),
            started: Instant::now(),
        }
    }

    /// Ends now.
    #[must_use]
    pub fn stop(self) -> Usage {
        let elapsed = self.started.elapsed();
        let used = |process: Process, before: Option<Duration>| {
            Some(process.cpu_time()?.saturating_sub(before?))
        };
        Usage {
            elapsed,
            server_cpu: used(self.server, self.server_cpu),
            load_cpu: used(Process::own(), self.load_cpu),
            busy: self
                .busy
                .and_then(|before| Some(busy_time(self.cpus)?.saturating_sub(before))),
        }
    }
}

impl Usage {
    /// The time that went by.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64()
    }

    /// How long it was, and how much of its CPUs each side used.
    pub(super) fn measured(&self, split: &Split) -> Measured {
        let share = |cpu: Option<Duration>, cpus: usize| {
            cpu.map(|cpu| cpu.as_secs_f64() / self.seconds() / cpus as f64)
        };
        let others = self.busy.and_then(|busy| {
            let ours = self.server_cpu? + self.load_cpu?;
            Some(busy.saturating_sub(ours))
        });
        vec![
            (SECONDS, Some(self.seconds())),
            (
                SERVER_CPU_SHARE,
                share(self.server_cpu, split.server_cpus()),
            ),
            (LOAD_CPU_SHARE, share(self.load_cpu, split.load_cpus())),
            (OTHERS_CPU_SHARE, share(others, split.all_cpus())),
        ]
    }
}
