//! Copying hash tables (kernel/bpf/hashtab.c).
//!
//! A table is an array of buckets, each the head of a list of elements that ends in an odd value
//! (hlist_nulls). Elements are either allocated in one piece beforehand, then buckets and elements
//! are copied whole and the lists walked later; or one by one, then the lists are walked while
//! the machine is stopped. Which elements are in use only the lists tell: free ones keep their
//! old keys.

use super::MapInfo;
use super::buffers::Buffers;
use super::copy::{Budget, RawData, RawMap};
use super::kind;
use super::layout::{At, HtabLayout};
use super::percpu::{RawPerCpu, crosses};
use crate::introspect::error::ReadError;
use crate::introspect::kernel::Kernel;
use crate::introspect::space::Hole;
use crate::mem::Kva;

/// Elements that a table may have beyond its maximum: CPUs that add at once do not wait for one
/// another's counts.
const SLACK: u64 = 1024;

/// So many bytes are copied in the time in which one pointer is followed (400 ns against 8 GB/s).
const HOP_BYTES: u64 = 3200;

/// Where things are in a table's elements and buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) key_size: usize,
    pub(super) value_size: usize,
    pub(super) percpu: bool,
    pub(super) elem_size: usize,
    pub(super) key: usize,
    /// The value, or the per-CPU pointer to it.
    pub(super) value: usize,
    pub(super) hash: At,
    pub(super) n_buckets: u32,
    pub(super) bucket_size: usize,
    pub(super) bucket_head: At,
    pub(super) bucket_lock: Option<At>,
}

impl Geometry {
    /// Checks what the table says about itself against the attributes of the map.
    fn new(layout: &HtabLayout, map: &MapInfo, raw: &[u8]) -> Result<Self, String> {
        let percpu = matches!(map.kind.number, kind::PERCPU_HASH | kind::LRU_PERCPU_HASH);
        let number = |at: At| at.read(raw).unwrap_or(0);
        let n_buckets = number(layout.n_buckets);
        if !n_buckets.is_power_of_two() || n_buckets > 1 << 31 {
            return Err(format!("its table has {n_buckets} buckets, which is no power of two"));
        }
        let value = layout.elem_key as u64 + u64::from(map.key_size).next_multiple_of(8);
        let size = if percpu { 8 } else { u64::from(map.value_size).next_multiple_of(8) };
        let elem_size = number(layout.elem_size);
        if elem_size != value + size || elem_size > u64::from(u32::MAX) {
            let want = value + size;
            return Err(format!("its elements take {elem_size} bytes, keys and values {want}"));
        }
        Ok(Geometry {
            key_size: map.key_size as usize,
            value_size: map.value_size as usize,
            percpu,
            elem_size: elem_size as usize,
            key: layout.elem_key,
            value: value as usize,
            hash: layout.elem_hash,
            n_buckets: n_buckets as u32,
            bucket_size: layout.bucket_size,
            bucket_head: layout.bucket_head,
            bucket_lock: layout.bucket_lock,
        })
    }

    /// The per-CPU pointer of an element.
    fn pointer(&self, elem: &[u8]) -> u64 {
        At { offset: self.value, size: 8 }.read(elem).unwrap_or(0)
    }
}

/// A table, as copied.
pub(super) struct RawHtab {
    pub(super) geometry: Geometry,
    pub(super) buckets: Vec<u8>,
    pub(super) elems: Elems,
    pub(super) percpu: Option<RawPerCpu>,
    /// How many elements the table counts.
    pub(super) counted: Option<u64>,
    /// How many CPUs can be in the middle of adding or removing one.
    pub(super) cpus: u64,
}

impl RawHtab {
    /// Shows the value of each element, in use or not.
    pub(super) fn for_each_value(&self, show: &mut dyn FnMut(&[u8]) -> bool) {
        if let Some(percpu) = &self.percpu {
            return percpu.for_each_value(show);
        }
        let g = &self.geometry;
        let (Elems::Whole(Slab { bytes, .. }) | Elems::Walked { arena: bytes, .. }) = &self.elems;
        let values = bytes.chunks_exact(g.elem_size);
        values.filter_map(|elem| elem.get(g.value..g.value + g.value_size)).all(show);
    }
}

/// The elements of a table, as copied.
pub(super) enum Elems {
    /// All of them, in use or not.
    Whole(Slab),
    /// Those in use, in the order of the lists.
    Walked { arena: Vec<u8>, links: Links },
}

/// Elements that were allocated in one piece.
pub(super) struct Slab {
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) holes: Vec<Hole>,
}

