//! A made-up machine with tasks, runqueues and a sched_ext scheduler, for tests of what reads them.
//!
//! | task | threads | cgroup | where |
//! |---|---|---|---|
//! | 1 `init` | | `/` | in the local queue of CPU 0 |
//! | 40 `worker` | 41, 42 | `/lab/hot` | 41 and 42 in queue 7, in this order |
//! | 50 `spin` | | `/lab/hot` | on CPU 0 |
//!
//! CPU 1 is idle. Queue 7 has an iterator's cursor in it, too.

pub(crate) mod modules;
pub(crate) mod pressure;

use std::collections::BTreeMap;

use crate::btf::TypeId;
use crate::btf::testing::Builder;
use crate::introspect::testing::Guest;
use crate::mem::Kva;

/// Offsets in the made-up structs. Any would do: the code under test reads them from the types.
pub(crate) mod at {
    pub(crate) const TASK: u64 = 192;
    pub(crate) const TASKS: u64 = 40;
    pub(crate) const THREAD_NODE: u64 = 56;
    pub(crate) const SIGNAL: u64 = 72;
    pub(crate) const CGROUPS: u64 = 80;
    pub(crate) const COMM: u64 = 88;
    pub(crate) const MASK: u64 = 104;
    pub(crate) const CLASS: u64 = 112;
    pub(crate) const SCX: u64 = 128;
    pub(crate) const DSQ_NODE: u64 = SCX + 8;
    pub(crate) const LAST_QUEUED: u64 = 184;
    pub(crate) const THREAD_HEAD: u64 = 16;
    pub(crate) const RQ: u64 = 112;
    pub(crate) const SD: u64 = 104;
    /// Only where a monitor looks.
    pub(crate) const SWITCHES: u64 = 112;
    pub(crate) const ONLINE: u64 = 120;
    pub(crate) const MONITORED_RQ: u64 = 128;
    pub(crate) const LOCAL: u64 = 40;
    pub(crate) const DSQ: u64 = 64;
    pub(crate) const LIST: u64 = 8;
    pub(crate) const NR: u64 = 24;
    pub(crate) const HASH_NODE: u64 = 40;
    pub(crate) const SCHED: u64 = 104;
    pub(crate) const ALL: u64 = 48;
    pub(crate) const PATH: u64 = 64;
    pub(crate) const EXIT_KIND: u64 = 72;
    pub(crate) const EXIT_INFO: u64 = 80;
    pub(crate) const LEVEL: u64 = 88;
    pub(crate) const SUB_ATTACHED: u64 = 92;
    pub(crate) const CGROUP_ID: u64 = 96;
}

/// The machine before it is sealed, and where things lie in it.
pub(crate) struct Machine {
    pub(crate) guest: Guest,
    /// Tasks by number, the idle one of CPU 0 (`init_task`) as 0.
    pub(crate) tasks: BTreeMap<u32, Kva>,
    pub(crate) rqs: [Kva; 2],
    pub(crate) user_dsq: Kva,
    pub(crate) buckets: Kva,
    pub(crate) table: Kva,
    pub(crate) sched: Kva,
    pub(crate) module: modules::MadeModule,
    pub(crate) groups: [Kva; 2],
}

