//! Owns how credentials are written in TOML: every key with its type and its bounds, every fault
//! with its line and its remedy, and edits that leave what a person wrote as it is. Knows text;
//! `file` knows the disk.

use std::{collections::HashMap, ops::Range};

use jiff::Timestamp;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    entry::{self, Entry, Fault, Proof, STREAMS_MAX},
    scope::{Allowed, Scope},
    token::Digest,
};
use crate::filter;

/// The most credentials in a file: far more than people look after, and few enough to be compared
/// whenever the file changes.
pub const ENTRIES_MAX: usize = 4096;

/// What a new file begins with.
pub(super) const HEADER: &str = "\
# Who may subscribe to this bridge. `prelude-bridge token create` and `token revoke` write here, and
# keep what you write. A running bridge sees every change within a second.
#
# [[credentials]]
# name = \"billing\"                              # unique; it is in the logs
# sha256 = \"…\"                                  # of a token, in hexadecimal; or, in its place:
# certificate = \"spiffe://example.com/billing\"  # the URI, DNS name or common name of a client
# types = [\"user.created\", \"user.session.*\"]    # without: all types
# apps = [\"54e9ujn\"]                            # without: all apps
# streams_max = 10                              # streams at once; without: no limit of its own
# created_at = 2026-11-23T14:00:00Z
# expires_at = 2027-11-23T14:00:00Z             # without: never
";

/// The name of the array of tables.
const CREDENTIALS: &str = "credentials";
const KEYS: [&str; 8] = [
    "name",
    "sha256",
    "certificate",
    "types",
    "apps",
    "streams_max",
    "created_at",
    "expires_at",
];

/// Reads a document.
///
/// # Errors
/// All faults at once, in the order of the file. Syntax errors are reported alone: what follows
/// one cannot be judged.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, Vec<Fault>> {
    let located = locate(text)?;
    Ok(located.into_iter().map(|located| located.entry).collect())
}

/// The document with one credential more, as its last.
pub(super) fn with(text: &str, entry: &Entry) -> String {
    let mut text = if text.trim().is_empty() {
        HEADER.to_owned()
    } else {
        text.to_owned()
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&section(entry));
    text
}

/// The document without the credential of this name; `None` if it has none. The comment right above
/// its section goes with it.
///
/// # Errors
/// As [`parse`].
pub(super) fn without(text: &str, name: &str) -> Result<Option<String>, Vec<Fault>> {
    let located = locate(text)?;
    let Some(index) = located.iter().position(|one| one.entry.name == name) else {
        return Ok(None);
    };
    let start_of = |index: usize| {
        located
            .get(index)
            .map(|one| start_with_comment(text, one.offset))
    };
    let start = start_of(index).unwrap_or(text.len());
    let end = start_of(index + 1).unwrap_or(text.len());
    let (Some(before), Some(after)) = (text.get(..start), text.get(end..)) else {
        return Ok(None);
    };
    let before = before.trim_end_matches('\n');
    let gap = if after.is_empty() { "\n" } else { "\n\n" };
    Ok(Some(format!("{before}{gap}{after}")))
}

/// An entry and where its section begins, in bytes.
struct Located {
    entry: Entry,
    offset: usize,
}

fn locate(text: &str) -> Result<Vec<Located>, Vec<Fault>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors
            .iter()
            .map(|error| syntax_fault(text, error))
            .collect());
    }
    let mut reader = Reader {
        text,
        faults: Vec::new(),
    };
    let mut located = Vec::new();
    for (key, value) in root.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            (CREDENTIALS, DeValue::Array(sections)) => {
                for section in sections.iter() {
                    located.extend(reader.section(section));
                }
            }
            (CREDENTIALS, _) => reader.refuse(
                key.span(),
                "`credentials` is no list of sections",
                "begin each credential with a line `[[credentials]]`",
            ),
            (name, _) => reader.refuse(
                key.span(),
                &format!("unknown key `{}`", name.escape_debug()),
                "begin each credential with a line `[[credentials]]`, and write its keys below",
            ),
        }
    }
    reader.refuse_doubles(&located);
    let mut faults = reader.faults;
    if located.len() > ENTRIES_MAX {
        faults.push(Fault {
            line: None,
            message: format!("there are more than {ENTRIES_MAX} credentials"),
            help: "revoke those that nobody uses; for so many, use JWTs".to_owned(),
        });
    }
    if faults.is_empty() {
        Ok(located)
    } else {
        Err(faults)
    }
}

