//! From a guest kernel to a snapshot.
//!
//! ```text
//! running   prepare()   learn where maps live, warm every cache
//! stopped   capture()   copy bytes, decode nothing ──▶ RawCapture
//! running   finish()    ──▶ Snapshot; a map is decoded when somebody looks at it
//! ```
//!
//! The part of the model that knows introspection; `symbols.rs` keeps one of its tables, `ram.rs`
//! all of memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::btf::Btf;
use crate::introspect::{
    self, Budget, CpuAt, DomainAt, Domains, Dsq, DsqKind, GroupAt, IntrospectError, Kernel, Layout,
    Leads, MapInfo, MapList, Owned, ProgInfo, ProgList, Psi, PsiAt, RawMap, RawSched, SchedRequest,
    ScxSched, TaskAt, Where,
};
use crate::mem::GuestMem;

use super::contents::{CapturedMap, Cast, MapAttrs};
use super::decoded::Decoded;
use super::error::SnapshotError;
use super::kernel::unreadable;
use super::ram;
use super::{
    CpuRegisters, CpuState, DomainState, DomainStates, DsqState, Extents, KernelState, Meta,
    OwnState, Places, ProgState, PsiGroup, PsiState, SchedState, ScxState, Snapshot, Symbols,
    TaskState, Variable,
};
use crate::words::nearest_first;

/// A kernel that cannot be captured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// It has not come far enough: try again later.
    #[error("{0}")]
    NotYet(String),
    /// It cannot be read at all.
    #[error("{0}")]
    Failed(String),
}

impl From<IntrospectError> for CaptureError {
    fn from(error: IntrospectError) -> Self {
        match error {
            IntrospectError::NotYet(_) => CaptureError::NotYet(error.to_string()),
            _ => CaptureError::Failed(error.to_string()),
        }
    }
}

/// What to copy, and what that may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureRequest {
    /// Names of the maps to copy, full, cut or `name#id`; all of them when `None`. The others are
    /// listed with their attributes.
    pub maps: Option<Vec<String>>,
    /// Whether to copy CPUs, tasks and sched_ext.
    pub sched: bool,
    /// Names of variables of the kernel to copy as well.
    pub kernel: Vec<String>,
    /// Whether to take the registers of the CPUs, which belong to all of memory anyway. Whoever
    /// stops the machine does that and hands them to [`RawCapture::with_registers`].
    pub registers: bool,
    /// Bytes of memory to keep at most, when all of it that was ever touched is to be kept. They
    /// do not count among `bytes`, nor does the time for copying them among `time`.
    pub ram: Option<u64>,
    /// Bytes that are copied at most.
    pub bytes: u64,
    /// How long the copying may take.
    pub time: Duration,
}

impl Default for CaptureRequest {
    /// Every map and the scheduling state, within 256 MiB and a second: what a scheduler of
    /// ordinary size never reaches.
    fn default() -> Self {
        let (bytes, time) = (256 << 20, Duration::from_secs(1));
        CaptureRequest {
            maps: None,
            sched: true,
            kernel: Vec::new(),
            registers: false,
            ram: None,
            bytes,
            time,
        }
    }
}

impl CaptureRequest {
    /// Whether the registers of the CPUs are to be taken.
    #[must_use]
    pub fn wants_registers(&self) -> bool {
        self.registers || self.ram.is_some()
    }

    fn of_kernel(&self) -> SchedRequest<'_> {
        SchedRequest { state: self.sched, variables: &self.kernel }
    }
}

/// Takes captures of one machine.
pub struct Capturer {
    mem: Arc<dyn GuestMem>,
    kernel: Kernel,
    /// Memory to copy all of the guest's into.
    room: Mutex<Vec<u8>>,
    /// What programs prove of numbers in maps.
    casts: Mutex<Arc<Casts>>,
}

/// By id and address of the map.
type Casts = HashMap<(u32, u64), Vec<Cast>>;