/// Types of the kernel's scheduling structs.
fn types(guest: &mut Guest, with_scx: bool, monitored: bool) {
    let t = &mut guest.types;
    let bit = |byte: u64| byte as u32 * 8;
    let u32_ = t.int("unsigned int", 4, false);
    let s32 = t.int("int", 4, true);
    let u64_ = t.int("unsigned long", 8, false);
    let s64 = t.int("long", 8, true);
    let char_ = t.int("char", 1, true);
    let text = t.array(char_, 16);
    let void = t.ptr(0);
    let name = t.ptr(char_);
    t.typedef("u64", u64_);
    let list = t.structure("list_head", 16, &[("next", void, 0), ("prev", void, 64)]);
    let words = t.array(u64_, 1);
    let mask = t.structure("cpumask", 8, &[("bits", words, 0)]);
    let atomic = t.structure("", 4, &[("counter", s32, 0)]);
    let queued = t.structure("qspinlock", 4, &[("val", atomic, 0)]);
    let lock = t.structure("raw_spinlock", 4, &[("raw_lock", queued, 0)]);
    let hash = t.structure("rhash_head", 8, &[("next", void, 0)]);
    let dsq = [
        ("lock", lock, 0),
        ("list", list, bit(at::LIST)),
        ("nr", u32_, bit(at::NR)),
        ("seq", u32_, bit(28)),
        ("id", u64_, bit(32)),
        ("hash_node", hash, bit(at::HASH_NODE)),
    ];
    let dsq = t.structure("scx_dispatch_q", at::DSQ as u32, &dsq);
    let dsq_ptr = t.ptr(dsq);
    let node = [("node", list, 0), ("flags", u32_, bit(16)), ("priv", u32_, bit(20))];
    let node = t.structure("scx_dsq_list_node", 24, &node);
    let entity = [
        ("dsq", dsq_ptr, 0),
        ("dsq_list", node, bit(8)),
        ("dsq_seq", u32_, bit(32)),
        ("weight", u32_, bit(36)),
        ("slice", u64_, bit(40)),
        ("dsq_vtime", u64_, bit(48)),
    ];
    let entity = t.structure("sched_ext_entity", 56, &entity);
    let info = t.structure("sched_info", 8, &[("last_queued", u64_, 0)]);
    t.structure("signal_struct", 32, &[("thread_head", list, bit(at::THREAD_HEAD))]);
    let task_id = t.next_id() + 1;
    let task_ptr = t.ptr(task_id);
    let mut task = vec![
        ("__state", u32_, 0),
        ("exit_state", s32, bit(4)),
        ("on_rq", s32, bit(8)),
        ("on_cpu", s32, bit(12)),
        ("prio", s32, bit(16)),
        ("static_prio", s32, bit(20)),
        ("policy", u32_, bit(24)),
        ("pid", s32, bit(28)),
        ("tgid", s32, bit(32)),
        ("cpu", u32_, bit(36)),
        ("tasks", list, bit(at::TASKS)),
        ("thread_node", list, bit(at::THREAD_NODE)),
        ("signal", void, bit(at::SIGNAL)),
        ("cgroups", void, bit(at::CGROUPS)),
        ("comm", text, bit(at::COMM)),
        ("cpus_mask", mask, bit(at::MASK)),
        ("sched_class", void, bit(at::CLASS)),
        ("group_leader", task_ptr, bit(120)),
        ("sched_info", info, bit(at::LAST_QUEUED)),
    ];
    if with_scx {
        task.push(("scx", entity, bit(at::SCX)));
    }
    t.structure("task_struct", at::TASK as u32, &task);
    let mut rq = vec![
        ("nr_running", u32_, 0),
        ("curr", task_ptr, bit(8)),
        ("idle", task_ptr, bit(16)),
        ("clock", u64_, bit(24)),
        ("__lock", lock, bit(32)),
    ];
    modules::types(t, [u32_, s32, u64_, char_, void, list]);
    let (domain, of_cgroup) = pressure::types(t, [u32_, s32, u64_, void, list]);
    rq.push(("sd", domain, bit(at::SD)));
    let scx_rq = t.structure("scx_rq", at::DSQ as u32, &[("local_dsq", dsq, 0)]);
    if with_scx {
        rq.push(("scx", scx_rq, bit(at::LOCAL)));
    }
    let mut size = at::RQ;
    if monitored {
        size = at::MONITORED_RQ;
        rq.push(("nr_switches", u64_, bit(at::SWITCHES)));
        rq.push(("online", s32, bit(at::ONLINE)));
    }
    t.structure("rq", size as u32, &rq);
    let times = t.array(u64_, 2);
    t.structure("kernel_cpustat", 16, &[("cpustat", times, 0)]);
    let usage = [("CPUTIME_USER", 0), ("CPUTIME_IDLE", 1)];
    t.enumeration("cpu_usage_stat", 4, false, &usage);
    t.structure("css_set", 8, &[("dfl_cgrp", void, 0)]);
    let cgroup = [&[("kn", void, 0)], &of_cgroup[..]].concat();
    let cgroup = t.structure("cgroup", pressure::at::CGROUP as u32, &cgroup);
    let root = [("hierarchy_id", s32, 0), ("cgrp", cgroup, 64)];
    t.structure("cgroup_root", 8 + pressure::at::CGROUP as u32, &root);
    let kn = [("__parent", void, 0), ("name", name, 64), ("id", u64_, 128)];
    t.structure("kernfs_node", 24, &kn);
    if with_scx {
        scx_types(guest, [u32_, s32, s64, u64_, text, void, list, dsq, name]);
    }
}

