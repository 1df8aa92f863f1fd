//! Owns the messages of a request (`Length-Prefixed-Message` in
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): where each ends, how large it may
//! be, also when it is decompressed, until when it has to come, and what it counts while it comes. Knows
//! nothing of what is in it.

use std::{
    convert::Infallible,
    future::poll_fn,
    io::Read as _,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http_body::{Body as _, Frame};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

use super::{protocol::Encoding, status::Failure};
use crate::{
    credentials::{CountedFilter, Quota},
    subscription::Subscriptions,
};

/// What gRPC puts before each message: a flag and its length, in bytes.
const PREFIX_BYTES: usize = 5;

/// How much of a request is kept at least of what comes before its caller is let in, in bytes: what the window
/// of a connection allows. A client may send several messages at once.
const READ_AHEAD_BYTES_MIN: usize = 64 * 1024;

/// How large the messages of a request may be, and how long they may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The length of a message, also when it is decompressed.
    pub(super) bytes_max: usize,
    /// From when they are first waited for to the end of the request.
    pub(super) timeout: Duration,
}

/// The messages of a request. The memory that they take counts until this is dropped. What strangers send
/// does not count; there are few of them, and their messages are small.
pub(super) struct Messages {
    body: Body,
    encoding: Encoding,
    limits: Limits,
    /// What has come and is not a whole message yet.
    buffer: BytesMut,
    is_ended: bool,
    /// Why there is no more, as found when it was read ahead.
    failed: Option<Failure>,
    /// Made when the body is first waited for: most have come with their headers.
    deadline: Option<Pin<Box<Sleep>>>,
    counter: Option<Counter>,
}

/// Counts the bytes of a request under a quota.
struct Counter {
    subscriptions: Arc<Subscriptions>,
    quota: Arc<Quota>,
    counted: Vec<CountedFilter>,
    /// How many bytes are: of many messages, nobody keeps more than the one that is not whole yet.
    bytes: usize,
    bytes_max: usize,
}

/// A message as it came.
struct Raw {
    is_compressed: bool,
    bytes: Bytes,
}

impl Messages {
    pub(super) fn new(body: Body, encoding: Encoding, limits: Limits) -> Self {
        Self {
            body,
            encoding,
            limits,
            buffer: BytesMut::new(),
            is_ended: false,
            failed: None,
            deadline: None,
            counter: None,
        }
    }

    /// Counts what comes, and what has come, under a quota.
    ///
    /// # Errors
    /// That is too much already.
    pub(super) fn count(
        &mut self,
        subscriptions: Arc<Subscriptions>,
        quota: Arc<Quota>,
    ) -> Result<(), Failure> {
        let counter = self.counter.insert(Counter {
            subscriptions,
            quota,
            counted: Vec::new(),
            bytes: 0,
            bytes_max: self.limits.bytes_max.saturating_add(PREFIX_BYTES),
        });
        counter.count(self.buffer.capacity())
    }

    /// Reads ahead for as long as it is polled, so that a call which waits holds no window of its connection.
    /// What is more than a request may have is not kept.
    pub(super) async fn read_ahead(&mut self) -> Infallible {
        let bytes_max = self.limits.bytes_max;
        let kept_max = bytes_max.saturating_add(PREFIX_BYTES);
        let kept_max = kept_max.max(READ_AHEAD_BYTES_MIN);
        loop {
            match poll_fn(|context| self.poll_more(context)).await {
                Ok(true) if self.buffer.len() > kept_max => {
                    self.buffer.truncate(kept_max);
                    self.failed = Some(Failure::MessageTooLarge { bytes_max });
                }
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => {
                    self.failed.get_or_insert(failure);
                    break;
                }
            }
        }
        std::future::pending().await
    }

