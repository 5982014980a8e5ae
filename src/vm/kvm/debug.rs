//! Traps on KVM: a CPU's debug registers, and `int3` in the guest's code.
//!
//! `KVM_SET_GUEST_DEBUG` (Linux's `Documentation/virt/kvm/api.rst`) makes KVM leave the guest with
//! `KVM_EXIT_DEBUG` for both. The layout of DR6 and DR7 is that of Intel's manual, volume 3,
//! "Debug Registers". A guest has breakpoints of its own, which KVM then hands to us as well, and
//! which are put back: a kernel patches its code by way of `int3`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch, kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::vm::trap::{Hits, check};
use crate::vm::{Trap, Trapped, VmError};

const INT3: u8 = 0xcc;
/// The exceptions, by vector.
const DB: u32 = 1;
const BP: u32 = 3;

/// A trap that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    trap: Trap,
    /// The byte under an `int3`.
    under: u8,
}

#[derive(Default)]
struct Inner {
    set: Vec<Set>,
    hits: Hits<Trapped>,
}

/// The traps of a machine, shared by it and its CPUs' threads.
#[derive(Clone, Default)]
pub(super) struct Traps(Arc<Mutex<Inner>>);

/// What a CPU that left the guest for its debug exceptions does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It ran into a trap of ours, and stands.
    Stand,
    /// It was the guest's own exception, which it gets.
    Inject,
}

impl Traps {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hits(&self) -> Hits<Trapped> {
        self.lock().hits.clone()
    }

    /// Whether any is set, or was hit and nobody has asked.
    pub(super) fn any(&self) -> bool {
        let inner = self.lock();
        !inner.set.is_empty() || inner.hits.any()
    }

    /// Judges a debug exit of a CPU. Its hit is not told yet: see [`Traps::tell`].
    pub(super) fn judge(&self, cpu: u32, exit: &kvm_debug_exit_arch) -> (Next, Vec<Trapped>) {
        let hit = hit(&self.lock().set, exit);
        if hit.is_empty() {
            return (Next::Inject, Vec::new());
        }
        let at = Instant::now();
        let hits = hit.into_iter().map(|trap| Trapped { trap, cpu: Some(cpu), at });
        (Next::Stand, hits.collect())
    }

    /// Tells of hits, when their CPU and all others have been told to stand.
    pub(super) fn tell(&self, hits: Vec<Trapped>) {
        let told = self.hits();
        hits.into_iter().for_each(|hit| told.tell(hit));
    }

    /// Gives the guest an exception of its own.
    pub(super) fn inject(&self, fd: &VcpuFd, exit: &kvm_debug_exit_arch) -> Result<(), String> {
        let mut debug = registers(&self.lock().set);
        debug.control |= match exit.exception {
            BP => KVM_GUESTDBG_INJECT_BP,
            DB => {
                // Which of its own conditions it was; KVM has told us and not the guest.
                let mut own = fd.get_debug_regs().map_err(|e| e.to_string())?;
                own.dr6 |= exit.dr6 & 0xe00f;
                fd.set_debug_regs(&own).map_err(|e| e.to_string())?;
                KVM_GUESTDBG_INJECT_DB
            }
            other => return Err(format!("KVM left a CPU for the debug exception {other}")),
        };
        fd.set_guest_debug(&debug).map_err(|e| e.to_string())
    }

    /// Sets these in place of all others, in memory; the CPUs are told by [`Traps::apply`]. All
    /// stand.
    pub(super) fn replace(&self, traps: &[Trap], memory: &GuestMemoryMmap) -> Result<(), VmError> {
        check(traps).map_err(|(trap, reason)| VmError::Trap { trap, reason })?;
        let mut inner = self.lock();
        for set in std::mem::take(&mut inner.set) {
            take_away(&set, memory);
        }
        let mut fresh = Vec::new();
        for &trap in traps {
            match put(trap, memory) {
                Ok(set) => fresh.push(set),
                Err(reason) => {
                    fresh.iter().for_each(|set| take_away(set, memory));
                    return Err(VmError::Trap { trap, reason });
                }
            }
        }
        inner.set = fresh;
        Ok(())
    }

