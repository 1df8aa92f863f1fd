//! Owns how a body is read: within its limit, at its minimum speed, and within a shared budget of memory.
//! Knows nothing of its content.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use tokio::time::{Instant, sleep_until};
use tokio_stream::{Stream, StreamExt as _};

use super::{
    budget::{BYTES_PER_SECOND_MIN, Budget, Held, SMALL_BYTES},
    error::Error,
    source::Client,
};

/// The smallest step by which a body's buffer grows. A usual batch fits at once.
const STEP_BYTES: usize = 16 * 1024;
/// A larger one grows by this part of itself: so it is copied a few times, and takes little more than
/// has arrived.
const STEP_PART: usize = 4;
/// How long and how far (in limits) a refused body is read, so that the caller, who may still be
/// sending, gets the answer instead of a reset connection.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
const DISCARD_LIMITS: usize = 4;

/// A body in memory, which counts against the budget until it is dropped.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) held: Held,
}

/// Reads a body of at most `bytes_max`. Memory is reserved as bytes arrive: a caller that announces a
/// large body and sends little holds little memory.
pub(super) async fn read<B: Buf>(
    mut chunks: impl Stream<Item = Result<B, warp::Error>> + Unpin,
    bytes_max: usize,
    announced: Option<usize>,
    budget: &Arc<Budget>,
    client: Client,
) -> Result<Body, Error> {
    // Without a Content-Length, the body may have as many bytes as the limit.
    let bytes_expected = announced.unwrap_or(bytes_max).min(bytes_max);
    let mut held = budget.begin(client);
    let mut body = Vec::new();
    let mut lively_until = held.arrived(0);
    loop {
        let is_small = held.bytes() <= SMALL_BYTES;
        let chunk = tokio::select! {
            biased;
            () = held.gave_way() => return Err(Error::BodyGaveWay),
            chunk = chunks.next() => chunk,
            () = too_slow(is_small, lively_until) => {
                let bytes_per_second = BYTES_PER_SECOND_MIN;
                return Err(Error::BodyStalled { bytes_per_second });
            }
        };
        let Some(chunk) = chunk else {
            break;
        };
        let mut chunk = chunk?;
        let length = body.len() + chunk.remaining();
        if length > bytes_max {
            return Err(Error::BodyTooLarge { bytes_max });
        }
        lively_until = held.arrived(chunk.remaining());
        if length > held.bytes() {
            let step = (held.bytes() / STEP_PART).max(STEP_BYTES);
            let grown = (held.bytes() + step).min(bytes_expected).max(length);
            held.extend(grown).await?;
            body.reserve_exact(grown - body.len());
            // While it waited for memory, it did not have to send.
            lively_until = held.arrived(0);
        }
        while chunk.has_remaining() {
            let part = chunk.chunk();
            body.extend_from_slice(part);
            let part_bytes = part.len();
            chunk.advance(part_bytes);
        }
    }
    held.complete();
    Ok(Body {
        bytes: body.into(),
        held,
    })
}

/// Waits until a body has sent too little for too long. A small one may be as slow as it likes: it
/// holds little, and its deadline is soon over.
async fn too_slow(is_small: bool, lively_until: Instant) {
    if is_small {
        std::future::pending::<()>().await;
    }
    sleep_until(lively_until).await;
}

