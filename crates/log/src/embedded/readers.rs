//! Owns reading: from the segments' files, without waiting for the writer nor it for them, and the
//! promise that what is damaged or missing is said and never skipped.

use std::{io, sync::Arc};

use tokio::{runtime, sync::Semaphore};

use super::{
    disk_error,
    frame::{Frames, Header},
    segments::{Place, Segments},
};
use crate::{Block, ReadError, Status};
use prelude_bridge_event::{Sequence, UnixMicros};

/// A chunk of a file that is read at once: at least so much …
const CHUNK_BYTES_MIN: usize = 64 * 1024;
/// … and at most so much, whatever the caller takes; a larger block is read whole all the same.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;

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

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Retention was faster.
    #[error("it was removed")]
    Gone,
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Io(io::Error),
}

impl Fault {
    /// Whether there was no file descriptor to read with, which passes.
    pub(super) fn is_no_descriptor(&self) -> bool {
        matches!(self, Self::Io(error) if disk_error::is_no_descriptor(error))
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone,
            _ => Self::Io(error),
        }
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
    ) -> Result<Vec<Arc<Block>>, ReadError> {
        let range = now.range();
        if !range.reaches(after) {
            let earliest = range.earliest;
            return Err(ReadError::Expired { earliest });
        }
        if after >= range.head {
            return Ok(Vec::new());
        }
        self.run(now, move |segments| {
            read(segments, range.head, after, bytes_max)
        })
        .await
    }

    /// Finds a place by its time as [`crate::Log::seek`] says.
    pub(super) async fn seek(&self, now: &Status, at: UnixMicros) -> Result<Sequence, ReadError> {
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
        let found = self
            .run(now, move |segments| seek(segments, range.head, at))
            .await;
        let place = found?.map_or(range.head, |(place, _)| place);
        // Retention may have passed it meanwhile.
        Ok(place.max(now.range().earliest.before()))
    }

    /// Reads on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        now: &Status,
        read: impl FnOnce(&Segments) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, ReadError> {
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
        answer.map_err(|fault| match fault {
            Fault::Gone => ReadError::Expired {
                earliest: now.range().earliest,
            },
            fault if fault.is_no_descriptor() => {
                ReadError::Unavailable("no file can be opened".into())
            }
            fault => failed(fault),
        })
    }
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
fn failed(reason: impl ToString) -> ReadError {
    ReadError::Failed(reason.to_string().into())
}

/// The blocks after `after`, none after `head`, as many as fit, and at least one.
pub(super) fn read(
    segments: &Segments,
    head: Sequence,
    after: Sequence,
    bytes_max: usize,
) -> Result<Vec<Arc<Block>>, Fault> {
    let chunk_bytes = bytes_max.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
    let (mut blocks, mut bytes, mut next) = (Vec::new(), 0_usize, after.plus(1));
    // What is not asked for any more is not looked at: it may be damaged.
    let is_enough = |blocks: &[Arc<Block>], bytes| !blocks.is_empty() && bytes >= bytes_max;
    while next <= head && !is_enough(&blocks, bytes) {
        let place = segments.place_after(next.before()).ok_or(Fault::Gone)?;
        let mut frames = segments.open(&place, chunk_bytes)?;
        let (began_at, mut expected) = (next, place.sequence);
        while expected <= place.through && next <= head && !is_enough(&blocks, bytes) {
            let header = header_of(&mut frames, &place, expected)?;
            let last = header.last_sequence();
            if last >= next {
                bytes = bytes.saturating_add(header.block_bytes());
                if !blocks.is_empty() && bytes > bytes_max {
                    return Ok(blocks);
                }
                let body = frames.body(&header)?;
                let body = body.filter(|body| body.has_whole_block(&header));
                let damaged = || Fault::Damaged(format!("events {expected} to {last} are damaged"));
                let block = body.ok_or_else(damaged)?.to_block();
                let block = block.map_err(|_| damaged())?;
                if (block.first_sequence(), block.last_sequence()) != (expected, last) {
                    let reason = format!("events {expected} to {last} are not in their place");
                    return Err(Fault::Damaged(reason));
                }
                blocks.push(Arc::new(block));
                next = last.plus(1);
            }
            frames.skip(&header);
            expected = last.plus(1);
        }
        if next == began_at {
            // A mark that leads to another place than it says.
            let reason = format!("event {next} is not where the index says");
            return Err(Fault::Damaged(reason));
        }
    }
    Ok(blocks)
}

/// The place before the first event of this time or later, and its time; `None` if there is none.
pub(super) fn seek(
    segments: &Segments,
    head: Sequence,
    at: UnixMicros,
) -> Result<Option<(Sequence, UnixMicros)>, Fault> {
    let Some(place) = segments.place_of_time(at) else {
        return Ok(None);
    };
    let mut frames = segments.open(&place, CHUNK_BYTES_MIN)?;
    let mut expected = place.sequence;
    while expected <= place.through.min(head) {
        let header = header_of(&mut frames, &place, expected)?;
        if header.received_at >= at {
            return Ok(Some((expected.before(), header.received_at)));
        }
        frames.skip(&header);
        expected = header.last_sequence().plus(1);
    }
    Ok(None)
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
    let place = segments.place_after(after).ok_or(Fault::Gone)?;
    let mut frames = segments.open(&place, CHUNK_BYTES_MIN)?;
    let mut expected = place.sequence;
    loop {
        let header = header_of(&mut frames, &place, expected)?;
        if header.last_sequence() > after {
            return Ok(Some(header.received_at));
        }
        frames.skip(&header);
        expected = header.last_sequence().plus(1);
    }
}

/// The header of a frame that must be there.
fn header_of(frames: &mut Frames, place: &Place, expected: Sequence) -> Result<Header, Fault> {
    let header = frames.header()?;
    header
        .filter(|header| header.first_sequence == expected && frames.offset() < place.end)
        .ok_or_else(|| Fault::Damaged(format!("event {expected} and what follows are damaged")))
}
