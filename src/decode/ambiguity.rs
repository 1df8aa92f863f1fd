//! Owns what makes JSON mean one thing to one reader and another to the next: a member that an object
//! has twice (RFC 8259 section 4 leaves open which one counts), also if their names differ in case (some
//! readers, such as that of Go, take either), and two members that are names for
//! the same thing and disagree. The bridge filters by what it reads, and passes the JSON on as it is:
//! a consumer that takes the other one would be given what the filter and its scope leave out.

use std::fmt;

use super::json::Name;

/// What is ambiguous, and where. Never a value, and no name but those that the bridge knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguity {
    /// The event, counted from 0; none for the body around the events.
    pub event: Option<usize>,
    /// The object that has the members.
    pub object: &'static str,
    /// Which members.
    pub members: Members,
}

/// The members that are ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// A member that is there twice.
    Repeated(&'static str),
    /// The same, but for the case of its name.
    InOtherCase(&'static str),
    /// Two members for one thing with different values.
    Different(&'static str, &'static str),
}

/// Stands for a name that the bridge does not know.
pub(super) const UNKNOWN: &str = "(another)";

/// The names of members outside of payloads that may be shown.
const KNOWN: [&str; 8] = [
    "app_id", "data", "event", "events", "id", "payload", "type", "value",
];

impl Ambiguity {
    /// Of these members of an object.
    pub(super) fn of(object: &'static str, members: Members) -> Self {
        Self {
            event: None,
            object,
            members,
        }
    }

    /// Of two members of an event that mean the same.
    pub(super) fn different(one: &'static str, other: &'static str) -> Self {
        Self::of("event", Members::Different(one, other))
    }

    /// The same, in this event.
    pub(super) fn in_event(self, index: usize) -> Self {
        Self {
            event: Some(index),
            ..self
        }
    }
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.event {
            Some(index) if self.object == "event" => write!(formatter, "events[{index}]")?,
            Some(index) => write!(formatter, "the {} of events[{index}]", self.object)?,
            None => write!(formatter, "the {}", self.object)?,
        }
        match self.members {
            Members::Repeated(member) => write!(formatter, " has its member {member} twice"),
            Members::InOtherCase(member) => {
                write!(
                    formatter,
                    " has its member {member} twice, but for upper and lower case"
                )
            }
            Members::Different(one, other) => {
                write!(formatter, " has {one} and {other}, which are not the same")
            }
        }
    }
}

/// The members of an object that were there so far, each by a bit of its own.
#[derive(Default)]
pub(super) struct Seen(u64);

impl Seen {
    /// Notes a member. An error if it was noted before.
    pub(super) fn first<E: serde::de::Error>(&mut self, bit: u64) -> Result<(), E> {
        if self.0 & bit != 0 {
            // Whoever reads on finds out which one it is.
            return Err(E::custom("a member twice"));
        }
        self.0 |= bit;
        Ok(())
    }

    /// Notes a member that is known by another case of its name, which `bit` tells. An error if it was noted
    /// before.
    pub(super) fn in_other_case<E: serde::de::Error>(
        &mut self,
        name: &Name<'_>,
        bit: fn(&str) -> Option<u64>,
    ) -> Result<(), E> {
        if name.is_folded() {
            return Ok(());
        }
        bit(name.folded().text()).map_or(Ok(()), |bit| self.first(bit))
    }
}

/// A name that occurs twice among these, whatever its case, as far as it may be shown.
pub(super) fn repeated(names: Vec<Name<'_>>) -> Option<Members> {
    repeated_of(names, |_| None)
}

/// The same, of names of which `member` may show more.
pub(super) fn repeated_of(
    names: Vec<Name<'_>>,
    member: impl Fn(&str) -> Option<&'static str>,
) -> Option<Members> {
    let folded = names.into_iter().map(|name| (name.folded(), name));
    let mut names: Vec<_> = folded.collect();
    names.sort_unstable();
    let pairs = names.iter().zip(names.iter().skip(1));
    let mut repeated = pairs.filter(|((one, _), (other, _))| one == other);
    let ((folded, one), (_, other)) = repeated.next()?;
    let known = KNOWN.into_iter().find(|known| folded.is(known));
    let member = known.or_else(|| member(folded.text())).unwrap_or(UNKNOWN);
    Some(if one == other {
        Members::Repeated(member)
    } else {
        Members::InOtherCase(member)
    })
}
