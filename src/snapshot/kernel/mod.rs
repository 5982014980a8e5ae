//! The kernel's own scheduling state, as it was copied at a freeze.
//!
//! ```text
//! Snapshot ──cpu(n)──▶ Cpu ──┬─curr()──▶ Task ──get(path)──▶ Field
//!     ├──task(tid)───────────┼─────────────▲
//!     ├──dsq(name)──▶ Dsq ───┴─tasks()─────┘
//!     ├──sched()────▶ Sched      Cpu::domains()
//!     ├──psi(cgroup)
//!     ├──kernel(symbol)─────────────────────────────▶ Field
//!     └──symbol(address), Cpu::registers(), Cpu::stack(), Task::stack()
//! ```
//!
//! The bytes are [`Extents`]: pieces of memory by their addresses. A field's path may follow the
//! pointers in them as long as they lead into what was copied; what they mean is told by the
//! kernel's BTF on every read, as for maps.

mod cpu;
mod domain;
mod dsq;
mod lines;
mod live;
mod module;
mod names;
mod owner;
mod place;
mod prog;
mod psi;
mod recorded;
mod registers;
mod sched;
mod stack;
mod stats;
mod task;
mod unwind;
mod vars;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::btf::{Btf, TypeId};

use super::Snapshot;
use super::error::{SnapshotError, SnapshotResult};
use super::ram::Ram;
use super::symbols::Symbols;

pub use cpu::Cpu;
pub use domain::{Domain, DomainGroup, DomainState, DomainStates};
pub use dsq::Dsq;
pub use module::{Module, ModuleState};
pub use owner::Exit;
pub(crate) use place::Place;
pub use prog::{Prog, ProgState};
pub use psi::{Pressure, PsiGroup, PsiState, Stall};
pub use registers::CpuRegisters;
pub use sched::Sched;
pub use stack::{Frame, Stack};
pub use task::Task;
pub use unwind::StackEnd;
pub use vars::PerCpu;
pub(crate) use vars::at_address;

/// Pieces of the guest's memory, by address.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Extents {
    /// A file keeps them apart.
    #[serde(skip)]
    bytes: Vec<u8>,
    /// Address, length, place in `bytes`; ascending.
    pieces: Vec<(u64, usize, usize)>,
}

/// Pieces before an address that are asked for it: one may lie in another.
const OVERLAPPING: usize = 8;

impl Extents {
    /// Takes pieces (address, length, place in `bytes`); those that do not fit count as not there.
    #[must_use]
    pub fn new(bytes: Vec<u8>, mut pieces: Vec<(u64, usize, usize)>) -> Extents {
        pieces.sort_unstable();
        Extents { bytes, pieces }
    }

    /// The bytes at an address, if all of them were copied as one piece.
    #[must_use]
    pub fn get(&self, at: u64, len: u64) -> Option<&[u8]> {
        let len = usize::try_from(len).ok()?;
        let after = self.pieces.partition_point(|(start, ..)| *start <= at);
        self.pieces[..after].iter().rev().take(OVERLAPPING).find_map(|&(start, size, offset)| {
            let within = usize::try_from(at - start).ok()?;
            let end = within.checked_add(len).filter(|end| *end <= size)?;
            self.bytes.get(offset.checked_add(within)?..offset.checked_add(end)?)
        })
    }

