//! Durable append: groups of 500-byte events into the embedded log, against a plain file that is
//! appended to and flushed (`fdatasync`) with the same bytes. Run with `cargo bench --bench append`.
//!
//! Disks are noisy: file and log take turns, a few commits each, and what counts is the ratio of
//! their medians within one run. Stalls do not show in a median, so the slowest are shown too, and
//! so is what was written: that is the same in every run.
//!
//! - `BENCH_IDS`: how many events are there before (default 1,000,000)
//! - `BENCH_OLD_EVENT_BYTES`: how long each of those is (default 160)
//! - `BENCH_KEEP`: leaves the log where it is, and says where
//! - `BENCH_ROUNDS`: how many turns each takes (default 150; 20 with `--quick`)
//! - `BENCH_GROUPS`: the sizes of groups (default 1,10,100,1000)
//! - `BENCH_REPEAT`: appends known events instead of new ones

#![expect(clippy::print_stderr, reason = "progress")]
#![expect(clippy::print_stdout, reason = "the table")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on should stop"
)]

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prelude_bridge::{
    event::{Batch, Draft, EventKey},
    log::{Log, embedded},
    wire::Head,
};
use tokio::runtime::Runtime;

const EVENT_BYTES: usize = 500;
/// Commits in one turn.
const TURN: usize = 8;

fn main() {
    let setting = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |value| value.parse().unwrap())
    };
    let quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = setting("BENCH_ROUNDS", if quick { 20 } else { 150 });
    let ids = setting("BENCH_IDS", 1_000_000);
    let old_event_bytes = setting("BENCH_OLD_EVENT_BYTES", 160);
    let repeat = std::env::var_os("BENCH_REPEAT").is_some();
    let groups = std::env::var("BENCH_GROUPS").unwrap_or_else(|_| "1,10,100,1000".into());
    let groups: Vec<usize> = groups.split(',').map(|n| n.parse().unwrap()).collect();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    // On the disk of the build, not in a `/tmp` that may be memory.
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target");
    let mut directory = tempfile::tempdir_in(target).unwrap();
    if std::env::var_os("BENCH_KEEP").is_some() {
        directory.disable_cleanup(true);
        eprintln!("the log stays in {}", directory.path().display());
    }
    let (mut log, mut commits) = open(directory.path());
    let mut events = Events(0);
    let started = Instant::now();
    for _ in 0..ids / 5_000 {
        runtime
            .block_on(log.append(events.batch(5_000, old_event_bytes)))
            .unwrap();
    }
    if ids > 0 {
        eprintln!("{ids} ids appended in {:.1?}", started.elapsed());
        runtime.block_on(log.close());
        drop(log);
        let started = Instant::now();
        (log, commits) = open(directory.path());
        eprintln!("opened in {:.1?}", started.elapsed());
        let started = Instant::now();
        runtime
            .block_on(log.append(events.batch(1, EVENT_BYTES)))
            .unwrap();
        eprintln!("first append in {:.1?}", started.elapsed());
    }
    eprintln!("resident: {} MiB", status_kib("VmRSS:") / 1024);
    println!(
        "| events | file p50 | log p50 | file ÷ log | log p99 | longest | longest ÷ p50 | bytes written an event | writing system calls a commit | CPU a commit |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for group in groups {
        let rig = Rig {
            runtime: &runtime,
            log: &*log,
            commits: &commits,
            group,
            repeat,
        };
        rig.run(&mut events, directory.path(), rounds);
    }
    eprintln!("resident: {} MiB", status_kib("VmRSS:") / 1024);
}

struct Rig<'a> {
    runtime: &'a Runtime,
    log: &'a dyn Log,
    commits: &'a Durations,
    group: usize,
    repeat: bool,
}

