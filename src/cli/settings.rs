//! The flags that set settings of the bridge, shared by every command that runs or shows one. Says
//! which settings have a flag; their help follows from how [`crate::config`] declares them.

use std::{collections::BTreeMap, env, path::PathBuf};

use clap::{
    Arg, ArgAction, ArgMatches, Command, FromArgMatches, builder::NonEmptyStringValueParser,
    value_parser,
};

use crate::config::{self, Declared, Resolved, Sources};

use super::exit::{self, Failure};

/// The settings that have a flag.
const FLAGS: [&str; 9] = [
    "webhook_listen",
    "grpc_listen",
    "admin_listen",
    "data_dir",
    "store.url",
    "allow_anonymous",
    "drain_timeout",
    "log_format",
    "log_level",
];
const CONFIG: &str = "config";

/// Settings on the command line. All are text here, so that a bad one is reported together with
/// whatever else is wrong, and alike wherever it was written.
#[derive(Clone, Debug, Default)]
pub struct Args {
    file: Option<PathBuf>,
    flags: BTreeMap<&'static str, String>,
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Read settings from this TOML file [env: PRELUDE_BRIDGE_CONFIG]");
        let flags = config::declared().into_iter();
        let flags = flags.filter(|declared| FLAGS.contains(&declared.name.key));
        let arguments = std::iter::once(file).chain(flags.map(|declared| flag(&declared)));
        command.args(arguments.map(|argument| argument.help_heading("Settings")))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = BTreeMap::new();
        for key in FLAGS {
            let text = match matches.try_get_one::<bool>(key) {
                Ok(is_set) => is_set.filter(|is_set| **is_set).map(bool::to_string),
                Err(_) => matches.get_one::<String>(key).cloned(),
            };
            flags.extend(text.map(|text| (key, text)));
        }
        Ok(Self {
            file: matches.get_one(CONFIG).cloned(),
            flags,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The flag of a setting.
fn flag(declared: &Declared) -> Arg {
    let key = declared.name.key;
    let mut help = format!("{} [env: {}]", declared.summary(), config::variable_of(key));
    let argument = Arg::new(key).long(config::flag_of(key).trim_start_matches('-').to_owned());
    if declared.default == "false" {
        return argument.action(ArgAction::SetTrue).help(help);
    }
    help.push_str(&format!(
        " [default: {}]",
        declared.default.trim_matches('"')
    ));
    let noun = declared.kind.rsplit(' ').next().unwrap_or_default();
    argument
        .value_name(noun.to_uppercase())
        .value_parser(NonEmptyStringValueParser::new())
        .help(help)
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
        Sources {
            file: self.file.or_else(file_of_environment),
            flags: self.flags,
            environment: environment(),
            is_file_alone: false,
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
        is_file_alone: false,
    }
}

/// The sources of a command that runs no bridge and needs a store. A file counts alone, so that two stores can
/// have two logins; a URL replaces the one that a file or the environment has.
pub fn sources_of_store(file: Option<PathBuf>, url: Option<String>) -> Sources {
    let mut sources = match file {
        Some(file) => sources_of_file(file),
        None => Sources {
            environment: environment(),
            ..Sources::default()
        },
    };
    sources.flags = url.into_iter().map(|url| ("store.url", url)).collect();
    sources
}

/// The sources of a file that is to be judged alone.
pub fn sources_of_file(file: PathBuf) -> Sources {
    let sources = Sources {
        file: Some(file),
        environment: environment(),
        ..Sources::default()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Args {
        let command = <Args as clap::Args>::augment_args(Command::new("serve"));
        let matches = command.try_get_matches_from(line.split(' ')).unwrap();
        Args::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn every_flag_sets_its_setting_and_is_explained() {
        let declared = config::declared();
        let command = <Args as clap::Args>::augment_args(Command::new("serve"));
        for key in FLAGS {
            let declared = declared.iter().find(|declared| declared.name.key == key);
            let declared = declared.unwrap_or_else(|| panic!("{key} is no setting"));
            let argument = command.get_arguments().find(|one| one.get_id() == key);
            let help = argument.unwrap().get_help().unwrap().to_string();
            assert!(help.starts_with(&declared.summary()), "{help}");
            let flag = config::flag_of(key);
            let default = declared.default.trim_matches('"');
            let (line, expected) = match default {
                "false" => (format!("serve {flag}"), "true"),
                _ => (format!("serve {flag} {default}"), default),
            };
            assert_eq!(
                parse(&line).flags,
                BTreeMap::from([(key, expected.to_owned())])
            );
        }
        let args = parse("serve --config bridge.toml");
        assert_eq!(args.file, Some("bridge.toml".into()));
        assert!(args.flags.is_empty());
    }
}
