//! Owns what only other servers speak, as adapters of the load's [`Protocol`]: each counts what is in
//! the bytes at as little cost as it can, so that the server is the limit. Knows nothing of sockets.

pub mod nats;

use prelude_bridge_load::{Protocol, ProtocolError};

/// Events of a fixed size, one after the other. The server sends one byte when it has noted a
/// subscriber.
pub struct Raw {
    opening: &'static [u8],
    event_bytes: u64,
    is_ready: bool,
    received: u64,
}

impl Raw {
    /// A subscriber to events of this size.
    #[must_use]
    pub fn subscriber(event_bytes: u64) -> Self {
        Self {
            opening: b"S",
            event_bytes,
            is_ready: false,
            received: 0,
        }
    }

    /// A connection that only sends, first this.
    #[must_use]
    pub fn publisher(opening: &'static [u8]) -> Self {
        Self {
            opening,
            event_bytes: u64::MAX,
            is_ready: true,
            received: 0,
        }
    }

    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        if !self.is_ready && !bytes.is_empty() {
            self.is_ready = true;
            bytes = bytes.get(1..).unwrap_or_default();
        }
        let before = self.received / self.event_bytes;
        self.received += bytes.len() as u64;
        self.received / self.event_bytes - before
    }
}

impl Protocol for Raw {
    fn opening(&self) -> Vec<u8> {
        self.opening.to_vec()
    }

    fn receive(&mut self, bytes: &[u8], _: &mut Vec<u8>) -> Result<u64, ProtocolError> {
        Ok(self.count(bytes))
    }

    fn is_ready(&self) -> bool {
        self.is_ready
    }
}

#[cfg(test)]
mod tests {
    use super::Raw;

    #[test]
    fn raw_events_are_counted_by_their_bytes() {
        let mut raw = Raw::subscriber(10);
        assert_eq!(raw.count(&[0]), 0);
        assert_eq!(raw.count(&[0; 9]), 0);
        assert_eq!(raw.count(&[0; 12]), 2);
    }
}
