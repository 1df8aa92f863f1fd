//! Owns who may speak to the webhook port at all, by address: which networks are allowed, and which
//! address counts behind a proxy. A second lock before the signature, never instead of it.
//!
//! A forwarding header is believed from right to left, and only as far as each hop is a trusted
//! proxy: what stands further left was written by somebody whom nobody vouches for.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderValue};

use super::{error::Error, forwarded};
use crate::net::network::Network;

/// The addresses that Prelude sends from. Source:
/// <https://docs.prelude.so/session/documentation/webhooks>.
pub const PRELUDE: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(34, 252, 67, 209)),
    IpAddr::V4(Ipv4Addr::new(52, 30, 192, 161)),
    IpAddr::V4(Ipv4Addr::new(34, 248, 153, 151)),
];

/// <https://www.rfc-editor.org/rfc/rfc7239>
const FORWARDED: &str = "forwarded";
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// Who a request comes from, as far as shares go: one IPv4 address, or the /64 that one host has of
/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) network: Network,
    /// Whether it is a trusted proxy that does not say for whom it speaks.
    pub(super) is_proxy: bool,
}

/// Who may speak to the webhook port. By default everybody: signatures decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Networks that requests may come from; all if there are none.
    pub allowed: Arc<[Network]>,
    /// Networks of proxies whose forwarding headers are believed.
    pub proxies: Arc<[Network]>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            allowed: Arc::new([]),
            proxies: Arc::new([]),
        }
    }
}

impl Sources {
    /// Whether anything that comes over a connection from there could pass.
    #[must_use]
    pub fn may_connect(&self, peer: IpAddr) -> bool {
        let is_allowed = || self.allowed.iter().any(|network| network.contains(peer));
        self.allowed.is_empty() || is_allowed() || self.is_proxy(peer)
    }

