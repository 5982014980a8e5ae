//! Guest RAM: one memfd for each node, which the machine has and this process maps; or memory of
//! this process alone, when the machine is in it.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::VmError;
use super::topology::{Node, Topology};
use crate::mem::{Gpa, MappedMem, MemError, Region};

const MIB: u64 = 1 << 20;

/// Shares RAM out over the nodes, in MiB: nodes that ask for some get that, the others even numbers
/// of what is left, and the last of them the remainder. Rounded up to 2 MiB in all.
pub(super) fn share_out(bytes: u64, topology: &Topology) -> Vec<u64> {
    let all = bytes.div_ceil(2 * MIB) * 2;
    let nodes = topology.each_node();
    let asked: u64 = nodes.iter().filter_map(|node| node.memory).map(|memory| memory / MIB).sum();
    let open = nodes.iter().filter(|node| node.memory.is_none()).count() as u64;
    let left = all.saturating_sub(asked);
    let each = left.checked_div(open).unwrap_or(0) / 2 * 2;
    let last = nodes.iter().rposition(|node| node.memory.is_none());
    let share = |(n, node): (usize, &Node)| match node.memory {
        Some(memory) => memory / MIB,
        None if Some(n) == last => left - each * (open - 1),
        None => each,
    };
    nodes.iter().enumerate().map(share).collect()
}

/// A stretch of guest RAM: where it is, and which node's file has it at which offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) region: Region,
    pub(super) node: usize,
    pub(super) offset: u64,
}

/// Where the nodes' RAM is: one after the other from 0, with a hole from `low_mib` to 4 GiB.
pub(super) fn layout(node_mib: &[u64], low_mib: u64) -> Vec<Part> {
    let low = low_mib * MIB;
    let mut parts = Vec::new();
    let mut at = 0; // in RAM without the hole
    for (node, mib) in node_mib.iter().enumerate() {
        let (start, end) = (at, at + mib * MIB);
        for (from, to, base) in [(start, end.min(low), 0), (start.max(low), end, (4 << 30) - low)] {
            if from < to {
                let region = Region { start: Gpa(base + from), len: to - from };
                parts.push(Part { region, node, offset: from - start });
            }
        }
        at = end;
    }
    parts.sort_by_key(|part| part.region.start);
    parts
}

/// RAM of a machine, and the host's view of it.
pub(super) struct Ram {
    /// One file for each node, unless it is this process's own.
    pub(super) files: Vec<File>,
    pub(super) parts: Vec<Part>,
    pub(super) mem: Arc<MappedMem>,
}

/// How files become memory: [`MappedMem::from_parts`] for whoever reads it, or
/// [`MappedMem::writable`].
type Map = fn(Vec<(Region, File, u64)>) -> Result<MappedMem, MemError>;

impl Ram {
    pub(super) fn new(
        node_mib: &[u64],
        low_mib: u64,
        huge: bool,
        map: Map,
    ) -> Result<Self, VmError> {
        let pages =
            if huge { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
        let files = node_mib
            .iter()
            .map(|mib| sealed("cryoscope-ram", mib * MIB, pages))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| refused(e.to_string()))?;
        let parts = layout(node_mib, low_mib);
        let mapped = parts
            .iter()
            .map(|part| Ok((part.region, files[part.node].try_clone()?, part.offset)))
            .collect::<Result<Vec<_>, std::io::Error>>()
            .map_err(|e| refused(e.to_string()))?;
        let mem = map(mapped).map_err(|e| refused(e.to_string()))?;
        Ok(Ram { files, parts, mem: Arc::new(mem) })
    }

    /// RAM that nobody but this process needs: of huge pages that the host keeps for such, or of
    /// what it gives by itself.
    pub(super) fn own(node_mib: &[u64], low_mib: u64, huge: bool) -> Result<Self, VmError> {
        if huge {
            return Ram::new(node_mib, low_mib, huge, MappedMem::writable);
        }
        let parts = layout(node_mib, low_mib);
        let mem = MappedMem::own(parts.iter().map(|part| part.region).collect());
        let mem = mem.map_err(|e| refused(e.to_string()))?;
        Ok(Ram { files: Vec::new(), parts, mem: Arc::new(mem) })
    }
}

