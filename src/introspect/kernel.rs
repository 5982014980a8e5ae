//! A guest kernel, opened: address space, symbols, types, CPUs.

use std::sync::{Arc, OnceLock};

use super::bpf::BpfState;
use super::error::{IntrospectError, ReadError};
use super::kallsyms;
use super::paging::PageTables;
use super::sched::SchedState;
use super::space::{AddressSpace, START_KERNEL_MAP};
use super::symbols::Symbols;
use super::view::Layout;
use super::vmcoreinfo::{self, Vmcoreinfo};
use crate::btf::{Btf, TypeId, Want};
use crate::mem::{Gpa, GuestMem, Kva};

/// Where the direct map begins when it does not move, with 4 and with 5 levels of page tables
/// (Documentation/arch/x86/x86_64/mm.rst).
const DIRECT_MAP: [u64; 2] = [0xffff_8880_0000_0000, 0xff11_0000_0000_0000];

/// Offset of `release` in `struct new_utsname`: user-space ABI, two strings of 65 bytes before it.
const UTS_RELEASE: u64 = 130;
const UTS_LEN: usize = 65;

/// More CPUs than x86-64 kernels can be built for.
const MAX_CPUS: u32 = 8192;

/// NUMA nodes that they can be built for.
const MAX_NODES: u32 = 1024;

/// More BTF than any kernel has (distribution kernels have 5 to 10 MiB).
const MAX_BTF: u64 = 128 << 20;

/// A guest kernel, read from its RAM alone.
///
/// Opened once per machine; all later reads go through it. It holds nothing of the guest's that
/// changes while the kernel runs.
pub struct Kernel {
    pub(super) space: AddressSpace,
    layout: Layout,
    release: String,
    symbols: Arc<Symbols>,
    btf: Arc<Btf>,
    cpus: Cpus,
    pub(super) bpf: OnceLock<Result<BpfState, IntrospectError>>,
    pub(super) sched: OnceLock<Result<SchedState, IntrospectError>>,
}

/// What per-CPU addresses are made of.
struct Cpus {
    /// `__per_cpu_offset` of each CPU below `nr_cpu_ids`; `None` for one that cannot exist.
    offsets: Vec<Option<u64>>,
}

impl Kernel {
    /// Finds the kernel in `mem` and reads its symbols and types.
    ///
    /// # Errors
    /// [`IntrospectError::NotYet`] when there is no running kernel (so far);
    /// [`IntrospectError::NotBuilt`] when it lacks symbols of data or BTF;
    /// [`IntrospectError::Damaged`] when it contradicts itself.
    pub fn open(mem: Arc<dyn GuestMem>) -> Result<Kernel, IntrospectError> {
        let (space, info) = find(&mem)?;
        let symbols = Arc::new(kallsyms::read(&space, &info)?);
        let five_levels = has_five_levels(&info);
        let base = match symbols.get("page_offset_base") {
            Some(at) => space.read_u64(at)?,
            None => DIRECT_MAP[usize::from(five_levels)],
        };
        let phys_base = info.number("phys_base").unwrap_or(0) as u64;
        let tables = info.symbol("swapper_pg_dir").map_or(0, |at| in_image(at, phys_base).0);
        let image = symbols.get("_text").zip(symbols.get("_end")).map(|(s, e)| (s.0, e.0));
        let (direct_map, note) = (base, info.at.0);
        let layout = Layout { tables, five_levels, direct_map, image, phys_base, note };
        // Without these two the page tables do as well, only slower.
        let space = layout.space(mem);
        let btf = read_btf(&space, &symbols)?;
        let cpus = Cpus::read(&space, &symbols, &btf)?;
        let release = info.release().to_owned();
        let (bpf, sched) = (OnceLock::new(), OnceLock::new());
        Ok(Kernel { space, layout, release, symbols, btf, cpus, bpf, sched })
    }

    /// The kernel's release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Where it is, for those who look at a copy of this memory later.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The symbols of the kernel image.
    #[must_use]
    pub fn symbols(&self) -> &Arc<Symbols> {
        &self.symbols
    }

    /// The kernel's types.
    #[must_use]
    pub fn btf(&self) -> &Arc<Btf> {
        &self.btf
    }

    /// One more than the highest number a CPU of this machine can have.
    #[must_use]
    pub fn nr_cpu_ids(&self) -> u32 {
        self.cpus.offsets.len() as u32
    }

