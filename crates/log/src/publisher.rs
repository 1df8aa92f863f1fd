//! Owns how a log makes known what became of it: the last step of every commit, the same for all
//! implementations. Stores nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prelude_bridge_event::{LogId, Sequence, UnixMicros, block::Block};
use tokio::sync::watch;

use super::{
    epochs::Epochs,
    follow::{Follower, Gap},
    status::{Damaged, Health, Range, Status},
};

/// The status of a log, and those that follow it. An implementation has one, and tells it of each
/// commit.
pub struct Publisher {
    log: LogId,
    status: Status,
    range: watch::Sender<Range>,
    epochs: watch::Sender<Arc<Epochs>>,
    health: watch::Sender<Health>,
    damaged: watch::Sender<Arc<[Damaged]>>,
    /// Held while blocks are applied, so that nobody begins to follow in between.
    followers: Mutex<Vec<Arc<dyn Follower>>>,
}

impl Publisher {
    /// Of a log as it was opened.
    #[must_use]
    pub fn new(range: Range, epochs: Epochs, health: Health) -> Self {
        let log = epochs.log();
        let (range, range_seen) = watch::channel(range);
        let (epochs, epochs_seen) = watch::channel(Arc::new(epochs));
        let (health, health_seen) = watch::channel(health);
        let (damaged, damaged_seen) = watch::channel(Arc::default());
        Self {
            log,
            status: Status {
                range: range_seen,
                epochs: epochs_seen,
                health: health_seen,
                damaged: damaged_seen,
            },
            range,
            epochs,
            health,
            damaged,
            followers: Mutex::default(),
        }
    }

    /// What is known of the log.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Does [`Log::follow`](crate::Log::follow).
    ///
    /// # Errors
    /// [`Gap`], when the log does not end with `after`.
    pub fn follow(&self, after: Sequence, follower: Arc<dyn Follower>) -> Result<(), Gap> {
        let mut followers = self.followers();
        Gap::check_sequence(after.plus(1), self.status.range().head.plus(1))?;
        followers.push(follower);
        Ok(())
    }

