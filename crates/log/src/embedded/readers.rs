//! Owns reading: from the segments' files, without waiting for the writer nor it for them, and the
//! promise that what is damaged or missing is said with its range, never served and never skipped.

use std::{fmt, io, path::PathBuf, sync::Arc, thread, time::Duration};

use tokio::{runtime, sync::Semaphore};

use super::{
    disk_error,
    frame::Header,
    frames::Frames,
    readable,
    segments::{self, Place, Position, Segments},
    walk::{Step, Walk},
};
use crate::{Block, Damaged, ReadError, Status};
use prelude_bridge_event::{Sequence, UnixMicros};

/// A chunk of a file that is read at once: at least so much …
const CHUNK_BYTES_MIN: usize = 64 * 1024;
/// … and at most so much, whatever the caller takes; a larger block is read whole all the same.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// What the disk cannot read is read once more after this time: a disk that was away for a moment has
/// lost nothing.
const UNREADABLE_REST: Duration = Duration::from_secs(1);

/// Damaged frames one after another are told as one range, up to so many of them.
const RANGE_STEPS_MAX: usize = 1_000;

/// How much a reader gives way to the threads that serve those who are live. Where a core is short,
/// it gets a tenth of what they get. Beside a stream that read a million events after the other,
/// live events had a p50 of 1.2 times that without; at equal rights, with reads of four times the
/// size, 2.2.
const READERS_NICE: i32 = 10;

/// A bounded number of readers.
pub(super) struct Readers {
    segments: Arc<Segments>,
    permits: Arc<Semaphore>,
    /// Nothing but its threads for work that blocks is used. Always there, but when it is dropped.
    pool: Option<runtime::Runtime>,
}

impl Drop for Readers {
    fn drop(&mut self) {
        // Without waiting for them, which is not allowed to who may be a task.
        if let Some(pool) = self.pool.take() {
            pool.shutdown_background();
        }
    }
}

/// Damaged events, and where their bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) events: Damaged,
    /// The file that they are in, or were in: it may be missing.
    pub(super) path: PathBuf,
    /// Where they begin in it, if that is known, and where they end.
    pub(super) bytes: Option<(u64, u64)>,
}

impl fmt::Display for Located {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {} damaged: ",
            self.events,
            self.events.verb()
        )?;
        match self.bytes {
            Some((from, to)) => {
                write!(formatter, "bytes {from} to {to} of {}", self.path.display())
            }
            None => write!(
                formatter,
                "{} is missing or unreadable",
                self.path.display()
            ),
        }
    }
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Damaged(Located),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Fault {
    /// Whether there was no file descriptor to read with, which passes.
    pub(super) fn is_no_descriptor(&self) -> bool {
        matches!(self, Self::Io(error) if disk_error::is_no_descriptor(error))
    }

    /// Whether the disk could not read it.
    fn is_unreadable(&self) -> bool {
        matches!(self, Self::Io(error) if readable::is_unreadable(error))
    }
}

impl Readers {
    pub(super) fn new(segments: &Arc<Segments>, count: usize) -> io::Result<Self> {
        let pool = runtime::Builder::new_current_thread()
            .max_blocking_threads(count.max(1))
            .thread_name("log-reader")
            .on_thread_start(give_way)
            .build()?;
        Ok(Self {
            segments: Arc::clone(segments),
            permits: Arc::new(Semaphore::new(count.max(1))),
            pool: Some(pool),
        })
    }

    /// Reads blocks as [`crate::Log::read`] says, none of them after the head of `now`: what
    /// is newer has not been passed to the followers yet.
    pub(super) async fn read(
        &self,
        now: &Status,
        after: Sequence,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Block>>, Failure> {
        let range = now.range();
        if !range.reaches(after) {
            let earliest = range.earliest;
            return Err(Failure::Read(ReadError::Expired { earliest }));
        }
        if after >= range.head {
            return Ok(Vec::new());
        }
        let read = self.run(now, after, move |segments| {
            twice(|forgives| read_with(segments, range.head, after, bytes_max, forgives))
        });
        read.await
    }

    /// Finds a place by its time as [`crate::Log::seek`] says.
    pub(super) async fn seek(&self, now: &Status, at: UnixMicros) -> Result<Sequence, Failure> {
        let range = now.range();
        // The ends are known, and are what most ask for.
        if range.head_at.is_none_or(|head_at| head_at < at) {
            return Ok(range.head);
        }
        if range
            .earliest_at
            .is_none_or(|earliest_at| earliest_at >= at)
        {
            return Ok(range.earliest.before());
        }
        let found = self.run(now, range.head, move |segments| {
            twice(|forgives| seek(segments, at, forgives))
        });
        let place = found.await?.unwrap_or(range.head).min(range.head);
        // Retention may have passed it meanwhile.
        Ok(place.max(now.range().earliest.before()))
    }

    /// Reads after a place on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        now: &Status,
        after: Sequence,
        read: impl FnOnce(&Segments) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| failed("no reader is left"))?;
        let segments = Arc::clone(&self.segments);
        let pool = self.pool.as_ref().ok_or_else(|| failed("it is closed"))?;
        let running = pool.spawn_blocking(move || {
            let answer = read(&segments);
            drop(permit);
            answer
        });
        let answer = running
            .await
            .map_err(|_| failed("the reader was interrupted"))?;
        answer.map_err(|fault| {
            let earliest = now.range().earliest;
            match fault {
                // Retention was faster.
                _ if earliest > after.plus(1) => Failure::Read(ReadError::Expired { earliest }),
                Fault::Damaged(located) => Failure::Damaged(located),
                fault if fault.is_no_descriptor() => {
                    Failure::Read(ReadError::Unavailable("no file can be opened".into()))
                }
                fault => failed(fault),
            }
        })
    }
}

