//! The clocks of a log on a machine whose clocks are set to and fro.

use proptest::prelude::*;

use super::Mark;
use super::{
    machine::{DAY, HOUR, Machine, SECOND, START},
    retention::{CONFIRMED_AFTER, CREDITS_MAX},
    *,
};
use prelude_bridge_event::Sequence;

/// Errors of a wall clock: both ways, from an hour to a battery that was empty.
const ERRORS: [i64; 8] = [
    HOUR,
    -HOUR,
    DAY,
    -DAY,
    347 * DAY / 10,
    -347 * DAY / 10,
    -START,
    -START - DAY,
];

fn new_clock(machine: &Machine) -> LogClock {
    LogClock::new(machine.clock(), RetentionTime::default())
}

/// As it is when the process ends now and another one starts after `meanwhile`.
fn restarted(machine: &Machine, clock: &mut LogClock, meanwhile: impl FnOnce()) -> LogClock {
    let bytes = clock.snapshot().encode(std::iter::empty());
    meanwhile();
    let (stored, _) = Stored::decode(&bytes).unwrap();
    LogClock::resume(machine.clock(), &stored)
}

/// Lets time pass, and reads the clocks meanwhile.
fn run(machine: &Machine, clock: &mut LogClock, time: i64, step: i64) {
    for _ in 0..time / step {
        machine.pass(step);
        clock.now();
    }
}

#[test]
fn a_jump_of_less_than_a_minute_leaves_no_trace() {
    for error in ERRORS {
        for seconds in [1, 3, 59] {
            let machine = Machine::new();
            let mut clock = new_clock(&machine);
            let first = clock.now().retention.time;
            for round in 1..=2 {
                machine.set_error(error);
                for _ in 0..seconds {
                    assert_eq!(clock.now().wall.0, machine.time(), "{error} {seconds}");
                    assert_eq!(clock.watch().now().0, machine.time());
                    machine.pass(SECOND);
                }
                machine.set_error(0);
                for _ in 0..100 {
                    assert_eq!(clock.now().wall.0, machine.time(), "{error} {seconds}");
                    machine.pass(SECOND);
                }
                assert_eq!(clock.watch().jumps(), round);
            }
            let passed = machine.time() - START;
            assert_eq!(clock.now().retention.age_of(first), passed);
        }
    }
}

#[test]
fn a_jump_that_lasts_is_followed_after_a_minute_and_makes_nothing_older() {
    for error in ERRORS {
        let machine = Machine::new();
        let mut clock = new_clock(&machine);
        let first = clock.now().retention.time;
        for (error, back) in [(error, 0), (0, error), (error, 0)] {
            machine.set_error(error);
            for _ in 0..60 {
                assert_eq!(clock.now().wall.0, machine.time() + back);
                machine.pass(SECOND);
            }
            for _ in 0..60 {
                assert_eq!(clock.now().wall.0, machine.time() + error);
                machine.pass(SECOND);
            }
        }
        machine.set_error(error);
        run(&machine, &mut clock, 30 * DAY, HOUR);
        let passed = machine.time() - START;
        assert_eq!(clock.now().retention.age_of(first), passed);
        assert_eq!(clock.watch().jumps(), 3);
    }
}

#[test]
fn a_clock_that_jumps_on_and_on_is_followed_only_where_it_stays() {
    let machine = Machine::new();
    let mut clock = new_clock(&machine);
    for round in 1..200 {
        machine.set_error(round * HOUR);
        machine.pass(30 * SECOND);
        assert_eq!(clock.now().wall.0, machine.time());
    }
    assert_eq!(clock.watch().jumps(), 199);
}

