//! How each type of setting is parsed and printed, with the remedy for invalid text. Knows nothing of
//! keys, files or precedence.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    AllowedSource, OldEvents, WebOrigin,
    units::{self, ByteSize},
};
use crate::{
    logging::{Format, Level},
    net::{network::Network, tls::ClientCertificates},
    plain,
};

/// The TOML types that a setting can have in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Integer,
    TextOrInteger,
    Boolean,
    List,
}

/// A type that a setting can have.
pub(super) trait Value: Sized {
    /// Its type in the file.
    const SHAPE: Shape;
    /// The kind of value, as a noun.
    const KIND: &'static str;
    /// The remedy for text that cannot be parsed.
    const HELP: &'static str;

    /// Parses the value, or returns a clause that says what is wrong.
    fn parse(text: &str) -> Result<Self, String>;

    /// The value in TOML.
    fn show(&self) -> String;

    /// Resolves a relative path against the directory of the file that it was written in.
    fn located_in(self, _directory: Option<&Path>) -> Self {
        self
    }

    /// The value in TOML, independent of the working directory.
    fn show_absolute(&self) -> String {
        self.show()
    }
}

impl Value for SocketAddr {
    const SHAPE: Shape = Shape::Text;
    const KIND: &'static str = "address";
    const HELP: &'static str = "write an IP address and a port, such as `127.0.0.1:8080` or `[::]:8080`; port 0 takes a free one";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("`{text}` is not an IP address and a port"))
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// Text; empty text counts as absent.
impl Value for String {
    const SHAPE: Shape = Shape::Text;
    const KIND: &'static str = "text";
    const HELP: &'static str = "write it in quotes, without control characters";

    fn parse(text: &str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err("it has a control character in it".to_owned());
        }
        Ok(text.trim().to_owned())
    }

    fn show(&self) -> String {
        quoted(self)
    }
}

impl Value for bool {
    const SHAPE: Shape = Shape::Boolean;
    const KIND: &'static str = "true or false";
    const HELP: &'static str = "write true or false";

    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(format!("`{text}` is neither true nor false")),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    const SHAPE: Shape = Shape::Text;
    const KIND: &'static str = "path";
    const HELP: &'static str = "write a path";

    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("it is empty".to_owned());
        }
        Ok(Self::from(text))
    }

    fn show(&self) -> String {
        quoted(&self.to_string_lossy())
    }

    fn located_in(self, directory: Option<&Path>) -> Self {
        match directory {
            Some(directory) => directory.join(self),
            None => self,
        }
    }

    fn show_absolute(&self) -> String {
        absolute(self).show()
    }
}

/// An optional value: absent is written as an empty string.
impl<T: Value> Value for Option<T> {
    const SHAPE: Shape = T::SHAPE;
    const KIND: &'static str = T::KIND;
    const HELP: &'static str = T::HELP;

    fn parse(text: &str) -> Result<Self, String> {
        let is_there = !text.trim().is_empty();
        is_there.then(|| T::parse(text)).transpose()
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), T::show)
    }

    fn located_in(self, directory: Option<&Path>) -> Self {
        self.map(|value| value.located_in(directory))
    }

    fn show_absolute(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), T::show_absolute)
    }
}

/// Makes a path absolute, if the working directory is known.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl Value for Duration {
    const SHAPE: Shape = Shape::Text;
    const KIND: &'static str = "duration";
    const HELP: &'static str =
        "write a number with its unit, such as \"500ms\", \"15s\", \"10m\", \"2h\" or \"30d\"";

    fn parse(text: &str) -> Result<Self, String> {
        units::parse_duration(text)
    }

    fn show(&self) -> String {
        quoted(&units::show_duration(*self))
    }
}

impl Value for ByteSize {
    const SHAPE: Shape = Shape::TextOrInteger;
    const KIND: &'static str = "size";
    const HELP: &'static str =
        "write a whole number with its unit, such as \"64KiB\", \"1MiB\" or \"10GiB\"";

