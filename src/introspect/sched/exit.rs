//! Where every scheduler passes on its way out.
//!
//! `scx_vexit()` (kernel/sched/ext.c) fills in `struct scx_exit_info` and queues an irq_work of the
//! scheduler's; its function is the first code that runs with all of that known, before
//! `ops.exit()` and before the kernel's own scheduler has taken over. Which function it is stands in
//! memory: a pointer in the very `struct scx_sched`.

use super::layout::Struct;
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::{Gpa, Kva};

/// Works by which a scheduler leaves, the best first. `disable_irq_work` is every exit's (since
/// 7.1). Before, `error_irq_work` is that of errors only, and `disable_work`, which follows it,
/// every exit's.
const WORKS: [&[&str]; 2] = [&["disable_irq_work"], &["error_irq_work", "disable_work"]];
/// `endbr64`: where the CPU checks targets of indirect calls, nothing else may stand there.
const ENDBR: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// An instruction that every scheduler's exit comes to, or every exit with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitPoint {
    /// Where it is: the first one of a function that may be replaced by a breakpoint. The first
    /// argument (`rdi`) still is what the function was called with.
    pub at: Kva,
    /// The same in physical memory.
    pub physical: Gpa,
    /// The function's name.
    pub function: String,
    /// Where the work that the argument points to lies in its `struct scx_sched`.
    pub work: u64,
}

/// Whether a scheduler is leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The number of its `enum scx_exit_kind`; 0 for one that stays.
    pub kind: u64,
    /// Whether the kernel has got as far as saying why: it claims the exit first, fills in the
    /// message and the kind next, and the reason last.
    pub told: bool,
}

impl Kernel {
    /// Finds where schedulers leave. They all do at the same place; one must be attached to find it.
    ///
    /// # Errors
    /// [`IntrospectError::NotYet`] while none is attached, and what of the kernel cannot be read.
    pub fn exit_points(&self) -> Result<Vec<ExitPoint>, IntrospectError> {
        let root = self.root_sched()?;
        let layout = Struct::new(self, "struct scx_sched")?;
        for works in WORKS {
            let points = works.iter().filter_map(|work| {
                let function = layout.maybe(&format!("{work}.func"))?;
                Some(self.exit_point(root.offset(function), layout.maybe(work)?))
            });
            let points = points.collect::<Result<Vec<_>, _>>()?;
            if !points.is_empty() {
                return Ok(points);
            }
        }
        let text = "'struct scx_sched' has no 'disable_irq_work' nor what was in its place before";
        Err(IntrospectError::Type(text.to_owned()))
    }

    fn exit_point(&self, pointer: Kva, work: u64) -> Result<ExitPoint, IntrospectError> {
        let entry = Kva(self.read_u64(pointer)?);
        let function = match self.symbols().find_addr(entry) {
            Some((name, 0)) => name.to_owned(),
            _ => {
                let text = format!("the function at {entry} by which schedulers leave has no name");
                return Err(IntrospectError::Damaged(text));
            }
        };
        let mut code = [0; ENDBR.len()];
        self.read(entry, &mut code)?;
        let skip = if code == ENDBR { ENDBR.len() } else { 0 };
        let at = entry.offset(skip as u64);
        let physical = self.translate(at).ok_or_else(|| {
            IntrospectError::Damaged(format!("the function {function} is not in memory"))
        })?;
        Ok(ExitPoint { at, physical, function, work })
    }

    /// The root scheduler's `struct scx_sched`.
    ///
    /// # Errors
    /// [`IntrospectError::NotYet`] when there is none.
    pub fn root_sched(&self) -> Result<Kva, IntrospectError> {
        let root = Kva(self.read_u64(self.symbols().address("scx_root")?)?);
        match root.is_null() {
            true => Err(IntrospectError::NotYet("no scheduler is attached".to_owned())),
            false => Ok(root),
        }
    }

