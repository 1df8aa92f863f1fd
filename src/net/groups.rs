//! Owns the networks around a client that have shares of their own, as one host or one customer can have
//! many addresses of them. Knows nothing of what is shared.

use super::network::Network;

/// A kind of network around a client. It has so many shares for all of its clients together that have
/// proven nothing.
pub(super) struct Grouping {
    ipv4_bits: u8,
    ipv6_bits: u8,
    pub(super) shares: usize,
}

/// The most that a customer of a network is usually given (an IPv6 /48, RFC 6177), and the least that a
/// network is given for its customers. One host can use all addresses of the former, and a hosting
/// customer many of the latter; neither may have a share for each.
pub(super) const GROUPS: [Grouping; 2] = [
    Grouping {
        ipv4_bits: 24,
        ipv6_bits: 48,
        shares: 4,
    },
    Grouping {
        ipv4_bits: 16,
        ipv6_bits: 32,
        shares: 16,
    },
];

/// The networks around a client, the smallest first.
pub(super) fn groups_of(client: Network) -> [Network; GROUPS.len()] {
    let address = client.address();
    GROUPS.map(|grouping| {
        let bits = if address.is_ipv4() {
            grouping.ipv4_bits
        } else {
            grouping.ipv6_bits
        };
        Network::around(address, bits)
    })
}
