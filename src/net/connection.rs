//! Owns what a connection is to whoever serves it: bytes both ways, over TLS or not, and who is on
//! the other side as far as the connection shows it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::server::TlsStream;

use super::{
    Newcomer,
    slots::Standing,
    tls::{Acceptor, ClientCertificate},
};

/// How much of what was written to a connection may wait in the kernel before any of it is sent, in bytes. More
/// would keep a ping waiting behind it: a client that takes 8 KiB a second gets it after 16 seconds. Less would
/// cost clients that are a little behind more system calls: with 16 KiB, a delivery to one of a thousand
/// subscribers took 1.2 to 1.9 times as much CPU. What is on its way counts beside it, so this does not slow down
/// links that are long and fast.
const KERNEL_UNSENT_BYTES: u32 = 128 * 1024;

/// Lets the kernel hold little of what is written to the connections of a listener.
pub(super) fn hold_little(listener: &TcpListener) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(listener).set_tcp_notsent_lowat(KERNEL_UNSENT_BYTES);
    #[cfg(not(target_os = "linux"))]
    let _ = (listener, KERNEL_UNSENT_BYTES);
}

/// A connection that was accepted, and its handshake done.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    certificate: Option<ClientCertificate>,
    standing: Standing,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    // Boxed: it is a kilobyte, where the other is a few words.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Shakes hands, if the port does TLS. `None` when that failed.
    pub(super) async fn open(
        stream: TcpStream,
        newcomer: Newcomer,
        tls: Option<Acceptor>,
    ) -> Option<Self> {
        let (stream, certificate) = match tls {
            None => (Stream::Plain(stream), None),
            Some(acceptor) => {
                // The handshake takes much more room than what comes of it.
                let (stream, certificate) = Box::pin(acceptor.accept(stream, &newcomer)).await?;
                (Stream::Tls(Box::new(stream)), certificate)
            }
        };
        Some(Self {
            stream,
            certificate,
            standing: newcomer.standing,
        })
    }

    /// Where the handler says that the client has proven something, so that its connection is not
    /// evicted for a new one.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What the client's certificate says, where it showed one.
    #[must_use]
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref()
    }
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        Self {
            stream: Stream::Plain(stream),
            certificate: None,
            standing: Standing::default(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
