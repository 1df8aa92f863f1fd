//! Owns how credentials are written in TOML: every key with its type and its bounds, every fault
//! with its line and its remedy, and edits that leave what a person wrote as it is. Knows text;
//! `file` knows the disk.

use std::{collections::HashMap, ops::Range};

use jiff::Timestamp;
use toml::{Spanned, de::DeValue};

use super::{
    certificate::CertificateName,
    entry::{self, Entry, Fault, Proof},
    scope::{Allowed, Scope},
    token::Digest,
    value::{self, ALL},
};
use crate::{
    filter,
    toml_text::{self, SyntaxError, help_of_unknown_key, line_at},
};

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
# certificate = \"uri:spiffe://example.com/billing\"  # of a client: uri:, dns:, email:, ip: or cn:
# streams_max = 10                              # streams at once; without: limits.grpc of the bridge
# connections_max = 10                          # connections at once; without: likewise
# unsent_bytes_max = 16777216                   # memory of unread responses; without: likewise
# created_at = 2026-11-23T14:00:00Z
# expires_at = 2027-11-23T14:00:00Z             # without: never
# types = [\"user.created\", \"user.session.*\"]    # or \"all\"; without: none
# apps = [\"54e9ujn\"]                            # or \"all\"; without: none
#
# [end]                                         # the last line: a file that loses it is cut short
";

/// What a whole file ends with: a table without keys. A file that is cut short anywhere lacks it,
/// and would otherwise be TOML at the end of each of its lines.
const END: &str = "end";
const END_LINE: &str = "[end]\n";
/// The name of the array of tables.
const CREDENTIALS: &str = "credentials";
const KEYS: [&str; 10] = [
    "name",
    "sha256",
    "certificate",
    "streams_max",
    "connections_max",
    "unsent_bytes_max",
    "created_at",
    "expires_at",
    "types",
    "apps",
];

/// The longest unknown key that is repeated: as the longest known one and a little.
const KEY_BYTES_SHOWN: usize = 16;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Its credentials, in their order.
    pub entries: Vec<Entry>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Fault>,
    /// Whether it has the line `[end]`.
    pub has_end: bool,
    /// Whether no credential is below that line, so that the file cannot be cut short.
    pub(super) is_whole: bool,
}

/// Reads a document.
///
/// # Errors
/// All faults at once, in the order of the file. Syntax errors are reported alone: what follows
/// one cannot be judged.
pub(super) fn parse(text: &str) -> Result<Document, Vec<Fault>> {
    let Layout {
        located,
        end,
        warnings,
    } = locate(text)?;
    let last = located.iter().map(|located| located.offset).max();
    Ok(Document {
        entries: located.into_iter().map(|located| located.entry).collect(),
        warnings,
        has_end: end.is_some(),
        is_whole: end.is_some_and(|end| last.is_none_or(|last| last < end)),
    })
}

/// The document with one credential more, as its last, and with its last line.
///
/// # Errors
/// As [`parse`].
pub(super) fn with(text: &str, entry: &Entry) -> Result<String, Vec<Fault>> {
    let text = without_end(text, locate(text)?.end);
    let text = match text.trim_end() {
        "" => HEADER.trim_end(),
        text => text,
    };
    Ok(format!("{text}\n\n{}\n{END_LINE}", section(entry)))
}

/// The document without the credential of this name; `None` if it has none. The comment right above
/// its section goes with it.
///
/// # Errors
/// As [`parse`].
pub(super) fn without(text: &str, name: &str) -> Result<Option<String>, Vec<Fault>> {
    let Layout { located, end, .. } = locate(text)?;
    let Some(removed) = located.iter().find(|one| one.entry.name == name) else {
        return Ok(None);
    };
    let next = located
        .iter()
        .map(|one| one.offset)
        .chain(end)
        .filter(|offset| *offset > removed.offset)
        .min();
    let start = start_with_comment(text, removed.offset);
    let next = next.map_or(text.len(), |offset| start_with_comment(text, offset));
    let (Some(before), Some(after)) = (text.get(..start), text.get(next..)) else {
        return Ok(None);
    };
    let before = before.trim_end_matches('\n');
    let kept = match before {
        "" => after.to_owned(),
        before => format!("{before}\n\n{after}"),
    };
    let end = locate(&kept)?.end;
    let kept = without_end(&kept, end);
    let kept = kept.trim_end();
    let gap = if kept.is_empty() { "" } else { "\n\n" };
    Ok(Some(format!("{kept}{gap}{END_LINE}")))
}

/// The text without the line that ends it.
fn without_end(text: &str, end: Option<usize>) -> String {
    let Some(end) = end else {
        return text.to_owned();
    };
    let (before, from_end) = text.split_at_checked(end).unwrap_or((text, ""));
    let after = from_end.split_once('\n').map_or("", |(_, after)| after);
    format!("{before}{after}")
}

