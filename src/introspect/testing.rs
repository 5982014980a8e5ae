//! A made-up guest for tests: page tables, symbols, types and BPF maps laid out as a kernel would,
//! in a [`FakeMem`].
//!
//! ```ignore
//! let mut guest = Guest::new();
//! let map = guest.hash(HashSpec { name: "tasks", .. });
//! let kernel = Kernel::open(guest.mem()).unwrap();
//! ```
//!
//! Physical memory: the image at 2 MiB (4 MiB long), pages for everything else from 16 MiB on.
//! Direct-map objects are contiguous; vmalloc objects are scattered page by page, backwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kallsyms::tests::encode;
use super::paging::tests::Builder as Tables;
use super::space::START_KERNEL_MAP;
use crate::btf::TypeId;
use crate::btf::testing::Builder as Types;
use crate::mem::{FakeMem, Gpa, GuestMem, Kva};

pub(crate) const IMAGE: u64 = START_KERNEL_MAP + 0x100_0000;
pub(crate) const DIRECT: u64 = 0xffff_8880_0000_0000;
const VMALLOC: u64 = 0xffff_c900_0000_0000;
const IMAGE_GPA: u64 = 0x20_0000;
const PAGE: u64 = 4096;

/// Offsets in the made-up kernel's structs. Any would do: the code under test reads them from the
/// types.
pub(crate) mod at {
    pub(crate) const MAP_KIND: u64 = 8;
    pub(crate) const MAP_ID: u64 = 32;
    pub(crate) const MAP_REFCNT: u64 = 96;
    pub(crate) const MAP_COUNT: u64 = 112;
    pub(crate) const MAP_SIZE: u64 = 128;
    pub(crate) const ARRAY_ELEM_SIZE: u64 = MAP_SIZE;
    pub(crate) const ARRAY_VALUES: u64 = MAP_SIZE + 16;
    pub(crate) const HTAB_BUCKETS: u64 = MAP_SIZE;
    pub(crate) const HTAB_ELEMS: u64 = MAP_SIZE + 8;
    pub(crate) const HTAB_N_BUCKETS: u64 = MAP_SIZE + 16;
    pub(crate) const HTAB_ELEM_SIZE: u64 = MAP_SIZE + 20;
    pub(crate) const BUCKET_LOCK: u64 = 8;
    pub(crate) const BUCKET: u64 = 16;
    pub(crate) const ELEM_HASH: u64 = 32;
    pub(crate) const ELEM_KEY: u64 = 40;
    pub(crate) const QUEUE_LOCK: u64 = MAP_SIZE;
    pub(crate) const QUEUE_HEAD: u64 = MAP_SIZE + 4;
    pub(crate) const QUEUE_ELEMENTS: u64 = MAP_SIZE + 16;
    pub(crate) const TRIE_ROOT: u64 = MAP_SIZE;
    pub(crate) const TRIE_DATA_SIZE: u64 = MAP_SIZE + 8;
    pub(crate) const STORAGE_BUCKETS: u64 = MAP_SIZE;
    pub(crate) const STORAGE_LOG: u64 = MAP_SIZE + 8;
    pub(crate) const OPS_LINKS: u64 = MAP_SIZE + 16;
    pub(crate) const OPS_PRIV: u64 = MAP_SIZE + 64 + 64 + 136;
    pub(crate) const AUX_ASSOC: u64 = 64;
}

pub(crate) struct Guest {
    tables: Tables,
    symbols: Vec<(char, String, u64)>,
    /// Next free byte of the image.
    image: u64,
    /// Next free byte of direct-mapped memory (physical), and of vmalloc space.
    direct: u64,
    vmalloc: u64,
    scattered: u64,
    pub(crate) cpus: u64,
    maps: BTreeMap<u64, u64>,
    progs: BTreeMap<u64, u64>,
    /// Maps of struct_ops, whose type is not known before all types are.
    ops: Vec<Kva>,
    pub(crate) types: Types,
    pub(crate) release: String,
    /// Options for tests of what can be missing.
    pub(crate) with_btf: bool,
}

/// A hash map to be made.
pub(crate) struct HashSpec<'a> {
    pub(crate) name: &'a str,
    /// As `enum bpf_map_type`.
    pub(crate) kind: u32,
    pub(crate) prealloc: bool,
    pub(crate) key_size: u64,
    pub(crate) value_size: u64,
    pub(crate) max_entries: u64,
    pub(crate) buckets: u64,
    /// Keys and values; per-CPU ones have all CPUs' values one after the other.
    pub(crate) entries: &'a [(Vec<u8>, Vec<u8>)],
}

/// Where a hash map came to lie.
pub(crate) struct HashAt {
    pub(crate) map: Kva,
    pub(crate) buckets: Kva,
    /// The elements of the entries, in their order.
    pub(crate) elems: Vec<Kva>,
}

