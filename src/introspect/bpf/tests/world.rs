//! A guest with a map of each kind that is not a plain table, in the direct map, so that a test can
//! change any word of it.

use super::super::kind;
use crate::btf::TypeId;
use crate::btf::testing::Builder as Types;
use crate::introspect::testing::{DIRECT, Guest, at};
use crate::mem::Kva;

/// What is subtracted from an address for where it lies in RAM.
pub(super) const PATCHED: u64 = DIRECT;

/// The first member behind `struct bpf_map`.
const OWN: u64 = at::MAP_SIZE;

/// A map, and where in it things are.
pub(super) struct Subject {
    pub(super) kind: u32,
    pub(super) map: Kva,
    /// How many entries are found.
    pub(super) rows: usize,
    /// Key and value of the first one.
    pub(super) first: Option<(Vec<u8>, Vec<u8>)>,
    /// Pointers without which there is less.
    pub(super) pointers: Vec<Kva>,
    /// Pointers to one entry each.
    pub(super) slots: Vec<Kva>,
    /// Numbers, with their bytes.
    pub(super) numbers: Vec<(Kva, usize)>,
    /// Links of its lists.
    pub(super) links: Vec<Kva>,
    /// The bytes of its locks.
    pub(super) locks: Vec<Kva>,
    /// What was allocated for it.
    pub(super) span: (Kva, Kva),
}

/// A map of which nothing is told.
const NONE: Subject = Subject {
    kind: 0,
    map: Kva(0),
    rows: 0,
    first: None,
    pointers: Vec::new(),
    slots: Vec::new(),
    numbers: Vec::new(),
    links: Vec::new(),
    locks: Vec::new(),
    span: (Kva(0), Kva(0)),
};

/// Adds structs to a kernel's types.
struct Structs<'a> {
    types: &'a mut Types,
    numbers: [(u64, TypeId); 4],
    byte: TypeId,
}

impl<'a> Structs<'a> {
    fn new(types: &'a mut Types) -> Self {
        let numbers = [(1, "u8"), (2, "u16"), (4, "u32"), (8, "u64")];
        let numbers = numbers.map(|(size, name)| (size, types.int(name, size as u32, false)));
        let byte = numbers[0].1;
        Structs { types, numbers, byte }
    }

    /// A struct of members (name, bytes, offset); several bytes that are no number are bytes.
    fn of(&mut self, name: &str, size: u64, members: &[(&str, u64, u64)]) -> TypeId {
        self.with(name, size, members, &[])
    }

    /// The same, with members of other types.
    fn with(
        &mut self,
        name: &str,
        size: u64,
        members: &[(&str, u64, u64)],
        others: &[(&str, TypeId, u64)],
    ) -> TypeId {
        let mut all = Vec::new();
        for (name, len, at) in members {
            let number = self.numbers.iter().find(|(size, _)| size == len).map(|(_, ty)| *ty);
            let ty = number.unwrap_or_else(|| self.types.array(self.byte, *len as u32));
            all.push((*name, ty, *at as u32 * 8));
        }
        all.extend(others.iter().map(|(name, ty, at)| (*name, *ty, *at as u32 * 8)));
        self.types.structure(name, size as u32, &all)
    }
}

