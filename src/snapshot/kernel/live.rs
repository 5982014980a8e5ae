//! The attached schedulers as a tree, which of them are live, and their variables.
//!
//! A scheduler is live while it is linked, its `exit_kind` is none and sched_ext is enabled: the
//! kernel's `scx_root` alone is set earlier and stays for longer. What belongs to a scheduler was
//! found out while the machine stood still, by addresses.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::Snapshot;
use super::super::access::Field;
use super::super::error::{ExcludedMap, SnapshotError, SnapshotResult};
use super::super::map::Map;
use super::{OwnState, SchedState, ScxState, unreadable};
use crate::snapshot::Sched;
use crate::words::nearest_first;

/// Names of struct_ops maps that an explanation lists.
const LISTED: usize = 4;

impl ScxState {
    /// The place of the scheduler that `scx_root` points to.
    pub(super) fn root(&self) -> Option<usize> {
        let is_root = |(place, sched): (usize, &SchedState)| {
            // Files of an older cryoscope do not say.
            sched.root || (place == 0 && sched.owns.is_none())
        };
        self.scheds.iter().enumerate().position(is_root)
    }

    /// Places in the order of the tree: each scheduler, then those below it.
    fn in_order(&self) -> Vec<usize> {
        let known = |at: u64| self.scheds.iter().any(|sched| sched.at == at);
        let tops = (0..self.scheds.len()).filter(|place| {
            let parent = self.scheds[*place].parent;
            parent.is_none_or(|parent| !known(parent))
        });
        let mut todo: Vec<usize> = tops.collect();
        todo.reverse();
        let mut out = Vec::new();
        while let Some(place) = todo.pop() {
            out.push(place);
            let at = self.scheds[place].at;
            let below = (0..self.scheds.len()).filter(|i| self.scheds[*i].parent == Some(at));
            todo.extend(below.rev().filter(|i| !out.contains(i)));
        }
        // Parents that run in a circle have no top.
        out.extend((0..self.scheds.len()).filter(|i| !out.contains(i)).collect::<Vec<_>>());
        out
    }
}

impl Snapshot {
    /// Every attached scheduler, those that come or go just then among them: the root, and below
    /// each scheduler those of its cgroup's descendants.
    ///
    /// # Errors
    /// As [`Snapshot::dsqs`]; [`SnapshotError::MapRenderIncomplete`] when not all could be read.
    pub fn scheds(self: &Arc<Self>) -> SnapshotResult<Vec<Sched>> {
        let scx = self.scx_state()?;
        if let Some(why) = &scx.scheds_incomplete {
            return Err(unreadable("the list of schedulers", why));
        }
        Ok(scx.in_order().into_iter().map(|place| Sched::new(self.clone(), place)).collect())
    }

    /// The scheduler that was attached to the cgroup of that path: `/` for the root.
    ///
    /// # Errors
    /// As [`Snapshot::scheds`]; [`SnapshotError::NoActiveScheduler`] when there is none at all;
    /// [`SnapshotError::NoMatch`] with the cgroups that have one.
    pub fn sched_of(self: &Arc<Self>, path: &str) -> SnapshotResult<Sched> {
        let all = self.scheds()?;
        if all.is_empty() {
            return Err(self.none_attached()?);
        }
        let wanted = if path == "/" { path } else { path.trim_end_matches('/') };
        if let Some(sched) = all.iter().find(|sched| sched.path() == Ok(wanted)) {
            return Ok(sched.clone());
        }
        let paths = all.iter().filter_map(|sched| sched.path().ok().map(str::to_owned)).collect();
        Err(SnapshotError::NoMatch {
            map: "scheds".to_owned(),
            op: format!("sched({path:?})"),
            len: all.len(),
            available_keys: nearest_first(wanted, paths).into_iter().take(3).collect(),
        })
    }

    /// The root scheduler, if it is live.
    ///
    /// # Errors
    /// As [`Snapshot::dsqs`]; [`SnapshotError::NoActiveScheduler`] with the reason.
    pub fn active(self: &Arc<Self>) -> SnapshotResult<Sched> {
        let root = self.sched()?;
        match root.not_live()? {
            None => Ok(root),
            Some(reason) => Err(SnapshotError::NoActiveScheduler { reason }),
        }
    }

