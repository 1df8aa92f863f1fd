//! From what was typed to what it means: one setting at a time, flag before environment before
//! file before default. Owns precedence, the bookkeeping of origins and the faults; which settings
//! there are is said by whoever takes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::{
    fault::{Fault, Origin},
    file::{Document, Kind},
    value::{Shape, Value},
};

/// What every variable of ours starts with.
pub const ENVIRONMENT_PREFIX: &str = "PRELUDE_BRIDGE_";

/// Everything that was typed, before any of it is judged. It cannot be printed for debugging: the
/// environment holds tokens.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file of `--config`.
    pub file: Option<PathBuf>,
    /// Flags by the key they set (`data_dir`), with the text they were given.
    pub flags: BTreeMap<&'static str, String>,
    /// The whole environment: a token may be in a variable of any name.
    pub environment: BTreeMap<OsString, OsString>,
}

impl Sources {
    /// The same without the variables that set single settings. Those would win over the file and
    /// hide what is wrong with it; the ones that apps read their tokens from stay.
    #[must_use]
    pub fn without_setting_variables(mut self) -> Self {
        let nothing = Self::default();
        let mut resolver = Resolver::new(&nothing);
        super::build(&mut resolver);
        for setting in &resolver.settings {
            let name = OsString::from(variable_of(setting.key));
            self.environment.remove(&name);
        }
        self
    }
}

/// One setting, as `config show` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key in the file, dotted.
    pub key: &'static str,
    /// The value in TOML.
    pub value: String,
    /// Who set it.
    pub origin: Origin,
}

/// Hands out settings and remembers what was wrong with them.
pub(super) struct Resolver<'a> {
    sources: &'a Sources,
    pub(super) document: Option<Document>,
    pub(super) faults: Vec<Fault>,
    pub(super) settings: Vec<Setting>,
}

/// One value as it was typed, wherever it was.
pub(super) struct Written {
    pub(super) text: String,
    /// `None` outside of the file, where everything is text.
    kind: Option<Kind>,
    pub(super) origin: Origin,
}

impl<'a> Resolver<'a> {
    /// Opens the file, if there is one. A file that cannot be read is a fault, and the settings
    /// then come from the other sources.
    pub(super) fn new(sources: &'a Sources) -> Self {
        let (document, faults) = match sources.file.as_deref().map(Document::read) {
            None => (None, Vec::new()),
            Some(Ok(document)) => (Some(document), Vec::new()),
            Some(Err(faults)) => (None, faults),
        };
        Self {
            sources,
            document,
            faults,
            settings: Vec::new(),
        }
    }

    /// The value of a setting; on a fault, which is recorded, its default.
    pub(super) fn take<T: Value>(&mut self, key: &'static str, default: T) -> T {
        let (value, origin) = match self.written(key) {
            None => (default, Origin::Default),
            Some(written) => match read::<T>(&written) {
                Ok(value) => (value, written.origin),
                Err(reason) => {
                    self.refuse(written.origin.clone(), key, &reason, T::HELP);
                    (default, written.origin)
                }
            },
        };
        self.settings.push(Setting {
            key,
            value: value.show(),
            origin,
        });
        value
    }

    /// The same for a value that has to be within bounds.
    pub(super) fn take_in<T: Value + PartialOrd>(
        &mut self,
        key: &'static str,
        default: T,
        bounds: RangeInclusive<T>,
    ) -> T {
        let value = self.take(key, default);
        if !bounds.contains(&value) {
            let origin = self.origin_of(key);
            // The sign that a number has lost tells a telephone number from a limit.
            let written = self.written(key).map(|written| written.text);
            let signed = written.filter(|text| text.starts_with('+'));
            let shown = signed.unwrap_or_else(|| value.show());
            let reason = format!("{shown} is out of bounds");
            let help = format!(
                "write a value from {} to {}",
                bounds.start().show(),
                bounds.end().show()
            );
            self.refuse(origin, key, &reason, &help);
        }
        value
    }

