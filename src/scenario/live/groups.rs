//! Cgroups and workers. What the guest can check, its agent checks: what it refuses is an error in
//! the author's argument.

use std::collections::BTreeSet;

use super::{Lab, unexpected};
use crate::scenario::lab::{GroupOptions, LabError, LabResult, WorkOptions, WorkerReport};
use crate::wire::{Answer, CgroupSet, MAX_REPORTS, Op, Work};
use crate::words::nearest;

/// Workers whose pids are remembered: as many as can be at one time, and some that were before.
const MAX_KNOWN: usize = 4096;

impl Lab {
    pub(super) fn make_group(&self, name: &str, set: &GroupOptions) -> LabResult<()> {
        if self.state().groups.iter().any(|group| group == name) {
            let text = format!("there is a cgroup {name:?} already; t.cgroup({name:?}) gives it");
            return Err(LabError::Argument(text));
        }
        let set = CgroupSet {
            cpus: set.cpus.as_deref().map(|cpus| self.cpu_list(cpus)).transpose()?,
            mems: set.mems.clone(),
            weight: set.weight,
            cpu_max: set.cpu_max.clone(),
        };
        self.done(Op::CgroupCreate { name: name.into(), set })?;
        self.state().groups.push(name.into());
        Ok(())
    }

    pub(super) fn set_group_cpus(&self, name: &str, cpus: &str) -> LabResult<()> {
        let name = self.known_group(name)?;
        let set = CgroupSet { cpus: Some(self.cpu_list(cpus)?), ..CgroupSet::default() };
        self.done(Op::CgroupSet { name, set })
    }

    /// The group's name, if there is such a group.
    pub(super) fn known_group(&self, name: &str) -> LabResult<String> {
        let groups = self.state().groups.clone();
        if groups.iter().any(|group| group == name) {
            return Ok(name.into());
        }
        let mut text = format!("there is no cgroup {name:?}");
        match nearest(name, groups.iter().map(String::as_str)) {
            Some(near) => text.push_str(&format!("; did you mean {near:?}?")),
            None if groups.is_empty() => {
                text.push_str(&format!("; t.new_cgroup({name:?}) makes it"));
            }
            None => text.push_str(&format!("; there are {}", groups.join(", "))),
        }
        Err(LabError::Argument(text))
    }

    /// A set of CPUs in the script's spelling, as the kernel writes it.
    fn cpu_list(&self, cpus: &str) -> LabResult<String> {
        let set = self.parts.facts.topology.cpu_set(cpus);
        set.map(|set| set.to_string()).map_err(|e| LabError::Argument(e.to_string()))
    }

    pub(super) fn start_workers(
        &self,
        cgroup: Option<&str>,
        work: &WorkOptions,
    ) -> LabResult<Vec<u32>> {
        let cgroup = cgroup.map(|name| self.known_group(name)).transpose()?;
        let affinity = match &work.affinity {
            Some(cpus) => {
                let set = self.parts.facts.topology.cpu_set(cpus);
                let set = set.map_err(|e| LabError::Argument(e.to_string()))?;
                Some(set.iter().collect::<BTreeSet<u32>>().into_iter().collect())
            }
            None => None,
        };
        let op = Op::Start(Work {
            kind: work.work,
            count: work.count,
            cgroup,
            policy: work.policy,
            nice: work.nice,
            affinity,
            period_us: work.period.map(|p| u64::try_from(p.as_micros()).unwrap_or(u64::MAX)),
        });
        match self.call(op)? {
            Answer::Workers(pids) => {
                let known = &mut self.state().workers;
                known.retain(|pid| !pids.contains(pid));
                known.extend(pids.iter().take(MAX_KNOWN));
                let old = known.len().saturating_sub(MAX_KNOWN);
                known.drain(..old);
                Ok(pids)
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn reports_of(&self, pids: &[u32]) -> LabResult<Vec<WorkerReport>> {
        let known: BTreeSet<u32> = self.state().workers.iter().copied().collect();
        if let Some(pid) = pids.iter().find(|pid| !known.contains(pid)) {
            let mut text = format!("no worker with the pid {pid} was started");
            match known.len() {
                0 => text.push_str("; t.start(..) starts workers and gives their pids"),
                n => text.push_str(&format!("; the pids of all {n} are in t.reports()")),
            }
            return Err(LabError::Argument(text));
        }
        let mut reports = Vec::new();
        for some in pids.chunks(MAX_REPORTS) {
            match self.call(Op::WorkerReports { pids: some.to_vec() })? {
                Answer::Reports(found) => {
                    let mut asked = some.iter();
                    // In the order that was asked for, each once.
                    let fits = |r: &WorkerReport| r.is_whole() && asked.any(|pid| *pid == r.pid);
                    if !found.iter().all(fits) {
                        let text = "the guest's agent gave reports of workers that make no sense";
                        return Err(LabError::Machine(text.into()));
                    }
                    reports.extend(found);
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(reports)
    }
}
