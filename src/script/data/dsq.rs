//! `SnapshotDsq`.

use rhai::{Array, Dynamic, INT};

use crate::script::fault::Native;
use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::Dsq;

use super::{native, thrown, value_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Dsq>(
        "SnapshotDsq",
        "A dispatch queue as it was at the freeze: a copy of the kernel's `struct scx_dispatch_q` \
         and the tasks in it. `for task in dsq` goes through them, the next one first.",
    );
    pkg.getter(
        "name(self: SnapshotDsq) -> string",
        "`global` (`global:1` where there are several NUMA nodes), `local:3`, `bypass:3`, or the \
         number that the scheduler gave it.",
        |d: Dsq| d.name().to_owned(),
    )
    .getter("id(self: SnapshotDsq) -> int|U64", "The kernel's id for it.", |d: Dsq| {
        U64::dynamic(d.id())
    })
    .getter("cpu(self: SnapshotDsq) -> int|()", "The CPU it belongs to, if any.", |d: Dsq| {
        d.cpu().map_or(Dynamic::UNIT, |cpu| INT::from(cpu).into())
    })
    .getter("nr(self: SnapshotDsq) -> int", "How many tasks it counts.", |d: Dsq| {
        value_of(native(d.get("nr"))?)
    })
    .func(
        "tasks(self: SnapshotDsq) -> array",
        "The tasks that wait in it, the next one first, each a `SnapshotTask`. Throws \
         `MapRenderIncomplete` when its list was just being changed.",
        |d: Dsq| -> Native<Array> {
            Ok(native(d.tasks())?.into_iter().map(Dynamic::from).collect())
        },
    )
    .iterable(|d: Dsq| match d.tasks() {
        Ok(tasks) => Box::new(tasks.into_iter().map(|task| Ok(Dynamic::from(task)))),
        Err(error) => Box::new(std::iter::once(Err(thrown(error)))),
    })
    .func(
        "whole(self: SnapshotDsq) -> SnapshotField",
        "All of its `struct scx_dispatch_q`, to be looked at with `dump`.",
        |d: Dsq| native(d.whole()),
    )
    .func(
        "get(self: SnapshotDsq, path: string) -> SnapshotField",
        "The field at a path in `struct scx_dispatch_q`.",
        |d: Dsq, path: &str| native(d.get(path)),
    )
    .index(
        "index(self: SnapshotDsq, path: string) -> any",
        "What is at a path in `struct scx_dispatch_q`; also written `dsq.name`.",
        |d: Dsq, path: &str| value_of(native(d.get(path))?),
    )
    .func(
        "torn(self: SnapshotDsq) -> array",
        "Why it may be half-changed, usually nothing: it was locked.",
        |d: Dsq| -> Array { d.torn().into_iter().map(Dynamic::from).collect() },
    )
    .func("to_string(self: SnapshotDsq) -> string", "Name and tasks on one line.", |d: Dsq| {
        d.headline()
    })
    .func("to_debug(self: SnapshotDsq) -> string", "Name and tasks on one line.", |d: Dsq| {
        d.headline()
    });
    incomparable::<Dsq>(pkg, "SnapshotDsq");
}
