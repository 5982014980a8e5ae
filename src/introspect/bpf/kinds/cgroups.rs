//! CGROUP_ARRAY, and what programs that are attached to cgroups keep for each: CGROUP_STORAGE and
//! PERCPU_CGROUP_STORAGE (kernel/bpf/arraymap.c, kernel/bpf/local_storage.c).

use super::{Found, Rows, text};
use crate::btf::Btf;
use crate::introspect::bpf::copy::Budget;
use crate::introspect::bpf::layout::{At, Finder};
use crate::introspect::bpf::percpu::RawPerCpu;
use crate::introspect::bpf::{BpfState, MapInfo, kind};
use crate::introspect::contents::Values;
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::introspect::walk::MAX_ELEMENTS;
use crate::mem::Kva;

/// `struct bpf_cgroup_storage_map`, `struct bpf_cgroup_storage` and `struct bpf_storage_buffer`.
pub(crate) struct CgroupStorageLayout {
    list: u64,
    lock: Option<At>,
    node: u64,
    key: At,
    shared: At,
    per_cpu: At,
    value: u64,
}

impl CgroupStorageLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_cgroup_storage_map")?;
        let storage = Finder::new(btf, "struct bpf_cgroup_storage")?;
        let buffer = Finder::new(btf, "struct bpf_storage_buffer")?;
        Ok(CgroupStorageLayout {
            list: f.at("list")?.offset as u64,
            lock: f.lock("lock"),
            node: storage.at("list_map")?.offset as u64,
            key: storage.at("key")?,
            shared: storage.number("buf")?,
            per_cpu: storage.number("percpu_buf")?,
            value: buffer.at("data")?.offset as u64,
        })
    }
}

impl Kernel {
    /// An array of cgroups: their paths from the root, and their ids beside.
    pub(super) fn cgroups(&self, state: &BpfState, map: &MapInfo, budget: &mut Budget) -> Found {
        let array = state.layouts.array.as_ref().map_err(text)?;
        let storage = state.layouts.kinds.storage.as_ref().map_err(text)?;
        let mut rows = Rows::of(Some(Values::empty(4)), Values::uneven());
        let first = map.kva.offset(array.values as u64);
        for (index, at) in
            self.table_of_pointers(first, map.max_entries.into(), budget, &mut rows)?
        {
            let found = self.cgroup_path(storage, at);
            let taken = found.and_then(|cgroup| {
                budget.take(cgroup.path.len() as u64 + 12)?;
                Ok(cgroup)
            });
            match taken {
                Ok(cgroup) => {
                    rows.push(&index.to_le_bytes(), cgroup.path.as_bytes());
                    rows.row_details(vec![("id", cgroup.id.into())]);
                }
                Err(why) => rows.incomplete(why),
            }
            if let Err(why) = budget.check_time() {
                rows.incomplete(why);
                break;
            }
        }
        Ok(rows.into())
    }

    /// What each cgroup has, one value or one a CPU.
    pub(super) fn cgroup_storage(
        &self,
        state: &BpfState,
        map: &MapInfo,
        budget: &mut Budget,
    ) -> Found {
        let layout = state.layouts.kinds.cgroup_storage.as_ref().map_err(text)?;
        let (key_size, size) = (map.key_size as usize, map.value_size as usize);
        if key_size > layout.key.size {
            return Err(format!("its keys claim {key_size} bytes of {}", layout.key.size));
        }
        let per_cpu = map.kind.number == kind::PERCPU_CGROUP_STORAGE;
        let mut rows = Rows::new(Some(key_size), if per_cpu { 0 } else { size });
        if layout.lock.is_some_and(|lock| self.member(map.kva, lock).is_ok_and(|n| n != 0)) {
            rows.torn("its lock is held: a cgroup's storage is being added or removed".into());
        }
        let one = (key_size + if per_cpu { 8 } else { size }) as u64;
        let limit = (budget.left() / one.max(1)).min(MAX_ELEMENTS as u64) as usize;
        let nodes = rows.walked(self.list(map.kva.offset(layout.list), limit));
        let (mut key, mut value) = (vec![0; key_size], vec![0; if per_cpu { 0 } else { size }]);
        let mut pointers = Vec::new();
        for node in nodes {
            if let Err(e) = budget.take(one) {
                rows.incomplete(e);
                break;
            }
            let storage = Kva(node.0.wrapping_sub(layout.node));
            let shared = (!per_cpu).then_some(&mut value[..]);
            match self.one_storage(layout, storage, &mut key, shared) {
                Ok(pointer) => {
                    pointers.push(pointer);
                    rows.push(&key, &value);
                }
                Err(why) => rows.incomplete(why),
            }
        }
        if !per_cpu {
            return Ok(rows.into());
        }
        let all: Vec<usize> = (0..pointers.len()).collect();
        let raw = RawPerCpu::copy(self, &state.buffers, pointers, all.len(), size, budget);
        if let Some(why) = raw.incomplete() {
            rows.incomplete(why);
        }
        Ok(rows.per_cpu(raw.decode(&all)))
    }

    /// A cgroup's key, its value where that is not one a CPU, and the pointer to either.
    fn one_storage(
        &self,
        layout: &CgroupStorageLayout,
        at: Kva,
        key: &mut [u8],
        value: Option<&mut [u8]>,
    ) -> Result<u64, String> {
        self.read(at.offset(layout.key.offset as u64), key).map_err(text)?;
        let member = if value.is_some() { layout.shared } else { layout.per_cpu };
        let pointer = self.member(at, member).map_err(text)?;
        if let Some(value) = value {
            self.read(Kva(pointer).offset(layout.value), value).map_err(text)?;
        }
        Ok(pointer)
    }
}
