//! Owns how much a connection's responses may weigh that h2 has taken and the socket has not: a
//! client that opens its windows wide and then reads nothing holds no more than this, however many
//! streams it has. Knows nothing of what is in them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The semaphore counts in this unit.
const UNIT_BYTES: usize = 1024;

/// The room of one connection.
#[derive(Clone)]
pub(super) struct Unsent {
    units: Arc<Semaphore>,
    units_max: usize,
}

/// A share of it, given back when it is dropped: h2 drops a response once it is sent.
#[derive(Debug)]
pub(super) struct Share(OwnedSemaphorePermit);

impl Unsent {
    pub(super) fn new(bytes_max: usize) -> Self {
        let units_max = (bytes_max / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            units: Arc::new(Semaphore::new(units_max)),
            units_max,
        }
    }

    /// A share of at most `bytes_max`, if there is one of `bytes` now.
    pub(super) fn try_hold(&self, bytes: usize, bytes_max: usize) -> Option<Share> {
        let units = units(bytes_max).min(self.units.available_permits());
        if units < self.units_needed(bytes) {
            return None;
        }
        // Another stream may have been quicker.
        let permit = Arc::clone(&self.units).try_acquire_many_owned(count(units));
        permit.ok().map(Share)
    }

    /// Waits for a share of `bytes`, or of all there is.
    pub(super) async fn hold(&self, bytes: usize) -> Share {
        let permit = Arc::clone(&self.units).acquire_many_owned(count(self.units_needed(bytes)));
        match permit.await {
            Ok(permit) => Share(permit),
            // Closed never.
            Err(_) => std::future::pending().await,
        }
    }

    /// What is larger than all the room there is goes when it is the only one.
    fn units_needed(&self, bytes: usize) -> usize {
        units(bytes).min(self.units_max)
    }
}

impl Share {
    pub(super) fn bytes(&self) -> usize {
        self.0.num_permits() * UNIT_BYTES
    }

    /// Gives back what `bytes` do not need.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let spare = self.0.num_permits().saturating_sub(units(bytes));
        if spare > 0 {
            drop(self.0.split(spare));
        }
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT_BYTES)
}

fn count(units: usize) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;

    use super::*;

    const UNSENT_BYTES_MAX: usize = 1024 * 1024;
    const UNITS_MAX: usize = UNSENT_BYTES_MAX / UNIT_BYTES;

    #[test]
    fn a_share_is_as_large_as_there_is_room_and_never_too_small() {
        let unsent = Unsent::new(UNSENT_BYTES_MAX);
        let most = unsent.try_hold(1, UNSENT_BYTES_MAX - 2048).unwrap();
        let rest = unsent.try_hold(1, 100_000).unwrap();
        assert_eq!(rest.bytes(), 2048);
        assert!(unsent.try_hold(1, 100_000).is_none());
        drop(rest);
        assert!(unsent.try_hold(2049, 100_000).is_none());
        let again = unsent.try_hold(2048, 100_000).unwrap();
        drop((most, again));
        assert_eq!(unsent.units.available_permits(), UNITS_MAX);
    }

    #[test]
    fn what_is_not_needed_is_given_back_and_the_rest_at_the_end() {
        let unsent = Unsent::new(UNSENT_BYTES_MAX);
        let mut share = unsent.try_hold(1, 100_000).unwrap();
        share.shrink_to(1500);
        assert_eq!(unsent.units.available_permits(), UNITS_MAX - 2);
        drop(share);
        assert_eq!(unsent.units.available_permits(), UNITS_MAX);
    }

    #[tokio::test]
    async fn what_is_larger_than_all_waits_for_all() {
        let unsent = Unsent::new(UNSENT_BYTES_MAX);
        let small = unsent.try_hold(1, 1).unwrap();
        assert!(unsent.try_hold(2 * UNSENT_BYTES_MAX, usize::MAX).is_none());
        let mut all = Box::pin(unsent.hold(2 * UNSENT_BYTES_MAX));
        assert!(poll_immediate(&mut all).await.is_none());
        drop(small);
        assert_eq!(all.await.bytes(), UNSENT_BYTES_MAX);
    }
}
