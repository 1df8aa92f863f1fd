//! Owns the slow check of the whole log in the background: it reads what nobody reads for weeks, so
//! that damage is found while there is a backup to restore from. It reads from the disk, not from the
//! system's memory, at the lowest priority, and pauses while batches wait. It goes on over restarts
//! where it was, by a small file that also keeps the damage that is known. That file is advice: without
//! it the check begins again.
//!
//! All numbers little-endian:
//! ```text
//! magic "PBSCR\0\0" · version u8 · log u64 · next sequence u64 · time of the beginning i64 (µs) ·
//! ranges u32 · ranges: first sequence u64 · last sequence u64 · crc32c of everything before u32
//! ```

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Buf as _, BufMut as _, TryGetError};

use super::{
    Shared, directory, disk_error, footer,
    readers::{self, Fault, Located},
    segments::{self, Segment},
    verify::{Finding, Verification},
};
use crate::Damaged;
use prelude_bridge_event::{LogId, Sequence, UnixMicros};

const MAGIC: [u8; 8] = *b"PBSCR\0\0\x01";
const FILE: &str = "scrub";
/// The next file, until it is whole.
const NEW_FILE: &str = "scrub.new";
/// So many ranges are kept over a restart. Others are found again.
const RANGES_MAX: usize = 1_000;
/// Verified at once. 256 KiB: some hundred microseconds.
const PIECE_BYTES: u64 = 256 * 1024;
/// A pass begins a week after the one before, so the whole log is to be read within a week, however
/// large it is.
const PASS_INTERVAL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// After a piece there is a rest of so many times as long as that took at least: it takes a tenth of
/// what the disk can do.
const REST_TIMES: u32 = 9;
/// How long it pauses while batches wait, …
const PAUSE: Duration = Duration::from_millis(200);
/// … and how often at most before each piece: it has to come to an end.
const PAUSES_MAX: u32 = 50;
/// What cannot be read is tried so often. The last time, what the disk cannot read counts as damaged, and
/// what follows it is verified.
const ATTEMPTS_MAX: u32 = 3;
/// How long it waits when there is nothing to do, or something cannot be read.
const IDLE_WAIT: Duration = Duration::from_secs(60);
/// Elsewhere than on Linux the priority would concern the whole process.
const NICE: i32 = 19;

/// Ends the check.
#[derive(Default)]
pub(super) struct Scrub {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Scrub {
    pub(super) fn stop(&self) {
        *self.stopped() = true;
        self.changed.notify_all();
    }

    /// Waits for so long, or until it is stopped: then it is true.
    fn wait(&self, time: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.stopped(), time, |stopped| !*stopped);
        let (stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *stopped
    }

    fn stopped(&self) -> MutexGuard<'_, bool> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a pass is, and what is known to be damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Progress {
    log: LogId,
    /// Everything before this event was verified; one past the newest when the pass is over.
    next: Sequence,
    is_over: bool,
    began_at: UnixMicros,
    damaged: Vec<Damaged>,
}

impl Progress {
    fn beginning(log: LogId) -> Self {
        Self {
            log,
            next: Sequence::ZERO,
            is_over: false,
            began_at: UnixMicros::now(),
            damaged: Vec::new(),
        }
    }

    /// That of this log; one that begins where there is none that is whole.
    fn read(data_dir: &Path, log: LogId) -> Self {
        let bytes = fs::read(data_dir.join(FILE)).unwrap_or_default();
        let progress = bytes.split_last_chunk().and_then(|(content, sum)| {
            let is_whole = crc32c::crc32c(content) == u32::from_le_bytes(*sum);
            let content = content.strip_prefix(&MAGIC).filter(|_| is_whole)?;
            Self::decode(content).ok()
        });
        let progress = progress.filter(|progress| progress.log == log);
        progress.unwrap_or_else(|| Self::beginning(log))
    }

