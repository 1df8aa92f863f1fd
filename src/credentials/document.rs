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

/// The longest unknown key that is repeated: as the longest known one and a little.
const KEY_BYTES_SHOWN: usize = 16;

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
                &unknown_key(name),
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
        // Tables in braces mean the same, but cannot be taken out by lines when one is revoked.
        let has_header = self
            .text
            .get(place.start..)
            .is_some_and(|text| text.starts_with('['));
        let DeValue::Table(table) = section.get_ref() else {
            self.refuse(
                place,
                "a credential is no section",
                "begin each credential with a line `[[credentials]]`",
            );
            return None;
        };
        if !has_header {
            self.refuse(
                place,
                "a credential is no section of its own",
                "begin each credential with a line `[[credentials]]`",
            );
            return None;
        }
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
                return self.refuse(place, &unknown_key(key), &help);
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
        if let Some(problem) = problem(name) {
            return Err(("has an entry that cannot be meant", problem));
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

/// Names a key that is short enough to be a slip of the hand. A longer one may be a token.
fn unknown_key(key: &str) -> String {
    if key.len() <= KEY_BYTES_SHOWN {
        format!("unknown key `{}`", key.escape_debug())
    } else {
        "unknown key".to_owned()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn token(name: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            proof: Proof::Token(Digest::of(name)),
            scope: Scope::default(),
            streams_max: None,
            created_at: None,
            expires_at: None,
        }
    }

    fn faults(text: &str) -> Vec<String> {
        parse(text)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_credential_is_read_as_it_is_written() {
        let full = Entry {
            scope: Scope {
                types: Allowed::or_all(vec![
                    "user.created".to_owned(),
                    "user.session.*".to_owned(),
                ]),
                apps: Allowed::or_all(vec!["app \"1\"".to_owned()]),
            },
            streams_max: Some(10),
            created_at: "2026-11-23T14:00:00Z".parse().ok(),
            expires_at: "2027-11-23T14:00:00.5Z".parse().ok(),
            ..token("billing")
        };
        let certificate = Entry {
            proof: Proof::Certificate("spiffe://example.com/audit".to_owned()),
            ..token("audit \u{e9}")
        };
        let text = with(&with("", &full), &certificate);
        assert_eq!(parse(&text), Ok(vec![full, certificate]));
        assert!(text.starts_with(HEADER));
    }

    #[test]
    fn the_key_list_in_the_header_is_the_one_that_is_read() {
        let example: Vec<&str> = HEADER
            .lines()
            .skip(3)
            .map(|line| line.trim_start_matches("# "))
            .collect();
        let example = example.join("\n").replace('…', HASH);
        for key in KEYS {
            assert!(example.contains(&format!("{key} = ")), "{key}");
        }
        let of_token = example.replace("certificate =", "# certificate =");
        let entries = parse(&of_token).unwrap();
        assert_eq!(entries[0].streams_max, Some(10));
        assert!(parse(HEADER).unwrap().is_empty());
    }

    #[test]
    fn what_a_person_wrote_survives_an_edit() {
        let text = format!(
            "# ours\n\n# the first\n[[credentials]]\nname = 'one' # here\nsha256 = \"{HASH}\"\n\n\
             # the second\n[[credentials]]\nname = \"two\"\ncertificate = \"two\"\n"
        );
        let longer = with(&text, &token("three"));
        assert!(longer.starts_with(&text));
        assert_eq!(without(&longer, "three").unwrap().unwrap(), text);

        let without_one = without(&text, "one").unwrap().unwrap();
        assert_eq!(
            without_one,
            "# ours\n\n# the second\n[[credentials]]\nname = \"two\"\ncertificate = \"two\"\n"
        );
        assert_eq!(without(&without_one, "two").unwrap().unwrap(), "# ours\n");
        assert_eq!(without(&text, "four"), Ok(None));
    }

    #[test]
    fn a_bad_credential_names_its_line_and_what_to_do() {
        let section =
            |line: &str| format!("[[credentials]]\nname = \"one\"\nsha256 = \"{HASH}\"\n{line}\n");
        for (line, expected) in [
            (
                "typos = []",
                "line 4: unknown key `typos` (the keys are name, sha256,",
            ),
            (
                "types = \"user.created\"",
                "line 4: `types` is no list (write a list",
            ),
            (
                "types = [\"user.**.created\"]",
                "line 4: `types` has an entry that cannot be meant (has ** before",
            ),
            (
                "types = [1]",
                "line 4: `types` has an entry that is no text",
            ),
            (
                "apps = [\"\"]",
                "line 4: `apps` has an entry that cannot be meant (is empty",
            ),
            (
                "streams_max = 0",
                "line 4: `streams_max` is no whole number from 1",
            ),
            (
                "streams_max = \"1\"",
                "line 4: `streams_max` is no whole number from 1",
            ),
            (
                "expires_at = \"soon\"",
                "line 4: `expires_at` is no point in time",
            ),
            (
                "expires_at = 2027-01-01",
                "line 4: `expires_at` is no point in time",
            ),
            (
                "certificate = \"one\"",
                "line 1: a credential has to have one of",
            ),
            ("x", "line 4: not valid TOML"),
        ] {
            let faults = faults(&section(line));
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].starts_with(expected), "{faults:?}");
        }
        for (text, expected) in [
            ("name = \"one\"\n", "line 1: unknown key `name` (begin each"),
            ("credentials = 1\n", "line 1: `credentials` is no list"),
            ("credentials = [1]\n", "line 1: a credential is no section"),
            (
                "credentials = [{ name = \"one\", certificate = \"one\" }]\n",
                "line 1: a credential is no section of its own",
            ),
            (
                "[[credentials]]\nname = \"one\"\n",
                "line 1: a credential has to have one of",
            ),
            (
                "[[credentials]]\ncertificate = \"one\"\n",
                "line 1: a credential has no `name`",
            ),
            (
                "[[credentials]]\nname = \"a\\nb\"\ncertificate = \"one\"\n",
                "line 2: `name` has a control",
            ),
            (
                "[[credentials]]\nname = 1\ncertificate = \"one\"\n",
                "line 2: `name` is no text",
            ),
        ] {
            assert!(faults(text)[0].starts_with(expected), "{:?}", faults(text));
        }
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let text =
            "[[credentials]]\nname = \"\"\nsha256 = \"x\"\n[[credentials]]\nname = \"two\"\n";
        assert_eq!(faults(text).len(), 3, "{:?}", faults(text));
    }

    #[test]
    fn names_tokens_and_certificates_are_there_once() {
        let same_name = with(&with("", &token("one")), &token("one"));
        // The same token, too: both are said.
        assert_eq!(faults(&same_name).len(), 2);
        let certificate = |name: &str| Entry {
            proof: Proof::Certificate("same".to_owned()),
            ..token(name)
        };
        let same_certificate = with(&with("", &certificate("one")), &certificate("two"));
        assert!(faults(&same_certificate)[0].contains("the same token or certificate"));
    }

    #[test]
    fn a_token_that_was_written_in_place_of_its_hash_is_not_repeated() {
        let canary = "pb_canary0000000000000000000000000000000000000";
        for text in [
            format!("[[credentials]]\nname = \"one\"\nsha256 = \"{canary}\"\n"),
            format!("[[credentials]]\nname = \"one\"\nsha256 = {canary}\n"),
            format!("[[credentials]]\n{canary} = 1\n"),
            format!("[[credentials]]\n{canary}\n"),
            format!("{canary} = 1\n"),
            format!("[{canary}]\n[{canary}]\n"),
            format!("[[credentials]]\nname = \"one\"\nstreams_max = \"{canary}\"\n"),
        ] {
            let faults = faults(&text);
            assert!(!faults.concat().contains("canary"), "{faults:?}");
        }
    }

    #[test]
    fn a_file_takes_4096_credentials_and_no_more() {
        let many = |count: usize| {
            let entries = (0..count).map(|index| section(&token(&index.to_string())));
            entries.collect::<String>()
        };
        assert_eq!(parse(&many(ENTRIES_MAX)).unwrap().len(), ENTRIES_MAX);
        assert!(faults(&many(ENTRIES_MAX + 1))[0].contains("more than 4096"));
        let types: Vec<String> = (0..=filter::ENTRIES_MAX)
            .map(|index| format!("\"t{index}\""))
            .collect();
        let text = format!(
            "[[credentials]]\nname = \"a\"\ncertificate = \"a\"\ntypes = [{}]\n",
            types.join(",")
        );
        assert!(faults(&text)[0].contains("more than 256"));
    }
}