/// A hash like any other.
pub(crate) fn hash(key: &[u8]) -> u32 {
    crc32fast::hash(key)
}

impl Guest {
    pub(crate) fn new() -> Self {
        let mut tables = Tables::new(false);
        tables.map(Kva(IMAGE), Gpa(IMAGE_GPA), 21);
        tables.map(Kva(IMAGE + (2 << 20)), Gpa(IMAGE_GPA + (2 << 20)), 21);
        for gib in 0..4 {
            tables.map(Kva(DIRECT + (gib << 30)), Gpa(gib << 30), 30);
        }
        tables.mem.write(Gpa(IMAGE_GPA), &vec![0; 4 << 20]);
        Guest {
            tables,
            symbols: vec![('T', "_text".into(), IMAGE), ('T', "_stext".into(), IMAGE)],
            image: IMAGE + 0x1000,
            direct: 16 << 20,
            vmalloc: VMALLOC,
            scattered: 0x4000_0000,
            cpus: 2,
            maps: BTreeMap::new(),
            progs: BTreeMap::new(),
            ops: Vec::new(),
            types: Types::new(),
            release: "9.9.9-made-up".into(),
            with_btf: true,
        }
    }

    pub(crate) fn write(&mut self, at: Kva, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let to = at.offset(done as u64);
            let len = ((PAGE - to.0 % PAGE) as usize).min(bytes.len() - done);
            let gpa = self.tables.tables.translate(&self.tables.mem, to);
            let gpa = gpa.expect("the guest has mapped this");
            self.tables.mem.write(gpa, &bytes[done..done + len]);
            done += len;
        }
    }

    pub(crate) fn write_u64(&mut self, at: Kva, n: u64) {
        self.write(at, &n.to_le_bytes());
    }

    pub(crate) fn write_u32(&mut self, at: Kva, n: u32) {
        self.write(at, &n.to_le_bytes());
    }

    /// Takes the page of vmalloc space at `at` away.
    pub(crate) fn unmap(&mut self, at: Kva) {
        self.tables.unmap(at);
    }

    pub(crate) fn read_u64(&self, at: Kva) -> u64 {
        let gpa = self.tables.tables.translate(&self.tables.mem, at).unwrap();
        let mut raw = [0; 8];
        self.tables.mem.read(gpa, &mut raw).unwrap();
        u64::from_le_bytes(raw)
    }

    /// Zeroed memory in the direct map.
    pub(crate) fn alloc(&mut self, len: u64) -> Kva {
        let at = self.direct.next_multiple_of(64);
        self.direct = at + len;
        let pages = vec![0; (len + PAGE) as usize];
        // Fills up to the end of the page; what follows is not allocated yet.
        let end = self.direct.next_multiple_of(PAGE);
        self.tables.mem.write(Gpa(at), &pages[..(end - at) as usize]);
        Kva(DIRECT + at)
    }

    /// Zeroed memory that is contiguous only virtually.
    pub(crate) fn vmalloc(&mut self, len: u64) -> Kva {
        let at = self.vmalloc;
        for _ in 0..len.div_ceil(PAGE).max(1) {
            self.map_page(Kva(self.vmalloc));
            self.vmalloc += PAGE;
        }
        // A guard page, as the kernel leaves one.
        self.vmalloc += PAGE;
        Kva(at)
    }

    /// A named variable in the image.
    pub(crate) fn variable(&mut self, name: &str, bytes: &[u8]) -> Kva {
        let at = Kva(self.image.next_multiple_of(16));
        self.image = at.0 + bytes.len() as u64;
        self.symbols.push(('D', name.to_owned(), at.0));
        self.write(at, bytes);
        at
    }

    /// A per-CPU variable of any size up to a page, alone in its pages.
    pub(crate) fn percpu_struct(&mut self, name: &str, values: &[&[u8]]) -> Kva {
        self.image = self.image.next_multiple_of(PAGE);
        let at = self.variable(name, &vec![0; values[0].len()]);
        self.image = self.image.next_multiple_of(PAGE);
        for (cpu, value) in values.iter().enumerate() {
            let on_cpu = at.offset(Self::cpu_offset(cpu as u64));
            self.map_page(on_cpu);
            self.write(on_cpu, value);
        }
        at
    }

    /// The address of a variable.
    pub(crate) fn address(&self, name: &str) -> u64 {
        self.symbols.iter().find(|(_, n, _)| n == name).expect("a variable").2
    }

    /// A per-CPU variable of eight bytes.
    pub(crate) fn percpu_variable(&mut self, name: &str, values: &[u64]) {
        let at = self.variable(name, &[0; 8]);
        for (cpu, value) in values.iter().enumerate() {
            let on_cpu = at.offset(Self::cpu_offset(cpu as u64));
            self.map_page(on_cpu);
            self.write_u64(on_cpu, *value);
        }
    }

    /// A fresh page at `at`, anywhere in RAM.
    fn map_page(&mut self, at: Kva) {
        self.scattered -= PAGE;
        self.tables.mem.write(Gpa(self.scattered), &[0; PAGE as usize]);
        self.tables.map(Kva(at.0 & !(PAGE - 1)), Gpa(self.scattered), 12);
    }

    /// The `struct bpf_map` at `at` gets an id and its attributes.
    pub(crate) fn fill_map(&mut self, at: Kva, name: &str, attrs: [u64; 5]) -> u64 {
        let id = self.maps.len() as u64 + 2;
        self.maps.insert(id, at.0);
        let [kind, key_size, value_size, max_entries, flags] = attrs;
        let numbers = [kind, key_size, value_size, max_entries, flags, 0, id];
        for (i, n) in numbers.into_iter().enumerate() {
            self.write_u32(at.offset(at::MAP_KIND + 4 * i as u64), n as u32);
        }
        let mut cut = [0; 16];
        let len = name.len().min(15);
        cut[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.write(at.offset(40), &cut);
        self.write_u64(at.offset(at::MAP_REFCNT), 1);
        id
    }

    /// Gives the map its types: `btf` is a `struct btf` made by [`Guest::btf`].
    pub(crate) fn set_types(&mut self, map: Kva, btf: Kva, key: TypeId, value: TypeId) {
        self.write_u64(map.offset(56), btf.0);
        self.write_u32(map.offset(64), key);
        self.write_u32(map.offset(68), value);
    }

    /// A loaded object's `struct btf`.
    pub(crate) fn btf(&mut self, raw: &[u8]) -> Kva {
        let data = self.vmalloc(raw.len() as u64);
        self.write(data, raw);
        let at = self.alloc(32);
        self.write_u64(at, data.0);
        self.write_u32(at.offset(8), raw.len() as u32);
        self.write_u32(at.offset(12), 77);
        at
    }

    /// A loaded program that uses `maps`.
    pub(crate) fn prog(&mut self, btf: Kva, maps: &[Kva]) -> (Kva, Kva) {
        let used = self.alloc(8 * maps.len() as u64);
        for (i, map) in maps.iter().enumerate() {
            self.write_u64(used.offset(8 * i as u64), map.0);
        }
        let aux = self.alloc(72);
        let id = self.progs.len() as u64 + 1;
        self.write_u32(aux, maps.len() as u32);
        self.write_u32(aux.offset(4), id as u32);
        self.write_u64(aux.offset(8), used.0);
        self.write_u64(aux.offset(16), btf.0);
        let prog = self.vmalloc(24);
        self.write_u32(prog.offset(4), 27);
        self.write_u64(prog.offset(8), aux.0);
        self.progs.insert(id, prog.0);
        (prog, aux)
    }

    /// A map of a kind that is only listed.
    pub(crate) fn other(&mut self, name: &str, kind: u64) -> Kva {
        let at = self.alloc(256);
        self.fill_map(at, name, [kind, 4, 8, 16, 0]);
        at
    }

    /// A struct_ops map of sched_ext whose ops call themselves `ops_name`.
    pub(crate) fn struct_ops(&mut self, name: &str, btf: Kva, ops_name: &str) -> Kva {
        let at = self.alloc(512);
        self.fill_map(at, name, [26, 4, 208, 1, 0]);
        self.write_u64(at.offset(56), btf.0);
        let user = self.alloc(208);
        self.write_u64(at.offset(at::MAP_SIZE + 8), user.0);
        self.ops.push(at);
        self.write(at.offset(at::MAP_SIZE + 64 + 64 + 8), ops_name.as_bytes());
        at
    }

    /// Takes a map out of the list of maps.
    pub(crate) fn forget(&mut self, map: Kva) {
        self.maps.retain(|_, at| *at != map.0);
    }

    /// Attaches a struct_ops map as the scheduler at `sched`, with `progs` as operations.
    pub(crate) fn attach_ops(&mut self, map: Kva, sched: Kva, progs: &[Kva]) {
        self.write_u64(map.offset(at::OPS_PRIV), sched.0);
        // Every other operation is one that the scheduler does not have.
        let links = self.alloc(16 * progs.len() as u64 + 8);
        for (i, prog) in progs.iter().enumerate() {
            let link = self.alloc(16);
            self.write_u64(link.offset(8), prog.0);
            self.write_u64(links.offset(16 * i as u64 + 8), link.0);
        }
        self.write_u64(map.offset(at::OPS_LINKS), links.0);
        self.write_u32(map.offset(at::OPS_LINKS + 8), 2 * progs.len() as u32 + 1);
    }

    /// An ARRAY whose values lie eight bytes apart or more.
    pub(crate) fn array(&mut self, name: &str, value_size: u64, values: &[Vec<u8>]) -> Kva {
        let stride = value_size.next_multiple_of(8);
        let at = self.vmalloc(at::ARRAY_VALUES + stride * values.len() as u64);
        self.fill_map(at, name, [2, 4, value_size, values.len() as u64, 0]);
        self.write_u32(at.offset(at::ARRAY_ELEM_SIZE), stride as u32);
        for (i, value) in values.iter().enumerate() {
            self.write(at.offset(at::ARRAY_VALUES + stride * i as u64), value);
        }
        at
    }

    /// What is added to a per-CPU pointer for `cpu`.
    pub(crate) fn cpu_offset(cpu: u64) -> u64 {
        0x4000_0000 * (cpu + 1)
    }

    /// Per-CPU memory for `len` bytes: the pointer.
    pub(crate) fn percpu(&mut self, values: &[&[u8]]) -> u64 {
        // One pointer per call, in vmalloc space: each CPU's memory lies at a fixed distance.
        let len = values.iter().map(|v| v.len()).max().unwrap_or(8) as u64;
        let base = self.vmalloc;
        self.vmalloc += len.next_multiple_of(PAGE);
        for (cpu, value) in values.iter().enumerate() {
            let start = base + Self::cpu_offset(cpu as u64);
            for page in 0..len.div_ceil(PAGE) {
                self.map_page(Kva(start + page * PAGE));
            }
            self.write(Kva(start), value);
        }
        base
    }

    /// A PERCPU_ARRAY; each value is given for all CPUs.
    pub(crate) fn percpu_array(&mut self, name: &str, size: u64, rows: &[Vec<Vec<u8>>]) -> Kva {
        let at = self.vmalloc(at::ARRAY_VALUES + 8 * rows.len() as u64);
        self.fill_map(at, name, [6, 4, size, rows.len() as u64, 0]);
        self.write_u32(at.offset(at::ARRAY_ELEM_SIZE), size.next_multiple_of(8) as u32);
        for (i, row) in rows.iter().enumerate() {
            let row: Vec<&[u8]> = row.iter().map(Vec::as_slice).collect();
            let pointer = self.percpu(&row);
            self.write_u64(at.offset(at::ARRAY_VALUES + 8 * i as u64), pointer);
        }
        at
    }

    /// A hash map of any of the four kinds.
    pub(crate) fn hash(&mut self, spec: &HashSpec<'_>) -> HashAt {
        let percpu = matches!(spec.kind, 5 | 10);
        let value = at::ELEM_KEY + spec.key_size.next_multiple_of(8);
        let size = value + if percpu { 8 } else { spec.value_size.next_multiple_of(8) };
        let map = self.alloc(256);
        let flags = u64::from(!spec.prealloc);
        let attrs = [u64::from(spec.kind), spec.key_size, spec.value_size, spec.max_entries, flags];
        self.fill_map(map, spec.name, attrs);
        let buckets = self.vmalloc(at::BUCKET * spec.buckets);
        for i in 0..spec.buckets {
            self.write_u64(buckets.offset(i * at::BUCKET), i << 1 | 1);
        }
        let spare = if spec.kind == 1 { self.cpus } else { 0 };
        let slab = spec.prealloc.then(|| self.vmalloc(size * (spec.max_entries + spare)));
        self.write_u64(map.offset(at::HTAB_BUCKETS), buckets.0);
        self.write_u64(map.offset(at::HTAB_ELEMS), slab.unwrap_or(Kva(0)).0);
        self.write_u32(map.offset(at::HTAB_N_BUCKETS), spec.buckets as u32);
        self.write_u32(map.offset(at::HTAB_ELEM_SIZE), size as u32);
        let mut elems = Vec::new();
        for (i, (key, bytes)) in spec.entries.iter().enumerate() {
            // Not in order: the free list hands elements out from anywhere.
            let nth = spec.max_entries - 1 - i as u64;
            let elem = slab.map_or_else(|| self.alloc(size), |slab| slab.offset(nth * size));
            self.write(elem.offset(at::ELEM_KEY), key);
            if percpu {
                let row: Vec<&[u8]> = bytes.chunks(spec.value_size as usize).collect();
                let pointer = self.percpu(&row);
                self.write_u64(elem.offset(value), pointer);
            } else {
                self.write(elem.offset(value), bytes);
            }
            self.write_u32(elem.offset(at::ELEM_HASH), hash(key));
            self.link(buckets, spec.buckets, elem, key);
            elems.push(elem);
        }
        HashAt { map, buckets, elems }
    }

    /// Puts `elem` at the head of the list where `key` belongs.
    pub(crate) fn link(&mut self, buckets: Kva, count: u64, elem: Kva, key: &[u8]) {
        let head = buckets.offset(u64::from(hash(key)) % count * at::BUCKET);
        let first = self.read_u64(head);
        self.write_u64(elem, first);
        self.write_u64(head, elem.0);
    }

    /// Makes the map count `n` elements, spread over the CPUs.
    pub(crate) fn set_count(&mut self, map: Kva, n: i64) {
        let (a, b) = ((n + 1000).to_le_bytes(), (-1000i64).to_le_bytes());
        let pointer = self.percpu(&[&a, &b]);
        self.write_u64(map.offset(at::MAP_COUNT), pointer);
    }

    /// An xarray of `entries` under `root` (the `xa_head`), one or two levels deep.
    fn xarray(&mut self, root: Kva, entries: &BTreeMap<u64, u64>) {
        const SLOTS: u64 = 40;
        let top = self.alloc(SLOTS + 64 * 8);
        self.write(top, &[6]);
        self.write_u64(root, top.0 | 2);
        let mut leaves: BTreeMap<u64, Kva> = BTreeMap::new();
        for (index, entry) in entries {
            let leaf = match leaves.get(&(index / 64)) {
                Some(leaf) => *leaf,
                None => {
                    let leaf = self.alloc(SLOTS + 64 * 8);
                    self.write_u64(top.offset(SLOTS + index / 64 * 8), leaf.0 | 2);
                    leaves.insert(index / 64, leaf);
                    leaf
                }
            };
            self.write_u64(leaf.offset(SLOTS + index % 64 * 8), *entry);
        }
    }

    /// The finished guest.
    pub(crate) fn mem(mut self) -> Arc<dyn GuestMem> {
        Arc::new(self.finish())
    }

    fn finish(&mut self) -> FakeMem {
        let maps = std::mem::take(&mut self.maps);
        let progs = std::mem::take(&mut self.progs);
        for (name, entries) in [("map_idr", maps), ("prog_idr", progs)] {
            let idr = self.variable(name, &[0; 24]);
            self.xarray(idr.offset(8), &entries);
        }
        self.variable("map_idr_lock", &[0; 4]);
        let offsets: Vec<u8> =
            (0..self.cpus).flat_map(|c| Self::cpu_offset(c).to_le_bytes()).collect();
        self.variable("__per_cpu_offset", &offsets);
        let nr = (self.cpus as u32).to_le_bytes();
        self.variable("nr_cpu_ids", &nr);
        let mask = ((1u64 << self.cpus) - 1).to_le_bytes();
        self.variable("__cpu_possible_mask", &mask);
        self.variable("page_offset_base", &DIRECT.to_le_bytes());
        let mut uts = vec![0; 400];
        uts[4 + 130..4 + 130 + self.release.len()].copy_from_slice(self.release.as_bytes());
        self.variable("init_uts_ns", &uts);
        if self.with_btf {
            let ops = kernel_types(&mut self.types);
            for map in std::mem::take(&mut self.ops) {
                self.write_u32(map.offset(72), ops);
            }
            let raw = self.types.encode();
            let start = self.variable("__start_BTF", &raw);
            self.symbols.push(('D', "__stop_BTF".into(), start.0 + raw.len() as u64));
        }
        self.finish_symbols();
        self.tables.mem.clone()
    }

    /// Writes kallsyms and VMCOREINFO.
    fn finish_symbols(&mut self) {
        let phys_base = IMAGE_GPA as i64 - 0x100_0000;
        let root = (START_KERNEL_MAP + self.tables.root().0).wrapping_add_signed(-phys_base);
        self.symbols.push(('D', "swapper_pg_dir".into(), root));
        self.symbols.push(('B', "_end".into(), IMAGE + (4 << 20)));
        let named: Vec<_> = self.symbols.iter().map(|(k, n, _)| (*k, n.clone())).collect();
        let addresses: Vec<u64> = self.symbols.iter().map(|(.., at)| *at).collect();
        let coded = encode(&named);
        let count = (named.len() as u32).to_le_bytes();
        let num = self.variable("-", &count);
        let names = self.variable("-", &coded.names);
        let table = self.variable("-", &coded.table);
        let index = self.variable("-", &coded.index);
        let offsets = self.variable("-", &vec![0; addresses.len() * 4]);
        for (i, address) in addresses.iter().enumerate() {
            let at = offsets.offset(4 * i as u64);
            self.write_u32(at, address.wrapping_sub(at.0) as u32);
        }
        let find = |name: &str| self.symbols.iter().find(|(_, n, _)| n == name).unwrap().2;
        let text = format!(
            "OSRELEASE={}\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={:x}\nOFFSET(uts_namespace.name)=4\n\
             SYMBOL(swapper_pg_dir)={root:x}\nSYMBOL(_stext)={IMAGE:x}\n\
             SYMBOL(kallsyms_names)={:x}\nSYMBOL(kallsyms_num_syms)={:x}\n\
             SYMBOL(kallsyms_token_table)={:x}\nSYMBOL(kallsyms_token_index)={:x}\n\
             SYMBOL(kallsyms_offsets)={:x}\nNUMBER(phys_base)={phys_base}\n\
             NUMBER(pgtable_l5_enabled)=0\nKERNELOFFSET=0\n",
            self.release,
            find("init_uts_ns"),
            names.0,
            num.0,
            table.0,
            index.0,
            offsets.0,
        );
        let page = self.alloc(2 * PAGE).0.next_multiple_of(PAGE);
        self.write(Kva(page), text.as_bytes());
    }
}

