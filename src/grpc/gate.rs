//! Owns the gate in front of the RPCs, which all of gRPC and gRPC-Web pass: it looks a call up in the
//! table, gives it a slot, checks its credential, and hands it to what answers it. Knows credentials
//! only by what they say of a caller.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header, request::Parts};
use http_body_util::Full;
use tonic::{Status, body::Body, service::Routes};
use tower_service::Service;

use super::{
    STANDARD_REQUEST_BYTES_MAX,
    held::{Bounds, Deadline, Ending, Held},
    messages::{Limits, Messages, framed},
    protocol::{ENCODING, Head},
    resources::{Refused, Resources},
    rpcs::{self, Access, Handler, Rpc},
    standard,
    status::Failure,
};
use crate::{
    credentials::{self, Grant, Presented, Refusal, jwt},
    http2::{Caller, Kind, Options},
    net::slots::Standing,
    subscription,
};

/// The RPCs behind the gate.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) table: &'static [Rpc],
    pub(super) resources: Arc<Resources>,
    standard: Routes,
}

/// What a call was let in with.
struct Admitted {
    grant: Option<Grant>,
    bounds: Bounds,
}

impl Gate {
    /// A gate in front of all RPCs; `standard` answers those that are tonic's.
    pub(super) fn new(resources: Arc<Resources>, standard: Routes) -> Self {
        Self {
            table: rpcs::TABLE,
            resources,
            standard,
        }
    }

    /// Answers a request.
    pub(super) async fn answer(self, request: Request<Body>) -> Response<Body> {
        let caller = request.extensions().get::<Caller>().cloned();
        match self.try_answer(request, caller.as_ref()).await {
            Ok(response) => response,
            Err(failure) => {
                let caller = caller.as_ref();
                self.resources.refused(Refused::Call, caller, &failure);
                Status::from(&failure).into_http()
            }
        }
    }

    async fn try_answer(
        &self,
        request: Request<Body>,
        caller: Option<&Caller>,
    ) -> Result<Response<Body>, Failure> {
        let (mut parts, body) = request.into_parts();
        let options = &self.resources.options;
        let head = Head::read(&parts, options.header_bytes_max as usize)?;
        let deadline = Deadline(head.deadline);
        let rpc = self.table.iter().find(|rpc| rpc.path == parts.uri.path());
        let limits = limits(rpc, options);
        let mut messages = Messages::new(body, head.encoding, limits);
        let admitted = tokio::select! {
            biased;
            admitted = admit(&self.resources, rpc, &parts, deadline) => admitted?,
            never = messages.read_ahead() => match never {},
        };
        let Admitted { grant, bounds } = admitted;
        let rpc = rpc.ok_or(Failure::Rpc)?;
        // No header of a request is believed to be a grant, and no credential goes further.
        parts.headers.remove(header::AUTHORIZATION);
        // Whoever reads the messages gets them as they were before they were compressed.
        parts.headers.remove(ENCODING);
        parts.extensions.insert(deadline);
        if let Some(grant) = &grant {
            parts.extensions.insert(grant.clone());
            let subscriptions = Arc::clone(&self.resources.subscriptions);
            messages.count(subscriptions, Arc::clone(grant.request_quota()))?;
        }
        let mut response = bounds.within(self.call(rpc, parts, messages)).await??;
        // Whoever sends the response has to end it with the credential.
        if let Some(grant) = grant {
            response.extensions_mut().insert(grant);
        }
        Ok(match rpc.slot {
            // A subscription keeps its deadline itself.
            None => response,
            Some(_) => {
                let ending = || bounds.ending(&self.resources, caller);
                response.extensions_mut().insert(Ending::new(ending()));
                let over = ending();
                response.map(|body| Body::new(Held::new(body, bounds.slot, over)))
            }
        })
    }

    /// Lets what answers a call answer it.
    async fn call(
        &self,
        rpc: &Rpc,
        parts: Parts,
        messages: Messages,
    ) -> Result<Response<Body>, Failure> {
        let routes = || self.standard.clone();
        Ok(match rpc.handler {
            Handler::Own(answer) => {
                let request = Request::from_parts(parts, messages.only().await?);
                answer(Arc::clone(&self.resources), request).await
            }
            Handler::Standard => {
                let body = Body::new(Full::new(framed(&messages.only().await?)));
                let request = Request::from_parts(parts, body);
                standard::answer(routes(), request, Arc::default()).await
            }
            Handler::StandardStream => {
                let (body, failed) = messages.into_body();
                let request = Request::from_parts(parts, body);
                standard::answer(routes(), request, failed).await
            }
        })
    }
}