    fn write(&self, data_dir: &Path) -> io::Result<()> {
        let new = data_dir.join(NEW_FILE);
        let mut file = directory::open_private(&new)?;
        file.set_len(0)?;
        file.write_all(&self.encode())?;
        file.sync_data()?;
        fs::rename(&new, data_dir.join(FILE))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.put_u64_le(self.log.0);
        bytes.put_u64_le(self.next.0);
        bytes.put_u8(u8::from(self.is_over));
        bytes.put_i64_le(self.began_at.0);
        let ranges = self.damaged.get(..RANGES_MAX).unwrap_or(&self.damaged);
        bytes.put_u32_le(u32::try_from(ranges.len()).unwrap_or(u32::MAX));
        for range in ranges {
            bytes.put_u64_le(range.first.0);
            bytes.put_u64_le(range.last.0);
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.put_u32_le(checksum);
        bytes
    }

    fn decode(mut content: &[u8]) -> Result<Self, TryGetError> {
        let content = &mut content;
        let mut progress = Self {
            log: LogId(content.try_get_u64_le()?),
            next: Sequence(content.try_get_u64_le()?),
            is_over: content.try_get_u8()? != 0,
            began_at: UnixMicros(content.try_get_i64_le()?),
            damaged: Vec::new(),
        };
        for _ in 0..content.try_get_u32_le()? {
            progress.damaged.push(Damaged {
                first: Sequence(content.try_get_u64_le()?),
                last: Sequence(content.try_get_u64_le()?),
            });
        }
        Ok(progress)
    }

    /// Whether it is time for another pass. A clock that was set back is no reason to wait.
    fn is_due(&self, now: UnixMicros) -> bool {
        let age = now.0.saturating_sub(self.began_at.0);
        let age = u64::try_from(age).map(Duration::from_micros);
        age.is_ok_and(|age| age >= PASS_INTERVAL) || now < self.began_at
    }
}

/// What the thread works on.
pub(super) struct Work {
    shared: Arc<Shared>,
    log: LogId,
    bytes_per_second: u64,
    progress: Progress,
    /// What is on disk.
    saved: Option<Progress>,
    open: Option<(Segment, Verification)>,
    pauses: u32,
    /// So many attempts failed at the present segment.
    failures: u32,
}

impl Work {
    /// `bytes_per_second` is more where a pass would take longer than a week.
    pub(super) fn new(shared: Arc<Shared>, log: LogId, bytes_per_second: u64) -> Self {
        let progress = Progress::read(shared.segments.directory(), log);
        Self {
            shared,
            log,
            bytes_per_second,
            saved: Some(progress.clone()),
            progress,
            open: None,
            pauses: 0,
            failures: 0,
        }
    }

    /// Runs until the check is stopped.
    pub(super) fn run(mut self) {
        if cfg!(target_os = "linux") {
            // Of the disk it gets what others leave, too. Where it is refused, all are equal.
            let _ = rustix::process::nice(NICE);
        }
        let shared = Arc::clone(&self.shared);
        if self.verify_known() {
            // What was saved still holds.
            return;
        }
        loop {
            let rest = self.go_on();
            if shared.scrub.wait(rest) {
                break;
            }
        }
        self.save();
    }

    /// Looks whether what was damaged still is: its file may have been restored. True when the check was
    /// stopped meanwhile.
    fn verify_known(&self) -> bool {
        let range = self.shared.range();
        let piece_bytes = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
        for known in &self.progress.damaged {
            let mut after = known.first.max(range.earliest).before();
            let last = known.last.min(range.head);
            while after < last {
                let began = Instant::now();
                match readers::read(&self.shared.segments, range.head, after, piece_bytes) {
                    Ok(blocks) => {
                        let last = blocks.last().map(|block| block.last_sequence());
                        after = last.unwrap_or(range.head);
                    }
                    Err(Fault::Damaged(located)) => {
                        after = located.events.last;
                        self.shared.note_damage(&located);
                    }
                    Err(Fault::Io(_)) => {
                        // It is not known to be whole.
                        let first = after.plus(1);
                        self.shared.publisher.add_damaged(Damaged { first, last });
                        after = last;
                    }
                }
                if self.shared.scrub.wait(began.elapsed() * REST_TIMES) {
                    return true;
                }
            }
        }
        false
    }

    /// Verifies a piece, if it can be read. Returns how long to rest.
    fn go_on(&mut self) -> Duration {
        self.step().unwrap_or_else(|error| {
            tracing::debug!(%error, "the check of the log pauses");
            self.open = None;
            if !disk_error::is_no_descriptor(&error) {
                self.failures += 1;
            }
            if self.failures >= ATTEMPTS_MAX {
                self.give_up_segment();
            }
            IDLE_WAIT
        })
    }

