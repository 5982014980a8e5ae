//! `SnapshotStack` and `SnapshotPerCpu`.

use rhai::{Array, Dynamic, INT};

use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::{PerCpu, Stack};

use super::{native, value_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Stack>("SnapshotStack", "A kernel stack as it was at the freeze.");
    pkg.getter(
        "frames(self: SnapshotStack) -> array",
        "The functions, the innermost first, each as `schedule+0x27`; an address that no symbol is \
         known for is written as a number.",
        |s: Stack| -> Array { s.frames.iter().map(|f| f.to_string().into()).collect() },
    )
    .getter(
        "addresses(self: SnapshotStack) -> array",
        "The addresses of the same places.",
        |s: Stack| -> Array { s.frames.iter().map(|f| U64::dynamic(f.address)).collect() },
    )
    .getter(
        "is_complete(self: SnapshotStack) -> bool",
        "Whether it could be followed to its end.",
        |s: Stack| s.is_complete(),
    )
    .getter(
        "ending(self: SnapshotStack) -> string",
        "Where it ends: `user mode`, `the end of the stack`, or why it could not be followed on.",
        |s: Stack| s.ending().to_owned(),
    )
    .func("to_string(self: SnapshotStack) -> string", "A line a function.", |s: Stack| {
        s.to_string()
    })
    .func("to_debug(self: SnapshotStack) -> string", "A line a function.", |s: Stack| {
        s.to_string()
    });
    incomparable::<Stack>(pkg, "SnapshotStack");
    pkg.ty::<PerCpu>(
        "SnapshotPerCpu",
        "A variable of the kernel of which each CPU has its own, as in \
         `snap.kernel(\"runqueues\").cpu(1).nr_running`.",
    );
    pkg.func(
        "cpu(self: SnapshotPerCpu, n: int) -> any",
        "What one CPU has of it. Throws `PerCpuSlot` for one that is not there.",
        |v: PerCpu, n: INT| value_of(native(v.cpu(n))?),
    )
    .func("to_string(self: SnapshotPerCpu) -> string", "Its name.", |v: PerCpu| {
        v.symbol().to_owned()
    })
    .func("to_debug(self: SnapshotPerCpu) -> string", "Its name.", |v: PerCpu| {
        v.symbol().to_owned()
    });
    incomparable::<PerCpu>(pkg, "SnapshotPerCpu");
}

/// A variable's handle where each CPU has its own, else what it holds.
pub(super) fn variable(
    snap: &std::sync::Arc<crate::snapshot::Snapshot>,
    symbol: &str,
    ty: Option<&str>,
) -> crate::script::fault::Native<Dynamic> {
    match native(snap.per_cpu(symbol, ty))? {
        Some(variable) => Ok(Dynamic::from(variable)),
        None => Ok(Dynamic::from(native(snap.kernel(symbol, ty))?)),
    }
}
