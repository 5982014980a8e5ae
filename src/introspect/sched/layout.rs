//! Where the kernel keeps things in its scheduling structures, from its BTF.
//!
//! A member that only some kernels have is an `Option`, with the change that made the difference
//! where it is known.

use crate::btf::{Shape, TypeId};

use super::super::error::IntrospectError;
use super::super::kernel::Kernel;
use super::super::rhashtable::TableLayout;
use super::domains::DomainLayout;
use super::modules::ModuleLayout;
use super::monitor::MonitorLayout;
use super::psi::PsiLayout;

/// Structs larger than this are not read whole: nothing of the kernel's is.
const MAX_STRUCT: u64 = 1 << 16;

pub(super) type Found<T> = Result<T, IntrospectError>;

/// A struct of which members are asked.
pub(super) struct Struct<'a> {
    kernel: &'a Kernel,
    name: &'static str,
    id: TypeId,
    pub(super) size: u64,
}

impl<'a> Struct<'a> {
    pub(super) fn new(kernel: &'a Kernel, name: &'static str) -> Found<Self> {
        let id = kernel.type_id(name)?;
        match kernel.btf().size_of(id) {
            Some(size @ 1..=MAX_STRUCT) => Ok(Struct { kernel, name, id, size }),
            _ => Err(IntrospectError::Type(format!("'{name}' has no sensible size"))),
        }
    }

    pub(super) fn at(&self, path: &str) -> Found<u64> {
        let at = self.kernel.field(self.id, path)?;
        if at >= self.size {
            let text = format!("'{}' has '{path}' behind its end", self.name);
            return Err(IntrospectError::Type(text));
        }
        Ok(at)
    }

    /// Where an array of no length lies: at the end, or in the padding before it.
    pub(super) fn flexible(&self, path: &str) -> Option<u64> {
        self.kernel.field(self.id, path).ok().filter(|at| *at <= self.size)
    }

    /// As [`Struct::at`], for a member that need not be there.
    pub(super) fn maybe(&self, path: &str) -> Option<u64> {
        self.at(path).ok()
    }
}

/// `struct rq` (kernel/sched/sched.h).
pub(super) struct RqLayout {
    pub(super) size: u64,
    pub(super) curr: u64,
    pub(super) idle: u64,
    /// Dispatch queues that lie in it, with what they are called.
    pub(super) dsqs: Vec<(super::DsqKind, u64)>,
}

impl RqLayout {
    fn new(kernel: &Kernel) -> Found<Self> {
        use super::DsqKind as K;
        let rq = Struct::new(kernel, "struct rq")?;
        let named = [
            (K::Local, "scx.local_dsq"),
            // Moved into the scheduler's own per-CPU data with sub-schedulers (7.1).
            (K::Bypass, "scx.bypass_dsq"),
            (K::Reject, "scx.reject_dsq"),
            (K::Rescue, "scx.rescue.dsq"),
        ];
        let dsqs = named.into_iter().filter_map(|(kind, path)| Some((kind, rq.maybe(path)?)));
        Ok(RqLayout {
            size: rq.size,
            curr: rq.at("curr")?,
            idle: rq.at("idle")?,
            dsqs: dsqs.collect(),
        })
    }
}

/// `struct task_struct` (include/linux/sched.h) and what leads from task to task.
pub(super) struct TaskLayout {
    pub(super) size: u64,
    /// In the list of thread groups' leaders, which begins in `init_task`.
    pub(super) tasks: u64,
    /// In the list of one group's threads, which begins in `struct signal_struct`.
    pub(super) thread_node: u64,
    pub(super) signal: u64,
    pub(super) thread_head: u64,
    /// Ranges to copy where there is no room for all of each task.
    pub(super) needed: Vec<(u64, u64)>,
    /// In `struct sched_ext_entity`: where dispatch queues link tasks.
    pub(super) dsq_node: Option<u64>,
}

/// Members of a task that are copied even where there is no room for all of it.
const NEEDED: [&str; 28] = [
    "stats",
    "thread_info",
    "__state",
    "state",
    "flags",
    "on_cpu",
    "on_rq",
    "prio",
    "static_prio",
    "normal_prio",
    "rt_priority",
    "se",
    "scx",
    "sched_class",
    "policy",
    "nr_cpus_allowed",
    "cpus_ptr",
    "migration_disabled",
    "exit_state",
    "pid",
    "tgid",
    "real_parent",
    "group_leader",
    "utime",
    "stime",
    "start_time",
    "comm",
    "cgroups",
];

impl TaskLayout {
    fn new(kernel: &Kernel) -> Found<Self> {
        let task = Struct::new(kernel, "struct task_struct")?;
        let signal = Struct::new(kernel, "struct signal_struct")?;
        let mut ranges: Vec<(u64, u64)> = NEEDED
            .iter()
            .filter_map(|name| kernel.btf().field(task.id, name).ok())
            .map(|f| (f.offset, f.offset.saturating_add(f.size).min(task.size)))
            .collect();
        if let Some(mask) = task.maybe("cpus_mask") {
            // The type has room for all CPUs that a kernel can be built for.
            let bytes = u64::from(kernel.nr_cpu_ids()).div_ceil(64) * 8;
            ranges.push((mask, mask.saturating_add(bytes).min(task.size)));
        }
        Ok(TaskLayout {
            size: task.size,
            tasks: task.at("tasks")?,
            thread_node: task.at("thread_node")?,
            signal: task.at("signal")?,
            thread_head: signal.at("thread_head")?,
            needed: merged(ranges),
            dsq_node: task.maybe("scx.dsq_list.node"),
        })
    }
}

