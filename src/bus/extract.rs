//! Owns what subscribers with equal filters share of a block: a copy of the matching events, side by
//! side, that is made once for all of them. Without it each subscriber evaluates every event of the
//! block and copies those that match.
//!
//! With 100 subscribers, each to one of seven types, a delivery takes 0.27 µs of server CPU instead
//! of 0.37 (together with keeping slices when they are sent).

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    event::Sequence,
    filter::{Filter, Selection},
    log::{Block, Format, block::View},
};

/// The most bytes of extracts that a group of subscribers keeps. Its subscribers are woken together, so
/// the extracts of the newest few blocks serve all but the slowest of them, which make their own.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// The most extracts that a group keeps: an extract without events has no bytes, but costs a look-up.
const KEPT_BLOCKS_MAX: usize = 32;

/// What the extracts of all groups take together, and may take.
pub(super) struct Taken<'a> {
    pub(super) bytes: &'a AtomicUsize,
    pub(super) bytes_max: usize,
}

/// All events of a block that match a filter, in one payload format.
pub struct Extract {
    view: View,
    /// The index of each event in the block.
    indices: Box<[u32]>,
}

impl Extract {
    fn of(selection: &Selection<'_>, block: &Block, format: Format) -> Self {
        let runs: Vec<Range<usize>> = selection.runs(0).collect();
        let view = block.view(format).copy(runs.iter().cloned());
        let indices = runs.into_iter().flatten();
        Self {
            view,
            // A block's events are counted in 32 bits.
            indices: indices.map(|index| index as u32).collect(),
        }
    }

    /// The events.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The index in the block of the extract's event `at`; `None` past the last.
    #[must_use]
    pub fn index(&self, at: usize) -> Option<usize> {
        self.indices.get(at).map(|&index| index as usize)
    }
}

/// The newest extracts of a group of subscribers.
#[derive(Default)]
pub(super) struct Extracts(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// The newest last.
    extracts: VecDeque<Entry>,
    bytes: usize,
}

struct Entry {
    block: Sequence,
    format: Format,
    /// `None` if all events match: then the block itself is used.
    extract: Option<Arc<Extract>>,
}

