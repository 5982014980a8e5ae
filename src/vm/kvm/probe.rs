//! Is KVM real? `/dev/kvm` may be an emulator's that carries guests out instruction by instruction,
//! and a kernel crawls there. A loop in a tiny guest tells.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::{cpuid, debug};
use crate::vm::Trap;

/// Rounds of the loop, two instructions each.
const ROUNDS: u16 = 10_000;
/// How often it is run. The fastest counts: on a busy host some are interrupted.
const RUNS: u32 = 5;
/// What a round may take where guests run on the CPU itself, if need be through another hypervisor:
/// real hardware takes 1 ns or less, one that emulates AMD's SVM 10 to 20, one that emulates each
/// instruction 1,000.
const REAL: Duration = Duration::from_nanos(100);

/// How fast a guest's instructions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmSpeed {
    /// What a round of a loop of two instructions takes.
    pub round: Duration,
}

impl KvmSpeed {
    /// Whether a kernel is worth starting: guests run on the CPU, not in an emulator's loop.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.round < REAL
    }
}

impl fmt::Display for KvmSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.round.as_nanos();
        let what = if self.is_real() { "real" } else { "emulated instruction by instruction" };
        write!(f, "{what}: a loop of two instructions takes {nanos} ns a round")
    }
}

/// What of traps works. It is tried, because KVM accepts the request everywhere: an emulating KVM
/// ignores it, and one inside an emulator may never see the exception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmTraps {
    /// A guest that writes to a watched place stands still.
    pub watchpoints: bool,
    /// A guest that comes to a breakpoint stands still.
    pub breakpoints: Breakpoints,
}

/// What comes of breakpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Breakpoints {
    /// Guests run over them.
    #[default]
    Missed,
    /// Guests stop there.
    Fire,
    /// Guests stop there, but the host is itself emulated: there, one in an interrupt handler, as
    /// that for schedulers' exits is, has been seen to leave all of the host stuck. None is set
    /// unless somebody asks for it by its address.
    NotTrusted,
}

impl Breakpoints {
    /// Whether a guest stops at one at all.
    #[must_use]
    pub fn stop_guests(self) -> bool {
        self != Breakpoints::Missed
    }
}

impl fmt::Display for KvmTraps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.watchpoints {
            "watchpoints fire, "
        } else {
            "watchpoints do not fire, "
        })?;
        f.write_str(match self.breakpoints {
            Breakpoints::Missed => "breakpoints do not fire",
            Breakpoints::Fire => "breakpoints fire",
            Breakpoints::NotTrusted => {
                "breakpoints fire, but not safely in an emulated host: exits are polled"
            }
        })
    }
}

/// Where a tiny guest's code is, and what it writes to.
const AT: u64 = 0x1000;
const DATA: u64 = 0x2000;

/// Measures, in a few milliseconds where KVM is real and some tens where it is not.
///
/// # Errors
/// Why there is no KVM.
pub fn kvm_speed() -> Result<KvmSpeed, String> {
    /// `begin: mov cx, ROUNDS; again: dec cx; jnz again; out 0x10, al; jmp begin`, in real mode.
    const CODE: [u8; 10] = [
        0xb9,
        ROUNDS.to_le_bytes()[0],
        ROUNDS.to_le_bytes()[1],
        0x49,
        0x75,
        0xfd,
        0xe6,
        0x10,
        0xeb,
        0xf6,
    ];
    tiny(&CODE, false, |cpu| {
        let mut best = Duration::MAX;
        for _ in 0..RUNS {
            let begin = Instant::now();
            match cpu.run() {
                Ok(VcpuExit::IoOut(0x10, _)) => best = best.min(begin.elapsed()),
                Ok(other) => return Err(format!("a guest of ten bytes ended with {other:?}")),
                Err(e) => return Err(format!("KVM runs no guest: {e}")),
            }
        }
        Ok(KvmSpeed { round: best / u32::from(ROUNDS) })
    })
}

/// Tries which traps fire, once for this process and in some milliseconds. Where there is no KVM
/// none does.
#[must_use]
pub fn kvm_traps() -> KvmTraps {
    static FOUND: OnceLock<KvmTraps> = OnceLock::new();
    /// `mov byte [DATA], al; out 0x10, al`, in protected mode.
    const WRITE: [u8; 7] = [0xa2, 0, 0x20, 0, 0, 0xe6, 0x10];
    *FOUND.get_or_init(|| KvmTraps {
        watchpoints: fires(&WRITE, Trap::Write { address: DATA, len: 1 }),
        breakpoints: match tiny(&STOP, true, stops_and_goes_on) {
            Ok(true) if cpuid::host_is_emulated() => Breakpoints::NotTrusted,
            Ok(true) => Breakpoints::Fire,
            _ => Breakpoints::Missed,
        },
    })
}

/// `out PORT, al; out 0x10, al`.
const STOP: [u8; 4] = [0xe6, debug::PORT as u8, 0xe6, 0x10];

