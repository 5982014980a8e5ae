//! `topology(spec)` and `t.topology`.

use rhai::{Array, Dynamic, INT};

use crate::vm::topology::{CpuSet, Topology};

use super::fault::{Fault, Native};
use super::register::Package;
use super::values::incomparable;

pub(crate) fn register(pkg: &mut Package<'_>) {
    incomparable::<Topology>(pkg, "Topology");
    pkg.ty::<Topology>(
        "Topology",
        "The shape of a machine: NUMA nodes, last-level caches, cores, threads.",
    )
    .func(
        "topology(spec: string) -> Topology",
        "Reads `\"1n2l2c1t\"`: nodes, LLCs (total), cores per LLC, threads per core.",
        |spec: &str| -> Native<Topology> {
            Topology::parse(spec).map_err(|e| Fault::argument(e.to_string()).into())
        },
    )
    .func("to_string(self: Topology) -> string", "As it is written: `1n2l2c1t`.", |t: &mut Topology| {
        t.to_string()
    })
    .func("to_debug(self: Topology) -> string", "As it is written: `1n2l2c1t`.", |t: &mut Topology| {
        t.to_string()
    })
    .func("==(self: Topology, other: Topology) -> bool", "Whether both have the same shape.", |a: Topology, b: Topology| a == b)
    .func("!=(self: Topology, other: Topology) -> bool", "Whether they differ in shape.", |a: Topology, b: Topology| a != b)
    .getter("cpus(self: Topology) -> int", "CPUs in all.", |t: &mut Topology| INT::from(t.cpus()))
    .getter("nodes(self: Topology) -> int", "NUMA nodes.", |t: &mut Topology| INT::from(t.nodes()))
    .getter("llcs(self: Topology) -> int", "Last-level caches in all.", |t: &mut Topology| {
        INT::from(t.llcs())
    })
    .getter("cores_per_llc(self: Topology) -> int", "Cores that share a last-level cache.", |t: &mut Topology| {
        INT::from(t.cores_per_llc())
    })
    .getter("threads_per_core(self: Topology) -> int", "Threads of a core.", |t: &mut Topology| {
        INT::from(t.threads_per_core())
    })
    .func(
        "llc_of(self: Topology, cpu: int) -> int",
        "The last-level cache of a CPU.",
        |t: &mut Topology, cpu: INT| of_cpu(t, cpu, |cpu| t.llc_of(cpu)),
    )
    .func(
        "node_of(self: Topology, cpu: int) -> int",
        "The NUMA node of a CPU.",
        |t: &mut Topology, cpu: INT| of_cpu(t, cpu, |cpu| t.node_of(cpu)),
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

fn of_cpu(t: &Topology, cpu: INT, look: impl Fn(u32) -> Option<u32>) -> Native<INT> {
    let found = u32::try_from(cpu).ok().and_then(look);
    found.map(INT::from).ok_or_else(|| {
        let last = t.cpus() - 1;
        Fault::argument(format!("{t} has no CPU {cpu}; its CPUs are 0 to {last}")).into()
    })
}

fn numbers(set: &CpuSet) -> Array {
    set.iter().map(|cpu| Dynamic::from(INT::from(cpu))).collect()
}
