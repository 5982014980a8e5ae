//! Cgroups and workers: what an author may ask for, checked before the guest is asked.

use std::collections::BTreeSet;

use super::{Lab, unexpected};
use crate::scenario::lab::{GroupOptions, LabError, LabResult, Policy, WorkKind, WorkOptions};
use crate::snapshot::nearest;
use crate::wire::{Answer, CgroupSet, Op, Work};

/// More workers than this at once are a slip of the finger: each is a process in the guest.
const MAX_WORKERS: u32 = 4096;

impl Lab {
    pub(super) fn make_group(&self, name: &str, set: &GroupOptions) -> LabResult<()> {
        check_name(name)?;
        if self.state().groups.iter().any(|group| group == name) {
            let text = format!("there is a cgroup {name:?} already; t.cgroup({name:?}) gives it");
            return Err(LabError::Argument(text));
        }
        if let Some(weight) = set.weight
            && !(1..=10_000).contains(&weight)
        {
            let text = format!("weight {weight} is not from 1 to 10000, as cpu.weight wants it");
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
        check_work(work)?;
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
                if self.parts.under_test && work.policy.is_none() {
                    self.state().workers.extend(&pids);
                }
                Ok(pids)
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// A cgroup's name is one path component, and one that reads well in a report.
fn check_name(name: &str) -> LabResult<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let fits = !name.is_empty() && name.len() <= 64 && name.chars().all(good);
    if fits && !name.starts_with('.') {
        return Ok(());
    }
    Err(LabError::Argument(format!(
        "{name:?} cannot be a cgroup's name: give 1 to 64 letters, digits, '_', '-' or '.', not \
         beginning with '.'"
    )))
}

fn check_work(work: &WorkOptions) -> LabResult<()> {
    let refuse = |text: String| Err(LabError::Argument(text));
    if work.count == 0 || work.count > MAX_WORKERS {
        return refuse(format!("count {} is not from 1 to {MAX_WORKERS}", work.count));
    }
    if work.work == WorkKind::Pipe && work.count % 2 == 1 {
        let (less, more) = (work.count - 1, work.count + 1);
        let either = if less == 0 { "2".to_string() } else { format!("{less} or {more}") };
        return refuse(format!(
            "count {} is odd, but pipe workers come in pairs: give {either}",
            work.count
        ));
    }
    if let Some(nice) = work.nice
        && !(-20..=19).contains(&nice)
    {
        return refuse(format!("nice {nice} is not from -20 to 19"));
    }
    if let Some(Policy::Fifo(priority) | Policy::Rr(priority)) = work.policy
        && !(1..=99).contains(&priority)
    {
        return refuse(format!("priority {priority} is not from 1 to 99"));
    }
    Ok(())
}
