//! From the bytes of a map to its entries. Pure: the guest is not looked at any more.

use std::collections::{BTreeMap, HashSet};

use super::copy::{RawData, RawMap};
use super::htab::{Broken, Chain, Elems, End, Geometry, Links, RawHtab};
use crate::introspect::contents::{MapContents, MapData, PerCpuValues, Values};

/// Reasons of one kind that are spelled out; of more only the number is told.
const SPELLED_OUT: usize = 4;

impl RawMap {
    /// Finds the entries in the copied bytes.
    #[must_use]
    pub fn decode(self) -> MapContents {
        let mut out = MapContents {
            torn: self.torn,
            torn_entries: self.torn_entries,
            incomplete: self.incomplete,
            details: self.details,
            entry_details: self.entry_details,
            ..MapContents::new(MapData::Unreadable { reason: String::new() })
        };
        match self.data {
            RawData::Unreadable(reason) => out.data = MapData::Unreadable { reason },
            RawData::Array { bytes, stride, value_size } => {
                out.data = MapData::Array { values: Values::new(bytes, value_size, stride) };
            }
            RawData::PerCpuArray(raw) => {
                let rows: Vec<usize> = (0..raw.len()).collect();
                out.data = MapData::PerCpuArray { values: raw.decode(&rows) };
            }
            RawData::Htab(raw) => Table::new(&raw).decode(&mut out),
            RawData::Found(data) => out.data = data,
        }
        out
    }
}

/// The entries of a hash table, as they are found.
struct Table<'a> {
    raw: &'a RawHtab,
    geometry: &'a Geometry,
    bytes: &'a [u8],
    /// Numbers of the elements that are entries.
    entries: Vec<u32>,
    torn_entries: BTreeMap<usize, Vec<String>>,
    notes: Notes,
    /// Buckets whose lock was held.
    held: HashSet<u32>,
    /// Elements in lists, whether they became entries or not.
    linked: u64,
}

/// Reasons, by kind.
#[derive(Default)]
struct Notes {
    torn: Vec<Note>,
    incomplete: Option<String>,
}

/// Reasons of one kind: the first few, and how many there are.
struct Note {
    kind: &'static str,
    first: Vec<String>,
    count: usize,
}

impl Notes {
    fn torn(&mut self, kind: &'static str, text: impl FnOnce() -> String) {
        let at = match self.torn.iter().position(|n| n.kind == kind) {
            Some(at) => at,
            None => {
                self.torn.push(Note { kind, first: Vec::new(), count: 0 });
                self.torn.len() - 1
            }
        };
        let note = &mut self.torn[at];
        note.count += 1;
        if note.first.len() < SPELLED_OUT {
            note.first.push(text());
        }
    }

    fn incomplete(&mut self, text: String) {
        self.incomplete.get_or_insert(text);
    }

    fn into_torn(self) -> impl Iterator<Item = String> {
        self.torn.into_iter().flat_map(|Note { kind, mut first, count }| {
            if count > first.len() {
                first.push(format!("{kind} in {} more places", count - first.len()));
            }
            first
        })
    }
}

impl<'a> Table<'a> {
    fn new(raw: &'a RawHtab) -> Self {
        let bytes = match &raw.elems {
            Elems::Whole(slab) => &slab.bytes,
            Elems::Walked { arena, .. } => arena,
        };
        Table {
            raw,
            geometry: &raw.geometry,
            bytes,
            entries: Vec::new(),
            torn_entries: BTreeMap::new(),
            notes: Notes::default(),
            held: HashSet::new(),
            linked: 0,
        }
    }

    fn decode(mut self, out: &mut MapContents) {
        let found;
        let links = match &self.raw.elems {
            Elems::Whole(slab) => {
                found = slab.links(self.geometry, &self.raw.buckets);
                &found
            }
            Elems::Walked { links, .. } => links,
        };
        self.locks();
        for chain in &links.chains {
            self.chain(links, chain);
        }
        self.count();
        let mut keys = Values::empty(self.geometry.key_size);
        let mut values = Values::empty(self.geometry.value_size);
        let g = self.geometry;
        for number in &self.entries {
            let elem = self.elem(*number);
            keys.push(elem.get(g.key..g.key + g.key_size).unwrap_or_default());
            if !g.percpu {
                values.push(elem.get(g.value..g.value + g.value_size).unwrap_or_default());
            }
        }
        out.data = match &self.raw.percpu {
            Some(raw) => {
                let rows: Vec<usize> = self.entries.iter().map(|n| *n as usize).collect();
                let values = raw.decode(&rows);
                MapData::PerCpuHash { keys, values }
            }
            None if g.percpu => MapData::PerCpuHash { keys, values: PerCpuValues::empty(0, 0) },
            None => MapData::Hash { keys, values },
        };
        out.torn_entries = self.torn_entries;
        if let Some(why) = self.notes.incomplete.take() {
            out.incomplete.get_or_insert(why);
        }
        out.torn.extend(self.notes.into_torn());
    }