fn scx_types(guest: &mut Guest, ids: [TypeId; 9]) {
    let [u32_, s32, s64, u64_, text, void, list, dsq, name] = ids;
    let t = &mut guest.types;
    let bit = |byte: u64| byte as u32 * 8;
    // What lies behind the name belongs to the scheduler, up to the last member.
    let ops = [("name", text, 0), ("sub_cgroup_id", u64_, bit(at::CGROUP_ID))];
    let ops = t.structure("made_up_ops", at::SCHED as u32, &ops);
    let atomic = t.structure("", 4, &[("counter", s32, 0)]);
    let flag = t.boolean("_Bool");
    let info = [
        ("kind", u32_, 0),
        ("exit_code", s64, bit(8)),
        ("reason", name, bit(16)),
        ("msg", name, bit(24)),
    ];
    let info = t.structure("scx_exit_info", 32, &info);
    let info = t.ptr(info);
    let kinds = [
        ("SCX_EXIT_NONE", 0),
        ("SCX_EXIT_DONE", 1),
        ("SCX_EXIT_UNREG", 64),
        ("SCX_EXIT_ERROR_STALL", 1026),
    ];
    t.enumeration("scx_exit_kind", 4, false, &kinds);
    let table = t.structure("rhashtable", 8, &[("tbl", void, 0)]);
    let buckets = t.array(void, 0);
    let members = [
        ("size", u32_, 0),
        ("nest", u32_, bit(4)),
        ("future_tbl", void, bit(8)),
        ("buckets", buckets, bit(16)),
    ];
    t.structure("bucket_table", 16, &members[..3]);
    let stats = [("SCX_EV_FALLBACK", s64, 0), ("SCX_EV_BYPASS", s64, 64)];
    let stats = t.structure("scx_event_stats", 16, &stats);
    let pcpu = [("event_stats", stats, 0), ("bypass_dsq", dsq, bit(16))];
    t.structure("scx_sched_pcpu", 80, &pcpu);
    t.structure("scx_sched_pnode", at::DSQ as u32, &[("global_dsq", dsq, 0)]);
    let members = [
        ("ops", ops, 0),
        ("dsq_hash", table, bit(16)),
        ("pnode", void, bit(24)),
        ("pcpu", void, bit(32)),
        ("bypass_depth", s32, bit(40)),
        ("all", list, bit(at::ALL)),
        ("cgrp_path", name, bit(at::PATH)),
        ("exit_kind", atomic, bit(at::EXIT_KIND)),
        ("exit_info", info, bit(at::EXIT_INFO)),
        ("level", s32, bit(at::LEVEL)),
        ("sub_attached", flag, bit(at::SUB_ATTACHED)),
        ("ancestors", buckets, bit(at::SCHED)),
    ];
    let sched = t.structure("scx_sched", at::SCHED as u32, &members);
    t.ptr(sched);
    let states =
        [("SCX_ENABLING", 0), ("SCX_ENABLED", 1), ("SCX_DISABLING", 2), ("SCX_DISABLED", 3)];
    t.enumeration("scx_enable_state", 4, false, &states);
}

