use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ListValue,
    NullValue, Struct,
    field_descriptor_proto::{Label, Type},
    value::Kind as Value,
};
use serde_json::json;

use super::{
    super::single::Product,
    event_types_of,
    member::{Kind, Member},
    types::{ADDED, TYPES},
};
use crate::{
    decode::tests::{at, body, decode, event},
    metrics::Metrics,
    proto::{
        self, CarrierInformation, DeliveryStatus, Event, Identifier, MigrationHookFailed,
        MigrationHookFailureReason, Money, PayloadIssue, StepUpHookFailed, StepUpHookFailureReason,
        TransactionalMessage, TransactionalMessageFailureReason, TransactionalMessageStatus,
        VerifyAttempt, VerifyAuthentication, VerifyDeliveryStatus, VerifyMetadata, event::Payload,
    },
};

/// An event of a type with this payload.
fn typed(event_type: &str, payload: &str) -> Event {
    event(&format!(
        r#"{{"id":"evt_1","type":"{event_type}","payload":{payload}}}"#
    ))
}

fn payload(event_type: &str, payload: &str) -> Payload {
    let event = typed(event_type, payload);
    assert_eq!(
        event.payload_issue(),
        PayloadIssue::Unspecified,
        "{payload}"
    );
    event.payload.expect(payload)
}

mod table {
    use super::*;

    #[test]
    fn a_type_begins_like_those_of_its_product() {
        for known in TYPES.iter().filter(|known| known.name != ADDED.name) {
            assert_eq!(
                Product::of_type(known.name),
                known.product,
                "{}",
                known.name
            );
            let mut of_product = event_types_of(known.product);
            assert!(of_product.any(|name| name == known.name));
        }
        assert_eq!(event_types_of(None).count(), 9);
        assert_eq!(Product::of_type("verified.by_another"), None);
    }

    #[test]
    fn these_types_are_known() {
        let known: Vec<&str> = TYPES.iter().map(|known| known.name).collect();
        let documented = [
            "user.created",
            "user.deleted",
            "user.profile.updated",
            "user.identifier.created",
            "user.identifier.deleted",
            "user.session.created",
            "user.session.revoked",
            "step_up.hook_failed",
            "migration.hook_failed",
            "verify.authentication",
            "verify.attempt",
            "verify.delivery_status",
            "transactional.message.created",
            "transactional.message.submitted",
            "transactional.message.pending_delivery",
            "transactional.message.delivered",
            "transactional.message.failed",
            "transactional.message.unknown",
        ];
        assert_eq!(known[..documented.len()], documented);
        assert_eq!(known[documented.len()..], [ADDED.name]);
    }

    /// Every entry has its message in the contract, with exactly its members, and every message has an
    /// entry.
    #[test]
    fn the_table_and_the_contract_say_the_same() {
        let contract = Contract::read();
        let event = contract.message(".prelude.bridge.v1.Event");
        let mut payloads: BTreeMap<i32, &FieldDescriptorProto> = event
            .field
            .iter()
            .filter(|field| field.oneof_index.is_some())
            .map(|field| (field.number(), field))
            .collect();
        for known in TYPES.iter().filter(|known| known.name != ADDED.name) {
            let number = i32::try_from(known.number).unwrap();
            let field = event.field.iter().find(|field| field.number() == number);
            let field = field.unwrap_or_else(|| panic!("Event has no {number}: {}", known.name));
            assert!(field.oneof_index.is_some(), "{}", known.name);
            contract.check(field.type_name(), known.members);
            payloads.remove(&number);
            let times = known
                .members
                .iter()
                .filter(|member| member.name == known.time);
            assert!(
                times
                    .into_iter()
                    .all(|time| matches!(time.kind, Kind::Date))
            );
        }
        assert_eq!(payloads, BTreeMap::new(), "payloads without an entry");
    }

    struct Contract {
        messages: BTreeMap<String, DescriptorProto>,
        enums: BTreeMap<String, EnumDescriptorProto>,
    }

    impl Contract {
        fn read() -> Self {
            let files = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap().file;
            let full = |package: &str, name: &str| format!(".{package}.{name}");
            let messages = files.iter().flat_map(|file| {
                let messages = file.message_type.iter();
                messages.map(|message| (full(file.package(), message.name()), message.clone()))
            });
            let enums = files.iter().flat_map(|file| {
                let enums = file.enum_type.iter();
                enums.map(|it| (full(file.package(), it.name()), it.clone()))
            });
            Self {
                messages: messages.collect(),
                enums: enums.collect(),
            }
        }

        fn message(&self, name: &str) -> &DescriptorProto {
            self.messages.get(name).expect(name)
        }

        fn check(&self, name: &str, members: &[Member]) {
            let message = self.message(name);
            let fields: BTreeSet<i32> = message.field.iter().map(|it| it.number()).collect();
            let numbers = members.iter().map(|it| i32::try_from(it.number).unwrap());
            assert_eq!(numbers.collect::<BTreeSet<i32>>(), fields, "{name}");
            assert_eq!(members.len(), fields.len(), "{name}");
            for member in members {
                let mut fields = message.field.iter();
                let field = fields.find(|it| it.number() == i32::try_from(member.number).unwrap());
                self.check_field(name, field.unwrap(), member);
            }
        }

