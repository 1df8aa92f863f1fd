//! `completions` and `man`: the definition of the command line in other forms.

use std::{fs, path::PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::exit::{self, Exit, Failure};

/// `completions`
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to complete in
    #[arg(value_enum)]
    shell: Shell,
}

/// `man`
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write one page for each command into this directory instead; it is created if needed
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

/// Prints a completion script.
///
/// # Errors
/// Stdout cannot be written to.
pub fn completions(args: &CompletionsArgs, mut definition: Command) -> Result<(), Failure> {
    let name = definition.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition, &name, &mut script);
    let script = String::from_utf8_lossy(&script);
    exit::print(&match args.shell {
        Shell::Bash => with_one_label(&script, &name),
        _ => script.into_owned(),
    })
}

/// In its script for bash, `clap_complete` writes the hyphen of our name in two ways: in one where it
/// stores the subcommand, in another where it looks the subcommand up, so that it completes nothing
/// after a subcommand (<https://github.com/clap-rs/clap/issues/6421>). Changes nothing once that is
/// fixed.
fn with_one_label(script: &str, name: &str) -> String {
    let looked_up = format!("{}__subcmd__", name.replace('-', "__subcmd__"));
    let noted = format!("{}__subcmd__", name.replace('-', "__"));
    script.replace(&looked_up, &noted)
}

/// Prints the man page, or writes all of them.
///
/// # Errors
/// Stdout or the directory cannot be written to.
pub fn man(args: ManArgs, definition: Command) -> Result<(), Failure> {
    let Some(directory) = args.dir else {
        let mut page = Vec::new();
        let rendered = Man::new(definition).render(&mut page);
        exit::finish_stdout(rendered)?;
        return exit::print(&String::from_utf8_lossy(&page));
    };
    fs::create_dir_all(&directory)
        .and_then(|()| clap_mangen::generate_to(definition, &directory))
        .map_err(|error| {
            let cause = format!("{} cannot be written to: {error}", directory.display());
            Failure::new(Exit::Failed, cause).help("name a directory that this user may write to")
        })
}
