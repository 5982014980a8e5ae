//! What a guest's kernel makes of the shape of its machine: CPUs, caches, nodes, RAM, distances.

use std::collections::BTreeMap;

use cryoscope::vm::VmSpec;
use cryoscope::vm::topology::Topology;

/// Of a node's RAM, what firmware and holes may take, in MiB.
const HOLES: u64 = 3;

/// Asserts that the guest sees what was asked for of an engine. `file` reads one of the guest's.
pub fn is_as_asked(engine: &str, spec: &VmSpec, file: &dyn Fn(&str) -> String) {
    let (topology, mib) = (&spec.topology, spec.memory >> 20);
    let read = |path: &str| file(path).trim().to_owned();
    let all = topology.all().to_string();
    for list in ["online", "present", "possible"] {
        assert_eq!(read(&format!("/sys/devices/system/cpu/{list}")), all, "{topology}: {list}");
    }
    for cpu in 0..topology.cpus() {
        let of = |path: &str| read(&format!("/sys/devices/system/cpu/cpu{cpu}/{path}"));
        let llc = topology.cpus_of_llc(topology.llc_of(cpu).expect("an LLC")).to_string();
        let node = topology.cpus_of_node(topology.node_of(cpu).expect("a node")).to_string();
        let core = topology.siblings_of(cpu).to_string();
        for (path, wanted) in [
            ("topology/core_cpus_list", &core),
            ("topology/package_cpus_list", &node),
            ("cache/index2/shared_cpu_list", &core),
            ("cache/index3/shared_cpu_list", &llc),
        ] {
            assert_eq!(&of(path), wanted, "{topology}: {path} of CPU {cpu}");
        }
        // QEMU gives each thread an L1 of its own, up to some version.
        let l1 = of("cache/index0/shared_cpu_list");
        assert!(
            l1 == core || engine.starts_with("qemu") && l1 == cpu.to_string(),
            "{topology}: {l1}"
        );
        let levels: Vec<String> = (0..4).map(|i| of(&format!("cache/index{i}/level"))).collect();
        assert_eq!(levels, ["1", "1", "2", "3"], "{topology}: caches of CPU {cpu}");
    }
    nodes(topology, mib, &read);
}

/// A list of numbers as the kernel writes it.
fn list(numbers: impl Iterator<Item = u32>) -> String {
    numbers.collect::<cryoscope::vm::topology::CpuSet>().to_string()
}

fn nodes(topology: &Topology, mib: u64, read: &dyn Fn(&str) -> String) {
    let of = |path: &str| read(&format!("/sys/devices/system/node/{path}"));
    let nodes = topology.nodes();
    assert_eq!(of("online"), list(0..nodes), "{topology}");
    assert_eq!(of("has_memory"), list(0..nodes), "{topology}");
    let has_cpus = |node: &u32| !topology.cpus_of_node(*node).is_empty();
    assert_eq!(of("has_cpu"), list((0..nodes).filter(has_cpus)), "{topology}");
    let present = present(&read("/proc/zoneinfo"));
    let asked: u64 = topology.each_node().iter().filter_map(|n| n.memory).map(|m| m >> 20).sum();
    let open = topology.each_node().iter().filter(|n| n.memory.is_none()).count() as u64;
    for (number, node) in (0..).zip(topology.each_node()) {
        let cpus = of(&format!("node{number}/cpulist"));
        assert_eq!(cpus, topology.cpus_of_node(number).to_string(), "{topology}: node {number}");
        let distances: Vec<String> = (0..nodes)
            .map(|to| topology.distance(number, to).expect("a distance").to_string())
            .collect();
        let found = of(&format!("node{number}/distance"));
        assert_eq!(found.split_whitespace().collect::<Vec<_>>(), distances, "{topology}");
        let wanted = node.memory.map_or_else(|| (mib - asked) / open, |bytes| bytes >> 20);
        let found = present.get(&number).copied().unwrap_or(0) >> 20;
        let range = wanted.saturating_sub(HOLES)..=wanted + 2;
        assert!(range.contains(&found), "{topology}: node {number} has {found} MiB of {wanted}");
        if nodes > 1 {
            let nearest = topology.nearest_cpus(number).expect("a node with CPUs");
            let distance = topology.distance(nearest, number).expect("a distance");
            let latency = of(&format!("node{number}/access0/initiators/read_latency"));
            let wanted = (u32::from(distance) * 10).to_string();
            assert_eq!(latency, wanted, "{topology}: nanoseconds to node {number}");
        }
    }
}

/// Bytes of RAM in each node, from `/proc/zoneinfo`.
fn present(zoneinfo: &str) -> BTreeMap<u32, u64> {
    let (mut node, mut out) = (0, BTreeMap::new());
    for line in zoneinfo.lines() {
        if let Some(rest) = line.strip_prefix("Node ") {
            node = rest.split(',').next().and_then(|n| n.parse().ok()).expect("a node");
        } else if let Some(pages) = line.trim().strip_prefix("present ") {
            let pages: u64 = pages.trim().parse().expect("pages");
            *out.entry(node).or_default() += pages * 4096;
        }
    }
    out
}

/// Which tier of memory each node is in: the kernel puts slow memory into one with a higher number.
pub fn tiers(
    nodes: u32,
    ls: &dyn Fn(&str) -> Vec<String>,
    file: &dyn Fn(&str) -> String,
) -> Vec<u32> {
    let root = "/sys/devices/virtual/memory_tiering";
    let mut out = vec![0; nodes as usize];
    for name in ls(root) {
        let Some(tier) = name.strip_prefix("memory_tier").and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let list = file(&format!("{root}/{name}/nodelist"));
        let list: cryoscope::vm::topology::CpuSet = list.trim().parse().expect("a list");
        list.iter().for_each(|node| out[node as usize] = tier);
    }
    out
}
