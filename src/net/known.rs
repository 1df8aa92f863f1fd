//! Owns the memory of who or what has proven something: the clients that did so last, or what they showed,
//! bounded. Knows nothing of what they proved.

use std::{collections::HashSet, hash::Hash};

use super::network::Network;

/// A bounded set of clients, or of what they showed. It holds at least so many of those that were added last.
#[derive(Debug)]
pub struct Known<T = Network> {
    least: usize,
    latest: HashSet<T>,
    /// What `latest` was when it was full. Whoever is added again moves on.
    before: HashSet<T>,
}

impl<T: Copy + Eq + Hash> Known<T> {
    /// Nobody yet; later so many at least, and twice as many at most.
    #[must_use]
    pub fn new(least: usize) -> Self {
        Self {
            least,
            latest: HashSet::new(),
            before: HashSet::new(),
        }
    }

    /// Adds a client.
    pub fn insert(&mut self, client: T) {
        if self.latest.len() >= self.least && !self.latest.contains(&client) {
            self.before = std::mem::take(&mut self.latest);
        }
        self.latest.insert(client);
    }

    /// Forgets a client.
    pub fn remove(&mut self, client: T) {
        self.latest.remove(&client);
        self.before.remove(&client);
    }

    /// Whether a client is among them.
    #[must_use]
    pub fn contains(&self, client: T) -> bool {
        self.latest.contains(&client) || self.before.contains(&client)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn client(number: u32) -> Network {
        Network::single(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn the_last_ones_are_known_and_no_more_than_twice_as_many() {
        let mut known = Known::new(10);
        for number in 0..1_000 {
            known.insert(client(number));
            // One that goes on proving itself stays.
            known.insert(client(0));
            let count = (0..1_000).filter(|&other| known.contains(client(other)));
            assert!(count.count() <= 20);
            let last = number.saturating_sub(8)..=number;
            assert!(last.clone().all(|other| known.contains(client(other))));
            assert!(known.contains(client(0)));
        }
        known.remove(client(999));
        assert!(!known.contains(client(999)));
    }
}
