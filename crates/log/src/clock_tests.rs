//! What a wrong clock of the machine does to a log: nothing that cannot be made good.

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;

use super::{
    Log,
    clock::machine::{DAY, HOUR, Machine, SECOND, START},
    embedded, fixtures, memory,
};
use prelude_bridge_event::Sequence;

const ALL: usize = usize::MAX;
const ERRORS: [i64; 6] = [HOUR, -HOUR, DAY, -DAY, 347 * DAY / 10, -START];

/// A log on a machine. The one in memory cannot be restarted.
struct Rig {
    machine: Machine,
    dir: TempDir,
    log: Option<Arc<dyn Log>>,
    /// Each number that was appended, with its true time.
    appended: Vec<(u64, i64)>,
}

impl Rig {
    fn memory() -> Self {
        let machine = Machine::new();
        let log = memory::open_with_clock(memory::Options::default(), machine.clock());
        let mut rig = Self::without_log(machine);
        rig.log = Some(log.unwrap());
        rig
    }

    fn embedded() -> Self {
        let mut rig = Self::without_log(Machine::new());
        rig.open();
        rig
    }

    fn without_log(machine: Machine) -> Self {
        Self {
            machine,
            dir: tempfile::tempdir().unwrap(),
            log: None,
            appended: Vec::new(),
        }
    }

    fn open(&mut self) {
        let seams = embedded::Seams {
            clock: self.machine.clock(),
            ..embedded::Seams::default()
        };
        let options = embedded::Options::default();
        let log = embedded::open_with_seams(self.dir.path(), options, seams);
        self.log = Some(log.unwrap());
    }

    fn restart(&mut self) {
        self.log = None;
        self.open();
    }

    fn log(&self) -> &dyn Log {
        &**self.log.as_ref().unwrap()
    }

    async fn append(&mut self) {
        let n = self.appended.len() as u64;
        self.appended.push((n, self.machine.time()));
        let appended = self.log().append(fixtures::numbered("app_1", n..n + 1));
        assert_eq!(appended.await.unwrap().accepted, 1);
    }

    /// An append that adds nothing: the log reads its clock, and the one after it finds that it has
    /// removed what was due.
    async fn touch(&self) {
        for _ in 0..2 {
            let nothing = self.log().append(fixtures::numbered("app_1", 0..0));
            nothing.await.unwrap();
        }
    }

    async fn run(&self, time: i64, step: i64) {
        for _ in 0..time / step {
            self.machine.pass(step);
            self.touch().await;
        }
    }

    /// What is too old by the true time, give or take, is gone, and nothing else.
    async fn assert_true_ages(&self, slack: i64) {
        self.touch().await;
        let earliest = self.log().range().earliest;
        for &(n, at) in &self.appended {
            let age = self.machine.time() - at;
            let is_there = Sequence(n + 1) >= earliest;
            assert!(is_there || age > 30 * DAY, "{n} is gone after {age}");
            assert!(
                !is_there || age <= 30 * DAY + slack,
                "{n} is there after {age}"
            );
        }
    }

    /// That these are known as repetitions.
    async fn assert_known(&self, numbers: std::ops::Range<u64>) {
        let count = numbers.clone().count();
        let again = self.log().append(fixtures::numbered("app_1", numbers));
        assert_eq!(again.await.unwrap().duplicates, count);
    }

    async fn stamps(&self) -> Vec<i64> {
        let after = self.log().range().earliest.before();
        let blocks = self.log().read(after, ALL).await.unwrap();
        blocks.iter().map(|block| block.received_at().0).collect()
    }
}

fn rigs() -> [Rig; 2] {
    [Rig::memory(), Rig::embedded()]
}

