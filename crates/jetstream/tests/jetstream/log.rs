//! A replicated log on NATS does what every log must do.

use std::sync::atomic::{AtomicU32, Ordering};

use prelude_bridge_jetstream::{
    Options,
    testing::{Config, Nats},
};
use prelude_bridge_log::{
    conformance::{self, Factory, Opened, Setup},
    with_conformance_claims,
};

use crate::support::options;

/// Each log has a stream of its own.
struct Streams {
    nats: Nats,
    count: AtomicU32,
}

impl Factory for Streams {
    fn open(&self, setup: Setup) -> Opened {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let options = Options {
            stream: format!("log-{number}"),
            // The servers reserve it.
            retention_bytes: 1 << 26,
            ..options(&self.nats, 1)
        };
        let sequencer = async {
            let opened = prelude_bridge_jetstream::open(options).await;
            opened.unwrap().sequencer as _
        };
        conformance::open_replica(&setup, tempfile::tempdir().unwrap(), sequencer)
    }
}

macro_rules! hold {
    ($factory:expr; $($claim:ident)*) => {
        $(conformance::$claim($factory).await;)*
    };
}

/// All but what is said of retention: that of a stream goes by the server's clock.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_log_on_nats_conforms() {
    let streams = Streams {
        nats: Nats::start(1, Config::default()).await,
        count: AtomicU32::new(0),
    };
    with_conformance_claims! { hold, &streams }
}
