//! Copying a map while the machine is stopped: bytes now, meaning later.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::htab::RawHtab;
use super::layout::ArrayLayout;
use super::percpu::RawPerCpu;
use super::{BpfState, MapInfo, kind};
use crate::introspect::contents::{Details, MapData};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::introspect::sched::Memory;

/// What a capture may cost: bytes copied and time spent.
#[derive(Clone, Debug)]
pub struct Budget {
    total: u64,
    left: u64,
    time: Duration,
    start: Instant,
    /// What ran out first.
    exceeded: Option<String>,
}

impl Budget {
    /// At most `bytes`, for at most `time` from now on.
    #[must_use]
    pub fn new(bytes: u64, time: Duration) -> Self {
        Budget { total: bytes, left: bytes, time, start: Instant::now(), exceeded: None }
    }

    /// Bytes that are left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// What ran out, if anything did.
    #[must_use]
    pub fn exceeded(&self) -> Option<&str> {
        self.exceeded.as_deref()
    }

    /// Takes `bytes` off, or says why not.
    pub(in crate::introspect) fn take(&mut self, bytes: u64) -> Result<(), String> {
        self.check_time()?;
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.fail(format!("the capture's budget of {} bytes", self.total))),
        }
    }

    /// How many of `count` things of `size` bytes each are covered; takes them off.
    pub(super) fn take_some(&mut self, count: u64, size: u64) -> Result<u64, String> {
        self.check_time()?;
        let fits = self.left.checked_div(size).map_or(count, |fits| fits.min(count));
        self.left -= fits * size;
        if fits < count {
            self.fail(format!("the capture's budget of {} bytes", self.total));
        }
        Ok(fits)
    }

    /// Whether there is time left.
    pub(in crate::introspect) fn check_time(&mut self) -> Result<(), String> {
        if self.start.elapsed() > self.time {
            return Err(self.fail(format!("the capture's budget of {:?}", self.time)));
        }
        Ok(())
    }

    fn fail(&mut self, what: String) -> String {
        self.exceeded.get_or_insert_with(|| what.clone());
        format!("{what} ran out")
    }
}

/// The bytes of a map, as they were when it was copied.
pub struct RawMap {
    pub(super) data: RawData,
    /// What showed at once that the map may be half-changed.
    pub(super) torn: Vec<String>,
    /// The same of single entries that were found at once, by their index.
    pub(super) torn_entries: BTreeMap<usize, Vec<String>>,
    /// Why bytes are missing.
    pub(super) incomplete: Option<String>,
    /// What is there beside entries.
    pub(super) details: Details,
    /// What is there of single entries.
    pub(super) entry_details: BTreeMap<usize, Details>,
}

/// Bytes by the shape of the map.
pub(super) enum RawData {
    Array {
        bytes: Vec<u8>,
        stride: usize,
        value_size: usize,
    },
    PerCpuArray(RawPerCpu),
    Htab(Box<RawHtab>),
    /// Entries that were found while they were copied.
    Found(MapData),
    Unreadable(String),
}

impl RawMap {
    pub(super) fn new(data: RawData) -> Self {
        RawMap {
            data,
            torn: Vec::new(),
            torn_entries: BTreeMap::new(),
            incomplete: None,
            details: Details::new(),
            entry_details: BTreeMap::new(),
        }
    }

    pub(super) fn unreadable(reason: String) -> Self {
        RawMap::new(RawData::Unreadable(reason))
    }

    /// Shows each value that was copied, on each CPU; of tables also elements that are not in use,
    /// in whose values the kernel leaves no references. Ends when `show` wants no more.
    pub(super) fn for_each_value(&self, show: &mut dyn FnMut(&[u8]) -> bool) {
        match &self.data {
            RawData::Array { bytes, stride, value_size } => {
                let mut values = bytes.chunks(*stride);
                values.all(|value| show(value.get(..*value_size).unwrap_or(value)));
            }
            RawData::PerCpuArray(raw) => raw.for_each_value(show),
            RawData::Htab(raw) => raw.for_each_value(show),
            RawData::Found(MapData::Array { values } | MapData::Hash { values, .. }) => {
                values.iter().all(show);
            }
            RawData::Found(_) | RawData::Unreadable(_) => {}
        }
    }

