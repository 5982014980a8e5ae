//! Types of entries that the kernel has no type for: what a device or a socket is, in the words
//! of the bpf() syscall and of `/proc/net`.

use std::sync::Arc;

use crate::btf::builder::Builder;
use crate::btf::{Btf, TypeId};
use crate::introspect::bpf::kind;

/// Bytes of a device's name (`IFNAMSIZ`).
pub(super) const NAME: usize = 16;
/// Bytes of an address as text (`INET6_ADDRSTRLEN`).
pub(super) const ADDRESS: usize = 46;

/// Types of rows.
pub(crate) struct Made {
    btf: Arc<Btf>,
    u32_: TypeId,
    u64_: TypeId,
    insn: TypeId,
    device: TypeId,
    cpu: TypeId,
    socket: TypeId,
    xdp_socket: TypeId,
}

impl Made {
    pub(crate) fn new() -> Self {
        let mut b = Builder::new();
        let (u32_, u64_) = (b.int("u32", 4, false), b.int("u64", 8, false));
        let char_ = b.int("char", 1, true);
        let (name, address) = (b.array(char_, NAME as u32), b.array(char_, ADDRESS as u32));
        let family = b.enumeration("family", 4, false, &FAMILIES);
        let state = b.enumeration("state", 4, false, &STATES);
        let bound = b.enumeration("xdp_state", 4, false, &BOUND);
        let insn = structure(
            &mut b,
            "insn",
            &[
                ("orig_off", u32_, 4),
                ("xlated_off", u32_, 4),
                ("jitted_off", u32_, 4),
                ("", u32_, 4),
            ],
        );
        let device = [("ifindex", u32_, 4), ("prog_id", u32_, 4), ("name", name, NAME)];
        let device = structure(&mut b, "device", &device);
        let cpu = structure(&mut b, "cpu", &[("qsize", u32_, 4), ("prog_id", u32_, 4)]);
        let socket = [
            ("cookie", u64_, 8),
            ("family", family, 4),
            ("protocol", u32_, 4),
            ("state", state, 4),
            ("local_port", u32_, 4),
            ("remote_port", u32_, 4),
            ("local_address", address, ADDRESS),
            ("remote_address", address, ADDRESS),
        ];
        let socket = structure(&mut b, "socket", &socket);
        let xdp_socket = [
            ("cookie", u64_, 8),
            ("state", bound, 4),
            ("ifindex", u32_, 4),
            ("queue_id", u32_, 4),
            ("name", name, NAME),
        ];
        let xdp_socket = structure(&mut b, "xdp_socket", &xdp_socket);
        Made { btf: b.parse(), u32_, u64_, insn, device, cpu, socket, xdp_socket }
    }

    /// The types of keys and values of a kind, where they are not the object's own.
    pub(crate) fn types(&self, number: u32, key_size: u32) -> Option<(Arc<Btf>, TypeId, TypeId)> {
        let value = match number {
            _ if kind::IDS.contains(&number) => self.u32_,
            kind::ARENA | kind::RINGBUF | kind::USER_RINGBUF => 0,
            kind::INSN_ARRAY => self.insn,
            kind::DEVMAP | kind::DEVMAP_HASH => self.device,
            kind::CPUMAP => self.cpu,
            kind::SOCKMAP | kind::SOCKHASH | kind::REUSEPORT_SOCKARRAY => self.socket,
            kind::XSKMAP => self.xdp_socket,
            _ => return None,
        };
        let key = match key_size {
            // An address, or a position.
            _ if value == 0 => self.u64_,
            4 => self.u32_,
            _ => 0,
        };
        Some((self.btf.clone(), key, value))
    }
}

/// A struct of members (name, type, bytes) that follow one another. Those without a name only
/// take room.
fn structure(b: &mut Builder, name: &str, members: &[(&str, TypeId, usize)]) -> TypeId {
    let (mut placed, mut at) = (Vec::new(), 0);
    for &(name, ty, size) in members {
        if !name.is_empty() {
            placed.push((name, ty, at as u32 * 8));
        }
        at += size;
    }
    b.structure(name, at as u32, &placed)
}

/// Address families (include/linux/socket.h).
const FAMILIES: [(&str, i64); 6] = [
    ("AF_UNSPEC", 0),
    ("AF_UNIX", 1),
    ("AF_INET", 2),
    ("AF_INET6", 10),
    ("AF_VSOCK", 40),
    ("AF_XDP", 44),
];

/// States of sockets; those that are not TCP's use the same numbers
/// (include/net/tcp_states.h).
const STATES: [(&str, i64); 13] = [
    ("TCP_ESTABLISHED", 1),
    ("TCP_SYN_SENT", 2),
    ("TCP_SYN_RECV", 3),
    ("TCP_FIN_WAIT1", 4),
    ("TCP_FIN_WAIT2", 5),
    ("TCP_TIME_WAIT", 6),
    ("TCP_CLOSE", 7),
    ("TCP_CLOSE_WAIT", 8),
    ("TCP_LAST_ACK", 9),
    ("TCP_LISTEN", 10),
    ("TCP_CLOSING", 11),
    ("TCP_NEW_SYN_RECV", 12),
    ("TCP_BOUND_INACTIVE", 13),
];

/// States of an XDP socket (include/net/xdp_sock.h).
const BOUND: [(&str, i64); 3] = [("XSK_READY", 0), ("XSK_BOUND", 1), ("XSK_UNBOUND", 2)];
