//! ACPI: what tells the guest its CPUs, NUMA nodes, serial ports, and how to switch itself off.
//!
//! The machine is a "hardware-reduced" one (ACPI 6.5, chapter 4.1): no PM timer, no SCI, and one
//! register each for sleeping and for a reset.

use std::ops::Range;

use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package,
    Path, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{self, AccessSize, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use super::apic::ApicBits;
use super::pci;
use crate::mem::Region;
use crate::vm::topology::{Topology, bandwidth_mib, latency_ns};

/// Where the tables lie: in the hole below 1 MiB, where firmware keeps its own.
pub(super) const TABLES: u64 = 0xe_0000;
/// How much room there is for them.
pub(super) const TABLES_LEN: u64 = 0x2_0000;
/// The register that sends the machine to sleep (`SLEEP_CONTROL_REG`), and its status.
pub(super) const SLEEP_CONTROL: u16 = 0x600;
pub(super) const SLEEP_STATUS: u16 = 0x601;
/// The register that resets it (`RESET_REG`), and what is written to it.
pub(super) const RESET: u16 = 0x604;
pub(super) const RESET_VALUE: u8 = 1;
/// The sleep type that means off; `SLP_TYP` begins at bit 2 of the register, `SLP_EN` is bit 5.
pub(super) const OFF: u8 = 5;
/// The serial ports: first port and interrupt. The first is the console, frames go over the second.
pub(super) const SERIAL: [(u16, u32); 2] = [(0x3f8, 4), (0x2f8, 3)];

const OEM: [u8; 6] = *b"CRYOSC";
const OEM_TABLE: [u8; 8] = *b"CRYOSCOP";
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// RAM of the nodes: the regions of each.
pub(super) type NodeRam = Vec<Vec<Region>>;

/// Bytes of a table.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Bytes::default();
    table.to_aml_bytes(&mut out);
    out.0
}

/// Tables one behind the other.
struct Placed(Vec<u8>);

impl Placed {
    /// Appends a table and says where it is.
    fn put(&mut self, table: &[u8]) -> u64 {
        let at = self.0.len().next_multiple_of(16);
        self.0.resize(at, 0);
        self.0.extend_from_slice(table);
        TABLES + at as u64
    }
}