    /// One more than the highest number a NUMA node of this machine can have, at most
    /// [`MAX_NODES`]; a kernel without such a number has one node.
    pub(crate) fn nr_node_ids(&self) -> u32 {
        let at = self.symbols().get("nr_node_ids");
        at.and_then(|at| self.read_u32(at).ok()).unwrap_or(1).min(MAX_NODES)
    }

    /// What is added to the address of a per-CPU variable for `cpu`; `None` when there can be no
    /// such CPU.
    #[must_use]
    pub fn per_cpu_offset(&self, cpu: u32) -> Option<u64> {
        *self.cpus.offsets.get(cpu as usize)?
    }

    /// Where `cpu` has the per-CPU variable `symbol`.
    ///
    /// # Errors
    /// No such symbol, or no such CPU.
    pub fn per_cpu(&self, symbol: &str, cpu: u32) -> Result<Kva, IntrospectError> {
        let base = self.symbols.address(symbol)?;
        let offset = self.per_cpu_offset(cpu).ok_or_else(|| {
            let n = self.nr_cpu_ids();
            IntrospectError::Type(format!("there is no CPU {cpu}: this machine has 0 to {}", n - 1))
        })?;
        Ok(base.offset(offset))
    }

    /// The guest-physical address behind a kernel-virtual one.
    #[must_use]
    pub fn translate(&self, at: Kva) -> Option<Gpa> {
        self.space.translate(at).ok()
    }

    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// [`ReadError`] when any byte of the range is not mapped or not RAM.
    pub fn read(&self, at: Kva, buf: &mut [u8]) -> Result<(), ReadError> {
        self.space.read(at, buf)
    }

    /// Fills the beginning of `buf` from `at`, as far as there is memory; how far that is.
    pub(super) fn read_prefix(&self, at: Kva, buf: &mut [u8]) -> usize {
        self.space.read_prefix(at, buf)
    }

    /// Reads a 64-bit number.
    ///
    /// # Errors
    /// As [`Kernel::read`].
    pub fn read_u64(&self, at: Kva) -> Result<u64, ReadError> {
        self.space.read_u64(at)
    }

    /// Reads a 32-bit number.
    ///
    /// # Errors
    /// As [`Kernel::read`].
    pub fn read_u32(&self, at: Kva) -> Result<u32, ReadError> {
        self.space.read_u32(at)
    }

    /// Reads a string of at most `limit` bytes, its NUL included. Bytes that are not UTF-8 are
    /// replaced.
    ///
    /// # Errors
    /// As [`Kernel::read`]; also when there is no NUL within `limit` bytes.
    pub fn read_cstr(&self, at: Kva, limit: usize) -> Result<String, ReadError> {
        let raw = self.space.read_cstr(at, limit)?;
        Ok(String::from_utf8_lossy(&raw).into_owned())
    }

    /// The kernel's type that C calls `name` (`struct rq`).
    ///
    /// # Errors
    /// [`IntrospectError::Type`] when there is none.
    pub fn type_id(&self, name: &str) -> Result<TypeId, IntrospectError> {
        self.btf.find_c(name).ok_or_else(|| {
            let kernel = &self.release;
            IntrospectError::Type(format!("the types of kernel {kernel} have no '{name}'"))
        })
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({}, {} CPUs)", self.release, self.nr_cpu_ids())
    }
}

/// Where an address of the image lies in physical memory.
fn in_image(at: Kva, phys_base: u64) -> Gpa {
    Gpa(at.0.wrapping_sub(START_KERNEL_MAP).wrapping_add(phys_base))
}

fn has_five_levels(info: &Vmcoreinfo) -> bool {
    info.number("pgtable_l5_enabled").unwrap_or(0) == 1
}

/// The first page of VMCOREINFO that proves to be a running kernel's.
fn find(mem: &Arc<dyn GuestMem>) -> Result<(AddressSpace, Vmcoreinfo), IntrospectError> {
    let candidates = vmcoreinfo::scan(mem.as_ref());
    let count = candidates.found.len();
    let mut why = String::new();
    for info in candidates.found {
        match prove(mem, &info) {
            Ok(space) => return Ok((space, info)),
            Err(reason) => why = format!("the one at {}: {reason}", info.at),
        }
    }
    let more = if candidates.cut { " or more" } else { "" };
    Err(IntrospectError::NotYet(match count {
        0 => "no VMCOREINFO in its RAM (kernels write it while they start; \
              CONFIG_VMCORE_INFO must be on)"
            .into(),
        n => format!("{n}{more} pages of its RAM look like VMCOREINFO, none is in use ({why})"),
    }))
}

