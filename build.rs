//! Compiles the contract in `proto/` with protox, so that no protoc is needed, and keeps the
//! descriptor set for reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTO_FILES: [&str; 4] = [
    "prelude/bridge/v1/event_service.proto",
    "prelude/bridge/v1/event.proto",
    "prelude/bridge/v1/payload.proto",
    "prelude/bridge/v1/position.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTO_FILES, ["proto"])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // The server is written by hand (src/stream/service.rs): its responses are pre-encoded bytes.
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".prelude.bridge.v1.Event.raw_json")
        .compile_fds(descriptors)?;
    Ok(())
}
