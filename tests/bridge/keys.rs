//! The keys of the sender: how a bridge follows their changes, and how it lives without the server
//! that publishes them.

use std::{sync::Arc, time::Duration};

use prelude_bridge::simulator::{
    AppOptions, EventType, Options, Outcome, RetrySchedule, Simulator,
};

use crate::support::{
    APP, Bridge, OTHER_KEY, SOON, Setup, TOKEN, batch, item, key, reader,
    sender::{Delivery, Door, Sender, eventually},
};

/// One who publishes and signs with `test-key-2048-a`, then with `test-key-2048-b`.
async fn simulator() -> Simulator {
    let keys = ["test-key-2048-a", "test-key-2048-b"].map(key);
    let options = Options {
        apps: vec![AppOptions::with_keys(APP, keys.to_vec())],
        seed: Some(3),
        // A minute is 50 ms: pauses of 50 ms, doubling to 400 ms.
        retry: RetrySchedule {
            longest: Duration::from_secs(8 * 60),
            ..RetrySchedule::scaled(1_200.0)
        },
        ..Options::default()
    };
    Simulator::start(options).await.unwrap()
}

fn setup(simulator: &Simulator) -> Setup {
    Setup::default().jwks_url(&simulator.jwks_url(APP))
}

/// What the bridge answers to a fresh batch of the simulator's, and whether it is to be retried.
async fn deliver(simulator: &Simulator, bridge: &Bridge) -> (u16, bool) {
    let batch = simulator.batch(APP, 1, &[]).unwrap();
    let url = Sender::to(bridge.addresses.webhook).url().to_owned();
    let answer = simulator.post(&url, &batch).await.unwrap();
    let retry = answer.headers.contains_key("retry-after");
    (answer.status.as_u16(), retry)
}

async fn readiness(bridge: &Bridge) -> u16 {
    bridge.admin("/readyz").await.status
}

/// Waits until it has read its keys once.
async fn is_ready(bridge: &Bridge) {
    eventually(async || (readiness(bridge).await == 200).then_some(())).await;
}

fn small(id: &str) -> Delivery {
    Delivery::of_ids([id])
}

