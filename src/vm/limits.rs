//! What a machine may be, checked before anything is made.

use super::VmError;
use super::ram::share_out;
use crate::vm::VmSpec;

/// RAM for a stock kernel of 60 MB and for something to run on it. It gets to its first program
/// with 80 MiB.
const BASE_MIB: u64 = 128;
/// RAM for a CPU: its per-CPU area, stacks, and the kernel threads that come with it.
const CPU_MIB: u64 = 4;
/// RAM that a node needs for its own structures, and the first one for the kernel.
const NODE_MIB: u64 = 64;
/// `COMMAND_LINE_SIZE` on x86, less the terminator.
pub(super) const COMMAND_LINE: usize = 2047;

const MIB: u64 = 1 << 20;

pub(super) fn check(spec: &VmSpec, engine: &'static str, most: u32) -> Result<(), VmError> {
    let topology = &spec.topology;
    let cpus = topology.cpus();
    if cpus > most {
        let topology = topology.clone();
        return Err(VmError::TooManyCpus { engine, topology, cpus, most });
    }
    // While it is being unpacked, the initramfs is there twice.
    let initramfs = 2 * (spec.initramfs.len() as u64).div_ceil(MIB);
    let nodes = u64::from(topology.nodes());
    let least = (BASE_MIB + CPU_MIB * u64::from(cpus) + initramfs).max(NODE_MIB * nodes);
    if spec.memory < least * MIB {
        return Err(VmError::MemoryTooSmall { asked: size(spec.memory), least: size(least * MIB) });
    }
    let host = host_memory();
    if spec.memory > host {
        return Err(VmError::MemoryTooLarge { asked: size(spec.memory), host: size(host) });
    }
    shares(spec)?;
    super::host::check_huge_pages(spec)?;
    let kargs = crate::vm::kargs::line(&spec.kargs).len();
    if kargs > COMMAND_LINE {
        return Err(VmError::KernelArgs { length: kargs, most: COMMAND_LINE });
    }
    Ok(())
}

/// Whether every node gets RAM, and all of it goes to nodes.
fn shares(spec: &VmSpec) -> Result<(), VmError> {
    let wrong = |reason: String| {
        let (asked, topology) = (size(spec.memory), spec.topology.clone());
        Err(VmError::MemoryOfNodes { asked, topology, reason })
    };
    let nodes = spec.topology.each_node();
    let together: u64 = nodes.iter().filter_map(|node| node.memory).sum();
    let open = nodes.iter().any(|node| node.memory.is_none());
    if !open && together != spec.memory {
        let together = size(together);
        return wrong(format!(
            "its nodes have {together} together; ask for {together}, or leave out how much one of \
             them has"
        ));
    }
    if together > spec.memory {
        return wrong(format!("some of its nodes have {} together; ask for more", size(together)));
    }
    let shares = share_out(spec.memory, &spec.topology);
    match shares.iter().enumerate().find(|(_, mib)| **mib < NODE_MIB) {
        None => Ok(()),
        Some((node, mib)) => {
            wrong(format!("node {node} has {mib}M, and needs at least {NODE_MIB}M; give it more"))
        }
    }
}

fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// A size as scripts write it, rounded down to MiB.
fn size(bytes: u64) -> String {
    match bytes {
        0..MIB => format!("{bytes} bytes"),
        _ => format!("{}M", bytes / MIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Boot;
    use std::sync::Arc;

    #[test]
    fn ram_of_nodes_that_does_not_add_up_says_what_would() {
        let cases = [
            ("1n1l1c1t:384M+1n:128M", 512, None),
            ("1n1l1c1t:384M+1n", 512, None),
            (
                "1n1l1c1t:384M+1n:128M",
                1024,
                Some(
                    "its nodes have 512M together; ask for 512M, or leave out how much one of them \
                     has",
                ),
            ),
            ("1n1l1c1t:1G+1n", 512, Some("some of its nodes have 1024M together; ask for more")),
            ("1n1l1c1t:480M+1n", 512, Some("node 1 has 32M, and needs at least 64M; give it more")),
            ("1n1l1c1t+1n:32M", 512, Some("node 1 has 32M, and needs at least 64M; give it more")),
        ];
        for (topology, mib, reason) in cases {
            let topology = topology.parse().unwrap();
            let spec = VmSpec::new(Boot::Elf("k".into()), Arc::from([]), topology, mib * MIB);
            let found = check(&spec, "qemu", 64).err().map(|e| e.to_string());
            let wanted = reason.map(|reason| {
                format!("memory {mib}M does not suit topology {}: {reason}", spec.topology)
            });
            assert_eq!(found, wanted);
        }
    }
}
