//! Owns the walk over JSON that stays in place: names and values are slices of the body, and are
//! looked into only when they are asked for. Knows nothing of events.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Reads an object. `None` where the text is none, or one that ends in the middle.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    if !is_object(text) {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// Calls `visit` with every member of an object. `None` as with [`object`].
pub(super) fn members<'a>(text: &'a str, visit: impl FnMut(Name<'a>, Value<'a>)) -> Option<()> {
    if !is_object(text) {
        return None;
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_map(MembersVisitor(visit)).ok()?;
    deserializer.end().ok()
}

/// Whether a text goes on like an object. What does not is not given to the parser, which would
/// build an error with a copy of what it found.
fn is_object(text: &str) -> bool {
    text.trim_ascii_start().starts_with('{')
}

struct MembersVisitor<F>(F);

impl<'de, F: FnMut(Name<'de>, Value<'de>)> Visitor<'de> for MembersVisitor<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        while let Some((name, value)) = members.next_entry::<&RawValue, &RawValue>()? {
            (self.0)(Name::new(name), Value::new(value));
        }
        Ok(())
    }
}

/// The name of a member. Two are equal if they name the same member, however they are escaped.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name<'a>(Cow<'a, str>);

impl<'a> Name<'a> {
    pub(super) fn new(quoted: &'a RawValue) -> Self {
        // A name that is no Unicode (half of a surrogate pair) is none that anybody looks for: it
        // stays as it is written, quotes included.
        let text = Value::new(quoted).string();
        Self(text.unwrap_or(Cow::Borrowed(quoted.get())))
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// The name in lower case. Letters that are the upper case or another form of one of ASCII's become
    /// that one, as for readers that ignore case.
    pub(super) fn folded(&self) -> Self {
        if self.is_folded() {
            return self.clone();
        }
        // `ſ` is `S` in upper case, and the sign for Kelvin is `k` in lower case.
        let upper = self.0.chars().flat_map(char::to_uppercase);
        let folded: String = upper.flat_map(char::to_lowercase).collect();
        Self(folded.into())
    }

    /// Whether it is what it is folded to. Nearly all names are.
    pub(super) fn is_folded(&self) -> bool {
        let is_other = |byte: u8| byte.is_ascii_uppercase() || !byte.is_ascii();
        !self.0.bytes().any(is_other)
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.0 == name
    }
}

/// A value as it stands in the body: valid JSON without space around it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value<'a>(&'a str);

impl<'a> Value<'a> {
    pub(super) fn new(value: &'a RawValue) -> Self {
        Self(value.get())
    }

    pub(super) fn json(self) -> &'a str {
        self.0
    }

    /// The value, unless it is `null`, which means the same as none.
    pub(super) fn not_null(self) -> Option<Self> {
        (self.0 != "null").then_some(self)
    }

    /// The text of a string; `None` for other values and for what is no Unicode.
    pub(super) fn string(self) -> Option<Cow<'a, str>> {
        let inner = self.0.strip_prefix('"')?.strip_suffix('"')?;
        // Looks at all bytes, many at a time: for texts as short as these that is less than a search
        // that could stop (2 % of decoding an event).
        let is_escaped = inner.bytes().fold(false, |any, byte| any | (byte == b'\\'));
        if is_escaped {
            return serde_json::from_str(self.0).ok().map(Cow::Owned);
        }
        Some(Cow::Borrowed(inner))
    }

    /// The text of a string, or a number as it was written.
    pub(super) fn string_or_number(self) -> Option<Cow<'a, str>> {
        let is_number = self
            .0
            .starts_with(|first: char| first == '-' || first.is_ascii_digit());
        if is_number {
            return Some(Cow::Borrowed(self.0));
        }
        self.string()
    }

    /// The elements of an array; `None` for other values.
    pub(super) fn elements(self) -> Option<Vec<Self>> {
        if !self.0.starts_with('[') {
            return None;
        }
        let elements: Vec<&RawValue> = serde_json::from_str(self.0).ok()?;
        Some(elements.into_iter().map(Self::new).collect())
    }
}
