//! Owns the door: binding, accepting, counting and closing connections, the same for every port.
//! What is spoken on a connection is its handler's business; nothing here knows of HTTP or gRPC
//! ([`http1`] is the one handler that the receiver and the admin port share). Where a port does TLS
//! ([`tls`]), a handler gets the connection after the handshake.
//!
//! Every bound of a listener is here: connections in all and of one address ([`slots`]), TLS handshakes
//! in a second ([`handshakes`]), the patience with a system that is out of file descriptors, and the
//! time that open connections get at a drain.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::{
    farewell::Farewells,
    quiet::{Admitted, Quiet},
    slots::{Evicted, Full, Slot, Slots, Standing},
};
use crate::metrics::{Closure, ConnectionRefusal, Eviction, Metrics};

mod connection;
pub mod descriptors;
pub mod fair;
mod farewell;
pub(crate) mod fields;
pub mod framing;
mod groups;
pub mod handshakes;
pub mod http1;
pub mod known;
pub mod network;
pub mod quiet;
pub mod slots;
pub mod tap;
pub mod tls;

pub use self::connection::Connection;

/// Of how many connections one is kept for clients that have proven something before.
const RESERVED_PART: usize = 16;

/// How many connections without a slot there may be before no new one is accepted: evicted ones, whose end
/// takes a moment, some that proved something in the moment of their eviction and go on, and refused ones
/// that are told why. Only a flood gets here; this bounds the descriptors that it can hold.
const SLOTLESS_MAX: usize = 256;

/// A bound socket that nobody is served on yet.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<tls::Acceptor>,
    admit: Option<AddressTest>,
    exempt: Option<AddressTest>,
    farewells: Option<Farewells>,
    quiet: Quiet,
}

/// A question about an address.
type AddressTest = Box<dyn Fn(IpAddr) -> bool + Send + Sync>;

