//! Owns the turns that connections take: who has much to say gives way to the others in between.
//! Knows nothing of what is said.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop::poll_proceed,
};

/// tokio lets a task go on for 128 operations, and a read is one, whatever its size. A peer that
/// sends bytes which cost much, as chunks or frames of no length do, keeps a thread for tens of
/// milliseconds by that. So a read counts as one operation for each of these many bytes: a turn is
/// 16 KiB, more than most batches and all requests have.
const OPERATION_BYTES: usize = 128;

/// A connection whose reading takes turns by its bytes.
pub struct Fair<S>(S);

impl<S> Fair<S> {
    /// Takes a connection.
    pub fn new(stream: S) -> Self {
        Self(stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Fair<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(context, buffer))?;
        for _ in 0..(buffer.filled().len() - before) / OPERATION_BYTES {
            match poll_proceed(context) {
                Poll::Ready(operation) => operation.made_progress(),
                // The turn is over: the next read waits for the next one.
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Fair<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// How many bytes one poll of a task reads at most, of many that are there.
    async fn turn_bytes(read_bytes: usize) -> usize {
        const ALL: usize = 1 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let writer = tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&vec![7; ALL]).await.unwrap();
            stream
        });
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = Fair::new(stream);
        let (mut read, mut most) = (0, 0);
        while read < ALL {
            let turn = AtomicUsize::new(0);
            poll_fn(|context| {
                let before = turn.load(Ordering::Relaxed);
                let mut bytes = vec![0; read_bytes];
                loop {
                    let mut buffer = ReadBuf::new(&mut bytes);
                    match Pin::new(&mut stream).poll_read(context, &mut buffer) {
                        Poll::Ready(done) => done.unwrap(),
                        Poll::Pending if turn.load(Ordering::Relaxed) > before => {
                            return Poll::Ready(());
                        }
                        Poll::Pending => return Poll::Pending,
                    }
                    turn.fetch_add(buffer.filled().len(), Ordering::Relaxed);
                    if read + turn.load(Ordering::Relaxed) == ALL {
                        return Poll::Ready(());
                    }
                }
            })
            .await;
            let turn = turn.into_inner();
            read += turn;
            most = most.max(turn);
            // Begins the next turn.
            tokio::task::yield_now().await;
        }
        drop(writer.await.unwrap());
        most
    }

    #[tokio::test]
    async fn a_turn_is_over_after_so_many_bytes_whatever_the_reads_are() {
        // The last read of a turn may go over.
        assert!(turn_bytes(16 * 1024).await <= 16 * 1024);
        assert!(turn_bytes(10 * 1024).await <= 20 * 1024);
        assert!(turn_bytes(1024).await <= 16 * 1024);
    }
}
