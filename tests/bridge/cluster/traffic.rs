//! Senders that repeat what was not acknowledged, now and then at two bridges at once, and subscribers that
//! move from bridge to bridge.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use prelude_bridge::proto::start_position::Position;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{connect, ledger::Ledger};
use crate::support::{
    sender::{Delivery, Sender},
    stream::{Earliest, Received, after, from},
};

const BATCH: u64 = 5;
/// Between two batches of a sender: a debug build is to serve twenty subscribers besides.
const PAUSE: Duration = Duration::from_millis(20);
/// Before a sender or a subscriber tries another bridge.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long a subscriber stays with a bridge.
const STAY: Duration = Duration::from_millis(700);
/// A bridge that is stopped accepts connections and answers nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends batches, each until one bridge has acknowledged it.
pub(super) async fn send(number: usize, bridges: Arc<[SocketAddr]>, ledger: Arc<Ledger>) {
    let senders: Vec<Sender> = bridges.iter().map(|&bridge| Sender::to(bridge)).collect();
    let mut turn = number;
    for batch in 0.. {
        if ledger.is_ending.load(Ordering::SeqCst) {
            return;
        }
        let ids = (0..BATCH).map(|n| format!("evt_{number}_{batch}_{n}"));
        let ids: Vec<String> = ids.collect();
        let delivery = Delivery::of_ids(&ids);
        loop {
            turn += 1;
            let one = is_taken(&senders[turn % senders.len()], &delivery);
            let taken = if batch % 10 == 0 {
                let other = is_taken(&senders[(turn + 1) % senders.len()], &delivery);
                let (one, other) = tokio::join!(one, other);
                one || other
            } else {
                one.await
            };
            if taken {
                break;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        ledger.acknowledge(&ids);
        tokio::time::sleep(PAUSE).await;
    }
}

/// A bridge takes it, or says when to come again, or does not answer.
async fn is_taken(sender: &Sender, delivery: &Delivery) -> bool {
    let Ok(Ok(reply)) = timeout(PATIENCE, sender.try_send(delivery)).await else {
        return false;
    };
    let is_refused = reply.status == 503 && reply.retry_after_seconds.is_some();
    assert!(reply.status == 200 || is_refused, "{reply:?}");
    !is_refused
}

/// Reads all events once, from one bridge after another, until it has everything that was acknowledged.
pub(super) async fn read(number: usize, bridges: Arc<[SocketAddr]>, ledger: Arc<Ledger>) {
    let mut cursor = None::<String>;
    for turn in number.. {
        if ledger.is_complete(number) {
            return;
        }
        let subscribing = subscribe(bridges[turn % bridges.len()], cursor.as_deref());
        let Ok(Some(mut received)) = timeout(PATIENCE, subscribing).await else {
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        };
        let until = Instant::now() + STAY;
        loop {
            let response = match timeout_at(until, received.next()).await {
                Ok(Ok(Some(response))) => response,
                Ok(Err(status)) => {
                    passes(&status);
                    break;
                }
                Ok(Ok(None)) | Err(_) => break,
            };
            ledger.see(number, &response.events);
            if !response.cursor.is_empty() {
                cursor = Some(response.cursor.clone());
            }
        }
    }
}

/// A stream of a bridge; `None` if it has none to give for now.
async fn subscribe(bridge: SocketAddr, cursor: Option<&str>) -> Option<Received> {
    let mut client = connect(bridge).await?;
    let request = match cursor {
        Some(cursor) => after(cursor),
        None => from(Position::Earliest(Earliest {})),
    };
    let subscribed = Received::subscribe(&mut client, request).await;
    subscribed.inspect_err(passes).ok()
}

/// Whatever a bridge ends a stream with here is temporary. A connection that breaks has no reason.
fn passes(status: &Status) {
    let is_transport = status.get_details_error_info().is_none();
    assert!(
        status.code() == Code::Unavailable || is_transport,
        "{status:?}"
    );
}