    /// Every live scheduler.
    ///
    /// # Errors
    /// As [`Snapshot::scheds`]; [`SnapshotError::NoActiveScheduler`] when there is none.
    fn live(self: &Arc<Self>) -> SnapshotResult<Vec<Sched>> {
        let mut live = Vec::new();
        for sched in self.scheds()? {
            if sched.not_live()?.is_none() {
                live.push(sched);
            }
        }
        // Without a live root there is none: why is told by the root.
        if live.is_empty() { self.active().map(|root| vec![root]) } else { Ok(live) }
    }

    /// Why there is no scheduler.
    pub(super) fn none_attached(self: &Arc<Self>) -> SnapshotResult<SnapshotError> {
        let scx = self.scx_state()?;
        if let Some(why) = &scx.scheds_incomplete {
            return Ok(unreadable("the scheduler", why));
        }
        let state = scx.state.as_deref().unwrap_or("in an unknown state");
        let mut reason =
            format!("none was attached when the machine was frozen (sched_ext was {state})");
        match scx.enabled_before {
            Some(0) => reason.push_str("; none has been enabled since the machine booted"),
            Some(1) => reason.push_str("; one had been enabled before, and was gone"),
            Some(n) => reason.push_str(&format!("; {n} had been enabled before, and were gone")),
            None => {}
        }
        let maps = self.maps()?;
        let ops: Vec<&str> =
            maps.iter().filter(|m| m.attrs().kind == "struct_ops").map(Map::name).collect();
        if !ops.is_empty() {
            let more = if ops.len() > LISTED { ", .." } else { "" };
            let names = ops[..ops.len().min(LISTED)].join(", ");
            reason.push_str(&format!("; loaded, but not attached: {names}{more}"));
        }
        Ok(SnapshotError::NoActiveScheduler { reason })
    }

    /// The global variable of that name in the live scheduler's `.bss`, `.data` or `.rodata`, in
    /// whichever live scheduler has it. A path below it may follow: `stats.nr[2]`.
    ///
    /// # Errors
    /// [`SnapshotError::NoActiveScheduler`] when none is live; [`SnapshotError::AmbiguousVar`] with
    /// the cgroups' paths when several live schedulers have it; [`SnapshotError::VarNotFound`] with
    /// the live ones' variables; [`SnapshotError::ActiveFilterExcludedMaps`] when none of the
    /// captured maps is a live scheduler's; those of [`Field::get`].
    pub fn live_global(self: &Arc<Self>, name: &str) -> SnapshotResult<Field> {
        self.global_of(&self.live()?, name)
    }

    /// Several of them, with their names.
    ///
    /// # Errors
    /// As [`Snapshot::live_global`].
    pub fn live_globals<S: AsRef<str>>(
        self: &Arc<Self>,
        names: &[S],
    ) -> SnapshotResult<Vec<(String, Field)>> {
        let live = self.live()?;
        let read = |name: &S| {
            let name = name.as_ref();
            Ok((name.to_owned(), self.global_of(&live, name)?))
        };
        names.iter().map(read).collect()
    }

    /// A variable of some schedulers.
    pub(super) fn global_of(
        self: &Arc<Self>,
        scheds: &[Sched],
        name: &str,
    ) -> SnapshotResult<Field> {
        let with = self.sections_with(name)?;
        let mut found: Vec<(&Sched, &Map)> = Vec::new();
        for sched in scheds {
            let owns = sched.owns()?;
            let fresh = |map: &&Map| !found.iter().any(|(_, known)| known.index() == map.index());
            let own: Vec<&Map> = with.iter().filter(|map| owns.has(map)).filter(fresh).collect();
            found.extend(own.into_iter().map(|map| (sched, map)));
        }
        match found[..] {
            [(_, section)] => section.at(0)?.get(name),
            [] => Err(self.not_of(scheds, name, &with)?),
            [(first, _), ..] => {
                let several = found.iter().any(|(sched, _)| sched.place() != first.place());
                let mut found_in = Vec::new();
                for (sched, map) in &found {
                    let place = match several {
                        true => sched.path()?.to_owned(),
                        false => map.spelled(&with),
                    };
                    if !found_in.contains(&place) {
                        found_in.push(place);
                    }
                }
                Err(SnapshotError::AmbiguousVar { requested: name.to_owned(), found_in })
            }
        }
    }

