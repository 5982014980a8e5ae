//! APIC ids: how a CPU's place in the topology is written into one number.
//!
//! Each level has its own bits, as many as its count needs rounded up, so that a shift of the id
//! gives the core, the LLC and the package (a NUMA node here), as CPUID leaf 0xB prescribes.

use crate::vm::topology::{Node, Topology};

/// How many bits each level below the package has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ApicBits {
    threads: u32,
    cores: u32,
    llcs: u32,
}

/// Bits that tell `count` things apart.
fn bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

impl ApicBits {
    /// The bits of a topology. `llc_shift` asks for an LLC's ids to begin at that bit, where a
    /// CPU model has it fixed; with more CPUs in an LLC than that it cannot be.
    pub(super) fn new(topology: &Topology, llc_shift: Option<u32>) -> Self {
        // Nodes may differ: each level has room for the largest.
        let most =
            |of: fn(&Node) -> u32| bits(topology.each_node().iter().map(of).max().unwrap_or(1));
        let (threads, cores) = (most(|node| node.threads), most(|node| node.cores));
        let padded = llc_shift.unwrap_or(0).saturating_sub(threads);
        ApicBits { threads, cores: cores.max(padded), llcs: most(|node| node.llcs) }
    }

    /// The shift that leaves the number of the core.
    pub(super) fn core_shift(self) -> u32 {
        self.threads
    }

    /// The shift that leaves the number of the LLC.
    pub(super) fn llc_shift(self) -> u32 {
        self.threads + self.cores
    }

    /// The shift that leaves the number of the package.
    pub(super) fn package_shift(self) -> u32 {
        self.llc_shift() + self.llcs
    }

    /// The APIC id of a CPU; 0 for one that does not exist.
    pub(super) fn id(self, topology: &Topology, cpu: u32) -> u32 {
        let Some(place) = topology.place(cpu) else { return 0 };
        (place.node << self.package_shift())
            | (place.llc_in_node << self.llc_shift())
            | (place.core << self.core_shift())
            | place.thread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_its_own_bits() {
        let cases: [(&str, Option<u32>, &[u32]); 10] = [
            ("1n1l1c1t", None, &[0]),
            ("1n1l4c1t", None, &[0, 1, 2, 3]),
            ("1n2l3c1t", None, &[0, 1, 2, 4, 5, 6]),
            ("2n2l1c2t", None, &[0, 1, 2, 3]),
            ("2n4l3c1t", None, &[0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]),
            ("1n2l2c1t", Some(3), &[0, 1, 8, 9]),
            ("2n2l2c2t", Some(3), &[0, 1, 2, 3, 8, 9, 10, 11]),
            ("1n2l2c1t+1n1l1c1t", None, &[0, 1, 2, 3, 4]),
            ("1n1l1c2t+1n1l3c1t", None, &[0, 1, 8, 10, 12]),
            ("2n2l1c1t+1n", None, &[0, 1]),
        ];
        for (shape, llc_shift, ids) in cases {
            let topology = Topology::parse(shape).unwrap();
            let bits = ApicBits::new(&topology, llc_shift);
            let found: Vec<u32> = (0..topology.cpus()).map(|cpu| bits.id(&topology, cpu)).collect();
            assert_eq!(found, ids, "{shape}");
            for (cpu, id) in (0..).zip(found) {
                let node = topology.node_of(cpu).unwrap();
                assert_eq!(id >> bits.package_shift(), node, "{shape} CPU {cpu}");
            }
        }
    }
}
