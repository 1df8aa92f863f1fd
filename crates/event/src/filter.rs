//! Owns which events a subscriber wants: parses a filter, names all its faults, and matches it
//! against events and whole blocks. Pure; knows nothing of subscribers, credentials and gRPC.
//!
//! Within one field any entry may match; between fields all that are set must; an exclusion beats
//! an inclusion; an empty field asks for nothing in particular. Event types are exact
//! (`user.created`) or patterns, whose `*` stands for one dot-separated segment and whose last
//! `**` for one or more. What follows a `=` is exact, whatever it is (`=user.*`), so that every event
//! can be named; `=` alone names the events without a type.
//!
//! Most of the work is done once a block, on its few type and app names:
//! ```
//! use prelude_bridge_event::filter::{Filter, Spec};
//!
//! let filter = Filter::compile(&Spec {
//!     types: vec!["user.session.*".to_owned()],
//!     ..Spec::default()
//! })
//! .expect("a good filter");
//! assert!(filter.matches("user.session.created", "app_1", "usr_1"));
//! assert!(!filter.matches("user.created", "app_1", "usr_1"));
//! ```

mod memory;
mod pattern;

use std::{fmt, ops::Range, sync::Arc};

pub use self::pattern::{covers, text_problem, type_problem, user_problem};

use self::pattern::TypeEntry;
use crate::{
    block::{Block, Entry},
    event,
};

/// The most entries in one field of a filter: what a service reasonably names one by one. The cost
/// of a filter grows with it.
pub const ENTRIES_MAX: usize = 256;
/// The longest id of an app, in bytes: several times the longest that occurs. Types and users are as long
/// as those of an event may be: [`event::TYPE_BYTES_MAX`], [`event::ID_BYTES_MAX`].
pub const ENTRY_BYTES_MAX: usize = 256;

/// A filter as it was asked for.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// Event types to include, exact or patterns; all when empty.
    pub types: Vec<String>,
    /// Event types to leave out, exact or patterns.
    pub exclude_types: Vec<String>,
    /// Apps, exactly; all when empty.
    pub app_ids: Vec<String>,
    /// Users, exactly; all events, also those that name no user, when empty.
    pub user_ids: Vec<String>,
}

/// Shows how many users are named, not which.
impl fmt::Debug for Spec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Spec")
            .field("types", &self.types)
            .field("exclude_types", &self.exclude_types)
            .field("app_ids", &self.app_ids)
            .field("user_ids", &self.user_ids.len())
            .finish()
    }
}

/// One thing that is wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Fault {
    /// The place in the request, such as `filter.types[3]`.
    pub field: String,
    /// What is wrong there and what to do. Never repeats the entry: it may be anything.
    pub problem: &'static str,
}

/// A checked filter. Cheap to clone; filters that ask for the same in another order, or twice, are
/// equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter(Arc<Parts>);

#[derive(PartialEq, Eq, Hash)]
struct Parts {
    /// `None`: all types.
    types: Option<TypeSet>,
    exclude_types: TypeSet,
    /// Sorted; empty: all apps.
    apps: Box<[Box<str>]>,
    /// Sorted; empty: all users.
    users: Box<[User]>,
}

/// A user id behind its hash, so that sorting and searching go by the hash.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct User {
    hash: u32,
    id: Box<str>,
}

impl Filter {
    /// The filter that everything matches.
    #[must_use]
    pub fn everything() -> Self {
        Self(Arc::new(Parts {
            types: None,
            exclude_types: TypeSet::default(),
            apps: Box::default(),
            users: Box::default(),
        }))
    }

