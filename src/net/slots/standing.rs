//! Owns what is known of the holder of a slot: whether it has proven something, and whether it rests.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::CancellationToken;

use super::Slots;
use crate::net::network::Network;

/// Whether a holder has proven something, such as a credential, or was let in without. Clones share it. It
/// is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<Proof>);

#[derive(Debug, Default)]
struct Proof {
    is_given: AtomicBool,
    is_admitted: AtomicBool,
    is_resting: AtomicBool,
    /// The client that is known by it.
    client: Option<(Weak<Slots>, Network)>,
    /// The first slot that was taken with it.
    slot: OnceLock<Held>,
}

/// A slot, as its holder's standing knows it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slots: Weak<Slots>,
    pub(super) client: Network,
    pub(super) number: u64,
    pub(super) evicted: CancellationToken,
}

impl Standing {
    /// The standing of a client that is known in `slots` once it has proven something.
    pub(super) fn of(client: Network, slots: Weak<Slots>) -> Self {
        Self(Arc::new(Proof {
            client: Some((slots, client)),
            ..Proof::default()
        }))
    }

    /// The holder has taken a slot.
    pub(super) fn hold(&self, held: Held) {
        // Calls on a connection may take slots too, with its standing.
        let _ = self.0.slot.set(held);
    }

    /// From now on the holder keeps its slot, and its client is known, also if it was discredited since
    /// the last time.
    pub fn prove(&self) {
        self.0.is_given.store(true, Ordering::Release);
        self.make_known(true);
    }

    /// Whether it has.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.0.is_given.load(Ordering::Acquire)
    }

    /// The holder may stay without having proven anything. It loses its slot like others that have not.
    pub fn admit(&self) {
        self.0.is_admitted.store(true, Ordering::Release);
    }

    /// Whether it may stay: it was let in, or has proven something.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.is_proven() || self.0.is_admitted.load(Ordering::Acquire)
    }

    /// The client is no longer known, because what it showed last was wrong. The holder keeps what it
    /// has proven.
    pub fn discredit(&self) {
        self.make_known(false);
    }

    /// The holder does nothing for a while: where all others are busy, it may lose its slot, whatever it has
    /// proven. Returns whether it still has it.
    #[must_use]
    pub fn rest(&self) -> bool {
        self.0.is_resting.store(true, Ordering::Release);
        let Some((held, slots)) = self.held() else {
            return true;
        };
        let mut holders = slots.lock();
        // Looked at under the lock, where it is also done.
        if held.evicted.is_cancelled() {
            return false;
        }
        if self.is_proven() {
            let evicted = held.evicted.clone();
            holders.change(held.client, |client| {
                client.resting.insert(held.number, evicted)
            });
            holders.all_resting.insert((held.number, held.client));
        }
        true
    }

    /// The holder goes on.
    pub fn resume(&self) {
        if self.0.is_resting.swap(false, Ordering::AcqRel)
            && let Some((held, slots)) = self.held()
        {
            slots.lock().resume(held.client, held.number);
        }
    }

    /// Whether it rests.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        self.0.is_resting.load(Ordering::Acquire)
    }

    fn held(&self) -> Option<(&Held, Arc<Slots>)> {
        let held = self.0.slot.get()?;
        Some((held, held.slots.upgrade()?))
    }

    fn make_known(&self, is_known: bool) {
        if let Some((slots, client)) = &self.0.client
            && let Some(slots) = slots.upgrade()
        {
            slots.lock().make_known(*client, is_known);
        }
    }
}

/// The same holder.
impl PartialEq for Standing {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Standing {}