    /// All bytes that are held.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes that are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// What was copied of the kernel, and where in it things are. Addresses are the guest's.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct KernelState {
    /// The kernel's types.
    #[serde(skip)]
    pub btf: Option<Arc<Btf>>,
    /// The kernel's symbols.
    #[serde(skip)]
    pub symbols: Option<Arc<Symbols>>,
    /// What is added to the address of a per-CPU variable, by CPU; none for one that cannot be.
    #[serde(default)]
    pub per_cpu: Vec<Option<u64>>,
    /// The bytes.
    pub memory: Extents,
    /// All of memory, if the freeze was asked for it.
    #[serde(skip)]
    pub ram: Option<Arc<Ram>>,
    /// Why that is missing although the freeze was asked for it.
    #[serde(default)]
    pub ram_incomplete: Option<String>,
    /// The registers of CPUs, ascending, if the freeze was asked for them.
    #[serde(default)]
    pub registers: Vec<CpuRegisters>,
    /// Why some of them are missing.
    #[serde(default)]
    pub registers_incomplete: Option<String>,
    /// Why CPUs, tasks and sched_ext were not copied at all.
    pub left_out: Option<String>,
    /// Ascending by number.
    pub cpus: Vec<CpuState>,
    /// All but the idle ones, ascending by address.
    pub tasks: Vec<TaskState>,
    /// Why tasks may be missing.
    pub tasks_incomplete: Option<String>,
    /// Ids and paths.
    pub cgroups: Vec<(u64, String)>,
    /// Scheduling classes by address.
    pub classes: Vec<(u64, String)>,
    /// Whether the kernel was told to count for `schedstats`.
    #[serde(default)]
    pub schedstats: Option<bool>,
    /// sched_ext; `None` when the kernel was built without it.
    pub scx: Option<ScxState>,
    /// Every dispatch queue.
    pub dsqs: Vec<DsqState>,
    /// Variables that were asked for, by name.
    pub variables: BTreeMap<String, Variable>,
    /// Pressure; `None` in a file that kept none.
    #[serde(default)]
    pub psi: Option<PsiState>,
    /// The flags of scheduling domains: bits and names.
    #[serde(default)]
    pub domain_flags: Vec<(u64, String)>,
    /// Modules, the last one that was loaded first.
    #[serde(default)]
    pub modules: Vec<ModuleState>,
    /// Why modules may be missing.
    #[serde(default)]
    pub modules_incomplete: Option<String>,
    /// The symbols of all modules; `None` in a file that kept none.
    #[serde(skip)]
    pub module_symbols: Option<Arc<Symbols>>,
    /// BPF programs.
    #[serde(default)]
    pub progs: Vec<ProgState>,
    /// Why programs may be missing.
    #[serde(default)]
    pub progs_incomplete: Option<String>,
    /// Functions of BPF programs that timers and works call: start, end, the kernel's name.
    #[serde(default)]
    pub code: Vec<(u64, u64, String)>,
    /// Why not all was copied that timers, lists, trees and pointers in maps lead to.
    #[serde(default)]
    pub leads_incomplete: Option<String>,
}

impl KernelState {
    /// The kernel's types.
    pub(crate) fn types(&self) -> SnapshotResult<&Arc<Btf>> {
        self.btf.as_ref().ok_or_else(|| unreadable("the kernel's state", "its types are missing"))
    }

    /// One more than the highest number that a CPU can have.
    pub(crate) fn cpu_ids(&self) -> u64 {
        let known = self.cpus.last().map_or(0, |cpu| u64::from(cpu.cpu) + 1);
        known.max(self.per_cpu.len() as u64)
    }