    fn elem(&self, number: u32) -> &'a [u8] {
        let start = number as usize * self.geometry.elem_size;
        self.bytes.get(start..start + self.geometry.elem_size).unwrap_or_default()
    }

    fn key(&self, number: u32) -> &'a [u8] {
        let g = self.geometry;
        self.elem(number).get(g.key..g.key + g.key_size).unwrap_or_default()
    }

    /// Finds the buckets that were being changed.
    fn locks(&mut self) {
        let Some(lock) = self.geometry.bucket_lock else { return };
        let buckets = self.raw.buckets.chunks_exact(self.geometry.bucket_size);
        for (bucket, raw) in buckets.enumerate() {
            if lock.read(raw).is_some_and(|word| word != 0) {
                let text = || format!("the lock of bucket {bucket} is held");
                self.notes.torn("a bucket's lock is held", text);
                self.held.insert(bucket as u32);
            }
        }
    }

    /// Takes the elements of one bucket.
    fn chain(&mut self, links: &Links, chain: &Chain) {
        let g = self.geometry;
        let bucket = chain.bucket;
        let held = self.held.contains(&bucket);
        let mut seen = Seen::default();
        let mut visited = HashSet::new();
        for (at, number) in &links.items[chain.start..chain.start + chain.len] {
            if chain.end == End::Circle && !visited.insert(*at) {
                break;
            }
            self.linked += 1;
            let hash = g.hash.read(self.elem(*number)).unwrap_or(0);
            if hash & u64::from(g.n_buckets - 1) != u64::from(bucket) {
                let text =
                    || format!("the list of bucket {bucket} has an element of another bucket");
                self.notes.torn("a list has an element of another bucket", text);
                self.rest_is_lost(bucket);
                break;
            }
            // A replaced element stays linked until the new one, before it, is: the first wins.
            if let Some(entry) = seen.find(self.key(*number), self.entries.len()) {
                let text = format!("a key appears twice in bucket {bucket}: it is being replaced");
                self.notes.torn("a key appears twice", || text.clone());
                self.torn_entries.entry(entry).or_default().push(text);
                continue;
            }
            if held {
                let text = format!("the lock of its bucket ({bucket}) is held");
                self.torn_entries.entry(self.entries.len()).or_default().push(text);
            }
            self.entries.push(*number);
        }
        self.end(chain);
    }

    /// Entries that a damaged list does not lead to are missing, whatever they are.
    fn rest_is_lost(&mut self, bucket: u32) {
        self.notes.incomplete(format!("the list of bucket {bucket} is damaged"));
    }

    /// Says what is wrong with how a list ends.
    fn end(&mut self, chain: &Chain) {
        let bucket = chain.bucket;
        match &chain.end {
            End::Nulls(n) if *n == u64::from(bucket) => {}
            End::Nulls(n) => {
                let text = || format!("the list of bucket {bucket} ends as that of bucket {n}");
                self.notes.torn("a list ends as another one", text);
                self.rest_is_lost(bucket);
            }
            End::Circle => {
                let text = || format!("the list of bucket {bucket} runs in a circle");
                self.notes.torn("a list runs in a circle", text);
                self.rest_is_lost(bucket);
            }
            End::TooLong => {
                self.notes.incomplete(format!(
                    "from bucket {bucket} on: more elements are linked than there can be"
                ));
            }
            End::Broken(Broken::Outside) => {
                let text = || format!("the list of bucket {bucket} leads to what is no element");
                self.notes.torn("a list leads to what is no element", text);
                self.rest_is_lost(bucket);
            }
            End::Broken(Broken::Missing) => self.notes.incomplete(format!(
                "the rest of bucket {bucket} is in memory that could not be read"
            )),
            End::Broken(Broken::Read(e)) => {
                self.notes.incomplete(format!("the rest of bucket {bucket}: {e}"));
            }
            End::Broken(Broken::Budget(e)) => {
                let n = self.linked;
                self.notes.incomplete(format!("after {n} elements, in bucket {bucket}: {e}"));
            }
        }
    }

    /// Compares with what the table counts. Each CPU can be between counting and linking.
    fn count(&mut self) {
        let Some(counted) = self.raw.counted else { return };
        let linked = self.linked;
        if self.notes.incomplete.is_none() && counted.abs_diff(linked) > self.raw.cpus {
            let text = || format!("it counts {counted} elements, but {linked} are linked");
            self.notes.torn("a count is off", text);
        }
    }
}

/// The keys of one bucket: few, usually, so they are compared one by one before they are hashed.
#[derive(Default)]
struct Seen<'a> {
    few: Vec<(&'a [u8], usize)>,
    many: std::collections::HashMap<&'a [u8], usize>,
}

impl<'a> Seen<'a> {
    /// The entry that has `key`; otherwise `entry` has it from now on.
    fn find(&mut self, key: &'a [u8], entry: usize) -> Option<usize> {
        const FEW: usize = 16;
        if self.many.is_empty() {
            if let Some((_, entry)) = self.few.iter().find(|(k, _)| *k == key) {
                return Some(*entry);
            }
            if self.few.len() < FEW {
                self.few.push((key, entry));
                return None;
            }
            self.many.extend(self.few.drain(..));
        }
        match self.many.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => Some(*known.get()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(entry);
                None
            }
        }
    }
}