/// Events are removed so much too late at most, while the machine runs.
const SLOT: i64 = 30 * DAY / 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_short_jump_removes_nothing_forgets_nothing_and_is_in_no_stamp() {
    for error in ERRORS {
        for mut rig in rigs() {
            for _ in 0..2 {
                rig.append().await;
                rig.machine.pass(SECOND);
                rig.machine.set_error(error);
                for _ in 0..3 {
                    rig.append().await;
                    rig.touch().await;
                    rig.machine.pass(SECOND);
                }
                rig.machine.set_error(0);
                rig.append().await;
                rig.machine.pass(20 * SECOND);
            }
            let times: Vec<i64> = rig.appended.iter().map(|&(_, at)| at).collect();
            assert_eq!(rig.stamps().await, times, "{error}");
            assert_eq!(rig.log().usage().clock_jumps, 2);
            rig.assert_true_ages(SLOT).await;
            rig.assert_known(0..10).await;
            // As if nothing had been.
            rig.run(31 * DAY, 6 * HOUR).await;
            rig.assert_true_ages(SLOT).await;
            assert_eq!(rig.log().range().event_count(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_jump_removes_nothing_and_keeps_nothing_longer() {
    for error in ERRORS {
        for mut rig in rigs() {
            for error in [0, error, 0] {
                rig.machine.set_error(error);
                for _ in 0..3 {
                    rig.append().await;
                    rig.run(2 * HOUR, HOUR / 2).await;
                }
                rig.assert_true_ages(SLOT).await;
            }
            rig.assert_known(0..9).await;
            assert!(rig.stamps().await.is_sorted());
            assert_eq!(rig.log().usage().clock_jumps, 2);
            rig.run(29 * DAY, 6 * HOUR).await;
            rig.assert_true_ages(SLOT).await;
            // Not when their stamps are old enough, which may take a month more.
            rig.run(2 * DAY, 6 * HOUR).await;
            rig.assert_true_ages(SLOT).await;
            assert_eq!(rig.log().range().event_count(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_of_a_jump_removes_nothing() {
    for error in ERRORS {
        let mut rig = Rig::embedded();
        let (before, during, after) = (HOUR, [SECOND, 10 * SECOND, 2 * HOUR], HOUR);
        for lasting in during {
            rig.append().await;
            rig.run(before, HOUR / 4).await;
            rig.machine.set_error(error);
            rig.append().await;
            rig.restart();
            rig.append().await;
            rig.run(lasting, SECOND.max(lasting / 10)).await;
            rig.append().await;
            rig.restart();
            rig.machine.set_error(0);
            rig.append().await;
            rig.restart();
            rig.run(after, HOUR / 4).await;
            rig.assert_true_ages(SLOT).await;
        }
        rig.assert_known(0..15).await;
        let first = rig.stamps().await;
        let times: Vec<i64> = rig.appended.iter().map(|&(_, at)| at).collect();
        assert_eq!(first[..13], times[..13], "{error}: two short jumps");
        rig.run(31 * DAY, 6 * HOUR).await;
        rig.assert_true_ages(SLOT).await;
        assert_eq!(rig.log().range().event_count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_starts_with_a_wrong_clock_is_right_later() {
    for error in ERRORS {
        let mut rig = Rig::without_log(Machine::new());
        rig.machine.set_error(error);
        rig.open();
        rig.append().await;
        rig.run(HOUR, HOUR / 4).await;
        rig.machine.set_error(0);
        rig.run(HOUR, HOUR / 4).await;
        rig.append().await;
        let stamps = rig.stamps().await;
        assert_eq!(stamps[1], rig.machine.time().max(stamps[0]));
        rig.assert_known(0..2).await;
        rig.run(31 * DAY, 6 * HOUR).await;
        rig.assert_true_ages(SLOT).await;
        assert_eq!(rig.log().range().event_count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_what_has_become_too_old_goes_a_day_later_and_the_rest_stays() {
    let mut rig = Rig::embedded();
    rig.append().await;
    rig.run(3 * DAY, 6 * HOUR).await;
    rig.append().await;
    rig.log = None;
    rig.machine.reboot(40 * DAY);
    rig.open();
    rig.append().await;
    rig.run(23 * HOUR, HOUR / 2).await;
    rig.restart();
    assert_eq!(rig.log().range().event_count(), 3);
    rig.assert_known(0..3).await;
    rig.run(2 * HOUR, HOUR / 2).await;
    rig.assert_true_ages(SLOT).await;
    assert_eq!(rig.log().range().event_count(), 1);
    rig.assert_known(2..3).await;
    rig.run(31 * DAY, 6 * HOUR).await;
    rig.assert_true_ages(SLOT).await;
    assert_eq!(rig.log().range().event_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_with_a_wrong_clock_costs_nothing_when_it_is_set_within_a_day() {
    for error in ERRORS {
        let mut rig = Rig::embedded();
        rig.append().await;
        rig.run(2 * DAY, 6 * HOUR).await;
        rig.append().await;
        rig.log = None;
        rig.machine.set_error(error);
        rig.machine.reboot(HOUR);
        rig.open();
        rig.append().await;
        rig.run(20 * HOUR, HOUR / 2).await;
        rig.machine.set_error(0);
        rig.run(2 * DAY, HOUR / 2).await;
        assert_eq!(rig.log().range().event_count(), 3, "{error}");
        rig.assert_known(0..3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_remembered_for_fifteen_days_and_forgotten_later_whatever_the_clock_does() {
    for error in ERRORS {
        let mut rig = Rig::embedded();
        rig.append().await;
        for hour in 0..15 * 24 {
            // Wrong for a few hours each day.
            rig.machine.set_error(if hour % 24 < 3 { error } else { 0 });
            rig.run(HOUR, HOUR / 2).await;
            if hour % 24 == 12 {
                rig.restart();
            }
        }
        rig.assert_known(0..1).await;
        rig.machine.set_error(0);
        // The log has to be idle for a moment for what is due; time passes only for its clock.
        let forgotten = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                rig.run(6 * HOUR, HOUR).await;
                let days = (rig.machine.time() - START) / DAY;
                assert!(days < 400, "never forgotten");
                tokio::time::sleep(Duration::from_millis(50)).await;
                let again = rig.log().append(fixtures::numbered("app_1", 0..1));
                if again.await.unwrap().accepted == 1 {
                    break;
                }
            }
        });
        forgotten.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_ages_and_is_damaged_makes_nothing_older() {
    type Damage = fn(&std::path::Path);
    let damages: [Damage; 3] = [
        |manifest| std::fs::remove_file(manifest).unwrap(),
        |manifest| std::fs::write(manifest, "").unwrap(),
        |manifest| std::fs::write(manifest, [0; 100]).unwrap(),
    ];
    for damage in damages {
        let mut rig = Rig::embedded();
        rig.append().await;
        rig.run(29 * DAY, 6 * HOUR).await;
        rig.append().await;
        rig.log = None;
        damage(&rig.dir.path().join("manifest"));
        rig.open();
        rig.run(29 * DAY, 6 * HOUR).await;
        assert_eq!(rig.log().range().event_count(), 2);
        rig.run(2 * DAY, 6 * HOUR).await;
        assert_eq!(rig.log().range().event_count(), 0);
        rig.append().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn size_is_bounded_whatever_the_clock_does() {
    let machine = Machine::new();
    let options = memory::Options {
        retention_bytes: 100_000,
        ..memory::Options::default()
    };
    let log = memory::open_with_clock(options, machine.clock()).unwrap();
    machine.set_error(-START);
    for n in 0..200 {
        let batch = fixtures::numbered("app_1", n * 20..n * 20 + 20);
        log.append(batch).await.unwrap();
        machine.pass(SECOND);
    }
    assert!(log.range().earliest > Sequence(1));
    assert!(log.usage().stored_bytes <= 100_000);
}
