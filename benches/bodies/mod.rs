//! The bodies that decoding is measured with: batches of events of 450 bytes, as Prelude sends them.

use std::fmt::Write as _;

const EVENT_BYTES: usize = 450;

/// Events of the type that there are most of.
pub(crate) fn sessions(count: usize) -> String {
    batch((0..count).map(|index| {
        let head = event_head(index, "user.session.created");
        padded(format!(
            r#"{head}"session_id":"ses_01jqebhswje2ka1yzgdbzrs1r2","identifier":{{"type":"phone_number","value":"+33612345678"}},"metadata":{{"ip":"203.0.113.7"}},"created_at":"2026-11-23T10:00:00.123456Z"#
        ))
    }))
}

/// Events of the type with the largest payload: a list and a free-form object.
pub(crate) fn users(count: usize) -> String {
    batch((0..count).map(|index| {
        let head = event_head(index, "user.created");
        padded(format!(
            r#"{head}"identifiers":[{{"type":"email_address","value":"ada@example.com"}}],"profile":{{"name":"Ada","plan":{{"tier":3,"beta":true}}}},"source":"api","created_at":"2026-11-23T10:00:00Z"#
        ))
    }))
}

/// Events of a type that is not documented.
pub(crate) fn unknown(count: usize) -> String {
    batch((0..count).map(|index| {
        padded(format!(
            "{}\"note\":\"",
            event_head(index, "user.suspended")
        ))
    }))
}

fn batch(events: impl Iterator<Item = String>) -> String {
    let events: Vec<String> = events.collect();
    format!(r#"{{"app_id":"54e9ujn","events":[{}]}}"#, events.join(","))
}

fn event_head(index: usize, event_type: &str) -> String {
    format!(
        r#"{{"id":"evt_01jqebhswje2ka1yz{index:05}","type":"{event_type}","created_at":"2026-11-23T10:00:00Z","payload":{{"user_id":"usr_01jqebhswje2ka1yzgdbzrs1r2","#
    )
}

/// Ends the event's last string, and fills the event up with a member that is not documented.
fn padded(mut event: String) -> String {
    event.push_str(r#"","extra":""#);
    while event.len() < EVENT_BYTES - 3 {
        let _ = event.write_char('x');
    }
    event.push_str("\"}}");
    event
}
