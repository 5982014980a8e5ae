//! Guest RAM: one memfd for each node, which QEMU inherits and this process maps.

use std::fs::File;
use std::sync::Arc;

use crate::mem::{Gpa, MappedMem, Region};
use crate::vm::VmError;
use crate::vm::ram::memfd;

const MIB: u64 = 1 << 20;
/// RAM below the PCI hole in MiB; the rest follows at 4 GiB. QEMU's q35 would choose by the
/// amount of RAM; it is told (`max-ram-below-4g`), so that both sides know.
pub(super) const LOW_MIB: u64 = 2048;

/// A stretch of guest RAM: where it is, and which node's file has it at which offset.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    region: Region,
    node: usize,
    offset: u64,
}

/// Where q35 puts the nodes' RAM: one after the other from 0, with a hole from [`LOW_MIB`] to
/// 4 GiB.
fn layout(node_mib: &[u64]) -> Vec<Part> {
    let low = LOW_MIB * MIB;
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
    /// One file for each node.
    pub(super) files: Vec<File>,
    pub(super) mem: Arc<MappedMem>,
}

impl Ram {
    pub(super) fn new(node_mib: &[u64]) -> Result<Self, VmError> {
        let refused = |reason: String| VmError::Host { what: "make guest RAM".into(), reason };
        let files = node_mib
            .iter()
            .map(|mib| memfd("cryoscope-ram", mib * MIB))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| refused(e.to_string()))?;
        let parts = layout(node_mib)
            .into_iter()
            .map(|part| Ok((part.region, files[part.node].try_clone()?, part.offset)))
            .collect::<Result<Vec<_>, std::io::Error>>()
            .map_err(|e| refused(e.to_string()))?;
        let mem = MappedMem::from_parts(parts).map_err(|e| refused(e.to_string()))?;
        Ok(Ram { files, mem: Arc::new(mem) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::GuestMem;
    use std::os::unix::fs::FileExt;

    #[test]
    fn ram_above_the_hole_starts_at_four_gibibytes() {
        let gib = 1u64 << 30;
        let part = |start, len, node, offset| Part {
            region: Region { start: Gpa(start), len },
            node,
            offset,
        };
        assert_eq!(layout(&[512]), [part(0, 512 * MIB, 0, 0)]);
        assert_eq!(layout(&[2048]), [part(0, 2 * gib, 0, 0)]);
        assert_eq!(layout(&[4096]), [part(0, 2 * gib, 0, 0), part(4 * gib, 2 * gib, 0, 2 * gib)]);
        assert_eq!(
            layout(&[1536, 1536]),
            [
                part(0, 1536 * MIB, 0, 0),
                part(1536 * MIB, 512 * MIB, 1, 0),
                part(4 * gib, 1024 * MIB, 1, 512 * MIB),
            ]
        );
        assert_eq!(layout(&[2048, 1024]), [part(0, 2 * gib, 0, 0), part(4 * gib, gib, 1, 0)]);
    }

    #[test]
    fn the_host_sees_each_nodes_file_where_the_guest_does() {
        let ram = Ram::new(&[1536, 1536]).unwrap();
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