        fn check_field(&self, message: &str, field: &FieldDescriptorProto, member: &Member) {
            let place = format!("{message}.{}", field.name());
            let is_known = matches!(member.kind, Kind::Known { .. });
            let prefix = if is_known { "known_" } else { "" };
            assert_eq!(field.name(), format!("{prefix}{}", member.name), "{place}");
            let is_list = matches!(member.kind, Kind::Objects(_));
            assert_eq!(field.label() == Label::Repeated, is_list, "{place}");
            let (kind, type_name) = (field.r#type(), field.type_name());
            match member.kind {
                Kind::Text | Kind::TextOrNumber => assert_eq!(kind, Type::String, "{place}"),
                Kind::Date => assert_eq!(type_name, ".google.protobuf.Timestamp", "{place}"),
                Kind::FreeForm => assert_eq!(type_name, ".google.protobuf.Struct", "{place}"),
                Kind::Object(shape) | Kind::Objects(shape) => {
                    assert_eq!(kind, Type::Message, "{place}");
                    self.check(type_name, shape.members);
                }
                Kind::Known { texts, otherwise } => {
                    let values = &self.enums.get(type_name).expect(&place).value;
                    let (none, values) = values.split_first().unwrap();
                    let prefix = none.name().strip_suffix("UNSPECIFIED").expect(&place);
                    let named: Vec<(i32, String)> = (1..)
                        .zip(texts)
                        .map(|(number, text)| (number, prefix.to_owned() + &text.to_uppercase()))
                        .collect();
                    let values = values.iter();
                    let values: Vec<(i32, String)> = values
                        .map(|it| (it.number(), it.name().to_owned()))
                        .collect();
                    assert_eq!(named, values, "{place}");
                    assert!((0..=values.len()).contains(&usize::try_from(otherwise).unwrap()));
                }
            }
        }
    }

    /// The message that the entry of [`ADDED`] would have in the contract.
    #[derive(Clone, PartialEq, prost::Message)]
    struct EventWithAdded {
        #[prost(message, tag = "4000")]
        added: Option<Added>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Added {
        #[prost(string, tag = "1")]
        added_text: String,
        #[prost(int32, tag = "2")]
        known_added_text: i32,
        #[prost(message, tag = "3")]
        added_at: Option<prost_types::Timestamp>,
        #[prost(message, tag = "4")]
        added_price: Option<Money>,
    }

    #[test]
    fn an_entry_in_the_table_is_all_that_a_new_type_needs() {
        let item = r#"{"id":"evt_1","type":"added.by_a_test","payload":{"user_id":"usr_1",
            "correlation_id":"corr_1","added_text":"two","added_at":"2026-01-02T03:04:05.5+01:00",
            "created_at":"2020-01-01T00:00:00Z","added_price":{"amount":1.10,"currency":"EUR"}}}"#;
        let event = event(item);
        let happened = at("2026-01-02T02:04:05.5Z");
        assert_eq!(event.occurred_at, happened);
        assert_eq!(
            (&*event.user_id, &*event.correlation_id),
            ("usr_1", "corr_1")
        );
        let batch = decode(body(&[item])).unwrap();
        let message = EventWithAdded::decode(batch.payload(&batch.drafts[0])).unwrap();
        let expected = Added {
            added_text: "two".into(),
            known_added_text: 2,
            added_at: happened,
            added_price: Some(money("1.10")),
        };
        assert_eq!(message.added, Some(expected));
        // A member of it is read and looked at like all others.
        let twice = r#"{"type":"added.by_a_test","payload":{"added_text":"a","added_text":"b"}}"#;
        let error = decode(body(&[twice])).unwrap_err();
        let said = "the payload of events[0] has its member added_text twice";
        assert_eq!(error.to_string(), said);
        // And its counter is there from the start.
        let metrics = Metrics::new();
        metrics.expect_types(super::super::event_types());
        let line = r#"events_received_total{type="added.by_a_test"} 0"#;
        assert!(metrics.render().contains(line));
    }
}

fn money(amount: &str) -> Money {
    Money {
        amount: amount.into(),
        currency: "EUR".into(),
    }
}

