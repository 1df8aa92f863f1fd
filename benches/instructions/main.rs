//! Guards what each room costs: counts its instructions and compares them with the table in
//! `limits.rs`. Times are noisy where tests run; instructions are the same on each run.
//!
//! `scripts/instructions` builds and runs it. It starts itself under valgrind twice for each room,
//! with few rounds and with more: the difference is what the rounds cost, in all threads, and what
//! comes before them falls out. With a room's name it counts only that one.
//!
//! No benchmarking library does this for us: those that count by callgrind count between two points
//! of one thread, while a commit is the log's own thread's work, and come with a runner of some
//! hundred crates that would take longer to build than all of this takes.

#![expect(clippy::unwrap_used, reason = "a guard that cannot count should stop")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures are its output"
)]

mod limits;
mod rooms;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use self::{
    limits::{LIMITS, Limit, Verdict},
    rooms::{Fixtures, ROOMS, Room},
};

/// How long a run may take, which otherwise takes a second or two: a room that hangs shows itself.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

/// The rounds before those that are counted: what grows once has grown by then.
const WARM_UP_ROUNDS: u64 = 5;

fn main() -> ExitCode {
    // cargo adds `--bench`.
    let arguments: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["run", room, directory, rounds] => {
            run(find(room), Path::new(directory), rounds.parse().unwrap());
            ExitCode::SUCCESS
        }
        ref wanted => guard(wanted),
    }
}

fn find(name: &str) -> &'static Room {
    let found = ROOMS.iter().find(|room| room.name == name);
    found.unwrap_or_else(|| panic!("no such room: {name}"))
}

/// What runs under valgrind.
fn run(room: &Room, fixtures: &Path, rounds: u64) {
    thread::spawn(|| {
        thread::sleep(RUN_TIMEOUT);
        eprintln!("not done after {RUN_TIMEOUT:?}");
        std::process::exit(1);
    });
    // Always as many are made ready, so that the difference is only in how many are run.
    let mut round = (room.prepare)(&Fixtures(fixtures.to_owned()), WARM_UP_ROUNDS + room.rounds);
    for _ in 0..rounds {
        round();
    }
    // Taking everything down is not what is counted.
    std::process::exit(0);
}

fn guard(wanted: &[&str]) -> ExitCode {
    let rooms: Vec<&Room> = match wanted {
        [] => ROOMS.iter().collect(),
        _ => wanted.iter().map(|name| find(name)).collect(),
    };
    let directory = tempfile::tempdir().unwrap();
    Fixtures(directory.path().to_owned()).write();
    let mut slower = Vec::new();
    for room in rooms {
        let counted = count(room, directory.path());
        let limit = LIMITS.iter().find(|limit| limit.room == room.name).unwrap();
        println!("{}", line(limit, counted));
        if is_comparable() && limit.judge(counted) == Verdict::Exceeded {
            slower.push(room.name);
        }
    }
    if slower.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!(
        "\nThese cost more instructions than they may: {}.",
        slower.join(", ")
    );
    println!("Where they spend them:");
    for room in slower {
        println!(
            "  callgrind_annotate --inclusive=yes {}",
            profile(room).display()
        );
    }
    println!(
        "If the change is meant, put the new counts into benches/instructions/limits.rs, and say in \
         the commit what they buy."
    );
    ExitCode::FAILURE
}

/// Elsewhere the same code is other instructions.
fn is_comparable() -> bool {
    cfg!(target_arch = "x86_64")
}

fn line(limit: &Limit, counted: u64) -> String {
    let judgement = match limit.judge(counted) {
        _ if !is_comparable() => "not judged: the limits are those of 64-bit x86".to_owned(),
        Verdict::Kept => "ok".to_owned(),
        Verdict::Gained => "ok; so few that limits.rs should follow, to keep the gain".to_owned(),
        Verdict::Exceeded => "TOO MANY".to_owned(),
    };
    let (room, unit, most) = (limit.room, limit.unit, limit.most());
    format!("{room:16} {counted:>8} instructions {unit:11} at most {most:>8}  {judgement}")
}

fn count(room: &Room, fixtures: &Path) -> u64 {
    let few = total(room, fixtures, WARM_UP_ROUNDS);
    // This one is left to be looked at.
    let many = total(room, fixtures, WARM_UP_ROUNDS + room.rounds);
    (many - few) / (room.rounds * room.units)
}

/// All instructions of one run.
fn total(room: &Room, fixtures: &Path, rounds: u64) -> u64 {
    let profile = profile(room.name);
    fs::create_dir_all(profile.parent().unwrap()).unwrap();
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(env::current_exe().unwrap())
        .args(["run", room.name])
        .arg(fixtures)
        .arg(rounds.to_string())
        .stdin(Stdio::null())
        .output()
        .expect("valgrind, which `make tools` installs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{} under valgrind: {errors}",
        room.name
    );
    let profile = fs::read_to_string(profile).unwrap();
    let totals = profile
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals: "));
    totals.unwrap().trim().parse().unwrap()
}

fn profile(room: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/instructions");
    target.join(format!("{room}.out"))
}
