//! Owns how credentials are read from TOML: every key with its type and its bounds, and every fault with
//! its line and its remedy. Knows text; `edit` changes it, and `file` knows the disk.

use std::{collections::HashMap, ops::Range};

use jiff::Timestamp;
use toml::{Spanned, de::DeValue};

use super::{
    certificate::CertificateName,
    entry::{self, Entry, Fault, PreviousToken, Proof},
    scope::{Allowed, Scope},
    token::Digest,
    value::{self, ALL},
};
use crate::{
    filter,
    toml_text::{self, SyntaxError, help_of_unknown_key, line_at},
};

/// The most credentials in a file: far more than people manage by hand, and few enough to compare all of them
/// at every change.
pub const ENTRIES_MAX: usize = 4096;

/// The table without keys that ends a file. A file that is cut short anywhere lacks it, and would
/// otherwise be TOML at the end of each of its lines.
const END: &str = "end";
/// The name of the array of tables.
const CREDENTIALS: &str = "credentials";
pub(super) const KEYS: [&str; 13] = [
    "name",
    "expires_at",
    "created_at",
    "sha256",
    "certificate",
    "previous_expires_at",
    "previous_created_at",
    "previous_sha256",
    "streams_max",
    "connections_max",
    "unsent_bytes_max",
    "types",
    "apps",
];
/// The keys that a rotation writes anew.
const KEYS_OF_TOKENS: [&str; 6] = [
    "expires_at",
    "created_at",
    "sha256",
    "previous_expires_at",
    "previous_created_at",
    "previous_sha256",
];

/// The longest unknown key that an error repeats: a little longer than the longest known one.
const KEY_BYTES_SHOWN: usize = 22;

/// The content of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Its credentials, in their order.
    pub entries: Vec<Entry>,
    /// What may be a mistake.
    pub warnings: Vec<Fault>,
    /// Whether it has the line `[end]`.
    pub has_end: bool,
    /// Whether no credential is below that line, so that the file cannot be cut short.
    pub(super) is_whole: bool,
}

/// Reads a document.
///
/// # Errors
/// All faults at once, in the order of the file. Syntax errors are reported alone: the text after one cannot be
/// interpreted.
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

/// What is where in a document, in bytes.
pub(super) struct Layout {
    pub(super) located: Vec<Located>,
    /// Where its last line begins.
    pub(super) end: Option<usize>,
    warnings: Vec<Fault>,
}

/// An entry and its place.
pub(super) struct Located {
    pub(super) entry: Entry,
    /// Where its section begins.
    pub(super) offset: usize,
    /// Its keys that a rotation writes anew, each with its value.
    pub(super) token_keys: Vec<Range<usize>>,
}

/// Reads a document, and where its parts are.
///
/// # Errors
/// As [`parse`].
pub(super) fn locate(text: &str) -> Result<Layout, Vec<Fault>> {
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
    reader.refuse_duplicates(&located);
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
    previous_digest: Option<Digest>,
    previous_created_at: Option<Timestamp>,
    previous_expires_at: Option<Timestamp>,
    token_keys: Vec<Range<usize>>,
}

impl Draft {
    fn proof(&self) -> Result<Proof, value::Problem> {
        match (self.digest, self.certificate.clone()) {
            (Some(digest), None) => Ok(Proof::Token(digest)),
            (None, Some(name)) => Ok(Proof::Certificate(name)),
            (None, None) | (Some(_), Some(_)) => Err((
                "a credential has to have one of `sha256` and `certificate`",
                "write the hash of a token or the identity of a client certificate",
            )),
        }
    }

    /// The token that a rotation replaced. It has to expire, so that an entry that is cut short
    /// never makes it valid for longer, and a rotation that nobody finishes ends by itself.
    fn previous(&self) -> Result<Option<PreviousToken>, value::Problem> {
        match (self.previous_digest, self.previous_expires_at) {
            (Some(digest), Some(expires_at)) if self.certificate.is_none() => {
                Ok(Some(PreviousToken {
                    digest,
                    created_at: self.previous_created_at,
                    expires_at,
                }))
            }
            (None, None) if self.previous_created_at.is_none() => Ok(None),
            _ => Err((
                "a previous token has to have `previous_sha256` and `previous_expires_at`, and a \
                 current token with `sha256`",
                "write them all, or run `prelude-bridge token rotate`, which does",
            )),
        }
    }
}

