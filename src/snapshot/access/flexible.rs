//! Flexible arrays: as many elements as there are bytes.

use super::{Base, Field, Type};
use crate::btf::{self, FieldError, Shape};
use crate::snapshot::error::{SnapshotError, SnapshotResult};
use crate::snapshot::path::{self, MEMBERS};

/// Elements of an array of which nobody says how many it has.
const MOST: u64 = 1 << 32;

impl Field {
    /// How many elements lie in the bytes here, if this is an array without a length.
    ///
    /// In a map's entry those are what is left of it, where the array is the last thing in it. How
    /// far one goes on in memory that a pointer leads to is known to the scheduler alone.
    fn room(&self) -> Option<Room> {
        let Type::Btf { btf, at, root, made: None } = &self.ty else { return None };
        let Shape::Array { len: 0, elem_size, .. } = *btf.shape(at.ty).ok()? else { return None };
        let Base::Entry(entry, side) = &self.base else { return Some(Room::Unknown) };
        if entry.map().attrs().kind == "arena" {
            return Some(Room::Unknown);
        }
        let mut last = true;
        path::for_each_member(btf, *root, MEMBERS, &mut |_, member| {
            last &= member.size == 0 || member.offset < at.offset;
        });
        let there = entry.bytes(*side).map_or(0, |bytes| bytes.len() as u64);
        let left = there.checked_sub(at.offset).filter(|_| last).unwrap_or_default();
        Some(Room::Elements(left.checked_div(elem_size).unwrap_or_default()))
    }

    /// Goes on where a walk ended at an index into an array that has no length of its own.
    pub(super) fn get_flexible(
        &self,
        path: &str,
        error: &FieldError,
    ) -> Option<SnapshotResult<Field>> {
        let FieldError::Index { walked, index, len: 0, .. } = error else { return None };
        let array = match walked.as_str() {
            "" => self.clone(),
            walked => {
                let (btf, at) = self.typed()?;
                self.at_place(walked, path::walk(btf, at.ty, walked).ok()?)
            }
        };
        let room = array.room()?;
        if *index >= room.most() {
            let (map, len) = (format!("{}: {}", self.of(), array.path()), room.most() as usize);
            let index = i64::try_from(*index).unwrap_or(i64::MAX);
            return Some(Err(SnapshotError::IndexOutOfRange { map, index, len }));
        }
        let element = array.element(*index)?;
        let rest = path.get(walked.len()..)?.split_once(']')?.1;
        Some(match rest.strip_prefix('.').unwrap_or(rest) {
            "" => element.bytes().map(|_| element.clone()),
            rest => element.get(rest),
        })
    }

    /// Itself, as long as its elements go on, if this is such an array and it is known how long.
    pub(super) fn stretched(self) -> Field {
        let Some(Room::Elements(len)) = self.room() else { return self };
        let element = self.element(0).and_then(|element| Some(element.typed()?.1.size));
        let mut out = self;
        if let (Type::Btf { at, .. }, Some(size)) = (&mut out.ty, element) {
            at.size = len.saturating_mul(size);
        }
        out
    }

    fn element(&self, index: u64) -> Option<Field> {
        let (btf, at) = self.typed()?;
        let Shape::Array { elem, elem_size, .. } = *btf.shape(at.ty).ok()? else { return None };
        let offset = index.checked_mul(elem_size)?;
        let within = btf::Field { offset, bits: None, ty: elem, size: elem_size };
        Some(self.at_place(&format!("[{index}]"), within))
    }
}

/// How many elements there are.
#[derive(Clone, Copy)]
pub(super) enum Room {
    Elements(u64),
    /// What the bytes behind an index are is up to who asks.
    Unknown,
}

impl Room {
    fn most(self) -> u64 {
        match self {
            Room::Elements(len) => len,
            Room::Unknown => MOST,
        }
    }
}
