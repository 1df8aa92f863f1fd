//! Owns what of the configuration each part is given.

use std::{net::IpAddr, time::Duration};

use crate::{
    config::Config,
    grpc, http2,
    net::{self, http1, network::Network, quiet},
    receiver::{self, VerificationToken, source::Sources},
    signature::Keyring,
    subscription,
};

pub(super) fn apps(config: &Config, keyrings: &[Keyring]) -> Vec<receiver::App> {
    let pairs = config.apps.iter().zip(keyrings);
    pairs
        .map(|(app, keyring)| receiver::App {
            id: app.id.as_str().into(),
            verification_token: VerificationToken::new(app.verification_token.expose()),
            keyring: keyring.clone(),
        })
        .collect()
}

pub(super) fn of_receiver(config: &Config) -> receiver::Options {
    let limits = config.webhook_limits;
    receiver::Options {
        sources: sources(config),
        body_bytes_max: limits.body_bytes_max.as_usize(),
        bodies_bytes_max: limits.bodies_bytes_max.as_usize(),
        bodies_bytes_per_address_max: limits.bodies_bytes_per_address_max.as_usize(),
        verifications_max: limits.verifications_max,
        forgeries: receiver::forgeries::Limits {
            at_once: u32::try_from(limits.forgeries_at_once).unwrap_or(u32::MAX),
            per_second: u32::try_from(limits.forgeries_per_second).unwrap_or(u32::MAX),
        },
        body_timeout: limits.body_timeout,
        request_timeout: limits.request_timeout,
        connection: http1::Limits {
            header_timeout: limits.header_timeout,
            write_timeout: limits.write_timeout,
            headers_max: limits.headers_max,
            header_bytes_max: limits.header_bytes_max.as_usize(),
            framing_bytes_max: limits.framing_bytes_max.as_usize(),
        },
        listener: net::Limits {
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            drain_timeout: connections_drain_timeout(config.drain_timeout),
        },
        quiet: quiet(config),
    }
}

pub(super) fn sources(config: &Config) -> Sources {
    Sources {
        allowed: config.allowed_sources.networks().into(),
        proxies: config.trusted_proxies.clone().into(),
    }
}

pub(super) fn of_streams(config: &Config) -> grpc::Options {
    let limits = config.grpc_limits;
    grpc::Options {
        subscriptions: subscription::Options {
            streams_max: limits.streams_max,
            drain_retry_spread: limits.drain_retry_spread,
        },
        connections: of_connections(config),
        calls: http2::CallLimits {
            calls_max: limits.calls_max,
            calls_per_address_max: limits.calls_per_address_max,
            checks_max: limits.checks_max,
            watches_max: limits.watches_max,
            watches_per_address_max: limits.watches_per_address_max,
            streams_per_address_max: limits.streams_per_address_max,
            proxies: config.grpc_proxies.clone(),
        },
        web_origins: config
            .web_origins
            .iter()
            .map(|origin| origin.0.clone())
            .collect(),
        quiet: quiet(config),
    }
}

fn of_connections(config: &Config) -> http2::Options {
    let limits = config.grpc_limits;
    let streams_max = limits.streams_per_connection_max;
    http2::Options {
        credential_timeout: limits.credential_timeout,
        idle_timeout: limits.idle_timeout,
        local_error_resets_max: limits.local_error_resets_max,
        pending_accept_resets_max: limits.pending_accept_resets_max,
        streams_per_connection_max: u32::try_from(streams_max).unwrap_or(u32::MAX),
        header_bytes_max: u32::try_from(limits.header_bytes_max.0).unwrap_or(u32::MAX),
        request_bytes_max: limits.request_bytes_max.as_usize(),
        response_bytes_max: limits.response_bytes_max.as_usize(),
        unsent_bytes_max: limits.unsent_bytes_max.as_usize(),
        frames: http2::FrameLimits {
            frame_cost_bytes: limits.frame_cost_bytes.0,
            frames_per_second: limits.frames_per_second as u64,
            frames_at_first: limits.frames_at_first as u64,
            frames_saved_max: limits.frames_saved_max as u64,
        },
        header_timeout: limits.header_timeout,
        ping_interval: limits.ping_interval,
        ping_timeout: limits.ping_timeout,
        slow_consumer_timeout: limits.slow_consumer_timeout,
    }
}

/// What the gRPC port's listener holds.
pub(super) fn of_grpc_listener(config: &Config) -> net::Limits {
    net::Limits {
        connections_max: config.grpc_limits.connections_max,
        connections_per_address_max: config.grpc_limits.connections_per_address_max,
        drain_timeout: connections_drain_timeout(config.drain_timeout),
    }
}

/// Whether an address is in one of these networks.
pub(super) fn is_in(networks: &[Network]) -> impl Fn(IpAddr) -> bool + Send + Sync + use<> {
    let networks = networks.to_vec();
    move |address| networks.iter().any(|network| network.contains(address))
}

pub(super) fn quiet(config: &Config) -> quiet::Limits {
    let limits = config.refusal_limits;
    quiet::Limits {
        lines_at_once: u32::try_from(limits.lines_at_once).unwrap_or(u32::MAX),
        line_interval: limits.line_interval,
    }
}

/// What connections get of the drain timeout: the last tenth is for closing the log.
pub(super) fn connections_drain_timeout(drain_timeout: Duration) -> Duration {
    drain_timeout.mul_f32(0.9)
}
