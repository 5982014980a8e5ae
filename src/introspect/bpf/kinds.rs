//! The kinds of map that are neither tables nor plain arrays. They are small or made of single
//! allocations, so their entries are found while they are copied.
//!
//! What an entry is, where the kernel has a pointer: its id, as the bpf() syscall says it.

mod arena;
mod cgroups;
mod made;
mod net;
mod perf;
mod rhash;
mod stacks;

use super::bloom::BloomLayout;
use super::copy::{Budget, RawMap};
use super::layout::{At, Finder};
use super::ringbuf::RingLayout;
use super::rows::Rows;
use super::storage::StorageLayout;
use super::{BpfState, MapInfo, kind};
use crate::btf::Btf;
use crate::introspect::contents::MapData;
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;
use arena::ArenaLayout;
use cgroups::CgroupStorageLayout;
pub(super) use made::Made;
use net::NetLayouts;
use perf::EventLayout;
use rhash::RhashLayout;
use stacks::StackLayout;

/// Bytes that are read at once from what is one array in the kernel.
const CHUNK: usize = 64 << 10;
/// `struct bpf_queue_stack` (kernel/bpf/queue_stack_maps.c).
pub(crate) struct QueueLayout {
    whole: usize,
    head: At,
    tail: At,
    slots: At,
    elements: usize,
    lock: Option<At>,
}

impl QueueLayout {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_queue_stack")?;
        Ok(QueueLayout {
            whole: f.size,
            head: f.number("head")?,
            tail: f.number("tail")?,
            slots: f.number("size")?,
            elements: f.at("elements")?.offset,
            lock: f.lock("lock"),
        })
    }
}

/// `struct bpf_struct_ops_map` (kernel/bpf/bpf_struct_ops.c).
pub(crate) struct StructOpsLayout {
    user_value: At,
    pub(crate) value: usize,
    state: At,
    state_in_value: At,
}

impl StructOpsLayout {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_struct_ops_map")?;
        let common = Finder::new(btf, "struct bpf_struct_ops_common_value")?;
        Ok(StructOpsLayout {
            user_value: f.number("uvalue")?,
            value: f.at("kvalue")?.offset,
            state: f.number("kvalue.common.state")?,
            state_in_value: common.number("state")?,
        })
    }
}

/// `struct lpm_trie` and `struct lpm_trie_node` (kernel/bpf/lpm_trie.c).
pub(crate) struct TrieLayout {
    root: At,
    data_size: At,
    prefix: At,
    flags: At,
    children: usize,
    data: usize,
}

impl TrieLayout {
    fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct lpm_trie")?;
        let node = Finder::new(btf, "struct lpm_trie_node")?;
        Ok(TrieLayout {
            root: f.number("root")?,
            data_size: f.number("data_size")?,
            prefix: node.number("prefixlen")?,
            flags: node.number("flags")?,
            children: node.at("child")?.offset,
            data: node.at("data")?.offset,
        })
    }
}

/// Where the kinds here keep things. What the kernel lacks is an error where it is needed.
pub(crate) struct KindLayouts {
    queue: Result<QueueLayout, IntrospectError>,
    pub(crate) struct_ops: Result<StructOpsLayout, IntrospectError>,
    pub(super) storage: Result<StorageLayout, IntrospectError>,
    pub(super) ring: Result<RingLayout, IntrospectError>,
    pub(super) bloom: Result<BloomLayout, IntrospectError>,
    trie: Result<TrieLayout, IntrospectError>,
    arena: Result<ArenaLayout, IntrospectError>,
    rhash: Result<RhashLayout, IntrospectError>,
    stacks: Result<StackLayout, IntrospectError>,
    cgroup_storage: Result<CgroupStorageLayout, IntrospectError>,
    event: Result<EventLayout, IntrospectError>,
    net: NetLayouts,
}

