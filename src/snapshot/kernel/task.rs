//! Tasks.

use std::fmt;
use std::sync::Arc;

use super::super::Snapshot;
use super::super::access::Field;
use super::super::error::SnapshotResult;
use super::super::value::Scalar;
use super::{Dsq, Place, unreadable};

/// A task as it was when the machine was frozen: its `struct task_struct` (include/linux/sched.h).
/// A cheap handle.
#[derive(Clone)]
pub struct Task {
    snapshot: Arc<Snapshot>,
    at: u64,
}

/// Policies by their number (include/uapi/linux/sched.h), in the words that start workers.
const POLICIES: [&str; 8] = ["normal", "fifo", "rr", "batch", "iso", "idle", "deadline", "ext"];

/// What `/proc/PID/status` calls the states, in the order of their bits (`task_state_array`,
/// fs/proc/array.c).
const STATES: [&str; 9] = [
    "running",
    "sleeping",
    "disk sleep",
    "stopped",
    "tracing stop",
    "dead",
    "zombie",
    "parked",
    "idle",
];

impl Task {
    pub(super) fn new(snapshot: Arc<Snapshot>, at: u64) -> Task {
        Task { snapshot, at }
    }

    /// The snapshot it is in.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Where its `struct task_struct` lies in the guest.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.at
    }

    /// All of it.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`](super::SnapshotError::MapRenderIncomplete) when the
    /// kernel's types do not have tasks.
    pub fn whole(&self) -> SnapshotResult<Field> {
        let named =
            |what: &str| Place::of_type(&self.snapshot, what.into(), self.at, "struct task_struct");
        let tid = named("a task")?.get("pid").and_then(|pid| pid.as_i64());
        match tid {
            Ok(tid) => named(&format!("task {tid}")),
            Err(_) => named(&format!("the task at {:#x}", self.at)),
        }
    }

    /// The field at a path in its `struct task_struct`.
    ///
    /// # Errors
    /// As [`Field::get`].
    pub fn get(&self, path: &str) -> SnapshotResult<Field> {
        self.whole()?.get(path)
    }

    fn number(&self, path: &str) -> SnapshotResult<i64> {
        self.get(path)?.as_i64()
    }

    /// The first of several paths that this kernel's task has.
    fn any(&self, paths: &[&str]) -> SnapshotResult<Field> {
        let mut last = None;
        for path in paths {
            match self.get(path) {
                Ok(field) => return Ok(field),
                Err(e) => last = last.or(Some(e)),
            }
        }
        Err(last.unwrap_or_else(|| unreadable("a task", "nothing was asked")))
    }

    /// The thread's number.
    ///
    /// # Errors
    /// As [`Task::get`], as all of these.
    pub fn tid(&self) -> SnapshotResult<i64> {
        let whole = Place::of_type(&self.snapshot, "a task".into(), self.at, "struct task_struct")?;
        whole.get("pid")?.as_i64()
    }

    /// The process's number.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn tgid(&self) -> SnapshotResult<i64> {
        self.number("tgid")
    }

    /// Its name, cut by the kernel at 15 characters.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn comm(&self) -> SnapshotResult<String> {
        self.get("comm")?.as_str()
    }

    /// Its state in the words of `/proc/PID/status`: `running` (also when it only waits for a
    /// CPU), `sleeping`, ..
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn state(&self) -> SnapshotResult<&'static str> {
        // Renamed by 2f064a59a11f ("sched: Change task_struct::state").
        let state = self.any(&["__state", "state"])?.as_u64()?;
        let exit = self.get("exit_state")?.as_u64()?;
        Ok(state_text(state, exit))
    }

    /// Its policy: `normal`, `fifo`, `rr`, `batch`, `idle`, `deadline` or `ext`.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn policy(&self) -> SnapshotResult<String> {
        let number = self.get("policy")?.as_u64()?;
        let known = usize::try_from(number).ok().and_then(|n| POLICIES.get(n));
        Ok(known.map_or_else(|| format!("policy {number}"), |name| (*name).to_owned()))
    }

    /// The scheduling class that has it: `fair`, `ext`, `rt`, ..; which need not be the one of
    /// its policy.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn class(&self) -> SnapshotResult<String> {
        let at = self.get("sched_class")?.as_u64()?;
        let known = self.snapshot.kernel_state()?.classes.iter().find(|(class, _)| *class == at);
        Ok(known.map_or_else(|| format!("the class at {at:#x}"), |(_, name)| name.clone()))
    }

    /// Its nice value, -20 to 19.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn nice(&self) -> SnapshotResult<i64> {
        // DEFAULT_PRIO, include/linux/sched/prio.h.
        Ok(self.number("static_prio")?.saturating_sub(120))
    }

    /// The CPU that it runs on or ran on last.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn cpu(&self) -> SnapshotResult<Field> {
        self.any(&["thread_info.cpu", "cpu"])
    }

    /// Whether it is on a runqueue: it runs, or waits for a CPU.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn is_runnable(&self) -> SnapshotResult<bool> {
        Ok(self.number("on_rq")? != 0)
    }

    /// Whether a CPU executed it at that instant.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn is_on_cpu(&self) -> SnapshotResult<bool> {
        Ok(self.number("on_cpu")? != 0)
    }

    /// The CPUs it may use, as a CPU set: `0-3,8`.
    ///
    /// # Errors
    /// As [`Task::get`].
    pub fn cpus_allowed(&self) -> SnapshotResult<String> {
        self.get("cpus_mask")?.as_cpus()
    }

    /// Its cgroup in the hierarchy of version 2, from the root: `/lab/hot`; `None` when it could
    /// not be told.
    ///
    /// # Errors
    /// [`SnapshotError::PlaceholderSnapshot`](super::SnapshotError::PlaceholderSnapshot).
    pub fn cgroup(&self) -> SnapshotResult<Option<&str>> {
        Ok(self.group()?.map(|(_, path)| path.as_str()))
    }

    /// The id of that cgroup.
    ///
    /// # Errors
    /// As [`Task::cgroup`].
    pub fn cgroup_id(&self) -> SnapshotResult<Option<u64>> {
        Ok(self.group()?.map(|(id, _)| *id))
    }

    fn group(&self) -> SnapshotResult<Option<&(u64, String)>> {
        let state = self.snapshot.sched_state()?;
        let task = state.tasks.binary_search_by_key(&self.at, |task| task.at).ok();
        Ok(task.and_then(|place| state.cgroups.get(state.tasks[place].cgroup?)))
    }

    /// The dispatch queue that it waits in, if any.
    ///
    /// # Errors
    /// As [`Task::get`]; also when that queue was not copied.
    pub fn dsq(&self) -> SnapshotResult<Option<Dsq>> {
        let pointer = self.get("scx.dsq")?;
        let at = pointer.as_u64()?;
        if at == 0 {
            return Ok(None);
        }
        match self.snapshot.sched_state()?.dsqs.iter().position(|dsq| dsq.at == at) {
            Some(place) => Ok(Some(Dsq::new(self.snapshot.clone(), place))),
            None => {
                let what = pointer.origin().map;
                Err(unreadable(what, format!("the dispatch queue at {at:#x} was not copied")))
            }
        }
    }

    /// One line: number, name, state, CPU.
    #[must_use]
    pub fn headline(&self) -> String {
        let told = |value: SnapshotResult<String>| value.unwrap_or_else(|_| "?".to_owned());
        let number = |value: SnapshotResult<i64>| told(value.map(|n| n.to_string()));
        format!(
            "task {} ({}): {}, policy {}, CPU {}",
            number(self.tid()),
            super::super::error_text::escaped_text(&told(self.comm())),
            told(self.state().map(str::to_owned)),
            told(self.policy()),
            number(self.cpu().and_then(|cpu| cpu.as_i64())),
        )
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task({})", self.headline())
    }
}

