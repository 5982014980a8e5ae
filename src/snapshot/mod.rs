//! What was copied at a freeze, read by name.
//!
//! ```text
//! Snapshot ──map(name)──▶ Map ──at(i), get(key)──▶ Entry ──get(path)──▶ Field ──as_u64()──▶ value
//!     ├──global(name)───────────────────────────────────────────────────▲
//!     └──task(tid), cpu(n), dsq(name), sched(), kernel(symbol)──────────┘
//! ```
//!
//! All of these are cheap handles on one [`Snapshot`]. Nothing is decoded before somebody looks:
//! a map's bytes become rows at the first access (`contents.rs`), a field becomes a value on every
//! read (`value.rs`), by the BTF types that came with the map. What cannot be answered is one
//! variant of [`SnapshotError`].

mod access;
mod bloom;
mod capture;
mod contents;
mod decoded;
mod diff;
mod dump;
mod edit;
mod entry;
mod error;
mod error_text;
mod json;
mod kernel;
mod key;
mod map;
mod monitor;
mod path;
mod points;
mod probe;
mod ram;
mod reason;
mod stats;
mod store;
mod symbols;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;
mod touched;
mod trigger;
mod value;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::btf::{SecVar, Shape};
use crate::words::nearest_first;

pub use access::{Field, Origin, Side};
pub use capture::{CaptureError, CaptureRequest, Capturer, RawCapture};
pub use contents::{CapturedMap, Cast, Contents, Decode, Detail, Details, MapAttrs};
pub use diff::{Change, Diff, Value};
pub use edit::Place;
pub use entry::{Entry, Reduce};
pub(crate) use error::DELTA;
pub use error::{ExcludedMap, SnapshotError, SnapshotResult};
pub use json::to_json;
pub use kernel::{
    Cpu, CpuRegisters, CpuState, Domain, DomainGroup, DomainState, DomainStates, Dsq, DsqState,
    Exit, Extents, Frame, KernelState, Module, ModuleState, OwnState, PerCpu, Places, Pressure,
    Prog, ProgState, PsiGroup, PsiState, Sched, SchedState, ScxState, Stack, StackEnd, Stall, Task,
    TaskState, Variable,
};
pub use key::KeyArg;
pub use map::Map;
#[cfg(test)]
pub(crate) use monitor::tests as monitor_tests;
pub use monitor::{CpuReading, Observation, Reading, SchedReading};
pub use points::{ExitTrap, Leaving, WatchPlace, WatchTarget};
pub use probe::{Pick, Probe, Slot, Target, counters};
pub use ram::{MAX_RAM, Ram};
pub use reason::MissingStatsReason;
pub use store::{Shelf, Shelved, StoreError, is_bundle, open_all, save_all};
pub use symbols::Symbols;
pub use touched::Touched;
pub use trigger::Trigger;
pub use value::{EnumValue, FieldKind, Scalar};

/// How long the machine was stopped for a freeze, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pause {
    /// From the request to stop until the last vCPU runs again.
    pub total_us: u64,
    /// Until all vCPUs had stopped.
    pub stop_us: u64,
    /// Our copying.
    pub copy_us: u64,
    /// Until the vCPUs ran again.
    pub resume_us: u64,
    /// How much of it the guest's own clocks do not show, if the engine hides any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_us: Option<u64>,
    /// How long after the first vCPU the last one stopped, if the engine knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew_us: Option<u64>,
}

