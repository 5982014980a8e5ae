//! `topology(spec)` and `t.topology`.

use rhai::{Array, Dynamic, INT, Map};

use crate::vm::topology::{CpuSet, Topology};

use super::fault::{Fault, Native};
use super::register::Package;
use super::shape::topology;
use super::values::incomparable;

pub(crate) fn register(pkg: &mut Package<'_>) {
    incomparable::<Topology>(pkg, "Topology");
    pkg.ty::<Topology>(
        "Topology",
        "The shape of a machine: NUMA nodes, last-level caches, cores, threads.",
    )
    .func(
        "topology(spec: string) -> Topology",
        "Reads `\"1n2l2c1t\"`: nodes, LLCs (total), cores per LLC, threads per core. Nodes that \
         differ are joined: `\"1n2l2c1t:384M+1n:128M@10,17/17,10\"` has a second node with 128 MiB \
         and no CPUs, 17 away.",
        |spec: &str| -> Native<Topology> {
            Topology::parse(spec).map_err(|e| Fault::argument(e.to_string()).into())
        },
    )
    .func(
        "topology(nodes: map) -> Topology",
        "Reads `#{ nodes: [#{ llcs: 2, memory: \"384M\" }, #{ memory: \"128M\" }], cores: 2, \
         threads: 1, distances: [[10, 17], [17, 10]] }`: each node may have `llcs`, `cores`, \
         `threads` and `memory`; one without the first three has memory only.",
        |nodes: Map| -> Native<Topology> {
            topology(&nodes.into()).map_err(|e| Fault::argument(e).into())
        },
    )
    .func(
        "to_string(self: Topology) -> string",
        "As it is written: `1n2l2c1t`.",
        |t: &mut Topology| t.to_string(),
    )
    .func(
        "to_debug(self: Topology) -> string",
        "As it is written: `1n2l2c1t`.",
        |t: &mut Topology| t.to_string(),
    )
    .func(
        "==(self: Topology, other: Topology) -> bool",
        "Whether both have the same shape.",
        |a: Topology, b: Topology| a == b,
    )
    .func(
        "!=(self: Topology, other: Topology) -> bool",
        "Whether they differ in shape.",
        |a: Topology, b: Topology| a != b,
    )
    .getter("cpus(self: Topology) -> int", "CPUs in all.", |t: &mut Topology| INT::from(t.cpus()))
    .getter("nodes(self: Topology) -> int", "NUMA nodes.", |t: &mut Topology| INT::from(t.nodes()))
    .getter("llcs(self: Topology) -> int", "Last-level caches in all.", |t: &mut Topology| {
        INT::from(t.llcs())
    })
    .getter(
        "cores_per_llc(self: Topology) -> int",
        "Cores that share a last-level cache; throws where that differs from node to node.",
        |t: &mut Topology| common(t, t.cores_per_llc(), "cores of an LLC", "cpu_set(`llc:${n}`)"),
    )
    .getter(
        "threads_per_core(self: Topology) -> int",
        "Threads of a core; throws where that differs from node to node.",
        |t: &mut Topology| common(t, t.threads_per_core(), "threads of a core", "siblings_of(cpu)"),
    );
    places(pkg);
}

/// What is where.
fn places(pkg: &mut Package<'_>) {
    pkg
    .func(
        "siblings_of(self: Topology, cpu: int) -> array",
        "The CPUs of a CPU's core, itself included, as numbers.",
        |t: &mut Topology, cpu: INT| -> Native<Array> {
            let one = |cpu| Some(t.siblings_of(cpu)).filter(|set| !set.is_empty());
            of_cpu(t, cpu, one).map(|set| numbers(&set))
        },
    )
    .func(
        "llcs_of_node(self: Topology, node: int) -> array",
        "The last-level caches of a NUMA node, as numbers; none in a node that has memory only.",
        |t: &mut Topology, node: INT| -> Native<Array> {
            let llcs = t.llcs_of_node(of_node(t, node)?);
            Ok(llcs.map(|llc| Dynamic::from(INT::from(llc))).collect())
        },
    )
    .func(
        "distance(self: Topology, from: int, to: int) -> int",
        "How far one NUMA node is from another, as the kernel tells it: 10 to itself.",
        |t: &mut Topology, from: INT, to: INT| -> Native<INT> {
            let (from, to) = (of_node(t, from)?, of_node(t, to)?);
            Ok(t.distance(from, to).map_or(0, INT::from))
        },
    )
    .func(
        "llc_of(self: Topology, cpu: int) -> int",
        "The last-level cache of a CPU.",
        |t: &mut Topology, cpu: INT| of_cpu(t, cpu, |cpu| t.llc_of(cpu)).map(INT::from),
    )
    .func(
        "node_of(self: Topology, cpu: int) -> int",
        "The NUMA node of a CPU.",
        |t: &mut Topology, cpu: INT| of_cpu(t, cpu, |cpu| t.node_of(cpu)).map(INT::from),
    )
    .func(
        "cpu_set(self: Topology, set: string) -> array",
        "The CPUs of `\"all\"`, `\"0-3,8\"`, `\"llc:1\"`, `\"node:0\"`, `\"disjoint:0/2\"`, .. as numbers.",
        |t: &mut Topology, set: &str| -> Native<Array> {
            let set = t.cpu_set(set).map_err(|e| Fault::argument(e.to_string()))?;
            Ok(numbers(&set))
        },
    );
}

/// What all have in common, or how to ask for each.
fn common(t: &Topology, value: Option<u32>, what: &str, instead: &str) -> Native<INT> {
    value.map(INT::from).ok_or_else(|| {
        let text = format!("the {what} differ in {t}; ask for each: {instead}");
        Fault::argument(text).into()
    })
}

fn of_node(t: &Topology, node: INT) -> Native<u32> {
    u32::try_from(node).ok().filter(|node| *node < t.nodes()).ok_or_else(|| {
        let last = t.nodes() - 1;
        Fault::argument(format!("{t} has no node {node}; its nodes are 0 to {last}")).into()
    })
}

fn of_cpu<T>(t: &Topology, cpu: INT, look: impl Fn(u32) -> Option<T>) -> Native<T> {
    let found = u32::try_from(cpu).ok().and_then(look);
    found.ok_or_else(|| {
        let last = t.cpus() - 1;
        Fault::argument(format!("{t} has no CPU {cpu}; its CPUs are 0 to {last}")).into()
    })
}

fn numbers(set: &CpuSet) -> Array {
    set.iter().map(|cpu| Dynamic::from(INT::from(cpu))).collect()
}
