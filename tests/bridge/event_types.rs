//! Event types from outside: every documented one in its documented form, those that nobody knows, and
//! payloads that cannot be typed, posted signed and streamed typed, raw and both.

use prelude_bridge::proto::{
    Event, Filter, Money, PayloadFormat, PayloadIssue, SubscribeRequest, event::Payload,
};

use crate::support::{
    APP, Bridge,
    sender::eventually,
    stream::{Received, history},
};

async fn stream(bridge: &Bridge, format: PayloadFormat, filter: Option<Filter>) -> Vec<Event> {
    let mut request = SubscribeRequest {
        filter,
        ..history()
    };
    request.set_payload_format(format);
    let mut client = bridge.client().await;
    let mut stream = Received::subscribe(&mut client, request).await.unwrap();
    stream.end().await.unwrap();
    stream.events().cloned().collect()
}

fn types(types: &[&str]) -> Option<Filter> {
    Some(Filter {
        types: types.iter().map(|&it| it.to_owned()).collect(),
        ..Filter::default()
    })
}

/// The types with a payload message, each with a payload as it is documented.
fn documented() -> Vec<(String, String)> {
    let user = r#""user_id":"usr_1","correlation_id":"corr_1""#;
    let date = "\"2026-11-23T10:58:38.123456789Z\"";
    let email = r#"{"type":"email_address","value":"ada@example.com"}"#;
    let verify = format!(
        r#""verification_id":"vrf_1","target":{{"type":"phone_number","value":"+33600000000"}},
           "price":{{"amount":1.10,"currency":"EUR"}},"metadata":{{"correlation_id":"corr_1"}},"time":{date}"#
    );
    let carrier = r#""carrier_information":{"mcc":"208","mnc":"10"}"#;
    let mut documented = vec![
        ("user.created", format!(r#"{user},"identifiers":[{email}],"profile":{{}},"source":"api","created_at":{date}"#)),
        ("user.deleted", format!(r#"{user},"deleted_at":{date}"#)),
        ("user.profile.updated", format!(r#"{user},"profile":{{"a":1}},"updated_at":{date}"#)),
        ("user.identifier.created", format!(r#"{user},"identifier":{email},"created_at":{date}"#)),
        ("user.identifier.deleted", format!(r#"{user},"identifier":{email},"deleted_at":{date}"#)),
        ("user.session.created", format!(r#"{user},"session_id":"ses_1","identifier":{email},"metadata":{{}},"created_at":{date}"#)),
        ("user.session.revoked", format!(r#"{user},"session_id":"ses_1","revoked_at":{date}"#)),
        ("step_up.hook_failed", format!(r#"{user},"reason":"request_failed","occurred_at":{date}"#)),
        ("migration.hook_failed", format!(r#""correlation_id":"corr_1","reason":"invalid_response","occurred_at":{date}"#)),
        ("verify.authentication", verify.clone()),
        ("verify.attempt", format!(r#"{verify},"id":"att_1",{carrier},"delivery_status":"delivered","channel":"sms""#)),
        ("verify.delivery_status", format!(r#"{verify},"id":"dls_1","attempt_id":"att_1",{carrier},"status":"delivered""#)),
    ]
    .into_iter()
    .map(|(name, members)| (name.to_owned(), format!("{{{members}}}")))
    .collect::<Vec<_>>();
    for name in [
        "created",
        "submitted",
        "pending_delivery",
        "delivered",
        "failed",
        "unknown",
    ] {
        let payload = format!(
            r#"{{"message_id":"tx_1","to":"+33600000000","fee":{{"amount":"0.10","currency":"EUR"}},
                "correlation_id":"corr_1","created_at":{date}}}"#
        );
        documented.push((format!("transactional.message.{name}"), payload));
    }
    documented
}

/// The name of a payload's message, as far as it can be told from outside.
fn name_of(payload: &Payload) -> String {
    let shown = format!("{payload:?}");
    shown.split('(').next().unwrap_or_default().to_owned()
}

/// `user.session.created` has the message `UserSessionCreated`.
fn message_of(event_type: &str) -> String {
    if event_type.starts_with("transactional.message.") {
        return "TransactionalMessage".to_owned();
    }
    let words = event_type.split(['.', '_']);
    words
        .map(|word| word[..1].to_uppercase() + &word[1..])
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_type_is_streamed_typed_raw_and_both() {
    let bridge = Bridge::start().await;
    let documented = documented();
    let items: Vec<String> = documented
        .iter()
        .map(|(name, payload)| {
            format!(r#"{{"id":"evt_{name}","type":"{name}","payload":{payload},"created_at":"2026-11-23T10:58:39Z"}}"#)
        })
        .collect();
    bridge.append(&items).await;
    for format in [
        PayloadFormat::Typed,
        PayloadFormat::Raw,
        PayloadFormat::Both,
    ] {
        let events = stream(&bridge, format, None).await;
        assert_eq!(events.len(), items.len());
        for ((event, item), (name, _)) in events.iter().zip(&items).zip(&documented) {
            assert_eq!(event.r#type, *name);
            assert_eq!(event.correlation_id, "corr_1", "{name}");
            assert_eq!(event.app_id, APP);
            let has_user = name.starts_with("user.") || name.starts_with("step_up.");
            assert_eq!(event.user_id, if has_user { "usr_1" } else { "" }, "{name}");
            let happened = event.occurred_at.unwrap();
            assert_eq!(
                (happened.seconds, happened.nanos),
                (1_795_431_518, 123_456_789)
            );
            assert_eq!(event.payload_issue(), PayloadIssue::Unspecified, "{name}");
            if format == PayloadFormat::Typed {
                assert!(event.raw_json.is_empty());
            } else {
                assert_eq!(event.raw_json, item.as_bytes(), "{name}");
            }
            let payload = event.payload.as_ref();
            let expected = (format != PayloadFormat::Raw).then(|| message_of(name));
            assert_eq!(payload.map(name_of), expected, "{name}");
        }
    }
    let verify = stream(&bridge, PayloadFormat::Typed, types(&["verify.attempt"])).await;
    let Some(Payload::VerifyAttempt(attempt)) = &verify[0].payload else {
        unreachable!("{verify:?}");
    };
    let price = Money {
        amount: "1.10".to_owned(),
        currency: "EUR".to_owned(),
    };
    assert_eq!(attempt.price, Some(price));
    let hooks = stream(&bridge, PayloadFormat::Typed, types(&["*.hook_failed"])).await;
    assert_eq!(hooks.len(), 2);
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_nobody_knows_is_found_by_name_and_pattern_and_counted() {
    let bridge = Bridge::start().await;
    let metric = |name: &str| format!(r#"prelude_bridge_events_received_total{{type="{name}"}}"#);
    assert_eq!(
        bridge.metric(&metric("step_up.hook_failed")).await,
        Some(0.0)
    );
    assert_eq!(bridge.metric(&metric("invoice.line.paid")).await, None);
    let new = r#"{"id":"evt_1","type":"invoice.line.paid","payload":{"user_id":"usr_1",
        "metadata":{"correlation_id":"corr_1"},"time":"2026-11-23T10:58:38Z","amount":1.10}}"#;
    let odd = r#"{"id":"evt_2","type":"Called by +33 6 00 00 00 00","payload":{}}"#;
    bridge.append(&[new, odd]).await;
    for filter in [
        &["invoice.line.paid"][..],
        &["invoice.*.paid"],
        &["invoice.**"],
        &["*.*.paid"],
    ] {
        let events = stream(&bridge, PayloadFormat::Both, types(filter)).await;
        assert_eq!(events.len(), 1, "{filter:?}");
        let event = &events[0];
        assert_eq!(event.raw_json, new.as_bytes());
        assert_eq!(event.payload, None);
        assert_eq!(event.payload_issue(), PayloadIssue::Unspecified);
        assert_eq!(
            (&*event.user_id, &*event.correlation_id),
            ("usr_1", "corr_1")
        );
        assert_eq!(event.occurred_at.unwrap().seconds, 1_795_431_518);
    }
    bridge.counts(&metric("invoice.line.paid"), 1.0).await;
    bridge.counts(&metric("other"), 1.0).await;
    bridge.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_cannot_be_typed_says_why_in_the_event_the_metrics_and_once_in_the_log() {
    let bridge = Bridge::start().await;
    let created = |id: &str, members: &str| {
        format!(
            r#"{{"id":"{id}","type":"user.created","payload":{{"user_id":"usr_1",{members}}}}}"#
        )
    };
    let private = r#""profile":{"secret name":{"n":1e400}}"#;
    let items = [
        created("evt_1", private),
        created("evt_2", private),
        created("evt_3", r#""identifiers":[{"value":7}]"#),
        created("evt_4", r#""created_at":"0000-01-01T00:00:00Z""#),
        created("evt_5", r#""source":"api""#),
    ];
    bridge.append(&items).await;
    let events = stream(&bridge, PayloadFormat::Typed, None).await;
    let found: Vec<_> = events
        .iter()
        .map(|event| {
            let member = event.payload_issue_member.as_str();
            (event.payload_issue(), member, event.payload.is_some())
        })
        .collect();
    let expected = [
        (PayloadIssue::NumberOutOfRange, "profile", true),
        (PayloadIssue::NumberOutOfRange, "profile", true),
        (PayloadIssue::WrongShape, "identifiers.value", false),
        (PayloadIssue::DateOutOfRange, "created_at", true),
        (PayloadIssue::Unspecified, "", true),
    ];
    assert_eq!(found, expected);
    // Without the payload there is nothing to say of it.
    for event in stream(&bridge, PayloadFormat::Raw, None).await {
        assert_eq!(event.payload_issue(), PayloadIssue::Unspecified);
    }
    for (issue, count) in [
        ("number_out_of_range", 2.0),
        ("wrong_shape", 1.0),
        ("date_out_of_range", 1.0),
    ] {
        let sample = format!(
            r#"prelude_bridge_event_payload_issues_total{{type="user.created",issue="{issue}"}}"#
        );
        bridge.counts(&sample, count).await;
    }
    let lines = eventually(async || {
        let log = bridge.stderr();
        let lines = log
            .lines()
            .filter(|line| line.contains("a payload has no message"));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        (lines.len() >= 3).then_some(lines)
    })
    .await;
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(!bridge.stderr().contains("secret name"));
    bridge.finish().await;
}
