//! Types of entries that the kernel has no type for: what a device or a socket is, in the words
//! of the bpf() syscall and of `/proc/net`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::stacks::{BUILD_ID, frame_size};
use crate::btf::builder::Builder;
use crate::btf::{Btf, Shape, TypeId};
use crate::introspect::bpf::kind;

/// Bytes of a device's name (`IFNAMSIZ`).
pub(super) const NAME: usize = 16;
/// Bytes of an address as text (`INET6_ADDRSTRLEN`).
pub(super) const ADDRESS: usize = 46;

/// Bytes of a PMU's name; longer ones are not read.
pub(super) const PMU: usize = 64;
/// Bytes of a build id (`BPF_BUILD_ID_SIZE`).
const BUILD_ID_SIZE: usize = 20;
/// Lengths of stacks that are remembered: few maps have one of their own.
const MAX_LENGTHS: usize = 256;

/// Where a type is, and those of keys and values in it.
type Types = (Arc<Btf>, TypeId, TypeId);

/// An array of frames.
type Stack = (Arc<Btf>, TypeId);

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
    /// `char[]`: text as long as there are bytes.
    text: TypeId,
    event: TypeId,
    /// A cgroup and how a program is attached to it.
    attachment: TypeId,
    build_id: TypeId,
    /// Arrays of frames, by their lengths and what a frame is.
    stacks: Mutex<HashMap<(u32, bool), Stack>>,
}

impl Made {
    /// With the words of the kernel whose types are `kernel`.
    pub(crate) fn new(kernel: &Btf) -> Self {
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
        let text = text(&mut b);
        let event = event(&mut b, kernel, (u64_, char_));
        let attach_type = words(&mut b, kernel, "enum bpf_attach_type");
        let attachment = [("cgroup_inode_id", u64_, 8), ("attach_type", attach_type, 4)];
        let attachment = [&attachment[..], &[("", u32_, 4)]].concat();
        let attachment = structure(&mut b, "bpf_cgroup_storage_key", &attachment);
        let build_id = build_id(&mut b, u64_);
        let (btf, stacks) = (b.parse(), Mutex::default());
        Made {
            btf,
            u32_,
            u64_,
            insn,
            device,
            cpu,
            socket,
            xdp_socket,
            text,
            event,
            attachment,
            build_id,
            stacks,
        }
    }

    /// The types of keys and values of a kind, where they are not the object's own. `flags` are
    /// the map's.
    pub(crate) fn types(
        &self,
        number: u32,
        (key_size, value_size): (u32, u32),
        flags: u32,
    ) -> Option<Types> {
        let value = match number {
            kind::STACK_TRACE => {
                let (btf, value) = self.stack(value_size, flags);
                return Some((btf, self.u32_, value));
            }
            kind::CGROUP_ARRAY => self.text,
            kind::PERF_EVENT_ARRAY => self.event,
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

    /// The types of a map of cgroups' storage whose author has given none.
    pub(crate) fn of_storage(&self, key_size: u32) -> Types {
        let key = if key_size == 8 { self.u64_ } else { self.attachment };
        (self.btf.clone(), key, 0)
    }

    /// As many frames as a value has room for.
    fn stack(&self, value_size: u32, flags: u32) -> Stack {
        let len = value_size / frame_size(flags);
        let build_ids = flags & BUILD_ID != 0;
        let mut known = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_LENGTHS {
            known.clear();
        }
        let made = known.entry((len, build_ids)).or_insert_with(|| {
            let mut b = Builder::split(&self.btf);
            let ty = b.array(if build_ids { self.build_id } else { self.u64_ }, len);
            match Btf::parse_split(&b.encode(), &self.btf) {
                Ok(btf) => (btf, ty),
                Err(_) => (self.btf.clone(), 0),
            }
        });
        made.clone()
    }
}

/// `char[]`.
fn text(b: &mut Builder) -> TypeId {
    /// `BTF_KIND_INT`, and `BTF_INT_CHAR` with eight bits.
    const INT: (u32, u32) = (1, 2 << 24 | 8);
    let char_ = b.raw("char", INT.0, false, 0, 1, &[INT.1]);
    b.array(char_, 0)
}

/// An enum with the kernel's own words; of one that it lacks, only the number is known.
fn words(b: &mut Builder, kernel: &Btf, name: &str) -> TypeId {
    let short = name.strip_prefix("enum ").unwrap_or(name);
    let shape = kernel.find_c(name).and_then(|id| kernel.shape(id).ok());
    let Some(Shape::Enum(found)) = shape.as_deref() else {
        return b.enumeration(short, 4, true, &[]);
    };
    // The last one only says how many there are; what comes next may be somebody's number.
    let real = found.variants.iter().filter(|(name, _)| !name.contains("MAX"));
    let known = real.filter_map(|(name, n)| Some((name.as_str(), i64::try_from(*n).ok()?)));
    let known: Vec<(&str, i64)> = known.collect();
    b.enumeration(short, 4, found.signed, &known)
}

/// What `perf_event_open` was asked for. A CPU or a task of -1 is any.
fn event(b: &mut Builder, kernel: &Btf, (u64_, char_): (TypeId, TypeId)) -> TypeId {
    let pmu = b.array(char_, PMU as u32);
    let s32 = b.int("s32", 4, true);
    let kind = words(b, kernel, "enum perf_type_id");
    let state = words(b, kernel, "enum perf_event_state");
    let event = [
        ("id", u64_, 8),
        ("config", u64_, 8),
        ("sample_period", u64_, 8),
        ("type", kind, 4),
        ("state", state, 4),
        ("cpu", s32, 4),
        ("pid", s32, 4),
        ("pmu", pmu, PMU),
    ];
    structure(b, "perf_event", &event)
}

/// `struct bpf_stack_build_id` (include/uapi/linux/bpf.h).
fn build_id(b: &mut Builder, u64_: TypeId) -> TypeId {
    let status = [
        ("BPF_STACK_BUILD_ID_EMPTY", 0),
        ("BPF_STACK_BUILD_ID_VALID", 1),
        ("BPF_STACK_BUILD_ID_IP", 2),
    ];
    let status = b.enumeration("bpf_stack_build_id_status", 4, false, &status);
    let byte = b.int("unsigned char", 1, false);
    let id = b.array(byte, BUILD_ID_SIZE as u32);
    let place = b.union("", 8, &[("offset", u64_, 0), ("ip", u64_, 0)]);
    let frame = [("status", status, 0), ("build_id", id, 4 * 8), ("", place, 24 * 8)];
    b.structure("bpf_stack_build_id", 32, &frame)
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