#[test]
fn a_clock_that_is_slewed_is_followed_and_many_small_steps_are_a_jump() {
    let machine = Machine::new();
    let mut clock = new_clock(&machine);
    // As fast as chrony slews, for an hour.
    for second in 0..3_600 {
        machine.set_error(second * SECOND / 12);
        assert_eq!(clock.now().wall.0, machine.time() + second * SECOND / 12);
        machine.pass(SECOND);
    }
    // A step that a time daemon makes, and a leap second.
    let error = 300 * SECOND;
    for step in [SECOND / 2, -SECOND, SECOND] {
        machine.set_error(error + step);
        assert_eq!(clock.now().wall.0, machine.time() + error + step);
        run(&machine, &mut clock, 120 * SECOND, SECOND);
        machine.set_error(error);
        run(&machine, &mut clock, 120 * SECOND, SECOND);
    }
    assert_eq!(clock.watch().jumps(), 0);
    for step in 0..10 {
        machine.set_error(error + step * SECOND);
        clock.now();
    }
    assert!(clock.watch().jumps() > 0);
}

#[test]
fn within_a_boot_a_restart_knows_what_time_has_passed() {
    for error in ERRORS {
        let machine = Machine::new();
        let mut clock = new_clock(&machine);
        let first = clock.now().retention.time;
        // Set while the process is down, and back again.
        let mut clock = restarted(&machine, &mut clock, || {
            machine.pass(10 * DAY);
            machine.set_error(error);
        });
        let passed = machine.time() - START;
        assert_eq!(clock.now().retention.age_of(first), passed);
        assert_eq!(clock.now().wall.0, machine.time());
        assert_eq!(clock.watch().jumps(), 1);
        // Restarts do not keep a jump from lasting a minute.
        let mut clock = restarted(&machine, &mut clock, || machine.set_error(0));
        assert_eq!(clock.now().wall.0, machine.time());
        assert_eq!(clock.watch().jumps(), 0);
        // A state that was stored long ago is as good.
        let old = clock.snapshot();
        run(&machine, &mut clock, 10 * DAY, HOUR);
        let mut clock = LogClock::resume(machine.clock(), &old);
        let passed = machine.time() - START;
        assert_eq!(clock.now().retention.age_of(first), passed);
    }
}

/// A log that has run for three days, when the machine is off for ten.
fn down_for_ten_days() -> (Machine, LogClock, RetentionTime) {
    let machine = Machine::new();
    let mut clock = new_clock(&machine);
    let first = clock.now().retention.time;
    run(&machine, &mut clock, 3 * DAY, 600 * SECOND);
    let clock = restarted(&machine, &mut clock, || machine.reboot(10 * DAY));
    (machine, clock, first)
}

#[test]
fn the_time_over_a_reboot_counts_after_a_day_for_what_was_there_before() {
    let (machine, mut clock, first) = down_for_ten_days();
    let after = clock.now().retention.time;
    run(&machine, &mut clock, DAY - 600 * SECOND, 600 * SECOND);
    let now = clock.now().retention;
    assert_eq!(now.age_of(first) / HOUR, (4 * DAY - HOUR) / HOUR);
    run(&machine, &mut clock, 600 * SECOND, SECOND);
    let now = clock.now().retention;
    assert_eq!(now.age_of(first) / SECOND, 14 * DAY / SECOND);
    assert_eq!(now.age_of(after), DAY, "not for what came later");
    // And so it is from now on, also over restarts.
    let mut clock = restarted(&machine, &mut clock, || machine.pass(DAY));
    let now = clock.now().retention;
    assert_eq!(now.age_of(first) / SECOND, 15 * DAY / SECOND);
    assert_eq!(now.age_of(after), 2 * DAY);
}

#[test]
fn restarts_within_a_boot_do_not_put_off_what_a_reboot_left_open() {
    let (machine, mut clock, first) = down_for_ten_days();
    for hours in 1..=24 {
        let age = clock.now().retention.age_of(first);
        assert_eq!(age / HOUR, 3 * 24 + hours - 1);
        run(&machine, &mut clock, HOUR / 2, 600 * SECOND);
        clock = restarted(&machine, &mut clock, || ());
        run(&machine, &mut clock, HOUR / 2, 600 * SECOND);
        clock = restarted(&machine, &mut clock, || ());
    }
    let age = clock.now().retention.age_of(first);
    assert_eq!(age / HOUR, (13 + 1) * 24);
}