    /// Checks and normalises what was asked for.
    ///
    /// # Errors
    /// All faults at once, in the order of the fields. In a field with too many entries only the
    /// first [`ENTRIES_MAX`] are looked at, which bounds the list.
    pub fn compile(spec: &Spec) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        check_field("types", &spec.types, type_problem, &mut faults);
        check_field(
            "exclude_types",
            &spec.exclude_types,
            type_problem,
            &mut faults,
        );
        check_field("app_ids", &spec.app_ids, text_problem, &mut faults);
        check_field("user_ids", &spec.user_ids, user_problem, &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        // Everything has at least one segment, so "**" asks for nothing in particular.
        let all_types = spec.types.is_empty() || spec.types.iter().any(|entry| entry == "**");
        let users = spec.user_ids.iter().map(|id| User {
            hash: event::user_hash(id),
            id: id.as_str().into(),
        });
        Ok(Self(Arc::new(Parts {
            types: (!all_types).then(|| TypeSet::new(&spec.types)),
            exclude_types: TypeSet::new(&spec.exclude_types),
            apps: sorted(spec.app_ids.iter().map(|id| id.as_str().into())),
            users: sorted(users),
        })))
    }

    /// What the filter asks for, normalised: sorted, without repetitions.
    #[must_use]
    pub fn to_spec(&self) -> Spec {
        let parts = &*self.0;
        let owned = |text: &str| text.to_owned();
        Spec {
            types: parts.types.as_ref().map_or_else(Vec::new, TypeSet::to_vec),
            exclude_types: parts.exclude_types.to_vec(),
            app_ids: parts.apps.iter().map(|id| owned(id)).collect(),
            user_ids: parts.users.iter().map(|user| owned(&user.id)).collect(),
        }
    }

    /// Whether everything matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        let parts = &*self.0;
        parts.takes_all_types() && parts.apps.is_empty() && parts.users.is_empty()
    }

    /// Whether an event matches. `user_id` is empty where the event names no user.
    #[must_use]
    pub fn matches(&self, event_type: &str, app_id: &str, user_id: &str) -> bool {
        let parts = &*self.0;
        parts.takes_type(event_type)
            && parts.takes_app(app_id)
            && (parts.users.is_empty()
                || parts.takes_user(event::user_hash(user_id), || user_id.as_bytes()))
    }

    /// Whether any event of a block may match: looks at its type and app names, and only if the
    /// filter names users also at the hashes of its events. Never wrongly false; wrongly true only
    /// when two users have the same hash, or a wanted type occurs in another app than a wanted one.
    #[must_use]
    pub fn may_match(&self, block: &Block) -> bool {
        let selection = self.select(block);
        let mut entries = block.entries().iter();
        match selection.kind {
            Kind::All => true,
            Kind::None => false,
            Kind::Some { by_user: false, .. } => true,
            Kind::Some { by_user: true, .. } => {
                entries.any(|entry| selection.takes_names(entry) && self.0.knows(entry.user_hash))
            }
        }
    }

    /// Decides as much about a block as its type and app names allow.
    #[must_use]
    pub fn select<'a>(&'a self, block: &'a Block) -> Selection<'a> {
        let parts = &*self.0;
        let by_user = !parts.users.is_empty();
        let types = if parts.takes_all_types() {
            Members::All
        } else {
            Members::of(block.types(), |name| parts.takes_type(name))
        };
        let apps = match types {
            Members::None => Members::None,
            _ if parts.apps.is_empty() => Members::All,
            _ => Members::of(block.apps(), |id| parts.takes_app(id)),
        };
        let kind = match (types, apps) {
            (Members::None, _) | (_, Members::None) => Kind::None,
            (Members::All, Members::All) if !by_user => Kind::All,
            (types, apps) => Kind::Some {
                types,
                apps,
                by_user,
            },
        };
        Selection { parts, block, kind }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self::everything()
    }
}

/// Shows how many users are named, not which.
impl fmt::Debug for Parts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Parts")
            .field("types", &self.types)
            .field("exclude_types", &self.exclude_types)
            .field("apps", &self.apps)
            .field("users", &self.users.len())
            .finish()
    }
}

impl Parts {
    fn takes_all_types(&self) -> bool {
        self.types.is_none() && self.exclude_types.is_empty()
    }

    fn takes_type(&self, event_type: &str) -> bool {
        self.types
            .as_ref()
            .is_none_or(|types| types.contains(event_type))
            && !self.exclude_types.contains(event_type)
    }

    fn takes_app(&self, app_id: &str) -> bool {
        self.apps.is_empty() || contains(&self.apps, app_id)
    }