    /// Makes the blocks of a commit known, which is durable by now, whoever wrote it: first a new
    /// epoch, which is read from the block, then the block, then the range.
    ///
    /// # Errors
    /// [`Gap`], when a block does not continue the log or a follower refuses it. The log has failed
    /// then, as it has when a follower panics: nothing more may be applied.
    pub fn apply<'b>(&self, blocks: impl IntoIterator<Item = &'b Arc<Block>>) -> Result<(), Gap> {
        let _fails = FailsInPanic(self);
        let applied = self.hand_on(blocks);
        if let Err(gap) = &applied {
            self.fail(gap.to_string().into());
        }
        applied
    }

    fn hand_on<'b>(&self, blocks: impl IntoIterator<Item = &'b Arc<Block>>) -> Result<(), Gap> {
        let followers = self.followers();
        for block in blocks {
            let head = self.status.range().head;
            Gap::check(self.log, head, block)?;
            self.begin_epoch(block);
            for follower in &*followers {
                follower.apply(block)?;
            }
            self.range.send_modify(|range| {
                range.earliest_at.get_or_insert(block.received_at());
                range.head = block.last_sequence();
                range.head_at = Some(block.received_at());
            });
        }
        Ok(())
    }

    fn begin_epoch(&self, block: &Block) {
        let (first, epoch) = (block.first_sequence(), block.epoch());
        if self.epochs.borrow().current() != epoch {
            self.epochs
                .send_modify(|epochs| *epochs = Arc::new(epochs.with(first, epoch)));
        }
    }

    /// Makes known that retention has removed what came before `earliest`, which was received at
    /// `earliest_at`; `None` when nothing is left. What was removed does not come back.
    pub fn trim(&self, earliest: Sequence, earliest_at: Option<UnixMicros>) {
        if earliest < self.status.range().earliest {
            return;
        }
        self.range.send_if_modified(|range| {
            let trimmed = range.earliest != earliest;
            range.earliest = earliest;
            range.earliest_at = earliest_at;
            if earliest_at.is_none() {
                range.head_at = None;
            }
            trimmed
        });
        self.damaged.send_if_modified(|known| {
            let stays = |damaged: &&Damaged| damaged.last >= earliest;
            let removed = !known.iter().all(|damaged| stays(&damaged));
            if removed {
                *known = known.iter().filter(stays).copied().collect();
            }
            removed
        });
    }

    /// Makes known whether the log takes events. What failed stays failed, and what is closed can
    /// only fail.
    pub fn set_health(&self, health: Health) {
        self.health.send_if_modified(|known| {
            let may_change = match known {
                Health::Failed { .. } => false,
                Health::Closed => matches!(health, Health::Failed { .. }),
                _ => true,
            };
            let changes = may_change && *known != health;
            if changes {
                *known = health;
            }
            changes
        });
    }

    /// Makes known that these events are damaged too: for good, until [`trim`](Self::trim) removes them. Returns the whole range of damage that they are a
    /// part of, and whether any of it is new. What retention has removed does not count.
    pub fn add_damaged(&self, damaged: Damaged) -> (Damaged, bool) {
        let mut whole = damaged;
        let is_new = self.damaged.send_if_modified(|known| {
            let touches = |other: &Damaged| {
                other.first <= damaged.last.plus(1) && damaged.first <= other.last.plus(1)
            };
            for other in known.iter().filter(|other| touches(other)) {
                whole.first = whole.first.min(other.first);
                whole.last = whole.last.max(other.last);
            }
            let is_known = known.contains(&whole);
            if is_known || whole.last < self.status.range().earliest {
                return false;
            }
            let others = known.iter().copied().filter(|other| !touches(other));
            let mut all: Vec<Damaged> = others.chain([whole]).collect();
            all.sort_by_key(|damaged| damaged.first);
            *known = all.into();
            true
        });
        (whole, is_new)
    }

    /// Forgets all damage, for a test that has repaired it.
    #[cfg(test)]
    pub(crate) fn forget_damaged(&self) {
        self.damaged.send_replace(Arc::default());
    }

    fn fail(&self, reason: Arc<str>) {
        self.set_health(Health::Failed { reason });
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Arc<dyn Follower>>> {
        // The list is whole, whatever a follower did.
        self.followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A panic while blocks are applied leaves nobody who knows which follower has them.
struct FailsInPanic<'p>(&'p Publisher);

impl Drop for FailsInPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("what follows the log panicked".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use prelude_bridge_event::Epoch;

    const LOG: LogId = LogId(1);

    /// Of a log in epoch 1 that ends with `head`.
    fn publisher(head: u64) -> Publisher {
        let range = Range {
            earliest: Sequence(1),
            head: Sequence(head),
            ..Range::default()
        };
        let epochs = Epochs::new(LOG, vec![(Sequence(1), Epoch(1))]);
        Publisher::new(range, epochs, Health::Ready)
    }

    fn block(log: LogId, epoch: u32, first: u64) -> Arc<Block> {
        let batch = fixtures::numbered_list("app_1", &[first, first.wrapping_add(1)]);
        fixtures::block_in(log, Epoch(epoch), Sequence(first), &batch)
    }

    /// A follower with the first events of the blocks that it was handed.
    fn recorder() -> (Arc<dyn Follower>, Arc<Mutex<Vec<u64>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let follower = move |block: &Arc<Block>| {
            noted.lock().unwrap().push(block.first_sequence().0);
            Ok(())
        };
        (Arc::new(follower), seen)
    }

    #[test]
    fn what_does_not_continue_the_log_reaches_nobody_and_fails_the_log() {
        let expected = Sequence(5);
        let missing = |found| Gap::Missing {
            expected,
            found: Sequence(found),
        };
        let repeated = |found| Gap::Repeated {
            expected,
            found: Sequence(found),
        };
        let other = Gap::OtherLog {
            expected: LOG,
            found: LogId(2),
        };
        for (log, first, gap) in [
            (LOG, 1, repeated(1)),
            (LOG, 3, repeated(3)),
            (LOG, 4, repeated(4)),
            (LOG, 6, missing(6)),
            (LOG, 7, missing(7)),
            (LOG, u64::MAX - 1, missing(u64::MAX - 1)),
            (LogId(2), 5, other),
        ] {
            let publisher = publisher(4);
            let (follower, seen) = recorder();
            publisher.follow(Sequence(4), follower).unwrap();
            assert_eq!(publisher.apply(&[block(log, 1, first)]), Err(gap));
            assert!(seen.lock().unwrap().is_empty());
            assert_eq!(publisher.status().range().head, Sequence(4));
            let reason = gap.to_string().into();
            assert_eq!(publisher.status().health(), Health::Failed { reason });
        }
    }

    #[test]
    fn a_gap_within_a_commit_ends_it_there() {
        let publisher = publisher(0);
        let blocks = [block(LOG, 1, 1), block(LOG, 1, 4)];
        let gap = Gap::Missing {
            expected: Sequence(3),
            found: Sequence(4),
        };
        assert_eq!(publisher.apply(&blocks), Err(gap));
        assert_eq!(publisher.status().range().head, Sequence(2));
    }

    #[test]
    fn a_follower_begins_at_the_head_or_not_at_all() {
        let publisher = publisher(4);
        let (follower, seen) = recorder();
        let follow = |after| publisher.follow(Sequence(after), Arc::clone(&follower));
        let missing = Gap::Missing {
            expected: Sequence(4),
            found: Sequence(5),
        };
        assert_eq!(follow(3), Err(missing));
        let repeated = Gap::Repeated {
            expected: Sequence(6),
            found: Sequence(5),
        };
        assert_eq!(follow(5), Err(repeated));
        assert_eq!(follow(4), Ok(()));
        publisher.apply(&[block(LOG, 1, 5)]).unwrap();
        assert_eq!(*seen.lock().unwrap(), [5]);
    }

    #[test]
    fn a_block_that_a_follower_refuses_is_not_in_the_range() {
        let publisher = publisher(0);
        let gap = Gap::OtherLog {
            expected: LogId(7),
            found: LOG,
        };
        let refusing: Arc<dyn Follower> = Arc::new(move |_: &Arc<Block>| Err(gap));
        publisher.follow(Sequence::ZERO, refusing).unwrap();
        assert_eq!(publisher.apply(&[block(LOG, 1, 1)]), Err(gap));
        assert_eq!(publisher.status().range().head, Sequence::ZERO);
    }

    #[test]
    fn an_epoch_is_known_before_its_first_block_is_handed_on() {
        let publisher = Arc::new(publisher(0));
        let status = publisher.status().clone();
        let follower = move |block: &Arc<Block>| {
            assert_eq!(status.epochs().current(), block.epoch());
            Ok(())
        };
        publisher
            .follow(Sequence::ZERO, Arc::new(follower))
            .unwrap();
        let mut cursors = publisher.status().cursors();
        for (first, epoch) in [(1, 1), (3, 2), (5, 2), (7, 1)] {
            let block = block(LOG, epoch, first);
            publisher.apply(&[Arc::clone(&block)]).unwrap();
            assert_eq!(cursors.at(block.last_sequence()), block.cursor(1));
        }
        for (sequence, epoch) in [(2, 1), (4, 2), (6, 2), (8, 1)] {
            assert_eq!(cursors.at(Sequence(sequence)).epoch, Epoch(epoch));
        }
    }

    #[test]
    fn damage_is_known_in_order_whole_and_until_retention_removes_it() {
        let publisher = publisher(100);
        let damaged = |first, last| Damaged {
            first: Sequence(first),
            last: Sequence(last),
        };
        for (added, whole, is_new, all) in [
            ((50, 59), (50, 59), true, vec![(50, 59)]),
            ((52, 53), (50, 59), false, vec![(50, 59)]),
            ((10, 19), (10, 19), true, vec![(10, 19), (50, 59)]),
            ((60, 60), (50, 60), true, vec![(10, 19), (50, 60)]),
            ((48, 49), (48, 60), true, vec![(10, 19), (48, 60)]),
            ((21, 22), (21, 22), true, vec![(10, 19), (21, 22), (48, 60)]),
            ((20, 20), (10, 22), true, vec![(10, 22), (48, 60)]),
            ((5, 80), (5, 80), true, vec![(5, 80)]),
        ] {
            let added = publisher.add_damaged(damaged(added.0, added.1));
            assert_eq!(added, (damaged(whole.0, whole.1), is_new));
            let all: Vec<_> = all.iter().map(|&(a, b)| damaged(a, b)).collect();
            assert_eq!(publisher.status().damaged()[..], all);
        }
        publisher.trim(Sequence(80), None);
        assert_eq!(publisher.status().damaged()[..], [damaged(5, 80)]);
        publisher.apply(&[block(LOG, 1, 101)]).unwrap();
        publisher.trim(Sequence(79), None);
        assert_eq!(publisher.status().range().earliest, Sequence(80));
        assert_eq!(publisher.status().damaged()[..], [damaged(5, 80)]);
        publisher.trim(Sequence(81), None);
        assert!(publisher.status().damaged().is_empty());
        assert_eq!(publisher.add_damaged(damaged(7, 9)), (damaged(7, 9), false));
        assert!(publisher.status().damaged().is_empty());
    }

    #[test]
    fn what_failed_stays_failed_and_what_is_closed_can_only_fail() {
        let publisher = publisher(0);
        let failed = |reason: &str| Health::Failed {
            reason: reason.into(),
        };
        let set = |health: Health| {
            publisher.set_health(health);
            publisher.status().health()
        };
        assert_eq!(set(Health::Full), Health::Full);
        assert_eq!(set(Health::Ready), Health::Ready);
        assert_eq!(set(Health::Closed), Health::Closed);
        assert_eq!(set(Health::Ready), Health::Closed);
        assert_eq!(set(failed("one")), failed("one"));
        assert_eq!(set(failed("two")), failed("one"));
        assert_eq!(set(Health::Closed), failed("one"));
    }

    #[tokio::test]
    async fn who_waits_for_the_health_is_not_woken_by_commits() {
        let publisher = publisher(0);
        let mut health = publisher.status().health.clone();
        publisher.apply(&[block(LOG, 1, 1)]).unwrap();
        assert!(!health.has_changed().unwrap());
        publisher.set_health(Health::Ready);
        assert!(!health.has_changed().unwrap(), "it was ready before");
        publisher.set_health(Health::Full);
        health.changed().await.unwrap();
        let met = publisher.status().health_where(|h| *h == Health::Full);
        assert_eq!(met.await, Health::Full);
        let range = publisher.status().range_where(|range| range.head.0 > 0);
        assert_eq!(range.await.unwrap().head, Sequence(2));
    }
}
