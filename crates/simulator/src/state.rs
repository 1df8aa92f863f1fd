//! The state of a running simulator, which its parts share: apps with their keys and generators,
//! webhooks, ledger, switches. Owns the locks; none is ever held across an await.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    event_type::SourceKind,
    events::Generator,
    keys::{self, KeyRing, SigningKey},
    ledger::Ledger,
    options::{Faults, Options, WireStyle},
    random::Random,
    webhooks::{self, Registry},
};

/// One simulated app, or a source of another kind.
pub(super) struct App {
    pub(super) kind: SourceKind,
    pub(super) ring: Mutex<KeyRing>,
    /// Keys that were configured and not used yet.
    pub(super) spare: Mutex<VecDeque<SigningKey>>,
    pub(super) generator: Mutex<Generator>,
    /// Whether the keys can be fetched.
    pub(super) jwks_up: AtomicBool,
    jwks_fetches: AtomicU64,
}

impl App {
    pub(super) fn count_jwks_fetch(&self) {
        self.jwks_fetches.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn jwks_fetches(&self) -> u64 {
        self.jwks_fetches.load(Ordering::Relaxed)
    }
}

pub(super) struct Simulation {
    pub(super) options: Options,
    pub(super) seed: u64,
    pub(super) apps: BTreeMap<String, App>,
    pub(super) registry: Mutex<Registry>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) wire: Mutex<WireStyle>,
    pub(super) faults: Mutex<Faults>,
    pub(super) random: Mutex<Random>,
    request_ids: Mutex<Random>,
    pub(super) client: reqwest::Client,
    /// Bounds the batches in progress.
    pub(super) deliveries: Arc<Semaphore>,
    /// Bounds the requests in progress.
    pub(super) requests: Semaphore,
    /// How many batches are in progress.
    pub(super) outstanding: watch::Sender<usize>,
    /// How many webhooks are active.
    pub(super) active: watch::Sender<usize>,
    pub(super) tasks: TaskTracker,
    pub(super) stopped: CancellationToken,
}

impl Simulation {
    /// # Errors
    /// Those of key generation. Blocks while keys are made.
    pub(super) fn new(
        options: Options,
        seed: u64,
        client: reqwest::Client,
    ) -> Result<Self, keys::Error> {
        let mut apps = BTreeMap::new();
        for app in &options.apps {
            let mut spare: VecDeque<SigningKey> = app.keys.iter().cloned().collect();
            let first = match spare.pop_front() {
                Some(key) => key,
                None => SigningKey::generate(options.key_bits)?,
            };
            let app_seed = Random::fork(seed, &app.id).next_u64();
            let running = App {
                kind: app.kind,
                ring: Mutex::new(KeyRing::new(first)),
                spare: Mutex::new(spare),
                generator: Mutex::new(Generator::new(app_seed)),
                jwks_up: AtomicBool::new(true),
                jwks_fetches: AtomicU64::new(0),
            };
            apps.insert(app.id.clone(), running);
        }
        Ok(Self {
            seed,
            apps,
            registry: Mutex::new(Registry::new(seed)),
            ledger: Mutex::new(Ledger::new(options.ledger_deliveries_max)),
            wire: Mutex::new(options.wire),
            faults: Mutex::new(options.faults),
            random: Mutex::new(Random::fork(seed, "faults")),
            request_ids: Mutex::new(Random::fork(seed, "requests")),
            client,
            deliveries: Arc::new(Semaphore::new(options.deliveries_max)),
            requests: Semaphore::new(options.requests_max),
            outstanding: watch::Sender::new(0),
            active: watch::Sender::new(0),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
            options,
        })
    }

    /// Changes the registry and tells those who wait for an active webhook.
    pub(super) fn change_webhooks<T>(
        &self,
        change: impl FnOnce(&mut Registry) -> Result<T, webhooks::Error>,
    ) -> Result<T, webhooks::Error> {
        let mut registry = lock(&self.registry);
        let result = change(&mut registry);
        self.active.send_replace(registry.active_count());
        result
    }

    /// The id of a call to the management API.
    pub(super) fn request_id(&self) -> String {
        format!("req_{:016x}", lock(&self.request_ids).next_u64())
    }

    /// Whether a fault with this probability happens now.
    pub(super) fn happens(&self, share: f64) -> bool {
        lock(&self.random).chance(share)
    }
}

/// Locks, also after a panic elsewhere: nothing that is half-written behind these locks prevents the simulator
/// from continuing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
