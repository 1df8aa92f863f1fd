//! `serve`: the bridge, until it is told to stop.

use crate::logging;

use super::{
    exit::{Exit, Failure},
    settings,
};

/// `serve`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: settings::Args,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  One app, no file:
    export PRELUDE_BRIDGE_APP_ID=54e9ujn
    export PRELUDE_BRIDGE_VERIFICATION_TOKEN=…
    prelude-bridge serve
  Several apps from a file, and logs for a collector:
    prelude-bridge serve --config /etc/prelude-bridge.toml --log-format json
  Subscribers on other machines:
    prelude-bridge serve --grpc-listen 0.0.0.0:50051
  For a trial, in memory, on a free port that the `ready` line names:
    prelude-bridge serve --store memory --webhook-listen 127.0.0.1:0

Every key of the file is explained in prelude-bridge.example.toml. A flag wins over its variable, a
variable over the file. Keys without a flag have a variable too: retention.age_max is
PRELUDE_BRIDGE_RETENTION_AGE_MAX. `prelude-bridge config show` prints what they come to.";

/// Runs the bridge.
///
/// # Errors
/// A configuration with faults (exit code 2), or whatever keeps the bridge from running.
#[expect(clippy::unused_async, reason = "the server is awaited here")]
pub async fn run(args: Args) -> Result<(), Failure> {
    let config = args.settings.resolve()?.servable()?;
    logging::start(config.logging)
        .map_err(|error| Failure::new(Exit::Failed, error).help("start the program once"))?;
    Err(Failure::new(
        Exit::Failed,
        "the server is not part of this build",
    ))
}