    /// The only message of a request that has to have one, once the request has ended.
    ///
    /// # Errors
    /// There is none, there are more, or it cannot be read.
    pub(super) async fn only(mut self) -> Result<Bytes, Failure> {
        let message = poll_fn(|context| self.poll_raw(context)).await?;
        let message = message.ok_or(Failure::Cardinality { is_missing: true })?;
        loop {
            if !self.buffer.is_empty() {
                return Err(Failure::Cardinality { is_missing: false });
            }
            if !poll_fn(|context| self.poll_read(context)).await? {
                return message.open(self.limits.bytes_max);
            }
        }
    }

    /// The messages as the body of a request with nothing compressed, for those who read them by
    /// themselves. Why it fails can be looked up then.
    pub(super) fn into_body(mut self) -> (Body, Arc<OnceLock<Failure>>) {
        let failed = Arc::new(OnceLock::new());
        let failure = Arc::clone(&failed);
        let bytes_max = self.limits.bytes_max;
        let messages = futures_util::stream::poll_fn(move |context| {
            let raw = ready!(self.poll_raw(context));
            let message = raw.and_then(|raw| raw.map(|raw| raw.open(bytes_max)).transpose());
            Poll::Ready(match message {
                Ok(message) => message.map(|message| Ok(Frame::data(framed(&message)))),
                Err(error) => {
                    let status = Status::from(&error);
                    let _ = failure.set(error);
                    Some(Err(status))
                }
            })
        });
        (Body::new(http_body_util::StreamBody::new(messages)), failed)
    }

    /// The next message; `None` at the end.
    fn poll_raw(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Raw>, Failure>> {
        loop {
            if let Some(message) = self.split()? {
                return Poll::Ready(Ok(Some(message)));
            }
            if !ready!(self.poll_read(context))? {
                return Poll::Ready(if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(Failure::Message {
                        description: "it ends within a message".to_owned(),
                    })
                });
            }
        }
    }

    /// Takes a whole message out of what has come.
    fn split(&mut self) -> Result<Option<Raw>, Failure> {
        let Some(&[flag, ref length @ ..]) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let is_compressed = match (flag, self.encoding) {
            (0, _) => false,
            (1, Encoding::Gzip) => true,
            (1, Encoding::Identity) => {
                return Err(Failure::Compression {
                    description: "a message has its compressed flag set, but the request has no \
                                  grpc-encoding",
                });
            }
            _ => {
                return Err(Failure::Compression {
                    description: "the compressed flag of a message is neither 0 nor 1",
                });
            }
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.limits.bytes_max {
            return Err(Failure::MessageTooLarge {
                bytes_max: self.limits.bytes_max,
            });
        }
        if self.buffer.len() - PREFIX_BYTES < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(Raw {
            is_compressed,
            bytes: self.buffer.split_to(length).freeze(),
        }))
    }

    /// Reads more. Returns whether there was some; there is none after the end.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Failure>> {
        if let Some(failure) = self.failed.take() {
            self.is_ended = true;
            return Poll::Ready(Err(failure));
        }
        self.poll_more(context)
    }

    /// The same, whatever was found when it was read ahead.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Failure>> {
        while !self.is_ended {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                let waited = self.limits.timeout;
                let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(waited)));
                ready!(deadline.as_mut().poll(context));
                return Poll::Ready(Err(Failure::MessageTimeout { waited }));
            };
            match frame {
                None => self.is_ended = true,
                Some(Err(status)) => {
                    return Poll::Ready(Err(Failure::Message {
                        description: status.message().to_owned(),
                    }));
                }
                // Trailers of a request mean nothing.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data()
                        && !bytes.is_empty()
                    {
                        self.keep(&bytes);
                        if let Some(counter) = &mut self.counter {
                            counter.count(self.buffer.capacity())?;
                        }
                        return Poll::Ready(Ok(true));
                    }
                }
            }
        }
        Poll::Ready(Ok(false))
    }

    /// Appends to what has come. There is room for an eighth more at most, and none beyond the message.
    fn keep(&mut self, bytes: &[u8]) {
        let needed = self.buffer.len() + bytes.len();
        if needed > self.buffer.capacity() {
            let message = self.buffer.first_chunk::<PREFIX_BYTES>();
            let message = message.map(|&[_, ref length @ ..]| u32::from_be_bytes(*length) as usize);
            let capacity = message.map_or(needed, |length| {
                let whole = length.saturating_add(PREFIX_BYTES);
                whole.min(needed + needed / 8).max(needed)
            });
            let mut buffer = BytesMut::with_capacity(capacity);
            buffer.extend_from_slice(&self.buffer);
            self.buffer = buffer;
        }
        self.buffer.extend_from_slice(bytes);
    }
}

