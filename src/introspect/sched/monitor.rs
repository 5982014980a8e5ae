//! A look at runqueues, dispatch queues and event counters of a machine that runs on meanwhile.
//!
//! Nothing is copied whole and nothing is locked, so each number is read by itself and believed only
//! if it can be true: a count is no larger than the machine could have tasks, a pointer leads into
//! the kernel, a counter is not negative, a list that is walked is as long as its queue says it is.
//! What changes while it is looked at is given up, and that is counted; what cannot be true is left
//! out with the reason. What only the course can tell (a clock that runs backwards) is for whoever
//! has the reading before.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::layout::{ScxLayout, Struct};
use super::scx::{CURSOR, MAX_DSQS};
use super::{Budget, DsqKind, Layout};
use crate::btf::Shape;
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// What one reading may cost. With two CPUs it takes 0.15 ms at most.
const BYTES: u64 = 8 << 20;
const TIME: Duration = Duration::from_millis(50);
/// The most tasks that a kernel can have (`PID_MAX_LIMIT`).
const MOST_TASKS: u64 = 4 << 20;
/// What a task takes at least: its stack.
const TASK: u64 = 16 << 10;
/// Tasks of a queue that are followed, to see whether it is one.
const WALKED: u32 = 256;
/// Iterators whose place markers a queue may have among its tasks.
const CURSORS: u32 = 64;
/// Dispatch queues that a reading names: all of them, or those with most tasks.
const NAMED: usize = 64;
/// Event counters that are read, and bytes of the name of one.
const EVENTS: usize = 256;
const EVENT: usize = 64;
/// Reasons that are kept of one reading.
const REASONS: usize = 8;
/// Bytes of a task's name (`TASK_COMM_LEN`).
const COMM: usize = 16;
/// In the ids of the kernel's own queues (`SCX_DSQ_FLAG_BUILTIN`). Alone it is that of a queue which
/// is being destroyed.
const BUILTIN: u64 = 1 << 63;

/// What was read of a machine while it ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The CPUs that are online and could be read, ascending.
    pub cpus: Vec<CpuReading>,
    /// How many CPUs could not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cpus_missing: u32,
    /// Whether the kernel has dispatch queues at all.
    pub has_queues: bool,
    /// Dispatch queues and how many tasks wait in each: all, or those with most.
    pub queues: Vec<(String, u32)>,
    /// Whether queues could not be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queues_missing: bool,
    /// The root scheduler, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sched: Option<SchedReading>,
    /// What was not believed, and why; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
    /// How much was not believed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub doubted: u32,
    /// How much changed while it was looked at, and was given up.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub given_up: u32,
}

/// What was read of a CPU's `struct rq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReading {
    /// The CPU.
    pub cpu: u32,
    /// Tasks that are runnable on it, the one that it executes among them.
    pub nr_running: u32,
    /// Those of them that sched_ext schedules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ext_running: Option<u32>,
    /// Its clock, in nanoseconds since about the boot.
    pub clock: u64,
    /// Context switches so far.
    pub nr_switches: u64,
    /// Whether it executes its idle task.
    pub idle: bool,
    /// What it executes otherwise: number and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<(u32, String)>,
}

/// What was read of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedReading {
    /// Where its `struct scx_sched` lies: another one is another scheduler.
    pub at: u64,
    /// How often schedulers had been enabled, where the kernel counts that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The kernel's counts of what happened, summed over CPUs; nothing when they could not be read.
    pub events: Option<Vec<(String, u64)>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Reading {
    /// Leaves something out that cannot be true.
    pub fn doubt(&mut self, why: String) {
        self.doubted += 1;
        if self.doubts.len() < REASONS {
            self.doubts.push(why);
        }
    }
}

/// Where the numbers lie.
pub(super) struct MonitorLayout {
    nr_running: u64,
    nr_switches: u64,
    clock: u64,
    /// 0 for a CPU that is offline.
    online: Option<u64>,
    ext_running: Option<u64>,
    pid: u64,
    comm: u64,
    /// In `struct scx_sched_pcpu`: the counters, each with its name.
    events: Vec<(String, u64)>,
}

