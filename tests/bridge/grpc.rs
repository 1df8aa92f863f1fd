//! Streams from outside: where they start and stop, in which form events come, and what is told in
//! between. The events are signed deliveries to the built program.

use std::{collections::BTreeMap, time::Duration};

use prelude_bridge::proto::{
    Event, Filter, Identifier, PayloadFormat, SubscribeRequest, SubscribeResponse, UserCreated,
    UserDeleted, UserIdentifierCreated, UserIdentifierDeleted, UserProfileUpdated,
    UserSessionCreated, UserSessionRevoked, event::Payload, start_position::Position as Start,
    stop_position::Position as Stop, subscribe_response::Notice,
};
use prost_types::{ListValue, Struct, Timestamp, Value, value::Kind};

use crate::support::{
    APP, Bridge, EMAIL, OTHER_APP, OTHER_KEY, PHONE, Request, Setup, batch, item, sign,
    stream::{
        Earliest, Head, Latest, Received, StartPosition, StopPosition, after, from, history,
        until_head,
    },
};

/// Appends these batches, each of so many events.
async fn append(bridge: &Bridge, batches: &[u64]) {
    let mut number = bridge.head().await;
    for &count in batches {
        let items: Vec<String> = (0..count)
            .map(|_| {
                number += 1;
                let event_type = ["user.created", "user.session.created"][(number % 2) as usize];
                item(
                    &format!("evt_{number}"),
                    event_type,
                    &format!("usr_{}", number % 3),
                )
            })
            .collect();
        bridge.append(&items).await;
    }
}

async fn all(bridge: &Bridge) -> Vec<Event> {
    let mut stream = subscribe(bridge, history()).await;
    stream.end().await.unwrap();
    stream.events().cloned().collect()
}

async fn subscribe(bridge: &Bridge, request: SubscribeRequest) -> Received {
    let mut client = bridge.client().await;
    Received::subscribe(&mut client, request).await.unwrap()
}

fn micros(at: Option<Timestamp>) -> i64 {
    let at = at.unwrap();
    at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000
}

