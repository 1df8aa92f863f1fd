//! Compiles the bridge's own contract, with a server and a client.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../../proto");
    let files = ["prelude/bridge/v1/event_service.proto"];
    tonic_prost_build::configure().compile_fds(protox::compile(files, ["../../proto"])?)?;
    Ok(())
}
