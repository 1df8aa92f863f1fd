//! The parsed configuration file: every key with its text, its type and its line. Knows TOML, but not
//! which keys exist.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use toml::{Spanned, de::DeValue};

use super::fault::{Fault, Origin};
use crate::toml_text::{self, SyntaxError, line_at};

/// Far more than any configuration needs. A larger file is a device or a log, named by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The two lists of tables, which have the sources of events: `[[apps]]` has those of kind auth only.
pub(super) const LISTS: [&str; 2] = [APPS, SOURCES];
pub(super) const APPS: &str = "apps";
pub(super) const SOURCES: &str = "sources";

/// A parsed file.
pub(super) struct Document {
    /// The path as it was given.
    pub(super) path: PathBuf,
    /// Every key but those of sources, by its dotted path.
    pub(super) entries: Entries,
    /// The tables of the lists of sources.
    pub(super) sources: Vec<SourceTable>,
}

/// One table of a list of sources.
pub(super) struct SourceTable {
    /// The list: `apps` for `[[apps]]`.
    pub(super) list: &'static str,
    /// The line it starts at.
    pub(super) line: usize,
    /// Its keys.
    pub(super) entries: Entries,
}

/// Keys and their values.
pub(super) type Entries = BTreeMap<String, Entry>;

/// One value as it was written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The value without quotes.
    pub(super) text: String,
    /// The strings of an array.
    pub(super) items: Vec<String>,
    /// Its TOML type.
    pub(super) kind: Kind,
    /// The line of its key.
    pub(super) line: usize,
}

/// The types of TOML that settings distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A quoted string.
    Text,
    /// A whole number.
    Integer,
    /// An array of strings; its text is the strings joined by commas.
    List,
    /// A `[section]`, kept so that an unknown one is reported even if it is empty.
    Section,
    /// `true` or `false`.
    Boolean,
    /// Any other type, by its name in messages.
    Other(&'static str),
}

impl Document {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// The file cannot be read, is too large, is not UTF-8, or is not TOML. A syntax error is reported
    /// alone, because the text after it cannot be parsed.
    pub(super) fn read(path: &Path) -> Result<Self, Vec<Fault>> {
        let read = File::open(path).and_then(|file| read_text(file, FILE_BYTES_MAX));
        let text = read.map_err(|error| {
            vec![Fault {
                origin: Origin::File {
                    path: path.to_owned(),
                    line: None,
                },
                message: format!("the configuration file cannot be read: {error}"),
                help: "check the path given with `--config` or `PRELUDE_BRIDGE_CONFIG` and that \
                       this user may read it"
                    .to_owned(),
            }]
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Vec<Fault>> {
        let table = toml_text::parse(text).map_err(|errors| {
            let faults = errors.into_iter();
            faults
                .map(|error| syntax_fault(path, error))
                .collect::<Vec<_>>()
        })?;
        let mut document = Self {
            path: path.to_owned(),
            entries: Entries::new(),
            sources: Vec::new(),
        };
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            let list = LISTS.into_iter().find(|list| *list == name);
            match (list, value.get_ref()) {
                (Some(list), DeValue::Array(items)) => {
                    let tables = items.iter().map(|item| source_table(list, text, item));
                    document.sources.extend(tables);
                }
                _ => collect(
                    text,
                    name,
                    line_at(text, key.span().start),
                    value,
                    &mut document.entries,
                ),
            }
        }
        Ok(document)
    }

    /// The origin of a value in a line of this file.
    pub(super) fn at(&self, line: usize) -> Origin {
        Origin::File {
            path: self.path.clone(),
            line: Some(line),
        }
    }

    /// Resolves a relative path against the directory of the file, so that a configuration and its token
    /// files can be moved together.
    pub(super) fn relative(&self, path: &str) -> PathBuf {
        match self.path.parent() {
            Some(directory) => directory.join(path),
            None => PathBuf::from(path),
        }
    }
}

/// Reads at most `bytes_max` of text.
///
/// # Errors
/// Those of the file system; `InvalidData` for text that is not UTF-8, `FileTooLarge` beyond the
/// limit.
pub(super) fn read_text(file: File, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = file
        .take(bytes_max.saturating_add(1))
        .read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read <= bytes_max) {
        Ok(text)
    } else {
        Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {bytes_max} bytes"),
        ))
    }
}

