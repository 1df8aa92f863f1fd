//! Owns PostgreSQL as a sequencer: the engine that gives the commits of several bridges one order and
//! keeps them. Knows nothing of what a commit contains.
//!
//! ```text
//! options   where the database is, from a URL
//! tls       whom a connection trusts, and what it shows
//! fault     what errors of PostgreSQL mean
//! session   one connection
//! server    what the server's settings promise
//! table     the table: creating it, checking it, every statement
//! link      the connections to one primary
//! links     finding it
//! follow    all commits from a position on
//! testing   servers for tests
//! ```
//!
//! A commit is a row, and its position the primary key. [`append`](Sequencer::append) inserts the row on the
//! condition that the last row is the one before. Of two writers at one position the second waits for the
//! first one's transaction, by the key's index, and inserts nothing when that commits. A row is never seen
//! before its predecessor, so there are no holes; and because [`trim`](Sequencer::trim) never removes the
//! last row, the last position is never forgotten.
//!
//! # What counts as stored
//! A row becomes visible to others only when its transaction is flushed, and, with a synchronous standby,
//! when the standby has flushed it too. There are two exceptions, in both of which a row becomes visible that
//! no standby has: a server that crashes while a transaction waits for the standby has committed it when it
//! is up again; and who cancels such a wait (`pg_cancel_backend`, `pg_terminate_backend`, a fast shutdown)
//! commits locally. So no row is passed on, to nobody, before it is *confirmed*: by its writer, who
//! announces it (`NOTIFY`) after it was told of success and without a warning; or by a transaction of this
//! bridge that began after the row was visible, and that was told of the standby's flush. This is why a
//! cancelled commit is no success either: PostgreSQL reports it as one with a warning, and
//! [`append`](Sequencer::append) answers [`Outage::Unavailable`].
//!
//! What does not hold: without a synchronous standby, or when somebody empties `synchronous_standby_names`
//! while the standby is away, a promoted standby may lack commits that were acknowledged. Positions then go
//! back, and the log detects it.

mod fault;
mod follow;
mod link;
mod links;
mod options;
mod server;
mod session;
mod table;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use prelude_bridge_log::sequencer::{Ends, Outage, Outcome, Position, Sequencer};
use tokio::sync::watch;

use self::links::Links;
pub use self::options::{Options, TlsMode};
pub use prelude_bridge_log::sequencer::Secret;

/// How many bytes a commit may have. PostgreSQL would take a gigabyte; this is what a bridge is ready to hold.
const COMMIT_BYTES_MAX: usize = 16 << 20;

/// How long answers are waited for. The server is given up when it is silent; an answer that is late is not.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// An append, at most.
    pub(crate) append: Duration,
    /// The other questions.
    pub(crate) answer: Duration,
    /// What a server that is alive answers at once.
    pub(crate) silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            append: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            silence: Duration::from_secs(5),
        }
    }
}

/// Why the database cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// An option, or a file that it names.
    #[error("{0}")]
    Options(String),
    /// No primary answers at any of the hosts. It may pass by itself.
    #[error("{0}")]
    Unreachable(String),
    /// The server, the database, the role or the table is not as it has to be. Says what to do.
    #[error("{0}")]
    Unusable(String),
}

/// An open sequencer.
pub struct Opened {
    /// The sequencer. Its connections are made again until it is dropped.
    pub sequencer: Arc<Postgres>,
    /// What can be seen of the server, and may be a mistake.
    pub warnings: Vec<String>,
}

/// Connects to the primary, and creates or checks the table.
///
/// # Errors
/// [`OpenError`].
pub async fn open(options: Options) -> Result<Opened, OpenError> {
    open_with(options, Patience::default()).await
}

async fn open_with(options: Options, patience: Patience) -> Result<Opened, OpenError> {
    let (links, warnings) = Links::open(options, patience).await?;
    let sequencer = Arc::new(Postgres {
        links: Arc::new(links),
    });
    Ok(Opened {
        sequencer,
        warnings,
    })
}

/// A table of PostgreSQL as a sequencer. [`peers`](Sequencer::peers) is `None`: what `NOTIFY` carries has
/// less than 8,000 bytes, and all of a server's notifications pass through one queue and one lock. It is
/// missed less than with JetStream: a writer who loses a position has waited for the winner's commit, which
/// it then finds at once, and is never refused without one.
pub struct Postgres {
    links: Arc<Links>,
}

impl Sequencer for Postgres {
    fn append(&self, position: Position, commit: Bytes) -> BoxFuture<'_, Result<Outcome, Outage>> {
        Box::pin(async move {
            if commit.len() > COMMIT_BYTES_MAX {
                let problem = format!(
                    "a commit of {} bytes is more than the {COMMIT_BYTES_MAX} that the table takes",
                    commit.len()
                );
                return Err(Outage::Unusable(problem.into()));
            }
            let link = self.links.current().await?;
            link.append(table::number(position), commit).await
        })
    }

    fn get(&self, position: Position) -> BoxFuture<'_, Result<Option<Bytes>, Outage>> {
        Box::pin(async move {
            let link = self.links.current().await?;
            link.get(table::number(position)).await
        })
    }

    fn ends(&self) -> BoxFuture<'_, Result<Ends, Outage>> {
        Box::pin(async move { self.links.current().await?.ends().await })
    }

    fn follow(&self, from: Position) -> BoxStream<'static, Result<(Position, Bytes), Outage>> {
        follow::follow(Arc::clone(&self.links), from)
    }

    fn trim(&self, before: Position) -> BoxFuture<'_, Result<(), Outage>> {
        Box::pin(async move {
            let link = self.links.current().await?;
            link.trim(table::number(before), self.links.ids_age()).await
        })
    }

    fn connections(&self) -> watch::Receiver<u64> {
        self.links.connections()
    }

    fn commit_bytes_max(&self) -> usize {
        COMMIT_BYTES_MAX
    }

    fn append_time_max(&self) -> Duration {
        self.links.patience().append
    }

    fn name(&self) -> Arc<str> {
        self.links.name()
    }
}
