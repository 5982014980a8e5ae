//! Dispatch queues.

use std::fmt;
use std::sync::Arc;

use super::super::Snapshot;
use super::super::access::Field;
use super::super::error::{SnapshotError, SnapshotResult};
use super::{DsqState, Place, Task, unreadable};
use crate::words::nearest_first;

/// A dispatch queue as it was when the machine was frozen: its `struct scx_dispatch_q`
/// (include/linux/sched/ext.h). A cheap handle.
#[derive(Clone)]
pub struct Dsq {
    snapshot: Arc<Snapshot>,
    place: usize,
}

/// The queue of that name.
pub(super) fn find(snapshot: &Arc<Snapshot>, name: &str) -> SnapshotResult<Dsq> {
    let all = snapshot.dsqs()?;
    let state = snapshot.sched_state()?;
    let number = match name.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => name.parse().ok(),
    };
    let is = |dsq: &DsqState| dsq.name == name || dsq.user && Some(dsq.id) == number;
    // Of several schedulers' queues with one number, the root scheduler's comes first.
    if let Some(place) = state.dsqs.iter().position(is) {
        return Ok(all[place].clone());
    }
    let scx = snapshot.scx_state()?;
    // The queues of a scheduler that is missing are missing with it.
    if let Some(why) = scx.incomplete.as_ref().or(scx.scheds_incomplete.as_ref()) {
        return Err(unreadable(format!("dispatch queue {name}"), why));
    }
    let names = state.dsqs.iter().map(|dsq| dsq.name.clone()).collect();
    Err(SnapshotError::NoMatch {
        map: "dsqs".to_owned(),
        op: format!("dsq({name:?})"),
        len: all.len(),
        available_keys: nearest_first(name, names).into_iter().take(3).collect(),
    })
}

impl Dsq {
    pub(super) fn new(snapshot: Arc<Snapshot>, place: usize) -> Dsq {
        Dsq { snapshot, place }
    }

    /// The snapshot it is in.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    fn state(&self) -> SnapshotResult<&DsqState> {
        let dsqs = &self.snapshot.sched_state()?.dsqs;
        dsqs.get(self.place).ok_or_else(|| unreadable("a queue", "it is not in this snapshot"))
    }

    /// `global` (`global:1` where there are several NUMA nodes), `local:3`, `bypass:3`, or the
    /// number that the scheduler gave it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.state().map_or("", |dsq| dsq.name.as_str())
    }

    /// The kernel's id for it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.state().map_or(0, |dsq| dsq.id)
    }

    /// The CPU it belongs to, if it belongs to one.
    #[must_use]
    pub fn cpu(&self) -> Option<u32> {
        self.state().ok()?.cpu
    }

    fn what(&self) -> String {
        format!("dispatch queue {}", self.name())
    }

    /// All of its `struct scx_dispatch_q`.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when it could not be copied.
    pub fn whole(&self) -> SnapshotResult<Field> {
        Place::of_type(&self.snapshot, self.what(), self.state()?.at, "struct scx_dispatch_q")
    }

    /// The field at a path in its `struct scx_dispatch_q`.
    ///
    /// # Errors
    /// As [`Dsq::whole`] and [`Field::get`].
    pub fn get(&self, path: &str) -> SnapshotResult<Field> {
        self.whole()?.get(path)
    }

    /// The tasks that wait in it, the next one first.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when the list could not be walked to its end, or
    /// was just being changed.
    pub fn tasks(&self) -> SnapshotResult<Vec<Task>> {
        let state = self.state()?;
        match &state.incomplete {
            Some(why) => Err(unreadable(self.what(), why)),
            None => Ok(self.known_tasks(state)),
        }
    }

    fn known_tasks(&self, state: &DsqState) -> Vec<Task> {
        state.tasks.iter().map(|at| Task::new(self.snapshot.clone(), *at)).collect()
    }

    /// Why it may be half-changed: its lock was held. Usually empty.
    #[must_use]
    pub fn torn(&self) -> Vec<String> {
        let mut out = Vec::new();
        let word = self.get("lock.raw_lock.val.counter").and_then(|word| word.as_u64());
        if word.is_ok_and(|word| word != 0) {
            out.push("it was locked".to_owned());
        }
        out.extend(self.state().ok().and_then(|dsq| dsq.incomplete.clone()));
        out
    }

    /// Whether no task is known to be in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state().map_or(true, |state| state.tasks.is_empty())
    }

    /// One line: name and tasks.
    #[must_use]
    pub fn headline(&self) -> String {
        format!("dsq {}: {}", self.name(), self.contents())
    }

    /// Its tasks on one line.
    pub(super) fn contents(&self) -> String {
        let tids = self.state().map(|state| self.known_tasks(state)).unwrap_or_default();
        let shown: Vec<String> = tids
            .iter()
            .take(8)
            .map(|task| task.tid().map_or_else(|_| "?".to_owned(), |tid| tid.to_string()))
            .collect();
        let more = if tids.len() > shown.len() { ", .." } else { "" };
        format!("{} tasks [{}{more}]", tids.len(), shown.join(", "))
    }
}

impl fmt::Debug for Dsq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsq({})", self.headline())
    }
}
