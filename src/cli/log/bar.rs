//! Owns the progress bar of a check or a copy: on a terminal's stderr, gone when that is done. Nothing is
//! written where stderr is no terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// How often it is drawn.
const INTERVAL: Duration = Duration::from_millis(100);
const CELLS: u64 = 30;

/// How far it is, in words: so much of so much.
type Words = fn(done: u64, total: u64) -> String;

/// The bar.
pub(super) struct Bar {
    words: Words,
    is_shown: bool,
    began: Instant,
    drawn_at: Option<Instant>,
}

impl Bar {
    /// On stderr, if that is a terminal that can erase a line.
    pub(super) fn of_stderr(words: Words) -> Self {
        let can_erase = std::env::var_os("TERM").is_none_or(|name| name != "dumb");
        Self {
            words,
            is_shown: io::stderr().is_terminal() && can_erase,
            began: Instant::now(),
            drawn_at: None,
        }
    }

    /// Draws it, unless it was drawn just now.
    pub(super) fn show(&mut self, done: u64, total: u64) {
        let is_due = self.drawn_at.is_none_or(|at| at.elapsed() >= INTERVAL);
        if self.is_shown && is_due {
            self.drawn_at = Some(Instant::now());
            let line = line((done, total), self.began.elapsed(), self.words);
            // A closed stderr changes nothing.
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        }
    }

    /// Removes it.
    pub(super) fn clear(&self) {
        if self.drawn_at.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Fits into 80 columns.
fn line((done, all): (u64, u64), elapsed: Duration, words: Words) -> String {
    let total = all.max(1);
    let done = done.min(total);
    let share = |of: u64| u64::try_from(u128::from(done) * u128::from(of) / u128::from(total));
    let cells = share(CELLS).unwrap_or(CELLS);
    let cell = |at: u64| if at < cells { '#' } else { '.' };
    let bar: String = (0..CELLS).map(cell).collect();
    let percent = share(100).unwrap_or(100);
    let rest = match done {
        0 => String::new(),
        _ => {
            let left = elapsed.as_secs_f64() * ((total - done) as f64 / done as f64);
            format!(", {left:.0} s left")
        }
    };
    format!("[{bar}] {percent:>3} %  {}{rest}", words(done, all))
}

/// For a bar of bytes.
pub(super) fn sizes(done_bytes: u64, total_bytes: u64) -> String {
    format!("{} of {}", size(done_bytes), size(total_bytes))
}

/// A number of bytes, for people.
pub(super) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 {
        format!("{mib:.1} MiB")
    } else {
        format!("{:.1} GiB", mib / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_grows_with_what_is_done_and_fits() {
        let at = |done| line((done, 3 << 30), Duration::from_secs(6), sizes);
        assert_eq!(
            at(0),
            "[..............................]   0 %  0.0 MiB of 3.0 GiB"
        );
        assert_eq!(
            at(1 << 30),
            "[##########....................]  33 %  1.0 GiB of 3.0 GiB, 12 s left"
        );
        assert!(at(3 << 30).contains("] 100 %") && at(9 << 30).contains("] 100 %"));
        let worst = line((1 << 20, u64::MAX), Duration::from_secs(1), sizes);
        assert!(worst.len() < 120, "{worst}");
        assert!(line((0, 0), Duration::ZERO, sizes).contains("0 %"));
    }
}
