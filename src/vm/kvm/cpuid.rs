//! What CPUID tells the guest: the host's own CPU, with caches and topology as they were asked for.
//!
//! Kernels read no PPTT on x86. Which CPUs share a last-level cache comes from leaf 4 (Intel) or
//! 0x8000001D (AMD): how many APIC ids share it. Cores and packages come from leaves 0xB, 0x1F,
//! 0x8000001E and 0x80000026. See Intel's SDM volume 2A, CPUID, and AMD's APM volume 3, appendix E.

use kvm_bindings::kvm_cpuid_entry2;

use super::apic::ApicBits;
use crate::vm::topology::Topology;

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the leaf has subleaves.
const INDEXED: u32 = 1;
const LINE: u32 = 64;

/// Who made the host's CPU; the guest's is of the same make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    Intel,
    Amd,
}

/// A cache: kind (1 data, 2 instructions, 3 both), level, ways and sets.
struct Cache {
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
}

/// Levels one and two belong to a core, level three to an LLC. 32 KiB, 1 MiB and 16 MiB.
const CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, ways: 8, sets: 64 },
    Cache { kind: 2, level: 1, ways: 8, sets: 64 },
    Cache { kind: 3, level: 2, ways: 8, sets: 2048 },
    Cache { kind: 3, level: 3, ways: 16, sets: 16384 },
];

impl Cache {
    fn kib(&self) -> u32 {
        self.ways * self.sets * LINE / 1024
    }

    /// Leaf 4 and leaf 0x8000001D have the same form; `sharing` is the shift of the ids that share
    /// it, `top` what Intel has in the upper bits of EAX.
    fn entry(&self, function: u32, index: u32, sharing: u32, top: u32) -> kvm_cpuid_entry2 {
        const SELF_INITIALIZING: u32 = 1 << 8;
        kvm_cpuid_entry2 {
            eax: self.kind
                | self.level << 5
                | SELF_INITIALIZING
                | ((1 << sharing) - 1) << 14
                | top << 26,
            ebx: (LINE - 1) | (self.ways - 1) << 22,
            ecx: self.sets - 1,
            ..entry(function, Some(index))
        }
    }
}

fn entry(function: u32, index: Option<u32>) -> kvm_cpuid_entry2 {
    let flags = if index.is_some() { INDEXED } else { 0 };
    kvm_cpuid_entry2 { function, index: index.unwrap_or(0), flags, ..Default::default() }
}

/// A CPU: its id, and how many share a core, an LLC and a package with it, itself included.
#[derive(Clone, Copy)]
struct Cpu {
    id: u32,
    threads: u32,
    llc: u32,
    package: u32,
}

/// What the host's KVM offers, and what is to be made of it.
#[derive(Clone)]
pub(super) struct Cpuid {
    offered: Vec<kvm_cpuid_entry2>,
    vendor: Vendor,
    topology: Topology,
    bits: ApicBits,
}

impl Cpuid {
    /// Takes what `KVM_GET_SUPPORTED_CPUID` gave.
    pub(super) fn new(offered: Vec<kvm_cpuid_entry2>, topology: &Topology) -> Self {
        let find = |function| offered.iter().find(|e| e.function == function);
        let ebx = find(0).map_or(0, |leaf| leaf.ebx);
        // "Genu", as in GenuineIntel.
        let vendor = if ebx == 0x756e_6547 { Vendor::Intel } else { Vendor::Amd };
        let version = find(1).map_or(0, |leaf| leaf.eax);
        let bits = ApicBits::new(topology, fixed_llc_shift(vendor, version));
        Cpuid { offered, vendor, topology: topology.clone(), bits }
    }

    /// How APIC ids are made up.
    pub(super) fn bits(&self) -> ApicBits {
        self.bits
    }

