//! Who a socket is, for the maps that lead to sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::layout::{At, Finder};
use crate::btf::Btf;
use crate::introspect::error::{IntrospectError, ReadError};
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// `AF_INET` of include/linux/socket.h: ABI.
pub(super) const INET: u32 = 2;
/// `AF_INET6`.
pub(super) const INET6: u32 = 10;

/// One end of a connection.
struct EndLayout {
    ip4: At,
    /// Kernels can be built without IPv6.
    ip6: Option<At>,
    port: At,
}

/// `struct sock` (include/net/sock.h).
pub(crate) struct SockLayout {
    size: usize,
    family: At,
    state: At,
    kind: At,
    protocol: At,
    cookie: Option<At>,
    local: EndLayout,
    remote: EndLayout,
    socket: At,
}

impl SockLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct sock")?;
        let common = |name: &str| f.number(&format!("__sk_common.{name}"));
        let ip6 = |name: &str| {
            let at = f.at(&format!("__sk_common.{name}"));
            at.ok().filter(|at| at.size == 16)
        };
        Ok(SockLayout {
            size: f.size,
            family: common("skc_family")?,
            state: common("skc_state")?,
            kind: f.number("sk_type")?,
            protocol: f.number("sk_protocol")?,
            cookie: common("skc_cookie.counter").ok(),
            local: EndLayout {
                ip4: common("skc_rcv_saddr")?,
                ip6: ip6("skc_v6_rcv_saddr"),
                port: common("skc_num")?,
            },
            remote: EndLayout {
                ip4: common("skc_daddr")?,
                ip6: ip6("skc_v6_daddr"),
                port: common("skc_dport")?,
            },
            socket: f.number("sk_socket")?,
        })
    }

    /// Bytes of a `struct sock`.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The cookie in a copied socket of any kind; 0 while nobody has asked for it.
    pub(super) fn cookie(&self, raw: &[u8]) -> u64 {
        self.cookie.and_then(|at| at.read(raw)).unwrap_or(0)
    }
}

/// A socket.
pub(super) struct Sock {
    pub(super) cookie: u64,
    /// `AF_*`.
    pub(super) family: u32,
    /// `SOCK_*`.
    pub(super) kind: u32,
    pub(super) protocol: u32,
    pub(super) state: u32,
    /// Both ends, of the families of the internet.
    pub(super) ends: Option<(SocketAddr, SocketAddr)>,
    /// Where its `struct socket` lies; null if it has none.
    pub(super) socket: Kva,
}

impl Kernel {
    /// The socket whose `struct sock` lies at `at`.
    pub(super) fn sock(&self, layout: &SockLayout, at: Kva) -> Result<Sock, ReadError> {
        let mut raw = vec![0; layout.size];
        self.read(at, &mut raw)?;
        let number = |at: At| at.read(&raw).unwrap_or(0) as u32;
        let family = number(layout.family);
        let end = |end: &EndLayout, port: u16| {
            let ip6 = end.ip6.filter(|_| family == INET6).and_then(|at| address::<16>(at, &raw));
            let ip4 = || address::<4>(end.ip4, &raw).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from);
            let ip = ip6.map_or_else(|| IpAddr::V4(ip4()), |ip| IpAddr::V6(Ipv6Addr::from(ip)));
            SocketAddr::new(ip, port)
        };
        // The local port is a number, the remote one is as it is sent.
        let local = || end(&layout.local, number(layout.local.port) as u16);
        let remote = || end(&layout.remote, u16::from_be(number(layout.remote.port) as u16));
        Ok(Sock {
            cookie: layout.cookie(&raw),
            family,
            kind: number(layout.kind),
            protocol: number(layout.protocol),
            state: number(layout.state),
            ends: matches!(family, INET | INET6).then(|| (local(), remote())),
            socket: Kva(layout.socket.read(&raw).unwrap_or(0)),
        })
    }
}

/// An address, in the order in which it is sent.
fn address<const N: usize>(at: At, raw: &[u8]) -> Option<[u8; N]> {
    raw.get(at.offset..at.offset.checked_add(N)?)?.try_into().ok()
}