impl Capturer {
    /// Finds the kernel in a machine's memory.
    ///
    /// # Errors
    /// [`CaptureError::NotYet`] while it is starting, [`CaptureError::Failed`] when it is none
    /// that can be read.
    pub fn open(mem: Arc<dyn GuestMem>) -> Result<Capturer, CaptureError> {
        let kernel = Kernel::open(mem.clone())?;
        Ok(Capturer { mem, kernel, room: Mutex::default(), casts: Mutex::default() })
    }

    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The kernel's release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> &str {
        self.kernel.release()
    }

    /// Where in the kernel an address is, as `do_idle+0x12`; `None` of one that is in no function
    /// of its own.
    #[must_use]
    pub fn place(&self, at: u64) -> Option<String> {
        let (name, offset) = self.kernel.symbols().find_addr(crate::mem::Kva(at))?;
        Some(format!("{name}+{offset:#x}"))
    }

    /// Does beforehand, while the machine runs, what makes [`Capturer::capture`] short: faults in
    /// the memory, reads the types of objects that were not seen before, finds names, and copies
    /// once for practice.
    ///
    /// # Errors
    /// As [`Capturer::capture`]. A capture without preparation gives the same result, later.
    /// What is returned is a [`SnapshotError::MapNotFound`] for each requested name that no map
    /// has, and a [`SnapshotError::NoMatch`] for each that no variable of the kernel has.
    pub fn prepare(&self, request: &CaptureRequest) -> Result<Vec<SnapshotError>, CaptureError> {
        self.mem.prefault();
        self.kernel.look_again_for_names();
        let maps = self.kernel.maps()?.maps;
        let wanted: Vec<MapInfo> =
            order(&maps, request).into_iter().map(|i| maps[i].clone()).collect();
        let mut budget = Budget::new(request.bytes, request.time);
        if request.sched {
            // Reads the types of their objects; what is wrong is told by the capture.
            let _ = self.kernel.progs(&mut budget);
        }
        for map in &maps {
            // What is special in its type is found out once.
            map.btf.iter().for_each(|btf| drop(btf.specials(map.value_type)));
        }
        self.learn_casts(&maps, &mut budget);
        let mut practice = self.kernel.copy_sched(request.of_kernel(), &mut budget);
        self.kernel.rehearse(&wanted, &mut practice.memory, budget);
        self.kernel.recycle_sched(practice);
        let mut missing = missing(&maps, request);
        missing.extend(self.unknown(request));
        if let Some(most) = request.ram
            && let Err(error) = ram::make_room(&*self.mem, most, &mut self.room())
        {
            missing.push(unreadable("the guest's memory", error));
        }
        Ok(missing)
    }

    /// What the programs prove of numbers in maps takes long to find out, and does not change.
    fn learn_casts(&self, maps: &[MapInfo], budget: &mut Budget) {
        let found = self.kernel.casts(maps, budget).unwrap_or_default();
        let found = found.into_iter().map(|casts| casts.into_iter().map(cast).collect());
        let mut casts = self.casts.lock().unwrap_or_else(PoisonError::into_inner);
        *casts = Arc::new(maps.iter().map(|map| (map.id, map.kva.0)).zip(found).collect());
    }

    fn room(&self) -> MutexGuard<'_, Vec<u8>> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requested variables that the kernel does not have.
    fn unknown<'a>(
        &'a self,
        request: &'a CaptureRequest,
    ) -> impl Iterator<Item = SnapshotError> + use<'a> {
        let symbols = self.kernel.symbols();
        let modules = self.kernel.module_symbols(&request.kernel);
        let unknown = request.kernel.iter().filter(move |name| {
            symbols.lookup(name).is_empty() && !modules.contains(name.as_str())
        });
        unknown.map(|name| SnapshotError::NoMatch {
            map: "kallsyms".to_owned(),
            op: format!("kernel: {name:?}"),
            len: symbols.len(),
            available_keys: symbols.alike(name).into_iter().map(str::to_owned).collect(),
        })
    }

    /// Copies what `request` asks for. Meant for a stopped machine: of one that runs, values may
    /// be torn anywhere.
    ///
    /// # Errors
    /// [`CaptureError::Failed`] when the list of maps cannot be read. A single map that cannot be
    /// is in the snapshot, with the reason.
    pub fn capture(&self, request: &CaptureRequest) -> Result<RawCapture, CaptureError> {
        let start = Instant::now();
        let mut budget = Budget::new(request.bytes, request.time);
        // First, because it is small: a huge map must not use up what is granted to all.
        let mut sched = self.kernel.copy_sched(request.of_kernel(), &mut budget);
        let progs = request.sched.then(|| self.kernel.progs(&mut budget));
        let MapList { maps, torn } = self.kernel.maps()?;
        let owned = self.owned(&sched, &maps, progs.as_ref());
        let mut raw: Vec<Option<RawMap>> = maps.iter().map(|_| None).collect();
        for index in order(&maps, request) {
            raw[index] = Some(self.kernel.copy_map(&maps[index], &mut budget));
        }
        let copied = maps.iter().zip(&raw).filter_map(|(map, raw)| Some((map, raw.as_ref()?)));
        let leads = self.kernel.copy_leads(copied, &mut sched.memory, &mut budget);
        let maps = maps.into_iter().zip(raw).collect();
        let room = || std::mem::take(&mut *self.room());
        let ram = request.ram.map(|most| ram::copy(&*self.mem, most, room()));
        let kernel = Some((sched, OfKernel::new(&self.kernel), request.sched));
        let took = start.elapsed();
        let casts = self.casts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let registers = (Vec::new(), None);
        Ok(RawCapture { maps, torn, kernel, progs, leads, owned, ram, casts, took, registers })
    }

    /// What belongs to each scheduler.
    fn owned(
        &self,
        sched: &RawSched,
        maps: &[MapInfo],
        progs: Option<&Result<ProgList, IntrospectError>>,
    ) -> Vec<Owned> {
        let scheds = sched.scx.iter().flat_map(|scx| &scx.scheds).map(|sched| sched.at);
        let scheds: Vec<u64> = scheds.collect();
        match progs {
            Some(Ok(progs)) => self.kernel.owned(&scheds, maps, progs),
            Some(Err(e)) => {
                let progs = ProgList { incomplete: Some(e.to_string()), ..ProgList::default() };
                self.kernel.owned(&scheds, maps, &progs)
            }
            None => Vec::new(),
        }
    }
}

