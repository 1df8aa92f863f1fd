//! A gRPC service the way it is usually written with tonic: a `tokio::sync::broadcast` channel of
//! events, a stream of it for each subscriber, each response encoded for each subscriber by tonic.
//! It takes events over a plain connection and so is spared what HTTP, signatures and JSON cost.

use std::pin::Pin;

use anyhow::Result;
use prelude_bridge_peers::{
    feed::Frames,
    proto::{
        Event, GetRangeRequest, GetRangeResponse, SubscribeRequest, SubscribeResponse,
        event_service_server::{EventService, EventServiceServer},
    },
};
use prost::Message as _;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::broadcast,
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{BroadcastStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, transport::Server};

/// Events that a subscriber may be behind; beyond them it loses some. More than the load has on the
/// way at once.
const CHANNEL_EVENTS: usize = 32_768;

struct Service {
    events: broadcast::Sender<Event>,
}

#[tonic::async_trait]
impl EventService for Service {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let types = request.into_inner().filter.unwrap_or_default().types;
        let events = BroadcastStream::new(self.events.subscribe());
        let responses = events.filter_map(move |event| match event {
            Ok(event) if !types.is_empty() && !types.contains(&event.r#type) => None,
            Ok(event) => Some(Ok(SubscribeResponse {
                events: vec![event],
                ..SubscribeResponse::default()
            })),
            Err(lagged) => Some(Err(Status::data_loss(lagged.to_string()))),
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get_range(
        &self,
        _: Request<GetRangeRequest>,
    ) -> Result<Response<GetRangeResponse>, Status> {
        Err(Status::unimplemented("this service keeps nothing"))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let (events, _) = broadcast::channel(CHANNEL_EVENTS);
    let streams = TcpListener::bind("127.0.0.1:0").await?;
    let feed = TcpListener::bind("127.0.0.1:0").await?;
    let ready = serde_json::json!({
        "message": "ready",
        "grpc": streams.local_addr()?.to_string(),
        "feed": feed.local_addr()?.to_string(),
    });
    println!("{ready}");
    let publisher = events.clone();
    tokio::spawn(async move {
        while let Ok((connection, _)) = feed.accept().await {
            tokio::spawn(publish(connection, publisher.clone()));
        }
    });
    let service = EventServiceServer::new(Service { events });
    Server::builder()
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(streams))
        .await?;
    Ok(())
}

async fn publish(mut connection: TcpStream, events: broadcast::Sender<Event>) -> Result<()> {
    let mut frames = Frames::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = connection.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        frames.push(buffer.get(..read).unwrap_or_default(), |frame| {
            if let Ok(event) = Event::decode(frame) {
                // Nobody may be there to receive it.
                let _ = events.send(event);
            }
        });
        // A long burst must not overrun the channel before the streams had a turn.
        tokio::task::yield_now().await;
    }
}