    /// Takes away those that were hit and count once; whether there were any. All CPUs stand.
    pub(super) fn settle(&self, hits: &[Trapped], memory: &GuestMemoryMmap) -> bool {
        let mut inner = self.lock();
        let before = inner.set.len();
        inner.set.retain(|set| {
            let once = matches!(set.trap, Trap::Execute { .. });
            let goes = once && hits.iter().any(|hit| hit.trap == set.trap);
            if goes {
                take_away(set, memory);
            }
            !goes
        });
        inner.set.len() != before
    }

    /// Tells a CPU that stands what is set.
    pub(super) fn apply(&self, fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        fd.set_guest_debug(&registers(&self.lock().set))
    }
}

/// What a CPU is told for one trap, for trying whether it fires.
pub(super) fn only(trap: Trap) -> kvm_guest_debug {
    registers(&[Set { trap, under: 0 }])
}

/// Whether an exit is about this trap, the only one.
pub(super) fn is(trap: Trap, exit: &kvm_debug_exit_arch) -> bool {
    !hit(&[Set { trap, under: 0 }], exit).is_empty()
}

/// Which traps an exit is about.
fn hit(set: &[Set], exit: &kvm_debug_exit_arch) -> Vec<Trap> {
    let traps = set.iter().map(|set| set.trap);
    match exit.exception {
        BP => traps.filter(|t| matches!(t, Trap::Execute { address, .. } if *address == exit.pc)),
        DB => {
            let writes = traps.filter(|t| matches!(t, Trap::Write { .. })).enumerate();
            let hit = writes.filter(|(register, _)| exit.dr6 >> register & 1 == 1);
            return hit.map(|(_, trap)| trap).collect();
        }
        _ => return Vec::new(),
    }
    .collect()
}

/// What a CPU is to be told: DR0 to DR3 and DR7, and which of both kinds KVM is to look for.
fn registers(set: &[Set]) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug::default();
    let mut register = 0;
    for set in set {
        match set.trap {
            Trap::Execute { .. } => debug.control |= KVM_GUESTDBG_USE_SW_BP,
            Trap::Write { address, len } => {
                debug.control |= KVM_GUESTDBG_USE_HW_BP;
                debug.arch.debugreg[register] = address;
                debug.arch.debugreg[7] |= enabled(register, len);
                register += 1;
            }
        }
    }
    if debug.control != 0 {
        debug.control |= KVM_GUESTDBG_ENABLE;
    }
    debug
}

/// DR7's bits for a watchpoint in DR`register`: global enable, R/W = 1 (writes), and LEN, which is
/// 0, 1, 3 and 2 for 1, 2, 4 and 8 bytes. Bit 10 is always set.
fn enabled(register: usize, len: u8) -> u64 {
    let len = match len {
        1 => 0,
        2 => 1,
        4 => 3,
        _ => 2,
    };
    1 << 10 | 2 << (2 * register) | (1 | len << 2) << (16 + 4 * register)
}

fn put(trap: Trap, memory: &GuestMemoryMmap) -> Result<Set, String> {
    let Trap::Execute { physical, .. } = trap else { return Ok(Set { trap, under: 0 }) };
    let at = GuestAddress(physical);
    let outside = |_| format!("the guest has no memory at physical {physical:#x}");
    let under: u8 = memory.read_obj(at).map_err(outside)?;
    if under == INT3 {
        return Err("there is a breakpoint already, which is not ours".to_owned());
    }
    memory.write_obj(INT3, at).map_err(outside)?;
    Ok(Set { trap, under })
}