impl KindLayouts {
    pub(crate) fn new(btf: &Btf) -> Self {
        KindLayouts {
            queue: QueueLayout::new(btf),
            struct_ops: StructOpsLayout::new(btf),
            storage: StorageLayout::new(btf),
            ring: RingLayout::new(btf),
            bloom: BloomLayout::new(btf),
            trie: TrieLayout::new(btf),
            arena: ArenaLayout::new(btf),
            rhash: RhashLayout::new(btf),
            stacks: StackLayout::new(btf),
            cgroup_storage: CgroupStorageLayout::new(btf),
            event: EventLayout::new(btf),
            net: NetLayouts::new(btf),
        }
    }
}

pub(super) type Found = Result<RawMap, String>;

pub(super) fn text(error: impl ToString) -> String {
    error.to_string()
}

impl Kernel {
    /// Copies a map of one of the kinds here; `None` for others.
    pub(super) fn copy_other(
        &self,
        state: &BpfState,
        map: &MapInfo,
        budget: &mut Budget,
    ) -> Option<Found> {
        let layouts = &state.layouts.kinds;
        let one = u64::from(map.key_size).saturating_add(map.value_size.into());
        if one > budget.left() {
            // Before anything is allocated for it: a damaged map may claim any size.
            let left = budget.left();
            return Some(Err(format!(
                "one entry takes {one} bytes, and {left} are left of the capture's budget"
            )));
        }
        Some(match map.kind.number {
            kind::QUEUE | kind::STACK => {
                layouts.queue.as_ref().map_err(text).and_then(|l| self.queue(l, map, budget))
            }
            kind::STRUCT_OPS => {
                layouts.struct_ops.as_ref().map_err(text).and_then(|l| self.ops(l, map, budget))
            }
            kind::TASK_STORAGE | kind::CGRP_STORAGE | kind::INODE_STORAGE | kind::SK_STORAGE => {
                self.storage(state, map, budget)
            }
            kind::RINGBUF | kind::USER_RINGBUF => self.ring(state, map, budget),
            kind::BLOOM_FILTER => self.bloom(state, map, budget),
            kind::LPM_TRIE => {
                layouts.trie.as_ref().map_err(text).and_then(|l| self.trie(l, map, budget))
            }
            kind::ARENA => {
                layouts.arena.as_ref().map_err(text).and_then(|l| self.arena(l, map, budget))
            }
            kind::RHASH => {
                layouts.rhash.as_ref().map_err(text).and_then(|l| self.rhash(l, map, budget))
            }
            kind::STACK_TRACE => {
                layouts.stacks.as_ref().map_err(text).and_then(|l| self.stacks(l, map, budget))
            }
            kind::CGROUP_ARRAY => self.cgroups(state, map, budget),
            kind::CGROUP_STORAGE | kind::PERCPU_CGROUP_STORAGE => {
                self.cgroup_storage(state, map, budget)
            }
            kind::PERF_EVENT_ARRAY => self.perf_events(state, map, budget),
            kind::PROG_ARRAY | kind::ARRAY_OF_MAPS => self.pointers(state, map, budget),
            kind::HASH_OF_MAPS => self.hash_of_maps(state, map, budget),
            _ => return self.copy_net(state, map, budget),
        })
    }