impl Machine {
    /// The machine; without `scx` its kernel was built without sched_ext.
    pub(crate) fn new(scx: bool) -> Machine {
        Machine::build(scx, false)
    }

    /// The same with what a monitor looks at.
    pub(crate) fn monitored(scx: bool) -> Machine {
        Machine::build(scx, true)
    }

    fn build(scx: bool, monitored: bool) -> Machine {
        let mut guest = Guest::new();
        types(&mut guest, scx, monitored);
        let init = guest.variable("init_task", &[0; at::TASK as usize]);
        for class in ["fair", "ext", "idle"] {
            guest.variable(&format!("{class}_sched_class"), &[0; 16]);
        }
        let none = Kva(0);
        let mut machine = Machine {
            guest,
            tasks: BTreeMap::from([(0, init)]),
            rqs: [none; 2],
            user_dsq: none,
            buckets: none,
            table: none,
            sched: none,
            module: modules::MadeModule { at: none, text: none, data: none, table: none },
            groups: [none; 2],
        };
        machine.cgroups();
        machine.all_tasks();
        machine.cpus(monitored);
        machine.module = machine.module();
        machine.guest.variable("jiffies_64", &4_294_892_296u64.to_le_bytes());
        if scx {
            machine.scheduler();
        }
        machine
    }

    /// Makes the tasks in queues wait: since 600, 400 and 200 ns.
    pub(crate) fn waiting(mut self) -> Machine {
        for (i, tid) in (2u64..).zip([1, 41, 42]) {
            let task = self.tasks[&tid];
            self.guest.write_u32(task, 0);
            self.guest.write_u32(task.offset(8), 1);
            self.guest.write_u64(task.offset(at::LAST_QUEUED), 200 * i);
        }
        self
    }

    /// Writes a circular list of links at `nodes`.
    pub(crate) fn link(&mut self, head: Kva, nodes: &[Kva]) {
        let ring: Vec<Kva> = std::iter::once(head).chain(nodes.iter().copied()).collect();
        for (i, at) in ring.iter().enumerate() {
            let (next, prev) =
                (ring[(i + 1) % ring.len()], ring[(i + ring.len() - 1) % ring.len()]);
            self.guest.write_u64(*at, next.0);
            self.guest.write_u64(at.offset(8), prev.0);
        }
    }

    fn text(&mut self, text: &str) -> Kva {
        let at = self.guest.alloc(text.len() as u64 + 1);
        self.guest.write(at, text.as_bytes());
        at
    }

    fn cgroups(&mut self) {
        let mut parent = Kva(0);
        let mut nodes = Vec::new();
        let names = [("", 1), ("lab", 20), ("hot", 300), ("gone", 21)];
        for (name, id) in names {
            if name == "gone" {
                parent = nodes[1];
            }
            let node = self.guest.alloc(24);
            let name = self.text(name);
            self.guest.write_u64(node, parent.0);
            self.guest.write_u64(node.offset(8), name.0);
            self.guest.write_u64(node.offset(16), id);
            nodes.push(node);
            parent = node;
        }
        let size = pressure::at::CGROUP;
        let root = self.guest.variable("cgrp_dfl_root", &vec![0; 8 + size as usize]).offset(8);
        let mut cgroups = [root; 4];
        for (cgroup, node) in cgroups.iter_mut().zip(&nodes) {
            if *node != nodes[0] {
                *cgroup = self.guest.alloc(size);
            }
            self.guest.write_u64(*cgroup, node.0);
        }
        let [root, lab, hot, gone] = cgroups;
        self.groups = [root, hot].map(|cgroup| {
            let set = self.guest.alloc(8);
            self.guest.write_u64(set, cgroup.0);
            set
        });
        self.pressure([root, lab, hot], gone);
    }

