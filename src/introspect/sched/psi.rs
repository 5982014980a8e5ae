//! Pressure stall information: of the system, and of each cgroup (kernel/sched/psi.c).
//!
//! ```text
//! psi_system ───────────────────────────────────────────────▶ struct psi_group
//! cgrp_dfl_root.cgrp ──self.children──▶ struct cgroup ──psi──▶ struct psi_group
//! ```

use std::collections::HashSet;

use super::Copy;
use super::layout::{CgroupNode, Found, Struct};
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Cgroups that are looked at.
const MAX_CGROUPS: usize = 4096;
/// `CSS_ONLINE` (include/linux/cgroup-defs.h): a cgroup whose directory is gone lacks it.
const ONLINE: u32 = 1 << 1;

/// The pressure of the system or of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PsiAt {
    /// The cgroup, from the root: `/lab/hot`; `None` for the system.
    pub cgroup: Option<String>,
    /// Where its `struct psi_group` lies.
    pub at: u64,
    /// Why it was not copied.
    pub incomplete: Option<String>,
}

/// All pressure there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Psi {
    /// Why the kernel does not account for pressure at all.
    pub off: Option<String>,
    /// Why it does not for cgroups.
    pub cgroups_off: Option<String>,
    /// Whether it accounts for the time that interrupts take.
    pub irq: bool,
    /// The system's first.
    pub groups: Vec<PsiAt>,
    /// Why cgroups may be missing.
    pub incomplete: Option<String>,
}

/// `struct psi_group` (include/linux/psi_types.h), and what leads from cgroup to cgroup.
pub(super) struct PsiLayout {
    size: u64,
    /// From the hierarchy's root to its `struct cgroup`, and the members of that.
    cgroups: Found<CgroupTree>,
}

struct CgroupTree {
    /// In `struct cgroup_root`.
    cgrp: u64,
    children: u64,
    sibling: u64,
    flags: u64,
    psi: u64,
    /// The group lies in the cgroup itself, as before 34f26a15611a ("sched/psi: Per-cgroup PSI
    /// accounting disable/re-enable interface") and its neighbours made it a pointer.
    embedded: bool,
    node: CgroupNode,
}

impl PsiLayout {
    pub(super) fn new(kernel: &Kernel) -> Found<Self> {
        Ok(PsiLayout {
            size: Struct::new(kernel, "struct psi_group")?.size,
            cgroups: CgroupTree::new(kernel),
        })
    }
}

impl CgroupTree {
    fn new(kernel: &Kernel) -> Found<Self> {
        let cgroup = Struct::new(kernel, "struct cgroup")?;
        let node = Struct::new(kernel, "struct kernfs_node")?;
        Ok(CgroupTree {
            cgrp: Struct::new(kernel, "struct cgroup_root")?.at("cgrp")?,
            children: cgroup.at("self.children")?,
            sibling: cgroup.at("self.sibling")?,
            flags: cgroup.at("self.flags")?,
            psi: cgroup.at("psi")?,
            embedded: cgroup.maybe("psi.avg").is_some(),
            node: CgroupNode::new(|path| cgroup.at(path), |path| node.at(path))?,
        })
    }
}

impl Copy<'_> {
    /// Copies each group, the system's first.
    pub(super) fn psi(&mut self) {
        let mut psi = Psi::default();
        let layout = self.layout;
        let system = self.kernel.symbols().get("psi_system");
        match (&layout.psi, system) {
            (Ok(layout), Some(system)) => {
                // Of a kernel without the key nobody can turn it off.
                if self.key("psi_disabled").unwrap_or(false) {
                    psi.off = Some(
                        "the kernel does not account for pressure (PSI is off); boot it with \
                         psi=1 on its command line: the scenario option kargs: [\"psi=1\"]"
                            .to_owned(),
                    );
                } else {
                    psi.irq = self.key("sched_clock_irqtime").unwrap_or(false);
                    self.psi_group(layout, None, system.0, &mut psi);
                    self.psi_of_cgroups(layout, &mut psi);
                }
            }
            (Ok(_), None) | (Err(_), _) => {
                psi.off = Some("this kernel was built without PSI (CONFIG_PSI)".to_owned());
            }
        }
        self.raw.psi = Some(psi);
    }

    fn psi_group(&mut self, layout: &PsiLayout, cgroup: Option<String>, at: u64, psi: &mut Psi) {
        let incomplete = self.piece(at, layout.size).err();
        psi.groups.push(PsiAt { cgroup, at, incomplete });
    }

    /// Those of all cgroups but the root, whose pressure is the system's.
    fn psi_of_cgroups(&mut self, layout: &PsiLayout, psi: &mut Psi) {
        if !self.key("psi_cgroups_enabled").unwrap_or(true) {
            psi.cgroups_off = Some(
                "the kernel accounts for no cgroup's pressure (cgroup_disable=pressure is on its \
                 command line)"
                    .to_owned(),
            );
            return;
        }
        let tree = match (&layout.cgroups, self.kernel.symbols().get("cgrp_dfl_root")) {
            (Ok(tree), Some(root)) => Ok((tree, root)),
            (Err(e), _) => Err(e.to_string()),
            (_, None) => Err("the kernel has no symbol 'cgrp_dfl_root'".to_owned()),
        };
        match tree {
            Ok((tree, root)) => {
                for cgroup in self.cgroups_below(tree, root.offset(tree.cgrp), &mut psi.incomplete)
                {
                    let Some(found) = self.kernel.cgroup_at(&tree.node, cgroup) else {
                        let why = format!("the path of the cgroup at {:#x} is damaged", cgroup.0);
                        psi.incomplete.get_or_insert(why);
                        continue;
                    };
                    let at = cgroup.offset(tree.psi);
                    let group = if tree.embedded { Ok(at.0) } else { self.kernel.read_u64(at) };
                    match group {
                        Ok(at) if at != 0 => self.psi_group(layout, Some(found.path), at, psi),
                        Ok(_) => {}
                        Err(e) => {
                            psi.incomplete.get_or_insert(e.to_string());
                        }
                    }
                }
            }
            Err(why) => psi.incomplete = Some(why),
        }
    }

    /// Every cgroup below one that still has a directory, each before those below it.
    fn cgroups_below(
        &mut self,
        tree: &CgroupTree,
        root: Kva,
        incomplete: &mut Option<String>,
    ) -> Vec<Kva> {
        let (mut out, mut todo, mut seen) = (Vec::new(), vec![root], HashSet::new());
        while let Some(above) = todo.pop() {
            if let Err(why) = self.budget.check_time() {
                incomplete.get_or_insert(why);
                break;
            }
            let walk = self.kernel.list(above.offset(tree.children), MAX_CGROUPS - out.len());
            if let Some(e) = walk.error {
                incomplete.get_or_insert(e.to_string());
            }
            for node in walk.items {
                let cgroup = Kva(node.0.wrapping_sub(tree.sibling));
                let flags = self.kernel.read_u32(cgroup.offset(tree.flags));
                if flags.is_ok_and(|flags| flags & ONLINE != 0) && seen.insert(cgroup.0) {
                    out.push(cgroup);
                    todo.push(cgroup);
                }
            }
        }
        out
    }
}