    /// The bytes at an address: what was copied as a piece, else what all of memory has there.
    pub(crate) fn at(&self, at: u64, len: u64) -> Result<Cow<'_, [u8]>, NotThere> {
        if let Some(bytes) = self.memory.get(at, len) {
            return Ok(Cow::Borrowed(bytes));
        }
        let ram = self.ram.as_ref().ok_or(NotThere::NotCopied)?;
        ram.at(at, len).map(Cow::Owned).map_err(NotThere::Unreadable)
    }

    /// Ends the sentence that something was not copied: what would have.
    pub(crate) fn if_not_copied(&self) -> String {
        if let Some(why) = &self.ram_incomplete {
            return format!("of all memory nothing was kept: {why}");
        }
        let cut = self.leads_incomplete.as_ref();
        let cut = cut.map_or_else(String::new, |why| format!(" (some of it is missing: {why})"));
        format!(
            "a freeze copies CPUs, tasks, dispatch queues, schedulers, what timers, lists, trees and \
             kptrs in maps lead to{cut}, and what its option `kernel` names; `ram: true` keeps all of \
             memory, as in t.freeze(\"tag\", #{{ ram: true }})"
        )
    }

    /// The kernel's symbols.
    pub(crate) fn names(&self) -> SnapshotResult<&Symbols> {
        self.symbols.as_deref().ok_or_else(|| {
            let why =
                "the file has none: they took more than it keeps, or an older cryoscope saved it";
            unreadable("the kernel's symbols", why)
        })
    }

    /// What a file has beside the bytes and the types.
    pub(crate) fn clone_without_bytes(&self) -> KernelState {
        KernelState {
            btf: None,
            symbols: None,
            per_cpu: self.per_cpu.clone(),
            memory: Extents { bytes: Vec::new(), pieces: self.memory.pieces.clone() },
            ram: None,
            ram_incomplete: self.ram_incomplete.clone(),
            registers: self.registers.clone(),
            registers_incomplete: self.registers_incomplete.clone(),
            left_out: self.left_out.clone(),
            cpus: self.cpus.clone(),
            tasks: self.tasks.clone(),
            tasks_incomplete: self.tasks_incomplete.clone(),
            cgroups: self.cgroups.clone(),
            classes: self.classes.clone(),
            schedstats: self.schedstats,
            scx: self.scx.clone(),
            dsqs: self.dsqs.clone(),
            variables: self.variables.clone(),
            psi: self.psi.clone(),
            domain_flags: self.domain_flags.clone(),
            modules: self.modules.clone(),
            modules_incomplete: self.modules_incomplete.clone(),
            module_symbols: None,
            progs: self.progs.clone(),
            progs_incomplete: self.progs_incomplete.clone(),
            code: self.code.clone(),
            leads_incomplete: self.leads_incomplete.clone(),
        }
    }

    /// What came out of a file, which nobody vouches for, with bytes, types and symbols.
    pub(crate) fn with_bytes(
        mut self,
        btf: Arc<Btf>,
        symbols: Option<Symbols>,
        bytes: Vec<u8>,
    ) -> KernelState {
        self.btf = Some(btf);
        self.symbols = symbols.map(Arc::new);
        self.memory = Extents::new(bytes, self.memory.pieces);
        self.tasks.sort_by_key(|task| task.at);
        self
    }
}

/// Why bytes of the kernel's are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotThere {
    /// They were not copied.
    NotCopied,
    /// All of memory was, but they cannot be read in it.
    Unreadable(String),
}

/// The state, and what is found out of it once.
pub(crate) struct Held {
    state: KernelState,
    /// Numbers and addresses of tasks, ascending.
    tids: OnceLock<Vec<(i64, u64)>>,
    /// Code that the kernel made while it ran.
    made: OnceLock<Vec<names::Made>>,
}

impl Held {
    pub(crate) fn new(state: KernelState) -> Held {
        Held { state, tids: OnceLock::new(), made: OnceLock::new() }
    }
}

/// A CPU.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CpuState {
    /// Its number.
    pub cpu: u32,
    /// Its `struct rq`.
    pub rq: u64,
    /// Its `struct kernel_cpustat`.
    pub cpustat: Option<u64>,
    /// The task on it.
    pub curr: u64,
    /// Its idle task.
    pub idle: u64,
    /// Its scheduling domains; `None` in a file that kept none.
    #[serde(default)]
    pub domains: Option<DomainStates>,
    /// Why something of it is missing.
    pub incomplete: Option<String>,
}

/// A task.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TaskState {
    /// Its `struct task_struct`.
    pub at: u64,
    /// Its place in [`KernelState::cgroups`].
    pub cgroup: Option<usize>,
}

/// sched_ext.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScxState {
    /// As `/sys/kernel/sched_ext/state` has it.
    pub state: Option<String>,
    /// The schedulers, the root first.
    pub scheds: Vec<SchedState>,
    /// How often a root scheduler has been enabled since the machine booted.
    #[serde(default)]
    pub enabled_before: Option<u64>,
    /// Why schedulers may be missing.
    #[serde(default)]
    pub scheds_incomplete: Option<String>,
    /// Why something else is missing.
    pub incomplete: Option<String>,
}

