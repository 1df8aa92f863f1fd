use proptest::prelude::*;
use prost::Message as _;
use prost_types::value::Kind;
use serde_json::json;

use super::*;
use crate::{
    event::UnixMicros,
    proto::{self, event::Payload},
    wire,
};

const APP: &str = "54e9ujn";

pub(super) fn decode(body: impl Into<Bytes>) -> Result<Batch, Error> {
    batch_of(body.into(), &APP.into(), "")
}

pub(super) fn body(items: &[&str]) -> String {
    format!(r#"{{"app_id":"{APP}","events":[{}]}}"#, items.join(","))
}

/// Decodes a batch of one item, and reads it back with the generated types.
pub(super) fn event(item: &str) -> proto::Event {
    let batch = decode(body(&[item])).unwrap();
    assert_eq!(batch.drafts.len(), 1, "{item}");
    let draft = &batch.drafts[0];
    assert_eq!(batch.raw_json(draft), item.as_bytes());
    let mut fields = batch.head(draft).to_vec();
    assert_eq!(
        draft.user_hash,
        match wire::user_id(&fields) {
            [] => 0,
            user => user_hash(str::from_utf8(user).unwrap()),
        }
    );
    fields.extend_from_slice(batch.payload(draft));
    let event = proto::Event::decode(fields.as_slice()).unwrap();
    assert_eq!(
        draft.key,
        EventKey::new(APP, &event.id, &event.r#type, item.as_bytes())
    );
    assert_eq!(*draft.event_type, *event.r#type);
    assert_eq!(event.app_id, APP);
    event
}

pub(super) fn at(text: &str) -> Option<prost_types::Timestamp> {
    let at: jiff::Timestamp = text.parse().unwrap();
    Some(prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    })
}

mod shapes {
    use super::*;

    #[test]
    fn the_primary_form_is_read_whole() {
        let event = event(
            r#" {"id":"evt_1","type":"user.created","created_at":"2026-01-02T03:04:06Z","payload":{
                "user_id":"usr_1","correlation_id":"corr_1","source":"api",
                "identifiers":[{"type":"email_address","value":"a@example.com","verified":true}],
                "profile":{"name":"Ada","age":36,"tags":["x",null,true],"empty":{}},
                "created_at":"2026-01-02T03:04:05.123456789+02:00"}}"#
                .trim(),
        );
        assert_eq!(event.id, "evt_1");
        assert_eq!(event.r#type, "user.created");
        assert_eq!(event.user_id, "usr_1");
        assert_eq!(event.correlation_id, "corr_1");
        assert_eq!(event.occurred_at, at("2026-01-02T01:04:05.123456789Z"));
        let Some(Payload::UserCreated(payload)) = event.payload else {
            panic!("no payload");
        };
        assert_eq!(payload.user_id, "usr_1");
        assert_eq!(payload.source, "api");
        assert_eq!(payload.correlation_id, "corr_1");
        assert_eq!(payload.created_at, at("2026-01-02T01:04:05.123456789Z"));
        assert_eq!(
            payload.identifiers,
            [proto::Identifier {
                r#type: "email_address".into(),
                value: "a@example.com".into(),
            }]
        );
        let profile = payload.profile.unwrap();
        assert_eq!(profile.fields.len(), 4);
        let kind = |name: &str| profile.fields[name].kind.clone().unwrap();
        assert_eq!(kind("age"), Kind::NumberValue(36.0));
        assert_eq!(kind("name"), Kind::StringValue("Ada".into()));
        assert!(matches!(kind("tags"), Kind::ListValue(list) if list.values.len() == 3));
    }

    #[test]
    fn every_type_of_a_user_has_its_payload() {
        let payload = json!({
            "user_id": "usr_1", "session_id": "ses_1", "source": "api", "correlation_id": "corr_1",
            "identifier": {"type": "phone_number", "value": "+33600000000"},
            "identifiers": [], "profile": {"a": 1}, "metadata": {"b": 2},
            "created_at": "2026-01-01T00:00:01Z", "updated_at": "2026-01-01T00:00:02Z",
            "deleted_at": "2026-01-01T00:00:03Z", "revoked_at": "2026-01-01T00:00:04Z",
        });
        for (event_type, second) in [
            ("user.created", 1),
            ("user.deleted", 3),
            ("user.profile.updated", 2),
            ("user.identifier.created", 1),
            ("user.identifier.deleted", 3),
            ("user.session.created", 1),
            ("user.session.revoked", 4),
        ] {
            let item = json!({"id": "evt_1", "type": event_type, "payload": payload});
            let event = event(&item.to_string());
            assert_eq!(
                event.occurred_at,
                at(&format!("2026-01-01T00:00:0{second}Z"))
            );
            let name = match event.payload.expect(event_type) {
                Payload::UserCreated(it) => (it.user_id == "usr_1").then_some("user.created"),
                Payload::UserDeleted(it) => it.deleted_at.map(|_| "user.deleted"),
                Payload::UserProfileUpdated(it) => it.profile.map(|_| "user.profile.updated"),
                Payload::UserIdentifierCreated(it) => {
                    it.identifier.map(|_| "user.identifier.created")
                }
                Payload::UserIdentifierDeleted(it) => {
                    it.identifier.map(|_| "user.identifier.deleted")
                }
                Payload::UserSessionCreated(it) => it.metadata.map(|_| "user.session.created"),
                Payload::UserSessionRevoked(it) => {
                    (it.session_id == "ses_1").then_some("user.session.revoked")
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(name, Some(event_type));
        }
    }

    #[test]
    fn the_other_plausible_forms_mean_the_same() {
        let inner = r#""user_id":"usr_1","deleted_at":"2026-01-02T03:04:05Z""#;
        let forms = [
            format!(r#"{{"id":"evt_1","type":"user.deleted","payload":{{{inner}}}}}"#),
            format!(r#"{{"id":"evt_1","event":"user.deleted","payload":{{{inner}}}}}"#),
            format!(r#"{{"id":"evt_1","type":"user.deleted","data":{{{inner}}}}}"#),
            format!(r#"{{"id":"evt_1","event":"user.deleted",{inner}}}"#),
            format!(r#"{{"payload":{{{inner}}},"type":"user.deleted","id":"evt_1"}}"#),
            format!(r#"{{"id":"evt_1","type":null,"event":"user.deleted","data":{{{inner}}}}}"#),
            format!(r#"{{"id":"evt_1","type":"user.deleted","payload":null,{inner}}}"#),
            format!(r#"{{"i\u0064":"evt\u005f1","t\u0079pe":"user.delet\u0065d",{inner}}}"#),
        ];
        for form in &forms {
            let event = event(form);
            assert_eq!(event.id, "evt_1", "{form}");
            assert_eq!(event.r#type, "user.deleted", "{form}");
            assert_eq!(event.user_id, "usr_1", "{form}");
            assert_eq!(event.occurred_at, at("2026-01-02T03:04:05Z"), "{form}");
            assert!(
                matches!(event.payload, Some(Payload::UserDeleted(_))),
                "{form}"
            );
        }
    }

    #[test]
    fn an_item_of_any_shape_is_an_event() {
        for item in [
            "7",
            "-1.5e300",
            "1e999",
            "\"text\"",
            "true",
            "null",
            "[]",
            "[{}]",
            "{}",
            r#"{"a":1}"#,
            r#"{"type":7}"#,
            r#"{"type":{"type":"user.created"}}"#,
            r#"{"\ud800":1}"#,
            r#"{"id":"evt_1","\udc00":1}"#,
        ] {
            let event = event(item);
            assert_eq!(event.r#type, "", "{item}");
            assert_eq!(event.payload, None, "{item}");
        }
    }

    #[test]
    fn an_unknown_type_keeps_everything_but_the_payload() {
        let event = event(
            r#"{"id":"evt_1","type":"user.suspended","created_at":"2026-01-01T00:00:01Z",
                "payload":{"user_id":"usr_1","created_at":"2020-01-01T00:00:00Z"}}"#,
        );
        assert_eq!(event.r#type, "user.suspended");
        assert_eq!(event.user_id, "usr_1");
        assert_eq!(event.occurred_at, at("2026-01-01T00:00:01Z"));
        assert_eq!(event.payload, None);
    }

    #[test]
    fn user_and_correlation_may_stand_beside_the_payload() {
        let event = event(
            r#"{"type":"x.y","user_id":"usr_1","correlation_id":"corr_1","payload":{"a":1}}"#,
        );
        assert_eq!(
            (event.user_id.as_str(), event.correlation_id.as_str()),
            ("usr_1", "corr_1")
        );
    }

    #[test]
    fn what_stands_beside_the_payload_never_replaces_an_id_of_the_payload() {
        let long = format!("\"{}\"", "u".repeat(ID_BYTES_MAX + 1));
        for (inner, expected) in [
            (r#""in""#, "in"),
            ("7", "7"),
            ("null", "out"),
            ("true", ""),
            ("{}", ""),
            (&long, ""),
        ] {
            let event = event(&format!(
                r#"{{"type":"x.y","user_id":"out","correlation_id":"out",
                    "payload":{{"user_id":{inner},"correlation_id":{inner}}}}}"#
            ));
            let found = (event.user_id.as_str(), event.correlation_id.as_str());
            assert_eq!(found, (expected, expected), "{inner}");
        }
    }
}

mod ambiguities {
    use super::*;

    #[track_caller]
    fn assert_ambiguous(body: &str, said: &str) {
        let error = decode(body.to_owned()).unwrap_err();
        assert!(matches!(error, Error::Ambiguous(_)), "{error}: {body}");
        assert_eq!(error.to_string(), said, "{body}");
        assert!(!both_ways_accept(body), "{body}");
    }

    /// Whether the walk takes a body that the parser would refuse.
    fn both_ways_accept(body: &str) -> bool {
        let (usual, any) = both_ways(body);
        usual.is_some() || any.is_ok()
    }

    #[test]
    fn a_body_has_no_member_twice() {
        let app = format!(r#""app_id":"{APP}""#);
        for (members, said) in [
            (format!(r#"{app},"events":[1],"events":[2,3]"#), "events"),
            (
                format!(r#"{app},"events":[{{}}],"events":[{{}}]"#),
                "events",
            ),
            (format!(r#"{app},"events":[],"event\u0073":[]"#), "events"),
            (format!(r#""app_id":"x","events":[],{app}"#), "app_id"),
            (format!(r#"{app},{app},"events":[]"#), "app_id"),
            (format!(r#"{app},"events":[],"ap\u0070_id":"x""#), "app_id"),
            (format!(r#"{app},"events":[],"x":1,"x":1"#), "(another)"),
            (
                format!(r#"{app},"é":1,"events":[],"\u00e9":1"#),
                "(another)",
            ),
            (format!(r#"{app},"":1,"events":[],"":1"#), "(another)"),
        ] {
            let said = format!("the body has its member {said} twice");
            assert_ambiguous(&format!("{{{members}}}"), &said);
        }
        // Many members, each once, and the first one again at the end.
        let many: String = (0..1_000).map(|i| format!(r#""m{i}":{i},"#)).collect();
        let good = format!(r#"{{{many}{app},"events":[1]}}"#);
        assert_eq!(decode(good.clone()).unwrap().drafts.len(), 1);
        let bad = good.replace("\"events\":[1]", "\"events\":[1],\"m0\":0");
        assert_ambiguous(&bad, "the body has its member (another) twice");
        // Names that are no Unicode are told apart by how they are written.
        let surrogates = format!(r#"{{{app},"\ud800":1,"\ud801":1,"":1,"events":[]}}"#);
        assert!(decode(surrogates).is_ok());
    }

    #[test]
    fn names_that_differ_only_in_case_are_one_where_they_are_read() {
        let app = format!(r#""app_id":"{APP}""#);
        let message = |object: &str, member: &str| {
            format!("{object} has its member {member} twice, but for upper and lower case")
        };
        for (members, said) in [
            (format!(r#"{app},"events":[],"Events":[1]"#), "events"),
            (format!(r#"{app},"APP_ID":"x","events":[]"#), "app_id"),
            (format!(r#"{app},"event\u017f":0,"events":[]"#), "events"),
            (format!(r#"{app},"events":[],"x":1,"X":1"#), "(another)"),
            (format!(r#"{app},"events":[],"é":1,"É":1"#), "(another)"),
        ] {
            assert_ambiguous(&format!("{{{members}}}"), &message("the body", said));
        }
        for (item, said) in [
            (r#"{"id":"1","ID":"2"}"#, message("events[0]", "id")),
            (r#"{"Type":"a","type":"b"}"#, message("events[0]", "type")),
            // Which one a reader that ignores case takes is not known either.
            (r#"{"Type":"a","TYPE":"b"}"#, message("events[0]", "type")),
            (
                r#"{"\u0055ser_id":1,"user_id":2}"#,
                message("events[0]", "user_id"),
            ),
            (
                r#"{"payload":{},"Payload":{}}"#,
                message("events[0]", "payload"),
            ),
            (
                r#"{"payload":{"user_id":"a","uſer_id":"b"}}"#,
                message("the payload of events[0]", "user_id"),
            ),
            (
                r#"{"data":{"Created_At":"a","created_at":"b"},"x":7}"#,
                message("the data of events[0]", "created_at"),
            ),
        ] {
            assert_ambiguous(&body(&[item]), &said);
        }
        let identifiers = r#"[{"value":"a","VALUE":"b"}]"#;
        let item = format!(r#"{{"type":"user.created","data":{{"identifiers":{identifiers}}}}}"#);
        let error = decode(body(&[&item])).unwrap_err().to_string();
        assert_eq!(error, message("the identifier of events[0]", "value"));
        // One of another case is no member that is read, and free-form names may be anything.
        let event = event(
            r#"{"Id":"1","type":"user.created","payload":{"User_id":"u","profile":{"a":1,"A":2}}}"#,
        );
        assert!(event.id.starts_with("syn_") && event.user_id.is_empty());
        let Some(Payload::UserCreated(payload)) = event.payload else {
            panic!("no payload");
        };
        assert_eq!(payload.profile.unwrap().fields.len(), 2);
    }

    #[test]
    fn an_event_has_no_member_twice_that_is_read() {
        for name in [
            "id",
            "type",
            "event",
            "payload",
            "data",
            "created_at",
            "app_id",
            "user_id",
            "correlation_id",
            "profile",
            "identifiers",
            "revoked_at",
        ] {
            let escaped = format!("\\u{:04x}{}", name.as_bytes()[0], &name[1..]);
            let said = format!("events[1] has its member {name} twice");
            for (second, value) in [
                (name, r#"{}"#),
                (name, r#""x""#),
                (name, "null"),
                (&escaped, r#"{}"#),
                (&escaped, "null"),
            ] {
                let items = [
                    format!(r#"{{"{name}":{{}},"{second}":{value}}}"#),
                    format!(r#"{{"{second}":{value},"x":[1],"{name}":{{}}}}"#),
                    format!(r#"{{"{name}":null,"{second}":{value}}}"#),
                ];
                for item in items {
                    assert_ambiguous(&body(&["{}", &item, "7"]), &said);
                }
            }
        }
    }

    #[test]
    fn a_payload_has_no_member_twice_that_is_read() {
        for name in [
            "user_id",
            "correlation_id",
            "created_at",
            "deleted_at",
            "occurred_at",
            "session_id",
            "source",
        ] {
            let said =
                |object: &str| format!("the {object} of events[0] has its member {name} twice");
            for object in ["payload", "data"] {
                for inner in [
                    format!(r#""{name}":"a","{name}":"b""#),
                    format!(r#""{name}":"a","x":1,"{name}":"a""#),
                    format!(r#""{name}":null,"{name}":"a""#),
                ] {
                    for more in ["", r#","other":null"#, r#","id":"evt_1","type":"x.y""#] {
                        let item = format!(r#"{{"{object}":{{{inner}}}{more}}}"#);
                        assert_ambiguous(&body(&[&item]), &said(object));
                    }
                    // Read by the parser because of the other one.
                    let other = if object == "data" { "payload" } else { "data" };
                    let item = format!(r#"{{"{other}":null,"{object}":{{{inner}}}}}"#);
                    assert_ambiguous(&body(&[&item]), &said(object));
                }
            }
        }
    }

    #[test]
    fn what_becomes_part_of_a_message_has_no_member_twice() {
        for (inner, said) in [
            (
                r#""identifiers":[{"type":"a","value":"b"},{"type":"a","type":"a"}]"#,
                "identifier of events[1] has its member type",
            ),
            (
                r#""identifiers":[{"value":"a","v\u0061lue":"b"}]"#,
                "identifier of events[1] has its member value",
            ),
            (
                r#""identifiers":[{"type":null,"type":"a"}]"#,
                "identifier of events[1] has its member type",
            ),
            (
                r#""profile":{"a":1,"a":2}"#,
                "profile of events[1] has its member (another)",
            ),
            (
                r#""profile":{"b":[{"a":1,"\u0061":1}]}"#,
                "profile of events[1] has its member (another)",
            ),
        ] {
            let item =
                format!(r#"{{"type":"user.created","payload":{{"user_id":"usr_1",{inner}}}}}"#);
            let said = format!("the {said} twice");
            let error = decode(body(&["{}", &item])).unwrap_err();
            assert_eq!(error.to_string(), said);
            // The same where the parser reads it.
            let error = decode(body(&["null", &item])).unwrap_err();
            assert_eq!(error.to_string(), said);
        }
    }

    #[test]
    fn two_names_for_the_same_thing_must_agree() {
        for (item, said) in [
            (
                r#"{"type":"user.created","event":"user.deleted"}"#,
                "type and event",
            ),
            (
                r#"{"event":"x","type":"y","payload":null}"#,
                "type and event",
            ),
            (
                r#"{"payload":{"user_id":"a"},"data":{"user_id":"b"}}"#,
                "payload and data",
            ),
            (
                r#"{"payload":{"user_id":"a"},"data":{}}"#,
                "payload and data",
            ),
            (
                r#"{"data":{"source":"b"},"payload":{}}"#,
                "payload and data",
            ),
        ] {
            let said = format!("events[0] has {said}, which are not the same");
            assert_ambiguous(&body(&[item]), &said);
        }
        for item in [
            r#"{"type":"user.created","event":"user.created"}"#,
            r#"{"type":"user.created","event":"us\u0065r.created"}"#,
            r#"{"type":"user.created","event":""}"#,
            r#"{"type":"user.created","event":null}"#,
            r#"{"type":"user.created","event":{"id":7}}"#,
            r#"{"type":"user.created","event":7}"#,
            r#"{"payload":{"user_id":"a"},"data":{"user_id":"a"}}"#,
            r#"{"payload":{"user_id":"a"},"data":{"x":1,"user_id":"a"}}"#,
            r#"{"payload":{"user_id":"a"},"data":{"source":null,"user_id":"a"}}"#,
            r#"{"payload":{"user_id":"a"},"data":"x"}"#,
            r#"{"payload":{"user_id":"a"},"data":null}"#,
        ] {
            assert_eq!(decode(body(&[item])).unwrap().drafts.len(), 1, "{item}");
        }
    }

    #[test]
    fn what_nothing_here_reads_may_be_there_twice() {
        for item in [
            r#"{"x":1,"x":2}"#,
            r#"{"type":"a.b","payload":{"x":1,"x":2,"user_id":"usr_1"}}"#,
            r#"{"payload":{"x":{"user_id":1,"user_id":2}}}"#,
            r#"{"type":"user.deleted","payload":{"profile":{"a":1,"a":2}}}"#,
            r#"[{"id":1,"id":2}]"#,
            r#"{"payload":[{"user_id":1,"user_id":2}]}"#,
        ] {
            let batch = decode(body(&[item])).unwrap();
            assert_eq!(batch.raw_json(&batch.drafts[0]), item.as_bytes());
        }
    }

    #[test]
    fn values_are_not_shown() {
        let item = r#"{"secret":1,"user_id":"secret","user_id":"secret"}"#;
        let twice = format!(r#"{{"app_id":"{APP}","events":[],"secret":1,"secret":2}}"#);
        for body in [body(&[item]), twice] {
            let error = decode(body).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"));
        }
    }
}

mod ids {
    use super::*;

    #[test]
    fn a_number_is_an_id_by_its_text() {
        assert_eq!(
            event(r#"{"id":123456789012345678901234567890}"#).id.len(),
            30
        );
        assert_eq!(event(r#"{"id":1.50}"#).id, "1.50");
    }

    #[test]
    fn an_event_without_an_id_gets_one_from_its_bytes() {
        let first = event(r#"{"type":"user.deleted"}"#).id;
        assert!(first.starts_with("syn_") && first.len() == 26, "{first}");
        assert_eq!(first, event(r#"{"type":"user.deleted"}"#).id);
        assert_ne!(first, event(r#"{"type":"user.deleted" }"#).id);
        assert_ne!(first, event(r#"{"type":"user.created"}"#).id);
        assert_ne!(synthetic_id("a", "bc", ""), synthetic_id("ab", "c", ""));
        for id in ["\"\"", "null", "true", "{}", r#""\ud800""#] {
            assert!(
                event(&format!(r#"{{"id":{id}}}"#)).id.starts_with("syn_"),
                "{id}"
            );
        }
    }

    #[test]
    fn ids_and_types_have_a_longest_length() {
        let item = |id: usize, kind: usize, user: usize| {
            event(&format!(
                r#"{{"id":"{}","type":"{}","payload":{{"user_id":"{}"}}}}"#,
                "i".repeat(id),
                "t".repeat(kind),
                "u".repeat(user)
            ))
        };
        let longest = item(ID_BYTES_MAX, TYPE_BYTES_MAX, ID_BYTES_MAX);
        assert_eq!(longest.id.len(), ID_BYTES_MAX);
        assert_eq!(longest.r#type.len(), TYPE_BYTES_MAX);
        assert_eq!(longest.user_id.len(), ID_BYTES_MAX);
        let longer = item(ID_BYTES_MAX + 1, TYPE_BYTES_MAX + 1, ID_BYTES_MAX + 1);
        assert!(longer.id.starts_with("syn_"));
        assert_eq!(longer.r#type, "");
        assert_eq!(longer.user_id, "");
    }

    #[test]
    fn escaped_control_characters_are_text_like_any_other() {
        let event = event(r#"{"id":"a\u0000b","type":"x\ny","payload":{"user_id":"\u00e9\"\\"}}"#);
        assert_eq!(event.id, "a\0b");
        assert_eq!(event.r#type, "x\ny");
        assert_eq!(event.user_id, "é\"\\");
    }

    #[test]
    fn the_documented_types_share_their_names() {
        let batch = decode(body(&[
            r#"{"type":"user.created"}"#,
            r#"{"type":"user.created"}"#,
        ]));
        let drafts = batch.unwrap().drafts;
        assert!(Arc::ptr_eq(&drafts[0].event_type, &drafts[1].event_type));
    }
}

mod payloads {
    use super::*;

    #[test]
    fn what_is_missing_or_null_has_the_default() {
        for payload in ["{}", r#"{"user_id":null,"deleted_at":null}"#] {
            let event = event(&format!(r#"{{"type":"user.deleted","payload":{payload}}}"#));
            let expected = Payload::UserDeleted(proto::UserDeleted::default());
            assert_eq!(event.payload, Some(expected));
            assert_eq!(event.occurred_at, None);
        }
    }

    #[test]
    fn a_field_of_the_wrong_shape_leaves_the_message_out_and_all_else_in() {
        for wrong in [
            r#""profile":[]"#,
            r#""profile":"x""#,
            r#""source":7"#,
            r#""identifiers":{}"#,
            r#""identifiers":[7]"#,
            r#""identifiers":[{"type":1}]"#,
            r#""created_at":1700000000"#,
            r#""created_at":"yesterday""#,
            r#""source":"\ud800""#,
        ] {
            let event = event(&format!(
                r#"{{"id":"evt_1","type":"user.created","created_at":"2026-01-01T00:00:01Z","payload":{{"user_id":"usr_1",{wrong}}}}}"#
            ));
            assert_eq!(event.payload, None, "{wrong}");
            assert_eq!(event.id, "evt_1");
            assert_eq!(event.r#type, "user.created");
            assert_eq!(event.user_id, "usr_1");
            assert_eq!(event.occurred_at, at("2026-01-01T00:00:01Z"), "{wrong}");
        }
        let no_object = event(r#"{"type":"user.created","user_id":"usr_1","payload":"x"}"#);
        assert_eq!(
            (no_object.payload, no_object.user_id.as_str()),
            (None, "usr_1")
        );
    }

    #[test]
    fn dates_have_any_offset_and_any_number_of_digits() {
        let when = |date: &str| {
            let json = json!({"type": "user.deleted", "payload": {"deleted_at": date}});
            let event = event(&json.to_string());
            let Some(Payload::UserDeleted(payload)) = event.payload else {
                assert_eq!(event.occurred_at, None, "{date}");
                return None;
            };
            assert_eq!(payload.deleted_at, event.occurred_at);
            payload.deleted_at
        };
        for (date, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("1970-01-01T00:00:01.5Z", 1, 500_000_000),
            ("1970-01-01T00:00:01.123456789Z", 1, 123_456_789),
            ("1970-01-01T02:00:01-01:00", 10_801, 0),
            ("1969-12-31T23:59:59.75Z", -1, 750_000_000),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            (
                "9999-12-30T21:59:59.999999999Z",
                253_402_207_199,
                999_999_999,
            ),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
            (
                "2025-03-15T10:30:00.1234567890Z",
                1_742_034_600,
                123_456_789,
            ),
            ("2016-12-31T23:59:60.5Z", 1_483_228_799, 999_999_999),
        ] {
            assert_eq!(
                when(date),
                Some(prost_types::Timestamp { seconds, nanos }),
                "{date}"
            );
        }
        for date in [
            "",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "0000-12-31T23:59:59Z",
        ] {
            assert_eq!(when(date), None, "{date}");
        }
    }

    #[test]
    fn a_date_that_the_contract_cannot_hold_is_left_out_and_the_payload_stays() {
        for date in ["0000-12-31T23:59:59Z", "9999-12-31T23:59:59-01:00"] {
            let json = json!({"type": "user.deleted", "payload": {"user_id": "usr_1", "deleted_at": date}});
            let event = event(&json.to_string());
            let Some(Payload::UserDeleted(payload)) = event.payload else {
                unreachable!("{date}: {:?}", event.payload);
            };
            assert_eq!((payload.deleted_at, event.occurred_at), (None, None));
            assert_eq!(payload.user_id, "usr_1");
        }
    }

    #[test]
    fn a_type_that_is_new_may_say_when_it_occurred() {
        for payload in [
            json!({"occurred_at": "2026-01-01T00:00:01Z", "created_at": "2020-01-01T00:00:00Z"}),
            json!({"occurred_at": 5, "created_at": "2026-01-01T00:00:01Z"}),
        ] {
            let json = json!({"type": "migration.hook_failed", "payload": payload});
            assert_eq!(
                event(&json.to_string()).occurred_at,
                at("2026-01-01T00:00:01Z")
            );
        }
    }

    #[test]
    fn a_batch_has_the_dates_of_its_first_and_its_last_event() {
        let dates = |items: &[&str]| {
            let dates = decode(body(items)).unwrap().dates;
            let second = |at: Option<UnixMicros>| at.map(|at| at.0 / 1_000_000);
            (second(dates.oldest), second(dates.newest))
        };
        let second = |n| format!("1970-01-01T00:00:{n:02}Z");
        // The later one of the documented date and the one beside the payload.
        let created = |inner, beside| {
            let payload = json!({"created_at": second(inner)});
            json!({"type": "user.created", "created_at": second(beside), "payload": payload})
                .to_string()
        };
        let (early, late) = (created(3, 5), created(40, 6));
        assert_eq!(dates(&[&late, "{}", "7", &early]), (Some(5), Some(40)));
        // In the body's other shape too, which another walk reads.
        let unusual = format!(r#"{{"payload":7,"created_at":"{}"}}"#, second(9));
        assert_eq!(dates(&[&unusual]), (Some(9), Some(9)));
        for undated in [&[][..], &["{}"], &[r#"{"created_at":"yesterday"}"#], &["7"]] {
            assert_eq!(dates(undated), (None, None), "{undated:?}");
        }
    }

    #[test]
    fn a_free_form_object_has_a_deepest_level() {
        let nested = |levels: usize| {
            let (open, close) = (r#"{"a":"#.repeat(levels), "}".repeat(levels));
            event(&format!(
                r#"{{"type":"user.profile.updated","payload":{{"profile":{open}1{close}}}}}"#
            ))
        };
        assert!(nested(24).payload.is_some());
        assert!(nested(25).payload.is_none());
    }

    #[test]
    fn a_free_form_object_has_a_largest_size() {
        let wide = |values: usize| {
            event(&format!(
                r#"{{"type":"user.profile.updated","payload":{{"profile":{{"a":[{}]}}}}}}"#,
                vec!["0"; values].join(",")
            ))
        };
        // A number in a list takes 13 bytes.
        assert!(wide(60_000).payload.is_some());
        assert!(wide(66_000).payload.is_none());
        // Two tags and two lengths around the text take 9 bytes.
        let long = |bytes: usize| {
            let text = "x".repeat(bytes);
            event(&format!(
                r#"{{"type":"user.created","payload":{{"source":"{text}"}}}}"#
            ))
        };
        assert!(long(1024 * 1024 - 9).payload.is_some());
        assert!(long(1024 * 1024 - 8).payload.is_none());
    }

    #[test]
    fn a_very_deep_item_passes_through() {
        let item = format!(
            r#"{{"id":"evt_1","type":"user.created","payload":{{"user_id":"usr_1","profile":{}{}}}}}"#,
            r#"{"a":["#.repeat(5_000),
            "]}".repeat(5_000)
        );
        let event = event(&item);
        assert_eq!(
            (event.id.as_str(), event.user_id.as_str()),
            ("evt_1", "usr_1")
        );
        assert_eq!(event.payload, None);
        let bare = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(super::event(&bare).r#type, "");
    }
}

mod envelopes {
    use super::*;

    #[test]
    fn what_is_no_batch_is_refused_by_its_cause() {
        let not_json = |line, column| Error::NotJson { line, column };
        let good = body(&[]);
        for (body, expected) in [
            ("", not_json(1, 0)),
            ("{", not_json(1, 1)),
            ("{]", not_json(1, 2)),
            (&format!("\u{feff}{good}"), not_json(1, 1)),
            (&format!("{good}x"), not_json(1, good.len() + 1)),
            (&format!("{good}\n{good}"), not_json(2, 1)),
            ("[]", Error::NotObject),
            ("7", Error::NotObject),
            ("\"secret\"", Error::NotObject),
            ("null", Error::NotObject),
            ("{}", Error::NoAppId),
            (r#"{"events":[]}"#, Error::NoAppId),
            (r#"{"app_id":7,"events":[]}"#, Error::NoAppId),
            (r#"{"app_id":null,"events":[]}"#, Error::NoAppId),
            (r#"{"app_id":"other","events":[]}"#, Error::OtherApp),
            (r#"{"app_id":"54E9UJN","events":[]}"#, Error::OtherApp),
            (r#"{"app_id":"54e9ujn"}"#, Error::NoEvents),
            (r#"{"app_id":"54e9ujn","events":null}"#, Error::NoEvents),
            (r#"{"app_id":"54e9ujn","events":{}}"#, Error::NoEvents),
            (r#"{"app_id":"54e9ujn","events":"secret"}"#, Error::NoEvents),
            (
                "{\"app_id\":\"54e9ujn\",\"events\":[\"\u{0}\"]}",
                not_json(1, 31),
            ),
            (r#"{"app_id":"54e9ujn","events":[1,]}"#, not_json(1, 33)),
        ] {
            let error = decode(body.to_owned()).unwrap_err();
            assert_eq!(error, expected, "{body}");
            assert!(!error.to_string().contains("secret"));
        }
        let not_utf8 = decode(&b"{\"app_id\":\"\xff\"}"[..]).unwrap_err();
        assert_eq!(not_utf8, Error::NotUtf8 { at: 11 });
    }

    #[test]
    fn a_batch_may_be_empty_and_have_members_that_nobody_knows() {
        let body = format!(
            "\n {{\"x\":{{\"events\":1}},\"\\ud800\":1,\"events\" : [ ] ,\"app\\u005fid\":\"{APP}\"}}\n"
        );
        assert_eq!(decode(body).unwrap().drafts.len(), 0);
    }

    #[test]
    fn a_batch_has_a_largest_number_of_events() {
        let zeros = |count| decode(body(&vec!["0"; count]));
        assert_eq!(zeros(EVENTS_MAX).unwrap().drafts.len(), EVENTS_MAX);
        assert_eq!(zeros(EVENTS_MAX + 1).unwrap_err(), Error::TooManyEvents);
    }

    #[test]
    fn raw_json_is_the_item_without_the_space_around_it() {
        let body = body(&["  { \"a\" : 1 }\n", "\t7 ", "\"\\u00e9\""]);
        let batch = decode(body).unwrap();
        let raw: Vec<&[u8]> = batch
            .drafts
            .iter()
            .map(|draft| batch.raw_json(draft))
            .collect();
        assert_eq!(raw, [&b"{ \"a\" : 1 }"[..], b"7", b"\"\\u00e9\""]);
    }

    #[test]
    fn every_event_carries_the_trace_of_its_request() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let batch = batch_of(body(&["1"]).into(), &APP.into(), trace).unwrap();
        let event = proto::Event::decode(batch.head(&batch.drafts[0])).unwrap();
        assert_eq!(event.traceparent, trace);
    }

    #[test]
    fn the_claimed_app_is_what_decoding_will_find() {
        assert_eq!(claimed_app_id(body(&[]).as_bytes()).as_deref(), Some(APP));
        let twice = br#"{"app_id":"a","app_id":"\u0062"}"#;
        assert_eq!(claimed_app_id(twice).as_deref(), Some("b"));
        for none in [
            "",
            "{}",
            "[]",
            r#"{"app_id":1}"#,
            r#"{"app_id":"a"#,
            r#"{"app_id":"a"} x"#,
        ] {
            assert_eq!(claimed_app_id(none.as_bytes()), None, "{none}");
        }
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let name = prop_oneof![
        proptest::sample::select(vec![
            "id",
            "type",
            "event",
            "payload",
            "data",
            "user_id",
            "created_at",
            "profile",
            "metadata",
            "identifier",
            "identifiers",
            "value",
            "source",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        proptest::sample::select(event_types().collect::<Vec<_>>()).prop_map(Into::into),
        Just("2026-01-01T00:00:00Z".into()),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            proptest::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The two ways of reading a body: what of it is usual, and any.
fn both_ways(body: &str) -> (Option<Encoded>, Result<Encoded, Error>) {
    let app_id: Arc<str> = APP.into();
    let mut usual = Encoder::new(body, &app_id, "");
    let is_usual = usual.push_usual();
    let mut any = Encoder::new(body, &app_id, "");
    let result = any.push_any();
    (
        is_usual.then(|| encoded(usual)),
        result.map(|()| encoded(any)),
    )
}

type Encoded = (Vec<u8>, String);

fn encoded(encoder: Encoder<'_>) -> Encoded {
    let rest = format!("{:?} {:?}", encoder.drafts, encoder.ambiguity);
    (encoder.encoded, rest)
}

fn any_space() -> impl Strategy<Value = &'static str> {
    let odd = proptest::sample::select(vec![" ", "\n\t", "\r", "\u{a0}"]);
    prop_oneof![20 => Just(""), 1 => odd]
}

/// Names as they may be written, and with some luck what is none.
fn any_name() -> impl Strategy<Value = &'static str> {
    let good = proptest::sample::select(vec![
        r#""id""#,
        r#""type""#,
        r#""event""#,
        r#""user_id""#,
        r#""user\u005fid""#,
        r#""created_at""#,
        r#""source""#,
        r#""\ud800""#,
    ]);
    let nested = proptest::sample::select(vec![r#""payload""#, r#""data""#, r#""events""#, "1"]);
    prop_oneof![20 => good, 1 => nested]
}

/// JSON as no serializer writes it: members twice, any space, numbers and escapes of any form, and
/// with some luck also what is no JSON.
fn any_text() -> impl Strategy<Value = String> {
    let good = proptest::sample::select(vec![
        "null",
        "true",
        "1e999",
        "-0.0",
        "18446744073709551616",
        r#""""#,
        r#""a\"b""#,
        r#""\ud83d\ude00""#,
        r#""\ud800""#,
        r#""user.created""#,
        r#""2026-01-01T00:00:00Z""#,
    ]);
    let bad = proptest::sample::select(vec!["01", "nul", "\"\t\"", ""]);
    let leaf = prop_oneof![40 => good, 1 => bad].prop_map(str::to_owned);
    leaf.prop_recursive(3, 12, 4, |inner| {
        let list = (proptest::collection::vec(inner.clone(), 0..4), any_space())
            .prop_map(|(items, space)| format!("[{}{space}]", items.join(",")));
        prop_oneof![list, any_object(inner)]
    })
}

fn any_object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let member = (any_space(), any_name(), any_space(), value)
        .prop_map(|(before, name, after, value)| format!("{before}{name}{after}:{value}"));
    let comma = prop_oneof![20 => Just(","), 1 => Just(" ,"), 1 => Just(",,")];
    (proptest::collection::vec(member, 0..5), comma, any_space())
        .prop_map(|(members, comma, space)| format!("{{{}{space}}}", members.join(comma)))
}

/// An event, most likely of an acceptable form.
fn any_event() -> impl Strategy<Value = String> {
    let nested = (
        proptest::sample::select(vec!["payload", "data"]),
        any_object(any_text()),
    )
        .prop_map(|(name, object)| format!(r#""{name}":{object}"#));
    let id = any_text().prop_map(|id| format!(r#""id":{id}"#));
    let event_type = Just(r#""type":"user.created""#.to_owned());
    let usual = proptest::collection::vec(prop_oneof![nested, id, event_type], 0..5)
        .prop_map(|members| format!("{{{}}}", members.join(",")));
    prop_oneof![6 => usual, 2 => any_object(any_text()), 1 => any_text()]
}

#[test]
fn the_usual_bodies_are_read_in_one_walk() {
    for payload in [
        r#""payload":{"user_id":"usr_1"}"#,
        r#""data":{}"#,
        r#""user_id":"usr_1""#,
    ] {
        let body = format!(
            " {{\"events\" : [ {{\"type\":\"user.created\",{payload}}} , {{}} ] , \"app_id\":\"{APP}\", \"x\":[1] }}\n"
        );
        let (usual, any) = both_ways(&body);
        assert_eq!(usual, any.ok());
        assert!(usual.is_some(), "{body}");
    }
    for body in [body(&[]), body(&["{}"])] {
        assert!(both_ways(&body).0.is_some(), "{body}");
    }
}

#[test]
fn what_is_unusual_or_no_batch_is_left_to_the_parser() {
    let body = body(&["{}"]);
    for broken in [
        body.replace('}', ""),
        body.replace("{}", "{},"),
        body.replace("{}", "1"),
        body.replace("{}", r#"{"payload":null}"#),
        body.replace("{}", r#"{"payload":[]}"#),
        body.replace(APP, "other"),
        body.replace("app_id", "app"),
        body.replace("events", "event"),
        body.replace("\"events\"", "events"),
        body.replace("\"events\":[", "\"events\":[],\"events\":["),
        body.replace("\"app_id\":", "1:1,\"app_id\":"),
        format!("{body} x"),
        format!("[{body}]"),
        String::new(),
    ] {
        assert_eq!(both_ways(&broken).0, None, "{broken}");
    }
}

proptest! {
    /// The walk may leave a body to the parser, but never read it otherwise.
    #[test]
    fn the_walk_reads_what_the_parser_reads(
        items in proptest::collection::vec(any_event(), 0..4),
        members in proptest::collection::vec(any_text(), 0..2),
        app_first: bool,
    ) {
        let app = format!(r#""app_id":"{APP}""#);
        let mut parts = vec![format!(r#""events":[{}]"#, items.join(","))];
        parts.extend(members.iter().map(|value| format!(r#""other":{value}"#)));
        parts.insert(if app_first { 0 } else { parts.len() }, app);
        let (usual, any) = both_ways(&format!("{{{}}}", parts.join(",")));
        if let Some(usual) = usual {
            prop_assert_eq!(Ok(usual), any);
        }
    }

    #[test]
    fn every_item_is_an_event_whose_json_is_what_was_sent(
        items in proptest::collection::vec(any_json(), 0..6),
        pretty: bool,
    ) {
        let sent = json!({"app_id": APP, "events": items});
        let body = if pretty { format!("{sent:#}") } else { sent.to_string() };
        if let (Some(usual), any) = both_ways(&body) {
            prop_assert_eq!(Ok(usual), any);
        }
        let batch = match decode(body) {
            Ok(batch) => batch,
            Err(Error::Ambiguous(ambiguity)) => {
                // What serde_json writes has no member twice.
                let Members::Different(one, other) = ambiguity.members else {
                    panic!("{ambiguity}");
                };
                let item = &items[ambiguity.event.unwrap()];
                prop_assert_ne!(&item[one], &item[other]);
                return Ok(());
            }
            Err(error) => panic!("{error}"),
        };
        prop_assert_eq!(batch.drafts.len(), items.len());
        for (draft, item) in batch.drafts.iter().zip(&items) {
            let raw: serde_json::Value = serde_json::from_slice(batch.raw_json(draft)).unwrap();
            prop_assert_eq!(&raw, item);
            let mut fields = batch.head(draft).to_vec();
            fields.extend_from_slice(batch.payload(draft));
            let event = proto::Event::decode(fields.as_slice()).unwrap();
            prop_assert!(!event.id.is_empty());
            let named = item.get("type").and_then(|it| it.as_str()).filter(|it| !it.is_empty());
            if let Some(named) = named {
                prop_assert!(event.r#type == named || named.len() > TYPE_BYTES_MAX);
            }
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
        let _ = decode(bytes.clone());
        let _ = claimed_app_id(&bytes);
    }

    #[test]
    fn no_damage_to_a_batch_makes_the_decoder_panic_or_the_two_ways_differ(at: usize, byte: u8) {
        let mut bytes = body(&[
            r#"{"id":"evt_1","type":"user.created","payload":{"user_id":"usr_1","identifiers":[{"type":"x","value":"y"}],"profile":{"a":[1,{"b":null}]},"created_at":"2026-01-01T00:00:00Z"}}"#,
        ])
        .into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = decode(bytes.clone());
        if let Ok(body) = str::from_utf8(&bytes)
            && let (Some(usual), any) = both_ways(body)
        {
            prop_assert_eq!(Ok(usual), any);
        }
    }
}
