//! The logs of this crate against what every log must do, and against a naive one.

use std::{collections::HashSet, path::Path, sync::Arc};

use proptest::prelude::*;

use super::{
    Appended, Commit, Error, Gap, Health, Log,
    conformance::{Factory, Opened, Setup, on_disk},
    conformance_tests, embedded, fixtures, memory,
};
use prelude_bridge_event::{Epoch, LogId, Sequence};

const ALL: usize = usize::MAX;

mod memory_log {
    use super::*;

    struct InMemory;

    impl Factory for InMemory {
        fn open(&self, setup: Setup) -> Opened {
            let options = memory::Options {
                retention_age: setup.retention_age,
                retention_bytes: setup.retention_bytes,
                ..memory::Options::default()
            };
            let log = memory::open_with_clock(options, setup.clock.to_clock()).unwrap();
            let switched = Arc::clone(&log);
            let set_outage = move |is_out| {
                if is_out {
                    switched.suspend("nobody answers");
                } else {
                    switched.resume();
                }
            };
            Opened {
                log,
                set_outage: Some(Box::new(set_outage)),
                keep: Box::new(()),
            }
        }
    }

    conformance_tests!(InMemory, outages);
}

mod embedded_log {
    use super::*;

    struct OnDisk;

    impl Factory for OnDisk {
        fn open(&self, setup: Setup) -> Opened {
            let dir = tempfile::tempdir().unwrap();
            let (options, seams) = on_disk(&setup);
            Opened {
                log: embedded::open_with_seams(dir.path(), options, seams).unwrap(),
                set_outage: None,
                keep: Box::new(dir),
            }
        }
    }

    conformance_tests!(OnDisk);
}

/// A commit of another writer: these events, after `head`, in an epoch of its own.
fn foreign(log: LogId, epoch: u32, head: u64, numbers: &[u64]) -> Commit {
    let batch = fixtures::numbered_list("app_1", numbers);
    let block = fixtures::block_in(log, Epoch(epoch), Sequence(head + 1), &batch);
    Commit {
        keys: batch.drafts.iter().map(|draft| draft.key).collect(),
        blocks: vec![block],
    }
}

#[tokio::test]
async fn a_commit_of_another_writer_is_applied_and_its_epoch_adopted() {
    let log = memory::open(memory::Options::default()).unwrap();
    let append = |numbers: &[u64]| log.append(fixtures::numbered_list("app_1", numbers));
    append(&[1, 2]).await.unwrap();
    let id = log.status().epochs().log();
    let mut cursors = log.status().cursors();
    let before = [1, 2].map(|n| cursors.at(Sequence(n)));
    log.suspend("no new commits of ours for now");
    log.apply_commit(&foreign(id, 77, 2, &[3, 4])).unwrap();
    log.resume();
    let appended = append(&[3, 4, 5]).await.unwrap();
    assert_eq!(
        appended,
        Appended {
            accepted: 1,
            duplicates: 2,
            ..Appended::default()
        }
    );
    assert_eq!(cursors.at(Sequence(3)).epoch, Epoch(77));
    let epochs = log.status().epochs();
    let blocks = log.read(Sequence::ZERO, ALL).await.unwrap();
    assert_eq!(fixtures::events(&blocks).len(), 5);
    assert_eq!(
        blocks[2].epoch(),
        Epoch(77),
        "the local writer goes on in it"
    );
    for cursor in before
        .into_iter()
        .chain([blocks[1].cursor(0), blocks[2].cursor(0)])
    {
        assert_eq!(epochs.check(cursor, Sequence(5)), Ok(cursor.sequence));
    }
}

#[tokio::test]
async fn a_commit_of_another_writer_that_is_not_the_next_one_fails_the_log() {
    for (head, gap) in [
        (
            1,
            Gap::Repeated {
                expected: Sequence(3),
                found: Sequence(2),
            },
        ),
        (
            3,
            Gap::Missing {
                expected: Sequence(3),
                found: Sequence(4),
            },
        ),
    ] {
        let log = memory::open(memory::Options::default()).unwrap();
        let append = |numbers| log.append(fixtures::numbered("app_1", numbers));
        append(1..3).await.unwrap();
        let id = log.status().epochs().log();
        let failed = Error::Failed(gap.to_string().into());
        let applied = log.apply_commit(&foreign(id, 77, head, &[3, 4]));
        assert_eq!(applied, Err(failed.clone()));
        assert!(matches!(log.status().health(), Health::Failed { .. }));
        assert_eq!(append(3..4).await, Err(failed));
        let read = log.read(Sequence::ZERO, ALL).await.unwrap();
        assert_eq!(fixtures::events(&read).len(), 2);
    }
}

/// The log that everybody understands.
#[derive(Default)]
struct Naive {
    seen: HashSet<u64>,
    events: Vec<u64>,
}

impl Naive {
    fn append(&mut self, numbers: &[u64]) -> Appended {
        let before = self.events.len();
        for &n in numbers {
            if self.seen.insert(n) {
                self.events.push(n);
            }
        }
        let accepted = self.events.len() - before;
        Appended {
            accepted,
            duplicates: numbers.len() - accepted,
            ..Appended::default()
        }
    }
}

fn open_embedded(path: &Path) -> Arc<embedded::Embedded> {
    embedded::open(path, embedded::Options::default()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Batches of few different events, now and then a reopening, and reads from anywhere.
    #[test]
    fn both_logs_do_what_the_naive_log_does(
        batches in proptest::collection::vec(
            (proptest::collection::vec(0_u64..60, 0..12), proptest::bool::weighted(0.1)), 1..30),
        places in proptest::collection::vec(0_u64..60, 5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut embedded = open_embedded(dir.path());
            let memory = memory::open(memory::Options::default()).unwrap();
            let mut naive = Naive::default();
            for (numbers, reopen) in &batches {
                let expected = naive.append(numbers);
                for log in [&*embedded as &dyn Log, &*memory] {
                    let batch = fixtures::numbered_list("app_1", numbers);
                    assert_eq!(log.append(batch).await.unwrap(), expected);
                }
                if *reopen {
                    drop(embedded);
                    embedded = open_embedded(dir.path());
                }
            }
            let all = (1..).zip(naive.events.iter().map(|n| format!("evt_{n}"))).collect::<Vec<_>>();
            for log in [&*embedded as &dyn Log, &*memory] {
                assert_eq!(log.range().head, Sequence(all.len() as u64));
                for &place in places.iter().filter(|&&place| place <= all.len() as u64) {
                    let read = log.read(Sequence(place), ALL).await.unwrap();
                    let mut events = fixtures::events(&read);
                    events.retain(|&(sequence, _)| sequence > place);
                    assert_eq!(events, all[usize::try_from(place).unwrap()..]);
                }
            }
        });
    }
}