    /// Whether a user with this hash is named.
    fn knows(&self, hash: u32) -> bool {
        self.users
            .binary_search_by_key(&hash, |user| user.hash)
            .is_ok()
    }

    /// Whether the user is named. The id is asked for only when its hash is that of a named user.
    fn takes_user<'id>(&self, hash: u32, id: impl FnOnce() -> &'id [u8]) -> bool {
        let from = self.users.partition_point(|user| user.hash < hash);
        let mut same_hash = self
            .users
            .iter()
            .skip(from)
            .take_while(|user| user.hash == hash)
            .peekable();
        if same_hash.peek().is_none() {
            return false;
        }
        let id = id();
        same_hash.any(|user| user.id.as_bytes() == id)
    }
}

/// The events of a block that match a filter, as runs of neighbours.
#[derive(Debug)]
pub struct Selection<'a> {
    parts: &'a Parts,
    block: &'a Block,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    All,
    None,
    Some {
        types: Members,
        apps: Members,
        by_user: bool,
    },
}

impl Selection<'_> {
    /// Whether every event of the block matches; known without looking at any.
    #[must_use]
    pub fn is_all(&self) -> bool {
        matches!(self.kind, Kind::All)
    }

    /// Whether it is known without looking at any event that none matches.
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self.kind, Kind::None)
    }

    /// The first run of matching events at or after the index `from`, as long as it goes: the event
    /// at its end, if there is one, does not match. `None` when no more event matches.
    #[must_use]
    pub fn next_run(&self, from: usize) -> Option<Range<usize>> {
        let entries = self.block.entries();
        let rest = entries.get(from..).filter(|rest| !rest.is_empty())?;
        match self.kind {
            Kind::All => Some(from..entries.len()),
            Kind::None => None,
            Kind::Some { .. } => {
                let mut events = (from..).zip(rest);
                let (start, _) = events.find(|&(index, entry)| self.takes(index, entry))?;
                let end = events
                    .find(|&(index, entry)| !self.takes(index, entry))
                    .map_or(entries.len(), |(index, _)| index);
                Some(start..end)
            }
        }
    }

    /// All runs at or after the index `from`.
    pub fn runs(&self, from: usize) -> impl Iterator<Item = Range<usize>> {
        let mut next = from;
        std::iter::from_fn(move || {
            let run = self.next_run(next)?;
            next = run.end;
            Some(run)
        })
    }

    fn takes(&self, index: usize, entry: &Entry) -> bool {
        let Kind::Some { by_user, .. } = self.kind else {
            return self.is_all();
        };
        self.takes_names(entry)
            && (!by_user
                || self
                    .parts
                    .takes_user(entry.user_hash, || self.block.user_id(index)))
    }

    /// Whether the type and the app of an event match.
    fn takes_names(&self, entry: &Entry) -> bool {
        match &self.kind {
            Kind::All => true,
            Kind::None => false,
            Kind::Some { types, apps, .. } => {
                types.contains(entry.event_type) && apps.contains(entry.app)
            }
        }
    }
}

/// Which names of a block's dictionary are wanted.
#[derive(Debug, PartialEq, Eq)]
enum Members {
    All,
    None,
    /// One bit a name: a block rarely has more than 64.
    Few(u64),
    /// 64 names a word.
    Many(Box<[u64]>),
}

const WORD_BITS: usize = 64;

impl Members {
    fn of(names: &[Arc<str>], wanted: impl Fn(&str) -> bool) -> Self {
        let word = |names: &[Arc<str>]| {
            names.iter().enumerate().fold(0_u64, |word, (bit, name)| {
                word | u64::from(wanted(name)) << bit
            })
        };
        let (few, words): (u64, Box<[u64]>) = if names.len() <= WORD_BITS {
            (word(names), Box::default())
        } else {
            (0, names.chunks(WORD_BITS).map(word).collect())
        };
        let ones = few.count_ones() + words.iter().map(|word| word.count_ones()).sum::<u32>();
        match ones as usize {
            0 => Self::None,
            count if count == names.len() => Self::All,
            _ if words.is_empty() => Self::Few(few),
            _ => Self::Many(words),
        }
    }

