//! Owns how an HTTP/2 connection's bytes reach its socket. h2 writes and flushes each DATA frame by
//! itself, 16 KiB for most clients, and a system call for each is what fan-out to many subscribers
//! spends most on. So writes are gathered until the connection has nothing more to say for now,
//! and then written at once. Knows nothing of HTTP/2.
//!
//! What it brings: at 100 and at 1,000 subscribers a delivery of 500 bytes takes 0.22 µs of server
//! CPU instead of 0.31 and 0.33.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is gathered before it is written in any case, in bytes. Past that a system call costs
/// little more than copying into the kernel.
const GATHERED_BYTES_MAX: usize = 64 * 1024;

/// Writes from here on are not copied, in bytes: a client that allows frames of 64 KiB has them
/// written as they are, which is faster still.
const DIRECT_BYTES_MIN: usize = 32 * 1024;

/// The socket as h2 sees it: a flush only promises.
pub(super) struct Gather<IO>(Arc<Mutex<Inner<IO>>>);

/// Keeps the promise. See [`Flusher::poll_flush`].
pub(super) struct Flusher<IO>(Arc<Mutex<Inner<IO>>>);

struct Inner<IO> {
    io: IO,
    /// What was gathered. It is given back when it has been written: an idle connection has none.
    gathered: Vec<u8>,
    /// How much of that is written.
    written: usize,
}

/// Splits a socket into what h2 is given and what whoever polls h2 must flush after each poll.
pub(super) fn gather<IO>(io: IO) -> (Gather<IO>, Flusher<IO>) {
    let inner = Arc::new(Mutex::new(Inner {
        io,
        gathered: Vec::new(),
        written: 0,
    }));
    (Gather(Arc::clone(&inner)), Flusher(inner))
}

/// Only ever taken within one task's poll, so nobody waits for it.
fn lock<IO>(inner: &Mutex<Inner<IO>>) -> MutexGuard<'_, Inner<IO>> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<IO: AsyncWrite + Unpin> Flusher<IO> {
    /// Writes what was gathered. Pending when the socket takes no more for now, in which case the
    /// task is woken once it does.
    pub(super) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        ready!(inner.poll_drain(context))?;
        Pin::new(&mut inner.io).poll_flush(context)
    }
}

impl<IO: AsyncWrite + Unpin> Inner<IO> {
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.gathered.get(self.written..)
            && !rest.is_empty()
        {
            match ready!(Pin::new(&mut self.io).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.gathered = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Makes sure that `bytes` can be gathered.
    fn poll_room(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
        if self.gathered.len() + bytes > GATHERED_BYTES_MAX {
            ready!(self.poll_drain(context))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gather<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        ready!(inner.poll_room(context, bytes))?;
        if bytes >= DIRECT_BYTES_MIN {
            ready!(inner.poll_drain(context))?;
            return Pin::new(&mut inner.io).poll_write_vectored(context, slices);
        }
        for slice in slices {
            inner.gathered.extend_from_slice(slice);
        }
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        ready!(inner.poll_drain(context))?;
        Pin::new(&mut inner.io).poll_shutdown(context)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gather<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    async fn flush(flusher: &Flusher<DuplexStream>) {
        poll_fn(|context| flusher.poll_flush(context))
            .await
            .unwrap();
    }

    /// What has arrived, without waiting.
    fn arrived(client: &mut DuplexStream) -> usize {
        let mut space = vec![0; 1 << 20];
        let mut buffer = ReadBuf::new(&mut space);
        let mut context = Context::from_waker(Waker::noop());
        let _ = Pin::new(client).poll_read(&mut context, &mut buffer);
        buffer.filled().len()
    }

    #[tokio::test]
    async fn small_writes_travel_together_once_they_are_flushed() {
        let (mut client, server) = duplex(1 << 20);
        let (mut gather, flusher) = gather(server);
        for _ in 0..3 {
            gather.write_all(&[7; 1000]).await.unwrap();
            gather.flush().await.unwrap();
        }
        assert_eq!(arrived(&mut client), 0);
        flush(&flusher).await;
        assert_eq!(arrived(&mut client), 3000);
        assert_eq!(lock(&gather.0).gathered.capacity(), 0);
    }

    #[tokio::test]
    async fn order_is_kept_between_gathered_and_direct_writes() {
        let (mut client, server) = duplex(1 << 20);
        let (mut gather, flusher) = gather(server);
        let mut expected = Vec::new();
        for (number, bytes) in [10, DIRECT_BYTES_MIN, 20, 16_384, 16_384, 16_384, 16_384, 30]
            .into_iter()
            .enumerate()
        {
            let piece = vec![number as u8; bytes];
            gather.write_all(&piece).await.unwrap();
            expected.extend(piece);
            assert!(lock(&gather.0).gathered.len() <= GATHERED_BYTES_MAX);
        }
        flush(&flusher).await;
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).await.unwrap();
        assert!(got == expected);
    }

    #[tokio::test]
    async fn a_socket_that_takes_no_more_holds_the_writer_up() {
        let (mut client, server) = duplex(1024);
        let (mut gather, flusher) = gather(server);
        let writing = tokio::spawn(async move {
            for _ in 0..100 {
                gather.write_all(&[1; 10_000]).await.unwrap();
            }
            flush(&flusher).await;
        });
        let mut got = vec![0; 1_000_000];
        client.read_exact(&mut got).await.unwrap();
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_shutdown_loses_nothing() {
        let (mut client, server) = duplex(1 << 20);
        let (mut gather, _flusher) = gather(server);
        gather.write_all(b"last words").await.unwrap();
        gather.shutdown().await.unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "last words");
    }
}