#[test]
fn a_boot_with_a_wrong_clock_that_is_set_within_a_day_makes_nothing_older() {
    for error in ERRORS {
        for hours in [0, 1, 23] {
            let machine = Machine::new();
            let mut clock = new_clock(&machine);
            let first = clock.now().retention.time;
            run(&machine, &mut clock, 3 * DAY, 600 * SECOND);
            let mut clock = restarted(&machine, &mut clock, || {
                machine.set_error(error);
                machine.reboot(HOUR);
            });
            run(&machine, &mut clock, hours * HOUR, 600 * SECOND);
            machine.set_error(0);
            run(&machine, &mut clock, 3 * DAY, 600 * SECOND);
            let passed = machine.time() - START;
            let age = clock.now().retention.age_of(first);
            assert!(age <= passed, "{error} {hours}: {age} of {passed}");
            assert!(passed - age < 60 * SECOND, "the hour counts: {error}");
        }
    }
}

#[test]
fn the_earliest_time_follows_a_clock_that_is_set_only_after_a_day() {
    for error in ERRORS {
        let machine = Machine::new();
        let mut clock = new_clock(&machine);
        let earliest = |clock: &LogClock| clock.watch().earliest_now();
        assert_eq!(earliest(&clock).at.0, machine.time());
        assert!(!earliest(&clock).is_confirmed);
        // In the first day of a log, too.
        for is_confirmed in [false, true] {
            machine.set_error(error);
            run(&machine, &mut clock, DAY - 1200 * SECOND, 600 * SECOND);
            let early = machine.time() + error.min(0);
            assert_eq!(earliest(&clock).at.0, early, "{error}");
            assert_eq!(earliest(&clock).is_confirmed, is_confirmed);
            // A restart makes it no later, once the clock was confirmed.
            clock = restarted(&machine, &mut clock, || ());
            assert!(earliest(&clock).at.0 == early || !is_confirmed, "{error}");
            machine.set_error(0);
            run(&machine, &mut clock, 3 * DAY, 600 * SECOND);
            assert_eq!(earliest(&clock).at.0, machine.time());
        }
        machine.set_error(error);
        run(&machine, &mut clock, 2 * DAY, 600 * SECOND);
        // From 1970 on it is confirmed by nothing, and right away where it is earlier.
        assert_eq!(earliest(&clock).at.0, machine.time() + error);
    }
}

#[test]
fn the_earliest_time_leaves_out_what_a_reboot_took_for_a_day() {
    let (machine, mut clock, _) = down_for_ten_days();
    let earliest = |clock: &LogClock| clock.watch().earliest_now();
    clock.now();
    assert_eq!(
        earliest(&clock).at.0 / SECOND,
        (machine.time() - 10 * DAY) / SECOND
    );
    assert!(earliest(&clock).is_confirmed);
    run(&machine, &mut clock, DAY, 600 * SECOND);
    assert_eq!(earliest(&clock).at.0, machine.time());
}

#[test]
fn a_wrong_clock_before_a_reboot_makes_nothing_older() {
    for error in ERRORS {
        let machine = Machine::new();
        let mut clock = new_clock(&machine);
        let first = clock.now().retention.time;
        run(&machine, &mut clock, 3 * DAY, 600 * SECOND);
        machine.set_error(error);
        run(&machine, &mut clock, 2 * HOUR, 60 * SECOND);
        let mut clock = restarted(&machine, &mut clock, || {
            machine.reboot(HOUR);
            machine.set_error(0);
        });
        run(&machine, &mut clock, 3 * DAY, 600 * SECOND);
        let passed = machine.time() - START;
        let age = clock.now().retention.age_of(first);
        assert!(age <= passed, "{error}: {age} of {passed}");
    }
}

#[test]
fn a_clock_of_before_2025_confirms_nothing_however_long_it_lasts() {
    let machine = Machine::new();
    machine.set_error(-START);
    let mut clock = new_clock(&machine);
    let first = clock.now().retention.time;
    run(&machine, &mut clock, 5 * DAY, HOUR);
    let mut clock = restarted(&machine, &mut clock, || {
        machine.reboot(HOUR);
        machine.set_error(0);
    });
    run(&machine, &mut clock, 5 * DAY, HOUR);
    let passed = machine.time() - START;
    assert!(clock.now().retention.age_of(first) <= passed);
}

