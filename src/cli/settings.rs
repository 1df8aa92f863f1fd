//! The flags that set settings of the bridge, shared by every command that runs or shows one.
//! Collects what was typed; [`crate::config`] says what it means.

use std::{collections::BTreeMap, env, path::PathBuf};

use clap::builder::NonEmptyStringValueParser;

use crate::config::{self, Resolved, Sources};

use super::exit::{self, Failure};

/// Settings on the command line. All are text here, so that a bad one is reported together with
/// whatever else is wrong, and alike wherever it was written.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
#[group(skip)]
pub struct Args {
    /// Read settings from this TOML file [env: PRELUDE_BRIDGE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Take Prelude's deliveries here [env: PRELUDE_BRIDGE_WEBHOOK_LISTEN] [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDRESS", value_parser = NonEmptyStringValueParser::new())]
    webhook_listen: Option<String>,

    /// Serve subscribers here [env: PRELUDE_BRIDGE_GRPC_LISTEN] [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESS", value_parser = NonEmptyStringValueParser::new())]
    grpc_listen: Option<String>,

    /// Serve health and metrics here [env: PRELUDE_BRIDGE_ADMIN_LISTEN] [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS", value_parser = NonEmptyStringValueParser::new())]
    admin_listen: Option<String>,

    /// Keep the log and the key sets here [env: PRELUDE_BRIDGE_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIRECTORY", value_parser = NonEmptyStringValueParser::new())]
    data_dir: Option<String>,

    /// Keep events in: embedded (files in the data directory) or memory (for trials, lost on
    /// exit) [env: PRELUDE_BRIDGE_STORE] [default: embedded]
    #[arg(long, value_name = "STORE", value_parser = NonEmptyStringValueParser::new())]
    store: Option<String>,

    /// Let subscribers in without a credential, from everywhere
    /// [env: PRELUDE_BRIDGE_ALLOW_ANONYMOUS]
    #[arg(long)]
    allow_anonymous: bool,

    /// How long requests and streams may take to finish after SIGTERM
    /// [env: PRELUDE_BRIDGE_DRAIN_TIMEOUT] [default: 15s]
    #[arg(long, value_name = "DURATION", value_parser = NonEmptyStringValueParser::new())]
    drain_timeout: Option<String>,

    /// Log as: text or json [env: PRELUDE_BRIDGE_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = NonEmptyStringValueParser::new())]
    log_format: Option<String>,

    /// Log from this level: error, warn, info, debug or trace [env: PRELUDE_BRIDGE_LOG_LEVEL]
    /// [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = NonEmptyStringValueParser::new())]
    log_level: Option<String>,
}

impl Args {
    /// What these flags, the environment and the file mean together. Warnings go to stderr.
    ///
    /// # Errors
    /// Everything that is wrong with any of them; exit code 2.
    pub fn resolve(self) -> Result<Resolved, Failure> {
        let resolved = config::resolve(&self.sources())?;
        for warning in &resolved.warnings {
            exit::warn(warning);
        }
        Ok(resolved)
    }

    /// The same for a command that reports faults and warnings itself.
    ///
    /// # Errors
    /// As [`Args::resolve`].
    pub fn resolve_quietly(self) -> Result<Resolved, config::Error> {
        config::resolve(&self.sources())
    }

    fn sources(self) -> Sources {
        let typed = [
            ("webhook_listen", self.webhook_listen),
            ("grpc_listen", self.grpc_listen),
            ("admin_listen", self.admin_listen),
            ("data_dir", self.data_dir),
            ("store", self.store),
            (
                "allow_anonymous",
                self.allow_anonymous.then(|| "true".to_owned()),
            ),
            ("drain_timeout", self.drain_timeout),
            ("log_format", self.log_format),
            ("log_level", self.log_level),
        ];
        let flags = typed.into_iter();
        Sources {
            file: self.config.or_else(file_of_environment),
            flags: flags.filter_map(|(key, text)| Some((key, text?))).collect(),
            environment: environment(),
        }
    }
}

/// The sources of a command that runs no bridge and needs to know only where its files are.
pub fn sources_of_files(file: Option<PathBuf>, data_dir: Option<String>) -> Sources {
    let flags = data_dir.into_iter().map(|text| ("data_dir", text));
    Sources {
        file: file.or_else(file_of_environment),
        flags: flags.collect(),
        environment: environment(),
    }
}

/// The sources of a file that is to be judged alone.
pub fn sources_of_file(file: PathBuf) -> Sources {
    let sources = Sources {
        file: Some(file),
        flags: BTreeMap::new(),
        environment: environment(),
    };
    sources.without_setting_variables()
}

fn file_of_environment() -> Option<PathBuf> {
    let name = env::var_os(config::CONFIG_VARIABLE)?;
    (!name.is_empty()).then(|| name.into())
}

fn environment() -> BTreeMap<std::ffi::OsString, std::ffi::OsString> {
    env::vars_os().collect()
}
