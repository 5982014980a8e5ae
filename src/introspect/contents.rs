//! What a map holds, as bytes: the result of decoding a copy of it.
//!
//! Values are kept in one allocation per side, not in one per entry: a map of ten thousand
//! entries is decoded into a handful of vectors.

use std::collections::BTreeMap;

/// The contents of one map at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapContents {
    /// Keys and values.
    pub data: MapData,
    /// Why the map as a whole may be half-changed; usually empty.
    pub torn: Vec<String>,
    /// Why single entries may be half-changed, by the entry's index.
    pub torn_entries: BTreeMap<usize, Vec<String>>,
    /// Why something is missing: a budget that ran out, memory that could not be read. What was
    /// read until then is in `data`.
    pub incomplete: Option<String>,
    /// What the kernel keeps of the map beside its entries.
    pub details: Details,
    /// What it keeps of single entries, by the entry's index.
    pub entry_details: BTreeMap<usize, Details>,
}

/// Facts by name, in an order that reads well.
pub type Details = Vec<(&'static str, Detail)>;

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A number.
    Number(u64),
    /// Text.
    Text(String),
}

impl From<u64> for Detail {
    fn from(n: u64) -> Self {
        Detail::Number(n)
    }
}

impl From<String> for Detail {
    fn from(text: String) -> Self {
        Detail::Text(text)
    }
}

impl MapContents {
    /// Contents about which nothing else is to be said.
    #[must_use]
    pub fn new(data: MapData) -> Self {
        MapContents {
            data,
            torn: Vec::new(),
            torn_entries: BTreeMap::new(),
            incomplete: None,
            details: Vec::new(),
            entry_details: BTreeMap::new(),
        }
    }
}

/// Keys and values by the shape of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapData {
    /// ARRAY and the section maps: the key is the index. QUEUE and STACK: from what was pushed
    /// first to the last. STRUCT_OPS: the one value.
    Array {
        /// One value per index.
        values: Values,
    },
    /// PERCPU_ARRAY: the key is the index.
    PerCpuArray {
        /// One value per index and CPU.
        values: PerCpuValues,
    },
    /// HASH and LRU_HASH, in no order that means anything; also the other kinds with keys:
    /// TASK_STORAGE (thread ids), the other storages (text that says whose it is), LPM_TRIE, ring
    /// buffers (positions), and those of maps and programs (whose values are ids).
    Hash {
        /// One key per entry.
        keys: Values,
        /// One value per entry.
        values: Values,
    },
    /// PERCPU_HASH and LRU_PERCPU_HASH.
    PerCpuHash {
        /// One key per entry.
        keys: Values,
        /// One value per entry and CPU.
        values: PerCpuValues,
    },
    /// Nothing could be read, or maps of this kind are not decoded.
    Unreadable {
        /// Why.
        reason: String,
    },
}

impl MapData {
    /// How many entries there are; `None` when the map could not be read.
    #[must_use]
    pub fn len(&self) -> Option<usize> {
        match self {
            MapData::Array { values } => Some(values.len()),
            MapData::PerCpuArray { values } => Some(values.len()),
            MapData::Hash { keys, .. } | MapData::PerCpuHash { keys, .. } => Some(keys.len()),
            MapData::Unreadable { .. } => None,
        }
    }

    /// How many bytes keys and values take together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let per_cpu = |values: &PerCpuValues| values.len() * values.cpus() * values.size();
        match self {
            MapData::Array { values } => values.bytes.len(),
            MapData::Hash { keys, values } => keys.bytes.len() + values.bytes.len(),
            MapData::PerCpuArray { values } => per_cpu(values),
            MapData::PerCpuHash { keys, values } => keys.bytes.len() + per_cpu(values),
            MapData::Unreadable { .. } => 0,
        }
    }

    /// Whether the map was read and has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }
}

/// Byte strings in one allocation, most often equally long.
#[derive(Clone, PartialEq, Eq)]
pub struct Values {
    bytes: Vec<u8>,
    place: Place,
    len: usize,
}

