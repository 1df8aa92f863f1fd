//! A store that stops while a bridge uses it: what senders are told, how soon, and that it goes on by itself.

use std::time::{Duration, Instant};

use prelude_bridge_jetstream::testing::{Config, Nats};

use crate::support::{
    Bridge, Setup,
    sender::{Delivery, Sender, eventually},
};

/// So many deliveries are refused one after another. If each waited for the store, for at least the two seconds
/// that the first one waits, they would take more than three minutes.
const REFUSED: usize = 100;
const REFUSED_WITHIN: Duration = Duration::from_secs(60);

async fn refuses_at_once_while(nats: &Nats, stop: fn(&Nats), go_on: fn(&Nats)) {
    let bridge = Setup::default()
        .with("store", &nats.urls().concat())
        .with("store.replicas", "1")
        .with("retention.bytes_max", "1GiB")
        .in_memory()
        .start()
        .await;
    let sender = Sender::to(bridge.addresses.webhook);
    let delivery = |n: usize| Delivery::of_ids([format!("evt_{n}")]);
    assert_eq!(sender.send(&delivery(0)).await.counts(), (1, 0));
    stop(nats);
    // Refused by the log, and not because the receiver's own time was over.
    let first = sender.send(&delivery(1)).await;
    assert_eq!(first.refusal(), (503, "log_unavailable"), "{first:?}");
    assert!(first.retry_after_seconds.is_some(), "{first:?}");
    let began = Instant::now();
    for n in 2..2 + REFUSED {
        let refused = sender.send(&delivery(n)).await;
        assert_eq!(refused.refusal(), (503, "log_unavailable"), "{refused:?}");
    }
    assert!(began.elapsed() < REFUSED_WITHIN, "{:?}", began.elapsed());
    bridge.counts("prelude_bridge_log_queue_batches", 0.0).await;
    let ready = bridge.admin("/readyz").await;
    assert_eq!(ready.status, 503);
    let said = ready.text();
    for words in [
        "the stream prelude-bridge of NATS",
        "check the servers of the store",
    ] {
        assert!(said.contains(words), "{said}");
    }
    go_on(nats);
    is_used_again(&bridge, &sender, &delivery(1)).await;
    // What was refused before it was on its way is new; nothing is there twice.
    let new = sender.send(&delivery(2)).await.counts();
    assert_eq!(new, (1, 0));
    assert_eq!(bridge.head().await, 3);
    bridge.finish().await;
}

async fn is_used_again(bridge: &Bridge, sender: &Sender, delivery: &Delivery) {
    let (new, known) = eventually(async || {
        let reply = sender.send(delivery).await;
        (reply.status == 200).then(|| reply.counts())
    })
    .await;
    // It was in doubt.
    assert_eq!(new + known, 1);
    eventually(async || (bridge.admin("/readyz").await.status == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_server_that_stands_still_is_told_of_soon_and_then_at_once_until_it_goes_on() {
    let nats = Nats::start(1, Config::default()).await;
    refuses_at_once_while(&nats, |nats| nats.pause(0), |nats| nats.resume(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_server_that_is_killed_is_told_of_soon_and_then_at_once_until_it_is_back() {
    let nats = Nats::start(1, Config::default()).await;
    refuses_at_once_while(&nats, |nats| nats.kill(0), |nats| nats.restart(0)).await;
}
