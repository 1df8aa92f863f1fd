//! A bridge for tests: it answers each call by a script, can be killed and started again, and
//! remembers what it was asked for. Owns no behaviour of its own: what the real bridge does is not
//! known here.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "only tests use it, and a test that cannot go on should panic"
)]

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

use crate::proto::{
    CaughtUp, Event, GetRangeRequest, GetRangeResponse, LogEnd, LogRange, Progress, Started,
    SubscribeRequest, SubscribeResponse, subscribe_response::Notice,
};

/// What the server does next in a call. After the last step it ends the call with OK.
#[allow(clippy::large_enum_variant, reason = "a few in a test")]
#[derive(Debug)]
pub enum Step {
    /// Sends a response.
    Respond(SubscribeResponse),
    /// Ends the call with this status.
    Fail(Status),
    /// Nothing more, ever.
    Hang,
}

/// What the calls get, in the order they come. Calls after those that have scripts fail with
/// UNAVAILABLE.
pub type Scripts = Vec<Vec<Step>>;

/// The server. On a runtime of its own, so that killing it cuts all connections.
pub struct Fake {
    /// Where a client finds it.
    pub url: String,
    address: SocketAddr,
    shared: Arc<FakeState>,
    runtime: Option<Runtime>,
}

#[derive(Default)]
struct FakeState {
    scripts: Mutex<VecDeque<Vec<Step>>>,
    requests: Mutex<Vec<SubscribeRequest>>,
    credentials: Mutex<Vec<String>>,
    range: Mutex<LogRange>,
}

impl Fake {
    /// Starts it on a port that the system chooses.
    #[must_use]
    pub fn start(scripts: Scripts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(FakeState {
            scripts: Mutex::new(scripts.into()),
            ..FakeState::default()
        });
        Self {
            url: format!("http://{address}"),
            address,
            runtime: Some(serve(listener, Arc::clone(&shared))),
            shared,
        }
    }

    /// Sets what `GetRange` answers.
    #[must_use]
    pub fn with_range(self, range: LogRange) -> Self {
        *self.shared.range.lock().unwrap() = range;
        self
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<SubscribeRequest> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// What was shown with each of them.
    pub fn credentials(&self) -> Vec<String> {
        self.shared.credentials.lock().unwrap().clone()
    }

    /// Cuts all connections.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Comes back at the same address.
    pub fn restart(&mut self) {
        let listener = loop {
            // The old listener is closed by another thread.
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(_) => std::thread::yield_now(),
            }
        };
        self.runtime = Some(serve(listener, Arc::clone(&self.shared)));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(listener: TcpListener, shared: Arc<FakeState>) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tonic::transport::Server::builder()
            .add_service(Service(shared))
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
    runtime
}

/// A cursor that a test can read.
#[must_use]
pub fn cursor(sequence: u64) -> String {
    format!("cursor-{sequence}")
}

/// An event that is told from others by its number.
#[must_use]
pub fn event(sequence: u64) -> Event {
    Event {
        id: format!("evt_{sequence}"),
        r#type: "user.created".to_owned(),
        app_id: "app_1".to_owned(),
        user_id: "usr_1".to_owned(),
        cursor: cursor(sequence),
        sequence,
        ..Event::default()
    }
}

/// Events one after another, with the cursor after the last.
#[must_use]
pub fn events(sequences: std::ops::RangeInclusive<u64>) -> Step {
    Step::Respond(SubscribeResponse {
        cursor: cursor(*sequences.end()),
        events: sequences.map(event).collect(),
        notice: None,
    })
}

/// A response without events.
#[must_use]
pub fn notice(at: u64, notice: Notice) -> Step {
    Step::Respond(SubscribeResponse {
        events: Vec::new(),
        cursor: cursor(at),
        notice: Some(notice),
    })
}

/// The first response of a stream.
#[must_use]
pub fn started(after_sequence: u64, head: u64) -> Step {
    let range = Some(range(1, head));
    notice(
        after_sequence,
        Notice::Started(Started {
            filter: None,
            range,
            after_sequence,
        }),
    )
}

/// The switch from history to live events.
#[must_use]
pub fn caught_up(sequence: u64) -> Step {
    notice(sequence, Notice::CaughtUp(CaughtUp { sequence }))
}

/// The place of an idle stream, at the head of the log.
#[must_use]
pub fn progress(sequence: u64) -> Step {
    notice(
        sequence,
        Notice::Progress(Progress {
            sequence,
            head_sequence: sequence,
        }),
    )
}

/// The range of a log that received event n at n seconds after 2023-11-14T22:13:20Z.
#[must_use]
pub fn range(earliest: u64, head: u64) -> LogRange {
    let end = |cursor_at, sequence: u64| LogEnd {
        cursor: cursor(cursor_at),
        sequence,
        received_at: Some(prost_types::Timestamp {
            seconds: 1_700_000_000 + i64::try_from(sequence).unwrap(),
            nanos: 0,
        }),
    };
    LogRange {
        earliest: Some(end(earliest - 1, earliest)),
        head: Some(end(head, head)),
        event_count: head + 1 - earliest,
    }
}

#[derive(Clone)]
struct Service(Arc<FakeState>);

impl NamedService for Service {
    const NAME: &'static str = "prelude.bridge.v1.EventService";
}

impl tower_service::Service<Request<Body>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path().ends_with("/Subscribe") {
                let mut grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.server_streaming(service, request).await)
            } else {
                let mut grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.unary(service, request).await)
            }
        })
    }
}

impl ServerStreamingService<SubscribeRequest> for Service {
    type Response = SubscribeResponse;
    type ResponseStream = ReceiverStream<Result<SubscribeResponse, Status>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<SubscribeRequest>) -> Self::Future {
        let shown = request.metadata().get("authorization");
        let shown = shown.map_or("", |value| value.to_str().unwrap());
        self.0.credentials.lock().unwrap().push(shown.to_owned());
        self.0.requests.lock().unwrap().push(request.into_inner());
        let script = self.0.scripts.lock().unwrap().pop_front();
        Box::pin(async move {
            let script = script.ok_or_else(|| Status::unavailable("no script is left"))?;
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                let mut script = tokio_stream::iter(script);
                while let Some(step) = script.next().await {
                    let _ = match step {
                        Step::Respond(response) => sender.send(Ok(response)).await,
                        Step::Fail(status) => sender.send(Err(status)).await,
                        Step::Hang => std::future::pending().await,
                    };
                }
            });
            Ok(tonic::Response::new(ReceiverStream::new(receiver)))
        })
    }
}

impl UnaryService<GetRangeRequest> for Service {
    type Response = GetRangeResponse;
    type Future = BoxFuture<'static, Result<tonic::Response<GetRangeResponse>, Status>>;

    fn call(&mut self, _request: tonic::Request<GetRangeRequest>) -> Self::Future {
        let range = self.0.range.lock().unwrap().clone();
        let response = GetRangeResponse {
            earliest: range.earliest,
            head: range.head,
            event_count: range.event_count,
        };
        Box::pin(async move { Ok(tonic::Response::new(response)) })
    }
}
