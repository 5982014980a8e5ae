//! Scheduling domains: the CPUs among which a CPU balances, level by level.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Cpu, Place, unreadable};
use crate::snapshot::{Field, Snapshot, SnapshotResult};

/// The domains of a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainStates {
    /// From the smallest to the largest.
    pub chain: Vec<DomainState>,
    /// Why there may be more.
    pub incomplete: Option<String>,
}

/// A domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainState {
    /// Its `struct sched_domain`.
    pub at: u64,
    /// The mask of its CPUs.
    pub span: u64,
    /// Its name, where the kernel has one.
    pub name: Option<String>,
    /// Its groups: each one's `struct sched_group`, the mask of its CPUs, and its `struct
    /// sched_group_capacity`.
    pub groups: Vec<(u64, u64, u64)>,
    /// Why groups may be missing.
    pub incomplete: Option<String>,
}

/// A scheduling domain of a CPU as it was when the machine was frozen: its `struct sched_domain`
/// (include/linux/sched/topology.h). A cheap handle.
#[derive(Clone)]
pub struct Domain {
    snapshot: Arc<Snapshot>,
    cpu: u32,
    state: Arc<DomainState>,
}

/// A group of CPUs among which a domain balances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainGroup {
    /// Its CPUs, as a CPU set: `0-1`.
    pub span: String,
    /// How many CPUs that are.
    pub weight: u64,
    /// Its capacity (`sgc->capacity`): 1024 for each CPU that has nothing else to do.
    pub capacity: u64,
    /// The least and the most of one of its CPUs.
    pub min_capacity: u64,
    /// The most.
    pub max_capacity: u64,
    /// Its flags by name.
    pub flags: Vec<String>,
}

impl Cpu {
    /// The domains among which it balances, from the smallest to the largest; none on a machine
    /// with one CPU.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`](crate::snapshot::SnapshotError) when not all could
    /// be copied.
    pub fn domains(&self) -> SnapshotResult<Vec<Domain>> {
        let (snapshot, cpu) = (self.snapshot(), self.number());
        let what = format!("the scheduling domains of CPU {cpu}");
        let all = self.domain_states()?.ok_or_else(|| {
            unreadable(&*what, "the file was saved by an older cryoscope, which kept none")
        })?;
        if let Some(why) = &all.incomplete {
            return Err(unreadable(what, why));
        }
        let domain = |state: &DomainState| {
            let (snapshot, state) = (snapshot.clone(), Arc::new(state.clone()));
            Domain { snapshot, cpu, state }
        };
        Ok(all.chain.iter().map(domain).collect())
    }
}

impl Domain {
    /// The snapshot it is in.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    fn what(&self) -> String {
        format!("domain {} of CPU {}", self.name().unwrap_or("?"), self.cpu)
    }

    /// The CPU it belongs to: each has domains of its own, even where they are alike.
    #[must_use]
    pub fn cpu(&self) -> u32 {
        self.cpu
    }

    /// `SMT`, `CLS`, `MC`, `PKG`, `NODE` or `NUMA`, as `/proc/schedstat` has it; `None` of a kernel
    /// that keeps no names.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.state.name.as_deref()
    }

    /// All of its `struct sched_domain`.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`](crate::snapshot::SnapshotError) when it could not be
    /// copied.
    pub fn whole(&self) -> SnapshotResult<Field> {
        Place::of_type(&self.snapshot, self.what(), self.state.at, "struct sched_domain")
    }

    /// The field at a path in its `struct sched_domain`.
    ///
    /// # Errors
    /// As [`Domain::whole`] and [`Field::get`].
    pub fn get(&self, path: &str) -> SnapshotResult<Field> {
        self.whole()?.get(path)
    }

    /// Its CPUs, as a CPU set: `0-3`.
    ///
    /// # Errors
    /// As [`Domain::whole`].
    pub fn span(&self) -> SnapshotResult<String> {
        Place::cpus(&self.snapshot, self.what(), self.state.span)
    }

    /// The names of its flags: `SD_BALANCE_NEWIDLE`, `SD_SHARE_LLC`, .. Which there are differs
    /// from kernel to kernel; a bit without a name is given as a number.
    ///
    /// # Errors
    /// As [`Domain::get`].
    pub fn flags(&self) -> SnapshotResult<Vec<String>> {
        self.named(self.get("flags")?.as_u64()?)
    }

    fn named(&self, flags: u64) -> SnapshotResult<Vec<String>> {
        let known = &self.snapshot.kernel_state()?.domain_flags;
        let name = |bit: u64| {
            let known = known.iter().find(|(flag, _)| *flag == bit);
            known.map_or_else(|| format!("{bit:#x}"), |(_, name)| name.clone())
        };
        Ok((0..64).map(|i| 1 << i).filter(|bit| flags & bit != 0).map(name).collect())
    }

    /// The groups among which it balances, the one with the CPU itself first.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`](crate::snapshot::SnapshotError) when not all could
    /// be copied.
    pub fn groups(&self) -> SnapshotResult<Vec<DomainGroup>> {
        if let Some(why) = &self.state.incomplete {
            return Err(unreadable(format!("the groups of {}", self.what()), why));
        }
        let group = |&(at, span, capacity): &(u64, u64, u64)| {
            let what = format!("a group of {}", self.what());
            let whole = Place::of_type(&self.snapshot, what.clone(), at, "struct sched_group")?;
            let ty = "struct sched_group_capacity";
            let capacity = Place::of_type(&self.snapshot, what.clone(), capacity, ty)?;
            let number = |of: &Field, path: &str| of.get(path)?.as_u64();
            Ok(DomainGroup {
                span: Place::cpus(&self.snapshot, what, span)?,
                weight: number(&whole, "group_weight")?,
                capacity: number(&capacity, "capacity")?,
                min_capacity: number(&capacity, "min_capacity")?,
                max_capacity: number(&capacity, "max_capacity")?,
                flags: self.named(number(&whole, "flags")?)?,
            })
        };
        self.state.groups.iter().map(group).collect()
    }

    /// One line: name, CPUs, groups.
    #[must_use]
    pub fn headline(&self) -> String {
        let spans = self.groups().map(|groups| {
            groups.into_iter().map(|group| group.span).collect::<Vec<_>>().join(" | ")
        });
        format!(
            "{} {}: {}",
            self.name().unwrap_or("?"),
            self.span().unwrap_or_else(|_| "?".to_owned()),
            spans.unwrap_or_else(|_| "?".to_owned()),
        )
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({} of CPU {})", self.headline(), self.cpu)
    }
}
