//! The committed code is what the contract in `proto/` generates. After a change of the contract:
//!
//! ```sh
//! WRITE_GENERATED=1 cargo test -p prelude-bridge-contract
//! ```

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;

const PROTO_FILES: [&str; 4] = [
    "prelude/bridge/v1/event_service.proto",
    "prelude/bridge/v1/event.proto",
    "prelude/bridge/v1/payload.proto",
    "prelude/bridge/v1/position.proto",
];

const RUST: &str = "prelude.bridge.v1.rs";
const DESCRIPTORS: &str = "descriptors.bin";

#[test]
fn the_committed_code_is_what_the_contract_generates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/generated");
    let made = tempfile::tempdir().unwrap();
    generate(&root.join("../../proto"), made.path()).unwrap();
    for name in [RUST, DESCRIPTORS] {
        let fresh = fs::read(made.path().join(name)).unwrap();
        if env::var_os("WRITE_GENERATED").is_some() {
            fs::create_dir_all(&committed).unwrap();
            fs::write(committed.join(name), &fresh).unwrap();
        }
        assert!(
            fs::read(committed.join(name)).is_ok_and(|old| old == fresh),
            "src/generated/{name} is not what proto/ generates: run\n  \
             WRITE_GENERATED=1 cargo test -p prelude-bridge-contract"
        );
    }
}

#[test]
fn every_file_of_the_contract_is_generated_from() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/prelude/bridge/v1");
    let mut files: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| format!("prelude/bridge/v1/{name}"))
        .collect();
    files.sort();
    let mut known = PROTO_FILES.map(str::to_owned);
    known.sort();
    assert_eq!(files, known);
}

/// Writes the Rust code and the descriptors of the contract into a directory.
fn generate(proto: &Path, directory: &Path) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(PROTO_FILES, [proto])?;
    fs::write(directory.join(DESCRIPTORS), descriptors.encode_to_vec())?;
    // The bridge's server is written by hand: its responses are encoded before anybody asks.
    tonic_prost_build::configure()
        .build_server(false)
        // Connecting is the client's: the contract needs no transport.
        .build_transport(false)
        .bytes(".prelude.bridge.v1.Event.raw_json")
        .out_dir(directory)
        .compile_fds(descriptors)?;
    Ok(())
}
