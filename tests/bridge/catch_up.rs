//! Subscribers of different pace on one log: history and live meet without gap or repeat under
//! load, and who stops reading costs the others nothing and himself no event.

use std::{sync::Arc, time::Duration};

use prelude_bridge::{
    proto::{
        Event, Filter, Latest, StartPosition, SubscribeRequest,
        event_service_client::EventServiceClient, start_position::Position,
        subscribe_response::Notice,
    },
    simulator::random::Random,
};
use tokio::sync::watch;

use crate::support::{
    SOON, Setup, item,
    reader::{self, Reader, everything},
    sender::{Delivery, Sender},
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
async fn read_to(mut reader: Reader, end: u64) -> Got {
    let mut got = Got {
        after: 0,
        events: Vec::new(),
    };
    loop {
        let response = reader.next().await.unwrap().unwrap();
        let events = response.events.into_iter();
        got.events
            .extend(events.map(|event| (event.sequence, event.id)));
        let place = match response.notice {
            Some(Notice::Started(started)) => {
                got.after = started.after_sequence;
                started.after_sequence
            }
            Some(Notice::Progress(progress)) => progress.sequence,
            Some(Notice::CaughtUp(caught_up)) => caught_up.sequence,
            Some(Notice::FellBehind(fell_behind)) => fell_behind.sequence,
            Some(notice @ (Notice::Skipped(_) | Notice::Draining(_))) => unreachable!("{notice:?}"),
            None => got.events.last().map_or(0, |(sequence, _)| *sequence),
        };
        if place >= end {
            return got;
        }
    }
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
                everything().start
            } else {
                let position = Some(Position::Latest(Latest {}));
                Some(StartPosition { position })
            };
            let request = SubscribeRequest {
                filter: Some(case.filter),
                start,
                progress_interval: Some(Duration::from_millis(100).try_into().unwrap()),
                ..SubscribeRequest::default()
            };
            let url = format!("http://{}", bridge.addresses.grpc);
            let subscriber = tokio::spawn(async move {
                posted
                    .wait_for(|count| *count >= comes_after)
                    .await
                    .unwrap();
                // No waiting for anything: the moment within a batch at which it comes.
                tokio::time::sleep(moment).await;
                let mut client = EventServiceClient::connect(url).await.unwrap();
                read_to(Reader::open(&mut client, request).await, EVENTS).await
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
        let expected: Vec<(u64, String)> = log
            .iter()
            .filter(|event| event.sequence > got.after && matches(event))
            .map(|event| (event.sequence, event.id.clone()))
            .collect();
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
    let mut idler = Reader::open(&mut client, everything()).await;
    idler
        .until(|notice| matches!(notice, Notice::CaughtUp(_)))
        .await;
    let mut others = Vec::new();
    for _ in 0..3 {
        let mut client = bridge.client().await;
        let reader = Reader::open(&mut client, everything()).await;
        others.push(tokio::spawn(read_to(reader, COUNT)));
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
    let (mut events, notice) = idler
        .until(|notice| matches!(notice, Notice::FellBehind(_)))
        .await;
    let Notice::FellBehind(fell_behind) = notice else {
        unreachable!("{notice:?}");
    };
    assert!(fell_behind.sequence < fell_behind.head_sequence);
    assert!((events.len() as u64) < COUNT);
    let (rest, _) = idler
        .until(|notice| matches!(notice, Notice::CaughtUp(_)))
        .await;
    events.extend(rest);
    let got: Vec<(u64, String)> = events
        .into_iter()
        .map(|event| (event.sequence, event.id))
        .collect();
    assert!(got == expected, "{} events", got.len());
}
