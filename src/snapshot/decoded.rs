//! What introspection decoded of a map, as the model sees it.

use std::collections::BTreeMap;

use crate::introspect::{self, MapContents, MapData};

use super::contents::{Contents, Detail, Details};

/// Decoded contents, as the model sees them.
pub(super) struct Decoded {
    contents: MapContents,
    incomplete: Option<String>,
    details: Details,
    row_details: BTreeMap<usize, Details>,
}

impl Decoded {
    pub(super) fn new(mut contents: MapContents) -> Decoded {
        let incomplete = match &mut contents.data {
            MapData::Unreadable { reason } => Some(std::mem::take(reason)),
            _ => contents.incomplete.take(),
        };
        let details = details(std::mem::take(&mut contents.details));
        let of_rows = std::mem::take(&mut contents.entry_details).into_iter();
        let row_details = of_rows.map(|(row, facts)| (row, self::details(facts))).collect();
        Decoded { contents, incomplete, details, row_details }
    }

    /// A map that the freeze was not asked for.
    pub(super) fn left_out(name: &str) -> Decoded {
        let reason = format!(
            "the freeze was asked for other maps only; add {name:?} to its `maps`, or leave \
             `maps` out"
        );
        Decoded::new(MapContents::new(MapData::Unreadable { reason }))
    }
}

fn details(facts: introspect::Details) -> Details {
    let fact = |fact| match fact {
        introspect::Detail::Number(n) => Detail::Number(n),
        introspect::Detail::Text(text) => Detail::Text(text),
    };
    facts.into_iter().map(|(name, value)| (name.to_owned(), fact(value))).collect()
}

impl Contents for Decoded {
    fn rows(&self) -> usize {
        self.contents.data.len().unwrap_or_default()
    }

    fn key(&self, row: usize) -> Option<&[u8]> {
        match &self.contents.data {
            MapData::Hash { keys, .. } | MapData::PerCpuHash { keys, .. } => keys.get(row),
            _ => None,
        }
    }

    fn value(&self, row: usize) -> Option<&[u8]> {
        match &self.contents.data {
            MapData::Array { values } | MapData::Hash { values, .. } => values.get(row),
            _ => None,
        }
    }

    fn cpus(&self) -> Option<usize> {
        match &self.contents.data {
            MapData::PerCpuArray { values } | MapData::PerCpuHash { values, .. } => {
                Some(values.cpus())
            }
            _ => None,
        }
    }

    fn cpu_value(&self, row: usize, cpu: usize) -> Option<&[u8]> {
        match &self.contents.data {
            MapData::PerCpuArray { values } | MapData::PerCpuHash { values, .. } => {
                values.get(row, cpu)
            }
            _ => None,
        }
    }

    fn torn(&self) -> &[String] {
        &self.contents.torn
    }

    fn torn_row(&self, row: usize) -> &[String] {
        self.contents.torn_entries.get(&row).map_or(&[], Vec::as_slice)
    }

    fn incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }

    fn details(&self) -> &[(String, Detail)] {
        &self.details
    }

    fn row_details(&self, row: usize) -> &[(String, Detail)] {
        self.row_details.get(&row).map_or(&[], Vec::as_slice)
    }
}
