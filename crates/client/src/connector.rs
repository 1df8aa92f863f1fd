//! Makes a client's connections: TCP, then TLS if the URL has https. Records whether the server refused
//! the client's certificate. tonic makes TLS connections too, but does not report such a refusal.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{self, AlertDescription, pki_types::ServerName},
};
use tower_service::Service;

use crate::tls::{self, Trouble};

/// Makes connections to one bridge.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    evidence: TlsEvidence,
}

impl Connector {
    pub(super) fn new(
        tls: Option<(rustls::ClientConfig, ServerName<'static>)>,
        evidence: TlsEvidence,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // Requests are small and complete, so Nagle's algorithm would only delay them.
        tcp.set_nodelay(true);
        Self {
            tcp,
            tls: tls.map(|(config, name)| (Arc::new(config).into(), name)),
            evidence,
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(BoxError::from)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.tcp.call(uri);
        let (tls, evidence) = (self.tls.clone(), self.evidence.clone());
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let Some((connector, name)) = tls else {
                let beginning = Beginning::new(evidence);
                return Ok(TokioIo::new(Connection::Plain(stream, beginning)));
            };
            evidence.forget();
            let connected = connector.connect(name, stream).await;
            let stream = connected.map_err(|error| {
                evidence.notice(&error);
                match tls::trouble(&error) {
                    Some(trouble) => io::Error::other(trouble.sentence()),
                    None => error,
                }
            })?;
            let stream = Box::new(stream);
            Ok(TokioIo::new(Connection::Tls(stream, evidence)))
        })
    }
}

/// What the newest connection showed about TLS. A call only learns that its connection has ended.
#[derive(Clone, Debug, Default)]
pub(super) struct TlsEvidence(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    /// Why the server refused the client's certificate. In TLS 1.3 the server checks it after the
    /// client's handshake has completed, so that not the handshake fails but what follows.
    of_certificate: Option<String>,
    /// It answered in TLS to a connection without TLS.
    speaks_tls: bool,
    /// It has answered without TLS, on this connection or an earlier one.
    has_spoken_plainly: bool,
}

impl TlsEvidence {
    /// Why the server refused the certificate, if it did.
    pub(super) fn certificate_refusal(&self) -> Option<String> {
        self.said().of_certificate.clone()
    }

    /// Whether the URL is wrong: a server that never spoke without TLS answers in TLS.
    pub(super) fn asks_for_tls(&self) -> bool {
        let said = self.said();
        said.speaks_tls && !said.has_spoken_plainly
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        self.said().of_certificate = None;
    }

    fn notice(&self, error: &io::Error) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        if let Some(rustls::Error::AlertReceived(alert)) = cause
            && let Some(words) = words(*alert)
        {
            self.said().of_certificate = Some(words);
        }
    }

    fn notice_beginning(&self, is_tls: bool) {
        let mut said = self.said();
        said.speaks_tls = is_tls;
        said.has_spoken_plainly |= !is_tls;
    }
}

/// An alert that is about the client's certificate (RFC 8446 section 6.2).
fn words(alert: AlertDescription) -> Option<String> {
    match alert {
        AlertDescription::CertificateRequired => Some("it asks for a client certificate".into()),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => Some(format!(
            "it does not accept the client certificate ({alert:?})"
        )),
        _ => None,
    }
}

/// A connection to a bridge.
pub(super) enum Connection {
    Plain(TcpStream, Beginning),
    Tls(Box<TlsStream<TcpStream>>, TlsEvidence),
}

/// The first two bytes that were received, or fewer.
#[derive(Debug)]
pub(super) struct Beginning {
    bytes: [u8; 2],
    length: usize,
    evidence: TlsEvidence,
}

impl Beginning {
    fn new(evidence: TlsEvidence) -> Self {
        Self {
            bytes: [0; 2],
            length: 0,
            evidence,
        }
    }

    fn is_known(&self) -> bool {
        self.length == self.bytes.len()
    }

    /// A TLS server answers HTTP/2 with an alert, which an HTTP/2 client reports as a frame with an
    /// invalid size.
    ///
    /// # Errors
    /// It is one.
    fn inspect(&mut self, read: &[u8]) -> io::Result<()> {
        if self.is_known() {
            return Ok(());
        }
        for (byte, read) in self.bytes.iter_mut().skip(self.length).zip(read) {
            *byte = *read;
            self.length += 1;
        }
        if self.is_known() {
            let is_tls = tls::is_tls(&self.bytes);
            self.evidence.notice_beginning(is_tls);
            if is_tls {
                return Err(io::Error::other(Trouble::Tls.sentence()));
            }
        }
        Ok(())
    }