    /// Goes on with the next segment: of this one nothing more can be read.
    fn give_up_segment(&mut self) {
        self.failures = 0;
        if let Some((segment, _)) = self.shared.segments.sealed_at(self.progress.next) {
            self.note_unreadable(&segment, self.progress.next.max(segment.first_sequence));
            self.progress.next = segment.last_sequence.plus(1);
        }
    }

    fn note_unreadable(&self, segment: &Segment, first: Sequence) {
        self.shared.note_damage(&Located {
            events: Damaged {
                first,
                last: segment.last_sequence,
            },
            path: segments::path(self.shared.segments.directory(), segment.ordinal),
            bytes: None,
        });
    }

    /// Verifies a piece. Returns how long to rest after it.
    fn step(&mut self) -> io::Result<Duration> {
        if self.progress.is_over {
            if !self.progress.is_due(UnixMicros::now()) {
                self.save_if_changed();
                return Ok(IDLE_WAIT);
            }
            self.progress = Progress::beginning(self.log);
        }
        if self.shared.queue.len() > 0 && self.pauses < PAUSES_MAX {
            self.pauses += 1;
            return Ok(PAUSE);
        }
        self.pauses = 0;
        let Some((segment, mut verification)) = self.take_segment()? else {
            self.progress.is_over = true;
            self.save_if_changed();
            return Ok(Duration::ZERO);
        };
        let began = Instant::now();
        let mut bytes = 0;
        let mut is_over = false;
        verification.forget_cached(PIECE_BYTES);
        while bytes < PIECE_BYTES && !is_over {
            let shared = &self.shared;
            let passed = verification.step(&mut |finding| report(shared, &finding))?;
            bytes += passed.map_or(0, |passed| passed.bytes);
            is_over = passed.is_none();
        }
        self.progress.next = verification.next();
        if is_over {
            self.progress.next = segment.last_sequence.plus(1);
            // Nothing is written to a file that cannot be read.
            if std::mem::take(&mut self.failures) == 0 {
                self.check_index(&segment)?;
            }
            self.save_if_changed();
        } else {
            self.open = Some((segment, verification));
        }
        let busy = began.elapsed() * REST_TIMES;
        let total = self.shared.segments.bytes() / PASS_INTERVAL.as_secs();
        let rate = self.bytes_per_second.max(total).max(1);
        Ok(busy.max(Duration::from_secs(bytes) / u32::try_from(rate).unwrap_or(u32::MAX)))
    }

    /// The segment that was begun, or the next one. `None` when there are only those that are written
    /// to.
    fn take_segment(&mut self) -> io::Result<Option<(Segment, Verification)>> {
        if let Some(open) = self.open.take() {
            return Ok(Some(open));
        }
        let segments = &self.shared.segments;
        while let Some((segment, place)) = segments.sealed_at(self.progress.next) {
            // Less is in memory than a reader has.
            let chunk_bytes = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
            let opened = Verification::open(segments.directory(), self.log, &place, chunk_bytes)?;
            if let Some(mut verification) = opened {
                if self.failures + 1 >= ATTEMPTS_MAX {
                    verification.forgive();
                }
                return Ok(Some((segment, verification)));
            }
            // Retention may have removed it.
            if segments.get(segment.ordinal).is_some() {
                self.note_unreadable(&segment, segment.first_sequence);
            }
            self.progress.next = segment.last_sequence.plus(1);
        }
        Ok(None)
    }

    /// Has an index that is damaged written again.
    fn check_index(&self, segment: &Segment) -> io::Result<()> {
        let path = segments::path(self.shared.segments.directory(), segment.ordinal);
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        if footer::read(&file, self.log, segment.ordinal)?.is_none() {
            tracing::warn!(path = %path.display(), "the index of a segment is damaged or missing: it is written again");
            self.shared.keeper.seal(segment.clone());
        }
        Ok(())
    }

    fn save_if_changed(&mut self) {
        self.progress.damaged = self.shared.publisher.status().damaged().to_vec();
        if self.saved.as_ref() != Some(&self.progress) {
            self.save();
        }
    }

