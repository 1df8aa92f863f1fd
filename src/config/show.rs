//! Prints a resolved configuration as TOML that can be parsed again, with the origin of each value as a
//! comment, or as JSON. Of a token it prints the source, never the value.

use std::fmt::Write as _;

use super::{
    App, KeySource, Origin, Resolved, Setting, TokenSource,
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
        for app in &self.config.apps {
            text.push_str("\n[[apps]]\n");
            for (name, value) in describe(app) {
                line(&mut text, name, &value, &app.origin);
            }
        }
        text
    }

    /// The same as one JSON object: `settings` and `apps`, each value with its `origin`.
    pub fn to_json(&self) -> serde_json::Value {
        let settings: Vec<_> = self.settings.iter().map(setting_json).collect();
        let apps: Vec<_> = self.config.apps.iter().map(app_json).collect();
        serde_json::json!({ "settings": settings, "apps": apps, "warnings": self.warnings })
    }
}

fn line(text: &mut String, name: &str, value: &str, origin: &Origin) {
    let setting = format!("{name} = {value}");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{setting:<44} # {origin}");
}

/// The keys of an app from which it can be configured again. Paths are absolute, so that the text can be
/// saved in any directory.
fn describe(app: &App) -> Vec<(&'static str, String)> {
    let path = |path: &std::path::Path| quoted(&value::absolute(path).to_string_lossy());
    let token = match &app.token_source {
        TokenSource::File(file) => ("verification_token_file", path(file)),
        TokenSource::Variable(name) => ("verification_token_env", quoted(name)),
    };
    let keys = match &app.keys {
        KeySource::JwksUrl(url) => ("jwks_url", quoted(url)),
        KeySource::JwksFile(file) => ("jwks_file", path(file)),
        KeySource::PemFile(file) => ("pem_file", path(file)),
    };
    vec![("id", quoted(&app.id)), token, keys]
}

fn setting_json(setting: &Setting) -> serde_json::Value {
    serde_json::json!({
        "key": setting.key(),
        "value": bare(&setting.value),
        "origin": setting.origin.to_string(),
    })
}

fn app_json(app: &App) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    for (name, value) in describe(app) {
        object.insert(name.to_owned(), bare(&value));
    }
    object.insert(
        "verification_token".to_owned(),
        app.verification_token.to_string().into(),
    );
    object.insert("origin".to_owned(), app.origin.to_string().into());
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
