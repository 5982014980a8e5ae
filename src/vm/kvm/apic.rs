//! APIC ids: how a CPU's place in the topology is written into one number.
//!
//! Each level has its own bits, as many as its count needs rounded up, so that a shift of the id
//! gives the core, the LLC and the package (a NUMA node here), as CPUID leaf 0xB prescribes.

use crate::vm::topology::Topology;

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
        let threads = bits(topology.threads_per_core());
        let cores = bits(topology.cores_per_llc());
        let padded = llc_shift.unwrap_or(0).saturating_sub(threads);
        ApicBits { threads, cores: cores.max(padded), llcs: bits(topology.llcs_per_node()) }
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

    /// The APIC id of a CPU.
    pub(super) fn id(self, topology: &Topology, cpu: u32) -> u32 {
        let (threads, cores) = (topology.threads_per_core(), topology.cores_per_llc());
        let llc = cpu / (threads * cores);
        let (node, llc) = (llc / topology.llcs_per_node(), llc % topology.llcs_per_node());
        let core = cpu / threads % cores;
        (node << self.package_shift())
            | (llc << self.llc_shift())
            | (core << self.core_shift())
            | (cpu % threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_its_own_bits() {
        let cases: [(&str, Option<u32>, &[u32]); 7] = [
            ("1n1l1c1t", None, &[0]),
            ("1n1l4c1t", None, &[0, 1, 2, 3]),
            ("1n2l3c1t", None, &[0, 1, 2, 4, 5, 6]),
            ("2n2l1c2t", None, &[0, 1, 2, 3]),
            ("2n4l3c1t", None, &[0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]),
            ("1n2l2c1t", Some(3), &[0, 1, 8, 9]),
            ("2n2l2c2t", Some(3), &[0, 1, 2, 3, 8, 9, 10, 11]),
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
