//! sched_ext and its schedulers.

use std::fmt;
use std::sync::Arc;

use super::super::Snapshot;
use super::super::access::Field;
use super::super::error::{SnapshotError, SnapshotResult};
use super::super::error_text::escaped_text;
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

    /// Its place in what was copied.
    pub(super) fn place(&self) -> usize {
        self.place
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
            let why =
                scx.scheds_incomplete.as_deref().unwrap_or("the kernel's symbol for it is unknown");
            unreadable("the state of sched_ext", why)
        })
    }

    /// Whether there is a scheduler at all; one that is just coming or going counts.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.copied().is_ok()
    }

    /// What was copied of it.
    pub(super) fn copied(&self) -> SnapshotResult<&SchedState> {
        match self.snapshot.scx_state()?.scheds.get(self.place) {
            Some(sched) => Ok(sched),
            None => Err(self.snapshot.none_attached()?),
        }
    }

    /// All of its `struct scx_sched`.
    ///
    /// # Errors
    /// [`SnapshotError::NoActiveScheduler`] when none is attached.
    pub fn whole(&self) -> SnapshotResult<Field> {
        let at = self.copied()?.at;
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
        let pcpu = &self.copied()?.pcpu;
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

    /// One line: state and name, and the cgroup of one that is not the root.
    #[must_use]
    pub fn headline(&self) -> String {
        let state = self.state().unwrap_or("?");
        match (self.name(), self.path()) {
            (Some(name), Ok("/")) => format!("sched_ext {state}: {name}"),
            (Some(name), Ok(path)) => {
                format!("sched_ext {state}: {name}, the sub-scheduler of {}", escaped_text(path))
            }
            _ => format!("sched_ext {state}"),
        }
    }

    /// The name of its operations, if it can be read, fit for a terminal.
    fn name(&self) -> Option<String> {
        Some(escaped_text(&self.ops().ok()?.as_str().ok()?))
    }

    /// What there is of it, in a few words: name, whether it is live, what belongs to it.
    #[must_use]
    pub fn summary(&self) -> String {
        let state = match self.not_live() {
            Ok(None) => "live".to_owned(),
            Ok(Some(why)) => format!("not live: {}", escaped_text(&why)),
            Err(e) => format!("<{e}>"),
        };
        let owns = match self.owns() {
            Ok(owns) => {
                let (maps, progs) = (owns.maps.len(), owns.progs.len());
                let more = owns.incomplete.as_ref().map_or("", |_| ", or more");
                format!("{maps} maps, {progs} programs{more}")
            }
            Err(e) => format!("<{e}>"),
        };
        format!("{}, {state}; {owns}", self.name().unwrap_or_else(|| "?".to_owned()))
    }
}

impl fmt::Debug for Sched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sched({})", self.headline())
    }
}