/// As `__task_state_index` tells it (include/linux/sched.h).
fn state_text(state: u64, exit: u64) -> &'static str {
    /// `TASK_REPORT`.
    const REPORT: u64 = 0x7f;
    /// `TASK_UNINTERRUPTIBLE`, and with `TASK_NOLOAD` it is `TASK_IDLE`.
    const UNINTERRUPTIBLE: u64 = 2;
    const IDLE: u64 = 0x402;
    /// `TASK_RTLOCK_WAIT` and `TASK_FROZEN`.
    const WAITS: u64 = 0x9000;
    let mut report = (state | exit) & REPORT;
    if state & IDLE == IDLE {
        report = 0x80;
    }
    if state & WAITS != 0 {
        report = UNINTERRUPTIBLE;
    }
    STATES[(64 - report.leading_zeros()) as usize]
}

/// A number as a value.
pub(super) fn scalar(number: u64) -> Scalar {
    Scalar::of_number(i128::from(number)).unwrap_or(Scalar::U64(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_those_of_proc() {
        let cases = [
            (0, 0, "running"),
            (1, 0, "sleeping"),
            (0x2001, 0, "sleeping"),
            (2, 0, "disk sleep"),
            (0x402, 0, "idle"),
            (0x8000, 0, "disk sleep"),
            (0x1000, 0, "disk sleep"),
            (4, 0, "stopped"),
            (8, 0, "tracing stop"),
            (0x40, 0, "parked"),
            (0x80, 0x20, "zombie"),
            (0x80, 0x10, "dead"),
            (u64::MAX, u64::MAX, "disk sleep"),
        ];
        for (state, exit, want) in cases {
            assert_eq!(state_text(state, exit), want, "{state:#x} {exit:#x}");
        }
    }
}
