//! Checks whether the servers of a store on other machines can be reached. Only `serve` logs in, and checks
//! the stream or table.

use futures_util::future::join_all;
use tokio::{net::TcpStream, time::timeout};

use super::{ANSWER_TIMEOUT, Check};
use crate::config::{Host, Store};

const STORE: &str = "store";

/// Connects to each server, all at once.
pub(super) async fn examine(store: &Store) -> Option<Check> {
    let (engine, hosts) = store.engine()?;
    let troubles = join_all(hosts.iter().map(trouble)).await;
    let troubles: Vec<String> = troubles.into_iter().flatten().collect();
    let name = engine.name();
    if troubles.is_empty() {
        let found = format!(
            "{name}, {store}: every server can be reached; `serve` checks the login, and what the store has"
        );
        return Some(Check::good(STORE, found));
    }
    let found = format!("{name}, {store}: {}", troubles.join("; "));
    let remedy = "start these servers, or correct the name, the port or the network between; the store \
                  works while the others can acknowledge events";
    Some(Check::fault(STORE, found, remedy))
}

async fn trouble(host: &Host) -> Option<String> {
    let connecting = TcpStream::connect((host.name.as_str(), host.port));
    match timeout(ANSWER_TIMEOUT, connecting).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("{host} cannot be reached: {error}")),
        Err(_) => Some(format!(
            "{host} does not answer within {} s",
            ANSWER_TIMEOUT.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::{
        config::{Login, Nats},
        doctor::Verdict,
    };

    fn store(ports: &[u16]) -> Store {
        let host = |port: &u16| Host {
            name: "127.0.0.1".to_owned(),
            port: *port,
        };
        Store::Nats(Nats {
            hosts: ports.iter().map(host).collect(),
            stream: "events".to_owned(),
            replicas: 1,
            login: Login::None,
            tls: None,
        })
    }

    #[tokio::test]
    async fn each_server_that_cannot_be_reached_is_named() {
        assert_eq!(examine(&Store::Embedded).await, None);
        assert_eq!(examine(&Store::Memory).await, None);
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (up, down) = (listen(), listen());
        let [port, closed] = [&up, &down].map(|it| it.local_addr().unwrap().port());
        drop(down);
        let check = examine(&store(&[port])).await.unwrap();
        assert_eq!(check.verdict, Verdict::Good, "{check:?}");
        assert!(check.found.contains("NATS JetStream"), "{check:?}");
        let check = examine(&store(&[port, closed])).await.unwrap();
        assert_eq!(check.verdict, Verdict::Fault, "{check:?}");
        let named = format!("127.0.0.1:{closed} cannot be reached");
        assert!(check.found.contains(&named), "{check:?}");
        assert!(
            !check.found.contains(&format!("{port} cannot")),
            "{check:?}"
        );
    }
}
