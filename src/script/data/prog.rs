//! `SnapshotProg`.

use rhai::{Array, Dynamic, INT};

use crate::script::fault::Native;
use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::Prog;

use super::native;

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Prog>("SnapshotProg", "A loaded BPF program as it was at the freeze.");
    pkg.getter("id(self: SnapshotProg) -> int", "Its id, as in `bpftool prog`.", |p: Prog| {
        INT::from(p.state().id)
    })
    .getter(
        "name(self: SnapshotProg) -> string",
        "Its name, in full where that could be found out.",
        |p: Prog| p.state().name.clone(),
    )
    .getter(
        "kind(self: SnapshotProg) -> string",
        "Its type in the kernel's words: `struct_ops`.",
        |p: Prog| p.state().kind.clone(),
    )
    .getter(
        "maps(self: SnapshotProg) -> array",
        "Names of the maps it uses.",
        |p: Prog| -> Native<Array> {
            Ok(native(p.maps())?.into_iter().map(Dynamic::from).collect())
        },
    )
    .getter(
        "run_count(self: SnapshotProg) -> int|U64",
        "How often it ran, on all CPUs. Throws `MapRenderIncomplete` unless the kernel counts: \
         the scenario option `bpf_stats: true`.",
        |p: Prog| -> Native<Dynamic> { Ok(U64::dynamic(native(p.runs())?.0)) },
    )
    .getter(
        "run_time_ns(self: SnapshotProg) -> int|U64",
        "Nanoseconds that its runs took, on all CPUs. Throws as `run_count` does.",
        |p: Prog| -> Native<Dynamic> { Ok(U64::dynamic(native(p.runs())?.1)) },
    )
    .func("to_string(self: SnapshotProg) -> string", "Id, name, type and runs.", |p: Prog| {
        p.headline()
    })
    .func("to_debug(self: SnapshotProg) -> string", "Id, name, type and runs.", |p: Prog| {
        p.headline()
    });
    incomparable::<Prog>(pkg, "SnapshotProg");
}