fn refused(reason: String) -> VmError {
    VmError::Host { what: "make guest RAM".into(), reason }
}

/// Memory that is a file without a name. Its size is sealed: nobody who holds it can make a read
/// of our mapping of it fault.
pub(super) fn memfd(name: &str, len: u64) -> std::io::Result<File> {
    sealed(name, len, MemfdFlags::empty())
}

fn sealed(name: &str, len: u64, pages: MemfdFlags) -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages;
    let file = File::from(memfd_create(name, flags)?);
    file.set_len(len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::GuestMem;
    use std::os::unix::fs::FileExt;

    #[test]
    fn ram_is_shared_out_in_even_mebibytes() {
        let cases: [(u64, &str, &[u64]); 9] = [
            (512 * MIB, "1n1l1c1t", &[512]),
            (512 * MIB, "2n2l1c1t", &[256, 256]),
            (512 * MIB, "3n3l1c1t", &[170, 170, 172]),
            (512 * MIB + 1, "1n1l1c1t", &[514]),
            (3 * MIB, "1n1l1c1t", &[4]),
            (512 * MIB, "1n1l1c1t:384M+1n", &[384, 128]),
            (512 * MIB, "1n1l1c1t+1n:100M+1n", &[206, 100, 206]),
            (514 * MIB, "2n2l1c1t+1n:100M", &[206, 208, 100]),
            (512 * MIB, "1n1l1c1t:384M+1n:128M", &[384, 128]),
        ];
        for (bytes, shape, mib) in cases {
            let topology = shape.parse().unwrap();
            assert_eq!(share_out(bytes, &topology), mib, "{bytes} bytes over {shape}");
        }
    }

    #[test]
    fn ram_above_the_hole_starts_at_four_gibibytes() {
        let gib = 1u64 << 30;
        let part = |start, len, node, offset| Part {
            region: Region { start: Gpa(start), len },
            node,
            offset,
        };
        assert_eq!(layout(&[512], 2048), [part(0, 512 * MIB, 0, 0)]);
        assert_eq!(layout(&[2048], 2048), [part(0, 2 * gib, 0, 0)]);
        assert_eq!(
            layout(&[4096], 2048),
            [part(0, 2 * gib, 0, 0), part(4 * gib, 2 * gib, 0, 2 * gib)]
        );
        assert_eq!(
            layout(&[1536, 1536], 2048),
            [
                part(0, 1536 * MIB, 0, 0),
                part(1536 * MIB, 512 * MIB, 1, 0),
                part(4 * gib, 1024 * MIB, 1, 512 * MIB),
            ]
        );
        assert_eq!(layout(&[2048, 1024], 2048), [part(0, 2 * gib, 0, 0), part(4 * gib, gib, 1, 0)]);
        assert_eq!(
            layout(&[2048, 2048, 1024], 3072),
            [
                part(0, 2 * gib, 0, 0),
                part(2 * gib, gib, 1, 0),
                part(4 * gib, gib, 1, gib),
                part(5 * gib, gib, 2, 0),
            ]
        );
    }

    #[test]
    fn the_host_sees_each_nodes_file_where_the_guest_does() {
        let ram = Ram::new(&[1536, 1536], 2048, false, MappedMem::from_parts).unwrap();
        ram.files[1].write_all_at(b"low", 0).unwrap();
        ram.files[1].write_all_at(b"high", 512 * MIB).unwrap();
        let mut buf = [0; 4];
        ram.mem.read(Gpa(4 << 30), &mut buf).unwrap();
        assert_eq!(&buf, b"high");
        ram.mem.read(Gpa(1536 * MIB), &mut buf[..3]).unwrap();
        assert_eq!(&buf[..3], b"low");
        assert_eq!(ram.mem.size(), 3 << 30);
        assert!(ram.files[0].set_len(4096).is_err(), "the size is sealed");
    }
}
