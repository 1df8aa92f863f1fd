//! The sequencer on real servers of PostgreSQL. They need Debian's package, which `make tools` installs.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "tests"
)]

mod failures;
mod following;
mod log;
mod positions;
mod refusals;
mod standbys;
mod tls;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use prelude_bridge_log::sequencer::{Ends, Outage, Outcome, Position, Sequencer as _};
use prelude_bridge_postgres::{
    OpenError, Options, Postgres, open,
    testing::{Server, local, open_impatiently},
};
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

fn options(server: &Server) -> Options {
    local(server.port())
}

async fn sequencer(server: &Server) -> Arc<Postgres> {
    open(options(server)).await.unwrap().sequencer
}

async fn impatient(options: Options) -> Arc<Postgres> {
    open_impatiently(options).await.unwrap().sequencer
}

async fn refused(options: Options) -> OpenError {
    match open_impatiently(options).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

fn commit(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

fn ends(first: u64, last: u64) -> Ends {
    Ends {
        first: Position(first),
        last: Position(last),
    }
}

/// Appends until the engine says who won, as a bridge does that is alone. Gives how often it was told of an
/// outage.
async fn settle(sequencer: &Postgres, position: u64, commit: &Bytes) -> u32 {
    let mut outages = 0;
    let until = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < until, "position {position} is not settled");
        match sequencer.append(Position(position), commit.clone()).await {
            Ok(Outcome::Won) => return outages,
            Ok(Outcome::Refused) => {}
            Err(_) => outages += 1,
        }
        if let Ok(Some(found)) = sequencer.get(Position(position)).await {
            assert_eq!(found, *commit, "position {position} is somebody else's");
            return outages;
        }
        sleep(LOOK).await;
    }
}

async fn append_all(sequencer: &Postgres, positions: std::ops::RangeInclusive<u64>) {
    for position in positions {
        settle(sequencer, position, &commit(format!("commit {position}"))).await;
    }
}

/// The commits from a position on, as one bridge after another follows.
async fn collect(sequencer: &Postgres, from: u64, count: usize) -> Vec<(u64, Bytes)> {
    let commits = sequencer.follow(Position(from)).take(count).map(|commit| {
        let (position, commit) = commit.unwrap();
        (position.0, commit)
    });
    timeout(SOON, commits.collect()).await.unwrap()
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {SOON:?}");
        sleep(LOOK).await;
    }
}

/// Connections that the sequencers of a test have.
fn sessions(server: &Server) -> String {
    server.ask("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'prelude-bridge'")
}
