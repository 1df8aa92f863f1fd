//! Owns the one table of RPCs on the subscribers' port. The gate, the router, the health of services
//! and the list that reflection gives all follow from it: what has no row cannot be called.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;

use super::{events, resources::Resources};
use crate::http2::Kind;

/// One RPC: where it is, who may call it, and what answers it.
pub(super) struct Rpc {
    pub(super) path: &'static str,
    pub(super) access: Access,
    /// The kind of slot that a call takes; none for subscriptions, which are counted as streams.
    pub(super) slot: Option<Kind>,
    pub(super) handler: Handler,
}

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Whoever can connect. It says nothing of events, and orchestrators that probe and browsers
    /// that ask before they send have no credential to show.
    Anyone,
    /// Whoever has a valid credential. An RPC for events narrows its request to the scope of that.
    Credential,
}

/// What answers an RPC.
#[derive(Clone, Copy)]
pub(super) enum Handler {
    /// A function of ours, for requests with one message.
    Own(Answerer),
    /// A service that tonic has, for requests with one message.
    Standard,
    /// A service that tonic has, for one message after the other while a client looks around, which can
    /// go on for a while. Clients open a new stream when one ends.
    StandardStream,
}

/// Answers one call, whose message has come.
pub(super) type Answerer = fn(Arc<Resources>, Request<Bytes>) -> BoxFuture<'static, Response<Body>>;

/// Every RPC there is.
///
/// A browser's preflight request (`OPTIONS`) is no RPC: it is answered for any path, by the origin
/// alone, before the gate (`services.rs`).
pub(super) static TABLE: &[Rpc] = &[
    Rpc {
        path: "/prelude.bridge.v1.EventService/Subscribe",
        access: Access::Credential,
        slot: None,
        handler: Handler::Own(events::subscribe),
    },
    Rpc {
        path: "/prelude.bridge.v1.EventService/GetRange",
        access: Access::Credential,
        slot: Some(Kind::Other),
        handler: Handler::Own(events::get_range),
    },
    Rpc {
        path: "/grpc.health.v1.Health/Check",
        access: Access::Anyone,
        slot: Some(Kind::Check),
        handler: Handler::Standard,
    },
    Rpc {
        path: "/grpc.health.v1.Health/Watch",
        access: Access::Anyone,
        slot: Some(Kind::Watch),
        handler: Handler::Standard,
    },
    Rpc {
        path: "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        access: Access::Credential,
        slot: Some(Kind::Other),
        handler: Handler::StandardStream,
    },
    Rpc {
        path: "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        access: Access::Credential,
        slot: Some(Kind::Other),
        handler: Handler::StandardStream,
    },
];

impl Rpc {
    /// The name of its service.
    pub(super) fn service(&self) -> &'static str {
        let name = self.path.trim_start_matches('/');
        name.split_once('/').map_or(name, |(service, _)| service)
    }
}

/// The names of all services.
pub(super) fn services() -> BTreeSet<&'static str> {
    TABLE.iter().map(Rpc::service).collect()
}

/// The names of those that are not tonic's.
pub(super) fn own_services() -> BTreeSet<&'static str> {
    let own = TABLE.iter().filter(|rpc| match rpc.handler {
        Handler::Own(_) => true,
        Handler::Standard | Handler::StandardStream => false,
    });
    own.map(Rpc::service).collect()
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
        let mut described_paths = BTreeSet::new();
        for set in described {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        described_paths.insert(format!(
                            "/{}.{}/{}",
                            file.package(),
                            service.name(),
                            method.name()
                        ));
                    }
                }
            }
        }
        let rows = TABLE.iter().map(|rpc| rpc.path.to_owned());
        assert_eq!(described_paths, rows.collect());
    }
}
