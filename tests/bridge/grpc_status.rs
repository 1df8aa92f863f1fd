//! The status table of the streams from outside: every row that needs no credential, with its
//! reason and what a client needs to go on. And what becomes of cursors when logs are restarted,
//! replaced, restored and trimmed.

use std::{fs, path::Path, time::Duration};

use prelude_bridge::proto::{
    ExpiredCursorPolicy, Filter, PayloadFormat, StopPosition, SubscribeRequest, SubscribeResponse,
    start_position::Position as Start, stop_position::Position as Stop, subscribe_response::Notice,
};
use prost_types::{Value, value::Kind};
use tonic::{Code, Status, transport::Channel};

use crate::support::{
    Bridge, SOON, Setup, item,
    stream::{Earliest, Received, after, from, history, reason, until_head},
};

async fn subscribe(bridge: &Bridge, request: SubscribeRequest) -> Result<Received, Status> {
    Received::subscribe(&mut bridge.client().await, request).await
}

async fn refusal(bridge: &Bridge, request: SubscribeRequest) -> Status {
    let refused = subscribe(bridge, request).await;
    refused.err().unwrap()
}

/// Appends events with these numbers in their ids, one batch each.
async fn append(bridge: &Bridge, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        bridge
            .append(&[item(&format!("evt_{number}"), "user.created", "usr_1")])
            .await;
    }
}

async fn head_cursor(bridge: &Bridge) -> String {
    bridge.range().await.head.unwrap().cursor
}

/// What comes after a cursor, up to the head.
async fn rest(bridge: &Bridge, cursor: &str) -> Vec<u64> {
    let mut stream = subscribe(bridge, until_head(after(cursor))).await.unwrap();
    stream.end().await.unwrap();
    stream.sequences()
}

