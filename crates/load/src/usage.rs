//! Owns what a stretch of time has cost: its length, and the CPU that both sides used in it.

use std::time::{Duration, Instant};

use super::{
    Context,
    machine::{Process, busy_time},
    report::{self, Figure, Measured, Unit},
    server::Server,
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
pub(super) struct Clock<'a> {
    server: Process,
    started: Instant,
    server_cpu: Option<Duration>,
    load_cpu: Option<Duration>,
    busy: Option<Duration>,
    cpus: &'a [usize],
}

/// What was used between a start and a stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) elapsed: Duration,
    pub(super) server_cpu: Option<Duration>,
    load_cpu: Option<Duration>,
    /// What all CPUs did, for whomever.
    busy: Option<Duration>,
}

impl<'a> Clock<'a> {
    pub(super) fn start(context: &'a Context<'_>, server: &Server) -> Self {
        let cpus = context.split.all();
        Self {
            cpus,
            busy: busy_time(cpus),
            server: server.process,
            server_cpu: server.process.cpu_time(),
            load_cpu: Process::own().cpu_time(),
            started: Instant::now(),
        }
    }

    pub(super) fn stop(self) -> Usage {
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
    pub(super) fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64()
    }

    /// How long it was, and how much of its CPUs each side used.
    pub(super) fn measured(&self, context: &Context<'_>) -> Measured {
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
                share(self.server_cpu, context.split.server_cpus()),
            ),
            (
                LOAD_CPU_SHARE,
                share(self.load_cpu, context.split.load_cpus()),
            ),
            (OTHERS_CPU_SHARE, share(others, context.split.all_cpus())),
        ]
    }
}
