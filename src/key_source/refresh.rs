//! The background service that keeps the keys of one source fresh: when to read it, and what to
//! publish when that fails; and the handle of those who use the keys.
//!
//! It owns the schedule (refresh, retries, the limit for unknown signatures, the end of an outage)
//! and every read of the source, one at a time, so many callers that wait cost one fetch. It never
//! looks at a signature.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::cache::{Cache, Stored};
use super::fetch::{self, Client, Stamp};
use super::{Error, FetchFault, KeySource, Options};

/// How many callers may wait for newer keys at once; more are answered with the keys we have.
const DEMANDS_MAX: usize = 1024;

/// What the keys of a source are used for: which of its documents are good, and what the operator is
/// told of them.
pub(crate) trait KeyUse: Send + Sync + 'static {
    /// The keys of a document.
    type Keys: Default + Send + Sync + 'static;
    /// Why there are none.
    type Error: std::error::Error + From<Error> + Send + Sync + 'static;

    /// The keys of the documents of a source, at least one: one document of each of its files, or that
    /// of its URL.
    ///
    /// # Errors
    /// One is no document of keys, or no key can be used.
    fn read(&self, source: &KeySource, documents: &[Vec<u8>]) -> Result<Self::Keys, Self::Error>;

    /// How many they are.
    fn count(keys: &Self::Keys) -> usize;

    /// Logs that keys are in use from now on.
    fn log_loaded(&self, source: &KeySource, keys: &Self::Keys);

    /// Logs that the source could not be read.
    fn log_failure(&self, source: &KeySource, failure: &Failure<'_, Self::Error>);

    /// Logs that the document could not be kept on disk, where there is a cache.
    fn log_not_kept(&self, _path: &Path, _fault: &std::io::Error) {}
}

/// A read of the source that failed.
pub(crate) struct Failure<'f, E> {
    pub(crate) error: &'f E,
    /// How many keys were in use until now.
    pub(crate) keys: usize,
    /// Whether they are too old to stay in use.
    pub(crate) are_expired: bool,
}

/// What is known about the keys of a source at one moment; handed from the service to everyone.
#[derive(Debug)]
pub(crate) struct State<K> {
    pub(crate) keys: Arc<K>,
    pub(crate) origin: Origin,
    pub(crate) fetched_at: Option<SystemTime>,
    pub(crate) last_error: Option<String>,
    /// How many reads of the source have ended, well or badly.
    pub(crate) attempts: u64,
    /// How many of them a signature caused that no key fits.
    pub(crate) attempts_for_unknown: u64,
}

/// Where the keys in use were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere yet, or so long ago that they are not trusted any more.
    None,
    /// From the source itself.
    Source,
    /// From the copy that an earlier run left on disk; the source has not answered since.
    Cache,
}

/// The keys of a source, kept fresh in the background until this is dropped.
pub(crate) struct FreshKeys<U: KeyUse> {
    state: watch::Receiver<State<U::Keys>>,
    demands: mpsc::Sender<Demand>,
    fetch_timeout: Duration,
    tasks: TaskTracker,
    stop: DropGuard,
}

/// A caller whose signature no known key fits, asking for newer keys.
struct Demand {
    /// The attempts that the caller knew of: any later one answers it without another fetch.
    attempts_seen: u64,
    /// Whether a person asked: then the source is read, whatever was read before.
    is_ordered: bool,
    /// Answered as soon as nothing newer is to be expected.
    done: oneshot::Sender<()>,
}

impl<U: KeyUse> FreshKeys<U> {
    /// Loads what can be had without waiting, a file or the cached document of a URL, and begins to
    /// keep it fresh. `cache` is a directory and the name that the document has there.
    ///
    /// # Errors
    /// A file that cannot be read or has no usable key is a mistake of the operator's and said at
    /// once. A URL that does not answer is not: it is tried again.
    pub(crate) fn open(
        key_use: U,
        source: &KeySource,
        options: Options,
        cache: Option<(&Path, &str)>,
    ) -> Result<Self, U::Error> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let (demands, receiver) = mpsc::channel(DEMANDS_MAX);
        let fetch_timeout = options.fetch_timeout;
        let refresher = Refresher::new(key_use, source, options, cache, receiver)?;
        let state = refresher.state.subscribe();
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tasks.spawn_on(
            async move {
                stopped.run_until_cancelled_owned(refresher.run()).await;
            },
            &runtime,
        );
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
    pub(crate) fn snapshot(&self) -> (Arc<U::Keys>, u64) {
        let state = self.state.borrow();
        (Arc::clone(&state.keys), state.attempts)
    }

