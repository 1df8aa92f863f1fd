//! What `demo` prints before the first event: the parts with their addresses, and what to try.

use std::{net::SocketAddr, path::Path};

use super::{BOLD, DIM, GRPC_PORT, here, id_of};
use crate::{server::Addresses, simulator::SourceKind};

/// The width that all printed lines fit.
const COLUMNS: usize = 80;

pub(super) fn introduction(
    addresses: Addresses,
    taken: &[u16],
    simulator: SocketAddr,
    directory: &Path,
    kinds: &[SourceKind],
) -> String {
    let Addresses {
        webhook,
        grpc,
        admin,
    } = addresses;
    let mut rows = vec![("simulator", format!("http://{simulator}"), "plays Prelude")];
    rows.extend(kinds.iter().map(|kind| {
        let url = format!("http://{webhook}/webhooks/{}", id_of(*kind));
        let what = match kind {
            SourceKind::Auth => "takes signed batches in",
            SourceKind::Verify => "takes events of Verify in",
            SourceKind::Notify => "takes events of Notify in",
        };
        ("webhook", url, what)
    }));
    rows.extend([
        (
            "log",
            directory.display().to_string(),
            "keeps events until the end",
        ),
        ("grpc", format!("http://{grpc}"), "streams them out"),
        ("admin", format!("http://{admin}/metrics"), "counts them"),
    ]);
    let mut text =
        format!("\n{BOLD}prelude-bridge demo{BOLD:#}: everything is real but the sender\n\n");
    let places = rows.iter().map(|(_, place, _)| place.len());
    let width = places.max().unwrap_or(0);
    for (name, place, what) in rows {
        text += &format!("  {BOLD}{name:<9}{BOLD:#}  ");
        let is_fitting = 2 + 9 + 2 + width + 2 + what.len() <= COLUMNS;
        text += &if is_fitting {
            format!("{place:<width$}  {DIM}{what}{DIM:#}\n")
        } else {
            format!("{place}\n")
        };
    }
    if !taken.is_empty() {
        let taken: Vec<String> = taken.iter().map(u16::to_string).collect();
        text += &format!(
            "\n{DIM}Taken here, so free ports are used instead: {}{DIM:#}\n",
            taken.join(", ")
        );
    }
    text + &format!(
        "\n{BOLD}Try in another terminal{BOLD:#}\n\n{}\n  \
         grpcurl -plaintext \\\n    \
         -d '{{\"start\":{{\"earliest\":{{}}}},\"stop\":{{\"maxEvents\":3}}}}' \\\n    \
         {grpc} prelude.bridge.v1.EventService/Subscribe\n\n\
         {DIM}Ctrl-C ends it.{DIM:#}\n",
        tail_command(grpc, kinds)
    )
}

/// A command to copy, on two lines where one is too long.
fn tail_command(grpc: SocketAddr, kinds: &[SourceKind]) -> String {
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "prelude-bridge".to_owned());
    let program = format!("  {program} tail");
    let pattern = match kinds {
        [SourceKind::Verify] => "verify.*",
        [SourceKind::Notify] => "transactional.**",
        _ => "user.session.*",
    };
    let flags = format!("--type '{pattern}' --last 5");
    let flags = if grpc == here(GRPC_PORT) {
        flags
    } else {
        format!("--server http://{grpc} {flags}")
    };
    if program.len() + 1 + flags.len() <= COLUMNS {
        format!("{program} {flags}")
    } else {
        format!("{program} \\\n    {flags}")
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ADMIN_PORT, WEBHOOK_PORT},
        *,
    };

    #[test]
    fn the_introduction_fits_a_terminal_and_names_the_ports() {
        let addresses = |webhook, grpc, admin| Addresses {
            webhook: here(webhook),
            grpc: here(grpc),
            admin: here(admin),
        };
        for (addresses, taken) in [
            (addresses(WEBHOOK_PORT, GRPC_PORT, ADMIN_PORT), vec![]),
            (
                addresses(45_678, 45_679, 45_680),
                vec![WEBHOOK_PORT, GRPC_PORT, ADMIN_PORT],
            ),
        ] {
            let directory = Path::new("/tmp/prelude-bridge-demo-AbCdEf");
            let kinds = &SourceKind::ALL;
            let text = introduction(addresses, &taken, here(45_681), directory, kinds);
            let text = anstream::adapter::strip_str(&text).to_string();
            for line in text.lines() {
                // The path of the program is as long as it is.
                let is_program = line.trim_end().ends_with("tail \\");
                assert!(is_program || line.chars().count() <= COLUMNS, "{line}");
            }
            assert_eq!(text.contains("--server"), !taken.is_empty());
            assert_eq!(text.contains("8080, 50051, 9090"), !taken.is_empty());
            assert!(text.contains("streams them out") && text.contains("until the end"));
            assert!(text.contains("/webhooks/verify") && text.contains("/webhooks/notify"));
        }
    }
}
