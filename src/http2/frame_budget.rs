//! Owns the patience with clients that send frames for nothing. A frame of HTTP/2 costs its sender
//! nine bytes and the server much more, and h2 bounds only some kinds of them: floods of SETTINGS,
//! PING, PRIORITY, WINDOW_UPDATE and unknown frames it answers for ever.
//!
//! A client has something to say only when it calls and in reply to what it is sent: it grants
//! windows for it, acknowledges and measures it. So every frame costs, and what is written to the
//! client pays. This counts frames by their lengths (RFC 9113, section 4.1) and looks at nothing
//! else in them.
//!
//! A client that opens its windows by a few bytes at a time replies to pieces that do not pay for
//! the replies. It must not be taken for a flood, so [`ShortPieces`] limits how often such pieces
//! are sent.

use std::{
    io, mem,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Context,
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{net::tap::Tap, rate::Bucket};

/// How many frames a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What a frame costs, in bytes that are written to the client. The shortest message
    /// of a stream has 70 bytes, and a client has at most `REPLIES` to its frame.
    pub frame_cost_bytes: u64,
    /// What a client has by itself in a second.
    pub frames_per_second: u64,
    /// What a new connection begins with.
    pub frames_at_first: u64,
    /// What can be saved up: what was written lately is still to be replied to;
    /// what was written yesterday pays for no flood today.
    pub frames_saved_max: u64,
}

/// RFC 9113, section 3.4: what comes before the first frame.
const PREFACE_BYTES: usize = 24;
/// RFC 9113, section 4.1: a head, and the length that it begins with.
const HEAD_BYTES: usize = 9;
const LENGTH_BYTES: usize = 3;

/// No more than this is owed for the replies to short pieces: what comes in within so long.
const OWED_MAX: Duration = Duration::from_secs(60);

/// How many frames a client has to say to a DATA frame: a window for the stream, one for the connection,
/// and a PING that measures.
const REPLIES: u64 = 3;

/// The part of a client's frames that its replies to short pieces may be, in percent.
const SHORT_PIECES_PERCENT: u64 = 75;

/// Counts the frames of a connection.
pub(super) struct FrameBudget {
    frame_cost_bytes: u64,
    /// What the client has left, in bytes as of [`Limits::frame_cost_bytes`].
    credit: Bucket,
    /// Bytes until the next frame begins.
    skip: usize,
    /// How much of the next frame's head has come.
    head_bytes: usize,
    /// The length that the next frame says it has, as far as it has come.
    length: usize,
    exhausted: CancellationToken,
}

impl FrameBudget {
    /// `exhausted` is cancelled when the client has sent too much for nothing. From then on nothing
    /// is read: whoever waits for the token ends the connection.
    pub(super) fn new(limits: Limits, exhausted: CancellationToken) -> Self {
        let Limits {
            frame_cost_bytes,
            frames_per_second,
            frames_at_first,
            frames_saved_max,
        } = limits;
        let bytes = |frames: u64| frames.saturating_mul(frame_cost_bytes);
        let saved_max = bytes(frames_saved_max.max(frames_at_first));
        let second = Duration::from_secs(1);
        let credit = Bucket::new(bytes(frames_per_second), second, saved_max, Instant::now());
        Self {
            frame_cost_bytes,
            credit: credit.starting_with(bytes(frames_at_first)),
            skip: PREFACE_BYTES,
            head_bytes: 0,
            length: 0,
            exhausted,
        }
    }

    /// Pays for the frames that begin in these bytes.
    fn pay(&mut self, mut bytes: &[u8]) {
        let mut frames = 0;
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            bytes = rest;
            if self.head_bytes < LENGTH_BYTES {
                self.length = self.length << 8 | usize::from(byte);
            }
            self.head_bytes += 1;
            if self.head_bytes == HEAD_BYTES {
                self.skip = mem::take(&mut self.length);
                self.head_bytes = 0;
                frames += 1;
            }
        }
        let cost = self.frame_cost_bytes.saturating_mul(frames);
        if !self.credit.take(cost, Instant::now()) {
            self.exhausted.cancel();
        }
    }
}

impl Tap for FrameBudget {
    fn may_read(&self) -> bool {
        !self.exhausted.is_cancelled()
    }

    fn read(&mut self, bytes: &[u8], _context: &mut Context<'_>) -> io::Result<()> {
        self.pay(bytes);
        Ok(())
    }

    fn written(&mut self, bytes: usize) {
        self.credit.add(bytes as u64);
    }
}

/// When a connection may be sent pieces so short that they do not pay for the replies to them. All of
/// its streams share it.
pub(super) struct ShortPieces {
    replies_cost_bytes: u64,
    /// What the client has left for its replies, in bytes as of [`Limits::frame_cost_bytes`].
    credit: Mutex<Bucket>,
}

