//! Owns how an HTTP/2 connection's bytes reach its socket. h2 writes and flushes each DATA frame by
//! itself, 16 KiB for most clients, and a system call for each is what fan-out to many subscribers
//! spends most on. So writes are gathered until the connection has nothing more to say for now,
//! and then written at once. Knows nothing of HTTP/2.
//!
//! Gathering does not copy: long slices of responses are recognised and kept as the shared bytes
//! that they are, see [`Shelf`]. Their memory is the same for all subscribers, so that it is still
//! in the CPU's caches when the kernel copies it for the next one.
//!
//! What gathering brings: at 100 and at 1,000 subscribers a delivery of 500 bytes took 0.22 µs of
//! server CPU instead of 0.31 and 0.33. What keeping slices brings: 0.16 instead of 0.21.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::unsent::Share;

/// How much is gathered before it is written in any case, in bytes: as much as a socket usually
/// takes at once. Past that a system call costs little beside its bytes.
const GATHERED_BYTES_MAX: usize = 256 * 1024;

/// How much of it may be what holds nothing of the connection's memory, in bytes: h2 copies short
/// frames instead of showing them, and its own have no response. A client can ask for many of either,
/// and not read.
const UNHELD_BYTES_MAX: usize = 32 * 1024;

/// How many slices one system call is given. More bring nothing: with frames of 16 KiB, each a
/// header and a slice, this is twice what is gathered.
const SLICES_MAX: usize = 64;

/// Slices that are shorter are copied, in bytes: a copy costs less than an entry of its own.
const KEPT_BYTES_MIN: usize = 1024;

/// What is allocated for the first slices: enough for the headers and slices of most turns.
const PIECES_AT_FIRST: usize = 16;
const COPIED_BYTES_AT_FIRST: usize = 512;

/// The socket as h2 sees it: a flush only promises.
pub(super) struct Gather<IO>(Arc<Mutex<Inner<IO>>>);

/// Keeps the promise. See [`Flusher::poll_flush`].
pub(super) struct Flusher<IO>(Arc<Mutex<Inner<IO>>>);

/// Where a response puts the shared bytes that it is about to show to h2 as plain slices, so that
/// the same slices, when they come to be written a moment later, can be kept without a copy. One
/// for each connection. Forgetting to put something there costs a copy and nothing else.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    parts: Vec<Bytes>,
    /// What they hold of the connection's memory, until the socket has taken them.
    share: Option<Arc<Share>>,
}

struct Inner<IO> {
    io: IO,
    shelf: Shelf,
    /// What was gathered, in order, up to `copied`.
    pieces: VecDeque<Bytes>,
    /// What was gathered last and had to be copied. Empty, it holds no memory: an idle connection
    /// has none.
    copied: BytesMut,
    /// All of it, in bytes.
    gathered: usize,
    /// How much of it at most holds nothing of the connection's memory, in bytes.
    unheld: usize,
    /// How many bytes were ever gathered.
    gathered_ever: u64,
    /// Whether the socket took no more when it was last asked.
    is_full: bool,
    /// How often it took more after it had been full.
    resumed: u64,
    /// What the gathered bytes hold of the connection's memory, each until so many bytes were written.
    shares: VecDeque<(u64, Arc<Share>)>,
}

/// Splits a socket into what h2 is given and what whoever polls h2 must flush after each poll.
pub(super) fn gather<IO>(io: IO, shelf: Shelf) -> (Gather<IO>, Flusher<IO>) {
    let inner = Arc::new(Mutex::new(Inner {
        io,
        shelf,
        pieces: VecDeque::new(),
        copied: BytesMut::new(),
        gathered: 0,
        unheld: 0,
        gathered_ever: 0,
        is_full: false,
        resumed: 0,
        shares: VecDeque::new(),
    }));
    (Gather(Arc::clone(&inner)), Flusher(inner))
}

/// Only ever taken within one task's poll, so nobody waits for it.
fn lock<T>(inner: &Mutex<T>) -> MutexGuard<'_, T> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelf {
    /// Puts there what is shown now, in place of what was shown before, and what holds its memory.
    pub(super) fn show<'a>(
        &self,
        parts: impl Iterator<Item = &'a Bytes>,
        share: Option<&Arc<Share>>,
    ) {
        let kept = parts.filter(|part| part.len() >= KEPT_BYTES_MIN);
        let mut shown = lock(&self.0);
        shown.parts.clear();
        shown.parts.extend(kept.cloned());
        shown.share = share.cloned();
    }

    /// Whether what was shown holds memory.
    fn holds(&self) -> bool {
        lock(&self.0).share.is_some()
    }

    /// Lets go of everything. Returns what holds the memory of what was shown.
    fn clear(&self) -> Option<Arc<Share>> {
        let mut shown = lock(&self.0);
        shown.parts.clear();
        shown.share.take()
    }

    /// The shared bytes that a slice is a part of.
    fn find(&self, slice: &[u8]) -> Option<Bytes> {
        let slice_at = slice.as_ptr_range();
        let shown = lock(&self.0);
        let mut holding = shown.parts.iter().filter(|part| {
            let part_at = part.as_ptr_range();
            part_at.start <= slice_at.start && slice_at.end <= part_at.end
        });
        holding.next().map(|part| part.slice_ref(slice))
    }
}