/// The kernel's types, as far as they are read. Returns that of the values of struct_ops maps.
pub(crate) fn kernel_types(t: &mut Types) -> TypeId {
    let u8_ = t.int("unsigned char", 1, false);
    let u32_ = t.int("unsigned int", 4, false);
    let u64_ = t.int("unsigned long", 8, false);
    let char_ = t.int("char", 1, true);
    let ptr = t.ptr(0);
    let slots = t.array(ptr, 64);
    let byte = 8;
    t.structure("xarray", 16, &[("xa_flags", u32_, 4 * byte), ("xa_head", ptr, 8 * byte)]);
    let xarray = t.next_id() - 1;
    t.structure("idr", 24, &[("idr_rt", xarray, 0), ("idr_base", u32_, 16 * byte)]);
    t.structure("xa_node", 552, &[("shift", u8_, 0), ("slots", slots, 40 * byte)]);
    let atomic = t.structure("", 4, &[("counter", u32_, 0)]);
    let queued = t.structure("qspinlock", 4, &[("val", atomic, 0)]);
    let raw = t.structure("raw_spinlock", 4, &[("raw_lock", queued, 0)]);
    let spin = t.structure("spinlock", 4, &[("rlock", raw, 0)]);
    t.typedef("spinlock_t", spin);
    let atomic64 = t.structure("", 8, &[("counter", u64_, 0)]);
    let name = t.array(char_, 16);
    let numbers = [
        ("map_type", u32_, 8),
        ("key_size", u32_, 12),
        ("value_size", u32_, 16),
        ("max_entries", u32_, 20),
        ("map_flags", u32_, 24),
        ("id", u32_, 32),
        ("name", name, 40),
        ("btf", ptr, 56),
        ("btf_key_type_id", u32_, 64),
        ("btf_value_type_id", u32_, 68),
        ("btf_vmlinux_value_type_id", u32_, 72),
        ("frozen", u8_, 76),
        ("refcnt", atomic64, 96),
        ("elem_count", ptr, 112),
    ];
    let members = numbers.map(|(name, ty, at)| (name, ty, at * byte));
    let map = t.structure("bpf_map", at::MAP_SIZE as u32, &members);
    let value = t.array(char_, 0);
    let after = |n: u64| (at::MAP_SIZE + n) as u32 * byte;
    let array = [("map", map, 0), ("elem_size", u32_, after(0)), ("value", value, after(16))];
    t.structure("bpf_array", at::ARRAY_VALUES as u32, &array);
    let htab = [
        ("map", map, 0),
        ("buckets", ptr, after(0)),
        ("elems", ptr, after(8)),
        ("n_buckets", u32_, after(16)),
        ("elem_size", u32_, after(20)),
    ];
    t.structure("bpf_htab", at::MAP_SIZE as u32 + 24, &htab);
    let head = t.structure("hlist_nulls_head", 8, &[("first", ptr, 0)]);
    let node = t.structure("hlist_nulls_node", 16, &[("next", ptr, 0), ("pprev", ptr, 64)]);
    t.structure("bucket", 16, &[("head", head, 0), ("raw_lock", queued, 64)]);
    let elem = [("hash_node", node, 0), ("hash", u32_, 32 * byte), ("key", value, 40 * byte)];
    t.structure("htab_elem", 40, &elem);
    let btf = [("data", ptr, 0), ("data_size", u32_, 64), ("id", u32_, 96), ("base_btf", ptr, 128)];
    t.structure("btf", 32, &btf);
    let prog = [("type", u32_, 32), ("aux", ptr, 64), ("stats", ptr, 128)];
    t.structure("bpf_prog", 24, &prog);
    let stats = [("cnt", u64_, 0), ("nsecs", u64_, 64), ("misses", u64_, 128)];
    t.structure("bpf_prog_stats", 24, &stats);
    let kinds = [("BPF_PROG_TYPE_KPROBE", 2), ("BPF_PROG_TYPE_STRUCT_OPS", 27)];
    t.enumeration("bpf_prog_type", 4, false, &kinds);
    let aux = [
        ("used_map_cnt", u32_, 0),
        ("id", u32_, 32),
        ("used_maps", ptr, 64),
        ("btf", ptr, 128),
        ("name", name, 32 * byte),
        ("func_info", ptr, 48 * byte),
        ("func_info_cnt", u32_, 56 * byte),
        ("st_ops_assoc", ptr, at::AUX_ASSOC as u32 * byte),
    ];
    t.structure("bpf_prog_aux", 72, &aux);
    t.structure("bpf_link", 16, &[("prog", ptr, 64)]);
    let ops_name = t.array(char_, 128);
    let ops = [("flags", u64_, 0), ("name", ops_name, 64), ("priv", ptr, 136 * byte)];
    let ops = t.structure("sched_ext_ops", 144, &ops);
    let value_of_ops =
        t.structure("bpf_struct_ops_sched_ext_ops", 208, &[("data", ops, 64 * byte)]);
    let common = [("refcnt", u32_, 0), ("state", u32_, 32)];
    let common = t.structure("bpf_struct_ops_common_value", 8, &common);
    let ops_value = [("common", common, 0), ("data", value, 64 * byte)];
    let ops_value = t.structure("bpf_struct_ops_value", 64, &ops_value);
    let st_ops = [
        ("map", map, 0),
        ("uvalue", ptr, after(8)),
        ("links", ptr, after(16)),
        ("funcs_cnt", u32_, after(24)),
        ("kvalue", ops_value, after(64)),
    ];
    t.structure("bpf_struct_ops_map", 400, &st_ops);
    other_kinds(t, map, spin);
    let kinds = [
        ("BPF_MAP_TYPE_HASH", 1),
        ("BPF_MAP_TYPE_ARRAY", 2),
        ("BPF_MAP_TYPE_PERCPU_HASH", 5),
        ("BPF_MAP_TYPE_PERCPU_ARRAY", 6),
        ("BPF_MAP_TYPE_LRU_HASH", 9),
        ("BPF_MAP_TYPE_LRU_PERCPU_HASH", 10),
        ("BPF_MAP_TYPE_CGROUP_STORAGE_DEPRECATED", 19),
        ("BPF_MAP_TYPE_CGROUP_STORAGE", 19),
        ("BPF_MAP_TYPE_PROG_ARRAY", 3),
        ("BPF_MAP_TYPE_LPM_TRIE", 11),
        ("BPF_MAP_TYPE_QUEUE", 22),
        ("BPF_MAP_TYPE_STRUCT_OPS", 26),
        ("BPF_MAP_TYPE_TASK_STORAGE", 29),
        ("BPF_MAP_TYPE_STACK_TRACE", 7),
        ("BPF_MAP_TYPE_RINGBUF", 27),
    ];
    t.enumeration("bpf_map_type", 4, false, &kinds);
    value_of_ops
}

