//! Owns what is known about where figures come from: the machine, the build, and what a process has
//! used. Linux tells all of it below `/proc`; elsewhere it is unavailable, and said to be.

use std::{fs, time::Duration};

use super::{
    Settings,
    cpus::Split,
    report::{Line, Value},
};

/// Where and with what it was measured.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The CPU's own name.
    pub cpu_model: String,
    /// How many CPUs this process may use.
    pub cpus: usize,
    /// The operating system and its release.
    pub kernel: String,
    /// Who runs where.
    pub pinning: String,
    /// The settings.
    pub settings: Settings,
}

impl Environment {
    pub(super) fn new(settings: &Settings, split: &Split) -> Self {
        let system = std::env::consts::OS;
        let kernel = format!("{system} {}", kernel_release());
        Self {
            cpu_model: cpu_model(),
            cpus: split.all_cpus(),
            kernel: kernel.trim_end().to_owned(),
            pinning: split.to_string(),
            settings: settings.clone(),
        }
    }

    /// As the first line of a report.
    pub(super) fn line(&self) -> Line {
        let build = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        let settings = vec![
            ("version", Value::Text(env!("CARGO_PKG_VERSION").to_owned())),
            ("build", Value::Text(build.to_owned())),
            ("cpu_model", Value::Text(self.cpu_model.clone())),
            ("cpus", Value::count(self.cpus)),
            ("kernel", Value::Text(self.kernel.clone())),
            ("pinning", Value::Text(self.pinning.clone())),
            ("event_bytes", Value::count(self.settings.event_bytes)),
            (
                "frame_bytes",
                Value::Count(self.settings.frame_bytes.into()),
            ),
        ];
        Line::new("environment", settings, self.settings.runs)
    }
}

/// The CPU's own name.
#[must_use]
pub fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()));
    name.unwrap_or_else(|| format!("unknown {}", std::env::consts::ARCH))
}

/// The release of the kernel; empty where it is not known.
#[must_use]
pub fn kernel_release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Asks for so many open files, which children inherit, and says how many there may be. `None` is
/// no limit.
#[must_use]
pub fn open_files(wanted: u64) -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= wanted) {
        return current;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// A process whose use of CPU and memory can be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(u32);

impl Process {
    pub(super) fn new(id: u32) -> Self {
        Self(id)
    }

    /// This process.
    #[must_use]
    pub fn own() -> Self {
        Self(std::process::id())
    }

    /// The CPU time of all its threads since it began. The kernel keeps it in nanoseconds for each
    /// thread (`schedstat`); what threads used that have ended is only in the ticks (10 ms) of the
    /// whole (`stat`). The larger counts.
    #[must_use]
    pub fn cpu_time(self) -> Option<Duration> {
        if self == Self::own() {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            return Duration::try_from(time).ok();
        }
        let ticks = parse_cpu_time(&self.read("stat")?, rustix::param::clock_ticks_per_second())?;
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).into_iter();
        let threads = tasks.flatten().filter_map(|task| {
            // A thread may end meanwhile.
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            let nanos = text.split_ascii_whitespace().next()?.parse().ok()?;
            Some(Duration::from_nanos(nanos))
        });
        Some(ticks.max(threads.sum()))
    }

    /// How much of its memory is resident now, in bytes.
    #[must_use]
    pub fn resident_bytes(self) -> Option<u64> {
        parse_kib(&self.read("status")?, "VmRSS:")
    }

    /// The most memory that was ever resident, in bytes.
    pub(super) fn resident_bytes_peak(self) -> Option<u64> {
        parse_kib(&self.read("status")?, "VmHWM:")
    }

    fn read(self, file: &str) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.0)).ok()
    }
}

/// The time that these CPUs were not idle since the system began, for whomever; also what a
/// hypervisor gave to other machines.
pub(super) fn busy_time(cpus: &[usize]) -> Option<Duration> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    parse_busy_time(&text, cpus, rustix::param::clock_ticks_per_second())
}

/// The lines of single CPUs in proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal.
/// What follows is counted in user already.
fn parse_busy_time(stat: &str, cpus: &[usize], ticks_per_second: u64) -> Option<Duration> {
    let mut sum = 0;
    for cpu in cpus {
        let name = format!("cpu{cpu} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name))?;
        let ticks = line.split_ascii_whitespace().map(str::parse::<u64>);
        let ticks: Vec<u64> = ticks.take(8).collect::<Result<_, _>>().ok()?;
        let [user, nice, system, _idle, _iowait, irq, softirq, steal] = ticks.try_into().ok()?;
        sum += user + nice + system + irq + softirq + steal;
    }
    ticks(sum, ticks_per_second)
}

fn ticks(count: u64, per_second: u64) -> Option<Duration> {
    let micros = count.checked_mul(1_000_000)?.checked_div(per_second)?;
    Some(Duration::from_micros(micros))
}

/// `utime` and `stime` of proc_pid_stat(5). The name before them is in parentheses and may hold
/// anything, so they are counted from the last one.
fn parse_cpu_time(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    ticks(user + system, ticks_per_second)
}

fn parse_kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_is_read_behind_whatever_name_a_process_has() {
        let stat = "42 (a) S 1 ) R 1 42 42 0 -1 4194304 93 0 0 0 150 50 0 0 20 0 1 0 9 1 2 3";
        assert_eq!(parse_cpu_time(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(parse_cpu_time("42 (a) S 1", 100), None);
        assert_eq!(parse_cpu_time(stat, 0), None);
    }

    #[test]
    fn resident_memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_kib(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(parse_kib(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(parse_kib(status, "VmSwap:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn another_process_is_counted_while_it_runs() {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        let mut child = command.spawn().unwrap();
        let process = Process::new(child.id());
        let started = std::time::Instant::now();
        while process.cpu_time().unwrap() < Duration::from_millis(50) {
            assert!(started.elapsed() < Duration::from_secs(60), "it is counted");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.cpu_time(), None);
    }

    #[test]
    fn the_files_that_are_open_already_are_allowed() {
        assert!(open_files(1).is_none_or(|files| files > 0));
    }

    #[test]
    fn a_cpu_is_busy_when_it_is_neither_idle_nor_waiting() {
        let stat = "cpu  9 9 9 9\ncpu1 1 2 3 1000 500 4 5 6 7 8\ncpu10 100 0 0 1 1 0 0 0 0 0\n";
        let busy = |cpus: &[usize]| parse_busy_time(stat, cpus, 100);
        assert_eq!(busy(&[1]), Some(Duration::from_millis(210)));
        assert_eq!(busy(&[1, 10]), Some(Duration::from_millis(1_210)));
        assert_eq!(busy(&[2]), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_cpu_and_memory() {
        let process = Process::own();
        assert!(process.cpu_time().unwrap() > Duration::ZERO);
        assert!(process.resident_bytes().unwrap() > 1 << 20);
        assert!(process.resident_bytes_peak().unwrap() > 1 << 20);
    }
}
