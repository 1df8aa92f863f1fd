//! Owns the memory that bodies take: how one is read under its limit, and all of them under a
//! common budget. Knows nothing of what is in them.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::{Stream, StreamExt as _};

use super::error::Error;

/// The least that a body grows by. A usual batch fits at once.
const STEP_BYTES: usize = 16 * 1024;
/// The budget counts in this unit, as the semaphore's numbers are small.
const UNIT_BYTES: usize = 1024;
/// How long and how far (in limits) a refused body is read, so that the caller, who may still be
/// sending, gets the answer instead of a reset connection.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
const DISCARD_LIMITS: usize = 4;

/// The memory that all bodies share.
pub(super) struct Budget {
    units: Arc<Semaphore>,
    bytes_max: usize,
}

/// A body in memory, which counts against the budget until it is dropped.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) held: Held,
}

/// A share of the budget.
#[derive(Default)]
pub(super) struct Held {
    units: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Self {
        let units = (bytes_max / UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self {
            units: Arc::new(Semaphore::new(units)),
            bytes_max,
        }
    }

    fn extend(&self, held: &mut Held, bytes: usize) -> Result<(), Error> {
        let full = Error::BodiesTooLarge {
            bytes_max: self.bytes_max,
        };
        let Ok(units) = u32::try_from(bytes.div_ceil(UNIT_BYTES)) else {
            return Err(full);
        };
        let Ok(more) = Arc::clone(&self.units).try_acquire_many_owned(units) else {
            return Err(full);
        };
        match &mut held.units {
            Some(units) => units.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

/// Reads a body of at most `bytes_max`. Memory is taken as the bytes arrive: a caller who announces
/// much and sends little holds little.
pub(super) async fn read<B: Buf>(
    mut chunks: impl Stream<Item = Result<B, warp::Error>> + Unpin,
    bytes_max: usize,
    announced: Option<usize>,
    budget: &Budget,
) -> Result<Body, Error> {
    // Without an announcement the limit is what may come.
    let bytes_expected = announced.unwrap_or(bytes_max).min(bytes_max);
    let mut held = Held::default();
    let mut body = Vec::new();
    let mut capacity = 0;
    while let Some(chunk) = chunks.next().await {
        let mut chunk = chunk?;
        let length = body.len() + chunk.remaining();
        if length > bytes_max {
            discard(chunks, bytes_max).await;
            return Err(Error::BodyTooLarge { bytes_max });
        }
        if length > capacity {
            let grown = (2 * capacity)
                .max(STEP_BYTES)
                .min(bytes_expected)
                .max(length);
            budget.extend(&mut held, grown - capacity)?;
            body.reserve_exact(grown - body.len());
            capacity = grown;
        }
        while chunk.has_remaining() {
            let part = chunk.chunk();
            body.extend_from_slice(part);
            let part_bytes = part.len();
            chunk.advance(part_bytes);
        }
    }
    Ok(Body {
        bytes: body.into(),
        held,
    })
}

/// Reads a body that is refused anyway, for a moment, without keeping it. Returns its length as
/// far as it was read.
pub(super) async fn discard<B: Buf>(
    mut chunks: impl Stream<Item = Result<B, warp::Error>> + Unpin,
    bytes_max: usize,
) -> usize {
    let mut length = 0;
    let reading = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            length += chunk.remaining();
            if length > bytes_max.saturating_mul(DISCARD_LIMITS) {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, reading).await;
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(sizes: &[usize]) -> impl Stream<Item = Result<Bytes, warp::Error>> + Unpin {
        let chunks: Vec<_> = sizes.iter().map(|&size| Ok(vec![7; size].into())).collect();
        tokio_stream::iter(chunks)
    }

    #[tokio::test]
    async fn a_body_takes_its_share_of_the_budget_until_it_is_dropped() {
        let budget = Budget::new(64 * 1024);
        let first = read(chunks(&[20_000; 2]), 100_000, None, &budget)
            .await
            .unwrap();
        assert_eq!(first.bytes, vec![7; 40_000]);
        let second = read(chunks(&[20_000; 2]), 100_000, None, &budget).await;
        assert!(matches!(
            second,
            Err(Error::BodiesTooLarge { bytes_max: 65_536 })
        ));
        drop(first);
        assert_eq!(budget.units.available_permits(), 64);
        read(chunks(&[20_000; 2]), 100_000, Some(40_000), &budget)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_small_body_that_announces_itself_takes_little() {
        let budget = Budget::new(64 * 1024);
        let body = read(chunks(&[100]), 100_000, Some(100), &budget)
            .await
            .unwrap();
        assert_eq!(budget.units.available_permits(), 63);
        drop(body);
        assert!(
            read(chunks(&[]), 100_000, Some(100_000), &budget)
                .await
                .unwrap()
                .bytes
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_body_is_limited_whatever_it_announced() {
        let budget = Budget::new(64 * 1024);
        for announced in [None, Some(10), Some(100)] {
            let exact = read(chunks(&[50, 50]), 100, announced, &budget)
                .await
                .unwrap();
            assert_eq!(exact.bytes.len(), 100);
            let over = read(chunks(&[50, 51]), 100, announced, &budget).await;
            assert!(matches!(over, Err(Error::BodyTooLarge { bytes_max: 100 })));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_body_is_read_no_further_than_a_little() {
        assert_eq!(discard(chunks(&[100; 3]), 100).await, 300);
        assert_eq!(discard(chunks(&[100; 100]), 100).await, 500);
        let endless = chunks(&[100]).chain(tokio_stream::pending());
        assert_eq!(discard(endless, 100).await, 100);
    }
}