    /// A task in its group of threads; `pids` has the leader first.
    fn group(&mut self, comm: &str, pids: &[u32], set: Kva) {
        let signal = self.guest.alloc(32);
        let mut nodes = Vec::new();
        for (i, pid) in pids.iter().enumerate() {
            let at = self.guest.alloc(at::TASK);
            self.tasks.insert(*pid, at);
            let numbers = [1, 0, 0, 0, 120, 120, 7, *pid, pids[0], i as u32 % 2];
            for (i, n) in numbers.into_iter().enumerate() {
                self.guest.write_u32(at.offset(4 * i as u64), n);
            }
            self.guest.write_u64(at.offset(at::SIGNAL), signal.0);
            self.guest.write_u64(at.offset(at::CGROUPS), set.0);
            self.guest.write(at.offset(at::COMM), comm.as_bytes());
            self.guest.write_u64(at.offset(at::MASK), 0b11);
            let leader = self.tasks[&pids[0]];
            self.guest.write_u64(at.offset(120), leader.0);
            self.guest.write_u32(at.offset(at::SCX + 36), 100 + *pid);
            nodes.push(at.offset(at::THREAD_NODE));
        }
        self.link(signal.offset(at::THREAD_HEAD), &nodes);
    }

    fn all_tasks(&mut self) {
        let [root, hot] = self.groups;
        self.group("init", &[1], root);
        self.group("worker", &[40, 41, 42], hot);
        self.group("spin", &[50], hot);
        // Nice 5, bound to CPU 0, and what runs is marked so.
        let spin = self.tasks[&50];
        for (at, n) in [(0, 0), (8, 1), (12, 1), (20, 125)] {
            self.guest.write_u32(spin.offset(at), n);
        }
        self.guest.write_u64(spin.offset(at::MASK), 0b01);
        let leaders = [1, 40, 50].map(|pid| self.tasks[&pid].offset(at::TASKS));
        self.link(self.tasks[&0].offset(at::TASKS), &leaders);
        let init = self.tasks[&0];
        self.guest.write(init.offset(at::COMM), b"swapper/0");
        // The idle tasks of other CPUs are in no list.
        let idle = self.guest.alloc(at::TASK);
        self.guest.write(idle.offset(at::COMM), b"swapper/1");
        self.guest.write_u32(idle.offset(36), 1);
        self.tasks.insert(u32::MAX, idle);
    }

    fn cpus(&mut self, monitored: bool) {
        let (curr, idle) = ([50, u32::MAX], [0, u32::MAX]);
        let domains = self.domains();
        let size = if monitored { at::MONITORED_RQ } else { at::RQ };
        let mut raw = [vec![0u8; size as usize], vec![0u8; size as usize]];
        for (cpu, rq) in raw.iter_mut().enumerate() {
            let words = [2 - cpu as u64, self.tasks[&curr[cpu]].0, self.tasks[&idle[cpu]].0, 1_000];
            for (i, word) in words.into_iter().enumerate() {
                rq[8 * i..8 * i + 8].copy_from_slice(&word.to_le_bytes());
            }
            rq[at::SD as usize..at::RQ as usize].copy_from_slice(&domains[cpu].0.to_le_bytes());
            if monitored {
                rq[at::SWITCHES as usize] = 70 + cpu as u8;
                rq[at::ONLINE as usize] = 1;
            }
        }
        let base = self.guest.percpu_struct("runqueues", &[&raw[0], &raw[1]]);
        self.rqs = [0, 1].map(|cpu| base.offset(Guest::cpu_offset(cpu)));
        let times = |user: u64, idle: u64| [user.to_le_bytes(), idle.to_le_bytes()].concat();
        let times = [times(700, 300), times(0, u64::MAX)];
        self.guest.percpu_struct("kernel_cpustat", &[&times[0], &times[1]]);
    }