impl Counter {
    /// Counts a buffer of so many bytes, if it is larger than what is counted.
    fn count(&mut self, capacity: usize) -> Result<(), Failure> {
        let bytes = capacity.min(self.bytes_max).saturating_sub(self.bytes);
        if bytes == 0 {
            return Ok(());
        }
        let counted = self.subscriptions.count(bytes, Some(&self.quota));
        let counted = counted.map_err(Failure::Stream)?;
        self.bytes += bytes;
        if self.counted.is_empty() {
            self.counted = counted;
        } else {
            // However many frames there are.
            for (before, more) in self.counted.iter_mut().zip(counted) {
                before.absorb(more);
            }
        }
        Ok(())
    }
}

impl Raw {
    /// The message itself.
    fn open(self, bytes_max: usize) -> Result<Bytes, Failure> {
        if !self.is_compressed {
            return Ok(self.bytes);
        }
        let mut message = Vec::new();
        let too_many = (bytes_max as u64).saturating_add(1);
        let mut unzipped = MultiGzDecoder::new(&*self.bytes).take(too_many);
        match unzipped.read_to_end(&mut message) {
            Ok(bytes) if bytes > bytes_max => Err(Failure::MessageTooLarge { bytes_max }),
            Ok(_) => Ok(message.into()),
            Err(_) => Err(Failure::Compression {
                description: "a message has its compressed flag set, but is not gzip",
            }),
        }
    }
}