/// Ranges (start, end) as (start, length), those that lie close together as one: a copy costs more
/// than a few bytes too many.
fn merged(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    const GAP: u64 = 128;
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match out.last_mut() {
            Some((_, last)) if start <= last.saturating_add(GAP) => *last = end.max(*last),
            _ => out.push((start, end)),
        }
    }
    out.into_iter().map(|(start, end)| (start, end - start)).collect()
}

/// From a cgroup to its path: `struct cgroup` (include/linux/cgroup-defs.h),
/// `struct kernfs_node` (include/linux/kernfs.h).
pub(in crate::introspect) struct CgroupNode {
    pub(in crate::introspect) kn: u64,
    pub(in crate::introspect) parent: u64,
    pub(in crate::introspect) name: u64,
    pub(in crate::introspect) id: u64,
}

/// From a task to its cgroup in the default hierarchy: `struct css_set`.
pub(super) struct CgroupLayout {
    /// In the task.
    pub(super) cgroups: u64,
    pub(super) dfl_cgrp: u64,
    pub(super) node: CgroupNode,
}

impl CgroupNode {
    /// Given what finds members of the two structs.
    pub(in crate::introspect) fn new(
        cgroup: impl Fn(&str) -> Found<u64>,
        node: impl Fn(&str) -> Found<u64>,
    ) -> Found<Self> {
        Ok(CgroupNode {
            kn: cgroup("kn")?,
            // Renamed by 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent").
            parent: node("__parent").or_else(|_| node("parent"))?,
            name: node("name")?,
            id: node("id")?,
        })
    }
}

impl CgroupLayout {
    fn new(kernel: &Kernel) -> Found<Self> {
        let task = Struct::new(kernel, "struct task_struct")?;
        let cgroup = Struct::new(kernel, "struct cgroup")?;
        let node = Struct::new(kernel, "struct kernfs_node")?;
        Ok(CgroupLayout {
            cgroups: task.at("cgroups")?,
            dfl_cgrp: Struct::new(kernel, "struct css_set")?.at("dfl_cgrp")?,
            node: CgroupNode::new(|path| cgroup.at(path), |path| node.at(path))?,
        })
    }
}

/// `struct scx_sched` and `struct scx_dispatch_q` (kernel/sched/ext_internal.h,
/// include/linux/sched/ext.h).
pub(super) struct ScxLayout {
    pub(super) sched_size: u64,
    /// In the list of all schedulers, where there can be several (since 7.1).
    pub(super) all: Option<u64>,
    pub(super) cgrp_path: Option<u64>,
    /// How deep it lies in the tree, and where the pointers to those above it begin: behind its end.
    pub(super) ancestors: Option<(u64, u64)>,
    pub(super) exit: Option<ExitLayout>,
    pub(super) pcpu: Option<u64>,
    pub(super) pcpu_size: u64,
    /// A per-CPU queue while the scheduler is passed over.
    pub(super) pcpu_bypass: Option<u64>,
    /// Pointers to per-node data with a queue in it (since 7.1), or to such queues themselves.
    pub(super) nodes: Option<u64>,
    /// Where the queue lies in what such a pointer leads to.
    pub(super) node_dsq: u64,
    pub(super) dsq: DsqLayout,
    pub(super) hash: HashLayout,
    /// Names of `enum scx_enable_state`.
    pub(super) states: Vec<(i128, String)>,
}

/// `struct scx_exit_info` (kernel/sched/ext_internal.h).
pub(super) struct ExitLayout {
    /// In the scheduler: the pointer to it.
    pub(super) info: u64,
    pub(super) size: u64,
    pub(super) reason: u64,
    pub(super) msg: u64,
}

impl ExitLayout {
    fn new(kernel: &Kernel, sched: &Struct<'_>) -> Option<Self> {
        let info = Struct::new(kernel, "struct scx_exit_info").ok()?;
        Some(ExitLayout {
            info: sched.maybe("exit_info")?,
            size: info.size,
            reason: info.maybe("reason")?,
            msg: info.maybe("msg")?,
        })
    }
}

/// `struct scx_dispatch_q` and `struct scx_dsq_list_node`.
pub(super) struct DsqLayout {
    pub(super) size: u64,
    pub(super) list: u64,
    pub(super) nr: u64,
    pub(super) id: u64,
    pub(super) hash_node: u64,
    /// Flags of a link, counted from the link.
    pub(super) node_flags: u64,
}

/// `struct rhashtable` in a scheduler.
pub(super) struct HashLayout {
    /// From the scheduler to the pointer to the table.
    pub(super) tbl: u64,
    pub(super) table: TableLayout,
}

