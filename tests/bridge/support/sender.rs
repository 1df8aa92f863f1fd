//! The sender's side: deliveries that are signed once and sent as often as a test likes, over
//! connections that are kept, and a door with a fixed address before bridges that come and go.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use prelude_bridge::simulator::{SigningKey, keys::SignatureStyle};
use serde_json::Value;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{APP, KEY, SOON, batch, certificates::Authority, item};

/// A batch of [`APP`] and a signature over it.
#[derive(Clone)]
pub(crate) struct Delivery {
    pub(crate) body: Bytes,
    pub(crate) signature: String,
}

impl Delivery {
    /// A batch of these items, signed with [`KEY`].
    pub(crate) fn of<I: AsRef<str>>(items: &[I]) -> Self {
        Self::signed_with(&KEY, batch(APP, items).into())
    }

    /// A batch of small events with these ids.
    pub(crate) fn of_ids(ids: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let of = |id: &str| item(id, "user.session.revoked", "usr_1");
        let items: Vec<String> = ids.into_iter().map(|id| of(id.as_ref())).collect();
        Self::of(&items)
    }

    pub(crate) fn signed_with(key: &SigningKey, body: Bytes) -> Self {
        let signature = key.sign(&body, SignatureStyle::default()).unwrap();
        Self { body, signature }
    }

    /// What the sender does when it tries again: the same bytes under another signature.
    pub(crate) fn signed_anew(&self) -> Self {
        let again = Self::signed_with(&KEY, self.body.clone());
        assert_ne!(again.signature, self.signature);
        again
    }
}

/// What a bridge said to a delivery.
#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) retry_after_seconds: Option<u64>,
    pub(crate) body: Value,
}

impl Reply {
    /// How many of the events were new and how many were not, of a batch that is durable.
    pub(crate) fn counts(&self) -> (u64, u64) {
        assert_eq!(self.status, 200, "{self:?}");
        let count = |name: &str| self.body[name].as_u64().unwrap();
        (count("accepted"), count("duplicates"))
    }

    /// The status and the code of a refusal.
    pub(crate) fn refusal(&self) -> (u16, &str) {
        let code = self.body["error"]["code"].as_str();
        (self.status, code.unwrap_or_default())
    }
}

/// One who delivers: patient for 10 s, and never through a proxy.
#[derive(Clone)]
pub(crate) struct Sender {
    http: reqwest::Client,
    url: String,
}

impl Sender {
    pub(crate) fn to(webhook: SocketAddr) -> Self {
        let http = Self::builder().build().unwrap();
        let url = format!("http://{webhook}/webhooks/{APP}");
        Self { http, url }
    }

    /// The same over TLS, with trust in certificates of this authority.
    pub(crate) fn over_tls(webhook: SocketAddr, authority: &Authority) -> Self {
        let pem = std::fs::read(authority.certificate()).unwrap();
        let trusted = reqwest::Certificate::from_pem(&pem).unwrap();
        let http = Self::builder().tls_certs_only([trusted]).build().unwrap();
        let url = format!("https://{webhook}/webhooks/{APP}");
        Self { http, url }
    }

    fn builder() -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder();
        // The bridge keeps idle connections for longer than a test waits for them to go.
        let builder = builder.pool_idle_timeout(Duration::from_secs(5));
        builder.no_proxy().timeout(Duration::from_secs(10))
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Delivers once. An error means that there was no answer.
    pub(crate) async fn try_send(&self, delivery: &Delivery) -> Result<Reply, reqwest::Error> {
        let request = self
            .http
            .post(&self.url)
            .header("content-type", "application/json")
            .header("x-webhook-signature", &delivery.signature)
            .body(delivery.body.clone());
        let answer = request.send().await?;
        let retry_after = answer.headers().get("retry-after");
        Ok(Reply {
            status: answer.status().as_u16(),
            retry_after_seconds: retry_after.map(|after| after.to_str().unwrap().parse().unwrap()),
            body: answer.json().await?,
        })
    }

    /// Delivers once.
    pub(crate) async fn send(&self, delivery: &Delivery) -> Reply {
        self.try_send(delivery).await.unwrap()
    }
}

/// An address that stays while the bridges behind it come and go, like that of a proxy.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    leads_to: watch::Sender<Option<SocketAddr>>,
}

impl Door {
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (leads_to, target) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok((mut outer, _)) = listener.accept().await {
                let target: Option<SocketAddr> = *target.borrow();
                let Some(target) = target else { continue };
                tokio::spawn(async move {
                    // Whatever breaks here is what the tests are about.
                    if let Ok(mut inner) = TcpStream::connect(target).await {
                        let _ = inner.set_nodelay(true);
                        let _ = copy_bidirectional(&mut outer, &mut inner).await;
                    }
                });
            }
        });
        Self { address, leads_to }
    }

    pub(crate) fn lead_to(&self, address: SocketAddr) {
        self.leads_to.send_replace(Some(address));
    }
}

/// Asks until there is an answer. The pause between two questions leaves a core to whoever is
/// asked.
pub(crate) async fn eventually<T>(mut question: impl AsyncFnMut() -> Option<T>) -> T {
    let answered = async {
        loop {
            if let Some(answer) = question().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, answered).await.unwrap()
}
