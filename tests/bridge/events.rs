//! What an event is, from outside: which repetitions there are, which times are read, which names a filter
//! can have, and where a stream goes on that started at a time which had not come.

use std::time::Duration;

use jiff::Timestamp;
use prelude_bridge::proto::{
    Event, Filter, PayloadFormat, SubscribeRequest, start_position::Position as Start,
    subscribe_response::Notice,
};

use crate::{
    cli::program,
    support::{
        APP, Answer, Bridge, PHONE, Setup, batch,
        sender::eventually,
        stream::{Received, after, from, history, reason, until_head},
    },
};

/// All that a request gets.
async fn events(bridge: &Bridge, request: SubscribeRequest) -> Vec<Event> {
    let mut client = bridge.client().await;
    let mut stream = Received::subscribe(&mut client, request).await.unwrap();
    stream.end().await.unwrap();
    stream.events().cloned().collect()
}

async fn post(bridge: &Bridge, item: &str) -> Answer {
    bridge.post(batch(APP, &[item]).as_bytes()).await
}

fn counts(answer: &Answer) -> (u64, u64) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let count = |name: &str| answer.json()[name].as_u64().unwrap();
    (count("accepted"), count("duplicates"))
}

const NEW: (u64, u64) = (1, 0);
const KNOWN: (u64, u64) = (0, 1);