/// Where each of the strings is.
#[derive(Clone, PartialEq, Eq)]
enum Place {
    Even {
        /// From one to the next; at least `size` and at least 1.
        stride: usize,
        size: usize,
    },
    /// Where each ends; the next begins there.
    Uneven(Vec<usize>),
}

impl Values {
    /// Takes `bytes` as values of `size` bytes that lie `stride` bytes apart (the kernel rounds
    /// values of arrays up to eight bytes). As many as fit; the last may lack its padding.
    #[must_use]
    pub fn new(bytes: Vec<u8>, size: usize, stride: usize) -> Self {
        let stride = stride.max(size).max(1);
        let whole = bytes.len() / stride;
        let len = if bytes.len() % stride >= size.max(1) { whole + 1 } else { whole };
        Values { bytes, place: Place::Even { stride, size }, len }
    }

    /// No values yet, of `size` bytes each, for [`Values::push`].
    #[must_use]
    pub fn empty(size: usize) -> Self {
        Values { bytes: Vec::new(), place: Place::Even { stride: size.max(1), size }, len: 0 }
    }

    /// No values yet, of any length.
    #[must_use]
    pub fn uneven() -> Self {
        Values { bytes: Vec::new(), place: Place::Uneven(Vec::new()), len: 0 }
    }

    /// Adds a value; where all have one size, `bytes` is cut or filled up with zeros to it.
    pub fn push(&mut self, bytes: &[u8]) {
        match &mut self.place {
            Place::Even { stride, size } => {
                let n = bytes.len().min(*size);
                self.bytes.resize(self.len * *stride, 0);
                self.bytes.extend_from_slice(&bytes[..n]);
                self.bytes.resize((self.len + 1) * *stride, 0);
            }
            Place::Uneven(ends) => {
                self.bytes.extend_from_slice(bytes);
                ends.push(self.bytes.len());
            }
        }
        self.len += 1;
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of each; of the longest, where they differ.
    #[must_use]
    pub fn size(&self) -> usize {
        match &self.place {
            Place::Even { size, .. } => *size,
            Place::Uneven(_) => self.iter().map(<[u8]>::len).max().unwrap_or_default(),
        }
    }

    /// The one at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        if index >= self.len {
            return None;
        }
        match &self.place {
            Place::Even { stride, size } => {
                let start = index.checked_mul(*stride)?;
                self.bytes.get(start..start.checked_add(*size)?)
            }
            Place::Uneven(ends) => {
                let start = index.checked_sub(1).map_or(0, |before| ends[before]);
                self.bytes.get(start..*ends.get(index)?)
            }
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len).map(|i| self.get(i).unwrap_or(&[]))
    }
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Values({} of {} bytes)", self.len, self.size())
    }
}

/// One value per row and CPU; a slot may be missing.
#[derive(Clone, PartialEq, Eq)]
pub struct PerCpuValues {
    /// What each CPU has; `None` for one that has nothing in any row.
    cpus: Vec<Option<Column>>,
    size: usize,
    len: usize,
}

/// What one CPU has.
#[derive(Clone, PartialEq, Eq)]
struct Column {
    values: Values,
    present: Vec<bool>,
}

impl Column {
    fn empty(size: usize) -> Self {
        Column { values: Values::empty(size), present: Vec::new() }
    }

    fn push(&mut self, slot: Option<&[u8]>) {
        self.present.push(slot.is_some());
        self.values.push(slot.unwrap_or(&[]));
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        if *self.present.get(index)? { self.values.get(index) } else { None }
    }
}

impl PerCpuValues {
    /// No rows yet, for `cpus` CPUs and values of `size` bytes.
    #[must_use]
    pub fn empty(cpus: usize, size: usize) -> Self {
        PerCpuValues { cpus: vec![None; cpus], size, len: 0 }
    }

