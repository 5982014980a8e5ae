//! Traps on KVM: a CPU's debug registers, and a port that the guest's code is made to write to.
//!
//! Watchpoints are `KVM_SET_GUEST_DEBUG`'s (Linux's `Documentation/virt/kvm/api.rst`); the layout of
//! DR6 and DR7 is that of Intel's manual, volume 3, "Debug Registers". A guest's own debug
//! exceptions come to us as well while one is set, and are put back.
//!
//! A breakpoint is `out PORT, al` over the instruction. It makes every KVM leave the guest, also one
//! in an emulator that knows nothing of `int3` (QEMU's emulator takes that for a software interrupt,
//! which no KVM intercepts); and it leaves the guest its own `int3`s, by which it patches its code.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_USE_HW_BP, kvm_debug_exit_arch,
    kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::vm::trap::{Hits, check};
use crate::vm::{Trap, Trapped, VmError};

/// A port where there is nothing.
pub(super) const PORT: u16 = 0xe4;
/// `out PORT, al`.
const OUT: [u8; 2] = [0xe6, PORT as u8];
/// The debug exception, by vector.
const DB: u32 = 1;

/// A trap that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    trap: Trap,
    /// The bytes under an `out`.
    under: [u8; 2],
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
        let hits = hits(cpu, written(&self.lock().set, exit));
        (if hits.is_empty() { Next::Inject } else { Next::Stand }, hits)
    }

    /// Whether a write to [`PORT`] was a breakpoint. The CPU then is made to stand before the
    /// instruction that is there. Its hit is not told yet: see [`Traps::tell`].
    pub(super) fn at_instruction(&self, cpu: u32, fd: &mut VcpuFd) -> Result<Vec<Trapped>, String> {
        let rip = fd.get_regs().map_err(|e| e.to_string())?.rip;
        // Whether the instruction pointer has moved on yet is KVM's affair.
        let end = OUT.len() as u64;
        let at = |trap: &Trap| match *trap {
            Trap::Execute { address, .. } => rip == address || rip == address.wrapping_add(end),
            Trap::Write { .. } => false,
        };
        let found = self.lock().set.iter().map(|set| set.trap).find(at);
        let Some(trap @ Trap::Execute { address, .. }) = found else { return Ok(Vec::new()) };
        stand_before(fd, address)?;
        Ok(hits(cpu, vec![trap]))
    }

    /// Tells of hits, when their CPU and all others have been told to stand.
    pub(super) fn tell(&self, hits: Vec<Trapped>) {
        let told = self.hits();
        hits.into_iter().for_each(|hit| told.tell(hit));
    }

    /// Gives the guest an exception of its own.
    pub(super) fn inject(&self, fd: &VcpuFd, exit: &kvm_debug_exit_arch) -> Result<(), String> {
        if exit.exception != DB {
            return Err(format!("KVM left a CPU for the debug exception {}", exit.exception));
        }
        // Which of its own conditions it was; KVM has told us and not the guest.
        let mut own = fd.get_debug_regs().map_err(|e| e.to_string())?;
        own.dr6 |= exit.dr6 & 0xe00f;
        fd.set_debug_regs(&own).map_err(|e| e.to_string())?;
        let mut debug = registers(&self.lock().set);
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB;
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

fn hits(cpu: u32, traps: Vec<Trap>) -> Vec<Trapped> {
    let at = Instant::now();
    traps.into_iter().map(|trap| Trapped { trap, cpu: Some(cpu), at }).collect()
}

/// Ends a write to [`PORT`] and puts the CPU before the instruction at `address`.
///
/// KVM ends what it left the guest for when it is run again, and moves the instruction pointer on
/// then; told to leave at once, it does nothing else.
pub(super) fn stand_before(fd: &mut VcpuFd, address: u64) -> Result<(), String> {
    fd.set_kvm_immediate_exit(1);
    let ended = match fd.run() {
        Err(e) if e.errno() == libc::EINTR => Ok(()),
        Err(e) => Err(format!("KVM does not end a write to a port: {e}")),
        Ok(other) => Err(format!("KVM ends a write to a port with {other:?}")),
    };
    // Who called meanwhile gets what it wants: this CPU stands next.
    fd.set_kvm_immediate_exit(0);
    ended?;
    let mut regs = fd.get_regs().map_err(|e| e.to_string())?;
    regs.rip = address;
    fd.set_regs(&regs).map_err(|e| e.to_string())
}

/// What a CPU is told for one trap, for trying whether it fires.
pub(super) fn only(trap: Trap) -> kvm_guest_debug {
    registers(&[Set { trap, under: OUT }])
}

/// Whether an exit is about this trap, the only one.
pub(super) fn is(trap: Trap, exit: &kvm_debug_exit_arch) -> bool {
    !written(&[Set { trap, under: OUT }], exit).is_empty()
}

/// Which watchpoints an exit is about.
fn written(set: &[Set], exit: &kvm_debug_exit_arch) -> Vec<Trap> {
    let writes = set.iter().map(|set| set.trap).filter(|t| matches!(t, Trap::Write { .. }));
    let hit = |(register, _): &(usize, Trap)| exit.exception == DB && exit.dr6 >> register & 1 == 1;
    writes.enumerate().filter(hit).map(|(_, trap)| trap).collect()
}

/// What a CPU is to be told: DR0 to DR3 and DR7.
fn registers(set: &[Set]) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug::default();
    let mut register = 0;
    for set in set {
        let Trap::Write { address, len } = set.trap else { continue };
        debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        debug.arch.debugreg[register] = address;
        debug.arch.debugreg[7] |= enabled(register, len);
        register += 1;
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
    let Trap::Execute { physical, .. } = trap else { return Ok(Set { trap, under: OUT }) };
    let at = GuestAddress(physical);
    let outside = |_| format!("the guest has no memory at physical {physical:#x}");
    let under: [u8; 2] = memory.read_obj(at).map_err(outside)?;
    if under == OUT {
        return Err("there is a breakpoint already".to_owned());
    }
    memory.write_obj(OUT, at).map_err(outside)?;
    Ok(Set { trap, under })
}

/// What the guest has put there itself meanwhile stays.
fn take_away(set: &Set, memory: &GuestMemoryMmap) {
    if let Trap::Execute { physical, .. } = set.trap {
        let at = GuestAddress(physical);
        if memory.read_obj::<[u8; 2]>(at).is_ok_and(|now| now == OUT) {
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
        memory.write_slice(&[0x0f, 0x1f, 0x44, 0, 0, 0x55], GuestAddress(0x1000)).unwrap();
        memory
    }

    fn bytes(memory: &GuestMemoryMmap, at: u64) -> [u8; 2] {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn execute(physical: u64) -> Trap {
        Trap::Execute { address: 0xffff_ffff_8100_0000 + physical, physical }
    }

    fn exit(exception: u32, dr6: u64) -> kvm_debug_exit_arch {
        kvm_debug_exit_arch { exception, dr6, ..Default::default() }
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
        let set = traps.map(|trap| Set { trap, under: OUT });
        let debug = registers(&set);
        assert_eq!(debug.arch.debugreg[..4], [0x1000, 0x2002, 0x3001, 0x4004]);
        // LEN and R/W from the fourth register down: 11 01, 00 01, 01 01, 10 01; G3 to G0.
        assert_eq!(debug.arch.debugreg[7], 0b1101_0001_0101_1001 << 16 | 0x400 | 0b1010_1010);
        assert_eq!(debug.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        assert_eq!(registers(&set[1..2]).control, 0, "a breakpoint needs no debug register");
    }

    #[test]
    fn ours_stand_and_the_guests_own_go_on() {
        let (traps, memory) = (Traps::default(), memory());
        let writes = [0x10, 0x20].map(|address| Trap::Write { address, len: 8 });
        traps.replace(&[writes[0], execute(0x1000), writes[1]], &memory).unwrap();
        let cases: [(kvm_debug_exit_arch, &[Trap]); 5] = [
            (exit(DB, 0xffff_0ff1), &writes[..1]),
            (exit(DB, 0xffff_0ff2), &writes[1..]),
            (exit(DB, 0xffff_0ff3), &writes),
            (exit(DB, 0xffff_4ff0), &[]),
            (exit(3, 3), &[]),
        ];
        for (exit, expected) in cases {
            let (next, hits) = traps.judge(1, &exit);
            assert_eq!(next == Next::Stand, !expected.is_empty(), "{exit:?}");
            assert_eq!(hits.iter().map(|h| h.trap).collect::<Vec<_>>(), expected, "{exit:?}");
            assert!(hits.iter().all(|hit| hit.cpu == Some(1)));
        }
    }

    #[test]
    fn a_breakpoint_is_two_bytes_that_are_put_back() {
        let (traps, memory) = (Traps::default(), memory());
        let all = [execute(0x1000), execute(0x1003)];
        traps.replace(&all, &memory).unwrap();
        assert_eq!([bytes(&memory, 0x1000), bytes(&memory, 0x1003)], [OUT; 2]);
        let hits = hits(0, all[..1].to_vec());
        assert!(traps.settle(&hits, &memory) && !traps.settle(&hits, &memory));
        assert_eq!([bytes(&memory, 0x1000), bytes(&memory, 0x1003)], [[0x0f, 0x1f], OUT]);
        // The guest patches its own code there meanwhile.
        memory.write_obj(0xe8u8, GuestAddress(0x1003)).unwrap();
        traps.replace(&[], &memory).unwrap();
        assert_eq!(bytes(&memory, 0x1003), [0xe8, OUT[1]]);
        assert!(!traps.any());
    }

    #[test]
    fn what_cannot_be_set_leaves_nothing_behind() {
        let memory = memory();
        memory.write_obj(OUT, GuestAddress(0x1003)).unwrap();
        for (bad, why) in [
            (execute(0x1003), "there is a breakpoint already"),
            (execute((1 << 20) - 1), "the guest has no memory at physical 0xfffff"),
            (Trap::Write { address: 4, len: 8 }, "a CPU watches 8 bytes only at a multiple of 8"),
        ] {
            let traps = Traps::default();
            let error = traps.replace(&[execute(0x1000), bad], &memory).unwrap_err().to_string();
            assert_eq!(error, format!("cannot trap {bad}: {why}"));
            assert_eq!(bytes(&memory, 0x1000), [0x0f, 0x1f]);
            assert!(!traps.any());
        }
    }
}
