//! Walks over the kernel's linked structures, bounded and checked.
//!
//! A walk that ends early gives what it found until then, and why it ended.

use std::collections::HashSet;

use super::error::{IntrospectError, ReadError, WalkError};
use super::kernel::Kernel;
use super::space::AddressSpace;
use crate::mem::Kva;

/// The default limit for walks whose length nothing else bounds.
pub const MAX_ELEMENTS: usize = 1 << 20;

/// What a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk<T> {
    /// The elements, in the structure's order.
    pub items: Vec<T>,
    /// Why there are no more of them, when the walk did not reach the end.
    pub error: Option<WalkError>,
}

impl<T> Walk<T> {
    fn new() -> Self {
        Walk { items: Vec::new(), error: None }
    }

    /// The elements, if the walk reached the end.
    ///
    /// # Errors
    /// Why it did not.
    pub fn complete(self) -> Result<Vec<T>, WalkError> {
        match self.error {
            None => Ok(self.items),
            Some(e) => Err(e),
        }
    }
}

/// How a chain of pointers ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Back at the head (`list_head`).
    Head,
    /// At a null pointer (`hlist_head`).
    Null,
    /// At an odd value (`hlist_nulls_head`).
    Nulls,
}

/// Follows pointers that lie at the start of each node (`next` is the first member of
/// `list_head`, `hlist_node` and `hlist_nulls_node` alike).
fn chain(space: &AddressSpace, what: &'static str, head: Kva, end: End, limit: usize) -> Walk<Kva> {
    let mut walk = Walk::new();
    let mut seen = HashSet::new();
    let mut at = head;
    loop {
        let next = match space.read_u64(at) {
            Ok(next) => Kva(next),
            Err(cause) => {
                walk.error = Some(WalkError::Read { what, at: head, cause });
                return walk;
            }
        };
        let over = match end {
            End::Head => next == head,
            End::Null => next.is_null(),
            End::Nulls => next.0 & 1 == 1,
        };
        if over {
            return walk;
        }
        if walk.items.len() == limit {
            walk.error = Some(WalkError::TooLong { what, at: head, limit });
            return walk;
        }
        if !seen.insert(next.0) {
            walk.error = Some(WalkError::Circle { what, at: head, again: next });
            return walk;
        }
        walk.items.push(next);
        at = next;
    }
}

impl Kernel {
    /// The nodes (`struct list_head`) of the list whose head lies at `head`, the head left out.
    #[must_use]
    pub fn list(&self, head: Kva, limit: usize) -> Walk<Kva> {
        chain(&self.space, "list", head, End::Head, limit)
    }

    /// The nodes (`struct hlist_node`) of the list whose `hlist_head` lies at `head`.
    #[must_use]
    pub fn hlist(&self, head: Kva, limit: usize) -> Walk<Kva> {
        chain(&self.space, "hlist", head, End::Null, limit)
    }

    /// The nodes of the list whose `hlist_nulls_head` lies at `head`.
    #[must_use]
    pub fn hlist_nulls(&self, head: Kva, limit: usize) -> Walk<Kva> {
        chain(&self.space, "hlist_nulls", head, End::Nulls, limit)
    }

    /// The pointers in the xarray at `at`, with their indices, ascending.
    ///
    /// # Errors
    /// The kernel's types do not describe xarrays.
    pub fn xarray(&self, at: Kva, limit: usize) -> Result<Walk<(u64, Kva)>, IntrospectError> {
        Ok(XarrayLayout::new(self)?.walk(&self.space, "xarray", at, limit))
    }

    /// The pointers in the `struct idr` at `at`, with their ids, ascending.
    ///
    /// # Errors
    /// The kernel's types do not describe IDRs.
    pub fn idr(&self, at: Kva, limit: usize) -> Result<Walk<(u64, Kva)>, IntrospectError> {
        let layout = XarrayLayout::new(self)?;
        let idr = self.type_id("struct idr")?;
        let base = self.field(idr, "idr_base")?;
        let base = u64::from(self.space.read_u32(at.offset(base))?);
        let root = at.offset(self.field(idr, "idr_rt")?);
        let mut walk = layout.walk(&self.space, "idr", root, limit);
        walk.items.iter_mut().for_each(|(index, _)| *index = index.wrapping_add(base));
        Ok(walk)
    }

