//! The bytes of a connection to the webhook port: every answer is one of HTTP/1.1.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use prelude_bridge::{
    fuzzing::APP,
    log::memory,
    metrics::Metrics,
    receiver::{App, Deliveries, Options, Receiver, VerificationToken, VerificationTokens},
    signature::{KeySource, Keyring},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
});

static RECEIVER: LazyLock<Receiver> = LazyLock::new(|| {
    let _entered = RUNTIME.enter();
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/jwks/one.json");
    let source = KeySource::JwksFile(keys.into());
    let app = App {
        id: APP.into(),
        deliveries: Deliveries::Batches(VerificationTokens::new(vec![VerificationToken::new(
            "token",
        )])),
        keyring: Keyring::open(APP, source, Default::default(), None).unwrap(),
    };
    let log = memory::open(memory::Options::default()).unwrap();
    let mut options = Options::default();
    options.forgeries.at_once = u32::MAX;
    Receiver::new(options, vec![app], log, Arc::new(Metrics::new()))
});

fuzz_target!(|data: &[u8]| {
    let answers = RUNTIME.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (mut read, mut write) = client.unwrap().into_split();
        let (server, peer) = listener.accept().await.unwrap();
        let mut answers = Vec::new();
        tokio::join!(
            RECEIVER.serve(server, peer),
            async {
                // The bridge may end the connection before it has read everything.
                let _ = write.write_all(data).await;
                let _ = write.shutdown().await;
            },
            async {
                let _ = read.read_to_end(&mut answers).await;
            }
        );
        answers
    });
    assert!(
        answers.is_empty()
            || answers.starts_with(b"HTTP/1.1 ")
            || answers.starts_with(b"HTTP/1.0 ")
    );
    assert!(!answers.windows(12).any(|bytes| bytes == b"HTTP/1.1 500"));
});
