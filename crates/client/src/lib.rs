//! The client library for Rust programs: a [`Client`] of a bridge and a [`Subscription`] to its events,
//! which resumes after restarts of the bridge and failures of the network. It knows only the contract in
//! `proto/`, and shares no code with the server.
//!
//! ```no_run
//! use prelude_bridge_client::{Client, FileCursorStore, Item, Options, Request, Start};
//! use tokio_stream::StreamExt as _;
//!
//! # async fn process(event: &prelude_bridge_client::proto::Event) {}
//! # async fn example() -> Result<(), prelude_bridge_client::Error> {
//! let client = Client::connect(&Options::new("http://127.0.0.1:50051")).await?;
//! // The first run starts with the oldest event, later runs after the last acknowledged one.
//! let request = Request::new().types(["user.session.*"]).start(Start::Earliest);
//! let store = FileCursorStore::new("sessions.cursor");
//! let mut subscription = client.resume(request, store).await?;
//!
//! while let Some(item) = subscription.next().await {
//!     match item? {
//!         Item::Event(event) => process(&event).await,
//!         Item::Notice(notice) => eprintln!("{notice}"),
//!     }
//!     // Everything that was received is processed, so a restart may continue here.
//!     if subscription.buffered() == 0 {
//!         subscription.acknowledge().await?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Delivery is at least once. A subscription never repeats an event, whatever happens to its connection.
//! A program that is restarted continues after what it acknowledged, so events that it processed after
//! that come again: recognise them by `(app_id, type, id)`.

mod backoff;
mod connect;
mod connector;
mod credential;
mod cursor_store;
mod error;
mod request;
mod subscription;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;

/// The contract: what requests and events are made of.
pub use prelude_bridge_contract as proto;

pub use self::{
    backoff::Backoff,
    connect::{Client, Options},
    credential::TokenSource,
    cursor_store::{CursorStore, FileCursorStore, StoreError},
    error::{Error, FieldFault},
    request::{Request, Start, Stop},
    subscription::{Item, Notice, Subscription},
};

/// The page's example is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
