//! `demo`: simulator, bridge and tail in one process, over real sockets.

mod introduction;

use std::{
    fmt::Display,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    pin::pin,
    time::Duration,
};

use anstyle::{Effects, Style};
use clap::ValueEnum;
use jiff::tz::TimeZone;
use tokio::{sync::oneshot, time::Instant};
use tokio_stream::StreamExt as _;

use super::{
    exit::{Exit, Failure, finish_stdout},
    public_file, serve,
    tail::{Formatter, Output},
    terminal::Width,
};
use crate::{
    client::{self, Client, Item, Request, Start, Subscription},
    config::{self, Config, Secret},
    event::UnixMicros,
    proto::Event,
    server::{self, Addresses, Server},
    simulator::{self, AppOptions, BATCH_EVENTS_MAX, Simulator, SourceKind, traffic::Traffic},
};

const BOLD: Style = Style::new().effects(Effects::BOLD);
const DIM: Style = Style::new().effects(Effects::DIMMED);

/// `demo`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// End after N events [default: on Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Which products of Prelude send events
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Source::Auth)]
    pub source: Source,

    /// Events a second [default: 10, or 1000 with --count]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: Option<u32>,

    /// Receive batches at this address [default: 127.0.0.1:8080, or another port if it is taken]
    #[arg(long, value_name = "ADDRESS")]
    pub webhook_listen: Option<SocketAddr>,

    /// Serve subscribers at this address [default: 127.0.0.1:50051, or another port if it is taken]
    #[arg(long, value_name = "ADDRESS")]
    pub grpc_listen: Option<SocketAddr>,

    /// Serve health and metrics at this address [default: 127.0.0.1:9090, or another port if it is taken]
    #[arg(long, value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
}

/// The products of Prelude that send events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// Prelude Auth: batches, after an activation
    Auth,
    /// Prelude Verify: single events
    Verify,
    /// Prelude Notify: single events
    Notify,
    /// All three, in one log
    All,
}

impl Source {
    fn kinds(self) -> &'static [SourceKind] {
        match self {
            Self::Auth => &[SourceKind::Auth],
            Self::Verify => &[SourceKind::Verify],
            Self::Notify => &[SourceKind::Notify],
            Self::All => &SourceKind::ALL,
        }
    }
}

impl Args {
    /// Events a second: slow enough to read, unless the run is to end.
    pub fn events_per_second(&self) -> u32 {
        let default = if self.count.is_some() { 1000 } else { 10 };
        self.rate.unwrap_or(default)
    }

    /// Events in a batch: about ten batches a second, however fast events come. Several sources take turns,
    /// also in a short run.
    fn batch_events(&self) -> usize {
        let sources = u64::try_from(self.source.kinds().len()).unwrap_or(1);
        let fast = u64::from(self.events_per_second()).div_ceil(10 * sources);
        let events = self
            .count
            .map_or(fast, |count| fast.min(count.div_ceil(sources)));
        usize::try_from(events).unwrap_or(1).min(BATCH_EVENTS_MAX)
    }

    fn ports(&self) -> Ports {
        let mut taken = Vec::new();
        let [webhook, grpc, admin] = self
            .documented()
            .map(|(chosen, port)| choose(chosen, port, &mut taken));
        Ports {
            webhook,
            grpc,
            admin,
            taken,
        }
    }

    /// The given addresses, or else the documented ports.
    fn documented(&self) -> [(Option<SocketAddr>, u16); 3] {
        [
            (self.webhook_listen, WEBHOOK_PORT),
            (self.grpc_listen, GRPC_PORT),
            (self.admin_listen, ADMIN_PORT),
        ]
    }
}

/// Where to listen.
struct Ports {
    webhook: SocketAddr,
    grpc: SocketAddr,
    admin: SocketAddr,
    /// The documented ports on which another program listens.
    taken: Vec<u16>,
}

/// The given address, else the documented port if it is free, else any free port.
fn choose(chosen: Option<SocketAddr>, port: u16, taken: &mut Vec<u16>) -> SocketAddr {
    let documented = here(port);
    chosen.unwrap_or_else(|| match TcpListener::bind(documented) {
        Ok(_) => documented,
        Err(_) => {
            taken.push(port);
            here(0)
        }
    })
}