#[test]
fn payload_and_data_are_compared_by_all_members_that_are_read() {
    let both = |payload: &str, data: &str| {
        let item = format!(r#"{{"payload":{{{payload}}},"data":{{{data}}}}}"#);
        decode(body(&[&item])).is_ok()
    };
    let (one, other) = (r#""status":"a","price":{}"#, r#""price":{},"status":"a""#);
    assert!(both(one, one) && both(one, other));
    assert!(both(r#""status":null,"x":1"#, r#""to":null"#));
    for other in [r#""status":"b","price":{}"#, r#""price":{}"#, ""] {
        assert!(!both(one, other) && !both(other, one), "{other}");
    }
}

mod hooks {
    use super::*;

    #[test]
    fn a_failed_step_up_hook_is_typed() {
        let event = typed(
            "step_up.hook_failed",
            r#"{"user_id":"usr_1","reason":"invalid_step","occurred_at":"2026-11-01T10:00:00.25Z",
                "correlation_id":"corr_1","hook_url":"https://example.com"}"#,
        );
        assert_eq!(event.user_id, "usr_1");
        assert_eq!(event.correlation_id, "corr_1");
        assert_eq!(event.occurred_at, at("2026-11-01T10:00:00.25Z"));
        let expected = StepUpHookFailed {
            user_id: "usr_1".into(),
            reason: "invalid_step".into(),
            known_reason: StepUpHookFailureReason::InvalidStep.into(),
            occurred_at: event.occurred_at,
            correlation_id: "corr_1".into(),
        };
        assert_eq!(event.payload, Some(Payload::StepUpHookFailed(expected)));
    }

    #[test]
    fn a_failed_migration_hook_is_typed_and_has_no_user() {
        let event = typed(
            "migration.hook_failed",
            r#"{"reason":"missing_external_id","occurred_at":"2026-11-01T10:00:00+01:00"}"#,
        );
        assert_eq!(event.user_id, "");
        assert_eq!(event.occurred_at, at("2026-11-01T09:00:00Z"));
        let expected = MigrationHookFailed {
            reason: "missing_external_id".into(),
            known_reason: MigrationHookFailureReason::MissingExternalId.into(),
            occurred_at: event.occurred_at,
            correlation_id: String::new(),
        };
        assert_eq!(event.payload, Some(Payload::MigrationHookFailed(expected)));
    }

    #[test]
    fn every_reason_has_its_value_and_a_new_one_stays_as_it_was_sent() {
        for (number, reason) in [
            (1, "request_failed"),
            (2, "invalid_status_code"),
            (3, "response_decode_failed"),
            (4, "invalid_status"),
            (5, "missing_steps"),
            (6, "invalid_granted_for"),
            (7, "invalid_grant_mode"),
            (8, "invalid_step"),
            (9, "invalid_response"),
            (0, "REQUEST_FAILED"),
            (0, "hook_on_fire"),
        ] {
            let json = json!({ "reason": reason }).to_string();
            let Payload::StepUpHookFailed(failed) = payload("step_up.hook_failed", &json) else {
                panic!("{reason}");
            };
            assert_eq!((failed.known_reason, &*failed.reason), (number, reason));
        }
        for (number, reason) in [
            (1, "request_failed"),
            (2, "invalid_status_code"),
            (3, "response_decode_failed"),
            (4, "missing_external_id"),
            (5, "missing_identifiers"),
            (6, "invalid_response"),
            (0, "invalid_step"),
            (0, ""),
        ] {
            let json = json!({ "reason": reason }).to_string();
            let Payload::MigrationHookFailed(failed) = payload("migration.hook_failed", &json)
            else {
                panic!("{reason}");
            };
            assert_eq!((failed.known_reason, &*failed.reason), (number, reason));
        }
        for none in ["{}", r#"{"reason":null}"#] {
            let none = payload("migration.hook_failed", none);
            let expected = Payload::MigrationHookFailed(MigrationHookFailed::default());
            assert_eq!(none, expected);
        }
    }
}

mod verify {
    use super::*;

    fn target() -> Option<Identifier> {
        Some(Identifier {
            r#type: "phone_number".into(),
            value: "+33600000000".into(),
        })
    }

    fn metadata() -> Option<VerifyMetadata> {
        Some(VerifyMetadata {
            correlation_id: "mine_1".into(),
        })
    }

    const COMMON: &str = r#""metadata":{"correlation_id":"mine_1","more":1},
        "target":{"type":"phone_number","value":"+33600000000"},"verification_id":"vrf_1",
        "time":"2025-03-04T17:59:19.067887456Z","signals":{"ip":"203.0.113.7"}"#;

    #[test]
    fn an_authentication_is_typed() {
        let event = typed(
            "verify.authentication",
            &format!(r#"{{{COMMON},"price":{{"amount":0.009,"currency":"EUR"}}}}"#),
        );
        let time = at("2025-03-04T17:59:19.067887456Z");
        assert_eq!((event.occurred_at, &*event.user_id), (time, ""));
        assert_eq!(event.correlation_id, "mine_1");
        let expected = VerifyAuthentication {
            verification_id: "vrf_1".into(),
            target: target(),
            price: Some(money("0.009")),
            metadata: metadata(),
            time,
        };
        assert_eq!(event.payload, Some(Payload::VerifyAuthentication(expected)));
    }

    #[test]
    fn an_attempt_is_typed() {
        let event = typed(
            "verify.attempt",
            &format!(
                r#"{{"id":"att_1","carrier_information":{{"mcc":"208","mnc":"01"}},"channel":"sms",
                    "delivery_status":"in_transit","price":{{"amount":0.030,"currency":"EUR"}},{COMMON}}}"#
            ),
        );
        let time = at("2025-03-04T17:59:19.067887456Z");
        assert_eq!((&*event.id, event.occurred_at), ("evt_1", time));
        assert_eq!(event.correlation_id, "mine_1");
        let expected = VerifyAttempt {
            id: "att_1".into(),
            verification_id: "vrf_1".into(),
            target: target(),
            price: Some(money("0.030")),
            metadata: metadata(),
            carrier_information: Some(CarrierInformation {
                mcc: "208".into(),
                mnc: "01".into(),
            }),
            channel: "sms".into(),
            delivery_status: "in_transit".into(),
            known_delivery_status: DeliveryStatus::InTransit.into(),
            time,
        };
        assert_eq!(event.payload, Some(Payload::VerifyAttempt(expected)));
    }

    #[test]
    fn a_delivery_status_is_typed() {
        let event = typed(
            "verify.delivery_status",
            &format!(
                r#"{{"id":"dls_1","attempt_id":"att_1","carrier_information":{{"mcc":208,"mnc":10}},
                    "status":"undeliverable","price":null,{COMMON}}}"#
            ),
        );
        let time = at("2025-03-04T17:59:19.067887456Z");
        let expected = VerifyDeliveryStatus {
            id: "dls_1".into(),
            attempt_id: "att_1".into(),
            verification_id: "vrf_1".into(),
            target: target(),
            price: None,
            metadata: metadata(),
            carrier_information: Some(CarrierInformation {
                mcc: "208".into(),
                mnc: "10".into(),
            }),
            channel: String::new(),
            status: "undeliverable".into(),
            known_status: DeliveryStatus::Undeliverable.into(),
            time,
        };
        assert_eq!(event.payload, Some(Payload::VerifyDeliveryStatus(expected)));
    }

    #[test]
    fn every_status_has_its_value_and_a_new_one_stays_as_it_was_sent() {
        for (known, status) in [
            (DeliveryStatus::Submitted, "submitted"),
            (DeliveryStatus::InTransit, "in_transit"),
            (DeliveryStatus::Delivered, "delivered"),
            (DeliveryStatus::Undeliverable, "undeliverable"),
            (DeliveryStatus::Unknown, "unknown"),
            (DeliveryStatus::Unspecified, "read"),
        ] {
            let json = json!({ "status": status, "delivery_status": status }).to_string();
            let Payload::VerifyDeliveryStatus(report) = payload("verify.delivery_status", &json)
            else {
                panic!("{status}");
            };
            assert_eq!((report.known_status(), &*report.status), (known, status));
            let Payload::VerifyAttempt(attempt) = payload("verify.attempt", &json) else {
                panic!("{status}");
            };
            assert_eq!(attempt.known_delivery_status(), known);
            assert_eq!(attempt.delivery_status, status);
        }
    }

    #[test]
    fn money_keeps_its_digits() {
        for amount in [
            "1.10",
            "1e-3",
            "0.1",
            "0",
            "-0.0",
            "1E+2",
            "0.1000000000000000055511151231257827",
            "123456789012345678901234567890.10",
            "1e400",
        ] {
            for sent in [amount.to_owned(), format!(r#""{amount}""#)] {
                let json = format!(r#"{{"price":{{"currency":"EUR","amount":{sent}}}}}"#);
                let Payload::VerifyAuthentication(it) = payload("verify.authentication", &json)
                else {
                    panic!("{sent}");
                };
                assert_eq!(it.price, Some(money(amount)), "{sent}");
                let json = format!(r#"{{"fee":{{"currency":"EUR","amount":{sent}}}}}"#);
                let sent_fee = payload("transactional.message.created", &json);
                let Payload::TransactionalMessage(it) = sent_fee else {
                    panic!("{sent}");
                };
                assert_eq!(it.fee, Some(money(amount)), "{sent}");
            }
        }
        for none in ["{}", r#"{"amount":null,"currency":null}"#] {
            let json = format!(r#"{{"price":{none}}}"#);
            let Payload::VerifyAuthentication(it) = payload("verify.authentication", &json) else {
                panic!("{none}");
            };
            assert_eq!(it.price, Some(Money::default()));
        }
    }

    #[test]
    fn metadata_has_the_correlation_id_only_where_it_is_preludes() {
        let metadata = r#"{"metadata":{"correlation_id":"x"}}"#;
        for (event_type, expected) in [
            ("verify.authentication", "x"),
            ("verify.attempt", "x"),
            ("verify.delivery_status", "x"),
            ("verify.something_new", "x"),
            // The app's own.
            ("user.session.created", ""),
        ] {
            assert_eq!(typed(event_type, metadata).correlation_id, expected);
        }
        let own = r#"{"correlation_id":"own","metadata":{"correlation_id":"x"}}"#;
        assert_eq!(typed("verify.attempt", own).correlation_id, "own");
        for metadata in [r#""x""#, "[]", "{}", r#"{"correlation_id":null}"#] {
            let event = typed("a.b", &format!(r#"{{"metadata":{metadata}}}"#));
            assert_eq!(event.correlation_id, "", "{metadata}");
        }
    }
}

mod notify {
    use super::*;

    #[test]
    fn a_created_message_is_typed() {
        let event = typed(
            "transactional.message.created",
            r#"{"id":"tx_1","to":"+33600000000","created_at":"2024-04-03T17:08:01.349000489Z",
                "expires_at":"2024-04-04T17:08:01Z","customer_uuid":"90c7e8b2","template_id":"template_1",
                "variables":{"name":"John"},"fee":{"amount":"0.009","currency":"EUR"},
                "correlation_id":"mine_1","tags":["a"]}"#,
        );
        let created_at = at("2024-04-03T17:08:01.349000489Z");
        assert_eq!((&*event.id, event.occurred_at), ("evt_1", created_at));
        assert_eq!((&*event.correlation_id, &*event.user_id), ("mine_1", ""));
        let name = prost_types::Value {
            kind: Some(Value::StringValue("John".into())),
        };
        let expected = TransactionalMessage {
            message_id: "tx_1".into(),
            known_status: TransactionalMessageStatus::Created.into(),
            to: "+33600000000".into(),
            template_id: "template_1".into(),
            variables: Some(Struct {
                fields: BTreeMap::from([("name".to_owned(), name)]),
            }),
            fee: Some(money("0.009")),
            customer_uuid: "90c7e8b2".into(),
            created_at,
            expires_at: at("2024-04-04T17:08:01Z"),
            correlation_id: "mine_1".into(),
            ..TransactionalMessage::default()
        };
        assert_eq!(event.payload, Some(Payload::TransactionalMessage(expected)));
    }

    #[test]
    fn all_six_types_are_reports_about_a_message() {
        let json = r#"{"message_id":"tx_1","attempt_id":"att_1","customer_uuid":"90c7e8b2",
            "created_at":"2024-04-03T17:08:02.123456789Z","correlation_id":"mine_1",
            "type":"transactional","channel":"sms","template_id":"template_1"}"#;
        for (name, status) in [
            ("created", TransactionalMessageStatus::Created),
            ("submitted", TransactionalMessageStatus::Submitted),
            (
                "pending_delivery",
                TransactionalMessageStatus::PendingDelivery,
            ),
            ("delivered", TransactionalMessageStatus::Delivered),
            ("failed", TransactionalMessageStatus::Failed),
            ("unknown", TransactionalMessageStatus::Unknown),
        ] {
            let event = typed(&format!("transactional.message.{name}"), json);
            let expected = TransactionalMessage {
                message_id: "tx_1".into(),
                attempt_id: "att_1".into(),
                known_status: status.into(),
                r#type: "transactional".into(),
                channel: "sms".into(),
                template_id: "template_1".into(),
                customer_uuid: "90c7e8b2".into(),
                created_at: at("2024-04-03T17:08:02.123456789Z"),
                correlation_id: "mine_1".into(),
                ..TransactionalMessage::default()
            };
            assert_eq!(event.payload, Some(Payload::TransactionalMessage(expected)));
            assert_eq!(event.r#type, format!("transactional.message.{name}"));
        }
    }

    #[test]
    fn the_status_that_was_sent_comes_before_that_of_the_type() {
        for (status, known) in [
            (json!("expired"), TransactionalMessageStatus::Expired),
            (json!("failed"), TransactionalMessageStatus::Failed),
            (json!("lost"), TransactionalMessageStatus::Failed),
            (json!(""), TransactionalMessageStatus::Failed),
            (json!(null), TransactionalMessageStatus::Failed),
        ] {
            let json = json!({"status": status, "reason": "carrier_rejected"}).to_string();
            let Payload::TransactionalMessage(it) = payload("transactional.message.failed", &json)
            else {
                panic!("{json}");
            };
            assert_eq!(it.known_status(), known, "{json}");
            assert_eq!(it.status, status.as_str().unwrap_or_default());
            let rejected = TransactionalMessageFailureReason::CarrierRejected;
            assert_eq!(
                (it.known_reason(), &*it.reason),
                (rejected, "carrier_rejected")
            );
        }
    }

    #[test]
    fn other_events_of_notify_stay_raw_and_are_found_by_what_is_documented() {
        for event_type in [
            "marketing.message.delivered",
            "subscription.stop",
            "inbound.message.received",
        ] {
            let event = typed(
                event_type,
                r#"{"phone_number":"+33600000000","status":"x","created_at":"2026-01-01T00:00:00Z",
                    "correlation_id":"mine_1"}"#,
            );
            assert_eq!((event.payload, event.payload_issue), (None, 0));
            assert_eq!(event.r#type, event_type);
            assert_eq!(event.occurred_at, at("2026-01-01T00:00:00Z"));
            assert_eq!(event.correlation_id, "mine_1");
        }
    }
}

mod times {
    use super::*;

    #[test]
    fn every_type_has_its_time_in_any_form_and_then_the_documented_fallbacks() {
        for known in TYPES {
            for (date, expected) in [
                ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
                ("2026-01-02T03:04:05.1Z", "2026-01-02T03:04:05.1Z"),
                ("2026-01-02T03:04:05.12+00:00", "2026-01-02T03:04:05.12Z"),
                ("2026-01-02T03:04:05.123+05:30", "2026-01-01T21:34:05.123Z"),
                (
                    "2026-01-02T03:04:05.1234-08:00",
                    "2026-01-02T11:04:05.1234Z",
                ),
                ("2026-01-02t03:04:05.12345z", "2026-01-02T03:04:05.12345Z"),
                ("2026-01-02T03:04:05.123456Z", "2026-01-02T03:04:05.123456Z"),
                (
                    "2026-01-02T03:04:05.1234567Z",
                    "2026-01-02T03:04:05.1234567Z",
                ),
                (
                    "2026-01-02T03:04:05.12345678Z",
                    "2026-01-02T03:04:05.12345678Z",
                ),
                (
                    "2026-01-02T03:04:05.123456789Z",
                    "2026-01-02T03:04:05.123456789Z",
                ),
            ] {
                let item = json!({
                    "type": known.name, "created_at": "2000-01-01T00:00:00Z",
                    "payload": {known.time: date, "expires_at": "2999-01-01T00:00:00Z"},
                });
                let event = event(&item.to_string());
                assert_eq!(event.occurred_at, at(expected), "{item}");
            }
            let beside = json!({"type": known.name, "created_at": "2026-01-01T00:00:01Z",
                "payload": {known.time: null, "occurred_at": null}});
            let time = at("2026-01-01T00:00:01Z");
            assert_eq!(event(&beside.to_string()).occurred_at, time, "{beside}");
            for other in [
                "occurred_at",
                "time",
                "revoked_at",
                "deleted_at",
                "updated_at",
            ] {
                let item = json!({"type": known.name, "payload": {other: "2026-01-01T00:00:01Z"}});
                assert_eq!(event(&item.to_string()).occurred_at, time, "{item}");
            }
        }
    }

    #[test]
    fn an_event_of_an_unknown_type_happened_at_any_documented_time() {
        for time in [
            "occurred_at",
            "time",
            "revoked_at",
            "deleted_at",
            "updated_at",
            "created_at",
        ] {
            let item = json!({"type": "a.b", "payload": {time: "2026-01-01T00:00:01Z"}});
            let happened = at("2026-01-01T00:00:01Z");
            assert_eq!(event(&item.to_string()).occurred_at, happened, "{item}");
        }
        let item = json!({"type": "a.b", "payload": {"expires_at": "2026-01-01T00:00:01Z"}});
        assert_eq!(event(&item.to_string()).occurred_at, None);
    }
}

mod issues {
    use super::*;

    fn issue(event: &Event) -> (PayloadIssue, &str, bool) {
        let is_typed = event.payload.is_some();
        (event.payload_issue(), &event.payload_issue_member, is_typed)
    }

    use PayloadIssue::{TextNotUnicode, WrongShape};

    /// A type, a member of its payload, what is wrong with it, and where.
    const UNTYPED: &[(&str, &str, PayloadIssue, &str)] = &[
        ("user.created", r#""profile":[]"#, WrongShape, "profile"),
        ("user.created", r#""profile":"x""#, WrongShape, "profile"),
        ("user.created", r#""source":7"#, WrongShape, "source"),
        (
            "user.created",
            r#""identifiers":{}"#,
            WrongShape,
            "identifiers",
        ),
        (
            "user.created",
            r#""identifiers":[7]"#,
            WrongShape,
            "identifiers",
        ),
        (
            "user.created",
            r#""identifiers":[null]"#,
            WrongShape,
            "identifiers",
        ),
        (
            "user.created",
            r#""identifiers":[{},{"type":1}]"#,
            WrongShape,
            "identifiers.type",
        ),
        (
            "user.created",
            r#""identifiers":[{"value":"\ud800"}]"#,
            TextNotUnicode,
            "identifiers.value",
        ),
        (
            "user.created",
            r#""created_at":1700000000"#,
            WrongShape,
            "created_at",
        ),
        (
            "user.created",
            r#""created_at":"yesterday""#,
            WrongShape,
            "created_at",
        ),
        (
            "user.created",
            r#""source":"a\udc00""#,
            TextNotUnicode,
            "source",
        ),
        ("user.created", r#""user_id":{}"#, WrongShape, "user_id"),
        (
            "step_up.hook_failed",
            r#""reason":{}"#,
            WrongShape,
            "reason",
        ),
        ("verify.attempt", r#""price":0.1"#, WrongShape, "price"),
        (
            "verify.attempt",
            r#""price":{"amount":true}"#,
            WrongShape,
            "price.amount",
        ),
        (
            "verify.attempt",
            r#""price":{"amount":"\ud800"}"#,
            TextNotUnicode,
            "price.amount",
        ),
        (
            "transactional.message.failed",
            r#""status":7"#,
            WrongShape,
            "status",
        ),
        (
            "transactional.message.failed",
            r#""expires_at":7"#,
            WrongShape,
            "expires_at",
        ),
        (
            "transactional.message.failed",
            r#""id":7"#,
            WrongShape,
            "message_id",
        ),
    ];

    #[test]
    fn a_payload_that_cannot_be_typed_says_why() {
        for &(event_type, members, kind, member) in UNTYPED {
            let event = typed(event_type, &format!("{{{members}}}"));
            assert_eq!(issue(&event), (kind, member, false), "{members}");
        }
        for payload in ["7", r#""x""#, "[]", "[{}]", "true"] {
            let event = typed("user.deleted", payload);
            assert_eq!(issue(&event), (WrongShape, "", false), "{payload}");
        }
    }

    #[test]
    fn what_can_be_typed_is_typed_and_says_what_is_not_exact() {
        use PayloadIssue::{DateOutOfRange, NumberOutOfRange};
        for (profile, kind, expected) in [
            (
                r#"{"a":"x\ud800y"}"#,
                TextNotUnicode,
                json!({"a": "x\u{fffd}y"}),
            ),
            (
                r#"{"a":["\udc00\ud83d\ude00\ud800\ud800"]}"#,
                TextNotUnicode,
                json!({"a": ["\u{fffd}\u{1f600}\u{fffd}\u{fffd}"]}),
            ),
            (r#"{"\ud800":1}"#, TextNotUnicode, json!({"\u{fffd}": 1.0})),
            (r#"{"a":1e400}"#, NumberOutOfRange, json!({"a": "1e400"})),
            (
                r#"{"a":{"b":-1e999,"c":"\ud800"}}"#,
                NumberOutOfRange,
                json!({"a": {"b": "-1e999", "c": "\u{fffd}"}}),
            ),
        ] {
            let event = typed("user.created", &format!(r#"{{"profile":{profile}}}"#));
            assert_eq!(issue(&event), (kind, "profile", true), "{profile}");
            let Some(Payload::UserCreated(created)) = event.payload else {
                panic!("{profile}");
            };
            assert_eq!(created.profile, Some(structure(&expected)), "{profile}");
        }
        for (event_type, member) in [
            ("user.deleted", "deleted_at"),
            ("verify.attempt", "time"),
            ("transactional.message.created", "expires_at"),
        ] {
            for date in ["0000-12-31T23:59:59Z", "9999-12-31T23:59:59-01:00"] {
                let event = typed(event_type, &json!({ member: date }).to_string());
                assert_eq!(issue(&event), (DateOutOfRange, member, true), "{date}");
                assert_eq!(event.occurred_at, None);
            }
        }
    }

    #[test]
    fn an_issue_without_a_message_comes_before_one_with_it() {
        let event = typed(
            "user.created",
            r#"{"profile":{"a":1e400},"source":7,"created_at":"0000-01-01T00:00:00Z"}"#,
        );
        assert_eq!(issue(&event), (PayloadIssue::WrongShape, "source", false));
        let event = typed(
            "user.created",
            r#"{"profile":{"a":1e400},"created_at":"0000-01-01T00:00:00Z"}"#,
        );
        assert_eq!(
            issue(&event),
            (PayloadIssue::NumberOutOfRange, "profile", true)
        );
    }

    #[test]
    fn two_names_that_would_become_one_leave_the_message_out() {
        let event = typed("user.created", r#"{"profile":{"\ud800":1,"\ud801":2}}"#);
        assert_eq!(
            issue(&event),
            (PayloadIssue::TextNotUnicode, "profile", false)
        );
    }

    #[test]
    fn limits_are_told_apart() {
        let profile = |profile: &str| {
            typed(
                "user.profile.updated",
                &format!(r#"{{"profile":{profile}}}"#),
            )
        };
        let deep = |levels: usize| {
            let (open, close) = (r#"{"a":"#.repeat(levels), "}".repeat(levels));
            profile(&format!("{open}1{close}"))
        };
        assert_eq!(issue(&deep(24)).0, PayloadIssue::Unspecified);
        let found = deep(25);
        assert_eq!(
            issue(&found),
            (PayloadIssue::NestedTooDeep, "profile", false)
        );
        let lists = format!(r#"{{"a":{}{}}}"#, "[".repeat(30), "]".repeat(30));
        let found = profile(&lists);
        assert_eq!(
            issue(&found),
            (PayloadIssue::NestedTooDeep, "profile", false)
        );

        let many =
            |values: usize| profile(&format!(r#"{{"a":[{}]}}"#, vec!["0"; values].join(",")));
        // The list is a value too.
        assert_eq!(issue(&many(65_535)).0, PayloadIssue::Unspecified);
        let found = many(65_536);
        assert_eq!(
            issue(&found),
            (PayloadIssue::TooManyValues, "profile", false)
        );

        let long = profile(&format!(r#"{{"a":"{}"}}"#, "x".repeat(1024 * 1024)));
        assert_eq!(issue(&long), (PayloadIssue::TooLarge, "", false));
    }

    #[test]
    fn no_issue_is_seen_where_there_is_none() {
        for (event_type, payload) in [
            ("user.deleted", r#"{"user_id":"usr_1"}"#),
            ("user.deleted", "null"),
            ("a.b", "7"),
            ("a.b", r#"{"profile":"\ud800","created_at":5}"#),
        ] {
            let event = typed(event_type, payload);
            assert_eq!(issue(&event).0, PayloadIssue::Unspecified, "{payload}");
            assert_eq!(event.payload_issue_member, "");
        }
    }

    #[test]
    fn the_issue_is_found_in_the_batch() {
        let items = [
            r#"{"type":"user.deleted"}"#,
            r#"{"type":"user.created","payload":{"identifiers":[{"value":1}]}}"#,
            r#"{"type":"user.deleted","payload":7}"#,
            r#"{"type":"user.deleted","payload":{"deleted_at":"0000-01-01T00:00:00Z"}}"#,
            "7",
        ];
        let batch = decode(body(&items)).unwrap();
        let found: Vec<_> = batch
            .drafts
            .iter()
            .map(|draft| super::super::payload_issue(&batch, draft))
            .collect();
        let expected = [
            None,
            Some((PayloadIssue::WrongShape, "identifiers.value")),
            Some((PayloadIssue::WrongShape, "")),
            Some((PayloadIssue::DateOutOfRange, "deleted_at")),
            None,
        ];
        assert_eq!(found, expected);
    }

    /// The name of a member is at most 127 bytes, so that its length has one byte.
    #[test]
    fn the_names_of_members_are_short() {
        for known in TYPES {
            for member in known.members {
                assert!(member.name.len() < 60, "{}", member.name);
            }
        }
    }
}

/// What a JSON object is as a `Struct`, by another parser.
fn structure(json: &serde_json::Value) -> Struct {
    match kind(json) {
        Value::StructValue(structure) => structure,
        other => panic!("{other:?}"),
    }
}

fn kind(json: &serde_json::Value) -> Value {
    let value = |json| prost_types::Value {
        kind: Some(kind(json)),
    };
    match json {
        serde_json::Value::Null => Value::NullValue(NullValue::NullValue.into()),
        serde_json::Value::Bool(it) => Value::BoolValue(*it),
        serde_json::Value::Number(it) => Value::NumberValue(it.as_f64().unwrap()),
        serde_json::Value::String(it) => Value::StringValue(it.clone()),
        serde_json::Value::Array(items) => Value::ListValue(ListValue {
            values: items.iter().map(value).collect(),
        }),
        serde_json::Value::Object(members) => Value::StructValue(Struct {
            fields: members
                .iter()
                .map(|(name, it)| (name.clone(), value(it)))
                .collect(),
        }),
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        // A double that another parser reads exactly.
        (-1_000_000..1_000_000).prop_map(|it: i32| (f64::from(it) / 64.0).into()),
        any::<String>().prop_map(Into::into),
        Just("\"\\\u{8}\u{c}\n\r\t/\u{0}\u{1f600}".into()),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            proptest::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A string with every character as an escape.
fn escaped(text: &str) -> String {
    let units = text.encode_utf16();
    units.map(|unit| format!("\\u{unit:04X}")).collect()
}

proptest! {
    #[test]
    fn a_free_form_object_is_what_another_parser_reads(
        members in proptest::collection::btree_map(any::<String>(), any_json(), 0..6),
        pretty: bool,
    ) {
        let profile = serde_json::Value::Object(members.into_iter().collect());
        let json = json!({ "profile": profile });
        let json = if pretty { format!("{json:#}") } else { json.to_string() };
        let event = typed("user.profile.updated", &json);
        prop_assert_eq!(event.payload_issue(), PayloadIssue::Unspecified);
        let Some(Payload::UserProfileUpdated(updated)) = event.payload else {
            panic!("{json}");
        };
        prop_assert_eq!(updated.profile, Some(structure(&profile)));
    }

    #[test]
    fn escapes_are_characters(text: String) {
        let json = format!(r#"{{"profile":{{"{0}":"{0}"}}}}"#, escaped(&text));
        let event = typed("user.profile.updated", &json);
        let Some(Payload::UserProfileUpdated(updated)) = event.payload else {
            panic!("{json}");
        };
        prop_assert_eq!(updated.profile, Some(structure(&json!({ &*text: text }))));
    }

    #[test]
    fn code_units_that_are_no_text_become_replacement_characters(units: Vec<u16>) {
        let sent: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
        let event = typed("user.profile.updated", &format!(r#"{{"profile":{{"a":"{sent}"}}}}"#));
        let Some(Payload::UserProfileUpdated(updated)) = &event.payload else {
            panic!("{sent}");
        };
        let text = String::from_utf16_lossy(&units);
        prop_assert_eq!(&updated.profile, &Some(structure(&json!({ "a": text }))));
        let is_exact = String::from_utf16(&units).is_ok();
        prop_assert_eq!(event.payload_issue() == PayloadIssue::Unspecified, is_exact);
    }

    /// Neither does any payload make it panic, nor is an event ever something else than a message.
    #[test]
    fn any_payload_of_any_type_is_an_event(
        known in proptest::sample::select((0..TYPES.len()).collect::<Vec<_>>()),
        values in proptest::collection::vec(any_json(), 1..12),
    ) {
        let known = &TYPES[known];
        let members = known.members.iter().map(|member| member.name.to_owned());
        let payload: serde_json::Map<_, _> = members.zip(values).collect();
        let item = json!({"type": known.name, "payload": payload});
        let event = event(&item.to_string());
        let is_whole = event.payload_issue() == PayloadIssue::Unspecified;
        prop_assert!(event.payload.is_some() || !is_whole || known.name == ADDED.name);
    }
}