/// All tables, to be put at [`TABLES`]; the RSDP is the first of them.
pub(super) fn tables(topology: &Topology, apic: ApicBits, ram: &NodeRam) -> Vec<u8> {
    let mut placed = Placed(vec![0; Rsdp::len()]);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    let dsdt = placed.put(&dsdt());
    xsdt.add_entry(placed.put(&bytes(&fadt(dsdt))));
    xsdt.add_entry(placed.put(&bytes(&madt(topology, apic))));
    if topology.nodes() > 1 {
        xsdt.add_entry(placed.put(srat(topology, apic, ram).as_slice()));
        xsdt.add_entry(placed.put(slit(topology).as_slice()));
        xsdt.add_entry(placed.put(hmat(topology).as_slice()));
    }
    let xsdt = placed.put(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    placed.0[..rsdp.len()].copy_from_slice(&rsdp);
    placed.0
}

fn register(port: u16) -> GAS {
    GAS::new(gas::AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    /// `IAPC_BOOT_ARCH`: no VGA, no RTC in CMOS.
    const MISSING: u16 = 1 << 2 | 1 << 5;
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = MISSING.into();
    fadt.reset_reg = register(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(SLEEP_CONTROL);
    fadt.sleep_status_reg = register(SLEEP_STATUS);
    fadt.finalize()
}

fn madt(topology: &Topology, apic: ApicBits) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for cpu in 0..topology.cpus() {
        // Machines with ids beyond a byte are refused before.
        let id = apic.id(topology, cpu) as u8;
        madt.add_structure(ProcessorLocalApic::new(cpu as u8, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

/// Which CPUs and which RAM belong to which node (ACPI 6.5, chapter 5.2.16).
fn srat(topology: &Topology, apic: ApicBits, ram: &NodeRam) -> Sdt {
    const ENABLED: u32 = 1;
    let mut srat = Sdt::new(*b"SRAT", 36, 3, OEM, OEM_TABLE, 1);
    srat.append_slice(&1u32.to_le_bytes());
    srat.append_slice(&[0; 8]);
    for cpu in 0..topology.cpus() {
        let node = topology.node_of(cpu).unwrap_or(0);
        let mut affinity = vec![0, 16, node as u8, apic.id(topology, cpu) as u8];
        affinity.extend(ENABLED.to_le_bytes());
        // The local SAPIC's number, the upper bytes of the node, the clock domain.
        affinity.resize(16, 0);
        srat.append_slice(&affinity);
    }
    for (node, regions) in (0u32..).zip(ram) {
        for region in regions {
            let mut affinity = vec![1, 40];
            affinity.extend(node.to_le_bytes());
            affinity.extend([0; 2]);
            affinity.extend(region.start.0.to_le_bytes());
            affinity.extend(region.len.to_le_bytes());
            affinity.extend([0; 4]);
            affinity.extend(ENABLED.to_le_bytes());
            affinity.resize(40, 0);
            srat.append_slice(&affinity);
        }
    }
    srat
}

/// How far each node is from each (ACPI 6.5, chapter 5.2.17).
fn slit(topology: &Topology) -> Sdt {
    let nodes = topology.nodes();
    let mut slit = Sdt::new(*b"SLIT", 36, 1, OEM, OEM_TABLE, 1);
    slit.append_slice(&u64::from(nodes).to_le_bytes());
    for from in 0..nodes {
        let row: Vec<u8> = (0..nodes).filter_map(|to| topology.distance(from, to)).collect();
        slit.append_slice(&row);
    }
    slit
}

/// What a CPU's access to each node's memory takes and how much goes through, by which kernels
/// put nodes into tiers (ACPI 6.5, chapter 5.2.29).
fn hmat(topology: &Topology) -> Sdt {
    /// Latencies are in picoseconds from this revision on.
    const REVISION: u8 = 2;
    const INITIATOR_IS_THERE: u16 = 1;
    const ACCESS_LATENCY: u8 = 0;
    const ACCESS_BANDWIDTH: u8 = 3;
    let mut hmat = Sdt::new(*b"HMAT", 36, REVISION, OEM, OEM_TABLE, 1);
    hmat.append_slice(&[0; 4]);
    let (with_cpus, all): (Vec<u32>, Vec<u32>) = {
        let has_cpus = |node: &u32| !topology.llcs_of_node(*node).is_empty();
        ((0..topology.nodes()).filter(has_cpus).collect(), (0..topology.nodes()).collect())
    };
    for node in &all {
        let nearest = topology.nearest_cpus(*node).unwrap_or(0);
        let mut attributes = vec![0; 4];
        attributes.extend(40u32.to_le_bytes());
        attributes.extend(INITIATOR_IS_THERE.to_le_bytes());
        attributes.extend([0; 2]);
        attributes.extend(nearest.to_le_bytes());
        attributes.extend(node.to_le_bytes());
        attributes.resize(40, 0);
        hmat.append_slice(&attributes);
    }
    let values = |kind: u8, unit: u64, value: &dyn Fn(u8) -> u64| {
        let entries = with_cpus.len() * all.len();
        let length = 32 + 4 * (with_cpus.len() + all.len()) + 2 * entries;
        let mut out = vec![1, 0, 0, 0];
        out.extend((length as u32).to_le_bytes());
        // Memory itself, no cache before it; the kind; no transfer size is needed.
        out.extend([0, kind, 0, 0]);
        out.extend((with_cpus.len() as u32).to_le_bytes());
        out.extend((all.len() as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(unit.to_le_bytes());
        out.extend(with_cpus.iter().chain(&all).flat_map(|node| node.to_le_bytes()));
        for (from, to) in with_cpus.iter().flat_map(|from| all.iter().map(move |to| (*from, *to))) {
            let value = topology.distance(from, to).map_or(0, value) / unit;
            out.extend(u16::try_from(value).unwrap_or(u16::MAX - 1).to_le_bytes());
        }
        out
    };
    // In units in which the numbers fit into their 16 bits.
    hmat.append_slice(&values(ACCESS_LATENCY, 1000, &|d| u64::from(latency_ns(d)) * 1000));
    hmat.append_slice(&values(ACCESS_BANDWIDTH, 1024, &|d| bandwidth_mib(d)));
    hmat
}

/// The bridge to the PCI bus: its ports, its one bus, and where its devices' memory may be.
fn pci() -> Vec<u8> {
    let hid = EISAName::new("PNP0A03");
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(pci::ADDRESS, pci::ADDRESS, 1, 8);
    let Range { start, end } = pci::WINDOW;
    let cache = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(cache, true, start, end - 1, None);
    let resources = ResourceTemplate::new(vec![&bus, &ports, &memory]);
    let zero = aml::ZERO;
    let device = [
        Name::new(Path::new("_HID"), &hid),
        Name::new(Path::new("_UID"), &zero),
        Name::new(Path::new("_BBN"), &zero),
        Name::new(Path::new("_CRS"), &resources),
    ];
    let device = device.iter().map(|name| name as &dyn Aml).collect();
    bytes(&Device::new(Path::new("_SB_.PCI0"), device))
}

/// The PCI bus, the serial ports and the way off.
fn dsdt() -> Vec<u8> {
    let mut body = pci();
    for (uid, (port, interrupt)) in (0u8..).zip(SERIAL) {
        let path = format!("_SB_.COM{}", uid + 1);
        let (io, irq) =
            (IO::new(port, port, 1, 8), Interrupt::new(true, true, false, false, interrupt));
        let resources = ResourceTemplate::new(vec![&io, &irq]);
        let (hid, uid) = (EISAName::new("PNP0501"), uid);
        let device = [
            Name::new(Path::new("_HID"), &hid),
            Name::new(Path::new("_UID"), &uid),
            Name::new(Path::new("_CRS"), &resources),
        ];
        body.extend(bytes(&Device::new(
            Path::new(&path),
            device.iter().map(|n| n as &dyn Aml).collect(),
        )));
    }
    let (off, zero) = (OFF, aml::ZERO);
    let package = Package::new(vec![&off, &zero, &zero, &zero]);
    body.extend(bytes(&Name::new(Path::new("_S5_"), &package)));
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&body);
    dsdt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Gpa;

    fn u64_at(raw: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(raw[at..at + 8].try_into().unwrap())
    }

    fn u32_at(raw: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(raw[at..at + 4].try_into().unwrap())
    }

    /// The tables as a kernel finds them: from the RSDP, each with its sum checked.
    fn found(raw: &[u8]) -> Vec<(String, Vec<u8>)> {
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(&raw[..8], b"RSD PTR ");
        assert_eq!((sum(&raw[..20]), sum(&raw[..36])), (0, 0));
        let table = |at: u64| {
            let at = (at - TABLES) as usize;
            let table = &raw[at..at + u32_at(raw, at + 4) as usize];
            let name = String::from_utf8(table[..4].to_vec()).unwrap();
            assert_eq!(sum(table), 0, "{name}");
            (name, table.to_vec())
        };
        let (name, xsdt) = table(u64_at(raw, 24));
        assert_eq!(name, "XSDT");
        let mut out: Vec<_> =
            (36..xsdt.len()).step_by(8).map(|at| table(u64_at(&xsdt, at))).collect();
        let fadt = &out.iter().find(|(name, _)| name == "FACP").unwrap().1;
        out.push(table(u64_at(fadt, 140)));
        out
    }

    fn all(shape: &str) -> Vec<(String, Vec<u8>)> {
        let topology = Topology::parse(shape).unwrap();
        let ram = (0..topology.nodes())
            .map(|node| vec![Region { start: Gpa(u64::from(node) << 28), len: 1 << 28 }])
            .collect();
        let raw = tables(&topology, ApicBits::new(&topology, None), &ram);
        assert!(raw.len() as u64 <= TABLES_LEN);
        found(&raw)
    }

    fn names(tables: &[(String, Vec<u8>)]) -> Vec<&str> {
        tables.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn cpus_are_in_madt_by_their_apic_ids() {
        let tables = all("1n2l3c1t");
        assert_eq!(names(&tables), ["FACP", "APIC", "DSDT"]);
        let madt = &tables[1].1;
        let cpus: Vec<[u8; 2]> = madt[44..44 + 6 * 8]
            .chunks(8)
            .map(|c| {
                assert_eq!(c[..2], [0, 8]);
                [c[2], c[3]]
            })
            .collect();
        assert_eq!(cpus, [[0, 0], [1, 1], [2, 2], [3, 4], [4, 5], [5, 6]]);
        assert_eq!(madt[44 + 48..44 + 50], [1, 12], "then the IO-APIC");
    }

    #[test]
    fn nodes_have_their_cpus_memory_and_distances() {
        let tables = all("2n2l2c1t");
        assert_eq!(names(&tables), ["FACP", "APIC", "SRAT", "SLIT", "HMAT", "DSDT"]);
        let srat = &tables[2].1;
        let cpus: Vec<(u8, u8)> = srat[48..48 + 64].chunks(16).map(|c| (c[2], c[3])).collect();
        assert_eq!(cpus, [(0, 0), (0, 1), (1, 2), (1, 3)]);
        let memory: Vec<(u32, u64, u64)> = srat[48 + 64..]
            .chunks(40)
            .map(|c| (u32_at(c, 2), u64_at(c, 8), u64_at(c, 16)))
            .collect();
        assert_eq!(memory, [(0, 0, 1 << 28), (1, 1 << 28, 1 << 28)]);
        assert_eq!(tables[3].1[44..], [10, 20, 20, 10]);
    }

    /// What HMAT says of each CPU node's access to each node: latencies in picoseconds, or MiB/s.
    fn accesses(hmat: &[u8], kind: u8) -> Vec<(u32, u32, u64)> {
        let mut at = 40;
        while at < hmat.len() {
            let length = u32_at(hmat, at + 4) as usize;
            let part = &hmat[at..at + length];
            at += length;
            if part[..2] != [1, 0] || part[9] != kind {
                continue;
            }
            let (from, to) = (u32_at(part, 12) as usize, u32_at(part, 16) as usize);
            assert_eq!(length, 32 + 4 * (from + to) + 2 * from * to);
            let name = |i: usize| u32_at(part, 32 + 4 * i);
            let value = |i: usize| {
                let at = 32 + 4 * (from + to) + 2 * i;
                u64::from(u16::from_le_bytes(part[at..at + 2].try_into().unwrap()))
            };
            let unit = u64_at(part, 24);
            let one = |i: usize| (name(i / to), name(from + i % to), unit * value(i));
            return (0..from * to).map(one).collect();
        }
        panic!("nothing of kind {kind}");
    }

    #[test]
    fn a_node_without_cpus_is_in_all_tables_but_madt() {
        let tables = all("1n1l2c1t+1n1l1c1t+1n@10,20,15/20,10,18/15,17,10");
        let srat = &tables[2].1;
        let cpus: Vec<u8> = srat[48..48 + 48].chunks(16).map(|c| c[2]).collect();
        assert_eq!(cpus, [0, 0, 1]);
        let memory: Vec<u32> = srat[48 + 48..].chunks(40).map(|c| u32_at(c, 2)).collect();
        assert_eq!(memory, [0, 1, 2]);
        assert_eq!(tables[3].1[44..], [10, 20, 15, 20, 10, 18, 15, 17, 10]);
        let hmat = &tables[4].1;
        let nearest: Vec<(u32, u32)> =
            hmat[40..160].chunks(40).map(|c| (u32_at(c, 16), u32_at(c, 12))).collect();
        assert_eq!(nearest, [(0, 0), (1, 1), (2, 0)]);
        let latencies = accesses(hmat, 0);
        let nanoseconds: Vec<_> = latencies.iter().map(|(a, b, ps)| (*a, *b, ps / 1000)).collect();
        let wanted = [(0, 0, 100), (0, 1, 200), (0, 2, 150), (1, 0, 200), (1, 1, 100), (1, 2, 180)];
        assert_eq!(nanoseconds, wanted);
        let bandwidths: Vec<u64> = accesses(hmat, 3).into_iter().map(|(.., mib)| mib).collect();
        assert_eq!(bandwidths, [102_400, 51_200, 67_584, 51_200, 102_400, 56_320]);
    }

    #[test]
    fn all_shapes_have_all_their_cpus_and_nodes_in_the_tables() {
        for shape in crate::vm::topology::shapes::SHAPES {
            let topology = Topology::parse(shape).unwrap();
            let tables = all(shape);
            let of = |name: &str| &tables.iter().find(|(n, _)| n == name).unwrap().1;
            let madt = of("APIC");
            let ids: Vec<u8> =
                madt[44..].chunks(8).take(topology.cpus() as usize).map(|c| c[3]).collect();
            let bits = ApicBits::new(&topology, None);
            let wanted: Vec<u8> =
                (0..topology.cpus()).map(|cpu| bits.id(&topology, cpu) as u8).collect();
            assert_eq!(ids, wanted, "{shape}");
            if topology.nodes() == 1 {
                assert_eq!(names(&tables), ["FACP", "APIC", "DSDT"], "{shape}");
                continue;
            }
            let nodes: Vec<(u32, u8)> = of("SRAT")[48..]
                .chunks(16)
                .take(topology.cpus() as usize)
                .map(|c| (c[2].into(), c[3]))
                .collect();
            let node = |cpu| topology.node_of(cpu).unwrap();
            let wanted: Vec<(u32, u8)> =
                (0..).zip(&wanted).map(|(cpu, id)| (node(cpu), *id)).collect();
            assert_eq!(nodes, wanted, "{shape}");
            let count = topology.nodes();
            let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
            let distances: Vec<u8> = pairs.map(|(a, b)| topology.distance(a, b).unwrap()).collect();
            assert_eq!(of("SLIT")[44..], distances, "{shape}");
            for (from, to, picoseconds) in accesses(of("HMAT"), 0) {
                let distance = u64::from(topology.distance(from, to).unwrap());
                assert_eq!(picoseconds, distance * 10_000, "{shape}, {from} to {to}");
            }
        }
    }

    #[test]
    fn the_machine_can_be_switched_off_and_reset() {
        let tables = all("1n1l1c1t");
        let fadt = &tables[0].1;
        assert_eq!(u32_at(fadt, 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        assert_eq!(u64_at(fadt, 120), u64::from(RESET));
        assert_eq!(u64_at(fadt, 248), u64::from(SLEEP_CONTROL));
        let dsdt = &tables[2].1;
        let s5 = dsdt.windows(4).position(|w| w == b"_S5_").unwrap();
        // Name, package, its length, its count, a byte that follows.
        assert_eq!(dsdt[s5 + 4..s5 + 9], [0x12, 7, 4, 0x0a, OFF]);
    }
}
