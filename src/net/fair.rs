//! Owns the turns that connections take: who has much to say gives way to the others in between.
//! Knows nothing of what is said.

use std::{
    io,
    task::{Context, Poll},
};

use tokio::task::coop::poll_proceed;

use super::tap::Tap;

/// tokio lets a task go on for 128 operations, and a read is one, whatever its size. A peer that
/// sends bytes which cost much, as chunks or frames of no length do, keeps a thread for tens of
/// milliseconds by that. So a read counts as one operation for each of these many bytes: a turn is
/// 16 KiB, more than most batches and all requests have.
const OPERATION_BYTES: usize = 128;

/// Makes a connection's reading take turns by its bytes.
pub struct Fair;

impl Tap for Fair {
    fn read(&mut self, bytes: &[u8], context: &mut Context<'_>) -> io::Result<()> {
        for _ in 0..bytes.len() / OPERATION_BYTES {
            match poll_proceed(context) {
                Poll::Ready(operation) => operation.made_progress(),
                // The turn is over: the next read waits for the next one.
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::net::tap::Tapped;

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
        let mut stream = Tapped::new(stream, Fair);
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