    /// The machine's shape.
    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Takes features away by leaf: bits of EBX, ECX and EDX.
    pub(super) fn hide(&mut self, function: u32, ebx: u32, ecx: u32, edx: u32) {
        for leaf in self.offered.iter_mut().filter(|e| e.function == function) {
            (leaf.ebx, leaf.ecx, leaf.edx) = (leaf.ebx & !ebx, leaf.ecx & !ecx, leaf.edx & !edx);
        }
    }

    /// All leaves of one CPU.
    pub(super) fn of(&self, cpu: u32) -> Vec<kvm_cpuid_entry2> {
        /// Leaves that are made anew.
        const OURS: [u32; 6] = [4, 0xb, 0x1f, 0x8000_001d, 0x8000_001e, 0x8000_0026];
        let cpu = self.cpu(cpu);
        let offered = self.offered.iter().copied().filter(|e| !OURS.contains(&e.function));
        let mut out: Vec<kvm_cpuid_entry2> = offered.collect();
        // A host that lacks them would leave the guest without caches.
        for function in [0x8000_0005, 0x8000_0006, 0x8000_0008] {
            if self.vendor == Vendor::Amd && out.iter().all(|leaf| leaf.function != function) {
                out.push(entry(function, None));
            }
        }
        out.iter_mut().for_each(|leaf| self.adapt(leaf, cpu));
        out.extend(self.levels(cpu));
        match self.vendor {
            Vendor::Intel => out.extend(self.intel_caches()),
            Vendor::Amd => out.extend(self.amd(cpu)),
        }
        out.sort_by_key(|leaf| (leaf.function, leaf.index));
        out
    }

    fn cpu(&self, cpu: u32) -> Cpu {
        let node = self.topology.node_of(cpu).unwrap_or(0);
        let node = self.topology.each_node()[node as usize];
        let (threads, llc) = (node.threads, node.threads * node.cores);
        Cpu { id: self.bits.id(&self.topology, cpu), threads, llc, package: node.cpus() }
    }

    fn adapt(&self, leaf: &mut kvm_cpuid_entry2, cpu: Cpu) {
        const HTT: u32 = 1 << 28;
        const VMX: u32 = 1 << 5;
        const DEADLINE: u32 = 1 << 24;
        const HYPERVISOR: u32 = 1 << 31;
        const CMP_LEGACY: u32 = 1 << 1;
        const SVM: u32 = 1 << 2;
        const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
        let amd = self.vendor == Vendor::Amd;
        let (id, package) = (cpu.id, self.bits.package_shift());
        match leaf.function {
            0 => leaf.eax = leaf.eax.max(if amd { 0xd } else { 0x1f }),
            1 => {
                if amd && family(leaf.eax) < ZEN {
                    leaf.eax = MILAN;
                }
                let ids = (1u32 << package.min(7)).min(255);
                leaf.ebx = leaf.ebx & 0xffff | ids << 16 | (id & 0xff) << 24;
                // A guest of ours starts no guests.
                leaf.ecx = leaf.ecx & !VMX | DEADLINE | HYPERVISOR;
                leaf.edx = if cpu.package > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
            }
            0x8000_0000 if amd => leaf.eax = leaf.eax.max(0x8000_0026),
            0x8000_0001 if amd => {
                leaf.ecx = leaf.ecx & !(SVM | CMP_LEGACY) | TOPOLOGY_EXTENSIONS;
                if cpu.package > 1 {
                    leaf.ecx |= CMP_LEGACY;
                }
            }
            0x8000_0005 if amd => {
                let size = |cache: &Cache| cache.kib() << 24 | cache.ways << 16 | 1 << 8 | LINE;
                (leaf.ecx, leaf.edx) = (size(&CACHES[0]), size(&CACHES[1]));
            }
            0x8000_0006 if amd => {
                // Eight ways are coded as 6, sixteen as 8.
                leaf.ecx = CACHES[2].kib() << 16 | 6 << 12 | 1 << 8 | LINE;
                leaf.edx = ((CACHES[3].kib() / 512) << 18) | 8 << 12 | 1 << 8 | LINE;
            }
            0x8000_0008 if amd => {
                leaf.ecx = leaf.ecx & !0xf0ff | (cpu.package - 1) & 0xff | package << 12;
            }
            _ => {}
        }
    }

