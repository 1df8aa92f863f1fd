//! Owns what hyper gets to read of a connection: whole heads that follow the rules of [`head`], each with
//! exactly its body. So hyper and whoever is in front of the bridge cannot disagree about where a request
//! ends. And the time that a connection has for a head, and between requests.
//!
//! hyper answers what it refuses by itself with an empty body. So a head that breaks a rule is replaced by
//! one that hyper accepts, and the service is told the [`Fault`] to answer with. That keeps the order of
//! answers. Nothing that comes after it is read as a request.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    Limits,
    chunks::Chunks,
    exchange::Exchange,
    fault::Fault,
    head::{self, HeadLimits, Length, Scan},
};
use crate::{metrics::Closure, net::slots::Standing};

/// What hyper reads instead of a head that breaks a rule.
const REPLACEMENT: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// How many empty lines may precede a request. Some old clients send one after a body (RFC 9112 section
/// 2.2).
const EMPTY_LINES_MAX: usize = 4;

/// Bytes that are read at once outside of bodies.
const READ_BYTES: usize = 4 * 1024;
/// What is held grows by this part of itself, where that is more: a large header is copied a few times, and
/// takes little more memory than it has bytes.
const STEP_PART: usize = 4;

/// How long a client is listened to after the last answer, if it may still be sending: closing a
/// connection on bytes that nobody read would take the answer back (RFC 9112 section 9.6).
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection as hyper sees it.
pub(crate) struct Requests<S> {
    stream: S,
    limits: Limits,
    standing: Standing,
    exchange: Arc<Exchange>,
    next: Next,
    /// How many requests hyper got.
    count: u64,
    /// What was read and is not passed on yet.
    held: Vec<u8>,
    /// How many bytes of it are passed on next.
    passing: usize,
    wait: Wait,
    timer: Pin<Box<Sleep>>,
}

/// What is read next. After the body of a request that is being answered it is a head.
enum Next {
    Head {
        scan: Scan,
        empty_lines: usize,
    },
    Body(BodyLength),
    /// Nothing is read as a request any more.
    Nothing,
}

enum BodyLength {
    Left(u64),
    Chunked(Chunks),
}

/// What the timer runs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Nothing,
    Header,
    /// Idle for less time than a header has.
    Pause,
    /// Idle for longer. Now the slot may be taken for another connection.
    Idle,
    /// The last answer is out.
    Linger {
        bytes: usize,
    },
}

impl Next {
    fn head() -> Self {
        Self::Head {
            scan: Scan::default(),
            empty_lines: 0,
        }
    }
}

impl BodyLength {
    /// How many of these bytes belong to the body.
    fn follow(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        match self {
            Self::Left(left) => {
                let length = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= length as u64;
                Ok(length)
            }
            Self::Chunked(chunks) => chunks.follow(bytes),
        }
    }

