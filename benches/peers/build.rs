//! Compiles a server for the bridge's own contract; its messages are those of the contract's crate.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../../proto");
    let files = ["prelude/bridge/v1/event_service.proto"];
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".prelude.bridge.v1", "::prelude_bridge_contract")
        .compile_fds(protox::compile(files, ["../../proto"])?)?;
    Ok(())
}