fn rings_and_tables(s: &mut Structs<'_>) {
    let word = s.of("", 4, &[("counter", 4, 0)]);
    let lock = s.with("", 4, &[], &[("val", word, 0)]);
    s.of("bpf_ringbuf_map", OWN + 8, &[("rb", 8, OWN)]);
    let ring = [
        ("mask", 8, 0),
        ("overwrite_mode", 1, 8),
        ("consumer_pos", 8, 64),
        ("producer_pos", 8, 72),
        ("pending_pos", 8, 80),
        ("overwrite_pos", 8, 88),
        ("data", 0, 128),
    ];
    s.with("bpf_ringbuf", 128, &ring, &[("spinlock", lock, 16), ("busy", word, 24)]);
    let bloom = [("bitset_mask", 4, OWN), ("hash_seed", 4, OWN + 4), ("nr_hash_funcs", 4, OWN + 8)];
    let bloom = [&bloom[..], &[("bitset", 0, OWN + 16)]].concat();
    s.of("bpf_bloom_filter", OWN + 16, &bloom);
    let arena = [("user_vm_start", 8, OWN), ("user_vm_end", 8, OWN + 8), ("kern_vm", 8, OWN + 16)];
    s.of("bpf_arena", OWN + 24, &arena);
    s.of("vm_struct", 16, &[("addr", 8, 8)]);
    s.of("bpf_insn", 8, &[("code", 1, 0), ("off", 2, 2), ("imm", 4, 4)]);
    s.of("page", 64, &[("flags", 8, 0)]);
    let table = s.with("", 16, &[("tbl", 8, 0)], &[("nelems", word, 8)]);
    s.with("bpf_rhtab", OWN + 24, &[("elem_size", 4, OWN + 16)], &[("ht", table, OWN)]);
    s.of("rhtab_elem", 8, &[("node", 8, 0), ("data", 0, 8)]);
    let table = [("size", 4, 0), ("nest", 4, 4), ("future_tbl", 8, 8), ("buckets", 0, 16)];
    s.of("bucket_table", 16, &table);
    s.of("bpf_insn_array", OWN, &[("values", 0, OWN)]);
    s.of("bpf_insn_array_value", 16, &[("orig_off", 4, 0)]);
    let stacks = [("elems", 8, OWN), ("n_buckets", 4, OWN + 8), ("buckets", 0, OWN + 16)];
    s.of("bpf_stack_map", OWN + 16, &stacks);
    s.of("stack_map_bucket", 16, &[("hash", 4, 8), ("nr", 4, 12), ("data", 0, 16)]);
    let storage = [("list", 16, OWN + 8)];
    s.with("bpf_cgroup_storage_map", OWN + 24, &storage, &[("lock", lock, OWN)]);
    let storage = [("buf", 8, 0), ("percpu_buf", 8, 0), ("key", 16, 16), ("list_map", 16, 32)];
    s.of("bpf_cgroup_storage", 48, &storage);
    s.of("bpf_storage_buffer", 16, &[("data", 0, 16)]);
}