    /// The same for a path: one in the file is taken from the directory of the file.
    pub(super) fn take_path(&mut self, key: &'static str, default: &str) -> PathBuf {
        let path = self.take(key, PathBuf::from(default));
        self.locate(key, path)
    }

    /// The same for a path that need not be there.
    pub(super) fn take_optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.take(key, None::<PathBuf>)?;
        Some(self.locate(key, path))
    }

    /// Where the path of the setting that was taken last is.
    fn locate(&mut self, key: &'static str, path: PathBuf) -> PathBuf {
        let path = match (&self.document, self.origin_of(key)) {
            (Some(document), Origin::File { .. }) => match path.to_str() {
                Some(text) => document.relative(text),
                None => path,
            },
            _ => path,
        };
        if let Some(setting) = self.settings.last_mut() {
            setting.value = absolute(&path).show();
        }
        path
    }

    /// Who set a setting that was taken before.
    pub(super) fn origin_of(&self, key: &str) -> Origin {
        let setting = self.settings.iter().find(|setting| setting.key == key);
        setting.map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// A variable of the environment. One that is empty counts as not set, since that is how
    /// container tools pass what they have no value for.
    pub(super) fn variable(&mut self, name: &str) -> Option<String> {
        let value = self.sources.environment.get(&OsString::from(name))?;
        let Some(text) = value.to_str() else {
            self.faults.push(Fault {
                origin: Origin::Environment(name.to_owned()),
                message: "its value is not UTF-8".to_owned(),
                help: "set it to plain text".to_owned(),
            });
            return None;
        };
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Whether a variable is there at all, even if empty.
    pub(super) fn has_variable(&self, name: &str) -> bool {
        let name = OsString::from(name);
        self.sources.environment.contains_key(&name)
    }

    /// Records a fault of a key.
    pub(super) fn refuse(&mut self, origin: Origin, key: &str, reason: &str, help: &str) {
        self.faults.push(Fault {
            origin,
            message: format!("`{key}`: {reason}"),
            help: help.to_owned(),
        });
    }

    /// Records a fault for every key of the file that nobody took. Called last.
    pub(super) fn refuse_unknown_keys(&mut self) {
        let Some(document) = &self.document else {
            return;
        };
        let known: Vec<&str> = self.settings.iter().map(|setting| setting.key).collect();
        for (key, entry) in &document.entries {
            let is_empty = !document.entries.keys().any(|other| is_within(other, key));
            if let Some((message, help)) = judge_key(key, entry.kind, is_empty, &known) {
                self.faults.push(Fault {
                    origin: document.at(entry.line),
                    message,
                    help,
                });
            }
        }
    }

    /// Variables that look like a misspelt one of ours. Only a warning: whoever runs us may set
    /// variables with our prefix for other reasons (Kubernetes does for a service of our name).
    pub(super) fn misspelt_variables(&self, others: &[&str]) -> Vec<String> {
        let mut known: BTreeSet<String> = others.iter().map(ToString::to_string).collect();
        known.extend(self.settings.iter().map(|setting| variable_of(setting.key)));
        let names = self
            .sources
            .environment
            .keys()
            .filter_map(|name| name.to_str());
        names
            .filter(|name| name.starts_with(ENVIRONMENT_PREFIX) && !known.contains(*name))
            .filter_map(|name| {
                let near = nearest(name, known.iter().map(String::as_str))?;
                (strsim::damerau_levenshtein(name, near) <= 2)
                    .then(|| format!("the variable `{name}` is not known; did you mean `{near}`?"))
            })
            .collect()
    }

    fn written(&mut self, key: &'static str) -> Option<Written> {
        if let Some(text) = self.sources.flags.get(key) {
            return Some(Written {
                text: text.clone(),
                kind: None,
                origin: Origin::Flag(flag_of(key)),
            });
        }
        let variable = variable_of(key);
        if let Some(text) = self.variable(&variable) {
            return Some(Written {
                text,
                kind: None,
                origin: Origin::Environment(variable),
            });
        }
        let document = self.document.as_ref()?;
        let entry = document.entries.get(key)?;
        (entry.kind != Kind::Section).then(|| Written {
            text: entry.text.clone(),
            kind: Some(entry.kind),
            origin: document.at(entry.line),
        })
    }
}

/// The variable of a key: `limits.webhook.body_bytes_max` is
/// `PRELUDE_BRIDGE_LIMITS_WEBHOOK_BODY_BYTES_MAX`.
pub fn variable_of(key: &str) -> String {
    let name = key.replace('.', "_").to_ascii_uppercase();
    format!("{ENVIRONMENT_PREFIX}{name}")
}

/// The known name most like the one that was typed.
pub(super) fn nearest<'k>(typed: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|name| (likeness(typed, name), name))
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, name)| name)
}

