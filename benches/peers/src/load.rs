//! Owns the connections of the load: one thread, one epoll, one buffer for all of them. The same
//! for every server, and cheap, so that the server's core is the limit.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use mio::{Events, Interest, Poll, Token, net::TcpStream, unix::SourceFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::protocol::Protocol;

/// Large enough that a system call's cost does not matter beside the bytes.
const READ_BYTES: usize = 256 * 1024;

/// How long anything may take that should be there at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fewer than any server keeps waiting; a connection beyond that is tried again only a second later.
const OPENED_AT_ONCE: usize = 100;

const TIMER: Token = Token(usize::MAX);

/// Connections, by index in the order in which they were opened.
pub struct Load {
    poll: Poll,
    happened: Events,
    buffer: Vec<u8>,
    connections: Vec<Connection>,
    timer: std::os::fd::OwnedFd,
    /// How many connections, from the first on, are known to be ready.
    confirmed: usize,
}

/// One connection.
pub struct Connection {
    socket: TcpStream,
    protocol: Protocol,
    to_send: VecDeque<Bytes>,
    is_writable: bool,
    /// Events (or answers) received so far.
    pub received: u64,
    /// Bytes received so far.
    pub received_bytes: u64,
}

impl Load {
    /// No connections yet.
    ///
    /// # Errors
    /// The system has no room for an epoll or a timer.
    pub fn new() -> Result<Self> {
        let poll = Poll::new()?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let mut source = SourceFd(&timer.as_raw_fd());
        poll.registry()
            .register(&mut source, TIMER, Interest::READABLE)?;
        Ok(Self {
            poll,
            happened: Events::with_capacity(1024),
            buffer: vec![0; READ_BYTES],
            connections: Vec::new(),
            timer,
            confirmed: 0,
        })
    }

    /// Opens a connection. Returns its index.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn open(&mut self, address: SocketAddr, protocol: Protocol) -> Result<usize> {
        // Nothing is measured yet: it may wait.
        let socket = std::net::TcpStream::connect(address)
            .with_context(|| format!("no connection to {address}"))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        let index = self.connections.len();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut socket, Token(index), interest)?;
        let hello = protocol.hello();
        let mut connection = Connection {
            socket,
            protocol,
            to_send: VecDeque::new(),
            is_writable: true,
            received: 0,
            received_bytes: 0,
        };
        connection.send(hello.into())?;
        self.connections.push(connection);
        Ok(index)
    }

    /// Opens one connection for each of these, a few at a time so that no queue of the server
    /// overflows, and waits until the server has confirmed them all.
    ///
    /// # Errors
    /// The server does not take or confirm them.
    pub fn open_all(
        &mut self,
        address: SocketAddr,
        protocols: impl Iterator<Item = Protocol>,
    ) -> Result<()> {
        for (opened, protocol) in protocols.enumerate() {
            if opened % OPENED_AT_ONCE == OPENED_AT_ONCE - 1 {
                self.wait_until_ready()?;
            }
            self.open(address, protocol)?;
        }
        self.wait_until_ready()
    }

    /// Waits until the server has confirmed every connection.
    ///
    /// # Errors
    /// It does not in time, or says that something is wrong.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // Those that were confirmed are at the front.
        let mut confirmed = self.confirmed;
        loop {
            let waiting = self.connections.iter().skip(confirmed);
            confirmed += waiting
                .take_while(|connection| connection.protocol.is_ready())
                .count();
            if confirmed == self.connections.len() {
                self.confirmed = confirmed;
                return Ok(());
            }
            self.turn(Some(Duration::from_millis(50)), |_, _| ())?;
            if Instant::now() > deadline {
                bail!("not every subscriber was accepted in {PATIENCE:?}");
            }
        }
    }

    /// All connections.
    #[must_use]
    pub fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// Sends on a connection, now or as soon as it takes it.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, index: usize, bytes: Bytes) -> Result<()> {
        let connection = self.connections.get_mut(index);
        connection.context("no such connection")?.send(bytes)
    }

    /// Waits for something to happen, and deals with all of it. `each` is told of every connection
    /// that has received more, with how much it has now.
    ///
    /// # Errors
    /// A connection ended, or the server said that something is wrong.
    pub fn turn(&mut self, wait: Option<Duration>, mut each: impl FnMut(usize, u64)) -> Result<()> {
        if let Err(error) = self.poll.poll(&mut self.happened, wait) {
            if error.kind() == ErrorKind::Interrupted {
                return Ok(());
            }
            return Err(error.into());
        }
        for event in &self.happened {
            let Token(index) = event.token();
            // The timer is there to end the wait.
            let Some(connection) = self.connections.get_mut(index) else {
                continue;
            };
            if event.is_writable() {
                connection.is_writable = true;
                connection.flush()?;
            }
            if event.is_readable() && connection.receive(&mut self.buffer)? {
                each(index, connection.received);
            }
        }
        Ok(())
    }

    /// Ends a wait at this moment, to the microsecond; epoll alone counts in milliseconds.
    ///
    /// # Errors
    /// The system refuses.
    pub fn wake_at(&self, at: Instant) -> Result<()> {
        // Zero would switch the timer off.
        let left = at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(left)?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

impl Connection {
    fn send(&mut self, bytes: Bytes) -> Result<()> {
        if !bytes.is_empty() {
            self.to_send.push_back(bytes);
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        while self.is_writable
            && let Some(bytes) = self.to_send.front_mut()
        {
            match self.socket.write(bytes) {
                Ok(written) if written == bytes.len() => {
                    self.to_send.pop_front();
                }
                Ok(written) => bytes::Buf::advance(bytes, written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection was lost"),
            }
        }
        Ok(())
    }

    /// Reads all that is there. Returns whether it completed anything.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let before = self.received;
        let mut answer = Vec::new();
        loop {
            match self.socket.read(buffer) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(read) => {
                    self.received_bytes += read as u64;
                    let bytes = buffer.get(..read).unwrap_or_default();
                    self.received += self.protocol.receive(bytes, &mut answer)?;
                    // What comes after a short read wakes the epoll again (epoll(7)).
                    if read < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection was lost"),
            }
        }
        self.send(answer.into())?;
        Ok(self.received > before)
    }
}
