//! The event types that Prelude documents, and which of its products sends which. Knows nothing of what
//! an event holds.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// A product of Prelude that sends webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Prelude Auth, formerly Session: batches of an app's events, to a webhook that was activated by a
    /// challenge, signed by a key of the app's JWKS.
    #[default]
    Auth,
    /// Prelude Verify: one event a request, to a URL that needs no activation, signed by a key that
    /// receivers have as PEM.
    Verify,
    /// Prelude Notify: like Verify, with other events.
    Notify,
}

impl SourceKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auth, Self::Verify, Self::Notify];

    /// Its name in files and flags.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Verify => "verify",
            Self::Notify => "notify",
        }
    }

    /// The types that it sends.
    #[must_use]
    pub fn event_types(self) -> &'static [EventType] {
        match self {
            Self::Auth => &EventType::AUTH,
            Self::Verify => &EventType::VERIFY,
            Self::Notify => &EventType::NOTIFY,
        }
    }

    /// Whether a request carries a batch. If not, it carries one event.
    #[must_use]
    pub fn sends_batches(self) -> bool {
        self == Self::Auth
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A type that Prelude documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum EventType {
    /// `user.created`
    UserCreated,
    /// `user.deleted`
    UserDeleted,
    /// `user.profile.updated`
    UserProfileUpdated,
    /// `user.identifier.created`
    UserIdentifierCreated,
    /// `user.identifier.deleted`
    UserIdentifierDeleted,
    /// `user.session.created`
    UserSessionCreated,
    /// `user.session.revoked`
    UserSessionRevoked,
    /// `step_up.hook_failed`
    StepUpHookFailed,
    /// `migration.hook_failed`, which has no user
    MigrationHookFailed,
    /// `verify.authentication`
    VerifyAuthentication,
    /// `verify.attempt`
    VerifyAttempt,
    /// `verify.delivery_status`
    VerifyDeliveryStatus,
    /// `transactional.message.created`
    MessageCreated,
    /// `transactional.message.submitted`
    MessageSubmitted,
    /// `transactional.message.pending_delivery`
    MessagePendingDelivery,
    /// `transactional.message.delivered`
    MessageDelivered,
    /// `transactional.message.failed`
    MessageFailed,
    /// `transactional.message.unknown`
    MessageUnknown,
}

/// A name that is not a documented type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an event type: take one of {list}", list = list(&EventType::ALL))]
pub struct UnknownType(String);

impl EventType {
    /// The types of Prelude Auth, in the order of the documentation.
    pub const AUTH: [Self; 9] = [
        Self::UserCreated,
        Self::UserDeleted,
        Self::UserProfileUpdated,
        Self::UserIdentifierCreated,
        Self::UserIdentifierDeleted,
        Self::UserSessionCreated,
        Self::UserSessionRevoked,
        Self::StepUpHookFailed,
        Self::MigrationHookFailed,
    ];

    /// The types of Prelude Verify.
    pub const VERIFY: [Self; 3] = [
        Self::VerifyAuthentication,
        Self::VerifyAttempt,
        Self::VerifyDeliveryStatus,
    ];

    /// The types of Prelude Notify about single messages.
    pub const NOTIFY: [Self; 6] = [
        Self::MessageCreated,
        Self::MessageSubmitted,
        Self::MessagePendingDelivery,
        Self::MessageDelivered,
        Self::MessageFailed,
        Self::MessageUnknown,
    ];

    /// The types of all kinds of sources.
    pub const ALL: [Self; 18] = [
        Self::UserCreated,
        Self::UserDeleted,
        Self::UserProfileUpdated,
        Self::UserIdentifierCreated,
        Self::UserIdentifierDeleted,
        Self::UserSessionCreated,
        Self::UserSessionRevoked,
        Self::StepUpHookFailed,
        Self::MigrationHookFailed,
        Self::VerifyAuthentication,
        Self::VerifyAttempt,
        Self::VerifyDeliveryStatus,
        Self::MessageCreated,
        Self::MessageSubmitted,
        Self::MessagePendingDelivery,
        Self::MessageDelivered,
        Self::MessageFailed,
        Self::MessageUnknown,
    ];

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserCreated => "user.created",
            Self::UserDeleted => "user.deleted",
            Self::UserProfileUpdated => "user.profile.updated",
            Self::UserIdentifierCreated => "user.identifier.created",
            Self::UserIdentifierDeleted => "user.identifier.deleted",
            Self::UserSessionCreated => "user.session.created",
            Self::UserSessionRevoked => "user.session.revoked",
            Self::StepUpHookFailed => "step_up.hook_failed",
            Self::MigrationHookFailed => "migration.hook_failed",
            Self::VerifyAuthentication => "verify.authentication",
            Self::VerifyAttempt => "verify.attempt",
            Self::VerifyDeliveryStatus => "verify.delivery_status",
            Self::MessageCreated => "transactional.message.created",
            Self::MessageSubmitted => "transactional.message.submitted",
            Self::MessagePendingDelivery => "transactional.message.pending_delivery",
            Self::MessageDelivered => "transactional.message.delivered",
            Self::MessageFailed => "transactional.message.failed",
            Self::MessageUnknown => "transactional.message.unknown",
        }
    }

    /// Which product sends it.
    #[must_use]
    pub fn source_kind(self) -> SourceKind {
        let sends = |kind: &SourceKind| kind.event_types().contains(&self);
        SourceKind::ALL.into_iter().find(sends).unwrap_or_default()
    }

    /// How often it happens compared with the others: sessions begin and end more often than users, and
    /// hooks fail rarely.
    pub(super) fn weight(self) -> usize {
        match self {
            Self::UserSessionCreated => 8,
            Self::UserSessionRevoked => 5,
            Self::UserCreated
            | Self::VerifyAttempt
            | Self::VerifyDeliveryStatus
            | Self::MessageCreated
            | Self::MessageSubmitted
            | Self::MessageDelivered => 4,
            Self::UserProfileUpdated | Self::VerifyAuthentication => 3,
            Self::UserIdentifierCreated | Self::MessagePendingDelivery => 2,
            Self::UserIdentifierDeleted
            | Self::UserDeleted
            | Self::StepUpHookFailed
            | Self::MigrationHookFailed
            | Self::MessageFailed
            | Self::MessageUnknown => 1,
        }
    }
}

