//! Owns when a change of the credentials file is believed. Files are written in steps, and between
//! two of them a file can be empty, cut short, or not there. Pure: it is told what was found at each
//! look, and counts.
//!
//! - A file that ends with its last line, as our commands write it, was written to its end. It is
//!   believed at the second look that finds the same.
//! - Anything else may be half of something: a file without that line, one that is the beginning of
//!   the last one, one that cannot be read, none. It has to stay as it is for longer. A file that had
//!   its last line and lost it is never believed.

use std::time::Duration;

use super::document;

/// How often the file is read. It costs a few microseconds.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// So many looks find the same before a file that is whole is believed.
const LOOKS_WHOLE: u32 = 2;
/// So many before anything else is: 0.7 s, twice as long as writing a file was seen to take, and
/// short enough that a change has its effect within a second.
const LOOKS_UNSURE: u32 = 8;

/// What a look at the file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The system says that there is no such file.
    Missing,
    /// It is there, with this text.
    Text(String),
    /// It may be there: why it could not be read.
    Unreadable(String),
}

/// What was found so far.
#[derive(Debug)]
pub(super) struct Settling {
    /// What was believed last.
    believed: Seen,
    /// The text that is in force; `None` when none is.
    in_force: Option<String>,
    candidate: Option<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    seen: Seen,
    looks: u32,
    looks_needed: u32,
}

impl Settling {
    /// Begins with what the start of the bridge found.
    pub(super) fn new(found: Seen) -> Self {
        let in_force = match &found {
            Seen::Text(text) => Some(text.clone()),
            Seen::Missing | Seen::Unreadable(_) => None,
        };
        Self {
            believed: found,
            in_force,
            candidate: None,
        }
    }

    /// Takes what one more look found. Returns it when it is to be believed, once.
    pub(super) fn look(&mut self, seen: Seen) -> Option<Seen> {
        if seen == self.believed {
            self.candidate = None;
            return None;
        }
        let (looks, looks_needed) = match &self.candidate {
            Some(candidate) if candidate.seen == seen => {
                (candidate.looks + 1, candidate.looks_needed)
            }
            Some(_) | None => (1, self.looks_needed(&seen)),
        };
        if looks >= looks_needed {
            self.candidate = None;
            self.believed = seen.clone();
            return Some(seen);
        }
        self.candidate = Some(Candidate {
            seen,
            looks,
            looks_needed,
        });
        None
    }

    /// What was believed is in force from now on; `None` when nothing is.
    pub(super) fn set_in_force(&mut self, text: Option<String>) {
        self.in_force = text;
    }

    fn looks_needed(&self, seen: &Seen) -> u32 {
        let Seen::Text(text) = seen else {
            return LOOKS_UNSURE;
        };
        let is_beginning = self
            .in_force
            .as_ref()
            .is_some_and(|in_force| in_force.starts_with(text.as_str()) && in_force != text);
        if is_whole(text) && !is_beginning {
            LOOKS_WHOLE
        } else {
            LOOKS_UNSURE
        }
    }
}

/// Whether a file was written to its end, as far as it can be told.
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

    /// How many looks it takes until this is believed.
    fn looks(settling: &mut Settling, seen: &Seen) -> u32 {
        let mut looks = 1;
        while settling.look(seen.clone()).is_none() {
            looks += 1;
            assert!(looks <= LOOKS_UNSURE, "never");
        }
        looks
    }

    #[test]
    fn any_change_is_believed_within_a_second() {
        // The first look comes up to an interval after the change.
        assert!(INTERVAL * LOOKS_UNSURE <= Duration::from_millis(900));
        assert!(INTERVAL * LOOKS_WHOLE <= Duration::from_millis(500));
        // And no sooner than what a slow `cp` was seen to take.
        assert!(INTERVAL * (LOOKS_UNSURE - 1) > Duration::from_millis(350));
    }

    #[test]
    fn a_whole_file_is_believed_soon_and_anything_else_later() {
        let before = WHOLE.replace("\"a\"", "\"b\"");
        let new = || Settling::new(text(&before));
        assert_eq!(looks(&mut new(), &text(WHOLE)), LOOKS_WHOLE);
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
            assert_eq!(looks(&mut new(), &other), LOOKS_UNSURE, "{other:?}");
        }
    }

    #[test]
    fn the_beginning_of_what_is_in_force_is_believed_late_even_if_it_looks_whole() {
        let longer = format!("{WHOLE}[[credentials]]\nname = \"c\"\ncertificate = \"c\"\n");
        let mut settling = Settling::new(text(&longer));
        assert_eq!(looks(&mut settling, &text(WHOLE)), LOOKS_UNSURE);
    }

    #[test]
    fn what_passes_was_never_there() {
        let mut settling = Settling::new(text(WHOLE));
        for passing in [text(""), Seen::Missing, text("[["), Seen::Missing, text("")] {
            for _ in 1..LOOKS_UNSURE {
                assert_eq!(settling.look(passing.clone()), None);
            }
        }
        assert_eq!(settling.look(text(WHOLE)), None);
        // The looks before do not count any more.
        assert_eq!(looks(&mut settling, &text("")), LOOKS_UNSURE);
    }

    #[test]
    fn a_file_that_goes_on_changing_is_not_believed() {
        let mut settling = Settling::new(Seen::Missing);
        for length in 0..WHOLE.len() {
            assert_eq!(settling.look(text(&WHOLE[..length])), None);
        }
        assert_eq!(looks(&mut settling, &text(WHOLE)), LOOKS_WHOLE);
        assert_eq!(settling.look(text(WHOLE)), None, "it is said once");
    }
}