fn here(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Watch events go by until Ctrl-C:
    prelude-bridge demo
  A thousand events, then what was received, delivered and lost:
    prelude-bridge demo --count 1000
  A stream to try consumers with:
    prelude-bridge demo --rate 200
  The events of Verify and Notify too, in the same log:
    prelude-bridge demo --source all";

/// The defaults of `serve`, which all examples of the documentation use.
const WEBHOOK_PORT: u16 = 8080;
const GRPC_PORT: u16 = 50051;
const ADMIN_PORT: u16 = 9090;
/// How often free ports are looked for: another process can take one before the bridge does.
const STARTS_MAX: u32 = 3;
/// The id of the demo's app or source of this kind.
fn id_of(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Auth => "demo",
        SourceKind::Verify | SourceKind::Notify => kind.as_str(),
    }
}

/// How long events in progress may take to arrive at the end.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Delays are kept for the first events only, up to this many.
const DELAYS_MAX: usize = 1_000_000;

/// Runs simulator, bridge and tail in this process.
///
/// # Errors
/// A part failed, or an acknowledged event did not arrive.
pub async fn run(args: Args) -> Result<(), Failure> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("prelude-bridge-demo-");
    // The bridge refuses keys in a directory that others can write.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    let directory = builder
        .tempdir()
        .map_err(|error| failed(format!("no temporary directory can be made: {error}")))?;
    let kinds = args.source.kinds();
    print_note(&format!("{DIM}making a signing key …{DIM:#}"));
    let simulator = Simulator::start(simulator::Options {
        apps: kinds
            .iter()
            .map(|kind| AppOptions::new(id_of(*kind)).of_kind(*kind))
            .collect(),
        ..simulator::Options::default()
    })
    .await
    .map_err(failed)?;
    // The tail is in the same process, but on the other side of a socket like any other client.
    let token = "demo-verification-token";
    let config = config(directory.path(), &simulator, kinds, token)?;
    let (server, taken) = start(&args, config).await?;
    let addresses = server.addresses();
    let (stop, stopped) = oneshot::channel::<()>();
    let bridge = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));

    print_note(&introduction::introduction(
        addresses,
        &taken,
        simulator.address(),
        directory.path(),
        kinds,
    ));
    let subscription = subscribe(addresses).await?;
    for kind in kinds {
        let id = id_of(*kind);
        let url = format!("http://{}/webhooks/{id}", addresses.webhook);
        let connected = simulator.connect(id, &url, token, kind.event_types()).await;
        connected.map_err(failed)?;
    }
    let outcome = follow(&args, &simulator, subscription).await;
    let _ = stop.send(());
    // The bridge reports what failed in it; a panic there is a bug and is passed on as one.
    bridge
        .await
        .map_err(failed)?
        .map_err(|error| serve::failure(&error))?;
    simulator.stop().await;
    outcome?.report()
}

/// Starts the bridge, and returns which of the documented ports were taken.
async fn start(args: &Args, mut config: Config) -> Result<(Server, Vec<u16>), Failure> {
    let mut starts = 1;
    loop {
        let ports = args.ports();
        config.webhook_listen = ports.webhook;
        config.grpc_listen = ports.grpc;
        config.admin_listen = ports.admin;
        match Server::start(&config).await {
            Ok(server) => return Ok((server, ports.taken)),
            Err(server::Error::Listen(_)) if starts < STARTS_MAX => starts += 1,
            Err(error) => return Err(serve::failure(&error)),
        }
    }
}

/// The configuration of the bridge: an app or source of each kind, which trusts the simulator's keys.
fn config(
    directory: &Path,
    simulator: &Simulator,
    kinds: &[SourceKind],
    token: &str,
) -> Result<Config, Failure> {
    let sources = kinds.iter();
    let sources = sources.map(|kind| event_source(*kind, directory, simulator, token));
    Ok(Config {
        data_dir: directory.to_path_buf(),
        sources: sources.collect::<Result<_, _>>()?,
        // Nobody's events: whoever may reach the address that was asked for may read them.
        allow_anonymous: true,
        ..Config::default()
    })
}