fn devices_and_owners(s: &mut Structs<'_>) {
    let (head, dtab) = (s.of("", 8, &[("first", 8, 0)]), OWN);
    let table = [("netdev_map", 8, dtab), ("dev_index_head", 8, dtab + 8)];
    s.of("bpf_dtab", OWN + 24, &[&table[..], &[("n_buckets", 4, dtab + 16)]].concat());
    let prog = s.of("", 4, &[("id", 4, 0)]);
    let val = s.with("", 8, &[("ifindex", 4, 0)], &[("bpf_prog", prog, 4)]);
    let dev = [("index_hlist", 16, 0), ("dev", 8, 16), ("idx", 4, 24)];
    s.with("bpf_dtab_netdev", 40, &dev, &[("val", val, 28)]);
    s.of("net_device", 24, &[("ifindex", 4, 0), ("name", 16, 4)]);
    s.of("bpf_cpu_map", OWN + 8, &[("cpu_map", 8, OWN)]);
    let val = s.with("", 8, &[("qsize", 4, 0)], &[("bpf_prog", prog, 4)]);
    s.with("bpf_cpu_map_entry", 16, &[], &[("value", val, 8)]);
    let cookie = s.of("", 8, &[("counter", 8, 0)]);
    let common = [
        ("skc_family", 2, 0),
        ("skc_state", 1, 2),
        ("skc_num", 2, 4),
        ("skc_dport", 2, 6),
        ("skc_daddr", 4, 8),
        ("skc_rcv_saddr", 4, 12),
        ("skc_v6_daddr", 16, 16),
        ("skc_v6_rcv_saddr", 16, 32),
    ];
    let common = s.with("", 56, &common, &[("skc_cookie", cookie, 48)]);
    let sock = [("sk_type", 2, 56), ("sk_protocol", 2, 58), ("sk_socket", 8, 64)];
    s.with("sock", 72, &sock, &[("__sk_common", common, 0)]);
    let inode = [("i_sb", 8, 0), ("i_ino", 8, 8)];
    let inode = s.with("inode", 24, &inode, &[("i_dentry", head, 16)]);
    s.with("socket_alloc", 32, &[("socket", 8, 0)], &[("vfs_inode", inode, 8)]);
    s.of("bpf_stab", OWN + 8, &[("sks", 8, OWN)]);
    s.of("reuseport_array", OWN, &[("ptrs", 0, OWN)]);
    s.of("bpf_shtab", OWN + 16, &[("buckets", 8, OWN), ("buckets_num", 4, OWN + 8)]);
    s.with("bpf_shtab_bucket", 16, &[], &[("head", head, 0)]);
    s.of("bpf_shtab_elem", 24, &[("node", 16, 0), ("sk", 8, 16), ("key", 0, 24)]);
    s.of("xsk_map", OWN, &[("xsk_map", 0, OWN)]);
    s.of("xdp_sock", 88, &[("dev", 8, 72), ("queue_id", 2, 80), ("state", 4, 84)]);
    s.of("cgroup", 8, &[("kn", 8, 0)]);
    s.of("kernfs_node", 24, &[("__parent", 8, 0), ("name", 8, 8), ("id", 8, 16)]);
    s.of("super_block", 8, &[("s_dev", 4, 0)]);
    let name = s.of("", 8, &[("name", 8, 0)]);
    s.with("dentry", 24, &[("d_alias", 16, 0)], &[("d_name", name, 16)]);
    s.of("bpf_event_entry", 8, &[("event", 8, 0)]);
    let attr = s.of("", 24, &[("type", 4, 0), ("config", 8, 8), ("sample_period", 8, 16)]);
    let event = [("pmu", 8, 0), ("state", 4, 8), ("ctx", 8, 48), ("cpu", 4, 56), ("id", 8, 64)];
    s.with("perf_event", 72, &event, &[("attr", attr, 16)]);
    s.of("perf_event_context", 8, &[("task", 8, 0)]);
    s.of("pmu", 8, &[("name", 8, 0)]);
}

/// Makes them.
struct Maker {
    guest: Guest,
    subjects: Vec<Subject>,
}

impl Maker {
    /// A map of `len` bytes behind `struct bpf_map`, with room around all that is made for it.
    fn map(&mut self, name: &str, kind: u32, attrs: [u64; 3], len: u64) -> Kva {
        let map = self.guest.alloc(OWN + len);
        let [key, value, entries] = attrs;
        self.guest.fill_map(map, name, [kind.into(), key, value, entries, 0]);
        map
    }

    fn done(&mut self, subject: Subject) {
        let span = (subject.map, self.guest.alloc(8));
        self.subjects.push(Subject { span, ..subject });
    }

    fn words(&mut self, words: &[u64]) -> Kva {
        let at = self.guest.alloc(8 * words.len() as u64);
        for (i, word) in words.iter().enumerate() {
            self.guest.write_u64(at.offset(8 * i as u64), *word);
        }
        at
    }

    fn text(&mut self, text: &str) -> Kva {
        let at = self.guest.alloc(text.len() as u64 + 1);
        self.guest.write(at, text.as_bytes());
        at
    }