    /// How many bytes were copied.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.data {
            RawData::Array { bytes, .. } => bytes.len(),
            RawData::PerCpuArray(raw) => raw.bytes(),
            RawData::Htab(raw) => raw.bytes(),
            RawData::Found(data) => data.bytes(),
            RawData::Unreadable(_) => 0,
        }
    }

    /// The memory of the copy.
    fn into_buffers(self) -> Vec<Vec<u8>> {
        match self.data {
            RawData::Array { bytes, .. } => vec![bytes],
            RawData::PerCpuArray(raw) => raw.into_buffers(),
            RawData::Htab(raw) => raw.into_buffers(),
            RawData::Found(_) | RawData::Unreadable(_) => Vec::new(),
        }
    }
}

impl Kernel {
    /// Copies `maps`, and into `memory` what their values lead to, once for practice, while the
    /// machine runs, so that the copy that counts finds its buffers, the guest's pages and the page
    /// tables at hand.
    pub fn rehearse(&self, maps: &[MapInfo], memory: &mut Memory, mut budget: Budget) {
        let raws: Vec<RawMap> = maps.iter().map(|map| self.copy_map(map, &mut budget)).collect();
        self.copy_leads(maps.iter().zip(&raws), memory, &mut budget);
        if let Ok(state) = self.bpf() {
            state.buffers.keep(raws.into_iter().flat_map(RawMap::into_buffers));
        }
    }

    /// Copies what `map` holds, within `budget`. Meant for a stopped machine; of one that runs
    /// the copy may be torn anywhere. Nothing is decoded: see [`RawMap::decode`].
    #[must_use]
    pub fn copy_map(&self, map: &MapInfo, budget: &mut Budget) -> RawMap {
        let state = match self.bpf() {
            Ok(state) => state,
            Err(e) => return RawMap::unreadable(e.to_string()),
        };
        let (layouts, buffers) = (&state.layouts, &state.buffers);
        let lacks = |e: &IntrospectError| e.to_string();
        let copied = match map.kind.number {
            kind::ARRAY => (layouts.array.as_ref().map_err(lacks))
                .and_then(|layout| self.copy_array(layout, buffers, map, budget)),
            kind::PERCPU_ARRAY => (layouts.array.as_ref().map_err(lacks))
                .and_then(|layout| self.copy_percpu_array(layout, buffers, map, budget)),
            kind::HASH | kind::LRU_HASH | kind::PERCPU_HASH | kind::LRU_PERCPU_HASH => {
                let counted = self.elem_count(state, map);
                (layouts.htab.as_ref().map_err(lacks))
                    .and_then(|layout| self.copy_htab(layout, buffers, map, counted, budget))
            }
            _ => self
                .copy_other(state, map, budget)
                .unwrap_or_else(|| Err(format!("maps of kind {} cannot be decoded yet", map.kind))),
        };
        let mut raw = copied.unwrap_or_else(RawMap::unreadable);
        raw.torn.splice(0..0, map.torn.iter().cloned());
        raw
    }

    /// How many elements the map itself counts, where it does.
    pub(super) fn elem_count(&self, state: &BpfState, map: &MapInfo) -> Option<u64> {
        let member = state.layouts.map.elem_count?;
        let counter = self.read_u64(map.kva.offset(member.offset as u64)).ok()?;
        if counter == 0 {
            return None;
        }
        let mut sum = 0i64;
        for offset in (0..self.nr_cpu_ids()).filter_map(|cpu| self.per_cpu_offset(cpu)) {
            let at = crate::mem::Kva(counter.wrapping_add(offset));
            sum = sum.wrapping_add(self.read_u64(at).ok()? as i64);
        }
        u64::try_from(sum).ok()
    }

