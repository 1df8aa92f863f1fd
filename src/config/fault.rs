//! The faults of a configuration, each with its origin, its key and its remedy. Owns the wording
//! around a fault; the code that finds one provides the sentence.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::plain;

/// Why a configuration was refused: all faults, in the order of the file.
#[derive(Debug, thiserror::Error)]
#[error("{}", summary(.faults))]
pub struct Error {
    /// At least one.
    pub faults: Vec<Fault>,
}

/// One fault of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where the value was written.
    pub origin: Origin,
    /// One sentence that names the key and says what is wrong. It never contains the value of a key for
    /// secrets; the values of other keys are shown by [`plain::configured`].
    pub message: String,
    /// What to do about it.
    pub help: String,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the configuration file.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// Counted from one; `None` when the fault is the whole file's.
        line: Option<usize>,
    },
    /// An environment variable, by name.
    Environment(String),
    /// A flag on the command line, with its dashes.
    Flag(String),
    /// The program's default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                path,
                line: Some(line),
            } => write!(formatter, "{}:{line}", shown(path)),
            Self::File { path, line: None } => formatter.write_str(&shown(path)),
            Self::Environment(name) => write!(formatter, "environment {name}"),
            Self::Flag(name) => write!(formatter, "flag {name}"),
            Self::Default => formatter.write_str("default"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            // A fault of a missing value has no position.
            Origin::Default => formatter.write_str(&plain::configured(&self.message)),
            origin => write!(formatter, "{origin}: {}", plain::configured(&self.message)),
        }
    }
}

/// Escapes control characters, so that a file name cannot end the comment or line that it is in.
fn shown(path: &Path) -> String {
    plain::configured(path.display())
}

fn summary(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults
        .iter()
        .map(|fault| format!("{fault} ({})", fault.help))
        .collect();
    lines.join("; ")
}
