//! `demo`: simulator, bridge and tail in one process, over real sockets.

use std::{
    fmt::Display,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    pin::pin,
    time::Duration,
};

use anstyle::{Effects, Style};
use jiff::tz::TimeZone;
use tokio::{sync::oneshot, time::Instant};
use tokio_stream::StreamExt as _;

use super::{
    exit::{Exit, Failure, finish_stdout},
    serve,
    tail::{Formatter, Output},
    terminal::Width,
};
use crate::{
    client::{self, Client, Item, Request, Start, Subscription},
    config::{self, Config, Secret},
    event::UnixMicros,
    proto::Event,
    server::{self, Addresses, Server},
    simulator::{self, AppOptions, BATCH_EVENTS_MAX, EventType, Simulator, traffic::Traffic},
};

const BOLD: Style = Style::new().effects(Effects::BOLD);
const DIM: Style = Style::new().effects(Effects::DIMMED);

/// `demo`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// End after N events [default: on Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

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

impl Args {
    /// Events a second: slow enough to read, unless the run is to end.
    pub fn events_per_second(&self) -> u32 {
        let default = if self.count.is_some() { 1000 } else { 10 };
        self.rate.unwrap_or(default)
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
    prelude-bridge demo --rate 200";

/// The defaults of `serve`, which all examples of the documentation use.
const WEBHOOK_PORT: u16 = 8080;
const GRPC_PORT: u16 = 50051;
const ADMIN_PORT: u16 = 9090;
/// How often free ports are looked for: another process can take one before the bridge does.
const STARTS_MAX: u32 = 3;
/// The width that all printed lines fit.
const COLUMNS: usize = 80;

/// The app of the demo.
const APP_ID: &str = "demo";
/// How long events in progress may take to arrive at the end.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Delays are kept for the first events only, up to this many.
const DELAYS_MAX: usize = 1_000_000;

/// Runs simulator, bridge and tail in this process.
///
/// # Errors
/// A part failed, or an acknowledged event did not arrive.
pub async fn run(args: Args) -> Result<(), Failure> {
    let directory = tempfile::Builder::new()
        .prefix("prelude-bridge-demo-")
        .tempdir()
        .map_err(|error| failed(format!("no temporary directory can be made: {error}")))?;
    print_note(&format!("{DIM}making a signing key …{DIM:#}"));
    let simulator = Simulator::start(simulator::Options {
        apps: vec![AppOptions::new(APP_ID)],
        ..simulator::Options::default()
    })
    .await
    .map_err(failed)?;
    // The tail is in the same process, but on the other side of a socket like any other client.
    let token = "demo-verification-token";
    let config = config(directory.path(), &simulator, token);
    let (server, taken) = start(&args, config).await?;
    let addresses = server.addresses();
    let (stop, stopped) = oneshot::channel::<()>();
    let bridge = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));

