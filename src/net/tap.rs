//! Owns how something looks at a connection's bytes as they pass, and may end it over them. Knows
//! nothing of what it looks for.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What looks at the bytes.
pub trait Tap {
    /// Whether anything is read at all.
    fn may_read(&self) -> bool {
        true
    }

    /// Looks at bytes that were read.
    ///
    /// # Errors
    ///
    /// Those that end the connection.
    fn read(&mut self, bytes: &[u8], context: &mut Context<'_>) -> io::Result<()>;

    /// So many bytes were written.
    fn written(&mut self, bytes: usize) {
        let _ = bytes;
    }
}

/// A connection with a tap in it.
pub struct Tapped<S, T> {
    stream: S,
    pub(crate) tap: T,
}

impl<S, T> Tapped<S, T> {
    /// Puts the tap in.
    pub fn new(stream: S, tap: T) -> Self {
        Self { stream, tap }
    }
}

impl<S: AsyncRead + Unpin, T: Tap + Unpin> AsyncRead for Tapped<S, T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, tap } = self.get_mut();
        if !tap.may_read() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(context, buffer))?;
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(tap.read(bytes, context))
    }
}

impl<S: AsyncWrite + Unpin, T: Tap + Unpin> AsyncWrite for Tapped<S, T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, tap } = self.get_mut();
        let written = ready!(Pin::new(stream).poll_write(context, bytes))?;
        tap.written(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, tap } = self.get_mut();
        let written = ready!(Pin::new(stream).poll_write_vectored(context, slices))?;
        tap.written(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