    /// Why no section of these schedulers has a variable.
    fn not_of(
        self: &Arc<Self>,
        scheds: &[Sched],
        name: &str,
        with: &[Map],
    ) -> SnapshotResult<SnapshotError> {
        let mut live: BTreeSet<u64> = BTreeSet::new();
        for sched in scheds {
            let owns = sched.owns()?;
            if let Some(why) = &owns.incomplete {
                return Ok(unreadable("the scheduler", format!("which maps are its own: {why}")));
            }
            live.extend(owns.maps.iter().map(|(_, kva)| *kva));
        }
        let all = self.maps()?;
        let own: Vec<&Map> = all.iter().filter(|map| live.contains(&map.attrs().kva)).collect();
        if !own.is_empty() || live.is_empty() {
            return self.var_not_found_in(name, &own);
        }
        // Those that the author may have meant, else all that hold variables.
        let sections: Vec<Map> = match with {
            [] => all.iter().filter(|map| map.is_section()).cloned().collect(),
            with => with.to_vec(),
        };
        if sections.is_empty() {
            return self.var_not_found_in(name, &[]);
        }
        let ops = scheds.first().and_then(|sched| sched.ops().ok()?.as_str().ok());
        let excluded =
            |map: &Map| ExcludedMap { name: map.name().to_owned(), map_kva: map.attrs().kva };
        Ok(SnapshotError::ActiveFilterExcludedMaps {
            requested: name.to_owned(),
            active_obj: ops.unwrap_or_default(),
            excluded_maps: sections.iter().map(excluded).collect(),
            whitelist_kvas: live.into_iter().collect(),
        })
    }

    /// Of sections with the same variable, the one that is a live scheduler's, if it is the only
    /// one. Where it cannot be told which are live, none is.
    pub(crate) fn only_live<'a>(self: &Arc<Self>, sections: &'a [Map]) -> Option<&'a Map> {
        let live = self.live().ok()?;
        let owns: Vec<&OwnState> = live.iter().filter_map(|sched| sched.owns().ok()).collect();
        let mut of_live = sections.iter().filter(|map| owns.iter().any(|owns| owns.has(map)));
        let found = of_live.next();
        found.filter(|_| of_live.next().is_none())
    }

    /// Addresses of the maps that are the live schedulers' own, in ascending order.
    ///
    /// # Errors
    /// As [`Snapshot::live_global`], when none is live or it cannot be told which maps are theirs.
    pub fn live_addresses(self: &Arc<Self>) -> SnapshotResult<Vec<u64>> {
        let mut out = BTreeSet::new();
        for sched in self.live()? {
            out.extend(sched.owns()?.maps.iter().map(|(_, kva)| *kva));
        }
        Ok(out.into_iter().collect())
    }

    /// Whether each captured map is a live scheduler's, in their order; nothing where it cannot be
    /// told.
    #[must_use]
    pub fn live_maps(self: &Arc<Self>) -> Vec<bool> {
        let (Ok(live), Ok(maps)) = (self.live(), self.maps()) else { return Vec::new() };
        let owns: Vec<&OwnState> = live.iter().filter_map(|sched| sched.owns().ok()).collect();
        let is_live = |map: &Map| {
            let ops = owns.iter().any(|owns| owns.ops_map == Some(map.attrs().id));
            ops || owns.iter().any(|owns| owns.has(map))
        };
        maps.iter().map(is_live).collect()
    }
}

impl OwnState {
    /// Whether a map is among them, by its address.
    pub(super) fn has(&self, map: &Map) -> bool {
        let kva = map.attrs().kva;
        kva != 0 && self.maps.iter().any(|(_, own)| *own == kva)
    }
}