impl Slab {
    /// Follows the lists inside of the copy.
    pub(super) fn links(&self, geometry: &Geometry, buckets: &[u8]) -> Links {
        let limit = self.bytes.len() / geometry.elem_size + 1;
        follow(geometry, buckets, limit, |pointer| {
            let within = pointer.checked_sub(self.at).ok_or(Broken::Outside)?;
            let start = usize::try_from(within).map_err(|_| Broken::Outside)?;
            let elem = start.checked_add(geometry.elem_size);
            let elem = elem.and_then(|end| self.bytes.get(start..end)).ok_or(Broken::Outside)?;
            if !start.is_multiple_of(geometry.elem_size) {
                return Err(Broken::Outside);
            }
            if crosses(&self.holes, start, start + geometry.elem_size) {
                return Err(Broken::Missing);
            }
            Ok(((start / geometry.elem_size) as u32, next_of(elem)))
        })
    }
}

/// The pointer with which an element begins.
fn next_of(elem: &[u8]) -> u64 {
    At { offset: 0, size: 8 }.read(elem).unwrap_or(0)
}

/// The lists of a table, followed.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Address and number of each element.
    pub(super) items: Vec<(u64, u32)>,
    pub(super) chains: Vec<Chain>,
}

/// The list of one bucket that is not empty.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) bucket: u32,
    /// Its first element in [`Links::items`], and how many.
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) end: End,
}

/// How a list ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As it should, with the number of a bucket.
    Nulls(u64),
    /// It leads back to one of its elements, some of which may be listed twice.
    Circle,
    /// It goes on after more elements than there can be.
    TooLong,
    /// Its next element cannot be had.
    Broken(Broken),
}

/// Why an element cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A pointer to something that is no element.
    Outside,
    /// The element was not copied.
    Missing,
    /// The element could not be read.
    Read(ReadError),
    /// The budget ran out.
    Budget(String),
}

/// Follows all lists. `fetch` takes an element's address and gives its number and the pointer to
/// the next. Ends after `limit` elements, or at once when the budget ran out.
fn follow(
    geometry: &Geometry,
    buckets: &[u8],
    limit: usize,
    mut fetch: impl FnMut(u64) -> Result<(u32, u64), Broken>,
) -> Links {
    let mut links = Links::default();
    for (bucket, raw) in buckets.chunks_exact(geometry.bucket_size).enumerate() {
        let mut at = geometry.bucket_head.read(raw).unwrap_or(1);
        if at & 1 == 1 && at >> 1 == bucket as u64 {
            continue;
        }
        let start = links.items.len();
        // Brent's way of finding circles: compare with an element that is moved up ever farther.
        let (mut mark, mut steps, mut reach) = (0, 0usize, 1usize);
        let end = loop {
            if at & 1 == 1 {
                break End::Nulls(at >> 1);
            }
            if at == mark {
                break End::Circle;
            }
            if links.items.len() >= limit {
                break End::TooLong;
            }
            match fetch(at) {
                Ok((number, next)) => {
                    links.items.push((at, number));
                    if steps == reach {
                        (mark, steps, reach) = (at, 0, reach * 2);
                    }
                    steps += 1;
                    at = next;
                }
                Err(broken) => break End::Broken(broken),
            }
        };
        let over = matches!(end, End::Broken(Broken::Budget(_)) | End::TooLong);
        let len = links.items.len() - start;
        links.chains.push(Chain { bucket: bucket as u32, start, len, end });
        if over {
            break;
        }
    }
    links
}

impl RawHtab {
    pub(super) fn bytes(&self) -> usize {
        let elems = match &self.elems {
            Elems::Whole(slab) => slab.bytes.len(),
            Elems::Walked { arena, .. } => arena.len(),
        };
        self.buckets.len() + elems + self.percpu.as_ref().map_or(0, RawPerCpu::bytes)
    }

    /// The memory of the copy.
    pub(super) fn into_buffers(self) -> Vec<Vec<u8>> {
        let elems = match self.elems {
            Elems::Whole(slab) => slab.bytes,
            Elems::Walked { arena, .. } => arena,
        };
        let mut all = self.percpu.map_or_else(Vec::new, RawPerCpu::into_buffers);
        all.extend([self.buckets, elems]);
        all
    }
}