    fn rings(&mut self) {
        const SIZE: u64 = 4096;
        let record = |text: &[u8], bits: u32| {
            let header = [text.len() as u32 | bits, 0].map(u32::to_le_bytes).concat();
            let mut out = [&header, text].concat();
            out.resize(out.len().next_multiple_of(8), 0);
            out
        };
        let data = [record(b"one", 0), record(b"gone", 1 << 30), record(b"three", 0)].concat();
        for (name, kind, lock) in
            [("ring", kind::RINGBUF, 16), ("requests", kind::USER_RINGBUF, 24)]
        {
            let map = self.map(name, kind, [0, 0, SIZE], 8);
            let ring = self.guest.alloc(128 + 2 * SIZE);
            self.guest.write_u64(map.offset(OWN), ring.0);
            self.guest.write_u64(ring, SIZE - 1);
            // Around the end, from which on the pages come again.
            let start = 3 * SIZE - 16;
            let end = start + data.len() as u64;
            for (within, n) in [(64, start), (72, end), (80, end)] {
                self.guest.write_u64(ring.offset(within), n);
            }
            self.guest.write(ring.offset(128 + SIZE - 16), &data);
            let first = Some((start.to_le_bytes().to_vec(), b"one".to_vec()));
            let numbers = [0, 64, 72].map(|within| (ring.offset(within), 8));
            let header = (ring.offset(128 + SIZE - 16), 4);
            self.done(Subject {
                kind,
                map,
                rows: 2,
                first,
                pointers: vec![map.offset(OWN)],
                numbers: [&numbers[..], &[header]].concat(),
                locks: vec![ring.offset(lock)],
                ..NONE
            });
        }
    }

    fn bloom_and_insns(&mut self) {
        let map = self.map("bloom", kind::BLOOM_FILTER, [0, 8, 10], 64);
        self.guest.write_u32(map.offset(OWN), 255);
        self.guest.write_u32(map.offset(OWN + 8), 5);
        self.guest.write_u64(map.offset(OWN + 16), 0x8001);
        let first = [&0x8001u64.to_le_bytes()[..], &[0; 24]].concat();
        self.done(Subject {
            kind: kind::BLOOM_FILTER,
            map,
            rows: 1,
            first: Some((Vec::new(), first)),
            numbers: vec![(map.offset(OWN), 4)],
            ..NONE
        });
        let map = self.map("insns", kind::INSN_ARRAY, [4, 16, 3], 48);
        self.guest.write(map.offset(OWN), &[7; 48]);
        self.done(Subject {
            kind: kind::INSN_ARRAY,
            map,
            rows: 3,
            first: Some((vec![0; 4], vec![7; 16])),
            ..NONE
        });
    }

    fn arena(&mut self) {
        const START: u64 = 0x7f00_0000_0000;
        /// Half of what instructions reach, as far as they are rounded up.
        const GUARD: u64 = 1 << 15;
        let map = self.map("arena", kind::ARENA, [0, 0, 10], 24);
        let pages = self.guest.vmalloc(3 * 4096);
        self.guest.write(pages, &[9; 4096]);
        let vm = self.words(&[0, pages.0 - GUARD]);
        for (i, word) in [START, START + 10 * 4096, vm.0].into_iter().enumerate() {
            self.guest.write_u64(map.offset(OWN + 8 * i as u64), word);
        }
        self.done(Subject {
            kind: kind::ARENA,
            map,
            rows: 3,
            first: Some((START.to_le_bytes().to_vec(), vec![9; 4096])),
            pointers: vec![map.offset(OWN + 16)],
            numbers: vec![(map.offset(OWN), 8), (map.offset(OWN + 8), 8)],
            ..NONE
        });
    }

    fn rhash(&mut self) {
        let map = self.map("rhash", kind::RHASH, [4, 8, 10], 24);
        let elem = |this: &mut Self, key: u64, next: u64| this.words(&[next, key, 10 * key]);
        let last = elem(self, 3, 0x5);
        let middle = elem(self, 2, last.0);
        let alone = elem(self, 1, 0x3);
        let table = self.words(&[2, 0, alone.0, middle.0]);
        for (within, word) in [(0, table.0), (8, 3), (16, 24)] {
            self.guest.write_u64(map.offset(OWN + within), word);
        }
        self.done(Subject {
            kind: kind::RHASH,
            map,
            rows: 3,
            first: Some((vec![1, 0, 0, 0], 10u64.to_le_bytes().to_vec())),
            pointers: vec![map.offset(OWN), table.offset(8), table.offset(24), middle],
            numbers: vec![(map.offset(OWN + 16), 4), (table, 4), (table.offset(4), 4)],
            links: vec![middle, last, alone],
            ..NONE
        });
    }

