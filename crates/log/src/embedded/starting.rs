//! Owns the start of a log: it opens what is in a directory, and starts the threads.

use std::{
    path::Path,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicBool},
    thread::{self, JoinHandle},
};

use tokio::{runtime::Handle, sync::watch};

use super::{
    Embedded, OpenError, Options, Seams, Shared,
    active::Active,
    directory::Directory,
    disk_error,
    ids_budget::IdsBudget,
    in_order,
    keeper::{self, Keeper},
    opening::{self, Opened},
    queue::Queue,
    readers::Readers,
    replica::{Beginning, Follow, Replica, Replicated, Start},
    reserve::Reserve,
    retention::Retention,
    scrub::{self, Scrub},
    writer::{self, Writer},
};
use crate::{
    Epochs, Health, Publisher,
    group::{self, Stamps},
    ids,
    sequencer::Sequencer,
};

/// Opens the replica of a log in a directory, which is created if need be; the log too, where the sequence
/// is new. Resolves before the replica has caught up.
///
/// # Errors
/// [`OpenError`], which says what to do.
pub async fn open_replica(
    data_dir: &Path,
    options: Options,
    sequencer: Arc<dyn Sequencer>,
) -> Result<Arc<Embedded>, OpenError> {
    open_replica_with_seams(data_dir, options, sequencer, Seams::default()).await
}

/// The same with seams.
pub(crate) async fn open_replica_with_seams(
    data_dir: &Path,
    options: Options,
    sequencer: Arc<dyn Sequencer>,
    seams: Seams,
) -> Result<Arc<Embedded>, OpenError> {
    let (data_dir, runtime) = (data_dir.to_owned(), Handle::current());
    let opened = runtime
        .clone()
        .spawn_blocking(move || open_in_order(&data_dir, options, sequencer, runtime, seams));
    let opened = opened.await;
    opened.unwrap_or_else(|panic| Err(OpenError::Thread(std::io::Error::other(panic))))
}

/// The same with seams.
pub(crate) fn open_with_seams(
    data_dir: &Path,
    options: Options,
    seams: Seams,
) -> Result<Arc<Embedded>, OpenError> {
    open_directory(Directory::open(data_dir)?, options, seams, None)
}

/// Opens the replica of a log that a sequence orders. Blocks until the engine has answered.
fn open_in_order(
    data_dir: &Path,
    mut options: Options,
    sequencer: Arc<dyn Sequencer>,
    runtime: Handle,
    seams: Seams,
) -> Result<Arc<Embedded>, OpenError> {
    let (part, whole) = in_order::GROUP_PART;
    let bytes_max = sequencer.commit_bytes_max() / whole * part;
    options.group_bytes_max = options.group_bytes_max.min(bytes_max);
    let directory = Directory::open(data_dir)?;
    let start = Start {
        directory: &directory,
        sequencer: &sequencer,
        runtime: &runtime,
        clock: &seams.clock,
    };
    let beginning = start.begin()?;
    let replicated = Arc::new(Replicated::new(sequencer, beginning.position()));
    open_directory(
        directory,
        options,
        seams,
        Some((beginning, replicated, runtime)),
    )
}

/// Opens what is in a directory: a log with one writer, or a replica.
fn open_directory(
    directory: Directory,
    options: Options,
    seams: Seams,
    replica: Option<(Beginning, Arc<Replicated>, Handle)>,
) -> Result<Arc<Embedded>, OpenError> {
    let data_dir = directory.path();
    let ids_limits = seams.ids_limits;
    let ids_limits =
        ids_limits.unwrap_or_else(|| ids::Limits::new(options.ids_age, options.ids_bytes));
    let age_max = options.retention_age;
    let mut opened = opening::open(&directory, ids_limits, &seams, age_max, replica.is_some())?;
    let found = &opened.found;
    let first = found.segments.last().map(|last| last.first_sequence);
    let mut active = Active::new(
        data_dir,
        opened.manifest.log,
        found.tip.ok_or(found.next_ordinal),
        first.and_then(|first| opened.ages.written_at(first)),
        options.retention_bytes,
    );
    if replica.is_some() {
        active.leave_unflushed();
    }
    match active.open(&seams.fault) {
        Err(error) if disk_error::is_no_space(&error) => opened.is_full = true,
        opened => opened.map_err(|source| OpenError::Directory {
            path: data_dir.to_owned(),
            source,
        })?,
    }
    start(directory, opened, active, (options, seams), replica)
}

