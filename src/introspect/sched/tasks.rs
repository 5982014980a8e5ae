//! Every task, and the cgroup it is in.

use std::collections::{HashMap, HashSet};

use super::layout::{CgroupLayout, CgroupNode};
use super::{Copy, MAX_TASKS};
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Levels of cgroups.
const MAX_LEVELS: usize = 64;
/// Bytes of one cgroup's name.
const MAX_NAME: usize = 256;

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskAt {
    /// Where its `struct task_struct` lies.
    pub at: u64,
    /// Its cgroup's place in the list of them.
    pub cgroup: Option<usize>,
}

/// A cgroup of the default hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id: the inode number of its directory.
    pub id: u64,
    /// From the root: `/lab/hot`.
    pub path: String,
}

/// Cgroups that were read before, by their places in the list of them.
#[derive(Default)]
struct Known {
    /// By `struct css_set`.
    sets: HashMap<u64, Option<usize>>,
    /// By `struct cgroup`.
    cgroups: HashMap<u64, Option<usize>>,
}

impl Copy<'_> {
    /// As `for_each_process_thread` goes through them (include/linux/sched/signal.h): the list of
    /// group leaders, which begins in `init_task`, and each group's list of threads.
    pub(super) fn tasks(&mut self) {
        let lock = self.layout.tasks_lock.and_then(|at| {
            let mut byte = [0];
            self.kernel.read(Kva(at), &mut byte).ok().map(|()| byte[0])
        });
        if lock.is_some_and(|byte| byte != 0) {
            self.raw.tasks_torn =
                Some("tasklist_lock is held: a task is being added or removed".into());
        }
        let all = self.list_tasks();
        // Half of what is left, so that there is something for the maps.
        let size = self.layout.task.size.saturating_mul(all.len() as u64);
        self.whole = size <= self.budget.left() / 2;
        let mut groups = Known::default();
        for (copied, at) in all.iter().enumerate() {
            if let Err(why) = self.task(*at) {
                self.tasks_miss(format!("only {copied} of {} tasks were copied: {why}", all.len()));
                return;
            }
            let cgroup = self.cgroup_of(*at, &mut groups);
            self.raw.tasks.push(TaskAt { at: *at, cgroup });
        }
        // Those that ran, idle ones among them, even where the list does not have them.
        for at in self.raw.cpus.iter().flat_map(|cpu| [cpu.curr, cpu.idle]).collect::<Vec<_>>() {
            let _ = self.task(at);
        }
    }

    fn tasks_miss(&mut self, why: String) {
        self.raw.tasks_incomplete.get_or_insert(why);
    }

    /// Copies one task.
    pub(super) fn task(&mut self, at: u64) -> Result<(), String> {
        if self.whole {
            return self.piece(at, self.layout.task.size);
        }
        let layout = self.layout;
        let mut needed = layout.task.needed.iter();
        needed.try_for_each(|&(offset, len)| self.piece(at.wrapping_add(offset), len))
    }

    /// The addresses of all tasks.
    fn list_tasks(&mut self) -> Vec<u64> {
        let layout = &self.layout.task;
        let Some(init) = self.kernel.symbols().get("init_task") else {
            self.tasks_miss("the kernel has no symbol 'init_task'".into());
            return Vec::new();
        };
        let leaders = self.kernel.list(init.offset(layout.tasks), MAX_TASKS);
        if let Some(e) = leaders.error {
            self.tasks_miss(e.to_string());
        }
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        for node in leaders.items {
            if let Err(why) = self.budget.check_time() {
                self.tasks_miss(why);
                break;
            }
            let leader = node.0.wrapping_sub(layout.tasks);
            for at in self.threads(leader) {
                if all.len() == MAX_TASKS {
                    self.tasks_miss(format!("there are more than {MAX_TASKS} tasks"));
                    return all;
                }
                if seen.insert(at) {
                    all.push(at);
                }
            }
        }
        all
    }

    /// The threads of a group, its leader first.
    fn threads(&mut self, leader: u64) -> Vec<u64> {
        let layout = &self.layout.task;
        let mut out = vec![leader];
        let signal = match self.kernel.read_u64(Kva(leader.wrapping_add(layout.signal))) {
            Ok(signal) => signal,
            Err(e) => {
                self.tasks_miss(e.to_string());
                return out;
            }
        };
        let head = Kva(signal.wrapping_add(layout.thread_head));
        let walk = self.kernel.list(head, self.steps.min(MAX_TASKS));
        self.steps -= walk.items.len().min(self.steps);
        if let Some(e) = walk.error {
            self.tasks_miss(e.to_string());
        }
        out.extend(walk.items.iter().map(|node| node.0.wrapping_sub(layout.thread_node)));
        out
    }

    /// The place of a task's cgroup in the list. Tasks with the same groups share a `css_set`.
    fn cgroup_of(&mut self, task: u64, known: &mut Known) -> Option<usize> {
        let layout = self.layout.cgroup.as_ref().ok()?;
        let set = self.raw.memory.u64(task.wrapping_add(layout.cgroups))?;
        if let Some(place) = known.sets.get(&set) {
            return *place;
        }
        let place = self.place_of(layout, Kva(set), known);
        known.sets.insert(set, place);
        place
    }

    fn place_of(&mut self, layout: &CgroupLayout, set: Kva, known: &mut Known) -> Option<usize> {
        let cgroup = self.kernel.read_u64(set.offset(layout.dfl_cgrp)).ok()?;
        if let Some(place) = known.cgroups.get(&cgroup) {
            return *place;
        }
        let place = self.kernel.cgroup_at(&layout.node, Kva(cgroup)).map(|cgroup| {
            self.raw.cgroups.push(cgroup);
            self.raw.cgroups.len() - 1
        });
        known.cgroups.insert(cgroup, place);
        place
    }
}

impl Kernel {
    /// The cgroup whose `struct cgroup` lies at `cgroup`, if all of its path can be read.
    pub(in crate::introspect) fn cgroup_at(
        &self,
        layout: &CgroupNode,
        cgroup: Kva,
    ) -> Option<Cgroup> {
        let read = |at: Kva| self.read_u64(at).ok();
        let node = Kva(read(cgroup.offset(layout.kn))?);
        let id = read(node.offset(layout.id))?;
        // The root of the hierarchy has no parent, and a name that does not count.
        let (mut names, mut at) = (Vec::new(), node);
        loop {
            let parent = Kva(read(at.offset(layout.parent))?);
            if parent.is_null() {
                break;
            }
            if names.len() == MAX_LEVELS {
                return None;
            }
            let name = Kva(read(at.offset(layout.name))?);
            names.push(self.read_cstr(name, MAX_NAME).ok()?);
            at = parent;
        }
        names.reverse();
        Some(Cgroup { id, path: format!("/{}", names.join("/")) })
    }
}
