//! Maps of the kinds that user space fills: arenas, resizable hashes, devices, CPUs and sockets;
//! cgroups, perf events, rings and what small programs of our own put in. For tests of the truth,
//! which compare them with what the host reads from RAM.

mod code;
mod events;
mod groups;
mod mapping;
mod rings;
mod stacks;

use std::ffi::CString;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use cryoscope::wire::{Answer, HeldMap, Hex, MadeMap};
use libbpf_rs::libbpf_sys as b;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt, xdp};

use crate::maps::{Held, describe_map, owned};
use crate::sys::reason;
use mapping::Mapping;

/// Kinds that libbpf does not name yet (`enum bpf_map_type`).
const INSN_ARRAY: u32 = 34;
const RHASH: u32 = 35;
/// The loopback interface is the first that the kernel makes.
const LOOPBACK: u32 = 1;
const PAGE: usize = 4096;

/// An arena in this process, and which of its pages were touched.
pub(crate) struct Arena {
    memory: Mapping,
    pages: Vec<usize>,
}

impl Arena {
    fn new(fd: &OwnedFd, pages: usize, touched: &[usize]) -> io::Result<Arena> {
        Ok(Arena { memory: Mapping::writable(fd, 0, pages * PAGE)?, pages: touched.to_vec() })
    }

    /// Writes into its pages, which the kernel allocates when they are touched.
    fn write(&self, at: usize, bytes: &[u8]) {
        let touched = |at: usize| self.pages.contains(&(at / PAGE));
        assert!(touched(at) && touched(at + bytes.len() - 1));
        self.memory.write(at, bytes);
    }

    /// User addresses of the pages that were touched, as keys.
    pub(crate) fn keys(&self) -> Vec<Vec<u8>> {
        let key = |page: &usize| (self.address() + (page * PAGE) as u64).to_le_bytes().to_vec();
        self.pages.iter().map(key).collect()
    }

    fn address(&self) -> u64 {
        self.memory.address()
    }

    /// What a page holds, by its key.
    pub(crate) fn page(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let at = key.try_into().map(u64::from_le_bytes).unwrap_or(0).wrapping_sub(self.address());
        let page = usize::try_from(at).unwrap_or(usize::MAX) / PAGE;
        if !self.pages.contains(&page) {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        Ok(self.memory.read(page * PAGE, PAGE))
    }
}

/// A map to make.
#[derive(Clone, Copy, Default)]
struct Spec {
    name: &'static str,
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

fn create(spec: Spec) -> io::Result<OwnedFd> {
    let name = CString::new(spec.name).unwrap_or_default();
    let opts = b::bpf_map_create_opts {
        sz: size_of::<b::bpf_map_create_opts>() as _,
        map_flags: spec.flags,
        ..Default::default()
    };
    // SAFETY: name and options outlive the call; the descriptor is new and owned by nobody else.
    #[allow(unsafe_code)]
    unsafe {
        let Spec { kind, key, value, entries, .. } = spec;
        owned(b::bpf_map_create(kind, name.as_ptr(), key, value, entries, &raw const opts))
    }
}

fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    // SAFETY: callers give keys and values of the sizes that they have made the map with.
    #[allow(unsafe_code)]
    let result = unsafe {
        let (key, value) = (key.as_ptr().cast(), value.as_ptr().cast());
        b::bpf_map_update_elem(map.as_raw_fd(), key, value, 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) }
}

fn delete(map: &OwnedFd, key: &[u8]) -> io::Result<()> {
    // SAFETY: as in `update`.
    #[allow(unsafe_code)]
    let result = unsafe { b::bpf_map_delete_elem(map.as_raw_fd(), key.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) }
}

/// Bytes that look like nothing.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

/// What an entry is, in words.
type Facts = Vec<(String, String)>;
/// Entries: the key, and what is known of it beside what the syscall says.
type Entries = Vec<(Hex, Facts)>;

fn fact(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// Makes maps.
struct Maker<'a> {
    held: &'a mut Held,
    made: Vec<MadeMap>,
}

/// Makes a map of each kind, fills it, and holds it beside those that are held.
pub(crate) fn make(held: &mut Held) -> Answer {
    let mut maker = Maker { held, made: Vec::new() };
    maker.tables();
    maker.arenas();
    maker.devices();
    maker.sockets();
    maker.stacks();
    maker.groups();
    maker.events();
    maker.rings();
    Answer::Made(maker.made)
}

impl Maker<'_> {
    /// Makes a map and has it filled. What the kernel refuses is told in its words.
    fn map(&mut self, spec: Spec, fill: impl FnOnce(&OwnedFd, &mut Held) -> io::Result<Entries>) {
        let mut made = MadeMap {
            map: HeldMap { name: spec.name.to_owned(), kind: spec.kind, ..HeldMap::default() },
            entries: Vec::new(),
            refused: None,
        };
        let done = create(spec).and_then(|fd| {
            made.map = describe_map(&fd)?;
            made.entries = fill(&fd, self.held)?;
            self.held.keep(made.map.clone(), fd);
            Ok(())
        });
        made.refused = done.err().map(|e| reason(&e));
        self.made.push(made);
    }