impl<IO> Flusher<IO> {
    /// How often the socket took more after it had been full. It does when the client has taken much
    /// of what was written before.
    pub(super) fn resumed(&self) -> u64 {
        lock(&self.0).resumed
    }
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
        self.close_copied();
        while self.gathered > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            let slices = slices.get(..count).unwrap_or_default();
            let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
            let was_full = std::mem::replace(&mut self.is_full, written.is_pending());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.advance(written),
            }
            self.resumed += u64::from(was_full);
        }
        self.pieces = VecDeque::new();
        self.copied = BytesMut::new();
        self.shares = VecDeque::new();
        Poll::Ready(Ok(()))
    }

    /// Lets go of what was written.
    fn advance(&mut self, mut written: usize) {
        self.gathered = self.gathered.saturating_sub(written);
        self.unheld = self.unheld.min(self.gathered);
        if let Some((_, share)) = self.shares.front() {
            share.moves();
        }
        let written_ever = self.gathered_ever - self.gathered as u64;
        while let Some((until, _)) = self.shares.front()
            && *until <= written_ever
        {
            self.shares.pop_front();
        }
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }

    /// What was copied becomes a piece, after which another can come.
    fn close_copied(&mut self) {
        if !self.copied.is_empty() {
            self.pieces.push_back(self.copied.split().freeze());
        }
    }

    fn push(&mut self, slice: &[u8]) {
        if self.gathered == 0 {
            self.pieces.reserve(PIECES_AT_FIRST);
            self.copied.reserve(COPIED_BYTES_AT_FIRST);
        }
        self.gathered += slice.len();
        self.gathered_ever += slice.len() as u64;
        let kept = if slice.len() < KEPT_BYTES_MIN {
            None
        } else {
            self.shelf.find(slice)
        };
        match kept {
            Some(kept) => {
                self.close_copied();
                self.pieces.push_back(kept);
            }
            None => self.copied.extend_from_slice(slice),
        }
    }

    /// What was pushed last holds this until it is written.
    fn hold(&mut self, share: Arc<Share>) {
        match self.shares.back_mut() {
            Some((until, last)) if Arc::ptr_eq(last, &share) => *until = self.gathered_ever,
            _ => self.shares.push_back((self.gathered_ever, share)),
        }
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
        let unheld = if inner.shelf.holds() { 0 } else { bytes };
        if inner.gathered + bytes > GATHERED_BYTES_MAX
            || (unheld > 0 && inner.unheld + unheld > UNHELD_BYTES_MAX)
        {
            ready!(inner.poll_drain(context))?;
        }
        inner.unheld += unheld;
        for slice in slices {
            inner.push(slice);
        }
        if let Some(share) = inner.shelf.clear() {
            inner.hold(share);
        }
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
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

    use futures_util::future::poll_immediate;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::http2::unsent::{Budget, Limits, Unsent};

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
        let (mut gather, flusher) = gather(server, Shelf::default());
        for _ in 0..3 {
            gather.write_all(&[7; 1000]).await.unwrap();
            gather.flush().await.unwrap();
        }
        assert_eq!(arrived(&mut client), 0);
        flush(&flusher).await;
        assert_eq!(arrived(&mut client), 3000);
        let inner = lock(&gather.0);
        assert_eq!((inner.pieces.capacity(), inner.copied.capacity()), (0, 0));
    }

    fn connect() -> Unsent {
        let budget = Budget::new(Limits {
            total_bytes_max: 1 << 20,
            credential_bytes_max: 1 << 20,
            connection_bytes_max: 1 << 20,
            connections_max: 1,
        });
        budget.connect(CancellationToken::new())
    }

    /// What h2 does with a frame: shows its slices, and writes them.
    async fn write_shown(gather: &mut Gather<DuplexStream>, shelf: &Shelf, slices: &[&Bytes]) {
        let share = Arc::new(connect().try_hold(1, 1).unwrap());
        shelf.show(slices.iter().copied(), Some(&share));
        let slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        assert_eq!(gather.write_vectored(&slices).await.unwrap(), all);
        assert!(lock(&gather.0).gathered <= GATHERED_BYTES_MAX);
    }

    #[tokio::test]
    async fn what_was_shown_is_kept_and_all_else_is_copied_in_order() {
        let (mut client, server) = duplex(1 << 20);
        let shelf = Shelf::default();
        let (mut gather, flusher) = gather(server, shelf.clone());
        let block = Bytes::from((0..80_000).map(|at| (at % 251) as u8).collect::<Vec<u8>>());
        let (one, two) = (block.slice(..20_000), block.slice(20_000..));
        let (short, head) = (Bytes::from_static(&[1; 60]), Bytes::from_static(b"head"));
        write_shown(&mut gather, &shelf, &[&head, &one]).await;
        write_shown(&mut gather, &shelf, &[&head, &short, &two]).await;
        assert_eq!(lock(&gather.0).pieces.len(), 4, "two heads and two slices");
        assert!(
            lock(&shelf.0).parts.is_empty(),
            "nothing is held for longer"
        );
        // Not shown: copied.
        gather.write_all(&one).await.unwrap();
        let mut expected = Vec::new();
        for slice in [&head, &one, &head, &short, &two, &one] {
            expected.extend_from_slice(slice);
        }
        // More than is gathered.
        for _ in 0..5 {
            write_shown(&mut gather, &shelf, &[&head, &block]).await;
            expected.extend_from_slice(&head);
            expected.extend_from_slice(&block);
        }
        flush(&flusher).await;
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).await.unwrap();
        assert!(got == expected);
    }

    #[tokio::test]
    async fn what_was_gathered_holds_its_memory_until_the_socket_has_taken_it() {
        let unsent = connect();
        let (mut client, server) = duplex(1024);
        let shelf = Shelf::default();
        let (mut gather, flusher) = gather(server, shelf.clone());
        let mut held = Vec::new();
        for byte in [1, 2] {
            let bytes = Bytes::from(vec![byte; 4096]);
            let share = Arc::new(unsent.try_hold(4096, 4096).unwrap());
            for frame in [bytes.slice(..2048), bytes.slice(2048..)] {
                shelf.show([&frame].into_iter(), Some(&share));
                gather.write_all(&frame).await.unwrap();
            }
            held.push(Arc::downgrade(&share));
        }
        let is_held = || [&held[0], &held[1]].map(|share| share.strong_count() > 0);
        let flushed = poll_immediate(flush(&flusher)).await;
        assert!(flushed.is_none(), "the socket takes less");
        assert_eq!(is_held(), [true, true]);
        let (mut first, mut second) = ([0; 4096], [0; 4096]);
        let (_, ()) = tokio::join!(client.read_exact(&mut first), async {
            let _ = poll_immediate(flush(&flusher)).await;
            while is_held()[0] {
                let _ = poll_immediate(flush(&flusher)).await;
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(is_held(), [false, true]);
        let (_, ()) = tokio::join!(client.read_exact(&mut second), flush(&flusher));
        assert_eq!(is_held(), [false, false]);
        assert_eq!((first, second), ([1; 4096], [2; 4096]));
    }

    /// How much is gathered of frames of so many bytes for a client that reads nothing.
    async fn gathered_unread(share: Option<&Arc<Share>>, frame: &Bytes) -> usize {
        let (_client, server) = duplex(1);
        let shelf = Shelf::default();
        let (mut gather, _flusher) = gather(server, shelf.clone());
        loop {
            shelf.show([frame].into_iter(), share);
            if poll_immediate(gather.write_all(frame)).await.is_none() {
                return lock(&gather.0).gathered;
            }
        }
    }

    #[tokio::test]
    async fn what_holds_no_memory_is_gathered_only_while_it_is_little() {
        let share = Arc::new(connect().try_hold(1, 1).unwrap());
        for bytes in [17, 200, 4096] {
            let frame = Bytes::from(vec![1; bytes]);
            let unheld = gathered_unread(None, &frame).await;
            assert!(unheld <= UNHELD_BYTES_MAX, "{unheld}");
            let held = gathered_unread(Some(&share), &frame).await;
            assert!(held + bytes >= GATHERED_BYTES_MAX, "{held}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_takes_no_more_holds_the_writer_up() {
        let (mut client, server) = duplex(1024);
        let (mut gather, flusher) = gather(server, Shelf::default());
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
        let (mut gather, _flusher) = gather(server, Shelf::default());
        gather.write_all(b"last words").await.unwrap();
        gather.shutdown().await.unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "last words");
    }
}
