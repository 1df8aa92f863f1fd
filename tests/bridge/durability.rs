//! 200 means durable: nothing that was answered with 200 is lost, and nothing is there twice,
//! whatever happens to the process and to the answers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prelude_bridge::{
    client::{self, Backoff, Client, Item, Request, Start},
    simulator::{
        AppOptions, EventType, Faults, Options, RetrySchedule, Simulator,
        ledger::{Attempt, AttemptResult},
        random::Random,
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::support::{
    APP, Bridge, SOON, Setup, TOKEN, count, key, reader,
    sender::{Delivery, Door, Sender, eventually},
};

/// How often the bridge is killed.
const KILLS: &str = "PRELUDE_BRIDGE_TEST_KILLS";
const KILLS_USUAL: usize = 100;
const POSTERS: usize = 4;
const SUBSCRIBERS: usize = 4;
/// Batches that have to be answered in each life of the bridge before it is killed, so that every
/// kill hits a bridge at work.
const BATCHES_PER_LIFE_MIN: u64 = 3;

/// The id of the `index`th event of a poster.
fn id(poster: usize, index: usize) -> String {
    format!("evt_{poster}_{index}")
}

/// How many events the `batch`th batch of a poster has.
fn batch_events(batch: usize) -> usize {
    1 + batch % 8
}

/// What a poster got out of the bridge.
#[derive(Default)]
struct Posted {
    events: usize,
    batches: usize,
    failed_attempts: usize,
    /// Batches whose answer was lost, though they were durable.
    found_durable: usize,
}

/// Sends batch after batch, each until it is answered with 200, as Prelude does; only with less
/// patience.
async fn post_until(
    stop: CancellationToken,
    sender: Sender,
    poster: usize,
    answered: Arc<watch::Sender<u64>>,
) -> Posted {
    let mut posted = Posted::default();
    while !stop.is_cancelled() {
        let first = posted.events;
        let count = batch_events(posted.batches);
        let sign = move || Delivery::of_ids((first..first + count).map(|index| id(poster, index)));
        let delivery = tokio::task::spawn_blocking(sign).await.unwrap();
        let mut attempts = 0;
        let (accepted, duplicates) = loop {
            attempts += 1;
            match sender.try_send(&delivery).await {
                Ok(answer) if answer.status == 200 => break answer.counts(),
                // Whoever answers at all while processes are killed has no reason to refuse.
                Ok(answer) => unreachable!("{answer:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let count = count as u64;
        let all_new = (accepted, duplicates) == (count, 0);
        let all_known = (accepted, duplicates) == (0, count);
        assert!(
            all_new || (all_known && attempts > 1),
            "attempt {attempts} of {count} events: {accepted} accepted, {duplicates} duplicates"
        );
        posted.events += usize::try_from(count).unwrap();
        posted.batches += 1;
        posted.failed_attempts += attempts - 1;
        posted.found_durable += usize::from(all_known);
        answered.send_modify(|count| *count += 1);
    }
    posted
}

/// Hands on every event that a subscriber gets who was never told of any trouble.
fn follow(url: String) -> (mpsc::UnboundedReceiver<(u64, String)>, JoinHandle<()>) {
    let (sender, events) = mpsc::unbounded_channel();
    let following = tokio::spawn(async move {
        let options = client::Options::new(url).backoff(Backoff::new(
            Duration::from_millis(10),
            Duration::from_millis(50),
        ));
        let client = Client::lazy(&options).unwrap();
        let mut subscription = client.subscribe(Request::new().start(Start::Earliest));
        while let Some(item) = subscription.next().await {
            if let Item::Event(event) = item.unwrap()
                && sender.send((event.sequence, event.id)).is_err()
            {
                return;
            }
        }
    });
    (events, following)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_a_hundred_kills_once_and_in_order_for_every_subscriber() {
    let mut bridge = Setup::default().prepare();
    let (webhook, grpc) = (Door::open().await, Door::open().await);
    let stop = CancellationToken::new();
    let answered = Arc::new(watch::Sender::new(0));
    let posters: Vec<_> = (0..POSTERS)
        .map(|poster| {
            let sender = Sender::to(webhook.address);
            tokio::spawn(post_until(
                stop.clone(),
                sender,
                poster,
                Arc::clone(&answered),
            ))
        })
        .collect();
    let url = format!("http://{}", grpc.address);
    let subscribers: Vec<_> = (0..SUBSCRIBERS).map(|_| follow(url.clone())).collect();
    let mut random = Random::new(20_261_123);
    let kills = count(KILLS, KILLS_USUAL);
    for kill in 0..kills {
        let moment = Duration::from_millis(random.below(40) as u64);
        // The pauses are no waiting for anything: they are the moment at which it is hit.
        if kill % 5 == 4 {
            bridge.launch();
            tokio::time::sleep(moment).await;
            bridge.kill();
            continue;
        }
        bridge.restart_elsewhere().await;
        let enough = *answered.borrow() + BATCHES_PER_LIFE_MIN;
        webhook.lead_to(bridge.addresses.webhook);
        grpc.lead_to(bridge.addresses.grpc);
        let mut progress = answered.subscribe();
        let at_work = progress.wait_for(|count| *count >= enough);
        tokio::time::timeout(SOON, at_work).await.unwrap().unwrap();
        tokio::time::sleep(moment).await;
        bridge.kill();
    }
    bridge.restart_elsewhere().await;
    webhook.lead_to(bridge.addresses.webhook);
    grpc.lead_to(bridge.addresses.grpc);
    stop.cancel();
    let mut all = Vec::new();
    for poster in posters {
        all.push(poster.await.unwrap());
    }

    let log = reader::ids(&bridge).await;
    let places: BTreeMap<&str, usize> = log
        .iter()
        .enumerate()
        .map(|(place, id)| (id.as_str(), place))
        .collect();
    assert_eq!(places.len(), log.len(), "an event is there twice");
    let sent: usize = all.iter().map(|posted| posted.events).sum();
    assert_eq!(
        log.len(),
        sent,
        "an event is missing, or was never answered"
    );
    for (poster, posted) in all.iter().enumerate() {
        let places: Vec<usize> = (0..posted.events)
            .map(|index| places[id(poster, index).as_str()])
            .collect();
        assert!(places.is_sorted(), "a poster's events are out of order");
        let mut first = 0;
        for batch in 0..posted.batches {
            let last = first + batch_events(batch) - 1;
            assert_eq!(
                places[last] - places[first],
                last - first,
                "a batch was torn"
            );
            first = last + 1;
        }
    }
    for (mut followed, following) in subscribers {
        for (index, id) in log.iter().enumerate() {
            let next = tokio::time::timeout(SOON, followed.recv()).await.unwrap();
            assert_eq!(next.unwrap(), (index as u64 + 1, id.clone()));
        }
        following.abort();
    }
    let sum = |of: fn(&Posted) -> usize| all.iter().map(of).sum::<usize>();
    eprintln!(
        "{kills} kills: {sent} events in {} batches, {} attempts unanswered, {} of them durable",
        sum(|posted| posted.batches),
        sum(|posted| posted.failed_attempts),
        sum(|posted| posted.found_durable),
    );
    assert_eq!(bridge.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_retried_batch_adds_nothing_and_is_answered_with_200() {
    let mut bridge = Bridge::start().await;
    let sender = Sender::to(bridge.addresses.webhook);
    let first = Delivery::of_ids(["evt_1", "evt_2", "evt_3"]);
    assert_eq!(sender.send(&first).await.counts(), (3, 0));
    assert_eq!(sender.send(&first).await.counts(), (0, 3));
    assert_eq!(sender.send(&first.signed_anew()).await.counts(), (0, 3));
    // The same events in another batch, among new ones and more than once.
    let partly = Delivery::of_ids(["evt_2", "evt_4", "evt_4", "evt_1", "evt_5"]);
    assert_eq!(sender.send(&partly).await.counts(), (2, 3));
    let expected = ["evt_1", "evt_2", "evt_3", "evt_4", "evt_5"];
    assert_eq!(reader::ids(&bridge).await, expected);
    bridge.kill();

    bridge.restart_elsewhere().await;
    let sender = Sender::to(bridge.addresses.webhook);
    assert_eq!(sender.send(&first.signed_anew()).await.counts(), (0, 3));
    assert_eq!(sender.send(&partly.signed_anew()).await.counts(), (0, 5));
    assert_eq!(reader::ids(&bridge).await, expected);
    assert_eq!(bridge.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_batch_that_arrive_at_once_are_one_batch() {
    let bridge = Bridge::start().await;
    let delivery = Delivery::of_ids((0..50).map(|index| format!("evt_{index}")));
    let copies: Vec<_> = (0..16)
        .map(|_| {
            let delivery = delivery.clone();
            let sender = Sender::to(bridge.addresses.webhook);
            tokio::spawn(async move { sender.send(&delivery).await.counts() })
        })
        .collect();
    let mut accepted = 0;
    for copy in copies {
        let counts = copy.await.unwrap();
        assert!(counts == (50, 0) || counts == (0, 50), "{counts:?}");
        accepted += counts.0;
    }
    assert_eq!(accepted, 50);
    assert_eq!(reader::ids(&bridge).await.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_holds_what_the_sender_s_ledger_says_whatever_goes_wrong() {
    let keys = ["test-key-2048-a", "test-key-2048-b"].map(key);
    let simulator = Simulator::start(Options {
        apps: vec![AppOptions::with_keys(APP, keys.to_vec())],
        seed: Some(8),
        // A minute is 10 ms: pauses of 10 ms, doubling to 640 ms, two weeks long.
        retry: RetrySchedule {
            longest: Duration::from_secs(64 * 60),
            ..RetrySchedule::scaled(6_000.0)
        },
        ..Options::default()
    });
    let simulator = simulator.await.unwrap();
    let setup = Setup::default().jwks_url(&simulator.jwks_url(APP));
    let mut bridge = setup.start().await;
    let door = Door::open().await;
    door.lead_to(bridge.addresses.webhook);
    let sender = Sender::to(door.address);
    simulator
        .connect(APP, sender.url(), TOKEN, &EventType::ALL)
        .await
        .unwrap();
    let faults = Faults {
        lose_answers: 0.2,
        hang_up: 0.1,
        duplicates: 0.1,
        hold_back: 0.1,
        hold_back_for: Duration::from_millis(100),
        late: 0.1,
    };
    simulator.set_faults(faults).unwrap();
    let emit = async |batches: usize| {
        for _ in 0..batches {
            simulator.emit(APP, 10, &[]).await.unwrap();
        }
    };

    emit(50).await;
    bridge.kill();
    emit(20).await;
    bridge.restart_elsewhere().await;
    door.lead_to(bridge.addresses.webhook);
    emit(20).await;
    // The key server goes; the bridge is killed and comes back without it; keys change meanwhile.
    simulator.set_jwks_up(APP, false).unwrap();
    emit(20).await;
    bridge.kill();
    bridge.restart_elsewhere().await;
    door.lead_to(bridge.addresses.webhook);
    emit(20).await;
    simulator.rotate_key(APP, false).await.unwrap();
    emit(20).await;
    let is_refused = |attempt: &Attempt| attempt.result == AttemptResult::Status(401);
    eventually(async || {
        let ledger = simulator.ledger();
        let mut attempts = ledger.deliveries().flat_map(|delivery| &delivery.attempts);
        attempts.any(is_refused).then_some(())
    })
    .await;
    simulator.set_jwks_up(APP, true).unwrap();
    assert!(
        simulator.settle(SOON).await,
        "{}",
        simulator.ledger().summary()
    );

    let ledger = simulator.ledger();
    let totals = ledger.totals();
    assert_eq!((totals.events, totals.events_acknowledged), (1_500, 1_500));
    assert!(totals.failed_attempts > 30, "{}", ledger.summary());
    let mut sent: Vec<String> = ledger
        .lines()
        .into_iter()
        .map(|line| line.event.id.unwrap())
        .collect();
    let mut logged = reader::ids(&bridge).await;
    sent.sort();
    logged.sort();
    assert_eq!(sent.len(), 1_500);
    assert!(sent == logged, "{} events in the log", logged.len());
    eprintln!("{}", ledger.summary());
    simulator.stop().await;
}
