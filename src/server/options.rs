//! Owns the mapping from settings to the options of the parts. The defaults of the settings are also
//! those of the options.

use std::{net::IpAddr, time::Duration};

use crate::{
    bus,
    config::{Config, EventSource, OldEvents, SourceKind},
    grpc, http2,
    net::{self, http1, network::Network, quiet},
    receiver::{self, Deliveries, Product, VerificationToken, VerificationTokens, source::Sources},
    signature::Keyring,
    subscription,
};

pub(super) fn apps(config: &Config, keyrings: &[Keyring]) -> Vec<receiver::App> {
    let pairs = config.sources.iter().zip(keyrings);
    pairs
        .map(|(source, keyring)| receiver::App {
            id: source.id.as_str().into(),
            deliveries: match source.kind {
                SourceKind::Auth => Deliveries::Batches(verification_tokens(source)),
                SourceKind::Verify => Deliveries::SingleEvents(Product::Verify),
                SourceKind::Notify => Deliveries::SingleEvents(Product::Notify),
            },
            keyring: keyring.clone(),
        })
        .collect()
}

fn verification_tokens(source: &EventSource) -> VerificationTokens {
    let activations = source.activation.iter();
    let tokens =
        activations.flat_map(|activation| [Some(&activation.token), activation.old_token.as_ref()]);
    let tokens = tokens.flatten();
    let tokens = tokens.map(|token| VerificationToken::new(token.expose()));
    VerificationTokens::new(tokens.collect())
}

/// Declares how options are made of settings: first the settings of one section with the same names,
/// then the others.
macro_rules! options {
    ($(
        $(#[doc = $doc:literal])*
        $type:ty: $config:ident.$section:ident {
            $($same:ident,)*
            $(; $($field:ident: $value:expr,)+)?
        }
    )+) => {$(
        $(#[doc = $doc])*
        impl From<&Config> for $type {
            fn from($config: &Config) -> Self {
                Self {
                    $($same: $config.$section.$same.into(),)*
                    $($($field: $value,)+)?
                }
            }
        }

        impl Default for $type {
            fn default() -> Self {
                Self::from(&Config::default())
            }
        }
    )+};
}

options! {
    receiver::Options: config.webhook_limits {
        body_bytes_max, bodies_bytes_max, bodies_bytes_per_address_max, verifications_max, body_timeout,
        request_timeout,
        ;
        sources: sources(config),
        age: age(config),
        forgeries: config.into(),
        connection: config.into(),
        listener: config.into(),
        quiet: config.into(),
    }
    receiver::forgeries::Limits: config.webhook_limits {
        ;
        at_once: config.webhook_limits.forgeries_at_once,
        per_second: config.webhook_limits.forgeries_per_second,
    }
    /// The options of the webhook port.
    http1::Limits: config.webhook_limits {
        header_timeout, idle_timeout, write_timeout, headers_max, header_bytes_max, framing_bytes_max,
        ;
        linger_bytes_max: receiver::discarded_bytes_max(config.webhook_limits.body_bytes_max.into()),
    }
    /// The options of the webhook port.
    net::Limits: config.webhook_limits {
        connections_max, connections_per_address_max,
        ;
        drain_timeout: connections_drain_timeout(config.drain_timeout),
    }
    quiet::Limits: config.refusal_limits { lines_at_once, line_interval, }
    grpc::Options: config.grpc_limits {
        ;
        subscriptions: config.into(),
        connections: config.into(),
        calls: config.into(),
        web_origins: config.web_origins.iter().map(|origin| origin.0.clone()).collect(),
        quiet: config.into(),
    }
    subscription::Options: config.grpc_limits {
        streams_max, streams_per_credential_max, filters_bytes_max, filters_bytes_per_credential_max,
        history_streams_max, drain_retry_spread, stream_age_max,
    }
    http2::Options: config.grpc_limits {
        credential_timeout, idle_timeout, local_error_resets_max, pending_accept_resets_max,
        streams_per_connection_max, header_bytes_max, request_bytes_max, response_bytes_max,
        unsent_bytes_max, unsent_total_bytes_max, unsent_bytes_per_credential_max, connections_max,
        connections_per_credential_max, header_timeout, ping_interval, ping_timeout, slow_consumer_timeout,
        stream_age_max,
        ;
        frames: config.into(),
    }
    http2::CallLimits: config.grpc_limits {
        calls_max, calls_per_address_max, checks_max, watches_max, watches_per_address_max,
        streams_per_address_max,
        ;
        proxies: config.grpc_proxies.clone(),
    }
    http2::FrameLimits: config.grpc_limits {
        frame_cost_bytes, frames_per_second, frames_at_first, frames_saved_max,
    }
    bus::Options: config.bus_limits { window_bytes_max, }
}

fn age(config: &Config) -> receiver::AgeLimit {
    receiver::AgeLimit {
        age_max: config.retention.id_age_min,
        is_lifted: config.old_events == OldEvents::Accept,
    }
}

/// The options of the gRPC port.
pub(super) fn of_grpc_listener(config: &Config) -> net::Limits {
    net::Limits {
        connections_max: config.grpc_limits.connections_max,
        connections_per_address_max: config.grpc_limits.connections_per_address_max,
        ..config.into()
    }
}

/// Those of the admin port.
pub(super) fn of_admin_listener(config: &Config) -> net::Limits {
    net::Limits {
        connections_max: config.admin_limits.connections_max,
        connections_per_address_max: config.admin_limits.connections_per_address_max,
        ..config.into()
    }
}

pub(super) fn sources(config: &Config) -> Sources {
    Sources {
        allowed: config.allowed_networks().into(),
        proxies: config.trusted_proxies.clone().into(),
    }
}

/// Returns whether an address is in one of these networks.
pub(super) fn is_in(networks: &[Network]) -> impl Fn(IpAddr) -> bool + Send + Sync + use<> {
    let networks = networks.to_vec();
    move |address| networks.iter().any(|network| network.contains(address))
}

/// The share of the drain timeout for connections; the last tenth is for closing the log.
pub(super) fn connections_drain_timeout(drain_timeout: Duration) -> Duration {
    drain_timeout.mul_f32(0.9)
}
