//! What the tests ask of streams, and what they look for in the answers.

use prelude_bridge::proto::{
    Event, SubscribeRequest, SubscribeResponse, event_service_client::EventServiceClient,
    start_position, stop_position, subscribe_response::Notice,
};
use tonic::{Status, Streaming, transport::Channel};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::SOON;

pub(crate) use prelude_bridge::proto::{Earliest, Head, Latest, StartPosition, StopPosition};

/// Everything from this place on.
pub(crate) fn from(position: start_position::Position) -> SubscribeRequest {
    SubscribeRequest {
        start: Some(StartPosition {
            position: Some(position),
        }),
        ..SubscribeRequest::default()
    }
}

pub(crate) fn after(cursor: &str) -> SubscribeRequest {
    from(start_position::Position::AfterCursor(cursor.to_owned()))
}

/// Everything that is there now.
pub(crate) fn history() -> SubscribeRequest {
    until_head(from(start_position::Position::Earliest(Earliest {})))
}

/// The same request, but only of what is there now.
pub(crate) fn until_head(request: SubscribeRequest) -> SubscribeRequest {
    SubscribeRequest {
        stop: Some(StopPosition {
            position: Some(stop_position::Position::Head(Head {})),
            max_events: 0,
        }),
        ..request
    }
}

/// A stream with everything that it has sent.
pub(crate) struct Received {
    stream: Streaming<SubscribeResponse>,
    pub(crate) responses: Vec<SubscribeResponse>,
}

impl Received {
    /// Subscribes.
    ///
    /// # Errors
    /// The status of a refusal.
    pub(crate) async fn subscribe(
        client: &mut EventServiceClient<Channel>,
        request: SubscribeRequest,
    ) -> Result<Self, Status> {
        let opening = tokio::time::timeout(SOON, client.subscribe(request));
        Ok(Self {
            stream: opening.await.unwrap()?.into_inner(),
            responses: Vec::new(),
        })
    }

    /// The next response; `None` at the end.
    ///
    /// # Errors
    /// The status that the stream ended with.
    pub(crate) async fn next(&mut self) -> Result<Option<&SubscribeResponse>, Status> {
        let next = tokio::time::timeout(SOON, self.stream.message());
        let next = next.await.unwrap()?;
        let Some(response) = next else {
            return Ok(None);
        };
        self.responses.push(response);
        Ok(self.responses.last())
    }

    /// Reads until a response has a notice like this.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Notice) -> bool) -> SubscribeResponse {
        loop {
            let response = self.next().await.unwrap().unwrap();
            if response.notice.as_ref().is_some_and(&wanted) {
                return response.clone();
            }
        }
    }

    /// Reads until so many events have come in all.
    pub(crate) async fn until_events(&mut self, count: usize) {
        while self.events().count() < count {
            self.next().await.unwrap().unwrap();
        }
    }

    /// Reads to the end, and says what it ended with.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = &Event> {
        self.responses.iter().flat_map(|response| &response.events)
    }

    pub(crate) fn sequences(&self) -> Vec<u64> {
        self.events().map(|event| event.sequence).collect()
    }

    pub(crate) fn notices(&self) -> Vec<&Notice> {
        let notices = self.responses.iter();
        notices
            .filter_map(|response| response.notice.as_ref())
            .collect()
    }

    /// The place to resume after everything that came.
    pub(crate) fn cursor(&self) -> &str {
        &self.responses.last().unwrap().cursor
    }
}

/// The reason of a status, its details, and proof that it is one of ours.
#[track_caller]
pub(crate) fn reason(status: &Status) -> (String, ErrorDetails) {
    let details = status.get_error_details();
    let info = details.error_info();
    let info = info.unwrap_or_else(|| unreachable!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "prelude-bridge");
    assert!(!status.message().is_empty());
    (info.reason.clone(), details)
}
