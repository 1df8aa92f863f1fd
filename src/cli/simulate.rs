//! `simulate`: the simulator of Prelude as a process of its own. Owns its flags, what it tells the
//! person at the terminal, and when it ends; everything else is done by `simulator`.

pub(super) mod flags;
mod key_files;
mod narration;

use std::{
    env, fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ValueEnum, builder::NonEmptyStringValueParser};

use crate::simulator::{
    AppOptions, Error, Options, RetrySchedule, Simulator, SourceKind, activation,
    options::{DEFAULT_APP_ID, DEFAULT_MANAGEMENT_TOKEN, parse_duration},
    scenario::{Connection, Scenario, Target},
    traffic::Traffic,
};

use self::{
    flags::{ApiArgs, FaultArgs, TrafficArgs, WireArgs, named},
    narration::{hint, introduce, print_note, progress},
};
use super::exit::{Exit, Failure, finish_stdout};

/// What the activation carries unless another token is given. It protects nothing.
const DEFAULT_TOKEN: &str = "simulated-verification-token";

/// The app of a bridge that needs no file.
const APP_VARIABLE: &str = "PRELUDE_BRIDGE_APP_ID";
/// The source of another kind of a bridge that needs no file.
const SOURCE_VARIABLE: &str = "PRELUDE_BRIDGE_SOURCE_ID";
const SOURCE_KIND_VARIABLE: &str = "PRELUDE_BRIDGE_SOURCE_KIND";

/// How often a bridge that is not there yet is called.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// `simulate`
#[derive(Clone, clap::Args)]
pub struct Args {
    /// Where key sets and management API are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,

    /// Play this product of Prelude: auth sends batches to activated webhooks, verify and notify send
    /// single events to any URL
    #[arg(long, value_name = "KIND", default_value = "auth", value_parser = named::<SourceKind>)]
    pub source: SourceKind,

    /// Deliver to this URL; `{app}` in it becomes the id of the app or source. Without it, the simulator
    /// waits for a webhook to be registered over its management API
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,

    // Not read from the environment by clap: to it, a variable that is set conflicts with
    // --scenario just as a flag does.
    /// Play the app or source with this id; repeatable [env: PRELUDE_BRIDGE_APP_ID or
    /// PRELUDE_BRIDGE_SOURCE_ID] [default: 54e9ujn, verify or notify]
    #[arg(long = "app", value_name = "APP_ID", value_parser = NonEmptyStringValueParser::new())]
    pub apps: Vec<String>,

    /// The verification token of the activation challenge
    #[arg(
        long,
        value_name = "TOKEN",
        env = "PRELUDE_BRIDGE_VERIFICATION_TOKEN",
        hide_env_values = true,
        default_value = DEFAULT_TOKEN
    )]
    pub token: String,

    /// What the management API takes as `Authorization: Bearer`
    #[arg(
        long,
        value_name = "TOKEN",
        env = "PRELUDE_API_TOKEN",
        hide_env_values = true,
        default_value = DEFAULT_MANAGEMENT_TOKEN
    )]
    pub management_token: String,

    /// Take the run from a scenario file
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "apps", "source", "keys", "seed", "time_scale", "TrafficArgs", "WireArgs", "ApiArgs",
            "FaultArgs",
        ]
    )]
    pub scenario: Option<PathBuf>,

    /// Sign with the RSA key in this PEM file; repeatable, for rotations [default: for one app this
    /// user's own key, which `trigger` uses too; for several, keys are made]
    #[arg(long = "key", value_name = "FILE")]
    pub keys: Vec<PathBuf>,

    /// Write the key set to this file; `{app}` in it becomes the app's id
    #[arg(long, value_name = "FILE")]
    pub jwks_out: Option<String>,

    /// Write the public keys as PEM to this file; `{app}` in it becomes the id
    #[arg(long, value_name = "FILE")]
    pub pem_out: Option<String>,

    /// Draw events and faults by this seed. A seed used twice sends the same event ids twice
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Run the retry schedule this many times faster: 60 turns its first minute into a second
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub time_scale: f64,

    /// How the ledger is written to stdout at the end
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,

    /// Wait at most this long at the end for what is still on its way
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub settle: Duration,

    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    wire: WireArgs,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    faults: FaultArgs,
}