    /// A queue or a stack, from the entry that was pushed first to the last.
    fn queue(&self, layout: &QueueLayout, map: &MapInfo, budget: &mut Budget) -> Found {
        let mut raw = vec![0; layout.whole];
        self.read(map.kva, &mut raw).map_err(text)?;
        let number = |at: At| at.read(&raw).unwrap_or(0);
        let (head, tail, slots) = (number(layout.head), number(layout.tail), number(layout.slots));
        let size = u64::from(map.value_size);
        if slots == 0 || slots > u64::from(map.max_entries) + 1 || head >= slots || tail >= slots {
            return Err(format!("it has {slots} slots, and claims {tail} to {head} of them"));
        }
        let used = (head + slots - tail) % slots;
        let fits = budget.take_some(used, size)?;
        let mut rows = Rows::new(None, size as usize);
        if fits < used {
            rows.incomplete(format!("{fits} of {used} entries fitted into the capture's budget"));
        }
        if layout.lock.is_some_and(|lock| number(lock) != 0) {
            rows.torn("its lock is held".into());
        }
        let mut value = vec![0; size as usize];
        for i in 0..fits {
            let slot = (tail + i) % slots;
            let at = map.kva.offset(layout.elements as u64).offset(slot * size);
            if let Err(e) = self.read(at, &mut value) {
                rows.incomplete(format!("from entry {i} on: {e}"));
                break;
            }
            rows.push(&[], &value);
        }
        Ok(rows.into())
    }

    /// A struct_ops map: its one value, as user space has given it, in the state that it is in.
    fn ops(&self, layout: &StructOpsLayout, map: &MapInfo, budget: &mut Budget) -> Found {
        let size = map.value_size as usize;
        budget.take(size as u64)?;
        let user =
            Kva(self.read_u64(map.kva.offset(layout.user_value.offset as u64)).map_err(text)?);
        let mut value = vec![0; size];
        self.read(user, &mut value).map_err(text)?;
        let mut state = vec![0; layout.state.size];
        self.read(map.kva.offset(layout.state.offset as u64), &mut state).map_err(text)?;
        let At { offset, size: len } = layout.state_in_value;
        if let Some(place) = value.get_mut(offset..offset + len) {
            place.copy_from_slice(&state[..len.min(state.len())]);
        }
        let mut rows = Rows::new(None, size);
        rows.push(&[], &value);
        Ok(rows.into())
    }

    /// A trie of prefixes. Nodes that only branch are no entries.
    fn trie(&self, layout: &TrieLayout, map: &MapInfo, budget: &mut Budget) -> Found {
        /// `LPM_TREE_NODE_FLAG_IM`.
        const BRANCH: u64 = 1;
        let field = |at: At| self.member(map.kva, at).map_err(text);
        let data = field(layout.data_size)? as usize;
        let (key_size, value_size) = (map.key_size as usize, map.value_size as usize);
        if data == 0 || data + 4 != key_size {
            return Err(format!("its keys have {key_size} bytes, and {data} of data"));
        }
        let mut rows = Rows::new(Some(key_size), value_size);
        let mut raw = vec![0; layout.data + data + value_size];
        let mut todo = vec![(field(layout.root)?, 0u64)];
        let most = 2 * u64::from(map.max_entries) + 1;
        let mut nodes = 0;
        while let Some((node, least)) = todo.pop() {
            if node == 0 {
                continue;
            }
            nodes += 1;
            if let Err(e) = budget.take(raw.len() as u64) {
                rows.incomplete(e);
                break;
            }
            if nodes > most {
                rows.incomplete("more nodes are linked than there can be");
                break;
            }
            // What only branches has no value behind its data.
            let there = self.space.read_prefix(Kva(node), &mut raw);
            if there < layout.data + data {
                rows.incomplete(format!("the node at {} cannot be read", Kva(node)));
                continue;
            }
            let prefix = layout.prefix.read(&raw).unwrap_or(0);
            if prefix < least || prefix > 8 * data as u64 {
                rows.incomplete(format!("the node at {} has a prefix of {prefix} bits", Kva(node)));
                continue;
            }
            if layout.flags.read(&raw).unwrap_or(0) & BRANCH == 0 {
                let mut key = (prefix as u32).to_le_bytes().to_vec();
                key.extend_from_slice(&raw[layout.data..layout.data + data]);
                match raw.get(layout.data + data..there) {
                    Some(value) if value.len() == value_size => rows.push(&key, value),
                    _ => rows.incomplete(format!("the value at {} cannot be read", Kva(node))),
                }
            }
            for child in [1, 0] {
                let at = At { offset: layout.children + 8 * child, size: 8 };
                todo.push((at.read(&raw).unwrap_or(0), prefix + 1));
            }
        }
        Ok(rows.into())
    }

