//! Owns the connection: the bridge's URL, the HTTP/2 settings for event streams, and the calls.
//! `subscription` resumes streams.

use std::{fmt, time::Duration};

use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use super::{
    backoff::Backoff,
    connector::Connector,
    credential::{self, Credential, TokenSource, Trust},
    cursor_store::CursorStore,
    error::{Error, is_unsent},
    request::{Request, Start},
    subscription::Subscription,
};
use crate::proto::{
    GetRangeRequest, GetRangeResponse, LogRange, event_service_client::EventServiceClient,
};

/// How much a stream may send ahead of its reader, in bytes: on a path of 20 ms this allows 200
/// MB/s, where HTTP/2's default of 64 KiB would allow 3.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Two streams at full speed.
const CONNECTION_WINDOW_BYTES: u32 = 2 * STREAM_WINDOW_BYTES;
/// A response is typically at most 256 KiB: this lets it travel as one frame.
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
/// Far above the largest response: a batch is at most 1 MiB, and an event can be in it twice, as
/// JSON and as its payload.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The remedy for a URL that cannot be used.
const WRITE_URL: &str = "write https://host:port, or http://host:port without TLS";
/// How long a call that is not a stream may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How to connect to a bridge, and how long to wait.
#[derive(Clone, Debug)]
pub struct Options {
    url: String,
    connect_timeout: Duration,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
    silence_timeout: Duration,
    backoff: Backoff,
    token: Option<TokenSource>,
    trust: Trust,
    is_token_sent_in_plain_text: bool,
}

impl Options {
    /// The bridge at `https://host:port`, or at `http://host:port` without TLS.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            silence_timeout: Duration::from_secs(60),
            backoff: Backoff::default(),
            token: None,
            trust: Trust::default(),
            is_token_sent_in_plain_text: false,
        }
    }

    /// The same options with another URL.
    #[must_use]
    pub fn with_url(mut self, url: impl Into<String>) -> Self {
        self.url = url.into();
        self
    }

    /// The token that is shown with every call, as `authorization: Bearer …`: text, or
    /// [`TokenSource::file`]. Over `http://` it is sent to this machine only, unless
    /// [`token_over_plain_text`](Self::token_over_plain_text) allows more.
    #[must_use]
    pub fn token(mut self, token: impl Into<TokenSource>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sends the token over `http://` to other machines too, so that anybody on the network can read
    /// it: for networks that encrypt by other means, such as a service mesh.
    #[must_use]
    pub fn token_over_plain_text(mut self) -> Self {
        self.is_token_sent_in_plain_text = true;
        self
    }

    /// Trusts servers with a certificate of these issuers, as PEM, instead of those that the
    /// operating system trusts.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<String>) -> Self {
        self.trust.ca_certificates = Some(pem.into());
        self
    }

    /// Removes issuers and certificates, which have no effect without TLS.
    #[must_use]
    pub fn without_certificates(mut self) -> Self {
        self.trust = Trust::default();
        self
    }

    /// Shows this certificate, with those of its intermediate issuers after it, for which the
    /// client has the key; both as PEM (mTLS).
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate_pem: impl Into<String>,
        key_pem: impl Into<String>,
    ) -> Self {
        self.trust.client_certificate = Some((certificate_pem.into(), key_pem.into()));
        self
    }

    /// Expects this name in the server's certificate instead of the URL's host: for connections through
    /// a tunnel or to an address.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.trust.server_name = Some(name.into());
        self
    }

    /// How long to wait for a connection: by default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How often to check the connection with an HTTP/2 ping, and how long to wait for the answer: by
    /// default 30 s and 20 s. Proxies often close connections that are silent for a minute.
    #[must_use]
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keepalive_interval = interval;
        self.keepalive_timeout = timeout;
        self
    }

    /// How long a stream may be silent, by default 60 s; also the least time that it may be silent,
    /// as three of its progress intervals are always allowed. Notices a server that is gone behind
    /// a proxy that answers pings.
    #[must_use]
    pub fn silence_timeout(mut self, timeout: Duration) -> Self {
        self.silence_timeout = timeout;
        self
    }

    /// How long to wait between attempts to resume.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Where to connect, and how.
    fn endpoint(&self, credential: &Credential) -> Result<(Endpoint, Connector), Error> {
        let uri: http::Uri = self
            .url
            .parse()
            .map_err(|error| Error::Url(format!("{error}; {WRITE_URL}")))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(Error::Url(WRITE_URL.to_owned())),
        };
        let host = uri.host().unwrap_or_default();
        let tls = if is_tls {
            Some(self.trust.secure(host)?)
        } else {
            self.refuse_plain_text(host)?;
            None
        };
        let endpoint = Endpoint::from(uri)
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX);
        Ok((endpoint, Connector::new(tls, credential.evidence.clone())))
    }

    /// Refuses TLS settings with a URL without TLS.
    fn refuse_plain_text(&self, host: &str) -> Result<(), Error> {
        if self.trust.needs_tls() {
            let problem = "certificates mean nothing over http; write https://host:port";
            return Err(Error::Url(problem.to_owned()));
        }
        let is_heard = !credential::is_loopback(host) && !self.is_token_sent_in_plain_text;
        if self.token.is_some() && is_heard {
            return Err(Error::Credential(format!(
                "over http the token would be readable on the way to {host}; write https://, or \
                 allow it (`token_over_plain_text`) where the network is encrypted otherwise"
            )));
        }
        Ok(())
    }
}

