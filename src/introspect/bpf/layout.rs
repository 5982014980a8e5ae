//! Where the kernel keeps things in its BPF structures, from its BTF.
//!
//! A member that only some kernels have is an `Option`, with the change that made the difference.

use crate::btf::{Btf, TypeId};

use super::super::error::{IntrospectError, ReadError};
use super::casts::CodeLayout;
use super::kinds::KindLayouts;
use super::leads::LeadLayout;
use super::owners::LinkLayout;
use super::progs::RunLayout;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// A member's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

impl At {
    /// The unsigned number there, in a copy of the struct; `None` past its end.
    pub(crate) fn read(self, raw: &[u8]) -> Option<u64> {
        let bytes = raw.get(self.offset..self.offset.checked_add(self.size)?)?;
        let mut out = [0; 8];
        out.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(out))
    }
}

impl Kernel {
    /// The number that a member of the struct at `base` holds.
    pub(in crate::introspect) fn member(&self, base: Kva, member: At) -> Result<u64, ReadError> {
        let mut raw = [0; 8];
        let size = member.size.min(raw.len());
        self.read(base.offset(member.offset as u64), &mut raw[..size])?;
        Ok(u64::from_le_bytes(raw))
    }
}

/// Structs larger than this are not read whole: nothing of the kernel's is.
const MAX_STRUCT: u64 = 1 << 16;

/// Finds members and names what is missing.
pub(super) struct Finder<'a> {
    btf: &'a Btf,
    name: &'static str,
    id: TypeId,
    pub(super) size: usize,
}

impl<'a> Finder<'a> {
    pub(super) fn new(btf: &'a Btf, name: &'static str) -> Result<Self, IntrospectError> {
        let id = btf.find_c(name);
        let id = id.ok_or_else(|| missing(format!("the kernel's types have no '{name}'")))?;
        let size = btf.size_of(id).filter(|s| *s <= MAX_STRUCT);
        let size = size.ok_or_else(|| missing(format!("'{name}' has no sensible size")))?;
        Ok(Finder { btf, name, id, size: size as usize })
    }

    pub(super) fn at(&self, path: &str) -> Result<At, IntrospectError> {
        let field = self.btf.field(self.id, path);
        let field = field.map_err(|e| missing(format!("in '{}': {e}", self.name)))?;
        if field.offset + field.size > MAX_STRUCT {
            return Err(missing(format!("'{}' has '{path}' too far from its start", self.name)));
        }
        Ok(At { offset: field.offset as usize, size: field.size as usize })
    }

    /// As [`Finder::at`], for a number.
    pub(super) fn number(&self, path: &str) -> Result<At, IntrospectError> {
        match self.at(path)? {
            at if (1..=8).contains(&at.size) => Ok(at),
            _ => Err(missing(format!("in '{}': '{path}' is not a number", self.name))),
        }
    }

    /// The word of a lock that is not zero while it is held.
    pub(super) fn lock(&self, path: &str) -> Option<At> {
        // A queued spinlock as raw lock, as resilient lock ("bpf: Convert hashtab.c to
        // rqspinlock", 4fa8d68aa53e), as spinlock; with PREEMPT_RT a spinlock sleeps.
        let words = ["raw_lock.val", "val", "rlock.raw_lock.val", "lock.owner"];
        words.iter().find_map(|word| self.number(&format!("{path}.{word}")).ok())
    }
}

fn missing(text: String) -> IntrospectError {
    IntrospectError::Type(text)
}

/// `struct bpf_map` (include/linux/bpf.h).
pub(crate) struct MapLayout {
    pub(crate) size: usize,
    pub(crate) kind: At,
    pub(crate) key_size: At,
    pub(crate) value_size: At,
    pub(crate) max_entries: At,
    pub(crate) map_flags: At,
    pub(crate) map_extra: Option<At>,
    pub(crate) id: At,
    pub(crate) name: At,
    pub(crate) btf: At,
    pub(crate) key_type: At,
    pub(crate) value_type: At,
    /// Maps of struct_ops have their value's type in the kernel's own BTF.
    pub(crate) kernel_value_type: Option<At>,
    pub(crate) frozen: Option<At>,
    pub(crate) refcnt: Option<At>,
    /// Per-CPU counts of elements (since 25954730461a, "bpf: add percpu stats for bpf_map").
    pub(crate) elem_count: Option<At>,
}

impl MapLayout {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_map")?;
        Ok(MapLayout {
            size: f.size,
            kind: f.number("map_type")?,
            key_size: f.number("key_size")?,
            value_size: f.number("value_size")?,
            max_entries: f.number("max_entries")?,
            map_flags: f.number("map_flags")?,
            map_extra: f.number("map_extra").ok(),
            id: f.number("id")?,
            name: f.at("name")?,
            btf: f.number("btf")?,
            key_type: f.number("btf_key_type_id")?,
            value_type: f.number("btf_value_type_id")?,
            kernel_value_type: f.number("btf_vmlinux_value_type_id").ok(),
            frozen: f.number("frozen").ok(),
            refcnt: f.number("refcnt.counter").ok(),
            elem_count: f.number("elem_count").ok(),
        })
    }
}

