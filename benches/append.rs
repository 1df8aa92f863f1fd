//! Durable append: groups of 500-byte events into the embedded log, beside a plain file that is
//! appended to and flushed (`fdatasync`) with the same bytes. Run with `cargo bench --bench append`.
//!
//! `BENCH_IDS` sets how many ids are there before (default 1,000,000) in the `aged` cases.

#![expect(
    clippy::print_stderr,
    reason = "the slowest commits, beside what criterion prints"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on should stop"
)]

use std::{
    fs::File,
    hint::black_box,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prelude_bridge::{
    event::{Batch, Draft, EventKey},
    log::{Log, embedded},
};

const EVENT_BYTES: usize = 500;
const GROUPS: [usize; 4] = [1, 10, 100, 1_000];

/// On the disk of the build, not in a `/tmp` that may be memory.
fn directory() -> tempfile::TempDir {
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target");
    tempfile::tempdir_in(target).unwrap()
}

/// Events that are new each time, with half of their bytes in the JSON and half in the fields.
struct Events(u64);

impl Events {
    fn batch(&mut self, count: usize) -> Batch {
        let half = EVENT_BYTES / 2;
        let drafts = (0..count).map(|index| {
            self.0 += 1;
            Draft {
                key: EventKey::new("bench", &self.0.to_string()),
                event_type: "user.created".into(),
                user_hash: 7,
                head: index * half..index * half + 60,
                payload: index * half + 60..(index + 1) * half,
                raw_json: index * half..(index + 1) * half,
            }
        });
        Batch {
            app_id: "bench".into(),
            drafts: drafts.collect(),
            body: vec![b' '; count * half].into(),
            encoded: vec![1; count * half].into(),
        }
    }
}

type Durations = Arc<Mutex<Vec<Duration>>>;

fn open(path: &Path) -> (Arc<embedded::Embedded>, Durations) {
    let durations = Durations::default();
    let noted = Arc::clone(&durations);
    let options = embedded::Options {
        on_commit: Some(Arc::new(move |commit| {
            noted.lock().unwrap().push(commit.duration);
        })),
        ..embedded::Options::default()
    };
    let log = embedded::open(path, options, Box::new(|_| {})).unwrap();
    (log, durations)
}

/// Stalls do not show in a median: says how long the slowest commits took.
fn print_stalls(name: &str, count: usize, durations: &Durations) {
    let mut durations = std::mem::take(&mut *durations.lock().unwrap());
    durations.sort_unstable();
    let at = |permille: usize| {
        let index = durations.len() * permille / 1_000;
        durations
            .get(index)
            .or(durations.last())
            .copied()
            .unwrap_or_default()
    };
    if !durations.is_empty() {
        eprintln!(
            "{name}/{count}: {} commits, p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
            durations.len(),
            at(500),
            at(990),
            at(999),
            at(1_000)
        );
    }
}

fn file(criterion: &mut Criterion) {
    let directory = directory();
    let mut group = criterion.benchmark_group("append/file");
    for count in GROUPS {
        group.throughput(Throughput::Elements(count as u64));
        let mut file = File::create(directory.path().join("file")).unwrap();
        let bytes = vec![1; count * EVENT_BYTES];
        group.bench_function(count.to_string(), |bencher| {
            bencher.iter(|| {
                file.write_all(black_box(&bytes)).unwrap();
                file.sync_data().unwrap();
            });
        });
    }
}

fn log_of(criterion: &mut Criterion, name: &str, ids: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let directory = directory();
    let (log, durations) = open(directory.path());
    let mut events = Events(0);
    for _ in 0..ids / 5_000 {
        runtime.block_on(log.append(events.batch(5_000))).unwrap();
    }
    durations.lock().unwrap().clear();
    let mut group = criterion.benchmark_group(name);
    for count in GROUPS {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(count.to_string(), |bencher| {
            bencher.iter_batched(
                || events.batch(count),
                |batch| runtime.block_on(log.append(batch)).unwrap(),
                criterion::BatchSize::PerIteration,
            );
        });
        print_stalls(name, count, &durations);
    }
}

fn embedded_log(criterion: &mut Criterion) {
    log_of(criterion, "append/log", 0);
}

fn aged_log(criterion: &mut Criterion) {
    let ids = std::env::var("BENCH_IDS").map_or(1_000_000, |ids| ids.parse().unwrap());
    log_of(criterion, "append/aged", ids);
}

criterion_group!(benches, file, embedded_log, aged_log);
criterion_main!(benches);
