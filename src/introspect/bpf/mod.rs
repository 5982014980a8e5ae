//! The BPF maps of a guest kernel: which there are, what they are called, what they hold.
//!
//! ```text
//! map_idr ──maps()──▶ MapInfo ──copy_map() while stopped──▶ RawMap ──decode() after resume──▶ MapContents
//! ```

mod bloom;
mod btfs;
mod buffers;
mod casts;
mod copy;
mod decode;
mod globals;
mod htab;
mod kinds;
mod layout;
mod leads;
mod names;
mod owners;
mod percpu;
mod progs;
mod ringbuf;
mod rows;
mod sock;
mod storage;
#[cfg(test)]
pub(super) mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use casts::Cast;
pub use copy::{Budget, RawMap};
pub use globals::GlobalAt;
pub use leads::{Code, Leads};
pub use owners::Owned;
pub use progs::{ProgInfo, ProgList, Runs};

use super::error::IntrospectError;
use super::kernel::Kernel;
use crate::btf::{Btf, TypeId};
use crate::mem::Kva;
use btfs::BtfCache;
use buffers::Buffers;
use casts::CastCache;
use kinds::Made;
use layout::Layouts;
use names::NameCache;

/// Maps that are listed at most.
pub const MAX_MAPS: usize = 16 << 10;

/// What kernels call the kinds of map that are decoded here; the numbers are user-space ABI
/// (`enum bpf_map_type`, include/uapi/linux/bpf.h).
pub(crate) mod kind {
    pub(crate) const HASH: u32 = 1;
    pub(crate) const ARRAY: u32 = 2;
    pub(crate) const PROG_ARRAY: u32 = 3;
    pub(crate) const PERF_EVENT_ARRAY: u32 = 4;
    pub(crate) const PERCPU_HASH: u32 = 5;
    pub(crate) const PERCPU_ARRAY: u32 = 6;
    pub(crate) const STACK_TRACE: u32 = 7;
    pub(crate) const CGROUP_ARRAY: u32 = 8;
    pub(crate) const LRU_HASH: u32 = 9;
    pub(crate) const LRU_PERCPU_HASH: u32 = 10;
    pub(crate) const LPM_TRIE: u32 = 11;
    pub(crate) const ARRAY_OF_MAPS: u32 = 12;
    pub(crate) const HASH_OF_MAPS: u32 = 13;
    pub(crate) const DEVMAP: u32 = 14;
    pub(crate) const SOCKMAP: u32 = 15;
    pub(crate) const CPUMAP: u32 = 16;
    pub(crate) const XSKMAP: u32 = 17;
    pub(crate) const SOCKHASH: u32 = 18;
    pub(crate) const CGROUP_STORAGE: u32 = 19;
    pub(crate) const REUSEPORT_SOCKARRAY: u32 = 20;
    pub(crate) const PERCPU_CGROUP_STORAGE: u32 = 21;
    pub(crate) const QUEUE: u32 = 22;
    pub(crate) const STACK: u32 = 23;
    pub(crate) const DEVMAP_HASH: u32 = 25;
    pub(crate) const SK_STORAGE: u32 = 24;
    pub(crate) const STRUCT_OPS: u32 = 26;
    pub(crate) const RINGBUF: u32 = 27;
    pub(crate) const INODE_STORAGE: u32 = 28;
    pub(crate) const TASK_STORAGE: u32 = 29;
    pub(crate) const ARENA: u32 = 33;
    pub(crate) const INSN_ARRAY: u32 = 34;
    pub(crate) const RHASH: u32 = 35;
    pub(crate) const BLOOM_FILTER: u32 = 30;
    pub(crate) const USER_RINGBUF: u32 = 31;
    pub(crate) const CGRP_STORAGE: u32 = 32;
    /// Those whose values are ids of programs or maps.
    pub(crate) const IDS: [u32; 3] = [PROG_ARRAY, ARRAY_OF_MAPS, HASH_OF_MAPS];
}

/// A kind of map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MapKind {
    /// Its number in `enum bpf_map_type`.
    pub number: u32,
    /// Its name in the guest kernel's own words, in lower case: `percpu_hash`.
    pub name: String,
}

