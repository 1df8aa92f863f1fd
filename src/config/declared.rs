//! How a setting is declared: once, as a field of a struct with its type, default, bounds and reason.
//! The key, the variable of the environment, reading, validation, `config show`, the flags' help, the
//! example file and the table in the documentation all follow from that. Knows no single setting.

/// A section of the file, or what is above the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name without brackets; empty above the first section.
    pub name: &'static str,
    /// What it is about: the lines of its doc comment, with the blank before each.
    pub about: &'static [&'static str],
}

/// What names and explains a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// Where it is in the file.
    pub section: Section,
    /// Its key within the section.
    pub name: &'static str,
    /// The same with the section: `limits.grpc.streams_max`.
    pub key: &'static str,
    /// What it does, and the reason for its default: the lines of its doc comment, with the blank
    /// before each.
    pub doc: &'static [&'static str],
}

/// A setting as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// What it is called.
    pub name: Name,
    /// What a value is: `duration`.
    pub kind: &'static str,
    /// The default, in TOML.
    pub default: String,
    /// The smallest and the largest value, in TOML, where there are such.
    pub bounds: Option<(String, String)>,
}

impl Declared {
    /// The first sentence of its documentation.
    pub fn summary(&self) -> String {
        let doc = self.name.doc.concat();
        let doc = doc.trim_start();
        let sentence = doc.split_once(". ").map_or(doc, |(sentence, _)| sentence);
        sentence.trim_end_matches(['.', ' ']).to_owned()
    }
}
