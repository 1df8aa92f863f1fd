//! Owns the table of event types: what is known of each. To add a type, write its message in `proto/`
//! and its entry here; that is all. A test holds every entry against the contract.
//!
//! Sources: <https://docs.prelude.so/auth/documentation/webhooks>,
//! <https://docs.prelude.so/verify/v2/documentation/webhook> and
//! <https://docs.prelude.so/notify/v2/documentation/webhook>.

use super::super::single::Product;
use super::member::{
    Member, Shape, date, free_form, known, known_or, object, objects, text, text_of, text_or_number,
};

/// What is known of an event type.
pub(in crate::decode) struct EventType {
    pub(in crate::decode) name: &'static str,
    /// The product that sends it; `None` is Prelude Auth, which sends batches.
    pub(super) product: Option<Product>,
    /// The member of the payload that says when it happened.
    pub(super) time: &'static str,
    /// Whether the correlation id is a member of the payload's `metadata`. Where it is not, `metadata`
    /// belongs to the app, and what it calls `correlation_id` is none of Prelude's.
    pub(super) is_correlated_by_metadata: bool,
    /// The number of its message in the contract's `Event.payload`.
    pub(super) number: u32,
    /// What of the payload becomes part of the message.
    pub(super) members: &'static [Member],
}

/// All types with a payload message.
pub(in crate::decode) const TYPES: &[EventType] = &[
    EventType {
        name: "user.created",
        number: 20,
        members: &[
            text("user_id", 1),
            objects("identifiers", 2, &IDENTIFIER),
            free_form("profile", 3),
            text("source", 4),
            date("created_at", 5),
            text("correlation_id", 6),
        ],
        ..at("created_at")
    },
    EventType {
        name: "user.deleted",
        number: 21,
        members: &[
            text("user_id", 1),
            date("deleted_at", 2),
            text("correlation_id", 3),
        ],
        ..at("deleted_at")
    },
    EventType {
        name: "user.profile.updated",
        number: 22,
        members: &[
            text("user_id", 1),
            free_form("profile", 2),
            date("updated_at", 3),
            text("correlation_id", 4),
        ],
        ..at("updated_at")
    },
    EventType {
        name: "user.identifier.created",
        number: 23,
        members: &[
            text("user_id", 1),
            object("identifier", 2, &IDENTIFIER),
            date("created_at", 3),
            text("correlation_id", 4),
        ],
        ..at("created_at")
    },
    EventType {
        name: "user.identifier.deleted",
        number: 24,
        members: &[
            text("user_id", 1),
            object("identifier", 2, &IDENTIFIER),
            date("deleted_at", 3),
            text("correlation_id", 4),
        ],
        ..at("deleted_at")
    },
    EventType {
        name: "user.session.created",
        number: 25,
        members: &[
            text("user_id", 1),
            text("session_id", 2),
            object("identifier", 3, &IDENTIFIER),
            free_form("metadata", 4),
            date("created_at", 5),
            text("correlation_id", 6),
        ],
        ..at("created_at")
    },
    EventType {
        name: "user.session.revoked",
        number: 26,
        members: &[
            text("user_id", 1),
            text("session_id", 2),
            date("revoked_at", 3),
            text("correlation_id", 4),
        ],
        ..at("revoked_at")
    },
    EventType {
        name: "step_up.hook_failed",
        number: 27,
        members: &[
            text("user_id", 1),
            text("reason", 2),
            known("reason", 3, STEP_UP_REASONS),
            date("occurred_at", 4),
            text("correlation_id", 5),
        ],
        ..at("occurred_at")
    },
    EventType {
        name: "migration.hook_failed",
        number: 28,
        members: &[
            text("reason", 1),
            known("reason", 2, MIGRATION_REASONS),
            date("occurred_at", 3),
            text("correlation_id", 4),
        ],
        ..at("occurred_at")
    },
    EventType {
        name: "verify.authentication",
        number: 29,
        members: &[
            text("verification_id", 1),
            object("target", 2, &IDENTIFIER),
            object("price", 3, &MONEY),
            object("metadata", 4, &VERIFY_METADATA),
            date("time", 5),
        ],
        ..VERIFY
    },
    EventType {
        name: "verify.attempt",
        number: 30,
        members: &[
            text("id", 1),
            text("verification_id", 2),
            object("target", 3, &IDENTIFIER),
            object("price", 4, &MONEY),
            object("metadata", 5, &VERIFY_METADATA),
            object("carrier_information", 6, &CARRIER),
            text("channel", 7),
            text("delivery_status", 8),
            known("delivery_status", 9, DELIVERY_STATUSES),
            date("time", 10),
        ],
        ..VERIFY
    },
    EventType {
        name: "verify.delivery_status",
        number: 31,
        members: &[
            text("id", 1),
            text("attempt_id", 2),
            text("verification_id", 3),
            object("target", 4, &IDENTIFIER),
            object("price", 5, &MONEY),
            object("metadata", 6, &VERIFY_METADATA),
            object("carrier_information", 7, &CARRIER),
            text("channel", 8),
            text("status", 9),
            known("status", 10, DELIVERY_STATUSES),
            date("time", 11),
        ],
        ..VERIFY
    },
    EventType {
        name: "transactional.message.created",
        members: &transactional(1),
        ..TRANSACTIONAL
    },
    EventType {
        name: "transactional.message.submitted",
        members: &transactional(2),
        ..TRANSACTIONAL
    },
    EventType {
        name: "transactional.message.pending_delivery",
        members: &transactional(3),
        ..TRANSACTIONAL
    },
    EventType {
        name: "transactional.message.delivered",
        members: &transactional(4),
        ..TRANSACTIONAL
    },
    EventType {
        name: "transactional.message.failed",
        members: &transactional(5),
        ..TRANSACTIONAL
    },
    EventType {
        name: "transactional.message.unknown",
        members: &transactional(6),
        ..TRANSACTIONAL
    },
    #[cfg(test)]
    ADDED,
];