/// The maps that are copied: the smallest first, so that one huge map does not use up what is
/// granted to all.
fn order(maps: &[MapInfo], request: &CaptureRequest) -> Vec<usize> {
    let size = |map: &MapInfo| {
        u64::from(map.max_entries)
            .saturating_mul(u64::from(map.key_size).saturating_add(map.value_size.into()))
    };
    let mut order: Vec<usize> = (0..maps.len()).filter(|&i| wants(request, &maps[i])).collect();
    order.sort_by_key(|&i| size(&maps[i]));
    order
}

fn wants(request: &CaptureRequest, map: &MapInfo) -> bool {
    request.maps.as_ref().is_none_or(|names| names.iter().any(|name| is_called(map, name)))
}

/// As [`Snapshot::map`] takes names.
fn is_called(map: &MapInfo, name: &str) -> bool {
    let plain = |name: &str| map.name == name || map.full_name.as_deref() == Some(name);
    let id = || name.rsplit_once('#').and_then(|(name, id)| Some((name, id.parse::<u32>().ok()?)));
    plain(name) || id().is_some_and(|(name, id)| map.id == id && plain(name))
}

/// Requested names that no map has.
fn missing(maps: &[MapInfo], request: &CaptureRequest) -> Vec<SnapshotError> {
    let asked = request.maps.iter().flatten();
    asked
        .filter(|name| !maps.iter().any(|map| is_called(map, name)))
        .map(|name| {
            let names = maps.iter().map(|m| m.full_name.as_ref().unwrap_or(&m.name).clone());
            let available = nearest_first(name, names.collect());
            SnapshotError::MapNotFound { requested: name.clone(), available }
        })
        .collect()
}

/// What of a kernel does not change while it runs.
struct OfKernel {
    btf: Arc<Btf>,
    symbols: Arc<introspect::Symbols>,
    per_cpu: Vec<Option<u64>>,
    layout: Layout,
}

impl OfKernel {
    fn new(kernel: &Kernel) -> OfKernel {
        let cpus = 0..kernel.nr_cpu_ids();
        OfKernel {
            btf: kernel.btf().clone(),
            symbols: kernel.symbols().clone(),
            per_cpu: cpus.map(|cpu| kernel.per_cpu_offset(cpu)).collect(),
            layout: kernel.layout(),
        }
    }
}

