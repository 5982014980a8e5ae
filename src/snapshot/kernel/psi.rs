//! Pressure: how long tasks waited for CPUs, memory, input and output, and interrupts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Place, unreadable};
use crate::btf::Shape;
use crate::snapshot::{Field, Snapshot, SnapshotError, SnapshotResult};
use crate::words::nearest_first;

/// Where the pressure of the system and of cgroups was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PsiState {
    /// Why the kernel does not account for pressure at all.
    pub off: Option<String>,
    /// Why it does not for cgroups.
    pub cgroups_off: Option<String>,
    /// Whether it accounts for the time that interrupts take.
    pub irq: bool,
    /// The system's first.
    pub groups: Vec<PsiGroup>,
    /// Why cgroups may be missing.
    pub incomplete: Option<String>,
}

/// The pressure of the system or of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PsiGroup {
    /// The cgroup's path; `None` for the system.
    pub cgroup: Option<String>,
    /// Its `struct psi_group`.
    pub at: u64,
    /// Why it was not copied.
    pub incomplete: Option<String>,
}

/// What `/proc/pressure/` has of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Pressure {
    /// `cpu`, `memory`, `io` or `irq`.
    pub resource: &'static str,
    /// While some tasks waited for it; there is none of `irq`.
    pub some: Option<Stall>,
    /// While all tasks that were not idle did.
    pub full: Option<Stall>,
}

/// A line of such a file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Share of the last ten seconds in percent, with two places.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last five minutes.
    pub avg300: f64,
    /// Microseconds since the machine booted, or the cgroup was made.
    pub total: u64,
}

/// The files, and how `enum psi_states` (include/linux/psi_types.h) spells them.
const RESOURCES: [(&str, &str); 4] =
    [("cpu", "CPU"), ("memory", "MEM"), ("io", "IO"), ("irq", "IRQ")];

/// Bits behind the point of an average (`FSHIFT`, include/linux/sched/loadavg.h).
const FSHIFT: u32 = 11;

fn what_of(cgroup: Option<&str>) -> String {
    cgroup.map_or("the pressure of the system".to_owned(), |path| {
        format!("the pressure of cgroup {path}")
    })
}

impl Snapshot {
    /// The cgroups of which there is pressure, by path; the root's is the system's.
    ///
    /// # Errors
    /// As [`Snapshot::psi`].
    pub fn psi_cgroups(&self) -> SnapshotResult<Vec<&str>> {
        Ok(self.psi_state()?.groups.iter().filter_map(|group| group.cgroup.as_deref()).collect())
    }

    fn psi_state(&self) -> SnapshotResult<&PsiState> {
        let what = "the pressure of the system";
        let state = self.sched_state()?.psi.as_ref();
        let state = state.ok_or_else(|| {
            unreadable(what, "the file was saved by an older cryoscope, which kept none")
        })?;
        match &state.off {
            Some(why) => Err(unreadable(what, why)),
            None => Ok(state),
        }
    }

    /// What `/proc/pressure/` says, of a cgroup its `cpu.pressure` and the like: of each resource
    /// that the kernel accounts for. The kernel sums up every two seconds while there is any
    /// pressure, and when somebody reads such a file; here is what it had summed up by then.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when the kernel does not account for pressure, with
    /// what makes it; [`SnapshotError::NoMatch`] with the nearest paths when there is no such
    /// cgroup.
    pub fn psi(self: &Arc<Self>, cgroup: Option<&str>) -> SnapshotResult<Vec<Pressure>> {
        let state = self.psi_state()?;
        let cgroup = cgroup.map(|path| path.trim_end_matches('/')).filter(|path| !path.is_empty());
        let Some(group) = state.groups.iter().find(|group| group.cgroup.as_deref() == cgroup)
        else {
            if let Some(why) = state.cgroups_off.as_ref().or(state.incomplete.as_ref()) {
                return Err(unreadable(what_of(cgroup), why));
            }
            let paths: Vec<String> = self.psi_cgroups()?.into_iter().map(str::to_owned).collect();
            let asked = cgroup.unwrap_or("/");
            return Err(SnapshotError::NoMatch {
                map: "cgroups".to_owned(),
                op: format!("psi({asked:?})"),
                len: paths.len(),
                available_keys: nearest_first(asked, paths).into_iter().take(3).collect(),
            });
        };
        self.psi_of(state, group)
    }

