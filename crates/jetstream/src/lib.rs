//! NATS JetStream as the sequencer of the replicated log: one stream, one subject, one message for each
//! commit. Knows nothing of what a commit contains, and nothing of HTTP, gRPC and subscribers.
//!
//! ```text
//! options    what is configured, and the subjects that follow from it
//! error      why the stream cannot be opened
//! link       a connection: requests with time-outs, reconnects, what the server forbids
//! api        the JSON of JetStream's API
//! settings   which settings of a stream keep the promises, which break one
//! answer     what an answer to an append means
//! stream     appending and looking up
//! follow     a consumer that reads the stream
//! peers      questions between bridges
//! sequencer  the contract, on these parts
//! open       connecting, creating or checking the stream
//! testing    servers of NATS for tests
//! ```
//!
//! # What the account needs
//! With the stream `prelude-bridge`, the user of a bridge publishes to these subjects
//!
//! ```text
//! prelude-bridge.prelude-bridge.commits         the commits
//! prelude-bridge.prelude-bridge.peer.>          questions to other bridges
//! $JS.API.INFO
//! $JS.API.STREAM.CREATE.prelude-bridge          only if the bridge has to create the stream
//! $JS.API.STREAM.INFO.prelude-bridge
//! $JS.API.STREAM.MSG.GET.prelude-bridge
//! $JS.API.CONSUMER.CREATE.prelude-bridge.>
//! $JS.API.CONSUMER.MSG.NEXT.prelude-bridge.>
//! $JS.API.CONSUMER.DELETE.prelude-bridge.>
//! _INBOX.>                                      answers to other bridges
//! ```
//!
//! and subscribes to `_INBOX.>` and `prelude-bridge.prelude-bridge.peer.>`. Nobody else may publish to the
//! first one, or delete, purge or edit the stream.

mod answer;
mod api;
mod error;
mod follow;
mod link;
mod open;
mod options;
mod peers;
mod sequencer;
mod settings;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;

pub use self::{
    error::OpenError,
    open::{Opened, open},
    options::{Login, Options, Tls},
    sequencer::JetStream,
};