/// Without a handler, SIGHUP ends a process at once: no drain, no last words.
#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_has_the_keys_read_again_and_ends_nothing() {
    let simulator = simulator().await;
    let mut bridge = setup(&simulator).start().await;
    is_ready(&bridge).await;
    for fetches in 2..=4 {
        bridge.signal("HUP");
        let fetched = async || (simulator.jwks_fetches(APP).unwrap() == fetches).then_some(());
        eventually(fetched).await;
    }
    assert!(bridge.stderr().contains("SIGHUP: reading credentials"));
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
    assert!(bridge.terminate().await.success(), "{}", bridge.stderr());
    assert!(bridge.stderr().contains("stopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_fetched_when_it_is_first_seen_and_the_old_one_stays_good_while_published() {
    let simulator = simulator().await;
    let bridge = setup(&simulator).start().await;
    is_ready(&bridge).await;
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
    assert_eq!(simulator.jwks_fetches(APP).unwrap(), 1);
    simulator.rotate_key(APP, true).await.unwrap();
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
    assert_eq!(simulator.jwks_fetches(APP).unwrap(), 2);
    // A delivery that was signed before the change and arrives after it.
    let sender = Sender::to(bridge.addresses.webhook);
    assert_eq!(sender.send(&small("evt_late")).await.counts(), (1, 0));
    assert_eq!(simulator.jwks_fetches(APP).unwrap(), 2);
    assert_eq!(reader::ids(&bridge).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_withdrawn_is_refused_once_its_successor_was_seen() {
    let simulator = simulator().await;
    let bridge = setup(&simulator).start().await;
    is_ready(&bridge).await;
    let sender = Sender::to(bridge.addresses.webhook);
    assert_eq!(sender.send(&small("evt_1")).await.counts(), (1, 0));
    simulator.rotate_key(APP, false).await.unwrap();
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
    let refused = sender.send(&small("evt_2")).await;
    assert_eq!(refused.refusal(), (401, "signature_mismatch"));
    assert_eq!(reader::ids(&bridge).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_unknown_signatures_causes_one_fetch_and_leaves_no_trace() {
    let simulator = simulator().await;
    let bridge = setup(&simulator).start().await;
    is_ready(&bridge).await;
    assert_eq!(simulator.jwks_fetches(APP).unwrap(), 1);
    let body = batch(APP, &[item("evt_1", "user.created", "usr_1")]);
    let forged = Arc::new(Delivery::signed_with(&OTHER_KEY, body.into()));
    for _ in 0..3 {
        let crowd: Vec<_> = (0..20)
            .map(|_| {
                let (forged, sender) = (Arc::clone(&forged), Sender::to(bridge.addresses.webhook));
                tokio::spawn(async move { sender.send(&forged).await })
            })
            .collect();
        for one in crowd {
            let reply = one.await.unwrap();
            assert_eq!(reply.refusal(), (401, "signature_mismatch"));
        }
    }
    assert_eq!(simulator.jwks_fetches(APP).unwrap(), 2);
    assert_eq!(bridge.head().await, 0);
    // And whoever belongs here is not kept out meanwhile.
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_keys_survive_an_outage_of_the_key_server_and_a_restart_in_it() {
    let simulator = simulator().await;
    let mut bridge = setup(&simulator).start().await;
    is_ready(&bridge).await;
    simulator.set_jwks_up(APP, false).unwrap();
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
    bridge.kill();
    bridge.restart_elsewhere().await;
    assert_eq!(readiness(&bridge).await, 200);
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
    assert_eq!(bridge.terminate().await.code(), Some(0));
    bridge.restart_elsewhere().await;
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
    // A forged one is refused in an outage as at any time.
    let body = batch(APP, &[item("evt_1", "user.created", "usr_1")]);
    let forged = Delivery::signed_with(&OTHER_KEY, body.into());
    let sender = Sender::to(bridge.addresses.webhook);
    assert_eq!(sender.send(&forged).await.status, 401);
    assert_eq!(reader::ids(&bridge).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_keys_it_asks_to_come_back_until_the_key_server_answers() {
    let simulator = simulator().await;
    simulator.set_jwks_up(APP, false).unwrap();
    let bridge = setup(&simulator).start_listening().await;
    assert_eq!(deliver(&simulator, &bridge).await, (503, true));
    let sender = Sender::to(bridge.addresses.webhook);
    let refused = sender.send(&small("evt_1")).await;
    assert_eq!(refused.refusal(), (503, "keys_unavailable"));
    assert!(
        refused
            .retry_after_seconds
            .is_some_and(|seconds| seconds > 0)
    );
    let page = bridge.admin("/readyz").await;
    assert_eq!(page.status, 503);
    assert!(page.text().contains("no usable key"), "{}", page.text());
    assert_eq!(bridge.admin("/healthz").await.status, 200);
    assert_eq!(bridge.head().await, 0);
    simulator.set_jwks_up(APP, true).unwrap();
    is_ready(&bridge).await;
    assert_eq!(deliver(&simulator, &bridge).await, (200, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_change_during_an_outage_cost_retries_and_no_events() {
    let simulator = simulator().await;
    let bridge = setup(&simulator).start().await;
    is_ready(&bridge).await;
    let door = Door::open().await;
    door.lead_to(bridge.addresses.webhook);
    let url = Sender::to(door.address).url().to_owned();
    let webhook = simulator
        .connect(APP, &url, TOKEN, &EventType::ALL)
        .await
        .unwrap();
    simulator.set_jwks_up(APP, false).unwrap();
    simulator.rotate_key(APP, false).await.unwrap();
    let batch = simulator.batch(APP, 5, &[]).unwrap();
    let ticket = simulator.send(&webhook, batch).await.unwrap();
    eventually(async || (simulator.totals().failed_attempts >= 2).then_some(())).await;
    simulator.set_jwks_up(APP, true).unwrap();
    let outcome = tokio::time::timeout(SOON, ticket.outcome()).await.unwrap();
    assert_eq!(outcome, Outcome::Acknowledged);
    assert_eq!(reader::ids(&bridge).await.len(), 5);
}
