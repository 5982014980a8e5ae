//! sched_ext and its schedulers.

use std::fmt;
use std::sync::Arc;

use super::super::Snapshot;
use super::super::access::Field;
use super::super::error::{SnapshotError, SnapshotResult};
use super::super::value::Scalar;
use super::{Place, SchedState, unreadable};

/// sched_ext as it was when the machine was frozen, and one of its schedulers: its `struct
/// scx_sched` (kernel/sched/ext_internal.h). A cheap handle.
#[derive(Clone)]
pub struct Sched {
    snapshot: Arc<Snapshot>,
    place: usize,
}

impl Sched {
    pub(super) fn new(snapshot: Arc<Snapshot>, place: usize) -> Sched {
        Sched { snapshot, place }
    }

    /// The snapshot it is in.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The state of sched_ext in the words of `/sys/kernel/sched_ext/state`: `enabled`,
    /// `disabled`, `enabling`, `disabling`.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when it could not be read.
    pub fn state(&self) -> SnapshotResult<&str> {
        let scx = self.snapshot.scx_state()?;
        scx.state.as_deref().ok_or_else(|| {
            let why = scx.incomplete.as_deref().unwrap_or("the kernel's symbol for it is unknown");
            unreadable("the state of sched_ext", why)
        })
    }

    /// Whether there is a scheduler at all; one that is just coming or going counts.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.sched().is_ok()
    }

    fn sched(&self) -> SnapshotResult<&SchedState> {
        let scx = self.snapshot.scx_state()?;
        scx.scheds.get(self.place).ok_or_else(|| match &scx.incomplete {
            Some(why) => unreadable("the scheduler", why),
            None => SnapshotError::NoActiveScheduler {
                reason: format!(
                    "none was attached when the machine was frozen (sched_ext was {})",
                    scx.state.as_deref().unwrap_or("in an unknown state")
                ),
            },
        })
    }

    /// All of its `struct scx_sched`.
    ///
    /// # Errors
    /// [`SnapshotError::NoActiveScheduler`] when none is attached.
    pub fn whole(&self) -> SnapshotResult<Field> {
        let at = self.sched()?.at;
        Place::of_type(&self.snapshot, "the scheduler".into(), at, "struct scx_sched")
    }

    /// The field at a path in its `struct scx_sched`.
    ///
    /// # Errors
    /// As [`Sched::whole`] and [`Field::get`].
    pub fn get(&self, path: &str) -> SnapshotResult<Field> {
        self.whole()?.get(path)
    }

    /// The name of its operations.
    ///
    /// # Errors
    /// As [`Sched::get`].
    pub fn ops(&self) -> SnapshotResult<Field> {
        self.get("ops.name")
    }

    /// How many reasons there are to pass it over at present.
    ///
    /// # Errors
    /// As [`Sched::get`].
    pub fn bypass_depth(&self) -> SnapshotResult<Field> {
        self.get("bypass_depth")
    }

    /// The kernel's own counts of what happened, as `/sys/kernel/sched_ext/root/events` has them:
    /// summed over the CPUs, or of one. Which there are differs from kernel to kernel.
    ///
    /// # Errors
    /// As [`Sched::get`]; [`SnapshotError::PerCpuSlot`] when there is no such CPU.
    pub fn counters(&self, cpu: Option<i64>) -> SnapshotResult<Vec<(String, Scalar)>> {
        let pcpu = &self.sched()?.pcpu;
        if pcpu.is_empty() {
            return Err(unreadable("the scheduler", "this kernel keeps no event counters with it"));
        }
        let mut sums: Vec<(String, i128)> = Vec::new();
        let wanted = |n: u32| cpu.is_none_or(|cpu| cpu == i64::from(n));
        for (cpu, at) in pcpu.iter().filter(|(n, _)| wanted(*n)) {
            let what = format!("the scheduler on CPU {cpu}");
            let whole = Place::of_type(&self.snapshot, what, *at, "struct scx_sched_pcpu")?;
            let stats = whole.get("event_stats")?;
            for (i, name) in stats.members()?.into_iter().enumerate() {
                let count = i128::from(stats.get(&name)?.as_i64()?);
                match sums.get_mut(i) {
                    Some((_, sum)) => *sum = sum.saturating_add(count),
                    None => sums.push((name, count)),
                }
            }
        }
        if let (true, Some(cpu)) = (sums.is_empty(), cpu) {
            let (map, len) = ("cpus".to_owned(), pcpu.len());
            return Err(SnapshotError::PerCpuSlot { map, cpu, len, unmapped: false });
        }
        let clamped = |sum: i128| sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        Ok(sums.into_iter().map(|(name, sum)| (name, Scalar::Int(clamped(sum)))).collect())
    }

    /// One line: state and name.
    #[must_use]
    pub fn headline(&self) -> String {
        let state = self.state().unwrap_or("?");
        match self.ops().and_then(|name| name.as_str()) {
            Ok(name) => {
                format!("sched_ext {state}: {}", super::super::error_text::escaped_text(&name))
            }
            Err(_) => format!("sched_ext {state}"),
        }
    }
}

impl fmt::Debug for Sched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sched({})", self.headline())
    }
}
