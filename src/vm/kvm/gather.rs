//! Bytes that the guest writes to some ports, gathered by KVM in a page that it shares with us
//! (`KVM_REGISTER_COALESCED_MMIO` in `Documentation/virt/kvm/api.rst`): the guest does not leave
//! to this process for each. KVM stops gathering when the page is full; the next byte then comes
//! by an exit, as if nothing was gathered.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

/// What was gathered for a machine.
pub(super) struct Gathered(Mutex<Page>);

/// The page, unmapped with this value.
struct Page(NonNull<kvm_coalesced_mmio_ring>);

// SAFETY: the value is the address of a page that it alone maps and unmaps; KVM is the only other
// one to touch it, by the rules of the ring.
#[allow(unsafe_code)]
unsafe impl Send for Page {}

impl Gathered {
    /// Has KVM gather what is written to ports; `None` where it cannot (before Linux 5.0). Any CPU
    /// of the machine will do: the page is the machine's.
    pub(super) fn new(vm: &VmFd, cpu: &VcpuFd, ports: &[u16]) -> Option<Self> {
        if !vm.check_extension(Cap::CoalescedPio) {
            return None;
        }
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * page_size() as u64;
        // SAFETY: the descriptor is open as long as `cpu`, which outlives the borrow; the mapping
        // goes wherever there is room.
        #[allow(unsafe_code)]
        let at = unsafe {
            let fd = BorrowedFd::borrow_raw(cpu.as_raw_fd());
            mmap(null_mut(), page_size(), prot, flags, fd, offset).ok()?
        };
        let page = Page(NonNull::new(at.cast())?);
        for port in ports {
            vm.register_coalesced_mmio(IoEventAddress::Pio((*port).into()), 1).ok()?;
        }
        Some(Gathered(Mutex::new(page)))
    }

    /// Hands over each byte with its port, in the order in which they were written.
    pub(super) fn take(&self, f: impl FnMut(u16, u8)) {
        let page = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the page is mapped as long as the value, and the lock makes us the only reader.
        #[allow(unsafe_code)]
        unsafe {
            drain(page.0.as_ptr(), f);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, of one page.
        #[allow(unsafe_code)]
        let _ = unsafe { munmap(self.0.as_ptr().cast(), page_size()) };
    }
}

/// Entries of a ring that fills a page.
fn entries() -> u32 {
    let room = page_size() - size_of::<kvm_coalesced_mmio_ring>();
    (room / size_of::<kvm_coalesced_mmio>()) as u32
}

/// Takes out of a ring what is in it.
///
/// # Safety
/// `ring` begins a page that is mapped for reading and writing. Others may put entries in
/// meanwhile, as KVM does, but nobody else takes any out.
#[allow(unsafe_code)]
unsafe fn drain(ring: *mut kvm_coalesced_mmio_ring, mut f: impl FnMut(u16, u8)) {
    // SAFETY: both lie in the page and are aligned; KVM accesses them whole, as atomics do.
    let (first, last) = unsafe {
        (AtomicU32::from_ptr(&raw mut (*ring).first), AtomicU32::from_ptr(&raw mut (*ring).last))
    };
    // What KVM has put in before it moved `last` is seen with it.
    while first.load(Ordering::Relaxed) % entries() != last.load(Ordering::Acquire) % entries() {
        let n = first.load(Ordering::Relaxed) % entries();
        // SAFETY: `n` is less than the entries that the page holds, so the entry lies in it; any
        // bytes are a valid one. KVM does not touch it until `first` has moved.
        let entry = unsafe {
            let all = (&raw const (*ring).coalesced_mmio).cast::<kvm_coalesced_mmio>();
            all.add(n as usize).read()
        };
        first.store((n + 1) % entries(), Ordering::Release);
        f(entry.phys_addr as u16, entry.data[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page that is a ring, as KVM fills it.
    #[repr(align(4096))]
    struct Ring([u8; 4096]);

    impl Ring {
        fn word(&self, n: usize) -> u32 {
            u32::from_ne_bytes(self.0[4 * n..4 * n + 4].try_into().unwrap())
        }

        fn set(&mut self, n: usize, value: u32) {
            self.0[4 * n..4 * n + 4].copy_from_slice(&value.to_ne_bytes());
        }

        /// Puts a byte in, unless it is full.
        fn put(&mut self, byte: u8) -> bool {
            let (first, last) = (self.word(0), self.word(1));
            let next = (last + 1) % entries();
            if next != first {
                // Address, length, whether it is a port, data.
                let entry = &mut self.0[8 + 24 * last as usize..][..24];
                entry[..2].copy_from_slice(&0x3f8u16.to_ne_bytes());
                entry[16] = byte;
                self.set(1, next);
            }
            next != first
        }

        fn take(&mut self) -> Vec<u8> {
            let mut all = Vec::new();
            // SAFETY: a whole page, of which nobody else knows.
            #[allow(unsafe_code)]
            unsafe {
                drain((&raw mut self.0).cast(), |port, byte| {
                    assert_eq!(port, 0x3f8);
                    all.push(byte);
                });
            }
            all
        }
    }

    #[test]
    fn bytes_come_in_their_order_round_and_round() {
        let mut ring = Ring([0; 4096]);
        assert_eq!(entries(), 170);
        assert!(ring.take().is_empty());
        let mut next = 0u8;
        for count in [1, 100, 169, 3, 169, 42] {
            let put: Vec<u8> = (0..count).map(|i: u8| next.wrapping_add(i)).collect();
            assert!(put.iter().all(|byte| ring.put(*byte)));
            assert_eq!(ring.take(), put);
            assert!(ring.take().is_empty());
            next = next.wrapping_add(count);
        }
        assert!((0..169).all(|byte| ring.put(byte)));
        assert!(!ring.put(0), "it is full");
        assert_eq!(ring.take().len(), 169);
    }

    #[test]
    fn a_ring_that_says_nonsense_ends() {
        for (first, last) in [(u32::MAX, 0), (0, u32::MAX), (170, 171), (1 << 31, 7)] {
            let mut ring = Ring([0; 4096]);
            for entry in 0..170 {
                ring.0[8 + 24 * entry..][..2].copy_from_slice(&0x3f8u16.to_ne_bytes());
            }
            ring.set(0, first);
            ring.set(1, last);
            assert!(ring.take().len() < 170);
        }
    }
}
