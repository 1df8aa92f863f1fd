//! Owns what `simulate` tells the person at the terminal: what it plays, how it goes, and what a
//! failed attempt most likely means.

use std::{convert::Infallible, io::Write as _, time::Duration};

use super::{Args, DEFAULT_TOKEN};
use crate::{
    cli::exit::warn,
    config,
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
    text.push_str(&serve_command(args, simulator, |name| {
        std::env::var_os(name).is_some()
    }));
    print_note(&text);
}

/// The variables with which a bridge without a file gets its source.
const VARIABLES: [&str; 8] = [
    "PRELUDE_BRIDGE_APP_ID",
    "PRELUDE_BRIDGE_VERIFICATION_TOKEN",
    "PRELUDE_BRIDGE_VERIFICATION_TOKEN_FILE",
    "PRELUDE_BRIDGE_JWKS_URL",
    "PRELUDE_BRIDGE_JWKS_FILE",
    "PRELUDE_BRIDGE_SOURCE_ID",
    "PRELUDE_BRIDGE_SOURCE_KIND",
    "PRELUDE_BRIDGE_PEM_FILE",
];

/// The command that starts a bridge for this simulator, in a shell that exports some variables. A token
/// that was given is not repeated.
fn serve_command(args: &Args, simulator: &Simulator, is_exported: impl Fn(&str) -> bool) -> String {
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
        let (file, url) = (shell_word(&pem_file(args, id)), simulator.pem_url(id));
        text.push_str(&format!(
            "  (umask 022; curl --fail --output {file} {url})\n"
        ));
    }
    let serve = |set: &[(&str, &str)]| {
        let assignments = set
            .iter()
            .map(|(name, value)| format!("  {name}={value} \\\n"));
        let assignments: String = assignments.collect();
        let others = VARIABLES
            .iter()
            .filter(|name| is_exported(name) && !set.iter().any(|(set, _)| set == *name));
        let others: String = others.map(|name| format!("-u {name} ")).collect();
        let env = if others.is_empty() { "" } else { "env " };
        format!("{assignments}  {env}{others}prelude-bridge serve")
    };
    match ids.as_slice() {
        [source] if sources == ids => {
            let kind = simulator.kind(source).unwrap_or_default();
            text.push_str(&serve(&[
                ("PRELUDE_BRIDGE_SOURCE_ID", source),
                ("PRELUDE_BRIDGE_SOURCE_KIND", &kind.to_string()),
                (
                    "PRELUDE_BRIDGE_PEM_FILE",
                    &shell_word(&pem_file(args, source)),
                ),
            ]));
            text.push('\n');
        }
        [app] => {
            text.push_str(&serve(&[
                ("PRELUDE_BRIDGE_APP_ID", app),
                ("PRELUDE_BRIDGE_VERIFICATION_TOKEN", token),
                ("PRELUDE_BRIDGE_JWKS_URL", &simulator.jwks_url(app)),
            ]));
            text.push('\n');
        }
        ids => {
            let token = [("SIMULATED_TOKEN", token)];
            let set = if sources == ids { &[][..] } else { &token };
            text.push_str(&format!("{} --config FILE\n\nand this FILE\n", serve(set)));
            let sections = ids.iter().map(|id| section(args, simulator, id));
            text.extend(sections);
        }
    }
    text
}

/// A text as one word of a POSIX shell.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn is_app(simulator: &Simulator, id: &str) -> bool {
    simulator.kind(id).ok() == Some(SourceKind::Auth)
}

/// The file with the public key of a source: absolute, because the bridge may be started elsewhere.
fn pem_file(args: &Args, id: &str) -> String {
    let pattern = args.pem_out.as_deref().unwrap_or("{app}.pem");
    let path = pattern.replace("{app}", id);
    match std::path::absolute(&path) {
        Ok(absolute) => absolute.to_string_lossy().into_owned(),
        Err(_) => path,
    }
}

/// The section of an app or source in the bridge's configuration.
fn section(args: &Args, simulator: &Simulator, id: &str) -> String {
    match simulator.kind(id) {
        Ok(kind @ (SourceKind::Verify | SourceKind::Notify)) => format!(
            "\n  [[sources]]\n  id = \"{id}\"\n  kind = \"{kind}\"\n  pem_file = {}\n",
            config::quoted(&pem_file(args, id))
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

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;
    use crate::simulator::{AppOptions, Options, SigningKey};

    fn args(line: &[&str]) -> Args {
        let command = Args::augment_args(Command::new("simulate"));
        let matches = command.try_get_matches_from(line).unwrap();
        Args::from_arg_matches(&matches).unwrap()
    }

    async fn simulator(kinds: &[SourceKind]) -> Simulator {
        let key = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/keys/test-key-2048-a.pem"
        ));
        let key = SigningKey::from_pem(key).unwrap();
        let app = |kind: &SourceKind| {
            AppOptions::with_keys(kind.to_string(), vec![key.clone()]).of_kind(*kind)
        };
        let options = Options {
            apps: kinds.iter().map(app).collect(),
            ..Options::default()
        };
        Simulator::start(options).await.unwrap()
    }

    #[tokio::test]
    async fn the_printed_command_works_in_other_directories_and_environments() {
        let directory = std::env::current_dir().unwrap();
        let directory = directory.to_str().unwrap();
        let args = args(&["simulate", "--pem-out", r#"my "key's" {app}.pem"#]);
        let verify = simulator(&[SourceKind::Verify]).await;
        let exported = ["PRELUDE_BRIDGE_APP_ID", "PRELUDE_BRIDGE_SOURCE_ID", "HOME"];
        let told = serve_command(&args, &verify, |name| exported.contains(&name));
        let file = format!(r#"PRELUDE_BRIDGE_PEM_FILE='{directory}/my "key'\''s" verify.pem' "#);
        assert!(told.contains(&file), "{told}");
        assert!(
            told.ends_with("  env -u PRELUDE_BRIDGE_APP_ID prelude-bridge serve\n"),
            "{told}"
        );
        let told = serve_command(&args, &verify, |_| false);
        assert!(told.ends_with("\\\n  prelude-bridge serve\n"), "{told}");

        let both = simulator(&[SourceKind::Auth, SourceKind::Verify]).await;
        let told = serve_command(&args, &both, |name| exported.contains(&name));
        let env = "env -u PRELUDE_BRIDGE_APP_ID -u PRELUDE_BRIDGE_SOURCE_ID prelude-bridge serve --config";
        assert!(told.contains(env), "{told}");
        let (_, file) = told.split_once("FILE\n\nand this FILE\n").unwrap();
        let file: toml::Table = file.parse().unwrap();
        let path = file["sources"][0]["pem_file"].as_str().unwrap();
        assert_eq!(path, format!(r#"{directory}/my "key's" verify.pem"#));
        for simulator in [verify, both] {
            simulator.stop().await;
        }
    }
}