/// What was copied, not decoded yet.
pub struct RawCapture {
    maps: Vec<(MapInfo, Option<RawMap>)>,
    torn: Option<String>,
    /// What was copied of the kernel, what of it stays, and whether its state was asked for.
    kernel: Option<(RawSched, OfKernel, bool)>,
    progs: Option<Result<ProgList, IntrospectError>>,
    /// Of what special members lead to, all but the bytes.
    leads: Leads,
    /// What belongs to each scheduler, in their order.
    owned: Vec<Owned>,
    /// Those of the CPUs, and why some are missing.
    registers: (Vec<CpuRegisters>, Option<String>),
    /// All of memory, if that was asked for.
    ram: Option<Result<ram::Copied, String>>,
    casts: Arc<Casts>,
    took: Duration,
}

impl RawCapture {
    /// How long the copying took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Adds the registers of the CPUs, and why some of them are missing.
    #[must_use]
    pub fn with_registers(self, taken: Vec<CpuRegisters>, missing: Option<String>) -> RawCapture {
        RawCapture { registers: (taken, missing), ..self }
    }

    /// Bytes that were copied.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let maps: u64 =
            self.maps.iter().flat_map(|(_, raw)| raw).map(|raw| raw.bytes() as u64).sum();
        maps + ram_bytes(self.ram.as_ref())
            + self.kernel.as_ref().map_or(0, |(raw, ..)| raw.memory.len() as u64)
    }

    /// The snapshot. Maps are decoded when they are first looked into.
    #[must_use]
    pub fn finish(self, mut meta: Meta) -> Arc<Snapshot> {
        meta.bytes = self.bytes() - ram_bytes(self.ram.as_ref());
        let maps = self.maps.into_iter().map(|(info, raw)| {
            let casts = self.casts.get(&(info.id, info.kva.0)).cloned().unwrap_or_default();
            let attrs = MapAttrs { casts, ..attrs(info) };
            let name = attrs.shown_name().to_owned();
            CapturedMap::new(
                attrs,
                Box::new(move || match raw {
                    Some(raw) => Box::new(Decoded::new(raw.decode())),
                    None => Box::new(Decoded::left_out(&name)),
                }),
            )
        });
        let mut torn: Vec<String> = self.torn.into_iter().collect();
        match self.kernel {
            Some((mut raw, of, asked)) => {
                torn.extend(raw.tasks_torn.take());
                let layout = of.layout;
                let mut state = kernel_state(raw, self.owned, of, asked);
                match self.ram.map(|ram| ram.and_then(|copied| copied.finish(layout))) {
                    Some(Ok(ram)) => {
                        meta.bytes += ram.kept();
                        state.ram = Some(Arc::new(ram));
                    }
                    Some(Err(why)) => state.ram_incomplete = Some(why),
                    None => {}
                }
                (state.progs, state.progs_incomplete) = progs(self.progs);
                let Leads { code, cgroups, incomplete } = self.leads;
                state.code = code.into_iter().map(|c| (c.start, c.end, c.name)).collect();
                state.cgroups.extend(cgroups.into_iter().map(|c| (c.id, c.path)));
                state.leads_incomplete = incomplete;
                (state.registers, state.registers_incomplete) = self.registers;
                Snapshot::with_kernel(meta, maps.collect(), torn, state)
            }
            None => Snapshot::new(meta, maps.collect(), torn),
        }
    }
}

fn ram_bytes(ram: Option<&Result<ram::Copied, String>>) -> u64 {
    ram.and_then(|ram| ram.as_ref().ok()).map_or(0, ram::Copied::len)
}

/// Programs, and why some may be missing.
fn progs(list: Option<Result<ProgList, IntrospectError>>) -> (Vec<ProgState>, Option<String>) {
    let list = match list {
        Some(Ok(list)) => list,
        Some(Err(e)) => return (Vec::new(), Some(e.to_string())),
        None => return (Vec::new(), None),
    };
    let prog = |p: ProgInfo| ProgState {
        id: p.id,
        name: p.full_name.unwrap_or(p.name),
        kind: p.kind,
        maps: p.maps,
        runs: p.runs.map(|runs| (runs.count, runs.time_ns)),
        incomplete: p.incomplete,
    };
    (list.progs.into_iter().map(prog).collect(), list.incomplete)
}