    /// Hashes that grow, of which some entries go again, and instructions.
    fn tables(&mut self) {
        let rhash = Spec { kind: RHASH, flags: b::BPF_F_NO_PREALLOC, ..Spec::default() };
        let fill = |key_size: usize, count: u64| {
            move |map: &OwnedFd, _: &mut Held| {
                for i in 0..count {
                    let key: Vec<u8> = noise(i + 77).take(key_size).collect();
                    let value: Vec<u8> = noise(i * 3 + 5).take(29).collect();
                    update(map, &key, &value)?;
                    if i % 7 == 0 {
                        delete(map, &key)?;
                    }
                }
                Ok(Entries::new())
            }
        };
        let long = Spec { name: "rhash_long", key: 8, value: 29, entries: 5000, ..rhash };
        self.map(long, fill(8, 3000));
        let odd = Spec { name: "rhash_odd", key: 13, value: 29, entries: 100, ..rhash };
        self.map(odd, fill(13, 100));
        let empty = Spec { name: "rhash_empty", key: 4, value: 1, entries: 9, ..rhash };
        self.map(empty, |_, _| Ok(Entries::new()));
        let insns =
            Spec { name: "insns", kind: INSN_ARRAY, key: 4, value: 16, entries: 5, flags: 0 };
        self.map(insns, |map, _| {
            for (i, orig_off) in [(0u32, 7u32), (3, 99)] {
                let mut value = [0; 16];
                value[..4].copy_from_slice(&orig_off.to_le_bytes());
                update(map, &i.to_le_bytes(), &value)?;
            }
            Ok(Entries::new())
        });
    }

    /// A small arena, whose second and third page share a `struct list_head` to which the first one
    /// leads, and one that spans all that an arena can.
    fn arenas(&mut self) {
        let arena = Spec { kind: b::BPF_MAP_TYPE_ARENA, ..Spec::default() };
        let arena = Spec { flags: b::BPF_F_MMAPABLE, ..arena };
        for (name, pages, touched) in [
            ("arena", 300, &[0usize, 1, 2, 7, 63, 64, 200, 299][..]),
            ("arena_huge", 1 << 20, &[3, 511, 512, 70_000, (1 << 20) - 1]),
            ("arena_empty", 10, &[]),
        ] {
            let spec = Spec { name, entries: pages as u32, ..arena };
            self.map(spec, |map, held| {
                let arena = Arena::new(map, pages, touched)?;
                for page in touched {
                    let bytes: Vec<u8> = noise(*page as u64 + 1).take(PAGE).collect();
                    arena.write(page * PAGE, &bytes);
                }
                let start = arena.address();
                let mut facts = vec![fact("start", start)];
                if name == "arena" {
                    let (next, prev) = (start + 0x10, start + 0x20_0000);
                    let list = [next, prev].map(u64::to_le_bytes).concat();
                    arena.write(2 * PAGE - 8, &list);
                    // What leads there, as user space has it and as programs may store it.
                    let there = start + 2 * PAGE as u64 - 8;
                    let low = u64::from(there as u32);
                    arena.write(0, &[there, low].map(u64::to_le_bytes).concat());
                    facts.extend([fact("next", next), fact("prev", prev)]);
                }
                held.keep_arena(describe_map(map)?.id, arena);
                Ok(vec![(Hex(Vec::new()), facts)])
            });
        }
    }

