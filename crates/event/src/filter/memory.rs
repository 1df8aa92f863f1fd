//! Owns how much memory filters take.

use std::sync::Arc;

use super::{Filter, Parts};

/// What a text takes besides its bytes: its entry in a list, and the allocator's rounding.
const TEXT_BYTES: usize = 48;

impl Filter {
    /// Whether both are one in memory.
    #[must_use]
    pub fn shares_memory_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// How much memory it takes, in bytes, about: each text is an allocation of its own.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let parts = &*self.0;
        let types = parts.types.iter().chain([&parts.exclude_types]);
        let types = types.flat_map(|types| types.to_vec());
        let bytes = |text: &str| TEXT_BYTES + text.len();
        let types: usize = types.map(|name| bytes(&name)).sum();
        let apps: usize = parts.apps.iter().map(|id| bytes(id)).sum();
        let users: usize = parts.users.iter().map(|user| bytes(&user.id)).sum();
        size_of::<Parts>() + types + apps + users
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Spec;

    #[test]
    fn a_filter_takes_about_as_much_as_its_entries_and_each_of_them_something() {
        let compile = |count: usize, bytes: usize| {
            let users = (0..count).map(|at| format!("{at:0bytes$}")).collect();
            let spec = Spec {
                user_ids: users,
                ..Spec::default()
            };
            Filter::compile(&spec).unwrap()
        };
        let nothing = Filter::everything().memory_bytes();
        assert!(nothing < 200);
        for (count, bytes) in [(1, 1), (256, 5), (256, 250)] {
            let more = compile(count, bytes.max(3)).memory_bytes() - nothing;
            assert_eq!(more, count * (TEXT_BYTES + bytes.max(3)));
        }
        let one = compile(1, 3);
        assert!(one.shares_memory_with(&one.clone()) && !one.shares_memory_with(&compile(1, 3)));
    }
}
