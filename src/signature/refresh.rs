//! The background service that keeps one app's keys fresh: when to read the source, and what to
//! publish when it fails.
//!
//! It owns the schedule (refresh, retries, the limit for unknown signatures, the end of an outage)
//! and every read of the source, one at a time, so many waiting deliveries cost one fetch. It never
//! looks at a signature.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::cache::{Cache, Stored};
use super::source::{self, Client, Stamp};
use super::{Error, KeySet, KeySource, Options, Skipped};
use crate::plain;

/// What is known about an app's keys at one moment; handed from the service to everyone.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) keys: Arc<KeySet>,
    pub(super) origin: Origin,
    pub(super) fetched_at: Option<SystemTime>,
    pub(super) last_error: Option<String>,
    /// How many reads of the source have ended, well or badly.
    pub(super) attempts: u64,
    /// How many of them a signature caused that no key fits.
    pub(super) attempts_for_unknown: u64,
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

/// A snapshot for readiness, metrics and operators.
#[derive(Debug, Clone)]
pub struct Status {
    /// The app.
    pub app_id: String,
    /// The URL or file.
    pub source: String,
    /// Where the keys in use were read.
    pub origin: Origin,
    /// The keys in use.
    pub keys: Vec<KeyStatus>,
    /// Keys of the same document that were left out, at most 64.
    pub skipped: Vec<Skipped>,
    /// How many were left out in all.
    pub skipped_count: usize,
    /// When the source last confirmed the keys in use.
    pub fetched_at: Option<SystemTime>,
    /// What the last read of the source failed with; `None` after a good one.
    pub last_error: Option<String>,
    /// How many reads of the source have ended, well or badly.
    pub attempts: u64,
    /// How many of them a signature caused that no key fits.
    pub attempts_for_unknown: u64,
}

/// One key in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// Its `kid`, where it has one.
    pub id: Option<String>,
    /// Its RFC 7638 thumbprint.
    pub thumbprint: String,
    /// The length of its modulus.
    pub bits: usize,
}

impl State {
    pub(super) fn status(&self, app_id: &str, source: &KeySource) -> Status {
        let key = |key: &super::PublicKey| KeyStatus {
            id: key.id().map(str::to_owned),
            thumbprint: key.thumbprint().to_owned(),
            bits: key.bits(),
        };
        Status {
            app_id: app_id.to_owned(),
            source: source.to_string(),
            origin: self.origin,
            keys: self.keys.keys().iter().map(key).collect(),
            skipped: self.keys.skipped().to_vec(),
            skipped_count: self.keys.skipped_count(),
            fetched_at: self.fetched_at,
            last_error: self.last_error.clone(),
            attempts: self.attempts,
            attempts_for_unknown: self.attempts_for_unknown,
        }
    }
}

/// A delivery that no known key fits, asking for newer keys.
pub(super) struct Demand {
    /// The attempts that the asker knew of: any later one answers it without another fetch.
    pub(super) attempts_seen: u64,
    /// Whether a person asked: then the source is read, whatever was read before.
    pub(super) is_ordered: bool,
    /// Answered as soon as nothing newer is to be expected.
    pub(super) done: oneshot::Sender<()>,
}

/// How the service reads its source.
enum Reader {
    Url {
        client: Client,
        cache: Option<Cache>,
    },
    File {
        path: std::path::PathBuf,
        stamp: Option<Stamp>,
    },
}

/// The service itself; it ends when it is dropped or when all handles are.
pub(super) struct Refresher {
    app_id: String,
    source: KeySource,
    options: Options,
    reader: Reader,
    /// The document behind the published keys, to see that a new one is the same.
    document: Vec<u8>,
    state: watch::Sender<State>,
    demands: mpsc::Receiver<Demand>,
    next: Instant,
    pause: Duration,
    expires: Instant,
    demanded: Option<Instant>,
}

impl Refresher {
    /// Loads what can be had without waiting: a file, or the cached set of a URL.
    ///
    /// # Errors
    /// A file that cannot be read or has no usable key is a mistake of the operator's and said at
    /// once. A URL that does not answer is not: it is tried again.
    pub(super) fn new(
        app_id: &str,
        source: &KeySource,
        options: Options,
        cache_directory: Option<&std::path::Path>,
        demands: mpsc::Receiver<Demand>,
    ) -> Result<(Self, watch::Receiver<State>), Error> {
        let now = Instant::now();
        let mut refresher = Self {
            app_id: app_id.to_owned(),
            source: source.clone(),
            reader: Reader::new(app_id, source, &options, cache_directory)?,
            document: Vec::new(),
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
            Reader::File { path, stamp } => {
                let file = source::read_file(path)?;
                let keys = source.read(&file.document)?.require_usable()?;
                *stamp = Some(file.stamp);
                refresher.publish_good(Some((file.document, keys)));
            }
        }
        let receiver = refresher.state.subscribe();
        Ok((refresher, receiver))
    }

    /// Runs until every handle is gone.
    pub(super) async fn run(mut self) {
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
        let news = self.state.borrow().attempts > demand.attempts_seen;
        let allowed = self
            .demanded
            .is_none_or(|at| at.elapsed() >= self.options.unknown_interval_min);
        if !news && allowed {
            self.demanded = Some(Instant::now());
            self.refresh(true).await;
        }
        // The asker may have given up: that is its right.
        let _ = demand.done.send(());
    }

