//! The attached schedulers: the root, and since 7.1 those of cgroups below it.

use super::Copy;
use super::layout::ScxLayout;
use super::scx::{DsqKind, ScxSched, ScxState};
use crate::mem::Kva;

/// Schedulers that are looked at.
const MAX_SCHEDS: usize = 256;
/// More levels than schedulers can be nested (`SCX_SUB_MAX_DEPTH`).
const MAX_LEVEL: u32 = 64;
/// Bytes of a cgroup's path.
const MAX_PATH: usize = 4096;
/// Bytes of a reason or a message for leaving (`SCX_EXIT_MSG_LEN`).
const MAX_MESSAGE: usize = 1024;

impl Copy<'_> {
    /// Finds and copies all of them.
    pub(super) fn schedulers(&mut self, layout: &ScxLayout, scx: &mut ScxState) {
        let symbols = self.kernel.symbols();
        let root = symbols.get("scx_root").and_then(|at| self.kernel.read_u64(at).ok());
        let root = root.filter(|at| *at != 0);
        let listed = symbols.get("scx_sched_all").zip(layout.all).map(|(head, all)| {
            let walk = self.kernel.list(head, MAX_SCHEDS);
            scx.scheds_incomplete = walk.error.map(|e| e.to_string());
            walk.items.iter().map(|node| node.0.wrapping_sub(all)).collect::<Vec<_>>()
        });
        let others = listed.iter().flatten().copied().filter(|at| Some(*at) != root);
        for (place, at) in root.into_iter().chain(others).enumerate() {
            match self.sched(layout, at, place, &mut scx.incomplete) {
                Ok(mut sched) => {
                    sched.root = Some(at) == root;
                    sched.linked = listed.as_ref().map_or(sched.root, |all| all.contains(&at));
                    scx.scheds.push(sched);
                }
                Err(why) => {
                    scx.scheds_incomplete.get_or_insert(why);
                    break;
                }
            }
        }
    }

    pub(super) fn enable_state(&self, layout: &ScxLayout) -> Option<String> {
        let symbols = ["scx_enable_state_var", "scx_ops_enable_state_var"];
        let at = symbols.iter().find_map(|name| self.kernel.symbols().get(name))?;
        let number = i128::from(self.kernel.read_u32(at).ok()?);
        let known = layout.states.iter().find(|(value, _)| *value == number);
        Some(known.map_or_else(|| format!("state {number}"), |(_, name)| name.clone()))
    }

    /// What `/sys/kernel/sched_ext/enable_seq` says.
    pub(super) fn enabled_before(&self) -> Option<u64> {
        let at = self.kernel.symbols().get("scx_enable_seq")?;
        self.kernel.read_u64(at).ok()
    }

    /// One scheduler, its per-CPU data and its queues; `incomplete` is why there may be more of
    /// those.
    fn sched(
        &mut self,
        layout: &ScxLayout,
        at: u64,
        place: usize,
        incomplete: &mut Option<String>,
    ) -> Result<ScxSched, String> {
        self.piece(at, layout.sched_size)?;
        let word = |this: &Self, within: u64| this.raw.memory.u64(at.wrapping_add(within));
        let path = layout.cgrp_path.and_then(|within| word(self, within)).filter(|p| *p != 0);
        let cgroup = path.and_then(|at| self.kernel.read_cstr(Kva(at), MAX_PATH).ok());
        let parent = self.parent(layout, at);
        let exit = self.exit(layout, at);
        let mut pcpu = Vec::new();
        let base = layout.pcpu.and_then(|within| word(self, within)).filter(|p| *p != 0);
        if let Some(base) = base.filter(|_| layout.pcpu_size > 0) {
            for cpu in 0..self.kernel.nr_cpu_ids() {
                let Some(offset) = self.kernel.per_cpu_offset(cpu) else { continue };
                let at = base.wrapping_add(offset);
                self.piece(at, layout.pcpu_size)?;
                pcpu.push((cpu, at));
                if let Some(within) = layout.pcpu_bypass {
                    let at = at.wrapping_add(within);
                    self.dsq(layout, at, DsqKind::Bypass, Some(cpu), Some(place));
                }
            }
        }
        if let Some(nodes) = layout.nodes.and_then(|within| word(self, within)) {
            self.node_dsqs(layout, nodes, place);
        }
        match self.hashed(layout, at) {
            Ok(dsqs) => {
                for at in dsqs {
                    self.dsq(layout, at, DsqKind::User, None, Some(place));
                }
            }
            Err(why) => {
                incomplete.get_or_insert(why);
            }
        }
        let (root, linked) = (false, false);
        Ok(ScxSched { at, root, linked, cgroup, parent, exit, pcpu })
    }

    /// The scheduler above it: the last but one of its ancestors, which end with itself.
    fn parent(&self, layout: &ScxLayout, at: u64) -> Option<u64> {
        let (level, ancestors) = layout.ancestors?;
        let level = self.raw.memory.u32(at.wrapping_add(level))?;
        if !(1..=MAX_LEVEL).contains(&level) {
            return None;
        }
        let above = at.wrapping_add(ancestors).wrapping_add(u64::from(level - 1) * 8);
        self.kernel.read_u64(Kva(above)).ok()
    }

    /// Copies its `struct scx_exit_info`, and reads the texts there.
    fn exit(&mut self, layout: &ScxLayout, at: u64) -> Option<(String, String)> {
        let exit = layout.exit.as_ref()?;
        let info = self.raw.memory.u64(at.wrapping_add(exit.info)).filter(|info| *info != 0)?;
        self.piece(info, exit.size).ok()?;
        let text = |within: u64| {
            let at = self.raw.memory.u64(info.wrapping_add(within)).filter(|at| *at != 0);
            let text = at.and_then(|at| self.kernel.read_cstr(Kva(at), MAX_MESSAGE).ok());
            text.unwrap_or_default()
        };
        Some((text(exit.reason), text(exit.msg)))
    }
}
