//! Owns the edits of a credentials file that commands make. Each leaves what a person wrote as it is, and
//! makes a text that grants no more than itself when it is cut short. Knows text; `file` knows the disk.

use std::ops::Range;

use super::{
    document::{Layout, locate},
    entry::{Entry, Fault, Proof},
    scope::Allowed,
    value::ALL,
};

/// What a new file begins with.
const HEADER: &str = "\
# Who may subscribe to this bridge. `prelude-bridge token create`, `rotate` and `revoke` write here, and
# keep what you write. A running bridge sees every change within a second.
#
# [[credentials]]
# name = \"billing\"                              # unique; it is in the logs
# expires_at = 2027-11-23T14:00:00Z             # without: never
# created_at = 2026-11-23T14:00:00Z
# sha256 = \"…\"                                  # of a token, in hexadecimal; or, in its place:
# certificate = \"uri:spiffe://example.com/billing\"  # of a client: uri:, dns:, email:, ip: or cn:
# previous_expires_at = 2026-11-24T14:00:00Z    # a rotation: until when the token before is accepted too
# previous_created_at = 2025-11-23T14:00:00Z
# previous_sha256 = \"…\"
# streams_max = 10                              # streams at once; without: limits.grpc of the bridge
# connections_max = 10                          # connections at once; without: likewise
# unsent_bytes_max = 16777216                   # memory of unread responses; without: likewise
# types = [\"user.created\", \"user.session.*\"]    # or \"all\"; without: none
# apps = [\"54e9ujn\"]                            # or \"all\"; without: none
#
# [end]                                         # the last line: a file that loses it is cut short
";

const END_LINE: &str = "[end]\n";

/// The document with one credential more, as its last, and with its last line.
///
/// # Errors
/// As [`locate`].
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
/// As [`locate`].
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
    ended(&kept).map(Some)
}

/// The document with the tokens and expiries of this entry in the place of those that the credential
/// of its name has; `None` if there is no such credential.
///
/// # Errors
/// As [`locate`].
pub(super) fn with_tokens_of(text: &str, entry: &Entry) -> Result<Option<String>, Vec<Fault>> {
    let Layout { located, .. } = locate(text)?;
    let Some(changed) = located.iter().find(|one| one.entry.name == entry.name) else {
        return Ok(None);
    };
    let mut removed: Vec<Range<usize>> = changed
        .token_keys
        .iter()
        .map(|key| whole_lines(text, key))
        .collect();
    removed.sort_by_key(|lines| lines.start);
    let mut edited = String::with_capacity(text.len());
    let mut at = 0;
    for lines in removed {
        edited.push_str(text.get(at..lines.start).unwrap_or_default());
        if at == 0 {
            edited.push_str(&lines_of_tokens(entry));
        }
        at = lines.end;
    }
    edited.push_str(text.get(at..).unwrap_or_default());
    ended(&edited).map(Some)
}