    /// Whether the scheduler whose `struct scx_sched` is at `sched` is leaving.
    ///
    /// # Errors
    /// What cannot be read of it.
    pub fn leaving(&self, sched: Kva) -> Result<Leaving, IntrospectError> {
        let layout = Struct::new(self, "struct scx_sched")?;
        let claimed = self.read_u32(sched.offset(layout.at("exit_kind")?))?;
        let info = Struct::new(self, "struct scx_exit_info")?;
        let at = Kva(self.read_u64(sched.offset(layout.at("exit_info")?))?);
        if at.is_null() {
            return Ok(Leaving { kind: claimed.into(), told: false });
        }
        let reason = self.read_u64(at.offset(info.at("reason")?))?;
        let named = self.read_u32(at.offset(info.at("kind")?))?;
        let kind = if named != 0 { named } else { claimed };
        Ok(Leaving { kind: kind.into(), told: named != 0 && reason != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspect::testing::Guest;

    const WORK: u64 = 32;

    /// A kernel whose scheduler has these works; the first one's function has that code.
    fn guest(works: &[&'static str], code: &[u8]) -> (Guest, Kva) {
        let mut guest = Guest::new();
        let t = &mut guest.types;
        let u32_ = t.int("unsigned int", 4, false);
        let void = t.ptr(0);
        let work = t.structure("irq_work", 16, &[("llnode", void, 0), ("func", void, 64)]);
        let info = t.structure("scx_exit_info", 16, &[("kind", u32_, 0), ("reason", void, 64)]);
        let info = t.ptr(info);
        let mut members = vec![("exit_kind", u32_, 0), ("exit_info", info, 64)];
        let at = (0..).map(|i| (WORK as u32 + 16 * i) * 8);
        members.extend(works.iter().zip(at).map(|(name, at)| (*name, work, at)));
        t.structure("scx_sched", 64, &members);
        let sched = guest.alloc(64);
        for (i, name) in (0..).zip(works) {
            let function = guest.variable(&format!("{name}fn"), code);
            guest.write_u64(sched.offset(WORK + 16 * i + 8), function.0);
        }
        guest.variable("scx_root", &sched.0.to_le_bytes());
        (guest, sched)
    }

    fn found(guest: Guest) -> Result<Vec<ExitPoint>, String> {
        Kernel::open(guest.mem()).unwrap().exit_points().map_err(|e| e.to_string())
    }

    #[test]
    fn the_function_that_every_exit_passes_is_found() {
        let nop = [0x0f, 0x1f, 0x44, 0, 0, 0x55, 0, 0];
        let checked = [&ENDBR[..], &nop].concat();
        for (code, skip) in [(&nop[..], 0), (&checked, 4)] {
            let (made, _) = guest(&["disable_irq_work"], code);
            let entry = Kva(made.address("disable_irq_workfn"));
            let kernel = Kernel::open(made.mem()).unwrap();
            let at = entry.offset(skip);
            let physical = kernel.translate(at).unwrap();
            let function = "disable_irq_workfn".to_owned();
            let point = ExitPoint { at, physical, function, work: WORK };
            assert_eq!(kernel.exit_points().unwrap(), [point]);
        }
    }

    #[test]
    fn older_kernels_have_one_for_errors_and_one_for_all() {
        let points = found(guest(&["error_irq_work", "disable_work"], &[0x90; 8]).0).unwrap();
        let told: Vec<_> = points.iter().map(|p| (p.function.as_str(), p.work)).collect();
        assert_eq!(told, [("error_irq_workfn", WORK), ("disable_workfn", WORK + 16)]);
        // Where there is the newer one, it is enough.
        let both = guest(&["disable_work", "disable_irq_work"], &[0x90; 8]).0;
        assert_eq!(found(both).unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_found_says_why() {
        let lacks = "'struct scx_sched' has no 'disable_irq_work' nor what was in its place before";
        assert_eq!(found(guest(&[], &[]).0), Err(lacks.to_owned()));
        let (mut none, _) = guest(&["disable_irq_work"], &[0x90; 8]);
        let root = Kva(none.address("scx_root"));
        none.write_u64(root, 0);
        let says = found(none).unwrap_err();
        assert!(says.ends_with("no scheduler is attached"), "{says}");
        for nowhere in [0, 0x1234, u64::MAX, 0xffff_8880_0000_0001] {
            let (mut elsewhere, sched) = guest(&["disable_irq_work"], &[0x90; 8]);
            elsewhere.write_u64(sched.offset(WORK + 8), nowhere);
            let says = found(elsewhere).unwrap_err();
            assert!(says.contains("by which schedulers leave has no name"), "{says}");
            let (mut lost, _) = guest(&["disable_irq_work"], &[0x90; 8]);
            let root = Kva(lost.address("scx_root"));
            lost.write_u64(root, nowhere.max(8));
            assert!(found(lost).is_err(), "a scheduler at {nowhere:#x}");
        }
    }

    #[test]
    fn a_leaving_scheduler_is_told_from_one_that_stays() {
        let leaving = |claimed: u32, told: Option<(u32, u64)>| {
            let (mut made, sched) = guest(&["disable_irq_work"], &[0x90; 8]);
            made.write_u32(sched, claimed);
            if let Some((kind, reason)) = told {
                let info = made.alloc(16);
                made.write_u32(info, kind);
                made.write_u64(info.offset(8), reason);
                made.write_u64(sched.offset(8), info.0);
            }
            let Leaving { kind, told } = Kernel::open(made.mem()).unwrap().leaving(sched).unwrap();
            (kind, told)
        };
        assert_eq!(leaving(0, None), (0, false));
        assert_eq!(leaving(1024, None), (1024, false));
        assert_eq!(leaving(1024, Some((0, 0))), (1024, false), "it has not got so far");
        assert_eq!(leaving(1024, Some((1024, 0))), (1024, false), "the reason comes last");
        assert_eq!(leaving(1, Some((1026, 8))), (1026, true), "the kind outlives the exit");
    }
}