/// Tokens stay out of debug output.
impl std::fmt::Debug for Args {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Args")
            .field("listen", &self.listen)
            .field("apps", &self.apps)
            .finish_non_exhaustive()
    }
}

/// How the ledger is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Sums for people
    Table,
    /// One JSON object a line, one line for each event and webhook
    Json,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Ten events a second to a bridge on this machine, until Ctrl-C:
    prelude-bridge simulate --to http://127.0.0.1:8080/webhooks/54e9ujn
  A thousand session events as fast as it goes, and what became of each as JSON:
    prelude-bridge simulate --to http://127.0.0.1:8080/webhooks/54e9ujn --rate 0 --count 1000 --types user.session.created,user.session.revoked --output json
  Signed as Go's standard library does, with a fifth of the answers lost:
    prelude-bridge simulate --to http://127.0.0.1:8080/webhooks/54e9ujn --salt longest --lose-answers 0.2 --time-scale 60
  Two apps:
    prelude-bridge simulate --app 54e9ujn --app 7k2mzqa --to http://127.0.0.1:8080/webhooks/{app}
  The events of Verify, with the key that the bridge's `pem_file` names:
    prelude-bridge simulate --source verify --pem-out verify.pem --to http://127.0.0.1:8080/webhooks/verify
  A management API that does not take one of the events yet:
    prelude-bridge simulate --refuse-event step_up.hook_failed
  A run with outages and a rotation:
    prelude-bridge simulate --scenario examples/scenarios/outage.toml --to http://127.0.0.1:8080/webhooks/54e9ujn

It prints the command that starts a bridge which trusts it, and waits for that bridge. Exit code 1
if an event was never acknowledged.";

/// Runs the simulator until its traffic has ended or Ctrl-C, then writes the ledger.
///
/// # Errors
/// Options that make no sense (exit code 2), an address that is taken, a bridge that refuses the
/// activation, or events that were never acknowledged (exit code 1).
pub async fn run(args: Args) -> Result<(), Failure> {
    let run = Run::prepare(&args)?;
    let simulator = Simulator::start(run.options.clone())
        .await
        .map_err(explain)?;
    args.write_keys(&simulator)?;
    introduce(&args, &simulator);
    let interrupted = tokio::select! {
        done = run.play(&simulator, &args) => {
            done?;
            false
        }
        never = progress(&simulator) => match never {},
        () = interruption() => true,
    };
    simulator.stop().await;
    write_ledger(args.output, &simulator)?;
    let totals = simulator.totals();
    let missing = totals.events.saturating_sub(totals.events_acknowledged);
    if missing > 0 && !interrupted {
        let cause = format!(
            "{missing} of {} events were never acknowledged",
            totals.events
        );
        let latest = totals.latest_failure.map(hint).unwrap_or_default();
        return Err(Failure::new(Exit::Failed, cause).help(latest));
    }
    Ok(())
}

/// The run that the flags describe.
struct Run {
    options: Options,
    connections: Vec<Connection>,
    plan: Plan,
}

/// What happens in a run.
enum Plan {
    Traffic(Traffic),
    Scenario(Box<Scenario>),
}

impl Run {
    fn prepare(args: &Args) -> Result<Self, Failure> {
        let target = Target {
            url: args.to.clone(),
            verification_token: args.token.clone(),
        };
        let (mut options, connections, plan) = if let Some(path) = &args.scenario {
            let scenario = read_scenario(path)?;
            let connections = scenario.connections(&target);
            (
                scenario.options(),
                connections,
                Plan::Scenario(Box::new(scenario)),
            )
        } else {
            let traffic = args.traffic.traffic();
            traffic.check().map_err(usage)?;
            args.check_types(&traffic)?;
            (
                args.options()?,
                args.connections(&target),
                Plan::Traffic(traffic),
            )
        };
        options.listen = args.listen;
        options.management_token.clone_from(&args.management_token);
        options.check().map_err(usage)?;
        check_targets(&options, &connections)?;
        Ok(Self {
            options,
            connections,
            plan,
        })
    }