    /// Fills a queue.
    fn dsq(&mut self, at: Kva, id: u64, pids: &[u32]) {
        let tasks: Vec<Kva> = pids.iter().map(|pid| self.tasks[pid]).collect();
        for (i, task) in tasks.iter().enumerate() {
            self.guest.write_u64(task.offset(at::SCX), at.0);
            self.guest.write_u32(task.offset(at::SCX + 32), i as u32 + 1);
            self.guest.write_u32(task.offset(8), 1);
            self.guest.write_u32(*task, 0);
        }
        let nodes: Vec<Kva> = tasks.iter().map(|task| task.offset(at::DSQ_NODE)).collect();
        self.link(at.offset(at::LIST), &nodes);
        self.guest.write_u32(at.offset(at::NR), tasks.len() as u32);
        self.guest.write_u64(at.offset(32), id);
    }

    fn scheduler(&mut self) {
        let guest = &mut self.guest;
        self.sched = guest.alloc(at::SCHED);
        guest.write(self.sched, b"made");
        let stats: Vec<Vec<u8>> = [1i64, 2]
            .map(|n| [n.to_le_bytes(), (10 * n).to_le_bytes()].concat())
            .map(|mut bytes| {
                bytes.resize(80, 0);
                bytes
            })
            .to_vec();
        let pcpu = guest.percpu(&[&stats[0], &stats[1]]);
        let (pnodes, pnode) = (guest.alloc(8), guest.alloc(at::DSQ));
        guest.write_u64(pnodes, pnode.0);
        self.table = guest.alloc(16 + 4 * 8);
        self.buckets = self.table.offset(16);
        guest.write_u32(self.table, 4);
        self.user_dsq = guest.alloc(at::DSQ);
        for (within, word) in [(16, self.table.0), (24, pnodes.0), (32, pcpu)] {
            guest.write_u64(self.sched.offset(within), word);
        }
        // Empty chains end at once; the used one is being changed, so its lowest bit is set.
        for i in 0..4 {
            guest.write_u64(self.buckets.offset(8 * i), 0);
        }
        let node = self.user_dsq.offset(at::HASH_NODE);
        guest.write_u64(self.buckets.offset(8), node.0 | 1);
        guest.write_u64(node, 1 << 1 | 1);
        for cpu in 0..2 {
            let local = self.rqs[cpu].offset(at::LOCAL);
            self.dsq(local, 0x8000_0000_0000_0002, if cpu == 0 { &[1] } else { &[] });
            let bypass = Kva(pcpu + Guest::cpu_offset(cpu as u64) + 16);
            self.dsq(bypass, 0x8000_0000_0000_0003, &[]);
        }
        self.dsq(pnode, 0x8000_0000_0000_0001, &[]);
        self.dsq(self.user_dsq, 7, &[41, 42]);
        // A cursor between the two.
        let cursor = self.guest.alloc(24);
        self.guest.write_u32(cursor.offset(16), 1);
        let [a, b] = [41, 42].map(|pid| self.tasks[&pid].offset(at::DSQ_NODE));
        self.link(self.user_dsq.offset(at::LIST), &[a, cursor, b]);
        let root = self.sched.0.to_le_bytes();
        self.guest.variable("scx_root", &root);
        self.guest.variable("scx_enable_state_var", &[1, 0, 0, 0]);
        self.guest.variable("scx_enable_seq", &1u64.to_le_bytes());
        let all = self.guest.variable("scx_sched_all", &[0; 16]);
        self.link(all, &[self.sched.offset(at::ALL)]);
        let info = self.guest.alloc(32);
        self.guest.write_u64(self.sched.offset(at::EXIT_INFO), info.0);
        // Which class a task is in is told by an address.
        let ext = self.guest.address("ext_sched_class");
        for at in self.tasks.values().copied().collect::<Vec<_>>() {
            self.guest.write_u64(at.offset(at::CLASS), ext);
        }
    }
}