/// A connection to a bridge, shared by its clones. It reconnects by itself.
#[derive(Clone)]
pub struct Client {
    service: EventServiceClient<Channel>,
    credential: Credential,
    silence_timeout: Duration,
    backoff: Backoff,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::Credential`], and [`Error::Unreachable`] when nobody answers: from then on a subscription
    /// resumes by itself, but whether to insist before there ever was a connection is up to the
    /// caller. [`Client::lazy`] insists.
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let credential = Credential::new(options.token.clone());
        let (endpoint, connector) = options.endpoint(&credential)?;
        credential.check().await?;
        let connecting = endpoint.connect_with_connector(connector).await;
        let channel = connecting.map_err(|error| credential.explain(Error::unreachable(&error)))?;
        Ok(Self::over(channel, credential, options))
    }

    /// Connects when the first call is made.
    ///
    /// # Errors
    /// [`Error::Url`] and [`Error::Credential`].
    pub fn lazy(options: &Options) -> Result<Self, Error> {
        let credential = Credential::new(options.token.clone());
        let (endpoint, connector) = options.endpoint(&credential)?;
        let channel = endpoint.connect_with_connector_lazy(connector);
        Ok(Self::over(channel, credential, options))
    }

    fn over(channel: Channel, credential: Credential, options: &Options) -> Self {
        Self {
            service: EventServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX),
            credential,
            silence_timeout: options.silence_timeout,
            backoff: options.backoff.clone(),
        }
    }

    /// The two ends of the bridge's log.
    ///
    /// # Errors
    /// What the status says; nothing is retried.
    pub async fn range(&self) -> Result<LogRange, Error> {
        let answer = match self.ask_range().await? {
            Err(status) if is_unsent(&status) => self.ask_range().await?,
            answer => answer,
        };
        let response = answer
            .map_err(|status| self.credential.explain(status.into()))?
            .into_inner();
        Ok(LogRange {
            earliest: response.earliest,
            head: response.head,
            event_count: response.event_count,
        })
    }

    async fn ask_range(&self) -> Result<Result<Response<GetRangeResponse>, Status>, Error> {
        let mut request = self.credential.request(GetRangeRequest {}).await?;
        request.set_timeout(CALL_TIMEOUT);
        Ok(self.service.clone().get_range(request).await)
    }

    /// Subscribes. The call is made when the first item is polled.
    #[must_use]
    pub fn subscribe(&self, request: Request) -> Subscription {
        Subscription::new(
            self.service.clone(),
            self.credential.clone(),
            request.into_message(),
            self.silence_timeout,
            self.backoff.clone(),
        )
    }

    /// Subscribes after the cursor in `store`, or where `request` starts if there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn resume(
        &self,
        request: Request,
        store: impl CursorStore,
    ) -> Result<Subscription, Error> {
        let request = match store.load().await.map_err(Error::Store)? {
            Some(cursor) => request.start(Start::After(cursor)),
            None => request,
        };
        Ok(self.subscribe(request).with_store(Box::new(store)))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_that_cannot_be_used_is_told_before_any_call() {
        for url in ["", "bridge:50051", "ftp://bridge", "http://a b"] {
            let error = Client::lazy(&Options::new(url)).unwrap_err();
            assert!(matches!(error, Error::Url(_)), "{url}: {error}");
            assert!(error.to_string().contains("https://host:port"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_token_goes_over_tls_or_to_this_machine_or_where_it_is_allowed() {
        let to = |url: &str| Options::new(url).token("canary-token");
        for url in [
            "https://bridge:50051",
            "http://127.0.0.1:50051",
            "http://[::1]:50051",
        ] {
            assert!(Client::lazy(&to(url)).is_ok(), "{url}");
        }
        let refused = to("http://bridge:50051");
        let error = Client::lazy(&refused).unwrap_err();
        assert!(matches!(error, Error::Credential(_)) && !error.is_retryable());
        let said = format!("{error} {refused:?}");
        assert!(
            said.contains("https://") && said.contains("bridge"),
            "{said}"
        );
        assert!(!said.contains("canary"), "{said}");
        assert!(Client::lazy(&refused.token_over_plain_text()).is_ok());
    }

    #[tokio::test]
    async fn certificates_that_would_not_be_used_or_cannot_be_are_refused() {
        let error = |options: Options| Client::lazy(&options).unwrap_err();
        let plain = Options::new("http://bridge:50051").ca_certificate("");
        assert!(matches!(error(plain), Error::Url(_)));
        let tls = Options::new("https://bridge:50051");
        for options in [
            tls.clone().ca_certificate("canary"),
            tls.clone().client_certificate("canary", "canary"),
        ] {
            let said = format!("{options:?} {}", error(options.clone()));
            assert!(said.contains("PEM") && !said.contains("canary"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_unreachable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = Client::connect(&Options::new(url)).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable(_)));
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