/// A scheduler.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SchedState {
    /// Its `struct scx_sched`.
    pub at: u64,
    /// Whether `scx_root` points to it.
    #[serde(default)]
    pub root: bool,
    /// Whether it is in the kernel's list of schedulers.
    #[serde(default)]
    pub linked: bool,
    /// The cgroup it is for, where there can be several.
    pub cgroup: Option<String>,
    /// The `struct scx_sched` above it.
    #[serde(default)]
    pub parent: Option<u64>,
    /// Why it leaves, in the kernel's words and in its own; both empty until then.
    #[serde(default)]
    pub exit: Option<(String, String)>,
    /// CPU and its `struct scx_sched_pcpu`.
    pub pcpu: Vec<(u32, u64)>,
    /// What belongs to it.
    #[serde(default)]
    pub owns: Option<OwnState>,
}

/// What belongs to a scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnState {
    /// The id of its STRUCT_OPS map.
    pub ops_map: Option<u32>,
    /// Ids and addresses of its other maps.
    pub maps: Vec<(u32, u64)>,
    /// Ids of its programs.
    pub progs: Vec<u32>,
    /// Why some may be missing.
    pub incomplete: Option<String>,
}

/// A dispatch queue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DsqState {
    /// Its `struct scx_dispatch_q`.
    pub at: u64,
    /// `global`, `local:3`, `bypass:3`, or its id.
    pub name: String,
    /// The CPU it belongs to.
    pub cpu: Option<u32>,
    /// The id that the kernel knows it by.
    pub id: u64,
    /// Whether the scheduler made it.
    pub user: bool,
    /// The tasks in it, in order.
    pub tasks: Vec<u64>,
    /// Why there may be others.
    pub incomplete: Option<String>,
}

/// A variable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Variable {
    /// Where it lies: once, or once for each CPU.
    pub places: Places,
    /// Bytes that were copied.
    pub len: u64,
    /// Its type, where BTF tells it.
    pub ty: Option<TypeId>,
}

/// Where a variable lies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Places {
    /// At one address.
    Once(u64),
    /// CPU and address.
    PerCpu(Vec<(u32, u64)>),
    /// Not copied, and why.
    Nowhere(String),
}

/// The error that something of the kernel's could not be read.
pub(crate) fn unreadable(what: impl Into<String>, error: impl Into<String>) -> SnapshotError {
    SnapshotError::MapRenderIncomplete { map: what.into(), error: error.into() }
}

impl Snapshot {
    /// What was copied of the kernel.
    pub(crate) fn kernel_state(&self) -> SnapshotResult<&KernelState> {
        self.copied_kernel()?
            .map(|held| &held.state)
            .ok_or_else(|| unreadable("the kernel's state", "it was not copied with this snapshot"))
    }

    /// As [`Snapshot::kernel_state`], when CPUs, tasks and sched_ext are in it.
    pub(crate) fn sched_state(&self) -> SnapshotResult<&KernelState> {
        self.sched_touched.store(true, Ordering::Relaxed);
        let state = self.kernel_state()?;
        match &state.left_out {
            None => Ok(state),
            Some(why) => Err(unreadable("the kernel's scheduling state", why)),
        }
    }

    /// The CPUs that there can be, by number.
    ///
    /// # Errors
    /// [`SnapshotError::PlaceholderSnapshot`]; [`SnapshotError::MapRenderIncomplete`] when the
    /// scheduling state was not copied.
    pub fn cpus(self: &Arc<Self>) -> SnapshotResult<Vec<Cpu>> {
        let len = self.sched_state()?.cpus.len();
        Ok((0..len).map(|place| Cpu::new(self.clone(), place)).collect())
    }

    /// One CPU.
    ///
    /// # Errors
    /// As [`Snapshot::cpus`]; [`SnapshotError::PerCpuSlot`] when there is no such CPU.
    pub fn cpu(self: &Arc<Self>, cpu: i64) -> SnapshotResult<Cpu> {
        let cpus = &self.sched_state()?.cpus;
        let place = cpus.iter().position(|c| i64::from(c.cpu) == cpu);
        place.map(|place| Cpu::new(self.clone(), place)).ok_or_else(|| SnapshotError::PerCpuSlot {
            map: "cpus".into(),
            cpu,
            len: cpus.len(),
            unmapped: false,
        })
    }