/// A loaded object with a section of variables (`nr`, and `tuned` in the read-only one), a program
/// that uses the first, and a struct_ops map.
pub(crate) struct Loaded {
    pub(crate) bss: Kva,
    pub(crate) rodata: Kva,
    pub(crate) prog: Kva,
    pub(crate) aux: Kva,
    pub(crate) ops: Kva,
}

impl Machine {
    /// Loads an object whose `nr` has that value.
    pub(crate) fn load(&mut self, object: &str, nr: u64) -> Loaded {
        let mut types = Builder::new();
        let u64_ = types.int("unsigned long", 8, false);
        let [nr_var, tuned] = ["nr", "tuned"].map(|name| types.var(name, u64_));
        let bss = types.datasec(".bss", 8, &[(nr_var, 0, 8)]);
        let rodata = types.datasec(".rodata", 8, &[(tuned, 0, 8)]);
        let guest = &mut self.guest;
        let btf = guest.btf(&types.encode());
        let ops = guest.struct_ops(&format!("{object}_ops"), btf, object);
        let sections = [("bss", bss, nr), ("rodata", rodata, 10 * nr)].map(|(name, ty, value)| {
            let at = guest.array(&format!("{object}.{name}"), 8, &[value.to_le_bytes().to_vec()]);
            guest.set_types(at, btf, 0, ty);
            at
        });
        let (prog, aux) = guest.prog(btf, &sections[..1]);
        Loaded { bss: sections[0], rodata: sections[1], prog, aux, ops }
    }

    /// Attaches a loaded object as the scheduler at `sched`.
    pub(crate) fn attach(&mut self, loaded: &Loaded, sched: Kva) {
        self.guest.attach_ops(loaded.ops, sched, &[loaded.prog]);
    }

    /// Attaches a sub-scheduler of the root to a cgroup.
    pub(crate) fn sub(&mut self, name: &str, path: &str, cgroup: u64) -> Kva {
        let sub = self.guest.alloc(at::SCHED + 16);
        self.guest.write(sub, name.as_bytes());
        let (path, root) = (self.text(path), self.sched);
        let table = self.guest.alloc(16);
        let words = [
            (16, table.0),
            (at::PATH, path.0),
            (at::CGROUP_ID, cgroup),
            (at::SCHED, root.0),
            (at::SCHED + 8, sub.0),
        ];
        for (within, word) in words {
            self.guest.write_u64(sub.offset(within), word);
        }
        self.guest.write_u32(sub.offset(at::LEVEL), 1);
        self.guest.write(sub.offset(at::SUB_ATTACHED), &[1]);
        let all = Kva(self.guest.address("scx_sched_all"));
        self.link(all, &[root, sub].map(|sched| sched.offset(at::ALL)));
        sub
    }

    /// Sets the state of sched_ext.
    pub(crate) fn set_state(&mut self, state: u8) {
        let at = Kva(self.guest.address("scx_enable_state_var"));
        self.guest.write(at, &[state]);
    }

    /// Has a scheduler leave: the kind, and what it says.
    pub(crate) fn exit(&mut self, sched: Kva, kind: u32, texts: [&str; 2]) {
        self.guest.write_u32(sched.offset(at::EXIT_KIND), kind);
        let info = self.guest.alloc(32);
        self.guest.write_u64(sched.offset(at::EXIT_INFO), info.0);
        self.guest.write_u32(info, kind);
        for (within, text) in [(16, texts[0]), (24, texts[1])] {
            let text = self.text(text);
            self.guest.write_u64(info.offset(within), text.0);
        }
    }

    /// Nothing is attached any more.
    pub(crate) fn detach(&mut self) {
        let [root, all] = ["scx_root", "scx_sched_all"].map(|name| Kva(self.guest.address(name)));
        self.guest.write_u64(root, 0);
        self.link(all, &[]);
        self.set_state(3);
    }
}
