//! Where things are in the guest's physical memory.

use crate::mem::{Gpa, Region};
use crate::vm::ram::Part;

/// Where RAM below 4 GiB ends at the latest: interrupt controllers and KVM's own pages follow.
pub(super) const LOW_END: u64 = 3 << 30;
/// Where RAM goes on.
pub(super) const HIGH_START: u64 = 4 << 30;
/// RAM below this that a kernel may use; tables and firmware's places follow.
pub(super) const BASE_END: u64 = 0x9_fc00;
/// Where RAM goes on behind them.
pub(super) const MIB: u64 = 1 << 20;

/// Structures by which a kernel is entered, all below [`BASE_END`].
pub(super) const GDT: u64 = 0x500;
pub(super) const IDT: u64 = 0x520;
pub(super) const START_INFO: u64 = 0x6000;
pub(super) const MODULES: u64 = 0x6800;
pub(super) const MEMORY_MAP: u64 = 0x6c00;
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// Page tables that map the first 4 GiB to themselves: one PML4, one PDPT, four page directories.
pub(super) const PAGE_TABLES: u64 = 0x9000;
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// Three pages that KVM needs on Intel's CPUs, and one for its identity map.
pub(super) const KVM_TSS: usize = 0xfffb_d000;
pub(super) const KVM_IDENTITY: u64 = 0xfffb_c000;

/// What of `parts` a kernel may use.
pub(super) fn usable(parts: &[Part]) -> Vec<Region> {
    let mut out = Vec::new();
    for part in parts {
        let (start, end) = (part.region.start.0, part.region.start.0 + part.region.len);
        for (from, to) in [(start, end.min(BASE_END)), (start.max(MIB), end)] {
            if from < to {
                out.push(Region { start: Gpa(from), len: to - from });
            }
        }
    }
    out
}

/// Where an initial RAM file system of `len` bytes goes: as high as possible in the RAM that begins
/// at 1 MiB, not beyond `most`; `None` when it does not fit above `least`.
pub(super) fn initramfs(parts: &[Part], len: u64, least: u64, most: u64) -> Option<u64> {
    let end = parts.iter().take_while(|p| p.region.start.0 < LOW_END);
    let end = end.map(|p| p.region.start.0 + p.region.len).max()?.min(most);
    let at = end.checked_sub(len)? & !0xfff;
    (at >= least).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::ram::layout;

    fn region(start: u64, len: u64) -> Region {
        Region { start: Gpa(start), len }
    }

    #[test]
    fn a_kernel_may_use_all_but_firmwares_place() {
        let small = layout(&[512], 3072);
        assert_eq!(usable(&small), [region(0, BASE_END), region(MIB, 511 * MIB)]);
    }

    #[test]
    fn an_initramfs_lies_high_and_never_over_the_kernel() {
        let parts = layout(&[256], 3072);
        assert_eq!(initramfs(&parts, MIB + 1, 64 * MIB, u64::MAX), Some(254 * MIB + 0xff000));
        assert_eq!(initramfs(&parts, MIB, 64 * MIB, 128 * MIB), Some(127 * MIB));
        assert_eq!(initramfs(&parts, 193 * MIB, 64 * MIB, u64::MAX), None);
        assert_eq!(initramfs(&parts, u64::MAX, 0, u64::MAX), None);
    }
}
