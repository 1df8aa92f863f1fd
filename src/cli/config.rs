//! `config show` and `config check`: the settings in force, and whether a file is valid.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::{config, plain, server};

use super::{
    exit::{self, Exit, Failure},
    serve, settings,
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
    /// Looks at everything that `serve` looks at when it starts: certificates and their keys, key
    /// files, credentials, the data directory and the log in it. Takes no port, fetches nothing, and
    /// may be run beside a bridge that runs; `doctor` looks at those things too. The file is judged by
    /// itself: variables that set single settings are left out, those that hold tokens are read.
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
pub async fn run(args: Args) -> Result<(), Failure> {
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
            let resolved = config::resolve(&settings::sources_of_file(file))?;
            let warnings = resolved.warnings.clone();
            let config = resolved.servable()?;
            let findings = server::check(&config).await;
            for warning in warnings.iter().chain(&findings.warnings) {
                exit::warn(&plain::configured(warning));
            }
            let failures = findings.faults.iter().map(serve::failure);
            if let Some(failure) = failures.reduce(Failure::and) {
                return Err(failure.of(Exit::Usage));
            }
            let sources = config::list_sources(&config.sources);
            exit::print(&format!("{name} is good; {sources}\n"))
        }
    }
}