/// A type whose events happen at the time in this member.
pub(super) const fn at(time: &'static str) -> EventType {
    EventType {
        name: "",
        product: None,
        time,
        is_correlated_by_metadata: false,
        number: 0,
        members: &[],
    }
}

const VERIFY: EventType = EventType {
    product: Some(Product::Verify),
    is_correlated_by_metadata: true,
    ..at("time")
};

const TRANSACTIONAL: EventType = EventType {
    product: Some(Product::Notify),
    number: 32,
    ..at("created_at")
};

/// The members of a report about a message of Notify. Its status is this one, unless another is sent.
const fn transactional(status: i32) -> [Member; 16] {
    [
        text_of(["message_id", "id"], 1),
        text("attempt_id", 2),
        known_or(status, "status", 3, MESSAGE_STATUSES),
        text("status", 4),
        text("reason", 5),
        known("reason", 6, MESSAGE_FAILURE_REASONS),
        text("to", 7),
        text("type", 8),
        text("channel", 9),
        text("template_id", 10),
        free_form("variables", 11),
        object("fee", 12, &MONEY),
        text("customer_uuid", 13),
        date("created_at", 14),
        date("expires_at", 15),
        text("correlation_id", 16),
    ]
}

// Objects in payloads.

const IDENTIFIER: Shape = Shape {
    name: "identifier",
    members: &[text("type", 1), text("value", 2)],
};

const MONEY: Shape = Shape {
    name: "money",
    members: &[text_or_number("amount", 1), text("currency", 2)],
};

const VERIFY_METADATA: Shape = Shape {
    name: "metadata",
    members: &[text("correlation_id", 1)],
};

const CARRIER: Shape = Shape {
    name: "carrier information",
    members: &[text_or_number("mcc", 1), text_or_number("mnc", 2)],
};

// Texts with an enum beside them, in the order of its values: the first is 1.

const STEP_UP_REASONS: &[&str] = &[
    "request_failed",
    "invalid_status_code",
    "response_decode_failed",
    "invalid_status",
    "missing_steps",
    "invalid_granted_for",
    "invalid_grant_mode",
    "invalid_step",
    "invalid_response",
];

const MIGRATION_REASONS: &[&str] = &[
    "request_failed",
    "invalid_status_code",
    "response_decode_failed",
    "missing_external_id",
    "missing_identifiers",
    "invalid_response",
];

const DELIVERY_STATUSES: &[&str] = &[
    "submitted",
    "in_transit",
    "delivered",
    "undeliverable",
    "unknown",
];

const MESSAGE_STATUSES: &[&str] = &[
    "created",
    "submitted",
    "pending_delivery",
    "delivered",
    "failed",
    "unknown",
    "expired",
];

const MESSAGE_FAILURE_REASONS: &[&str] = &[
    "unavailable",
    "generic",
    "network",
    "unknown_recipient",
    "insufficient_balance",
    "carrier_rejected",
    "unknown",
];

/// A type that only tests know: it shows that an entry here is all that a new type needs.
#[cfg(test)]
pub(in crate::decode) const ADDED: EventType = EventType {
    name: "added.by_a_test",
    product: Some(Product::Notify),
    number: 4_000,
    members: &[
        text("added_text", 1),
        known("added_text", 2, &["one", "two"]),
        date("added_at", 3),
        object("added_price", 4, &MONEY),
    ],
    ..at("added_at")
};