    fn save(&mut self) {
        self.progress.damaged = self.shared.publisher.status().damaged().to_vec();
        match self.progress.write(self.shared.segments.directory()) {
            Ok(()) => self.saved = Some(self.progress.clone()),
            // The next pass finds it again.
            Err(error) => tracing::debug!(%error, "the progress of the check was not saved"),
        }
    }
}

/// Says what was found.
fn report(shared: &Shared, finding: &Finding) {
    let (located, what) = match finding {
        Finding::Events(located) => {
            shared.note_damage(located);
            return;
        }
        Finding::Keys(located) => (
            located,
            "the keys of events are damaged: their ids tell them",
        ),
        Finding::Padding(located) => (located, "unused bytes behind events have changed"),
    };
    tracing::warn!(
        path = %located.path.display(),
        first_event = located.events.first.0,
        last_event = located.events.last.0,
        "{what}; nothing is lost, but the disk may be failing"
    );
}

/// The check of a log that has none, from its beginning.
#[cfg(test)]
fn work_on(log: &super::Embedded) -> Work {
    use crate::Log as _;
    let id = log.status().epochs().log();
    let mut work = Work::new(Arc::clone(&log.shared), id, u64::MAX);
    work.progress = Progress::beginning(id);
    work
}

/// Verifies all of a log at once, as the thread does with rests.
#[cfg(test)]
pub(super) fn verify_all(log: &super::Embedded) {
    let mut work = work_on(log);
    while !work.progress.is_over {
        work.go_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Log as _,
        embedded::damage_tests::{template, with_an_unreadable_segment},
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn a_segment_that_cannot_be_read_is_damaged_and_the_check_goes_on() {
        for is_readable_at_all in [true, false] {
            let template = template().await;
            let (log, events, path) = with_an_unreadable_segment(template.path()).await;
            if !is_readable_at_all {
                // To read a directory fails whatever is forgiven.
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
            }
            let mut work = work_on(&log);
            let mut attempts = 0;
            while !work.progress.is_over {
                attempts += u32::from(work.go_on() == IDLE_WAIT);
                assert!(attempts <= ATTEMPTS_MAX);
            }
            assert_eq!(log.status().damaged().to_vec(), [events]);
            drop(log);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_known_to_be_damaged_is_kept_where_it_cannot_be_read_or_the_check_is_stopped() {
        let template = template().await;
        let (log, events, _) = with_an_unreadable_segment(template.path()).await;
        let mut work = work_on(&log);
        work.progress.damaged = vec![events];
        assert!(!work.verify_known());
        assert_eq!(log.status().damaged().to_vec(), [events]);
        let range = log.range();
        work.progress.damaged = vec![Damaged {
            first: range.earliest,
            last: range.head,
        }];
        let progress = work.progress.clone();
        progress.write(template.path()).unwrap();
        log.shared.scrub.stop();
        std::thread::spawn(|| work.run()).join().unwrap();
        assert_eq!(Progress::read(template.path(), progress.log), progress);
    }

    fn progress() -> Progress {
        Progress {
            log: LogId(3),
            next: Sequence(9),
            is_over: true,
            began_at: UnixMicros(1_000),
            damaged: vec![Damaged {
                first: Sequence(4),
                last: Sequence(7),
            }],
        }
    }

    #[test]
    fn progress_is_read_as_it_was_written_and_begins_again_where_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Progress::read(dir.path(), LogId(3));
        assert_eq!(read().next, Sequence::ZERO);
        progress().write(dir.path()).unwrap();
        assert_eq!(read(), progress());
        assert_eq!(Progress::read(dir.path(), LogId(4)).next, Sequence::ZERO);
        let whole = progress().encode();
        for index in 0..whole.len() {
            for bytes in [&whole[..index], &{
                let mut bytes = whole.clone();
                bytes[index] ^= 4;
                bytes
            }] {
                fs::write(dir.path().join(FILE), bytes).unwrap();
                assert_eq!(read().next, Sequence::ZERO, "byte {index}");
            }
        }
    }

    #[test]
    fn a_pass_is_due_a_week_after_the_last_one_or_when_the_clock_was_set_back() {
        let week = i64::try_from(PASS_INTERVAL.as_micros()).unwrap();
        for (now, is_due) in [
            (1_000, false),
            (999, true),
            (999 + week, false),
            (1_000 + week, true),
        ] {
            assert_eq!(progress().is_due(UnixMicros(now)), is_due, "{now}");
        }
    }
}
