//! Resolves one setting at a time: flag before environment before file before default. Owns
//! precedence, the origin of each value, and the list of faults. Its callers know which settings exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::{
    declared::{Declared, Name},
    fault::{Error, Fault, Origin},
    file::{Document, Kind, LISTS},
    value::{Shape, Value},
};
use crate::nearest::{likeness, nearest, nearest_by};

/// The prefix of the bridge's environment variables.
pub const ENVIRONMENT_PREFIX: &str = "PRELUDE_BRIDGE_";

/// All input, before any of it is validated. It has no `Debug` output, because the environment holds
/// tokens.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file of `--config`.
    pub file: Option<PathBuf>,
    /// The text of each flag, by the key that it sets (`data_dir`).
    pub flags: BTreeMap<&'static str, String>,
    /// The whole environment, because a token may be in a variable of any name.
    pub environment: BTreeMap<OsString, OsString>,
    /// Whether the file is to be judged alone. Secrets in the environment may then belong to settings there
    /// that are left out.
    pub is_file_alone: bool,
}

/// One setting, as `config show` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its declaration.
    pub declared: Declared,
    /// The value in TOML.
    pub value: String,
    /// Where the value came from.
    pub origin: Origin,
}

impl Setting {
    /// The key in the file, dotted.
    pub fn key(&self) -> &'static str {
        self.declared.name.key
    }
}

/// Resolves settings and collects their faults.
pub(super) struct Resolver<'a> {
    sources: &'a Sources,
    /// The keys of the settings that are read; all others are treated as absent.
    only: Option<&'static [&'static str]>,
    pub(super) document: Option<Document>,
    pub(super) faults: Vec<Fault>,
    pub(super) settings: Vec<Setting>,
}

/// One value as it was written in a flag, a variable or the file.
struct Written {
    text: String,
    /// The key that it was written with.
    key: &'static str,
    /// `None` for flags and variables, which are text.
    kind: Option<Kind>,
    origin: Origin,
}

impl<'a> Resolver<'a> {
    /// Opens the file, if one is named. If it cannot be read, that is a fault, and the settings come
    /// from the other sources.
    pub(super) fn new(sources: &'a Sources) -> Self {
        let (document, faults) = match sources.file.as_deref().map(Document::read) {
            None => (None, Vec::new()),
            Some(Ok(document)) => (Some(document), Vec::new()),
            Some(Err(faults)) => (None, faults),
        };
        Self {
            sources,
            only: None,
            document,
            faults,
            settings: Vec::new(),
        }
    }