/// When and how a snapshot was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Meta {
    /// The author's name for it.
    pub tag: String,
    /// Workload time: since the scheduler was attached, pauses taken out.
    pub elapsed_ms: u64,
    /// The same in microseconds; 0 in files that do not say. [`Meta::elapsed`] is either.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub elapsed_us: u64,
    /// How long the machine was stopped.
    pub pause: Pause,
    /// The step of the scenario that it falls in.
    pub phase: Option<String>,
    /// Which step that is, from 1, since names may come again; 0 before the first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub step_index: u64,
    /// Bytes that were copied.
    pub bytes: u64,
    /// Of a snapshot taken because a predicate turned true: how long after the machine was read
    /// for it all vCPUs stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overshoot_us: Option<u64>,
    /// Why it was taken.
    #[serde(default, skip_serializing_if = "Trigger::is_demand")]
    pub trigger: Trigger,
    /// What the scheduler's statistics said just before, or why there are none; nothing where
    /// nobody asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Box<Result<serde_json::Value, MissingStatsReason>>>,
    /// What the monitor had seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Box<Observation>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Meta {
    /// Workload time, as exactly as it is known.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match self.elapsed_us {
            0 => Duration::from_millis(self.elapsed_ms),
            us => Duration::from_micros(us),
        }
    }

    /// Sets the workload time.
    #[must_use]
    pub fn at(mut self, elapsed: Duration) -> Meta {
        self.elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.elapsed_ms = self.elapsed_us / 1000;
        self
    }
}

/// One instant of a machine.
pub struct Snapshot {
    meta: Meta,
    contents: State,
    /// Whether somebody looked at CPUs, tasks and the like.
    sched_touched: AtomicBool,
}

enum State {
    Captured {
        maps: Vec<CapturedMap>,
        /// Why the lists of maps or tasks may be half-changed.
        torn: Vec<String>,
        /// What was copied of the kernel itself.
        kernel: Option<Box<kernel::Held>>,
    },
    /// The freeze did not complete, and why.
    Placeholder(String),
}

impl Snapshot {
    /// A snapshot of captured maps. `torn` says why there may be too few or too many of them, or
    /// of tasks.
    #[must_use]
    pub fn new(meta: Meta, maps: Vec<CapturedMap>, torn: Vec<String>) -> Arc<Snapshot> {
        Snapshot::of(meta, State::Captured { maps, torn, kernel: None })
    }

    /// As [`Snapshot::new`], with what was copied of the kernel itself.
    #[must_use]
    pub fn with_kernel(
        meta: Meta,
        maps: Vec<CapturedMap>,
        torn: Vec<String>,
        kernel: KernelState,
    ) -> Arc<Snapshot> {
        let kernel = Some(Box::new(kernel::Held::new(kernel)));
        Snapshot::of(meta, State::Captured { maps, torn, kernel })
    }

    /// What stands for a snapshot whose freeze did not complete: it has a tag and a time, and
    /// every accessor answers [`SnapshotError::PlaceholderSnapshot`].
    #[must_use]
    pub fn placeholder(meta: Meta, reason: impl Into<String>) -> Arc<Snapshot> {
        Snapshot::of(meta, State::Placeholder(reason.into()))
    }

    fn of(meta: Meta, contents: State) -> Arc<Snapshot> {
        Arc::new(Snapshot { meta, contents, sched_touched: AtomicBool::new(false) })
    }