    /// A device, and an entry that leads to it: the entry, and where its pointer is.
    fn device(&mut self, index: u32, key: u32) -> (Kva, Kva) {
        let dev = self.guest.alloc(24);
        self.guest.write_u32(dev, index);
        self.guest.write(dev.offset(4), b"eth0");
        let entry = self.words(&[0, 0, dev.0, key.into(), 0]);
        self.guest.write_u32(entry.offset(32), 77);
        (entry, entry.offset(16))
    }

    fn devices(&mut self) {
        let mut value = [5u32.to_le_bytes(), 77u32.to_le_bytes()].concat();
        value.extend(b"eth0");
        value.resize(24, 0);
        let map = self.map("devmap", kind::DEVMAP, [4, 8, 4], 24);
        let ((a, to_a), (b, to_b)) = (self.device(5, 1), self.device(6, 3));
        let table = self.words(&[0, a.0, 0, b.0]);
        self.guest.write_u64(map.offset(OWN), table.0);
        self.done(Subject {
            kind: kind::DEVMAP,
            map,
            rows: 2,
            first: Some((vec![1, 0, 0, 0], value.clone())),
            pointers: vec![map.offset(OWN), to_a, to_b],
            slots: vec![table.offset(8), table.offset(24)],
            ..NONE
        });
        let map = self.map("devmap_hash", kind::DEVMAP_HASH, [4, 8, 4], 24);
        let ((a, to_a), (b, to_b)) = (self.device(5, 9), self.device(6, 17));
        self.guest.write_u64(a, b.0);
        let buckets = self.words(&[0, a.0]);
        self.guest.write_u64(map.offset(OWN + 8), buckets.0);
        self.guest.write_u32(map.offset(OWN + 16), 2);
        self.done(Subject {
            kind: kind::DEVMAP_HASH,
            map,
            rows: 2,
            first: Some((vec![9, 0, 0, 0], value)),
            pointers: vec![map.offset(OWN + 8), buckets.offset(8), a, to_a, to_b],
            numbers: vec![(map.offset(OWN + 16), 4)],
            links: vec![a, b],
            ..NONE
        });
        let map = self.map("cpumap", kind::CPUMAP, [4, 8, 4], 8);
        let entry = self.words(&[0, 192 | 40 << 32]);
        let table = self.words(&[0, 0, entry.0, 0]);
        self.guest.write_u64(map.offset(OWN), table.0);
        let value = [192u32, 40].map(u32::to_le_bytes).concat();
        self.done(Subject {
            kind: kind::CPUMAP,
            map,
            rows: 1,
            first: Some((vec![2, 0, 0, 0], value)),
            pointers: vec![map.offset(OWN)],
            slots: vec![table.offset(16)],
            ..NONE
        });
    }

    /// A connected socket of IPv4, as large as an XDP socket, with a file.
    fn sock(&mut self, port: u16) -> Kva {
        let file = self.guest.alloc(32);
        self.guest.write_u64(file.offset(16), 4000 + u64::from(port));
        let sock = self.guest.alloc(88);
        self.guest.write(sock, &[2, 0, 1, 0]);
        self.guest.write(sock.offset(4), &port.to_le_bytes());
        self.guest.write(sock.offset(6), &80u16.to_be_bytes());
        self.guest.write(sock.offset(8), &[10, 0, 0, 9, 127, 0, 0, 1]);
        self.guest.write_u64(sock.offset(48), 555);
        self.guest.write(sock.offset(56), &[1, 0, 6, 0]);
        self.guest.write_u64(sock.offset(64), file.0);
        sock
    }

