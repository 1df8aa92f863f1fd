//! Owns what `simulate` tells the person at the terminal: what it plays, how it goes, and what a
//! failed attempt most likely means.

use std::{convert::Infallible, io::Write as _, time::Duration};

use super::{Args, DEFAULT_TOKEN};
use crate::{
    cli::exit::warn,
    simulator::{
        Simulator,
        ledger::{AttemptResult, Totals},
    },
};

/// How often a run says how it goes.
const PROGRESS_PAUSE: Duration = Duration::from_secs(5);

/// Says now and then how it goes, for as long as it is asked to.
pub(super) async fn progress(simulator: &Simulator) -> Infallible {
    let mut before = Totals::default();
    loop {
        tokio::time::sleep(PROGRESS_PAUSE).await;
        let now = simulator.totals();
        if now == before {
            continue;
        }
        let (sent, acknowledged) = (now.events, now.events_acknowledged);
        let waiting = simulator.outstanding();
        print_note(&format!(
            "{sent} events sent, {acknowledged} acknowledged, {waiting} batches on their way"
        ));
        if now.failed_attempts > before.failed_attempts
            && let Some(failure) = now.latest_failure
        {
            let failed = now.failed_attempts - before.failed_attempts;
            warn(&format!(
                "{failed} attempts failed, the latest: {failure}. {}",
                hint(failure)
            ));
        }
        before = now;
    }
}

/// What a failed attempt most likely means.
pub(super) fn hint(result: AttemptResult) -> &'static str {
    match result {
        AttemptResult::Status(401) => {
            "the receiver does not trust this simulator's key: start it with the command above"
        }
        AttemptResult::Status(404) => {
            "the receiver does not know this app, or the path is another one"
        }
        AttemptResult::Status(422) => "the receiver cannot read the batch as one",
        AttemptResult::Status(429 | 503) => {
            "the receiver asks to be tried again later; its log says why"
        }
        AttemptResult::Status(_) => "the receiver's log says why",
        AttemptResult::AnswerLost(_) => "the simulator lost the answer on purpose",
        AttemptResult::TimedOut => "the receiver took longer than Prelude waits",
        AttemptResult::Unreachable => "check that the receiver is running",
        AttemptResult::Broken => "the connection ended early: was the receiver restarted?",
    }
}

pub(super) fn introduce(args: &Args, simulator: &Simulator) {
    let mut text = format!(
        "A stand-in for Prelude, seed {}. Management API: {}\n",
        simulator.seed(),
        simulator.api_url()
    );
    for app in simulator.app_ids() {
        text.push_str(&format!(
            "Key set of app {app}: {}\n",
            simulator.jwks_url(app)
        ));
    }
    text.push_str("A bridge that trusts it is started with\n\n");
    text.push_str(&serve_command(args, simulator));
    print_note(&text);
}

/// The command that starts a bridge for this simulator. A token that was given is not repeated.
fn serve_command(args: &Args, simulator: &Simulator) -> String {
    let token = if args.token == DEFAULT_TOKEN {
        DEFAULT_TOKEN
    } else {
        "…"
    };
    let apps: Vec<&str> = simulator.app_ids().collect();
    if let [app] = apps.as_slice() {
        return format!(
            "  PRELUDE_BRIDGE_APP_ID={app} \\\n  PRELUDE_BRIDGE_VERIFICATION_TOKEN={token} \\\n  \
             PRELUDE_BRIDGE_JWKS_URL={} \\\n  prelude-bridge serve\n",
            simulator.jwks_url(app)
        );
    }
    let mut text =
        format!("  SIMULATED_TOKEN={token} prelude-bridge serve --config FILE\n\nand this FILE\n");
    for app in apps {
        text.push_str(&format!(
            "\n  [[apps]]\n  id = \"{app}\"\n  verification_token_env = \"SIMULATED_TOKEN\"\n  \
             jwks_url = \"{}\"\n",
            simulator.jwks_url(app)
        ));
    }
    text
}

/// Prints a line to stderr. A closed stderr changes nothing.
pub(super) fn print_note(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}
