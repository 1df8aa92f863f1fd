//! Random damage to every file of a log: it is harmless, or it is found and located, or what it hit is
//! made anew. None of it is silent, and no damaged event is served.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range as Bytes,
    path::PathBuf,
};

use super::{
    check::{CheckReport, Remedy, check},
    damage_tests::{HEAD, TRIMMED, chance, open_scrubbed, open_unscrubbed, read_all, template},
    directory::MANIFEST_FILE,
    frame::{ALIGNMENT, HEADER_BYTES, Header, SEGMENT_HEADER_BYTES},
    testing::{copy, footer_of, frames_of, id_files, segment_paths, waits_until},
    *,
};

/// How many damages are tried by each test. Torture: ten thousand at least.
const COUNT: &str = "PRELUDE_BRIDGE_DAMAGES";
/// As many as take less than five seconds in a debug build.
const CHECKS_DEFAULT: u64 = 200;
const SCRUBS_DEFAULT: u64 = 200;
/// Each of these opens the log three times, and waits for its thread.
const RESTARTS: u64 = 20;
const SEED: u64 = 20_261_130_500;
const PAGE_BYTES: u64 = 4_096;

fn count_or(default: u64) -> u64 {
    let count = std::env::var(COUNT).ok();
    count.map_or(default, |count| count.parse().unwrap())
}

/// What is done to a file.
#[derive(Clone, Debug)]
enum Damage {
    Bit(u64),
    ZeroedPage(u64),
    /// What another file had there.
    OtherPage(u64, u64),
    Cut(u64),
}

impl Damage {
    /// A bit that has flipped, or a page that was lost.
    fn bit_or_page(seed: &mut u64, bytes: u64) -> Self {
        loop {
            let damage = Self::any(seed, bytes);
            if matches!(damage, Self::Bit(_) | Self::ZeroedPage(_)) {
                return damage;
            }
        }
    }

    fn any(seed: &mut u64, bytes: u64) -> Self {
        let page = |seed: &mut u64| chance(seed) % bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES;
        match chance(seed) % 8 {
            0..4 => Self::Bit(chance(seed) % (bytes * 8)),
            4..6 => Self::ZeroedPage(page(seed)),
            6 => Self::OtherPage(page(seed), chance(seed)),
            _ => Self::Cut(chance(seed) % bytes),
        }
    }

    fn apply(&self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        let page = |from: u64| {
            let from = usize::try_from(from).unwrap();
            from..whole.len().min(from + usize::try_from(PAGE_BYTES).unwrap())
        };
        match *self {
            Self::Bit(bit) => bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8),
            Self::ZeroedPage(from) => bytes[page(from)].fill(0),
            Self::OtherPage(from, mut seed) => {
                seed |= 1;
                bytes[page(from)].fill_with(|| chance(&mut seed).to_le_bytes()[0]);
            }
            Self::Cut(at) => bytes.truncate(usize::try_from(at).unwrap()),
        }
        bytes
    }
}

/// What a damage comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Nothing that was written has changed, or nothing that means anything.
    Harmless,
    /// Events are lost, and said to be.
    Detected,
    /// What is damaged is made anew from the rest.
    Rebuilt,
}

/// What there is in a segment.
struct Layout {
    path: PathBuf,
    frames: Vec<(u64, Header)>,
    footer: Option<Bytes<u64>>,
}

impl Layout {
    fn of(path: PathBuf) -> Self {
        Self {
            frames: frames_of(&path),
            footer: footer_of(&path),
            path,
        }
    }

    fn ordinal(&self) -> u64 {
        let name = self.path.to_str().unwrap();
        name.rsplit('-').next().unwrap().parse().unwrap()
    }

    /// The events that cannot be read any more when these bytes have changed.
    fn lost(&self, changed: &[u64]) -> BTreeSet<u64> {
        let mut lost = BTreeSet::new();
        for (at, header) in &self.frames {
            let keys = keys_of(*at, header);
            let end = keys.end + header.block_bytes() as u64;
            let is_hit =
                |&byte: &u64| (*at..keys.start).contains(&byte) || (keys.end..end).contains(&byte);
            if changed.iter().any(is_hit) {
                lost.extend(header.first_sequence.0..=header.last_sequence().0);
            }
        }
        lost
    }

    /// Whether bytes have changed that have a meaning, other than those of events.
    fn is_index_hit(&self, changed: &[u64]) -> bool {
        let footer = self.footer.clone().unwrap_or_default();
        // A cut takes the end away, and the footer is found from there.
        changed.iter().any(|byte| footer.contains(byte))
    }

