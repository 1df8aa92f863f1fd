//! Streams over a real socket, a memory log, and the generated client.

mod access;
mod damage;
mod waiting;
mod windows;

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    bus,
    event::testing as fixtures,
    event::{Cursor, Epoch, Sequence, UnixMicros},
    log::{
        Commit, ReadError, memory,
        testing::{Script, Scripted},
    },
    proto::{
        self, Earliest, Event, ExpiredCursorPolicy, Filter, GetRangeRequest, Head, Latest,
        PayloadFormat, StartPosition, StopPosition, SubscribeRequest, SubscribeResponse,
        event_service_client::EventServiceClient, start_position::Position as Start,
        stop_position::Position as Stop, subscribe_response::Notice,
    },
};

const TYPES: [&str; 7] = [
    "user.created",
    "user.deleted",
    "user.profile.updated",
    "user.identifier.created",
    "user.identifier.deleted",
    "user.session.created",
    "user.session.revoked",
];

struct Bridge {
    log: Arc<dyn Log>,
    bus: Arc<Bus>,
    streams: Server,
    metrics: Arc<Metrics>,
    address: SocketAddr,
}

impl Bridge {
    async fn start() -> Self {
        Self::start_with(
            Options::default(),
            bus::Options::default(),
            memory::Options::default(),
        )
        .await
    }

    async fn start_with(
        options: Options,
        bus_options: bus::Options,
        log_options: memory::Options,
    ) -> Self {
        let log = memory::open(log_options).unwrap();
        let bus = Bus::follow(bus_options, &*log).unwrap();
        Self::serve(options, Credentials::anonymous(), log, bus).await
    }

    /// Keeps the newest events only: few in the log, and of those in memory the last.
    async fn start_forgetful() -> Self {
        let log_options = memory::Options {
            retention_bytes: 4 * 1024,
            ..memory::Options::default()
        };
        let window = bus::Options {
            window_bytes_max: 1,
        };
        Self::start_with(Options::default(), window, log_options).await
    }