/// Reads sections and collects what is wrong with them.
struct Reader<'t> {
    text: &'t str,
    faults: Vec<Fault>,
}

/// A section as far as it was read.
#[derive(Default)]
struct Draft {
    name: Option<String>,
    digest: Option<Digest>,
    certificate: Option<String>,
    types: Vec<String>,
    apps: Vec<String>,
    streams_max: Option<usize>,
    created_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
}

impl Reader<'_> {
    /// The entry of a section; nothing if it has a fault, which is then recorded.
    fn section(&mut self, section: &Spanned<DeValue<'_>>) -> Option<Located> {
        let place = section.span();
        let DeValue::Table(table) = section.get_ref() else {
            self.refuse(
                place,
                "a credential is no section",
                "begin each credential with a line `[[credentials]]`",
            );
            return None;
        };
        let known_faults = self.faults.len();
        let mut draft = Draft::default();
        for (key, value) in table {
            self.key(&mut draft, key.get_ref(), key.span(), value.get_ref());
        }
        if self.faults.len() > known_faults {
            return None;
        }
        let proof = match (draft.digest, draft.certificate) {
            (Some(digest), None) => Proof::Token(digest),
            (None, Some(identity)) => Proof::Certificate(identity),
            (None, None) | (Some(_), Some(_)) => {
                self.refuse(
                    place,
                    "a credential has to have one of `sha256` and `certificate`",
                    "write the hash of a token or the identity of a client certificate",
                );
                return None;
            }
        };
        let Some(name) = draft.name else {
            self.refuse(place, "a credential has no `name`", "give it a name");
            return None;
        };
        Some(Located {
            entry: Entry {
                name,
                proof,
                scope: Scope {
                    types: Allowed::or_all(draft.types),
                    apps: Allowed::or_all(draft.apps),
                },
                streams_max: draft.streams_max,
                created_at: draft.created_at,
                expires_at: draft.expires_at,
            },
            offset: place.start,
        })
    }

    fn key(&mut self, draft: &mut Draft, key: &str, place: Range<usize>, value: &DeValue<'_>) {
        let read = match key {
            "name" => text(value, entry::name_problem).map(|name| draft.name = Some(name)),
            "sha256" => digest(value).map(|digest| draft.digest = Some(digest)),
            "certificate" => text(value, entry::identity_problem)
                .map(|identity| draft.certificate = Some(identity)),
            "types" => names(value, filter::type_problem).map(|types| draft.types = types),
            "apps" => names(value, filter::text_problem).map(|apps| draft.apps = apps),
            "streams_max" => count(value).map(|count| draft.streams_max = Some(count)),
            "created_at" => timestamp(value).map(|at| draft.created_at = Some(at)),
            "expires_at" => timestamp(value).map(|at| draft.expires_at = Some(at)),
            _ => {
                let help = format!("the keys are {}", KEYS.join(", "));
                let message = format!("unknown key `{}`", key.escape_debug());
                return self.refuse(place, &message, &help);
            }
        };
        if let Err((problem, help)) = read {
            self.refuse(place, &format!("`{key}` {problem}"), help);
        }
    }

    fn refuse_doubles(&mut self, located: &[Located]) {
        let mut names = HashMap::new();
        let mut proofs = HashMap::new();
        for one in located {
            let place = one.offset..one.offset;
            if names.insert(one.entry.name.as_str(), ()).is_some() {
                let message = "a credential before this one has the same `name`";
                self.refuse(place.clone(), message, "give each a name of its own");
            }
            let proof = match &one.entry.proof {
                Proof::Token(digest) => digest.to_string(),
                Proof::Certificate(identity) => format!("certificate {identity}"),
            };
            if proofs.insert(proof, ()).is_some() {
                let message = "a credential before this one is the same token or certificate";
                self.refuse(
                    place,
                    message,
                    "keep one of them: a caller has to have one scope",
                );
            }
        }
    }

    fn refuse(&mut self, place: Range<usize>, message: &str, help: &str) {
        self.faults.push(Fault {
            line: Some(line_at(self.text, place.start)),
            message: message.to_owned(),
            help: help.to_owned(),
        });
    }
}

/// What is wrong with a value, as a clause that follows its key, and what to do.
type Problem = (&'static str, &'static str);

