//! Guest RAM: how much each node gets, and the files behind it.

use std::fs::File;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

const MIB: u64 = 1 << 20;

/// Shares RAM out over the nodes, in MiB: even numbers, and the last node gets the remainder.
/// Rounded up to 2 MiB in all.
pub(super) fn share_out(bytes: u64, nodes: u32) -> Vec<u64> {
    let all = bytes.div_ceil(2 * MIB) * 2;
    let nodes = u64::from(nodes);
    let each = all / nodes / 2 * 2;
    (0..nodes).map(|n| if n + 1 == nodes { all - each * (nodes - 1) } else { each }).collect()
}

/// Memory that is a file without a name. Its size is sealed: nobody who holds it can make a read
/// of our mapping of it fault.
pub(super) fn memfd(name: &str, len: u64) -> std::io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_shared_out_in_even_mebibytes() {
        let cases: [(u64, u32, &[u64]); 5] = [
            (512 * MIB, 1, &[512]),
            (512 * MIB, 2, &[256, 256]),
            (512 * MIB, 3, &[170, 170, 172]),
            (512 * MIB + 1, 1, &[514]),
            (3 * MIB, 1, &[4]),
        ];
        for (bytes, nodes, mib) in cases {
            assert_eq!(share_out(bytes, nodes), mib, "{bytes} bytes over {nodes} nodes");
        }
    }
}