    async fn play(&self, simulator: &Simulator, args: &Args) -> Result<(), Failure> {
        for connection in &self.connections {
            connect(simulator, connection).await?;
        }
        if self.connections.is_empty() {
            print_note("waiting for a webhook to be registered and activated");
            simulator.wait_for_webhook().await;
        }
        match &self.plan {
            Plan::Traffic(traffic) => {
                traffic.run(simulator).await.map_err(explain)?;
            }
            Plan::Scenario(scenario) => {
                for step in 0..scenario.steps() {
                    print_note(&format!("step {} of {}", step + 1, scenario.steps()));
                    scenario.take_step(step, simulator).await.map_err(explain)?;
                    // It may have been a rotation.
                    args.write_keys(simulator)?;
                }
            }
        }
        // What is still on its way afterwards is abandoned, and the ledger says so.
        let _ = simulator.settle(args.settle).await;
        Ok(())
    }
}

/// Refuses sources whose events would go nowhere: only apps have webhooks that can be registered later.
fn check_targets(options: &Options, connections: &[Connection]) -> Result<(), Failure> {
    let mut sources = options.apps.iter();
    let lacking = sources.find(|source| {
        let mut connections = connections.iter();
        source.kind != SourceKind::Auth && !connections.any(|to| to.app_id == source.id)
    });
    let Some(source) = lacking else {
        return Ok(());
    };
    let cause = format!("there is no URL to send the events of `{}` to", source.id);
    Err(Failure::new(Exit::Usage, cause).help(
        "give `--to`, or the source a `url` in `[[webhooks]]` of the scenario: Verify and Notify have no \
         webhooks that could be registered",
    ))
}

impl Args {
    /// The apps to play where no scenario names them.
    fn app_ids(&self) -> Vec<String> {
        if !self.apps.is_empty() {
            return self.apps.clone();
        }
        vec![default_id(self.source)]
    }

    /// Refuses types that this kind of source does not send.
    fn check_types(&self, traffic: &Traffic) -> Result<(), Failure> {
        let mut types = traffic.types.iter();
        match types.find(|name| name.source_kind() != self.source) {
            None => Ok(()),
            Some(other) => {
                let (kind, source) = (other.source_kind(), self.source);
                let cause = format!("`{other}` is an event of {kind}, and not of {source}");
                Err(Failure::new(Exit::Usage, cause).help(format!(
                    "play a source that sends it, with `--source {kind}`"
                )))
            }
        }
    }

    fn options(&self) -> Result<Options, Failure> {
        let apps = self.app_ids();
        if !self.keys.is_empty() && apps.len() > 1 {
            let cause = "`--key` is for one app: apps that share a key could sign for each other";
            return Err(Failure::new(Exit::Usage, cause)
                .help("give each app its `key_files` in a scenario file"));
        }
        let keys = self.signing_keys(apps.len())?;
        let apps = apps
            .iter()
            .map(|id| AppOptions::with_keys(id, keys.clone()).of_kind(self.source));
        Ok(Options {
            apps: apps.collect(),
            seed: self.seed,
            wire: self.wire.style(),
            api: self.api.style(),
            faults: self.faults.faults(),
            retry: RetrySchedule::scaled(self.time_scale),
            ..Options::default()
        })
    }

    fn connections(&self, target: &Target) -> Vec<Connection> {
        let Some(url) = &target.url else {
            return Vec::new();
        };
        let connection = |app_id: &String| Connection {
            app_id: app_id.clone(),
            url: url.replace("{app}", app_id),
            verification_token: target.verification_token.clone(),
            events: self.source.event_types().to_vec(),
        };
        self.app_ids().iter().map(connection).collect()
    }
}

