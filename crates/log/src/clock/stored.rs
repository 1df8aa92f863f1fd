//! Owns the bytes of what outlives the process, with a checksum of their own: what decides about
//! removal must not be what a damaged page of a database says.

use bytes::{Buf as _, BufMut as _, TryGetError};

use super::{Boot, RetentionTime, ages::Mark, retention::Credit};
use prelude_bridge_event::{Sequence, UnixMicros};

const VERSION: u8 = 1;
/// Longer ones were not written by this program: a log has some hundred marks.
const BYTES_MAX: usize = 1024 * 1024;

/// What the clocks of a log showed, last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// By the retention clock.
    pub(super) time: RetentionTime,
    pub(super) credits: Vec<Credit>,
    pub(super) credited: i64,
    /// The run of the steady clock, if it is known, …
    pub(super) boot: Option<Boot>,
    /// … and what it showed.
    pub(super) steady: i64,
    /// By the stamping clock.
    pub(super) wall: UnixMicros,
    pub(super) kept_pace: i64,
    pub(super) confirmed: Option<i64>,
    pub(super) claim: Option<Credit>,
}

impl Stored {
    /// The bytes, with the ages of the log's events.
    pub(crate) fn encode(&self, marks: impl Iterator<Item = Mark>) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for number in [
            self.time.0,
            self.credited,
            self.steady,
            self.wall.0,
            self.kept_pace,
        ] {
            bytes.put_i64_le(number);
        }
        bytes.put_u8(u8::from(self.boot.is_some()));
        bytes.put_slice(&self.boot.unwrap_or_default());
        bytes.put_u8(u8::from(self.confirmed.is_some()));
        bytes.put_i64_le(self.confirmed.unwrap_or_default());
        // The claim, if there is one, is the first of the credits.
        bytes.put_u8(u8::from(self.claim.is_some()));
        bytes.put_u32_le(u32::try_from(self.credits.len()).unwrap_or(u32::MAX));
        for credit in self.claim.iter().chain(&self.credits) {
            bytes.put_i64_le(credit.after.0);
            bytes.put_i64_le(credit.micros);
        }
        for mark in marks {
            bytes.put_u64_le(mark.through.0);
            bytes.put_i64_le(mark.at.0);
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.put_u32_le(checksum);
        bytes
    }

    /// Reads them; `None` if they are damaged, or of another version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, Vec<Mark>)> {
        let (content, checksum) = bytes.split_last_chunk()?;
        if bytes.len() > BYTES_MAX || crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let (&VERSION, content) = content.split_first()? else {
            return None;
        };
        Self::read(content).ok()
    }

    fn read(mut content: &[u8]) -> Result<(Self, Vec<Mark>), TryGetError> {
        let time = RetentionTime(content.try_get_i64_le()?);
        let credited = content.try_get_i64_le()?;
        let steady = content.try_get_i64_le()?;
        let wall = UnixMicros(content.try_get_i64_le()?);
        let kept_pace = content.try_get_i64_le()?;
        let has_boot = content.try_get_u8()? != 0;
        let mut boot = Boot::default();
        content.try_copy_to_slice(&mut boot)?;
        let is_confirmed = content.try_get_u8()? != 0;
        let confirmed = content.try_get_i64_le()?;
        let has_claim = content.try_get_u8()? != 0;
        let count = content.try_get_u32_le()?;
        let claim = has_claim.then(|| credit(&mut content)).transpose()?;
        let credits = (0..count)
            .map(|_| credit(&mut content))
            .collect::<Result<_, _>>()?;
        let mut marks = Vec::new();
        while content.has_remaining() {
            marks.push(Mark {
                through: Sequence(content.try_get_u64_le()?),
                at: RetentionTime(content.try_get_i64_le()?),
            });
        }
        let stored = Self {
            time,
            credits,
            credited,
            boot: has_boot.then_some(boot),
            steady,
            wall,
            kept_pace,
            confirmed: is_confirmed.then_some(confirmed),
            claim,
        };
        Ok((stored, marks))
    }
}

fn credit(content: &mut &[u8]) -> Result<Credit, TryGetError> {
    Ok(Credit {
        after: RetentionTime(content.try_get_i64_le()?),
        micros: content.try_get_i64_le()?,
    })
}