impl MonitorLayout {
    pub(super) fn new(kernel: &Kernel) -> Result<Self, IntrospectError> {
        let rq = Struct::new(kernel, "struct rq")?;
        let task = Struct::new(kernel, "struct task_struct")?;
        Ok(MonitorLayout {
            nr_running: rq.at("nr_running")?,
            nr_switches: rq.at("nr_switches")?,
            clock: rq.at("clock")?,
            online: rq.maybe("online"),
            ext_running: rq.maybe("scx.nr_running"),
            pid: task.at("pid")?,
            comm: task.at("comm")?,
            events: events(kernel).unwrap_or_default(),
        })
    }
}

/// The counters of `struct scx_event_stats` (kernel/sched/ext_internal.h), which are more in each
/// kernel.
fn events(kernel: &Kernel) -> Option<Vec<(String, u64)>> {
    let pcpu = Struct::new(kernel, "struct scx_sched_pcpu").ok()?;
    let stats = pcpu.maybe("event_stats")?;
    let id = kernel.type_id("struct scx_event_stats").ok()?;
    let shape = kernel.btf().shape(id).ok()?;
    let Shape::Struct(shape) = &*shape else { return None };
    let names = shape.members.iter().map(|member| &member.name);
    let names = names.filter(|name| (1..=EVENT).contains(&name.len())).take(EVENTS);
    let counters = names.filter_map(|name| {
        let field = kernel.btf().field(id, name).ok().filter(|field| field.size == 8)?;
        Some((name.clone(), stats.checked_add(field.offset)?))
    });
    Some(counters.collect())
}

/// Whether something of the kernel's can be there: upper half, aligned.
fn leads_into_the_kernel(at: u64) -> bool {
    at >> 56 == 0xff && at.is_multiple_of(8)
}

impl Kernel {
    /// Reads what a monitor wants to know, while the machine runs.
    ///
    /// # Errors
    /// The kernel's types do not say where it is.
    pub fn monitor(&self) -> Result<Reading, IntrospectError> {
        let state = self.sched()?;
        let at = state.layout.monitor.as_ref().map_err(Clone::clone)?;
        let runqueues = self.symbols().address("runqueues")?;
        let most = (self.space.size() / TASK).clamp(1, MOST_TASKS) as u32;
        let reading = Reading { has_queues: state.layout.scx.is_some(), ..Reading::default() };
        let budget = Budget::new(BYTES, TIME);
        let layout = &state.layout;
        let mut look = Look { kernel: self, layout, at, most, budget, reading, all: Vec::new() };
        for cpu in 0..self.nr_cpu_ids() {
            let Some(offset) = self.per_cpu_offset(cpu) else { continue };
            look.cpu(cpu, runqueues.offset(offset));
        }
        match &state.layout.scx {
            Some(Ok(scx)) => look.root(scx),
            Some(Err(e)) => {
                look.reading.queues_missing = true;
                look.reading.doubt(e.to_string());
            }
            None => {}
        }
        Ok(look.finish())
    }
}

/// A reading that is being made.
struct Look<'a> {
    kernel: &'a Kernel,
    layout: &'a Layout,
    at: &'a MonitorLayout,
    /// Tasks that the machine has room for.
    most: u32,
    budget: Budget,
    reading: Reading,
    /// Dispatch queues, each by kind, whose it is, and its id.
    all: Vec<(DsqKind, u32, u64, u32)>,
}

/// Why there is no number.
enum Not {
    /// It cannot be true.
    Believed(String),
    /// It changed meanwhile.
    Still,
}

