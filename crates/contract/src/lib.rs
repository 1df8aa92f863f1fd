//! The contract of prelude-bridge, package `prelude.bridge.v1`, as Rust types: messages, the stubs
//! of a client, and the descriptors. Owns nothing that is written by hand; the contract itself is
//! in `proto/` at the top of the repository, with a comment at every field.
//!
//! `src/generated/` is made from it and committed, so that a program that uses these types needs
//! neither `protoc` nor a code generator. `tests/generated.rs` fails when the two differ, and
//! writes them anew when it is told to.

#[expect(clippy::all, reason = "generated from the commented contract")]
mod generated {
    include!("generated/prelude.bridge.v1.rs");
}

pub use generated::*;

/// The compiled contract with its comments, a `google.protobuf.FileDescriptorSet`: what reflection
/// serves.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