/// Uses `info` for what it says it is: page tables under which the kernel's text is where it says,
/// and the release it names. Decoys and leftovers of an earlier kernel fail here.
fn prove(mem: &Arc<dyn GuestMem>, info: &Vmcoreinfo) -> Result<AddressSpace, String> {
    let phys_base = info.number("phys_base").unwrap_or(0) as u64;
    let image = |at: Kva| in_image(at, phys_base);
    let symbol = |name| info.symbol(name).ok_or_else(|| format!("it does not name {name}"));
    let tables = PageTables::new(image(symbol("swapper_pg_dir")?), has_five_levels(info));
    let space = AddressSpace::new(mem.clone(), tables);
    let text = symbol("_stext")?;
    match space.translate(text) {
        Ok(gpa) if gpa == image(text) => {}
        Ok(gpa) => return Err(format!("_stext is at {gpa}, not at {}", image(text))),
        Err(e) => return Err(e.to_string()),
    }
    let uts = symbol("init_uts_ns")?.offset(info.offset("uts_namespace.name").unwrap_or(0));
    let running = space.read_cstr(uts.offset(UTS_RELEASE), UTS_LEN).map_err(|e| e.to_string())?;
    if running != info.release().as_bytes() {
        let running = String::from_utf8_lossy(&running).into_owned();
        return Err(format!("it is of {}, but the kernel is {running:?}", info.release()));
    }
    Ok(space)
}

fn read_btf(space: &AddressSpace, symbols: &Symbols) -> Result<Arc<Btf>, IntrospectError> {
    let (Some(start), Some(end)) = (symbols.get("__start_BTF"), symbols.get("__stop_BTF")) else {
        return Err(IntrospectError::NotBuilt {
            option: "CONFIG_DEBUG_INFO_BTF",
            detail: "it has no symbol __start_BTF".into(),
        });
    };
    let len = end.0.saturating_sub(start.0);
    if len == 0 || len > MAX_BTF {
        return Err(IntrospectError::Damaged(format!("its BTF is {len} bytes long")));
    }
    let mut raw = vec![0; len as usize];
    space.read(start, &mut raw)?;
    Btf::parse(&raw).map_err(|e| IntrospectError::Damaged(format!("its BTF is damaged: {e}")))
}

impl Cpus {
    fn read(space: &AddressSpace, symbols: &Symbols, btf: &Btf) -> Result<Self, IntrospectError> {
        // A kernel for one CPU has none of these symbols, and per-CPU variables are plain ones.
        let Some(table) = symbols.get("__per_cpu_offset") else {
            return Ok(Cpus { offsets: vec![Some(0)] });
        };
        // CONFIG_FORCE_NR_CPUS: as many as the mask has bits, of which those that are set count.
        let bits = || {
            let size = btf.find("cpumask", Want::Struct).and_then(|id| btf.size_of(id));
            size.map_or(MAX_CPUS, |bytes| bytes.saturating_mul(8).min(MAX_CPUS.into()) as u32)
        };
        let count = match symbols.get("nr_cpu_ids") {
            Some(at) => space.read_u32(at)?,
            None => bits(),
        };
        if count == 0 || count > MAX_CPUS {
            return Err(IntrospectError::Damaged(format!("it claims to have {count} CPUs")));
        }
        let mut mask = vec![0xff; (count as usize).next_multiple_of(64) / 8];
        if let Some(at) = symbols.get("__cpu_possible_mask") {
            let there = space.read_prefix(at, &mut mask);
            mask[there..].fill(0);
        }
        let possible = |cpu: usize| mask[cpu / 8] >> (cpu % 8) & 1 == 1;
        let end = (0..count as usize).rev().find(|c| possible(*c)).map_or(0, |last| last + 1);
        if end == 0 {
            return Err(IntrospectError::Damaged("its mask of possible CPUs is empty".into()));
        }
        let mut raw = vec![0; end * 8];
        space.read(table, &mut raw)?;
        let offsets = raw.as_chunks().0.iter().enumerate();
        let offsets = offsets.map(|(cpu, b)| possible(cpu).then(|| u64::from_le_bytes(*b)));
        Ok(Cpus { offsets: offsets.collect() })
    }
}