#[tokio::test(flavor = "multi_thread")]
async fn another_type_under_the_same_id_is_another_event() {
    let bridge = Bridge::start().await;
    let types = [
        "user.created",
        "user.deleted",
        "User.created",
        "",
        "user..x",
    ];
    for round in [NEW, KNOWN] {
        for event_type in types {
            let item = format!(r#"{{"id":"evt_1","type":"{event_type}"}}"#);
            assert_eq!(counts(&post(&bridge, &item).await), round, "{item}");
        }
    }
    let found = events(&bridge, history()).await;
    let found: Vec<&str> = found.iter().map(|event| event.r#type.as_str()).collect();
    assert_eq!(found, types);
    let changed = bridge.metric("prelude_bridge_events_changed_total").await;
    assert_eq!(changed, Some(0.0));
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_with_another_content_is_said_and_counted_also_after_a_restart() {
    let mut bridge = Bridge::start().await;
    let first = [
        r#"{"id":"evt_1","type":"user.created","payload":{"user_id":"u"}}"#,
        r#"{"id":1,"type":"a"}"#,
        r#"{"id":"+12025550142","type":"user..x"}"#,
        r#"{"id":"evt_4","data":[1,2]}"#,
    ];
    let other = [
        r#"{"id":"evt_1","type":"user.created","payload":{"user_id":"v"}}"#,
        // The number and its text are the same id.
        r#"{"id":"1","type":"a"}"#,
        r#"{"id":"+12025550142","type":"user..x","attempt":2}"#,
        r#"{"\u0069d":"evt_4","data":[1,2]}"#,
    ];
    bridge.append(&first).await;
    for item in first {
        assert_eq!(counts(&post(&bridge, item).await), KNOWN);
    }
    let changed = "prelude_bridge_events_changed_total";
    assert_eq!(bridge.metric(changed).await, Some(0.0), "the same bytes");
    assert!(!bridge.stderr().contains("another content"));
    for item in other {
        assert_eq!(counts(&post(&bridge, item).await), KNOWN);
    }
    bridge.counts(changed, 4.0).await;
    bridge
        .counts("prelude_bridge_events_duplicate_total", 8.0)
        .await;
    assert!(bridge.terminate().await.success());
    let said = bridge.stderr();
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("another content"))
        .collect();
    assert_eq!(lines.len(), 4, "{said}");
    assert!(
        lines[0].contains("evt_1") && lines[0].contains("WARN"),
        "{}",
        lines[0]
    );
    assert!(lines[3].contains("evt_4"), "{}", lines[3]);
    assert!(!said.contains(PHONE), "an id may be a telephone number");

    bridge.restart().await;
    for item in first {
        assert_eq!(counts(&post(&bridge, item).await), KNOWN);
    }
    assert_eq!(bridge.metric(changed).await, Some(0.0));
    let answer = bridge.post(batch(APP, &other).as_bytes()).await;
    assert_eq!(counts(&answer), (0, 4));
    bridge.counts(changed, 4.0).await;
    let request = SubscribeRequest {
        payload_format: PayloadFormat::Raw.into(),
        ..history()
    };
    let found = events(&bridge, request).await;
    let found: Vec<&[u8]> = found.iter().map(|event| &*event.raw_json).collect();
    assert_eq!(found, first.map(str::as_bytes), "the log keeps the first");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repetitions_with_other_contents_do_not_fill_the_log() {
    let setup = Setup::default()
        .with("limits.refusals.lines_at_once", "3")
        .with("limits.refusals.line_interval", "1h");
    let bridge = setup.start().await;
    post(&bridge, r#"{"id":"evt_1"}"#).await;
    for attempt in 0..40 {
        let item = format!(r#"{{"id":"evt_1","attempt":{attempt}}}"#);
        assert_eq!(counts(&post(&bridge, &item).await), KNOWN);
    }
    bridge
        .counts("prelude_bridge_events_changed_total", 40.0)
        .await;
    let stderr = bridge.stderr();
    assert_eq!(stderr.matches("another content").count(), 3, "{stderr}");
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_differ_only_in_case_are_refused_or_not_read() {
    let bridge = Bridge::start().await;
    let body = |item: &str| batch(APP, &[item]);
    for bad in [
        format!(r#"{{"app_id":"{APP}","events":[],"Events":[{{}}]}}"#),
        body(r#"{"type":"user.created","Type":"user.deleted"}"#),
        body(r#"{"type":"a","payload":{"user_id":"u","\u0055ser_Id":"v"}}"#),
        body(r#"{"\u0069d":"a","ID":"b"}"#),
    ] {
        let answer = bridge.post(bad.as_bytes()).await;
        assert_eq!(answer.status, 422, "{bad}");
        assert_eq!(answer.json()["error"]["code"], "body_ambiguous", "{bad}");
    }
    let kept = r#"{"Type":"user.deleted","payload":{"x":1,"X":2,"x":3}}"#;
    bridge.append(&[kept]).await;
    let request = SubscribeRequest {
        payload_format: PayloadFormat::Raw.into(),
        ..history()
    };
    let found = events(&bridge, request).await;
    assert_eq!((found.len(), found[0].r#type.as_str()), (1, ""));
    assert_eq!(found[0].raw_json, kept);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_time_of_rfc_3339_is_read_and_none_runs_backwards() {
    let bridge = Bridge::start().await;
    let times = [
        ("0001-01-01T00:00:00Z", (-62_135_596_800, 0)),
        ("1969-12-31T23:59:59.5-00:00", (-1, 500_000_000)),
        ("2016-12-31T23:59:59.9Z", (1_483_228_799, 900_000_000)),
        ("2016-12-31T23:59:60.5Z", (1_483_228_799, 999_999_999)),
        ("2017-01-01 05:29:60.75+05:30", (1_483_228_799, 999_999_999)),
        ("2017-01-01t00:00:00z", (1_483_228_800, 0)),
        (
            "2025-03-15T10:30:00.1234567890123456Z",
            (1_742_034_600, 123_456_789),
        ),
        ("2025-03-15T10:30:01+23:59", (1_741_948_261, 0)),
        ("2025-03-15T10:30:01-23:59", (1_742_120_941, 0)),
        (
            "9999-12-31T23:59:59.999999999999Z",
            (253_402_300_799, 999_999_999),
        ),
    ];
    let items: Vec<String> = (0..)
        .zip(times)
        .map(|(n, (time, _))| {
            format!(
                r#"{{"id":"evt_{n}","type":"user.created","payload":{{"user_id":"u","created_at":"{time}"}}}}"#
            )
        })
        .collect();
    bridge.append(&items).await;
    let found = events(&bridge, history()).await;
    assert_eq!(found.len(), times.len());
    for (event, (time, expected)) in found.iter().zip(times) {
        let at = event.occurred_at.unwrap();
        assert_eq!((at.seconds, at.nanos), expected, "{time}");
        assert!(event.payload.is_some(), "{time}");
    }
    bridge.finish().await;
}

/// Types and users that an event may have, as JSON writes them and as they are.
const TYPES: [(&str, &str); 9] = [
    ("", ""),
    ("*", "*"),
    ("user.*", "user.*"),
    ("a*b", "a*b"),
    ("user..x", "user..x"),
    ("=", "="),
    ("=user.created", "=user.created"),
    (r"tab\tand\u0001", "tab\tand\u{1}"),
    (r"\u00fcber.名", "über.名"),
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_in_the_log_can_be_named_by_a_filter() {
    let bridge = Bridge::start().await;
    let long = "u".repeat(300);
    let longest = "ü".repeat(512);
    let users = [
        (long.as_str(), long.as_str()),
        (&longest, &longest),
        (r"a\tb", "a\tb"),
        (r"\u0000\n", "\0\n"),
        ("*", "*"),
        ("a,b", "a,b"),
        (" ", " "),
    ];
    let mut items = Vec::new();
    for (n, (written, _)) in TYPES.iter().enumerate() {
        items.push(format!(r#"{{"id":"type_{n}","type":"{written}"}}"#));
    }
    for (n, (written, _)) in users.iter().enumerate() {
        items.push(format!(
            r#"{{"id":"user_{n}","type":"user.created","payload":{{"user_id":"{written}"}}}}"#
        ));
    }
    bridge.append(&items).await;
    let found = async |filter: Filter| {
        let request = SubscribeRequest {
            filter: Some(filter),
            ..history()
        };
        let found = events(&bridge, request).await;
        found.into_iter().map(|event| event.id).collect::<Vec<_>>()
    };
    for (n, (_, event_type)) in TYPES.iter().enumerate() {
        let mut entries = vec![format!("={event_type}")];
        if !event_type.contains('*') && !event_type.starts_with('=') && !event_type.is_empty() {
            entries.push((*event_type).to_owned());
        }
        for entry in entries {
            let filter = Filter {
                types: vec![entry.clone()],
                ..Filter::default()
            };
            assert_eq!(found(filter).await, [format!("type_{n}")], "{entry}");
            let filter = Filter {
                exclude_types: vec![entry.clone(), "user.created".into()],
                ..Filter::default()
            };
            assert_eq!(found(filter).await.len(), TYPES.len() - 1, "{entry}");
        }
    }
    for (n, (_, user)) in users.iter().enumerate() {
        let filter = Filter {
            user_ids: vec![(*user).to_owned()],
            ..Filter::default()
        };
        assert_eq!(found(filter).await, [format!("user_{n}")], "{user:?}");
    }
    // Patterns have to be well-formed, and take types of any kind.
    let of = |entry: &str| Filter {
        types: vec![entry.to_owned()],
        ..Filter::default()
    };
    assert_eq!(found(of("**")).await.len(), items.len());
    assert_eq!(found(of("user.*")).await.len(), 1 + users.len());
    assert_eq!(found(of("user.*.x")).await, ["type_4"]);
    for bad in ["a*b", "a.**.b", "user..*", "***", ""] {
        let request = SubscribeRequest {
            filter: Some(of(bad)),
            ..history()
        };
        let mut client = bridge.client().await;
        let refused = Received::subscribe(&mut client, request)
            .await
            .err()
            .unwrap();
        assert_eq!(reason(&refused).0, "FILTER_INVALID", "{bad}");
    }
    for (flag, value, id) in [
        ("--type", "=", "type_0"),
        ("--type", "=a*b", "type_3"),
        ("--type", "user..x", "type_4"),
        ("--type", "tab\tand\u{1}", "type_7"),
        ("--user", long.as_str(), "user_0"),
        ("--user", "a\tb", "user_2"),
        ("--user", "a,b", "user_5"),
    ] {
        let server = format!("http://{}", bridge.addresses.grpc);
        let mut command = program(&["tail", "--server", &server, "--since", "1h"]);
        command.args(["--until-caught-up", "--output", "json", flag, value]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed.lines().count(), 1, "{flag} {value}: {printed}");
        assert!(
            printed.contains(&format!("\"{id}\"")),
            "{flag} {value}: {printed}"
        );
    }
    bridge.finish().await;
}

fn item(n: u64) -> String {
    format!(r#"{{"id":"evt_{n}","type":"user.created"}}"#)
}

fn at(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

fn is_url_safe(cursor: &str) -> bool {
    let is_of_it = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !cursor.is_empty() && cursor.bytes().all(is_of_it)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_the_future_stays_the_start_however_the_stream_is_cut() {
    let mut bridge = Bridge::start().await;
    bridge.append(&[item(1)]).await;
    let request = SubscribeRequest {
        progress_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
        ..from(Start::AtTime(at(
            Timestamp::now() + Duration::from_secs(3_600)
        )))
    };
    let mut client = bridge.client().await;
    let mut stream = Received::subscribe(&mut client, request).await.unwrap();
    let mut cursors = vec![stream.next().await.unwrap().unwrap().cursor.clone()];
    cursors.push(
        stream
            .until(|notice| matches!(notice, Notice::CaughtUp(_)))
            .await
            .cursor,
    );
    bridge.append(&[item(2), item(3)]).await;
    let moved =
        |notice: &Notice| matches!(notice, Notice::Progress(progress) if progress.sequence == 3);
    cursors.push(stream.until(moved).await.cursor);
    // Resumed once, and cut again.
    let resumed = SubscribeRequest {
        progress_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
        ..after(&cursors[1])
    };
    let mut again = Received::subscribe(&mut client, resumed).await.unwrap();
    cursors.push(again.until(moved).await.cursor);
    bridge.signal("TERM");
    let draining = stream
        .until(|notice| matches!(notice, Notice::Draining(_)))
        .await;
    cursors.push(draining.cursor);
    let (ended, details) = reason(&stream.end().await.unwrap_err());
    assert_eq!(ended, "DRAINING");
    cursors.push(details.error_info().unwrap().metadata["cursor"].clone());
    assert!(bridge.ended().await.success());

    bridge.restart().await;
    bridge.append(&[item(4)]).await;
    for cursor in &cursors {
        assert!(is_url_safe(cursor), "{cursor}");
        let found = events(&bridge, until_head(after(cursor))).await;
        assert!(found.is_empty(), "{} events after {cursor}", found.len());
    }
    // What has no such time is as it was.
    let found = events(&bridge, history()).await;
    assert_eq!(found.len(), 4);
    let found = events(&bridge, until_head(after(&found[1].cursor))).await;
    assert_eq!(found.len(), 2);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_start_in_the_future_begins_when_its_time_has_come() {
    let bridge = Bridge::start().await;
    let start = Timestamp::now() + Duration::from_secs(2);
    let mut client = bridge.client().await;
    let request = from(Start::AtTime(at(start)));
    let mut stream = Received::subscribe(&mut client, request).await.unwrap();
    let cursor = stream.next().await.unwrap().unwrap().cursor.clone();
    drop(stream);
    bridge.append(&[item(0)]).await;
    let mut stream = Received::subscribe(&mut client, after(&cursor))
        .await
        .unwrap();
    let mut last = 0;
    eventually(async || {
        last += 1;
        bridge.append(&[item(last)]).await;
        (Timestamp::now() > start).then_some(())
    })
    .await;
    last += 1;
    bridge.append(&[item(last)]).await;
    stream.until_events(1).await;
    let all = events(&bridge, history()).await;
    let is_late = |event: &&Event| {
        let received = event.received_at.unwrap();
        (received.seconds, received.nanos) >= (at(start).seconds, at(start).nanos)
    };
    let first = all.iter().find(is_late).unwrap();
    assert!(first.sequence > 1, "something came before");
    assert_eq!(stream.sequences()[0], first.sequence);
    // From now on, it is a cursor like any other.
    assert_eq!(stream.cursor().len(), first.cursor.len());
    assert!(cursor.len() > first.cursor.len());
    let rest = events(&bridge, until_head(after(stream.cursor()))).await;
    let last_seen = stream.sequences().last().copied().unwrap();
    assert!(
        rest.iter()
            .map(|event| event.sequence)
            .eq(last_seen + 1..=all.len() as u64)
    );
    bridge.finish().await;
}
