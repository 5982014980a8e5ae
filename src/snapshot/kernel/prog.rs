//! BPF programs, as they were at the freeze.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::unreadable;
use crate::snapshot::{Snapshot, SnapshotResult};

/// What was copied of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgState {
    /// Its id, as in `bpftool prog`.
    pub id: u32,
    /// Its name, in full where that could be found out.
    pub name: String,
    /// Its type in the kernel's words and lower case: `struct_ops`.
    pub kind: String,
    /// Ids of the maps it uses.
    pub maps: Vec<u32>,
    /// Runs and their nanoseconds over all CPUs; `None` unless the kernel counted.
    pub runs: Option<(u64, u64)>,
    /// Why something of it is missing.
    pub incomplete: Option<String>,
}

/// A program.
#[derive(Clone)]
pub struct Prog {
    snapshot: Arc<Snapshot>,
    state: ProgState,
}

impl Snapshot {
    /// The BPF programs, ascending by id.
    ///
    /// # Errors
    /// As [`Snapshot::tasks`].
    pub fn progs(self: &Arc<Self>) -> SnapshotResult<Vec<Prog>> {
        let state = self.sched_state()?;
        if let Some(why) = &state.progs_incomplete {
            return Err(unreadable("the list of programs", why));
        }
        let prog = |state: &ProgState| Prog { snapshot: self.clone(), state: state.clone() };
        Ok(state.progs.iter().map(prog).collect())
    }
}

impl Prog {
    /// What was copied.
    #[must_use]
    pub fn state(&self) -> &ProgState {
        &self.state
    }

    /// Names of the maps it uses; of one that was not captured, `#` and its id.
    ///
    /// # Errors
    /// [`super::super::SnapshotError::MapRenderIncomplete`] when they could not be read.
    pub fn maps(&self) -> SnapshotResult<Vec<String>> {
        if let Some(why) = &self.state.incomplete {
            return Err(unreadable(self.name(), why));
        }
        let all = self.snapshot.maps()?;
        let name = |id: &u32| {
            let map = all.iter().find(|map| map.attrs().id == *id);
            map.map_or_else(|| format!("#{id}"), |map| map.name().to_owned())
        };
        Ok(self.state.maps.iter().map(name).collect())
    }

    /// How often it ran, and how many nanoseconds that took, over all CPUs.
    ///
    /// # Errors
    /// [`super::super::SnapshotError::MapRenderIncomplete`] when the kernel did not count, with
    /// what makes it.
    pub fn runs(&self) -> SnapshotResult<(u64, u64)> {
        if let Some(why) = &self.state.incomplete {
            return Err(unreadable(self.name(), why));
        }
        self.state.runs.ok_or_else(|| {
            unreadable(
                self.name(),
                "the kernel does not count runs of programs; have it do so with the scenario \
                 option bpf_stats: true",
            )
        })
    }

    fn name(&self) -> String {
        format!("program {}", self.state.name)
    }

    /// Id, name, type and, where they were counted, runs on one line.
    #[must_use]
    pub fn headline(&self) -> String {
        let ProgState { id, name, kind, .. } = &self.state;
        match self.state.runs {
            Some((count, ns)) => format!("program {id} ({name}): {kind}, {count} runs in {ns} ns"),
            None => format!("program {id} ({name}): {kind}"),
        }
    }
}
