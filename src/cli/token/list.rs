//! Credentials as a table for people and as JSON for programs. Never shows more of a hash than
//! tells two tokens apart.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    cli::exit::one_line,
    credentials::{Allowed, Entry, Expiry, LastUse, PreviousToken, Proof},
};

const HEAD: [&str; 9] = [
    "NAME", "KIND", "TYPES", "APPS", "STREAMS", "AGE", "EXPIRES", "USED", "STATE",
];
/// Hexadecimal digits of a hash that are shown.
const DIGITS_SHOWN: usize = 8;

/// What is shown of credentials beside what their file has.
pub(super) struct Seen {
    pub(super) last_use: LastUse,
    pub(super) now: Timestamp,
}

/// One line for each token and certificate, below a head; a sentence where there is none.
pub(super) fn table(entries: Option<&[Entry]>, seen: &Seen) -> String {
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
    for entry in entries {
        rows.push(row(entry, seen));
        let old = entry
            .previous
            .map(|old| row_of_old_token(entry, &old, seen));
        rows.extend(old);
    }
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
pub(super) fn json(entries: &[Entry], seen: &Seen) -> String {
    let entries: Vec<Value> = entries.iter().map(|entry| object(entry, seen)).collect();
    format!("{:#}\n", Value::from(entries))
}

fn object(entry: &Entry, seen: &Seen) -> Value {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let (kind, certificate) = match &entry.proof {
        Proof::Token(_) => ("token", None),
        Proof::Certificate(name) => ("certificate", Some(name.to_string())),
    };
    let allowed = |allowed: &Allowed| match allowed {
        Allowed::All => Value::from("all"),
        Allowed::Only(names) => names.clone().into(),
    };
    let old_token = entry.previous.map(|old| {
        json!({
            "sha256_prefix": prefix(&Proof::Token(old.digest)),
            "created_at": time(old.created_at),
            "expires_at": old.expires_at.to_string(),
            "last_used_at": time(seen.last_use.of(&Proof::Token(old.digest))),
            "state": state_of_old_token(&old, seen.now),
        })
    });
    json!({
        "name": entry.name,
        "kind": kind,
        "sha256_prefix": prefix(&entry.proof),
        "certificate": certificate,
        "types": allowed(&entry.scope.types),
        "apps": allowed(&entry.scope.apps),
        "streams_max": entry.streams_max,
        "created_at": time(entry.created_at),
        "expires_at": time(entry.expires_at),
        "last_used_at": time(seen.last_use.of(&entry.proof)),
        "state": state(entry, seen.now),
        "old_token": old_token,
    })
}

fn row(entry: &Entry, seen: &Seen) -> [String; HEAD.len()] {
    let allowed = |allowed: &Allowed| match allowed {
        Allowed::All => "all".to_owned(),
        Allowed::Only(names) if names.is_empty() => "none".to_owned(),
        Allowed::Only(names) => one_line(&names.join(",")),
    };
    [
        one_line(&entry.name),
        kind(&entry.proof),
        allowed(&entry.scope.types),
        allowed(&entry.scope.apps),
        entry
            .streams_max
            .map_or_else(|| "-".to_owned(), |count| count.to_string()),
        age(entry.created_at, seen.now),
        time(entry.expires_at, "never"),
        time(seen.last_use.of(&entry.proof), "-"),
        state(entry, seen.now).to_owned(),
    ]
}

/// The old token has the scope of its credential, in the row above.
fn row_of_old_token(entry: &Entry, old: &PreviousToken, seen: &Seen) -> [String; HEAD.len()] {
    let proof = Proof::Token(old.digest);
    let same = || "\"".to_owned();
    [
        one_line(&entry.name),
        kind(&proof),
        same(),
        same(),
        same(),
        age(old.created_at, seen.now),
        time(Some(old.expires_at), "never"),
        time(seen.last_use.of(&proof), "-"),
        state_of_old_token(old, seen.now).to_owned(),
    ]
}

fn kind(proof: &Proof) -> String {
    match proof {
        Proof::Token(_) => format!("token {}…", prefix(proof).unwrap_or_default()),
        Proof::Certificate(name) => format!("certificate {}", one_line(&name.to_string())),
    }
}

fn time(at: Option<Timestamp>, none: &str) -> String {
    match at {
        Some(at) => at.strftime("%Y-%m-%d %H:%MZ").to_string(),
        None => none.to_owned(),
    }
}

/// How long ago, in its largest unit.
fn age(created_at: Option<Timestamp>, now: Timestamp) -> String {
    let Some(created_at) = created_at else {
        return "-".to_owned();
    };
    let seconds = now.duration_since(created_at).as_secs().max(0);
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(size, _)| seconds >= *size);
    let (size, unit) = unit.unwrap_or((1, "s"));
    format!("{}{unit}", seconds / size)
}