/// Types of the kinds of map that are neither tables nor arrays, and of what they lead to.
fn other_kinds(t: &mut Types, map: TypeId, lock: TypeId) {
    let int = t.int("int", 4, true);
    let u32_ = t.int("u32", 4, false);
    let ptr = t.ptr(0);
    let bytes = t.array(int, 0);
    let bits = |at: u64| at as u32 * 8;
    let queue = [
        ("map", map, 0),
        ("lock", lock, bits(at::QUEUE_LOCK)),
        ("head", u32_, bits(at::QUEUE_HEAD)),
        ("tail", u32_, bits(at::QUEUE_HEAD + 4)),
        ("size", u32_, bits(at::QUEUE_HEAD + 8)),
        ("elements", bytes, bits(at::QUEUE_ELEMENTS)),
    ];
    t.structure("bpf_queue_stack", at::QUEUE_ELEMENTS as u32, &queue);
    let trie = [
        ("map", map, 0),
        ("root", ptr, bits(at::TRIE_ROOT)),
        ("data_size", u32_, bits(at::TRIE_DATA_SIZE)),
    ];
    t.structure("lpm_trie", at::TRIE_DATA_SIZE as u32 + 8, &trie);
    let children = t.array(ptr, 2);
    let node = [
        ("child", children, 0),
        ("prefixlen", u32_, bits(16)),
        ("flags", u32_, bits(20)),
        ("data", bytes, bits(24)),
    ];
    t.structure("lpm_trie_node", 24, &node);
    let head = t.structure("hlist_head", 8, &[("first", ptr, 0)]);
    let link = t.structure("hlist_node", 16, &[("next", ptr, 0), ("pprev", ptr, 64)]);
    t.structure("bpf_local_storage_map_bucket", 16, &[("list", head, 0)]);
    let storage = [
        ("map", map, 0),
        ("buckets", ptr, bits(at::STORAGE_BUCKETS)),
        ("bucket_log", u32_, bits(at::STORAGE_LOG)),
    ];
    t.structure("bpf_local_storage_map", at::STORAGE_LOG as u32 + 8, &storage);
    let data = t.structure("bpf_local_storage_data", 8, &[("smap", ptr, 0), ("data", bytes, 64)]);
    let elem = [("map_node", link, 0), ("local_storage", ptr, bits(16)), ("sdata", data, bits(24))];
    t.structure("bpf_local_storage_elem", 32, &elem);
    t.structure("bpf_local_storage", 8, &[("owner", ptr, 0)]);
    t.structure("task_struct", 16, &[("pid", int, bits(8))]);
}

