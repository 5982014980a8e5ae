//! `SnapshotDomain`, and pressure as maps.

use rhai::{Array, Dynamic, INT, Map};

use crate::script::fault::Native;
use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::{Cpu, Domain, DomainGroup, Pressure, Stall};

use super::{native, value_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Domain>(
        "SnapshotDomain",
        "A scheduling domain of a CPU as it was at the freeze: a copy of the kernel's `struct \
         sched_domain`.\n\
         What has no property here is read by its name in that struct, as in \
         `domain.balance_interval` or `domain.imbalance_pct`.",
    );
    pkg.func(
        "domains(self: SnapshotCpu) -> array",
        "The scheduling domains among which it balances, each a `SnapshotDomain`, from the \
         smallest to the largest; none on a machine with one CPU.",
        |c: Cpu| -> Native<Array> {
            Ok(native(c.domains())?.into_iter().map(Dynamic::from).collect())
        },
    )
    .getter(
        "name(self: SnapshotDomain) -> string",
        "`SMT`, `CLS`, `MC`, `PKG`, `NODE` or `NUMA`, as in `/proc/schedstat`; `()` of a kernel \
         that keeps no names.",
        |d: Domain| d.name().map_or(Dynamic::UNIT, Into::into),
    )
    .getter(
        "cpu(self: SnapshotDomain) -> int",
        "The CPU it belongs to: each has domains of its own, even where they are alike.",
        |d: Domain| INT::from(d.cpu()),
    )
    .getter(
        "span(self: SnapshotDomain) -> string",
        "Its CPUs, as a CPU set: `0-3`.",
        |d: Domain| native(d.span()),
    )
    .getter(
        "flags(self: SnapshotDomain) -> array",
        "The names of its flags: `SD_BALANCE_NEWIDLE`, `SD_SHARE_LLC`, .. Which there are differs \
         from kernel to kernel.",
        |d: Domain| -> Native<Array> {
            Ok(native(d.flags())?.into_iter().map(Dynamic::from).collect())
        },
    )
    .getter(
        "groups(self: SnapshotDomain) -> array",
        "The groups among which it balances, the one with the CPU itself first: maps with `span` \
         (a CPU set), `weight` (CPUs), `capacity`, `min_capacity`, `max_capacity` (1024 for a CPU \
         that has nothing else to do) and `flags`.",
        |d: Domain| -> Native<Array> { Ok(native(d.groups())?.into_iter().map(group).collect()) },
    );
    reading(pkg);
    incomparable::<Domain>(pkg, "SnapshotDomain");
}

fn reading(pkg: &mut Package<'_>) {
    pkg.func(
        "whole(self: SnapshotDomain) -> SnapshotField",
        "All of its `struct sched_domain`, to be looked at with `dump`.",
        |d: Domain| native(d.whole()),
    )
    .func(
        "get(self: SnapshotDomain, path: string) -> SnapshotField",
        "The field at a path in `struct sched_domain`; `parent` leads to the next larger one, as in \
         `\"parent.level\"`.",
        |d: Domain, path: &str| native(d.get(path)),
    )
    .index(
        "index(self: SnapshotDomain, path: string) -> any",
        "What is at a path in `struct sched_domain`; also written `domain.level`.",
        |d: Domain, path: &str| value_of(native(d.get(path))?),
    )
    .func("to_string(self: SnapshotDomain) -> string", "Name, CPUs, groups.", |d: Domain| {
        d.headline()
    })
    .func("to_debug(self: SnapshotDomain) -> string", "Name, CPUs, groups.", |d: Domain| {
        d.headline()
    });
}

fn group(group: DomainGroup) -> Dynamic {
    let DomainGroup { span, weight, capacity, min_capacity, max_capacity, flags } = group;
    let flags: Array = flags.into_iter().map(Dynamic::from).collect();
    Map::from([
        ("span".into(), span.into()),
        ("weight".into(), U64::dynamic(weight)),
        ("capacity".into(), U64::dynamic(capacity)),
        ("min_capacity".into(), U64::dynamic(min_capacity)),
        ("max_capacity".into(), U64::dynamic(max_capacity)),
        ("flags".into(), flags.into()),
    ])
    .into()
}

/// By resource, by share: `cpu.some.avg10`.
pub(super) fn pressure(all: Vec<Pressure>) -> Map {
    let line = |stall: Stall| -> Dynamic {
        let Stall { avg10, avg60, avg300, total } = stall;
        Map::from([
            ("avg10".into(), avg10.into()),
            ("avg60".into(), avg60.into()),
            ("avg300".into(), avg300.into()),
            ("total".into(), U64::dynamic(total)),
        ])
        .into()
    };
    let resource = |one: Pressure| {
        let shares = [("some", one.some), ("full", one.full)].into_iter();
        let shares = shares.filter_map(|(name, stall)| Some((name.into(), line(stall?))));
        (one.resource.into(), Dynamic::from(shares.collect::<Map>()))
    };
    all.into_iter().map(resource).collect()
}