fn text(value: &DeValue<'_>, problem: fn(&str) -> Option<&'static str>) -> Result<String, Problem> {
    let DeValue::String(text) = value else {
        return Err(("is no text", "write it in quotes"));
    };
    match problem(text) {
        Some(problem) => Err((problem, "write printable text of sensible length")),
        None => Ok(text.as_ref().to_owned()),
    }
}

fn digest(value: &DeValue<'_>) -> Result<Digest, Problem> {
    let digest = match value {
        DeValue::String(text) => Digest::parse(text),
        _ => None,
    };
    digest.ok_or((
        "is not 64 hexadecimal digits",
        "write the SHA-256 of the token, never the token: printf %s \"$TOKEN\" | sha256sum",
    ))
}

fn names(
    value: &DeValue<'_>,
    problem: fn(&str) -> Option<&'static str>,
) -> Result<Vec<String>, Problem> {
    let help = "write a list of names in quotes, such as [\"user.created\", \"user.session.*\"]";
    let DeValue::Array(items) = value else {
        return Err(("is no list", help));
    };
    if items.len() > filter::ENTRIES_MAX {
        return Err((
            "has more than 256 entries",
            "use patterns, or fewer entries",
        ));
    }
    let mut names = Vec::with_capacity(items.len());
    for item in items.iter() {
        let DeValue::String(name) = item.get_ref() else {
            return Err(("has an entry that is no text", help));
        };
        if problem(name).is_some() {
            return Err(match problem(name) {
                Some(problem) => ("has a bad entry", problem),
                None => ("has a bad entry", help),
            });
        }
        names.push(name.as_ref().to_owned());
    }
    Ok(names)
}

fn count(value: &DeValue<'_>) -> Result<usize, Problem> {
    let number = match value {
        DeValue::Integer(number) => usize::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    number
        .filter(|count| (1..=STREAMS_MAX).contains(count))
        .ok_or((
            "is no whole number from 1 to 10000000",
            "write how many streams the credential may have open at once, or leave the key out",
        ))
}

fn timestamp(value: &DeValue<'_>) -> Result<Timestamp, Problem> {
    let text = match value {
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::String(text) => text.as_ref().to_owned(),
        _ => String::new(),
    };
    text.parse().map_err(|_| {
        (
            "is no point in time",
            "write it with its offset, such as 2027-01-31T12:00:00Z (RFC 3339)",
        )
    })
}

/// A credential as a section.
fn section(entry: &Entry) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let list = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        format!("[{}]", names.join(", "))
    };
    let mut lines = vec![
        "[[credentials]]".to_owned(),
        format!("name = {}", quoted(&entry.name)),
    ];
    lines.push(match &entry.proof {
        Proof::Token(digest) => format!("sha256 = \"{digest}\""),
        Proof::Certificate(identity) => format!("certificate = {}", quoted(identity)),
    });
    for (key, allowed) in [("types", &entry.scope.types), ("apps", &entry.scope.apps)] {
        if let Allowed::Only(names) = allowed {
            lines.push(format!("{key} = {}", list(names)));
        }
    }
    let streams_max = entry.streams_max.map(|count| count.to_string());
    for (key, value) in [
        ("streams_max", streams_max),
        ("created_at", entry.created_at.map(|at| at.to_string())),
        ("expires_at", entry.expires_at.map(|at| at.to_string())),
    ] {
        lines.extend(value.map(|value| format!("{key} = {value}")));
    }
    lines.join("\n") + "\n"
}

/// The parser's message without its excerpt of the file, which may hold a token that somebody put
/// there by mistake.
fn syntax_fault(text: &str, error: &toml::de::Error) -> Fault {
    Fault {
        line: error.span().map(|span| line_at(text, span.start)),
        message: format!("not valid TOML: {}", error.message()),
        help:
            "a credential begins with a line `[[credentials]]`; a key is written `name = \"text\"`"
                .to_owned(),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}

/// Where a section begins, with the lines of comment right above it.
fn start_with_comment(text: &str, offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or_default();
    // Whatever is on the section's own line before its bracket.
    let mut start = before.rfind('\n').map_or(0, |newline| newline + 1);
    while let Some(above) = before.get(..start.saturating_sub(1)) {
        let line_start = above.rfind('\n').map_or(0, |newline| newline + 1);
        let is_comment = above
            .get(line_start..)
            .is_some_and(|line| line.trim_start().starts_with('#'));
        if start == 0 || !is_comment {
            break;
        }
        start = line_start;
    }
    start
}