    /// Devices and CPUs, with programs and without.
    fn devices(&mut self) {
        let fill = |keys: &'static [u32], attach, first: u32, what: &'static str| {
            move |map: &OwnedFd, held: &mut Held| {
                let prog = code::pass(attach)?;
                let id = code::id_of(&prog)?;
                let mut entries = Entries::new();
                for (i, key) in keys.iter().enumerate() {
                    let with = i != 1;
                    let fd = if with { prog.as_raw_fd() } else { 0 };
                    let value = [first.to_le_bytes(), fd.to_le_bytes()].concat();
                    update(map, &key.to_le_bytes(), &value)?;
                    let mut facts = vec![fact(what, first)];
                    facts.push(fact("prog_id", if with { id } else { 0 }));
                    if what == "ifindex" {
                        facts.push(fact("name", "lo"));
                    }
                    entries.push((Hex(key.to_le_bytes().to_vec()), facts));
                }
                held.keep_open(prog);
                Ok(entries)
            }
        };
        let one = Spec { key: 4, value: 8, entries: 8, ..Spec::default() };
        let spec = Spec { name: "devmap", kind: b::BPF_MAP_TYPE_DEVMAP, ..one };
        self.map(spec, fill(&[0, 3, 7], b::BPF_XDP_DEVMAP, LOOPBACK, "ifindex"));
        let spec = Spec { name: "devmap_hash", kind: b::BPF_MAP_TYPE_DEVMAP_HASH, ..one };
        self.map(spec, fill(&[9, 1000, u32::MAX], b::BPF_XDP_DEVMAP, LOOPBACK, "ifindex"));
        let spec = Spec { name: "cpumap", kind: b::BPF_MAP_TYPE_CPUMAP, entries: 2, ..one };
        self.map(spec, fill(&[0, 1], b::BPF_XDP_CPUMAP, 192, "qsize"));
    }

    fn sockets(&mut self) {
        let one = Spec { key: 4, value: 8, entries: 8, ..Spec::default() };
        let spec = Spec { name: "sockmap", kind: b::BPF_MAP_TYPE_SOCKMAP, entries: 16, ..one };
        self.map(spec, |map, held| {
            let key = |i: usize| (2 * i as u32).to_le_bytes().to_vec();
            put(map, held, tcp()?, key)
        });
        let spec = Spec { name: "sockhash", kind: b::BPF_MAP_TYPE_SOCKHASH, key: 6, ..one };
        self.map(spec, |map, held| put(map, held, tcp()?, |i| noise(i as u64).take(6).collect()));
        let spec = Spec { name: "reuseport", kind: b::BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, ..one };
        self.map(spec, |map, held| {
            put(map, held, udp()?, |i| (i as u32 + 3).to_le_bytes().to_vec())
        });
        let spec = Spec { name: "xskmap", kind: b::BPF_MAP_TYPE_XSKMAP, value: 4, ..one };
        self.map(spec, xdp_sockets);
    }
}

/// A socket, and what the other end and `getsockopt` say of it.
struct Sock {
    fd: OwnedFd,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    protocol: i32,
    state: &'static str,
}

