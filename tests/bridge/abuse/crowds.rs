//! More sockets than there are places for.

use std::{net::Ipv4Addr, time::Duration};

use tokio::net::TcpStream;

use super::{
    Guarded, sockets,
    sockets::{read_to_end, status},
    within,
};
use crate::support::Setup;

const CROWD: usize = 2_000;

/// Comes from as many addresses as it takes, and says nothing.
async fn crowd(guarded: &Guarded, of_one_address: usize) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for number in 0..CROWD {
        let host = u8::try_from(100 + number / of_one_address).unwrap();
        let source = Ipv4Addr::new(127, 0, 0, host);
        let webhook = guarded.bridge.addresses.webhook;
        crowd.push(sockets::connect_from(source, webhook).await.unwrap());
    }
    crowd
}

async fn all_closed(crowd: Vec<TcpStream>) {
    for mut stream in crowd {
        assert_eq!(status(&read_to_end(&mut stream).await), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_silent_sockets_are_held_and_let_go() {
    let guarded = Guarded::start(Setup::default()).await;
    let attack = async || {
        let crowd = crowd(&guarded, 200).await;
        let open = r#"prelude_bridge_connections_open{listener="webhook"}"#;
        let held = guarded.bridge.metric(open).await.unwrap();
        // All of them, unless the machine took longer to connect than the deadline is.
        eprintln!("held at once: {held}");
        within(Duration::from_secs(5), all_closed(crowd)).await;
    };
    guarded.under("2,000 sockets", attack).await;
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_all_connections_holds_and_places_come_back() {
    // Long enough for more than the limit to be open at once where connecting takes milliseconds each.
    let setup = Setup::default()
        .with("limits.webhook.connections_max", "500")
        .with("limits.webhook.header_timeout", "5s");
    let guarded = Guarded::start(setup).await;
    let attack = async || {
        within(
            Duration::from_secs(5),
            all_closed(crowd(&guarded, 200).await),
        )
        .await;
    };
    guarded.under("2,000 sockets for 500 places", attack).await;
    let evicted = r#"prelude_bridge_connections_closed_total{listener="webhook",reason="evicted_listener_full"}"#;
    guarded.bridge.counts_at_least(evicted, 1.0).await;
    guarded.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_its_share_and_no_more() {
    let guarded = Guarded::start(Setup::default()).await;
    let attack = async || {
        within(
            Duration::from_secs(5),
            all_closed(crowd(&guarded, CROWD).await),
        )
        .await;
    };
    guarded.under("2,000 sockets of one address", attack).await;
    let evicted = r#"prelude_bridge_connections_closed_total{listener="webhook",reason="evicted_address_full"}"#;
    guarded.bridge.counts_at_least(evicted, 1_000.0).await;
    guarded.finish().await;
}

/// Systems let a process begin with few, and have more if it asks.
#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_takes_all_the_descriptors_that_it_may() {
    let mut bridge = Setup::default().with("store", "memory").prepare();
    let serve = bridge.command();
    let mut command = std::process::Command::new("/bin/sh");
    command.args([
        "-c",
        "ulimit -Sn 64 && ulimit -Hn 3000 && exec \"$0\" \"$@\"",
    ]);
    command.arg(serve.get_program()).args(serve.get_args());
    command.env_clear().envs(
        serve
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    bridge.run(command).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", bridge.process_id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = files.unwrap().split_whitespace().collect();
    assert_eq!(words[3..5], ["3000", "3000"]);
    // Fewer than the connections that it would take: whoever runs it is told.
    assert!(
        bridge.stderr().contains("fewer open files"),
        "{}",
        bridge.stderr()
    );
    bridge.finish().await;
}
