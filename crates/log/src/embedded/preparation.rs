//! Owns how a segment is made ready: filled with zeros, and flushed. A flush of what is written over
//! them waits for the disk only; at the end of a file, or in space that is merely reserved, it also
//! waits for the file system to note down where the bytes are, which takes twice as long.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    time::Instant,
};

use super::{directory, frame, segments};
use prelude_bridge_event::LogId;

/// A segment is made ready in pieces of this size, each flushed: a commit that flushes at the same
/// moment waits for no more than this.
const PIECE_BYTES: usize = 128 * 1024;
static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];
/// After a piece there is a rest of so many times as long as that took, while there is time: most
/// commits find the disk free. Still more is made ready in a second than usually comes in a minute.
const REST_TIMES: u32 = 3;
/// Segments are made ready only where the disk has so many times as much room: on a disk that is
/// nearly full the room is worth more.
const FREE_SEGMENTS_MIN: u64 = 16;

/// Which segment to make ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) ordinal: u64,
    pub(super) bytes: u64,
    /// Old events can go when it has taken the place of the segment before it: the reserve is for that.
    pub(super) is_replacement: bool,
}

/// A segment that can be written to: its file, and how much of it is ready.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) file: File,
    pub(super) ordinal: u64,
    pub(super) bytes: u64,
}

/// A segment that is being made ready.
pub(super) struct Preparation {
    segment: Ready,
    bytes_goal: u64,
    rest_ends_at: Instant,
}

impl Preparation {
    /// Creates the file. What an earlier attempt has left of it goes.
    pub(super) fn begin(directory: &Path, log: LogId, order: Order) -> io::Result<Self> {
        let mut file = directory::open_private(&segments::path(directory, order.ordinal))?;
        file.set_len(0)?;
        file.write_all(&frame::segment_header(log, order.ordinal))?;
        file.sync_all()?;
        directory::sync_directory(directory)?;
        let bytes = frame::SEGMENT_HEADER_BYTES;
        let bytes_goal = if has_room(&file, order.bytes) {
            order.bytes
        } else {
            bytes
        };
        Ok(Self {
            segment: Ready {
                file,
                ordinal: order.ordinal,
                bytes,
            },
            bytes_goal,
            rest_ends_at: Instant::now(),
        })
    }

    /// When the next piece is due.
    pub(super) fn rest_ends_at(&self) -> Instant {
        self.rest_ends_at
    }

    /// Makes the next piece, unless it is too early and there is time. Says whether all is made.
    pub(super) fn go_on(&mut self, is_late: bool) -> io::Result<bool> {
        let began = Instant::now();
        if is_late || began >= self.rest_ends_at {
            self.make_piece()?;
            self.rest_ends_at = Instant::now() + began.elapsed() * REST_TIMES;
        }
        Ok(self.segment.bytes >= self.bytes_goal)
    }

    fn make_piece(&mut self) -> io::Result<()> {
        let Ready { file, bytes, .. } = &mut self.segment;
        let missing = self.bytes_goal.saturating_sub(*bytes);
        let missing = usize::try_from(missing).unwrap_or(PIECE_BYTES);
        let piece = ZEROS.get(..missing).unwrap_or(&ZEROS);
        if file.write_all(piece).is_err() {
            // It works without, and whoever set a limit meant it.
            self.bytes_goal = *bytes;
            return file.set_len(*bytes);
        }
        file.sync_data()?;
        *bytes += piece.len() as u64;
        Ok(())
    }

    /// The segment, as far as it is ready.
    pub(super) fn ready(self) -> Ready {
        self.segment
    }
}

fn has_room(file: &File, bytes: u64) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|disk| {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        free >= bytes.saturating_mul(FREE_SEGMENTS_MIN)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::embedded::{frame::Kind, keeper::remove};

    fn begin(dir: &Path, ordinal: u64, bytes: u64) -> Preparation {
        Preparation::begin(
            dir,
            LogId(1),
            Order {
                ordinal,
                bytes,
                is_replacement: false,
            },
        )
        .unwrap()
    }

    #[test]
    fn a_segment_is_made_ready_with_room_in_it_and_over_what_was_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = segments::path(dir.path(), 3);
        std::fs::write(&path, vec![7; 5_000_000]).unwrap();
        let bytes = PIECE_BYTES as u64 + 1_000;
        let mut segment = begin(dir.path(), 3, bytes);
        assert!(!segment.go_on(false).unwrap());
        assert!(segment.go_on(true).unwrap());
        let ready = segment.ready();
        assert_eq!(ready.bytes, bytes);
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len() as u64, ready.bytes);
        assert!(written[32..].iter().all(|&byte| byte == 0));
        let kind = frame::identify(&ready.file, LogId(1), 3).unwrap();
        assert_eq!(kind, Kind::Segment);
        assert_eq!(segments::ordinals(dir.path()).unwrap(), [3]);
        remove(dir.path(), &[2, 3]).unwrap();
        assert_eq!(segments::ordinals(dir.path()).unwrap(), [0; 0]);
    }

    #[test]
    fn no_room_is_made_where_there_is_little() {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = begin(dir.path(), 1, u64::MAX / 2);
        assert!(segment.go_on(false).unwrap());
        assert_eq!(segment.ready().bytes, frame::SEGMENT_HEADER_BYTES);
    }

    #[test]
    fn after_a_piece_there_is_a_rest_unless_it_is_late() {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = begin(dir.path(), 1, 10_000_000);
        assert!(!segment.go_on(false).unwrap());
        segment.rest_ends_at = Instant::now() + Duration::from_secs(3_600);
        let bytes = segment.segment.bytes;
        assert!(!segment.go_on(false).unwrap());
        assert_eq!(segment.segment.bytes, bytes, "it rests");
        assert!(!segment.go_on(true).unwrap());
        assert_eq!(segment.segment.bytes, bytes + PIECE_BYTES as u64);
    }
}