    /// The result of a write. If the server has sent a reason before it closed the connection, the
    /// client must read it first: until then a failed write counts as done, and the read finds the
    /// reason, or the end.
    fn written(&self, outcome: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(Err(error)) if is_closed(&error) && !self.is_known() => {
                Poll::Ready(Ok(length))
            }
            outcome => outcome,
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, beginning) => {
                let filled = buffer.filled().len();
                ready!(Pin::new(stream).poll_read(context, buffer))?;
                let read = buffer.filled().get(filled..).unwrap_or_default();
                Poll::Ready(beginning.inspect(read))
            }
            Self::Tls(stream, evidence) => {
                let read = ready!(Pin::new(stream).poll_read(context, buffer));
                Poll::Ready(read.inspect_err(|error| evidence.notice(error)))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, beginning) => {
                let outcome = Pin::new(stream).poll_write(context, bytes);
                beginning.written(outcome, bytes.len())
            }
            Self::Tls(stream, _) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, beginning) => {
                let outcome = Pin::new(stream).poll_write_vectored(context, slices);
                let length = slices.iter().map(|slice| slice.len()).sum();
                beginning.written(outcome, length)
            }
            Self::Tls(stream, _) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream, _) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_tls_is_recognised_however_it_arrives() {
        let told = |reads: &[&[u8]]| {
            let mut beginning = Beginning::new(TlsEvidence::default());
            let mut results = reads.iter().map(|read| beginning.inspect(read));
            results.find_map(Result::err).map(|error| error.to_string())
        };
        let alert = [0x15, 3, 3, 0, 2, 2, 0x46];
        let (first, rest) = alert.split_at(1);
        for reads in [&[&alert[..]][..], &[first, rest], &[&[], first, &[], rest]] {
            assert!(told(reads).unwrap().contains("write https://"), "{reads:?}");
        }
        // Later in a stream the same bytes are a part of an event.
        for reads in [&[&[0, 0, 6, 4][..], &alert][..], &[&[0], &alert], &[first]] {
            assert_eq!(told(reads), None, "{reads:?}");
        }
    }

    #[test]
    fn a_url_is_wrong_only_for_a_server_that_never_spoke_without_tls() {
        let evidence = TlsEvidence::default();
        let connection = |bytes: &[u8]| Beginning::new(evidence.clone()).inspect(bytes).is_ok();
        assert!(!evidence.asks_for_tls());
        assert!(!connection(&[0x15, 3, 3]) && evidence.asks_for_tls());
        // Whoever was served once comes back when the server is itself again.
        assert!(connection(&[0, 0, 6, 4]) && !evidence.asks_for_tls());
        assert!(!connection(&[0x16, 3, 1]) && !evidence.asks_for_tls());
    }

    #[test]
    fn what_a_server_says_before_it_closes_is_heard_before_the_close() {
        let broken = || Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        let mut beginning = Beginning::new(TlsEvidence::default());
        let written = beginning.written(broken(), 7);
        assert!(matches!(written, Poll::Ready(Ok(7))), "{written:?}");
        let failed = beginning.written(Poll::Ready(Err(io::ErrorKind::TimedOut.into())), 7);
        assert!(matches!(failed, Poll::Ready(Err(_))), "{failed:?}");
        beginning.inspect(&[0, 0]).unwrap();
        let written = beginning.written(broken(), 7);
        assert!(matches!(written, Poll::Ready(Err(_))), "{written:?}");
    }

    #[test]
    fn only_alerts_about_the_certificate_count_and_only_until_the_next_connection() {
        let evidence = TlsEvidence::default();
        let alert = |alert| io::Error::other(rustls::Error::AlertReceived(alert));
        evidence.notice(&alert(AlertDescription::ProtocolVersion));
        evidence.notice(&io::ErrorKind::ConnectionReset.into());
        assert_eq!(evidence.certificate_refusal(), None);
        evidence.notice(&alert(AlertDescription::CertificateRequired));
        // What comes after it says less.
        evidence.notice(&io::ErrorKind::ConnectionReset.into());
        assert_eq!(
            evidence.certificate_refusal().unwrap(),
            "it asks for a client certificate"
        );
        evidence.forget();
        assert_eq!(evidence.certificate_refusal(), None);
    }
}