    /// Lets a request pass, or says why not.
    pub(super) fn admit(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Result<(), Error> {
        if self.allowed.is_empty() {
            return Ok(());
        }
        // Our own accept loop always knows the peer.
        let peer = peer.ok_or(Error::SourceUnknown)?.ip().to_canonical();
        let source = self.source(peer, headers).ok_or(Error::SourceUnknown)?;
        if self.allowed.iter().any(|network| network.contains(source)) {
            Ok(())
        } else {
            Err(Error::SourceRefused { address: source })
        }
    }

    /// Who a request counts for where clients share something.
    pub(super) fn client(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Client {
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
        let peer = peer.to_canonical();
        // Headers that name nobody could be a stranger's doing: they count for the proxy, but as one
        // client of many. A proxy that sets no header at all speaks for everybody behind it.
        let source = self.source(peer, headers);
        let named = source.unwrap_or(peer);
        Client {
            network: Network::of_client(named),
            is_proxy: source.is_some_and(|source| self.is_proxy(source)),
        }
    }

    /// Where a request comes from, as far as it can be believed; `None` if the headers of a trusted
    /// proxy name no address, or two.
    fn source(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.is_proxy(peer) {
            return Some(peer);
        }
        let has = |name| headers.contains_key(name);
        match (has(X_FORWARDED_FOR), has(FORWARDED)) {
            (false, false) => Some(peer),
            (true, false) => self.walk(peer, headers, X_FORWARDED_FOR),
            (false, true) => self.walk(peer, headers, FORWARDED),
            // A proxy writes one of them and may pass the other on as a stranger wrote it. Which is
            // which cannot be told, so they have to agree.
            (true, true) => {
                let one = self.walk(peer, headers, X_FORWARDED_FOR)?;
                let other = self.walk(peer, headers, FORWARDED)?;
                (one == other).then_some(one)
            }
        }
    }

    /// From the right, hop by hop, to the first address that is no trusted proxy. The elements of
    /// several headers of one name follow one another (RFC 9110 section 5.3).
    fn walk(&self, peer: IpAddr, headers: &HeaderMap, name: &str) -> Option<IpAddr> {
        let mut source = peer;
        let lines: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
        for line in lines.into_iter().rev() {
            if !self.is_proxy(source) {
                break;
            }
            let addresses = match name {
                FORWARDED => forwarded::addresses(line.as_bytes())?,
                _ => listed(line)?,
            };
            for address in addresses.into_iter().rev() {
                if !self.is_proxy(source) {
                    break;
                }
                source = address?.to_canonical();
            }
        }
        Some(source)
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(address))
    }
}

/// The addresses of a line of `X-Forwarded-For`; `None` among them for what is none. Empty elements
/// are nobody's (RFC 9110 section 5.6.1).
fn listed(line: &HeaderValue) -> Option<Vec<Option<IpAddr>>> {
    let elements = line.to_str().ok()?.split(',').map(str::trim);
    let elements = elements.filter(|element| !element.is_empty());
    Some(elements.map(address).collect())
}

/// An element of `X-Forwarded-For`: an address, with some proxies a port too.
fn address(element: &str) -> Option<IpAddr> {
    let address = element.parse().ok();
    let address = address.or_else(|| Some(element.parse::<SocketAddr>().ok()?.ip()));
    address.or_else(|| {
        let inner = element.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn networks(texts: &[&str]) -> Arc<[Network]> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn sources() -> Sources {
        Sources {
            allowed: PRELUDE.into_iter().map(Network::single).collect(),
            proxies: networks(&["10.0.0.0/8", "2001:db8::/32"]),
        }
    }

    fn admits(peer: &str, headers: &[(&str, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        });
        let peer = SocketAddr::new(peer.parse().unwrap(), 4711);
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| {
            map.append(name, value);
        });
        sources().admit(Some(peer), &map).is_ok()
    }

    const XFF: &str = "x-forwarded-for";

    #[test]
    fn without_a_list_everybody_may_speak() {
        let nobody = Sources::default().admit(None, &HeaderMap::new());
        assert!(nobody.is_ok());
    }

    #[test]
    fn only_the_allowed_may_speak_and_strangers_cannot_claim_to_be_them() {
        assert!(admits("34.252.67.209", &[]));
        assert!(admits("::ffff:52.30.192.161", &[]));
        assert!(!admits("203.0.113.7", &[]));
        assert!(!admits("203.0.113.7", &[(XFF, "34.252.67.209")]));
        assert!(!admits(
            "203.0.113.7",
            &[("forwarded", "for=34.252.67.209")]
        ));
        // The other way round: a header of theirs does not make the allowed somebody else.
        assert!(admits("34.252.67.209", &[(XFF, "203.0.113.7")]));
    }

    #[test]
    fn a_trusted_proxy_is_believed_from_right_to_left() {
        for (value, is_admitted) in [
            ("34.252.67.209", true),
            ("34.252.67.209:443", true),
            ("203.0.113.7, 34.252.67.209", true),
            ("34.252.67.209, 203.0.113.7", false),
            ("34.252.67.209, 10.0.0.9", true),
            ("34.252.67.209, 203.0.113.7, 10.0.0.9", false),
            ("34.252.67.209,, 10.0.0.9,", true),
            ("34.252.67.209, [2001:db8::9]:80, 2001:db8::1", true),
            ("34.252.67.209, unknown", false),
            ("", false),
        ] {
            assert_eq!(admits("10.0.0.1", &[(XFF, value)]), is_admitted, "{value}");
        }
    }

    #[test]
    fn several_headers_of_a_name_are_one_list() {
        let theirs = (XFF, "34.252.67.209");
        let proxys = (XFF, "203.0.113.7");
        assert!(!admits("10.0.0.1", &[theirs, proxys]));
        assert!(admits("10.0.0.1", &[proxys, theirs]));
    }

    #[test]
    fn the_standard_header_is_read_as_its_rfc_writes_it() {
        for (value, is_admitted) in [
            ("for=34.252.67.209", true),
            ("For=\"34.252.67.209:4711\";proto=https;by=10.0.0.1", true),
            ("proto=https;for=34.252.67.209, for=\"[2001:db8::9]\"", true),
            ("for=34.252.67.209, for=203.0.113.7", false),
            ("for=_hidden", false),
            ("for=unknown", false),
            ("proto=https", false),
            ("for=34.252.67.209;for=203.0.113.7", false),
            ("for=\"[::ffff:34.252.67.209]\"", true),
            ("for=34.252.67.209, for=\"[::ffff:10.0.0.9]\"", true),
            ("for=34.252.67.209,, for=10.0.0.9,", true),
            ("", false),
            // A stranger's `Host` in the element of a proxy that trusts it to have no quotes.
            (
                "for=203.0.113.7;host=\"x,for=34.252.67.209;y=\";proto=http",
                false,
            ),
            ("for=34.252.67.209;host=\"x,for=203.0.113.7;y=\"", true),
            // A fault to the left is a fault of the line.
            ("for=\"34.252.67.209, for=34.252.67.209", false),
            ("for=34.252.67.209:80, for=34.252.67.209", false),
        ] {
            let headers = [("forwarded", value)];
            assert_eq!(admits("10.0.0.1", &headers), is_admitted, "{value}");
        }
    }

    #[test]
    fn each_line_of_the_standard_header_is_read_by_itself() {
        let theirs = "for=34.252.67.209";
        let proxys = "for=203.0.113.7";
        let lines = |lines: &[&str]| {
            let headers: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
            admits("10.0.0.1", &headers)
        };
        assert!(lines(&[proxys, theirs]));
        assert!(!lines(&[theirs, proxys]));
        assert!(lines(&[theirs, "for=10.0.0.9"]));
        // A quoted string that a stranger begins does not swallow what the proxy says.
        assert!(!lines(&["for=34.252.67.209;host=\"x", proxys]));
        assert!(!lines(&["for=34.252.67.209;host=\"x", "y\", for=10.0.0.9"]));
        assert!(!lines(&[theirs, "for=10.0.0.9;host=\"x"]));
        // What stands left of the sender is nobody's business, whatever it is.
        assert!(lines(&["for=\"", theirs]));
    }

    #[test]
    fn bytes_that_are_no_text_name_nobody_unless_they_are_quoted() {
        let admits = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).unwrap();
            let headers = HeaderMap::from_iter([(HeaderName::from_static(FORWARDED), value)]);
            let peer = SocketAddr::from(([10, 0, 0, 1], 4711));
            sources().admit(Some(peer), &headers).is_ok()
        };
        assert!(admits(b"for=34.252.67.209;host=\"\xfc\""));
        assert!(!admits(b"for=34.252.67.209;host=\xfc"));
        assert!(!admits(b"for=\xb2.252.67.209"));
    }