impl std::fmt::Display for MapKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// A map and its attributes.
#[derive(Clone, Debug)]
pub struct MapInfo {
    /// Its id, as in `bpftool map`.
    pub id: u32,
    /// Where its `struct bpf_map` lies.
    pub kva: Kva,
    /// What kind of map it is.
    pub kind: MapKind,
    /// Its name as the kernel has it: cut to 15 characters.
    pub name: String,
    /// Its whole name (`"fifo.bss"`, `"task_ctx_storage"`), where it could be found out.
    pub full_name: Option<String>,
    /// The section of its object that it holds (`".bss"`), if it holds one.
    pub section: Option<String>,
    /// Bytes of a key; 0 for kinds without keys.
    pub key_size: u32,
    /// Bytes of a value; on one CPU, for per-CPU kinds.
    pub value_size: u32,
    /// How many entries it can have.
    pub max_entries: u32,
    /// Flags it was created with (`BPF_F_*`).
    pub map_flags: u32,
    /// A further attribute of some kinds.
    pub map_extra: u64,
    /// Whether user space may no longer write it.
    pub frozen: bool,
    /// Where its key and value types are defined.
    pub btf: Option<Arc<Btf>>,
    /// Why [`MapInfo::btf`] is missing although the map has one.
    pub btf_error: Option<String>,
    /// Type of the keys in [`MapInfo::btf`]; 0 if unknown.
    pub key_type: TypeId,
    /// Type of the values in [`MapInfo::btf`]; 0 if unknown.
    pub value_type: TypeId,
    /// Where the map's `struct btf` lies: maps of one loaded object share it. Null if none.
    pub btf_kva: Kva,
    /// Why its attributes may be half-changed; usually empty.
    pub torn: Vec<String>,
}

/// The maps there are.
#[derive(Clone, Debug)]
pub struct MapList {
    /// Ascending by id.
    pub maps: Vec<MapInfo>,
    /// Why the list may be incomplete or half-changed.
    pub torn: Option<String>,
}

/// What is kept from one reading of the maps to the next. All of it is checked before it is used
/// again.
pub(crate) struct BpfState {
    pub(super) layouts: Layouts,
    pub(super) buffers: Buffers,
    kinds: Vec<(u32, String)>,
    /// Types of maps that have pointers where the syscall gives something else.
    made: Made,
    caches: Mutex<Caches>,
}

#[derive(Default)]
struct Caches {
    btfs: BtfCache,
    /// Those of modules, which no map refers to.
    modules: BtfCache,
    names: NameCache,
    casts: CastCache,
}

impl BpfState {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let layouts = Layouts::new(btf)?;
        let buffers = Buffers::default();
        let (kinds, caches) =
            (names::enumerators(btf, "enum bpf_map_type", "BPF_MAP_TYPE_"), Mutex::default());
        let made = Made::new(btf);
        Ok(BpfState { layouts, buffers, kinds, made, caches })
    }

    fn caches(&self) -> MutexGuard<'_, Caches> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kind(&self, number: u32) -> MapKind {
        let known = self.kinds.iter().find(|(n, _)| *n == number);
        let name = known.map_or_else(|| format!("type {number}"), |(_, name)| name.clone());
        MapKind { number, name }
    }
}

impl Kernel {
    pub(super) fn bpf(&self) -> Result<&BpfState, IntrospectError> {
        let state = self.bpf.get_or_init(|| BpfState::new(self.btf()));
        state.as_ref().map_err(Clone::clone)
    }

    /// The BPF maps there are. What takes long (types of objects not seen before, names) is kept
    /// for the next call, so a call before the machine stops makes the one after it cheap.
    ///
    /// # Errors
    /// The kernel has no BPF, or its list of maps cannot be read at all.
    pub fn maps(&self) -> Result<MapList, IntrospectError> {
        let state = self.bpf()?;
        let idr = self.symbols().address("map_idr")?;
        let walk = self.idr(idr, MAX_MAPS)?;
        let mut torn = walk.error.map(|e| e.to_string());
        if self.idr_lock_held(state) && torn.is_none() {
            torn = Some("map_idr_lock is held: a map is being added or removed".into());
        }
        let mut caches = state.caches();
        let mut maps = Vec::with_capacity(walk.items.len());
        for (id, kva) in walk.items {
            match self.map(state, &mut caches.btfs, id, kva) {
                Ok(map) => maps.push(map),
                Err(e) => torn = torn.or_else(|| Some(format!("map {id}: {e}"))),
            }
        }
        caches.btfs.forget_all_but(|kva| maps.iter().any(|m| m.btf_kva == kva));
        let Caches { btfs, names, .. } = &mut *caches;
        names.complete(self, state, btfs, &mut maps);
        Ok(MapList { maps, torn })
    }