    /// An array of pointers to programs or maps: their ids, where there is one.
    fn pointers(&self, state: &BpfState, map: &MapInfo, budget: &mut Budget) -> Found {
        let array = state.layouts.array.as_ref().map_err(text)?;
        let mut rows = Rows::new(Some(4), 4);
        let first = map.kva.offset(array.values as u64);
        let found = self.table_of_pointers(first, map.max_entries.into(), budget, &mut rows)?;
        for (index, target) in found {
            let id = match map.kind.number {
                kind::PROG_ARRAY => self.prog_id(state, target),
                _ => self.map_id(state, target).map_err(text),
            };
            match id {
                Ok(id) => rows.push(&index.to_le_bytes(), &id.to_le_bytes()),
                Err(e) => rows.incomplete(e),
            }
        }
        Ok(rows.into())
    }

    /// The pointers of a table that are not null, with their indices.
    fn table_of_pointers(
        &self,
        first: Kva,
        count: u64,
        budget: &mut Budget,
        rows: &mut Rows,
    ) -> Result<Vec<(u32, Kva)>, String> {
        let fits = budget.take_some(count, 8)?;
        if fits < count {
            rows.incomplete(format!("{fits} of {count} slots fitted into the capture's budget"));
        }
        let mut out = Vec::new();
        let mut raw = vec![0; CHUNK.min(fits as usize * 8)];
        let mut done = 0;
        while done < fits {
            let n = (fits - done).min(CHUNK as u64 / 8) as usize;
            let piece = &mut raw[..n * 8];
            if let Err(e) = self.read(first.offset(done * 8), piece) {
                rows.incomplete(format!("from slot {done} on: {e}"));
                break;
            }
            let pointers = piece.as_chunks().0.iter().map(|b| Kva(u64::from_le_bytes(*b)));
            let indexed = (done as u32..).zip(pointers);
            out.extend(indexed.filter(|(_, pointer)| !pointer.is_null()));
            done += n as u64;
        }
        Ok(out)
    }

    fn prog_id(&self, state: &BpfState, prog: Kva) -> Result<u32, String> {
        let layout = state.layouts.prog.as_ref().map_err(text)?;
        let aux = Kva(self.read_u64(prog.offset(layout.aux.offset as u64)).map_err(text)?);
        self.read_u32(aux.offset(layout.id.offset as u64)).map_err(text)
    }

    pub(super) fn map_id(&self, state: &BpfState, map: Kva) -> Result<u32, IntrospectError> {
        Ok(self.read_u32(map.offset(state.layouts.map.id.offset as u64))?)
    }

    /// A hash whose values are maps: their ids.
    fn hash_of_maps(&self, state: &BpfState, map: &MapInfo, budget: &mut Budget) -> Found {
        let layout = state.layouts.htab.as_ref().map_err(text)?;
        // In the table a value is a pointer.
        let inside = MapInfo { value_size: 8, ..map.clone() };
        let counted = self.elem_count(state, map);
        let raw = self.copy_htab(layout, &state.buffers, &inside, counted, budget)?;
        let found = raw.decode();
        let mut rows = Rows::new(Some(map.key_size as usize), 4);
        rows.torn = found.torn;
        rows.incomplete = found.incomplete;
        let MapData::Hash { keys, values } = found.data else {
            return Err("its table cannot be read".into());
        };
        for (key, value) in keys.iter().zip(values.iter()) {
            let target = At { offset: 0, size: 8 }.read(value).unwrap_or(0);
            match self.map_id(state, Kva(target)) {
                Ok(id) => rows.push(key, &id.to_le_bytes()),
                Err(e) => rows.incomplete(e),
            }
        }
        Ok(rows.into())
    }
}