    /// Whether a check has something to say, though no event is lost.
    fn is_noticed(&self, changed: &[u64]) -> bool {
        let checked_header = 0..SEGMENT_HEADER_BYTES - 4;
        let frames = |byte: &u64| {
            let mut frames = self.frames.iter();
            frames.any(|(at, header)| {
                let is_there = header.last_sequence().0 > TRIMMED;
                is_there && (*at..at + header.frame_bytes()).contains(byte)
            })
        };
        changed
            .iter()
            .any(|byte| checked_header.contains(byte) || frames(byte))
    }
}

fn keys_of(at: u64, header: &Header) -> Bytes<u64> {
    let from = at + HEADER_BYTES as u64;
    from..from + u64::from(header.events) * 16
}

/// The places where two files differ.
fn changes(before: &[u8], after: &[u8]) -> Vec<u64> {
    let after = after
        .iter()
        .copied()
        .map(Some)
        .chain(std::iter::repeat(None));
    let pairs = (0..).zip(before.iter().zip(after));
    let changed = pairs.filter(|&(_, (&before, after))| Some(before) != after);
    changed.map(|(place, _)| place).collect()
}

fn checked(dir: &Path) -> CheckReport {
    check(dir, &mut |_| ()).unwrap().unwrap()
}

/// The events that a check says are lost.
fn lost_in(report: &CheckReport) -> BTreeSet<u64> {
    let ranges = report.faults.iter().filter_map(|fault| {
        assert_eq!(fault.events.is_some(), fault.remedy == Remedy::Restore);
        fault.events
    });
    ranges
        .flat_map(|range| range.first.0..=range.last.0)
        .collect()
}

fn after_trimmed(events: &BTreeSet<u64>) -> BTreeSet<u64> {
    events
        .iter()
        .copied()
        .filter(|&event| event > TRIMMED)
        .collect()
}

/// Opens a log of which these events are lost, reads all of it, and goes on with it.
async fn assert_served(dir: &Path, lost: &BTreeSet<u64>, what: &str) {
    let log = open_scrubbed(dir);
    let told = read_all(&log).await;
    let told: BTreeSet<u64> = told
        .iter()
        .flat_map(|range| range.first.0..=range.last.0)
        .collect();
    assert_eq!(told, after_trimmed(lost), "{what}");
    assert_eq!(log.range().head, Sequence(HEAD), "{what}");
    let append = async |log: &Embedded| log.append(crate::fixtures::numbered("app_9", 0..1)).await;
    let mut appended = append(&log).await;
    let mut log = log;
    if matches!(&appended, Err(Error::Failed(reason)) if reason.contains("is damaged")) {
        // The key of the event led to a damaged block of ids, as one of 256 does: the next start mends it.
        log.close().await;
        drop(log);
        log = open_scrubbed(dir);
        appended = append(&log).await;
    }
    assert_eq!(appended.unwrap().accepted, 1, "{what}");
    assert_eq!(log.status().health(), Health::Ready);
    log.close().await;
}