/// Why nothing was read, for the log.
pub(super) enum Failure {
    Damaged(Located),
    Read(ReadError),
}

/// Lets other threads go before this one.
fn give_way() {
    // Elsewhere it would concern the whole process. Where it is refused, all are equal.
    if cfg!(target_os = "linux") {
        let _ = rustix::process::nice(READERS_NICE);
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "so that it can be given to map_err"
)]
fn failed(reason: impl ToString) -> Failure {
    Failure::Read(ReadError::Failed(reason.to_string().into()))
}

/// Reads what the disk could not read a second time. If it still cannot, that is damaged, with its range:
/// otherwise whoever comes there could neither read nor pass it.
fn twice<T>(read: impl Fn(bool) -> Result<T, Fault>) -> Result<T, Fault> {
    match read(false) {
        Err(fault) if fault.is_unreadable() => {
            tracing::debug!(%fault, "the disk could not read: it is tried once more");
            thread::sleep(UNREADABLE_REST);
            read(true)
        }
        read => read,
    }
}

/// The blocks after `after`, none after `head`, as many as fit, and at least one.
pub(super) fn read(
    segments: &Segments,
    head: Sequence,
    after: Sequence,
    bytes_max: usize,
) -> Result<Vec<Arc<Block>>, Fault> {
    read_with(segments, head, after, bytes_max, false)
}

/// The same; with `forgives`, what cannot be read is damaged.
fn read_with(
    segments: &Segments,
    head: Sequence,
    after: Sequence,
    bytes_max: usize,
    forgives: bool,
) -> Result<Vec<Arc<Block>>, Fault> {
    let mut reading = Reading {
        blocks: Vec::new(),
        bytes: 0,
        bytes_max,
        next: after.plus(1),
        head,
        forgives,
    };
    while reading.wants_more() {
        let read = match segments.place_after(reading.next.before(), head) {
            Position::At(place) => reading.read_segment(segments, &place),
            Position::Missing(events, ordinal) => Err(missing(segments, events, ordinal)),
        };
        match read {
            // What is before the damage comes first.
            Err(Fault::Damaged(_)) if !reading.blocks.is_empty() => break,
            Err(Fault::Damaged(located)) => {
                return Err(Fault::Damaged(whole(segments, head, located, forgives)));
            }
            Err(fault) => return Err(fault),
            Ok(true) => {}
            Ok(false) => break,
        }
    }
    Ok(reading.blocks)
}

/// Blocks that are being read.
struct Reading {
    blocks: Vec<Arc<Block>>,
    bytes: usize,
    bytes_max: usize,
    next: Sequence,
    head: Sequence,
    /// What cannot be read is damaged.
    forgives: bool,
}

impl Reading {
    /// What is not asked for any more is not looked at: it may be damaged.
    fn wants_more(&self) -> bool {
        let is_enough = !self.blocks.is_empty() && self.bytes >= self.bytes_max;
        self.next <= self.head && !is_enough
    }

    /// Reads on in a segment. False when the next block does not fit.
    fn read_segment(&mut self, segments: &Segments, place: &Place) -> Result<bool, Fault> {
        let chunk_bytes = self.bytes_max.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        let mut frames = open(segments, place, self.next, chunk_bytes)?;
        if self.forgives {
            frames.forgive();
        }
        let (began_at, mut walk) = (self.next, Walk::new(place));
        while self.wants_more()
            && let Some(step) = walk.step(&mut frames)?
        {
            let at = frames.offset();
            let header = match step {
                Step::Damaged(events, _) if events.last < self.next => continue,
                Step::Damaged(events, bytes) => {
                    return Err(located(segments, place, events, bytes));
                }
                Step::Frame(header) => header,
            };
            if header.last_sequence() >= self.next {
                self.bytes = self.bytes.saturating_add(header.block_bytes());
                if !self.blocks.is_empty() && self.bytes > self.bytes_max {
                    return Ok(false);
                }
                let Some(block) = block(&mut frames, &header)? else {
                    let bytes = (at, at + header.frame_bytes());
                    return Err(located(segments, place, header.event_range(), bytes));
                };
                self.blocks.push(Arc::new(block));
                self.next = header.last_sequence().plus(1);
            }
            walk.pass(&mut frames, &header);
        }
        if self.next == began_at {
            // A mark that leads to another place than it says.
            let events = Damaged {
                first: began_at,
                last: place.through.max(began_at),
            };
            return Err(located(segments, place, events, (place.offset, place.end)));
        }
        Ok(true)
    }
}

