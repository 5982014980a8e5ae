//! A captured map and the ways into it.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::btf::Shape;

use super::access::Field;
use super::contents::{CapturedMap, Contents, Detail, MapAttrs};
use super::entry::Entry;
use super::error::{SnapshotError, SnapshotResult};
use super::key::{self, KeyArg, Wanted};
use super::value;
use super::{Snapshot, bloom};

/// Keys that [`SnapshotError::NoMatch`] shows.
const SAMPLE_KEYS: usize = 3;

/// More bytes than a key has: those of hashes fit the stack of a BPF program, 512 bytes.
const MAX_KEY: usize = 1 << 16;

/// A map as it was when the machine was frozen. A cheap handle.
///
/// Entries of the hash kinds come in the order of their keys, so that two runs agree.
#[derive(Clone)]
pub struct Map {
    snapshot: Arc<Snapshot>,
    index: usize,
    cpu: Option<usize>,
}

impl Map {
    pub(crate) fn new(snapshot: Arc<Snapshot>, index: usize) -> Map {
        Map { snapshot, index, cpu: None }
    }

    /// The snapshot it is in.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    fn captured(&self) -> &CapturedMap {
        self.snapshot.captured(self.index)
    }

    pub(crate) fn contents(&self) -> &dyn Contents {
        self.captured().contents()
    }

    /// What is known without looking into it.
    #[must_use]
    pub fn attrs(&self) -> &MapAttrs {
        &self.captured().attrs
    }

    /// Its full name where it is known, else the name that the kernel cut.
    #[must_use]
    pub fn name(&self) -> &str {
        self.attrs().shown_name()
    }

    /// The CPU that it was narrowed to by [`Map::cpu`].
    #[must_use]
    pub fn narrowed_to(&self) -> Option<usize> {
        self.cpu
    }

    /// Whether its keys are the numbers of its entries: the indices of an array, or places in a
    /// queue or a stack, from what was pushed first.
    #[must_use]
    pub fn is_indexed(&self) -> bool {
        let kind = self.attrs().kind.as_str();
        matches!(kind, "array" | "percpu_array" | "struct_ops" | "queue" | "stack")
    }

    /// Whether it is a section of variables, such as `.bss`.
    #[must_use]
    pub fn is_section(&self) -> bool {
        self.snapshot.section(self.index).is_some()
    }

    /// Its name as [`Snapshot::map`] takes it where `among` has others of the same name.
    pub(crate) fn spelled(&self, among: &[Map]) -> String {
        match among.iter().filter(|map| map.name() == self.name()).count() > 1 {
            true => format!("{}#{}", self.name(), self.attrs().id),
            false => self.name().to_owned(),
        }
    }

    /// How many entries it holds.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when not all of them could be read.
    pub fn len(&self) -> SnapshotResult<usize> {
        self.whole().map(Contents::rows)
    }

    /// Whether it holds no entries.
    ///
    /// # Errors
    /// As [`Map::len`].
    pub fn is_empty(&self) -> SnapshotResult<bool> {
        self.len().map(|len| len == 0)
    }

    /// The entry at a position: an array's index, else the place in the order of keys.
    ///
    /// # Errors
    /// [`SnapshotError::IndexOutOfRange`] past the end,
    /// [`SnapshotError::MapRenderIncomplete`] where the end is not known.
    pub fn at(&self, index: i64) -> SnapshotResult<Entry> {
        let rows = self.contents().rows();
        match usize::try_from(index) {
            Ok(at) if at < rows => Ok(self.entry_at(at)),
            _ => {
                let len = self.len()?;
                Err(SnapshotError::IndexOutOfRange { map: self.name().to_owned(), index, len })
            }
        }
    }

    /// The entry with a key.
    ///
    /// # Errors
    /// [`SnapshotError::NoMatch`] with keys that are there, [`SnapshotError::TypeMismatch`] or
    /// [`SnapshotError::FieldNotFound`] when `key` cannot be a key of this map,
    /// [`SnapshotError::MapRenderIncomplete`] when it was not found and not all was read.
    pub fn get(&self, key: &KeyArg) -> SnapshotResult<Entry> {
        let call = || format!("get({})", key.spelled());
        match self.lookup(key)? {
            Ok(row) => Ok(Entry::new(self.clone(), row)),
            Err(near) => {
                self.whole()?;
                Err(self.no_match(&call(), near))
            }
        }
    }

    /// Whether there is an entry with a key. Of a bloom filter, whether a value may have been put
    /// in: false is certain.
    ///
    /// # Errors
    /// As [`Map::get`], other than that there is none.
    pub fn contains(&self, key: &KeyArg) -> SnapshotResult<bool> {
        if self.attrs().kind == "bloom_filter" {
            return self.may_contain(key);
        }
        let found = self.lookup(key)?.is_ok();
        if !found {
            self.whole()?;
        }
        Ok(found)
    }

    /// All keys.
    ///
    /// # Errors
    /// As [`Map::len`].
    pub fn keys(&self) -> SnapshotResult<Vec<Field>> {
        Ok(self.entries()?.map(|entry| entry.key()).collect())
    }

    /// All entries.
    ///
    /// # Errors
    /// As [`Map::len`]: an enumeration that silently ends early would be a wrong one.
    pub fn entries(&self) -> SnapshotResult<impl ExactSizeIterator<Item = Entry> + use<>> {
        self.whole()?;
        Ok(self.known_entries())
    }

    /// The entries that could be read. [`Map::entries`] also says when those are not all.
    pub fn known_entries(&self) -> impl ExactSizeIterator<Item = Entry> + use<> {
        let map = self.clone();
        (0..self.contents().rows()).map(move |at| map.entry_at(at))
    }

    /// The same map as one CPU sees it.
    ///
    /// # Errors
    /// [`SnapshotError::PerCpuSlot`] when there is no such CPU, [`SnapshotError::TypeMismatch`]
    /// when the map is not per-CPU.
    pub fn cpu(&self, cpu: i64) -> SnapshotResult<Map> {
        let len = self.cpus()?;
        match usize::try_from(cpu) {
            Ok(at) if at < len => Ok(self.narrowed(at)),
            _ => {
                let map = self.name().to_owned();
                Err(SnapshotError::PerCpuSlot { map, cpu, len, unmapped: false })
            }
        }
    }

    /// How many CPUs each entry has a slot for.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] when the map is not per-CPU,
    /// [`SnapshotError::MapRenderIncomplete`] when it could not be read.
    pub fn cpus(&self) -> SnapshotResult<usize> {
        let contents = self.contents();
        if let Some(cpus) = contents.cpus() {
            return Ok(cpus);
        }
        if contents.rows() == 0 {
            self.whole()?;
        }
        Err(SnapshotError::TypeMismatch {
            expected: "a per-CPU map".to_owned(),
            actual: format!("{} of kind {}", self.name(), self.attrs().kind),
            requested: String::new(),
        })
    }

    pub(crate) fn narrowed(&self, cpu: usize) -> Map {
        Map { cpu: Some(cpu), ..self.clone() }
    }

    /// Why the map may be half-changed: the vCPUs stop anywhere, also inside a critical section.
    /// Usually empty; entries have reasons of their own. A value that is updated in place takes
    /// no lock, so that cannot be told.
    #[must_use]
    pub fn torn(&self) -> Vec<String> {
        self.contents().torn().to_vec()
    }

    /// What the kernel keeps of the map beside its entries; nothing in most kinds.
    #[must_use]
    pub fn details(&self) -> &[(String, Detail)] {
        self.contents().details()
    }

    /// Why not all of it could be read, if so.
    #[must_use]
    pub fn incomplete(&self) -> Option<&str> {
        self.contents().incomplete()
    }

    /// The error that `op` (as a call would be spelled) matched nothing here.
    #[must_use]
    pub fn nothing_matched(&self, op: &str) -> SnapshotError {
        match self.whole() {
            Ok(_) => self.no_match(op, 0),
            Err(incomplete) => incomplete,
        }
    }

    /// The contents, when all of them were read.
    pub(super) fn whole(&self) -> SnapshotResult<&dyn Contents> {
        let contents = self.contents();
        match contents.incomplete() {
            None => Ok(contents),
            Some(why) => Err(SnapshotError::MapRenderIncomplete {
                map: self.name().to_owned(),
                error: match contents.rows() {
                    0 => why.to_owned(),
                    rows => format!("only {rows} of its entries were captured: {why}"),
                },
            }),
        }
    }

    /// The entry at a position below the number of rows.
    fn entry_at(&self, at: usize) -> Entry {
        let row = match self.order().get(at) {
            Some(&row) => row as usize,
            None => at,
        };
        Entry::new(self.clone(), row)
    }

    fn order(&self) -> &[u32] {
        rows_by_key(self.captured())
    }

    /// The row with a key, or the position near which it would be.
    fn lookup(&self, key: &KeyArg) -> SnapshotResult<Result<usize, usize>> {
        let contents = self.contents();
        let rows = contents.rows();
        if self.is_indexed() {
            return self.lookup_index(key, rows);
        }
        let wanted = self.encoded(key)?;
        let order = self.order();
        if let Some(bytes) = wanted.as_exact() {
            let by_key = KeyOrder::of(self.attrs());
            let at = order.binary_search_by(|&row| {
                by_key.compare(contents.key(row as usize).unwrap_or_default(), bytes)
            });
            return Ok(at.map(|at| order[at] as usize));
        }
        let found = order
            .iter()
            .find(|&&row| contents.key(row as usize).is_some_and(|key| wanted.matches(key)));
        Ok(found.map(|&row| row as usize).ok_or(0))
    }

    fn lookup_index(&self, key: &KeyArg, rows: usize) -> SnapshotResult<Result<usize, usize>> {
        match key {
            KeyArg::Number(n) => match usize::try_from(*n) {
                Ok(row) if row < rows => Ok(Ok(row)),
                _ => Ok(Err(0)),
            },
            KeyArg::Bytes(bytes) if bytes.len() == 4 => {
                let index = value::number(bytes, None, false).unwrap_or(i128::MAX);
                self.lookup_index(&KeyArg::Number(index), rows)
            }
            other => Err(SnapshotError::TypeMismatch {
                expected: format!("an index of {} (a number)", self.name()),
                actual: other.spelled(),
                requested: "key".to_owned(),
            }),
        }
    }

    /// Asks a bloom filter, whose values are what other maps' keys are.
    fn may_contain(&self, value: &KeyArg) -> SnapshotResult<bool> {
        self.whole()?;
        let wanted = self.encoded_as(value, self.attrs().value_size as usize)?;
        bloom::may_contain(self.contents(), wanted.bytes()).ok_or_else(|| {
            SnapshotError::MapRenderIncomplete {
                map: self.name().to_owned(),
                error: "it says nothing sensible of how its bits are found".to_owned(),
            }
        })
    }

    fn encoded(&self, key: &KeyArg) -> SnapshotResult<Wanted> {
        self.encoded_as(key, self.attrs().key_bytes().try_into().unwrap_or(usize::MAX))
    }

    fn encoded_as(&self, key: &KeyArg, size: usize) -> SnapshotResult<Wanted> {
        let attrs = self.attrs();
        if size > MAX_KEY {
            return Err(SnapshotError::MapRenderIncomplete {
                map: self.name().to_owned(),
                error: format!("it claims keys of {size} bytes, and maps have at most {MAX_KEY}"),
            });
        }
        match (&attrs.btf, key) {
            (Some(btf), key) if attrs.key_type != 0 => key::encode(btf, attrs.key_type, size, key),
            (_, KeyArg::Bytes(bytes)) => key::raw(size, bytes),
            _ => Err(self.no_rendered("key")),
        }
    }

    /// The error that a side of the map has no type, or that its type could not be read.
    pub(crate) fn no_rendered(&self, side: &str) -> SnapshotError {
        let map = self.name().to_owned();
        match &self.attrs().btf_error {
            Some(why) => SnapshotError::MapRenderIncomplete {
                map,
                error: format!("the types of its object could not be: {why}"),
            },
            None => SnapshotError::NoRendered { map, side: side.to_owned() },
        }
    }

    /// Keys around position `near` as samples.
    fn no_match(&self, op: &str, near: usize) -> SnapshotError {
        let rows = self.contents().rows();
        let first = near.saturating_sub(1).min(rows.saturating_sub(SAMPLE_KEYS));
        let last = rows.min(first + SAMPLE_KEYS);
        SnapshotError::NoMatch {
            map: self.name().to_owned(),
            op: op.to_owned(),
            len: rows,
            available_keys: (first..last).map(|at| self.entry_at(at).key_text()).collect(),
        }
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({} {} of {:?})", self.attrs().kind, self.name(), self.snapshot.tag())
    }
}

