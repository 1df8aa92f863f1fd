//! Owns when the keys of a JWT issuer are fetched: at the start, every ten minutes, after failures,
//! and when a JWT names a key that nobody knows, which anyone can do and so happens rarely. One
//! fetch at a time, for all who wait. The rules of the way are those of `signature`.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{Error, KeySet};
use crate::{
    plain,
    signature::{self, KeySource},
};

/// How many callers may wait for newer keys at once; more are answered with the keys we have.
const DEMANDS_MAX: usize = 1024;

/// The keys, kept fresh until this is dropped.
pub(super) struct Keys {
    state: watch::Receiver<State>,
    demands: mpsc::Sender<Demand>,
    fetch_timeout: Duration,
    tasks: TaskTracker,
    stop: DropGuard,
}

#[derive(Clone, Default)]
struct State {
    keys: Arc<KeySet>,
    /// How many fetches have ended, well or badly.
    attempts: u64,
}

/// A caller whose JWT no known key fits.
struct Demand {
    /// The attempts that it knew of: any later one answers it without another fetch.
    attempts_seen: u64,
    /// Whether a person asked: then the source is read, whatever was read before.
    is_ordered: bool,
    done: oneshot::Sender<()>,
}

struct Refresher {
    source: KeySource,
    options: signature::Options,
    /// The document behind the keys, to see that a new one is the same.
    document: Vec<u8>,
    state: watch::Sender<State>,
    demands: mpsc::Receiver<Demand>,
    next: Instant,
    pause: Duration,
    /// When keys that could not be confirmed are not trusted any more.
    expires: Instant,
    demanded: Option<Instant>,
}

impl Keys {
    pub(super) async fn open(
        source: KeySource,
        options: signature::Options,
    ) -> Result<Self, Error> {
        let now = Instant::now();
        let (demands, receiver) = mpsc::channel(DEMANDS_MAX);
        let fetch_timeout = options.fetch_timeout;
        let mut refresher = Refresher {
            source,
            document: Vec::new(),
            state: watch::Sender::new(State::default()),
            demands: receiver,
            next: now,
            pause: options.retry_interval_min,
            expires: now,
            demanded: None,
            options,
        };
        if let KeySource::JwksFile(_) | KeySource::PemFile(_) = refresher.source {
            // A mistake of the operator's, to be said at once. A URL that is down is not.
            let news = refresher.read().await?;
            refresher.keep(news);
        }
        let state = refresher.state.subscribe();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let tasks = TaskTracker::new();
        tasks.spawn(async move {
            stopped.run_until_cancelled_owned(refresher.run()).await;
        });
        tasks.close();
        Ok(Self {
            state,
            demands,
            fetch_timeout,
            tasks,
            stop: stop.drop_guard(),
        })
    }

    /// The keys at this moment, and the attempts that they come from.
    pub(super) fn snapshot(&self) -> (Arc<KeySet>, u64) {
        let state = self.state.borrow();
        (Arc::clone(&state.keys), state.attempts)
    }

    /// Asks for newer keys than those of the given attempt, and waits while some may come.
    pub(super) async fn demand(&self, attempts_seen: u64) {
        let (done, answered) = oneshot::channel();
        let demand = Demand {
            attempts_seen,
            is_ordered: false,
            done,
        };
        // Full, or shut down: nothing newer is to be had.
        if self.demands.try_send(demand).is_ok() {
            let _ = timeout(self.fetch_timeout, answered).await;
        }
    }

    /// Has the source read now, without waiting for it.
    pub(super) fn read_again(&self) {
        let (done, _) = oneshot::channel();
        // Full: then the source is about to be read for others.
        let _ = self.demands.try_send(Demand {
            attempts_seen: 0,
            is_ordered: true,
            done,
        });
    }

    pub(super) async fn shutdown(&self) {
        self.stop.token().cancel();
        self.tasks.wait().await;
    }
}

impl Refresher {
    async fn run(mut self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.next) => self.refresh().await,
                demand = self.demands.recv() => match demand {
                    Some(demand) => self.answer(demand).await,
                    None => return,
                },
            }
        }
    }

    async fn answer(&mut self, demand: Demand) {
        if demand.is_ordered {
            return self.refresh().await;
        }
        let has_news = self.state.borrow().attempts > demand.attempts_seen;
        let is_allowed = self
            .demanded
            .is_none_or(|at| at.elapsed() >= self.options.unknown_interval_min);
        if !has_news && is_allowed {
            self.demanded = Some(Instant::now());
            self.refresh().await;
        }
        // The asker may have given up: that is its right.
        let _ = demand.done.send(());
    }

    async fn refresh(&mut self) {
        match self.read().await {
            Ok(news) => self.keep(news),
            Err(error) => self.fail(&error),
        }
    }

    /// A new document with its keys, or `None` if it is still the one we have.
    async fn read(&self) -> Result<Option<(Vec<u8>, KeySet)>, Error> {
        let document = signature::fetch_document(&self.source, self.options.fetch_timeout).await?;
        if document.len() > signature::DOCUMENT_BYTES_MAX {
            let bytes_max = signature::DOCUMENT_BYTES_MAX;
            let fault = signature::KeySetFault::TooLarge { bytes_max };
            return Err(signature::Error::from(fault).into());
        }
        if document == self.document {
            return Ok(None);
        }
        let keys = KeySet::parse(&document)?;
        Ok(Some((document, keys)))
    }

    fn keep(&mut self, news: Option<(Vec<u8>, KeySet)>) {
        let now = Instant::now();
        self.pause = self.options.retry_interval_min;
        self.expires = now + self.options.outage_max;
        self.next = now
            + match self.source {
                KeySource::Url(_) => self.options.refresh_interval,
                KeySource::JwksFile(_) | KeySource::PemFile(_) => self.options.file_check_interval,
            };
        let keys = news.map(|(document, keys)| {
            tracing::info!(
                source = plain::configured(&self.source),
                keys = keys.len(),
                "keys of JWTs loaded"
            );
            self.document = document;
            Arc::new(keys)
        });
        self.state.send_modify(|state| {
            state.attempts += 1;
            if let Some(keys) = keys {
                state.keys = keys;
            }
        });
    }

    /// Keeps the last good keys while they may be kept.
    fn fail(&mut self, error: &Error) {
        let now = Instant::now();
        let is_expired = now >= self.expires;
        let keys = self.state.borrow().keys.len();
        let (source, error) = (plain::configured(&self.source), error.shown());
        if keys == 0 {
            tracing::warn!(
                source,
                error,
                keys,
                "the keys of JWTs could not be read, and none are known: callers with a JWT are \
                 asked to try again later"
            );
        } else if is_expired {
            tracing::error!(
                source,
                error,
                keys,
                "the keys of JWTs could not be refreshed; those in use are too old and no longer \
                 trusted"
            );
        } else {
            tracing::warn!(
                source,
                error,
                keys,
                "the keys of JWTs could not be refreshed; the last good ones stay in use for now"
            );
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(self.options.retry_interval_max);
        if is_expired {
            self.document.clear();
        }
        self.state.send_modify(|state| {
            state.attempts += 1;
            if is_expired {
                state.keys = Arc::default();
            }
        });
    }
}