    fn contains(&self, index: u16) -> bool {
        let index = usize::from(index);
        match self {
            Self::All => true,
            Self::None => false,
            Self::Few(word) => word >> (index % WORD_BITS) & 1 == 1,
            Self::Many(words) => words
                .get(index / WORD_BITS)
                .is_some_and(|word| word >> (index % WORD_BITS) & 1 == 1),
        }
    }
}

/// Exact event types and patterns, each sorted.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct TypeSet {
    exact: Box<[Box<str>]>,
    patterns: Box<[Box<str>]>,
}

impl TypeSet {
    /// The entries must have been checked.
    fn new(entries: &[String]) -> Self {
        let (mut exact, mut patterns) = (Vec::new(), Vec::new());
        for entry in entries {
            match TypeEntry::read(entry) {
                TypeEntry::Exact(name) => exact.push(name),
                TypeEntry::Pattern(pattern) => patterns.push(pattern),
            }
        }
        Self {
            exact: sorted(exact.into_iter().map(Box::from)),
            patterns: sorted(patterns.into_iter().map(Box::from)),
        }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.patterns.is_empty()
    }

    fn contains(&self, event_type: &str) -> bool {
        contains(&self.exact, event_type)
            || self
                .patterns
                .iter()
                .any(|pattern| pattern::matches(pattern, event_type))
    }

    fn to_vec(&self) -> Vec<String> {
        let exact = self.exact.iter().map(|name| pattern::exactly(name));
        let patterns = self.patterns.iter().map(|pattern| pattern.to_string());
        let mut all: Vec<String> = exact.chain(patterns).collect();
        all.sort_unstable();
        all
    }
}

fn check_field(
    name: &str,
    entries: &[String],
    problem: fn(&str) -> Option<&'static str>,
    faults: &mut Vec<Fault>,
) {
    if entries.len() > ENTRIES_MAX {
        faults.push(Fault {
            field: format!("filter.{name}"),
            problem: "has more than 256 entries: use patterns, fewer entries, or several streams",
        });
    }
    for (index, entry) in entries.iter().take(ENTRIES_MAX).enumerate() {
        if let Some(problem) = problem(entry) {
            faults.push(Fault {
                field: format!("filter.{name}[{index}]"),
                problem,
            });
        }
    }
}

fn sorted<T: Ord>(entries: impl Iterator<Item = T>) -> Box<[T]> {
    let mut entries: Vec<T> = entries.collect();
    entries.sort_unstable();
    entries.dedup();
    entries.into()
}

