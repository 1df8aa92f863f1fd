//! A replicated log on PostgreSQL does what every log must do.

use std::sync::atomic::{AtomicU32, Ordering};

use prelude_bridge_log::{
    conformance::{self, Factory, Opened, Setup},
    with_conformance_claims, with_retention_claims,
};

use super::{Options, Server, open, options};

/// Each log has a table of its own.
struct Tables {
    server: Server,
    count: AtomicU32,
}

impl Factory for Tables {
    fn open(&self, setup: Setup) -> Opened {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let options = Options {
            table: format!("log_{number}"),
            ..options(&self.server)
        };
        let sequencer = async { open(options).await.unwrap().sequencer as _ };
        conformance::open_replica(&setup, tempfile::tempdir().unwrap(), sequencer)
    }
}

macro_rules! hold {
    ($factory:expr; $($claim:ident)*) => {
        $(conformance::$claim($factory).await;)*
    };
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_log_on_postgresql_conforms() {
    let tables = Tables {
        server: Server::start(),
        count: AtomicU32::new(0),
    };
    with_conformance_claims! { hold, &tables }
    with_retention_claims! { hold, &tables }
}