fn source_table(list: &'static str, text: &str, item: &Spanned<DeValue<'_>>) -> SourceTable {
    let mut entries = Entries::new();
    let line = line_at(text, item.span().start);
    match item.get_ref() {
        DeValue::Table(table) => {
            for (key, value) in table {
                let line = line_at(text, key.span().start);
                collect(text, key.get_ref(), line, value, &mut entries);
            }
        }
        // `apps = ["one"]`: kept without a name, and refused for that.
        _ => collect(text, "", line, item, &mut entries),
    }
    SourceTable {
        list,
        line,
        entries,
    }
}

fn collect(
    text: &str,
    path: &str,
    line: usize,
    value: &Spanned<DeValue<'_>>,
    entries: &mut Entries,
) {
    let mut items = Vec::new();
    let (kind, content) = match value.get_ref() {
        DeValue::String(content) => (Kind::Text, content.as_ref().to_owned()),
        DeValue::Integer(number) => (Kind::Integer, decimal(number.as_str(), number.radix())),
        DeValue::Table(table) => {
            for (key, value) in table {
                let line = line_at(text, key.span().start);
                collect(
                    text,
                    &format!("{path}.{}", key.get_ref()),
                    line,
                    value,
                    entries,
                );
            }
            (Kind::Section, String::new())
        }
        DeValue::Float(number) => (Kind::Other("a fraction"), number.as_str().to_owned()),
        DeValue::Boolean(value) => (Kind::Boolean, value.to_string()),
        DeValue::Datetime(_) => (Kind::Other("a date"), String::new()),
        DeValue::Array(array) => match texts(array.iter().map(Spanned::get_ref)) {
            Some(texts) => {
                items = texts;
                (Kind::List, items.join(","))
            }
            None => (
                Kind::Other("an array of other things than strings"),
                String::new(),
            ),
        },
    };
    let entry = Entry {
        text: content,
        items,
        kind,
        line,
    };
    entries.insert(path.to_owned(), entry);
}

/// The strings of an array; `None` if an item is not a string.
fn texts<'a>(items: impl Iterator<Item = &'a DeValue<'a>>) -> Option<Vec<String>> {
    let texts = items.map(|item| match item {
        DeValue::String(text) => Some(text.as_ref().to_owned()),
        _ => None,
    });
    texts.collect()
}

/// TOML's hexadecimal, octal and binary numbers, so that everything after this sees decimal ones.
fn decimal(digits: &str, radix: u32) -> String {
    match i128::from_str_radix(digits, radix) {
        Ok(number) => number.to_string(),
        Err(_) => digits.to_owned(),
    }
}

const SYNTAX_HELP: &str = "a key is written `name = \"text\"` or `name = 123`, a section `[name]`, an app \
                           `[[apps]]`, another source `[[sources]]`";

fn syntax_fault(path: &Path, error: SyntaxError) -> Fault {
    Fault {
        origin: Origin::File {
            path: path.to_owned(),
            line: error.line,
        },
        help: if error.message.contains("duplicate key") {
            "keep one; the store is either `store = …` or a section `[store]` with `url = …`"
                .to_owned()
        } else {
            SYNTAX_HELP.to_owned()
        },
        message: error.message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document, Vec<Fault>> {
        Document::parse(Path::new("dir/file.toml"), text)
    }

    #[test]
    fn keys_are_flat_and_know_their_lines() {
        let document = parse("a = \"x\"\n\n[b.c]\nd = 0x10\n[[apps]]\nid = \"one\"\n")
            .ok()
            .unwrap();
        assert_eq!(document.entries["a"].line, 1);
        assert_eq!(document.entries["b.c.d"].line, 4);
        assert_eq!(document.entries["b.c.d"].text, "16");
        assert_eq!(document.entries["b.c"].kind, Kind::Section);
        assert_eq!(document.sources[0].line, 5);
        assert_eq!(document.sources[0].entries["id"].line, 6);
    }

    #[test]
    fn every_syntax_error_has_a_line_and_shows_nothing_of_the_file() {
        let faults = parse("a = 1\nb = hunter2\nc =\n").err().unwrap();
        let lines: Vec<String> = faults
            .iter()
            .map(|fault| fault.origin.to_string())
            .collect();
        assert_eq!(lines, ["dir/file.toml:2", "dir/file.toml:3"]);
        assert!(!format!("{faults:?}").contains("hunter2"), "{faults:?}");
    }

    #[test]
    fn paths_in_a_file_are_taken_from_its_directory() {
        let document = parse("").ok().unwrap();
        assert_eq!(document.relative("token.txt"), Path::new("dir/token.txt"));
        assert_eq!(document.relative("/token.txt"), Path::new("/token.txt"));
    }
}
