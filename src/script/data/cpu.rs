//! `SnapshotCpu`.

use rhai::{Array, Dynamic, INT, Map};

use crate::script::fault::Native;
use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::Cpu;

use super::{native, numbers, value_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Cpu>(
        "SnapshotCpu",
        "A CPU as it was at the freeze: a copy of the kernel's `struct rq`.\n\
         What has no property here is read by its name in that struct, as in `cpu.nr_running`, \
         `cpu.clock` or `cpu[\"cfs.nr_queued\"]`.",
    );
    pkg.getter("n(self: SnapshotCpu) -> int", "Its number.", |c: Cpu| INT::from(c.number()))
        .getter(
            "curr(self: SnapshotCpu) -> SnapshotTask",
            "The task that it executed; its idle task (0) when it had none.",
            |c: Cpu| native(c.curr()),
        )
        .getter("is_idle(self: SnapshotCpu) -> bool", "Whether it executed no task.", |c: Cpu| {
            native(c.is_idle())
        })
        .getter("dsq(self: SnapshotCpu) -> SnapshotDsq", "Its local dispatch queue.", |c: Cpu| {
            native(c.dsq())
        })
        .getter(
            "cpustat(self: SnapshotCpu) -> map",
            "The time it spent so far in nanoseconds: `user`, `system`, `idle`, .. The kernel adds \
             to them at its ticks, so they are a little behind, and on an idle CPU more than that.",
            |c: Cpu| native(c.cpustat()).map(numbers),
        )
        .func(
            "schedstats(self: SnapshotCpu) -> map",
            "What the kernel counted of its runqueue, by the names of `struct rq` \
             (`sched_count`, `ttwu_count`, `run_delay`, ..). Throws `MapRenderIncomplete` unless \
             the scenario has the option `schedstats: true`.",
            |c: Cpu| native(c.schedstats()).map(numbers),
        );
    reading(pkg);
    executing(pkg);
    incomparable::<Cpu>(pkg, "SnapshotCpu");
}

/// What it was executing.
fn executing(pkg: &mut Package<'_>) {
    pkg.func(
        "registers(self: SnapshotCpu) -> map",
        "Its registers by their names (`rip`, `rsp`, `rflags`, `cr3`, ..), with `halted`, whether \
         it waited for an interrupt, `user`, whether it executed a program, and `symbol`, the \
         kernel's name for where `rip` is or `()`. Throws `MapRenderIncomplete` unless the freeze \
         took them, as with `#{ registers: true }` or `#{ ram: true }`.",
        |c: Cpu| -> Native<Map> {
            let regs = native(c.registers())?;
            let of = |(name, n): (&String, &u64)| (name.as_str().into(), U64::dynamic(*n));
            let mut out: Map = regs.values.iter().map(of).collect();
            let rip = regs.values.get("rip").filter(|_| !regs.in_user_mode());
            let symbol = rip.map(|rip| native(c.snapshot().symbol(*rip))).transpose()?.flatten();
            out.insert("symbol".into(), symbol.map_or(Dynamic::UNIT, Into::into));
            out.insert("halted".into(), regs.halted.into());
            out.insert("user".into(), regs.in_user_mode().into());
            Ok(out)
        },
    )
    .func(
        "stack(self: SnapshotCpu) -> SnapshotStack",
        "The kernel's functions that it was executing, the innermost first; none when it executed \
         a program. It takes a freeze with `#{ ram: true }`.",
        |c: Cpu| native(c.stack()),
    );
}

fn reading(pkg: &mut Package<'_>) {
    pkg.func(
        "whole(self: SnapshotCpu) -> SnapshotField",
        "All of its `struct rq`, to be looked at with `dump`.",
        |c: Cpu| native(c.whole()),
    )
    .func(
        "get(self: SnapshotCpu, path: string) -> SnapshotField",
        "The field at a path in `struct rq`; pointers lead on into what was copied, as in \
         `\"curr.comm\"`.",
        |c: Cpu, path: &str| native(c.get(path)),
    )
    .index(
        "index(self: SnapshotCpu, path: string) -> any",
        "What is at a path in `struct rq`: the value itself for a leaf, a field for everything \
         else; also written `cpu.name`.",
        |c: Cpu, path: &str| value_of(native(c.get(path))?),
    )
    .func(
        "kernel(self: SnapshotCpu, symbol: string) -> SnapshotField",
        "What it has of a per-CPU variable of the kernel that the freeze was asked for.",
        |c: Cpu, symbol: &str| native(c.kernel(symbol, None)),
    )
    .func(
        "kernel(self: SnapshotCpu, symbol: string, type: string) -> SnapshotField",
        "The same, read as a type of the kernel's in C's words.",
        |c: Cpu, symbol: &str, ty: &str| native(c.kernel(symbol, Some(ty))),
    )
    .func(
        "torn(self: SnapshotCpu) -> array",
        "Why it may be half-changed, usually nothing: its runqueue was locked.",
        |c: Cpu| -> Array { c.torn().into_iter().map(Dynamic::from).collect() },
    )
    .func(
        "to_string(self: SnapshotCpu) -> string",
        "Number, what waits and what it executed on one line.",
        |c: Cpu| c.headline(),
    )
    .func(
        "to_debug(self: SnapshotCpu) -> string",
        "Number, what waits and what it executed on one line.",
        |c: Cpu| c.headline(),
    );
}
