//! Entries of a map, as they are found while it is copied.

use std::collections::BTreeMap;

use super::copy::{RawData, RawMap};
use crate::introspect::contents::{Detail, Details, MapData, PerCpuValues, Values};
use crate::introspect::kernel::Kernel;
use crate::introspect::walk::Walk;
use crate::mem::Kva;

/// Reasons of one map that are spelled out.
const MAX_TORN: usize = 4;

/// Entries, as they are found.
pub(super) struct Rows {
    keys: Option<Values>,
    values: Values,
    pub(super) torn: Vec<String>,
    torn_rows: BTreeMap<usize, Vec<String>>,
    pub(super) incomplete: Option<String>,
    details: Details,
    row_details: BTreeMap<usize, Details>,
}

impl Rows {
    /// `None` for a kind without keys.
    pub(super) fn new(key_size: Option<usize>, value_size: usize) -> Self {
        Rows::of(key_size.map(Values::empty), Values::empty(value_size))
    }

    /// Keys and values of the lengths that `keys` and `values` are made for.
    pub(super) fn of(keys: Option<Values>, values: Values) -> Self {
        Rows {
            keys,
            values,
            torn: Vec::new(),
            torn_rows: BTreeMap::new(),
            incomplete: None,
            details: Details::new(),
            row_details: BTreeMap::new(),
        }
    }

    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        if let Some(keys) = &mut self.keys {
            keys.push(key);
        }
        self.values.push(value);
    }

    pub(super) fn torn(&mut self, why: String) {
        if self.torn.len() < MAX_TORN {
            self.torn.push(why);
        }
    }

    /// The entry that was found last may be half-changed.
    pub(super) fn torn_row(&mut self, why: String) {
        if let Some(row) = self.len().checked_sub(1) {
            self.torn_at(row, why);
        }
    }

    /// The entry in that row may be half-changed.
    pub(super) fn torn_at(&mut self, row: usize, why: String) {
        self.torn_rows.entry(row).or_default().push(why);
    }

    /// How many entries were found.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn incomplete(&mut self, why: impl ToString) {
        self.incomplete.get_or_insert_with(|| why.to_string());
    }

    /// Something that is known of the map.
    pub(super) fn detail(&mut self, name: &'static str, fact: impl Into<Detail>) {
        self.details.push((name, fact.into()));
    }

    /// What is known of the entry that was found last.
    pub(super) fn row_details(&mut self, facts: Details) {
        if let Some(row) = self.len().checked_sub(1) {
            self.row_details.insert(row, facts);
        }
    }

    /// Takes what a walk found; what it missed makes the map incomplete.
    pub(super) fn walked<T>(&mut self, walk: Walk<T>) -> Vec<T> {
        if let Some(error) = walk.error {
            self.incomplete(error);
        }
        walk.items
    }

    /// The entries with values of each CPU's own, as many as there are keys.
    pub(super) fn per_cpu(self, values: PerCpuValues) -> RawMap {
        let mut raw = RawMap::from(self);
        if let RawData::Found(MapData::Hash { keys, .. }) = raw.data {
            raw.data = RawData::Found(MapData::PerCpuHash { keys, values });
        }
        raw
    }

    /// The nodes of a list, as far as it can be followed.
    pub(super) fn walked_list(&mut self, kernel: &Kernel, head: Kva, limit: usize) -> Vec<Kva> {
        self.walked(kernel.hlist(head, limit))
    }
}

impl From<Rows> for RawMap {
    fn from(rows: Rows) -> RawMap {
        let data = match rows.keys {
            Some(keys) => MapData::Hash { keys, values: rows.values },
            None => MapData::Array { values: rows.values },
        };
        RawMap {
            torn: rows.torn,
            torn_entries: rows.torn_rows,
            incomplete: rows.incomplete,
            details: rows.details,
            entry_details: rows.row_details,
            ..RawMap::new(RawData::Found(data))
        }
    }
}