#[test]
fn a_young_log_is_not_believed_to_be_old() {
    let machine = Machine::new();
    machine.set_error(-347 * DAY / 10);
    let mut clock = new_clock(&machine);
    let first = clock.now().retention.time;
    run(&machine, &mut clock, HOUR, 60 * SECOND);
    let mut clock = restarted(&machine, &mut clock, || {
        machine.reboot(HOUR);
        machine.set_error(0);
    });
    run(&machine, &mut clock, 5 * DAY, HOUR);
    let passed = machine.time() - START;
    assert!(clock.now().retention.age_of(first) <= passed);
}

#[test]
fn without_a_boot_to_compare_with_a_restart_is_as_a_reboot() {
    let machine = Machine::new();
    let elsewhere = || Clock {
        boot: None,
        ..machine.clock()
    };
    let mut clock = LogClock::new(elsewhere(), RetentionTime::default());
    let first = clock.now().retention.time;
    run(&machine, &mut clock, 3 * DAY, 600 * SECOND);
    let stored = clock.snapshot();
    machine.pass(10 * DAY);
    let mut clock = LogClock::resume(elsewhere(), &stored);
    assert_eq!(clock.now().retention.age_of(first) / DAY, 3);
    run(&machine, &mut clock, DAY, 600 * SECOND);
    assert_eq!(clock.now().retention.age_of(first) / DAY, 14);
}

#[test]
fn what_is_kept_of_reboots_is_bounded_and_dropping_some_makes_nothing_older() {
    let machine = Machine::new();
    let mut clock = new_clock(&machine);
    let first = clock.now().retention.time;
    let reboots = CREDITS_MAX + 10;
    for _ in 0..reboots {
        run(&machine, &mut clock, 2 * CONFIRMED_AFTER, HOUR);
        clock = restarted(&machine, &mut clock, || machine.reboot(HOUR));
    }
    run(&machine, &mut clock, 2 * CONFIRMED_AFTER, HOUR);
    assert_eq!(clock.snapshot().credits.len(), CREDITS_MAX);
    let passed = machine.time() - START;
    let age = clock.now().retention.age_of(first);
    assert!(age <= passed && passed - age < 11 * HOUR + 600 * SECOND);
}

#[test]
fn what_is_stored_is_read_again_unless_a_bit_of_it_has_changed() {
    let (machine, mut clock, _) = down_for_ten_days();
    run(&machine, &mut clock, 2 * DAY, HOUR);
    let mut clock = restarted(&machine, &mut clock, || machine.reboot(DAY));
    let stored = clock.snapshot();
    assert!(stored.claim.is_some() && stored.confirmed.is_some() && !stored.credits.is_empty());
    let marks = [3, 9].map(|n| Mark {
        through: Sequence(n),
        at: RetentionTime(100),
    });
    let bytes = stored.encode(marks.into_iter());
    assert_eq!(Stored::decode(&bytes), Some((stored, marks.to_vec())));
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Stored::decode(&bytes), None, "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert_eq!(Stored::decode(&bytes[..len]), None);
    }
}

/// Where lines of the log go in a test.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is logged meanwhile.
fn logged(work: impl FnOnce()) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn each_jump_is_logged_but_not_without_bound() {
    let machine = Machine::new();
    let mut clock = new_clock(&machine);
    let mut turn = |error| {
        machine.set_error(error);
        clock.now();
    };
    let said = logged(|| turn(-HOUR));
    assert!(
        said.contains("clock jumped") && said.contains("back"),
        "{said}"
    );
    assert!(said.contains("1h"), "{said}");
    let said = logged(|| turn(0));
    assert!(said.contains("back where it was"), "{said}");
    let said = logged(|| (1..500).for_each(|n| turn(n * HOUR)));
    assert_eq!(said.lines().count(), 8);
    // A minute later there is a line again.
    machine.pass(60 * SECOND);
    let said = logged(|| turn(0));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(clock.watch().jumps(), 500);
}