/// Whether a breakpoint stops a CPU before the instruction that is under it, and that is carried
/// out then.
fn stops_and_goes_on(cpu: &mut VcpuFd) -> Result<bool, String> {
    let port = |cpu: &mut VcpuFd| match cpu.run() {
        Ok(VcpuExit::IoOut(port, _)) => Ok(port),
        other => Err(format!("a guest of four bytes ended with {other:?}")),
    };
    if port(cpu)? != debug::PORT {
        return Ok(false);
    }
    // Twice the same place, then the next: as if each time what was under it were put back.
    debug::stand_before(cpu, AT)?;
    if port(cpu)? != debug::PORT {
        return Ok(false);
    }
    debug::stand_before(cpu, AT + 2)?;
    Ok(port(cpu)? == 0x10)
}

/// Whether this code runs into this trap.
fn fires(code: &[u8], trap: Trap) -> bool {
    let fired = tiny(code, true, |cpu| {
        cpu.set_guest_debug(&debug::only(trap)).map_err(|e| e.to_string())?;
        match cpu.run() {
            Ok(VcpuExit::Debug(exit)) => Ok(debug::is(trap, &exit)),
            _ => Ok(false),
        }
    });
    fired.unwrap_or(false)
}

/// A guest of a few bytes, in real mode or in flat protected mode, and what is done with its CPU.
fn tiny<T>(
    code: &[u8],
    protected: bool,
    run: impl FnOnce(&mut VcpuFd) -> Result<T, String>,
) -> Result<T, String> {
    const LEN: usize = 0x4000;
    let refused = |what: &'static str| {
        move |e: kvm_ioctls::Error| match e.errno() {
            libc::ENOENT => "there is no /dev/kvm".to_owned(),
            libc::EACCES => "/dev/kvm may not be opened; join its group (kvm)".to_owned(),
            _ => format!("{what}: {e}"),
        }
    };
    let mem =
        GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), LEN)]).map_err(|e| e.to_string())?;
    mem.write_slice(code, GuestAddress(AT)).map_err(|e| e.to_string())?;
    let kvm = Kvm::new().map_err(refused("/dev/kvm cannot be opened"))?;
    let vm = kvm.create_vm().map_err(refused("KVM makes no machine"))?;
    let region = mem.iter().next().ok_or("there is no memory")?;
    let slot = kvm_userspace_memory_region {
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the mapping is `mem`'s, which lives until after the CPU and the machine are gone: it
    // was made before them, and locals are dropped in reverse.
    #[allow(unsafe_code)]
    let set = unsafe { vm.set_user_memory_region(slot) };
    set.map_err(refused("KVM takes no memory"))?;
    let mut cpu = vm.create_vcpu(0).map_err(refused("KVM makes no CPU"))?;
    let mut sregs = cpu.get_sregs().map_err(refused("KVM shows no registers"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    if protected {
        protect(&mut sregs);
    }
    cpu.set_sregs(&sregs).map_err(refused("KVM takes no registers"))?;
    let mut regs = cpu.get_regs().map_err(refused("KVM shows no registers"))?;
    (regs.rip, regs.rflags) = (AT, 2);
    cpu.set_regs(&regs).map_err(refused("KVM takes no registers"))?;
    run(&mut cpu)
}

/// Protected mode with segments that cover 4 GiB.
fn protect(sregs: &mut kvm_sregs) {
    let flat = |type_, selector| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0xb, 8);
    let data = flat(3, 16);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.cr0 |= 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_says_what_it_means() {
        let speed = |nanos| KvmSpeed { round: Duration::from_nanos(nanos) };
        assert!(speed(20).is_real() && !speed(1000).is_real());
        assert_eq!(speed(1).to_string(), "real: a loop of two instructions takes 1 ns a round");
        assert_eq!(
            speed(1100).to_string(),
            "emulated instruction by instruction: a loop of two instructions takes 1100 ns a round"
        );
    }

    #[test]
    fn traps_say_whether_they_fire() {
        let cases = [
            (true, Breakpoints::Fire, "watchpoints fire, breakpoints fire"),
            (false, Breakpoints::Missed, "watchpoints do not fire, breakpoints do not fire"),
            (
                false,
                Breakpoints::NotTrusted,
                "watchpoints do not fire, breakpoints fire, but not safely in an emulated host: \
                 exits are polled",
            ),
        ];
        for (watchpoints, breakpoints, says) in cases {
            assert_eq!(KvmTraps { watchpoints, breakpoints }.to_string(), says);
        }
        if !std::path::Path::new("/dev/kvm").exists() {
            assert_eq!(kvm_traps(), KvmTraps::default(), "nothing fires without KVM");
        }
        let found = kvm_traps();
        assert_eq!(
            found.breakpoints.stop_guests(),
            kvm_speed().is_ok(),
            "wherever a guest runs: {found}"
        );
    }

    #[test]
    fn a_tiny_guest_runs_wherever_there_is_kvm() {
        match kvm_speed() {
            Ok(speed) => assert!(speed.round < Duration::from_millis(1), "{speed}"),
            Err(why) => assert!(!std::path::Path::new("/dev/kvm").exists(), "{why}"),
        }
    }
}
