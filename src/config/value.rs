//! How each type of setting is read and shown, with the remedy when it cannot be read.
//! Knows nothing of keys, files or precedence.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    AllowedSource, AllowedSources, Store, WebOrigin,
    units::{self, ByteSize},
};
use crate::{
    logging::{Format, Level},
    net::{network::Network, tls::ClientCertificates},
    plain,
};

/// Which of TOML's types a setting may be written as.
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
    /// How it is written in the file.
    const SHAPE: Shape;
    /// What to write instead of what could not be read.
    const HELP: &'static str;

    /// Reads the value, or says in a clause why not.
    fn parse(text: &str) -> Result<Self, String>;

    /// The value in TOML.
    fn show(&self) -> String;
}

impl Value for SocketAddr {
    const SHAPE: Shape = Shape::Text;
    const HELP: &'static str = "write an IP address and a port, such as `127.0.0.1:8080` or `[::]:8080`; port 0 takes a free one";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("`{text}` is not an IP address and a port"))
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// Text that may be empty, which is then as if it were not set.
impl Value for String {
    const SHAPE: Shape = Shape::Text;
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
}

/// A path that need not be there: nothing is written as an empty string.
impl Value for Option<PathBuf> {
    const SHAPE: Shape = Shape::Text;
    const HELP: &'static str = "write a path";

    fn parse(text: &str) -> Result<Self, String> {
        Ok((!text.trim().is_empty()).then(|| PathBuf::from(text)))
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), PathBuf::show)
    }
}

/// An empty string leaves it to whether there is an issuer to judge certificates by.
impl Value for Option<ClientCertificates> {
    const SHAPE: Shape = Shape::Text;
    const HELP: &'static str = "write \"required\" or \"optional\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(None),
            "required" => Ok(Some(ClientCertificates::Required)),
            "optional" => Ok(Some(ClientCertificates::Optional)),
            _ => Err(format!("`{text}` is neither")),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            None => "",
            Some(ClientCertificates::Required) => "required",
            Some(ClientCertificates::Optional) => "optional",
        })
    }
}

impl Value for Duration {
    const SHAPE: Shape = Shape::Text;
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
    const HELP: &'static str =
        "write a whole number with its unit, such as \"64KiB\", \"1MiB\" or \"10GiB\"";

    fn parse(text: &str) -> Result<Self, String> {
        units::parse_size(text)
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for usize {
    const SHAPE: Shape = Shape::Integer;
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

impl Value for Store {
    const SHAPE: Shape = Shape::Text;
    const HELP: &'static str =
        "write \"embedded\" (files in the data directory) or \"memory\" (for trials, lost on exit)";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "memory" => Ok(Self::Memory),
            // The rest of the address is not repeated: it may hold a password.
            _ if text.starts_with("nats://") || text.starts_with("tls://") => {
                Err("a NATS server as the store is not in this version".to_owned())
            }
            _ => Err("it is none of the stores".to_owned()),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::Embedded => "embedded",
            Self::Memory => "memory",
        })
    }
}

impl Value for Format {
    const SHAPE: Shape = Shape::Text;
    const HELP: &'static str = "write \"text\" or \"json\"";

    fn parse(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| format!("`{text}` is not a log format"))
    }

    fn show(&self) -> String {
        quoted(self.name())
    }
}

impl Value for Level {
    const SHAPE: Shape = Shape::Text;
    const HELP: &'static str = "write \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";

    fn parse(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| format!("`{text}` is not a log level"))
    }

    fn show(&self) -> String {
        quoted(self.name())
    }
}

impl Value for AllowedSources {
    const SHAPE: Shape = Shape::List;
    const HELP: &'static str = "write networks such as [\"prelude\", \"10.0.0.0/8\"], or in a variable `prelude,10.0.0.0/8`; \"prelude\" is the addresses that Prelude documents";

    fn parse(text: &str) -> Result<Self, String> {
        let parse = |item: &str| match item {
            "prelude" => Ok(AllowedSource::Prelude),
            _ => item
                .parse()
                .map(AllowedSource::Network)
                .map_err(|error| error.to_string()),
        };
        items(text).map(parse).collect::<Result<_, _>>().map(Self)
    }

    fn show(&self) -> String {
        let items = self.0.iter().map(|source| match source {
            AllowedSource::Prelude => "prelude".to_owned(),
            AllowedSource::Network(network) => network.to_string(),
        });
        array(items)
    }
}

impl Value for Vec<Network> {
    const SHAPE: Shape = Shape::List;
    const HELP: &'static str =
        "write addresses or networks such as [\"10.0.0.0/8\"], or in a variable `10.0.0.0/8,::1`";

    fn parse(text: &str) -> Result<Self, String> {
        let parse = |item: &str| item.parse::<Network>().map_err(|error| error.to_string());
        items(text).map(parse).collect()
    }

    fn show(&self) -> String {
        array(self.iter().map(Network::to_string))
    }
}

impl Value for Vec<WebOrigin> {
    const SHAPE: Shape = Shape::List;
    const HELP: &'static str = "write what a browser sends as `Origin`, such as [\"https://app.example.com\"], or [\"*\"] for every site";

    fn parse(text: &str) -> Result<Self, String> {
        items(text).map(WebOrigin::parse).collect()
    }

    fn show(&self) -> String {
        array(self.iter().map(|origin| origin.0.clone()))
    }
}

impl WebOrigin {
    /// Scheme, host and maybe a port, and nothing after them: that is all a browser sends.
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
}

/// The items of a joined array, or of a list in a variable, which may be written like an array:
/// `[]` there says that there is nothing, where an empty variable counts as not set.
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

fn array(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.map(|item| quoted(&item)).collect();
    format!("[{}]", items.join(", "))
}

/// A TOML string, with escapes for whatever steers a terminal: TOML asks for that only below U+0080.
pub(super) fn quoted(text: &str) -> String {
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
