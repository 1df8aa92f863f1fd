//! Networks of addresses, as `10.0.0.0/8` writes them. Owns the notation (RFC 4632, RFC 4291) and
//! the question whether an address is in one; knows nothing of who may do what.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// An IPv4 or IPv6 network; a single address is one, too.
///
/// `ipnet` does the arithmetic. What it does not know is here: that an IPv4 address in IPv6 form is
/// IPv4, that bits after the prefix are a mistake, and what a person is told of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(IpNet);

/// The prefix that all IPv4 addresses in IPv6 form have in common.
const MAPPED_PREFIX_BITS: u8 = 96;

/// The prefix of the network that an IPv6 host is given (RFC 7421).
const CLIENT_PREFIX_BITS: u8 = 64;

/// Why a text is no network, as the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The part before the slash is no address.
    #[error("`{0}` is not an IP address or network")]
    Address(String),
    /// The part behind it is no length, or too large a one.
    #[error("`{0}` has no prefix length from 0 to {1}")]
    Prefix(String, u8),
    /// There are bits after the prefix, so the address or the length is not what was meant.
    #[error("`{0}` has bits after its prefix; the network is `{1}`")]
    HostBits(String, Network),
}

impl Network {
    /// The network of one address. An IPv4 address in IPv6 form (RFC 4291 section 2.5.5.2) is the
    /// IPv4 address, here and everywhere else in a network.
    #[must_use]
    pub fn single(address: IpAddr) -> Self {
        Self(address.to_canonical().into())
    }

    /// What one client has of which an address is known: the address, or the /64 around it, as an IPv6
    /// host has 2^64 addresses.
    #[must_use]
    pub fn of_client(address: IpAddr) -> Self {
        Self::around(address, CLIENT_PREFIX_BITS)
    }

    /// The network with a prefix of so many bits around an address; the address itself where it has
    /// no more bits than that.
    #[must_use]
    pub fn around(address: IpAddr, prefix_bits: u8) -> Self {
        let single = Self::single(address);
        let network = IpNet::new(single.0.addr(), prefix_bits);
        network.map_or(single, |network| Self(network.trunc()))
    }

    /// The first address of the network.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// Whether an address is in it. An IPv4 address that came over an IPv6 socket counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| NetworkError::Address(text.to_owned()))?;
        let Some(prefix) = prefix else {
            return Ok(Self::single(address));
        };
        let is_number = prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix_bits = prefix.parse().ok().filter(|_| is_number);
        let network = prefix_bits.and_then(|bits| IpNet::new(address, bits).ok());
        let network = network.ok_or_else(|| {
            let bits_max = IpNet::from(address).max_prefix_len();
            NetworkError::Prefix(text.to_owned(), bits_max)
        })?;
        // `::ffff:10.0.0.0/104` is `10.0.0.0/8`. A shorter prefix than that of all IPv4 addresses in
        // IPv6 form leaves an IPv6 network.
        let ipv4_bits = network.prefix_len().checked_sub(MAPPED_PREFIX_BITS);
        let ipv4 = ipv4_bits.filter(|_| address.to_canonical() != address);
        let network = ipv4
            .and_then(|bits| IpNet::new(address.to_canonical(), bits).ok())
            .unwrap_or(network);
        if network.trunc() != network {
            return Err(NetworkError::HostBits(
                text.to_owned(),
                Self(network.trunc()),
            ));
        }
        Ok(Self(network))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            return self.0.addr().fmt(formatter);
        }
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        let network: Network = network.parse().unwrap();
        network.contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_holds_what_shares_its_prefix() {
        for (network, address, is_in) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("34.252.67.209", "34.252.67.209", true),
            ("34.252.67.209", "34.252.67.208", false),
            ("::ffff:34.252.67.209", "34.252.67.209", true),
            ("::ffff:34.252.67.209/128", "34.252.67.209", true),
            ("::ffff:34.252.67.209/128", "34.252.67.208", false),
            ("::ffff:10.0.0.0/104", "10.255.0.1", true),
            ("::ffff:10.0.0.0/104", "::ffff:10.255.0.1", true),
            ("::ffff:a00:0/104", "10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "11.0.0.0", false),
            ("::ffff:0:0/96", "203.0.113.7", true),
            ("::ffff:0:0/96", "2001:db8::1", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "127.0.0.1", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
        ] {
            assert_eq!(contains(network, address), is_in, "{network} {address}");
        }
    }

    #[test]
    fn what_is_no_network_says_why() {
        for (text, reason) in [
            ("", "`` is not an IP address or network"),
            ("localhost", "`localhost` is not an IP address or network"),
            ("10.0.0/8", "`10.0.0/8` is not an IP address or network"),
            (
                "10.0.0.0/33",
                "`10.0.0.0/33` has no prefix length from 0 to 32",
            ),
            (
                "10.0.0.0/+8",
                "`10.0.0.0/+8` has no prefix length from 0 to 32",
            ),
            ("::/129", "`::/129` has no prefix length from 0 to 128"),
            (
                "10.1.0.0/8",
                "`10.1.0.0/8` has bits after its prefix; the network is `10.0.0.0/8`",
            ),
            (
                "::ffff:10.1.0.0/104",
                "`::ffff:10.1.0.0/104` has bits after its prefix; the network is `10.0.0.0/8`",
            ),
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert_eq!(error.to_string(), reason);
        }
    }

    #[test]
    fn a_network_is_written_as_it_is_read() {
        for text in [
            "10.0.0.0/8",
            "127.0.0.1",
            "2001:db8::/32",
            "::1",
            "0.0.0.0/0",
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_client_has_an_ipv4_address_or_an_ipv6_network() {
        for (address, network) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ] {
            let client = Network::of_client(address.parse().unwrap());
            assert_eq!(client.to_string(), network);
        }
        let of = |text: &str| Network::of_client(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn ipv4_in_ipv6_form_is_ipv4() {
        for (text, network) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1/128", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), network);
        }
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert!(Network::single(mapped).contains(mapped));
    }
}
