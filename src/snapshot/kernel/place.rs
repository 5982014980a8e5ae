//! Places in what was copied of the kernel.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::Snapshot;
use super::super::access::{Field, set_of};
use super::super::error::{SnapshotError, SnapshotResult};
use super::{NotThere, unreadable};

/// Pointers that one path may follow.
const MAX_POINTERS: u8 = 16;

/// Where a field's bytes begin.
#[derive(Clone)]
pub(crate) struct Place {
    snapshot: Arc<Snapshot>,
    /// What it is a place in, for messages: `task 17`.
    what: Arc<str>,
    /// The address.
    at: u64,
    /// Bytes that are known to be there; for those without a type.
    len: u64,
    /// Pointers that were followed on the way.
    hops: u8,
}

impl Place {
    pub(crate) fn new(snapshot: &Arc<Snapshot>, what: String, at: u64, len: u64) -> Place {
        Place { snapshot: snapshot.clone(), what: what.into(), at, len, hops: 0 }
    }

    /// The struct of the kernel's type `ty` at an address.
    pub(crate) fn of_type(
        snapshot: &Arc<Snapshot>,
        what: String,
        at: u64,
        ty: &str,
    ) -> SnapshotResult<Field> {
        let btf = snapshot.kernel_state()?.types()?;
        let Some(id) = btf.find_c(ty) else {
            return Err(unreadable(what, format!("the kernel's types have no {ty:?}")));
        };
        let len = btf.size_of(id).unwrap_or_default();
        Ok(Field::of_kernel(Place::new(snapshot, what, at, len), Some((btf.clone(), id))))
    }

    /// The mask of CPUs at an address, as a CPU set: `0-3,8`.
    pub(crate) fn cpus(snapshot: &Arc<Snapshot>, what: String, at: u64) -> SnapshotResult<String> {
        let cpus = snapshot.kernel_state()?.cpu_ids();
        let len = cpus.div_ceil(64) * 8;
        let bytes = Place::new(snapshot, what, at, len);
        Ok(set_of(&bytes.whole()?, cpus))
    }

    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Pointers that were followed on the way here.
    pub(crate) fn hops(&self) -> u8 {
        self.hops
    }

    /// The same place, after as many pointers.
    pub(crate) fn after(self, hops: u8) -> Place {
        Place { hops, ..self }
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// All bytes here, of something without a type.
    pub(crate) fn whole(&self) -> SnapshotResult<Cow<'_, [u8]>> {
        self.bytes(0, self.len, "it")
    }

    /// `len` bytes at an offset; `path` says what they are.
    pub(crate) fn bytes(&self, offset: u64, len: u64, path: &str) -> SnapshotResult<Cow<'_, [u8]>> {
        let at = self.at.wrapping_add(offset);
        let state = self.snapshot.kernel_state()?;
        state.at(at, len).map_err(|why| {
            let path = if path.is_empty() { "it" } else { path };
            let place = format!("{path} ({len} bytes at {at:#x})");
            unreadable(
                &*self.what,
                match why {
                    NotThere::NotCopied => {
                        format!("{place} was not copied: {}", state.if_not_copied())
                    }
                    NotThere::Unreadable(why) => format!("{place} is not there: {why}"),
                },
            )
        })
    }

    /// Where the pointer `path` that holds `target` leads.
    pub(crate) fn follow(&self, target: u64, path: &str) -> SnapshotResult<Place> {
        let mismatch = |expected: &str, actual: String| SnapshotError::TypeMismatch {
            expected: expected.to_owned(),
            actual,
            requested: path.to_owned(),
        };
        if target == 0 {
            return Err(mismatch("a pointer that leads somewhere", "NULL".to_owned()));
        }
        if self.hops == MAX_POINTERS {
            let actual = "one more: ask the last field for the rest".to_owned();
            return Err(mismatch(&format!("at most {MAX_POINTERS} pointers in a path"), actual));
        }
        Ok(Place { at: target, hops: self.hops + 1, ..self.clone() })
    }
}