/// A message with gRPC's prefix, not compressed.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    bytes.put_u8(0);
    // None is larger than its limit, and no limit needs more than four bytes.
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put(message);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use futures_util::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        bus::{self, Bus},
        log::memory,
        metrics::Metrics,
        subscription::Options,
    };

    const LIMITS: Limits = Limits {
        bytes_max: 10,
        timeout: Duration::from_secs(5),
    };

    /// A request that comes in these parts, and ends or is waited for.
    fn request(parts: &[&[u8]], ends: bool, encoding: Encoding) -> Messages {
        let parts: Vec<_> = parts
            .iter()
            .map(|part| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(part))))
            .collect();
        let rest = if ends {
            stream::empty().boxed()
        } else {
            stream::pending().boxed()
        };
        let body = StreamBody::new(stream::iter(parts).chain(rest));
        Messages::new(Body::new(body), encoding, LIMITS)
    }

    async fn only(parts: &[&[u8]], encoding: Encoding) -> Result<Bytes, &'static str> {
        let message = request(parts, true, encoding).only().await;
        message.map_err(|failure| failure.reason())
    }

    fn zipped(message: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(message).unwrap();
        encoder.finish().unwrap()
    }

    fn prefixed(flag: u8, message: &[u8]) -> Vec<u8> {
        let mut bytes = framed(message).to_vec();
        bytes[0] = flag;
        bytes
    }

    #[tokio::test]
    async fn a_message_is_the_same_however_it_is_cut() {
        let whole = prefixed(0, b"0123456789");
        for at in 0..whole.len() {
            let (first, rest) = whole.split_at(at);
            let message = only(&[first, b"", rest], Encoding::Identity).await;
            assert_eq!(message.unwrap(), &b"0123456789"[..], "{at}");
        }
        // An encoding is only for messages that say so.
        assert_eq!(only(&[&whole], Encoding::Gzip).await.unwrap().len(), 10);
        assert_eq!(only(&[&[0; 5]], Encoding::Gzip).await.unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_request_has_one_message_and_that_is_whole() {
        let message = prefixed(0, b"0123");
        let twice = [&message[..], &message].concat();
        for (parts, reason) in [
            (&[][..], "MESSAGE_COUNT_INVALID"),
            (&[&twice[..]], "MESSAGE_COUNT_INVALID"),
            (&[&message[..], &message], "MESSAGE_COUNT_INVALID"),
            (&[&message[..], b"\0"], "MESSAGE_COUNT_INVALID"),
            (&[&message[..8]], "REQUEST_INVALID"),
            (&[&message[..3]], "REQUEST_INVALID"),
            (&[b"\0\0\0\0\x0b"], "REQUEST_TOO_LARGE"),
            (&[b"\0\xff\xff\xff\xff"], "REQUEST_TOO_LARGE"),
            (&[b"\x01\0\0\0\x01x"], "COMPRESSION_INVALID"),
            (&[b"\x02\0\0\0\x01x"], "COMPRESSION_INVALID"),
            (&[b"\xff\0\0\0\x01x"], "COMPRESSION_INVALID"),
        ] {
            let refused = only(parts, Encoding::Identity).await;
            assert_eq!(refused.unwrap_err(), reason, "{parts:?}");
        }
    }

    #[tokio::test]
    async fn a_zipped_message_is_opened_up_to_the_limit() {
        let open = async |bytes: &[u8]| only(&[&prefixed(1, bytes)], Encoding::Gzip).await;
        // Ten bytes that gzip shortens to no more than the limit for what comes.
        let limits = Limits {
            bytes_max: 64,
            ..LIMITS
        };
        let messages = |bytes: &[u8]| {
            let mut messages = request(&[&prefixed(1, bytes)], true, Encoding::Gzip);
            messages.limits = limits;
            messages.only()
        };
        let most = [b'x'; 64];
        assert_eq!(messages(&zipped(&most)).await.unwrap(), &most[..]);
        assert_eq!(messages(&zipped(b"")).await.unwrap(), &b""[..]);
        let bomb = zipped(&[b'x'; 65]);
        let refused = messages(&bomb).await.unwrap_err();
        assert_eq!(refused.reason(), "REQUEST_TOO_LARGE");
        let cut = &zipped(&most)[..20];
        for damaged in [b"no gzip".as_slice(), b"", cut] {
            let refused = messages(damaged).await.unwrap_err();
            assert_eq!(refused.reason(), "COMPRESSION_INVALID", "{damaged:?}");
        }
        assert_eq!(open(&[0; 11]).await, Err("REQUEST_TOO_LARGE"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_to_end_in_time_also_after_its_message() {
        let message = prefixed(0, b"0123");
        for parts in [&[][..], &[&message[..7]], &[&message[..]]] {
            let began = tokio::time::Instant::now();
            let request = request(parts, false, Encoding::Identity);
            let refused = request.only().await.unwrap_err();
            assert_eq!(refused.reason(), "REQUEST_TIMEOUT", "{parts:?}");
            assert_eq!(began.elapsed(), LIMITS.timeout);
        }
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_before_the_rest() {
        let message = prefixed(0, b"0123");
        for ahead in [false, true] {
            let parts = [&message[..6], &message[6..]];
            let mut request = request(&parts, true, Encoding::Identity);
            if ahead {
                assert!(request.read_ahead().now_or_never().is_none());
                assert_eq!(request.buffer.len(), message.len());
            }
            assert_eq!(request.only().await.unwrap(), &b"0123"[..]);
        }
    }

    #[tokio::test]
    async fn all_is_read_ahead_and_no_more_is_kept_than_a_request_may_have() {
        let part = [0; 1024];
        let parts = vec![&part[..]; 2 * READ_AHEAD_BYTES_MIN / part.len()];
        for bytes_max in [10, 100 * 1024] {
            let mut request = request(&parts, true, Encoding::Identity);
            request.limits.bytes_max = bytes_max;
            assert!(request.read_ahead().now_or_never().is_none());
            assert!(request.is_ended);
            let kept_max = READ_AHEAD_BYTES_MIN.max(bytes_max + PREFIX_BYTES);
            assert_eq!(request.buffer.len(), kept_max);
            // Empty messages, up to what was not kept.
            let (body, failed) = request.into_body();
            assert!(body.collect().await.is_err());
            assert_eq!(failed.get().unwrap().reason(), "REQUEST_TOO_LARGE");
        }
        // As large as it may be, whenever its caller is let in.
        let message = prefixed(0, &[7; 100 * 1024]);
        let parts: Vec<&[u8]> = message.chunks(1024).collect();
        let mut request = request(&parts, true, Encoding::Identity);
        request.limits.bytes_max = 100 * 1024;
        assert!(request.read_ahead().now_or_never().is_none());
        assert_eq!(request.only().await.unwrap(), &message[PREFIX_BYTES..]);
    }

    #[tokio::test]
    async fn what_fails_while_it_is_read_ahead_fails_the_call() {
        let message = prefixed(0, b"0123");
        let failed = [
            Ok(Frame::data(Bytes::from(message))),
            Err(Status::internal("reset")),
        ];
        let body = Body::new(StreamBody::new(stream::iter(failed)));
        let mut request = Messages::new(body, Encoding::Identity, LIMITS);
        assert!(request.read_ahead().now_or_never().is_none());
        let refused = request.only().await.unwrap_err();
        assert_eq!(refused.reason(), "REQUEST_INVALID");
    }

    #[tokio::test]
    async fn a_message_that_comes_in_parts_takes_little_more_memory_than_it_has_bytes() {
        let message = prefixed(0, &[7; 100_000]);
        for part_bytes in [1, 1_000, 16_384, 100_005] {
            let mut request = request(&[], false, Encoding::Identity);
            for part in message.chunks(part_bytes) {
                request.keep(part);
                let (length, capacity) = (request.buffer.len(), request.buffer.capacity());
                assert!(capacity <= message.len(), "{part_bytes}: {capacity}");
                assert!(
                    capacity <= length.max(16) * 9 / 8,
                    "{part_bytes}: {capacity}"
                );
            }
            assert_eq!(request.buffer, message);
        }
    }

    #[tokio::test]
    async fn a_body_of_many_messages_says_why_it_failed() {
        let zip = prefixed(1, &[1; 3]);
        let parts = [&prefixed(0, b"0123")[..], &zip];
        let (body, failed) = request(&parts, true, Encoding::Gzip).into_body();
        let mut body = body.into_data_stream();
        let first = body.next().await.unwrap().unwrap();
        assert_eq!(first, prefixed(0, b"0123"));
        assert!(failed.get().is_none());
        let status = body.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert_eq!(failed.get().unwrap().reason(), "COMPRESSION_INVALID");
    }

    #[tokio::test]
    async fn of_many_messages_no_more_counts_than_one_can_have() {
        let log = memory::open(memory::Options::default()).unwrap();
        let bus = Bus::follow(bus::Options::default(), &*log).unwrap();
        let options = Options {
            filters_bytes_per_credential_max: 25,
            ..Options::default()
        };
        let metrics = Arc::new(Metrics::new());
        let draining = CancellationToken::new();
        let subscriptions = Subscriptions::new(options, log, bus, metrics, draining);
        let quota = Arc::<Quota>::default();
        let message = prefixed(0, b"01234");
        let mut messages = request(&[&message[..]; 10], true, Encoding::Identity);
        messages.count(subscriptions, Arc::clone(&quota)).unwrap();
        let (body, _failed) = messages.into_body();
        let mut body = body.into_data_stream();
        let mut bytes = 0;
        while let Some(message) = body.next().await {
            bytes += message.unwrap().len();
        }
        assert_eq!(bytes, 100);
        assert!(quota.filter(16, 25).is_err(), "the body is still there");
        assert!(quota.filter(15, 25).is_ok());
        drop(body);
        assert!(quota.filter(25, 25).is_ok());
    }
}