impl Guest {
    /// A QUEUE whose values lie from slot `tail` on.
    pub(crate) fn queue(&mut self, name: &str, slots: u32, tail: u32, values: &[Vec<u8>]) -> Kva {
        let size = values[0].len() as u64;
        let at = self.vmalloc(at::QUEUE_ELEMENTS + size * u64::from(slots));
        self.fill_map(at, name, [22, 0, size, u64::from(slots) - 1, 0]);
        let head = (tail + values.len() as u32) % slots;
        for (i, n) in [head, tail, slots].into_iter().enumerate() {
            self.write_u32(at.offset(at::QUEUE_HEAD + 4 * i as u64), n);
        }
        for (i, value) in values.iter().enumerate() {
            let slot = (u64::from(tail) + i as u64) % u64::from(slots);
            self.write(at.offset(at::QUEUE_ELEMENTS + slot * size), value);
        }
        at
    }

    /// A node of a trie: length of the prefix, data, value (none: it only branches), children.
    pub(crate) fn node(
        &mut self,
        len: u32,
        data: [u8; 4],
        value: Option<u64>,
        to: [Kva; 2],
    ) -> Kva {
        let at = self.alloc(64);
        self.write_u64(at, to[0].0);
        self.write_u64(at.offset(8), to[1].0);
        self.write_u32(at.offset(16), len);
        self.write_u32(at.offset(20), u32::from(value.is_none()));
        self.write(at.offset(24), &data);
        self.write_u64(at.offset(28), value.unwrap_or(0));
        at
    }