    /// Where an array has the value, or the per-CPU pointer to it, of this index.
    pub(in crate::introspect) fn array_slot(
        &self,
        map: &MapInfo,
        index: u32,
    ) -> Result<crate::mem::Kva, IntrospectError> {
        let layout = self.bpf()?.layouts.array.as_ref().map_err(Clone::clone)?;
        let stride = match map.kind.number {
            kind::PERCPU_ARRAY => 8,
            _ => self.array_stride(layout, map).map_err(IntrospectError::Type)?,
        };
        let first = map.kva.offset(layout.values as u64);
        Ok(first.offset(u64::from(index) * stride))
    }

    /// The stride of an array's values; the kernel rounds them up to eight bytes.
    fn array_stride(&self, layout: &ArrayLayout, map: &MapInfo) -> Result<u64, String> {
        let at = map.kva.offset(layout.elem_size.offset as u64);
        let stride = u64::from(self.read_u32(at).map_err(|e| e.to_string())?);
        if stride != u64::from(map.value_size).next_multiple_of(8) || stride == 0 {
            let size = map.value_size;
            return Err(format!("its values of {size} bytes lie {stride} bytes apart"));
        }
        Ok(stride)
    }

    /// ARRAY: the values follow the `bpf_array` (a mappable one is placed so that they begin on a
    /// page, which makes no difference here).
    fn copy_array(
        &self,
        layout: &ArrayLayout,
        buffers: &Buffers,
        map: &MapInfo,
        budget: &mut Budget,
    ) -> Result<RawMap, String> {
        let stride = self.array_stride(layout, map)?;
        let wanted = u64::from(map.max_entries);
        let len = budget.take_some(wanted, stride)?;
        if len == 0 && wanted > 0 {
            let (need, left) = (stride * wanted, budget.left());
            return Err(format!(
                "it takes {need} bytes, and {left} are left of the capture's budget"
            ));
        }
        let mut incomplete = fitted(len, wanted);
        let mut bytes = buffers.take((len * stride) as usize);
        let start = map.kva.offset(layout.values as u64);
        if let Some(hole) = self.space.read_what_is_there(start, &mut bytes).first() {
            bytes.truncate(hole.offset);
            let there = hole.offset as u64 / stride;
            incomplete = Some(format!("of entry {there} on: {}", hole.cause));
        }
        let (stride, value_size) = (stride as usize, map.value_size as usize);
        let data = RawData::Array { bytes, stride, value_size };
        Ok(RawMap { incomplete, ..RawMap::new(data) })
    }

    /// PERCPU_ARRAY: per-CPU pointers to the values follow the `bpf_array`.
    fn copy_percpu_array(
        &self,
        layout: &ArrayLayout,
        buffers: &Buffers,
        map: &MapInfo,
        budget: &mut Budget,
    ) -> Result<RawMap, String> {
        self.array_stride(layout, map)?;
        let wanted = u64::from(map.max_entries);
        let len = budget.take_some(wanted, 8)?;
        let mut incomplete = fitted(len, wanted);
        let mut pointers = vec![0; len as usize * 8];
        let start = map.kva.offset(layout.values as u64);
        if let Some(hole) = self.space.read_what_is_there(start, &mut pointers).first() {
            pointers.truncate(hole.offset);
            incomplete = Some(format!("of entry {} on: {}", hole.offset / 8, hole.cause));
        }
        let rows: Vec<u64> =
            pointers.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let shown = rows.len();
        let raw = RawPerCpu::copy(self, buffers, rows, shown, map.value_size as usize, budget);
        let incomplete = raw.incomplete().map(str::to_owned).or(incomplete);
        Ok(RawMap { incomplete, ..RawMap::new(RawData::PerCpuArray(raw)) })
    }
}

/// What to say when the budget covers `len` of `wanted` entries.
fn fitted(len: u64, wanted: u64) -> Option<String> {
    (len < wanted).then(|| format!("{len} of {wanted} entries fitted into the capture's budget"))
}
