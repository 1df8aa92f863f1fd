//! Owns the least of HTTP/1.1 that a sender of webhooks needs: it counts answers, all of which have
//! to be `200` and say how long they are.

use anyhow::{Context as _, Result, bail};

/// One connection that is kept.
#[derive(Default)]
pub struct Sender {
    cut: Vec<u8>,
    /// What is left of the current answer's body.
    body_left: usize,
}

impl Sender {
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<u64> {
        self.cut.extend_from_slice(bytes);
        let mut rest = self.cut.as_slice();
        let mut answers = 0;
        loop {
            if self.body_left > 0 {
                let skipped = self.body_left.min(rest.len());
                rest = &rest[skipped..];
                self.body_left -= skipped;
                if self.body_left > 0 {
                    break;
                }
                answers += 1;
            }
            let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else {
                break;
            };
            let head = std::str::from_utf8(&rest[..end])?;
            if !head.starts_with("HTTP/1.1 200 ") {
                let body = String::from_utf8_lossy(&rest[end..]);
                bail!("a batch was refused: {head}{body}");
            }
            self.body_left = content_length(head)?;
            rest = &rest[end + 4..];
            answers += u64::from(self.body_left == 0);
        }
        let used = self.cut.len() - rest.len();
        self.cut.drain(..used);
        Ok(answers)
    }
}

fn content_length(head: &str) -> Result<usize> {
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    let value = value.context("an answer without a content-length")?;
    Ok(value.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::Sender;

    #[test]
    fn answers_are_counted_however_the_bytes_were_cut() {
        let stream = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        for cut in 1..stream.len() {
            let mut sender = Sender::default();
            let answers: u64 = stream
                .chunks(cut)
                .map(|piece| sender.receive(piece).unwrap())
                .sum();
            assert_eq!(answers, 2);
        }
    }

    #[test]
    fn a_refusal_is_an_error() {
        let refusal = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        Sender::default().receive(refusal).unwrap_err();
    }
}
