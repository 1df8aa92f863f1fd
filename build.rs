//! Says which commit is built, for `--version`. Nothing is generated here: the Rust code of the contract
//! in `proto/` is a crate of its own, `crates/contract`.

use std::{env, fs, path::Path, process::Command};

/// What builds without a repository, such as those of packages, name their commit with.
const COMMIT_VARIABLE: &str = "PRELUDE_BRIDGE_BUILD_COMMIT";
/// Seconds since 1970: <https://reproducible-builds.org/specs/source-date-epoch/>.
const DATE_VARIABLE: &str = "SOURCE_DATE_EPOCH";
const UNKNOWN: &str = "unknown";
const COMMIT_CHARS: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    name_the_build();
}

/// Sets `BUILD_COMMIT`, `BUILD_DATE` (of the commit, so that equal sources make equal programs) and
/// `BUILD_TARGET` for the compiler.
fn name_the_build() {
    println!("cargo::rerun-if-env-changed={COMMIT_VARIABLE}");
    println!("cargo::rerun-if-env-changed={DATE_VARIABLE}");
    let (commit, date) = match of_git() {
        Some((commit, date)) => (Some(commit), Some(date)),
        None => (of_package(), None),
    };
    let commit = variable(COMMIT_VARIABLE).or(commit);
    let commit: Option<String> = commit.map(|commit| commit.chars().take(COMMIT_CHARS).collect());
    let date = variable(DATE_VARIABLE)
        .and_then(|seconds| day(seconds.parse().ok()?))
        .or(date);
    let target = variable("TARGET");
    for (name, value) in [
        ("BUILD_COMMIT", commit),
        ("BUILD_DATE", date),
        ("BUILD_TARGET", target),
    ] {
        let value = value.as_deref().unwrap_or(UNKNOWN);
        println!("cargo::rustc-env={name}={value}");
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The commit that is checked out and its date, if this directory is the top of a repository: a
/// package that was unpacked inside another project's repository has none of its own.
fn of_git() -> Option<(String, String)> {
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let here = fs::canonicalize(variable("CARGO_MANIFEST_DIR")?).ok()?;
    if fs::canonicalize(root).ok()? != here {
        return None;
    }
    // HEAD changes when another branch is checked out, and its branch with each commit. A branch
    // that was packed has no file until then, and Cargo takes a file that is missing for changed.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name]);
        if let Some(path) = path.filter(|path| Path::new(path).is_file()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let line = git(&["log", "-1", "--format=%H %cs"])?;
    let (commit, date) = line.split_once(' ')?;
    Some((commit.to_owned(), date.to_owned()))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

/// The commit that `cargo package` notes in what it packs.
fn of_package() -> Option<String> {
    let noted = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, after) = noted.split_once("\"sha1\"")?;
    let value = after.split('"').nth(1)?;
    Some(value.to_owned())
}

/// The day, in UTC: Howard Hinnant's `civil_from_days`.
fn day(unix_seconds: i64) -> Option<String> {
    let days = unix_seconds.div_euclid(86_400).checked_add(719_468)?;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // The year begins in March here, so that its leap day is its last.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, is_next_year) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = year_of_era + era * 400 + is_next_year;
    Some(format!("{year:04}-{month:02}-{day:02}"))
}
