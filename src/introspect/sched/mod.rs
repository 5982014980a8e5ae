//! The kernel's own scheduling state: CPUs, tasks, sched_ext with its dispatch queues, variables.
//!
//! ```text
//! runqueues[cpu] ──▶ struct rq ──▶ curr, idle; the local queues in it
//! init_task.tasks ──▶ group leaders ──signal->thread_head──▶ struct task_struct ──▶ cgroup
//! scx_root, scx_sched_all ──▶ struct scx_sched ──▶ pcpu, global queues, dsq_hash ──▶ user queues
//! rq->sd ──parent──▶ struct sched_domain ──▶ groups, their capacity
//! modules ──▶ struct module ──▶ its symbols, its types
//! psi_system, the tree of cgroups ──▶ struct psi_group
//! ```
//!
//! While the machine stands still, structs are copied whole and lists are walked; nothing else.
//! What the bytes mean is found out later, from the same BTF (`snapshot/kernel/`). Members that
//! only some kernels have are looked for, and what depends on a missing one is left out.

mod code;
mod domains;
mod exit;
pub(in crate::introspect) mod layout;
mod memory;
mod modules;
mod monitor;
mod psi;
mod scheds;
mod scx;
mod tasks;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod vars;

use std::sync::{Mutex, PoisonError};

pub use domains::{DomainAt, Domains, GroupAt};
pub use exit::{ExitPoint, Leaving};
pub use memory::{Memory, Piece};
use modules::ModuleCache;
pub use modules::{ModuleAt, ModuleSymbol};
pub use monitor::{CpuReading, Reading, SchedReading};
pub use psi::{Psi, PsiAt};
pub use scx::{Dsq, DsqKind, ScxSched, ScxState};
pub use tasks::{Cgroup, TaskAt};
pub use vars::{Variable, Where};

use super::bpf::Budget;
use super::error::IntrospectError;
use super::kernel::Kernel;
use layout::Layout;

/// Tasks that are copied at most.
pub const MAX_TASKS: usize = 32 << 10;

/// What is kept from one copy to the next.
pub(crate) struct SchedState {
    layout: Layout,
    /// Memory that was written before: writing to fresh memory costs a page fault per page.
    spare: Mutex<Vec<u8>>,
    modules: Mutex<ModuleCache>,
}

/// A CPU and what of it was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuAt {
    /// Its number.
    pub cpu: u32,
    /// Where its `struct rq` lies.
    pub rq: u64,
    /// Where its `struct kernel_cpustat` lies.
    pub cpustat: Option<u64>,
    /// The task that ran on it.
    pub curr: u64,
    /// What runs on it when nothing else does.
    pub idle: u64,
    /// Why something of it is missing.
    pub incomplete: Option<String>,
}

/// The kernel's scheduling state as bytes, and where in them things are.
#[derive(Debug, Default)]
pub struct RawSched {
    /// All bytes that were copied.
    pub memory: Memory,
    /// The CPUs that there can be, ascending.
    pub cpus: Vec<CpuAt>,
    /// All tasks but the idle ones, in the order in which the kernel lists them.
    pub tasks: Vec<TaskAt>,
    /// Why tasks may be missing.
    pub tasks_incomplete: Option<String>,
    /// Why the list of tasks may be half-changed.
    pub tasks_torn: Option<String>,
    /// The cgroups that tasks are in.
    pub cgroups: Vec<Cgroup>,
    /// sched_ext; `None` when the kernel has none.
    pub scx: Option<ScxState>,
    /// Every dispatch queue.
    pub dsqs: Vec<Dsq>,
    /// The variables that were asked for.
    pub variables: Vec<Variable>,
    /// Scheduling classes by their address: `("fair", ..)`.
    pub classes: Vec<(u64, String)>,
    /// Whether the kernel counts what `kernel.sched_schedstats` tells it to; `None` when it cannot.
    pub schedstats: Option<bool>,
    /// The scheduling domains of each CPU, in their order.
    pub domains: Vec<Domains>,
    /// The flags of scheduling domains: bits and names.
    pub domain_flags: Vec<(u64, String)>,
    /// Pressure stall information.
    pub psi: Option<Psi>,
    /// The loaded modules, in the kernel's order: the last one that was loaded first.
    pub modules: Vec<ModuleAt>,
    /// Why modules may be missing.
    pub modules_incomplete: Option<String>,
    /// Why there is nothing at all.
    pub unreadable: Option<String>,
}

/// What to copy.
#[derive(Clone, Copy, Debug)]
pub struct SchedRequest<'a> {
    /// CPUs, tasks, sched_ext.
    pub state: bool,
    /// Names of further variables of the kernel.
    pub variables: &'a [String],
}