impl Reader<'_> {
    /// The entry of a section; `None` if it has a fault, which is then recorded.
    fn section(&mut self, section: &Spanned<DeValue<'_>>) -> Option<Located> {
        let place = section.span();
        // A table in braces means the same, but `edit` cannot remove it by its lines.
        let has_header = self
            .text
            .get(place.start..)
            .is_some_and(|text| text.starts_with('['));
        let (DeValue::Table(table), true) = (section.get_ref(), has_header) else {
            self.refuse(
                place,
                "a credential is no section of its own",
                "begin each credential with a line `[[credentials]]`",
            );
            return None;
        };
        let known_faults = self.faults.len();
        let mut draft = Draft::default();
        for (key, value) in table {
            if KEYS_OF_TOKENS.contains(&key.get_ref().as_ref()) {
                draft.token_keys.push(key.span().start..value.span().end);
            }
            self.key(&mut draft, key.get_ref(), key.span(), value.get_ref());
        }
        if self.faults.len() > known_faults {
            return None;
        }
        let (proof, previous) = match draft.proof().and_then(|it| Ok((it, draft.previous()?))) {
            Ok(proofs) => proofs,
            Err((problem, help)) => {
                self.refuse(place, problem, help);
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
                previous,
                streams_max: draft.streams_max,
                connections_max: draft.connections_max,
                unsent_bytes_max: draft.unsent_bytes_max,
                created_at: draft.created_at,
                expires_at: draft.expires_at,
            },
            offset: place.start,
            token_keys: draft.token_keys,
        })
    }

    /// What a scope allows. A key that is missing allows nothing, so that a file that is cut short never allows
    /// more than the complete one.
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

    /// Where the last line begins; `None` if it has a fault, which is then recorded.
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
            "previous_sha256" => {
                value::digest(value).map(|digest| draft.previous_digest = Some(digest))
            }
            "previous_created_at" => {
                value::timestamp(value).map(|at| draft.previous_created_at = Some(at))
            }
            "previous_expires_at" => {
                value::timestamp(value).map(|at| draft.previous_expires_at = Some(at))
            }
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

    fn refuse_duplicates(&mut self, located: &[Located]) {
        let mut names = HashMap::new();
        let mut proofs = HashMap::new();
        for one in located {
            let place = one.offset..one.offset;
            if names.insert(one.entry.name.as_str(), ()).is_some() {
                let message = "a credential before this one has the same `name`";
                self.refuse(place.clone(), message, "give each a name of its own");
            }
            for (proof, _) in one.entry.proofs() {
                let proof = match proof {
                    Proof::Token(digest) => digest.to_string(),
                    Proof::Certificate(name) => name.identity().as_str().to_owned(),
                };
                if proofs.insert(proof, ()).is_some() {
                    self.refuse(
                        place.clone(),
                        "the same token or certificate is in the file before",
                        "keep one of them: a caller has to have one scope",
                    );
                }
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

/// Repeats a key that is short enough to be a typing error. A longer one may be a token.
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

#[cfg(test)]
#[expect(clippy::too_many_lines, reason = "tables of cases")]
mod tests {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

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
    fn the_example_of_the_guide_is_good() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md");
        let guide = std::fs::read_to_string(path).unwrap();
        let example = &guide[guide.find("[[credentials]]").unwrap()..];
        let document = parse(&example[..example.find("```").unwrap()]).unwrap();
        assert_eq!((document.entries.len(), document.warnings), (1, Vec::new()));
        assert!(document.is_whole);
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
                "line 4: unknown key `typos` (did you mean `types`? the keys are name, expires_at,",
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
            (
                "previous_sha256 = \"x\"",
                "line 4: `previous_sha256` is not",
            ),
            (
                "previous_expires_at = \"soon\"",
                "line 4: `previous_expires_at` is no point in time",
            ),
            (
                "previous_expires_at = 2027-01-01T00:00:00Z",
                "line 1: a previous token has to have",
            ),
            (
                "previous_created_at = 2027-01-01T00:00:00Z",
                "line 1: a previous token has to have",
            ),
            (
                &format!("previous_sha256 = \"{}\"", HASH.replace('b', "c")),
                "line 1: a previous token has to have",
            ),
            (
                &format!(
                    "previous_sha256 = \"{HASH}\"\nprevious_expires_at = 2027-01-01T00:00:00Z"
                ),
                "line 1: the same token or certificate is in the file before",
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
            (
                "credentials = [1]\n",
                "line 1: a credential is no section of its own",
            ),
            (
                "credentials = [{ name = \"one\", certificate = \"one\" }]\n",
                "line 1: a credential is no section of its own",
            ),
            (
                "[[credentials]]\nname = \"one\"\n",
                "line 1: a credential has to have one of",
            ),
            (
                "[[credentials]]\nname = \"one\"\ncertificate = \"one\"\n\
                 previous_expires_at = 2027-01-01T00:00:00Z\n",
                "line 1: a previous token has to have",
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
}