    /// The author's name for it.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.meta.tag
    }

    /// Workload time in milliseconds.
    #[must_use]
    pub fn elapsed_ms(&self) -> u64 {
        self.meta.elapsed_ms
    }

    /// Which snapshot this is, as the end of a sentence about something in it:
    /// `of snapshot "end" at 4.012 s`.
    #[must_use]
    pub fn instant(&self) -> String {
        access::instant(self.tag(), self.elapsed_ms())
    }

    /// How long the machine was stopped.
    #[must_use]
    pub fn pause(&self) -> Pause {
        self.meta.pause
    }

    /// Of a snapshot taken because a predicate turned true: microseconds from the reading that
    /// made it true until all vCPUs stood.
    #[must_use]
    pub fn overshoot_us(&self) -> Option<u64> {
        self.meta.overshoot_us
    }

    /// Of a periodic sample: when its time came, on the workload clock in milliseconds.
    #[must_use]
    pub fn boundary_offset_ms(&self) -> Option<u64> {
        match self.meta.trigger {
            Trigger::Periodic { boundary_offset_ms } => Some(boundary_offset_ms),
            _ => None,
        }
    }

    /// When and how it was taken.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Why it was taken.
    #[must_use]
    pub fn trigger(&self) -> &Trigger {
        &self.meta.trigger
    }

    /// The step of the scenario that it falls in.
    #[must_use]
    pub fn phase(&self) -> Option<&str> {
        self.meta.phase.as_deref()
    }

    /// Bytes that were copied, and are held as long as this is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.meta.bytes
    }

    /// Whether the freeze did not complete.
    #[must_use]
    pub fn is_placeholder(&self) -> bool {
        self.placeholder_reason().is_some()
    }

    /// Why the freeze did not complete, if so.
    #[must_use]
    pub fn placeholder_reason(&self) -> Option<&str> {
        match &self.contents {
            State::Placeholder(reason) => Some(reason),
            State::Captured { .. } => None,
        }
    }

    /// Why the lists of maps or tasks may be half-changed: one was just being added or removed.
    /// Maps, entries, CPUs and dispatch queues have reasons of their own.
    #[must_use]
    pub fn torn(&self) -> &[String] {
        match &self.contents {
            State::Captured { torn, .. } => torn,
            State::Placeholder(_) => &[],
        }
    }

    /// The captured maps, those whose contents could not be read among them.
    ///
    /// # Errors
    /// [`SnapshotError::PlaceholderSnapshot`].
    pub fn maps(self: &Arc<Self>) -> SnapshotResult<Vec<Map>> {
        let len = self.all()?.len();
        Ok((0..len).map(|index| Map::new(self.clone(), index)).collect())
    }

    /// The map of that name: its full name, or the one that the kernel cut at 15 characters, or
    /// either followed by `#` and the kernel's id where one name stands for several maps.
    ///
    /// # Errors
    /// [`SnapshotError::MapNotFound`]; [`SnapshotError::AmbiguousVar`] when several maps have the
    /// name, with the spellings that tell them apart; [`SnapshotError::PlaceholderSnapshot`].
    pub fn map(self: &Arc<Self>, name: &str) -> SnapshotResult<Map> {
        let maps = self.maps()?;
        let (wanted, id) = match name.rsplit_once('#') {
            Some((wanted, id)) => (wanted, id.parse::<u32>().ok()),
            None => (name, None),
        };
        let named = |wanted: &str, id: Option<u32>| -> Vec<&Map> {
            let of_id = maps.iter().filter(|map| id.is_none_or(|id| map.attrs().id == id));
            let full: Vec<&Map> = of_id.clone().filter(|map| map.name() == wanted).collect();
            if full.is_empty() {
                of_id.filter(|map| map.attrs().name == wanted).collect()
            } else {
                full
            }
        };
        // A name may have a `#` in it.
        let mut found = named(name, None);
        if found.is_empty() && id.is_some() {
            found = named(wanted, id);
        }
        match found[..] {
            [map] => Ok(map.clone()),
            [] => {
                let names = maps.iter().map(|map| map.name().to_owned()).collect();
                let available = nearest_first(name, names);
                Err(SnapshotError::MapNotFound { requested: name.to_owned(), available })
            }
            _ => Err(SnapshotError::AmbiguousVar {
                requested: name.to_owned(),
                found_in: found.iter().map(|m| format!("{name}#{}", m.attrs().id)).collect(),
            }),
        }
    }

    /// The global variable of that name, in the `.bss`, `.data` or `.rodata` of the schedulers and
    /// other BPF objects that were captured; of several that have it, the live scheduler's. A path
    /// below it may follow: `stats.nr[2]`.
    ///
    /// # Errors
    /// [`SnapshotError::VarNotFound`]; [`SnapshotError::AmbiguousVar`] when several objects have
    /// it, and none or several of them are live; [`SnapshotError::PlaceholderSnapshot`]; those of
    /// [`Field::get`].
    pub fn global(self: &Arc<Self>, name: &str) -> SnapshotResult<Field> {
        let found = self.sections_with(name)?;
        match &found[..] {
            [] => Err(self.var_not_found(name)?),
            [section] => section.at(0)?.get(name),
            several => match self.only_live(several) {
                Some(section) => section.at(0)?.get(name),
                None => {
                    let found_in = several.iter().map(|map| map.spelled(several)).collect();
                    Err(SnapshotError::AmbiguousVar { requested: name.to_owned(), found_in })
                }
            },
        }
    }

    /// The global variable of that name in every object that has it.
    ///
    /// # Errors
    /// As [`Snapshot::global`], other than that it is ambiguous.
    pub fn globals(self: &Arc<Self>, name: &str) -> SnapshotResult<Vec<Field>> {
        let found = self.sections_with(name)?;
        if found.is_empty() {
            return Err(self.var_not_found(name)?);
        }
        found.iter().map(|section| section.at(0)?.get(name)).collect()
    }

    /// The sections that have a variable.
    fn sections_with(self: &Arc<Self>, name: &str) -> SnapshotResult<Vec<Map>> {
        if name.is_empty() {
            return Err(SnapshotError::EmptyPathComponent { requested: String::new() });
        }
        let has = |index: &usize| {
            let section = self.section(*index);
            section.is_some_and(|shape| path::section_var(&shape, name).is_some())
        };
        let with = (0..self.all()?.len()).filter(has);
        Ok(with.map(|index| Map::new(self.clone(), index)).collect())
    }

    fn var_not_found(self: &Arc<Self>, name: &str) -> SnapshotResult<SnapshotError> {
        let maps = self.maps()?;
        self.var_not_found_in(name, &maps.iter().collect::<Vec<_>>())
    }

    /// The error that none of `maps` has a variable.
    fn var_not_found_in(&self, name: &str, maps: &[&Map]) -> SnapshotResult<SnapshotError> {
        // A section without its types may have it.
        let untyped =
            |map: &&&Map| map.attrs().section.is_some() && map.attrs().btf_error.is_some();
        if let Some(section) = maps.iter().find(untyped) {
            return Ok(section.no_rendered("value"));
        }
        let mut names: Vec<String> = maps
            .iter()
            .filter_map(|map| self.section(map.index()))
            .flat_map(|shape| vars(&shape).iter().map(|v| v.name.clone()).collect::<Vec<_>>())
            .filter(|name| !name.is_empty())
            .collect();
        names.sort();
        names.dedup();
        let var = name.split(['.', '[']).next().unwrap_or(name);
        let available = nearest_first(var, names);
        Ok(SnapshotError::VarNotFound { requested: name.to_owned(), available })
    }

    fn all(&self) -> SnapshotResult<&[CapturedMap]> {
        match &self.contents {
            State::Captured { maps, .. } => Ok(maps),
            State::Placeholder(_) => {
                Err(SnapshotError::PlaceholderSnapshot { tag: Some(self.meta.tag.clone()) })
            }
        }
    }

    fn copied_kernel(&self) -> SnapshotResult<Option<&kernel::Held>> {
        self.all()?;
        match &self.contents {
            State::Captured { kernel, .. } => Ok(kernel.as_deref()),
            State::Placeholder(_) => Ok(None),
        }
    }

    /// A map by its place. Handles exist only for maps that there are.
    pub(crate) fn captured(&self, index: usize) -> &CapturedMap {
        match &self.contents {
            State::Captured { maps, .. } => &maps[index],
            State::Placeholder(_) => unreachable!("a placeholder hands out no maps"),
        }
    }

    /// The section of variables that a map is, if it is one.
    pub(crate) fn section(&self, index: usize) -> Option<Arc<Shape>> {
        let attrs = &self.captured(index).attrs;
        // Only arrays are; other maps' types are not looked into, which may be a kernel's.
        if attrs.kind != "array" {
            return None;
        }
        let shape = attrs.btf.as_ref()?.shape(attrs.value_type).ok()?;
        matches!(&*shape, Shape::Datasec { .. }).then_some(shape)
    }
}

fn vars(shape: &Shape) -> &[SecVar] {
    match shape {
        Shape::Datasec { vars, .. } => vars,
        _ => &[],
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let maps = match &self.contents {
            State::Captured { maps, .. } => format!("{} maps", maps.len()),
            State::Placeholder(reason) => format!("placeholder: {reason}"),
        };
        write!(f, "Snapshot({:?}, {maps})", self.meta.tag)
    }
}
