//! `serve`: the bridge, until it is told to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    exit::{Exit, Failure},
    settings,
};
use crate::{
    config::{Config, Store},
    logging,
    net::descriptors,
    plain,
    server::{self, Addresses, Reload, Server},
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
  One of several bridges that have one log, on three servers of NATS JetStream:
    prelude-bridge serve --store nats://a:4222,b:4222,c:4222
  For a trial, in memory, on a free port that the `listening` and `ready` lines name:
    prelude-bridge serve --store memory --webhook-listen 127.0.0.1:0

Every key of the file is explained in prelude-bridge.example.toml. A flag wins over its variable, a
variable over the file. Keys without a flag have a variable too: retention.age_max is
PRELUDE_BRIDGE_RETENTION_AGE_MAX. `prelude-bridge config show` prints what they come to.";

/// Runs the bridge.
///
/// # Errors
/// A configuration with faults (exit code 2), or whatever keeps the bridge from running.
pub async fn run(args: Args) -> Result<(), Failure> {
    let config = args.settings.resolve()?.servable()?;
    logging::start(config.logging())
        .map_err(|error| Failure::new(Exit::Failed, error).help("start the program once"))?;
    let connections_max =
        config.webhook_limits.connections_max + config.grpc_limits.connections_max;
    if let Some(limit) = descriptors::raise_limit()
        && limit < connections_max as u64
    {
        tracing::warn!(
            limit,
            connections_max,
            "the system allows fewer open files than the limits allow connections; raise the \
             limit of open files (ulimit -Hn, LimitNOFILE=) or lower the limits"
        );
    }
    // Before anything starts, so that no signal finds the default handler.
    let mut signals = Signals::new()?;
    let server = Server::start(&config)
        .await
        .map_err(|error| failure(&error))?;
    let Addresses {
        webhook,
        grpc,
        admin,
    } = server.addresses();
    if config.store == Store::Memory {
        tracing::warn!("the log is in memory: events are lost when the process ends");
    }
    let tls = tls_ports(&config);
    let store = config.store.to_string();
    let readiness = server.readiness();
    let missing = readiness.missing();
    let missing = (!missing.is_empty()).then(|| missing.join("; "));
    tracing::info!(%webhook, %grpc, %admin, tls, %store, missing, "listening");
    // Deliveries are answered from here on, if only with the request to come back.
    let announcing = tokio::spawn(async move {
        if readiness.reached().await {
            tracing::info!(%webhook, %grpc, %admin, tls, %store, "ready");
        }
    });
    let reload = server.reload();
    let shutdown = async move {
        signals.end(&reload).await;
        tracing::info!("draining; a second signal ends the process at once");
        tokio::spawn(async move {
            signals.end(&reload).await;
            std::process::exit(Exit::Failed as i32);
        });
    };
    let ended = server.run(shutdown).await;
    announcing.abort();
    ended.map_err(|error| failure(&error))?;
    tracing::info!("stopped");
    Ok(())
}

/// The ports that speak TLS, where any does.
fn tls_ports(config: &Config) -> Option<&'static str> {
    match (&config.tls.webhook, &config.tls.grpc) {
        (None, None) => None,
        (Some(_), None) => Some("webhook"),
        (None, Some(_)) => Some("grpc"),
        (Some(_), Some(_)) => Some("webhook, grpc"),
    }
}

/// What a person or a supervisor asks a process to end with, or to read its files again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot listen for signals: {error}"))
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits until the process is to end. SIGHUP, which would end it without a drain, has files
    /// read again instead.
    async fn end(&mut self, reload: &Reload) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => {
                    tracing::info!(
                        "SIGHUP: reading credentials, verification tokens, TLS certificates and signing keys again; \
                         other settings need a restart"
                    );
                    reload.now();
                }
            }
        }
    }
}

/// What a person can correct is a matter of configuration; the rest is not.
pub(super) fn failure(error: &server::Error) -> Failure {
    let exit = match error {
        server::Error::Listen(_)
        | server::Error::Tls(_)
        | server::Error::Certificate { .. }
        | server::Error::Credentials(_)
        | server::Error::Permissions(_)
        | server::Error::Exposed { .. }
        | server::Error::StoreFile { .. }
        | server::Error::Keys { .. } => Exit::Usage,
        server::Error::Open(_)
        | server::Error::Store(_)
        | server::Error::Follow(_)
        | server::Error::Random(_)
        | server::Error::Streams(_)
        | server::Error::Log(_) => Exit::Failed,
    };
    let is_exposed = matches!(error, server::Error::Exposed { .. });
    let failure = Failure::new(exit, plain::configured(error));
    if !is_exposed {
        return failure;
    }
    failure
        .help("make a credential: `prelude-bridge token create NAME`")
        .help("or keep the port to this machine: `--grpc-listen 127.0.0.1:50051`")
        .help("or let everybody read all events: `--allow-anonymous`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::Sequence,
        log::{self, Gap, OpenError},
    };

    #[test]
    fn a_log_that_fails_or_cannot_be_followed_is_no_matter_of_configuration() {
        let gap = Gap::Repeated {
            expected: Sequence(8),
            found: Sequence(3),
        };
        let failed = log::Error::Failed(gap.to_string().into());
        for error in [server::Error::Log(failed), server::Error::Follow(gap)] {
            let failure = failure(&error);
            assert_eq!(failure.exit, Exit::Failed);
            let text = format!("{failure:?}");
            assert!(text.contains("event 3 comes after event 7"), "{text}");
        }
    }

    #[test]
    fn a_damaged_log_is_told_with_the_numbers_of_its_events_and_no_pasted_telephone_number() {
        let damaged = |path: &str| {
            let path = path.into();
            let reason = "events 1234567 to 2345678 are missing".to_owned();
            let error = server::Error::Open(OpenError::Damaged { path, reason });
            format!("{:?}", failure(&error))
        };
        let text = damaged("/srv/events-00001");
        assert!(text.contains("/srv/events-00001") && text.contains("1234567 to 2345678"));
        let text = damaged("/srv/+4915112345678/events-00001");
        assert!(!text.contains("15112345678") && text.contains("1234567 to 2345678"));
    }
}