    async fn refresh(&mut self, for_unknown: bool) {
        match self.read().await {
            Ok(news) => self.publish_good(news),
            Err(fault) => self.publish_failure(&fault),
        }
        self.state.send_modify(|state| {
            state.attempts += 1;
            state.attempts_for_unknown += u64::from(for_unknown);
        });
    }

    /// A new document with its keys, or `None` if it is still the one we have.
    async fn read(&mut self) -> Result<Option<(Vec<u8>, KeySet)>, Error> {
        let document = match &mut self.reader {
            Reader::Url { client, .. } => client.get().await?,
            Reader::File { path, stamp } => {
                // Without a document in use there is nothing that the file could still be.
                let known = stamp.filter(|_| !self.document.is_empty());
                let path = path.clone();
                let read = move || match source::stamp(&path) {
                    Ok(current) if Some(current) == known => Ok(None),
                    _ => source::read_file(&path).map(Some),
                };
                match blocking(read).await? {
                    Some(file) => {
                        let keys = self.source.read(&file.document)?.require_usable()?;
                        *stamp = Some(file.stamp);
                        return Ok(Some((file.document, keys)));
                    }
                    None => return Ok(None),
                }
            }
        };
        let keys = if document == self.document {
            None
        } else {
            Some(self.source.read(&document)?.require_usable()?)
        };
        self.store(&document).await;
        Ok(keys.map(|keys| (document, keys)))
    }

    fn publish_good(&mut self, news: Option<(Vec<u8>, KeySet)>) {
        let now = Instant::now();
        self.pause = self.options.retry_interval_min;
        self.expires = now + self.options.outage_max;
        self.next = now
            + match self.reader {
                Reader::Url { .. } => self.options.refresh_interval,
                Reader::File { .. } => self.options.file_check_interval,
            };
        let keys = news.map(|(document, keys)| {
            self.document = document;
            self.announce(&keys);
            Arc::new(keys)
        });
        self.state.send_modify(|state| {
            if let Some(keys) = keys {
                state.keys = keys;
            }
            state.origin = Origin::Source;
            state.fetched_at = Some(SystemTime::now());
            state.last_error = None;
        });
    }

    /// Keeps the last good set while it may be kept.
    fn publish_failure(&mut self, fault: &Error) {
        let now = Instant::now();
        let keys = self.state.borrow().keys.keys().len();
        let expired = now >= self.expires && keys > 0;
        let (source, error) = (plain::configured(&self.source), fault.shown());
        if expired {
            tracing::error!(
                app = %self.app_id, source, error,
                "the signing keys could not be refreshed; those in use are too old and no longer \
                 trusted: deliveries are answered 503 until the source can be read"
            );
            self.document.clear();
        } else if keys > 0 {
            tracing::warn!(
                app = %self.app_id, source, error, keys,
                "the signing keys could not be refreshed; the last good ones stay in use for now"
            );
        } else {
            tracing::warn!(
                app = %self.app_id, source, error, keys,
                "the signing keys could not be read, and none are known: deliveries are answered \
                 503 until the source can be read"
            );
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(self.options.retry_interval_max);
        self.state.send_modify(|state| {
            state.last_error = Some(fault.to_string());
            if expired {
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
        let Ok(keys) = self.source.read(&document).and_then(KeySet::require_usable) else {
            return;
        };
        let age = SystemTime::now()
            .duration_since(fetched_at)
            .unwrap_or_default();
        self.expires = Instant::now() + self.options.outage_max.saturating_sub(age);
        self.announce(&keys);
        self.document = document;
        self.state.send_modify(|state| {
            state.keys = Arc::new(keys);
            state.origin = Origin::Cache;
            state.fetched_at = Some(fetched_at);
        });
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
        let stored = blocking(move || Ok(writer.store(&document, SystemTime::now()))).await;
        if let Ok(Err(fault)) = stored {
            tracing::warn!(
                app = %self.app_id, path = plain::configured(cache.path().display()), error = %fault,
                "the signing keys could not be kept on disk for the next start"
            );
        }
    }

    fn announce(&self, keys: &KeySet) {
        let ids: Vec<&str> = keys
            .keys()
            .iter()
            // The source may call a key anything.
            .map(|key| {
                let id = key.id().filter(|id| plain::is_name(id));
                id.unwrap_or(key.thumbprint())
            })
            .collect();
        tracing::info!(
            app = %self.app_id, source = plain::configured(&self.source), keys = ?ids, skipped = keys.skipped_count(),
            "signing keys loaded"
        );
        for skipped in keys.skipped() {
            tracing::debug!(app = %self.app_id, "{}", plain::words(skipped));
        }
    }
}

impl Reader {
    fn new(
        app_id: &str,
        source: &KeySource,
        options: &Options,
        cache_directory: Option<&std::path::Path>,
    ) -> Result<Self, Error> {
        Ok(match source {
            KeySource::Url(url) => Self::Url {
                client: Client::new(url, options.fetch_timeout)?,
                cache: cache_directory.map(|path| Cache::new(path, app_id, url.as_str())),
            },
            KeySource::JwksFile(path) | KeySource::PemFile(path) => Self::File {
                path: path.clone(),
                stamp: None,
            },
        })
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // The work does not panic; a runtime that is shutting down ends this task as well.
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::NoRuntime))
}