/// What was copied of the kernel, as the model has it.
fn kernel_state(raw: RawSched, owned: Vec<Owned>, of: OfKernel, asked: bool) -> KernelState {
    let left_out = match asked {
        true => raw.unreadable,
        false => Some("the freeze was told to leave it out (`sched: false`)".to_owned()),
    };
    let scheds = raw.scx.as_ref().map_or(&[][..], |scx| &scx.scheds);
    let dsqs = raw.dsqs.iter().map(|dsq| dsq_state(dsq, &raw.dsqs, scheds)).collect();
    let state = |t: &TaskAt| TaskState { at: t.at, cgroup: t.cgroup };
    let mut tasks: Vec<TaskState> = raw.tasks.iter().map(state).collect();
    tasks.sort_by_key(|task| task.at);
    let modules = super::symbols::of_modules(raw.modules);
    let domains = raw.domains.into_iter().map(|domains| Some(domain_states(domains)));
    let domains = domains.chain(std::iter::repeat(None));
    let (bytes, pieces) = raw.memory.into_parts();
    let pieces = pieces.into_iter().map(|p| (p.at, p.len, p.offset)).collect();
    KernelState {
        btf: Some(of.btf),
        symbols: Some(Arc::new(Symbols::of_kernel(&of.symbols))),
        per_cpu: of.per_cpu,
        memory: Extents::new(bytes, pieces),
        ram: None,
        ram_incomplete: None,
        registers: Vec::new(),
        registers_incomplete: None,
        left_out,
        cpus: raw.cpus.into_iter().zip(domains).map(cpu_state).collect(),
        tasks,
        tasks_incomplete: raw.tasks_incomplete,
        cgroups: raw.cgroups.into_iter().map(|c| (c.id, c.path)).collect(),
        classes: raw.classes,
        schedstats: raw.schedstats,
        scx: raw.scx.map(|scx| ScxState {
            state: scx.state,
            scheds: scx.scheds.into_iter().zip(owned).map(sched_state).collect(),
            enabled_before: scx.enabled_before,
            scheds_incomplete: scx.scheds_incomplete,
            incomplete: scx.incomplete,
        }),
        dsqs,
        variables: raw.variables.into_iter().map(variable).collect(),
        psi: raw.psi.map(psi_state),
        modules: modules.0,
        modules_incomplete: raw.modules_incomplete,
        module_symbols: Some(Arc::new(modules.1)),
        domain_flags: raw.domain_flags,
        progs: Vec::new(),
        progs_incomplete: None,
        code: Vec::new(),
        leads_incomplete: None,
    }
}

fn cpu_state((cpu, domains): (CpuAt, Option<DomainStates>)) -> CpuState {
    let CpuAt { cpu, rq, cpustat, curr, idle, incomplete } = cpu;
    CpuState { cpu, rq, cpustat, curr, idle, domains, incomplete }
}

fn domain_states(domains: Domains) -> DomainStates {
    let Domains { chain, incomplete } = domains;
    let group = |g: GroupAt| (g.at, g.span, g.capacity);
    let domain = |domain: DomainAt| {
        let DomainAt { at, span, name, groups, incomplete } = domain;
        let groups = groups.into_iter().map(group).collect();
        DomainState { at, span, name, groups, incomplete }
    };
    DomainStates { chain: chain.into_iter().map(domain).collect(), incomplete }
}

fn psi_state(psi: Psi) -> PsiState {
    let Psi { off, cgroups_off, irq, groups, incomplete } = psi;
    let group = |group: PsiAt| {
        let PsiAt { cgroup, at, incomplete } = group;
        PsiGroup { cgroup, at, incomplete }
    };
    let groups = groups.into_iter().map(group).collect();
    PsiState { off, cgroups_off, irq, groups, incomplete }
}

fn sched_state((sched, owned): (ScxSched, Owned)) -> SchedState {
    let ScxSched { at, root, linked, cgroup, parent, exit, pcpu } = sched;
    let Owned { ops_map, maps, progs, incomplete } = owned;
    let owns = Some(OwnState { ops_map, maps, progs, incomplete });
    SchedState { at, root, linked, cgroup, parent, exit, pcpu, owns }
}

