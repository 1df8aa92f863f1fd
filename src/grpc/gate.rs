//! Owns who may call what: one table of every RPC on the subscribers' port, and the gate in front
//! of the services, which all of gRPC and gRPC-Web pass. Knows credentials only by what they say
//! of a caller.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, poll_immediate};
use http::{HeaderMap, HeaderValue, Request, Response, header, request::Parts};
use http_body_util::BodyExt as _;
use tonic::{Status, body::Body, service::Routes};
use tower::ServiceExt as _;
use tower_service::Service;

use super::{
    Caller,
    calls::{self, NoSlot},
    held::Held,
    shared::Shared,
    status::Failure,
};
use crate::{
    credentials::{self, Ended, Grant, Place, Presented, Refusal},
    net::slots::{Slot, Standing},
};

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Whoever can connect. It says nothing of events, and orchestrators that probe and browsers
    /// that ask before they send have no credential to show.
    Anyone,
    /// Whoever has a valid credential.
    Credential,
    /// Whoever has a valid credential, as far as that reaches: its apps, types and quota.
    Scope,
}

/// Every RPC there is. A test compares the list with the services' own descriptions; what is not
/// listed all the same is for nobody without a credential.
///
/// A browser's preflight request (`OPTIONS`) is no RPC: it is answered for any path, by the origin
/// alone, before the gate (`services.rs`).
pub(super) const TABLE: [(&str, Access); 6] = [
    ("/prelude.bridge.v1.EventService/Subscribe", Access::Scope),
    (
        "/prelude.bridge.v1.EventService/GetRange",
        Access::Credential,
    ),
    ("/grpc.health.v1.Health/Check", Access::Anyone),
    ("/grpc.health.v1.Health/Watch", Access::Anyone),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Access::Credential,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Access::Credential,
    ),
];

const CHECK: &str = "/grpc.health.v1.Health/Check";

/// What the services begin with that others have written: health and reflection.
const OTHERS_SERVICES: &str = "/grpc.";

/// The fields of a status (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";
const DETAILS: &str = "grpc-status-details-bin";

/// Who may call a path. For one that is not in the table strangers learn only that they are.
fn access(path: &str) -> Access {
    let row = TABLE.iter().find(|&&(rpc, _)| rpc == path);
    row.map_or(Access::Credential, |&(_, access)| access)
}

/// The services behind the gate.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) shared: Arc<Shared>,
    pub(super) routes: Routes,
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { shared, routes } = self.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let is_ours = !parts.uri.path().starts_with(OTHERS_SERVICES);
            let caller = parts.extensions.get::<Caller>().cloned();
            let refuse = |failure: &Failure| {
                shared.refused_call(caller.as_ref(), failure);
                Status::from(failure).into_http()
            };
            let Admitted { grant, slot } = match admit(&shared, &parts).await {
                Ok(admitted) => admitted,
                Err(failure) => return Ok(refuse(&failure)),
            };
            // No header of a request is believed to be a grant, and no credential goes further.
            parts.headers.remove(header::AUTHORIZATION);
            if let Some(grant) = &grant {
                parts.extensions.insert(grant.clone());
            }
            let request = Request::from_parts(parts, body);
            let answer = unless_evicted(slot.as_ref(), routes.oneshot(request));
            let mut response = match answer.await {
                Ok(Ok(response)) => response,
                // The router itself cannot fail; its error type is only wider.
                Ok(Err(error)) => Status::internal(error.to_string()).into_http(),
                Err(failure) => return Ok(refuse(&failure)),
            };
            // Whoever sends the response has to end it with the credential.
            if let Some(grant) = grant {
                response.extensions_mut().insert(grant);
            }
            if !is_ours {
                hush(response.headers_mut());
                response = response.map(|body| {
                    Body::new(body.map_frame(|mut frame| {
                        if let Some(trailers) = frame.trailers_mut() {
                            hush(trailers);
                        }
                        frame
                    }))
                });
            }
            Ok(match slot {
                None => response,
                Some(slot) => response.map(|body| Body::new(Held::new(body, slot, shared, caller))),
            })
        })
    }
}

/// Puts a text of ours in the place of a status's own, which repeats what was asked for: that may be
/// anything, and errors are written to logs.
fn hush(headers: &mut HeaderMap) {
    let code = headers.get(STATUS).map(|code| code.as_bytes());
    let text = match code {
        None | Some(b"0") => return,
        Some(b"3") => "the request is not valid",
        Some(b"5") => "there is no service, symbol or file of this name",
        Some(b"12") => "this server does not do that",
        Some(_) => "the call failed",
    };
    headers.remove(DETAILS);
    headers.insert(MESSAGE, HeaderValue::from_static(text));
}

/// What a call was let in with.
struct Admitted {
    grant: Option<Grant>,
    /// Nothing for subscriptions, which are counted elsewhere.
    slot: Option<Slot>,
}