impl fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Listener")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// What a listener holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all. A further one takes the place of one that has proven nothing, see
    /// [`Connection::standing`]; where all have, it is closed at once. Of sixteen, one is kept for
    /// clients that have proven something before.
    pub connections_max: usize,
    /// Connections of one IPv4 address or one IPv6 /64, which is what one client gets; see
    /// [`slots::Limits`] for larger networks.
    pub connections_per_address_max: usize,
    /// How long connections may go on after the shutdown began.
    pub drain_timeout: Duration,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still open at the deadline and were cut.
    pub cut: usize,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("cannot listen on {address} ({flag}): {source}; {remedy}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// The flag that asked for it.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl Listener {
    /// Takes an address; port 0 lets the system choose one. `name` is the listener's in logs and
    /// metrics, `flag` what a user would change to have another address.
    ///
    /// # Errors
    /// [`Error::Bind`], when the address is taken, foreign or forbidden.
    pub async fn bind(
        name: &'static str,
        flag: &'static str,
        address: SocketAddr,
    ) -> Result<Self, Error> {
        let bound = TcpListener::bind(address)
            .await
            .inspect(connection::hold_little)
            .and_then(|socket| Ok((socket.local_addr()?, socket)));
        match bound {
            Ok((address, socket)) => Ok(Self {
                name,
                socket,
                address,
                tls: None,
                admit: None,
                exempt: None,
                farewells: None,
                quiet: Quiet::new(quiet::Limits::default()),
            }),
            Err(source) => Err(Error::Bind {
                address,
                flag,
                remedy: remedy(&source),
                source,
            }),
        }
    }

    /// The address with the port that was really given.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Does TLS on the port, if there is something to do it with.
    #[must_use]
    pub fn with_tls(mut self, acceptor: Option<tls::Acceptor>) -> Self {
        self.tls = acceptor;
        self
    }

    /// Refuses connections from other addresses, before they have a slot or a handshake costs anything.
    #[must_use]
    pub fn only_from(mut self, admit: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        self.admit = Some(Box::new(admit));
        self
    }

    /// Gives addresses that many clients share, such as a proxy's, no limit of their own.
    #[must_use]
    pub fn exempting(mut self, is_exempt: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        self.exempt = Some(Box::new(is_exempt));
        self
    }

    /// What is said to a connection that is refused, where the port speaks plain text.
    #[must_use]
    pub fn refusing_with(
        mut self,
        farewell: impl Fn(ConnectionRefusal) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        self.farewells = Some(Farewells::new(farewell));
        self
    }

    /// How many lines the refused connections may fill the log with.
    #[must_use]
    pub fn with_quiet(mut self, limits: quiet::Limits) -> Self {
        self.quiet = Quiet::new(limits);
        self
    }

    /// Accepts connections and gives each to `handler`, until `shutdown` is cancelled. Then the
    /// socket is closed, and the handlers, who are expected to watch the same token, get the
    /// drain timeout to finish; what is left is cut. Dropping the future cuts everything.
    ///
    /// A handler that closes a connection for what its client did says why, and it is counted.
    pub async fn run<H, F>(
        self,
        limits: Limits,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
        handler: H,
    ) -> Drained
    where
        H: Fn(Connection, SocketAddr) -> F + Clone + Send + 'static,
        F: Future<Output = Option<Closure>> + Send + 'static,
    {
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        let cut_when_dropped = cut.clone().drop_guard();
        let slots = Slots::new(slots::Limits {
            slots_max: limits.connections_max,
            slots_reserved: limits.connections_max / RESERVED_PART,
            slots_per_address_max: limits.connections_per_address_max,
        });
        let open_max = limits.connections_max.saturating_add(SLOTLESS_MAX);
        let places = Arc::new(Semaphore::new(open_max.min(Semaphore::MAX_PERMITS)));
        while let Some((stream, peer, place)) = self.accept(&places, &metrics, &shutdown).await {
            let (slot, newcomer) = match self.enter(&slots, peer, &metrics) {
                Ok(entered) => entered,
                Err(refusal) => {
                    if let Some(farewell) = self.refuse(stream, peer, refusal, &metrics) {
                        let (cut, shutdown) = (cut.clone(), shutdown.clone());
                        connections.spawn(async move {
                            let _place = place;
                            // Nothing that a drain waits for.
                            let farewell = Box::pin(farewell);
                            let farewell = shutdown.run_until_cancelled(farewell);
                            cut.run_until_cancelled(farewell).await;
                        });
                    }
                    continue;
                }
            };
            // Answers are small and complete: waiting for more to send would only delay them.
            let _ = stream.set_nodelay(true);
            let open = metrics.connection_opened(self.name);
            let evicted = unless_proven(slot.evicted(), newcomer.standing.clone());
            // In one place: each hand that it goes through would keep room for it otherwise, and
            // idle connections are what there is most of.
            let served = Box::pin(serve(
                stream,
                newcomer,
                self.tls.clone(),
                shutdown.clone(),
                handler.clone(),
            ));
            let cut = cut.clone();
            let (name, metrics) = (self.name, Arc::clone(&metrics));
            connections.spawn(async move {
                let _held = (slot, open, place);
                let served = unless_evicted(served, evicted);
                if let Some(Some(closure)) = cut.run_until_cancelled(served).await {
                    metrics.connection_closed(name, closure);
                }
            });
        }
        drop(self.socket);
        drain(
            self.name,
            &connections,
            limits.drain_timeout,
            cut_when_dropped,
        )
        .await
    }

    /// The next connection, once there is a place for it, which is held as long as it is open; none once
    /// the shutdown has begun.
    async fn accept(
        &self,
        places: &Arc<Semaphore>,
        metrics: &Metrics,
        shutdown: &CancellationToken,
    ) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let place = Arc::clone(places).acquire_owned();
        let place = shutdown.run_until_cancelled(place).await?.ok()?;
        let mut patience = Patience::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                accepted = self.socket.accept() => accepted,
            };
            let error = match accepted {
                Ok((stream, peer)) => return Some((stream, peer, place)),
                Err(error) => error,
            };
            metrics.accept_failed(self.name);
            let pause = patience.after(&error);
            if !pause.is_zero() {
                tracing::warn!(listener = self.name, %error, ?pause, "cannot accept connections");
                let _ = tokio::time::timeout(pause, shutdown.cancelled()).await;
            }
        }
    }

    /// Finds a slot for a connection, by an eviction if that is needed.
    fn enter(
        &self,
        slots: &Arc<Slots>,
        peer: SocketAddr,
        metrics: &Metrics,
    ) -> Result<(Slot, Newcomer), ConnectionRefusal> {
        let address = peer.ip().to_canonical();
        let passes = |test: &AddressTest| test(address);
        if !self.admit.as_ref().is_none_or(passes) {
            return Err(ConnectionRefusal::Source);
        }
        let is_exempt = self.exempt.as_ref().is_some_and(passes);
        let standing = if is_exempt {
            // Whoever else is behind it has not shown the same.
            Standing::default()
        } else {
            slots.standing(address)
        };
        let entered = slots.enter(address, is_exempt, Some(standing.clone()));
        let (slot, evicted) = entered.map_err(|full| match full {
            Full::Total => ConnectionRefusal::Full,
            Full::Address => ConnectionRefusal::AddressFull,
        })?;
        if let Some(evicted) = evicted {
            self.note_eviction(evicted, metrics);
        }
        let newcomer = Newcomer {
            peer,
            standing,
            is_exempt,
            is_known: slot.is_known(),
        };
        Ok((slot, newcomer))
    }

    /// Counts and logs an eviction.
    fn note_eviction(&self, evicted: Evicted, metrics: &Metrics) {
        let eviction = match evicted.limit {
            Full::Total => Eviction::Full,
            Full::Address => Eviction::AddressFull,
        };
        metrics.connection_evicted(self.name, eviction);
        if let Some(Admitted { unlogged }) = self.quiet.admit(eviction.reason()) {
            tracing::info!(
                listener = self.name,
                address = %evicted.address,
                reason = eviction.reason(),
                unlogged,
                "connection closed for a new one: it had shown nothing that keeps it, or was idle"
            );
        }
    }

    /// Turns a connection away. Returns how it is told the reason, if it can be.
    fn refuse(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        refusal: ConnectionRefusal,
        metrics: &Metrics,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        metrics.connection_refused(self.name, refusal);
        let reason = refusal.reason();
        if let Some(Admitted { unlogged }) = self.quiet.admit(reason) {
            tracing::info!(listener = self.name, %peer, reason, unlogged, "connection refused");
        }
        let farewells = self.farewells.as_ref().filter(|_| self.tls.is_none());
        farewells?.say(stream, refusal)
    }
}