fn variable(var: introspect::Variable) -> (String, Variable) {
    let places = match var.place {
        Where::Once(at) => Places::Once(at),
        Where::PerCpu(places) => Places::PerCpu(places),
        Where::Nowhere(why) => Places::Nowhere(why),
    };
    (var.name, Variable { places, len: var.len, ty: var.ty })
}

/// A queue with its name; those of schedulers below the root's have their cgroup in it.
fn dsq_state(dsq: &Dsq, all: &[Dsq], scheds: &[ScxSched]) -> DsqState {
    let of = dsq.of.unwrap_or_default();
    let is_global = |d: &&Dsq| d.kind == DsqKind::Global && d.sched == dsq.sched;
    let mut name = match dsq.kind {
        DsqKind::Local => format!("local:{of}"),
        DsqKind::Bypass => format!("bypass:{of}"),
        DsqKind::Reject => format!("reject:{of}"),
        DsqKind::Rescue => format!("rescue:{of}"),
        DsqKind::Global if all.iter().filter(is_global).count() == 1 => "global".to_owned(),
        DsqKind::Global => format!("global:{of}"),
        DsqKind::User => dsq.id.to_string(),
    };
    if let Some(sub) = dsq.sched.filter(|place| *place > 0) {
        let cgroup = scheds.get(sub).and_then(|sched| sched.cgroup.as_deref());
        name = format!("{name}@{}", cgroup.unwrap_or("?"));
    }
    DsqState {
        at: dsq.at,
        name,
        cpu: dsq.of.filter(|_| !matches!(dsq.kind, DsqKind::Global | DsqKind::User)),
        id: dsq.id,
        user: dsq.kind == DsqKind::User,
        tasks: dsq.tasks.clone(),
        incomplete: dsq.incomplete.clone(),
    }
}

fn attrs(info: MapInfo) -> MapAttrs {
    MapAttrs {
        id: info.id,
        kva: info.kva.0,
        name: info.name,
        full_name: info.full_name,
        section: info.section,
        kind: info.kind.name,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
        btf: info.btf,
        btf_error: info.btf_error,
        key_type: info.key_type,
        value_type: info.value_type,
        casts: Vec::new(),
    }
}

fn cast(cast: introspect::Cast) -> Cast {
    let introspect::Cast { offset, ty, by } = cast;
    Cast { offset, ty, by }
}

#[cfg(test)]
mod tests {
    use super::super::contents::{Contents, Detail};
    use super::*;
    use crate::introspect::{MapContents, MapData, MapKind, PerCpuValues, Values};
    use crate::mem::{FakeMem, Kva};
    use std::collections::BTreeMap;

    fn info(id: u32, name: &str, full: Option<&str>, kind: &str, max_entries: u32) -> MapInfo {
        MapInfo {
            id,
            kva: Kva(0xffff_8880_0000_0000 + u64::from(id)),
            kind: MapKind { number: 0, name: kind.into() },
            name: name.into(),
            full_name: full.map(str::to_owned),
            section: None,
            key_size: 4,
            value_size: 8,
            max_entries,
            map_flags: 0,
            map_extra: 0,
            frozen: false,
            btf: None,
            btf_error: None,
            key_type: 0,
            value_type: 0,
            btf_kva: Kva(0),
            torn: vec![],
        }
    }

    fn maps() -> Vec<MapInfo> {
        vec![
            info(3, "big", None, "hash", 10_000),
            info(4, "a_long_name_tha", Some("a_long_name_that_was_cut"), "array", 1),
            info(5, "big", None, "hash", 10),
        ]
    }

    fn request(names: &[&str]) -> CaptureRequest {
        let maps = Some(names.iter().map(|&name| name.to_owned()).collect());
        CaptureRequest { maps, ..CaptureRequest::default() }
    }