/// Names of types, as a list for people.
pub(super) fn list(types: &[EventType]) -> String {
    let names: Vec<&str> = types.iter().map(|name| name.as_str()).collect();
    names.join(", ")
}

impl fmt::Display for EventType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for EventType {
    type Err = UnknownType;

    fn from_str(name: &str) -> Result<Self, UnknownType> {
        let found = Self::ALL
            .into_iter()
            .find(|candidate| candidate.as_str() == name);
        found.ok_or_else(|| UnknownType(name.to_owned()))
    }
}

impl TryFrom<String> for EventType {
    type Error = UnknownType;

    fn try_from(name: String) -> Result<Self, UnknownType> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_sent_by_exactly_one_kind_of_source() {
        for event_type in EventType::ALL {
            let kinds = SourceKind::ALL.into_iter();
            let senders = kinds.filter(|kind| kind.event_types().contains(&event_type));
            assert_eq!(
                senders.collect::<Vec<_>>(),
                [event_type.source_kind()],
                "{event_type}"
            );
            assert_eq!(event_type.as_str().parse(), Ok(event_type));
        }
        let counts = SourceKind::ALL.map(|kind| kind.event_types().len());
        assert_eq!(counts.iter().sum::<usize>(), EventType::ALL.len());
    }

    #[test]
    fn an_unknown_type_is_refused_with_the_list() {
        let error = "user.exploded".parse::<EventType>().unwrap_err();
        let error = error.to_string();
        for part in ["user.exploded", "user.session.revoked", "verify.attempt"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