/// Puts sockets into a map. Of the first nobody asks the cookie, so that it may have none.
fn put(
    map: &OwnedFd,
    held: &mut Held,
    socks: Vec<Sock>,
    key: impl Fn(usize) -> Vec<u8>,
) -> io::Result<Entries> {
    let mut entries = Entries::new();
    for (i, sock) in socks.into_iter().enumerate() {
        let key = key(i);
        update(map, &key, &(sock.fd.as_raw_fd() as u64).to_le_bytes())?;
        let none: SocketAddr = match sock.local {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let remote = sock.remote.unwrap_or(none);
        let family = if sock.local.is_ipv4() { "AF_INET" } else { "AF_INET6" };
        let mut facts = vec![
            fact("family", family),
            fact("protocol", sock.protocol),
            fact("state", sock.state),
            fact("local_address", sock.local.ip()),
            fact("local_port", sock.local.port()),
            fact("remote_address", remote.ip()),
            fact("remote_port", remote.port()),
        ];
        if i > 0 {
            facts.push(fact("cookie", sockopt::socket_cookie(&sock.fd)?));
        }
        entries.push((Hex(key), facts));
        held.keep_open(sock.fd);
    }
    Ok(entries)
}

/// For IPv4 and IPv6: both ends of a connection, and who listens.
fn tcp() -> io::Result<Vec<Sock>> {
    let mut out = Vec::new();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address)?;
        let local = listener.local_addr()?;
        let client = TcpStream::connect(local)?;
        let (server, remote) = listener.accept()?;
        for (fd, local, remote, state) in [
            (client.into(), remote, Some(local), "TCP_ESTABLISHED"),
            (server.into(), local, Some(remote), "TCP_ESTABLISHED"),
            (listener.into(), local, None, "TCP_LISTEN"),
        ] {
            out.push(Sock { fd, local, remote, protocol: libc::IPPROTO_TCP, state });
        }
    }
    Ok(out)
}

/// Sockets that share a port.
fn udp() -> io::Result<Vec<Sock>> {
    let (mut out, mut address) = (Vec::new(), SocketAddr::from(([127, 0, 0, 1], 0)));
    for _ in 0..3 {
        let fd = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        sockopt::set_socket_reuseport(&fd, true)?;
        bind(&fd, &address)?;
        let fd = UdpSocket::from(fd);
        address = fd.local_addr()?;
        let (local, protocol) = (address, libc::IPPROTO_UDP);
        out.push(Sock { fd: fd.into(), local, remote: None, protocol, state: "TCP_CLOSE" });
    }
    Ok(out)
}

/// One XDP socket that serves the loopback's first queue, one that serves nothing yet.
fn xdp_sockets(map: &OwnedFd, held: &mut Held) -> io::Result<Entries> {
    /// Frames that packets are put into.
    const FRAMES: usize = 16;
    let mut entries = Entries::new();
    for (key, bound) in [(1u32, true), (5, false)] {
        let fd = socket(AddressFamily::XDP, SocketType::RAW, None)?;
        // The kernel wants no socket in the map that has no ring to receive into.
        sockopt::set_xdp_rx_ring_size(&fd, FRAMES as u32)?;
        if bound {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: the kernel chooses a free range. It stays mapped as long as the agent lives,
            // for the kernel to write packets into.
            #[allow(unsafe_code)]
            let room = unsafe {
                mmap_anonymous(std::ptr::null_mut(), FRAMES * PAGE, prot, MapFlags::PRIVATE)?
            };
            let umem = xdp::XdpUmemReg {
                addr: room as u64,
                len: (FRAMES * PAGE) as u64,
                chunk_size: PAGE as u32,
                headroom: 0,
                flags: xdp::XdpUmemRegFlags::empty(),
                tx_metadata_len: 0,
            };
            sockopt::set_xdp_umem_reg(&fd, umem)?;
            sockopt::set_xdp_umem_fill_ring_size(&fd, FRAMES as u32)?;
            sockopt::set_xdp_umem_completion_ring_size(&fd, FRAMES as u32)?;
            let flags = xdp::SocketAddrXdpFlags::XDP_COPY;
            bind(&fd, &xdp::SocketAddrXdp::new(flags, LOOPBACK, 0))?;
        }
        update(map, &key.to_le_bytes(), &fd.as_raw_fd().to_le_bytes())?;
        let (state, device) = if bound { ("XSK_BOUND", "lo") } else { ("XSK_READY", "") };
        let facts = vec![
            fact("state", state),
            fact("ifindex", if bound { LOOPBACK } else { 0 }),
            fact("queue_id", 0),
            fact("name", device),
            fact("cookie", sockopt::socket_cookie(&fd)?),
        ];
        entries.push((Hex(key.to_le_bytes().to_vec()), facts));
        held.keep_open(fd);
    }
    Ok(entries)
}
