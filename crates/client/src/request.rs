//! Owns a consumer's request in Rust types, and its form in the contract.

use std::time::{Duration, SystemTime};

use crate::proto::{
    DamagedPolicy, Earliest, ExpiredCursorPolicy, Filter, Head, Latest, PayloadFormat,
    StartPosition, SubscribeRequest, start_position, stop_position,
};

/// What to subscribe to. By default all events from now on, without end, with typed payloads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request(SubscribeRequest);

/// Where a subscription starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With events that arrive from now on.
    #[default]
    Latest,
    /// With the oldest event that the bridge still has.
    Earliest,
    /// With the first event after this cursor.
    After(String),
    /// With the first event that the bridge received at or after this time.
    At(SystemTime),
}

/// Where a subscription ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// It does not end.
    #[default]
    Never,
    /// With the newest event at the time of the call.
    Head,
    /// With the event that has this cursor.
    AtCursor(String),
    /// With the last event that the bridge received before this time.
    At(SystemTime),
}

impl Request {
    /// Every event from now on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only events of these types: exact or patterns (`user.session.*`, `user.**`).
    #[must_use]
    pub fn types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.filter()
            .types
            .extend(types.into_iter().map(Into::into));
        self
    }

    /// Not the events of these types.
    #[must_use]
    pub fn exclude_types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.filter()
            .exclude_types
            .extend(types.into_iter().map(Into::into));
        self
    }

    /// Only events of these apps.
    #[must_use]
    pub fn app_ids(mut self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.filter()
            .app_ids
            .extend(ids.into_iter().map(Into::into));
        self
    }

    /// Only events of these users.
    #[must_use]
    pub fn user_ids(mut self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.filter()
            .user_ids
            .extend(ids.into_iter().map(Into::into));
        self
    }

    /// Where to start if there is no stored cursor.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        let position = match start {
            Start::Latest => start_position::Position::Latest(Latest {}),
            Start::Earliest => start_position::Position::Earliest(Earliest {}),
            Start::After(cursor) => start_position::Position::AfterCursor(cursor),
            Start::At(time) => start_position::Position::AtTime(time.into()),
        };
        self.0.start = Some(StartPosition {
            position: Some(position),
        });
        self
    }

    /// Where to end.
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.0.stop.get_or_insert_default().position = match stop {
            Stop::Never => None,
            Stop::Head => Some(stop_position::Position::Head(Head {})),
            Stop::AtCursor(cursor) => Some(stop_position::Position::AtCursor(cursor)),
            Stop::At(time) => Some(stop_position::Position::AtTime(time.into())),
        };
        self
    }

    /// End after this many events, if the stop position does not come first. 0 means no limit.
    #[must_use]
    pub fn events_max(mut self, count: u64) -> Self {
        self.0.stop.get_or_insert_default().max_events = count;
        self
    }

    /// What to do if retention has removed events after the start position: by default the subscription
    /// ends with [`Error::Expired`](super::Error::Expired).
    #[must_use]
    pub fn on_expired(mut self, policy: ExpiredCursorPolicy) -> Self {
        self.0.set_on_expired(policy);
        self
    }

    /// What to do when the next events are damaged on the bridge's disk: by default the subscription
    /// ends with [`Error::Damaged`](super::Error::Damaged).
    #[must_use]
    pub fn on_damaged(mut self, policy: DamagedPolicy) -> Self {
        self.0.set_on_damaged(policy);
        self
    }

    /// In which form to send an event's payload.
    #[must_use]
    pub fn payload_format(mut self, format: PayloadFormat) -> Self {
        self.0.set_payload_format(format);
        self
    }

    /// How often the bridge sends `Progress` while nothing matches: 100 ms to 5 min, by default 5 s.
    #[must_use]
    pub fn progress_interval(mut self, interval: Duration) -> Self {
        // What does not fit is far out of bounds, and the server says so.
        self.0.progress_interval = Some(interval.try_into().unwrap_or(prost_types::Duration {
            seconds: i64::MAX,
            nanos: 0,
        }));
        self
    }

    /// A name for this client in the operator's log.
    #[must_use]
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.0.client_name = name.into();
        self
    }

    pub(super) fn into_message(self) -> SubscribeRequest {
        self.0
    }

    fn filter(&mut self) -> &mut Filter {
        self.0.filter.get_or_insert_default()
    }
}

/// The contract's form is the larger one: what has no method here can be said with it.
impl From<SubscribeRequest> for Request {
    fn from(message: SubscribeRequest) -> Self {
        Self(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_in_the_contract_what_it_says_in_rust() {
        let message = Request::new()
            .types(["user.created"])
            .types(["user.session.*"])
            .exclude_types(["user.session.revoked"])
            .app_ids(["app_1"])
            .user_ids(vec!["usr_1".to_owned()])
            .start(Start::After("cursor".into()))
            .stop(Stop::Head)
            .events_max(3)
            .payload_format(PayloadFormat::Both)
            .on_expired(ExpiredCursorPolicy::Earliest)
            .on_damaged(DamagedPolicy::Skip)
            .progress_interval(Duration::from_millis(1500))
            .client_name("test")
            .into_message();
        let filter = message.filter.clone().unwrap();
        assert_eq!(filter.types, ["user.created", "user.session.*"]);
        assert_eq!(filter.exclude_types, ["user.session.revoked"]);
        assert_eq!((filter.app_ids.len(), filter.user_ids.len()), (1, 1));
        let stop = message.stop.clone().unwrap();
        assert_eq!(stop.max_events, 3);
        assert!(matches!(
            stop.position,
            Some(stop_position::Position::Head(_))
        ));
        assert!(matches!(
            message.start.clone().unwrap().position,
            Some(start_position::Position::AfterCursor(cursor)) if cursor == "cursor"
        ));
        assert_eq!(message.payload_format(), PayloadFormat::Both);
        assert_eq!(message.on_expired(), ExpiredCursorPolicy::Earliest);
        assert_eq!(message.on_damaged(), DamagedPolicy::Skip);
        let interval = message.progress_interval.unwrap();
        assert_eq!((interval.seconds, interval.nanos), (1, 500_000_000));
        assert_eq!(message.client_name, "test");
    }

    #[test]
    fn an_empty_request_leaves_everything_to_the_server() {
        assert_eq!(Request::new().into_message(), SubscribeRequest::default());
    }
}
