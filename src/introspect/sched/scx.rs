//! sched_ext: the attached schedulers and every dispatch queue.

use super::layout::ScxLayout;
use super::{Copy, MAX_TASKS};
use crate::mem::Kva;

/// User queues of one scheduler.
pub(super) const MAX_DSQS: usize = 16 << 10;
/// Queues of all schedulers and CPUs.
const MAX_QUEUES: usize = 128 << 10;
/// `SCX_DSQ_LNODE_ITER_CURSOR`: a place marker of an iterator, no task.
pub(super) const CURSOR: u32 = 1;

/// The state of sched_ext.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScxState {
    /// As `/sys/kernel/sched_ext/state` says it: `enabled`.
    pub state: Option<String>,
    /// The schedulers there are, the root first.
    pub scheds: Vec<ScxSched>,
    /// How often a root scheduler has been enabled since the machine booted.
    pub enabled_before: Option<u64>,
    /// Why schedulers may be missing.
    pub scheds_incomplete: Option<String>,
    /// Why something else is missing.
    pub incomplete: Option<String>,
}

/// A scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScxSched {
    /// Where its `struct scx_sched` lies.
    pub at: u64,
    /// Whether it is the one that `scx_root` points to.
    pub root: bool,
    /// Whether it is in the list of all; where there is none, whether it is the root.
    pub linked: bool,
    /// The cgroup that it schedules, where there can be several schedulers.
    pub cgroup: Option<String>,
    /// Where the `struct scx_sched` lies that it is a sub-scheduler of.
    pub parent: Option<u64>,
    /// Why it leaves, in the kernel's words, and what it said itself; both empty until then.
    pub exit: Option<(String, String)>,
    /// Where each CPU's `struct scx_sched_pcpu` lies, with the CPU.
    pub pcpu: Vec<(u32, u64)>,
}

/// What a dispatch queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DsqKind {
    /// From which a CPU takes what it runs.
    Local,
    /// Where tasks go that have no other queue, one per NUMA node.
    Global,
    /// That a CPU uses while the scheduler is passed over.
    Bypass,
    /// For tasks that a CPU must not run.
    Reject,
    /// For tasks that waited for too long.
    Rescue,
    /// Made by the scheduler.
    User,
}

/// A dispatch queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dsq {
    /// Where its `struct scx_dispatch_q` lies.
    pub at: u64,
    /// What it is for.
    pub kind: DsqKind,
    /// The CPU or NUMA node that it belongs to, if any.
    pub of: Option<u32>,
    /// Its id.
    pub id: u64,
    /// The scheduler it belongs to, by its place in the list of them.
    pub sched: Option<usize>,
    /// The tasks in it, in the order in which they are taken.
    pub tasks: Vec<u64>,
    /// Why there may be others.
    pub incomplete: Option<String>,
}

impl Copy<'_> {
    pub(super) fn scx(&mut self) {
        let layout = match &self.layout.scx {
            None => return,
            Some(Ok(layout)) => layout,
            Some(Err(e)) => {
                let incomplete = Some(e.to_string());
                let scheds_incomplete = incomplete.clone();
                self.raw.scx =
                    Some(ScxState { scheds_incomplete, incomplete, ..ScxState::default() });
                return;
            }
        };
        let mut scx = ScxState {
            state: self.enable_state(layout),
            enabled_before: self.enabled_before(),
            ..ScxState::default()
        };
        for cpu in self.raw.cpus.clone() {
            for &(kind, within) in &self.layout.rq.dsqs {
                self.dsq(layout, cpu.rq.wrapping_add(within), kind, Some(cpu.cpu), None);
            }
        }
        self.schedulers(layout, &mut scx);
        if self.raw.dsqs.len() >= MAX_QUEUES {
            scx.incomplete.get_or_insert(format!("there are more than {MAX_QUEUES} queues"));
        }
        self.raw.scx = Some(scx);
    }

    /// The global queues: an array of pointers, one per NUMA node.
    pub(super) fn node_dsqs(&mut self, layout: &ScxLayout, array: u64, place: usize) {
        for node in 0..self.kernel.nr_node_ids() {
            let Ok(at) = self.kernel.read_u64(Kva(array.wrapping_add(u64::from(node) * 8))) else {
                return;
            };
            // Nodes without memory have none.
            if at != 0 {
                let at = at.wrapping_add(layout.node_dsq);
                self.dsq(layout, at, DsqKind::Global, Some(node), Some(place));
            }
        }
    }

    /// Copies a queue and walks its list. Tasks with a deadline are in a tree as well, but the
    /// list has them in the same order.
    pub(super) fn dsq(
        &mut self,
        layout: &ScxLayout,
        at: u64,
        kind: DsqKind,
        of: Option<u32>,
        sched: Option<usize>,
    ) {
        if self.raw.dsqs.len() >= MAX_QUEUES {
            return;
        }
        let mut dsq = Dsq { at, kind, of, id: 0, sched, tasks: Vec::new(), incomplete: None };
        if let Err(why) = self.piece(at, layout.dsq.size) {
            dsq.incomplete = Some(why);
            self.raw.dsqs.push(dsq);
            return;
        }
        dsq.id = self.raw.memory.u64(at.wrapping_add(layout.dsq.id)).unwrap_or_default();
        let counted = self.raw.memory.u32(at.wrapping_add(layout.dsq.nr)).unwrap_or_default();
        let walk =
            self.kernel.list(Kva(at.wrapping_add(layout.dsq.list)), self.steps.min(MAX_TASKS));
        self.steps -= walk.items.len().min(self.steps);
        dsq.incomplete = walk.error.map(|e| e.to_string());
        let within = self.layout.task.dsq_node.unwrap_or_default();
        for node in walk.items {
            match self.kernel.read_u32(node.offset(layout.dsq.node_flags)) {
                Ok(flags) if flags & CURSOR != 0 => continue,
                Ok(_) => dsq.tasks.push(node.0.wrapping_sub(within)),
                Err(e) => {
                    dsq.incomplete.get_or_insert(e.to_string());
                }
            }
        }
        for task in &dsq.tasks {
            // Known from the list of tasks already, unless it is just being made.
            if let Err(why) = self.task(*task) {
                dsq.incomplete.get_or_insert(why);
            }
        }
        if dsq.incomplete.is_none() && counted as usize != dsq.tasks.len() {
            let there = dsq.tasks.len();
            dsq.incomplete =
                Some(format!("it counts {counted} tasks and lists {there}: it is being changed"));
        }
        self.raw.dsqs.push(dsq);
    }

    /// The queues in a scheduler's `dsq_hash`.
    pub(super) fn hashed(&mut self, layout: &ScxLayout, sched: u64) -> Result<Vec<u64>, String> {
        let hash = &layout.hash;
        let table = self.raw.memory.u64(sched.wrapping_add(hash.tbl)).unwrap_or_default();
        let (what, table) = ("dispatch queues", Kva(table));
        let found = self.kernel.rhashtable(&hash.table, what, table, MAX_DSQS, self.budget);
        match found.incomplete {
            Some(why) => Err(why),
            None => {
                Ok(found.nodes.iter().map(|n| n.0.wrapping_sub(layout.dsq.hash_node)).collect())
            }
        }
    }
}
