//! RHASH: a hash that grows (since 7.2, "bpf: Implement resizable hashmap", kernel/bpf/hashtab.c).

use super::{Found, Rows, text};
use crate::btf::Btf;
use crate::introspect::bpf::MapInfo;
use crate::introspect::bpf::copy::Budget;
use crate::introspect::bpf::layout::{At, Finder};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::introspect::rhashtable::TableLayout;
use crate::mem::Kva;

/// `struct bpf_rhtab` and `struct rhtab_elem`.
pub(crate) struct RhashLayout {
    whole: usize,
    table: At,
    counted: At,
    elem_size: At,
    node: u64,
    data: usize,
    tables: TableLayout,
}

impl RhashLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_rhtab")?;
        let elem = Finder::new(btf, "struct rhtab_elem")?;
        Ok(RhashLayout {
            whole: f.size,
            table: f.number("ht.tbl")?,
            counted: f.number("ht.nelems.counter")?,
            elem_size: f.number("elem_size")?,
            node: elem.at("node")?.offset as u64,
            data: elem.at("data")?.offset,
            tables: TableLayout::new(btf)?,
        })
    }
}

impl Kernel {
    /// The entries of a resizable hash. A value lies behind its key, both rounded up to eight
    /// bytes.
    pub(super) fn rhash(&self, layout: &RhashLayout, map: &MapInfo, budget: &mut Budget) -> Found {
        let mut raw = vec![0; layout.whole];
        self.read(map.kva, &mut raw).map_err(text)?;
        let number = |at: At| at.read(&raw).unwrap_or(0);
        let (key_size, value_size) = (map.key_size as usize, map.value_size as usize);
        let value = layout.data + key_size.next_multiple_of(8);
        let (claimed, size) = (number(layout.elem_size), value + value_size.next_multiple_of(8));
        if claimed != size as u64 {
            return Err(format!("its elements take {claimed} bytes, keys and values {size}"));
        }
        let (table, limit) = (Kva(number(layout.table)), map.max_entries as usize + SLACK);
        let found = self.rhashtable(&layout.tables, "entries", table, limit, budget);
        let mut rows = Rows::new(Some(key_size), value_size);
        if let Some((count, first)) = found.locked {
            let more = if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
            rows.torn(format!("the lock of bucket {first} is held{more}"));
        }
        let (counted, linked) = (number(layout.counted), found.nodes.len() as u64);
        if counted != linked && found.incomplete.is_none() {
            rows.torn(format!("it counts {counted} entries, and {linked} are linked"));
        }
        let mut elem = vec![0; size];
        for node in found.nodes {
            if let Err(e) = budget.take(size as u64) {
                rows.incomplete(e);
                break;
            }
            match self.read(Kva(node.0.wrapping_sub(layout.node)), &mut elem) {
                Ok(()) => rows.push(
                    &elem[layout.data..layout.data + key_size],
                    &elem[value..value + value_size],
                ),
                Err(e) => rows.incomplete(e),
            }
        }
        if let Some(why) = found.incomplete {
            rows.incomplete(why);
        }
        Ok(rows.into())
    }
}

/// Elements beyond the capacity: the kernel counts one after it has linked it.
const SLACK: usize = 1024;