    /// The same for a caller that needs only some settings: the others are not validated.
    pub(super) fn only(sources: &'a Sources, keys: &'static [&'static str]) -> Self {
        Self {
            only: Some(keys),
            ..Self::new(sources)
        }
    }

    /// The value of a setting. If it is invalid, records the fault and returns the default.
    pub(super) fn take<T: Value>(&mut self, name: Name, default: T) -> T {
        self.take_checked(name, default, None, |_| true)
    }

    /// The same for a value with bounds.
    pub(super) fn take_in<T: Value + PartialOrd>(
        &mut self,
        name: Name,
        default: T,
        bounds: RangeInclusive<T>,
    ) -> T {
        let shown = (bounds.start().show(), bounds.end().show());
        self.take_checked(name, default, Some(shown), |value| bounds.contains(value))
    }

    fn take_checked<T: Value>(
        &mut self,
        name: Name,
        default: T,
        bounds: Option<(String, String)>,
        is_within: impl Fn(&T) -> bool,
    ) -> T {
        let declared = Declared {
            name,
            kind: T::KIND,
            default: default.show(),
            bounds,
        };
        let (value, origin) = match self.written(name.key) {
            None => (default, Origin::Default),
            Some(written) => match read(&written, &declared, is_within) {
                Ok(value) => (
                    value.located_in(self.directory_of(&written)),
                    written.origin,
                ),
                Err((reason, help)) => {
                    self.refuse(written.origin.clone(), written.key, &reason, &help);
                    (default, written.origin)
                }
            },
        };
        self.settings.push(Setting {
            declared,
            value: value.show_absolute(),
            origin,
        });
        value
    }

    /// The directory that a relative path is resolved against: for a path in the file, the directory of
    /// the file.
    fn directory_of(&self, written: &Written) -> Option<&Path> {
        written.kind?;
        self.document.as_ref()?.path.parent()
    }

    /// Returns the recorded faults, in the order of the file.
    ///
    /// # Errors
    /// Any fault.
    pub(super) fn finish(mut self) -> Result<Vec<Setting>, Error> {
        if self.faults.is_empty() {
            return Ok(self.settings);
        }
        // The sort is stable: faults of one line stay in the order in which they were found.
        self.faults
            .sort_by(|left, right| left.origin.cmp(&right.origin));
        Err(Error {
            faults: self.faults,
        })
    }

    /// Where the value of a setting came from that was resolved before.
    pub(super) fn origin_of(&self, key: &str) -> Origin {
        let setting = self.settings.iter().find(|setting| setting.key() == key);
        setting.map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Whether the file is judged alone.
    pub(super) fn takes_file_alone(&self) -> bool {
        self.sources.is_file_alone
    }

    /// Whether only some settings are read.
    pub(super) fn takes_only_some(&self) -> bool {
        self.only.is_some()
    }

    /// The key that a setting was written with: its short one, unless it is in a section of the file.
    pub(super) fn written_key(&self, key: &'static str) -> &'static str {
        match (self.origin_of(key), &self.document) {
            (Origin::File { .. }, Some(document)) if document.entries.contains_key(key) => key,
            _ => short_of(key),
        }
    }

    /// Whether a setting is written in more places than the one that is in force.
    pub(super) fn is_overriding(&self, key: &'static str) -> bool {
        let entries = self.document.as_ref().map(|document| &document.entries);
        let is_in_file = entries.is_some_and(|entries| {
            let is_value = |key: &str| {
                let entry = entries.get(key);
                entry.is_some_and(|entry| entry.kind != Kind::Section)
            };
            is_value(key) || is_value(short_of(key))
        });
        let variable = OsString::from(variable_of(key));
        let variable = self.sources.environment.get(&variable);
        let is_variable = variable.is_some_and(|text| !text.is_empty());
        match self.origin_of(key) {
            Origin::Flag(_) => is_variable || is_in_file,
            Origin::Environment(_) => is_in_file,
            Origin::File { .. } | Origin::Default => false,
        }
    }

    /// Shows another value of a setting than was written: what is in force instead of it.
    pub(super) fn show_instead(&mut self, key: &str, value: String, origin: Origin) {
        let mut settings = self.settings.iter_mut();
        if let Some(setting) = settings.find(|setting| setting.key() == key) {
            (setting.value, setting.origin) = (value, origin);
        }
    }

    /// A variable of the environment. An empty one counts as absent: container tools pass empty
    /// variables for missing values.
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

    /// Whether a variable exists, even if it is empty.
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

    /// Records a fault for every key of the file that was not resolved. Called last.
    pub(super) fn refuse_unknown_keys(&mut self) {
        let Some(document) = &self.document else {
            return;
        };
        let settings = self.settings.iter().map(Setting::key);
        let known: Vec<&str> = settings.chain(LISTS).chain([STORE]).collect();
        for (key, entry) in &document.entries {
            let is_empty = !document.entries.keys().any(|other| is_within(other, key));
            if let Some((message, help)) = fault_of_key(key, entry.kind, is_empty, &known) {
                self.faults.push(Fault {
                    origin: document.at(entry.line),
                    message,
                    help,
                });
            }
        }
    }

    /// Warnings of variables that look like a misspelt setting. They are no faults, because variables
    /// with this prefix can have other origins: Kubernetes sets them for a service of this name.
    pub(super) fn misspelt_variables(&self, others: &[&str]) -> Vec<String> {
        let mut known: BTreeSet<String> = others.iter().map(ToString::to_string).collect();
        known.extend(
            self.settings
                .iter()
                .map(|setting| variable_of(setting.key())),
        );
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
        if self.only.is_some_and(|only| !only.contains(&key)) {
            return None;
        }
        if let Some(text) = self.sources.flags.get(key) {
            return Some(Written {
                text: text.clone(),
                key: short_of(key),
                kind: None,
                origin: Origin::Flag(flag_of(key)),
            });
        }
        let variable = variable_of(key);
        if let Some(text) = self.variable(&variable) {
            return Some(Written {
                text,
                key: short_of(key),
                kind: None,
                origin: Origin::Environment(variable),
            });
        }
        let document = self.document.as_ref()?;
        let mut keys = [key, short_of(key)].into_iter();
        let (key, entry) = keys.find_map(|key| {
            let entry = document.entries.get(key)?;
            (entry.kind != Kind::Section).then_some((key, entry))
        })?;
        Some(Written {
            text: entry.text.clone(),
            key,
            kind: Some(entry.kind),
            origin: document.at(entry.line),
        })
    }
}

/// The short key of `store.url`: in flags, in variables, and in a file that has no section for the store.
const STORE: &str = "store";

fn short_of(key: &str) -> &str {
    match key {
        "store.url" => STORE,
        key => key,
    }
}

/// The variable of a key: `limits.webhook.body_bytes_max` is
/// `PRELUDE_BRIDGE_LIMITS_WEBHOOK_BODY_BYTES_MAX`.
pub fn variable_of(key: &str) -> String {
    let name = short_of(key).replace('.', "_").to_ascii_uppercase();
    format!("{ENVIRONMENT_PREFIX}{name}")
}

/// The known key that is most similar to an unknown one. A key without its section counts as similar
/// to the key in the section.
fn nearest_key<'k>(typed: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    fn last(key: &str) -> &str {
        key.rsplit('.').next().unwrap_or(key)
    }
    nearest_by(known, |known| {
        likeness(typed, known).max(likeness(last(typed), last(known)) * 0.95)
    })
}

/// The flag of a key, with its dashes: `data_dir` is `--data-dir`.
pub fn flag_of(key: &str) -> String {
    format!("--{}", short_of(key).replace(['.', '_'], "-"))
}

/// Parses a value, or returns what is wrong with it and what to write.
fn read<T: Value>(
    written: &Written,
    declared: &Declared,
    is_within: impl Fn(&T) -> bool,
) -> Result<T, (String, String)> {
    let value = parse::<T>(written).map_err(|reason| (reason, T::HELP.to_owned()))?;
    match &declared.bounds {
        Some((min, max)) if !is_within(&value) => {
            // `plain` tells a telephone number from a limit by the leading `+`, which parsing removed.
            let signed = written.text.starts_with('+').then(|| written.text.clone());
            let shown = signed.unwrap_or_else(|| value.show());
            Err((
                format!("{shown} is out of bounds"),
                format!("write a {} from {min} to {max}", T::KIND),
            ))
        }
        Some(_) | None => Ok(value),
    }
}

fn parse<T: Value>(written: &Written) -> Result<T, String> {
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

/// Why a key of the file is invalid, if it is: the message and the remedy.
fn fault_of_key(key: &str, kind: Kind, is_empty: bool, known: &[&str]) -> Option<(String, String)> {
    // The lists of sources were validated before.
    if LISTS
        .iter()
        .any(|list| key == *list || is_within(key, list))
    {
        return None;
    }
    if key == STORE {
        // Both a value and a section.
        return None;
    }
    if let "store.password" | "store.token" = key {
        return Some((
            format!("`{key}`: a secret does not belong in this file"),
            format!(
                "put it into a file of its own and write `{key}_file = \"…\"`, or into a variable and write \
                 `{key}_env = \"NAME\"`"
            )
            .replace("store.", ""),
        ));
    }
    let is_setting = known.contains(&key);
    let is_section = known.iter().any(|name| is_within(name, key));
    match (kind, is_setting, is_section) {
        (Kind::Section, true, _) => Some((
            format!("`{key}` is a value, not a section"),
            format!("write `{key} = …` above the first section"),
        )),
        (Kind::Section, false, true) | (_, true, _) => None,
        // The keys of an unknown section are reported themselves, with a better guess.
        (Kind::Section, false, false) => {
            let sections = known.iter().filter_map(|name| name.rsplit_once('.'));
            let near = nearest_key(key, sections.map(|(section, _)| section));
            is_empty.then(|| unknown("section", key, near))
        }
        (_, false, true) => Some((
            format!("`{key}` is a section, not a value"),
            format!("write `[{key}]` on a line of its own, and its keys below"),
        )),
        (_, false, false) => {
            let near = nearest_key(key, known.iter().copied());
            Some(unknown("key", key, near))
        }
    }
}

fn is_within(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.starts_with('.'))
}

fn unknown(what: &str, key: &str, near: Option<&str>) -> (String, String) {
    let near = near.map(|near| format!("did you mean `{near}`? "));
    (
        format!("unknown {what} `{key}`"),
        format!(
            "{}prelude-bridge.example.toml explains every key",
            near.unwrap_or_default()
        ),
    )
}
