//! What every log must do. A crate with an implementation says how one is opened ([`Factory`]), and
//! gets the tests by [`conformance_tests!`](crate::conformance_tests).

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    reason = "these are tests: each is a claim, and fails by panicking"
)]

mod events;
mod following;

use std::{
    any::Any,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Handle;

pub use self::{events::*, following::*};
use super::{
    Appended, Block, Error, Gap, Log, Range,
    clock::{Boot, Clock, Reading},
    embedded,
    sequencer::Sequencer,
};
use prelude_bridge_event::{Sequence, UnixMicros, testing as fixtures};

const ALL: usize = usize::MAX;

/// The time at which every test begins.
pub const START: UnixMicros = UnixMicros(1_700_000_000_000_000);

/// How logs of a kind are opened.
pub trait Factory {
    /// Opens a new, empty log.
    fn open(&self, setup: Setup) -> Opened;
}

/// What a test wants of a log.
#[derive(Clone)]
pub struct Setup {
    /// What the log takes for the time, also for retention.
    pub clock: TestClock,
    /// Older events are removed.
    pub retention_age: Duration,
    /// The oldest events are removed when there are more bytes.
    pub retention_bytes: u64,
}

/// A log, and what a test needs beside it.
pub struct Opened {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Makes the log unavailable for now (`true`), and available again; `None` where nothing can.
    pub set_outage: Option<Box<dyn Fn(bool) + Send + Sync>>,
    /// Dropped after the log.
    pub keep: Box<dyn Any + Send>,
}

/// A clock that stands still unless a test moves it.
#[derive(Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    fn new() -> Self {
        Self(Arc::new(AtomicI64::new(START.0)))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> UnixMicros {
        UnixMicros(self.0.load(Ordering::SeqCst))
    }

    /// The same as both clocks of a system.
    pub(crate) fn to_clock(&self) -> Clock {
        let clock = self.clone();
        Clock {
            read: Arc::new(move || Reading {
                wall: clock.now(),
                steady: clock.now().0,
            }),
            boot: Some(Boot::default()),
        }
    }
}

/// A log that is tested, with a recording follower.
struct Rig {
    log: Arc<dyn Log>,
    followed: Followed,
    clock: TestClock,
    set_outage: Option<Box<dyn Fn(bool) + Send + Sync>>,
    _keep: Box<dyn Any + Send>,
}

type Followed = Arc<Mutex<Vec<Arc<Block>>>>;

#[derive(Clone, Copy)]
struct Keep {
    age: Duration,
    bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(3600),
            bytes: 1 << 30,
        }
    }
}

impl Rig {
    fn new(factory: &dyn Factory) -> Self {
        Self::keeping(factory, Keep::default())
    }

    fn keeping(factory: &dyn Factory, keep: Keep) -> Self {
        let clock = TestClock::new();
        let opened = factory.open(Setup {
            clock: clock.clone(),
            retention_age: keep.age,
            retention_bytes: keep.bytes,
        });
        let followed = record(&*opened.log, Sequence::ZERO).unwrap();
        Self {
            log: opened.log,
            followed,
            clock,
            set_outage: opened.set_outage,
            _keep: opened.keep,
        }
    }

    fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).unwrap();
        self.clock.0.fetch_add(micros, Ordering::SeqCst);
    }

    async fn append(&self, numbers: &[u64]) -> Appended {
        self.try_append(numbers).await.unwrap()
    }

    async fn try_append(&self, numbers: &[u64]) -> Result<Appended, Error> {
        let batch = fixtures::numbered_list("app_1", numbers);
        self.log.append(batch).await
    }

    async fn events(&self) -> Vec<(u64, String)> {
        let after = self.log.range().earliest.before();
        fixtures::events(&self.log.read(after, ALL).await.unwrap())
    }

    fn followed(&self) -> Vec<(u64, String)> {
        fixtures::events(&self.followed.lock().unwrap())
    }

    async fn range_where(&self, condition: impl FnMut(&Range) -> bool) -> Range {
        let met = self.log.status().range_where(condition);
        in_time(met).await.unwrap()
    }
}