    async fn serve(
        options: Options,
        credentials: Credentials,
        log: Arc<dyn Log>,
        bus: Arc<Bus>,
    ) -> Self {
        let metrics = Arc::new(Metrics::new());
        let streams = Server::new(
            options,
            credentials,
            Arc::clone(&log),
            Arc::clone(&bus),
            Arc::clone(&metrics),
        )
        .await
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = streams.clone();
        tokio::spawn(async move {
            while let Ok((connection, peer)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.serve(connection, peer.into()).await });
            }
        });
        Self {
            log,
            bus,
            streams,
            metrics,
            address,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn client(&self) -> EventServiceClient<Channel> {
        let endpoint = Channel::from_shared(self.url()).unwrap();
        EventServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Appends events `first..=last`, each its own commit, with changing types, apps and users.
    async fn append(&self, first: u64, last: u64) {
        for number in first..=last {
            self.append_one(number).await;
        }
    }

    async fn append_one(&self, number: u64) {
        let id = format!("evt_{number}");
        let event_type = TYPES[(number % 7) as usize];
        let app = if number.is_multiple_of(2) {
            "even"
        } else {
            "odd"
        };
        let user = format!("usr_{}", number % 10);
        let batch = fixtures::batch(app, &[(&id, event_type, &user)]);
        self.log.append(batch).await.unwrap();
    }

    async fn subscribe(&self, request: SubscribeRequest) -> Result<Collector, Status> {
        let stream = self.client().await.subscribe(request).await?.into_inner();
        Ok(Collector { stream })
    }

    /// Everything that a subscription gives until it ends.
    async fn collect(&self, request: SubscribeRequest) -> Collected {
        self.subscribe(request).await.unwrap().collect().await
    }

    fn cursor(&self, sequence: u64) -> String {
        let epochs = self.log.status().epochs();
        epochs.cursor(Sequence(sequence)).to_string()
    }
}

fn with_connections(connections: http2::Options) -> Options {
    Options {
        connections,
        ..Options::default()
    }
}

struct Collector {
    stream: Streaming<SubscribeResponse>,
}

#[derive(Debug, Default)]
struct Collected {
    events: Vec<Event>,
    notices: Vec<Notice>,
    cursors: Vec<String>,
    end: Option<Status>,
}

impl Collector {
    async fn next(&mut self) -> SubscribeResponse {
        let next = tokio::time::timeout(Duration::from_secs(30), self.stream.next());
        next.await.expect("a response in time").unwrap().unwrap()
    }

    async fn notice(&mut self) -> Notice {
        self.next().await.notice.expect("a notice")
    }

    async fn collect(mut self) -> Collected {
        let mut collected = Collected::default();
        let all = async {
            while let Some(response) = self.stream.next().await {
                match response {
                    Ok(response) => collected.add(response),
                    Err(status) => collected.end = Some(status),
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), all).await;
        ended.expect("the stream ends");
        collected
    }
}

impl Collected {
    fn add(&mut self, response: SubscribeResponse) {
        self.events.extend(response.events);
        self.notices.extend(response.notice);
        self.cursors.push(response.cursor);
    }

    fn sequences(&self) -> Vec<u64> {
        self.events.iter().map(|event| event.sequence).collect()
    }
}

fn from(position: Start) -> Option<StartPosition> {
    Some(StartPosition {
        position: Some(position),
    })
}

fn until(position: Stop) -> Option<StopPosition> {
    Some(StopPosition {
        position: Some(position),
        max_events: 0,
    })
}

fn timestamp(at: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

fn max_events(max_events: u64) -> Option<StopPosition> {
    Some(StopPosition {
        position: None,
        max_events,
    })
}

fn earliest() -> Option<StartPosition> {
    from(Start::Earliest(Earliest {}))
}

fn head() -> Option<StopPosition> {
    until(Stop::Head(Head {}))
}

fn reason(status: &Status) -> String {
    status
        .get_error_details()
        .error_info()
        .unwrap()
        .reason
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_start_meets_every_stop() {
    let bridge = Bridge::start().await;
    bridge.append(1, 20).await;
    let all = bridge
        .collect(SubscribeRequest {
            start: earliest(),
            stop: head(),
            ..Default::default()
        })
        .await;
    assert_eq!(all.sequences(), (1..=20).collect::<Vec<u64>>());
    let time = |sequence: usize| all.events[sequence - 1].received_at.unwrap();
    // Events of the same microsecond have the same time, so a time names the first of them.
    let first_at = |at| {
        let event = all
            .events
            .iter()
            .find(|event| event.received_at == Some(at));
        event.unwrap().sequence
    };
    let starts = [
        (earliest(), 1),
        (from(Start::Latest(Latest {})), 21),
        (None, 21),
        (from(Start::AfterCursor(bridge.cursor(0))), 1),
        (from(Start::AfterCursor(bridge.cursor(7))), 8),
        (from(Start::AfterCursor(bridge.cursor(20))), 21),
        (from(Start::AtTime(time(9))), first_at(time(9))),
        (from(Start::AtTime(prost_types::Timestamp::default())), 1),
    ];
    let stops = [
        (head(), 20),
        (until(Stop::AtCursor(bridge.cursor(12))), 12),
        (until(Stop::AtCursor(bridge.cursor(0))), 0),
        (until(Stop::AtTime(time(15))), first_at(time(15)) - 1),
        (max_events(3), u64::MAX),
    ];
    for (start, first) in &starts {
        for (stop, last) in &stops {
            let request = SubscribeRequest {
                start: start.clone(),
                stop: stop.clone(),
                ..Default::default()
            };
            let last = if *last == u64::MAX { first + 2 } else { *last };
            let stream = bridge.subscribe(request).await.unwrap();
            let case = format!("{start:?} {stop:?}");
            if last > 20 {
                // Only live events complete it; they are taken from a bridge of their own.
                continue;
            }
            let collected = stream.collect().await;
            assert!(collected.end.is_none(), "{case}: {:?}", collected.end);
            let expected: Vec<u64> = (*first..=last).collect();
            assert_eq!(collected.sequences(), expected, "{case}");
            assert!(
                matches!(collected.notices.first(), Some(Notice::Started(_))),
                "{case}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn live_events_complete_a_count_and_a_time() {
    let bridge = Bridge::start().await;
    bridge.append(1, 2).await;
    let request = SubscribeRequest {
        stop: max_events(3),
        ..Default::default()
    };
    let counted = bridge.subscribe(request).await.unwrap();
    let soon = jiff::Timestamp::now() + Duration::from_millis(600);
    let at = prost_types::Timestamp {
        seconds: soon.as_second(),
        nanos: soon.subsec_nanosecond(),
    };
    let request = SubscribeRequest {
        stop: until(Stop::AtTime(at)),
        ..Default::default()
    };
    let timed = bridge.subscribe(request).await.unwrap();
    let mut last = 9;
    bridge.append(3, last).await;
    // Some after it, too.
    while jiff::Timestamp::now() <= soon {
        last += 1;
        bridge.append_one(last).await;
    }
    assert_eq!(counted.collect().await.sequences(), [3, 4, 5]);
    let timed = timed.collect().await.sequences();
    let request = SubscribeRequest {
        start: from(Start::AfterCursor(bridge.cursor(2))),
        stop: max_events(last - 2),
        ..Default::default()
    };
    let all = bridge.collect(request).await.events;
    let is_before = |event: &&proto::Event| {
        let received = event.received_at.unwrap();
        (received.seconds, received.nanos) < (at.seconds, at.nanos)
    };
    let before = all.iter().filter(is_before).map(|event| event.sequence);
    assert_eq!(timed, before.collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_the_future_leaves_out_what_comes_before_it() {
    let bridge = Bridge::start().await;
    let start = jiff::Timestamp::now() + Duration::from_millis(300);
    let at = timestamp(start);
    let request = SubscribeRequest {
        start: from(Start::AtTime(at)),
        ..Default::default()
    };
    let mut stream = bridge.subscribe(request).await.unwrap();
    let cursor = stream.next().await.cursor;
    drop(stream);
    bridge.append_one(1).await;
    // It stays so for a client that resumes.
    let request = SubscribeRequest {
        start: from(Start::AfterCursor(cursor)),
        stop: max_events(1),
        ..Default::default()
    };
    let stream = bridge.subscribe(request).await.unwrap();
    let mut last = 1;
    loop {
        let is_later = jiff::Timestamp::now() > start;
        last += 1;
        bridge.append_one(last).await;
        if is_later {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let collected = stream.collect().await;
    let received = collected.events[0].received_at.unwrap();
    assert!((received.seconds, received.nanos) >= (at.seconds, at.nanos));
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_have_the_start_time_until_it_has_come_and_no_longer() {
    let bridge = Bridge::start().await;
    bridge.append(1, 2).await;
    let time = |cursor: &str| cursor.parse::<Cursor>().unwrap().not_before;
    let subscribe = async |start| {
        let request = SubscribeRequest {
            start: from(start),
            ..Default::default()
        };
        bridge.subscribe(request).await.unwrap()
    };
    let past = prost_types::Timestamp::default();
    let first = subscribe(Start::AtTime(past)).await.next().await;
    assert_eq!(time(&first.cursor), None, "there are events of that time");
    tokio::time::sleep(Duration::from_millis(150)).await;
    let past = timestamp(jiff::Timestamp::now() - Duration::from_millis(120));
    let first = subscribe(Start::AtTime(past)).await.next().await;
    assert_eq!(first.cursor, bridge.cursor(2), "none can come any more");

    let soon = timestamp(jiff::Timestamp::now() + Duration::from_millis(200));
    let first = subscribe(Start::AtTime(soon)).await.next().await;
    assert!(time(&first.cursor).is_some());
    tokio::time::sleep(Duration::from_millis(350)).await;
    let mut resumed = subscribe(Start::AfterCursor(first.cursor.clone())).await;
    // What is between the cursor and the newest event may be from before that time.
    assert_eq!(resumed.next().await.cursor, first.cursor);
    let caught_up = resumed.next().await;
    assert!(matches!(caught_up.notice, Some(Notice::CaughtUp(_))));
    assert_eq!(caught_up.cursor, bridge.cursor(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_the_future_is_kept_by_a_client_that_retention_has_passed() {
    let bridge = Bridge::start_forgetful().await;
    bridge.append(1, 100).await;
    let not_before = Some(UnixMicros(i64::MAX));
    let timed = |sequence| {
        let cursor: Cursor = bridge.cursor(sequence).parse().unwrap();
        Cursor {
            not_before,
            ..cursor
        }
        .to_string()
    };
    let request = SubscribeRequest {
        start: from(Start::AfterCursor(timed(1))),
        ..Default::default()
    };
    let status = bridge.subscribe(request).await.err().unwrap();
    assert_eq!(reason(&status), "CURSOR_EXPIRED");
    let details = status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    let earliest = bridge.log.range().earliest.before();
    assert_eq!(metadata["earliest"], timed(earliest.0));
    assert_eq!(metadata["head"], timed(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_the_future_is_kept_by_a_client_whose_cursor_is_of_another_log() {
    let (bridge, other) = (Bridge::start().await, Bridge::start().await);
    bridge.append(1, 3).await;
    let timed = |bridge: &Bridge, sequence, micros| {
        let cursor: Cursor = bridge.cursor(sequence).parse().unwrap();
        Cursor {
            not_before: Some(UnixMicros(micros)),
            ..cursor
        }
        .to_string()
    };
    let start = |cursor| from(Start::AfterCursor(cursor));
    let stop = StopPosition {
        position: Some(Stop::AtCursor(other.cursor(1))),
        max_events: 0,
    };
    for (stop, cursor, expected) in [
        (None, timed(&other, 0, 7), "CURSOR_EPOCH_MISMATCH"),
        (None, timed(&other, 9, i64::MAX), "CURSOR_EPOCH_MISMATCH"),
        (None, timed(&bridge, 4, 1 << 60), "CURSOR_AHEAD"),
        (Some(stop), timed(&bridge, 1, 8), "CURSOR_EPOCH_MISMATCH"),
    ] {
        let not_before = cursor.parse::<Cursor>().unwrap().not_before;
        let request = SubscribeRequest {
            start: start(cursor),
            stop,
            ..Default::default()
        };
        let status = bridge.subscribe(request).await.err().unwrap();
        assert_eq!(reason(&status), expected);
        let details = status.get_error_details();
        let head = &details.error_info().unwrap().metadata["head"];
        assert_eq!(*head, timed(&bridge, 3, not_before.unwrap().0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_where_it_starts_and_when_it_is_live() {
    let bridge = Bridge::start().await;
    bridge.append(1, 3).await;
    let filter = Filter {
        types: vec!["user.**".into()],
        ..Default::default()
    };
    let request = SubscribeRequest {
        filter: Some(filter.clone()),
        start: from(Start::AfterCursor(bridge.cursor(1))),
        ..Default::default()
    };
    let mut stream = bridge.subscribe(request).await.unwrap();
    let first = stream.next().await;
    assert_eq!(first.cursor, bridge.cursor(1));
    let Some(Notice::Started(started)) = first.notice else {
        panic!("{first:?}")
    };
    assert_eq!((started.filter, started.after_sequence), (Some(filter), 1));
    let range = started.range.unwrap();
    assert_eq!(range.event_count, 3);
    assert_eq!(range.head.unwrap().cursor, bridge.cursor(3));
    let history = stream.next().await;
    assert_eq!(history.events.len(), 2);
    assert_eq!(history.cursor, bridge.cursor(3));
    assert!(matches!(stream.notice().await, Notice::CaughtUp(_)));
    bridge.append_one(4).await;
    assert_eq!(stream.next().await.events[0].sequence, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_moves_a_filtered_stream_forward() {
    let bridge = Bridge::start().await;
    let request = SubscribeRequest {
        filter: Some(Filter {
            types: vec!["never.sent".into()],
            ..Default::default()
        }),
        progress_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
        ..Default::default()
    };
    let mut stream = bridge.subscribe(request).await.unwrap();
    assert!(matches!(stream.notice().await, Notice::Started(_)));
    assert!(matches!(stream.notice().await, Notice::CaughtUp(_)));
    bridge.append(1, 50).await;
    let mut last = String::new();
    while last != bridge.cursor(50) {
        let response = stream.next().await;
        assert!(matches!(response.notice, Some(Notice::Progress(_))));
        last = response.cursor;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_carries_its_content() {
    let bridge = Bridge::start().await;
    bridge.append(1, 3).await;
    for (format, payload, raw) in [
        (PayloadFormat::Unspecified, true, false),
        (PayloadFormat::Typed, true, false),
        (PayloadFormat::Raw, false, true),
        (PayloadFormat::Both, true, true),
    ] {
        let request = SubscribeRequest {
            start: earliest(),
            stop: head(),
            payload_format: format.into(),
            ..Default::default()
        };
        for event in bridge.collect(request).await.events {
            assert_eq!(event.payload.is_some(), payload, "{format:?}");
            assert_eq!(!event.raw_json.is_empty(), raw, "{format:?}");
            assert_eq!(event.cursor, bridge.cursor(event.sequence));
        }
    }
}

/// Subscribers that start at all moments of a run, read at all speeds and have all kinds of
/// filters get every matching event once, in order, across the seam of log and bus.
#[tokio::test(flavor = "multi_thread")]
async fn history_and_live_meet_without_gap_or_repeat_under_load() {
    const EVENTS: u64 = 6_000;
    // A window of a few blocks: everybody who dawdles falls out of it.
    let window = bus::Options {
        window_bytes_max: 16 * 1024,
    };
    let bridge =
        Arc::new(Bridge::start_with(Options::default(), window, memory::Options::default()).await);
    let mut readers = Vec::new();
    for reader in 0..12_u64 {
        let bridge = Arc::clone(&bridge);
        readers.push(tokio::spawn(async move {
            let starts_at = reader * EVENTS / 16;
            while bridge.bus.head().0 < starts_at {
                tokio::task::yield_now().await;
            }
            let types: Vec<String> = match reader % 3 {
                0 => Vec::new(),
                1 => vec!["user.created".into()],
                _ => vec!["user.session.*".into(), "user.deleted".into()],
            };
            let start = if reader % 2 == 0 {
                earliest()
            } else {
                from(Start::AfterCursor(bridge.cursor(starts_at)))
            };
            let first = if reader % 2 == 0 { 1 } else { starts_at + 1 };
            let request = SubscribeRequest {
                filter: Some(Filter {
                    types: types.clone(),
                    ..Default::default()
                }),
                start,
                stop: until(Stop::AtTime(prost_types::Timestamp {
                    seconds: jiff::Timestamp::now().as_second() + 3_600,
                    nanos: 0,
                })),
                ..Default::default()
            };
            let matches = |number: &u64| {
                let event_type = TYPES[(number % 7) as usize];
                match reader % 3 {
                    0 => true,
                    1 => event_type == "user.created",
                    _ => event_type.starts_with("user.session.") || event_type == "user.deleted",
                }
            };
            let expected: Vec<u64> = (first..=EVENTS).filter(matches).collect();
            let mut stream = bridge.subscribe(request).await.unwrap();
            let mut sequences = Vec::new();
            let mut cursor = 0;
            while sequences.len() < expected.len() {
                let response = stream.next().await;
                sequences.extend(response.events.iter().map(|event| event.sequence));
                let now = response.cursor.parse::<Cursor>().unwrap().sequence.0;
                assert!(now >= cursor, "a cursor went back");
                assert!(sequences.last().is_none_or(|&last| last <= now));
                cursor = now;
                if reader % 4 == 3 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            assert_eq!(sequences, expected);
        }));
    }
    bridge.append(1, EVENTS).await;
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_stops_reading_disturbs_nobody_and_loses_nothing() {
    let window = bus::Options {
        window_bytes_max: 64 * 1024,
    };
    let bridge = Bridge::start_with(Options::default(), window, memory::Options::default()).await;
    let mut stalled = bridge.subscribe(SubscribeRequest::default()).await.unwrap();
    assert!(matches!(stalled.notice().await, Notice::Started(_)));
    assert!(matches!(stalled.notice().await, Notice::CaughtUp(_)));
    let other = bridge
        .subscribe(SubscribeRequest {
            stop: max_events(5_000),
            ..Default::default()
        })
        .await
        .unwrap();
    bridge.append(1, 5_000).await;
    assert_eq!(other.collect().await.events.len(), 5_000);
    let mut sequences = Vec::new();
    let mut fell_behind = false;
    while sequences.len() < 5_000 {
        let response = stalled.next().await;
        fell_behind |= matches!(response.notice, Some(Notice::FellBehind(_)));
        sequences.extend(response.events.iter().map(|event| event.sequence));
    }
    assert!(fell_behind);
    assert_eq!(sequences, (1..=5_000).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_ended_with_its_cursor() {
    let options = with_connections(http2::Options {
        slow_consumer_timeout: Duration::from_millis(300),
        ..http2::Options::default()
    });
    let bridge =
        Bridge::start_with(options, bus::Options::default(), memory::Options::default()).await;
    let channel = Channel::builder(format!("http://{}", bridge.address).parse().unwrap())
        .initial_stream_window_size(65_535)
        .connect()
        .await
        .unwrap();
    let answer = EventServiceClient::new(channel)
        .subscribe(SubscribeRequest::default())
        .await;
    let stalled = Collector {
        stream: answer.unwrap().into_inner(),
    };
    // Far more than the client has room for.
    bridge.append(1, 2_000).await;
    while bridge.streams.snapshot().open > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let collected = stalled.collect().await;
    let status = collected.end.clone().expect("a status");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "SLOW_CONSUMER");
    let details = status.get_error_details();
    let cursor = details.error_info().unwrap().metadata["cursor"].clone();
    assert_eq!(Some(&cursor), collected.cursors.last());
    let rest = bridge
        .collect(SubscribeRequest {
            start: from(Start::AfterCursor(cursor)),
            stop: head(),
            ..Default::default()
        })
        .await;
    let mut sequences = collected.sequences();
    assert!(sequences.len() < 2_000);
    sequences.extend(rest.sequences());
    assert_eq!(sequences, (1..=2_000).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_larger_than_any_window_arrives_whole() {
    let bridge = Bridge::start().await;
    let large = "x".repeat(900_000);
    let mut batch = fixtures::batch("app", &[("evt_1", "user.created", "usr_1")]);
    batch.body = format!(r#"{{"large":"{large}"}}"#).into();
    batch.drafts[0].raw_json = 0..batch.body.len();
    bridge.log.append(batch).await.unwrap();
    bridge.append(2, 3).await;
    let mut client = bridge.client().await;
    let request = SubscribeRequest {
        start: earliest(),
        stop: head(),
        payload_format: PayloadFormat::Raw.into(),
        ..Default::default()
    };
    let stream = client.subscribe(request).await.unwrap().into_inner();
    let collected = Collector { stream }.collect().await;
    assert_eq!(collected.sequences(), [1, 2, 3]);
    assert_eq!(collected.events[0].raw_json.len(), 900_012);
}

/// Subscribers with equal filters share what matches; each has its own limits nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_filters_share_what_matches_and_each_ends_where_it_wants() {
    const BLOCKS: u64 = 6;
    const BLOCK_EVENTS: u64 = 70;
    let options = with_connections(http2::Options {
        // Blocks are cut into several responses.
        response_bytes_max: 400,
        ..http2::Options::default()
    });
    let bridge =
        Bridge::start_with(options, bus::Options::default(), memory::Options::default()).await;
    let request = |max_events: u64, start| SubscribeRequest {
        filter: Some(Filter {
            types: vec!["user.session.*".to_owned()],
            ..Filter::default()
        }),
        start: from(start),
        stop: self::max_events(max_events),
        ..SubscribeRequest::default()
    };
    let wanted: Vec<u64> = (1..=BLOCKS * BLOCK_EVENTS)
        .filter(|sequence| matches!(sequence % 7, 5 | 6))
        .collect();
    // Ends within a block, at its last match, and at the last event of all.
    let counts = [1, 13, 20, 33, wanted.len(), wanted.len()];
    let mut readers = Vec::new();
    for count in counts {
        let latest = Start::Latest(Latest {});
        let mut reader = bridge
            .subscribe(request(count as u64, latest))
            .await
            .unwrap();
        // Live before the first block comes.
        while !matches!(reader.notice().await, Notice::CaughtUp(_)) {}
        readers.push(reader);
    }
    for block in 0..BLOCKS {
        let numbers = block * BLOCK_EVENTS + 1..=(block + 1) * BLOCK_EVENTS;
        let ids: Vec<String> = numbers
            .clone()
            .map(|number| format!("evt_{number}"))
            .collect();
        let events: Vec<_> = numbers
            .zip(&ids)
            .map(|(number, id)| (id.as_str(), TYPES[(number % 7) as usize], "usr_1"))
            .collect();
        bridge
            .log
            .append(fixtures::batch("app", &events))
            .await
            .unwrap();
    }
    for (reader, count) in readers.into_iter().zip(counts) {
        let collected = reader.collect().await;
        assert_eq!(collected.end.map(|status| status.code()), None);
        let sequences: Vec<u64> = collected
            .events
            .iter()
            .map(|event| event.sequence)
            .collect();
        assert_eq!(sequences, wanted[..count]);
        assert!(
            count < 20 || collected.cursors.len() > 2,
            "several responses"
        );
        // The cursor goes on right after it.
        let rest = wanted.len() - count;
        if rest > 0 {
            let after = Start::AfterCursor(collected.cursors.last().unwrap().clone());
            let more = bridge.collect(request(rest as u64, after)).await;
            assert_eq!(more.sequences(), wanted[count..]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_is_said_with_its_reason() {
    let bridge = Bridge::start().await;
    bridge.append(1, 3).await;
    let other = Bridge::start().await;
    let ahead = bridge.cursor(4);
    let filter = Filter {
        types: vec!["a*b".into(), "**.x".into()],
        app_ids: vec![String::new()],
        ..Default::default()
    };
    let with_filter = SubscribeRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let after = |cursor: String| SubscribeRequest {
        start: from(Start::AfterCursor(cursor)),
        ..Default::default()
    };
    for (request, code, expected) in [
        (with_filter, Code::InvalidArgument, "FILTER_INVALID"),
        (after("x".into()), Code::InvalidArgument, "CURSOR_MALFORMED"),
        (
            after(other.cursor(0)),
            Code::FailedPrecondition,
            "CURSOR_EPOCH_MISMATCH",
        ),
        (after(ahead), Code::FailedPrecondition, "CURSOR_AHEAD"),
    ] {
        let status = bridge.subscribe(request).await.err().expect(expected);
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected));
        if expected == "FILTER_INVALID" {
            let details = status.get_error_details();
            let faults = &details.bad_request().unwrap().field_violations;
            let fields: HashSet<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
            assert_eq!(
                fields,
                HashSet::from(["filter.types[0]", "filter.types[1]", "filter.app_ids[0]"])
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_retention_has_passed_is_told_so_or_skips() {
    let bridge = Bridge::start_forgetful().await;
    bridge.append(1, 100).await;
    let earliest_left = bridge.log.range().earliest.0;
    assert!(earliest_left > 2);
    let after_first = |policy: ExpiredCursorPolicy| SubscribeRequest {
        start: from(Start::AfterCursor(bridge.cursor(1))),
        stop: head(),
        on_expired: policy.into(),
        ..Default::default()
    };
    let status = bridge
        .subscribe(after_first(ExpiredCursorPolicy::Fail))
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::OutOfRange);
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "CURSOR_EXPIRED");
    assert_eq!(info.metadata["earliest"], bridge.cursor(earliest_left - 1));
    assert_eq!(info.metadata["head"], bridge.cursor(100));

    let skipped = bridge
        .collect(after_first(ExpiredCursorPolicy::Earliest))
        .await;
    assert_eq!(
        skipped.sequences(),
        (earliest_left..=100).collect::<Vec<u64>>()
    );
    let Notice::Skipped(notice) = &skipped.notices[1] else {
        panic!("{:?}", skipped.notices)
    };
    assert_eq!(
        (notice.first_sequence, notice.last_sequence),
        (2, earliest_left - 1)
    );
    let latest = bridge
        .collect(after_first(ExpiredCursorPolicy::Latest))
        .await;
    assert!(latest.events.is_empty());
    let Notice::Skipped(notice) = &latest.notices[1] else {
        panic!("{:?}", latest.notices)
    };
    assert_eq!((notice.first_sequence, notice.last_sequence), (2, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_gives_every_stream_its_cursor() {
    let bridge = Bridge::start().await;
    bridge.append(1, 5).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = bridge.subscribe(SubscribeRequest::default()).await.unwrap();
        assert!(matches!(stream.notice().await, Notice::Started(_)));
        streams.push(stream);
    }
    bridge.streams.drain().await;
    for stream in streams {
        let collected = stream.collect().await;
        assert!(matches!(
            collected.notices.last(),
            Some(Notice::Draining(_))
        ));
        assert_eq!(collected.cursors.last(), Some(&bridge.cursor(5)));
        let status = collected.end.unwrap();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unavailable, "DRAINING")
        );
        assert!(status.get_error_details().retry_info().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_the_health_does_not_hold_up_a_drain() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let bridge = Bridge::start().await;
    let channel = Channel::builder(format!("http://{}", bridge.address).parse().unwrap());
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest::default();
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let serving = tonic_health::ServingStatus::Serving as i32;
    assert_eq!(watch.next().await.unwrap().unwrap().status, serving);
    let drained = tokio::time::timeout(Duration::from_secs(30), bridge.streams.drain()).await;
    assert!(drained.is_ok());
    let not_serving = tonic_health::ServingStatus::NotServing as i32;
    assert_eq!(watch.next().await.unwrap().unwrap().status, not_serving);
    let end = watch.next().await.unwrap().unwrap_err();
    assert_eq!(
        (end.code(), reason(&end).as_str()),
        (Code::Unavailable, "DRAINING")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_none_is_the_callers_fault() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let options = with_connections(http2::Options {
        header_timeout: Duration::from_millis(200),
        ..http2::Options::default()
    });
    let bridge =
        Bridge::start_with(options, bus::Options::default(), memory::Options::default()).await;
    let socket = tokio::net::TcpStream::connect(bridge.address)
        .await
        .unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let too_long = [&[0, 0, 5, 0, 1][..], &[0; 9]].concat();
    for (body, ends, expected) in [
        (
            vec![0, 0, 0, 0, 3, 0xff, 0xff, 0xff],
            true,
            "REQUEST_INVALID",
        ),
        (Vec::new(), true, "MESSAGE_COUNT_INVALID"),
        (too_long, true, "REQUEST_TOO_LARGE"),
        (vec![0, 0, 0, 0, 9], false, "REQUEST_TIMEOUT"),
    ] {
        let mut client = client.clone().ready().await.unwrap();
        // Both RPCs read their request the same way.
        let rpc = if ends { "GetRange" } else { "Subscribe" };
        let uri = format!("http://bridge/prelude.bridge.v1.EventService/{rpc}");
        let request = http::Request::post(uri)
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (response, mut send) = client.send_request(request, false).unwrap();
        send.send_data(body.into(), ends).unwrap();
        let response = response.await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(reason(&status), expected);
    }
    // Not even HTTP: the connection is closed, not kept.
    let mut silent = tokio::net::TcpStream::connect(bridge.address)
        .await
        .unwrap();
    silent.write_all(b"P").await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_refused_until_one_ends() {
    let options = Options {
        subscriptions: subscription::Options {
            streams_max: 2,
            ..subscription::Options::default()
        },
        ..Options::default()
    };
    let bridge =
        Bridge::start_with(options, bus::Options::default(), memory::Options::default()).await;
    let first = bridge.subscribe(SubscribeRequest::default()).await.unwrap();
    let _second = bridge.subscribe(SubscribeRequest::default()).await.unwrap();
    let status = bridge
        .subscribe(SubscribeRequest::default())
        .await
        .err()
        .unwrap();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "LIMIT_STREAMS")
    );
    drop(first);
    while bridge.streams.snapshot().open == 2 {
        tokio::task::yield_now().await;
    }
    assert!(bridge.subscribe(SubscribeRequest::default()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_read_is_unavailable_and_says_where_to_go_on() {
    for error in [
        ReadError::Failed("the disk is gone".into()),
        ReadError::Unavailable("no quorum".into()),
    ] {
        let inner = memory::open(memory::Options::default()).unwrap();
        let batch = fixtures::batch("app", &[("evt_1", "user.created", "usr_1")]);
        inner.append(batch).await.unwrap();
        let log = Arc::new(Scripted::new(inner));
        // The bus begins at the head, so that history has to come from the log.
        let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
        let anonymous = Credentials::anonymous();
        let bridge = Bridge::serve(Options::default(), anonymous, Arc::clone(&log) as _, bus).await;
        log.script_reads(Script::Fails(error));

        let request = SubscribeRequest {
            start: earliest(),
            ..Default::default()
        };
        let collected = bridge.collect(request.clone()).await;
        let status = collected.end.unwrap();
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(info.reason, "LOG_UNAVAILABLE");
        assert_eq!(info.metadata["cursor"], bridge.cursor(0));
        assert!(details.retry_info().is_some());

        let at = prost_types::Timestamp::default();
        let at_time = SubscribeRequest {
            start: from(Start::AtTime(at)),
            ..Default::default()
        };
        let status = bridge.subscribe(at_time).await.err().unwrap();
        assert_eq!(reason(&status), "LOG_UNAVAILABLE");

        log.script_reads(Script::Works);
        let request = SubscribeRequest {
            stop: until(Stop::Head(Head {})),
            ..request
        };
        assert_eq!(bridge.collect(request).await.events.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_the_log_leaves_out_end_a_stream_and_are_not_skipped() {
    let inner = memory::open(memory::Options::default()).unwrap();
    let log = Arc::new(Scripted::new(inner));
    for number in 0..5 {
        log.append(fixtures::numbered("app", number..number + 1))
            .await
            .unwrap();
    }
    let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
    let anonymous = Credentials::anonymous();
    let bridge = Bridge::serve(Options::default(), anonymous, Arc::clone(&log) as _, bus).await;
    log.leave_out(2);
    let request = SubscribeRequest {
        start: earliest(),
        ..Default::default()
    };
    let collected = bridge.collect(request).await;
    assert!(collected.events.is_empty());
    let status = collected.end.unwrap();
    assert_eq!(reason(&status), "LOG_UNAVAILABLE");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.metadata["cursor"], bridge.cursor(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_sees_a_new_epoch_without_reconnecting() {
    let log = memory::open(memory::Options::default()).unwrap();
    let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
    let anonymous = Credentials::anonymous();
    let bridge = Bridge::serve(Options::default(), anonymous, Arc::clone(&log) as _, bus).await;
    bridge.append(1, 2).await;
    let request = SubscribeRequest {
        start: earliest(),
        ..Default::default()
    };
    let mut stream = bridge.subscribe(request).await.unwrap();
    let mut cursors = Vec::new();
    for (sequence, epoch) in [(3, None), (4, Some(77)), (5, Some(77))] {
        // The second commit is that of another writer; the third goes on in its epoch.
        match epoch {
            Some(epoch) if sequence == 4 => log.apply_commit(&foreign(&log, epoch)).unwrap(),
            _ => bridge.append_one(sequence).await,
        }
        let event = loop {
            let response = stream.next().await;
            if let Some(event) = response.events.last()
                && event.sequence == sequence
            {
                assert_eq!(response.cursor, event.cursor);
                break event.clone();
            }
        };
        let cursor: Cursor = event.cursor.parse().unwrap();
        assert!(epoch.is_none_or(|epoch| cursor.epoch == Epoch(epoch)));
        cursors.push(event.cursor);
    }
    for (left, cursor) in [2, 1, 0].into_iter().zip(cursors) {
        let request = SubscribeRequest {
            start: from(Start::AfterCursor(cursor)),
            stop: until(Stop::Head(Head {})),
            ..Default::default()
        };
        assert_eq!(bridge.collect(request).await.events.len(), left);
    }
}

/// The next commit of a log, by another writer.
fn foreign(log: &memory::Memory, epoch: u32) -> Commit {
    let batch = fixtures::batch("app", &[("evt_foreign", "user.created", "usr_1")]);
    let (id, next) = (log.status().epochs().log(), log.range().head.plus(1));
    Commit {
        keys: batch.drafts.iter().map(|draft| draft.key).collect(),
        blocks: vec![fixtures::block_in(id, Epoch(epoch), next, &batch)],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_range_is_that_of_the_log() {
    let bridge = Bridge::start().await;
    let range = |mut client: EventServiceClient<Channel>| async move {
        let response = client.get_range(GetRangeRequest {}).await.unwrap();
        response.into_inner()
    };
    let empty: proto::GetRangeResponse = range(bridge.client().await).await;
    assert_eq!(empty.event_count, 0);
    assert_eq!(empty.head.unwrap().received_at, None);
    bridge.append(1, 4).await;
    let full = range(bridge.client().await).await;
    assert_eq!(full.event_count, 4);
    let (first, last) = (full.earliest.unwrap(), full.head.unwrap());
    assert_eq!((first.sequence, first.cursor), (1, bridge.cursor(0)));
    assert_eq!((last.sequence, last.cursor), (4, bridge.cursor(4)));
    assert!(last.received_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_on_the_same_port() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let bridge = Bridge::start().await;
    let channel = Channel::builder(format!("http://{}", bridge.address).parse().unwrap());
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    for service in ["", "prelude.bridge.v1.EventService"] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), tonic_health::ServingStatus::Serving.into());
    }
}