/// A path as one that does not depend on the working directory, where that can be said.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A key that was left out of its section counts as near to the one in it.
fn likeness(typed: &str, known: &str) -> f64 {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let whole = strsim::normalized_damerau_levenshtein(typed, known);
    let name = strsim::normalized_damerau_levenshtein(&last(typed), &last(known));
    whole.max(name * 0.95)
}

fn flag_of(key: &str) -> String {
    format!("--{}", key.replace(['.', '_'], "-"))
}

fn read<T: Value>(written: &Written) -> Result<T, String> {
    let mismatch = match (written.kind, T::SHAPE) {
        (None | Some(Kind::Text), Shape::Text | Shape::TextOrInteger | Shape::List)
        | (Some(Kind::List), Shape::List)
        | (None | Some(Kind::Integer), Shape::Integer)
        | (None | Some(Kind::Boolean), Shape::Boolean)
        | (Some(Kind::Integer), Shape::TextOrInteger) => None,
        (Some(Kind::Text), Shape::Boolean) => Some("a string, not true or false"),
        (Some(Kind::Integer), Shape::Boolean) => Some("a number, not true or false"),
        (Some(Kind::Boolean), _) => Some("a boolean"),
        (Some(Kind::Text), Shape::Integer) => Some("a string, not a whole number"),
        (Some(Kind::Integer), Shape::Text) => Some("a number, not a string"),
        (Some(Kind::Integer), Shape::List) => Some("a number, not an array"),
        (Some(Kind::List), _) => Some("an array"),
        (Some(Kind::Section), _) => Some("a section"),
        (Some(Kind::Other(name)), _) => Some(name),
    };
    match mismatch {
        Some(found) => Err(format!("the value is {found}")),
        None => T::parse(&written.text),
    }
}

/// What is wrong with a key of the file, if anything is: the message and the remedy.
fn judge_key(key: &str, kind: Kind, is_empty: bool, known: &[&str]) -> Option<(String, String)> {
    // Whatever is under that name was judged with the apps.
    if key == "apps" {
        return None;
    }
    let is_setting = known.contains(&key);
    let is_section = known.iter().any(|name| is_within(name, key));
    match (kind, is_setting, is_section) {
        (Kind::Section, true, _) => Some((
            format!("`{key}` is a value, not a section"),
            format!("write `{key} = …` above the first section"),
        )),
        (Kind::Section, false, true) | (_, true, _) => None,
        // The keys in an unknown section are unknown too, and say so with a better guess.
        (Kind::Section, false, false) => {
            let sections = known.iter().filter_map(|name| name.rsplit_once('.'));
            let near = nearest(key, sections.map(|(section, _)| section));
            is_empty.then(|| unknown("section", key, near))
        }
        (_, false, true) => Some((
            format!("`{key}` is a section, not a value"),
            format!("write `[{key}]` on a line of its own, and its keys below"),
        )),
        (_, false, false) => {
            let near = nearest(key, known.iter().copied());
            Some(unknown("key", key, near))
        }
    }
}

fn is_within(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.starts_with('.'))
}

fn unknown(what: &str, key: &str, near: Option<&str>) -> (String, String) {
    (
        format!("unknown {what} `{key}`"),
        format!(
            "did you mean `{}`? prelude-bridge.example.toml explains every key",
            near.unwrap_or_default()
        ),
    )
}
