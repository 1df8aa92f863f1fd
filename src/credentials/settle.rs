//! Owns when a change of the credentials file takes effect. Programs write files in steps, and between
//! two of them a file can be empty, cut short, or missing. Pure: `watch` reads, and this counts equal
//! readings.
//!
//! - A file that ends with its last line, as our commands write it, is complete. It takes effect when two
//!   readings agree.
//! - Anything else may be incomplete: a file without that line, the beginning of the file in force, a file that
//!   cannot be read, no file. It has to stay the same for longer. `watch` never accepts a file that had its last
//!   line and lost it.

use std::time::Duration;

use super::document;

/// How often the file is read. It costs a few microseconds.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// How many equal readings a complete file needs.
const READINGS_WHOLE: u32 = 2;
/// How many equal readings anything else needs: 0.7 s, twice as long as a program was measured to take for
/// writing a file, and short enough that a change takes effect within a second.
const READINGS_UNSURE: u32 = 8;

/// What one reading found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The system says that there is no such file.
    Missing,
    /// It is there, with this text.
    Text(String),
    /// It may be there: why it could not be read.
    Unreadable(String),
}

/// The readings so far.
#[derive(Debug)]
pub(super) struct Settling {
    /// What took effect last.
    accepted: Seen,
    /// The text that is in force; `None` if none is.
    in_force: Option<String>,
    candidate: Option<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    seen: Seen,
    readings: u32,
    readings_needed: u32,
}

impl Settling {
    /// Begins with what the bridge found when it started.
    pub(super) fn new(found: Seen) -> Self {
        let in_force = match &found {
            Seen::Text(text) => Some(text.clone()),
            Seen::Missing | Seen::Unreadable(_) => None,
        };
        Self {
            accepted: found,
            in_force,
            candidate: None,
        }
    }

    /// Counts one more reading. Returns what it found when that takes effect, once.
    pub(super) fn observe(&mut self, seen: Seen) -> Option<Seen> {
        if seen == self.accepted {
            self.candidate = None;
            return None;
        }
        let (readings, readings_needed) = match &self.candidate {
            Some(candidate) if candidate.seen == seen => {
                (candidate.readings + 1, candidate.readings_needed)
            }
            Some(_) | None => (1, self.readings_needed(&seen)),
        };
        if readings >= readings_needed {
            self.candidate = None;
            self.accepted = seen.clone();
            return Some(seen);
        }
        self.candidate = Some(Candidate {
            seen,
            readings,
            readings_needed,
        });
        None
    }

    /// Sets which text is in force; `None` if none is.
    pub(super) fn set_in_force(&mut self, text: Option<String>) {
        self.in_force = text;
    }

    fn readings_needed(&self, seen: &Seen) -> u32 {
        let Seen::Text(text) = seen else {
            return READINGS_UNSURE;
        };
        let is_beginning = self
            .in_force
            .as_ref()
            .is_some_and(|in_force| in_force.starts_with(text.as_str()) && in_force != text);
        if is_whole(text) && !is_beginning {
            READINGS_WHOLE
        } else {
            READINGS_UNSURE
        }
    }
}

/// Whether a file is complete, as far as its text shows.
pub(super) fn is_whole(text: &str) -> bool {
    document::parse(text).is_ok_and(|document| document.is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "[[credentials]]\nname = \"a\"\ncertificate = \"dns:a\"\n\n[end]\n";

    fn text(text: &str) -> Seen {
        Seen::Text(text.to_owned())
    }

    /// How many readings it takes until this is believed.
    fn readings(settling: &mut Settling, seen: &Seen) -> u32 {
        let mut readings = 1;
        while settling.observe(seen.clone()).is_none() {
            readings += 1;
            assert!(readings <= READINGS_UNSURE, "never");
        }
        readings
    }

    #[test]
    fn any_change_is_believed_within_a_second() {
        // The first look comes up to an interval after the change.
        assert!(INTERVAL * READINGS_UNSURE <= Duration::from_millis(900));
        assert!(INTERVAL * READINGS_WHOLE <= Duration::from_millis(500));
        // And no sooner than what a slow `cp` was seen to take.
        assert!(INTERVAL * (READINGS_UNSURE - 1) > Duration::from_millis(350));
    }

    #[test]
    fn a_whole_file_is_believed_soon_and_anything_else_later() {
        let before = WHOLE.replace("\"a\"", "\"b\"");
        let new = || Settling::new(text(&before));
        assert_eq!(readings(&mut new(), &text(WHOLE)), READINGS_WHOLE);
        for other in [
            text(""),
            text(WHOLE.trim_end_matches("[end]\n")),
            text(&format!(
                "{WHOLE}[[credentials]]\nname = \"c\"\ncertificate = \"c\"\n"
            )),
            text("typo"),
            Seen::Missing,
            Seen::Unreadable("too many open files".to_owned()),
        ] {
            assert_eq!(readings(&mut new(), &other), READINGS_UNSURE, "{other:?}");
        }
    }

    #[test]
    fn the_beginning_of_what_is_in_force_is_believed_late_even_if_it_looks_whole() {
        let longer = format!("{WHOLE}[[credentials]]\nname = \"c\"\ncertificate = \"c\"\n");
        let mut settling = Settling::new(text(&longer));
        assert_eq!(readings(&mut settling, &text(WHOLE)), READINGS_UNSURE);
    }

    #[test]
    fn what_passes_was_never_there() {
        let mut settling = Settling::new(text(WHOLE));
        for passing in [text(""), Seen::Missing, text("[["), Seen::Missing, text("")] {
            for _ in 1..READINGS_UNSURE {
                assert_eq!(settling.observe(passing.clone()), None);
            }
        }
        assert_eq!(settling.observe(text(WHOLE)), None);
        // The readings before do not count any more.
        assert_eq!(readings(&mut settling, &text("")), READINGS_UNSURE);
    }

    #[test]
    fn a_file_that_goes_on_changing_is_not_believed() {
        let mut settling = Settling::new(Seen::Missing);
        for length in 0..WHOLE.len() {
            assert_eq!(settling.observe(text(&WHOLE[..length])), None);
        }
        assert_eq!(readings(&mut settling, &text(WHOLE)), READINGS_WHOLE);
        assert_eq!(settling.observe(text(WHOLE)), None, "it is said once");
    }
}
