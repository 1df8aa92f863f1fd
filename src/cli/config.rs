//! `config show` and `config check`: what the bridge would run with, and whether a file is good.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::{
    config::{self, Config},
    credentials, plain,
};

use super::{
    exit::{self, Exit, Failure},
    settings,
};

/// `config`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the settings that `serve` would run with, and where each comes from
    ///
    /// The output is a configuration file that means the same. Tokens are never printed, only
    /// where they are.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Box<Show>),
    /// Check a configuration file, and name every fault with its line and remedy
    ///
    /// The file is judged by itself: variables that set single settings are left out, those that
    /// hold tokens are read.
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Show {
    /// How to print them
    #[arg(long, value_enum, default_value_t = Output::Toml)]
    output: Output,

    #[command(flatten)]
    settings: settings::Args,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// A configuration file with origins as comments
    Toml,
    /// One JSON object
    Json,
}

const SHOW_EXAMPLES: &str = "\
Examples:
  The defaults, and what the environment changes:
    prelude-bridge config show
  What one file and one flag come to:
    prelude-bridge config show --config prelude-bridge.toml --store memory
  For a program:
    prelude-bridge config show --output json | jq '.settings[] | {key, origin}'";

const CHECK_EXAMPLES: &str = "\
Examples:
  Before a restart:
    prelude-bridge config check prelude-bridge.toml && systemctl restart prelude-bridge
  A token that the service gets from its environment has to be there for the check too:
    SHOP_TOKEN=anything prelude-bridge config check prelude-bridge.toml";

/// Runs the command.
///
/// # Errors
/// A configuration with faults (exit code 2), or a stdout that cannot be written to.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Show(show) => {
            let resolved = show.settings.resolve()?;
            exit::print(&match show.output {
                Output::Toml => resolved.to_toml(),
                Output::Json => format!("{:#}\n", resolved.to_json()),
            })
        }
        Command::Check { file } => {
            let name = plain::escaped(&file.to_string_lossy()).into_owned();
            let config = config::resolve(&settings::sources_of_file(file))?.servable()?;
            check_credentials(&config)?;
            let ids: Vec<&str> = config.apps.iter().map(|app| app.id.as_str()).collect();
            exit::print(&format!("{name} is good; apps: {}\n", ids.join(", ")))
        }
    }
}

/// What `serve` would refuse in the credentials file, and what it would warn of.
fn check_credentials(config: &Config) -> Result<(), Failure> {
    let Some(path) = config.credentials_options().file else {
        return Ok(());
    };
    let file = credentials::File::new(path);
    let document = file.document().map_err(|error| {
        Failure::new(Exit::Usage, plain::words(error)).help("correct the credentials file")
    })?;
    for warning in document.unwrap_or_default().warnings {
        exit::warn(&plain::words(format!(
            "{}: {warning}",
            file.path().display()
        )));
    }
    Ok(())
}
