//! Logs that are copied from directories to a sequence in memory and back.

use std::{fs, path::Path};

use super::*;
use crate::{
    Log as _,
    embedded::{
        self, Embedded, Options,
        frame::Header,
        testing::{flip, frames_of, segment_paths},
    },
    fixtures,
    sequencer::{
        Position,
        memory::{Connection, Sequence as Commits},
    },
};

const ALL: usize = usize::MAX;

fn directory(path: &Path) -> Store {
    Store::Directory(path.to_owned())
}

fn sequence(connection: Arc<Connection>) -> Store {
    Store::Sequence(connection)
}

fn try_copy(from: &Store, to: &Store, patience: Duration) -> Result<CopyReport, CopyError> {
    let engine = Engine::new(&Handle::current(), patience);
    let mut seen = Vec::new();
    let copied = tokio::task::block_in_place(|| {
        copy_with_patience(from, to, &engine, &mut |progress| seen.push(progress))
    });
    if let Ok(report) = &copied {
        let progress = seen.last().filter(|it| it.phase == CopyPhase::Verify);
        let done = progress.map_or(0, |progress| progress.done_events);
        assert_eq!(done, report.events);
        assert!(seen.iter().all(|it| it.done_events <= it.total_events));
    }
    copied
}

fn copied(from: &Store, to: &Store) -> CopyReport {
    try_copy(from, to, PATIENCE).unwrap()
}

fn refused(from: &Store, to: &Store) -> String {
    try_copy(from, to, Duration::ZERO).unwrap_err().to_string()
}

fn open(dir: &Path) -> Arc<Embedded> {
    embedded::open(dir, Options::default()).unwrap()
}

async fn append(log: &Embedded, numbers: impl IntoIterator<Item = u64>) -> crate::Appended {
    let numbers: Vec<u64> = numbers.into_iter().collect();
    let batch = fixtures::numbered_list("app_1", &numbers);
    log.append(batch).await.unwrap()
}

async fn blocks(log: &Embedded) -> Vec<bytes::Bytes> {
    let after = log.range().earliest.before();
    let blocks = log.read(after, ALL).await.unwrap();
    blocks
        .iter()
        .map(|block| block.as_bytes().clone())
        .collect()
}

/// What a log has that its copies have too.
struct Original {
    dir: tempfile::TempDir,
    blocks: Vec<bytes::Bytes>,
    cursors: Vec<prelude_bridge_event::Cursor>,
    head: Sequence,
}

/// A log of three epochs, in which a commit has several blocks.
async fn original() -> Original {
    let dir = tempfile::tempdir().unwrap();
    for epoch in 0..3 {
        let log = open(dir.path());
        let from = epoch * 10_000;
        for n in from..from + 10 {
            append(&log, [n]).await;
        }
        if epoch == 1 {
            append(&log, from + 10..from + 9_000).await;
            append(&log, [from + 9_000]).await;
        }
        log.close().await;
    }
    let log = open(dir.path());
    let (head, blocks) = (log.range().head, blocks(&log).await);
    let mut cursors = log.status().cursors();
    let cursors = (log.range().earliest.before().0..=head.0).map(|at| cursors.at(Sequence(at)));
    let cursors = cursors.collect();
    log.close().await;
    drop(log);
    large_frame(dir.path());
    Original {
        dir,
        blocks,
        cursors,
        head,
    }
}

/// The first frame of the commit with several blocks: its file, its place, and its header.
fn large_frame(dir: &Path) -> (PathBuf, u64, Header) {
    let paths = segment_paths(dir).into_iter();
    let mut frames = paths.flat_map(|path| {
        let frames = frames_of(&path).into_iter();
        frames.map(move |(offset, header)| (path.clone(), offset, header))
    });
    frames
        .find(|(_, _, header)| header.frames_after > 0)
        .unwrap()
}

impl Original {
    fn store(&self) -> Store {
        directory(self.dir.path())
    }

    async fn check(&self, log: &Embedded) {
        assert_eq!(blocks(log).await, self.blocks);
        assert_eq!(log.range().head, self.head);
        for &cursor in &self.cursors {
            let checked = log.status().epochs().check(cursor, self.head);
            assert_eq!(checked, Ok(cursor.sequence));
        }
        let again = append(log, [0, 5, 18_000, 20_005, 99_999]).await;
        assert_eq!((again.accepted, again.duplicates), (1, 4));
    }
}

