//! Proof that a batch came from the sender: keys, where they come from, and RSASSA-PSS over the raw
//! bytes.
//!
//! ```text
//! X-Webhook-Signature ── header::Signature ─┐
//! body bytes ───────────────────────────────┼─ Keyring::verify ── VerifiedBody
//! KeySource ── key_source ── KeySet ────────┘
//! ```
//!
//! Only this room can build a [`VerifiedBody`], so holding one is the proof. It knows nothing of
//! HTTP statuses, batches or events: a body is bytes, a refusal is an [`Error`] that the receiver
//! translates.

mod app_keys;
mod error;
mod explain;
mod fetch;
mod header;
mod key;
mod key_set;
mod keyring;
pub mod pss;

pub use app_keys::{KeyStatus, Status};
pub use error::{Error, HeaderFault, KeyFault, KeySetFault};
pub use explain::{Attempt, Explanation, Finding, explain};
pub use fetch::{fetch, fetch_trusting};
pub use header::{SCHEME, Signature};
pub use key::PublicKey;
pub use key_set::{KeySet, Skipped};
pub use keyring::{Keyring, Unmatched, VerifiedBody};
pub use pss::BodyDigest;

pub use crate::key_source::{
    DOCUMENT_BYTES_MAX, DocumentFault, FetchFault, KEYS_MAX, KeySource, Options, Origin,
};

#[cfg(test)]
mod testing;
