//! Traps: where a machine stands still by itself, at the very instruction.
//!
//! ```text
//!           set_traps            a CPU runs into one             pause            resume
//!  Running ──────────▶ armed ─────────────────────────▶ standing ─────▶ trapped ────────▶ Running
//!                                 the wake is called              capture
//! ```
//!
//! When a CPU runs into a trap, the engine notes it, begins to stop all CPUs, and calls the
//! [`TrapWake`]. Whoever is woken does what a freeze does anyway: [`Engine::pause`] (which makes
//! sure that all stand), [`Engine::trapped`] (which says why, and forgets it), a copy, and
//! [`Engine::resume`]. A pause for another reason may find that a trap was hit at the same moment:
//! so `trapped` is worth asking after every pause, and a wake that finds nothing is no fault.
//!
//! [`Engine::pause`]: super::Engine::pause
//! [`Engine::trapped`]: super::Engine::trapped
//! [`Engine::resume`]: super::Engine::resume

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The most places whose writes are trapped at once: the debug registers of an x86 CPU.
pub const MOST_WRITES: usize = 4;
/// The most instructions that are trapped at once.
pub const MOST_EXECUTES: usize = 16;
/// Hits kept until somebody asks; each CPU can have one of each kind when all come to stand.
const MOST_HITS: usize = 1024;

/// Where a machine is to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trap {
    /// Before the instruction at this address. **One-shot**: it is taken away when it is hit, so
    /// that the CPU gets past it (under KVM it is two bytes in the guest's code, which are put
    /// back). Whoever wants it again sets it again, some time after the machine went on: as long as
    /// a CPU still stands at the address it would be hit again at once.
    Execute {
        /// The kernel's virtual address of the first byte of an instruction.
        address: u64,
        /// The same in guest-physical memory.
        physical: u64,
    },
    /// After an instruction that writes any of these bytes. It stays until other traps are set.
    /// Only writes by CPUs count: a device, or this process, writes unnoticed.
    Write {
        /// A virtual address, a multiple of `len`.
        address: u64,
        /// 1, 2, 4 or 8 bytes.
        len: u8,
    },
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trap::Execute { address, .. } => write!(f, "the instruction at {address:#x}"),
            Trap::Write { address, len: 1 } => write!(f, "writes to the byte at {address:#x}"),
            Trap::Write { address, len } => write!(f, "writes to the {len} bytes at {address:#x}"),
        }
    }
}

/// A trap that was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trapped {
    /// Which one.
    pub trap: Trap,
    /// Which CPU ran into it, where the engine knows.
    pub cpu: Option<u32>,
    /// When that was noticed.
    pub at: Instant,
}

/// Called when a trap was hit, from a thread of the engine's: it must return at once and may not
/// ask the engine for anything.
pub type TrapWake = Arc<dyn Fn() + Send + Sync>;

/// Why these traps cannot be set together, for every engine.
pub(super) fn check(traps: &[Trap]) -> Result<(), (Trap, String)> {
    let (mut writes, mut executes) = (0, 0);
    for (at, &trap) in traps.iter().enumerate() {
        if traps[..at].contains(&trap) {
            return Err((trap, "it is asked for twice".to_owned()));
        }
        match trap {
            Trap::Execute { .. } => executes += 1,
            Trap::Write { address, len } => {
                writes += 1;
                if !matches!(len, 1 | 2 | 4 | 8) {
                    let why = format!("a CPU watches 1, 2, 4 or 8 bytes, not {len}");
                    return Err((trap, why));
                }
                if !address.is_multiple_of(u64::from(len)) {
                    let why = format!("a CPU watches {len} bytes only at a multiple of {len}");
                    return Err((trap, why));
                }
            }
        }
        if writes > MOST_WRITES || executes > MOST_EXECUTES {
            let why = format!(
                "at most {MOST_WRITES} places can be watched and {MOST_EXECUTES} instructions \
                 trapped at once"
            );
            return Err((trap, why));
        }
    }
    Ok(())
}

/// What was hit and not yet asked for, in an engine's own terms; shared by it and its threads.
pub(super) struct Hits<T>(Arc<Mutex<Inner<T>>>);

struct Inner<T> {
    hits: Vec<T>,
    wake: Option<TrapWake>,
}

impl<T> Default for Hits<T> {
    fn default() -> Self {
        Hits(Arc::new(Mutex::new(Inner { hits: Vec::new(), wake: None })))
    }
}

impl<T> Clone for Hits<T> {
    fn clone(&self) -> Self {
        Hits(self.0.clone())
    }
}

impl<T> Hits<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a hit and wakes who waits for it.
    pub(super) fn tell(&self, hit: T) {
        let mut inner = self.lock();
        if inner.hits.len() < MOST_HITS {
            inner.hits.push(hit);
        }
        let wake = inner.wake.clone();
        drop(inner);
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Who is woken from now on; at once, if there is a hit already.
    pub(super) fn on(&self, wake: TrapWake) {
        let mut inner = self.lock();
        inner.wake = Some(wake.clone());
        let waiting = !inner.hits.is_empty();
        drop(inner);
        if waiting {
            wake();
        }
    }

    /// All hits, which are forgotten.
    pub(super) fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.lock().hits)
    }

    /// Whether there are hits that nobody has asked for.
    pub(super) fn any(&self) -> bool {
        !self.lock().hits.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn write(address: u64, len: u8) -> Trap {
        Trap::Write { address, len }
    }

    #[test]
    fn what_no_cpu_can_watch_is_refused() {
        let execute = |address| Trap::Execute { address, physical: address };
        let many: Vec<Trap> = (0..17).map(execute).collect();
        let cases: [(&[Trap], Option<&str>); 7] = [
            (&[], None),
            (&[write(8, 8), write(12, 4), write(6, 2), write(7, 1), execute(7)], None),
            (&[write(8, 3)], Some("a CPU watches 1, 2, 4 or 8 bytes, not 3")),
            (&[write(12, 8)], Some("a CPU watches 8 bytes only at a multiple of 8")),
            (&[write(8, 8), write(8, 8)], Some("it is asked for twice")),
            (
                &[write(0, 1), write(1, 1), write(2, 1), write(3, 1), write(4, 1)],
                Some("at most 4 places can be watched and 16 instructions trapped at once"),
            ),
            (&many, Some("at most 4 places can be watched and 16 instructions trapped at once")),
        ];
        for (traps, why) in cases {
            assert_eq!(check(traps).err().map(|e| e.1).as_deref(), why, "{traps:?}");
        }
    }

    #[test]
    fn traps_say_what_they_are() {
        assert_eq!(write(16, 8).to_string(), "writes to the 8 bytes at 0x10");
        assert_eq!(write(16, 1).to_string(), "writes to the byte at 0x10");
        let trap = Trap::Execute { address: 0xfff, physical: 1 };
        assert_eq!(trap.to_string(), "the instruction at 0xfff");
    }

    #[test]
    fn a_hit_is_told_once_and_wakes() {
        let (hits, woken) = (Hits::default(), Arc::new(AtomicUsize::new(0)));
        let hit = Trapped { trap: write(8, 8), cpu: Some(1), at: Instant::now() };
        hits.tell(hit);
        assert!(hits.any());
        let count = woken.clone();
        hits.on(Arc::new(move || _ = count.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(woken.load(Ordering::Relaxed), 1, "there was one already");
        hits.tell(hit);
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert_eq!(hits.take(), [hit, hit]);
        assert!(!hits.any() && hits.take().is_empty());
        (0..2 * MOST_HITS).for_each(|_| hits.tell(hit));
        assert_eq!(hits.take().len(), MOST_HITS);
    }
}