impl Look<'_> {
    fn cpu(&mut self, cpu: u32, rq: Kva) {
        match self.runqueue(cpu, rq) {
            Ok(None) => return,
            Ok(Some(read)) => self.reading.cpus.push(read),
            Err(why) => {
                self.reading.cpus_missing += 1;
                self.reading.doubt(format!("CPU {cpu}: {why}"));
            }
        }
        if let Some(Ok(scx)) = &self.layout.scx {
            for (kind, within) in &self.layout.rq.dsqs {
                self.queue(scx, rq.offset(*within), *kind, cpu);
            }
        }
    }

    /// What is in a runqueue; nothing when the CPU is offline.
    fn runqueue(&mut self, cpu: u32, rq: Kva) -> Result<Option<CpuReading>, String> {
        let (kernel, at) = (self.kernel, self.at);
        let word = |within: u64| kernel.read_u64(rq.offset(within)).map_err(|e| e.to_string());
        let half = |within: u64| kernel.read_u32(rq.offset(within)).map_err(|e| e.to_string());
        self.budget.take(64)?;
        match at.online.map(half).transpose()? {
            Some(0) => return Ok(None),
            Some(1) | None => {}
            Some(n) => return Err(format!("online is {n}")),
        }
        let ext_running = at.ext_running.map(half).transpose()?;
        let nr_running = half(at.nr_running)?;
        for (what, n) in [("nr_running", Some(nr_running)), ("scx.nr_running", ext_running)] {
            if let Some(n) = n.filter(|n| *n > self.most) {
                let most = self.most;
                return Err(format!("{what} is {n}, but there is room for {most} tasks"));
            }
        }
        let clock = word(at.clock)?;
        if clock == 0 || clock > i64::MAX as u64 {
            return Err(format!("clock is {clock}"));
        }
        let (curr, idle) = (word(self.layout.rq.curr)?, word(self.layout.rq.idle)?);
        for (what, pointer) in [("curr", curr), ("idle", idle)] {
            if !leads_into_the_kernel(pointer) {
                return Err(format!("{what} is {pointer:#x}, which is no place of the kernel's"));
            }
        }
        let nr_switches = word(at.nr_switches)?;
        let idle = curr == idle;
        let task = if idle { None } else { self.task(Kva(curr)) };
        // Whatever was there may have gone meanwhile, and its memory may be another's.
        let task = task.filter(|_| word(self.layout.rq.curr) == Ok(curr));
        Ok(Some(CpuReading { cpu, nr_running, ext_running, clock, nr_switches, idle, task }))
    }

    /// Number and name of the task that a CPU executes.
    fn task(&self, task: Kva) -> Option<(u32, String)> {
        let pid = self.kernel.read_u32(task.offset(self.at.pid)).ok()?;
        let comm = self.kernel.read_cstr(task.offset(self.at.comm), COMM).ok()?;
        let sane = u64::from(pid) <= MOST_TASKS && !comm.is_empty();
        (sane && !comm.chars().any(char::is_control)).then_some((pid, comm))
    }

    /// The queues and counters of the root scheduler.
    fn root(&mut self, scx: &ScxLayout) {
        let root = self.kernel.symbols().get("scx_root");
        let pointer = |this: &Self| root.map(|at| this.kernel.read_u64(at));
        let at = match pointer(self) {
            None | Some(Ok(0)) => return,
            Some(Ok(at)) if leads_into_the_kernel(at) => at,
            Some(Ok(at)) => {
                let why = format!("scx_root is {at:#x}, which is no place of the kernel's");
                return self.without_queues(why);
            }
            Some(Err(e)) => return self.without_queues(format!("scx_root: {e}")),
        };
        let others = self.all.len();
        let seq = self.kernel.symbols().get("scx_enable_seq");
        let seq = seq.and_then(|at| self.kernel.read_u64(at).ok());
        let per_cpu = self.percpu(scx, at);
        if let Some(within) = scx.pcpu_bypass {
            for &(cpu, at) in &per_cpu {
                self.queue(scx, Kva(at).offset(within), DsqKind::Bypass, cpu);
            }
        }
        self.global_queues(scx, at);
        self.user_queues(scx, at);
        let events = match self.events(&per_cpu) {
            Ok(events) => Some(events),
            Err(why) => {
                self.reading.doubt(why);
                None
            }
        };
        // One that has gone meanwhile has left its memory to others.
        if pointer(self) != Some(Ok(at)) {
            self.reading.given_up += 1;
            self.reading.queues_missing = true;
            self.all.truncate(others);
            return;
        }
        self.reading.sched = Some(SchedReading { at, seq, events });
    }

    fn without_queues(&mut self, why: String) {
        self.reading.queues_missing = true;
        self.reading.doubt(why);
    }

    /// Where each CPU's part of a scheduler lies.
    fn percpu(&self, scx: &ScxLayout, sched: u64) -> Vec<(u32, u64)> {
        let base = scx.pcpu.and_then(|at| self.kernel.read_u64(Kva(sched).offset(at)).ok());
        let Some(base) = base.filter(|base| *base != 0) else { return Vec::new() };
        let cpus = 0..self.kernel.nr_cpu_ids();
        let place = |cpu| Some((cpu, base.wrapping_add(self.kernel.per_cpu_offset(cpu)?)));
        cpus.filter_map(place).collect()
    }

    fn global_queues(&mut self, scx: &ScxLayout, sched: u64) {
        let array = scx.nodes.and_then(|at| self.kernel.read_u64(Kva(sched).offset(at)).ok());
        let Some(array) = array.filter(|at| leads_into_the_kernel(*at)) else { return };
        for node in 0..self.kernel.nr_node_ids() {
            let at = self.kernel.read_u64(Kva(array).offset(u64::from(node) * 8));
            // Nodes without memory have none.
            if let Ok(at) = at.map(|at| at.wrapping_add(scx.node_dsq))
                && leads_into_the_kernel(at)
            {
                self.queue(scx, Kva(at), DsqKind::Global, node);
            }
        }
    }

    fn user_queues(&mut self, scx: &ScxLayout, sched: u64) {
        let table = match self.kernel.read_u64(Kva(sched).offset(scx.hash.tbl)) {
            Ok(table) if leads_into_the_kernel(table) => Kva(table),
            Ok(_) | Err(_) => return self.without_queues("there is no table of queues".to_owned()),
        };
        let what = "dispatch queues";
        let budget = &mut self.budget;
        let found = self.kernel.rhashtable(&scx.hash.table, what, table, MAX_DSQS, budget);
        if let Some(why) = found.incomplete {
            self.without_queues(why);
        }
        for node in found.nodes {
            let at = Kva(node.0.wrapping_sub(scx.dsq.hash_node));
            self.queue(scx, at, DsqKind::User, 0);
        }
    }

    /// How many tasks wait in a queue.
    fn queue(&mut self, scx: &ScxLayout, at: Kva, kind: DsqKind, of: u32) {
        if let Err(why) = self.budget.take(64) {
            // Said once: what ran out stays out.
            if !std::mem::replace(&mut self.reading.queues_missing, true) {
                self.reading.doubt(why);
            }
            return;
        }
        match self.depth(scx, at, kind) {
            Ok((id, depth)) => self.all.push((kind, of, id, depth)),
            Err(Not::Believed(why)) => {
                let what = match kind {
                    DsqKind::User => "a queue of the scheduler's".to_owned(),
                    _ => format!("queue {}", name(kind, of, 0, false)),
                };
                self.without_queues(format!("{what}: {why}"));
            }
            Err(Not::Still) => self.reading.given_up += 1,
        }
    }

    /// A queue's id and how many tasks are in it. Its list is walked, so that something else is not
    /// taken for a queue; a list that changes meanwhile is not held against it.
    fn depth(&mut self, scx: &ScxLayout, at: Kva, kind: DsqKind) -> Result<(u64, u32), Not> {
        let lost = |e: crate::introspect::ReadError| Not::Believed(e.to_string());
        let nr = || self.kernel.read_u32(at.offset(scx.dsq.nr)).map_err(lost);
        let id = || self.kernel.read_u64(at.offset(scx.dsq.id)).map_err(lost);
        let (number, counted) = (id()?, nr()?);
        if kind == DsqKind::User && number & BUILTIN != 0 {
            // It is being destroyed.
            return Err(Not::Still);
        }
        let walked = self.walk(scx, at, counted);
        let now = nr()?;
        if id()? != number {
            return Err(Not::Still);
        }
        if now > self.most {
            let most = self.most;
            return Err(Not::Believed(format!(
                "it counts {now} tasks, but there is room for {most}"
            )));
        }
        let changed = now != counted;
        match walked {
            Err(why) if !changed => return Err(Not::Believed(why)),
            Err(_) | Ok(false) => self.reading.given_up += 1,
            Ok(true) => {}
        }
        Ok((number, now))
    }

    /// Whether a queue's list is as long as it counts tasks; of a long one only the beginning is
    /// looked at.
    fn walk(&self, scx: &ScxLayout, queue: Kva, counted: u32) -> Result<bool, String> {
        let head = queue.offset(scx.dsq.list);
        let (mut at, mut tasks, mut cursors) = (head, 0, 0);
        loop {
            let next = self.kernel.read_u64(at).map_err(|e| e.to_string())?;
            if Kva(next) == head {
                return Ok(tasks == counted);
            }
            if !leads_into_the_kernel(next) {
                return Err(format!("its list leads to {next:#x}, no place of the kernel's"));
            }
            at = Kva(next);
            let flags = self.kernel.read_u32(at.offset(scx.dsq.node_flags));
            match flags.map_err(|e| e.to_string())? & CURSOR {
                0 => tasks += 1,
                _ => cursors += 1,
            }
            if tasks >= WALKED {
                return Ok(counted >= tasks);
            }
            if tasks > counted || cursors > CURSORS {
                return Ok(false);
            }
        }
    }

    /// The event counters, summed over CPUs.
    fn events(&mut self, per_cpu: &[(u32, u64)]) -> Result<Vec<(String, u64)>, String> {
        let mut sums: Vec<(String, u64)> =
            self.at.events.iter().map(|(name, _)| (name.clone(), 0)).collect();
        for (cpu, at) in per_cpu {
            self.budget.take(8 * sums.len() as u64)?;
            for ((name, within), (_, sum)) in self.at.events.iter().zip(&mut sums) {
                let n =
                    self.kernel.read_u64(Kva(*at).offset(*within)).map_err(|e| e.to_string())?;
                if n > i64::MAX as u64 {
                    return Err(format!("{name} of CPU {cpu} is {}", n as i64));
                }
                *sum = sum.saturating_add(n);
            }
        }
        Ok(sums)
    }

    fn finish(mut self) -> Reading {
        let nodes = self.all.iter().filter(|(kind, ..)| *kind == DsqKind::Global).count();
        if self.all.len() > NAMED {
            self.all.sort_by_key(|(.., depth)| std::cmp::Reverse(*depth));
            self.all.truncate(NAMED);
        }
        let named = |(kind, of, id, depth): &(DsqKind, u32, u64, u32)| {
            (name(*kind, *of, *id, nodes > 1), *depth)
        };
        self.reading.queues = self.all.iter().map(named).collect();
        self.reading
    }
}

/// What a queue is called, as in a snapshot.
fn name(kind: DsqKind, of: u32, id: u64, nodes: bool) -> String {
    match kind {
        DsqKind::Local => format!("local:{of}"),
        DsqKind::Bypass => format!("bypass:{of}"),
        DsqKind::Reject => format!("reject:{of}"),
        DsqKind::Rescue => format!("rescue:{of}"),
        DsqKind::Global if nodes => format!("global:{of}"),
        DsqKind::Global => "global".to_owned(),
        DsqKind::User => id.to_string(),
    }
}