    /// Each group's cgroup and pressure, the system's first.
    pub(crate) fn all_psi(
        self: &Arc<Self>,
    ) -> SnapshotResult<impl Iterator<Item = (Option<&str>, SnapshotResult<Vec<Pressure>>)>> {
        let state = self.psi_state()?;
        let groups = state.groups.iter();
        Ok(groups.map(move |group| (group.cgroup.as_deref(), self.psi_of(state, group))))
    }

    fn psi_of(
        self: &Arc<Self>,
        state: &PsiState,
        group: &PsiGroup,
    ) -> SnapshotResult<Vec<Pressure>> {
        let cgroup = group.cgroup.as_deref();
        let what = what_of(cgroup);
        if let Some(why) = &group.incomplete {
            return Err(unreadable(what, why));
        }
        let whole = Place::of_type(self, what.clone(), group.at, "struct psi_group")?;
        // Of the system it is always on; other groups can do without since 34f26a15611a
        // ("sched/psi: Per-cgroup PSI accounting disable/re-enable interface").
        let enabled = whole.get("enabled").and_then(|enabled| enabled.as_bool());
        if cgroup.is_some() && enabled == Ok(false) {
            let why = "the cgroup's accounting was turned off: write 1 to its cgroup.pressure";
            return Err(unreadable(what, why));
        }
        let states = self.psi_states(&what)?;
        let place = |resource: &str, share: &str| {
            let name = format!("PSI_{resource}_{share}");
            states.iter().find(|(state, _)| *state == name).map(|(_, place)| *place)
        };
        let mut out = Vec::new();
        for (resource, spelled) in RESOURCES {
            let (some, full) = (place(spelled, "SOME"), place(spelled, "FULL"));
            if some.is_none() && full.is_none() || resource == "irq" && !state.irq {
                continue;
            }
            let read = |place: Option<i128>| place.map(|i| stall(&whole, i)).transpose();
            let mut one = Pressure { resource, some: read(some)?, full: read(full)? };
            // On the whole system something always runs; the kernel's file shows zeros.
            if cgroup.is_none() && resource == "cpu" {
                one.full = one.full.map(|_| Stall::default());
            }
            out.push(one);
        }
        Ok(out)
    }

    /// Names and numbers of `enum psi_states`.
    fn psi_states(&self, what: &str) -> SnapshotResult<Vec<(String, i128)>> {
        let btf = self.kernel_state()?.types()?;
        let shape = btf.find_c("enum psi_states").and_then(|id| btf.shape(id).ok());
        match shape.as_deref() {
            Some(Shape::Enum(states)) => Ok(states.variants.to_vec()),
            _ => Err(unreadable(what, "the kernel's types have no \"enum psi_states\"")),
        }
    }
}

/// One line: `total` is of the aggregator for averages (`PSI_AVGS`), in nanoseconds.
fn stall(group: &Field, place: i128) -> SnapshotResult<Stall> {
    // What C has as `avg[6][3]`, types may have as one array of 18.
    let cell = |name: &str, row: i128, column: i128, columns: i128| {
        let nested = group.get(&format!("{name}[{row}][{column}]"));
        let flat = || group.get(&format!("{name}[{}]", row * columns + column));
        nested.or_else(|e| if e.kind() == "NotAStruct" { flat() } else { Err(e) })?.as_u64()
    };
    let percent = |window: i128| {
        let fixed = cell("avg", place, window, 3)?;
        // As `LOAD_INT` and `LOAD_FRAC` cut it.
        let (whole, rest) = (fixed >> FSHIFT, fixed & ((1 << FSHIFT) - 1));
        Ok((whole * 100 + ((rest * 100) >> FSHIFT)) as f64 / 100.0)
    };
    Ok(Stall {
        avg10: percent(0)?,
        avg60: percent(1)?,
        avg300: percent(2)?,
        total: cell("total", 0, place, 0)? / 1000,
    })
}