    #[test]
    fn small_maps_are_copied_first_and_only_those_asked_for() {
        assert_eq!(order(&maps(), &CaptureRequest::default()), [1, 2, 0]);
        assert_eq!(order(&maps(), &request(&["big"])), [2, 0]);
        assert_eq!(order(&maps(), &request(&["big#3"])), [0]);
        assert_eq!(order(&maps(), &request(&["a_long_name_that_was_cut"])), [1]);
        assert_eq!(order(&maps(), &request(&["a_long_name_tha"])), [1]);
        assert_eq!(order(&maps(), &request(&["bigg"])), Vec::<usize>::new());
    }

    #[test]
    fn a_name_that_no_map_has_is_told_with_the_nearest() {
        let missing = missing(&maps(), &request(&["bigg", "big"]));
        let texts: Vec<String> = missing.iter().map(SnapshotError::to_string).collect();
        assert_eq!(
            texts,
            [
                "no captured map is called \"bigg\"; did you mean map(\"big\")? (there are big, big, \
              a_long_name_that_was_cut)"
            ]
        );
    }

    #[test]
    fn a_map_that_was_not_asked_for_says_so() {
        let raw = RawCapture {
            maps: maps().into_iter().map(|info| (info, None)).collect(),
            torn: Some("map_idr_lock is held".into()),
            kernel: None,
            progs: None,
            leads: Leads::default(),
            owned: Vec::new(),
            registers: (Vec::new(), None),
            ram: None,
            casts: Arc::default(),
            took: Duration::ZERO,
        };
        assert_eq!(raw.bytes(), 0);
        let snap = raw.finish(Meta { tag: "t".into(), ..Meta::default() });
        assert_eq!(snap.torn(), ["map_idr_lock is held"]);
        let map = snap.map("a_long_name_that_was_cut").unwrap();
        assert_eq!(map.attrs().max_entries, 1);
        assert_eq!(
            map.len().unwrap_err().to_string(),
            "map \"a_long_name_that_was_cut\" could not be read: the freeze was asked for other \
             maps only; add \"a_long_name_that_was_cut\" to its `maps`, or leave `maps` out"
        );
    }

    #[test]
    fn decoded_contents_keep_rows_slots_and_reasons() {
        let mut keys = Values::empty(4);
        keys.push(&[1, 0, 0, 0]);
        let mut values = PerCpuValues::empty(2, 1);
        values.push([Some(&[7][..]), None]);
        let decoded = Decoded::new(MapContents {
            data: MapData::PerCpuHash { keys, values },
            torn: vec!["whole".into()],
            torn_entries: BTreeMap::from([(0, vec!["row".into()])]),
            incomplete: Some("cut".into()),
            details: vec![("seed", 7.into())],
            entry_details: BTreeMap::from([(0, vec![("path", "/a".to_owned().into())])]),
        });
        assert_eq!((decoded.rows(), decoded.cpus()), (1, Some(2)));
        assert_eq!(decoded.key(0), Some(&[1, 0, 0, 0][..]));
        assert_eq!((decoded.value(0), decoded.key(1)), (None, None));
        assert_eq!((decoded.cpu_value(0, 0), decoded.cpu_value(0, 1)), (Some(&[7][..]), None));
        assert_eq!(decoded.details(), [("seed".to_owned(), Detail::Number(7))]);
        assert_eq!(decoded.row_details(0), [("path".to_owned(), Detail::Text("/a".into()))]);
        assert!(decoded.row_details(1).is_empty());
        assert_eq!(decoded.torn(), ["whole"]);
        assert_eq!(decoded.torn_row(0), ["row"]);
        assert!(decoded.torn_row(1).is_empty());
        assert_eq!(decoded.incomplete(), Some("cut"));
        let reason = "maps of kind ringbuf cannot be decoded yet".to_owned();
        let decoded = Decoded::new(MapContents::new(MapData::Unreadable { reason }));
        assert_eq!((decoded.rows(), decoded.cpus()), (0, None));
        assert_eq!(decoded.incomplete(), Some("maps of kind ringbuf cannot be decoded yet"));
    }

    #[test]
    fn memory_without_a_kernel_is_not_ready() {
        let error = Capturer::open(Arc::new(FakeMem::new())).err().unwrap();
        assert!(matches!(error, CaptureError::NotYet(_)), "{error:?}");
        assert!(
            error.to_string().starts_with("the guest kernel cannot be read yet: no VMCOREINFO"),
            "{error}"
        );
    }
}
