//! Maps of the network: devices, CPUs and sockets that packets are sent on to. The kernel has
//! pointers in them; an entry is what the bpf() syscall says where it says anything, and who the
//! socket or the device is.

use super::made::{ADDRESS, NAME};
use super::{Found, Rows, text};
use crate::btf::Btf;
use crate::introspect::bpf::copy::Budget;
use crate::introspect::bpf::layout::{At, Finder};
use crate::introspect::bpf::sock::SockLayout;
use crate::introspect::bpf::{BpfState, MapInfo, kind};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

type Layout<T> = Result<T, IntrospectError>;

/// Buckets of a map at most; the kernel's own limit is below it.
const MAX_BUCKETS: u64 = 1 << 31;
/// Buckets that are read at once.
const BATCH: u64 = 4096;

/// Where a map keeps a table of pointers.
struct Table {
    /// In the map: the table, or the pointer to it.
    at: At,
    pointed: bool,
}

impl Table {
    fn pointed(btf: &Btf, name: &'static str, member: &str) -> Layout<Self> {
        Ok(Table { at: Finder::new(btf, name)?.number(member)?, pointed: true })
    }

    fn within(btf: &Btf, name: &'static str, member: &str) -> Layout<Self> {
        Ok(Table { at: Finder::new(btf, name)?.at(member)?, pointed: false })
    }
}

/// Where a map keeps lists of elements, and an element its key.
struct Buckets {
    table: At,
    count: At,
    size: usize,
    head: usize,
    node: u64,
    key: u64,
}

/// `struct bpf_dtab` and `struct bpf_dtab_netdev` (kernel/bpf/devmap.c).
pub(crate) struct DeviceLayout {
    table: Table,
    hash: Layout<Buckets>,
    size: usize,
    dev: At,
    prog: At,
    ifindex: u64,
    name: u64,
}

impl DeviceLayout {
    pub(super) fn new(btf: &Btf) -> Layout<Self> {
        let f = Finder::new(btf, "struct bpf_dtab_netdev")?;
        let dev = Finder::new(btf, "struct net_device")?;
        Ok(DeviceLayout {
            table: Table::pointed(btf, "struct bpf_dtab", "netdev_map")?,
            hash: Self::buckets(btf),
            size: f.size,
            dev: f.number("dev")?,
            prog: f.number("val.bpf_prog.id")?,
            ifindex: dev.number("ifindex")?.offset as u64,
            name: dev.at("name")?.offset as u64,
        })
    }

    fn buckets(btf: &Btf) -> Layout<Buckets> {
        let f = Finder::new(btf, "struct bpf_dtab")?;
        let elem = Finder::new(btf, "struct bpf_dtab_netdev")?;
        let head = Finder::new(btf, "struct hlist_head")?;
        Ok(Buckets {
            table: f.number("dev_index_head")?,
            count: f.number("n_buckets")?,
            size: head.size.max(1),
            head: head.at("first")?.offset,
            node: elem.at("index_hlist")?.offset as u64,
            key: elem.number("idx")?.offset as u64,
        })
    }
}

/// `struct bpf_cpu_map` and `struct bpf_cpu_map_entry` (kernel/bpf/cpumap.c).
pub(crate) struct CpuLayout {
    table: Table,
    size: usize,
    qsize: At,
    prog: At,
}

impl CpuLayout {
    pub(super) fn new(btf: &Btf) -> Layout<Self> {
        let f = Finder::new(btf, "struct bpf_cpu_map_entry")?;
        Ok(CpuLayout {
            table: Table::pointed(btf, "struct bpf_cpu_map", "cpu_map")?,
            size: f.size,
            qsize: f.number("value.qsize")?,
            prog: f.number("value.bpf_prog.id")?,
        })
    }
}

/// The maps of sockets (net/core/sock_map.c, kernel/bpf/reuseport_array.c, net/xdp/xskmap.c).
pub(crate) struct SocketLayout {
    sock: SockLayout,
    map: Layout<Table>,
    hash: Layout<(Buckets, u64)>,
    reuseport: Layout<Table>,
    xdp: Layout<XdpLayout>,
}

/// `struct xsk_map` and `struct xdp_sock`.
struct XdpLayout {
    table: Table,
    size: usize,
    state: At,
    queue: At,
    dev: At,
}