async fn replica(connection: Arc<Connection>, dir: &Path) -> Arc<Embedded> {
    let log = replica_of(connection, dir).await.unwrap();
    log.catch_up().await.unwrap();
    log
}

async fn replica_of(
    connection: Arc<Connection>,
    dir: &Path,
) -> Result<Arc<Embedded>, embedded::OpenError> {
    embedded::open_replica(dir, Options::default(), connection).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_continues_the_log_in_a_sequence_and_in_a_directory() {
    let original = original().await;
    let (commits, others) = (Arc::<Commits>::default(), Arc::<Commits>::default());
    let there = sequence(commits.connect());
    let report = copied(&original.store(), &there);
    assert_eq!((report.first, report.last), (Sequence(1), original.head));
    assert_eq!((report.events, report.events_before), (original.head.0, 0));
    // A mark, and then as few commits as possible, each with blocks of one epoch.
    assert_eq!(commits.ends_now().last, Position(1 + 1 + 3 + 1));
    // From one sequence to another.
    let other = sequence(others.connect());
    assert_eq!(copied(&there, &other), report);
    // And back to a directory.
    let back = tempfile::tempdir().unwrap();
    assert_eq!(copied(&other, &directory(back.path())), report);
    let again = copied(&other, &directory(back.path()));
    assert_eq!(
        (again.events_before, again.checksum),
        (report.events, report.checksum)
    );
    original.check(&open(back.path())).await;
    let dir = tempfile::tempdir().unwrap();
    original
        .check(&*replica(commits.connect(), dir.path()).await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_copy_goes_on() {
    let original = original().await;
    let whole = Arc::<Commits>::default();
    let report = copied(&original.store(), &sequence(whole.connect()));
    for left in 1..=whole.commits().len() {
        let commits = Arc::<Commits>::default();
        let there = sequence(commits.connect());
        copied(&original.store(), &there);
        commits.lose_tail(whole.commits().len() - left);
        let resumed = copied(&original.store(), &there);
        assert_eq!(
            (resumed.events, resumed.checksum),
            (report.events, report.checksum)
        );
        assert_eq!(resumed.events_before > 0, left > 1);
        original
            .check(&*replica(commits.connect(), tempfile::tempdir().unwrap().path()).await)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_copy_into_a_directory_goes_on() {
    let original = original().await;
    let commits = Arc::<Commits>::default();
    let connection = commits.connect();
    copied(&original.store(), &sequence(Arc::clone(&connection)));
    let back = tempfile::tempdir().unwrap();
    let log = replica(commits.connect(), back.path()).await;
    log.close().await;
    drop(log);
    let report = copied(&sequence(connection), &directory(back.path()));
    assert_eq!(report.events_before, report.events);
    original.check(&open(back.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_beginning_is_copied_and_one_without_events_too() {
    let commits = Arc::<Commits>::default();
    let dir = tempfile::tempdir().unwrap();
    let log = replica(commits.connect(), dir.path()).await;
    for n in 1..=10 {
        append(&log, [n]).await;
    }
    let mut cursors = log.status().cursors();
    let (edge, newest) = (cursors.at(Sequence(5)), cursors.at(Sequence(10)));
    log.close().await;
    drop(log);
    // The first position has a mark.
    commits.remove_before(Position(7));
    let back = tempfile::tempdir().unwrap();
    let report = copied(&sequence(commits.connect()), &directory(back.path()));
    assert_eq!(
        (report.first, report.last, report.events),
        (Sequence(6), Sequence(10), 5)
    );
    let others = Arc::<Commits>::default();
    let forth = copied(&directory(back.path()), &sequence(others.connect()));
    assert_eq!(forth, report);
    let dir = tempfile::tempdir().unwrap();
    let log = replica(others.connect(), dir.path()).await;
    assert_eq!(log.range().earliest, Sequence(6));
    let epochs = log.status().epochs();
    assert_eq!(epochs.check(edge, Sequence(10)), Ok(Sequence(5)));
    assert_eq!(epochs.check(newest, Sequence(10)), Ok(Sequence(10)));
    let foreign = prelude_bridge_event::Cursor {
        epoch: Epoch(edge.epoch.0 ^ 1),
        ..edge
    };
    assert!(epochs.check(foreign, Sequence(10)).is_err());

    let empty = tempfile::tempdir().unwrap();
    open(empty.path()).close().await;
    let nothing = Arc::<Commits>::default();
    let report = copied(&directory(empty.path()), &sequence(nothing.connect()));
    assert_eq!(
        (report.first, report.last, report.events),
        (Sequence(1), Sequence(0), 0)
    );
    assert_eq!(nothing.ends_now().last, Position(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_source_is_refused_with_the_place() {
    let original = original().await;
    let (path, offset, header) = large_frame(original.dir.path());
    flip(&path, (offset + header.frame_bytes() / 2 + 300) * 8);
    let commits = Arc::<Commits>::default();
    let reason = refused(&original.store(), &sequence(commits.connect()));
    assert!(
        reason.contains(&header.event_range().to_string()),
        "{reason}"
    );
    let named = reason.contains(&*path.to_string_lossy()) && reason.contains(&offset.to_string());
    assert!(named && reason.contains("restore"), "{reason}");
    // A header that is damaged, and a segment that is missing.
    flip(&path, (offset + 20) * 8);
    let reason = refused(
        &original.store(),
        &sequence(Arc::<Commits>::default().connect()),
    );
    assert!(reason.contains(&*path.to_string_lossy()), "{reason}");
    fs::remove_file(&path).unwrap();
    let reason = refused(
        &original.store(),
        &sequence(Arc::<Commits>::default().connect()),
    );
    assert!(
        reason.contains("missing") || reason.contains("damaged"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_and_damaged_commits_are_refused() {
    let original = original().await;
    let commits = Arc::<Commits>::default();
    copied(&original.store(), &sequence(commits.connect()));
    let kept = commits.commits();
    let others = Arc::<Commits>::default();
    let connection = others.connect();
    for (index, commit) in kept.iter().enumerate() {
        let mut commit = commit.to_vec();
        if index == 1 {
            let middle = commit.len() / 2;
            commit[middle] ^= 1;
        }
        let position = Position(index as u64 + 1);
        connection.append(position, commit.into()).await.unwrap();
    }
    let to = tempfile::tempdir().unwrap();
    let reason = refused(
        &sequence(Arc::clone(&connection)),
        &sequence(Arc::<Commits>::default().connect()),
    );
    assert!(
        reason.starts_with("commit 2 of the sequence in memory"),
        "{reason}"
    );
    let reason = refused(&sequence(connection), &directory(to.path()));
    assert!(reason.contains("commit 2 of the sequence"), "{reason}");
    // A commit is left out.
    let holes = Arc::<Commits>::default().connect();
    holes.append(Position(1), kept[0].clone()).await.unwrap();
    holes.append(Position(2), kept[2].clone()).await.unwrap();
    let reason = refused(
        &sequence(holes),
        &sequence(Arc::<Commits>::default().connect()),
    );
    assert!(reason.contains("commit 2"), "{reason}");
    flip(&original.dir.path().join("manifest"), 100);
    let reason = refused(
        &original.store(),
        &sequence(Arc::<Commits>::default().connect()),
    );
    assert!(
        reason.contains("manifest is damaged") && reason.contains("start a bridge"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_anything_else_is_refused() {
    let original = original().await;
    // Another log, in a sequence and in a directory.
    let foreign = Arc::<Commits>::default();
    let dir = tempfile::tempdir().unwrap();
    let log = replica(foreign.connect(), dir.path()).await;
    append(&log, [1]).await;
    let commits = foreign.commits();
    let to = sequence(foreign.connect());
    let reason = refused(&original.store(), &to);
    assert!(
        reason.contains("has log") && reason.contains("choose another stream or table"),
        "{reason}"
    );
    assert_eq!(foreign.commits(), commits);
    log.close().await;
    drop(log);
    let there = Arc::<Commits>::default();
    copied(&original.store(), &sequence(there.connect()));
    let reason = refused(&sequence(there.connect()), &directory(dir.path()));
    assert!(
        reason.contains("has log") && reason.contains("choose an empty directory"),
        "{reason}"
    );
    // The same log, which went on.
    let dir = tempfile::tempdir().unwrap();
    let log = replica(there.connect(), dir.path()).await;
    append(&log, [77_777]).await;
    let reason = refused(&original.store(), &sequence(there.connect()));
    assert!(reason.contains("goes on after the last event"), "{reason}");
    // Both went on, each in its own way.
    let own = open(original.dir.path());
    append(&own, [88_888]).await;
    own.close().await;
    drop(own);
    let reason = refused(&original.store(), &sequence(there.connect()));
    assert!(reason.contains("has other events"), "{reason}");
    // Its beginning is gone.
    there.remove_before(Position(2));
    let reason = refused(&original.store(), &sequence(there.connect()));
    assert!(
        reason.contains("does not begin with its first commit"),
        "{reason}"
    );
    // A log without a manifest, and a log of its own that has more.
    let to = tempfile::tempdir().unwrap();
    fs::write(to.path().join("events-00001"), "a segment").unwrap();
    let reason = refused(&sequence(there.connect()), &directory(to.path()));
    assert!(reason.contains("without a manifest"), "{reason}");
    let reason = refused(&sequence(there.connect()), &original.store());
    assert!(
        reason.contains("another content") && reason.contains("copy again"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_a_log_and_one_in_use_are_refused() {
    let original = original().await;
    let to = || sequence(Arc::<Commits>::default().connect());
    let none = original.dir.path().join("none");
    let reason = refused(&directory(&none), &to());
    assert!(
        reason.contains("there is no log in") && !none.exists(),
        "{reason}"
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(&directory(empty.path()), &to()).contains("there is no log in"));
    assert!(refused(&to(), &directory(empty.path())).contains("has no events"));
    let reason = refused(&original.store(), &directory(empty.path()));
    assert!(reason.contains("cp -a"), "{reason}");
    let log = open(original.dir.path());
    let reason = refused(&original.store(), &to());
    assert!(reason.contains("stop it"), "{reason}");
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_engine_answers_the_copy_is_whole() {
    let original = original().await;
    for seed in 1..=8 {
        let commits = Arc::<Commits>::default();
        commits.strike(seed, 3);
        let there = sequence(commits.connect());
        let report = copied(&original.store(), &there);
        let other = sequence(Arc::<Commits>::default().connect());
        assert_eq!(copied(&there, &other), report);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_full_or_gone_or_takes_too_little_ends_the_copy_with_its_reason() {
    let original = original().await;
    for (outage, reason) in [
        (Outage::Full("no room".into()), "no room"),
        (
            Outage::Unusable("the stream is gone".into()),
            "the stream is gone",
        ),
        (Outage::Unavailable("no quorum".into()), "no quorum"),
    ] {
        let commits = Arc::<Commits>::default();
        commits.set_outage(Some(outage));
        let found = refused(&original.store(), &sequence(commits.connect()));
        assert!(
            found.starts_with(reason) && found.contains("goes on where"),
            "{found}"
        );
    }
    let small = sequence(Arc::<Commits>::default().connect_with(100 * 1024));
    let found = refused(&original.store(), &small);
    assert!(
        found.contains("takes 102400 at most: raise that"),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_written_to_meanwhile_is_said() {
    let original = original().await;
    let commits = Arc::<Commits>::default();
    copied(&original.store(), &sequence(commits.connect()));
    let dir = tempfile::tempdir().unwrap();
    let log = replica(commits.connect(), dir.path()).await;
    let (from, to) = (
        sequence(commits.connect()),
        sequence(Arc::<Commits>::default().connect()),
    );
    let engine = Engine::new(&Handle::current(), PATIENCE);
    let mut has_appended = false;
    let copied = tokio::task::block_in_place(|| {
        copy_with_patience(&from, &to, &engine, &mut |_| {
            if !std::mem::replace(&mut has_appended, true) {
                engine.runtime.block_on(append(&log, [77_777]));
            }
        })
    });
    let reason = copied.unwrap_err().to_string();
    assert!(
        reason.contains("was written to meanwhile")
            && reason.contains("run the same command again"),
        "{reason}"
    );
    // It goes on with what came since.
    let report = try_copy(&from, &to, PATIENCE).unwrap();
    assert_eq!(
        (report.events - report.events_before, report.events),
        (1, original.head.0 + 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_store_is_lost_is_copied_back() {
    let original = original().await;
    let commits = Arc::<Commits>::default();
    copied(&original.store(), &sequence(commits.connect()));
    let dir = tempfile::tempdir().unwrap();
    let log = replica(commits.connect(), dir.path()).await;
    log.close().await;
    drop(log);
    let anew = Arc::<Commits>::default();
    copied(&directory(dir.path()), &sequence(anew.connect()));
    assert!(!segment_paths(dir.path()).is_empty());
    original
        .check(&*replica(anew.connect(), tempfile::tempdir().unwrap().path()).await)
        .await;
}