impl Extracts {
    /// The extract of a block, which the first caller makes. `None` if all of its events match.
    pub(super) fn get(
        &self,
        filter: &Filter,
        block: &Block,
        format: Format,
        taken: &Taken<'_>,
    ) -> Option<Arc<Extract>> {
        let wanted = (block.first_sequence(), format);
        let mut kept = self.lock();
        let mut newest_first = kept.extracts.iter().rev();
        if let Some(entry) = newest_first.find(|entry| (entry.block, entry.format) == wanted) {
            return entry.extract.clone();
        }
        // Under the lock, so that no other subscriber makes the same one.
        let selection = filter.select(block);
        let extract =
            (!selection.is_all()).then(|| Arc::new(Extract::of(&selection, block, format)));
        let before = kept.bytes;
        kept.push(Entry {
            block: block.first_sequence(),
            format,
            extract: extract.clone(),
        });
        let after = kept.bytes;
        if after > before {
            let all = taken.bytes.fetch_add(after - before, Ordering::Relaxed);
            if all > taken.bytes_max {
                taken.bytes.fetch_sub(kept.clear(), Ordering::Relaxed);
            }
        } else {
            taken.bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
        extract
    }

    /// Keeps none. What they took is taken from the bytes of all groups.
    pub(super) fn clear(&self, bytes: &AtomicUsize) {
        bytes.fetch_sub(self.lock().clear(), Ordering::Relaxed);
    }

    /// The same, unless a subscriber makes one: publishing does not wait for it. Whoever makes one
    /// while there are too many keeps none itself.
    pub(super) fn try_clear(&self, bytes: &AtomicUsize) {
        let mut kept = match self.0.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        bytes.fetch_sub(kept.clear(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.extracts.push_back(entry);
        while self.bytes > KEPT_BYTES_MAX || self.extracts.len() > KEPT_BLOCKS_MAX {
            let Some(oldest) = self.extracts.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes();
        }
    }

    /// Keeps none. Returns how many bytes that were.
    fn clear(&mut self) -> usize {
        self.extracts = VecDeque::new();
        std::mem::take(&mut self.bytes)
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        let extract = self.extract.as_ref();
        extract.map_or(0, |extract| extract.view.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::testing as fixtures, filter::Spec};

    const fn taken(bytes: &AtomicUsize, bytes_max: usize) -> Taken<'_> {
        Taken { bytes, bytes_max }
    }

    fn filter(event_type: &str) -> Filter {
        let types = vec![event_type.to_owned()];
        Filter::compile(&Spec {
            types,
            ..Spec::default()
        })
        .unwrap()
    }

    /// `events` of two types in turn, from `sequence` on.
    fn block(sequence: u64, events: u64) -> Arc<Block> {
        let events: Vec<(String, &str, &str)> = (0..events)
            .map(|number| {
                let event_type = ["wanted", "other"][number as usize % 2];
                (format!("evt_{}", sequence + number), event_type, "")
            })
            .collect();
        let events: Vec<_> = events
            .iter()
            .map(|(id, event_type, user)| (id.as_str(), *event_type, *user))
            .collect();
        fixtures::block_of(Sequence(sequence), &fixtures::batch("app", &events))
    }

    #[test]
    fn an_extract_is_what_each_would_have_put_together_by_itself() {
        let block = block(1, 5);
        let get = |filter| {
            Extracts::default().get(
                &filter,
                &block,
                Format::Typed,
                &taken(&AtomicUsize::new(0), usize::MAX),
            )
        };
        let extract = get(filter("wanted")).unwrap();
        let view = block.view(Format::Typed);
        for (at, index) in [0, 2, 4].into_iter().enumerate() {
            let event = view.slice(index..index + 1);
            assert_eq!(extract.view().slice(at..at + 1), event);
            assert_eq!(extract.index(at), Some(index));
        }
        assert_eq!((extract.view().len(), extract.index(3)), (3, None));
        assert!(get(filter("unknown")).unwrap().view().is_empty());
        assert!(get(Filter::everything()).is_none());
    }

    #[test]
    fn an_extract_is_made_once_for_each_block_and_format() {
        let (filter, extracts) = (filter("wanted"), Extracts::default());
        let blocks = [block(1, 4), block(5, 4)];
        let get = |block, format| {
            extracts
                .get(
                    &filter,
                    block,
                    format,
                    &taken(&AtomicUsize::new(0), usize::MAX),
                )
                .unwrap()
        };
        let first = get(&blocks[0], Format::Typed);
        let raw = get(&blocks[0], Format::Raw);
        let second = get(&blocks[1], Format::Typed);
        assert!(Arc::ptr_eq(&first, &get(&blocks[0], Format::Typed)));
        assert!(Arc::ptr_eq(&second, &get(&blocks[1], Format::Typed)));
        assert!(first.view().slice(0..1) != raw.view().slice(0..1));
        assert!(first.view().slice(0..1) != second.view().slice(0..1));
    }

    #[test]
    fn only_the_newest_are_kept_by_number_and_by_weight() {
        let (filter, extracts) = (filter("wanted"), Extracts::default());
        let bytes = AtomicUsize::new(0);
        let taken = taken(&bytes, usize::MAX);
        for number in 0..100 {
            extracts.get(&filter, &block(1 + number * 2, 2), Format::Typed, &taken);
        }
        let count = || extracts.0.lock().unwrap().extracts.len();
        assert_eq!(count(), KEPT_BLOCKS_MAX);
        let heavy = block(1_000, 8_000);
        let extract = extracts
            .get(&filter, &heavy, Format::Typed, &taken)
            .unwrap();
        assert!(extract.view().bytes() > KEPT_BYTES_MAX);
        assert_eq!(count(), 0, "what is too large serves once");
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nobody_waits_for_whoever_makes_an_extract_to_clear_the_others() {
        let (extracts, bytes) = (Extracts::default(), AtomicUsize::new(0));
        let taken = taken(&bytes, usize::MAX);
        extracts.get(&filter("wanted"), &block(1, 4), Format::Typed, &taken);
        let before = bytes.load(Ordering::Relaxed);
        let making = extracts.lock();
        extracts.try_clear(&bytes);
        assert_eq!(bytes.load(Ordering::Relaxed), before);
        drop(making);
        extracts.try_clear(&bytes);
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_groups_together_keep_no_more_than_they_may() {
        let (filter, bytes) = (filter("wanted"), AtomicUsize::new(0));
        let block = block(1, 100);
        let one = Extracts::default();
        let extract = one.get(&filter, &block, Format::Typed, &taken(&bytes, usize::MAX));
        let extract_bytes = extract.unwrap().view().bytes();
        assert_eq!(bytes.load(Ordering::Relaxed), extract_bytes);
        let groups: Vec<_> = (0..10).map(|_| Extracts::default()).collect();
        for group in &groups {
            let taken = taken(&bytes, 3 * extract_bytes);
            assert!(group.get(&filter, &block, Format::Typed, &taken).is_some());
        }
        assert!(bytes.load(Ordering::Relaxed) <= 4 * extract_bytes);
        for group in groups.iter().chain([&one]) {
            group.clear(&bytes);
        }
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    }
}