fn state(entry: &Entry, now: Timestamp) -> &'static str {
    match Expiry::of(entry) {
        Some(expiry) if expiry.has_come(now) => "expired",
        Some(expiry) if expiry.is_soon(now) => "expiring",
        Some(_) | None => "active",
    }
}

fn state_of_old_token(old: &PreviousToken, now: Timestamp) -> &'static str {
    if old.expires_at <= now {
        "expired"
    } else {
        "old"
    }
}

fn prefix(proof: &Proof) -> Option<String> {
    match proof {
        Proof::Token(digest) => Some(digest.to_string().chars().take(DIGITS_SHOWN).collect()),
        Proof::Certificate(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{CertificateName, Scope, Token};

    fn seen(now: &str) -> Seen {
        Seen {
            last_use: LastUse::default(),
            now: now.parse().unwrap(),
        }
    }

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
            previous: None,
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
            previous: None,
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
        let text = table(Some(&entries()), &seen("2026-11-24T14:00:00Z"));
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], HEAD);
        assert_eq!(lines[1][3..6], ["user.created,user.session.*", "all", "10"]);
        assert_eq!(lines[1].last(), Some(&"expired"), "{text}");
        assert_eq!(lines[2][2], "spiffe://e.com/\\u{1b}[2J");
        assert_eq!(
            lines[2][3..],
            ["all", "all", "-", "-", "never", "-", "active"]
        );
    }

    #[test]
    fn a_hash_is_shown_in_no_more_than_its_first_digits() {
        let entries = entries();
        let Proof::Token(digest) = &entries[0].proof else {
            panic!("{entries:?}");
        };
        let digest = digest.to_string();
        let seen = seen("1970-01-01T00:00:00Z");
        for text in [table(Some(&entries), &seen), json(&entries, &seen)] {
            assert!(text.contains(&digest[..DIGITS_SHOWN]), "{text}");
            assert!(!text.contains(&digest[..=DIGITS_SHOWN]), "{text}");
        }
    }

    #[test]
    fn no_file_and_no_credentials_are_different_things() {
        let seen = seen("1970-01-01T00:00:00Z");
        assert!(table(None, &seen).contains("from then on"));
        assert!(table(Some(&[]), &seen).contains("nobody may subscribe"));
        assert_eq!(json(&[], &seen), "[]\n");
    }

    #[test]
    fn a_rotated_credential_has_both_tokens_with_their_ages_and_uses() {
        let directory = tempfile::tempdir().unwrap();
        let [mut entry, _] = entries().try_into().unwrap();
        let old = Token::generate().unwrap().digest();
        entry.previous = Some(PreviousToken {
            digest: old,
            created_at: "2026-08-26T10:00:00Z".parse().ok(),
            expires_at: "2026-11-24T13:00:00Z".parse().unwrap(),
        });
        let name: String = old.to_string().chars().take(16).collect();
        let line = format!("2026-11-24T09:30:12Z {name}\n");
        std::fs::write(directory.path().join("last-use.txt"), line).unwrap();
        let seen = |now: &str| Seen {
            last_use: LastUse::read(directory.path()),
            ..seen(now)
        };
        let entry = [entry];
        let text = table(Some(&entry), &seen("2026-11-24T12:00:00Z"));
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let now = ["22h", "2026-11-24", "14:00Z", "-", "expiring"];
        assert_eq!(rows[1][6..], now, "{text}");
        let old = ["90d", "2026-11-24", "13:00Z", "2026-11-24", "09:30Z", "old"];
        assert_eq!(rows[2][6..], old, "{text}");
        assert_eq!(rows[2][0], "billing");
        let text = json(&entry, &seen("2026-11-24T13:00:00Z"));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value[0]["last_used_at"], Value::Null);
        assert_eq!(
            value[0]["old_token"]["last_used_at"],
            "2026-11-24T09:30:12Z"
        );
        assert_eq!(value[0]["old_token"]["state"], "expired");
    }
}
