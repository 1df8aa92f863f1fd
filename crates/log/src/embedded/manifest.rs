//! Owns the manifest: a small file with what is true of the log as a whole. It confirms what the
//! segments say by themselves, and is replaced as a whole, beside the commits: so it may be behind
//! the segments, never ahead of them. Without it a log is opened from its segments alone.
//!
//! Only the manifest knows these, and without them:
//! - the place that retention has reached inside the oldest segment: the events before it come back,
//!   until retention removes them again;
//! - which segments were given up and not removed yet: they are part of the log again;
//! - how old events are, and the retention clock: all events count as new from then on;
//! - that the last commit was durable: it is taken for torn when it is damaged;
//! - which epochs wrote events that are removed: only the cursor of the place right before the oldest
//!   event needs one of them.
//!
//! All numbers little-endian:
//! ```text
//! magic "PBMAN\0\0" · version u8 · log u64 · trimmed u64 · first ordinal u64 · confirmed u64 ·
//! epochs u32 · epochs: first sequence u64 · epoch u32 · bytes of the clock u32 · clock ·
//! time of the newest event i64 (µs) · position + 1 u64 (0: no replica) · digest u64 · crc32c of everything before u32
//! ```
//! The magic, the version and the checksum at the end are the same in all versions.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use bytes::{Buf as _, BufMut as _, TryGetError};

use super::{
    directory::{self, MANIFEST_FILE},
    open_error::OpenError,
};
use crate::sequencer::Position;
use prelude_bridge_event::{Epoch, LogId, Sequence, UnixMicros};

const MAGIC: [u8; 7] = *b"PBMAN\0\0";
const VERSION: u8 = 1;
/// The next manifest, until it is whole.
const NEW_FILE: &str = "manifest.new";

/// What is wrong with a file that is something else, or without its first bytes.
pub(super) const NO_MANIFEST: &str = "it is no manifest";

/// What is true of a log as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) log: LogId,
    /// The newest event that retention has removed.
    pub(super) trimmed: Sequence,
    /// Segments before this one were given up.
    pub(super) first_ordinal: u64,
    /// The events up to this one were durable: what of them is not whole is damaged.
    pub(super) confirmed: Sequence,
    /// Each epoch with the first event that it wrote or will write.
    pub(super) epochs: Vec<(Sequence, Epoch)>,
    /// The clocks of the log and the ages of its events, as `clock` encodes them.
    pub(super) clock: Vec<u8>,
    /// When the newest event was received, which may be removed: no later one gets an earlier time.
    pub(super) last_at: UnixMicros,
    /// Where the log is a replica: the position in the sequence that `confirmed` was reached with, and the
    /// digest there.
    pub(super) replica: Option<(Position, u64)>,
}

impl Manifest {
    /// That of a log which begins after an event and of which nothing else is known.
    pub(super) fn beginning(log: LogId, first_ordinal: u64, trimmed: Sequence) -> Self {
        Self {
            log,
            trimmed,
            first_ordinal,
            confirmed: Sequence::ZERO,
            epochs: Vec::new(),
            clock: Vec::new(),
            last_at: UnixMicros(0),
            replica: None,
        }
    }

    /// Reads the manifest of a directory; `None` if there is none.
    ///
    /// # Errors
    /// [`OpenError::DamagedManifest`] for what is no whole manifest, [`OpenError::Newer`] and
    /// [`OpenError::Older`] for one of another release.
    pub(super) fn read(data_dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = data_dir.join(MANIFEST_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OpenError::Directory { path, source }),
        };
        let damaged = |reason: &str| OpenError::DamagedManifest {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        let content = bytes.strip_prefix(&MAGIC);
        let content = content.ok_or_else(|| damaged(NO_MANIFEST))?;
        let sum = bytes.split_last_chunk();
        let is_whole =
            sum.is_some_and(|(rest, sum)| crc32c::crc32c(rest) == u32::from_le_bytes(*sum));
        let Some((&version, content)) = content.split_first().filter(|_| is_whole) else {
            return Err(damaged("it does not fit its checksum"));
        };
        check_version(&path, version, VERSION)?;
        let manifest = Self::decode(content);
        manifest
            .map(Some)
            .map_err(|_| damaged("its lengths do not fit"))
    }

