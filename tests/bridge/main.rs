//! The whole program, from outside.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "tests"
)]

mod abuse;
mod access;
mod admin;
mod ages;
mod bench;
mod catch_up;
mod cli;
#[cfg(target_os = "linux")]
mod clock;
#[cfg(target_os = "linux")]
mod cluster;
mod configuration;
mod credentials;
mod damage;
mod disk;
mod doctor;
mod drain;
mod durability;
mod event_types;
mod events;
mod grpc;
mod grpc_protocol;
mod grpc_status;
mod grpc_web;
mod http;
mod http2_spec;
mod http_fields;
mod http_messages;
mod json_suite;
mod keys;
#[cfg(target_os = "linux")]
mod log_copy;
#[cfg(target_os = "linux")]
mod power;
mod privacy;
mod proxies;
mod refusals;
mod retention;
mod rotation;
mod settings_privacy;
mod setup;
mod setup_page;
mod signatures;
mod simulated_sources;
mod simulator;
mod smuggling;
mod sources;
#[cfg(target_os = "linux")]
mod store_outages;
mod support;
mod tail;
mod tls;
mod token;
mod tools;
mod trigger;
mod windows;