impl Kernel {
    /// Copies the scheduling state, within `budget`. Meant for a stopped machine; of one that runs
    /// anything may be torn. What cannot be read is missing, with the reason.
    #[must_use]
    pub fn copy_sched(&self, request: SchedRequest<'_>, budget: &mut Budget) -> RawSched {
        let state = match self.sched() {
            Ok(state) => state,
            Err(e) => return RawSched { unreadable: Some(e.to_string()), ..RawSched::default() },
        };
        let spare =
            std::mem::take(&mut *state.spare.lock().unwrap_or_else(PoisonError::into_inner));
        let mut copy = Copy {
            kernel: self,
            layout: &state.layout,
            modules: &state.modules,
            budget,
            raw: RawSched { memory: Memory::new(spare), ..RawSched::default() },
            steps: 4 * MAX_TASKS,
            whole: true,
        };
        if request.state {
            copy.raw.classes.clone_from(&state.layout.classes);
            copy.raw.schedstats = copy.key("sched_schedstats");
            copy.cpus();
            copy.domains();
            copy.tasks();
            copy.scx();
            copy.psi();
            copy.made_code();
        }
        let symbols = self.symbols();
        if request.state || request.variables.iter().any(|name| symbols.get(name).is_none()) {
            copy.modules();
        }
        copy.variables(request.variables);
        copy.raw.memory.close();
        copy.raw
    }

    /// Keeps the memory of a copy that was made for practice, for the one that counts.
    pub fn recycle_sched(&self, raw: RawSched) {
        if let Ok(state) = self.sched() {
            *state.spare.lock().unwrap_or_else(PoisonError::into_inner) = raw.memory.into_spare();
        }
    }

    /// Those of `wanted` that are names of modules' symbols, as of the last copy.
    #[must_use]
    pub fn module_symbols(&self, wanted: &[String]) -> std::collections::HashSet<String> {
        let Ok(state) = self.sched() else { return Default::default() };
        state.modules.lock().unwrap_or_else(PoisonError::into_inner).having(wanted)
    }

    fn sched(&self) -> Result<&SchedState, IntrospectError> {
        let state = self.sched.get_or_init(|| {
            let layout = Layout::new(self)?;
            Ok(SchedState { layout, spare: Mutex::default(), modules: Mutex::default() })
        });
        state.as_ref().map_err(Clone::clone)
    }
}

/// A copy that is being made.
struct Copy<'a> {
    kernel: &'a Kernel,
    layout: &'a Layout,
    modules: &'a Mutex<ModuleCache>,
    budget: &'a mut Budget,
    raw: RawSched,
    /// Links of lists that may still be followed: a hostile guest can have many lists lead into
    /// the same long one.
    steps: usize,
    /// Whether there is room for all of each task.
    whole: bool,
}

impl Copy<'_> {
    /// Copies a struct unless it is there already.
    fn piece(&mut self, at: u64, len: u64) -> Result<(), String> {
        self.raw.memory.copy(self.kernel, at, len, self.budget)
    }

    /// Whether a static key is on (include/linux/jump_label.h), whose first word is how many want
    /// it; `None` when there is none of that name. Also a flag that is a plain number.
    fn key(&self, symbol: &str) -> Option<bool> {
        let at = self.kernel.symbols().get(symbol)?;
        Some(self.kernel.read_u32(at).ok()? as i32 > 0)
    }

    /// `struct rq` (kernel/sched/sched.h) and `struct kernel_cpustat`
    /// (include/linux/kernel_stat.h) of each CPU.
    fn cpus(&mut self) {
        let Ok(runqueues) = self.kernel.symbols().address("runqueues") else {
            self.raw.unreadable = Some("the kernel has no symbol 'runqueues'".into());
            return;
        };
        let cpustat = self.kernel.symbols().get("kernel_cpustat");
        for cpu in 0..self.kernel.nr_cpu_ids() {
            let Some(offset) = self.kernel.per_cpu_offset(cpu) else { continue };
            let rq = runqueues.offset(offset).0;
            let stat = cpustat.map(|at| at.offset(offset).0).zip(self.layout.cpustat_size);
            let whole = self.piece(rq, self.layout.rq.size);
            let stat_copied = stat.map_or(Ok(()), |(at, size)| self.piece(at, size));
            let word = |at| self.raw.memory.u64(rq.wrapping_add(at)).unwrap_or_default();
            let (curr, idle) = (word(self.layout.rq.curr), word(self.layout.rq.idle));
            let cpustat = stat.map(|(at, _)| at).filter(|_| stat_copied.is_ok());
            let incomplete = whole.and(stat_copied).err();
            self.raw.cpus.push(CpuAt { cpu, rq, cpustat, curr, idle, incomplete });
        }
    }
}
