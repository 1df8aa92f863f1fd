//! The command line: one definition, from which help, man page and completions are made, and the match
//! that calls each command. What a command does is in its own file.

mod access;
pub mod bench;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod exit;
pub mod log;
pub mod manual;
mod near;
mod public_file;
pub mod serve;
pub mod settings;
mod signing_key;
pub mod simulate;
pub mod tail;
mod terminal;
pub mod token;
pub mod trigger;
pub mod verify;
pub mod webhook;

use std::{ffi::OsString, future::Future, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

pub use self::exit::{Exit, Failure};

/// Receives Prelude's signed webhook batches, makes them durable, and streams them over gRPC
#[derive(Debug, Parser)]
#[command(
    name = "prelude-bridge",
    version,
    long_version = VERSION,
    after_help = EXAMPLES,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge
    ///
    /// Receives webhook batches, stores their events, and streams them to subscribers until it gets
    /// SIGTERM or Ctrl-C; a second signal ends it at once.
    #[command(after_help = serve::EXAMPLES)]
    Serve(serve::Args),
    /// Subscribe to a bridge and print events
    #[command(after_help = tail::EXAMPLES)]
    Tail(tail::Args),
    /// Act as Prelude: key sets, activation, signed batches, retries
    ///
    /// For trying and testing a bridge without a Prelude account. Ends on Ctrl-C and prints a ledger of
    /// what was sent, how often, and what was acknowledged.
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(simulate::Args),
    /// Send one realistic signed event to a bridge that trusts the simulator's key
    #[command(after_help = trigger::EXAMPLES)]
    Trigger(trigger::Args),
    /// Run everything in one process: simulator, bridge and tail
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::Args),
    /// Explain one captured delivery: which key, which salt, or what is wrong with it
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::Args),
    /// Find out what prevents a bridge from working, and what to do about it
    ///
    /// Changes nothing. Use the same flags and environment as for `serve`.
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Args),
    /// Measure this program on this machine: ingest, fan-out, latency, catch-up, idle memory
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::Args),
    /// Register webhooks with Prelude: make, list, activate, change, delete, or all in one
    Webhook(webhook::Args),
    /// Control who may subscribe: create, list and revoke tokens
    Token(token::Args),
    /// Show or check the configuration
    Config(config::Args),
    /// Check the files of a log, or copy a log to another store
    Log(log::Args),
    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(manual::CompletionsArgs),
    /// Print the man page
    #[command(after_help = MAN_EXAMPLES)]
    Man(manual::ManArgs),
}

/// The version, the commit with its date, and the target.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BUILD_COMMIT"),
    " ",
    env!("BUILD_DATE"),
    ", ",
    env!("BUILD_TARGET"),
    ")"
);

const EXAMPLES: &str = "\
Examples:
  See it work, with nothing set up:
    prelude-bridge demo
  Run the bridge for one app:
    PRELUDE_BRIDGE_APP_ID=54e9ujn PRELUDE_BRIDGE_VERIFICATION_TOKEN=… prelude-bridge serve
  Watch what arrives:
    prelude-bridge tail --type 'user.session.*' --since 10m
  See what it runs with:
    prelude-bridge config show

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 server unreachable, 4 credential
refused, 5 cursor expired.";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  For this session of bash:
    source <(prelude-bridge completions bash)
  For zsh, from the next session on:
    prelude-bridge completions zsh > \"${fpath[1]}/_prelude-bridge\"
  For fish:
    prelude-bridge completions fish > ~/.config/fish/completions/prelude-bridge.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  Read it:
    prelude-bridge man | man -l -
  Install a page for each command:
    prelude-bridge man --dir /usr/local/share/man/man1";

/// Runs the program with its arguments, the first being its name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => match dispatch(cli.command) {
            Ok(code) => code,
            Err(failure) => {
                failure.report();
                failure.exit.into()
            }
        },
        Err(error) => {
            exit::report_usage(&error);
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8))
        }
    }
}

/// Runs the command and returns its exit code.
fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(args) => block_on(serve::run(args))?,
        Command::Tail(args) => block_on(tail::run(args))?,
        Command::Simulate(args) => block_on(simulate::run(args))?,
        Command::Trigger(args) => block_on(trigger::run(args))?,
        Command::Demo(args) => block_on(demo::run(args))?,
        Command::Verify(args) => return Ok(block_on(verify::run(args))?.into()),
        Command::Doctor(args) => return Ok(block_on(doctor::run(args))?.into()),
        Command::Bench(args) => block_on(bench::run(args))?,
        Command::Webhook(args) => block_on(webhook::run(args))?,
        Command::Token(args) => token::run(args)?,
        Command::Config(args) => block_on(config::run(args))?,
        Command::Log(args) => return Ok(log::run(args)?.into()),
        Command::Completions(args) => manual::completions(&args, Cli::command())?,
        Command::Man(args) => manual::man(args, Cli::command())?,
    }
    Ok(Exit::Done.into())
}

/// Runs an async command on a runtime that ends with it.
fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            let cause = format!("the runtime cannot start: {error}");
            Failure::new(Exit::Failed, cause)
                .help("check the limits on threads and open files of this user")
        })?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound_and_every_command_and_flag_is_explained() {
        let mut definition = Cli::command();
        definition.clone().debug_assert();
        definition.build();
        explained(&definition);
    }

    fn explained(command: &clap::Command) {
        let name = command.get_name();
        assert!(command.get_about().is_some(), "{name}");
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{name} {}",
                argument.get_id()
            );
        }
        let is_ours = |command: &&clap::Command| command.get_name() != "help";
        let mut commands = command.get_subcommands().filter(is_ours).peekable();
        let examples = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(
            commands.peek().is_some() || examples.contains("Examples:"),
            "{name}"
        );
        commands.for_each(explained);
    }

    /// A conflict is between flags that were typed. To clap a variable is as good as a flag, so a
    /// variable that is exported for another command would make a command line invalid.
    #[test]
    fn a_variable_never_conflicts_with_a_flag() {
        let mut definition = Cli::command();
        definition.build();
        without_conflicts(&definition);
    }

    fn without_conflicts(command: &clap::Command) {
        for argument in command.get_arguments() {
            for other in command.get_arg_conflicts_with(argument) {
                assert!(
                    argument.get_env().is_none() && other.get_env().is_none(),
                    "{} {} {}",
                    command.get_name(),
                    argument.get_id(),
                    other.get_id()
                );
            }
        }
        command.get_subcommands().for_each(without_conflicts);
    }

    #[test]
    fn examples_are_command_lines_that_parse() {
        let mut definition = Cli::command();
        definition.build();
        let mut count = 0;
        try_examples(&definition, &mut count);
        assert!(count > 10, "{count}");
    }

    /// Every line of an example from `prelude-bridge` on, up to whatever the shell does with it.
    fn try_examples(command: &clap::Command, count: &mut usize) {
        let examples = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        for line in examples.lines().filter(|line| line.starts_with("    ")) {
            let Some(start) = line.find("prelude-bridge ") else {
                continue;
            };
            let words = line.split_at(start).1.split(['|', '&', '>', ')']).next();
            let words = words.unwrap_or_default().split_whitespace();
            let words = words.map(|word| OsString::from(word.trim_matches('\'')));
            let parsed = Cli::try_parse_from(words);
            assert!(
                parsed.is_ok(),
                "{line}: {}",
                parsed.err().map(|e| e.to_string()).unwrap_or_default()
            );
            *count += 1;
        }
        for command in command.get_subcommands() {
            try_examples(command, count);
        }
    }
}