impl Rig<'_> {
    fn run(&self, events: &mut Events, directory: &Path, rounds: usize) {
        let mut file = File::create(directory.join("file")).unwrap();
        let bytes = vec![1; self.group * EVENT_BYTES];
        let mut in_file = Vec::new();
        let mut in_log = Vec::new();
        let mut written = Io::default();
        self.commits.lock().unwrap().clear();
        for _ in 0..rounds {
            for _ in 0..TURN {
                let started = Instant::now();
                file.write_all(&bytes).unwrap();
                file.sync_data().unwrap();
                in_file.push(started.elapsed());
            }
            let batches: Vec<Batch> = (0..TURN)
                .map(|_| {
                    if self.repeat {
                        events.0 = events.0.saturating_sub(self.group as u64);
                    }
                    let batch = events.batch(self.group, EVENT_BYTES);
                    if self.repeat {
                        events.0 = events.0.saturating_sub(self.group as u64);
                    }
                    batch
                })
                .collect();
            let before = Io::now();
            for batch in batches {
                let started = Instant::now();
                self.runtime.block_on(self.log.append(batch)).unwrap();
                in_log.push(started.elapsed());
            }
            written.add(&Io::now(), &before);
        }
        let file_p50 = quantile(&mut in_file, 0.5);
        let log_p50 = quantile(&mut in_log, 0.5);
        let commits = rounds * TURN;
        let mut inner = std::mem::take(&mut *self.commits.lock().unwrap());
        let longest = quantile(&mut in_log, 1.0);
        println!(
            "| {} | {:.2?} | {:.2?} | {:.2} | {:.2?} | {:.1?} | {:.1} | {} | {:.1} | {:.0?} |",
            self.group,
            file_p50,
            log_p50,
            file_p50.as_secs_f64() / log_p50.as_secs_f64(),
            quantile(&mut in_log, 0.99),
            longest,
            longest.as_secs_f64() / log_p50.as_secs_f64(),
            written.bytes / (commits * self.group) as u64,
            written.calls as f64 / commits as f64,
            written.cpu / u32::try_from(commits).unwrap(),
        );
        eprintln!(
            "  of it the commit: p50 {:.2?}, p99 {:.2?}, longest {:.1?}; file: p99 {:.2?}, longest {:.1?}",
            quantile(&mut inner, 0.5),
            quantile(&mut inner, 0.99),
            quantile(&mut inner, 1.0),
            quantile(&mut in_file, 0.99),
            quantile(&mut in_file, 1.0),
        );
    }
}

fn quantile(durations: &mut [Duration], quantile: f64) -> Duration {
    durations.sort_unstable();
    let index = (durations.len() as f64 * quantile) as usize;
    let at = durations.get(index).or(durations.last());
    at.copied().unwrap_or_default()
}

type Durations = Arc<Mutex<Vec<Duration>>>;

fn open(path: &Path) -> (Arc<embedded::Embedded>, Durations) {
    let durations = Durations::default();
    let noted = Arc::clone(&durations);
    let options = embedded::Options {
        retention_bytes: 1 << 40,
        on_commit: Some(Arc::new(move |commit| {
            noted.lock().unwrap().push(commit.duration);
        })),
        ..embedded::Options::default()
    };
    let log = embedded::open(path, options).unwrap();
    (log, durations)
}

/// Events that are new each time, with half of their bytes in the JSON and half in the fields.
struct Events(u64);

impl Events {
    fn batch(&mut self, count: usize, bytes: usize) -> Batch {
        let half = bytes / 2;
        let mut encoded = Vec::with_capacity(count * half);
        let drafts = (0..count).map(|index| {
            self.0 += 1;
            let id = self.0.to_string();
            // A start reads the first event of a block, so its fields are real ones.
            Head {
                id: &id,
                event_type: "user.created",
                app_id: "bench",
                ..Head::default()
            }
            .encode(&mut encoded);
            let head_end = encoded.len();
            encoded.resize((index + 1) * half, 1);
            Draft {
                key: EventKey::new("bench", &id, "user.created", b""),
                event_type: "user.created".into(),
                user_hash: 7,
                head: index * half..head_end,
                payload: head_end..(index + 1) * half,
                raw_json: index * half..(index + 1) * half,
            }
        });
        let drafts = drafts.collect();
        Batch {
            app_id: "bench".into(),
            drafts,
            body: vec![b' '; count * half].into(),
            encoded: encoded.into(),
            dates: Default::default(),
        }
    }
}

/// What this process has written and computed, where the system tells (Linux).
#[derive(Default)]
struct Io {
    bytes: u64,
    calls: u64,
    /// Of all threads, the one that waits for the commits included.
    cpu: Duration,
}

impl Io {
    fn now() -> Self {
        Self {
            bytes: field("/proc/self/io", "wchar:"),
            calls: field("/proc/self/io", "syscw:"),
            cpu: cpu_time(),
        }
    }

    fn add(&mut self, now: &Self, before: &Self) {
        self.bytes += now.bytes - before.bytes;
        self.calls += now.calls - before.calls;
        self.cpu += now.cpu.saturating_sub(before.cpu);
    }
}

fn cpu_time() -> Duration {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return Duration::ZERO;
    };
    let nanoseconds = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn status_kib(name: &str) -> u64 {
    field("/proc/self/status", name)
}

fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
