//! `SnapshotSched`.

use rhai::{Array, Dynamic, INT, Map};

use crate::script::fault::Native;
use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::{Exit, Sched, SnapshotResult};

use super::{native, numbers, value_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Sched>(
        "SnapshotSched",
        "sched_ext as it was at the freeze, and one of its schedulers: a copy of the kernel's \
         `struct scx_sched`. `snap.sched()` is the one at the root, whether live or not, \
         `snap.active()` the one at the root if it is live; `snap.scheds()` are all.\n\
         What has no property here is read by its name in that struct, as in `sched.slice_dfl` or \
         `sched[\"ops.flags\"]`.",
    );
    pkg.getter(
        "state(self: SnapshotSched) -> string",
        "The state of sched_ext: `enabled`, `disabled`, `enabling` or `disabling`.",
        |s: Sched| native(s.state()).map(str::to_owned),
    )
    .getter(
        "is_attached(self: SnapshotSched) -> bool",
        "Whether there is a scheduler; one that is just coming or going counts. Without one, all \
         but `state` throws `NoActiveScheduler`.",
        |s: Sched| s.is_attached(),
    )
    .getter("ops(self: SnapshotSched) -> string", "The name of its operations.", |s: Sched| {
        value_of(native(s.ops())?)
    })
    .getter(
        "bypass_depth(self: SnapshotSched) -> int",
        "How many reasons there are to pass it over at present; usually 0.",
        |s: Sched| value_of(native(s.bypass_depth())?),
    )
    .func(
        "counters(self: SnapshotSched) -> map",
        "The kernel's own counts of what happened (`SCX_EV_SELECT_CPU_FALLBACK`, ..), summed over \
         the CPUs. Which there are differs from kernel to kernel.",
        |s: Sched| native(s.counters(None)).map(numbers),
    )
    .func(
        "counters(self: SnapshotSched, cpu: int) -> map",
        "The counts of one CPU.",
        |s: Sched, cpu: INT| native(s.counters(Some(cpu))).map(numbers),
    )
    .func(
        "whole(self: SnapshotSched) -> SnapshotField",
        "All of its `struct scx_sched`, to be looked at with `dump`.",
        |s: Sched| native(s.whole()),
    )
    .func(
        "get(self: SnapshotSched, path: string) -> SnapshotField",
        "The field at a path in `struct scx_sched`.",
        |s: Sched, path: &str| native(s.get(path)),
    )
    .index(
        "index(self: SnapshotSched, path: string) -> any",
        "What is at a path in `struct scx_sched`; also written `sched.name`.",
        |s: Sched, path: &str| value_of(native(s.get(path))?),
    )
    .func("to_string(self: SnapshotSched) -> string", "State and name.", |s: Sched| s.headline())
    .func("to_debug(self: SnapshotSched) -> string", "State and name.", |s: Sched| s.headline());
    in_tree(pkg);
    incomparable::<Sched>(pkg, "SnapshotSched");
}

fn all<T: Clone + Send + Sync + 'static>(things: SnapshotResult<Vec<T>>) -> Native<Array> {
    Ok(native(things)?.into_iter().map(Dynamic::from).collect())
}

/// Its place among the schedulers, and what belongs to it.
fn in_tree(pkg: &mut Package<'_>) {
    pkg.getter(
        "id(self: SnapshotSched) -> int|U64",
        "The id of its cgroup, as in `/sys/kernel/sched_ext/root/sub/sub-ID`; 1 for the root.",
        |s: Sched| -> Native<Dynamic> { Ok(U64::dynamic(native(s.id())?)) },
    )
    .getter(
        "cgroup(self: SnapshotSched) -> string",
        "The path of its cgroup; `/` for the root.",
        |s: Sched| native(s.path()).map(str::to_owned),
    )
    .getter(
        "is_root(self: SnapshotSched) -> bool",
        "Whether it is the one at the root.",
        |s: Sched| native(s.is_root()),
    )
    .getter(
        "is_live(self: SnapshotSched) -> bool",
        "Whether it schedules: linked, not leaving, accepted by its parent, and sched_ext enabled.",
        |s: Sched| native(s.is_live()),
    )
    .getter(
        "exit(self: SnapshotSched) -> map",
        "Why it leaves: `kind` (`unreg`, `error_stall`, ..), `code`, and in words the kernel's \
         `reason` and a `message`, empty until the kernel has got so far. `()` for one that does \
         not leave.",
        |s: Sched| -> Native<Dynamic> {
            let Some(Exit { kind, code, reason, message }) = native(s.exit())? else {
                return Ok(Dynamic::UNIT);
            };
            Ok(Map::from([
                ("kind".into(), kind.into()),
                ("code".into(), code.into()),
                ("reason".into(), reason.into()),
                ("message".into(), message.into()),
            ])
            .into())
        },
    )
    .getter(
        "parent(self: SnapshotSched) -> SnapshotSched",
        "The scheduler above it; `()` for the root.",
        |s: Sched| -> Native<Dynamic> {
            Ok(native(s.parent())?.map_or(Dynamic::UNIT, Dynamic::from))
        },
    )
    .func(
        "children(self: SnapshotSched) -> array",
        "The schedulers right below it, each a `SnapshotSched`.",
        |s: Sched| all(s.children()),
    )
    .func(
        "maps(self: SnapshotSched) -> array",
        "Its maps, each a `SnapshotMap`: those that its programs use, and all others of the same \
         loaded object.",
        |s: Sched| all(s.maps()),
    )
    .func(
        "progs(self: SnapshotSched) -> array",
        "Its programs, each a `SnapshotProg`: its operations, and all others of the same loaded \
         object, such as those of timers.",
        |s: Sched| all(s.progs()),
    )
    .func(
        "global(self: SnapshotSched, name: string) -> SnapshotField",
        "Its global variable of that name, whether it is live or not.",
        |s: Sched, name: &str| native(s.global(name)),
    );
}
