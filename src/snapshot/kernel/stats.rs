//! What the kernel counts of scheduling while `kernel.sched_schedstats` tells it to.

use super::super::access::Field;
use super::super::error::SnapshotResult;
use super::super::value::Scalar;
use super::{Cpu, KernelState, Task, unreadable};

/// Of `struct rq`, as `/proc/schedstat` has them (`show_schedstat`, kernel/sched/stats.c).
const OF_CPU: [&str; 9] = [
    "yld_count",
    "sched_count",
    "sched_goidle",
    "ttwu_count",
    "ttwu_local",
    "rq_cpu_time",
    "rq_sched_info.run_delay",
    "rq_sched_info.pcount",
    "nr_switches",
];

impl KernelState {
    /// Whether the kernel counts; what it counted else would look like zeros.
    fn counts(&self, what: &str) -> SnapshotResult<()> {
        let why = match self.schedstats {
            Some(true) => return Ok(()),
            Some(false) => {
                "the kernel was not told to count them (kernel.sched_schedstats is 0): declare the \
                 scenario with the option schedstats: true"
            }
            None => "it is not known whether the kernel counts them",
        };
        Err(unreadable(what, why))
    }
}

/// The numbers at paths below a struct that there are, by the last part of their names.
fn numbers<'a>(
    whole: &Field,
    paths: impl IntoIterator<Item = &'a str>,
) -> SnapshotResult<Vec<(String, Scalar)>> {
    let mut out = Vec::new();
    for path in paths {
        let Ok(field) = whole.get(path) else { continue };
        let Some(scalar) = field.leaf()? else { continue };
        let name = path.rsplit('.').next().unwrap_or(path);
        out.push((name.to_owned(), scalar));
    }
    Ok(out)
}

impl Task {
    /// What the kernel counted of it: `struct sched_statistics` (include/linux/sched.h), as
    /// `/proc/PID/sched` has it; times in nanoseconds.
    ///
    /// # Errors
    /// As [`Task::get`]; [`SnapshotError::MapRenderIncomplete`](super::SnapshotError) when the
    /// kernel does not count.
    pub fn schedstats(&self) -> SnapshotResult<Vec<(String, Scalar)>> {
        let what = format!("the statistics of task {}", self.tid()?);
        self.snapshot().kernel_state()?.counts(&what)?;
        // Out of the scheduling entity by ceeadb83aea2 ("sched: Make struct sched_statistics
        // independent of fair sched class").
        let stats = self.get("stats").or_else(|_| self.get("se.statistics"))?;
        let members = stats.members()?;
        numbers(&stats, members.iter().map(String::as_str))
    }
}

impl Cpu {
    /// What the kernel counted of its runqueue, as `/proc/schedstat` has it; times in nanoseconds.
    ///
    /// # Errors
    /// As [`Cpu::get`]; [`SnapshotError::MapRenderIncomplete`](super::SnapshotError) when the
    /// kernel does not count.
    pub fn schedstats(&self) -> SnapshotResult<Vec<(String, Scalar)>> {
        let what = format!("the statistics of CPU {}", self.number());
        self.snapshot().kernel_state()?.counts(&what)?;
        numbers(&self.whole()?, OF_CPU)
    }
}
