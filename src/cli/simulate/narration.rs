//! Owns what `simulate` tells the person at the terminal: what it plays, how it goes, and what a
//! failed attempt most likely means.

use std::{convert::Infallible, io::Write as _, time::Duration};

use super::{Args, DEFAULT_TOKEN};
use crate::{
    cli::exit::warn,
    simulator::{
        Simulator, SourceKind,
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
            "the receiver does not trust this simulator's key: start it as shown above"
        }
        AttemptResult::Status(404) => {
            "the receiver does not know this app or source, or the path is another one"
        }
        AttemptResult::Status(422) => {
            "the receiver does not accept a body of this form: is the path that of a source of this kind?"
        }
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
        "A simulator of Prelude, seed {}. Management API: {}\n",
        simulator.seed(),
        simulator.api_url()
    );
    for id in simulator.app_ids() {
        text.push_str(&match simulator.kind(id) {
            Ok(SourceKind::Verify | SourceKind::Notify) => {
                format!("Public key of source {id}: {}\n", simulator.pem_url(id))
            }
            Ok(SourceKind::Auth) | Err(_) => {
                format!("Key set of app {id}: {}\n", simulator.jwks_url(id))
            }
        });
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
    let ids: Vec<&str> = simulator.app_ids().collect();
    let sources: Vec<&str> = ids
        .iter()
        .copied()
        .filter(|id| !is_app(simulator, id))
        .collect();
    let mut text = String::new();
    for id in sources.iter().filter(|_| args.pem_out.is_none()) {
        let url = simulator.pem_url(id);
        text.push_str(&format!(
            "  (umask 022; curl --fail --output {id}.pem {url})\n"
        ));
    }
    match ids.as_slice() {
        [source] if sources == ids => text.push_str(&format!(
            "  PRELUDE_BRIDGE_SOURCE_ID={source} \\\n  PRELUDE_BRIDGE_SOURCE_KIND={} \\\n  \
             PRELUDE_BRIDGE_PEM_FILE={} \\\n  prelude-bridge serve\n",
            simulator.kind(source).unwrap_or_default(),
            pem_file(args, source)
        )),
        [app] => text.push_str(&format!(
            "  PRELUDE_BRIDGE_APP_ID={app} \\\n  PRELUDE_BRIDGE_VERIFICATION_TOKEN={token} \\\n  \
             PRELUDE_BRIDGE_JWKS_URL={} \\\n  prelude-bridge serve\n",
            simulator.jwks_url(app)
        )),
        ids => {
            let token = if sources == ids {
                String::new()
            } else {
                format!("SIMULATED_TOKEN={token} ")
            };
            let serve = format!("{token}prelude-bridge serve --config FILE");
            text.push_str(&format!("  {serve}\n\nand this FILE\n"));
            let sections = ids.iter().map(|id| section(args, simulator, id));
            text.extend(sections);
        }
    }
    text
}

fn is_app(simulator: &Simulator, id: &str) -> bool {
    simulator.kind(id).ok() == Some(SourceKind::Auth)
}

/// The file with the public key of a source.
fn pem_file(args: &Args, id: &str) -> String {
    let pattern = args.pem_out.as_deref().unwrap_or("{app}.pem");
    pattern.replace("{app}", id)
}

/// The section of an app or source in the bridge's configuration.
fn section(args: &Args, simulator: &Simulator, id: &str) -> String {
    match simulator.kind(id) {
        Ok(kind @ (SourceKind::Verify | SourceKind::Notify)) => format!(
            "\n  [[sources]]\n  id = \"{id}\"\n  kind = \"{kind}\"\n  pem_file = \"{}\"\n",
            pem_file(args, id)
        ),
        Ok(SourceKind::Auth) | Err(_) => format!(
            "\n  [[apps]]\n  id = \"{id}\"\n  verification_token_env = \"SIMULATED_TOKEN\"\n  \
             jwks_url = \"{}\"\n",
            simulator.jwks_url(id)
        ),
    }
}

/// Prints a line to stderr. A closed stderr changes nothing.
pub(super) fn print_note(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}
