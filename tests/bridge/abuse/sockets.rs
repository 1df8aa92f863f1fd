//! Sockets of attackers: each from an address of its own where a limit counts by address.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
};

/// Where attackers come from. The healthy clients are at 127.0.0.1.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    connect_from(ATTACKER, address).await
}

pub(super) async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A socket that the system keeps little for, so that not reading is soon noticed.
pub(super) async fn connect_narrow(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.bind((ATTACKER, 0).into())?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads to the end, however it comes, and returns what came before it.
pub(super) async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

/// The status of the first answer; `None` where there is none.
pub(super) fn status(bytes: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(bytes);
    text.split(' ').nth(1)?.parse().ok()
}

/// Whether there was one more byte.
pub(super) async fn reads_a_byte(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0]).await, Ok(1))
}
