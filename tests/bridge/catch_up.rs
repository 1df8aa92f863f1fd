//! Subscribers of different pace on one log: history and live meet without gap or repeat under
//! load, and who stops reading costs the others nothing and himself no event.

use std::{sync::Arc, time::Duration};

use prelude_bridge::{
    proto::{
        Event, Filter, SubscribeRequest, event_service_client::EventServiceClient,
        start_position::Position, subscribe_response::Notice,
    },
    simulator::random::Random,
};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::support::{
    SOON, Setup, item, reader,
    sender::{Delivery, Sender},
    stream::{Earliest, Latest, Received, from},
};

const BATCHES: usize = 20;
const BATCH_EVENTS: usize = 1_000;
const EVENTS: u64 = (BATCHES * BATCH_EVENTS) as u64;
const TYPES: [&str; 7] = [
    "user.created",
    "user.session.created",
    "user.session.revoked",
    "user.session.created",
    "user.deleted",
    "user.identifier.created",
    "order.placed",
];

/// A filter and what it means, written down a second time and naively.
struct Case {
    filter: Filter,
    matches: fn(&Event) -> bool,
    from_the_beginning: bool,
}

fn case(
    types: &[&str],
    exclude_types: &[&str],
    user_ids: &[&str],
    matches: fn(&Event) -> bool,
) -> Case {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let filter = Filter {
        types: owned(types),
        exclude_types: owned(exclude_types),
        user_ids: owned(user_ids),
        ..Filter::default()
    };
    Case {
        filter,
        matches,
        from_the_beginning: true,
    }
}