/// Follows a log and records what it is handed.
fn record(log: &dyn Log, after: Sequence) -> Result<Followed, Gap> {
    let followed = Followed::default();
    let noted = Arc::clone(&followed);
    let follower = move |block: &Arc<Block>| {
        noted.lock().unwrap().push(Arc::clone(block));
        Ok(())
    };
    log.follow(after, Arc::new(follower)).map(|()| followed)
}

/// How a log on disk is opened for a claim.
pub(crate) fn on_disk(setup: &Setup) -> (embedded::Options, embedded::Seams) {
    let options = embedded::Options {
        retention_age: setup.retention_age,
        retention_bytes: setup.retention_bytes,
        ..embedded::Options::default()
    };
    let seams = embedded::Seams {
        clock: setup.clock.to_clock(),
        ..embedded::Seams::default()
    };
    (options, seams)
}

/// Opens a replica in a directory of a test, on a runtime of several threads.
pub fn open_replica(
    setup: &Setup,
    dir: impl AsRef<Path> + Send + 'static,
    sequencer: impl Future<Output = Arc<dyn Sequencer>>,
) -> Opened {
    let (options, seams) = on_disk(setup);
    let open = async {
        let sequencer = sequencer.await;
        embedded::open_replica_with_seams(dir.as_ref(), options, sequencer, seams).await
    };
    let opened = tokio::task::block_in_place(|| Handle::current().block_on(open));
    Opened {
        log: opened.unwrap(),
        set_outage: None,
        keep: Box::new(dir),
    }
}

fn numbered(numbers: &[u64]) -> Vec<(u64, String)> {
    (1..)
        .zip(numbers.iter().map(|n| format!("evt_{n}")))
        .collect()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, future)
        .await
        .expect("it comes to pass")
}

async fn waits_until(mut condition: impl AsyncFnMut() -> bool) {
    in_time(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Passes the names of the claims about every log to a macro, behind an expression and a semicolon. Those about
/// retention are apart ([`with_retention_claims!`](crate::with_retention_claims)).
#[macro_export]
macro_rules! with_conformance_claims {
    ($then:ident, $factory:expr) => {
        $then! { $factory;
            a_new_log_is_empty
            events_are_numbered_in_order_without_holes
            concurrent_appends_have_one_order_which_all_see
            repetitions_are_left_out
            the_same_id_of_another_app_is_another_event
            the_same_id_of_another_type_is_another_event
            a_duplicate_with_another_content_is_told
            a_place_can_be_found_by_its_time
            time_never_goes_back
            reading_ends_at_its_limit_but_brings_at_least_one_block
            a_large_batch_becomes_several_blocks
            a_closed_log_refuses_and_can_be_read
            an_append_goes_on_when_nobody_waits_for_it
            an_empty_batch_is_nothing
            cursors_of_the_log_belong_to_it
            usage_grows_with_what_is_kept
            a_follower_begins_at_the_head_and_is_handed_every_commit
            followers_have_a_batch_before_it_is_answered
            a_block_that_a_follower_refuses_fails_the_log
            a_follower_that_panics_fails_the_log
            those_who_wait_see_commits_and_the_end
            an_epoch_is_known_before_any_of_its_events
        }
    };
}

/// The same with the claims about what the log removes by its own clock.
#[macro_export]
macro_rules! with_retention_claims {
    ($then:ident, $factory:expr) => {
        $then! { $factory;
            what_was_appended_is_remembered_and_asking_changes_nothing
            what_is_too_old_expires
            what_is_too_much_expires
            a_log_that_expired_whole_goes_on
        }
    };
}

/// A test for each claim about the logs that a [`Factory`] opens; with `, outages` also for those about
/// logs that can be unavailable for now. The crate needs tokio with the
/// features `macros` and `rt-multi-thread`, and this macro by its name alone.
#[macro_export]
macro_rules! conformance_tests {
    ($factory:expr) => {
        $crate::with_conformance_claims! { conformance_tests, $factory }
        $crate::with_retention_claims! { conformance_tests, $factory }
    };
    ($factory:expr, outages) => {
        $crate::conformance_tests! { $factory }
        $crate::conformance_tests! { $factory;
            a_log_that_is_unavailable_says_so_and_goes_on_later
        }
    };
    ($factory:expr; $($name:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $crate::conformance::$name(&$factory).await;
        })*
    };
}