    /// Adds a row: what each CPU has, in order. CPUs beyond the row's end have nothing.
    pub fn push<'a>(&mut self, row: impl IntoIterator<Item = Option<&'a [u8]>>) {
        let mut row = row.into_iter();
        for cpu in &mut self.cpus {
            let slot = row.next().flatten();
            if slot.is_none() && cpu.is_none() {
                continue;
            }
            let column = cpu.get_or_insert_with(|| {
                let mut column = Column::empty(self.size);
                (0..self.len).for_each(|_| column.push(None));
                column
            });
            column.push(slot);
        }
        self.len += 1;
    }

    /// Makes `len` rows at once, CPU by CPU: `slots` gives what a CPU has in all rows, or `None`
    /// for a CPU that has nothing. Costs nothing for those.
    pub(super) fn by_cpu<'a, I>(
        len: usize,
        size: usize,
        slots: impl IntoIterator<Item = Option<I>>,
    ) -> Self
    where
        I: Iterator<Item = Option<&'a [u8]>>,
    {
        let column = |slots: I| {
            let mut column = Column::empty(size);
            slots.take(len).for_each(|slot| column.push(slot));
            column
        };
        PerCpuValues { cpus: slots.into_iter().map(|cpu| cpu.map(column)).collect(), size, len }
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many CPUs each row has a slot for: CPU numbers are below this.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// Bytes of each value.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// What `cpu` has in row `index`; `None` also when that slot has no page behind it or the CPU
    /// cannot exist in this machine.
    #[must_use]
    pub fn get(&self, index: usize, cpu: usize) -> Option<&[u8]> {
        self.cpus.get(cpu)?.as_ref()?.get(index)
    }
}

impl std::fmt::Debug for PerCpuValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cpus = self.cpus();
        write!(f, "PerCpuValues({} rows, {cpus} CPUs, {} bytes)", self.len, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_from_their_padding() {
        let v = Values::new(vec![1, 2, 3, 0, 4, 5, 6], 3, 4);
        assert_eq!(v.iter().collect::<Vec<_>>(), [&[1, 2, 3], &[4, 5, 6]]);
        assert_eq!(v.get(2), None);
        assert_eq!(Values::new(vec![1, 2, 3, 0, 4, 5], 3, 4).len(), 1, "half a value is none");
    }

    #[test]
    fn values_without_bytes_still_count() {
        let mut v = Values::empty(0);
        v.push(&[]);
        v.push(&[]);
        assert_eq!((v.len(), v.get(1)), (2, Some(&[][..])));
    }

    #[test]
    fn pushed_values_have_one_size() {
        let mut v = Values::empty(2);
        v.push(&[1]);
        v.push(&[1, 2, 3]);
        assert_eq!(v.iter().collect::<Vec<_>>(), [&[1, 0], &[1, 2]]);
    }

    #[test]
    fn values_can_have_lengths_of_their_own() {
        let mut v = Values::uneven();
        for value in [&[1, 2][..], &[], &[3]] {
            v.push(value);
        }
        assert_eq!(v.iter().collect::<Vec<_>>(), [&[1, 2][..], &[], &[3]]);
        assert_eq!((v.len(), v.size(), v.get(3)), (3, 2, None));
    }

    #[test]
    fn a_per_cpu_slot_can_be_missing() {
        let mut v = PerCpuValues::empty(3, 1);
        v.push([Some(&[7][..]), None]);
        v.push([None, Some(&[8][..]), Some(&[9][..])]);
        assert_eq!((v.len(), v.cpus()), (2, 3));
        assert_eq!(v.get(0, 0), Some(&[7][..]));
        assert_eq!((v.get(0, 1), v.get(0, 2), v.get(1, 0)), (None, None, None));
        assert_eq!(v.get(1, 2), Some(&[9][..]));
        assert_eq!((v.get(2, 0), v.get(0, 3)), (None, None));
        let zero = [Some(&[7][..]), None].into_iter();
        let one = [None, Some(&[8][..])].into_iter();
        let two = [None, Some(&[9][..])].into_iter();
        let rows = PerCpuValues::by_cpu(2, 1, [Some(zero), Some(one), Some(two)]);
        assert!((0..2).all(|i| (0..3).all(|c| rows.get(i, c) == v.get(i, c))));
    }
}
