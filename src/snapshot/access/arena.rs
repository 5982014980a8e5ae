//! Addresses in arenas: memory that programs share with user space.
//!
//! A program's pointer into an arena is the address that user space has for it, or only its low 32
//! bits, which are what counts in the kernel's window (kernel/bpf/arena.c).

use std::sync::Arc;

use super::{Base, Field, Side, Type};
use crate::btf::{self, Btf, TypeId};
use crate::snapshot::{Entry, KeyArg, Map, Snapshot};

const PAGE: u64 = 4096;
/// What the low half of an address spans.
const WINDOW: u64 = 1 << 32;

/// Bytes that are put together from several pages at most.
const MOST: u64 = 1 << 20;

/// What lies at an address of an arena that was captured, as a type, after `hops` pointers; `None` when
/// no arena has a page there.
pub(super) fn lookup(
    snapshot: &Arc<Snapshot>,
    address: u64,
    (btf, ty): (Arc<Btf>, TypeId),
    path: &Arc<str>,
    hops: u8,
) -> Option<Field> {
    let arenas = snapshot.maps().ok()?.into_iter().filter(|map| map.attrs().kind == "arena");
    let entry = arenas.filter_map(|arena| page(&arena, address & !(PAGE - 1))).next()?;
    let size = btf.size_of(ty).unwrap_or_default();
    let at = btf::Field { offset: address % PAGE, bits: None, ty, size };
    let (base, path) = (Base::Entry(entry, Side::Value), path.clone());
    Some(Field { base, ty: Type::Btf { btf, at, root: ty, made: None }, path, hops })
}

/// What lies `offset` bytes behind the start of a page, over as many pages as it takes; `None` when
/// one of them is not there, and for what is no page.
pub(super) fn across(page: &Entry, offset: u64, len: u64) -> Option<Vec<u8>> {
    let arena = page.map();
    if arena.attrs().kind != "arena" || len > MOST {
        return None;
    }
    let mut at = page.key().as_u64().ok()?.checked_add(offset)?;
    let end = at.checked_add(len)?;
    let mut out = Vec::new();
    while at < end {
        let within = at % PAGE;
        let n = (PAGE - within).min(end - at);
        let page = arena.get(&KeyArg::Number((at - within).into())).ok()?;
        let bytes = page.bytes(Side::Value).ok()?;
        out.extend_from_slice(bytes.get(within as usize..(within + n) as usize)?);
        at += n;
    }
    Some(out)
}

/// The page at an address.
fn page(arena: &Map, address: u64) -> Option<Entry> {
    if let Ok(entry) = arena.get(&KeyArg::Number(address.into())) {
        return Some(entry);
    }
    let low = |entry: &Entry| entry.key().as_u64().is_ok_and(|key| key % WINDOW == address);
    if address < WINDOW { arena.known_entries().find(low) } else { None }
}