impl Kernel {
    /// Copies a table, and the values of all CPUs if it is one of those.
    pub(super) fn copy_htab(
        &self,
        layout: &HtabLayout,
        pool: &Buffers,
        map: &MapInfo,
        counted: Option<u64>,
        budget: &mut Budget,
    ) -> Result<RawMap, String> {
        let mut raw = vec![0; layout.size];
        self.read(map.kva, &mut raw).map_err(|e| e.to_string())?;
        let geometry = Geometry::new(layout, map, &raw)?;
        let number = |at: At| at.read(&raw).unwrap_or(0);
        let len = u64::from(geometry.n_buckets) * geometry.bucket_size as u64;
        budget.take(len)?;
        let mut buckets = pool.take(len as usize);
        self.read(Kva(number(layout.buckets)), &mut buckets).map_err(|e| e.to_string())?;
        let cpus = (0..self.nr_cpu_ids()).filter(|c| self.per_cpu_offset(*c).is_some()).count();
        let slab = self.slab(&geometry, map, number(layout.elems), cpus as u64);
        let elems = match slab {
            Some((at, len)) if worth_copying(len, counted, budget.left()) => {
                budget.take(len)?;
                let mut bytes = pool.take(len as usize);
                let holes = self.space.read_what_is_there(Kva(at), &mut bytes);
                Elems::Whole(Slab { at, bytes, holes })
            }
            _ => self.walk_table(&geometry, pool, map, &buckets, counted, budget),
        };
        let percpu =
            geometry.percpu.then(|| self.copy_pointed(&geometry, pool, &buckets, &elems, budget));
        let incomplete = percpu.as_ref().and_then(|p| p.incomplete().map(str::to_owned));
        let cpus = cpus as u64;
        let htab = RawHtab { geometry, buckets, elems, percpu, counted, cpus };
        Ok(RawMap { incomplete, ..RawMap::new(RawData::Htab(Box::new(htab))) })
    }

    /// Address and length of the elements, if they were allocated beforehand.
    fn slab(&self, geometry: &Geometry, map: &MapInfo, at: u64, cpus: u64) -> Option<(u64, u64)> {
        // Only plain hashes keep a spare element per CPU, to replace one without freeing it.
        let spare = if map.kind.number == kind::HASH { cpus } else { 0 };
        let count = u64::from(map.max_entries) + spare;
        (at != 0).then_some((at, count.saturating_mul(geometry.elem_size as u64)))
    }

    /// Follows the lists in guest memory and copies the elements that are in use.
    fn walk_table(
        &self,
        geometry: &Geometry,
        pool: &Buffers,
        map: &MapInfo,
        buckets: &[u8],
        counted: Option<u64>,
        budget: &mut Budget,
    ) -> Elems {
        /// Bytes that are charged to the budget at once, in whole elements.
        const BATCH: usize = 16 << 10;
        /// Pointers, good or bad, that are followed before the time is looked at again.
        const HOPS: usize = 256;
        let most = u64::from(map.max_entries) + SLACK;
        let size = geometry.elem_size;
        let expected = counted.unwrap_or(0).min(most).min(budget.left() / size as u64);
        let mut arena = pool.take_empty(expected as usize * size);
        let mut number = 0u32;
        let batch = (BATCH / size).max(1);
        let mut hops = 0usize;
        let links = follow(geometry, buckets, most as usize, |pointer| {
            hops += 1;
            if hops.is_multiple_of(HOPS) {
                budget.check_time().map_err(Broken::Budget)?;
            }
            if (number as usize).is_multiple_of(batch) {
                budget.take((batch * size) as u64).map_err(Broken::Budget)?;
            }
            let start = arena.len();
            arena.resize(start + size, 0);
            if let Err(e) = self.read(Kva(pointer), &mut arena[start..]) {
                arena.truncate(start);
                return Err(Broken::Read(e));
            }
            number += 1;
            Ok((number - 1, next_of(&arena[start..])))
        });
        Elems::Walked { arena, links }
    }

    /// Copies the per-CPU values that the elements point to. Of a large slab only those of
    /// elements in use.
    fn copy_pointed(
        &self,
        geometry: &Geometry,
        pool: &Buffers,
        buckets: &[u8],
        elems: &Elems,
        budget: &mut Budget,
    ) -> RawPerCpu {
        /// What all values of a slab may take on one CPU before it pays to leave some out.
        const SMALL: usize = 1 << 18;
        let bytes = match elems {
            Elems::Whole(slab) => &slab.bytes,
            Elems::Walked { arena, .. } => arena,
        };
        let pointers = bytes.chunks_exact(geometry.elem_size).map(|elem| geometry.pointer(elem));
        let mut rows: Vec<u64> = pointers.collect();
        let mut shown = rows.len();
        if let Elems::Whole(slab) = elems
            && rows.len().saturating_mul(geometry.value_size) > SMALL
        {
            let mut used = vec![0; rows.len()];
            let links = slab.links(geometry, buckets);
            for (_, number) in &links.items {
                used[*number as usize] = rows[*number as usize];
            }
            shown = links.items.len();
            rows = used;
        }
        RawPerCpu::copy(self, pool, rows, shown, geometry.value_size, budget)
    }
}

/// Whether copying a slab of `len` bytes takes less time than following `counted` pointers.
fn worth_copying(len: u64, counted: Option<u64>, left: u64) -> bool {
    let walk = counted.map_or(u64::MAX, |n| n.saturating_mul(HOP_BYTES));
    len <= left && len <= walk
}