    fn sockets(&mut self) {
        let mut value = 555u64.to_le_bytes().to_vec();
        [2u32, 6, 1, 1000, 80].iter().for_each(|n| value.extend(n.to_le_bytes()));
        for ip in ["127.0.0.1", "10.0.0.9"] {
            let mut text = ip.as_bytes().to_vec();
            text.resize(46, 0);
            value.extend(text);
        }
        for (name, kind, pointed) in
            [("sockmap", kind::SOCKMAP, true), ("reuseport", kind::REUSEPORT_SOCKARRAY, false)]
        {
            let map = self.map(name, kind, [4, 8, 3], 24);
            let socks = [self.sock(1000).0, 0, self.sock(1001).0];
            let table = match pointed {
                true => self.words(&socks),
                false => map.offset(OWN),
            };
            if pointed {
                self.guest.write_u64(map.offset(OWN), table.0);
            } else {
                let slots = socks.iter().enumerate();
                slots.for_each(|(i, s)| self.guest.write_u64(table.offset(8 * i as u64), *s));
            }
            self.done(Subject {
                kind,
                map,
                rows: 2,
                first: Some((vec![0; 4], value.clone())),
                pointers: if pointed { vec![map.offset(OWN)] } else { Vec::new() },
                slots: vec![table, table.offset(16)],
                ..NONE
            });
        }
        let map = self.map("sockhash", kind::SOCKHASH, [6, 8, 3], 16);
        let (a, b) = (self.sock(1000), self.sock(1001));
        let (second, first) = (self.words(&[0, 0, b.0, 0x66]), self.words(&[0, 0, a.0, 0x55]));
        self.guest.write_u64(first, second.0);
        let buckets = self.words(&[first.0, 0, 0, 0]);
        self.guest.write_u64(map.offset(OWN), buckets.0);
        self.guest.write_u32(map.offset(OWN + 8), 2);
        self.done(Subject {
            kind: kind::SOCKHASH,
            map,
            rows: 2,
            first: Some((vec![0x55, 0, 0, 0, 0, 0], value)),
            pointers: vec![map.offset(OWN), buckets, first, first.offset(16), second.offset(16)],
            numbers: vec![(map.offset(OWN + 8), 4)],
            links: vec![first, second],
            ..NONE
        });
        let map = self.map("xskmap", kind::XSKMAP, [4, 4, 3], 24);
        let (sock, (_, to_dev)) = (self.sock(1), self.device(5, 0));
        let dev = self.guest.read_u64(to_dev);
        self.guest.write_u64(sock.offset(72), dev);
        self.guest.write(sock.offset(80), &[3, 0, 0, 0, 1, 0, 0, 0]);
        self.guest.write_u64(map.offset(OWN + 8), sock.0);
        let mut value = 555u64.to_le_bytes().to_vec();
        [1u32, 5, 3].iter().for_each(|n| value.extend(n.to_le_bytes()));
        value.extend(b"eth0");
        value.resize(36, 0);
        self.done(Subject {
            kind: kind::XSKMAP,
            map,
            rows: 1,
            first: Some((vec![1, 0, 0, 0], value)),
            pointers: vec![sock.offset(72)],
            slots: vec![map.offset(OWN + 8)],
            ..NONE
        });
    }

    /// A cgroup below the root: it, and the pointers that lead to its path.
    fn cgroup(&mut self, name: &str, id: u64) -> (Kva, Vec<Kva>) {
        let root = self.words(&[0, 0, 1]);
        let name = self.text(name);
        let node = self.words(&[root.0, name.0, id]);
        let cgroup = self.words(&[node.0]);
        (cgroup, vec![cgroup, node, node.offset(8)])
    }