/// Rows by key; empty where rows are in the order of keys already.
pub(super) fn rows_by_key(map: &CapturedMap) -> &[u32] {
    map.order(|| {
        let contents = map.contents();
        let rows = u32::try_from(contents.rows()).unwrap_or(u32::MAX);
        if rows == 0 || contents.key(0).is_none() {
            return Vec::new();
        }
        let kind = KeyOrder::of(&map.attrs);
        if let Some(signed) = kind.signed() {
            // Numbers are taken out once, not at each comparison.
            let key = |row: u32| contents.key(row as usize).unwrap_or_default();
            let number = |row: u32| (value::number(key(row), None, signed), row);
            let mut numbers: Vec<_> = (0..rows).map(number).collect();
            numbers.sort_unstable();
            return numbers.into_iter().map(|(_, row)| row).collect();
        }
        let mut order: Vec<u32> = (0..rows).collect();
        order.sort_by(|&a, &b| {
            let (a, b) = (contents.key(a as usize), contents.key(b as usize));
            kind.compare(a.unwrap_or_default(), b.unwrap_or_default())
        });
        order
    })
}

/// How keys are ordered.
#[derive(Clone, Copy)]
enum KeyOrder {
    /// As numbers with a sign.
    Signed,
    /// As numbers without one.
    Unsigned,
    /// As bytes.
    Bytes,
}