/// `struct bpf_array` (include/linux/bpf.h).
pub(crate) struct ArrayLayout {
    pub(crate) elem_size: At,
    /// The values, or the per-CPU pointers to them.
    pub(crate) values: usize,
}

impl ArrayLayout {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_array")?;
        Ok(ArrayLayout { elem_size: f.number("elem_size")?, values: f.at("value")?.offset })
    }
}

/// `struct bpf_htab`, `struct bucket` and `struct htab_elem` (kernel/bpf/hashtab.c).
pub(crate) struct HtabLayout {
    pub(crate) size: usize,
    pub(crate) buckets: At,
    pub(crate) elems: At,
    pub(crate) n_buckets: At,
    pub(crate) elem_size: At,
    pub(crate) bucket_size: usize,
    pub(crate) bucket_head: At,
    pub(crate) bucket_lock: Option<At>,
    pub(crate) elem_hash: At,
    pub(crate) elem_key: usize,
}

impl HtabLayout {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_htab")?;
        let bucket = Finder::new(btf, "struct bucket")?;
        let elem = Finder::new(btf, "struct htab_elem")?;
        if bucket.size == 0 {
            return Err(missing("'struct bucket' has no size".into()));
        }
        if elem.at("hash_node.next")?.offset != 0 {
            return Err(missing("'struct htab_elem' does not begin with its hash_node".into()));
        }
        Ok(HtabLayout {
            size: f.size,
            buckets: f.number("buckets")?,
            elems: f.number("elems")?,
            n_buckets: f.number("n_buckets")?,
            elem_size: f.number("elem_size")?,
            bucket_size: bucket.size,
            bucket_head: bucket.number("head.first")?,
            bucket_lock: bucket.lock("raw_lock").or_else(|| bucket.lock("lock")),
            elem_hash: elem.number("hash")?,
            elem_key: elem.at("key")?.offset,
        })
    }
}

/// `struct btf` (kernel/bpf/btf.c).
pub(crate) struct BtfLayout {
    pub(crate) size: usize,
    pub(crate) data: At,
    pub(crate) data_size: At,
    pub(crate) id: At,
    pub(crate) base: Option<At>,
}

impl BtfLayout {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct btf")?;
        Ok(BtfLayout {
            size: f.size,
            data: f.number("data")?,
            data_size: f.number("data_size")?,
            id: f.number("id")?,
            base: f.number("base_btf").ok(),
        })
    }
}

/// `struct bpf_prog` and `struct bpf_prog_aux` (include/linux/bpf.h), as far as they lead from
/// programs to their ids and the maps they use.
pub(crate) struct ProgLayout {
    pub(crate) aux: At,
    pub(crate) aux_size: usize,
    pub(crate) id: At,
    pub(crate) used_map_cnt: At,
    pub(crate) used_maps: At,
    pub(crate) btf: At,
    /// The STRUCT_OPS map that the program was tied to (since 7.0).
    pub(crate) assoc: Option<At>,
}

impl ProgLayout {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let prog = Finder::new(btf, "struct bpf_prog")?;
        let aux = Finder::new(btf, "struct bpf_prog_aux")?;
        Ok(ProgLayout {
            aux: prog.number("aux")?,
            aux_size: aux.size,
            id: aux.number("id")?,
            used_map_cnt: aux.number("used_map_cnt")?,
            used_maps: aux.number("used_maps")?,
            btf: aux.number("btf")?,
            assoc: aux.number("st_ops_assoc").ok(),
        })
    }
}

/// All of them. What the kernel lacks is an error where it is needed.
pub(crate) struct Layouts {
    pub(crate) map: MapLayout,
    pub(crate) btf: BtfLayout,
    pub(crate) array: Result<ArrayLayout, IntrospectError>,
    pub(crate) htab: Result<HtabLayout, IntrospectError>,
    pub(crate) prog: Result<ProgLayout, IntrospectError>,
    pub(crate) kinds: KindLayouts,
    pub(crate) runs: Result<RunLayout, IntrospectError>,
    pub(crate) code: Result<CodeLayout, IntrospectError>,
    pub(crate) links: Result<LinkLayout, IntrospectError>,
    pub(crate) leads: Result<LeadLayout, IntrospectError>,
    /// The lock that is held while a map gets or loses its id.
    pub(crate) idr_lock: Option<At>,
}

impl Layouts {
    pub(crate) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        Ok(Layouts {
            map: MapLayout::new(btf)?,
            btf: BtfLayout::new(btf)?,
            array: ArrayLayout::new(btf),
            htab: HtabLayout::new(btf),
            prog: ProgLayout::new(btf),
            kinds: KindLayouts::new(btf),
            runs: RunLayout::new(btf),
            code: CodeLayout::new(btf),
            links: LinkLayout::new(btf),
            leads: LeadLayout::new(btf),
            idr_lock: Finder::new(btf, "spinlock_t").ok().and_then(|f| {
                let words = ["rlock.raw_lock.val", "lock.owner"];
                words.iter().find_map(|word| f.number(word).ok())
            }),
        })
    }
}