/// What the guest has put there itself meanwhile stays.
fn take_away(set: &Set, memory: &GuestMemoryMmap) {
    if let Trap::Execute { physical, .. } = set.trap {
        let at = GuestAddress(physical);
        if memory.read_obj::<u8>(at).is_ok_and(|now| now == INT3) {
            let _ = memory.write_obj(set.under, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn memory() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MIB)]).unwrap();
        memory.write_slice(&[0x55, 0x48, 0x89, 0xe5], GuestAddress(0x1000)).unwrap();
        memory
    }

    fn byte(memory: &GuestMemoryMmap, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn execute(physical: u64) -> Trap {
        Trap::Execute { address: 0xffff_ffff_8100_0000 + physical, physical }
    }

    fn exit(exception: u32, pc: u64, dr6: u64) -> kvm_debug_exit_arch {
        kvm_debug_exit_arch { exception, pc, dr6, ..Default::default() }
    }

    #[test]
    fn debug_registers_follow_the_manual() {
        let traps = [
            Trap::Write { address: 0x1000, len: 8 },
            execute(0x1000),
            Trap::Write { address: 0x2002, len: 2 },
            Trap::Write { address: 0x3001, len: 1 },
            Trap::Write { address: 0x4004, len: 4 },
        ];
        let set = traps.map(|trap| Set { trap, under: 0 });
        let debug = registers(&set);
        assert_eq!(debug.arch.debugreg[..4], [0x1000, 0x2002, 0x3001, 0x4004]);
        // LEN and R/W from the fourth register down: 11 01, 00 01, 01 01, 10 01; G3 to G0.
        assert_eq!(debug.arch.debugreg[7], 0b1101_0001_0101_1001 << 16 | 0x400 | 0b1010_1010);
        let all = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP;
        assert_eq!(debug.control, all);
        assert_eq!(registers(&[]).control, 0);
    }

    #[test]
    fn ours_stand_and_the_guests_own_go_on() {
        let (traps, memory) = (Traps::default(), memory());
        let writes = [0x10, 0x20].map(|address| Trap::Write { address, len: 8 });
        let all = [writes[0], execute(0x1000), writes[1]];
        traps.replace(&all, &memory).unwrap();
        let at = 0xffff_ffff_8100_1000;
        let cases: [(kvm_debug_exit_arch, &[Trap]); 6] = [
            (exit(BP, at, 0), &all[1..2]),
            (exit(BP, at + 1, 0), &[]),
            (exit(DB, at, 0xffff_0ff2), &all[2..]),
            (exit(DB, 0, 0xffff_0ff3), &writes),
            (exit(DB, 0, 0xffff_4ff0), &[]),
            (exit(14, at, 3), &[]),
        ];
        for (exit, expected) in cases {
            let (next, hits) = traps.judge(1, &exit);
            assert_eq!(next == Next::Stand, !expected.is_empty(), "{exit:?}");
            assert_eq!(hits.iter().map(|h| h.trap).collect::<Vec<_>>(), expected, "{exit:?}");
            assert!(hits.iter().all(|hit| hit.cpu == Some(1)));
        }
    }

    #[test]
    fn a_breakpoint_is_a_byte_that_is_put_back() {
        let (traps, memory) = (Traps::default(), memory());
        traps.replace(&[execute(0x1000), execute(0x1001)], &memory).unwrap();
        assert_eq!([byte(&memory, 0x1000), byte(&memory, 0x1001)], [INT3; 2]);
        let (_, hits) = traps.judge(0, &exit(BP, 0xffff_ffff_8100_1000, 0));
        assert!(traps.settle(&hits, &memory) && !traps.settle(&hits, &memory));
        assert_eq!([byte(&memory, 0x1000), byte(&memory, 0x1001)], [0x55, INT3]);
        // The guest patches its own code there meanwhile.
        memory.write_obj(0x90u8, GuestAddress(0x1001)).unwrap();
        traps.replace(&[], &memory).unwrap();
        assert_eq!(byte(&memory, 0x1001), 0x90);
        assert!(!traps.any());
    }

    #[test]
    fn what_cannot_be_set_leaves_nothing_behind() {
        let memory = memory();
        memory.write_obj(INT3, GuestAddress(0x1003)).unwrap();
        for (bad, why) in [
            (execute(0x1003), "there is a breakpoint already, which is not ours"),
            (execute(1 << 20), "the guest has no memory at physical 0x100000"),
            (Trap::Write { address: 4, len: 8 }, "a CPU watches 8 bytes only at a multiple of 8"),
        ] {
            let traps = Traps::default();
            let error = traps.replace(&[execute(0x1000), bad], &memory).unwrap_err().to_string();
            assert_eq!(error, format!("cannot trap {bad}: {why}"));
            assert_eq!(byte(&memory, 0x1000), 0x55);
            assert!(!traps.any());
        }
    }
}
