//! The limit of any fan-out over TCP: one thread, one epoll, events in shared slices, as many as
//! are waiting gathered into one write. No framing, no flow control but TCP's own, no filters.
//!
//! A connection says with its first byte whether it subscribes (`S`, answered with one byte) or
//! publishes (`P`, then events as `feed` frames them).

use std::{
    collections::VecDeque,
    io::{ErrorKind, IoSlice, Read as _, Write as _},
    sync::Arc,
};

use anyhow::Result;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use prelude_bridge_peers::feed::Frames;

const LISTENER: Token = Token(usize::MAX);
const READ_BYTES: usize = 256 * 1024;

/// As many slices as one write may gather.
const SLICES_MAX: usize = 64;

struct Connection {
    socket: TcpStream,
    role: Role,
    is_writable: bool,
}

enum Role {
    Unknown,
    Publisher(Frames),
    Subscriber(Waiting),
}

/// What a subscriber has not been sent yet.
#[derive(Default)]
struct Waiting {
    blocks: VecDeque<Arc<[u8]>>,
    /// How much of the first block was sent.
    sent: usize,
}

fn main() -> Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let address = listener.local_addr()?.to_string();
    println!(
        "{}",
        serde_json::json!({"message": "ready", "stream": address})
    );
    let mut happened = Events::with_capacity(1024);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        poll.poll(&mut happened, None)?;
        let mut published = Vec::new();
        for event in &happened {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut connections)?;
                continue;
            }
            let Token(index) = event.token();
            let Some(Some(connection)) = connections.get_mut(index) else {
                continue;
            };
            connection.is_writable |= event.is_writable();
            let read = !event.is_readable() || connection.read(&mut buffer, &mut published).is_ok();
            if !read || connection.write().is_err() {
                connections[index] = None;
            }
        }
        if !published.is_empty() {
            send_all(&mut connections, published.into());
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut Vec<Option<Connection>>,
) -> Result<()> {
    while let Ok((mut socket, _)) = listener.accept() {
        socket.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut socket, Token(connections.len()), interest)?;
        connections.push(Some(Connection {
            socket,
            role: Role::Unknown,
            is_writable: true,
        }));
    }
    Ok(())
}

fn send_all(connections: &mut [Option<Connection>], block: Arc<[u8]>) {
    for slot in connections {
        let Some(connection) = slot else { continue };
        if let Role::Subscriber(waiting) = &mut connection.role {
            waiting.blocks.push_back(Arc::clone(&block));
            if connection.write().is_err() {
                *slot = None;
            }
        }
    }
}

impl Connection {
    /// Reads all that is there; an error where the connection has ended.
    fn read(&mut self, buffer: &mut [u8], published: &mut Vec<u8>) -> std::io::Result<()> {
        loop {
            let read = match self.socket.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut bytes = buffer.get(..read).unwrap_or_default();
            if matches!(self.role, Role::Unknown) {
                let is_subscriber = bytes.first() == Some(&b'S');
                self.role = if is_subscriber {
                    self.socket.write_all(b"S")?;
                    Role::Subscriber(Waiting::default())
                } else {
                    Role::Publisher(Frames::default())
                };
                bytes = bytes.get(1..).unwrap_or_default();
            }
            if let Role::Publisher(frames) = &mut self.role {
                frames.push(bytes, |event| published.extend_from_slice(event));
            }
        }
    }

    fn write(&mut self) -> std::io::Result<()> {
        let Role::Subscriber(waiting) = &mut self.role else {
            return Ok(());
        };
        while self.is_writable && !waiting.blocks.is_empty() {
            let mut slices: [IoSlice<'_>; SLICES_MAX] = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            let mut skip = waiting.sent;
            for (slice, block) in slices.iter_mut().zip(&waiting.blocks) {
                *slice = IoSlice::new(block.get(skip..).unwrap_or_default());
                skip = 0;
                count += 1;
            }
            match self.socket.write_vectored(&slices[..count]) {
                Ok(written) => waiting.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Waiting {
    fn advance(&mut self, written: usize) {
        self.sent += written;
        while let Some(first) = self.blocks.front()
            && self.sent >= first.len()
        {
            self.sent -= first.len();
            self.blocks.pop_front();
        }
    }
}