impl SocketLayout {
    pub(super) fn new(btf: &Btf) -> Layout<Self> {
        Ok(SocketLayout {
            sock: SockLayout::new(btf)?,
            map: Table::pointed(btf, "struct bpf_stab", "sks"),
            hash: Self::hash(btf),
            reuseport: Table::within(btf, "struct reuseport_array", "ptrs"),
            xdp: XdpLayout::new(btf),
        })
    }

    fn hash(btf: &Btf) -> Layout<(Buckets, u64)> {
        let f = Finder::new(btf, "struct bpf_shtab")?;
        let elem = Finder::new(btf, "struct bpf_shtab_elem")?;
        let bucket = Finder::new(btf, "struct bpf_shtab_bucket")?;
        let buckets = Buckets {
            table: f.number("buckets")?,
            count: f.number("buckets_num")?,
            size: bucket.size.max(1),
            head: bucket.at("head.first")?.offset,
            node: elem.at("node")?.offset as u64,
            key: elem.at("key")?.offset as u64,
        };
        Ok((buckets, elem.number("sk")?.offset as u64))
    }
}

impl XdpLayout {
    fn new(btf: &Btf) -> Layout<Self> {
        let f = Finder::new(btf, "struct xdp_sock")?;
        Ok(XdpLayout {
            table: Table::within(btf, "struct xsk_map", "xsk_map")?,
            size: f.size,
            state: f.number("state")?,
            queue: f.number("queue_id")?,
            dev: f.number("dev")?,
        })
    }
}

/// `struct bpf_insn_array` (kernel/bpf/bpf_insn_array.c).
pub(crate) struct InsnLayout {
    values: usize,
    size: usize,
}

impl InsnLayout {
    pub(super) fn new(btf: &Btf) -> Layout<Self> {
        Ok(InsnLayout {
            values: Finder::new(btf, "struct bpf_insn_array")?.at("values")?.offset,
            size: Finder::new(btf, "struct bpf_insn_array_value")?.size,
        })
    }
}

/// All of them.
pub(crate) struct NetLayouts {
    device: Layout<DeviceLayout>,
    cpu: Layout<CpuLayout>,
    socket: Layout<SocketLayout>,
    insn: Layout<InsnLayout>,
}

impl NetLayouts {
    pub(super) fn new(btf: &Btf) -> Self {
        NetLayouts {
            device: DeviceLayout::new(btf),
            cpu: CpuLayout::new(btf),
            socket: SocketLayout::new(btf),
            insn: InsnLayout::new(btf),
        }
    }
}

/// What is kept while a map is copied.
struct Job<'a> {
    kernel: &'a Kernel,
    map: &'a MapInfo,
    budget: &'a mut Budget,
    rows: Rows,
}

impl Kernel {
    /// Copies a map of one of the kinds here; `None` for others.
    pub(super) fn copy_net(
        &self,
        state: &BpfState,
        map: &MapInfo,
        budget: &mut Budget,
    ) -> Option<Found> {
        let layouts = &state.layouts.kinds.net;
        let mut job = Job { kernel: self, map, budget, rows: Rows::new(None, 0) };
        let done = match map.kind.number {
            kind::INSN_ARRAY => layouts.insn.as_ref().map_err(text).and_then(|l| job.insns(l)),
            kind::CPUMAP => layouts.cpu.as_ref().map_err(text).and_then(|l| job.cpus(l)),
            kind::DEVMAP => layouts.device.as_ref().map_err(text).and_then(|l| job.devices(l)),
            kind::DEVMAP_HASH => {
                layouts.device.as_ref().map_err(text).and_then(|l| job.hashed_devices(l))
            }
            kind::SOCKMAP | kind::REUSEPORT_SOCKARRAY => {
                layouts.socket.as_ref().map_err(text).and_then(|l| job.sockets(l))
            }
            kind::SOCKHASH => {
                layouts.socket.as_ref().map_err(text).and_then(|l| job.hashed_sockets(l))
            }
            kind::XSKMAP => layouts.socket.as_ref().map_err(text).and_then(|sockets| {
                layouts.device.as_ref().map_err(text).and_then(|l| job.xdp_sockets(sockets, l))
            }),
            _ => return None,
        };
        Some(done.map(|()| job.rows.into()))
    }
}

type Done = Result<(), String>;