    /// An LPM_TRIE of four bytes of data and values of eight.
    pub(crate) fn trie(&mut self, name: &str, root: Kva) -> Kva {
        let at = self.alloc(256);
        self.fill_map(at, name, [11, 8, 8, 16, 1]);
        self.write_u64(at.offset(at::TRIE_ROOT), root.0);
        self.write_u32(at.offset(at::TRIE_DATA_SIZE), 4);
        at
    }

    /// A TASK_STORAGE of two buckets, and its elements: an id of a task (none: it is being
    /// freed), and a value.
    pub(crate) fn storage(&mut self, name: &str, tasks: &[(Option<u32>, u64)]) -> (Kva, Vec<Kva>) {
        let at = self.alloc(256);
        self.fill_map(at, name, [29, 4, 8, 0, 1]);
        let buckets = self.alloc(32);
        self.write_u64(at.offset(at::STORAGE_BUCKETS), buckets.0);
        self.write_u32(at.offset(at::STORAGE_LOG), 1);
        let mut elems = Vec::new();
        for (i, (pid, value)) in tasks.iter().enumerate() {
            let (elem, storage) = (self.alloc(48), self.alloc(8));
            let head = buckets.offset(16 * (i as u64 % 2));
            let first = self.read_u64(head);
            self.write_u64(elem, first);
            self.write_u64(head, elem.0);
            self.write_u64(elem.offset(16), storage.0);
            if let Some(pid) = pid {
                let task = self.alloc(16);
                self.write_u32(task.offset(8), *pid);
                self.write_u64(storage, task.0);
            }
            self.write_u64(elem.offset(32), *value);
            elems.push(elem);
        }
        (at, elems)
    }

    /// A PROG_ARRAY: slots and ids of programs.
    pub(crate) fn prog_array(&mut self, name: &str, progs: &[(u64, u32)]) -> Kva {
        let at = self.vmalloc(at::ARRAY_VALUES + 8 * 8);
        self.fill_map(at, name, [3, 4, 4, 8, 0]);
        for (slot, id) in progs {
            let (aux, prog) = (self.alloc(32), self.alloc(16));
            self.write_u32(aux.offset(4), *id);
            self.write_u64(prog.offset(8), aux.0);
            self.write_u64(at.offset(at::ARRAY_VALUES + 8 * slot), prog.0);
        }
        at
    }
}