    /// Has the next call of [`Kernel::maps`] look again for names that were not found.
    pub fn look_again_for_names(&self) {
        if let Ok(state) = self.bpf() {
            state.caches().names.retry();
        }
    }

    fn idr_lock_held(&self, state: &BpfState) -> bool {
        let lock = self.symbols().get("map_idr_lock").zip(state.layouts.idr_lock);
        let Some((at, word)) = lock else { return false };
        let mut raw = vec![0; word.offset + word.size];
        self.read(at, &mut raw).is_ok() && word.read(&raw).is_some_and(|n| n != 0)
    }

    /// Reads one `struct bpf_map`.
    fn map(
        &self,
        state: &BpfState,
        btfs: &mut BtfCache,
        id: u64,
        kva: Kva,
    ) -> Result<MapInfo, IntrospectError> {
        let layout = &state.layouts.map;
        let mut raw = vec![0; layout.size];
        self.read(kva, &mut raw)?;
        let number = |at: layout::At| at.read(&raw).unwrap_or(0);
        let small = |at: layout::At| number(at) as u32;
        let maybe = |at: Option<layout::At>| at.map_or(0, number);
        let name = text_at(&raw, layout.name);
        let btf_kva = Kva(number(layout.btf));
        let mut torn = Vec::new();
        if number(layout.id) != id {
            torn.push(format!("it calls itself map {}: it is being removed", number(layout.id)));
        } else if layout.refcnt.is_some_and(|at| number(at) == 0) {
            torn.push("nothing refers to it any more: it is being removed".into());
        }
        let kernel_type = maybe(layout.kernel_value_type) as TypeId;
        let (btf, btf_error) = match btfs.get(self, &state.layouts.btf, btf_kva) {
            _ if kernel_type != 0 => (Some(self.btf().clone()), None),
            Ok(btf) => (btf, None),
            Err(e) => (None, Some(e)),
        };
        let own = |at| if kernel_type == 0 && btf.is_some() { small(at) } else { 0 };
        let (mut key_type, mut value_type) = (own(layout.key_type), own(layout.value_type));
        let (kind, key_size) = (state.kind(small(layout.kind)), small(layout.key_size));
        let mut btf = btf;
        match kind.number {
            // What is asked for is a value; what is there are bits.
            kind::BLOOM_FILTER => (key_type, value_type) = (value_type, 0),
            kind::CGROUP_STORAGE | kind::PERCPU_CGROUP_STORAGE if btf.is_none() => {
                let (made, key, value) = state.made.of_storage(key_size);
                (btf, key_type, value_type) = (Some(made), key, value);
            }
            kind::CGRP_STORAGE | kind::INODE_STORAGE | kind::SK_STORAGE => {
                let both = btfs.with_basics(btf_kva, btf.as_ref());
                value_type = if both.btf.base().is_some() { value_type } else { 0 };
                key_type = both.text;
                btf = Some(both.btf);
            }
            _ => {}
        }
        let (value_size, flags) = (small(layout.value_size), small(layout.map_flags));
        let sizes = (key_size, value_size);
        if let Some((made, key, value)) = state.made.types(kind.number, sizes, flags) {
            // Loaders give these no types, or some that fit what the kernel takes, not what it has.
            (btf, key_type, value_type) = (Some(made), key, value);
        }
        Ok(MapInfo {
            id: id as u32,
            kva,
            kind,
            name,
            full_name: None,
            section: None,
            key_size,
            value_size,
            max_entries: small(layout.max_entries),
            map_flags: flags,
            map_extra: maybe(layout.map_extra),
            frozen: maybe(layout.frozen) & 0xff != 0,
            btf,
            btf_error,
            key_type,
            value_type: if kernel_type != 0 { kernel_type } else { value_type },
            btf_kva,
            torn,
        })
    }
}

/// The text at a place of a copied struct, up to its NUL.
fn text_at(raw: &[u8], at: layout::At) -> String {
    let text = raw.get(at.offset..at.offset.saturating_add(at.size)).unwrap_or_default();
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).into_owned()
}
