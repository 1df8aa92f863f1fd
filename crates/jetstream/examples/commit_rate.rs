//! Measures how many commits a second one writer gets from servers of NATS on this machine, which all sync to
//! the same disk: figures to compare with each other. `make tools` installs the server.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prelude_bridge_jetstream::{
    Login, Options, open,
    testing::{Config, Nats},
};
use prelude_bridge_log::sequencer::{Outcome, Position, Sequencer as _};

const TIME: Duration = Duration::from_secs(5);
const DAY: Duration = Duration::from_secs(86_400);

#[expect(clippy::unwrap_used, clippy::print_stdout, reason = "it only measures")]
#[tokio::main]
async fn main() {
    for replicas in [1, 3] {
        let nats = Nats::start(replicas, Config::default()).await;
        let options = Options {
            servers: nats.urls(),
            stream: "rate".to_owned(),
            replicas,
            login: Login::None,
            tls: None,
            retention_age: 30 * DAY,
            retention_bytes: 4 << 30,
            create: true,
            ids_age: 15 * DAY,
        };
        let sequencer = open(options).await.unwrap().sequencer;
        let mut position = Position(0);
        for kib in [4, 64, 512] {
            let commit = Bytes::from(vec![0xa5; kib << 10]);
            let (begin, mut commits) = (Instant::now(), 0_u32);
            while begin.elapsed() < TIME {
                position = position.next();
                let said = sequencer.append(position, commit.clone()).await;
                assert_eq!(said, Ok(Outcome::Won));
                commits += 1;
            }
            let rate = f64::from(commits) / begin.elapsed().as_secs_f64();
            println!("{replicas} replicas, commits of {kib} KiB: {rate:.0} a second");
        }
    }
}
