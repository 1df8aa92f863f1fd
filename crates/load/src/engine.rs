//! Owns connections of the load: one thread, one event queue and one buffer for all of them, so that
//! the server is the limit. What is spoken on a connection is a [`Protocol`]; knows none of them.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use mio::{Events, Interest, Poll, Registry, Token, net::TcpStream};

use super::Error;

/// Large enough that a system call costs little beside what it reads.
const READ_BYTES: usize = 256 * 1024;

/// How many connections are opened before the server has confirmed them: fewer than its listener
/// queues, as a connection beyond that is tried again only a second later.
const UNCONFIRMED_MAX: usize = 100;

/// Why a connection cannot go on.
pub type ProtocolError = Box<dyn std::error::Error + Send + Sync>;

/// One side of a connection: takes bytes as they come and counts what is in them.
pub trait Protocol: Send {
    /// What is sent first.
    fn opening(&self) -> Vec<u8>;

    /// Takes what was read, and appends to `replies` what has to be sent because of it. Returns how
    /// many events, or answers, it completed.
    ///
    /// # Errors
    /// The server ended the stream, or sent something that cannot be read.
    fn receive(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Result<u64, ProtocolError>;

    /// Whether the server has confirmed the opening: nothing that is published later is missed.
    fn is_ready(&self) -> bool;
}

/// Connections, by index in the order in which they were opened.
pub struct Engine {
    poll: Poll,
    happened: Events,
    buffer: Vec<u8>,
    connections: Vec<Connection>,
    /// How many connections, from the first on, are known to be ready.
    ready: usize,
}

/// One connection.
pub struct Connection {
    socket: TcpStream,
    protocol: Box<dyn Protocol>,
    unsent: VecDeque<Bytes>,
    is_writable: bool,
    received: u64,
    received_bytes: u64,
}

impl Engine {
    /// Without connections.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            poll: Poll::new().map_err(Error::system("no event queue can be made"))?,
            happened: Events::with_capacity(1024),
            buffer: vec![0; READ_BYTES],
            connections: Vec::new(),
            ready: 0,
        })
    }

    /// Opens a connection, and returns its index.
    ///
    /// # Errors
    /// [`Error::System`] when the server does not take it.
    pub fn open(
        &mut self,
        address: SocketAddr,
        protocol: Box<dyn Protocol>,
    ) -> Result<usize, Error> {
        let index = self.connections.len();
        let mut connection = Connection::open(self.poll.registry(), index, address, protocol)
            .map_err(Error::system("the server cannot be connected to"))?;
        connection.flush()?;
        self.connections.push(connection);
        Ok(index)
    }

    /// Opens a connection for each protocol, a few at a time so that no queue of the server
    /// overflows, and waits until the server has confirmed all of them. Calls `wanted` while it
    /// waits, and ends with its error.
    ///
    /// # Errors
    /// As [`open`](Self::open), [`turn`](Self::turn) and `wanted`.
    pub fn open_all(
        &mut self,
        address: SocketAddr,
        protocols: impl IntoIterator<Item = Box<dyn Protocol>>,
        mut wanted: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        for (opened, protocol) in protocols.into_iter().enumerate() {
            if opened % UNCONFIRMED_MAX == UNCONFIRMED_MAX - 1 {
                self.wait_until_ready(&mut wanted)?;
            }
            self.open(address, protocol)?;
        }
        self.wait_until_ready(&mut wanted)
    }

    fn wait_until_ready(
        &mut self,
        wanted: &mut impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        while !self.is_ready() {
            wanted()?;
            self.turn(Some(Duration::from_millis(50)), |_, _| ())?;
        }
        Ok(())
    }

    /// Whether the server has confirmed all connections.
    pub fn is_ready(&mut self) -> bool {
        let waiting = self.connections.iter().skip(self.ready);
        self.ready += waiting
            .take_while(|connection| connection.protocol.is_ready())
            .count();
        self.ready == self.connections.len()
    }

    /// All connections.
    #[must_use]
    pub fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// For other sources of events, which end a wait. Their tokens are counted from the largest down.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// Sends on a connection, now or as soon as the server takes it.
    ///
    /// # Errors
    /// [`Error::System`] when the connection is lost.
    pub fn send(&mut self, index: usize, bytes: Bytes) -> Result<(), Error> {
        match self.connections.get_mut(index) {
            Some(connection) => connection.send(bytes),
            None => Err(Error::Protocol("there is no such connection".to_owned())),
        }
    }

    /// Waits until something happens, and deals with all of it. `each` is told of every connection
    /// that has received more events, with how many it has now.
    ///
    /// # Errors
    /// [`Error::Protocol`] or [`Error::System`] when a connection ended.
    pub fn turn(
        &mut self,
        wait: Option<Duration>,
        mut each: impl FnMut(usize, u64),
    ) -> Result<(), Error> {
        if let Err(error) = self.poll.poll(&mut self.happened, wait) {
            if error.kind() == ErrorKind::Interrupted {
                return Ok(());
            }
            return Err(Error::system("events cannot be waited for")(error));
        }
        for event in &self.happened {
            let Token(index) = event.token();
            // Other sources only end the wait.
            let Some(connection) = self.connections.get_mut(index) else {
                continue;
            };
            if event.is_writable() {
                connection.is_writable = true;
                connection.flush()?;
            }
            if event.is_readable()
                && connection.receive(&mut self.buffer, event.is_read_closed())?
            {
                each(index, connection.received);
            }
        }
        Ok(())
    }
}

