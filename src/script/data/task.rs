//! `SnapshotTask`.

use rhai::Dynamic;

use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::Task;

use super::{native, numbers, value_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Task>(
        "SnapshotTask",
        "A task as it was at the freeze: a copy of the kernel's `struct task_struct`.\n\
         What has no property here is read by its name in that struct, as in `task.nvcsw` or \
         `task[\"se.vruntime\"]`.",
    );
    who(pkg);
    how(pkg);
    scx(pkg);
    pkg.func(
        "whole(self: SnapshotTask) -> SnapshotField",
        "All of its `struct task_struct`, to be looked at with `dump`.",
        |t: Task| native(t.whole()),
    )
    .func(
        "get(self: SnapshotTask, path: string) -> SnapshotField",
        "The field at a path in `struct task_struct`; pointers lead on into what was copied, as \
         in `\"scx.dsq.nr\"`.",
        |t: Task, path: &str| native(t.get(path)),
    )
    .index(
        "index(self: SnapshotTask, path: string) -> any",
        "What is at a path in `struct task_struct`: the value itself for a leaf, a field for \
         everything else; also written `task.name`.",
        |t: Task, path: &str| value_of(native(t.get(path))?),
    )
    .func(
        "stack(self: SnapshotTask) -> SnapshotStack",
        "The kernel's functions in which it waits to go on, the innermost first, as \
         `/proc/TID/stack` has them, those of the scheduler included; those of its CPU when it was \
         on one. It takes a freeze with `#{ ram: true }`.",
        |t: Task| native(t.stack()),
    )
    .func(
        "to_string(self: SnapshotTask) -> string",
        "Number, name, state, policy and CPU on one line.",
        |t: Task| t.headline(),
    )
    .func(
        "to_debug(self: SnapshotTask) -> string",
        "Number, name, state, policy and CPU on one line.",
        |t: Task| t.headline(),
    );
    incomparable::<Task>(pkg, "SnapshotTask");
}

fn who(pkg: &mut Package<'_>) {
    pkg.getter("tid(self: SnapshotTask) -> int", "The thread's number.", |t: Task| {
        value_of(native(t.get("pid"))?)
    })
    .getter("tgid(self: SnapshotTask) -> int", "The process's number.", |t: Task| {
        value_of(native(t.get("tgid"))?)
    })
    .getter(
        "comm(self: SnapshotTask) -> string",
        "Its name, cut by the kernel at 15 characters.",
        |t: Task| value_of(native(t.get("comm"))?),
    )
    .getter(
        "cgroup(self: SnapshotTask) -> string|()",
        "Its cgroup, by its path from the root of the hierarchy; `()` when it could not be told.",
        |t: Task| native(t.cgroup()).map(|path| path.map_or(Dynamic::UNIT, Into::into)),
    )
    .getter("cgroup_id(self: SnapshotTask) -> int|U64|()", "That cgroup's id.", |t: Task| {
        native(t.cgroup_id()).map(|id| id.map_or(Dynamic::UNIT, U64::dynamic))
    });
}

fn how(pkg: &mut Package<'_>) {
    pkg.getter(
        "state(self: SnapshotTask) -> string",
        "Its state in the words of `/proc`: `running` (also when it only waits for a CPU), \
         `sleeping`, `disk sleep`, `stopped`, `zombie`, ..",
        |t: Task| native(t.state()),
    )
    .getter(
        "policy(self: SnapshotTask) -> string",
        "`normal`, `fifo`, `rr`, `batch`, `idle`, `deadline` or `ext`.",
        |t: Task| native(t.policy()),
    )
    .getter(
        "class(self: SnapshotTask) -> string",
        "The scheduling class that has it: `fair`, `ext`, `rt`, .. With a scheduler that takes \
         all tasks, `ext` also for those of policy `normal`.",
        |t: Task| native(t.class()),
    )
    .getter("prio(self: SnapshotTask) -> int", "The kernel's priority, 0 to 139.", |t: Task| {
        value_of(native(t.get("prio"))?)
    })
    .getter("nice(self: SnapshotTask) -> int", "Its nice value, -20 to 19.", |t: Task| {
        native(t.nice())
    })
    .getter(
        "cpu(self: SnapshotTask) -> int",
        "The CPU that it runs on, or ran on last.",
        |t: Task| value_of(native(t.cpu())?),
    )
    .getter(
        "cpus_allowed(self: SnapshotTask) -> string",
        "The CPUs it may use, as a CPU set: `0-3,8`.",
        |t: Task| native(t.cpus_allowed()),
    )
    .getter(
        "runnable(self: SnapshotTask) -> bool",
        "Whether it is on a runqueue: it runs, or waits for a CPU.",
        |t: Task| native(t.is_runnable()),
    )
    .func(
        "schedstats(self: SnapshotTask) -> map",
        "What the kernel counted of it (`wait_sum`, `nr_wakeups`, ..), as in `/proc/PID/sched`; \
         times in nanoseconds. Throws `MapRenderIncomplete` unless the scenario has the option \
         `schedstats: true`.",
        |t: Task| native(t.schedstats()).map(numbers),
    )
    .getter(
        "on_cpu(self: SnapshotTask) -> bool",
        "Whether a CPU executed it at that instant.",
        |t: Task| native(t.is_on_cpu()),
    );
}

fn scx(pkg: &mut Package<'_>) {
    for (signature, doc, path) in [
        (
            "weight(self: SnapshotTask) -> int",
            "Its weight for the scheduler: 100 at nice 0.",
            "scx.weight",
        ),
        (
            "slice(self: SnapshotTask) -> int|U64",
            "What is left of its time slice, in nanoseconds.",
            "scx.slice",
        ),
        (
            "dsq_vtime(self: SnapshotTask) -> int|U64",
            "Its place in queues that are ordered by virtual time.",
            "scx.dsq_vtime",
        ),
    ] {
        pkg.getter(signature, doc, move |t: Task| value_of(native(t.get(path))?));
    }
    pkg.getter(
        "dsq(self: SnapshotTask) -> SnapshotDsq|()",
        "The dispatch queue that it waits in; `()` for none.",
        |t: Task| native(t.dsq()).map(|dsq| dsq.map_or(Dynamic::UNIT, Dynamic::from)),
    );
}
