//! What a pointer leads to, in a few words.

use super::Field;
use crate::btf::{Shape, Special};
use crate::snapshot::error_text::escaped_text;

/// Characters of an object's members.
const SHORT: usize = 40;

impl Field {
    /// What is at the address in this pointer, where that is worth saying and was copied: the name of
    /// a function, the CPUs in a mask, a task, a cgroup, an object of the program's own.
    pub(crate) fn summary(&self, address: u64) -> Option<String> {
        let (btf, at) = self.typed()?;
        let Shape::Ptr { to } = *btf.shape(at.ty).ok()? else { return None };
        if matches!(&*btf.shape(to).ok()?, Shape::FuncProto { .. }) {
            return self.snapshot().symbol(address).ok().flatten();
        }
        let Some(Special::Kptr { per_cpu: false, .. }) = self.special() else { return None };
        let target = self.target().ok()?;
        let (theirs, at) = target.typed()?;
        let name = theirs.name(theirs.resolve(at.ty).ok()?);
        match name {
            "bpf_cpumask" | "cpumask" => Some(target.cpus_text()?),
            "task_struct" => {
                let pid = target.get("pid").ok()?.as_i64().ok()?;
                let comm = target.get("comm").ok()?.as_str().ok()?;
                Some(format!("task {pid} \"{}\"", escaped_text(&comm)))
            }
            "cgroup" => {
                let id = target.get("kn.id").ok()?.as_u64().ok()?;
                let cgroups = &self.snapshot().kernel_state().ok()?.cgroups;
                let (_, path) = cgroups.iter().find(|(known, _)| *known == id)?;
                Some(escaped_text(path))
            }
            // What objects lead to in turn is not said: there may be many ways.
            _ if !self.is_followed() && std::sync::Arc::ptr_eq(theirs, btf) => {
                Some(target.inline(SHORT))
            }
            _ => None,
        }
    }
}
