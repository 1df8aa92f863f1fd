//! The payloads of Prelude Notify. Owns the messages that they are about. Their form is that of
//! <https://docs.prelude.so/notify/v2/documentation/webhook>: an amount is a string, and the correlation
//! id is in the payload itself.

use serde_json::{Map, Value, json};

use super::{
    super::{event_type::EventType, random::Random},
    draw,
};

/// How many messages are remembered; beyond it the oldest is forgotten.
const MESSAGES_MAX: usize = 1_000;

const AMOUNTS: [&str; 5] = ["0.009", "0.10", "1.25", "0.0000375", "12"];
const FAILURE_REASONS: [&str; 6] = [
    "unavailable",
    "generic",
    "network",
    "unknown_recipient",
    "insufficient_balance",
    "carrier_rejected",
];

#[derive(Clone)]
struct Message {
    id: String,
    attempt_id: String,
    customer: String,
    template_id: String,
    correlation_id: String,
}

/// The messages of a Notify source.
#[derive(Default)]
pub(super) struct Messages {
    messages: Vec<Message>,
}

impl Messages {
    /// The payload of an event of this type; `at` is when it happened.
    pub(super) fn payload(
        &mut self,
        random: &mut Random,
        event_type: EventType,
        at: &str,
    ) -> Map<String, Value> {
        let known = match event_type {
            EventType::MessageCreated => None,
            _ => draw::index(random, &self.messages),
        };
        let known = known.and_then(|index| self.messages.get(index).cloned());
        let message = known.unwrap_or_else(|| self.invent(random));
        let mut payload = Map::from_iter([
            ("customer_uuid".to_owned(), message.customer.into()),
            ("template_id".to_owned(), message.template_id.into()),
            ("correlation_id".to_owned(), message.correlation_id.into()),
            ("created_at".to_owned(), at.into()),
        ]);
        let more = match event_type {
            EventType::MessageCreated => json!({
                "id": message.id,
                "to": draw::phone_number(random),
                "expires_at": at,
                "variables": { "name": random.pick(&["Ada", "Zoë"], "Ada") },
                "fee": { "amount": random.pick(&AMOUNTS, "0.009"), "currency": "EUR" },
            }),
            _ => json!({
                "message_id": message.id,
                "attempt_id": message.attempt_id,
                "type": "transactional",
                "channel": random.pick(&["sms", "whatsapp"], "sms"),
            }),
        };
        if let Value::Object(more) = more {
            payload.extend(more);
        }
        let outcome = match event_type {
            EventType::MessageFailed => Some((
                random.pick(&["failed", "expired"], "failed"),
                draw::reason(random, &FAILURE_REASONS),
            )),
            EventType::MessageUnknown => Some(("unknown", "unknown")),
            _ => None,
        };
        if let Some((status, reason)) = outcome {
            payload.insert("status".to_owned(), status.into());
            payload.insert("reason".to_owned(), reason.into());
        }
        payload
    }

    fn invent(&mut self, random: &mut Random) -> Message {
        if self.messages.len() >= MESSAGES_MAX {
            self.messages.remove(0);
        }
        let message = Message {
            id: draw::id(random, "tx_"),
            attempt_id: draw::id(random, "att_"),
            customer: draw::uuid(random),
            template_id: draw::id(random, "template_"),
            correlation_id: draw::uuid(random),
        };
        self.messages.push(message.clone());
        message
    }
}