    /// Every task but the idle ones, by its number.
    ///
    /// # Errors
    /// As [`Snapshot::cpus`]; also when not all of them could be copied.
    pub fn tasks(self: &Arc<Self>) -> SnapshotResult<Vec<Task>> {
        let state = self.sched_state()?;
        if let Some(why) = &state.tasks_incomplete {
            return Err(unreadable("the list of tasks", why));
        }
        let tids = self.tids()?.iter();
        Ok(tids.map(|(_, at)| Task::new(self.clone(), *at)).collect())
    }

    /// Numbers and addresses of the tasks that were copied.
    fn tids(self: &Arc<Self>) -> SnapshotResult<&[(i64, u64)]> {
        let tasks = &self.sched_state()?.tasks;
        let Some(held) = self.copied_kernel()? else { return Ok(&[]) };
        Ok(held.tids.get_or_init(|| {
            let tid = |at| Task::new(self.clone(), at).tid().unwrap_or(i64::MAX);
            let mut tids: Vec<(i64, u64)> = tasks.iter().map(|t| (tid(t.at), t.at)).collect();
            tids.sort_unstable();
            tids
        }))
    }

    /// The task of that number: a thread's, as in `/proc/TGID/task/TID`.
    ///
    /// # Errors
    /// As [`Snapshot::tasks`]; [`SnapshotError::NoMatch`] with the nearest numbers when there is
    /// none.
    pub fn task(self: &Arc<Self>, tid: i64) -> SnapshotResult<Task> {
        let tids = self.tids()?;
        if let Ok(place) = tids.binary_search_by_key(&tid, |(tid, _)| *tid) {
            return Ok(Task::new(self.clone(), tids[place].1));
        }
        if let Some(why) = &self.sched_state()?.tasks_incomplete {
            return Err(unreadable("the list of tasks", why));
        }
        let mut near: Vec<i64> = tids.iter().map(|(tid, _)| *tid).collect();
        near.sort_by_key(|t| t.abs_diff(tid));
        Err(SnapshotError::NoMatch {
            map: "tasks".to_owned(),
            op: format!("task({tid})"),
            len: tids.len(),
            available_keys: near.iter().take(3).map(i64::to_string).collect(),
        })
    }

    /// Every dispatch queue.
    ///
    /// # Errors
    /// As [`Snapshot::cpus`]; [`SnapshotError::NoActiveScheduler`] when the kernel has no
    /// sched_ext.
    pub fn dsqs(self: &Arc<Self>) -> SnapshotResult<Vec<Dsq>> {
        self.scx_state()?;
        let len = self.sched_state()?.dsqs.len();
        Ok((0..len).map(|place| Dsq::new(self.clone(), place)).collect())
    }

    /// The dispatch queue of that name: `global`, `local:3`, `bypass:3`, or the number that the
    /// scheduler gave it.
    ///
    /// # Errors
    /// As [`Snapshot::dsqs`]; [`SnapshotError::NoMatch`] with the names nearest to it;
    /// [`SnapshotError::MapRenderIncomplete`] when there may be one that was not copied.
    pub fn dsq(self: &Arc<Self>, name: &str) -> SnapshotResult<Dsq> {
        dsq::find(self, name)
    }

    /// sched_ext, and the scheduler at its root.
    ///
    /// # Errors
    /// As [`Snapshot::dsqs`].
    pub fn sched(self: &Arc<Self>) -> SnapshotResult<Sched> {
        let root = self.scx_state()?.root();
        Ok(Sched::new(self.clone(), root.unwrap_or(usize::MAX)))
    }

    pub(crate) fn scx_state(&self) -> SnapshotResult<&ScxState> {
        self.sched_state()?.scx.as_ref().ok_or_else(|| SnapshotError::NoActiveScheduler {
            reason: "this kernel was built without sched_ext (CONFIG_SCHED_CLASS_EXT)".to_owned(),
        })
    }
}
