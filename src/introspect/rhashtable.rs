//! Resizable hash tables: dispatch queues, RHASH maps (lib/rhashtable.c).

use std::collections::HashSet;

use super::bpf::Budget;
use super::error::{IntrospectError, ReadError};
use super::kernel::Kernel;
use crate::mem::Kva;

/// Nodes that are followed before the time is looked at again.
const HOPS: usize = 1024;

/// A table is not made smaller than for this many.
const FEW: usize = 1024;

/// `struct bucket_table` (include/linux/rhashtable.h).
pub(super) struct TableLayout {
    size: u64,
    nest: u64,
    future: u64,
    buckets: u64,
}

impl TableLayout {
    pub(super) fn new(kernel_types: &crate::btf::Btf) -> Result<Self, IntrospectError> {
        let lacks = |what: String| IntrospectError::Type(what);
        let name = "struct bucket_table";
        let id = kernel_types
            .find_c(name)
            .ok_or_else(|| lacks(format!("the kernel's types have no '{name}'")))?;
        let field = |path: &str| {
            let found = kernel_types.field(id, path);
            found.map(|f| f.offset).map_err(|e| lacks(format!("in '{name}': {e}")))
        };
        Ok(TableLayout {
            size: field("size")?,
            nest: field("nest")?,
            future: field("future_tbl")?,
            buckets: field("buckets").or_else(|e| kernel_types.size_of(id).ok_or(e))?,
        })
    }
}

/// What was found in a table.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// Where each `struct rhash_head` lies.
    pub(super) nodes: Vec<Kva>,
    /// How many buckets were locked, and the first of them.
    pub(super) locked: Option<(usize, usize)>,
    /// Why there may be more nodes.
    pub(super) incomplete: Option<String>,
}

impl Kernel {
    /// The nodes of the table of `what` whose first `struct bucket_table` lies at `table`: at most
    /// `limit`, and as many as `budget` covers. While it grows there is a second table, and an
    /// element can be reached through both.
    pub(super) fn rhashtable(
        &self,
        layout: &TableLayout,
        what: &'static str,
        table: Kva,
        limit: usize,
        budget: &mut Budget,
    ) -> Nodes {
        let mut found = Nodes::default();
        let mut walk = Walk { kernel: self, layout, what, limit, budget, seen: HashSet::new() };
        let (mut table, mut tables) = (table, 0);
        while !table.is_null() {
            tables += 1;
            let next = match tables {
                1 | 2 => walk.table(table, &mut found),
                _ => Err(format!("the table of {what} grows into one that grows")),
            };
            match next {
                Ok(next) => table = next,
                Err(why) => {
                    found.incomplete = Some(why);
                    break;
                }
            }
        }
        found
    }
}

struct Walk<'a> {
    kernel: &'a Kernel,
    layout: &'a TableLayout,
    what: &'static str,
    limit: usize,
    budget: &'a mut Budget,
    seen: HashSet<u64>,
}

impl Walk<'_> {
    /// Follows the chains of one table. Each ends in an odd value, and the lowest bit of a bucket
    /// is its lock. Gives the table that it grows into.
    fn table(&mut self, table: Kva, found: &mut Nodes) -> Result<Kva, String> {
        let text = |e: ReadError| e.to_string();
        let at = |within: u64| table.offset(within);
        let size = self.kernel.read_u32(at(self.layout.size)).map_err(text)? as usize;
        if self.kernel.read_u32(at(self.layout.nest)).map_err(text)? != 0 {
            return Err(format!("the table of {} is in pieces", self.what));
        }
        // It grows when three quarters of it are used, to the next power of two.
        if size > 4 * self.limit.max(FEW) {
            return Err(format!("the table of {} has {size} buckets", self.what));
        }
        self.budget.take(size as u64 * 8)?;
        let mut buckets = vec![0; size * 8];
        self.kernel.read(at(self.layout.buckets), &mut buckets).map_err(text)?;
        for (number, bucket) in buckets.as_chunks().0.iter().enumerate() {
            let head = u64::from_le_bytes(*bucket);
            if head & 1 != 0 {
                let (count, _) = found.locked.get_or_insert((0, number));
                *count += 1;
            }
            self.chain(head & !1, found)?;
        }
        self.budget.check_time()?;
        self.kernel.read_u64(at(self.layout.future)).map(Kva).map_err(text)
    }

    fn chain(&mut self, first: u64, found: &mut Nodes) -> Result<(), String> {
        let mut next = first;
        // An element that was seen leads to others that were, be it through another chain.
        while next != 0 && next & 1 == 0 && self.seen.insert(next) {
            if found.nodes.len() == self.limit {
                return Err(format!("there are more than {} {}", self.limit, self.what));
            }
            if found.nodes.len().is_multiple_of(HOPS) {
                self.budget.check_time()?;
            }
            found.nodes.push(Kva(next));
            next = self.kernel.read_u64(Kva(next)).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}
