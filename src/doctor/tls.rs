//! Checks the certificates of the ports: whether they can be used, and until when.

use jiff::Timestamp;

use super::Check;
use crate::{
    config::Tls,
    net::tls::{self, Leaf},
};

const TLS: &str = "TLS";

/// Checks the certificate of each port.
pub(super) fn examine(config: &Tls) -> Vec<Check> {
    let ports = [("webhook", config.of_webhook()), ("gRPC", config.of_grpc())];
    let checks = ports.into_iter().map(|(port, options)| match options {
        Some(options) => certificate(port, &options),
        None => Check::skipped(TLS, format!("the {port} port speaks plain text")),
    });
    checks.collect()
}

fn certificate(port: &str, options: &tls::Options) -> Check {
    let leaf = match tls::examine(options) {
        Ok(leaf) => leaf,
        Err(fault) => {
            return Check::fault(
                TLS,
                format!("the {port} port: {fault}"),
                format!(
                    "correct the file, or name others in `[tls.{}]`",
                    port.to_lowercase()
                ),
            );
        }
    };
    let names = leaf.names.join(", ");
    if let Some(reason) = leaf.unfit() {
        return Check::fault(TLS, format!("the {port} port: {reason}"), Leaf::fitting());
    }
    match leaf.complaint(Timestamp::now()) {
        None => Check::good(
            TLS,
            format!(
                "the {port} port's certificate is for {names}, until {}",
                leaf.not_after
            ),
        ),
        Some(complaint) => Check::fault(
            TLS,
            format!("the {port} port: {complaint}"),
            format!("replace {} and its key", options.certificate.display()),
        ),
    }
}

/// A name in the certificate of the gRPC port.
pub(super) fn name_of_grpc(config: &Tls) -> Option<String> {
    let leaf = tls::examine(&config.of_grpc()?).ok()?;
    // `*.example.com` matches all names below the domain.
    let name = leaf.names.into_iter().next()?;
    Some(name.replacen('*', "bridge", 1))
}