    /// Puts this one in the place of the one that is there. Durable when this returns; when it fails,
    /// one of the two is there.
    pub(super) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let new = data_dir.join(NEW_FILE);
        let mut file = directory::open_private(&new)?;
        file.set_len(0)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        fs::rename(&new, data_dir.join(MANIFEST_FILE))?;
        directory::sync_directory(data_dir)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.put_u8(VERSION);
        bytes.put_u64_le(self.log.0);
        bytes.put_u64_le(self.trimmed.0);
        bytes.put_u64_le(self.first_ordinal);
        bytes.put_u64_le(self.confirmed.0);
        bytes.put_u32_le(u32::try_from(self.epochs.len()).unwrap_or(u32::MAX));
        for (first, epoch) in &self.epochs {
            bytes.put_u64_le(first.0);
            bytes.put_u32_le(epoch.0);
        }
        bytes.put_u32_le(u32::try_from(self.clock.len()).unwrap_or(u32::MAX));
        bytes.put_slice(&self.clock);
        bytes.put_i64_le(self.last_at.0);
        let (next, digest) = self
            .replica
            .map_or((0, 0), |(at, digest)| (at.next().0, digest));
        bytes.put_u64_le(next);
        bytes.put_u64_le(digest);
        let checksum = crc32c::crc32c(&bytes);
        bytes.put_u32_le(checksum);
        bytes
    }

    fn decode(mut content: &[u8]) -> Result<Self, TryGetError> {
        let content = &mut content;
        let mut manifest = Self::beginning(LogId(content.try_get_u64_le()?), 1, Sequence::ZERO);
        manifest.trimmed = Sequence(content.try_get_u64_le()?);
        manifest.first_ordinal = content.try_get_u64_le()?;
        manifest.confirmed = Sequence(content.try_get_u64_le()?);
        for _ in 0..content.try_get_u32_le()? {
            let first = Sequence(content.try_get_u64_le()?);
            let epoch = Epoch(content.try_get_u32_le()?);
            manifest.epochs.push((first, epoch));
        }
        let clock_bytes = content.try_get_u32_le()? as usize;
        let clock = content.get(..clock_bytes).ok_or(TryGetError {
            requested: clock_bytes,
            available: content.len(),
        })?;
        manifest.clock = clock.to_vec();
        content.advance(clock_bytes);
        // Development versions wrote none.
        if content.has_remaining() {
            manifest.last_at = UnixMicros(content.try_get_i64_le()?);
        }
        if content.has_remaining() {
            let next = content.try_get_u64_le()?;
            let digest = content.try_get_u64_le()?;
            manifest.replica = next.checked_sub(1).map(|at| (Position(at), digest));
        }
        Ok(manifest)
    }
}

/// Refuses a file of another release.
pub(super) fn check_version(path: &Path, found: u8, known: u8) -> Result<(), OpenError> {
    let path = || path.to_owned();
    match found.cmp(&known) {
        std::cmp::Ordering::Less => Err(OpenError::Older { path: path() }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(OpenError::Newer {
            path: path(),
            found,
            known,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            trimmed: Sequence(4),
            confirmed: Sequence(9),
            epochs: vec![(Sequence(1), Epoch(7)), (Sequence(6), Epoch(8))],
            clock: b"clock".to_vec(),
            last_at: UnixMicros(77),
            replica: Some((Position(5), 6)),
            ..Manifest::beginning(LogId(3), 2, Sequence(4))
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written_and_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), None);
        Manifest::beginning(LogId(1), 1, Sequence::ZERO)
            .write(dir.path())
            .unwrap();
        // What a crash has left behind.
        fs::write(dir.path().join(NEW_FILE), vec![9; 1_000]).unwrap();
        manifest().write(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), Some(manifest()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_manifest_with_a_changed_bit_or_without_its_end_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MANIFEST_FILE);
        let whole = manifest().encode();
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Manifest::read(dir.path())
        };
        for index in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[index] ^= 1 << bit;
                let read = read(&bytes);
                let is_told = matches!(read, Err(OpenError::DamagedManifest { .. }));
                assert!(is_told, "byte {index}: {read:?}");
            }
            let read = read(&whole[..index]);
            let is_told = matches!(read, Err(OpenError::DamagedManifest { .. }));
            assert!(is_told, "cut at {index}: {read:?}");
        }
        assert_eq!(read(&whole).unwrap(), Some(manifest()));
    }
}