    /// All that is known at this moment. To be dropped soon: the service waits for it.
    pub(crate) fn state(&self) -> watch::Ref<'_, State<U::Keys>> {
        self.state.borrow()
    }

    /// Waits until the source has been read once, well or badly (files are when opening).
    pub(crate) async fn settled(&self) {
        let mut state = self.state.clone();
        let is_settled =
            |state: &State<U::Keys>| state.attempts > 0 || state.origin == Origin::Source;
        // Fails only when the service has been shut down: then nothing more will settle.
        let _ = state.wait_for(is_settled).await;
    }

    /// Resolves when the keys fulfil a condition, at once where they do already. Never, if the service
    /// ends before.
    pub(crate) async fn keys_where(&self, condition: impl Fn(&U::Keys) -> bool) {
        let mut state = self.state.clone();
        let met = state.wait_for(|state| condition(&state.keys)).await.is_ok();
        if !met {
            std::future::pending::<()>().await;
        }
    }

    /// Asks for newer keys than those of the given attempt, and waits while some may come.
    pub(crate) async fn demand(&self, attempts_seen: u64) {
        if let Some(answered) = self.send(attempts_seen, false) {
            let _ = timeout(self.fetch_timeout, answered).await;
        }
    }

    /// Has the source read now, without waiting for it: for an operator who says that it changed.
    pub(crate) fn read_again(&self) {
        let _ = self.send(0, true);
    }

    /// Stops the background service and waits for its end. The keys known so far stay in use.
    pub(crate) async fn shutdown(&self) {
        self.stop.token().cancel();
        self.tasks.wait().await;
    }

    /// `None` if nothing newer is to be had: the service was shut down, or so many wait already that
    /// the source is about to be read for them.
    fn send(&self, attempts_seen: u64, is_ordered: bool) -> Option<oneshot::Receiver<()>> {
        let (done, answered) = oneshot::channel();
        let demand = Demand {
            attempts_seen,
            is_ordered,
            done,
        };
        self.demands.try_send(demand).ok().map(|()| answered)
    }
}

/// How the service reads its source.
enum Reader {
    Url {
        client: Client,
        cache: Option<Cache>,
    },
    Files {
        paths: Vec<PathBuf>,
        /// Those of the documents in use.
        stamps: Vec<Stamp>,
    },
}

/// The service itself; it ends when it is dropped or when all handles are.
struct Refresher<U: KeyUse> {
    key_use: U,
    source: KeySource,
    options: Options,
    reader: Reader,
    /// The documents of the published keys, to notice that new ones are the same. Empty without keys.
    documents: Vec<Vec<u8>>,
    state: watch::Sender<State<U::Keys>>,
    demands: mpsc::Receiver<Demand>,
    next: Instant,
    pause: Duration,
    /// When keys that could not be confirmed are not trusted any more.
    expires: Instant,
    demanded: Option<Instant>,
}

/// Documents, and their keys.
type News<K> = (Vec<Vec<u8>>, K);

impl<U: KeyUse> Refresher<U> {
    fn new(
        key_use: U,
        source: &KeySource,
        options: Options,
        cache: Option<(&Path, &str)>,
        demands: mpsc::Receiver<Demand>,
    ) -> Result<Self, U::Error> {
        let now = Instant::now();
        let mut refresher = Self {
            key_use,
            source: source.clone(),
            reader: Reader::new(source, &options, cache).map_err(Error::from)?,
            documents: Vec::new(),
            state: watch::Sender::new(State {
                keys: Arc::default(),
                origin: Origin::None,
                fetched_at: None,
                last_error: None,
                attempts: 0,
                attempts_for_unknown: 0,
            }),
            demands,
            next: now,
            pause: options.retry_interval_min,
            expires: now,
            demanded: None,
            options,
        };
        match &mut refresher.reader {
            Reader::Url { cache, .. } => {
                if let Some(cache) = cache.clone() {
                    refresher.load(&cache);
                }
            }
            Reader::Files { paths, stamps } => {
                let files = fetch::read_files(paths).map_err(Error::from)?;
                let keys = refresher.key_use.read(source, &files.documents)?;
                *stamps = files.stamps;
                refresher.publish_good(Some((files.documents, keys)));
            }
        }
        Ok(refresher)
    }

