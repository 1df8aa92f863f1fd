//! Owns the positions of names: every name in the table of types gets one when the program is compiled,
//! and a name that was read is found by a hash. Knows nothing of what the names stand for.

use super::types::TYPES;

/// Members that are read of every event, whatever its type.
const ALWAYS: [&str; 9] = [
    "user_id",
    "correlation_id",
    "metadata",
    "created_at",
    "occurred_at",
    "revoked_at",
    "deleted_at",
    "updated_at",
    "time",
];

/// The most names that there may be: [`super::super::ambiguity::Seen`] has a bit for each.
const COUNT_MAX: usize = 56;

const COLLECTED: ([&str; COUNT_MAX], usize) = collect();

/// How many names of members there are.
const COUNT: usize = COLLECTED.1;

/// The names of all members that are read, each at its position.
const MEMBERS: [&str; COUNT] = first(COLLECTED.0);
const MEMBERS_BY_HASH: Buckets = buckets(&MEMBERS);

const TYPE_NAMES: [&str; TYPES.len()] = type_names();
const TYPES_BY_HASH: Buckets = buckets(&TYPE_NAMES);

/// The position of a member's name.
pub(super) fn member(name: &str) -> Option<usize> {
    find(name, &MEMBERS, &MEMBERS_BY_HASH)
}

/// The member's name at a position.
pub(super) fn member_name(position: usize) -> Option<&'static str> {
    MEMBERS.get(position).copied()
}

/// The position of a type in the table.
pub(super) fn event_type(name: &str) -> Option<usize> {
    find(name, &TYPE_NAMES, &TYPES_BY_HASH)
}

/// The position of a member that the table has: anything else fails to compile.
#[expect(clippy::panic, reason = "only when the program is compiled")]
pub(super) const fn position(name: &str) -> usize {
    match index_of(name, &MEMBERS, COUNT) {
        Some(position) => position,
        None => panic!("no member of this name is in the table"),
    }
}

/// For each hash the position of a name, or [`EMPTY`]. Two names of one hash are in buckets beside each
/// other.
type Buckets = [u8; 256];
const EMPTY: u8 = u8::MAX;

/// Names differ in their length and in few of their characters.
const fn hash(name: &[u8]) -> usize {
    let length = name.len();
    let middle = name.split_at(length / 2).1;
    match (name.first(), middle.first(), name.last()) {
        (Some(&first), Some(&middle), Some(&last)) => {
            let sum = length * 67 + first as usize * 3 + middle as usize * 7 + last as usize * 13;
            sum % 256
        }
        _ => 0,
    }
}

fn find(name: &str, names: &[&'static str], buckets: &Buckets) -> Option<usize> {
    let mut bucket = hash(name.as_bytes());
    loop {
        let position = usize::from(*buckets.get(bucket)?);
        // No name has the position of an empty bucket.
        if *names.get(position)? == name {
            return Some(position);
        }
        bucket = (bucket + 1) % 256;
    }
}

#[expect(clippy::indexing_slicing, reason = "only when the program is compiled")]
const fn buckets(names: &[&str]) -> Buckets {
    assert!(names.len() < EMPTY as usize);
    let mut buckets = [EMPTY; 256];
    let mut position = 0;
    while position < names.len() {
        let mut bucket = hash(names[position].as_bytes());
        while buckets[bucket] != EMPTY {
            bucket = (bucket + 1) % 256;
        }
        buckets[bucket] = position as u8;
        position += 1;
    }
    buckets
}

#[expect(clippy::indexing_slicing, reason = "only when the program is compiled")]
const fn collect() -> ([&'static str; COUNT_MAX], usize) {
    let (mut names, mut count) = ([""; COUNT_MAX], 0);
    let mut at = 0;
    while at < ALWAYS.len() {
        (names, count) = with(names, count, ALWAYS[at]);
        at += 1;
    }
    let mut at = 0;
    while at < TYPES.len() {
        (names, count) = with(names, count, TYPES[at].time);
        let members = TYPES[at].members;
        let mut member = 0;
        while member < members.len() {
            (names, count) = with(names, count, members[member].name);
            if let Some(second) = members[member].second_name {
                (names, count) = with(names, count, second);
            }
            member += 1;
        }
        at += 1;
    }
    (names, count)
}

#[expect(clippy::indexing_slicing, reason = "only when the program is compiled")]
const fn with(
    mut names: [&'static str; COUNT_MAX],
    count: usize,
    name: &'static str,
) -> ([&'static str; COUNT_MAX], usize) {
    if index_of(name, &names, count).is_some() {
        return (names, count);
    }
    names[count] = name;
    (names, count + 1)
}

#[expect(clippy::indexing_slicing, reason = "only when the program is compiled")]
const fn first<const N: usize>(names: [&'static str; COUNT_MAX]) -> [&'static str; N] {
    let mut some = [""; N];
    let mut at = 0;
    while at < N {
        some[at] = names[at];
        at += 1;
    }
    some
}

#[expect(clippy::indexing_slicing, reason = "only when the program is compiled")]
const fn type_names() -> [&'static str; TYPES.len()] {
    let mut names = [""; TYPES.len()];
    let mut at = 0;
    while at < TYPES.len() {
        names[at] = TYPES[at].name;
        at += 1;
    }
    names
}

#[expect(clippy::indexing_slicing, reason = "only when the program is compiled")]
const fn index_of(name: &str, names: &[&str], count: usize) -> Option<usize> {
    let mut at = 0;
    while at < count {
        if is_same(name.as_bytes(), names[at].as_bytes()) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[expect(clippy::indexing_slicing, reason = "only when the program is compiled")]
const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_no_other() {
        for (position, name) in MEMBERS.into_iter().enumerate() {
            assert_eq!(member(name), Some(position), "{name}");
            assert_eq!(member_name(position), Some(name));
        }
        for (position, name) in TYPE_NAMES.into_iter().enumerate() {
            assert_eq!(event_type(name), Some(position), "{name}");
        }
        for other in ["", "x", "user_ie", "user_id ", "createdxat", "extra"] {
            assert_eq!(member(other), None, "{other}");
        }
        assert_eq!(event_type("user.createe"), None);
        assert_eq!(event_type(""), None);
    }

    #[test]
    fn names_of_one_hash_are_all_found() {
        // Anagrams with the same first, middle and last character.
        let names = ["a12b34c", "a21b34c", "a12b43c", "a21b43c", "x"];
        let by_hash = buckets(&names);
        for (position, name) in names.into_iter().enumerate() {
            assert_eq!(find(name, &names, &by_hash), Some(position), "{name}");
        }
        assert_eq!(find("a11b34c", &names, &by_hash), None);
    }

    #[test]
    fn no_name_is_there_twice() {
        for names in [&MEMBERS[..], &TYPE_NAMES[..]] {
            let mut sorted = names.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), names.len());
        }
    }
}