    /// The offset in bytes of a member that must exist.
    pub(super) fn field(&self, ty: u32, path: &str) -> Result<u64, IntrospectError> {
        let field = self.btf().field(ty, path);
        field.map(|f| f.offset).map_err(|e| IntrospectError::Type(e.to_string()))
    }
}

/// Where things are in an xarray (include/linux/xarray.h).
struct XarrayLayout {
    head: u64,
    shift: u64,
    slots: u64,
    slot_count: usize,
}

/// The two low bits of an entry that leads to a node; values above this one are pointers.
const INTERNAL: u64 = 2;
const MAX_INTERNAL: u64 = 4096;

impl XarrayLayout {
    fn new(kernel: &Kernel) -> Result<Self, IntrospectError> {
        let array = kernel.type_id("struct xarray")?;
        let node = kernel.type_id("struct xa_node")?;
        let field = |path: &str| kernel.field(node, path);
        let slots = kernel.btf().field(node, "slots");
        let slots = slots.map_err(|e| IntrospectError::Type(e.to_string()))?;
        Ok(XarrayLayout {
            head: kernel.field(array, "xa_head")?,
            shift: field("shift")?,
            slots: slots.offset,
            slot_count: (slots.size / 8).min(1024) as usize,
        })
    }

    fn walk(
        &self,
        space: &AddressSpace,
        what: &'static str,
        at: Kva,
        limit: usize,
    ) -> Walk<(u64, Kva)> {
        let mut out = Walk::new();
        let entry = match space.read_u64(at.offset(self.head)) {
            Ok(entry) => entry,
            Err(cause) => {
                out.error = Some(WalkError::Read { what, at, cause });
                return out;
            }
        };
        let mut rest = Descent { space, what, at, limit, nodes: 0 };
        out.error = match is_node(entry) {
            true => self.node(&mut rest, entry, None, 0, &mut out.items).err(),
            false => rest.leaf(entry, 0, &mut out.items).err(),
        };
        out
    }

    /// Visits the node that `entry` leads to. Shifts must fall from node to node, so the depth is
    /// bounded; the number of nodes is bounded by `limit`.
    fn node(
        &self,
        rest: &mut Descent<'_>,
        entry: u64,
        above: Option<u8>,
        base: u64,
        out: &mut Vec<(u64, Kva)>,
    ) -> Result<(), WalkError> {
        rest.nodes += 1;
        if rest.nodes > rest.limit {
            return Err(rest.too_long());
        }
        let node = Kva(entry - INTERNAL);
        let mut raw = vec![0; (self.slots as usize + self.slot_count * 8).min(1 << 16)];
        rest.space.read(node, &mut raw).map_err(|cause| rest.read(cause))?;
        let shift = raw.get(self.shift as usize).copied().unwrap_or(u8::MAX);
        if shift > 60 || above.is_some_and(|above| shift >= above) {
            return Err(WalkError::Damaged {
                what: rest.what,
                at: rest.at,
                detail: format!("the node at {node} has shift {shift}"),
            });
        }
        let slots = raw.get(self.slots as usize..).unwrap_or_default().as_chunks().0;
        for (i, slot) in slots.iter().enumerate() {
            let entry = u64::from_le_bytes(*slot);
            let index = base.wrapping_add((i as u64) << shift);
            if is_node(entry) && shift > 0 {
                self.node(rest, entry, Some(shift), index, out)?;
            } else {
                rest.leaf(entry, index, out)?;
            }
        }
        Ok(())
    }
}

fn is_node(entry: u64) -> bool {
    entry & 3 == INTERNAL && entry > MAX_INTERNAL
}

/// What all steps of one descent share.
struct Descent<'a> {
    space: &'a AddressSpace,
    what: &'static str,
    at: Kva,
    limit: usize,
    nodes: usize,
}

impl Descent<'_> {
    /// Takes an entry that is a pointer; values, siblings and reserved entries are none.
    fn leaf(&self, entry: u64, index: u64, out: &mut Vec<(u64, Kva)>) -> Result<(), WalkError> {
        if entry == 0 || entry & 3 != 0 {
            return Ok(());
        }
        if out.len() == self.limit {
            return Err(self.too_long());
        }
        out.push((index, Kva(entry)));
        Ok(())
    }

    fn too_long(&self) -> WalkError {
        WalkError::TooLong { what: self.what, at: self.at, limit: self.limit }
    }

    fn read(&self, cause: ReadError) -> WalkError {
        WalkError::Read { what: self.what, at: self.at, cause }
    }
}