impl ShortPieces {
    pub(super) fn new(limits: &Limits) -> Self {
        let bytes = |frames: u64| {
            let bytes = frames.saturating_mul(limits.frame_cost_bytes);
            bytes.saturating_mul(SHORT_PIECES_PERCENT) / 100
        };
        let credit = Bucket::new(
            bytes(limits.frames_per_second),
            Duration::from_secs(1),
            bytes(limits.frames_at_first),
            Instant::now(),
        );
        Self {
            replies_cost_bytes: REPLIES.saturating_mul(limits.frame_cost_bytes),
            credit: Mutex::new(credit),
        }
    }

    /// Whether a piece of so many bytes pays for less than the replies to it.
    pub(super) fn is_short(&self, piece_bytes: usize) -> bool {
        Self::paid(piece_bytes) < self.replies_cost_bytes
    }

    /// Takes the next turn for a short piece, no later than after `longest`. Those who wait have one after
    /// the other.
    pub(super) fn turn(&self, longest: Duration) -> Turn<'_> {
        let now = Instant::now();
        let mut credit = self.lock();
        let at = credit.reserve(0, now, now + OWED_MAX);
        let owed = credit.reserve(self.replies_cost_bytes, now, now + OWED_MAX);
        Turn {
            short_pieces: self,
            at: at.unwrap_or(now + OWED_MAX).min(now + longest),
            reserved: owed.map_or(0, |_| self.replies_cost_bytes),
        }
    }

    /// A piece of so many bytes was sent. What it pays for besides the replies to it lets short ones
    /// be sent.
    pub(super) fn sent(&self, piece_bytes: usize) {
        let paid = Self::paid(piece_bytes);
        let mut credit = self.lock();
        match paid.checked_sub(self.replies_cost_bytes) {
            Some(surplus) => credit.add(surplus),
            None => {
                let now = Instant::now();
                let owed = self.replies_cost_bytes - paid;
                // Where that much is owed already, it does not matter how much more.
                let _ = credit.reserve(owed, now, now + OWED_MAX);
            }
        }
    }

    fn paid(piece_bytes: usize) -> u64 {
        (HEAD_BYTES as u64).saturating_add(piece_bytes as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn to send a short piece. What is reserved for it is given back when this is dropped: what is then sent
/// is counted by itself.
pub(super) struct Turn<'a> {
    short_pieces: &'a ShortPieces,
    pub(super) at: Instant,
    reserved: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.short_pieces.lock().add(self.reserved);
    }
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::net::tap::Tapped;

    const LIMITS: Limits = Limits {
        frame_cost_bytes: 32,
        frames_per_second: 1_000,
        frames_at_first: 10_000,
        frames_saved_max: 100_000,
    };

    struct Client {
        socket: DuplexStream,
        budget: Tapped<DuplexStream, FrameBudget>,
        exhausted: CancellationToken,
    }

    impl Client {
        async fn connect() -> Self {
            Self::connect_within(LIMITS).await
        }

        async fn connect_within(limits: Limits) -> Self {
            let (socket, server) = duplex(1 << 20);
            let exhausted = CancellationToken::new();
            let budget = Tapped::new(server, FrameBudget::new(limits, exhausted.clone()));
            let mut client = Self {
                socket,
                budget,
                exhausted,
            };
            client.says(&[0; PREFACE_BYTES]).await;
            client
        }

        /// Sends bytes, and has them read in pieces that cut frames anywhere.
        async fn says(&mut self, bytes: &[u8]) {
            self.socket.write_all(bytes).await.unwrap();
            let mut read = vec![0; bytes.len()];
            for piece in read.chunks_mut(10_007) {
                if !self.exhausted.is_cancelled() {
                    self.budget.read_exact(piece).await.unwrap();
                }
            }
        }

        async fn is_told(&mut self, bytes: usize) {
            self.budget.write_all(&vec![0; bytes]).await.unwrap();
            self.socket.read_exact(&mut vec![0; bytes]).await.unwrap();
        }

        fn is_refused(&self) -> bool {
            self.exhausted.is_cancelled()
        }
    }

    /// Frames with this many bytes after their heads.
    fn frames(count: u64, payload_bytes: u8) -> Vec<u8> {
        let head = [0, 0, payload_bytes, 6, 0, 0, 0, 0, 0];
        let payload = vec![0xff; payload_bytes.into()];
        [&head[..], &payload].concat().repeat(count as usize)
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_counted_whatever_is_in_them() {
        for payload_bytes in [0, 1, 8, 255] {
            let mut client = Client::connect().await;
            for _ in 0..10 {
                client
                    .says(&frames(LIMITS.frames_at_first / 10, payload_bytes))
                    .await;
            }
            assert!(!client.is_refused(), "{payload_bytes}");
            client.says(&frames(1, payload_bytes)).await;
            assert!(client.is_refused(), "{payload_bytes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_its_frames_in_every_second() {
        let mut client = Client::connect().await;
        client.says(&frames(LIMITS.frames_at_first, 8)).await;
        for _ in 0..10 {
            tokio::time::advance(Duration::from_millis(500)).await;
            client.says(&frames(LIMITS.frames_per_second / 2, 8)).await;
        }
        assert!(!client.is_refused());
        client.says(&frames(1, 8)).await;
        assert!(client.is_refused());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_is_told_it_may_reply_to() {
        let mut client = Client::connect().await;
        for _ in 0..3 * LIMITS.frames_at_first {
            // The shortest DATA frame of a stream, and all that a client has to say to it.
            client.is_told(96).await;
            client.says(&frames(3, 4)).await;
        }
        assert!(!client.is_refused());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_told_long_ago_pays_for_no_flood() {
        let mut client = Client::connect().await;
        for _ in 0..100 {
            client.is_told(1 << 20).await;
        }
        for _ in 0..11 {
            client.says(&frames(LIMITS.frames_saved_max / 10, 0)).await;
        }
        assert!(client.is_refused());
    }

    #[tokio::test(start_paused = true)]
    async fn the_answers_to_a_flood_of_pings_do_not_pay_for_it() {
        let mut client = Client::connect().await;
        while !client.is_refused() {
            client.says(&frames(100, 8)).await;
            client.is_told(17 * 100).await;
        }
    }

    /// Sends short pieces for so long, each as soon as it may be sent and never more than a client has
    /// replied to, with as many frames as it may. Returns how many were sent.
    async fn short_pieces(client: &mut Client, limits: Limits, piece_bytes: usize) -> usize {
        let pieces = ShortPieces::new(&limits);
        let until = Instant::now() + Duration::from_secs(60);
        let mut sent = 0;
        while Instant::now() < until {
            tokio::time::sleep_until(pieces.turn(OWED_MAX).at).await;
            pieces.sent(piece_bytes);
            client.is_told(HEAD_BYTES + piece_bytes).await;
            client.says(&frames(REPLIES, 4)).await;
            sent += 1;
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn the_replies_to_short_pieces_are_no_flood() {
        for piece_bytes in [1, 5, 50, 86] {
            let mut client = Client::connect().await;
            let sent = short_pieces(&mut client, LIMITS, piece_bytes).await;
            assert!(!client.is_refused(), "{piece_bytes}");
            // At first, and in each second.
            assert!(sent > 2_500 + 60 * 250, "{sent} of {piece_bytes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_is_short_that_does_not_pay_for_the_replies_to_it() {
        let pieces = ShortPieces::new(&LIMITS);
        assert!(pieces.is_short(1) && pieces.is_short(86));
        assert!(!pieces.is_short(87) && !pieces.is_short(usize::MAX));
        // A long piece after each: nothing has to wait.
        let now = Instant::now();
        for _ in 0..100_000 {
            pieces.sent(5);
            pieces.sent(1_000);
            assert_eq!(pieces.turn(OWED_MAX).at, now);
        }
        while pieces.turn(OWED_MAX).at == now {
            pieces.sent(5);
        }
        pieces.sent(86);
        assert!(pieces.turn(OWED_MAX).at > now);
        pieces.sent(1_000);
        assert_eq!(pieces.turn(OWED_MAX).at, now);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_turn_has_one_of_its_own_and_soon() {
        let pieces = ShortPieces::new(&LIMITS);
        let now = Instant::now();
        while pieces.turn(OWED_MAX).at == now {
            pieces.sent(5);
        }
        let longest = Duration::from_secs(10);
        let first = pieces.turn(longest);
        let second = pieces.turn(longest);
        assert!(first.at < second.at);
        // Whoever goes without it leaves it to others.
        let at = second.at;
        drop(second);
        assert_eq!(pieces.turn(longest).at, at);
        drop(first);
        for _ in 0..100_000 {
            pieces.sent(5);
        }
        assert_eq!(pieces.turn(longest).at, now + longest);
    }

    #[test]
    fn limits_that_are_low_leave_something_for_short_pieces() {
        let limits = Limits {
            frame_cost_bytes: 1,
            frames_per_second: 90,
            frames_at_first: 90,
            frames_saved_max: 90,
        };
        let pieces = ShortPieces::new(&limits);
        assert!(pieces.lock().take(67, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn other_limits_hold_as_well() {
        let limits = Limits {
            frame_cost_bytes: 7,
            frames_per_second: 1,
            frames_at_first: 10,
            frames_saved_max: 20,
        };
        let mut client = Client::connect_within(limits).await;
        client.says(&frames(10, 0)).await;
        // A second in pieces, none of which comes to a byte.
        for _ in 0..100 {
            tokio::time::advance(Duration::from_millis(10)).await;
            client.budget.tap.pay(&[]);
        }
        client.says(&frames(1, 0)).await;
        client.is_told(1_000).await;
        client.says(&frames(20, 0)).await;
        assert!(!client.is_refused());
        client.says(&frames(1, 0)).await;
        assert!(client.is_refused());
    }
}
