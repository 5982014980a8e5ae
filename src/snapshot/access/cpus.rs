//! CPU masks as sets of CPUs.

use super::{Base, Field, Type};
use crate::btf::{Btf, Shape, TypeId};
use crate::snapshot::error::SnapshotResult;
use crate::snapshot::value::FieldKind;

/// Members that are entered on the way to the bits: `struct bpf_cpumask` has a `cpumask_t`.
const MAX_DEPTH: usize = 4;

impl Field {
    /// The CPUs in a mask, or in the one that a pointer leads to, as a CPU set: `0-3,8`. The kernel's types have room for all CPUs that it
    /// can be built for, but only as many bits are there as this machine can have CPUs.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`](crate::snapshot::SnapshotError::TypeMismatch) when this is
    /// no mask; why its bytes are not there.
    pub fn as_cpus(&self) -> SnapshotResult<String> {
        if self.kind() == FieldKind::Pointer {
            // One pointer only: a guest's types can have one that leads to itself.
            return self.target()?.cpus_here();
        }
        self.cpus_here()
    }

    fn cpus_here(&self) -> SnapshotResult<String> {
        let not = || self.mismatch("a CPU mask", self.described());
        let Type::Btf { btf, at, .. } = &self.ty else { return Err(not()) };
        let bits = mask(btf, at.ty, 0).ok_or_else(not)?;
        let cpus = self.snapshot().kernel_state()?.cpu_ids();
        let len = (cpus.div_ceil(64) * 8).min(bits);
        let bytes = match &self.base {
            Base::Kernel(place) => place.bytes(at.offset, len, &self.path)?,
            Base::Entry(..) => self.bytes()?,
        };
        Ok(set_of(&bytes, cpus))
    }

    /// A `struct cpumask` for a reader, when this is one and its bits are there.
    pub(crate) fn cpumask(&self) -> Option<String> {
        let (btf, at) = self.typed()?;
        let named = matches!(&*btf.shape(at.ty).ok()?, Shape::Struct(s) if s.name == "cpumask");
        named.then(|| self.cpus_text())?
    }

    /// The CPUs in a mask, for a reader.
    pub(super) fn cpus_text(&self) -> Option<String> {
        match self.as_cpus().ok()?.as_str() {
            "" => Some("no CPUs".to_owned()),
            cpus => Some(format!("CPUs {cpus}")),
        }
    }
}

/// Bytes of the mask that a type begins with.
fn mask(btf: &Btf, ty: TypeId, depth: usize) -> Option<u64> {
    match &*btf.shape(ty).ok()? {
        Shape::Array { elem, len, elem_size: 8 } => {
            let number = matches!(&*btf.shape(*elem).ok()?, Shape::Int { signed: false, .. });
            number.then_some(u64::from(*len) * 8)
        }
        Shape::Struct(s) if depth < MAX_DEPTH && s.name.ends_with("cpumask") => {
            let first = s.members.first().filter(|member| member.bit_offset == 0)?;
            mask(btf, first.ty, depth + 1)
        }
        _ => None,
    }
}

/// The CPUs below `cpus` whose bits are set in a mask, as a CPU set.
pub(crate) fn set_of(mask: &[u8], cpus: u64) -> String {
    let set = |cpu: &u64| {
        let byte = mask.get((cpu / 8) as usize).copied().unwrap_or_default();
        byte >> (cpu % 8) & 1 == 1
    };
    cpu_set((0..cpus.min(mask.len() as u64 * 8)).filter(set))
}

/// Numbers as a CPU set.
fn cpu_set(cpus: impl Iterator<Item = u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let run = |(first, last): &(u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_sets_are_short() {
        assert_eq!(cpu_set([0, 1, 2, 8, 10, 11].into_iter()), "0-2,8,10-11");
        assert_eq!(cpu_set(std::iter::empty()), "");
        assert_eq!(cpu_set([3].into_iter()), "3");
    }
}