/// The bridge's app or source of a kind. The keys of Verify and Notify are in PEM files.
fn event_source(
    kind: SourceKind,
    directory: &Path,
    simulator: &Simulator,
    token: &str,
) -> Result<config::EventSource, Failure> {
    let id = id_of(kind);
    let pem_file = || {
        let path = directory.join(format!("{id}.pem"));
        let pem = simulator.public_pem(id).map_err(failed)?;
        public_file::write(&path, &pem).map_err(failed)?;
        Ok::<_, Failure>(config::KeySource::PemFiles(vec![path]))
    };
    let (kind, keys) = match kind {
        SourceKind::Auth => {
            let keys = config::KeySource::JwksUrl(simulator.jwks_url(id));
            (config::SourceKind::Auth, keys)
        }
        SourceKind::Verify => (config::SourceKind::Verify, pem_file()?),
        SourceKind::Notify => (config::SourceKind::Notify, pem_file()?),
    };
    let activation = (kind == config::SourceKind::Auth).then(|| config::Activation {
        token: Secret::new(token),
        old_token: None,
        token_source: config::TokenSource::Variable("the demo".to_owned()),
    });
    Ok(config::EventSource {
        id: id.to_owned(),
        kind,
        activation,
        keys,
        origin: config::Origin::Default,
    })
}

async fn subscribe(addresses: Addresses) -> Result<Subscription, Failure> {
    let url = format!("http://{}", addresses.grpc);
    let client = Client::connect(&client::Options::new(url))
        .await
        .map_err(failed)?;
    let request = Request::new()
        .start(Start::Earliest)
        .client_name("prelude-bridge demo");
    Ok(client.subscribe(request))
}

/// Sends events and prints those that arrive, until the count is reached or Ctrl-C.
async fn follow(
    args: &Args,
    simulator: &Simulator,
    mut subscription: Subscription,
) -> Result<Outcome, Failure> {
    let rate = args.events_per_second();
    let traffic = Traffic {
        events_per_second: Some(rate.into()),
        batch_events: args.batch_events(),
        events_max: args.count,
        ..Traffic::default()
    };
    let has_colour = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
    let mut formatter = Formatter::new(
        Output::Human,
        has_colour,
        Width::of_stdout(),
        TimeZone::system(),
    );
    let mut outcome = Outcome::new();
    let mut sending = pin!(traffic.run(simulator));
    let mut is_sending = true;
    let mut interrupted = pin!(interrupt());
    // Ends when all is acknowledged and printed.
    let mut settling = pin!(simulator.settle(SETTLE_TIMEOUT));
    let mut is_settled = false;
    let mut deadline = pin!(tokio::time::sleep(SETTLE_TIMEOUT));
    loop {
        tokio::select! {
            sent = &mut sending, if is_sending => {
                sent.map_err(failed)?;
                is_sending = false;
            }
            result = &mut interrupted, if is_sending => {
                result?;
                is_sending = false;
            }
            _ = &mut settling, if !is_sending && !is_settled => {
                is_settled = true;
                deadline.as_mut().reset(Instant::now() + SETTLE_TIMEOUT);
            }
            () = &mut deadline, if is_settled => break,
            item = subscription.next() => match item {
                Some(Ok(Item::Event(event))) => {
                    outcome.add(&event);
                    let line = formatter.line(&event);
                    if let Err(error) = io::stdout().write_all(&line) {
                        finish_stdout(Err(error))?;
                        outcome.is_cut_short = true;
                        break;
                    }
                }
                Some(Ok(Item::Notice(_))) => {}
                Some(Err(error)) => return Err(failed(error)),
                None => break,
            },
        }
        if is_settled && outcome.delivered >= simulator.totals().events_acknowledged {
            break;
        }
    }
    let totals = simulator.totals();
    outcome.sent = totals.events;
    outcome.acknowledged = totals.events_acknowledged;
    Ok(outcome)
}

/// The result of a run.
struct Outcome {
    started: Instant,
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    repeated: u64,
    last_sequence: u64,
    /// From durable to printed, in microseconds.
    delays: Vec<i64>,
    /// Whether stdout was closed: what was on its way then is nobody's loss.
    is_cut_short: bool,
}

