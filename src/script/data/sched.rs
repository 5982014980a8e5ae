//! `SnapshotSched`.

use rhai::INT;

use crate::script::register::Package;
use crate::script::values::incomparable;
use crate::snapshot::Sched;

use super::{native, numbers, value_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Sched>(
        "SnapshotSched",
        "sched_ext as it was at the freeze, and the scheduler at its root: a copy of the kernel's \
         `struct scx_sched`.\n\
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
    incomparable::<Sched>(pkg, "SnapshotSched");
}