    #[test]
    fn two_headers_that_disagree_name_nobody() {
        let claimed = ("forwarded", "for=34.252.67.209");
        assert!(!admits("10.0.0.1", &[(XFF, "203.0.113.7"), claimed]));
        assert!(admits("10.0.0.1", &[(XFF, "34.252.67.209"), claimed]));
    }

    #[test]
    fn a_client_is_an_address_or_the_network_of_one_host_or_a_proxy() {
        let client = |peer: &str, headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| {
                let value = HeaderValue::from_str(value).unwrap();
                (HeaderName::from_static(name), value)
            });
            let peer = SocketAddr::new(peer.parse().unwrap(), 4711);
            let client = sources().client(Some(peer), &headers.collect());
            (client.network.to_string(), client.is_proxy)
        };
        let of = |network: &str, is_proxy| (network.to_owned(), is_proxy);
        let named = [(XFF, "198.51.100.1")];
        assert_eq!(client("203.0.113.7", &named), of("203.0.113.7", false));
        assert_eq!(client("::ffff:203.0.113.7", &[]), of("203.0.113.7", false));
        assert_eq!(client("2a00::1:2:3", &[]), of("2a00::/64", false));
        assert_eq!(client("10.0.0.1", &named), of("198.51.100.1", false));
        let named = [(FORWARDED, "for=\"[2a00:0:0:1::1]:80\"")];
        assert_eq!(client("10.0.0.1", &named), of("2a00:0:0:1::/64", false));
        assert_eq!(client("10.0.0.1", &[]), of("10.0.0.1", true));
        assert_eq!(
            client("10.0.0.1", &[(XFF, "10.0.0.2")]),
            of("10.0.0.2", true)
        );
        for nobody in [(XFF, "unknown"), (FORWARDED, "for=\"")] {
            assert_eq!(client("10.0.0.1", &[nobody]), of("10.0.0.1", false));
        }
        let nowhere = sources().client(None, &HeaderMap::new());
        assert!(!nowhere.is_proxy);
    }

    #[test]
    fn a_proxy_that_names_nobody_speaks_for_itself() {
        assert!(!admits("10.0.0.1", &[]));
        let itself = Sources {
            allowed: networks(&["10.0.0.1"]),
            ..sources()
        };
        let peer = SocketAddr::from(([10, 0, 0, 1], 1));
        assert!(itself.admit(Some(peer), &HeaderMap::new()).is_ok());
    }
}