impl KeyOrder {
    fn of(attrs: &MapAttrs) -> KeyOrder {
        let shape =
            attrs.btf.as_ref().filter(|_| attrs.key_type != 0).map(|b| b.shape(attrs.key_type));
        match (shape.as_ref().map(|s| s.as_deref()), attrs.key_bytes()) {
            (Some(Ok(Shape::Int { signed: true, .. })), 1..=8) => KeyOrder::Signed,
            (Some(Ok(Shape::Enum(e))), 1..=8) if e.signed => KeyOrder::Signed,
            (Some(Ok(Shape::Int { .. } | Shape::Enum(_) | Shape::Ptr { .. })), 1..=8)
            | (None, 1 | 2 | 4 | 8) => KeyOrder::Unsigned,
            _ => KeyOrder::Bytes,
        }
    }

    /// Whether keys are numbers with a sign, if they are numbers.
    fn signed(self) -> Option<bool> {
        match self {
            KeyOrder::Signed => Some(true),
            KeyOrder::Unsigned => Some(false),
            KeyOrder::Bytes => None,
        }
    }

    fn compare(self, a: &[u8], b: &[u8]) -> Ordering {
        let number = |bytes: &[u8], signed| value::number(bytes, None, signed);
        match self {
            KeyOrder::Signed => number(a, true).cmp(&number(b, true)),
            KeyOrder::Unsigned => number(a, false).cmp(&number(b, false)),
            KeyOrder::Bytes => a.cmp(b),
        }
    }
}
