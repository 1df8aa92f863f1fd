//! Readers of whole logs, and connections of those who do not read.

use prelude_bridge::proto::{Event, event_service_client::EventServiceClient};
use tonic::transport::Channel;

use super::{
    Bridge,
    stream::{Received, history},
};

/// Everything in a log, in its order, whose sequence numbers must have no hole.
pub(crate) async fn log(bridge: &Bridge) -> Vec<Event> {
    let subscribed = Received::subscribe(&mut bridge.client().await, history()).await;
    let mut received = subscribed.unwrap();
    received.end().await.unwrap();
    let events: Vec<Event> = received.events().cloned().collect();
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