/// Who is behind a new connection, as far as the listener knows.
pub(crate) struct Newcomer {
    pub(crate) peer: SocketAddr,
    pub(crate) standing: Standing,
    /// Whether many clients share its address.
    pub(crate) is_exempt: bool,
    /// Whether its client had proven something before.
    pub(crate) is_known: bool,
}

/// Shakes hands where that is needed, and hands over. A handshake is nothing that a drain waits for.
async fn serve<H, F>(
    stream: TcpStream,
    newcomer: Newcomer,
    tls: Option<tls::Acceptor>,
    shutdown: CancellationToken,
    handler: H,
) -> Option<Closure>
where
    H: Fn(Connection, SocketAddr) -> F,
    F: Future<Output = Option<Closure>>,
{
    let peer = newcomer.peer;
    let opening = shutdown.run_until_cancelled(Connection::open(stream, newcomer, tls));
    let connection = opening.await??;
    handler(connection, peer).await
}

/// Serves a connection until it ends, or a new one takes its slot, which counts the eviction. What has arrived
/// is read first, as it may show that the client goes on after a rest.
async fn unless_evicted(
    served: impl Future<Output = Option<Closure>>,
    evicted: impl Future<Output = ()>,
) -> Option<Closure> {
    tokio::select! {
        biased;
        closure = served => closure,
        () = evicted => None,
    }
}

/// Resolves at an eviction. A client that has proven something in the very moment of it, or goes on after a
/// rest, is not interrupted: what it has sent may be on its way to the log.
async fn unless_proven(evicted: impl Future<Output = ()>, standing: Standing) {
    evicted.await;
    if standing.is_proven() && !standing.is_resting() {
        std::future::pending::<()>().await;
    }
}

/// Gives the connections the time to finish, and cuts those that did not.
async fn drain(
    name: &'static str,
    connections: &TaskTracker,
    timeout: Duration,
    cut_when_dropped: DropGuard,
) -> Drained {
    connections.close();
    let finished = tokio::time::timeout(timeout, connections.wait()).await;
    let cut = if finished.is_ok() {
        0
    } else {
        connections.len()
    };
    drop(cut_when_dropped);
    connections.wait().await;
    if cut > 0 {
        tracing::warn!(
            listener = name,
            connections = cut,
            "connections were cut at the end of the drain timeout"
        );
    }
    Drained { cut }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the program that has it, or choose another port",
        io::ErrorKind::AddrNotAvailable => {
            "choose an address of this machine, such as 127.0.0.1 or 0.0.0.0"
        }
        io::ErrorKind::PermissionDenied => {
            "choose a port above 1023, or grant CAP_NET_BIND_SERVICE"
        }
        _ => "choose another address",
    }
}

