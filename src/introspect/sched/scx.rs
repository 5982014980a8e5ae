//! sched_ext: the attached schedulers and every dispatch queue.

use std::collections::HashSet;

use super::layout::ScxLayout;
use super::{Copy, MAX_TASKS};
use crate::mem::Kva;

/// Schedulers that are looked at.
const MAX_SCHEDS: usize = 256;
/// User queues of one scheduler.
const MAX_DSQS: usize = 16 << 10;
/// Queues of all schedulers and CPUs.
const MAX_QUEUES: usize = 128 << 10;
/// NUMA nodes that kernels can be built for.
const MAX_NODES: u32 = 1024;
/// Bytes of a cgroup's path.
const MAX_PATH: usize = 4096;
/// `SCX_DSQ_LNODE_ITER_CURSOR`: a place marker of an iterator, no task.
const CURSOR: u32 = 1;

/// The state of sched_ext.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScxState {
    /// As `/sys/kernel/sched_ext/state` says it: `enabled`.
    pub state: Option<String>,
    /// The schedulers there are, the root first.
    pub scheds: Vec<ScxSched>,
    /// Why something is missing.
    pub incomplete: Option<String>,
}

/// A scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScxSched {
    /// Where its `struct scx_sched` lies.
    pub at: u64,
    /// Whether it is the one that `scx_root` points to.
    pub root: bool,
    /// The cgroup that it schedules, where there can be several schedulers.
    pub cgroup: Option<String>,
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
                self.raw.scx = Some(ScxState { incomplete, ..ScxState::default() });
                return;
            }
        };
        let mut scx = ScxState { state: self.enable_state(layout), ..ScxState::default() };
        for cpu in self.raw.cpus.clone() {
            for &(kind, within) in &self.layout.rq.dsqs {
                self.dsq(layout, cpu.rq.wrapping_add(within), kind, Some(cpu.cpu), None);
            }
        }
        for (i, at) in self.scheds(layout, &mut scx.incomplete).into_iter().enumerate() {
            match self.sched(layout, at, i) {
                Ok(sched) => scx.scheds.push(sched),
                Err(why) => {
                    scx.incomplete.get_or_insert(why);
                    break;
                }
            }
        }
        if self.raw.dsqs.len() >= MAX_QUEUES {
            scx.incomplete.get_or_insert(format!("there are more than {MAX_QUEUES} queues"));
        }
        self.raw.scx = Some(scx);
    }

    fn enable_state(&self, layout: &ScxLayout) -> Option<String> {
        let symbols = ["scx_enable_state_var", "scx_ops_enable_state_var"];
        let at = symbols.iter().find_map(|name| self.kernel.symbols().get(name))?;
        let number = i128::from(self.kernel.read_u32(at).ok()?);
        let known = layout.states.iter().find(|(value, _)| *value == number);
        Some(known.map_or_else(|| format!("state {number}"), |(_, name)| name.clone()))
    }

    /// The root scheduler, then all others.
    fn scheds(&self, layout: &ScxLayout, incomplete: &mut Option<String>) -> Vec<u64> {
        let symbols = self.kernel.symbols();
        let root = symbols.get("scx_root").and_then(|at| self.kernel.read_u64(at).ok());
        let mut out: Vec<u64> = root.into_iter().filter(|at| *at != 0).collect();
        if let Some((head, all)) = symbols.get("scx_sched_all").zip(layout.all) {
            let walk = self.kernel.list(head, MAX_SCHEDS);
            if let Some(e) = walk.error {
                incomplete.get_or_insert(e.to_string());
            }
            let others = walk.items.iter().map(|node| node.0.wrapping_sub(all));
            out.extend(others.filter(|at| Some(*at) != root));
        }
        out
    }

    /// One scheduler, its per-CPU data and its queues.
    fn sched(&mut self, layout: &ScxLayout, at: u64, place: usize) -> Result<ScxSched, String> {
        self.piece(at, layout.sched_size)?;
        let word = |this: &Self, within: u64| this.raw.memory.u64(at.wrapping_add(within));
        let path = layout.cgrp_path.and_then(|within| word(self, within)).filter(|p| *p != 0);
        let cgroup = path.and_then(|at| self.kernel.read_cstr(Kva(at), MAX_PATH).ok());
        let mut pcpu = Vec::new();
        let base = layout.pcpu.and_then(|within| word(self, within)).filter(|p| *p != 0);
        if let Some(base) = base.filter(|_| layout.pcpu_size > 0) {
            for cpu in 0..self.kernel.nr_cpu_ids() {
                let Some(offset) = self.kernel.per_cpu_offset(cpu) else { continue };
                let at = base.wrapping_add(offset);
                self.piece(at, layout.pcpu_size)?;
                pcpu.push((cpu, at));
                if let Some(within) = layout.pcpu_bypass {
                    let at = at.wrapping_add(within);
                    self.dsq(layout, at, DsqKind::Bypass, Some(cpu), Some(place));
                }
            }
        }
        if let Some(nodes) = layout.nodes.and_then(|within| word(self, within)) {
            self.node_dsqs(layout, nodes, place);
        }
        for at in self.hashed(layout, at)? {
            self.dsq(layout, at, DsqKind::User, None, Some(place));
        }
        Ok(ScxSched { at, root: place == 0, cgroup, pcpu })
    }

    /// The global queues: an array of pointers, one per NUMA node.
    fn node_dsqs(&mut self, layout: &ScxLayout, array: u64, place: usize) {
        let nr = self.kernel.symbols().get("nr_node_ids");
        let nr = nr.and_then(|at| self.kernel.read_u32(at).ok()).unwrap_or(1).min(MAX_NODES);
        for node in 0..nr {
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
    fn dsq(
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

    /// The queues in a scheduler's `dsq_hash`: buckets of chains that end in an odd value, the
    /// lowest bit of a bucket being its lock; while it grows, a second table (lib/rhashtable.c).
    fn hashed(&mut self, layout: &ScxLayout, sched: u64) -> Result<Vec<u64>, String> {
        let hash = &layout.hash;
        let (mut out, mut seen) = (Vec::new(), HashSet::new());
        let mut table = self.raw.memory.u64(sched.wrapping_add(hash.tbl)).unwrap_or_default();
        for _ in 0..2 {
            if table == 0 {
                break;
            }
            let text = |e: super::super::error::ReadError| e.to_string();
            let at = |within: u64| Kva(table.wrapping_add(within));
            let size = self.kernel.read_u32(at(hash.size)).map_err(text)? as usize;
            if self.kernel.read_u32(at(hash.nest)).map_err(text)? != 0 {
                return Err("the table of dispatch queues is in pieces".into());
            }
            if size > 4 * MAX_DSQS {
                return Err(format!("the table of dispatch queues has {size} buckets"));
            }
            let mut buckets = vec![0; size * 8];
            self.kernel.read(at(hash.buckets), &mut buckets).map_err(text)?;
            for bucket in buckets.as_chunks().0 {
                let mut next = u64::from_le_bytes(*bucket) & !1;
                while next != 0 && next & 1 == 0 {
                    if !seen.insert(next) {
                        break;
                    }
                    if out.len() == MAX_DSQS {
                        return Err(format!("there are more than {MAX_DSQS} dispatch queues"));
                    }
                    out.push(next.wrapping_sub(layout.dsq.hash_node));
                    next = self.kernel.read_u64(Kva(next)).map_err(text)?;
                }
            }
            self.budget.check_time()?;
            table = self.kernel.read_u64(at(hash.future)).map_err(text)?;
        }
        Ok(out)
    }
}