fn contains(sorted: &[Box<str>], name: &str) -> bool {
    sorted
        .binary_search_by(|entry| entry.as_ref().cmp(name))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        hash::{BuildHasher as _, RandomState},
    };

    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::{
        block::Builder,
        event::{Epoch, ID_BYTES_MAX, LogId, Sequence, UnixMicros},
        testing,
    };

    fn strings(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|&entry| entry.to_owned()).collect()
    }

    fn of_types(types: &[&str]) -> Filter {
        Filter::compile(&Spec {
            types: strings(types),
            ..Spec::default()
        })
        .unwrap()
    }

    /// (app, type, user) of each event.
    fn block_of(events: &[(String, String, String)]) -> Block {
        let mut builder = Builder::new(LogId(1), Epoch(1), Sequence(1), UnixMicros(1));
        for (index, (app, event_type, user)) in events.iter().enumerate() {
            let id = format!("evt_{index}");
            let batch = testing::batch(app, &[(&id, event_type, user)]);
            builder.push(&batch, &batch.drafts[0]);
        }
        builder.finish().unwrap()
    }

    /// The documented rules, word for word and slowly.
    fn naive_type(entries: &[String], event_type: &str) -> bool {
        fn segments(pattern: &[&str], name: &[&str]) -> bool {
            match (pattern, name) {
                ([], []) => true,
                (["**"], [_, ..]) => true,
                (["*", pattern @ ..], [_, name @ ..]) => segments(pattern, name),
                ([p, pattern @ ..], [n, name @ ..]) => p == n && segments(pattern, name),
                _ => false,
            }
        }
        let name: Vec<&str> = event_type.split('.').collect();
        entries.iter().any(|entry| match entry.strip_prefix('=') {
            Some(exact) => exact == event_type,
            None => segments(&entry.split('.').collect::<Vec<_>>(), &name),
        })
    }

    fn naive(spec: &Spec, event_type: &str, app: &str, user: &str) -> bool {
        (spec.types.is_empty() || naive_type(&spec.types, event_type))
            && !naive_type(&spec.exclude_types, event_type)
            && (spec.app_ids.is_empty() || spec.app_ids.iter().any(|id| id == app))
            && (spec.user_ids.is_empty() || spec.user_ids.iter().any(|id| id == user))
    }

    /// Few names, so that random filters meet random events.
    fn names() -> impl Strategy<Value = String> {
        vec(select(vec!["a", "b", "user", "*x", "*", "", "="]), 1..4)
            .prop_map(|parts| parts.join("."))
    }

    fn patterns() -> impl Strategy<Value = String> {
        let patterns = (
            vec(select(vec!["a", "b", "user", "*"]), 0..3),
            select(vec!["a", "b", "*", "**"]),
        )
            .prop_map(|(mut parts, last)| {
                parts.push(last);
                parts.join(".")
            });
        prop_oneof![3 => patterns, 1 => names().prop_map(|name| format!("={name}"))]
    }

    fn users() -> impl Strategy<Value = String> {
        // The last two have the same hash: see `users_with_the_same_hash_are_told_apart`.
        select(vec!["", "usr_1", "usr_2", "usr_3", "costarring", "liquid"]).prop_map(str::to_owned)
    }

    fn specs() -> impl Strategy<Value = Spec> {
        let named_users = users().prop_filter("an entry is not empty", |user| !user.is_empty());
        (
            vec(patterns(), 0..4),
            vec(patterns(), 0..2),
            vec(
                select(vec!["app_1", "app_2", "app_3"]).prop_map(str::to_owned),
                0..3,
            ),
            vec(named_users, 0..3),
        )
            .prop_map(|(types, exclude_types, app_ids, user_ids)| Spec {
                types,
                exclude_types,
                app_ids,
                user_ids,
            })
    }

    fn events() -> impl Strategy<Value = Vec<(String, String, String)>> {
        let apps = select(vec!["app_1", "app_2"]).prop_map(str::to_owned);
        vec((apps, names(), users()), 1..40)
    }

    proptest! {
        #[test]
        fn a_filter_selects_of_a_block_what_the_rules_say(spec in specs(), events in events()) {
            let filter = Filter::compile(&spec).unwrap();
            let block = block_of(&events);
            let expected: Vec<usize> = (0..events.len())
                .filter(|&index| {
                    let (app, event_type, user) = &events[index];
                    naive(&spec, event_type, app, user)
                })
                .collect();

            let selection = filter.select(&block);
            let runs: Vec<Range<usize>> = selection.runs(0).collect();
            let selected: Vec<usize> = runs.iter().cloned().flatten().collect();
            prop_assert_eq!(&selected, &expected);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "maximal");
            prop_assert!(!selection.is_all() || expected.len() == events.len());
            prop_assert!(!selection.is_none() || expected.is_empty());
            prop_assert!(filter.may_match(&block) || expected.is_empty());

            for from in 0..=events.len() {
                let first = expected.iter().copied().find(|&index| index >= from);
                prop_assert_eq!(selection.next_run(from).map(|run| run.start), first);
            }
            for (app, event_type, user) in &events {
                prop_assert_eq!(
                    filter.matches(event_type, app, user),
                    naive(&spec, event_type, app, user)
                );
            }
        }

        #[test]
        fn a_filter_is_its_own_normal_form(spec in specs()) {
            let filter = Filter::compile(&spec).unwrap();
            prop_assert_eq!(Filter::compile(&filter.to_spec()), Ok(filter));
        }

        #[test]
        fn no_entry_makes_the_parser_panic(types: Vec<String>, user_ids: Vec<String>) {
            let _ = Filter::compile(&Spec { types, user_ids, ..Spec::default() });
        }
    }

    #[test]
    fn patterns_stand_for_whole_segments() {
        for (pattern, event_type, expected) in [
            ("user.created", "user.created", true),
            ("user.created", "user.created.again", false),
            ("user.created", "user", false),
            ("user.*", "user.created", true),
            ("user.*", "user.session.created", false),
            ("user.*", "user", false),
            ("user.*.created", "user.session.created", true),
            ("*.*", "user.created", true),
            ("*", "user.created", false),
            ("user.**", "user.created", true),
            ("user.**", "user.session.created", true),
            ("user.**", "user", false),
            ("**", "user", true),
            ("**", "", true),
            ("user.session.*", "user.session.revoked", true),
            ("user.session.*", "user.sessions.revoked", false),
        ] {
            assert_eq!(
                of_types(&[pattern]).matches(event_type, "app_1", ""),
                expected,
                "{pattern} {event_type}"
            );
        }
    }

    #[test]
    fn an_exclusion_beats_an_inclusion() {
        let filter = Filter::compile(&Spec {
            types: strings(&["user.created", "user.session.*"]),
            exclude_types: strings(&["user.created", "*.*.revoked"]),
            ..Spec::default()
        })
        .unwrap();
        assert!(!filter.matches("user.created", "app_1", ""));
        assert!(!filter.matches("user.session.revoked", "app_1", ""));
        assert!(filter.matches("user.session.created", "app_1", ""));
    }

    #[test]
    fn a_filter_for_users_leaves_out_events_without_one() {
        let filter = Filter::compile(&Spec {
            user_ids: strings(&["usr_1"]),
            ..Spec::default()
        })
        .unwrap();
        assert!(filter.matches("user.created", "app_1", "usr_1"));
        assert!(!filter.matches("user.created", "app_1", ""));
    }

    #[test]
    fn users_with_the_same_hash_are_told_apart() {
        assert_eq!(event::user_hash("costarring"), event::user_hash("liquid"));
        let event = |user: &str| {
            (
                "app_1".to_owned(),
                "user.created".to_owned(),
                user.to_owned(),
            )
        };
        let block = block_of(&[event("costarring"), event("liquid"), event("liquid")]);
        let filter = |users: &[&str]| {
            Filter::compile(&Spec {
                user_ids: strings(users),
                ..Spec::default()
            })
            .unwrap()
        };
        let one = filter(&["liquid"]);
        assert_eq!(one.select(&block).next_run(0), Some(1..3));
        let both = filter(&["liquid", "costarring"]);
        assert_eq!(both.select(&block).next_run(0), Some(0..3));
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let faults = Filter::compile(&Spec {
            types: strings(&["user.created", "user..*", "user.**.created", "user.cre*"]),
            exclude_types: strings(&["", "user.***"]),
            app_ids: strings(&["app\u{7}"]),
            user_ids: vec![
                "u".repeat(event::ID_BYTES_MAX),
                "u".repeat(event::ID_BYTES_MAX + 1),
            ],
        })
        .unwrap_err();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "filter.types[1]",
                "filter.types[2]",
                "filter.types[3]",
                "filter.exclude_types[0]",
                "filter.exclude_types[1]",
                "filter.app_ids[0]",
                "filter.user_ids[1]",
            ]
        );
        assert_eq!(
            faults[2].to_string(),
            "filter.types[3]: has a * inside a segment: * stands for a whole segment; a type that has \
             a * is named with = before it"
        );
    }

    #[test]
    fn a_field_takes_256_entries_and_no_more() {
        let entries = |count: usize| Spec {
            user_ids: (0..count).map(|index| format!("usr_{index}")).collect(),
            ..Spec::default()
        };
        assert!(Filter::compile(&entries(ENTRIES_MAX)).is_ok());
        let faults = Filter::compile(&entries(ENTRIES_MAX + 1)).unwrap_err();
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].field, "filter.user_ids");
        // The list of faults is bounded however long the field is.
        let many = Spec {
            types: vec![String::new(); 10 * ENTRIES_MAX],
            ..Spec::default()
        };
        assert_eq!(Filter::compile(&many).unwrap_err().len(), ENTRIES_MAX + 1);
    }

    #[test]
    fn whatever_an_event_has_can_be_named() {
        let types = [
            "", "*", "user.*", "a*b", "user..x", "=", "=x", "\t\u{7f}", "ü.名",
        ];
        let user = "ü\t\u{0}".repeat(ID_BYTES_MAX / 4);
        let users = ["\n", "*", "=", &user];
        for event_type in types {
            let filter = of_types(&[&format!("={event_type}")]);
            for other in types {
                let is_it = other == event_type;
                assert_eq!(filter.matches(other, "app_1", ""), is_it, "{event_type}");
            }
            // What `Started` says means the same.
            assert_eq!(Filter::compile(&filter.to_spec()), Ok(filter));
        }
        for user in users {
            let spec = Spec {
                user_ids: strings(&[user]),
                ..Spec::default()
            };
            let filter = Filter::compile(&spec).unwrap();
            assert!(filter.matches("", "app_1", user) && !filter.matches("", "app_1", "u"));
        }
    }

    #[test]
    fn filters_that_ask_for_the_same_are_equal() {
        let one = of_types(&["user.created", "user.session.*", "user.created"]);
        let other = of_types(&["user.session.*", "user.created"]);
        assert_eq!(one, other);
        assert_eq!(one, of_types(&["=user.created", "user.session.*"]));
        let state = RandomState::new();
        assert_eq!(state.hash_one(&one), state.hash_one(&other));
        assert_ne!(one, of_types(&["user.created"]));

        let everything = HashSet::from([
            Filter::everything(),
            Filter::compile(&Spec::default()).unwrap(),
            of_types(&["**"]),
            of_types(&["user.created", "**"]),
        ]);
        assert_eq!(everything.len(), 1);
        assert!(everything.iter().all(Filter::is_everything));
    }

    #[test]
    fn a_block_of_one_kind_is_decided_without_its_events() {
        let block = testing::block(Sequence(1), 9);
        assert!(Filter::everything().select(&block).is_all());
        assert!(of_types(&["user.**"]).select(&block).is_all());
        assert!(of_types(&["order.**"]).select(&block).is_none());
        assert!(!of_types(&["order.**"]).may_match(&block));
        let some = of_types(&["user.created"]);
        assert_eq!(
            some.select(&block).runs(0).collect::<Vec<_>>(),
            [0..1, 3..4, 6..7]
        );
    }

    #[test]
    fn a_block_without_a_wanted_user_may_not_match() {
        let block = testing::block(Sequence(1), 9);
        let of_user = |user: &str, event_type: &str| {
            Filter::compile(&Spec {
                types: strings(&[event_type]),
                user_ids: strings(&[user]),
                ..Spec::default()
            })
            .unwrap()
        };
        // Sequence 1 is user.created of usr_1, 4 of usr_4, 7 of usr_2.
        assert!(of_user("usr_1", "user.created").may_match(&block));
        assert!(!of_user("usr_3", "user.created").may_match(&block));
        assert!(!of_user("usr_9", "**").may_match(&block));
    }

    #[test]
    fn a_block_may_have_more_types_than_a_word_has_bits() {
        for count in [1_usize, 63, 64, 65, 128, 200] {
            let events: Vec<_> = (0..count)
                .map(|index| ("app_1".to_owned(), format!("t.{index}"), String::new()))
                .collect();
            let block = block_of(&events);
            assert_eq!(block.types().len(), count);
            for wanted in [0, count / 2, count - 1] {
                let filter = of_types(&[&format!("t.{wanted}")]);
                let selected: Vec<usize> = filter.select(&block).runs(0).flatten().collect();
                assert_eq!(selected, [wanted], "of {count}");
            }
            assert!(of_types(&["t.*"]).select(&block).is_all());
            assert!(of_types(&["u.*"]).select(&block).is_none());
        }
    }

    #[test]
    fn debug_output_names_no_users() {
        let spec = Spec {
            user_ids: strings(&["usr_secret"]),
            ..Spec::default()
        };
        let filter = Filter::compile(&spec).unwrap();
        assert!(!format!("{spec:?} {filter:?}").contains("usr_secret"));
    }
}
