//! `demo`: simulator, bridge and tail in one process, over real sockets.

use super::exit::{Exit, Failure};

/// `demo`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// End after N events [default: on Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Events a second [default: 10, or 1000 with --count]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: Option<u32>,
}

impl Args {
    /// Events a second: slow enough to read, unless the run is to end.
    pub fn events_per_second(&self) -> u32 {
        let default = if self.count.is_some() { 1000 } else { 10 };
        self.rate.unwrap_or(default)
    }
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Watch events go by until Ctrl-C:
    prelude-bridge demo
  A thousand events, then what was received, delivered and lost:
    prelude-bridge demo --count 1000
  A stream to try consumers with:
    prelude-bridge demo --rate 200";

/// Runs the whole way of an event in this process.
///
/// # Errors
/// Something on the way failed.
#[expect(clippy::unused_async, reason = "the demo is awaited here")]
pub async fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::new(
        Exit::Failed,
        "the demo is not part of this build",
    ))
}
