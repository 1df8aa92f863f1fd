//! Prints a resolved configuration as TOML that can be parsed again, with the origin of each value as a
//! comment, or as JSON. Of a token it prints the source, never the value.

use std::fmt::Write as _;

use super::{
    EventSource, Origin, Resolved, Setting, SourceKind, TokenSource,
    value::{self, quoted},
};

impl Resolved {
    /// The configuration as a file that means the same, with origins as comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for setting in &self.settings {
            let name = setting.declared.name;
            if name.section.name != section {
                section = name.section.name;
                text.push_str(&format!("\n[{section}]\n"));
            }
            line(&mut text, name.name, &setting.value, &setting.origin);
        }
        for source in &self.config.sources {
            let list = match source.kind {
                SourceKind::Auth => "apps",
                SourceKind::Verify | SourceKind::Notify => "sources",
            };
            text.push_str(&format!("\n[[{list}]]\n"));
            for (name, value) in describe(source) {
                line(&mut text, name, &value, &source.origin);
            }
        }
        text
    }

    /// The same as one JSON object: `settings`, `apps` and the other `sources`, each value with its
    /// `origin`.
    pub fn to_json(&self) -> serde_json::Value {
        let settings: Vec<_> = self.settings.iter().map(setting_json).collect();
        let (apps, sources): (Vec<_>, Vec<_>) = self
            .config
            .sources
            .iter()
            .partition(|source| source.kind == SourceKind::Auth);
        let [apps, sources] =
            [apps, sources].map(|sources| sources.into_iter().map(source_json).collect::<Vec<_>>());
        serde_json::json!({
            "settings": settings, "apps": apps, "sources": sources, "warnings": self.warnings,
        })
    }
}

fn line(text: &mut String, name: &str, value: &str, origin: &Origin) {
    let setting = format!("{name} = {value}");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{setting:<44} # {origin}");
}

/// The keys of a source from which it can be configured again. Paths are absolute, so that the text can be
/// saved in any directory.
fn describe(source: &EventSource) -> Vec<(&'static str, String)> {
    let mut keys = vec![("id", quoted(&source.id))];
    match &source.activation {
        None => keys.push(("kind", quoted(source.kind.name()))),
        Some(activation) => keys.push(match &activation.token_source {
            TokenSource::File(file) => {
                let path = value::absolute(file);
                ("verification_token_file", quoted(&path.to_string_lossy()))
            }
            TokenSource::Variable(name) => ("verification_token_env", quoted(name)),
        }),
    }
    keys.push(source.keys.describe());
    keys
}

fn setting_json(setting: &Setting) -> serde_json::Value {
    serde_json::json!({
        "key": setting.key(),
        "value": bare(&setting.value),
        "origin": setting.origin.to_string(),
    })
}

fn source_json(source: &EventSource) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    for (name, value) in describe(source) {
        object.insert(name.to_owned(), bare(&value));
    }
    if let Some(activation) = &source.activation {
        let withheld = activation.token.to_string();
        object.insert("verification_token".to_owned(), withheld.into());
    }
    object.insert("origin".to_owned(), source.origin.to_string().into());
    object.into()
}

/// Converts a TOML literal that this program printed to JSON: a string, a number, a boolean or an array of strings.
fn bare(literal: &str) -> serde_json::Value {
    match literal.parse::<toml::Value>() {
        Ok(toml::Value::Integer(number)) => number.into(),
        Ok(toml::Value::String(text)) => text.into(),
        Ok(toml::Value::Boolean(value)) => value.into(),
        Ok(toml::Value::Array(items)) => {
            let texts = items.iter().map(|item| item.as_str().unwrap_or_default());
            texts.collect()
        }
        Ok(_) | Err(_) => literal.into(),
    }
}
