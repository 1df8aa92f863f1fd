//! What is true of every way to cut frames into reads, for the fuzz targets.

#![allow(missing_docs, reason = "one function")]

use super::*;

/// The same bytes come to the same place in a frame, and to the same number of frames, however they
/// are cut. The first byte says how.
pub fn frame_budget(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let limits = Limits {
        frame_cost_bytes: 1,
        frames_per_second: 0,
        frames_at_first: bytes.len() as u64 / HEAD_BYTES as u64 / 2,
        frames_saved_max: u64::MAX,
    };
    let [(whole, ended), (pieces, ended_in_pieces)] = [bytes.len(), usize::from(*cut)].map(|cut| {
        let exhausted = CancellationToken::new();
        let mut budget = FrameBudget::new(limits, exhausted.clone());
        for piece in bytes.chunks(cut.max(1)) {
            budget.pay(piece);
        }
        let place = (budget.skip, budget.head_bytes, budget.length);
        (place, exhausted.is_cancelled())
    });
    assert_eq!(whole, pieces);
    // Counted by hand.
    let mut rest = bytes.get(PREFACE_BYTES..).unwrap_or_default();
    let mut frames = 0;
    while let Some((head, after)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        rest = after.get(length..).unwrap_or_default();
        frames += 1;
    }
    assert_eq!(ended, frames > limits.frames_at_first);
    assert_eq!(ended, ended_in_pieces);
}
