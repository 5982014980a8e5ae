//! Where the global variables of BPF objects lie, so that they can be watched.

use crate::btf::Shape;
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// A global variable of a BPF object, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalAt {
    /// The map that holds it: `fifo.bss`.
    pub map: String,
    /// Where it is.
    pub at: Kva,
    /// Bytes.
    pub size: u64,
}

impl Kernel {
    /// The global variables of BPF objects that `path` names (`nr_enqueued`, `stats.nr[2]`), one for
    /// each object that has it; none of what cannot be written.
    ///
    /// # Errors
    /// When the maps or the kernel's layout of them cannot be read.
    pub fn globals_at(&self, path: &str) -> Result<Vec<GlobalAt>, IntrospectError> {
        let layout = self.bpf()?.layouts.array.as_ref().map_err(Clone::clone)?;
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (name, rest) = (&path[..end], path[end..].trim_start_matches('.'));
        let mut found = Vec::new();
        for map in self.maps()?.maps {
            let written = map.section.as_deref().is_some_and(|s| !s.starts_with(".rodata"));
            let (true, Some(btf)) = (written && map.kind.name == "array", &map.btf) else {
                continue;
            };
            let Ok(shape) = btf.shape(map.value_type) else { continue };
            let Shape::Datasec { vars, .. } = &*shape else { continue };
            let Some(var) = vars.iter().find(|var| var.name == name) else { continue };
            let (offset, size) = match rest {
                "" => (0, u64::from(var.size)),
                rest => match btf.field(var.ty, rest) {
                    Ok(field) if field.bits.is_none() => (field.offset, field.size),
                    _ => continue,
                },
            };
            let within = u64::from(var.offset).saturating_add(offset);
            if within.saturating_add(size) > u64::from(map.value_size) {
                continue;
            }
            let at = map.kva.offset((layout.values as u64).wrapping_add(within));
            let map = map.full_name.unwrap_or(map.name);
            found.push(GlobalAt { map, at, size });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspect::bpf::tests::busy_guest;

    #[test]
    fn a_global_is_found_where_its_value_lies() {
        let kernel = Kernel::open(busy_guest().mem()).unwrap();
        let found = kernel.globals_at("nr_enqueued").unwrap();
        let [GlobalAt { map, at, size: 8 }] = &found[..] else { panic!("{found:?}") };
        assert_eq!(map, "fifo.bss");
        assert_eq!(kernel.read_u64(*at).unwrap(), 0x0101_0101_0101_0101, "its bytes are ones");
        for none in ["nr_enqueuedd", "", ".", "nr_enqueued.x", "nr_enqueued[0]", "values"] {
            assert_eq!(kernel.globals_at(none).unwrap(), [], "{none:?}");
        }
    }
}
