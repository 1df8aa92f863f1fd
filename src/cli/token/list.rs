//! Credentials as a table for people and as JSON for programs. Never shows more of a hash than
//! tells two tokens apart.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    cli::exit::one_line,
    credentials::{Allowed, Entry, Proof},
};

const HEAD: [&str; 8] = [
    "NAME", "KIND", "TYPES", "APPS", "STREAMS", "CREATED", "EXPIRES", "STATE",
];
/// Hexadecimal digits of a hash that are shown.
const DIGITS_SHOWN: usize = 8;

/// One line for each credential, below a head; a sentence where there is none.
pub(super) fn table(entries: Option<&[Entry]>, now: Timestamp) -> String {
    let entries = match entries {
        None => {
            return "no credentials file: `prelude-bridge token create NAME` makes it, and from \
                    then on subscribers need a credential\n"
                .to_owned();
        }
        Some([]) => {
            return "no credentials, so nobody may subscribe: `prelude-bridge token create NAME` \
                    makes one\n"
                .to_owned();
        }
        Some(entries) => entries,
    };
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(entries.iter().map(|entry| row(entry, now)));
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    });
    lines.collect()
}

/// One array. `types` and `apps` are a list, or the text `all`, as they are in the file.
pub(super) fn json(entries: &[Entry], now: Timestamp) -> String {
    let entries: Vec<Value> = entries.iter().map(|entry| object(entry, now)).collect();
    format!("{:#}\n", Value::from(entries))
}

fn object(entry: &Entry, now: Timestamp) -> Value {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let (kind, sha256_prefix, certificate) = match &entry.proof {
        Proof::Token(_) => ("token", prefix(entry), None),
        Proof::Certificate(name) => ("certificate", None, Some(name.to_string())),
    };
    let allowed = |allowed: &Allowed| match allowed {
        Allowed::All => Value::from("all"),
        Allowed::Only(names) => names.clone().into(),
    };
    json!({
        "name": entry.name,
        "kind": kind,
        "sha256_prefix": sha256_prefix,
        "certificate": certificate,
        "types": allowed(&entry.scope.types),
        "apps": allowed(&entry.scope.apps),
        "streams_max": entry.streams_max,
        "created_at": time(entry.created_at),
        "expires_at": time(entry.expires_at),
        "state": state(entry, now),
    })
}

fn row(entry: &Entry, now: Timestamp) -> [String; HEAD.len()] {
    let allowed = |allowed: &Allowed| match allowed {
        Allowed::All => "all".to_owned(),
        Allowed::Only(names) if names.is_empty() => "none".to_owned(),
        Allowed::Only(names) => one_line(&names.join(",")),
    };
    let time = |at: Option<Timestamp>, none: &str| match at {
        Some(at) => at.strftime("%Y-%m-%d %H:%MZ").to_string(),
        None => none.to_owned(),
    };
    let kind = match &entry.proof {
        Proof::Token(_) => format!("token {}…", prefix(entry).unwrap_or_default()),
        Proof::Certificate(name) => format!("certificate {}", one_line(&name.to_string())),
    };
    [
        one_line(&entry.name),
        kind,
        allowed(&entry.scope.types),
        allowed(&entry.scope.apps),
        entry
            .streams_max
            .map_or_else(|| "-".to_owned(), |count| count.to_string()),
        time(entry.created_at, "-"),
        time(entry.expires_at, "never"),
        state(entry, now).to_owned(),
    ]
}

fn state(entry: &Entry, now: Timestamp) -> &'static str {
    match entry.expires_at {
        Some(at) if at <= now => "expired",
        Some(_) | None => "active",
    }
}

fn prefix(entry: &Entry) -> Option<String> {
    match &entry.proof {
        Proof::Token(digest) => Some(digest.to_string().chars().take(DIGITS_SHOWN).collect()),
        Proof::Certificate(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{CertificateName, Scope, Token};

    fn entries() -> Vec<Entry> {
        let entry = Entry {
            name: "billing".to_owned(),
            proof: Proof::Token(Token::generate().unwrap().digest()),
            scope: Scope {
                types: Allowed::or_all(vec![
                    "user.created".to_owned(),
                    "user.session.*".to_owned(),
                ]),
                apps: Allowed::All,
            },
            streams_max: Some(10),
            connections_max: None,
            unsent_bytes_max: None,
            created_at: "2026-11-23T14:00:00Z".parse().ok(),
            expires_at: "2026-11-24T14:00:00Z".parse().ok(),
        };
        let other = Entry {
            name: "audit".to_owned(),
            proof: Proof::Certificate(CertificateName::parse("spiffe://e.com/\u{1b}[2J")),
            scope: Scope::default(),
            streams_max: None,
            connections_max: None,
            unsent_bytes_max: None,
            created_at: None,
            expires_at: None,
        };
        vec![entry, other]
    }

    #[test]
    fn a_table_has_every_column_and_no_control_characters() {
        let text = table(Some(&entries()), "2026-11-24T14:00:00Z".parse().unwrap());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], HEAD);
        assert_eq!(lines[1][3..6], ["user.created,user.session.*", "all", "10"]);
        assert_eq!(lines[1].last(), Some(&"expired"), "{text}");
        assert_eq!(lines[2][2], "spiffe://e.com/\\u{1b}[2J");
        assert_eq!(lines[2][3..], ["all", "all", "-", "-", "never", "active"]);
    }

    #[test]
    fn a_hash_is_shown_in_no_more_than_its_first_digits() {
        let entries = entries();
        let Proof::Token(digest) = &entries[0].proof else {
            panic!("{entries:?}");
        };
        let digest = digest.to_string();
        let now = Timestamp::UNIX_EPOCH;
        for text in [table(Some(&entries), now), json(&entries, now)] {
            assert!(text.contains(&digest[..DIGITS_SHOWN]), "{text}");
            assert!(!text.contains(&digest[..=DIGITS_SHOWN]), "{text}");
        }
    }

    #[test]
    fn no_file_and_no_credentials_are_different_things() {
        let now = Timestamp::UNIX_EPOCH;
        assert!(table(None, now).contains("from then on"));
        assert!(table(Some(&[]), now).contains("nobody may subscribe"));
        assert_eq!(json(&[], now), "[]\n");
    }
}