/// How far a body is read that is refused anyway.
pub(crate) fn discarded_bytes_max(body_bytes_max: usize) -> usize {
    body_bytes_max.saturating_mul(DISCARD_LIMITS)
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
            if length > discarded_bytes_max(bytes_max) {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, reading).await;
    length
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{super::budget::Limits, *};
    use crate::net::network::Network;

    fn chunks(sizes: &[usize]) -> impl Stream<Item = Result<Bytes, warp::Error>> + Unpin + use<> {
        let chunks: Vec<_> = sizes.iter().map(|&size| Ok(vec![7; size].into())).collect();
        tokio_stream::iter(chunks)
    }

    fn budget(bytes_max: usize) -> Arc<Budget> {
        Arc::new(Budget::new(Limits {
            bytes_max,
            bytes_per_client_max: bytes_max,
            body_bytes_max: bytes_max,
        }))
    }

    fn client() -> Client {
        Client {
            network: Network::single(IpAddr::from([192, 0, 2, 1])),
            is_proxy: false,
        }
    }

    async fn read<S>(
        chunks: S,
        bytes_max: usize,
        announced: Option<usize>,
        budget: &Arc<Budget>,
    ) -> Result<Body, Error>
    where
        S: Stream<Item = Result<Bytes, warp::Error>> + Unpin,
    {
        super::read(chunks, bytes_max, announced, budget, client()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_takes_its_share_of_the_budget_until_it_is_dropped() {
        let budget = budget(64 * 1024);
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
        read(chunks(&[20_000; 2]), 100_000, Some(40_000), &budget)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_body_takes_little_more_than_has_arrived() {
        let budget = budget(1 << 20);
        let pieces = |bytes: usize| {
            let mut sizes = vec![1_000; bytes / 1_000];
            sizes.push(bytes % 1_000);
            chunks(&sizes)
        };
        for bytes in [1, 5_000, 70_000, 524_289, 900_000] {
            let body = read(pieces(bytes), 1 << 20, None, &budget).await.unwrap();
            let most = (bytes + bytes / STEP_PART).max(STEP_BYTES) + STEP_BYTES;
            assert!((bytes..=most).contains(&body.held.bytes()), "{bytes}");
            drop(body);
            let body = read(pieces(bytes), 1 << 20, Some(bytes), &budget);
            assert_eq!(body.await.unwrap().held.bytes(), bytes);
        }
    }

    #[tokio::test]
    async fn a_small_body_that_announces_itself_takes_little() {
        let budget = budget(64 * 1024);
        let body = read(chunks(&[100]), 100_000, Some(100), &budget).await;
        assert_eq!(body.unwrap().held.bytes(), 100);
        let nothing = read(chunks(&[]), 100_000, Some(100_000), &budget).await;
        assert!(nothing.unwrap().bytes.is_empty());
    }

    #[tokio::test]
    async fn a_body_is_limited_whatever_it_announced() {
        let budget = budget(64 * 1024);
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
    async fn a_large_body_has_a_least_speed() {
        let budget = budget(1 << 20);
        let paced = |pieces: usize, bytes: usize| {
            let first = chunks(&[2 * SMALL_BYTES]);
            let pace = Duration::from_millis(100);
            let rest = tokio_stream::iter(vec![bytes; pieces]).then(move |bytes| async move {
                tokio::time::sleep(pace).await;
                Ok(Bytes::from(vec![7; bytes]))
            });
            Box::pin(first.chain(rest))
        };
        let since = Instant::now();
        let silent = chunks(&[2 * SMALL_BYTES]).chain(tokio_stream::pending());
        let stalled = read(silent, 1 << 20, None, &budget).await;
        assert!(matches!(stalled, Err(Error::BodyStalled { .. })));
        assert_eq!(since.elapsed().as_secs(), 2);
        // A tenth of a second's worth of bytes, a little more and a little less.
        let least = BYTES_PER_SECOND_MIN as usize / 10;
        let fast = read(paced(90, least + 100), 1 << 20, None, &budget).await;
        assert_eq!(
            fast.unwrap().bytes.len(),
            2 * SMALL_BYTES + 90 * (least + 100)
        );
        let slow = read(paced(90, least / 2), 1 << 20, None, &budget).await;
        assert!(matches!(slow, Err(Error::BodyStalled { .. })));
        // Small ones have only their deadline.
        let small = chunks(&[SMALL_BYTES]).chain(tokio_stream::pending());
        let small = read(small, 1 << 20, Some(SMALL_BYTES + 1), &budget);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), small)
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_body_gives_way_to_one_that_comes() {
        let budget = budget(200_000);
        let silent = chunks(&[150_000]).chain(tokio_stream::pending());
        let silent = read(silent, 200_000, None, &budget);
        let coming = read(chunks(&[50_000; 3]), 200_000, None, &budget);
        let (silent, coming) = tokio::join!(silent, coming);
        assert!(matches!(silent, Err(Error::BodyGaveWay)));
        assert_eq!(coming.unwrap().bytes.len(), 150_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_body_is_read_no_further_than_a_little() {
        assert_eq!(discard(chunks(&[100; 3]), 100).await, 300);
        assert_eq!(discard(chunks(&[100; 100]), 100).await, 500);
        let endless = chunks(&[100]).chain(tokio_stream::pending());
        assert_eq!(discard(endless, 100).await, 100);
    }
}