/// The document with its last line, and with that line last.
fn ended(text: &str) -> Result<String, Vec<Fault>> {
    let kept = without_end(text, locate(text)?.end);
    let kept = kept.trim_end();
    let gap = if kept.is_empty() { "" } else { "\n\n" };
    Ok(format!("{kept}{gap}{END_LINE}"))
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

/// A credential as a section. `types` and `apps` come last: without both the entry allows nothing, so
/// a section that is cut short allows no more than the complete one.
fn section(entry: &Entry) -> String {
    let mut section = format!("[[credentials]]\nname = {}\n", quoted(&entry.name));
    section.push_str(&lines_of_tokens(entry));
    for (key, quota) in [
        ("streams_max", entry.streams_max),
        ("connections_max", entry.connections_max),
        ("unsent_bytes_max", entry.unsent_bytes_max),
    ] {
        if let Some(quota) = quota {
            section.push_str(&format!("{key} = {quota}\n"));
        }
    }
    for (key, allowed) in [("types", &entry.scope.types), ("apps", &entry.scope.apps)] {
        let value = match allowed {
            Allowed::All => format!("\"{ALL}\""),
            Allowed::Only(names) => {
                let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
                format!("[{}]", names.join(", "))
            }
        };
        section.push_str(&format!("{key} = {value}\n"));
    }
    section
}

/// The lines of an entry's proofs. The expiry of each is above it: an entry that is cut between them
/// has a fault, and does not accept the proof for longer.
fn lines_of_tokens(entry: &Entry) -> String {
    let time = |at: Option<jiff::Timestamp>| at.map(|at| at.to_string());
    let proof = match &entry.proof {
        Proof::Token(digest) => ("sha256", Some(format!("\"{digest}\""))),
        Proof::Certificate(name) => ("certificate", Some(quoted(&name.to_string()))),
    };
    let previous = entry.previous;
    let lines = [
        ("expires_at", time(entry.expires_at)),
        ("created_at", time(entry.created_at)),
        proof,
        (
            "previous_expires_at",
            time(previous.map(|token| token.expires_at)),
        ),
        (
            "previous_created_at",
            time(previous.and_then(|token| token.created_at)),
        ),
        (
            "previous_sha256",
            previous.map(|token| format!("\"{}\"", token.digest)),
        ),
    ];
    let lines = lines.into_iter();
    lines
        .filter_map(|(key, value)| Some(format!("{key} = {}\n", value?)))
        .collect()
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The lines that a part of the text is on, with the end of the last.
fn whole_lines(text: &str, part: &Range<usize>) -> Range<usize> {
    let before = text.get(..part.start).unwrap_or_default();
    let after = text.get(part.end..).unwrap_or_default();
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let end = after
        .find('\n')
        .map_or(text.len(), |newline| part.end + newline + 1);
    start..end
}

/// Where a section begins, with the lines of comment right above it.
fn start_with_comment(text: &str, offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or_default();
    // The bracket may be indented.
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

#[cfg(fuzzing)]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{
        certificate::CertificateName,
        document::{Document, ENTRIES_MAX, KEYS, parse},
        entry::PreviousToken,
        scope::Scope,
        token::Digest,
    };
    use crate::filter;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn token(name: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            proof: Proof::Token(Digest::of(name)),
            previous: None,
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

    fn faults(text: &str) -> Vec<String> {
        let faults = parse(text).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
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
            connections_max: None,
            unsent_bytes_max: None,
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
        let example = example.join("\n").replacen('…', HASH, 1);
        let old = Digest::of("old").to_string();
        let example = example.replace('…', &old);
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

    /// With another token, and the one before.
    fn rotated(name: &str) -> Entry {
        Entry {
            proof: Proof::Token(Digest::of("new")),
            previous: Some(PreviousToken {
                digest: Digest::of(name),
                created_at: None,
                expires_at: "2026-11-24T14:00:00Z".parse().unwrap(),
            }),
            created_at: "2026-11-23T14:00:00Z".parse().ok(),
            expires_at: "2027-11-23T14:00:00Z".parse().ok(),
            ..token(name)
        }
    }

    #[test]
    fn a_rotation_writes_its_own_lines_and_no_others() {
        let before = "# ours\n\n# the first\n  [[credentials]] # here\n  name = 'one' # a name\n\
             \ttypes = \"all\" # all of them\n  expires_at = 2026-12-01T00:00:00Z\n# a token\n\
             sha256 = \"OLD\" # secret\n  created_at = '2026-11-01T00:00:00Z'\napps = \"all\"\n\n\
             # the second\n[[credentials]]\nname = \"two\"\ncertificate = \"two\"\n";
        let old = Digest::of("one").to_string();
        let before = before.replace("OLD", &old);
        let new = Digest::of("new");
        let expected = format!(
            "# ours\n\n# the first\n  [[credentials]] # here\n  name = 'one' # a name\n\
             \ttypes = \"all\" # all of them\nexpires_at = 2027-11-23T14:00:00Z\n\
             created_at = 2026-11-23T14:00:00Z\nsha256 = \"{new}\"\n\
             previous_expires_at = 2026-11-24T14:00:00Z\nprevious_sha256 = \"{old}\"\n\
             # a token\napps = \"all\"\n\n\
             # the second\n[[credentials]]\nname = \"two\"\ncertificate = \"two\"\n\n[end]\n"
        );
        let after = with_tokens_of(&before, &rotated("one")).unwrap().unwrap();
        assert_eq!(after, expected);
        assert_eq!(parse(&after).unwrap().entries[0], rotated("one"));
        let finished = Entry {
            previous: None,
            ..rotated("one")
        };
        let last = with_tokens_of(&after, &finished).unwrap().unwrap();
        assert_eq!(parse(&last).unwrap().entries[0], finished);
        assert!(!last.contains("previous"), "{last}");
        assert_eq!(with_tokens_of(&before, &rotated("three")), Ok(None));
    }

    #[test]
    fn the_bytes_of_other_editors_are_understood_and_kept() {
        // A byte order mark, and the line ends of Windows.
        let unix = add(&add("", &token("one")), &token("two"));
        let text = format!("\u{feff}{}", unix.replace('\n', "\r\n"));
        let parsed = parse(&text).unwrap();
        assert_eq!(parsed.entries, [token("one"), token("two")]);
        assert!(parsed.is_whole);
        for (edited, entries) in [
            (add(&text, &token("three")), 3),
            (without(&text, "one").unwrap().unwrap(), 1),
            (without(&text, "two").unwrap().unwrap(), 1),
            (with_tokens_of(&text, &rotated("one")).unwrap().unwrap(), 2),
            (with_tokens_of(&text, &rotated("two")).unwrap().unwrap(), 2),
        ] {
            let parsed = parse(&edited).unwrap_or_else(|faults| panic!("{faults:?}: {edited:?}"));
            assert_eq!(parsed.entries.len(), entries, "{edited:?}");
            assert!(parsed.is_whole, "{edited:?}");
            assert!(edited.starts_with("\u{feff}# Who may"), "{edited:?}");
        }
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
    fn names_tokens_and_certificates_are_there_once() {
        let same_name = format!("{0}{0}", section(&token("one")));
        // The same token, too: both are said.
        assert_eq!(faults(&same_name).len(), 2);
        let certificate = |name: &str| Entry {
            proof: certificate("dns:same"),
            ..token(name)
        };
        let same_certificate =
            section(&certificate("one")) + &section(&certificate("two")).replace("dns:", "");
        assert!(faults(&same_certificate)[0].contains("the same token or certificate"));
        // The old token of one is the token of another.
        let same_token = section(&rotated("one")) + &section(&token("two"));
        assert_eq!(parse(&same_token).unwrap().entries.len(), 2);
        let same_token = same_token.replace(
            &Digest::of("two").to_string(),
            &Digest::of("one").to_string(),
        );
        assert!(faults(&same_token)[0].contains("the same token or certificate"));
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