    /// Leaves 0xB and, where a package has several LLCs, 0x1F: a die is an LLC.
    fn levels(&self, cpu: Cpu) -> Vec<kvm_cpuid_entry2> {
        const SMT: u32 = 1;
        const CORE: u32 = 2;
        const DIE: u32 = 5;
        let (core, die, package) =
            (self.bits.core_shift(), self.bits.llc_shift(), self.bits.package_shift());
        let mut out =
            levels(0xb, cpu.id, &[(SMT, core, cpu.threads), (CORE, package, cpu.package)]);
        // The same levels on all CPUs, however many LLCs their own nodes have.
        let dies = self.topology.each_node().iter().any(|node| node.llcs > 1);
        if self.vendor == Vendor::Intel && dies {
            let dies =
                [(SMT, core, cpu.threads), (CORE, die, cpu.llc), (DIE, package, cpu.package)];
            out.extend(levels(0x1f, cpu.id, &dies));
        }
        out
    }

    fn intel_caches(&self) -> Vec<kvm_cpuid_entry2> {
        let top = (1 << (self.bits.package_shift() - self.bits.core_shift()).min(6)) - 1;
        self.caches(4, top)
    }

    fn caches(&self, function: u32, top: u32) -> Vec<kvm_cpuid_entry2> {
        let sharing = |cache: &Cache| match cache.level {
            3 => self.bits.llc_shift(),
            _ => self.bits.core_shift(),
        };
        let mut out: Vec<kvm_cpuid_entry2> = (0..)
            .zip(&CACHES)
            .map(|(index, cache)| cache.entry(function, index, sharing(cache), top))
            .collect();
        out.push(entry(function, Some(out.len() as u32)));
        out
    }

    fn amd(&self, cpu: Cpu) -> Vec<kvm_cpuid_entry2> {
        const CORE: u32 = 1;
        const COMPLEX: u32 = 2;
        const DIE: u32 = 3;
        const SOCKET: u32 = 4;
        let Cpu { id, threads, llc, package: all } = cpu;
        let (core, complex, package) =
            (self.bits.core_shift(), self.bits.llc_shift(), self.bits.package_shift());
        let mut out = self.caches(0x8000_001d, 0);
        out.push(kvm_cpuid_entry2 {
            eax: id,
            ebx: (id >> core) & 0xff | (threads - 1) << 8,
            // One node in each package, and its number.
            ecx: (id >> package) & 0xff,
            ..entry(0x8000_001e, None)
        });
        let extended = [
            (CORE, core, threads),
            (COMPLEX, complex, llc),
            (DIE, package, all),
            (SOCKET, package, all),
        ];
        out.extend(levels(0x8000_0026, id, &extended));
        out
    }
}

/// The subleaves of a topology leaf: type, shift to the next level, CPUs in it.
fn levels(function: u32, id: u32, levels: &[(u32, u32, u32)]) -> Vec<kvm_cpuid_entry2> {
    let one = |index: u32, (kind, shift, cpus): (u32, u32, u32)| kvm_cpuid_entry2 {
        eax: shift,
        ebx: cpus,
        ecx: index | kind << 8,
        edx: id,
        ..entry(function, Some(index))
    };
    let mut out: Vec<kvm_cpuid_entry2> =
        (0..).zip(levels).map(|(index, level)| one(index, *level)).collect();
    out.push(one(out.len() as u32, (0, 0, 0)));
    out
}

/// Whether this program runs under QEMU's emulator.
pub(super) fn host_is_emulated() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat() == *b"TCGTCGTCGTCG"
}

/// AMD's first family of which kernels ask how many ids share an LLC; before, it is a package's.
const ZEN: u32 = 0x17;
/// What such a CPU is said to be instead: family 19h, model 01h. Emulators make the like of it.
const MILAN: u32 = 0x00a0_0f11;