fn timestamp(micros: i64) -> Timestamp {
    Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap(),
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// What a stream must deliver, said as simply as can be: `events` is the whole log in the end,
/// `head` the newest event when the stream began, cursors are looked up.
fn expected(
    events: &[Event],
    head: u64,
    start: Option<&Start>,
    stop: Option<&Stop>,
    max_events: u64,
) -> Vec<u64> {
    let of_cursor = |cursor: &str| {
        let found = events.iter().find(|event| event.cursor == cursor);
        found.map_or(0, |event| event.sequence)
    };
    let at = |at: &Timestamp| micros(Some(*at));
    let is_wanted = |event: &&Event| {
        let started = match start {
            None | Some(Start::Latest(_)) => event.sequence > head,
            Some(Start::Earliest(_)) => true,
            Some(Start::AfterCursor(cursor)) => event.sequence > of_cursor(cursor),
            Some(Start::AtTime(time)) => micros(event.received_at) >= at(time),
        };
        let stopped = match stop {
            None => false,
            Some(Stop::Head(_)) => event.sequence > head,
            Some(Stop::AtCursor(cursor)) => event.sequence > of_cursor(cursor),
            Some(Stop::AtTime(time)) => micros(event.received_at) >= at(time),
        };
        started && !stopped
    };
    let most = if max_events == 0 {
        u64::MAX
    } else {
        max_events
    };
    let wanted = events.iter().filter(is_wanted).map(|event| event.sequence);
    wanted
        .take(usize::try_from(most).unwrap_or(usize::MAX))
        .collect()
}

/// Every kind of start in a log of three blocks: at its ends, inside and between its blocks.
async fn starts(bridge: &Bridge, events: &[Event]) -> Vec<Option<Start>> {
    let range = bridge.range().await;
    let mut starts = vec![
        None,
        Some(Start::Latest(Latest {})),
        Some(Start::Earliest(Earliest {})),
        Some(Start::AfterCursor(range.earliest.unwrap().cursor)),
    ];
    for event in [
        &events[0],
        &events[3],
        &events[5],
        &events[events.len() - 1],
    ] {
        starts.push(Some(Start::AfterCursor(event.cursor.clone())));
    }
    let received = |index: usize| micros(events[index].received_at);
    for time in [
        0,
        received(0),
        received(4),
        received(4) + 1,
        received(events.len() - 1) + 1,
    ] {
        starts.push(Some(Start::AtTime(timestamp(time))));
    }
    starts
}

fn request(start: Option<Start>, stop: Option<Stop>, max_events: u64) -> SubscribeRequest {
    SubscribeRequest {
        start: start.map(|start| StartPosition {
            position: Some(start),
        }),
        stop: Some(StopPosition {
            position: stop,
            max_events,
        }),
        progress_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
        ..SubscribeRequest::default()
    }
}

/// Cursors never go back, the first response tells where the stream begins, and what each response
/// says to resume from is behind its events.
fn assert_in_order(events: &[Event], received: &Received) {
    let mut place = 0;
    for (index, response) in received.responses.iter().enumerate() {
        let is_start = matches!(response.notice, Some(Notice::Started(_)));
        assert_eq!(is_start, index == 0);
        for event in &response.events {
            assert!(event.sequence > place);
            place = event.sequence;
        }
        let found = events.iter().find(|event| event.cursor == response.cursor);
        let told = found.map_or(0, |event| event.sequence);
        assert!(
            told >= place,
            "a cursor went back: {received:?}",
            received = received.sequences()
        );
        place = told;
    }
}

async fn every_start_meets_every_stop_in_history(bridge: Bridge) {
    append(&bridge, &[4, 1, 5]).await;
    let events = all(&bridge).await;
    assert_eq!(events.len(), 10);
    let range = bridge.range().await;
    let mut stops = vec![
        Stop::Head(Head {}),
        Stop::AtCursor(range.earliest.unwrap().cursor),
    ];
    for index in [0, 2, 3, 9] {
        stops.push(Stop::AtCursor(events[index].cursor.clone()));
    }
    let received = |index: usize| micros(events[index].received_at);
    for time in [0, received(4), received(4) + 1, received(9) + 1] {
        stops.push(Stop::AtTime(timestamp(time)));
    }
    let mut client = bridge.client().await;
    for start in starts(&bridge, &events).await {
        for stop in &stops {
            for max_events in [0, 1, 3] {
                let asked = request(start.clone(), Some(stop.clone()), max_events);
                let mut stream = Received::subscribe(&mut client, asked).await.unwrap();
                stream.end().await.unwrap();
                let wanted = expected(&events, 10, start.as_ref(), Some(stop), max_events);
                let case = format!("{start:?} {stop:?} {max_events}");
                assert_eq!(stream.sequences(), wanted, "{case}");
                assert_in_order(&events, &stream);
            }
        }
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_start_meets_every_stop() {
    every_start_meets_every_stop_in_history(Bridge::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_start_meets_every_stop_in_memory() {
    let setup = Setup::default().with("store", "memory");
    every_start_meets_every_stop_in_history(setup.start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_start_goes_on_into_what_arrives_later() {
    let bridge = Bridge::start().await;
    append(&bridge, &[4, 1, 5]).await;
    let history = all(&bridge).await;
    let mut streams = Vec::new();
    let soon = timestamp(now() + 2_000_000);
    let future = timestamp(now() + 500_000);
    let mut starts = starts(&bridge, &history).await;
    starts.push(Some(Start::AtTime(future)));
    for start in starts {
        // Some events that there are, then three that there are not yet, or until a time.
        let there = expected(&history, 10, start.as_ref(), None, 0).len() as u64;
        for (stop, max_events) in [(None, there + 3), (Some(Stop::AtTime(soon)), 0)] {
            let asked = request(start.clone(), stop.clone(), max_events);
            let mut stream = subscribe(&bridge, asked).await;
            stream
                .until(|notice| matches!(notice, Notice::CaughtUp(_)))
                .await;
            assert_eq!(
                stream.sequences(),
                expected(&history, 10, start.as_ref(), None, 0)
            );
            streams.push((start.clone(), stop, max_events, stream));
        }
    }
    // Before and after both times.
    while now() < micros(Some(soon)) + 100_000 {
        append(&bridge, &[2]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    append(&bridge, &[3]).await;
    let events = all(&bridge).await;
    for (start, stop, max_events, mut stream) in streams {
        stream.end().await.unwrap();
        let wanted = expected(&events, 10, start.as_ref(), stop.as_ref(), max_events);
        assert_eq!(
            stream.sequences(),
            wanted,
            "{start:?} {stop:?} {max_events}"
        );
        assert_in_order(&events, &stream);
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cursor_is_a_place_to_resume_from() {
    let setup = Setup::default().with("limits.grpc.response_bytes_max", "1KiB");
    let bridge = setup.start().await;
    append(&bridge, &[14, 1, 40, 3]).await;
    let filter = Filter {
        types: vec!["user.session.*".into()],
        user_ids: vec!["usr_0".into(), "usr_2".into()],
        ..Filter::default()
    };
    let filtered = |request| SubscribeRequest {
        filter: Some(filter.clone()),
        payload_format: PayloadFormat::Both.into(),
        ..request
    };
    let mut whole = subscribe(&bridge, filtered(history())).await;
    whole.end().await.unwrap();
    let sequences = whole.sequences();
    let wanted: Vec<u64> = (1..=58).filter(|n| n % 2 == 1 && n % 3 != 1).collect();
    assert_eq!(sequences, wanted);
    assert!(whole.responses.len() > 4, "in several responses");
    let mut client = bridge.client().await;
    let mut delivered = 0;
    for response in &whole.responses {
        delivered += response.events.len();
        let places = response.events.iter().map(|event| &event.cursor);
        let first = delivered - response.events.len();
        let counts = (first + 1..)
            .zip(places)
            .chain([(delivered, &response.cursor)]);
        for (count, cursor) in counts {
            let asked = filtered(until_head(after(cursor)));
            let mut rest = Received::subscribe(&mut client, asked).await.unwrap();
            rest.end().await.unwrap();
            assert_eq!(rest.sequences(), sequences[count..]);
        }
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_by_type_app_and_user() {
    let bridge = Bridge::start().await;
    append(&bridge, &[12]).await;
    let other = batch(
        OTHER_APP,
        &[item("evt_13", "user.profile.updated", "usr_0")],
    );
    let signature = OTHER_KEY
        .sign(other.as_bytes(), Default::default())
        .unwrap();
    let posted =
        Request::post("/webhooks", other.as_bytes()).header("X-Webhook-Signature", &signature);
    assert_eq!(
        posted.send(bridge.addresses.webhook).await.unwrap().status,
        200
    );

    let list = |entries: &[&str]| entries.iter().map(ToString::to_string).collect();
    let filter = |types: &[&str], exclude: &[&str], apps: &[&str], users: &[&str]| Filter {
        types: list(types),
        exclude_types: list(exclude),
        app_ids: list(apps),
        user_ids: list(users),
    };
    /// Whether the event with this sequence number should come.
    type Wanted = fn(&u64) -> bool;
    let sessions: Wanted = |n| n % 2 == 1 && *n < 13;
    let cases: Vec<(Filter, Wanted)> = vec![
        (filter(&[], &[], &[], &[]), |_| true),
        (filter(&["user.session.created"], &[], &[], &[]), sessions),
        (filter(&["user.session.*"], &[], &[], &[]), sessions),
        (filter(&["user.*"], &[], &[], &[]), |n| n % 2 == 0),
        (filter(&["user.**"], &[], &[], &[]), |_| true),
        (filter(&["*.*.*"], &[], &[], &[]), |n| n % 2 == 1),
        (filter(&["**"], &["user.session.**"], &[], &[]), |n| {
            n % 2 == 0 || *n == 13
        }),
        (
            filter(&["user.created", "*.profile.*"], &[], &[], &[]),
            |n| n % 2 == 0 || *n == 13,
        ),
        (filter(&["user.deleted"], &[], &[], &[]), |_| false),
        (filter(&[], &[], &[APP], &[]), |n| *n < 13),
        (filter(&[], &[], &[OTHER_APP, "unknown"], &[]), |n| *n == 13),
        (filter(&[], &[], &[], &["usr_0"]), |n| {
            n % 3 == 0 || *n == 13
        }),
        (
            filter(&["user.created"], &[], &[APP], &["usr_0", "usr_1"]),
            |n| n % 2 == 0 && n % 3 != 2,
        ),
    ];
    for (filter, wanted) in cases {
        let asked = SubscribeRequest {
            filter: Some(filter.clone()),
            ..history()
        };
        let mut stream = subscribe(&bridge, asked).await;
        stream.end().await.unwrap();
        let wanted: Vec<u64> = (1..=13).filter(wanted).collect();
        assert_eq!(stream.sequences(), wanted, "{filter:?}");
    }
    bridge.finish().await;
}

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Posts these items with a trace context, and reads them back in a form.
async fn read_back(bridge: &Bridge, items: &[String], format: PayloadFormat) -> Vec<Event> {
    let body = batch(APP, items);
    let posted = Request::post(&format!("/webhooks/{APP}"), body.as_bytes())
        .header("X-Webhook-Signature", &sign(body.as_bytes()))
        .header("traceparent", TRACE);
    let answer = posted.send(bridge.addresses.webhook).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut asked = history();
    asked.set_payload_format(format);
    let mut stream = subscribe(bridge, asked).await;
    stream.end().await.unwrap();
    let events: Vec<Event> = stream.events().cloned().collect();
    assert_eq!(events.len(), items.len());
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_json_is_every_item_byte_for_byte_whatever_it_is() {
    let bridge = Bridge::start().await;
    let items: Vec<String> = [
        r#"{ "id" : "evt_1","type":"user.created" , "payload":{"n": 1.0e+2,"n":1E2} }"#,
        "{\n\t\"type\": \"user.deleted\",\r\n \"id\": \"\\u0065vt\\/2\"}",
        r#"{"id":"evt_3","type":"a type \u0000 of its own","payload":"\ud83d\ude00 😀 \ud800"}"#,
        r#"{"id":12345678901234567890123,"event":"user.created","data":{"user_id":null}}"#,
        r#"{"id":"evt_6","note":1,"note":2,"type":"user.created","payload":[[[[]]]]}"#,
        "null",
        "-0.0",
        "\"text\"",
        "[1, 2,3 ]",
        "{}",
    ]
    .map(str::to_owned)
    .to_vec();
    for format in [PayloadFormat::Raw, PayloadFormat::Both] {
        for (item, event) in items.iter().zip(read_back(&bridge, &items, format).await) {
            assert_eq!(event.raw_json, item.as_bytes(), "{item}");
            assert_eq!(event.app_id, APP);
            assert!(!event.id.is_empty() && event.received_at.is_some());
            assert!(format == PayloadFormat::Both || event.payload.is_none());
        }
    }
    for format in [PayloadFormat::Unspecified, PayloadFormat::Typed] {
        for event in read_back(&bridge, &items, format).await {
            assert!(event.raw_json.is_empty());
        }
    }
    let events = read_back(&bridge, &items, PayloadFormat::Typed).await;
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(
        ids[..5],
        [
            "evt_1",
            "evt/2",
            "evt_3",
            "12345678901234567890123",
            "evt_6"
        ]
    );
    assert!(ids[5..].iter().all(|id| id.starts_with("syn_")), "{ids:?}");
    bridge.finish().await;
}

fn kind(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn members<const N: usize>(members: [(&str, Kind); N]) -> Struct {
    let fields = members
        .into_iter()
        .map(|(name, value)| (name.to_owned(), kind(value)));
    Struct {
        fields: fields.collect::<BTreeMap<_, _>>(),
    }
}

fn text(text: &str) -> Kind {
    Kind::StringValue(text.to_owned())
}

/// The seven documented payloads in JSON, and what they are in the contract.
fn documented() -> [(&'static str, String, Payload); 7] {
    // 2026-11-23T10:58:38.123456789Z, once with another offset.
    let at = Some(Timestamp {
        seconds: 1_795_431_518,
        nanos: 123_456_789,
    });
    let user_id = "usr_01k8".to_owned();
    let correlation_id = "corr_1".to_owned();
    let common = r#""user_id":"usr_01k8","correlation_id":"corr_1""#;
    let date = r#""2026-11-23T10:58:38.123456789Z""#;
    let there = r#""2026-11-23T12:58:38.123456789+02:00""#;
    let phone = format!(r#"{{"type":"phone_number","value":"{PHONE}"}}"#);
    let email = format!(r#"{{"type":"email_address","value":"{EMAIL}"}}"#);
    let identifier = |r#type: &str, value: &str| Identifier {
        r#type: r#type.to_owned(),
        value: value.to_owned(),
    };
    let (of_phone, of_email) = (
        identifier("phone_number", PHONE),
        identifier("email_address", EMAIL),
    );
    let free = r#"{"name":"Zoë","n":1.5,"on":true,"none":null,"list":[1,"x",{}],"in":{"deep":""}}"#;
    let list = ListValue {
        values: vec![
            kind(Kind::NumberValue(1.0)),
            kind(text("x")),
            kind(Kind::StructValue(Struct::default())),
        ],
    };
    let free_form = Some(members([
        ("name", text("Zoë")),
        ("n", Kind::NumberValue(1.5)),
        ("on", Kind::BoolValue(true)),
        ("none", Kind::NullValue(0)),
        ("list", Kind::ListValue(list)),
        ("in", Kind::StructValue(members([("deep", text(""))]))),
    ]));
    [
        (
            "user.created",
            format!(
                r#"{{{common},"identifiers":[{phone},{email}],"profile":{free},"source":"api","created_at":{date}}}"#
            ),
            Payload::UserCreated(UserCreated {
                user_id: user_id.clone(),
                identifiers: vec![of_phone.clone(), of_email.clone()],
                profile: free_form.clone(),
                source: "api".to_owned(),
                created_at: at,
                correlation_id: correlation_id.clone(),
            }),
        ),
        (
            "user.deleted",
            format!(r#"{{{common},"deleted_at":{there}}}"#),
            Payload::UserDeleted(UserDeleted {
                user_id: user_id.clone(),
                deleted_at: at,
                correlation_id: correlation_id.clone(),
            }),
        ),
        (
            "user.profile.updated",
            format!(r#"{{{common},"profile":{free},"updated_at":{date},"new_member":[7]}}"#),
            Payload::UserProfileUpdated(UserProfileUpdated {
                user_id: user_id.clone(),
                profile: free_form.clone(),
                updated_at: at,
                correlation_id: correlation_id.clone(),
            }),
        ),
        (
            "user.identifier.created",
            format!(r#"{{{common},"identifier":{email},"created_at":{date}}}"#),
            Payload::UserIdentifierCreated(UserIdentifierCreated {
                user_id: user_id.clone(),
                identifier: Some(of_email.clone()),
                created_at: at,
                correlation_id: correlation_id.clone(),
            }),
        ),
        (
            "user.identifier.deleted",
            format!(r#"{{{common},"identifier":{phone},"deleted_at":{date}}}"#),
            Payload::UserIdentifierDeleted(UserIdentifierDeleted {
                user_id: user_id.clone(),
                identifier: Some(of_phone.clone()),
                deleted_at: at,
                correlation_id: correlation_id.clone(),
            }),
        ),
        (
            "user.session.created",
            format!(
                r#"{{{common},"session_id":"ses_1","identifier":{phone},"metadata":{free},"created_at":{date}}}"#
            ),
            Payload::UserSessionCreated(UserSessionCreated {
                user_id: user_id.clone(),
                session_id: "ses_1".to_owned(),
                identifier: Some(of_phone),
                metadata: free_form,
                created_at: at,
                correlation_id: correlation_id.clone(),
            }),
        ),
        (
            "user.session.revoked",
            format!(r#"{{{common},"session_id":"ses_1","revoked_at":{date}}}"#),
            Payload::UserSessionRevoked(UserSessionRevoked {
                user_id,
                session_id: "ses_1".to_owned(),
                revoked_at: at,
                correlation_id,
            }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seven_payloads_are_typed_field_for_field() {
    let bridge = Setup::default().start().await;
    let documented = documented();
    let items: Vec<String> = documented
        .iter()
        .map(|(event_type, payload, _)| {
            format!(r#"{{"id":"{event_type}-1","type":"{event_type}","payload":{payload}}}"#)
        })
        .collect();
    let before = now();
    let typed = read_back(&bridge, &items, PayloadFormat::Typed).await;
    let both = read_back(&bridge, &items, PayloadFormat::Both).await;
    let happened = Timestamp {
        seconds: 1_795_431_518,
        nanos: 123_456_789,
    };
    for (index, (event_type, _, payload)) in documented.into_iter().enumerate() {
        let event = &typed[index];
        let received_at = event.received_at;
        assert!((before..=now()).contains(&micros(received_at)));
        let expected = Event {
            id: format!("{event_type}-1"),
            r#type: event_type.to_owned(),
            app_id: APP.to_owned(),
            user_id: "usr_01k8".to_owned(),
            cursor: event.cursor.clone(),
            sequence: index as u64 + 1,
            occurred_at: Some(happened),
            received_at,
            correlation_id: "corr_1".to_owned(),
            traceparent: TRACE.to_owned(),
            payload: Some(payload),
            ..Event::default()
        };
        assert_eq!(*event, expected);
        let with_raw = Event {
            raw_json: items[index].clone().into_bytes().into(),
            ..expected
        };
        assert_eq!(both[index], with_raw);
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_moves_the_place_of_a_stream_that_nothing_matches() {
    let bridge = Bridge::start().await;
    append(&bridge, &[3]).await;
    let nothing = Filter {
        types: vec!["user.deleted".into()],
        ..Filter::default()
    };
    let asked = SubscribeRequest {
        filter: Some(nothing.clone()),
        stop: None,
        ..request(Some(Start::Earliest(Earliest {})), None, 0)
    };
    let mut stream = subscribe(&bridge, asked).await;
    let Some(Notice::Started(started)) = stream.next().await.unwrap().unwrap().notice.clone()
    else {
        unreachable!("the first response is Started");
    };
    assert_eq!((started.filter, started.after_sequence), (Some(nothing), 0));
    let range = started.range.unwrap();
    assert_eq!(
        (
            range.earliest.unwrap().sequence,
            range.head.unwrap().sequence
        ),
        (1, 3)
    );
    assert_eq!(range.event_count, 3);
    let caught_up = stream
        .until(|notice| matches!(notice, Notice::CaughtUp(_)))
        .await;
    assert_eq!(caught_up.cursor, bridge.range().await.head.unwrap().cursor);

    append(&bridge, &[2]).await;
    let moved =
        |notice: &Notice| matches!(notice, Notice::Progress(progress) if progress.sequence == 5);
    let progress = stream.until(moved).await;
    let Some(Notice::Progress(told)) = &progress.notice else {
        unreachable!("it was looked for");
    };
    assert_eq!(told.head_sequence, 5);
    let head = bridge.range().await.head.unwrap();
    assert_eq!(
        (progress.cursor.as_str(), head.sequence),
        (head.cursor.as_str(), 5)
    );
    // Also when nothing arrives at all.
    stream.until(moved).await;
    assert_eq!(stream.events().count(), 0);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caught_up_stands_once_between_history_and_live() {
    let bridge = Bridge::start().await;
    append(&bridge, &[4, 4]).await;
    let mut stream = subscribe(&bridge, from(Start::Earliest(Earliest {}))).await;
    stream.until_events(8).await;
    let caught_up = stream
        .until(|notice| matches!(notice, Notice::CaughtUp(_)))
        .await;
    let Some(Notice::CaughtUp(told)) = &caught_up.notice else {
        unreachable!("it was looked for");
    };
    assert_eq!(told.sequence, 8);
    append(&bridge, &[1, 2]).await;
    stream.until_events(11).await;
    assert_eq!(stream.sequences(), (1..=11).collect::<Vec<u64>>());
    let is_caught_up =
        |response: &&SubscribeResponse| matches!(response.notice, Some(Notice::CaughtUp(_)));
    assert_eq!(stream.responses.iter().filter(is_caught_up).count(), 1);
    bridge.finish().await;
}