impl Job<'_> {
    /// Begins rows that are keyed by numbers.
    fn numbered(&mut self, value_size: usize) {
        self.rows = Rows::new(Some(4), value_size);
    }

    /// Adds what `read` finds behind a pointer. What cannot be read makes the map incomplete.
    fn entry(&mut self, key: &[u8], found: Result<Vec<u8>, String>) {
        match found {
            Ok(value) => self.rows.push(key, &value),
            Err(why) => self.rows.incomplete(why),
        }
    }

    /// The pointers in a table that are not null, with their places.
    fn table(&mut self, table: &Table) -> Result<Vec<(u32, Kva)>, String> {
        let at = self.map.kva.offset(table.at.offset as u64);
        let first = match table.pointed {
            true => Kva(self.kernel.read_u64(at).map_err(text)?),
            false => at,
        };
        let count = self.map.max_entries.into();
        self.kernel.table_of_pointers(first, count, self.budget, &mut self.rows)
    }

    /// The elements in the lists of a hash.
    fn elements(&mut self, buckets: &Buckets) -> Result<Vec<Kva>, String> {
        let field = |at: At| self.kernel.member(self.map.kva, at).map_err(text);
        let (table, count) = (Kva(field(buckets.table)?), field(buckets.count)?);
        if count > MAX_BUCKETS {
            return Err(format!("it claims {count} buckets"));
        }
        let (size, mut out, mut done) = (buckets.size as u64, Vec::new(), 0);
        let most = self.map.max_entries as usize;
        while done < count {
            let n = self.budget.take_some((count - done).min(BATCH), size)?;
            if n == 0 {
                self.rows.incomplete(format!("{done} of {count} buckets fitted into the budget"));
                break;
            }
            let mut raw = vec![0; (n * size) as usize];
            self.kernel.read(table.offset(done * size), &mut raw).map_err(text)?;
            for bucket in 0..n {
                let head = At { offset: (bucket * size) as usize + buckets.head, size: 8 };
                if head.read(&raw).unwrap_or(0) == 0 {
                    continue;
                }
                let head = table.offset((done + bucket) * size + buckets.head as u64);
                let room = (most + 1).saturating_sub(out.len());
                let nodes = self.rows.walked_list(self.kernel, head, room);
                self.budget.take(8 * nodes.len() as u64)?;
                out.extend(nodes.iter().map(|node| Kva(node.0.wrapping_sub(buckets.node))));
            }
            done += n;
        }
        Ok(out)
    }

    /// The struct behind a pointer.
    fn copy(&mut self, at: Kva, size: usize) -> Result<Vec<u8>, String> {
        self.budget.take(size as u64)?;
        let mut raw = vec![0; size];
        self.kernel.read(at, &mut raw).map_err(text)?;
        Ok(raw)
    }

    fn insns(&mut self, layout: &InsnLayout) -> Done {
        self.numbered(layout.size);
        let (count, size) = (u64::from(self.map.max_entries), layout.size as u64);
        let fits = self.budget.take_some(count, size)?;
        if fits < count {
            self.rows.incomplete(format!("{fits} of {count} entries fitted into the budget"));
        }
        let first = self.map.kva.offset(layout.values as u64);
        let mut value = vec![0; layout.size];
        for i in 0..fits {
            if let Err(e) = self.kernel.read(first.offset(i * size), &mut value) {
                self.rows.incomplete(format!("from entry {i} on: {e}"));
                break;
            }
            self.rows.push(&(i as u32).to_le_bytes(), &value);
        }
        Ok(())
    }

    fn cpus(&mut self, layout: &CpuLayout) -> Done {
        self.numbered(8);
        for (cpu, at) in self.table(&layout.table)? {
            let found = self.copy(at, layout.size).map(|raw| {
                [layout.qsize, layout.prog].map(|at| number(at, &raw).to_le_bytes()).concat()
            });
            self.entry(&cpu.to_le_bytes(), found);
        }
        Ok(())
    }

    fn devices(&mut self, layout: &DeviceLayout) -> Done {
        self.numbered(8 + NAME);
        for (index, at) in self.table(&layout.table)? {
            let found = self.device(layout, at);
            self.entry(&index.to_le_bytes(), found);
        }
        Ok(())
    }

    fn hashed_devices(&mut self, layout: &DeviceLayout) -> Done {
        self.numbered(8 + NAME);
        let hash = layout.hash.as_ref().map_err(text)?;
        for at in self.elements(hash)? {
            let found = self.device(layout, at);
            match self.kernel.read_u32(at.offset(hash.key)) {
                Ok(key) => self.entry(&key.to_le_bytes(), found),
                Err(e) => self.rows.incomplete(e),
            }
        }
        Ok(())
    }

    /// The device of an entry, and the program that packets pass on their way to it.
    fn device(&mut self, layout: &DeviceLayout, at: Kva) -> Result<Vec<u8>, String> {
        let raw = self.copy(at, layout.size)?;
        let dev = Kva(layout.dev.read(&raw).unwrap_or(0));
        let ifindex = self.kernel.read_u32(dev.offset(layout.ifindex)).map_err(text)?;
        let mut out = [ifindex, number(layout.prog, &raw)].map(u32::to_le_bytes).concat();
        out.extend(self.name(dev, layout.name)?);
        Ok(out)
    }

    fn name(&self, dev: Kva, within: u64) -> Result<[u8; NAME], String> {
        let mut name = [0; NAME];
        self.kernel.read(dev.offset(within), &mut name).map_err(text)?;
        Ok(name)
    }

    fn sockets(&mut self, layout: &SocketLayout) -> Done {
        self.numbered(SOCKET);
        let table = match self.map.kind.number {
            kind::SOCKMAP => &layout.map,
            _ => &layout.reuseport,
        };
        for (index, at) in self.table(table.as_ref().map_err(text)?)? {
            let found = self.socket(layout, at);
            self.entry(&index.to_le_bytes(), found);
        }
        Ok(())
    }

    fn hashed_sockets(&mut self, layout: &SocketLayout) -> Done {
        let key_size = self.map.key_size as usize;
        self.rows = Rows::new(Some(key_size), SOCKET);
        let (hash, sk) = layout.hash.as_ref().map_err(text)?;
        for at in self.elements(hash)? {
            let key = self.copy(at.offset(hash.key), key_size);
            let socket = self.kernel.read_u64(at.offset(*sk)).map_err(text);
            let found = socket.and_then(|socket| self.socket(layout, Kva(socket)));
            match key {
                Ok(key) => self.entry(&key, found),
                Err(why) => self.rows.incomplete(why),
            }
        }
        Ok(())
    }

    /// A socket: cookie (0 while nobody has asked for it), family, protocol, state, ports and
    /// addresses.
    fn socket(&mut self, layout: &SocketLayout, at: Kva) -> Result<Vec<u8>, String> {
        self.budget.take(layout.sock.size() as u64)?;
        let sock = self.kernel.sock(&layout.sock, at).map_err(text)?;
        let ends = sock.ends.map_or([None, None], |(local, remote)| [Some(local), Some(remote)]);
        let ports = ends.map(|end| end.map_or(0, |end| end.port().into()));
        let mut out = Vec::with_capacity(SOCKET);
        out.extend(sock.cookie.to_le_bytes());
        for n in [sock.family, sock.protocol, sock.state, ports[0], ports[1]] {
            out.extend(n.to_le_bytes());
        }
        for end in ends {
            let (from, ip) = (out.len(), end.map(|end| end.ip().to_string()));
            out.extend(ip.unwrap_or_default().bytes().take(ADDRESS - 1));
            out.resize(from + ADDRESS, 0);
        }
        Ok(out)
    }

    fn xdp_sockets(&mut self, layout: &SocketLayout, devices: &DeviceLayout) -> Done {
        self.numbered(20 + NAME);
        let xdp = layout.xdp.as_ref().map_err(text)?;
        for (index, at) in self.table(&xdp.table)? {
            let found = self.xdp_socket((layout, xdp, devices), at);
            self.entry(&index.to_le_bytes(), found);
        }
        Ok(())
    }

    /// An XDP socket: which queue of which device it serves.
    fn xdp_socket(
        &mut self,
        (sockets, xdp, devices): (&SocketLayout, &XdpLayout, &DeviceLayout),
        at: Kva,
    ) -> Result<Vec<u8>, String> {
        let raw = self.copy(at, xdp.size)?;
        let dev = Kva(xdp.dev.read(&raw).unwrap_or(0));
        let (mut ifindex, mut name) = (0, [0; NAME]);
        if !dev.is_null() {
            ifindex = self.kernel.read_u32(dev.offset(devices.ifindex)).map_err(text)?;
            name = self.name(dev, devices.name)?;
        }
        let mut out = sockets.sock.cookie(&raw).to_le_bytes().to_vec();
        for n in [number(xdp.state, &raw), ifindex, number(xdp.queue, &raw)] {
            out.extend(n.to_le_bytes());
        }
        out.extend(name);
        Ok(out)
    }
}

/// Bytes of a socket's row.
const SOCKET: usize = 28 + 2 * ADDRESS;
fn number(at: At, raw: &[u8]) -> u32 {
    at.read(raw).unwrap_or(0) as u32
}
