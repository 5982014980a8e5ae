//! CPUs and their runqueues.

use std::fmt;
use std::sync::Arc;

use crate::btf::Shape;

use super::super::Snapshot;
use super::super::access::Field;
use super::super::error::SnapshotResult;
use super::super::value::Scalar;
use super::task::scalar;
use super::{CpuState, DomainStates, Dsq, Place, Places, Task, dsq, unreadable, vars};

/// A CPU as it was when the machine was frozen: its `struct rq` (kernel/sched/sched.h). A cheap
/// handle.
#[derive(Clone)]
pub struct Cpu {
    snapshot: Arc<Snapshot>,
    place: usize,
}

impl Cpu {
    pub(super) fn new(snapshot: Arc<Snapshot>, place: usize) -> Cpu {
        Cpu { snapshot, place }
    }

    /// The snapshot it is in.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    fn state(&self) -> SnapshotResult<&CpuState> {
        let cpus = &self.snapshot.sched_state()?.cpus;
        cpus.get(self.place).ok_or_else(|| unreadable("a CPU", "it is not in this snapshot"))
    }

    /// Its scheduling domains; `None` in a file that kept none.
    pub(super) fn domain_states(&self) -> SnapshotResult<Option<&DomainStates>> {
        Ok(self.state()?.domains.as_ref())
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.state().map_or(0, |cpu| cpu.cpu)
    }

    fn what(&self) -> String {
        format!("CPU {}", self.number())
    }

    /// All of its `struct rq`.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`](super::SnapshotError::MapRenderIncomplete) when it
    /// could not be copied.
    pub fn whole(&self) -> SnapshotResult<Field> {
        Place::of_type(&self.snapshot, self.what(), self.state()?.rq, "struct rq")
    }

    /// The field at a path in its `struct rq`.
    ///
    /// # Errors
    /// As [`Cpu::whole`] and [`Field::get`].
    pub fn get(&self, path: &str) -> SnapshotResult<Field> {
        self.whole()?.get(path)
    }

    /// The task that it executed.
    ///
    /// # Errors
    /// As [`Cpu::whole`].
    pub fn curr(&self) -> SnapshotResult<Task> {
        match self.state()? {
            CpuState { curr: 0, incomplete, .. } => Err(unreadable(
                self.what(),
                incomplete.as_deref().unwrap_or("it had no task, so it was not up"),
            )),
            state => Ok(Task::new(self.snapshot.clone(), state.curr)),
        }
    }

    /// Whether that was its idle task.
    ///
    /// # Errors
    /// As [`Cpu::whole`].
    pub fn is_idle(&self) -> SnapshotResult<bool> {
        let state = self.state()?;
        Ok(state.curr == state.idle)
    }

    /// Its local dispatch queue.
    ///
    /// # Errors
    /// As [`Snapshot::dsqs`].
    pub fn dsq(&self) -> SnapshotResult<Dsq> {
        dsq::find(&self.snapshot, &format!("local:{}", self.number()))
    }

    /// The time it spent so far in nanoseconds, by what on: `user`, `system`, `idle`, .. (`enum
    /// cpu_usage_stat`). The kernel adds to them at ticks and when it accounts, so they may be
    /// behind; those of a CPU whose tick is off are.
    ///
    /// # Errors
    /// As [`Cpu::whole`].
    pub fn cpustat(&self) -> SnapshotResult<Vec<(String, Scalar)>> {
        let state = self.state()?;
        let Some(at) = state.cpustat else {
            let why = state.incomplete.as_deref().unwrap_or("its times were not copied");
            return Err(unreadable(self.what(), why));
        };
        let times = Place::of_type(&self.snapshot, self.what(), at, "struct kernel_cpustat")?;
        let times = times.get("cpustat")?.as_array()?;
        let btf = self.snapshot.kernel_state()?.types()?;
        let names = btf.find_c("enum cpu_usage_stat").and_then(|id| btf.shape(id).ok());
        let mut out = Vec::new();
        for (i, time) in times.iter().enumerate() {
            let name = match names.as_deref() {
                Some(Shape::Enum(e)) => e.name_of(i as i128),
                _ => None,
            };
            let name = name.map_or_else(
                || i.to_string(),
                |name| name.strip_prefix("CPUTIME_").unwrap_or(name).to_ascii_lowercase(),
            );
            out.push((name, scalar(time.as_u64()?)));
        }
        Ok(out)
    }

    /// What it has of a per-CPU variable of the kernel that the freeze was asked for.
    ///
    /// # Errors
    /// As [`Snapshot::kernel`].
    pub fn kernel(&self, symbol: &str, ty: Option<&str>) -> SnapshotResult<Field> {
        let cpu = self.number();
        let variable = vars::captured(&self.snapshot, symbol)?;
        let at = match &variable.places {
            Places::PerCpu(places) => places.iter().find(|(c, _)| *c == cpu).map(|(_, at)| *at),
            Places::Once(at) => Some(*at),
            Places::Nowhere(why) => return Err(unreadable(vars::what(symbol), why)),
        };
        let what = format!("{} on CPU {cpu}", vars::what(symbol));
        match at {
            Some(at) => vars::field(&self.snapshot, what, at, &variable, symbol, ty),
            None => Err(unreadable(what, "it was not copied")),
        }
    }

    /// Why it may be half-changed: its lock was held. Usually empty.
    #[must_use]
    pub fn torn(&self) -> Vec<String> {
        let held =
            |path: &str| self.whole().and_then(|rq| rq.get(path)).and_then(|word| word.as_u64());
        // Renamed by 5cb9eaa3d274 ("sched: Wrap rq::lock access").
        let word =
            held("__lock.raw_lock.val.counter").or_else(|_| held("lock.raw_lock.val.counter"));
        let mut out: Vec<String> = Vec::new();
        if word.is_ok_and(|word| word != 0) {
            out.push("its runqueue was locked".to_owned());
        }
        out.extend(self.state().ok().and_then(|cpu| cpu.incomplete.clone()));
        out
    }

    /// One line: number, what it executes, how much waits.
    #[must_use]
    pub fn headline(&self) -> String {
        let told = |value: SnapshotResult<String>| value.unwrap_or_else(|_| "?".to_owned());
        format!(
            "CPU {}: {} runnable, runs {}",
            self.number(),
            told(self.get("nr_running").and_then(|n| n.as_u64()).map(|n| n.to_string())),
            told(self.curr().map(|task| task.headline())),
        )
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu({})", self.headline())
    }
}