/// Starts the threads of a log that was opened.
fn start(
    directory: Directory,
    opened: Opened,
    active: Active,
    (options, seams): (Options, Seams),
    replica: Option<(Beginning, Arc<Replicated>, Handle)>,
) -> Result<Arc<Embedded>, OpenError> {
    let Opened {
        manifest,
        ids,
        epoch,
        missing_ids,
        clock,
        ages,
        found,
        is_full,
    } = opened;
    let (done, ended) = watch::channel(false);
    let epochs = Epochs::new(manifest.log, manifest.epochs);
    let shared = Arc::new(Shared {
        queue: Queue::new(options.queue_limits()),
        keeper: Keeper::default(),
        scrub: Scrub::default(),
        segments: Arc::new(found.segments),
        publisher: Publisher::new(found.range, epochs, Health::Ready),
        reserve: Reserve::new(directory.path(), options.retention_bytes),
        ids_usage: Mutex::new(ids.usage(found.range.head, None)),
        clock: clock.watch(),
        failure: OnceLock::new(),
        no_space_at: Mutex::new(None),
        engine_health: Mutex::new(None),
        has_missing_ids: AtomicBool::new(missing_ids.is_some()),
        replicated: replica.as_ref().map(|(_, it, _)| Arc::clone(it)),
        fault: seams.fault,
        done,
    });
    shared.set_no_space(is_full);
    for located in &found.damage {
        shared.note_damage(located);
    }
    let keeper = keeper::Work::new(Arc::clone(&shared), manifest.log, ids.background());
    let keeper = spawn("log-keeper", move || keeper.run())?;
    let follow = replica.as_ref().map(|(_, replicated, runtime)| {
        let follow = Follow::new(Arc::clone(&shared), Arc::clone(replicated));
        (follow, runtime.clone())
    });
    let replica = replica.map(|(beginning, replicated, runtime)| {
        Replica::new(replicated, runtime, &beginning, epoch, seams.store_patience).map(Box::new)
    });
    let replica = replica.transpose().inspect_err(|_| shared.keeper.stop())?;
    let writer = Writer {
        replica,
        shared: Arc::clone(&shared),
        keeper,
        on_commit: options.on_commit,
        log: manifest.log,
        epoch,
        builder: group::new_builder(),
        clock,
        stamps: Stamps::new(found.last_at),
        ages,
        ids,
        missing_ids,
        active,
        next_commit: getrandom::u64().inspect_err(|_| shared.keeper.stop())?,
        retention: Retention::new(options.retention_bytes, options.retention_age),
        unsaved: writer::Unsaved {
            has_news: is_full,
            confirmed: manifest.confirmed,
            unsealed: found.unsealed,
            ..writer::Unsaved::default()
        },
        ids_budget: IdsBudget::default(),
    };
    let background = (options.readers, options.scrub_bytes_per_second);
    launch(directory, writer, background, follow, ended)
}

/// Starts the writer, the readers, the scrub, and the task that follows a sequence.
fn launch(
    directory: Directory,
    mut writer: Writer,
    (readers, scrub_rate): (usize, u64),
    follow: Option<(Follow, Handle)>,
    ended: watch::Receiver<bool>,
) -> Result<Arc<Embedded>, OpenError> {
    let (shared, log) = (Arc::clone(&writer.shared), writer.log);
    let readers = Readers::new(&shared.segments, readers).map_err(OpenError::Thread);
    let readers = readers.inspect_err(|_| shared.keeper.stop())?;
    writer.publish_health();
    if let Some(replica) = &writer.replica {
        replica.serve(&shared);
    }
    let thread = spawn("log-writer", move || writer.run()).inspect_err(|_| shared.keeper.stop())?;
    if let Some((follow, runtime)) = follow {
        runtime.spawn(follow.run());
    }
    let scrub = scrub::Work::new(Arc::clone(&shared), log, scrub_rate);
    let scrub = (scrub_rate > 0).then(|| spawn("log-scrub", move || scrub.run()));
    Ok(Arc::new(Embedded {
        shared,
        readers,
        thread: Mutex::new(Some(thread)),
        scrub: Mutex::new(scrub.and_then(Result::ok)),
        ended,
        _directory: directory,
    }))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(OpenError::Thread)
}
