//! `SnapshotModule`.

use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::Module;

use super::{native, value_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Module>(
        "SnapshotModule",
        "A loaded module of the kernel as it was at the freeze: a copy of its `struct module`.\n\
         What has no property here is read by its name in that struct.",
    );
    pkg.getter("name(self: SnapshotModule) -> string", "Its name.", |m: Module| {
        m.name().to_owned()
    })
    .getter(
        "state(self: SnapshotModule) -> string",
        "`live`, `coming`, `going` or `unformed`.",
        |m: Module| native(m.state()),
    )
    .getter("address(self: SnapshotModule) -> int|U64", "Where its code begins.", |m: Module| {
        U64::dynamic(m.address())
    })
    .getter(
        "size(self: SnapshotModule) -> int|U64",
        "Bytes of memory that it takes.",
        |m: Module| U64::dynamic(m.size()),
    )
    .getter(
        "refcount(self: SnapshotModule) -> int",
        "How many use it, as `/proc/modules` counts them.",
        |m: Module| native(m.refcount()),
    )
    .getter(
        "taints(self: SnapshotModule) -> string",
        "The letters by which it taints the kernel, as in `\"OE\"`; usually none.",
        |m: Module| native(m.taints()),
    )
    .func(
        "symbols(self: SnapshotModule) -> map",
        "Its symbols' addresses by name; of several with one name, the last.",
        |m: Module| -> crate::script::fault::Native<rhai::Map> {
            let all = native(m.symbols())?.into_iter();
            Ok(all.map(|(name, at)| (name.into(), U64::dynamic(at))).collect())
        },
    )
    .func(
        "whole(self: SnapshotModule) -> SnapshotField",
        "All of its `struct module`, to be looked at with `dump`.",
        |m: Module| native(m.whole()),
    )
    .func(
        "get(self: SnapshotModule, path: string) -> SnapshotField",
        "The field at a path in `struct module`.",
        |m: Module, path: &str| native(m.get(path)),
    )
    .index(
        "index(self: SnapshotModule, path: string) -> any",
        "What is at a path in `struct module`; also written `module.name`.",
        |m: Module, path: &str| value_of(native(m.get(path))?),
    )
    .func("to_string(self: SnapshotModule) -> string", "Name, state, size, users.", |m: Module| {
        m.headline()
    })
    .func(
        "to_debug(self: SnapshotModule) -> string",
        "Name, state, size, users.",
        |m: Module| m.headline(),
    );
    incomparable::<Module>(pkg, "SnapshotModule");
}