impl ScxLayout {
    fn new(kernel: &Kernel) -> Found<Self> {
        let sched = Struct::new(kernel, "struct scx_sched")?;
        let dsq = Struct::new(kernel, "struct scx_dispatch_q")?;
        let node = Struct::new(kernel, "struct scx_dsq_list_node")?;
        let pcpu = Struct::new(kernel, "struct scx_sched_pcpu");
        let pnode = Struct::new(kernel, "struct scx_sched_pnode");
        let (nodes, node_dsq) = match (sched.maybe("pnode"), pnode) {
            (Some(at), Ok(pnode)) => (Some(at), pnode.at("global_dsq")?),
            _ => (sched.maybe("global_dsqs"), 0),
        };
        Ok(ScxLayout {
            sched_size: sched.size,
            all: sched.maybe("all"),
            cgrp_path: sched.maybe("cgrp_path"),
            ancestors: sched.maybe("level").zip(kernel.field(sched.id, "ancestors").ok()),
            exit: ExitLayout::new(kernel, &sched),
            pcpu: sched.maybe("pcpu"),
            pcpu_size: pcpu.as_ref().map_or(0, |p| p.size),
            pcpu_bypass: pcpu.ok().and_then(|p| p.maybe("bypass_dsq")),
            nodes,
            node_dsq,
            dsq: DsqLayout {
                size: dsq.size,
                list: dsq.at("list")?,
                nr: dsq.at("nr")?,
                id: dsq.at("id")?,
                hash_node: dsq.at("hash_node")?,
                node_flags: node.at("flags")?,
            },
            hash: HashLayout {
                tbl: sched.at("dsq_hash.tbl")?,
                table: TableLayout::new(kernel.btf())?,
            },
            states: states(kernel),
        })
    }
}

/// The names of the states in the words of `/sys/kernel/sched_ext/state`.
fn states(kernel: &Kernel) -> Vec<(i128, String)> {
    let named = ["enum scx_enable_state", "enum scx_ops_enable_state"];
    let Some(id) = named.iter().find_map(|name| kernel.btf().find_c(name)) else {
        return Vec::new();
    };
    let Ok(shape) = kernel.btf().shape(id) else { return Vec::new() };
    let Shape::Enum(states) = &*shape else { return Vec::new() };
    let plain = |name: &str| {
        let name = name.strip_prefix("SCX_").unwrap_or(name);
        name.strip_prefix("OPS_").unwrap_or(name).to_ascii_lowercase()
    };
    states.variants.iter().map(|(name, value)| (*value, plain(name))).collect()
}

/// All of them. What a kernel lacks is an error where it is needed.
pub(super) struct Layout {
    pub(super) rq: RqLayout,
    pub(super) task: TaskLayout,
    pub(super) cpustat_size: Option<u64>,
    pub(super) cgroup: Found<CgroupLayout>,
    /// `None` when the kernel was built without sched_ext.
    pub(super) scx: Option<Found<ScxLayout>>,
    pub(super) classes: Vec<(u64, String)>,
    pub(super) psi: Found<PsiLayout>,
    pub(super) domains: Found<DomainLayout>,
    pub(super) modules: Found<ModuleLayout>,
    pub(super) monitor: Found<MonitorLayout>,
    /// The byte of `tasklist_lock` that is not zero while somebody writes.
    pub(super) tasks_lock: Option<u64>,
    /// In `struct bpf_ksym`: the link to the next one; and how large it is.
    pub(super) ksym: Option<(u64, u64)>,
}

impl Layout {
    pub(super) fn new(kernel: &Kernel) -> Found<Self> {
        let cpustat = Struct::new(kernel, "struct kernel_cpustat").ok();
        let has_scx = kernel.btf().find_c("struct sched_ext_ops").is_some()
            && kernel.symbols().get("scx_root").is_some();
        let classes = ["stop", "dl", "rt", "fair", "ext", "idle"].iter().filter_map(|name| {
            let at = kernel.symbols().get(&format!("{name}_sched_class"))?;
            Some((at.0, (*name).to_owned()))
        });
        let lock = Struct::new(kernel, "rwlock_t").ok();
        let lock = lock.and_then(|l| l.maybe("raw_lock.wlocked"));
        let lock = kernel.symbols().get("tasklist_lock").zip(lock);
        let ksym = Struct::new(kernel, "struct bpf_ksym").ok();
        Ok(Layout {
            rq: RqLayout::new(kernel)?,
            task: TaskLayout::new(kernel)?,
            cpustat_size: cpustat.map(|s| s.size),
            cgroup: CgroupLayout::new(kernel),
            scx: has_scx.then(|| ScxLayout::new(kernel)),
            classes: classes.collect(),
            psi: PsiLayout::new(kernel),
            domains: DomainLayout::new(kernel),
            modules: ModuleLayout::new(kernel),
            monitor: MonitorLayout::new(kernel),
            tasks_lock: lock.map(|(at, within)| at.offset(within).0),
            ksym: ksym.and_then(|ksym| Some((ksym.maybe("lnode")?, ksym.size))),
        })
    }
}
