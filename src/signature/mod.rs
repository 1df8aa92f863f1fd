//! Proof that a batch came from the sender: keys, where they come from, and RSASSA-PSS over the raw
//! bytes.
//!
//! ```text
//! X-Webhook-Signature ── header::Signature ─┐
//! body bytes ───────────────────────────────┼─ Keyring::verify ── VerifiedBody
//! KeySource ── source ── KeySet ────────────┘
//!                 └───── cache (the last good set, on disk)
//! ```
//!
//! Only this room can build a [`VerifiedBody`], so holding one is the proof. It knows nothing of
//! HTTP statuses, batches or events: a body is bytes, a refusal is an [`Error`] that the receiver
//! translates.

mod cache;
mod error;
mod explain;
mod header;
mod key;
mod key_set;
mod keyring;
pub mod pss;
mod refresh;
mod source;

pub use error::{Error, FetchFault, HeaderFault, KeyFault, KeySetFault};
pub use explain::{Attempt, Explanation, Finding, explain};
pub use header::{SCHEME, Signature};
pub use key::PublicKey;
pub use key_set::{KEYS_MAX, KeySet, Skipped};
pub use keyring::{Keyring, VerifiedBody};
pub use refresh::{KeyStatus, Origin, Status};
pub(crate) use source::fetch_document;
pub use source::{DOCUMENT_BYTES_MAX, KeySource, Options, fetch, fetch_trusting};

#[cfg(test)]
mod testing;