impl Connection {
    fn open(
        registry: &Registry,
        index: usize,
        address: SocketAddr,
        protocol: Box<dyn Protocol>,
    ) -> io::Result<Self> {
        // It may wait: nothing is measured yet.
        let socket = std::net::TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut socket, Token(index), interest)?;
        let opening = Bytes::from(protocol.opening());
        Ok(Self {
            socket,
            protocol,
            unsent: VecDeque::from([opening]),
            is_writable: true,
            received: 0,
            received_bytes: 0,
        })
    }

    /// How many events, or answers, it has received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How many bytes it has received.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    fn send(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.unsent.push_back(bytes);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Error> {
        while self.is_writable
            && let Some(bytes) = self.unsent.front_mut()
        {
            if bytes.is_empty() {
                self.unsent.pop_front();
                continue;
            }
            match self.socket.write(bytes) {
                Ok(written) => bytes.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system("a connection was lost")(error)),
            }
        }
        Ok(())
    }

    /// Reads all that has come, and says whether that completed anything. What comes after a short
    /// read is another event (epoll(7)), unless it is the end, which `is_closed` says has come.
    fn receive(&mut self, buffer: &mut [u8], is_closed: bool) -> Result<bool, Error> {
        let before = self.received;
        let mut replies = Vec::new();
        loop {
            match self.socket.read(buffer) {
                Ok(0) => {
                    let text = "the server closed the connection".to_owned();
                    return Err(Error::Protocol(text));
                }
                Ok(count) => {
                    self.received_bytes += count as u64;
                    let bytes = buffer.get(..count).unwrap_or_default();
                    let received = self.protocol.receive(bytes, &mut replies);
                    self.received +=
                        received.map_err(|error| Error::Protocol(error.to_string()))?;
                    if count < buffer.len() && !is_closed {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system("a connection was lost")(error)),
            }
        }
        if !replies.is_empty() {
            self.send(replies.into())?;
        }
        Ok(self.received > before)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::Barrier, thread};

    use super::*;

    /// Is answered with as many bytes as it sent, and counts those.
    struct Echo {
        opening: Vec<u8>,
        received: usize,
    }

    impl Protocol for Echo {
        fn opening(&self) -> Vec<u8> {
            self.opening.clone()
        }

        fn receive(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Result<u64, ProtocolError> {
            if bytes.contains(&b'!') {
                return Err("it shouted".into());
            }
            self.received += bytes.len();
            if self.received == self.opening.len() {
                replies.extend_from_slice(b"bye");
            }
            Ok(bytes.len() as u64)
        }

        fn is_ready(&self) -> bool {
            self.received > 0
        }
    }

    fn echo(opening: Vec<u8>) -> Box<dyn Protocol> {
        Box::new(Echo {
            opening,
            received: 0,
        })
    }

    #[test]
    fn connections_are_opened_read_and_written_beyond_what_a_socket_holds() {
        const BYTES: usize = 8 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = |mut socket: std::net::TcpStream, all: &Barrier| {
            let mut read = vec![0; BYTES];
            socket.read_exact(&mut read).unwrap();
            socket.write_all(&read).unwrap();
            let mut bye = [0; 3];
            socket.read_exact(&mut bye).unwrap();
            assert_eq!(&bye, b"bye");
            all.wait();
        };
        let server = thread::spawn(move || {
            let all = Barrier::new(3);
            thread::scope(|scope| {
                for _ in 0..3 {
                    let (socket, _) = listener.accept().unwrap();
                    let all = &all;
                    scope.spawn(move || serve(socket, all));
                }
            });
        });
        let mut engine = Engine::new().unwrap();
        let protocols = (0..3).map(|_| echo(vec![b'x'; BYTES]));
        engine.open_all(address, protocols, || Ok(())).unwrap();
        // Each is closed once all have said goodbye: the first end that is noticed is the error.
        let error = loop {
            if let Err(error) = engine.turn(None, |_, received| assert!(received > 0)) {
                break error;
            }
        };
        server.join().unwrap();
        assert_eq!(error.to_string(), "the server closed the connection");
        for connection in engine.connections() {
            assert_eq!(connection.received(), BYTES as u64);
            assert_eq!(connection.received_bytes(), BYTES as u64);
        }
    }

    #[test]
    fn what_a_protocol_cannot_read_and_what_is_not_wanted_are_errors() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut engine = Engine::new().unwrap();
        let interrupted = engine.open_all(address, [echo(vec![b'x'])], || Err(Error::Interrupted));
        assert!(matches!(interrupted, Err(Error::Interrupted)));
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"!").unwrap();
        let error = loop {
            if let Err(error) = engine.turn(None, |_, _| ()) {
                break error;
            }
        };
        assert_eq!(error.to_string(), "it shouted");
    }

    #[test]
    fn an_end_that_came_with_the_last_bytes_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut engine = Engine::new().unwrap();
        let address = listener.local_addr().unwrap();
        engine.open(address, echo(Vec::new())).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"x").unwrap();
        drop(socket);
        // Both are there before anything is read, so no further event tells of the end.
        let error = loop {
            if let Err(error) = engine.turn(None, |_, _| ()) {
                break error;
            }
        };
        assert_eq!(error.to_string(), "the server closed the connection");
        assert_eq!(engine.connections()[0].received_bytes(), 1);
    }
}
