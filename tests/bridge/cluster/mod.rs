//! Several bridges with one log, over real engines.
//!
//! ```text
//! ledger    what senders were promised and what subscribers have seen, and the comparison
//! traffic   senders through all bridges, and subscribers that move between them
//! chaos     every process is killed, stopped and started again under that traffic
//! failures  what each kind of failure looks like to a sender, a subscriber and an operator
//! proxy     cuts a bridge off from its engine
//! ```

mod chaos;
mod failures;
mod ledger;
mod proxy;
mod traffic;

use std::net::SocketAddr;

use prelude_bridge::proto::event_service_client::EventServiceClient;
use prelude_bridge_jetstream::testing::Nats;
use prelude_bridge_postgres::testing as postgres;
use tonic::transport::{Channel, Endpoint};

use crate::support::Setup;

use self::proxy::Proxy;

/// The name of the stream that bridges make.
const STREAM: &str = "prelude-bridge";

fn over(store: &str) -> Setup {
    Setup::default()
        .with("store", store)
        .with("retention.bytes_max", "1GiB")
        .in_memory()
}

/// The addresses of servers of NATS.
fn servers(nats: &Nats) -> Vec<SocketAddr> {
    let urls = nats.urls().into_iter();
    urls.map(|url| url.strip_prefix("nats://").unwrap().parse().unwrap())
        .collect()
}

/// A bridge over servers of NATS at these addresses.
fn over_nats(servers: &[SocketAddr], replicas: usize) -> Setup {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    over(&format!("nats://{}", servers.join(","))).with("store.replicas", &replicas.to_string())
}

fn server(server: &postgres::Server) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], server.port()))
}

/// A bridge over servers of PostgreSQL at these addresses.
fn over_postgresql(servers: &[SocketAddr]) -> Setup {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let store = format!("postgres://bridge@{}/postgres", servers.join(","));
    // A server alone, or one that was promoted, has no standby, and is told that it needs none.
    over(&store).with("store.require_standby", "false")
}

/// A proxy to each server.
async fn proxies(servers: &[SocketAddr]) -> Vec<Proxy> {
    let mut proxies = Vec::new();
    for &server in servers {
        proxies.push(Proxy::to(server).await);
    }
    proxies
}

fn addresses(proxies: &[Proxy]) -> Vec<SocketAddr> {
    proxies.iter().map(|proxy| proxy.address).collect()
}

/// A connection to a bridge's streams; `None` if nobody is there.
async fn connect(bridge: SocketAddr) -> Option<EventServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{bridge}")).unwrap();
    Some(EventServiceClient::new(endpoint.connect().await.ok()?))
}