fn cases() -> [Case; 8] {
    let live = |case| Case {
        from_the_beginning: false,
        ..case
    };
    [
        case(&[], &[], &[], |_| true),
        live(case(&[], &[], &[], |_| true)),
        case(&["user.session.*"], &[], &[], |event| {
            event.r#type.starts_with("user.session.")
        }),
        live(case(&["user.**"], &["user.created"], &[], |event| {
            event.r#type.starts_with("user.") && event.r#type != "user.created"
        })),
        case(&["user.*"], &[], &["usr_1", "usr_4"], |event| {
            ["user.created", "user.deleted"].contains(&event.r#type.as_str())
                && ["usr_1", "usr_4"].contains(&event.user_id.as_str())
        }),
        case(&[], &["user.**"], &[], |event| {
            event.r#type == "order.placed"
        }),
        live(case(&[], &[], &["usr_0"], |event| event.user_id == "usr_0")),
        case(&["user.profile.updated"], &[], &[], |_| false),
    ]
}

/// What a subscriber got: the place that it started after, and each event's number and id.
struct Got {
    after: u64,
    events: Vec<(u64, String)>,
}

/// Reads until the place is at the end, with everything that matches before it.
async fn read_to(mut stream: Received, end: u64) -> Got {
    let mut after = 0;
    loop {
        let response = stream.next().await.unwrap().unwrap();
        let place = match &response.notice {
            Some(Notice::Started(started)) => {
                after = started.after_sequence;
                after
            }
            Some(Notice::Progress(progress)) => progress.sequence,
            Some(Notice::CaughtUp(caught_up)) => caught_up.sequence,
            Some(Notice::FellBehind(fell_behind)) => fell_behind.sequence,
            Some(notice @ (Notice::Skipped(_) | Notice::Draining(_))) => {
                unreachable!("{notice:?}")
            }
            None => response.events.last().unwrap().sequence,
        };
        if place >= end {
            let events = numbers_and_ids(stream.events());
            return Got { after, events };
        }
    }
}

fn numbers_and_ids<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<(u64, String)> {
    events
        .map(|event| (event.sequence, event.id.clone()))
        .collect()
}

fn everything() -> SubscribeRequest {
    from(Position::Earliest(Earliest {}))
}

fn batch(poster: usize, batch: usize) -> Delivery {
    let items: Vec<String> = (0..BATCH_EVENTS)
        .map(|index| {
            let number = batch * BATCH_EVENTS + index;
            let (event_type, user) = (TYPES[number % 7], format!("usr_{}", number % 5));
            item(&format!("evt_{poster}_{number}"), event_type, &user)
        })
        .collect();
    Delivery::of(&items)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_at_any_time_gets_exactly_what_matches_in_the_order_of_the_log() {
    // Less than a tenth of the events, so that catching up takes the log and the bus.
    let setup = Setup::default().with("limits.bus.window_bytes_max", "1MiB");
    let bridge = setup.start().await;
    let posted = Arc::new(watch::Sender::new(0));
    let mut random = Random::new(6);
    let subscribers: Vec<_> = cases()
        .into_iter()
        .map(|case| {
            let comes_after = random.below(BATCHES);
            let moment = Duration::from_micros(random.below(20_000) as u64);
            let mut posted = posted.subscribe();
            let start = if case.from_the_beginning {
                everything()
            } else {
                from(Position::Latest(Latest {}))
            };
            let request = SubscribeRequest {
                filter: Some(case.filter),
                progress_interval: Some(Duration::from_millis(100).try_into().unwrap()),
                ..start
            };
            let url = format!("http://{}", bridge.addresses.grpc);
            let subscriber = tokio::spawn(async move {
                posted
                    .wait_for(|count| *count >= comes_after)
                    .await
                    .unwrap();
                // No waiting for anything: the moment within a batch at which it comes.
                tokio::time::sleep(moment).await;
                let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
                let mut client = EventServiceClient::new(channel);
                let stream = Received::subscribe(&mut client, request).await.unwrap();
                read_to(stream, EVENTS).await
            });
            (subscriber, case.matches)
        })
        .collect();
    let posters: Vec<_> = (0..2)
        .map(|poster| {
            let (sender, posted) = (Sender::to(bridge.addresses.webhook), Arc::clone(&posted));
            tokio::spawn(async move {
                for index in 0..BATCHES / 2 {
                    let delivery = batch(poster, index);
                    assert_eq!(
                        sender.send(&delivery).await.counts(),
                        (BATCH_EVENTS as u64, 0)
                    );
                    posted.send_modify(|count| *count += 1);
                }
            })
        })
        .collect();
    for poster in posters {
        poster.await.unwrap();
    }
    let log = reader::log(&bridge).await;
    assert_eq!(log.len() as u64, EVENTS);
    for (index, (subscriber, matches)) in subscribers.into_iter().enumerate() {
        let got = tokio::time::timeout(SOON, subscriber)
            .await
            .unwrap()
            .unwrap();
        let is_expected = |event: &&Event| event.sequence > got.after && matches(event);
        let expected = numbers_and_ids(log.iter().filter(is_expected));
        let counts = (got.after, got.events.len(), expected.len());
        eprintln!("subscriber {index} after {}: {} events", counts.0, counts.1);
        assert!(got.events == expected, "subscriber {index}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_reading_disturbs_nobody_and_catches_up_without_loss() {
    const COUNT: u64 = 10_000;
    let setup = Setup::default().with("limits.bus.window_bytes_max", "1MiB");
    let bridge = setup.start().await;
    let mut client = reader::narrow_client(&bridge).await;
    let idler = Received::subscribe(&mut client, everything()).await;
    let mut idler = idler.unwrap();
    let is_caught_up = |notice: &Notice| matches!(notice, Notice::CaughtUp(_));
    idler.until(is_caught_up).await;
    let mut others = Vec::new();
    for _ in 0..3 {
        let stream = Received::subscribe(&mut bridge.client().await, everything()).await;
        others.push(tokio::spawn(read_to(stream.unwrap(), COUNT)));
    }
    let sender = Sender::to(bridge.addresses.webhook);
    for first in (0..COUNT).step_by(500) {
        let ids = (first..first + 500).map(|index| format!("evt_{index}"));
        assert_eq!(sender.send(&Delivery::of_ids(ids)).await.counts(), (500, 0));
    }
    let expected: Vec<(u64, String)> = (0..COUNT)
        .map(|index| (index + 1, format!("evt_{index}")))
        .collect();
    // All of the others are done before the idler reads on.
    for other in others {
        let got = tokio::time::timeout(SOON, other).await.unwrap().unwrap();
        assert!(got.events == expected);
    }
    let response = idler.until(|notice| matches!(notice, Notice::FellBehind(_)));
    let Some(Notice::FellBehind(fell_behind)) = response.await.notice else {
        unreachable!("it waited for exactly that");
    };
    assert!(fell_behind.sequence < fell_behind.head_sequence);
    assert!((idler.events().count() as u64) < COUNT);
    idler.until(is_caught_up).await;
    let got = numbers_and_ids(idler.events());
    assert!(got == expected, "{} events", got.len());
}
