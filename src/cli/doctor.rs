//! `doctor`: what prevents a bridge from working. Owns how a report is shown; `crate::doctor` makes it.

use anstyle::{AnsiColor, Effects, Style};
use clap::{ValueEnum, builder::NonEmptyStringValueParser};

use super::{
    access,
    exit::{self, Exit, Failure},
    settings,
};
use crate::{
    client,
    doctor::{self, Report, Verdict},
};

/// `doctor`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Send the activation challenge through this URL, as Prelude would; `{app}` in it becomes the
    /// app's id
    #[arg(long, value_name = "URL", value_parser = NonEmptyStringValueParser::new())]
    url: Option<String>,

    /// How to print the report
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,

    #[command(flatten)]
    access: access::Args,

    #[command(flatten)]
    settings: settings::Args,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// A line for each check
    Human,
    /// One JSON object
    Json,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Before the first start:
    prelude-bridge doctor --config prelude-bridge.toml
  With the bridge running, through the URL that Prelude calls:
    prelude-bridge doctor --config prelude-bridge.toml --url https://example.com/webhooks/{app}
  With certificates of an issuer of your own:
    prelude-bridge doctor --config prelude-bridge.toml --ca-file ca.crt
  Only what is wrong, for a program:
    prelude-bridge doctor --output json | jq '.checks[] | select(.verdict == \"fault\")'

Exit codes: 0 all is well, 1 something is not.";

const GOOD: Style = AnsiColor::Green.on_default();
const FAULT: Style = AnsiColor::Red.on_default().bold();
const SKIPPED: Style = Style::new().effects(Effects::DIMMED);
const HELP: Style = AnsiColor::Cyan.on_default().bold();

/// Runs the command: [`Exit::Done`] if no check fails, else [`Exit::Failed`].
///
/// # Errors
/// A stdout that cannot be written to.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let report = doctor::examine(doctor::Options {
        configuration: args.settings.resolve_quietly(),
        public_url: args.url,
        client: args.access.apply(client::Options::new(""))?,
        issuers: access::issuers(args.access.ca_file.as_deref())?,
    })
    .await;
    exit::print(&match args.output {
        Output::Human => lines(&report),
        Output::Json => json(&report)?,
    })?;
    Ok(if report.well {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn lines(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let (style, word) = match check.verdict {
            Verdict::Good => (GOOD, "ok"),
            Verdict::Fault => (FAULT, "FAULT"),
            Verdict::Skipped => (SKIPPED, "-"),
        };
        let name = match &check.app {
            Some(app) => format!("{} of {app}", check.name),
            None => check.name.to_owned(),
        };
        let found = exit::one_line(&check.found);
        text.push_str(&format!("{style}{word:<5}{style:#}  {name}: {found}\n"));
        for remedy in &check.remedies {
            let remedy = exit::one_line(remedy);
            text.push_str(&format!("       {HELP}help:{HELP:#} {remedy}\n"));
        }
    }
    text.push_str(if report.well {
        "\nall is well\n"
    } else {
        "\nnot all is well\n"
    });
    text
}

fn json(report: &Report) -> Result<String, Failure> {
    // Strings and booleans: there is nothing in it that could fail.
    serde_json::to_string(report)
        .map(|text| text + "\n")
        .map_err(|fault| Failure::new(Exit::Failed, fault))
}