    fn is_complete(&self) -> bool {
        match self {
            Self::Left(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_complete(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Requests<S> {
    pub(crate) fn new(
        stream: S,
        limits: Limits,
        standing: Standing,
        exchange: Arc<Exchange>,
    ) -> Self {
        Self {
            stream,
            limits,
            standing,
            exchange,
            next: Next::head(),
            count: 0,
            held: Vec::new(),
            passing: 0,
            wait: Wait::Header,
            timer: Box::pin(sleep(limits.header_timeout)),
        }
    }

    fn head_limits(&self) -> HeadLimits {
        HeadLimits {
            fields_max: self.limits.headers_max,
            bytes_max: self.limits.header_bytes_max,
        }
    }

    fn wait_for(&mut self, wait: Wait, timeout: Duration) {
        self.wait = wait;
        self.timer.as_mut().reset(Instant::now() + timeout);
    }

    /// Looks for a head in what is held, and checks it.
    fn look_for_head(&mut self) {
        let limits = self.head_limits();
        let Next::Head { scan, empty_lines } = &mut self.next else {
            return;
        };
        while self.held.starts_with(b"\r\n") && *empty_lines < EMPTY_LINES_MAX {
            *empty_lines += 1;
            self.held.drain(..2);
            if self.held.is_empty() && self.count > 0 {
                self.wait = Wait::Nothing;
            }
        }
        // Other bytes cannot begin a method: there is no use in waiting for more.
        let is_method = |&byte: &u8| byte == b'\r' || head::is_method_byte(byte);
        let found = if self.held.first().is_none_or(is_method) {
            scan.end(&self.held, limits)
        } else {
            Err(Fault::Malformed("this is not a request of HTTP/1.1"))
        };
        let checked = match found {
            Ok(None) => return,
            Ok(Some(end)) => self.accept_head(end),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = checked {
            self.refuse(fault);
        }
    }

    /// Lets a head pass, if it follows the rules.
    fn accept_head(&mut self, end: usize) -> Result<(), Fault> {
        let limits = self.head_limits();
        let (head, rest) = self.held.split_at_mut_checked(end).unwrap_or_default();
        let length = head::check(head)?;
        head::normalize(head);
        let (is_expected, length) = match length {
            Length::Bytes(bytes) => (bytes > rest.len() as u64, BodyLength::Left(bytes)),
            Length::Chunked => (true, BodyLength::Chunked(Chunks::new(limits))),
        };
        self.exchange.expect_body(is_expected);
        self.count += 1;
        self.passing = end;
        self.wait = Wait::Nothing;
        self.body(length);
        Ok(())
    }

    fn refuse(&mut self, fault: Fault) {
        self.count += 1;
        self.exchange.refuse(self.count, fault);
        self.held = REPLACEMENT.to_vec();
        self.passing = self.held.len();
        self.wait = Wait::Nothing;
        self.next = Next::Nothing;
    }

    /// Goes on to a body, or to what comes after it.
    fn body(&mut self, length: BodyLength) {
        self.next = if length.is_complete() {
            self.exchange.expect_body(false);
            Next::head()
        } else {
            Next::Body(length)
        };
    }

    /// Passes on what of the body is held.
    fn pass_body(&mut self, mut length: BodyLength) -> io::Result<()> {
        let follow = length.follow(&self.held);
        self.passing = self.exchange.heed(follow)?;
        self.body(length);
        Ok(())
    }

    /// Reads a part of a body. Whatever comes after it is held.
    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        if read.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Next::Body(mut length) = std::mem::replace(&mut self.next, Next::Nothing) {
            let bytes = self.exchange.heed(length.follow(read))?;
            self.held.extend(read.get(bytes..).unwrap_or_default());
            buffer.set_filled(before + bytes);
            self.body(length);
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for more of a head, or until none will come.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wait == Wait::Nothing {
            // hyper asks for a head when the last answer is out.
            let pause = self.limits.header_timeout.min(self.limits.idle_timeout);
            if self.held.is_empty() {
                self.wait_for(Wait::Pause, pause);
            } else {
                self.wait_for(Wait::Header, self.limits.header_timeout);
            }
        }
        let mut bytes = [0; READ_BYTES];
        let mut buffer = ReadBuf::new(&mut bytes);
        if !self.exchange.closed.is_cancelled()
            && Pin::new(&mut self.stream)
                .poll_read(context, &mut buffer)?
                .is_pending()
        {
            ready!(self.timer.as_mut().poll(context));
            self.time_is_up();
            return Poll::Ready(Ok(()));
        }
        let read = buffer.filled();
        if !read.is_empty() {
            if matches!(self.wait, Wait::Pause | Wait::Idle) {
                self.standing.resume();
                self.wait_for(Wait::Header, self.limits.header_timeout);
            }
            if self.held.capacity() - self.held.len() < read.len() {
                self.held
                    .reserve_exact((self.held.len() / STEP_PART).max(READ_BYTES));
            }
            self.held.extend_from_slice(read);
        } else if self.held.is_empty() {
            self.next = Next::Nothing;
        } else {
            self.refuse(Fault::Malformed("the connection ended within the header"));
        }
        Poll::Ready(Ok(()))
    }

    /// Reads a little ahead while a request is being answered, to notice that its client has closed its side.
    fn read_ahead(&mut self, context: &mut Context<'_>) {
        if self.wait != Wait::Nothing || !matches!(self.next, Next::Head { .. }) {
            return;
        }
        let mut bytes = [0; READ_BYTES];
        while self.held.len() < READ_BYTES && !self.exchange.closed.is_cancelled() {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.held.extend_from_slice(buffer.filled());
                }
                Poll::Ready(_) => self.exchange.closed.cancel(),
            }
        }
    }

    fn time_is_up(&mut self) {
        match self.wait {
            Wait::Nothing | Wait::Linger { .. } => {}
            Wait::Header if self.held.is_empty() => self.end(Closure::Silent),
            Wait::Header => self.refuse(Fault::HeaderTooSlow),
            Wait::Pause => {
                let idle_timeout = self.limits.idle_timeout;
                let left = idle_timeout.saturating_sub(self.limits.header_timeout);
                if !left.is_zero() && self.standing.rest() {
                    self.wait_for(Wait::Idle, left);
                } else {
                    self.end(Closure::Idle);
                }
            }
            Wait::Idle => self.end(Closure::Idle),
        }
    }

    /// Nothing more is read.
    fn end(&mut self, closure: Closure) {
        self.exchange.close(closure);
        self.next = Next::Nothing;
    }

    /// Listens to what a client that was answered still sends.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; READ_BYTES];
        while let Wait::Linger { bytes: left } = self.wait {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let Some(left) = left.checked_sub(buffer.filled().len()) else {
                        break;
                    };
                    self.wait = Wait::Linger { bytes: left };
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    ready!(self.timer.as_mut().poll(context));
                    break;
                }
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Requests<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.passing > 0 {
                let length = this.passing.min(buffer.remaining());
                buffer.put_slice(this.held.get(..length).unwrap_or_default());
                this.held.drain(..length);
                this.passing -= length;
                if this.held.is_empty() {
                    // Idle connections are what there is most of.
                    this.held = Vec::new();
                } else if this.passing == 0 {
                    this.held.shrink_to(READ_BYTES);
                }
                return Poll::Ready(Ok(()));
            }
            match std::mem::replace(&mut this.next, Next::Nothing) {
                Next::Nothing => return Poll::Ready(Ok(())),
                Next::Body(length) if this.held.is_empty() => {
                    this.next = Next::Body(length);
                    return this.poll_body(context, buffer);
                }
                Next::Body(length) => this.pass_body(length)?,
                head @ Next::Head { .. } => {
                    this.next = head;
                    this.look_for_head();
                    if this.passing == 0 {
                        ready!(this.poll_head(context))?;
                    }
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Requests<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes whenever it has nothing else to do, and does not read before it has an answer.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.read_ahead(context);
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !matches!(this.wait, Wait::Linger { .. }) {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            // Of a next request, more may be coming.
            if !this.exchange.is_body_expected() && this.held.is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.wait_for(
                Wait::Linger {
                    bytes: this.limits.linger_bytes_max,
                },
                LINGER_TIMEOUT,
            );
        }
        this.poll_linger(context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Empty};
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// What is answered to these bytes, and whether hyper found a fault of its own in them.
    async fn answers(bytes: &[u8]) -> (String, bool) {
        let (mut client, server) = duplex(1 << 20);
        let exchange = Arc::new(Exchange::default());
        let (limits, standing) = (Limits::default(), Standing::default());
        let requests = Requests::new(server, limits, standing, Arc::clone(&exchange));
        let service = service_fn(move |mut request: Request<Incoming>| {
            exchange.note_fault(&mut request);
            let fault = request.extensions().get::<Fault>().copied();
            async move {
                let is_whole = request.into_body().collect().await.is_ok();
                let status = fault.map_or(200, |fault| fault.status().as_u16());
                let response = Response::builder().status(status);
                let response = response.header("x-whole", is_whole.to_string());
                Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
            }
        });
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let serving = http1::Builder::new()
            .half_close(true)
            .max_headers(limits.headers_max)
            .serve_connection(TokioIo::new(requests), service);
        let mut answers = String::new();
        let (served, read) = tokio::join!(serving, client.read_to_string(&mut answers));
        read.unwrap();
        (answers, served.is_err_and(|error| error.is_parse()))
    }

    #[tokio::test]
    async fn a_header_takes_little_more_memory_than_it_has_bytes() {
        let (mut client, server) = duplex(1 << 20);
        let limits = Limits::default();
        let mut requests = Requests::new(server, limits, Standing::default(), Arc::default());
        let mut bytes = [0; 32 * 1024];
        let head = format!("GET / HTTP/1.1\r\nHost: b\r\nX: {}", "x".repeat(16_000));
        for part in head.as_bytes().chunks(3_000) {
            client.write_all(part).await.unwrap();
            assert!(requests.read(&mut bytes).now_or_never().is_none());
        }
        assert_eq!(requests.held.len(), head.len());
        assert!(requests.held.capacity() <= limits.header_bytes_max + READ_BYTES);
        let rest = b"\r\n\r\nGET / HTTP/1.1\r\n";
        client.write_all(rest).await.unwrap();
        let passed = requests.read(&mut bytes).await.unwrap();
        assert_eq!(passed, head.len() + 4);
        assert!(requests.held.capacity() <= READ_BYTES);
    }

    const GOOD: [&str; 4] = [
        "GET /a?b=%20 HTTP/1.1\r\nHost: b:80\r\nX: y, \"z\"\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nabcde",
        "POST http://c/ HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ];

    #[tokio::test]
    async fn good_requests_pass_as_they_are() {
        let (answers, is_fault) = answers(GOOD.concat().as_bytes()).await;
        assert!(!is_fault);
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
        assert_eq!(answers.matches("HTTP/1.0 200 OK").count(), 1, "{answers}");
        assert_eq!(answers.matches("x-whole: true").count(), 4, "{answers}");
    }

    /// Puts something else in the place of a byte, before it, or nothing.
    fn edit() -> impl Strategy<Value = (prop::sample::Index, bool, Vec<u8>)> {
        let odd = prop::sample::select(b"\r\n\t :;,%x0\"\0\x7f\xff/*".to_vec());
        (
            any::<prop::sample::Index>(),
            any::<bool>(),
            prop::collection::vec(odd, 0..3),
        )
    }

    proptest! {
        /// Whatever is passed on is a request to hyper: each answer is the service's, and hyper never ends a
        /// connection over what it read.
        #[test]
        fn hyper_finds_no_fault_in_what_passes(
            requests in prop::collection::vec(prop::sample::select(GOOD.to_vec()), 1..4),
            edits in prop::collection::vec(edit(), 1..4),
        ) {
            let mut bytes = requests.concat().into_bytes();
            for (index, is_insertion, new) in edits {
                let at = index.index(bytes.len());
                let end = if is_insertion { at } else { at + 1 };
                drop(bytes.splice(at..end, new));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let (answers, is_fault) = runtime.unwrap().block_on(answers(&bytes));
            let text = bytes.escape_ascii();
            prop_assert!(!is_fault, "{text}: {answers}");
            let heads = answers.split("\r\n\r\n").filter(|head| !head.is_empty());
            for head in heads {
                let is_ours = head.contains("x-whole") || head.contains(" 100 Continue");
                prop_assert!(is_ours, "{text}: {answers}");
            }
        }
    }
}