fn family(version: u32) -> u32 {
    (version >> 8 & 0xf) + (version >> 20 & 0xff)
}

/// Where a CPU model does not ask how many ids share an LLC: kernels take bits 3 and up of the APIC
/// id on AMD's family 17h up to model 1Fh.
fn fixed_llc_shift(vendor: Vendor, version: u32) -> Option<u32> {
    let family = family(version);
    let model = version >> 4 & 0xf | (version >> 16 & 0xf) << 4;
    (vendor == Vendor::Amd && family == 0x17 && model <= 0x1f).then_some(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Shapes that machines are asked for.
    use crate::vm::topology::shapes::SHAPES;

    fn offered(name: &[u8; 12], version: u32) -> Vec<kvm_cpuid_entry2> {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        let leaf = |function, eax| kvm_cpuid_entry2 { eax, ..entry(function, None) };
        let mut all =
            vec![kvm_cpuid_entry2 { ebx: word(0), edx: word(4), ecx: word(8), ..leaf(0, 0xd) }];
        all.push(kvm_cpuid_entry2 { ecx: 1 << 5, ..leaf(1, version) });
        // What the host has of its own is not for the guest.
        all.push(kvm_cpuid_entry2 { eax: 0xffff_ffff, ..entry(4, Some(0)) });
        all.push(leaf(0x8000_0000, 0x8000_0008));
        all.extend([1, 8].map(|n| leaf(0x8000_0000 + n, 0)));
        all
    }

    const INTEL: (&[u8; 12], u32) = (b"GenuineIntel", 0x000c_06f2);
    /// Family 19h, model 11h.
    const AMD: (&[u8; 12], u32) = (b"AuthenticAMD", 0x00a1_0f11);
    /// Family 17h, model 01h.
    const OLD_AMD: (&[u8; 12], u32) = (b"AuthenticAMD", 0x0080_0f12);

    /// Family 0Fh, as QEMU's emulator has it.
    const ANCIENT_AMD: (&[u8; 12], u32) = (b"AuthenticAMD", 0x0000_0f61);

    /// Which CPUs have the same `key`, as sorted lists.
    fn groups(topology: &Topology, key: impl Fn(u32) -> u32) -> Vec<Vec<u32>> {
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for cpu in 0..topology.cpus() {
            groups.entry(key(cpu)).or_default().push(cpu);
        }
        groups.into_values().collect()
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found: Vec<_> =
            leaves.iter().filter(|e| (e.function, e.index) == (function, index)).collect();
        assert_eq!(found.len(), 1, "{function:#x}.{index}");
        *found[0]
    }

    /// The shift by which kernels find who shares cache `index`.
    fn sharing(leaf: kvm_cpuid_entry2) -> u32 {
        ((leaf.eax >> 14 & 0xfff) + 1).next_power_of_two().trailing_zeros()
    }

    #[test]
    fn a_kernel_finds_the_caches_and_levels_that_were_asked_for() {
        for shape in SHAPES {
            let topology = Topology::parse(shape).unwrap();
            for (name, version) in [INTEL, AMD, OLD_AMD, ANCIENT_AMD] {
                let cpuid = Cpuid::new(offered(name, version), &topology);
                let of: Vec<_> = (0..topology.cpus()).map(|cpu| cpuid.of(cpu)).collect();
                let at = |cpu: u32, function, index| find(&of[cpu as usize], function, index);
                let id = |cpu| at(cpu, 0xb, 0).edx;
                let intel = name == INTEL.0;
                let caches = if intel { 4 } else { 0x8000_001d };
                let fixed = (version == OLD_AMD.1).then_some(3);
                let llc = groups(&topology, |cpu| {
                    id(cpu) >> fixed.unwrap_or(sharing(at(cpu, caches, 3)))
                });
                let wanted = groups(&topology, |cpu| topology.llc_of(cpu).unwrap());
                assert_eq!(llc, wanted, "{shape}, LLCs, {version:#x}");
                let core = groups(&topology, |cpu| id(cpu) >> (at(cpu, 0xb, 0).eax & 0x1f));
                let siblings = |cpu| topology.siblings_of(cpu).iter().next().unwrap();
                let wanted = groups(&topology, siblings);
                assert_eq!(core, wanted, "{shape}, cores");
                for index in 0..3 {
                    let shared =
                        groups(&topology, |cpu| id(cpu) >> sharing(at(cpu, caches, index)));
                    assert_eq!(shared, core, "{shape}, cache {index} of a core");
                }
                let package = groups(&topology, |cpu| id(cpu) >> (at(cpu, 0xb, 1).eax & 0x1f));
                let wanted = groups(&topology, |cpu| topology.node_of(cpu).unwrap());
                assert_eq!(package, wanted, "{shape}, packages");
                if !intel {
                    let node = groups(&topology, |cpu| at(cpu, 0x8000_001e, 0).ecx & 0xff);
                    assert_eq!(node, wanted, "{shape}, nodes");
                    let ccx = |cpu| id(cpu) >> (at(cpu, 0x8000_0026, 1).eax & 0x1f);
                    if fixed.is_none() {
                        assert_eq!(groups(&topology, ccx), llc, "{shape}, complexes");
                    }
                }
                for cpu in 0..topology.cpus() {
                    let one = at(cpu, 1, 0);
                    assert!(intel || family(one.eax) >= ZEN, "{:#x}", one.eax);
                    assert_eq!(one.ebx >> 24, id(cpu) & 0xff, "{shape} CPU {cpu}");
                    assert_eq!(one.ecx & 1 << 5, 0, "no guests in the guest");
                    let node = topology.cpus_of_node(topology.node_of(cpu).unwrap()).len();
                    assert_eq!(one.edx >> 28 & 1 == 1, node > 1);
                    let threads = topology.siblings_of(cpu).len() as u32;
                    let counts = [0, 1].map(|level| at(cpu, 0xb, level).ebx);
                    assert_eq!(counts, [threads, node as u32], "{shape} CPU {cpu}");
                }
                let ids: std::collections::BTreeSet<u32> = (0..topology.cpus()).map(id).collect();
                assert_eq!(ids.len() as u32, topology.cpus(), "{shape}: ids differ");
            }
        }
    }

    #[test]
    fn caches_have_the_sizes_that_both_forms_tell() {
        let topology = Topology::parse("1n2l2c1t").unwrap();
        let cpuid = Cpuid::new(offered(AMD.0, AMD.1), &topology);
        let leaves = cpuid.of(0);
        let size = |leaf: kvm_cpuid_entry2| {
            ((leaf.ebx >> 22) + 1) * (leaf.ecx + 1) * ((leaf.ebx & 0xfff) + 1) / 1024
        };
        let sizes: Vec<u32> = (0..4).map(|i| size(find(&leaves, 0x8000_001d, i))).collect();
        assert_eq!(sizes, [32, 32, 1024, 16384]);
        assert_eq!(find(&leaves, 0x8000_001d, 4).eax, 0, "the end of the list");
        let old = find(&leaves, 0x8000_0006, 0);
        assert_eq!((old.ecx >> 16, (old.edx >> 18) * 512), (1024, 16384));
    }

    #[test]
    fn what_is_hidden_is_gone_and_nothing_else() {
        let topology = Topology::parse("1n1l1c1t").unwrap();
        let mut offered = offered(AMD.0, AMD.1);
        offered.push(kvm_cpuid_entry2 { ebx: 7, ecx: 7, edx: 7, ..entry(7, Some(0)) });
        let mut cpuid = Cpuid::new(offered, &topology);
        cpuid.hide(7, 1, 2, 4);
        let leaf = find(&cpuid.of(0), 7, 0);
        assert_eq!((leaf.ebx, leaf.ecx, leaf.edx), (6, 5, 3));
    }
}
