//! The subscriber's side: whole logs, and single streams with everything that is said on them.

use prelude_bridge::proto::{
    Earliest, Event, Head, StartPosition, StopPosition, SubscribeRequest, SubscribeResponse,
    event_service_client::EventServiceClient, start_position, stop_position,
    subscribe_response::Notice,
};
use tonic::{Status, Streaming, transport::Channel};

use super::{Bridge, SOON};

/// The request for everything from the beginning on.
pub(crate) fn everything() -> SubscribeRequest {
    let position = Some(start_position::Position::Earliest(Earliest {}));
    SubscribeRequest {
        start: Some(StartPosition { position }),
        ..SubscribeRequest::default()
    }
}

/// What a client takes that reads nothing, in bytes: HTTP/2's own default, far below tonic's.
const NARROW_WINDOW_BYTES: u32 = 65_535;

/// A connection of its own that soon stands when nobody reads on it.
pub(crate) async fn narrow_client(bridge: &Bridge) -> EventServiceClient<Channel> {
    let url = format!("http://{}", bridge.addresses.grpc);
    let endpoint = Channel::from_shared(url)
        .unwrap()
        .initial_stream_window_size(NARROW_WINDOW_BYTES)
        .initial_connection_window_size(NARROW_WINDOW_BYTES);
    EventServiceClient::new(endpoint.connect().await.unwrap())
}

/// A stream, response by response.
pub(crate) struct Reader {
    responses: Streaming<SubscribeResponse>,
    /// The cursor of the last response.
    pub(crate) cursor: String,
}

impl Reader {
    pub(crate) async fn open(
        client: &mut EventServiceClient<Channel>,
        request: SubscribeRequest,
    ) -> Self {
        let responses = client.subscribe(request).await.unwrap().into_inner();
        let cursor = String::new();
        Self { responses, cursor }
    }

    /// The next response, or how the stream ended: without an error at its stop position.
    pub(crate) async fn next(&mut self) -> Result<Option<SubscribeResponse>, Status> {
        let next = tokio::time::timeout(SOON, self.responses.message());
        let next = next.await.unwrap()?;
        if let Some(response) = &next {
            assert!(!response.cursor.is_empty(), "a response without a cursor");
            self.cursor.clone_from(&response.cursor);
        }
        Ok(next)
    }

    /// The next notice that is wanted, and the events that came before it.
    pub(crate) async fn until(&mut self, wanted: fn(&Notice) -> bool) -> (Vec<Event>, Notice) {
        let mut events = Vec::new();
        loop {
            let response = self.next().await.unwrap().unwrap();
            events.extend(response.events);
            if let Some(notice) = response.notice
                && wanted(&notice)
            {
                return (events, notice);
            }
        }
    }
}

/// Everything in a log, in its order, whose sequence numbers must have no hole.
pub(crate) async fn log(bridge: &Bridge) -> Vec<Event> {
    let position = Some(stop_position::Position::Head(Head {}));
    let stop = StopPosition {
        position,
        ..StopPosition::default()
    };
    let request = SubscribeRequest {
        stop: Some(stop),
        ..everything()
    };
    let mut reader = Reader::open(&mut bridge.client().await, request).await;
    let mut events = Vec::new();
    while let Some(response) = reader.next().await.unwrap() {
        events.extend(response.events);
    }
    for (event, sequence) in events.iter().zip(1..) {
        assert_eq!(event.sequence, sequence, "a hole or a repetition");
    }
    events
}

/// The ids of everything in a log, in its order.
pub(crate) async fn ids(bridge: &Bridge) -> Vec<String> {
    let events = log(bridge).await;
    events.into_iter().map(|event| event.id).collect()
}