/// How long to wait after the system failed to accept. Out of file descriptors, the same error
/// would come again at once and fill a core and the log.
#[derive(Default)]
struct Patience {
    pause: Duration,
}

impl Patience {
    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(1);

    fn after(&mut self, error: &io::Error) -> Duration {
        // These concern one connection that is gone already; the next one may be fine.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::Interrupted
        ) {
            return Duration::ZERO;
        }
        self.pause = (self.pause * 2).clamp(Self::FIRST, Self::LONGEST);
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, net::Ipv4Addr};

    use futures_util::future::poll_immediate;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::JoinHandle,
    };

    use super::*;

    struct Door {
        address: SocketAddr,
        shutdown: CancellationToken,
        metrics: Arc<Metrics>,
        running: JoinHandle<Drained>,
    }

    async fn open<F>(
        limits: Limits,
        handler: impl Fn(Connection, SocketAddr) -> F + Clone + Send + 'static,
    ) -> Door
    where
        F: Future<Output = Option<Closure>> + Send + 'static,
    {
        open_at(bind().await, limits, handler)
    }

    async fn bind() -> Listener {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        Listener::bind("test", "--test-listen", any).await.unwrap()
    }

    fn open_at<F>(
        listener: Listener,
        limits: Limits,
        handler: impl Fn(Connection, SocketAddr) -> F + Clone + Send + 'static,
    ) -> Door
    where
        F: Future<Output = Option<Closure>> + Send + 'static,
    {
        let (shutdown, metrics) = (CancellationToken::new(), Arc::new(Metrics::new()));
        Door {
            address: listener.local_addr(),
            running: tokio::spawn(listener.run(
                limits,
                Arc::clone(&metrics),
                shutdown.clone(),
                handler,
            )),
            shutdown,
            metrics,
        }
    }

    /// Whoever comes has proven something.
    async fn greet(mut stream: Connection, _: SocketAddr) -> Option<Closure> {
        stream.standing().prove();
        let _ = stream.write_all(b"hello").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        None
    }

    /// What the door says: a greeting, or nothing and closed.
    async fn knock(address: SocketAddr) -> (TcpStream, Vec<u8>) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut said = vec![0; 5];
        let length = stream.read(&mut said).await.unwrap_or(0);
        said.truncate(length);
        (stream, said)
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named_with_its_flag() {
        let first = Listener::bind("a", "--a-listen", (Ipv4Addr::LOCALHOST, 0).into());
        let first = first.await.unwrap();
        let second = Listener::bind("b", "--b-listen", first.local_addr()).await;
        let message = second.unwrap_err().to_string();
        assert!(
            message.contains(&first.local_addr().to_string()),
            "{message}"
        );
        assert!(
            message.contains("--b-listen") && message.contains("another port"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn connections_over_the_limit_are_closed_and_places_are_given_back() {
        let limits = Limits {
            connections_max: 2,
            ..Limits::default()
        };
        let door = open(limits, greet).await;
        let first = knock(door.address).await;
        let second = knock(door.address).await;
        assert_eq!(
            (first.1.as_slice(), second.1.as_slice()),
            (&b"hello"[..], &b"hello"[..])
        );
        assert_eq!(knock(door.address).await.1, b"");
        let refused = r#"connections_refused_total{listener="test",reason="listener_full"} 1"#;
        assert!(door.metrics.render().contains(refused));
        drop(first);
        // The place is free once the handler has seen the end of the connection.
        while knock(door.address).await.1 != b"hello" {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let limits = Limits {
            connections_per_address_max: 1,
            ..Limits::default()
        };
        let door = open(limits, greet).await;
        let _first = knock(door.address).await;
        assert_eq!(knock(door.address).await.1, b"");
        let refused = r#"reason="address_full"} 1"#;
        assert!(door.metrics.render().contains(refused));
    }

    /// A door where whoever says `x` has proven something.
    async fn open_to_strangers(limits: Limits) -> Door {
        let listener = bind().await;
        let listener = listener.refusing_with(|refusal| format!("{refusal:?}").into_bytes());
        open_at(listener, limits, |mut stream, _| async move {
            let _ = stream.write_all(b"hello").await;
            let mut said = [0];
            while stream.read_exact(&mut said).await.is_ok() {
                stream.standing().prove();
                let _ = stream.write_all(b"y").await;
            }
            None
        })
    }

    #[tokio::test]
    async fn a_new_connection_takes_the_place_of_one_that_has_proven_nothing() {
        let limits = Limits {
            connections_max: 3,
            connections_per_address_max: 2,
            ..Limits::default()
        };
        let door = open_to_strangers(limits).await;
        let (mut proven, _) = knock(door.address).await;
        proven.write_all(b"x").await.unwrap();
        assert_eq!(proven.read_u8().await.unwrap(), b'y');
        let (mut silent, said) = knock(door.address).await;
        assert_eq!(said, b"hello");
        let (mut new, said) = knock(door.address).await;
        assert_eq!(said, b"hello");
        assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
        let counted =
            r#"connections_closed_total{listener="test",reason="evicted_address_full"} 1"#;
        assert!(door.metrics.render().contains(counted));
        // Once all have proven something, the next one is told that there is no room.
        new.write_all(b"x").await.unwrap();
        assert_eq!(new.read_u8().await.unwrap(), b'y');
        assert_eq!(told_from(1, door.address).await, "AddressFull");
        proven.write_all(b"x").await.unwrap();
        assert_eq!(proven.read_u8().await.unwrap(), b'y');
    }

    /// Connects from an address of this machine.
    async fn knock_from(host: u8, address: SocketAddr) -> (TcpStream, Vec<u8>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind((Ipv4Addr::new(127, 0, 0, host), 0).into())
            .unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let mut said = vec![0; 5];
        let length = stream.read(&mut said).await.unwrap_or(0);
        said.truncate(length);
        (stream, said)
    }

    /// What a client is told that is refused.
    async fn told_from(host: u8, address: SocketAddr) -> String {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind((Ipv4Addr::new(127, 0, 0, host), 0).into())
            .unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(&[7; 10_000]).await.unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).await.unwrap();
        told
    }

    #[tokio::test]
    async fn whoever_has_proven_something_before_finds_a_place_among_others_that_have() {
        let limits = Limits {
            connections_max: 16,
            connections_per_address_max: 16,
            ..Limits::default()
        };
        let door = open_to_strangers(limits).await;
        let (mut known, _) = knock_from(2, door.address).await;
        known.write_all(b"x").await.unwrap();
        assert_eq!(known.read_u8().await.unwrap(), b'y');
        drop(known);
        let mut others = Vec::new();
        for _ in 0..15 {
            let (mut other, said) = knock_from(3, door.address).await;
            assert_eq!(said, b"hello");
            other.write_all(b"x").await.unwrap();
            assert_eq!(other.read_u8().await.unwrap(), b'y');
            others.push(other);
        }
        // The last place is not for just anybody.
        assert_eq!(told_from(4, door.address).await, "Full");
        assert_eq!(knock_from(2, door.address).await.1, b"hello");
    }

    #[tokio::test]
    async fn a_source_that_may_not_connect_costs_no_place_and_is_told() {
        let limits = Limits {
            connections_max: 1,
            ..Limits::default()
        };
        let listener = bind().await;
        let listener = listener
            .only_from(|address| address == Ipv4Addr::new(127, 0, 0, 2))
            .refusing_with(|refusal| format!("{refusal:?}").into_bytes());
        let door = open_at(listener, limits, greet);
        let (_held, said) = knock_from(2, door.address).await;
        assert_eq!(said, b"hello");
        for _ in 0..10 {
            assert_eq!(told_from(3, door.address).await, "Source");
        }
        let refused = r#"connections_refused_total{listener="test",reason="source"} 10"#;
        assert!(door.metrics.render().contains(refused));
        assert!(!door.metrics.render().contains("listener_full"));
    }

    #[tokio::test]
    async fn a_flood_of_new_connections_holds_few_more_than_there_are_places() {
        let limits = Limits {
            connections_max: 10,
            connections_per_address_max: 10,
            ..Limits::default()
        };
        let door = open_to_strangers(limits).await;
        let mut crowd = Vec::new();
        for _ in 0..500 {
            crowd.push(knock(door.address).await.0);
        }
        let open = r#"connections_open{listener="test"} 10"#;
        while !door.metrics.render().contains(open) {
            tokio::task::yield_now().await;
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_holds_little_of_what_its_client_does_not_read() {
        let listener = bind().await;
        let client = tokio::net::TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(4096).unwrap();
        let connected = client.connect(listener.address);
        let (_client, accepted) = tokio::join!(connected, listener.socket.accept());
        let (mut stream, _) = accepted.unwrap();
        let (bytes, mut taken) = (vec![0; 64 * 1024], 0);
        while let Some(written) = poll_immediate(stream.write(&bytes)).await {
            taken += written.unwrap();
        }
        // What is on its way, what may wait, and the packet that was over the limit.
        assert!((1..256 * 1024).contains(&taken), "{taken}");
    }

    #[tokio::test]
    async fn nobody_is_accepted_without_a_place_and_a_shutdown_is_seen_meanwhile() {
        let listener = bind().await;
        let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
        let places = Arc::new(Semaphore::new(1));
        let _first = TcpStream::connect(listener.address).await.unwrap();
        let _second = TcpStream::connect(listener.address).await.unwrap();
        let accepted = listener.accept(&places, &metrics, &shutdown).await;
        let mut next = Box::pin(listener.accept(&places, &metrics, &shutdown));
        assert!(poll_immediate(&mut next).await.is_none());
        // The place comes back with the end of the connection.
        drop(accepted);
        let accepted = next.await;
        assert!(accepted.is_some());
        let mut next = Box::pin(listener.accept(&places, &metrics, &shutdown));
        assert!(poll_immediate(&mut next).await.is_none());
        shutdown.cancel();
        assert!(next.await.is_none());
    }

    #[tokio::test]
    async fn what_a_handler_closes_a_connection_for_is_counted() {
        let handler = |_, _| async { Some(Closure::Silent) };
        let door = open(Limits::default(), handler).await;
        assert_eq!(knock(door.address).await.1, b"");
        let counted = r#"connections_closed_total{listener="test",reason="silent"} 1"#;
        while !door.metrics.render().contains(counted) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_drain_waits_for_handlers_and_takes_nobody_new() {
        let door = open(Limits::default(), greet).await;
        let (stream, _) = knock(door.address).await;
        door.shutdown.cancel();
        while TcpStream::connect(door.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!door.running.is_finished());
        drop(stream);
        assert_eq!(door.running.await.unwrap(), Drained { cut: 0 });
    }

    #[tokio::test]
    async fn a_handler_that_does_not_end_is_cut_at_the_deadline() {
        let limits = Limits {
            drain_timeout: Duration::from_millis(20),
            ..Limits::default()
        };
        let door = open(limits, |mut stream, _| async move {
            let _ = stream.write_all(b"hello").await;
            pending().await
        })
        .await;
        let (mut stream, said) = knock(door.address).await;
        assert_eq!(said, b"hello");
        door.shutdown.cancel();
        assert_eq!(door.running.await.unwrap(), Drained { cut: 1 });
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn dropping_the_service_cuts_its_connections() {
        let door = open(Limits::default(), greet).await;
        let (mut stream, _) = knock(door.address).await;
        door.running.abort();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn whoever_proves_something_in_the_moment_of_its_eviction_is_not_interrupted() {
        let standing = Standing::default();
        let evicted = unless_proven(std::future::ready(()), standing.clone());
        assert_eq!(unless_evicted(busy(|| {}), evicted).await, None);
        standing.prove();
        let evicted = unless_proven(std::future::ready(()), standing);
        let served = unless_evicted(busy(|| {}), evicted);
        assert_eq!(served.await, Some(Closure::Idle));
    }

    /// A connection that does something, has to wait once, and ends.
    async fn busy(act: impl FnOnce()) -> Option<Closure> {
        act();
        tokio::task::yield_now().await;
        Some(Closure::Idle)
    }

    #[tokio::test]
    async fn whoever_goes_on_in_the_moment_of_its_eviction_is_not_interrupted() {
        let standing = Standing::default();
        standing.prove();
        assert!(standing.rest());
        let evicted = unless_proven(std::future::ready(()), standing.clone());
        assert_eq!(unless_evicted(busy(|| {}), evicted).await, None);
        let evicted = unless_proven(std::future::ready(()), standing.clone());
        let served = unless_evicted(busy(|| standing.resume()), evicted);
        assert_eq!(served.await, Some(Closure::Idle));
    }

    #[test]
    fn a_system_without_descriptors_is_asked_less_and_less() {
        let mut patience = Patience::default();
        let exhausted = io::Error::other("too many open files");
        let pauses: Vec<Duration> = (0..9).map(|_| patience.after(&exhausted)).collect();
        assert_eq!(
            pauses[..2],
            [Duration::from_millis(10), Duration::from_millis(20)]
        );
        assert_eq!(pauses[8], Patience::LONGEST);
        let gone = io::Error::from(io::ErrorKind::ConnectionAborted);
        assert_eq!(patience.after(&gone), Duration::ZERO);
    }
}