/// The limits of a request's messages.
fn limits(rpc: Option<&Rpc>, options: &Options) -> Limits {
    let timeout = match rpc.map(|rpc| rpc.handler) {
        None | Some(Handler::Own(_) | Handler::Standard) => options.header_timeout,
        Some(Handler::StandardStream) => options.slow_consumer_timeout,
    };
    let bytes_max = match rpc {
        // Only a subscription has a filter.
        Some(Rpc { slot: None, .. }) => options.request_bytes_max,
        Some(_) | None => STANDARD_REQUEST_BYTES_MAX,
    };
    Limits { bytes_max, timeout }
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let gate = self.clone();
        Box::pin(async move { Ok(gate.answer(request).await) })
    }
}

/// Decides about a call. The connection of a caller who is let in by a credential keeps its place
/// from then on, and so does its call; where nobody has a credential, so does any connection. A call that
/// has no row in the table needs a credential, so that strangers learn only that they are.
async fn admit(
    resources: &Resources,
    rpc: Option<&Rpc>,
    request: &Parts,
    deadline: Deadline,
) -> Result<Admitted, Failure> {
    let (access, kind) = match rpc {
        Some(rpc) => (rpc.access, rpc.slot),
        None => (Access::Credential, Some(Kind::Other)),
    };
    let caller = request.extensions.get::<Caller>();
    let connection = caller.map(|caller| caller.standing.clone());
    let call = Standing::default();
    let standing = match kind {
        // It lasts, so whoever has shown something on its connection keeps it.
        Some(Kind::Watch) => connection.clone().unwrap_or_default(),
        Some(Kind::Check | Kind::Other | Kind::Anonymous) | None => call.clone(),
    };
    let slot = kind
        .map(|kind| resources.calls.enter(kind, caller, Some(standing)))
        .transpose()
        .map_err(Failure::NoSlot)?;
    let bounds = Bounds { slot, deadline };
    let grant = match access {
        Access::Anyone => None,
        Access::Credential => {
            let undecided = Undecided { resources, caller };
            let authenticated = bounds.within(authenticate(resources, request)).await;
            undecided.decided();
            let authenticated = authenticated?;
            if let (Err(Failure::Credential(refusal)), Some(connection)) =
                (&authenticated, &connection)
                && is_wrong(refusal)
            {
                connection.discredit();
            }
            Some(authenticated?)
        }
    };
    if let Some(grant) = &grant {
        if let (Some(caller), Some(quota)) = (caller, grant.quota()) {
            let default_max = resources.options.connections_per_credential_max;
            let counted = caller.shown.count(quota, default_max);
            counted.map_err(|reached| Failure::Stream(subscription::Failure::Quota(reached)))?;
        }
        let is_anonymous = grant.kind() == credentials::Kind::Anonymous;
        if let Some(connection) = connection {
            // Whoever comes without a credential gives way where others have some.
            if is_anonymous && resources.credentials.is_configured() {
                connection.admit();
            } else {
                connection.prove();
            }
        }
        if !is_anonymous {
            call.prove();
        }
    }
    Ok(Admitted { grant, bounds })
}

/// Whether a caller showed a credential that is not accepted, or not any more.
fn is_wrong(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Unknown | Refusal::UnknownCommonName | Refusal::Expired | Refusal::Jwt(_) => true,
        Refusal::Missing | Refusal::Malformed | Refusal::Unavailable | Refusal::Throttled => false,
    }
}

/// A call whose credential is being looked at. That takes time only where no known key fits a JWT:
/// dropped meanwhile, it counts as refused for that.
struct Undecided<'r> {
    resources: &'r Resources,
    caller: Option<&'r Caller>,
}

impl Undecided<'_> {
    fn decided(self) {
        std::mem::forget(self);
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        let failure = Failure::Credential(Refusal::Jwt(jwt::Fault::Signature));
        self.resources.refused(Refused::Call, self.caller, &failure);
    }
}

async fn authenticate(resources: &Resources, request: &Parts) -> Result<Grant, Failure> {
    let caller = request.extensions.get::<Caller>();
    let certificate = caller.and_then(|caller| caller.certificate.as_ref());
    let identity = certificate.and_then(|certificate| certificate.identity.as_ref());
    let mut values = request.headers.get_all(header::AUTHORIZATION).iter();
    let authorization = values.next();
    let presented = Presented {
        address: caller.and_then(|caller| resources.calls.address_of(caller)),
        authorization: authorization.map(HeaderValue::as_bytes),
        certificate: identity,
        certificate_expires_at: certificate.map(|certificate| certificate.expires_at),
    };
    let authenticated = match values.next() {
        // Two could be meant for two servers that each look at another one.
        Some(_) => Err(Refusal::Malformed),
        None => resources.credentials.authenticate(presented).await,
    };
    authenticated.map_err(Failure::Credential)
}