/// What is where in a document.
struct Layout {
    located: Vec<Located>,
    /// Where its last line begins.
    end: Option<usize>,
    warnings: Vec<Fault>,
}

/// An entry and where its section begins, in bytes.
struct Located {
    entry: Entry,
    offset: usize,
}

fn locate(text: &str) -> Result<Layout, Vec<Fault>> {
    let root = toml_text::parse(text).map_err(|errors| {
        let faults = errors.into_iter().map(syntax_fault);
        faults.collect::<Vec<_>>()
    })?;
    let mut reader = Reader {
        text,
        faults: Vec::new(),
        warnings: Vec::new(),
    };
    let mut located = Vec::new();
    let mut end = None;
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
            (END, value) => end = reader.end(key.span(), value),
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
        Ok(Layout {
            located,
            end,
            warnings: reader.warnings,
        })
    } else {
        Err(faults)
    }
}

/// Reads sections and collects what is wrong with them.
struct Reader<'t> {
    text: &'t str,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
}

/// A section as far as it was read.
#[derive(Default)]
struct Draft {
    name: Option<String>,
    digest: Option<Digest>,
    certificate: Option<CertificateName>,
    types: Option<Allowed>,
    apps: Option<Allowed>,
    streams_max: Option<usize>,
    connections_max: Option<usize>,
    unsent_bytes_max: Option<usize>,
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
        if let Proof::Certificate(certificate) = &proof
            && let Some(explicit) = certificate.advice()
        {
            self.warn(
                place.start,
                &format!("the certificate of `{name}` has no kind of name"),
                &format!("write \"{explicit}\", which is what it is taken for"),
            );
        }
        Some(Located {
            entry: Entry {
                scope: Scope {
                    types: self.scope(draft.types, "types", &name, place.start),
                    apps: self.scope(draft.apps, "apps", &name, place.start),
                },
                name,
                proof,
                streams_max: draft.streams_max,
                connections_max: draft.connections_max,
                unsent_bytes_max: draft.unsent_bytes_max,
                created_at: draft.created_at,
                expires_at: draft.expires_at,
            },
            offset: place.start,
        })
    }

    /// What a scope allows. One that was not written allows nothing, so that a file that is only
    /// half there never allows more than the whole one.
    fn scope(&mut self, written: Option<Allowed>, key: &str, name: &str, offset: usize) -> Allowed {
        written.unwrap_or_else(|| {
            self.warn(
                offset,
                &format!("the credential `{name}` has no `{key}`, so it gets no events"),
                &format!("write `{key} = \"{ALL}\"`, or a list of those that it may get"),
            );
            Allowed::Only(Vec::new())
        })
    }

    /// Where the last line begins; nothing if it is not what it has to be.
    fn end(&mut self, place: Range<usize>, value: &DeValue<'_>) -> Option<usize> {
        let before = self.text.get(..place.start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let is_header = before
            .get(line_start..)
            .is_some_and(|text| text.trim() == "[");
        let (true, DeValue::Table(below)) = (is_header, value) else {
            self.refuse(
                place,
                "`end` is not the line that ends the file",
                "write `[end]` as the last line, and nothing below it",
            );
            return None;
        };
        for key in below.keys() {
            self.refuse(
                key.span(),
                &unknown_key(key.get_ref()),
                "nothing belongs below the line `[end]`, which ends the file",
            );
        }
        Some(line_start)
    }

    fn warn(&mut self, offset: usize, message: &str, help: &str) {
        self.warnings.push(Fault {
            line: Some(line_at(self.text, offset)),
            message: message.to_owned(),
            help: help.to_owned(),
        });
    }

    fn key(&mut self, draft: &mut Draft, key: &str, place: Range<usize>, value: &DeValue<'_>) {
        let read = match key {
            "name" => value::text(value, entry::name_problem).map(|name| draft.name = Some(name)),
            "sha256" => value::digest(value).map(|digest| draft.digest = Some(digest)),
            "certificate" => value::text(value, entry::identity_problem)
                .map(|name| draft.certificate = Some(CertificateName::parse(&name))),
            "types" => {
                value::allowed(value, filter::type_problem).map(|types| draft.types = Some(types))
            }
            "apps" => value::allowed(value, entry::app_problem).map(|apps| draft.apps = Some(apps)),
            "streams_max" => value::count(value).map(|count| draft.streams_max = Some(count)),
            "connections_max" => value::count(value).map(|n| draft.connections_max = Some(n)),
            "unsent_bytes_max" => value::bytes(value).map(|n| draft.unsent_bytes_max = Some(n)),
            "created_at" => value::timestamp(value).map(|at| draft.created_at = Some(at)),
            "expires_at" => value::timestamp(value).map(|at| draft.expires_at = Some(at)),
            _ => {
                let keys = format!("the keys are {}", KEYS.join(", "));
                let help = help_of_unknown_key(key, KEYS, &keys);
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
                Proof::Certificate(name) => name.identity().as_str().to_owned(),
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
        Proof::Certificate(name) => format!("certificate = {}", quoted(&name.to_string())),
    });
    let number = |count: Option<usize>| count.map(|count| count.to_string());
    for (key, value) in [
        ("streams_max", number(entry.streams_max)),
        ("connections_max", number(entry.connections_max)),
        ("unsent_bytes_max", number(entry.unsent_bytes_max)),
        ("created_at", entry.created_at.map(|at| at.to_string())),
        ("expires_at", entry.expires_at.map(|at| at.to_string())),
    ] {
        lines.extend(value.map(|value| format!("{key} = {value}")));
    }
    // Last, as nothing is allowed without both: a section that is cut short allows no more than the
    // whole one.
    for (key, allowed) in [("types", &entry.scope.types), ("apps", &entry.scope.apps)] {
        lines.push(match allowed {
            Allowed::All => format!("{key} = \"{ALL}\""),
            Allowed::Only(names) => format!("{key} = {}", list(names)),
        });
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

fn syntax_fault(error: SyntaxError) -> Fault {
    Fault {
        line: error.line,
        message: error.message,
        help:
            "a credential begins with a line `[[credentials]]`; a key is written `name = \"text\"`"
                .to_owned(),
    }
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
#[expect(clippy::too_many_lines, reason = "tables of cases")]
mod tests {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn token(name: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            proof: Proof::Token(Digest::of(name)),
            scope: Scope::default(),
            streams_max: None,
            connections_max: None,
            unsent_bytes_max: None,
            created_at: None,
            expires_at: None,
        }
    }

    fn certificate(name: &str) -> Proof {
        Proof::Certificate(CertificateName::parse(name))
    }

    fn add(text: &str, entry: &Entry) -> String {
        with(text, entry).unwrap()
    }

    fn warnings(text: &str) -> Vec<String> {
        let warnings = parse(text).unwrap().warnings;
        warnings.iter().map(ToString::to_string).collect()
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
            connections_max: Some(3),
            unsent_bytes_max: Some(16 << 20),
            created_at: "2026-11-23T14:00:00Z".parse().ok(),
            expires_at: "2027-11-23T14:00:00.5Z".parse().ok(),
            ..token("billing")
        };
        let certificate = Entry {
            proof: certificate("spiffe://example.com/audit"),
            ..token("audit \u{e9}")
        };
        let text = add(&add("", &full), &certificate);
        let document = parse(&text).unwrap();
        assert_eq!(document.entries, [full, certificate]);
        assert_eq!(document.warnings, []);
        assert!(document.has_end && document.is_whole);
        assert!(text.starts_with(HEADER) && text.ends_with("\n\n[end]\n"));
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
        let document = parse(&of_token).unwrap();
        assert_eq!(document.entries[0].streams_max, Some(10));
        assert!(document.is_whole);
        assert_eq!(parse(HEADER).unwrap(), Document::default());
    }

    #[test]
    fn the_example_of_the_guide_is_good() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md");
        let guide = std::fs::read_to_string(path).unwrap();
        let example = &guide[guide.find("[[credentials]]").unwrap()..];
        let document = parse(&example[..example.find("```").unwrap()]).unwrap();
        assert_eq!((document.entries.len(), document.warnings), (1, Vec::new()));
        assert!(document.is_whole);
    }

    #[test]
    fn what_a_person_wrote_survives_an_edit() {
        let text = format!(
            "# ours\n\n# the first\n[[credentials]]\nname = 'one' # here\nsha256 = \"{HASH}\"\n\n\
             # the second\n[[credentials]]\nname = \"two\"\ncertificate = \"two\"\n"
        );
        let ended = format!("{text}\n[end]\n");
        let longer = add(&text, &token("three"));
        assert!(longer.starts_with(&text));
        assert_eq!(without(&longer, "three").unwrap().unwrap(), ended);
        assert_eq!(add(&ended, &token("three")), longer);

        let without_one = without(&text, "one").unwrap().unwrap();
        let two = "# the second\n[[credentials]]\nname = \"two\"\ncertificate = \"two\"\n";
        assert_eq!(without_one, format!("# ours\n\n{two}\n[end]\n"));
        assert_eq!(
            without(&without_one, "two").unwrap().unwrap(),
            "# ours\n\n[end]\n"
        );
        assert_eq!(without(two, "two").unwrap().unwrap(), "[end]\n");
        assert_eq!(without(&text, "four"), Ok(None));
    }

    #[test]
    fn the_last_line_is_put_last_again_by_every_edit() {
        let (one, two) = (section(&token("one")), section(&token("two")));
        let text = format!("{one}\n# here [end]s it\n[end] # really\n\n{two}");
        let document = parse(&text).unwrap();
        assert_eq!(document.entries.len(), 2);
        assert!(document.has_end && !document.is_whole);
        for edited in [
            add(&text, &token("three")),
            without(&text, "one").unwrap().unwrap(),
            without(&text, "two").unwrap().unwrap(),
        ] {
            let document = parse(&edited).unwrap();
            assert!(
                document.is_whole && edited.ends_with("\n\n[end]\n"),
                "{edited}"
            );
            assert!(edited.contains("# here [end]s it"), "{edited}");
            assert!(!edited.contains("really"), "{edited}");
        }
    }

    #[test]
    fn what_only_looks_like_the_last_line_is_refused() {
        for text in ["end = true\n", "end = {}\n", "end.x = 1\n", "[[end]]\n"] {
            let faults = faults(text);
            assert!(
                faults[0].contains("`end` is not the line"),
                "{text}: {faults:?}"
            );
        }
        let said = faults("[end]\nname = \"one\"\n[end.x]\n");
        assert!(
            said[0].starts_with("line 2: unknown key `name` (nothing"),
            "{said:?}"
        );
        assert!(faults("[end.x]\n")[0].contains("unknown key `x`"));
        for text in ["[end]", "[ end ]\n", "\n  [end] # whole\n"] {
            assert!(parse(text).unwrap().is_whole, "{text}");
        }
    }

    #[test]
    fn a_credential_gets_what_it_names_or_all_if_it_says_so_and_otherwise_nothing() {
        let scope = |lines: &str| {
            let text = format!("[[credentials]]\nname = \"one\"\nsha256 = \"{HASH}\"\n{lines}");
            parse(&text).unwrap().entries[0].scope.clone()
        };
        let none = Allowed::Only(Vec::new());
        assert_eq!(scope("types = \"all\"\napps = \"all\"\n"), Scope::default());
        for lines in ["", "types = []\napps = []\n"] {
            let Scope { types, apps } = scope(lines);
            assert_eq!((types, apps), (none.clone(), none.clone()), "{lines}");
        }
        let everything = scope("types = [\"**\"]\napps = \"all\"\n");
        let asked = crate::filter::Spec {
            types: vec!["user.created".to_owned(), "**".to_owned()],
            ..Default::default()
        };
        assert_eq!(everything.narrow(asked.clone()), Ok(asked));

        let text = format!("[[credentials]]\nname = \"one\"\nsha256 = \"{HASH}\"\n");
        let said = warnings(&text);
        assert_eq!(said.len(), 2, "{said:?}");
        for (said, key) in said.iter().zip(["types", "apps"]) {
            assert!(
                said.starts_with("line 1: the credential `one` has no"),
                "{said}"
            );
            assert!(said.contains(&format!("`{key} = \"all\"`")), "{said}");
        }
    }

    #[test]
    fn a_certificate_without_a_kind_is_warned_of_unless_it_is_a_url() {
        let said = |name: &str| {
            warnings(&format!(
                "[[credentials]]\nname = \"one\"\ncertificate = \"{name}\"\ntypes = \"all\"\n\
                 apps = \"all\"\n"
            ))
        };
        assert_eq!(said("spiffe://example.com/a"), Vec::<String>::new());
        assert_eq!(said("cn:a"), Vec::<String>::new());
        let warned = said("a.example.com").remove(0);
        assert!(warned.contains("write \"dns:a.example.com\""), "{warned}");
    }

    #[test]
    fn a_bad_credential_names_its_line_and_what_to_do() {
        let section =
            |line: &str| format!("[[credentials]]\nname = \"one\"\nsha256 = \"{HASH}\"\n{line}\n");
        for (line, expected) in [
            (
                "typos = []",
                "line 4: unknown key `typos` (did you mean `types`? the keys are name, sha256,",
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
                "apps = [\"*\"]",
                "line 4: `apps` has an entry that cannot be meant (is a pattern",
            ),
            (
                "types = \"All\"",
                "line 4: `types` is no list (write a list",
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
        let same_name = format!("{0}{0}", section(&token("one")));
        // The same token, too: both are said.
        assert_eq!(faults(&same_name).len(), 2);
        let certificate = |name: &str| Entry {
            proof: super::tests::certificate("dns:same"),
            ..token(name)
        };
        let same_certificate =
            section(&certificate("one")) + &section(&certificate("two")).replace("dns:", "");
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
        let document = parse(&many(ENTRIES_MAX)).unwrap();
        assert_eq!(document.entries.len(), ENTRIES_MAX);
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