/// Damages a file, and finds out what comes of it.
fn outcome(
    dir: &Path,
    layout: Option<&Layout>,
    changed: &[u64],
    what: &str,
) -> (Outcome, BTreeSet<u64>) {
    let report = checked(dir);
    let all_lost = layout
        .map(|layout| layout.lost(changed))
        .unwrap_or_default();
    // What retention has removed may be damaged.
    let lost = after_trimmed(&all_lost);
    assert_eq!(
        after_trimmed(&lost_in(&report)),
        lost,
        "{what}: {:?}",
        report.faults
    );
    assert_eq!(report.events, HEAD - all_lost.len() as u64, "{what}");
    if let Some(layout) = layout {
        for fault in report.faults.iter().filter(|fault| fault.events.is_some()) {
            assert_eq!(fault.file, layout.path, "{what}");
            let first = fault.events.unwrap().first;
            let at = layout
                .frames
                .iter()
                .find(|(_, header)| header.last_sequence() >= first);
            // What is at the very end of the log has no place if nothing is left of it.
            assert!(
                fault
                    .offset
                    .is_none_or(|offset| Some(offset) == at.map(|&(at, _)| at)),
                "{what}"
            );
        }
        let is_noticed = layout.is_noticed(changed) || layout.is_index_hit(changed);
        assert_eq!(
            !report.faults.is_empty(),
            is_noticed,
            "{what}: {:?}",
            report.faults
        );
    } else {
        assert_eq!(!report.faults.is_empty(), !changed.is_empty(), "{what}");
    }
    let is_rebuilt = report
        .faults
        .iter()
        .any(|fault| fault.remedy == Remedy::Rebuilt);
    let outcome = match (lost.is_empty(), is_rebuilt) {
        (false, _) => Outcome::Detected,
        (true, true) => Outcome::Rebuilt,
        (true, false) => Outcome::Harmless,
    };
    (outcome, lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_damage_is_harmless_detected_or_rebuilt_and_never_silent() {
    let count = count_or(CHECKS_DEFAULT);
    println!("{count} damages from seed {SEED}; {COUNT} sets the number");
    let dir = template().await;
    let whole = checked(dir.path());
    assert_eq!((whole.events, &whole.faults[..]), (HEAD, &[][..]));
    let layouts: Vec<_> = segment_paths(dir.path())
        .into_iter()
        .map(Layout::of)
        .collect();
    let mut files: Vec<(PathBuf, Option<&Layout>)> = Vec::new();
    for layout in &layouts {
        // Most of what there is, is in segments.
        files.extend([
            (layout.path.clone(), Some(layout)),
            (layout.path.clone(), Some(layout)),
        ]);
    }
    files.push((dir.path().join(MANIFEST_FILE), None));
    files.extend(id_files(dir.path()).into_iter().map(|path| (path, None)));
    let mut seed = SEED;
    let mut outcomes = BTreeMap::new();
    for n in 0..count {
        let (path, layout) = &files[usize::try_from(n).unwrap() % files.len()];
        let before = fs::read(path).unwrap();
        let damage = Damage::any(&mut seed, before.len() as u64);
        let what = format!("damage {n}: {damage:?} of {}", path.display());
        let after = damage.apply(&before);
        let changed = changes(&before, &after);
        fs::write(path, &after).unwrap();
        let (outcome, lost) = outcome(dir.path(), *layout, &changed, &what);
        *outcomes.entry(outcome).or_insert(0) += 1;
        if n % 20 == 0 {
            let opened = copy(dir.path());
            assert_served(opened.path(), &lost, &what).await;
        }
        fs::write(path, &before).unwrap();
    }
    println!("{outcomes:?}");
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
}

/// Reads a log from its beginning to its end: no block is served but those that were written, and none
/// with a lost event.
async fn assert_none_served(
    log: &Embedded,
    whole: &BTreeMap<u64, Arc<Block>>,
    lost: &BTreeSet<u64>,
    what: &str,
) {
    let mut after = log.range().earliest.before();
    while after < log.range().head {
        match log.read(after, usize::MAX).await {
            Ok(blocks) => {
                for block in &blocks {
                    let first = block.first_sequence().0;
                    assert_eq!(block.as_bytes(), whole[&first].as_bytes(), "{what}");
                    let mut events = first..=block.last_sequence().0;
                    assert!(!events.any(|event| lost.contains(&event)), "{what}");
                }
                after = blocks[blocks.len() - 1].last_sequence();
            }
            Err(ReadError::Damaged(range)) => after = range.last,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_every_flipped_bit_and_lost_page_and_nothing_of_it_is_served() {
    let count = count_or(SCRUBS_DEFAULT);
    println!("{count} damages from seed {SEED}; {COUNT} sets the number");
    let dir = template().await;
    let layouts: Vec<_> = segment_paths(dir.path())
        .into_iter()
        .map(Layout::of)
        .collect();
    let log = open_unscrubbed(dir.path());
    let blocks = log.read(Sequence(TRIMMED), usize::MAX).await.unwrap();
    let blocks = blocks
        .into_iter()
        .map(|block| (block.first_sequence().0, block));
    let whole: BTreeMap<u64, Arc<Block>> = blocks.collect();
    assert_eq!(whole.last_key_value().unwrap().1.last_sequence().0, HEAD);
    let sealed = &layouts[..layouts.len() - 1];
    let id = log.status().epochs().log();
    let mut seed = SEED;
    for n in 0..count {
        let layout = &sealed[usize::try_from(n).unwrap() % sealed.len()];
        let before = fs::read(&layout.path).unwrap();
        let damage = Damage::bit_or_page(&mut seed, before.len() as u64);
        let what = format!("damage {n}: {damage:?} of {}", layout.path.display());
        let after = damage.apply(&before);
        fs::write(&layout.path, &after).unwrap();
        let changed = changes(&before, &after);
        let lost = after_trimmed(&layout.lost(&changed));
        scrub::verify_all(&log);
        let told = log.status().damaged();
        let told = told
            .iter()
            .flat_map(|range| range.first.0..=range.last.0)
            .collect();
        assert_eq!(after_trimmed(&told), lost, "{what}");
        assert_none_served(&log, &whole, &lost, &what).await;
        if layout.is_index_hit(&changed) {
            let file = fs::File::open(&layout.path).unwrap();
            waits_until(|| footer::read(&file, id, layout.ordinal()).unwrap().is_some()).await;
        }
        fs::write(&layout.path, &before).unwrap();
        log.shared.publisher.forget_damaged();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_damage_that_nobody_reads() {
    let template = template().await;
    let layouts: Vec<_> = segment_paths(template.path())
        .into_iter()
        .map(Layout::of)
        .collect();
    let sealed = &layouts[..layouts.len() - 1];
    let mut seed = SEED;
    for n in 0..RESTARTS {
        let dir = copy(template.path());
        let layout = &sealed[usize::try_from(n).unwrap() % sealed.len()];
        let path = dir.path().join(layout.path.file_name().unwrap());
        let before = fs::read(&path).unwrap();
        let damage = Damage::any(&mut seed, before.len() as u64);
        let after = damage.apply(&before);
        fs::write(&path, &after).unwrap();
        let changed = changes(&before, &after);
        let lost = after_trimmed(&layout.lost(&changed));
        let found = |log: &Embedded| -> BTreeSet<u64> {
            let damaged = log.status().damaged();
            let events = damaged
                .iter()
                .flat_map(|range| range.first.0..=range.last.0);
            events.filter(|&event| event > TRIMMED).collect()
        };
        // A pass that was over before would be followed by another one in a week.
        let _ = fs::remove_file(dir.path().join("scrub"));
        let log = open_scrubbed(dir.path());
        println!("{n}: {damage:?} of {} loses {lost:?}", path.display());
        waits_until(|| found(&log) == lost).await;
        // An index that is damaged is written again, unless nothing is left to write it for.
        let file = fs::File::open(&path).unwrap();
        let (_, first) = layout.frames[0];
        let is_left = layout.lost(&changed).len() as u64
            <= layout.frames[layout.frames.len() - 1].1.last_sequence().0 - first.first_sequence.0;
        let has_index = || {
            let footer = footer::read(&file, first.log, layout.ordinal());
            footer.unwrap().is_some()
        };
        waits_until(|| has_index() || !is_left).await;
        log.close().await;
        drop(log);
        // What was found is known after a restart, also when nothing is read.
        let log = open_scrubbed(dir.path());
        waits_until(|| found(&log) == lost).await;
        drop(log);
        // It is not damaged any more when its file was restored.
        fs::write(&path, &before).unwrap();
        let log = open_scrubbed(dir.path());
        assert_eq!(read_all(&log).await, []);
        drop(log);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_checked_while_it_is_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_scrubbed(dir.path());
    let writing = {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            for n in 0..200 {
                log.append(crate::fixtures::numbered("app_1", n * 10..n * 10 + 10))
                    .await
                    .unwrap();
            }
        })
    };
    let path = dir.path().to_owned();
    let checking = tokio::task::spawn_blocking(move || {
        let (mut checks, mut told) = (0, Vec::new());
        while checks < 20 {
            let report = check(&path, &mut |progress| told.push(progress))
                .unwrap()
                .unwrap();
            assert_eq!(report.faults, []);
            checks += 1;
        }
        told
    });
    let told = checking.await.unwrap();
    assert!(
        told.iter()
            .all(|progress| progress.done_bytes <= progress.total_bytes)
    );
    writing.await.unwrap();
    let report = checked(dir.path());
    assert_eq!((report.events, report.range), (2_000, log.range()));
    assert_eq!(report.faults, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_writes_nothing_and_says_where_there_is_no_log() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(check(&dir.path().join("none"), &mut |_| ()).unwrap(), None);
    assert_eq!(check(dir.path(), &mut |_| ()).unwrap(), None);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let template = template().await;
    let files = |dir: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = segment_paths(dir).into_iter().chain(id_files(dir));
        let paths = paths.chain([dir.join(MANIFEST_FILE)]);
        paths
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    };
    let paths = segment_paths(template.path());
    let path = paths[1].clone();
    let (at, header) = frames_of(&path)[0];
    testing::flip(&path, (at + ALIGNMENT) * 8);
    let before = files(template.path());
    let report = checked(template.path());
    assert_eq!(files(template.path()), before);
    let [fault] = &report.faults[..] else {
        panic!("one fault: {:?}", report.faults);
    };
    assert_eq!((&fault.file, fault.offset), (&path, Some(at)));
    assert_eq!(fault.events, Some(header.event_range()));
    assert_eq!(fault.remedy, Remedy::Restore);
    let damaged = header.event_range();
    let what = format!("{damaged} {} damaged", damaged.verb());
    assert!(fault.what.contains(&what), "{}", fault.what);
    assert_eq!(report.segments, paths.len() as u64);
}

#[test]
fn layouts_tell_what_a_change_costs() {
    let before = [1, 2, 3, 4];
    assert_eq!(changes(&before, &[1, 2, 3, 4]), [0; 0]);
    assert_eq!(changes(&before, &[1, 0, 3]), [1, 3]);
}