/// The id of an app or source that was given none: that of a bridge without a file, if it has one of this
/// kind.
pub(super) fn default_id(kind: SourceKind) -> String {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let (named, default) = match kind {
        SourceKind::Auth => (variable(APP_VARIABLE), DEFAULT_APP_ID),
        SourceKind::Verify | SourceKind::Notify => {
            let is_same = variable(SOURCE_KIND_VARIABLE).is_some_and(|name| name == kind.as_str());
            let named = is_same.then(|| variable(SOURCE_VARIABLE)).flatten();
            (named, kind.as_str())
        }
    };
    named.unwrap_or_else(|| default.to_owned())
}

/// Calls a bridge until it answers. If it then refuses the activation, that is the result.
async fn connect(simulator: &Simulator, connection: &Connection) -> Result<(), Failure> {
    let Connection {
        app_id,
        url,
        verification_token,
        events,
    } = connection;
    let mut waiting = false;
    loop {
        match simulator
            .connect(app_id, url, verification_token, events)
            .await
        {
            // Nobody was called yet.
            Ok(_) if simulator.kind(app_id).map_err(explain)? != SourceKind::Auth => break,
            Ok(_) => {
                print_note(&format!("the webhook of app {app_id} is active"));
                return Ok(());
            }
            Err(Error::Activation(activation::Failure::Unreachable)) => {
                if !waiting {
                    print_note(&format!(
                        "waiting for a bridge that answers for app {app_id}"
                    ));
                    waiting = true;
                }
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            Err(error) => return Err(explain(error)),
        }
    }
    while !activation::is_reachable(url).await {
        if !waiting {
            print_note(&format!(
                "waiting for a bridge that listens for source {app_id}"
            ));
            waiting = true;
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
    print_note(&format!("source {app_id} sends from now on"));
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM.
async fn interruption() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without a handler there is nothing to wait for: the default action ends the process.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn write_ledger(output: Output, simulator: &Simulator) -> Result<(), Failure> {
    let ledger = simulator.ledger();
    let mut out = io::BufWriter::new(io::stdout().lock());
    finish_stdout(match output {
        Output::Table => out
            .write_all(ledger.summary().as_bytes())
            .and_then(|()| out.flush()),
        Output::Json => ledger.write_json_lines(out),
    })
}

fn read_scenario(path: &Path) -> Result<Scenario, Failure> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::new(
            Exit::Usage,
            format!("the scenario {shown} cannot be read: {error}"),
        )
        .help("check the path given with `--scenario`")
    })?;
    let directory = path.parent().unwrap_or(Path::new("."));
    Scenario::parse(&text, directory).map_err(|error| {
        Failure::new(Exit::Usage, format!("{shown}: {error}"))
            .help("docs/simulator.md explains every key")
    })
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, error).help("`prelude-bridge simulate --help` has examples")
}

/// What went wrong in the simulator, with what to do.
fn explain(error: Error) -> Failure {
    let (exit, help) = match &error {
        Error::Options(_) | Error::BatchSize(_) => {
            (Exit::Usage, "`prelude-bridge simulate --help` has examples")
        }
        Error::UnknownApp(_) => (Exit::Usage, "name each app with `--app`"),
        Error::Listen { .. } => (Exit::Failed, "give `--listen` another address, or port 0"),
        Error::Webhook(_) => (Exit::Usage, "check the URL given with `--to`"),
        Error::Activation(_) => (
            Exit::Failed,
            "start the bridge with the command above: app, token and path have to be the same",
        ),
        Error::Key(_)
        | Error::NotOneEvent(_)
        | Error::Client(_)
        | Error::Seed(_)
        | Error::UnknownWebhook(_)
        | Error::NoAnswer(_)
        | Error::Json(_)
        | Error::Stopped => (
            Exit::Failed,
            "try again; if it happens again, it is a bug in the simulator",
        ),
    };
    Failure::new(exit, error).help(help)
}