/// The block of the frame that is here; `None` if it is not the one that was written.
pub(super) fn block(frames: &mut Frames, header: &Header) -> io::Result<Option<Block>> {
    let body = frames.body(header)?;
    let body = body.filter(|body| body.has_whole_block(header));
    let block = body.and_then(|body| body.to_block().ok());
    Ok(block.filter(|block| {
        let events = (block.first_sequence(), block.last_sequence());
        events == (header.first_sequence, header.last_sequence())
    }))
}

/// Opens a segment. One that is missing is damaged from `next` on.
fn open(
    segments: &Segments,
    place: &Place,
    next: Sequence,
    chunk_bytes: usize,
) -> Result<Frames, Fault> {
    segments.open(place, chunk_bytes).map_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return Fault::Io(error);
        }
        let last = place.through.max(next);
        missing(segments, Damaged { first: next, last }, place.ordinal)
    })
}

fn missing(segments: &Segments, events: Damaged, ordinal: u64) -> Fault {
    Fault::Damaged(Located {
        events,
        path: segments::path(segments.directory(), ordinal),
        bytes: None,
    })
}

fn located(segments: &Segments, place: &Place, events: Damaged, bytes: (u64, u64)) -> Fault {
    Fault::Damaged(Located {
        events,
        path: segments::path(segments.directory(), place.ordinal),
        bytes: Some(bytes),
    })
}

/// The same damage with what follows it and is damaged too.
fn whole(segments: &Segments, head: Sequence, mut damage: Located, forgives: bool) -> Located {
    for _ in 0..RANGE_STEPS_MAX {
        let last = damage.events.last;
        if last >= head {
            break;
        }
        let mut probe = Reading {
            blocks: Vec::new(),
            bytes: 0,
            bytes_max: 0,
            next: last.plus(1),
            head,
            forgives,
        };
        let more = match segments.place_after(last, head) {
            Position::Missing(events, _) => events,
            Position::At(place) => match probe.read_segment(segments, &place) {
                Err(Fault::Damaged(more)) => {
                    if let (Some((_, to)), Some((_, further))) = (&mut damage.bytes, more.bytes)
                        && damage.path == more.path
                    {
                        *to = further;
                    }
                    more.events
                }
                _ => break,
            },
        };
        damage.events.last = more.last.max(last.plus(1));
    }
    damage.events.last = damage.events.last.min(head.max(damage.events.first));
    damage
}

/// The place before the first event of this time or later; `None` if there is none. Events that are
/// damaged may be of this time: the place is before them.
pub(super) fn seek(
    segments: &Segments,
    at: UnixMicros,
    forgives: bool,
) -> Result<Option<Sequence>, Fault> {
    let Some((place, mut before)) = segments.place_of_time(at) else {
        return Ok(None);
    };
    let mut frames = match segments.open(&place, CHUNK_BYTES_MIN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(before)),
        opened => opened?,
    };
    if forgives {
        frames.forgive();
    }
    let mut walk = Walk::new(&place);
    while let Some(step) = walk.step(&mut frames)? {
        let Step::Frame(header) = step else {
            continue;
        };
        if header.received_at >= at {
            break;
        }
        before = header.last_sequence();
        walk.pass(&mut frames, &header);
    }
    Ok(Some(before))
}

/// When the event after this one was received; `None` if there is none.
pub(super) fn time_after(
    segments: &Segments,
    head: Sequence,
    after: Sequence,
) -> Result<Option<UnixMicros>, Fault> {
    if after >= head {
        return Ok(None);
    }
    let place = match segments.place_after(after, head) {
        Position::At(place) => place,
        Position::Missing(events, ordinal) => return Err(missing(segments, events, ordinal)),
    };
    let mut frames = open(segments, &place, after.plus(1), CHUNK_BYTES_MIN)?;
    let mut walk = Walk::new(&place);
    while let Some(step) = walk.step(&mut frames)? {
        match step {
            Step::Frame(header) if header.last_sequence() > after => {
                return Ok(Some(header.received_at));
            }
            Step::Frame(header) => walk.pass(&mut frames, &header),
            Step::Damaged(events, bytes) if events.last > after => {
                return Err(located(segments, &place, events, bytes));
            }
            Step::Damaged(..) => {}
        }
    }
    let last = place.through.max(after.plus(1));
    let first = after.plus(1);
    Err(missing(segments, Damaged { first, last }, place.ordinal))
}
