//! The payloads of Prelude Verify. Owns the verifications that they are about. Their form is that of
//! <https://docs.prelude.so/verify/v2/documentation/webhook>: an amount is a number, and the correlation
//! id is in `metadata`.

use serde_json::{Map, Value, json};

use super::{
    super::{event_type::EventType, random::Random},
    draw,
};

/// How many verifications are remembered; beyond it the oldest is forgotten.
const VERIFICATIONS_MAX: usize = 1_000;

/// Prices with few and many digits. The last one is written with an exponent.
const AMOUNTS: [f64; 5] = [0.009, 0.03, 0.1, 1.25, 0.000_037_5];
/// Country and network of carriers.
const CARRIERS: [[&str; 2]; 3] = [["208", "10"], ["310", "004"], ["240", "01"]];
const STATUSES: [&str; 5] = [
    "submitted",
    "in_transit",
    "delivered",
    "undeliverable",
    "unknown",
];
const CHANNELS: [&str; 4] = ["sms", "rcs", "whatsapp", "voice"];

#[derive(Clone)]
struct Verification {
    id: String,
    phone_number: String,
    correlation_id: String,
    attempt_id: String,
}

/// The verifications of a Verify source.
#[derive(Default)]
pub(super) struct Verifications {
    verifications: Vec<Verification>,
}

impl Verifications {
    /// The payload of an event of this type; `at` is when it happened.
    pub(super) fn payload(
        &mut self,
        random: &mut Random,
        event_type: EventType,
        at: &str,
    ) -> Map<String, Value> {
        let known = match event_type {
            EventType::VerifyAuthentication => None,
            _ => draw::index(random, &self.verifications),
        };
        let known = known.and_then(|index| self.verifications.get(index).cloned());
        let verification = known.unwrap_or_else(|| self.invent(random));
        let mut payload = Map::from_iter([
            ("verification_id".to_owned(), verification.id.into()),
            ("time".to_owned(), at.into()),
            (
                "target".to_owned(),
                json!({ "type": "phone_number", "value": verification.phone_number }),
            ),
            (
                "metadata".to_owned(),
                json!({ "correlation_id": verification.correlation_id }),
            ),
        ]);
        if event_type != EventType::VerifyDeliveryStatus {
            let amount = draw::index(random, &AMOUNTS).and_then(|index| AMOUNTS.get(index));
            let price = json!({ "amount": amount, "currency": "EUR" });
            payload.insert("price".to_owned(), price);
        }
        let more = match event_type {
            EventType::VerifyAttempt => json!({
                "id": verification.attempt_id,
                "channel": random.pick(&CHANNELS, "sms"),
                "carrier_information": carrier(random),
                "delivery_status": random.pick(&STATUSES, "unknown"),
            }),
            EventType::VerifyDeliveryStatus => json!({
                "id": draw::id(random, "dls_"),
                "attempt_id": verification.attempt_id,
                "carrier_information": carrier(random),
                "status": random.pick(&STATUSES, "unknown"),
            }),
            // `verify.authentication`; no other type gets here.
            _ => Value::Null,
        };
        if let Value::Object(more) = more {
            payload.extend(more);
        }
        payload
    }

    fn invent(&mut self, random: &mut Random) -> Verification {
        if self.verifications.len() >= VERIFICATIONS_MAX {
            self.verifications.remove(0);
        }
        let verification = Verification {
            id: draw::id(random, "vrf_"),
            phone_number: draw::phone_number(random),
            correlation_id: draw::uuid(random),
            attempt_id: draw::id(random, "att_"),
        };
        self.verifications.push(verification.clone());
        verification
    }
}

fn carrier(random: &mut Random) -> Value {
    let index = random.below(CARRIERS.len());
    let [mcc, mnc] = CARRIERS.get(index).copied().unwrap_or(["001", "01"]);
    json!({ "mcc": mcc, "mnc": mnc })
}