    print_note(&introduction(
        addresses,
        &taken,
        simulator.address(),
        directory.path(),
    ));
    let subscription = subscribe(addresses).await?;
    let webhook_url = format!("http://{}/webhooks/{APP_ID}", addresses.webhook);
    simulator
        .connect(APP_ID, &webhook_url, token, &EventType::ALL)
        .await
        .map_err(failed)?;
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

fn config(directory: &Path, simulator: &Simulator, token: &str) -> Config {
    Config {
        data_dir: directory.to_path_buf(),
        sources: vec![config::EventSource {
            id: APP_ID.to_owned(),
            kind: config::SourceKind::Auth,
            activation: Some(config::Activation {
                token: Secret::new(token),
                old_token: None,
                token_source: config::TokenSource::Variable("the demo".to_owned()),
            }),
            keys: config::KeySource::JwksUrl(simulator.jwks_url(APP_ID)),
            origin: config::Origin::Default,
        }],
        // Nobody's events: whoever may reach the address that was asked for may read them.
        allow_anonymous: true,
        ..Config::default()
    }
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

fn introduction(
    addresses: Addresses,
    taken: &[u16],
    simulator: SocketAddr,
    directory: &Path,
) -> String {
    let Addresses {
        webhook,
        grpc,
        admin,
    } = addresses;
    let rows = [
        ("simulator", format!("http://{simulator}"), "plays Prelude"),
        (
            "webhook",
            format!("http://{webhook}/webhooks/{APP_ID}"),
            "takes signed batches in",
        ),
        (
            "log",
            directory.display().to_string(),
            "keeps events until the end",
        ),
        ("grpc", format!("http://{grpc}"), "streams them out"),
        ("admin", format!("http://{admin}/metrics"), "counts them"),
    ];
    let mut text =
        format!("\n{BOLD}prelude-bridge demo{BOLD:#}: everything is real but the sender\n\n");
    let places = rows.iter().map(|(_, place, _)| place.len());
    let width = places.max().unwrap_or(0);
    for (name, place, what) in rows {
        text += &format!("  {BOLD}{name:<9}{BOLD:#}  ");
        let is_fitting = 2 + 9 + 2 + width + 2 + what.len() <= COLUMNS;
        text += &if is_fitting {
            format!("{place:<width$}  {DIM}{what}{DIM:#}\n")
        } else {
            format!("{place}\n")
        };
    }
    if !taken.is_empty() {
        let taken: Vec<String> = taken.iter().map(u16::to_string).collect();
        text += &format!(
            "\n{DIM}Taken here, so free ports are used instead: {}{DIM:#}\n",
            taken.join(", ")
        );
    }
    text + &format!(
        "\n{BOLD}Try in another terminal{BOLD:#}\n\n{}\n  \
         grpcurl -plaintext \\\n    \
         -d '{{\"start\":{{\"earliest\":{{}}}},\"stop\":{{\"maxEvents\":3}}}}' \\\n    \
         {grpc} prelude.bridge.v1.EventService/Subscribe\n\n\
         {DIM}Ctrl-C ends it.{DIM:#}\n",
        tail_command(grpc)
    )
}

/// A command to copy, on two lines where one is too long.
fn tail_command(grpc: SocketAddr) -> String {
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "prelude-bridge".to_owned());
    let program = format!("  {program} tail");
    let flags = "--type 'user.session.*' --last 5";
    let flags = if grpc == here(GRPC_PORT) {
        flags.to_owned()
    } else {
        format!("--server http://{grpc} {flags}")
    };
    if program.len() + 1 + flags.len() <= COLUMNS {
        format!("{program} {flags}")
    } else {
        format!("{program} \\\n    {flags}")
    }
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
        // About ten batches a second, however fast events come.
        batch_events: usize::try_from(rate.div_ceil(10))
            .unwrap_or(1)
            .min(BATCH_EVENTS_MAX),
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

    #[test]
    fn the_introduction_fits_a_terminal_and_names_the_ports() {
        let addresses = |webhook, grpc, admin| Addresses {
            webhook: here(webhook),
            grpc: here(grpc),
            admin: here(admin),
        };
        for (addresses, taken) in [
            (addresses(WEBHOOK_PORT, GRPC_PORT, ADMIN_PORT), vec![]),
            (
                addresses(45_678, 45_679, 45_680),
                vec![WEBHOOK_PORT, GRPC_PORT, ADMIN_PORT],
            ),
        ] {
            let directory = Path::new("/tmp/prelude-bridge-demo-AbCdEf");
            let text = introduction(addresses, &taken, here(45_681), directory);
            let text = anstream::adapter::strip_str(&text).to_string();
            for line in text.lines() {
                // The path of the program is as long as it is.
                let is_program = line.trim_end().ends_with("tail \\");
                assert!(is_program || line.chars().count() <= COLUMNS, "{line}");
            }
            assert_eq!(text.contains("--server"), !taken.is_empty());
            assert_eq!(text.contains("8080, 50051, 9090"), !taken.is_empty());
            assert!(text.contains("streams them out") && text.contains("until the end"));
        }
    }
}