#[track_caller]
fn assert_status(status: &Status, code: Code, expected: &str) {
    assert_eq!(
        (status.code(), reason(status).0.as_str()),
        (code, expected),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_filter_is_told_all_its_faults_at_once() {
    let bridge = Bridge::start().await;
    let filter = Filter {
        types: vec!["user.created".into(), "user..*".into(), "us*r".into()],
        exclude_types: vec!["**.user".into()],
        app_ids: vec![String::new()],
        user_ids: vec!["x".repeat(1025), String::new()],
    };
    let asked = SubscribeRequest {
        filter: Some(filter),
        ..history()
    };
    let status = refusal(&bridge, asked).await;
    assert_status(&status, Code::InvalidArgument, "FILTER_INVALID");
    let (_, details) = reason(&status);
    let violations = &details.bad_request().unwrap().field_violations;
    let fields: Vec<&str> = violations
        .iter()
        .map(|fault| fault.field.as_str())
        .collect();
    assert_eq!(
        fields,
        [
            "filter.types[1]",
            "filter.types[2]",
            "filter.exclude_types[0]",
            "filter.app_ids[0]",
            "filter.user_ids[0]",
            "filter.user_ids[1]",
        ]
    );
    for field in fields {
        assert!(status.message().contains(field), "{}", status.message());
    }

    // A client with the least room for metadata still gets the status of the worst filter.
    let worst = vec!["**.x".to_owned(); 257];
    let asked = SubscribeRequest {
        filter: Some(Filter {
            types: worst.clone(),
            exclude_types: worst.clone(),
            app_ids: vec![String::new(); 257],
            user_ids: vec![String::new(); 257],
        }),
        ..history()
    };
    let endpoint = Channel::from_shared(format!("http://{}", bridge.addresses.grpc)).unwrap();
    let channel = endpoint
        .http2_max_header_list_size(8 * 1024)
        .connect()
        .await
        .unwrap();
    let mut client = prelude_bridge::proto::event_service_client::EventServiceClient::new(channel);
    let status = Received::subscribe(&mut client, asked).await.err().unwrap();
    assert_status(&status, Code::InvalidArgument, "FILTER_INVALID");
    assert!(
        status.message().ends_with("and 1020 more"),
        "{}",
        status.message()
    );
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_cursor_or_out_of_bounds_is_refused_by_its_field() {
    let bridge = Bridge::start().await;
    append(&bridge, 1..=1).await;
    let good = head_cursor(&bridge).await;
    for bad in [
        "",
        "nonsense",
        &good[1..],
        &format!("{good}A"),
        &format!("{good}="),
    ] {
        let stop = SubscribeRequest {
            stop: Some(StopPosition {
                position: Some(Stop::AtCursor(bad.to_owned())),
                max_events: 0,
            }),
            ..history()
        };
        for (asked, field) in [(after(bad), "start.after_cursor"), (stop, "stop.at_cursor")] {
            let status = refusal(&bridge, asked).await;
            assert_status(&status, Code::InvalidArgument, "CURSOR_MALFORMED");
            let (_, details) = reason(&status);
            assert_eq!(
                details.bad_request().unwrap().field_violations[0].field,
                field
            );
        }
    }
    let minute = prost_types::Duration {
        seconds: 0,
        nanos: 1_000_000,
    };
    let no_time = prost_types::Timestamp {
        seconds: i64::MAX,
        nanos: -1,
    };
    for (asked, field) in [
        (
            SubscribeRequest {
                progress_interval: Some(minute),
                ..history()
            },
            "progress_interval",
        ),
        (
            SubscribeRequest {
                client_name: "x".repeat(129),
                ..history()
            },
            "client_name",
        ),
        (
            SubscribeRequest {
                payload_format: 77,
                ..history()
            },
            "payload_format",
        ),
        (
            SubscribeRequest {
                on_expired: 77,
                ..history()
            },
            "on_expired",
        ),
        (from(Start::AtTime(no_time)), "start.at_time"),
    ] {
        let status = refusal(&bridge, asked).await;
        assert_status(&status, Code::InvalidArgument, "REQUEST_INVALID");
        let (_, details) = reason(&status);
        assert_eq!(
            details.bad_request().unwrap().field_violations[0].field,
            field
        );
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_the_clients_fault() {
    let bridge = Bridge::start().await;
    for (bytes, code, expected) in [
        (70_000, Code::InvalidArgument, "REQUEST_INVALID"),
        (600_000, Code::ResourceExhausted, "REQUEST_TOO_LARGE"),
    ] {
        let large = SubscribeRequest {
            client_name: "x".repeat(bytes),
            ..history()
        };
        let status = refusal(&bridge, large).await;
        assert_status(&status, code, expected);
    }

    // Another message than the method's, and a method that there is not.
    let service = "/prelude.bridge.v1.EventService";
    let mut raw = tonic::client::Grpc::new(bridge.channel().await);
    for (method, code, expected) in [
        ("Subscribe", Code::InvalidArgument, "REQUEST_INVALID"),
        ("Publish", Code::Unimplemented, "RPC_UNKNOWN"),
    ] {
        raw.ready().await.unwrap();
        // A number where the filter should be.
        let message = Value {
            kind: Some(Kind::NullValue(0)),
        };
        let codec = tonic_prost::ProstCodec::<Value, SubscribeResponse>::default();
        let path = format!("{service}/{method}").parse().unwrap();
        let called = raw.server_streaming(tonic::Request::new(message), path, codec);
        assert_status(&called.await.unwrap_err(), code, expected);
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_stay_valid_over_restarts() {
    let mut bridge = Bridge::start().await;
    let start = bridge.range().await.earliest.unwrap().cursor;
    append(&bridge, 1..=3).await;
    let third = head_cursor(&bridge).await;
    assert!(bridge.terminate().await.success());
    bridge.restart().await;
    append(&bridge, 4..=5).await;
    let fifth = head_cursor(&bridge).await;
    bridge.kill();
    bridge.restart().await;
    append(&bridge, 6..=6).await;
    assert_eq!(rest(&bridge, &start).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(rest(&bridge, &third).await, [4, 5, 6]);
    assert_eq!(rest(&bridge, &fifth).await, [6]);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_log_is_refused() {
    let mut bridge = Bridge::start().await;
    append(&bridge, 1..=2).await;
    let cursor = head_cursor(&bridge).await;
    let stop = SubscribeRequest {
        stop: Some(StopPosition {
            position: Some(Stop::AtCursor(cursor.clone())),
            max_events: 0,
        }),
        ..history()
    };
    // Of another bridge, and of this one after its data directory was wiped.
    let other = Setup::default().with("store", "memory").start().await;
    append(&other, 1..=3).await;
    assert!(bridge.terminate().await.success());
    fs::remove_dir_all(bridge.data_dir()).unwrap();
    bridge.restart().await;
    append(&bridge, 1..=3).await;
    for bridge in [&other, &bridge] {
        for asked in [after(&cursor), stop.clone()] {
            let status = refusal(bridge, asked).await;
            assert_status(&status, Code::FailedPrecondition, "CURSOR_EPOCH_MISMATCH");
            let (_, details) = reason(&status);
            let head = &details.error_info().unwrap().metadata["head"];
            assert_eq!(*head, head_cursor(bridge).await);
        }
    }
    other.finish().await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cursors_of_a_log_in_memory_end_with_it() {
    let mut bridge = Setup::default().with("store", "memory").start().await;
    append(&bridge, 1..=2).await;
    let cursor = head_cursor(&bridge).await;
    assert!(bridge.terminate().await.success());
    bridge.restart().await;
    append(&bridge, 1..=3).await;
    let status = refusal(&bridge, after(&cursor)).await;
    assert_status(&status, Code::FailedPrecondition, "CURSOR_EPOCH_MISMATCH");
    bridge.finish().await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_from_before_a_restore_is_recognised() {
    let mut bridge = Bridge::start().await;
    append(&bridge, 1..=3).await;
    let third = head_cursor(&bridge).await;
    assert!(bridge.terminate().await.success());
    let backup = tempfile::tempdir().unwrap();
    copy(&bridge.data_dir(), backup.path());
    bridge.restart().await;
    append(&bridge, 4..=6).await;
    let sixth = head_cursor(&bridge).await;
    assert!(bridge.terminate().await.success());
    fs::remove_dir_all(bridge.data_dir()).unwrap();
    copy(backup.path(), &bridge.data_dir());
    bridge.restart().await;

    let status = refusal(&bridge, after(&sixth)).await;
    assert_status(&status, Code::FailedPrecondition, "CURSOR_AHEAD");
    assert!(
        status.message().contains("ends with event 3"),
        "{}",
        status.message()
    );
    append(&bridge, 7..=11).await;
    let status = refusal(&bridge, after(&sixth)).await;
    assert_status(&status, Code::FailedPrecondition, "CURSOR_EPOCH_MISMATCH");
    assert_eq!(rest(&bridge, &third).await, [4, 5, 6, 7, 8]);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_cursor_is_told_what_is_left_and_goes_on_as_asked() {
    let setup = Setup::default().with("retention.bytes_max", "1MiB");
    let bridge = setup.start().await;
    append(&bridge, 1..=1).await;
    let first = head_cursor(&bridge).await;
    // Retention comes in bursts: until it has come.
    let padding = "x".repeat(400_000);
    let mut number = 1;
    while bridge.range().await.earliest.unwrap().sequence < 3 {
        number += 1;
        assert!(number < 100, "retention does not come");
        let item = format!(r#"{{"id":"evt_{number}","type":"user.padded","x":"{padding}"}}"#);
        bridge.append(&[item]).await;
    }
    // What it still removes, it removes before it takes anything else.
    append(&bridge, 1_000..=1_001).await;
    let range = bridge.range().await;
    let (earliest, head) = (range.earliest.unwrap(), range.head.unwrap());
    let left: Vec<u64> = (earliest.sequence..=head.sequence).collect();
    assert_eq!(range.event_count, left.len() as u64);

    for policy in [ExpiredCursorPolicy::Unspecified, ExpiredCursorPolicy::Fail] {
        let mut asked = after(&first);
        asked.set_on_expired(policy);
        let status = refusal(&bridge, asked).await;
        assert_status(&status, Code::OutOfRange, "CURSOR_EXPIRED");
        let (_, details) = reason(&status);
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata["earliest"], earliest.cursor);
        assert_eq!(metadata["head"], head.cursor);
        assert_eq!(rest(&bridge, &metadata["earliest"]).await, left);
    }
    let skipped = |notice: &Notice| matches!(notice, Notice::Skipped(_));
    for (policy, last, delivered) in [
        (
            ExpiredCursorPolicy::Earliest,
            earliest.sequence - 1,
            left.clone(),
        ),
        (ExpiredCursorPolicy::Latest, head.sequence, Vec::new()),
    ] {
        let mut asked = after(&first);
        asked.set_on_expired(policy);
        let mut stream = subscribe(&bridge, asked).await.unwrap();
        let Some(Notice::Skipped(told)) = stream.until(skipped).await.notice else {
            unreachable!("it was looked for");
        };
        assert_eq!((told.first_sequence, told.last_sequence), (2, last));
        stream
            .until(|notice| matches!(notice, Notice::CaughtUp(_)))
            .await;
        assert_eq!(stream.sequences(), delivered);
    }
    // Not expired: the oldest end, and the time before it.
    let zero = prost_types::Timestamp::default();
    for start in [Start::Earliest(Earliest {}), Start::AtTime(zero)] {
        let mut stream = subscribe(&bridge, until_head(from(start))).await.unwrap();
        stream.end().await.unwrap();
        assert_eq!(stream.sequences(), left);
    }
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_refused_until_one_ends() {
    let setup = Setup::default()
        .with("limits.grpc.streams_max", "2")
        .with("limits.grpc.streams_per_address_max", "2");
    let bridge = setup.start().await;
    let first = subscribe(&bridge, SubscribeRequest::default())
        .await
        .unwrap();
    let _second = subscribe(&bridge, SubscribeRequest::default())
        .await
        .unwrap();
    let status = refusal(&bridge, SubscribeRequest::default()).await;
    assert_status(&status, Code::ResourceExhausted, "LIMIT_STREAMS");
    let (_, details) = reason(&status);
    assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    drop(first);
    let admitted = async {
        while subscribe(&bridge, SubscribeRequest::default())
            .await
            .is_err()
        {}
    };
    tokio::time::timeout(SOON, admitted).await.unwrap();
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_ended_with_its_cursor_and_others_are_not() {
    let setup = Setup::default().with("limits.grpc.slow_consumer_timeout", "1s");
    let bridge = setup.start().await;
    let endpoint = Channel::from_shared(format!("http://{}", bridge.addresses.grpc)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535);
    let channel = endpoint.connect().await.unwrap();
    let mut client = prelude_bridge::proto::event_service_client::EventServiceClient::new(channel);
    let mut asked = from(Start::Earliest(Earliest {}));
    asked.set_payload_format(PayloadFormat::Raw);
    let mut slow = Received::subscribe(&mut client, asked.clone())
        .await
        .unwrap();
    let mut quick = subscribe(&bridge, asked).await.unwrap();
    let padding = "x".repeat(30_000);
    for number in 1..=20 {
        let item = format!(r#"{{"id":"evt_{number}","type":"user.padded","x":"{padding}"}}"#);
        bridge.append(&[item]).await;
        quick.until_events(number).await;
    }
    let ended = r#"prelude_bridge_streams_ended_total{reason="SLOW_CONSUMER"}"#;
    let counted = async { while bridge.metric(ended).await != Some(1.0) {} };
    tokio::time::timeout(SOON, counted).await.unwrap();

    let status = slow.end().await.unwrap_err();
    assert_status(&status, Code::ResourceExhausted, "SLOW_CONSUMER");
    let (_, details) = reason(&status);
    let cursor = &details.error_info().unwrap().metadata["cursor"];
    assert_eq!(cursor, slow.cursor());
    let mut sequences = slow.sequences();
    assert!(sequences.len() < 20);
    sequences.extend(rest(&bridge, cursor).await);
    assert_eq!(sequences, (1..=20).collect::<Vec<u64>>());
    append(&bridge, 100..=100).await;
    quick.until_events(21).await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_shuts_down_gives_every_stream_its_cursor() {
    let mut bridge = Bridge::start().await;
    append(&bridge, 1..=2).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = subscribe(&bridge, from(Start::Earliest(Earliest {})))
            .await
            .unwrap();
        stream
            .until(|notice| matches!(notice, Notice::CaughtUp(_)))
            .await;
        streams.push(stream);
    }
    bridge.signal("TERM");
    for stream in &mut streams {
        let status = stream.end().await.unwrap_err();
        assert_status(&status, Code::Unavailable, "DRAINING");
        let (_, details) = reason(&status);
        assert!(details.retry_info().unwrap().retry_delay.is_some());
        let Some(Notice::Draining(draining)) = stream.notices().last() else {
            unreachable!("the last notice is Draining");
        };
        assert!(draining.retry_after.is_some());
        assert_eq!(
            details.error_info().unwrap().metadata["cursor"],
            stream.cursor()
        );
    }
    assert!(bridge.ended().await.success());
    bridge.restart().await;
    append(&bridge, 3..=4).await;
    for stream in &streams {
        assert_eq!(rest(&bridge, stream.cursor()).await, [3, 4]);
    }
    bridge.finish().await;
}
