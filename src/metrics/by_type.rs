//! Owns the counters of event types: one for each type, as long as there are not too many.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::plain;

/// The most types that get a counter because an event has them. Prelude documents fewer than fifty.
pub(super) const NEW_TYPES_MAX: usize = 128;
/// The longest type that gets a counter, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// All other types.
const OTHER: &str = "other";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    r#type: String,
}

/// Counters by event type.
pub(super) struct ByType {
    family: Family<Labels, Counter>,
    counters: RwLock<Counters>,
    other: Counter,
}

#[derive(Default)]
struct Counters {
    by_name: HashMap<String, Counter>,
    /// How many of them are there because an event has the type.
    new: usize,
}

impl ByType {
    pub(super) fn register(registry: &mut Registry, name: &str, help: &str) -> Self {
        let family = Family::default();
        registry.register(name, help, family.clone());
        let other = new_counter(&family, OTHER);
        Self {
            family,
            counters: RwLock::default(),
            other,
        }
    }

    /// Starts the counter of a type at zero, so that a rate includes the first event.
    pub(super) fn start(&self, event_type: &str) {
        let mut counters = self
            .counters
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let counter = new_counter(&self.family, event_type);
        counters.by_name.insert(event_type.to_owned(), counter);
    }

    pub(super) fn count(&self, event_type: &str) {
        let counters = self.counters.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = counters.by_name.get(event_type) {
            counter.inc();
            return;
        }
        drop(counters);
        if !is_countable(event_type) {
            self.other.inc();
            return;
        }
        let mut counters = self
            .counters
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = counters.by_name.get(event_type) {
            // Another thread was faster.
            counter.inc();
        } else if counters.new < NEW_TYPES_MAX {
            counters.new += 1;
            let counter = new_counter(&self.family, event_type);
            counter.inc();
            counters.by_name.insert(event_type.to_owned(), counter);
        } else {
            self.other.inc();
        }
    }
}

/// Whether a text can only be the name of a type: dot-separated words in lower case, and nothing that
/// could be a person's number.
fn is_countable(event_type: &str) -> bool {
    let is_of_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let mut words = event_type.split('.');
    event_type.len() <= NAME_BYTES_MAX
        && event_type.contains('.')
        && words.all(|word| !word.is_empty() && word.bytes().all(is_of_word))
        && plain::is_name(event_type)
}

fn new_counter(family: &Family<Labels, Counter>, event_type: &str) -> Counter {
    family.get_or_create_owned(&Labels {
        r#type: event_type.to_owned(),
    })
}