#[test]
fn a_start_says_what_a_gap_means_and_when_the_clock_is_behind() {
    let after_a_reboot_of = |down| {
        let machine = Machine::new();
        let mut clock = new_clock(&machine);
        logged(|| drop(restarted(&machine, &mut clock, || machine.reboot(down))))
    };
    assert_eq!(after_a_reboot_of(HOUR / 2), "");
    let said = after_a_reboot_of(34 * DAY);
    assert!(said.contains("down_for=816h"), "{said}");
    assert!(said.contains("Check the clock"), "{said}");
    let machine = Machine::new();
    let newest = UnixMicros(machine.time() + DAY);
    let said = logged(|| new_clock(&machine).compare_with_newest_event(newest));
    assert!(said.contains("behind the newest event"), "{said}");
    let newest = UnixMicros(machine.time());
    let said = logged(|| new_clock(&machine).compare_with_newest_event(newest));
    assert_eq!(said, "");
}

#[test]
fn the_clocks_of_the_system_go() {
    let clock = system_clock();
    let (one, other) = ((clock.read)(), (clock.read)());
    assert!(other.steady >= one.steady);
    assert_eq!(clock.boot, system_boot());
    assert_eq!(clock.boot.is_some(), cfg!(target_os = "linux"));
}

/// A part of the life of a machine: how long, with which error of the clock, and what ends it.
#[derive(Clone, Debug)]
struct Part {
    hours: i64,
    error: i64,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Nothing,
    Restart { down_hours: i64 },
    Reboot { down_hours: i64 },
}

fn part() -> impl Strategy<Value = Part> {
    let end = prop_oneof![
        2 => Just(End::Nothing),
        1 => (0_i64..500).prop_map(|down_hours| End::Restart { down_hours }),
        1 => (1_i64..500).prop_map(|down_hours| End::Reboot { down_hours }),
    ];
    let error = prop_oneof![1 => Just(0), 1 => proptest::sample::select(&ERRORS[..])];
    (0_i64..40, error, end).prop_map(|(hours, error, end)| Part { hours, error, end })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens to the clock, as long as it is not wrong for a day: nothing gets older than
    /// it is; and once the clock is right for a day, all that was there before is as old as the
    /// time in which the machine ran, at least.
    #[test]
    fn nothing_is_older_than_it_is(parts in proptest::collection::vec(part(), 1..30)) {
        let machine = Machine::new();
        let mut clock = new_clock(&machine);
        // Moments by the retention clock, with their true times.
        let mut moments = vec![(clock.now().retention.time, machine.time(), 0)];
        let mut ran = 0;
        for (index, part) in parts.iter().enumerate() {
            // Each wrong time is followed by a right one.
            let (error, hours) = if index % 2 == 0 { (0, part.hours) } else { (part.error, part.hours.min(20)) };
            machine.set_error(error);
            run(&machine, &mut clock, hours * HOUR, 600 * SECOND);
            ran += hours * HOUR;
            moments.push((clock.now().retention.time, machine.time(), ran));
            match part.end {
                End::Nothing => {}
                End::Restart { down_hours } => {
                    ran += down_hours * HOUR;
                    clock = restarted(&machine, &mut clock, || machine.pass(down_hours * HOUR));
                }
                End::Reboot { down_hours } => {
                    clock = restarted(&machine, &mut clock, || machine.reboot(down_hours * HOUR));
                }
            }
            moments.push((clock.now().retention.time, machine.time(), ran));
            let now = clock.now().retention;
            for &(moment, time, ran_before) in &moments {
                let age = now.age_of(moment);
                prop_assert!(age <= machine.time() - time, "{} of {}", age, machine.time() - time);
                prop_assert!(age >= ran - ran_before);
            }
            prop_assert!(moments.is_sorted_by_key(|&(moment, ..)| moment));
        }
    }
}
