//! What a machine may be, checked before anything is made.

use super::VmError;
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
    let topology = spec.topology;
    let cpus = topology.cpus();
    if cpus > most {
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
    let kargs = crate::vm::kargs::line(&spec.kargs).len();
    if kargs > COMMAND_LINE {
        return Err(VmError::KernelArgs { length: kargs, most: COMMAND_LINE });
    }
    Ok(())
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