    /// Runs until every handle is gone.
    async fn run(mut self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.next) => self.refresh(false).await,
                demand = self.demands.recv() => match demand {
                    Some(demand) => self.answer(demand).await,
                    None => return,
                },
            }
        }
    }

    /// One fetch serves all who were waiting: those who come after it have seen fewer attempts than
    /// there are now. And however many come, unknown signatures cause one fetch in a while only.
    async fn answer(&mut self, demand: Demand) {
        if demand.is_ordered {
            return self.refresh(false).await;
        }
        let has_news = self.state.borrow().attempts > demand.attempts_seen;
        let is_allowed = self
            .demanded
            .is_none_or(|at| at.elapsed() >= self.options.unknown_interval_min);
        if !has_news && is_allowed {
            self.demanded = Some(Instant::now());
            self.refresh(true).await;
        }
        // Fails where the caller has given up.
        let _ = demand.done.send(());
    }

    async fn refresh(&mut self, for_unknown: bool) {
        match self.read().await {
            Ok(news) => self.publish_good(news),
            Err(error) => self.publish_failure(&error),
        }
        self.state.send_modify(|state| {
            state.attempts += 1;
            state.attempts_for_unknown += u64::from(for_unknown);
        });
    }

    /// New documents with their keys, or `None` if they are still those in use.
    async fn read(&mut self) -> Result<Option<News<U::Keys>>, U::Error> {
        let documents = match &mut self.reader {
            Reader::Url { client, .. } => vec![client.get().await?],
            Reader::Files { paths, stamps } => {
                let (known, paths) = (stamps.clone(), paths.clone());
                let read = move || match fetch::stamps(&paths) {
                    Ok(current) if current == known => Ok(None),
                    _ => fetch::read_files(&paths).map(Some),
                };
                let Some(files) = blocking(read).await?.map_err(Error::from)? else {
                    return Ok(None);
                };
                let keys = self.key_use.read(&self.source, &files.documents)?;
                *stamps = files.stamps;
                return Ok(Some((files.documents, keys)));
            }
        };
        let keys = if documents == self.documents {
            None
        } else {
            Some(self.key_use.read(&self.source, &documents)?)
        };
        if let Some(document) = documents.first() {
            self.store(document).await;
        }
        Ok(keys.map(|keys| (documents, keys)))
    }

    fn publish_good(&mut self, news: Option<News<U::Keys>>) {
        let now = Instant::now();
        self.pause = self.options.retry_interval_min;
        self.expires = now + self.options.outage_max;
        self.next = now
            + match self.reader {
                Reader::Url { .. } => self.options.refresh_interval,
                Reader::Files { .. } => self.options.file_check_interval,
            };
        let keys = news.map(|(documents, keys)| {
            self.documents = documents;
            Arc::new(keys)
        });
        self.state.send_modify(|state| {
            if let Some(keys) = &keys {
                state.keys = Arc::clone(keys);
            }
            state.origin = Origin::Source;
            state.fetched_at = Some(SystemTime::now());
            state.last_error = None;
        });
        // After the keys are in use: no line of readiness contradicts it.
        if let Some(keys) = keys {
            self.key_use.log_loaded(&self.source, &keys);
        }
    }

    /// Keeps the last good keys while they may be kept: those of a URL for a while, those of files until
    /// the files have others, because a file that cannot be used changes nothing.
    fn publish_failure(&mut self, error: &U::Error) {
        let now = Instant::now();
        let keys = U::count(&self.state.borrow().keys);
        let (can_expire, pause_max) = match self.reader {
            Reader::Url { .. } => (true, self.options.retry_interval_max),
            Reader::Files { .. } => (false, self.options.file_check_interval),
        };
        let are_expired = can_expire && now >= self.expires && keys > 0;
        let failure = Failure {
            error,
            keys,
            are_expired,
        };
        self.key_use.log_failure(&self.source, &failure);
        self.next = now + self.pause.min(pause_max);
        self.pause = (self.pause * 2).min(pause_max);
        if are_expired {
            self.documents.clear();
        }
        self.state.send_modify(|state| {
            state.last_error = Some(error.to_string());
            if are_expired {
                state.keys = Arc::default();
                state.origin = Origin::None;
            }
        });
    }

    /// Takes what an earlier run stored, if it can be used; the source is asked all the same.
    fn load(&mut self, cache: &Cache) {
        let Some(Stored {
            document,
            fetched_at,
        }) = cache.load(self.options.outage_max)
        else {
            return;
        };
        let documents = vec![document];
        let Ok(keys) = self.key_use.read(&self.source, &documents) else {
            return;
        };
        let age = SystemTime::now()
            .duration_since(fetched_at)
            .unwrap_or_default();
        self.expires = Instant::now() + self.options.outage_max.saturating_sub(age);
        self.documents = documents;
        let keys = Arc::new(keys);
        self.state.send_modify(|state| {
            state.keys = Arc::clone(&keys);
            state.origin = Origin::Cache;
            state.fetched_at = Some(fetched_at);
        });
        self.key_use.log_loaded(&self.source, &keys);
    }

    /// A cache that cannot be written costs nothing until the next outage: say so and go on.
    async fn store(&self, document: &[u8]) {
        let Reader::Url {
            cache: Some(cache), ..
        } = &self.reader
        else {
            return;
        };
        let (writer, document) = (cache.clone(), document.to_vec());
        let stored = blocking(move || writer.store(&document, SystemTime::now())).await;
        if let Ok(Err(fault)) = stored {
            self.key_use.log_not_kept(cache.path(), &fault);
        }
    }
}

impl Reader {
    fn new(
        source: &KeySource,
        options: &Options,
        cache: Option<(&Path, &str)>,
    ) -> Result<Self, FetchFault> {
        Ok(match source {
            KeySource::Url(url) => Self::Url {
                client: Client::new(url, options.fetch_timeout)?,
                cache: cache.map(|(directory, name)| Cache::new(directory, name, url.as_str())),
            },
            KeySource::JwksFile(_) | KeySource::PemFiles(_) => Self::Files {
                paths: source.files().to_vec(),
                stamps: Vec::new(),
            },
        })
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    // The work does not panic; a runtime that is shutting down ends this task as well.
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Error::NoRuntime)
}