/// Decides about a call. What is no subscription takes a slot. The connection of a caller who is let
/// in by a credential keeps its place from then on, and so does its call.
async fn admit(shared: &Shared, request: &Parts) -> Result<Admitted, Failure> {
    let path = request.uri.path();
    let access = access(path);
    let caller = request.extensions.get::<Caller>();
    let connection = caller.map(|caller| caller.standing.clone());
    let call = Standing::default();
    let (kind, standing) = match access {
        // The registry counts these.
        Access::Scope => (None, call.clone()),
        Access::Credential => (Some(calls::Kind::Other), call.clone()),
        Access::Anyone if path == CHECK => (Some(calls::Kind::Check), call.clone()),
        // It lasts, so whoever has shown something on its connection keeps it.
        Access::Anyone => {
            let standing = connection.clone().unwrap_or_default();
            (Some(calls::Kind::Watch), standing)
        }
    };
    let slot = kind
        .map(|kind| shared.calls.enter(kind, caller, Some(standing)))
        .transpose()
        .map_err(Failure::NoSlot)?;
    let grant = match access {
        Access::Anyone => None,
        Access::Credential | Access::Scope => {
            let authenticated = authenticate(shared, request);
            Some(unless_evicted(slot.as_ref(), authenticated).await??)
        }
    };
    if let Some(grant) = &grant {
        if let Some(connection) = connection {
            connection.prove();
        }
        if grant.kind() != credentials::Kind::Anonymous {
            call.prove();
        }
    }
    Ok(Admitted { grant, slot })
}

/// Goes on until the slot is lost.
async fn unless_evicted<T>(
    slot: Option<&Slot>,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    let Some(slot) = slot else {
        return Ok(work.await);
    };
    tokio::select! {
        biased;
        () = slot.evicted() => Err(Failure::NoSlot(NoSlot::Evicted)),
        done = work => Ok(done),
    }
}

async fn authenticate(shared: &Shared, request: &Parts) -> Result<Grant, Failure> {
    let caller = request.extensions.get::<Caller>();
    let certificate = caller.and_then(|caller| caller.certificate.as_ref());
    let identity = certificate.and_then(|certificate| certificate.identity.as_ref());
    let mut values = request.headers.get_all(header::AUTHORIZATION).iter();
    let authorization = values.next();
    let presented = Presented {
        authorization: authorization.map(HeaderValue::as_bytes),
        certificate: identity,
        certificate_expires_at: certificate.map(|certificate| certificate.expires_at),
    };
    let authenticated = match values.next() {
        // Two could be meant for two servers that each look at another one.
        Some(_) => Err(Refusal::Malformed),
        None => shared.credentials.authenticate(presented).await,
    };
    authenticated.map_err(Failure::Credential)
}

/// What lets one stream go on: its caller's grant, a place under the quota of that, and the news of
/// its end.
pub(super) struct Permit {
    _place: Place,
    _slot: Option<Slot>,
    ended: BoxFuture<'static, Ended>,
}

impl Permit {
    /// Takes a place. Who has no credential also takes a slot of its address.
    ///
    /// # Errors
    /// The credential's quota is used up, or the share of the address.
    pub(super) fn new(
        shared: &Shared,
        caller: Option<&Caller>,
        grant: &Grant,
    ) -> Result<Self, Failure> {
        let place = grant.enter().map_err(Failure::Quota)?;
        let slot = match grant.kind() {
            credentials::Kind::Anonymous => {
                let slot = shared.calls.enter(calls::Kind::Anonymous, caller, None);
                Some(slot.map_err(Failure::NoSlot)?)
            }
            credentials::Kind::Token | credentials::Kind::Certificate | credentials::Kind::Jwt => {
                None
            }
        };
        let grant = grant.clone();
        // Made once and kept: waking thousands of streams must not register thousands of timers.
        let ended = Box::pin(async move { grant.ended().await });
        Ok(Self {
            _place: place,
            _slot: slot,
            ended,
        })
    }

    /// Resolves when the credential ends. Once it has, do not ask again.
    pub(super) async fn ended(&mut self) -> Ended {
        self.ended.as_mut().await
    }

    /// Whether it has.
    pub(super) async fn has_ended(&mut self) -> Option<Ended> {
        poll_immediate(self.ended.as_mut()).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_of_every_service_has_its_row_and_no_row_is_without_one() {
        let described = [
            crate::proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut rpcs = BTreeSet::new();
        for set in described {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        rpcs.insert(format!(
                            "/{}.{}/{}",
                            file.package(),
                            service.name(),
                            method.name()
                        ));
                    }
                }
            }
        }
        let rows = TABLE.map(|(rpc, _)| rpc.to_owned());
        assert_eq!(rpcs, BTreeSet::from(rows));
    }

    #[test]
    fn what_is_not_in_the_table_is_not_for_strangers() {
        for path in ["/", "", "/prelude.bridge.v1.EventService/Subscribe/", "*"] {
            assert_eq!(access(path), Access::Credential, "{path}");
        }
    }
}