    /// A file: its inode, and the pointers that lead to its name and device.
    fn inode(&mut self, number: u64) -> (Kva, Vec<Kva>) {
        let device = self.words(&[8 << 20 | 1]);
        let name = self.text("a file");
        let dentry = self.words(&[0, 0, name.0]);
        let inode = self.words(&[device.0, number, dentry.0]);
        (inode, vec![inode, inode.offset(16), dentry.offset(16)])
    }

    /// Storage of two owners, the second before the first in the one list.
    fn storage(&mut self, name: &str, kind: u32, key: &str, owners: [(Kva, Vec<Kva>); 2]) {
        let map = self.map(name, kind, [4, 8, 0], 16);
        let buckets = self.words(&[0, 0]);
        self.guest.write_u64(map.offset(at::STORAGE_BUCKETS), buckets.0);
        let [(a, mut pointers), (b, more)] = owners;
        pointers.extend(more);
        let mut links = Vec::new();
        for (owner, value) in [(a, 70), (b, 80)] {
            let storage = self.words(&[owner.0]);
            let before = self.guest.read_u64(buckets);
            let elem = self.words(&[before, 0, storage.0, 0, value]);
            self.guest.write_u64(buckets, elem.0);
            pointers.extend([storage, elem.offset(16)]);
            links.push(elem);
        }
        pointers.extend([map.offset(at::STORAGE_BUCKETS), buckets, links[1]]);
        self.done(Subject {
            kind,
            map,
            rows: 2,
            first: Some((key.as_bytes().to_vec(), 80u64.to_le_bytes().to_vec())),
            pointers,
            numbers: vec![(map.offset(at::STORAGE_LOG), 4)],
            links,
            ..NONE
        });
    }

    fn storages(&mut self) {
        let owners = [self.cgroup("a", 11), self.cgroup("b b", 12)];
        self.storage("of_cgroups", kind::CGRP_STORAGE, "/b b", owners);
        let owners = [self.inode(4711), self.inode(4712)];
        self.storage("of_inodes", kind::INODE_STORAGE, "8:1:4712", owners);
        let owners = [self.sock(1000), self.sock(1001)];
        let owners = owners.map(|sock| (sock, vec![sock.offset(64)]));
        let key = "inet 127.0.0.1:1001 > 10.0.0.9:80 inode 5001";
        self.storage("of_sockets", kind::SK_STORAGE, key, owners);
    }

    fn stacks(&mut self) {
        const ROOM: u64 = 16 + 4 * 8;
        let map = self.map("stacks", kind::STACK_TRACE, [4, 32, 3], 16 + 4 * 8);
        let slab = self.guest.alloc(3 * ROOM);
        self.guest.write_u64(map.offset(OWN), slab.0);
        self.guest.write_u32(map.offset(OWN + 8), 4);
        let mut numbers = vec![(map.offset(OWN + 8), 4)];
        // Frames behind the last one are left of an earlier stack.
        for (i, (id, hash, nr)) in [(1u64, 0x61, 3), (2, 0x12, 4)].into_iter().enumerate() {
            let bucket = slab.offset(ROOM * i as u64);
            self.guest.write_u32(bucket.offset(8), hash);
            self.guest.write_u32(bucket.offset(12), nr);
            for frame in 0..4 {
                self.guest.write_u64(bucket.offset(16 + 8 * frame), 100 * id + frame);
            }
            self.guest.write_u64(map.offset(OWN + 16 + 8 * id), bucket.0);
            numbers.push((bucket.offset(12), 4));
        }
        let value = [100u64, 101, 102, 0].map(u64::to_le_bytes).concat();
        self.done(Subject {
            kind: kind::STACK_TRACE,
            map,
            rows: 2,
            first: Some((vec![1, 0, 0, 0], value)),
            pointers: vec![map.offset(OWN)],
            slots: vec![map.offset(OWN + 16 + 8), map.offset(OWN + 16 + 16)],
            numbers,
            ..NONE
        });
    }