impl Outcome {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            sent: 0,
            acknowledged: 0,
            delivered: 0,
            repeated: 0,
            last_sequence: 0,
            delays: Vec::new(),
            is_cut_short: false,
        }
    }

    fn add(&mut self, event: &Event) {
        // Sequence numbers have no holes, and the stream is not filtered.
        if event.sequence <= self.last_sequence {
            self.repeated += 1;
            return;
        }
        self.last_sequence = event.sequence;
        self.delivered += 1;
        if self.delays.len() < DELAYS_MAX
            && let Some(at) = &event.received_at
        {
            let received = at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000;
            self.delays.push(UnixMicros::now().0 - received);
        }
    }

    fn report(mut self) -> Result<(), Failure> {
        let seconds = self.started.elapsed().as_secs_f64();
        let lost = self.acknowledged.saturating_sub(self.delivered);
        self.delays.sort_unstable();
        let delay = |part: usize| {
            let index = self.delays.len() * part / 100;
            let micros = self.delays.get(index).copied().unwrap_or(0);
            #[expect(clippy::cast_precision_loss, reason = "microseconds of a demo")]
            let millis = micros as f64 / 1_000.0;
            format!("{millis:.1} ms")
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = self.delivered as f64 / seconds;
        print_note(&format!(
            "\n{BOLD}{} received, {} delivered, {lost} lost, {} repeated{BOLD:#}\n\
             in {seconds:.1} s ({rate:.0} events/s)\n\
             from durable on disk to printed: median {}, 99th percentile {}",
            self.acknowledged,
            self.delivered,
            self.repeated,
            delay(50),
            delay(99),
        ));
        if self.is_cut_short {
            return Ok(());
        }
        if lost > 0 {
            return Err(failed(format!(
                "{lost} events that were acknowledged did not arrive"
            )));
        }
        let refused = self.sent.saturating_sub(self.acknowledged);
        if refused > 0 {
            return Err(failed(format!(
                "{refused} of {} events were never acknowledged",
                self.sent
            )));
        }
        Ok(())
    }
}

async fn interrupt() -> Result<(), Failure> {
    tokio::signal::ctrl_c()
        .await
        .map_err(|error| failed(format!("cannot listen for Ctrl-C: {error}")))
}

/// Prints a line to stderr, because stdout has the events. A closed stderr changes nothing.
fn print_note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

fn failed(cause: impl Display) -> Failure {
    Failure::new(Exit::Failed, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_port_is_used_when_it_is_free_and_another_when_it_is_taken() {
        let other = TcpListener::bind(here(0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let mut taken = Vec::new();
        assert_eq!(choose(None, port, &mut taken), here(0));
        assert_eq!(taken, [port]);
        drop(other);
        taken.clear();
        assert_eq!(choose(None, port, &mut taken), here(port));
        assert!(taken.is_empty());
        // What was asked for is not looked at: the bridge says that it is taken.
        let other = TcpListener::bind(here(0)).unwrap();
        let asked = other.local_addr().unwrap();
        assert_eq!(choose(Some(asked), port, &mut taken), asked);
        assert!(taken.is_empty());
    }

    #[test]
    fn a_run_in_which_events_were_lost_or_refused_has_failed() {
        let report = |sent, acknowledged, delivered| {
            Outcome {
                sent,
                acknowledged,
                delivered,
                ..Outcome::new()
            }
            .report()
        };
        assert_eq!(report(5, 5, 5), Ok(()));
        let cut_short = Outcome {
            sent: 5,
            is_cut_short: true,
            ..Outcome::new()
        };
        assert_eq!(cut_short.report(), Ok(()));
        for (sent, acknowledged, delivered, word) in [
            (5, 5, 4, "did not arrive"),
            (5, 4, 4, "1 of 5 events were never acknowledged"),
            (5, 0, 0, "never acknowledged"),
            // Stored, and the answer was lost.
            (5, 4, 5, "never acknowledged"),
        ] {
            let failure = report(sent, acknowledged, delivered).unwrap_err();
            assert_eq!(failure.exit, Exit::Failed);
            assert!(format!("{failure:?}").contains(word), "{failure:?}");
        }
    }
}