    fn parse(text: &str) -> Result<Self, String> {
        units::parse_size(text)
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// Whole numbers of several widths.
macro_rules! counts {
    ($($type:ty),+) => {$(
        impl Value for $type {
            const SHAPE: Shape = Shape::Integer;
            const KIND: &'static str = "whole number";
            const HELP: &'static str = "write a whole number, such as 100";

            fn parse(text: &str) -> Result<Self, String> {
                text.trim()
                    .parse()
                    .map_err(|_| format!("`{text}` is not a whole number"))
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )+};
}
counts!(usize, u32, u64);

/// Types whose values are a few fixed words.
macro_rules! words {
    ($($type:ty, $kind:literal, $help:literal: $($word:literal => $value:path),+;)+) => {$(
        impl Value for $type {
            const SHAPE: Shape = Shape::Text;
            const KIND: &'static str = $kind;
            const HELP: &'static str = $help;

            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($value),)+
                    // A URL is not repeated, because it may hold a password.
                    _ if text.contains([':', '/', '@']) => {
                        Err("it is an address, not a word".to_owned())
                    }
                    _ => Err(format!(concat!("`{}` is not a ", $kind), text)),
                }
            }

            fn show(&self) -> String {
                quoted(match self {
                    $($value => $word,)+
                })
            }
        }
    )+};
}
words! {
    OldEvents, "rule", "write \"refuse\" or \"accept\"":
        "refuse" => OldEvents::Refuse, "accept" => OldEvents::Accept;
    Format, "log format", "write \"text\" or \"json\"":
        "text" => Format::Text, "json" => Format::Json;
    Level, "log level", "write \"error\", \"warn\", \"info\", \"debug\" or \"trace\"":
        "error" => Level::Error, "warn" => Level::Warn, "info" => Level::Info,
        "debug" => Level::Debug, "trace" => Level::Trace;
    ClientCertificates, "rule", "write \"required\" or \"optional\"":
        "required" => ClientCertificates::Required, "optional" => ClientCertificates::Optional;
}

/// The type of a list's items.
trait Item: Sized {
    const KIND: &'static str;
    const HELP: &'static str;

    fn parse(text: &str) -> Result<Self, String>;

    fn show(&self) -> String;
}

impl<T: Item> Value for Vec<T> {
    const SHAPE: Shape = Shape::List;
    const KIND: &'static str = T::KIND;
    const HELP: &'static str = T::HELP;

    fn parse(text: &str) -> Result<Self, String> {
        items(text).map(T::parse).collect()
    }

    fn show(&self) -> String {
        let items: Vec<String> = self.iter().map(|item| quoted(&item.show())).collect();
        format!("[{}]", items.join(", "))
    }
}

impl Item for Network {
    const KIND: &'static str = "list of networks";
    const HELP: &'static str =
        "write addresses or networks such as [\"10.0.0.0/8\"], or in a variable `10.0.0.0/8,::1`";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse::<Self>().map_err(|error| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Item for AllowedSource {
    const KIND: &'static str = Network::KIND;
    const HELP: &'static str = "write networks such as [\"prelude\", \"10.0.0.0/8\"], or in a variable `prelude,10.0.0.0/8`; \"prelude\" is the addresses that Prelude documents";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "prelude" => Ok(Self::Prelude),
            _ => <Network as Item>::parse(text).map(Self::Network),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Prelude => "prelude".to_owned(),
            Self::Network(network) => network.to_string(),
        }
    }
}

impl Item for WebOrigin {
    const KIND: &'static str = "list of origins";
    const HELP: &'static str = "write what a browser sends as `Origin`, such as [\"https://app.example.com\"], or [\"*\"] for every site";

    /// A scheme, a host and an optional port, as browsers send it.
    fn parse(text: &str) -> Result<Self, String> {
        let is_origin = || {
            let (scheme, rest) = text.split_once("://")?;
            let is_host = !rest.is_empty() && !rest.contains(['/', '?', '#', '@', ' ', '*']);
            (matches!(scheme, "http" | "https") && is_host).then_some(())
        };
        if text == "*" || is_origin().is_some() {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        Err(format!("`{text}` is not an origin"))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// The items of a joined array, or of a list in a variable. A variable may be written like an array, so
/// that `[]` can say that the list is empty: an empty variable counts as absent.
fn items(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim();
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let items = inner.unwrap_or(text).split(',');
    items
        .map(|item| item.trim().trim_matches('"'))
        .filter(|item| !item.is_empty())
}

/// A TOML string. All control characters are escaped; TOML requires that only below U+0080.
pub(crate) fn quoted(text: &str) -> String {
    if !text.contains(plain::steers) {
        return toml::Value::String(text.to_owned()).to_string();
    }
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            // None of them is above U+FFFF.
            _ if plain::steers(character) => {
                quoted.push_str(&format!("\\u{:04X}", u32::from(character)));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_reads_back_the_same_and_steers_no_terminal() {
        let text = "a\\b\"c'\u{1b}[31m\u{9b}\u{202e}\n\u{7f}é";
        let quoted = quoted(text);
        assert!(!quoted.contains(plain::steers), "{quoted:?}");
        let read: toml::Value = quoted.parse().unwrap();
        assert_eq!(read.as_str(), Some(text));
    }
}
