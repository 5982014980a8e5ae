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
    /// Its `enum scx_exit_kind`; 0 for one that stays.
    pub kind: u64,
    /// Whether the kernel has got as far as saying why.
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
        let told = if at.is_null() { 0 } else { self.read_u32(at.offset(info.at("kind")?))? };
        let kind = if told != 0 { told } else { claimed };
        Ok(Leaving { kind: kind.into(), told: told != 0 })
    }
}
