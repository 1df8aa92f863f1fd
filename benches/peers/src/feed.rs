//! Owns the plain connection over which a server that takes no webhooks is told what to publish:
//! events, each after its length in four bytes (big endian). The servers read it with this.

/// Splits a stream of bytes into what was framed.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// Takes bytes, and hands out every frame that they complete, without its length.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        self.buffer.extend_from_slice(bytes);
        let mut rest = self.buffer.as_slice();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some((frame, after)) = after.split_at_checked(length) else {
                break;
            };
            each(frame);
            rest = after;
        }
        let used = self.buffer.len() - rest.len();
        self.buffer.drain(..used);
    }
}

#[cfg(test)]
mod tests {
    use super::Frames;

    #[test]
    fn frames_come_out_whole_however_the_bytes_were_cut() {
        let stream = [0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 9];
        for cut in 1..stream.len() {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for piece in stream.chunks(cut) {
                frames.push(piece, |frame| seen.push(frame.to_vec()));
            }
            assert_eq!(seen, [vec![1, 2], vec![], vec![9]]);
        }
    }
}