    fn arrays_of_pointers(&mut self) {
        let values = at::ARRAY_VALUES;
        let map = self.map("cgroups", kind::CGROUP_ARRAY, [4, 4, 3], 16 + 24);
        let ((a, mut pointers), (b, more)) = (self.cgroup("a", 11), self.cgroup("b", 12));
        pointers.extend(more);
        self.guest.write_u64(map.offset(values), a.0);
        self.guest.write_u64(map.offset(values + 16), b.0);
        self.done(Subject {
            kind: kind::CGROUP_ARRAY,
            map,
            rows: 2,
            first: Some((vec![0; 4], b"/a".to_vec())),
            pointers,
            slots: vec![map.offset(values), map.offset(values + 16)],
            ..NONE
        });
        let map = self.map("events", kind::PERF_EVENT_ARRAY, [4, 4, 3], 16 + 24);
        let name = self.text("software");
        let (pmu, task) = (self.words(&[name.0]), self.words(&[0, 4321]));
        let context = self.words(&[task.0]);
        let event = self.words(&[pmu.0, 1, 1, 9, 1000, 0, context.0, u32::MAX.into(), 88]);
        let entry = self.words(&[event.0]);
        self.guest.write_u64(map.offset(values + 8), entry.0);
        let mut value = [88u64, 9, 1000].map(u64::to_le_bytes).concat();
        [1, 1, u32::MAX, 4321].iter().for_each(|n| value.extend(n.to_le_bytes()));
        value.extend(b"software");
        value.resize(40 + 64, 0);
        self.done(Subject {
            kind: kind::PERF_EVENT_ARRAY,
            map,
            rows: 1,
            first: Some((vec![1, 0, 0, 0], value)),
            pointers: vec![entry, event, event.offset(48), pmu],
            slots: vec![map.offset(values + 8)],
            ..NONE
        });
    }

    fn storages_of_attached_programs(&mut self) {
        for (name, kind) in
            [("group_storage", kind::CGROUP_STORAGE), ("group_cpus", kind::PERCPU_CGROUP_STORAGE)]
        {
            let map = self.map(name, kind, [16, 8, 0], 24);
            let head = map.offset(OWN + 8);
            let (mut pointers, mut links) = (Vec::new(), Vec::new());
            let mut at = head;
            for id in [41u64, 42] {
                let value = (10 * id).to_le_bytes();
                let behind = match kind {
                    kind::CGROUP_STORAGE => self.words(&[0, 0, 10 * id]).0,
                    _ => self.guest.percpu(&[&value, &value]),
                };
                let storage = self.words(&[behind, 0, id, 7, 0, 0]);
                self.guest.write_u64(at, storage.offset(32).0);
                at = storage.offset(32);
                pointers.push(storage);
                links.push(at);
            }
            self.guest.write_u64(at, head.0);
            pointers.extend([head, links[0], links[1]]);
            let value = 410u64.to_le_bytes().to_vec();
            let value = if kind == kind::CGROUP_STORAGE { value } else { value.repeat(2) };
            self.done(Subject {
                kind,
                map,
                rows: 2,
                first: Some(([41u64, 7].map(u64::to_le_bytes).concat(), value)),
                pointers,
                links,
                locks: vec![map.offset(OWN)],
                ..NONE
            });
        }
    }
}

/// The guest, and what is in it.
pub(super) fn world() -> (Guest, Vec<Subject>) {
    let mut guest = Guest::new();
    let mut structs = Structs::new(&mut guest.types);
    rings_and_tables(&mut structs);
    devices_and_owners(&mut structs);
    let mut maker = Maker { guest, subjects: Vec::new() };
    maker.rings();
    maker.bloom_and_insns();
    maker.arena();
    maker.rhash();
    maker.devices();
    maker.sockets();
    maker.storages();
    maker.stacks();
    maker.arrays_of_pointers();
    maker.storages_of_attached_programs();
    (maker.guest, maker.subjects)
}
